//! Reading a whole log to say whether it is sound, segment by segment, by as many threads as the caller has.
//!
//! No judgement is made here: each segment is scanned as replay scans it, and what the scans mean together
//! is what [`walk`](super::walk) concludes. Nor is a thread started here.

use super::catalogue::{Chain, Started};
use super::walk::{self, LogEnd, Requirements};
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::scan::ScanEnd;
use crate::framing::FrameReader;
use crate::limits::READER_RETRIES_MAX;
use crate::storage::Directory;
use std::sync::Arc;

/// A log that is to be read completely, also where opening or replaying from a later entry would not look.
///
/// The verdict is that of a replay from the first entry on. Takes no lock and changes nothing.
#[derive(Debug)]
pub struct WalCheck<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
    chain: Chain,
    /// What a checkpoint requires.
    requirements: Requirements,
}

/// One segment, read to its end. What that end means, only [`WalCheck::run`] says.
#[derive(Clone, Debug)]
pub struct SegmentScan {
    /// How the scan ended.
    pub end: ScanEnd,
}

/// What became of reading each segment, in their order.
pub type SegmentScans = Vec<PersistenceResult<SegmentScan>>;

impl<D: Directory + ?Sized> WalCheck<D> {
    /// Lists the segments of the log. `NotFound` when there is none; corruption where the files do not make a
    /// log.
    pub fn begin(directory: Arc<D>) -> PersistenceResult<Self> {
        let chain = walk::read_chain(directory.as_ref(), None)?;
        Ok(Self { directory, chain, requirements: Requirements::default() })
    }

    /// Reads the log with `scan_all`, which calls [`scan`](Self::scan) for every segment and returns the
    /// results in order; it may use threads. Begins anew when truncation takes a segment away meanwhile.
    ///
    /// The first value is what was read, where files made a log at all; the second is the verdict of replay: a
    /// torn tail is part of the answer, corruption is an error.
    pub fn run(
        directory: &Arc<D>,
        scan_all: impl FnMut(&Self) -> SegmentScans,
    ) -> (Option<WalChecked>, PersistenceResult<LogEnd>) {
        Self::run_requiring(directory, Requirements::default(), scan_all)
    }

    /// [`run`](Self::run), of a log of which checkpoints require something: the verdict is that of a recovery which
    /// knows them.
    pub fn run_requiring(
        directory: &Arc<D>,
        requirements: Requirements,
        mut scan_all: impl FnMut(&Self) -> SegmentScans,
    ) -> (Option<WalChecked>, PersistenceResult<LogEnd>) {
        for attempt in 0.. {
            let check = match Self::begin(Arc::clone(directory)) {
                Ok(check) => Self { requirements: requirements.clone(), ..check },
                Err(error) => return (None, Err(error)),
            };
            let scans = scan_all(&check);
            let kept: Vec<Option<SegmentScan>> =
                scans.iter().map(|scan| scan.as_ref().ok().cloned()).collect();
            let end = check.conclude(scans);
            if attempt >= READER_RETRIES_MAX || !walk::is_overtaken(directory.as_ref(), &check.chain, &end) {
                return (Some(WalChecked { chain: check.chain, scans: kept }), end);
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// How many segments the log has.
    pub fn segments(&self) -> usize {
        self.chain.segments.len()
    }

    /// Bytes of the files of all segments.
    pub fn file_bytes(&self) -> u64 {
        self.chain.segments.iter().map(|segment| segment.file_bytes).sum()
    }

    /// Reads a segment. `progress` is told how many more bytes were read, frame by frame.
    pub fn scan(&self, index: usize, progress: &mut dyn FnMut(u64)) -> PersistenceResult<SegmentScan> {
        let segment = &self.chain.segments[index];
        let known_end = self.chain.segments.get(index + 1).map(Started::predecessor_end);
        let file = self.directory.open_at(&segment.path)?;
        let mut reader = FrameReader::new(file, &segment.path, &segment.header, known_end)?;
        let mut told = 0;
        while let Some(frame) = reader.next_frame()? {
            progress(frame.offset.saturating_sub(told));
            told = told.max(frame.offset);
        }
        progress(segment.file_bytes.saturating_sub(told));
        Ok(SegmentScan { end: reader.into_end() })
    }

    /// Reads every segment, one after the other.
    pub fn scan_all(&self) -> SegmentScans {
        (0..self.segments()).map(|index| self.scan(index, &mut |_| {})).collect()
    }

    fn conclude(&self, scans: SegmentScans) -> PersistenceResult<LogEnd> {
        match self.chain.find(1) {
            // Truncated: the log is what is left.
            Ok(_) | Err(PersistenceError::PrefixUnavailable { .. }) => {}
            Err(error) => return Err(error),
        }
        let ends = scans.into_iter().map(|scan| scan.map(|scan| scan.end));
        walk::conclude_scans(self.directory.as_ref(), &self.chain, &self.requirements, ends)
    }
}

/// The segments of a log, and what was read of each.
#[derive(Clone, Debug)]
pub struct WalChecked {
    pub(crate) chain: Chain,
    /// In the order of the segments; `None` where a file could not be read.
    pub(crate) scans: Vec<Option<SegmentScan>>,
}

impl WalChecked {
    /// How many segments the log has.
    pub fn segments(&self) -> usize {
        self.chain.segments.len()
    }

    /// The log's identity, where it has one.
    pub fn identity(&self) -> Option<u128> {
        self.chain.identity
    }

    /// Id of the first entry that is there, or of the one that comes first; `None` without a segment.
    pub fn first_entry_id(&self) -> Option<u64> {
        self.chain.segments.first().map(|first| first.first_entry_id)
    }
}
