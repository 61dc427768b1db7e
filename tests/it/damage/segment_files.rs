//! Segments against each other: missing, swapped, copied, emptied; and damage in older ones, which opening does
//! not look at.

use super::{Outcome, classify, contents, payload, replace, segments};
use durability::Directory;
use durability::error::{Check, Proof};
use durability::testing::sim::SimDisk;
use durability::walog::{WalReader, WalReplayMode};
use std::sync::Arc;

fn must_be_corrupt_log(disk: &SimDisk, what: &str) -> (Check, Proof) {
    match verdict_of_reading(disk) {
        (Outcome::Corrupt(..), Outcome::Corrupt(check, proof)) => (check, proof),
        outcomes => panic!("{what}: {outcomes:?}"),
    }
}

/// Without opening: opening does not look at old segments.
fn verdict_of_reading(disk: &SimDisk) -> (Outcome, Outcome) {
    let read = |mode| {
        let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
        let mut last = 0;
        let replayed = reader.replay_bytes_from(1, mode, |entry_id, bytes| {
            assert_eq!((entry_id, bytes), (last + 1, &payload(entry_id)[..]));
            last = entry_id;
            Ok(())
        });
        replayed.map_or_else(classify, |_| Outcome::Entries(last))
    };
    (read(WalReplayMode::Strict), read(WalReplayMode::BestEffortTail))
}

#[test]
fn missing_swapped_copied_and_emptied_segments_are_named() {
    for sealed in [true, false] {
        let disk = segments(sealed);
        disk.delete("wal/wal_3.log").expect("deletes");
        let (check, _) = must_be_corrupt_log(&disk, "a middle segment missing");
        assert_eq!(check, Check::SegmentMissing { segment_id: 3 });

        let disk = segments(sealed);
        disk.delete("wal/wal_5.log").expect("deletes");
        let (check, proof) = must_be_corrupt_log(&disk, "the newest segment missing");
        assert_eq!(check, Check::SegmentMissing { segment_id: 5 });
        assert!(matches!(proof, Proof::NamedBySeal { .. }));

        let disk = segments(sealed);
        let copy = contents(&disk, "wal/wal_2.log");
        replace(&disk, "wal/wal_6.log", &copy);
        let (check, _) = must_be_corrupt_log(&disk, "a segment copied");
        assert_eq!(check, Check::SegmentName { named: 6, stated: 2 });

        let disk = segments(sealed);
        let (two, three) = (contents(&disk, "wal/wal_2.log"), contents(&disk, "wal/wal_3.log"));
        replace(&disk, "wal/wal_2.log", &three);
        replace(&disk, "wal/wal_3.log", &two);
        let (check, _) = must_be_corrupt_log(&disk, "two segments swapped");
        assert_eq!(check, Check::SegmentName { named: 2, stated: 3 });

        for id in 1..=5 {
            let path = format!("wal/wal_{id}.log");
            let disk = segments(sealed);
            replace(&disk, &path, &[]);
            must_be_corrupt_log(&disk, &format!("{path} truncated to zero"));
            let disk = segments(sealed);
            let mut bytes = contents(&disk, &path);
            bytes[..512].fill(0);
            replace(&disk, &path, &bytes);
            must_be_corrupt_log(&disk, &format!("the header of {path} zeroed"));
            for bit in (0..4096).step_by(61) {
                let disk = segments(sealed);
                let mut bytes = contents(&disk, &path);
                bytes[bit / 8] ^= 1 << (bit % 8);
                replace(&disk, &path, &bytes);
                must_be_corrupt_log(&disk, &format!("bit {bit} of the header of {path}"));
            }
        }
    }
}

#[test]
fn every_sector_of_every_older_segment_is_missed() {
    let good = segments(false);
    let whole = verdict_of_reading(&good);
    for id in 1..=4 {
        let path = format!("wal/wal_{id}.log");
        let bytes = contents(&good, &path);
        for sector in (512..bytes.len()).step_by(512) {
            let disk = segments(false);
            let mut damaged = bytes.clone();
            damaged[sector..sector + 512].fill(0);
            replace(&disk, &path, &damaged);
            let what = format!("{path} sector at {sector}");
            let is_seal = bytes[sector + 512..].iter().all(|byte| *byte == 0);
            match verdict_of_reading(&disk) {
                told if damaged == bytes => assert_eq!(told, whole),
                // The segment behind it says all that the seal said.
                told if is_seal => assert_eq!(told, whole, "{what}"),
                (Outcome::Corrupt(..), Outcome::Corrupt(..)) => {}
                other => panic!("{what}: {other:?}"),
            }
        }
    }
}
