//! Syncs of one open file description that overlap.
//!
//! Lives here: which successful sync may be believed when. Not here: I/O.
//!
//! The kernel reports a failed write-back of the page cache to *one* sync of an open file description and
//! then forgets it. Of two syncs that run at the same time either may be the one that is told, whatever
//! pages failed; the other one succeeds. So a success is believed only when every sync that had begun
//! before the success was seen has ended, and none of them failed. A sync that runs alone is believed at
//! once.
//!
//! Invariant: something is held only while a sync is running.

use crate::planted;
use std::collections::VecDeque;

/// Syncs that run, and successes that wait for them.
#[derive(Debug)]
pub(super) struct Overlap<T> {
    next: u64,
    running: Vec<u64>,
    /// Each with the number below which no sync may be running any more; ascending.
    held: VecDeque<(u64, T)>,
}

impl<T> Overlap<T> {
    pub fn new() -> Self {
        Self { next: 0, running: Vec::new(), held: VecDeque::new() }
    }

    /// A sync is about to be asked for; its number.
    pub fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.running.push(number);
        number
    }

    /// A sync has ended.
    pub fn end(&mut self, number: u64) {
        self.running.retain(|running| *running != number);
    }

    /// Keeps what rests on a sync that succeeded, until [`release`](Self::release) gives it back.
    pub fn hold(&mut self, item: T) {
        self.held.push_back((self.next, item));
    }

    /// One success that may be believed now.
    pub fn release(&mut self) -> Option<T> {
        let oldest = self.running.iter().min().copied().unwrap_or(u64::MAX);
        match self.held.front() {
            Some((below, _)) if *below <= oldest || planted::on("acknowledge_out_of_order") => {
                self.held.pop_front().map(|(_, item)| item)
            }
            _ => None,
        }
    }

    /// Everything that waits, after a failure: none of it may be believed.
    pub fn give_up(&mut self) -> impl Iterator<Item = T> + '_ {
        self.held.drain(..).map(|(_, item)| item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_ran_alone_is_believed_at_once() {
        let mut overlap = Overlap::new();
        let only = overlap.begin();
        overlap.end(only);
        overlap.hold("only");
        assert_eq!(overlap.release(), Some("only"));
        assert_eq!(overlap.release(), None);
    }

    #[test]
    fn a_success_waits_for_every_sync_that_ran_beside_it_and_for_no_later_one() {
        let mut overlap = Overlap::new();
        let (a, b) = (overlap.begin(), overlap.begin());
        overlap.end(b);
        overlap.hold("b");
        assert_eq!(overlap.release(), None);
        let c = overlap.begin();
        overlap.end(a);
        overlap.hold("a");
        assert_eq!(overlap.release(), Some("b"), "c began after b was seen");
        assert_eq!(overlap.release(), None, "a waits for c");
        overlap.end(c);
        assert_eq!(overlap.release(), Some("a"));
    }

    #[test]
    fn after_a_failure_nothing_that_waited_is_believed() {
        let mut overlap = Overlap::new();
        let (a, b) = (overlap.begin(), overlap.begin());
        overlap.end(b);
        overlap.hold("b");
        overlap.end(a);
        assert_eq!(overlap.give_up().collect::<Vec<_>>(), ["b"]);
        assert_eq!(overlap.release(), None);
    }
}
