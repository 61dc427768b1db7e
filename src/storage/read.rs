//! Reading at an offset.

use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::is_zero;
use crate::limits::READ_CHUNK_BYTES;
use std::io::Read;

/// A file open for reading at any offset.
pub trait ReadAt: Send + Sync {
    /// Size of the file in bytes, now.
    fn size(&self) -> PersistenceResult<u64>;

    /// Fills `buffer` from `offset`; returns how many bytes were there. Fewer than asked for only at the
    /// end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize>;
}

/// Fills all of `buffer` from `offset`, or fails with an unexpected end of file.
pub fn read_exact_at(file: &dyn ReadAt, path: &str, offset: u64, buffer: &mut [u8]) -> PersistenceResult<()> {
    let read = file.read_at(offset, buffer)?;
    if read == buffer.len() {
        return Ok(());
    }
    Err(PersistenceError::io(
        "read",
        path,
        Some(offset + read as u64),
        std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
    ))
}

/// Whether nothing but zeros follows from `from` on.
pub(crate) fn is_zero_from(file: &dyn ReadAt, from: u64) -> PersistenceResult<bool> {
    let (mut offset, mut chunk) = (from, vec![0; READ_CHUNK_BYTES]);
    loop {
        let read = file.read_at(offset, &mut chunk)?;
        if !is_zero(&chunk[..read]) {
            return Ok(false);
        }
        if read < chunk.len() {
            return Ok(true);
        }
        offset += read as u64;
    }
}

/// Positional reads over a directory that only knows streams: the file is read into memory once.
///
/// Only custom directories without [`Directory::open_at`](super::Directory::open_at) of their own get
/// this; their logs are bounded by memory.
pub(super) struct StreamReadAt {
    contents: Vec<u8>,
}

impl StreamReadAt {
    pub(super) fn open(mut stream: Box<dyn Read + Send>, path: &str) -> PersistenceResult<Self> {
        let mut contents = Vec::new();
        stream
            .read_to_end(&mut contents)
            .map_err(|source| PersistenceError::io("read", path, None, source))?;
        Ok(Self { contents })
    }
}

impl ReadAt for StreamReadAt {
    fn size(&self) -> PersistenceResult<u64> {
        Ok(self.contents.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        let contents = &self.contents;
        let from = usize::try_from(offset).map_or(contents.len(), |offset| offset.min(contents.len()));
        let count = buffer.len().min(contents.len() - from);
        buffer[..count].copy_from_slice(&contents[from..from + count]);
        Ok(count)
    }
}
