//! What was found out about recovery: tables, and the JSON object.

use super::logs::Log;
use super::{ENTRY_BYTES, Readings};
use crate::cmd::bench::disk::Disk;
use crate::cmd::bench::line::median;
use crate::cmd::bench::report::number;
use serde::Serialize;
use std::fmt::{self, Write};

/// The JSON object.
#[derive(Debug, Serialize)]
pub struct Recovery {
    /// The disk; everything is in the page cache.
    pub disk: Disk,
    /// How often everything was measured.
    pub rounds: u32,
    /// Bytes of every entry.
    pub entry_bytes: usize,
    /// Replay, and the plain loop.
    pub rows: Vec<Reading>,
    /// Whether a log four times as long costs four times as much.
    pub linearity: Linearity,
    /// Opening.
    pub open: Vec<Opening>,
    /// How opening grows.
    pub open_ratios: OpeningRatios,
}

/// One way of reading one log.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// `ours` or `raw`.
    pub kind: &'static str,
    /// `replay` or `plain loop`.
    pub name: &'static str,
    /// Which log.
    pub log: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// What an entry takes in them, in bytes: its own, and its share of headers, padding and seals.
    pub disk_bytes_per_entry: f64,
    /// Processor time per entry, in nanoseconds.
    pub cpu_ns_per_entry: Option<f64>,
    /// Entries' bytes per second, in 10^9.
    pub gb_per_s: Option<f64>,
    /// Bytes of files per second, in 10^9.
    pub file_gb_per_s: Option<f64>,
    /// Processor time, over that of the plain loop in the same round.
    pub ratio_to_plain: Option<f64>,
}

impl Reading {
    pub(super) fn new(
        kind: &'static str,
        name: &'static str,
        log: &Log,
        mine: &Readings,
        plain: &Readings,
    ) -> Self {
        let speed = |bytes_per_entry: f64| Some(bytes_per_entry / mine.wall()?);
        Self {
            kind,
            name,
            log: log.name,
            entries: log.entries,
            file_bytes: log.file_bytes,
            disk_bytes_per_entry: log.file_bytes as f64 / log.entries.max(1) as f64,
            cpu_ns_per_entry: mine.cpu(),
            gb_per_s: speed(ENTRY_BYTES as f64),
            file_gb_per_s: speed(log.file_bytes as f64 / log.entries.max(1) as f64),
            ratio_to_plain: ratio(&mine.cpu_ns_per_entry, &plain.cpu_ns_per_entry),
        }
    }
}

/// The median of the ratios within a round.
fn ratio(of: &[f64], to: &[f64]) -> Option<f64> {
    median(of.iter().zip(to).map(|(of, to)| of / to.max(f64::MIN_POSITIVE)).collect())
}

/// Processor time per entry of a log and of one four times as long.
#[derive(Clone, Debug, Serialize)]
pub struct Linearity {
    /// Entries of the short one.
    pub entries: u64,
    /// Entries of the long one.
    pub entries_4x: u64,
    /// Of the short one, in nanoseconds.
    pub cpu_ns_per_entry: Option<f64>,
    /// Of the long one, in nanoseconds.
    pub cpu_ns_per_entry_4x: Option<f64>,
    /// The long one's over the short one's: 1 is linear, 4 is quadratic.
    pub ratio: Option<f64>,
    /// The same of the plain loop, which is linear: what caches add.
    pub plain_ratio: Option<f64>,
}

/// A log, what replay of it cost, and what the plain loop did.
type Measured<'a> = (&'a Log, &'a Readings, &'a Readings);

impl Linearity {
    pub(super) fn new(
        (log, once, plain_once): Measured<'_>,
        (log_4x, four, plain_four): Measured<'_>,
    ) -> Self {
        Self {
            entries: log.entries,
            entries_4x: log_4x.entries,
            cpu_ns_per_entry: once.cpu(),
            cpu_ns_per_entry_4x: four.cpu(),
            ratio: ratio(&four.cpu_ns_per_entry, &once.cpu_ns_per_entry),
            plain_ratio: ratio(&plain_four.cpu_ns_per_entry, &plain_once.cpu_ns_per_entry),
        }
    }
}

/// Opening one log as a kill leaves it, and its first commit.
#[derive(Clone, Debug, Serialize)]
pub struct Opening {
    /// Which log.
    pub log: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Segments of it.
    pub segments: usize,
    /// Until the log is open, in microseconds.
    pub open_us: Option<f64>,
    /// The first commit, which creates a segment, in microseconds.
    pub first_commit_us: Option<f64>,
}

impl Opening {
    pub(super) fn new(log: &Log, open_us: &[f64], first_commit_us: &[f64]) -> Self {
        Self {
            log: log.name,
            entries: log.entries,
            segments: log.segments().len(),
            open_us: median(open_us.to_vec()),
            first_commit_us: median(first_commit_us.to_vec()),
        }
    }
}

/// Time until the log is open, of the longer log over the shorter one.
#[derive(Clone, Debug, Serialize)]
pub struct OpeningRatios {
    /// The long log over the short one.
    pub long_to_short: Option<f64>,
    /// 100 sealed segments over 2.
    pub segments_100_to_2: Option<f64>,
}

impl OpeningRatios {
    pub(super) fn new([short, long, few, many]: &[(&Log, Vec<f64>, Vec<f64>); 4]) -> Self {
        // Until the log is open and has committed once: the same round's sums.
        let both = |log: &(&Log, Vec<f64>, Vec<f64>)| -> Vec<f64> {
            log.1.iter().zip(&log.2).map(|(open, commit)| open + commit).collect()
        };
        Self {
            long_to_short: ratio(&both(long), &both(short)),
            segments_100_to_2: ratio(&both(many), &both(few)),
        }
    }
}

/// The tables, as text.
pub fn write(recovery: &Recovery, out: &mut String) -> fmt::Result {
    writeln!(
        out,
        "entries of {} bytes, in the page cache; medians over {} rounds\n",
        recovery.entry_bytes, recovery.rounds
    )?;
    writeln!(
        out,
        "{:<12} {:<10} {:>9} {:>10} {:>8} {:>12} {:>8} {:>10} {:>8}",
        "", "log", "entries", "file MB", "disk B/e", "CPU ns/entry", "GB/s", "file GB/s", "ratio"
    )?;
    for row in &recovery.rows {
        writeln!(
            out,
            "{:<12} {:<10} {:>9} {:>10.1} {:>8.1} {:>12} {:>8} {:>10} {:>8}",
            row.name,
            row.log,
            row.entries,
            row.file_bytes as f64 / 1e6,
            row.disk_bytes_per_entry,
            number(row.cpu_ns_per_entry, 1),
            number(row.gb_per_s, 2),
            number(row.file_gb_per_s, 2),
            number(row.ratio_to_plain, 2)
        )?;
    }
    let linearity = &recovery.linearity;
    writeln!(
        out,
        "\nfour times the entries ({} to {}): {} times the CPU per entry (1 is linear), the plain loop {}",
        linearity.entries,
        linearity.entries_4x,
        number(linearity.ratio, 2),
        number(linearity.plain_ratio, 2)
    )?;
    writeln!(
        out,
        "\n{:<20} {:>9} {:>9} {:>12} {:>16}",
        "opening", "entries", "segments", "open us", "first commit us"
    )?;
    for row in &recovery.open {
        writeln!(
            out,
            "{:<20} {:>9} {:>9} {:>12} {:>16}",
            row.log,
            row.entries,
            row.segments,
            number(row.open_us, 0),
            number(row.first_commit_us, 0)
        )?;
    }
    let ratios = &recovery.open_ratios;
    writeln!(
        out,
        "\nopening and first commit: long over short {}, 100 over 2 sealed segments {}",
        number(ratios.long_to_short, 2),
        number(ratios.segments_100_to_2, 2)
    )
}
