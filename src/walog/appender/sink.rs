//! The appender as its single owner drives it: batches that are waited for, and flushes that nobody waits for.
//!
//! Not here: what is written where (`appender`), what is in flight (`afloat`).

use super::Appender;
use crate::error::{PersistenceError, PersistenceResult};
use crate::framing::{Batch, FrameSink};
use crate::limits::FLUSH_BYTES_MAX;
use crate::planted;
use crate::storage::{CommitBuffer, CommitFile, Directory, Effect, FlushPolicy, Wait};
use std::time::Duration;

impl<D: Directory + ?Sized> Appender<D> {
    /// Begins a flush that nobody waits for, or leaves it for later where no place is free: it then goes with those
    /// that follow, in one write. The frames are the same, whatever the disk takes its time for.
    fn begin_afloat(&mut self, batch: Batch) -> PersistenceResult<()> {
        let Some(file) = self.file().cloned() else { return Ok(()) };
        self.afloat.make_ready(file.as_ref());
        self.collect_afloat(Wait::Never)?;
        let is_filled = self.fills_in_stream(batch.frame_bytes());
        let mut frames = self.place(batch)?;
        if is_filled {
            self.fill_block(&mut frames);
        }
        let outbox_bytes = self.afloat.put(frames);
        let is_full = self.afloat.is_full(file.as_ref(), self.options.in_flight_bytes_max);
        let waits = is_full || self.afloat.is_busy();
        if waits && !is_filled && outbox_bytes < FLUSH_BYTES_MAX {
            return Ok(());
        }
        self.send_afloat(file.as_ref())
    }

    /// Begins whatever was left for later, when there is a place.
    fn send_afloat(&mut self, file: &dyn CommitFile) -> PersistenceResult<()> {
        let Some(frames) = self.afloat.take() else { return Ok(()) };
        while self.afloat.is_full(file, self.options.in_flight_bytes_max) {
            self.collect_afloat(Wait::Forever)?;
        }
        let commit_id = self.next_commit_id;
        self.next_commit_id += 1;
        let (last_entry_id, bytes) = (frames.last_entry_id, frames.range.len());
        self.submit(frames, Effect::Flushed, commit_id)?;
        self.afloat.begin(commit_id, last_entry_id, bytes);
        file.start().map_err(|error| self.latch.trip(error))?;
        // A file that does everything at once has ended it by now.
        if file.limits().in_flight_max == 1 { self.collect_afloat(Wait::Never) } else { Ok(()) }
    }

    fn collect_afloat(&mut self, wait: Wait) -> PersistenceResult<()> {
        let Some(current) = &self.current else { return Ok(()) };
        let collected = self.afloat.collect(current.file.as_ref(), wait);
        if let Some(last_entry_id) = collected.map_err(|error| self.latch.trip(error))? {
            self.flushed_entry_id = last_entry_id;
            self.observe(Effect::Flushed);
        }
        Ok(())
    }
}

impl<D: Directory + ?Sized> FrameSink for Appender<D> {
    fn check(&self) -> PersistenceResult<()> {
        self.latch.check(self.durable_entry_id)
    }

    fn make_room(&mut self, frame_bytes: u64) -> PersistenceResult<()> {
        self.make_room_for(frame_bytes, 0)
    }

    fn write(&mut self, batch: Batch, effect: Effect) -> (PersistenceResult<()>, Option<CommitBuffer>) {
        // A durable commit vouches for what had completed before it began.
        let finished =
            if planted::on("durable_beside_flushes") { self.check() } else { self.finish_writes() };
        if let Err(error) = finished {
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

    fn begin_write(&mut self, batch: Batch) -> (PersistenceResult<()>, Option<CommitBuffer>) {
        let begun = self.begin_afloat(batch);
        (begun, self.afloat.spare())
    }

    fn finish_writes(&mut self) -> PersistenceResult<()> {
        self.check()?;
        if self.afloat.is_idle() {
            return Ok(());
        }
        if let Some(file) = self.file().cloned() {
            self.send_afloat(file.as_ref())?;
        }
        while !self.afloat.is_empty() {
            self.collect_afloat(Wait::Forever)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> PersistenceResult<()> {
        self.finish_writes()?;
        if self.durable_entry_id == self.flushed_entry_id {
            return Ok(());
        }
        self.check_durable("sync")?;
        self.commit_now(CommitBuffer::new(), Effect::Durable)?;
        self.current.iter_mut().for_each(|current| current.commits += 1);
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
