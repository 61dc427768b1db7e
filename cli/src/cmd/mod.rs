//! One sub-command, one file (or one folder).

pub mod backends;
pub mod bench;
pub mod child;
pub mod dump;
pub mod inspect;
pub mod interrupt;
pub mod look;
pub mod payload;
pub mod repair;
pub mod soak;
pub mod torture;
pub mod verify;

/// What a sub-command fails with.
pub type Failure = Box<dyn std::error::Error>;
