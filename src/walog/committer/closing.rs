//! Closing, how it ends, and closing without blocking: the log's own thread does it, and whoever asked is woken.
//!
//! Where others go on committing there is never a moment in which nothing is pending and nothing in flight. So whoever
//! closes does not wait for one: from its second look on, nothing is appended.

use super::Committer;
use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;
use crate::storage::{Directory, Effect, Home};
use crate::sync::{Mutex, MutexGuard, thread};
use crate::walog::queue::{Queue, Turn};
use crate::walog::waiters::contained;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

/// Somebody asked for the log to be closed without waiting for it.
pub(in crate::walog) struct Asked {
    home: Home,
    /// Taken with no other lock held.
    told: Mutex<Told>,
}

/// How closing has ended, and who waits for that.
#[derive(Default)]
struct Told {
    outcome: Option<PersistenceResult<()>>,
    waker: Option<Waker>,
}

impl Asked {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, outcome: PersistenceResult<()>) {
        let mut told = self.told();
        told.outcome = Some(outcome);
        let waker = told.waker.take();
        drop(told);
        if let Some(waker) = waker {
            contained("waking a task that waits for a log to close", || waker.wake());
        }
    }

    pub(in crate::walog) fn poll(&self, context: &Context<'_>) -> Poll<PersistenceResult<()>> {
        self.home.check()?;
        let mut told = self.told();
        if let Some(outcome) = &told.outcome {
            return Poll::Ready(outcome.clone());
        }
        let replaced = told.waker.replace(context.waker().clone());
        drop(told);
        // Behind the lock: dropping it may run anything.
        drop(replaced);
        Poll::Pending
    }
}

/// Who is to be told, however closing ends.
struct Tell<'a, D: Directory + ?Sized> {
    committer: &'a Committer<D>,
    asked: Vec<Arc<Asked>>,
    outcome: Option<PersistenceResult<()>>,
}

impl<D: Directory + ?Sized> Drop for Tell<'_, D> {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| {
            let panicked = PersistenceError::invalid_state("closing", "the log's thread panicked");
            let mut queue = self.committer.queue();
            queue.fail(panicked.clone());
            self.asked.append(&mut queue.close_asked);
            drop(self.committer.tell(queue));
            Err(panicked)
        });
        self.asked.iter().for_each(|asked| asked.tell(outcome.clone()));
    }
}

/// Nothing is appended while there is one.
struct Gate<'a, D: Directory + ?Sized> {
    committer: &'a Committer<D>,
}

impl<D: Directory + ?Sized> Drop for Gate<'_, D> {
    fn drop(&mut self) {
        self.committer.queue().closers -= 1;
    }
}

impl<D: Directory + ?Sized> Committer<D> {
    /// Makes everything durable where that can be had, seals the log and closes it for every handle.
    pub fn close(&self) -> PersistenceResult<()> {
        self.home.check()?;
        let result = self.close_behind(self.strongest());
        if result.is_err() && self.queue().failure.is_some() {
            self.give_up();
        }
        // Not where there was no space: the log goes on, and its tickets need its threads.
        if self.queue().closed || planted::on("failed_close_stops_threads") {
            self.stop_owner();
        }
        result
    }

    /// The log's thread closes the log; `false` when there was no space, and it goes on.
    pub(super) fn close_as_asked(&self) -> bool {
        let mut tell = Tell { committer: self, asked: Vec::new(), outcome: None };
        let result = self.close_behind(self.strongest());
        let mut queue = self.queue();
        // In one step with the look at who is left: whoever drops the last handle from now on closes the log.
        tell.asked = std::mem::take(&mut queue.close_asked);
        let ends = queue.closed || queue.failure.is_some() || queue.abandoned;
        let ends = ends || planted::on("failed_close_ends_log");
        let abandoned = queue.abandoned;
        drop(queue);
        if abandoned && !planted::on("forgotten_close_says_nothing") {
            // Whoever asked may be gone as well.
            say_unsealed(&result);
        }
        if ends {
            self.give_up();
            self.idle.stop();
            // This thread ends now: whoever drops the last handle need not wait for those who are told here.
            drop(self.owner.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        tell.outcome = Some(if planted::on("closing_says_ok") { Ok(()) } else { result });
        ends
    }

    /// Closes the log when everything is flushed, or durable. Where that cannot be, it stays open.
    pub(super) fn close_behind(&self, effect: Effect) -> PersistenceResult<()> {
        let mut gate = None;
        loop {
            let forgetful = planted::on("close_forgets_pending");
            let last = if forgetful { self.durable_entry_id() } else { self.last_entry_id() };
            self.wait(last, effect)?;
            let mut queue = self.queue();
            queue.check()?;
            let has_settled = !queue.submitting && (queue.pending.is_empty() || forgetful);
            if has_settled && queue.flights.is_empty() {
                queue.closed = true;
                break;
            }
            if gate.is_none() && !planted::on("closing_waits_for_a_pause") {
                queue.closers += 1;
                gate = Some(Gate { committer: self });
            }
            if !has_settled {
                drop(queue);
                thread::yield_now();
                continue;
            }
            // Only a sync that nobody needs any more can be left.
            match queue.turn(last, effect) {
                Turn::Reap => drop(self.reap(queue)),
                _ => {
                    drop(queue);
                    thread::yield_now();
                }
            }
        }
        let progress = self.queue().progress();
        let appender = self.appender.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = appender.map_or(Ok(()), |mut appender| {
            appender.progress(progress.0, progress.1);
            appender.close()
        });
        self.let_go();
        drop(self.tell(self.queue()));
        result
    }

    fn strongest(&self) -> Effect {
        if self.is_durable { Effect::Durable } else { Effect::Flushed }
    }

    /// Closes a log that cannot be sealed: it is poisoned, or nobody is left who would try again. What is in flight
    /// ends first. Does nothing where it is closed.
    fn give_up(&self) {
        loop {
            let mut queue = self.queue();
            // Behind a failure nobody begins anything; what is in flight ends when its file is dropped.
            let is_over = queue.flights.is_empty() || (queue.failure.is_some() && !queue.reaping);
            let is_over = queue.closed || (!queue.submitting && is_over);
            if is_over {
                queue.closed = true;
                drop(self.tell(queue));
                return self.let_go();
            }
            if !queue.submitting && !queue.reaping && queue.running > 0 {
                drop(self.reap(queue));
            } else {
                drop(queue);
                thread::yield_now();
            }
        }
    }
}

impl<D: Directory + ?Sized + 'static> Committer<D> {
    /// Has the log's thread close the log.
    pub fn begin_close(self: &Arc<Self>) -> PersistenceResult<Arc<Asked>> {
        self.home.check()?;
        check_open(&self.queue())?;
        self.start_owner()?;
        let asked = Arc::new(Asked { home: self.home, told: Mutex::default() });
        let mut queue = self.queue();
        // Looked at once more, with the lock: the thread of a log that is open does not end before it has seen this.
        if !planted::on("close_asks_unchecked") {
            check_open(&queue)?;
        }
        if queue.is_owner() {
            // In an observer or a callback on that very thread.
            drop(queue);
            asked.tell(self.close());
            return Ok(asked);
        }
        if !planted::on("close_async_forgets") {
            queue.close_asked.push(Arc::clone(&asked));
        }
        let owner = queue.owner.as_ref().map(|owner| owner.thread.clone());
        drop(queue);
        owner.into_iter().for_each(|owner| owner.unpark());
        Ok(asked)
    }
}

/// Whoever drops a log is told nothing.
pub(super) fn say_unsealed(closed: &PersistenceResult<()>) {
    if let Err(error) = closed {
        tracing::error!(%error, "a dropped write-ahead log could not be sealed");
    }
}

/// A log that has failed and was not closed is let go of as well.
fn check_open(queue: &Queue) -> PersistenceResult<()> {
    if queue.closed { queue.check() } else { Ok(()) }
}
