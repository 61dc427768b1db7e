//! Making durable what was only read.

use crate::error::PersistenceResult;
use crate::planted;
use crate::storage::{Commit, CommitBuffer, Directory, Effect, FileOptions, open_commit_file, read_exact_at};

/// Bytes of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Region {
    /// The file.
    pub path: String,
    /// First byte.
    pub from: u64,
    /// First byte behind.
    pub to: u64,
}

/// Bytes that are read ahead of what is written; more than the page cache holds in one piece.
const CHUNK_BYTES: usize = 4 << 20;

/// Writes a region's bytes to their own place once more and syncs them.
///
/// After a failed sync the kernel may hold pages marked clean that never reached the disk; syncing again
/// would prove nothing, writing the same bytes again does. The disk is trusted not to lose a sector by
/// having the same bytes written to it.
///
/// Past the page cache, where that can be had: ext4 remembers of such a page that its block holds data, and
/// writing the page again leaves the block marked unwritten on the disk, so that it reads as zeros after a
/// power cut, although every call has succeeded. A direct write drops what was cached around it, so what
/// comes next is read before it.
///
/// Memory: twice `CHUNK_BYTES`.
pub fn write_again<D: Directory + ?Sized>(
    directory: &D,
    region: &Region,
    alignment: u32,
) -> PersistenceResult<()> {
    if planted::on("skip_write_again") {
        return Ok(());
    }
    let source = directory.open_at(&region.path)?;
    let read = |offset: u64, mut buffer: CommitBuffer| {
        let bytes = (region.to - offset).min(CHUNK_BYTES as u64) as usize;
        buffer.clear();
        buffer.resize(bytes, 0);
        read_exact_at(source.as_ref(), &region.path, offset, &mut buffer).map(|()| buffer)
    };
    let mut offset = region.from;
    let mut ahead = read(offset, CommitBuffer::new())?;
    let options = FileOptions::existing().aligned(alignment).locked().uncached();
    let target = open_commit_file(directory, &region.path, &options)?;
    let mut spare = CommitBuffer::new();
    while offset < region.to {
        let next = offset + ahead.len() as u64;
        let buffer = std::mem::replace(&mut ahead, read(next, spare)?);
        let range = 0..buffer.len();
        let effect = if next == region.to { Effect::Durable } else { Effect::Flushed };
        let (result, back) = target.commit(Commit { id: 0, offset, buffer, range, effect });
        result?;
        spare = back.unwrap_or_default();
        offset = next;
    }
    Ok(())
}
