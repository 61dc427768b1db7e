//! What recovery found, used and cut.

use super::Replayed;
use super::plan::{CheckpointFinding, Plan};
use crate::error::TornTail;
use std::fmt;
use std::time::Duration;

/// What a recovery found, used and cut. With the feature `serde` it can be written as JSON or anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RecoveryReport {
    /// What was found where a checkpoint could be, newest first.
    pub checkpoints: Vec<(String, CheckpointFinding)>,
    /// The checkpoint that recovery started from.
    pub checkpoint_path: Option<String>,
    /// Whether that was not the newest one (or none, although one was asked for).
    pub fallback_used: bool,
    /// Segments that were read; 0 where it stopped before the end of the log.
    pub segments_read: u64,
    /// Entries that were applied.
    pub entries_applied: u64,
    /// The last entry that is applied in the state.
    pub last_entry_id: u64,
    /// Whether it stopped at the entry that was asked for: nothing is known about what is behind it.
    pub stopped: bool,
    /// The torn tail that was cut, and why it is one.
    pub torn: Option<TornTail>,
    /// Segments behind it whose contents were dropped.
    pub dropped_segments: Vec<String>,
    /// Whether there was no log at all, which was allowed.
    pub no_log: bool,
    /// How long it took, in microseconds.
    pub elapsed_us: u64,
}

impl RecoveryReport {
    pub(super) fn of<C>(plan: &Plan<C>) -> Self {
        let used_newest = matches!(plan.findings.first(), None | Some((_, CheckpointFinding::Used { .. })));
        let nothing_kept = plan.findings.iter().all(|(_, finding)| *finding == CheckpointFinding::Missing);
        Self {
            checkpoints: plan.findings.clone(),
            checkpoint_path: plan.chosen.as_ref().map(|chosen| chosen.path.clone()),
            fallback_used: !used_newest && !nothing_kept,
            ..Self::default()
        }
    }

    pub(super) fn note_replay(&mut self, replayed: &Replayed, elapsed: Duration) {
        self.entries_applied = replayed.entries;
        self.last_entry_id = replayed.last_entry_id;
        self.no_log = replayed.no_log;
        self.stopped = replayed.end.is_none() && !replayed.no_log;
        self.elapsed_us = elapsed.as_micros() as u64;
        if let Some(end) = &replayed.end {
            self.segments_read = end.segments_read;
            self.torn = end.torn.clone();
            self.dropped_segments = end.dropped.clone();
        }
    }
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.entries_applied)?;
        if !self.stopped {
            write!(f, " from {} segments", self.segments_read)?;
        }
        match &self.checkpoint_path {
            Some(path) => write!(f, " behind checkpoint {path}")?,
            None => f.write_str(", no checkpoint")?,
        }
        if self.fallback_used {
            f.write_str(" (a fallback)")?;
        }
        write!(f, "; last entry {}", self.last_entry_id)?;
        match &self.torn {
            Some(torn) => write!(f, "; cut: {torn}"),
            None if self.stopped => f.write_str("; stopped there"),
            None => f.write_str("; clean end"),
        }
    }
}
