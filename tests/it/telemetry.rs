//! Telemetry, and commits that take too long.

use crate::support::{PATIENCE, not_alone};
use durability::PersistenceResult;
use durability::storage::{Environment, FlushPolicy, SeededEnvironment};
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{
    PrepareAhead, SlowCommit, SyncWalWriter, Telemetry, WalObserver, WalOptions, WalWriter,
};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;

/// Says which commits were slow, and panics each time.
struct Watch(Mutex<mpsc::Sender<SlowCommit>>);

impl WalObserver for Watch {
    fn on_slow_commit(&self, slow: &SlowCommit) {
        let _ = self.0.lock().expect("no panic").send(*slow);
        panic!("an observer panics");
    }
}

fn open(options: WalOptions) -> (Faults, Wal, mpsc::Receiver<SlowCommit>) {
    let faults = Faults::new();
    // What strikes a call here must not strike one of the thread that makes segments.
    let options = WalOptions { prepare_ahead: PrepareAhead::Never, ..options };
    let directory = Arc::new(faults.over(SimDisk::new(1)));
    let mut single = WalWriter::open_with(directory, options).expect("opens");
    let (sender, slow) = mpsc::channel();
    // The panic shows that nothing is poisoned by it; its lock is not held then.
    single.set_observer(Arc::new(Watch(Mutex::new(sender))));
    (faults, SyncWalWriter::from_writer(single).expect("shares"), slow)
}

fn options() -> WalOptions {
    // Faults would strike whoever makes segments ahead of need.
    WalOptions { prepare_ahead: PrepareAhead::Never, preallocate_bytes: 0, ..WalOptions::default() }
}

/// The device stalls: whoever waits reports it while it does, once, and goes on waiting.
#[test]
fn a_commit_that_stalls_is_reported_while_it_does_by_whoever_waits() {
    type Waits = fn(&Wal) -> PersistenceResult<u64>;
    let ways: [(&str, Waits); 3] = [
        ("a blocking committer", |wal| wal.append_bytes_durable(b"entry")),
        ("a ticket that is waited for", |wal| wal.submit_bytes(b"entry")?.wait()),
        ("a ticket with a deadline", |wal| wal.submit_bytes(b"entry")?.wait_timeout(10 * PATIENCE)),
    ];
    for (who, wait) in ways {
        let telemetry = Arc::new(Telemetry::new());
        let slow_after = Some(Duration::from_millis(1));
        let (faults, wal, slow) =
            open(WalOptions { slow_after, telemetry: Some(Arc::clone(&telemetry)), ..options() });
        let gate = Gate::new();
        assert_eq!(wal.append_bytes(b"before").expect("appends"), 1);
        // The first completions belong to the segment's header.
        wal.flush().expect("flushes");
        while slow.try_recv().is_ok() {}
        let before = telemetry.snapshot().slow_commits;
        faults.inject(At::next_of(Operation::Complete), Fault::Stall(gate.clone()));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| wait(&wal));
            let reported = slow.recv_timeout(PATIENCE);
            gate.open();
            let reported = reported.unwrap_or_else(|_| panic!("{who}: not reported while it stalled"));
            assert_eq!(
                (reported.last_entry_id, reported.has_ended, reported.in_flight),
                (2, false, 1),
                "{who}"
            );
            assert!(reported.time >= Duration::from_millis(1));
            assert_eq!(
                waits.join().expect("ends").expect("commits"),
                2,
                "{who}: and nothing follows from it"
            );
        });
        assert_eq!(telemetry.snapshot().slow_commits, before + 1, "{who}: once");
        assert_eq!(wal.append_bytes(b"after").expect("goes on"), 3);
    }
}

/// The thread that commits is inside the system call: another one that waits reports it.
#[test]
fn a_commit_that_is_stuck_in_its_system_call_is_reported_by_another_thread_that_waits() {
    let (faults, wal, slow) = open(WalOptions { slow_after: Some(Duration::from_millis(1)), ..options() });
    wal.append_bytes_durable(b"before").expect("commits");
    while slow.try_recv().is_ok() {}
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Submit), Fault::Hold(gate.clone()));
    std::thread::scope(|scope| {
        let commits = scope.spawn(|| wal.append_bytes_durable(b"stuck"));
        gate.wait_until_held();
        let waits = scope.spawn(|| wal.append_bytes_durable(b"waits"));
        let reported = slow.recv_timeout(PATIENCE);
        gate.open();
        let reported = reported.expect("is reported while it is stuck");
        assert_eq!((reported.last_entry_id, reported.durable_entry_id, reported.has_ended), (2, 1, false));
        assert_eq!(commits.join().expect("ends").expect("commits"), 2);
        assert_eq!(waits.join().expect("ends").expect("commits"), 3);
    });
}

/// Nobody else waits: it is reported when it has ended.
#[test]
fn a_lone_commit_that_was_stuck_in_its_system_call_is_reported_afterwards() {
    let (faults, wal, slow) = open(WalOptions { slow_after: Some(Duration::from_millis(1)), ..options() });
    wal.append_bytes_durable(b"before").expect("commits");
    while slow.try_recv().is_ok() {}
    faults.inject(At::next_of(Operation::Submit), Fault::Slow(Duration::from_millis(3)));
    wal.append_bytes_durable(b"stuck").expect("commits");
    let reported = slow.try_recv().expect("is reported");
    assert_eq!((reported.last_entry_id, reported.has_ended), (2, true));
}

#[test]
fn every_stage_is_counted() {
    let telemetry = Arc::new(Telemetry::named("a log"));
    let (faults, wal, _) = open(WalOptions {
        telemetry: Some(Arc::clone(&telemetry)),
        segment_bytes_max: 4096,
        pipeline_depth: Some(4),
        ..options()
    });
    let before = telemetry.snapshot();
    assert_eq!((before.device_ns.count, before.batch_entries.count, before.frame_bytes), (0, 0, 0));
    for _ in 0..10 {
        wal.append_bytes_durable(&[7; 500]).expect("commits");
    }
    wal.append_batch_bytes(&[&[1; 100][..]; 5]).expect("appends");
    wal.flush_and_sync().expect("commits");
    let read = telemetry.snapshot();
    assert_eq!((read.batch_entries.count, read.batch_entries.sum, read.batch_entries.max), (11, 15, 5));
    assert_eq!(read.batch_bytes.sum, 10 * 504 + 5 * 104);
    assert!(read.frame_bytes > read.batch_bytes.sum && read.frame_bytes % 512 == 0);
    assert_eq!((read.device_ns.count, read.batch_fill_ns.count, read.queue_wait_ns.count), (11, 11, 11));
    assert_eq!((read.depth.count, read.depth.max), (11, 1), "a lone committer has one in flight");
    assert!(read.rotation_ns.count >= 2, "{:?}", read.rotation_ns);
    assert_eq!((read.slow_commits, read.failed_commits, read.wake_ns.count), (0, 0, 0));
    assert!(read.device_ns.p50 <= read.device_ns.p999 && read.device_ns.p999 <= read.device_ns.max);
    // A follower is woken by whoever drives.
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    std::thread::scope(|scope| {
        let leads = scope.spawn(|| wal.append_bytes_durable(b"leads"));
        gate.wait_until_held();
        let follows: Vec<_> = (0..3).map(|_| scope.spawn(|| wal.append_bytes_durable(b"follows"))).collect();
        while wal.last_entry_id() < 19 {
            std::thread::yield_now();
        }
        gate.open();
        leads.join().expect("ends").expect("commits");
        follows.into_iter().for_each(|follows| assert!(follows.join().expect("ends").expect("commits") > 16));
    });
    let read = telemetry.snapshot();
    assert!(read.depth.max <= 4 && read.batch_entries.sum == 19);
    // And failures are counted.
    faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
    wal.append_bytes_durable(b"fails").expect_err("is told");
    assert_eq!(telemetry.snapshot().failed_commits, 1);
}

/// Counts looks at the clock, which goes on by a microsecond with each.
#[derive(Debug)]
struct Looks {
    random: SeededEnvironment,
    count: AtomicU64,
}

impl Environment for Looks {
    fn random(&self) -> u64 {
        self.random.random()
    }
    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.count.fetch_add(1, Ordering::SeqCst))
    }
}

/// Looks at the clock of a hundred appends, and of a hundred lone commits.
fn looks(telemetry: Option<Arc<Telemetry>>, slow_after: Option<Duration>) -> (u64, u64) {
    let clock = Arc::new(Looks { random: SeededEnvironment::new(1), count: AtomicU64::new(0) });
    let environment = Arc::clone(&clock) as Arc<dyn Environment>;
    let flush_policy = FlushPolicy::Manual;
    let options = WalOptions { environment, telemetry, slow_after, flush_policy, ..options() };
    let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(SimDisk::new(1)), options).expect("opens");
    wal.append_bytes_durable(b"makes the segment").expect("commits");
    let count = |act: &dyn Fn()| {
        let before = clock.count.load(Ordering::SeqCst);
        (0..100).for_each(|_| act());
        clock.count.load(Ordering::SeqCst) - before
    };
    let commits = count(&|| assert!(wal.append_bytes_durable(b"entry").expect("commits") > 0));
    (count(&|| assert!(wal.append_bytes(b"entry").expect("appends") > 0)), commits)
}

#[test]
fn what_is_off_reads_no_clock() {
    // A commit's own two: what the depth and the crowd are judged by.
    assert_eq!(looks(None, None), (0, 200));
    let (appends, commits) = looks(Some(Arc::new(Telemetry::new())), None);
    assert!(appends > 0 && commits > 200, "they are seen: {appends}, {commits}");
    let (appends, commits) = looks(None, Some(Duration::from_secs(1)));
    assert!(appends == 0 && commits > 200, "{appends}, {commits}");
}

#[test]
fn a_threshold_of_nothing_is_refused() {
    let options = WalOptions { slow_after: Some(Duration::ZERO), ..options() };
    assert!(options.validate().is_err());
}

/// Remembers spans and events of commits.
#[derive(Clone, Default)]
struct Subscriber(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "durability::commit"
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut seen = self.0.lock().expect("no panic");
        let fields: Vec<_> = span.metadata().fields().iter().map(|field| field.name()).collect();
        seen.push(format!("begin {}", fields.join(" ")));
        tracing::span::Id::from_u64(seen.len() as u64)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let parent = event.parent().map(tracing::span::Id::into_u64);
        self.0.lock().expect("no panic").push(format!("end of {parent:?}"));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn whoever_subscribes_gets_a_span_for_each_commit() {
    let (_, wal, _) = open(options());
    wal.append_bytes_durable(b"nobody listens").expect("commits");
    let subscriber = Subscriber::default();
    let _second = not_alone(&subscriber);
    tracing::subscriber::with_default(subscriber.clone(), || {
        wal.append_bytes_durable(b"one").expect("commits");
        wal.append_bytes_durable(b"another").expect("commits");
    });
    let seen = subscriber.0.lock().expect("no panic");
    let begin = "begin commit_id last_entry_id entries bytes frame_bytes depth is_durable";
    assert_eq!(*seen, [begin, "end of Some(1)", begin, "end of Some(3)"]);
}

#[cfg(feature = "metrics")]
mod through_metrics {
    use super::*;
    use metrics::{
        Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit,
    };
    use std::collections::BTreeMap;

    /// Sums of everything by name.
    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<BTreeMap<String, (u64, f64)>>>);

    struct Metric(Recorder, String);

    impl Metric {
        fn add(&self, value: f64) {
            let mut all = self.0.0.lock().expect("no panic");
            let (count, sum) = all.entry(self.1.clone()).or_default();
            *count += 1;
            *sum += value;
        }
    }

    impl CounterFn for Metric {
        fn increment(&self, value: u64) {
            self.add(value as f64);
        }
        fn absolute(&self, _: u64) {}
    }

    impl HistogramFn for Metric {
        fn record(&self, value: f64) {
            self.add(value);
        }
    }

    impl Recorder {
        fn metric(&self, key: &Key) -> Arc<Metric> {
            assert!(key.labels().any(|label| label.key() == "log" && label.value() == "orders"), "{key}");
            Arc::new(Metric(self.clone(), key.name().to_owned()))
        }
    }

    impl metrics::Recorder for Recorder {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.metric(key))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(self.metric(key))
        }
    }

    #[test]
    fn the_recorder_is_told_the_same() {
        let recorder = Recorder::default();
        let telemetry = Arc::new(metrics::with_local_recorder(&recorder, || Telemetry::named("orders")));
        let (_, wal, _) = open(WalOptions { telemetry: Some(Arc::clone(&telemetry)), ..options() });
        for _ in 0..5 {
            wal.append_bytes_durable(&[1; 96]).expect("commits");
        }
        let (read, told) = (telemetry.snapshot(), recorder.0.lock().expect("no panic"));
        assert_eq!(told["durability_wal_batch_bytes"], (5, 500.0));
        assert_eq!(told["durability_wal_frame_bytes_total"].1 as u64, read.frame_bytes);
        let (count, seconds) = told["durability_wal_device_seconds"];
        assert_eq!(count, 5);
        assert!((seconds * 1e9 - read.device_ns.sum as f64).abs() < 1000.0, "{seconds} s, {read:?}");
    }
}
