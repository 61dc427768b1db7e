//! A span of `tracing` for each commit, for whoever subscribes to `durability::commit` at level `TRACE`.
//!
//! Nobody does by default: then a commit costs one look at the subscribers' level, and nothing is kept.

use super::Begun;
use crate::planted;
use crate::storage::Effect;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::{Level, Span};

/// Spans of the commits in flight.
#[derive(Default)]
pub(in crate::walog) struct Tracer {
    open: Mutex<Vec<(u64, Span)>>,
    /// How many; written with the lock, read without it. Whoever collects a commit knows from the committer's lock
    /// that it had begun.
    count: AtomicUsize,
}

impl Tracer {
    fn is_on() -> bool {
        tracing::enabled!(target: "durability::commit", Level::TRACE)
    }

    /// A commit begins.
    pub fn begin(&self, commit_id: u64, last_entry_id: u64, effect: Effect, begun: &Begun) {
        if !Self::is_on() {
            return;
        }
        let Begun { entries, bytes, frame_bytes, depth, .. } = *begun;
        let is_durable = effect == Effect::Durable;
        let span = tracing::trace_span!(target: "durability::commit", "commit", commit_id, last_entry_id,
            entries, bytes, frame_bytes, depth, is_durable);
        let mut open = self.open();
        open.push((commit_id, span));
        self.count.store(open.len(), Ordering::Relaxed);
    }

    /// Its completion was collected; perhaps by a thread on which nobody subscribes.
    pub fn end(&self, commit_id: u64, is_well: bool) {
        let is_gone = planted::on("span_ends_where_it_is_seen") && !Self::is_on();
        if self.count.load(Ordering::Relaxed) == 0 || is_gone || planted::on("span_never_ends") {
            return;
        }
        let mut open = self.open();
        let Some(at) = open.iter().position(|(id, _)| *id == commit_id) else { return };
        let (_, span) = open.swap_remove(at);
        self.count.store(open.len(), Ordering::Relaxed);
        drop(open);
        tracing::trace!(target: "durability::commit", parent: &span, is_well, "a commit has ended");
    }

    fn open(&self) -> MutexGuard<'_, Vec<(u64, Span)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
