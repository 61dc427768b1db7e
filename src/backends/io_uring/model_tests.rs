//! Models of who reads completions: the code of `file`, over a kernel that a scheduler drives.
//!
//! Lives here: `file.rs` compiled a second time, with a ring in whose place shuttle decides what completes
//! when; and what must hold under every schedule. Not here: the real ring (`super::ring`), whose memory no
//! model knows. Run by `scripts/model-check.sh`, and only with `--cfg durability_shuttle`.

#[path = "file.rs"]
mod file;
#[path = "model_ring_tests.rs"]
mod ring;

// What `file.rs` finds beside itself.
use super::{chain, overlap, ways};
mod pool {
    /// Rings of a model are not kept.
    pub(super) struct Pool;
}

use crate::storage::{Commit, CommitBuffer, CommitFile, CommitStrategy, Effect, Submitted, Wait};
use crate::walog::models::lab::{explore, pick};
use file::{Drive, PIECE_BYTES_MAX, UringFile};
use pool::Pool;
use ring::Ring;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use ways::{SharedWays, Way};

/// Nothing that is checked here waits so long.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

const EVERY_WAY: &[Wait] = &[Wait::Never, Wait::Forever, Wait::AtMost(FOR_EVER)];

/// A file, whose lone commits begin to go either way; the `failing`-th write or sync that ends fails.
fn file(failing: Option<usize>) -> Arc<UringFile> {
    let strategy = [CommitStrategy::DirectDsync, CommitStrategy::LinkedWriteSync][pick(2)];
    let drive = Drive {
        strategy,
        in_flight_max: 8,
        alignment: 512,
        memory_alignment: 1,
        piece_bytes_max: [512, PIECE_BYTES_MAX][pick(2)],
    };
    let descriptor = tempfile::tempfile().expect("a descriptor that nobody writes to");
    let lone = SharedWays::default();
    lone.begin_with([Way::Call, Way::Ring][pick(2)]);
    Arc::new(UringFile::new(descriptor, "modelled", drive, Ring { failing }, Arc::new(Pool)).sharing(&lone))
}

/// What has ended: the commit's number, and whether well.
type Ended = Arc<Mutex<Vec<(u64, bool)>>>;

fn submit(file: &UringFile, id: u64, effect: Effect) -> bool {
    let buffer = CommitBuffer::from_slice(&[1; 1024]);
    match file.submit(Commit { id, offset: id * 1024, buffer, range: 0..1024, effect }) {
        Submitted::Accepted => true,
        Submitted::Refused { .. } => false,
    }
}

/// Threads that submit, begin without waiting where there are several ways to wait, and reap as often as they
/// submitted: whose completion it is they do not choose. What was held back for whoever waits for it ends, too.
fn submit_and_reap(failing: Option<usize>, ways: &'static [Wait]) {
    let (file, ended) = (file(failing), Ended::default());
    let threads: Vec<_> = (0..3)
        .map(|thread| {
            let (file, ended) = (Arc::clone(&file), Arc::clone(&ended));
            crate::sync::thread::spawn(move || {
                for id in [2 * thread, 2 * thread + 1] {
                    let effect = if pick(3) == 0 { Effect::Flushed } else { Effect::Durable };
                    if !submit(&file, id, effect) {
                        continue;
                    }
                    if ways.len() > 1 && pick(3) == 0 {
                        file.start().expect("the machinery holds");
                    }
                    loop {
                        let wait = ways[pick(ways.len())];
                        match file.reap(wait).expect("the machinery holds") {
                            Some(end) => {
                                ended.lock().expect("no panic").push((end.id, end.result.is_ok()));
                                break;
                            }
                            None => assert_eq!(wait, Wait::Never, "as many reap as have submitted"),
                        }
                        crate::sync::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("a thread of the model panicked"));
    let mut ended = ended.lock().expect("no panic").clone();
    if failing.is_none() {
        assert!(ended.iter().all(|(_, is_well)| *is_well), "nothing fails");
        ended.sort_unstable();
        assert_eq!(ended.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    } else {
        let failed = ended.iter().position(|(_, is_well)| !is_well).unwrap_or(ended.len());
        assert!(failed < ended.len(), "a failure is told");
    }
    assert!(file.reap(Wait::Never).expect("the machinery holds").is_none(), "nothing is left");
}

#[test]
fn every_completion_reaches_somebody_who_waits() {
    explore("reaping", || submit_and_reap(None, &[Wait::Forever]));
}

#[test]
fn a_failed_completion_leaves_nobody_waiting() {
    explore("reaping beside a failure", || submit_and_reap(Some(pick(4)), &[Wait::Forever]));
}

/// One thread submits, another one reaps: it returns while it waits in the kernel for what came later.
#[test]
fn who_waits_in_the_kernel_sees_what_is_submitted_meanwhile() {
    explore("submitting beside the reaper", || {
        let (file, ended) = (file(None), Ended::default());
        assert!(submit(&file, 0, Effect::Durable));
        let reapers: Vec<_> = (0..2)
            .map(|_| {
                let (file, ended) = (Arc::clone(&file), Arc::clone(&ended));
                crate::sync::thread::spawn(move || {
                    while ended.lock().expect("no panic").len() < 3 {
                        match file.reap(Wait::Forever).expect("the machinery holds") {
                            Some(end) => ended.lock().expect("no panic").push((end.id, end.result.is_ok())),
                            None => crate::sync::thread::yield_now(),
                        }
                    }
                })
            })
            .collect();
        assert!(submit(&file, 1, Effect::Durable) && submit(&file, 2, Effect::Flushed));
        reapers.into_iter().for_each(|thread| thread.join().expect("a thread of the model panicked"));
        let ended = ended.lock().expect("no panic");
        assert!(ended.len() == 3 && ended.iter().all(|(_, is_well)| *is_well));
    });
}

#[test]
fn whoever_waits_in_whatever_way_gets_a_completion() {
    explore("waiting in every way", || submit_and_reap(None, EVERY_WAY));
}

#[test]
fn a_failure_reaches_those_who_wait_in_whatever_way() {
    explore("waiting in every way beside a failure", || submit_and_reap(Some(pick(4)), EVERY_WAY));
}

/// Nobody waits for the commit, one thread polls for it, and another one comes and goes.
#[test]
fn a_commit_that_is_only_begun_ends_for_whoever_looks() {
    explore("beginning and looking", || {
        let (file, ended) = (file(None), Ended::default());
        let beginner = {
            let file = Arc::clone(&file);
            crate::sync::thread::spawn(move || {
                assert!(submit(&file, 0, Effect::Durable));
                file.start().expect("the machinery holds");
                assert!(submit(&file, 1, Effect::Durable));
                file.start().expect("the machinery holds");
            })
        };
        let passer = {
            let (file, ended) = (Arc::clone(&file), Arc::clone(&ended));
            crate::sync::thread::spawn(move || {
                if let Some(end) = file.reap(Wait::Forever).expect("the machinery holds") {
                    ended.lock().expect("no panic").push((end.id, end.result.is_ok()));
                }
            })
        };
        while ended.lock().expect("no panic").len() < 2 {
            match file.reap(Wait::Never).expect("the machinery holds") {
                Some(end) => ended.lock().expect("no panic").push((end.id, end.result.is_ok())),
                None => crate::sync::thread::yield_now(),
            }
        }
        beginner.join().expect("a thread of the model panicked");
        passer.join().expect("a thread of the model panicked");
    });
}
