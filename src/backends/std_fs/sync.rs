//! Directories of the operating system: made, removed and synced by their OS path.
//!
//! Lives here: what [`FsDirectory`](super::FsDirectory) does below the level of relative paths, and the
//! identity of its root. Not here: which operation promises what.
//!
//! Invariant: a function that says "sync" returns `Ok` only after the operating system said so (on
//! Windows, where directories cannot be synced, after it was seen that the directory is there).

use crate::error::{PersistenceError, PersistenceResult};
#[cfg(not(windows))]
use crate::planted;
#[cfg(not(windows))]
use std::fs::File;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

/// Syncs the directory that holds `path`.
pub(crate) fn sync_parent_of_path(path: &Path) -> PersistenceResult<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(PersistenceError::invalid_config("path", format!("{path:?} has no parent"))),
    };
    sync_dir(parent)
        .map_err(|source| PersistenceError::io("sync directory", parent.display().to_string(), None, source))
}

/// Makes the names in a directory durable.
#[cfg(not(windows))]
pub(super) fn sync_dir(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    if planted::on("skip_directory_sync") {
        return Ok(());
    }
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    directory.sync_all()
}

/// Windows has no such call: `FlushFileBuffers` takes no directory opened through the standard library.
/// Names rest on the journal of the file system.
#[cfg(windows)]
pub(super) fn sync_dir(directory: &Path) -> io::Result<()> {
    if fs::metadata(directory)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Syncs what others wrote to a file, or the names in a directory.
pub(super) fn sync_file_or_dir(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        return sync_dir(path);
    }
    // Windows flushes only through a handle that may write; elsewhere a read-only file can be synced too.
    let file = match cfg!(windows) {
        true => super::file::open_regular(OpenOptions::new().read(true).write(true), path)?,
        false => super::file::open_to_read(path)?,
    };
    file.sync_all()
}

/// Makes one directory; fine when it is there.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::metadata(path)?.is_dir() {
                Ok(())
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        }
        other => other,
    }
}

/// Removes a file, a link (not what it points to), or a directory with all that is in it.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    #[cfg(windows)]
    if std::os::windows::fs::FileTypeExt::is_symlink_dir(&kind) {
        return fs::remove_dir(path);
    }
    if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Makes the absolute path `root` a directory, and every directory that was made on the way durable.
pub(super) fn create_root(root: &Path) -> PersistenceResult<()> {
    let fail = |source| PersistenceError::io("create root", root.display().to_string(), None, source);
    let mut missing = Vec::new();
    for ancestor in root.ancestors() {
        match fs::metadata(ancestor) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(fail(error)),
        }
    }
    if missing.is_empty() {
        return sync_name_of_existing(root).map_err(fail);
    }
    for directory in missing.iter().rev() {
        create_dir(directory).map_err(fail)?;
        sync_parent(directory).map_err(fail)?;
    }
    Ok(())
}

/// Whoever made the root may have died before its name was durable. A parent that we may not open does
/// not shut us out: it was not made by us.
fn sync_name_of_existing(root: &Path) -> io::Result<()> {
    match sync_parent(root) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!(root = %root.display(), %error, "the name of the root could not be synced");
            Ok(())
        }
        other => other,
    }
}

fn sync_parent(directory: &Path) -> io::Result<()> {
    directory.parent().map_or(Ok(()), sync_dir)
}

/// Recognises the root directory.
///
/// The open descriptor keeps the inode, and with it the inode's number, from being reused (some file
/// systems also hand out new numbers for inodes that nobody holds).
#[derive(Debug)]
pub(super) struct RootHandle {
    #[cfg(unix)]
    directory: File,
}

impl RootHandle {
    #[cfg(unix)]
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self { directory: File::open(root)? })
    }

    #[cfg(not(unix))]
    pub(super) fn open(_root: &Path) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Makes the names in the root durable.
    #[cfg(unix)]
    pub(super) fn sync(&self, _root: &Path) -> io::Result<()> {
        if planted::on("skip_root_directory_sync") { Ok(()) } else { self.directory.sync_all() }
    }

    #[cfg(not(unix))]
    pub(super) fn sync(&self, root: &Path) -> io::Result<()> {
        sync_dir(root)
    }

    /// Whether `root` still names the directory that was opened.
    pub(super) fn check(&self, root: &Path) -> io::Result<()> {
        let now = fs::metadata(root)
            .map_err(|error| io::Error::new(error.kind(), format!("the root cannot be found: {error}")))?;
        if !now.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "the root is no directory any more"));
        }
        #[cfg(unix)]
        if !same_file(&now, &self.directory.metadata()?) {
            return Err(io::Error::other("the root is another directory than the one that was opened"));
        }
        Ok(())
    }
}

/// Whether both describe the same file.
#[cfg(unix)]
pub(super) fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}
