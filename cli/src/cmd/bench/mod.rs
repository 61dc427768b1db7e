//! `durability bench`: commits against raw loops and reference engines, in one interleaved run; with
//! `--recovery`, replay and opening against a plain loop over the same files.
//!
//! Every line is measured once in each round, in turn, so that what else the machine does falls on all of
//! them; ratios are taken within a round. Numbers of different runs are not for comparing.

mod ahead;
mod disk;
mod drive;
mod line;
mod meter;
mod ours;
mod raw;
mod recovery;
mod reference;
mod report;
mod ring;

use super::interrupt;
use crate::USAGE;
use disk::Disk;
use drive::Window;
use durability::walog::WalOptions;
use indicatif::{ProgressBar, ProgressStyle};
use line::Line;
use meter::Meter;
use ours::{Depth, Strategy};
use report::{Report, Skipped};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// What a benchmark fails with; committers are threads.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Most committers that can be asked for.
const COMMITTERS_MAX: u64 = 4096;
/// Largest entry that can be asked for, in bytes.
const ENTRY_BYTES_MAX: u64 = 1 << 20;

/// Arguments of `durability bench`.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Works in a new folder below DIR, which is removed at the end. DIR must be on the disk that is to be \
    measured. Raw loops and reference engines run in the same rounds as the library, because a disk's speed \
    today says nothing about yesterday's; a machine that is busy with other things measures those.\n\nWhat the \
    columns mean is in docs/benchmarks.md. Ctrl-C ends it behind the line that is measured, with nothing \
    told; once more, at once, and the folder stays.\n\nExit codes: 0 measured, 1 something failed, 2 wrong usage, 130 interrupted."
)]
pub struct Arguments {
    /// An existing directory on the disk to measure. By default, the current one.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Measure replay and opening instead of commits.
    #[arg(long, conflicts_with_all = ["full", "committers", "bytes", "strategy", "seconds"])]
    recovery: bool,
    /// With `--recovery`: entries of the log `grouped`; another has four times as many. By default a million, or
    /// 100,000 with `--quick`.
    #[arg(long, requires = "recovery", value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    entries: Option<u64>,
    /// A first impression, in less than 30 seconds.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Every number of committers and every entry size.
    #[arg(long)]
    full: bool,
    /// Only these numbers of committers, e.g. 1,8,64.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=COMMITTERS_MAX))]
    committers: Vec<u64>,
    /// Only these entry sizes, in bytes, e.g. 256,4096.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=ENTRY_BYTES_MAX))]
    bytes: Vec<u64>,
    /// Only these strategies of the library, separated by commas.
    #[arg(long, value_delimiter = ',', value_enum)]
    strategy: Vec<Strategy>,
    /// Appending without sync, too, against a raw loop of large writes. Such lines take a second each, or what
    /// `--seconds` says: in less, the raw loop is a measure of free memory.
    #[arg(long)]
    append: bool,
    /// The library's shared log also with so many commits in flight at once, instead of what it chooses; e.g.
    /// 2,4.
    #[arg(long, value_delimiter = ',', value_enum)]
    depth: Vec<Depth>,
    /// Size at which the library's segments are sealed, in bytes. By default the library's.
    #[arg(long, conflicts_with = "recovery", value_parser = clap::value_parser!(u64).range(64 << 10..=1 << 40))]
    segment_bytes: Option<u64>,
    /// How often every line is measured. By default 5, or 3 with `--quick`.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How long a line is measured in each round, in seconds. By default 0.3 (appending: 1), or 0.1 with `--quick`.
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0 to 3600".to_owned()),
    }
}

impl Arguments {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 })
    }

    fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.1 } else { 0.3 })
    }

    /// Appending takes longer: the raw loop is held to the disk only when it has filled what the kernel leaves in memory.
    fn append_seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.1 } else { 1.0 })
    }

    fn entries(&self) -> u64 {
        self.entries.unwrap_or(if self.quick { 100_000 } else { 1_000_000 })
    }

    fn committers(&self) -> Vec<usize> {
        let all: &[u64] = if self.full { &[1, 2, 8, 64, 256] } else { &[1, 8, 64] };
        chosen(&self.committers, all)
    }

    fn entry_bytes(&self) -> Vec<usize> {
        let all: &[u64] = match (self.full, self.quick) {
            (true, _) => &[128, 256, 1 << 10, 4 << 10, 64 << 10],
            (_, true) => &[256],
            _ => &[256, 4 << 10],
        };
        chosen(&self.bytes, all)
    }

    fn wal_options(&self) -> WalOptions {
        let default = WalOptions::default();
        WalOptions { segment_bytes_max: self.segment_bytes.unwrap_or(default.segment_bytes_max), ..default }
    }

    fn strategies(&self) -> Vec<Strategy> {
        if self.strategy.is_empty() { Strategy::ALL.to_vec() } else { self.strategy.clone() }
    }
}

/// What was asked for, or everything; without repetitions.
fn chosen(asked: &[u64], all: &[u64]) -> Vec<usize> {
    let mut chosen: Vec<usize> =
        if asked.is_empty() { all } else { asked }.iter().map(|value| *value as usize).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, super::Failure> {
    run_here(arguments).map_err(|error| -> super::Failure { error })
}

fn run_here(arguments: &Arguments) -> Result<ExitCode, Failure> {
    interrupt::listen();
    let scratch = match disk::scratch(arguments.directory.as_deref())? {
        Ok(scratch) => scratch,
        Err(usage) => {
            eprintln!("durability: {usage}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    if arguments.recovery {
        let recovery = recovery::measure(arguments, scratch.path())?;
        show(arguments, &recovery, recovery::write)?;
    } else {
        let report = measure(arguments, scratch.path())?;
        show(arguments, &report, report::write)?;
    }
    scratch.close()?;
    Ok(ExitCode::SUCCESS)
}

/// Prints one object, or the text that `write` makes of it.
fn show<T: serde::Serialize>(
    arguments: &Arguments,
    what: &T,
    write: impl Fn(&T, &mut String) -> std::fmt::Result,
) -> Result<(), Failure> {
    let mut text = String::new();
    if arguments.json {
        text = serde_json::to_string(what)?;
        text.push('\n');
    } else {
        write(what, &mut text)?;
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn measure(arguments: &Arguments, scratch: &Path) -> Result<Report, Failure> {
    let (mut disk, device_stat) = Disk::below(scratch);
    disk.auto = Some(ours::auto_choice(scratch)?);
    let meter = Meter::new(device_stat);
    let (mut lines, skipped) = available(plan(arguments, scratch)?, &meter, scratch)?;
    let window = |seconds| Window { time: Duration::from_secs_f64(seconds), meter: &meter };
    let (commits, appends) = (window(arguments.seconds()), window(arguments.append_seconds()));
    let progress = progress(arguments, lines.len() as u64 * u64::from(arguments.rounds()));
    for round in 0..arguments.rounds() {
        // There and back, so that no line always has the same line before it.
        let turns: Vec<usize> =
            if round % 2 == 0 { (0..lines.len()).collect() } else { (0..lines.len()).rev().collect() };
        for turn in turns {
            interrupt::check()?;
            settle(scratch)?;
            let line = &mut lines[turn];
            progress.set_message(format!("{} {}", line.subject.name, line.subject.strategy));
            let window = if line.baseline == raw::STREAM { &appends } else { &commits };
            let sample = (line.cell)(window).map_err(|error| named(line, &error))?;
            line.samples.push(sample);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let rows = report::rows(&lines);
    let flush_of = |name: &'static str| {
        let row = rows.iter().find(|row| row.subject.name == name)?;
        Some((row.p50_us?, name))
    };
    if let Some((flush_us, name)) = flush_of(raw::O_DSYNC).or_else(|| flush_of(raw::BASELINE)) {
        disk.judge(flush_us, name);
    }
    let (rounds, seconds) = (arguments.rounds(), arguments.seconds());
    let append_seconds = arguments.append.then(|| arguments.append_seconds());
    Ok(Report { disk, rounds, seconds, append_seconds, rows, skipped })
}

/// All lines that were asked for. The raw loops always are: everything is compared to them.
fn plan(arguments: &Arguments, scratch: &Path) -> Result<Vec<Line>, Failure> {
    let (committers, sizes) = (arguments.committers(), arguments.entry_bytes());
    let batch_bytes = committers.iter().max().unwrap_or(&1) * sizes.iter().max().unwrap_or(&1);
    let files = Arc::new(raw::Files::prepare(scratch, batch_bytes.min(64 << 20))?);
    let (options, strategies) = (arguments.wal_options(), arguments.strategies());
    let mut lines = Vec::new();
    for bytes in sizes {
        lines.extend(raw::raw_lines(&files, bytes, arguments.segment_bytes));
        for count in committers.iter().copied() {
            lines.extend(raw::reference_lines(&files, count, bytes));
            lines.extend(ours::lines(scratch, &strategies, &options, &arguments.depth, count, bytes));
        }
    }
    if arguments.append {
        lines.extend(raw::stream_lines(&files, options.segment_bytes_max));
        lines.extend(ours::append_lines(scratch, &strategies, &options));
    }
    Ok(lines)
}

/// Tries what this machine may lack, each loop and strategy once; says loudly what is left out.
fn available(lines: Vec<Line>, meter: &Meter, scratch: &Path) -> Result<(Vec<Line>, Vec<Skipped>), Failure> {
    let (mut kept, mut tried, mut skipped) = (Vec::new(), Vec::new(), Vec::<Skipped>::new());
    let window = Window { time: Duration::ZERO, meter };
    for mut line in lines {
        let what = (line.subject.name, line.subject.strategy);
        if line.is_optional && !tried.contains(&what) {
            interrupt::check()?;
            tried.push(what);
            settle(scratch)?;
            if let Err(error) = (line.cell)(&window) {
                let reason = error.to_string();
                eprintln!("SKIP: {} {}: {reason}", what.0, what.1);
                skipped.push(Skipped { name: what.0, strategy: what.1, reason });
            }
        }
        if !skipped.iter().any(|skipped| (skipped.name, skipped.strategy) == what) {
            kept.push(line);
        }
    }
    Ok((kept, skipped))
}

/// Lets the file system finish with what the line before left: removed files, names, their journal.
fn settle(folder: &Path) -> Result<(), Failure> {
    File::open(folder).and_then(|folder| folder.sync_all()).or_else(raw::ignore_unsupported)?;
    Ok(())
}

fn named(line: &Line, error: &Failure) -> Failure {
    let subject = &line.subject;
    let (name, strategy, count) = (subject.name, subject.strategy, subject.committers);
    format!("{name} {strategy}, {count} committers, {} bytes: {error}", subject.entry_bytes).into()
}

fn progress(arguments: &Arguments, steps: u64) -> ProgressBar {
    if arguments.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {eta} left");
    ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// Seconds that the lines of one run are measured for, all together.
    fn measured(arguments: &[&str]) -> f64 {
        let arguments = Program::parse_from([&["bench"], arguments].concat()).arguments;
        let scratch = tempfile::tempdir().expect("a directory");
        let lines = plan(&arguments, scratch.path()).expect("plans").len();
        lines as f64 * f64::from(arguments.rounds()) * arguments.seconds()
    }

    #[test]
    fn a_quick_run_leaves_time_for_what_is_not_measured() {
        let quick = measured(&["--quick"]);
        assert!(quick < 20.0, "{quick} s of 30 are measured; files are made and synced beside that");
        assert!(measured(&[]) > quick && measured(&["--full"]) > measured(&[]));
    }
}
