//! Two textbook commit engines to compare with, over the same system calls: a mutex that is held while one
//! entry is made durable, and group commit by leader and followers. Neither has a format: no checksums, no
//! recovery, no rotation. That is what a plain engine can reach at most.

use super::drive::Outcome;
use super::raw::write_all_at;
use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// One entry at a time: append to a growing file and sync, under a lock.
#[derive(Debug)]
pub struct MutexEngine {
    file: Mutex<(File, u64)>,
}

impl MutexEngine {
    /// Over an empty file.
    pub fn new(file: File) -> Self {
        Self { file: Mutex::new((file, 0)) }
    }

    /// Makes one entry durable.
    pub fn commit(&self, entry: &[u8]) -> Outcome {
        let mut held = lock(&self.file);
        let (file, end) = &mut *held;
        write_all_at(file, entry, *end)?;
        *end += entry.len() as u64;
        file.sync_data()?;
        Ok(())
    }
}

/// Group commit: who finds nobody writing leads, writes all that is pending with one `pwrite`, syncs, and
/// wakes the others. Over a file that was zero-filled; its end is followed by its beginning.
#[derive(Debug)]
pub struct GroupEngine {
    file: File,
    file_bytes: u64,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    spare: Vec<u8>,
    /// Entries that were taken in, and of those how many are durable.
    taken: u64,
    durable: u64,
    offset: u64,
    is_led: bool,
    failure: Option<String>,
}

impl GroupEngine {
    /// Over a file of `file_bytes` zeros, which must hold what all committers together have pending.
    pub fn new(file: File, file_bytes: u64) -> Self {
        Self { file, file_bytes, state: Mutex::default(), done: Condvar::new() }
    }

    /// Makes one entry durable, perhaps together with others.
    pub fn commit(&self, entry: &[u8]) -> Outcome {
        let mut state = lock(&self.state);
        state.pending.extend_from_slice(entry);
        state.taken += 1;
        let mine = state.taken;
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone().into());
            }
            if state.durable >= mine {
                return Ok(());
            }
            state = if state.is_led {
                self.done.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.lead(state)
            };
        }
    }

    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.is_led = true;
        let spare = std::mem::take(&mut state.spare);
        let mut batch = std::mem::replace(&mut state.pending, spare);
        let bytes = batch.len() as u64;
        if state.offset + bytes > self.file_bytes {
            state.offset = 0;
        }
        let (offset, taken) = (state.offset, state.taken);
        drop(state);
        let result = write_all_at(&self.file, &batch, offset).and_then(|()| self.file.sync_data());
        batch.clear();
        let mut state = lock(&self.state);
        match result {
            Ok(()) => (state.durable, state.offset) = (taken, offset + bytes),
            Err(error) => state.failure = Some(format!("the leader's commit failed: {error}")),
        }
        state.spare = batch;
        state.is_led = false;
        self.done.notify_all();
        state
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_a_group_is_in_the_file_and_the_file_wraps() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let engine = GroupEngine::new(file.reopen().expect("opens"), 64);
        for round in 0..9u8 {
            engine.commit(&[round; 16]).expect("commits");
        }
        let bytes = std::fs::read(file.path()).expect("reads");
        let starts: Vec<u8> = bytes.chunks(16).map(|entry| entry[0]).collect();
        assert_eq!(starts, [8, 5, 6, 7]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| engine.commit(&[1; 16]).expect("commits")));
            }
        });
        let state = lock(&engine.state);
        assert_eq!((state.taken, state.durable), (209, 209));
    }

    #[test]
    fn a_failed_leader_is_an_error_for_everybody() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let engine = GroupEngine::new(File::open(file.path()).expect("opens to read only"), 64);
        for _ in 0..2 {
            let error = engine.commit(b"x").expect_err("cannot be written").to_string();
            assert!(error.contains("leader's commit failed"), "{error}");
        }
    }
}
