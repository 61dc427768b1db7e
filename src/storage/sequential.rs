//! Commits through a plain forward writer, for directories that offer nothing better.

use super::commit::{Commit, CommitFile, CommitLimits, Completion, Effect, Submitted, Wait};
use super::latch::Latch;
use super::strategy::CommitStrategy;
use crate::error::{PersistenceError, PersistenceResult};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

/// A [`CommitFile`] over a `Write`: a commit begins where the last one ended, or behind that; what lies in
/// between is filled with zeros.
pub struct SequentialFile {
    path: String,
    backend: &'static str,
    latch: Latch,
    state: Mutex<State>,
}

struct State {
    writer: Box<dyn Write + Send>,
    position: u64,
    completed: VecDeque<Completion>,
}

impl SequentialFile {
    /// Wraps a writer that stands at `position`, the end of its file.
    pub fn new(writer: Box<dyn Write + Send>, path: &str, backend: &'static str, position: u64) -> Self {
        let state = State { writer, position, completed: VecDeque::with_capacity(1) };
        Self { path: path.to_owned(), backend, latch: Latch::new(), state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommitFile for SequentialFile {
    fn limits(&self) -> CommitLimits {
        CommitLimits { in_flight_max: 1, alignment: 1, durable: false }
    }

    fn strategy(&self) -> CommitStrategy {
        CommitStrategy::Volatile
    }

    fn submit(&self, commit: Commit) -> Submitted {
        if let Err(error) = self.latch.check(0) {
            return Submitted::Refused { commit, error };
        }
        let mut state = self.state();
        let refusal = if commit.effect == Effect::Durable {
            Some(PersistenceError::not_supported("a durable commit", self.backend))
        } else if commit.offset < state.position {
            Some(PersistenceError::invalid_state("commit", "this directory only writes forward"))
        } else if !state.completed.is_empty() {
            Some(PersistenceError::invalid_state("commit", "one commit is in flight already"))
        } else {
            None
        };
        if let Some(error) = refusal {
            return Submitted::Refused { commit, error };
        }
        let bytes = &commit.buffer[commit.range.clone()];
        let gap = commit.offset - state.position;
        let filled = io::copy(&mut io::repeat(0).take(gap), &mut state.writer).map(|_| ());
        let written = filled.and_then(|()| state.writer.write_all(bytes)).and_then(|()| state.writer.flush());
        let result = match written {
            Ok(()) => {
                state.position = commit.offset + commit.range.len() as u64;
                Ok(())
            }
            Err(source) => Err(self.latch.trip(PersistenceError::io(
                "write",
                self.path.as_str(),
                Some(commit.offset),
                source,
            ))),
        };
        state.completed.push_back(Completion { id: commit.id, buffer: commit.buffer, result });
        Submitted::Accepted
    }

    fn start(&self) -> PersistenceResult<()> {
        Ok(())
    }

    fn reap(&self, _wait: Wait) -> PersistenceResult<Option<Completion>> {
        Ok(self.state().completed.pop_front())
    }

    fn size(&self) -> PersistenceResult<u64> {
        Ok(self.state().position)
    }

    fn set_size(&self, bytes: u64) -> PersistenceResult<()> {
        if bytes == self.state().position {
            return Ok(());
        }
        Err(PersistenceError::not_supported("changing a file's size", self.backend))
    }
}

impl fmt::Debug for SequentialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequentialFile")
            .field("path", &self.path)
            .field("latch", &self.latch)
            .finish_non_exhaustive()
    }
}
