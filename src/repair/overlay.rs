//! A directory as it would be after the steps of a plan. Read-only.

use super::plan::RepairStep;
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{Directory, ReadAt, path};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// The files of `inner` without what was moved away, and cut where they are to be cut.
#[derive(Debug)]
pub struct Planned<D: Directory + ?Sized> {
    inner: Arc<D>,
    away: BTreeSet<String>,
    cuts: BTreeMap<String, u64>,
}

impl<D: Directory + ?Sized> Planned<D> {
    pub(super) fn new(inner: Arc<D>, steps: &[RepairStep]) -> Self {
        let (mut away, mut cuts) = (BTreeSet::new(), BTreeMap::new());
        for step in steps {
            match step {
                RepairStep::Cut { path, offset, .. } => {
                    cuts.insert(path.clone(), *offset);
                }
                RepairStep::MoveAway { path, .. } => {
                    away.insert(path.clone());
                }
            }
        }
        Self { inner, away, cuts }
    }

    fn refuse<T>(&self, operation: &'static str) -> PersistenceResult<T> {
        Err(PersistenceError::not_supported(operation, self.backend_name()))
    }

    fn check(&self, path: &str) -> PersistenceResult<()> {
        if self.away.contains(path) {
            return Err(PersistenceError::NotFound { path: path.to_owned() });
        }
        Ok(())
    }
}

impl<D: Directory + ?Sized> Directory for Planned<D> {
    fn create_file(&self, _path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.refuse("create")
    }

    fn append_file(&self, _path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.refuse("append")
    }

    fn open_file(&self, _path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        self.refuse("read as a stream")
    }

    fn exists(&self, path: &str) -> bool {
        !self.away.contains(path) && self.inner.exists(path)
    }

    fn delete(&self, _path: &str) -> PersistenceResult<()> {
        self.refuse("delete")
    }

    fn atomic_rename(&self, _from: &str, _to: &str) -> PersistenceResult<()> {
        self.refuse("rename")
    }

    fn create_dir_all(&self, _path: &str) -> PersistenceResult<()> {
        self.refuse("create directory")
    }

    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        let names = self.inner.list_dir(path)?;
        Ok(names.into_iter().filter(|name| !self.away.contains(&path::join(path, name))).collect())
    }

    fn atomic_write(&self, _path: &str, _data: &[u8]) -> PersistenceResult<()> {
        self.refuse("write")
    }

    fn file_path(&self, path: &str) -> Option<PathBuf> {
        self.inner.file_path(path)
    }

    fn backend_name(&self) -> &'static str {
        "a plan"
    }

    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        if self.away.contains(path) { Ok(false) } else { self.inner.try_exists(path) }
    }

    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        self.check(path)?;
        let file = self.inner.open_at(path)?;
        match self.cuts.get(path) {
            Some(bytes) => Ok(Box::new(CutFile { file, bytes: *bytes })),
            None => Ok(file),
        }
    }
}

struct CutFile {
    file: Box<dyn ReadAt>,
    bytes: u64,
}

impl ReadAt for CutFile {
    fn size(&self) -> PersistenceResult<u64> {
        Ok(self.file.size()?.min(self.bytes))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        let rest = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(rest);
        self.file.read_at(offset, &mut buffer[..count])
    }
}
