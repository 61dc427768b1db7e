//! Which way a lone commit is the quicker: as a system call of whoever waits for it, or through the ring.
//!
//! Lives here: the rule, and the clock that it looks at. Not here: commits (`alone`, `file`).
//!
//! Neither is it everywhere. On one disk what a ring has begun ends in a kernel thread that leaves the committer far
//! from the disk's interrupts, and takes half as long again; on another the ring takes half of what a call does
//! (docs/benchmarks.md). So now and then the other way is tried, and compared with the commits just before and just
//! behind: when everything takes ten times as long for a while, one of these meets that, too. A lone commit is one
//! beside which no other came; while each gets company nothing is compared, and the way in use stays.
//!
//! Invariants: only a way that was measured to be the better one replaces the one in use; in the long run one commit
//! of some five hundred goes the other way. Where times are of two kinds chance may choose the slower way; that is found
//! out within some hundred commits.

use crate::sync::{Mutex, MutexGuard};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Commits of which a median is taken.
pub(super) const LOOK_COMMITS: usize = if cfg!(durability_shuttle) { 1 } else { 16 };
/// Commits before the first look.
pub(super) const FIRST_COMMITS: u32 = if cfg!(durability_shuttle) { 1 } else { 48 };
/// Between two looks, in the end.
const APART_COMMITS_MAX: u32 = 8192;
/// Fewer measured ones say nothing.
const SAMPLES_MIN: usize = LOOK_COMMITS.div_ceil(2);
/// The ring has to be quicker by one part in so many.
const MARGIN_PARTS: u32 = 8;

/// How a lone commit goes to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Written by whoever waits for it.
    Call,
    Ring,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Call => Self::Ring,
            Self::Ring => Self::Call,
        }
    }
}

/// What the files of one directory know together; a segment has an end, and the next one goes on.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedWays(Arc<Mutex<Ways>>);

/// A commit that is about to go its way.
pub(super) struct Going<'a> {
    ways: &'a SharedWays,
    way: Way,
    began: Option<Instant>,
}

impl SharedWays {
    /// How the next lone commit goes. Its time begins, where it is of interest.
    pub fn next(&self) -> Going<'_> {
        let (way, timed) = self.lock().next();
        Going { ways: self, way, began: timed.then(now) }
    }

    /// Begins with a way that was measured beforehand.
    pub fn begin_with(&self, way: Way) {
        *self.lock() = Ways { used: way, ..Ways::default() };
    }

    /// How many were timed since the last decision.
    #[cfg(all(test, not(durability_shuttle)))]
    pub fn timed(&self) -> usize {
        let ways = self.lock();
        [&ways.before, &ways.tried, &ways.behind].iter().map(|sample| sample.count).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Ways> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Going<'_> {
    pub fn way(&self) -> Way {
        self.way
    }

    /// It has gone there; and has ended, `alone` and well, or its time tells of something else as well.
    pub fn went(self, alone: bool) {
        let took = self.began.filter(|_| alone).map(since);
        self.ways.lock().went(self.way, took);
    }
}

fn now() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "how long a device takes is real time")]
    Instant::now()
}

#[cfg(not(all(test, durability_shuttle)))]
fn since(began: Instant) -> Duration {
    now().saturating_duration_since(began)
}

/// In models time is chosen with the schedule, so that it is the same when that is replayed.
#[cfg(all(test, durability_shuttle))]
fn since(_began: Instant) -> Duration {
    Duration::from_micros(crate::walog::models::lab::pick(4) as u64)
}

/// The way in use, and the comparison that may change it.
#[derive(Debug)]
struct Ways {
    used: Way,
    stage: Stage,
    /// Commits until the next stage.
    left: u32,
    /// How long nothing is measured, the next time.
    apart: u32,
    before: Sample,
    tried: Sample,
    behind: Sample,
}

/// What is done with the next commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Apart,
    Before,
    Trying,
    Behind,
}

impl Default for Ways {
    fn default() -> Self {
        Self {
            used: Way::Call,
            stage: Stage::Apart,
            left: FIRST_COMMITS,
            apart: FIRST_COMMITS,
            before: Sample::default(),
            tried: Sample::default(),
            behind: Sample::default(),
        }
    }
}

impl Ways {
    /// The way of the next commit, and whether its time is asked for.
    fn next(&self) -> (Way, bool) {
        let way = if self.stage == Stage::Trying { self.used.other() } else { self.used };
        (way, self.stage != Stage::Apart)
    }

    /// A commit went that way; `took` is `None` where nothing was measured, or it was not alone after all.
    fn went(&mut self, way: Way, took: Option<Duration>) {
        if way != self.next().0 {
            // Begun by another thread's word, before this stage.
            return;
        }
        let sample = match self.stage {
            Stage::Apart => None,
            Stage::Before => Some(&mut self.before),
            Stage::Trying => Some(&mut self.tried),
            Stage::Behind => Some(&mut self.behind),
        };
        sample.zip(took).into_iter().for_each(|(sample, took)| sample.add(took));
        self.left -= 1;
        if self.left > 0 {
            return;
        }
        let looked = LOOK_COMMITS as u32;
        (self.stage, self.left) = match self.stage {
            Stage::Apart => (Stage::Before, looked),
            Stage::Before => (Stage::Trying, looked),
            Stage::Trying => (Stage::Behind, looked),
            Stage::Behind => {
                self.decide();
                (Stage::Apart, self.apart)
            }
        };
    }

    fn decide(&mut self) {
        let is_better = match (self.before.median(), self.tried.median(), self.behind.median()) {
            (Some(before), Some(tried), Some(behind)) => {
                // The call, where it is no slower: whoever waits for it is then where the disk reports. Not by the
                // best of them, which are alike where now and then all that a commit needs is near.
                let margin = if self.used == Way::Call { tried / MARGIN_PARTS } else { Duration::ZERO };
                tried + margin < before.min(behind)
            }
            // Most had company. Looking as often again would send many the other way and tell nothing.
            _ => false,
        };
        if is_better {
            self.used = self.used.other();
            self.apart = FIRST_COMMITS;
        } else {
            self.apart = (self.apart * 2).min(APART_COMMITS_MAX);
        }
        (self.before, self.tried, self.behind) = Default::default();
    }
}

#[derive(Debug, Default)]
struct Sample {
    times: [Duration; LOOK_COMMITS],
    count: usize,
}

impl Sample {
    fn add(&mut self, took: Duration) {
        if let Some(room) = self.times.get_mut(self.count) {
            *room = took;
            self.count += 1;
        }
    }

    fn median(&mut self) -> Option<Duration> {
        let times = self.times.get_mut(..self.count).filter(|times| times.len() >= SAMPLES_MIN)?;
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

#[cfg(all(test, not(durability_shuttle)))]
mod tests {
    use super::*;

    /// So many lone commits, of which each takes what `us` says of its number and way; those that went through the ring.
    fn run(ways: &mut Ways, commits: u64, mut us: impl FnMut(u64, Way) -> Option<u64>) -> u64 {
        let mut rings = 0;
        for number in 0..commits {
            let (way, timed) = ways.next();
            rings += u64::from(way == Way::Ring);
            ways.went(way, us(number, way).filter(|_| timed).map(Duration::from_micros));
        }
        rings
    }

    fn per_way(call: u64, ring: u64) -> impl Fn(u64, Way) -> Option<u64> {
        move |_, way| Some(if way == Way::Call { call } else { ring })
    }

    #[test]
    fn the_quicker_way_is_found_soon_and_the_other_one_hardly_taken() {
        let mut ways = Ways::default();
        let rings = run(&mut ways, 10_000, per_way(44, 16));
        assert!(rings > 9_700, "{rings}");
        let mut ways = Ways::default();
        let rings = run(&mut ways, 100_000, per_way(124, 175));
        assert!((1..400).contains(&rings), "{rings}");
    }

    #[test]
    fn the_call_stays_where_the_ring_is_as_quick_and_comes_back_where_it_is_quicker() {
        let mut ways = Ways::default();
        run(&mut ways, 10_000, per_way(124, 120));
        assert_eq!(ways.used, Way::Call);
        run(&mut ways, 10_000, per_way(124, 90));
        assert_eq!(ways.used, Way::Ring);
        run(&mut ways, 30_000, per_way(120, 124));
        assert_eq!(ways.used, Way::Call);
    }

    #[test]
    fn a_while_in_which_all_is_slow_changes_nothing() {
        // Sixty commits of ten times the time, wherever they begin.
        for begin in 0..200 {
            let mut ways = Ways::default();
            let slow = |number, way| {
                let factor = if (begin..begin + 60).contains(&number) { 10 } else { 1 };
                per_way(124, 130)(number, way).map(|us| us * factor)
            };
            run(&mut ways, 300, slow);
            assert_eq!(ways.used, Way::Call, "{begin}");
        }
    }

    #[test]
    fn where_commits_take_one_of_two_times_the_slower_way_is_left_soon() {
        // Each by itself is disturbed and takes ten times as long, or is not.
        let rings = |seed: u64, disturbed_of_eight: u64, call: u64, ring: u64| {
            let mut random = seed;
            let us = |_, way| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let factor = if random % 8 < disturbed_of_eight { 10 } else { 1 };
                per_way(call, ring)(0, way).map(|us| us * factor)
            };
            run(&mut Ways::default(), 100_000, us)
        };
        for disturbed in 1..8 {
            for seed in 1..20 {
                let slower = rings(seed, disturbed, 100, 120);
                assert!(slower < 20_000, "seed {seed}: {slower} with {disturbed} of eight disturbed");
                let quicker = rings(seed, disturbed, 150, 100);
                assert!(quicker > 66_000, "seed {seed}: {quicker} with {disturbed} of eight disturbed");
            }
        }
    }

    #[test]
    fn commits_that_were_not_alone_say_nothing() {
        let mut ways = Ways::default();
        run(&mut ways, 10_000, |number, way| per_way(124, 20)(number, way).filter(|_| number % 3 == 0));
        assert_eq!(ways.used, Way::Call);
        run(&mut ways, 20_000, |number, way| per_way(124, 20)(number, way).filter(|_| number % 3 > 0));
        assert_eq!(ways.used, Way::Ring);
    }

    #[test]
    fn a_way_that_was_begun_before_is_not_counted() {
        let mut ways = Ways::default();
        ways.went(Way::Ring, Some(Duration::ZERO));
        assert_eq!(ways.left, FIRST_COMMITS);
    }
}
