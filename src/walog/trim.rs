//! Maintenance: which entries are where, and removing the prefix that a checkpoint covers.
//!
//! Works from headers and opening frames alone, beside a live writer, without its lock. The newest started
//! segment is never removed. Segments go oldest first, each removal durable before the next, so that a
//! crash leaves a log that begins later, never one with a hole.

use super::catalogue::Chain;
use super::options::WalObserver;
use super::reader::{WalReplayMode, accept};
use super::walk;
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::names;
use crate::framing::FrameReader;
use crate::planted;
use crate::storage::Directory;
use std::sync::Arc;

/// The entries of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct WalSegmentRange {
    /// Its id.
    pub segment_id: u64,
    /// Its path under the root.
    pub path: String,
    /// Its first entry.
    pub start_entry_id: u64,
    /// Its last entry; smaller than the first where it has none yet.
    pub end_entry_id: u64,
}

/// Maintenance of a log, beside its writer.
#[derive(Debug)]
pub struct WalMaintenance<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
}

impl<D: Directory + ?Sized> WalMaintenance<D> {
    /// Maintenance of the log in `directory`.
    pub fn new(directory: Arc<D>) -> Self {
        Self { directory }
    }

    /// The segments of the log and their entries. Only what tells where the log ends is read: at most the
    /// newest segment's frames; a torn tail there is an error.
    pub fn segment_ranges_strict(&self) -> PersistenceResult<Vec<WalSegmentRange>> {
        self.segment_ranges(WalReplayMode::Strict)
    }

    /// The segments of the log and their entries; beside a live writer use
    /// [`BestEffortTail`](WalReplayMode::BestEffortTail), because its last write may be in the making.
    pub fn segment_ranges(&self, mode: WalReplayMode) -> PersistenceResult<Vec<WalSegmentRange>> {
        let (chain, end) = walk::read_end(self.directory.as_ref(), None)?;
        accept(&end, mode)?;
        Ok(ranges(&chain, end.last_entry_id))
    }

    /// Removes every segment whose entries are all at most `last_entry_id`; returns how many. Files that a
    /// recovery left behind go with them. The newest segment always stays.
    ///
    /// Durable when: on a durable directory, each removal on return. The caller must have made durable what
    /// replaces these entries: this is the last step of publishing, never an earlier one.
    pub fn truncate_prefix(&self, last_entry_id: u64) -> PersistenceResult<usize> {
        self.truncate(last_entry_id, 0, None)
    }

    /// Like [`truncate_prefix`](Self::truncate_prefix), but asks an observer before each removal.
    pub fn truncate_prefix_with_observer(
        &self,
        last_entry_id: u64,
        observer: &dyn WalObserver,
    ) -> PersistenceResult<usize> {
        self.truncate(last_entry_id, 0, Some(observer))
    }

    /// Like [`truncate_prefix`](Self::truncate_prefix), but keeps up to `capacity` files for later segments.
    pub fn truncate_to_recycle(&self, last_entry_id: u64, capacity: usize) -> PersistenceResult<usize> {
        self.truncate(last_entry_id, capacity, None)
    }

    pub(crate) fn truncate(
        &self,
        last_entry_id: u64,
        spares_max: usize,
        observer: Option<&dyn WalObserver>,
    ) -> PersistenceResult<usize> {
        let chain = walk::read_started_chain(self.directory.as_ref())?;
        let mut spares = chain.spares.clone();
        let mut removed = 0;
        let covered = ranges(&chain, u64::MAX);
        let covered = &covered[..self.removable(&chain)?];
        let one_more = |range: &WalSegmentRange| {
            planted::on("trim_one_segment_too_many") && range.start_entry_id <= last_entry_id
        };
        let goes = |range: &&WalSegmentRange| range.end_entry_id <= last_entry_id || one_more(range);
        let mut going: Vec<_> = covered.iter().take_while(goes).collect();
        if planted::on("trim_newest_first") {
            going.reverse();
        }
        for range in going {
            if let Some(observer) = observer {
                observer.on_before_truncate(range.segment_id, range.end_entry_id)?;
            }
            if spares.len() < spares_max {
                // Segment ids are never used twice, so they number the spares as well.
                self.rename(&range.path, &names::spare_path(range.segment_id))?;
                spares.push(range.segment_id);
            } else {
                self.delete(&range.path)?;
            }
            removed += 1;
        }
        if removed > 0 {
            self.remove_abandoned(&chain)?;
        }
        Ok(removed)
    }

    /// How many segments may go. The newest stays: it carries the ids on. The one before it stays as long as
    /// nothing shows that the newest's first commit is durable: after a power cut it may be the newest.
    fn removable(&self, chain: &Chain) -> PersistenceResult<usize> {
        let Some(newest) = chain.segments.last() else { return Ok(0) };
        let before = chain.segments.len() - 1;
        if self.directory.as_durable().is_none() || planted::on("trim_before_newest_is_durable") {
            return Ok(before);
        }
        let file = self.directory.open_at(&newest.path)?;
        let mut reader = FrameReader::new(file, &newest.path, &newest.header, None)?;
        while let Some(frame) = reader.next_frame()? {
            if frame.header.durable_entry_id >= newest.first_entry_id {
                return Ok(before);
            }
        }
        Ok(before.saturating_sub(1))
    }

    /// Files that lie before what is now the log's first segment are no evidence of anything any more.
    fn remove_abandoned(&self, before: &Chain) -> PersistenceResult<()> {
        let now = walk::read_started_chain(self.directory.as_ref())?;
        let Some(oldest) = now.segments.first() else { return Ok(()) };
        for path in &before.abandoned {
            let name = crate::storage::path::file_name(path);
            if matches!(names::parse_wal_name(name), names::WalName::Segment(id) if id < oldest.id) {
                self.delete(path)?;
            }
        }
        Ok(())
    }

    fn delete(&self, path: &str) -> PersistenceResult<()> {
        let result = match self.directory.as_durable() {
            Some(_) if planted::on("trim_without_directory_sync") => self.directory.delete(path),
            Some(durable) => durable.delete_durable(path),
            None => self.directory.delete(path),
        };
        ignore_missing(result)
    }

    fn rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        let result = match self.directory.as_durable() {
            Some(durable) => durable.atomic_rename_durable(from, to),
            None => self.directory.atomic_rename(from, to),
        };
        ignore_missing(result)
    }
}

/// Somebody else may truncate at the same time; what is gone is gone.
fn ignore_missing(result: PersistenceResult<()>) -> PersistenceResult<()> {
    match result {
        Err(PersistenceError::NotFound { .. }) => Ok(()),
        result => result,
    }
}

fn ranges(chain: &Chain, last_entry_id: u64) -> Vec<WalSegmentRange> {
    let ends = chain.segments.iter().skip(1).map(|next| next.opening.predecessor_last_entry_id);
    let segments = chain.segments.iter().zip(ends.chain([last_entry_id]));
    segments
        .map(|(segment, end_entry_id)| WalSegmentRange {
            segment_id: segment.id,
            path: segment.path.clone(),
            start_entry_id: segment.first_entry_id,
            end_entry_id,
        })
        .collect()
}
