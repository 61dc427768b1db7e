//! Flushes that nobody waits for: when one begins, and beside what.
//!
//! Several of them are in flight beside each other, and nothing else is beside them: a durable commit vouches for
//! what had completed before it began, and whoever asks for one must not wait for flushes without end.

use super::Queue;
use crate::framing::reserve;
use crate::limits::{FLUSH_BYTES_MAX, FLUSHES_BUSY, FLUSHES_IN_FLIGHT_MAX};
use crate::planted;
use crate::storage::{CommitBuffer, Effect, FlushPolicy};
use crate::sync::thread::Thread;
use crate::walog::options::WalOptions;
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

    /// Whether what is pending can begin as one, beside what is in flight.
    pub fn can_begin_flush(&self) -> bool {
        let is_durability_asked_for = self.asked_entry_id.max(self.wanted_entry_id) > self.promised_entry_id;
        !self.submitting
            && (!is_durability_asked_for || planted::on("flushes_starve_commits"))
            && self.flights.len() < self.flushes_max()
            && (self.flights.len() < FLUSHES_BUSY || self.pending.payload_bytes() >= self.pile_bytes_max())
            && self.flights.iter().all(|flight| flight.effect == Effect::Flushed)
            && (self.flights.is_empty() || !self.needs_room())
    }

    /// Whether what is pending is in nobody's hands, although a flush of it could begin: a batch that alone is more than
    /// may wait was left for a later append, or commits of it were refused. Where it fills the log, no append comes.
    pub fn is_stuck(&self) -> bool {
        self.flights.is_empty()
            && !self.pending.is_empty()
            && self.can_begin_flush()
            && !planted::on("full_is_left_alone")
    }

    /// The owner commits what is pending, though no ticket waits for it. Answers whom to wake.
    pub fn want_pending(&mut self) -> Option<Thread> {
        self.wanted_entry_id = self.pending.next_entry_id() - 1;
        self.call_owner()
    }

    /// Leaves a flush that is due, and cannot begin, to a later append; `false` where enough is pending. So what the
    /// disk gets at once is the larger the longer it takes.
    pub fn postpone_flush(&mut self) -> bool {
        let pending = self.pending.payload_bytes();
        if pending >= self.pile_bytes_max() {
            return false;
        }
        self.unflushed = 0;
        self.flush_again_bytes = pending + self.options.buffer_bytes / 4;
        if matches!(self.options.flush_policy, FlushPolicy::Interval(_)) {
            self.last_flush = self.options.environment.elapsed();
        }
        self.widen_all();
        true
    }

    /// Up to here a batch grows while no flush can begin; what is left empty at the end of a segment is at most that.
    fn pile_bytes_max(&self) -> usize {
        let quarter = usize::try_from(self.options.segment_bytes_max / 4).unwrap_or(usize::MAX);
        quarter.min(FLUSH_BYTES_MAX).max(self.options.buffer_bytes)
    }

    /// All at once and as soon as flushes may pile up, so that afterwards nothing is allocated any more, however long
    /// the disk takes. Memory that is not written to is only promised.
    pub fn widen_all(&mut self) {
        if self.has_piled {
            return;
        }
        self.has_piled = true;
        let mut spares = std::mem::take(&mut self.spares);
        let missing = self.flushes_max().saturating_sub(self.flights.len() + spares.len());
        spares.extend(std::iter::repeat_with(CommitBuffer::new).take(missing));
        spares.iter_mut().for_each(|spare| self.widen(spare));
        self.spares = spares;
        self.pending.reserve(self.widened_bytes());
    }

    /// Makes room for what may pile up.
    pub(super) fn widen(&self, buffer: &mut CommitBuffer) {
        buffer.clear();
        reserve(buffer, self.options.frame_alignment as usize, self.widened_bytes());
    }

    /// An append looks only behind itself whether that is enough. Buffers of a size of their own grow by themselves.
    fn widened_bytes(&self) -> usize {
        let WalOptions { buffer_bytes, in_flight_bytes_max, .. } = self.options;
        let is_usual = buffer_bytes <= FLUSH_BYTES_MAX && in_flight_bytes_max >= FLUSH_BYTES_MAX;
        if is_usual { self.pile_bytes_max() + buffer_bytes } else { 0 }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::frame::FrameSeed;
    use crate::framing::Batch;
    use crate::limits::FRAME_ALIGNMENT_MIN;
    use crate::storage::Completion;
    use crate::walog::queue::{Room, Work};

    fn queue(buffer_bytes: usize) -> Queue {
        let options = WalOptions { buffer_bytes, ..WalOptions::default() };
        let mut queue = Queue::new(options, Batch::new(FRAME_ALIGNMENT_MIN, 1, 0), (0, 0));
        let room = Room { bytes_left: Some(1 << 30), reserved_bytes_left: 1 << 30, old_at: None };
        queue.enter_segment(room, None);
        queue.set_in_flight_max(32);
        queue
    }

    fn append(queue: &mut Queue, bytes: usize) -> u64 {
        queue.push_all(1, &mut |batch, _| batch.push(&vec![1; bytes])).expect("fits")
    }

    fn begin(queue: &mut Queue) {
        queue.nobody_waits = true;
        queue.take(Effect::Flushed, false, Duration::ZERO);
        queue.running += 1;
    }

    #[test]
    fn no_flush_begins_while_somebody_asks_for_durability() {
        let mut queue = queue(1000);
        append(&mut queue, 10);
        assert!(queue.can_begin_flush());
        begin(&mut queue);
        let entry_id = append(&mut queue, 10);
        assert!(queue.can_begin_flush(), "beside another one");
        queue.demand(entry_id, Effect::Flushed);
        assert!(queue.can_begin_flush(), "a flush serves whoever waits for one");
        queue.demand(entry_id, Effect::Durable);
        assert!(!queue.can_begin_flush(), "or it would wait for flushes without end");
        assert!(!queue.can_submit(entry_id, Effect::Durable), "the flush in flight comes first");
    }

    /// Begins as many flushes as a file with so many in flight takes, and ends all of them.
    fn fill_and_end(queue: &mut Queue, in_flight_max: usize) {
        queue.set_in_flight_max(in_flight_max);
        let begun: Vec<_> = (0..queue.flushes_max())
            .map(|_| {
                append(queue, 10);
                queue.nobody_waits = true;
                let (work, id, ..) = queue.take(Effect::Flushed, false, Duration::ZERO);
                queue.running += 1;
                let Work::Frame(batch) = work else { panic!("entries are pending") };
                Completion { id, buffer: batch.finish(0, FrameSeed::new(1), 0, None).0, result: Ok(()) }
            })
            .collect();
        begun.into_iter().for_each(|completion| queue.settle(completion, Duration::ZERO));
    }

    #[test]
    fn a_file_with_one_in_flight_takes_no_buffers_from_those_behind_it() {
        let mut queue = queue(1000);
        queue.widen_all();
        fill_and_end(&mut queue, 32);
        let kept = queue.spares.len();
        assert_eq!(kept, FLUSHES_IN_FLIGHT_MAX);
        (0..20).for_each(|_| fill_and_end(&mut queue, 1));
        assert_eq!(queue.spares.len(), kept, "or the next file allocates them again");
    }

    #[test]
    fn what_piles_up_before_there_is_a_file_makes_room_once_more_with_it() {
        let mut queue = Queue::new(WalOptions::default(), Batch::new(FRAME_ALIGNMENT_MIN, 1, 0), (0, 0));
        append(&mut queue, 10);
        assert!(queue.postpone_flush(), "while the first segment is made");
        queue.set_in_flight_max(32);
        queue.widen_all();
        let room = |spare: &CommitBuffer| spare.capacity() >= FLUSH_BYTES_MAX;
        assert_eq!(queue.spares.iter().filter(|spare| room(spare)).count(), FLUSHES_IN_FLIGHT_MAX);
    }

    #[test]
    fn flushes_are_bounded_and_then_a_batch_grows_and_then_somebody_waits() {
        let mut queue = queue(1000);
        for in_flight in 0..FLUSHES_IN_FLIGHT_MAX {
            if in_flight >= FLUSHES_BUSY {
                append(&mut queue, 10);
                assert!(!queue.can_begin_flush(), "small, beside {in_flight}");
                append(&mut queue, FLUSH_BYTES_MAX);
            }
            append(&mut queue, 10);
            assert!(queue.can_begin_flush(), "beside {in_flight}");
            begin(&mut queue);
        }
        append(&mut queue, 10);
        assert!(!queue.can_begin_flush());
        assert!(queue.can_collect());
        let mut postponed = 0;
        while queue.postpone_flush() {
            postponed += 1;
            assert!(!queue.is_flush_due(), "not before more is there");
            while !queue.is_flush_due() {
                append(&mut queue, 10);
            }
        }
        assert!(postponed > 1);
        assert!(queue.pending.payload_bytes() <= FLUSH_BYTES_MAX + 1000, "{}", queue.pending.payload_bytes());
    }
}
