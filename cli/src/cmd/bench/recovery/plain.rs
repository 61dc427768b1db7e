//! The loop to which replay is compared: reads of a megabyte, frames found by the lengths in their headers,
//! one CRC-32 for each entry. It believes what it reads: no frame is checked, and nothing tells a torn tail
//! from damage. No reader of this format can do much less.

use crate::cmd::bench::Failure;
use durability::formats::frame::FrameKind;
use durability::formats::layout::{
    ENTRY_LENGTH_BYTES, FRAME, FRAME_HEADER_BYTES, Field, HEADER, HEADER_BYTES, MAGIC_FRAME,
};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// What the loop found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Entries.
    pub entries: u64,
    /// Of all entries, so that none can be left out.
    pub crc: u32,
}

/// Reads the segments in order.
pub fn read(segments: &[PathBuf]) -> Result<Found, Failure> {
    let places = Places::from_layout()?;
    let mut found = Found::default();
    let mut buffer = Vec::new();
    for segment in segments {
        let mut window =
            Window { file: File::open(segment)?, buffer: std::mem::take(&mut buffer), at: 0, end: 0 };
        let alignment = window.peek(HEADER_BYTES)?.map_or(0, |header| le(header, places.alignment));
        if !alignment.is_power_of_two() {
            return Err(format!("{} does not begin with a header", segment.display()).into());
        }
        window.skip(alignment)?;
        while let Some(header) =
            window.peek(FRAME_HEADER_BYTES)?.filter(|frame| frame.starts_with(&MAGIC_FRAME))
        {
            let kind = header[places.kind];
            let (payload_bytes, count) = (le(header, places.payload_bytes), le(header, places.entry_count));
            let frame_bytes = (FRAME_HEADER_BYTES + payload_bytes).next_multiple_of(alignment);
            let Some(frame) = window.peek(frame_bytes)? else { break };
            if kind == FrameKind::Data.code() {
                found.take(&frame[FRAME_HEADER_BYTES..][..payload_bytes], count)?;
            }
            window.skip(frame_bytes)?;
        }
        buffer = window.buffer;
    }
    // Nobody asks for the checksum; it is computed all the same.
    Ok(std::hint::black_box(found))
}

impl Found {
    fn take(&mut self, mut payload: &[u8], count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            let (length, rest) = payload.split_at_checked(ENTRY_LENGTH_BYTES).ok_or("an entry is cut off")?;
            let (entry, rest) = rest.split_at_checked(le(length, 0)).ok_or("an entry is cut off")?;
            self.crc = self.crc.rotate_left(1) ^ crc32fast::hash(entry);
            self.entries += 1;
            payload = rest;
        }
        Ok(())
    }
}

/// Where the fields are.
struct Places {
    alignment: usize,
    kind: usize,
    entry_count: usize,
    payload_bytes: usize,
}

impl Places {
    fn from_layout() -> Result<Self, Failure> {
        let place = |table: &[Field], name: &str| {
            let field = table.iter().find(|field| field.name == name);
            field.map(|field| field.offset).ok_or_else(|| format!("the layout has no field `{name}`"))
        };
        Ok(Self {
            alignment: place(HEADER, "frame_alignment")?,
            kind: place(FRAME, "kind")?,
            entry_count: place(FRAME, "entry_count")?,
            payload_bytes: place(FRAME, "payload_bytes")?,
        })
    }
}

/// A little-endian number of four bytes.
fn le(bytes: &[u8], at: usize) -> usize {
    bytes
        .get(at..at + 4)
        .map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
}

/// What was read of a file and not used yet: `buffer[at..end]`.
struct Window {
    file: File,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl Window {
    /// The next `bytes`; `None` where the file has fewer.
    fn peek(&mut self, bytes: usize) -> Result<Option<&[u8]>, Failure> {
        while self.end - self.at < bytes {
            self.buffer.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
            if self.buffer.len() < self.end + READ_BYTES {
                self.buffer.resize(self.end + READ_BYTES, 0);
            }
            match self.file.read(&mut self.buffer[self.end..][..READ_BYTES])? {
                0 => return Ok(None),
                read => self.end += read,
            }
        }
        Ok(Some(&self.buffer[self.at..][..bytes]))
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Failure> {
        self.peek(bytes)?.ok_or("a segment is cut off")?;
        self.at += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::bench::recovery::logs::{Extent, Log};

    #[test]
    fn the_plain_loop_finds_every_entry_of_every_shape_of_log() {
        let root = tempfile::tempdir().expect("a directory");
        for (name, extent, per_frame) in [
            ("grouped", Extent::Entries(1000), 64),
            // Frames across the end of a read.
            ("large", Extent::Entries(20_000), 3),
            ("alone", Extent::Entries(100), 1),
            ("segments", Extent::SealedSegments(5), 64),
        ] {
            let log = Log::write(root.path(), name, extent, per_frame).expect("writes");
            let found = read(log.segments()).expect("reads");
            assert_eq!((found.entries, log.replay().expect("replays")), (log.entries, log.entries), "{name}");
            assert!(!matches!(extent, Extent::Entries(entries) if entries != log.entries), "{name}");
        }
    }

    #[test]
    fn what_a_kill_leaves_has_every_entry_and_no_seal() {
        let root = tempfile::tempdir().expect("a directory");
        let log = Log::write(root.path(), "log", Extent::SealedSegments(3), 64).expect("writes");
        let copy = root.path().join("copy");
        log.copy_as_killed(&copy).expect("copies");
        let mut wal = durability::walog::WalWriter::<(), dyn durability::DurableDirectory>::open(
            durability::backends::Backend::Std.open(&copy).expect("opens").directory,
        )
        .expect("opens");
        assert_eq!(wal.last_entry_id(), log.entries);
        let end = wal.recovered().expect("was there").clone();
        assert!(end.torn.is_none() && !end.unproven.is_empty(), "{end:?}");
        assert_eq!(wal.append_bytes_durable(b"x").expect("appends"), log.entries + 1);
        drop(wal);
        // The copy shares files with the log; the log is as it was.
        assert_eq!(log.replay().expect("replays"), log.entries);
    }
}
