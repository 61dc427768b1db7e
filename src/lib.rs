//! Crash-consistent persistence primitives.
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod backends;
pub mod error;
pub mod formats;
pub mod limits;
pub mod storage;

pub use error::{PersistenceError, PersistenceResult};
pub use storage::{Directory, DurableDirectory, FsDirectory, MemoryDirectory};
