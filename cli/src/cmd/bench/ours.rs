//! The library's own lines: a log that threads share, and a log with one owner.
//!
//! Every cell has a new log with the library's default options, so that segments are created and sealed
//! within the measured time as they are in life.

use super::Failure;
use super::drive::{self, Window};
use super::line::{Cell, Kind, Line, Sample, Subject, Waiting};
use super::raw;
use durability::DurableDirectory;
use durability::backends::{Backend, BackendOptions, OpenBackend};
use durability::error::PersistenceResult;
use durability::storage::CommitStrategy;
use durability::walog::{SyncWalWriter, WalMaintenance, WalOptions, WalWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Shared = SyncWalWriter<(), dyn DurableDirectory>;
type Single = WalWriter<(), dyn DurableDirectory>;

/// How our commits are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// `std::fs`: pwrite, then fdatasync.
    Std,
    /// io_uring: a write linked to an fdatasync.
    Linked,
    /// io_uring: one direct write with `RWF_DSYNC`.
    DirectDsync,
    /// What the library takes by itself.
    Auto,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Std, Self::Linked, Self::DirectDsync, Self::Auto];

    fn name(self) -> &'static str {
        match self {
            Self::Std => "std",
            Self::Linked => "linked",
            Self::DirectDsync => "direct-dsync",
            Self::Auto => "auto",
        }
    }

    fn open(self, root: &Path) -> PersistenceResult<OpenBackend> {
        let (backend, strategy) = match self {
            Self::Std => (Backend::Std, None),
            Self::Linked => (Backend::IoUring, Some(CommitStrategy::LinkedWriteSync)),
            Self::DirectDsync => (Backend::IoUring, Some(CommitStrategy::DirectDsync)),
            Self::Auto => (Backend::Auto, None),
        };
        backend.open_with(root, BackendOptions { strategy, ..BackendOptions::default() })
    }
}

/// A new log below a folder, removed when dropped.
struct Log {
    folder: tempfile::TempDir,
    directory: Arc<dyn DurableDirectory>,
}

impl Log {
    fn make(below: &Path, strategy: Strategy) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("log-").tempdir_in(below)?;
        let directory = strategy.open(folder.path())?.directory;
        Ok(Self { folder, directory })
    }

    /// Bytes of all its segments; spare ones are not in it.
    fn file_bytes(&self) -> Result<u64, Failure> {
        let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(&self.directory));
        let mut bytes = 0;
        for segment in maintenance.segment_ranges_strict()? {
            bytes += std::fs::metadata(self.folder.path().join(segment.path))?.len();
        }
        Ok(bytes)
    }

    /// Removes it now, so that a failure to do so is told.
    fn remove(self) -> Result<(), Failure> {
        drop(self.directory);
        Ok(self.folder.close()?)
    }
}

/// Measures one log: so many committers, one entry for each commit. Answers with how many entries the log has.
type Measure = fn(Arc<dyn DurableDirectory>, &Window<'_>, usize, &[u8]) -> Result<(Sample, u64), Failure>;

/// Our lines for one strategy and one size. Another way of waiting is one more `push` with its measure.
pub fn lines(below: &Path, strategy: Strategy, committers: &[usize], entry_bytes: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut push = |name, waiting, committers, measure| {
        let kind = Kind::Ours;
        let subject = Subject { kind, name, strategy: strategy.name(), waiting, committers, entry_bytes };
        lines.push(line(subject, below, strategy, measure));
    };
    for count in committers {
        if *count == 1 {
            push("WalWriter", Waiting::None, 1, own as Measure);
        }
        push("SyncWalWriter", Waiting::Threads, *count, share);
    }
    lines
}

fn line(subject: Subject, below: &Path, strategy: Strategy, measure: Measure) -> Line {
    let (below, entry) = (PathBuf::from(below), raw::entry(subject.entry_bytes));
    let committers = subject.committers;
    let cell: Cell = Box::new(move |window: &Window<'_>| {
        let log = Log::make(&below, strategy)?;
        let (sample, entries) = measure(Arc::clone(&log.directory), window, committers, &entry)?;
        let file_bytes = log.file_bytes()?;
        log.remove()?;
        Ok(sample.with_file_bytes(file_bytes as f64 / entries.max(1) as f64))
    });
    match strategy {
        Strategy::Linked | Strategy::DirectDsync => Line::optional(subject, cell),
        Strategy::Std | Strategy::Auto => Line::new(subject, cell),
    }
}

fn share(
    directory: Arc<dyn DurableDirectory>,
    window: &Window<'_>,
    committers: usize,
    entry: &[u8],
) -> Result<(Sample, u64), Failure> {
    let wal = Shared::configure(directory, WalOptions::default())?;
    let sample = drive::threads(window, committers, || {
        wal.append_bytes_durable(entry)?;
        Ok(())
    })?;
    let entries = wal.last_entry_id();
    // Cuts what was preallocated and not used.
    wal.close()?;
    Ok((sample, entries))
}

fn own(
    directory: Arc<dyn DurableDirectory>,
    window: &Window<'_>,
    _: usize,
    entry: &[u8],
) -> Result<(Sample, u64), Failure> {
    let mut wal = Single::open_with(directory, WalOptions::default())?;
    let sample = drive::alone(window, || {
        wal.append_bytes_durable(entry)?;
        Ok(())
    })?;
    let entries = wal.last_entry_id();
    // Cuts what was preallocated and not used.
    wal.close()?;
    Ok((sample, entries))
}

/// What `auto` takes below a folder: backend and strategy.
pub fn auto_choice(below: &Path) -> Result<String, Failure> {
    let log = Log::make(below, Strategy::Auto)?;
    let mut wal = Single::open(Arc::clone(&log.directory))?;
    wal.append_bytes_durable(b"x")?;
    let strategy = wal.active_strategy().map_or("none", CommitStrategy::name);
    let choice = format!("{}: {strategy}", log.directory.backend_name());
    wal.close()?;
    log.remove()?;
    Ok(choice)
}
