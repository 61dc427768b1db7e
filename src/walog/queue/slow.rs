//! Commits that take longer than they should: which of them, and since when.

use super::{Flight, Queue};
use crate::planted;
use crate::walog::options::SlowCommit;
use std::time::Duration;

impl Flight {
    /// Nobody knows how long one takes that nobody waits for.
    fn may_be_slow(&self) -> bool {
        self.awaited.is_some() && !self.completed && !self.reported
    }
}

impl Queue {
    /// When the next commit in flight will have taken too long; `None`: never, or it was reported.
    fn slow_at(&self) -> Option<Duration> {
        let slow_after = self.options.slow_after?;
        let next = self.flights.iter().find(|flight| flight.may_be_slow())?;
        Some(next.awaited?.saturating_add(slow_after))
    }

    /// When to look for one that takes too long; `None`: never.
    pub fn look_at(&self, now: impl FnOnce() -> Duration) -> Option<Duration> {
        let slow_after = self.options.slow_after?;
        // What is not in flight yet may be stuck when it is.
        Some(self.slow_at().unwrap_or_else(|| now().saturating_add(slow_after)))
    }

    /// A commit in flight that takes too long; it is not answered again.
    pub fn take_slow(&mut self, now: Duration) -> Option<SlowCommit> {
        self.slow_at().filter(|slow_at| now >= *slow_at)?;
        let (durable_entry_id, in_flight) = (self.durable_entry_id, self.flights.len());
        let flight = self.flights.iter_mut().find(|flight| flight.may_be_slow())?;
        flight.reported = true;
        let (last_entry_id, time) = (flight.last_entry_id, now.saturating_sub(flight.awaited?));
        Some(SlowCommit { last_entry_id, durable_entry_id, time, in_flight, has_ended: false })
    }

    /// Keeps a commit that took too long and was not reported while it ran.
    pub(super) fn note_slow(&mut self, last_entry_id: u64, took: Duration, reported: bool) {
        if !reported
            && !planted::on("slow_never_afterwards")
            && self.options.slow_after.is_some_and(|slow_after| took > slow_after)
        {
            let (durable_entry_id, in_flight) = (self.durable_entry_id, self.flights.len());
            let has_ended = true;
            self.was_slow =
                Some(SlowCommit { last_entry_id, durable_entry_id, time: took, in_flight, has_ended });
        }
    }
}
