//! Batch frames: the unit behind every header.
//!
//! A frame is a header of [`FRAME_HEADER_BYTES`] and a payload, padded with zeros to the file's frame
//! alignment. The header has its own checksum, seeded with the file's salt and the frame's offset, so
//! that a frame of another file, another incarnation or another place never checks out. The payload's
//! checksum is seeded with the salt and covers the padding. A batch is atomic: all of its entries are
//! recovered or none.

use super::layout::{
    self, ENTRY_LENGTH_BYTES, FRAME, FRAME_HEADER_BYTES, MAGIC_FRAME, OPENING_BYTES, SEAL_BYTES,
};
use super::{align_up, is_zero, le};
use crate::limits::{BATCH_BYTES_MAX, ENTRY_BYTES_MAX, ENTRY_ID_MAX, SECTOR_BYTES};
use crate::planted;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum FrameKind {
    /// Says what the segment follows; the first frame of a segment.
    Opening,
    /// Entries.
    Data,
    /// Says that the log was clean here, and what was durable.
    Seal,
}

impl FrameKind {
    /// The byte on disk.
    pub const fn code(self) -> u8 {
        match self {
            Self::Opening => 1,
            Self::Data => 2,
            Self::Seal => 3,
        }
    }
}

/// Reserved for a later kind that voids the entries after a given id.
pub const KIND_VOID_RESERVED: u8 = 4;

/// A frame header that checked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Entries in it.
    pub entry_count: u32,
    /// Bytes of payload, without padding.
    pub payload_bytes: u32,
    /// Checksum of payload and padding.
    pub payload_crc: u32,
    /// Id of the first entry; in a frame without entries, of the entry that comes next.
    pub first_entry_id: u64,
    /// Everything up to here was durable when the frame was written.
    pub durable_entry_id: u64,
    /// How many sectors of the frame were all zeros when it was written: any more that are found zero
    /// later were never written.
    pub zero_sectors: u32,
}

impl FrameHeader {
    /// Bytes of the whole frame, padding included.
    pub fn frame_bytes(&self, alignment: u32) -> u64 {
        frame_bytes(self.payload_bytes as usize, alignment)
    }

    /// Id of the entry that comes after this frame.
    pub fn next_entry_id(&self) -> u64 {
        self.first_entry_id + u64::from(self.entry_count)
    }
}

/// Bytes of a frame with this payload, padding included.
pub fn frame_bytes(payload_bytes: usize, alignment: u32) -> u64 {
    align_up((FRAME_HEADER_BYTES + payload_bytes) as u64, u64::from(alignment))
}

/// The checksums of one incarnation of one file.
#[derive(Clone, Copy, Debug)]
pub struct FrameSeed(u32);

impl FrameSeed {
    /// Seeded with a salt.
    pub fn new(salt: u64) -> Self {
        let salt = if planted::on("frames_without_salt") { 0 } else { salt };
        Self((salt ^ (salt >> 32)) as u32)
    }

    #[inline]
    fn header_crc(self, offset: u64, header: &[u8]) -> u32 {
        // In one piece, because two short updates cost more, and put together in the steps in which it is
        // read again, or the processor waits for its own stores.
        let mut bytes = [0; 8 + FRAME_HEADER_BYTES - KIND_AT];
        let first = u128::from(offset) | u128::from(le::u64(header, KIND_AT)) << 64;
        bytes[..16].copy_from_slice(&first.to_le_bytes());
        bytes[16..32].copy_from_slice(&header[16..32]);
        bytes[32..].copy_from_slice(&header[32..FRAME_HEADER_BYTES]);
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(&bytes);
        hasher.finalize()
    }

    /// Checksum of a payload with its padding.
    #[inline]
    pub fn payload_crc(self, padded_payload: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(padded_payload);
        hasher.finalize()
    }
}

const CRC_AT: usize = layout::at(FRAME, "header_crc");
pub(crate) const KIND_AT: usize = layout::at(FRAME, "kind");

/// The facts that a frame states, besides its payload.
#[derive(Clone, Copy, Debug)]
pub struct FrameFacts {
    /// What the frame is.
    pub kind: FrameKind,
    /// Entries in it.
    pub entry_count: u32,
    /// Bytes of payload, without padding.
    pub payload_bytes: usize,
    /// Id of its first entry (or of the one that comes next).
    pub first_entry_id: u64,
    /// The durable watermark.
    pub durable_entry_id: u64,
}

/// Completes a frame in place: `frame` has room for the header, the payload, and zeros up to its aligned
/// end; it will stand at `offset` of the file.
pub fn finish(frame: &mut [u8], offset: u64, seed: FrameSeed, facts: FrameFacts) {
    let used = FRAME_HEADER_BYTES + facts.payload_bytes;
    assert!(
        facts.payload_bytes <= BATCH_BYTES_MAX && used <= frame.len(),
        "a payload that was never checked"
    );
    assert!(is_zero(&frame[used..]), "padding is zeros");
    debug_assert!(facts.durable_entry_id < facts.first_entry_id + u64::from(facts.entry_count.max(1)));
    let payload_crc = seed.payload_crc(&frame[FRAME_HEADER_BYTES..]);
    let zero_sectors = count_zero_sectors(frame);
    let mut put = |name: &str, value: &[u8]| le::put(frame, layout::at(FRAME, name), value);
    put("magic", &MAGIC_FRAME);
    put("kind", &[facts.kind.code()]);
    put("flags", &[0]);
    put("reserved", &[0; 2]);
    put("entry_count", &facts.entry_count.to_le_bytes());
    put("payload_bytes", &(facts.payload_bytes as u32).to_le_bytes());
    put("payload_crc", &payload_crc.to_le_bytes());
    put("first_entry_id", &facts.first_entry_id.to_le_bytes());
    put("durable_entry_id", &facts.durable_entry_id.to_le_bytes());
    put("zero_sectors", &zero_sectors.to_le_bytes());
    put("reserved2", &[0; 4]);
    let crc = seed.header_crc(offset, frame);
    le::put(frame, CRC_AT, &crc.to_le_bytes());
}

/// Sectors of a frame that are all zeros. The first one holds the header and never is.
pub(crate) fn count_zero_sectors(frame: &[u8]) -> u32 {
    frame.chunks(SECTOR_BYTES).skip(1).filter(|sector| is_zero(sector)).count() as u32
}

/// What the bytes at a frame's place are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameHeaderState {
    /// A header that checks out.
    Good(FrameHeader),
    /// Not a header of this file at this offset.
    Bad,
    /// The checksum matches, and the contents are none that this release writes.
    Impossible(&'static str),
}

/// Reads a frame header at `offset` of the file. `bytes` are at least [`FRAME_HEADER_BYTES`] long.
#[inline]
pub fn decode_header(bytes: &[u8], offset: u64, seed: FrameSeed) -> FrameHeaderState {
    if bytes[..4] != MAGIC_FRAME || seed.header_crc(offset, bytes) != le::u32(bytes, CRC_AT) {
        return FrameHeaderState::Bad;
    }
    let kind = match bytes[KIND_AT] {
        1 => FrameKind::Opening,
        2 => FrameKind::Data,
        3 => FrameKind::Seal,
        KIND_VOID_RESERVED => return FrameHeaderState::Impossible("a voiding frame, of a later version"),
        _ => return FrameHeaderState::Impossible("an unknown kind"),
    };
    if bytes[const { layout::at(FRAME, "flags") }] != 0 {
        return FrameHeaderState::Impossible("compressed or encrypted, by a later version");
    }
    let header = FrameHeader {
        kind,
        entry_count: le::u32(bytes, const { layout::at(FRAME, "entry_count") }),
        payload_bytes: le::u32(bytes, const { layout::at(FRAME, "payload_bytes") }),
        payload_crc: le::u32(bytes, const { layout::at(FRAME, "payload_crc") }),
        first_entry_id: le::u64(bytes, const { layout::at(FRAME, "first_entry_id") }),
        durable_entry_id: le::u64(bytes, const { layout::at(FRAME, "durable_entry_id") }),
        zero_sectors: le::u32(bytes, const { layout::at(FRAME, "zero_sectors") }),
    };
    let problem = if header.payload_bytes as usize > BATCH_BYTES_MAX && !planted::on("trust_length") {
        "a payload above the limit"
    } else if header.first_entry_id == 0
        || header
            .first_entry_id
            .checked_add(header.entry_count.into())
            .is_none_or(|next| next > ENTRY_ID_MAX + 1)
    {
        "entry ids out of range"
    } else if header.durable_entry_id >= header.first_entry_id + u64::from(header.entry_count.max(1)) {
        "a watermark above the entries that existed"
    } else if (kind == FrameKind::Data) != (header.entry_count > 0) {
        "an entry count that does not fit the kind"
    } else if u64::from(header.entry_count) * ENTRY_LENGTH_BYTES as u64 > u64::from(header.payload_bytes) {
        "more entries than the payload can hold"
    } else {
        return FrameHeaderState::Good(header);
    };
    FrameHeaderState::Impossible(problem)
}

/// What an opening frame says about the segment before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Salt of the segment (for a record log: the offset space) that this one continues; 0 for none.
    pub predecessor_salt: u64,
    /// Its segment id; 0 for none.
    pub predecessor_id: u64,
    /// Where it ends, in bytes; what stands behind is cut.
    pub predecessor_end: u64,
    /// The last entry before this segment.
    pub predecessor_last_entry_id: u64,
}

impl Opening {
    /// The payload.
    pub fn encode(&self) -> [u8; OPENING_BYTES] {
        let mut bytes = [0; OPENING_BYTES];
        let values = [
            self.predecessor_salt,
            self.predecessor_id,
            self.predecessor_end,
            self.predecessor_last_entry_id,
        ];
        for (field, value) in layout::OPENING.iter().zip(values) {
            le::put(&mut bytes, field.offset, &value.to_le_bytes());
        }
        bytes
    }

    /// From a payload that checked out; `None` when its length is wrong.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        (payload.len() == OPENING_BYTES).then(|| Self {
            predecessor_salt: le::u64(payload, 0),
            predecessor_id: le::u64(payload, 8),
            predecessor_end: le::u64(payload, 16),
            predecessor_last_entry_id: le::u64(payload, 24),
        })
    }
}

/// Why a seal was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum SealReason {
    /// The writer was closed. Nothing follows in a WAL segment; a record log may be opened again.
    Close,
    /// The log goes on in the segment that the seal names.
    Rotation,
    /// Nothing was written for a while; more may follow.
    Idle,
}

/// A seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Why it was written.
    pub reason: SealReason,
    /// The segment in which the log goes on; 0 for none.
    pub successor_id: u64,
    /// Its salt; 0 for none.
    pub successor_salt: u64,
}

impl Seal {
    /// The payload.
    pub fn encode(&self) -> [u8; SEAL_BYTES] {
        let mut bytes = [0; SEAL_BYTES];
        bytes[0] = match self.reason {
            SealReason::Close => 1,
            SealReason::Rotation => 2,
            SealReason::Idle => 3,
        };
        le::put(&mut bytes, layout::at(layout::SEAL, "successor_id"), &self.successor_id.to_le_bytes());
        le::put(&mut bytes, layout::at(layout::SEAL, "successor_salt"), &self.successor_salt.to_le_bytes());
        bytes
    }

    /// From a payload that checked out; `None` when its contents are impossible.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        if payload.len() != SEAL_BYTES {
            return None;
        }
        let reason = match payload[0] {
            1 => SealReason::Close,
            2 => SealReason::Rotation,
            3 => SealReason::Idle,
            _ => return None,
        };
        Some(Self { reason, successor_id: le::u64(payload, 8), successor_salt: le::u64(payload, 16) })
    }
}

/// The length prefix of an entry.
pub fn entry_length(payload: &[u8]) -> [u8; ENTRY_LENGTH_BYTES] {
    debug_assert!(payload.len() <= ENTRY_BYTES_MAX);
    (payload.len() as u32).to_le_bytes()
}

/// Whether a data payload is exactly `count` entries.
#[inline]
pub fn entries_tile(payload: &[u8], count: u32) -> bool {
    let mut rest = payload;
    for _ in 0..count {
        match split_entry(rest) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    rest.is_empty()
}

/// The first of several entries, and what is behind it.
#[inline]
pub fn split_entry(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = payload.split_at_checked(ENTRY_LENGTH_BYTES)?;
    let length = le::u32(length, 0) as usize;
    if length > ENTRY_BYTES_MAX {
        return None;
    }
    rest.split_at_checked(length)
}

/// The entries of a data frame whose payload checked out, with their ids.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    next_entry_id: u64,
    remaining: u32,
}

impl<'a> Entries<'a> {
    /// The entries of `payload`.
    pub fn new(header: &FrameHeader, payload: &'a [u8]) -> Self {
        Self { rest: payload, next_entry_id: header.first_entry_id, remaining: header.entry_count }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (u64, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            return None;
        }
        let (entry, rest) = split_entry(self.rest)?;
        let entry_id = self.next_entry_id;
        self.rest = rest;
        self.next_entry_id += 1;
        self.remaining -= 1;
        Some((entry_id, entry))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A finished data frame.
    pub(crate) fn data_frame(
        entries: &[&[u8]],
        first: u64,
        durable: u64,
        offset: u64,
        salt: u64,
        alignment: u32,
    ) -> Vec<u8> {
        let mut payload = Vec::new();
        for entry in entries {
            payload.extend_from_slice(&entry_length(entry));
            payload.extend_from_slice(entry);
        }
        frame(FrameKind::Data, &payload, entries.len() as u32, first, durable, offset, salt, alignment)
    }

    /// Any finished frame.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn frame(
        kind: FrameKind,
        payload: &[u8],
        entry_count: u32,
        first_entry_id: u64,
        durable_entry_id: u64,
        offset: u64,
        salt: u64,
        alignment: u32,
    ) -> Vec<u8> {
        let mut bytes = vec![0; frame_bytes(payload.len(), alignment) as usize];
        bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload.len()].copy_from_slice(payload);
        let facts =
            FrameFacts { kind, entry_count, payload_bytes: payload.len(), first_entry_id, durable_entry_id };
        finish(&mut bytes, offset, FrameSeed::new(salt), facts);
        bytes
    }

    #[test]
    fn entries_come_back_with_their_ids() {
        let bytes = data_frame(&[b"one", b"", b"three"], 5, 4, 512, 9, 512);
        let FrameHeaderState::Good(header) = decode_header(&bytes, 512, FrameSeed::new(9)) else { panic!() };
        assert_eq!((header.next_entry_id(), header.frame_bytes(512)), (8, 512));
        assert_eq!(header.payload_crc, FrameSeed::new(9).payload_crc(&bytes[FRAME_HEADER_BYTES..]));
        let payload = &bytes[FRAME_HEADER_BYTES..][..header.payload_bytes as usize];
        assert!(entries_tile(payload, 3) && !entries_tile(payload, 2));
        let found: Vec<_> = Entries::new(&header, payload).collect();
        assert_eq!(found, [(5, &b"one"[..]), (6, b""), (7, b"three")]);
    }

    #[test]
    fn a_header_checks_out_only_with_its_salt_at_its_place_unflipped() {
        let bytes = data_frame(&[b"x"], 1, 0, 1024, 77, 512);
        let good = |bytes: &[u8], offset, salt| {
            matches!(decode_header(bytes, offset, FrameSeed::new(salt)), FrameHeaderState::Good(_))
        };
        assert!(good(&bytes, 1024, 77));
        assert!(!good(&bytes, 1536, 77) && !good(&bytes, 1024, 78));
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_header(&flipped, 1024, FrameSeed::new(77)), FrameHeaderState::Bad, "bit {bit}");
        }
    }

    #[test]
    fn a_length_above_the_limit_is_impossible_however_well_it_is_signed() {
        let mut bytes = data_frame(&[b"x"], 1, 0, 512, 9, 512);
        let at = const { layout::at(FRAME, "payload_bytes") };
        bytes[at..at + 4].copy_from_slice(&(BATCH_BYTES_MAX as u32 + 1).to_le_bytes());
        let seed = FrameSeed::new(9);
        let crc = seed.header_crc(512, &bytes);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        let answer = decode_header(&bytes, 512, seed);
        assert_eq!(answer, FrameHeaderState::Impossible("a payload above the limit"));
    }

    #[test]
    fn zero_sectors_are_counted_when_written() {
        let entry = vec![0u8; 2000];
        let bytes = data_frame(&[&entry, b"end"], 1, 0, 512, 1, 512);
        let FrameHeaderState::Good(header) = decode_header(&bytes, 512, FrameSeed::new(1)) else { panic!() };
        assert_eq!((bytes.len(), header.zero_sectors), (2560, 3));
    }

    #[test]
    fn openings_and_seals_come_back() {
        let opening = Opening {
            predecessor_salt: 1,
            predecessor_id: 2,
            predecessor_end: 3,
            predecessor_last_entry_id: 4,
        };
        assert_eq!(Opening::decode(&opening.encode()), Some(opening));
        for reason in [SealReason::Close, SealReason::Rotation, SealReason::Idle] {
            let seal = Seal { reason, successor_id: 8, successor_salt: 9 };
            assert_eq!(Seal::decode(&seal.encode()), Some(seal));
        }
        assert_eq!(Seal::decode(&[0; SEAL_BYTES]), None);
        assert_eq!(Opening::decode(&[0; 3]), None);
    }
}
