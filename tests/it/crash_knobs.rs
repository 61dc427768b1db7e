//! The log on disks that fail: writes and syncs that fail, disks that are full, commits in flight; then power
//! cuts. Several lives of a process on one machine, each with a knob turned.
//!
//! `DURABILITY_SEED` runs one seed, `DURABILITY_SEEDS` that many from 1 on.

use crate::power_cut::{Random, campaign, check, must, payload, seeds};
use durability::storage::FlushPolicy;
use durability::testing::sim::{SimDisk, SimOptions, SimReport, check_crashes};
use durability::walog::{SyncWalWriter, WalOptions};
use std::sync::Arc;

fn options(random: &mut Random) -> WalOptions {
    WalOptions {
        segment_bytes_max: [2048, 6000][random.below(2) as usize],
        preallocate_bytes: [0, 2048][random.below(2) as usize],
        flush_policy: FlushPolicy::Manual,
        pipeline_depth: Some(1 + random.below(4) as usize),
        ..WalOptions::default()
    }
}

fn turn_a_knob(disk: &SimDisk, random: &mut Random) {
    match random.below(4) {
        0 => disk.fail_write_after(random.below(14)),
        1 => disk.fail_sync_after(random.below(14)),
        2 => disk.limit_capacity(Some(disk.used_bytes() + random.below(6000))),
        _ => {}
    }
    disk.keep_in_flight(1 + random.below(4) as usize);
}

/// One life: appends until something fails, then tries once more, with room.
fn live(disk: &SimDisk, random: &mut Random) {
    turn_a_knob(disk, random);
    let opened = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options(random));
    let Ok(wal) = opened else { return };
    disk.mark(wal.last_entry_id());
    let mut has_failed = false;
    for _ in 0..12 {
        let next = wal.last_entry_id() + 1;
        let outcome = match random.below(4) {
            0 => wal.append_bytes(&payload(next)).map(|_| ()),
            1 => wal.append_bytes(&payload(next)).and_then(|_| wal.flush()),
            2 => wal.append_batch_bytes(&[payload(next), payload(next + 1)]).map(|_| ()),
            _ => wal.append_bytes_durable(&payload(next)).map(|id| disk.mark(id)),
        };
        disk.mark(wal.durable_entry_id());
        if outcome.is_err() {
            if has_failed {
                break;
            }
            has_failed = true;
            disk.limit_capacity(None);
        }
    }
    // It may be poisoned; then it is left as it is.
    let _ = wal.close();
}

#[test]
fn no_power_cut_behind_a_failing_disk_loses_what_was_promised() {
    campaign("failing disks", seeds(12), |seed| {
        let (mut disk, mut random) = (SimDisk::new(seed), Random(seed));
        let mut total = SimReport::default();
        for _ in 0..4 {
            let from_operation = disk.operations();
            live(&disk, &mut random);
            let options = SimOptions { seed, from_operation, images_per_point: 4, ..SimOptions::default() };
            total += must(check_crashes(&disk, &options, check), seed);
            disk = disk.after_kill();
        }
        total
    });
}
