//! Flushes that nobody waits for: begun by whoever appends what makes them due, collected on the way of later calls.
//!
//! Lives here: beginning one, and collecting without waiting. Not here: when one may begin (`queue/flushing`). What
//! is not collected by anybody's append is by whoever waits for an entry, by closing, or when the file is dropped.
//!
//! Bounds: so many are in flight ([`FLUSHES_IN_FLIGHT_MAX`](crate::limits::FLUSHES_IN_FLIGHT_MAX)), their payload
//! counts as waiting; an append that finds no place waits for the oldest.

use super::{Committer, Guard, Reaping};
use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;
use crate::storage::{Directory, Effect, Wait};
use crate::walog::queue::Queue;

impl<D: Directory + ?Sized> Committer<D> {
    /// Begins the flush that the append of `entry_id` has made due. `seen`: refusals known by then.
    ///
    /// A failure of an earlier one is met here, or by any other call; then the log is poisoned.
    pub(super) fn begin_flush<'a>(
        &'a self,
        mut queue: Guard<'a>,
        entry_id: u64,
        seen: u64,
    ) -> PersistenceResult<()> {
        let mut has_looked = false;
        let outcome = loop {
            if let Some(outcome) = queue.outcome(entry_id, Effect::Flushed, seen) {
                break outcome;
            }
            if queue.begun_entry_id >= entry_id {
                // With whoever took it.
                break Ok(());
            }
            if !has_looked && queue.can_collect() {
                has_looked = true;
                queue = self.collect_ended(queue);
            } else if queue.can_begin_flush() {
                if queue.in_flight_max > 1 {
                    queue.widen_all();
                }
                queue.nobody_waits = true;
                queue = self.submit(queue, entry_id, Effect::Flushed);
                queue.nobody_waits = false;
                queue = self.start(queue);
            } else if queue.postpone_flush() {
                break Ok(());
            } else {
                let oldest = queue.flights.front().map(|flight| flight.last_entry_id);
                self.wait_locked(queue, oldest.unwrap_or(entry_id), Effect::Flushed)?;
                queue = self.queue();
            }
        };
        hand_on(&mut queue);
        outcome
    }

    /// What an append answers that has waited for room in vain. A commit that was refused is not its own: behind that
    /// error, an entry stays appended.
    pub(super) fn unappended(&self, error: PersistenceError) -> PersistenceError {
        let queue = self.queue();
        if queue.check().is_err() || planted::on("unappended_is_out_of_space") {
            return error;
        }
        let (bytes, bytes_max) = queue.waiting();
        drop(queue);
        tracing::debug!(%error, "what waits could not be committed");
        PersistenceError::WouldBlock { bytes, bytes_max }
    }

    /// What was submitted begins, though nobody is about to wait for it. A file that does everything at once has
    /// ended it by now.
    fn start<'a>(&'a self, queue: Guard<'a>) -> Guard<'a> {
        if queue.running <= 0 || queue.failure.is_some() || planted::on("flushes_never_start") {
            return queue;
        }
        let Some(file) = queue.file.clone() else { return queue };
        drop(queue);
        let started = file.start();
        let mut queue = self.queue();
        match started {
            Ok(()) if queue.in_flight_max == 1 => self.collect_ended(queue),
            Ok(()) => queue,
            Err(error) => {
                queue.fail(error);
                self.tell(queue)
            }
        }
    }

    /// Collects the completions that are there, where nobody else is about to; waits for none.
    pub(super) fn collect_ended<'a>(&'a self, mut queue: Guard<'a>) -> Guard<'a> {
        let mut has_driven = false;
        while queue.can_collect() {
            has_driven = true;
            let Some(file) = queue.file.clone() else { return queue };
            queue.reaping = true;
            drop(queue);
            let role = Reaping { committer: self };
            let reaped = file.reap(Wait::Never);
            if let Ok(Some(completion)) = &reaped {
                self.measure_end(completion.id, completion.result.is_ok());
            }
            queue = self.queue();
            std::mem::forget(role);
            queue.reaping = false;
            match reaped {
                Ok(None) => break,
                Ok(Some(completion)) => queue.settle(completion, self.environment.elapsed()),
                Err(error) => queue.fail(error),
            }
            queue = self.tell(queue);
        }
        if has_driven {
            hand_on(&mut queue);
        }
        queue
    }
}

/// Whoever came while this thread drove has found a role taken, and waits.
fn hand_on(queue: &mut Queue) {
    if planted::on("flush_forgets_next_driver") {
        return;
    }
    if let Some(next) = queue.next_driver() {
        next.unpark();
    }
}
