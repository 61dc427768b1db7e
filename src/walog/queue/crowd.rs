//! How many entries the next commit may find if it waits a moment, and how long that moment is.
//!
//! Committers that are told at the same time come again at nearly the same time. A commit that begins with the
//! first of them makes the others wait for a second one, and they stay apart from then on: two crowds, each of which
//! waits for the other's flush. So whoever begins a commit looks whether those who were told are on their way.
//! There is no timer: waiting goes on only while entries come in.
//!
//! The rule: another entry that goes along saves about one commit's time; each that is pending pays for the wait.
//! So it pays while the gap since the last arrival is below the time of a commit divided by what is pending.

use std::time::Duration;

/// The shortest share of a commit's time that is worth a look.
const SHARE_MIN: u32 = 4;

/// Looks without an arrival, at most: a clock that stands still must not hold a commit.
const LOOKS_MAX: u32 = 256;

/// Commits without waiting after one that waited for nobody.
const HASTY_COMMITS: u8 = 15;

/// Whom a commit may wait for.
#[derive(Debug, Default)]
pub(in crate::walog) struct Crowd {
    /// Entries that the last completion made durable, and those that were pending then.
    expected: u32,
    /// So many commits do not wait, because those who were expected did not come.
    hasty: u8,
}

/// One commit's look at who comes.
#[derive(Debug)]
pub(in crate::walog) struct Gathering {
    expected: u32,
    seen: u32,
    since: Duration,
    looks: u32,
    came: bool,
}

impl Crowd {
    /// A completion reached `reached` entries; `pending` were there already.
    pub fn told(&mut self, reached: u32, pending: u32) {
        self.expected = reached.saturating_add(pending);
    }

    /// Begins to look, with `pending` there; `None` where it is not worth it.
    pub fn gather(&mut self, pending: u32, now: impl FnOnce() -> Duration) -> Option<Gathering> {
        if pending >= self.expected {
            return None;
        }
        if self.hasty > 0 {
            self.hasty -= 1;
            return None;
        }
        let (expected, seen, since) = (self.expected, pending, now());
        Some(Gathering { expected, seen, since, looks: 0, came: false })
    }

    /// Whether to look once more, with `pending` there now and commits that take `commit_ns`.
    pub fn goes_on(
        &mut self,
        gathering: &mut Gathering,
        pending: u32,
        commit_ns: u64,
        now: Duration,
    ) -> bool {
        if pending > gathering.seen {
            (gathering.seen, gathering.since, gathering.looks, gathering.came) = (pending, now, 0, true);
        }
        gathering.looks += 1;
        let patience = Duration::from_nanos(commit_ns / u64::from(pending.max(SHARE_MIN)));
        let gap = now.saturating_sub(gathering.since);
        let goes_on = pending < gathering.expected && gap < patience && gathering.looks < LOOKS_MAX;
        if !goes_on && !gathering.came {
            self.hasty = HASTY_COMMITS;
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT_NS: u64 = 100_000;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn a_lone_committer_waits_for_nobody() {
        let mut crowd = Crowd::default();
        assert!(crowd.gather(1, || us(0)).is_none());
        crowd.told(1, 0);
        assert!(crowd.gather(1, || us(1)).is_none());
    }

    #[test]
    fn those_who_were_told_are_waited_for_while_they_come() {
        let mut crowd = Crowd::default();
        crowd.told(6, 2);
        let mut gathering = crowd.gather(3, || us(0)).expect("five are missing");
        for (pending, now) in [(4, 10), (5, 25), (5, 40), (7, 44)] {
            assert!(crowd.goes_on(&mut gathering, pending, COMMIT_NS, us(now)), "{pending} at {now}");
        }
        assert!(!crowd.goes_on(&mut gathering, 8, COMMIT_NS, us(45)), "all are there");
        crowd.told(8, 0);
        assert!(crowd.gather(1, || us(200)).is_some());
    }

    #[test]
    fn the_more_are_pending_the_shorter_the_gap_that_ends_it() {
        for (pending, patience) in [(1, 25), (4, 25), (10, 10), (50, 2)] {
            let mut crowd = Crowd::default();
            crowd.told(100, 0);
            let mut gathering = crowd.gather(pending, || us(0)).expect("some are missing");
            assert!(crowd.goes_on(&mut gathering, pending, COMMIT_NS, us(patience - 1)));
            assert!(!crowd.goes_on(&mut gathering, pending, COMMIT_NS, us(patience)));
        }
    }

    #[test]
    fn a_commit_that_waited_in_vain_is_followed_by_hasty_ones() {
        let mut crowd = Crowd::default();
        crowd.told(8, 0);
        let mut gathering = crowd.gather(1, || us(0)).expect("seven are missing");
        assert!(!crowd.goes_on(&mut gathering, 1, COMMIT_NS, us(30)));
        for _ in 0..HASTY_COMMITS {
            crowd.told(8, 0);
            assert!(crowd.gather(1, || us(40)).is_none());
        }
        assert!(crowd.gather(1, || us(40)).is_some());
    }

    #[test]
    fn a_clock_that_stands_still_holds_nobody() {
        let mut crowd = Crowd::default();
        crowd.told(8, 0);
        let mut gathering = crowd.gather(1, || us(0)).expect("seven are missing");
        let looks = (0..).take_while(|_| crowd.goes_on(&mut gathering, 1, COMMIT_NS, us(0))).count();
        assert!(looks < LOOKS_MAX as usize);
    }
}
