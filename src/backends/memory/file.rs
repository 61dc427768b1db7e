//! Files in memory: their bytes, their lock, and the ways to get at both.
//!
//! Lives here: [`FileNode`] and its handles. Not here: names.
//!
//! Invariant: a handle owns its node, so bytes and lock live as long as the last handle, whatever happens
//! to the name; a write that finds no memory leaves the bytes as they were.

use crate::backends::check_extent;
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{
    Commit, CommitFile, CommitLimits, CommitStrategy, Completion, DirectoryLock, Effect, FileOptions, Latch,
    ReadAt, Submitted, Wait,
};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// Commits that may wait to be reaped, so that users of several in flight can be tested in memory.
const IN_FLIGHT_MAX: usize = 8;

/// One file.
#[derive(Debug, Default)]
pub(super) struct FileNode {
    bytes: RwLock<Vec<u8>>,
    /// Whether somebody holds the exclusive lock.
    locked: Mutex<bool>,
    /// Signalled when `locked` becomes false.
    freed: Condvar,
}

impl FileNode {
    /// An empty file.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn bytes(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes_mut(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let bytes = self.bytes();
        let from = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        count
    }

    /// What lies between the end and `offset` becomes zeros. Returns where the data ends.
    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<u64> {
        write_into(&mut self.bytes_mut(), offset, data)
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        let end = bytes.len() as u64;
        write_into(&mut bytes, end, data).map(drop)
    }

    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::StorageFull)?;
        make_room(&mut bytes, len)?;
        bytes.resize(len, 0);
        Ok(())
    }

    /// Takes the exclusive lock, waiting at most `wait`.
    pub(super) fn lock(node: &Arc<Self>, path: &str, wait: Duration) -> PersistenceResult<MemoryLock> {
        let locked = node.locked.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut locked, _) = node
            .freed
            .wait_timeout_while(locked, wait, |locked| *locked)
            .unwrap_or_else(PoisonError::into_inner);
        if *locked {
            return Err(PersistenceError::LockFailed {
                resource: path.to_owned(),
                reason: "held by another user of this directory".to_owned(),
            });
        }
        *locked = true;
        drop(locked);
        Ok(MemoryLock { node: Arc::clone(node) })
    }
}

fn write_into(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) -> io::Result<u64> {
    if data.is_empty() {
        return Ok(offset);
    }
    let from = usize::try_from(offset).map_err(|_| io::ErrorKind::StorageFull)?;
    let end = from.checked_add(data.len()).ok_or(io::ErrorKind::StorageFull)?;
    make_room(bytes, end)?;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[from..end].copy_from_slice(data);
    Ok(end as u64)
}

/// An allocation that cannot be had is a full disk.
fn make_room(bytes: &mut Vec<u8>, len: usize) -> io::Result<()> {
    bytes.try_reserve(len.saturating_sub(bytes.len())).map_err(|_| io::ErrorKind::StorageFull.into())
}

/// Holds the lock of one file until it is dropped.
#[derive(Debug)]
pub(super) struct MemoryLock {
    node: Arc<FileNode>,
}

impl DirectoryLock for MemoryLock {
    fn is_exclusive(&self) -> bool {
        true
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        *self.node.locked.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.node.freed.notify_one();
    }
}

/// Writes from the beginning on.
pub(super) struct MemoryWriter {
    node: Arc<FileNode>,
    position: u64,
}

impl MemoryWriter {
    pub(super) fn new(node: Arc<FileNode>) -> Self {
        Self { node, position: 0 }
    }
}

impl Write for MemoryWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.position = self.node.write_at(self.position, data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes at the end, wherever that is.
pub(super) struct MemoryAppender {
    node: Arc<FileNode>,
}

impl MemoryAppender {
    pub(super) fn new(node: Arc<FileNode>) -> Self {
        Self { node }
    }
}

impl Write for MemoryAppender {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.node.append(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads at any offset, or as a stream from the beginning.
pub(super) struct MemoryReader {
    node: Arc<FileNode>,
    position: u64,
}

impl MemoryReader {
    pub(super) fn new(node: Arc<FileNode>) -> Self {
        Self { node, position: 0 }
    }
}

impl Read for MemoryReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.node.read_at(self.position, buffer);
        self.position += count as u64;
        Ok(count)
    }
}

impl ReadAt for MemoryReader {
    fn size(&self) -> PersistenceResult<u64> {
        Ok(self.node.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        Ok(self.node.read_at(offset, buffer))
    }
}

/// A file in memory, written through commits; each is done when `submit` returns.
#[derive(Debug)]
pub struct MemoryFile {
    node: Arc<FileNode>,
    path: String,
    latch: Latch,
    /// Commits that nobody has reaped; never more than `IN_FLIGHT_MAX`.
    completed: Mutex<VecDeque<Completion>>,
    _lock: Option<MemoryLock>,
}

impl MemoryFile {
    pub(super) fn open(node: Arc<FileNode>, path: &str, options: &FileOptions) -> PersistenceResult<Self> {
        let lock = options.lock.then(|| FileNode::lock(&node, path, Duration::ZERO)).transpose()?;
        if node.len() < options.zero_filled_bytes {
            node.set_len(options.zero_filled_bytes)
                .map_err(|source| PersistenceError::io("zero-fill", path, None, source))?;
        }
        Ok(Self {
            node,
            path: path.to_owned(),
            latch: Latch::new(),
            completed: Mutex::new(VecDeque::with_capacity(IN_FLIGHT_MAX)),
            _lock: lock,
        })
    }

    fn completed(&self) -> MutexGuard<'_, VecDeque<Completion>> {
        self.completed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, commit: &Commit, waiting: usize) -> PersistenceResult<()> {
        check_extent(commit)?;
        self.latch.check(0)?;
        if commit.effect == Effect::Durable {
            return Err(PersistenceError::not_supported("a durable commit", "memory"));
        }
        if waiting >= IN_FLIGHT_MAX {
            let reason = format!("{IN_FLIGHT_MAX} commits are in flight already");
            return Err(PersistenceError::invalid_state("commit", reason));
        }
        Ok(())
    }
}

impl CommitFile for MemoryFile {
    fn limits(&self) -> CommitLimits {
        CommitLimits { in_flight_max: IN_FLIGHT_MAX, alignment: 1, durable: false }
    }

    fn strategy(&self) -> CommitStrategy {
        CommitStrategy::Volatile
    }

    fn submit(&self, commit: Commit) -> Submitted {
        let mut completed = self.completed();
        if let Err(error) = self.check(&commit, completed.len()) {
            return Submitted::Refused { commit, error };
        }
        let bytes = &commit.buffer[commit.range.clone()];
        let result = self.node.write_at(commit.offset, bytes).map(drop).map_err(|source| {
            let path = self.path.as_str();
            self.latch.trip(PersistenceError::io("write", path, Some(commit.offset), source))
        });
        completed.push_back(Completion { id: commit.id, buffer: commit.buffer, result });
        Submitted::Accepted
    }

    fn start(&self) -> PersistenceResult<()> {
        Ok(())
    }

    fn reap(&self, _wait: Wait) -> PersistenceResult<Option<Completion>> {
        Ok(self.completed().pop_front())
    }

    fn size(&self) -> PersistenceResult<u64> {
        Ok(self.node.len())
    }

    fn set_size(&self, bytes: u64) -> PersistenceResult<()> {
        let completed = self.completed();
        self.latch.check(0)?;
        if !completed.is_empty() {
            return Err(PersistenceError::invalid_state("set the size", "a commit is in flight"));
        }
        self.node.set_len(bytes).map_err(|source| {
            self.latch.trip(PersistenceError::io("set the size", self.path.as_str(), Some(bytes), source))
        })
    }
}
