//! The scanner, driven over a file.

use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::{FrameHeader, FrameKind};
use crate::formats::header::{self, FileKind, Header, HeaderState};
use crate::formats::layout::HEADER_BYTES;
use crate::formats::scan::{BadFrame, KnownEnd, ScanEnd, Scanner, Step};
use crate::limits::READ_CHUNK_BYTES;
use crate::planted;
use crate::storage::ReadAt;
use std::ops::Range;

/// A frame that checked out; the payload is borrowed from the reader's window.
#[derive(Debug)]
pub struct Frame<'r> {
    /// Its offset in the file.
    pub offset: u64,
    /// Its header.
    pub header: FrameHeader,
    /// Its payload, without padding.
    pub payload: &'r [u8],
}

/// A file's header and size, as read.
#[derive(Debug)]
pub struct HeaderRead {
    /// What the header is.
    pub state: HeaderState,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
}

/// Reads the header of a file that should be of `kind`.
pub fn read_header(file: &dyn ReadAt, kind: FileKind) -> PersistenceResult<HeaderRead> {
    let file_bytes = file.size()?;
    let mut block = [0; HEADER_BYTES];
    let read = file.read_at(0, &mut block)?;
    Ok(HeaderRead { state: header::decode(kind, &block[..read]), file_bytes })
}

/// Reads the frames of one file, in order.
///
/// Memory: one window of [`READ_CHUNK_BYTES`], or of the largest frame where that is larger.
///
/// The file may be growing: where a frame does not check out, the reader looks again until two looks
/// agree, so that a writer's frame in the making is never taken for damage.
pub struct FrameReader {
    file: Box<dyn ReadAt>,
    path: String,
    scanner: Scanner,
    known_end: Option<KnownEnd>,
    file_bytes: u64,
    /// Of which the first `shown` bytes are the file's. It only grows, so that a read zeroes nothing.
    window: Vec<u8>,
    shown: usize,
    window_offset: u64,
    /// How much is read at once.
    chunk_bytes: usize,
    /// Where the last look ended, and what it found attested.
    last_look: Option<(u64, u64)>,
    finished: bool,
}

impl FrameReader {
    /// Reads the frames behind `header`, bounded where the file's end is known.
    pub fn new(
        file: Box<dyn ReadAt>,
        path: &str,
        header: &Header,
        known_end: Option<KnownEnd>,
    ) -> PersistenceResult<Self> {
        let file_bytes = file.size()?;
        let scanner = Scanner::new(header, file_bytes, known_end);
        Ok(Self::with_scanner(file, path, scanner, known_end, file_bytes))
    }

    /// Looks only for what the file attests; yields no frames.
    pub fn evidence_only(file: Box<dyn ReadAt>, path: &str, header: &Header) -> PersistenceResult<Self> {
        let file_bytes = file.size()?;
        let scanner = Scanner::evidence_only(header, file_bytes);
        let mut reader = Self::with_scanner(file, path, scanner, None, file_bytes);
        // There is nothing to look at twice: what attests, attests.
        reader.last_look = Some((u64::MAX, u64::MAX));
        Ok(reader)
    }

    /// Whether a good frame that is no seal follows a place that an earlier scan reached.
    pub fn continues(
        file: Box<dyn ReadAt>,
        path: &str,
        header: &Header,
        offset: u64,
        next_entry_id: u64,
    ) -> PersistenceResult<bool> {
        let from = (offset, next_entry_id);
        let mut reader = Self::resume(file, path, header, None, from, READ_CHUNK_BYTES)?;
        while let Some(frame) = reader.next_frame()? {
            if frame.header.kind != FrameKind::Seal {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads the frames behind a boundary that an earlier scan reached: its offset, and the entry with which the
    /// frame there begins. Reads `chunk_bytes` of the file at once.
    pub fn resume(
        file: Box<dyn ReadAt>,
        path: &str,
        header: &Header,
        known_end: Option<KnownEnd>,
        from: (u64, u64),
        chunk_bytes: usize,
    ) -> PersistenceResult<Self> {
        let file_bytes = file.size()?;
        let scanner = Scanner::resume(header, file_bytes, known_end, from);
        let reader = Self::with_scanner(file, path, scanner, known_end, file_bytes);
        Ok(Self { chunk_bytes, ..reader })
    }

    fn with_scanner(
        file: Box<dyn ReadAt>,
        path: &str,
        scanner: Scanner,
        known_end: Option<KnownEnd>,
        file_bytes: u64,
    ) -> Self {
        Self {
            file,
            path: path.to_owned(),
            scanner,
            known_end,
            file_bytes,
            window: Vec::new(),
            shown: 0,
            window_offset: 0,
            chunk_bytes: READ_CHUNK_BYTES,
            last_look: None,
            finished: false,
        }
    }

    /// The next frame, or `None` at the end of what checks out.
    #[inline]
    pub fn next_frame(&mut self) -> PersistenceResult<Option<Frame<'_>>> {
        let (offset, header, range) = loop {
            if self.finished {
                return Ok(None);
            }
            match self.scanner.step(self.window_offset, &self.window[..self.shown]) {
                Step::Need { offset, bytes } => match self.show(offset, bytes) {
                    Err(_) if planted::on("read_error_is_end") => self.finished = true,
                    shown => shown?,
                },
                Step::Frame { offset, header, payload } => {
                    let start =
                        (offset - self.window_offset) as usize + crate::formats::layout::FRAME_HEADER_BYTES;
                    break (offset, header, start..start + payload.len());
                }
                Step::End => self.look_again()?,
            }
        };
        let Range { start, end } = range;
        Ok(Some(Frame { offset, header, payload: &self.window[start..end] }))
    }

    /// [`next_frame`](Self::next_frame) for a file that is being written: `None` at the first frame that is
    /// not there yet, which a later call looks for again. Nothing is said about what stands there instead.
    pub fn next_live_frame(&mut self) -> PersistenceResult<Option<Frame<'_>>> {
        let mut looked_again = false;
        let (offset, header, range) = loop {
            match self.scanner.step_live(self.window_offset, &self.window[..self.shown]) {
                Step::Need { offset, bytes } => self.show(offset, bytes)?,
                Step::Frame { offset, header, payload } => {
                    let start =
                        (offset - self.window_offset) as usize + crate::formats::layout::FRAME_HEADER_BYTES;
                    break (offset, header, start..start + payload.len());
                }
                Step::End if looked_again => return Ok(None),
                Step::End => {
                    // What the window holds may be older than the file.
                    looked_again = true;
                    let file_bytes = self.file.size()?;
                    self.look_anew(file_bytes);
                }
            }
        };
        let Range { start, end } = range;
        Ok(Some(Frame { offset, header, payload: &self.window[start..end] }))
    }

    /// How the scan stands.
    pub fn end(&self) -> &ScanEnd {
        self.scanner.end()
    }

    /// How the file ends; call it after [`next_frame`](Self::next_frame) answered `None`.
    pub fn into_end(self) -> ScanEnd {
        debug_assert!(self.finished);
        self.scanner.into_end()
    }

    /// Path of the file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// At a bad end: look once more, until nothing changes. What a look saw attested was complete before
    /// the next look began, so a frame that is then still bad is bad for good.
    fn look_again(&mut self) -> PersistenceResult<()> {
        let end = self.scanner.end();
        let look = (end.offset, end.attested.durable_entry_id);
        let stable = end.bad == BadFrame::None
            || self.last_look.is_some_and(|last| last == look || last.0 == u64::MAX);
        if stable {
            self.finished = true;
            return Ok(());
        }
        self.last_look = Some(look);
        let file_bytes = self.file.size()?;
        self.look_anew(file_bytes);
        Ok(())
    }

    /// Goes back to where the last good frame ends, in a file that has another size now.
    fn look_anew(&mut self, file_bytes: u64) {
        self.file_bytes = file_bytes;
        self.shown = 0;
        self.scanner.retry(file_bytes, self.known_end);
    }

    /// Moves the window so that it covers `bytes` from `offset`, keeping what is still needed of it.
    fn show(&mut self, offset: u64, bytes: usize) -> PersistenceResult<()> {
        let end = self.window_offset + self.shown as u64;
        let keep = if offset >= self.window_offset && offset < end {
            (offset - self.window_offset) as usize
        } else {
            self.shown
        };
        self.window.copy_within(keep..self.shown, 0);
        let kept = self.shown - keep;
        self.window_offset = offset;
        self.shown = kept;
        let rest = usize::try_from(self.file_bytes - offset).unwrap_or(usize::MAX);
        let chunk_bytes = if planted::on("read_file_whole") { rest } else { self.chunk_bytes };
        let target = bytes.max(chunk_bytes).min(rest).max(kept);
        if self.window.is_empty() {
            // Fresh from the system it is zeros already.
            self.window = vec![0; target];
        } else if self.window.len() < target {
            self.window.resize(target, 0);
        }
        let read = self.file.read_at(offset + kept as u64, &mut self.window[kept..target])?;
        if kept + read < bytes {
            // A writer that closes cuts what it had preallocated and not used.
            let file_bytes = self.file.size()?;
            if file_bytes < self.file_bytes {
                self.look_anew(file_bytes);
                return Ok(());
            }
            let source = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(PersistenceError::io(
                "read",
                self.path.as_str(),
                Some(offset + (kept + read) as u64),
                source,
            ));
        }
        self.shown = kept + read;
        Ok(())
    }
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader")
            .field("path", &self.path)
            .field("scanner", &self.scanner)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::frame::{Opening, Seal, SealReason};
    use crate::framing::{Batch, Control, control_commit, header_commit};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A file whose zeros at the end are cut while it is read, as closing a log cuts what was preallocated.
    struct Cut {
        bytes: Vec<u8>,
        whole: u64,
        looks_left: AtomicU64,
    }

    impl ReadAt for Cut {
        fn size(&self) -> PersistenceResult<u64> {
            let left = self.looks_left.load(Ordering::Relaxed);
            self.looks_left.store(left.saturating_sub(1), Ordering::Relaxed);
            Ok(if left > 0 { self.whole } else { self.bytes.len() as u64 })
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
            let rest = self.bytes.get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_ends_where_it_was_cut() {
        let header = Header::new(FileKind::Segment, 512, 1, 9);
        let seed = crate::formats::frame::FrameSeed::new(9);
        let mut batch = Batch::new(512, 1, 0);
        batch.push(b"entry").expect("fits");
        let (data, range) = batch.finish(512, seed, 0, Some(&Opening::default()));
        let seal = Seal { reason: SealReason::Close, successor_id: 0, successor_salt: 0 };
        let seal = control_commit(Control::Seal(seal), 1536, seed, 512, 2, 1);
        let contents = [&header_commit(&header)[..], &data[range]].concat();
        for bytes in [contents.clone(), [&contents[..], &seal[..]].concat()] {
            let file = Cut { bytes, whole: 10 << 20, looks_left: AtomicU64::new(1) };
            let mut reader = FrameReader::new(Box::new(file), "wal/wal_1.log", &header, None).expect("opens");
            let mut entries = 0;
            while let Some(frame) = reader.next_frame().expect("nothing failed") {
                entries += frame.header.entry_count;
            }
            assert_eq!((entries, reader.into_end().bad), (1, BadFrame::None));
        }
    }

    /// A file of which more is there with each look at its size.
    struct Growing {
        bytes: Vec<u8>,
        there: AtomicU64,
    }

    impl ReadAt for Arc<Growing> {
        fn size(&self) -> PersistenceResult<u64> {
            Ok(self.there.load(Ordering::Relaxed))
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
            let there = self.there.load(Ordering::Relaxed) as usize;
            let rest = self.bytes[..there].get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    #[test]
    fn a_live_file_is_read_as_far_as_it_is_there_and_on_when_it_has_grown() {
        let header = Header::new(FileKind::Segment, 512, 1, 9);
        let seed = crate::formats::frame::FrameSeed::new(9);
        let mut bytes = header_commit(&header).to_vec();
        let mut ends = Vec::new();
        for entry_id in 1..=3 {
            let mut batch = Batch::new(512, entry_id, 0);
            batch.push(b"entry").expect("fits");
            let opening = (entry_id == 1).then(Opening::default);
            let (data, range) = batch.finish(bytes.len() as u64, seed, entry_id - 1, opening.as_ref());
            bytes.extend_from_slice(&data[range]);
            ends.push(bytes.len() as u64);
        }
        let file = Arc::new(Growing { bytes, there: AtomicU64::new(ends[0]) });
        let mut reader =
            FrameReader::new(Box::new(Arc::clone(&file)), "wal/wal_1.log", &header, None).expect("opens");
        for (end, entry_id) in ends.into_iter().zip(1..) {
            file.there.store(end, Ordering::Relaxed);
            // The end is looked at twice: what was read before it must not be asked for, or shown, again.
            let mut found = Vec::new();
            for _ in 0..2 {
                while let Some(frame) = reader.next_live_frame().expect("nothing failed") {
                    if frame.header.kind == FrameKind::Data {
                        found.push(frame.header.first_entry_id);
                    }
                }
            }
            assert_eq!(found, [entry_id]);
        }
    }

    #[test]
    fn nothing_is_handed_out_behind_a_final_seal_however_often_it_is_looked_for() {
        let header = Header::new(FileKind::Segment, 512, 1, 9);
        let seed = crate::formats::frame::FrameSeed::new(9);
        for reason in [SealReason::Close, SealReason::Rotation, SealReason::Idle] {
            let mut bytes = header_commit(&header).to_vec();
            for entry_id in 1..=2 {
                let mut batch = Batch::new(512, entry_id, 0);
                batch.push(b"entry").expect("fits");
                let opening = (entry_id == 1).then(Opening::default);
                let (data, range) = batch.finish(bytes.len() as u64, seed, entry_id - 1, opening.as_ref());
                bytes.extend_from_slice(&data[range]);
                let seal = Seal { reason, successor_id: 2, successor_salt: 5 };
                let (at, seal) = (bytes.len() as u64, Control::Seal(seal));
                bytes.extend_from_slice(&control_commit(seal, at, seed, 512, entry_id + 1, entry_id));
            }
            let there = AtomicU64::new(bytes.len() as u64);
            let file = Arc::new(Growing { bytes, there });
            let mut reader = FrameReader::new(Box::new(file), "wal/wal_1.log", &header, None).expect("opens");
            let mut found = Vec::new();
            for _ in 0..3 {
                while let Some(frame) = reader.next_live_frame().expect("nothing failed") {
                    found.extend(
                        (frame.header.kind == FrameKind::Data).then_some(frame.header.first_entry_id),
                    );
                }
            }
            let goes_on = reason == SealReason::Idle;
            assert_eq!(found, if goes_on { vec![1, 2] } else { vec![1] }, "{reason:?}");
        }
    }
}
