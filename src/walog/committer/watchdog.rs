//! Waiting for completions with an eye on the clock, and what is measured on the way.
//!
//! A commit that takes longer than [`WalOptions::slow_after`](crate::walog::WalOptions::slow_after) is reported
//! by a thread that waits for it anyway: there is no watchdog thread. Without the option nobody looks at the clock.
//!
//! Observers, recorders and subscribers are called without any lock.

use super::{Committer, Guard};
use crate::error::PersistenceResult;
use crate::planted;
use crate::storage::{CommitFile, Completion, Directory, Effect, Wait};
use crate::sync::thread;
use crate::walog::options::{SlowCommit, observed};
use crate::walog::queue::Queue;
use crate::walog::telemetry::Begun;
use std::time::Duration;

impl<D: Directory + ?Sized> Committer<D> {
    /// Collects one completion, however long that takes; none when it is time to look for slow commits.
    pub(super) fn collect(
        &self,
        file: &dyn CommitFile,
        mut look_at: Option<Duration>,
    ) -> PersistenceResult<Option<Completion>> {
        loop {
            let Some(at) = look_at.filter(|_| !planted::on("slow_only_afterwards")) else {
                return file.reap(Wait::Forever);
            };
            let left = at.saturating_sub(self.environment.elapsed());
            let reaped = file.reap(Wait::AtMost(left))?;
            if reaped.is_some() || !planted::on("observed_in_a_role") {
                return Ok(reaped);
            }
            look_at = self.report_slow();
        }
    }

    /// Reports the commit that takes too long, while somebody else may go on waiting for it.
    pub(super) fn look<'a>(&'a self, mut queue: Guard<'a>) -> Guard<'a> {
        let Some(slow) = queue.take_slow(self.environment.elapsed()) else { return queue };
        let next = queue.next_driver();
        drop(queue);
        if let Some(next) = next {
            next.unpark();
        }
        self.report(slow);
        self.queue()
    }

    /// When a thread that waits has to look for slow commits.
    pub(super) fn look_at(&self, queue: &Queue) -> Option<Duration> {
        queue.look_at(|| self.environment.elapsed())
    }

    /// Parks this thread until it is told, or for `left`, or until it has looked for slow commits.
    pub(super) fn park(&self, look_at: Option<Duration>, left: Option<Duration>) {
        let look_at = look_at.filter(|_| !planted::on("parked_never_report"));
        let look_in = look_at.map(|at| at.saturating_sub(self.environment.elapsed()));
        match (look_in, left) {
            (Some(Duration::ZERO), _) => drop(self.report_slow()),
            (Some(look_in), left) => thread::park_timeout(left.unwrap_or(look_in).min(look_in)),
            (None, Some(left)) => thread::park_timeout(left),
            (None, None) => thread::park(),
        }
    }

    /// Reports a commit that takes too long, where there is one; answers when to look again.
    fn report_slow(&self) -> Option<Duration> {
        let now = self.environment.elapsed();
        let mut queue = self.queue();
        let slow = queue.take_slow(now);
        let next = self.look_at(&queue);
        drop(queue);
        slow.into_iter().for_each(|slow| self.report(slow));
        next
    }

    pub(super) fn report(&self, slow: SlowCommit) {
        let SlowCommit { last_entry_id, durable_entry_id, time, in_flight, has_ended, .. } = slow;
        let time_ms = time.as_millis() as u64;
        tracing::warn!(last_entry_id, durable_entry_id, time_ms, in_flight, has_ended, "a commit is slow");
        self.telemetry.iter().for_each(|telemetry| telemetry.slow());
        let Some(observer) = &self.observer else { return };
        observed(|| observer.on_slow_commit(&slow));
    }

    pub(super) fn measure_begin(&self, commit_id: u64, last_entry_id: u64, effect: Effect, begun: &Begun) {
        self.tracer.begin(commit_id, last_entry_id, effect, begun);
        self.telemetry.iter().for_each(|telemetry| telemetry.begun(begun));
    }

    pub(super) fn measure_end(&self, commit_id: u64, is_well: bool) {
        self.tracer.end(commit_id, is_well);
        if !is_well {
            self.telemetry.iter().for_each(|telemetry| telemetry.failed());
        }
    }

    pub(super) fn measure_rotation<T>(&self, make_room: impl FnOnce() -> T) -> T {
        let began = self.moment();
        let made = make_room();
        if let (Some(telemetry), Some(took)) = (&self.telemetry, self.past(began)) {
            telemetry.rotated(took);
        }
        made
    }

    /// The time, where it is measured.
    pub(super) fn moment(&self) -> Option<Duration> {
        self.telemetry.as_ref().map(|_| self.environment.elapsed())
    }

    /// How long ago `since` was, where time is measured.
    pub(super) fn past(&self, since: Option<Duration>) -> Option<Duration> {
        Some(self.moment()?.saturating_sub(since?))
    }
}
