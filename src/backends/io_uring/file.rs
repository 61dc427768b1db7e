//! Files whose commits go through a ring.
//!
//! Lives here: [`UringFile`], who waits for whom, and what a completed request means for the file. Not
//! here: memory shared with the kernel (`ring`), the verdict on one commit (`chain`).
//!
//! # Who reads completions
//!
//! One thread at a time has the *reaper role*: it alone waits in the kernel, outside the lock, and while it
//! does nobody else reads the completion queue, so that no wake-up can be stolen from it. Other threads that
//! reap wait on a condition variable until they are handed a completion or the role. A thread that submits
//! while somebody is in the kernel enters at once, because the one in there would not see it. Who waits for
//! the only commit there is may write it without the ring and without the role (`alone`, `ways`); others that reap
//! meanwhile wait in the kernel as soon as the ring has anything to wait for.
//!
//! Every return from `reap` wakes one thread that waits, which does the same in turn: so no completion
//! stays behind while somebody waits for it, and the role is never left lying.
//!
//! Invariants: `unreaped` counts what was accepted and not handed back; after the latch has tripped no
//! completion is a success.

use super::chain::{Cause, Chain, Failure, Goal};
use super::overlap::Overlap;
use super::pool::Pool;
use super::ring::{Attached, Finished, Locked, Request, Ring, Shape};
use super::ways::{SharedWays, Way};
use crate::backends::check_extent;
use crate::backends::write_back::WriteBack;
use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;
use crate::storage::{
    Commit, CommitFile, CommitLimits, CommitStrategy, Completion, Effect, Latch, StrategyReason, Submitted,
    Wait,
};
use crate::sync::Condvar;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest write that is asked for at once, in bytes: what the kernel takes, rounded down.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 30;
/// How often submitting is tried while the kernel has no memory, with nothing in flight.
const SUBMIT_ATTEMPTS_MAX: u32 = 1000;
/// Pause between two such attempts.
const SUBMIT_PAUSE: Duration = Duration::from_millis(1);

/// How a file is driven.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drive {
    pub strategy: CommitStrategy,
    pub in_flight_max: usize,
    /// Of offsets and lengths, in bytes.
    pub alignment: u32,
    /// Of addresses, in bytes.
    pub memory_alignment: u32,
    pub piece_bytes_max: usize,
}

impl Drive {
    fn shape(&self) -> Shape {
        let width = if self.strategy == CommitStrategy::LinkedWriteSync { 2 } else { 1 };
        Shape { width, in_flight_max: self.in_flight_max }
    }
}

/// A file whose commits go through a ring of its own.
///
/// # What is durable when
///
/// A durable commit completes when its bytes, and every commit of this file that had completed when it was
/// submitted, are on stable storage. A success that rests on a sync of the page cache is held back while
/// other syncs overlap with it, because a failed write-back is told to only one of them.
pub struct UringFile {
    path: String,
    drive: Drive,
    reason: StrategyReason,
    latch: Latch,
    pages: WriteBack,
    /// Where threads wait for a completion or the reaper role.
    turn: Condvar,
    ways: SharedWays,
    ring: Attached<Meta, Ledger>,
}

/// What travels with a request.
struct Meta {
    id: u64,
    /// Its number among the syncs, when it syncs.
    sync: Option<u64>,
    plain_writes: u64,
    size_changes: u64,
}

/// What is known of the file, protected by the ring's lock.
struct Ledger {
    done: VecDeque<Completion>,
    /// Commits that were accepted and not reaped.
    unreaped: usize,
    /// Some thread waits in the kernel.
    reaper: bool,
    /// Threads on the condition variable.
    waiting: usize,
    /// The only commit, of which the kernel has not heard yet.
    alone: Option<Request<Meta>>,
    /// Some thread writes what was the only one.
    writing: bool,
    /// That is not allowed here.
    calls_refused: bool,
    /// Something was accepted since a thread began to wait for the only one.
    has_company: bool,
    overlap: Overlap<Completion>,
    /// Completed writes that promised nothing durable, and how many of them a sync has covered.
    plain_writes: Progress,
    /// The same for changes of the size.
    size_changes: Progress,
}

#[derive(Default)]
struct Progress {
    made: u64,
    synced: u64,
}

impl Progress {
    fn is_dirty(&self) -> bool {
        self.made > self.synced
    }

    fn sync_through(&mut self, made: u64) {
        self.synced = self.synced.max(made);
    }
}

impl UringFile {
    pub(super) fn new(file: File, path: &str, drive: Drive, ring: Ring, pool: Arc<Pool>) -> Self {
        let ledger = Ledger {
            done: VecDeque::with_capacity(drive.in_flight_max),
            unreaped: 0,
            reaper: false,
            waiting: 0,
            alone: None,
            writing: false,
            calls_refused: false,
            has_company: false,
            overlap: Overlap::new(),
            plain_writes: Progress::default(),
            size_changes: Progress::default(),
        };
        Self {
            path: path.to_owned(),
            drive,
            reason: StrategyReason::Rule,
            latch: Latch::new(),
            pages: WriteBack::default(),
            turn: Condvar::new(),
            ways: SharedWays::default(),
            ring: Attached::new(ring, file, drive.shape(), pool, ledger),
        }
    }

    /// Why it is driven in this way.
    pub(super) fn because(mut self, reason: StrategyReason) -> Self {
        self.reason = reason;
        self
    }

    /// With what other files of the directory know of lone commits.
    pub(super) fn sharing(mut self, ways: &SharedWays) -> Self {
        self.ways = ways.clone();
        self
    }

    fn check(&self, commit: &Commit) -> PersistenceResult<()> {
        check_extent(commit)?;
        let alignment = u64::from(self.drive.alignment);
        let misplaced = |what: &'static str, value: u64, of: u64| {
            Err(PersistenceError::invalid_config(what, format!("{value} is not a multiple of {of}")))
        };
        if commit.offset % alignment != 0 {
            return misplaced("offset", commit.offset, alignment);
        }
        if commit.range.len() as u64 % alignment != 0 {
            return misplaced("range", commit.range.len() as u64, alignment);
        }
        let address = commit.buffer[commit.range.clone()].as_ptr() as usize as u64;
        let memory = u64::from(self.drive.memory_alignment);
        if !commit.range.is_empty() && address % memory != 0 {
            return misplaced("buffer", address, memory);
        }
        Ok(())
    }

    /// Has the page cache, where this file goes through it, write back what was flushed before this commit.
    fn write_back(&self, commit: &Commit) {
        if self.drive.strategy != CommitStrategy::LinkedWriteSync {
            return;
        }
        if commit.effect == Effect::Flushed {
            self.pages.begin(self.ring.file());
        }
        self.pages.flushed(commit.offset..commit.offset + commit.range.len() as u64);
        if commit.effect == Effect::Durable {
            self.pages.synced();
        }
    }

    fn goal(&self, effect: Effect, ledger: &Ledger) -> Goal {
        match (effect, self.drive.strategy) {
            (Effect::Flushed, _) => Goal::Written,
            _ if planted::on("dsync_vouches_for_all") => Goal::Dsync,
            (Effect::Durable, CommitStrategy::LinkedWriteSync) => Goal::LinkedSync,
            // A write with `RWF_DSYNC` vouches for its own bytes only (one FUA write, where the disk has
            // them), so what was written without it before needs a sync.
            _ if ledger.plain_writes.is_dirty() || ledger.size_changes.is_dirty() => Goal::WrittenThenSynced,
            _ => Goal::Dsync,
        }
    }

    /// Whether a sync has to carry more than what reading the data needs.
    fn syncs_whole_inode(ledger: &Ledger) -> bool {
        ledger.size_changes.is_dirty() && !planted::on("ring_size_is_no_metadata")
    }

    fn accept(&self, locked: &mut Locked<'_, Meta, Ledger>, commit: Commit) -> Result<(), Box<Commit>> {
        let ledger = locked.state();
        if commit.range.is_empty() && commit.effect == Effect::Flushed {
            ledger.done.push_back(Completion { id: commit.id, buffer: commit.buffer, result: Ok(()) });
            ledger.unreaped += 1;
            return Ok(());
        }
        let goal = self.goal(commit.effect, ledger);
        let alignment = self.drive.alignment as usize;
        let (bytes, width) = (commit.range.len(), self.drive.shape().width);
        let chain = Chain::new(goal, bytes, alignment, self.drive.piece_bytes_max, width);
        let meta = Meta {
            id: commit.id,
            sync: chain.syncs().then(|| ledger.overlap.begin()),
            plain_writes: ledger.plain_writes.made,
            size_changes: ledger.size_changes.made,
        };
        let full_sync = Self::syncs_whole_inode(ledger);
        let Commit { offset, buffer, range, effect, .. } = commit;
        let request = Request { buffer, buffer_start: range.start, offset, chain, full_sync, meta };
        let begun = match self.hold_alone(locked, request) {
            None => Ok(()),
            Some(request) => locked.begin(request),
        };
        match begun {
            Ok(()) => {
                locked.state().unreaped += 1;
                Ok(())
            }
            Err(Request { buffer, meta, .. }) => {
                meta.sync.into_iter().for_each(|number| locked.state().overlap.end(number));
                Err(Box::new(Commit { id: meta.id, offset, buffer, range, effect }))
            }
        }
    }

    /// Enters with what is queued, inside the lock.
    fn submit_queued(&self, locked: &mut Locked<'_, Meta, Ledger>) -> PersistenceResult<()> {
        if !planted::on("start_leaves_alone") {
            self.begin_alone(locked);
        }
        let submit = self.queued(locked);
        if submit == 0 {
            return Ok(());
        }
        let entered = locked.enter(submit);
        self.look_for_a_split(locked, &entered);
        match entered {
            // What could not be begun now begins with the next call that enters.
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => Ok(()),
            Err(error) => Err(self.machinery_failed("submit", error)),
        }
    }

    /// What is queued. Read once: the number that was looked at is the one that must be entered with.
    fn queued(&self, locked: &Locked<'_, Meta, Ledger>) -> u32 {
        let queued = locked.queued();
        if self.drive.shape().is_split(queued as usize) {
            self.machinery_failed("submit a write together with its sync", Errno::ENOMEM);
        }
        queued
    }

    /// Must be called after every entry into the kernel, before completions are read.
    fn look_for_a_split(&self, locked: &Locked<'_, Meta, Ledger>, entered: &Result<usize, Errno>) {
        if entered.is_ok_and(|taken| self.drive.shape().is_split(taken)) {
            self.machinery_failed("submit a write together with its sync", Errno::ENOMEM);
        }
        self.queued(locked);
    }

    fn machinery_failed(&self, operation: &'static str, error: Errno) -> PersistenceError {
        self.latch.trip(PersistenceError::io(operation, self.path.as_str(), None, io::Error::from(error)))
    }

    /// Reads completions and settles what they end. Only for whoever may read completions.
    fn collect(&self, locked: &mut Locked<'_, Meta, Ledger>) {
        self.queued(locked);
        locked.harvest(|| !self.latch.is_tripped(), |ledger, finished| self.settle(ledger, finished));
    }

    fn settle(&self, ledger: &mut Ledger, finished: Finished<Meta>) {
        let Finished { request, result } = finished;
        let Request { buffer, offset, meta, chain, .. } = request;
        meta.sync.into_iter().for_each(|number| ledger.overlap.end(number));
        match result {
            Some(Err(failure)) => {
                let error = self.latch.trip(self.explain(offset, failure));
                ledger.done.push_back(Completion { id: meta.id, buffer, result: Err(error) });
            }
            Some(Ok(())) | None => {
                // Nothing succeeds after a failure: the latch answers here, for this one too.
                let result = self.latch.check(0);
                let completion = Completion { id: meta.id, buffer, result };
                if meta.sync.is_some() {
                    ledger.plain_writes.sync_through(meta.plain_writes);
                    ledger.size_changes.sync_through(meta.size_changes);
                    match planted::on("believe_overlapping_sync") {
                        true => ledger.done.push_back(completion),
                        false => ledger.overlap.hold(completion),
                    }
                } else {
                    ledger.plain_writes.made += u64::from(chain.promises_nothing());
                    ledger.done.push_back(completion);
                }
            }
        }
        self.release(ledger);
    }

    /// Lets go of successes that no sync can put in doubt any more; after a failure, of all as failures.
    fn release(&self, ledger: &mut Ledger) {
        if let (Err(poisoned), false) = (self.latch.check(0), planted::on("believe_held_after_failure")) {
            for completion in ledger.overlap.give_up() {
                ledger.done.push_back(Completion { result: Err(poisoned.clone()), ..completion });
            }
        }
        while let Some(completion) = ledger.overlap.release() {
            ledger.done.push_back(completion);
        }
    }

    fn explain(&self, offset: u64, failure: Failure) -> PersistenceError {
        let source = match failure.cause {
            Cause::Errno(errno) => io::Error::from_raw_os_error(errno),
            Cause::WroteNothing => io::ErrorKind::WriteZero.into(),
            Cause::Impossible(answer) => io::Error::other(format!("the kernel answered {answer}")),
        };
        let at = (failure.operation == "write").then(|| offset + failure.written as u64);
        PersistenceError::io(failure.operation, self.path.as_str(), at, source)
    }

    /// Takes the reaper role, enters, waits there, and gives the role back.
    fn wait_in_kernel<'a>(
        &'a self,
        mut locked: Locked<'a, Meta, Ledger>,
        timeout: Option<Duration>,
        attempts: &mut u32,
    ) -> (Locked<'a, Meta, Ledger>, PersistenceResult<()>) {
        let lone = timeout.is_none() && locked.state().alone.is_some();
        let mut going = lone.then(|| self.ways.next());
        locked.state().has_company &= !lone;
        if let Some(going) = going.take_if(|going| going.way() == Way::Call) {
            if let Some(request) = locked.state().alone.take() {
                return (self.write_alone(locked, request, going), Ok(()));
            }
        }
        if !(lone && planted::on("ring_forgets_alone")) {
            self.begin_alone(&mut locked);
        }
        let (submit, want) = (self.queued(&locked), locked.completions_to_an_end());
        locked.state().reaper = true;
        drop(locked);
        let entered = self.ring.enter(submit, want, timeout);
        let mut locked = self.ring.lock();
        locked.state().reaper = planted::on("reaper_keeps_role");
        self.look_for_a_split(&locked, &entered);
        if let Some(going) = going {
            // A signal ends a wait as well, and what was taken up is answered all the same.
            self.collect(&mut locked);
            let ledger = locked.state();
            going.went(!ledger.has_company && ledger.done.front().is_some_and(|end| end.result.is_ok()));
        }
        let result = match entered {
            Ok(_) => {
                *attempts = 0;
                Ok(())
            }
            Err(Errno::EINTR | Errno::ETIME) => Ok(()),
            Err(Errno::EAGAIN | Errno::EBUSY) if *attempts < SUBMIT_ATTEMPTS_MAX => {
                // No memory to submit with. What runs gives some back as it ends; this is rare enough
                // for a pause with the lock held to be of no concern.
                *attempts += 1;
                std::thread::sleep(SUBMIT_PAUSE);
                Ok(())
            }
            Err(error) => Err(self.machinery_failed("wait for the ring", error)),
        };
        (locked, result)
    }

    fn reap_locked<'a>(
        &'a self,
        mut locked: Locked<'a, Meta, Ledger>,
        wait: Wait,
    ) -> (Locked<'a, Meta, Ledger>, PersistenceResult<Option<Completion>>) {
        let deadline = Deadline::new(wait);
        let mut attempts = 0;
        let mut last_look = false;
        loop {
            if !locked.state().reaper || planted::on("collect_beside_reaper") {
                self.collect(&mut locked);
            }
            if let Some(completion) = locked.state().done.pop_front() {
                return (locked, Ok(Some(completion)));
            }
            if locked.state().unreaped == 0 || last_look {
                return (locked, Ok(None));
            }
            let left = deadline.left();
            let nothing_to_wait_for = locked.state().writing && locked.is_idle();
            if left == Some(Duration::ZERO) || locked.state().reaper {
                if let Err(error) = self.submit_queued(&mut locked) {
                    return (locked, Err(error));
                }
            }
            if left == Some(Duration::ZERO) {
                last_look = true;
            } else if locked.state().reaper || nothing_to_wait_for {
                locked.state().waiting += 1;
                locked = locked.wait_on(&self.turn, left);
                locked.state().waiting -= 1;
            } else {
                let (again, result) = self.wait_in_kernel(locked, left, &mut attempts);
                locked = again;
                if let Err(error) = result {
                    return (locked, Err(error));
                }
            }
        }
    }

    /// How a durable commit would be done now.
    #[cfg(all(test, not(durability_shuttle)))]
    pub(super) fn next_goal(&self) -> Goal {
        self.goal(Effect::Durable, self.ring.lock().state())
    }

    /// Whether somebody waits in the kernel, and how many requests wait to be taken up by it.
    #[cfg(all(test, not(durability_shuttle)))]
    pub(super) fn reaper_and_queued(&self) -> (bool, u32) {
        let mut locked = self.ring.lock();
        let ledger = locked.state();
        (ledger.reaper || ledger.writing, locked.queued())
    }

    #[cfg(all(test, not(durability_shuttle)))]
    pub(super) fn split_a_pair(&self, entries: &[u32]) {
        self.ring.split_a_pair(entries);
    }

    #[cfg(all(test, not(durability_shuttle)))]
    pub(super) fn calls(&self) -> u64 {
        self.ring.calls()
    }
}

impl CommitFile for UringFile {
    fn limits(&self) -> CommitLimits {
        let Drive { in_flight_max, alignment, .. } = self.drive;
        CommitLimits { in_flight_max, alignment, durable: true }
    }

    fn strategy(&self) -> CommitStrategy {
        self.drive.strategy
    }

    fn strategy_reason(&self) -> StrategyReason {
        self.reason.clone()
    }

    fn submit(&self, commit: Commit) -> Submitted {
        if let Err(error) = self.check(&commit) {
            return Submitted::Refused { commit, error };
        }
        self.write_back(&commit);
        let mut locked = self.ring.lock();
        if let Err(error) = self.latch.check(0) {
            return Submitted::Refused { commit, error };
        }
        let full = || {
            let reason = format!("{} commits are in flight already", self.drive.in_flight_max);
            PersistenceError::invalid_state("commit", reason)
        };
        if locked.state().unreaped >= self.drive.in_flight_max {
            return Submitted::Refused { commit, error: full() };
        }
        if let Err(commit) = self.accept(&mut locked, commit) {
            return Submitted::Refused { commit: *commit, error: full() };
        }
        locked.state().has_company = true;
        let Ledger { reaper, writing, waiting, .. } = *locked.state();
        if reaper || writing {
            // Whoever waits in the kernel does not see this one. A failure has tripped the latch, and the
            // completion of this commit will say so.
            let _ = self.submit_queued(&mut locked);
        }
        drop(locked);
        if !reaper && waiting > 0 && !planted::on("submit_wakes_nobody") {
            // Now there is something to wait for in the kernel.
            self.turn.notify_one();
        }
        Submitted::Accepted
    }

    fn start(&self) -> PersistenceResult<()> {
        let mut locked = self.ring.lock();
        self.submit_queued(&mut locked)
    }

    fn reap(&self, wait: Wait) -> PersistenceResult<Option<Completion>> {
        let (mut locked, result) = self.reap_locked(self.ring.lock(), wait);
        let ledger = locked.state();
        ledger.unreaped -= usize::from(matches!(result, Ok(Some(_))));
        let wake = ledger.waiting > 0 && !planted::on("reap_wakes_nobody");
        drop(locked);
        if wake {
            self.turn.notify_one();
        }
        result
    }

    fn size(&self) -> PersistenceResult<u64> {
        self.ring
            .file()
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|source| PersistenceError::io("read the size", self.path.as_str(), None, source))
    }

    fn set_size(&self, bytes: u64) -> PersistenceResult<()> {
        let mut locked = self.ring.lock();
        self.latch.check(0)?;
        if locked.state().unreaped > 0 {
            return Err(PersistenceError::invalid_state("set the size", "commits are in flight"));
        }
        // Under the lock, so that nothing is submitted meanwhile.
        self.ring.file().set_len(bytes).map_err(|source| {
            self.latch.trip(PersistenceError::io("set the size", self.path.as_str(), Some(bytes), source))
        })?;
        locked.state().size_changes.made += 1;
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> PersistenceResult<()> {
        crate::backends::std_fs::file::reserve_file(self.ring.file(), self.path.as_str(), bytes)
    }
}

impl fmt::Debug for UringFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringFile")
            .field("path", &self.path)
            .field("drive", &self.drive)
            .field("latch", &self.latch)
            .finish_non_exhaustive()
    }
}

// As below: compiled a second time.
#[path = "alone.rs"]
mod alone;

/// When a wait is over.
enum Deadline {
    Now,
    At(Instant),
    Never,
}

impl Deadline {
    #[allow(clippy::disallowed_methods, reason = "how long a thread waits for the kernel is real time")]
    fn new(wait: Wait) -> Self {
        match wait {
            Wait::Never => Self::Now,
            Wait::Forever => Self::Never,
            Wait::AtMost(time) => Instant::now().checked_add(time).map_or(Self::Never, Self::At),
        }
    }

    /// `None`: for ever.
    #[allow(clippy::disallowed_methods, reason = "how long a thread waits for the kernel is real time")]
    fn left(&self) -> Option<Duration> {
        match self {
            Self::Now => Some(Duration::ZERO),
            Self::At(at) => Some(at.saturating_duration_since(Instant::now())),
            Self::Never => None,
        }
    }
}

// Models compile this file a second time, over a ring of their own.
#[cfg(all(test, not(durability_shuttle)))]
#[path = "file_tests.rs"]
mod tests;
