//! The log on disks that fail: writes and syncs that fail, disks that are full, commits in flight; then power
//! cuts. Several lives of a process on one machine, each with a knob turned.
//!
//! `DURABILITY_SEED` runs one seed, `DURABILITY_SEEDS` that many from 1 on.

use crate::power_cut::{Random, campaign, check, must, payload, seeds};
use durability::PersistenceError;
use durability::storage::FlushPolicy;
use durability::testing::faults::{Act, At, Fault, Faults, FaultyDirectory, Operation};
use durability::testing::sim::{SimDisk, SimOptions, SimReport, check_crashes};
use durability::walog::{PrepareAhead, PrepareHand, SyncWalWriter, WalOptions};
use std::sync::{Arc, Mutex};

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

type CrowdedWal = SyncWalWriter<(), FaultyDirectory<SimDisk>>;

/// Whoever appends while the log makes room for what was appended before.
struct Crowd {
    wal: Mutex<Option<CrowdedWal>>,
    random: Mutex<Random>,
}

impl Crowd {
    fn appends(&self) {
        let Some(wal) = self.wal.lock().expect("no panic").clone() else { return };
        let mut random = self.random.lock().expect("no panic");
        let mut left = [500, 5000, 5000, 90_000][random.below(4) as usize];
        while left > 0 {
            let bytes = payload(wal.last_entry_id() + 1);
            wal.append_bytes(&bytes).expect("no flush is due, and nothing is full");
            left -= bytes.len() as i64 + 10;
        }
    }
}

/// One life of a log that makes room, for batches that grow meanwhile; sometimes there is hardly space for what was
/// asked for. It is never poisoned by that.
fn live_in_a_crowd(disk: &SimDisk, seed: u64) {
    let (faults, hand, mut random) = (Faults::new(), PrepareHand::new(), Random(seed));
    let crowd = Arc::new(Crowd { wal: Mutex::default(), random: Mutex::new(Random(!seed)) });
    disk.keep_reserved();
    let by_hand = random.below(3) == 0;
    let options = WalOptions {
        segment_bytes_max: [20_000, 300_000, 1 << 20][random.below(3) as usize],
        preallocate_bytes: [4096, 20_000][random.below(2) as usize],
        buffer_bytes: 4 << 20,
        recycle_capacity: random.below(2) as usize,
        frame_alignment: [512, 4096][random.below(2) as usize],
        prepare_ahead: if by_hand { PrepareAhead::ByHand(hand.clone()) } else { PrepareAhead::Never },
        ..options(&mut random)
    };
    let wal = CrowdedWal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
    *crowd.wal.lock().expect("no panic") = Some(wal.clone());
    for _ in 0..7 {
        for (operation, times_max) in
            [(Operation::Reserve, 3), (Operation::OpenCommitFile, 2), (Operation::Submit, 2)]
        {
            for _ in 0..random.below(times_max) {
                let crowd = Arc::clone(&crowd);
                faults.inject(At::next_of(operation), Fault::Meanwhile(Act::new(move || crowd.appends())));
            }
        }
        if random.below(3) == 0 {
            disk.limit_capacity(Some(disk.used_bytes() + [2000, 20_000, 200_000][random.below(3) as usize]));
        }
        if random.below(2) == 0 {
            hand.step();
        }
        let next = wal.last_entry_id() + 1;
        let outcome = match random.below(5) {
            0 => wal.append_bytes(&payload(next)).and_then(|_| wal.flush()),
            1 => wal.append_bytes(&payload(next)).and_then(|_| wal.attest()),
            2 => wal.submit_bytes(&payload(next)).and_then(|ticket| ticket.wait()).map(|id| disk.mark(id)),
            _ => wal.append_bytes_durable(&payload(next)).map(|id| disk.mark(id)),
        };
        disk.mark(wal.durable_entry_id());
        if let Err(error) = outcome {
            let is_poisoned = matches!(error, PersistenceError::Poisoned { .. });
            assert!(error.is_out_of_space() && !is_poisoned, "seed {seed}: {error}");
            disk.limit_capacity(None);
        }
    }
    drop(crowd.wal.lock().expect("no panic").take());
    disk.limit_capacity(None);
    let last = wal.last_entry_id();
    wal.close().expect("there is space");
    disk.mark(last);
}

#[test]
fn no_power_cut_beside_appends_while_room_is_made_loses_what_was_promised() {
    campaign("batches that grow while room is made", seeds(12), |seed| {
        let disk = SimDisk::new(seed);
        live_in_a_crowd(&disk, seed);
        let options = SimOptions { seed, images_per_point: 3, ..SimOptions::default() };
        must(check_crashes(&disk, &options, check), seed)
    });
}
