//! What observers of a shared log may do: whatever they are told of, they may use the log, and nobody waits for ever.

use crate::support::{PATIENCE, within_patience};
use durability::checkpoint::CheckpointWriter;
use durability::publish::CheckpointPublisher;
use durability::storage::FlushPolicy;
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{
    PrepareAhead, SlowCommit, SyncWalWriter, WalFollower, WalObserver, WalOptions, WalReader, WalReplayMode,
    WalWriter,
};
use durability::{PersistenceError, PersistenceResult};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Append,
    Flush,
    Sync,
    Rotate,
    Slow,
}

const EVENTS: [Event; 5] = [Event::Append, Event::Flush, Event::Sync, Event::Rotate, Event::Slow];

type Act = fn(Wal) -> PersistenceResult<()>;

const ACTS: [(&str, Act); 9] = [
    ("append", |wal| wal.append_bytes(b"observed").map(drop)),
    ("append durably", |wal| wal.append_bytes_durable(b"observed").map(drop)),
    ("flush", |wal| wal.append_bytes(b"observed").and_then(|_| wal.flush())),
    ("sync", |wal| wal.append_bytes(b"observed").and_then(|_| wal.flush_and_sync())),
    ("attest", |wal| wal.attest()),
    ("await a ticket", |wal| pollster::block_on(wal.submit_bytes(b"observed")?).map(drop)),
    ("await a ticket for some time", |wal| {
        wal.submit_bytes(b"observed")?.wait_timeout(PATIENCE / 2).map(drop)
    }),
    ("close", |wal| wal.close()),
    ("close without blocking", |wal| pollster::block_on(wal.close_async())),
];

/// Uses the log once, when it is told of something.
struct Uses {
    event: Event,
    act: Act,
    /// The handle, once it is to be used.
    wal: Mutex<Option<Wal>>,
    /// The device that stalls goes on when that was seen.
    gate: Gate,
    done: Mutex<mpsc::Sender<PersistenceResult<()>>>,
}

impl Uses {
    fn told(&self, event: Event) {
        if event != self.event {
            return;
        }
        self.gate.open();
        let handle = self.wal.lock().expect("no panic").take();
        if let Some(wal) = handle {
            let result = (self.act)(wal);
            let _ = self.done.lock().expect("no panic").send(result);
        }
    }
}

impl WalObserver for Uses {
    fn on_append(&self, _: u64) {
        self.told(Event::Append);
    }
    fn on_flush(&self, _: u64) {
        self.told(Event::Flush);
    }
    fn on_sync(&self, _: u64) {
        self.told(Event::Sync);
    }
    fn on_segment_rotate(&self, _: u64, _: u64) {
        self.told(Event::Rotate);
    }
    fn on_slow_commit(&self, _: &SlowCommit) {
        self.told(Event::Slow);
    }
}

/// A log with one entry, whose observer will use it.
fn observed(event: Event, act: Act) -> (SimDisk, Wal, Arc<Uses>, mpsc::Receiver<PersistenceResult<()>>) {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let options = WalOptions {
        // Each commit rotates.
        segment_bytes_max: 1,
        preallocate_bytes: 0,
        prepare_ahead: PrepareAhead::Never,
        flush_policy: FlushPolicy::Manual,
        slow_after: (event == Event::Slow).then_some(Duration::from_millis(1)),
        ..WalOptions::default()
    };
    let mut single = WalWriter::open_with(Arc::new(faults.over(disk.clone())), options).expect("opens");
    let (sender, done) = mpsc::channel();
    let (wal, gate, done_sender) = (Mutex::new(None), Gate::new(), Mutex::new(sender));
    let uses = Arc::new(Uses { event, act, wal, gate, done: done_sender });
    single.set_observer(Arc::clone(&uses) as Arc<dyn WalObserver>);
    let wal = Wal::from_writer(single).expect("shares");
    wal.append_bytes_durable(b"first").expect("commits");
    if event == Event::Slow {
        // Of the commit, not of the segment's header.
        faults.inject(At::after_of(Operation::Complete, 2), Fault::Stall(uses.gate.clone()));
    }
    (disk, wal, uses, done)
}

fn entries(disk: &SimDisk) -> u64 {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
    reader.replay_bytes(WalReplayMode::Strict).expect("the log was sealed").len() as u64
}

#[test]
fn an_observer_may_use_the_log_whatever_it_is_told_of() {
    for event in EVENTS {
        for (name, act) in ACTS {
            for by_ticket in [false, true] {
                let case = format!("{name} when told of {event:?}, by a ticket: {by_ticket}");
                let (disk, wal, uses, done) = observed(event, act);
                *uses.wal.lock().expect("no panic") = Some(wal.clone());
                let committing = std::thread::spawn(move || {
                    if by_ticket {
                        return pollster::block_on(wal.submit_bytes(b"second").expect("is accepted"));
                    }
                    wal.append_bytes_durable(b"second")
                });
                let used = done.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it hangs: {case}"));
                used.unwrap_or_else(|error| panic!("{case}: {error}"));
                let committed = committing.join().expect("ends");
                assert_eq!(committed.unwrap_or_else(|error| panic!("{case}: {error}")), 2, "{case}");
                assert!(entries(&disk) >= 2, "{case}");
            }
        }
    }
}

#[test]
fn an_observer_may_drop_the_last_handle() {
    for event in [Event::Flush, Event::Sync, Event::Rotate, Event::Slow] {
        let (gone, is_gone) = mpsc::channel();
        let is_gone = Mutex::new(is_gone);
        let (disk, wal, uses, done) = observed(event, |wal| {
            drop(wal);
            Ok(())
        });
        let ticket = {
            // The observer is not told before its handle is the only one.
            let mut slot = uses.wal.lock().expect("no panic");
            let ticket = wal.submit_bytes(b"second").expect("is accepted");
            *slot = Some(wal);
            ticket
        };
        let waiting = std::thread::spawn(move || {
            let outcome = pollster::block_on(ticket);
            let _ = gone.send(());
            outcome
        });
        let used = done.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it hangs: told of {event:?}"));
        used.expect("drops");
        is_gone.lock().expect("no panic").recv_timeout(PATIENCE).expect("the ticket resolves");
        assert_eq!(waiting.join().expect("ends").expect("is durable"), 2, "{event:?}");
        assert_eq!(entries(&disk), 2, "{event:?}");
    }
}

/// In a callback the log's own thread waits for a commit that it has to drive itself, and no longer than it said.
#[test]
fn a_callback_waits_no_longer_than_it_said_and_the_log_goes_on() {
    let (first, gate, faults) = (Gate::new(), Gate::new(), Faults::new());
    let options = WalOptions { preallocate_bytes: 0, ..WalOptions::default() };
    let wal = Wal::configure(Arc::new(faults.over(SimDisk::new(1))), options).expect("opens");
    wal.append_bytes_durable(b"first").expect("commits");
    let (told, outcomes) = mpsc::channel();
    let shared = wal.clone();
    // So that it is the log's own thread that calls back.
    faults.inject(At::next_of(Operation::Complete), Fault::Stall(first.clone()));
    let ticket = wal.submit_bytes(b"second").expect("is accepted");
    ticket.on_durable(move |outcome| {
        let _ = told.send(outcome);
        faults.inject(At::next_of(Operation::Complete), Fault::Stall(gate.clone()));
        let third = shared.submit_bytes(b"third").expect("is accepted");
        let _ = told.send(third.wait_timeout(Duration::from_millis(5)));
        gate.open();
        let _ = told.send(third.wait_timeout(PATIENCE / 2));
    });
    first.open();
    let next = || outcomes.recv_timeout(PATIENCE).expect("it hangs");
    assert_eq!(next().expect("is durable"), 2);
    let timed_out = next();
    let expected = PersistenceError::TimedOut { entry_id: 3, durable_entry_id: 2 };
    assert_eq!(timed_out.map_err(|error| error.to_string()), Err(expected.to_string()));
    assert_eq!(next().expect("is durable"), 3);
    assert_eq!(wal.append_bytes_durable(b"fourth").expect("commits"), 4);
}

/// While an observer of a slow commit dawdles, others collect that commit.
#[test]
fn nobody_waits_for_an_observer_of_a_slow_commit() {
    static DAWDLES: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>> = Mutex::new(None);
    let ((begins, has_begun), (ends, may_end)) = (mpsc::channel(), mpsc::channel());
    *DAWDLES.lock().expect("no panic") = Some((begins, may_end));
    let (_, wal, uses, done) = observed(Event::Slow, |_| {
        let (begins, may_end) = DAWDLES.lock().expect("no panic").take().expect("once");
        begins.send(()).expect("the test waits");
        may_end.recv().expect("the test says when");
        Ok(())
    });
    *uses.wal.lock().expect("no panic") = Some(wal.clone());
    let (told, committed) = mpsc::channel();
    let ticket = wal.submit_bytes(b"second").expect("is accepted");
    ticket.on_durable(move |outcome| drop(told.send(outcome)));
    // The log's own thread is the only one that waits, and so the one that reports.
    has_begun.recv_timeout(PATIENCE).expect("it is reported");
    let waits = std::thread::spawn(move || wal.append_bytes_durable(b"third"));
    let committed = committed.recv_timeout(PATIENCE);
    ends.send(()).expect("the observer is still at it");
    assert_eq!(committed.expect("somebody else collects it").expect("is durable"), 2);
    assert_eq!(waits.join().expect("ends").expect("commits"), 3);
    done.recv_timeout(PATIENCE).expect("it ends").expect("it is well");
}

/// Appends one more entry whenever it hears of a commit.
struct GoesOn {
    wal: Mutex<Option<SyncWalWriter<(), SimDisk>>>,
    refused: Mutex<Option<PersistenceError>>,
}

impl WalObserver for GoesOn {
    fn on_sync(&self, _entry_id: u64) {
        let wal = self.wal.lock().expect("no panic").clone();
        if let Some(Err(error)) = wal.map(|wal| wal.append_bytes(b"one more")) {
            self.refused.lock().expect("no panic").get_or_insert(error);
        }
    }
}

/// A log of which there is always something that waits for its commit.
fn never_quiet() -> (Arc<SimDisk>, Arc<GoesOn>, SyncWalWriter<(), SimDisk>) {
    let disk = Arc::new(SimDisk::new(1));
    let mut writer = WalWriter::<(), SimDisk>::open(Arc::clone(&disk)).expect("opens");
    let goes_on = Arc::new(GoesOn { wal: Mutex::default(), refused: Mutex::default() });
    writer.set_observer(Arc::clone(&goes_on) as _);
    let wal = SyncWalWriter::from_writer(writer).expect("shares");
    *goes_on.wal.lock().expect("no panic") = Some(wal.clone());
    assert_eq!(wal.append_bytes_durable(b"first").expect("commits"), 1);
    (disk, goes_on, wal)
}

#[test]
fn attesting_ends_where_commits_never_pause() {
    let (disk, goes_on, wal) = never_quiet();
    let attested = wal.clone();
    within_patience(move || attested.attest()).expect("attests");
    let last = wal.last_entry_id();
    assert!(last < 10, "{last} entries");
    goes_on.wal.lock().expect("no panic").take();
    // The two that there were when it began; without a seal.
    let mut follower = WalFollower::new(Arc::new(disk.after_kill()), None).expect("follows");
    assert!(follower.poll(|_, _| Ok(())).expect("reads") >= 2);
}

#[test]
fn closing_ends_where_commits_never_pause() {
    type Closes = fn(SyncWalWriter<(), SimDisk>) -> PersistenceResult<()>;
    let ways: [Closes; 2] = [SyncWalWriter::close, |wal| pollster::block_on(wal.close_async())];
    for close in ways {
        let (disk, goes_on, wal) = never_quiet();
        let closed = wal.clone();
        within_patience(move || close(closed)).expect("closes");
        let refused = goes_on.refused.lock().expect("no panic").take().expect("no more was taken");
        assert!(matches!(refused, PersistenceError::InvalidState { .. }), "{refused}");
        let last = wal.last_entry_id();
        goes_on.wal.lock().expect("no panic").take();
        drop(wal);
        let reader = WalReader::<(), SimDisk>::new(disk);
        let read = reader.replay_bytes(WalReplayMode::Strict).expect("reads").len() as u64;
        assert_eq!(read, last, "what was appended is there, and nothing else");
    }
}

/// Keeps every segment, and is asked for each.
struct Keeps(Mutex<Vec<u64>>);

impl WalObserver for Keeps {
    fn on_before_truncate(&self, _segment_id: u64, last_entry_id: u64) -> PersistenceResult<()> {
        self.0.lock().expect("no panic").push(last_entry_id);
        Err(PersistenceError::InvalidConfig {
            parameter: "a segment",
            reason: "somebody reads it".to_owned(),
        })
    }
}

/// As of one with a single owner.
#[test]
fn publishing_of_a_shared_log_asks_before_it_truncates() {
    let disk = Arc::new(SimDisk::new(1));
    let options = WalOptions {
        segment_bytes_max: 1,
        preallocate_bytes: 0,
        prepare_ahead: PrepareAhead::Never,
        ..WalOptions::default()
    };
    let mut writer = WalWriter::<(), SimDisk>::open_with(Arc::clone(&disk), options).expect("opens");
    let keeps = Arc::new(Keeps(Mutex::default()));
    writer.set_observer(Arc::clone(&keeps) as _);
    let mut wal = SyncWalWriter::from_writer(writer).expect("shares");
    (1..4).for_each(|entry_id| assert_eq!(wal.append_bytes_durable(b"entry").expect("commits"), entry_id));
    let publisher = CheckpointPublisher::new(Arc::clone(&disk));
    let write = |writer: &mut CheckpointWriter<'_, SimDisk>| writer.write_state(b"state");
    let record = |_: &str| Ok(b"published".to_vec());
    let refused = publisher.publish_with(&mut wal, 3, "state", write, record).expect_err("is kept");
    assert!(refused.to_string().contains("somebody reads it"), "{refused}");
    assert_eq!(*keeps.0.lock().expect("no panic"), [1]);
    let reader = WalReader::<(), SimDisk>::new(Arc::clone(&disk));
    assert_eq!(reader.entry_range(WalReplayMode::BestEffortTail).expect("reads"), Some((1, 4)));
}
