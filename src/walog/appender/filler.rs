//! Seals that fill the last block of a large flush.
//!
//! Lives here: when they pay, and where they go. Not here: what is written besides (`appender`).
//!
//! A direct write that ends within a block of the file system makes the next one begin there. File systems do such
//! writes one after the other where the blocks are new (ext4: `ext4_dio_write_checks`), although several are in
//! flight. So behind a flush that nobody waits for, and that is large, idle seals follow up to the end of the block.
//! They say what any frame says, and are no end.

use super::Current;
use crate::formats::frame::{Seal, SealReason};
use crate::framing::{Control, push_control};
use crate::limits::{FILE_BLOCK_BYTES, FILLED_FLUSH_BYTES_MIN};
use crate::planted;
use crate::storage::{CommitBuffer, CommitStrategy, Effect};
use std::ops::Range;

/// What goes with a frame that has its place already.
pub(super) struct Filler {
    pub next_entry_id: u64,
    pub durable_entry_id: u64,
    pub alignment: u32,
    /// What must be left of the segment's space, in bytes.
    pub left_bytes: u64,
}

impl Filler {
    /// Puts them behind the frame that ends at `range.end` of `buffer`, and at the current offset of the file.
    pub fn fill(
        self,
        current: &mut Current,
        effect: Effect,
        buffer: &mut CommitBuffer,
        range: &mut Range<usize>,
    ) {
        let end = current.offset.next_multiple_of(FILE_BLOCK_BYTES);
        let pays = effect == Effect::Flushed
            && range.len() >= FILLED_FLUSH_BYTES_MIN
            && current.file.strategy() == CommitStrategy::DirectDsync
            && FILE_BLOCK_BYTES % u64::from(self.alignment) == 0;
        if !pays || end.saturating_add(self.left_bytes) > current.reserved || planted::on("never_fill_blocks")
        {
            return;
        }
        debug_assert_eq!(buffer.len(), range.end);
        while current.offset < end {
            let seal = Control::Seal(Seal { reason: SealReason::Idle, successor_id: 0, successor_salt: 0 });
            let Self { next_entry_id, durable_entry_id, alignment, .. } = self;
            push_control(
                buffer,
                seal,
                current.offset,
                current.seed,
                alignment,
                next_entry_id,
                durable_entry_id,
            );
            current.offset += (buffer.len() - range.end) as u64;
            range.end = buffer.len();
        }
    }
}
