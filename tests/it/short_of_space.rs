//! Threads, tickets and commits in flight on a disk that is full now and then: each call's answer says whether its
//! entry was appended, and what was appended becomes durable when there is space.

use crate::power_cut::{Random, seeds};
use crate::support::within_patience;
use durability::storage::FlushPolicy;
use durability::testing::sim::SimDisk;
use durability::walog::{
    Backpressure, PrepareAhead, SyncWalWriter, WalOptions, WalReader, WalReplayMode, WalWriter,
};
use durability::{PersistenceError, PersistenceResult};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

type Wal = SyncWalWriter<(), SimDisk>;

/// What the answer to an append says: `true` when the entry stays.
fn stays<T>(outcome: PersistenceResult<T>, what: &str) -> bool {
    match outcome {
        Ok(_) => true,
        Err(PersistenceError::WouldBlock { .. }) => false,
        Err(error) if error.is_out_of_space() && !matches!(error, PersistenceError::Poisoned { .. }) => true,
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn who_waits_for_room_on_a_full_disk_is_told_that_nothing_was_appended() {
    for backpressure in [Backpressure::Wait, Backpressure::Refuse] {
        let options = WalOptions {
            in_flight_bytes_max: 2000,
            backpressure,
            flush_policy: FlushPolicy::Manual,
            preallocate_bytes: 0,
            prepare_ahead: PrepareAhead::Never,
            ..WalOptions::default()
        };
        let disk = SimDisk::new(1);
        let wal = Wal::configure(Arc::new(disk.clone()), options).expect("opens");
        disk.limit_capacity(Some(0));
        for number in 0..40u64 {
            let before = wal.last_entry_id();
            let appended = match number % 3 {
                0 => stays(wal.append_bytes(&[1; 600]), "append"),
                1 => stays(wal.append_bytes_durable(&[1; 600]), "append durably"),
                _ => stays(wal.append_batch_bytes(&[[1; 600]]), "append a batch"),
            };
            assert_eq!(wal.last_entry_id() - before, u64::from(appended), "{backpressure:?}, {number}");
        }
        assert!(wal.flush_and_sync().expect_err("still full").is_out_of_space());
        disk.limit_capacity(None);
        let before = wal.last_entry_id();
        wal.flush_and_sync().expect("everything that was appended");
        assert_eq!(wal.append_bytes_durable(&[1; 600]).expect("goes on"), before + 1);
    }
}

/// The last handle goes while nothing can be committed: every callback is told so, once.
#[test]
fn callbacks_of_a_log_that_is_dropped_on_a_full_disk_are_called_once() {
    for seed in seeds(20) {
        let disk = SimDisk::new(seed);
        let (pipeline_depth, prepare_ahead) = (Some(1 + seed as usize % 4), PrepareAhead::Never);
        let options = WalOptions {
            segment_bytes_max: 2000,
            preallocate_bytes: 512,
            pipeline_depth,
            prepare_ahead,
            ..WalOptions::default()
        };
        disk.keep_reserved();
        let wal = Wal::configure(Arc::new(disk.clone()), options).expect("opens");
        wal.append_bytes_durable(&[1; 100]).expect("commits");
        let (well, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut asked = 0;
        for number in 0..30 {
            if number == seed % 30 {
                disk.limit_capacity(Some(disk.used_bytes()));
            }
            let Ok(ticket) = wal.submit_bytes(&[1; 400]) else { continue };
            asked += 1;
            let (well, refused) = (Arc::clone(&well), Arc::clone(&refused));
            ticket.on_durable(move |outcome| {
                let told = if outcome.is_ok() { well } else { refused };
                told.fetch_add(1, Ordering::SeqCst);
            });
        }
        let reader = wal.reader();
        within_patience(move || drop(wal));
        let (well, refused) = (well.load(Ordering::SeqCst), refused.load(Ordering::SeqCst));
        assert_eq!((well + refused, asked), (30, 30), "seed {seed}: {well} well, {refused} refused");
        assert!(well < reader.durable_entry_id(), "seed {seed}: what was called durable is");
    }
}

/// With one owner, an entry whose call fails for want of space is never appended.
#[test]
fn one_owner_on_a_full_disk_has_appended_nothing_behind_an_error() {
    for flush_policy in [FlushPolicy::PerAppend, FlushPolicy::EveryN(3), FlushPolicy::Manual] {
        let options = WalOptions {
            in_flight_bytes_max: 2000,
            buffer_bytes: 1500,
            segment_bytes_max: 5000,
            flush_policy,
            ..WalOptions::default()
        };
        let disk = SimDisk::new(1);
        disk.keep_reserved();
        let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
        disk.limit_capacity(Some(0));
        let (mut appended, mut refused) = (0, 0);
        for number in 0..60u64 {
            if number == 40 {
                disk.limit_capacity(None);
            }
            let outcome = match number % 3 {
                0 => wal.append_bytes(&[1; 600]),
                1 => wal.append_bytes_durable(&[1; 600]),
                _ => wal.append_batch_bytes(&[[1; 600]]).map(|ids| ids[0]),
            };
            match outcome {
                Ok(entry_id) => {
                    appended += 1;
                    assert_eq!(entry_id, appended, "{flush_policy:?}");
                }
                Err(error) if error.is_out_of_space() => refused += 1,
                Err(error) => panic!("{flush_policy:?}: {error}"),
            }
            assert_eq!(wal.last_entry_id(), appended, "{flush_policy:?}, {number}");
        }
        assert!(refused > 10 && appended >= 20, "{flush_policy:?}: {refused} refused, {appended} appended");
        wal.close().expect("closes");
        let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
        let read = reader.replay_bytes(WalReplayMode::Strict).expect("reads");
        assert_eq!(read.len() as u64, appended, "{flush_policy:?}");
    }
}

/// One committer: in turn every way of committing, and of waiting. Answers which of its entries were appended.
fn commits(wal: &Wal, thread: u64, random: &mut Random, called: &Arc<AtomicU64>) -> (Vec<u64>, u64) {
    let (mut kept, mut callbacks) = (Vec::new(), 0);
    for number in 0..40 {
        let mut bytes = vec![thread as u8; 100 + random.below(900) as usize];
        bytes[..8].copy_from_slice(&(thread << 32 | number).to_le_bytes());
        let ticket = |wal: &Wal| wal.submit_bytes(&bytes);
        let appended = match random.below(6) {
            0 => stays(wal.append_bytes(&bytes), "append"),
            1 => stays(wal.append_bytes_durable(&bytes), "append durably"),
            2 => ticket(wal).map(|ticket| stays(ticket.wait(), "wait")).is_ok(),
            3 => ticket(wal)
                .map(|ticket| stays(ticket.wait_timeout(Duration::from_secs(600)), "deadline"))
                .is_ok(),
            4 => ticket(wal).map(|ticket| stays(pollster::block_on(ticket), "await")).is_ok(),
            _ => {
                let called = Arc::clone(called);
                let asked = ticket(wal).map(|ticket| {
                    ticket.on_durable(move |outcome| {
                        stays(outcome, "callback");
                        called.fetch_add(1, Ordering::SeqCst);
                    });
                });
                callbacks += u64::from(asked.is_ok());
                asked.is_ok()
            }
        };
        if appended {
            kept.push(thread << 32 | number);
        }
    }
    (kept, callbacks)
}

fn live(seed: u64) {
    let (disk, mut random) = (SimDisk::new(seed), Random(seed));
    disk.keep_reserved();
    disk.keep_in_flight(1 + random.below(5) as usize);
    let options = WalOptions {
        segment_bytes_max: [3000, 20_000, 100_000][random.below(3) as usize],
        preallocate_bytes: [0, 4096][random.below(2) as usize],
        in_flight_bytes_max: [3000, 20_000][random.below(2) as usize],
        pipeline_depth: [None, Some(4)][random.below(2) as usize],
        backpressure: [Backpressure::Wait, Backpressure::Refuse][random.below(2) as usize],
        prepare_ahead: [PrepareAhead::Never, PrepareAhead::Thread][random.below(2) as usize].clone(),
        ..WalOptions::default()
    };
    // Where nothing is asked for ahead of a write, a write may meet the full disk, and poisons.
    let options = WalOptions { preallocate_bytes: options.preallocate_bytes.max(4096), ..options };
    let wal = Wal::configure(Arc::new(disk.clone()), options).expect("opens");
    let called = Arc::new(AtomicU64::new(0));
    let barrier = Barrier::new(5);
    let (kept, callbacks) = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4)
            .map(|thread| {
                let (wal, called, barrier) = (&wal, &called, &barrier);
                let mut random = Random(seed ^ (thread << 40));
                scope.spawn(move || {
                    barrier.wait();
                    commits(wal, thread, &mut random, called)
                })
            })
            .collect();
        barrier.wait();
        while !threads.iter().all(|thread| thread.is_finished()) {
            let more = [0, 500, 5000, 50_000][random.below(4) as usize];
            disk.limit_capacity(Some(disk.used_bytes() + more));
            std::thread::yield_now();
        }
        disk.limit_capacity(None);
        let all = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        all.fold((Vec::new(), 0), |(mut kept, count), (more, callbacks)| {
            kept.extend(more);
            (kept, count + callbacks)
        })
    });
    wal.flush_and_sync().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert_eq!(wal.durable_entry_id(), kept.len() as u64, "seed {seed}");
    wal.close().expect("closes");
    assert_eq!(called.load(Ordering::SeqCst), callbacks, "seed {seed}: each is called once");
    let mut read = BTreeMap::<u64, Vec<u64>>::new();
    let records =
        WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill())).replay_bytes(WalReplayMode::Strict);
    for record in records.expect("reads") {
        let number = u64::from_le_bytes(record.payload[..8].try_into().expect("eight bytes"));
        read.entry(number >> 32).or_default().push(number);
    }
    let read: Vec<u64> = read.into_values().flatten().collect();
    assert_eq!(read, kept, "seed {seed}: each that was said to stay, once, in its thread's order");
}

#[test]
fn threads_and_tickets_with_commits_in_flight_lose_and_double_nothing_on_a_disk_that_is_full_now_and_then() {
    for seed in seeds(25) {
        println!("DURABILITY_SEED={seed}");
        within_patience(move || live(seed));
    }
}
