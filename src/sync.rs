//! What threads wait for each other with.
//!
//! Lives here: which implementation that is. Normally the standard library's, by re-export and at no cost;
//! in test builds with `--cfg durability_shuttle` shuttle's, which runs one thread at a time and chooses who
//! goes on at every step, so that models explore interleavings and replay them (`scripts/model-check.sh`).
//!
//! Invariant: whoever blocks a thread in a room that is model-checked (`walog/committer`,
//! `backends/io_uring/file`) blocks it through here.

#[cfg(not(all(test, durability_shuttle)))]
#[allow(
    unused_imports,
    reason = "only rings wait on condition variables, and not every target has them"
)]
pub(crate) use std::{
    sync::atomic::{AtomicU64, Ordering},
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

#[cfg(all(test, durability_shuttle))]
pub(crate) use shuttle::{
    sync::atomic::{AtomicU64, Ordering},
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};
