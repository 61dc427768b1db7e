//! A process that forks while it has logs open: the child cannot use them, and what it drops leaves them alone.
#![cfg(target_os = "linux")]

use durability::backends::Backend;
use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::{FlushPolicy, StableStorage};
use durability::testing::faults::{At, Fault, Faults, Gate, Operation};
use durability::walog::{CommitTicket, SyncWalWriter, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, DurableDirectory, FsDirectory, PersistenceError};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

const FORKS: &str = "DURABILITY_FORKING_BACKEND";
const FORKS_IN_FLIGHT: &str = "DURABILITY_FORKING_IN_FLIGHT";

type Dir = dyn DurableDirectory;

fn fenced<T>(result: Result<T, PersistenceError>) -> bool {
    match result {
        Err(PersistenceError::Fenced { .. }) => true,
        Err(PersistenceError::Poisoned { cause, .. }) => matches!(*cause, PersistenceError::Fenced { .. }),
        _ => false,
    }
}

fn exit_child(code: i32) -> ! {
    // SAFETY: ends the child at once, with nothing of the parent's run.
    unsafe { nix::libc::_exit(code) }
}

/// The first thing that is not refused ends the child, and its number says which.
fn must(number: i32, holds: bool) {
    if !holds {
        exit_child(number);
    }
}

/// Runs in a process of its own, because a child of a process with many threads may not do much.
#[test]
fn process_that_forks() {
    let Some(backend) = std::env::var_os(FORKS) else { return };
    let backend = if backend == "std" { Backend::Std } else { Backend::Auto };
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let folder = |name: &str| -> Arc<Dir> {
        std::fs::create_dir_all(root.path().join(name)).expect("creates");
        backend.open(root.path().join(name)).expect("opens").directory
    };
    let options = || WalOptions { flush_policy: FlushPolicy::Manual, ..WalOptions::default() };
    let (shared, single, records) = (folder("shared"), folder("single"), folder("records"));
    let wal = SyncWalWriter::<(), Dir>::configure(Arc::clone(&shared), options()).expect("opens");
    let mut other = WalWriter::<(), Dir>::open_with(Arc::clone(&single), options()).expect("opens");
    let mut log = RecordLogWriter::<Dir>::new(Arc::clone(&records), "log");
    log.open().expect("opens");
    assert_eq!(wal.append_bytes_durable(b"durable").expect("commits"), 1);
    assert_eq!(wal.submit_bytes(b"by the log's thread").expect("is accepted").wait().expect("commits"), 2);
    assert_eq!(wal.append_bytes(b"pending").expect("appends"), 3);
    other.append_bytes_durable(b"durable").expect("commits");
    other.append_bytes(b"pending").expect("appends");
    log.append_bytes(b"durable").expect("appends");
    log.flush_and_sync().expect("syncs");
    log.append_bytes(b"pending").expect("appends");

    // SAFETY: the log's thread is parked, and the test program's own waits for this one: neither holds a lock
    // that the child could need. It ends without running anything of the parent's.
    match unsafe { fork() }.expect("forks") {
        ForkResult::Child => {
            must(1, fenced(wal.append_bytes(b"x")));
            must(2, fenced(wal.append_bytes_durable(b"x")));
            must(3, fenced(wal.submit_bytes(b"x")));
            must(4, fenced(wal.flush()));
            must(5, fenced(wal.flush_and_sync()));
            must(6, fenced(wal.wait_durable(3)));
            must(7, fenced(wal.clone().close()));
            must(8, fenced(other.flush_and_sync()));
            must(9, fenced(other.append_bytes_durable(b"x")));
            must(10, fenced(log.flush_and_sync()));
            // What is there can be read.
            must(11, wal.reader().read_bytes(1).is_ok_and(|record| record.payload == b"durable"));
            drop((wal, other, log, shared, single, records));
            exit_child(0)
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).expect("the child ends");
            assert_eq!(status, WaitStatus::Exited(child, 0), "what was not refused has that number");
        }
    }
    // The parent goes on: nothing was sealed, unlocked or written behind its back.
    assert!(SyncWalWriter::<(), Dir>::open(Arc::clone(&shared)).is_err(), "the lock is held");
    assert_eq!(wal.append_bytes_durable(b"more").expect("commits"), 4);
    assert_eq!(wal.submit_bytes(b"more").expect("is accepted").wait().expect("commits"), 5);
    wal.close().expect("closes");
    other.append_bytes_durable(b"more").expect("commits");
    other.close().expect("closes");
    log.append_bytes(b"more").expect("appends");
    log.close().expect("closes");
    for (directory, entries) in [(shared, 5), (single, 3)] {
        let read = WalReader::<(), Dir>::new(directory).replay_bytes(WalReplayMode::Strict).expect("reads");
        assert_eq!(read.len(), entries);
        assert!(read.iter().all(|record| record.payload != b"x"), "the child wrote");
    }
    let read =
        RecordLogReader::<Dir>::new(records, "log").read_all(RecordLogReadMode::Strict).expect("reads");
    assert_eq!(read.len(), 3);
}

/// Commits are in flight while it forks: one that a test holds up in the page cache, or many on a ring.
#[test]
fn process_that_forks_with_commits_in_flight() {
    let Some(backend) = std::env::var_os(FORKS_IN_FLIGHT) else { return };
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let options = WalOptions { pipeline_depth: Some(4), ..WalOptions::default() };
    if backend == "std" {
        let (faults, gate) = (Faults::new(), Gate::new());
        let directory = Arc::new(faults.over(FsDirectory::existing(root.path()).expect("opens")));
        let wal = SyncWalWriter::<(), _>::configure(directory, options).expect("opens");
        wal.append_bytes_durable(b"durable").expect("commits");
        faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
        forks_in_flight(wal, 5, 100, || gate.wait_until_held(), || gate.open());
    } else {
        let directory = Backend::Auto.open(root.path()).expect("opens").directory;
        let wal = SyncWalWriter::<(), Dir>::configure(directory, options).expect("opens");
        wal.append_bytes_durable(b"durable").expect("commits");
        // Of several megabytes each: they take longer than a fork.
        forks_in_flight(wal, 5, 1 << 20, || (), || ());
    }
    let directory = Arc::new(FsDirectory::existing(root.path()).expect("opens"));
    let read = WalReader::<(), FsDirectory>::new(directory).replay_bytes(WalReplayMode::Strict);
    assert_eq!(read.expect("the log was sealed").len(), 7);
}

/// `begun` waits until a commit is in flight, `goes_on` lets it end.
fn forks_in_flight<D: StableStorage + Directory + ?Sized + 'static>(
    wal: SyncWalWriter<(), D>,
    count: u64,
    bytes: usize,
    begun: impl Fn(),
    goes_on: impl Fn(),
) {
    let calls = Arc::new(AtomicU64::new(0));
    let submit = || wal.submit_bytes(&vec![7; bytes]).expect("is accepted");
    let mut tickets: Vec<_> = (0..count).map(|_| submit()).collect();
    let polls = |ticket: &mut CommitTicket| Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop()));
    // One that a task waits for already, and one with a callback.
    let _ = polls(&mut tickets[4]);
    let called = Arc::clone(&calls);
    submit().on_durable(move |outcome| {
        outcome.expect("commits");
        called.fetch_add(1, Ordering::SeqCst);
    });
    begun();
    // SAFETY: the child takes no lock that a thread of the parent could hold, and ends without running anything of
    // the parent's.
    match unsafe { fork() }.expect("forks") {
        ForkResult::Child => {
            must(1, fenced(wal.append_bytes(b"x")));
            must(2, fenced(wal.append_bytes_durable(b"x")));
            must(3, fenced(wal.submit_bytes(b"x")));
            let told = Arc::new(AtomicU64::new(0));
            let tells = Arc::clone(&told);
            let known = wal.durable_entry_id();
            for (ticket, way) in tickets.drain(..).zip(4..) {
                let is_known = ticket.entry_id() <= known;
                let answers = |outcome| is_known || fenced(outcome);
                match way {
                    4 => must(4, answers(ticket.wait())),
                    5 => must(5, answers(ticket.wait_timeout(Duration::from_secs(600)))),
                    6 => must(6, answers(pollster::block_on(ticket))),
                    7 => {
                        let tells = Arc::clone(&tells);
                        ticket.on_durable(move |outcome| {
                            let is_right = is_known || fenced(outcome);
                            tells.fetch_add(u64::from(is_right), Ordering::SeqCst);
                        });
                    }
                    _ => drop(ticket),
                }
            }
            must(7, told.load(Ordering::SeqCst) == 1);
            must(9, fenced(pollster::block_on(wal.clone().close_async())));
            must(10, fenced(wal.clone().close()));
            drop(wal);
            must(11, calls.load(Ordering::SeqCst) == 0 || known == 7);
            exit_child(0)
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).expect("the child ends");
            goes_on();
            assert_eq!(status, WaitStatus::Exited(child, 0), "what was not refused has that number");
        }
    }
    for (ticket, entry_id) in tickets.into_iter().zip(2..) {
        assert_eq!(ticket.wait().expect("commits"), entry_id);
    }
    wal.close().expect("closes");
    assert_eq!(calls.load(Ordering::SeqCst), 1, "once, and in the parent");
}

fn run_each(test: &str, variable: &str) {
    for backend in ["std", "auto"] {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(variable, backend)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{backend}: {said}");
    }
}

#[test]
fn a_forked_child_cannot_use_its_parents_logs_and_leaves_them_alone() {
    run_each("fork::process_that_forks", FORKS);
}

#[test]
fn commits_in_flight_while_a_process_forks_end_in_the_parent_and_their_tickets_are_fenced_in_the_child() {
    run_each("fork::process_that_forks_with_commits_in_flight", FORKS_IN_FLIGHT);
}
