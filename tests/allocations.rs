//! Heap allocations of a shared writer in steady state, counted by the allocator. A program of its own, so that
//! nothing else allocates meanwhile.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

use durability::DurableDirectory;
use durability::backends::Backend;
use durability::walog::{PrepareAhead, SyncWalWriter, Telemetry, WalOptions, WalWriter};
use std::alloc::{GlobalAlloc, Layout, System};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is forwarded to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

type Wal = SyncWalWriter<(), dyn DurableDirectory>;

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(waker: &Waker, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Allocations of `rounds` rounds, behind as many that warm up.
fn count(rounds: u64, mut round: impl FnMut()) -> u64 {
    (0..rounds).for_each(|_| round());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..rounds).for_each(|_| round());
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn measure(backend: Backend, telemetry: Option<Arc<Telemetry>>) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let opened = backend.open(root.path()).expect("opens");
    let what = format!("{backend}, telemetry {}", if telemetry.is_some() { "on" } else { "off" });
    // One segment: making the next one, ahead of need or not, allocates, and is no steady state.
    let options = WalOptions {
        prepare_ahead: PrepareAhead::Never,
        segment_bytes_max: 1 << 30,
        preallocate_bytes: 8 << 20,
        telemetry,
        ..WalOptions::default()
    };
    let wal = Wal::configure(opened.directory, options).expect("opens");
    let entry = [7; 256];
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let append = || assert!(wal.append_bytes(&entry).expect("appends") > 0);
    // The buffer of the first flush is made larger when it comes back; all of the next might be appended by then.
    (0..5000).for_each(|_| append());
    wal.flush().expect("flushes");
    let appends = count(5000, append);
    let durable = count(300, || assert!(wal.append_bytes_durable(&entry).expect("commits") > 0));
    let submit = || wal.submit_bytes(&entry).expect("is accepted");
    let waits = count(300, || assert!(submit().wait().expect("commits") > 0));
    let deadlines =
        count(300, || assert!(submit().wait_timeout(Duration::from_secs(60)).expect("commits") > 0));
    let awaits = count(300, || assert!(block_on(&waker, submit()).expect("commits") > 0));
    let several = count(100, || {
        let tickets: [_; 8] = std::array::from_fn(|_| submit());
        tickets.into_iter().for_each(|ticket| assert!(block_on(&waker, ticket).expect("commits") > 0));
    });
    // A callback is a box; one that holds nothing needs no memory.
    let called = count(300, || {
        submit().on_durable(|outcome| assert!(outcome.expect("commits") > 0));
        wal.wait_durable(wal.last_entry_id()).expect("commits");
    });
    wal.close().expect("closes");
    println!(
        "{what}: append {appends}, append_durable {durable}, submit+wait {waits}, +deadline {deadlines}, \
         +await {awaits}, 8 in flight {several}, +callback {called}"
    );
    let all = [appends, durable, waits, deadlines, awaits, several, called];
    assert_eq!(all, [0; 7], "{what}: allocations in steady state");
}

/// A log with one owner: flushes that nobody waits for, and commits.
fn measure_own(backend: Backend) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let opened = backend.open(root.path()).expect("opens");
    let options =
        WalOptions { segment_bytes_max: 1 << 30, preallocate_bytes: 8 << 20, ..WalOptions::default() };
    let wal = WalWriter::<(), dyn DurableDirectory>::open_with(opened.directory, options);
    let mut wal = wal.expect("opens");
    let entry = [7; 1024];
    let appends = count(20_000, || assert!(wal.append_bytes(&entry).expect("appends") > 0));
    let durable = count(100, || assert!(wal.append_bytes_durable(&entry).expect("commits") > 0));
    wal.close().expect("closes");
    println!("{backend}, one owner: append {appends}, append_durable {durable}");
    assert_eq!([appends, durable], [0; 2], "{backend}: allocations in steady state");
}

fn main() {
    // It counts at all.
    assert_eq!(count(10, || drop(std::hint::black_box(Box::new(1)))), 10);
    for backend in [Backend::Std, Backend::Auto] {
        measure_own(backend);
        measure(backend, None);
        measure(backend, Some(Arc::new(Telemetry::new())));
    }
}
