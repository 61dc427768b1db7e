//! What holds for each part of the shared writer alone, while another part is at work beside it.

use crate::power_cut::payload;
use crate::support::PATIENCE;
use durability::storage::{Environment, FlushPolicy, SeededEnvironment};
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{
    PrepareAhead, PrepareHand, SyncWalWriter, WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter,
};
use durability::{PersistenceError, PersistenceResult};
use std::io::ErrorKind;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;

/// One batch for each segment, made when it is needed.
fn options() -> WalOptions {
    WalOptions {
        segment_bytes_max: 1,
        preallocate_bytes: 4096,
        prepare_ahead: PrepareAhead::Never,
        flush_policy: FlushPolicy::Manual,
        ..WalOptions::default()
    }
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

fn append(wal: &Wal) -> u64 {
    wal.append_bytes(&payload(wal.last_entry_id() + 1)).expect("appends")
}

fn entries(disk: &SimDisk) -> u64 {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
    reader.replay_bytes(WalReplayMode::BestEffortTail).expect("replays").len() as u64
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "not so: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn no_thread_outlives_a_log_that_is_closed_without_blocking() {
    let environment: Arc<dyn Environment> = Arc::new(SeededEnvironment::new(1));
    let known = Arc::downgrade(&environment);
    let (_, faults, wal) = open(WalOptions { environment, ..options() });
    let before = faults.trace().len();
    wal.attest_when_idle(Duration::ZERO).expect("starts");
    // From then on the thread sleeps until something else becomes durable.
    until("attested", || faults.trace()[before..].iter().any(|(call, _)| *call == Operation::Complete));
    pollster::block_on(wal.close_async()).expect("closes");
    until("every thread of the log has ended", || known.upgrade().is_none());
}

/// In both ways: without space a log is not closed, and other handles go on as before, tickets included.
#[test]
fn a_log_that_could_not_be_closed_for_want_of_space_goes_on_and_is_closed_later() {
    type Closes = fn(Wal) -> PersistenceResult<()>;
    let ways: [(&str, Closes); 2] =
        [("blocking", Wal::close), ("without blocking", |wal| pollster::block_on(wal.close_async()))];
    for (how, close) in ways {
        let (disk, faults, wal) = open(options());
        wal.attest_when_idle(Duration::from_secs(3600)).expect("starts");
        let first = wal.submit_bytes(&payload(2)).expect("is accepted");
        assert_eq!(pollster::block_on(first).expect("is durable"), 2, "its thread is there");
        append(&wal);
        // Twice: whoever asks again is told of his own try.
        for _ in 0..2 {
            faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
            let refused = close(wal.clone()).expect_err("there is no space");
            assert!(refused.is_out_of_space(), "{how}: {refused}");
        }
        let ticket = wal.submit_bytes(&payload(4)).expect("is accepted");
        let (sender, told) = mpsc::channel();
        ticket.on_durable(move |outcome| drop(sender.send(outcome)));
        let outcome = told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{how}: nobody commits"));
        assert_eq!(outcome.expect("is durable"), 4, "{how}");
        close(wal.clone()).unwrap_or_else(|error| panic!("{how}: {error}"));
        let late = wal.append_bytes(b"late").expect_err("it is closed");
        assert!(matches!(late, PersistenceError::InvalidState { .. }), "{how}: {late}");
        assert!(matches!(close(wal), Err(PersistenceError::InvalidState { .. })), "{how}");
        assert_eq!(entries(&disk), 4, "{how}");
    }
}

/// Nobody is left who would try again: files and locks are free, in whatever order the handles went.
#[test]
fn a_log_that_could_not_be_closed_ends_with_its_last_handle() {
    for goes_meanwhile in [true, false] {
        let (disk, faults, wal) = open(options());
        append(&wal);
        let (reader, other, gate) = (wal.reader(), wal.clone(), Gate::new());
        let no_space =
            || faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
        no_space();
        faults.inject(At::next_of(Operation::OpenAt), Fault::Hold(gate.clone()));
        let closing = wal.close_async();
        gate.wait_until_held();
        if goes_meanwhile {
            drop(other);
            gate.open();
            pollster::block_on(closing).expect_err("there is no space");
        } else {
            gate.open();
            pollster::block_on(closing).expect_err("there is no space");
            no_space();
            drop(other);
        }
        let options = WalOptions { lock_wait: Duration::ZERO, ..WalOptions::default() };
        let next = WalWriter::<(), SimDisk>::open_with(Arc::new(disk), options).expect("opens");
        assert_eq!(next.last_entry_id(), 1);
        assert_eq!(reader.durable_entry_id(), 1);
    }
}

#[test]
fn a_log_that_is_poisoned_while_it_closes_lets_go_of_its_files() {
    for blocking in [true, false] {
        let (disk, faults, wal) = open(options());
        let (reader, other) = (wal.reader(), wal.clone());
        append(&wal);
        faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
        let closed = if blocking { wal.close() } else { pollster::block_on(wal.close_async()) };
        closed.expect_err("fails");
        let options = WalOptions { lock_wait: Duration::ZERO, ..WalOptions::default() };
        WalWriter::<(), SimDisk>::open_with(Arc::new(disk), options).expect("opens");
        assert!(matches!(commit(&other), Err(PersistenceError::Poisoned { durable_entry_id: 1, .. })));
        assert_eq!(reader.durable_entry_id(), 1);
    }
}

#[test]
fn what_is_flushed_becomes_durable_although_a_new_segment_could_not_grow() {
    let (disk, faults, wal) = open(options());
    append(&wal);
    wal.flush().expect("flushes");
    wal.append_bytes(&[7; 32 << 10]).expect("appends");
    // The log is in the next segment already, when that is too small and cannot grow.
    faults.inject(At::next_of(Operation::Reserve), Fault::Fail(ErrorKind::StorageFull));
    faults.inject(At::next_of(Operation::Reserve), Fault::Fail(ErrorKind::StorageFull));
    assert!(wal.flush().expect_err("there is no space").is_out_of_space());
    assert!(faults.all_struck());
    let (done, is_done) = mpsc::channel();
    let waiting = wal.clone();
    std::thread::spawn(move || done.send(waiting.wait_durable(2)));
    is_done.recv_timeout(Duration::from_secs(30)).expect("ends").expect("needs no space");
    wal.wait_durable(3).expect("there is space now");
    wal.close().expect("closes");
    assert_eq!(entries(&disk), 3);
}

#[test]
fn a_helper_that_is_slow_takes_truncation_for_no_theft() {
    let hand = PrepareHand::new();
    let prepare_ahead = PrepareAhead::ByHand(hand.clone());
    let (disk, faults, wal) = open(WalOptions { prepare_ahead, prepared_segments_min: 3, ..options() });
    while hand.step() {}
    commit(&wal).expect("commits");
    assert!(hand.step(), "the seal of the first");
    // It is about to look whether the second segment, which is being written, is still there.
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::OpenAt), Fault::Hold(gate.clone()));
    let helper = std::thread::spawn(move || hand.step());
    gate.wait_until_held();
    commit(&wal).expect("commits");
    commit(&wal).expect("commits");
    let maintenance = WalMaintenance::new(Arc::new(disk.clone()));
    assert_eq!(maintenance.truncate_prefix(2).expect("truncates"), 2);
    gate.open();
    assert!(helper.join().expect("no panic"));
    assert_eq!(commit(&wal).expect("nobody has taken anything away"), 5);
    wal.close().expect("closes");
}

#[test]
fn reading_does_not_read_what_was_made_ahead() {
    let hand = PrepareHand::new();
    let prepare_ahead = PrepareAhead::ByHand(hand.clone());
    let segment_bytes_max = 4 << 20;
    let (_, faults, wal) = open(WalOptions { prepare_ahead, segment_bytes_max, ..options() });
    while hand.step() {}
    let before = faults.trace().len();
    wal.reader().read_bytes(1).expect("reads");
    let read = (Operation::Read, "wal/wal_2.log".to_owned());
    let reads = faults.trace()[before..].iter().filter(|call| **call == read).count();
    assert!(reads <= 2, "{reads}");
}

#[test]
fn an_entry_behind_those_that_were_refused_is_not_refused_with_them() {
    let (_, faults, wal) = open(options());
    append(&wal);
    wal.flush().expect("flushes");
    append(&wal);
    faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
    assert!(wal.flush().expect_err("there is no space").is_out_of_space());
    // A sync of what was flushed ends while the refused entry is pending still.
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let waiting = wal.clone();
    let waits = std::thread::spawn(move || waiting.wait_durable(2));
    gate.wait_until_held();
    let (done, is_done) = mpsc::channel();
    let ticket = wal.submit_bytes(&payload(4)).expect("is accepted");
    ticket.on_durable(move |outcome| done.send(outcome).expect("somebody listens"));
    gate.open();
    waits.join().expect("no panic").expect("needs no space");
    let told = is_done.recv_timeout(Duration::from_secs(30)).expect("is told");
    assert_eq!(told.expect("there is space, and nobody has tried before"), 4);
}

#[test]
fn attesting_what_is_attested_writes_nothing() {
    let (disk, faults, wal) = open(options());
    wal.attest().expect("attests");
    let before = faults.trace().len();
    for _ in 0..3 {
        wal.attest().expect("nothing is left to be done");
    }
    let submits = faults.trace()[before..].iter().filter(|(call, _)| *call == Operation::Submit).count();
    assert_eq!(submits, 0, "each would take space that nobody has asked for");
    // What comes behind the seal is attested anew.
    append(&wal);
    wal.attest().expect("attests");
    assert!(faults.trace()[before..].iter().any(|(call, _)| *call == Operation::Submit));
    wal.close().expect("closes");
    assert_eq!(entries(&disk), 2);
}
