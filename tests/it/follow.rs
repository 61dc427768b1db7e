//! A follower beside a writer: what it hands out is durable, in order, and all there is.

use crate::power_cut::{payload, seeds};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{WalFollower, WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{FsDirectory, PersistenceError};
use std::sync::Arc;

type Wal = WalWriter<(), SimDisk>;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn options(random: &mut Random) -> WalOptions {
    WalOptions {
        segment_bytes_max: [1, 3000, 20_000][random.below(3) as usize],
        preallocate_bytes: [0, 8192][random.below(2) as usize],
        recycle_capacity: random.below(3) as usize,
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(random.below(1 << 40))),
        ..WalOptions::default()
    }
}

/// A random run of a writer, and after each step a look of the follower; returns what it has seen last.
/// `truncate` cuts the log behind the follower's back, but never what it has not seen.
fn run(disk: &SimDisk, random: &mut Random, steps: u64) -> u64 {
    let directory = Arc::new(disk.clone());
    let mut wal = Wal::open_with(Arc::clone(&directory), options(random)).expect("opens");
    wal.append_bytes_durable(&payload(1)).expect("commits");
    let mut follower = WalFollower::new(Arc::clone(&directory), None).expect("follows");
    let mut seen = 0;
    for _ in 0..steps {
        let bytes = payload(wal.next_entry_id());
        match random.below(8) {
            0..=2 => drop(wal.append_bytes_durable(&bytes).expect("commits")),
            3 => {
                wal.append_bytes(&bytes).expect("appends");
                wal.flush().expect("flushes");
            }
            4 => wal.attest().expect("attests"),
            5 => {
                WalMaintenance::new(Arc::clone(&directory)).truncate_to_recycle(seen, 2).expect("truncates");
            }
            6 => {
                wal.append_bytes(&bytes).expect("appends");
                wal.flush_and_sync().expect("syncs");
            }
            _ => {
                drop(wal);
                wal = Wal::open_with(Arc::clone(&directory), options(random)).expect("opens");
            }
        }
        if random.below(3) > 0 {
            let polled = follower.poll(|entry_id, bytes| {
                assert_eq!((entry_id, bytes), (seen + 1, &payload(entry_id)[..]));
                seen = entry_id;
                Ok(())
            });
            polled.expect("polls");
            assert_eq!(follower.next_entry_id(), seen + 1);
            disk.mark(seen);
        }
    }
    let last = wal.last_entry_id();
    wal.close().expect("closes");
    let polled = follower.poll(|entry_id, bytes| {
        assert_eq!((entry_id, bytes), (seen + 1, &payload(entry_id)[..]));
        seen = entry_id;
        Ok(())
    });
    polled.expect("polls");
    assert_eq!(seen, last, "a closed log is attested to its end");
    seen
}

#[test]
fn what_a_follower_handed_out_survives_every_power_cut() {
    for seed in seeds(12) {
        let disk = SimDisk::new(seed);
        run(&disk, &mut Random(seed), 25);
        let options = SimOptions { seed, ..SimOptions::default() };
        let checked = check_crashes(&disk, &options, |image, marks| {
            let seen = marks.iter().max().copied().unwrap_or(0);
            if seen == 0 {
                return Ok(());
            }
            let reader = WalReader::<(), SimDisk>::new(Arc::new(image.clone()));
            match reader.entry_range(WalReplayMode::BestEffortTail) {
                Ok(Some((_, last))) if last >= seen => Ok(()),
                other => Err(format!("entry {seen} was handed out as durable; the log is {other:?}")),
            }
        });
        checked.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
}

#[test]
fn a_follower_misses_nothing_across_rotation_truncation_and_new_writers() {
    for seed in seeds(60) {
        let last = run(&SimDisk::new(seed), &mut Random(seed ^ 0x5eed), 120);
        assert!(last > 20, "seed {seed}");
    }
}

#[test]
fn the_last_commit_is_seen_when_something_attests_it_and_no_earlier() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let mut wal = WalWriter::<(), FsDirectory>::open_with(Arc::clone(&directory), WalOptions::default())
        .expect("opens");
    wal.append_bytes_durable(b"one").expect("commits");
    let mut follower = WalFollower::new(Arc::clone(&directory), None).expect("follows");
    let mut seen = Vec::new();
    let mut poll = |follower: &mut WalFollower<FsDirectory>| {
        follower
            .poll(|entry_id, _| {
                seen.push(entry_id);
                Ok(())
            })
            .expect("polls");
        seen.clone()
    };
    assert_eq!(poll(&mut follower), Vec::<u64>::new(), "nothing on the disk says that it is durable");
    wal.append_bytes_durable(b"two").expect("commits");
    assert_eq!(poll(&mut follower), [1]);
    wal.append_bytes(b"three").expect("appends");
    wal.flush().expect("flushes");
    assert_eq!(poll(&mut follower), [1, 2], "the third is flushed, and attests the second");
    wal.attest().expect("attests");
    assert_eq!(poll(&mut follower), [1, 2, 3]);
}

#[test]
fn a_follower_says_that_truncation_was_faster_and_that_an_entry_is_damaged() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let options = WalOptions { segment_bytes_max: 1, preallocate_bytes: 0, ..WalOptions::default() };
    let mut wal = WalWriter::<(), FsDirectory>::open_with(Arc::clone(&directory), options).expect("opens");
    for _ in 0..3 {
        wal.append_bytes_durable(b"entry").expect("commits");
    }
    let mut damaged = WalFollower::new(Arc::clone(&directory), None).expect("follows");
    let path = root.path().join("wal/wal_2.log");
    let good = std::fs::read(&path).expect("reads");
    let mut bytes = good.clone();
    bytes[1024 + 50] ^= 1;
    std::fs::write(&path, &bytes).expect("writes");
    let mut seen = 0;
    let polled = damaged.poll(|entry_id, _| {
        seen = entry_id;
        Ok(())
    });
    let error = polled.expect_err("damage");
    assert_eq!((error.corruption().map(|found| found.entry_id), seen), (Some(2), 1), "{error}");
    std::fs::write(&path, &good).expect("writes");

    WalMaintenance::new(Arc::clone(&directory)).truncate_prefix(2).expect("truncates");
    match WalFollower::new(Arc::clone(&directory), Some(1)).map(|_| ()) {
        Err(PersistenceError::PrefixUnavailable { wanted_entry_id: 1, first_entry_id: 2.. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_that_vanished_is_no_log_without_news() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let mut wal = WalWriter::<(), FsDirectory>::open(Arc::clone(&directory)).expect("opens");
    let follow = || WalFollower::new(Arc::clone(&directory), None).expect("follows");
    let (mut of_nothing, folder) = (follow(), root.path().join("wal"));
    wal.append_bytes_durable(b"first").expect("commits");
    wal.close().expect("closes");
    let mut of_one = follow();
    assert_eq!(of_one.poll(|_, _| Ok(())).expect("reads"), 1);
    std::fs::remove_file(folder.join("wal_1.log")).expect("removes");
    let error = of_one.poll(|_, _| Ok(())).expect_err("its segment is gone");
    assert!(error.is_not_found(), "{error}");
    std::fs::remove_dir_all(&folder).expect("removes");
    for follower in [&mut of_nothing, &mut of_one] {
        let error = follower.poll(|_, _| Ok(())).expect_err("the folder is gone");
        assert!(error.is_not_found(), "{error}");
    }
}
