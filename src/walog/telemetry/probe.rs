//! What the queue remembers for telemetry. Plain numbers under the queue's lock; recording is done without it.
//!
//! Off, every call is one branch and reads no clock.

use crate::planted;
use std::time::Duration;

/// Moments of the batch that is pending and of the completion that was collected last.
#[derive(Debug, Default)]
pub(in crate::walog) struct Probe {
    on: bool,
    /// When the pending batch got its first entry.
    first_entry: Option<Duration>,
    /// When somebody first waited for it.
    first_wait: Option<Duration>,
    /// When the last completion was collected, and what it took.
    settled: Option<Duration>,
    device: Option<Duration>,
}

/// A commit that begins.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::walog) struct Begun {
    pub entries: u32,
    pub bytes: usize,
    pub frame_bytes: u64,
    pub depth: usize,
    pub fill: Duration,
    pub wait: Option<Duration>,
}

impl Probe {
    pub fn new(on: bool) -> Self {
        Self { on: on || planted::on("telemetry_is_never_off"), ..Self::default() }
    }

    /// An entry is appended.
    #[inline]
    pub fn append(&mut self, now: impl FnOnce() -> Duration) {
        if self.on && self.first_entry.is_none() {
            self.first_entry = Some(now());
        }
    }

    /// Somebody waits for an entry that is pending.
    #[inline]
    pub fn wait(&mut self, now: impl FnOnce() -> Duration) {
        if self.on && self.first_wait.is_none() {
            self.first_wait = Some(now());
        }
    }

    /// The pending batch is taken. `begun` says what of it.
    pub fn begin(&mut self, now: Duration, begun: Begun) -> Begun {
        let first_entry = self.first_entry.take();
        let wait = self.first_wait.take().map(|first| now.saturating_sub(first));
        let fill = now.saturating_sub(first_entry.unwrap_or(now));
        Begun { fill, wait, ..begun }
    }

    /// A commit has ended well.
    pub fn settle(&mut self, now: Duration, device: Duration) {
        if self.on {
            (self.settled, self.device) = (Some(now), Some(device));
        }
    }

    /// What the last completion took; once.
    pub fn take_device(&mut self) -> Option<Duration> {
        self.device.take()
    }

    /// When the last completion was collected.
    pub fn settled(&self) -> Option<Duration> {
        self.settled
    }
}
