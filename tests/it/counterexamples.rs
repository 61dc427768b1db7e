//! Orders of events that once broke a promise, each as small as it could be made.

use crate::power_cut::{check, check_records, payload};
use durability::checkpoint::{CheckpointFile, CheckpointMeta};
use durability::codec::Codec;
use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::{Environment, FlushPolicy};
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{
    PrepareAhead, PrepareHand, SyncWalWriter, WalObserver, WalOptions, WalReader, WalReplayMode, WalWriter,
};
use durability::{
    Directory, DurableDirectory, FsDirectory, MemoryDirectory, PersistenceError, PersistenceResult,
};
use std::io::{ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

type Disk = FaultyDirectory<SimDisk>;

/// What strikes a call of such a log strikes none of a thread that makes segments.
fn unaided() -> WalOptions {
    WalOptions { prepare_ahead: PrepareAhead::Never, ..WalOptions::default() }
}

/// Panics in the middle of its second value.
struct PanicsAtTwo;

impl Codec<u64> for PanicsAtTwo {
    fn encode(&self, value: &u64, out: &mut dyn Write) -> PersistenceResult<()> {
        out.write_all(&[7; 3]).expect("writes");
        assert!(*value != 2, "the codec panics");
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> PersistenceResult<u64> {
        assert_eq!(bytes, [7; 3]);
        Ok(1)
    }
}

fn read_all(disk: &SimDisk) -> u64 {
    let reader = WalReader::<u64, SimDisk>::new(Arc::new(disk.clone()));
    let read = reader.replay_decoded(&PanicsAtTwo, 1, WalReplayMode::Strict, |_| Ok(()));
    read.expect("what was acknowledged is read back").entries
}

#[test]
fn a_codec_that_panics_appends_nothing_to_a_log_that_threads_share() {
    let disk = SimDisk::new(1);
    let wal = SyncWalWriter::<u64, SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    assert!(catch_unwind(AssertUnwindSafe(|| wal.append_encoded(&PanicsAtTwo, &2))).is_err());
    wal.append_encoded(&PanicsAtTwo, &1).expect("appends");
    wal.flush_and_sync().expect("commits");
    drop(wal);
    assert_eq!(read_all(&disk), 1);
}

#[test]
fn a_codec_that_panics_appends_nothing_of_a_batch() {
    let disk = SimDisk::new(1);
    let mut wal = WalWriter::<u64, SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    let batch = || wal.append_batch_encoded(&PanicsAtTwo, &[1, 1, 2]);
    assert!(catch_unwind(AssertUnwindSafe(batch)).is_err());
    assert_eq!(
        wal.append_encoded(&PanicsAtTwo, &1).expect("appends"),
        1,
        "nothing of the batch was appended"
    );
    wal.close().expect("closes");
    assert_eq!(read_all(&disk), 1);
}

fn power_cuts(disk: &SimDisk, property: impl FnMut(&SimDisk, &[u64]) -> Result<(), String>) {
    let options = SimOptions { images_per_point: 40, ..SimOptions::default() };
    check_crashes(disk, &options, property).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn the_folder_of_a_log_is_durable_although_its_maker_died_before_it_synced_the_name() {
    let disk = SimDisk::new(1);
    disk.create_dir_all("wal").expect("makes the folder, and is killed");
    let disk = disk.after_kill();
    let mut wal = WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    disk.mark(wal.append_bytes_durable(&payload(1)).expect("commits"));
    drop(wal);
    power_cuts(&disk, check);
}

#[test]
fn a_record_log_has_a_durable_name_although_its_maker_died_before_it_synced_the_name() {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    faults.inject(At::next_of(Operation::SyncParentDir), Fault::Fail(ErrorKind::Other));
    let mut log = RecordLogWriter::new(Arc::new(faults.over(disk.clone())), "records");
    log.open().expect_err("the directory cannot be synced");
    drop(log);
    let disk = disk.after_kill();
    let mut log = RecordLogWriter::new(Arc::new(disk.clone()), "records");
    log.append_bytes(&payload(1)).expect("appends");
    log.flush_and_sync().expect("syncs");
    disk.mark(1);
    drop(log);
    power_cuts(&disk, check_records);
}

/// The page cache shows it, the disk does not have it, and syncing again says nothing.
#[test]
fn a_record_log_writes_its_header_again_whose_sync_has_failed() {
    for (is_direct, is_reopened) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut disk = SimDisk::new(1);
        disk.fail_sync_after(0);
        if is_direct {
            disk.write_directly();
        }
        let mut log = RecordLogWriter::new(Arc::new(disk.clone()), "records");
        log.open().expect_err("the header cannot be synced");
        if is_reopened {
            drop(log);
            disk = disk.after_kill();
            log = RecordLogWriter::new(Arc::new(disk.clone()), "records");
        }
        for record in 1..3 {
            log.append_bytes(&payload(record)).expect("appends");
            log.flush_and_sync().expect("syncs");
            disk.mark(record);
        }
        drop(log);
        power_cuts(&disk, check_records);
    }
}

/// Time that goes on with each look at it, once it was started.
#[derive(Debug, Default)]
struct Ticking(AtomicU64, AtomicBool);

impl Environment for Ticking {
    fn random(&self) -> u64 {
        1 + self.0.fetch_add(1, Ordering::Relaxed)
    }
    fn elapsed(&self) -> Duration {
        Duration::from_secs(match self.1.load(Ordering::Relaxed) {
            true => self.0.fetch_add(1, Ordering::Relaxed),
            false => 0,
        })
    }
}

#[test]
fn a_segment_that_grows_too_old_between_two_looks_is_not_sealed_under_commits_in_flight() {
    let (disk, faults, clock) = (SimDisk::new(1), Faults::new(), Arc::new(Ticking::default()));
    let options = WalOptions {
        prepare_ahead: PrepareAhead::Never,
        pipeline_depth: Some(2),
        segment_age_max: Some(Duration::from_secs(1)),
        environment: Arc::clone(&clock) as _,
        ..unaided()
    };
    let wal = SyncWalWriter::<(), Disk>::configure(Arc::new(faults.over(disk.clone())), options);
    let wal = wal.expect("opens");
    wal.append_bytes_durable(&payload(1)).expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Reap), Fault::Hold(gate.clone()));
    let ticket = wal.submit_bytes(&payload(2)).expect("is accepted");
    gate.wait_until_held();
    // One commit is in flight. At the first look from now on the segment is young, at the second it is old.
    clock.0.store(0, Ordering::Relaxed);
    clock.1.store(true, Ordering::Relaxed);
    let other = wal.clone();
    let third = std::thread::spawn(move || other.append_bytes_durable(&payload(3)));
    while clock.0.load(Ordering::Relaxed) < 2 {
        std::thread::yield_now();
    }
    gate.open();
    assert_eq!(third.join().expect("no panic").expect("commits"), 3);
    assert_eq!(ticket.wait().expect("commits"), 2);
    wal.close().expect("closes");
    assert_eq!(WalReader::<(), _>::new(Arc::new(disk.after_kill())).entry_count().expect("reads"), 3);
}

#[test]
fn a_closed_log_can_be_opened_while_a_ticket_and_a_handle_of_it_are_left() {
    let disk = SimDisk::new(1);
    let wal = SyncWalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    let ticket = wal.submit_bytes(b"x").expect("is accepted");
    let handle = wal.clone();
    wal.close().expect("closes");
    let again = WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens again");
    assert_eq!(again.last_entry_id(), 1);
    assert!(ticket.is_durable() && handle.append_bytes(b"y").is_err());
}

#[test]
fn a_poisoned_log_can_be_opened_again_while_a_ticket_of_it_is_left() {
    let faults = Faults::new();
    let directory = Arc::new(faults.over(SimDisk::new(1)));
    let wal = SyncWalWriter::<(), Disk>::configure(Arc::clone(&directory), unaided()).expect("opens");
    wal.append_bytes_durable(b"x").expect("commits");
    faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
    let ticket = wal.submit_bytes(b"y").expect("is accepted");
    wal.wait_durable(2).expect_err("fails");
    drop(wal);
    let again = WalWriter::<(), Disk>::open(directory).expect("opens again");
    assert!(again.last_entry_id() >= 1);
    ticket.wait().expect_err("fails");
}

#[test]
fn who_waited_for_the_submitter_goes_on_before_anything_has_completed() {
    let faults = Faults::new();
    let options = WalOptions { pipeline_depth: Some(2), ..unaided() };
    let wal = SyncWalWriter::<(), Disk>::configure(Arc::new(faults.over(SimDisk::new(1))), options);
    let wal = wal.expect("opens");
    wal.append_bytes_durable(&payload(1)).expect("commits");
    let (submitting, reaping) = (Gate::new(), Gate::new());
    faults.inject(At::next_of(Operation::Submit), Fault::Hold(submitting.clone()));
    faults.inject(At::next_of(Operation::Reap), Fault::Hold(reaping.clone()));
    let submits = || faults.trace().iter().filter(|(call, _)| *call == Operation::Submit).count();
    let before = submits();
    std::thread::scope(|scope| {
        let one = scope.spawn(|| wal.append_bytes_durable(&payload(2)));
        submitting.wait_until_held();
        let two = scope.spawn(|| wal.append_bytes_durable(&payload(3)));
        while wal.last_entry_id() < 3 {
            std::thread::yield_now();
        }
        // Long enough for it to find the role taken; where it is slower, there is nothing to see.
        (0..1000).for_each(|_| std::thread::yield_now());
        submitting.open();
        reaping.wait_until_held();
        let begin = std::time::Instant::now();
        while submits() < before + 2 && begin.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        let in_flight = submits() - before;
        reaping.open();
        assert_eq!((one.join().unwrap().unwrap(), two.join().unwrap().unwrap()), (2, 3));
        assert_eq!(in_flight, 2, "the second commit waited for the first, although two may be in flight");
    });
}

#[test]
fn a_segment_may_grow_as_old_as_time_itself() {
    let options = WalOptions { segment_age_max: Some(Duration::MAX), ..WalOptions::default() };
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(SimDisk::new(1)), options).expect("opens");
    for id in 1..=2 {
        assert_eq!(wal.append_bytes_durable(b"x").expect("commits"), id);
    }
}

#[test]
fn a_segment_that_truncation_takes_while_the_log_is_opened_is_nothing_to_wait_for() {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let directory = Arc::new(faults.over(disk));
    let mut wal = WalWriter::<(), Disk>::open(Arc::clone(&directory)).expect("opens");
    wal.append_bytes_durable(b"x").expect("commits");
    drop(wal);
    faults.inject(At::next_of(Operation::AwaitUnlocked), Fault::Fail(ErrorKind::NotFound));
    let wal = WalWriter::<(), Disk>::resume(directory).expect("opens");
    assert_eq!(wal.last_entry_id(), 1);
}

#[test]
fn resuming_where_there_is_no_log_makes_nothing() {
    let disk = SimDisk::new(1);
    disk.create_dir_all_durable("wal").expect("makes a folder");
    let error = WalWriter::<(), SimDisk>::resume(Arc::new(disk.clone())).expect_err("no log");
    assert!(error.is_not_found(), "{error}");
    assert_eq!(disk.list_dir("wal").expect("lists"), Vec::<String>::new());
}

/// The ten methods that a directory must have, over a simulated disk.
struct Ten(SimDisk);

impl Directory for Ten {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.0.create_file(path)
    }
    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.0.append_file(path)
    }
    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        self.0.open_file(path)
    }
    fn exists(&self, path: &str) -> bool {
        self.0.exists(path)
    }
    fn delete(&self, path: &str) -> PersistenceResult<()> {
        self.0.delete(path)
    }
    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.0.atomic_rename(from, to)
    }
    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        self.0.create_dir_all(path)
    }
    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        self.0.list_dir(path)
    }
    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.0.atomic_write(path, data)
    }
    fn file_path(&self, _path: &str) -> Option<std::path::PathBuf> {
        None
    }
}

#[test]
fn a_torn_record_log_in_a_directory_of_ten_methods_goes_on() {
    let directory = Arc::new(Ten(SimDisk::new(1)));
    let mut log =
        RecordLogWriter::with_flush_policy(Arc::clone(&directory), "records", FlushPolicy::PerAppend);
    log.append_bytes(b"kept").expect("appends");
    log.close().expect("closes");
    // What a process leaves that is killed within a write.
    directory.append_file("records").expect("opens").write_all(b"DFRM and no more").expect("writes");
    let mut log =
        RecordLogWriter::with_flush_policy(Arc::clone(&directory), "records", FlushPolicy::PerAppend);
    log.append_bytes(b"added").expect("appends");
    log.close().expect("closes");
    let reader = RecordLogReader::new(directory, "records");
    let records = reader.read_all(RecordLogReadMode::Strict).expect("reads");
    assert_eq!(
        records.iter().map(|record| &record.payload[..]).collect::<Vec<_>>(),
        [&b"kept"[..], b"added"]
    );
}

#[test]
fn sweeping_for_one_checkpoint_leaves_the_temporaries_of_another_alone() {
    let directory = MemoryDirectory::arc();
    let checkpoints = CheckpointFile::new(Arc::clone(&directory));
    // `state` is what the other name ends with.
    let mut other = checkpoints.writer("old-state", CheckpointMeta::standalone(7)).expect("begins");
    other.write_state(b"in the making").expect("writes");
    durability::storage::sweep_temporaries(directory.as_ref(), "", Some("state")).expect("sweeps");
    other.finish().expect("nobody took it away");
    assert_eq!(checkpoints.read_bytes("old-state").expect("reads"), (7, b"in the making".to_vec()));
}

#[cfg(feature = "postcard")]
mod publishing;

#[test]
fn a_batch_that_fits_into_a_frame_of_its_own_is_not_too_large_behind_what_waits() {
    let faults = Faults::new();
    let directory = Arc::new(faults.over(SimDisk::new(1)));
    let wal = SyncWalWriter::<(), Disk>::configure(directory, unaided()).expect("opens");
    wal.append_bytes_durable(b"x").expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Reap), Fault::Hold(gate.clone()));
    let first = wal.submit_bytes(b"in flight").expect("is accepted");
    gate.wait_until_held();
    let second = wal.submit_bytes(&vec![1; 5 << 20]).expect("is accepted");
    let entry = vec![1; 15 << 20];
    let batch = [&entry[..], &entry, &entry, &entry];
    let refused = wal.submit_batch_bytes(&batch).map(drop);
    gate.open();
    assert!(matches!(refused, Err(PersistenceError::WouldBlock { .. })), "{refused:?}");
    assert_eq!((first.wait().expect("commits"), second.wait().expect("commits")), (2, 3));
    assert_eq!(wal.submit_batch_bytes(&batch).expect("fits now").wait().expect("commits"), 7);
}

#[derive(Debug, Default)]
struct Clock(AtomicU64, AtomicU64);
impl Environment for Clock {
    fn random(&self) -> u64 {
        1 + self.0.fetch_add(1, Ordering::Relaxed)
    }
    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.1.load(Ordering::Relaxed))
    }
}

#[test]
fn a_stream_whose_segments_end_by_age_alone_goes_on() {
    for prepare_ahead in [PrepareAhead::Never, PrepareAhead::ByHand(PrepareHand::new())] {
        for segment_bytes_max in [1 << 62, u64::MAX] {
            let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
            let directory = Arc::new(FsDirectory::new(root.path()).expect("opens"));
            let clock = Arc::new(Clock::default());
            let options = WalOptions {
                segment_bytes_max,
                segment_age_max: Some(Duration::from_secs(1)),
                prepare_ahead: prepare_ahead.clone(),
                environment: Arc::clone(&clock) as _,
                ..WalOptions::default()
            };
            let wal = SyncWalWriter::<(), FsDirectory>::configure(directory, options).expect("opens");
            wal.append_bytes(&[7; 300 << 10]).expect("appends");
            wal.append_bytes_durable(&[7; 300 << 10]).expect("commits");
            clock.1.store(2, Ordering::Relaxed);
            wal.append_bytes_durable(&[7; 300]).expect("goes on in the next segment");
            assert_eq!(wal.rotations(), 1);
            wal.close().expect("closes");
        }
    }
}

#[derive(Default)]
struct Flushed(AtomicU64);
impl WalObserver for Flushed {
    fn on_flush(&self, entry_id: u64) {
        self.0.store(entry_id, Ordering::SeqCst);
    }
}

#[test]
fn flushes_begin_again_after_a_commit_was_refused() {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let options = WalOptions {
        prepare_ahead: PrepareAhead::Never,
        flush_policy: FlushPolicy::EveryN(2),
        segment_bytes_max: 8192,
        ..WalOptions::default()
    };
    let flushed = Arc::new(Flushed::default());
    let mut single =
        WalWriter::<(), FaultyDirectory<SimDisk>>::open_with(Arc::new(faults.over(disk)), options)
            .expect("opens");
    single.set_observer(Arc::clone(&flushed) as _);
    let wal = SyncWalWriter::from_writer(single).expect("shared");
    wal.append_bytes(&[1; 3000]).expect("appends");
    wal.append_bytes(&[1; 3000]).expect("appends");
    wal.flush().expect("flushes");
    assert_eq!(flushed.0.load(Ordering::SeqCst), 2);
    faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
    assert!(wal.append_bytes_durable(&[1; 3000]).expect_err("full").is_out_of_space());
    // There is space again. Nobody waits for durability, nothing is in flight.
    for _ in 0..40 {
        wal.append_bytes(&[1; 10]).expect("appends");
    }
    let flushed = flushed.0.load(Ordering::SeqCst);
    assert!(flushed > 30, "{flushed} of {}", wal.last_entry_id());
}

#[test]
fn a_segment_that_was_entered_and_never_begun_is_no_damage() {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let hand = PrepareHand::new();
    let options = WalOptions {
        prepare_ahead: PrepareAhead::ByHand(hand.clone()),
        flush_policy: FlushPolicy::Manual,
        preallocate_bytes: 4096,
        segment_bytes_max: 64 << 20,
        ..WalOptions::default()
    };
    let directory = Arc::new(faults.over(disk.clone()));
    let wal =
        SyncWalWriter::<(), FaultyDirectory<SimDisk>>::configure(directory, options.clone()).expect("opens");
    wal.append_bytes_durable(&[1; 1000]).expect("commits");
    while hand.step() {}
    faults.inject(At::next_of(Operation::Reserve), Fault::Fail(ErrorKind::StorageFull));
    faults.inject(At::after_of(Operation::Reserve, 1), Fault::Fail(ErrorKind::StorageFull));
    assert!(wal.append_bytes_durable(&vec![1; 4 << 20]).expect_err("full").is_out_of_space());
    assert_eq!(wal.rotations(), 1);
    let crashed = disk.after_kill();
    drop(wal);
    for disk in [disk, crashed] {
        for n in 1..4u64 {
            let mut wal = WalWriter::<(), SimDisk>::open_with(
                Arc::new(disk.clone()),
                WalOptions { prepare_ahead: PrepareAhead::Never, ..options.clone() },
            )
            .expect("opens");
            assert!(wal.last_entry_id() >= n);
            wal.append_bytes_durable(&[1; 5000]).expect("commits");
            wal.close().expect("closes");
        }
    }
}

#[test]
fn what_a_segment_in_the_making_holds_serves_a_commit_that_finds_the_disk_full() {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let hand = PrepareHand::new();
    let options = WalOptions {
        prepare_ahead: PrepareAhead::ByHand(hand.clone()),
        flush_policy: FlushPolicy::Manual,
        preallocate_bytes: 64 << 10,
        ..WalOptions::default()
    };
    let directory = Arc::new(faults.over(disk.clone()));
    let wal = SyncWalWriter::<(), FaultyDirectory<SimDisk>>::configure(directory, options).expect("opens");
    wal.append_bytes_durable(&[1; 1000]).expect("commits");
    // It has its space, and its first zeros.
    assert!(hand.step() && hand.step());
    faults.inject(At::next_of(Operation::Reserve), Fault::Fail(ErrorKind::StorageFull));
    faults.inject(At::after_of(Operation::Reserve, 1), Fault::Fail(ErrorKind::StorageFull));
    let id = wal.append_bytes_durable(&[1; 100 << 10]).expect("goes on in the next segment");
    assert_eq!((id, wal.rotations()), (2, 1));
    wal.append_bytes_durable(&[1; 1000]).expect("commits");
    wal.close().expect("closes");
    let opened = WalWriter::<(), SimDisk>::open(Arc::new(disk)).expect("opens");
    assert_eq!(opened.last_entry_id(), 3);
}

/// An end behind it would make half a state look whole.
#[test]
fn damage_of_a_checkpoint_is_told_to_whoever_asks_again() {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let files = CheckpointFile::new(Arc::new(faults.over(disk.clone())));
    let state = vec![7; 2_000_000];
    files.write_bytes_durable("state", 1, &state).expect("writes");
    let mut reader = files.reader("state").expect("opens");
    faults.inject(At::after_of(Operation::Read, 2), Fault::Fail(ErrorKind::Other));
    reader.read_state().expect_err("cannot be read");
    reader.read_state().expect_err("what was read before is gone");
    assert_eq!(files.read_bytes("state").expect("reads"), (1, state));
    let mut bytes = Vec::new();
    disk.open_file("state").expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes[1_500_000] ^= 1;
    disk.create_file("state").expect("creates").write_all(&bytes).expect("writes");
    let mut reader = files.reader("state").expect("opens");
    assert!(reader.verify().expect_err("is damaged").is_corruption());
    assert!(reader.read_state().expect_err("is damaged").is_corruption());
    assert!(reader.read(&mut [0; 100]).is_err(), "and has no end");
}
