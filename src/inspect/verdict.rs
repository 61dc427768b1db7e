//! The verdict about a log or a file, as one value: what readers answer with results and errors.

use crate::error::{Corruption, FormatProblem, PersistenceError, PersistenceResult, TornEvidence, TornTail};
use crate::walog::LogEnd;
use std::fmt;

/// What a log or a file is found to be. The words are those of `docs/guarantees.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "verdict", content = "finding", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Verdict {
    /// It ends cleanly.
    Clean,
    /// It ends in what a crash leaves of writes that were never acknowledged. Best-effort accepts it.
    Torn(TornTail),
    /// A tail that may be torn or damaged, which cannot be told apart. Best-effort cuts it, strict refuses.
    Undecidable(TornTail),
    /// Acknowledged data is damaged or missing, or a file is not what its place says. No mode accepts it.
    Corrupt(Corruption),
    /// In the place of a file of ours is something that no release writes. No mode accepts it.
    Foreign {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Verdict {
    /// The verdict that a reader's answer is. Errors that say nothing about the bytes (the operating system
    /// refused, the format is of a later version) stay errors.
    pub fn of(result: PersistenceResult<Option<TornTail>>) -> PersistenceResult<Self> {
        match result {
            Ok(None) => Ok(Self::Clean),
            Ok(Some(torn)) => Ok(torn.into()),
            Err(PersistenceError::TornTail(torn)) => Ok((*torn).into()),
            Err(PersistenceError::Corruption(corruption)) => Ok(Self::Corrupt(*corruption)),
            Err(PersistenceError::Format { path, problem }) if !is_of_later_version(&problem) => {
                Ok(Self::Foreign { path, problem: problem.to_string() })
            }
            Err(PersistenceError::InvalidState { operation: crate::walog::READING, reason }) => {
                Ok(Self::Foreign { path: crate::formats::names::WAL_DIRECTORY.to_owned(), problem: reason })
            }
            Err(error) => Err(error),
        }
    }

    /// The verdict about a log that was read to its end.
    pub fn of_log(result: &PersistenceResult<LogEnd>) -> PersistenceResult<Self> {
        match result {
            Ok(end) => Self::of(Ok(end.torn.clone())),
            Err(error) => Self::of(Err(error.clone())),
        }
    }

    /// Whether best-effort recovery accepts it.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Clean | Self::Torn(_) | Self::Undecidable(_))
    }

    /// Its name: `clean`, `torn`, `undecidable`, `corrupt` or `foreign`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Torn(_) => "torn",
            Self::Undecidable(_) => "undecidable",
            Self::Corrupt(_) => "corrupt",
            Self::Foreign { .. } => "foreign",
        }
    }
}

impl From<TornTail> for Verdict {
    fn from(torn: TornTail) -> Self {
        match torn.evidence {
            TornEvidence::Undecidable => Self::Undecidable(torn),
            _ => Self::Torn(torn),
        }
    }
}

fn is_of_later_version(problem: &FormatProblem) -> bool {
    matches!(problem, FormatProblem::FutureVersion { .. } | FormatProblem::UnknownFeatures { .. })
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("clean"),
            Self::Torn(torn) => write!(f, "torn tail: {torn}"),
            Self::Undecidable(torn) => write!(f, "undecidable tail: {torn}"),
            Self::Corrupt(corruption) => write!(f, "corrupt: {corruption}"),
            Self::Foreign { path, problem } => write!(f, "foreign: {path}: {problem}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_about_the_bytes_stays_an_error() {
        let format = |problem| Verdict::of(Err(PersistenceError::Format { path: "x".into(), problem }));
        assert!(format(FormatProblem::FutureVersion { found: 2, supported: 1 }).is_err());
        assert!(format(FormatProblem::UnknownFeatures { bits: 1 }).is_err());
        let short = format(FormatProblem::TooShort { bytes: 1, bytes_needed: 512 }).expect("a verdict");
        assert_eq!((short.name(), short.is_accepted()), ("foreign", false));
        let refused = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(Verdict::of(Err(PersistenceError::io("open", "x", None, refused))).is_err());
    }

    #[test]
    fn a_torn_tail_is_accepted_however_it_is_told() {
        let torn = |evidence| TornTail { path: "x".into(), offset: 512, last_entry_id: 3, evidence };
        for told in [Ok(Some(torn(TornEvidence::PastFileEnd))), Err(torn(TornEvidence::PastFileEnd).into())] {
            assert_eq!(Verdict::of(told).expect("a verdict").name(), "torn");
        }
        let undecidable = Verdict::of(Ok(Some(torn(TornEvidence::Undecidable)))).expect("a verdict");
        assert_eq!((undecidable.name(), undecidable.is_accepted()), ("undecidable", true));
    }
}
