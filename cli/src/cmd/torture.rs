//! `durability torture`: the main job. A child commits, is killed, and the parent recovers at once.

use super::Failure;
use super::interrupt;
use super::look::say;
use super::payload::{Random, check};
use crate::{LOST, USAGE};
use durability::DurableDirectory;
use durability::backends::Backend;
use durability::publish::CheckpointPublisher;
use durability::recover::{RecoveryOptions, recover_with};
use durability::walog::{WalOptions, WalReader, WalReplayMode, WalWriter};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Every so many rounds a checkpoint is published, which cuts the log.
const ROUNDS_PER_CHECKPOINT: u64 = 5;

/// Arguments of `durability torture`.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Each round starts a writer process whose threads append, batch, commit and use tickets on one log, of \
    which the seed chooses the options: tiny segments, recycling, several commits in flight; in every other one a \
    thread publishes checkpoints, which cuts the log. It is \
    killed (SIGKILL) at a random moment; the log is opened at once by this process, through the other backend where \
    there are two (`--recover`), while requests of the dead writer may still be landing. Then every entry is read: ids without a \
    gap, contents as appended, batches whole, everything acknowledged there, nothing changed that was seen before. \
    Every fifth round publishes a checkpoint, cuts the log and recovers from both.\n\nA kill is not a power cut: what \
    the operating system had is still there. Power cuts are simulated by the library's tests.\n\nExit codes: 0 \
    nothing was lost, 1 something was lost or failed, 2 wrong usage, 130 interrupted (Ctrl-C: it ends behind the writer \
    that runs, and says what it found)."
)]
pub struct Arguments {
    /// Where to work, new or empty; the last log stays there. Without it: a temporary directory here, removed at the end.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Write through this backend only: auto, io-uring or std. Without it io_uring and std take turns.
    #[arg(long)]
    backend: Option<Backend>,
    /// Who recovers. By default, the other backend than the writer's; with `--backend io-uring` both in turn,
    /// with `--backend std` std alone, so that no ring is made.
    #[arg(long, value_enum)]
    recover: Option<Recoverer>,
    /// How many writers are killed.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Threads that commit in each writer.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=4096))]
    threads: u64,
    /// Repeat the choices of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Let the writers acknowledge what is not there, to see that it is found.
    #[arg(long, hide = true)]
    plant_a_loss: bool,
}

/// Who recovers what a writer left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Recoverer {
    /// io_uring.
    IoUring,
    /// `std::fs`.
    Std,
    /// Both in turn.
    InTurn,
}

/// What was counted.
#[derive(Clone, Debug, Default, Serialize)]
struct Tally {
    rounds: u64,
    kills: u64,
    acknowledged: u64,
    recovered: u64,
    lost: u64,
    violations: u64,
}

#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    total: Tally,
    seed: u64,
    backends: BTreeMap<&'static str, Tally>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    interrupt::listen();
    let (root, _temporary) = match work_directory(arguments)? {
        Ok(work) => work,
        Err(usage) => {
            eprintln!("durability: {usage}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | clock_nanos());
    let backends = backends(arguments, &root)?;
    let progress = progress(arguments);
    let mut torture =
        Torture { arguments, root, seed, backends, seen: BTreeMap::new(), problems: Vec::new() };
    let mut summary = Summary { total: Tally::default(), seed, backends: BTreeMap::new() };
    for round in 0..arguments.rounds {
        let (writer, tally) = torture.round(round)?;
        for sum in [&mut summary.total, summary.backends.entry(writer.name()).or_default()] {
            sum.add(&tally);
        }
        progress.inc(1);
        if tally.violations + tally.lost > 0 || interrupt::is_asked() {
            break;
        }
    }
    progress.finish_and_clear();
    for problem in &torture.problems {
        eprintln!("violation: {problem}");
    }
    report(arguments, &summary)?;
    let failed = summary.total.lost + summary.total.violations > 0;
    Ok(if failed { ExitCode::from(LOST) } else { interrupt::code() })
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.kills += other.kills;
        self.acknowledged += other.acknowledged;
        self.recovered += other.recovered;
        self.lost += other.lost;
        self.violations += other.violations;
    }
}

struct Torture<'a> {
    arguments: &'a Arguments,
    root: PathBuf,
    seed: u64,
    backends: Vec<Backend>,
    /// Checksums of what earlier rounds recovered.
    seen: BTreeMap<u64, u64>,
    problems: Vec<String>,
}

impl Torture<'_> {
    fn round(&mut self, round: u64) -> Result<(Backend, Tally), Failure> {
        let mut random = Random(self.seed.wrapping_add(round.wrapping_mul(0x1234_5677)));
        let writer = match self.arguments.backend {
            Some(backend) => Backend::open(backend, &self.root)?.chosen,
            None => self.backends[round as usize % self.backends.len()],
        };
        let reader = self.recoverer(writer, round);
        let mut tally = Tally { rounds: 1, kills: 1, ..Tally::default() };
        let acknowledged = self.write_and_kill(writer, &mut random)?;
        tally.acknowledged = acknowledged.len() as u64;
        let before = self.seen.last_key_value().map_or(0, |(id, _)| *id);
        match self.recover(reader, round) {
            Ok(last) => {
                tally.recovered = last.saturating_sub(before);
                tally.lost = acknowledged.iter().filter(|id| **id > last).count() as u64;
                if tally.lost > 0 {
                    self.problems.push(format!(
                        "round {round}: the log ends at {last}, {} acknowledged entries are gone",
                        tally.lost
                    ));
                }
                if last < before {
                    self.problems
                        .push(format!("round {round}: the log ends at {last}, it had ended at {before}"));
                    tally.violations += 1;
                }
            }
            Err(problem) => {
                self.problems.push(format!("round {round} ({writer} killed, {reader} recovers): {problem}"));
                tally.violations += 1;
            }
        }
        Ok((writer, tally))
    }

    /// The backend that recovers what `writer` leaves in this round.
    fn recoverer(&self, writer: Backend, round: u64) -> Backend {
        let turn = if self.arguments.backend.is_some() { round } else { round / 2 };
        let in_turn = self.backends[turn as usize % self.backends.len()];
        match (self.arguments.recover, self.arguments.backend) {
            (Some(Recoverer::IoUring), _) => Backend::IoUring,
            (Some(Recoverer::Std), _) => Backend::Std,
            (Some(Recoverer::InTurn), _) | (None, Some(_)) => in_turn,
            (None, None) => self.backends.iter().copied().find(|other| *other != writer).unwrap_or(writer),
        }
    }

    /// Lets a writer run for a random while, kills it, and returns what it acknowledged.
    fn write_and_kill(&self, backend: Backend, random: &mut Random) -> Result<Vec<u64>, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("torture-child").arg(&self.root).args(["--backend", backend.name()]);
        command.args([
            "--threads",
            &self.arguments.threads.to_string(),
            "--seed",
            &random.next().to_string(),
        ]);
        if self.arguments.plant_a_loss {
            command.arg("--lie");
        }
        apart(&mut command);
        let mut child = Guard(command.stdout(Stdio::piped()).spawn()?);
        let mut out = child.0.stdout.take().ok_or("no pipe")?;
        let mut ready = [0; 8];
        out.read_exact(&mut ready).map_err(|_| "the writer did not start")?;
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = out.read_to_end(&mut bytes);
            bytes
        });
        std::thread::sleep(Duration::from_millis(10 + random.below(120)));
        if let Some(status) = child.0.try_wait()? {
            return Err(format!("the writer ended by itself: {status}").into());
        }
        child.0.kill()?;
        child.0.wait()?;
        let bytes = reader.join().map_err(|_| "the pipe's reader panicked")?;
        // A last number may be cut in the middle; it was not acknowledged to anybody.
        Ok(bytes.chunks_exact(8).map(|id| u64::from_le_bytes(id.try_into().unwrap_or_default())).collect())
    }

    /// Opens, reads and checks the log; returns its last entry.
    fn recover(&mut self, backend: Backend, round: u64) -> Result<u64, Failure> {
        let directory = backend.open(&self.root)?.directory;
        let mut wal =
            WalWriter::<(), dyn DurableDirectory>::open_with(Arc::clone(&directory), WalOptions::default())?;
        let last = wal.last_entry_id();
        let reader = WalReader::<(), dyn DurableDirectory>::new(Arc::clone(&directory));
        let range = reader.entry_range(WalReplayMode::BestEffortTail)?;
        let first = range.map_or(1, |(first, _)| first);
        let mut batch = Batch::default();
        let mut found = BTreeMap::new();
        reader.replay_bytes_from(first, WalReplayMode::BestEffortTail, |entry_id, payload| {
            found.insert(entry_id, (hash(payload), check(payload), payload.len()));
            Ok(())
        })?;
        for (expected, (entry_id, (hash, contents, bytes))) in (first..).zip(&found) {
            if expected != *entry_id {
                return Err(format!("entry {expected} is missing").into());
            }
            // The record of a checkpoint is the only entry that is not a writer's.
            match contents {
                Some(place) => batch.take(*entry_id, *place)?,
                None if *bytes == RECORD.len() => batch.end(*entry_id)?,
                None => return Err(format!("entry {entry_id} is not what was appended").into()),
            }
            if self.seen.insert(*entry_id, *hash).is_some_and(|before| before != *hash) {
                return Err(format!("entry {entry_id} has changed since it was recovered").into());
            }
        }
        batch.end(last + 1)?;
        if found.keys().next_back().copied().unwrap_or(last) != last {
            return Err(format!("opening says the log ends at {last}, reading disagrees").into());
        }
        if round % ROUNDS_PER_CHECKPOINT == ROUNDS_PER_CHECKPOINT - 1 {
            return self.publish(&directory, wal, last);
        }
        wal.flush_and_sync()?;
        drop(wal);
        Ok(last)
    }

    fn publish(
        &mut self,
        directory: &Arc<dyn DurableDirectory>,
        mut wal: WalWriter<(), dyn DurableDirectory>,
        last: u64,
    ) -> Result<u64, Failure> {
        let publisher = CheckpointPublisher::<dyn DurableDirectory>::new(Arc::clone(directory));
        let state = last.to_le_bytes();
        let write = |writer: &mut durability::checkpoint::CheckpointWriter<'_, dyn DurableDirectory>| {
            writer.write_state(&state)
        };
        let published = publisher.publish_with(&mut wal, last, CHECKPOINT, write, |_| Ok(RECORD.to_vec()))?;
        wal.close()?;
        let recovered = recover_with::<Vec<u8>, Vec<u8>, u64, dyn DurableDirectory, _, ()>(
            Arc::clone(directory),
            Some(CHECKPOINT),
            RecoveryOptions::strict(),
            &durability::codec::Bytes,
            |state| state.and_then(|state| state.try_into().ok()).map_or(0, u64::from_le_bytes),
            |applied, entry_id, _| *applied = entry_id,
        )?;
        let record = published.wal_checkpoint_entry_id;
        if recovered.state != record || recovered.last_entry_id != record {
            return Err(
                format!("recovery from the checkpoint ends at {}, not at {record}", recovered.state).into()
            );
        }
        let kept = self.seen.split_off(&last.saturating_sub(100_000));
        self.seen = kept;
        self.seen.insert(record, hash(RECORD));
        Ok(record)
    }
}

/// Where checkpoints are.
pub const CHECKPOINT: &str = "checkpoint";
/// What the log records of a checkpoint.
pub const RECORD: &[u8] = b"ckpt";

/// Batches are whole: their entries follow one another, from the first to the last.
#[derive(Default)]
struct Batch {
    nonce: u64,
    next: u8,
    count: u8,
}

impl Batch {
    fn take(&mut self, entry_id: u64, (nonce, index, count): (u64, u8, u8)) -> Result<(), Failure> {
        if index == 0 {
            self.end(entry_id)?;
            *self = Self { nonce, next: 1, count };
            return Ok(());
        }
        // A log whose beginning was cut may begin within a batch.
        let is_first = self.count == 0;
        if !is_first && (nonce != self.nonce || index != self.next || count != self.count) {
            return Err(format!("entry {entry_id} does not continue its batch").into());
        }
        *self = Self { nonce, next: index + 1, count };
        Ok(())
    }

    fn end(&mut self, entry_id: u64) -> Result<(), Failure> {
        if self.next == self.count {
            return Ok(());
        }
        Err(format!(
            "only {} of the {} entries of a batch are there before entry {entry_id}",
            self.next, self.count
        )
        .into())
    }
}

/// Keeps a terminal's Ctrl-C from the writer: this process kills it, and one that is gone ends it, see `acknowledge`.
#[cfg(unix)]
fn apart(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

#[cfg(not(unix))]
fn apart(_: &mut Command) {}

/// Kills and reaps the writer whatever happens.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory, and what removes it at the end; or what is wrong with the one that was named.
type Work = Result<(PathBuf, Option<tempfile::TempDir>), String>;

fn work_directory(arguments: &Arguments) -> Result<Work, Failure> {
    let Some(directory) = &arguments.directory else {
        let temporary = tempfile::Builder::new().prefix("torture-").tempdir_in(".")?;
        return Ok(Ok((temporary.path().to_owned(), Some(temporary))));
    };
    if directory.exists() && !directory.is_dir() {
        return Ok(Err(format!("{} is not a directory", directory.display())));
    }
    std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    if std::fs::read_dir(directory)?.next().is_some() {
        return Ok(Err(format!(
            "{} is not empty; torture wants a directory of its own",
            directory.display()
        )));
    }
    Ok(Ok((directory.clone(), None)))
}

/// The backends that can be had here.
fn backends(arguments: &Arguments, root: &Path) -> Result<Vec<Backend>, Failure> {
    if arguments.backend == Some(Backend::Std) && matches!(arguments.recover, None | Some(Recoverer::Std)) {
        return Ok(vec![Backend::Std]);
    }
    let auto = Backend::Auto.open(root)?;
    if auto.chosen == Backend::Std {
        if arguments.backend == Some(Backend::IoUring) || arguments.recover == Some(Recoverer::IoUring) {
            return Err(auto.reason.to_string().into());
        }
        if !arguments.json {
            eprintln!("only std: {}", auto.reason);
        }
        return Ok(vec![Backend::Std]);
    }
    Ok(vec![Backend::IoUring, Backend::Std])
}

fn progress(arguments: &Arguments) -> ProgressBar {
    if arguments.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} writers killed, {eta} left");
    ProgressBar::new(arguments.rounds).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn report(arguments: &Arguments, summary: &Summary) -> Result<(), Failure> {
    if arguments.json {
        return say(format_args!("{}", serde_json::to_string(summary)?));
    }
    for (name, tally) in
        summary.backends.iter().map(|(name, tally)| (*name, tally)).chain([("together", &summary.total)])
    {
        say(format_args!(
            "{name:>9}: {} writers killed, {} entries acknowledged, {} recovered, {} lost, {} violations",
            tally.kills, tally.acknowledged, tally.recovered, tally.lost, tally.violations
        ))?;
    }
    say(format_args!("seed {}", summary.seed))
}

fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a.
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn clock_nanos() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| u64::from(now.subsec_nanos()))
}
