//! Which checkpoint to start from: a table over what was found.
//!
//! Candidates are the checkpoint itself and the older ones that publishing keeps beside it. They are looked
//! at newest first; [`decide`] says for each whether to use it, to go on to the next, or to fail, and
//! [`decide_without`] what to do when none was used. Both are pure.

use super::RecoveryOptions;
use crate::checkpoint::{CheckpointMeta, CheckpointReader};
use crate::error::{Check, Corruption, PersistenceError, PersistenceResult, Proof};
use crate::formats::names;
use crate::planted;
use crate::storage::Directory;
use crate::walog::{Requirements, read_chain};

/// Most older checkpoints that are looked for beside the newest.
const GENERATIONS_MAX: usize = 64;

/// What was found where a checkpoint could be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum CheckpointFinding {
    /// Nothing.
    Missing,
    /// It was used.
    Used {
        /// The last entry that is applied in it.
        last_applied_entry_id: u64,
    },
    /// It is damaged; the text says how.
    Damaged {
        /// The error.
        error: String,
    },
    /// It is newer than the entry that was asked for.
    TooNew {
        /// The last entry that is applied in it.
        last_applied_entry_id: u64,
    },
    /// It is older than the beginning of the log.
    TooOld {
        /// The last entry that is applied in it.
        last_applied_entry_id: u64,
        /// The first entry of the log.
        first_entry_id: u64,
    },
}

/// The checkpoint that recovery starts from.
pub(super) struct Chosen<C> {
    pub(super) state: C,
    pub(super) meta: CheckpointMeta,
    pub(super) path: String,
}

/// Where recovery starts, and what it must find.
pub(super) struct Plan<C> {
    pub(super) chosen: Option<Chosen<C>>,
    /// What was found, newest first.
    pub(super) findings: Vec<(String, CheckpointFinding)>,
    /// The highest end of log that any readable checkpoint requires, and which.
    least_end: Option<(u64, String)>,
    log_expected: bool,
}

impl<C> Plan<C> {
    pub(super) fn requirements(&self) -> Requirements {
        Requirements {
            id_floor: self.chosen.as_ref().map_or(0, |chosen| chosen.meta.last_applied_entry_id),
            least_end: self.least_end.clone(),
            log_expected: self.log_expected,
        }
    }
}

/// What is known of the log before it is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogFacts {
    /// Its first entry; `None` when no segment was started.
    pub(super) first_entry_id: Option<u64>,
    /// Its identity, where it has one.
    pub(super) identity: Option<u128>,
}

/// What to do with a candidate.
#[derive(Debug)]
pub(super) enum Decision {
    /// Start from it.
    Use,
    /// Look at the next older one.
    Next(CheckpointFinding),
    /// Recovery cannot go on.
    Fail(PersistenceError),
}

/// Decides about a candidate whose header checks out.
pub(super) fn decide(path: &str, meta: CheckpointMeta, log: LogFacts, up_to: Option<u64>) -> Decision {
    let last_applied_entry_id = meta.last_applied_entry_id;
    let foreign = |identity: &u128| meta.identity != 0 && meta.identity != *identity;
    if let Some(expected) = log.identity.filter(foreign).filter(|_| !planted::on("take_foreign_checkpoint")) {
        let check = Check::Identity { expected, found: meta.identity };
        let path = path.to_owned();
        return Decision::Fail(
            Corruption { path, offset: 0, entry_id: 0, check, proof: Proof::Contradiction }.into(),
        );
    }
    if up_to.is_some_and(|up_to| last_applied_entry_id > up_to) {
        return Decision::Next(CheckpointFinding::TooNew { last_applied_entry_id });
    }
    match log.first_entry_id {
        Some(first_entry_id) if first_entry_id > last_applied_entry_id + 1 => {
            Decision::Next(CheckpointFinding::TooOld { last_applied_entry_id, first_entry_id })
        }
        _ => Decision::Use,
    }
}

/// Decides about a candidate that could not be read.
pub(super) fn decide_unreadable(error: PersistenceError) -> Decision {
    match error {
        PersistenceError::MissingCheckpoint { .. } | PersistenceError::NotFound { .. } => {
            Decision::Next(CheckpointFinding::Missing)
        }
        error @ (PersistenceError::Corruption(_)
        | PersistenceError::Format { .. }
        | PersistenceError::CrcMismatch { .. }
        | PersistenceError::Decode { .. }) => {
            Decision::Next(CheckpointFinding::Damaged { error: error.to_string() })
        }
        _ if planted::on("error_is_absence") => Decision::Next(CheckpointFinding::Missing),
        // Not being able to look is never the same as there being nothing.
        error => Decision::Fail(error),
    }
}

/// Decides what to do when no candidate was used: `Ok` replays the whole log.
pub(super) fn decide_without(
    path: &str,
    findings: &[CheckpointFinding],
    first_damage: Option<PersistenceError>,
    log: LogFacts,
    options: &RecoveryOptions,
) -> PersistenceResult<()> {
    let whole_log = log.first_entry_id == Some(1);
    if let Some(error) = first_damage {
        return if options.ignore_corrupt_checkpoint && whole_log { Ok(()) } else { Err(error) };
    }
    if whole_log {
        return Ok(());
    }
    for finding in findings {
        match finding {
            CheckpointFinding::TooNew { last_applied_entry_id } => {
                let up_to = options.up_to_entry_id.unwrap_or(0);
                let reason = format!(
                    "the checkpoint covers entry {last_applied_entry_id}, which is behind {up_to}, and nothing older is left"
                );
                return Err(PersistenceError::invalid_state("recovery up to an entry", reason));
            }
            CheckpointFinding::TooOld { last_applied_entry_id, first_entry_id } => {
                return Err(PersistenceError::PrefixUnavailable {
                    wanted_entry_id: last_applied_entry_id + 1,
                    first_entry_id: *first_entry_id,
                });
            }
            _ => {}
        }
    }
    // Everything is missing.
    if (log.first_entry_id.is_none() && options.allow_missing_log) || planted::on("missing_checkpoint_is_new")
    {
        return Ok(());
    }
    Err(PersistenceError::MissingCheckpoint { path: path.to_owned() })
}

/// Looks at the candidates for `checkpoint_path`, and reads the one to start from.
pub(super) fn choose<D: Directory + ?Sized, C>(
    directory: &D,
    checkpoint_path: Option<&str>,
    options: &RecoveryOptions,
    read: impl Fn(&str) -> PersistenceResult<C>,
) -> PersistenceResult<Plan<C>> {
    let (log, hole) = log_facts(directory)?;
    let mut plan = Plan { chosen: None, findings: Vec::new(), least_end: None, log_expected: false };
    let Some(newest) = checkpoint_path else { return Ok(plan) };
    let mut first_damage = None;
    let generations = if planted::on("newest_checkpoint_only") { 1 } else { GENERATIONS_MAX };
    for generation in 0..generations {
        let path = names::checkpoint_generation_path(newest, generation);
        let decision = match CheckpointReader::open(directory, &path) {
            Err(error) => {
                first_damage = first_damage.or(damage(&error));
                decide_unreadable(error)
            }
            Ok(reader) => {
                let meta = reader.meta();
                plan.require(&path, meta, log);
                match decide(&path, meta, log, options.up_to_entry_id) {
                    Decision::Use if planted::on("any_damage_is_fatal") && first_damage.is_some() => {
                        decide_without(newest, &[], first_damage.clone(), log, options)?;
                        Decision::Use
                    }
                    Decision::Use => match read(&path) {
                        Ok(state) => {
                            plan.use_checkpoint(Chosen { state, meta, path });
                            return Ok(plan);
                        }
                        Err(error) => {
                            first_damage = first_damage.or(damage(&error));
                            decide_unreadable(error)
                        }
                    },
                    decision => decision,
                }
            }
        };
        match decision {
            Decision::Fail(error) => return Err(error),
            // None, or a gap: a crash between two renames of publishing leaves one, with others behind it.
            Decision::Next(CheckpointFinding::Missing) if generation > 0 => {}
            Decision::Next(finding) => plan.findings.push((path, finding)),
            Decision::Use => {}
        }
    }
    if planted::on("whole_log_is_needed") && log.first_entry_id != Some(1) {
        return Err(PersistenceError::MissingCheckpoint { path: newest.to_owned() });
    }
    let findings: Vec<_> = plan.findings.iter().map(|(_, finding)| finding.clone()).collect();
    let refused = decide_without(newest, &findings, first_damage, log, options);
    refused.map_err(|error| beginning_or_hole(error, hole))?;
    Ok(plan)
}

/// A log whose beginning is out of reach because something in its middle is missing was not truncated.
fn beginning_or_hole(error: PersistenceError, hole: Option<Corruption>) -> PersistenceError {
    match (error, hole) {
        (PersistenceError::PrefixUnavailable { wanted_entry_id, .. }, Some(hole))
            if !planted::on("hole_is_truncation") =>
        {
            Corruption { entry_id: wanted_entry_id, ..hole }.into()
        }
        (error, _) => error,
    }
}

/// The error, where it means damage.
fn damage(error: &PersistenceError) -> Option<PersistenceError> {
    matches!(decide_unreadable(error.clone()), Decision::Next(CheckpointFinding::Damaged { .. }))
        .then(|| error.clone())
}

impl<C> Plan<C> {
    /// Notes what a checkpoint whose header checks out requires of the log.
    fn require(&mut self, path: &str, meta: CheckpointMeta, log: LogFacts) {
        let belongs_to_a_log = meta.identity != 0;
        self.log_expected |= belongs_to_a_log;
        if !belongs_to_a_log && log.first_entry_id.is_none() {
            return;
        }
        let required = meta.required_entry_id.max(meta.last_applied_entry_id);
        if self.least_end.as_ref().is_none_or(|(least, _)| required > *least) {
            self.least_end = Some((required, path.to_owned()));
        }
    }

    fn use_checkpoint(&mut self, chosen: Chosen<C>) {
        let last_applied_entry_id = chosen.meta.last_applied_entry_id;
        self.findings.push((chosen.path.clone(), CheckpointFinding::Used { last_applied_entry_id }));
        self.chosen = Some(chosen);
    }
}

/// What is known of the log, and why nothing before its first segment can be read, where something should be
/// there.
fn log_facts<D: Directory + ?Sized>(directory: &D) -> PersistenceResult<(LogFacts, Option<Corruption>)> {
    match read_chain(directory, None) {
        Ok(chain) => {
            let first_entry_id = chain.segments.first().map(|first| first.first_entry_id);
            Ok((LogFacts { first_entry_id, identity: chain.identity }, chain.break_before))
        }
        Err(PersistenceError::NotFound { .. }) => {
            Ok((LogFacts { first_entry_id: None, identity: None }, None))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogFacts = LogFacts { first_entry_id: Some(5), identity: Some(1) };

    fn meta(last_applied_entry_id: u64) -> CheckpointMeta {
        CheckpointMeta { last_applied_entry_id, required_entry_id: last_applied_entry_id, identity: 1 }
    }

    #[test]
    fn every_readable_candidate_meets_one_row() {
        assert!(matches!(decide("c", meta(4), LOG, None), Decision::Use));
        assert!(matches!(decide("c", meta(9), LOG, Some(9)), Decision::Use));
        assert!(matches!(
            decide("c", meta(9), LOG, Some(8)),
            Decision::Next(CheckpointFinding::TooNew { .. })
        ));
        assert!(matches!(decide("c", meta(3), LOG, None), Decision::Next(CheckpointFinding::TooOld { .. })));
        let foreign = CheckpointMeta { identity: 2, ..meta(9) };
        assert!(matches!(decide("c", foreign, LOG, None), Decision::Fail(PersistenceError::Corruption(_))));
        assert!(matches!(decide("c", CheckpointMeta::standalone(9), LOG, None), Decision::Use));
    }

    #[test]
    fn not_being_able_to_look_is_not_absence() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let denied = PersistenceError::io("open", "c", None, denied);
        assert!(matches!(decide_unreadable(denied), Decision::Fail(PersistenceError::Io { .. })));
        let missing = PersistenceError::MissingCheckpoint { path: "c".into() };
        assert!(matches!(decide_unreadable(missing), Decision::Next(CheckpointFinding::Missing)));
    }

    #[test]
    fn without_a_checkpoint_only_a_whole_log_is_a_history() {
        let whole = LogFacts { first_entry_id: Some(1), identity: Some(1) };
        let none = LogFacts { first_entry_id: None, identity: None };
        let strict = RecoveryOptions::strict();
        let lenient = RecoveryOptions { ignore_corrupt_checkpoint: true, ..RecoveryOptions::strict() };
        let damage = || Some(PersistenceError::Decode { entry_id: None, reason: "x".into() });
        let missing = [CheckpointFinding::Missing];
        assert!(decide_without("c", &missing, None, whole, &strict).is_ok());
        assert!(matches!(
            decide_without("c", &missing, None, LOG, &strict),
            Err(PersistenceError::MissingCheckpoint { .. })
        ));
        assert!(decide_without("c", &missing, None, none, &strict).is_err());
        assert!(decide_without("c", &missing, None, none, &strict.clone().or_new()).is_ok());
        assert!(decide_without("c", &[], damage(), whole, &strict).is_err());
        assert!(decide_without("c", &[], damage(), whole, &lenient).is_ok());
        assert!(decide_without("c", &[], damage(), LOG, &lenient).is_err());
        let old = [CheckpointFinding::TooOld { last_applied_entry_id: 2, first_entry_id: 5 }];
        assert!(matches!(
            decide_without("c", &old, None, LOG, &strict),
            Err(PersistenceError::PrefixUnavailable { wanted_entry_id: 3, first_entry_id: 5 })
        ));
    }
}
