//! Locks of the operating system.
//!
//! Lives here: lock files, and locks of the descriptors that are written through. Not here: who takes
//! which lock when.
//!
//! Invariant: no lock is ever let go of by name or by an unlock call, only by closing the descriptor.
//! The kernel frees an flock with the last reference to the open file description, requests in flight
//! included; an unlock call would free it under writes that are still landing.

use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;
use crate::storage::DirectoryLock;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// An exclusive lock, held until it is dropped.
#[derive(Debug)]
struct FileLock {
    file: File,
    resolved: PathBuf,
}

impl DirectoryLock for FileLock {
    fn is_exclusive(&self) -> bool {
        true
    }

    fn is_held(&self) -> PersistenceResult<bool> {
        os::has_name(&self.file, &self.resolved).map_err(|source| {
            PersistenceError::io("look at the lock", self.resolved.display().to_string(), None, source)
        })
    }
}

/// What came of one attempt.
enum Attempt<T> {
    Taken(T),
    /// Somebody else holds it.
    Busy,
}

/// Takes the lock named by a lock file, which is made when there is none and never deleted.
pub(super) fn lock_path(
    resolved: &Path,
    path: &str,
    wait: Duration,
) -> PersistenceResult<Box<dyn DirectoryLock>> {
    let attempt = || os::try_lock_path(resolved);
    match retry(wait, attempt).map_err(|source| failed(path, source))? {
        Attempt::Taken(file) => {
            note_holder(&file);
            Ok(Box::new(FileLock { file, resolved: resolved.to_owned() }))
        }
        Attempt::Busy => {
            Err(PersistenceError::LockFailed { resource: path.to_owned(), reason: describe_holder(resolved) })
        }
    }
}

/// Takes the lock of a file's own open description.
#[cfg(unix)]
pub(super) fn lock_file(file: &File, path: &str, wait: Duration) -> PersistenceResult<()> {
    let attempt = || os::try_lock(file);
    match retry(wait, attempt).map_err(|source| failed(path, source))? {
        Attempt::Taken(()) => Ok(()),
        Attempt::Busy => Err(PersistenceError::LockFailed {
            resource: path.to_owned(),
            reason: "another writer has the file open, or its unfinished writes are still landing".to_owned(),
        }),
    }
}

/// Waits until nobody holds the lock of this existing file.
pub(super) fn await_unlocked(resolved: &Path, path: &str, wait: Duration) -> PersistenceResult<()> {
    let file = open_existing(resolved).map_err(|source| PersistenceError::io("open", path, None, source))?;
    #[cfg(unix)]
    lock_file(&file, path, wait)?;
    #[cfg(not(unix))]
    let _ = wait;
    drop(file);
    Ok(())
}

/// For writing where possible: an exclusive lock over NFS needs it.
fn open_existing(resolved: &Path) -> io::Result<File> {
    match super::file::open_regular(OpenOptions::new().read(true).write(true), resolved) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            super::file::open_to_read(resolved)
        }
        other => other,
    }
}

/// Tries until it works, fails, or `wait` has passed; once at least.
#[allow(clippy::disallowed_methods, reason = "a wait for other processes runs on real time, nothing else")]
fn retry<T>(wait: Duration, mut attempt: impl FnMut() -> io::Result<Attempt<T>>) -> io::Result<Attempt<T>> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Attempt::Taken(lock) = attempt()? {
            return Ok(Attempt::Taken(lock));
        }
        let left = wait.saturating_sub(begin.elapsed());
        if left.is_zero() || planted::on("impatient_lock") {
            return Ok(Attempt::Busy);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn failed(path: &str, source: io::Error) -> PersistenceError {
    if source.kind() == io::ErrorKind::Unsupported {
        return PersistenceError::not_supported("a lock", "std_fs on this platform");
    }
    PersistenceError::io("lock", path, None, source)
}

/// Leaves our process id in the lock file. Only for people, so a full disk does not matter here.
fn note_holder(mut file: &File) {
    let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = noted {
        tracing::debug!(%error, "the lock is held, but its file does not say by whom");
    }
}

fn describe_holder(resolved: &Path) -> String {
    let mut text = String::new();
    let read = File::open(resolved).and_then(|file| file.take(32).read_to_string(&mut text));
    match read.ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(holder) if holder == std::process::id() => "held by this very process".to_owned(),
        Some(holder) => format!("held by process {holder}, as the lock file says"),
        None => "held by somebody else".to_owned(),
    }
}

/// `flock`.
#[cfg(all(unix, not(any(target_os = "redox", target_os = "solaris"))))]
mod os {
    use super::Attempt;
    use crate::planted;
    use nix::errno::Errno;
    use nix::fcntl::FlockArg;
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    pub(super) fn try_lock(file: &File) -> io::Result<Attempt<()>> {
        #[allow(
            deprecated,
            reason = "its replacement unlocks when dropped, which would free the lock under writes in flight"
        )]
        let taken = nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockExclusiveNonblock);
        match taken {
            Ok(()) => Ok(Attempt::Taken(())),
            Err(Errno::EWOULDBLOCK) if planted::on("ignore_lock") => Ok(Attempt::Taken(())),
            Err(Errno::EWOULDBLOCK | Errno::EINTR) => Ok(Attempt::Busy),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn try_lock_path(resolved: &Path) -> io::Result<Attempt<File>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(resolved)?;
        match try_lock(&file)? {
            Attempt::Taken(()) => confirm_name(file, resolved),
            Attempt::Busy => Ok(Attempt::Busy),
        }
    }

    /// A lock on a file that lost its name between being opened and being locked keeps nobody out: such
    /// an attempt counts as busy.
    fn confirm_name(file: File, resolved: &Path) -> io::Result<Attempt<File>> {
        let trusted = planted::on("lock_trusts_lost_name") && resolved.exists();
        let named = trusted || has_name(&file, resolved)?;
        Ok(if named { Attempt::Taken(file) } else { Attempt::Busy })
    }

    /// Whether the name stands for this very file.
    pub(super) fn has_name(file: &File, resolved: &Path) -> io::Result<bool> {
        match fs::metadata(resolved) {
            Ok(named) => Ok(super::super::sync::same_file(&named, &file.metadata()?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn a_lock_on_a_file_that_lost_its_name_does_not_count() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join(".lock");
        let opened = || File::create(&path).expect("create");
        assert!(matches!(confirm_name(opened(), &path), Ok(Attempt::Taken(_))));
        let nameless = opened();
        fs::remove_file(&path).expect("delete");
        assert!(matches!(confirm_name(nameless.try_clone().expect("clone"), &path), Ok(Attempt::Busy)));
        let named = opened();
        assert!(matches!(confirm_name(nameless, &path), Ok(Attempt::Busy)));
        assert!(matches!(confirm_name(named, &path), Ok(Attempt::Taken(_))));
    }
}

/// A handle that shares nothing.
#[cfg(windows)]
mod os {
    use super::Attempt;
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::windows::fs::OpenOptionsExt;
    use std::path::Path;

    /// Nobody can remove or replace a file that is open and shares nothing.
    pub(super) fn has_name(_file: &File, _resolved: &Path) -> io::Result<bool> {
        Ok(true)
    }

    const ERROR_SHARING_VIOLATION: i32 = 32;
    const ERROR_LOCK_VIOLATION: i32 = 33;

    pub(super) fn try_lock_path(resolved: &Path) -> io::Result<Attempt<File>> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .share_mode(0)
            .open(resolved);
        match opened {
            Ok(file) => Ok(Attempt::Taken(file)),
            Err(error)
                if matches!(error.raw_os_error(), Some(ERROR_SHARING_VIOLATION | ERROR_LOCK_VIOLATION)) =>
            {
                Ok(Attempt::Busy)
            }
            Err(error) => Err(error),
        }
    }
}

/// Platforms without locks.
#[cfg(not(any(windows, all(unix, not(any(target_os = "redox", target_os = "solaris"))))))]
mod os {
    use super::Attempt;
    use std::fs::File;
    use std::io;
    use std::path::Path;

    pub(super) fn try_lock_path(_resolved: &Path) -> io::Result<Attempt<File>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn has_name(_file: &File, _resolved: &Path) -> io::Result<bool> {
        Ok(true)
    }

    /// Locks of written descriptors are optional.
    #[cfg(unix)]
    pub(super) fn try_lock(_file: &File) -> io::Result<Attempt<()>> {
        Ok(Attempt::Taken(()))
    }
}
