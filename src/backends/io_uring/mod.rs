//! Commits through io_uring (Linux).
//!
//! # What it needs of the kernel
//!
//! Linux 5.11 (rings that keep every completion, timeouts of waits, `write`, `fsync`, `statx`); 6.1 for
//! direct I/O, whose alignment older kernels do not tell. Containers often forbid rings by seccomp, and
//! `kernel.io_uring_disabled` switches them off: [`probe`] says so. No kernel thread polls, no thread of
//! ours is started, no privilege is needed.
//!
//! # Who owns what
//!
//! A file owns its descriptor, its ring, and the buffer of every commit that is in flight. A completion
//! gives the buffer back when the kernel has let go of it, never earlier; nothing is borrowed.
//!
//! # Shutdown
//!
//! Dropping a file begins what was accepted, waits until the kernel is done with all of it, then closes the
//! descriptor (and with it the lock) and keeps the ring for the next file of the directory. This also
//! happens when a panic unwinds. If the ring cannot be drained the process is aborted, because memory that
//! the kernel still reads must not be freed. When the process is killed, the kernel finishes or drops what
//! is in flight by itself, and holds the file's lock until then.
//!
//! # Limits to liveness
//!
//! * A commit takes as long as the device takes; there is no timeout and no cancelling, and dropping the
//!   file waits, too. `reap` with a limit returns in time, the commit goes on.
//! * Completions are finished in the name of the thread that submitted. If that thread is stopped (a
//!   debugger, `SIGSTOP`), so are they. If it *ends*, the kernel may cancel what it had not begun; that is
//!   submitted again by whoever reaps.
//! * After `fork` only the parent may go on: a child must not use the directory or its files, and dropping
//!   them there touches nothing of the parent.
//!
//! Not here: names, reading, locks and syncs of directories, which are those of
//! [`FsDirectory`], and everything about records.
#![allow(clippy::disallowed_types, reason = "the ring owns the descriptor that it writes through")]

mod calibration;
mod chain;
mod file;
#[cfg(all(test, durability_shuttle))]
#[path = "model_tests.rs"]
mod model;
mod overlap;
mod pool;
mod probe;
mod ring;
#[cfg(all(test, not(durability_shuttle)))]
mod tests;
mod ways;

pub use file::UringFile;
pub use probe::probe;

use crate::backends::BackendOptions;
use crate::backends::std_fs::StdFile;
use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::{BUFFER_ALIGNMENT, COMMITS_IN_FLIGHT_DEFAULT, COMMITS_IN_FLIGHT_MAX};
use crate::planted;
use crate::storage::{
    CommitFile, CommitStrategy, Directory, DirectoryLock, DurableDirectory, FileOptions, FsDirectory, ReadAt,
    StrategyReason,
};
use file::{Drive, PIECE_BYTES_MAX};
use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise};
use pool::Pool;
use ring::{DirectAlignment, Ring};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use ways::SharedWays;

/// How the files of a directory are driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UringOptions {
    /// How commits become durable. `None`: direct writes with `RWF_DSYNC` where the file takes them and
    /// its [`FileOptions::alignment`] allows it, else linked pairs; for files that are
    /// [streamed](FileOptions::streamed), the page cache without a ring. A strategy that is named here and that
    /// a file cannot have is an error when that file is opened.
    pub strategy: Option<CommitStrategy>,
    /// Commits that each file can keep in flight; 1 to
    /// [`COMMITS_IN_FLIGHT_MAX`].
    pub in_flight_max: usize,
    /// With no strategy named: measure those that can be had once, when the directory makes its first file for
    /// commits (some 20 ms), and take the fastest; direct writes, unless another is clearly faster. Without it the
    /// rule decides.
    pub calibrate: bool,
    /// Measure `pwrite` and `fdatasync` without a ring too, and take that where it is the fastest.
    pub std_fs_too: bool,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self { strategy: None, in_flight_max: COMMITS_IN_FLIGHT_DEFAULT, calibrate: false, std_fs_too: false }
    }
}

impl From<&BackendOptions> for UringOptions {
    fn from(options: &BackendOptions) -> Self {
        Self {
            strategy: options.strategy,
            in_flight_max: options.in_flight_max,
            calibrate: options.calibrate,
            std_fs_too: false,
        }
    }
}

impl UringOptions {
    fn check(&self) -> PersistenceResult<()> {
        if !(1..=COMMITS_IN_FLIGHT_MAX).contains(&self.in_flight_max) {
            let reason = format!("{} is not between 1 and {COMMITS_IN_FLIGHT_MAX}", self.in_flight_max);
            return Err(PersistenceError::invalid_config("in_flight_max", reason));
        }
        match self.strategy {
            None | Some(CommitStrategy::LinkedWriteSync | CommitStrategy::DirectDsync) => Ok(()),
            Some(other) => {
                let reason = format!("{} is no strategy of io_uring", other.name());
                Err(PersistenceError::invalid_config("strategy", reason))
            }
        }
    }
}

/// A directory whose files commit through io_uring; everything else is that of [`FsDirectory`].
pub struct UringDirectory {
    files: FsDirectory,
    options: UringOptions,
    pool: Arc<Pool>,
    /// How the only commit in flight is written, for all files.
    ways: SharedWays,
    /// What measuring has found, or why it could not.
    measured: OnceLock<StrategyReason>,
    /// What direct writes ask for here, once a file has them.
    direct: OnceLock<DirectAlignment>,
    /// Smaller in tests.
    piece_bytes_max: usize,
}

impl UringDirectory {
    /// Opens `root` as [`FsDirectory::new`] does, with the default options.
    ///
    /// On error: `NotSupported` with the reason when the kernel does not give us rings.
    pub fn new(root: impl Into<PathBuf>) -> PersistenceResult<Self> {
        Self::with_options(root, UringOptions::default())
    }

    /// [`UringDirectory::new`] with options.
    pub fn with_options(root: impl Into<PathBuf>, options: UringOptions) -> PersistenceResult<Self> {
        options.check()?;
        probe().map_err(|reason| PersistenceError::not_supported("io_uring", reason.to_string()))?;
        Self::over(FsDirectory::new(root)?, options)
    }

    /// Commits to the files of a directory that is open already. Does not probe the kernel: where it has
    /// no rings, opening a file fails.
    pub fn over(files: FsDirectory, options: UringOptions) -> PersistenceResult<Self> {
        options.check()?;
        let pool = Arc::new(Pool::new(options.in_flight_max));
        Ok(Self {
            files,
            options,
            pool,
            ways: SharedWays::default(),
            measured: OnceLock::new(),
            direct: OnceLock::new(),
            piece_bytes_max: PIECE_BYTES_MAX,
        })
    }

    fn open(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        if self.options.strategy.is_some() {
            return self.open_as(path, options, self.options.strategy, StrategyReason::Requested);
        }
        if options.streamed && !options.uncached {
            // Direct writes into blocks that were never written are done one after the other.
            let file = self.files.open_for_commits(path, options)?;
            return Ok(Box::new(StdFile::new(file, path).because(StrategyReason::Streamed)));
        }
        // Whoever opens a file that exists may only want to read, or to mend a few bytes.
        if self.options.calibrate && options.create_new {
            self.measured.get_or_init(|| self.measure(path));
        }
        if let Some(StrategyReason::Measured(calibration)) = self.measured.get() {
            // Measured with whole blocks; this file may have less. Whoever is refused has filled its zeros in vain.
            let mut left = calibration.clone();
            let is_direct = |strategy| strategy == CommitStrategy::DirectDsync;
            let suits = self.direct.get().is_none_or(|direct| direct.suits(options.alignment));
            left.candidates.retain(|candidate| suits || !is_direct(candidate.strategy));
            while let Some(candidate) = left.candidates.first() {
                let reason = StrategyReason::Measured(left.clone());
                match self.open_as(path, options, Some(candidate.strategy), reason) {
                    Err(PersistenceError::NotSupported { .. } | PersistenceError::InvalidConfig { .. }) => {
                        left.candidates.remove(0);
                    }
                    result => return result,
                }
            }
        }
        self.open_as(path, options, None, self.measured.get().cloned().unwrap_or(StrategyReason::Rule))
    }

    fn measure(&self, path: &str) -> StrategyReason {
        match calibration::calibrate(self, path) {
            Ok(calibration) => {
                tracing::info!(%calibration, "chose how to commit");
                StrategyReason::Measured(calibration)
            }
            Err(error) => {
                tracing::warn!(%error, "could not measure how to commit");
                StrategyReason::NotMeasured { why: error.to_string() }
            }
        }
    }

    /// Opens a file for commits of one strategy, or of the best that it takes.
    fn open_as(
        &self,
        path: &str,
        options: &FileOptions,
        strategy: Option<CommitStrategy>,
        reason: StrategyReason,
    ) -> PersistenceResult<Box<dyn CommitFile>> {
        if strategy == Some(CommitStrategy::WriteThenSync) {
            let file = self.files.open_for_commits(path, options)?;
            return Ok(Box::new(StdFile::new(file, path).because(reason)));
        }
        Ok(Box::new(self.open_ring(path, options, strategy)?.because(reason)))
    }

    fn open_ring(
        &self,
        path: &str,
        options: &FileOptions,
        strategy: Option<CommitStrategy>,
    ) -> PersistenceResult<UringFile> {
        let file = self.files.open_for_commits(path, options)?;
        self.attach(file, path, options, strategy).inspect_err(|_| {
            if options.create_new {
                // Best effort; the first error is the one that matters.
                let _ = self.files.delete(path);
            }
        })
    }

    fn attach(
        &self,
        file: File,
        path: &str,
        options: &FileOptions,
        strategy: Option<CommitStrategy>,
    ) -> PersistenceResult<UringFile> {
        let fail = |source| PersistenceError::io("set up a ring for", path, None, source);
        let mut ring = self.pool.take().map_err(fail)?;
        let direct = match strategy {
            Some(CommitStrategy::LinkedWriteSync) => None,
            None => match direct_drive(&mut ring, &file, path, options) {
                // A ring that failed is not used for the file.
                Err(NoDirect::Failed(error)) => return Err(error),
                Err(NoDirect::Refused(error)) => {
                    tracing::debug!(path, %error, "commits as linked pairs");
                    None
                }
                Ok(direct) => Some(direct),
            },
            Some(_) => match direct_drive(&mut ring, &file, path, options) {
                Ok(direct) => Some(direct),
                Err(NoDirect::Failed(error)) => return Err(error),
                Err(NoDirect::Refused(error)) => {
                    self.pool.put(ring);
                    return Err(error);
                }
            },
        };
        let (strategy, alignment, memory_alignment) = match direct {
            Some((offset, memory)) => {
                self.direct.get_or_init(|| DirectAlignment { offset, memory });
                (CommitStrategy::DirectDsync, offset, memory)
            }
            None => (CommitStrategy::LinkedWriteSync, 1, 1),
        };
        let (in_flight_max, piece_bytes_max) = (self.options.in_flight_max, self.piece_bytes_max);
        let drive = Drive { strategy, in_flight_max, alignment, memory_alignment, piece_bytes_max };
        Ok(UringFile::new(file, path, drive, ring, Arc::clone(&self.pool)).sharing(&self.ways))
    }
}

/// Why a file is not written directly.
enum NoDirect {
    /// It cannot be, and nothing is wrong.
    Refused(PersistenceError),
    /// The ring failed; it must not be used any more.
    Failed(PersistenceError),
}

impl DirectAlignment {
    /// Whether commits suit it whose places in a buffer and in the file are multiples of `aligned` bytes.
    fn suits(self, aligned: u32) -> bool {
        // A buffer's own address is aligned, and a commit begins anywhere in it that is.
        let address = aligned.min(BUFFER_ALIGNMENT as u32);
        aligned % self.offset == 0
            && address % self.memory == 0
            && BUFFER_ALIGNMENT as u32 % self.memory == 0
            && PIECE_BYTES_MAX as u32 % self.offset == 0
    }
}

/// Makes the descriptor a direct one; answers the alignment of offsets and of memory, in bytes.
fn direct_drive(
    ring: &mut Ring,
    file: &File,
    path: &str,
    options: &FileOptions,
) -> Result<(u32, u32), NoDirect> {
    let refused = |reason: String| {
        NoDirect::Refused(PersistenceError::not_supported("direct I/O", format!("{path}: {reason}")))
    };
    let asked = ring
        .direct_alignment(file)
        .map_err(|source| NoDirect::Failed(PersistenceError::io("look at", path, None, source)))?;
    let Some(alignment) = asked else {
        return Err(refused("the file system does not offer it".to_owned()));
    };
    if options.alignment % alignment.offset != 0 {
        let reason =
            format!("{} is not a multiple of the {} that {path} needs", options.alignment, alignment.offset);
        return Err(NoDirect::Refused(PersistenceError::invalid_config("alignment", reason)));
    }
    if !alignment.suits(options.alignment) {
        return Err(refused(format!("it asks for memory aligned to {} bytes", alignment.memory)));
    }
    // The same open file description goes on, so the lock and the errors of the zero-filling stay with it.
    // Its pages are clean (zeros were synced); without them no direct write has to throw them out.
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(|error| refused(error.to_string()))?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_DIRECT;
    fcntl(file, FcntlArg::F_SETFL(flags)).map_err(|error| refused(error.to_string()))?;
    Ok((alignment.offset, alignment.memory))
}

#[deny(clippy::missing_trait_methods)]
impl Directory for UringDirectory {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.files.create_file(path)
    }

    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.files.append_file(path)
    }

    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
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
        self.files.list_dir(path)
    }

    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.files.atomic_write(path, data)
    }

    fn file_path(&self, path: &str) -> Option<PathBuf> {
        self.files.file_path(path)
    }

    fn as_durable(&self) -> Option<&dyn DurableDirectory> {
        Some(self)
    }

    fn backend_name(&self) -> &'static str {
        "io_uring"
    }

    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        self.files.try_exists(path)
    }

    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        self.files.open_at(path)
    }

    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        self.open_durable_file(path, options)
    }

    fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        self.files.lock(path, wait)
    }

    fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> {
        self.files.await_unlocked(path, wait)
    }
}

#[deny(clippy::missing_trait_methods)]
impl DurableDirectory for UringDirectory {
    fn open_durable_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        if options.uncached {
            // Without a ring, which drops what is cached before anybody has read it, or writes through the cache.
            return self.files.open_durable_file(path, options);
        }
        self.open(path, options)
    }

    fn sync_file(&self, path: &str) -> PersistenceResult<()> {
        self.files.sync_file(path)
    }

    fn sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        self.files.sync_parent_dir(path)
    }

    fn create_dir_all_durable(&self, path: &str) -> PersistenceResult<()> {
        self.files.create_dir_all_durable(path)
    }

    fn atomic_rename_durable(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.files.atomic_rename_durable(from, to)
    }

    fn atomic_write_durable(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.files.atomic_write_durable(path, data)
    }

    fn delete_durable(&self, path: &str) -> PersistenceResult<()> {
        if planted::on("ring_skips_directory_sync") {
            self.files.delete(path)
        } else {
            self.files.delete_durable(path)
        }
    }

    fn durable_sync_file(&self, path: &str) -> PersistenceResult<()> {
        self.files.durable_sync_file(path)
    }

    fn durable_sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        self.files.durable_sync_parent_dir(path)
    }
}
