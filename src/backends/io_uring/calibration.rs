//! Which strategy is the fastest in a directory: small commits with each, in turn.
//!
//! Lives here: measuring, and what follows from the numbers. Not here: what a strategy does.
//!
//! A disk whose flush is slow and one whose flush is fast want the same of a lone commit, but file systems
//! differ in what a direct write or a linked pair costs them; a few milliseconds tell.

use super::UringDirectory;
use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::{
    CALIBRATION_COMMITS_MAX, CALIBRATION_COMMITS_MIN, CALIBRATION_TIME_MS, FRAME_ALIGNMENT_MAX,
};
use crate::storage::{
    Calibration, Commit, CommitBuffer, CommitFile, CommitStrategy, Directory, Effect, FileOptions,
    MeasuredStrategy, temporary_path,
};
use std::time::{Duration, Instant};

/// What is tried, the one that is preferred first.
const PREFERENCE: [CommitStrategy; 3] =
    [CommitStrategy::DirectDsync, CommitStrategy::LinkedWriteSync, CommitStrategy::WriteThenSync];

/// A strategy that comes later in [`PREFERENCE`] has to be faster by one part in so many.
const MARGIN_PARTS: u32 = 8;

/// Measures what the files beside `path` can have, with `options`' alignment, and orders it.
///
/// Files under temporary names are made and removed. On error nothing is known; what stays behind is swept with other temporaries.
pub(super) fn calibrate(
    directory: &UringDirectory,
    path: &str,
    options: &FileOptions,
) -> PersistenceResult<Calibration> {
    #[allow(clippy::disallowed_methods, reason = "how long a device takes is real time")]
    let now = Instant::now;
    let began = now();
    let mut files = Vec::new();
    let result = (|| {
        for strategy in PREFERENCE {
            if strategy == CommitStrategy::WriteThenSync && !directory.options.std_fs_too {
                continue;
            }
            let temporary = temporary_path(path);
            let bytes = u64::from(CALIBRATION_COMMITS_MAX) * u64::from(FRAME_ALIGNMENT_MAX);
            let how = FileOptions::create_new().zero_filled(bytes).aligned(options.alignment);
            match directory.open_as(&temporary, &how, Some(strategy)) {
                Ok(file) => files.push((temporary, strategy, file, Vec::new())),
                // The file cannot have this one.
                Err(PersistenceError::NotSupported { .. } | PersistenceError::InvalidConfig { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let ready = now();
        for number in 0..CALIBRATION_COMMITS_MAX {
            for (_, _, file, times) in &mut files {
                let before = now();
                commit_block(file.as_ref(), number)?;
                times.push(before.elapsed());
            }
            // Fewer would say nothing where they take long, too.
            let enough = number + 1 >= CALIBRATION_COMMITS_MIN;
            if enough && ready.elapsed() >= Duration::from_millis(CALIBRATION_TIME_MS) {
                break;
            }
        }
        Ok(())
    })();
    let mut candidates = Vec::new();
    let mut commits = 0;
    for (temporary, strategy, file, mut times) in files {
        drop(file);
        // Best effort: it is a temporary.
        let _ = directory.files.delete(&temporary);
        times.sort_unstable();
        commits = times.len() as u32;
        candidates
            .extend(times.get(times.len() / 2).map(|median| MeasuredStrategy { strategy, median: *median }));
    }
    result?;
    order(&mut candidates);
    Ok(Calibration { candidates, commits, took: began.elapsed() })
}

fn commit_block(file: &dyn CommitFile, number: u32) -> PersistenceResult<()> {
    let block = FRAME_ALIGNMENT_MAX as usize;
    let mut buffer = CommitBuffer::with_capacity(block);
    buffer.extend_from_slice(&[number as u8 | 1; FRAME_ALIGNMENT_MAX as usize]);
    let offset = u64::from(number) * block as u64;
    let commit =
        Commit { id: u64::from(number) + 1, offset, buffer, range: 0..block, effect: Effect::Durable };
    file.commit(commit).0
}

/// The best one first: the fastest, or one before it in [`PREFERENCE`] that is nearly as fast.
fn order(candidates: &mut [MeasuredStrategy]) {
    let place = |strategy| PREFERENCE.iter().position(|known| *known == strategy).unwrap_or(PREFERENCE.len());
    candidates.sort_by_key(|candidate| (candidate.median, place(candidate.strategy)));
    let Some(fastest) = candidates.first().map(|fastest| fastest.median) else { return };
    let near = fastest + fastest / MARGIN_PARTS;
    let preferred = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.median <= near)
        .min_by_key(|(_, candidate)| place(candidate.strategy));
    if let Some((index, _)) = preferred {
        candidates[..=index].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CommitStrategy::{DirectDsync, LinkedWriteSync, WriteThenSync};

    fn ordered(medians_us: &[(CommitStrategy, u64)]) -> Vec<CommitStrategy> {
        let mut candidates: Vec<_> = medians_us
            .iter()
            .map(|(strategy, us)| MeasuredStrategy {
                strategy: *strategy,
                median: Duration::from_micros(*us),
            })
            .collect();
        order(&mut candidates);
        candidates.into_iter().map(|candidate| candidate.strategy).collect()
    }

    #[test]
    fn the_fastest_is_taken_and_direct_writes_where_it_is_close() {
        assert_eq!(ordered(&[]), []);
        let as_fast = [(WriteThenSync, 100), (LinkedWriteSync, 90), (DirectDsync, 101)];
        assert_eq!(ordered(&as_fast), [DirectDsync, LinkedWriteSync, WriteThenSync]);
        let slower = [(DirectDsync, 120), (LinkedWriteSync, 105), (WriteThenSync, 100)];
        assert_eq!(ordered(&slower), [LinkedWriteSync, WriteThenSync, DirectDsync]);
        let much_slower = [(DirectDsync, 300), (LinkedWriteSync, 200), (WriteThenSync, 100)];
        assert_eq!(ordered(&much_slower), [WriteThenSync, LinkedWriteSync, DirectDsync]);
    }
}
