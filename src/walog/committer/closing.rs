//! Closing without blocking: the log's own thread does it, and whoever asked is woken.
//!
//! Not here: what closing is (`committer`).

use super::Committer;
use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;
use crate::storage::{Directory, Effect};
use crate::sync::{MutexGuard, thread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

/// How closing has ended, and who waits for that.
#[derive(Default)]
pub(super) struct Closing {
    outcome: Option<PersistenceResult<()>>,
    wakers: Vec<Waker>,
}

/// What a future of closing asks of its log.
pub(in crate::walog) trait Closed: Send + Sync {
    fn poll_closed(&self, context: &Context<'_>) -> Poll<PersistenceResult<()>>;
}

impl<D: Directory + ?Sized> Committer<D> {
    fn closing(&self) -> MutexGuard<'_, Closing> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log's thread closes the log; it ends then.
    pub(super) fn close_as_asked(&self) {
        /// However closing ends, whoever waits is told.
        struct Tell<'a, D: Directory + ?Sized>(&'a Committer<D>);

        impl<D: Directory + ?Sized> Drop for Tell<'_, D> {
            fn drop(&mut self) {
                let mut closing = self.0.closing();
                let panicked =
                    || Err(PersistenceError::invalid_state("closing", "the log's thread panicked"));
                closing.outcome.get_or_insert_with(panicked);
                let wakers = std::mem::take(&mut closing.wakers);
                drop(closing);
                for waker in wakers {
                    if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                        tracing::error!("waking a task that waits for a log to close panicked");
                    }
                }
            }
        }

        let tell = Tell(self);
        let effect = if self.is_durable { Effect::Durable } else { Effect::Flushed };
        let result = self.close_behind(effect);
        if result.is_err() {
            self.give_up();
        }
        self.idle.stop();
        self.closing().outcome = Some(if planted::on("closing_says_ok") { Ok(()) } else { result });
        drop(tell);
    }

    /// Closes a log that could not be sealed: the thread that tickets rely on is about to end, and perhaps no
    /// handle is left that would try again. What is in flight ends first.
    fn give_up(&self) {
        loop {
            let mut queue = self.queue();
            // Behind a failure nobody begins anything; what is in flight ends when its file is dropped.
            let is_over = queue.flights.is_empty() || (queue.failure.is_some() && !queue.reaping);
            if (!queue.submitting && is_over) || planted::on("give_up_at_once") {
                queue.closed = true;
                if !planted::on("give_up_untold") {
                    queue = self.tell(queue);
                }
                drop(queue);
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
    pub fn begin_close(self: &Arc<Self>) -> PersistenceResult<()> {
        self.home.check()?;
        // A log that has failed is let go of as well.
        if self.queue().closed {
            return self.queue().check();
        }
        self.start_owner()?;
        let mut queue = self.queue();
        queue.close_wanted = !planted::on("close_async_forgets");
        let owner = queue.owner.as_ref().map(|owner| owner.thread.clone());
        drop(queue);
        owner.into_iter().for_each(|owner| owner.unpark());
        Ok(())
    }
}

impl<D: Directory + ?Sized> Closed for Committer<D> {
    fn poll_closed(&self, context: &Context<'_>) -> Poll<PersistenceResult<()>> {
        self.home.check()?;
        let mut closing = self.closing();
        if let Some(outcome) = &closing.outcome {
            return Poll::Ready(outcome.clone());
        }
        if !closing.wakers.iter().any(|known| known.will_wake(context.waker())) {
            closing.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}
