//! Asking any directory type for its stable storage.

use super::{Directory, DurableDirectory};
use crate::error::{PersistenceError, PersistenceResult};

/// Directory types that may be asked for stable storage.
///
/// Every [`DurableDirectory`] is one, and `dyn Directory` is one whose answer is only known at run time
/// (`NotSupported` where it has none). A [`MemoryDirectory`](super::MemoryDirectory) is not, so asking a
/// memory log for stable storage does not compile.
pub trait StableStorage: Directory {
    /// The durable side, or `NotSupported`.
    fn stable(&self) -> PersistenceResult<&dyn DurableDirectory>;
}

impl<D: DurableDirectory + ?Sized> StableStorage for D {
    fn stable(&self) -> PersistenceResult<&dyn DurableDirectory> {
        durable_side(self)
    }
}

impl StableStorage for dyn Directory {
    fn stable(&self) -> PersistenceResult<&dyn DurableDirectory> {
        durable_side(self)
    }
}

fn durable_side<D: Directory + ?Sized>(directory: &D) -> PersistenceResult<&dyn DurableDirectory> {
    directory
        .as_durable()
        .ok_or_else(|| PersistenceError::not_supported("stable storage", directory.backend_name()))
}
