//! The checkpoints beside a log: whether they are whole, and whether the log is the one that they need.
//!
//! Look at them before the log: beside a writer that publishes, a log that was read later holds all that a
//! checkpoint requires, one that was read before may not. The log is then asked for what they require
//! ([`Checkpoints::requirements`]), and [`Checkpoints::held_against`] it says what each is.

use super::Verdict;
use crate::checkpoint::{CheckpointMeta, CheckpointReader};
use crate::error::{Check, Corruption, PersistenceError, PersistenceResult, Proof};
use crate::formats::header::FileKind;
use crate::formats::names;
use crate::planted;
use crate::storage::{Directory, is_temporary_name};
use crate::walog::{Requirements, WalChecked, read_chain};
use std::collections::HashSet;

/// A checkpoint, looked at beside its log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckpointReport {
    /// Its path under the directory's root.
    pub path: String,
    /// What it is found to be: damage in it, or the log of another identity, is corruption.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub verdict: Verdict,
    /// Size of the file.
    pub file_bytes: u64,
    /// The log that it belongs to; 0 for none.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::error::as_hex::identity"))]
    pub identity: u128,
    /// The last entry in the state.
    pub last_applied_entry_id: u64,
    /// The least entry at which the log may end.
    pub required_entry_id: u64,
    /// Whether it is whole and the log goes on behind it: recovery can start from it.
    pub usable: bool,
}

/// The checkpoints among the files beside a log.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    reports: Vec<CheckpointReport>,
    /// The log's identity, where its files agreed about it.
    identity: Option<u128>,
}

impl Checkpoints {
    /// Reads those of the `files` of `directory` that are checkpoints, to their ends; files that are none of ours
    /// are passed over, unless they have the name of an older or newer one of a checkpoint that is there. What is
    /// gone meanwhile is gone. `progress` is told how many more bytes were read.
    ///
    /// A file of which nothing says any more that it was a checkpoint (an empty one, or one with a zeroed header)
    /// is not recognised, as a missing one is not.
    pub fn read<D: Directory + ?Sized>(
        directory: &D,
        files: &[String],
        progress: &mut dyn FnMut(u64),
    ) -> PersistenceResult<Self> {
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for file in files.iter().filter(|file| !is_temporary_name(file)) {
            match super::kind_of(directory, file) {
                Ok(FileKind::Checkpoint) => ours.push(file),
                Ok(_) | Err(PersistenceError::Format { .. }) => others.push(file),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let bases: HashSet<_> = ours.iter().map(|path| names::checkpoint_base(path)).collect();
        others.retain(|path| bases.contains(names::checkpoint_base(path)));
        ours.append(&mut others);
        ours.sort_unstable();
        let mut checkpoints = Self { reports: Vec::new(), identity: identity_of(directory) };
        for path in ours {
            checkpoints.reports.extend(read(directory, path, progress)?);
        }
        Ok(checkpoints)
    }

    /// What they require of the log: for [`WalCheck::run_requiring`](crate::walog::WalCheck::run_requiring).
    pub fn requirements(&self) -> Requirements {
        self.requirements_of(self.identity)
    }

    /// [`requirements`](Self::requirements), of the log that `directory` would be.
    pub(crate) fn requirements_in<D: Directory + ?Sized>(&self, directory: &D) -> Requirements {
        self.requirements_of(identity_of(directory))
    }

    fn requirements_of(&self, identity: Option<u128>) -> Requirements {
        let least_end = self.least_end_of(identity);
        // A log may begin behind a checkpoint of none.
        let is_about_it = |report: &&CheckpointReport| {
            report.verdict.is_accepted()
                && (report.identity == 0 || identity.is_none_or(|identity| identity == report.identity))
        };
        let covered = self.reports.iter().filter(is_about_it).map(|report| report.last_applied_entry_id);
        let id_floor = if planted::on("checkpoint_is_no_floor") { 0 } else { covered.max().unwrap_or(0) };
        Requirements { id_floor, log_expected: least_end.is_some(), least_end }
    }

    fn least_end_of(&self, identity: Option<u128>) -> Option<(u64, String)> {
        // What a log requires of checkpoints of another one is nothing.
        let is_its_own = |report: &&CheckpointReport| {
            report.identity != 0 && identity.is_none_or(|identity| identity == report.identity)
        };
        let required = |report: &CheckpointReport| report.required_entry_id.max(report.last_applied_entry_id);
        // The first of equal ones.
        let most = self.reports.iter().rev().filter(is_its_own).max_by_key(|report| required(report));
        most.map(|report| (required(report), report.path.clone()))
    }

    /// Holds them against the log that was read: the reports, and the verdict about all of it, which is the log's
    /// where no mode accepts that, and else that of the first checkpoint that is damaged or none of this log's.
    pub fn held_against(
        self,
        log: &Verdict,
        checked: Option<&WalChecked>,
    ) -> (Vec<CheckpointReport>, Verdict) {
        let mut reports = self.reports;
        if let Some(checked) = checked {
            for report in &mut reports {
                report.hold_against(checked);
            }
        }
        let worst = reports.iter().map(|report| &report.verdict).find(|verdict| !verdict.is_accepted());
        let verdict = worst.filter(|_| log.is_accepted()).unwrap_or(log).clone();
        (reports, verdict)
    }
}

impl CheckpointReport {
    fn hold_against(&mut self, checked: &WalChecked) {
        let reaches_back =
            checked.first_entry_id().is_none_or(|first| first <= self.last_applied_entry_id + 1);
        self.usable = self.verdict.is_accepted() && reaches_back;
        let Some(expected) = checked.identity() else { return };
        if self.verdict.is_accepted() && self.identity != 0 && self.identity != expected {
            let check = Check::Identity { expected, found: self.identity };
            let (path, proof) = (self.path.clone(), Proof::Contradiction);
            self.verdict = Verdict::Corrupt(Corruption { path, offset: 0, entry_id: 0, check, proof });
            self.usable = false;
        }
    }
}

fn identity_of<D: Directory + ?Sized>(directory: &D) -> Option<u128> {
    read_chain(directory, None).ok().and_then(|chain| chain.identity)
}

/// Reads one to its end through one descriptor: publishing renames beside this.
fn read<D: Directory + ?Sized>(
    directory: &D,
    path: &str,
    progress: &mut dyn FnMut(u64),
) -> PersistenceResult<Option<CheckpointReport>> {
    let file_bytes = match directory.open_at(path).and_then(|file| file.size()) {
        Err(error) if error.is_not_found() => return Ok(None),
        bytes => bytes?,
    };
    let (meta, judged) = match CheckpointReader::open(directory, path) {
        Err(PersistenceError::MissingCheckpoint { .. }) => return Ok(None),
        Err(error) => (CheckpointMeta::default(), Err(error)),
        Ok(mut reader) => (reader.meta(), reader.verify()),
    };
    progress(file_bytes);
    let verdict = Verdict::of(judged.map(|()| None))?;
    let CheckpointMeta { identity, last_applied_entry_id, required_entry_id } = meta;
    let (path, usable) = (path.to_owned(), verdict.is_accepted());
    Ok(Some(CheckpointReport {
        path,
        verdict,
        file_bytes,
        identity,
        last_applied_entry_id,
        required_entry_id,
        usable,
    }))
}
