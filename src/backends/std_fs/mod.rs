//! `FsDirectory`: names and bytes in a file system, through `std::fs`.
//!
//! Lives here: the directory, and what it does with names. Not here: files written through commits
//! (`file`), locks (`lock`), syncing of directories (`sync`).
//!
//! Invariants: every path is checked before any file is touched; nothing here ever makes the root
//! directory again once it was opened, and a root that is gone is never mistaken for an empty one.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "with its submodules the only user of std::fs"
)]

pub(super) mod file;
mod lock;
mod sync;
#[cfg(test)]
mod tests;

pub use file::StdFile;
pub(crate) use sync::sync_parent_of_path;

use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;
use crate::storage::{
    CommitFile, Directory, DirectoryLock, DurableDirectory, FileOptions, ReadAt, path, temporary_path,
};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A directory of a local file system.
///
/// # What "durable" rests on
///
/// * Linux and other Unix: `fdatasync` or `fsync` on the descriptor that wrote; an `fsync` of the
///   directory for each name.
/// * macOS: the standard library syncs with `fcntl(F_FULLFSYNC)`, which empties the drive's cache too.
/// * Windows: `FlushFileBuffers` on the handle that wrote. There is no directory sync: names rest on the
///   journal of NTFS, which keeps them consistent and orders them, but promises no moment at which a
///   rename or a removal has reached the disk. Other Windows file systems promise less.
///
/// # The root
///
/// The root is opened once and stays open (on Unix this keeps its file system from being unmounted). A
/// root that is moved away, deleted or covered by another mount afterwards is reported as an
/// [`Io`](PersistenceError::Io) error by whatever would otherwise find nothing, or make something in the
/// wrong place; it is never reported as `NotFound`, and never created again.
///
/// Symbolic links inside the root are followed, except by [`delete`](Directory::delete), which removes
/// the link.
#[derive(Clone, Debug)]
pub struct FsDirectory {
    root: PathBuf,
    handle: Arc<sync::RootHandle>,
}

impl FsDirectory {
    /// Opens `root`, which is created with its ancestors when it is missing.
    ///
    /// Durable when: the name of the root, and of each directory made on the way, on return. (A parent
    /// that may not be opened is not synced when the root existed before.)
    /// On error: directories that were made on the way may remain.
    pub fn new(root: impl Into<PathBuf>) -> PersistenceResult<Self> {
        let root = root.into();
        let root = std::path::absolute(&root)
            .map_err(|source| PersistenceError::io("resolve", root.display().to_string(), None, source))?;
        sync::create_root(&root)?;
        Self::existing(root)
    }

    /// [`FsDirectory::new`] in an `Arc`.
    pub fn arc(root: impl Into<PathBuf>) -> PersistenceResult<Arc<Self>> {
        Self::new(root).map(Arc::new)
    }

    /// Opens `root`, which must be a directory that exists; creates and syncs nothing.
    ///
    /// For whoever expects data there: a missing mount is `NotFound`, never an empty log.
    pub fn existing(root: impl Into<PathBuf>) -> PersistenceResult<Self> {
        let root = root.into();
        let fail = |source| PersistenceError::io("open root", root.display().to_string(), None, source);
        let absolute = std::path::absolute(&root).map_err(fail)?;
        if !fs::metadata(&absolute).map_err(fail)?.is_dir() {
            return Err(fail(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        let handle = Arc::new(sync::RootHandle::open(&absolute).map_err(fail)?);
        Ok(Self { root: absolute, handle })
    }

    /// The root, as an absolute path.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// Where `path` is, if it is acceptable.
    pub(crate) fn resolve(&self, path: &str) -> PersistenceResult<PathBuf> {
        path::check(path)?;
        self.resolve_or_root(path)
    }

    fn resolve_or_root(&self, path: &str) -> PersistenceResult<PathBuf> {
        path::check_or_root(path)?;
        let mut resolved = self.root.clone();
        resolved.extend(path.split('/').filter(|component| !component.is_empty()));
        Ok(resolved)
    }

    /// Opens a file for commits: created, locked and zero-filled as asked, for reading and writing,
    /// through the page cache. What this call made is removed again when it fails.
    pub(crate) fn open_for_commits(&self, path: &str, options: &FileOptions) -> PersistenceResult<File> {
        let resolved = self.resolve(path)?;
        if options.create_new {
            self.check_root("create")?;
        }
        file::open_for_commits(&resolved, path, options).map_err(|error| self.explain(error))
    }

    /// Takes the lock of a file's open description; `LockFailed` when it is still taken after `wait`.
    /// Freed when the last reference to the description is gone, requests in flight included.
    #[cfg(unix)]
    #[allow(dead_code, reason = "for backends that open their own descriptors")]
    pub(crate) fn lock_file(file: &File, path: &str, wait: Duration) -> PersistenceResult<()> {
        lock::lock_file(file, path, wait)
    }

    /// Whether the root is still the directory that was opened.
    fn check_root(&self, operation: &'static str) -> PersistenceResult<()> {
        if planted::on("root_may_vanish") {
            return Ok(());
        }
        self.handle.check(&self.root).map_err(|source| self.root_gone(operation, source))
    }

    /// Not through [`PersistenceError::io`], which would turn this into the `NotFound` of a mere name.
    fn root_gone(&self, operation: &'static str, source: io::Error) -> PersistenceError {
        let path = self.root.display().to_string();
        PersistenceError::Io { operation, path, offset: None, source: Arc::new(source) }
    }

    /// The error of a failed operation on a name.
    fn error(&self, operation: &'static str, path: &str, source: io::Error) -> PersistenceError {
        if source.kind() == io::ErrorKind::NotFound {
            if let Err(gone) = self.check_root(operation) {
                return gone;
            }
        }
        PersistenceError::io(operation, path, None, source)
    }

    /// Replaces `NotFound` when it is the root that was not found.
    fn explain(&self, error: PersistenceError) -> PersistenceError {
        if !error.is_not_found() {
            return error;
        }
        self.check_root("open").err().unwrap_or(error)
    }

    fn open_to_read(&self, path: &str) -> PersistenceResult<File> {
        let resolved = self.resolve(path)?;
        file::open_to_read(&resolved).map_err(|source| self.error("open", path, source))
    }

    /// A new file under a temporary name beside `path`.
    ///
    /// A name that is taken belongs to somebody else and is left alone: process ids repeat, after a crash
    /// as well as between containers that share a directory.
    fn create_temporary(&self, path: &str) -> PersistenceResult<(PathBuf, File)> {
        loop {
            let temporary = self.resolve(&temporary_path(path))?;
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => return Ok((temporary, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(self.error("write", path, source)),
            }
        }
    }

    /// Writes `data` under a temporary name and renames it; `durable` syncs contents and name.
    fn replace(&self, path: &str, data: &[u8], durable: bool) -> PersistenceResult<()> {
        let target = self.resolve(path)?;
        self.check_root("write")?;
        let (temporary, mut file) = self.create_temporary(path)?;
        let write = || -> io::Result<()> {
            file.write_all(data)?;
            if durable && !planted::on("skip_contents_sync") {
                file.sync_all()?;
            }
            drop(file);
            fs::rename(&temporary, &target)
        };
        write().map_err(|source| {
            // Best effort: what stays behind is swept with other temporaries.
            let _ = fs::remove_file(&temporary);
            self.error("write", path, source)
        })?;
        if durable { self.sync_parent_dir(path) } else { Ok(()) }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Directory for FsDirectory {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        let resolved = self.resolve(path)?;
        self.check_root("create")?;
        let file = File::create(resolved).map_err(|source| self.error("create", path, source))?;
        Ok(Box::new(file))
    }

    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        let resolved = self.resolve(path)?;
        self.check_root("append")?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(resolved)
            .map_err(|source| self.error("append", path, source))?;
        Ok(Box::new(file))
    }

    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        Ok(Box::new(self.open_to_read(path)?))
    }

    fn exists(&self, path: &str) -> bool {
        self.try_exists(path).unwrap_or(false)
    }

    fn delete(&self, path: &str) -> PersistenceResult<()> {
        let resolved = self.resolve(path)?;
        sync::remove(&resolved).map_err(|source| self.error("delete", path, source))
    }

    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        let (source_path, target_path) = (self.resolve(from)?, self.resolve(to)?);
        fs::rename(&source_path, target_path).map_err(|source| {
            // Names the side that is at fault: with the source in place it is the target's directory.
            let at_fault = if fs::symlink_metadata(&source_path).is_ok() { to } else { from };
            self.error("rename", at_fault, source)
        })
    }

    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        path::check_or_root(path)?;
        self.check_root("create directory")?;
        for prefix in prefixes(path) {
            sync::create_dir(&self.resolve(prefix)?)
                .map_err(|source| self.error("create directory", prefix, source))?;
        }
        Ok(())
    }

    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        let resolved = self.resolve_or_root(path)?;
        self.check_root("list")?;
        let fail = |source| self.error("list", path, source);
        let mut names = Vec::new();
        for entry in fs::read_dir(resolved).map_err(fail)? {
            match entry.map_err(fail)?.file_name().into_string() {
                Ok(name) => names.push(name),
                // Every name of this crate is ASCII, so this is somebody else's file.
                Err(name) => tracing::warn!(directory = path, ?name, "skipped a name that is not UTF-8"),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.replace(path, data, false)
    }

    fn file_path(&self, path: &str) -> Option<PathBuf> {
        self.resolve(path).ok()
    }

    fn as_durable(&self) -> Option<&dyn DurableDirectory> {
        Some(self)
    }

    fn backend_name(&self) -> &'static str {
        "std_fs"
    }

    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        // Not following: a link whose target is gone is a name that exists.
        match fs::symlink_metadata(self.resolve(path)?) {
            Ok(_) => Ok(true),
            Err(source) => match self.error("look up", path, source) {
                PersistenceError::NotFound { .. } => Ok(false),
                error => Err(error),
            },
        }
    }

    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        Ok(Box::new(file::StdReader::new(self.open_to_read(path)?, path)))
    }

    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        Ok(Box::new(StdFile::new(self.open_for_commits(path, options)?, path)))
    }

    fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        let resolved = self.resolve(path)?;
        self.check_root("lock")?;
        lock::lock_path(&resolved, path, wait).map_err(|error| self.explain(error))
    }

    fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> {
        let resolved = self.resolve(path)?;
        lock::await_unlocked(&resolved, path, wait).map_err(|error| self.explain(error))
    }
}

#[deny(clippy::missing_trait_methods)]
impl DurableDirectory for FsDirectory {
    fn open_durable_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        self.open_commit_file(path, options)
    }

    fn sync_file(&self, path: &str) -> PersistenceResult<()> {
        let resolved = self.resolve(path)?;
        sync::sync_file_or_dir(&resolved).map_err(|source| self.error("sync", path, source))
    }

    fn sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        path::check(path)?;
        let parent = path::parent(path);
        if parent.is_empty() {
            // The very directory that was opened, not whatever has its name by now.
            self.check_root("sync directory")?;
            return self.handle.sync(&self.root).map_err(|source| self.error("sync directory", "", source));
        }
        sync::sync_dir(&self.resolve(parent)?).map_err(|source| self.error("sync directory", parent, source))
    }

    fn create_dir_all_durable(&self, path: &str) -> PersistenceResult<()> {
        self.create_dir_all(path)?;
        // Each name on the way, also of directories that were there: whoever made them may have died
        // before the sync.
        prefixes(path).try_for_each(|prefix| self.sync_parent_dir(prefix))
    }

    fn atomic_rename_durable(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.atomic_rename(from, to)?;
        // The new name first: a power cut in between leaves both names, never none.
        self.sync_parent_dir(to)?;
        if path::parent(from) == path::parent(to) || planted::on("rename_syncs_one_parent") {
            Ok(())
        } else {
            self.sync_parent_dir(from)
        }
    }

    fn atomic_write_durable(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.replace(path, data, true)
    }

    fn delete_durable(&self, path: &str) -> PersistenceResult<()> {
        self.delete(path)?;
        self.sync_parent_dir(path)
    }

    fn durable_sync_file(&self, path: &str) -> PersistenceResult<()> {
        self.sync_file(path)
    }

    fn durable_sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        self.sync_parent_dir(path)
    }
}

/// Every directory on the way to a checked path, outermost first, the path itself last. Nothing for the
/// root.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let inner = path.match_indices('/').map(|(at, _)| &path[..at]);
    inner.chain((!path.is_empty()).then_some(path))
}
