//! Owned, aligned, growable byte buffers for commits.
//!
//! A commit's bytes belong to the operation until its completion is read, so the buffer travels with it
//! and comes back. Alignment is had from ordinary safe allocation: a little more is reserved than asked
//! for, and the bytes start at the first aligned address.
//!
//! Invariant: `bytes[start..]` begins at an address that is a multiple of
//! [`BUFFER_ALIGNMENT`](crate::limits::BUFFER_ALIGNMENT); the vector never reallocates in place behind
//! our back, because growth always goes through [`CommitBuffer::reserve`].

use crate::limits::BUFFER_ALIGNMENT;
use std::ops::{Deref, DerefMut};

/// A byte buffer whose first byte has an address fit for direct I/O.
///
/// Moving the buffer does not move its bytes.
#[derive(Default)]
pub struct CommitBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl CommitBuffer {
    /// An empty buffer; allocates nothing.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), start: 0 }
    }

    /// An empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut buffer = Self::new();
        buffer.reserve(capacity);
        buffer
    }

    /// A copy of `bytes` at an aligned address.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buffer = Self::with_capacity(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// Bytes that fit without another allocation.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() - self.start
    }

    /// Makes room for `additional` more bytes. Existing bytes keep their values, not their address.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self.len() + additional;
        if needed <= self.capacity() && self.bytes.capacity() > 0 {
            return;
        }
        let target = needed.max(self.capacity() * 2).max(BUFFER_ALIGNMENT);
        let mut grown: Vec<u8> = Vec::with_capacity(target + BUFFER_ALIGNMENT);
        let start = grown.as_ptr().align_offset(BUFFER_ALIGNMENT);
        // `align_offset` may decline in principle; without alignment a direct write would be refused by
        // the kernel with an error, never written wrongly.
        let start = if start < BUFFER_ALIGNMENT { start } else { 0 };
        grown.resize(start, 0);
        grown.extend_from_slice(self);
        self.bytes = grown;
        self.start = start;
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// Sets the length; new bytes are `value`.
    pub fn resize(&mut self, len: usize, value: u8) {
        if len > self.len() {
            self.reserve(len - self.len());
        }
        self.bytes.resize(self.start + len, value);
    }

    /// Forgets the bytes, keeps the room.
    pub fn clear(&mut self) {
        self.bytes.truncate(self.start);
    }

    /// Forgets what is behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate((self.start + len).min(self.bytes.len()));
    }
}

impl Deref for CommitBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl DerefMut for CommitBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

impl std::fmt::Debug for CommitBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitBuffer").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

impl std::io::Write for CommitBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_aligned_and_equal_while_the_buffer_grows() {
        let mut buffer = CommitBuffer::new();
        let mut model = Vec::new();
        for round in 0..200usize {
            let piece = vec![round as u8; round * 7 % 613];
            buffer.extend_from_slice(&piece);
            model.extend_from_slice(&piece);
            assert_eq!(&buffer[..], &model[..]);
            if !buffer.is_empty() {
                assert_eq!(buffer.as_ptr() as usize % BUFFER_ALIGNMENT, 0);
            }
        }
        let moved = buffer;
        assert_eq!(moved.as_ptr() as usize % BUFFER_ALIGNMENT, 0);
    }

    #[test]
    fn a_cleared_buffer_does_not_allocate_again_for_the_same_size() {
        let mut buffer = CommitBuffer::with_capacity(10_000);
        buffer.resize(10_000, 1);
        let address = buffer.as_ptr();
        buffer.clear();
        buffer.resize(10_000, 2);
        assert_eq!(address, buffer.as_ptr());
        assert!(buffer.iter().all(|byte| *byte == 2));
    }
}
