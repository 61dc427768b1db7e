//! `durability soak`: commits for a long time, with rotation and without it in turn, and what that costs.
//!
//! One log with small segments lives through the whole run, and its prefix is truncated every second. Beside it, in
//! slices that take turns with its own, a log with one segment that was zero-filled before shows what the same
//! disk does without rotation. Memory does not grow with the run: latencies are counted, not kept.

use super::Failure;
use super::interrupt;
use super::look::{existing, say};
use durability::DurableDirectory;
use durability::backends::{Backend, BackendOptions};
use durability::walog::{PrepareAhead, SyncWalWriter, WalMaintenance, WalOptions};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Log = SyncWalWriter<(), dyn DurableDirectory>;

/// Arguments of `durability soak`.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Works in a new folder below DIR, which is removed at the end. A run of a few seconds may \
    see no rotation; smaller segments (`--segment-bytes`) rotate more often.\n\n\
    Ctrl-C ends it behind the slice that runs, with what was measured until then; once more, at once, and the folder \
    stays.\n\nExit codes: 0 measured, 1 something failed, 2 wrong usage, 130 interrupted."
)]
pub struct Arguments {
    /// An existing directory on the disk to measure. By default, the current one.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// How long, in seconds, both logs together; whole slices of both, so at least two.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    seconds: u64,
    /// How long one log commits before the other does, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    slice: u64,
    /// Threads that commit and wait.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    committers: u64,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    bytes: u64,
    /// Size of a segment of the log that rotates, in bytes.
    #[arg(long, default_value_t = 10 << 20, value_parser = clap::value_parser!(u64).range(4096..=1 << 40))]
    segment_bytes: u64,
    /// What the log that does not rotate has zero-filled before each slice, in bytes.
    #[arg(long, default_value_t = 256 << 20, value_parser = clap::value_parser!(u64).range(4096..=1 << 40))]
    still_bytes: u64,
    /// Truncated segments that are kept for reuse.
    #[arg(long, default_value_t = 2)]
    recycle: usize,
    /// Segments that are kept ready at least.
    #[arg(long, default_value_t = 1, conflicts_with = "inline", value_parser = clap::value_parser!(u64).range(1..=64))]
    prepared: u64,
    /// Make segments when they are needed, not before.
    #[arg(long)]
    inline: bool,
    /// Use this backend.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Chosen,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Chosen {
    Auto,
    Std,
    IoUring,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    backend: &'static str,
    strategy: &'static str,
    seconds: f64,
    committers: u64,
    entry_bytes: u64,
    segment_bytes: u64,
    rotating: Arm,
    still: Arm,
    rotations: u64,
    rotation_stall_us: f64,
    /// Rotations of the other log, which ought to be none.
    still_rotations: u64,
    p999_ratio: f64,
    rss_start_kib: Option<u64>,
    rss_end_kib: Option<u64>,
}

#[derive(Serialize)]
struct Arm {
    commits: u64,
    commits_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let below = arguments.directory.clone().unwrap_or_else(|| PathBuf::from("."));
    existing(&below)?;
    interrupt::listen();
    let folder = tempfile::Builder::new().prefix("soak-").tempdir_in(below)?;
    let backend = match arguments.backend {
        Chosen::Auto => Backend::Auto,
        Chosen::Std => Backend::Std,
        Chosen::IoUring => Backend::IoUring,
    };
    let open = |name: &str, options: WalOptions| -> Result<(Log, Backend), Failure> {
        std::fs::create_dir(folder.path().join(name))?;
        let opened = backend.open_with(folder.path().join(name), BackendOptions::default())?;
        let log = Log::configure(opened.directory, options)?;
        // Makes the first segment.
        log.append_bytes_durable(&[1])?;
        Ok((log, opened.chosen))
    };
    let prepare_ahead = if arguments.inline { PrepareAhead::Never } else { PrepareAhead::Auto };
    let (rotating, chosen) = open(
        "rotating",
        WalOptions {
            segment_bytes_max: arguments.segment_bytes,
            preallocate_bytes: arguments.segment_bytes,
            recycle_capacity: arguments.recycle,
            prepare_ahead,
            prepared_segments_min: arguments.prepared as usize,
            ..WalOptions::default()
        },
    )?;
    let (mut moving, mut still, mut still_rotations) = (Counted::default(), Counted::default(), 0);
    let began = Instant::now();
    let (mut rss_start_kib, mut slices) = (None, 0);
    while began.elapsed().as_secs() < arguments.seconds && !interrupt::is_asked() {
        moving.add(slice(&rotating, arguments, true)?);
        if slices == 0 {
            interrupt::check()?;
        }
        let (other, _) = open(
            &format!("still-{slices}"),
            WalOptions {
                segment_bytes_max: arguments.still_bytes,
                preallocate_bytes: arguments.still_bytes,
                prepare_ahead: PrepareAhead::Never,
                ..WalOptions::default()
            },
        )?;
        still.add(slice(&other, arguments, false)?);
        still_rotations += other.rotations();
        drop(other);
        std::fs::remove_dir_all(folder.path().join(format!("still-{slices}")))?;
        slices += 1;
        // Behind the first slices, when every buffer has its size.
        rss_start_kib = rss_start_kib.or_else(rss_kib);
    }
    let (moving, still) = (moving.arm(), still.arm());
    let report = Report {
        backend: chosen.name(),
        strategy: rotating.active_strategy().map_or("none", |active| active.strategy.name()),
        seconds: began.elapsed().as_secs_f64(),
        committers: arguments.committers,
        entry_bytes: arguments.bytes,
        segment_bytes: arguments.segment_bytes,
        rotations: rotating.rotations(),
        rotation_stall_us: rotating.rotation_stall().as_secs_f64() * 1e6,
        still_rotations,
        p999_ratio: moving.p999_us / still.p999_us.max(1e-9),
        rotating: moving,
        still,
        rss_start_kib,
        rss_end_kib: rss_kib(),
    };
    rotating.close()?;
    folder.close()?;
    if arguments.json {
        say(format_args!("{}", serde_json::to_string(&report)?))?;
    } else {
        print(&report)?;
    }
    Ok(interrupt::code())
}

fn print(report: &Report) -> Result<(), Failure> {
    let Report { backend, strategy, committers, entry_bytes, segment_bytes, .. } = report;
    say(format_args!(
        "{backend}, {strategy}: {committers} committers, {entry_bytes} B, segments of {segment_bytes} B"
    ))?;
    say(format_args!(
        "{:<12} {:>12} {:>10} {:>10} {:>10} {:>10}",
        "", "commits/s", "p50 us", "p99 us", "p99.9 us", "max us"
    ))?;
    for (name, arm) in [("rotating", &report.rotating), ("one segment", &report.still)] {
        let Arm { commits_per_s, p50_us, p99_us, p999_us, max_us, .. } = arm;
        say(format_args!(
            "{name:<12} {commits_per_s:>12.0} {p50_us:>10.0} {p99_us:>10.0} {p999_us:>10.0} {max_us:>10.0}"
        ))?;
    }
    say(format_args!(
        "{} rotations ({} of the other log), {:.0} us waited for a segment, p99.9 {:.2} times as long",
        report.rotations, report.still_rotations, report.rotation_stall_us, report.p999_ratio
    ))?;
    if let (Some(start), Some(end)) = (report.rss_start_kib, report.rss_end_kib) {
        say(format_args!("resident memory {start} KiB after the first slices, {end} KiB at the end"))?;
    }
    Ok(())
}

/// All committers commit for one slice.
fn slice(log: &Log, arguments: &Arguments, truncates: bool) -> Result<Counted, Failure> {
    let entry = vec![7; arguments.bytes as usize];
    let stop = AtomicBool::new(false);
    let latencies = Latencies::default();
    let began = Instant::now();
    let mut failure = None;
    std::thread::scope(|scope| {
        let committers: Vec<_> = (0..arguments.committers)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let since = Instant::now();
                        log.append_bytes_durable(&entry)?;
                        latencies.note(since.elapsed());
                    }
                    durability::PersistenceResult::Ok(())
                })
            })
            .collect();
        for _ in 0..arguments.slice {
            if interrupt::is_asked() {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
            if truncates {
                let maintenance = WalMaintenance::new(Arc::clone(log.directory()));
                let truncated = maintenance.truncate_to_recycle(log.durable_entry_id(), arguments.recycle);
                failure = failure.take().or(truncated.err());
            }
        }
        stop.store(true, Ordering::Relaxed);
        for committer in committers {
            match committer.join() {
                Ok(committed) => failure = failure.take().or(committed.err()),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(Counted { latencies, time: began.elapsed() }),
    }
}

#[derive(Default)]
struct Counted {
    latencies: Latencies,
    time: Duration,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.time += other.time;
        for (mine, theirs) in self.latencies.buckets.iter().zip(&other.latencies.buckets) {
            mine.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn arm(&self) -> Arm {
        let commits = self.latencies.count();
        let us = |share| self.latencies.percentile(share) as f64 / 1000.0;
        Arm {
            commits,
            commits_per_s: commits as f64 / self.time.as_secs_f64().max(1e-9),
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: us(1.0),
        }
    }
}

/// Buckets for each doubling of the time.
const FINE: usize = 32;

/// Latencies, counted in buckets that are three percent wide.
struct Latencies {
    buckets: Vec<AtomicU64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: (0..64 * FINE).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Latencies {
    fn bucket(nanos: u64) -> usize {
        let doubling = 63 - nanos.max(FINE as u64).leading_zeros() as usize;
        let shift = doubling - FINE.trailing_zeros() as usize;
        shift * FINE + ((nanos.max(FINE as u64) >> shift) as usize - FINE)
    }

    /// The longest time that falls into a bucket.
    fn bound(bucket: usize) -> u64 {
        ((FINE + bucket % FINE + 1) as u64) << (bucket / FINE)
    }

    fn note(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        let reached = self.buckets.iter().position(|bucket| {
            seen += bucket.load(Ordering::Relaxed);
            seen >= wanted.max(1)
        });
        reached.map_or(0, Self::bound)
    }
}

/// Resident memory, where the system says it.
fn rss_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_falls_into_a_bucket_that_is_three_percent_wide() {
        for nanos in [0, 1, 31, 32, 33, 63, 64, 1000, 123_456, 10_000_000, u64::MAX / 3] {
            let bound = Latencies::bound(Latencies::bucket(nanos));
            assert!(bound > nanos && bound as f64 <= (nanos.max(32) as f64) * 1.04 + 1.0, "{nanos} {bound}");
        }
    }

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let latencies = Latencies::default();
        (1..=1000).for_each(|micros| latencies.note(Duration::from_micros(micros)));
        for (share, micros) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latencies.percentile(share) as f64 / 1000.0;
            assert!((found / micros - 1.0).abs() < 0.04, "{share}: {found}");
        }
    }
}
