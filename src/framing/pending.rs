//! Entries that wait for the next frame, and when that frame is written.
//!
//! Shared by every single-owner writer. The pending batch is the only state; what a frame is written into
//! is a [`FrameSink`].

use super::batch::Batch;
use crate::error::PersistenceResult;
use crate::limits::BATCH_BYTES_MAX;
use crate::planted;
use crate::storage::{CommitBuffer, Effect, FlushPolicy};
use std::time::Duration;

/// Where finished batches go.
pub trait FrameSink {
    /// `Poisoned` after a failure.
    fn check(&self) -> PersistenceResult<()>;
    /// Makes sure that a frame of `frame_bytes` can be written. An error that does not poison leaves
    /// everything as it was, and the call may be repeated.
    fn make_room(&mut self, frame_bytes: u64) -> PersistenceResult<()>;
    /// Writes a batch. Any failure poisons.
    fn write(&mut self, batch: Batch, effect: Effect) -> (PersistenceResult<()>, Option<CommitBuffer>);
    /// Begins to write a batch, and waits no longer than until what is in flight leaves it a place; answers a
    /// buffer that is free, where there is one. Any failure poisons, also one of what was begun before. A sink
    /// without this writes it.
    fn begin_write(&mut self, batch: Batch) -> (PersistenceResult<()>, Option<CommitBuffer>) {
        self.write(batch, Effect::Flushed)
    }
    /// Waits for everything that was begun.
    fn finish_writes(&mut self) -> PersistenceResult<()> {
        Ok(())
    }
    /// Makes everything written durable.
    fn sync(&mut self) -> PersistenceResult<()>;
    /// Id of the entry behind everything written.
    fn next_entry_id(&self) -> u64;
    /// Frame alignment, in bytes.
    fn frame_alignment(&self) -> u32;
    /// When and at how many pending bytes entries are flushed without being asked to.
    fn flush_settings(&self) -> (FlushPolicy, usize);
    /// Time, for [`FlushPolicy::Interval`].
    fn elapsed(&self) -> Duration;
}

/// How much was in the batch.
type Mark = (usize, u32);

/// The pending batch of one writer.
#[derive(Debug, Default)]
pub struct Pending {
    batch: Option<Batch>,
    last_flush: Duration,
}

impl Pending {
    /// Id that the next entry will get.
    pub fn next_entry_id(&self, sink: &impl FrameSink) -> u64 {
        self.batch.as_ref().map_or_else(|| sink.next_entry_id(), Batch::next_entry_id)
    }

    /// Appends one entry, without flushing behind it; returns its id, and where the batch stood before.
    fn push<S: FrameSink>(
        &mut self,
        sink: &mut S,
        push: impl FnOnce(&mut Batch) -> PersistenceResult<u64>,
    ) -> PersistenceResult<(u64, Mark)> {
        sink.check()?;
        // A batch that is nearly as large as a frame can be goes first.
        if self.batch.as_ref().is_some_and(|batch| batch.payload_bytes() >= BATCH_BYTES_MAX / 2) {
            self.flush(sink, Effect::Flushed)?;
        }
        let batch = self.batch(sink);
        let mark = batch.mark();
        Ok((push(batch)?, mark))
    }

    /// Appends one entry, and flushes where the policy says so.
    pub fn append<S: FrameSink>(
        &mut self,
        sink: &mut S,
        push: impl FnOnce(&mut Batch) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let (entry_id, mark) = self.push(sink, push)?;
        self.flush_by_policy(sink, mark)?;
        Ok(entry_id)
    }

    /// Appends one entry and makes it, and everything before it, durable.
    pub fn append_durable<S: FrameSink>(
        &mut self,
        sink: &mut S,
        push: impl FnOnce(&mut Batch) -> PersistenceResult<u64>,
    ) -> PersistenceResult<u64> {
        let (entry_id, mark) = self.push(sink, push)?;
        self.flush(sink, Effect::Durable).inspect_err(|_| self.take_back(sink, mark))?;
        Ok(entry_id)
    }

    /// Appends `count` entries as one atomic frame, and flushes where the policy says so. Returns their ids.
    pub fn append_batch<S: FrameSink>(
        &mut self,
        sink: &mut S,
        count: usize,
        push: impl FnMut(&mut Batch, usize) -> PersistenceResult<u64>,
    ) -> PersistenceResult<Vec<u64>> {
        sink.check()?;
        if count == 0 {
            return Ok(Vec::new());
        }
        // Sharing a frame with earlier entries would be harmless, but a large batch might not fit behind them.
        self.write_out(sink, S::begin_write)?;
        let batch = self.batch(sink);
        let mark = batch.mark();
        let first = batch.push_all(count, push)?;
        self.flush_by_policy(sink, mark)?;
        Ok((first..first + count as u64).collect())
    }

    /// Writes the pending batch; with [`Effect::Durable`] everything written is durable on return.
    pub fn flush<S: FrameSink>(&mut self, sink: &mut S, effect: Effect) -> PersistenceResult<()> {
        self.write_out(sink, |sink, batch| sink.write(batch, effect))?;
        sink.finish_writes()?;
        if effect == Effect::Durable { sink.sync() } else { Ok(()) }
    }

    fn write_out<S: FrameSink>(
        &mut self,
        sink: &mut S,
        write: impl FnOnce(&mut S, Batch) -> (PersistenceResult<()>, Option<CommitBuffer>),
    ) -> PersistenceResult<()> {
        sink.check()?;
        match &self.batch {
            Some(batch) if !batch.is_empty() => sink.make_room(batch.frame_bytes())?,
            _ => return Ok(()),
        }
        let Some(batch) = self.batch.take() else { return Ok(()) };
        let (result, buffer) = write(sink, batch);
        result?;
        self.last_flush = sink.elapsed();
        let (_, buffer_bytes) = sink.flush_settings();
        // A buffer that one huge batch has grown is not kept.
        let kept = buffer.filter(|buffer| buffer.capacity() <= 4 * buffer_bytes.max(1 << 20));
        self.batch = kept.map(|buffer| Batch::reuse(buffer, sink.frame_alignment(), sink.next_entry_id()));
        Ok(())
    }

    fn batch<S: FrameSink>(&mut self, sink: &S) -> &mut Batch {
        self.batch.get_or_insert_with(|| {
            let (_, buffer_bytes) = sink.flush_settings();
            let room = buffer_bytes.min(crate::limits::COMMIT_BUFFER_BYTES_INITIAL);
            Batch::new(sink.frame_alignment(), sink.next_entry_id(), room)
        })
    }

    /// Flushes if the policy or the buffer says so.
    fn flush_by_policy<S: FrameSink>(&mut self, sink: &mut S, mark: Mark) -> PersistenceResult<()> {
        let Some(batch) = &self.batch else { return Ok(()) };
        let (policy, buffer_bytes) = sink.flush_settings();
        let due = match policy {
            FlushPolicy::PerAppend => true,
            FlushPolicy::EveryN(entries) => batch.entry_count() as usize >= entries.max(1),
            FlushPolicy::Interval(interval) => sink.elapsed().saturating_sub(self.last_flush) >= interval,
            FlushPolicy::Manual => false,
        };
        if !due && batch.payload_bytes() < buffer_bytes {
            return Ok(());
        }
        let flushed = match policy.is_awaited() || planted::on("await_each_flush") {
            true => self.flush(sink, Effect::Flushed),
            false => self.write_out(sink, S::begin_write),
        };
        flushed.inspect_err(|_| self.take_back(sink, mark))
    }

    /// After a failure that did not poison nothing was written: the entries behind `mark` are taken back, so
    /// that the error means "not appended".
    fn take_back<S: FrameSink>(&mut self, sink: &S, mark: Mark) {
        if sink.check().is_err() || planted::on("keep_refused_entry") {
            return;
        }
        if let Some(batch) = &mut self.batch {
            batch.roll_back(mark);
        }
    }
}
