//! Who is told of a commit: on which thread, and what he may do there. Whatever it is, nobody waits for ever.

use crate::support::{PATIENCE, within_patience};
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{CommitTicket, PrepareAhead, SyncWalWriter, WalObserver, WalOptions, WalWriter};
use durability::{PersistenceError, PersistenceResult};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;

/// A log with one durable entry.
fn open(observer: Option<Arc<dyn WalObserver>>) -> (Faults, Wal) {
    let faults = Faults::new();
    // What strikes a call here must not strike one of the thread that makes segments.
    let prepare_ahead = PrepareAhead::Never;
    let options =
        WalOptions { preallocate_bytes: 0, prepare_ahead, pipeline_depth: Some(1), ..WalOptions::default() };
    let disk = Arc::new(faults.over(SimDisk::new(1)));
    let mut single = WalWriter::open_with(disk, options).expect("opens");
    observer.into_iter().for_each(|observer| single.set_observer(observer));
    let wal = Wal::from_writer(single).expect("shares");
    assert_eq!(wal.append_bytes_durable(b"first").expect("commits"), 1);
    (faults, wal)
}

fn submit(wal: &Wal) -> CommitTicket {
    wal.submit_bytes(b"entry").expect("is accepted")
}

fn this_thread() -> (std::thread::ThreadId, Option<String>) {
    let thread = std::thread::current();
    (thread.id(), thread.name().map(str::to_owned))
}

type Waits = fn(CommitTicket) -> PersistenceResult<u64>;

/// Every way of waiting that blocks a thread. The deadline is far beyond the patience of the test.
const WAYS: [(&str, Waits); 3] = [
    ("wait", |ticket| ticket.wait()),
    ("wait_timeout", |ticket| ticket.wait_timeout(100 * PATIENCE)),
    ("await", |ticket| pollster::block_on(ticket)),
];

/// The log's own thread, which would drive, is inside the callback.
#[test]
fn a_callback_may_wait_for_a_ticket_in_every_way() {
    for (way, wait) in WAYS {
        let (_, wal) = open(None);
        let (told, outcome) = mpsc::channel();
        let handle = wal.clone();
        submit(&wal).on_durable(move |_| {
            let waited = wait(submit(&handle));
            let _ = told.send(waited);
        });
        let waited = outcome.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{way}: it hangs"));
        assert_eq!(waited.expect("commits"), 3, "{way}");
        within_patience(move || wal.close()).expect("closes");
    }
}

/// Waits for a ticket, once, when it is told that something is durable.
struct WaitsOnSync {
    wait: Waits,
    ticket: Mutex<Option<CommitTicket>>,
    told: Mutex<mpsc::Sender<(PersistenceResult<u64>, std::thread::ThreadId)>>,
}

impl WalObserver for WaitsOnSync {
    fn on_sync(&self, _: u64) {
        let ticket = self.ticket.lock().expect("no panic").take();
        if let Some(ticket) = ticket {
            let waited = ((self.wait)(ticket), std::thread::current().id());
            let _ = self.told.lock().expect("no panic").send(waited);
        }
    }
}

/// A thread that blocks drives, and is told; the log's own thread sleeps, because there was nothing that it could do
/// when the ticket was submitted.
#[test]
fn who_is_told_on_a_blocked_thread_may_wait_for_a_ticket_that_nobody_has_begun() {
    for (way, wait) in WAYS {
        let (told, outcome) = mpsc::channel();
        let observer = Arc::new(WaitsOnSync { wait, ticket: Mutex::new(None), told: Mutex::new(told) });
        let (faults, wal) = open(Some(Arc::clone(&observer) as Arc<dyn WalObserver>));
        assert_eq!(submit(&wal).wait().expect("commits"), 2);
        let gate = Gate::new();
        faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
        let handle = wal.clone();
        let commits = std::thread::spawn(move || handle.append_bytes_durable(b"blocks"));
        let driver = commits.thread().id();
        gate.wait_until_held();
        *observer.ticket.lock().expect("no panic") = Some(submit(&wal));
        gate.open();
        let waited = outcome.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{way}: it hangs"));
        assert_eq!((waited.0.expect("commits"), waited.1), (4, driver), "{way}");
        assert_eq!(commits.join().expect("ends").expect("commits"), 3, "{way}");
        within_patience(move || wal.close()).expect("closes");
    }
}

/// A deadline holds on the thread that drives, too.
#[test]
fn a_deadline_passes_while_the_same_thread_drives() {
    let (faults, wal) = open(None);
    let (gate, (told, outcome)) = (Gate::new(), mpsc::channel());
    let (handle, stalls) = (wal.clone(), gate.clone());
    submit(&wal).on_durable(move |_| {
        faults.inject(At::next_of(Operation::Complete), Fault::Stall(stalls));
        let ticket = submit(&handle);
        let _ = told.send(ticket.wait_timeout(std::time::Duration::from_millis(1)));
    });
    let waited = outcome.recv_timeout(PATIENCE).expect("it does not outwait its deadline");
    assert!(
        matches!(waited, Err(PersistenceError::TimedOut { entry_id: 3, durable_entry_id: 2 })),
        "{waited:?}"
    );
    gate.open();
    within_patience(move || wal.wait_durable(3)).expect("commits all the same");
}

/// The documentation of `on_durable` names the threads.
#[test]
fn a_callback_runs_on_the_logs_thread_or_on_the_caller_who_finds_it_known() {
    let (faults, wal) = open(None);
    let (told, outcome) = mpsc::channel();
    let tell = |told: &mpsc::Sender<_>| {
        let told = told.clone();
        move |result: PersistenceResult<u64>| drop(told.send((result, this_thread())))
    };
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    submit(&wal).on_durable(tell(&told));
    gate.open();
    let (result, (_, name)) = outcome.recv_timeout(PATIENCE).expect("is called");
    assert_eq!((result.expect("commits"), name.as_deref()), (2, Some("durability-commit")));
    // Known already: here, before the call returns.
    let known = submit(&wal);
    wal.wait_durable(3).expect("commits");
    known.on_durable(tell(&told));
    let (result, (id, _)) = outcome.try_recv().expect("was called by now");
    assert_eq!((result.expect("is durable"), id), (3, std::thread::current().id()));
    // Known to be impossible: the same.
    faults.inject(At::next_of(Operation::Complete), Fault::Fail(std::io::ErrorKind::Other));
    let doomed = submit(&wal);
    wal.wait_durable(4).expect_err("is poisoned");
    doomed.on_durable(tell(&told));
    let (result, (id, _)) = outcome.try_recv().expect("was called by now");
    assert!(matches!(result, Err(PersistenceError::Poisoned { durable_entry_id: 3, .. })), "{result:?}");
    assert_eq!(id, std::thread::current().id());
}

/// While the log's own thread is inside a callback, whoever blocks drives, and calls back.
#[test]
fn a_callback_runs_on_a_blocked_thread_where_that_one_collects() {
    let (faults, wal) = open(None);
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let (is_inside, (ends, may_end)) = (mpsc::channel(), mpsc::channel());
    submit(&wal).on_durable(move |_| {
        is_inside.0.send(()).expect("the test waits");
        may_end.recv().expect("the test says when");
    });
    gate.open();
    is_inside.1.recv_timeout(PATIENCE).expect("is called");
    let (told, outcome) = mpsc::channel();
    let callback = {
        let told = told.clone();
        move |result: PersistenceResult<u64>| drop(told.send((result, this_thread().0)))
    };
    submit(&wal).on_durable(|_| panic!("in a callback on a thread that blocks"));
    submit(&wal).on_durable(callback);
    let handle = wal.clone();
    let blocks = std::thread::spawn(move || handle.append_bytes_durable(b"blocks"));
    let driver = blocks.thread().id();
    let (result, id) = outcome.recv_timeout(PATIENCE).expect("is called");
    assert_eq!((result.expect("commits"), id), (4, driver));
    assert_eq!(blocks.join().expect("the panic stayed there").expect("commits"), 5);
    ends.send(()).expect("is still inside");
    assert_eq!(submit(&wal).wait().expect("goes on"), 6);
}

#[test]
fn a_callback_that_panics_takes_neither_the_logs_thread_nor_later_commits_with_it() {
    let (_, wal) = open(None);
    let (told, outcome) = mpsc::channel();
    for entry_id in 2..=6 {
        submit(&wal).on_durable(move |result| panic!("in a callback of {result:?}"));
        // Only the log's own thread drives: nobody blocks.
        let told = told.clone();
        submit(&wal).on_durable(move |result| drop(told.send(result)));
        let result = outcome.recv_timeout(PATIENCE).expect("is called all the same");
        assert_eq!(result.expect("commits"), 2 * entry_id - 1);
    }
    within_patience(move || wal.close()).expect("closes");
}

/// Panics while it is dropped, for as long as nobody panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

#[test]
fn what_a_callback_panics_with_takes_nothing_with_it_either() {
    within_patience(|| {
        let (_, wal) = open(None);
        submit(&wal).on_durable(|_| std::panic::panic_any(Bomb));
        for _ in 0..3 {
            submit(&wal).wait().expect("the log goes on");
        }
        wal.append_bytes_durable(b"last").expect("the log goes on");
    });
}

/// Keeps on which threads it was told.
#[derive(Default)]
struct Threads(Mutex<Vec<std::thread::ThreadId>>);

impl WalObserver for Threads {
    fn on_sync(&self, _: u64) {
        self.0.lock().expect("no panic").push(std::thread::current().id());
    }
}

#[test]
fn a_lone_committer_that_blocks_drives_itself_and_no_thread_is_handed_its_commit() {
    let observer = Arc::new(Threads::default());
    let (_, wal) = open(Some(Arc::clone(&observer) as Arc<dyn WalObserver>));
    let me = std::thread::current().id();
    for _ in 0..20 {
        wal.append_bytes_durable(b"alone").expect("commits");
    }
    // Also where the log has a thread of its own, which sleeps.
    assert_eq!(submit(&wal).wait().expect("commits"), 22);
    while observer.0.lock().expect("no panic").len() < 22 {
        std::thread::yield_now();
    }
    observer.0.lock().expect("no panic").truncate(21);
    for _ in 0..20 {
        wal.append_bytes_durable(b"alone").expect("commits");
    }
    let threads = observer.0.lock().expect("no panic");
    assert_eq!(threads.len(), 41);
    assert!(threads.iter().all(|thread| *thread == me));
}

/// What a waker saw when it was woken: the watermark, and how many commits had begun.
struct Sees {
    wal: Wal,
    faults: Faults,
    seen: Mutex<Vec<(u64, usize)>>,
}

impl Sees {
    fn begun(faults: &Faults) -> usize {
        faults.trace().iter().filter(|(call, _)| *call == Operation::Submit).count()
    }
}

impl Wake for Sees {
    fn wake(self: Arc<Self>) {
        let seen = (self.wal.durable_entry_id(), Self::begun(&self.faults));
        self.seen.lock().expect("no panic").push(seen);
    }
}

#[test]
fn whoever_is_woken_is_done_and_hears_of_it_before_the_next_commit_begins() {
    let (faults, wal) = open(None);
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let first = submit(&wal);
    gate.wait_until_held();
    // These go with the next commit.
    let mut tickets: Vec<_> = [first].into_iter().chain((0..3).map(|_| submit(&wal))).collect();
    let sees: Vec<_> = tickets
        .iter_mut()
        .map(|ticket| {
            let seen = Mutex::default();
            let sees = Arc::new(Sees { wal: wal.clone(), faults: faults.clone(), seen });
            let waker = Waker::from(Arc::clone(&sees));
            assert!(Pin::new(ticket).poll(&mut Context::from_waker(&waker)).is_pending());
            sees
        })
        .collect();
    let begun = Sees::begun(&faults);
    gate.open();
    let seen = |sees: &Arc<Sees>| sees.seen.lock().expect("no panic").clone();
    within_patience({
        let sees = sees.clone();
        move || {
            while sees.iter().any(|sees| sees.seen.lock().expect("no panic").is_empty()) {
                std::thread::yield_now();
            }
        }
    });
    for (entry_id, sees) in (2..).zip(&sees) {
        let seen = seen(sees);
        assert!(seen.len() == 1 && seen[0].0 >= entry_id, "entry {entry_id}: {seen:?}");
    }
    assert_eq!(seen(&sees[0]), [(2, begun)], "those who are done come first");
}

/// A task that only wakers keep alive, as those of many executors are.
struct Task(Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>);

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

/// Polls a ticket that several tasks may poll.
struct Shared(Arc<Mutex<CommitTicket>>);

impl Future for Shared {
    type Output = PersistenceResult<u64>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut *self.0.lock().expect("no panic")).poll(context)
    }
}

/// What the device waits for.
struct Opens(Gate);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// What a task owns; it goes in this order.
struct Owns {
    _device: Opens,
    _wal: Wal,
    _other: CommitTicket,
}

#[test]
fn a_task_that_goes_because_another_one_polls_may_have_held_the_last_handle() {
    let (faults, wal) = open(None);
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let ticket = Arc::new(Mutex::new(submit(&wal)));
    gate.wait_until_held();
    let (first, reader) = (Shared(Arc::clone(&ticket)), wal.reader());
    let owns = Owns { _device: Opens(gate), _other: submit(&wal), _wal: wal };
    let task = Arc::new(Task(Mutex::new(None)));
    let waker = Waker::from(Arc::clone(&task));
    let mut future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        let _ = first.await;
        drop(owns);
    });
    assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    *task.0.lock().expect("no panic") = Some(future);
    // Now the ticket's registration alone keeps the task, and what it owns.
    drop((task, waker));
    let polled = within_patience(move || {
        pin!(Shared(ticket)).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    });
    assert!(polled);
    assert!(reader.read_bytes(3).expect("was committed").is_durable(), "the log was closed");
}
