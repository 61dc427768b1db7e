//! Entries on their way to the disk, in the bytes in which they will stand there.
//!
//! A batch is encoded into its commit buffer as it grows, so that appending costs one copy and no
//! allocation. Checksums wait until the batch's file and offset are known.
//!
//! Buffer layout: room for an opening frame (one alignment unit), then the data frame.

use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::{self, FrameFacts, FrameKind, FrameSeed, Opening, Seal};
use crate::formats::header::Header;
use crate::formats::layout::{ENTRY_LENGTH_BYTES, FRAME_HEADER_BYTES, HEADER_BYTES};
use crate::limits::{BATCH_BYTES_MAX, ENTRY_BYTES_MAX, ENTRY_ID_MAX, FILE_BLOCK_BYTES};
use crate::planted;
use crate::storage::CommitBuffer;
use std::ops::Range;

/// Entries that will be written as one frame: all of them recovered, or none.
#[derive(Debug)]
pub struct Batch {
    buffer: CommitBuffer,
    front: usize,
    first_entry_id: u64,
    entry_count: u32,
}

impl Batch {
    /// An empty batch whose first entry will have this id, with room for `capacity` bytes of payload.
    pub fn new(alignment: u32, first_entry_id: u64, capacity: usize) -> Self {
        let front = alignment as usize;
        let mut buffer = CommitBuffer::new();
        reserve(&mut buffer, front, capacity);
        buffer.resize(front + FRAME_HEADER_BYTES, 0);
        Self { buffer, front, first_entry_id, entry_count: 0 }
    }

    /// Whether there are no entries in it.
    pub fn is_empty(&self) -> bool {
        self.entry_count == 0
    }

    /// Entries in it.
    pub fn entry_count(&self) -> u32 {
        self.entry_count
    }

    /// Id of the first entry.
    pub fn first_entry_id(&self) -> u64 {
        self.first_entry_id
    }

    /// Id that the next entry will get.
    pub fn next_entry_id(&self) -> u64 {
        self.first_entry_id + u64::from(self.entry_count)
    }

    /// Bytes of payload so far, length prefixes included.
    pub fn payload_bytes(&self) -> usize {
        self.buffer.len() - self.front - FRAME_HEADER_BYTES
    }

    /// The entries so far, each behind its length.
    pub fn payload(&self) -> &[u8] {
        &self.buffer[self.front + FRAME_HEADER_BYTES..]
    }

    /// Bytes that the frame will take in a file.
    pub fn frame_bytes(&self) -> u64 {
        frame::frame_bytes(self.payload_bytes(), self.front as u32)
    }

    /// Whether an entry of `bytes` would still fit into the batch.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.payload_bytes() + ENTRY_LENGTH_BYTES + bytes <= BATCH_BYTES_MAX
    }

    /// Makes room for `capacity` bytes of payload, so that no more is allocated up to there.
    pub fn reserve(&mut self, capacity: usize) {
        reserve(&mut self.buffer, self.front, capacity);
    }

    /// Appends an entry; returns its id. Too large an entry leaves the batch as it was.
    pub fn push(&mut self, payload: &[u8]) -> PersistenceResult<u64> {
        self.push_with(|buffer| {
            if payload.len() > ENTRY_BYTES_MAX && !planted::on("entries_of_any_size") {
                return Err(too_large(payload.len(), ENTRY_BYTES_MAX));
            }
            buffer.extend_from_slice(payload);
            Ok(())
        })
    }

    /// Appends an entry that `encode` writes at the end of the buffer; returns its id. An error leaves the
    /// batch as it was.
    pub fn push_with(
        &mut self,
        encode: impl FnOnce(&mut CommitBuffer) -> PersistenceResult<()>,
    ) -> PersistenceResult<u64> {
        self.all_or_nothing(|batch| {
            let start = batch.buffer.len();
            batch.buffer.extend_from_slice(&[0; ENTRY_LENGTH_BYTES]);
            encode(&mut batch.buffer)?;
            batch.check_entry(start)?;
            let length = frame::entry_length(&batch.buffer[start + ENTRY_LENGTH_BYTES..]);
            batch.buffer[start..start + ENTRY_LENGTH_BYTES].copy_from_slice(&length);
            let entry_id = batch.next_entry_id();
            batch.entry_count += 1;
            Ok(entry_id)
        })
    }

    /// Does what `act` does to the batch, or nothing: an error or a panic of it (a codec is not ours) leaves
    /// the batch as it was. Half an entry that stayed would make the whole frame unreadable.
    pub fn all_or_nothing<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> PersistenceResult<T>,
    ) -> PersistenceResult<T> {
        let undo = Undo { mark: self.mark(), batch: self };
        let done = act(undo.batch)?;
        std::mem::forget(undo);
        Ok(done)
    }

    /// Appends all of `count` entries, or none; returns the first id.
    pub fn push_all(
        &mut self,
        count: usize,
        mut push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let first_entry_id = self.next_entry_id();
        self.all_or_nothing(|batch| (0..count).try_for_each(|index| push(batch, index).map(|_| ())))?;
        Ok(first_entry_id)
    }

    fn check_entry(&self, start: usize) -> PersistenceResult<()> {
        if self.next_entry_id() > ENTRY_ID_MAX {
            return Err(PersistenceError::invalid_state("append", "the log has used up its entry ids"));
        }
        let bytes = self.buffer.len().saturating_sub(start + ENTRY_LENGTH_BYTES);
        if bytes > ENTRY_BYTES_MAX && !planted::on("entries_of_any_size") {
            return Err(too_large(bytes, ENTRY_BYTES_MAX));
        }
        if self.payload_bytes() > BATCH_BYTES_MAX || self.entry_count == u32::MAX {
            return Err(too_large(self.payload_bytes(), BATCH_BYTES_MAX));
        }
        Ok(())
    }

    /// Remembers how much is in the batch, for [`roll_back`](Self::roll_back).
    pub fn mark(&self) -> (usize, u32) {
        (self.buffer.len(), self.entry_count)
    }

    /// Forgets the entries that were appended after `mark`.
    pub fn roll_back(&mut self, mark: (usize, u32)) {
        self.buffer.truncate(mark.0);
        self.entry_count = mark.1;
    }

    /// Completes the frame for its place in a file. With an opening, that frame goes first: it stands at
    /// `offset`, the data behind it. Returns the buffer and which of its bytes to write.
    pub fn finish(
        mut self,
        offset: u64,
        seed: FrameSeed,
        durable_entry_id: u64,
        opening: Option<&Opening>,
    ) -> (CommitBuffer, Range<usize>) {
        debug_assert!(self.entry_count > 0);
        let alignment = self.front as u32;
        let payload_bytes = self.payload_bytes();
        let end = self.front + self.frame_bytes() as usize;
        self.buffer.resize(end, 0);
        let mut data_offset = offset;
        let mut start = self.front;
        if let Some(opening) = opening {
            let facts = FrameFacts {
                kind: FrameKind::Opening,
                entry_count: 0,
                payload_bytes: opening.encode().len(),
                first_entry_id: self.first_entry_id,
                durable_entry_id,
            };
            let front = &mut self.buffer[..self.front];
            front.fill(0);
            write_control(front, offset, seed, facts, &opening.encode());
            data_offset += u64::from(alignment);
            start = 0;
        }
        let facts = FrameFacts {
            kind: FrameKind::Data,
            entry_count: self.entry_count,
            payload_bytes,
            first_entry_id: self.first_entry_id,
            durable_entry_id,
        };
        frame::finish(&mut self.buffer[self.front..end], data_offset, seed, facts);
        (self.buffer, start..end)
    }

    /// A new empty batch in the room of an old buffer.
    pub fn reuse(mut buffer: CommitBuffer, alignment: u32, first_entry_id: u64) -> Self {
        let front = alignment as usize;
        buffer.clear();
        buffer.resize(front + FRAME_HEADER_BYTES, 0);
        Self { buffer, front, first_entry_id, entry_count: 0 }
    }
}

/// Makes room in a buffer for a batch with `capacity` bytes of payload, and for what fills its last block.
pub fn reserve(buffer: &mut CommitBuffer, alignment: usize, capacity: usize) {
    let bytes = alignment + FRAME_HEADER_BYTES + capacity + alignment.max(FILE_BLOCK_BYTES as usize);
    buffer.reserve(bytes.saturating_sub(buffer.len()));
}

/// Rolls a batch back when it is dropped.
struct Undo<'a> {
    batch: &'a mut Batch,
    mark: (usize, u32),
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !planted::on("keep_half_an_entry") {
            self.batch.roll_back(self.mark);
        }
    }
}

fn too_large(bytes: usize, bytes_max: usize) -> PersistenceError {
    PersistenceError::PayloadTooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 }
}

fn write_control(room: &mut [u8], offset: u64, seed: FrameSeed, facts: FrameFacts, payload: &[u8]) {
    room[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    frame::finish(room, offset, seed, facts);
}

/// A frame without entries.
#[derive(Clone, Copy, Debug)]
pub enum Control {
    /// An opening.
    Opening(Opening),
    /// A seal.
    Seal(Seal),
}

/// A frame without entries, ready to be written at `offset`.
pub fn control_commit(
    content: Control,
    offset: u64,
    seed: FrameSeed,
    alignment: u32,
    next_entry_id: u64,
    durable_entry_id: u64,
) -> CommitBuffer {
    let mut buffer = CommitBuffer::new();
    push_control(&mut buffer, content, offset, seed, alignment, next_entry_id, durable_entry_id);
    buffer
}

/// The same, behind what is in a buffer.
pub fn push_control(
    buffer: &mut CommitBuffer,
    content: Control,
    offset: u64,
    seed: FrameSeed,
    alignment: u32,
    next_entry_id: u64,
    durable_entry_id: u64,
) {
    let (kind, payload): (_, &[u8]) = match content {
        Control::Opening(opening) => (FrameKind::Opening, &opening.encode()),
        Control::Seal(seal) => (FrameKind::Seal, &seal.encode()),
    };
    let start = buffer.len();
    buffer.resize(start + frame::frame_bytes(payload.len(), alignment) as usize, 0);
    let facts = FrameFacts {
        kind,
        entry_count: 0,
        payload_bytes: payload.len(),
        first_entry_id: next_entry_id,
        durable_entry_id,
    };
    write_control(&mut buffer[start..], offset, seed, facts, payload);
}

/// A header block, padded to the file's frame alignment, ready to be written at offset 0.
pub fn header_commit(header: &Header) -> CommitBuffer {
    let mut buffer = CommitBuffer::new();
    buffer.resize(header.frame_alignment as usize, 0);
    buffer[..HEADER_BYTES].copy_from_slice(&header.encode());
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_entry_leaves_the_batch_as_it_was() {
        let mut batch = Batch::new(512, 1, 0);
        assert_eq!(batch.push(b"kept").expect("fits"), 1);
        let before = batch.mark();
        let huge = vec![0; ENTRY_BYTES_MAX + 1];
        assert!(matches!(batch.push(&huge), Err(PersistenceError::PayloadTooLarge { .. })));
        let refused = batch.push_with(|buffer| {
            buffer.extend_from_slice(b"half");
            Err(PersistenceError::Encode { reason: "no".into() })
        });
        assert!(refused.is_err());
        assert_eq!(batch.mark(), before);
        assert_eq!(batch.push(b"").expect("fits"), 2);
    }

    #[test]
    fn a_batch_takes_entries_up_to_its_limit_and_no_more() {
        let mut batch = Batch::new(512, 1, 0);
        let entry = vec![1; ENTRY_BYTES_MAX];
        for _ in 0..3 {
            batch.push(&entry).expect("fits");
        }
        assert!(matches!(batch.push(&entry), Err(PersistenceError::PayloadTooLarge { .. })));
        assert_eq!(batch.entry_count(), 3);
    }
}
