//! Writes batches into segments: the one place that orders a segment's creation, its first commit, its
//! seal and the next segment's creation.
//!
//! One owner at a time drives an appender; who that is, the writers above decide. Order of a rotation:
//! the new segment has its zeros, its header and its durable name; then everything in the old one is durable; only
//! then does the first commit of the new segment begin. So nothing acknowledged in the new segment rests on
//! anything unsynced in the old one. The old one's seal names the new one, which is durable by then. Nothing rests
//! on the seal: where somebody prepares segments ahead of need (`pool`), it is written beside the new segment's
//! first commits; else before them.

use super::afloat::{Afloat, Frames};
use super::making::Prepared;
use super::open::{
    OpenMode, await_predecessor, check_exists, check_is_new, find_end, opening_after, prepare_folder,
    remove_unstarted,
};
use super::options::{WalObserver, WalOptions, observed};
use super::pool::{Obtained, Pool, Retired};
use super::queue::Room;
use super::rotations::{Helper, Rotations};
use super::walk::{self, LogEnd};
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::{FrameSeed, Opening, Seal, SealReason};
use crate::formats::names;
use crate::framing::{Batch, Control, FrameSink, control_commit, write_again};
use crate::limits::{
    COMMIT_BUFFER_BYTES_INITIAL, FRAME_ALIGNMENT_MIN, LOCK_FILE_WAIT_MS, PREPARE_CHUNK_BYTES,
    STREAM_BYTES_PER_COMMIT,
};
use crate::planted;
use crate::storage::{
    ActiveStrategy, Commit, CommitBuffer, CommitFile, Directory, Effect, Latch, Submitted, sweep_temporaries,
};
use std::sync::Arc;
use std::time::Duration;

mod filler;
mod growing;
mod sink;

#[cfg(durability_planted)]
#[path = "appender_planted.rs"]
mod planted_resumption;

/// The writing end of a log.
pub(crate) struct Appender<D: Directory + ?Sized> {
    directory: Arc<D>,
    options: WalOptions,
    observer: Option<Arc<dyn WalObserver>>,
    latch: Latch,
    identity: u128,
    current: Option<Current>,
    /// What the next segment's opening frame says when there is no current segment.
    predecessor: Opening,
    /// Where segments come from.
    pool: Arc<Pool<D>>,
    /// Who makes them ahead of need.
    helper: Helper<D>,
    rotations: Arc<Rotations>,
    /// The last entry that was given to a file.
    begun_entry_id: u64,
    flushed_entry_id: u64,
    durable_entry_id: u64,
    is_durable: bool,
    next_commit_id: u64,
    /// Of an owner who does not wait; a shared log keeps its own account.
    afloat: Afloat,
}

/// The segment that is being written.
struct Current {
    file: Arc<dyn CommitFile>,
    id: u64,
    path: String,
    salt: u64,
    seed: FrameSeed,
    /// Where the next frame goes.
    offset: u64,
    /// Where the last frame that is no seal ends.
    content_offset: u64,
    /// Where the last block ends that was filled.
    filled_to: u64,
    /// A seal of [`seal`](Appender::seal) stands behind the last frame that is none.
    is_attested: bool,
    /// Below this, in bytes, writing does not find the device full; `u64::MAX`: nobody asks.
    reserved: u64,
    /// Goes with the first commit.
    opening: Option<Opening>,
    created: Duration,
    /// Durable commits of it that somebody asked for.
    commits: u64,
}

impl<D: Directory + ?Sized> Appender<D> {
    /// Takes the locks, reads where the log ends, and makes what it found durable.
    ///
    /// `known` is an end that the caller read before: then only what stands behind it is read again.
    pub(crate) fn open(
        directory: Arc<D>,
        options: WalOptions,
        how: OpenMode,
        known: Option<&LogEnd>,
    ) -> PersistenceResult<(Self, LogEnd)> {
        options.validate()?;
        let is_durable = directory.as_durable().is_some();
        prepare_folder(directory.as_ref(), how)?;
        let lock = directory.lock(names::WAL_LOCK, Duration::from_millis(LOCK_FILE_WAIT_MS))?;
        await_predecessor(directory.as_ref(), options.lock_wait)?;
        sweep_temporaries(directory.as_ref(), names::WAL_DIRECTORY, None)?;
        let chain = walk::read_chain(directory.as_ref(), options.identity)?;
        check_is_new(&chain, how)?;
        let end = find_end(directory.as_ref(), &chain, &options, known)?;
        check_exists(&chain, &end, how)?;
        if let Some(torn) = &end.torn {
            tracing::warn!(path = %torn.path, offset = torn.offset, last_entry_id = torn.last_entry_id,
                evidence = %torn.evidence, "the log ends in a torn tail, which is cut");
        }
        if is_durable {
            for region in &end.unproven {
                write_again(directory.as_ref(), region, FRAME_ALIGNMENT_MIN)?;
            }
        }
        remove_unstarted(directory.as_ref(), &chain, &end)?;
        let identity = match chain.identity {
            Some(identity) => identity,
            None => {
                let random = &options.environment;
                (u128::from(random.random()) << 64) | u128::from(random.random())
            }
        };
        let latch = Latch::new();
        let first = (identity, chain.highest_id.saturating_add(1));
        let pool = Pool::new(Arc::clone(&directory), &options, Arc::from(lock), latch.clone(), first);
        let appender = Self {
            directory,
            observer: None,
            latch,
            identity,
            current: None,
            predecessor: opening_after(&end),
            pool: Arc::new(pool),
            helper: Helper::default(),
            rotations: Arc::default(),
            begun_entry_id: end.last_entry_id,
            flushed_entry_id: end.last_entry_id,
            durable_entry_id: if is_durable { end.last_entry_id } else { 0 },
            is_durable,
            next_commit_id: 1,
            afloat: Afloat::default(),
            options,
        };
        #[cfg(durability_planted)]
        let appender = appender.resume_in_place(&end)?;
        Ok((appender, end))
    }

    pub(crate) fn options(&self) -> &WalOptions {
        &self.options
    }

    pub(crate) fn options_mut(&mut self) -> &mut WalOptions {
        &mut self.options
    }

    pub(crate) fn directory(&self) -> &Arc<D> {
        &self.directory
    }

    pub(crate) fn observer(&self) -> Option<&Arc<dyn WalObserver>> {
        self.observer.as_ref()
    }

    pub(crate) fn set_observer(&mut self, observer: Arc<dyn WalObserver>) {
        self.observer = Some(observer);
    }

    /// From now on somebody else tells the observer.
    pub(crate) fn take_observer(&mut self) -> Option<Arc<dyn WalObserver>> {
        self.observer.take()
    }

    pub(crate) fn identity(&self) -> u128 {
        self.identity
    }

    pub(crate) fn latch(&self) -> &Latch {
        &self.latch
    }

    pub(crate) fn flushed_entry_id(&self) -> u64 {
        self.flushed_entry_id
    }

    pub(crate) fn durable_entry_id(&self) -> u64 {
        self.durable_entry_id
    }

    /// Id and bytes of the segment that is being written; id 0 before the first commit.
    pub(crate) fn current_segment(&self) -> (u64, u64) {
        self.current.as_ref().map_or((0, 0), |current| (current.id, current.offset))
    }

    pub(crate) fn strategy(&self) -> Option<ActiveStrategy> {
        self.current.as_ref().map(|current| current.file.active_strategy())
    }

    /// `NotSupported` where there is no stable storage; poisons nothing.
    pub(crate) fn check_durable(&self, operation: &'static str) -> PersistenceResult<()> {
        if self.is_durable {
            return Ok(());
        }
        Err(PersistenceError::not_supported(operation, self.directory.backend_name()))
    }

    /// Writes a seal behind everything flushed, and makes both durable where that can be had. Where the current
    /// segment was never started, that is the seal of the one before.
    pub(crate) fn seal(
        &mut self,
        reason: SealReason,
        successor: Option<(u64, u64)>,
    ) -> PersistenceResult<()> {
        self.finish_writes()?;
        debug_assert_eq!(self.begun_entry_id, self.flushed_entry_id, "nothing is in flight");
        if self.is_durable && !planted::on("seal_attests_flushed") {
            // So that the seal can attest the very last entry.
            self.sync()?;
        }
        let (next_entry_id, durable) = (self.flushed_entry_id + 1, self.durable_entry_id);
        let durable = if planted::on("drop_seal_watermark") { 0 } else { durable };
        let durable = if planted::on("seal_attests_flushed") { self.flushed_entry_id } else { durable };
        let Some(current) = self.current.as_ref().filter(|current| current.opening.is_none()) else {
            // The last entries stand in the segment before, whose seal may still be to come.
            return if planted::on("late_seal_attests") { Ok(()) } else { self.pool.seal_retired() };
        };
        if reason == SealReason::Idle && self.is_durable && current.is_attested {
            // The seal that is there says the same; another one would take space that nobody has asked for.
            return Ok(());
        }
        let (successor_id, successor_salt) = successor.unwrap_or((0, 0));
        let seal = Control::Seal(Seal { reason, successor_id, successor_salt });
        let alignment = self.options.frame_alignment;
        let buffer = control_commit(seal, current.offset, current.seed, alignment, next_entry_id, durable);
        let effect = self.effect();
        self.commit_now(buffer, effect)?;
        self.current.iter_mut().for_each(|current| current.is_attested = true);
        Ok(())
    }

    fn effect(&self) -> Effect {
        if self.is_durable { Effect::Durable } else { Effect::Flushed }
    }

    /// Seals the log for good and cuts what was preallocated and not used.
    pub(crate) fn close(&mut self) -> PersistenceResult<()> {
        self.helper.stop(&self.pool);
        self.check()?;
        self.pool.check_fence()?;
        self.pool.seal_retired()?;
        self.seal(SealReason::Close, None)?;
        self.pool.discard_unused();
        let Some(current) = self.current.take() else { return Ok(()) };
        let asked_for = if current.reserved == u64::MAX { 0 } else { current.reserved };
        let unused = asked_for.max(current.file.size()?) > current.offset;
        if current.opening.is_none() && unused {
            // The seal says where the log ends, so zeros behind it mean nothing, cut or not.
            match current.file.set_size(current.offset) {
                Err(PersistenceError::NotSupported { .. }) => {}
                result => result.map_err(|error| self.latch.trip(error))?,
            }
        }
        Ok(())
    }

    /// One commit at the end of the current segment, of which nothing is in flight.
    fn commit_now(&mut self, buffer: CommitBuffer, effect: Effect) -> PersistenceResult<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let range = 0..buffer.len();
        let bytes = range.len() as u64;
        let commit = Commit { id: self.next_commit_id, offset: current.offset, buffer, range, effect };
        self.next_commit_id += 1;
        let (result, _) = current.file.commit(commit);
        result.map_err(|error| self.latch.trip(error))?;
        current.offset += bytes;
        debug_assert!(current.offset <= current.reserved || planted::on("room_is_asked_for_once"));
        Ok(())
    }

    /// Gives a batch to the current segment's file, whose completion somebody else collects and tells with
    /// [`progress`](Self::progress). Room was made before; a refusal poisons.
    pub(crate) fn begin(&mut self, batch: Batch, effect: Effect, commit_id: u64) -> PersistenceResult<()> {
        let is_filled = effect == Effect::Flushed && self.options.filler_bytes(batch.frame_bytes()) > 0;
        let mut frames = self.place(batch)?;
        if is_filled {
            self.fill_block(&mut frames);
        }
        self.submit(frames, effect, commit_id)
    }

    /// Gives a batch its place at the end of the current segment.
    fn place(&mut self, batch: Batch) -> PersistenceResult<Frames> {
        if !planted::on("begin_unchecked") {
            self.check()?;
        }
        let seals_bytes = self.seals_bytes();
        let Some(current) = &mut self.current else {
            return Err(PersistenceError::invalid_state("write", "no room was made"));
        };
        debug_assert_eq!(batch.first_entry_id(), self.begun_entry_id + 1);
        let last_entry_id = batch.next_entry_id() - 1;
        let opening = current.opening.take();
        let early = planted::on("frame_attests_flushed");
        let durable = if early { self.flushed_entry_id } else { self.durable_entry_id };
        let offset = current.offset;
        let (buffer, range) = batch.finish(offset, current.seed, durable, opening.as_ref());
        current.offset += range.len() as u64;
        current.content_offset = current.offset;
        current.is_attested = false;
        let has_room = current.offset + seals_bytes <= current.reserved
            || planted::on("room_is_asked_for_once")
            || planted::on("opening_takes_a_seals_place");
        debug_assert!(has_room, "space was asked for up to {}, not {}", current.reserved, current.offset);
        self.begun_entry_id = last_entry_id;
        Ok(Frames { buffer, range, offset, last_entry_id })
    }

    fn submit(&mut self, frames: Frames, effect: Effect, commit_id: u64) -> PersistenceResult<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let Frames { buffer, range, offset, .. } = frames;
        let commit = Commit { id: commit_id, offset, buffer, range, effect };
        if let Submitted::Refused { error, .. } = current.file.submit(commit) {
            return Err(self.latch.trip(error));
        }
        current.commits += u64::from(effect == Effect::Durable);
        if self.helper.works() {
            self.pool.note_used(current.offset);
        }
        Ok(())
    }

    /// Asks the current segment's file to make durable what it has completed; as [`begin`](Self::begin).
    pub(crate) fn begin_sync(&mut self, commit_id: u64) -> PersistenceResult<()> {
        self.check()?;
        self.check_durable("sync")?;
        let Some(current) = &mut self.current else {
            return Err(PersistenceError::invalid_state("sync", "nothing was written"));
        };
        let (offset, buffer) = (current.offset, CommitBuffer::new());
        let commit = Commit { id: commit_id, offset, buffer, range: 0..0, effect: Effect::Durable };
        current.commits += 1;
        match current.file.submit(commit) {
            Submitted::Accepted => Ok(()),
            Submitted::Refused { error, .. } => Err(self.latch.trip(error)),
        }
    }

    /// How far the commits that were begun have come. More may be durable: a rotation syncs what was only flushed, and
    /// what it has left behind is attested from then on.
    pub(crate) fn progress(&mut self, flushed_entry_id: u64, durable_entry_id: u64) {
        debug_assert!(self.flushed_entry_id <= flushed_entry_id && flushed_entry_id <= self.begun_entry_id);
        self.flushed_entry_id = flushed_entry_id;
        let known = if planted::on("rotation_sync_is_forgotten") { 0 } else { self.durable_entry_id };
        self.durable_entry_id = durable_entry_id.max(known);
    }

    /// The file of the segment that is being written.
    pub(crate) fn file(&self) -> Option<&Arc<dyn CommitFile>> {
        self.current.as_ref().map(|current| &current.file)
    }

    /// What the current segment has room for.
    pub(super) fn room(&self) -> Room {
        let Some(current) = &self.current else { return Room::default() };
        let bytes_left = self.options.segment_bytes_max.saturating_sub(current.offset);
        let is_fresh = current.opening.is_some();
        Room {
            bytes_left: Some(if is_fresh { u64::MAX } else { bytes_left }),
            reserved_bytes_left: current.reserved.saturating_sub(current.offset + self.control_bytes()),
            old_at: self
                .options
                .segment_age_max
                .filter(|_| !is_fresh)
                // An age that the clock never reaches is none.
                .and_then(|age| current.created.checked_add(age)),
        }
    }

    /// What stands around the next frame takes so much, in bytes: an opening before the first one; the seals behind it.
    fn control_bytes(&self) -> u64 {
        let is_fresh = self.current.as_ref().is_some_and(|current| current.opening.is_some());
        let is_fresh = is_fresh && !planted::on("opening_takes_a_seals_place");
        self.seals_bytes() + if is_fresh { u64::from(self.options.frame_alignment) } else { 0 }
    }

    /// What may follow a frame that is the last one: a seal of an idle log, and the segment's own.
    fn seals_bytes(&self) -> u64 {
        2 * u64::from(self.options.frame_alignment)
    }

    /// Whether a frame of `frame_bytes` needs a segment of its own, or the first one. Where this one would have to
    /// grow for it, the next one serves as well, if it is ready.
    pub(crate) fn needs_segment(&self, frame_bytes: u64) -> bool {
        let Room { bytes_left, old_at, .. } = self.room();
        let is_too_large = bytes_left.is_none_or(|bytes_left| frame_bytes > bytes_left);
        is_too_large
            || old_at.is_some_and(|old_at| self.options.environment.elapsed() >= old_at)
            || (self.needs_growth(frame_bytes) && self.next_is_ready())
    }

    /// From the next segment on, segments are made ahead of need, by whom the options say; `auto` is what
    /// "automatically" means here.
    pub(crate) fn prepare_ahead(&mut self, auto: bool)
    where
        D: 'static,
    {
        if matches!(self.helper, Helper::None) {
            self.helper = Helper::of(&self.options, auto, &self.pool);
        }
        if self.current.is_some() {
            self.helper.start(&self.pool, &self.options);
        }
    }

    pub(crate) fn rotations(&self) -> &Arc<Rotations> {
        &self.rotations
    }

    fn first_segment(&mut self) -> PersistenceResult<()> {
        let Obtained { prepared, .. } = self.pool.obtain(&self.options, false)?;
        self.pool.enter(&prepared, None)?;
        self.current = Some(self.current_in(prepared, self.predecessor));
        // Not before: whoever opens a log and writes nothing has no thread and no file.
        self.helper.start(&self.pool, &self.options);
        Ok(())
    }

    fn rotate(&mut self) -> PersistenceResult<()> {
        if self.helper.works() {
            return self.rotate_to_ready();
        }
        let environment = Arc::clone(&self.options.environment);
        let began = environment.elapsed();
        let Obtained { prepared, .. } = self.pool.obtain(&self.options, self.is_streaming())?;
        if !planted::on("rotate_without_sync") {
            self.seal(SealReason::Rotation, Some((prepared.id, prepared.salt)))?;
        }
        self.cut_sealed();
        self.go_on_in(prepared, None)?;
        self.rotations.stalled(environment.elapsed().saturating_sub(began));
        Ok(())
    }

    /// Goes on in a segment that is ready, and leaves the seal of the old one to the helper.
    fn rotate_to_ready(&mut self) -> PersistenceResult<()> {
        let environment = Arc::clone(&self.options.environment);
        let began = environment.elapsed();
        let Obtained { prepared, waited } = self.pool.obtain(&self.options, self.is_streaming())?;
        if self.is_durable && !planted::on("switch_without_sync") {
            // Only where something was flushed and nobody waited for it.
            self.sync()?;
        }
        let retired = self.retire((prepared.id, prepared.salt));
        self.go_on_in(prepared, retired)?;
        if waited {
            self.rotations.stalled(environment.elapsed().saturating_sub(began));
        }
        Ok(())
    }

    /// The current segment with the seal that is still to be written.
    fn retire(&self, (successor_id, successor_salt): (u64, u64)) -> Option<Retired> {
        let current = self.current.as_ref().filter(|current| current.opening.is_none())?;
        let (next_entry_id, durable) = (self.flushed_entry_id + 1, self.durable_entry_id);
        let content = Control::Seal(Seal { reason: SealReason::Rotation, successor_id, successor_salt });
        let alignment = self.options.frame_alignment;
        let seal = control_commit(content, current.offset, current.seed, alignment, next_entry_id, durable);
        let end = current.offset + seal.len() as u64;
        let cut = self.is_left_behind(end).then_some(end);
        let (file, path, offset) = (Arc::clone(&current.file), current.path.clone(), current.offset);
        Some(Retired { id: current.id, file, path, seal, offset, effect: self.effect(), cut })
    }

    /// Whether so much of the current segment was asked for behind `end` that it is given back. Spare files keep
    /// their blocks; of others it is what an early rotation left.
    fn is_left_behind(&self, end: u64) -> bool {
        let reserved = self.current.as_ref().map_or(0, |current| current.reserved);
        let is_left = reserved != u64::MAX && reserved > end + PREPARE_CHUNK_BYTES as u64;
        is_left && self.options.recycle_capacity == 0
    }

    /// Gives back what the current segment, which is sealed, has not used.
    fn cut_sealed(&self) {
        let Some(current) = self.current.as_ref().filter(|current| current.opening.is_none()) else { return };
        if self.is_left_behind(current.offset) {
            if let Err(error) = current.file.set_size(current.offset) {
                tracing::debug!(%error, path = %current.path, "a sealed segment keeps its zeros");
            }
        }
    }

    /// Whether the current segment was filled with hardly a commit that somebody waited for.
    fn is_streaming(&self) -> bool {
        let stream_bytes = |current: &Current| STREAM_BYTES_PER_COMMIT.saturating_mul(current.commits.max(1));
        self.current.as_ref().is_some_and(|current| current.content_offset >= stream_bytes(current))
    }

    /// The current segment is full, and all of it durable: what follows is written to `next`.
    fn go_on_in(&mut self, next: Prepared, retired: Option<Retired>) -> PersistenceResult<()> {
        let Some(sealed) = &self.current else { return Ok(()) };
        let sealed_id = sealed.id;
        let opening = Opening {
            predecessor_salt: sealed.salt,
            predecessor_id: sealed.id,
            // The log goes on behind the contents: the opening says all that the seal says, and rests not on it.
            predecessor_end: sealed.content_offset,
            predecessor_last_entry_id: self.flushed_entry_id,
        };
        self.pool.enter(&next, retired)?;
        let next_id = next.id;
        self.current = Some(self.current_in(next, opening));
        tracing::debug!(sealed = sealed_id, current = next_id, "the log goes on in a new segment");
        self.rotations.rotated();
        if let Some(observer) = &self.observer {
            observed(|| observer.on_segment_rotate(sealed_id, next_id));
        }
        Ok(())
    }

    fn current_in(&self, prepared: Prepared, opening: Opening) -> Current {
        let Prepared { file, id, path, salt, bytes } = prepared;
        let offset = u64::from(self.options.frame_alignment);
        let grows = self.is_durable && self.options.preallocate_bytes > 0;
        Current {
            file,
            id,
            path,
            salt,
            seed: FrameSeed::new(salt),
            offset,
            content_offset: offset,
            filled_to: offset,
            is_attested: false,
            reserved: if grows && !planted::on("skip_reserve") { bytes.max(offset) } else { u64::MAX },
            opening: Some(opening),
            created: self.options.environment.elapsed(),
            commits: 0,
        }
    }

    fn observe(&self, effect: Effect) {
        let Some(observer) = &self.observer else { return };
        observed(|| {
            observer.on_flush(self.flushed_entry_id);
            if effect == Effect::Durable {
                observer.on_sync(self.durable_entry_id);
            }
        });
    }

    /// An empty batch behind everything flushed.
    pub(crate) fn new_batch(&self) -> Batch {
        let room = self.options.buffer_bytes.min(COMMIT_BUFFER_BYTES_INITIAL);
        Batch::new(self.options.frame_alignment, self.begun_entry_id + 1, room)
    }

    /// Path of the segment that is being written, for messages.
    pub(crate) fn current_path(&self) -> Option<&str> {
        self.current.as_ref().map(|current| current.path.as_str())
    }
}

impl<D: Directory + ?Sized> Drop for Appender<D> {
    fn drop(&mut self) {
        self.helper.stop(&self.pool);
        if !self.latch.is_tripped() {
            self.pool.discard_unused();
        }
        self.pool.release();
    }
}
