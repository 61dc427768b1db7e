//! Writes batches into segments: the one place that orders a segment's creation, its first commit, its
//! seal and the next segment's creation.
//!
//! One owner at a time drives an appender; who that is, the writers above decide. Order of a rotation:
//! the new segment is created, zero-filled, given its header and its durable name; then the old one is
//! synced and sealed, the seal naming the new one; only then does the first commit of the new segment
//! begin. So a seal never names a segment that could be missing, and nothing acknowledged in the new
//! segment rests on anything unsynced in the old one.

use super::catalogue;
use super::open::{
    await_predecessor, check_exists, check_is_new, find_end, opening_after, prepare_folder, remove_unstarted,
};
use super::options::{WalObserver, WalOptions};
use super::queue::Room;
use super::walk::{self, LogEnd};
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::{FrameSeed, Opening, Seal, SealReason};
use crate::formats::header::{FileKind, Header};
use crate::formats::names;
use crate::framing::{Batch, Control, FrameSink, control_commit, header_commit, write_again};
use crate::limits::{COMMIT_BUFFER_BYTES_INITIAL, FRAME_ALIGNMENT_MIN, LOCK_FILE_WAIT_MS, ZERO_FILL_BYTES};
use crate::planted;
use crate::storage::{
    Commit, CommitBuffer, CommitFile, CommitStrategy, Directory, DirectoryLock, Effect, FileOptions,
    FlushPolicy, Latch, Submitted, Wait, open_commit_file, sweep_temporaries,
};
use std::sync::Arc;
use std::time::Duration;

#[cfg(durability_planted)]
#[path = "appender_planted.rs"]
mod planted_resumption;

/// How a log is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// There must be no segment yet.
    New,
    /// Continue the log, or begin one.
    NewOrExisting,
    /// There must be a log. A torn tail is accepted if asked for.
    Existing {
        /// Whether a torn tail is accepted.
        accept_torn: bool,
    },
}

/// The writing end of a log.
pub(crate) struct Appender<D: ?Sized> {
    directory: Arc<D>,
    options: WalOptions,
    observer: Option<Arc<dyn WalObserver>>,
    latch: Latch,
    identity: u128,
    current: Option<Current>,
    /// What the next segment's opening frame says when there is no current segment.
    predecessor: Opening,
    next_segment_id: u64,
    /// The last entry that was given to a file.
    begun_entry_id: u64,
    flushed_entry_id: u64,
    durable_entry_id: u64,
    is_durable: bool,
    next_commit_id: u64,
    _lock: Box<dyn DirectoryLock>,
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
    /// Goes with the first commit.
    opening: Option<Opening>,
    created: Duration,
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
        remove_unstarted(directory.as_ref(), &chain)?;
        let identity = match chain.identity {
            Some(identity) => identity,
            None => {
                let random = &options.environment;
                (u128::from(random.random()) << 64) | u128::from(random.random())
            }
        };
        let predecessor = opening_after(&end);
        let appender = Self {
            directory,
            observer: None,
            latch: Latch::new(),
            identity,
            current: None,
            predecessor,
            next_segment_id: chain.highest_id.saturating_add(1),
            begun_entry_id: end.last_entry_id,
            flushed_entry_id: end.last_entry_id,
            durable_entry_id: if is_durable { end.last_entry_id } else { 0 },
            is_durable,
            next_commit_id: 1,
            options,
            _lock: lock,
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

    pub(crate) fn strategy(&self) -> Option<CommitStrategy> {
        self.current.as_ref().map(|current| current.file.strategy())
    }

    /// `NotSupported` where there is no stable storage; poisons nothing.
    pub(crate) fn check_durable(&self, operation: &'static str) -> PersistenceResult<()> {
        if self.is_durable {
            return Ok(());
        }
        Err(PersistenceError::not_supported(operation, self.directory.backend_name()))
    }

    /// Writes a seal behind everything flushed, and makes both durable where that can be had. Writes
    /// nothing when the current segment was never started.
    pub(crate) fn seal(
        &mut self,
        reason: SealReason,
        successor: Option<(u64, u64)>,
    ) -> PersistenceResult<()> {
        self.check()?;
        debug_assert_eq!(self.begun_entry_id, self.flushed_entry_id, "nothing is in flight");
        if self.is_durable && !planted::on("seal_attests_flushed") {
            // So that the seal can attest the very last entry.
            self.sync()?;
        }
        let (next_entry_id, durable) = (self.flushed_entry_id + 1, self.durable_entry_id);
        let durable = if planted::on("drop_seal_watermark") { 0 } else { durable };
        let durable = if planted::on("seal_attests_flushed") { self.flushed_entry_id } else { durable };
        let Some(current) = self.current.as_ref().filter(|current| current.opening.is_none()) else {
            return Ok(());
        };
        let (successor_id, successor_salt) = successor.unwrap_or((0, 0));
        let seal = Control::Seal(Seal { reason, successor_id, successor_salt });
        let alignment = self.options.frame_alignment;
        let buffer = control_commit(seal, current.offset, current.seed, alignment, next_entry_id, durable);
        let effect = if self.is_durable { Effect::Durable } else { Effect::Flushed };
        self.commit_now(buffer, effect)
    }

    /// Seals the log for good and cuts what was preallocated and not used.
    pub(crate) fn close(&mut self) -> PersistenceResult<()> {
        self.seal(SealReason::Close, None)?;
        let Some(current) = self.current.take() else { return Ok(()) };
        if current.opening.is_none() && current.file.size()? > current.offset {
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
        Ok(())
    }

    /// Gives a batch to the current segment's file, whose completion somebody else collects and tells with
    /// [`progress`](Self::progress). Room was made before; a refusal poisons.
    pub(crate) fn begin(&mut self, batch: Batch, effect: Effect, commit_id: u64) -> PersistenceResult<()> {
        self.check()?;
        let Some(current) = &mut self.current else {
            return Err(PersistenceError::invalid_state("write", "no room was made"));
        };
        debug_assert_eq!(batch.first_entry_id(), self.begun_entry_id + 1);
        let last_entry_id = batch.next_entry_id() - 1;
        let opening = current.opening.as_ref();
        let early = planted::on("frame_attests_flushed");
        let durable = if early { self.flushed_entry_id } else { self.durable_entry_id };
        let (buffer, range) = batch.finish(current.offset, current.seed, durable, opening);
        let bytes = range.len() as u64;
        let commit = Commit { id: commit_id, offset: current.offset, buffer, range, effect };
        if let Submitted::Refused { error, .. } = current.file.submit(commit) {
            return Err(self.latch.trip(error));
        }
        current.offset += bytes;
        current.content_offset = current.offset;
        current.opening = None;
        self.begun_entry_id = last_entry_id;
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
        match current.file.submit(commit) {
            Submitted::Accepted => Ok(()),
            Submitted::Refused { error, .. } => Err(self.latch.trip(error)),
        }
    }

    /// How far the commits that were begun have come.
    pub(crate) fn progress(&mut self, flushed_entry_id: u64, durable_entry_id: u64) {
        debug_assert!(self.flushed_entry_id <= flushed_entry_id && flushed_entry_id <= self.begun_entry_id);
        self.flushed_entry_id = flushed_entry_id;
        self.durable_entry_id = durable_entry_id;
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
            old_at: self.options.segment_age_max.filter(|_| !is_fresh).map(|age| current.created + age),
        }
    }

    /// Whether a frame of `frame_bytes` needs a segment of its own, or the first one.
    pub(crate) fn needs_segment(&self, frame_bytes: u64) -> bool {
        let Room { bytes_left, old_at } = self.room();
        let is_too_large = bytes_left.is_none_or(|bytes_left| frame_bytes > bytes_left);
        is_too_large || old_at.is_some_and(|old_at| self.options.environment.elapsed() >= old_at)
    }

    fn rotate(&mut self) -> PersistenceResult<()> {
        let next = self.create_segment(Opening::default())?;
        // The log goes on behind the contents: the opening says all that the seal says, and rests not on it.
        let predecessor_end = self.current.as_ref().map_or(0, |current| current.content_offset);
        if !planted::on("rotate_without_sync") {
            self.seal(SealReason::Rotation, Some((next.id, next.salt)))?;
        }
        let sealed = self.current.replace(next);
        let (Some(sealed), Some(current)) = (sealed, &mut self.current) else { return Ok(()) };
        current.opening = Some(Opening {
            predecessor_salt: sealed.salt,
            predecessor_id: sealed.id,
            predecessor_end,
            predecessor_last_entry_id: self.flushed_entry_id,
        });
        tracing::debug!(sealed = sealed.id, current = current.id, "the log goes on in a new segment");
        if let Some(observer) = &self.observer {
            observer.on_segment_rotate(sealed.id, current.id);
        }
        Ok(())
    }

    /// A segment that is ready for its first commit: named, zero-filled, locked, with a durable header.
    fn create_segment(&mut self, opening: Opening) -> PersistenceResult<Current> {
        let id = self.next_segment_id;
        let used = self.current.as_ref().map(|current| current.salt);
        let used = used.filter(|_| planted::on("reuse_salt"));
        let salt = used.unwrap_or_else(|| self.options.environment.random());
        let path = names::segment_path(id);
        // Whatever becomes of the file, its id is used up.
        self.next_segment_id = self.next_segment_id.saturating_add(1);
        let file = match self.recycle(&path)? {
            Some(file) => file,
            None => {
                let options = FileOptions::create_new()
                    .aligned(self.options.frame_alignment)
                    .locked()
                    .zero_filled(self.options.zero_filled_bytes());
                open_commit_file(self.directory.as_ref(), &path, &options).map_err(|error| {
                    if planted::on("full_disk_is_fatal") { self.latch.trip(error) } else { error }
                })?
            }
        };
        let alignment = self.options.frame_alignment;
        let header = Header { file_id: id, ..Header::new(FileKind::Segment, alignment, self.identity, salt) };
        let buffer = header_commit(&header);
        let range = 0..buffer.len();
        let effect = if self.is_durable { Effect::Durable } else { Effect::Flushed };
        let (result, _) = file.commit(Commit { id: 0, offset: 0, buffer, range, effect });
        if let Err(error) = result {
            // Nothing was promised for this file yet. What cannot be removed is recognised as never started.
            drop(file);
            let _ = self.directory.delete(&path);
            return Err(if error.is_out_of_space() { error } else { self.latch.trip(error) });
        }
        if let Some(durable) =
            self.directory.as_durable().filter(|_| !planted::on("skip_segment_directory_sync"))
        {
            durable.sync_parent_dir(&path).map_err(|error| self.latch.trip(error))?;
        }
        let created = self.options.environment.elapsed();
        let (seed, offset) = (FrameSeed::new(salt), header.first_frame_offset());
        Ok(Current {
            file: Arc::from(file),
            id,
            path,
            salt,
            seed,
            offset,
            content_offset: offset,
            opening: Some(opening),
            created,
        })
    }

    /// A spare file, zeroed and renamed to `path`; `None` when there is none that can be used.
    ///
    /// It is zeroed whole before it gets its new name: an unwritten sector of a segment always reads as
    /// zeros, so that a torn tail can be recognised.
    fn recycle(&mut self, path: &str) -> PersistenceResult<Option<Box<dyn CommitFile>>> {
        if self.options.recycle_capacity == 0 {
            return Ok(None);
        }
        let (_, spares) = catalogue::list_names(self.directory.as_ref())?;
        let Some(number) = spares.first() else { return Ok(None) };
        let spare = names::spare_path(*number);
        match self.rename_spare(&spare, path) {
            Ok(file) => Ok(Some(file)),
            Err(error) => {
                // A spare file is part of no log: without it a new file is made.
                tracing::warn!(%error, path = %spare, "a spare segment cannot be used");
                let _ = self.directory.delete(&spare);
                Ok(None)
            }
        }
    }

    fn rename_spare(&self, spare: &str, path: &str) -> PersistenceResult<Box<dyn CommitFile>> {
        let options = FileOptions::existing().aligned(self.options.frame_alignment).locked();
        // It may have seen a write-back fail: what the page cache holds of it is not believed (`write_again`).
        let zeroed = open_commit_file(self.directory.as_ref(), spare, &options.clone().uncached())?;
        zero_whole(zeroed.as_ref(), self.is_durable)?;
        drop(zeroed);
        let file = open_commit_file(self.directory.as_ref(), spare, &options)?;
        match self.directory.as_durable() {
            Some(durable) => durable.atomic_rename_durable(spare, path)?,
            None => self.directory.atomic_rename(spare, path)?,
        }
        Ok(file)
    }

    fn observe(&self, effect: Effect) {
        if let Some(observer) = &self.observer {
            observer.on_flush(self.flushed_entry_id);
            if effect == Effect::Durable {
                observer.on_sync(self.durable_entry_id);
            }
        }
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

impl<D: Directory + ?Sized> FrameSink for Appender<D> {
    fn check(&self) -> PersistenceResult<()> {
        self.latch.check(self.durable_entry_id)
    }

    fn make_room(&mut self, frame_bytes: u64) -> PersistenceResult<()> {
        self.check()?;
        if !self.needs_segment(frame_bytes) {
            return Ok(());
        }
        if self.current.is_some() {
            return self.rotate();
        }
        let next = self.create_segment(self.predecessor)?;
        self.current = Some(next);
        Ok(())
    }

    fn write(&mut self, batch: Batch, effect: Effect) -> (PersistenceResult<()>, Option<CommitBuffer>) {
        if let Err(error) = self.check() {
            return (Err(error), None);
        }
        let commit_id = self.next_commit_id;
        self.next_commit_id += 1;
        let last_entry_id = batch.next_entry_id() - 1;
        if let Err(error) = self.begin(batch, effect, commit_id) {
            return (Err(error), None);
        }
        let Some(file) = self.file() else { return (Ok(()), None) };
        let (mut result, buffer) = match file.reap(Wait::Forever) {
            Ok(Some(completion)) => (completion.result, Some(completion.buffer)),
            Ok(None) => (Err(PersistenceError::invalid_state("commit", "its completion is missing")), None),
            Err(error) => (Err(error), None),
        };
        if let (true, Err(_), Some(durable)) =
            (planted::on("retry_failed_sync"), &result, self.directory.as_durable())
        {
            let path = self.current.as_ref().map(|current| current.path.clone()).unwrap_or_default();
            result = durable.sync_file(&path);
        }
        if let Err(error) = result {
            return (Err(self.latch.trip(error)), buffer);
        }
        self.flushed_entry_id = last_entry_id;
        if effect == Effect::Durable {
            self.durable_entry_id = last_entry_id;
        }
        self.observe(effect);
        (Ok(()), buffer)
    }

    fn sync(&mut self) -> PersistenceResult<()> {
        self.check()?;
        if self.durable_entry_id == self.flushed_entry_id {
            return Ok(());
        }
        self.check_durable("sync")?;
        self.commit_now(CommitBuffer::new(), Effect::Durable)?;
        self.durable_entry_id = self.flushed_entry_id;
        self.observe(Effect::Durable);
        Ok(())
    }

    fn next_entry_id(&self) -> u64 {
        self.begun_entry_id + 1
    }

    fn frame_alignment(&self) -> u32 {
        self.options.frame_alignment
    }

    fn flush_settings(&self) -> (FlushPolicy, usize) {
        (self.options.flush_policy, self.options.buffer_bytes)
    }

    fn elapsed(&self) -> Duration {
        self.options.environment.elapsed()
    }
}

fn zero_whole(file: &dyn CommitFile, durable: bool) -> PersistenceResult<()> {
    let size = if planted::on("skip_zeroing_spares") { 0 } else { file.size()? };
    let mut buffer = CommitBuffer::with_capacity(ZERO_FILL_BYTES);
    buffer.resize(ZERO_FILL_BYTES, 0);
    let mut offset = 0;
    while offset < size {
        let bytes = (size - offset).min(ZERO_FILL_BYTES as u64) as usize;
        let (result, back) =
            file.commit(Commit { id: 0, offset, buffer, range: 0..bytes, effect: Effect::Flushed });
        result?;
        buffer = back.unwrap_or_default();
        offset += bytes as u64;
    }
    if durable {
        file.commit(Commit {
            id: 0,
            offset: 0,
            buffer: CommitBuffer::new(),
            range: 0..0,
            effect: Effect::Durable,
        })
        .0?;
    }
    Ok(())
}
