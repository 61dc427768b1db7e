//! Counts of values, in buckets of about an eighth of their value.
//!
//! Lives here: recording without a lock and without an allocation, and what can be read of it. Not here: what is
//! recorded (`telemetry`).

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets per doubling.
const PARTS: usize = 8;
const PART_BITS: u32 = PARTS.ilog2();
/// Values below `PARTS` have a bucket each; then `PARTS` for every doubling up to 2^64.
const BUCKETS: usize = PARTS + (64 - PART_BITS as usize) * PARTS;

/// Recorded by any thread; a reader sees some of what is recorded at the same moment, and misses nothing older.
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Histogram {
    pub const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }

    // Relaxed throughout: each number stands for itself, and publishes nothing else.
    pub fn record(&self, value: u64) {
        self.buckets[bucket(value)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
        self.max.fetch_max(value, Ordering::Relaxed);
    }

    pub fn read(&self) -> Distribution {
        let buckets: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let mut read = Distribution {
            count: buckets.iter().sum(),
            sum: self.sum.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
            buckets,
            ..Distribution::default()
        };
        read.p50 = read.quantile(0.5);
        read.p90 = read.quantile(0.9);
        read.p99 = read.quantile(0.99);
        read.p999 = read.quantile(0.999);
        read
    }
}

fn bucket(value: u64) -> usize {
    if value < PARTS as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - PART_BITS;
    let part = (value >> shift) as usize - PARTS;
    PARTS + shift as usize * PARTS + part
}

/// The largest value of a bucket.
fn largest(bucket: usize) -> u64 {
    if bucket < PARTS {
        return bucket as u64;
    }
    let (shift, part) = ((bucket - PARTS) / PARTS, (bucket - PARTS) % PARTS);
    let smallest = ((PARTS + part) as u64) << shift;
    smallest + ((1 << shift) - 1)
}

/// What was recorded, as far as it was read.
///
/// Quantiles are the upper ends of buckets that are about an eighth of their value wide, so they are too large by
/// 12.5 % at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Distribution {
    /// How many values.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// The largest one, exactly.
    pub max: u64,
    /// The median.
    pub p50: u64,
    /// Of ten values, nine are not larger.
    pub p90: u64,
    /// Of a hundred values, 99 are not larger.
    pub p99: u64,
    /// Of a thousand values, 999 are not larger.
    pub p999: u64,
    #[cfg_attr(feature = "serde", serde(skip))]
    buckets: Vec<u64>,
}

impl Distribution {
    /// The value that the part `quantile` (from 0 to 1) of all values does not exceed; 0 when there are none.
    pub fn quantile(&self, quantile: f64) -> u64 {
        let rank = (self.count as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return largest(bucket).min(self.max);
            }
        }
        0
    }

    /// The mean; 0 when there are none.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bucket_whose_ends_are_close_to_it() {
        let near_powers = (0..64).flat_map(|bit| {
            let power = 1u64 << bit;
            [power - 1, power, power + 1, power + power / 3, power.saturating_mul(2) - 1]
        });
        for value in (0..5000).chain(near_powers).chain([u64::MAX]) {
            let bucket = bucket(value);
            assert!(bucket < BUCKETS, "{value}");
            assert!(largest(bucket) >= value, "{value}");
            assert!(bucket == 0 || largest(bucket - 1) < value, "{value}");
            assert!(largest(bucket) - value <= value / 8, "{value}");
        }
        assert_eq!(largest(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn quantiles_are_near_and_count_sum_and_maximum_exact() {
        let histogram = Histogram::new();
        (1..=1000).for_each(|value| histogram.record(value * 100));
        let read = histogram.read();
        assert_eq!((read.count, read.sum, read.max), (1000, 50_050_000, 100_000));
        for (quantile, exact) in [(read.p50, 50_000), (read.p90, 90_000), (read.p99, 99_000)] {
            assert!((exact..=exact + exact / 8).contains(&quantile), "{quantile} for {exact}");
        }
        assert_eq!((read.quantile(1.0), read.quantile(0.0)), (100_000, 103));
        assert_eq!(Histogram::new().read(), Distribution { buckets: vec![0; BUCKETS], ..Default::default() });
    }
}
