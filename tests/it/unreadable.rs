//! Disks that cannot be read: an error while reading is an error, never the end of a log and never absence.

use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::{CommitFile, DirectoryLock, FileOptions, ReadAt};
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, MemoryDirectory, PersistenceError, PersistenceResult};
use std::io::{Error, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A directory in memory whose reads fail from some number on.
#[derive(Clone)]
struct Failing {
    files: Arc<MemoryDirectory>,
    /// Reads that succeed yet.
    left: Arc<AtomicU64>,
}

/// A file of it.
struct FailingFile {
    file: Box<dyn ReadAt>,
    path: String,
    left: Arc<AtomicU64>,
}

const EIO: i32 = 5;

fn take(left: &AtomicU64, path: &str, offset: Option<u64>) -> PersistenceResult<()> {
    let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    taken.map(drop).map_err(|_| PersistenceError::io("read", path, offset, Error::from_raw_os_error(EIO)))
}

impl ReadAt for FailingFile {
    fn size(&self) -> PersistenceResult<u64> {
        take(&self.left, &self.path, None)?;
        self.file.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        take(&self.left, &self.path, Some(offset))?;
        self.file.read_at(offset, buffer)
    }
}

impl Directory for Failing {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.files.create_file(path)
    }
    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.files.append_file(path)
    }
    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        take(&self.left, path, None)?;
        self.files.open_file(path)
    }
    fn exists(&self, path: &str) -> bool {
        self.files.exists(path)
    }
    fn delete(&self, path: &str) -> PersistenceResult<()> {
        self.files.delete(path)
    }
    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.files.atomic_rename(from, to)
    }
    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        self.files.create_dir_all(path)
    }
    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        take(&self.left, path, None)?;
        self.files.list_dir(path)
    }
    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.files.atomic_write(path, data)
    }
    fn file_path(&self, path: &str) -> Option<PathBuf> {
        self.files.file_path(path)
    }
    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        take(&self.left, path, None)?;
        self.files.try_exists(path)
    }
    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        take(&self.left, path, None)?;
        let left = Arc::clone(&self.left);
        Ok(Box::new(FailingFile { file: self.files.open_at(path)?, path: path.to_owned(), left }))
    }
    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        self.files.open_commit_file(path, options)
    }
    fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        self.files.lock(path, wait)
    }
    fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> {
        self.files.await_unlocked(path, wait)
    }
}

/// Asks again and again, each time with one more read that succeeds, until the answer is the right one:
/// until then each must be the error itself. Returns how many reads the question needs.
fn until_answered<T: PartialEq + std::fmt::Debug>(
    directory: &Failing,
    right: &T,
    what: &str,
    ask: impl Fn() -> PersistenceResult<T>,
) -> u64 {
    for reads in 0..10_000 {
        directory.left.store(reads, Ordering::SeqCst);
        match ask() {
            Ok(answer) => {
                assert_eq!(answer, *right, "{what}, when reads fail after {reads}");
                return reads;
            }
            Err(PersistenceError::Io { source, .. }) if source.raw_os_error() == Some(EIO) => {}
            Err(error) => panic!("{what}, when reads fail after {reads}: {error}"),
        }
    }
    panic!("{what}: never answered");
}

fn failing() -> Failing {
    Failing { files: MemoryDirectory::arc(), left: Arc::new(AtomicU64::new(u64::MAX)) }
}

#[test]
fn a_read_that_fails_is_never_the_end_of_a_log() {
    // Small segments, and one that takes several reads.
    for (entries, segment_bytes_max) in [(6, 2048), (5, 64 << 20)] {
        let directory = failing();
        let options = WalOptions { segment_bytes_max, preallocate_bytes: 0, ..WalOptions::default() };
        let payload = |id: u64| vec![id as u8; if segment_bytes_max > 2048 { 900_000 } else { 700 }];
        let mut wal =
            WalWriter::<(), Failing>::open_with(Arc::new(directory.clone()), options.clone()).expect("opens");
        for id in 1..=entries {
            assert_eq!(wal.append_bytes(&payload(id)).expect("appends"), id);
            wal.flush().expect("flushes");
        }
        // Not closed: without a seal nothing in the log says where it ends.
        std::mem::forget(wal);
        let directory = Failing { files: unlocked_copy(&directory.files), ..directory };
        let all: Vec<_> = (1..=entries).map(|id| (id, payload(id))).collect();
        let shared = Arc::new(directory.clone());
        let reader = WalReader::<(), Failing>::new(Arc::clone(&shared));
        for mode in [WalReplayMode::Strict, WalReplayMode::BestEffortTail] {
            let needed = until_answered(&directory, &all, "replay", || {
                let records = reader.replay_bytes(mode)?;
                Ok(records.into_iter().map(|record| (record.entry_id, record.payload)).collect())
            });
            assert!(needed > 4, "{needed}");
            until_answered(&directory, &Some((1, entries)), "range", || reader.entry_range(mode));
        }
        let maintenance = WalMaintenance::new(Arc::clone(&shared));
        until_answered(&directory, &entries, "maintenance", || {
            let ranges = maintenance.segment_ranges(WalReplayMode::BestEffortTail)?;
            Ok(ranges.last().map_or(0, |range| range.end_entry_id))
        });
        until_answered(&directory, &(entries + 1), "opening", || {
            let wal = WalWriter::<(), Failing>::open_with(Arc::clone(&shared), options.clone())?;
            let next = wal.next_entry_id();
            drop(wal);
            Ok(next)
        });
    }
}

#[test]
fn a_read_that_fails_is_never_the_end_of_a_record_log() {
    let directory = failing();
    let shared = Arc::new(directory.clone());
    let mut log = RecordLogWriter::new(Arc::clone(&shared), "records");
    for index in 0..5u8 {
        log.append_bytes(&vec![index; 900_000]).expect("appends");
        log.flush().expect("flushes");
    }
    log.close().expect("closes");
    for mode in [RecordLogReadMode::Strict, RecordLogReadMode::BestEffort] {
        let reader = RecordLogReader::new(Arc::clone(&shared), "records");
        let read = || Ok(reader.read_all(mode)?.into_iter().map(|record| record.payload[0]).collect());
        assert!(until_answered(&directory, &vec![0, 1, 2, 3, 4], "reading", read) > 4);
    }
    until_answered(&directory, &5, "opening", || {
        let mut log = RecordLogWriter::new(Arc::clone(&shared), "records");
        log.open()?;
        Ok(log.record_count())
    });
}

/// What a writer that was killed leaves: its files, and none of its locks.
fn unlocked_copy(files: &MemoryDirectory) -> Arc<MemoryDirectory> {
    let copy = MemoryDirectory::arc();
    copy.create_dir_all("wal").expect("creates");
    for name in files.list_dir("wal").expect("lists") {
        let path = format!("wal/{name}");
        let mut bytes = Vec::new();
        files.open_file(&path).expect("opens").read_to_end(&mut bytes).expect("reads");
        copy.atomic_write(&path, &bytes).expect("writes");
    }
    copy
}
