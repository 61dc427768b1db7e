//! What is pending, what is in flight and who waits: the rules of committing, without I/O and without a lock.
//!
//! Lives here: who drives what ([`Queue::turn`]), what a commit takes ([`Queue::take`]), how far its completion
//! moves the watermarks ([`Queue::settle`]), whom that reaches. Not here: files, threads, the lock that the queue
//! lies behind (`committer`).
//!
//! Invariants: watermarks move in the order in which commits began, whatever the order of their completions;
//! entries are either pending, or in flight, or flushed, in this order and without a gap.

use self::crowd::Crowd;
use super::committer::Asked;
use super::options::{SlowCommit, WalOptions};
use super::telemetry::{Begun, Probe};
use super::waiters::{Waiter, Waiters};
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::Batch;
use crate::limits::{
    COMMIT_BUFFER_BYTES_INITIAL, DEVICE_SLOW_US, FLUSHES_IN_FLIGHT_MAX, PIPELINE_DEPTH_FAST,
    PIPELINE_DEPTH_SLOW,
};
use crate::planted;
use crate::storage::{CommitBuffer, CommitFile, Completion, Effect, FlushPolicy};
use crate::sync::thread::Thread;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

mod crowd;
mod drivers;
mod flushing;
mod slow;

/// The state behind the lock.
pub(super) struct Queue {
    /// What the next commit takes; always behind everything that earlier ones took.
    pub pending: Batch,
    /// Cleared buffers for the batches after that.
    pub spares: Vec<CommitBuffer>,
    /// Commits that have begun, in order, from the first one whose completion was not seen.
    pub flights: VecDeque<Flight>,
    /// Bytes of payload in them.
    pub flight_bytes: usize,
    /// The file that holds them; rotation waits until there are none.
    pub file: Option<Arc<dyn CommitFile>>,
    pub in_flight_max: usize,
    /// The most that any file of this log took: segments may differ, and the buffers stay.
    in_flight_most: usize,
    /// Segments that were entered; so readers know that there is another one.
    pub segments_entered: u64,
    /// Commits that the file has accepted, less the completions that were collected.
    pub running: isize,
    pub submitting: bool,
    pub reaping: bool,
    /// Whoever waits for a completion waits for an entry of its own, and is not the owner.
    pub reaper_blocks: bool,
    pub commits_begun: u64,
    /// The last entry that a commit has taken.
    pub begun_entry_id: u64,
    /// Everything up to here will be durable when what is in flight has ended well.
    pub promised_entry_id: u64,
    pub flushed_entry_id: u64,
    /// Of which an observer was told.
    pub told_flushed_entry_id: u64,
    /// The segment that was left last and the one after it, until an observer was told. At most one: a rotation
    /// waits until nothing is in flight, and whoever ends a commit tells.
    pub rotated: Option<(u64, u64)>,
    pub durable_entry_id: u64,
    /// A durable frame says that everything up to here is durable.
    pub attested_entry_id: u64,
    /// Tickets wait for entries up to here.
    pub wanted_entry_id: u64,
    /// Threads have asked for the durability of entries up to here.
    pub asked_entry_id: u64,
    /// What the submitter is about to take is a flush that nobody waits for.
    pub nobody_waits: bool,
    pub waiters: Waiters,
    pub flush_waiters: Waiters,
    pub owner: Option<Owner>,
    /// The last commit that could not begin and left everything as it was.
    pub refusal: Option<Refusal>,
    pub closed: bool,
    /// Who closes the log, and would never be done if it took more.
    pub closers: usize,
    /// Who asked the owner to close the log; it does while there are any.
    pub close_asked: Vec<Arc<Asked>>,
    /// The last handle was dropped since: nobody would try again.
    pub abandoned: bool,
    pub failure: Option<Arc<PersistenceError>>,
    pub options: WalOptions,
    pub room: Room,
    /// Entries since the last flush, for the flush policy.
    pub unflushed: usize,
    pub last_flush: Duration,
    /// Payload, in bytes, at which to look again whether a flush that is due can begin.
    pub flush_again_bytes: usize,
    /// Batches have grown while no flush could begin: every buffer has room for that.
    pub has_piled: bool,
    /// Smoothed time from the beginning of a commit to its completion, in nanoseconds.
    pub commit_ns: u64,
    /// Whom the next commit may wait for.
    pub crowd: Crowd,
    pub probe: Probe,
    /// A commit that took too long, has ended, and was not reported yet.
    pub was_slow: Option<SlowCommit>,
}

/// A commit that has begun.
pub(super) struct Flight {
    pub commit_id: u64,
    pub last_entry_id: u64,
    pub entries: u32,
    pub effect: Effect,
    /// What its frame attests.
    pub attested_entry_id: u64,
    pub bytes: usize,
    pub began: Duration,
    /// Since when somebody waits for it; `None`: nobody does. How long one took that nobody waited for is not known.
    pub awaited: Option<Duration>,
    pub completed: bool,
    /// As one that takes too long.
    pub reported: bool,
}

/// The thread that drives commits for tickets.
pub(super) struct Owner {
    pub thread: Thread,
    pub parked: bool,
    pub stop: bool,
}

pub(super) struct Refusal {
    pub number: u64,
    /// Entries up to here were refused; they stay pending.
    pub last_entry_id: u64,
    pub error: PersistenceError,
}

/// What the segment that is being written has room for.
#[derive(Clone, Copy, Default)]
pub(super) struct Room {
    /// Bytes left in it; `None`: there is no segment.
    pub bytes_left: Option<u64>,
    /// Bytes of them that were asked for already.
    pub reserved_bytes_left: u64,
    /// When it is too old, by the environment's clock.
    pub old_at: Option<Duration>,
}

/// What a thread that waits for an entry can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Submit,
    Reap,
    Wait,
}

/// What a submitter takes.
pub(super) enum Work {
    Frame(Batch),
    Sync,
}

impl Queue {
    /// With nothing pending; `progress` is what is flushed and what is durable.
    pub fn new(options: WalOptions, pending: Batch, progress: (u64, u64)) -> Self {
        let (flushed, durable) = progress;
        Self {
            pending,
            spares: Vec::with_capacity(FLUSHES_IN_FLIGHT_MAX),
            flights: VecDeque::with_capacity(FLUSHES_IN_FLIGHT_MAX),
            flight_bytes: 0,
            file: None,
            in_flight_max: 1,
            in_flight_most: 1,
            segments_entered: 0,
            running: 0,
            submitting: false,
            reaping: false,
            reaper_blocks: false,
            commits_begun: 0,
            begun_entry_id: flushed,
            promised_entry_id: durable,
            flushed_entry_id: flushed,
            told_flushed_entry_id: flushed,
            rotated: None,
            durable_entry_id: durable,
            attested_entry_id: 0,
            wanted_entry_id: durable,
            asked_entry_id: durable,
            nobody_waits: false,
            waiters: Waiters::default(),
            flush_waiters: Waiters::default(),
            owner: None,
            refusal: None,
            closed: false,
            closers: 0,
            close_asked: Vec::new(),
            abandoned: false,
            failure: None,
            room: Room::default(),
            unflushed: 0,
            last_flush: options.environment.elapsed(),
            flush_again_bytes: 0,
            has_piled: false,
            commit_ns: 0,
            crowd: Crowd::default(),
            probe: Probe::new(options.telemetry.is_some()),
            was_slow: None,
            options,
        }
    }

    /// Bytes that wait and how many may.
    pub fn waiting(&self) -> (u64, u64) {
        let bytes = self.pending.payload_bytes() + self.flight_bytes;
        (bytes as u64, self.options.in_flight_bytes_max as u64)
    }

    /// The same, when there are too many. A single batch may always wait.
    pub fn full(&self) -> Option<(u64, u64)> {
        let (bytes, bytes_max) = self.waiting();
        (bytes > 0 && bytes >= bytes_max).then_some((bytes, bytes_max))
    }

    /// Appends all of `count` entries to the pending frame, or none; returns the first id.
    pub fn push_all(
        &mut self,
        count: usize,
        push: &mut impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let first = self.pending.push_all(count, push)?;
        self.unflushed += count;
        let environment = &self.options.environment;
        self.probe.append(|| environment.elapsed());
        Ok(first)
    }

    /// Somebody begins to wait for an entry.
    pub fn demand(&mut self, entry_id: u64, effect: Effect) {
        self.ask(entry_id, effect);
        if entry_id > self.begun_entry_id {
            let environment = &self.options.environment;
            self.probe.wait(|| environment.elapsed());
        }
    }

    /// Somebody still waits for it.
    pub fn ask(&mut self, entry_id: u64, effect: Effect) {
        if effect == Effect::Durable {
            self.asked_entry_id = self.asked_entry_id.max(entry_id);
        }
    }

    pub fn is_flush_due(&self) -> bool {
        let due = match self.options.flush_policy {
            FlushPolicy::PerAppend => true,
            FlushPolicy::EveryN(entries) => self.unflushed >= entries.max(1),
            FlushPolicy::Interval(interval) => {
                self.options.environment.elapsed().saturating_sub(self.last_flush) >= interval
            }
            FlushPolicy::Manual => false,
        };
        due || self.pending.payload_bytes() >= self.options.buffer_bytes.max(self.flush_again_bytes)
    }

    pub fn check(&self) -> PersistenceResult<()> {
        if let Some(cause) = &self.failure {
            let durable = if planted::on("poison_tells_no_watermark") { 0 } else { self.durable_entry_id };
            return Err(PersistenceError::closed_by(Arc::clone(cause), durable));
        }
        if self.closed && !planted::on("closed_is_forgotten") {
            return Err(PersistenceError::invalid_state("using the log", "it is closed; open it again"));
        }
        Ok(())
    }

    /// Whether anything can be appended.
    pub fn check_takes(&self) -> PersistenceResult<()> {
        self.check()?;
        if self.closers > 0 {
            return Err(PersistenceError::invalid_state("appending", "the log is being closed"));
        }
        Ok(())
    }

    pub fn refusals(&self) -> u64 {
        self.refusal.as_ref().map_or(0, |refusal| refusal.number)
    }

    /// How waiting for an entry has ended; `None` while it has not.
    pub fn outcome(&self, entry_id: u64, effect: Effect, seen: u64) -> Option<PersistenceResult<()>> {
        let reached = match effect {
            Effect::Flushed => self.flushed_entry_id,
            Effect::Durable => self.durable_entry_id,
        };
        if reached >= entry_id {
            return Some(Ok(()));
        }
        if let Err(error) = self.check() {
            return Some(Err(error));
        }
        let refusal = self.refusal.as_ref()?;
        (refusal.number > seen && entry_id <= refusal.last_entry_id && entry_id > self.begun_entry_id)
            .then(|| Err(refusal.error.clone()))
    }

    pub fn waiters(&mut self, effect: Effect) -> &mut Waiters {
        match effect {
            Effect::Flushed => &mut self.flush_waiters,
            Effect::Durable => &mut self.waiters,
        }
    }

    /// What whoever waits for `entry_id` can do. The one rule of who drives.
    pub fn turn(&self, entry_id: u64, effect: Effect) -> Turn {
        if self.can_submit(entry_id, effect) {
            Turn::Submit
        } else if !self.reaping && self.running > 0 {
            Turn::Reap
        } else {
            Turn::Wait
        }
    }

    pub fn can_submit(&self, entry_id: u64, effect: Effect) -> bool {
        if self.submitting || self.flights.len() >= self.depth() {
            return false;
        }
        // A durable commit vouches for itself and for what had completed before it began.
        if self.is_flushing() {
            return false;
        }
        if self.begun_entry_id < entry_id {
            return self.flights.is_empty() || (self.is_worth_its_own_commit() && !self.needs_room());
        }
        effect == Effect::Durable && self.promised_entry_id < entry_id && self.flights.is_empty()
    }

    /// Whether what is pending should begin beside what is in flight. Only as the equal of the largest there: less
    /// would split one crowd of committers into ever smaller commits, where waiting gathers all of them again.
    /// Where tickets come one by one, each is the equal of the one before, and none waits. Threads that block do:
    /// two of them, a flush each, wake each other up more often than the overlap saves. (`bench --depth` measures it.)
    fn is_worth_its_own_commit(&self) -> bool {
        let largest = self.flights.iter().map(|flight| flight.entries).max();
        let is_asked_for = self.options.pipeline_depth.is_some();
        let threads_block = self.waiters.has_drivers()
            || (self.reaping && self.reaper_blocks && !planted::on("driver_is_no_committer"));
        Some(self.pending.entry_count()) >= largest && (is_asked_for || !threads_block)
    }

    /// How many commits may be in flight. Where a flush is slow, more of them overlap; where it is fast, the
    /// processor is the limit, and more of them only make batches small.
    pub fn depth(&self) -> usize {
        let is_slow = self.commit_ns > DEVICE_SLOW_US * 1000 && !planted::on("depth_never_adapts");
        let adapted = if is_slow { PIPELINE_DEPTH_SLOW } else { PIPELINE_DEPTH_FAST };
        self.options.pipeline_depth.unwrap_or(adapted).clamp(1, self.in_flight_max.max(1))
    }

    /// How many may ever be: as many buffers are kept, or a depth that goes up and down would allocate.
    fn depth_max(&self) -> usize {
        let adapted = PIPELINE_DEPTH_SLOW.max(PIPELINE_DEPTH_FAST).max(FLUSHES_IN_FLIGHT_MAX);
        self.options.pipeline_depth.unwrap_or(adapted).clamp(1, self.in_flight_most)
    }

    /// Whether what is pending needs a new segment, or space for this one to grow.
    pub fn needs_room(&self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let Some(bytes_left) = self.room.bytes_left else { return true };
        let frame_bytes = self.pending.frame_bytes();
        frame_bytes > bytes_left
            || frame_bytes + self.options.filler_bytes(frame_bytes) > self.room.reserved_bytes_left
            || self.room.old_at.is_some_and(|old_at| self.options.environment.elapsed() >= old_at)
    }

    pub fn enter_segment(&mut self, room: Room, file: Option<Arc<dyn CommitFile>>) {
        debug_assert!(self.flights.is_empty());
        self.room = room;
        self.segments_entered += 1;
        self.set_in_flight_max(file.as_ref().map_or(1, |file| file.limits().in_flight_max.max(1)));
        self.file = file;
    }

    fn set_in_flight_max(&mut self, commits: usize) {
        self.in_flight_max = commits;
        if commits > self.in_flight_most {
            self.in_flight_most = commits;
            // What was made room for by then is not enough.
            self.has_piled = false;
        }
    }

    pub fn progress(&self) -> (u64, u64) {
        (self.flushed_entry_id, self.durable_entry_id)
    }

    /// Takes everything that is pending, or a sync where there is nothing or nothing is wanted. Somebody who
    /// waits for durability makes a mere flush durable: a second commit would cost more.
    pub fn take(&mut self, effect: Effect, sync_only: bool, now: Duration) -> (Work, u64, Effect, Begun) {
        self.commits_begun += 1;
        let commit_id = self.commits_begun;
        let is_sync = self.pending.is_empty() || sync_only;
        let entries = self.pending.entry_count();
        let bytes = if is_sync { 0 } else { self.pending.payload_bytes() };
        let last_entry_id = if is_sync { self.begun_entry_id } else { self.pending.next_entry_id() - 1 };
        let is_wanted = self.wanted_entry_id > self.begun_entry_id
            || self.waiters.driver_behind(self.begun_entry_id).is_some();
        // A durable commit vouches for nothing that is in flight.
        let is_wanted = is_wanted && !self.is_flushing();
        let effect = if is_wanted { Effect::Durable } else { effect };
        let depth = self.flights.len() + 1;
        let (entries, frame_bytes) = if is_sync { (0, 0) } else { (entries, self.pending.frame_bytes()) };
        let begun = self.probe.begin(now, Begun { entries, bytes, frame_bytes, depth, ..Begun::default() });
        let work = if is_sync {
            Work::Sync
        } else {
            let alignment = self.options.frame_alignment;
            let fresh = match self.spares.pop() {
                Some(buffer) => Batch::reuse(buffer, alignment, last_entry_id + 1),
                None => Batch::new(alignment, last_entry_id + 1, COMMIT_BUFFER_BYTES_INITIAL),
            };
            (self.unflushed, self.last_flush, self.flush_again_bytes) = (0, now, 0);
            Work::Frame(std::mem::replace(&mut self.pending, fresh))
        };
        let is_awaited = !std::mem::take(&mut self.nobody_waits) || effect == Effect::Durable;
        let (began, awaited, completed, reported) = (now, is_awaited.then_some(now), false, false);
        self.flights.push_back(Flight {
            commit_id,
            last_entry_id,
            entries,
            effect,
            attested_entry_id: if is_sync { 0 } else { self.durable_entry_id },
            bytes,
            began,
            awaited,
            completed,
            reported,
        });
        self.flight_bytes += bytes;
        self.begun_entry_id = last_entry_id;
        if effect == Effect::Durable {
            self.promised_entry_id = last_entry_id;
        }
        (work, commit_id, effect, begun)
    }

    /// Books a completion; watermarks move over the commits that have ended, in the order of their beginning.
    pub fn settle(&mut self, completion: Completion, now: Duration) {
        self.running -= 1;
        let Completion { id, mut buffer, result } = completion;
        if self.has_piled {
            self.widen(&mut buffer);
        }
        let keep_max = 4 * self.options.buffer_bytes.max(1 << 20);
        if buffer.capacity() > 0 && buffer.capacity() <= keep_max && self.spares.len() < self.depth_max() {
            self.spares.push(buffer);
        }
        if let Err(error) = result {
            self.fail(error);
            return;
        }
        let Some(flight) = self.flights.iter_mut().find(|flight| flight.commit_id == id) else {
            debug_assert!(false, "a completion of nothing");
            return;
        };
        flight.completed = true;
        if planted::on("watermark_out_of_order") {
            self.durable_entry_id = self.durable_entry_id.max(flight.last_entry_id);
        }
        let &mut Flight { last_entry_id, began, awaited, reported, .. } = flight;
        if let Some(since) = awaited {
            self.note_slow(last_entry_id, now.saturating_sub(since), reported);
        }
        if awaited == Some(began) {
            let took = now.saturating_sub(began);
            self.probe.settle(now, took);
            let took = took.as_nanos() as u64;
            self.commit_ns =
                if self.commit_ns == 0 { took } else { self.commit_ns - self.commit_ns / 8 + took / 8 };
        }
        if self.failure.is_some() {
            return;
        }
        let mut reached = 0;
        while self.flights.front().is_some_and(|flight| flight.completed) {
            let Some(flight) = self.flights.pop_front() else { break };
            self.flight_bytes -= flight.bytes;
            reached += if flight.awaited.is_some() { flight.entries } else { 0 };
            self.flushed_entry_id = flight.last_entry_id;
            if flight.effect == Effect::Durable || planted::on("watermark_of_flushed") {
                self.durable_entry_id = flight.last_entry_id;
                self.attested_entry_id = self.attested_entry_id.max(flight.attested_entry_id);
            }
            if planted::on("watermark_of_pending") {
                self.durable_entry_id = self.pending.next_entry_id() - 1;
            }
        }
        if reached > 0 {
            self.crowd.told(reached, self.pending.entry_count());
        }
    }

    pub fn fail(&mut self, error: PersistenceError) {
        let cause = match error {
            PersistenceError::Poisoned { cause, .. } => cause,
            error => Arc::new(error),
        };
        self.failure.get_or_insert(cause);
    }

    /// A commit that could not begin: everybody whose entries are pending is told, and may try again.
    pub fn refuse(&mut self, error: PersistenceError) {
        let last_entry_id = self.pending.next_entry_id() - 1;
        self.refusal = Some(Refusal { number: self.refusals() + 1, last_entry_id, error });
        // Or the owner would try again at once, and for ever.
        self.wanted_entry_id = self.wanted_entry_id.min(self.begun_entry_id);
        // Or flushes that nobody waits for would stand back for a commit that nobody asks for any more.
        let asked = self.waiters.last_up_to(self.begun_entry_id).unwrap_or(0);
        let asked = if planted::on("refused_are_asked_for") { self.begun_entry_id } else { asked };
        self.asked_entry_id = self.asked_entry_id.min(asked.max(self.promised_entry_id));
    }

    /// Moves everybody who has something to learn into `told`; the error for those who were not reached.
    pub fn take_told(&mut self, told: &mut Vec<Waiter>) -> Option<PersistenceError> {
        self.waiters.take_reached(self.durable_entry_id, told);
        self.flush_waiters.take_reached(self.flushed_entry_id, told);
        if let Err(error) = self.check() {
            if planted::on("poison_forgets_waiters") {
                return Some(error);
            }
            self.waiters.take_behind(0, told);
            self.flush_waiters.take_behind(0, told);
            return Some(error);
        }
        let refusal = self.refusal.as_ref().filter(|refusal| refusal.last_entry_id > self.begun_entry_id)?;
        if planted::on("refusal_forgets_waiters") {
            return None;
        }
        // What is in flight is not refused, nor what was appended since.
        let refused = self.begun_entry_id..=refusal.last_entry_id;
        self.waiters.take_within(refused.clone(), told);
        self.flush_waiters.take_within(refused, told);
        Some(refusal.error.clone())
    }

    /// The observer is told of everything that is flushed; answers what it was told before.
    pub fn tell_flushed(&mut self) -> u64 {
        std::mem::replace(&mut self.told_flushed_entry_id, self.flushed_entry_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::FRAME_ALIGNMENT_MIN;

    /// Whether an entry begins a commit of its own beside one that is in flight and as large.
    fn begins_beside(prepare: impl FnOnce(&mut Queue)) -> bool {
        let mut queue = Queue::new(WalOptions::default(), Batch::new(FRAME_ALIGNMENT_MIN, 1, 0), (0, 0));
        let room = Room { bytes_left: Some(1 << 30), reserved_bytes_left: 1 << 30, old_at: None };
        queue.enter_segment(room, None);
        queue.set_in_flight_max(32);
        let append =
            |queue: &mut Queue| queue.push_all(1, &mut |batch, _| batch.push(b"entry")).expect("fits");
        append(&mut queue);
        queue.take(Effect::Durable, false, Duration::ZERO);
        queue.running += 1;
        let second = append(&mut queue);
        prepare(&mut queue);
        queue.can_submit(second, Effect::Durable)
    }

    #[test]
    fn tickets_overlap_and_threads_that_block_go_together() {
        assert!(begins_beside(|_| ()), "nobody has begun to wait");
        assert!(begins_beside(|queue| queue.reaping = true), "the owner waits for the first");
        assert!(!begins_beside(|queue| (queue.reaping, queue.reaper_blocks) = (true, true)));
        let listed = |queue: &mut Queue| {
            queue.waiters.add(1, super::super::waiters::Wake::Driver(crate::sync::thread::current()));
        };
        assert!(!begins_beside(listed));
        assert!(begins_beside(|queue| {
            listed(queue);
            queue.options.pipeline_depth = Some(2);
        }));
    }

    /// The depth behind commits that took so many microseconds each, one after the other.
    fn depth_behind(commits_us: &[u64], pipeline_depth: Option<usize>, in_flight_max: usize) -> usize {
        let options = WalOptions { pipeline_depth, ..WalOptions::default() };
        let mut queue = Queue::new(options, Batch::new(FRAME_ALIGNMENT_MIN, 1, 0), (0, 0));
        let room = Room { bytes_left: Some(1 << 30), reserved_bytes_left: 1 << 30, old_at: None };
        queue.enter_segment(room, None);
        queue.set_in_flight_max(in_flight_max);
        for us in commits_us {
            queue.push_all(1, &mut |batch, _| batch.push(b"entry")).expect("fits");
            let (_, id, _, _) = queue.take(Effect::Durable, false, Duration::ZERO);
            queue.running += 1;
            let completion = Completion { id, buffer: CommitBuffer::new(), result: Ok(()) };
            queue.settle(completion, Duration::from_micros(*us));
        }
        queue.depth()
    }

    #[test]
    fn depth_follows_how_long_commits_take() {
        let (fast, slow) = ([DEVICE_SLOW_US / 4; 50], [DEVICE_SLOW_US * 2; 50]);
        assert_eq!(depth_behind(&[], None, 32), PIPELINE_DEPTH_FAST);
        assert_eq!(depth_behind(&fast, None, 32), PIPELINE_DEPTH_FAST);
        assert_eq!(depth_behind(&slow, None, 32), PIPELINE_DEPTH_SLOW);
        assert_eq!(depth_behind(&[&fast[..], &slow].concat(), None, 32), PIPELINE_DEPTH_SLOW);
        assert_eq!(depth_behind(&[&slow[..], &fast].concat(), None, 32), PIPELINE_DEPTH_FAST);
        // One that stalls says nothing of the device.
        assert_eq!(depth_behind(&[&fast[..], &[DEVICE_SLOW_US * 3]].concat(), None, 32), PIPELINE_DEPTH_FAST);
        assert_eq!(depth_behind(&slow, None, 1), 1, "no more than the file takes");
        assert_eq!(depth_behind(&fast, Some(7), 32), 7, "what was asked for is not adapted");
    }
}
