//! The contents of a disk: sparse, in memory, cheap to clone.
//!
//! Invariant: a block that is absent is all zeros.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub const BLOCK: usize = 4096;
/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub struct Image {
    pub bytes: u64,
    blocks: BTreeMap<u64, Arc<[u8; BLOCK]>>,
}

impl Image {
    /// All zeros.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, blocks: BTreeMap::new() }
    }

    /// Reads a file; its length is the disk's.
    pub fn load(file: &File) -> io::Result<Self> {
        let mut image = Self::new(file.metadata()?.len());
        let mut chunk = vec![0; 256 * BLOCK];
        let mut offset = 0;
        while offset < image.bytes {
            let bytes = chunk.len().min((image.bytes - offset) as usize);
            file.read_exact_at(&mut chunk[..bytes], offset)?;
            for (index, block) in chunk[..bytes].chunks(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    image.write(offset + (index * BLOCK) as u64, block);
                }
            }
            offset += bytes as u64;
        }
        Ok(image)
    }

    /// Makes `file` this disk.
    pub fn store(&self, file: &File) -> io::Result<()> {
        file.set_len(0)?;
        file.set_len(self.bytes)?;
        let mut run: Vec<u8> = Vec::new();
        let mut run_at = 0;
        for (number, block) in &self.blocks {
            let at = number * BLOCK as u64;
            if !run.is_empty() && run_at + run.len() as u64 != at {
                file.write_all_at(&run, run_at)?;
                run.clear();
            }
            if run.is_empty() {
                run_at = at;
            }
            run.extend_from_slice(&block[..]);
        }
        file.write_all_at(&run, run_at)
    }

    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = (offset % BLOCK as u64) as usize;
            let count = bytes.len().min(BLOCK - within);
            let block = self.blocks.entry(offset / BLOCK as u64).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within..within + count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            offset += count as u64;
        }
    }

    pub fn read(&self, mut offset: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let within = (offset % BLOCK as u64) as usize;
            let count = out.len().min(BLOCK - within);
            match self.blocks.get(&(offset / BLOCK as u64)) {
                Some(block) => out[..count].copy_from_slice(&block[within..within + count]),
                None => out[..count].fill(0),
            }
            out = &mut out[count..];
            offset += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_across_blocks_and_the_rest_is_zero() {
        let mut image = Image::new(10 * BLOCK as u64);
        let bytes: Vec<u8> = (0..2 * BLOCK).map(|index| index as u8 | 1).collect();
        image.write(BLOCK as u64 - 512, &bytes);
        let before = image.clone();
        image.write(BLOCK as u64, &[7; 512]);
        let mut out = vec![9; bytes.len() + 1024];
        before.read(BLOCK as u64 - 1024, &mut out);
        assert_eq!((&out[..512], &out[512..512 + bytes.len()]), (&[0; 512][..], &bytes[..]));
        image.read(BLOCK as u64, &mut out[..512]);
        assert_eq!(out[..512], [7; 512]);
    }
}
