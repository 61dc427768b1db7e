//! The one scanner, and the one place that tells a torn tail from corruption.
//!
//! [`Scanner`] is sans-io: it is shown windows of a file and answers with the next frame, with the bytes
//! that it needs to see, or with the end. At the first frame that does not check out it goes on through
//! the rest of the file and collects evidence; [`judge`] turns that into a [`Verdict`] by the table of
//! `docs/guarantees.md`. Time is linear in the bytes shown: behind the first bad frame only headers are
//! checked, never payloads, so lengths that look plausible everywhere cost nothing.

use super::frame::{
    FrameHeader, FrameHeaderState, FrameKind, FrameSeed, KIND_AT, Opening, Seal, SealReason,
    count_zero_sectors, decode_header, entries_tile,
};
use super::header::{FileKind, Header};
use super::is_zero;
use super::layout::{FRAME_HEADER_BYTES, OPENING_BYTES};
use crate::limits::SECTOR_BYTES;
use crate::planted;
use std::collections::VecDeque;

mod judge;
mod view;

pub use judge::{OutsideAttestation, Verdict, judge, judge_alone};
use view::View;

/// Where a file is known to end, by the opening frame of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownEnd {
    /// What stands behind this offset was cut.
    pub offset: u64,
    /// The last entry before it.
    pub last_entry_id: u64,
}

/// What the next step of a scan is.
#[derive(Debug)]
pub enum Step<'w> {
    /// Show a window that covers these bytes.
    Need {
        /// Offset in the file.
        offset: u64,
        /// How many bytes from there.
        bytes: usize,
    },
    /// A frame that checks out.
    Frame {
        /// Its offset in the file.
        offset: u64,
        /// Its header.
        header: FrameHeader,
        /// Its payload, without padding.
        payload: &'w [u8],
    },
    /// The scan is over; [`Scanner::into_end`] tells how.
    End,
}

/// The durable watermark that something attests, and where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attestation {
    /// Everything up to here was durable.
    pub durable_entry_id: u64,
    /// Offset of the frame that says so.
    pub offset: u64,
}

impl Attestation {
    fn raise(&mut self, durable_entry_id: u64, offset: u64) {
        if durable_entry_id > self.durable_entry_id && !planted::on("ignore_attestation") {
            *self = Self { durable_entry_id, offset };
        }
    }
}

/// Why no frame follows the last good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// The file (or its part that counts) ends exactly there, or only zeros follow.
    None,
    /// The header's place holds zeros.
    Unwritten,
    /// The header's place holds something else than a header.
    Header,
    /// The frame reaches past the end of the file.
    PastFileEnd {
        /// Bytes that it needs.
        bytes_needed: u64,
        /// Bytes that are there.
        bytes: u64,
    },
    /// The payload does not match its checksum.
    Payload {
        /// Stated checksum.
        expected: u32,
        /// Checksum of the bytes that are there.
        found: u32,
        /// Sectors that are zero now and were not when they were written.
        old_sectors: u64,
    },
    /// It checks out, and says what cannot be.
    Contents(&'static str),
    /// It checks out, and does not continue the ids before it.
    Order {
        /// The id that comes next.
        expected: u64,
        /// The id that it states.
        found: u64,
    },
}

/// How a scan ended.
#[derive(Clone, Debug)]
pub struct ScanEnd {
    /// What the file is.
    pub kind: FileKind,
    /// Where the last good frame ends.
    pub offset: u64,
    /// Where the last good frame ends that is no seal. What follows a log must not rest on a seal: when its
    /// sync failed, it may be readable now and gone after the next power cut.
    pub content_offset: u64,
    /// Where the file's frames could reach: its size, or its known end.
    pub limit: u64,
    /// Id of the entry that comes next; `None` when no frame said so.
    pub next_entry_id: Option<u64>,
    /// Good frames.
    pub frames: u64,
    /// Entries in them.
    pub entries: u64,
    /// The opening frame of the file.
    pub opening: Option<Opening>,
    /// The last seal, where it is the last good frame.
    pub seal: Option<Seal>,
    /// The highest watermark that anything in the file attests.
    pub attested: Attestation,
    /// The highest entry id that any header that checks out states, whatever becomes of its frame.
    pub stated_entry_id: u64,
    /// What stands at `offset`.
    pub bad: BadFrame,
    /// Headers that check out behind it.
    pub later_frames: u64,
    /// Whether bytes that are neither zero nor a header follow.
    pub trailing_bytes: bool,
    /// A frame boundary from which on everything that nothing attests stands; `None` when all is attested.
    pub unproven_offset: Option<u64>,
    /// Whether the scan was bounded by a known end.
    pub known_end: Option<KnownEnd>,
    /// Torn regions inside a record log that a later opening had cut.
    pub cuts: u64,
}

impl ScanEnd {
    /// The last entry before the end; `None` when no frame was good.
    pub fn last_entry_id(&self) -> Option<u64> {
        self.next_entry_id.map(|next| next - 1)
    }
}

/// A scan of one file. See the module's documentation.
#[derive(Debug)]
pub struct Scanner {
    alignment: u32,
    seed: FrameSeed,
    state: State,
    boundaries: VecDeque<Boundary>,
    end: ScanEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Frames,
    /// Looking for evidence from this offset on.
    Evidence(u64),
    Done,
}

/// A frame boundary, remembered coarsely, so that what is not attested can be written again.
#[derive(Clone, Copy, Debug)]
struct Boundary {
    offset: u64,
    last_entry_id: u64,
}

/// Boundaries closer than this are not told apart: writing a little more again is harmless.
const BOUNDARY_BYTES: u64 = 64 << 10;

impl Scanner {
    /// A scan of a file with this header and size, bounded where its end is known.
    pub fn new(header: &Header, file_bytes: u64, known_end: Option<KnownEnd>) -> Self {
        let offset = header.first_frame_offset();
        let known_end = known_end.filter(|_| !planted::on("ignore_known_end"));
        let limit = known_end.map_or(file_bytes, |end| end.offset.min(file_bytes));
        Self {
            alignment: header.frame_alignment,
            seed: FrameSeed::new(header.salt),
            state: State::Frames,
            boundaries: VecDeque::new(),
            end: ScanEnd {
                kind: header.kind,
                offset,
                content_offset: offset,
                limit,
                next_entry_id: None,
                frames: 0,
                entries: 0,
                opening: None,
                seal: None,
                attested: Attestation::default(),
                stated_entry_id: 0,
                bad: BadFrame::None,
                later_frames: 0,
                trailing_bytes: false,
                unproven_offset: None,
                known_end,
                cuts: 0,
            },
        }
    }

    /// A scan that only looks for what a file attests, without checking payloads.
    pub fn evidence_only(header: &Header, file_bytes: u64) -> Self {
        let mut scanner = Self::new(header, file_bytes, None);
        scanner.state = State::Evidence(scanner.end.offset);
        scanner
    }

    /// How the scan ended; meaningful after [`Step::End`].
    pub fn into_end(self) -> ScanEnd {
        self.end
    }

    /// A scan that goes on behind a frame boundary (offset, next entry id) that an earlier scan reached.
    pub fn resume(header: &Header, file_bytes: u64, end: Option<KnownEnd>, from: (u64, u64)) -> Self {
        let (mut scanner, (offset, next_entry_id)) = (Self::new(header, file_bytes, end), from);
        scanner.end.offset = offset;
        scanner.end.content_offset = offset;
        scanner.end.next_entry_id = Some(next_entry_id);
        // Whatever stands there, it is not the file's first frame.
        scanner.end.frames = 1;
        scanner
    }

    /// How the scan stands.
    pub fn end(&self) -> &ScanEnd {
        &self.end
    }

    /// Looks once more at the place where the last good frame ends, in a file that may have grown. What was
    /// found attested stays. Behind a final seal nothing is looked for again: nobody goes on there.
    pub fn retry(&mut self, file_bytes: u64, known_end: Option<KnownEnd>) {
        if self.is_sealed() && !planted::on("retry_passes_final_seal") {
            return;
        }
        self.end.limit = known_end.map_or(file_bytes, |end| end.offset.min(file_bytes));
        self.end.bad = BadFrame::None;
        self.end.later_frames = 0;
        self.end.trailing_bytes = false;
        self.state = State::Frames;
    }

    /// Goes on, with a window of the file that starts at `window_offset`.
    #[inline]
    pub fn step<'w>(&mut self, window_offset: u64, window: &'w [u8]) -> Step<'w> {
        let view = View { offset: window_offset, bytes: window };
        loop {
            let step = match self.state {
                State::Frames => self.next_frame(view),
                State::Evidence(from) => self.next_evidence(from, view),
                State::Done => return Step::End,
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// [`step`](Self::step) for a file that is being written: ends at the first frame that is not there yet,
    /// without looking at what is behind it. [`retry`](Self::retry) goes on.
    pub fn step_live<'w>(&mut self, window_offset: u64, window: &'w [u8]) -> Step<'w> {
        let view = View { offset: window_offset, bytes: window };
        match self.state {
            State::Frames => self.next_frame(view).unwrap_or(Step::End),
            State::Evidence(_) | State::Done => Step::End,
        }
    }

    #[inline]
    fn next_frame<'w>(&mut self, view: View<'w>) -> Option<Step<'w>> {
        let offset = self.end.offset;
        if offset >= self.end.limit {
            return self.finish(BadFrame::None);
        }
        let available = self.end.limit - offset;
        if available < FRAME_HEADER_BYTES as u64 {
            let rest = match view.get(offset, available) {
                Ok(rest) => rest,
                Err(need) => return Some(need),
            };
            let bad = if is_zero(rest) {
                BadFrame::None
            } else {
                BadFrame::PastFileEnd { bytes_needed: self.alignment.into(), bytes: available }
            };
            return self.finish(bad);
        }
        let bytes = match view.get(offset, FRAME_HEADER_BYTES as u64) {
            Ok(bytes) => bytes,
            Err(need) => return Some(need),
        };
        match decode_header(bytes, offset, self.seed) {
            FrameHeaderState::Good(header) => self.check_frame(offset, available, header, view),
            FrameHeaderState::Impossible(what) => {
                self.collect(BadFrame::Contents(what), offset + u64::from(self.alignment))
            }
            FrameHeaderState::Bad => {
                let unit = u64::from(self.alignment).min(available);
                let bytes = match view.get(offset, unit) {
                    Ok(bytes) => bytes,
                    Err(need) => return Some(need),
                };
                // The header's sector may be lost alone, whatever the rest of the frame's first block holds.
                let together =
                    if planted::on("header_block_is_a_sector") { bytes.len() } else { SECTOR_BYTES };
                let (first, rest) = bytes.split_at(together.min(bytes.len()));
                self.end.trailing_bytes |= !is_zero(rest);
                let bad = if is_zero(first) { BadFrame::Unwritten } else { BadFrame::Header };
                self.collect(bad, offset + unit)
            }
        }
    }

    /// A frame whose header checks out: its place, its payload, its contents, its order.
    #[inline]
    fn check_frame<'w>(
        &mut self,
        offset: u64,
        available: u64,
        header: FrameHeader,
        view: View<'w>,
    ) -> Option<Step<'w>> {
        let bytes_needed = header.frame_bytes(self.alignment);
        let next = offset + bytes_needed;
        self.end.stated_entry_id = self.end.stated_entry_id.max(header.next_entry_id() - 1);
        if bytes_needed > available {
            self.end.attested.raise(header.durable_entry_id, offset);
            let bad = match self.end.known_end {
                Some(_) => BadFrame::Contents("it reaches past the end that its successor states"),
                None => BadFrame::PastFileEnd { bytes_needed, bytes: available },
            };
            return self.collect(bad, self.end.limit);
        }
        let frame = match view.get(offset, bytes_needed) {
            Ok(frame) => frame,
            Err(need) => return Some(need),
        };
        let found = self.seed.payload_crc(&frame[FRAME_HEADER_BYTES..]);
        self.end.attested.raise(header.durable_entry_id, offset);
        let unchecked = planted::on("skip_checkpoint_crc") && self.end.kind == FileKind::Checkpoint;
        if found != header.payload_crc && !unchecked {
            let zeros_written = if planted::on("skip_zero_sectors") { 0 } else { header.zero_sectors };
            let old_sectors = u64::from(count_zero_sectors(frame).saturating_sub(zeros_written));
            return self
                .collect(BadFrame::Payload { expected: header.payload_crc, found, old_sectors }, next);
        }
        if let Some(expected) = self.end.next_entry_id.filter(|expected| *expected != header.first_entry_id) {
            return self.collect(BadFrame::Order { expected, found: header.first_entry_id }, next);
        }
        match self.cut_by_next(offset, next, &header, view) {
            Ok(false) => {}
            Ok(true) => return self.collect(BadFrame::Unwritten, next),
            Err(need) => return Some(need),
        }
        let payload = &frame[FRAME_HEADER_BYTES..][..header.payload_bytes as usize];
        if let Err(what) = self.take_contents(offset, &header, payload) {
            return self.collect(BadFrame::Contents(what), next);
        }
        self.advance(offset, next, &header);
        Some(Step::Frame { offset, header, payload })
    }

    /// Whether an opening right behind this frame of a record log says that the log ended before it: the
    /// frame's last bytes were missing then, and are zeros, as the missing ones were, since the log went on.
    #[inline]
    fn cut_by_next<'w>(
        &self,
        offset: u64,
        next: u64,
        header: &FrameHeader,
        view: View<'w>,
    ) -> Result<bool, Step<'w>> {
        let unit = u64::from(self.alignment);
        if self.end.kind != FileKind::RecordLog || self.end.limit - next < unit || planted::on("ignore_cut") {
            return Ok(false);
        }
        let bytes = &view.get(offset, next - offset + unit)?[(next - offset) as usize..];
        if bytes[KIND_AT] != FrameKind::Opening.code() {
            return Ok(false);
        }
        let FrameHeaderState::Good(behind) = decode_header(bytes, next, self.seed) else { return Ok(false) };
        let payload = &bytes[FRAME_HEADER_BYTES..];
        let whole = behind.frame_bytes(self.alignment) == unit
            && self.seed.payload_crc(payload) == behind.payload_crc
            && header.kind != FrameKind::Seal;
        let opening = Opening::decode(&payload[..(behind.payload_bytes as usize).min(payload.len())]);
        Ok(whole
            && behind.first_entry_id == header.first_entry_id
            && opening.is_some_and(|opening| opening.predecessor_end <= offset))
    }

    /// What only this kind of frame says. Changes nothing unless it is possible.
    #[inline]
    fn take_contents(
        &mut self,
        offset: u64,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), &'static str> {
        let first = self.end.frames == 0;
        if first && self.end.kind != FileKind::Checkpoint && header.kind != FrameKind::Opening {
            return Err("the file's first frame is no opening");
        }
        match header.kind {
            FrameKind::Data if !entries_tile(payload, header.entry_count) => {
                Err("entries do not fill the payload")
            }
            FrameKind::Data => {
                self.end.seal = None;
                Ok(())
            }
            FrameKind::Opening => {
                let opening = Opening::decode(payload).ok_or("an opening of another size")?;
                if opening.predecessor_last_entry_id.checked_add(1) != Some(header.first_entry_id) {
                    return Err("an opening that contradicts itself");
                }
                let ends = [self.end.content_offset, offset];
                let continues =
                    self.end.kind == FileKind::RecordLog && ends.contains(&opening.predecessor_end);
                if !first && !continues {
                    return Err("an opening that does not continue what is before it");
                }
                if first {
                    self.end.opening = Some(opening);
                }
                self.end.seal = None;
                Ok(())
            }
            FrameKind::Seal => {
                self.end.seal = Some(Seal::decode(payload).ok_or("a seal that says nothing")?);
                Ok(())
            }
        }
    }

    #[inline]
    fn advance(&mut self, offset: u64, next: u64, header: &FrameHeader) {
        // An opening is known to be durable only with the first entry behind it.
        let last_entry_id = header.next_entry_id()
            - u64::from(header.kind != FrameKind::Opening || planted::on("opening_counts_as_proven"));
        let durable = self.end.attested.durable_entry_id;
        while self.boundaries.len() > 1 && self.boundaries[0].last_entry_id <= durable {
            self.boundaries.pop_front();
        }
        match self.boundaries.back_mut() {
            Some(back) if back.last_entry_id > durable && offset - back.offset < BOUNDARY_BYTES => {
                back.last_entry_id = last_entry_id;
            }
            Some(back) if back.last_entry_id <= durable => *back = Boundary { offset, last_entry_id },
            _ => self.boundaries.push_back(Boundary { offset, last_entry_id }),
        }
        self.end.offset = next;
        if header.kind != FrameKind::Seal {
            self.end.content_offset = next;
        }
        self.end.next_entry_id = Some(header.next_entry_id());
        self.end.frames += 1;
        self.end.entries += u64::from(header.entry_count);
        if self.is_sealed() {
            self.finish(BadFrame::None);
        }
    }

    /// Whether the last good frame is a seal with which its file ends. A record log goes on behind each.
    fn is_sealed(&self) -> bool {
        let sealed = self.end.seal.is_some_and(|seal| seal.reason != SealReason::Idle);
        sealed && self.end.kind != FileKind::RecordLog
    }

    /// The frame at the end's offset is bad: collect evidence from `from` on, the end of the frame as far as
    /// that is known.
    fn collect<'w>(&mut self, bad: BadFrame, from: u64) -> Option<Step<'w>> {
        self.end.bad = bad;
        // A record log goes on behind a torn frame's last *byte*, which may be inside of what the frame
        // claims.
        let inside = self.end.offset + u64::from(self.alignment);
        let from = if self.end.kind == FileKind::RecordLog { from.min(inside) } else { from };
        self.state = State::Evidence(from);
        None
    }

    fn next_evidence<'w>(&mut self, from: u64, view: View<'w>) -> Option<Step<'w>> {
        let mut from = from;
        let alignment = u64::from(self.alignment);
        loop {
            if from >= self.end.limit {
                return self.finish(self.end.bad);
            }
            let unit = alignment.min(self.end.limit - from);
            let bytes = match view.get(from, unit) {
                Ok(bytes) => bytes,
                Err(need) => {
                    self.state = State::Evidence(from);
                    return Some(need);
                }
            };
            // Preallocated tails are long and empty.
            let tail = view.tail(from, self.end.limit);
            let whole = tail.len() - tail.len() % self.alignment as usize;
            if whole > 0 && bytes[0] == 0 && is_zero(&tail[..whole]) {
                from += whole as u64;
                continue;
            }
            let state = if unit < FRAME_HEADER_BYTES as u64 {
                FrameHeaderState::Bad
            } else {
                decode_header(bytes, from, self.seed)
            };
            match state {
                FrameHeaderState::Good(header) => match self.reopened(from, &header, view) {
                    Reopened::Need(need) => {
                        self.state = State::Evidence(from);
                        return Some(need);
                    }
                    Reopened::Yes => return None,
                    Reopened::No => {
                        self.end.later_frames += 1;
                        self.end.attested.raise(header.durable_entry_id, from);
                        self.end.stated_entry_id = self.end.stated_entry_id.max(header.next_entry_id() - 1);
                        let claimed = header.frame_bytes(self.alignment);
                        from += if self.end.kind == FileKind::RecordLog { unit } else { claimed };
                    }
                },
                FrameHeaderState::Impossible(_) => {
                    self.end.later_frames += 1;
                    from += unit;
                }
                FrameHeaderState::Bad => {
                    self.end.trailing_bytes |= !is_zero(bytes);
                    from += unit;
                }
            }
        }
    }

    /// Whether this is the opening with which a record log went on behind a torn tail: then the tail was
    /// cut, and the scan continues here.
    fn reopened<'w>(&mut self, offset: u64, header: &FrameHeader, view: View<'w>) -> Reopened<'w> {
        if self.end.kind != FileKind::RecordLog || header.kind != FrameKind::Opening {
            return Reopened::No;
        }
        let bytes = header.frame_bytes(self.alignment);
        // No length is believed before what it spans is worth a look: openings have one size, or every place of
        // a forged tail would have all that follows it checksummed.
        let is_small = header.payload_bytes as usize == OPENING_BYTES || planted::on("evidence_reads_claims");
        if !is_small || offset + bytes > self.end.limit {
            return Reopened::No;
        }
        let frame = match view.get(offset, bytes) {
            Ok(frame) => frame,
            Err(need) => return Reopened::Need(need),
        };
        if self.seed.payload_crc(&frame[FRAME_HEADER_BYTES..]) != header.payload_crc {
            return Reopened::No;
        }
        let opening = Opening::decode(&frame[FRAME_HEADER_BYTES..][..header.payload_bytes as usize]);
        let next = self.end.next_entry_id.unwrap_or(1);
        let ends = [self.end.content_offset, self.end.offset];
        let continues = opening.is_some_and(|opening| ends.contains(&opening.predecessor_end));
        if !continues || header.first_entry_id != next || header.durable_entry_id >= next {
            return Reopened::No;
        }
        // The frames in between are dead, and so is what they attest: it is at most `next - 1`, or this
        // opening would not have been written.
        if self.end.attested.durable_entry_id >= next {
            return Reopened::No;
        }
        match self.cut_by_next(offset, offset + bytes, header, view) {
            Ok(false) => {}
            Ok(true) => return Reopened::No,
            Err(need) => return Reopened::Need(need),
        }
        self.end.opening = self.end.opening.or(opening);
        self.end.cuts += 1;
        self.end.bad = BadFrame::None;
        self.end.later_frames = 0;
        self.end.trailing_bytes = false;
        self.end.attested.raise(header.durable_entry_id, offset);
        self.end.seal = None;
        self.advance(offset, offset + bytes, header);
        self.state = State::Frames;
        Reopened::Yes
    }

    fn finish<'w>(&mut self, bad: BadFrame) -> Option<Step<'w>> {
        self.end.bad = match bad {
            BadFrame::Unwritten if self.end.later_frames == 0 && !self.end.trailing_bytes => BadFrame::None,
            bad => bad,
        };
        let durable = self.end.attested.durable_entry_id;
        self.end.unproven_offset = self
            .boundaries
            .iter()
            .find(|boundary| boundary.last_entry_id > durable)
            .map(|boundary| boundary.offset);
        self.state = State::Done;
        None
    }
}

enum Reopened<'w> {
    Yes,
    No,
    Need(Step<'w>),
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
