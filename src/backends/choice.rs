//! Choosing a backend.
//!
//! Lives here: names of the backends that write to disks, which of them is taken, and why. Not here: what
//! they do.
//!
//! Invariant: an explicit choice is kept or is an error; only [`Backend::Auto`] falls back, and says why.

use crate::error::{PersistenceError, PersistenceResult};
use crate::limits::COMMITS_IN_FLIGHT_DEFAULT;
use crate::storage::{CommitStrategy, DurableDirectory, FsDirectory};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// A backend that writes to disks, as users name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Backend {
    /// io_uring where the kernel gives it to us, else `std::fs`.
    #[default]
    Auto,
    /// io_uring (Linux, feature `io-uring`).
    IoUring,
    /// `std::fs`, on every platform.
    Std,
}

/// How the files of the chosen backend are driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendOptions {
    /// How commits become durable; `None` leaves it to the backend. A strategy that cannot be had is an
    /// error, also with [`Backend::Auto`].
    pub strategy: Option<CommitStrategy>,
    /// Commits that each file can keep in flight; `std::fs` has always one.
    pub in_flight_max: usize,
    /// With no strategy named: measure once, when the first new file is made for commits (some 20 ms), which
    /// strategy is the fastest in this directory, and take that; direct writes, unless another is clearly faster.
    /// [`Backend::Auto`] measures `pwrite` and
    /// `fdatasync` without a ring as well. Without it, or where measuring fails, a rule decides: direct
    /// writes where the file takes them, else linked pairs. Files that are
    /// [streamed](crate::storage::FileOptions::streamed) go through the page cache whatever was measured. What was taken, and the figures, tells
    /// `active_strategy` of a writer.
    pub calibrate: bool,
}

impl Default for BackendOptions {
    fn default() -> Self {
        Self { strategy: None, in_flight_max: COMMITS_IN_FLIGHT_DEFAULT, calibrate: true }
    }
}

/// A directory, and how it was chosen.
#[derive(Clone)]
pub struct OpenBackend {
    /// The directory.
    pub directory: Arc<dyn DurableDirectory>,
    /// What was taken; never [`Backend::Auto`].
    pub chosen: Backend,
    /// What was asked for.
    pub requested: Backend,
    /// Why.
    pub reason: BackendReason,
}

impl fmt::Debug for OpenBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenBackend")
            .field("chosen", &self.chosen)
            .field("requested", &self.requested)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// Why a backend was taken, or could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum BackendReason {
    /// It was asked for by name.
    Requested,
    /// The strategy that was asked for belongs to it.
    StrategyRequested {
        /// The strategy.
        strategy: CommitStrategy,
    },
    /// The kernel was asked, and offers io_uring.
    ProbeSucceeded,
    /// This crate was built without the feature `io-uring`.
    FeatureDisabled,
    /// io_uring exists on Linux only, and on some processors only.
    Platform,
    /// The kernel refuses io_uring.
    KernelRefused {
        /// The system call that failed.
        call: &'static str,
        /// The error number that it answered.
        errno: i32,
        /// What is known about the cause.
        why: String,
    },
    /// The kernel has io_uring, but not all that is needed.
    MissingOperations {
        /// What is missing.
        operations: Vec<&'static str>,
    },
}

impl fmt::Display for BackendReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("it was asked for"),
            Self::StrategyRequested { strategy } => {
                write!(f, "the strategy {} was asked for", strategy.name())
            }
            Self::ProbeSucceeded => f.write_str("the kernel offers io_uring"),
            Self::FeatureDisabled => f.write_str("this build has no io_uring (feature `io-uring` is off)"),
            Self::Platform => f.write_str("this platform has no io_uring"),
            Self::KernelRefused { call, errno, why } => {
                write!(f, "the kernel refuses io_uring: {call} failed with error {errno}: {why}")
            }
            Self::MissingOperations { operations } => {
                write!(f, "the kernel's io_uring lacks: {}", operations.join(", "))
            }
        }
    }
}

impl Backend {
    /// Every backend, in the order in which help texts list them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::IoUring, Self::Std];

    /// The name that [`FromStr`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io-uring",
            Self::Std => "std",
        }
    }

    /// Opens `root`, which must be a directory that exists, with the default options.
    pub fn open(self, root: impl Into<PathBuf>) -> PersistenceResult<OpenBackend> {
        self.open_with(root, BackendOptions::default())
    }

    /// Opens `root`, which must be a directory that exists: nothing is created, so that a missing mount is
    /// never read as an empty log.
    ///
    /// On error: `NotFound` without the root; `NotSupported` with the reason when io_uring (or a strategy)
    /// was asked for and cannot be had; `InvalidConfig` for options that no backend takes.
    pub fn open_with(
        self,
        root: impl Into<PathBuf>,
        options: BackendOptions,
    ) -> PersistenceResult<OpenBackend> {
        let files = FsDirectory::existing(root)?;
        let (chosen, reason) = self.choose(options.strategy, io_uring_support)?;
        tracing::info!(
            requested = self.name(),
            chosen = chosen.name(),
            %reason,
            root = %files.root().display(),
            "opened a directory"
        );
        let directory = match chosen {
            Self::IoUring => super::rings::over(files, &options, self == Self::Auto)?,
            _ => Arc::new(files),
        };
        Ok(OpenBackend { directory, chosen, requested: self, reason })
    }

    /// The decision alone.
    fn choose(
        self,
        strategy: Option<CommitStrategy>,
        support: impl FnOnce() -> Result<(), BackendReason>,
    ) -> PersistenceResult<(Self, BackendReason)> {
        use CommitStrategy::{DirectDsync, LinkedWriteSync, WriteThenSync};
        let ring_refused = |reason: BackendReason| {
            Err(PersistenceError::not_supported("io_uring", format!("this system: {reason}")))
        };
        match (self, strategy) {
            (Self::Std, None | Some(WriteThenSync)) => Ok((Self::Std, BackendReason::Requested)),
            (Self::Auto, Some(strategy @ WriteThenSync)) => {
                Ok((Self::Std, BackendReason::StrategyRequested { strategy }))
            }
            (Self::IoUring, None | Some(LinkedWriteSync | DirectDsync)) => match support() {
                Ok(()) => Ok((Self::IoUring, BackendReason::Requested)),
                Err(reason) => ring_refused(reason),
            },
            (Self::Auto, Some(strategy @ (LinkedWriteSync | DirectDsync))) => match support() {
                Ok(()) => Ok((Self::IoUring, BackendReason::StrategyRequested { strategy })),
                Err(reason) => ring_refused(reason),
            },
            (Self::Auto, None) => match support() {
                Ok(()) => Ok((Self::IoUring, BackendReason::ProbeSucceeded)),
                Err(reason) => Ok((Self::Std, reason)),
            },
            (_, Some(strategy)) => {
                let reason = format!("{} is no strategy of the backend {self}", strategy.name());
                Err(PersistenceError::invalid_config("strategy", reason))
            }
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = PersistenceError;

    fn from_str(name: &str) -> PersistenceResult<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name).ok_or_else(|| {
            let reason = format!("{name:?} is none of auto, io-uring, std");
            PersistenceError::invalid_config("backend", reason)
        })
    }
}

/// Whether this build, on this system, can commit through io_uring. Asks the kernel each time.
pub fn io_uring_support() -> Result<(), BackendReason> {
    super::rings::support()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: BackendReason = BackendReason::FeatureDisabled;

    #[test]
    fn an_explicit_choice_is_kept_or_refused_and_auto_falls_back_with_a_reason() {
        use Backend::{Auto, IoUring, Std};
        use CommitStrategy::{DirectDsync, LinkedWriteSync, Volatile, WriteThenSync};
        let had = |backend: Backend, strategy, ring: bool| {
            backend.choose(strategy, || if ring { Ok(()) } else { Err(REFUSED) }).ok()
        };
        let asked = |strategy| BackendReason::StrategyRequested { strategy };
        for ring in [true, false] {
            assert_eq!(had(Std, None, ring), Some((Std, BackendReason::Requested)));
            assert_eq!(had(Std, Some(WriteThenSync), ring), Some((Std, BackendReason::Requested)));
            assert_eq!(had(Std, Some(DirectDsync), ring), None);
            assert_eq!(had(Auto, Some(WriteThenSync), ring), Some((Std, asked(WriteThenSync))));
            assert_eq!(had(IoUring, Some(WriteThenSync), ring), None);
            assert_eq!(had(Auto, Some(Volatile), ring), None);
        }
        assert_eq!(had(Auto, None, true), Some((IoUring, BackendReason::ProbeSucceeded)));
        assert_eq!(had(Auto, None, false), Some((Std, REFUSED)));
        assert_eq!(had(IoUring, None, true), Some((IoUring, BackendReason::Requested)));
        assert_eq!(had(IoUring, None, false), None);
        assert_eq!(had(Auto, Some(LinkedWriteSync), true), Some((IoUring, asked(LinkedWriteSync))));
        assert_eq!(had(Auto, Some(LinkedWriteSync), false), None);
        let error = IoUring.choose(None, || Err(REFUSED)).unwrap_err().to_string();
        assert!(error.contains("feature `io-uring` is off"), "{error}");
    }

    #[test]
    fn names_are_read_back_and_others_are_refused() {
        for backend in Backend::ALL {
            assert_eq!(backend.to_string().parse::<Backend>().ok(), Some(backend));
        }
        assert!("uring".parse::<Backend>().is_err());
    }

    #[test]
    fn a_root_that_is_missing_or_a_file_is_refused_and_not_made() {
        let root = tempfile::tempdir().unwrap();
        for backend in Backend::ALL {
            let missing = root.path().join("missing");
            assert!(backend.open(&missing).unwrap_err().is_not_found(), "{backend}");
            assert!(!missing.exists());
            let file = root.path().join("file");
            std::fs::write(&file, b"x").unwrap();
            assert!(matches!(backend.open(&file), Err(PersistenceError::Io { .. })), "{backend}");
        }
    }

    #[test]
    fn what_was_opened_says_what_it_is() {
        let root = tempfile::tempdir().unwrap();
        let open = Backend::Std.open(root.path()).unwrap();
        assert_eq!((open.chosen, open.requested), (Backend::Std, Backend::Std));
        assert_eq!(open.directory.backend_name(), "std_fs");
        let open = Backend::Auto.open(root.path()).unwrap();
        let expected = if io_uring_support().is_ok() { Backend::IoUring } else { Backend::Std };
        assert_eq!(open.chosen, expected);
        assert!(!open.reason.to_string().is_empty());
    }
}
