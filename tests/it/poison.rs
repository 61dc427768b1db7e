//! After a failed write or sync: no retry, no later success, every waiter told how far the log is durable.

use durability::PersistenceError;
use durability::recordlog::RecordLogWriter;
use durability::storage::FlushPolicy;
use durability::testing::sim::SimDisk;
use durability::walog::{SyncWalWriter, WalOptions, WalReader, WalReplayMode, WalWriter};
use std::sync::Arc;

type Wal = WalWriter<(), SimDisk>;

fn options() -> WalOptions {
    WalOptions { preallocate_bytes: 0, flush_policy: FlushPolicy::PerAppend, ..WalOptions::default() }
}

fn must_be_poisoned<T: std::fmt::Debug>(result: Result<T, PersistenceError>, what: &str, durable: u64) {
    match result {
        Err(PersistenceError::Poisoned { durable_entry_id, cause }) => {
            assert_eq!(durable_entry_id, durable, "{what}");
            assert!(matches!(*cause, PersistenceError::Io { .. }), "{what}: {cause}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn every_operation_of_a_poisoned_writer_says_so_and_reopening_goes_on() {
    let disk = SimDisk::new(1);
    let mut wal = Wal::open_with(Arc::new(disk.clone()), options()).expect("opens");
    assert_eq!(wal.append_bytes_durable(b"safe").expect("commits"), 1);
    disk.fail_sync_after(0);
    let failed = wal.append_bytes_durable(b"doubtful").expect_err("the sync fails");
    assert!(matches!(failed, PersistenceError::Io { .. }), "{failed}");
    must_be_poisoned(wal.append_bytes(b"x"), "append", 1);
    must_be_poisoned(wal.append_batch_bytes(&[b"x"]), "append_batch", 1);
    must_be_poisoned(wal.flush(), "flush", 1);
    must_be_poisoned(wal.flush_and_sync(), "flush_and_sync", 1);
    must_be_poisoned(wal.append_bytes_durable(b"x"), "append_durable", 1);
    must_be_poisoned(wal.attest(), "attest", 1);
    assert_eq!(wal.durable_entry_id(), 1);
    must_be_poisoned(wal.close(), "close", 1);
    let mut wal = Wal::open_with(Arc::new(disk.clone()), options()).expect("opens again");
    // The doubtful entry was in the page cache; opening wrote it again.
    assert_eq!((wal.last_entry_id(), wal.durable_entry_id()), (2, 2));
    assert_eq!(wal.append_bytes_durable(b"more").expect("commits"), 3);
}

#[test]
fn every_thread_that_waits_hears_of_the_failure() {
    for failing in 0..6 {
        let disk = SimDisk::new(failing);
        let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options()).expect("opens");
        disk.fail_sync_after(1 + failing);
        let acknowledged: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|_| {
                    let wal = wal.clone();
                    scope.spawn(move || {
                        let mut acknowledged = 0;
                        loop {
                            match wal.append_bytes_durable(b"entry") {
                                Ok(id) => acknowledged = id,
                                Err(PersistenceError::Poisoned { durable_entry_id, .. }) => {
                                    assert!(durable_entry_id >= acknowledged);
                                    return acknowledged;
                                }
                                Err(error) => panic!("{error}"),
                            }
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("ends")).collect()
        });
        let most = acknowledged.into_iter().max().unwrap_or(0);
        must_be_poisoned(wal.flush_and_sync(), "flush_and_sync", wal.durable_entry_id());
        must_be_poisoned(wal.clone().close(), "close", wal.durable_entry_id());
        drop(wal);
        let reader = WalReader::<(), SimDisk>::new(Arc::new(disk));
        let left =
            reader.replay_bytes(WalReplayMode::BestEffortTail).map_or(0, |records| records.len() as u64);
        assert!(left >= most, "{left} entries are left, {most} were acknowledged");
    }
}

#[test]
fn a_record_log_is_poisoned_as_well() {
    let disk = SimDisk::new(1);
    let directory = Arc::new(disk.clone());
    let mut log = RecordLogWriter::new(Arc::clone(&directory), "records");
    log.append_bytes(b"safe").expect("appends");
    log.flush_and_sync().expect("syncs");
    log.append_bytes(b"doubtful").expect("appends");
    disk.fail_sync_after(0);
    assert!(log.flush_and_sync().is_err());
    must_be_poisoned(log.append_bytes(b"x"), "append", 1);
    must_be_poisoned(log.flush(), "flush", 1);
    must_be_poisoned(log.close(), "close", 1);
    let mut log = RecordLogWriter::new(directory, "records");
    log.open().expect("opens again");
    assert_eq!(log.record_count(), 2);
}
