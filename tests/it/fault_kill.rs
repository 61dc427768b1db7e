//! A process that kills itself in the midst of every call: what it had acknowledged is there, and the next one
//! opens at once.
#![cfg(unix)]

use crate::power_cut::payload;
use durability::PersistenceResult;
use durability::storage::{FlushPolicy, FsDirectory};
use durability::testing::faults::{At, Fault, Faults};
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use std::process::{Command, Stdio};
use std::sync::Arc;

const CHILD: &str = "DURABILITY_FAULT_KILL_CHILD";
const AT: &str = "DURABILITY_FAULT_KILL_AT";

fn options() -> WalOptions {
    WalOptions {
        segment_bytes_max: 2048,
        preallocate_bytes: 2048,
        recycle_capacity: 1,
        flush_policy: FlushPolicy::Manual,
        ..WalOptions::default()
    }
}

/// Opens, appends, rotates, truncates, recycles, closes and opens again; says what is acknowledged.
fn job<D: durability::DurableDirectory>(directory: Arc<D>) -> PersistenceResult<()> {
    for _ in 0..2 {
        let mut wal = WalWriter::<(), D>::open_with(Arc::clone(&directory), options())?;
        for _ in 0..4 {
            println!("acknowledged {}", wal.append_bytes_durable(&payload(wal.next_entry_id()))?);
        }
        let upto = wal.durable_entry_id() - 1;
        WalMaintenance::new(Arc::clone(&directory)).truncate_to_recycle(upto, 1)?;
        println!("acknowledged {}", wal.append_bytes_durable(&payload(wal.next_entry_id()))?);
        wal.close()?;
    }
    Ok(())
}

#[test]
fn child_that_kills_itself() {
    let Some(root) = std::env::var_os(CHILD) else { return };
    let at: u64 = std::env::var(AT).expect("is told when").parse().expect("a number");
    let faults = Faults::new();
    faults.inject(At::call(at), Fault::Kill);
    let directory = FsDirectory::existing(root).expect("opens");
    job(Arc::new(faults.over(directory))).expect("only dying stops it");
    println!("survived");
}

#[test]
fn a_process_killed_at_any_call_loses_nothing_that_it_acknowledged() {
    let mut killed = 0;
    loop {
        let root = tempfile::tempdir().expect("a directory");
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["fault_kill::child_that_kills_itself", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, root.path())
            .env(AT, killed.to_string())
            .stderr(Stdio::null())
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&child.stdout);
        let acknowledged = said.lines().filter_map(|line| line.split_once("acknowledged ")?.1.parse().ok());
        let acknowledged: u64 = acknowledged.max().unwrap_or(0);
        let what = format!("killed at call {killed}, entry {acknowledged} acknowledged");

        let directory = Arc::new(FsDirectory::existing(root.path()).expect("opens"));
        let opened = WalWriter::<(), FsDirectory>::open_with(Arc::clone(&directory), options());
        let mut wal = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(wal.last_entry_id() >= acknowledged, "{what}: {} left", wal.last_entry_id());
        let next = wal.append_bytes_durable(&payload(wal.next_entry_id())).expect("goes on");
        drop(wal);
        let reader = WalReader::<(), FsDirectory>::new(directory);
        let (first, last) = reader.entry_range(WalReplayMode::Strict).expect("reads").expect("not empty");
        assert!(first <= acknowledged.max(1) && last == next, "{what}: {first} to {last} of {next}");
        let read = reader.replay_bytes_from(first, WalReplayMode::Strict, |entry_id, bytes| {
            assert!(bytes == payload(entry_id), "{what}: entry {entry_id} is not what was appended");
            Ok(())
        });
        read.unwrap_or_else(|error| panic!("{what}: {error}"));
        if said.contains("survived") {
            break;
        }
        assert!(!child.status.success(), "{what}: it neither died nor said that it survived");
        killed += 1;
    }
    println!("{killed} kills");
    assert!(killed > 50, "the job makes more calls than {killed}");
}
