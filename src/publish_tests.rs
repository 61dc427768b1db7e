//! Publishing and recovering, over a real file system.
#![allow(clippy::disallowed_methods, reason = "tests damage files behind the back of the crate")]

use super::*;
use crate::checkpoint::CheckpointFile;
use crate::recover::{RecoveryOptions, recover_with_wal};
use crate::storage::{FlushPolicy, FsDirectory};
use crate::walog::WalOptions;

type Sum = u64;

struct Fixture {
    root: tempfile::TempDir,
    directory: Arc<FsDirectory>,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    Fixture { root, directory }
}

impl Fixture {
    fn wal(&self) -> WalWriter<u64, FsDirectory> {
        let options = WalOptions {
            segment_bytes_max: 2048,
            preallocate_bytes: 0,
            flush_policy: FlushPolicy::PerAppend,
            ..WalOptions::default()
        };
        WalWriter::open_with(Arc::clone(&self.directory), options).expect("opens")
    }

    fn recover(
        &self,
        options: RecoveryOptions,
    ) -> PersistenceResult<crate::recover::Recovery<Sum, FsDirectory>> {
        recover_with_wal::<Sum, u64, Sum, _, _>(
            Arc::clone(&self.directory),
            Some("state"),
            options,
            |checkpoint| checkpoint.unwrap_or(0),
            |sum, _, number| *sum += number,
        )
    }

    fn damage(&self, path: &str) {
        let path = self.root.path().join(path);
        let mut bytes = std::fs::read(&path).expect("reads");
        let middle = bytes.len() / 2 + 60;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("writes");
    }
}

fn append(wal: &mut WalWriter<u64, FsDirectory>, range: std::ops::RangeInclusive<u64>) -> u64 {
    range.clone().for_each(|number| assert!(wal.append(&number).expect("appends") > 0));
    wal.last_entry_id()
}

/// The checkpoint's own record in the log adds nothing to the sum.
fn publish(fixture: &Fixture, wal: &mut WalWriter<u64, FsDirectory>, sum: Sum) -> PublishResult {
    let last = wal.last_entry_id();
    CheckpointPublisher::new(Arc::clone(&fixture.directory))
        .publish(wal, &sum, last, "state", |_, _| 0u64)
        .expect("publishes")
}

#[test]
fn a_published_state_is_recovered_and_ids_go_on() {
    let fixture = fixture();
    let mut wal = fixture.wal();
    append(&mut wal, 1..=10);
    let published = publish(&fixture, &mut wal, 55);
    assert_eq!((published.checkpoint_last_entry_id, published.wal_checkpoint_entry_id), (10, 11));
    assert!(published.deleted_wal_segments > 0);
    append(&mut wal, 100..=100);
    wal.close().expect("closes");
    let recovery = fixture.recover(RecoveryOptions::strict()).expect("recovers");
    assert_eq!((recovery.state, recovery.last_entry_id, recovery.next_entry_id()), (155, 12, Some(13)));
    assert_eq!(recovery.report.entries_applied, 2);
    let (sum, mut wal) = recovery.into_writer::<u64>(WalOptions::default()).expect("opens");
    assert_eq!((sum, wal.append(&1).expect("appends")), (155, 13));
}

#[test]
fn a_damaged_newest_checkpoint_falls_back_to_the_one_before() {
    let fixture = fixture();
    let mut wal = fixture.wal();
    append(&mut wal, 1..=10);
    publish(&fixture, &mut wal, 55);
    append(&mut wal, 11..=20);
    publish(&fixture, &mut wal, 210);
    append(&mut wal, 21..=21);
    wal.close().expect("closes");
    assert_eq!(fixture.recover(RecoveryOptions::strict()).expect("recovers").state, 231);
    fixture.damage("state");
    let recovery = fixture.recover(RecoveryOptions::strict()).expect("falls back");
    assert_eq!((recovery.state, recovery.report.fallback_used), (231, true));
    fixture.damage("state.1");
    let error = fixture.recover(RecoveryOptions::best_effort()).expect_err("no checkpoint is good");
    assert!(error.is_corruption(), "{error}");
}

#[test]
fn an_id_behind_the_logs_end_is_refused_and_up_to_refuses_what_is_newer() {
    let fixture = fixture();
    let mut wal = fixture.wal();
    append(&mut wal, 1..=5);
    let publisher = CheckpointPublisher::new(Arc::clone(&fixture.directory)).keep(1);
    let refused = publisher.publish(&mut wal, &0u64, 6, "state", |_, _| 0u64);
    assert!(matches!(refused, Err(PersistenceError::InvalidState { .. })));
    assert!(!fixture.directory.exists("state"));
    wal.set_segment_size_limit_bytes(1);
    append(&mut wal, 6..=9);
    publisher.publish(&mut wal, &45u64, 9, "state", |_, _| 0u64).expect("publishes");
    wal.close().expect("closes");
    assert!(matches!(fixture.recover(RecoveryOptions::up_to(8)), Err(PersistenceError::InvalidState { .. })));
    assert_eq!(fixture.recover(RecoveryOptions::up_to(9)).expect("recovers").state, 45);
}

#[test]
fn damage_behind_the_entry_that_is_asked_for_is_not_looked_at() {
    let fixture = fixture();
    let mut wal = fixture.wal();
    append(&mut wal, 1..=9);
    wal.close().expect("closes");
    fixture.damage("wal/wal_3.log");
    let error = fixture.recover(RecoveryOptions::best_effort().or_new()).expect_err("is damaged");
    let PersistenceError::Corruption(damage) = error else { panic!("{error}") };
    let first = damage.entry_id;
    assert!((3..9).contains(&first), "{damage}");
    for last in 1..first {
        let recovery = fixture.recover(RecoveryOptions::up_to(last).or_new()).expect("all before is sound");
        assert_eq!((recovery.state, recovery.last_entry_id), (last * (last + 1) / 2, last));
        let report = recovery.report.to_string();
        assert!(recovery.report.stopped && report.ends_with("stopped there"), "{report}");
        assert!(recovery.into_writer::<u64>(WalOptions::default()).is_err());
    }
    assert!(fixture.recover(RecoveryOptions::up_to(first).or_new()).expect_err("is damaged").is_corruption());
}

#[test]
fn a_log_that_lost_what_a_checkpoint_needs_is_corruption_and_never_a_fresh_start() {
    let fixture = fixture();
    let mut wal = fixture.wal();
    append(&mut wal, 1..=10);
    publish(&fixture, &mut wal, 55);
    wal.close().expect("closes");
    std::fs::remove_dir_all(fixture.root.path().join("wal")).expect("removes");
    let error = fixture.recover(RecoveryOptions::best_effort().or_new()).expect_err("the log is gone");
    assert!(error.is_not_found() || error.is_corruption(), "{error}");
    std::fs::create_dir(fixture.root.path().join("wal")).expect("creates");
    let error = fixture.recover(RecoveryOptions::best_effort().or_new()).expect_err("the log is empty");
    assert!(error.is_corruption(), "{error}");
}

#[test]
fn nothing_at_all_is_a_first_start_only_when_said_so() {
    let fixture = fixture();
    let error = fixture.recover(RecoveryOptions::best_effort()).expect_err("nothing is there");
    assert!(error.to_string().contains("missing checkpoint"), "{error}");
    let recovery = fixture.recover(RecoveryOptions::best_effort().or_new()).expect("a first start");
    assert_eq!((recovery.state, recovery.next_entry_id()), (0, Some(1)));
    let (_, mut wal) = recovery.into_writer::<u64>(WalOptions::default()).expect("begins");
    assert_eq!(wal.append(&1).expect("appends"), 1);
}

#[test]
fn a_foreign_checkpoint_is_refused() {
    let (one, other) = (fixture(), fixture());
    for fixture in [&one, &other] {
        let mut wal = fixture.wal();
        append(&mut wal, 1..=3);
        publish(fixture, &mut wal, 6);
    }
    std::fs::copy(other.root.path().join("state"), one.root.path().join("state")).expect("copies");
    assert!(one.recover(RecoveryOptions::best_effort()).expect_err("foreign").is_corruption());
}

#[test]
fn a_crash_between_two_renames_leaves_a_checkpoint_that_recovery_finds() {
    let fixture = fixture();
    let mut wal = fixture.wal();
    append(&mut wal, 1..=4);
    publish(&fixture, &mut wal, 10);
    wal.close().expect("closes");
    fixture.directory.atomic_rename("state", "state.1").expect("renames");
    let recovery = fixture.recover(RecoveryOptions::strict()).expect("recovers");
    assert_eq!((recovery.state, recovery.report.fallback_used), (10, true));
}

#[test]
fn publishing_works_beside_committing_threads() {
    let fixture = fixture();
    let wal = SyncWalWriter::<u64, FsDirectory>::from_writer(fixture.wal()).expect("shares");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let wal = wal.clone();
            scope.spawn(move || (0..60).for_each(|_| assert!(wal.append_durable(&1).expect("commits") > 0)));
        }
        let publisher = CheckpointPublisher::new(Arc::clone(&fixture.directory));
        let mut log = wal.clone();
        for _ in 0..10 {
            // Entries are all 1 and records are 0, so the sum is what is not a record.
            let last = wal.durable_entry_id();
            let recovered = recover_with_wal::<Sum, u64, Sum, _, _>(
                Arc::clone(&fixture.directory),
                Some("state"),
                RecoveryOptions { up_to_entry_id: Some(last), ..RecoveryOptions::best_effort() }.or_new(),
                |checkpoint| checkpoint.unwrap_or(0),
                |sum, _, number| *sum += number,
            );
            let recovered = recovered.expect("recovers beside the writer");
            publisher
                .publish(&mut log, &recovered.state, recovered.last_entry_id, "state", |_, _| 0u64)
                .expect("publishes");
        }
    });
    wal.close().expect("closes");
    assert_eq!(fixture.recover(RecoveryOptions::strict()).expect("recovers").state, 180);
}

#[test]
fn checkpoints_stream_and_every_flipped_bit_is_found() {
    let fixture = fixture();
    let files = CheckpointFile::new(Arc::clone(&fixture.directory));
    let state: Vec<u8> = (0..700_000u32).map(|index| (index * 7 % 251) as u8).collect();
    files.write_bytes_durable("deep/er/state", 42, &state).expect("writes");
    assert_eq!(files.read_bytes("deep/er/state").expect("reads"), (42, state.clone()));
    let path = fixture.root.path().join("deep/er/state");
    let good = std::fs::read(&path).expect("reads");
    for at in (0..good.len()).step_by(9973).chain([8, 509, 513, good.len() - 513]) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, bad).expect("writes");
        assert!(files.read_bytes("deep/er/state").is_err(), "byte {at}");
    }
    for cut in [0, 1, 511, 512, 600, good.len() / 2, good.len() - 512, good.len() - 1] {
        std::fs::write(&path, &good[..cut]).expect("writes");
        assert!(files.read_bytes("deep/er/state").is_err(), "cut at {cut}");
    }
    assert!(matches!(files.read_bytes("nowhere"), Err(PersistenceError::MissingCheckpoint { .. })));
}

#[test]
fn what_a_crash_left_under_temporary_names_is_swept_and_nothing_else() {
    let fixture = fixture();
    let mut wal = fixture.wal();
    let left = |path: &str| fixture.root.path().join(path);
    for path in [".tmp-1-7-state", ".tmp-1-7-another", "wal/.tmp-1-7-wal_9.log", "wal/mine"] {
        std::fs::write(left(path), b"left").expect("writes");
    }
    append(&mut wal, 1..=3);
    publish(&fixture, &mut wal, 6);
    assert!(!left(".tmp-1-7-state").exists(), "publishing sweeps its own");
    assert!(left(".tmp-1-7-another").exists(), "another checkpoint's may be in the making");
    drop(wal);
    drop(fixture.wal());
    assert!(!left("wal/.tmp-1-7-wal_9.log").exists(), "opening sweeps the log's");
    assert!(left("wal/mine").exists());
}
