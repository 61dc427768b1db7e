//! How a file makes its commits durable, and why in that way.

use std::fmt;
use std::time::Duration;

/// How a file makes a commit durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum CommitStrategy {
    /// `pwrite`, then `fdatasync` (on macOS `F_FULLFSYNC`), by the calling thread.
    WriteThenSync,
    /// A write and an fdatasync, submitted together as a linked pair on a ring.
    LinkedWriteSync,
    /// One direct write with `RWF_DSYNC`, on a ring. The only commit of its file in flight, waited for without a
    /// deadline, is written by the thread that waits (`pwritev2`) unless the ring was measured to be quicker.
    DirectDsync,
    /// Bytes in memory; there is no stable storage.
    Volatile,
}

impl CommitStrategy {
    /// A short stable name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteThenSync => "pwrite+fdatasync",
            Self::LinkedWriteSync => "linked",
            Self::DirectDsync => "direct-dsync",
            Self::Volatile => "volatile",
        }
    }
}

/// Why a file commits as it does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum StrategyReason {
    /// The backend knows no other.
    Only,
    /// It was asked for by name.
    Requested,
    /// The best of what the file takes, by rule; nothing was measured.
    Rule,
    /// It is for commits that nobody waits for ([`FileOptions::streamed`](super::FileOptions::streamed)).
    Streamed,
    /// It was measured in this directory.
    Measured(Calibration),
    /// Measuring failed; the rule decided.
    NotMeasured {
        /// What went wrong.
        why: String,
    },
}

/// What one small commit cost with each strategy, measured in turn in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Calibration {
    /// The strategies that this file can have: first the one that is taken, then what would be without it, and so on. A
    /// direct write comes before a linked pair and that before `pwrite`, unless the later one is faster in nearly every
    /// commit, whatever the medians: they tell what else went on, too.
    pub candidates: Vec<MeasuredStrategy>,
    /// Commits of each.
    pub commits: u32,
    /// How long measuring took, files made and removed included.
    pub took: Duration,
}

/// What a commit cost with one strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MeasuredStrategy {
    /// Which.
    pub strategy: CommitStrategy,
    /// Median time of a commit of one block.
    pub median: Duration,
}

impl fmt::Display for StrategyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => f.write_str("the backend knows no other"),
            Self::Requested => f.write_str("it was asked for"),
            Self::Rule => f.write_str("the best of what the file takes, by rule"),
            Self::Streamed => f.write_str("most of what is written here is waited for by nobody"),
            Self::Measured(calibration) => calibration.fmt(f),
            Self::NotMeasured { why } => write!(f, "by rule, because it could not be measured: {why}"),
        }
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("measured here: ")?;
        for (index, candidate) in self.candidates.iter().enumerate() {
            let between = if index == 0 { "" } else { ", " };
            write!(f, "{between}{} {} us", candidate.strategy.name(), candidate.median.as_micros())?;
        }
        let mut others = self.candidates.iter().skip(1);
        let is_near =
            self.candidates.first().is_some_and(|first| others.any(|other| other.median < first.median));
        let near = if is_near { "; none clearly faster than the first" } else { "" };
        write!(f, " (median of {}, {} ms in all{near})", self.commits, self.took.as_millis())
    }
}

/// The strategy in use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ActiveStrategy {
    /// How commits are made durable.
    pub strategy: CommitStrategy,
    /// Why in that way.
    pub reason: StrategyReason,
}

impl fmt::Display for ActiveStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.strategy.name(), self.reason)
    }
}
