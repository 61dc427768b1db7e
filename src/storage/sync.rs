//! Free functions over any directory.

use super::{CommitFile, Directory, FileOptions, StableStorage};
use crate::error::PersistenceResult;

/// Opens a file for commits: durable where the directory is, volatile elsewhere.
pub fn open_commit_file<D: Directory + ?Sized>(
    directory: &D,
    path: &str,
    options: &FileOptions,
) -> PersistenceResult<Box<dyn CommitFile>> {
    match directory.as_durable() {
        Some(durable) => durable.open_durable_file(path, options),
        None => directory.open_commit_file(path, options),
    }
}

/// Syncs a file that others wrote and closed; see
/// [`DurableDirectory::sync_file`](super::DurableDirectory::sync_file) for what that can miss.
pub fn sync_file<D: StableStorage + ?Sized>(directory: &D, path: &str) -> PersistenceResult<()> {
    directory.stable()?.sync_file(path)
}

/// Makes the names in the directory that holds `path` durable.
pub fn sync_parent_dir<D: StableStorage + ?Sized>(directory: &D, path: &str) -> PersistenceResult<()> {
    directory.stable()?.sync_parent_dir(path)
}

/// Makes the name of a file of the operating system durable: syncs the directory that holds it.
pub fn sync_parent_of_path(path: &std::path::Path) -> PersistenceResult<()> {
    crate::backends::std_fs::sync_parent_of_path(path)
}
