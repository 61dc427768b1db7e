//! Orders of events that once broke a promise, each as small as it could be made.

use durability::PersistenceResult;
use durability::codec::Codec;
use durability::testing::sim::SimDisk;
use durability::walog::{SyncWalWriter, WalReader, WalReplayMode, WalWriter};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Panics in the middle of its second value.
struct PanicsAtTwo;

impl Codec<u64> for PanicsAtTwo {
    fn encode(&self, value: &u64, out: &mut dyn Write) -> PersistenceResult<()> {
        out.write_all(&[7; 3]).expect("writes");
        assert!(*value != 2, "the codec panics");
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> PersistenceResult<u64> {
        assert_eq!(bytes, [7; 3]);
        Ok(1)
    }
}

fn read_all(disk: &SimDisk) -> u64 {
    let reader = WalReader::<u64, SimDisk>::new(Arc::new(disk.clone()));
    let read = reader.replay_decoded(&PanicsAtTwo, 1, WalReplayMode::Strict, |_| Ok(()));
    read.expect("what was acknowledged is read back").entries
}

#[test]
fn a_codec_that_panics_appends_nothing_to_a_log_that_threads_share() {
    let disk = SimDisk::new(1);
    let wal = SyncWalWriter::<u64, SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    assert!(catch_unwind(AssertUnwindSafe(|| wal.append_encoded(&PanicsAtTwo, &2))).is_err());
    wal.append_encoded(&PanicsAtTwo, &1).expect("appends");
    wal.flush_and_sync().expect("commits");
    drop(wal);
    assert_eq!(read_all(&disk), 1);
}

#[test]
fn a_codec_that_panics_appends_nothing_of_a_batch() {
    let disk = SimDisk::new(1);
    let mut wal = WalWriter::<u64, SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    let batch = || wal.append_batch_encoded(&PanicsAtTwo, &[1, 1, 2]);
    assert!(catch_unwind(AssertUnwindSafe(batch)).is_err());
    assert_eq!(
        wal.append_encoded(&PanicsAtTwo, &1).expect("appends"),
        1,
        "nothing of the batch was appended"
    );
    wal.close().expect("closes");
    assert_eq!(read_all(&disk), 1);
}
