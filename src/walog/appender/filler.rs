//! Seals that fill the last block of a large flush.
//!
//! Lives here: when they pay, and where they go. Not here: what is written besides (`appender`).
//!
//! A direct write that ends within a block of the file system makes the next one begin there. File systems do such
//! writes one after the other where the blocks are new (ext4: `ext4_dio_write_checks`), although several are in
//! flight. So behind a flush that nobody waits for, and that is large, idle seals follow up to the end of the block.
//! They say what the frame before says, and are no end.

use super::Appender;
use crate::formats::frame::{Seal, SealReason};
use crate::framing::{Control, push_control};
use crate::limits::{FILE_BLOCK_BYTES, FILLED_FLUSH_BYTES_MIN};
use crate::planted;
use crate::storage::{CommitStrategy, Directory, Effect};
use crate::walog::afloat::Frames;

impl<D: Directory + ?Sized> Appender<D> {
    /// Puts them behind frames that are about to be written, the last ones of the segment.
    pub(super) fn fill_block(&mut self, frames: &mut Frames, effect: Effect) {
        let (left_bytes, alignment) = (self.seals_bytes(), self.options.frame_alignment);
        let Some(current) = &mut self.current else { return };
        let end = current.offset.next_multiple_of(FILE_BLOCK_BYTES);
        let pays = effect == Effect::Flushed
            && frames.range.len() >= FILLED_FLUSH_BYTES_MIN
            && current.file.strategy() == CommitStrategy::DirectDsync
            && FILE_BLOCK_BYTES % u64::from(alignment) == 0;
        if !pays || end.saturating_add(left_bytes) > current.reserved || planted::on("never_fill_blocks") {
            return;
        }
        debug_assert_eq!(frames.offset + frames.range.len() as u64, current.offset, "nothing is behind them");
        let Frames { buffer, range, last_entry_id, .. } = frames;
        buffer.truncate(range.end);
        while current.offset < end {
            let seal = Control::Seal(Seal { reason: SealReason::Idle, successor_id: 0, successor_salt: 0 });
            let (next_entry_id, durable) = (*last_entry_id + 1, self.durable_entry_id);
            push_control(buffer, seal, current.offset, current.seed, alignment, next_entry_id, durable);
            current.offset += (buffer.len() - range.end) as u64;
            range.end = buffer.len();
        }
        if planted::on("filler_attests") {
            current.is_attested = current.offset > current.content_offset;
        }
    }
}
