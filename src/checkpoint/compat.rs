//! Typed states: spellings that combine bytes and postcard.
#![cfg(feature = "postcard")]

use super::{CheckpointFile, CheckpointMeta};
use crate::codec::Postcard;
use crate::error::PersistenceResult;
use crate::storage::{Directory, StableStorage};
use serde::{Serialize, de::DeserializeOwned};

impl<D: Directory + ?Sized> CheckpointFile<D> {
    /// [`write_bytes`](Self::write_bytes) of an encoded state, streamed.
    pub fn write_postcard<T: Serialize + ?Sized>(
        &self,
        path: &str,
        last_applied_entry_id: u64,
        state: &T,
    ) -> PersistenceResult<()> {
        let mut writer = self.writer(path, CheckpointMeta::standalone(last_applied_entry_id))?;
        writer.write_postcard(state)?;
        writer.finish()
    }

    /// [`write_bytes_durable`](Self::write_bytes_durable) of an encoded state, streamed.
    pub fn write_postcard_durable<T: Serialize + ?Sized>(
        &self,
        path: &str,
        last_applied_entry_id: u64,
        state: &T,
    ) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.directory.stable()?;
        let mut writer = self.writer(path, CheckpointMeta::standalone(last_applied_entry_id))?;
        writer.write_postcard(state)?;
        writer.finish_durable()
    }

    /// Reads a state: the last applied entry and the decoded value.
    pub fn read_postcard<T: DeserializeOwned>(&self, path: &str) -> PersistenceResult<(u64, T)> {
        let (last_applied_entry_id, bytes) = self.read_bytes(path)?;
        Ok((last_applied_entry_id, Postcard::read(&bytes)?))
    }
}
