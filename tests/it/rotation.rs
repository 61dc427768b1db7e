//! Going on in the next segment: made ahead of need, sealed beside what follows, and what may go wrong there.

use crate::power_cut::{check, payload};
use crate::support::PATIENCE;
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{
    PrepareAhead, PrepareHand, SyncWalWriter, WalMaintenance, WalObserver, WalOptions, WalReader,
    WalReplayMode, WalWriter,
};
use durability::{Directory, FsDirectory, PersistenceError};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;

/// One batch for each segment, and a hand that makes the next one.
fn options() -> (WalOptions, PrepareHand) {
    let hand = PrepareHand::new();
    let prepare_ahead = PrepareAhead::ByHand(hand.clone());
    let (segment_bytes_max, preallocate_bytes) = (1, 4096);
    let flush_policy = FlushPolicy::Manual;
    let options = WalOptions {
        segment_bytes_max,
        preallocate_bytes,
        prepare_ahead,
        flush_policy,
        ..WalOptions::default()
    };
    (options, hand)
}

/// A log on a disk with faults, with one durable entry.
fn open(options: WalOptions) -> (SimDisk, Faults, Wal) {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
    assert_eq!(commit(&wal).expect("commits"), 1);
    (disk, faults, wal)
}

fn commit(wal: &Wal) -> Result<u64, PersistenceError> {
    wal.append_bytes_durable(&payload(wal.last_entry_id() + 1))
}

fn all(hand: &PrepareHand) {
    while hand.step() {}
}

fn segments(directory: &impl Directory) -> Vec<String> {
    let names = directory.list_dir("wal").expect("lists");
    names.into_iter().filter(|name| name.starts_with("wal_")).collect()
}

fn entries(disk: &SimDisk, mode: WalReplayMode) -> u64 {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
    let visit = |entry_id: u64, bytes: &[u8]| {
        assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
        Ok(())
    };
    reader.replay_bytes_from(1, mode, visit).expect("replays").entries
}

#[test]
fn a_commit_goes_on_in_a_segment_that_is_ready_and_does_nothing_else_first() {
    let (options, hand) = options();
    // A header, an opening and one frame.
    let (_, faults, wal) = open(WalOptions { segment_bytes_max: 2048, ..options });
    let commit = |wal: &Wal| wal.append_bytes_durable(&[7; 700]);
    for entry_id in 2..10 {
        all(&hand);
        let before = faults.trace().len();
        assert_eq!(commit(&wal).expect("commits"), entry_id);
        let calls: Vec<_> = faults.trace().drain(before..).collect();
        let path = format!("wal/wal_{entry_id}.log");
        let commit = [Operation::Submit, Operation::Reap, Operation::Complete];
        assert_eq!(calls, commit.map(|operation| (operation, path.clone())));
    }
    assert_eq!((wal.rotations(), wal.rotation_stall()), (8, Duration::ZERO));
    // Nobody has made the next one: who needs it does.
    let before = faults.trace().len();
    commit(&wal).expect("commits");
    assert!(faults.trace()[before..].contains(&(Operation::OpenCommitFile, "wal/wal_10.log".to_owned())));
    assert!(wal.rotation_stall() > Duration::ZERO);
}

#[test]
fn half_made_segments_are_finished_by_who_needs_them() {
    for steps in 0..8 {
        let (options, hand) = options();
        let (disk, _, wal) = open(options);
        for _ in 0..6 {
            (0..steps).for_each(|_| assert!(hand.step() || steps > 3));
            commit(&wal).expect("commits");
        }
        wal.close().expect("closes");
        assert_eq!(entries(&disk, WalReplayMode::Strict), 7);
        assert_eq!(segments(&disk).len(), 7, "what was made and not used is gone");
    }
}

#[test]
fn segments_are_taken_in_the_order_of_their_ids() {
    let (options, hand) = options();
    let (disk, _, wal) = open(WalOptions { prepared_segments_min: 3, ..options });
    all(&hand);
    assert_eq!(segments(&disk).len(), 4);
    for entry_id in 2..=5 {
        assert_eq!(commit(&wal).expect("commits"), entry_id);
        assert_eq!(entries(&disk, WalReplayMode::Strict), entry_id);
    }
    drop(wal);
}

#[test]
fn a_segment_that_is_ready_is_locked_as_the_one_that_is_written() {
    let (options, hand) = options();
    let (disk, _, wal) = open(options);
    all(&hand);
    for path in ["wal/wal_1.log", "wal/wal_2.log"] {
        let held = disk.await_unlocked(path, Duration::ZERO);
        assert!(matches!(held, Err(PersistenceError::LockFailed { .. })), "{path}: {held:?}");
    }
    drop(wal);
}

#[test]
fn what_a_killed_writer_made_ahead_goes_except_what_its_last_seal_names() {
    let (options, hand) = options();
    let (disk, faults, wal) = open(WalOptions { prepared_segments_min: 3, ..options });
    all(&hand);
    assert_eq!(segments(&disk).len(), 4);
    // The seal of the first segment names the second, whose first commit fails.
    faults.inject(At::next_of(Operation::Submit), Fault::Fail(ErrorKind::Other));
    commit(&wal).expect_err("fails");
    drop(wal);
    let killed = disk.after_kill();
    let reopened = WalWriter::<(), SimDisk>::open(Arc::new(killed.clone())).expect("opens");
    assert_eq!(reopened.last_entry_id(), 1);
    drop(reopened);
    let left = segments(&killed);
    assert!(left.len() <= 2, "{left:?}");
    assert_eq!(entries(&killed, WalReplayMode::Strict), 1);
}

/// The helper is faster than the first commit of the new segment.
struct SealsFirst(PrepareHand);

impl WalObserver for SealsFirst {
    fn on_segment_rotate(&self, _: u64, _: u64) {
        all(&self.0);
    }
}

#[test]
fn the_successor_that_a_seal_names_stays_until_the_log_has_gone_on() {
    let (options, hand) = options();
    let options = WalOptions { prepared_segments_min: 2, ..options };
    let disk = SimDisk::new(1);
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    wal.prepare_ahead().expect("is told who prepares");
    wal.set_observer(Arc::new(SealsFirst(hand.clone())));
    for entry_id in 1..=2 {
        wal.append_bytes_durable(&payload(entry_id)).expect("commits");
        disk.mark(entry_id);
        all(&hand);
    }
    drop(wal);
    let mut named = 0;
    let options = SimOptions { images_per_point: 100, ..SimOptions::default() };
    let checked = check_crashes(&disk, &options, |image, marks| {
        if !image.exists("wal") {
            return Ok(());
        }
        let before = segments(image);
        let wal =
            WalWriter::<(), SimDisk>::open(Arc::new(image.clone())).map_err(|error| error.to_string())?;
        let last = wal.last_entry_id();
        drop(wal);
        let after = segments(image);
        named += u64::from(last == 1 && after.len() == 2);
        if after.len() > 2 {
            return Err(format!("{before:?} became {after:?}"));
        }
        check(image, marks)
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(named > 0, "no image has a seal whose successor was not started");
}

/// Runs `lose` on a log, and expects that the next rotation finds out and nothing is written any more.
fn fenced(lose: impl Fn(&SimDisk), resource: &str, ahead: bool) {
    let (options, hand) = options();
    let prepare_ahead = if ahead { options.prepare_ahead.clone() } else { PrepareAhead::Never };
    let (disk, _, wal) = open(WalOptions { prepare_ahead, ..options });
    lose(&disk);
    all(&hand);
    let written = disk.operations();
    for what in 0..3 {
        match commit(&wal) {
            Err(PersistenceError::Fenced { resource: lost }) => assert_eq!(lost, resource),
            other => panic!("{what}: {other:?}"),
        }
    }
    all(&hand);
    assert!(matches!(wal.clone().close(), Err(PersistenceError::Fenced { .. })));
    drop(wal);
    assert_eq!(disk.operations(), written, "something was written");
}

#[test]
fn a_writer_whose_lock_or_segment_was_taken_away_says_so_and_writes_no_more() {
    let remove_lock = |disk: &SimDisk| disk.delete("wal/.lock").expect("deletes");
    let replace_lock = |disk: &SimDisk| {
        disk.delete("wal/.lock").expect("deletes");
        drop(disk.create_file("wal/.lock").expect("creates"));
    };
    let remove_segment = |disk: &SimDisk| disk.delete("wal/wal_1.log").expect("deletes");
    let replace_segment = |disk: &SimDisk| disk.atomic_write("wal/wal_1.log", &[0; 4096]).expect("writes");
    for ahead in [false, true] {
        fenced(remove_lock, "wal/.lock", ahead);
        fenced(replace_lock, "wal/.lock", ahead);
        fenced(remove_segment, "wal/wal_1.log", ahead);
        fenced(replace_segment, "wal/wal_1.log", ahead);
    }
}

#[test]
fn a_lock_file_that_was_replaced_is_noticed_on_a_file_system() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let options = WalOptions { segment_bytes_max: 1, ..WalOptions::default() };
    let mut wal = WalWriter::<(), FsDirectory>::open_with(Arc::clone(&directory), options).expect("opens");
    wal.append_bytes_durable(b"mine").expect("commits");
    wal.append_bytes_durable(b"mine still").expect("commits");
    if cfg!(windows) {
        return;
    }
    std::fs::remove_file(root.path().join("wal/.lock")).expect("deletes");
    let error = wal.append_bytes_durable(b"whose?").expect_err("the lock is lost");
    assert!(matches!(error, PersistenceError::Fenced { .. }), "{error}");
    assert!(matches!(wal.close(), Err(PersistenceError::Fenced { .. })));
}

#[test]
fn a_seal_that_fails_beside_later_commits_poisons_and_loses_nothing() {
    let (options, hand) = options();
    let (disk, faults, wal) = open(options);
    all(&hand);
    assert_eq!(commit(&wal).expect("goes on in what is ready"), 2);
    faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
    hand.step();
    assert!(faults.all_struck());
    match commit(&wal) {
        Err(PersistenceError::Poisoned { durable_entry_id, .. }) => assert_eq!(durable_entry_id, 2),
        other => panic!("{other:?}"),
    }
    drop(wal);
    assert_eq!(entries(&disk, WalReplayMode::BestEffortTail), 2);
}

#[test]
fn a_full_device_stops_neither_the_helper_nor_the_log_for_good() {
    for operation in [Operation::OpenCommitFile, Operation::Reserve, Operation::Complete] {
        let (options, hand) = options();
        let (disk, faults, wal) = open(options);
        // There is no space to make a segment ahead of need: nobody hears of it.
        faults.inject(At::next_of(operation), Fault::Fail(ErrorKind::StorageFull));
        all(&hand);
        assert!(faults.all_struck(), "{operation:?}");
        // Nor when one is needed: now somebody does.
        faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
        let refused = commit(&wal).expect_err("there is no space");
        assert!(matches!(refused, PersistenceError::OutOfSpace { .. }), "{operation:?}: {refused}");
        assert_eq!(wal.durable_entry_id(), 1);
        // Space is freed: what was refused goes with the next one.
        assert_eq!(commit(&wal).expect("goes on"), 3);
        all(&hand);
        assert_eq!(commit(&wal).expect("goes on"), 4);
        wal.close().expect("closes");
        assert_eq!(entries(&disk, WalReplayMode::Strict), 4);
    }
}

#[test]
fn a_segment_that_grows_asks_for_space_before_it_writes() {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let options = WalOptions {
        segment_bytes_max: 1 << 20,
        preallocate_bytes: 4096,
        prepare_ahead: PrepareAhead::Never,
        environment: Arc::new(SeededEnvironment::new(1)),
        ..WalOptions::default()
    };
    let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
    while wal.last_entry_id() < 2 {
        commit(&wal).expect("commits");
    }
    for _ in 0..4 {
        faults.inject(At::next_of(Operation::Reserve), Fault::Fail(ErrorKind::StorageFull));
    }
    let mut refused = 0;
    let mut acknowledged = 0;
    for _ in 0..120 {
        match commit(&wal) {
            Ok(entry_id) => acknowledged = entry_id,
            Err(error) => {
                assert!(matches!(error, PersistenceError::OutOfSpace { .. }), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && faults.all_struck());
    assert_eq!(acknowledged, wal.last_entry_id(), "the same writer goes on");
    wal.close().expect("closes");
    assert_eq!(entries(&disk, WalReplayMode::Strict), acknowledged);
}

/// Bytes of the file of a name, whatever stands in it.
fn file_bytes(disk: &SimDisk, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = disk.after_kill().open_file(&format!("wal/{name}")).expect("opens");
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("reads");
    bytes
}

#[test]
fn a_segment_grows_by_zeros_so_that_commits_into_it_change_no_metadata() {
    let disk = SimDisk::new(1);
    let options = WalOptions {
        segment_bytes_max: 1 << 20,
        preallocate_bytes: 8 << 10,
        prepare_ahead: PrepareAhead::Never,
        ..WalOptions::default()
    };
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    let mut sizes = std::collections::BTreeSet::new();
    for _ in 0..40 {
        wal.append_bytes(&[7; 600]).expect("appends");
        wal.flush_and_sync().expect("commits");
        sizes.insert(file_bytes(&disk, "wal_1.log").len());
    }
    // 40 frames of a kibibyte, and a size that changes once.
    assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [8 << 10, (8 << 10) + (64 << 10)]);
    drop(wal);
    assert_eq!(
        WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()))
            .replay_bytes(WalReplayMode::Strict)
            .expect("replays")
            .len(),
        40
    );
}

/// Entries come while room is made for those that were there: their frame reaches beyond it, and stays as it is
/// when the segment grows again.
#[test]
fn growing_leaves_alone_what_was_written_beyond_what_was_asked_for() {
    let (disk, faults, gate) = (SimDisk::new(1), Faults::new(), Gate::new());
    let options = WalOptions {
        segment_bytes_max: 1 << 20,
        preallocate_bytes: 8 << 10,
        buffer_bytes: 1 << 20,
        prepare_ahead: PrepareAhead::Never,
        ..WalOptions::default()
    };
    let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
    assert_eq!(wal.append_bytes_durable(&[1; 100]).expect("commits"), 1);
    faults.inject(At::next_of(Operation::Reserve), Fault::Hold(gate.clone()));
    std::thread::scope(|scope| {
        let committer = wal.clone();
        let thread = scope.spawn(move || committer.append_bytes_durable(&[2; 9000]).expect("commits"));
        gate.wait_until_held();
        for _ in 0..10 {
            wal.append_bytes(&[3; 9000]).expect("appends");
        }
        gate.open();
        assert_eq!(thread.join().expect("ends well"), 2);
    });
    for _ in 0..3 {
        wal.append_bytes_durable(&[4; 9000]).expect("commits");
    }
    wal.close().expect("closes");
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
    assert_eq!(reader.replay_bytes(WalReplayMode::Strict).expect("replays").len(), 15);
}

#[test]
fn a_log_goes_on_in_the_next_segment_where_the_first_would_have_to_grow() {
    let (options, hand) = options();
    let (segment_bytes_max, preallocate_bytes) = (1 << 20, 8 << 10);
    let (disk, _, wal) = open(WalOptions { segment_bytes_max, preallocate_bytes, ..options });
    all(&hand);
    let first = file_bytes(&disk, "wal_1.log").len();
    while segments(&disk).len() < 3 {
        commit(&wal).expect("commits");
        assert!(wal.last_entry_id() < 100, "the first segment grows");
        if file_bytes(&disk, "wal_2.log").iter().skip(4096).any(|byte| *byte != 0) {
            all(&hand);
        }
    }
    assert!(file_bytes(&disk, "wal_1.log").len() <= first);
    assert!(file_bytes(&disk, "wal_2.log").len() > first, "each is larger than the one before");
    let last = wal.last_entry_id();
    wal.close().expect("closes");
    assert_eq!(entries(&disk, WalReplayMode::Strict), last);
}

#[test]
fn a_thread_keeps_segments_ready_and_leaves_nothing_behind() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let options = WalOptions {
        segment_bytes_max: 16 << 10,
        preallocate_bytes: 16 << 10,
        prepared_segments_min: 2,
        recycle_capacity: 2,
        ..WalOptions::default()
    };
    let wal = SyncWalWriter::<(), FsDirectory>::configure(Arc::clone(&directory), options).expect("opens");
    let maintenance = WalMaintenance::new(Arc::clone(&directory));
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (wal, maintenance) = (wal.clone(), &maintenance);
            scope.spawn(move || {
                for round in 0..100 {
                    let id = wal.append_bytes_durable(&[thread; 700]).expect("commits");
                    if thread == 0 && round % 30 == 29 {
                        maintenance.truncate_to_recycle(id - 20, 2).expect("truncates");
                    }
                }
            });
        }
    });
    assert!(wal.rotations() >= 5, "{}", wal.rotations());
    wal.close().expect("closes");
    let chain = maintenance.segment_ranges_strict().expect("ends cleanly");
    assert_eq!(chain.len(), segments(directory.as_ref()).len(), "a segment that was not used is left");
    assert_eq!(chain.last().map(|last| last.end_entry_id), Some(400));
    let opened = WalWriter::<(), FsDirectory>::open(directory).expect("opens");
    assert_eq!(opened.last_entry_id(), 400);
}

/// A batch was larger than a segment, and its file serves again: a segment in it ends where any other does.
#[test]
fn a_file_that_is_larger_than_a_segment_does_not_keep_the_next_one_waiting() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let (segment_bytes_max, huge) = (2 << 20, 24 << 20);
    let options = WalOptions {
        segment_bytes_max,
        preallocate_bytes: segment_bytes_max,
        recycle_capacity: 1,
        flush_policy: FlushPolicy::Manual,
        ..WalOptions::default()
    };
    let wal = SyncWalWriter::<(), FsDirectory>::configure(Arc::clone(&directory), options).expect("opens");
    let bytes_of = |segment: u64| {
        let path = root.path().join(format!("wal/wal_{segment}.log"));
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    };
    let commit = || assert!(wal.append_bytes_durable(&[7; 15_000]).expect("commits") > 0);
    wal.append_batch_bytes(&vec![vec![9; 1 << 20]; huge >> 20])
        .and_then(|_| wal.flush_and_sync())
        .expect("commits");
    // Not enough for the third segment to be begun, which then finds the first one's file.
    (0..2).for_each(|_| assert!(wal.append_bytes_durable(b"small").expect("commits") > 0));
    let truncated =
        WalMaintenance::new(Arc::clone(&directory)).truncate_to_recycle(24, 1).expect("truncates");
    assert_eq!((truncated, wal.rotations()), (1, 1));
    while wal.rotations() < 2 {
        commit();
    }
    assert!(bytes_of(3) >= huge as u64, "the file serves again: {}", bytes_of(3));
    (0..segment_bytes_max * 9 / 10 / 16_384).for_each(|_| commit());
    assert_eq!(wal.rotations(), 2);
    let began = std::time::Instant::now();
    while bytes_of(4) < segment_bytes_max {
        assert!(began.elapsed() < PATIENCE, "{} bytes of the next segment are made", bytes_of(4));
        std::thread::yield_now();
    }
    wal.close().expect("closes");
}

/// A full segment waits for its seal and is truncated meanwhile. Whoever looks for a spare file just then leaves that
/// one alone: with no lock on files, as on Windows, its seal would land in the segment that it became.
#[test]
fn a_file_whose_seal_is_still_to_come_serves_no_other_segment() {
    let (options, hand) = options();
    let (recycle_capacity, prepared_segments_min) = (1, 2);
    let options = WalOptions { segment_bytes_max: 4096, recycle_capacity, prepared_segments_min, ..options };
    let (disk, faults, wal) = open(options);
    let fill = |segment: u64| {
        while wal.rotations() < segment - 1 {
            wal.append_bytes_durable(&[9; 1700]).expect("commits");
        }
    };
    let spares = || -> Vec<_> {
        let calls = faults.trace().into_iter().filter(|(_, path)| path == "wal/spare_1.log");
        calls.map(|(operation, _)| operation).collect()
    };
    let (gate, stop) = (Gate::new(), AtomicBool::new(false));
    // One segment is made ahead; the next is begun, and whoever makes it is about to look for a spare file.
    faults.inject(At::after_of(Operation::ListDir, 1), Fault::Hold(gate.clone()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while hand.step() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        gate.wait_until_held();
        fill(2);
        wal.append_bytes_durable(b"small").expect("attests that the newest is durable");
        let maintenance = WalMaintenance::new(Arc::clone(wal.directory()));
        let truncated = maintenance.truncate_to_recycle(wal.durable_entry_id(), 1).expect("truncates");
        assert_eq!(truncated, 1, "its seal is still to be written");
        stop.store(true, Ordering::SeqCst);
        gate.open();
    });
    assert_eq!(spares(), [Operation::Rename], "it was made a spare, and left alone");
    // Whoever needs a segment finishes the one that was begun, and leaves it alone as well.
    fill(4);
    assert_eq!(spares(), [Operation::Rename]);
    all(&hand);
    fill(6);
    assert!(!disk.list_dir("wal").expect("lists").contains(&"spare_1.log".to_owned()), "it serves again");
    assert!(!spares().contains(&Operation::Delete), "{:?}", spares());
    wal.close().expect("closes");
    WalMaintenance::new(Arc::new(disk)).segment_ranges_strict().expect("ends cleanly");
}
