//! Who is asked to drive next.
//!
//! Not here: what whoever waits can do by itself ([`Queue::turn`]), and waking (`committer`).

use super::{Owner, Queue, Turn};
use crate::planted;
use crate::storage::Effect;
use crate::sync::thread::{self, Thread};

impl Queue {
    /// Whether this thread is the owner.
    pub fn is_owner(&self) -> bool {
        let is_here = |owner: &Owner| owner.thread.id() == thread::current().id();
        self.owner.as_ref().is_some_and(is_here) && !planted::on("owner_waits_for_itself")
    }

    /// The owner, where it is idle and could do something now.
    pub fn call_owner(&mut self) -> Option<Thread> {
        let wanted = self.wanted_entry_id;
        if wanted <= self.durable_entry_id || self.turn(wanted, Effect::Durable) == Turn::Wait {
            return None;
        }
        let owner = self.owner.as_mut().filter(|owner| owner.parked)?;
        owner.parked = false;
        Some(owner.thread.clone())
    }

    /// Somebody who waits and could begin one more commit beside those in flight.
    pub fn next_submitter(&mut self) -> Option<Thread> {
        if self.flights.len() >= self.depth() {
            return None;
        }
        let wanted = self.wanted_entry_id;
        if wanted > self.begun_entry_id && self.can_submit(wanted, Effect::Durable) {
            if let Some(owner) = self.call_owner() {
                return Some(owner);
            }
        }
        for (waiters, effect) in [(&self.waiters, Effect::Durable), (&self.flush_waiters, Effect::Flushed)] {
            if let Some((thread, entry_id)) = waiters.driver_behind(self.begun_entry_id) {
                if self.can_submit(entry_id, effect) {
                    return Some(thread.clone());
                }
            }
        }
        None
    }

    /// Whoever should drive when the present driver stops: somebody who waits, where a role that it needs is
    /// free.
    pub fn next_driver(&mut self) -> Option<Thread> {
        if self.failure.is_some() || planted::on("forget_next_driver") {
            return None;
        }
        if let Some(owner) = self.call_owner() {
            return Some(owner);
        }
        for (waiters, effect) in [(&self.waiters, Effect::Durable), (&self.flush_waiters, Effect::Flushed)] {
            if let Some((thread, entry_id)) = waiters.driver(self.begun_entry_id) {
                if self.turn(entry_id, effect) != Turn::Wait {
                    return Some(thread.clone());
                }
            }
        }
        None
    }
}
