//! Disks that are full, and disks that cannot be written. Needs root, for a small file system of its own.
#![cfg(target_os = "linux")]

use crate::support::skip;
use durability::backends::{Backend, io_uring_support};
use durability::storage::StrategyReason;
use durability::walog::{PrepareAhead, SyncWalWriter, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{DurableDirectory, FsDirectory, PersistenceError};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

type Wal = WalWriter<(), FsDirectory>;

/// A mounted tmpfs; unmounted when it is dropped.
struct Mount {
    root: tempfile::TempDir,
}

impl Mount {
    /// `None`, said loudly, where it cannot be had.
    fn new(size: &str) -> Option<Self> {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(root.path())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self { root });
        }
        skip("mounting a small tmpfs needs root");
        None
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn remount(&self, how: &str) -> bool {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(self.path()).status();
        status.is_ok_and(|status| status.success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn options(preallocate_bytes: u64) -> WalOptions {
    WalOptions { segment_bytes_max: 64 << 10, preallocate_bytes, ..WalOptions::default() }
}

/// Commits until the disk is full; returns the writer, the last acknowledged entry, and the error.
fn fill(directory: &Arc<FsDirectory>, preallocate_bytes: u64) -> (Wal, u64, PersistenceError) {
    fill_with(directory, options(preallocate_bytes))
}

fn fill_with(directory: &Arc<FsDirectory>, options: WalOptions) -> (Wal, u64, PersistenceError) {
    let mut wal = Wal::open_with(Arc::clone(directory), options).expect("opens");
    let mut acknowledged = 0;
    loop {
        match wal.append_bytes_durable(&[7; 3000]) {
            Ok(id) => acknowledged = id,
            Err(error) => return (wal, acknowledged, error),
        }
    }
}

fn last(directory: &Arc<FsDirectory>) -> u64 {
    let reader = WalReader::<(), FsDirectory>::new(Arc::clone(directory));
    reader
        .replay_bytes_from(1, WalReplayMode::BestEffortTail, |_, bytes| {
            assert_eq!(bytes, [7; 3000]);
            Ok(())
        })
        .expect("replays")
        .end
        .last_entry_id
}

#[test]
fn a_full_disk_loses_nothing_and_the_same_writer_goes_on_when_space_is_freed() {
    let Some(mount) = Mount::new("1m") else { return };
    let directory = Arc::new(FsDirectory::existing(mount.path()).expect("opens"));
    let (mut wal, acknowledged, error) = fill(&directory, 64 << 10);
    assert!(error.is_out_of_space() && !matches!(error, PersistenceError::Poisoned { .. }), "{error}");
    assert!(acknowledged > 50 && last(&directory) >= acknowledged);
    // With segments made whole ahead of need, running out happens where nothing was written yet.
    assert!(mount.remount("size=4m"));
    let id = wal.append_bytes_durable(&[7; 3000]).expect("goes on");
    assert_eq!(id, acknowledged + 1, "what failed was not appended");
    drop(wal);
    assert_eq!(last(&directory), id);
}

#[test]
fn a_segment_that_grows_meets_a_full_disk_before_it_writes() {
    let Some(mount) = Mount::new("1m") else { return };
    let directory = Arc::new(FsDirectory::existing(mount.path()).expect("opens"));
    let options = WalOptions { segment_bytes_max: 16 << 20, ..options(64 << 10) };
    let (mut wal, acknowledged, error) = fill_with(&directory, options);
    assert!(error.is_out_of_space() && !matches!(error, PersistenceError::Poisoned { .. }), "{error}");
    assert!(acknowledged > 200, "all of the space serves: {acknowledged}");
    assert!(mount.remount("size=4m"));
    let id = wal.append_bytes_durable(&[7; 3000]).expect("goes on");
    assert_eq!((id, wal.current_segment_id()), (acknowledged + 1, 1));
    wal.close().expect("closes");
    assert_eq!(last(&directory), id);
    let used = std::fs::metadata(mount.path().join("wal/wal_1.log")).expect("is there");
    assert!(used.len() < 4000 * id, "cut to what it holds");
}

#[test]
fn a_log_on_a_full_disk_opens_and_reads_back() {
    let Some(mount) = Mount::new("1m") else { return };
    let directory = Arc::new(FsDirectory::existing(mount.path()).expect("opens"));
    let (wal, acknowledged, error) = fill(&directory, 0);
    assert!(error.is_out_of_space(), "{error}");
    drop(wal);
    // Not a byte is free.
    let _ = std::fs::write(mount.path().join("ballast"), vec![1; 1 << 20]);
    let mut wal = Wal::open_with(Arc::clone(&directory), options(0)).expect("opens without space");
    assert!(wal.last_entry_id() >= acknowledged);
    let before = wal.last_entry_id();
    // Opening has removed a segment that was never started.
    let _ = std::fs::write(mount.path().join("more"), vec![1; 1 << 20]);
    let full = wal.append_bytes_durable(&[7; 3000]).expect_err("no space for a segment");
    assert!(full.is_out_of_space(), "{full}");
    drop(wal);
    std::fs::remove_file(mount.path().join("ballast")).expect("removes");
    assert!(mount.remount("size=2m"));
    let mut wal = Wal::open_with(Arc::clone(&directory), options(0)).expect("opens");
    let id = wal.append_bytes_durable(&[7; 3000]).expect("commits");
    assert!(id > before && id <= before + 2);
    drop(wal);
    assert_eq!(last(&directory), id);
}

#[test]
fn a_read_only_disk_is_a_clear_error_and_still_reads() {
    let Some(mount) = Mount::new("1m") else { return };
    let directory = Arc::new(FsDirectory::existing(mount.path()).expect("opens"));
    let mut wal = Wal::open_with(Arc::clone(&directory), options(0)).expect("opens");
    wal.append_bytes_durable(&[7; 3000]).expect("commits");
    wal.close().expect("closes");
    if !mount.remount("ro") {
        return skip("remounting read-only is not possible");
    }
    let error = Wal::open_with(Arc::clone(&directory), options(0)).expect_err("read-only");
    assert!(matches!(error, PersistenceError::Io { .. }), "{error:?}");
    assert_eq!(last(&directory), 1);
}

/// There is space for the log, and not for what would be measured with.
#[test]
fn where_there_is_no_space_to_measure_a_rule_decides_and_says_so() {
    if let Err(reason) = io_uring_support() {
        return skip(&format!("no choice to be measured: {reason}"));
    }
    let Some(mount) = Mount::new("150k") else { return };
    let directory = Backend::Auto.open(mount.path()).expect("opens").directory;
    let options = WalOptions { prepare_ahead: PrepareAhead::Never, ..options(4096) };
    let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(directory, options).expect("opens");
    assert_eq!(wal.append_bytes_durable(&[7; 3000]).expect("there is space for this"), 1);
    let active = wal.active_strategy().expect("there is a segment");
    assert!(matches!(active.reason, StrategyReason::NotMeasured { .. }), "{active}");
    assert!(active.to_string().contains("could not be measured"), "{active}");
    let mut names: Vec<_> = std::fs::read_dir(mount.path().join("wal"))
        .expect("lists")
        .map(|entry| entry.expect("lists").file_name().into_string().expect("is text"))
        .collect();
    names.sort();
    assert_eq!(names, [".lock", "wal_1.log"], "what was measured with takes no space");
    wal.close().expect("closes");
}
