//! What happened on a simulated disk, in order, and what of it is durable since when.

use std::collections::BTreeMap;
use std::fmt;

/// Number of an inode.
pub(super) type Inode = usize;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File(Inode),
}

/// One change, and the operation number at which it became durable.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) kind: ChangeKind,
    pub(super) durable_at: Option<usize>,
    /// Completed changes are covered by the next sync; those in flight are not.
    pub(super) completed: bool,
    /// A sync failed over it: it counts as clean, and no later sync makes it durable.
    pub(super) forgotten: bool,
    /// A write that made its file larger: the size may survive without the bytes.
    pub(super) grows: bool,
}

#[derive(Clone, Debug)]
pub(super) enum ChangeKind {
    Write {
        inode: Inode,
        offset: u64,
        bytes: Vec<u8>,
    },
    SetSize {
        inode: Inode,
        bytes: u64,
    },
    Create {
        path: String,
        node: Node,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    /// Not a change: something the run wants to be known at this point.
    Mark(u64),
    /// Not a change: for the trace.
    Note(String),
}

impl ChangeKind {
    pub(super) fn inode(&self) -> Option<Inode> {
        match self {
            Self::Write { inode, .. } | Self::SetSize { inode, .. } => Some(*inode),
            _ => None,
        }
    }

    /// The directory whose sync makes this durable.
    pub(super) fn directory(&self) -> Option<&str> {
        match self {
            Self::Create { path, .. } | Self::Remove { path } => Some(crate::storage::path::parent(path)),
            Self::Rename { to, .. } => Some(crate::storage::path::parent(to)),
            _ => None,
        }
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { inode, offset, bytes } => write!(f, "write file {inode} {offset}+{}", bytes.len()),
            Self::SetSize { inode, bytes } => write!(f, "set the size of file {inode} to {bytes}"),
            Self::Create { path, node: Node::Directory } => write!(f, "create directory {path}"),
            Self::Create { path, node: Node::File(inode) } => write!(f, "create {path} (file {inode})"),
            Self::Remove { path } => write!(f, "remove {path}"),
            Self::Rename { from, to } => write!(f, "rename {from} to {to}"),
            Self::Mark(value) => write!(f, "MARK {value}"),
            Self::Note(note) => f.write_str(note),
        }
    }
}

/// Names and contents.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) names: BTreeMap<String, Node>,
    pub(super) files: Vec<Vec<u8>>,
}

impl Tree {
    pub(super) fn apply(&mut self, kind: &ChangeKind) {
        match kind {
            ChangeKind::Write { inode, offset, bytes } => self.write(*inode, *offset, bytes),
            ChangeKind::SetSize { inode, bytes } => self.file(*inode).resize(*bytes as usize, 0),
            ChangeKind::Create { path, node } => {
                self.names.insert(path.clone(), *node);
            }
            ChangeKind::Remove { path } => {
                let below = format!("{path}/");
                self.names.retain(|name, _| name != path && !name.starts_with(&below));
            }
            ChangeKind::Rename { from, to } => {
                if let Some(node) = self.names.remove(from) {
                    self.names.insert(to.clone(), node);
                }
            }
            ChangeKind::Mark(_) | ChangeKind::Note(_) => {}
        }
    }

    pub(super) fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) {
        let offset = offset as usize;
        let file = self.file(inode);
        if file.len() < offset + bytes.len() {
            file.resize(offset + bytes.len(), 0);
        }
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn file(&mut self, inode: Inode) -> &mut Vec<u8> {
        if self.files.len() <= inode {
            self.files.resize(inode + 1, Vec::new());
        }
        &mut self.files[inode]
    }

    /// Drops names whose directory does not exist: nobody can reach them.
    pub(super) fn drop_unreachable(&mut self) {
        let reachable = |names: &BTreeMap<String, Node>, path: &str| {
            let mut parent = crate::storage::path::parent(path);
            while !parent.is_empty() {
                if names.get(parent) != Some(&Node::Directory) {
                    return false;
                }
                parent = crate::storage::path::parent(parent);
            }
            true
        };
        let names = self.names.clone();
        self.names.retain(|path, _| reachable(&names, path));
    }
}

/// The history of a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// What the disk held when the run began; durable.
    pub(super) base: Tree,
    pub(super) changes: Vec<Change>,
}

impl History {
    pub(super) fn push(&mut self, kind: ChangeKind, completed: bool) -> usize {
        self.changes.push(Change { kind, durable_at: None, completed, forgotten: false, grows: false });
        self.changes.len() - 1
    }

    /// Everything that a sync of `inode` covers is durable behind the note that the caller makes of it: what
    /// had completed before `before`, and `own`. Not earlier, or no crash would come between the last write
    /// and its sync.
    pub(super) fn sync_file(&mut self, inode: Inode, before: usize, own: Option<usize>) {
        let now = self.changes.len() + 1;
        for (index, change) in self.changes.iter_mut().enumerate() {
            let covered = (index < before && change.completed) || own == Some(index);
            if covered && !change.forgotten && change.kind.inode() == Some(inode) {
                change.durable_at.get_or_insert(now);
            }
        }
    }

    /// A sync of `inode` failed: the kernel forgets that these pages are dirty.
    pub(super) fn fail_sync(&mut self, inode: Inode) {
        for change in &mut self.changes {
            if change.kind.inode() == Some(inode) && change.durable_at.is_none() {
                change.forgotten = true;
            }
        }
    }

    /// As [`sync_file`](Self::sync_file): durable behind the note that follows.
    pub(super) fn sync_directory(&mut self, directory: &str) {
        let now = self.changes.len() + 1;
        for change in &mut self.changes {
            if change.kind.directory() == Some(directory) {
                change.durable_at.get_or_insert(now);
            }
        }
    }
}
