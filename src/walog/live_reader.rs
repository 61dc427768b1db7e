//! Reading entries of a live log by their ids, beside its writer.
//!
//! Lives here: the handle that users have. Not here: finding entries (`shelf`), reading them (`cursor`).

mod cursor;
mod shelf;

use super::committer::Committer;
use super::reader::at_entry;
use crate::codec::Codec;
use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::ENTRY_ID_MAX;
use crate::storage::Directory;
use cursor::Cursor;
pub(super) use shelf::Shelf;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// An entry of a live log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveRecord<E> {
    /// Its id.
    pub entry_id: u64,
    /// What was appended.
    pub payload: E,
    /// Everything up to here was durable when the entry was read. An entry behind it may be lost in a crash: show
    /// it to nobody who must not see it vanish.
    pub durable_entry_id: u64,
}

impl<E> LiveRecord<E> {
    /// Whether the entry was durable when it was read.
    pub fn is_durable(&self) -> bool {
        self.entry_id <= self.durable_entry_id
    }
}

/// How reading a range ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSummary {
    /// Entries that were handed out.
    pub entries: u64,
    /// The entry that comes next: where to go on when more was appended.
    pub next_entry_id: u64,
    /// Everything up to here was durable when the last entries were read.
    pub durable_entry_id: u64,
}

/// Reads entries of a log that a [`SyncWalWriter`](super::SyncWalWriter) has open, by id; from
/// [`reader`](super::SyncWalWriter::reader). Clones read the same log, from any thread.
///
/// It reads every entry that was appended and not truncated:
///
/// * what is pending is copied from memory, under the lock that appending takes, in bounded pieces;
/// * what is in flight belongs to its commit: the reader waits for that one commit, and collects its
///   completion where nobody else does (then callbacks of tickets run on its thread);
/// * the rest is read from files, which holds no committing thread up. Reading an entry costs the search for
///   its segment, one open file, and 64 KiB of it where somebody has read near it before.
///
/// An entry that was read may not be durable yet: every answer says what was. Blocking: not for the threads of an
/// async executor.
///
/// It is no handle of the writer. It goes on reading after the log was poisoned (what was in flight then is
/// answered with `Poisoned`) and after the writer was closed or dropped: then it sees the log as the writer left it,
/// and what a later writer truncates is unavailable.
///
/// # Errors
///
/// [`PrefixUnavailable`](PersistenceError::PrefixUnavailable) for an entry that was truncated,
/// [`NotAppended`](PersistenceError::NotAppended) for one that is not there yet, `Corruption` for one that was
/// written and cannot be read any more.
pub struct SyncWalReader<E = (), D: Directory + ?Sized = dyn Directory> {
    committer: Arc<Committer<D>>,
    shelf: Arc<Shelf<D>>,
    _entry: PhantomData<fn() -> E>,
}

impl<E, D: Directory + ?Sized> SyncWalReader<E, D> {
    pub(super) fn new(committer: Arc<Committer<D>>, shelf: Arc<Shelf<D>>) -> Self {
        Self { committer, shelf, _entry: PhantomData }
    }

    /// Id of the last appended entry; 0 when there is none.
    pub fn last_entry_id(&self) -> u64 {
        self.committer.last_entry_id()
    }

    /// Everything up to here is durable. Takes no lock.
    pub fn durable_entry_id(&self) -> u64 {
        self.committer.durable_entry_id()
    }

    /// The entry `entry_id`, as bytes.
    pub fn read_bytes(&self, entry_id: u64) -> PersistenceResult<LiveRecord<Vec<u8>>> {
        self.read_with(entry_id, |bytes| Ok(bytes.to_vec()))
    }

    /// The entry `entry_id`, decoded with a codec.
    pub fn read_decoded<C: Codec<E>>(&self, codec: &C, entry_id: u64) -> PersistenceResult<LiveRecord<E>> {
        self.read_with(entry_id, |bytes| codec.decode(bytes))
    }

    /// Hands every entry of `range` that was appended when this is called to `visit`, in order, its payload
    /// borrowed. An error of `visit` ends it and is returned.
    ///
    /// Bounded memory, whatever the range. A range that begins behind the last entry has no entries: go on from
    /// [`LiveSummary::next_entry_id`] later.
    pub fn replay_bytes(
        &self,
        range: impl RangeBounds<u64>,
        mut visit: impl FnMut(u64, &[u8]) -> PersistenceResult<()>,
    ) -> PersistenceResult<LiveSummary> {
        let mut cursor = self.cursor(range);
        let mut entries = 0;
        while let Some((entry_id, bytes)) = cursor.next_entry()? {
            visit(entry_id, bytes)?;
            entries += 1;
        }
        let durable_entry_id = cursor.durable_entry_id().max(self.durable_entry_id());
        Ok(LiveSummary { entries, next_entry_id: cursor.next_entry_id(), durable_entry_id })
    }

    /// [`replay_bytes`](Self::replay_bytes) with a codec.
    pub fn replay_decoded<C: Codec<E>>(
        &self,
        codec: &C,
        range: impl RangeBounds<u64>,
        mut visit: impl FnMut(u64, E) -> PersistenceResult<()>,
    ) -> PersistenceResult<LiveSummary> {
        self.replay_bytes(range, |entry_id, bytes| {
            visit(entry_id, codec.decode(bytes).map_err(|error| at_entry(error, entry_id))?)
        })
    }

    /// The entries of `range` that were appended when this is called, as an iterator over bytes of their own.
    pub fn entries_bytes(&self, range: impl RangeBounds<u64>) -> LiveEntries<D> {
        LiveEntries { cursor: self.cursor(range), is_over: false }
    }

    fn cursor(&self, range: impl RangeBounds<u64>) -> Cursor<D> {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 1,
        };
        let last = match range.end_bound() {
            Bound::Included(last) => *last,
            Bound::Excluded(behind) => behind.saturating_sub(1),
            Bound::Unbounded => ENTRY_ID_MAX,
        };
        Cursor::new(&self.committer, &self.shelf, first, last.min(self.last_entry_id()))
    }

    fn read_with<T>(
        &self,
        entry_id: u64,
        decode: impl FnOnce(&[u8]) -> PersistenceResult<T>,
    ) -> PersistenceResult<LiveRecord<T>> {
        if entry_id == 0 {
            return Err(PersistenceError::invalid_config("entry_id", "ids begin at 1"));
        }
        let mut cursor = Cursor::new(&self.committer, &self.shelf, entry_id, entry_id);
        let decoded = match cursor.next_entry()? {
            Some((_, bytes)) => decode(bytes).map_err(|error| at_entry(error, entry_id))?,
            None => {
                let last_entry_id = self.last_entry_id();
                return Err(PersistenceError::NotAppended { entry_id, last_entry_id });
            }
        };
        let durable_entry_id = cursor.durable_entry_id();
        Ok(LiveRecord { entry_id, payload: decoded, durable_entry_id })
    }
}

#[cfg(feature = "postcard")]
impl<E: serde::de::DeserializeOwned, D: Directory + ?Sized> SyncWalReader<E, D> {
    /// The entry `entry_id`, decoded with postcard.
    pub fn read(&self, entry_id: u64) -> PersistenceResult<LiveRecord<E>> {
        self.read_with(entry_id, crate::codec::Postcard::read)
    }

    /// [`replay_bytes`](Self::replay_bytes) with postcard.
    pub fn replay_each(
        &self,
        range: impl RangeBounds<u64>,
        mut visit: impl FnMut(u64, E) -> PersistenceResult<()>,
    ) -> PersistenceResult<LiveSummary> {
        self.replay_bytes(range, |entry_id, bytes| {
            let decoded = crate::codec::Postcard::read(bytes).map_err(|error| at_entry(error, entry_id))?;
            visit(entry_id, decoded)
        })
    }
}

impl<E, D: Directory + ?Sized> Clone for SyncWalReader<E, D> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.committer), Arc::clone(&self.shelf))
    }
}

impl<E, D: Directory + ?Sized> std::fmt::Debug for SyncWalReader<E, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncWalReader")
            .field("last_entry_id", &self.last_entry_id())
            .field("durable_entry_id", &self.durable_entry_id())
            .finish_non_exhaustive()
    }
}

/// Entries of a live log, in order; see [`SyncWalReader::entries_bytes`]. Ends after an error.
pub struct LiveEntries<D: Directory + ?Sized = dyn Directory> {
    cursor: Cursor<D>,
    is_over: bool,
}

impl<D: Directory + ?Sized> Iterator for LiveEntries<D> {
    type Item = PersistenceResult<LiveRecord<Vec<u8>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entry = self.cursor.next_entry();
        let copied = entry.map(|entry| entry.map(|(entry_id, bytes)| (entry_id, bytes.to_vec())));
        let durable_entry_id = self.cursor.durable_entry_id();
        self.is_over = !matches!(copied, Ok(Some(_)));
        let record = |(entry_id, payload)| LiveRecord { entry_id, payload, durable_entry_id };
        copied.transpose().map(|copied| copied.map(record))
    }
}

impl<D: Directory + ?Sized> std::iter::FusedIterator for LiveEntries<D> {}

impl<D: Directory + ?Sized> std::fmt::Debug for LiveEntries<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveEntries")
            .field("next_entry_id", &self.cursor.next_entry_id())
            .finish_non_exhaustive()
    }
}
