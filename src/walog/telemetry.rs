//! What a shared writer does with its time.
//!
//! Lives here: what is measured, its names and units, reading it. Not here: where it is measured (`committer`,
//! `queue`). Off unless [`WalOptions::telemetry`](super::WalOptions::telemetry) is set: then each place of
//! measurement is one branch, and reads no clock.
//!
//! Recording takes no lock and allocates nothing, and is never done under the log's lock.

mod histogram;
mod probe;
mod tracer;

pub use histogram::Distribution;
pub(super) use probe::{Begun, Probe};
pub(super) use tracer::Tracer;

use crate::planted;
use histogram::Histogram;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Measurements of one log, or of several that share it.
///
/// With the feature `metrics` everything is also told to the recorder that was installed when this was made, as
/// `durability_wal_…`.
#[derive(Default)]
pub struct Telemetry {
    fill: Series,
    queue: Series,
    device: Series,
    tell: Series,
    wake: Series,
    rotation: Series,
    batch_entries: Series,
    batch_bytes: Series,
    depth: Series,
    frame_bytes: Count,
    slow_commits: Count,
    failed_commits: Count,
}

/// What was measured so far. Times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TelemetrySnapshot {
    /// For each batch, from its first entry to the beginning of its commit.
    pub batch_fill_ns: Distribution,
    /// For each batch that somebody waited for before its commit began: from the first such moment to that
    /// beginning.
    pub queue_wait_ns: Distribution,
    /// For each commit that ended well, from its beginning (the frame's checksum included) until its completion was
    /// collected.
    pub device_ns: Distribution,
    /// For each completion that reached somebody, from its collection until all were told, callbacks included.
    pub tell_ns: Distribution,
    /// For each blocked thread whose wait has ended, from the last collected completion until it ran again.
    pub wake_ns: Distribution,
    /// For each segment that was entered, how long the commit waited for it. The count is that of rotations, the
    /// first segment included.
    pub rotation_ns: Distribution,
    /// Entries of each batch; the count is that of commits with entries, the sum that of committed entries.
    pub batch_entries: Distribution,
    /// Bytes of payload of each batch, length prefixes included.
    pub batch_bytes: Distribution,
    /// Commits in flight when one began, itself included.
    pub depth: Distribution,
    /// Bytes of the frames that were begun: what `batch_bytes` costs in files.
    pub frame_bytes: u64,
    /// Commits that took longer than [`WalOptions::slow_after`](super::WalOptions::slow_after).
    pub slow_commits: u64,
    /// Commits that failed, those behind them in flight not counted.
    pub failed_commits: u64,
}

impl Telemetry {
    /// Nothing measured yet.
    pub fn new() -> Self {
        let telemetry = Self::default();
        #[cfg(feature = "metrics")]
        let telemetry = telemetry.registered(Vec::new());
        telemetry
    }

    /// With a name, which `metrics` carry as the label `log`, so that several logs are told apart.
    pub fn named(name: &str) -> Self {
        let _ = name;
        let telemetry = Self::default();
        #[cfg(feature = "metrics")]
        let telemetry = telemetry.registered(vec![metrics::Label::new("log", name.to_owned())]);
        telemetry
    }

    /// Reads everything. What is recorded at the same moment may be in it or not.
    pub fn snapshot(&self) -> TelemetrySnapshot {
        TelemetrySnapshot {
            batch_fill_ns: self.fill.read(),
            queue_wait_ns: self.queue.read(),
            device_ns: self.device.read(),
            tell_ns: self.tell.read(),
            wake_ns: self.wake.read(),
            rotation_ns: self.rotation.read(),
            batch_entries: self.batch_entries.read(),
            batch_bytes: self.batch_bytes.read(),
            depth: self.depth.read(),
            frame_bytes: self.frame_bytes.read(),
            slow_commits: self.slow_commits.read(),
            failed_commits: self.failed_commits.read(),
        }
    }

    pub(super) fn begun(&self, begun: &Begun) {
        if begun.entries > 0 {
            self.fill.record_time(begun.fill);
            self.batch_entries.record(u64::from(begun.entries));
            self.batch_bytes.record(begun.bytes as u64);
            self.frame_bytes.add(begun.frame_bytes);
        }
        if let Some(wait) = begun.wait {
            self.queue.record_time(wait);
        }
        self.depth.record(begun.depth as u64);
    }

    pub(super) fn completed(&self, device: Duration) {
        self.device.record_time(device);
    }

    pub(super) fn told(&self, took: Duration) {
        self.tell.record_time(took);
    }

    pub(super) fn woke(&self, took: Duration) {
        self.wake.record_time(took);
    }

    pub(super) fn rotated(&self, took: Duration) {
        self.rotation.record_time(took);
    }

    pub(super) fn slow(&self) {
        self.slow_commits.add(1);
    }

    pub(super) fn failed(&self) {
        self.failed_commits.add(u64::from(!planted::on("failures_uncounted")));
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

/// One distribution, and where else it is told.
struct Series {
    values: Histogram,
    #[cfg(feature = "metrics")]
    metric: metrics::Histogram,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            values: Histogram::new(),
            #[cfg(feature = "metrics")]
            metric: metrics::Histogram::noop(),
        }
    }
}

impl Series {
    fn record(&self, value: u64) {
        self.values.record(value);
        #[cfg(feature = "metrics")]
        self.metric.record(value as f64);
    }

    fn record_time(&self, time: Duration) {
        self.values.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        #[cfg(feature = "metrics")]
        self.metric.record(time.as_secs_f64());
    }

    fn read(&self) -> Distribution {
        self.values.read()
    }
}

/// One counter, and where else it is told.
struct Count {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    metric: metrics::Counter,
}

impl Default for Count {
    fn default() -> Self {
        Self {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            metric: metrics::Counter::noop(),
        }
    }
}

impl Count {
    fn add(&self, value: u64) {
        self.value.fetch_add(value, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.metric.increment(value);
    }

    fn read(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "metrics")]
impl Telemetry {
    /// Handles are made once: telling a value then looks nothing up.
    fn registered(mut self, labels: Vec<metrics::Label>) -> Self {
        use metrics::{Key, Level, Metadata, Unit};
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let (seconds, bytes, count) = (Unit::Seconds, Unit::Bytes, Unit::Count);
        let series: [(&mut Series, &'static str, Unit); 9] = [
            (&mut self.fill, "durability_wal_batch_fill_seconds", seconds),
            (&mut self.queue, "durability_wal_queue_wait_seconds", seconds),
            (&mut self.device, "durability_wal_device_seconds", seconds),
            (&mut self.tell, "durability_wal_tell_seconds", seconds),
            (&mut self.wake, "durability_wal_wake_seconds", seconds),
            (&mut self.rotation, "durability_wal_rotation_seconds", seconds),
            (&mut self.batch_entries, "durability_wal_batch_entries", count),
            (&mut self.batch_bytes, "durability_wal_batch_bytes", bytes),
            (&mut self.depth, "durability_wal_depth", count),
        ];
        let counts: [(&mut Count, &'static str, Unit); 3] = [
            (&mut self.frame_bytes, "durability_wal_frame_bytes_total", bytes),
            (&mut self.slow_commits, "durability_wal_slow_commits_total", count),
            (&mut self.failed_commits, "durability_wal_failed_commits_total", count),
        ];
        metrics::with_recorder(|recorder| {
            for (series, name, unit) in series {
                recorder.describe_histogram(name.into(), Some(unit), "".into());
                series.metric =
                    recorder.register_histogram(&Key::from_parts(name, labels.clone()), &metadata);
            }
            for (counter, name, unit) in counts {
                recorder.describe_counter(name.into(), Some(unit), "".into());
                counter.metric = recorder.register_counter(&Key::from_parts(name, labels.clone()), &metadata);
            }
        });
        self
    }
}
