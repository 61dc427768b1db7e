//! The postcard spelling of recovery.
#![cfg(feature = "postcard")]

use super::{ApplyOutcome, Recovery, RecoveryOptions, recover_with};
use crate::codec::{Codec, Postcard};
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::Directory;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::sync::Arc;

/// [`recover_with`] for checkpoints and entries that are encoded with postcard.
///
/// ```
/// use durability::recover::{RecoveryOptions, recover_with_wal};
/// use durability::walog::WalWriter;
/// use durability::{Directory, MemoryDirectory, PersistenceError};
/// use std::sync::Arc;
///
/// let directory: Arc<dyn Directory> = MemoryDirectory::arc();
/// let mut wal = WalWriter::<u64>::open(directory.clone())?;
/// for number in [1, 2, 3] {
///     wal.append(&number)?;
/// }
/// wal.close()?;
///
/// let sum = recover_with_wal::<u64, u64, u64, _, _>(
///     directory,
///     None,
///     RecoveryOptions::strict(),
///     |checkpoint| checkpoint.unwrap_or(0),
///     |sum, _entry_id, number| *sum += number,
/// )?;
/// assert_eq!((sum.state, sum.last_entry_id), (6, 3));
/// # Ok::<(), PersistenceError>(())
/// ```
pub fn recover_with_wal<C, E, W, D, A>(
    directory: Arc<D>,
    checkpoint_path: Option<&str>,
    options: RecoveryOptions,
    init: impl FnOnce(Option<C>) -> W,
    apply: impl FnMut(&mut W, u64, E) -> A,
) -> PersistenceResult<Recovery<W, D>>
where
    C: DeserializeOwned,
    E: DeserializeOwned,
    D: Directory + ?Sized,
    A: ApplyOutcome,
{
    recover_with(directory, checkpoint_path, options, &ReadPostcard, init, apply)
}

/// Postcard for types that are only read.
struct ReadPostcard;

impl<T: DeserializeOwned> Codec<T> for ReadPostcard {
    fn encode(&self, _value: &T, _out: &mut dyn Write) -> PersistenceResult<()> {
        Err(PersistenceError::not_supported("encoding", "a decoder"))
    }

    fn decode(&self, bytes: &[u8]) -> PersistenceResult<T> {
        Postcard::read(bytes)
    }
}
