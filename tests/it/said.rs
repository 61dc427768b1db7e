//! What a log says where nobody is there to be told: through `tracing`.

use crate::support::{not_alone, within_patience};
use durability::recordlog::RecordLogWriter;
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{PrepareAhead, SyncWalWriter, WalOptions, WalWriter};
use std::fmt::Debug;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};

type Wal = SyncWalWriter<(), FaultyDirectory<SimDisk>>;

fn open() -> (Faults, Wal) {
    let faults = Faults::new();
    // What strikes a call here must not strike one of the thread that makes segments.
    let prepare_ahead = PrepareAhead::Never;
    let options =
        WalOptions { segment_bytes_max: 1, preallocate_bytes: 0, prepare_ahead, ..WalOptions::default() };
    let wal = Wal::configure(Arc::new(faults.over(SimDisk::new(1))), options).expect("opens");
    assert_eq!(wal.append_bytes_durable(b"first").expect("commits"), 1);
    (faults, wal)
}

fn no_space(faults: &Faults) {
    faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
}

/// Keeps errors, and counts spans of commits.
#[derive(Clone, Default)]
struct Listener {
    errors: Arc<Mutex<Vec<String>>>,
    begun: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
}

struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "durability::commit" || *metadata.level() == tracing::Level::ERROR
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1 + self.begun.fetch_add(1, Ordering::SeqCst))
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut Text(&mut text));
        self.errors.lock().expect("no panic").push(text);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
    fn try_close(&self, _: tracing::span::Id) -> bool {
        self.closed.fetch_add(1, Ordering::SeqCst);
        true
    }
}

impl Listener {
    fn said(&self, what: &str) -> usize {
        self.errors.lock().expect("no panic").iter().filter(|text| text.contains(what)).count()
    }
}

const NOT_SEALED: &str = "could not be sealed";

#[test]
fn a_dropped_log_that_cannot_be_sealed_says_why() {
    let listener = Listener::default();
    let _second = not_alone(&listener);
    tracing::subscriber::with_default(listener.clone(), || {
        let (_, wal) = open();
        drop(wal);
        assert_eq!(listener.said(NOT_SEALED), 0);
        let (faults, wal) = open();
        wal.append_bytes(b"pending").expect("appends");
        no_space(&faults);
        drop(wal);
    });
    assert_eq!(listener.said(NOT_SEALED), 1);
    assert_eq!(listener.said("out of space"), 1, "{:?}", listener.errors);
}

/// Whoever drops it need not be who was told.
#[test]
fn a_dropped_log_that_is_poisoned_says_so() {
    let fails = |faults: &Faults| {
        faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::PermissionDenied));
    };
    let listener = Listener::default();
    let _second = not_alone(&listener);
    tracing::subscriber::with_default(listener.clone(), || {
        let (faults, wal) = open();
        fails(&faults);
        wal.append_bytes_durable(b"doubtful").expect_err("is told");
        drop(wal);
        assert_eq!(listener.said(NOT_SEALED), 1, "{:?}", listener.errors);
        let (faults, wal) = open();
        fails(&faults);
        wal.append_bytes(b"doubtful").expect("appends");
        wal.close().expect_err("is told, and was closed");
        assert_eq!(listener.said(NOT_SEALED), 1, "{:?}", listener.errors);
        let faults = Faults::new();
        let directory = Arc::new(faults.over(SimDisk::new(1)));
        let mut single = WalWriter::<(), _>::open(Arc::clone(&directory)).expect("opens");
        single.append_bytes_durable(b"first").expect("commits");
        fails(&faults);
        single.append_bytes_durable(b"doubtful").expect_err("is told");
        drop(single);
        assert_eq!(listener.said(NOT_SEALED), 2, "{:?}", listener.errors);
    });
}

/// A record log as well, and it says which.
#[test]
fn a_dropped_record_log_that_cannot_be_sealed_says_why() {
    let listener = Listener::default();
    let _second = not_alone(&listener);
    let poisoned = |faults: &Faults| {
        let mut log = RecordLogWriter::new(Arc::new(faults.over(SimDisk::new(1))), "records");
        log.append_bytes(b"first").expect("appends");
        log.flush_and_sync().expect("syncs");
        log.append_bytes(b"doubtful").expect("appends");
        faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::PermissionDenied));
        log.flush_and_sync().expect_err("is told");
        log
    };
    tracing::subscriber::with_default(listener.clone(), || {
        let faults = Faults::new();
        let mut log = RecordLogWriter::new(Arc::new(faults.over(SimDisk::new(1))), "records");
        log.append_bytes(b"first").expect("appends");
        drop(log);
        assert_eq!(listener.said(NOT_SEALED), 0);
        drop(poisoned(&faults));
        assert_eq!((listener.said(NOT_SEALED), listener.said("records")), (1, 1), "{:?}", listener.errors);
        poisoned(&Faults::new()).close().expect_err("is told, and was closed");
        assert_eq!(listener.said(NOT_SEALED), 1, "{:?}", listener.errors);
        // The seal itself.
        let mut log = RecordLogWriter::new(Arc::new(faults.over(SimDisk::new(1))), "records");
        log.append_bytes(b"first").expect("appends");
        log.flush_and_sync().expect("syncs");
        faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::PermissionDenied));
        drop(log);
        assert_eq!(listener.said(NOT_SEALED), 2, "{:?}", listener.errors);
    });
}

/// The log's own thread closes it, and both the last handle and whoever would have been told are gone.
#[test]
fn a_log_that_is_closed_without_blocking_and_forgotten_says_why_it_was_not_sealed() {
    let listener = Listener::default();
    let _second = not_alone(&listener);
    let (faults, wal) = open();
    let heard = listener.clone();
    let (told, is_told) = std::sync::mpsc::channel();
    let registered = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(registered.clone()));
    // Nobody blocks in the log, so it is on the log's thread; for the rest of its life.
    wal.submit_bytes(b"second").expect("is accepted").on_durable(move |outcome| {
        std::mem::forget(tracing::subscriber::set_default(heard));
        drop(told.send(outcome));
    });
    registered.open();
    within_patience(move || is_told.recv()).expect("is called").expect("commits");
    let gate = Gate::new();
    wal.append_bytes(b"pending").expect("appends");
    no_space(&faults);
    faults.inject(At::next_of(Operation::OpenAt), Fault::Hold(gate.clone()));
    let reader = wal.reader();
    drop(wal.close_async());
    gate.open();
    let said = listener.clone();
    within_patience(move || {
        while said.said(NOT_SEALED) == 0 {
            std::thread::yield_now();
        }
    });
    assert_eq!((listener.said(NOT_SEALED), reader.durable_entry_id()), (1, 2));
}

/// It is collected where nobody subscribes.
#[test]
fn a_span_ends_with_its_commit_whoever_collects_it() {
    let (_, wal) = open();
    let listener = Listener::default();
    let _second = not_alone(&listener);
    tracing::subscriber::with_default(listener.clone(), || {
        wal.append_bytes(&[7; 100_000]).expect("begins a flush");
    });
    let begun = listener.begun.load(Ordering::SeqCst);
    assert!(begun > 0, "nothing began");
    wal.flush().expect("collects it");
    assert_eq!(listener.closed.load(Ordering::SeqCst), begun);
}
