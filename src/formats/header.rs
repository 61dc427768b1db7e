//! The block that every file starts with.
//!
//! Read, it is not yet trusted: [`decode`] answers what the bytes are, and only its `Good` carries a
//! [`Header`]. The checksum stands at the same place in every version, so that a header of a later
//! version is told apart from a damaged one.

use super::layout::{self, HEADER, HEADER_BYTES, VERSION};
use super::{is_zero, le};
use crate::error::FormatProblem;
use crate::limits::{ENTRY_ID_MAX, FRAME_ALIGNMENT_MAX, FRAME_ALIGNMENT_MIN};
use crate::planted;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum FileKind {
    /// A segment of a write-ahead log.
    Segment,
    /// A single-file record log.
    RecordLog,
    /// A checkpoint.
    Checkpoint,
}

impl FileKind {
    /// The first eight bytes of such a file.
    pub fn magic(self) -> [u8; 8] {
        match self {
            Self::Segment => layout::MAGIC_SEGMENT,
            Self::RecordLog => layout::MAGIC_RECORD_LOG,
            Self::Checkpoint => layout::MAGIC_CHECKPOINT,
        }
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Segment => "wal segment",
            Self::RecordLog => "recordlog",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// The kind whose magic these bytes begin with.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        [Self::Segment, Self::RecordLog, Self::Checkpoint]
            .into_iter()
            .find(|kind| bytes.starts_with(&kind.magic()))
    }
}

/// A header that checked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the file is.
    pub kind: FileKind,
    /// Frames start at multiples of this, in bytes.
    pub frame_alignment: u32,
    /// The log that the file belongs to.
    pub identity: u128,
    /// This incarnation of the file; every checksum behind the header is seeded with it.
    pub salt: u64,
    /// Segment id; 0 for other kinds.
    pub file_id: u64,
    /// Salt of the previous incarnation, where a recycled file was not zeroed; 0 otherwise.
    pub previous_salt: u64,
    /// Checkpoints: the last entry that is applied in it; 0 for other kinds.
    pub last_applied_entry_id: u64,
    /// Checkpoints: the least entry at which the log may end; 0 for other kinds.
    pub required_entry_id: u64,
}

impl Header {
    /// A header of `kind` with everything optional at 0.
    pub fn new(kind: FileKind, frame_alignment: u32, identity: u128, salt: u64) -> Self {
        Self {
            kind,
            frame_alignment,
            identity,
            salt,
            file_id: 0,
            previous_salt: 0,
            last_applied_entry_id: 0,
            required_entry_id: 0,
        }
    }

    /// Where the first frame starts, in bytes.
    pub fn first_frame_offset(&self) -> u64 {
        u64::from(self.frame_alignment)
    }

    /// The header block.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut block = [0; HEADER_BYTES];
        let mut put = |name: &str, value: &[u8]| {
            let offset = layout::at(HEADER, name);
            le::put(&mut block, offset, value);
        };
        put("magic", &self.kind.magic());
        put("version", &VERSION.to_le_bytes());
        put("header_bytes", &(HEADER_BYTES as u16).to_le_bytes());
        put("frame_alignment", &self.frame_alignment.to_le_bytes());
        put("identity", &self.identity.to_le_bytes());
        put("salt", &self.salt.to_le_bytes());
        put("file_id", &self.file_id.to_le_bytes());
        put("previous_salt", &self.previous_salt.to_le_bytes());
        put("last_applied_entry_id", &self.last_applied_entry_id.to_le_bytes());
        put("required_entry_id", &self.required_entry_id.to_le_bytes());
        let crc = crc32fast::hash(&block[..CRC_AT]);
        le::put(&mut block, CRC_AT, &crc.to_le_bytes());
        block
    }
}

const CRC_AT: usize = layout::at(HEADER, "header_crc");

/// What the first bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderState {
    /// They check out.
    Good(Header),
    /// There are none, or only zeros: a file that was made and never begun.
    Blank,
    /// A header of ours with a checksum that does not match.
    Damaged {
        /// Stated checksum.
        expected: u32,
        /// Checksum of the bytes that are there.
        found: u32,
    },
    /// Not a file that this release can read.
    Unusable(FormatProblem),
}

/// Reads the header of a file that should be of `kind`. `bytes` are the first [`HEADER_BYTES`] of the
/// file, or all of it where it is shorter.
pub fn decode(kind: FileKind, bytes: &[u8]) -> HeaderState {
    if is_zero(bytes) {
        return HeaderState::Blank;
    }
    if bytes.len() < HEADER_BYTES {
        return if kind.magic().starts_with(&bytes[..bytes.len().min(8)]) || bytes.starts_with(&kind.magic()) {
            HeaderState::Unusable(FormatProblem::TooShort {
                bytes: bytes.len() as u64,
                bytes_needed: HEADER_BYTES as u64,
            })
        } else {
            HeaderState::Unusable(wrong_magic(kind, bytes))
        };
    }
    let block = &bytes[..HEADER_BYTES];
    let expected = le::u32(block, CRC_AT);
    if !block.starts_with(&kind.magic()) {
        // Damage to the magic itself: everything else still agrees with the checksum.
        let mut mended = [0; HEADER_BYTES];
        mended.copy_from_slice(block);
        mended[..8].copy_from_slice(&kind.magic());
        return if crc32fast::hash(&mended[..CRC_AT]) == expected {
            HeaderState::Damaged { expected, found: crc32fast::hash(&block[..CRC_AT]) }
        } else {
            HeaderState::Unusable(wrong_magic(kind, block))
        };
    }
    let found = crc32fast::hash(&block[..CRC_AT]);
    if found != expected && !planted::on("ignore_header_crc") {
        return HeaderState::Damaged { expected, found };
    }
    trusted(kind, block).map_or_else(HeaderState::Unusable, HeaderState::Good)
}

/// Interprets a block whose checksum matched.
fn trusted(kind: FileKind, block: &[u8]) -> Result<Header, FormatProblem> {
    let at = |name: &str| layout::at(HEADER, name);
    let version = le::u16(block, at("version"));
    if version > VERSION {
        return Err(FormatProblem::FutureVersion { found: version, supported: VERSION });
    }
    let features = le::u32(block, at("features"));
    if features != 0 {
        return Err(FormatProblem::UnknownFeatures { bits: features });
    }
    let frame_alignment = le::u32(block, at("frame_alignment"));
    let header_bytes = le::u16(block, at("header_bytes"));
    let salt = le::u64(block, at("salt"));
    let wrong = |name, value| Err(FormatProblem::Field { name, value });
    if version == 0 {
        return wrong("version", 0);
    }
    if usize::from(header_bytes) != HEADER_BYTES {
        return wrong("header_bytes", header_bytes.into());
    }
    if !frame_alignment.is_power_of_two()
        || !(FRAME_ALIGNMENT_MIN..=FRAME_ALIGNMENT_MAX).contains(&frame_alignment)
    {
        return wrong("frame_alignment", frame_alignment.into());
    }
    if salt == 0 {
        return wrong("salt", 0);
    }
    for name in ["last_applied_entry_id", "required_entry_id"] {
        let entry_id = le::u64(block, at(name));
        if entry_id > ENTRY_ID_MAX {
            return wrong(name, entry_id);
        }
    }
    Ok(Header {
        kind,
        frame_alignment,
        identity: le::u128(block, at("identity")),
        salt,
        file_id: le::u64(block, at("file_id")),
        previous_salt: le::u64(block, at("previous_salt")),
        last_applied_entry_id: le::u64(block, at("last_applied_entry_id")),
        required_entry_id: le::u64(block, at("required_entry_id")),
    })
}

fn wrong_magic(kind: FileKind, bytes: &[u8]) -> FormatProblem {
    FormatProblem::Magic { expected: kind.name(), found: bytes[..bytes.len().min(8)].to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        Header { file_id: 7, ..Header::new(FileKind::Segment, 512, 0x1234_5678_9abc_def0, 99) }
    }

    fn resealed(mut block: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        let crc = crc32fast::hash(&block[..CRC_AT]);
        le::put(&mut block, CRC_AT, &crc.to_le_bytes());
        block
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(decode(FileKind::Segment, &sample().encode()), HeaderState::Good(sample()));
    }

    #[test]
    fn every_flipped_bit_is_damage_never_a_header() {
        let block = sample().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = block;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(decode(FileKind::Segment, &flipped), HeaderState::Damaged { .. }),
                "bit {bit}: {:?}",
                decode(FileKind::Segment, &flipped)
            );
        }
    }

    #[test]
    fn a_shorter_file_is_blank_or_too_short() {
        assert_eq!(decode(FileKind::Segment, &[]), HeaderState::Blank);
        assert_eq!(decode(FileKind::Segment, &[0; 4096]), HeaderState::Blank);
        let block = sample().encode();
        for bytes in 1..HEADER_BYTES {
            let state = decode(FileKind::Segment, &block[..bytes]);
            assert!(
                matches!(state, HeaderState::Unusable(FormatProblem::TooShort { .. })),
                "{bytes}: {state:?}"
            );
        }
    }

    #[test]
    fn another_kind_a_later_version_and_unknown_features_are_named() {
        let block = sample().encode();
        let state = decode(FileKind::RecordLog, &block);
        let HeaderState::Unusable(problem) = &state else { panic!("{state:?}") };
        assert!(problem.to_string().contains("invalid recordlog magic"), "{problem}");

        let mut later = block;
        later[8] = 2;
        let state = decode(FileKind::Segment, &resealed(later));
        assert_eq!(state, HeaderState::Unusable(FormatProblem::FutureVersion { found: 2, supported: 1 }));

        let mut features = block;
        features[72] = 4;
        let state = decode(FileKind::Segment, &resealed(features));
        assert_eq!(state, HeaderState::Unusable(FormatProblem::UnknownFeatures { bits: 4 }));
    }
}
