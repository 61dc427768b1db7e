//! Older spellings that only combine options.

use super::options::WalOptions;
use super::reader::{WalReader, WalRecord, WalReplayMode};
use super::writer::WalWriter;
use crate::error::PersistenceResult;
use crate::storage::{Directory, FlushPolicy};
use std::sync::Arc;

impl<E, D: Directory + ?Sized> WalWriter<E, D> {
    /// [`new_with`](Self::new_with) a flush policy and a buffer size.
    pub fn with_options(directory: Arc<D>, flush_policy: FlushPolicy, buffer_bytes: usize) -> Self {
        Self::new_with(directory, WalOptions { flush_policy, buffer_bytes, ..WalOptions::default() })
    }

    /// [`new_with`](Self::new_with) a flush policy.
    pub fn with_flush_policy(directory: Arc<D>, flush_policy: FlushPolicy) -> Self {
        Self::new_with(directory, WalOptions { flush_policy, ..WalOptions::default() })
    }
}

impl<E, D: Directory + ?Sized> WalReader<E, D> {
    /// [`replay_bytes`](Self::replay_bytes) that accepts a torn tail.
    pub fn replay_bytes_best_effort(&self) -> PersistenceResult<Vec<WalRecord<Vec<u8>>>> {
        self.replay_bytes(WalReplayMode::BestEffortTail)
    }

    /// Hands every entry to `visit` as raw bytes; returns how many. Strict.
    pub fn replay_bytes_each(
        &self,
        mut visit: impl FnMut(WalRecord<Vec<u8>>) -> PersistenceResult<()>,
    ) -> PersistenceResult<u64> {
        let summary = self.replay_bytes_from(1, WalReplayMode::Strict, |entry_id, bytes| {
            visit(WalRecord { entry_id, payload: bytes.to_vec() })
        })?;
        Ok(summary.entries)
    }

    /// How many entries the log holds. Strict.
    pub fn entry_count(&self) -> PersistenceResult<u64> {
        Ok(self.replay_bytes_from(1, WalReplayMode::Strict, |_, _| Ok(()))?.entries)
    }

    /// How many entries the log holds, a torn tail accepted.
    pub fn entry_count_best_effort(&self) -> PersistenceResult<u64> {
        Ok(self.replay_bytes_from(1, WalReplayMode::BestEffortTail, |_, _| Ok(()))?.entries)
    }
}

#[cfg(feature = "postcard")]
impl<E: serde::de::DeserializeOwned, D: Directory + ?Sized> WalReader<E, D> {
    /// Every entry. Strict.
    pub fn replay(&self) -> PersistenceResult<Vec<WalRecord<E>>> {
        self.collect(WalReplayMode::Strict)
    }

    /// Every entry, a torn tail accepted.
    pub fn replay_best_effort(&self) -> PersistenceResult<Vec<WalRecord<E>>> {
        self.collect(WalReplayMode::BestEffortTail)
    }

    /// Hands every entry to `visit`; returns how many. Strict.
    pub fn replay_each(
        &self,
        visit: impl FnMut(WalRecord<E>) -> PersistenceResult<()>,
    ) -> PersistenceResult<u64> {
        self.replay_each_with_mode(WalReplayMode::Strict, visit)
    }

    /// Hands every entry to `visit`, a torn tail accepted; returns how many.
    pub fn replay_each_best_effort(
        &self,
        visit: impl FnMut(WalRecord<E>) -> PersistenceResult<()>,
    ) -> PersistenceResult<u64> {
        self.replay_each_with_mode(WalReplayMode::BestEffortTail, visit)
    }

    fn collect(&self, mode: WalReplayMode) -> PersistenceResult<Vec<WalRecord<E>>> {
        let mut records = Vec::new();
        self.replay_each_with_mode(mode, |record| {
            records.push(record);
            Ok(())
        })?;
        Ok(records)
    }
}

impl<E, D: Directory + ?Sized> WalWriter<E, D> {
    /// Keeps the segments whose entries are all at most `last_entry_id` for later segments, as many as
    /// [`set_recycle_capacity`](Self::set_recycle_capacity) allows, and removes the others; returns how many
    /// there were. See [`WalMaintenance::truncate_to_recycle`](super::WalMaintenance::truncate_to_recycle)
    /// for what must be durable before.
    pub fn recycle_segment(&self, last_entry_id: u64) -> PersistenceResult<usize> {
        let (Some(directory), Some(options)) = (self.directory(), self.options()) else { return Ok(0) };
        let maintenance = super::WalMaintenance::new(Arc::clone(directory));
        maintenance.truncate_to_recycle(last_entry_id, options.recycle_capacity)
    }
}
