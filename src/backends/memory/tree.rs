//! A tree of names.
//!
//! Lives here: directories and what they hold. Not here: bytes, and everything that waits.
//!
//! Invariant: an operation that fails has changed nothing. The kinds of error are those of a file system:
//! `NotFound` for a missing name or directory on the way, `NotADirectory` for a file on the way,
//! `IsADirectory` where a file is expected.

use super::file::FileNode;
use crate::storage::path;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Node {
    File(Arc<FileNode>),
    Directory(Names),
}

type Names = BTreeMap<String, Node>;

/// The root and all below it.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: Names,
}

impl Tree {
    fn directory(&self, directory_path: &str) -> io::Result<&Names> {
        let mut names = &self.root;
        for component in components(directory_path) {
            names = match names.get(component) {
                Some(Node::Directory(inner)) => inner,
                Some(Node::File(_)) => return Err(ErrorKind::NotADirectory.into()),
                None => return Err(ErrorKind::NotFound.into()),
            };
        }
        Ok(names)
    }

    fn directory_mut(&mut self, directory_path: &str) -> io::Result<&mut Names> {
        let mut names = &mut self.root;
        for component in components(directory_path) {
            names = match names.get_mut(component) {
                Some(Node::Directory(inner)) => inner,
                Some(Node::File(_)) => return Err(ErrorKind::NotADirectory.into()),
                None => return Err(ErrorKind::NotFound.into()),
            };
        }
        Ok(names)
    }

    /// What has this name.
    pub(super) fn node(&self, path: &str) -> io::Result<&Node> {
        let names = self.directory(path::parent(path))?;
        names.get(path::file_name(path)).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// The file of this name.
    pub(super) fn file(&self, path: &str) -> io::Result<Arc<FileNode>> {
        match self.node(path)? {
            Node::File(node) => Ok(Arc::clone(node)),
            Node::Directory(_) => Err(ErrorKind::IsADirectory.into()),
        }
    }

    /// The file of this name, made empty when there is none.
    pub(super) fn file_or_new(&mut self, path: &str) -> io::Result<Arc<FileNode>> {
        match self.file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let node = FileNode::new();
                self.add_file(path, Arc::clone(&node))?;
                Ok(node)
            }
            other => other,
        }
    }

    /// Gives a file a name that is not taken.
    pub(super) fn add_file(&mut self, path: &str, node: Arc<FileNode>) -> io::Result<()> {
        let names = self.directory_mut(path::parent(path))?;
        let name = path::file_name(path);
        if names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        names.insert(name.to_owned(), Node::File(node));
        Ok(())
    }

    /// Removes a file, or a directory with all that is in it.
    pub(super) fn remove(&mut self, path: &str) -> io::Result<()> {
        let names = self.directory_mut(path::parent(path))?;
        names.remove(path::file_name(path)).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Gives what is named `from` the name `to`.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let source = self.node(from)?;
        if from == to {
            return Ok(());
        }
        let into_itself = to.strip_prefix(from).is_some_and(|rest| rest.starts_with('/'));
        if into_itself && matches!(source, Node::Directory(_)) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let target = match self.node(to) {
            Ok(node) => Some(node),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match (source, target) {
            (Node::File(_), Some(Node::Directory(_))) => return Err(ErrorKind::IsADirectory.into()),
            (Node::Directory(_), Some(Node::File(_))) => return Err(ErrorKind::NotADirectory.into()),
            (Node::Directory(_), Some(Node::Directory(names))) if !names.is_empty() => {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            _ => {}
        }
        self.directory(path::parent(to))?;
        // Nothing below can fail: both directories were found.
        let moved = self.directory_mut(path::parent(from))?.remove(path::file_name(from));
        if let Some(node) = moved {
            self.directory_mut(path::parent(to))?.insert(path::file_name(to).to_owned(), node);
        }
        Ok(())
    }

    /// Makes a directory and its ancestors.
    pub(super) fn make_directories(&mut self, path: &str) -> io::Result<()> {
        let mut names = &mut self.root;
        for component in components(path) {
            let node = names.entry(component.to_owned()).or_insert_with(|| Node::Directory(Names::new()));
            names = match node {
                Node::Directory(inner) => inner,
                Node::File(_) => return Err(ErrorKind::NotADirectory.into()),
            };
        }
        Ok(())
    }

    /// The names in a directory, sorted.
    pub(super) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        Ok(self.directory(path)?.keys().cloned().collect())
    }
}

/// None for the root.
fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|component| !component.is_empty())
}
