//! What must hold after a power cut: recovered, compared with what was appended and promised, gone on with,
//! and recovered again.

use crate::model::{Fold, Model, Payload, Promise};
use crate::random::Random;
use crate::workload::{self, CHECKPOINT, Dyn, How, RECORDS};
use durability::codec::Bytes;
use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::recover::{Recovery, RecoveryOptions, recover_with};
use durability::walog::{WalReader, WalReplayMode};
use std::path::Path;
use std::sync::Arc;

/// Who checks, and how.
pub struct Checker {
    pub how: How,
    pub random: Random,
    pub alignment_min: u32,
}

/// What a check found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The last entry.
    pub last: u64,
    pub records: u64,
    /// Whether a torn tail was cut.
    pub torn: bool,
}

/// Checks the log and the record log below `root` against what was appended and promised. Goes on with both:
/// the model is cut behind what was recovered, and holds what was appended since.
pub fn check(
    root: &Path,
    checker: &mut Checker,
    model: &mut Model,
    promise: Promise,
) -> Result<Found, String> {
    let directory = checker.how.open(root).map_err(|error| format!("opening the directory: {error}"))?;
    let recovered = recover(&directory, RecoveryOptions::best_effort(), model, promise)?;
    let (last, torn) = (recovered.last_entry_id, recovered.report.torn.is_some());
    model.cut(last);
    replay(&directory, model, &recovered)?;
    let next = go_on(recovered, checker, model)?;
    let again = recover(&directory, RecoveryOptions::strict(), model, Promise { entries: next, ..promise })
        .map_err(|problem| format!("after going on behind entry {last}: {problem}"))?;
    if again.last_entry_id != next {
        return Err(format!("after going on the log ends at {}, not at {next}", again.last_entry_id));
    }
    let records = check_records(&directory, promise.records)?;
    Ok(Found { last, records, torn })
}

/// Recovers from the checkpoint and the log.
pub fn recover(
    directory: &Arc<Dyn>,
    options: RecoveryOptions,
    model: &mut Model,
    promise: Promise,
) -> Result<Recovery<Fold, Dyn>, String> {
    let mut problem = None;
    let mut from = 0;
    let recovered = recover_with::<Vec<u8>, Vec<u8>, Fold, Dyn, _, ()>(
        Arc::clone(directory),
        Some(CHECKPOINT),
        options.or_new(),
        &Bytes,
        |state| {
            let Some(state) = state else { return Fold::default() };
            let fold = Fold::from_bytes(&state).unwrap_or_default();
            from = fold.through;
            fold
        },
        |fold, entry_id, payload| {
            if entry_id != fold.through + 1 {
                problem.get_or_insert(format!("entry {entry_id} follows entry {}", fold.through));
            }
            if let Err(wrong) = model.check(entry_id, &payload) {
                problem.get_or_insert(wrong);
            }
            fold.apply(entry_id, &payload);
        },
    );
    let recovered = recovered.map_err(|error| format!("recovery failed: {error} ({error:?})"))?;
    if let Some(problem) = problem {
        return Err(problem);
    }
    let last = recovered.last_entry_id;
    let wrong = if last < promise.entries {
        Err(format!("the log ends at entry {last}, promised was {}", promise.entries))
    } else if from < promise.checkpoint {
        Err(format!("the checkpoint is of entry {from}, promised was {}", promise.checkpoint))
    } else if model.fold_through(last) != Some(recovered.state) {
        Err(format!("the state through entry {last} is not what was appended (from {from})"))
    } else {
        model.check_end(last)
    };
    match wrong {
        Ok(()) => Ok(recovered),
        Err(problem) => Err(format!("{problem}; {}", recovered.report)),
    }
}

/// Reads all that is left of the log, also what the checkpoint covers.
fn replay(directory: &Arc<Dyn>, model: &mut Model, recovered: &Recovery<Fold, Dyn>) -> Result<(), String> {
    if recovered.report.no_log {
        return Ok(());
    }
    let reader = WalReader::<(), Dyn>::new(Arc::clone(directory));
    let mode = WalReplayMode::BestEffortTail;
    let range = reader.entry_range(mode).map_err(|error| format!("the range of entries: {error}"))?;
    let Some((first, last)) = range else { return Ok(()) };
    let (mut next, mut problem) = (first, None);
    let replayed = reader.replay_bytes_from(first, mode, |entry_id, payload| {
        let wrong = model.check(entry_id, payload).err();
        let gap = (entry_id != next).then(|| format!("entry {entry_id} instead of {next}"));
        problem = problem.take().or(gap).or(wrong);
        next = entry_id + 1;
        Ok(())
    });
    replayed.map_err(|error| format!("replay from entry {first}: {error}"))?;
    if last != recovered.last_entry_id || next != last + 1 {
        let recovered = recovered.last_entry_id;
        return Err(format!("replay ends before entry {next}, the range at {last}, recovery at {recovered}"));
    }
    problem.map_or(Ok(()), Err)
}

/// Appends behind what was recovered; returns the last entry.
fn go_on(recovered: Recovery<Fold, Dyn>, checker: &mut Checker, model: &mut Model) -> Result<u64, String> {
    let random = &mut checker.random;
    let mut last = recovered.last_entry_id;
    let (_, mut wal) = recovered
        .into_writer::<()>(workload::options(random, checker.alignment_min))
        .map_err(|error| format!("opening the log behind entry {last}: {error}"))?;
    for _ in 0..1 + random.below(3) {
        let payloads: Vec<_> = (0..1 + random.below(3)).map(|_| Payload::random(random)).collect();
        let bytes: Vec<_> = payloads.iter().map(|payload| payload.make()).collect();
        let ids = wal.append_batch_bytes(&bytes).map_err(|error| format!("appending: {error}"))?;
        if ids.first() != Some(&(last + 1)) {
            return Err(format!("{ids:?} follow entry {last}"));
        }
        model.appended(last + 1, &payloads);
        last += payloads.len() as u64;
    }
    if random.one_in(2) {
        wal.flush_and_sync().map_err(|error| format!("committing: {error}"))?;
    }
    match random.one_in(2) {
        true => wal.close().map_err(|error| format!("closing: {error}"))?,
        false => drop(wal),
    }
    Ok(last)
}

fn check_records(directory: &Arc<Dyn>, promised: u64) -> Result<u64, String> {
    let read = |mode| -> Result<u64, String> {
        let (mut index, mut wrong) = (0, None);
        let read = RecordLogReader::<Dyn>::new(Arc::clone(directory), RECORDS).read_each(mode, |payload| {
            index += 1;
            if payload != Payload::of_record(index).make() {
                wrong.get_or_insert(index);
            }
            Ok(())
        });
        match (read, wrong) {
            (_, Some(index)) => Err(format!("record {index} is not what was appended")),
            (Ok(count), None) if count == index => Ok(count),
            (Ok(count), None) => Err(format!("{index} records were read, {count} are said to be there")),
            (Err(error), None) if error.is_not_found() && promised == 0 => Ok(0),
            (Err(error), None) => Err(format!("the record log: {error}")),
        }
    };
    let count = read(RecordLogReadMode::BestEffort)?;
    if count < promised {
        return Err(format!("{count} records are left, promised were {promised}"));
    }
    let mut log = RecordLogWriter::<Dyn>::new(Arc::clone(directory), RECORDS);
    let gone_on = log
        .append_bytes(&Payload::of_record(count + 1).make())
        .and_then(|()| log.flush_and_sync())
        .and_then(|()| log.close());
    gone_on.map_err(|error| format!("going on behind record {count}: {error}"))?;
    match read(RecordLogReadMode::Strict) {
        Ok(again) if again == count + 1 => Ok(again),
        Ok(again) => Err(format!("{again} records behind {count} and one more")),
        Err(problem) => Err(format!("after going on behind record {count}: {problem}")),
    }
}
