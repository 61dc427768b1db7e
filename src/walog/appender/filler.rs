//! Seals that fill the last block of a large flush.
//!
//! Lives here: when they pay, and where they go. Not here: what is written besides (`appender`).
//!
//! A direct write that ends within a block of the file system makes the next one begin there. File systems do such
//! writes one after the other where the blocks are new (ext4: `ext4_dio_write_checks`), although several are in
//! flight. So behind a flush that nobody waits for, and that is large, idle seals follow up to the end of the block.
//! They say what the frame before says, and are no end.
//!
//! Invariant: where they stand depends on the frames alone: on no backend, and not on what was in flight.

use super::{Appender, Current};
use crate::formats::frame::{Seal, SealReason};
use crate::framing::{Control, push_control};
use crate::limits::{FILE_BLOCK_BYTES, FLUSH_BYTES_MAX};
use crate::planted;
use crate::storage::{CommitStrategy, Directory};
use crate::walog::afloat::Frames;

impl<D: Directory + ?Sized> Appender<D> {
    /// Whether the block is filled behind a frame of `frame_bytes` in a stream of them, which go in one write with
    /// others, or do not, as the disk has time: where enough stands behind the last block that was filled. Then a write
    /// had better end there.
    pub(super) fn fills_in_stream(&self, frame_bytes: u64) -> bool {
        let stands = |current: &Current| current.offset + frame_bytes - current.filled_to;
        self.current.as_ref().is_some_and(|current| stands(current) >= FLUSH_BYTES_MAX as u64)
    }

    /// What may fill the block behind a frame of `frame_bytes`, in bytes.
    pub(super) fn filler_bytes(&self, frame_bytes: u64) -> u64 {
        let in_stream = if self.fills_in_stream(frame_bytes) { FLUSH_BYTES_MAX as u64 } else { 0 };
        let forgotten = planted::on("no_room_for_fillers");
        if forgotten { 0 } else { self.options.filler_bytes(frame_bytes.max(in_stream)) }
    }

    /// Puts seals behind the frame that was placed last. Room for them was made with its own.
    pub(super) fn fill_block(&mut self, frames: &mut Frames) {
        let (alignment, seals_bytes) = (self.options.frame_alignment, self.seals_bytes());
        let Some(current) = &mut self.current else { return };
        let by_backend =
            planted::on("fill_direct_alone") && current.file.strategy() != CommitStrategy::DirectDsync;
        if planted::on("never_fill_blocks") || by_backend {
            return;
        }
        debug_assert_eq!(frames.offset + frames.range.len() as u64, current.offset, "nothing is behind them");
        let end = current.offset.next_multiple_of(FILE_BLOCK_BYTES);
        let Frames { buffer, range, last_entry_id, .. } = frames;
        buffer.truncate(range.end);
        while current.offset < end {
            let seal = Control::Seal(Seal { reason: SealReason::Idle, successor_id: 0, successor_salt: 0 });
            let durable =
                if planted::on("filler_attests_flushed") { *last_entry_id } else { self.durable_entry_id };
            let next_entry_id = *last_entry_id + 1;
            push_control(buffer, seal, current.offset, current.seed, alignment, next_entry_id, durable);
            current.offset += (buffer.len() - range.end) as u64;
            range.end = buffer.len();
        }
        let has_room =
            current.offset + seals_bytes <= current.reserved || planted::on("room_is_asked_for_once");
        debug_assert!(has_room, "space was asked for up to {}, not {}", current.reserved, current.offset);
        current.filled_to = current.offset;
        if planted::on("filler_attests") {
            current.is_attested = current.offset > current.content_offset;
        }
    }
}
