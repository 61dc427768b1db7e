//! Readers beside a writer that commits, rotates, truncates and recycles.

use durability::backends::Backend;
use durability::checkpoint::CheckpointWriter;
use durability::inspect::{Checkpoints, inspect_log, inspect_log_beside};
use durability::publish::CheckpointPublisher;
use durability::storage::FlushPolicy;
use durability::walog::{
    SyncWalWriter, WalCheck, WalFollower, WalMaintenance, WalOptions, WalReader, WalReplayMode,
};
use durability::{DurableDirectory, FsDirectory, PersistenceError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn payload(entry_id: u64) -> Vec<u8> {
    entry_id.to_le_bytes().repeat(1 + (entry_id as usize * 13) % 120)
}

#[test]
fn a_live_log_never_looks_shorter_than_what_was_acknowledged_nor_damaged() {
    for backend in [Backend::Std, Backend::Auto] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let directory: Arc<dyn DurableDirectory> = backend.open(root.path()).expect("opens").directory;
        let options = WalOptions {
            segment_bytes_max: 16 << 10,
            preallocate_bytes: 16 << 10,
            recycle_capacity: 2,
            flush_policy: FlushPolicy::Manual,
            ..WalOptions::default()
        };
        let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(Arc::clone(&directory), options)
            .expect("opens");
        let (done, cut, durable) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for reader in 0..2 {
                let reader_directory = Arc::clone(&directory);
                let (done, cut, durable) = (&done, &cut, &durable);
                scope.spawn(move || {
                    let reader_of = WalReader::<(), dyn DurableDirectory>::new(reader_directory);
                    let mut rounds = 0;
                    while !done.load(Ordering::SeqCst) || rounds == 0 {
                        rounds += 1;
                        let least = durable.load(Ordering::SeqCst);
                        let from = cut.load(Ordering::SeqCst) + 1;
                        let mut next = from;
                        let replayed =
                            reader_of.replay_bytes_from(from, WalReplayMode::BestEffortTail, |id, bytes| {
                                assert_eq!(
                                    (id, bytes),
                                    (next, &payload(id)[..]),
                                    "{backend} reader {reader}"
                                );
                                next += 1;
                                Ok(())
                            });
                        match replayed {
                            Ok(summary) => assert!(
                                summary.end.last_entry_id >= least,
                                "{backend}: {summary:?}, {least} was durable"
                            ),
                            // Truncation was faster than the reader.
                            Err(PersistenceError::PrefixUnavailable { .. }) => {}
                            Err(error) if error.is_not_found() && least == 0 => {}
                            Err(error) => panic!("{backend} reader {reader}: {error}"),
                        }
                    }
                });
            }
            let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(&directory));
            for entry_id in 1..=1500u64 {
                assert_eq!(wal.append_bytes(&payload(entry_id)).expect("appends"), entry_id);
                if entry_id % 3 == 0 {
                    wal.flush_and_sync().expect("syncs");
                    durable.store(entry_id, Ordering::SeqCst);
                }
                if entry_id % 400 == 0 {
                    cut.store(entry_id - 150, Ordering::SeqCst);
                    maintenance.truncate_to_recycle(entry_id - 150, 2).expect("truncates");
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        wal.close().expect("closes");
    }
}

#[test]
fn a_live_log_is_followed_and_checked_beside_its_writer() {
    for backend in [Backend::Std, Backend::Auto] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let directory: Arc<dyn DurableDirectory> = backend.open(root.path()).expect("opens").directory;
        let options = WalOptions {
            segment_bytes_max: 16 << 10,
            preallocate_bytes: 16 << 10,
            recycle_capacity: 2,
            flush_policy: FlushPolicy::Manual,
            ..WalOptions::default()
        };
        let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(Arc::clone(&directory), options)
            .expect("opens");
        wal.append_bytes_durable(&payload(1)).expect("commits");
        let (done, followed) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (done, followed, wal) = (&done, &followed, &wal);
            let checked = Arc::clone(&directory);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let least = wal.durable_entry_id();
                    let (_, end) = WalCheck::run(&checked, |check| check.scan_all());
                    let end = end.unwrap_or_else(|error| panic!("{backend}: {error}"));
                    assert!(end.last_entry_id >= least, "{backend}: {end:?}, {least} was durable");
                    let inspected = inspect_log(&checked, |check| check.scan_all());
                    assert!(inspected.is_ok_and(|log| log.verdict.is_accepted()), "{backend}");
                }
            });
            let directory = Arc::clone(&directory);
            scope.spawn(move || {
                let mut follower = WalFollower::new(directory, None).expect("follows");
                let mut last_look = false;
                while !last_look {
                    last_look = done.load(Ordering::SeqCst);
                    let mut next = followed.load(Ordering::SeqCst) + 1;
                    let polled = follower.poll(|entry_id, bytes| {
                        assert_eq!((entry_id, bytes), (next, &payload(entry_id)[..]), "{backend}");
                        assert!(entry_id <= wal.durable_entry_id(), "{backend}: {entry_id} is not durable");
                        next += 1;
                        Ok(())
                    });
                    polled.unwrap_or_else(|error| panic!("{backend}: {error}"));
                    followed.store(next - 1, Ordering::SeqCst);
                }
            });
            let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(wal.directory()));
            for entry_id in 2..=600u64 {
                assert_eq!(wal.append_bytes(&payload(entry_id)).expect("appends"), entry_id);
                if entry_id % 3 == 0 {
                    wal.flush_and_sync().expect("syncs");
                }
                if entry_id % 200 == 0 {
                    // Only what was followed goes.
                    let seen = followed.load(Ordering::SeqCst);
                    maintenance.truncate_to_recycle(seen, 2).expect("truncates");
                }
            }
            wal.flush_and_sync().expect("syncs");
            wal.append_bytes_durable(&payload(601)).expect("commits");
            done.store(true, Ordering::SeqCst);
        });
        assert!(followed.into_inner() >= 600, "{backend}: the last commit attests all before it");
        wal.close().expect("closes");
    }
}

/// Checkpoints are published, moved back and replaced beside whoever looks at them: none is ever found damaged, and the
/// log always holds what they require.
#[test]
fn checkpoints_are_looked_at_beside_publishing() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let options = WalOptions { segment_bytes_max: 4 << 10, preallocate_bytes: 0, ..WalOptions::default() };
    let mut wal =
        SyncWalWriter::<(), FsDirectory>::configure(Arc::clone(&directory), options).expect("opens");
    wal.append_bytes_durable(b"first").expect("commits");
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (looked_at, done, seen) = (Arc::clone(&directory), &done, &seen);
        scope.spawn(move || {
            let files = ["state", "state.1", "state.2"].map(str::to_owned);
            while !done.load(Ordering::SeqCst) {
                let found = Checkpoints::read(looked_at.as_ref(), &files, &mut |_| {}).expect("reads");
                let log = inspect_log_beside(&looked_at, found, |check| check.scan_all()).expect("looks");
                assert!(log.verdict.is_accepted(), "{}", log.verdict);
                assert!(log.checkpoints.iter().all(|checkpoint| checkpoint.verdict.is_accepted()));
                seen.fetch_add(log.checkpoints.len() as u64, Ordering::SeqCst);
            }
        });
        let publisher = CheckpointPublisher::new(Arc::clone(&directory)).keep(3);
        let began = std::time::Instant::now();
        let mut published = 0;
        // Until enough was seen, however slow the machine is.
        while (published < 100 || seen.load(Ordering::SeqCst) < 100) && began.elapsed().as_secs() < 60 {
            let last = wal.append_bytes_durable(&[7; 300]).expect("commits");
            let write = |writer: &mut CheckpointWriter<'_, FsDirectory>| writer.write_state(&[7; 3000]);
            publisher
                .publish_with(&mut wal, last, "state", write, |path| Ok(path.into()))
                .expect("publishes");
            published += 1;
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(seen.into_inner() >= 100, "checkpoints were looked at");
    wal.close().expect("closes");
}
