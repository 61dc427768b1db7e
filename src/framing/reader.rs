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
    window: Vec<u8>,
    window_offset: u64,
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

    /// Goes on behind a place that an earlier scan reached.
    pub fn resume(
        file: Box<dyn ReadAt>,
        path: &str,
        header: &Header,
        offset: u64,
        next_entry_id: u64,
    ) -> PersistenceResult<Self> {
        let file_bytes = file.size()?;
        let scanner = Scanner::resume(header, file_bytes, offset, next_entry_id);
        Ok(Self::with_scanner(file, path, scanner, None, file_bytes))
    }

    /// Whether a good frame that is no seal follows a place that an earlier scan reached.
    pub fn continues(
        file: Box<dyn ReadAt>,
        path: &str,
        header: &Header,
        offset: u64,
        next_entry_id: u64,
    ) -> PersistenceResult<bool> {
        let mut reader = Self::resume(file, path, header, offset, next_entry_id)?;
        while let Some(frame) = reader.next_frame()? {
            if frame.header.kind != FrameKind::Seal {
                return Ok(true);
            }
        }
        Ok(false)
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
            window_offset: 0,
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
            match self.scanner.step(self.window_offset, &self.window) {
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
            match self.scanner.step_live(self.window_offset, &self.window) {
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
                    self.file_bytes = self.file.size()?;
                    self.window.clear();
                    self.scanner.retry(self.file_bytes, self.known_end);
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
        self.file_bytes = self.file.size()?;
        self.window.clear();
        self.scanner.retry(self.file_bytes, self.known_end);
        Ok(())
    }

    /// Moves the window so that it covers `bytes` from `offset`, keeping what is still needed of it.
    fn show(&mut self, offset: u64, bytes: usize) -> PersistenceResult<()> {
        let end = self.window_offset + self.window.len() as u64;
        let keep = if offset >= self.window_offset && offset < end {
            (offset - self.window_offset) as usize
        } else {
            self.window.len()
        };
        self.window.copy_within(keep.., 0);
        let kept = self.window.len() - keep;
        self.window_offset = offset;
        let rest = usize::try_from(self.file_bytes - offset).unwrap_or(usize::MAX);
        let target = bytes.max(READ_CHUNK_BYTES).min(rest);
        self.window.resize(target.max(kept), 0);
        let read = self.file.read_at(offset + kept as u64, &mut self.window[kept..])?;
        if kept + read < bytes {
            let source = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(PersistenceError::io(
                "read",
                self.path.as_str(),
                Some(offset + (kept + read) as u64),
                source,
            ));
        }
        self.window.truncate(kept + read);
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
