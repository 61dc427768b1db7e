//! Bytes to frames and back. No I/O, and no allocation by a length that was not checked.
//!
//! * [`layout`]: the field tables; `docs/format.md` is tested against them.
//! * [`header`]: the block that every file starts with.
//! * [`frame`]: batch frames, the unit of everything behind the header.
//! * [`scan`]: the one scanner. It alone tells a torn tail from corruption.
//! * [`names`]: file names.
//! * [`dump`]: annotated bytes.

pub mod dump;
pub mod frame;
pub mod header;
pub mod layout;
pub mod names;
pub mod scan;

/// Rounds up to a multiple of `alignment`, a power of two.
pub(crate) const fn align_up(value: u64, alignment: u64) -> u64 {
    debug_assert!(alignment.is_power_of_two());
    (value + alignment - 1) & !(alignment - 1)
}

/// Whether every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Wide steps first: this runs over whole preallocated tails.
    let mut chunks = bytes.chunks_exact(64);
    chunks.all(|chunk| chunk.iter().fold(0u8, |seen, byte| seen | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// Reads little-endian integers out of a slice whose length was checked.
pub(crate) mod le {
    pub(crate) fn u16(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(array(bytes, at))
    }
    pub(crate) fn u32(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(array(bytes, at))
    }
    pub(crate) fn u64(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(array(bytes, at))
    }
    pub(crate) fn u128(bytes: &[u8], at: usize) -> u128 {
        u128::from_le_bytes(array(bytes, at))
    }
    pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }
    fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&bytes[at..at + N]);
        array
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_bit_anywhere_is_not_zero() {
        for len in [0usize, 1, 63, 64, 65, 512, 1000] {
            assert!(is_zero(&vec![0; len]));
            for at in 0..len {
                let mut bytes = vec![0; len];
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{len} {at}");
            }
        }
    }

    #[test]
    fn rounding_up_reaches_the_next_multiple() {
        assert_eq!([0, 1, 511, 512, 513].map(|value| align_up(value, 512)), [0, 512, 512, 512, 1024]);
    }
}
