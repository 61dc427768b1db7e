//! Which strategy is the fastest in a directory: small commits with each, in turn.
//!
//! Lives here: measuring, and what follows from the numbers. Not here: what a strategy does.
//!
//! File systems differ in what a direct write or a linked pair costs them, and disks in what a flush does; a few
//! milliseconds tell.

use super::UringDirectory;
use super::ways::{FIRST_COMMITS, SharedWays, Way};
use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::{
    CALIBRATION_COMMITS_MAX, CALIBRATION_COMMITS_MIN, CALIBRATION_TIME_MAX_MS, CALIBRATION_TIME_MS,
    FRAME_ALIGNMENT_MAX,
};
use crate::storage::{
    Calibration, Commit, CommitBuffer, CommitFile, CommitStrategy, Directory, Effect, FileOptions,
    MeasuredStrategy, StrategyReason, Submitted, Wait, temporary_path,
};
use std::time::{Duration, Instant};

/// What is tried, the one that is preferred first. A lone direct write goes either way (`ways`).
const PREFERENCE: [(CommitStrategy, Way); 4] = [
    (CommitStrategy::DirectDsync, Way::Call),
    (CommitStrategy::DirectDsync, Way::Ring),
    (CommitStrategy::LinkedWriteSync, Way::Ring),
    (CommitStrategy::WriteThenSync, Way::Call),
];

/// What is to go by a call does.
const _: () = assert!(CALIBRATION_COMMITS_MAX <= FIRST_COMMITS || cfg!(durability_shuttle));

/// A strategy that comes later in [`PREFERENCE`] has to be faster by one part in so many.
const MARGIN_PARTS: u32 = 8;

/// And that in so many commits of five.
const WINS_OF_FIVE: usize = 4;

/// Commits of one strategy that went one way, in the order of the rounds.
struct Tried {
    strategy: CommitStrategy,
    way: Way,
    times: Vec<Duration>,
}

/// Measures what the files beside `path` can have, and orders it. Whole blocks are measured, whatever `path` itself
/// is aligned to: what it cannot have, the next file perhaps can.
///
/// Files under temporary names are made and removed. On error nothing is known; what stays behind is swept with other temporaries.
pub(super) fn calibrate(directory: &UringDirectory, path: &str) -> PersistenceResult<Calibration> {
    #[allow(clippy::disallowed_methods, reason = "how long a device takes is real time")]
    let now = Instant::now;
    let began = now();
    let mut files = Vec::new();
    let result = (|| {
        for (strategy, way) in PREFERENCE {
            if strategy == CommitStrategy::WriteThenSync && !directory.options.std_fs_too {
                continue;
            }
            let temporary = temporary_path(path);
            match open_to_try(directory, &temporary, strategy) {
                Ok(file) => files.push((temporary, file, Tried { strategy, way, times: Vec::new() })),
                // The file cannot have this one.
                Err(PersistenceError::NotSupported { .. } | PersistenceError::InvalidConfig { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let ready = now();
        for number in 0..CALIBRATION_COMMITS_MAX {
            for (_, file, tried) in &mut files {
                let before = now();
                commit_block(file.as_ref(), number, tried.way)?;
                tried.times.push(before.elapsed());
            }
            let enough = number + 1 >= CALIBRATION_COMMITS_MIN;
            let time_ms = if enough { CALIBRATION_TIME_MS } else { CALIBRATION_TIME_MAX_MS };
            if ready.elapsed() >= Duration::from_millis(time_ms) {
                break;
            }
        }
        Ok(())
    })();
    let mut all = Vec::new();
    for (temporary, file, tried) in files {
        drop(file);
        // Best effort: it is a temporary.
        let _ = directory.files.delete(&temporary);
        all.push(tried);
    }
    result?;
    let commits = all.first().map_or(0, |tried| tried.times.len() as u32);
    let (candidates, way) = order(all);
    if let Some(way) = way {
        directory.ways.begin_with(way);
    }
    Ok(Calibration { candidates, commits, took: began.elapsed() })
}

fn open_to_try(
    directory: &UringDirectory,
    path: &str,
    strategy: CommitStrategy,
) -> PersistenceResult<Box<dyn CommitFile>> {
    let bytes = u64::from(CALIBRATION_COMMITS_MAX) * u64::from(FRAME_ALIGNMENT_MAX);
    let how = FileOptions::create_new().zero_filled(bytes).aligned(FRAME_ALIGNMENT_MAX);
    if strategy == CommitStrategy::WriteThenSync {
        return directory.open_as(path, &how, Some(strategy), StrategyReason::Rule);
    }
    // What the directory's files have learnt would send a call through the ring.
    let file = directory.open_ring(path, &how, Some(strategy))?;
    Ok(Box::new(file.sharing(&SharedWays::default())))
}

fn commit_block(file: &dyn CommitFile, number: u32, way: Way) -> PersistenceResult<()> {
    let block = FRAME_ALIGNMENT_MAX as usize;
    let mut buffer = CommitBuffer::with_capacity(block);
    buffer.extend_from_slice(&[number as u8 | 1; FRAME_ALIGNMENT_MAX as usize]);
    let offset = u64::from(number) * block as u64;
    let commit =
        Commit { id: u64::from(number) + 1, offset, buffer, range: 0..block, effect: Effect::Durable };
    match file.submit(commit) {
        Submitted::Accepted => {}
        Submitted::Refused { error, .. } => return Err(error),
    }
    if way == Way::Ring {
        file.start()?;
    }
    let ended = file.reap(Wait::Forever)?;
    ended.map_or_else(
        || Err(PersistenceError::invalid_state("measure a commit", "it is lost")),
        |end| end.result,
    )
}

/// The best strategy first, then the best of the others, for files that cannot have it, and so on; and the better way
/// of a lone direct write, where there is one. `tried` is in the order of [`PREFERENCE`].
fn order(mut tried: Vec<Tried>) -> (Vec<MeasuredStrategy>, Option<Way>) {
    let is_direct = |tried: &&Tried| tried.strategy == CommitStrategy::DirectDsync;
    let by_call = tried.iter().find(|tried| is_direct(tried) && tried.way == Way::Call);
    let by_ring = tried.iter().find(|tried| is_direct(tried) && tried.way == Way::Ring);
    let way = by_call
        .zip(by_ring)
        .map(|(call, ring)| if is_clearly_faster(ring, call) { Way::Ring } else { Way::Call });
    let mut candidates: Vec<MeasuredStrategy> = Vec::new();
    while !tried.is_empty() {
        let better = |best, later| if is_clearly_faster(&tried[later], &tried[best]) { later } else { best };
        let best = (1..tried.len()).fold(0, better);
        let one = tried.remove(best);
        let is_known = candidates.iter().any(|known| known.strategy == one.strategy);
        if let (Some(median), false) = (one.median(), is_known) {
            candidates.push(MeasuredStrategy { strategy: one.strategy, median });
        }
    }
    (candidates, way)
}

impl Tried {
    fn median(&self) -> Option<Duration> {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

/// Whether one is faster than another whatever else goes on: in nearly every round, and where nothing disturbed.
///
/// Medians do not tell: a process that has just begun on a machine that was idle meets commits that take five or
/// ten times as long, for longer than is measured here, and by chance one strategy more of them than another.
fn is_clearly_faster(one: &Tried, other: &Tried) -> bool {
    let faster = |one: &Duration, other: &Duration| *one + *one / MARGIN_PARTS < *other;
    let rounds = one.times.iter().zip(&other.times);
    let wins = rounds.clone().filter(|(one, other)| faster(one, other)).count();
    let undisturbed = one.times.iter().min().zip(other.times.iter().min());
    let count = rounds.count();
    count >= CALIBRATION_COMMITS_MIN as usize
        && wins * 5 >= count * WINS_OF_FIVE
        && undisturbed.is_some_and(|(one, other)| faster(one, other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use CommitStrategy::{DirectDsync, LinkedWriteSync, WriteThenSync};

    fn tried((strategy, way, us): (CommitStrategy, Way, &[u64])) -> Tried {
        Tried { strategy, way, times: us.iter().map(|us| Duration::from_micros(*us)).collect() }
    }

    fn ordered(times_us: &[(CommitStrategy, &[u64])]) -> Vec<CommitStrategy> {
        let all = times_us.iter().map(|(strategy, us)| tried((*strategy, Way::Call, us)));
        order(all.collect()).0.into_iter().map(|candidate| candidate.strategy).collect()
    }

    #[test]
    fn direct_writes_are_taken_unless_another_is_clearly_faster() {
        assert_eq!(ordered(&[]), []);
        assert_eq!(ordered(&[(LinkedWriteSync, &[90; 8])]), [LinkedWriteSync]);
        let as_fast = [(DirectDsync, &[101; 8][..]), (LinkedWriteSync, &[95; 8]), (WriteThenSync, &[92; 8])];
        assert_eq!(ordered(&as_fast), [DirectDsync, LinkedWriteSync, WriteThenSync]);
        let slower = [(DirectDsync, &[120; 8][..]), (LinkedWriteSync, &[105; 8]), (WriteThenSync, &[100; 8])];
        assert_eq!(ordered(&slower), [LinkedWriteSync, WriteThenSync, DirectDsync]);
        let much = [(DirectDsync, &[300; 8][..]), (LinkedWriteSync, &[200; 8]), (WriteThenSync, &[100; 8])];
        assert_eq!(ordered(&much), [WriteThenSync, LinkedWriteSync, DirectDsync]);
    }

    #[test]
    fn a_slow_disk_gets_through_too_few_commits_to_decide_anything() {
        let few = [(DirectDsync, &[20_000; 2][..]), (WriteThenSync, &[10_000; 2])];
        assert_eq!(ordered(&few), [DirectDsync, WriteThenSync]);
    }

    #[test]
    fn a_direct_write_counts_by_the_better_of_its_ways() {
        let all = |call: u64, ring: u64| {
            [
                (DirectDsync, Way::Call, &[call; 8][..]),
                (DirectDsync, Way::Ring, &[ring; 8]),
                (LinkedWriteSync, Way::Ring, &[70; 8]),
                (WriteThenSync, Way::Call, &[130; 8]),
            ]
            .map(tried)
        };
        let (candidates, way) = order(Vec::from(all(120, 30)));
        let medians: Vec<_> = candidates.iter().map(|one| (one.strategy, one.median.as_micros())).collect();
        assert_eq!(medians, [(DirectDsync, 30), (LinkedWriteSync, 70), (WriteThenSync, 130)]);
        assert_eq!(way, Some(Way::Ring));
        let (candidates, way) = order(Vec::from(all(75, 72)));
        assert_eq!((candidates[0].strategy, way), (DirectDsync, Some(Way::Call)));
        let (candidates, way) = order(Vec::from(all(200, 150)));
        assert_eq!((candidates[0].strategy, way), (LinkedWriteSync, Some(Way::Ring)));
    }

    #[test]
    fn commits_that_were_disturbed_decide_nothing() {
        // Measured one after the other on an idle machine; the same strategies took 16, 126 and 27 us at best.
        let cold = [
            (DirectDsync, &[899, 1104, 946, 925, 451, 16, 23, 899][..]),
            (LinkedWriteSync, &[908, 843, 615, 906, 169, 711, 126, 560]),
            (WriteThenSync, &[836, 634, 735, 601, 27, 101, 37, 540]),
        ];
        assert_eq!(ordered(&cold), [DirectDsync, LinkedWriteSync, WriteThenSync]);
        let often_and_never_at_best = [
            (DirectDsync, &[900, 900, 900, 900, 900, 900, 900, 50][..]),
            (WriteThenSync, &[500, 500, 500, 500, 500, 500, 500, 90]),
        ];
        assert_eq!(ordered(&often_and_never_at_best), [DirectDsync, WriteThenSync]);
        let disturbed_alike = [
            (DirectDsync, &[900, 200, 200, 850, 200, 200, 200, 210][..]),
            (WriteThenSync, &[700, 100, 100, 600, 100, 110, 100, 900]),
        ];
        assert_eq!(ordered(&disturbed_alike), [WriteThenSync, DirectDsync]);
    }
}
