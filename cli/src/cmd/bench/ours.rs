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

/// Appends between two looks at the clock, so that looking costs nothing beside them.
const APPENDS_TIMED: u64 = 64;

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

/// The name of the strategy that the library takes by itself.
pub const AUTO: &str = "auto";

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Std, Self::Linked, Self::DirectDsync, Self::Auto];

    fn name(self) -> &'static str {
        match self {
            Self::Std => "std",
            Self::Linked => "linked",
            Self::DirectDsync => "direct-dsync",
            Self::Auto => AUTO,
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

/// Commits in flight that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Depth {
    /// One.
    #[value(name = "1")]
    One,
    /// Two.
    #[value(name = "2")]
    Two,
    /// Four.
    #[value(name = "4")]
    Four,
    /// Eight.
    #[value(name = "8")]
    Eight,
}

impl Depth {
    /// The name of the line, and the depth.
    fn line(self) -> (&'static str, usize) {
        match self {
            Self::One => ("depth 1", 1),
            Self::Two => ("depth 2", 2),
            Self::Four => ("depth 4", 4),
            Self::Eight => ("depth 8", 8),
        }
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
type Measure =
    fn(Arc<dyn DurableDirectory>, WalOptions, &Window<'_>, usize, &[u8]) -> Result<(Sample, u64), Failure>;

/// Our lines for one number of committers and one size. Strategies that do the same follow each other, so that the
/// disk is the same for them. Another way of waiting is one more `push` with its measure.
pub fn lines(
    below: &Path,
    strategies: &[Strategy],
    options: &WalOptions,
    depths: &[Depth],
    committers: usize,
    entry_bytes: usize,
) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut push = |name, waiting, pipeline_depth, measure: Measure| {
        let kind = Kind::Ours;
        let options = WalOptions { pipeline_depth, ..options.clone() };
        for strategy in strategies {
            let subject = Subject { kind, name, strategy: strategy.name(), waiting, committers, entry_bytes };
            lines.push(line(subject, below, *strategy, options.clone(), measure));
        }
    };
    if committers == 1 {
        push("WalWriter", Waiting::None, None, own);
    }
    let chosen = depths.iter().map(|depth| depth.line()).map(|(name, depth)| (name, Some(depth)));
    for (name, depth) in std::iter::once(("SyncWalWriter", None)).chain(chosen) {
        push(name, Waiting::Threads, depth, share);
        push(name, Waiting::Futures, depth, submit);
    }
    lines
}

/// Appending alone: flushed by the log's own rule, and never made durable within the measured time.
pub fn append_lines(below: &Path, strategies: &[Strategy], options: &WalOptions) -> Vec<Line> {
    let mut lines = Vec::new();
    for strategy in strategies {
        for (name, measure) in [(raw::APPEND_ONLY, append as Measure), ("Sync append only", append_shared)] {
            let subject = Subject {
                kind: Kind::Ours,
                name,
                strategy: strategy.name(),
                waiting: Waiting::None,
                committers: 1,
                entry_bytes: raw::STREAM_ENTRY_BYTES,
            };
            lines.push(line(subject, below, *strategy, options.clone(), measure).against(raw::STREAM));
        }
    }
    lines
}

fn line(subject: Subject, below: &Path, strategy: Strategy, options: WalOptions, measure: Measure) -> Line {
    let (below, entry) = (PathBuf::from(below), raw::entry(subject.entry_bytes));
    let committers = subject.committers;
    let cell: Cell = Box::new(move |window: &Window<'_>| {
        let log = Log::make(&below, strategy)?;
        let (sample, entries) =
            measure(Arc::clone(&log.directory), options.clone(), window, committers, &entry)?;
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
    options: WalOptions,
    window: &Window<'_>,
    committers: usize,
    entry: &[u8],
) -> Result<(Sample, u64), Failure> {
    let wal = Shared::configure(directory, options)?;
    let sample = drive::threads(window, committers, || {
        wal.append_bytes_durable(entry)?;
        Ok(())
    })?;
    let entries = wal.last_entry_id();
    // Cuts what was preallocated and not used.
    wal.close()?;
    Ok((sample, entries))
}

fn submit(
    directory: Arc<dyn DurableDirectory>,
    options: WalOptions,
    window: &Window<'_>,
    committers: usize,
    entry: &[u8],
) -> Result<(Sample, u64), Failure> {
    let wal = Shared::configure(directory, options)?;
    let sample = drive::futures(window, committers, || {
        let ticket = wal.submit_bytes(entry)?;
        Ok(async move {
            ticket.await?;
            Ok(())
        })
    })?;
    let entries = wal.last_entry_id();
    wal.close()?;
    Ok((sample, entries))
}

fn own(
    directory: Arc<dyn DurableDirectory>,
    options: WalOptions,
    window: &Window<'_>,
    _: usize,
    entry: &[u8],
) -> Result<(Sample, u64), Failure> {
    let mut wal = Single::open_with(directory, options)?;
    let sample = drive::alone(window, || {
        wal.append_bytes_durable(entry)?;
        Ok(())
    })?;
    let entries = wal.last_entry_id();
    // Cuts what was preallocated and not used.
    wal.close()?;
    Ok((sample, entries))
}

fn append(
    directory: Arc<dyn DurableDirectory>,
    options: WalOptions,
    window: &Window<'_>,
    _: usize,
    entry: &[u8],
) -> Result<(Sample, u64), Failure> {
    let mut wal = Single::open_with(directory, options)?;
    let sample = append_in_groups(window, || wal.append_bytes(entry))?;
    let entries = wal.last_entry_id();
    wal.close()?;
    Ok((sample, entries))
}

fn append_shared(
    directory: Arc<dyn DurableDirectory>,
    options: WalOptions,
    window: &Window<'_>,
    _: usize,
    entry: &[u8],
) -> Result<(Sample, u64), Failure> {
    let wal = Shared::configure(directory, options)?;
    let sample = append_in_groups(window, || wal.append_bytes(entry))?;
    let entries = wal.last_entry_id();
    wal.close()?;
    Ok((sample, entries))
}

fn append_in_groups(
    window: &Window<'_>,
    mut append: impl FnMut() -> PersistenceResult<u64>,
) -> Result<Sample, Failure> {
    let sample = drive::alone(window, || {
        for _ in 0..APPENDS_TIMED {
            append()?;
        }
        Ok(())
    })?;
    Ok(sample.of_entries(APPENDS_TIMED))
}

/// What `auto` takes below a folder: the strategy, and what was measured.
pub fn auto_choice(below: &Path) -> Result<String, Failure> {
    let active = crate::cmd::backends::measure(below).map_err(|error| error.to_string())?;
    Ok(active.map_or_else(|| "none".to_owned(), |active| active.to_string()))
}
