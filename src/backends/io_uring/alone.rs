//! The commit that is alone: whoever waits for it may write it, with one system call and without the ring.
//!
//! Lives here: holding such a commit back until it is known whether it stays alone, and writing it. Not here: what
//! its end means for the file (`file`), whether the ring is quicker (`ways`).
//!
//! Why: where the disk has no FUA writes, a direct write with `RWF_DSYNC` that goes through a ring is flushed, and
//! its end told, by a kernel thread; made by the thread that waits for it, it ends in the disk's interrupt. That
//! is one hand-over less, and the scheduler wakes a thread near the interrupt that it waited for, which it does not
//! for a kernel thread's wake-ups (docs/benchmarks.md has the difference).
//!
//! What it costs: the kernel ends a request with the help of the thread that began it, which is not to be had inside
//! this call. What that thread has begun on another ring and not waited for may be told to others one commit later.
//!
//! Invariants: a commit is only held back while no other of its file is in flight; it is begun before any other is;
//! it counts as accepted and not reaped all the time. So it has a slot in the ring when it needs one.

use super::super::chain::{Part, Step};
use super::super::ring::{Finished, Locked, Request};
use super::super::ways::Going;
use super::{Ledger, Meta, UringFile};
use crate::planted;
use nix::errno::Errno;

impl UringFile {
    /// Holds a request back while it is the only one; gives it back when it is not, for the ring.
    pub(super) fn hold_alone(
        &self,
        locked: &mut Locked<'_, Meta, Ledger>,
        request: Request<Meta>,
    ) -> Option<Request<Meta>> {
        self.begin_alone(locked);
        let ledger = locked.state();
        // A thread in the kernel would not see it, and wait for others.
        let stays = ledger.unreaped == 0 && !ledger.reaper && !ledger.calls_refused;
        if !stays || !request.chain.is_one_dsync_write() {
            return Some(request);
        }
        ledger.alone = Some(request);
        None
    }

    /// Gives the commit that was held back to the ring: it is not alone any more, or nobody waits for it for ever.
    pub(super) fn begin_alone(&self, locked: &mut Locked<'_, Meta, Ledger>) {
        if let Some(request) = locked.state().alone.take() {
            self.go_on(locked, request);
        }
    }

    /// Writes the commit that was held back, outside the lock. Others may reap meanwhile what the ring has.
    pub(super) fn write_alone<'a>(
        &'a self,
        mut locked: Locked<'a, Meta, Ledger>,
        mut request: Request<Meta>,
        going: Going<'_>,
    ) -> Locked<'a, Meta, Ledger> {
        locked.state().writing = true;
        drop(locked);
        let answer = self.ring.write_dsync(&request);
        let mut locked = self.ring.lock();
        locked.state().writing = false;
        let step = match answer {
            // A filter that knows rings and not this call. Where the file means it, the ring will say so.
            Err(Errno::ENOSYS | Errno::EPERM) => {
                locked.state().calls_refused = true;
                Step::Issue(request.chain.unit())
            }
            Err(errno) => request.chain.complete(Part::First, -(errno as i32)),
            Ok(bytes) => request.chain.complete(Part::First, bytes),
        };
        let alone_and_well = matches!(step, Step::Done(Ok(()))) && !locked.state().has_company;
        going.went(alone_and_well);
        match step {
            Step::Done(result) => self.settle(locked.state(), Finished { request, result: Some(result) }),
            Step::Issue(_) | Step::Wait if self.latch.is_tripped() => {
                self.settle(locked.state(), Finished { request, result: None });
            }
            Step::Issue(_) | Step::Wait => self.go_on(&mut locked, request),
        }
        locked
    }

    fn go_on(&self, locked: &mut Locked<'_, Meta, Ledger>, request: Request<Meta>) {
        if let Err(request) = locked.begin(request) {
            debug_assert!(false, "a ring has as many slots as a file has commits");
            self.machinery_failed("submit", Errno::ENOBUFS);
            self.settle(locked.state(), Finished { request, result: None });
        }
    }
}

impl Drop for UringFile {
    /// What was accepted is written, this one too; the ring waits for it. A child of a fork leaves both alone.
    fn drop(&mut self) {
        if self.ring.belongs_to_this_process() && !planted::on("drop_forgets_alone") {
            self.begin_alone(&mut self.ring.lock());
        }
    }
}

#[cfg(all(test, not(durability_shuttle)))]
#[path = "alone_tests.rs"]
mod tests;
