//! Many threads, one log: the only place where threads wait for each other.
//!
//! Appending encodes into the pending batch under a short lock. There is no timer: whatever is pending goes
//! with the next commit. Two roles drive commits, each held by one thread at a time and without the lock:
//!
//! * who *submits* takes the whole pending batch and gives it to the file, making a new segment first where
//!   it has to;
//! * who *reaps* waits for a completion, moves the watermarks, and tells those whose entries are reached.
//!
//! A blocking committer takes whatever role its own entry needs ([`Queue::turn`]), so that alone it does
//! everything itself, without a hand-over. Tickets are driven by an owner thread, which starts with the first
//! of them and takes roles by the same rule. Several commits may be in flight; watermarks move in the order
//! in which commits began, whatever the order of their completions.
//!
//! Nobody is left waiting because of this: whoever waits has looked, under the lock, that no role that it needs
//! is free; and whoever stops driving hands on, under the lock, to somebody who waits
//! ([`Queue::next_driver`]).
//!
//! Lock order: `queue`, `appender` and `told` are never held together. `appender` is only taken by the
//! submitter and by `close` when there is none, so it is never contended; it exists so that the compiler
//! need not be told.

use super::appender::Appender;
use super::options::{Backpressure, WalObserver};
use super::queue::{Queue, Room, Turn, Work};
use super::rotations::Rotations;
use super::telemetry::{Telemetry, Tracer};
use super::waiters::{self, Waiter, Wake};
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::Batch;
use crate::planted;
use crate::storage::{ActiveStrategy, Directory, Effect, Environment, Home};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

mod closing;
mod flushing;
mod idle;
mod reading;
mod telling;
mod tickets;
mod watchdog;

pub(super) use closing::Asked;
pub(super) use reading::{Fetched, Written};
pub(super) use tickets::Line;

/// Threads that can tell at once without allocating.
const TELLERS: usize = 2;

/// Everything that the handles of one log share.
pub(super) struct Committer<D: Directory + ?Sized> {
    queue: Mutex<Queue>,
    /// What `Queue::durable_entry_id` is, for those who only look. Written under the lock of `queue`; the
    /// number itself is all that it publishes; in one order with [`idle::Idle`]'s sleep.
    durable: AtomicU64,
    appender: Mutex<Option<Appender<D>>>,
    /// Room for those who are being told, so that telling allocates nothing: somebody may tell of one commit while
    /// another is still telling of the one before.
    told: Mutex<Vec<Vec<Waiter>>>,
    owner: Mutex<Option<JoinHandle<()>>>,
    idle: idle::Idle,
    observer: Option<Arc<dyn WalObserver>>,
    environment: Arc<dyn Environment>,
    telemetry: Option<Arc<Telemetry>>,
    tracer: Tracer,
    /// In a child of a fork nothing is driven, and no lock is taken: whoever held it is not there.
    home: Home,
    is_durable: bool,
    rotations: Arc<Rotations>,
}

type Guard<'a> = MutexGuard<'a, Queue>;

impl<D: Directory + ?Sized> Committer<D> {
    /// Takes over from a single owner, with nothing pending.
    pub fn new(mut appender: Appender<D>) -> Self {
        let progress = (appender.flushed_entry_id(), appender.durable_entry_id());
        let mut queue = Queue::new(appender.options().clone(), appender.new_batch(), progress);
        queue.enter_segment(appender.room(), appender.file().cloned());
        Self {
            durable: AtomicU64::new(progress.1),
            told: Mutex::new((0..TELLERS).map(|_| Vec::with_capacity(waiters::ROOM)).collect()),
            owner: Mutex::new(None),
            idle: idle::Idle::default(),
            // Nobody is called inside the appender: it is driven with a role held.
            observer: appender.take_observer(),
            environment: Arc::clone(&appender.options().environment),
            telemetry: appender.options().telemetry.clone(),
            tracer: Tracer::default(),
            home: Home::here(),
            is_durable: appender.check_durable("open").is_ok(),
            rotations: Arc::clone(appender.rotations()),
            appender: Mutex::new(Some(appender)),
            queue: Mutex::new(queue),
        }
    }

    fn queue(&self) -> Guard<'_> {
        // A panic while the lock is held comes from a codec (or a failed allocation); the batch rolls itself back.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to here is durable.
    pub fn durable_entry_id(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// Id of the last appended entry.
    pub fn last_entry_id(&self) -> u64 {
        self.queue().pending.next_entry_id() - 1
    }

    /// A copy of the options.
    pub fn recycle_capacity(&self) -> usize {
        self.queue().options.recycle_capacity
    }

    /// Who is told what the log does.
    pub fn observer(&self) -> Option<Arc<dyn WalObserver>> {
        self.observer.clone()
    }

    /// What rotating has cost.
    pub fn rotations(&self) -> &Rotations {
        &self.rotations
    }

    /// How the file that is being written makes commits durable.
    pub fn strategy(&self) -> Option<ActiveStrategy> {
        let file = self.queue().file.clone()?;
        Some(file.active_strategy())
    }

    /// Appends `count` entries to one frame, and flushes where the policy says so. Returns the first id.
    pub fn append_with(
        &self,
        count: usize,
        push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let (mut queue, first) = self.push_with(count, push)?;
        let due = queue.is_flush_due() && count > 0;
        let (last, seen) = ((first + count as u64).saturating_sub(1), queue.refusals());
        if !due || self.observer.is_some() {
            drop(queue);
            self.observe_append(first, count);
            if !due {
                return Ok(first);
            }
            queue = self.queue();
        }
        if queue.options.flush_policy.is_awaited() || planted::on("await_each_flush") {
            self.wait_locked(queue, last, Effect::Flushed)?;
        } else {
            self.begin_flush(queue, last, seen)?;
        }
        Ok(first)
    }

    /// Appends one entry and blocks until it is durable; returns its id.
    pub fn append_durable_with(
        &self,
        push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let (mut queue, entry_id) = self.push_with(1, push)?;
        if self.observer.is_some() {
            drop(queue);
            self.observe_append(entry_id, 1);
            queue = self.queue();
        }
        self.wait_locked(queue, entry_id, Effect::Durable)?;
        Ok(entry_id)
    }

    fn push_with(
        &self,
        count: usize,
        mut push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<(Guard<'_>, u64)> {
        self.home.check()?;
        let mut queue = self.queue();
        loop {
            queue.check_takes()?;
            if queue.full().is_some() && queue.can_collect() && !planted::on("full_of_ended_flushes") {
                queue = self.collect_ended(queue);
                queue.check_takes()?;
            }
            let result = match queue.full() {
                Some((bytes, bytes_max)) if queue.options.backpressure == Backpressure::Refuse => {
                    if !queue.is_stuck() {
                        return Err(PersistenceError::WouldBlock { bytes, bytes_max });
                    }
                    let (last, seen) = (queue.pending.next_entry_id() - 1, queue.refusals());
                    self.begin_flush(queue, last, seen).map_err(|error| self.unappended(error))?;
                    queue = self.queue();
                    continue;
                }
                Some(_) => None,
                None => Some(queue.push_all(count, &mut push)),
            };
            match result {
                // It may fit into a frame of its own.
                Some(Err(PersistenceError::PayloadTooLarge { .. }))
                    if count > 1 && !queue.pending.is_empty() && !planted::on("batch_never_waits") => {}
                Some(result) => return result.map(|first| (queue, first)),
                None => {}
            }
            let last = queue.pending.next_entry_id() - 1;
            self.wait_locked(queue, last, Effect::Flushed).map_err(|error| self.unappended(error))?;
            queue = self.queue();
        }
    }

    /// Blocks until everything up to `entry_id` is flushed, or durable.
    pub fn wait(&self, entry_id: u64, effect: Effect) -> PersistenceResult<()> {
        if effect == Effect::Durable && self.durable_entry_id() >= entry_id {
            return Ok(());
        }
        self.home.check()?;
        self.wait_locked(self.queue(), entry_id, effect)
    }

    fn wait_locked<'a>(
        &'a self,
        mut queue: Guard<'a>,
        entry_id: u64,
        effect: Effect,
    ) -> PersistenceResult<()> {
        let seen = queue.refusals();
        queue.demand(entry_id, effect);
        let (mut key, mut was_parked) = (None, false);
        let result = loop {
            if let Some(outcome) = queue.outcome(entry_id, effect, seen) {
                break outcome;
            }
            queue.ask(entry_id, effect);
            let turn = queue.turn(entry_id, effect);
            if turn == Turn::Wait {
                // Told of a refusal, its entry may have gone with somebody else's next try: back to waiting.
                let told = key.filter(|key| !queue.waiters(effect).contains(entry_id, *key));
                let is_listed = key.is_some() && (told.is_none() || planted::on("told_waits_unlisted"));
                if planted::on("look_before_listing") {
                    drop(queue);
                    queue = self.queue();
                }
                if !is_listed {
                    let wake = Wake::Driver(thread::current());
                    key = Some(queue.waiters(effect).add(entry_id, wake));
                }
                let look_at = self.look_at(&queue);
                drop(queue);
                self.park(look_at, None);
                was_parked = true;
                queue = self.queue();
                continue;
            }
            // Whoever drives is not told by itself.
            key.take().map(|key| queue.waiters(effect).remove(entry_id, key));
            queue = match turn {
                Turn::Submit => self.submit(queue, entry_id, effect),
                _ => self.reap(queue),
            };
        };
        key.map(|key| queue.waiters(effect).remove(entry_id, key));
        let (next, settled) = (queue.next_driver(), queue.probe.settled());
        drop(queue);
        if let Some(next) = next {
            next.unpark();
        }
        if let (true, Some(telemetry), Some(took)) = (was_parked, &self.telemetry, self.past(settled)) {
            telemetry.woke(took);
        }
        result
    }

    /// Takes everything that is pending, and gives it to the file; for the sake of `entry_id`.
    fn submit<'a>(&'a self, mut queue: Guard<'a>, entry_id: u64, effect: Effect) -> Guard<'a> {
        queue.submitting = true;
        let role = Submitting { committer: self };
        queue = self.gather(queue);
        // Looked at once: more was appended, and time has passed, since the turn was taken, and time goes on.
        let needs_room = queue.needs_room();
        if needs_room && !queue.flights.is_empty() && !planted::on("rotate_beside_flights") {
            // What is in flight comes first: whoever drives chooses again.
            std::mem::forget(role);
            queue.submitting = false;
            return queue;
        }
        // An entry that a commit has taken needs a sync, and no segment for those behind it: there may be no
        // space for one.
        let sync_only = needs_room && entry_id <= queue.begun_entry_id;
        if needs_room && (!sync_only || planted::on("sync_waits_for_segment")) {
            queue = match self.make_room(queue) {
                Ok(queue) => queue,
                Err(queue) => {
                    std::mem::forget(role);
                    return self.tell(queue);
                }
            };
        }
        let (work, commit_id, effect, begun) = queue.take(effect, sync_only, self.environment.elapsed());
        let (progress, last_entry_id) = (queue.progress(), queue.begun_entry_id);
        drop(queue);
        self.measure_begin(commit_id, last_entry_id, effect, &begun);
        let begun = self.with_appender(|appender| {
            appender.progress(progress.0, progress.1);
            match work {
                Work::Frame(batch) => appender.begin(batch, effect, commit_id)?,
                Work::Sync => appender.begin_sync(commit_id)?,
            }
            Ok(appender.room())
        });
        let begun = begun.inspect_err(|_| self.measure_end(commit_id, false));
        let queue = self.queue();
        std::mem::forget(role);
        self.end_submitting(queue, begun)
    }

    /// Gives those who were told a moment ago the time to come along.
    fn gather<'a>(&'a self, mut queue: Guard<'a>) -> Guard<'a> {
        if queue.nobody_waits || !queue.flights.is_empty() {
            return queue;
        }
        let pending = queue.pending.entry_count();
        let Some(mut gathering) = queue.crowd.gather(pending, || self.environment.elapsed()) else {
            return queue;
        };
        loop {
            drop(queue);
            thread::yield_now();
            queue = self.queue();
            let (pending, commit_ns) = (queue.pending.entry_count(), queue.commit_ns);
            let now = self.environment.elapsed();
            if queue.failure.is_some() || !queue.crowd.goes_on(&mut gathering, pending, commit_ns, now) {
                return queue;
            }
        }
    }

    /// What was taken is with the file, or everybody is told that it is not.
    fn end_submitting<'a>(&'a self, mut queue: Guard<'a>, begun: PersistenceResult<Room>) -> Guard<'a> {
        queue.submitting = false;
        match begun {
            Ok(room) => {
                queue.room = room;
                queue.running += 1;
                // The role is free, and whoever holds it next need not wait for a completion.
                if let Some(next) = queue.next_submitter() {
                    next.unpark();
                }
                queue
            }
            Err(error) => {
                queue.fail(error);
                self.tell(queue)
            }
        }
    }

    /// Makes the room that what is pending needs. Where that fails, nothing was taken yet: what is pending stays so,
    /// and the submitter's role is over.
    fn make_room<'a>(&'a self, mut queue: Guard<'a>) -> Result<Guard<'a>, Guard<'a>> {
        let (mut asked_bytes, mut spare_bytes) = (0, 0);
        // Appending goes on meanwhile, and a batch is taken whole: room is made until what is there then fits. That
        // ends, as what may wait is bounded, and soon, as each time but the first asks for twice what there is.
        while asked_bytes < queue.pending.frame_bytes() && queue.needs_room() {
            asked_bytes = queue.pending.frame_bytes();
            queue = self.make_room_for(queue, asked_bytes, spare_bytes)?;
            spare_bytes =
                if planted::on("room_is_asked_for_bit_by_bit") { 0 } else { queue.pending.frame_bytes() };
            if planted::on("room_is_asked_for_once") {
                break;
            }
        }
        Ok(queue)
    }

    /// The same for a frame of `frame_bytes`; `spare_bytes` more where they are to be had, for what is appended
    /// meanwhile.
    fn make_room_for<'a>(
        &'a self,
        queue: Guard<'a>,
        frame_bytes: u64,
        spare_bytes: u64,
    ) -> Result<Guard<'a>, Guard<'a>> {
        let progress = queue.progress();
        drop(queue);
        let (mut before, mut after) = (0, 0);
        let make_room = |appender: &mut Appender<D>| {
            appender.progress(progress.0, progress.1);
            before = appender.current_segment().0;
            let made = appender.make_room_for(frame_bytes, spare_bytes);
            after = appender.current_segment().0;
            Ok((made, appender.room(), appender.file().cloned(), appender.latch().is_tripped()))
        };
        let made = self.measure_rotation(|| self.with_appender(make_room));
        if before != 0 && before != after && planted::on("observed_in_a_role") {
            self.observe_rotation(Some((before, after)));
        }
        let mut queue = self.queue();
        if before != 0 && before != after {
            queue.rotated = Some((before, after));
        }
        let (error, is_final) = match made {
            Ok((Ok(()), room, file, _)) => {
                queue.enter_segment(room, file);
                return Ok(queue);
            }
            Ok((Err(error), room, file, tripped)) => {
                // It may have gone on in a segment that then could not grow: a sync would go to that one's file.
                let known = queue.file.as_ref();
                let is_new = |file| known.is_none_or(|known| !Arc::ptr_eq(known, file));
                if file.as_ref().is_some_and(is_new) {
                    queue.enter_segment(room, file);
                }
                (error, tripped)
            }
            Err(error) => (error, true),
        };
        queue.submitting = planted::on("refusal_keeps_role");
        if is_final {
            queue.fail(error);
        } else {
            queue.refuse(error);
        }
        Err(queue)
    }

    fn with_appender<T>(
        &self,
        act: impl FnOnce(&mut Appender<D>) -> PersistenceResult<T>,
    ) -> PersistenceResult<T> {
        let mut slot = self.appender.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.as_mut() {
            Some(appender) => act(appender),
            None => Err(PersistenceError::invalid_state("commit", "the log is closed")),
        }
    }

    /// Waits for one completion, and tells those whose entries it reaches.
    fn reap<'a>(&'a self, queue: Guard<'a>) -> Guard<'a> {
        self.reap_within(queue, None)
    }

    /// The same, for so long at most.
    fn reap_within<'a>(&'a self, mut queue: Guard<'a>, time: Option<Duration>) -> Guard<'a> {
        let Some(file) = queue.file.clone() else { return queue };
        queue.reaping = true;
        queue.reaper_blocks = !queue.is_owner();
        queue.await_flights(|| self.environment.elapsed());
        let look_at = self.look_at(&queue);
        let until = time.map(|time| self.environment.elapsed().saturating_add(time));
        let look_at = look_at.into_iter().chain(until).min();
        drop(queue);
        let role = Reaping { committer: self };
        let reaped = self.collect(file.as_ref(), look_at);
        if let Ok(Some(completion)) = &reaped {
            self.measure_end(completion.id, completion.result.is_ok());
        }
        // Before anybody can see that nothing is in flight any more: whoever closes lets go of the file's lock.
        let kept = planted::on("reaper_keeps_file").then(|| Arc::clone(&file));
        drop(file);
        let mut queue = self.queue();
        std::mem::forget(role);
        queue.reaping = false;
        if look_at.is_some() && matches!(reaped, Ok(None)) {
            // It takes too long. Whoever is told of that may use the log, or block: the role is not kept for it.
            return self.look(queue);
        }
        match reaped {
            Ok(Some(completion)) => queue.settle(completion, self.environment.elapsed()),
            Ok(None) => debug_assert!(queue.running <= 0, "the file has lost a commit"),
            Err(error) => queue.fail(error),
        }
        let queue = self.tell(queue);
        drop(kept);
        queue
    }

    /// Lets go of the files and their locks: tickets and readers may live on, a successor must not wait for them.
    fn let_go(&self) {
        let appender = self.appender.lock().unwrap_or_else(PoisonError::into_inner).take();
        let file = self.queue().file.take();
        // Not under a lock: a file that is dropped waits for what is in flight.
        if planted::on("closing_keeps_locks") {
            return std::mem::forget((appender, file));
        }
        drop((appender, file));
    }

    /// Closes the log when the last handle goes, unless it was closed, or cannot be.
    pub fn close_dropped(&self) {
        if !self.home.is_here() {
            return;
        }
        let mut queue = self.queue();
        if !queue.close_asked.is_empty() {
            // The log's own thread does it; nobody waits for it here.
            queue.abandoned = true;
            return;
        }
        let ended = queue.check();
        let is_silent = queue.closed || (ended.is_err() && planted::on("poison_is_dropped_silently"));
        drop(queue);
        if !is_silent {
            closing::say_unsealed(&ended.and_then(|()| self.close()));
        }
        self.stop_owner();
        // Whatever became of that: tickets may outlive the log, and must not keep it from being opened again.
        let mut queue = self.queue();
        queue.closed = true;
        drop(self.tell(queue));
        self.let_go();
    }

    fn stop_owner(&self) {
        self.idle.stop();
        if let Some(owner) = &mut self.queue().owner {
            owner.stop = true;
            owner.thread.unpark();
        }
        let joined = self.owner.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(handle) = joined else { return };
        // A callback may drop the last handle, on the very thread that would be waited for.
        if handle.thread().id() != thread::current().id() {
            let _ = handle.join();
        }
    }
}

/// The submitter's role; a panic poisons the log instead of leaving everybody waiting.
struct Submitting<'a, D: Directory + ?Sized> {
    committer: &'a Committer<D>,
}

impl<D: Directory + ?Sized> Drop for Submitting<'_, D> {
    fn drop(&mut self) {
        if planted::on("panic_keeps_role") {
            return;
        }
        let mut queue = self.committer.queue();
        queue.submitting = false;
        queue.fail(PersistenceError::invalid_state("commit", "the committing thread panicked"));
        drop(self.committer.tell(queue));
    }
}

/// The reaper's role; as [`Submitting`].
struct Reaping<'a, D: Directory + ?Sized> {
    committer: &'a Committer<D>,
}

impl<D: Directory + ?Sized> Drop for Reaping<'_, D> {
    fn drop(&mut self) {
        let mut queue = self.committer.queue();
        queue.reaping = false;
        queue.fail(PersistenceError::invalid_state("commit", "the committing thread panicked"));
        drop(self.committer.tell(queue));
    }
}
