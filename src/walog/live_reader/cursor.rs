//! Entries of a live log, one after the other, from wherever each of them is at the moment.
//!
//! Lives here: going from memory to files and from segment to segment, beside a writer that commits, rotates,
//! truncates and recycles. Not here: which segment holds what (`shelf`), what is in memory (`committer`).
//!
//! Invariants: what is handed out is a run of ids without a gap; an entry comes from memory or from a frame that
//! checked out; what the writer has written and cannot be read is an error, never an end.
//!
//! Memory: the entries of one frame, or 64 KiB of them from memory, and the window of one file.

use super::shelf::{Located, Shelf};
use crate::error::{Corruption, PersistenceError, PersistenceResult, Proof};
use crate::formats::frame::{FrameKind, split_entry};
use crate::formats::scan::{self, OutsideAttestation, ScanEnd, Verdict};
use crate::framing::{FrameReader, Peek};
use crate::limits::{POINT_READ_BYTES, READ_CHUNK_BYTES, READER_RETRIES_MAX};
use crate::planted;
use crate::storage::Directory;
use crate::walog::committer::{Committer, Fetched, Written};
use std::sync::Arc;

/// Reads entries in order.
pub(super) struct Cursor<D: Directory + ?Sized> {
    committer: Arc<Committer<D>>,
    shelf: Arc<Shelf<D>>,
    next: u64,
    last: u64,
    /// What was durable when the entries in `block` were looked for.
    durable_entry_id: u64,
    /// Entries from `next` on, each behind its length; read up to `block_at`.
    block: Vec<u8>,
    block_at: usize,
    peek: Peek,
    open: Option<Open>,
    /// A reading of the catalogue that led nowhere.
    doubted: Option<u64>,
    failures: usize,
}

/// The segment that is being read.
struct Open {
    reader: FrameReader,
    located: Located,
    written: Written,
}

impl<D: Directory + ?Sized> Cursor<D> {
    /// Of the entries from `first` on, through `last`. Those that are not appended yet end it.
    pub fn new(committer: &Arc<Committer<D>>, shelf: &Arc<Shelf<D>>, first: u64, last: u64) -> Self {
        Self {
            committer: Arc::clone(committer),
            shelf: Arc::clone(shelf),
            next: first.max(1),
            last,
            durable_entry_id: 0,
            block: Vec::new(),
            block_at: 0,
            peek: Peek::default(),
            open: None,
            doubted: None,
            failures: 0,
        }
    }

    /// The entry that comes next.
    pub fn next_entry_id(&self) -> u64 {
        self.next
    }

    /// What was durable when the entries that were handed out last were looked for.
    pub fn durable_entry_id(&self) -> u64 {
        self.durable_entry_id
    }

    /// The next entry; `None` at the end.
    pub fn next_entry(&mut self) -> PersistenceResult<Option<(u64, &[u8])>> {
        while self.block_at == self.block.len() {
            if self.next > self.last || !self.fill()? {
                return Ok(None);
            }
        }
        let rest = &self.block[self.block_at..];
        let Some((entry, behind)) = split_entry(rest) else {
            return Err(PersistenceError::invalid_state("reading the log", "a block is not made of entries"));
        };
        let entry_id = self.next;
        self.next += 1;
        self.block_at += rest.len() - behind.len();
        Ok(Some((entry_id, entry)))
    }

    /// Puts the next entries into the block; `false` where there are none. May leave it empty: call it again.
    fn fill(&mut self) -> PersistenceResult<bool> {
        self.block.clear();
        self.block_at = 0;
        if self.open.as_ref().is_some_and(|open| self.next <= open.written.flushed_entry_id) {
            self.read_frame()?;
            return Ok(true);
        }
        let wanted = self.next..=self.last;
        let (fetched, durable) = self.committer.fetch(wanted, &mut self.peek, &mut self.block);
        self.durable_entry_id = durable;
        match fetched {
            Fetched::Copied => self.open = None,
            Fetched::Beyond => return Ok(false),
            Fetched::InFlight if planted::on("reader_misses_what_is_in_flight") => return Ok(false),
            Fetched::InFlight => self.committer.wait_in_flight(self.next)?,
            // Also where one is open: it may have been smaller when it was opened.
            Fetched::Written(written) => self.open_segment(written)?,
        }
        Ok(true)
    }

    /// Opens the segment that holds the next entry.
    fn open_segment(&mut self, written: Written) -> PersistenceResult<()> {
        self.open = None;
        let located = self.shelf.locate(self.next, written.segments_entered, self.doubted.take())?;
        let chunk_bytes = if self.next == self.last { POINT_READ_BYTES } else { READ_CHUNK_BYTES };
        let segment = &located.segment;
        let opened = self.shelf.directory().open_at(&segment.path).and_then(|file| match located.mark {
            Some(mark) => FrameReader::resume(
                file,
                &segment.path,
                &segment.header,
                located.known_end,
                mark,
                chunk_bytes,
            ),
            None => FrameReader::new(file, &segment.path, &segment.header, located.known_end),
        });
        match opened {
            Ok(reader) => self.open = Some(Open { reader, located, written }),
            Err(error) => self.look_anew(located.reading, error)?,
        }
        Ok(())
    }

    /// Copies the next entries of the open segment's next frame.
    fn read_frame(&mut self) -> PersistenceResult<()> {
        #[cfg(durability_planted)]
        let committer = Arc::clone(&self.committer);
        #[cfg(durability_planted)]
        let _held = planted::on("reader_holds_up_commits").then(|| committer.hold());
        let Some(open) = &mut self.open else { return Ok(()) };
        let frame = match open.reader.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => return self.end_segment(),
            Err(error) => {
                let reading = open.located.reading;
                self.open = None;
                return self.look_anew(reading, error);
            }
        };
        if frame.header.kind != FrameKind::Data {
            return Ok(());
        }
        let first_entry_id = frame.header.first_entry_id;
        self.shelf.mark(open.located.segment.id, frame.offset, first_entry_id);
        if frame.header.next_entry_id() <= self.next {
            return Ok(());
        }
        let (mut from, mut entry_id) = (frame.payload, first_entry_id);
        while entry_id < self.next {
            let Some((_, behind)) = split_entry(from) else { break };
            (from, entry_id) = (behind, entry_id + 1);
        }
        let mut rest = from;
        if frame.header.next_entry_id() - 1 > self.last {
            while entry_id <= self.last {
                let Some((_, behind)) = split_entry(rest) else { break };
                (rest, entry_id) = (behind, entry_id + 1);
            }
        } else {
            rest = &[];
        }
        self.block.extend_from_slice(&from[..from.len() - rest.len()]);
        self.failures = 0;
        Ok(())
    }

    /// The open segment has no more frames: the log goes on in the next one, or something is missing.
    fn end_segment(&mut self) -> PersistenceResult<()> {
        let Some(Open { reader, located, written }) = self.open.take() else { return Ok(()) };
        let end = reader.into_end();
        if located.known_end.is_some_and(|known| self.next > known.last_entry_id) {
            return Ok(());
        }
        let error = self.missing(&end, &located, written);
        self.look_anew(located.reading, error)
    }

    /// Something does not read as the catalogue says. Truncation and recycling may have taken it away meanwhile,
    /// which the catalogue tells when it is read again; when that changes nothing, the error stands.
    fn look_anew(&mut self, reading: u64, error: PersistenceError) -> PersistenceResult<()> {
        if error.is_corruption() && planted::on("reader_takes_damage_for_end") {
            self.last = 0;
            return Ok(());
        }
        let is_race = error.is_not_found() || error.is_corruption();
        self.failures += 1;
        if !is_race || self.failures > READER_RETRIES_MAX || planted::on("reader_never_looks_anew") {
            return Err(error);
        }
        // Damage is looked at twice. A segment that is gone is so for good, the log begins later.
        if error.is_corruption() && self.failures > 2 {
            return Err(error);
        }
        self.doubted = Some(reading);
        Ok(())
    }

    /// The writer has written the next entry, and its segment ends before it.
    fn missing(&self, end: &ScanEnd, located: &Located, written: Written) -> PersistenceError {
        if let (Err(poisoned), true) =
            (self.committer.check_poison(), self.next > self.committer.durable_entry_id())
        {
            // After a failed write or sync the system may have dropped what it was given.
            return poisoned;
        }
        let segment = &located.segment;
        let last_entry_id = self.next - 1;
        let entry_id = written.flushed_entry_id;
        let outside = OutsideAttestation { entry_id, proof: Proof::WrittenByWriter { entry_id } };
        let zeroed = segment.header.previous_salt == 0;
        let (path, offset, entry_id) = (segment.path.clone(), end.offset, self.next);
        match scan::judge(end, last_entry_id, zeroed, Some(&outside), &path) {
            Verdict::Corrupt(check, proof) => Corruption { path, offset, entry_id, check, proof }.into(),
            // More is attested than was found, so this is no verdict; but an end it is not.
            Verdict::Clean | Verdict::Torn(_) => {
                PersistenceError::invalid_state("reading the log", format!("entry {entry_id} was not found"))
            }
        }
    }
}
