//! Segments that are ready before they are needed, and the seals of those that are full.
//!
//! Lives here: what is ready, what is in the making, what waits for its seal, and who works on it: a thread of the
//! log's own, a hand of the caller's, or whoever needs a segment while there is none. Not here: the steps of making
//! a segment (`making`), and what is written into one (`appender`).
//!
//! Invariants: one at a time works, so that segments become ready in the order of their ids; who needs one while
//! somebody is at work waits for the end of that step and then does the rest itself, so nobody's progress rests on
//! a thread being scheduled. A full segment is sealed before the next is begun, so a file that truncation keeps for
//! reuse is nobody's any more. Nothing that was acknowledged rests on a seal: it may come late, or never.
//!
//! A failure to make a segment ahead of need is none yet: the pool rests until a segment is needed, and whoever
//! needs it meets the failure himself. A failure that puts written data in doubt trips the log's latch, which the
//! next commit sees.

use super::making::{Making, Prepared, Recipe};
use super::options::WalOptions;
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::header::{FileKind, HeaderState, decode};
use crate::formats::layout::HEADER_BYTES;
use crate::formats::names;
use crate::limits::{BUFFER_ALIGNMENT, PREPARE_CHUNK_BYTES, RETIRED_SEGMENTS_MAX, ZERO_FILL_BYTES};
use crate::planted;
use crate::storage::{
    Commit, CommitBuffer, CommitFile, Directory, DirectoryLock, Effect, Environment, Latch,
};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

/// What is done off the commit path.
pub(super) struct Pool<D: ?Sized> {
    directory: Arc<D>,
    environment: Arc<dyn Environment>,
    latch: Latch,
    identity: u128,
    is_durable: bool,
    state: Mutex<State>,
    /// The helper waits here for work; signalled with the lock of `state`.
    work: Condvar,
    /// Who needs a segment waits here for the end of a step; signalled with the lock of `state`.
    made: Condvar,
    /// Bytes of the current segment that are in use. Written by the committer, read by the helper; paired with
    /// `wake_at_bytes`: each writes its own before it reads the other's (both sequentially consistent), so that one
    /// of the two sees what the other did.
    used_bytes: AtomicU64,
    /// The helper waits until so many are in use.
    wake_at_bytes: AtomicU64,
}

/// Behind the lock.
struct State {
    /// What makes this writer the only one.
    lock: Option<Arc<dyn DirectoryLock>>,
    ready: VecDeque<Prepared>,
    job: Option<Making>,
    retired: VecDeque<Retired>,
    /// Somebody works, without the lock.
    busy: bool,
    /// Making ahead of need failed: nobody tries again until a segment is needed.
    rests: bool,
    stop: bool,
    next_id: u64,
    last_salt: Option<u64>,
    /// How many are to be ready; 0 where nothing is made ahead of need.
    ready_min: usize,
    ahead: Recipe,
    /// Hardly anybody waited for commits in the last segment.
    streams: bool,
    /// Whether making follows the filling of the current segment.
    is_paced: bool,
    /// How much of the current segment was zero-filled when it was entered, as far as it will be used, and how much of
    /// the next one will be: a log begins with small segments, each larger than the one before.
    current_bytes: u64,
    next_bytes: u64,
    /// The segment that is being written.
    current: Option<(u64, u64)>,
}

impl State {
    /// Files of segments before this one are sealed. A file that waits for its seal may be one that truncation
    /// offers for reuse, at any time; spare files keep the ids of their segments.
    fn sealed_below(&self) -> u64 {
        if planted::on("spare_before_its_seal") {
            return u64::MAX;
        }
        let retired = self.retired.iter().map(|retired| retired.id).min();
        retired.or(self.current.map(|(id, _)| id)).unwrap_or(u64::MAX)
    }
}

/// A full segment, all of whose entries are durable, and its seal.
pub(super) struct Retired {
    pub id: u64,
    pub file: Arc<dyn CommitFile>,
    pub path: String,
    pub seal: CommitBuffer,
    pub offset: u64,
    pub effect: Effect,
    /// Where to cut the file behind the seal.
    pub cut: Option<u64>,
}

enum Work {
    Seal(Retired),
    Make(Making),
}

/// A segment, and whether it had to be waited for.
pub(super) struct Obtained {
    pub prepared: Prepared,
    pub waited: bool,
}

impl<D: Directory + ?Sized> Pool<D> {
    pub fn new(
        directory: Arc<D>,
        options: &WalOptions,
        lock: Arc<dyn DirectoryLock>,
        latch: Latch,
        (identity, next_id): (u128, u64),
    ) -> Self {
        let is_durable = directory.as_durable().is_some();
        let state = State {
            lock: Some(lock),
            ready: VecDeque::new(),
            job: None,
            retired: VecDeque::new(),
            busy: false,
            rests: false,
            stop: false,
            next_id,
            last_salt: None,
            ready_min: 0,
            ahead: Recipe::ahead(options, identity, is_durable),
            streams: false,
            is_paced: false,
            current_bytes: 0,
            next_bytes: 0,
            current: None,
        };
        Self {
            directory,
            environment: Arc::clone(&options.environment),
            latch,
            identity,
            is_durable,
            state: Mutex::new(state),
            work: Condvar::new(),
            made: Condvar::new(),
            used_bytes: AtomicU64::new(0),
            wake_at_bytes: AtomicU64::new(u64::MAX),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in the state is half changed when a panic can happen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on somebody makes segments ahead of need.
    pub fn make_ahead(&self, options: &WalOptions) {
        self.set_options(&mut self.state(), options);
        self.work.notify_one();
    }

    fn set_options(&self, state: &mut State, options: &WalOptions) {
        state.ready_min = options.prepared_segments_min;
        state.ahead = Recipe::ahead(options, self.identity, self.is_durable);
        if state.streams {
            state.ahead = state.ahead.for_stream(options);
        }
        // A segment that is sealed by its age, or that is made in a moment, does not follow the filling.
        state.is_paced = options.segment_age_max.is_none()
            && state.ahead.fill_bytes > 4 * PREPARE_CHUNK_BYTES as u64
            && state.ahead.in_steps;
    }

    /// Whether the lock that makes this writer the only one is still that.
    pub fn check_fence(&self) -> PersistenceResult<()> {
        let lock = self.state().lock.clone();
        let is_held = lock.map_or(Ok(true), |lock| lock.is_held())?;
        if is_held || planted::on("fence_unchecked") {
            return Ok(());
        }
        Err(self.latch.trip(PersistenceError::Fenced { resource: names::WAL_LOCK.to_owned() }))
    }

    /// Whether the segment that is being written is still the file of its name. Truncation never removes it, but
    /// may have removed it by now where the log went on in another one meanwhile.
    fn check_current(&self) -> PersistenceResult<()> {
        self.check_fence()?;
        let mut current = self.state().current;
        while let Some((id, salt)) = current {
            let path = names::segment_path(id);
            let mut block = [0; HEADER_BYTES];
            let found = self.directory.open_at(&path).and_then(|file| file.read_at(0, &mut block));
            let is_ours = match found {
                Ok(read) => matches!(decode(FileKind::Segment, &block[..read]),
                    HeaderState::Good(header) if header.salt == salt),
                Err(error) if error.is_not_found() => false,
                Err(error) => return Err(error),
            };
            if is_ours || planted::on("fence_unchecked") {
                break;
            }
            let now = self.state().current;
            if now == current {
                return Err(self.latch.trip(PersistenceError::Fenced { resource: path }));
            }
            current = now;
        }
        Ok(())
    }

    /// The next segment: one that is ready, or one that the caller makes, or finishes.
    ///
    /// `streams`: what the last one was filled with says that zeros in the next ones would not pay.
    pub fn obtain(&self, options: &WalOptions, streams: bool) -> PersistenceResult<Obtained> {
        self.check_fence()?;
        let mut state = self.state();
        state.streams = streams && !planted::on("streams_are_zero_filled");
        if state.ready_min > 0 {
            self.set_options(&mut state, options);
        }
        state.rests &= planted::on("rests_for_good");
        let mut waited = false;
        loop {
            let newest = planted::on("prepared_newest_first");
            let ready = if newest { state.ready.pop_back() } else { state.ready.pop_front() };
            if let Some(prepared) = ready {
                drop(state);
                return Ok(Obtained { prepared, waited });
            }
            waited = true;
            let helper_will = state.ready_min > 0 && state.job.is_some();
            if state.busy || (helper_will && planted::on("wait_for_helper")) {
                state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let is_whole = state.streams;
            let job = match state.job.take() {
                Some(job) => job,
                None => {
                    let recipe = Recipe::now(options, self.identity, self.is_durable);
                    let recipe = if state.streams { recipe.for_stream(options) } else { recipe };
                    self.new_job(&mut state, recipe)
                }
            };
            let (again, made) = self.make_whole(state, job);
            state = again;
            match made {
                // No disk has room for a whole one, or this one has none any more: what a commit needs may be there.
                Err(_)
                    if is_whole
                        && !self.latch.is_tripped()
                        && !planted::on("streams_need_whole_segments") =>
                {
                    state.streams = false
                }
                made => made?,
            }
        }
    }

    fn new_job(&self, state: &mut State, recipe: Recipe) -> Making {
        let id = state.next_id;
        // Whatever becomes of the file, its id is used up.
        state.next_id = state.next_id.saturating_add(1);
        let used = state.last_salt.filter(|_| planted::on("reuse_salt"));
        let salt = used.unwrap_or_else(|| self.environment.random());
        state.last_salt = Some(salt);
        Making::new(recipe, id, salt)
    }

    fn make_whole<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        mut job: Making,
    ) -> (MutexGuard<'a, State>, PersistenceResult<()>) {
        state.busy = true;
        job.spares_below(state.sealed_below());
        drop(state);
        let role = Busy { pool: self };
        let made = self.check_current().and_then(|()| {
            loop {
                if let Some(prepared) = job.step(self.directory.as_ref(), &self.latch)? {
                    return Ok(prepared);
                }
            }
        });
        let mut state = role.end();
        let result = made.map(|prepared| state.ready.push_back(prepared));
        (state, result)
    }

    /// Whether a segment is ready.
    pub fn is_ready(&self) -> bool {
        !self.state().ready.is_empty()
    }

    /// Whether one is ready, or in the making.
    pub fn is_begun(&self) -> bool {
        let state = self.state();
        !state.ready.is_empty() || state.job.is_some() || (state.busy && state.retired.is_empty())
    }

    /// The committer goes on in this segment.
    pub fn enter(&self, segment: &Prepared, retired: Option<Retired>) -> PersistenceResult<()> {
        self.used_bytes.store(0, Ordering::SeqCst);
        let mut state = self.state();
        state.current = Some((segment.id, segment.salt));
        // A file that serves again may be larger than the log will fill it.
        state.current_bytes = segment.bytes.min(state.ahead.fill_bytes);
        if state.next_bytes == 0 {
            state.next_bytes = larger(segment.bytes).max(ZERO_FILL_BYTES as u64);
        }
        state.retired.extend(retired);
        let too_many = state.retired.len() > RETIRED_SEGMENTS_MAX;
        drop(state);
        self.work.notify_one();
        if too_many { self.seal_retired() } else { Ok(()) }
    }

    /// So many bytes of the current segment are in use.
    pub fn note_used(&self, bytes: u64) {
        self.used_bytes.store(bytes, Ordering::SeqCst);
        if bytes >= self.wake_at_bytes.load(Ordering::SeqCst) {
            // With the lock, or the helper might be about to wait.
            if !planted::on("wake_helper_unlocked") {
                drop(self.state());
            }
            self.work.notify_one();
        }
    }

    /// Seals whatever waits for it.
    pub fn seal_retired(&self) -> PersistenceResult<()> {
        let mut state = self.state();
        loop {
            while state.busy && !planted::on("close_beside_seal") {
                state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(retired) = state.retired.pop_front() else { return Ok(()) };
            state.busy = true;
            drop(state);
            let role = Busy { pool: self };
            let sealed = self.seal(retired);
            state = role.end();
            sealed?;
        }
    }

    fn seal(&self, retired: Retired) -> PersistenceResult<()> {
        let Retired { file, path, seal, offset, effect, cut, .. } = retired;
        let range = 0..seal.len();
        match file.commit(Commit { id: 0, offset, buffer: seal, range, effect }).0 {
            Ok(()) => {}
            Err(error) if error.is_out_of_space() || planted::on("forget_seal_failure") => {
                // The segment behind says all that the seal says.
                tracing::warn!(%error, %path, "a segment stays without a seal");
                return Ok(());
            }
            Err(error) => return Err(self.latch.trip(error)),
        }
        if let Some(bytes) = cut {
            if let Err(error) = file.set_size(bytes) {
                tracing::debug!(%error, %path, "a sealed segment keeps its zeros");
            }
        }
        Ok(())
    }

    /// What there is to do now, for the helper. `unpaced`: without regard to how full the current segment is.
    fn next_work(&self, state: &mut State, unpaced: bool) -> Option<Work> {
        self.wake_at_bytes.store(u64::MAX, Ordering::SeqCst);
        if state.busy || state.stop || (self.latch.is_tripped() && !planted::on("helper_ignores_poison")) {
            return None;
        }
        if let Some(retired) = state.retired.pop_front() {
            return Some(Work::Seal(retired));
        }
        if state.rests || state.current.is_none() || state.ready.len() >= state.ready_min {
            return None;
        }
        let mut job = match state.job.take() {
            Some(job) => job,
            None => {
                let recipe = self.next_recipe(state);
                self.new_job(state, recipe)
            }
        };
        job.spares_below(state.sealed_below());
        if unpaced || !state.is_paced || self.is_due(state.current_bytes, &job) {
            return Some(Work::Make(job));
        }
        state.job = Some(job);
        None
    }

    /// For the next segment that is made ahead of need.
    fn next_recipe(&self, state: &mut State) -> Recipe {
        let whole = state.ahead;
        let fill_bytes =
            if state.streams { whole.fill_bytes } else { whole.fill_bytes.min(state.next_bytes) };
        state.next_bytes = larger(state.next_bytes);
        Recipe { fill_bytes, ..whole }
    }

    /// The next segment is begun a little behind the seal of the last one, so that no commit has to wait for both, and
    /// whole when the current one is three quarters full; between, its zeros follow the filling. Where that is still
    /// to come, the committer will wake the helper.
    fn is_due(&self, segment_bytes: u64, job: &Making) -> bool {
        let begun_at = 1.0 / 32.0;
        let due_at = (segment_bytes as f64 * (begun_at + job.share_behind_step() * (0.75 - begun_at))) as u64;
        let early = planted::on("look_before_mark").then(|| self.used_bytes.load(Ordering::SeqCst));
        self.wake_at_bytes.store(due_at, Ordering::SeqCst);
        let due = early.unwrap_or_else(|| self.used_bytes.load(Ordering::SeqCst)) >= due_at;
        if due {
            self.wake_at_bytes.store(u64::MAX, Ordering::SeqCst);
        }
        due
    }

    fn perform<'a>(&'a self, mut state: MutexGuard<'a, State>, work: Work) -> MutexGuard<'a, State> {
        state.busy = true;
        drop(state);
        let role = Busy { pool: self };
        let mut made = None;
        let result = match work {
            Work::Seal(retired) => self.seal(retired),
            Work::Make(mut job) => {
                let checked = if job.is_new() { self.check_current() } else { Ok(()) };
                let stepped = checked.and_then(|()| job.step(self.directory.as_ref(), &self.latch));
                stepped.map(|prepared| made = Some(prepared.ok_or(job)))
            }
        };
        let mut state = role.end();
        match made {
            Some(Ok(prepared)) => state.ready.push_back(prepared),
            Some(Err(job)) => state.job = Some(job),
            None => {}
        }
        if let Err(error) = result {
            tracing::warn!(%error, "a segment could not be prepared or sealed ahead of need");
            state.rests = true;
            state.busy = planted::on("failed_step_keeps_role");
        }
        state
    }

    /// Does one piece of what there is to do; `false` when there is none.
    pub fn step(&self) -> bool {
        let mut state = self.state();
        let Some(work) = self.next_work(&mut state, true) else { return false };
        drop(self.perform(state, work));
        true
    }

    /// The helper: works until it is told to stop.
    fn work(&self) {
        let mut state = self.state();
        while !state.stop {
            state = match self.next_work(&mut state, false) {
                Some(work) => self.perform(state, work),
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Nothing is made ahead of need any more.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stop = true;
        state.ready_min = 0;
        drop(state);
        if !planted::on("stop_is_unheard") {
            self.work.notify_all();
        }
    }

    /// Removes what was made and not used. After a crash, what is left is recognised as never started.
    pub fn discard_unused(&self) {
        let (ready, job) = self.take_unused();
        for Prepared { file, path, .. } in ready {
            drop(file);
            if let Err(error) = self.directory.delete(&path) {
                tracing::debug!(%error, %path, "a segment that was not used stays");
            }
        }
        if let Some(mut job) = job {
            job.discard(self.directory.as_ref());
        }
    }

    /// Lets go of every file and of the lock, whoever still knows the pool.
    pub fn release(&self) {
        drop(self.take_unused());
        let mut state = self.state();
        let held = (std::mem::take(&mut state.retired), state.lock.take());
        drop(state);
        drop(held);
    }

    fn take_unused(&self) -> (VecDeque<Prepared>, Option<Making>) {
        let mut state = self.state();
        while state.busy && !planted::on("discard_beside_work") {
            state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (std::mem::take(&mut state.ready), state.job.take())
    }
}

/// By half, a multiple of every alignment.
fn larger(bytes: u64) -> u64 {
    let blocks = bytes / BUFFER_ALIGNMENT as u64;
    blocks.saturating_add(blocks / 2 + 1).saturating_mul(BUFFER_ALIGNMENT as u64)
}

/// Whoever works; a panic ends that work and keeps nobody waiting.
struct Busy<'a, D: Directory + ?Sized> {
    pool: &'a Pool<D>,
}

impl<'a, D: Directory + ?Sized> Busy<'a, D> {
    fn end(self) -> MutexGuard<'a, State> {
        let pool = self.pool;
        std::mem::forget(self);
        pool.end_work()
    }
}

impl<D: Directory + ?Sized> Drop for Busy<'_, D> {
    fn drop(&mut self) {
        let cause = PersistenceError::invalid_state("preparing a segment", "the preparing thread panicked");
        let _ = self.pool.latch.trip(cause);
        drop(self.pool.end_work());
    }
}

impl<D: Directory + ?Sized> Pool<D> {
    fn end_work(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.busy = false;
        if !planted::on("step_ends_unheard") {
            self.made.notify_all();
        }
        self.work.notify_one();
        state
    }
}

/// Starts the thread that works on a pool.
pub(super) fn start_helper<D: Directory + ?Sized + 'static>(
    pool: &Arc<Pool<D>>,
) -> PersistenceResult<JoinHandle<()>> {
    let pool = Arc::clone(pool);
    thread::Builder::new()
        .name("durability-prepare".to_owned())
        .spawn(move || pool.work())
        .map_err(|source| PersistenceError::io("start a thread for", "segments", None, source))
}

#[cfg(all(test, durability_shuttle))]
#[path = "model_pool_tests.rs"]
mod model;
