//! What can go wrong, as values.
//!
//! One public error type. Its variants are named for what the caller should do next; damage is data
//! ([`Corruption`], [`TornTail`]), never only text; the operating system's error stays as the source.
//! Errors can be cloned, because one failed sync fails many waiters.

use std::fmt;
use std::io;
use std::sync::Arc;

mod damage;

#[cfg(feature = "serde")]
pub(crate) use damage::as_hex;
pub use damage::{Check, Corruption, FormatProblem, Proof, TornEvidence, TornTail};

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
    /// writer that says [`Poisoned`](Self::Poisoned) afterwards has to be reopened first). A writer with one owner
    /// has not appended what the call was to append; a shared one keeps what was appended, and commits it next.
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
    /// The lock that made this writer the only one, or the segment that it writes, was removed or replaced;
    /// another writer may be at work. Nothing more is written. What was acknowledged before may be gone with the
    /// file: drop this writer, find out who did it, and open the log again.
    #[error(
        "fenced: {resource} is not this writer's any more (removed, replaced, or a parent process's); stop, and open again"
    )]
    Fenced {
        /// The lock or the segment that was lost.
        resource: String,
    },
    /// The file or directory does not exist.
    #[error("not found: {path}")]
    NotFound {
        /// What was looked for.
        path: String,
    },
    /// The checkpoint that was asked for does not exist. From recovery: the log does not reach back to its
    /// first entry either, or there is none. Where nothing was ever started, say so with
    /// [`RecoveryOptions::or_new`](crate::recover::RecoveryOptions::or_new).
    #[error(
        "missing checkpoint: {path} (`RecoveryOptions::or_new` is for where nothing was ever started, and only there)"
    )]
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
    /// No entry has this id yet. Read it again when it was appended.
    #[error("entry {entry_id} was not appended yet, the log ends with entry {last_entry_id}")]
    NotAppended {
        /// The entry that was asked for.
        entry_id: u64,
        /// The last one that there is; 0 when there is none.
        last_entry_id: u64,
    },
    /// The deadline passed before the entry was durable. It stays appended and is committed all the same: wait
    /// again, or go on without knowing.
    #[error("entry {entry_id} is not durable yet, the log is so through entry {durable_entry_id}")]
    TimedOut {
        /// The entry that was waited for.
        entry_id: u64,
        /// The durable watermark.
        durable_entry_id: u64,
    },
    /// As many bytes wait for their commit as may. Nothing was appended: try again after a commit, or call
    /// what waits.
    #[error("{bytes} bytes wait for their commit, the limit is {bytes_max}; try again after a commit")]
    WouldBlock {
        /// Bytes that wait.
        bytes: u64,
        /// How many may.
        bytes_max: u64,
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

    /// What an object answers that `cause` has closed for good.
    pub(crate) fn closed_by(cause: Arc<Self>, durable_entry_id: u64) -> Self {
        match &*cause {
            Self::Fenced { .. } => (*cause).clone(),
            _ => Self::Poisoned { durable_entry_id, cause },
        }
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
            E::LockFailed { .. } | E::WouldBlock { .. } => io::ErrorKind::WouldBlock,
            E::TimedOut { .. } => io::ErrorKind::TimedOut,
            E::NotFound { .. }
            | E::MissingCheckpoint { .. }
            | E::PrefixUnavailable { .. }
            | E::NotAppended { .. } => io::ErrorKind::NotFound,
            E::InvalidState { .. } | E::Fenced { .. } | E::Poisoned { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
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
