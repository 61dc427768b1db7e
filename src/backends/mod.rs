//! Backends.
pub mod memory;
pub mod std_fs;
