//! Telling: whoever has something to learn from a completion, a failure or a rotation learns it here.
//!
//! Not here: who is to be told (`queue`), and how each one is (`waiters`). Nobody is told with a lock or a role held.

use super::{Committer, Guard, TELLERS};
use crate::planted;
use crate::storage::Directory;
use crate::sync::{MutexGuard, Ordering};
use crate::walog::options::observed;
use crate::walog::waiters::Waiter;
use std::sync::PoisonError;

impl<D: Directory + ?Sized> Committer<D> {
    /// Publishes the watermarks, and tells everybody who has something to learn from them.
    pub(super) fn tell<'a>(&'a self, mut queue: Guard<'a>) -> Guard<'a> {
        let late = planted::on("tell_before_watermark");
        let published = if late { self.durable_entry_id() } else { queue.durable_entry_id };
        // Sequentially consistent: pairs with the idle thread's look before it falls asleep.
        let told_durable = self.durable.swap(published, Ordering::SeqCst);
        if told_durable < published {
            self.idle.wake();
        }
        let (told_flushed, rotated) = (queue.tell_flushed(), queue.rotated.take());
        let mut told = self.tellers().pop().unwrap_or_default();
        let (flushed, durable) = queue.progress();
        let error = queue.take_told(&mut told);
        let (device, settled, slow) =
            (queue.probe.take_device(), queue.probe.settled(), queue.was_slow.take());
        if told.is_empty() && self.observer.is_none() && device.is_none() && slow.is_none() {
            self.keep_told(told);
            return queue;
        }
        drop(queue);
        let tells = !told.is_empty();
        for waiter in told.drain(..) {
            waiter.tell(|entry_id| match &error {
                Some(error) if durable < entry_id => Err(error.clone()),
                _ => Ok(entry_id),
            });
        }
        self.observe_rotation(rotated);
        self.observe_progress((told_flushed, told_durable), (flushed, durable));
        if late {
            self.durable.fetch_max(durable, Ordering::Release);
        }
        if let Some(telemetry) = &self.telemetry {
            device.into_iter().for_each(|device| telemetry.completed(device));
            self.past(settled).filter(|_| tells).into_iter().for_each(|took| telemetry.told(took));
        }
        slow.into_iter().for_each(|slow| self.report(slow));
        self.keep_told(told);
        self.queue()
    }

    fn tellers(&self) -> MutexGuard<'_, Vec<Vec<Waiter>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_told(&self, told: Vec<Waiter>) {
        let mut tellers = self.tellers();
        if tellers.len() < TELLERS {
            tellers.push(told);
        }
    }

    pub(super) fn observe_append(&self, first: u64, count: usize) {
        let Some(observer) = &self.observer else { return };
        (first..first + count as u64).for_each(|entry_id| observer.on_append(entry_id));
    }

    pub(super) fn observe_rotation(&self, rotated: Option<(u64, u64)>) {
        if let (Some(observer), Some((sealed_id, new_id))) = (&self.observer, rotated) {
            observed(|| observer.on_segment_rotate(sealed_id, new_id));
        }
    }

    /// An observer's panic stays here: this may be anybody's thread.
    fn observe_progress(&self, before: (u64, u64), now: (u64, u64)) {
        let Some(observer) = &self.observer else { return };
        observed(|| {
            if now.0 > before.0 {
                observer.on_flush(now.0);
            }
            if now.1 > before.1 {
                observer.on_sync(now.1);
            }
        });
    }
}
