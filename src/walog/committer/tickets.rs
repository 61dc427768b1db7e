//! Tickets: how their holders wait, and the thread that drives commits for them.
//!
//! Lives here: submitting, the owner thread, and [`Line`], through which a ticket reaches its log without
//! knowing what kind of directory that is in. Not here: committing itself.

use super::{Committer, Guard, Turn};
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::Batch;
use crate::limits::BATCH_BYTES_MAX;
use crate::planted;
use crate::storage::{Directory, Effect};
use crate::sync::thread;
use crate::walog::queue::Owner;
use crate::walog::waiters::{Callback, Wake, call};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

/// What a ticket asks of its log.
pub(in crate::walog) trait Line: Send + Sync {
    fn durable_entry_id(&self) -> u64;
    /// `None` while it is not known.
    fn outcome(&self, entry_id: u64, seen: u64) -> Option<PersistenceResult<()>>;
    fn wait(&self, entry_id: u64, seen: u64) -> PersistenceResult<()>;
    fn wait_until(&self, entry_id: u64, seen: u64, deadline: Instant) -> PersistenceResult<()>;
    fn poll(
        &self,
        entry_id: u64,
        seen: u64,
        key: &mut Option<u64>,
        context: &Context<'_>,
    ) -> Poll<PersistenceResult<()>>;
    fn call_back(&self, entry_id: u64, seen: u64, callback: Callback);
    fn forget(&self, entry_id: u64, key: u64);
}

impl<D: Directory + ?Sized + 'static> Committer<D> {
    /// Appends entries that somebody will want to know durable; never blocks for a commit. Returns the first
    /// id and the number of refusals seen.
    pub fn submit_with(
        self: &Arc<Self>,
        count: usize,
        push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<(u64, u64)> {
        let mut push = push;
        self.home.check()?;
        let mut queue = self.queue();
        queue.check_takes()?;
        if queue.owner.is_none() {
            drop(queue);
            self.start_owner()?;
            queue = self.queue();
            queue.check_takes()?;
        }
        if queue.full().is_some() && !planted::on("full_of_ended_flushes") {
            queue = self.collect_ended(queue);
            queue.check_takes()?;
        }
        if let Some((bytes, bytes_max)) = queue.full() {
            let owner = if queue.is_stuck() { queue.want_pending() } else { None };
            drop(queue);
            owner.into_iter().for_each(|owner| owner.unpark());
            return Err(PersistenceError::WouldBlock { bytes, bytes_max });
        }
        let first = match queue.push_all(count, &mut push) {
            // It may fit into a frame of its own, when what is pending has gone.
            Err(PersistenceError::PayloadTooLarge { bytes, bytes_max })
                if bytes_max == BATCH_BYTES_MAX as u64 && !queue.pending.is_empty() =>
            {
                return Err(PersistenceError::WouldBlock { bytes, bytes_max });
            }
            first => first?,
        };
        let seen = queue.refusals();
        queue.demand(first + count as u64 - 1, Effect::Durable);
        queue.wanted_entry_id = queue.wanted_entry_id.max(first + count as u64 - 1);
        let owner = queue.call_owner();
        drop(queue);
        if let Some(owner) = owner {
            owner.unpark();
        }
        self.observe_append(first, count);
        if planted::on("submitting_blocks") {
            Committer::wait(self, first, Effect::Durable)?;
        }
        Ok((first, seen))
    }

    pub(super) fn start_owner(self: &Arc<Self>) -> PersistenceResult<()> {
        let mut slot = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Ok(());
        }
        let committer = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("durability-commit".to_owned())
            .spawn(move || committer.drive_tickets())
            .map_err(|source| PersistenceError::io("start a thread for", "commits", None, source))?;
        let thread = spawned.thread().clone();
        let mut queue = self.queue();
        let stop = queue.closed;
        queue.owner = Some(Owner { thread: thread.clone(), parked: false, stop });
        drop(queue);
        *slot = Some(spawned);
        // It may have looked before it was known.
        if !planted::on("owner_starts_unwoken") {
            thread.unpark();
        }
        Ok(())
    }

    /// The owner thread: drives whatever tickets want.
    fn drive_tickets(&self) {
        let mut queue = self.queue();
        loop {
            let wanted = queue.wanted_entry_id;
            if !queue.close_asked.is_empty() {
                drop(queue);
                if self.close_as_asked() {
                    return;
                }
                queue = self.queue();
                continue;
            }
            if queue.owner.as_ref().is_some_and(|owner| owner.stop) {
                return;
            }
            let idle = queue.durable_entry_id >= wanted || queue.check().is_err();
            let turn = if idle { Turn::Wait } else { queue.turn(wanted, Effect::Durable) };
            queue = match turn {
                Turn::Submit => self.submit(queue, wanted, Effect::Durable),
                Turn::Reap => self.reap(queue),
                Turn::Wait => {
                    let next = queue.next_driver();
                    if let Some(owner) = &mut queue.owner {
                        owner.parked = true;
                    }
                    // Idle, it looks for nothing.
                    let look_at = if idle { None } else { self.look_at(&queue) };
                    drop(queue);
                    if let Some(next) = next {
                        next.unpark();
                    }
                    self.park(look_at, None);
                    let mut queue = self.queue();
                    if let Some(owner) = &mut queue.owner {
                        owner.parked = false;
                    }
                    queue
                }
            };
        }
    }
}

/// Whoever begins to wait may be inside what a driver calls: that one has not handed on yet, and does not before the
/// call returns.
fn call_owner(mut queue: Guard<'_>) {
    let owner = if planted::on("waiting_calls_nobody") { None } else { queue.call_owner() };
    drop(queue);
    if let Some(owner) = owner {
        owner.unpark();
    }
}

impl<D: Directory + ?Sized + 'static> Line for Committer<D> {
    fn durable_entry_id(&self) -> u64 {
        Committer::durable_entry_id(self)
    }

    fn outcome(&self, entry_id: u64, seen: u64) -> Option<PersistenceResult<()>> {
        if self.durable_entry_id() >= entry_id {
            return Some(Ok(()));
        }
        match self.home.check() {
            Ok(()) => self.queue().outcome(entry_id, Effect::Durable, seen),
            Err(error) => Some(Err(error)),
        }
    }

    fn wait(&self, entry_id: u64, seen: u64) -> PersistenceResult<()> {
        // A refusal between submitting and waiting is this ticket's as well.
        match Line::outcome(self, entry_id, seen) {
            Some(outcome) => outcome,
            None => Committer::wait(self, entry_id, Effect::Durable),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "how long a thread waits is real time")]
    fn wait_until(&self, entry_id: u64, seen: u64, deadline: Instant) -> PersistenceResult<()> {
        self.home.check()?;
        let mut queue = self.queue();
        let mut key = None;
        let outcome = loop {
            if let Some(outcome) = queue.outcome(entry_id, Effect::Durable, seen) {
                break outcome;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let durable_entry_id = queue.durable_entry_id;
                break Err(PersistenceError::TimedOut { entry_id, durable_entry_id });
            }
            // In an observer or a callback on the log's own thread nobody else would drive.
            let drives = queue.is_owner() && !planted::on("deadline_never_drives");
            let turn = if drives { queue.turn(entry_id, Effect::Durable) } else { Turn::Wait };
            queue = match turn {
                Turn::Submit => self.submit(queue, entry_id, Effect::Durable),
                Turn::Reap => {
                    self.reap_within(queue, Some(left).filter(|_| !planted::on("driving_outwaits_deadline")))
                }
                Turn::Wait => {
                    if !key.is_some_and(|key| queue.waiters.contains(entry_id, key)) {
                        key = Some(queue.waiters.add(entry_id, Wake::Watcher(thread::current())));
                    }
                    let look_at = self.look_at(&queue);
                    call_owner(queue);
                    self.park(look_at, Some(left));
                    self.queue()
                }
            };
        };
        key.map(|key| queue.waiters.remove(entry_id, key));
        let next = queue.next_driver();
        drop(queue);
        if let Some(next) = next {
            next.unpark();
        }
        outcome
    }

    fn poll(
        &self,
        entry_id: u64,
        seen: u64,
        key: &mut Option<u64>,
        context: &Context<'_>,
    ) -> Poll<PersistenceResult<()>> {
        if self.durable_entry_id() >= entry_id {
            return Poll::Ready(Ok(()));
        }
        self.home.check()?;
        let mut queue = self.queue();
        if let Some(outcome) = queue.outcome(entry_id, Effect::Durable, seen) {
            return Poll::Ready(outcome);
        }
        if queue.is_owner() {
            // In an observer or a callback on the log's own thread: nobody else would drive.
            drop(queue);
            return Poll::Ready(Committer::wait(self, entry_id, Effect::Durable));
        }
        let mut replaced = match key.and_then(|key| queue.waiters.renew(entry_id, key, context.waker())) {
            Some(replaced) => replaced,
            None => {
                *key = Some(queue.waiters.add(entry_id, Wake::Task(context.waker().clone())));
                None
            }
        };
        if planted::on("replaced_task_goes_locked") {
            drop(replaced.take());
        }
        call_owner(queue);
        // Behind the lock, as in `forget`.
        drop(replaced);
        Poll::Pending
    }

    fn call_back(&self, entry_id: u64, seen: u64, callback: Callback) {
        if let Err(error) = self.home.check() {
            return call(callback, Err(error));
        }
        let mut queue = self.queue();
        match queue.outcome(entry_id, Effect::Durable, seen) {
            Some(outcome) => {
                drop(queue);
                call(callback, outcome.map(|()| entry_id));
            }
            None => {
                queue.waiters.add(entry_id, Wake::Call(callback));
            }
        }
    }

    fn forget(&self, entry_id: u64, key: u64) {
        if !self.home.is_here() || planted::on("forget_nobody") {
            return;
        }
        // The waker is dropped behind the lock: dropping it may run anything.
        let forgotten = self.queue().waiters.remove(entry_id, key);
        drop(forgotten);
    }
}
