//! Flushes that nobody waits for: when one begins, and beside what.
//!
//! Several of them are in flight beside each other, and nothing else is beside them: a durable commit vouches for
//! what had completed before it began, and whoever asks for one must not wait for flushes without end.

use super::Queue;
use crate::limits::{FLUSH_BYTES_MAX, FLUSHES_IN_FLIGHT_MAX};
use crate::planted;
use crate::storage::{Effect, FlushPolicy};
use std::time::Duration;

impl Queue {
    /// Whether a flush is in flight.
    pub(super) fn is_flushing(&self) -> bool {
        self.flights.iter().any(|flight| flight.effect == Effect::Flushed)
            && !planted::on("durable_beside_flushes")
    }

    /// How many may be in flight that nobody waits for.
    pub(super) fn flushes_max(&self) -> usize {
        let depth = self
            .options
            .pipeline_depth
            .unwrap_or_else(|| std::env::var("ZD").map_or(FLUSHES_IN_FLIGHT_MAX, |v| v.parse().unwrap_or(4)));
        depth.clamp(1, self.in_flight_max.max(1))
    }

    /// Whether appending waits for the flush that it makes due: where each append is one.
    pub fn is_flush_awaited(&self) -> bool {
        matches!(self.options.flush_policy, FlushPolicy::PerAppend | FlushPolicy::EveryN(0 | 1))
    }

    /// Whether what is pending can begin as one, beside what is in flight.
    pub fn can_begin_flush(&self) -> bool {
        let is_durability_asked_for = self.asked_entry_id.max(self.wanted_entry_id) > self.promised_entry_id;
        !self.submitting
            && (!is_durability_asked_for || planted::on("flushes_starve_commits"))
            && self.flights.len() < self.flushes_max()
            && self.flights.iter().all(|flight| flight.effect == Effect::Flushed)
            && (self.flights.is_empty() || !self.needs_room())
    }

    /// Leaves a flush that is due, and cannot begin, to a later append; `false` where enough is pending. So what the
    /// disk gets at once is the larger the longer it takes.
    pub fn postpone_flush(&mut self) -> bool {
        let pending = self.pending.payload_bytes();
        let (buffer_bytes, quarter) = (self.options.buffer_bytes, self.options.segment_bytes_max / 4);
        // What is left empty at the end of a segment is at most that.
        let bytes_max = usize::try_from(quarter).unwrap_or(usize::MAX).min(FLUSH_BYTES_MAX).max(buffer_bytes);
        if pending >= bytes_max {
            return false;
        }
        self.unflushed = 0;
        self.flush_again_bytes = pending + buffer_bytes / 4;
        if matches!(self.options.flush_policy, FlushPolicy::Interval(_)) {
            self.last_flush = self.options.environment.elapsed();
        }
        true
    }

    /// Whether a completion may be there that nobody is about to collect.
    pub fn can_collect(&self) -> bool {
        !self.reaping
            && self.running > 0
            && self.flights.iter().any(|flight| flight.effect == Effect::Flushed)
    }

    /// Somebody waits from now on for whatever is in flight.
    pub fn await_flights(&mut self, now: impl FnOnce() -> Duration) {
        if self.flights.iter().all(|flight| flight.awaited.is_some()) {
            return;
        }
        let now = now();
        self.flights.iter_mut().for_each(|flight| {
            flight.awaited.get_or_insert(now);
        });
    }
}
