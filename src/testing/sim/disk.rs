//! The directory side of a simulated disk.

use super::file::SimFile;
use super::state::{ChangeKind, History, Inode, Node, Tree};
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{
    CommitFile, Directory, DirectoryLock, DurableDirectory, FileOptions, ReadAt, path, temporary_path,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What lands of a write that fails ends on a multiple of this, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A disk in memory that remembers what is durable. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    pub(super) shared: Arc<Mutex<World>>,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(super) struct World {
    /// What a running process sees.
    pub(super) tree: Tree,
    pub(super) history: History,
    pub(super) next_inode: Inode,
    pub(super) random: u64,
    locks: BTreeSet<String>,
    pub(super) locked_inodes: BTreeSet<Inode>,
    pub(super) knobs: Knobs,
}

/// What a disk does besides its work.
#[derive(Clone, Debug, Default)]
pub(super) struct Knobs {
    /// How many syncs succeed before one fails.
    failing_sync: Option<u64>,
    /// The same for writes.
    failing_write: Option<u64>,
    /// Bytes of all files together, at most.
    pub(super) capacity: Option<u64>,
    /// Up to where files have asked for space, in bytes; `None`: asking does nothing.
    pub(super) reserved: Option<BTreeMap<Inode, u64>>,
    /// A write to a stream takes a part of what it is asked to.
    short_writes: bool,
    /// Commits that may be in flight at once; as many as a disk of ours takes unless told.
    pub(super) in_flight_max: Option<usize>,
    /// Syncs and durable commits promise and do nothing.
    pub(super) lying: bool,
    /// How long each completion takes.
    pub(super) pause: Option<Duration>,
    /// Files say that they write directly; how they keep what was written stays as it is.
    pub(super) direct: bool,
}

/// Counts a call; `true` when this is the one that fails.
fn strikes(left: &mut Option<u64>) -> bool {
    match left {
        Some(0) => {
            *left = None;
            true
        }
        Some(more) => {
            *more -= 1;
            false
        }
        None => false,
    }
}

/// What a write comes to.
pub(super) enum Fate {
    Whole,
    /// So many bytes land, and the write fails.
    Fails {
        landed: usize,
        error: io::Error,
    },
}

impl World {
    pub(super) fn change(&mut self, kind: ChangeKind, completed: bool) -> usize {
        let grows = match &kind {
            ChangeKind::Write { inode, offset, bytes } => {
                self.tree.file(*inode).len() < *offset as usize + bytes.len()
            }
            _ => false,
        };
        self.tree.apply(&kind);
        let index = self.history.push(kind, completed);
        self.history.changes[index].grows = grows;
        index
    }

    /// Counts a sync; `true` when this is the one that fails.
    pub(super) fn sync_fails(&mut self) -> bool {
        strikes(&mut self.knobs.failing_sync)
    }

    /// Counts a write, and says how it ends.
    pub(super) fn write_fate(&mut self, inode: Inode, offset: u64, bytes: usize) -> Fate {
        if strikes(&mut self.knobs.failing_write) {
            // Some sectors are in the page cache, or on the disk: nobody knows.
            let sectors = bytes as u64 / SECTOR_BYTES + 1;
            let landed = (self.next_random() % sectors * SECTOR_BYTES) as usize;
            return Fate::Fails { landed: landed.min(bytes), error: io::Error::from_raw_os_error(5) };
        }
        let end = self.end_of_space(inode, offset);
        if offset + bytes as u64 <= end {
            return Fate::Whole;
        }
        // Space is given out by the sector, at least.
        let landed = (end / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(offset) as usize;
        Fate::Fails { landed, error: io::ErrorKind::StorageFull.into() }
    }

    /// Writes as far as fate lets it. What has landed of a write that failed is no sync's business any more.
    pub(super) fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        bytes: Vec<u8>,
        completed: bool,
    ) -> (Option<usize>, io::Result<()>) {
        let (landed, result) = match self.write_fate(inode, offset, bytes.len()) {
            Fate::Whole => (bytes.len(), Ok(())),
            Fate::Fails { landed, error } => (landed, Err(error)),
        };
        let mut bytes = bytes;
        bytes.truncate(landed);
        let change = (landed > 0).then(|| self.change(ChangeKind::Write { inode, offset, bytes }, completed));
        if let Err(error) = &result {
            if let Some(change) = change {
                self.history.changes[change].forgotten = true;
            }
            self.history.push(ChangeKind::Note(format!("write file {inode} {offset} FAILS: {error}")), true);
        }
        (change, result)
    }

    /// SplitMix64.
    pub(super) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl SimDisk {
    /// An empty disk. The seed orders completions of commits that are in flight together.
    pub fn new(seed: u64) -> Self {
        Self::with_tree(Tree::default(), seed)
    }

    pub(super) fn with_tree(tree: Tree, seed: u64) -> Self {
        let named = tree.names.values().filter_map(|node| match node {
            Node::File(inode) => Some(inode + 1),
            Node::Directory => None,
        });
        // A file that was created and never written has a name and no contents.
        let next_inode = named.max().unwrap_or(0).max(tree.files.len());
        let history = History { base: tree.clone(), changes: Vec::new() };
        let world = World {
            tree,
            history,
            next_inode,
            random: seed,
            locks: BTreeSet::new(),
            locked_inodes: BTreeSet::new(),
            knobs: Knobs::default(),
        };
        Self { shared: Arc::new(Mutex::new(world)) }
    }

    /// Notes a value at this point of the run: every crash after it hands it to the property.
    pub fn mark(&self, value: u64) {
        self.world().history.push(ChangeKind::Mark(value), true);
    }

    /// After `successes` more syncs (of files; durable commits count), one fails with EIO, once. The pages
    /// that it covered count as clean afterwards, as Linux has it.
    pub fn fail_sync_after(&self, successes: u64) {
        self.world().knobs.failing_sync = Some(successes);
    }

    /// After `successes` more writes (to streams or in commits), one fails with EIO, once. Some of its leading
    /// sectors have landed, and may survive or not, whatever is synced later.
    pub fn fail_write_after(&self, successes: u64) {
        self.world().knobs.failing_write = Some(successes);
    }

    /// From now on a write to a stream takes a part of what it is asked to, as `write` is free to.
    pub fn shorten_writes(&self) {
        self.world().knobs.short_writes = true;
    }

    /// How many commits each file keeps in flight, at least 1. They complete in an order that the disk's seed
    /// chooses.
    pub fn keep_in_flight(&self, commits_max: usize) {
        self.world().knobs.in_flight_max = Some(commits_max.max(1));
    }

    /// From now on files say that they write past a page cache ([`CommitStrategy::DirectDsync`]): nothing that is
    /// written may depend on it. But for [streams](crate::storage::FileOptions::streamed), which go through one, and
    /// keep one commit in flight.
    ///
    /// [`CommitStrategy::DirectDsync`]: crate::storage::CommitStrategy::DirectDsync
    pub fn write_directly(&self) {
        self.world().knobs.direct = true;
    }

    /// From now on syncs promise and do nothing: for showing that a property would notice.
    pub fn lie_about_syncs(&self) {
        self.world().knobs.lying = true;
    }

    /// From now on each completion of a commit takes this long, in real time: threads that share a log then
    /// meet more of each other's commits in flight.
    pub fn slow_down(&self, pause: Duration) {
        self.world().knobs.pause = Some(pause);
    }

    /// How many operations the run has done.
    pub fn operations(&self) -> usize {
        self.world().history.changes.len()
    }

    /// The disk after the process died and the machine did not: everything that was written, nothing made
    /// durable by that, no locks. What the predecessor left volatile stays so.
    pub fn after_kill(&self) -> Self {
        let world = self.world();
        let killed = World {
            tree: world.tree.clone(),
            history: world.history.clone(),
            next_inode: world.next_inode,
            random: world.random,
            locks: BTreeSet::new(),
            locked_inodes: BTreeSet::new(),
            knobs: Knobs::default(),
        };
        Self { shared: Arc::new(Mutex::new(killed)) }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn io(operation: &'static str, path: &str, kind: io::ErrorKind) -> PersistenceError {
        PersistenceError::io(operation, path, None, io::Error::from(kind))
    }

    fn existing_file(world: &World, operation: &'static str, path: &str) -> PersistenceResult<Inode> {
        path::check(path)?;
        match world.tree.names.get(path) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Directory) => Err(Self::io(operation, path, io::ErrorKind::IsADirectory)),
            None => Err(PersistenceError::NotFound { path: path.to_owned() }),
        }
    }

    fn check_parent(world: &World, path: &str) -> PersistenceResult<()> {
        path::check(path)?;
        let parent = path::parent(path);
        if parent.is_empty() || world.tree.names.get(parent) == Some(&Node::Directory) {
            return Ok(());
        }
        Err(PersistenceError::NotFound { path: path.to_owned() })
    }

    fn new_file(world: &mut World, path: &str) -> PersistenceResult<Inode> {
        Self::check_parent(world, path)?;
        let inode = world.next_inode;
        world.next_inode += 1;
        world.tree.file(inode);
        world.change(ChangeKind::Create { path: path.to_owned(), node: Node::File(inode) }, true);
        Ok(inode)
    }

    fn open_writer(&self, path: &str, truncate: bool) -> PersistenceResult<Box<dyn Write + Send>> {
        let mut world = self.world();
        let inode = match Self::existing_file(&world, "open", path) {
            Ok(inode) => inode,
            Err(error) if error.is_not_found() => Self::new_file(&mut world, path)?,
            Err(error) => return Err(error),
        };
        if truncate && !world.tree.file(inode).is_empty() {
            world.change(ChangeKind::SetSize { inode, bytes: 0 }, true);
        }
        let offset = world.tree.file(inode).len() as u64;
        Ok(Box::new(Stream { disk: self.clone(), inode, offset }))
    }

    fn open_sim_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        let mut world = self.world();
        let found = Self::existing_file(&world, "open", path);
        let inode = match (options.create_new, found) {
            (true, Ok(_)) => return Err(Self::io("create", path, io::ErrorKind::AlreadyExists)),
            (true, Err(error)) if error.is_not_found() => Self::new_file(&mut world, path)?,
            (_, found) => found?,
        };
        if options.lock && !world.locked_inodes.insert(inode) {
            let reason = "its writer is at work".to_owned();
            return Err(PersistenceError::LockFailed { resource: path.to_owned(), reason });
        }
        let size = world.tree.file(inode).len() as u64;
        if options.zero_filled_bytes > size {
            let bytes = vec![0; (options.zero_filled_bytes - size) as usize];
            let (_, written) = world.write(inode, size, bytes, true);
            if let Err(source) = written {
                if options.create_new {
                    // As the real ones: a file that could not be made whole is not left behind.
                    world.change(ChangeKind::Remove { path: path.to_owned() }, true);
                }
                return Err(PersistenceError::io("zero-fill", path, Some(size), source));
            }
            let before = world.history.changes.len();
            world.history.sync_file(inode, before, None);
            world.history.push(ChangeKind::Note(format!("{path} is zero-filled")), true);
        }
        drop(world);
        Ok(Box::new(SimFile::new(self.clone(), path, inode, options)))
    }
}

struct Stream {
    disk: SimDisk,
    inode: Inode,
    offset: u64,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut world = self.disk.world();
        let taken = if world.knobs.short_writes { bytes.len().div_ceil(2) } else { bytes.len() };
        let (_, written) = world.write(self.inode, self.offset, bytes[..taken].to_vec(), true);
        written?;
        self.offset += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Reader {
    disk: SimDisk,
    inode: Inode,
    position: u64,
}

impl ReadAt for Reader {
    fn size(&self) -> PersistenceResult<u64> {
        Ok(self.disk.world().tree.file(self.inode).len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        let mut world = self.disk.world();
        let file = world.tree.file(self.inode);
        let from = (offset as usize).min(file.len());
        let count = buffer.len().min(file.len() - from);
        buffer[..count].copy_from_slice(&file[from..from + count]);
        Ok(count)
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read_at(self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Lets go of a name when it is dropped.
#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: String,
    inode: Inode,
}

impl DirectoryLock for SimLock {
    fn is_exclusive(&self) -> bool {
        true
    }

    fn is_held(&self) -> PersistenceResult<bool> {
        Ok(self.disk.world().tree.names.get(&self.path) == Some(&Node::File(self.inode)))
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.world().locks.remove(&self.path);
    }
}

#[deny(clippy::missing_trait_methods)]
impl Directory for SimDisk {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.open_writer(path, true)
    }

    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.open_writer(path, false)
    }

    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        let inode = Self::existing_file(&self.world(), "open", path)?;
        Ok(Box::new(Reader { disk: self.clone(), inode, position: 0 }))
    }

    fn exists(&self, path: &str) -> bool {
        self.try_exists(path).unwrap_or(false)
    }

    fn delete(&self, path: &str) -> PersistenceResult<()> {
        path::check(path)?;
        let mut world = self.world();
        if !world.tree.names.contains_key(path) {
            return Err(PersistenceError::NotFound { path: path.to_owned() });
        }
        world.change(ChangeKind::Remove { path: path.to_owned() }, true);
        Ok(())
    }

    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        let mut world = self.world();
        Self::existing_file(&world, "rename", from)?;
        Self::check_parent(&world, to)?;
        world.change(ChangeKind::Rename { from: from.to_owned(), to: to.to_owned() }, true);
        Ok(())
    }

    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        path::check_or_root(path)?;
        let mut world = self.world();
        let mut made = String::new();
        for component in path.split('/').filter(|component| !component.is_empty()) {
            made = path::join(&made, component);
            match world.tree.names.get(&made) {
                Some(Node::Directory) => {}
                Some(Node::File(_)) => {
                    return Err(Self::io("create directory", path, io::ErrorKind::NotADirectory));
                }
                None => {
                    world.change(ChangeKind::Create { path: made.clone(), node: Node::Directory }, true);
                }
            }
        }
        Ok(())
    }

    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        path::check_or_root(path)?;
        let world = self.world();
        if !path.is_empty() && world.tree.names.get(path) != Some(&Node::Directory) {
            return Err(PersistenceError::NotFound { path: path.to_owned() });
        }
        let inside = world.tree.names.keys().filter(|name| path::parent(name) == path);
        Ok(inside.map(|name| path::file_name(name).to_owned()).collect())
    }

    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        let temporary = temporary_path(path);
        io::Write::write_all(&mut self.create_file(&temporary)?, data)
            .map_err(|source| PersistenceError::io("write", path, None, source))?;
        self.atomic_rename(&temporary, path)
    }

    fn file_path(&self, _path: &str) -> Option<PathBuf> {
        None
    }

    fn as_durable(&self) -> Option<&dyn DurableDirectory> {
        Some(self)
    }

    fn backend_name(&self) -> &'static str {
        "the simulated disk"
    }

    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        path::check(path)?;
        Ok(self.world().tree.names.contains_key(path))
    }

    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        let inode = Self::existing_file(&self.world(), "open", path)?;
        Ok(Box::new(Reader { disk: self.clone(), inode, position: 0 }))
    }

    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        self.open_sim_file(path, options)
    }

    fn lock(&self, path: &str, _wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        let mut world = self.world();
        let inode = match Self::existing_file(&world, "lock", path) {
            Err(error) if error.is_not_found() => Self::new_file(&mut world, path)?,
            found => found?,
        };
        if !world.locks.insert(path.to_owned()) {
            let reason = "another writer holds it".to_owned();
            return Err(PersistenceError::LockFailed { resource: path.to_owned(), reason });
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned(), inode }))
    }

    fn await_unlocked(&self, path: &str, _wait: Duration) -> PersistenceResult<()> {
        let world = self.world();
        let inode = Self::existing_file(&world, "lock", path)?;
        if world.locked_inodes.contains(&inode) {
            let reason = "its writer is at work".to_owned();
            return Err(PersistenceError::LockFailed { resource: path.to_owned(), reason });
        }
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
impl DurableDirectory for SimDisk {
    fn open_durable_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        self.open_sim_file(path, options)
    }

    fn sync_file(&self, path: &str) -> PersistenceResult<()> {
        let mut world = self.world();
        let inode = Self::existing_file(&world, "sync", path)?;
        if world.sync_fails() {
            world.history.fail_sync(inode);
            world.history.push(ChangeKind::Note(format!("sync of {path} FAILS")), true);
            return Err(PersistenceError::io("sync", path, None, io::Error::from_raw_os_error(5)));
        }
        if !world.knobs.lying {
            let before = world.history.changes.len();
            world.history.sync_file(inode, before, None);
        }
        world.history.push(ChangeKind::Note(format!("sync file {path}")), true);
        Ok(())
    }

    fn sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        path::check(path)?;
        let mut world = self.world();
        let parent = path::parent(path).to_owned();
        if !world.knobs.lying {
            world.history.sync_directory(&parent);
        }
        world.history.push(ChangeKind::Note(format!("sync directory {parent:?}")), true);
        Ok(())
    }

    fn create_dir_all_durable(&self, path: &str) -> PersistenceResult<()> {
        self.create_dir_all(path)?;
        let mut directory = path;
        while !directory.is_empty() {
            self.sync_parent_dir(directory)?;
            directory = path::parent(directory);
        }
        Ok(())
    }

    fn atomic_rename_durable(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.atomic_rename(from, to)?;
        self.sync_parent_dir(from)?;
        self.sync_parent_dir(to)
    }

    fn atomic_write_durable(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        let temporary = temporary_path(path);
        io::Write::write_all(&mut self.create_file(&temporary)?, data)
            .map_err(|source| PersistenceError::io("write", path, None, source))?;
        self.sync_file(&temporary)?;
        self.atomic_rename_durable(&temporary, path)
    }

    fn delete_durable(&self, path: &str) -> PersistenceResult<()> {
        self.delete(path)?;
        self.sync_parent_dir(path)
    }

    fn durable_sync_file(&self, path: &str) -> PersistenceResult<()> {
        self.sync_file(path)
    }

    fn durable_sync_parent_dir(&self, path: &str) -> PersistenceResult<()> {
        self.sync_parent_dir(path)
    }
}
