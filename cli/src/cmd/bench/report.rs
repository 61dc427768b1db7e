//! The table, and the JSON object.

use super::disk::Disk;
use super::line::{Kind, Line, Sample, Subject, Waiting};
use super::ours::AUTO;
use super::raw;
use serde::Serialize;
use std::fmt::{self, Write};

/// One line, measured.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    #[serde(flatten)]
    pub subject: Subject,
    /// Durable commits per second.
    pub commits_per_s: Option<f64>,
    /// Median latency, in microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile, in microseconds.
    pub p99_us: Option<f64>,
    /// 99.9th percentile, in microseconds.
    pub p999_us: Option<f64>,
    /// Processor time per commit, in microseconds.
    pub cpu_us_per_commit: Option<f64>,
    /// The same of the whole machine: with the kernel's workers, and with whatever else runs.
    pub machine_cpu_us_per_commit: Option<f64>,
    /// Context switches per commit.
    pub switches_per_commit: Option<f64>,
    /// What an entry takes in the files, in bytes: its own, and its share of headers and padding.
    pub disk_bytes_per_entry: Option<f64>,
    /// Flushes of the device, per commit.
    pub device_flushes_per_commit: Option<f64>,
    /// Bytes that the device wrote, per commit.
    pub device_bytes_per_commit: Option<f64>,
    /// Commits per second, over those of the zero-filled raw loop with entries of the same size; appending
    /// without sync over the raw loop of large writes.
    pub ratio_to_raw: Option<f64>,
    /// With one commit in flight: over those of the best raw loop with one in flight.
    pub ratio_to_best_raw: Option<f64>,
    /// What `auto` makes of it: over those of the fixed strategy that is the best at the same.
    pub ratio_to_best_fixed: Option<f64>,
}

/// What was left out, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Which loop or type.
    pub name: &'static str,
    /// How it would have been made durable.
    pub strategy: &'static str,
    /// Why.
    pub reason: String,
}

/// The JSON object.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The disk.
    pub disk: Disk,
    /// Rounds over all lines.
    pub rounds: u32,
    /// Time for each line in a round, in seconds.
    pub seconds: f64,
    /// The same of lines that append without sync, where there are any.
    pub append_seconds: Option<f64>,
    /// The lines.
    pub rows: Vec<Row>,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

/// The medians over the rounds.
pub fn rows(lines: &[Line]) -> Vec<Row> {
    lines.iter().map(|line| row(line, lines)).collect()
}

fn row(line: &Line, lines: &[Line]) -> Row {
    let percentile = |index: usize| line.median(|sample| Some(sample.percentiles_us()[index]));
    let raw_of_size = || {
        let size = line.subject.entry_bytes;
        lines.iter().filter(move |other| other.subject.kind == Kind::Raw && other.subject.entry_bytes == size)
    };
    let baseline = raw_of_size().find(|raw| raw.subject.name == line.baseline);
    let depth_1 = |subject: &Subject| raw::DEPTH_1.contains(&subject.name);
    let best = raw_of_size()
        .filter(|raw| depth_1(&raw.subject))
        .max_by(|a, b| a.commits_per_s().unwrap_or(0.0).total_cmp(&b.commits_per_s().unwrap_or(0.0)))
        .filter(|_| match line.subject.kind {
            Kind::Raw => depth_1(&line.subject),
            Kind::Reference | Kind::Ours => line.subject.committers == 1 && line.baseline == raw::BASELINE,
        });
    let fixed = lines
        .iter()
        .filter(|other| other.subject.strategy != AUTO && is_auto_of(&line.subject, &other.subject))
        .max_by(|a, b| a.commits_per_s().unwrap_or(0.0).total_cmp(&b.commits_per_s().unwrap_or(0.0)));
    Row {
        subject: line.subject.clone(),
        commits_per_s: line.commits_per_s(),
        p50_us: percentile(0),
        p99_us: percentile(1),
        p999_us: percentile(2),
        cpu_us_per_commit: line.median(|sample| sample.per_commit(|used| used.cpu_us)),
        machine_cpu_us_per_commit: line.median(|sample| sample.per_commit(|used| used.machine_us)),
        switches_per_commit: line.median(|sample| sample.per_commit(|used| used.switches)),
        disk_bytes_per_entry: line.median(Sample::file_bytes_per_entry),
        device_flushes_per_commit: line.median(|sample| sample.per_commit(|used| used.device_flushes)),
        device_bytes_per_commit: line.median(|sample| sample.per_commit(|used| used.device_bytes)),
        ratio_to_raw: baseline.and_then(|baseline| line.ratio_to(baseline)),
        ratio_to_best_raw: best.and_then(|best| line.ratio_to(best)),
        ratio_to_best_fixed: fixed.and_then(|fixed| line.ratio_to(fixed)),
    }
}

/// Whether a line of `auto` does what another line does.
fn is_auto_of(auto: &Subject, other: &Subject) -> bool {
    auto.strategy == AUTO && Subject { strategy: AUTO, ..other.clone() } == *auto
}

/// The table, as text.
pub fn write(report: &Report, out: &mut String) -> fmt::Result {
    let disk = &report.disk;
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    writeln!(
        out,
        "disk: {} on {}, write cache {}, FUA {}",
        known(&disk.filesystem),
        known(&disk.device),
        known(&disk.write_cache),
        disk.fua.map_or("unknown", |fua| if fua { "yes" } else { "no" })
    )?;
    if let (Some(kind), Some(flush_us), Some(by)) = (disk.kind, disk.flush_us, disk.flush_measured_by) {
        writeln!(
            out,
            "kind: {kind} ({flush_us:.0} us for one durable write, loop `{by}`; slow above {} us)",
            disk.slow_flush_above_us
        )?;
    }
    writeln!(out, "auto: {}", known(&disk.auto))?;
    writeln!(out, "disk B/entry: {}", disk.disk_bytes_from)?;
    match &disk.device_counters_from {
        Some(from) => writeln!(out, "device flushes and bytes: {from}")?,
        None => writeln!(out, "device flushes and bytes: cannot be counted for this file system")?,
    }
    writeln!(
        out,
        "{} rounds over all lines in turn, {} s each; medians over the rounds",
        report.rounds, report.seconds
    )?;
    let sizes: std::collections::BTreeSet<usize> =
        report.rows.iter().map(|row| row.subject.entry_bytes).collect();
    for size in sizes {
        writeln!(out, "\nentries of {size} bytes")?;
        writeln!(
            out,
            "{:<9} {:<15} {:<16} {:<7} {:>5} {:>9} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>7} {:>8} {:>6} {:>6} {:>6}",
            "kind",
            "name",
            "strategy",
            "waiting",
            "comm.",
            "commits/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "CPU us",
            "switch",
            "disk B/e",
            "flush/c",
            "dev B/c",
            "ratio",
            "best1",
            "fixed"
        )?;
        for row in report.rows.iter().filter(|row| row.subject.entry_bytes == size) {
            write_row(row, out)?;
        }
    }
    writeln!(
        out,
        "\nratio: commits/s over the loop `{}`; best1: over the best raw loop with one commit in flight; \
         fixed: over the best fixed strategy; \
         /c and /e: per commit and entry",
        raw::BASELINE
    )
}

fn write_row(row: &Row, out: &mut String) -> fmt::Result {
    let subject = &row.subject;
    let kind = match subject.kind {
        Kind::Raw => "raw",
        Kind::Reference => "reference",
        Kind::Ours => "ours",
    };
    let waiting = match subject.waiting {
        Waiting::Threads => "threads",
        Waiting::Futures => "futures",
        Waiting::None => "none",
    };
    writeln!(
        out,
        "{:<9} {:<15} {:<16} {:<7} {:>5} {:>9} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>7} {:>8} {:>6} {:>6} {:>6}",
        kind,
        subject.name,
        subject.strategy,
        waiting,
        subject.committers,
        number(row.commits_per_s, 0),
        number(row.p50_us, 1),
        number(row.p99_us, 1),
        number(row.p999_us, 1),
        number(row.cpu_us_per_commit, 1),
        number(row.switches_per_commit, 2),
        number(row.disk_bytes_per_entry, 0),
        number(row.device_flushes_per_commit, 2),
        number(row.device_bytes_per_commit, 0),
        number(row.ratio_to_raw, 2),
        number(row.ratio_to_best_raw, 2),
        number(row.ratio_to_best_fixed, 2),
    )
}

/// A number with so many decimals; a dash for what is not known.
pub fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}
