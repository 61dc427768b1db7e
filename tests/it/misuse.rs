//! Bad input, logs that are closed or poisoned, encoders and observers that panic, runtimes that go away: each has
//! one defined outcome, and takes nothing else with it.

use crate::support::within_patience;
use durability::codec::Codec;
use durability::limits::{BATCH_BYTES_MAX, ENTRY_BYTES_MAX};
use durability::storage::FlushPolicy;
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{
    Backpressure, PrepareAhead, SyncWalWriter, WalMaintenance, WalObserver, WalOptions, WalReader,
    WalReplayMode, WalWriter,
};
use durability::{PersistenceError, PersistenceResult};
use std::future::Future;
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;

fn options() -> WalOptions {
    // What strikes a call here must not strike one of the thread that makes segments.
    let prepare_ahead = PrepareAhead::Never;
    WalOptions {
        preallocate_bytes: 0,
        prepare_ahead,
        flush_policy: FlushPolicy::Manual,
        ..WalOptions::default()
    }
}

fn open(options: WalOptions) -> (SimDisk, Faults, Wal) {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
    (disk, faults, wal)
}

/// What a strict replay of the disk finds.
fn entries(disk: &SimDisk) -> Vec<Vec<u8>> {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
    let read = reader.replay_bytes(WalReplayMode::Strict).expect("the log was sealed");
    read.into_iter().map(|record| record.payload).collect()
}

#[test]
fn entries_of_no_bytes_and_of_all_that_may_be_are_kept_and_larger_ones_change_nothing() {
    let (disk, _, wal) = open(options());
    let largest = vec![7; ENTRY_BYTES_MAX];
    assert_eq!(wal.append_bytes(b"").expect("appends"), 1);
    assert_eq!(wal.append_bytes_durable(b"").expect("commits"), 2);
    assert_eq!(wal.submit_bytes(b"").expect("is accepted").wait().expect("commits"), 3);
    assert_eq!(wal.append_batch_bytes(&[b"", b"", b""]).expect("appends"), [4, 5, 6]);
    assert_eq!(wal.append_bytes_durable(&largest).expect("commits"), 7);
    let too_large = vec![7; ENTRY_BYTES_MAX + 1];
    let refused = |result: PersistenceResult<()>, max: usize| match result {
        Err(PersistenceError::PayloadTooLarge { bytes, bytes_max }) => {
            assert!(bytes > bytes_max && bytes_max == max as u64);
        }
        other => panic!("{other:?}"),
    };
    refused(wal.append_bytes(&too_large).map(drop), ENTRY_BYTES_MAX);
    refused(wal.append_bytes_durable(&too_large).map(drop), ENTRY_BYTES_MAX);
    refused(wal.submit_bytes(&too_large).map(drop), ENTRY_BYTES_MAX);
    refused(wal.append_batch_bytes(&[b"good", &too_large[..]]).map(drop), ENTRY_BYTES_MAX);
    refused(wal.submit_batch_bytes(&[b"good", &too_large[..]]).map(drop), ENTRY_BYTES_MAX);
    let batch = [&largest[..]; 1 + BATCH_BYTES_MAX / ENTRY_BYTES_MAX];
    refused(wal.append_batch_bytes(&batch).map(drop), BATCH_BYTES_MAX);
    refused(wal.submit_batch_bytes(&batch).map(drop), BATCH_BYTES_MAX);
    assert_eq!(wal.last_entry_id(), 7, "and appended nothing");
    assert!(wal.append_batch_bytes::<&[u8]>(&[]).expect("no entries are none").is_empty());
    wal.close().expect("closes");
    let read = entries(&disk);
    assert_eq!((read.len(), read.iter().filter(|entry| entry.is_empty()).count()), (7, 6));
    assert!(read[6] == largest);
}

/// Alone it fits into a frame, behind what is pending it does not.
#[test]
fn a_batch_that_does_not_fit_behind_what_is_pending_waits_or_is_told_so() {
    // Much may wait before it has to go.
    let (buffer_bytes, in_flight_bytes_max) = (BATCH_BYTES_MAX / 2, BATCH_BYTES_MAX / 2);
    let (disk, faults, wal) = open(WalOptions { buffer_bytes, in_flight_bytes_max, ..options() });
    wal.append_bytes_durable(b"first").expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let first = wal.submit_bytes(b"in flight").expect("is accepted");
    gate.wait_until_held();
    wal.append_bytes(&vec![1; ENTRY_BYTES_MAX]).expect("appends");
    let quarter = vec![2; ENTRY_BYTES_MAX - 4];
    let batch = [&quarter[..]; BATCH_BYTES_MAX / ENTRY_BYTES_MAX];
    let refused = wal.submit_batch_bytes(&batch).map(drop).expect_err("not now");
    assert!(matches!(refused, PersistenceError::WouldBlock { .. }), "{refused}");
    gate.open();
    first.wait().expect("commits");
    assert_eq!(wal.append_batch_bytes(&batch).expect("waits until it fits"), [4, 5, 6, 7]);
    wal.close().expect("closes");
    assert_eq!(entries(&disk).len(), 7);
}

#[test]
fn a_batch_that_is_larger_than_a_segment_gets_one_of_its_own() {
    let (disk, _, wal) = open(WalOptions { segment_bytes_max: 4096, ..options() });
    wal.append_bytes_durable(b"before").expect("commits");
    let ids = wal.append_batch_bytes(&[&[1; 3000][..]; 5]).expect("appends");
    assert_eq!(ids, [2, 3, 4, 5, 6]);
    let ticket = wal.submit_batch_bytes(&[&[2; 3000][..]; 5]).expect("is accepted");
    assert_eq!(ticket.wait().expect("commits"), 11);
    assert_eq!(wal.append_bytes_durable(b"behind").expect("commits"), 12);
    wal.close().expect("closes");
    assert_eq!(entries(&disk).len(), 12);
    let ranges = WalMaintenance::new(Arc::new(disk)).segment_ranges_strict().expect("reads");
    let begins: Vec<_> = ranges.into_iter().map(|range| range.start_entry_id).collect();
    assert_eq!(begins, [1, 2, 12], "what is too large for a segment has one of its own");
}

#[test]
fn every_operation_of_a_closed_log_says_so_and_what_was_committed_is_told() {
    let (disk, _, wal) = open(options());
    let before = wal.submit_bytes(b"before").expect("is accepted");
    let waits = wal.submit_bytes(b"waits").expect("is accepted");
    let handle = wal.clone();
    wal.close().expect("closes");
    assert_eq!((before.wait().expect("is durable"), waits.is_durable()), (1, true));
    let closed = |result: PersistenceResult<()>| match result {
        Err(error @ PersistenceError::InvalidState { .. }) => {
            assert!(error.to_string().contains("closed"), "{error}");
        }
        other => panic!("{other:?}"),
    };
    closed(handle.append_bytes(b"x").map(drop));
    closed(handle.append_batch_bytes(&[b"x"]).map(drop));
    closed(handle.append_bytes_durable(b"x").map(drop));
    closed(handle.submit_bytes(b"x").map(drop));
    closed(pollster::block_on(handle.clone().close_async()));
    closed(handle.clone().close());
    // Nothing is left to be done.
    handle.flush().expect("everything is flushed");
    handle.flush_and_sync().expect("everything is durable");
    handle.wait_durable(2).expect("is durable");
    assert_eq!((handle.last_entry_id(), handle.durable_entry_id()), (2, 2));
    // A ticket and a handle are kept: they hold no lock.
    let next = WalWriter::<(), SimDisk>::open(Arc::new(disk)).expect("the locks are free");
    assert_eq!(next.last_entry_id(), 2);
    drop((handle, waits));
}

#[test]
fn every_operation_of_a_poisoned_shared_log_says_so_in_every_way_of_waiting() {
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        let (disk, faults, wal) = open(options());
        assert_eq!(wal.append_bytes_durable(b"safe").expect("commits"), 1);
        let gate = Gate::new();
        faults.inject(At::next_of(Operation::Reap), Fault::Hold(gate.clone()));
        faults.inject(At::next_of(Operation::Complete), Fault::Fail(kind));
        let tickets: Vec<_> = (0..4).map(|_| wal.submit_bytes(b"doubtful").expect("is accepted")).collect();
        gate.wait_until_held();
        gate.open();
        let poisoned = |result: PersistenceResult<()>| match result {
            Err(PersistenceError::Poisoned { durable_entry_id: 1, cause }) => {
                assert_eq!(cause.is_out_of_space(), kind == ErrorKind::StorageFull, "{cause}");
            }
            other => panic!("{kind}: {other:?}"),
        };
        let mut tickets = tickets.into_iter();
        let mut next = || tickets.next().expect("there are four");
        poisoned(next().wait().map(drop));
        poisoned(next().wait_timeout(Duration::from_secs(60)).map(drop));
        poisoned(pollster::block_on(next()).map(drop));
        let (told, outcome) = mpsc::channel();
        next().on_durable(move |result| told.send(result).expect("somebody listens"));
        poisoned(outcome.recv().expect("is called").map(drop));
        poisoned(wal.append_bytes(b"x").map(drop));
        poisoned(wal.append_batch_bytes(&[b"x"]).map(drop));
        poisoned(wal.append_bytes_durable(b"x").map(drop));
        poisoned(wal.submit_bytes(b"x").map(drop));
        poisoned(wal.flush());
        poisoned(wal.flush_and_sync());
        poisoned(wal.wait_durable(2));
        poisoned(pollster::block_on(wal.clone().close_async()));
        // Handles are left, and hold nothing.
        drop(WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("a log that was closed is free"));
        poisoned(wal.clone().close());
        wal.wait_durable(1).expect("is durable all the same");
        drop(wal);
        let mut reopened = WalWriter::<(), SimDisk>::open(Arc::new(disk)).expect("reopens");
        assert!(reopened.last_entry_id() >= 1);
        reopened.append_bytes_durable(b"goes on").expect("commits");
    }
}

/// Panics when it has written half of an entry.
struct Panics;

impl Codec<()> for Panics {
    fn encode(&self, _: &(), out: &mut dyn Write) -> PersistenceResult<()> {
        out.write_all(b"half of an entry").expect("memory");
        panic!("an encoder panics");
    }
    fn decode(&self, _: &[u8]) -> PersistenceResult<()> {
        Ok(())
    }
}

#[test]
fn an_encoder_that_panics_leaves_nothing_behind() {
    let (disk, _, wal) = open(options());
    wal.append_bytes(b"before").expect("appends");
    let panics = |act: &dyn Fn()| assert!(catch_unwind(AssertUnwindSafe(act)).is_err());
    panics(&|| drop(wal.append_encoded(&Panics, &())));
    panics(&|| drop(wal.submit_encoded(&Panics, &())));
    assert_eq!(wal.last_entry_id(), 1);
    assert_eq!(wal.append_bytes_durable(b"behind").expect("commits"), 2);
    wal.close().expect("closes");
    assert_eq!(entries(&disk), [&b"before"[..], b"behind"]);
    // And a writer of one owner.
    let disk = SimDisk::new(2);
    let single = Mutex::new(WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens"));
    panics(&|| drop(single.lock().expect("once").append_encoded(&Panics, &())));
    single.clear_poison();
    let mut single = single.into_inner().expect("no poison");
    assert_eq!(single.append_bytes_durable(b"behind").expect("commits"), 1);
    single.close().expect("closes");
    assert_eq!(entries(&disk), [b"behind"]);
}

/// Panics at everything that it is told while a commit is driven.
struct Grumbles(AtomicU64);

impl WalObserver for Grumbles {
    fn on_segment_rotate(&self, _: u64, _: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("an observer panics");
    }
    fn on_flush(&self, _: u64) {
        panic!("an observer panics");
    }
}

#[test]
fn an_observer_that_panics_at_rotation_poisons_nothing() {
    let disk = SimDisk::new(1);
    let small = WalOptions { segment_bytes_max: 1, ..options() };
    let mut single = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), small).expect("opens");
    let observer = Arc::new(Grumbles(AtomicU64::new(0)));
    single.set_observer(Arc::clone(&observer) as Arc<dyn WalObserver>);
    let wal = SyncWalWriter::from_writer(single).expect("shares");
    for entry_id in 1..=5 {
        assert_eq!(wal.append_bytes_durable(b"blocks").expect("commits"), 2 * entry_id - 1);
        assert_eq!(wal.submit_bytes(b"waits").expect("is accepted").wait().expect("commits"), 2 * entry_id);
    }
    assert_eq!(observer.0.load(Ordering::SeqCst), 9);
    wal.close().expect("closes");
    assert_eq!(entries(&disk).len(), 10);
}

/// An executor on this thread that remembers what it was told after it is gone.
#[derive(Default)]
struct Executor {
    tasks: Vec<Arc<Task>>,
}

struct Task {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    woken: AtomicU64,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
    }
}

impl Executor {
    /// Polls a new task once.
    fn spawn(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        let task = Arc::new(Task { future: Mutex::new(Some(Box::pin(future))), woken: AtomicU64::new(0) });
        let waker = Waker::from(Arc::clone(&task));
        let mut slot = task.future.lock().expect("no panic");
        let polled = slot.as_mut().expect("is there").as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        drop(slot);
        self.tasks.push(task);
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| drop(task.future.lock().expect("no panic").take()));
    }
}

#[test]
fn a_runtime_that_goes_while_tickets_are_open_takes_no_commit_with_it() {
    let (disk, faults, wal) = open(options());
    wal.append_bytes_durable(b"before").expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let awaits = |wal: &Wal| {
        let ticket = wal.submit_bytes(b"awaited").expect("is accepted");
        async move {
            ticket.await.expect("commits");
            panic!("the runtime is gone");
        }
    };
    let mut executor = Executor::default();
    (0..20).for_each(|_| executor.spawn(awaits(&wal)));
    let tasks = executor.tasks.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
    (0..20).for_each(|_| drop(runtime.spawn(awaits(&wal))));
    // Each task is polled, and waits.
    runtime.block_on(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    gate.wait_until_held();
    drop(executor);
    drop(runtime);
    gate.open();
    // Its own tasks are gone, the log is not.
    assert_eq!(wal.append_bytes_durable(b"behind").expect("commits"), 42);
    assert!(tasks.iter().all(|task| task.woken.load(Ordering::SeqCst) == 0), "who is gone is not woken");
    drop(wal);
    assert_eq!(entries(&disk).len(), 42);
}

/// On a runtime with one thread, which a call that blocks would stop for ever: the gate is opened by a task.
/// Nothing in a ticket rests on the runtime that it is awaited in.
#[test]
fn tickets_are_awaited_in_any_runtime() {
    within_patience(|| {
        let (disk, _, wal) = open(options());
        let executor = smol::LocalExecutor::new();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let wal = wal.clone();
                executor.spawn(async move { wal.submit_bytes(b"entry")?.await })
            })
            .collect();
        let last = smol::block_on(executor.run(async {
            let mut last = 0;
            for task in tasks {
                last = last.max(task.await?);
            }
            wal.close_async().await.map(|()| last)
        }));
        assert_eq!((last.expect("commits"), entries(&disk).len()), (20, 20));
    });
}

#[test]
fn nothing_blocks_the_one_thread_of_a_runtime() {
    within_patience(nothing_blocks);
}

fn nothing_blocks() {
    let (disk, faults, wal) = open(WalOptions { backpressure: Backpressure::Refuse, ..options() });
    wal.append_bytes_durable(b"before").expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
    let committed = runtime.block_on(async move {
        let submits: Vec<_> = (0..30)
            .map(|_| {
                let wal = wal.clone();
                tokio::spawn(async move {
                    let ticket = wal.submit_bytes(b"entry").expect("is accepted");
                    drop(wal);
                    ticket.await.expect("commits")
                })
            })
            .collect();
        // What was appended is on its way while the device stalls; only then is the log closed.
        while wal.last_entry_id() < 31 {
            tokio::task::yield_now().await;
        }
        let closes = tokio::spawn(wal.close_async());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!closes.is_finished(), "the device stalls");
        gate.open();
        let mut last = 0;
        for submit in submits {
            last = last.max(submit.await.expect("ends"));
        }
        closes.await.expect("ends").expect("closes");
        last
    });
    assert_eq!(committed, 31);
    assert_eq!(entries(&disk).len(), 31);
}

#[test]
fn closing_goes_on_without_its_future_and_says_when_it_cannot() {
    // The future is dropped at once; so is the last handle, which blocks nobody.
    let (disk, faults, wal) = open(options());
    wal.append_bytes_durable(b"before").expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    wal.append_bytes(b"pending").expect("appends");
    let reader = wal.reader();
    let closing = wal.clone().close_async();
    within_patience(move || {
        drop(wal);
        drop(closing);
    });
    let held = gate.clone();
    within_patience(move || held.wait_until_held());
    gate.open();
    let sealed = disk.clone();
    within_patience(move || {
        while WalReader::<(), SimDisk>::new(Arc::new(sealed.clone()))
            .replay_bytes(WalReplayMode::Strict)
            .is_err()
        {
            std::thread::yield_now();
        }
    });
    assert_eq!(entries(&disk).len(), 2);
    assert!(reader.read_bytes(2).expect("reads").is_durable());
    // Closing fails: whoever awaits is told.
    let (_, faults, wal) = open(options());
    wal.append_bytes_durable(b"before").expect("commits");
    wal.append_bytes(b"pending").expect("appends");
    faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
    let mut closing = pin!(wal.clone().close_async());
    let told = pollster::block_on(async { closing.as_mut().await }).expect_err("cannot be closed");
    assert!(matches!(told, PersistenceError::Poisoned { durable_entry_id: 1, .. }), "{told}");
    let again = closing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(again, Poll::Ready(Err(PersistenceError::Poisoned { .. }))));
}
