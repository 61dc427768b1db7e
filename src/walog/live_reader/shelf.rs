//! Which segment of a live log holds an entry, and from where in it to look.
//!
//! Lives here: the catalogue that the readers of one log share, when it is read again, and places in segments
//! that earlier reads have passed. Not here: reading entries (`cursor`).
//!
//! Invariants: a segment that was started never changes its beginning, and its id is never used again, so it is
//! looked at once. Places are hints: they are only believed together with the salt of their segment.

use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::scan::KnownEnd;
use crate::limits::{MARK_BYTES, MARKS_MAX};
use crate::planted;
use crate::storage::Directory;
use crate::walog::catalogue::{self, Chain, Found, Listing, Started};
use crate::walog::walk;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The segments of one log, as its readers know them.
pub(in crate::walog) struct Shelf<D: Directory + ?Sized> {
    directory: Arc<D>,
    identity: u128,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    chain: Chain,
    /// Segments that the writer had entered when the chain was read, and how often it was read.
    segments_entered: u64,
    reads: u64,
    /// Segment and the first entry of a frame in it -> where that frame begins.
    marks: BTreeMap<(u64, u64), u64>,
}

/// Where to look for an entry.
#[derive(Clone, Debug)]
pub(in crate::walog) struct Located {
    pub segment: Started,
    pub known_end: Option<KnownEnd>,
    /// A frame that begins at or before the entry: its offset and its first entry. `None`: from the beginning.
    pub mark: Option<(u64, u64)>,
    /// Which reading of the catalogue this comes from.
    pub reading: u64,
}

impl<D: Directory + ?Sized> Shelf<D> {
    pub fn new(directory: Arc<D>, identity: u128) -> Self {
        Self { directory, identity, known: Mutex::new(Known::default()) }
    }

    pub fn directory(&self) -> &D {
        &self.directory
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What is in there is replaced as a whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the segment that holds `entry_id`, which is in a file. The catalogue is read again where the writer
    /// has entered a segment since, and where the last reading was `doubted`.
    pub fn locate(
        &self,
        entry_id: u64,
        segments_entered: u64,
        doubted: Option<u64>,
    ) -> PersistenceResult<Located> {
        let mut known = self.known();
        let is_old = known.reads == 0 || known.segments_entered < segments_entered;
        if is_old || doubted.is_some_and(|reading| reading >= known.reads) {
            known.chain = self.read_chain(&known.chain)?;
            known.reads += 1;
            known.segments_entered = segments_entered.max(known.segments_entered);
            let oldest = known.chain.segments.first().map_or(u64::MAX, |oldest| oldest.id);
            known.marks = known.marks.split_off(&(oldest, 0));
        }
        let chain = &known.chain;
        if chain.segments.is_empty() {
            // A log that began behind a checkpoint, and has no entries of its own yet.
            let first_entry_id = entry_id.saturating_add(1);
            return Err(PersistenceError::PrefixUnavailable { wanted_entry_id: entry_id, first_entry_id });
        }
        let index = chain.find(entry_id)?;
        let segment = chain.segments[index].clone();
        let known_end = chain.segments.get(index + 1).map(Started::predecessor_end);
        let mark = known.marks.range((segment.id, 0)..=(segment.id, entry_id)).next_back();
        let mark = mark.map(|((_, first_entry_id), offset)| (*offset, *first_entry_id));
        Ok(Located { segment, known_end, mark, reading: known.reads })
    }

    /// Remembers where a frame begins, unless that is near another such place.
    pub fn mark(&self, segment_id: u64, offset: u64, first_entry_id: u64) {
        if planted::on("forget_marks") {
            return;
        }
        let mut known = self.known();
        let before = known.marks.range((segment_id, 0)..=(segment_id, first_entry_id)).next_back();
        if before.is_some_and(|(_, before)| offset < before + MARK_BYTES) {
            return;
        }
        known.marks.insert((segment_id, first_entry_id), offset);
        if known.marks.len() > MARKS_MAX {
            known.marks.pop_first();
        }
    }

    /// Lists the folder, and looks at the segments that were not started when it was read last.
    fn read_chain(&self, before: &Chain) -> PersistenceResult<Chain> {
        walk::settled(|| {
            let (ids, spares) = catalogue::list_names(self.directory.as_ref())?;
            let look = |id: u64| match before.segments.binary_search_by_key(&id, |started| started.id) {
                Ok(at) => Ok(Found::Started(before.segments[at].clone())),
                // What the writer has made ahead is long, and all zeros.
                Err(_) => catalogue::look_at_beginning(self.directory.as_ref(), id),
            };
            let segments = catalogue::look_at_each(&ids, look)?;
            catalogue::resolve(Listing { segments, spares }, Some(self.identity))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryDirectory;

    #[test]
    fn places_are_remembered_sparsely_and_no_more_than_may() {
        let shelf = Shelf::new(Arc::new(MemoryDirectory::new()), 1);
        for frame in 0..4 * MARKS_MAX as u64 {
            shelf.mark(1 + frame / 1000, frame % 1000 * (MARK_BYTES / 2), frame + 1);
        }
        let known = shelf.known();
        assert_eq!(known.marks.len(), MARKS_MAX);
        let near = known.marks.iter().zip(known.marks.iter().skip(1));
        for (((segment, _), offset), ((next, _), behind)) in near {
            assert!(segment != next || behind - offset >= MARK_BYTES);
        }
    }
}
