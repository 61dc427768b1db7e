//! Files written through commits.
//!
//! A commit is one write: a buffer that the operation owns until it completes, an offset, and the
//! [`Effect`] that its completion promises. Backends say how many they keep in flight
//! ([`CommitLimits::in_flight_max`]); one that answers 1 runs them inline.
//!
//! Driving a file is two calls: [`CommitFile::submit`] queues, [`CommitFile::reap`] collects. A lone
//! committer that calls one after the other costs no more system calls than the strategy needs. All
//! methods take `&self`: one thread may submit while another one reaps.

use super::CommitBuffer;
use super::strategy::{ActiveStrategy, CommitStrategy, StrategyReason};
use crate::error::PersistenceResult;
use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

/// What the completion of a commit promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The bytes are with the operating system: visible to readers, and they survive the process.
    Flushed,
    /// The bytes are on stable storage, and with them every commit of this file that had completed when
    /// this one was submitted.
    Durable,
}

/// One write.
#[derive(Debug)]
pub struct Commit {
    /// Chosen by the submitter; comes back in the completion. Ids in flight on one file are distinct.
    pub id: u64,
    /// Where in the file the bytes go. A multiple of [`CommitLimits::alignment`].
    pub offset: u64,
    /// Owns the bytes until the completion is read.
    pub buffer: CommitBuffer,
    /// Which bytes of the buffer are written; both ends are multiples of [`CommitLimits::alignment`].
    /// May be empty with [`Effect::Durable`]: a sync of what was written before.
    pub range: Range<usize>,
    /// What the completion promises.
    pub effect: Effect,
}

/// The end of one commit.
#[derive(Debug)]
pub struct Completion {
    /// The commit's id.
    pub id: u64,
    /// The commit's buffer; nobody else holds on to it any more.
    pub buffer: CommitBuffer,
    /// Whether the promise holds. After an error the file is latched: it accepts no further commit,
    /// because nobody can say which of its bytes reached the disk.
    pub result: PersistenceResult<()>,
}

/// What became of a submission.
#[derive(Debug)]
#[must_use]
pub enum Submitted {
    /// The file owns the buffer; a completion with the commit's id will come.
    Accepted,
    /// The commit was never begun; no completion will come. The file is unchanged by it.
    Refused {
        /// The commit, with its buffer.
        commit: Commit,
        /// Why.
        error: crate::error::PersistenceError,
    },
}

/// How long [`CommitFile::reap`] waits for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Never,
    /// Until there is one (returns `None` at once when nothing is in flight).
    Forever,
    /// At most this long.
    AtMost(Duration),
}

/// What a file asks of its commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitLimits {
    /// Commits that may be in flight at once; at least 1. One more is refused.
    pub in_flight_max: usize,
    /// Offsets and lengths are multiples of this, in bytes; 1 where any will do.
    pub alignment: u32,
    /// Whether [`Effect::Durable`] can be had; where not, such a commit is refused with `NotSupported`
    /// and nothing is latched.
    pub durable: bool,
}

/// How to open a file for commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Make a new file, and fail when the name is taken. Otherwise the file must exist. A new name is
    /// durable only after [`DurableDirectory::sync_parent_dir`](super::DurableDirectory::sync_parent_dir).
    pub create_new: bool,
    /// Zero-fill the file up to this size, in bytes, with written (not merely reserved) blocks. On a
    /// durable directory the zeros and the size are durable when `open` returns. 0 for none.
    pub zero_filled_bytes: u64,
    /// Take the exclusive lock of the file's own open description, so that a successor of a killed
    /// process can wait until its last request has landed. Held until the file is dropped; ignored where
    /// the platform has no such locks.
    pub lock: bool,
    /// Offsets and lengths of all commits will be multiples of this, in bytes. Lets a backend choose
    /// direct I/O; 1 promises nothing.
    pub alignment: u32,
    /// Commits go past the page cache where that can be had, because it is not to be believed: after a failed
    /// write-back it may hold pages, and a file system may hold notes about them, that the disk contradicts.
    pub uncached: bool,
    /// Most commits will be large, flushed only, and waited for by nobody: a backend that has the choice takes the
    /// page cache, which takes them faster than the disk does.
    pub streamed: bool,
}

impl FileOptions {
    /// A new file.
    pub fn create_new() -> Self {
        Self {
            create_new: true,
            zero_filled_bytes: 0,
            lock: false,
            alignment: 1,
            uncached: false,
            streamed: false,
        }
    }

    /// A file that exists.
    pub fn existing() -> Self {
        Self { create_new: false, ..Self::create_new() }
    }

    /// Zero-filled up to `bytes`.
    pub fn zero_filled(mut self, bytes: u64) -> Self {
        self.zero_filled_bytes = bytes;
        self
    }

    /// Locked.
    pub fn locked(mut self) -> Self {
        self.lock = true;
        self
    }

    /// Past the page cache, where that can be had.
    pub fn uncached(mut self) -> Self {
        self.uncached = true;
        self
    }

    /// For commits that nobody waits for.
    pub fn streamed(mut self) -> Self {
        self.streamed = true;
        self
    }

    /// With commits aligned to `alignment` bytes.
    pub fn aligned(mut self, alignment: u32) -> Self {
        self.alignment = alignment;
        self
    }
}

/// A file written through commits.
///
/// # If a call never returns
///
/// When the process dies between `submit` and the completion, any subset of the commit's sectors may be
/// in the file, now or shortly after; earlier completed [`Effect::Durable`] commits are.
///
/// # Dropping
///
/// Dropping the file waits until nothing is in flight any more (or aborts the process where that cannot
/// be had): no buffer is freed, and no lock is let go, while the kernel may still use it.
pub trait CommitFile: Send + Sync + Debug {
    /// What commits must look like.
    fn limits(&self) -> CommitLimits;

    /// How commits become durable.
    fn strategy(&self) -> CommitStrategy;

    /// Why they become so in that way. The default knows of no other.
    fn strategy_reason(&self) -> StrategyReason {
        StrategyReason::Only
    }

    /// Both.
    fn active_strategy(&self) -> ActiveStrategy {
        ActiveStrategy { strategy: self.strategy(), reason: self.strategy_reason() }
    }

    /// Queues a commit. It may begin at once, or with the next [`start`](Self::start) or
    /// [`reap`](Self::reap).
    ///
    /// Refused, with the file unchanged: when the limits are not kept (`InvalidConfig`), when
    /// `in_flight_max` are in flight (`InvalidState`), when an earlier commit failed (`Poisoned`), when
    /// the effect cannot be had (`NotSupported`).
    fn submit(&self, commit: Commit) -> Submitted;

    /// Makes sure that everything queued has begun. Needed only when nobody is about to reap.
    fn start(&self) -> PersistenceResult<()>;

    /// Collects one completion, in any order. `None` when there is none within `wait`, or nothing in
    /// flight. An error means that the machinery itself failed: the file is latched, and what is in
    /// flight stays owned by it.
    fn reap(&self, wait: Wait) -> PersistenceResult<Option<Completion>>;

    /// Size of the file in bytes.
    fn size(&self) -> PersistenceResult<u64>;

    /// Cuts or extends the file (extension reads as zeros). Nothing may be in flight. Durable with the
    /// next durable commit.
    fn set_size(&self, bytes: u64) -> PersistenceResult<()>;

    /// Asks for space up to this size, in bytes, without changing what the file reads as, so that a later write
    /// below it does not find the device full. "Out of space" changes nothing and closes nothing. Where this
    /// cannot be had, nothing is done, which is the default.
    fn reserve(&self, bytes: u64) -> PersistenceResult<()> {
        let _ = bytes;
        Ok(())
    }

    /// Submits one commit and waits for its end; for a file that nobody else drives.
    ///
    /// The buffer comes back in every case in which the file gave it back.
    fn commit(&self, commit: Commit) -> (PersistenceResult<()>, Option<CommitBuffer>) {
        let id = commit.id;
        match self.submit(commit) {
            Submitted::Refused { commit, error } => (Err(error), Some(commit.buffer)),
            Submitted::Accepted => match self.reap(Wait::Forever) {
                Ok(Some(completion)) if completion.id == id => (completion.result, Some(completion.buffer)),
                Ok(_) => (
                    Err(crate::error::PersistenceError::invalid_state(
                        "commit",
                        "another thread drives this file",
                    )),
                    None,
                ),
                Err(error) => (Err(error), None),
            },
        }
    }
}

/// Asks for space up to `wanted` bytes, or where there is too little for that, up to `needed`; answers how far it was
/// asked for. "Out of space" where not even that can be had.
pub(crate) fn reserve_at_least(file: &dyn CommitFile, needed: u64, wanted: u64) -> PersistenceResult<u64> {
    match file.reserve(wanted) {
        Ok(()) => Ok(wanted),
        Err(error) if error.is_out_of_space() && wanted > needed => file.reserve(needed).map(|()| needed),
        Err(error) => Err(error),
    }
}
