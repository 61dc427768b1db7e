//! The segmented write-ahead log under `wal/`.
//!
//! * [`WalWriter`]: one owner appends, flushes, syncs.
//! * [`SyncWalWriter`]: many threads append and wait; whatever is waiting goes with the next commit.
//! * [`WalReader`]: replays, from any entry on, beside a live writer and beside truncation.
//! * [`WalMaintenance`]: which entries are where, and cutting the prefix that a checkpoint covers.
//!
//! Life of a log: `open` takes `wal/.lock`, waits until no request of a killed predecessor is landing any
//! more, reads where the log ends, writes what nothing attests to be durable once more, and returns. The
//! first commit creates a new segment whose opening frame says where the old one ends; the old one is
//! never edited. Rotation seals a segment and goes on in the next. `close` seals the last.

mod appender;
mod catalogue;
mod closed;
mod committer;
mod compat;
mod open;
mod options;
mod queue;
mod reader;
mod sync_writer;
mod ticket;
mod trim;
mod waiters;
mod walk;
mod writer;

pub use crate::framing::Region;
pub use options::{Backpressure, WalObserver, WalOptions};
pub use reader::{ReplaySummary, WalReader, WalRecord, WalReplayMode};
pub use sync_writer::SyncWalWriter;
pub use ticket::CommitTicket;
pub use trim::{WalMaintenance, WalSegmentRange};
pub use walk::{LastSegment, LogEnd};
pub use writer::WalWriter;

pub(crate) use reader::at_entry;
pub(crate) use walk::{Requirements, read_chain};

#[cfg(all(test, durability_shuttle))]
#[path = "model_tests.rs"]
pub(crate) mod models;
#[cfg(test)]
mod tests;
