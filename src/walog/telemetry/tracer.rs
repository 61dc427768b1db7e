//! A span of `tracing` for each commit, for whoever subscribes to `durability::commit` at level `TRACE`.
//!
//! Nobody does by default: then a commit costs one look at the subscribers' level, and nothing is kept.

use super::Begun;
use crate::planted;
use crate::storage::Effect;
use std::sync::{Mutex, PoisonError};
use tracing::{Level, Span};

/// Spans of the commits in flight.
#[derive(Default)]
pub(in crate::walog) struct Tracer {
    open: Mutex<Vec<(u64, Span)>>,
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
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push((commit_id, span));
    }

    /// Its completion was collected.
    pub fn end(&self, commit_id: u64, is_well: bool) {
        if !Self::is_on() || planted::on("span_never_ends") {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = open.iter().position(|(id, _)| *id == commit_id) else { return };
        let (_, span) = open.swap_remove(at);
        drop(open);
        tracing::trace!(target: "durability::commit", parent: &span, is_well, "a commit has ended");
    }
}
