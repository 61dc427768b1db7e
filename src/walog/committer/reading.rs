//! What a reader asks of a live log: where an entry is, and a copy of it while it is in memory.
//!
//! Not here: reading files (`live_reader`). No I/O is done under the lock, nothing is allocated for readers on
//! the way of a commit, and what is copied under the lock is bounded.
//!
//! While a commit is in flight, its buffer belongs to the operation, so its entries cannot be seen: the reader
//! waits for that commit, and collects its completion where nobody else does. The other way, a copy of
//! every batch, would cost each commit a copy for readers that mostly are not there.

use super::Committer;
use crate::error::PersistenceResult;
use crate::framing::Peek;
use crate::planted;
use crate::storage::{Directory, Effect};
use std::ops::RangeInclusive;

/// How far the files of a log reach.
#[derive(Clone, Copy, Debug)]
pub(in crate::walog) struct Written {
    /// Every entry up to here is in a file.
    pub flushed_entry_id: u64,
    /// Segments that were entered by then.
    pub segments_entered: u64,
}

/// Where a reader finds the entry that it wants.
#[derive(Debug)]
pub(in crate::walog) enum Fetched {
    /// Entries were copied from memory; or none, because they are far into it: look again.
    Copied,
    /// Its commit is in flight.
    InFlight,
    /// In a file.
    Written(Written),
    /// Nowhere: it was not appended.
    Beyond,
}

impl<D: Directory + ?Sized> Committer<D> {
    /// Looks for the first of the `wanted` entries, and copies what is in memory; also says what is durable.
    pub fn fetch(&self, wanted: RangeInclusive<u64>, peek: &mut Peek, out: &mut Vec<u8>) -> (Fetched, u64) {
        let queue = self.queue();
        let from = *wanted.start();
        let fetched = if from <= queue.flushed_entry_id {
            let (flushed_entry_id, segments_entered) = (queue.flushed_entry_id, queue.segments_entered);
            Fetched::Written(Written { flushed_entry_id, segments_entered })
        } else if from >= queue.pending.next_entry_id() {
            Fetched::Beyond
        } else if from >= queue.pending.first_entry_id() {
            peek.copy_entries(&queue.pending, wanted, out);
            Fetched::Copied
        } else {
            Fetched::InFlight
        };
        let told = if planted::on("reader_calls_flushed_durable") {
            queue.flushed_entry_id
        } else {
            queue.durable_entry_id
        };
        (fetched, told)
    }

    /// Blocks until the commit that holds `entry_id`, and is in flight, has ended.
    pub fn wait_in_flight(&self, entry_id: u64) -> PersistenceResult<()> {
        self.wait(entry_id, Effect::Flushed)
    }

    /// For a planted bug.
    #[cfg(durability_planted)]
    pub fn hold(&self) -> impl Drop + '_ {
        self.queue()
    }

    /// `Poisoned` after a failure.
    pub fn check_poison(&self) -> PersistenceResult<()> {
        let queue = self.queue();
        if queue.failure.is_none() { Ok(()) } else { queue.check() }
    }
}
