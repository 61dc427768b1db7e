//! Crash-consistent persistence primitives: a record log, a segmented write-ahead log with group commit,
//! checkpoints, crash-safe publishing, and recovery, over io_uring, `std::fs` or memory.
//!
//! * [`backends::Backend::open`] opens a directory on a disk; [`MemoryDirectory`] is one in memory.
//! * [`walog`]: the log. [`walog::SyncWalWriter`] for many threads and tasks, [`walog::WalWriter`] for one
//!   owner, [`walog::WalReader`] to replay.
//! * [`recover`] and [`publish`]: a state behind a log, with [`checkpoint`]s that keep the log short.
//! * [`recordlog`]: one append-only file.
//! * [`codec`]: your own encoding, also without the feature `postcard`.
//! * [`inspect`], [`repair`]: looking inside, and taking out what cannot be read.
//! * `testing` (feature `testing`): the simulated disk, for crash tests of your own.
//! * Below that: [`storage`] (what a backend implements), [`framing`] and [`formats`] (bytes), [`error`],
//!   [`limits`].
//!
//! *Appended* is in the writer's memory, *flushed* is with the operating system, *durable* is on stable
//! storage. Only what says durable (`append_durable`, `flush_and_sync`, a ticket that was awaited) survives a
//! power cut. The README has programs to begin with, `docs/guarantees.md` every promise and limit.
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod backends;
pub mod checkpoint;
pub mod codec;
pub mod error;
pub mod formats;
pub mod framing;
pub mod inspect;
pub mod limits;
mod planted;
pub mod publish;
pub mod recordlog;
pub mod recover;
pub mod repair;
pub mod storage;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
pub mod walog;

pub use error::{PersistenceError, PersistenceResult};
pub use storage::{Directory, DurableDirectory, FsDirectory, MemoryDirectory};

/// The examples of the README compile and run.
#[cfg(all(doctest, feature = "postcard"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// So does the one of the page about telemetry.
#[cfg(all(doctest, feature = "postcard"))]
#[doc = include_str!("../docs/telemetry.md")]
pub struct TelemetryPage;
