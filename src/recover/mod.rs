//! Recovery: the newest usable checkpoint, then the log behind it.
//!
//! `recover_with_wal` (feature `postcard`) is generic over checkpoint, state, entry and directory;
//! [`recover_with`] over the codec as well. Both read only. What they return is not made durable by that:
//! turn the result into a writer ([`Recovery::into_writer`]) before showing it to anybody, or open the log
//! first.
//!
//! The segment-index flavour (`RecoveryManager`) is one user of the generic code.

mod compat;
mod plan;
mod report;
#[cfg(feature = "postcard")]
mod segment_index;

#[cfg(feature = "postcard")]
pub use compat::recover_with_wal;
pub use plan::CheckpointFinding;
pub use report::RecoveryReport;
#[cfg(feature = "postcard")]
pub use segment_index::{
    CheckpointSegment, CheckpointState, RecoveredSegment, RecoveredState, RecoveryManager, WalEntry,
};

use crate::checkpoint::{CheckpointFile, CheckpointMeta};
use crate::codec::Codec;
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::names::{self, WalName};
use crate::planted;
use crate::storage::{Directory, Environment, SystemEnvironment, path};
use crate::walog::{LogEnd, Requirements, WalOptions, WalReader, WalReplayMode, WalWriter, at_entry};
use std::sync::Arc;

/// What recovery accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryOptions {
    /// What ends of the log are accepted.
    pub wal_mode: WalReplayMode,
    /// Treat a damaged checkpoint as if there were none, when no older one is good either. Recovery then
    /// needs the whole log, and fails when the log no longer begins with entry 1.
    pub ignore_corrupt_checkpoint: bool,
    /// Recover the state as of this entry. A checkpoint that is newer is refused; what is wrong with the log behind the
    /// entry is not looked at. A log that ends before it gives what it has: [`Recovery::last_entry_id`] tells.
    pub up_to_entry_id: Option<u64>,
    /// Take the absence of both checkpoint and log for a database that was never started. Without this
    /// word, an empty directory (a vanished mount looks like one) is an error, `MissingCheckpoint` where a
    /// checkpoint is named and else `NotFound`; so is an empty `wal/`. (A log that was opened and has no entries yet has its lock there.)
    pub allow_missing_log: bool,
}

impl RecoveryOptions {
    /// Only a log that ends cleanly.
    pub fn strict() -> Self {
        Self::default()
    }

    /// Also a log that ends in a torn tail: what a crash leaves of writes that were never acknowledged.
    pub fn best_effort() -> Self {
        Self { wal_mode: WalReplayMode::BestEffortTail, ..Self::default() }
    }

    /// Also where nothing was ever started: `init` then gets `None` and nothing is applied.
    pub fn or_new(mut self) -> Self {
        self.allow_missing_log = true;
        self
    }

    /// The state as of entry `entry_id`, best-effort.
    pub fn up_to(entry_id: u64) -> Self {
        Self { up_to_entry_id: Some(entry_id), ..Self::best_effort() }
    }
}

/// A recovered state.
#[derive(Debug)]
pub struct Recovery<W, D: Directory + ?Sized = dyn Directory> {
    /// The state.
    pub state: W,
    /// The last entry that is applied in it.
    pub last_entry_id: u64,
    /// What was found, used and cut.
    pub report: RecoveryReport,
    directory: Arc<D>,
    end: Option<LogEnd>,
    identity: Option<u128>,
    /// The last entry that a checkpoint covers: ids never go back behind it.
    id_floor: u64,
}

impl<W, D: Directory + ?Sized> Recovery<W, D> {
    /// Id that the next entry of the log will get; `None` after a recovery that stopped before the end.
    pub fn next_entry_id(&self) -> Option<u64> {
        let new = self.report.no_log.then_some(self.last_entry_id + 1);
        self.end.as_ref().map(|end| end.last_entry_id + 1).or(new)
    }

    /// Opens the log for writing where recovery stopped. Only what nothing attests is read again; on a
    /// durable directory everything that was recovered is durable on return.
    ///
    /// Fails when the log has changed since, and after a recovery that stopped before the end.
    pub fn into_writer<E>(self, options: WalOptions) -> PersistenceResult<(W, WalWriter<E, D>)> {
        let id_floor = options.id_floor.max(self.id_floor);
        let identity = options.identity.or(self.identity);
        let options = WalOptions { id_floor, identity, ..options };
        let writer = match self.end {
            Some(end) => WalWriter::open_known(self.directory, options, &end)?,
            None if self.report.no_log && planted::on("any_log_is_a_new_one") => {
                WalWriter::open_with(self.directory, options)?
            }
            None if self.report.no_log => WalWriter::open_new(self.directory, options)?,
            None => {
                let reason = "the state is older than the end of the log; recover it all first";
                return Err(PersistenceError::invalid_state("opening the log", reason));
            }
        };
        Ok((self.state, writer))
    }
}

/// What `apply` may return: nothing, or a result.
pub trait ApplyOutcome {
    /// As a result.
    fn into_result(self) -> PersistenceResult<()>;
}

impl ApplyOutcome for () {
    fn into_result(self) -> PersistenceResult<()> {
        Ok(())
    }
}

impl ApplyOutcome for PersistenceResult<()> {
    fn into_result(self) -> PersistenceResult<()> {
        self
    }
}

/// Recovers a state: reads the checkpoint (or an older one that is kept beside it, where the newest is
/// damaged and the log still reaches back), makes the state with `init`, and applies every later entry.
///
/// * `checkpoint_path`: `None` replays the whole log. A path at which nothing is found is an error,
///   `MissingCheckpoint`, when the log does not begin with entry 1 or is not there either (unless
///   [`RecoveryOptions::or_new`] allows that); otherwise `init` gets `None`.
/// * A log that does not reach back to the checkpoint is an error, never a shorter history; so is a log
///   that ends before what the checkpoint requires.
/// * An error of `apply` ends the recovery and is returned.
///
/// Reads only. What is returned is durable only after [`Recovery::into_writer`] (or after the log was
/// opened for writing by other means).
pub fn recover_with<C, E, W, D, K, A>(
    directory: Arc<D>,
    checkpoint_path: Option<&str>,
    options: RecoveryOptions,
    codec: &K,
    init: impl FnOnce(Option<C>) -> W,
    mut apply: impl FnMut(&mut W, u64, E) -> A,
) -> PersistenceResult<Recovery<W, D>>
where
    D: Directory + ?Sized,
    K: Codec<C> + Codec<E>,
    A: ApplyOutcome,
{
    let clock = SystemEnvironment::new();
    let read = |path: &str| {
        let (_, bytes) = CheckpointFile::new(Arc::clone(&directory)).read_bytes(path)?;
        Codec::<C>::decode(codec, &bytes).map_err(|error| at_checkpoint(error, path))
    };
    let plan = plan::choose(directory.as_ref(), checkpoint_path, &options, read)?;
    let mut report = RecoveryReport::of(&plan);
    let requirements = plan.requirements();
    let meta = plan.chosen.as_ref().map_or(CheckpointMeta::default(), |chosen| chosen.meta);
    let mut state = init(plan.chosen.map(|chosen| chosen.state));
    let replayed = replay(&directory, meta, &requirements, &options, |entry_id, bytes| {
        let entry = Codec::<E>::decode(codec, bytes).map_err(|error| at_entry(error, entry_id))?;
        apply(&mut state, entry_id, entry).into_result()
    })?;
    report.note_replay(&replayed, clock.elapsed());
    Ok(Recovery {
        state,
        last_entry_id: replayed.last_entry_id,
        report,
        directory,
        end: replayed.end,
        identity: Some(meta.identity).filter(|identity| *identity != 0),
        id_floor: meta.last_applied_entry_id,
    })
}

/// Adds the checkpoint to a decoding error.
fn at_checkpoint(error: PersistenceError, path: &str) -> PersistenceError {
    match error {
        PersistenceError::Decode { entry_id, reason } => {
            PersistenceError::Decode { entry_id, reason: format!("checkpoint {path}: {reason}") }
        }
        error => error,
    }
}

/// What replaying the log behind a checkpoint gave.
struct Replayed {
    last_entry_id: u64,
    entries: u64,
    /// Where the log ends; `None` when replay stopped before.
    end: Option<LogEnd>,
    /// The log does not exist, which was allowed.
    no_log: bool,
}

fn replay<D: Directory + ?Sized>(
    directory: &Arc<D>,
    meta: CheckpointMeta,
    requirements: &Requirements,
    options: &RecoveryOptions,
    mut apply: impl FnMut(u64, &[u8]) -> PersistenceResult<()>,
) -> PersistenceResult<Replayed> {
    let stop_after = options.up_to_entry_id.unwrap_or(u64::MAX);
    let mut last_entry_id = meta.last_applied_entry_id;
    let mut entries = 0;
    let mut stopped = false;
    if !requirements.log_expected && was_never_opened(directory.as_ref())? {
        return match options.allow_missing_log {
            true => Ok(Replayed { last_entry_id, entries, end: None, no_log: true }),
            false => Err(PersistenceError::NotFound { path: names::WAL_DIRECTORY.to_owned() }),
        };
    }
    let mut reader = WalReader::<(), D>::new(Arc::clone(directory));
    if meta.identity != 0 {
        reader = reader.with_identity(meta.identity);
    }
    let from = meta.last_applied_entry_id + 1;
    let result = reader.replay_with(from, options.wal_mode, requirements, |entry_id, bytes| {
        if entry_id > stop_after {
            stopped = true;
            return Err(PersistenceError::invalid_state("replay", "the entry asked for is reached"));
        }
        apply(entry_id, bytes)?;
        last_entry_id = entry_id;
        entries += 1;
        Ok(())
    });
    match result {
        Ok(summary) => Ok(Replayed { last_entry_id, entries, end: Some(summary.end), no_log: false }),
        Err(error) if stopped || is_behind(&error, stop_after, last_entry_id, entries) => {
            Ok(Replayed { last_entry_id, entries, end: None, no_log: false })
        }
        Err(error) => Err(error),
    }
}

/// Whether what is wrong lies behind the entry that was asked for, which was read.
fn is_behind(error: &PersistenceError, stop_after: u64, last_entry_id: u64, entries: u64) -> bool {
    error.is_corruption() && last_entry_id == stop_after && entries > 0
}

/// Whether no log was ever opened here: every writer leaves its lock.
fn was_never_opened<D: Directory + ?Sized>(directory: &D) -> PersistenceResult<bool> {
    let found = match directory.list_dir(names::WAL_DIRECTORY) {
        Err(error) if error.is_not_found() => return Ok(true),
        found => found?,
    };
    let of_a_log = |name: &String| {
        let is_file = matches!(names::parse_wal_name(name), WalName::Segment(_) | WalName::Suspect);
        is_file || name == path::file_name(names::WAL_LOCK)
    };
    Ok(!found.iter().any(of_a_log))
}
