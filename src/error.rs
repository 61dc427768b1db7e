//! What can go wrong, as values.
//!
//! One public error type. Its variants are named for what the caller should do next; damage is data
//! ([`Corruption`], [`TornTail`]), never only text; the operating system's error stays as the source.
//! Errors can be cloned, because one failed sync fails many waiters.

use std::fmt;
use std::io;
use std::sync::Arc;

/// The result of every fallible operation of this crate.
pub type PersistenceResult<T> = Result<T, PersistenceError>;

/// Why an operation failed. Each variant's documentation says what to do next.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistenceError {
    /// The operating system refused. Nothing was promised for this operation; for a writer see
    /// [`Poisoned`](Self::Poisoned), which later operations answer.
    #[error("{operation} failed on {path}{}: {source}", At(*offset))]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file, relative to its directory's root where there is one.
        path: String,
        /// Byte offset in the file, where the operation has one.
        offset: Option<u64>,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The device is full. Nothing that was acknowledged is affected: free space, then try again (a
    /// writer that says [`Poisoned`](Self::Poisoned) afterwards has to be reopened first).
    #[error("out of space: {operation} on {path}{}; free space and try again", At(*offset))]
    OutOfSpace {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: String,
        /// Byte offset in the file, where the operation has one.
        offset: Option<u64>,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The bytes are not a file of the expected kind, or of a version that this release cannot read.
    /// Check the path; nothing was changed.
    #[error("{path} cannot be read: {problem}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: FormatProblem,
    },
    /// A checksum did not match in a place where no evidence about acknowledgement exists (a chunk of a
    /// checkpoint, a record handed in by the caller). Restore the file or fall back to an older one.
    #[error(
        "checksum mismatch in {path} at offset {offset}: expected {expected:#010x}, found {actual:#010x}"
    )]
    CrcMismatch {
        /// The file.
        path: String,
        /// Byte offset of the damaged unit.
        offset: u64,
        /// The checksum that the file states.
        expected: u32,
        /// The checksum of the bytes that are there.
        actual: u32,
    },
    /// Acknowledged data is damaged or missing, or a file is not what its place says. Never cut, in no
    /// mode: restore from a replica or a backup, or inspect the file.
    #[error("corruption: {0}")]
    Corruption(Box<Corruption>),
    /// The log ends in what a crash leaves of writes that were never acknowledged. Best-effort recovery
    /// accepts it; strict does not.
    #[error("torn tail: {0}; best-effort recovery accepts this")]
    TornTail(Box<TornTail>),
    /// A value could not be encoded; nothing was appended.
    #[error("encoding failed: {reason}")]
    Encode {
        /// What the codec said.
        reason: String,
    },
    /// Bytes that passed their checksum could not be decoded as the type asked for: the wrong type, or
    /// an older version of it.
    #[error("decoding failed{}: {reason}", Entry(*entry_id))]
    Decode {
        /// The entry, where the bytes are one.
        entry_id: Option<u64>,
        /// What the codec said.
        reason: String,
    },
    /// The operation does not fit the state of the object. Nothing was changed.
    #[error("{operation} is not possible: {reason}")]
    InvalidState {
        /// What was tried.
        operation: &'static str,
        /// Why it cannot be done now, and what can.
        reason: String,
    },
    /// A path, option or argument is not acceptable. Nothing was touched.
    #[error("invalid {parameter}: {reason}")]
    InvalidConfig {
        /// Which parameter.
        parameter: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// One entry or batch is larger than the limit; nothing was appended.
    #[error("payload too large: {bytes} bytes, the limit is {bytes_max}")]
    PayloadTooLarge {
        /// What was asked for.
        bytes: u64,
        /// What is allowed.
        bytes_max: u64,
    },
    /// The directory cannot do this (a memory directory has no stable storage). Poisons nothing: the
    /// object goes on working.
    #[error("{operation} is not supported by {backend}")]
    NotSupported {
        /// What was asked for.
        operation: &'static str,
        /// Who refuses.
        backend: String,
    },
    /// Somebody else holds the lock, or its unfinished writes do. Close the other writer, or wait.
    #[error("lock failed on {resource}: {reason}")]
    LockFailed {
        /// The locked file.
        resource: String,
        /// What is known about the holder.
        reason: String,
    },
    /// The lock that made this writer the only one was lost; another writer may be at work. Stop.
    #[error("fenced: {resource} now belongs to another writer")]
    Fenced {
        /// The lock that was lost.
        resource: String,
    },
    /// The file or directory does not exist.
    #[error("not found: {path}")]
    NotFound {
        /// What was looked for.
        path: String,
    },
    /// The checkpoint that was asked for does not exist.
    #[error("missing checkpoint: {path}")]
    MissingCheckpoint {
        /// Where it should have been.
        path: String,
    },
    /// The log no longer reaches back to the entry that is needed: a shorter history is never passed off
    /// as the whole one. Recover from a checkpoint that covers what was truncated.
    #[error(
        "WAL prefix is unavailable: entry {wanted_entry_id} is needed, the log begins at {first_entry_id}"
    )]
    PrefixUnavailable {
        /// The first entry that is needed.
        wanted_entry_id: u64,
        /// The first entry that is there.
        first_entry_id: u64,
    },
    /// An earlier write or sync failed, so nothing written through this object can be trusted any more.
    /// Everything up to `durable_entry_id` is safe; reopen to go on.
    #[error(
        "poisoned by an earlier failure ({cause}); durable through entry {durable_entry_id}; reopen to go on"
    )]
    Poisoned {
        /// The durable watermark when the failure was seen; 0 where the object has no entries.
        durable_entry_id: u64,
        /// The first failure.
        cause: Arc<PersistenceError>,
    },
}

impl PersistenceError {
    /// Wraps an operating system error with what was tried where.
    ///
    /// "No such file" becomes [`NotFound`](Self::NotFound) and "no space" (or an exhausted quota)
    /// [`OutOfSpace`](Self::OutOfSpace), so that callers branch on the variant.
    pub fn io(
        operation: &'static str,
        path: impl Into<String>,
        offset: Option<u64>,
        source: io::Error,
    ) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::OutOfSpace { operation, path, offset, source: Arc::new(source) }
            }
            _ => Self::Io { operation, path, offset, source: Arc::new(source) },
        }
    }

    /// The state of the object does not allow `operation`.
    pub fn invalid_state(operation: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidState { operation, reason: reason.into() }
    }

    /// `parameter` is not acceptable.
    pub fn invalid_config(parameter: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidConfig { parameter, reason: reason.into() }
    }

    /// `backend` cannot do `operation`.
    pub fn not_supported(operation: &'static str, backend: impl Into<String>) -> Self {
        Self::NotSupported { operation, backend: backend.into() }
    }

    /// Whether this error means that a file or directory does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether this error reports damage to data that may have been acknowledged.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corruption(_))
    }

    /// Whether the device was full.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::OutOfSpace { .. } => true,
            Self::Poisoned { cause, .. } => cause.is_out_of_space(),
            _ => false,
        }
    }

    /// The damage, if this is [`Corruption`](Self::Corruption).
    pub fn corruption(&self) -> Option<&Corruption> {
        match self {
            Self::Corruption(corruption) => Some(corruption),
            _ => None,
        }
    }
}

impl From<Corruption> for PersistenceError {
    fn from(corruption: Corruption) -> Self {
        Self::Corruption(Box::new(corruption))
    }
}

impl From<TornTail> for PersistenceError {
    fn from(torn: TornTail) -> Self {
        Self::TornTail(Box::new(torn))
    }
}

impl From<PersistenceError> for io::Error {
    fn from(error: PersistenceError) -> Self {
        use PersistenceError as E;
        let kind = match &error {
            E::Io { source, .. } => source.kind(),
            E::OutOfSpace { .. } => io::ErrorKind::StorageFull,
            E::Format { .. }
            | E::CrcMismatch { .. }
            | E::Corruption(_)
            | E::TornTail(_)
            | E::Decode { .. } => io::ErrorKind::InvalidData,
            E::Encode { .. } | E::InvalidConfig { .. } | E::PayloadTooLarge { .. } => {
                io::ErrorKind::InvalidInput
            }
            E::NotSupported { .. } => io::ErrorKind::Unsupported,
            E::LockFailed { .. } => io::ErrorKind::WouldBlock,
            E::NotFound { .. } | E::MissingCheckpoint { .. } | E::PrefixUnavailable { .. } => {
                io::ErrorKind::NotFound
            }
            E::InvalidState { .. } | E::Fenced { .. } | E::Poisoned { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

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
        expected: u128,
        /// Identity in the file.
        found: u128,
    },
    /// A segment that others name is not there.
    SegmentMissing {
        /// Its id.
        segment_id: u64,
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

/// Prints ` at offset N`, or nothing.
struct At(Option<u64>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |offset| write!(f, " at offset {offset}"))
    }
}

/// Prints ` for entry N`, or nothing.
struct Entry(Option<u64>);

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |entry_id| write!(f, " for entry {entry_id}"))
    }
}
