//! What writes while the power is cut: every kind of writer, beside each other, telling what was promised.

mod records;
mod shared;
mod single;

use crate::check;
use crate::disks;
use crate::model::{Model, Payload, Promise};
use crate::random::Random;
use durability::backends::{Backend, BackendOptions};
use durability::publish::{CheckpointPublisher, PublishLog};
use durability::recover::RecoveryOptions;
use durability::storage::{CommitStrategy, FlushPolicy};
use durability::walog::{WalOptions, WalWriter};
use durability::{DurableDirectory, PersistenceError, PersistenceResult};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub type Dyn = dyn DurableDirectory;
pub type Tell = Arc<dyn Fn(Promise) + Send + Sync>;

/// Where checkpoints are published.
pub const CHECKPOINT: &str = "state";
/// Where the record log is.
pub const RECORDS: &str = "records";

/// Segments that one stream can fill, so that the next is written as a stream's.
const LARGE_SEGMENT_BYTES: u64 = 384 << 10;

/// How commits become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    Std,
    Linked,
    Direct,
    /// What a directory of rings takes by rule: direct writes or linked pairs, and the page cache behind a stream.
    Rule,
}

impl How {
    pub fn name(self) -> &'static str {
        match self {
            Self::Std => "std",
            Self::Linked => "linked",
            Self::Direct => "direct-dsync",
            Self::Rule => "rule",
        }
    }

    pub fn open(self, root: &Path) -> PersistenceResult<Arc<Dyn>> {
        let (backend, strategy) = match self {
            Self::Std => (Backend::Std, Some(CommitStrategy::WriteThenSync)),
            Self::Linked => (Backend::IoUring, Some(CommitStrategy::LinkedWriteSync)),
            Self::Direct => (Backend::IoUring, Some(CommitStrategy::DirectDsync)),
            Self::Rule => (Backend::IoUring, None),
        };
        let options = BackendOptions { strategy, calibrate: false, ..BackendOptions::default() };
        Ok(backend.open_with(root, options)?.directory)
    }
}

/// Options that make much happen in a short time. Where frames must suit direct I/O, `alignment_min` says what
/// the file system asks for.
pub fn options(random: &mut Random, alignment_min: u32) -> WalOptions {
    let manual = FlushPolicy::Manual;
    WalOptions {
        segment_bytes_max: random.pick(&[8 << 10, 32 << 10, 32 << 10, 128 << 10, LARGE_SEGMENT_BYTES]),
        preallocate_bytes: random.pick(&[0, 16 << 10, 64 << 10, 64 << 10]),
        recycle_capacity: random.below(4) as usize,
        buffer_bytes: random.pick(&[20 << 10, 64 << 10]),
        flush_policy: random.pick(&[manual, FlushPolicy::PerAppend, FlushPolicy::EveryN(3)]),
        pipeline_depth: random.pick(&[None, Some(1), Some(2), Some(4), Some(8)]),
        frame_alignment: random.pick(&[512, 512, 4096]).max(alignment_min),
        ..WalOptions::default()
    }
}

/// Commits one entry to a log below `root`.
pub fn probe(root: &Path, how: How, alignment_min: u32) -> PersistenceResult<()> {
    let root = root.join(how.name());
    std::fs::create_dir_all(&root)
        .map_err(|source| PersistenceError::io("create", how.name(), None, source))?;
    let options = WalOptions { frame_alignment: alignment_min, ..WalOptions::default() };
    let mut wal = WalWriter::<(), Dyn>::open_with(how.open(&root)?, options)?;
    wal.append_bytes_durable(b"x")?;
    wal.close()
}

/// One run over one file system.
pub struct Session<'a> {
    pub root: PathBuf,
    pub how: How,
    pub seed: u64,
    pub alignment_min: u32,
    /// Operations on the log.
    pub operations: u64,
    pub model: &'a Mutex<Model>,
    pub tell: Tell,
    /// What recovery must find.
    pub promise: Promise,
    /// Where recovery ended when it looked at the same disk before.
    pub expected_last: Option<u64>,
}

/// What the threads of a run share.
struct Run<'a> {
    directory: Arc<Dyn>,
    options: WalOptions,
    left: AtomicI64,
    model: &'a Mutex<Model>,
    tell: Tell,
    seed: u64,
}

type Outcome = Result<(), String>;

impl Session<'_> {
    /// Recovers, writes, and closes or drops. An error is the library's, or the file system's that was cut.
    pub fn run(&self) -> Outcome {
        let mut random = Random::of(self.seed, 1);
        let directory = self.how.open(&self.root).map_err(|error| format!("opening: {error}"))?;
        let mut options = options(&mut random, self.alignment_min);
        if self.how == How::Rule {
            options.segment_bytes_max = LARGE_SEGMENT_BYTES;
        }
        let wal = self.open(&directory, &options)?;
        let left = AtomicI64::new(self.operations as i64);
        let run = Run {
            directory,
            options,
            left,
            model: self.model,
            tell: Arc::clone(&self.tell),
            seed: self.seed,
        };
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if !random.one_in(4) {
                let random = Random::of(self.seed, 2);
                scope.spawn(|| disturb(&self.root, random, &is_over));
            }
            let records = random.one_in(2).then(|| scope.spawn(|| records::run(&run)));
            let outcome = match random.one_in(3) {
                true => single::run(&run, wal, Random::of(self.seed, 3)),
                false => shared::run(&run, wal, 1 + random.below(4)),
            };
            let records = records.map_or(Ok(()), |thread| thread.join().expect("no panic"));
            is_over.store(true, Ordering::Relaxed);
            outcome.and(records)
        })
    }

    fn open(&self, directory: &Arc<Dyn>, options: &WalOptions) -> Result<WalWriter<(), Dyn>, String> {
        let mut model = locked(self.model);
        let recovered = check::recover(directory, RecoveryOptions::best_effort(), &mut model, self.promise)?;
        let last = recovered.last_entry_id;
        if self.expected_last.is_some_and(|expected| expected != last) {
            return Err(format!("recovery ended at entry {:?} before, now at {last}", self.expected_last));
        }
        model.cut(last);
        let (_, wal) = recovered
            .into_writer::<()>(options.clone())
            .map_err(|error| format!("opening the log behind entry {last}: {error}"))?;
        (self.tell)(Promise { entries: last, ..Promise::default() });
        Ok(wal)
    }
}

impl Run<'_> {
    fn take_operation(&self) -> bool {
        self.left.fetch_sub(1, Ordering::Relaxed) > 0
    }

    fn stop(&self) {
        self.left.store(0, Ordering::Relaxed);
    }

    fn durable(&self, entries: u64) {
        (self.tell)(Promise { entries, ..Promise::default() });
    }

    /// Remembers a batch whose first id (or failure) `outcome` is.
    fn note(&self, payloads: &[Payload], outcome: PersistenceResult<u64>) -> PersistenceResult<u64> {
        let mut model = locked(self.model);
        match &outcome {
            Ok(first) => model.appended(*first, payloads),
            Err(_) => model.uncertain.extend(payloads),
        }
        outcome
    }

    /// Publishes the newest state that is known.
    fn publish<L: PublishLog<Directory = Dyn>>(
        &self,
        wal: &mut L,
        random: &mut Random,
    ) -> PersistenceResult<()> {
        let fold = locked(self.model).newest_fold();
        if fold.through == 0 {
            return Ok(());
        }
        let publisher =
            CheckpointPublisher::<Dyn>::new(Arc::clone(&self.directory)).keep(1 + random.below(2) as usize);
        let record = Payload::random(random);
        let published = publisher.publish_with(
            wal,
            fold.through,
            CHECKPOINT,
            |writer| writer.write_state(&fold.to_bytes()),
            |_| Ok(record.make()),
        );
        let entry_id = self.note(&[record], published.map(|published| published.wal_checkpoint_entry_id))?;
        (self.tell)(Promise { entries: entry_id, checkpoint: fold.through, ..Promise::default() });
        Ok(())
    }
}

fn payloads(random: &mut Random, count: u64) -> (Vec<Payload>, Vec<Vec<u8>>) {
    made((0..count).map(|_| Payload::random(random)).collect())
}

impl Run<'_> {
    /// What is flushed in large pieces that nobody waits for, each longer than the one before; enough to fill large
    /// segments, where there are such.
    fn stream(&self, random: &mut Random) -> impl Iterator<Item = (Vec<Payload>, Vec<Vec<u8>>)> {
        let batches =
            if self.options.segment_bytes_max == LARGE_SEGMENT_BYTES { 10 } else { 2 * random.below(4) };
        (2..2 + batches).map(move |count| made((0..count).map(|_| Payload::large(random)).collect()))
    }
}

fn made(payloads: Vec<Payload>) -> (Vec<Payload>, Vec<Vec<u8>>) {
    let bytes = payloads.iter().map(|payload| payload.make()).collect();
    (payloads, bytes)
}

fn failed(what: &str, error: &PersistenceError) -> String {
    format!("{what}: {error}")
}

pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Somebody else on the same file system: pages are written back early and out of order, and the journal is
/// committed by a file that is not ours.
fn disturb(root: &Path, mut random: Random, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let done = match random.below(3) {
            0 => sync_another_file(root),
            _ => write_back_something(root, &mut random),
        };
        // On a file system without power nothing is left to disturb.
        if done.is_err() && File::open(root.join("other")).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_micros(random.below(4000)));
    }
}

fn sync_another_file(root: &Path) -> std::io::Result<()> {
    use std::io::Write;
    let mut other = OpenOptions::new().create(true).append(true).open(root.join("other"))?;
    other.write_all(b"something else\n")?;
    other.sync_all()
}

fn write_back_something(root: &Path, random: &mut Random) -> std::io::Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in [root.to_owned(), root.join("wal")] {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        files.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()));
    }
    files.sort();
    if files.is_empty() {
        return Ok(());
    }
    let file = File::open(&files[random.below(files.len() as u64) as usize])?;
    let pages = file.metadata()?.len().div_ceil(4096);
    let first = random.below(pages + 1);
    disks::start_writeback(&file, first * 4096, (1 + random.below(4)) * 4096);
    Ok(())
}
