//! The writer that many threads share.

use super::appender::Appender;
use super::committer::{Committer, Line};
use super::live_reader::{Shelf, SyncWalReader};
use super::options::{WalObserver, WalOptions};
use super::ticket::{CommitTicket, LogClosing};
use super::walk::LogEnd;
use super::writer::WalWriter;
use crate::codec::Codec;
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::Batch;
use crate::planted;
use crate::storage::{ActiveStrategy, Directory, Effect, StableStorage};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// A write-ahead log that many threads share. Cloning gives another handle to the same log.
///
/// Whatever waits goes with the next commit; there is no timer. A thread that blocks for its entry drives the
/// commit itself where nobody else does. The first [`submit_bytes`](Self::submit_bytes) starts one thread of
/// the log's own, which drives what tickets wait for.
///
/// The log is sealed when the last handle is dropped (which blocks for its commits), or with
/// [`close`](Self::close). Where that cannot be done when the last handle is dropped, an error of `tracing` says why.
/// Tickets are no handles.
///
/// # In async code
///
/// These never block for a commit: `submit` and its like, awaiting a ticket, [`close_async`](Self::close_async),
/// [`durable_entry_id`](Self::durable_entry_id), dropping a handle that is not the last one. They take a lock
/// that is held for the encoding of one entry or batch, never across I/O. Everything else may block: appending
/// begins flushes where they are due, waits where too much waits or each append is a flush, and dropping the last handle closes the log. So end with
/// `close_async().await`.
///
/// # After a fork
///
/// The log belongs to the process that opened it: in a child every operation answers
/// [`Fenced`](PersistenceError::Fenced), and dropping a handle there leaves the log alone.
///
/// Memory: payload that waits is bounded by [`WalOptions::in_flight_bytes_max`], plus one batch.
pub struct SyncWalWriter<E = (), D: Directory + ?Sized = dyn Directory> {
    inner: Arc<Inner<D>>,
    _entry: PhantomData<fn(&E)>,
}

/// What the handles share; dropping it closes the log.
struct Inner<D: Directory + ?Sized> {
    committer: Arc<Committer<D>>,
    directory: Arc<D>,
    found: LogEnd,
    identity: u128,
    /// What the readers of this log share.
    shelf: Arc<Shelf<D>>,
}

impl<E, D: Directory + ?Sized + 'static> SyncWalWriter<E, D> {
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
        let (mut appender, found): (Appender<D>, _) = writer.into_appender()?;
        let is_durable = appender.directory().as_durable().is_some();
        appender.prepare_ahead(is_durable);
        let inner = Inner {
            directory: Arc::clone(appender.directory()),
            identity: appender.identity(),
            shelf: Arc::new(Shelf::new(Arc::clone(appender.directory()), appender.identity())),
            committer: Arc::new(Committer::new(appender)),
            found,
        };
        Ok(Self { inner: Arc::new(inner), _entry: PhantomData })
    }
}

impl<E, D: Directory + ?Sized> SyncWalWriter<E, D> {
    /// Appends bytes as one entry; returns its id.
    ///
    /// Effect: the entry is in memory, and may be with the operating system.
    /// Durable when: a later [`flush_and_sync`](Self::flush_and_sync), [`wait_durable`](Self::wait_durable) or durable
    /// append returns.
    /// On error: `PayloadTooLarge` and `WouldBlock` append nothing; the latter comes whatever
    /// [`WalOptions::backpressure`] says where it waited for room and there is no space to commit what fills it. Behind
    /// "out of space" the entry stays appended and goes with the next commit: do not append it again. A failed write
    /// poisons.
    pub fn append_bytes(&self, payload: &[u8]) -> PersistenceResult<u64> {
        self.inner.committer.append_with(1, |batch, _| batch.push(payload))
    }

    /// Appends several entries as one atomic batch; returns their ids.
    pub fn append_batch_bytes<P: AsRef<[u8]>>(&self, payloads: &[P]) -> PersistenceResult<Vec<u64>> {
        let push = |batch: &mut Batch, index: usize| batch.push(payloads[index].as_ref());
        let first = self.inner.committer.append_with(payloads.len(), push)?;
        Ok((first..first + payloads.len() as u64).collect())
    }

    /// Appends an entry with a codec; returns its id.
    pub fn append_encoded<C: Codec<E>>(&self, codec: &C, entry: &E) -> PersistenceResult<u64> {
        let push = |batch: &mut Batch, _: usize| batch.push_with(|buffer| codec.encode(entry, buffer));
        self.inner.committer.append_with(1, push)
    }

    /// Appends bytes and blocks until the entry, and everything before it, is durable. Returns its id.
    ///
    /// On error: as [`append_bytes`](Self::append_bytes). Behind "out of space" the entry stays appended: free space
    /// and [`flush_and_sync`](Self::flush_and_sync).
    pub fn append_bytes_durable(&self, payload: &[u8]) -> PersistenceResult<u64>
    where
        D: StableStorage,
    {
        self.inner.directory.stable()?;
        self.inner.committer.append_durable_with(|batch, _| batch.push(payload))
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
        self.inner.committer.wait(entry_id, Effect::Durable)
    }

    /// Hands everything appended to the operating system. See [`WalWriter::flush`].
    pub fn flush(&self) -> PersistenceResult<()> {
        self.inner.committer.wait(self.last_entry_id(), Effect::Flushed)
    }

    /// Makes everything appended durable. See [`WalWriter::flush_and_sync`].
    pub fn flush_and_sync(&self) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.inner.directory.stable()?;
        self.inner.committer.wait(self.last_entry_id(), Effect::Durable)
    }

    /// Writes down that everything appended is durable; see [`WalWriter::attest`].
    pub fn attest(&self) -> PersistenceResult<()>
    where
        D: StableStorage,
    {
        self.inner.directory.stable()?;
        self.inner.committer.attest()
    }

    /// From now on [`attest`](Self::attest)s the last entries by itself when nothing has become durable for
    /// `idle`. Nobody is kept from committing.
    ///
    /// Effect: starts a thread, which ends with the log. It sleeps without a timer as long as everything is
    /// attested.
    /// On error: no thread was started. A seal that cannot be written poisons the log, as a commit does.
    pub fn attest_when_idle(&self, idle: Duration) -> PersistenceResult<()>
    where
        D: StableStorage + 'static,
    {
        self.inner.directory.stable()?;
        self.inner.committer.attest_when_idle(idle)
    }

    /// Makes everything appended durable, seals the log and closes it for every handle. Beside others that go on
    /// appending it takes no more: they are told `InvalidState`, and nothing was appended.
    ///
    /// On error: where there was no space, nothing is closed and nothing is lost: other handles go on, and may close
    /// the log when there is. Where no other handle is left, the log ends without its seal; entries that no commit
    /// has taken are gone, and their tickets say so. After a failed write or sync it has ended for every handle,
    /// and its files and locks are free.
    pub fn close(self) -> PersistenceResult<()> {
        self.inner.committer.close()
    }

    /// A handle that reads entries of this log by id, beside this and all other handles, also entries that are
    /// not flushed yet. It is no handle of the writer: it keeps nothing open, and goes on reading afterwards.
    pub fn reader(&self) -> SyncWalReader<E, D> {
        SyncWalReader::new(Arc::clone(&self.inner.committer), Arc::clone(&self.inner.shelf))
    }

    /// Id of the last appended entry; 0 when there is none.
    pub fn last_entry_id(&self) -> u64 {
        self.inner.committer.last_entry_id()
    }

    /// Everything up to here is durable. Takes no lock: cheap enough to be watched.
    pub fn durable_entry_id(&self) -> u64 {
        self.inner.committer.durable_entry_id()
    }

    /// How commits into the current segment are made durable, and why in that way; `None` before the first one. The next
    /// segment may take another way.
    pub fn active_strategy(&self) -> Option<ActiveStrategy> {
        self.inner.committer.strategy()
    }

    /// How often the log went on in another segment.
    pub fn rotations(&self) -> u64 {
        self.inner.committer.rotations().count()
    }

    /// How long commits have waited for a segment, all together; the first segment does not count. Zero where
    /// somebody makes them ahead of need ([`WalOptions::prepare_ahead`]) and keeps up.
    pub fn rotation_stall(&self) -> Duration {
        self.inner.committer.rotations().stall()
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

    /// Who is told what the log does, and may veto truncation.
    pub(crate) fn observer(&self) -> Option<Arc<dyn WalObserver>> {
        self.inner.committer.observer().filter(|_| !planted::on("shared_log_asks_nobody"))
    }

    /// How many truncated segments are kept to be used again.
    pub(crate) fn recycle_capacity(&self) -> usize {
        self.inner.committer.recycle_capacity()
    }
}

#[cfg(feature = "postcard")]
impl<E: serde::Serialize, D: Directory + ?Sized> SyncWalWriter<E, D> {
    /// Appends an entry, encoded with postcard; returns its id.
    pub fn append(&self, entry: &E) -> PersistenceResult<u64> {
        let push = |batch: &mut Batch, _: usize| {
            batch.push_with(|buffer| crate::codec::Postcard::write(entry, buffer))
        };
        self.inner.committer.append_with(1, push)
    }

    /// Appends several entries as one atomic batch; returns their ids.
    pub fn append_batch(&self, entries: &[E]) -> PersistenceResult<Vec<u64>> {
        let first = self.inner.committer.append_with(entries.len(), |batch, index| {
            batch.push_with(|buffer| crate::codec::Postcard::write(&entries[index], buffer))
        })?;
        Ok((first..first + entries.len() as u64).collect())
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
        self.inner.committer.append_durable_with(push)
    }
}

impl<E, D: Directory + ?Sized + 'static> SyncWalWriter<E, D> {
    /// [`close`](Self::close) for async code: the log's own thread does it, and this blocks nobody. It begins
    /// at once, and goes on when the future is dropped. Locks are free when the future is done.
    ///
    /// On error: as [`close`](Self::close).
    pub fn close_async(self) -> LogClosing {
        LogClosing::new(self.inner.committer.begin_close())
    }
}

/// Tickets.
impl<E, D: StableStorage + Directory + ?Sized + 'static> SyncWalWriter<E, D> {
    /// Appends bytes as one entry and asks for its commit, without waiting for it.
    ///
    /// Effect: the entry is in memory, and its commit begins as soon as it can.
    /// Durable when: the ticket says so.
    /// On error: nothing was appended. [`WouldBlock`](PersistenceError::WouldBlock) when
    /// [`WalOptions::in_flight_bytes_max`] wait already; it never blocks for a commit.
    pub fn submit_bytes(&self, payload: &[u8]) -> PersistenceResult<CommitTicket> {
        self.submit_with(1, |batch, _| batch.push(payload))
    }

    /// [`submit_bytes`](Self::submit_bytes) for several entries, as one atomic batch.
    pub fn submit_batch_bytes<P: AsRef<[u8]>>(&self, payloads: &[P]) -> PersistenceResult<CommitTicket> {
        self.submit_with(payloads.len(), |batch, index| batch.push(payloads[index].as_ref()))
    }

    /// [`submit_bytes`](Self::submit_bytes) with a codec.
    pub fn submit_encoded<C: Codec<E>>(&self, codec: &C, entry: &E) -> PersistenceResult<CommitTicket> {
        self.submit_with(1, |batch, _| batch.push_with(|buffer| codec.encode(entry, buffer)))
    }

    fn submit_with(
        &self,
        count: usize,
        push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<CommitTicket> {
        self.inner.directory.stable()?;
        if count == 0 {
            return Err(PersistenceError::invalid_config("payloads", "a ticket is for one entry at least"));
        }
        let (first, seen) = self.inner.committer.submit_with(count, push)?;
        let line: Arc<dyn Line> = Arc::clone(&self.inner.committer) as _;
        Ok(CommitTicket::new(line, first, first + count as u64 - 1, seen))
    }
}

#[cfg(feature = "postcard")]
impl<E: serde::Serialize, D: StableStorage + Directory + ?Sized + 'static> SyncWalWriter<E, D> {
    /// Appends an entry and asks for its commit; see [`submit_bytes`](Self::submit_bytes).
    pub fn submit(&self, entry: &E) -> PersistenceResult<CommitTicket> {
        self.submit_with(1, |batch, _| batch.push_with(|buffer| crate::codec::Postcard::write(entry, buffer)))
    }

    /// Appends several entries as one atomic batch and asks for its commit.
    pub fn submit_batch(&self, entries: &[E]) -> PersistenceResult<CommitTicket> {
        self.submit_with(entries.len(), |batch, index| {
            batch.push_with(|buffer| crate::codec::Postcard::write(&entries[index], buffer))
        })
    }
}

impl<D: Directory + ?Sized> Drop for Inner<D> {
    fn drop(&mut self) {
        self.committer.close_dropped();
    }
}

impl<E, D: Directory + ?Sized> Clone for SyncWalWriter<E, D> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), _entry: PhantomData }
    }
}

impl<E, D: Directory + ?Sized> std::fmt::Debug for SyncWalWriter<E, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncWalWriter")
            .field("last_entry_id", &self.last_entry_id())
            .field("durable_entry_id", &self.durable_entry_id())
            .finish_non_exhaustive()
    }
}
