//! Many threads, one log: the only place where threads wait for each other.
//!
//! Appending encodes into the pending batch under a short lock. Whoever needs durability and finds nobody
//! committing becomes the leader: it takes the whole batch, lets go of the lock, writes and syncs, takes
//! the lock again, publishes the watermark and wakes the others. There is no timer and no thread:
//! whatever is waiting goes with the next commit. Leadership is handed on in `Drop`, so that no error path
//! and no panic leaves followers waiting.
//!
//! Lock order: `shared` alone, or `appender` alone; never one while holding the other. `appender` is only
//! ever taken by the leader, so it is never contended; it exists so that the compiler need not be told.

use super::appender::Appender;
use super::options::WalOptions;
use super::walk::LogEnd;
use super::writer::WalWriter;
use crate::codec::Codec;
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::{Batch, FrameSink};
use crate::limits::BATCH_BYTES_MAX;
use crate::storage::{CommitBuffer, Directory, Effect, FlushPolicy, StableStorage};
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A write-ahead log that many threads share. Cloning gives another handle to the same log.
///
/// The log is sealed when the last handle is dropped, or with [`close`](Self::close).
pub struct SyncWalWriter<E = (), D: Directory + ?Sized = dyn Directory> {
    inner: Arc<Inner<D>>,
    _entry: PhantomData<fn(&E)>,
}

struct Inner<D: Directory + ?Sized> {
    shared: Mutex<Shared>,
    progress: Condvar,
    appender: Mutex<Option<Appender<D>>>,
    directory: Arc<D>,
    found: LogEnd,
    identity: u128,
    is_durable: bool,
}

struct Shared {
    /// What the next commit takes; always behind everything that earlier ones took.
    pending: Batch,
    /// A cleared buffer for the batch after that.
    spare: Option<CommitBuffer>,
    flushed_entry_id: u64,
    durable_entry_id: u64,
    /// Somebody is committing.
    leading: bool,
    closed: bool,
    failure: Option<Arc<PersistenceError>>,
    options: WalOptions,
    /// Entries since the last flush, for the flush policy.
    unflushed: usize,
    last_flush: Duration,
}

impl<E, D: Directory + ?Sized> SyncWalWriter<E, D> {
    /// Opens the log, as [`WalWriter::open`] does.
    pub fn open(directory: Arc<D>) -> PersistenceResult<Self> {
        Self::configure(directory, WalOptions::default())
    }

    /// Opens the log with options.
    pub fn configure(directory: Arc<D>, options: WalOptions) -> PersistenceResult<Self> {
        Self::from_writer(WalWriter::<E, D>::open_with(directory, options)?)
    }

    /// Shares a writer; what it had appended is flushed first.
    pub fn from_writer(writer: WalWriter<E, D>) -> PersistenceResult<Self> {
        let (appender, found) = writer.into_appender()?;
        let shared = Shared {
            pending: appender.new_batch(),
            spare: None,
            flushed_entry_id: appender.flushed_entry_id(),
            durable_entry_id: appender.durable_entry_id(),
            leading: false,
            closed: false,
            failure: None,
            options: appender.options().clone(),
            unflushed: 0,
            last_flush: appender.options().environment.elapsed(),
        };
        let inner = Inner {
            shared: Mutex::new(shared),
            progress: Condvar::new(),
            directory: Arc::clone(appender.directory()),
            identity: appender.identity(),
            is_durable: appender.check_durable("open").is_ok(),
            appender: Mutex::new(Some(appender)),
            found,
        };
        Ok(Self { inner: Arc::new(inner), _entry: PhantomData })
    }

    /// Appends bytes as one entry; returns its id. See [`WalWriter::append_bytes`].
    pub fn append_bytes(&self, payload: &[u8]) -> PersistenceResult<u64> {
        self.inner.append_with(1, |batch, _| batch.push(payload)).map(|(first, _)| first)
    }

    /// Appends several entries as one atomic batch; returns their ids.
    pub fn append_batch_bytes<P: AsRef<[u8]>>(&self, payloads: &[P]) -> PersistenceResult<Vec<u64>> {
        let (first, count) =
            self.inner.append_with(payloads.len(), |batch, index| batch.push(payloads[index].as_ref()))?;
        Ok((first..first + count as u64).collect())
    }

    /// Appends an entry with a codec; returns its id.
    pub fn append_encoded<C: Codec<E>>(&self, codec: &C, entry: &E) -> PersistenceResult<u64> {
        let push = |batch: &mut Batch, _: usize| batch.push_with(|buffer| codec.encode(entry, buffer));
        self.inner.append_with(1, push).map(|(first, _)| first)
    }

    /// Appends bytes and blocks until the entry, and everything before it, is durable. Returns its id.
    pub fn append_bytes_durable(&self, payload: &[u8]) -> PersistenceResult<u64>
    where
        D: StableStorage,
    {
        self.inner.directory.stable()?;
        let entry_id = self.inner.push_with(1, |batch, _| batch.push(payload))?.0;
        self.inner.wait_durable(entry_id)?;
        Ok(entry_id)
    }

    /// Blocks until the entry `entry_id`, and everything before it, is durable.
    pub fn wait_durable(&self, entry_id: u64) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.inner.directory.stable()?;
        if entry_id > self.last_entry_id() {
            let reason = format!("entry {entry_id} was not appended");
            return Err(PersistenceError::invalid_state("waiting for durability", reason));
        }
        self.inner.wait_durable(entry_id)
    }

    /// Hands everything appended to the operating system. See [`WalWriter::flush`].
    pub fn flush(&self) -> PersistenceResult<()> {
        self.inner.wait_flushed()
    }

    /// Makes everything appended durable. See [`WalWriter::flush_and_sync`].
    pub fn flush_and_sync(&self) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.inner.directory.stable()?;
        self.inner.wait_durable(self.last_entry_id())
    }

    /// Makes everything appended durable, seals the log and closes it for every handle.
    pub fn close(self) -> PersistenceResult<()> {
        self.inner.close()
    }

    /// Id of the last appended entry; 0 when there is none.
    pub fn last_entry_id(&self) -> u64 {
        self.inner.shared().pending.next_entry_id() - 1
    }

    /// Everything up to here is durable.
    pub fn durable_entry_id(&self) -> u64 {
        self.inner.shared().durable_entry_id
    }

    /// What was found when the log was opened.
    pub fn recovered(&self) -> &LogEnd {
        &self.inner.found
    }

    /// The log's identity.
    pub fn identity(&self) -> u128 {
        self.inner.identity
    }

    /// The directory.
    pub fn directory(&self) -> &Arc<D> {
        &self.inner.directory
    }

    /// How many truncated segments are kept to be used again.
    pub(crate) fn recycle_capacity(&self) -> usize {
        self.inner.shared().options.recycle_capacity
    }
}

#[cfg(feature = "postcard")]
impl<E: serde::Serialize, D: Directory + ?Sized> SyncWalWriter<E, D> {
    /// Appends an entry, encoded with postcard; returns its id.
    pub fn append(&self, entry: &E) -> PersistenceResult<u64> {
        let push = |batch: &mut Batch, _: usize| {
            batch.push_with(|buffer| crate::codec::Postcard::write(entry, buffer))
        };
        self.inner.append_with(1, push).map(|(first, _)| first)
    }

    /// Appends several entries as one atomic batch; returns their ids.
    pub fn append_batch(&self, entries: &[E]) -> PersistenceResult<Vec<u64>> {
        let (first, count) = self.inner.append_with(entries.len(), |batch, index| {
            batch.push_with(|buffer| crate::codec::Postcard::write(&entries[index], buffer))
        })?;
        Ok((first..first + count as u64).collect())
    }

    /// Appends an entry and blocks until it, and everything before it, is durable. Returns its id.
    pub fn append_durable(&self, entry: &E) -> PersistenceResult<u64>
    where
        D: StableStorage,
    {
        self.inner.directory.stable()?;
        let push = |batch: &mut Batch, _: usize| {
            batch.push_with(|buffer| crate::codec::Postcard::write(entry, buffer))
        };
        let entry_id = self.inner.push_with(1, push)?.0;
        self.inner.wait_durable(entry_id)?;
        Ok(entry_id)
    }
}

impl<D: Directory + ?Sized> Inner<D> {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panic while the lock is held can only be an allocation failure; the batch rolls itself back.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends `count` entries to one frame, and flushes where the policy says so. Returns the first id
    /// and the count.
    fn append_with(
        &self,
        count: usize,
        push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<(u64, usize)> {
        let (first, due) = self.push_with(count, push)?;
        if due {
            self.wait_flushed()?;
        }
        Ok((first, count))
    }

    fn push_with(
        &self,
        count: usize,
        mut push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<(u64, bool)> {
        let mut shared = self.shared();
        let first = loop {
            shared.check()?;
            // Backpressure: a batch that is full goes before more is taken.
            if shared.pending.payload_bytes() >= shared.pending_bytes_max() {
                shared = self.advance(shared, Effect::Flushed)?;
                continue;
            }
            match shared.push_all(count, &mut push) {
                // It may fit into a frame of its own.
                Err(PersistenceError::PayloadTooLarge { .. }) if count > 1 && !shared.pending.is_empty() => {
                    shared = self.advance(shared, Effect::Flushed)?;
                }
                result => break result?,
            }
        };
        shared.unflushed += count;
        let due = match shared.options.flush_policy {
            FlushPolicy::PerAppend => true,
            FlushPolicy::EveryN(entries) => shared.unflushed >= entries.max(1),
            FlushPolicy::Interval(interval) => {
                shared.options.environment.elapsed().saturating_sub(shared.last_flush) >= interval
            }
            FlushPolicy::Manual => false,
        };
        Ok((first, due || shared.pending.payload_bytes() >= shared.options.buffer_bytes))
    }

    fn wait_flushed(&self) -> PersistenceResult<()> {
        let mut shared = self.shared();
        let target = shared.pending.next_entry_id() - 1;
        while shared.flushed_entry_id < target {
            shared = self.advance(shared, Effect::Flushed)?;
        }
        shared.check()
    }

    fn wait_durable(&self, entry_id: u64) -> PersistenceResult<()> {
        let mut shared = self.shared();
        while shared.durable_entry_id < entry_id {
            shared = self.advance(shared, Effect::Durable)?;
        }
        Ok(())
    }

    /// One step towards `effect`: waits for the commit that is under way, or leads the next one.
    fn advance<'a>(
        &'a self,
        shared: MutexGuard<'a, Shared>,
        effect: Effect,
    ) -> PersistenceResult<MutexGuard<'a, Shared>> {
        shared.check()?;
        if shared.leading {
            return Ok(self.progress.wait(shared).unwrap_or_else(PoisonError::into_inner));
        }
        self.lead(shared, effect)
    }

    fn lead<'a>(
        &'a self,
        mut shared: MutexGuard<'a, Shared>,
        effect: Effect,
    ) -> PersistenceResult<MutexGuard<'a, Shared>> {
        shared.leading = true;
        let leadership = Leadership { inner: self, finished: false };
        let frame_bytes = (!shared.pending.is_empty()).then(|| shared.pending.frame_bytes());
        drop(shared);
        let mut slot = self.appender.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(appender) = slot.as_mut() else {
            return Err(PersistenceError::invalid_state("commit", "the log is closed"));
        };
        let room = frame_bytes.map_or(Ok(()), |frame_bytes| appender.make_room(frame_bytes));
        let (result, buffer) = match room {
            // Nothing was taken yet: what is pending stays so.
            Err(error) => (Err(error), None),
            Ok(()) => match self.take_batch() {
                Some(batch) => appender.write(batch, effect),
                None if effect == Effect::Durable => (appender.sync(), None),
                None => (Ok(()), None),
            },
        };
        let (flushed, durable) = (appender.flushed_entry_id(), appender.durable_entry_id());
        let failure = appender.latch().cause().cloned();
        drop(slot);
        leadership.finish(flushed, durable, failure, buffer);
        let shared = self.shared();
        match result {
            Ok(()) => Ok(shared),
            Err(error) => {
                shared.check()?;
                Err(error)
            }
        }
    }

    /// Everything that is pending now, also what came after the leader looked.
    fn take_batch(&self) -> Option<Batch> {
        let mut shared = self.shared();
        if shared.pending.is_empty() {
            return None;
        }
        let next = shared.pending.next_entry_id();
        let alignment = shared.options.frame_alignment;
        let fresh = match shared.spare.take() {
            Some(buffer) => Batch::reuse(buffer, alignment, next),
            None => Batch::new(alignment, next, crate::limits::COMMIT_BUFFER_BYTES_INITIAL),
        };
        shared.unflushed = 0;
        shared.last_flush = shared.options.environment.elapsed();
        Some(std::mem::replace(&mut shared.pending, fresh))
    }

    fn close(&self) -> PersistenceResult<()> {
        let effect = if self.is_durable { Effect::Durable } else { Effect::Flushed };
        let mut shared = self.shared();
        loop {
            shared.check()?;
            if !shared.leading && shared.pending.is_empty() {
                break;
            }
            shared = self.advance(shared, effect)?;
        }
        shared.closed = true;
        drop(shared);
        let appender = self.appender.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = appender.map_or(Ok(()), |mut appender| {
            let result = appender.close();
            let mut shared = self.shared();
            shared.durable_entry_id = appender.durable_entry_id();
            result
        });
        self.progress.notify_all();
        result
    }
}

impl Shared {
    /// Pending bytes above which appending waits for a commit.
    fn pending_bytes_max(&self) -> usize {
        (BATCH_BYTES_MAX / 2).min(8 * self.options.buffer_bytes.max(1 << 20))
    }

    /// Appends all of `count` entries to the pending frame, or none; returns the first id.
    fn push_all(
        &mut self,
        count: usize,
        push: &mut impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let mark = self.pending.mark();
        let first = self.pending.next_entry_id();
        for index in 0..count {
            if let Err(error) = push(&mut self.pending, index) {
                self.pending.roll_back(mark);
                return Err(error);
            }
        }
        Ok(first)
    }

    fn check(&self) -> PersistenceResult<()> {
        if let Some(cause) = &self.failure {
            let durable_entry_id = self.durable_entry_id;
            return Err(PersistenceError::Poisoned { durable_entry_id, cause: Arc::clone(cause) });
        }
        if self.closed {
            return Err(PersistenceError::invalid_state("using the log", "it is closed; open it again"));
        }
        Ok(())
    }
}

/// Leadership of one commit; handed on when it ends, however it ends.
struct Leadership<'a, D: Directory + ?Sized> {
    inner: &'a Inner<D>,
    finished: bool,
}

impl<D: Directory + ?Sized> Leadership<'_, D> {
    fn finish(
        mut self,
        flushed: u64,
        durable: u64,
        failure: Option<Arc<PersistenceError>>,
        buffer: Option<CommitBuffer>,
    ) {
        let mut shared = self.inner.shared();
        debug_assert!(shared.flushed_entry_id <= flushed && shared.durable_entry_id <= durable);
        shared.flushed_entry_id = flushed;
        shared.durable_entry_id = durable;
        shared.failure = shared.failure.take().or(failure);
        let keep_max = 4 * shared.options.buffer_bytes.max(1 << 20);
        shared.spare = shared.spare.take().or(buffer.filter(|buffer| buffer.capacity() <= keep_max));
        self.finished = true;
        // `Drop` ends the leadership under the same lock's next turn.
    }
}

impl<D: Directory + ?Sized> Drop for Leadership<'_, D> {
    fn drop(&mut self) {
        let mut shared = self.inner.shared();
        shared.leading = false;
        if !self.finished && std::thread::panicking() {
            let cause = PersistenceError::invalid_state("commit", "the committing thread panicked");
            shared.failure.get_or_insert(Arc::new(cause));
        }
        drop(shared);
        self.inner.progress.notify_all();
    }
}

impl<D: Directory + ?Sized> Drop for Inner<D> {
    fn drop(&mut self) {
        let shared = self.shared.get_mut().unwrap_or_else(PoisonError::into_inner);
        if shared.closed || shared.failure.is_some() {
            return;
        }
        if let Err(error) = self.close() {
            tracing::error!(%error, "a dropped write-ahead log could not be sealed");
        }
    }
}

impl<E, D: Directory + ?Sized> Clone for SyncWalWriter<E, D> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), _entry: PhantomData }
    }
}

impl<E, D: Directory + ?Sized> std::fmt::Debug for SyncWalWriter<E, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shared = self.inner.shared();
        f.debug_struct("SyncWalWriter")
            .field("next_entry_id", &shared.pending.next_entry_id())
            .field("durable_entry_id", &shared.durable_entry_id)
            .finish_non_exhaustive()
    }
}
