//! Who makes segments ahead of need, and what rotating has cost.

use super::options::{PrepareAhead, WalOptions};
use super::pool::{Pool, start_helper};
use crate::error::PersistenceResult;
use crate::storage::Directory;
use crate::sync::thread::JoinHandle;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the log went on in another segment, and how long commits waited for one. Each number stands for
/// itself.
#[derive(Debug, Default)]
pub(crate) struct Rotations {
    count: AtomicU64,
    stall_ns: AtomicU64,
}

impl Rotations {
    pub fn rotated(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stalled(&self, time: Duration) {
        self.stall_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn stall(&self) -> Duration {
        Duration::from_nanos(self.stall_ns.load(Ordering::Relaxed))
    }
}

type Start<D> = fn(&Arc<Pool<D>>) -> PersistenceResult<JoinHandle<()>>;

/// Who makes segments ahead of need.
#[derive(Default)]
pub(crate) enum Helper<D: Directory + ?Sized> {
    /// Nobody: whoever needs one.
    #[default]
    None,
    /// A thread, which is not started before the first segment.
    Later(Start<D>),
    /// A thread.
    Thread(JoinHandle<()>),
    /// Somebody who was given a [`PrepareHand`](super::options::PrepareHand).
    Hand,
}

impl<D: Directory + ?Sized> Helper<D> {
    /// As the options say; `auto` is what [`PrepareAhead::Auto`] means here.
    pub fn of(options: &WalOptions, auto: bool, pool: &Arc<Pool<D>>) -> Self
    where
        D: 'static,
    {
        match &options.prepare_ahead {
            PrepareAhead::Never => Self::None,
            PrepareAhead::Auto if !auto => Self::None,
            PrepareAhead::Auto | PrepareAhead::Thread => Self::Later(start_helper::<D>),
            PrepareAhead::ByHand(hand) => {
                let pool = Arc::downgrade(pool);
                hand.give(move || pool.upgrade().is_some_and(|pool| pool.step()));
                Self::Hand
            }
        }
    }

    /// Whether somebody makes segments ahead of need.
    pub fn works(&self) -> bool {
        matches!(self, Self::Thread(_) | Self::Hand)
    }

    /// There is a segment now: from here on the next ones are made ahead of need.
    pub fn start(&mut self, pool: &Arc<Pool<D>>, options: &WalOptions) {
        match self {
            Self::Later(start) => match start(pool) {
                Ok(handle) => *self = Self::Thread(handle),
                Err(error) => {
                    // The log works without it.
                    tracing::warn!(%error, "segments are made when they are needed");
                    *self = Self::None;
                }
            },
            Self::Hand => {}
            Self::None | Self::Thread(_) => {}
        }
        if self.works() {
            pool.make_ahead(options);
        }
    }

    /// Ends it; nothing is made any more, and nobody works on it, when this returns.
    pub fn stop(&mut self, pool: &Arc<Pool<D>>) {
        pool.stop();
        if let Self::Thread(handle) = std::mem::take(self) {
            let _ = handle.join();
        }
    }
}
