//! Damage as data: what does not check out, where, what proves it, and what a crash explains.

use std::fmt;

/// Why a file's header cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum FormatProblem {
    /// The first bytes are not those of the expected kind of file.
    Magic {
        /// The kind that was expected: `wal segment`, `recordlog` or `checkpoint`.
        expected: &'static str,
        /// The eight bytes that are there (fewer where the file is shorter).
        found: Vec<u8>,
    },
    /// The header checks out, but was written by a later version of the format.
    FutureVersion {
        /// The version that the file states.
        found: u16,
        /// The newest version that this release reads.
        supported: u16,
    },
    /// The header checks out, but uses features that this release does not know.
    UnknownFeatures {
        /// The feature bits that are not known.
        bits: u32,
    },
    /// The file ends before its header does.
    TooShort {
        /// Bytes in the file.
        bytes: u64,
        /// Bytes that a header has.
        bytes_needed: u64,
    },
    /// A field of a header that checks out holds a value that no release writes.
    Field {
        /// The field.
        name: &'static str,
        /// Its value.
        value: u64,
    },
}

impl fmt::Display for FormatProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { expected, found } => write!(f, "invalid {expected} magic {found:02x?}"),
            Self::FutureVersion { found, supported } => {
                write!(
                    f,
                    "format version {found} is newer than {supported}, the newest that is supported; upgrade"
                )
            }
            Self::UnknownFeatures { bits } => write!(f, "unknown format features {bits:#x}; upgrade"),
            Self::TooShort { bytes, bytes_needed } => {
                write!(f, "{bytes} bytes are too few for a header of {bytes_needed}")
            }
            Self::Field { name, value } => write!(f, "header field {name} has the impossible value {value}"),
        }
    }
}

/// Damage to data that was, or may have been, acknowledged: where, and what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Corruption {
    /// The file, relative to the directory's root.
    pub path: String,
    /// Byte offset of the first unit that does not check out.
    pub offset: u64,
    /// The first entry that is damaged or missing; 0 where no entry is concerned.
    pub entry_id: u64,
    /// What did not check out.
    pub check: Check,
    /// Why this is not a torn tail.
    pub proof: Proof,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.path, self.offset)?;
        if self.entry_id != 0 {
            write!(f, ", entry {}", self.entry_id)?;
        }
        write!(f, ": {}; {}", self.check, self.proof)
    }
}

/// Which check failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Check {
    /// The checksum of a file header.
    HeaderChecksum {
        /// Stated checksum.
        expected: u32,
        /// Checksum of the bytes that are there.
        found: u32,
    },
    /// The checksum of a frame header (a magic that does not match counts as this).
    FrameHeader,
    /// The checksum of a frame's payload.
    Payload {
        /// Stated checksum.
        expected: u32,
        /// Checksum of the bytes that are there.
        found: u32,
    },
    /// The file ends inside a frame.
    FileEnd {
        /// Bytes that the frame needs.
        bytes_needed: u64,
        /// Bytes that are there.
        bytes: u64,
    },
    /// A frame that checks out has contents that no release writes.
    FrameContents {
        /// What is impossible about it.
        what: &'static str,
    },
    /// A frame that checks out does not continue the ids before it.
    EntryOrder {
        /// The id that comes next.
        expected: u64,
        /// The id that the frame states.
        found: u64,
    },
    /// The file's header states another segment id than its name.
    SegmentName {
        /// Id in the name.
        named: u64,
        /// Id in the header.
        stated: u64,
    },
    /// The file belongs to another log.
    Identity {
        /// Identity of this log.
        #[cfg_attr(feature = "serde", serde(serialize_with = "as_hex::identity"))]
        expected: u128,
        /// Identity in the file.
        #[cfg_attr(feature = "serde", serde(serialize_with = "as_hex::identity"))]
        found: u128,
    },
    /// A segment that others name is not there.
    SegmentMissing {
        /// Its id.
        segment_id: u64,
    },
    /// A segment does not end as the one behind it says.
    SegmentEnd {
        /// The offset at which it should end.
        offset: u64,
        /// The last entry that it should hold.
        last_entry_id: u64,
    },
    /// The log ends before an entry that was acknowledged.
    LogEnd {
        /// Last entry that is there.
        last_entry_id: u64,
        /// Least entry that must be there.
        required_entry_id: u64,
    },
    /// Bytes that are not zero follow the log's end.
    TrailingBytes,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderChecksum { expected, found } => {
                write!(f, "file header checksum is {found:#010x}, expected {expected:#010x}")
            }
            Self::FrameHeader => f.write_str("frame header does not check out"),
            Self::Payload { expected, found } => {
                write!(f, "payload checksum is {found:#010x}, expected {expected:#010x}")
            }
            Self::FileEnd { bytes_needed, bytes } => {
                write!(f, "the file ends after {bytes} of the {bytes_needed} bytes of a frame")
            }
            Self::FrameContents { what } => write!(f, "impossible frame: {what}"),
            Self::EntryOrder { expected, found } => {
                write!(f, "entry {found} follows where {expected} should")
            }
            Self::SegmentName { named, stated } => {
                write!(f, "the file is named segment {named}, its header says {stated}")
            }
            Self::Identity { expected, found } => {
                write!(f, "the file belongs to log {found:032x}, not to {expected:032x}")
            }
            Self::SegmentMissing { segment_id } => write!(f, "segment {segment_id} is missing"),
            Self::SegmentEnd { offset, last_entry_id } => {
                write!(f, "the segment does not end at offset {offset} with entry {last_entry_id}")
            }
            Self::LogEnd { last_entry_id, required_entry_id } => {
                write!(f, "the log ends at entry {last_entry_id}, at least {required_entry_id} must be there")
            }
            Self::TrailingBytes => f.write_str("bytes that nobody wrote follow the end"),
        }
    }
}

/// What shows that damage is not the trace of a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Proof {
    /// A frame that checks out says that more was durable when it was written.
    Attested {
        /// The largest entry that is attested durable.
        durable_entry_id: u64,
        /// The file that says so.
        path: String,
        /// The offset of the frame (or header) that says so.
        offset: u64,
    },
    /// A checkpoint requires more of the log.
    RequiredByCheckpoint {
        /// The entry that it requires.
        entry_id: u64,
        /// The checkpoint.
        path: String,
    },
    /// A seal names the segment in which the log went on; that segment was durable before the seal was
    /// written.
    NamedBySeal {
        /// The file with the seal.
        path: String,
    },
    /// The opening frame of a later segment names it.
    NamedBySuccessor {
        /// The later segment.
        path: String,
    },
    /// The writer that has the log open wrote more than can be read.
    WrittenByWriter {
        /// The last entry that it handed to the operating system.
        entry_id: u64,
    },
    /// Every sector of the damaged unit was rewritten, and a tear leaves whole old sectors.
    FullyWritten,
    /// A crash cannot have this effect: the checked unit contradicts itself or its place.
    Contradiction,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attested { durable_entry_id, path, offset } => {
                write!(f, "{path} at offset {offset} attests that entry {durable_entry_id} was durable")
            }
            Self::RequiredByCheckpoint { entry_id, path } => {
                write!(f, "checkpoint {path} requires entry {entry_id}")
            }
            Self::NamedBySeal { path } => write!(f, "the seal of {path} names it"),
            Self::NamedBySuccessor { path } => write!(f, "{path} continues it"),
            Self::WrittenByWriter { entry_id } => {
                write!(f, "the writer of this very log has written entry {entry_id}")
            }
            Self::FullyWritten => f.write_str("no sector of it holds old content, so no crash explains it"),
            Self::Contradiction => f.write_str("no crash explains it"),
        }
    }
}

/// What a crash left of writes that were never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TornTail {
    /// The file in which the log ends.
    pub path: String,
    /// Where its last good frame ends.
    pub offset: u64,
    /// The last entry of the log; 0 for none.
    pub last_entry_id: u64,
    /// What shows that it is torn.
    pub evidence: TornEvidence,
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ends at offset {} after entry {}: {}",
            self.path, self.offset, self.last_entry_id, self.evidence
        )
    }
}

/// What shows that a tail is torn, not corrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum TornEvidence {
    /// Frames of later commits are there, and none attests more than what was recovered.
    LaterCommits {
        /// How many frame headers check out behind the tear.
        frames: u64,
    },
    /// The unfinished frame reaches past the end of the file.
    PastFileEnd,
    /// Sectors of the unfinished frame still hold their old content.
    OldSectors {
        /// How many sectors were not written.
        sectors: u64,
    },
    /// Old content cannot be told from new here (a recycled file): cut by best-effort, refused by strict.
    Undecidable,
}

impl fmt::Display for TornEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaterCommits { frames } => {
                write!(f, "{frames} frames of later commits follow, none attests more")
            }
            Self::PastFileEnd => f.write_str("the unfinished frame reaches past the end of the file"),
            Self::OldSectors { sectors } => {
                write!(f, "{sectors} sectors of the unfinished frame were not written")
            }
            Self::Undecidable => {
                f.write_str("undecidable: old content cannot be told from new in a recycled file")
            }
        }
    }
}

/// Numbers that are names, as text: they do not fit the numbers of other languages.
#[cfg(feature = "serde")]
pub(crate) mod as_hex {
    use serde::Serializer;

    pub fn salt<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub fn identity<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:032x}"))
    }
}
