//! The directories that come with the crate, and what they share.
//!
//! * [`std_fs`]: any platform with a file system, through `std::fs`.
//! * [`memory`]: volatile, in this process.
//! * `io_uring`: [`std_fs`] with commits through rings, on Linux with the feature `io-uring`.
//!
//! [`Backend`] chooses between those that write to disks. Backends implement the traits of [`storage`](crate::storage) and are named by nothing above it.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the one door to the file system, and to the pauses that waiting for it takes"
)]

mod choice;
#[cfg(all(test, target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod fault_tests;
pub(crate) mod fork;
#[cfg(all(
    feature = "io-uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
pub mod io_uring;
pub mod memory;
pub mod std_fs;
#[cfg(test)]
mod tests;
mod write_back;

pub use choice::{Backend, BackendOptions, BackendReason, OpenBackend, io_uring_support};

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

/// What [`Backend`] asks of io_uring.
#[cfg(all(
    feature = "io-uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
mod rings {
    use super::io_uring::{UringDirectory, UringOptions, probe};
    use super::{BackendOptions, BackendReason};
    use crate::error::PersistenceResult;
    use crate::storage::{DurableDirectory, FsDirectory};
    use std::sync::Arc;

    pub(super) fn support() -> Result<(), BackendReason> {
        probe()
    }

    pub(super) fn over(
        files: FsDirectory,
        options: &BackendOptions,
        std_fs_too: bool,
    ) -> PersistenceResult<Arc<dyn DurableDirectory>> {
        let options = UringOptions { std_fs_too, ..UringOptions::from(options) };
        Ok(Arc::new(UringDirectory::over(files, options)?))
    }
}

/// What [`Backend`] is told where there is none.
#[cfg(not(all(
    feature = "io-uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
)))]
mod rings {
    use super::{BackendOptions, BackendReason};
    use crate::error::{PersistenceError, PersistenceResult};
    use crate::storage::{DurableDirectory, FsDirectory};
    use std::sync::Arc;

    pub(super) fn support() -> Result<(), BackendReason> {
        if cfg!(feature = "io-uring") {
            Err(BackendReason::Platform)
        } else {
            Err(BackendReason::FeatureDisabled)
        }
    }

    pub(super) fn over(
        _: FsDirectory,
        _: &BackendOptions,
        _: bool,
    ) -> PersistenceResult<Arc<dyn DurableDirectory>> {
        Err(PersistenceError::not_supported("io_uring", "this build"))
    }
}

/// Says loudly that a test did not run, and why: on standard error, and in the file that
/// `DURABILITY_SKIP_LOG` names.
#[cfg(test)]
pub(crate) fn skip(reason: &str) {
    use std::io::Write;
    eprintln!("SKIP: {reason}");
    if let Some(path) = std::env::var_os("DURABILITY_SKIP_LOG") {
        if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
            let _ = writeln!(file, "SKIP: {reason}");
        }
    }
}
