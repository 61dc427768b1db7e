//! The segment-index flavour: segments of documents come, merge and lose documents.
//!
//! One user of the generic recovery, for search indices: entries that add and delete, a checkpoint of the
//! whole, and a manager that finds the newest checkpoint that the log itself records.

use super::compat::recover_with_wal;
use super::{RecoveryOptions, RecoveryReport};
use crate::error::{PersistenceError, PersistenceResult, Proof};
use crate::storage::Directory;
use crate::walog::{WalReader, WalReplayMode, read_chain};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What happens to a segment index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WalEntry {
    /// A segment came.
    AddSegment {
        /// Its id.
        segment_id: u64,
        /// Documents in it.
        doc_count: u32,
    },
    /// A merge began; changes nothing until it ends.
    StartMerge {
        /// Which merge.
        transaction_id: u64,
        /// The segments that it reads.
        segment_ids: Vec<u64>,
    },
    /// A merge was given up.
    CancelMerge {
        /// Which merge.
        transaction_id: u64,
        /// The segments that it read.
        segment_ids: Vec<u64>,
    },
    /// A merge ended: one segment takes the place of others.
    EndMerge {
        /// Which merge.
        transaction_id: u64,
        /// The new segment.
        new_segment_id: u64,
        /// The segments that it replaces.
        old_segment_ids: Vec<u64>,
        /// Deletes that came while it ran, as documents of the new segment.
        remapped_deletes: Vec<(u64, u32)>,
    },
    /// Documents were deleted.
    DeleteDocuments {
        /// Segment and document.
        deletes: Vec<(u64, u32)>,
    },
    /// A checkpoint was published.
    Checkpoint {
        /// Where it is.
        checkpoint_path: String,
        /// The last entry that is applied in it.
        last_entry_id: u64,
    },
}

/// One segment of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSegment {
    /// Its id.
    pub segment_id: u64,
    /// Documents in it.
    pub doc_count: u32,
    /// Documents that are deleted, ascending.
    pub deleted_docs: Vec<u32>,
}

/// The state of a segment index, as it is checkpointed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Its segments, by id.
    pub segments: Vec<CheckpointSegment>,
}

/// One recovered segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredSegment {
    /// Its id.
    pub segment_id: u64,
    /// Documents in it; for a merged segment, of the segments it replaced, less what was deleted in them.
    pub doc_count: u32,
    /// Documents that are deleted.
    pub deleted_docs: BTreeSet<u32>,
}

/// A recovered segment index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredState {
    /// Its segments, by id.
    pub segments: BTreeMap<u64, RecoveredSegment>,
    /// The last entry that is applied.
    pub last_entry_id: u64,
    /// What was found, used and cut.
    pub report: RecoveryReport,
}

/// Recovers segment indices.
#[derive(Debug)]
pub struct RecoveryManager<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
}

impl<D: Directory + ?Sized> RecoveryManager<D> {
    /// Recovery in `directory`.
    pub fn new(directory: Arc<D>) -> Self {
        Self { directory }
    }

    /// Recovers from a checkpoint (or from the whole log) and a log that ends cleanly.
    pub fn recover(&self, checkpoint_path: Option<&str>) -> PersistenceResult<RecoveredState> {
        self.recover_with(checkpoint_path, RecoveryOptions::strict())
    }

    /// [`recover`](Self::recover) that accepts a torn tail.
    pub fn recover_best_effort(&self, checkpoint_path: Option<&str>) -> PersistenceResult<RecoveredState> {
        self.recover_with(checkpoint_path, RecoveryOptions::best_effort())
    }

    /// Recovers from the newest checkpoint that the log records and that is good.
    pub fn recover_latest(&self) -> PersistenceResult<RecoveredState> {
        self.recover_latest_with(RecoveryOptions::strict())
    }

    /// [`recover_latest`](Self::recover_latest) that accepts a torn tail.
    pub fn recover_latest_best_effort(&self) -> PersistenceResult<RecoveredState> {
        self.recover_latest_with(RecoveryOptions::best_effort())
    }

    /// The state as it is checkpointed.
    pub fn to_checkpoint_state(state: &RecoveredState) -> CheckpointState {
        let segments = state.segments.values().map(|segment| CheckpointSegment {
            segment_id: segment.segment_id,
            doc_count: segment.doc_count,
            deleted_docs: segment.deleted_docs.iter().copied().collect(),
        });
        CheckpointState { segments: segments.collect() }
    }

    fn recover_with(
        &self,
        path: Option<&str>,
        options: RecoveryOptions,
    ) -> PersistenceResult<RecoveredState> {
        let recovery = recover_with_wal(Arc::clone(&self.directory), path, options, from_checkpoint, apply)?;
        let mut state: RecoveredState = recovery.state;
        state.last_entry_id = recovery.last_entry_id;
        state.report = recovery.report;
        Ok(state)
    }

    fn recover_latest_with(&self, options: RecoveryOptions) -> PersistenceResult<RecoveredState> {
        let mut first_error = None;
        for path in self.recorded_checkpoints(options.wal_mode)?.iter().rev() {
            match self.recover_with(Some(path), options.clone()) {
                Ok(state) => return Ok(state),
                Err(error) if speaks_of(path, &error) => first_error.get_or_insert(error),
                // What the log lacks, or what cannot be read, no older checkpoint makes good.
                Err(error) => return Err(error),
            };
        }
        match first_error {
            None => self.recover_with(None, options),
            // The log records checkpoints, none is good: only a whole log is a history.
            Some(error) => self.recover_with(None, options).map_err(|_| error),
        }
    }

    /// Paths of the checkpoints that the log records, oldest first.
    fn recorded_checkpoints(&self, mode: WalReplayMode) -> PersistenceResult<Vec<String>> {
        let chain = read_chain(self.directory.as_ref(), None)?;
        let first = chain.segments.first().map_or(1, |first| first.first_entry_id);
        let mut paths: Vec<String> = Vec::new();
        let reader = WalReader::<WalEntry, D>::new(Arc::clone(&self.directory));
        reader.replay_decoded(&crate::codec::Postcard, first, mode, |record| {
            if let WalEntry::Checkpoint { checkpoint_path, .. } = record.payload {
                paths.retain(|path| *path != checkpoint_path);
                paths.push(checkpoint_path);
            }
            Ok(())
        })?;
        Ok(paths)
    }
}

/// Whether an error says no more than that this checkpoint, or an older one beside it, cannot be used.
fn speaks_of(checkpoint_path: &str, error: &PersistenceError) -> bool {
    let is_its = |path: &str| {
        path.strip_prefix(checkpoint_path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    match error {
        PersistenceError::Corruption(corruption) => {
            is_its(&corruption.path) && corruption.proof == Proof::Contradiction
        }
        PersistenceError::Format { path, .. } | PersistenceError::CrcMismatch { path, .. } => is_its(path),
        PersistenceError::Decode { entry_id, .. } => entry_id.is_none(),
        PersistenceError::MissingCheckpoint { .. } | PersistenceError::PrefixUnavailable { .. } => true,
        _ => false,
    }
}

fn from_checkpoint(checkpoint: Option<CheckpointState>) -> RecoveredState {
    let segments = checkpoint.unwrap_or_default().segments.into_iter().map(|segment| {
        let deleted_docs = segment.deleted_docs.into_iter().collect();
        let recovered =
            RecoveredSegment { segment_id: segment.segment_id, doc_count: segment.doc_count, deleted_docs };
        (segment.segment_id, recovered)
    });
    RecoveredState { segments: segments.collect(), ..RecoveredState::default() }
}

fn apply(state: &mut RecoveredState, _entry_id: u64, entry: WalEntry) {
    match entry {
        WalEntry::AddSegment { segment_id, doc_count } => {
            let segment = RecoveredSegment { segment_id, doc_count, deleted_docs: BTreeSet::new() };
            state.segments.insert(segment_id, segment);
        }
        WalEntry::EndMerge { new_segment_id, old_segment_ids, remapped_deletes, .. } => {
            let old = old_segment_ids.iter().filter_map(|id| state.segments.remove(id));
            let doc_count =
                old.map(|segment| segment.doc_count.saturating_sub(segment.deleted_docs.len() as u32));
            // Deletes that came while the merge ran are still documents of the new segment.
            let during =
                remapped_deletes.iter().filter(|(segment, _)| *segment == new_segment_id).count() as u32;
            let doc_count = doc_count.sum::<u32>().saturating_add(during);
            let segment =
                RecoveredSegment { segment_id: new_segment_id, doc_count, deleted_docs: BTreeSet::new() };
            state.segments.insert(new_segment_id, segment);
            delete(state, &remapped_deletes);
        }
        WalEntry::DeleteDocuments { deletes } => delete(state, &deletes),
        WalEntry::StartMerge { .. } | WalEntry::CancelMerge { .. } | WalEntry::Checkpoint { .. } => {}
    }
}

fn delete(state: &mut RecoveredState, deletes: &[(u64, u32)]) {
    for (segment_id, document) in deletes {
        if let Some(segment) = state.segments.get_mut(segment_id) {
            segment.deleted_docs.insert(*document);
        }
    }
}
