//! The disk keeps its own rules, and its knobs do what they say.

use super::{CrashLab, SimDisk, SimOptions, check_crashes};
use crate::storage::{Commit, CommitBuffer, CommitFile, Effect, FileOptions, Submitted, Wait};
use crate::{Directory, DurableDirectory, PersistenceResult};
use std::collections::BTreeSet;
use std::io::{Read, Write};

fn contents(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    disk.open_file(path).ok()?.read_to_end(&mut bytes).expect("reads");
    Some(bytes)
}

/// Every image of the end of a run, as what `file` holds in it.
fn images(disk: &SimDisk) -> (BTreeSet<Option<Vec<u8>>>, u64) {
    let mut seen = BTreeSet::new();
    let options =
        SimOptions { images_per_point: 1 << 12, from_operation: disk.operations(), ..SimOptions::default() };
    let report = check_crashes(disk, &options, |image, _| {
        seen.insert(contents(image, "file"));
        Ok(())
    });
    let report = report.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(report.exhaustive_points, 1, "few enough to be all of them");
    (seen, report.images)
}

/// A file with a durable name and nothing in it.
fn named(disk: &SimDisk) -> Box<dyn CommitFile> {
    let file = disk.open_durable_file("file", &FileOptions::create_new()).expect("creates");
    disk.sync_parent_dir("file").expect("syncs");
    file
}

fn commit(
    file: &dyn CommitFile,
    id: u64,
    bytes: &[u8],
    offset: u64,
    effect: Effect,
) -> PersistenceResult<()> {
    let buffer = CommitBuffer::from_slice(bytes);
    file.commit(Commit { id, offset, range: 0..bytes.len(), buffer, effect }).0
}

#[test]
fn a_write_that_is_not_synced_survives_by_sector_and_its_size_by_itself() {
    let disk = SimDisk::new(1);
    let file = named(&disk);
    commit(file.as_ref(), 1, &[7; 1024], 0, Effect::Flushed).expect("flushes");
    let (seen, count) = images(&disk);
    assert_eq!(count, 8, "two sectors and a size");
    let (zeros, sevens) = ([0; 512], [7; 512]);
    let expected = [
        vec![],
        sevens.to_vec(),
        [sevens, sevens].concat(),
        [zeros, sevens].concat(),
        [sevens, zeros].concat(),
        [zeros, zeros].concat(),
    ];
    assert_eq!(seen, expected.into_iter().map(Some).collect());
    commit(file.as_ref(), 2, &[], 0, Effect::Durable).expect("syncs");
    assert_eq!(images(&disk), ([Some(vec![7; 1024])].into(), 1));
}

#[test]
fn a_write_that_fails_may_survive_in_part_and_no_later_sync_makes_it_durable() {
    let mut landed = BTreeSet::new();
    for seed in 1..20 {
        let disk = SimDisk::new(seed);
        let file = named(&disk);
        disk.fail_write_after(1);
        commit(file.as_ref(), 1, &[1; 1024], 0, Effect::Durable).expect("the first one is written");
        let error = commit(file.as_ref(), 2, &[2; 1024], 1024, Effect::Durable).expect_err("fails");
        assert!(matches!(error, crate::PersistenceError::Io { .. }), "{error}");
        let refused = commit(file.as_ref(), 3, &[3; 512], 2048, Effect::Durable);
        assert!(matches!(refused, Err(crate::PersistenceError::Poisoned { .. })), "{refused:?}");
        drop(file);
        disk.sync_file("file").expect("a sync of another open file succeeds");
        let (seen, _) = images(&disk);
        assert!(seen.contains(&Some(vec![1; 1024])), "what had landed is not durable");
        landed.insert(contents(&disk, "file").expect("is there").len());
    }
    assert_eq!(landed, [1024, 1536, 2048].into(), "nothing, or some sectors");
}

#[test]
fn a_failed_sync_forgets_the_pages_whoever_syncs_next() {
    let disk = SimDisk::new(1);
    let file = named(&disk);
    commit(file.as_ref(), 1, &[1; 512], 0, Effect::Flushed).expect("flushes");
    disk.fail_sync_after(0);
    disk.sync_file("file").expect_err("fails once");
    disk.sync_file("file").expect("and never again");
    let (seen, _) = images(&disk);
    assert!(seen.contains(&Some(vec![])), "the second sync made nothing durable");
}

#[test]
fn a_full_disk_takes_what_there_is_room_for_and_goes_on_when_something_is_deleted() {
    let disk = SimDisk::new(1);
    disk.atomic_write("other", &[0; 600]).expect("writes");
    disk.limit_capacity(Some(1600));
    let mut stream = disk.append_file("file").expect("creates");
    let error = stream.write_all(&[1; 1500]).expect_err("there is no room");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!((contents(&disk, "file"), disk.used_bytes()), (Some(vec![1; 512]), 1112));
    let filled = disk.open_durable_file("zeros", &FileOptions::create_new().zero_filled(1024));
    assert!(filled.expect_err("there is no room").is_out_of_space());
    assert!(!disk.exists("zeros"));
    disk.delete("other").expect("deletes");
    disk.append_file("file").expect("opens").write_all(&[1; 1000]).expect("there is room now");
    let file = disk.open_durable_file("file", &FileOptions::existing()).expect("opens");
    commit(file.as_ref(), 1, &[2; 512], 0, Effect::Durable).expect("overwriting takes no room");
    assert!(commit(file.as_ref(), 2, &[2; 512], 1500, Effect::Durable).expect_err("full").is_out_of_space());
}

#[test]
fn short_writes_take_a_part_and_only_careful_writers_notice() {
    let disk = SimDisk::new(1);
    disk.shorten_writes();
    let mut stream = disk.create_file("file").expect("creates");
    assert_eq!(stream.write(&[1; 9]).expect("writes"), 5);
    stream.write_all(&[2; 4]).expect("goes on until all is written");
    assert_eq!(contents(&disk, "file"), Some([&[1; 5][..], &[2; 4]].concat()));
}

#[test]
fn commits_in_flight_are_bounded_and_complete_in_an_order_that_the_seed_chooses() {
    let order = |seed| {
        let disk = SimDisk::new(seed);
        let file = named(&disk);
        disk.keep_in_flight(3);
        let submit = |id| {
            let buffer = CommitBuffer::from_slice(&[1; 512]);
            let commit = Commit { id, offset: id * 512, range: 0..512, buffer, effect: Effect::Durable };
            matches!(file.submit(commit), Submitted::Accepted)
        };
        assert!(submit(1) && submit(2) && submit(3) && !submit(4), "three are in flight");
        let reap = || file.reap(Wait::Forever).expect("reaps").map(|completion| completion.id);
        [reap(), reap(), reap()].map(|id| id.expect("three are in flight"))
    };
    let orders: BTreeSet<_> = (1..60).map(order).collect();
    assert_eq!(orders.len(), 6, "every order comes up");
    assert!((1..60).all(|seed| order(seed) == order(seed)), "the same seed, the same order");
}

#[test]
fn a_failure_is_shrunk_to_what_it_takes_and_the_same_seed_finds_it_again() {
    // Six sectors; the property cannot stand the fifth.
    let lab = || {
        CrashLab::new(|disk: &SimDisk, seed| {
            let file = named(disk);
            let bytes: Vec<u8> = (0..6).flat_map(|sector| [sector; 512]).collect();
            commit(file.as_ref(), 1, &bytes, 0, Effect::Flushed).expect("flushes");
            disk.mark(seed);
        })
        .seeds(3..=9)
        .options(SimOptions { images_per_point: 30, ..SimOptions::default() })
        .check(
            |image| contents(image, "file").ok_or("no file"),
            |bytes, _| if bytes.contains(&4) { Err("a four".to_owned()) } else { Ok(()) },
        )
    };
    let failure = lab().expect_err("is found");
    assert!(failure.message == "no recovery: no file" || failure.run_seed == Some(3), "{failure}");
    assert_eq!(lab().expect_err("is found again").to_string(), failure.to_string());
    let disk = SimDisk::new(1);
    let file = named(&disk);
    let bytes: Vec<u8> = (0..6).flat_map(|sector| [sector; 512]).collect();
    commit(file.as_ref(), 1, &bytes, 0, Effect::Flushed).expect("flushes");
    let failure = check_crashes(&disk, &SimOptions::default(), |image, _| {
        let bytes = contents(image, "file").unwrap_or_default();
        if bytes.contains(&4) { Err("a four".to_owned()) } else { Ok(()) }
    });
    let failure = failure.expect_err("is found");
    assert!(failure.trace.contains("write file 0+3072: only the sectors [4] of 6 survive\n"), "{failure}");
}
