//! The single-owner writer.

use super::appender::Appender;
use super::open::OpenMode;
use super::options::{WalObserver, WalOptions};
use super::walk::LogEnd;
use crate::codec::Codec;
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::{Batch, Pending};
use crate::storage::{ActiveStrategy, Directory, Effect, FlushPolicy, StableStorage};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// A write-ahead log with one owner.
///
/// `E` is the entry type, `D` the directory; `WalWriter::<Op>::open(dir)` with an `Arc<dyn Directory>` is
/// the short way. Raw bytes go through [`append_bytes`](Self::append_bytes).
///
/// An entry that was appended is in memory; [`flush`](Self::flush) hands it to the operating system;
/// [`flush_and_sync`](Self::flush_and_sync) makes it durable. Flush policies never make anything durable.
///
/// After a failed write or sync the writer is poisoned: every call answers
/// [`Poisoned`](PersistenceError::Poisoned) with the durable watermark, and the way on is to drop it and to
/// open the log again. "Out of space" while a segment is being created is not such a failure: nothing was
/// written, the entries stay pending, and the call can be repeated.
///
/// Dropping the writer flushes and seals as [`close`](Self::close) does, but can only log an error.
///
/// Memory: one batch buffer (`buffer_bytes`, or the largest atomic batch), as many for flushes in flight as
/// [`FLUSHES_IN_FLIGHT_MAX`](crate::limits::FLUSHES_IN_FLIGHT_MAX) says where the backend keeps several, and what that
/// keeps. Payload in flight is bounded by [`WalOptions::in_flight_bytes_max`], plus one batch.
///
/// A memory log has no stable storage, which the compiler knows:
///
/// ```compile_fail,E0277
/// use durability::{MemoryDirectory, walog::WalWriter};
/// let mut wal = WalWriter::<(), MemoryDirectory>::open(MemoryDirectory::arc())?;
/// wal.append_bytes(b"x")?;
/// wal.flush_and_sync()?;
/// # Ok::<(), durability::PersistenceError>(())
/// ```
///
/// ```
/// use durability::{MemoryDirectory, walog::WalWriter};
/// let mut wal = WalWriter::<(), MemoryDirectory>::open(MemoryDirectory::arc())?;
/// assert_eq!(wal.append_bytes(b"x")?, 1);
/// wal.flush()?;
/// # Ok::<(), durability::PersistenceError>(())
/// ```
pub struct WalWriter<E = (), D: Directory + ?Sized = dyn Directory> {
    stage: Stage<D>,
    closed: bool,
    _entry: PhantomData<fn(&E)>,
}

/// Before the first append of a writer made with `new`, nothing is touched.
enum Stage<D: Directory + ?Sized> {
    Untouched { directory: Arc<D>, options: Box<WalOptions>, observer: Option<Arc<dyn WalObserver>> },
    Open(Box<Open<D>>),
    Closed,
}

struct Open<D: Directory + ?Sized> {
    appender: Appender<D>,
    pending: Pending,
    found: LogEnd,
}

impl<E, D: Directory + ?Sized> WalWriter<E, D> {
    /// A writer for a new log. Touches nothing until the first append, which fails when segments exist.
    pub fn new(directory: Arc<D>) -> Self {
        Self::new_with(directory, WalOptions::default())
    }

    /// [`new`](Self::new) with options.
    pub fn new_with(directory: Arc<D>, options: WalOptions) -> Self {
        let stage = Stage::Untouched { directory, options: Box::new(options), observer: None };
        Self { stage, closed: false, _entry: PhantomData }
    }

    /// Opens the log: continues the one that is there, or begins a new one.
    ///
    /// Effect: takes the writer's lock (`LockFailed` when another writer has it) and waits until nothing of
    /// a killed predecessor is landing any more. A torn tail is cut, which
    /// [`recovered`](Self::recovered) reports. No segment is created before the first commit.
    /// Durable when: on a durable directory, everything that was found is durable on return.
    /// On error: no byte of the log was changed, except that recovered bytes may have been written to their
    /// own place again.
    /// If it never returns: the same.
    pub fn open(directory: Arc<D>) -> PersistenceResult<Self> {
        Self::open_with(directory, WalOptions::default())
    }

    /// [`open`](Self::open) with options.
    pub fn open_with(directory: Arc<D>, options: WalOptions) -> PersistenceResult<Self> {
        Self::open_as(directory, options, OpenMode::NewOrExisting, None)
    }

    /// Like [`open`](Self::open), but there must be a log (`NotFound` otherwise), and it must end cleanly
    /// (`TornTail` otherwise).
    pub fn resume(directory: Arc<D>) -> PersistenceResult<Self> {
        Self::resume_with(directory, WalOptions::default())
    }

    /// [`resume`](Self::resume) with options.
    pub fn resume_with(directory: Arc<D>, options: WalOptions) -> PersistenceResult<Self> {
        Self::open_as(directory, options, OpenMode::Existing { accept_torn: false }, None)
    }

    /// Like [`open`](Self::open), but there must be a log (`NotFound` otherwise).
    pub fn resume_after_crash(directory: Arc<D>) -> PersistenceResult<Self> {
        Self::resume_after_crash_with(directory, WalOptions::default())
    }

    /// [`resume_after_crash`](Self::resume_after_crash) with options.
    pub fn resume_after_crash_with(directory: Arc<D>, options: WalOptions) -> PersistenceResult<Self> {
        Self::open_as(directory, options, OpenMode::Existing { accept_torn: true }, None)
    }

    pub(crate) fn open_known(
        directory: Arc<D>,
        options: WalOptions,
        known: &LogEnd,
    ) -> PersistenceResult<Self> {
        Self::open_as(directory, options, OpenMode::NewOrExisting, Some(known))
    }

    /// A new log, where there was none; fails when there is one by now.
    pub(crate) fn open_new(directory: Arc<D>, options: WalOptions) -> PersistenceResult<Self> {
        Self::open_as(directory, options, OpenMode::New, None)
    }

    fn open_as(
        directory: Arc<D>,
        options: WalOptions,
        how: OpenMode,
        known: Option<&LogEnd>,
    ) -> PersistenceResult<Self> {
        let (appender, found) = Appender::open(directory, options, how, known)?;
        let stage = Stage::Open(Box::new(Open { appender, pending: Pending::default(), found }));
        Ok(Self { stage, closed: false, _entry: PhantomData })
    }

    /// Appends bytes as one entry; returns its id.
    ///
    /// Effect: the entry is in memory, or on its way to the operating system where the flush policy says so.
    /// Durable when: never by itself.
    /// On error: `PayloadTooLarge` and "out of space" append nothing and change nothing; a failed write, also one
    /// that an earlier append began, poisons.
    pub fn append_bytes(&mut self, payload: &[u8]) -> PersistenceResult<u64> {
        self.open_stage()?.append_with(|batch| batch.push(payload))
    }

    /// Appends an entry with a codec; returns its id. See [`append_bytes`](Self::append_bytes).
    pub fn append_encoded<C: Codec<E>>(&mut self, codec: &C, entry: &E) -> PersistenceResult<u64> {
        self.open_stage()?.append_with(|batch| batch.push_with(|buffer| codec.encode(entry, buffer)))
    }

    /// Appends several entries as one atomic batch: recovery returns all of them or none. Returns their ids;
    /// an empty batch appends nothing.
    pub fn append_batch_bytes<P: AsRef<[u8]>>(&mut self, payloads: &[P]) -> PersistenceResult<Vec<u64>> {
        self.open_stage()?
            .append_batch_with(payloads.len(), |batch, index| batch.push(payloads[index].as_ref()))
    }

    /// [`append_batch_bytes`](Self::append_batch_bytes) with a codec.
    pub fn append_batch_encoded<C: Codec<E>>(
        &mut self,
        codec: &C,
        entries: &[E],
    ) -> PersistenceResult<Vec<u64>> {
        self.open_stage()?.append_batch_with(entries.len(), |batch, index| {
            batch.push_with(|buffer| codec.encode(&entries[index], buffer))
        })
    }

    /// Hands everything appended to the operating system.
    ///
    /// Effect: visible to readers; survives the death of the process, not a power cut.
    /// On error: "out of space", and whatever fails while a segment is made, may be retried; anything else poisons.
    /// If it never returns: any prefix of the unflushed batches may be found.
    pub fn flush(&mut self) -> PersistenceResult<()> {
        match &mut self.stage {
            Stage::Untouched { .. } => Ok(()),
            Stage::Open(open) => open.flush(Effect::Flushed),
            Stage::Closed => Err(closed("flush")),
        }
    }

    /// Flushes, seals the log and ends the writer. The final error is returned here.
    ///
    /// Durable when: on a durable directory, everything appended is durable on return, and the seal attests
    /// it.
    pub fn close(mut self) -> PersistenceResult<()> {
        self.close_in_place()
    }

    fn close_in_place(&mut self) -> PersistenceResult<()> {
        self.closed = true;
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Open(mut open) => {
                open.flush(Effect::Flushed)?;
                open.appender.close()
            }
            _ => Ok(()),
        }
    }

    /// Id of the last appended entry; 0 when there is none.
    pub fn last_entry_id(&self) -> u64 {
        self.next_entry_id() - 1
    }

    /// Id that the next entry will get.
    pub fn next_entry_id(&self) -> u64 {
        match &self.stage {
            Stage::Untouched { options, .. } => options.id_floor + 1,
            Stage::Open(open) => open.next_entry_id(),
            Stage::Closed => 1,
        }
    }

    /// Everything up to here is durable; 0 where nothing is, or where there is no stable storage.
    pub fn durable_entry_id(&self) -> u64 {
        self.inner().map_or(0, |open| open.appender.durable_entry_id())
    }

    /// Everything up to here was handed to the operating system.
    pub fn flushed_entry_id(&self) -> u64 {
        self.inner().map_or(0, |open| open.appender.flushed_entry_id())
    }

    /// Id of the segment that is being written; 0 before the first commit.
    pub fn current_segment_id(&self) -> u64 {
        self.inner().map_or(0, |open| open.appender.current_segment().0)
    }

    /// Bytes written to that segment.
    pub fn current_segment_bytes(&self) -> u64 {
        self.inner().map_or(0, |open| open.appender.current_segment().1)
    }

    /// How commits into the current segment are made durable, and why in that way; `None` before the first one. The next
    /// segment may take another way.
    pub fn active_strategy(&self) -> Option<ActiveStrategy> {
        self.inner().and_then(|open| open.appender.strategy())
    }

    /// What was found when the log was opened; `None` for a writer that has touched nothing yet.
    pub fn recovered(&self) -> Option<&LogEnd> {
        self.inner().map(|open| &open.found)
    }

    /// The log's identity; `None` for a writer that has touched nothing yet.
    pub fn identity(&self) -> Option<u128> {
        self.inner().map(|open| open.appender.identity())
    }

    /// The directory.
    pub fn directory(&self) -> Option<&Arc<D>> {
        match &self.stage {
            Stage::Untouched { directory, .. } => Some(directory),
            Stage::Open(open) => Some(open.appender.directory()),
            Stage::Closed => None,
        }
    }

    /// When entries are flushed without being asked to.
    pub fn set_flush_policy(&mut self, policy: FlushPolicy) {
        self.change_options(|options| options.flush_policy = policy);
    }

    /// See [`WalOptions::segment_bytes_max`]; 0 is taken as 1.
    pub fn set_segment_size_limit_bytes(&mut self, bytes: u64) {
        self.change_options(|options| options.segment_bytes_max = bytes.max(1));
    }

    /// See [`WalOptions::segment_age_max`].
    pub fn set_segment_max_age(&mut self, age: Option<Duration>) {
        self.change_options(|options| options.segment_age_max = age);
    }

    /// See [`WalOptions::preallocate_bytes`].
    pub fn set_preallocate_bytes(&mut self, bytes: u64) {
        self.change_options(|options| options.preallocate_bytes = bytes);
    }

    /// See [`WalOptions::recycle_capacity`].
    pub fn set_recycle_capacity(&mut self, segments: usize) {
        self.change_options(|options| options.recycle_capacity = segments);
    }

    /// Who is told what the writer does.
    pub fn set_observer(&mut self, observer: Arc<dyn WalObserver>) {
        match &mut self.stage {
            Stage::Untouched { observer: slot, .. } => *slot = Some(observer),
            Stage::Open(open) => open.appender.set_observer(observer),
            Stage::Closed => {}
        }
    }

    pub(crate) fn observer(&self) -> Option<Arc<dyn WalObserver>> {
        match &self.stage {
            Stage::Untouched { observer, .. } => observer.clone(),
            Stage::Open(open) => open.appender.observer().cloned(),
            Stage::Closed => None,
        }
    }

    /// The options.
    pub fn options(&self) -> Option<&WalOptions> {
        match &self.stage {
            Stage::Untouched { options, .. } => Some(options),
            Stage::Open(open) => Some(open.appender.options()),
            Stage::Closed => None,
        }
    }

    fn change_options(&mut self, change: impl FnOnce(&mut WalOptions)) {
        match &mut self.stage {
            Stage::Untouched { options, .. } => change(options),
            Stage::Open(open) => change(open.appender.options_mut()),
            Stage::Closed => {}
        }
    }

    fn inner(&self) -> Option<&Open<D>> {
        match &self.stage {
            Stage::Open(open) => Some(open),
            _ => None,
        }
    }

    /// The open log; a writer made with `new` opens it here.
    fn open_stage(&mut self) -> PersistenceResult<&mut Open<D>> {
        if let Stage::Untouched { directory, options, observer } = &self.stage {
            let (mut appender, found) =
                Appender::open(Arc::clone(directory), (**options).clone(), OpenMode::New, None)?;
            if let Some(observer) = observer {
                appender.set_observer(Arc::clone(observer));
            }
            self.stage = Stage::Open(Box::new(Open { appender, pending: Pending::default(), found }));
        }
        match &mut self.stage {
            Stage::Open(open) => Ok(open),
            _ => Err(closed("append")),
        }
    }

    /// The parts that `SyncWalWriter` is made of; the pending batch is flushed first.
    pub(crate) fn into_appender(mut self) -> PersistenceResult<(Appender<D>, LogEnd)> {
        self.open_stage()?.flush(Effect::Flushed)?;
        self.closed = true;
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Open(open) => Ok((open.appender, open.found)),
            _ => Err(closed("sharing")),
        }
    }
}

impl<E, D: Directory + ?Sized + 'static> WalWriter<E, D> {
    /// From the next segment on, segments are made before they are needed, by whom
    /// [`WalOptions::prepare_ahead`] says ([`Auto`](super::PrepareAhead::Auto) is a thread here, as this was
    /// called).
    ///
    /// Effect: opens the log where that has not happened yet. Nothing else, before the first commit.
    pub fn prepare_ahead(&mut self) -> PersistenceResult<()> {
        self.open_stage()?.appender.prepare_ahead(true);
        Ok(())
    }
}

impl<E, D: Directory + ?Sized> WalWriter<E, D> {
    /// How often the log went on in another segment.
    pub fn rotations(&self) -> u64 {
        self.inner().map_or(0, |open| open.appender.rotations().count())
    }

    /// How long appending and committing have waited for a segment, all together; the first segment does not
    /// count.
    pub fn rotation_stall(&self) -> Duration {
        self.inner().map_or(Duration::ZERO, |open| open.appender.rotations().stall())
    }

    /// Makes everything appended durable.
    ///
    /// Effect: flushes, then syncs through the descriptor that wrote.
    /// Durable when: on return, everything appended before.
    /// On error: `NotSupported` (no stable storage) changes nothing; "out of space", and whatever fails while a segment
    /// is made, may be retried; anything else poisons, and what was durable before stays so.
    /// If it never returns: any prefix of the unflushed batches may be found, and at least everything that
    /// an earlier call made durable.
    pub fn flush_and_sync(&mut self) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        match &mut self.stage {
            Stage::Untouched { directory, .. } => directory.stable().map(|_| ()),
            Stage::Open(open) => {
                open.appender.directory().stable()?;
                open.flush(Effect::Durable)
            }
            Stage::Closed => Err(closed("flush_and_sync")),
        }
    }

    /// Appends bytes as one entry and makes it, and everything before it, durable. Returns its id.
    ///
    /// On error: "out of space", and whatever fails while a segment is made, appends nothing; anything else poisons.
    /// If it never returns: the entry may be found, and everything that was durable before is.
    pub fn append_bytes_durable(&mut self, payload: &[u8]) -> PersistenceResult<u64>
    where
        D: StableStorage,
    {
        self.open_stage()?.append_durable_with(|batch| batch.push(payload))
    }

    /// Writes down that everything appended is durable, for the case that nothing follows for a while.
    ///
    /// A log whose last entries nobody attests has a window: damage there can look exactly like a tear. An
    /// attested tail has none.
    pub fn attest(&mut self) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.flush_and_sync()?;
        match &mut self.stage {
            Stage::Open(open) => open.appender.seal(crate::formats::frame::SealReason::Idle, None),
            _ => Ok(()),
        }
    }
}

#[cfg(feature = "postcard")]
impl<E: serde::Serialize, D: Directory + ?Sized> WalWriter<E, D> {
    /// Appends an entry, encoded with postcard; returns its id. See [`append_bytes`](Self::append_bytes).
    pub fn append(&mut self, entry: &E) -> PersistenceResult<u64> {
        self.open_stage()?
            .append_with(|batch| batch.push_with(|buffer| crate::codec::Postcard::write(entry, buffer)))
    }

    /// Appends several entries as one atomic batch; returns their ids.
    pub fn append_batch(&mut self, entries: &[E]) -> PersistenceResult<Vec<u64>> {
        self.open_stage()?.append_batch_with(entries.len(), |batch, index| {
            batch.push_with(|buffer| crate::codec::Postcard::write(&entries[index], buffer))
        })
    }

    /// Appends an entry and makes it, and everything before it, durable. Returns its id.
    pub fn append_durable(&mut self, entry: &E) -> PersistenceResult<u64>
    where
        D: StableStorage,
    {
        let push = |batch: &mut Batch| batch.push_with(|buffer| crate::codec::Postcard::write(entry, buffer));
        self.open_stage()?.append_durable_with(push)
    }
}

impl<D: Directory + ?Sized> Open<D> {
    fn next_entry_id(&self) -> u64 {
        self.pending.next_entry_id(&self.appender)
    }

    fn append_with(
        &mut self,
        push: impl FnOnce(&mut Batch) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let entry_id = self.pending.append(&mut self.appender, push)?;
        if let Some(observer) = self.appender.observer() {
            observer.on_append(entry_id);
        }
        Ok(entry_id)
    }

    fn append_batch_with(
        &mut self,
        count: usize,
        push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<Vec<u64>> {
        let ids = self.pending.append_batch(&mut self.appender, count, push)?;
        if let Some(observer) = self.appender.observer() {
            ids.iter().for_each(|entry_id| observer.on_append(*entry_id));
        }
        Ok(ids)
    }

    fn append_durable_with(
        &mut self,
        push: impl FnOnce(&mut Batch) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        self.appender.check_durable("a durable append")?;
        let entry_id = self.pending.append_durable(&mut self.appender, push)?;
        if let Some(observer) = self.appender.observer() {
            observer.on_append(entry_id);
        }
        Ok(entry_id)
    }

    fn flush(&mut self, effect: Effect) -> PersistenceResult<()> {
        self.pending.flush(&mut self.appender, effect)
    }
}

fn closed(operation: &'static str) -> PersistenceError {
    PersistenceError::invalid_state(operation, "the writer is closed; open the log again")
}

impl<E, D: Directory + ?Sized> Drop for WalWriter<E, D> {
    fn drop(&mut self) {
        let Some(latch) = self.inner().map(|open| open.appender.latch()) else { return };
        let failed = latch.cause().cloned();
        if self.closed || (failed.is_none() && latch.is_tripped()) {
            return;
        }
        if let Err(error) = failed.map_or_else(|| self.close_in_place(), |cause| Err((*cause).clone())) {
            tracing::error!(%error, "a dropped write-ahead log could not be sealed");
        }
    }
}

impl<E, D: Directory + ?Sized> std::fmt::Debug for WalWriter<E, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalWriter")
            .field("next_entry_id", &self.next_entry_id())
            .field("durable_entry_id", &self.durable_entry_id())
            .field("segment", &self.inner().and_then(|open| open.appender.current_path()))
            .finish_non_exhaustive()
    }
}
