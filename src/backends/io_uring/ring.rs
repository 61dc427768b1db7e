//! Rings: set-up, submission, completion, teardown. All of the crate's `unsafe` is in this file.
//!
//! Lives here: [`Ring`], an idle ring; [`Attached`], a ring bound to one file, which owns that file and
//! every buffer that the kernel may be reading. Not here: what completions mean (`chain`), who waits for
//! whom (`file`).
//!
//! # Invariants
//!
//! * **Ownership.** A buffer lies in its slot, and the file is open, from before the kernel can see a
//!   request that names them until the last completion of that request was read. Dropping an [`Attached`]
//!   waits for that, unwinding included, and aborts the process where it cannot be had.
//! * **Room.** A slot has at most one unit with the kernel, and both queues have room for one unit of
//!   every slot. So neither queue ever overflows.
//! * **Pairs stay pairs.** A chain ends where a submission ends: a write and its sync that the kernel takes
//!   up in two system calls would run beside each other. Several threads enter the kernel, each with a
//!   count that may be out of date, so all units of a ring have the same number of requests (`width`;
//!   single requests are padded with a no-op), units are published with one store, and every count is a
//!   multiple of the width. Only a kernel that runs out of memory can split a pair then. That shows in the
//!   answer to whoever entered, and as a queue whose length is no multiple of the width; both are looked
//!   for ([`Shape::is_split`]), and whoever finds a split closes the file for good.
//!
//! For the last point, who enters when: at most one thread enters *outside* the lock (`file` sees to that)
//! and looks when it has the lock again; everybody else enters inside the lock, and looks before and after.
//! Completions are only read inside the lock, and not while a thread is in the kernel outside of it. A sync
//! that was left behind by a split is taken up by a later entry: of the same thread, which has looked; or
//! of one inside the lock, which sees an odd queue before it (the split came first), an odd queue after it
//! (the split came in between, and its own count was even), or an odd answer (it was split itself). So
//! somebody has looked before both completions of a split pair can be read.
#![allow(unsafe_code)]

use super::chain::{Chain, Failure, Part, Step, Unit};
use super::pool::Pool;
use crate::planted;
use crate::storage::CommitBuffer;
use crate::sync::{Condvar, Mutex, MutexGuard};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long teardown goes on trying to submit what was accepted while the kernel has no memory.
const DRAIN_ATTEMPTS_MAX: u32 = 10_000;
/// Pause between two such attempts.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);

/// A ring with nothing in flight.
pub(super) struct Ring {
    uring: IoUring,
    /// The process that made it; a child of a fork must not touch it.
    owner: u32,
    #[cfg(test)]
    pub(super) calls: std::sync::atomic::AtomicU64,
}

/// Alignment that direct I/O on a file asks for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectAlignment {
    pub memory: u32,
    pub offset: u32,
}

impl Ring {
    /// A ring with room for `units` units.
    pub fn new(units: usize) -> io::Result<Self> {
        let entries = u32::try_from(units * 2).map_err(|_| io::ErrorKind::InvalidInput)?;
        let uring = IoUring::builder().dontfork().build(entries.next_power_of_two())?;
        let owner = std::process::id();
        Ok(Self {
            uring,
            owner,
            #[cfg(test)]
            calls: std::sync::atomic::AtomicU64::new(0),
        })
    }

    pub fn belongs_to_this_process(&self) -> bool {
        self.owner == std::process::id()
    }

    /// What the kernel says about itself.
    pub fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// Whether requests come back at all: a filter may allow rings and refuse to enter them.
    pub fn check_round_trip(&mut self) -> io::Result<()> {
        // SAFETY: a no-op names no memory and no file.
        let result = unsafe { self.single(opcode::Nop::new().build()) }?;
        if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result.wrapping_neg())) }
    }

    /// The alignment of direct I/O on `file`; `None` where the kernel does not know or the file takes none.
    ///
    /// After an error this ring must not be used again.
    pub fn direct_alignment(&mut self, file: &File) -> io::Result<Option<DirectAlignment>> {
        // SAFETY: `statx` is a plain struct of integers, for which all zeros is a value.
        let mut answer: Box<libc::statx> = Box::new(unsafe { std::mem::zeroed() });
        let place: *mut libc::statx = &mut *answer;
        let entry = opcode::Statx::new(Fd(file.as_raw_fd()), c"".as_ptr(), place.cast())
            .flags(libc::AT_EMPTY_PATH)
            .mask(libc::STATX_DIOALIGN)
            .build();
        // SAFETY: the path is a constant; `answer` is not touched until the completion was read, and is
        // leaked below when none came; `file` outlives the call, and the kernel takes a reference of its
        // own when it takes the request up.
        let result = match unsafe { self.single(entry) } {
            Ok(result) => result,
            Err(error) => {
                Box::leak(answer);
                return Err(error);
            }
        };
        if result != 0 {
            tracing::debug!(errno = -result, "the kernel does not tell the alignment of direct I/O");
            return Ok(None);
        }
        let known = answer.stx_mask & libc::STATX_DIOALIGN != 0;
        let (memory, offset) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
        Ok((known && memory > 0 && offset > 0).then_some(DirectAlignment { memory, offset }))
    }

    /// Runs one request to its end and returns its result.
    ///
    /// # Safety
    ///
    /// What `entry` points to must stay valid until this returns `Ok`, and for ever after an error.
    unsafe fn single(&mut self, entry: Entry) -> io::Result<i32> {
        // SAFETY: the caller vouches for the entry's memory.
        unsafe { self.uring.submission().push(&entry) }.map_err(io::Error::other)?;
        loop {
            let submit = self.queued();
            match self.enter(submit, 1, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(completion) = self.uring.completion().next() {
                return Ok(completion.result());
            }
        }
    }

    /// Requests that were published and not yet taken up by the kernel. Needs the submission side.
    fn queued(&mut self) -> u32 {
        self.uring.submission().len() as u32
    }

    /// One system call: offers `submit` requests, waits for `want` completions, no longer than `timeout`.
    fn enter(&self, submit: u32, want: u32, timeout: Option<Duration>) -> Result<usize, Errno> {
        #[cfg(test)]
        self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let flags = if want > 0 { EnterFlags::GETEVENTS } else { EnterFlags::empty() };
        let submitter = self.uring.submitter();
        let result = match timeout {
            // SAFETY: no argument is passed, so the kernel reads none.
            None => unsafe { submitter.enter::<libc::sigset_t>(submit, want, flags.bits(), None) },
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                let flags = flags | EnterFlags::EXT_ARG;
                // SAFETY: with EXT_ARG the argument is this struct; it and the time it points to live
                // until the call returns, and the kernel does not keep them.
                unsafe { submitter.enter(submit, want, flags.bits(), Some(&args)) }
            }
        };
        result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }
}

/// How units look on one ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Requests per unit: 2 where writes are linked to syncs, else 1.
    pub width: usize,
    /// Slots.
    pub in_flight_max: usize,
}

impl Shape {
    /// Whether a number of requests is one that cuts a pair in two.
    pub fn is_split(&self, requests: usize) -> bool {
        requests % self.width != 0 && !planted::on("ignore_split_pair")
    }
}

/// A ring bound to a file. `M` travels with a request, `S` is the owner's state under the same lock.
pub(super) struct Attached<M, S> {
    ring: ManuallyDrop<Ring>,
    file: File,
    shape: Shape,
    pool: Arc<Pool>,
    inside: Mutex<Inside<M, S>>,
}

struct Inside<M, S> {
    slots: Box<[Option<Request<M>>]>,
    /// Completions of published requests that were not read yet.
    awaited: usize,
    /// Tells the units that use a slot one after the other apart.
    generations: Box<[u32]>,
    state: S,
}

/// What the kernel is, or will be, working on.
pub(super) struct Request<M> {
    pub buffer: CommitBuffer,
    /// Where in the buffer the commit's bytes begin.
    pub buffer_start: usize,
    /// Where in the file they go.
    pub offset: u64,
    pub chain: Chain,
    /// Syncs carry the whole inode, not just what reading the data needs.
    pub full_sync: bool,
    pub meta: M,
}

impl<M> Request<M> {
    /// The bytes that are to be written now, and where in the file they go.
    fn piece(&self) -> (&[u8], u64) {
        let piece = self.chain.piece();
        let bytes = &self.buffer[self.buffer_start + piece.start..self.buffer_start + piece.end];
        (bytes, self.offset + piece.start as u64)
    }
}

/// A request that is over; the kernel has let go of its buffer.
pub(super) struct Finished<M> {
    pub request: Request<M>,
    /// `None`: it was cut short because the owner did not want it to go on.
    pub result: Option<Result<(), Failure>>,
}

/// An [`Attached`] with its lock taken.
pub(super) struct Locked<'a, M, S> {
    ring: &'a Ring,
    file: &'a File,
    shape: Shape,
    inside: MutexGuard<'a, Inside<M, S>>,
}

impl<M, S> Attached<M, S> {
    /// Binds an idle ring to a file; it goes back to `pool` when this is dropped.
    pub fn new(ring: Ring, file: File, shape: Shape, pool: Arc<Pool>, state: S) -> Self {
        assert!(ring.uring.params().sq_entries() as usize >= shape.in_flight_max * shape.width);
        assert!(ring.uring.params().cq_entries() as usize >= shape.in_flight_max * shape.width);
        let slots = (0..shape.in_flight_max).map(|_| None).collect();
        let generations = vec![0; shape.in_flight_max].into_boxed_slice();
        let inside = Inside { slots, awaited: 0, generations, state };
        Self { ring: ManuallyDrop::new(ring), file, shape, pool, inside: Mutex::new(inside) }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn lock(&self) -> Locked<'_, M, S> {
        // Nothing in here panics between two steps that belong together.
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { ring: &self.ring, file: &self.file, shape: self.shape, inside }
    }

    pub fn belongs_to_this_process(&self) -> bool {
        self.ring.belongs_to_this_process()
    }

    /// Writes what is left of a request that the ring does not know, with `RWF_DSYNC`, on this thread. Returns the
    /// bytes written.
    pub fn write_dsync(&self, request: &Request<M>) -> Result<i32, Errno> {
        #[cfg(test)]
        self.ring.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (bytes, offset) = request.piece();
        let slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let how = if planted::on("drop_alone_dsync") { 0 } else { libc::RWF_DSYNC };
        // Two halves, of which the kernel takes the first alone where it is wide enough; by number, as the name is not
        // in every C library.
        let (low, high) = (offset as libc::c_ulong, (offset >> 32) as libc::c_ulong);
        let (file, call) = (self.file.as_raw_fd(), libc::SYS_pwritev2);
        // SAFETY: the one slice names bytes that are borrowed until the call returns, and it only reads them.
        let written = unsafe { libc::syscall(call, file, &raw const slice, 1_usize, low, high, how) };
        Errno::result(written).map(|bytes| bytes as i32)
    }

    /// Enters the kernel outside the lock. `submit` comes from [`Locked::queued`].
    pub fn enter(&self, submit: u32, want: u32, timeout: Option<Duration>) -> Result<usize, Errno> {
        self.ring.enter(submit, want, timeout)
    }

    /// Lets the kernel take up half a pair, as it does when it runs out of memory.
    #[cfg(all(test, not(durability_shuttle)))]
    pub fn split_a_pair(&self, entries: &[u32]) {
        for submit in entries {
            assert_eq!(self.ring.enter(*submit, 0, None), Ok(*submit as usize));
        }
    }

    #[cfg(all(test, not(durability_shuttle)))]
    pub fn calls(&self) -> u64 {
        self.ring.calls.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl<'a, M, S> Locked<'a, M, S> {
    pub fn state(&mut self) -> &mut S {
        &mut self.inside.state
    }

    /// Lets go of the lock, waits to be woken, and takes it again.
    pub fn wait_on(self, turn: &Condvar, timeout: Option<Duration>) -> Self {
        let Self { ring, file, shape, inside } = self;
        let inside = match timeout {
            None => turn.wait(inside).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => turn.wait_timeout(inside, timeout).unwrap_or_else(PoisonError::into_inner).0,
        };
        Self { ring, file, shape, inside }
    }

    /// Requests that were published and not yet taken up by the kernel.
    pub fn queued(&self) -> u32 {
        // SAFETY: every `SubmissionQueue` of an attached ring is made under its lock, which we hold, and
        // none outlives the statement that made it.
        unsafe { self.ring.uring.submission_shared() }.len() as u32
    }

    /// Whether the ring knows of no request.
    pub fn is_idle(&self) -> bool {
        self.inside.slots.iter().all(Option::is_none)
    }

    /// The least number of completions that can end a request.
    pub fn completions_to_an_end(&self) -> u32 {
        let missing = self.inside.slots.iter().flatten().map(|request| request.chain.missing());
        missing.min().unwrap_or(1).max(1) as u32
    }

    /// Publishes the first unit of a request; gives it back when there is no slot.
    pub fn begin(&mut self, request: Request<M>) -> Result<(), Request<M>> {
        let Some(slot) = self.inside.slots.iter().position(Option::is_none) else { return Err(request) };
        self.inside.slots[slot] = Some(request);
        self.publish(slot);
        Ok(())
    }

    /// Offers requests to the kernel, inside the lock, without waiting. `submit` comes from
    /// [`queued`](Self::queued).
    pub fn enter(&mut self, submit: u32) -> Result<usize, Errno> {
        self.ring.enter(submit, 0, None)
    }

    /// Reads every completion that is there. `may_go_on` says whether a request that has more to do may
    /// do it; `finished` gets each that is over.
    pub fn harvest(&mut self, may_go_on: impl Fn() -> bool, mut finished: impl FnMut(&mut S, Finished<M>)) {
        loop {
            // SAFETY: every `CompletionQueue` of an attached ring is made under its lock, which we hold,
            // and none outlives the statement that made it.
            let completion = unsafe { self.ring.uring.completion_shared() }.next();
            let Some(completion) = completion else { return };
            let (slot, step) = self.deliver(completion.user_data(), completion.result());
            let result = match step {
                Step::Wait => continue,
                Step::Issue(_) if may_go_on() => {
                    self.publish(slot);
                    continue;
                }
                Step::Issue(_) => None,
                Step::Done(result) => Some(result),
            };
            let inside = &mut *self.inside;
            if let Some(request) = inside.slots[slot].take() {
                finished(&mut inside.state, Finished { request, result });
            }
        }
    }

    /// Hands one completion to the request that it belongs to.
    fn deliver(&mut self, user_data: u64, result: i32) -> (usize, Step) {
        let tag = Tag::unpack(user_data);
        let inside = &mut *self.inside;
        let current = inside.generations.get(tag.slot) == Some(&tag.generation);
        match inside.slots.get_mut(tag.slot) {
            Some(Some(request)) if current => {
                inside.awaited -= 1;
                (tag.slot, request.chain.complete(tag.part, result))
            }
            _ => abort("a completion belongs to no request, so nobody knows what the kernel still reads"),
        }
    }

    /// Publishes the current unit of a slot's request.
    fn publish(&mut self, slot: usize) {
        let inside = &mut *self.inside;
        inside.generations[slot] = inside.generations[slot].wrapping_add(1);
        let Some(request) = &inside.slots[slot] else { return };
        let tag = Tag { slot, part: Part::First, generation: inside.generations[slot] };
        let (first, second) = entries(request, Fd(self.file.as_raw_fd()));
        let second = second.user_data(Tag { part: Part::Second, ..tag }.pack());
        let unit = [first.user_data(tag.pack()), second];
        // SAFETY: (queue) as in `queued`. (memory) The entry points into the request's buffer, whose bytes
        // do not move with it; the request stays in its slot, and is not touched, until `harvest` has read
        // as many completions as the unit has requests. Where that never happens the slots are not freed:
        // `drop` waits, or aborts. (file) `self.file` is closed only after that, too.
        let pushed = unsafe { self.ring.uring.submission_shared().push_multiple(&unit[..self.shape.width]) };
        if let (true, Some(request)) = (planted::on("free_buffer_early"), &mut inside.slots[slot]) {
            // Freed here, and soon the memory of somebody else, who writes into it.
            let kept = CommitBuffer::from_slice(&request.buffer);
            std::mem::replace(&mut request.buffer, kept).fill(0xdd);
        }
        if pushed.is_err() {
            abort("a submission queue with room for every slot is full");
        }
        inside.awaited += self.shape.width;
    }
}

/// The requests of a unit; the second one is a no-op where the unit is a single request.
fn entries<M>(request: &Request<M>, file: Fd) -> (Entry, Entry) {
    let (bytes, offset) = request.piece();
    let write = opcode::Write::new(file, bytes.as_ptr(), bytes.len() as u32).offset(offset);
    let how = if request.full_sync { FsyncFlags::empty() } else { FsyncFlags::DATASYNC };
    let sync = opcode::Fsync::new(file).flags(how).build();
    let no_op = opcode::Nop::new().build();
    match request.chain.unit() {
        Unit::Write { dsync: false } => (write.build(), no_op),
        Unit::Write { dsync: true } if planted::on("drop_dsync_flag") => (write.build(), no_op),
        Unit::Write { dsync: true } => (write.rw_flags(libc::RWF_DSYNC as _).build(), no_op),
        Unit::WriteAndSync if planted::on("drop_link_flag") => (write.build(), sync),
        Unit::WriteAndSync => (write.build().flags(Flags::IO_LINK), sync),
        Unit::Sync => (sync, no_op),
    }
}

/// Which request a completion belongs to.
#[derive(Clone, Copy)]
struct Tag {
    slot: usize,
    part: Part,
    generation: u32,
}

impl Tag {
    fn pack(self) -> u64 {
        (u64::from(self.generation) << 32) | (self.slot as u64) << 1 | u64::from(self.part == Part::Second)
    }

    fn unpack(user_data: u64) -> Self {
        let slot = (user_data & u64::from(u32::MAX)) as usize >> 1;
        let part = if user_data & 1 == 0 { Part::First } else { Part::Second };
        Self { slot, part, generation: (user_data >> 32) as u32 }
    }
}

impl<M, S> Attached<M, S> {
    /// Begins everything that was accepted, and waits until the kernel is done with all of it.
    ///
    /// `Ok(false)`: something could not be begun for lack of memory. The kernel has never seen it, and
    /// the ring must not be entered again.
    fn drain(&self) -> Result<bool, Errno> {
        let mut attempts = 0;
        loop {
            let mut locked = self.lock();
            locked.harvest(|| true, |_, finished| drop(finished));
            let (queued, awaited) = (locked.queued(), locked.inside.awaited);
            let with_kernel = awaited - queued as usize;
            let give_up = attempts >= DRAIN_ATTEMPTS_MAX;
            if with_kernel == 0 && (queued == 0 || give_up) {
                return Ok(queued == 0);
            }
            // While there is no memory, what runs may give some back; with nothing running, time may.
            let submit = if attempts == 0 || with_kernel == 0 { queued } else { 0 };
            let want = u32::from(with_kernel > 0 || attempts == 0);
            match self.ring.enter(submit, want, None) {
                Ok(_) | Err(Errno::EINTR) => attempts = 0,
                Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM) => {
                    attempts += 1;
                    if with_kernel == 0 {
                        std::thread::sleep(DRAIN_PAUSE);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl<M, S> Drop for Attached<M, S> {
    fn drop(&mut self) {
        if !self.ring.belongs_to_this_process() || planted::on("skip_drain") {
            // The child of a fork: the ring's memory is not mapped here, and its requests are the parent's.
            // Leaking the ring leaves both alone.
            return;
        }
        match self.drain() {
            Ok(usable) => {
                // SAFETY: `ring` is not used after this; `drop` runs once.
                let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
                if usable {
                    self.pool.put(ring);
                } else {
                    tracing::error!("the kernel had no memory for commits that were accepted; not written");
                }
            }
            Err(error) => {
                tracing::error!(%error, "a ring cannot be drained");
                abort("a ring cannot be drained, so the kernel may still read buffers");
            }
        }
    }
}

/// Ends the process where going on could let the kernel read memory that was freed.
#[cold]
fn abort(why: &str) -> ! {
    eprintln!("durability: {why}; aborting");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::super::chain::Goal;
    use super::*;

    /// What the kernel would read of a request: operation, flags, offset in the file, bytes, and the flags of
    /// the operation itself.
    fn asked(entry: Entry) -> (u8, u8, u64, u32, u32) {
        const { assert!(size_of::<Entry>() == 64) };
        // SAFETY: an entry is a plain struct of integers, `io_uring_sqe`, of that size and without padding.
        let bytes: [u8; 64] = unsafe { std::mem::transmute(entry) };
        let four = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let offset = u64::from_ne_bytes(std::array::from_fn(|index| bytes[8 + index]));
        (bytes[0], bytes[1], offset, four(24), four(28))
    }

    #[test]
    fn every_unit_asks_for_what_it_is_named_for() {
        const WRITE: u8 = opcode::Write::CODE;
        const FSYNC: u8 = opcode::Fsync::CODE;
        const NOP: u8 = opcode::Nop::CODE;
        let (link, dsync, datasync) = (Flags::IO_LINK.bits(), libc::RWF_DSYNC as u32, 1);
        let no_op = (NOP, 0, 0, 0, 0);
        let sync = |full: bool| (FSYNC, 0, 0, 0, if full { 0 } else { datasync });
        let write = |flags, how| (WRITE, flags, 8192, 512, how);
        for full_sync in [false, true] {
            for (goal, bytes, width, first, second) in [
                (Goal::Written, 512, 1, write(0, 0), no_op),
                (Goal::Written, 512, 2, write(0, 0), no_op),
                (Goal::WrittenThenSynced, 512, 1, write(0, 0), no_op),
                (Goal::Dsync, 512, 1, write(0, dsync), no_op),
                (Goal::LinkedSync, 512, 2, write(link, 0), sync(full_sync)),
                (Goal::LinkedSync, 0, 2, sync(full_sync), no_op),
                (Goal::Dsync, 0, 1, sync(full_sync), no_op),
            ] {
                let chain = Chain::new(goal, bytes, 512, 1 << 20, width);
                let buffer = CommitBuffer::from_slice(&vec![0; bytes]);
                let request = Request { buffer, buffer_start: 0, offset: 8192, chain, full_sync, meta: () };
                let (one, two) = entries(&request, Fd(0));
                assert_eq!((asked(one), asked(two)), (first, second), "{goal:?}, {bytes} bytes");
            }
        }
    }
}
