//! `Directory` and `DurableDirectory`.

use super::commit::{CommitFile, FileOptions};
use super::read::{ReadAt, StreamReadAt};
use super::sequential::SequentialFile;
use crate::error::{PersistenceError, PersistenceResult};
use std::fmt::Debug;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

/// When a writer hands appended entries to the operating system by itself.
///
/// This never makes anything durable; only `flush_and_sync` (and what is built on it) does.
///
/// A write-ahead log waits for a flush only after every append. The others it begins and goes on, a few beside each
/// other; while the disk is busy with those, what follows goes with the next one, which some later append begins. What
/// must be with the operating system is asked for with `flush`. A flush that fails is met by a later call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPolicy {
    /// After every append, which waits for it.
    PerAppend,
    /// After every `n` entries; 0 and 1 mean after every append.
    EveryN(usize),
    /// When at least this long has passed since the last flush; checked at append, no timer runs.
    Interval(Duration),
    /// Only when asked to, or when the buffer is full.
    Manual,
}

impl FlushPolicy {
    /// Whether appending waits for the flush that it makes due: where each append is one.
    pub(crate) fn is_awaited(self) -> bool {
        matches!(self, Self::PerAppend | Self::EveryN(0 | 1))
    }
}

impl Default for FlushPolicy {
    fn default() -> Self {
        Self::EveryN(crate::limits::FLUSH_EVERY_ENTRIES_DEFAULT)
    }
}

/// Holds a lock until it is dropped.
pub trait DirectoryLock: Send + Sync + Debug {
    /// Whether this lock keeps other processes (or other users of the same memory) out. `false` where the
    /// directory knows no locks.
    fn is_exclusive(&self) -> bool;

    /// Whether the lock's name still stands for what is locked. Where it does not, the lock keeps nobody out any
    /// more: somebody removed or replaced the lock file. The default cannot tell, and answers yes.
    fn is_held(&self) -> PersistenceResult<bool> {
        Ok(true)
    }
}

/// Names and bytes under one root.
///
/// Paths are relative and `/`-separated. The empty path, `.`, `..`, NUL, absolute and prefix components
/// are refused with `InvalidConfig` by every operation, before any file is touched; only
/// [`list_dir`](Self::list_dir) and [`create_dir_all`](Self::create_dir_all) take the empty path, for the
/// root itself.
///
/// The ten required methods are enough to carry a log that is not durable. Everything else has a default
/// built from them, which a backend replaces where it can do better.
///
/// A decorator must forward *every* method, provided ones included, or it silently loses what the
/// directory inside can do.
pub trait Directory: Send + Sync {
    /// Creates a file, or truncates the one that is there, and opens it for writing from its beginning.
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>>;

    /// Opens a file for writing at its end; creates it when there is none.
    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>>;

    /// Opens a file for reading from its beginning.
    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>>;

    /// Whether the name exists. A question that cannot be answered (an I/O or permission error) is
    /// answered with `false` here: use [`try_exists`](Self::try_exists) where absence decides anything.
    fn exists(&self, path: &str) -> bool;

    /// Deletes a file, or a directory with all that is in it. `NotFound` when there is none.
    fn delete(&self, path: &str) -> PersistenceResult<()>;

    /// Renames a file; what had the new name is replaced in one step.
    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()>;

    /// Creates a directory and its ancestors; fine when it exists.
    fn create_dir_all(&self, path: &str) -> PersistenceResult<()>;

    /// The names in a directory, sorted. `NotFound` when there is no such directory.
    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>>;

    /// Replaces a file's contents in one step, through a temporary name and a rename. After a crash of
    /// the process the file holds the old bytes or the new ones.
    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()>;

    /// Where the operating system has the file, for directories that live in a file system.
    fn file_path(&self, path: &str) -> Option<PathBuf>;

    // --- provided ---

    /// The stable-storage side of this directory, if it has one.
    fn as_durable(&self) -> Option<&dyn DurableDirectory> {
        None
    }

    /// Who this is, for error messages and reports.
    fn backend_name(&self) -> &'static str {
        "a custom directory"
    }

    /// Whether the name exists; unlike [`exists`](Self::exists), what cannot be answered is an error.
    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        super::path::check(path)?;
        Ok(self.exists(path))
    }

    /// Opens a file for reading at any offset.
    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        // Streams only go forward, so the default holds the file in memory.
        Ok(Box::new(StreamReadAt::open(self.open_file(path)?, path)?))
    }

    /// Opens a file for commits. The default writes strictly forward through
    /// [`create_file`](Self::create_file) or [`append_file`](Self::append_file), so an existing file can only
    /// be continued at its end, nothing is zero-filled, and nothing is ever durable.
    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        super::path::check(path)?;
        let exists = self.try_exists(path)?;
        if options.create_new && exists {
            let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(PersistenceError::io("create", path, None, source));
        }
        let (writer, position) = match (options.create_new, exists) {
            (true, _) => (self.create_file(path)?, 0),
            (false, true) => (self.append_file(path)?, self.open_at(path)?.size()?),
            (false, false) => return Err(PersistenceError::NotFound { path: path.to_owned() }),
        };
        Ok(Box::new(SequentialFile::new(writer, path, self.backend_name(), position)))
    }

    /// Takes the exclusive lock named by a lock file, which is created when there is none, and waits at
    /// most `wait` for it. `LockFailed` when somebody else holds it. The default knows no locks and
    /// answers with one that keeps nobody out.
    fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        let _ = wait;
        super::path::check(path)?;
        Ok(Box::new(Unlocked))
    }

    /// Waits until no *dead* writer's requests are landing in this existing file any more: takes the lock
    /// that [`FileOptions::lock`] takes, and lets go of it. `LockFailed` when it is still held after
    /// `wait`. The default has nothing to wait for.
    fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> {
        let _ = wait;
        super::path::check(path)
    }
}

/// The stable-storage capability: what these operations promise survives a power cut.
///
/// A real trait that each backend implements by its own means. Never implemented by reopening a file by
/// its path to sync what somebody else's descriptor wrote, except where [`sync_file`](Self::sync_file)
/// says so itself.
pub trait DurableDirectory: Directory {
    /// Opens a file for commits whose [`Effect::Durable`](super::Effect::Durable) is kept.
    ///
    /// Effect: the file is open, created when asked to, zero-filled as asked.
    /// Durable when: the zeros, on return; the *name* only after
    /// [`sync_parent_dir`](Self::sync_parent_dir).
    /// On error: nothing that existed was changed; a file this call made was removed where possible.
    fn open_durable_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>>;

    /// Syncs a file that others wrote and closed. The file is opened anew for this, and a descriptor that
    /// did not write can miss a write-back error that was already reported elsewhere: nothing of this
    /// crate's own writing rests on it. A directory is synced as one.
    fn sync_file(&self, path: &str) -> PersistenceResult<()>;

    /// Makes the names in the directory that holds `path` durable.
    fn sync_parent_dir(&self, path: &str) -> PersistenceResult<()>;

    /// [`Directory::create_dir_all`], durable: every directory it had to make is synced into its parent.
    fn create_dir_all_durable(&self, path: &str) -> PersistenceResult<()>;

    /// [`Directory::atomic_rename`], durable: both parents are synced. The file's *contents* must be
    /// durable already.
    fn atomic_rename_durable(&self, from: &str, to: &str) -> PersistenceResult<()>;

    /// [`Directory::atomic_write`], durable: contents first, then the name.
    fn atomic_write_durable(&self, path: &str, data: &[u8]) -> PersistenceResult<()>;

    /// [`Directory::delete`], durable.
    fn delete_durable(&self, path: &str) -> PersistenceResult<()>;

    /// The older spelling of [`sync_file`](Self::sync_file).
    fn durable_sync_file(&self, path: &str) -> PersistenceResult<()> {
        self.sync_file(path)
    }

    /// The older spelling of [`sync_parent_dir`](Self::sync_parent_dir).
    fn durable_sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        self.sync_parent_dir(path)
    }
}

/// The lock of directories that know none.
#[derive(Debug)]
struct Unlocked;

impl DirectoryLock for Unlocked {
    fn is_exclusive(&self) -> bool {
        false
    }
}

/// Forwards every method of `Directory` to `**self`.
macro_rules! forward_directory {
    ($($pointer:ty),*) => {$(
        impl<T: Directory + ?Sized> Directory for $pointer {
            fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> { (**self).create_file(path) }
            fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> { (**self).append_file(path) }
            fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> { (**self).open_file(path) }
            fn exists(&self, path: &str) -> bool { (**self).exists(path) }
            fn delete(&self, path: &str) -> PersistenceResult<()> { (**self).delete(path) }
            fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> { (**self).atomic_rename(from, to) }
            fn create_dir_all(&self, path: &str) -> PersistenceResult<()> { (**self).create_dir_all(path) }
            fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> { (**self).list_dir(path) }
            fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> { (**self).atomic_write(path, data) }
            fn file_path(&self, path: &str) -> Option<PathBuf> { (**self).file_path(path) }
            fn as_durable(&self) -> Option<&dyn DurableDirectory> { (**self).as_durable() }
            fn backend_name(&self) -> &'static str { (**self).backend_name() }
            fn try_exists(&self, path: &str) -> PersistenceResult<bool> { (**self).try_exists(path) }
            fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> { (**self).open_at(path) }
            fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
                (**self).open_commit_file(path, options)
            }
            fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> { (**self).lock(path, wait) }
            fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> { (**self).await_unlocked(path, wait) }
        }

        impl<T: DurableDirectory + ?Sized> DurableDirectory for $pointer {
            fn open_durable_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
                (**self).open_durable_file(path, options)
            }
            fn sync_file(&self, path: &str) -> PersistenceResult<()> { (**self).sync_file(path) }
            fn sync_parent_dir(&self, path: &str) -> PersistenceResult<()> { (**self).sync_parent_dir(path) }
            fn create_dir_all_durable(&self, path: &str) -> PersistenceResult<()> { (**self).create_dir_all_durable(path) }
            fn atomic_rename_durable(&self, from: &str, to: &str) -> PersistenceResult<()> { (**self).atomic_rename_durable(from, to) }
            fn atomic_write_durable(&self, path: &str, data: &[u8]) -> PersistenceResult<()> { (**self).atomic_write_durable(path, data) }
            fn delete_durable(&self, path: &str) -> PersistenceResult<()> { (**self).delete_durable(path) }
            fn durable_sync_file(&self, path: &str) -> PersistenceResult<()> { (**self).durable_sync_file(path) }
            fn durable_sync_parent_dir(&self, path: &str) -> PersistenceResult<()> { (**self).durable_sync_parent_dir(path) }
        }
    )*};
}

forward_directory!(std::sync::Arc<T>, Box<T>, &T);
