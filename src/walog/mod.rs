//! The segmented write-ahead log under `wal/`.
//!
//! * [`WalWriter`]: one owner appends, flushes, syncs.
//! * [`SyncWalWriter`]: many threads append and wait; whatever is waiting goes with the next commit.
//! * [`SyncWalReader`]: reads entries by id beside a [`SyncWalWriter`], also those that are not flushed yet.
//! * [`WalReader`]: replays, from any entry on, beside a live writer and beside truncation.
//! * [`WalFollower`]: goes along with a live writer, as far as the log is known to be durable.
//! * [`WalCheck`]: reads all of a log, by as many threads as there are, to say whether it is sound.
//! * [`WalMaintenance`]: which entries are where, and cutting the prefix that a checkpoint covers.
//!
//! Life of a log: `open` takes `wal/.lock`, waits until no request of a killed predecessor is landing any
//! more, reads where the log ends, writes what nothing attests to be durable once more, and returns. The
//! first commit creates a new segment whose opening frame says where the old one ends; the old one is
//! never edited. Rotation seals a segment and goes on in the next. `close` seals the last.

mod afloat;
mod appender;
pub(crate) mod catalogue;
mod check;
mod closed;
mod committer;
mod compat;
mod follow;
mod live_reader;
mod making;
mod open;
mod options;
mod pool;
mod queue;
mod reader;
mod rotations;
mod sync_writer;
mod telemetry;
mod ticket;
mod trim;
mod waiters;
mod walk;
mod writer;

pub use crate::framing::Region;
pub use check::{SegmentScan, SegmentScans, WalCheck, WalChecked};
pub use follow::WalFollower;
pub use live_reader::{LiveEntries, LiveRecord, LiveSummary, SyncWalReader};
pub use options::{Backpressure, PrepareAhead, PrepareHand, SlowCommit, WalObserver, WalOptions};
pub use reader::{ReplaySummary, WalReader, WalRecord, WalReplayMode};
pub use sync_writer::SyncWalWriter;
pub use telemetry::{Distribution, Telemetry, TelemetrySnapshot};
pub use ticket::{CommitTicket, LogClosing};
pub use trim::{WalMaintenance, WalSegmentRange};
pub use walk::{LastSegment, LogEnd};
pub use writer::WalWriter;

pub(crate) use catalogue::READING;
pub(crate) use reader::at_entry;
pub use walk::Requirements;
pub(crate) use walk::read_chain;

#[cfg(all(test, durability_shuttle))]
#[path = "model_tests.rs"]
pub(crate) mod models;
#[cfg(test)]
mod tests;
