//! Room for what is written: it is made before anything of a frame is, and for all that then goes, although more is
//! appended meanwhile. So a full device is met while nothing is half done.

use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::testing::faults::{Act, At, Fault, Faults, FaultyDirectory, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{PrepareAhead, SyncWalWriter, WalOptions, WalReader, WalReplayMode};
use durability::{Directory, PersistenceError};
use std::sync::Arc;

type Wal = SyncWalWriter<(), FaultyDirectory<SimDisk>>;

fn options(segment_bytes_max: u64) -> WalOptions {
    WalOptions {
        segment_bytes_max,
        preallocate_bytes: 4096,
        buffer_bytes: 1 << 20,
        prepare_ahead: PrepareAhead::Never,
        ..WalOptions::default()
    }
}

/// A log on a disk that keeps the space that is asked for, with one durable entry.
fn open(segment_bytes_max: u64) -> (SimDisk, Faults, Wal) {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    disk.keep_reserved();
    let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options(segment_bytes_max)).expect("opens");
    assert_eq!(wal.append_bytes_durable(&[1; 100]).expect("commits"), 1);
    (disk, faults, wal)
}

/// Whenever space is asked for, behind the first `skipped` times, `count` entries are appended meanwhile; `times` times.
fn append_meanwhile(faults: &Faults, wal: &Wal, (skipped, times): (u64, usize), count: usize) {
    for _ in 0..times {
        let wal = wal.clone();
        let append = move |_| assert!(wal.append_bytes(&[3; 9000]).is_ok(), "appends");
        let act = move || (0..count).for_each(&append);
        faults.inject(At::after_of(Operation::Reserve, skipped), Fault::Meanwhile(Act::new(act)));
    }
}

fn entries(disk: &SimDisk) -> usize {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
    reader.replay_bytes(WalReplayMode::Strict).expect("replays").len()
}

fn size(disk: &SimDisk, segment: u64) -> u64 {
    disk.open_at(&format!("wal/wal_{segment}.log")).expect("is there").size().expect("is known")
}

#[test]
fn a_batch_that_grows_beyond_its_segment_while_room_is_made_goes_into_the_next_one() {
    let (disk, faults, wal) = open(200_000);
    append_meanwhile(&faults, &wal, (0, 1), 25);
    assert_eq!(wal.append_bytes_durable(&[2; 9000]).expect("commits"), 2);
    assert!(faults.all_struck());
    assert_eq!(wal.durable_entry_id(), 27, "all of it goes at once");
    assert!(size(&disk, 1) <= 200_000 && size(&disk, 2) > 225_000, "{} bytes", size(&disk, 1));
    wal.close().expect("closes");
    assert_eq!(entries(&disk), 27);
}

#[test]
fn room_is_made_again_and_again_but_not_for_each_that_comes_meanwhile() {
    let (disk, faults, wal) = open(20_000);
    append_meanwhile(&faults, &wal, (0, 5), 10);
    let before = faults.trace().len();
    assert_eq!(wal.append_bytes_durable(&[2; 90_000]).expect("commits"), 2);
    let calls = faults.trace().split_off(before);
    let asked = calls.iter().filter(|(operation, _)| *operation == Operation::Reserve).count();
    // As much again each time, so that the second time whoever comes meanwhile finds room.
    assert_eq!(asked, 2);
    assert_eq!(wal.durable_entry_id(), 22);
    wal.close().expect("closes");
    assert_eq!(entries(&disk), 22);
}

#[test]
fn a_batch_that_outgrows_the_space_while_room_is_made_is_refused_and_goes_when_there_is_more() {
    let (disk, faults, wal) = open(1 << 20);
    // Enough for the entry that asks, and not for what a segment grows by.
    disk.limit_capacity(Some(disk.used_bytes() + 12_000));
    append_meanwhile(&faults, &wal, (1, 1), 3);
    let full = wal.append_bytes_durable(&[2; 9000]).expect_err("it has become too large");
    assert!(faults.all_struck());
    assert!(full.is_out_of_space() && !matches!(full, PersistenceError::Poisoned { .. }), "{full:?}");
    assert_eq!((wal.durable_entry_id(), wal.last_entry_id()), (1, 5), "all of it stays appended");
    let again = wal.append_bytes_durable(&[2; 10]).expect_err("there is no more space");
    assert!(again.is_out_of_space() && !matches!(again, PersistenceError::Poisoned { .. }), "{again:?}");
    disk.limit_capacity(None);
    assert_eq!(wal.append_bytes_durable(&[2; 10]).expect("the same writer goes on"), 7);
    assert_eq!(wal.durable_entry_id(), 7);
    wal.close().expect("closes");
    assert_eq!(entries(&disk), 7);
}

#[test]
fn there_is_space_for_the_seals_of_an_idle_log_and_of_its_end_whatever_stands_before() {
    // Small ones in blocks of their own; and as large as what is asked for at once, so that nothing is left over, with
    // a block behind them that is filled.
    let (small, large) = ((0..3500).step_by(100), (100_000..104_100).step_by(100));
    for bytes in small.chain(large) {
        for commits in 1..3 {
            let (disk, faults) = (SimDisk::new(1), Faults::new());
            disk.keep_reserved();
            let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options(1 << 20)).expect("opens");
            for _ in 0..commits {
                wal.append_bytes(&vec![1; bytes]).and_then(|_| wal.flush()).expect("flushes");
            }
            // Not a byte more than what is there, or was asked for.
            disk.limit_capacity(Some(disk.used_bytes()));
            wal.attest().unwrap_or_else(|error| panic!("{commits} of {bytes} bytes, attested: {error}"));
            wal.close().unwrap_or_else(|error| panic!("{commits} of {bytes} bytes, closed: {error}"));
            assert_eq!(entries(&disk), commits);
        }
    }
}

/// Where space cannot be asked for, the zeros of a segment that grows meet the full disk in a write of their own.
#[test]
fn a_disk_that_is_full_among_zeros_poisons_and_whoever_opens_the_log_goes_on() {
    let disk = SimDisk::new(1);
    let wal =
        SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options(1 << 20)).expect("opens");
    wal.append_bytes_durable(&[1; 100]).expect("commits");
    disk.limit_capacity(Some(disk.used_bytes() + 12_000));
    let full = wal.append_bytes_durable(&[2; 9000]).expect_err("no space for the zeros");
    assert!(full.is_out_of_space(), "{full:?}");
    disk.limit_capacity(None);
    let poisoned = wal.append_bytes_durable(&[2; 9000]).expect_err("the segment's file is closed");
    assert!(matches!(poisoned, PersistenceError::Poisoned { durable_entry_id: 1, .. }), "{poisoned:?}");
    drop(wal);
    let wal =
        SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options(1 << 20)).expect("opens");
    assert_eq!(wal.append_bytes_durable(&[2; 9000]).expect("goes on"), 2);
    wal.close().expect("closes");
    assert_eq!(entries(&disk), 2);
}

/// As with a log: what was refused is not appended, what was before it is.
#[test]
fn a_record_log_meets_a_full_disk_before_it_writes() {
    let disk = SimDisk::new(1);
    disk.keep_reserved();
    let mut log = RecordLogWriter::new(Arc::new(disk.clone()), "records");
    log.append_bytes(b"first").expect("appends");
    log.flush_and_sync().expect("syncs");
    log.append_bytes(b"second").expect("appends");
    disk.limit_capacity(Some(disk.used_bytes()));
    let before = disk.operations();
    let is_full = |error: &PersistenceError| {
        error.is_out_of_space() && !matches!(error, PersistenceError::Poisoned { .. })
    };
    for _ in 0..2 {
        let error = log.append_bytes(&[7; 200_000]).expect_err("no space");
        assert!(is_full(&error), "{error}");
    }
    assert_eq!((log.record_count(), disk.operations()), (2, before), "nothing was appended, nothing written");
    log.flush_and_sync().expect("space for this was asked for");
    disk.limit_capacity(None);
    log.append_bytes(&[7; 200_000]).expect("there is space");
    log.close().expect("closes");
    let reader = RecordLogReader::new(Arc::new(disk.clone()), "records");
    let records = reader.read_all(RecordLogReadMode::Strict).expect("reads");
    let lengths: Vec<_> = records.iter().map(|record| record.payload.len()).collect();
    assert_eq!(lengths, [5, 6, 200_000]);
    let size = disk.open_at("records").expect("opens").size().expect("has a size");
    assert_eq!(disk.used_bytes(), size, "what was asked for is given back");
}
