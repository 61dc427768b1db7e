//! The field tables: every byte offset, width and magic of the format, told once.
//!
//! Encoders and decoders take their offsets from here, `dump` prints by it, and a test compares the
//! tables of `docs/format.md` with it. Each table tiles its block: checked when the crate is compiled.

/// One field of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, as in `docs/format.md`.
    pub name: &'static str,
    /// Offset in the block, in bytes.
    pub offset: usize,
    /// Width, in bytes.
    pub bytes: usize,
}

impl Field {
    /// The field's bytes in a block.
    pub fn of<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[self.offset..self.offset + self.bytes]
    }
}

const fn field(name: &'static str, offset: usize, bytes: usize) -> Field {
    Field { name, offset, bytes }
}

/// Format version that this release writes, and the newest that it reads.
pub const VERSION: u16 = 1;

/// Bytes of a file header block.
pub const HEADER_BYTES: usize = 512;

/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 48;

/// Bytes of an opening frame's payload.
pub const OPENING_BYTES: usize = 32;

/// Bytes of a seal's payload.
pub const SEAL_BYTES: usize = 24;

/// Bytes of the length before each entry of a data frame.
pub const ENTRY_LENGTH_BYTES: usize = 4;

/// First bytes of a WAL segment.
pub const MAGIC_SEGMENT: [u8; 8] = *b"DURAWAL\x1a";

/// First bytes of a record log.
pub const MAGIC_RECORD_LOG: [u8; 8] = *b"DURAREC\x1a";

/// First bytes of a checkpoint.
pub const MAGIC_CHECKPOINT: [u8; 8] = *b"DURACKP\x1a";

/// First bytes of a frame.
pub const MAGIC_FRAME: [u8; 4] = *b"DFRM";

/// The file header.
pub const HEADER: &[Field] = &[
    field("magic", 0, 8),
    field("version", 8, 2),
    field("header_bytes", 10, 2),
    field("frame_alignment", 12, 4),
    field("identity", 16, 16),
    field("salt", 32, 8),
    field("file_id", 40, 8),
    field("previous_salt", 48, 8),
    field("last_applied_entry_id", 56, 8),
    field("required_entry_id", 64, 8),
    field("features", 72, 4),
    field("reserved", 76, 432),
    field("header_crc", 508, 4),
];

/// The frame header.
pub const FRAME: &[Field] = &[
    field("magic", 0, 4),
    field("header_crc", 4, 4),
    field("kind", 8, 1),
    field("flags", 9, 1),
    field("reserved", 10, 2),
    field("entry_count", 12, 4),
    field("payload_bytes", 16, 4),
    field("payload_crc", 20, 4),
    field("first_entry_id", 24, 8),
    field("durable_entry_id", 32, 8),
    field("zero_sectors", 40, 4),
    field("reserved2", 44, 4),
];

/// The payload of an opening frame.
pub const OPENING: &[Field] = &[
    field("predecessor_salt", 0, 8),
    field("predecessor_id", 8, 8),
    field("predecessor_end", 16, 8),
    field("predecessor_last_entry_id", 24, 8),
];

/// The payload of a seal.
pub const SEAL: &[Field] = &[
    field("reason", 0, 1),
    field("reserved", 1, 7),
    field("successor_id", 8, 8),
    field("successor_salt", 16, 8),
];

/// Offset of a field, found when the crate is compiled.
pub(crate) const fn at(table: &[Field], name: &str) -> usize {
    let mut index = 0;
    while index < table.len() {
        if same(table[index].name, name) {
            return table[index].offset;
        }
        index += 1;
    }
    panic!("no such field")
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

const fn tiles(table: &[Field], bytes: usize) -> bool {
    let (mut index, mut next) = (0, 0);
    while index < table.len() {
        if table[index].offset != next {
            return false;
        }
        next += table[index].bytes;
        index += 1;
    }
    next == bytes
}

const _: () = {
    assert!(tiles(HEADER, HEADER_BYTES));
    assert!(tiles(FRAME, FRAME_HEADER_BYTES));
    assert!(tiles(OPENING, OPENING_BYTES));
    assert!(tiles(SEAL, SEAL_BYTES));
    assert!(HEADER_BYTES == crate::limits::SECTOR_BYTES, "a header is written whole or not at all");
    assert!(
        FRAME_HEADER_BYTES < crate::limits::SECTOR_BYTES,
        "a frame header is written whole or not at all"
    );
    assert!(crate::limits::FRAME_ALIGNMENT_MIN as usize >= HEADER_BYTES, "frames start behind the header");
};
