//! Flushes of a writer with one owner that nobody waits for.
//!
//! Lives here: what is in flight, in which order it ends, and the buffers that come back. Not here: when a flush is
//! due (`framing::pending`), and what is written (`appender`).
//!
//! Bound: [`FLUSHES_IN_FLIGHT_MAX`] of them, what the file takes, and
//! [`WalOptions::in_flight_bytes_max`](super::WalOptions::in_flight_bytes_max); one more waits. Nothing else is begun
//! on the file while one is in flight.

use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::{BUFFER_BYTES_DEFAULT, FLUSH_BYTES_MAX, FLUSHES_BUSY, FLUSHES_IN_FLIGHT_MAX};
use crate::planted;
use crate::storage::{CommitBuffer, CommitFile, Completion, Wait};
use std::collections::VecDeque;
use std::ops::Range;

/// Largest buffer that is kept, in bytes.
const SPARE_BYTES_MAX: usize = 1 << 20;

/// Buffers that are kept: for what is in flight, for what is left for later, and for what is being filled.
const SPARES_MAX: usize = FLUSHES_IN_FLIGHT_MAX + 2;

/// Room for frames that are put together, in bytes: one more than is waited for.
const PILE_BYTES: usize = FLUSH_BYTES_MAX + 2 * BUFFER_BYTES_DEFAULT;

/// What is in flight, in the order in which it began.
#[derive(Debug, Default)]
pub(super) struct Afloat {
    flights: VecDeque<Flight>,
    /// Commits whose completion was not collected.
    running: usize,
    /// In flight.
    bytes: usize,
    spares: Vec<CommitBuffer>,
    /// What found no place yet.
    outbox: Option<Frames>,
    /// Every buffer that there will ever be is there, with room for frames that are put together.
    is_ready: bool,
}

/// Frames that have their place in a file, one behind the other.
#[derive(Debug)]
pub(super) struct Frames {
    pub buffer: CommitBuffer,
    pub range: Range<usize>,
    pub offset: u64,
    pub last_entry_id: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    commit_id: u64,
    last_entry_id: u64,
    bytes: usize,
    completed: bool,
}

impl Afloat {
    /// Whether nothing is in flight, and nothing is left for later.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.outbox.is_none()
    }

    /// Puts frames behind those that are left for later; answers how many bytes these are now.
    pub fn put(&mut self, frames: Frames) -> usize {
        match &mut self.outbox {
            None => self.outbox.insert(frames).range.len(),
            Some(outbox) => {
                debug_assert_eq!(outbox.offset + outbox.range.len() as u64, frames.offset);
                outbox.buffer.truncate(outbox.range.end);
                outbox.buffer.reserve(PILE_BYTES.saturating_sub(outbox.buffer.len()));
                outbox.buffer.extend_from_slice(&frames.buffer[frames.range]);
                outbox.range.end = outbox.buffer.len();
                outbox.last_entry_id = frames.last_entry_id;
                let bytes = outbox.range.len();
                self.keep(frames.buffer);
                bytes
            }
        }
    }

    /// Takes what is left for later.
    pub fn take(&mut self) -> Option<Frames> {
        self.outbox.take()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether one more finds no place.
    pub fn is_full(&self, file: &dyn CommitFile, bytes_max: usize) -> bool {
        let in_flight_max = file.limits().in_flight_max.clamp(1, FLUSHES_IN_FLIGHT_MAX);
        self.flights.len() >= in_flight_max || (self.bytes >= bytes_max && !self.is_empty())
    }

    /// Whether what is small had better go with what follows.
    pub fn is_busy(&self) -> bool {
        self.flights.len() >= FLUSHES_BUSY
    }

    /// Makes all buffers at once, so that afterwards nothing is allocated any more, however long the disk takes.
    /// Memory that is not written to is only promised.
    pub fn make_ready(&mut self, file: &dyn CommitFile) {
        let in_flight_max = file.limits().in_flight_max.min(FLUSHES_IN_FLIGHT_MAX);
        if self.is_ready || in_flight_max <= 1 {
            return;
        }
        self.is_ready = true;
        self.flights.reserve(in_flight_max);
        let missing = SPARES_MAX.saturating_sub(self.spares.len());
        self.spares.reserve_exact(missing);
        self.spares.extend(std::iter::repeat_with(|| CommitBuffer::with_capacity(PILE_BYTES)).take(missing));
    }

    /// One has begun.
    pub fn begin(&mut self, commit_id: u64, last_entry_id: u64, bytes: usize) {
        self.flights.push_back(Flight { commit_id, last_entry_id, bytes, completed: false });
        self.running += 1;
        self.bytes += bytes;
    }

    /// A buffer whose bytes are with the operating system.
    pub fn spare(&mut self) -> Option<CommitBuffer> {
        self.spares.pop()
    }

    /// Collects what has ended, after a wait for one completion if asked to. Answers the last entry up to which
    /// everything has ended well, where that is news. After an error nothing is known of what is in flight.
    pub fn collect(&mut self, file: &dyn CommitFile, mut wait: Wait) -> PersistenceResult<Option<u64>> {
        let mut flushed = None;
        while self.running > 0 {
            match file.reap(std::mem::replace(&mut wait, Wait::Never))? {
                Some(completion) => self.settle(completion)?,
                None => break,
            }
            while self.flights.front().is_some_and(|flight| flight.completed) {
                let Some(flight) = self.flights.pop_front() else { break };
                self.bytes -= flight.bytes;
                flushed = Some(flight.last_entry_id);
            }
        }
        Ok(flushed)
    }

    fn keep(&mut self, mut buffer: CommitBuffer) {
        if self.is_ready && buffer.capacity() < PILE_BYTES {
            buffer.clear();
            buffer.reserve(PILE_BYTES);
        }
        // One that a huge batch has grown is not.
        if self.spares.len() < SPARES_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            self.spares.push(buffer);
        }
    }

    fn settle(&mut self, completion: Completion) -> PersistenceResult<()> {
        let Completion { id, buffer, result } = completion;
        self.running -= 1;
        self.keep(buffer);
        if !planted::on("believe_failed_flush") {
            result?;
        }
        match self.flights.iter_mut().find(|flight| flight.commit_id == id) {
            Some(flight) => flight.completed = true,
            None => return Err(PersistenceError::invalid_state("flush", "a completion of nothing came")),
        }
        if planted::on("flushed_out_of_order") {
            let last = self.flights.iter().position(|flight| flight.commit_id == id).unwrap_or(0);
            self.flights.iter_mut().take(last).for_each(|flight| flight.completed = true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Commit, CommitLimits, CommitStrategy, Submitted};
    use std::sync::Mutex;

    /// Completes what it is told to, in that order.
    #[derive(Debug)]
    struct Scripted(Mutex<VecDeque<Option<u64>>>);

    impl CommitFile for Scripted {
        fn limits(&self) -> CommitLimits {
            CommitLimits { in_flight_max: 3, alignment: 1, durable: true }
        }
        fn strategy(&self) -> CommitStrategy {
            CommitStrategy::WriteThenSync
        }
        fn submit(&self, _: Commit) -> Submitted {
            Submitted::Accepted
        }
        fn start(&self) -> PersistenceResult<()> {
            Ok(())
        }
        fn reap(&self, _: Wait) -> PersistenceResult<Option<Completion>> {
            let next = self.0.lock().expect("no panic").pop_front().flatten();
            Ok(next.map(|id| Completion { id, buffer: CommitBuffer::new(), result: Ok(()) }))
        }
        fn size(&self) -> PersistenceResult<u64> {
            Ok(0)
        }
        fn set_size(&self, _: u64) -> PersistenceResult<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_flushed_moves_in_the_order_in_which_flushes_began() {
        let script = [None, Some(2), None, Some(1), None, Some(4), Some(3)];
        let file = Scripted(Mutex::new(script.into()));
        let mut afloat = Afloat::default();
        for commit_id in 1..=3 {
            assert!(!afloat.is_full(&file, 1000));
            afloat.begin(commit_id, 10 * commit_id, 100);
        }
        assert!(afloat.is_full(&file, 1000), "it takes three");
        let mut flushed = || {
            let flushed = afloat.collect(&file, Wait::Never).expect("nothing fails");
            (flushed, afloat.is_full(&file, 1000))
        };
        assert_eq!(flushed(), (None, true));
        assert_eq!(flushed(), (None, true), "the second has ended, the first has not");
        assert_eq!(flushed(), (Some(20), false));
        afloat.begin(4, 40, 900);
        assert!(afloat.is_full(&file, 1000), "as many bytes as may be");
        assert_eq!(afloat.collect(&file, Wait::Never).expect("nothing fails"), Some(40));
        assert!(afloat.is_idle());
    }

    #[test]
    fn frames_that_are_put_together_are_one_write_of_the_same_bytes() {
        let mut afloat = Afloat::default();
        assert!(afloat.take().is_none());
        for (index, byte) in (0..3u8).enumerate() {
            let mut buffer = CommitBuffer::from_slice(&[9; 512]);
            buffer.extend_from_slice(&[byte; 512]);
            let offset = 4096 + 512 * index as u64;
            let frames = Frames { buffer, range: 512..1024, offset, last_entry_id: index as u64 + 1 };
            assert_eq!(afloat.put(frames), 512 * (index + 1));
        }
        assert!(!afloat.is_idle());
        let frames = afloat.take().expect("is there");
        assert_eq!((frames.offset, frames.last_entry_id), (4096, 3));
        let expected = [[0; 512], [1; 512], [2; 512]].concat();
        assert_eq!(frames.buffer[frames.range], expected);
    }
}
