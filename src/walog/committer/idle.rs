//! The thread that attests a shared log's last entries when nothing follows them for a while.
//!
//! Lives here: the thread, which only [`Committer::attest_when_idle`] starts, and when it looks. Not here: what a
//! seal is. It sleeps without a timer while everything is attested; a commit wakes it.

use super::Committer;
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::SealReason;
use crate::planted;
use crate::storage::{Directory, Effect};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// Of one log; without a thread until one is asked for.
#[derive(Default)]
pub(super) struct Idle {
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The thread waits for a commit. Pairs with the watermark: it is set before the watermark is looked at once
    /// more, and looked at behind every change of the watermark, so that one of both sees the other.
    asleep: AtomicBool,
    stop: AtomicBool,
}

impl Idle {
    /// A commit became durable.
    pub fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            if let Some(thread) = self.thread() {
                thread.unpark();
            }
        }
    }

    /// Ends the thread and waits for it, unless this is that thread.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let handle = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(handle) = handle else { return };
        handle.thread().unpark();
        if handle.thread().id() != std::thread::current().id() {
            let _ = handle.join();
        }
    }

    fn thread(&self) -> Option<Thread> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().map(|handle| handle.thread().clone())
    }
}

impl<D: Directory + ?Sized> Committer<D> {
    /// Makes everything appended durable and writes down that it is.
    pub fn attest(&self) -> PersistenceResult<()> {
        let appended = self.last_entry_id();
        loop {
            let last = self.last_entry_id();
            self.wait(last, Effect::Durable)?;
            // Where others go on committing, there is no quiet moment for a seal, and no need of one.
            let is_attested = self.queue().attested_entry_id >= appended && appended > 0;
            if (is_attested && !planted::on("attesting_waits_for_a_pause")) || self.seal_if_quiet(last)? {
                return Ok(());
            }
            crate::sync::thread::yield_now();
        }
    }

    /// Writes a seal where nothing is pending and nobody commits; answers whether it did. `last` is durable.
    fn seal_if_quiet(&self, last: u64) -> PersistenceResult<bool> {
        let mut queue = self.queue();
        queue.check()?;
        let quiet = !queue.submitting && !queue.reaping && queue.running == 0 && queue.flights.is_empty();
        if !quiet || !queue.pending.is_empty() || queue.durable_entry_id < last {
            return Ok(false);
        }
        queue.submitting = true;
        let role = super::Submitting { committer: self };
        let progress = queue.progress();
        drop(queue);
        let sealed = self.with_appender(|appender| {
            appender.progress(progress.0, progress.1);
            appender.seal(SealReason::Idle, None)?;
            Ok(appender.room())
        });
        let mut queue = self.queue();
        std::mem::forget(role);
        queue.submitting = false;
        let result = match sealed {
            Ok(room) => {
                queue.room = room;
                Ok(true)
            }
            Err(error) => {
                queue.fail(error.clone());
                queue = self.tell(queue);
                Err(error)
            }
        };
        // Whoever came meanwhile has found the role taken.
        let next = queue.next_driver();
        drop(queue);
        if let Some(next) = next {
            next.unpark();
        }
        result
    }
}

impl<D: Directory + ?Sized + 'static> Committer<D> {
    /// Starts the thread, once; it ends with the log.
    pub fn attest_when_idle(self: &Arc<Self>, idle: Duration) -> PersistenceResult<()> {
        self.queue().check()?;
        let mut slot = self.idle.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err(PersistenceError::invalid_state("attesting when idle", "a thread does that already"));
        }
        let committer = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("durability-idle".to_owned())
            .spawn(move || committer.attest_tails(idle))
            .map_err(|source| PersistenceError::io("start a thread for", "attesting", None, source))?;
        *slot = Some(spawned);
        Ok(())
    }

    fn attest_tails(&self, idle: Duration) {
        // Commits may have come before this thread did. Where there were none, a seal writes nothing.
        let mut attested = 0;
        while !self.idle.stop.load(Ordering::SeqCst) {
            let durable = self.durable_entry_id();
            if durable == attested || planted::on("idle_never_attests") {
                self.idle.asleep.store(true, Ordering::SeqCst);
                if self.durable_entry_id() == attested && !self.idle.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.idle.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            std::thread::park_timeout(idle);
            if self.durable_entry_id() != durable {
                continue;
            }
            match self.seal_if_quiet(durable) {
                Ok(true) => attested = durable,
                // Somebody commits, and that attests what is before it.
                Ok(false) => {}
                Err(_) => return,
            }
        }
    }
}
