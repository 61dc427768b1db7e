//! `MemoryDirectory`: names and bytes in this process's memory.
//!
//! Lives here: the directory. Not here: the tree of names (`tree`), the files' bytes and locks
//! (`file`).
//!
//! Volatile and honest: there is no stable storage, and whoever asks for it is told so. What can be asked
//! of both answers like a file system does, with the same kinds of error.

mod file;
mod tree;

pub use file::MemoryFile;

use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{
    CommitFile, Directory, DirectoryLock, DurableDirectory, FileOptions, ReadAt, path, temporary_path,
};
use file::{FileNode, MemoryAppender, MemoryReader, MemoryWriter};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tree::Tree;

/// A directory in memory, for tests and for logs that need not outlive the process.
///
/// Clones share one tree. Open files survive the removal of their name, as on Unix. Not a
/// [`DurableDirectory`]: nothing here survives anything.
#[derive(Clone, Debug, Default)]
pub struct MemoryDirectory {
    tree: Arc<RwLock<Tree>>,
}

impl MemoryDirectory {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty directory in an `Arc`.
    pub fn arc() -> Arc<Self> {
        Arc::new(Self::new())
    }

    // The tree's operations change nothing before the last step that can fail, so a panic of another
    // thread leaves no half-made change behind.
    fn read(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn existing(&self, path: &str) -> PersistenceResult<Arc<FileNode>> {
        path::check(path)?;
        self.read().file(path).map_err(failed("open", path))
    }

    fn existing_or_new(&self, operation: &'static str, path: &str) -> PersistenceResult<Arc<FileNode>> {
        path::check(path)?;
        self.write().file_or_new(path).map_err(failed(operation, path))
    }
}

#[deny(clippy::missing_trait_methods)]
impl Directory for MemoryDirectory {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        let node = self.existing_or_new("create", path)?;
        node.set_len(0).map_err(failed("create", path))?;
        Ok(Box::new(MemoryWriter::new(node)))
    }

    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        Ok(Box::new(MemoryAppender::new(self.existing_or_new("append", path)?)))
    }

    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        Ok(Box::new(MemoryReader::new(self.existing(path)?)))
    }

    fn exists(&self, path: &str) -> bool {
        self.try_exists(path).unwrap_or(false)
    }

    fn delete(&self, path: &str) -> PersistenceResult<()> {
        path::check(path)?;
        self.write().remove(path).map_err(failed("delete", path))
    }

    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        path::check(from)?;
        path::check(to)?;
        let mut tree = self.write();
        tree.node(from).map_err(failed("rename", from))?;
        tree.rename(from, to).map_err(failed("rename", to))
    }

    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        path::check_or_root(path)?;
        self.write().make_directories(path).map_err(failed("create directory", path))
    }

    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        path::check_or_root(path)?;
        self.read().names(path).map_err(failed("list", path))
    }

    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        path::check(path)?;
        let temporary = temporary_path(path);
        // A new node, so that whoever has the old one open keeps the old bytes.
        let node = FileNode::new();
        node.write_at(0, data).map_err(failed("write", path))?;
        let mut tree = self.write();
        tree.add_file(&temporary, node).map_err(failed("write", path))?;
        tree.rename(&temporary, path).map_err(|source| {
            // Was added just now, under the same lock.
            let _ = tree.remove(&temporary);
            failed("write", path)(source)
        })
    }

    fn file_path(&self, _path: &str) -> Option<PathBuf> {
        None
    }

    fn as_durable(&self) -> Option<&dyn DurableDirectory> {
        None
    }

    fn backend_name(&self) -> &'static str {
        "memory"
    }

    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        path::check(path)?;
        match self.read().node(path) {
            Ok(_) => Ok(true),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("look up", path)(source)),
        }
    }

    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        Ok(Box::new(MemoryReader::new(self.existing(path)?)))
    }

    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        let node = if options.create_new {
            path::check(path)?;
            let node = FileNode::new();
            self.write().add_file(path, Arc::clone(&node)).map_err(failed("create", path))?;
            node
        } else {
            self.existing(path)?
        };
        MemoryFile::open(node, path, options).map(|file| Box::new(file) as Box<dyn CommitFile>).inspect_err(
            |_| {
                if options.create_new {
                    // Leaves no trace; somebody else may have been faster, which is fine.
                    let _ = self.write().remove(path);
                }
            },
        )
    }

    fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        let node = self.existing_or_new("lock", path)?;
        Ok(Box::new(FileNode::lock(&node, path, wait)?))
    }

    fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> {
        FileNode::lock(&self.existing(path)?, path, wait).map(drop)
    }
}

fn failed(operation: &'static str, path: &str) -> impl Fn(io::Error) -> PersistenceError {
    move |source| PersistenceError::io(operation, path, None, source)
}
