//! Writing a record log.

use super::{Found, read_log};
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::align_up;
use crate::formats::frame::{FrameSeed, Opening, Seal, SealReason};
use crate::formats::header::{FileKind, Header};
use crate::formats::names;
use crate::framing::{
    Batch, Control, FrameSink, Pending, Region, control_commit, header_commit, write_again,
};
use crate::limits::{self, FRAME_ALIGNMENT_DEFAULT, FRAME_ALIGNMENT_MIN, RESERVE_BYTES_MIN};
use crate::planted;
use crate::storage::{
    Commit, CommitBuffer, CommitFile, Directory, DirectoryLock, Effect, Environment, FileOptions,
    FlushPolicy, Latch, StableStorage, SystemEnvironment, open_commit_file, path, reserve_at_least,
};
use std::sync::Arc;
use std::time::Duration;

/// Options of a record log's writer.
#[derive(Clone, Debug)]
pub struct RecordLogOptions {
    /// When records are handed to the operating system without being asked to.
    pub flush_policy: FlushPolicy,
    /// Pending payload, in bytes, above which the same happens whatever the policy says.
    pub buffer_bytes: usize,
    /// How long opening waits for a killed predecessor's unfinished requests.
    pub lock_wait: Duration,
    /// Where the salt, the identity and time come from.
    pub environment: Arc<dyn Environment>,
}

impl Default for RecordLogOptions {
    fn default() -> Self {
        Self {
            flush_policy: FlushPolicy::default(),
            buffer_bytes: limits::BUFFER_BYTES_DEFAULT,
            lock_wait: Duration::from_millis(limits::LOCK_WAIT_MS_DEFAULT),
            environment: Arc::new(SystemEnvironment::new()),
        }
    }
}

/// Appends to a record log. Touches nothing until the first append; then an existing log is continued, and
/// a new one is begun where there is none.
///
/// The lock stands beside the log (`<path>.lock`) and on the log's own descriptor. After a failed write or
/// sync the writer is poisoned: drop it and open the log again. Dropping the writer flushes and seals, but
/// can only log an error; [`close`](Self::close) returns it.
pub struct RecordLogWriter<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
    path: String,
    options: RecordLogOptions,
    open: Option<Box<Open>>,
    closed: bool,
}

struct Open {
    sink: Sink,
    pending: Pending,
    _lock: Box<dyn DirectoryLock>,
}

/// The file behind the pending batch.
struct Sink {
    file: Box<dyn CommitFile>,
    latch: Latch,
    options: RecordLogOptions,
    alignment: u32,
    seed: FrameSeed,
    /// Where the next frame goes.
    offset: u64,
    /// Below this, in bytes, writing does not find the device full, where space can be asked for.
    reserved: u64,
    /// Goes with the first commit.
    opening: Option<Opening>,
    flushed: u64,
    durable: u64,
    is_durable: bool,
    next_commit_id: u64,
}

impl<D: Directory + ?Sized> RecordLogWriter<D> {
    /// A writer for the log at `path`. Touches nothing.
    pub fn new(directory: Arc<D>, path: impl Into<String>) -> Self {
        Self::with_options(directory, path, RecordLogOptions::default())
    }

    /// [`new`](Self::new) with a flush policy.
    pub fn with_flush_policy(directory: Arc<D>, path: impl Into<String>, flush_policy: FlushPolicy) -> Self {
        Self::with_options(directory, path, RecordLogOptions { flush_policy, ..RecordLogOptions::default() })
    }

    /// [`new`](Self::new) with options.
    pub fn with_options(directory: Arc<D>, path: impl Into<String>, options: RecordLogOptions) -> Self {
        Self { directory, path: path.into(), options, open: None, closed: false }
    }

    /// Opens the log now, instead of at the first append: takes the lock, reads where the log ends, and
    /// makes durable what it found (on a durable directory).
    pub fn open(&mut self) -> PersistenceResult<()> {
        self.opened().map(|_| ())
    }

    /// Appends a record.
    ///
    /// Effect: in memory, or with the operating system where the flush policy says so.
    /// Durable when: never by itself.
    /// On error: `PayloadTooLarge` and "out of space" append nothing and change nothing; a failed write poisons.
    pub fn append_bytes(&mut self, payload: &[u8]) -> PersistenceResult<()> {
        let Open { sink, pending, .. } = self.opened()?;
        pending.append(sink, |batch| batch.push(payload)).map(|_| ())
    }

    /// Appends several records atomically: all of them are read back, or none.
    pub fn append_batch_bytes<P: AsRef<[u8]>>(&mut self, payloads: &[P]) -> PersistenceResult<()> {
        let Open { sink, pending, .. } = self.opened()?;
        pending
            .append_batch(sink, payloads.len(), |batch, index| batch.push(payloads[index].as_ref()))
            .map(|_| ())
    }

    /// Appends a record, encoded with postcard.
    #[cfg(feature = "postcard")]
    pub fn append_postcard<T: serde::Serialize + ?Sized>(&mut self, value: &T) -> PersistenceResult<()> {
        let Open { sink, pending, .. } = self.opened()?;
        let push = |batch: &mut Batch| batch.push_with(|buffer| crate::codec::Postcard::write(value, buffer));
        pending.append(sink, push).map(|_| ())
    }

    /// Hands everything appended to the operating system: visible to readers, survives the death of the
    /// process, not a power cut.
    ///
    /// On error: "out of space" may be retried; anything else poisons.
    pub fn flush(&mut self) -> PersistenceResult<()> {
        match &mut self.open {
            Some(open) => open.pending.flush(&mut open.sink, Effect::Flushed),
            None => Ok(()),
        }
    }

    /// Makes everything appended durable.
    ///
    /// On error: `NotSupported` (no stable storage) changes nothing; "out of space" may be retried; anything else
    /// poisons.
    /// If it never returns: any prefix of the unflushed batches may be found, and at least everything that
    /// an earlier call made durable.
    pub fn flush_and_sync(&mut self) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.directory.stable()?;
        match &mut self.open {
            Some(open) => open.pending.flush(&mut open.sink, Effect::Durable),
            None => Ok(()),
        }
    }

    /// Flushes, seals the log and ends the writer. On a durable directory everything is durable on return.
    pub fn close(mut self) -> PersistenceResult<()> {
        self.close_in_place()
    }

    /// How many records the log has, those that are pending included; 0 before it is open.
    pub fn record_count(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.pending.next_entry_id(&open.sink) - 1)
    }

    fn close_in_place(&mut self) -> PersistenceResult<()> {
        self.closed = true;
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.pending.flush(&mut open.sink, Effect::Flushed)?;
        open.sink.seal()
    }

    fn opened(&mut self) -> PersistenceResult<&mut Open> {
        if self.closed {
            return Err(PersistenceError::invalid_state(
                "append",
                "the writer is closed; open the log again",
            ));
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => Box::new(open_log(self.directory.as_ref(), &self.path, &self.options)?),
        };
        Ok(self.open.insert(open))
    }
}

fn open_log<D: Directory + ?Sized>(
    directory: &D,
    log_path: &str,
    options: &RecordLogOptions,
) -> PersistenceResult<Open> {
    path::check(log_path)?;
    let parent = path::parent(log_path);
    if !parent.is_empty() {
        match directory.as_durable() {
            Some(durable) => durable.create_dir_all_durable(parent)?,
            None => directory.create_dir_all(parent)?,
        }
    }
    let lock_wait = Duration::from_millis(limits::LOCK_FILE_WAIT_MS);
    let lock = directory.lock(&names::record_log_lock_path(log_path), lock_wait)?;
    let found = if directory.try_exists(log_path)? {
        directory.await_unlocked(log_path, options.lock_wait)?;
        read_log(directory, log_path, &mut |_, _| Ok(()))?
    } else {
        None
    };
    let sink = match found {
        Some(found) => Sink::resume(directory, log_path, options, &found)?,
        None => Sink::begin(directory, log_path, options)?,
    };
    Ok(Open { sink, pending: Pending::default(), _lock: lock })
}

fn sync_name<D: Directory + ?Sized>(directory: &D, path: &str) -> PersistenceResult<()> {
    match directory.as_durable() {
        Some(durable) if !planted::on("skip_record_log_directory_sync") => durable.sync_parent_dir(path),
        _ => Ok(()),
    }
}

impl Sink {
    /// A new log, or one whose file was created and never begun.
    fn begin<D: Directory + ?Sized>(
        directory: &D,
        path: &str,
        options: &RecordLogOptions,
    ) -> PersistenceResult<Self> {
        let random = &options.environment;
        let identity = (u128::from(random.random()) << 64) | u128::from(random.random());
        let header = Header::new(FileKind::RecordLog, FRAME_ALIGNMENT_DEFAULT, identity, random.random());
        let exists = directory.try_exists(path)?;
        let how = if exists { FileOptions::existing() } else { FileOptions::create_new() };
        let file = open_commit_file(directory, path, &how.aligned(FRAME_ALIGNMENT_MIN).locked())?;
        let mut sink = Self::new(directory, file, options, &header);
        sink.opening = Some(Opening::default());
        let effect = if sink.is_durable { Effect::Durable } else { Effect::Flushed };
        let buffer = header_commit(&header);
        let bytes = buffer.len();
        let (result, _) = sink.file.commit(Commit { id: 0, offset: 0, buffer, range: 0..bytes, effect });
        result?;
        sync_name(directory, path)?;
        Ok(sink)
    }

    fn resume<D: Directory + ?Sized>(
        directory: &D,
        path: &str,
        options: &RecordLogOptions,
        found: &Found,
    ) -> PersistenceResult<Self> {
        if let Some(torn) = &found.torn {
            tracing::warn!(path = %torn.path, offset = torn.offset, evidence = %torn.evidence,
                "the record log ends in a torn tail, which is cut");
        }
        let is_durable = directory.as_durable().is_some();
        // What was torn too, as it is: the blocks behind it are written next, and must be what they seem. No frame
        // is begun before the header is durable; without any, it may be that its sync is what failed.
        let is_begun = found.end.frames > 0 || planted::on("header_is_never_written_again");
        let unproven = found.end.unproven_offset.unwrap_or(found.end.offset);
        let from = if is_begun { unproven } else { 0 };
        let to = found.end.offset.max(found.file_bytes - found.file_bytes % u64::from(FRAME_ALIGNMENT_MIN));
        if is_durable && from < to {
            let region = Region { path: path.to_owned(), from, to };
            write_again(directory, &region, FRAME_ALIGNMENT_MIN)?;
        }
        // Whoever made the file may have died before its name was durable.
        sync_name(directory, path)?;
        let how = FileOptions::existing().aligned(FRAME_ALIGNMENT_MIN).locked();
        let file = open_commit_file(directory, path, &how)?;
        let mut sink = Self::new(directory, file, options, &found.header);
        sink.flushed = found.last_record;
        sink.durable = if is_durable { found.last_record } else { 0 };
        // Behind everything that is there: what was torn stays as it is, and nothing stale can follow.
        let behind = align_up(found.file_bytes, u64::from(found.header.frame_alignment));
        sink.offset = behind.max(found.end.offset);
        if planted::on("record_log_resumes_at_tear") {
            sink.offset = found.end.offset;
        }
        sink.opening = Some(Opening {
            predecessor_salt: found.header.salt,
            predecessor_id: 0,
            predecessor_end: match planted::on("record_log_rests_on_seal") {
                true => found.end.offset,
                false => found.end.content_offset,
            },
            predecessor_last_entry_id: found.last_record,
        });
        Ok(sink)
    }

    fn new<D: Directory + ?Sized>(
        directory: &D,
        file: Box<dyn CommitFile>,
        options: &RecordLogOptions,
        header: &Header,
    ) -> Self {
        Self {
            file,
            latch: Latch::new(),
            options: options.clone(),
            alignment: header.frame_alignment,
            seed: FrameSeed::new(header.salt),
            offset: header.first_frame_offset(),
            reserved: 0,
            opening: None,
            flushed: 0,
            durable: 0,
            is_durable: directory.as_durable().is_some(),
            next_commit_id: 1,
        }
    }

    /// Writes a seal behind everything flushed; makes both durable where that can be had.
    fn seal(&mut self) -> PersistenceResult<()> {
        self.check()?;
        if self.is_durable {
            self.sync()?;
        }
        if self.opening.is_some() {
            return Ok(());
        }
        let seal = Control::Seal(Seal { reason: SealReason::Close, successor_id: 0, successor_salt: 0 });
        let buffer =
            control_commit(seal, self.offset, self.seed, self.alignment, self.flushed + 1, self.durable);
        let effect = if self.is_durable { Effect::Durable } else { Effect::Flushed };
        let bytes = buffer.len();
        self.commit(buffer, 0..bytes, effect).0?;
        if self.reserved > self.offset {
            // Only space is given back; the log ends with its seal.
            if let Err(error) = self.file.set_size(self.offset) {
                tracing::debug!(%error, "a sealed record log keeps the space that it asked for");
            }
        }
        Ok(())
    }

    fn commit(
        &mut self,
        buffer: CommitBuffer,
        range: std::ops::Range<usize>,
        effect: Effect,
    ) -> (PersistenceResult<()>, Option<CommitBuffer>) {
        let bytes = range.len() as u64;
        let commit = Commit { id: self.next_commit_id, offset: self.offset, buffer, range, effect };
        self.next_commit_id += 1;
        let (result, buffer) = self.file.commit(commit);
        match result {
            Ok(()) => {
                self.offset += bytes;
                (Ok(()), buffer)
            }
            Err(error) => (Err(self.latch.trip(error)), buffer),
        }
    }
}

impl FrameSink for Sink {
    fn check(&self) -> PersistenceResult<()> {
        self.latch.check(self.durable)
    }

    /// Asks for space for a frame of `frame_bytes` and the seal behind it, so that running out of space is met before
    /// anything of the frame is written.
    fn make_room(&mut self, frame_bytes: u64) -> PersistenceResult<()> {
        // An opening before the frame, a seal behind it.
        let needed = self.offset + frame_bytes + 2 * u64::from(self.alignment);
        if needed <= self.reserved || planted::on("record_log_asks_for_nothing") {
            return Ok(());
        }
        let wanted = needed.max(self.offset.saturating_add(RESERVE_BYTES_MIN));
        self.reserved = reserve_at_least(self.file.as_ref(), needed, wanted)?;
        Ok(())
    }

    fn write(&mut self, batch: Batch, effect: Effect) -> (PersistenceResult<()>, Option<CommitBuffer>) {
        let last = batch.next_entry_id() - 1;
        let opening = self.opening;
        let (buffer, range) = batch.finish(self.offset, self.seed, self.durable, opening.as_ref());
        let (result, buffer) = self.commit(buffer, range, effect);
        if result.is_ok() {
            self.opening = None;
            self.flushed = last;
            if effect == Effect::Durable {
                self.durable = last;
            }
        }
        (result, buffer)
    }

    fn sync(&mut self) -> PersistenceResult<()> {
        if self.durable == self.flushed {
            return Ok(());
        }
        self.commit(CommitBuffer::new(), 0..0, Effect::Durable).0?;
        self.durable = self.flushed;
        Ok(())
    }

    fn next_entry_id(&self) -> u64 {
        self.flushed + 1
    }

    fn frame_alignment(&self) -> u32 {
        self.alignment
    }

    fn flush_settings(&self) -> (FlushPolicy, usize) {
        (self.options.flush_policy, self.options.buffer_bytes)
    }

    fn elapsed(&self) -> Duration {
        self.options.environment.elapsed()
    }
}

impl<D: Directory + ?Sized> Drop for RecordLogWriter<D> {
    fn drop(&mut self) {
        let Some(latch) = self.open.as_ref().map(|open| &open.sink.latch) else { return };
        let failed = latch.cause().cloned();
        let is_elsewhere = failed.is_none() && latch.is_tripped();
        if is_elsewhere || (failed.is_some() && planted::on("poisoned_records_are_dropped_silently")) {
            return;
        }
        if let Err(error) = failed.map_or_else(|| self.close_in_place(), |cause| Err((*cause).clone())) {
            tracing::error!(%error, path = %self.path, "a dropped record log could not be sealed");
        }
    }
}

impl<D: Directory + ?Sized> std::fmt::Debug for RecordLogWriter<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordLogWriter")
            .field("path", &self.path)
            .field("records", &self.record_count())
            .finish_non_exhaustive()
    }
}
