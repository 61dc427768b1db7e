//! Who waits for which entry, and how each of them is told.
//!
//! Lives here: the ordered list of waiters, and telling them. Not here: when they are told, and the lock that
//! the list lies behind (`committer`).
//!
//! Invariant: the list is ordered by entry id, so that those whose commit is done are a prefix of it.

use crate::error::PersistenceResult;
use crate::planted;
use crate::sync::thread::Thread;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// What is called when an entry is durable, or cannot become so.
pub(super) type Callback = Box<dyn FnOnce(PersistenceResult<u64>) + Send>;

/// How a waiter is told that it is worth looking.
pub(super) enum Wake {
    /// Unparks a thread that looks for itself, and may be asked to drive the next commit.
    Driver(Thread),
    /// Unparks a thread that looks for itself and must not be kept: it has a deadline.
    Watcher(Thread),
    /// Wakes a task.
    Task(Waker),
    /// Calls, exactly once.
    Call(Callback),
}

/// Somebody waits for an entry.
pub(super) struct Waiter {
    entry_id: u64,
    key: u64,
    wake: Wake,
}

impl Waiter {
    /// Tells it. `outcome` is what a callback gets; everybody else looks for himself. A panic of whoever is
    /// told stays here, or the others would never be told.
    pub fn tell(self, outcome: impl FnOnce(u64) -> PersistenceResult<u64>) {
        match self.wake {
            Wake::Driver(thread) | Wake::Watcher(thread) => thread.unpark(),
            Wake::Task(waker) => {
                contained("waking a task that waits for a commit", || waker.wake());
            }
            Wake::Call(callback) => call(callback, outcome(self.entry_id)),
        }
    }

    fn driver(&self) -> Option<(&Thread, u64)> {
        match &self.wake {
            Wake::Driver(thread) => Some((thread, self.entry_id)),
            _ => None,
        }
    }
}

/// A panic in a callback ends that callback; the commit that it was told of is what it is.
pub(super) fn call(callback: Callback, outcome: PersistenceResult<u64>) {
    if planted::on("callback_panic_escapes") {
        return callback(outcome);
    }
    contained("a callback of a commit", || callback(outcome));
}

/// Calls what is somebody else's: a panic ends in it. So does one of dropping what it panicked with.
pub(super) fn contained(what: &'static str, call: impl FnOnce()) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(call)) else { return };
    tracing::error!("{what} panicked");
    if planted::on("panic_payload_escapes") {
        return drop(payload);
    }
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // There is no end to that.
        std::mem::forget(again);
    }
}

/// Room for so many is there from the beginning: when the first one waits is a matter of luck, and no time to allocate.
pub(super) const ROOM: usize = 16;

/// Everybody who waits.
pub(super) struct Waiters {
    list: VecDeque<Waiter>,
    keys_used: u64,
}

impl Default for Waiters {
    fn default() -> Self {
        Self { list: VecDeque::with_capacity(ROOM), keys_used: 0 }
    }
}

impl Waiters {
    /// Adds one; the key tells it apart from others that wait for the same entry.
    pub fn add(&mut self, entry_id: u64, wake: Wake) -> u64 {
        self.keys_used += 1;
        let key = self.keys_used;
        // Most come in order.
        let mut at = self.list.len();
        while at > 0 && self.list[at - 1].entry_id > entry_id {
            at -= 1;
        }
        self.list.insert(at, Waiter { entry_id, key, wake });
        key
    }

    /// Forgets one; `None` when it has been told already.
    pub fn remove(&mut self, entry_id: u64, key: u64) -> Option<Wake> {
        let at = self.position(entry_id, key)?;
        self.list.remove(at).map(|waiter| waiter.wake)
    }

    /// Whether it is still to be told.
    pub fn contains(&self, entry_id: u64, key: u64) -> bool {
        self.position(entry_id, key).is_some()
    }

    /// Tells another task instead of the one that was registered, which is returned: dropping it may run anything.
    /// `None` when it has been told already.
    pub fn renew(&mut self, entry_id: u64, key: u64, waker: &Waker) -> Option<Option<Wake>> {
        let at = self.position(entry_id, key)?;
        let known = &mut self.list[at].wake;
        let is_same = matches!(known, Wake::Task(task) if task.will_wake(waker));
        Some((!is_same).then(|| std::mem::replace(known, Wake::Task(waker.clone()))))
    }

    fn position(&self, entry_id: u64, key: u64) -> Option<usize> {
        let from = self.list.partition_point(|waiter| waiter.entry_id < entry_id);
        let same = self.list.range(from..).take_while(|waiter| waiter.entry_id == entry_id);
        same.enumerate().find(|(_, waiter)| waiter.key == key).map(|(index, _)| from + index)
    }

    /// Moves those who wait for entries up to `entry_id` into `reached`.
    pub fn take_reached(&mut self, entry_id: u64, reached: &mut Vec<Waiter>) {
        let count = self.list.partition_point(|waiter| waiter.entry_id <= entry_id);
        reached.extend(self.list.drain(..count));
    }

    /// Moves those who wait for entries behind `entry_id` into `failed`.
    pub fn take_behind(&mut self, entry_id: u64, failed: &mut Vec<Waiter>) {
        let count = self.list.partition_point(|waiter| waiter.entry_id <= entry_id);
        failed.extend(self.list.drain(count..));
    }

    /// Moves those who wait for entries behind the first of `entry_ids`, up to the last, into `failed`.
    pub fn take_within(&mut self, entry_ids: RangeInclusive<u64>, failed: &mut Vec<Waiter>) {
        let from = self.list.partition_point(|waiter| waiter.entry_id <= *entry_ids.start());
        let to = self.list.partition_point(|waiter| waiter.entry_id <= *entry_ids.end());
        failed.extend(self.list.drain(from..to.max(from)));
    }

    /// The last entry that somebody waits for, of those up to `entry_id`.
    pub fn last_up_to(&self, entry_id: u64) -> Option<u64> {
        let to = self.list.partition_point(|waiter| waiter.entry_id <= entry_id);
        self.list.range(..to).next_back().map(|waiter| waiter.entry_id)
    }

    /// A thread that can drive, and what it waits for: the first of those behind `entry_id`, else any.
    pub fn driver(&self, entry_id: u64) -> Option<(&Thread, u64)> {
        self.driver_behind(entry_id).or_else(|| self.list.iter().find_map(Waiter::driver))
    }

    /// Whether a thread waits that can drive.
    pub fn has_drivers(&self) -> bool {
        self.list.iter().any(|waiter| waiter.driver().is_some())
    }

    /// The first thread that can drive and waits for an entry behind `entry_id`.
    pub fn driver_behind(&self, entry_id: u64) -> Option<(&Thread, u64)> {
        let from = self.list.partition_point(|waiter| waiter.entry_id <= entry_id);
        self.list.range(from..).find_map(Waiter::driver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn those_who_are_reached_are_told_once_and_in_order() {
        let (mut waiters, told) = (Waiters::default(), Arc::new(AtomicU64::new(0)));
        for entry_id in [5, 1, 3, 3, 2] {
            let told = Arc::clone(&told);
            let wake = Wake::Call(Box::new(move |outcome| {
                let before = told.fetch_add(1, Ordering::Relaxed);
                assert_eq!(outcome.expect("is durable"), [1, 2, 3, 3, 5][before as usize]);
            }));
            waiters.add(entry_id, wake);
        }
        let mut reached = Vec::new();
        waiters.take_reached(0, &mut reached);
        assert!(reached.is_empty());
        waiters.take_reached(3, &mut reached);
        assert_eq!(reached.len(), 4);
        waiters.take_behind(3, &mut reached);
        reached.into_iter().for_each(|waiter| waiter.tell(Ok));
        assert_eq!(told.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn one_of_several_for_the_same_entry_is_forgotten_by_its_key() {
        let mut waiters = Waiters::default();
        let keys: Vec<_> =
            (0..3).map(|_| waiters.add(7, Wake::Driver(crate::sync::thread::current()))).collect();
        assert!(waiters.remove(7, keys[1]).is_some());
        assert!(waiters.remove(7, keys[1]).is_none());
        assert!(waiters.remove(8, keys[0]).is_none());
        assert!(waiters.driver(6).is_some() && waiters.driver(7).is_some());
        let mut all = Vec::new();
        waiters.take_reached(7, &mut all);
        assert_eq!(all.len(), 2);
        assert!(waiters.driver(0).is_none());
    }

    #[test]
    fn a_panic_in_a_callback_stays_there() {
        call(Box::new(|_| panic!("in a callback")), Ok(1));
    }
}
