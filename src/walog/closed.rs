//! The end of a closed log, told by its last block, without reading the segment before it.
//!
//! Here and nowhere else is an end believed that no scan has reached. That needs a seal which says all that a
//! scan would be looking for: that the log ends here (reason `Close`: nothing follows in a segment), with
//! which entry, and that all of it was durable before the seal was written. Whatever falls short of that is
//! no finding: the segment is scanned.

use super::catalogue::{Chain, Started};
use super::walk::{LastSegment, LogEnd, Requirements};
use crate::error::PersistenceResult;
use crate::formats::frame::{
    FrameHeader, FrameHeaderState, FrameKind, FrameSeed, Seal, SealReason, decode_header,
};
use crate::formats::is_zero;
use crate::formats::layout::FRAME_HEADER_BYTES;
use crate::limits::{FRAME_ALIGNMENT_MAX, SECTOR_BYTES};
use crate::planted;
use crate::storage::Directory;

/// The log's end, where the last block of its newest segment tells it; else `None`, which means nothing.
pub(super) fn closed_end<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    requirements: &Requirements,
) -> PersistenceResult<Option<LogEnd>> {
    // Something was begun behind the newest segment: a scan judges it. And on a volatile directory the next
    // segment will attest nothing, so that damage which nobody looked at would become a tear there.
    let tells = chain.unfinished.is_empty() && directory.as_durable().is_some();
    let Some(newest) = chain.segments.last().filter(|_| tells) else { return Ok(None) };
    let unit = newest.header.frame_alignment as usize;
    let file = directory.open_at(&newest.path)?;
    let file_bytes = file.size()?;
    let (blocks, rest) = (file_bytes / unit as u64, file_bytes % unit as u64);
    // Header, opening, at least one frame of entries, seal.
    if rest != 0 || blocks < 4 {
        return Ok(None);
    }
    let offset = file_bytes - unit as u64;
    let mut blocks = [0; 2 * FRAME_ALIGNMENT_MAX as usize];
    let blocks = &mut blocks[..2 * unit];
    if file.read_at(offset - unit as u64, blocks)? < blocks.len() {
        return Ok(None);
    }
    let (before, last) = blocks.split_at(unit);
    let Some(last_entry_id) = closing_seal(newest, before, last, offset) else { return Ok(None) };
    if requirements.least_end.as_ref().is_some_and(|(least, _)| last_entry_id < *least) {
        return Ok(None);
    }
    Ok(Some(LogEnd {
        last_entry_id,
        torn: None,
        last_segment: Some(LastSegment { id: newest.id, salt: newest.header.salt, end_offset: offset }),
        // The writer had made every entry durable when it wrote the seal, which a seal that can be read proves
        // even where the seal itself is in the page cache only. The first entries came with the opening frame,
        // in one write. So nothing needs to be written again, and what follows rests on `end_offset`, which is
        // before the seal.
        unproven: Vec::new(),
        attested_entry_id: last_entry_id,
        segments_read: 0,
        entries_read: 0,
        dropped: Vec::new(),
        closed: true,
    }))
}

/// The last entry, where `last`, the block at `offset`, is the seal of a closed log that attests everything,
/// and `before`, the block before it, is no seal, and none that was lost.
fn closing_seal(segment: &Started, before: &[u8], last: &[u8], offset: u64) -> Option<u64> {
    let good = |block: &[u8], offset: u64| -> Option<FrameHeader> {
        match decode_header(block, offset, FrameSeed::new(segment.header.salt)) {
            FrameHeaderState::Good(header) => Some(header),
            _ => None,
        }
    };
    let header = good(last, offset).filter(|header| header.kind == FrameKind::Seal)?;
    let whole = header.frame_bytes(segment.header.frame_alignment) == last.len() as u64
        && FrameSeed::new(segment.header.salt).payload_crc(&last[FRAME_HEADER_BYTES..]) == header.payload_crc;
    if !whole {
        return None;
    }
    let seal = Seal::decode(&last[FRAME_HEADER_BYTES..][..header.payload_bytes as usize])?;
    let last_entry_id = header.first_entry_id - 1;
    let attests_all = header.durable_entry_id == last_entry_id && last_entry_id >= segment.first_entry_id;
    // Where the contents end before two seals, only a scan knows: what follows the log must rest on neither.
    let after_seal =
        good(before, offset - before.len() as u64).is_some_and(|header| header.kind == FrameKind::Seal);
    // A seal of which nothing is left is a tear to whoever reads, and costs no entry; behind it, it would be damage.
    let after_zeros = is_zero(&before[..SECTOR_BYTES]) && !planted::on("closed_behind_lost_seal");
    let tells = attests_all && !after_seal && !after_zeros;
    (seal.reason == SealReason::Close && tells).then_some(last_entry_id)
}
