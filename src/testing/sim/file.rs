//! Commits on a simulated disk: several in flight, completed in a seeded order.

use super::disk::SimDisk;
use super::state::{ChangeKind, Inode};
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{
    Commit, CommitFile, CommitLimits, CommitStrategy, Completion, Effect, FileOptions, Latch, StrategyReason,
    Submitted, Wait,
};
use std::sync::{Mutex, PoisonError};

/// A file of a simulated disk, open for commits.
#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    path: String,
    inode: Inode,
    locked: bool,
    /// Through a page cache, one commit after the other, although the disk is written directly.
    is_streamed: bool,
    latch: Latch,
    in_flight: Mutex<Vec<InFlight>>,
}

#[derive(Debug)]
struct InFlight {
    commit: Commit,
    /// The write, unless the commit is a sync alone.
    change: Option<usize>,
    /// How much of the history there was when it was submitted.
    submitted: usize,
    written: std::io::Result<()>,
}

/// Commits that may be in flight at once.
const IN_FLIGHT_MAX: usize = 16;

impl SimFile {
    pub(super) fn new(disk: SimDisk, path: &str, inode: Inode, options: &FileOptions) -> Self {
        let in_flight = Mutex::new(Vec::new());
        let (locked, latch) = (options.lock, Latch::new());
        let is_streamed = options.streamed && !options.uncached && disk.world().knobs.direct;
        Self { disk, path: path.to_owned(), inode, locked, is_streamed, latch, in_flight }
    }

    fn complete(&self, in_flight: InFlight) -> Completion {
        let mut world = self.disk.world();
        if let Some(change) = in_flight.change {
            world.history.changes[change].completed = true;
        }
        let Commit { id, buffer, effect, offset, .. } = in_flight.commit;
        let mut result = in_flight.written.map_err(|source| {
            self.latch.trip(PersistenceError::io("write", self.path.as_str(), Some(offset), source))
        });
        if result.is_ok() && effect == Effect::Durable {
            if world.sync_fails() {
                world.history.fail_sync(self.inode);
                world.history.push(ChangeKind::Note(format!("sync of {} FAILS", self.path)), true);
                let source = std::io::Error::from_raw_os_error(5);
                result = Err(self.latch.trip(PersistenceError::io(
                    "sync",
                    self.path.as_str(),
                    Some(offset),
                    source,
                )));
            } else if !world.knobs.lying {
                world.history.sync_file(self.inode, in_flight.submitted, in_flight.change);
                world
                    .history
                    .push(ChangeKind::Note(format!("commit {id} of {} is durable", self.path)), true);
            }
        }
        Completion { id, buffer, result }
    }
}

impl CommitFile for SimFile {
    fn limits(&self) -> CommitLimits {
        let in_flight_max = match self.is_streamed {
            true => 1,
            false => self.disk.world().knobs.in_flight_max.unwrap_or(IN_FLIGHT_MAX),
        };
        CommitLimits { in_flight_max, alignment: 1, durable: true }
    }

    fn strategy(&self) -> CommitStrategy {
        match self.disk.world().knobs.direct && !self.is_streamed {
            true => CommitStrategy::DirectDsync,
            false => CommitStrategy::WriteThenSync,
        }
    }

    fn strategy_reason(&self) -> StrategyReason {
        if self.is_streamed { StrategyReason::Streamed } else { StrategyReason::Only }
    }

    fn submit(&self, commit: Commit) -> Submitted {
        if let Err(error) = self.latch.check(0) {
            return Submitted::Refused { commit, error };
        }
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.len() >= self.limits().in_flight_max {
            let error = PersistenceError::invalid_state("commit", "too many are in flight");
            return Submitted::Refused { commit, error };
        }
        let mut world = self.disk.world();
        let submitted = world.history.changes.len();
        let bytes = commit.buffer[commit.range.clone()].to_vec();
        let (change, written) = match bytes.is_empty() {
            true => (None, Ok(())),
            false => world.write(self.inode, commit.offset, bytes, false),
        };
        in_flight.push(InFlight { commit, change, submitted, written });
        Submitted::Accepted
    }

    fn start(&self) -> PersistenceResult<()> {
        Ok(())
    }

    #[allow(clippy::disallowed_methods, reason = "a slow disk is slow in real time")]
    fn reap(&self, wait: Wait) -> PersistenceResult<Option<Completion>> {
        let pause = self.disk.world().knobs.pause;
        if let Some(pause) = pause {
            crate::sync::thread::sleep(pause);
        }
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever does not wait may find none that has ended.
        if in_flight.is_empty() || (wait == Wait::Never && self.disk.world().next_random() % 2 == 0) {
            return Ok(None);
        }
        let index = self.disk.world().next_random() as usize % in_flight.len();
        let done = in_flight.remove(index);
        drop(in_flight);
        Ok(Some(self.complete(done)))
    }

    fn size(&self) -> PersistenceResult<u64> {
        Ok(self.disk.world().tree.file(self.inode).len() as u64)
    }

    fn set_size(&self, bytes: u64) -> PersistenceResult<()> {
        self.latch.check(0)?;
        self.disk.world().set_size(self.inode, bytes);
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> PersistenceResult<()> {
        let reserved = self.disk.world().reserve(self.inode, bytes);
        reserved.map_err(|source| PersistenceError::io("reserve space", self.path.as_str(), None, source))
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.locked {
            self.disk.world().locked_inodes.remove(&self.inode);
        }
    }
}
