//! A process that forks while it has logs open: the child cannot use them, and what it drops leaves them alone.
#![cfg(target_os = "linux")]

use durability::DurableDirectory;
use durability::PersistenceError;
use durability::backends::Backend;
use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::FlushPolicy;
use durability::walog::{SyncWalWriter, WalOptions, WalReader, WalReplayMode, WalWriter};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::process::Command;
use std::sync::Arc;

const FORKS: &str = "DURABILITY_FORKING_BACKEND";

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
            // The first thing that is not refused ends it.
            let must = |number: i32, holds: bool| {
                if !holds {
                    exit_child(number);
                }
            };
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

#[test]
fn a_forked_child_cannot_use_its_parents_logs_and_leaves_them_alone() {
    for backend in ["std", "auto"] {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["fork::process_that_forks", "--exact", "--nocapture", "--test-threads=1"])
            .env(FORKS, backend)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{backend}: {said}");
    }
}
