//! From completions to the end of one commit.
//!
//! Lives here: the state machine of a single commit, from what the kernel answered to what is asked of it
//! next. Not here: rings, buffers, other commits. Pure: no system call, no clock.
//!
//! Invariant: a commit ends well only after every byte was written *and* whatever its [`Goal`] asks for
//! was done after the last of them, each shown by a completion of its own.

use crate::planted;
use nix::errno::Errno;

/// How often one commit is asked for again after the kernel gave it up without doing anything (the
/// submitting thread ended, memory was short). Progress sets nothing back: a commit is bounded as a whole.
pub(super) const AGAIN_MAX: u8 = 16;

/// What the completion of a commit promises, and by which means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Written; with the operating system.
    Written,
    /// Written, then synced, both asked for together as a linked pair.
    LinkedSync,
    /// Written with `RWF_DSYNC`.
    Dsync,
    /// Written; synced when that is done.
    WrittenThenSynced,
}

/// What the kernel is asked for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A write of [`Chain::piece`].
    Write {
        /// With `RWF_DSYNC`.
        dsync: bool,
    },
    /// The same, linked to a sync of the file.
    WriteAndSync,
    /// A sync of the file.
    Sync,
}

/// Which completion of a unit. A unit of one request whose ring works in pairs has a no-op as its second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    First,
    Second,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Completions of the current unit are missing.
    Wait,
    /// Ask for this.
    Issue(Unit),
    /// The commit is at its end.
    Done(Result<(), Failure>),
}

/// Why a commit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// `write` or `sync`.
    pub operation: &'static str,
    /// Bytes of the commit that were written before.
    pub written: usize,
    /// What the kernel answered.
    pub cause: Cause,
}

/// What the kernel answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// An error number.
    Errno(i32),
    /// A write of no bytes.
    WroteNothing,
    /// A number that is no answer to what was asked.
    Impossible(i32),
}

/// What became of the write of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Whole,
    Unfinished,
}

/// What became of the sync of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    Ran,
    NeverRan,
}

/// One commit.
#[derive(Debug)]
pub(super) struct Chain {
    goal: Goal,
    bytes: usize,
    bytes_written: usize,
    /// Pieces begin on multiples of this, in bytes.
    alignment: usize,
    piece_bytes_max: usize,
    again_left: u8,
    /// Completions per unit: 1 or 2.
    width: usize,
    unit: Unit,
    first: Option<i32>,
    second: Option<i32>,
}

impl Chain {
    /// A commit of `bytes` bytes. None are only fine with a goal that syncs.
    pub fn new(goal: Goal, bytes: usize, alignment: usize, piece_bytes_max: usize, width: usize) -> Self {
        debug_assert!(bytes > 0 || goal != Goal::Written);
        debug_assert!(width == 2 || (width == 1 && goal != Goal::LinkedSync));
        debug_assert!(piece_bytes_max > 0 && piece_bytes_max % alignment == 0);
        let mut chain = Self {
            goal,
            bytes,
            bytes_written: 0,
            alignment,
            piece_bytes_max,
            again_left: AGAIN_MAX,
            width,
            unit: Unit::Sync,
            first: None,
            second: None,
        };
        chain.unit = chain.next_unit();
        chain
    }

    /// What is asked for now.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Whether all that is left to do is one write with `RWF_DSYNC`.
    pub fn is_one_dsync_write(&self) -> bool {
        self.width == 1 && self.unit == Unit::Write { dsync: true } && self.piece().end == self.bytes
    }

    /// Whether the end of this commit rests on a sync of the whole file.
    pub fn syncs(&self) -> bool {
        matches!(self.goal, Goal::LinkedSync | Goal::WrittenThenSynced) || self.bytes == 0
    }

    /// Whether the end of this commit says nothing about stable storage.
    pub fn promises_nothing(&self) -> bool {
        self.goal == Goal::Written
    }

    /// The bytes of the commit that the current unit writes.
    pub fn piece(&self) -> std::ops::Range<usize> {
        let left = self.bytes - self.bytes_written;
        self.bytes_written..self.bytes_written + left.min(self.piece_bytes_max)
    }

    /// Completions of the current unit that were not seen yet.
    pub fn missing(&self) -> usize {
        self.width - usize::from(self.first.is_some()) - usize::from(self.second.is_some())
    }

    /// Takes one completion, and says what comes next.
    pub fn complete(&mut self, part: Part, result: i32) -> Step {
        match part {
            Part::First => self.first = Some(result),
            Part::Second => self.second = Some(result),
        }
        if self.missing() > 0 {
            return Step::Wait;
        }
        let (first, second) = (self.first.take().unwrap_or(0), self.second.take().unwrap_or(0));
        match self.settle(first, second) {
            Ok(None) => Step::Done(Ok(())),
            Ok(Some(unit)) => {
                self.unit = unit;
                Step::Issue(unit)
            }
            Err(failure) => Step::Done(Err(failure)),
        }
    }

    /// `None` when the goal is reached.
    fn settle(&mut self, first: i32, second: i32) -> Result<Option<Unit>, Failure> {
        match self.unit {
            Unit::Write { .. } => {
                let write = self.judge_write(first)?;
                let reached = write == Write::Whole && matches!(self.goal, Goal::Written | Goal::Dsync);
                Ok((!reached).then(|| self.next_unit()))
            }
            Unit::WriteAndSync => {
                let write = self.judge_write(first)?;
                if planted::on("acknowledge_on_write") && write == Write::Whole {
                    return Ok(None);
                }
                // Judged whatever became of the write: an error of a sync is told once and never again.
                // But a sync that ran beside an unfinished write says nothing about the rest.
                let sync = self.judge_sync(second)?;
                if write == Write::Whole { self.after_sync(sync) } else { Ok(Some(self.next_unit())) }
            }
            Unit::Sync => {
                let sync = self.judge_sync(first)?;
                self.after_sync(sync)
            }
        }
    }

    fn next_unit(&self) -> Unit {
        if self.bytes_written == self.bytes {
            return Unit::Sync;
        }
        match self.goal {
            Goal::Written | Goal::WrittenThenSynced => Unit::Write { dsync: false },
            Goal::LinkedSync => Unit::WriteAndSync,
            Goal::Dsync => Unit::Write { dsync: true },
        }
    }

    fn judge_write(&mut self, result: i32) -> Result<Write, Failure> {
        let failed = |written, cause| Failure { operation: "write", written, cause };
        let asked = self.piece().len();
        match usize::try_from(result) {
            Ok(0) => Err(failed(self.bytes_written, Cause::WroteNothing)),
            Ok(count) if count > asked => Err(failed(self.bytes_written, Cause::Impossible(result))),
            Ok(count) => {
                let reached = self.bytes_written + count;
                if reached == self.bytes || planted::on("ignore_short_write") {
                    self.bytes_written = reached;
                    return Ok(Write::Whole);
                }
                // A direct write has to go on at an aligned place; a few bytes are then written twice.
                let from = reached - reached % self.alignment;
                if from == self.bytes_written {
                    self.again("write", Cause::WroteNothing)?;
                }
                self.bytes_written = from;
                Ok(Write::Unfinished)
            }
            Err(_) if gave_up(result) => {
                self.again("write", Cause::Errno(-result))?;
                Ok(Write::Unfinished)
            }
            Err(_) => Err(failed(self.bytes_written, Cause::Errno(result.wrapping_neg()))),
        }
    }

    /// Every byte is written, and `sync` was asked for behind the last of them.
    fn after_sync(&mut self, sync: Sync) -> Result<Option<Unit>, Failure> {
        if sync == Sync::Ran {
            return Ok(None);
        }
        self.again("sync", Cause::Errno(Errno::ECANCELED as i32))?;
        Ok(Some(Unit::Sync))
    }

    fn judge_sync(&self, result: i32) -> Result<Sync, Failure> {
        if result == 0 {
            return Ok(Sync::Ran);
        }
        if result == -(Errno::ECANCELED as i32) {
            // The only error that proves that no sync ran, so that no write-back error was swallowed.
            return Ok(if planted::on("ignore_ecanceled") { Sync::Ran } else { Sync::NeverRan });
        }
        if planted::on("retry_failed_ring_sync") {
            return Ok(Sync::NeverRan);
        }
        let cause = if result > 0 { Cause::Impossible(result) } else { Cause::Errno(result.wrapping_neg()) };
        Err(Failure { operation: "sync", written: self.bytes_written, cause })
    }

    /// Counts an attempt that led nowhere.
    fn again(&mut self, operation: &'static str, cause: Cause) -> Result<(), Failure> {
        match self.again_left.checked_sub(1) {
            Some(left) => {
                self.again_left = left;
                Ok(())
            }
            None => Err(Failure { operation, written: self.bytes_written, cause }),
        }
    }
}

/// Whether the kernel gave a write up before it did anything.
fn gave_up(result: i32) -> bool {
    [Errno::ECANCELED, Errno::EINTR, Errno::EAGAIN].iter().any(|errno| result == -(*errno as i32))
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
