//! Files of the operating system: opened, read at an offset, written through commits.
//!
//! Lives here: [`StdFile`], the portable [`CommitFile`], and how a file is opened and zero-filled for
//! commits. Not here: names and directories.
//!
//! Invariants: no call moves or uses a descriptor's position; a sync goes through the descriptor that
//! wrote; after the first failed write or sync nothing is written any more; no lock is held during I/O.

use crate::backends::check_extent;
use crate::backends::write_back::WriteBack;
use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::ZERO_FILL_BYTES;
use crate::planted;
use crate::storage::{
    Commit, CommitFile, CommitLimits, CommitStrategy, Completion, Effect, FileOptions, Latch, ReadAt,
    StrategyReason, Submitted, Wait,
};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Opens a file that is a regular one: a directory opens for reading on some systems, and a pipe would
/// answer with other bytes each time.
pub(super) fn open_regular(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Opens a regular file for reading. A pipe is not waited for: its other end may never be opened.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK);
    open_regular(&options, path)
}

/// Opens, locks and zero-fills; leaves no trace when that fails.
pub(super) fn open_for_commits(
    resolved: &Path,
    path: &str,
    options: &FileOptions,
) -> PersistenceResult<File> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).create_new(options.create_new);
    let operation = if options.create_new { "create" } else { "open" };
    let file =
        open_regular(&how, resolved).map_err(|source| PersistenceError::io(operation, path, None, source))?;
    prepare(&file, path, options).inspect_err(|_| {
        if options.create_new {
            // Best effort; the first error is the one that matters.
            let _ = fs::remove_file(resolved);
        }
    })?;
    Ok(file)
}

fn prepare(file: &File, path: &str, options: &FileOptions) -> PersistenceResult<()> {
    if options.uncached && !planted::on("believe_page_cache") {
        set_direct(file, true);
    }
    #[cfg(unix)]
    if options.lock {
        // Nobody else has it, but a child that is just being started holds what this process had open a moment ago.
        let wait = std::time::Duration::from_millis(crate::limits::LOCK_FILE_WAIT_MS);
        super::lock::lock_file(file, path, wait)?;
    }
    let size = size_of(file, path)?;
    if size >= options.zero_filled_bytes {
        return Ok(());
    }
    zero_fill_or_restore(file, path, size..options.zero_filled_bytes, reserve)
}

/// Lengthens the file by zeros; when that fails, it is as it was, and reserved blocks are given back.
pub(super) fn zero_fill_or_restore(
    file: &File,
    path: &str,
    range: Range<u64>,
    reserve: impl FnOnce(&File, Range<u64>) -> io::Result<()>,
) -> PersistenceResult<()> {
    let size_before = range.start;
    // A full disk says so at once, and the blocks lie together. They stay unwritten, so zeros follow.
    reserve(file, range.clone())
        .map_err(|source| PersistenceError::io("reserve space", path, Some(size_before), source))
        .and_then(|()| zero_fill(file, path, range))
        .inspect_err(|_| {
            // Best effort; the first error is the one that matters.
            let _ = file.set_len(size_before);
        })
}

/// Writes zeros and makes them, and the size, durable.
fn zero_fill(file: &File, path: &str, Range { start: from, end: to }: Range<u64>) -> PersistenceResult<()> {
    let chunk = usize::try_from(to - from).map_or(ZERO_FILL_BYTES, |bytes| bytes.min(ZERO_FILL_BYTES));
    let zeros = vec![0; chunk];
    let mut offset = from;
    if planted::on("reserve_and_not_write") {
        file.set_len(to).map_err(|source| PersistenceError::io("set the size", path, Some(to), source))?;
        offset = to;
    }
    while offset < to {
        let count = usize::try_from(to - offset).map_or(chunk, |left| left.min(chunk));
        write_all_at(file, &zeros[..count], offset)
            .map_err(|(at, source)| PersistenceError::io("zero-fill", path, Some(at), source))?;
        offset += count as u64;
    }
    if planted::on("skip_zero_fill_sync") {
        return Ok(());
    }
    file.sync_all().map_err(|source| PersistenceError::io("sync", path, None, source))
}

/// Asks for blocks behind the end of the file. Only a full disk or quota is an answer that counts, and that no file can
/// be so large, which the writes that follow would find only when they had filled the disk; whatever else is wrong, they
/// find.
#[cfg(target_os = "linux")]
fn reserve(file: &File, range: Range<u64>) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    let (Ok(offset), Ok(bytes)) = (range.start.try_into(), (range.end - range.start).try_into()) else {
        return Err(io::ErrorKind::FileTooLarge.into());
    };
    loop {
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes) {
            Err(Errno::EINTR) => {}
            Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => return Err(error.into()),
            Ok(()) | Err(_) => return Ok(()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_file: &File, _range: Range<u64>) -> io::Result<()> {
    Ok(())
}

/// Turns direct I/O on or off; answers whether it was changed.
#[cfg(target_os = "linux")]
fn set_direct(file: &File, direct: bool) -> bool {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let Ok(flags) = fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain) else { return false };
    let mut wanted = flags;
    wanted.set(OFlag::O_DIRECT, direct);
    wanted != flags && fcntl(file, FcntlArg::F_SETFL(wanted)).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn set_direct(_file: &File, _direct: bool) -> bool {
    false
}

fn size_of(file: &File, path: &str) -> PersistenceResult<u64> {
    file.metadata()
        .map(|metadata| metadata.len())
        .map_err(|source| PersistenceError::io("read the size", path, None, source))
}

/// A file open for reading at any offset.
pub(super) struct StdReader {
    file: File,
    path: String,
}

impl StdReader {
    pub(super) fn new(file: File, path: &str) -> Self {
        Self { file, path: path.to_owned() }
    }
}

impl ReadAt for StdReader {
    fn size(&self) -> PersistenceResult<u64> {
        size_of(&self.file, &self.path)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset.saturating_add(filled as u64);
            match read_some_at(&self.file, &mut buffer[filled..], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(PersistenceError::io("read", self.path.as_str(), Some(at), source));
                }
            }
        }
        Ok(filled)
    }
}

/// A file whose commits are a `pwrite` and, when durable, an `fdatasync` of the same descriptor, both by
/// the thread that submits.
///
/// On macOS the sync is `fcntl(F_FULLFSYNC)`, on Windows `FlushFileBuffers`, as the standard library's
/// `File::sync_data` has it.
#[derive(Debug)]
pub struct StdFile {
    file: File,
    path: String,
    reason: StrategyReason,
    latch: Latch,
    pages: WriteBack,
    slot: Mutex<Slot>,
    /// Signalled when `slot` leaves `Busy` while somebody waits for that.
    changed: Condvar,
}

/// The one place for a commit, protected by its mutex, which is never held during I/O.
#[derive(Debug)]
struct Slot {
    state: State,
    /// Threads that wait for the end of `Busy`.
    waiting: usize,
    /// The size was set since the last sync, and a data sync need not carry that.
    size_is_dirty: bool,
}

#[derive(Debug)]
enum State {
    /// Nothing in flight.
    Free,
    /// Some thread writes, syncs or sets the size.
    Busy,
    /// Waits to be reaped.
    Done(Completion),
}

impl StdFile {
    /// Takes over a file that is open for writing.
    pub(crate) fn new(file: File, path: &str) -> Self {
        let slot = Slot { state: State::Free, waiting: 0, size_is_dirty: false };
        Self {
            file,
            path: path.to_owned(),
            reason: StrategyReason::Only,
            latch: Latch::new(),
            pages: WriteBack::default(),
            slot: Mutex::new(slot),
            changed: Condvar::new(),
        }
    }

    /// Why it commits in this way, where there were others.
    #[allow(dead_code, reason = "for backends that can commit in other ways")]
    pub(crate) fn because(self, reason: StrategyReason) -> Self {
        Self { reason, ..self }
    }

    /// A panic cannot leave the slot half changed, so poisoning carries no news.
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the slot; says whether the size has to be synced as well.
    fn begin(&self, operation: &'static str) -> PersistenceResult<bool> {
        let mut slot = self.slot();
        self.latch.check(0)?;
        if !matches!(slot.state, State::Free) {
            return Err(PersistenceError::invalid_state(
                operation,
                "a commit is in flight already, and this file keeps one at a time",
            ));
        }
        slot.state = State::Busy;
        Ok(slot.size_is_dirty)
    }

    fn end(&self, state: State, size_is_dirty: bool) {
        let mut slot = self.slot();
        slot.state = state;
        slot.size_is_dirty = size_is_dirty;
        // Waking costs a system call, so only when there is somebody.
        let wake = slot.waiting > 0;
        drop(slot);
        if wake {
            self.changed.notify_all();
        }
    }

    fn perform(&self, commit: &Commit, with_size: bool) -> PersistenceResult<()> {
        let bytes = &commit.buffer[commit.range.clone()];
        let written = match write_all_at(&self.file, bytes, commit.offset) {
            // Direct writes of this place or size are none that the device takes.
            Err((at, error))
                if error.kind() == io::ErrorKind::InvalidInput && set_direct(&self.file, false) =>
            {
                write_all_at(&self.file, &bytes[(at - commit.offset) as usize..], at)
            }
            written => written,
        };
        written
            .map_err(|(at, source)| PersistenceError::io("write", self.path.as_str(), Some(at), source))?;
        self.pages.flushed(commit.offset..commit.offset + bytes.len() as u64);
        if commit.effect == Effect::Flushed {
            self.pages.begin(&self.file);
            return Ok(());
        }
        self.pages.synced();
        if planted::on("skip_fdatasync") {
            return Ok(());
        }
        let with_size = with_size && !planted::on("size_is_no_metadata");
        let synced = if with_size { self.file.sync_all() } else { self.file.sync_data() };
        synced.map_err(|source| PersistenceError::io("sync", self.path.as_str(), None, source))
    }

    /// Waits as told while another thread is busy.
    fn wait_while_busy(&self, wait: Wait) -> MutexGuard<'_, Slot> {
        let mut slot = self.slot();
        if wait == Wait::Never || !matches!(slot.state, State::Busy) {
            return slot;
        }
        slot.waiting += 1;
        let busy = |slot: &mut Slot| matches!(slot.state, State::Busy);
        let mut slot = match wait {
            Wait::AtMost(time) => {
                let waited = self.changed.wait_timeout_while(slot, time, busy);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            _ => self.changed.wait_while(slot, busy).unwrap_or_else(PoisonError::into_inner),
        };
        slot.waiting -= 1;
        slot
    }
}

impl CommitFile for StdFile {
    fn limits(&self) -> CommitLimits {
        CommitLimits { in_flight_max: 1, alignment: 1, durable: true }
    }

    fn strategy(&self) -> CommitStrategy {
        CommitStrategy::WriteThenSync
    }

    fn strategy_reason(&self) -> StrategyReason {
        self.reason.clone()
    }

    fn submit(&self, commit: Commit) -> Submitted {
        let begun = check_extent(&commit).and_then(|()| self.begin("commit"));
        let size_is_dirty = match begun {
            Ok(size_is_dirty) => size_is_dirty,
            Err(error) => return Submitted::Refused { commit, error },
        };
        let result = self.perform(&commit, size_is_dirty).map_err(|error| self.latch.trip(error));
        let still_dirty = size_is_dirty && (commit.effect == Effect::Flushed || result.is_err());
        self.end(State::Done(Completion { id: commit.id, buffer: commit.buffer, result }), still_dirty);
        Submitted::Accepted
    }

    fn start(&self) -> PersistenceResult<()> {
        Ok(())
    }

    fn reap(&self, wait: Wait) -> PersistenceResult<Option<Completion>> {
        let mut slot = self.wait_while_busy(wait);
        if !matches!(slot.state, State::Done(_)) {
            return Ok(None);
        }
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Done(completion) => Ok(Some(completion)),
            State::Free | State::Busy => Ok(None),
        }
    }

    fn size(&self) -> PersistenceResult<u64> {
        size_of(&self.file, &self.path)
    }

    fn set_size(&self, bytes: u64) -> PersistenceResult<()> {
        self.begin("set the size")?;
        let result = self.file.set_len(bytes).map_err(|source| {
            self.latch.trip(PersistenceError::io("set the size", self.path.as_str(), Some(bytes), source))
        });
        self.end(State::Free, true);
        result
    }

    fn reserve(&self, bytes: u64) -> PersistenceResult<()> {
        reserve_file(&self.file, self.path.as_str(), bytes)
    }
}

/// [`CommitFile::reserve`] for a file of the operating system.
pub(crate) fn reserve_file(file: &File, path: &str, bytes: u64) -> PersistenceResult<()> {
    let size = size_of(file, path)?;
    if size >= bytes {
        return Ok(());
    }
    reserve(file, size..bytes)
        .map_err(|source| PersistenceError::io("reserve space", path, Some(size), source))
}

/// Writes all of `bytes`; on failure says at which offset.
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> Result<(), (u64, io::Error)> {
    while !bytes.is_empty() {
        match write_some_at(file, bytes, offset) {
            Ok(0) => return Err((offset, io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                bytes = &bytes[if planted::on("ignore_short_pwrite") { bytes.len() } else { count }..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if planted::on("full_disk_is_success") && error.raw_os_error() == Some(28) => break,
            Err(error) => return Err((offset, error)),
        }
    }
    Ok(())
}

#[cfg(unix)]
use std::os::unix::fs::FileExt;
#[cfg(windows)]
use std::os::windows::fs::FileExt;

#[cfg(unix)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buffer, offset)
}

#[cfg(unix)]
fn write_some_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    file.write_at(bytes, offset)
}

// These two move the handle's position, which nothing here uses.
#[cfg(windows)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(buffer, offset)
}

#[cfg(windows)]
fn write_some_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    file.seek_write(bytes, offset)
}

#[cfg(not(any(unix, windows)))]
fn read_some_at(_file: &File, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(unix, windows)))]
fn write_some_at(_file: &File, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}
