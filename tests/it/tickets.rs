//! Tickets: every way of waiting, and every way in which waiting may end.

use crate::power_cut::{check, payload};
use durability::storage::{Environment, FlushPolicy, SeededEnvironment};
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{
    Backpressure, CommitTicket, PrepareAhead, SyncWalWriter, WalObserver, WalOptions, WalReader,
    WalReplayMode, WalWriter,
};
use durability::{Directory, PersistenceError, PersistenceResult};
use std::future::Future;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;

fn options() -> WalOptions {
    // What strikes a call here must not strike one of the thread that makes segments.
    WalOptions { preallocate_bytes: 0, prepare_ahead: PrepareAhead::Never, ..WalOptions::default() }
}

/// A log with one durable entry, and the faults that may strike it from then on.
fn open(options: WalOptions) -> (SimDisk, Faults, Wal) {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
    assert_eq!(wal.append_bytes_durable(&payload(1)).expect("commits"), 1);
    (disk, faults, wal)
}

fn submit(wal: &Wal) -> CommitTicket {
    wal.submit_bytes(&payload(wal.last_entry_id() + 1)).expect("is accepted")
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A runtime of one line.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn entries(disk: &SimDisk) -> u64 {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
    let mut next = 1;
    let read = reader.replay_bytes_from(1, WalReplayMode::BestEffortTail, |entry_id, bytes| {
        assert_eq!(entry_id, next);
        assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
        next += 1;
        Ok(())
    });
    read.expect("reads");
    next - 1
}

#[test]
fn every_way_of_waiting_answers_the_entry() {
    let (disk, _, wal) = open(options());
    assert_eq!(submit(&wal).wait().expect("waits"), 2);
    assert_eq!(submit(&wal).wait_timeout(Duration::from_secs(600)).expect("in time"), 3);
    assert_eq!(submit(&wal).wait_timeout(Duration::MAX).expect("a deadline that never comes"), 4);
    assert_eq!(block_on(submit(&wal)).expect("as a future"), 5);
    let (told, outcome) = mpsc::channel();
    submit(&wal).on_durable(move |result| told.send(result).expect("somebody listens"));
    assert_eq!(outcome.recv().expect("is called").expect("is durable"), 6);
    let ticket = submit(&wal);
    let watched = 7;
    while wal.durable_entry_id() < watched {
        std::thread::yield_now();
    }
    assert!(ticket.is_durable());
    assert_eq!(ticket.entry_ids(), 7..=7);
    let batch = wal.submit_batch_bytes(&[payload(8), payload(9), payload(10)]).expect("is accepted");
    assert_eq!((batch.entry_ids(), batch.entry_id()), (8..=10, 10));
    assert_eq!(block_on(batch).expect("as a whole"), 10);
    assert!(wal.submit_batch_bytes::<&[u8]>(&[]).is_err(), "nothing cannot be durable");
    drop(wal);
    assert_eq!(entries(&disk), 10);
}

#[test]
fn a_dropped_ticket_cancels_nothing() {
    let (disk, faults, wal) = open(options());
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    drop(submit(&wal));
    // One that a task waits for already.
    let mut polled = submit(&wal);
    assert!(Pin::new(&mut polled).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(polled);
    let last = submit(&wal);
    gate.open();
    assert_eq!(last.wait().expect("commits"), 4);
    drop(wal);
    assert_eq!(entries(&disk), 4);
}

#[test]
fn a_deadline_that_passes_leaves_the_ticket_and_its_commit() {
    let (_, faults, wal) = open(options());
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let ticket = submit(&wal);
    for time in [Duration::ZERO, Duration::from_millis(1)] {
        match ticket.wait_timeout(time) {
            Err(PersistenceError::TimedOut { entry_id: 2, durable_entry_id: 1 }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(!ticket.is_durable());
    gate.open();
    assert_eq!(ticket.wait_timeout(Duration::from_secs(600)).expect("commits"), 2);
}

#[test]
fn polling_never_blocks_while_the_device_does() {
    let (_, faults, wal) = open(options());
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let mut tickets: Vec<_> = (0..50).map(|_| submit(&wal)).collect();
    gate.wait_until_held();
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    for ticket in &mut tickets {
        for _ in 0..3 {
            assert!(Pin::new(&mut *ticket).poll(&mut Context::from_waker(&waker)).is_pending());
        }
    }
    gate.open();
    for (ticket, entry_id) in tickets.into_iter().zip(2..) {
        assert_eq!(block_on(ticket).expect("commits"), entry_id);
    }
}

/// Counts calls of a callback, and keeps what each was told.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<PersistenceResult<u64>>>>);

impl Calls {
    fn callback(&self) -> impl FnOnce(PersistenceResult<u64>) + Send + 'static {
        let calls = self.clone();
        move |outcome| calls.0.lock().expect("no panic").push(outcome)
    }

    fn take(&self) -> Vec<PersistenceResult<u64>> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

#[test]
fn callbacks_are_called_once_at_success_at_poison_and_when_it_is_known_already() {
    let (disk, faults, wal) = open(options());
    let calls = Calls::default();
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    faults.inject(At::after_of(Operation::Complete, 1), Fault::Fail(ErrorKind::Other));
    submit(&wal).on_durable(calls.callback());
    gate.wait_until_held();
    // These go with the second commit, which fails.
    submit(&wal).on_durable(|_| panic!("in a callback: the others are told all the same"));
    submit(&wal).on_durable(calls.callback());
    let known = submit(&wal);
    gate.open();
    assert!(matches!(wal.wait_durable(5), Err(PersistenceError::Poisoned { durable_entry_id: 2, .. })));
    known.on_durable(calls.callback());
    // Whoever drove the commit calls back before it does anything else.
    wal.clone().close().expect_err("is poisoned");
    drop(wal);
    let told = calls.take();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told.iter().filter(|outcome| matches!(outcome, Ok(2))).count(), 1);
    let poisoned = |outcome: &&PersistenceResult<u64>| {
        matches!(outcome, Err(PersistenceError::Poisoned { durable_entry_id: 2, .. }))
    };
    assert_eq!(told.iter().filter(poisoned).count(), 2, "{told:?}");
    assert!(entries(&disk) >= 2);
}

#[test]
fn dropping_the_last_handle_commits_what_tickets_wait_for_and_calls_back_first() {
    let (disk, _, wal) = open(options());
    let calls = Calls::default();
    let tickets: Vec<_> = (0..20).map(|_| submit(&wal)).collect();
    submit(&wal).on_durable(calls.callback());
    drop(wal);
    assert!(matches!(calls.take()[..], [Ok(22)]));
    for ticket in tickets {
        assert!(ticket.is_durable());
        ticket.wait().expect("is durable");
    }
    let strict = WalReader::<(), SimDisk>::new(Arc::new(disk)).replay_bytes(WalReplayMode::Strict);
    assert_eq!(strict.expect("the log was sealed").len(), 22);
}

#[test]
fn a_callback_may_use_the_log_and_drop_its_last_handle() {
    let (disk, faults, wal) = open(options());
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let (done, is_done) = mpsc::channel();
    let handle = wal.clone();
    submit(&wal).on_durable(move |outcome| {
        assert_eq!(outcome.expect("is durable"), 2);
        assert_eq!(handle.append_bytes_durable(&payload(3)).expect("commits"), 3);
        handle.submit_bytes(&payload(4)).expect("is accepted").on_durable(move |outcome| {
            done.send(outcome).expect("somebody listens");
        });
        drop(handle);
    });
    drop(wal);
    gate.open();
    assert_eq!(is_done.recv().expect("is called").expect("is durable"), 4);
    // The thread that dropped the handle may still be sealing.
    while WalReader::<(), SimDisk>::new(Arc::new(disk.clone())).replay_bytes(WalReplayMode::Strict).is_err() {
        std::thread::yield_now();
    }
    assert_eq!(entries(&disk), 4);
}

#[test]
fn too_much_that_waits_is_refused_or_waits_by_choice() {
    let small = WalOptions { in_flight_bytes_max: 1000, ..options() };
    let refusing = WalOptions { backpressure: Backpressure::Refuse, ..small.clone() };
    for (options, refuses) in [(refusing, true), (small, false)] {
        let (disk, faults, wal) = open(options);
        let gate = Gate::new();
        faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
        let mut tickets = Vec::new();
        let refusal = loop {
            match wal.submit_bytes(&payload(wal.last_entry_id() + 1)) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => break error,
            }
            assert!(tickets.len() < 1000, "never refused");
        };
        match refusal {
            PersistenceError::WouldBlock { bytes, bytes_max: 1000 } => assert!(bytes >= 1000),
            other => panic!("{other}"),
        }
        let last = wal.last_entry_id();
        std::thread::scope(|scope| {
            if refuses {
                let refused = wal.append_bytes(&payload(last + 1)).expect_err("is refused");
                assert!(matches!(refused, PersistenceError::WouldBlock { .. }), "{refused}");
                assert_eq!(wal.last_entry_id(), last, "and appended nothing");
                gate.open();
            } else {
                let waits = scope.spawn(|| wal.append_bytes(&payload(last + 1)));
                gate.wait_until_held();
                gate.open();
                assert_eq!(waits.join().expect("ends").expect("appends"), last + 1);
            }
        });
        for ticket in tickets {
            ticket.wait().expect("commits");
        }
        let next = wal.last_entry_id() + 1;
        assert_eq!(wal.append_bytes(&payload(next)).expect("there is room again"), next);
        drop(wal);
        assert_eq!(entries(&disk), next);
    }
}

#[test]
fn what_is_flushed_becomes_durable_although_there_is_no_space_for_what_follows() {
    let options = WalOptions { segment_bytes_max: 1, flush_policy: FlushPolicy::Manual, ..options() };
    let (_, faults, wal) = open(options);
    wal.append_bytes(&payload(2)).expect("appends");
    wal.flush().expect("flushes");
    wal.append_bytes(&payload(3)).expect("appends");
    // Each entry has a segment of its own, and the third gets none.
    faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
    wal.wait_durable(2).expect("it needs no space");
    assert!(!faults.all_struck(), "a segment was asked for, for entries that nobody waits for");
    assert_eq!(wal.durable_entry_id(), 2);
    assert!(wal.wait_durable(3).expect_err("there is no space").is_out_of_space());
    wal.wait_durable(3).expect("there is now");
}

/// A clock that stands still for so many looks, and then shows that every segment is too old.
#[derive(Debug)]
struct Clock {
    random: SeededEnvironment,
    young_looks: AtomicU64,
}

impl Environment for Clock {
    fn random(&self) -> u64 {
        self.random.random()
    }

    fn elapsed(&self) -> Duration {
        let left =
            self.young_looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() { Duration::ZERO } else { Duration::from_secs(3600) }
    }
}

/// Between looking whether a batch needs a new segment and making one, more may be appended, and time passes.
/// The segment must not be left while commits of it are in flight.
#[test]
fn no_segment_is_left_while_commits_of_it_are_in_flight() {
    for young_looks in 0..12 {
        let clock =
            Arc::new(Clock { random: SeededEnvironment::new(1), young_looks: AtomicU64::new(u64::MAX) });
        let options = WalOptions {
            environment: Arc::clone(&clock) as Arc<dyn Environment>,
            segment_age_max: Some(Duration::from_secs(60)),
            pipeline_depth: Some(4),
            ..options()
        };
        let (disk, faults, wal) = open(options);
        let gate = Gate::new();
        faults.inject(At::next_of(Operation::Submit), Fault::Hold(gate.clone()));
        let first = submit(&wal);
        gate.wait_until_held();
        let second = submit(&wal);
        clock.young_looks.store(young_looks, Ordering::Relaxed);
        gate.open();
        assert_eq!(first.wait().expect("commits"), 2, "{young_looks}");
        assert_eq!(second.wait().expect("commits"), 3, "{young_looks}");
        drop(wal);
        assert_eq!(entries(&disk), 3, "{young_looks}");
    }
}

#[test]
fn without_space_for_a_segment_tickets_are_refused_and_their_entries_go_with_the_next_commit() {
    let (disk, faults, wal) = open(WalOptions { segment_bytes_max: 1, ..options() });
    faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
    let refused = submit(&wal).wait().expect_err("there is no space");
    assert!(refused.is_out_of_space(), "{refused}");
    assert_eq!((wal.last_entry_id(), wal.durable_entry_id()), (2, 1));
    faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
    let refused = block_on(submit(&wal)).expect_err("there is still none");
    assert!(refused.is_out_of_space(), "{refused}");
    faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
    let (told, outcome) = mpsc::channel();
    submit(&wal).on_durable(move |result| told.send(result).expect("somebody listens"));
    assert!(outcome.recv().expect("is called").expect_err("there is none").is_out_of_space());
    // Space is freed: the same writer goes on, with everything that was appended.
    assert_eq!(submit(&wal).wait().expect("commits"), 5);
    wal.close().expect("closes");
    assert_eq!(entries(&disk), 5);
}

/// Five commits are in flight, and the one that completes third fails.
#[test]
fn a_commit_that_fails_among_five_in_flight_poisons_all_behind_it() {
    for seed in 0..20 {
        let (disk, faults) = (SimDisk::new(seed), Faults::new());
        let options = WalOptions { pipeline_depth: Some(5), ..options() };
        let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
        assert_eq!(wal.append_bytes_durable(&payload(1)).expect("commits"), 1);
        let (all_submitted, reaping) = (Gate::new(), Gate::new());
        let submitted_before =
            faults.trace().iter().filter(|(call, _)| *call == Operation::Submit).count() as u64;
        faults.inject(At::next_of(Operation::Reap), Fault::Hold(reaping.clone()));
        faults.inject(At::after_of(Operation::Submit, 4), Fault::Hold(all_submitted.clone()));
        faults.inject(At::after_of(Operation::Complete, 2), Fault::Fail(ErrorKind::Other));
        // Long enough for each to be one frame, and told apart by order alone.
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (2..=6)
                .map(|entry_id| {
                    // The one before has been submitted, or both could go in one frame.
                    let submits =
                        || faults.trace().iter().filter(|(call, _)| *call == Operation::Submit).count();
                    while (submits() as u64) < submitted_before + entry_id - 2 {
                        std::thread::yield_now();
                    }
                    let wal = &wal;
                    scope.spawn(move || wal.append_bytes_durable(&payload(entry_id)))
                })
                .collect();
            all_submitted.wait_until_held();
            all_submitted.open();
            reaping.open();
            threads.into_iter().map(|thread| thread.join().expect("ends")).collect()
        });
        let durable = wal.durable_entry_id();
        for (entry_id, outcome) in (2..).zip(outcomes) {
            match outcome {
                Ok(id) => assert!(id == entry_id && id <= durable, "seed {seed}: {id}, durable {durable}"),
                Err(PersistenceError::Poisoned { durable_entry_id, .. }) => {
                    assert!(durable_entry_id <= durable && entry_id > durable_entry_id, "seed {seed}");
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        assert!(durable < 6, "seed {seed}: one of them failed");
        assert!(matches!(wal.append_bytes(b"x"), Err(PersistenceError::Poisoned { .. })));
        drop(wal);
        assert!(entries(&disk) >= durable);
        let opened = WalWriter::<(), SimDisk>::open(Arc::new(disk.after_kill())).expect("opens");
        assert!(opened.last_entry_id() >= durable);
    }
}

/// Several threads, every way of waiting, several commits in flight that complete in any order: what was
/// acknowledged survives every power cut.
#[test]
fn no_power_cut_loses_what_tickets_acknowledged() {
    for seed in crate::power_cut::seeds(6) {
        let disk = SimDisk::new(seed);
        let options = WalOptions {
            pipeline_depth: Some(1 + seed as usize % 5),
            segment_bytes_max: [3000, 20_000][seed as usize % 2],
            ..options()
        };
        let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options).expect("opens");
        let appending = Mutex::new(());
        // The payload follows from the id, so ids are drawn one at a time; waiting is not serialised.
        let draw = |submit: &dyn Fn(&[u8]) -> PersistenceResult<CommitTicket>| {
            let _one = appending.lock().expect("no panic");
            submit(&payload(wal.last_entry_id() + 1)).expect("is accepted")
        };
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (wal, disk, draw) = (&wal, &disk, &draw);
                scope.spawn(move || {
                    for step in 0..8 {
                        let ticket = draw(&|bytes| wal.submit_bytes(bytes));
                        match (thread + step) % 4 {
                            0 => disk.mark(ticket.wait().expect("commits")),
                            1 => disk.mark(block_on(ticket).expect("commits")),
                            2 => {
                                let disk = disk.clone();
                                ticket.on_durable(move |id| disk.mark(id.expect("commits")));
                            }
                            _ => disk.mark(wal.durable_entry_id()),
                        }
                    }
                });
            }
        });
        wal.close().expect("closes");
        let options = SimOptions { seed, images_per_point: 6, ..SimOptions::default() };
        let report = check_crashes(&disk, &options, check);
        let report = report.unwrap_or_else(|failure| panic!("DURABILITY_SEED={seed}: {failure}"));
        println!("tickets: {} images of {} crash points", report.images, report.points);
    }
}

/// Nobody is left waiting: threads, tasks and callbacks mixed, with and without depth, many times over.
#[test]
fn nobody_is_left_waiting() {
    for depth in [None, Some(1), Some(3)] {
        let disk = SimDisk::new(7);
        let options = WalOptions {
            pipeline_depth: depth,
            segment_bytes_max: 200_000,
            in_flight_bytes_max: 20_000,
            ..options()
        };
        let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk), options).expect("opens");
        let called = Arc::new(AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (wal, called) = (wal.clone(), Arc::clone(&called));
                scope.spawn(move || {
                    for step in 0..300 {
                        let ticket = loop {
                            match wal.submit_bytes(&[thread; 100]) {
                                Ok(ticket) => break ticket,
                                Err(PersistenceError::WouldBlock { .. }) => std::thread::yield_now(),
                                Err(error) => panic!("{error}"),
                            }
                        };
                        match (usize::from(thread) + step) % 5 {
                            0 => drop(ticket.wait().expect("commits")),
                            1 => drop(block_on(ticket).expect("commits")),
                            2 => {
                                let called = Arc::clone(&called);
                                ticket.on_durable(move |outcome| {
                                    outcome.expect("commits");
                                    called.fetch_add(1, Ordering::SeqCst);
                                });
                            }
                            3 => drop(wal.append_bytes_durable(&[thread; 50]).expect("commits")),
                            _ => drop(ticket.wait_timeout(Duration::from_secs(600)).expect("commits")),
                        }
                    }
                });
            }
        });
        wal.close().expect("closes");
        assert_eq!(called.load(Ordering::SeqCst), 6 * 60, "depth {depth:?}");
    }
}

/// Says what it was told, and then panics.
struct Panics(AtomicU64);

impl WalObserver for Panics {
    fn on_sync(&self, entry_id: u64) {
        self.0.store(entry_id, Ordering::SeqCst);
        panic!("an observer panics");
    }
}

#[test]
fn an_observer_that_panics_takes_no_thread_with_it() {
    let disk = SimDisk::new(1);
    let mut single = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options()).expect("opens");
    let observer = Arc::new(Panics(AtomicU64::new(0)));
    single.set_observer(Arc::clone(&observer) as Arc<dyn WalObserver>);
    let wal = SyncWalWriter::from_writer(single).expect("shares");
    for entry_id in 1..=3 {
        let ticket = wal.submit_bytes(&payload(entry_id)).expect("is accepted");
        assert_eq!(block_on(ticket).expect("commits"), entry_id);
    }
    drop(wal);
    assert_eq!(observer.0.load(Ordering::SeqCst), 3);
    assert_eq!(entries(&disk), 3);
}

#[test]
fn a_log_in_memory_has_no_tickets_and_says_so() {
    let memory: Arc<dyn Directory> = Arc::new(durability::MemoryDirectory::new());
    let wal = SyncWalWriter::<()>::open(memory).expect("opens");
    let refused = wal.submit_bytes(b"entry").map(drop).expect_err("there is no stable storage");
    assert!(matches!(refused, PersistenceError::NotSupported { .. }), "{refused}");
    assert_eq!(wal.append_bytes(b"entry").expect("appends"), 1, "and nothing is poisoned");
}
