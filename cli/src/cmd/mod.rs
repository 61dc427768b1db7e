//! One sub-command, one file (or one folder).

pub mod backends;
pub mod bench;
pub mod child;
pub mod payload;
pub mod soak;
pub mod torture;

/// What a sub-command fails with.
pub type Failure = Box<dyn std::error::Error>;
