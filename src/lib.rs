//! Crash-consistent persistence primitives.
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
