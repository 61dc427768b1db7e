//! Flushes that nobody waits for: when one begins, and beside what.
//!
//! Several of them are in flight beside each other, and nothing else is beside them: a durable commit vouches for
//! what had completed before it began, and whoever asks for one must not wait for flushes without end.

use super::Queue;
use crate::limits::FLUSHES_IN_FLIGHT_MAX;
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
        let depth = self.options.pipeline_depth.unwrap_or(FLUSHES_IN_FLIGHT_MAX);
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
