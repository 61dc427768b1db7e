//! The first failed mutation of a file closes it for good.

use super::Home;
use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;
use std::sync::{Arc, OnceLock};

/// Remembers the first failure of an object and refuses everything after it.
///
/// After a failed write or sync nobody can say which bytes reached the disk, and the kernel reports a
/// write-back error once and then forgets it: a retry would look like success. So there is no way back;
/// the object has to be reopened.
///
/// It also refuses everything in a child of the process that made it: what is written belongs to the parent.
#[derive(Clone, Debug, Default)]
pub struct Latch {
    first: Arc<OnceLock<Arc<PersistenceError>>>,
    home: Home,
}

impl Latch {
    /// A latch that has not tripped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trips the latch with `error`, unless it has tripped before. Gives `error` back.
    pub fn trip(&self, error: PersistenceError) -> PersistenceError {
        // A second failure loses against the first one, whose cause is the interesting one.
        if !planted::on("latch_never_trips") {
            let _ = self.first.set(Arc::new(error.clone()));
        }
        error
    }

    /// The first failure, if there was one.
    pub fn cause(&self) -> Option<&Arc<PersistenceError>> {
        self.first.get()
    }

    /// Whether everything is refused.
    pub fn is_tripped(&self) -> bool {
        self.first.get().is_some() || !self.home.is_here()
    }

    /// `Poisoned` once the latch has tripped; [`Fenced`](PersistenceError::Fenced) where that is why, and in
    /// a child of a fork.
    pub fn check(&self, durable_entry_id: u64) -> PersistenceResult<()> {
        match self.first.get() {
            None => self.home.check(),
            Some(cause) => Err(PersistenceError::closed_by(Arc::clone(cause), durable_entry_id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_kept_and_refuses_what_follows() {
        let latch = Latch::new();
        assert!(latch.check(0).is_ok());
        let _ = latch.trip(PersistenceError::invalid_state("first", "x"));
        let _ = latch.trip(PersistenceError::invalid_state("second", "x"));
        match latch.check(7) {
            Err(PersistenceError::Poisoned { durable_entry_id: 7, cause }) => {
                assert!(cause.to_string().contains("first"));
            }
            other => panic!("{other:?}"),
        }
    }
}
