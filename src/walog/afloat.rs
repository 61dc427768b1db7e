//! Flushes of a writer with one owner that nobody waits for.
//!
//! Lives here: what is in flight, in which order it ends, and the buffers that come back. Not here: when a flush is
//! due (`framing::pending`), and what is written (`appender`).
//!
//! Bound: [`FLUSHES_IN_FLIGHT_MAX`] of them, what the file takes, and
//! [`WalOptions::in_flight_bytes_max`](super::WalOptions::in_flight_bytes_max); one more waits. Nothing else is begun
//! on the file while one is in flight.

use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::FLUSHES_IN_FLIGHT_MAX;
use crate::planted;
use crate::storage::{CommitBuffer, CommitFile, Completion, Wait};
use std::collections::VecDeque;

/// Largest buffer that is kept, in bytes.
const SPARE_BYTES_MAX: usize = 1 << 20;

/// What is in flight, in the order in which it began.
#[derive(Debug, Default)]
pub(super) struct Afloat {
    flights: VecDeque<Flight>,
    /// Commits whose completion was not collected.
    running: usize,
    /// Payload in flight, in bytes.
    bytes: usize,
    spares: Vec<CommitBuffer>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    commit_id: u64,
    last_entry_id: u64,
    bytes: usize,
    completed: bool,
}

impl Afloat {
    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether one more finds no place.
    pub fn is_full(&self, file: &dyn CommitFile, bytes_max: usize) -> bool {
        let in_flight_max = file.limits().in_flight_max.clamp(1, FLUSHES_IN_FLIGHT_MAX);
        self.flights.len() >= in_flight_max || (self.bytes >= bytes_max && !self.is_empty())
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

    fn settle(&mut self, completion: Completion) -> PersistenceResult<()> {
        let Completion { id, buffer, result } = completion;
        self.running -= 1;
        // A buffer that one huge batch has grown is not kept.
        if self.spares.len() < FLUSHES_IN_FLIGHT_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            self.spares.push(buffer);
        }
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
