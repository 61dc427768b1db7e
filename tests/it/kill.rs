//! Processes that are killed while their direct writes are landing.
#![cfg(all(feature = "io-uring", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use crate::support::skip;
use durability::backends::io_uring::{UringDirectory, UringOptions, probe};
use durability::storage::{
    Commit, CommitBuffer, CommitStrategy, Effect, FileOptions, FsDirectory, Submitted,
};
use durability::{Directory, DurableDirectory};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "DURABILITY_KILL_CHILD";
const WRITES: u64 = 64;
const BYTES: usize = 1 << 20;

/// The child's part: takes both locks, puts 64 direct writes of 1 MiB in flight, says so, and waits.
#[test]
fn child_with_writes_in_flight() {
    let Some(root) = std::env::var_os(CHILD) else { return };
    let options =
        UringOptions { strategy: Some(CommitStrategy::DirectDsync), in_flight_max: WRITES as usize };
    let directory = UringDirectory::with_options(root, options).expect("opens");
    let _lock = directory.lock("lock", Duration::ZERO).expect("locks");
    let how = FileOptions::existing().aligned(4096).locked();
    let file = directory.open_durable_file("file", &how).expect("opens the file");
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
    let directory = FsDirectory::existing(root.path()).expect("opens");
    let mut landed_later = 0;
    for round in 0..6 {
        let _ = directory.delete("file");
        let how = FileOptions::create_new().zero_filled(WRITES * BYTES as u64);
        drop(directory.open_durable_file("file", &how).expect("creates"));
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
        // The lock file alone would let a successor in here.
        let lock = directory.lock("lock", Duration::from_secs(10)).expect("the lock file is free");
        landed_later += usize::from(directory.await_unlocked("file", Duration::ZERO).is_err());
        directory.await_unlocked("file", Duration::from_secs(30)).expect("the writes land");
        let waited = std::fs::read(root.path().join("file")).expect("reads");
        for _ in 0..10 {
            let later = std::fs::read(root.path().join("file")).expect("reads");
            assert!(later == waited, "round {round}: a dead writer's bytes landed after its lock was free");
        }
        drop(lock);
    }
    println!("in {landed_later} of 6 rounds writes were still landing when the lock file was free");
}
