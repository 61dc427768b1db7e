//! The directories that come with the crate, and what they share.
//!
//! * [`std_fs`]: any platform with a file system, through `std::fs`.
//! * [`memory`]: volatile, in this process.
//!
//! Backends implement the traits of [`storage`](crate::storage) and are named by nothing above it.

pub mod memory;
pub mod std_fs;
#[cfg(test)]
mod tests;

use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::Commit;

/// Whether a commit's bytes are in its buffer, and a file can have that many.
pub(crate) fn check_extent(commit: &Commit) -> PersistenceResult<()> {
    let Some(bytes) = commit.buffer.get(commit.range.clone()) else {
        let reason = format!("{:?} is not within a buffer of {} bytes", commit.range, commit.buffer.len());
        return Err(PersistenceError::invalid_config("range", reason));
    };
    match commit.offset.checked_add(bytes.len() as u64) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(PersistenceError::invalid_config("offset", format!("{} is too large", commit.offset))),
    }
}
