//! Reading a checkpoint: every chunk is checked before it is handed out, and the seal before the end is.

use super::CheckpointMeta;
use crate::error::{Check, Corruption, FormatProblem, PersistenceError, PersistenceResult, Proof};
use crate::formats::frame::{Entries, FrameKind, SealReason};
use crate::formats::header::{FileKind, HeaderState};
use crate::formats::layout::HEADER_BYTES;
use crate::formats::scan::{BadFrame, ScanEnd};
use crate::framing::{FrameReader, read_header};
use crate::planted;
use crate::storage::Directory;
use std::io::Read;

/// A checkpoint, open for reading from its beginning.
///
/// Implements [`Read`]; errors of this crate travel inside [`std::io::Error`] there.
pub struct CheckpointReader {
    meta: CheckpointMeta,
    path: String,
    frames: Option<FrameReader>,
    chunk: Vec<u8>,
    /// How much of the chunk was handed out.
    taken: usize,
    /// What ended reading: behind it there is no end of the state, whoever asks again.
    failure: Option<PersistenceError>,
}

impl CheckpointReader {
    /// Opens the checkpoint at `path`. `MissingCheckpoint` when there is none.
    pub fn open<D: Directory + ?Sized>(directory: &D, path: &str) -> PersistenceResult<Self> {
        let file = directory.open_at(path).map_err(|error| match error {
            PersistenceError::NotFound { path } => PersistenceError::MissingCheckpoint { path },
            error => error,
        })?;
        let read = read_header(file.as_ref(), FileKind::Checkpoint)?;
        let header = match read.state {
            HeaderState::Good(header) => header,
            HeaderState::Blank => {
                let problem = FormatProblem::TooShort { bytes: 0, bytes_needed: HEADER_BYTES as u64 };
                return Err(PersistenceError::Format { path: path.to_owned(), problem });
            }
            HeaderState::Damaged { expected, found } => {
                return Err(damaged(path, 0, Check::HeaderChecksum { expected, found }));
            }
            HeaderState::Unusable(problem) => {
                return Err(PersistenceError::Format { path: path.to_owned(), problem });
            }
        };
        let meta = CheckpointMeta {
            last_applied_entry_id: header.last_applied_entry_id,
            required_entry_id: header.required_entry_id,
            identity: header.identity,
        };
        let frames = FrameReader::new(file, path, &header, None)?;
        let (path, frames) = (path.to_owned(), Some(frames));
        Ok(Self { meta, path, frames, chunk: Vec::new(), taken: 0, failure: None })
    }

    /// What the checkpoint says about itself.
    pub fn meta(&self) -> CheckpointMeta {
        self.meta
    }

    /// The rest of the state. An error when any of it does not check out, or cannot be read; then that is the answer
    /// from then on.
    pub fn read_state(&mut self) -> PersistenceResult<Vec<u8>> {
        let mut state = Vec::new();
        loop {
            state.extend_from_slice(&self.chunk[self.taken..]);
            match self.next_chunk() {
                Ok(true) => {}
                Ok(false) => return Ok(state),
                // What was read by then is gone: to go on would make the rest look like all of it.
                Err(error) => {
                    (self.frames, self.failure) = (None, Some(error.clone()));
                    return Err(error);
                }
            }
        }
    }

    /// Checks the rest without keeping it.
    pub fn verify(&mut self) -> PersistenceResult<()> {
        while self.next_chunk()? {}
        Ok(())
    }

    /// Takes the next chunk; `false` behind the seal.
    fn next_chunk(&mut self) -> PersistenceResult<bool> {
        self.chunk.clear();
        self.taken = 0;
        let Some(frames) = &mut self.frames else {
            let failure = self.failure.clone().filter(|_| !planted::on("damage_is_told_once"));
            return failure.map_or(Ok(false), Err);
        };
        while let Some(frame) = frames.next_frame()? {
            if frame.header.kind != FrameKind::Data {
                continue;
            }
            for (_, entry) in Entries::new(&frame.header, frame.payload) {
                self.chunk.extend_from_slice(entry);
            }
            return Ok(true);
        }
        let Some(frames) = self.frames.take() else { return Ok(false) };
        let judged = judge_end(&self.path, &frames.into_end());
        self.failure = judged.as_ref().err().cloned();
        judged.map(|()| false)
    }
}

/// A checkpoint ends with its seal; everything else is damage, because it got its name only when it was
/// complete.
pub(crate) fn judge_end(path: &str, end: &ScanEnd) -> PersistenceResult<()> {
    let unsealed = planted::on("checkpoint_without_seal");
    if (unsealed || end.seal.is_some_and(|seal| seal.reason == SealReason::Close))
        && end.bad == BadFrame::None
    {
        return Ok(());
    }
    let check = match end.bad {
        BadFrame::Payload { expected, found, .. } => Check::Payload { expected, found },
        BadFrame::PastFileEnd { bytes_needed, bytes } => Check::FileEnd { bytes_needed, bytes },
        BadFrame::Contents(what) => Check::FrameContents { what },
        BadFrame::Order { expected, found } => Check::EntryOrder { expected, found },
        BadFrame::None => Check::FrameContents { what: "the seal is missing" },
        BadFrame::Unwritten | BadFrame::Header => Check::FrameHeader,
    };
    Err(damaged(path, end.offset, check))
}

fn damaged(path: &str, offset: u64, check: Check) -> PersistenceError {
    Corruption { path: path.to_owned(), offset, entry_id: 0, check, proof: Proof::Contradiction }.into()
}

impl Read for CheckpointReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.taken == self.chunk.len() {
            if !self.next_chunk()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.taken);
        buffer[..count].copy_from_slice(&self.chunk[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

impl std::fmt::Debug for CheckpointReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointReader")
            .field("path", &self.path)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}
