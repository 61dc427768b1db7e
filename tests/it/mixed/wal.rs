//! One log, of one owner or shared, behind the calls that both have.

use durability::PersistenceResult;
use durability::testing::sim::SimDisk;
use durability::walog::{SyncWalWriter, WalWriter};

pub(super) type Shared = SyncWalWriter<(), SimDisk>;
pub(super) type Own = WalWriter<(), SimDisk>;

pub(super) enum Wal {
    Own(Own),
    Shared(Shared),
}

macro_rules! either {
    ($self:ident, $wal:ident => $call:expr) => {
        match $self {
            Wal::Own($wal) => $call,
            Wal::Shared($wal) => $call,
        }
    };
}

impl Wal {
    pub(super) fn next_entry_id(&self) -> u64 {
        match self {
            Self::Own(wal) => wal.next_entry_id(),
            Self::Shared(wal) => wal.last_entry_id() + 1,
        }
    }

    pub(super) fn durable_entry_id(&self) -> u64 {
        either!(self, wal => wal.durable_entry_id())
    }

    pub(super) fn rotations(&self) -> u64 {
        either!(self, wal => wal.rotations())
    }

    pub(super) fn append(&mut self, payload: &[u8]) -> PersistenceResult<u64> {
        either!(self, wal => wal.append_bytes(payload))
    }

    pub(super) fn append_batch(&mut self, payloads: &[Vec<u8>]) -> PersistenceResult<Vec<u64>> {
        either!(self, wal => wal.append_batch_bytes(payloads))
    }

    pub(super) fn append_durable(&mut self, payload: &[u8]) -> PersistenceResult<u64> {
        either!(self, wal => wal.append_bytes_durable(payload))
    }

    pub(super) fn flush(&mut self) -> PersistenceResult<()> {
        either!(self, wal => wal.flush())
    }

    pub(super) fn sync(&mut self) -> PersistenceResult<()> {
        either!(self, wal => wal.flush_and_sync())
    }

    pub(super) fn attest(&mut self) -> PersistenceResult<()> {
        either!(self, wal => wal.attest())
    }

    pub(super) fn close(self) -> PersistenceResult<()> {
        either!(self, wal => wal.close())
    }

    /// The same log, shared from now on, in the middle of what is in flight.
    pub(super) fn hand_over(self) -> PersistenceResult<Self> {
        match self {
            Self::Own(wal) => Shared::from_writer(wal).map(Self::Shared),
            shared @ Self::Shared(_) => Ok(shared),
        }
    }
}
