//! A sync that failed, on a real file system: ext4 on a loop device, whose backing file finds no space once.
//!
//! The kernel then shows pages that the disk does not have, marked clean, and the next sync succeeds. What a
//! power cut would leave is seen by mounting a copy of the backing file. Needs root.
#![cfg(target_os = "linux")]

use crate::support::skip;
use durability::backends::Backend;
use durability::recordlog::{RecordLogOptions, RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::walog::{WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{DurableDirectory, FsDirectory, PersistenceError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

type Wal = WalWriter<(), dyn DurableDirectory>;

fn run(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Something mounted; unmounted when it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(point: PathBuf, arguments: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(&point).expect("makes the folder");
        let text = point.to_str().expect("a name").to_owned();
        run("mount", &[arguments, &[&text]].concat()).then_some(Self(point))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", self.0.to_str().unwrap_or_default()]);
    }
}

/// An ext4 file system in a sparse file on a small tmpfs.
struct Machine {
    // Dropped in this order: the file system before the disk that it is on.
    files: Mount,
    disk: Mount,
    _root: tempfile::TempDir,
}

impl Machine {
    /// `None`, said loudly, where it cannot be had.
    fn new() -> Option<Self> {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let Some(disk) = Mount::new(root.path().join("disk"), &["-t", "tmpfs", "-o", "size=64m", "tmpfs"])
        else {
            skip("mounting a small tmpfs needs root");
            return None;
        };
        let image = disk.0.join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(24 << 20)).expect("a sparse file");
        let name = image.to_str().expect("a name");
        let extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        let made = run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-J", "size=4", "-E", extended, name]);
        // Everything but free blocks has its place in the backing file from the beginning: only writing to new
        // blocks can fail.
        let whole = made.then(|| std::fs::read(&image).expect("reads"));
        if let Some(whole) = whole {
            std::fs::write(&image, whole).expect("writes");
        }
        let point = root.path().join("files");
        let files = made.then(|| Mount::new(point.clone(), &["-o", "loop,errors=continue", name]));
        let trimmed = made && run("fstrim", &[point.to_str().expect("a name")]);
        let Some(files) = files.flatten().filter(|_| trimmed) else {
            skip("ext4 on a loop device cannot be had");
            return None;
        };
        Some(Self { files, disk, _root: root })
    }

    /// Takes every byte that the backing file could grow by, while it is held.
    fn fill(&self) -> Ballast {
        let path = self.disk.0.join("ballast");
        let mut file = std::fs::File::create(&path).expect("creates");
        for bytes in [1 << 20, 64 << 10, 4096] {
            let block = vec![1; bytes];
            while file.write_all(&block).is_ok() {}
        }
        Ballast(path)
    }

    /// The entries that the disk has.
    fn entries_on_disk(&self) -> u64 {
        self.on_disk(last_entry)
    }

    /// What a power cut now would leave.
    fn on_disk(&self, look: impl Fn(&Path) -> u64) -> u64 {
        let copy = self.disk.0.join("copy");
        let image = self.disk.0.join("image");
        let names = [image.to_str().expect("a name"), copy.to_str().expect("a name")];
        assert!(run("cp", &["--sparse=always", names[0], names[1]]), "copies");
        let mounted = Mount::new(self.disk.0.join("mounted"), &["-o", "loop", names[1]]).expect("mounts");
        let last = look(&mounted.0);
        drop(mounted);
        std::fs::remove_file(copy).expect("removes");
        last
    }
}

/// Given back when it is dropped.
struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const ENTRY_BYTES: usize = 6000;

fn entry(entry_id: u64) -> Vec<u8> {
    vec![entry_id as u8; ENTRY_BYTES]
}

/// Each frame begins in a block of its own, so that a write without space fails at its first block: a loop device
/// takes one that fails later, which is short, for a success.
fn options() -> WalOptions {
    WalOptions { preallocate_bytes: 0, frame_alignment: 4096, ..WalOptions::default() }
}

fn last_entry(root: &Path) -> u64 {
    let directory = FsDirectory::existing(root).map(Arc::new).expect("is there");
    let reader = WalReader::<(), FsDirectory>::new(directory);
    let mut last = 0;
    let summary = reader.replay_bytes_from(1, WalReplayMode::BestEffortTail, |entry_id, bytes| {
        assert!(entry_id == last + 1 && bytes == entry(entry_id), "entry {entry_id}");
        last = entry_id;
        Ok(())
    });
    assert_eq!(summary.expect("reads").end.last_entry_id, last);
    last
}

/// Commits until one fails; the last acknowledged entry.
fn commit_until_failure(directory: &Arc<dyn DurableDirectory>, machine: &Machine) -> u64 {
    let mut wal = Wal::open_with(Arc::clone(directory), options()).expect("opens");
    for entry_id in 1..=3 {
        assert_eq!(wal.append_bytes_durable(&entry(entry_id)).expect("commits"), entry_id);
    }
    let ballast = machine.fill();
    let mut acknowledged = 3;
    let error = loop {
        match wal.append_bytes_durable(&entry(acknowledged + 1)) {
            Ok(entry_id) => acknowledged = entry_id,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the disk is full");
    };
    drop(ballast);
    // There is space again, and the kernel would let a second sync succeed: no retry, no later success.
    let after = wal.append_bytes_durable(b"again").expect_err("poisoned");
    let PersistenceError::Poisoned { durable_entry_id, .. } = after else { panic!("{error}, then {after}") };
    assert_eq!(durable_entry_id, acknowledged);
    acknowledged
}

#[test]
fn what_opening_returned_after_a_sync_that_failed_is_on_the_disk() {
    // Whoever opens it: a ring's direct writes have to know as well what only the page cache has.
    for opens_with_ring in [false, true] {
        let Some(machine) = Machine::new() else { return };
        let files = || -> Arc<dyn DurableDirectory> {
            Arc::new(FsDirectory::existing(&machine.files.0).expect("opens"))
        };
        let acknowledged = commit_until_failure(&files(), &machine);
        // The page cache has the entry that failed, and the disk has not: else this test would show nothing.
        assert_eq!(last_entry(&machine.files.0), acknowledged + 1, "the kernel shows it");
        assert_eq!(machine.entries_on_disk(), acknowledged, "the disk does not have it");
        let directory = match opens_with_ring {
            true => Backend::Auto.open(&machine.files.0).expect("opens").directory,
            false => files(),
        };
        let mut wal = Wal::open_with(directory, options()).expect("opens");
        let returned = wal.last_entry_id();
        assert_eq!(returned, acknowledged + 1);
        assert_eq!(machine.entries_on_disk(), returned, "what opening returned is on the disk");
        for entry_id in returned + 1..returned + 3 {
            wal.append_bytes_durable(&entry(entry_id)).expect("commits");
            assert_eq!(machine.entries_on_disk(), entry_id);
        }
    }
}

/// A record log goes on in the very blocks whose write failed.
#[test]
fn a_record_log_whose_sync_failed_goes_on_and_is_on_the_disk() {
    let Some(machine) = Machine::new() else { return };
    // Each record with its frame fills blocks (as for `options`): two blocks of headers come first.
    let record = |number: u64| vec![number as u8; if number == 1 { 4096 - 1024 - 52 } else { 4096 - 52 }];
    let open = |root: &Path| {
        let directory = Arc::new(FsDirectory::existing(root).expect("is there"));
        RecordLogWriter::<FsDirectory>::with_options(directory, "records", RecordLogOptions::default())
    };
    let records = |root: &Path| {
        let directory = Arc::new(FsDirectory::existing(root).expect("is there"));
        let records =
            RecordLogReader::<FsDirectory>::new(directory, "records").read_all(RecordLogReadMode::BestEffort);
        records.expect("reads").len() as u64
    };
    let mut log = open(&machine.files.0);
    log.append_bytes(&record(1)).expect("appends");
    log.flush_and_sync().expect("syncs");
    let ballast = machine.fill();
    log.append_bytes(&record(2)).expect("appends");
    log.flush_and_sync().expect_err("no space");
    drop((log, ballast));
    assert_eq!((records(&machine.files.0), machine.on_disk(records)), (2, 1));
    let mut log = open(&machine.files.0);
    log.open().expect("opens");
    assert_eq!((log.record_count(), machine.on_disk(records)), (2, 2), "what opening returned");
    for count in 3..6 {
        log.append_bytes(&record(count)).expect("appends");
        log.flush_and_sync().expect("syncs");
        assert_eq!(machine.on_disk(records), count);
    }
}

/// Whatever the machine's best backend is: what was acknowledged or returned is there.
#[test]
fn a_failed_sync_loses_nothing_that_was_promised_on_the_chosen_backend_either() {
    let Some(machine) = Machine::new() else { return };
    let directory = Backend::Auto.open(&machine.files.0).expect("opens").directory;
    let acknowledged = commit_until_failure(&directory, &machine);
    assert!(machine.entries_on_disk() >= acknowledged);
    let mut wal = Wal::open_with(Arc::clone(&directory), options()).expect("opens");
    let returned = wal.last_entry_id();
    assert!(returned >= acknowledged);
    assert!(machine.entries_on_disk() >= returned, "what opening returned is on the disk");
    wal.append_bytes_durable(&entry(returned + 1)).expect("commits");
    assert_eq!(machine.entries_on_disk(), returned + 1);
}
