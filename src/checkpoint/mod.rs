//! Checkpoints: snapshots of state, checksummed chunk by chunk.
//!
//! A checkpoint is written under a temporary name and renamed into place when it is complete, so a reader
//! finds the old one or the new one, never a half. Its header says which log it belongs to, the last entry
//! that is applied in it, and the least entry at which that log may end; its closing seal says that nothing
//! is missing. Neither writing nor reading holds more than one chunk in memory.

mod compat;
mod read;
mod write;

pub use read::CheckpointReader;
pub(crate) use read::judge_end;
pub use write::CheckpointWriter;

use crate::error::PersistenceResult;
use crate::storage::{Directory, Environment, StableStorage, SystemEnvironment};
use std::sync::Arc;

/// What a checkpoint says about itself and its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckpointMeta {
    /// The last entry that is applied in the state; replay goes on behind it.
    pub last_applied_entry_id: u64,
    /// The least entry at which the log may end: everything up to here was durable when the checkpoint was
    /// written, so a log that ends before has lost something.
    pub required_entry_id: u64,
    /// Identity of the log; 0 for a checkpoint that belongs to none.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::error::as_hex::identity"))]
    pub identity: u128,
}

impl CheckpointMeta {
    /// A checkpoint of no particular log.
    pub fn standalone(last_applied_entry_id: u64) -> Self {
        Self { last_applied_entry_id, required_entry_id: 0, identity: 0 }
    }
}

/// Writes and reads checkpoints in a directory.
#[derive(Debug)]
pub struct CheckpointFile<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
    environment: Arc<dyn Environment>,
}

impl<D: Directory + ?Sized> CheckpointFile<D> {
    /// Checkpoints in `directory`.
    pub fn new(directory: Arc<D>) -> Self {
        Self { directory, environment: Arc::new(SystemEnvironment::new()) }
    }

    /// Takes salts from `environment`: the same state then gives the same bytes.
    pub fn with_environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = environment;
        self
    }

    /// Begins a checkpoint: write the state into the writer, then finish it. Until then `path` keeps what
    /// it has.
    pub fn writer(&self, path: &str, meta: CheckpointMeta) -> PersistenceResult<CheckpointWriter<'_, D>> {
        CheckpointWriter::begin(self.directory.as_ref(), path, meta, self.environment.as_ref())
    }

    /// Opens a checkpoint for streaming. `MissingCheckpoint` when there is none.
    pub fn reader(&self, path: &str) -> PersistenceResult<CheckpointReader> {
        CheckpointReader::open(self.directory.as_ref(), path)
    }

    /// Writes a checkpoint from bytes.
    ///
    /// Effect: replaces `path` in one step. Survives the death of the process, not a power cut.
    pub fn write_bytes(&self, path: &str, last_applied_entry_id: u64, state: &[u8]) -> PersistenceResult<()> {
        let mut writer = self.writer(path, CheckpointMeta::standalone(last_applied_entry_id))?;
        writer.write_state(state)?;
        writer.finish()
    }

    /// Writes a checkpoint from bytes.
    ///
    /// Effect: replaces `path` in one step.
    /// Durable when: on return, contents and name.
    /// On error, and if it never returns: `path` holds the old checkpoint or the new one, whole.
    pub fn write_bytes_durable(
        &self,
        path: &str,
        last_applied_entry_id: u64,
        state: &[u8],
    ) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.directory.stable()?;
        let mut writer = self.writer(path, CheckpointMeta::standalone(last_applied_entry_id))?;
        writer.write_state(state)?;
        writer.finish_durable()
    }

    /// Reads a whole checkpoint: the last applied entry and the state. Every byte is checked.
    pub fn read_bytes(&self, path: &str) -> PersistenceResult<(u64, Vec<u8>)> {
        let mut reader = self.reader(path)?;
        let state = reader.read_state()?;
        Ok((reader.meta().last_applied_entry_id, state))
    }
}
