//! Raw loops: what the disk gives to one thread that does nothing else. Those that need no ring are here.
//!
//! Writes go one behind the other, each of the entry's size; direct ones are rounded up to
//! [`DIRECT_BYTES`]. The end of a zero-filled file is followed by its beginning.

use super::Failure;
use super::ahead;
use super::drive::{self, Window};
use super::line::{Kind, Line, Sample, Subject, Waiting};
use super::reference::{GroupEngine, MutexEngine};
use super::ring;
use crate::cmd::payload;
use durability::storage::CommitBuffer;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Direct writes are multiples of this, in bytes, and at multiples of it.
const DIRECT_BYTES: usize = 4096;

/// Least size of a zero-filled file, in bytes.
const FILE_BYTES_MIN: usize = 16 << 20;

/// The raw loop to which every line is compared.
pub const BASELINE: &str = "zero-filled";

/// Writes of [`STREAM_BYTES`] that nobody syncs: what appending without sync is compared to.
pub const STREAM: &str = "64 KiB writes";
/// Bytes of one of them.
const STREAM_BYTES: usize = 64 << 10;
/// Bytes of an entry of which they are made.
pub const STREAM_ENTRY_BYTES: usize = 1 << 10;
/// The same, made durable as often as the library seals a segment, because its log is held to the disk by that.
const STREAM_SYNCED: &str = "64 KiB, synced";
/// Large direct writes, several in flight, that nobody syncs: what the device takes.
const STREAM_DIRECT: &str = "256 KiB writes";
/// Bytes of one of them.
const STREAM_DIRECT_BYTES: usize = 256 << 10;
/// How many of them are in flight.
const STREAM_DIRECT_DEPTH: usize = 4;
/// What the strategy of lines is called that make nothing durable.
pub const NO_SYNC: &str = "no sync";
/// Name of the library's line that is compared to them.
pub const APPEND_ONLY: &str = "append only";

/// Names of the loops with one commit in flight.
pub const DEPTH_1: [&str; 5] = ["growing", BASELINE, RING_LINKED, O_DSYNC, RING_DIRECT];
/// Direct writes to a file opened with `O_DSYNC`, without a ring.
pub const O_DSYNC: &str = "o_dsync";
/// Direct writes on a ring, one in flight.
pub const RING_DIRECT: &str = "ring depth 1";
/// The loop `o_dsync`, whose zeros are written beside it.
const ZEROED_AHEAD: &str = "zeroed ahead";
const RING_DIRECT_DEEP: &str = "ring depth 16";
const RING_LINKED: &str = "ring linked";
const DEPTH: usize = 16;

/// An entry of this size, of no particular content.
pub fn entry(bytes: usize) -> Vec<u8> {
    let mut entry = payload::make(0x6475_7261, 0, 1, bytes);
    entry.truncate(bytes);
    entry
}

/// The files of the loops, made once.
pub struct Files {
    folder: PathBuf,
    buffered: PathBuf,
    direct: PathBuf,
    bytes: u64,
}

impl Files {
    /// Makes zero-filled files in `folder`, with room for four batches of `batch_bytes`.
    pub fn prepare(folder: &Path, batch_bytes: usize) -> io::Result<Self> {
        let bytes = (batch_bytes * 4).max(FILE_BYTES_MIN).next_multiple_of(FILE_BYTES_MIN) as u64;
        let files = Self {
            folder: folder.to_owned(),
            buffered: folder.join("buffered"),
            direct: folder.join("direct"),
            bytes,
        };
        // Direct writes would throw the other loops' pages out of the page cache.
        for path in [&files.buffered, &files.direct] {
            let file = File::create_new(path)?;
            let zeros = vec![0; 1 << 20];
            for offset in (0..bytes).step_by(zeros.len()) {
                write_all_at(&file, &zeros, offset)?;
            }
            file.sync_all()?;
        }
        File::open(folder).and_then(|folder| folder.sync_all()).or_else(ignore_unsupported)?;
        Ok(files)
    }

    pub fn growing(&self) -> io::Result<Growing> {
        let path = self.folder.join("growing");
        let file = File::create(&path)?;
        file.sync_all()?;
        Ok(Growing { file: Some(file), path })
    }
}

/// Directories cannot be synced everywhere.
pub fn ignore_unsupported(error: io::Error) -> io::Result<()> {
    if cfg!(unix) { Err(error) } else { Ok(()) }
}

/// A file that is removed with its handle.
pub struct Growing {
    file: Option<File>,
    path: PathBuf,
}

impl Growing {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.file = None;
        // The folder is removed at the end in any case.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where the next write goes: one behind the other, from the beginning again where the file ends.
struct Cursor {
    next: u64,
    step: u64,
    end: u64,
}

impl Cursor {
    fn new(step: usize, end: u64) -> Self {
        Self { next: 0, step: step as u64, end }
    }

    fn take(&mut self) -> u64 {
        if self.next + self.step > self.end {
            self.next = 0;
        }
        let offset = self.next;
        self.next += self.step;
        offset
    }
}

/// The raw loops for entries of one size; with the size of the library's segments, where one was asked for, also the
/// loop that gets its zeros within the measured time.
pub fn raw_lines(files: &Arc<Files>, entry_bytes: usize, segment_bytes: Option<u64>) -> Vec<Line> {
    let subject = |name, strategy| Subject {
        kind: Kind::Raw,
        name,
        strategy,
        waiting: Waiting::None,
        committers: 1,
        entry_bytes,
    };
    type Loop = fn(&Files, &Window<'_>, &[u8]) -> Result<Sample, Failure>;
    let cell = |measure: Loop| {
        let (files, entry) = (Arc::clone(files), entry(entry_bytes));
        Box::new(move |window: &Window<'_>| measure(&files, window, &entry))
    };
    let mut lines = vec![
        Line::new(subject("growing", "pwrite+fdatasync"), cell(growing)),
        Line::new(subject(BASELINE, "pwrite+fdatasync"), cell(zero_filled)),
        Line::optional(subject(RING_LINKED, "linked"), cell(linked)),
        Line::optional(subject(O_DSYNC, "direct-dsync"), cell(direct)),
        Line::optional(subject(RING_DIRECT, "direct-dsync"), cell(|f, w, e| direct_ring(f, w, e, 1))),
        Line::optional(
            subject(RING_DIRECT_DEEP, "direct-dsync"),
            cell(|f, w, e| direct_ring(f, w, e, DEPTH)),
        ),
    ];
    if let Some(stretch) = segment_bytes {
        let (files, entry) = (Arc::clone(files), entry(entry_bytes));
        let measure = move |window: &Window<'_>| ahead::zeroed_ahead(&files, window, &entry, stretch);
        lines.push(Line::optional(subject(ZEROED_AHEAD, "direct-dsync"), Box::new(measure)));
    }
    lines
}

/// The raw loops of large writes: into the page cache, with and without a sync each `segment_bytes`, and to the device.
pub fn stream_lines(files: &Arc<Files>, segment_bytes: u64) -> Vec<Line> {
    let subject = |name, strategy| Subject {
        kind: Kind::Raw,
        name,
        strategy,
        waiting: Waiting::None,
        committers: 1,
        entry_bytes: STREAM_ENTRY_BYTES,
    };
    let direct = {
        let files = Arc::clone(files);
        Box::new(move |window: &Window<'_>| stream_direct(&files, window))
    };
    let writes = |synced_each: u64| {
        let (files, block) = (Arc::clone(files), entry(STREAM_BYTES));
        Box::new(move |window: &Window<'_>| stream(&files, &block, synced_each, window))
    };
    vec![
        Line::new(subject(STREAM, NO_SYNC), writes(u64::MAX)).against(STREAM),
        Line::new(subject(STREAM_SYNCED, "pwrite+fdatasync"), writes(segment_bytes)).against(STREAM),
        Line::optional(subject(STREAM_DIRECT, "direct"), direct).against(STREAM),
    ]
}

fn stream(files: &Files, block: &[u8], synced_each: u64, window: &Window<'_>) -> Result<Sample, Failure> {
    let growing = files.growing()?;
    let file = growing.file.as_ref().ok_or("no file")?;
    let (mut cursor, mut unsynced) = (Cursor::new(block.len(), u64::MAX), 0);
    let sample = drive::alone(window, || {
        write_all_at(file, block, cursor.take())?;
        unsynced += block.len() as u64;
        if unsynced >= synced_each {
            unsynced = 0;
            file.sync_data()?;
        }
        Ok(())
    })?;
    Ok(sample
        .of_entries((STREAM_BYTES / STREAM_ENTRY_BYTES) as u64)
        .with_file_bytes(STREAM_ENTRY_BYTES as f64))
}

fn stream_direct(files: &Files, window: &Window<'_>) -> Result<Sample, Failure> {
    let file = open_direct(&files.direct, false)?;
    let block = CommitBuffer::from_slice(&entry(STREAM_DIRECT_BYTES));
    let mut cursor = Cursor::new(block.len(), files.bytes);
    let mut ring = ring::Ring::new(file, block, STREAM_DIRECT_DEPTH)?.without_sync();
    let sample = ring.keep_in_flight(window, || cursor.take())?;
    Ok(sample
        .of_entries((STREAM_DIRECT_BYTES / STREAM_ENTRY_BYTES) as u64)
        .with_file_bytes(STREAM_ENTRY_BYTES as f64))
}

/// The reference engines for entries of one size.
pub fn reference_lines(files: &Arc<Files>, committers: usize, entry_bytes: usize) -> Vec<Line> {
    let subject = |name| Subject {
        kind: Kind::Reference,
        name,
        strategy: "pwrite+fdatasync",
        waiting: Waiting::Threads,
        committers,
        entry_bytes,
    };
    let entry = entry(entry_bytes);
    let mutex = {
        let (files, entry) = (Arc::clone(files), entry.clone());
        Box::new(move |window: &Window<'_>| {
            let growing = files.growing()?;
            let engine = MutexEngine::new(growing.file.as_ref().ok_or("no file")?.try_clone()?);
            let sample = drive::threads(window, committers, || engine.commit(&entry))?;
            Ok(sample.with_file_bytes(entry_bytes as f64))
        })
    };
    let group = {
        let files = Arc::clone(files);
        Box::new(move |window: &Window<'_>| {
            let engine = GroupEngine::new(OpenOptions::new().write(true).open(&files.buffered)?, files.bytes);
            let sample = drive::threads(window, committers, || engine.commit(&entry))?;
            Ok(sample.with_file_bytes(entry_bytes as f64))
        })
    };
    vec![Line::new(subject("mutex"), mutex), Line::new(subject("leader/follower"), group)]
}

fn growing(files: &Files, window: &Window<'_>, entry: &[u8]) -> Result<Sample, Failure> {
    let growing = files.growing()?;
    let file = growing.file.as_ref().ok_or("no file")?;
    write_and_sync(file, u64::MAX, window, entry)
}

fn zero_filled(files: &Files, window: &Window<'_>, entry: &[u8]) -> Result<Sample, Failure> {
    let file = OpenOptions::new().write(true).open(&files.buffered)?;
    write_and_sync(&file, files.bytes, window, entry)
}

fn write_and_sync(file: &File, end: u64, window: &Window<'_>, entry: &[u8]) -> Result<Sample, Failure> {
    let mut cursor = Cursor::new(entry.len(), end);
    let sample = drive::alone(window, || {
        write_all_at(file, entry, cursor.take())?;
        Ok(file.sync_data()?)
    })?;
    Ok(sample.with_file_bytes(entry.len() as f64))
}

fn linked(files: &Files, window: &Window<'_>, entry: &[u8]) -> Result<Sample, Failure> {
    let file = OpenOptions::new().write(true).open(&files.buffered)?;
    let mut ring = ring::Ring::new(file, CommitBuffer::from_slice(entry), 1)?;
    let mut cursor = Cursor::new(entry.len(), files.bytes);
    let sample = drive::alone(window, || Ok(ring.write_linked_to_sync(cursor.take())?))?;
    Ok(sample.with_file_bytes(entry.len() as f64))
}

fn direct(files: &Files, window: &Window<'_>, entry: &[u8]) -> Result<Sample, Failure> {
    let file = open_direct(&files.direct, true)?;
    let block = direct_block(entry);
    let mut cursor = Cursor::new(block.len(), files.bytes);
    let sample = drive::alone(window, || Ok(write_all_at(&file, &block, cursor.take())?))?;
    Ok(sample.with_file_bytes(block.len() as f64))
}

fn direct_ring(files: &Files, window: &Window<'_>, entry: &[u8], depth: usize) -> Result<Sample, Failure> {
    let block = direct_block(entry);
    let bytes = block.len();
    let mut cursor = Cursor::new(bytes, files.bytes);
    let mut ring = ring::Ring::new(open_direct(&files.direct, false)?, block, depth)?;
    Ok(ring.keep_in_flight(window, || cursor.take())?.with_file_bytes(bytes as f64))
}

/// The entry at an aligned address, padded with zeros.
pub fn direct_block(entry: &[u8]) -> CommitBuffer {
    let mut block = CommitBuffer::from_slice(entry);
    block.resize(entry.len().next_multiple_of(DIRECT_BYTES), 0);
    block
}

/// Opens past the page cache; with `synced`, so that each write is durable when it returns.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn open_direct(path: &Path, synced: bool) -> io::Result<File> {
    use nix::fcntl::OFlag;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = if synced { OFlag::O_DIRECT | OFlag::O_DSYNC } else { OFlag::O_DIRECT };
    OpenOptions::new().write(true).custom_flags(flags.bits()).open(path)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn open_direct(_: &Path, _: bool) -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "direct writes are measured on Linux only"))
}

/// Writes all of `bytes` at `offset`.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`; moves the file's cursor, which nobody uses.
#[cfg(not(unix))]
pub fn write_all_at(mut file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    use std::io::{Seek, Write};
    file.seek(io::SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_follow_one_another_and_never_pass_the_end() {
        let mut cursor = Cursor::new(100, 250);
        let offsets: Vec<u64> = std::iter::repeat_with(|| cursor.take()).take(5).collect();
        assert_eq!(offsets, [0, 100, 0, 100, 0]);
    }

    #[test]
    fn a_direct_block_is_aligned_and_whole() {
        for bytes in [1, 4096, 4097] {
            let block = direct_block(&entry(bytes));
            assert_eq!(block.len() % DIRECT_BYTES, 0);
            assert_eq!(block.as_ptr() as usize % DIRECT_BYTES, 0);
            assert_eq!(block[..bytes], entry(bytes));
        }
    }
}
