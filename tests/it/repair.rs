//! Repair: what is kept is clean, what is taken out is all there, and nothing acknowledged goes unasked.

use durability::checkpoint::CheckpointFile;
use durability::formats::header::{FileKind, Header, HeaderState, decode};
use durability::inspect::{Checkpoints, Verdict};
use durability::repair::{Keep, Loss, Repair, RepairPlan, RepairState, Repaired, plan_log};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{WalCheck, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, DurableDirectory, PersistenceResult};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

type Files = BTreeMap<String, Vec<u8>>;

fn payload(entry_id: u64) -> Vec<u8> {
    vec![entry_id as u8; 700]
}

/// A log of five segments, two entries in each, as a killed writer leaves it.
fn segments() -> SimDisk {
    let disk = SimDisk::new(1);
    let options = WalOptions {
        segment_bytes_max: 3600,
        preallocate_bytes: 0,
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(5)),
        ..WalOptions::default()
    };
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    while wal.last_entry_id() < 10 {
        let bytes = payload(wal.next_entry_id());
        wal.append_bytes_durable(&bytes).expect("commits");
    }
    let killed = disk.after_kill();
    drop(wal);
    killed
}

fn read(disk: &SimDisk, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    disk.open_file(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

/// Changes a file, durably.
fn change(disk: &SimDisk, path: &str, damage: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = read(disk, path);
    damage(&mut bytes);
    disk.create_file(path).expect("creates").write_all(&bytes).expect("writes");
    disk.sync_file(path).expect("syncs");
    disk.sync_parent_dir(path).expect("syncs");
}

fn files(disk: &SimDisk, folder: &str) -> Files {
    let names = disk.list_dir(folder).unwrap_or_default();
    let paths = names.into_iter().map(|name| format!("{folder}/{name}"));
    paths.filter(|path| path.contains("wal_")).map(|path| (path.clone(), read(disk, &path))).collect()
}

fn verdict(disk: &SimDisk) -> Verdict {
    let (_, end) = WalCheck::run(&Arc::new(disk.clone()), |check| check.scan_all());
    Verdict::of_log(&end).expect("a verdict")
}

/// Reads in best-effort mode; the entries that were handed out, and whether the end was accepted.
fn replay(disk: &SimDisk, mode: WalReplayMode) -> (u64, PersistenceResult<()>) {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
    let mut last = 0;
    let replayed = reader.replay_bytes_from(1, mode, |entry_id, bytes| {
        assert_eq!((entry_id, bytes), (last + 1, &payload(entry_id)[..]));
        last = entry_id;
        Ok(())
    });
    (last, replayed.map(|_| ()))
}

/// The checkpoints beside the log.
fn beside(disk: &SimDisk) -> Checkpoints {
    let files: Vec<_> = disk.list_dir("").expect("lists");
    let files: Vec<_> = files.into_iter().filter(|name| name.starts_with("state")).collect();
    Checkpoints::read(disk, &files, &mut |_| {}).expect("reads")
}

fn plan(disk: &SimDisk, keep: Keep) -> RepairPlan {
    plan_log(&Arc::new(disk.clone()), &beside(disk), keep, |check| check.scan_all()).expect("a plan")
}

fn apply(disk: &SimDisk, keep: Keep, accepted: Option<&str>) -> PersistenceResult<Repaired> {
    let repair = Repair::of_log(Arc::new(disk.clone()), &beside(disk), keep, |check| check.scan_all())?;
    repair.apply(accepted, &mut |plan, folder, state| {
        let done = state == RepairState::Done;
        format!("{folder}: {done}: {}", plan.found).into_bytes()
    })
}

/// Damages of the log of [`segments`], and the last entry before each.
type Damage = (&'static str, fn(&SimDisk), u64);

const DAMAGES: &[Damage] = &[
    (
        "a torn last commit",
        |disk| change(disk, "wal/wal_5.log", |bytes| bytes.truncate(bytes.len() - 512)),
        9,
    ),
    ("a flipped bit in the third segment", |disk| change(disk, "wal/wal_3.log", |bytes| bytes[1100] ^= 4), 4),
    (
        "a zeroed sector in the second",
        |disk| change(disk, "wal/wal_2.log", |bytes| bytes[1024..1536].fill(0)),
        2,
    ),
    ("a damaged header of the newest", |disk| change(disk, "wal/wal_5.log", |bytes| bytes[20] ^= 1), 8),
    (
        "something else in the place of the newest",
        |disk| change(disk, "wal/wal_5.log", |bytes| bytes.fill(7)),
        8,
    ),
    ("the newest missing", |disk| disk.delete_durable("wal/wal_5.log").expect("deletes"), 8),
    (
        "an opening that did not arrive",
        |disk| change(disk, "wal/wal_5.log", |bytes| bytes[512..1024].fill(0)),
        8,
    ),
];

#[test]
fn what_is_repaired_is_clean_and_what_was_taken_out_is_all_there() {
    for (what, damage, last) in DAMAGES {
        let disk = segments();
        damage(&disk);
        let (found, before) = (verdict(&disk), files(&disk, "wal"));
        let plan = plan(&disk, Keep::Oldest);
        assert_eq!((&plan.found, plan.obstacle.as_deref()), (&found, None), "{what}");
        assert_eq!((plan.first_entry_id, plan.last_entry_id), (1, *last), "{what}: {plan:?}");
        assert_eq!(files(&disk, "wal"), before, "{what}: planning changes nothing");
        let loss = plan.loss.to_string();
        let repaired = apply(&disk, Keep::Oldest, Some(&loss)).expect("repairs");
        assert_eq!(repaired.folder.as_deref(), Some("repair-1"), "{what}");
        assert_eq!(verdict(&disk), Verdict::Clean, "{what}");
        let (entries, end) = replay(&disk, WalReplayMode::Strict);
        assert_eq!((entries, end.is_ok()), (*last, true), "{what}: {end:?}");
        assert_eq!(missing(&before, &disk), None, "{what}");
        assert!(read(&disk, "repair-1/report.json").starts_with(b"repair-1: true"), "{what}");
        // A repaired log goes on.
        let mut wal = WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens");
        let bytes = payload(wal.next_entry_id());
        assert_eq!(wal.append_bytes_durable(&bytes).expect("commits"), last + 1, "{what}");
        drop(wal);
        assert_eq!(replay(&disk, WalReplayMode::Strict).0, last + 1, "{what}");
        // And needs no other repair.
        assert_eq!(apply(&disk, Keep::Oldest, None).expect("repairs").folder, None, "{what}");
    }
}

#[test]
fn what_was_acknowledged_goes_only_when_it_is_named() {
    for (what, damage, last) in &DAMAGES[1..] {
        let disk = segments();
        damage(&disk);
        let (before, loss) = (files(&disk, "wal"), plan(&disk, Keep::Oldest).loss);
        assert_eq!(loss.behind.map(|(first, _)| first), Some(last + 1), "{what}: {loss}");
        let other = Loss { behind: Some((last + 1, Some(1000))), ..loss }.to_string();
        for accepted in [None, Some(""), Some("none"), Some(other.as_str())] {
            let error = apply(&disk, Keep::Oldest, accepted).expect_err("refused");
            assert!(error.to_string().contains(&loss.to_string()), "{what}: {error}");
            assert_eq!(files(&disk, "wal"), before, "{what}");
            assert!(!disk.exists("repair-1"), "{what}");
        }
    }
    // The exact ranges, where headers tell them.
    let exact = ["none", "5-10", "3-10", "9-unknown", "9-unknown", "9-unknown", "9-10"];
    for ((what, damage, _), expected) in DAMAGES.iter().zip(exact) {
        let disk = segments();
        damage(&disk);
        assert_eq!(plan(&disk, Keep::Oldest).loss.to_string(), expected, "{what}");
    }
}

#[test]
fn the_segments_behind_the_damage_can_be_kept_instead() {
    let disk = segments();
    change(&disk, "wal/wal_3.log", |bytes| bytes[1100] ^= 4);
    let before = files(&disk, "wal");
    let plan = plan(&disk, Keep::Newest);
    assert_eq!((plan.first_entry_id, plan.last_entry_id), (7, 10), "{plan:?}");
    assert_eq!(plan.loss.to_string(), "1-6");
    apply(&disk, Keep::Newest, Some("1-6")).expect("repairs");
    assert_eq!(verdict(&disk), Verdict::Clean);
    assert_eq!(missing(&before, &disk), None);

    // A hole leaves only this side, whatever was asked for.
    let disk = segments();
    disk.delete_durable("wal/wal_2.log").expect("deletes");
    for keep in [Keep::Oldest, Keep::Newest] {
        let plan = self::plan(&disk, keep);
        assert_eq!((plan.first_entry_id, plan.loss.to_string()), (5, "1-4".to_owned()), "{plan:?}");
    }
    apply(&disk, Keep::Oldest, Some("1-4")).expect("repairs");
    assert_eq!(verdict(&disk), Verdict::Clean);
}

#[test]
fn a_copy_and_a_stranger_are_moved_away_and_cost_nothing() {
    let disk = segments();
    let copy = read(&disk, "wal/wal_2.log");
    for name in ["wal/wal_6.log", "wal/wal_007.log"] {
        disk.create_file(name).expect("creates").write_all(&copy).expect("writes");
    }
    let plan = plan(&disk, Keep::Oldest);
    assert_eq!((plan.loss.is_none(), plan.steps.len(), plan.last_entry_id), (true, 2, 10), "{plan:?}");
    apply(&disk, Keep::Oldest, None).expect("repairs");
    assert_eq!((verdict(&disk), read(&disk, "repair-1/wal_007.log")), (Verdict::Clean, copy));

    let stranger = {
        let other = SimDisk::new(2);
        let mut wal = WalWriter::<(), SimDisk>::open(Arc::new(other.clone())).expect("opens");
        wal.append_bytes_durable(b"of another log").expect("commits");
        wal.close().expect("closes");
        read(&other, "wal/wal_1.log")
    };
    let disk = segments();
    let header = decode(FileKind::Segment, &stranger[..512]);
    let HeaderState::Good(header) = header else { panic!("no header") };
    let mut stranger = stranger;
    stranger[..512].copy_from_slice(&Header { file_id: 6, ..header }.encode());
    disk.create_file("wal/wal_6.log").expect("creates").write_all(&stranger).expect("writes");
    let plan = self::plan(&disk, Keep::Oldest);
    assert_eq!((plan.loss.is_none(), plan.steps.len(), plan.last_entry_id), (true, 1, 10), "{plan:?}");
}

/// Puts a checkpoint of entry 1 beside the log that requires an entry of it.
fn require(disk: &SimDisk, required_entry_id: u64) {
    let header_of = |path: &str, kind| match decode(kind, &read(disk, path)[..512]) {
        HeaderState::Good(header) => header,
        other => panic!("no header: {other:?}"),
    };
    let identity = header_of("wal/wal_1.log", FileKind::Segment).identity;
    CheckpointFile::new(Arc::new(disk.clone())).write_bytes("state", 1, b"a state").expect("writes");
    let header = header_of("state", FileKind::Checkpoint);
    let header = Header { identity, required_entry_id, ..header };
    change(disk, "state", |bytes| bytes[..512].copy_from_slice(&header.encode()));
}

#[test]
fn nothing_is_taken_out_of_a_log_that_would_end_before_what_a_checkpoint_requires() {
    let nothing: Damage = ("nothing", |_| {}, 10);
    let shorter: Damage = (
        "the newest missing, and a tear before it",
        |disk| {
            disk.delete_durable("wal/wal_5.log").expect("deletes");
            change(disk, "wal/wal_4.log", |bytes| bytes.truncate(bytes.len() - 1024));
        },
        7,
    );
    for (what, damage, last) in DAMAGES.iter().chain([&nothing, &shorter]) {
        let disk = segments();
        damage(&disk);
        let without = plan(&disk, Keep::Oldest);
        assert_eq!((without.last_entry_id, &without.obstacle), (*last, &None), "{what}");
        // What is satisfied changes nothing.
        require(&disk, *last);
        let satisfied = plan(&disk, Keep::Oldest);
        assert_eq!(format!("{satisfied:?}"), format!("{without:?}"), "{what}");

        require(&disk, last + 1);
        let (before, required) = (files(&disk, "wal"), beside(&disk).requirements());
        let (_, end) = WalCheck::run_requiring(&Arc::new(disk.clone()), required, |check| check.scan_all());
        let plan = plan(&disk, Keep::Oldest);
        assert_eq!(plan.found, Verdict::of_log(&end).expect("a verdict"), "{what}");
        assert!(!plan.found.is_accepted(), "{what}: {plan:?}");
        assert_eq!((plan.steps.len(), plan.loss.is_none()), (0, true), "{what}: {plan:?}");
        let obstacle = plan.obstacle.expect("an obstacle");
        let expected = format!("state requires entry {}, and the log would end with entry {last}:", last + 1);
        assert!(obstacle.contains(&expected), "{what}: {obstacle}");
        for accepted in [None, Some(without.loss.to_string().as_str()), Some("none")] {
            let error = apply(&disk, Keep::Oldest, accepted).expect_err("refused");
            assert!(error.to_string().contains(&expected), "{what}: {error}");
        }
        assert_eq!((files(&disk, "wal"), disk.exists("repair-1")), (before, false), "{what}");
    }
}

/// Which log's checkpoints count is known only when the files of another one are out of the folder.
#[test]
fn a_checkpoint_of_a_log_that_is_moved_away_requires_nothing_of_the_one_that_stays() {
    let disk = segments();
    let bytes = read(&disk, "wal/wal_5.log");
    let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..512]) else { panic!("no header") };
    let stranger = Header { identity: header.identity ^ 1, file_id: 6, ..header };
    require(&disk, 1000);
    change(&disk, "state", |bytes| {
        let HeaderState::Good(header) = decode(FileKind::Checkpoint, &bytes[..512]) else {
            panic!("no header")
        };
        let header = Header { identity: stranger.identity, ..header };
        bytes[..512].copy_from_slice(&header.encode());
    });
    disk.create_file("wal/wal_6.log").expect("creates").write_all(&stranger.encode()).expect("writes");
    change(&disk, "wal/wal_6.log", |file| file.extend_from_slice(&bytes[512..]));
    let plan = plan(&disk, Keep::Oldest);
    assert_eq!((plan.steps.len(), plan.obstacle, plan.last_entry_id), (1, None, 10));
    assert_eq!(plan.loss.to_string(), "none");
}

#[test]
fn a_log_with_a_writer_is_not_repaired() {
    let disk = segments();
    change(&disk, "wal/wal_5.log", |bytes| bytes.truncate(bytes.len() - 512));
    let wal = WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens");
    let refused = apply(&disk, Keep::Oldest, None);
    assert!(matches!(refused, Err(durability::PersistenceError::LockFailed { .. })), "{refused:?}");
    drop(wal);
}

/// The first byte of `before` that is neither in the log nor in a folder of a repair.
fn missing(before: &Files, disk: &SimDisk) -> Option<String> {
    let now = files(disk, "wal");
    let folders = disk.list_dir("").unwrap_or_default();
    let saved: Vec<_> = folders.iter().filter(|name| name.starts_with("repair-")).collect();
    for (path, bytes) in before {
        let name = path.trim_start_matches("wal/");
        let moved = saved.iter().map(|folder| format!("{folder}/{name}")).find(|path| disk.exists(path));
        let mut rest =
            moved.map_or_else(|| now.get(path).cloned().unwrap_or_default(), |path| read(disk, &path));
        // What was cut, from the last cut to the first.
        while rest.len() < bytes.len() {
            let tail = saved.iter().map(|folder| format!("{folder}/{name}.from-{}", rest.len()));
            match tail.filter(|path| disk.exists(path)).map(|path| read(disk, &path)).max_by_key(Vec::len) {
                Some(tail) if !tail.is_empty() => rest.extend_from_slice(&tail),
                _ => return Some(format!("{path} from byte {}", rest.len())),
            }
        }
        if rest != *bytes {
            return Some(format!("{path} changed"));
        }
    }
    None
}

#[test]
fn a_power_cut_in_a_repair_loses_no_byte_and_repairing_again_ends_it() {
    for (what, damage, last) in DAMAGES {
        let disk = segments();
        damage(&disk);
        let (before, loss) = (files(&disk, "wal"), plan(&disk, Keep::Oldest).loss.to_string());
        let (readable, _) = replay(&disk, WalReplayMode::BestEffortTail);
        let from_operation = disk.operations();
        apply(&disk, Keep::Oldest, Some(&loss)).expect("repairs");
        let options = SimOptions { seed: 3, from_operation, ..SimOptions::default() };
        let checked = check_crashes(&disk, &options, |image, _| {
            if let Some(lost) = missing(&before, image) {
                return Err(format!("{lost} is gone"));
            }
            let (entries, _) = replay(image, WalReplayMode::BestEffortTail);
            if entries < readable.min(*last) {
                return Err(format!("only {entries} entries are left of {readable}"));
            }
            let again = plan(image, Keep::Oldest);
            apply(image, Keep::Oldest, Some(&again.loss.to_string())).map_err(|error| error.to_string())?;
            if let Some(lost) = missing(&before, image) {
                return Err(format!("{lost} is gone after the second repair"));
            }
            match (verdict(image), replay(image, WalReplayMode::Strict)) {
                (Verdict::Clean, (entries, Ok(()))) if entries == *last => Ok(()),
                other => Err(format!("after the second repair: {other:?}")),
            }
        });
        let report = checked.unwrap_or_else(|failure| panic!("{what}: {failure}"));
        assert!(report.images > 10, "{what}: {report:?}");
    }
}

/// A log that begins behind a checkpoint of none, and is killed in its first commit.
#[test]
fn the_first_commit_behind_a_checkpoint_is_judged_as_recovery_judges_it() {
    let disk = SimDisk::new(11);
    let checkpoints = CheckpointFile::new(Arc::new(disk.clone()));
    checkpoints.write_bytes_durable("state", 100, b"one hundred entries").expect("writes");
    let options = WalOptions { id_floor: 100, ..WalOptions::default() };
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    disk.mark(wal.append_bytes_durable(&payload(101)).expect("commits"));
    drop(wal);
    let mut torn = 0;
    let options = SimOptions { images_per_point: 40, ..SimOptions::default() };
    check_crashes(&disk, &options, |image, acknowledged| {
        if !image.exists("state") || !image.exists("wal") {
            return Ok(());
        }
        let (_, end) =
            WalCheck::run_requiring(&Arc::new(image.clone()), beside(image).requirements(), |check| {
                check.scan_all()
            });
        let end = end.map_err(|error| error.to_string())?;
        torn += u64::from(end.torn.is_some());
        let expected = acknowledged.last().copied().unwrap_or(100)..=101;
        let plan = plan(image, Keep::Oldest);
        let says = expected.contains(&end.last_entry_id) && plan.last_entry_id == end.last_entry_id;
        says.then_some(()).ok_or_else(|| format!("{end:?} {plan:?}"))
    })
    .unwrap_or_else(|failure| panic!("{failure}"));
    assert!(torn > 0, "no first commit was torn");
}
