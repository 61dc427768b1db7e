//! What a submitted entry gives back: a ticket for its commit.

use super::committer::{Asked, Line};
use crate::error::PersistenceResult;
use std::fmt;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A commit that was asked for. It happens whether or not anybody waits: dropping the ticket cancels nothing.
///
/// One ticket serves every way of waiting:
///
/// * [`wait`](Self::wait) blocks, and drives the commit itself where nobody else does;
/// * [`wait_timeout`](Self::wait_timeout) blocks for some time at most;
/// * as a [`Future`] it needs no runtime, and blocks no executor: the log's own thread drives;
/// * [`on_durable`](Self::on_durable) calls back;
/// * [`is_durable`](Self::is_durable) looks.
///
/// Every one of them answers the id of the last entry when it, and everything before it, is durable;
/// `Poisoned` with the durable watermark when a commit failed; "out of space" when the commit could not begin:
/// the entries stay appended then, and become durable with the next commit that can.
pub struct CommitTicket {
    line: Arc<dyn Line>,
    first_entry_id: u64,
    last_entry_id: u64,
    /// Refusals before this ticket.
    seen: u64,
    /// Under which the task that polled last is registered.
    key: Option<u64>,
}

impl CommitTicket {
    pub(super) fn new(line: Arc<dyn Line>, first_entry_id: u64, last_entry_id: u64, seen: u64) -> Self {
        Self { line, first_entry_id, last_entry_id, seen, key: None }
    }

    /// Id of the entry; of the last one of a batch.
    pub fn entry_id(&self) -> u64 {
        self.last_entry_id
    }

    /// Ids of the entries.
    pub fn entry_ids(&self) -> RangeInclusive<u64> {
        self.first_entry_id..=self.last_entry_id
    }

    /// Whether the entries are durable.
    pub fn is_durable(&self) -> bool {
        self.line.durable_entry_id() >= self.last_entry_id
    }

    /// Blocks until the entries are durable, or cannot become so. Not for async code: await the ticket there.
    pub fn wait(self) -> PersistenceResult<u64> {
        self.line.wait(self.last_entry_id, self.seen).map(|()| self.last_entry_id)
    }

    /// Blocks for `time` at most; [`TimedOut`](crate::PersistenceError::TimedOut) when it passed. The ticket
    /// can be waited for again. It drives nothing itself, except inside a callback or observer on the log's own thread;
    /// where a commit is one system call there, that call may outlast the deadline.
    #[allow(clippy::disallowed_methods, reason = "how long a thread waits is real time")]
    pub fn wait_timeout(&self, time: Duration) -> PersistenceResult<u64> {
        let outcome = match Instant::now().checked_add(time) {
            Some(deadline) => self.line.wait_until(self.last_entry_id, self.seen, deadline),
            None => self.line.wait(self.last_entry_id, self.seen),
        };
        outcome.map(|()| self.last_entry_id)
    }

    /// Calls `callback` exactly once: when the entries are durable, or when they cannot become so any more
    /// (the log was poisoned, the commit refused).
    ///
    /// It runs on the thread that collects the commit (the log's own, one that is blocked in it, or one that
    /// appends beside it), with no lock held; on the calling thread, at once, when the outcome is known already.
    /// What it takes, later commits wait for; it may use the log, and wait for other tickets in every way. A panic
    /// in it is caught, and logged as an error.
    pub fn on_durable(self, callback: impl FnOnce(PersistenceResult<u64>) + Send + 'static) {
        self.line.call_back(self.last_entry_id, self.seen, Box::new(callback));
    }
}

impl Future for CommitTicket {
    type Output = PersistenceResult<u64>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = &mut *self;
        let outcome = ticket.line.poll(ticket.last_entry_id, ticket.seen, &mut ticket.key, context);
        outcome.map_ok(|()| ticket.last_entry_id)
    }
}

impl Drop for CommitTicket {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.line.forget(self.last_entry_id, key);
        }
    }
}

impl fmt::Debug for CommitTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitTicket")
            .field("entry_ids", &self.entry_ids())
            .field("is_durable", &self.is_durable())
            .finish_non_exhaustive()
    }
}

/// The end of a log that is being closed; see [`SyncWalWriter::close_async`](super::SyncWalWriter::close_async).
#[must_use = "a future says how closing has ended only when it is awaited; closing goes on without"]
pub struct LogClosing {
    asked: PersistenceResult<Arc<Asked>>,
}

impl LogClosing {
    pub(super) fn new(asked: PersistenceResult<Arc<Asked>>) -> Self {
        Self { asked }
    }
}

impl Future for LogClosing {
    type Output = PersistenceResult<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.asked {
            Ok(asked) => asked.poll(context),
            Err(refusal) => Poll::Ready(Err(refusal.clone())),
        }
    }
}

impl fmt::Debug for LogClosing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogClosing").finish_non_exhaustive()
    }
}
