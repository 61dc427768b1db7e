//! How the segment that is being written gets more space, or the log goes on in the next one instead.
//!
//! Not here: how a segment begins (`making`), and when a frame needs another one (`appender`).
//!
//! Invariants: a frame is only written where space for it, and for the seals behind it, was asked for; what was
//! written is never written over, zeros begin behind the last frame.

use super::{Appender, Current};
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::FrameSink;
use crate::limits::{RESERVE_BYTES_MIN, ZERO_FILL_BYTES};
use crate::planted;
use crate::storage::{Commit, CommitBuffer, Directory, Effect, reserve_at_least};
use std::ops::Range;

impl<D: Directory + ?Sized> Appender<D> {
    /// Makes sure of a segment that a frame of `frame_bytes` may go into, and of space for it there; and asks for
    /// `spare_bytes` more where there is too little.
    pub(crate) fn make_room_for(&mut self, frame_bytes: u64, spare_bytes: u64) -> PersistenceResult<()> {
        self.check()?;
        if planted::on("batch_must_fit_segment") && frame_bytes > self.options.segment_bytes_max {
            return Err(PersistenceError::invalid_config("payloads", "larger than a segment"));
        }
        if self.needs_segment(frame_bytes) {
            self.finish_writes()?;
            match self.current {
                Some(_) => self.rotate()?,
                None => self.first_segment()?,
            }
        }
        if !self.needs_growth(frame_bytes) {
            return Ok(());
        }
        self.finish_writes()?;
        match self.grow(frame_bytes, spare_bytes) {
            // What there was may be with the next one.
            Err(error) if error.is_out_of_space() && self.next_is_begun() => {
                self.rotate()?;
                if self.needs_growth(frame_bytes) { self.grow(frame_bytes, spare_bytes) } else { Ok(()) }
            }
            grown => grown,
        }
    }

    /// Whether a frame of `frame_bytes`, and the seals behind it, reach beyond what the current segment has.
    pub(super) fn needs_growth(&self, frame_bytes: u64) -> bool {
        let around = self.control_bytes() + self.filler_bytes(frame_bytes);
        let needed = |current: &Current| current.offset + frame_bytes + around;
        self.current.as_ref().is_some_and(|current| needed(current) > current.reserved)
    }

    /// Whether the next segment is there, ready to be gone on in.
    pub(super) fn next_is_ready(&self) -> bool {
        self.may_go_on() && self.pool.is_ready() && !planted::on("grow_beside_ready")
    }

    /// Whether the next segment, which this one could do without, has its space already.
    pub(super) fn next_is_begun(&self) -> bool {
        let is_sound = !self.latch.is_tripped() && !planted::on("grow_beside_begun");
        self.may_go_on() && is_sound && self.pool.is_begun()
    }

    /// Whether somebody makes the next segment, and the current one holds something.
    fn may_go_on(&self) -> bool {
        let has_begun = self.current.as_ref().is_some_and(|current| current.opening.is_none());
        has_begun && self.helper.works()
    }

    /// Asks for space for a frame of `frame_bytes` and the seals behind it, so that running out of space is met
    /// before anything of the frame is written. Nothing is in flight.
    fn grow(&mut self, frame_bytes: u64, spare_bytes: u64) -> PersistenceResult<()> {
        let (around, is_streaming) =
            (self.control_bytes() + self.filler_bytes(frame_bytes), self.is_streaming());
        let cap = self.options.segment_bytes_max.saturating_add(around);
        let Some(current) = &mut self.current else { return Ok(()) };
        let needed = current.offset + frame_bytes + around;
        let filled = self.options.zero_filled_bytes();
        let step = if is_streaming { current.reserved } else { filled.max(RESERVE_BYTES_MIN) };
        let end = needed.max(current.reserved.saturating_add(step).min(cap));
        let wanted = end.max(needed.saturating_add(spare_bytes)).max(RESERVE_BYTES_MIN);
        let reserved = reserve_at_least(current.file.as_ref(), needed, wanted)?;
        if reserved < wanted {
            current.reserved = reserved;
            return Ok(());
        }
        // What is only asked for costs each commit into it an entry in the file system's journal. The rest of a segment
        // that is nearly full is not worth it.
        let pays = !is_streaming && cap.saturating_sub(current.reserved) >= filled;
        let zeros = current.reserved..end;
        current.reserved = wanted;
        if pays && !planted::on("grow_without_zeros") { self.zero_fill(zeros) } else { Ok(()) }
    }

    /// Overwrites what was asked for with zeros, which the next commit makes durable.
    ///
    /// A device that is full meets this only where space cannot be asked for, and then it poisons, although nothing of
    /// a frame was written: a file that has failed a write takes no other, so what it holds can neither be synced
    /// nor sealed, and the log cannot go on, in it or behind it. A frame would have met the same there.
    fn zero_fill(&self, grown: Range<u64>) -> PersistenceResult<()> {
        let Some(current) = &self.current else { return Ok(()) };
        let holds_frames = grown.start < current.offset && !planted::on("room_is_asked_for_once");
        assert!(!holds_frames, "zeros at {} over frames up to {}", grown.start, current.offset);
        let alignment = u64::from(self.options.frame_alignment);
        let (mut from, to) = (grown.start.div_ceil(alignment) * alignment, grown.end / alignment * alignment);
        let mut buffer = CommitBuffer::new();
        while from < to {
            let bytes = (to - from).min(ZERO_FILL_BYTES as u64) as usize;
            if buffer.len() < bytes {
                buffer = CommitBuffer::with_capacity(bytes);
                buffer.resize(bytes, 0);
            }
            let commit = Commit { id: 0, offset: from, buffer, range: 0..bytes, effect: Effect::Flushed };
            let (result, back) = current.file.commit(commit);
            result.map_err(|error| self.latch.trip(error))?;
            buffer = back.unwrap_or_default();
            from += bytes as u64;
        }
        Ok(())
    }
}
