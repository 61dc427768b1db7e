//! Making durable what was only read.

use crate::error::PersistenceResult;
use crate::limits::ZERO_FILL_BYTES;
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

/// Writes a region's bytes to their own place once more and syncs them.
///
/// After a failed sync the kernel may hold pages marked clean that never reached the disk; syncing again
/// would prove nothing, writing the same bytes again does. The disk is trusted not to lose a sector by
/// having the same bytes written to it.
pub fn write_again<D: Directory + ?Sized>(
    directory: &D,
    region: &Region,
    alignment: u32,
) -> PersistenceResult<()> {
    if planted::on("skip_write_again") {
        return Ok(());
    }
    let source = directory.open_at(&region.path)?;
    let options = FileOptions::existing().aligned(alignment).locked();
    let target = open_commit_file(directory, &region.path, &options)?;
    let mut offset = region.from;
    let mut buffer = CommitBuffer::new();
    while offset < region.to {
        let bytes = (region.to - offset).min(ZERO_FILL_BYTES as u64) as usize;
        buffer.clear();
        buffer.resize(bytes, 0);
        read_exact_at(source.as_ref(), &region.path, offset, &mut buffer)?;
        let is_last = offset + bytes as u64 == region.to;
        let effect = if is_last { Effect::Durable } else { Effect::Flushed };
        let (result, back) = target.commit(Commit { id: 0, offset, buffer, range: 0..bytes, effect });
        result?;
        buffer = back.unwrap_or_default();
        offset += bytes as u64;
    }
    Ok(())
}
