//! Any directory, with faults: the n-th call fails, is done and then reported as failed, ends short, is slow,
//! is held until a test lets it go or has done something else, or kills the process.
//!
//! [`Faults`] holds the plan and counts the calls; [`Faults::over`] wraps a directory with it. A plan is a
//! list of rules ([`At`], [`Fault`]), each of which strikes once. Run a job without rules first to learn how
//! many calls it makes ([`Faults::calls`]), then once for each index: that is every single fault there is.
//!
//! A failed completion closes its file for good, as the files of the real backends do.
//!
//! ```
//! use durability::testing::faults::{At, Fault, Faults, Operation};
//! use durability::testing::sim::SimDisk;
//! use durability::walog::WalWriter;
//! use std::io::ErrorKind;
//! use std::sync::Arc;
//!
//! let faults = Faults::new();
//! let mut wal = WalWriter::<(), _>::open(Arc::new(faults.over(SimDisk::new(1)))).unwrap();
//! wal.append_bytes_durable(b"acknowledged").unwrap();
//! faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
//! assert!(wal.append_bytes_durable(b"doubtful").is_err());
//! assert_eq!(wal.durable_entry_id(), 1);
//! ```

mod file;

use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{CommitFile, Directory, DirectoryLock, DurableDirectory, FileOptions, ReadAt, Wait};
use file::{FaultyFile, FaultyRead, FaultyStream};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "named after the methods that they count")]
pub enum Operation {
    CreateFile,
    AppendFile,
    OpenFile,
    OpenAt,
    TryExists,
    ListDir,
    Delete,
    Rename,
    CreateDir,
    Write,
    Lock,
    AwaitUnlocked,
    /// Opening a file for commits, zero-filling included.
    OpenCommitFile,
    SyncFile,
    SyncParentDir,
    /// One read of a file at an offset, or from a stream.
    Read,
    /// One write to a stream.
    StreamWrite,
    /// Handing a commit to its file.
    Submit,
    /// Waiting for completions; a failure here is one of the machinery.
    Reap,
    /// The end of one commit.
    Complete,
    Size,
    SetSize,
    /// Asking for space.
    Reserve,
}

/// Which call a fault strikes. Calls are counted from 0, from the making of the [`Faults`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    operation: Option<Operation>,
    index: Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Index {
    FromStart(u64),
    FromNow(u64),
}

impl At {
    /// The call number `index`, whatever it is.
    pub fn call(index: u64) -> Self {
        Self { operation: None, index: Index::FromStart(index) }
    }

    /// The next call of this kind.
    pub fn next_of(operation: Operation) -> Self {
        Self::after_of(operation, 0)
    }

    /// The call of this kind behind the next `skipped` ones.
    pub fn after_of(operation: Operation, skipped: u64) -> Self {
        Self { operation: Some(operation), index: Index::FromNow(skipped) }
    }
}

/// What happens to a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// It fails, and nothing of it happens.
    Fail(ErrorKind),
    /// It happens, and is reported as failed.
    FailAfter(ErrorKind),
    /// A commit or a write to a stream: half of it happens, and it is reported as failed with
    /// `WriteZero`. Any other call just fails.
    Short,
    /// It takes this much longer.
    Slow(Duration),
    /// It waits until the gate is opened.
    Hold(Gate),
    /// The end of a commit: it does not come before the gate is opened, and whoever waits for a limited time is
    /// told that there is none yet, as by a device that stalls. Any other call is held.
    Stall(Gate),
    /// Something else happens first, as another thread may do it meanwhile.
    Meanwhile(Act),
    /// The process is aborted, without any clean-up.
    Kill,
}

/// What is done while a call waits. No lock of the faults is held.
#[derive(Clone)]
pub struct Act(Arc<dyn Fn() + Send + Sync>);

impl Act {
    /// It does what `act` does.
    pub fn new(act: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(act))
    }
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Act").finish_non_exhaustive()
    }
}

/// Holds calls back until it is opened, and lets a test wait until one is held.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    inner: Arc<(Mutex<GateState>, Condvar)>,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    held: usize,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.state().open = true;
        self.inner.1.notify_all();
    }

    /// Blocks until a call is held here. For tests: nothing else knows when that is.
    pub fn wait_until_held(&self) {
        let state = self.state();
        let held = self.inner.1.wait_while(state, |state| state.held == 0 && !state.open);
        drop(held.unwrap_or_else(PoisonError::into_inner));
    }

    fn pass(&self) {
        self.pass_within(Wait::Forever);
    }

    /// Waits as told; whether it is open.
    fn pass_within(&self, wait: Wait) -> bool {
        let mut state = self.state();
        state.held += 1;
        self.inner.1.notify_all();
        let closed = |state: &mut GateState| !state.open;
        let mut state = match wait {
            Wait::Never => state,
            Wait::Forever => self.inner.1.wait_while(state, closed).unwrap_or_else(PoisonError::into_inner),
            Wait::AtMost(time) => {
                let waited = self.inner.1.wait_timeout_while(state, time, closed);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.held -= 1;
        state.open
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The plan, and what was called so far. Clones are the same plan.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<(Operation, String)>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    operation: Option<Operation>,
    /// Matching calls that pass before it strikes.
    left: u64,
    fault: Fault,
}

impl Faults {
    /// No rules yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `directory`, with these faults.
    pub fn over<D: Directory>(&self, directory: D) -> FaultyDirectory<D> {
        FaultyDirectory { inner: directory, faults: self.clone() }
    }

    /// Adds a rule, which strikes once. A call that has passed already is never struck.
    pub fn inject(&self, at: At, fault: Fault) {
        let mut state = self.state();
        let made = state.calls.len() as u64;
        let left = match at.index {
            Index::FromNow(left) => left,
            Index::FromStart(index) if index >= made => index - made,
            Index::FromStart(_) => return,
        };
        state.rules.push(Rule { operation: at.operation, left, fault });
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.state().calls.len() as u64
    }

    /// The calls: what, and of which path.
    pub fn trace(&self) -> Vec<(Operation, String)> {
        self.state().calls.clone()
    }

    /// Whether every rule has struck.
    pub fn all_struck(&self) -> bool {
        self.state().rules.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call. What kills, is slow or holds happens in here; the rest the caller does.
    fn enter(&self, operation: Operation, path: &str) -> Option<Struck> {
        let mut state = self.state();
        state.calls.push((operation, path.to_owned()));
        let mut struck = None;
        for (index, rule) in state.rules.iter_mut().enumerate() {
            if rule.operation.is_some_and(|wanted| wanted != operation) {
                continue;
            }
            match rule.left.checked_sub(1) {
                Some(left) => rule.left = left,
                None => struck = struck.or(Some(index)),
            }
        }
        let fault = struck.map(|index| state.rules.remove(index).fault);
        drop(state);
        match fault? {
            Fault::Fail(kind) => Some(Struck::Instead(kind)),
            Fault::FailAfter(kind) => Some(Struck::Behind(kind)),
            Fault::Short => Some(Struck::Short),
            Fault::Slow(time) => {
                pause(time);
                None
            }
            Fault::Hold(gate) => {
                gate.pass();
                None
            }
            Fault::Meanwhile(act) => {
                (act.0)();
                None
            }
            Fault::Stall(gate) if operation == Operation::Complete => Some(Struck::Stalled(gate)),
            Fault::Stall(gate) => {
                gate.pass();
                None
            }
            Fault::Kill => std::process::abort(),
        }
    }

    fn run<T>(
        &self,
        operation: Operation,
        path: &str,
        act: impl FnOnce() -> PersistenceResult<T>,
    ) -> PersistenceResult<T> {
        let kind = match self.enter(operation, path) {
            None | Some(Struck::Stalled(_)) => return act(),
            Some(Struck::Instead(kind)) => kind,
            Some(Struck::Short) => ErrorKind::WriteZero,
            Some(Struck::Behind(kind)) => {
                act()?;
                kind
            }
        };
        Err(failed(operation, path, kind))
    }
}

/// A fault that the call itself has to act out.
#[derive(Clone, Debug)]
enum Struck {
    Instead(ErrorKind),
    Behind(ErrorKind),
    Short,
    Stalled(Gate),
}

#[allow(clippy::disallowed_methods, reason = "a slow call is slow in real time")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn failed(operation: Operation, path: &str, kind: ErrorKind) -> PersistenceError {
    let what = match operation {
        Operation::Complete | Operation::Submit | Operation::Reap => "commit",
        Operation::SyncFile | Operation::SyncParentDir => "sync",
        Operation::Read => "read",
        _ => "access",
    };
    PersistenceError::io(what, path, None, io::Error::new(kind, "injected"))
}

/// A directory whose calls may fail; see [`Faults::over`].
#[derive(Clone, Debug)]
pub struct FaultyDirectory<D> {
    inner: D,
    faults: Faults,
}

impl<D> FaultyDirectory<D> {
    /// The directory without faults.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn file(&self, path: &str, file: Box<dyn CommitFile>) -> Box<dyn CommitFile> {
        Box::new(FaultyFile::new(file, self.faults.clone(), path))
    }
}

impl<D: DurableDirectory> Directory for FaultyDirectory<D> {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        let stream = self.faults.run(Operation::CreateFile, path, || self.inner.create_file(path))?;
        Ok(Box::new(FaultyStream::new(stream, self.faults.clone(), path)))
    }

    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        let stream = self.faults.run(Operation::AppendFile, path, || self.inner.append_file(path))?;
        Ok(Box::new(FaultyStream::new(stream, self.faults.clone(), path)))
    }

    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        let stream = self.faults.run(Operation::OpenFile, path, || self.inner.open_file(path))?;
        Ok(Box::new(FaultyStream::new(stream, self.faults.clone(), path)))
    }

    fn exists(&self, path: &str) -> bool {
        self.inner.exists(path)
    }

    fn delete(&self, path: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::Delete, path, || self.inner.delete(path))
    }

    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::Rename, to, || self.inner.atomic_rename(from, to))
    }

    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::CreateDir, path, || self.inner.create_dir_all(path))
    }

    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        self.faults.run(Operation::ListDir, path, || self.inner.list_dir(path))
    }

    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.faults.run(Operation::Write, path, || self.inner.atomic_write(path, data))
    }

    fn file_path(&self, path: &str) -> Option<PathBuf> {
        self.inner.file_path(path)
    }

    fn as_durable(&self) -> Option<&dyn DurableDirectory> {
        self.inner.as_durable().map(|_| self as &dyn DurableDirectory)
    }

    fn backend_name(&self) -> &'static str {
        self.inner.backend_name()
    }

    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        self.faults.run(Operation::TryExists, path, || self.inner.try_exists(path))
    }

    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        let file = self.faults.run(Operation::OpenAt, path, || self.inner.open_at(path))?;
        Ok(Box::new(FaultyRead::new(file, self.faults.clone(), path)))
    }

    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        let open = || self.inner.open_commit_file(path, options);
        self.faults.run(Operation::OpenCommitFile, path, open).map(|file| self.file(path, file))
    }

    fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        self.faults.run(Operation::Lock, path, || self.inner.lock(path, wait))
    }

    fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> {
        self.faults.run(Operation::AwaitUnlocked, path, || self.inner.await_unlocked(path, wait))
    }
}

impl<D: DurableDirectory> DurableDirectory for FaultyDirectory<D> {
    fn open_durable_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        let open = || self.inner.open_durable_file(path, options);
        self.faults.run(Operation::OpenCommitFile, path, open).map(|file| self.file(path, file))
    }

    fn sync_file(&self, path: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::SyncFile, path, || self.inner.sync_file(path))
    }

    fn sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::SyncParentDir, path, || self.inner.sync_parent_dir(path))
    }

    fn create_dir_all_durable(&self, path: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::CreateDir, path, || self.inner.create_dir_all_durable(path))
    }

    fn atomic_rename_durable(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::Rename, to, || self.inner.atomic_rename_durable(from, to))
    }

    fn atomic_write_durable(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.faults.run(Operation::Write, path, || self.inner.atomic_write_durable(path, data))
    }

    fn delete_durable(&self, path: &str) -> PersistenceResult<()> {
        self.faults.run(Operation::Delete, path, || self.inner.delete_durable(path))
    }
}
