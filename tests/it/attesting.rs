//! Attestation: what says, on disk, that the very last entries are durable.

use crate::damage::{Outcome, contents, frames, outcome_in, payload, replace};
use crate::power_cut::{check, must};
use durability::formats::frame::FrameKind;
use durability::storage::FlushPolicy;
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{
    PrepareAhead, PrepareHand, SyncWalWriter, WalFollower, WalMaintenance, WalOptions, WalReader,
    WalReplayMode, WalWriter,
};
use durability::{Directory, FsDirectory};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Shared = SyncWalWriter<(), SimDisk>;

fn options() -> WalOptions {
    WalOptions { preallocate_bytes: 0, flush_policy: FlushPolicy::Manual, ..WalOptions::default() }
}

/// The last entry, and up to where a read-only scan finds it attested.
fn attested<D: Directory>(directory: &Arc<D>) -> (u64, u64) {
    let reader = WalReader::<(), D>::new(Arc::clone(directory));
    let summary = reader.replay_bytes_from(1, WalReplayMode::BestEffortTail, |_, _| Ok(())).expect("replays");
    (summary.end.last_entry_id, summary.end.attested_entry_id)
}

/// Waits for another thread; there is no event that a reader could wait for.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: never");
        std::thread::yield_now();
    }
}

/// (how the log is left, whether its very last entry is attested then)
#[test]
fn close_rotation_drop_and_attest_leave_the_very_last_entry_attested() {
    type Leave = fn(WalWriter<(), SimDisk>, &SimDisk) -> SimDisk;
    let rows: [(&str, Leave, bool); 5] = [
        (
            "killed behind its last commit",
            |wal, disk| {
                let killed = disk.after_kill();
                drop(wal);
                killed
            },
            false,
        ),
        (
            "closed",
            |wal, disk| {
                wal.close().expect("closes");
                disk.after_kill()
            },
            true,
        ),
        (
            "dropped",
            |wal, disk| {
                drop(wal);
                disk.after_kill()
            },
            true,
        ),
        (
            "attested, then killed",
            |mut wal, disk| {
                wal.attest().expect("attests");
                let killed = disk.after_kill();
                drop(wal);
                killed
            },
            true,
        ),
        (
            "rotated, and killed before the next segment's first commit",
            |mut wal, disk| {
                let last = wal.last_entry_id();
                wal.set_segment_size_limit_bytes(1);
                wal.append_bytes_durable(&payload(last + 1)).expect("commits");
                let killed = disk.after_kill();
                // Of the new segment, the first commit is gone.
                let path = format!("wal/wal_{}.log", wal.current_segment_id());
                drop(wal);
                let mut bytes = contents(&killed, &path);
                bytes.truncate(512);
                replace(&killed, &path, &bytes);
                killed
            },
            true,
        ),
    ];
    for (what, leave, is_attested) in rows {
        let disk = SimDisk::new(1);
        let mut wal = WalWriter::open_with(Arc::new(disk.clone()), options()).expect("opens");
        for entry_id in 1..=5 {
            wal.append_bytes_durable(&payload(entry_id)).expect("commits");
        }
        let left = leave(wal, &disk);
        let expected = if is_attested { 5 } else { 4 };
        assert_eq!(attested(&Arc::new(left.clone())), (5, expected), "{what}");
        // And so damage to the last entry is told, or is not.
        let mut bytes = contents(&left, "wal/wal_1.log");
        let at = (0..bytes.len())
            .step_by(512)
            .filter(|at| bytes[*at + 8] == 2 && bytes[*at..].starts_with(b"DFRM"));
        let last = at.max().expect("a frame of data");
        bytes[last..last + 512].fill(0);
        replace(&left, "wal/wal_1.log", &bytes);
        let told = outcome_in(&Arc::new(left), WalReplayMode::BestEffortTail);
        assert_eq!(matches!(told, Outcome::Corrupt(..)), is_attested, "{what}: {told:?}");
    }
}

/// Nobody asks for durability: what a rotation makes durable is attested all the same, by the seal of the segment that
/// is full and by the next one. Or damage there would look like a tear, although followers have shown what it hits.
#[test]
fn what_a_rotation_of_a_shared_log_made_durable_is_attested() {
    for by_hand in [true, false] {
        let (disk, hand) = (SimDisk::new(1), PrepareHand::new());
        let prepare_ahead = if by_hand { PrepareAhead::ByHand(hand.clone()) } else { PrepareAhead::Never };
        let options = WalOptions { segment_bytes_max: 4096, prepare_ahead, ..options() };
        let wal = Shared::configure(Arc::new(disk.clone()), options).expect("opens");
        let mut early = WalFollower::new(Arc::new(disk.clone()), None).expect("follows");
        while wal.rotations() < 3 {
            wal.append_bytes(&payload(wal.last_entry_id() + 1)).expect("appends");
            wal.flush().expect("flushes");
            while hand.step() {}
            early.poll(|_, _| Ok(())).expect("follows");
        }
        let mut late = WalFollower::new(Arc::new(disk.clone()), None).expect("follows");
        late.poll(|_, _| Ok(())).expect("follows");
        let what = format!("by hand: {by_hand}");

        // As if a sector of the last frame but one of the segment that is full had never been written.
        let (killed, path) = (disk.after_kill(), "wal/wal_3.log");
        let mut bytes = contents(&killed, path);
        let data: Vec<_> = frames(&bytes).into_iter().filter(|frame| frame.kind == FrameKind::Data).collect();
        let [.., hit, _] = &data[..] else { panic!("{what}: {data:?}") };
        bytes[hit.offset..hit.offset + 512].fill(0);
        replace(&killed, path, &bytes);
        let told = outcome_in(&Arc::new(killed), WalReplayMode::BestEffortTail);
        assert!(matches!(told, Outcome::Corrupt(..)), "{what}: {told:?}, entry {} is hit", hit.last_entry_id);
        let (next_early, next_late, newest) =
            (early.next_entry_id(), late.next_entry_id(), wal.last_entry_id());
        assert_eq!((next_early, next_late), (newest, newest), "{what}: all but the newest segment's entry");
    }
}

#[test]
fn an_idle_log_attests_its_last_entries_and_busy_ones_go_on() {
    let disk = SimDisk::new(3);
    let wal = Shared::configure(Arc::new(disk.clone()), options()).expect("opens");
    wal.attest_when_idle(Duration::from_micros(30)).expect("starts");
    assert!(wal.attest_when_idle(Duration::from_millis(1)).is_err(), "one is enough");
    for round in 1..=3u64 {
        // Several threads at once: none is held up or left waiting.
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        wal.append_bytes_durable(b"entry").expect("commits");
                    }
                });
            }
        });
        let last = wal.last_entry_id();
        assert_eq!(last, round * 60);
        until("attested", || attested(&Arc::new(disk.after_kill())) == (last, last));
    }
    // Once attested, it is left alone.
    let operations = disk.operations();
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    assert_eq!(disk.operations(), operations, "a seal for each idle while, not more");
    let killed = disk.after_kill();
    wal.close().expect("closes, and the thread with it");
    assert_eq!(attested(&Arc::new(killed)), (180, 180));
    assert!(WalMaintenance::new(Arc::new(disk)).segment_ranges_strict().is_ok());
}

#[test]
fn an_idle_thread_ends_with_its_log_whatever_ends_it() {
    for how in 0..3 {
        let disk = SimDisk::new(how);
        let wal = Shared::configure(Arc::new(disk.clone()), options()).expect("opens");
        wal.attest_when_idle(Duration::from_micros(50)).expect("starts");
        wal.append_bytes_durable(b"x").expect("commits");
        match how {
            0 => drop(wal),
            1 => wal.close().expect("closes"),
            // Poisoned: the thread finds out, or is told when the log is dropped.
            _ => {
                disk.fail_sync_after(0);
                until("poisoned", || wal.append_bytes_durable(b"y").is_err());
                drop(wal);
            }
        }
    }
}

#[test]
fn a_shared_log_attests_on_demand_over_files_too() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let wal = SyncWalWriter::<(), FsDirectory>::configure(Arc::clone(&directory), options()).expect("opens");
    for _ in 0..3 {
        wal.append_bytes(b"entry").expect("appends");
        wal.attest().expect("attests");
        let last = wal.last_entry_id();
        assert_eq!(attested(&directory), (last, last));
    }
}

/// Seals between commits, and crashes at every operation.
#[test]
fn no_power_cut_loses_what_a_log_that_attests_when_idle_acknowledged() {
    for seed in crate::power_cut::seeds(4) {
        let disk = SimDisk::new(seed);
        let options = WalOptions { segment_bytes_max: 3000, ..options() };
        let wal = Shared::configure(Arc::new(disk.clone()), options).expect("opens");
        wal.attest_when_idle(Duration::from_micros(20)).expect("starts");
        for _ in 0..10 {
            let next = wal.last_entry_id() + 1;
            disk.mark(wal.append_bytes_durable(&crate::power_cut::payload(next)).expect("commits"));
            if next % 3 == 0 {
                until("attested", || attested(&Arc::new(disk.after_kill())) == (next, next));
            }
        }
        drop(wal);
        let options = SimOptions { seed, images_per_point: 6, ..SimOptions::default() };
        must(check_crashes(&disk, &options, check), seed);
    }
}

/// A log that goes on in a segment which then cannot grow has its last entries in the one before.
#[test]
fn what_is_attested_behind_a_refused_commit_is_although_the_log_has_gone_on_in_another_segment() {
    let (disk, hand) = (SimDisk::new(1), PrepareHand::new());
    disk.keep_reserved();
    let options = WalOptions {
        segment_bytes_max: 64 << 10,
        preallocate_bytes: 4096,
        prepare_ahead: PrepareAhead::ByHand(hand.clone()),
        ..options()
    };
    let directory = Arc::new(disk.clone());
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::clone(&directory), options).expect("opens");
    wal.prepare_ahead().expect("is told who prepares");
    assert_eq!(wal.append_bytes_durable(&payload(1)).expect("commits"), 1);
    while hand.step() {}
    disk.limit_capacity(Some(disk.used_bytes()));
    let full = wal.append_bytes_durable(&[7; 200_000]).expect_err("no segment has room for it");
    assert!(full.is_out_of_space(), "{full}");
    assert_eq!(wal.rotations(), 1, "the log has gone on");
    wal.attest().expect("attests");
    assert_eq!(attested(&Arc::new(disk.after_kill())), (1, 1));
}
