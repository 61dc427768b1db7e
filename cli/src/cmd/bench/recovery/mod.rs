//! `durability bench --recovery`: what replay costs beside a plain loop over the same files, whether its cost
//! is linear, and what opening costs for logs of different lengths.
//!
//! Everything is in the page cache: what is measured is the processor's work, not the disk's.

mod logs;
mod plain;
mod report;

use super::disk::Disk;
use super::line::median;
use super::meter::Meter;
use super::{Arguments, Failure, progress, settle};
use crate::cmd::interrupt;
use durability::DurableDirectory;
use durability::backends::Backend;
use durability::walog::{WalOptions, WalWriter};
use logs::{Extent, Log};
pub use report::write;
use report::{Linearity, Opening, OpeningRatios, Reading, Recovery};
use std::path::Path;
use std::time::Instant;

/// Bytes of an entry.
const ENTRY_BYTES: usize = 256;
/// Entries that go with a commit of so many committers.
const COMMITTERS: u64 = 64;
/// Entries of the short log.
const SHORT_ENTRIES: u64 = 1000;

/// Writes the logs and measures.
pub fn measure(arguments: &Arguments, scratch: &Path) -> Result<Recovery, Failure> {
    let entries = arguments.entries();
    let (disk, _) = Disk::below(scratch);
    let meter = Meter::new(None);
    let rounds = arguments.rounds();
    let bar = progress(arguments, 6 + u64::from(rounds) * 10);
    let write = |name, extent, per_frame| {
        bar.set_message(format!("writing: {name}"));
        bar.inc(1);
        interrupt::check()?;
        Log::write(scratch, name, extent, per_frame)
    };
    let grouped = write("grouped", Extent::Entries(entries), COMMITTERS)?;
    // Longer, not shorter: what fits into the processor's cache costs less for each entry, whoever reads it.
    let fourfold = write("fourfold", Extent::Entries(entries.saturating_mul(4)), COMMITTERS)?;
    let alone = write("alone", Extent::Entries(entries / 5), 1)?;
    let short = write("short", Extent::Entries(SHORT_ENTRIES.min(entries)), COMMITTERS)?;
    let few = write("2 sealed segments", Extent::SealedSegments(2), COMMITTERS)?;
    let many = write("100 sealed segments", Extent::SealedSegments(100), COMMITTERS)?;

    let read = [&grouped, &fourfold, &alone];
    let opened = [&short, &grouped, &few, &many];
    let mut readings = read.map(|log| (log, Readings::default(), Readings::default()));
    let mut openings = opened.map(|log| (log, Vec::new(), Vec::new()));
    for (log, ..) in &readings {
        // Into the page cache; and both must see the same.
        let (ours, theirs) = (log.replay()?, plain::read(log.segments())?.entries);
        if ours != log.entries || theirs != log.entries {
            let written = log.entries;
            return Err(
                format!("{written} entries written, {ours} replayed, {theirs} in the plain loop").into()
            );
        }
    }
    for round in 0..rounds {
        for (log, ours, theirs) in &mut readings {
            interrupt::check()?;
            bar.set_message(format!("reading: {}", log.name));
            if round % 2 == 0 {
                ours.take(&meter, log, || log.replay())?;
                theirs.take(&meter, log, || Ok(plain::read(log.segments())?.entries))?;
            } else {
                theirs.take(&meter, log, || Ok(plain::read(log.segments())?.entries))?;
                ours.take(&meter, log, || log.replay())?;
            }
            bar.inc(2);
        }
        for (log, open_us, first_commit_us) in &mut openings {
            bar.set_message(format!("opening: {}", log.name));
            let (open, commit) = open_and_commit(scratch, log)?;
            open_us.push(open);
            first_commit_us.push(commit);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let rows = readings.iter().flat_map(|(log, ours, theirs)| {
        [
            Reading::new("ours", "replay", log, ours, theirs),
            Reading::new("raw", "plain loop", log, theirs, theirs),
        ]
    });
    let [(_, once, plain_once), (_, four, plain_four), _] = &readings;
    let linearity = Linearity::new((&grouped, once, plain_once), (&fourfold, four, plain_four));
    let open: Vec<Opening> =
        openings.iter().map(|(log, open, commit)| Opening::new(log, open, commit)).collect();
    let open_ratios = OpeningRatios::new(&openings);
    Ok(Recovery {
        disk,
        rounds,
        entry_bytes: ENTRY_BYTES,
        rows: rows.collect(),
        linearity,
        open,
        open_ratios,
    })
}

/// What reading one log in one way cost, one number for each round.
#[derive(Debug, Default)]
struct Readings {
    cpu_ns_per_entry: Vec<f64>,
    wall_ns_per_entry: Vec<f64>,
}

impl Readings {
    fn take(
        &mut self,
        meter: &Meter,
        log: &Log,
        read: impl Fn() -> Result<u64, Failure>,
    ) -> Result<(), Failure> {
        let before = meter.read();
        let began = Instant::now();
        let entries = read()?;
        let elapsed = began.elapsed();
        let used = meter.since(&before);
        if entries != log.entries {
            return Err(format!("{entries} of {} entries were read", log.entries).into());
        }
        let per_entry = |nanos: f64| nanos / entries.max(1) as f64;
        self.wall_ns_per_entry.push(per_entry(elapsed.as_nanos() as f64));
        self.cpu_ns_per_entry.extend(used.cpu_us.map(|micros| per_entry(micros * 1000.0)));
        Ok(())
    }

    fn cpu(&self) -> Option<f64> {
        median(self.cpu_ns_per_entry.clone())
    }

    fn wall(&self) -> Option<f64> {
        median(self.wall_ns_per_entry.clone())
    }
}

/// Opens a copy of what a kill left, and commits once; how long each took, in microseconds.
fn open_and_commit(scratch: &Path, log: &Log) -> Result<(f64, f64), Failure> {
    let root = scratch.join("opened");
    log.copy_as_killed(&root)?;
    settle(&root.join("wal"))?;
    settle(scratch)?;
    let micros = |since: Instant| since.elapsed().as_secs_f64() * 1e6;
    let entry = super::raw::entry(ENTRY_BYTES);
    let began = Instant::now();
    let directory = Backend::Auto.open(&root)?.directory;
    let mut wal = WalWriter::<(), dyn DurableDirectory>::open_with(directory, WalOptions::default())?;
    let open = micros(began);
    let began = Instant::now();
    let id = wal.append_bytes_durable(&entry)?;
    let commit = micros(began);
    if id != log.entries + 1 {
        return Err(format!("a log of {} entries goes on with {id}", log.entries).into());
    }
    wal.close()?;
    std::fs::remove_dir_all(&root)?;
    Ok((open, commit))
}
