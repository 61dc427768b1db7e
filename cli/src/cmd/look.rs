//! What the commands that look inside share: what was named, what it is found to be, as an exit code, and how
//! many threads read.

use super::Failure;
use crate::{CORRUPT, TORN, USAGE};
use durability::error::{FormatProblem, PersistenceError};
use durability::formats::header::FileKind;
use durability::inspect::{self, Checkpoints, Verdict};
use durability::walog::{SegmentScans, WalCheck};
use durability::{Directory, FsDirectory};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Part of the help of each command that ends with a verdict.
pub const EXIT_CODES: &str = "Exit codes:\n  0  clean\n  1  an I/O error: nothing is known\n  2  wrong usage, or \
    nothing of ours is there\n  3  a torn tail, which best-effort recovery accepts (an undecidable one too: \
    best-effort cuts it)\n  4  corruption: damaged, missing, duplicate or foreign files; no mode accepts it";

/// Wrong usage: told on standard error, exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What a command was pointed at. Nothing is created, and nothing locked.
pub enum Target {
    /// A directory with a log in it.
    Log(Arc<FsDirectory>),
    /// One file of ours.
    File {
        /// The directory that holds it.
        directory: Arc<FsDirectory>,
        /// Its name there.
        name: String,
        /// What it is.
        kind: FileKind,
    },
}

impl Target {
    /// Looks what `path` is.
    pub fn find(path: &Path) -> Result<Self, Failure> {
        let metadata = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if metadata.is_dir() { Self::find_log(path) } else { Self::find_file(path) }
    }

    fn find_log(path: &Path) -> Result<Self, Failure> {
        let absolute = std::path::absolute(path)?;
        // The folder of the log itself is meant as well.
        let parent = absolute.parent().filter(|_| absolute.file_name().is_some_and(|name| name == "wal"));
        for root in [Some(absolute.as_path()), parent].into_iter().flatten() {
            let directory = FsDirectory::existing(root)?;
            if directory.try_exists("wal")? && root.join("wal").is_dir() {
                // Every writer leaves its lock. An empty folder may be where a disk is not mounted.
                if directory.list_dir("wal")?.is_empty() {
                    return Err(
                        Usage(format!("{} holds no log: its folder wal is empty", path.display())).into()
                    );
                }
                return Ok(Self::Log(Arc::new(directory)));
            }
        }
        Err(Usage(format!("{} holds no log: there is no folder wal in it", path.display())).into())
    }

    fn find_file(path: &Path) -> Result<Self, Failure> {
        let absolute = std::path::absolute(path)?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(Usage(format!("{} is no file", path.display())).into());
        };
        let Some(name) = name.to_str() else {
            return Err(Usage(format!("the name of {} is no UTF-8", path.display())).into());
        };
        let directory = Arc::new(FsDirectory::existing(parent)?);
        let kind = match inspect::kind_of(directory.as_ref(), name) {
            Ok(kind) => kind,
            Err(PersistenceError::Format { problem: FormatProblem::TooShort { bytes: 0, .. }, .. }) => {
                let problem = "holds nothing, or only zeros: made and never begun, or none of ours";
                return Err(Usage(format!("{} {problem}", path.display())).into());
            }
            Err(PersistenceError::Format { .. }) => {
                let problem = "is no segment, no record log and no checkpoint";
                return Err(Usage(format!("{} {problem}", path.display())).into());
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self::File { directory, name: name.to_owned(), kind })
    }
}

/// Refuses a directory to work in that is not there.
pub fn existing(directory: &Path) -> Result<(), Usage> {
    match std::fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Usage(format!("{} is not a directory", directory.display()))),
        Err(error) => Err(Usage(format!("{}: {error}", directory.display()))),
    }
}

/// Reads the checkpoints that lie beside a log. Only regular files are opened: opening something else may block.
pub fn checkpoints(directory: &FsDirectory, quiet: bool) -> Result<Checkpoints, Failure> {
    let wal = directory.file_path("wal");
    let Some(root) = wal.as_deref().and_then(Path::parent) else { return Ok(Checkpoints::default()) };
    let (mut files, mut bytes) = (Vec::new(), 0);
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
            files.push(name);
            bytes += metadata.len();
        }
    }
    let bar = progress(quiet);
    bar.set_length(bytes);
    let found = Checkpoints::read(directory, &files, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    Ok(found?)
}

/// A verdict as an exit code.
pub fn exit_code(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Clean => 0,
        verdict if verdict.is_accepted() => TORN,
        _ => CORRUPT,
    }
}

/// What the library says of a file, it says of one in its directory: puts before it which directory that is.
pub fn about(named: &Named, result: Result<ExitCode, Failure>) -> Result<ExitCode, Failure> {
    result.map_err(|error| placed(named, error))
}

/// The same of an error.
pub fn placed(named: &Named, error: Failure) -> Failure {
    match error.downcast::<PersistenceError>() {
        Ok(error) => format!("{}: {error}", named.path.display()).into(),
        Err(error) => error,
    }
}

/// The exit code of an error that ends a command, where that is not simply 1.
pub fn code_of(error: &Failure) -> Option<ExitCode> {
    error.downcast_ref::<Usage>().map(|_| ExitCode::from(USAGE))
}

/// How a log is read.
#[derive(Clone, Debug, clap::Args)]
pub struct Reading {
    /// Threads that read segments side by side; by default one for each processor.
    #[arg(long)]
    pub threads: Option<NonZeroUsize>,
}

impl Reading {
    /// How many threads there are.
    pub fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or_else(all, NonZeroUsize::get)
    }

    /// Reads every segment.
    pub fn scan_all<D: Directory + ?Sized>(
        &self,
        check: &WalCheck<D>,
        progress: &ProgressBar,
    ) -> SegmentScans {
        progress.set_position(0);
        progress.set_length(check.file_bytes());
        let count = check.segments();
        // Relaxed: a ticket dispenser; the results go through the mutex.
        let next = AtomicUsize::new(0);
        let results = Mutex::new((0..count).map(|_| None).collect::<Vec<_>>());
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return;
                }
                let scan = check.scan(index, &mut |bytes| progress.inc(bytes));
                results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(scan);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads().min(count) {
                scope.spawn(work);
            }
            work();
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()
    }
}

/// A bar that counts bytes, on a terminal; nowhere else.
pub fn progress(quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Writes a line to standard output. Whoever closed it has seen enough: that is no error.
pub fn say(line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    unless_closed(writeln!(std::io::stdout(), "{line}").map_err(Failure::from))
}

/// An error that is no more than a closed standard output is none.
pub fn unless_closed(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        result => result,
    }
}

fn is_closed_pipe(error: &Failure) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// The arguments that all of these commands take.
#[derive(Clone, Debug, clap::Args)]
pub struct Named {
    /// A directory with a log (the folder `wal` is in it), or one file: a segment, a record log, a checkpoint.
    pub path: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use durability::error::PersistenceResult;
    use durability::storage::ReadAt;
    use durability::walog::{WalOptions, WalWriter};
    use std::io::Read;
    use std::sync::Condvar;
    use std::time::Duration;

    /// A directory whose files open when so many are being opened at once, or not at all.
    struct Gate {
        inner: FsDirectory,
        together: AtomicUsize,
        waiting: Mutex<usize>,
        arrived: Condvar,
    }

    impl Directory for Gate {
        fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
            self.inner.create_file(path)
        }
        fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
            self.inner.append_file(path)
        }
        fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
            self.inner.open_file(path)
        }
        fn exists(&self, path: &str) -> bool {
            self.inner.exists(path)
        }
        fn delete(&self, path: &str) -> PersistenceResult<()> {
            self.inner.delete(path)
        }
        fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
            self.inner.atomic_rename(from, to)
        }
        fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
            self.inner.create_dir_all(path)
        }
        fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
            self.inner.list_dir(path)
        }
        fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
            self.inner.atomic_write(path, data)
        }
        fn file_path(&self, path: &str) -> Option<PathBuf> {
            self.inner.file_path(path)
        }
        fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
            let mut waiting = self.waiting.lock().expect("not poisoned");
            *waiting += 1;
            self.arrived.notify_all();
            let patience = Duration::from_secs(20);
            let (_here, late) = self
                .arrived
                .wait_timeout_while(waiting, patience, |here| *here < self.together.load(Ordering::SeqCst))
                .expect("waits");
            assert!(!late.timed_out(), "nobody reads at the same time");
            self.inner.open_at(path)
        }
    }

    #[test]
    fn segments_are_read_side_by_side() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = FsDirectory::new(root.path()).expect("opens");
        let options = WalOptions { segment_bytes_max: 1, preallocate_bytes: 0, ..WalOptions::default() };
        let mut wal =
            WalWriter::<(), FsDirectory>::open_with(Arc::new(inner.clone()), options).expect("opens");
        for _ in 0..3 {
            wal.append_bytes_durable(b"entry").expect("commits");
        }
        wal.close().expect("closes");
        let gate =
            Gate { inner, together: AtomicUsize::new(0), waiting: Mutex::new(0), arrived: Condvar::new() };
        let gate = Arc::new(gate);
        let check = WalCheck::begin(Arc::clone(&gate)).expect("lists");
        *gate.waiting.lock().expect("not poisoned") = 0;
        gate.together.store(3, Ordering::SeqCst);
        let reading = Reading { threads: NonZeroUsize::new(3) };
        let scans = reading.scan_all(&check, &ProgressBar::hidden());
        let entries: Vec<_> = scans.into_iter().map(|scan| scan.expect("reads").end.entries).collect();
        assert_eq!(entries, [1, 1, 1]);
    }
}
