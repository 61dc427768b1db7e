//! What the page cache holds of a file is written back piece by piece, before anybody has to wait for it.
//!
//! Lives here: which piece is due, and the hint to the kernel. Not here: syncing, which alone makes anything durable.
//!
//! Without it a sync meets everything that was flushed since the last one, and whoever syncs another file of the same
//! disk meanwhile waits behind that: commits behind 16 MiB of zeros for the next segment.

use crate::limits::WRITE_BACK_BYTES;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was flushed, and not written back yet as far as we know. All of it is a hint: calls side by side may lose
/// one, which the next sync makes up for.
#[derive(Debug, Default)]
pub(super) struct WriteBack {
    from: AtomicU64,
    to: AtomicU64,
}

impl WriteBack {
    /// These bytes were handed to the page cache.
    pub fn flushed(&self, bytes: Range<u64>) {
        if self.to.swap(bytes.end, Ordering::Relaxed) != bytes.start {
            self.from.store(bytes.start, Ordering::Relaxed);
        }
    }

    /// A sync takes care of what there is.
    pub fn synced(&self) {
        self.from.store(self.to.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Asks for what was flushed, where that is enough.
    pub fn begin(&self, file: &File) {
        if let Some(piece) = self.due() {
            advise(file, piece);
        }
    }

    fn due(&self) -> Option<Range<u64>> {
        let (from, to) = (self.from.load(Ordering::Relaxed), self.to.load(Ordering::Relaxed));
        if to.saturating_sub(from) < WRITE_BACK_BYTES {
            return None;
        }
        self.from.store(to, Ordering::Relaxed);
        Some(from..to)
    }
}

/// Linux begins to write dirty pages back when it is told that they are not needed, and keeps those that it writes;
/// `sync_file_range`, which says just that, was as fast and is `unsafe` to call. Elsewhere the word means other
/// things.
#[cfg(target_os = "linux")]
fn advise(file: &File, Range { start, end }: Range<u64>) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    if let (Ok(offset), Ok(bytes)) = (start.try_into(), (end - start).try_into()) {
        let _ = posix_fadvise(file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &File, _: Range<u64>) {}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = WRITE_BACK_BYTES;

    #[test]
    fn pieces_are_whole_follow_each_other_and_are_due_once() {
        let pages = WriteBack::default();
        pages.flushed(0..PIECE - 1);
        assert_eq!(pages.due(), None);
        pages.flushed(PIECE - 1..PIECE + 7);
        assert_eq!(pages.due(), Some(0..PIECE + 7));
        assert_eq!(pages.due(), None);
        pages.flushed(PIECE + 7..2 * PIECE + 7);
        assert_eq!(pages.due(), Some(PIECE + 7..2 * PIECE + 7));
    }

    #[test]
    fn what_was_synced_or_left_behind_is_not_asked_for() {
        let pages = WriteBack::default();
        pages.flushed(0..PIECE - 1);
        pages.synced();
        pages.flushed(PIECE - 1..PIECE);
        assert_eq!(pages.due(), None);
        pages.flushed(10 * PIECE..11 * PIECE);
        assert_eq!(pages.due(), Some(10 * PIECE..11 * PIECE), "nothing of the hole");
        pages.flushed(0..PIECE);
        assert_eq!(pages.due(), Some(0..PIECE), "the same place again");
    }
}
