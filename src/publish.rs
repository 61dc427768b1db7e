//! Publishing a checkpoint: the one place that orders a log, a checkpoint and a truncation.
//!
//! 1. The log is made durable through the last applied entry (an id behind its end is refused).
//! 2. The checkpoint is written under a temporary name and synced.
//! 3. Older checkpoints move one place back, the oldest behind those that are kept: of two, the newer may be damaged.
//! 4. The new one gets its name, and the names are made durable; then the one too many is removed.
//! 5. The log records the checkpoint, and that is made durable.
//! 6. The log is cut (or its segments are kept for reuse) up to the oldest checkpoint that is kept.
//!
//! What a crash leaves: before 4 is durable, the old checkpoints, maybe one place back, where recovery
//! finds them; after it, the new one, with more log than it needs. At no point does a checkpoint exist that
//! needs entries which are not durable, and at no point is anything cut that a kept checkpoint needs.

use crate::checkpoint::{CheckpointMeta, CheckpointReader, CheckpointWriter};
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::names;
use crate::limits::CHECKPOINTS_KEPT_DEFAULT;
use crate::planted;
use crate::storage::{
    Directory, DurableDirectory, Environment, StableStorage, SystemEnvironment, path, sweep_temporaries,
};
use crate::walog::{SyncWalWriter, WalMaintenance, WalObserver, WalWriter, read_chain};
use std::sync::Arc;

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PublishResult {
    /// Where the checkpoint is.
    pub checkpoint_path: String,
    /// The last entry that is applied in it.
    pub checkpoint_last_entry_id: u64,
    /// The entry with which the log records it.
    pub wal_checkpoint_entry_id: u64,
    /// Segments that were removed or kept for reuse.
    pub deleted_wal_segments: usize,
}

/// A log that checkpoints are published of.
pub trait PublishLog {
    /// Its directory's type.
    type Directory: Directory + ?Sized;

    /// Makes everything appended durable; returns the durable watermark.
    fn make_durable(&mut self) -> PersistenceResult<u64>;
    /// Id of the last appended entry.
    fn last_entry_id(&self) -> u64;
    /// Appends an entry and makes it durable; returns its id.
    fn append_durable_bytes(&mut self, payload: &[u8]) -> PersistenceResult<u64>;
    /// Its identity.
    fn log_identity(&self) -> PersistenceResult<u128>;
    /// How many truncated segments it keeps for reuse.
    fn spare_capacity(&self) -> usize;
    /// Who may veto truncation.
    fn truncation_observer(&self) -> Option<Arc<dyn WalObserver>>;
}

impl<E, D: Directory + StableStorage + ?Sized> PublishLog for WalWriter<E, D> {
    type Directory = D;

    fn make_durable(&mut self) -> PersistenceResult<u64> {
        self.flush_and_sync()?;
        Ok(self.durable_entry_id())
    }
    fn last_entry_id(&self) -> u64 {
        WalWriter::last_entry_id(self)
    }
    fn append_durable_bytes(&mut self, payload: &[u8]) -> PersistenceResult<u64> {
        self.append_bytes_durable(payload)
    }
    fn log_identity(&self) -> PersistenceResult<u128> {
        self.identity().ok_or_else(|| PersistenceError::invalid_state("publishing", "the log was not begun"))
    }
    fn spare_capacity(&self) -> usize {
        self.options().map_or(0, |options| options.recycle_capacity)
    }
    fn truncation_observer(&self) -> Option<Arc<dyn WalObserver>> {
        self.observer()
    }
}

/// Any handle publishes, beside the threads that commit through others.
impl<E, D: Directory + StableStorage + ?Sized> PublishLog for SyncWalWriter<E, D> {
    type Directory = D;

    fn make_durable(&mut self) -> PersistenceResult<u64> {
        self.flush_and_sync()?;
        Ok(self.durable_entry_id())
    }
    fn last_entry_id(&self) -> u64 {
        SyncWalWriter::last_entry_id(self)
    }
    fn append_durable_bytes(&mut self, payload: &[u8]) -> PersistenceResult<u64> {
        self.append_bytes_durable(payload)
    }
    fn log_identity(&self) -> PersistenceResult<u128> {
        Ok(self.identity())
    }
    fn spare_capacity(&self) -> usize {
        self.recycle_capacity()
    }
    fn truncation_observer(&self) -> Option<Arc<dyn WalObserver>> {
        self.observer()
    }
}

/// Publishes checkpoints.
#[derive(Debug)]
pub struct CheckpointPublisher<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
    kept: usize,
    environment: Arc<dyn Environment>,
}

impl<D: Directory + StableStorage + ?Sized> CheckpointPublisher<D> {
    /// Publishes into `directory`, keeping the last two checkpoints.
    pub fn new(directory: Arc<D>) -> Self {
        let environment = Arc::new(SystemEnvironment::new());
        Self { directory, kept: CHECKPOINTS_KEPT_DEFAULT, environment }
    }

    /// Takes the checkpoints' salts from `environment`: the same state then gives the same bytes.
    pub fn with_environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = environment;
        self
    }

    /// Keeps the last `checkpoints`, at least 1: the newest at its path, older ones beside it as `<path>.1`,
    /// `<path>.2`, and the part of the log that the oldest needs. A damaged newest checkpoint then falls
    /// back to the next.
    pub fn keep(mut self, checkpoints: usize) -> Self {
        self.kept = checkpoints.max(1);
        self
    }

    /// Publishes a state that `write` streams out, and an entry that `record` makes of its path. That entry is one
    /// of the log like any other: recovery hands it to `apply`, and its id is in the result.
    ///
    /// Effect: the six steps of the module's documentation.
    /// Durable when: on return, all of it.
    /// On error: everything that was published before is still good; the log may be poisoned by its own
    /// failure, and a checkpoint that was completed may be there already.
    /// If it never returns: the same.
    pub fn publish_with<L: PublishLog<Directory = D>>(
        &self,
        log: &mut L,
        last_applied_entry_id: u64,
        checkpoint_path: &str,
        write: impl FnOnce(&mut CheckpointWriter<'_, D>) -> PersistenceResult<()>,
        record: impl FnOnce(&str) -> PersistenceResult<Vec<u8>>,
    ) -> PersistenceResult<PublishResult> {
        let durable = self.directory.stable()?;
        if last_applied_entry_id > log.last_entry_id() {
            let reason = format!(
                "entry {last_applied_entry_id} is behind the log's end {}: its id would be given out again",
                log.last_entry_id()
            );
            return Err(PersistenceError::invalid_state("publishing a checkpoint", reason));
        }
        let skip = planted::on("checkpoint_before_log");
        let required_entry_id = if skip { last_applied_entry_id } else { log.make_durable()? };
        let required_entry_id =
            if planted::on("require_applied_only") { last_applied_entry_id } else { required_entry_id };
        let meta = CheckpointMeta { last_applied_entry_id, required_entry_id, identity: log.log_identity()? };
        let parent = path::parent(checkpoint_path);
        sweep_temporaries(self.directory.as_ref(), parent, Some(checkpoint_path))?;
        if planted::on("truncate_before_checkpoint") {
            self.truncate(log, checkpoint_path, meta)?;
        }
        let environment = self.environment.as_ref();
        let mut writer =
            CheckpointWriter::begin(self.directory.as_ref(), checkpoint_path, meta, environment)?;
        write(&mut writer)?;
        writer.finish_durable_after(|| {
            self.check_reach(meta)?;
            self.move_back(durable, checkpoint_path)
        })?;
        self.remove_oldest(checkpoint_path)?;
        let wal_checkpoint_entry_id = log.append_durable_bytes(&record(checkpoint_path)?)?;
        let deleted_wal_segments = self.truncate(log, checkpoint_path, meta)?;
        Ok(PublishResult {
            checkpoint_path: checkpoint_path.to_owned(),
            checkpoint_last_entry_id: last_applied_entry_id,
            wal_checkpoint_entry_id,
            deleted_wal_segments,
        })
    }

    /// Refuses a checkpoint of another log than the directory's, and one that the log does not reach back to
    /// any more, because a later one was published before: in its place nothing could be recovered.
    fn check_reach(&self, meta: CheckpointMeta) -> PersistenceResult<()> {
        let chain = read_chain(self.directory.as_ref(), Some(meta.identity))?;
        let (first, wanted_entry_id) = (chain.segments.first(), meta.last_applied_entry_id + 1);
        match first.map(|first| first.first_entry_id) {
            Some(first_entry_id) if first_entry_id > wanted_entry_id => {
                Err(PersistenceError::PrefixUnavailable { wanted_entry_id, first_entry_id })
            }
            _ => Ok(()),
        }
    }

    /// Moves the checkpoints that are there one place back, oldest first. Each rename leaves every kept
    /// checkpoint under a name that recovery looks at. A single one stays: the new one takes its place in one step.
    fn move_back(&self, durable: &dyn DurableDirectory, checkpoint_path: &str) -> PersistenceResult<()> {
        let replaces_oldest = self.kept == 1 || planted::on("oldest_checkpoint_goes_first");
        let moved = if replaces_oldest { self.kept - 1 } else { self.kept };
        for generation in (0..moved).rev() {
            let from = names::checkpoint_generation_path(checkpoint_path, generation);
            if self.directory.try_exists(&from)? {
                let to = names::checkpoint_generation_path(checkpoint_path, generation + 1);
                durable.atomic_rename_durable(&from, &to)?;
            }
        }
        Ok(())
    }

    /// Removes the oldest, which is not kept any more: the new one has its name.
    fn remove_oldest(&self, checkpoint_path: &str) -> PersistenceResult<()> {
        match self.directory.delete(&names::checkpoint_generation_path(checkpoint_path, self.kept)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    fn truncate<L: PublishLog<Directory = D>>(
        &self,
        log: &L,
        checkpoint_path: &str,
        published: CheckpointMeta,
    ) -> PersistenceResult<usize> {
        let mut needed = published.last_applied_entry_id;
        for generation in 1..self.kept {
            let path = names::checkpoint_generation_path(checkpoint_path, generation);
            match CheckpointReader::open(self.directory.as_ref(), &path) {
                Ok(reader) if reader.meta().identity == published.identity => {
                    let older = reader.meta().last_applied_entry_id;
                    needed =
                        if planted::on("trim_to_newest_checkpoint") { needed } else { needed.min(older) };
                }
                // A checkpoint that cannot be used needs nothing.
                Ok(_) | Err(PersistenceError::Corruption(_) | PersistenceError::Format { .. }) => {}
                Err(PersistenceError::MissingCheckpoint { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let maintenance = WalMaintenance::<D>::new(Arc::clone(&self.directory));
        maintenance.truncate(needed, log.spare_capacity(), log.truncation_observer().as_deref())
    }
}

#[cfg(feature = "postcard")]
mod typed {
    use super::{CheckpointPublisher, PublishLog, PublishResult};
    use crate::codec::Postcard;
    use crate::error::PersistenceResult;
    use crate::recover::{CheckpointState, WalEntry};
    use crate::storage::{Directory, StableStorage};
    use serde::Serialize;

    impl<D: Directory + StableStorage + ?Sized> CheckpointPublisher<D> {
        /// [`publish_with`](Self::publish_with) of a state that is encoded with postcard. `make_entry` makes
        /// the log's record of the checkpoint from its path and last applied entry.
        pub fn publish<L: PublishLog<Directory = D>, S: Serialize + ?Sized, E: Serialize>(
            &self,
            log: &mut L,
            state: &S,
            last_applied_entry_id: u64,
            checkpoint_path: &str,
            make_entry: impl FnOnce(&str, u64) -> E,
        ) -> PersistenceResult<PublishResult> {
            self.publish_with(
                log,
                last_applied_entry_id,
                checkpoint_path,
                |writer| writer.write_postcard(state),
                |path| {
                    let mut bytes = Vec::new();
                    Postcard::write(&make_entry(path, last_applied_entry_id), &mut bytes)?;
                    Ok(bytes)
                },
            )
        }

        /// [`publish`](Self::publish) of a segment index.
        pub fn publish_checkpoint<L: PublishLog<Directory = D>>(
            &self,
            log: &mut L,
            state: &CheckpointState,
            last_applied_entry_id: u64,
            checkpoint_path: &str,
        ) -> PersistenceResult<PublishResult> {
            self.publish(log, state, last_applied_entry_id, checkpoint_path, |path, last_entry_id| {
                WalEntry::Checkpoint { checkpoint_path: path.to_owned(), last_entry_id }
            })
        }
    }
}

#[cfg(all(test, feature = "postcard"))]
#[path = "publish_tests.rs"]
mod tests;
