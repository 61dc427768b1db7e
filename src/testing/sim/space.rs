//! Space on a simulated disk: what files take, what they ask for, and what is left.
//!
//! Not here: how a write ends that finds too little (`disk`).

use super::disk::{SimDisk, World};
use super::state::{ChangeKind, Inode, Node};
use std::io;

impl World {
    /// Up to where a write at `offset` finds space.
    pub(super) fn end_of_space(&self, inode: Inode, offset: u64) -> u64 {
        let Some(capacity) = self.knobs.capacity else { return u64::MAX };
        self.bytes_of(inode).max(offset) + capacity.saturating_sub(self.used_bytes())
    }

    /// Bytes that a file takes, or has asked for.
    fn bytes_of(&self, inode: Inode) -> u64 {
        let reserved = self.knobs.reserved.as_ref().and_then(|reserved| reserved.get(&inode));
        let size = self.tree.files.get(inode).map_or(0, Vec::len) as u64;
        size.max(reserved.copied().unwrap_or(0))
    }

    /// The same of all files that have a name.
    fn used_bytes(&self) -> u64 {
        let files = self.tree.names.values().filter_map(|node| match node {
            Node::File(inode) => Some(*inode),
            Node::Directory => None,
        });
        files.map(|inode| self.bytes_of(inode)).sum()
    }

    /// A file asks for space up to `bytes`.
    pub(super) fn reserve(&mut self, inode: Inode, bytes: u64) -> io::Result<()> {
        let more = bytes.saturating_sub(self.bytes_of(inode));
        let left =
            self.knobs.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used_bytes()));
        match &mut self.knobs.reserved {
            Some(_) if more > left => Err(io::ErrorKind::StorageFull.into()),
            Some(reserved) if more > 0 => {
                reserved.insert(inode, bytes);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A new size gives back what was asked for behind it.
    pub(super) fn set_size(&mut self, inode: Inode, bytes: u64) {
        self.change(ChangeKind::SetSize { inode, bytes }, true);
        self.knobs.reserved.as_mut().map(|reserved| reserved.remove(&inode));
    }
}

impl SimDisk {
    /// All files together hold `bytes` at most; `None` lifts the limit. A write that needs more lands as far as
    /// there is room, in whole sectors of 512 bytes, and fails with "no space left".
    pub fn limit_capacity(&self, bytes: Option<u64>) {
        self.world().knobs.capacity = bytes;
    }

    /// From now on space that a file asks for ([`reserve`](crate::storage::CommitFile::reserve)) is its own: it
    /// counts as used, and writes below it find room. Without this, asking does nothing, as where a system cannot
    /// do it.
    pub fn keep_reserved(&self) {
        self.world().knobs.reserved.get_or_insert_default();
    }

    /// Bytes of all files that have a name.
    pub fn used_bytes(&self) -> u64 {
        self.world().used_bytes()
    }
}
