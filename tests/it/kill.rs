//! Processes that are killed while their direct writes are landing.
#![cfg(all(feature = "io-uring", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use crate::support::skip;
use durability::backends::io_uring::{UringDirectory, UringOptions, probe};
use durability::storage::{
    Commit, CommitBuffer, CommitStrategy, Effect, FileOptions, FsDirectory, Submitted,
};
use durability::walog::WalWriter;
use durability::{Directory, DurableDirectory};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const CHILD: &str = "DURABILITY_KILL_CHILD";
const WRITES: u64 = 64;
const BYTES: usize = 1 << 20;
/// A pooled file of the log: opening does not read it, so that nothing but the lock makes a successor wait.
const POOLED: &str = "wal/spare_9.log";

/// The child's part: as a writer would, it holds the lock file and the lock of the file that it writes; it
/// puts 64 direct writes of 1 MiB in flight, says so, and waits.
#[test]
fn child_with_writes_in_flight() {
    let Some(root) = std::env::var_os(CHILD) else { return };
    let options = UringOptions {
        strategy: Some(CommitStrategy::DirectDsync),
        in_flight_max: WRITES as usize,
        ..UringOptions::default()
    };
    let directory = UringDirectory::with_options(root, options).expect("opens");
    let _lock = directory.lock("wal/.lock", Duration::ZERO).expect("locks");
    let how = FileOptions::existing().aligned(4096).locked();
    let file = directory.open_durable_file(POOLED, &how).expect("opens the file");
    let buffers: Vec<_> = (0..WRITES).map(|_| CommitBuffer::from_slice(&vec![0xab; BYTES])).collect();
    for (id, buffer) in (0..).zip(buffers) {
        let commit =
            Commit { id, offset: id * BYTES as u64, buffer, range: 0..BYTES, effect: Effect::Flushed };
        assert!(matches!(file.submit(commit), Submitted::Accepted));
    }
    file.start().expect("begins");
    println!("in flight");
    std::io::stdout().flush().expect("says so");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_successor_waits_until_a_killed_writers_direct_writes_have_landed() {
    if let Err(reason) = probe() {
        assert!(std::env::var_os("DURABILITY_REQUIRE_IO_URING").is_none(), "io_uring is required: {reason}");
        return skip(&format!("io_uring: {reason}"));
    }
    let root = tempfile::tempdir_in(".").expect("a directory on the current disk");
    let directory = Arc::new(FsDirectory::existing(root.path()).expect("opens"));
    let mut wal = WalWriter::<(), FsDirectory>::open(Arc::clone(&directory)).expect("opens");
    wal.append_bytes_durable(b"acknowledged").expect("commits");
    wal.close().expect("closes");
    let how = FileOptions::create_new().zero_filled(WRITES * BYTES as u64);
    drop(directory.open_durable_file(POOLED, &how).expect("creates"));

    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["kill::child_with_writes_in_flight", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, root.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        if !lines.any(|line| line.is_ok_and(|line| line.contains("in flight"))) {
            let _ = child.wait();
            return skip("direct I/O with RWF_DSYNC is not to be had here");
        }
        child.kill().expect("kills");
        child.wait().expect("reaps");
        // The lock file is free by now; the file's own lock goes with the last request.
        let wal = WalWriter::<(), FsDirectory>::open(Arc::clone(&directory)).expect("the successor opens");
        let landed = directory.await_unlocked(POOLED, Duration::ZERO);
        assert!(landed.is_ok(), "round {round}: the successor did not wait: {landed:?}");
        assert_eq!(wal.last_entry_id(), 1);
    }
}
