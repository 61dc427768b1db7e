//! Replay.

use super::walk::{self, LogEnd, Requirements};
use crate::codec::Codec;
use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::READER_RETRIES_MAX;
use crate::planted;
use crate::storage::Directory;
use std::marker::PhantomData;
use std::sync::Arc;

/// What ends of a log replay accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum WalReplayMode {
    /// Only a log that ends cleanly.
    #[default]
    Strict,
    /// Also a torn tail at the very end: what a crash leaves of writes that were never acknowledged.
    BestEffortTail,
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalRecord<E> {
    /// Its id.
    pub entry_id: u64,
    /// What was appended.
    pub payload: E,
}

/// How a replay ended.
#[derive(Clone, Debug)]
pub struct ReplaySummary {
    /// Entries that were handed out.
    pub entries: u64,
    /// Where the log ends.
    pub end: LogEnd,
}

/// Reads a log, beside a live writer or without one. Takes no lock and changes nothing.
///
/// Beside a live writer it sees what was flushed when it got there. Beside truncation it goes on where it
/// was; only when what it still needs has been removed does it fail, with
/// [`PrefixUnavailable`](PersistenceError::PrefixUnavailable).
///
/// What it returns is not made durable: only opening the log for writing does that.
pub struct WalReader<E = (), D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
    identity: Option<u128>,
    _entry: PhantomData<fn() -> E>,
}

impl<E, D: Directory + ?Sized> WalReader<E, D> {
    /// A reader of the log in `directory`.
    pub fn new(directory: Arc<D>) -> Self {
        Self { directory, identity: None, _entry: PhantomData }
    }

    /// Accepts only the log with this identity.
    pub fn with_identity(mut self, identity: u128) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Hands every entry from `from_entry_id` on to `visit`, in order, its payload borrowed.
    ///
    /// Entries are handed out as they are read, before the end of the log is known: an error after some
    /// entries means that the log has these entries and then does not end as `mode` accepts. `NotFound`
    /// when there is no log. An error of `visit` ends the replay and is returned.
    pub fn replay_bytes_from(
        &self,
        from_entry_id: u64,
        mode: WalReplayMode,
        visit: impl FnMut(u64, &[u8]) -> PersistenceResult<()>,
    ) -> PersistenceResult<ReplaySummary> {
        self.replay_with(from_entry_id, mode, &Requirements::default(), visit)
    }

    pub(crate) fn replay_with(
        &self,
        from_entry_id: u64,
        mode: WalReplayMode,
        requirements: &Requirements,
        mut visit: impl FnMut(u64, &[u8]) -> PersistenceResult<()>,
    ) -> PersistenceResult<ReplaySummary> {
        let mut next = from_entry_id.max(1);
        let mut entries = 0;
        let mut failed_visit = false;
        for attempt in 0.. {
            let chain = walk::read_chain_from(self.directory.as_ref(), self.identity, next)?;
            let result =
                walk::walk(self.directory.as_ref(), &chain, next, requirements, &mut |entry_id, payload| {
                    visit(entry_id, payload).inspect_err(|_| failed_visit = true)?;
                    next = entry_id + 1;
                    entries += 1;
                    Ok(())
                });
            let is_over = failed_visit || attempt >= READER_RETRIES_MAX;
            if is_over || !walk::is_overtaken(self.directory.as_ref(), &chain, &result) {
                return finish(entries, result?, mode);
            }
            // Truncation took a segment away while it was read: what is left may still be enough.
        }
        unreachable!("the loop ends by returning")
    }

    /// Ids of the first entry that is there and of the last one; `None` for a log without entries.
    pub fn entry_range(&self, mode: WalReplayMode) -> PersistenceResult<Option<(u64, u64)>> {
        let (chain, end) = walk::read_end(self.directory.as_ref(), self.identity)?;
        accept(&end, mode)?;
        let first = chain.segments.first().map(|segment| segment.first_entry_id);
        Ok(first.filter(|first| *first <= end.last_entry_id).map(|first| (first, end.last_entry_id)))
    }

    /// Every entry as raw bytes.
    pub fn replay_bytes(&self, mode: WalReplayMode) -> PersistenceResult<Vec<WalRecord<Vec<u8>>>> {
        let mut records = Vec::new();
        self.replay_bytes_from(1, mode, |entry_id, payload| {
            records.push(WalRecord { entry_id, payload: payload.to_vec() });
            Ok(())
        })?;
        Ok(records)
    }

    /// Hands every entry from `from_entry_id` on to `visit`, decoded with a codec; returns how many.
    pub fn replay_decoded<C: Codec<E>>(
        &self,
        codec: &C,
        from_entry_id: u64,
        mode: WalReplayMode,
        mut visit: impl FnMut(WalRecord<E>) -> PersistenceResult<()>,
    ) -> PersistenceResult<ReplaySummary> {
        self.replay_bytes_from(from_entry_id, mode, |entry_id, bytes| {
            let payload = codec.decode(bytes).map_err(|error| at_entry(error, entry_id))?;
            visit(WalRecord { entry_id, payload })
        })
    }
}

#[cfg(feature = "postcard")]
impl<E: serde::de::DeserializeOwned, D: Directory + ?Sized> WalReader<E, D> {
    /// Hands every entry to `visit`, in order; returns how many. `PrefixUnavailable` when entry 1 was truncated: then
    /// [`replay_decoded`](Self::replay_decoded), with [`Postcard`](crate::codec::Postcard), begins where the error says.
    pub fn replay_each_with_mode(
        &self,
        mode: WalReplayMode,
        mut visit: impl FnMut(WalRecord<E>) -> PersistenceResult<()>,
    ) -> PersistenceResult<u64> {
        let summary = self.replay_bytes_from(1, mode, |entry_id, bytes| {
            let payload = crate::codec::Postcard::read(bytes).map_err(|error| at_entry(error, entry_id))?;
            visit(WalRecord { entry_id, payload })
        })?;
        Ok(summary.entries)
    }
}

/// Adds the entry to a decoding error.
pub(crate) fn at_entry(error: PersistenceError, entry_id: u64) -> PersistenceError {
    match error {
        PersistenceError::Decode { reason, .. } => {
            PersistenceError::Decode { entry_id: Some(entry_id), reason }
        }
        error => error,
    }
}

/// Refuses ends that `mode` does not accept.
pub(crate) fn accept(end: &LogEnd, mode: WalReplayMode) -> PersistenceResult<()> {
    match (&end.torn, mode) {
        (Some(torn), WalReplayMode::Strict) if !planted::on("strict_accepts_torn") => {
            Err(torn.clone().into())
        }
        _ => Ok(()),
    }
}

fn finish(entries: u64, end: LogEnd, mode: WalReplayMode) -> PersistenceResult<ReplaySummary> {
    accept(&end, mode)?;
    Ok(ReplaySummary { entries, end })
}

impl<E, D: Directory + ?Sized> std::fmt::Debug for WalReader<E, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalReader").field("identity", &self.identity).finish_non_exhaustive()
    }
}
