//! The files of a faulty directory.

use super::{Faults, Gate, Operation, Struck, failed};
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{
    Commit, CommitFile, CommitLimits, CommitStrategy, Completion, Latch, ReadAt, StrategyReason, Submitted,
    Wait,
};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A file whose commits may fail.
#[derive(Debug)]
pub(super) struct FaultyFile {
    inner: Box<dyn CommitFile>,
    faults: Faults,
    path: String,
    latch: Latch,
    /// Commits in flight that will be reported as failed.
    doomed: Mutex<Vec<(u64, ErrorKind)>>,
    /// A completion that does not come yet.
    stalled: Mutex<Option<(Completion, Gate)>>,
}

impl FaultyFile {
    pub(super) fn new(inner: Box<dyn CommitFile>, faults: Faults, path: &str) -> Self {
        let (latch, doomed, stalled) = (Latch::new(), Mutex::default(), Mutex::default());
        Self { inner, faults, path: path.to_owned(), latch, doomed, stalled }
    }

    fn doom(&self, commit_id: u64, kind: ErrorKind) {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).push((commit_id, kind));
    }

    fn stalled(&self) -> MutexGuard<'_, Option<(Completion, Gate)>> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The completion that stalls, if one does, or none where it still does after the wait.
    fn wait_while_stalled(&self, wait: Wait) -> Option<Option<Completion>> {
        let (completion, gate) = self.stalled().take()?;
        if gate.pass_within(wait) {
            return Some(Some(completion));
        }
        *self.stalled() = Some((completion, gate));
        Some(None)
    }

    fn take_doom(&self, commit_id: u64) -> Option<ErrorKind> {
        let mut doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        let at = doomed.iter().position(|(id, _)| *id == commit_id)?;
        Some(doomed.swap_remove(at).1)
    }
}

impl CommitFile for FaultyFile {
    fn limits(&self) -> CommitLimits {
        self.inner.limits()
    }

    fn strategy(&self) -> CommitStrategy {
        self.inner.strategy()
    }

    fn strategy_reason(&self) -> StrategyReason {
        self.inner.strategy_reason()
    }

    fn submit(&self, mut commit: Commit) -> Submitted {
        if let Err(error) = self.latch.check(0) {
            return Submitted::Refused { commit, error };
        }
        match self.faults.enter(Operation::Submit, &self.path) {
            None | Some(Struck::Stalled(_)) => {}
            Some(Struck::Instead(kind)) => {
                return Submitted::Refused { commit, error: failed(Operation::Submit, &self.path, kind) };
            }
            Some(Struck::Behind(kind)) => self.doom(commit.id, kind),
            Some(Struck::Short) => {
                let alignment = self.inner.limits().alignment.max(512) as usize;
                let half = commit.range.len() / 2 / alignment * alignment;
                commit.range.end = commit.range.start + half;
                self.doom(commit.id, ErrorKind::WriteZero);
            }
        }
        let id = commit.id;
        let submitted = self.inner.submit(commit);
        if let Submitted::Refused { .. } = submitted {
            self.take_doom(id);
        }
        submitted
    }

    fn start(&self) -> PersistenceResult<()> {
        self.inner.start()
    }

    fn reap(&self, wait: Wait) -> PersistenceResult<Option<Completion>> {
        if let Some(stalled) = self.wait_while_stalled(wait) {
            return Ok(stalled);
        }
        let reaped = self.faults.run(Operation::Reap, &self.path, || self.inner.reap(wait));
        let Some(mut completion) = reaped.map_err(|error| self.latch.trip(error))? else { return Ok(None) };
        let mut stall = None;
        let struck = match self.faults.enter(Operation::Complete, &self.path) {
            Some(Struck::Stalled(gate)) => {
                stall = Some(gate);
                None
            }
            Some(Struck::Instead(kind) | Struck::Behind(kind)) => Some(kind),
            Some(Struck::Short) => Some(ErrorKind::WriteZero),
            None => None,
        };
        if let Some(kind) = self.take_doom(completion.id).or(struck) {
            completion.result = Err(failed(Operation::Complete, &self.path, kind));
        }
        completion.result = completion.result.map_err(|error| self.latch.trip(error));
        if let Some(gate) = stall {
            *self.stalled() = Some((completion, gate));
            return Ok(self.wait_while_stalled(wait).flatten());
        }
        Ok(Some(completion))
    }

    fn size(&self) -> PersistenceResult<u64> {
        self.faults.run(Operation::Size, &self.path, || self.inner.size())
    }

    fn set_size(&self, bytes: u64) -> PersistenceResult<()> {
        self.latch.check(0)?;
        let set = self.faults.run(Operation::SetSize, &self.path, || self.inner.set_size(bytes));
        match set {
            Err(error @ PersistenceError::NotSupported { .. }) => Err(error),
            set => set.map_err(|error| self.latch.trip(error)),
        }
    }

    fn reserve(&self, bytes: u64) -> PersistenceResult<()> {
        self.faults.run(Operation::Reserve, &self.path, || self.inner.reserve(bytes))
    }
}

/// A file whose reads may fail.
pub(super) struct FaultyRead {
    inner: Box<dyn ReadAt>,
    faults: Faults,
    path: String,
}

impl FaultyRead {
    pub(super) fn new(inner: Box<dyn ReadAt>, faults: Faults, path: &str) -> Self {
        Self { inner, faults, path: path.to_owned() }
    }
}

impl ReadAt for FaultyRead {
    fn size(&self) -> PersistenceResult<u64> {
        self.faults.run(Operation::Size, &self.path, || self.inner.size())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        self.faults.run(Operation::Read, &self.path, || self.inner.read_at(offset, buffer))
    }
}

/// A stream whose reads or writes may fail.
pub(super) struct FaultyStream<S> {
    inner: S,
    faults: Faults,
    path: String,
}

impl<S> FaultyStream<S> {
    pub(super) fn new(inner: S, faults: Faults, path: &str) -> Self {
        Self { inner, faults, path: path.to_owned() }
    }
}

fn injected(kind: ErrorKind) -> io::Error {
    io::Error::new(kind, "injected")
}

impl<S: Read> Read for FaultyStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.faults.enter(Operation::Read, &self.path) {
            None | Some(Struck::Stalled(_)) => self.inner.read(buffer),
            Some(Struck::Short) => {
                let half = buffer.len().div_ceil(2);
                self.inner.read(&mut buffer[..half])
            }
            Some(Struck::Instead(kind) | Struck::Behind(kind)) => Err(injected(kind)),
        }
    }
}

impl<S: Write> Write for FaultyStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.faults.enter(Operation::StreamWrite, &self.path) {
            None | Some(Struck::Stalled(_)) => self.inner.write(bytes),
            Some(Struck::Instead(kind)) => Err(injected(kind)),
            Some(Struck::Behind(kind)) => {
                self.inner.write_all(bytes)?;
                Err(injected(kind))
            }
            Some(Struck::Short) => {
                self.inner.write_all(&bytes[..bytes.len() / 2])?;
                Err(injected(ErrorKind::WriteZero))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
