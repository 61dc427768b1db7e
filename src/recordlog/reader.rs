//! Reading a record log.

use super::{never_begun, read_log};
use crate::error::PersistenceResult;
use crate::storage::Directory;
use std::sync::Arc;

/// What ends of a record log reading accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum RecordLogReadMode {
    /// Only a log that ends cleanly.
    #[default]
    Strict,
    /// Also a torn tail at the very end.
    BestEffort,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<P = Vec<u8>> {
    /// What was appended.
    pub payload: P,
}

/// Reads a record log; takes no lock and changes nothing.
#[derive(Debug)]
pub struct RecordLogReader<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
    path: String,
}

impl<D: Directory + ?Sized> RecordLogReader<D> {
    /// A reader of the log at `path`.
    pub fn new(directory: Arc<D>, path: impl Into<String>) -> Self {
        Self { directory, path: path.into() }
    }

    /// Hands every record to `visit`, in order, borrowed; returns how many.
    ///
    /// Records are handed out as they are read: an error after some of them means that the log has these
    /// and then does not end as `mode` accepts. An empty file is a log that was never begun: without
    /// records in best-effort, an error in strict mode.
    pub fn read_each(
        &self,
        mode: RecordLogReadMode,
        mut visit: impl FnMut(&[u8]) -> PersistenceResult<()>,
    ) -> PersistenceResult<u64> {
        let found = read_log(self.directory.as_ref(), &self.path, &mut |_, payload| visit(payload))?;
        match (found, mode) {
            (None, RecordLogReadMode::BestEffort) => Ok(0),
            (None, RecordLogReadMode::Strict) => Err(never_begun(&self.path)),
            (Some(found), mode) => match (found.torn, mode) {
                (Some(torn), RecordLogReadMode::Strict) => Err(torn.into()),
                _ => Ok(found.last_record),
            },
        }
    }

    /// Every record.
    pub fn read_all(&self, mode: RecordLogReadMode) -> PersistenceResult<Vec<Record>> {
        let mut records = Vec::new();
        self.read_each(mode, |payload| {
            records.push(Record { payload: payload.to_vec() });
            Ok(())
        })?;
        Ok(records)
    }

    /// Every record, decoded with postcard.
    #[cfg(feature = "postcard")]
    pub fn read_all_postcard<T: serde::de::DeserializeOwned>(
        &self,
        mode: RecordLogReadMode,
    ) -> PersistenceResult<Vec<T>> {
        let mut records = Vec::new();
        self.read_each(mode, |payload| {
            records.push(crate::codec::Postcard::read(payload)?);
            Ok(())
        })?;
        Ok(records)
    }
}
