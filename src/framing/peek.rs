//! Reading entries of a batch that is still growing.
//!
//! Whoever reads holds the batch's lock, so one look is bounded: it walks over a limited number of entries and
//! copies a limited number of bytes, and goes on later where it was.

use super::batch::Batch;
use crate::formats::frame::split_entry;
use crate::formats::layout::ENTRY_LENGTH_BYTES;
use crate::limits::{PEEK_BYTES, PEEK_ENTRIES};
use std::ops::RangeInclusive;

/// A place in a growing batch. Entries are only ever added behind it.
#[derive(Debug, Default)]
pub struct Peek {
    batch_first_entry_id: u64,
    entry_id: u64,
    offset: usize,
}

impl Peek {
    /// Copies entries of `wanted`, from its first on, each behind its length, to the end of `out`; returns how
    /// many. None: the look was over before the first one was reached, look again.
    ///
    /// The first wanted entry must be in the batch.
    pub fn copy_entries(&mut self, batch: &Batch, wanted: RangeInclusive<u64>, out: &mut Vec<u8>) -> u64 {
        let (from, to) = (*wanted.start(), (*wanted.end()).min(batch.next_entry_id() - 1));
        // A batch is known by its first entry. One without entries has none yet, and nothing is remembered of it.
        if self.batch_first_entry_id != batch.first_entry_id() || self.entry_id > from {
            let first = batch.first_entry_id();
            *self = Self { batch_first_entry_id: first, entry_id: first, offset: 0 };
        }
        let payload = batch.payload();
        let mut copied = 0;
        for _ in 0..PEEK_ENTRIES {
            let rest = payload.get(self.offset..).unwrap_or_default();
            let Some((entry, _)) = split_entry(rest).filter(|_| self.entry_id <= to) else { break };
            let bytes = ENTRY_LENGTH_BYTES + entry.len();
            if self.entry_id >= from {
                if copied > 0 && out.len() + bytes > PEEK_BYTES {
                    break;
                }
                out.extend_from_slice(&rest[..bytes]);
                copied += 1;
            }
            self.offset += bytes;
            self.entry_id += 1;
        }
        copied
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(entries: u64) -> Batch {
        let mut batch = Batch::new(512, 7, 0);
        for entry_id in 7..7 + entries {
            batch.push(&entry_id.to_le_bytes()).expect("fits");
        }
        batch
    }

    #[test]
    fn a_far_entry_takes_several_looks_and_a_near_one_one() {
        let batch = batch(3 * PEEK_ENTRIES as u64);
        let (mut peek, mut out, last) = (Peek::default(), Vec::new(), batch.next_entry_id() - 1);
        let mut looks = 1;
        while peek.copy_entries(&batch, last..=u64::MAX, &mut out) == 0 {
            looks += 1;
        }
        assert_eq!((looks, &out[4..]), (3, &last.to_le_bytes()[..]));
        for entry_id in [7, 8, 7] {
            out.clear();
            assert_eq!(peek.copy_entries(&batch, entry_id..=entry_id, &mut out), 1);
            assert_eq!(&out[4..], &entry_id.to_le_bytes());
        }
    }

    #[test]
    fn a_place_in_one_batch_is_none_in_the_next() {
        let (mut peek, mut out) = (Peek::default(), Vec::new());
        assert_eq!(peek.copy_entries(&batch(5), 10..=11, &mut out), 2);
        let mut next = Batch::new(512, 12, 0);
        next.push(b"another").expect("fits");
        out.clear();
        assert_eq!(peek.copy_entries(&next, 12..=12, &mut out), 1);
        assert_eq!(&out[4..], b"another");
    }
}
