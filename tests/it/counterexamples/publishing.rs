//! Counterexamples to what checkpoints, publishing and recovery promise.

use super::*;
use durability::publish::CheckpointPublisher;
use durability::recover::{RecoveryManager, RecoveryOptions, WalEntry, recover_with_wal};

#[test]
fn a_checkpoint_of_an_entry_that_no_log_can_have_is_refused() {
    let directory = MemoryDirectory::arc();
    let mut wal = WalWriter::<u64, MemoryDirectory>::open(Arc::clone(&directory)).expect("opens");
    wal.append(&5).expect("appends");
    wal.close().expect("closes");
    let header = |last_applied_entry_id, required_entry_id| {
        let kind = durability::formats::header::FileKind::Checkpoint;
        let header = durability::formats::header::Header::new(kind, 512, 0, 9);
        durability::formats::header::Header { last_applied_entry_id, required_entry_id, ..header }
    };
    for forged in [header(u64::MAX, 0), header(1 << 63, 0), header(0, u64::MAX)] {
        directory.atomic_write("state", &forged.encode()).expect("writes");
        let recovered = recover_with_wal::<u64, u64, u64, _, _>(
            Arc::clone(&directory),
            Some("state"),
            RecoveryOptions::best_effort(),
            |checkpoint| checkpoint.unwrap_or(0),
            |sum, _, number| *sum += number,
        );
        assert!(matches!(recovered, Err(PersistenceError::Format { .. })), "{recovered:?}");
        let checkpoints = CheckpointFile::new(Arc::clone(&directory));
        let meta = CheckpointMeta {
            last_applied_entry_id: forged.last_applied_entry_id,
            required_entry_id: forged.required_entry_id,
            identity: 0,
        };
        assert!(matches!(checkpoints.writer("other", meta), Err(PersistenceError::InvalidConfig { .. })));
    }
}

#[test]
fn the_latest_recovery_does_not_go_around_a_checkpoint_that_needs_more_log_than_is_left() {
    let disk = SimDisk::new(1);
    let options = WalOptions { preallocate_bytes: 0, ..WalOptions::default() };
    let mut wal = WalWriter::<WalEntry, SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    let publisher = CheckpointPublisher::new(Arc::new(disk.clone())).keep(1);
    let mut cut = 0;
    for segment_id in 1..=6 {
        let entry = WalEntry::AddSegment { segment_id, doc_count: 1 };
        let last = wal.append_durable(&entry).expect("commits");
        match segment_id {
            // The same name both times: the log's first record of it is enough to find the newest.
            2 | 6 => drop(publisher.publish_checkpoint(&mut wal, &Default::default(), last, "state")),
            3 => cut = wal.current_segment_bytes(),
            _ => {}
        }
    }
    drop(wal);
    // The end of the log is gone, exactly behind a frame, which alone would look clean.
    let left = MemoryDirectory::arc();
    left.create_dir_all("wal").expect("makes");
    for path in ["wal/wal_1.log", "state"] {
        let mut bytes = Vec::new();
        disk.open_file(path).expect("opens").read_to_end(&mut bytes).expect("reads");
        bytes.truncate(if path == "state" { bytes.len() } else { cut as usize });
        left.atomic_write(path, &bytes).expect("writes");
    }
    let recovered = RecoveryManager::new(left).recover_latest_best_effort();
    let error = recovered.map(|state| state.last_entry_id).expect_err("entries 5 to 8 are missing");
    assert!(error.is_corruption(), "{error}");
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes_max: 2048,
        preallocate_bytes: 0,
        flush_policy: FlushPolicy::PerAppend,
        ..WalOptions::default()
    }
}

fn recover(disk: &SimDisk) -> PersistenceResult<(u64, u64)> {
    let recovered = recover_with_wal::<u64, u64, u64, _, _>(
        Arc::new(disk.clone()),
        Some("state"),
        RecoveryOptions::best_effort(),
        |checkpoint| checkpoint.unwrap_or(0),
        |sum, _, number| *sum += number,
    )?;
    Ok((recovered.state, recovered.last_entry_id))
}

#[test]
fn a_checkpoint_that_the_log_does_not_reach_any_more_is_not_published() {
    let disk = SimDisk::new(1);
    let mut wal = WalWriter::<u64, SimDisk>::open_with(Arc::new(disk.clone()), options()).expect("opens");
    let publisher = CheckpointPublisher::new(Arc::new(disk.clone())).keep(1);
    for number in 1..=10 {
        wal.append(&number).expect("appends");
    }
    publisher.publish(&mut wal, &55u64, 10, "state", |_, _| 0u64).expect("publishes");
    // A slower thread comes with what it had computed earlier.
    let late = publisher.publish(&mut wal, &6u64, 3, "state", |_, _| 0u64);
    assert!(matches!(late, Err(PersistenceError::PrefixUnavailable { .. })), "{late:?}");
    assert_eq!(recover(&disk).expect("the newest state is left"), (55, wal.last_entry_id()));
    assert!(!disk.list_dir("").expect("lists").iter().any(|name| name.starts_with(".tmp")));
}

#[test]
fn a_crash_between_two_renames_of_older_checkpoints_hides_none_of_them() {
    let disk = SimDisk::new(1);
    let mut wal = WalWriter::<u64, SimDisk>::open_with(Arc::new(disk.clone()), options()).expect("opens");
    let publisher = CheckpointPublisher::new(Arc::new(disk.clone())).keep(3);
    let mut sum = 0;
    for number in 1..=3 {
        let last = wal.append(&number).expect("appends");
        sum += number;
        publisher.publish(&mut wal, &sum, last, "state", |_, _| 0u64).expect("publishes");
    }
    let end = wal.last_entry_id();
    drop(wal);
    // `state.1` is on its way back when the process dies, and `state` is damaged since.
    disk.atomic_rename("state.1", "state.2").expect("renames");
    disk.atomic_write("state", &[1; 2000]).expect("writes");
    assert_eq!(recover(&disk).expect("falls back"), (6, end));
}

#[test]
fn an_empty_folder_where_a_log_was_is_no_empty_log() {
    let disk = SimDisk::new(1);
    disk.create_dir_all_durable("wal").expect("makes the place where a disk should be mounted");
    let recover = |options| {
        recover_with_wal::<u64, u64, u64, _, _>(
            Arc::new(disk.clone()),
            None,
            options,
            |checkpoint| checkpoint.unwrap_or(0),
            |sum, _, number| *sum += number,
        )
    };
    let error = recover(RecoveryOptions::best_effort()).map(|recovered| recovered.state);
    assert!(error.as_ref().is_err_and(PersistenceError::is_not_found), "{error:?}");
    let new = recover(RecoveryOptions::best_effort().or_new()).expect("by an explicit word");
    new.into_writer::<u64>(WalOptions::default()).expect("opens");
    // It was opened once; without entries it is empty, and known to be.
    assert_eq!(recover(RecoveryOptions::strict()).expect("recovers").state, 0);
}

/// Of two checkpoints, the newer may be damaged when the next one is published.
#[test]
fn publishing_keeps_the_good_one_of_two_checkpoints_until_the_next_has_its_name() {
    let disk = SimDisk::new(1);
    let mut wal = WalWriter::<u64, SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    let publish = |wal: &mut WalWriter<u64, SimDisk>, sum: u64| {
        wal.append(&1).expect("appends");
        let last = wal.last_entry_id();
        let publisher = CheckpointPublisher::new(Arc::new(disk.clone()));
        publisher.publish(wal, &sum, last, "state", |_, _| 0u64).expect("publishes");
    };
    publish(&mut wal, 1);
    publish(&mut wal, 2);
    let mut bytes = Vec::new();
    disk.open_file("state").expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes[700] ^= 1;
    disk.create_file("state").expect("creates").write_all(&bytes).expect("writes");
    disk.sync_file("state").expect("syncs");
    disk.mark(2);
    let from_operation = disk.operations();
    publish(&mut wal, 3);
    disk.mark(3);
    drop(wal);
    assert!(!disk.exists("state.2"), "two are kept");
    let options = SimOptions { images_per_point: 40, from_operation, ..SimOptions::default() };
    let checked = check_crashes(&disk, &options, |image, marks| {
        let recovered = recover_with_wal::<u64, u64, u64, _, _>(
            Arc::new(image.clone()),
            Some("state"),
            RecoveryOptions::best_effort(),
            |checkpoint| checkpoint.unwrap_or(0),
            |sum, _, number| *sum += number,
        );
        let sum = recovered.map_err(|error| format!("no recovery: {error}"))?.state;
        let least = marks.iter().max().copied().unwrap_or(0);
        if (least..=3).contains(&sum) { Ok(()) } else { Err(format!("{sum} of {least}")) }
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Whoever made it has entries that this state does not have.
#[test]
fn a_log_that_was_begun_since_recovery_found_none_is_not_gone_on_with() {
    let disk = Arc::new(SimDisk::new(1));
    let recovered = recover_with_wal::<u64, u64, u64, _, _>(
        Arc::clone(&disk),
        None,
        RecoveryOptions::best_effort().or_new(),
        |checkpoint| checkpoint.unwrap_or(0),
        |sum, _, number| *sum += number,
    );
    let recovered = recovered.expect("a first start");
    let mut wal = WalWriter::<u64, SimDisk>::open(Arc::clone(&disk)).expect("opens");
    assert_eq!(wal.append_durable(&7).expect("commits"), 1);
    wal.close().expect("closes");
    let refused = recovered.into_writer::<u64>(WalOptions::default()).expect_err("it changed");
    assert!(matches!(refused, PersistenceError::InvalidState { .. }), "{refused}");
}
