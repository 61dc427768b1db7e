//! The order in which a repair is done.
//!
//! 1. The writer's lock, and the locks of all files; then the plan is made.
//! 2. A folder beside the log, with the report (planned), durable.
//! 3. Copies of all bytes that will be cut, durable; files that will be moved are synced.
//! 4. Only then the steps, in the order of the plan, each durable before the next.
//! 5. The report again (done), durable.
//!
//! A crash before 4 leaves the log as it was; one in 4 leaves a log of which less is left to be repaired, in the
//! next folder. Nothing in any folder of an earlier repair is ever touched.

use super::overlay::Planned;
use super::plan::{Keep, RepairPlan, RepairStep, plan_log, plan_record_log};
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::names;
use crate::inspect::Checkpoints;
use crate::limits::{LOCK_FILE_WAIT_MS, LOCK_WAIT_MS_DEFAULT, READ_CHUNK_BYTES};
use crate::planted;
use crate::storage::{
    Commit, CommitBuffer, CommitFile, Directory, DirectoryLock, DurableDirectory, Effect, FileOptions, path,
};
use crate::walog::{SegmentScans, WalCheck};
use std::sync::Arc;
use std::time::Duration;

/// How far a repair is, for its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RepairState {
    /// Nothing was changed yet.
    Planned,
    /// Everything is done.
    Done,
}

/// What a repair left.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Repaired {
    /// The folder with everything that was taken out, and the report; `None` when there was nothing to do.
    pub folder: Option<String>,
}

/// A repair that can be applied: holds the writer's lock from before the plan was made.
#[derive(Debug)]
pub struct Repair<D: DurableDirectory + ?Sized = dyn DurableDirectory> {
    directory: Arc<D>,
    /// Where folders of repairs are made.
    beside: String,
    plan: RepairPlan,
    _lock: Box<dyn DirectoryLock>,
}

impl<D: DurableDirectory + ?Sized> Repair<D> {
    /// Locks the log in `directory` and plans its repair, as [`plan_log`] does with the checkpoints `beside` it.
    /// `LockFailed` when there is a writer.
    pub fn of_log(
        directory: Arc<D>,
        beside: &Checkpoints,
        keep: Keep,
        mut scan_all: impl FnMut(&WalCheck<Planned<D>>) -> SegmentScans,
    ) -> PersistenceResult<Self> {
        if !directory.try_exists(names::WAL_DIRECTORY)? {
            return Err(PersistenceError::NotFound { path: names::WAL_DIRECTORY.to_owned() });
        }
        let lock = directory.lock(names::WAL_LOCK, Duration::from_millis(LOCK_FILE_WAIT_MS))?;
        for name in directory.list_dir(names::WAL_DIRECTORY)? {
            if names::parse_wal_name(&name) != names::WalName::Other {
                let file = path::join(names::WAL_DIRECTORY, &name);
                directory.await_unlocked(&file, Duration::from_millis(LOCK_WAIT_MS_DEFAULT))?;
            }
        }
        let plan = plan_log(&directory, beside, keep, &mut scan_all)?;
        Ok(Self { directory, beside: String::new(), plan, _lock: lock })
    }

    /// Locks the record log at `path` and plans its repair, as [`plan_record_log`] does.
    pub fn of_record_log(
        directory: Arc<D>,
        path: &str,
        progress: &mut dyn FnMut(u64),
    ) -> PersistenceResult<Self> {
        if !directory.try_exists(path)? {
            return Err(PersistenceError::NotFound { path: path.to_owned() });
        }
        let wait = Duration::from_millis(LOCK_FILE_WAIT_MS);
        let lock = directory.lock(&names::record_log_lock_path(path), wait)?;
        directory.await_unlocked(path, Duration::from_millis(LOCK_WAIT_MS_DEFAULT))?;
        let plan = plan_record_log(&directory, path, progress)?;
        let beside = path::parent(path).to_owned();
        Ok(Self { directory, beside, plan, _lock: lock })
    }

    /// What [`apply`](Self::apply) would do.
    pub fn plan(&self) -> &RepairPlan {
        &self.plan
    }

    /// Does it. `accepted` names the entries that may be lost, as [`Loss`](super::Loss) writes them; without
    /// it, and with any other text, a repair that loses entries is refused. `report` writes the report, which
    /// goes into the folder before anything is changed and again when everything is done.
    ///
    /// Effect: what the plan takes out of the log is in a folder `repair-<n>` beside it; the log is clean, and
    /// does not end before what the checkpoints beside it require.
    /// Durable when: on return, all of it.
    /// On error, and if it never returns: nothing is lost that is not in the folder; repair again.
    pub fn apply(
        self,
        accepted: Option<&str>,
        report: &mut dyn FnMut(&RepairPlan, &str, RepairState) -> Vec<u8>,
    ) -> PersistenceResult<Repaired> {
        if let Some(obstacle) = &self.plan.obstacle {
            return Err(PersistenceError::invalid_state("repair", obstacle.clone()));
        }
        let loss = self.plan.loss;
        let is_accepted = loss.is_none() || accepted == Some(loss.to_string().as_str());
        if !is_accepted && !planted::on("repair_loses_unasked") {
            let reason = format!("it would lose entries {loss}, which was not accepted");
            return Err(PersistenceError::invalid_state("repair", reason));
        }
        if self.plan.steps.is_empty() {
            return Ok(Repaired { folder: None });
        }
        let folder = self.new_folder()?;
        let report_path = path::join(&folder, "report.json");
        let planned = report(&self.plan, &folder, RepairState::Planned);
        self.directory.atomic_write_durable(&report_path, &planned)?;
        if !planted::on("repair_cuts_before_saving") {
            self.save(&folder)?;
        }
        for step in &self.plan.steps {
            match step {
                RepairStep::MoveAway { path, .. } => {
                    self.directory.atomic_rename_durable(path, &kept_path(&folder, path))?;
                }
                RepairStep::Cut { path, offset, .. } => self.cut(path, *offset)?,
            }
        }
        if planted::on("repair_cuts_before_saving") {
            self.save(&folder)?;
        }
        let done = report(&self.plan, &folder, RepairState::Done);
        self.directory.atomic_write_durable(&report_path, &done)?;
        Ok(Repaired { folder: Some(folder) })
    }

    /// The next free folder; one of an earlier repair is never used again.
    fn new_folder(&self) -> PersistenceResult<String> {
        let names = self.directory.list_dir(&self.beside)?;
        let used = names.iter().filter_map(|name| name.strip_prefix(FOLDER_PREFIX)?.parse::<u64>().ok());
        let number = used.max().unwrap_or(0).saturating_add(1);
        let folder = path::join(&self.beside, &format!("{FOLDER_PREFIX}{number}"));
        self.directory.create_dir_all_durable(&folder)?;
        Ok(folder)
    }

    /// Copies what will be cut, and makes durable what will be moved.
    fn save(&self, folder: &str) -> PersistenceResult<()> {
        for step in &self.plan.steps {
            match step {
                RepairStep::MoveAway { path, .. } if self.directory.try_exists(path)? => {
                    self.directory.sync_file(path)?;
                }
                RepairStep::MoveAway { .. } => {}
                RepairStep::Cut { path, offset, bytes } => {
                    let copy = format!("{}.from-{offset}", kept_path(folder, path));
                    self.copy_tail(path, *offset, *bytes, &copy)?;
                }
            }
        }
        Ok(())
    }

    fn copy_tail(&self, path: &str, offset: u64, bytes: u64, copy: &str) -> PersistenceResult<()> {
        let source = self.directory.open_at(path)?;
        let file = self.directory.open_durable_file(copy, &FileOptions::create_new())?;
        let mut copied = 0;
        while copied < bytes {
            let count = (bytes - copied).min(READ_CHUNK_BYTES as u64) as usize;
            let mut buffer = CommitBuffer::new();
            buffer.resize(count, 0);
            let read = source.read_at(offset + copied, &mut buffer[..count])?;
            if read < count {
                let source = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(PersistenceError::io("read", path, Some(offset + copied + read as u64), source));
            }
            commit(file.as_ref(), copied, buffer, count, Effect::Flushed)?;
            copied += count as u64;
        }
        commit(file.as_ref(), copied, CommitBuffer::new(), 0, Effect::Durable)?;
        self.directory.sync_parent_dir(copy)
    }

    fn cut(&self, path: &str, offset: u64) -> PersistenceResult<()> {
        let file = self.directory.open_durable_file(path, &FileOptions::existing().locked())?;
        if file.size()? > offset {
            file.set_size(offset)?;
        }
        commit(file.as_ref(), offset, CommitBuffer::new(), 0, Effect::Durable)
    }
}

const FOLDER_PREFIX: &str = "repair-";

fn kept_path(folder: &str, path: &str) -> String {
    path::join(folder, path::file_name(path))
}

fn commit(
    file: &dyn CommitFile,
    offset: u64,
    buffer: CommitBuffer,
    bytes: usize,
    effect: Effect,
) -> PersistenceResult<()> {
    file.commit(Commit { id: 1, offset, buffer, range: 0..bytes, effect }).0
}
