//! Whole files: segments and checkpoints that are missing, damaged, doubled, swapped, older or newer than each
//! other; and recovery that is itself cut short, on a full disk too. Tables, as in `matrix`.

use crate::damage::{
    Log, Outcome, Shape, append, build, classify, contents, open, outcome_in, payload, replace, segments,
    verdict_of,
};
use crate::power_cut::must;
use durability::error::Check;
use durability::testing::faults::{At, Fault, Faults, Operation};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, DurableDirectory};
use std::io::ErrorKind;
use std::sync::Arc;

const MODES: [WalReplayMode; 2] = [WalReplayMode::Strict, WalReplayMode::BestEffortTail];

/// What reading everything from the first entry on says, with the check of a corruption alone.
fn read(disk: &SimDisk, from: u64, mode: WalReplayMode) -> Result<u64, Check> {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
    let mut last = from - 1;
    let replayed = reader.replay_bytes_from(from, mode, |entry_id, bytes| {
        assert_eq!((entry_id, bytes), (last + 1, &payload(entry_id)[..]));
        last = entry_id;
        Ok(())
    });
    match replayed.map_err(classify) {
        Ok(_) => Ok(last),
        Err(Outcome::Corrupt(check, _)) => Err(check),
        Err(other) => panic!("{other:?}"),
    }
}

fn with_bytes(disk: &SimDisk, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = contents(disk, path);
    change(&mut bytes);
    replace(disk, path, &bytes);
}

/// Opening, resuming and maintenance must refuse what reading refuses, where it concerns the newest segment.
fn all_refuse(disk: &SimDisk, check: &Check, what: &str) {
    let directory = Arc::new(disk.clone());
    let maintenance = WalMaintenance::new(Arc::clone(&directory));
    let refusals = [
        open(disk, Shape::Fresh).map(drop),
        WalWriter::<(), SimDisk>::resume(Arc::clone(&directory)).map(drop),
        WalWriter::<(), SimDisk>::resume_after_crash(directory).map(drop),
        maintenance.segment_ranges_strict().map(drop),
        maintenance.segment_ranges(WalReplayMode::BestEffortTail).map(drop),
        maintenance.truncate_prefix(u64::MAX).map(drop),
    ];
    for refused in refusals {
        let found = refused.map_err(classify);
        assert!(matches!(&found, Err(Outcome::Corrupt(found, _)) if found == check), "{what}: {found:?}");
    }
}

#[test]
fn every_bit_of_a_segments_header_and_every_header_that_is_not_its_own_are_told() {
    for sealed in [false, true] {
        let good = segments(sealed);
        for id in [1, 3, 5] {
            let path = format!("wal/wal_{id}.log");
            let used = (0..76 * 8).chain((76 * 8..508 * 8).step_by(97)).chain(508 * 8..512 * 8);
            for bit in used {
                let disk = good.after_kill();
                with_bytes(&disk, &path, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
                let what = format!("sealed {sealed}, {path}, bit {bit}");
                for mode in MODES {
                    let told = read(&disk, 1, mode);
                    // Behind the damaged one the log is what it was; a hole is told by the segment missing.
                    let missing = Check::SegmentMissing { segment_id: id };
                    let right = matches!(&told, Err(Check::HeaderChecksum { expected, found }) if expected != found)
                        || (id == 3 && told == Err(missing));
                    assert!(right, "{what}: {told:?}");
                }
                if id == 5 {
                    let check = read(&disk, 1, MODES[0]).expect_err("damaged");
                    all_refuse(&disk, &check, &what);
                } else {
                    // Beyond the hole the log is whole, and goes on.
                    assert_eq!(read(&disk, 2 * id + 1, MODES[0]), Ok(10), "{what}");
                }
            }
        }
        // (what, two segments whose header blocks are exchanged)
        for (left, right) in [(2, 3), (4, 5), (1, 5)] {
            let disk = good.after_kill();
            let (left_path, right_path) = (format!("wal/wal_{left}.log"), format!("wal/wal_{right}.log"));
            let (a, b) = (contents(&disk, &left_path), contents(&disk, &right_path));
            with_bytes(&disk, &left_path, |bytes| bytes[..512].copy_from_slice(&b[..512]));
            with_bytes(&disk, &right_path, |bytes| bytes[..512].copy_from_slice(&a[..512]));
            let check = Check::SegmentName { named: left, stated: right };
            assert_eq!(read(&disk, 1, MODES[1]), Err(check.clone()));
            all_refuse(&disk, &check, "swapped headers");
        }
    }
}

/// A file that a rotation had begun to take out of the spares: its new name came after its zeros, and before
/// its header.
#[test]
fn a_recycled_file_that_was_renamed_and_not_yet_rewritten_is_no_part_of_the_log() {
    for sealed in [false, true] {
        let log = build(Shape::Recycled, sealed);
        let whole = (Outcome::Entries(log.last), Outcome::Entries(log.last));
        let newest = log.path.trim_start_matches("wal/wal_").trim_end_matches(".log");
        let next = format!("wal/wal_{}.log", newest.parse::<u64>().expect("a number") + 1);
        for (what, bytes) in [("empty", vec![]), ("zeros", vec![0; 32 << 10]), ("a short one", vec![0; 100])]
        {
            let disk = log.disk.after_kill();
            replace(&disk, &next, &bytes);
            assert_eq!(verdict_of(&disk, what), whole, "{what}");
        }
        // Zeroing is durable before the new name is: with its old contents it is no crash's work.
        let disk = log.disk.after_kill();
        replace(&disk, &next, &log.old);
        let (strict, best) =
            (outcome_in(&Arc::new(disk.clone()), MODES[0]), outcome_in(&Arc::new(disk.clone()), MODES[1]));
        assert_eq!(strict, best);
        let Outcome::Corrupt(check, _) = best else { panic!("{best:?}") };
        assert!(matches!(check, Check::SegmentName { .. }), "{check:?}");
        all_refuse(&disk, &check, "old contents");
        // A header that was lost, of which the rest was not.
        let disk = log.disk.after_kill();
        replace(&disk, &next, &[vec![0; 512], vec![7; 512]].concat());
        let check = read(&disk, log.last + 1, MODES[1]).expect_err("damage");
        assert_eq!(check, Check::HeaderChecksum { expected: 0, found: 0 });
        all_refuse(&disk, &check, "something behind a header of zeros");
    }
}

/// Limit: no seal names a segment that followed a crash or a close, so its loss as a whole looks like the end
/// before it.
#[test]
fn the_loss_of_a_segment_that_followed_an_opening_is_seen_by_a_checkpoint_alone() {
    for closed in [false, true] {
        the_loss_behind(build(Shape::Fresh, closed));
    }
}

fn the_loss_behind(log: Log) {
    let mut wal = open(&log.disk, Shape::Fresh).expect("opens");
    append(&mut wal, 2);
    let lost = format!("wal/wal_{}.log", wal.current_segment_id());
    let last = wal.last_entry_id();
    let killed = log.disk.after_kill();
    drop(wal);
    killed.delete(&lost).expect("deletes");
    assert_eq!(read(&killed, 1, MODES[0]), Ok(log.last), "the limit");
    let options = WalOptions { id_floor: last, ..WalOptions::default() };
    let refused =
        WalWriter::<(), SimDisk>::open_with(Arc::new(killed), options).expect_err("a checkpoint needs it");
    let Outcome::Corrupt(check, _) = classify(refused) else { panic!("not corrupt") };
    assert_eq!(check, Check::LogEnd { last_entry_id: log.last, required_entry_id: last });
}

#[cfg(feature = "postcard")]
mod checkpoints {
    use super::*;
    use durability::checkpoint::CheckpointFile;
    use durability::publish::CheckpointPublisher;
    use durability::recover::{RecoveryOptions, recover_with_wal};
    use durability::{PersistenceError, PersistenceResult};

    type Wal = WalWriter<u64, SimDisk>;

    fn options() -> WalOptions {
        WalOptions { segment_bytes_max: 2048, preallocate_bytes: 0, ..WalOptions::default() }
    }

    /// Numbers 1, 2, … as entries; two checkpoints are kept. The newest covers segments that the older one
    /// still needs.
    struct Database {
        disk: SimDisk,
        sum: u64,
        /// First entries and paths of the segments.
        segments: Vec<(u64, String)>,
        covered: u64,
    }

    fn build() -> Database {
        let disk = SimDisk::new(1);
        let directory = Arc::new(disk.clone());
        let mut wal = Wal::open_with(Arc::clone(&directory), options()).expect("opens");
        let publisher = CheckpointPublisher::new(directory).keep(2);
        let (mut sum, mut covered) = (0, 0);
        for number in 1..=40u64 {
            wal.append_durable(&number).expect("commits");
            sum += number;
            if number == 15 || number == 30 {
                let last = wal.last_entry_id();
                let published = publisher.publish(&mut wal, &sum, last, "state", |_, _| 0u64);
                covered = published.expect("publishes").checkpoint_last_entry_id;
            }
        }
        let killed = disk.after_kill();
        drop(wal);
        let ranges = WalMaintenance::new(Arc::new(killed.clone())).segment_ranges_strict().expect("reads");
        let segments = ranges.into_iter().map(|range| (range.start_entry_id, range.path)).collect();
        Database { disk: killed, sum, segments, covered }
    }

    fn recover(
        disk: &SimDisk,
        options: RecoveryOptions,
    ) -> PersistenceResult<durability::recover::Recovery<u64, SimDisk>> {
        recover_with_wal::<u64, u64, u64, _, _>(
            Arc::new(disk.clone()),
            Some("state"),
            options,
            |checkpoint| checkpoint.unwrap_or(0),
            |sum, _, number| *sum += number,
        )
    }

    fn told(error: &PersistenceError) -> String {
        match error {
            PersistenceError::Corruption(found) => {
                let check = format!("{:?}", found.check);
                check.split([' ', '{']).next().unwrap_or_default().to_owned()
            }
            PersistenceError::MissingCheckpoint { .. } => "MissingCheckpoint".to_owned(),
            PersistenceError::PrefixUnavailable { .. } => "PrefixUnavailable".to_owned(),
            error => format!("{error:?}"),
        }
    }

    /// A row: what, the damage, what both modes say (`""`: the state through the last entry).
    type Row<'a> = (&'a str, &'a dyn Fn(&Database, &SimDisk), &'a str);

    fn delete_segments(database: &Database, disk: &SimDisk, which: impl Fn(u64, u64) -> bool) {
        let ends = database.segments.iter().skip(1).map(|(first, _)| first - 1).chain([u64::MAX]);
        for ((first, path), end) in database.segments.iter().zip(ends) {
            if which(*first, end) {
                disk.delete(path).expect("deletes");
            }
        }
    }

    #[test]
    fn segments_and_checkpoints_that_do_not_fit_together_are_told() {
        let database = build();
        let covered = database.covered;
        let newest_first = database.segments.last().expect("one").0;
        assert!(database.segments.iter().any(|(first, _)| *first < covered), "some of the log is covered");
        let flip = |disk: &SimDisk, path: &str| {
            with_bytes(disk, path, |bytes| {
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
            })
        };
        let is_middle = |first: u64, end: u64| first > covered + 1 && end < newest_first;
        let rows: [Row<'_>; 16] = [
            ("nothing", &|_, _| {}, ""),
            ("the newest checkpoint damaged", &|_, disk| flip(disk, "state"), ""),
            ("the newest checkpoint missing", &|_, disk| disk.delete("state").expect("deletes"), ""),
            (
                "the newest checkpoint cut short",
                &|_, disk| with_bytes(disk, "state", |bytes| bytes.truncate(600)),
                "",
            ),
            ("the newest checkpoint empty", &|_, disk| replace(disk, "state", &[]), ""),
            ("the older checkpoint damaged", &|_, disk| flip(disk, "state.1"), ""),
            (
                "both checkpoints damaged",
                &|_, disk| ["state", "state.1"].into_iter().for_each(|path| flip(disk, path)),
                "HeaderOrPayload",
            ),
            (
                "both checkpoints missing",
                &|_, disk| {
                    ["state", "state.1"].into_iter().for_each(|path| disk.delete(path).expect("deletes"))
                },
                "MissingCheckpoint",
            ),
            (
                "the newest checkpoint damaged, and the log begins behind the older one",
                &|database, disk| {
                    flip(disk, "state");
                    delete_segments(database, disk, |_, end| end <= covered);
                },
                "HeaderOrPayload",
            ),
            (
                "only the older checkpoint, older than the log's beginning",
                &|database, disk| {
                    disk.delete("state").expect("deletes");
                    delete_segments(database, disk, |_, end| end <= covered);
                },
                "PrefixUnavailable",
            ),
            (
                "every covered segment missing",
                &|database, disk| delete_segments(database, disk, |_, end| end <= covered),
                "",
            ),
            (
                "a middle segment that a checkpoint covers missing",
                &|database, disk| {
                    let middle = database.segments[1].0;
                    delete_segments(database, disk, |first, end| first == middle && end <= covered);
                },
                "",
            ),
            (
                "a middle segment that no checkpoint covers missing",
                &|database, disk| delete_segments(database, disk, is_middle),
                "SegmentMissing",
            ),
            (
                "the newest segment missing",
                &|database, disk| delete_segments(database, disk, |first, _| first == newest_first),
                "SegmentMissing",
            ),
            (
                "a log that ends before the checkpoint",
                &|database, disk| {
                    // Nothing names what is missing: the last one that is left is cut to its first frame.
                    delete_segments(database, disk, |first, end| first > 20 || end < 17);
                    let left = disk.list_dir("wal").expect("lists");
                    let left = left.iter().filter(|name| name.starts_with("wal_")).max().expect("one");
                    with_bytes(disk, &format!("wal/{left}"), |bytes| bytes.truncate(1536));
                },
                "LogEnd",
            ),
            ("no segment at all", &|database, disk| delete_segments(database, disk, |_, _| true), "LogEnd"),
        ];
        // All rows, so that a failure shows which of them fail.
        let wrong: Vec<_> = rows
            .iter()
            .filter_map(|(what, damage, expected)| {
                let told = judged(&database, damage, expected).err()?;
                Some(format!("{what}: {told}"))
            })
            .collect();
        assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    }

    /// Whether recovery says of a damaged database what is expected, in both modes, and goes on where it may.
    fn judged(
        database: &Database,
        damage: &dyn Fn(&Database, &SimDisk),
        expected: &str,
    ) -> Result<(), String> {
        let disk = database.disk.after_kill();
        damage(database, &disk);
        for options in [RecoveryOptions::strict(), RecoveryOptions::best_effort()] {
            match recover(&disk, options) {
                Ok(_) if !expected.is_empty() => return Err(format!("recovered, expected {expected}")),
                Ok(recovery) if recovery.state != database.sum => {
                    return Err(format!("{} instead of {}", recovery.state, database.sum));
                }
                Ok(_) => {}
                Err(error) => {
                    let told = told(&error);
                    let either = expected == "HeaderOrPayload"
                        && ["HeaderChecksum", "Payload", "FrameHeader"].contains(&told.as_str());
                    if told != expected && !either {
                        return Err(format!("{told} ({error}), expected {expected:?}"));
                    }
                }
            }
        }
        if !expected.is_empty() {
            return Ok(());
        }
        // Goes on, and is recovered again.
        let (sum, mut wal) = recover(&disk, RecoveryOptions::best_effort())
            .and_then(|recovery| recovery.into_writer::<u64>(options()))
            .map_err(|error| format!("cannot go on: {error}"))?;
        wal.append_durable(&1000).map_err(|error| format!("no commit: {error}"))?;
        drop(wal);
        let again = recover(&disk, RecoveryOptions::strict()).map_err(|error| format!("then: {error}"))?;
        if again.state == sum + 1000 { Ok(()) } else { Err(format!("then {}", again.state)) }
    }

    /// A published checkpoint says how far the log must reach: the loss of the newest segment is told even
    /// where nothing in the log names it.
    #[test]
    fn a_published_checkpoint_records_the_least_end_that_it_requires() {
        let database = build();
        let meta =
            CheckpointFile::new(Arc::new(database.disk.clone())).reader("state").expect("opens").meta();
        assert!(meta.required_entry_id >= database.covered, "{meta:?}");
        assert_eq!(meta.last_applied_entry_id, database.covered);
        // Entries behind the state that were durable when it was published are required as well.
        let directory = Arc::new(database.disk.clone());
        let mut wal = Wal::open_with(Arc::clone(&directory), options()).expect("opens");
        let last = wal.last_entry_id();
        CheckpointPublisher::new(Arc::clone(&directory))
            .publish(&mut wal, &database.sum, last - 3, "other", |_, _| 0u64)
            .expect("publishes");
        let meta = CheckpointFile::new(directory).reader("other").expect("opens").meta();
        assert_eq!((meta.last_applied_entry_id, meta.required_entry_id), (last - 3, last));
    }
}

/// Crash images of a run, recovered over a disk that has no space for a new file; recovery is then cut short
/// after each of its operations, and recovered again.
#[test]
fn recovery_cut_short_at_every_operation_on_a_full_disk_loses_nothing() {
    let mut images = 0;
    for shape in [Shape::Preallocated, Shape::InFlight, Shape::Rotated] {
        let log = build(shape, false);
        // The newest commit torn, or not.
        let newest = *log.frames.last().expect("a frame");
        for tear in [None, Some(newest.offset), Some(newest.offset + newest.bytes - 512)] {
            let disk = log.disk.after_kill();
            if let Some(sector) = tear {
                with_bytes(&disk, &log.path, |bytes| bytes[sector..sector + 512].fill(0));
                disk.sync_file(&log.path).expect("syncs");
            }
            let from_operation = disk.operations();
            let faults = Faults::new();
            let names = disk.list_dir("wal").expect("lists");
            let options = WalOptions { preallocate_bytes: 0, ..WalOptions::default() };
            let directory = Arc::new(faults.over(disk.clone()));
            let mut wal = WalWriter::<(), _>::open_with(directory, options).expect("opens without space");
            let last = wal.last_entry_id();
            disk.mark(last);
            assert_eq!(disk.list_dir("wal").expect("lists"), names, "opening takes no space");
            faults.inject(At::next_of(Operation::OpenCommitFile), Fault::Fail(ErrorKind::StorageFull));
            let full = wal.append_bytes_durable(&payload(last + 1)).expect_err("no space for a segment");
            assert!(full.is_out_of_space() && faults.all_struck(), "{full}");
            assert_eq!(wal.last_entry_id(), last, "what was refused was not appended");
            append_with(&mut wal, &disk);
            drop(wal);
            let options = SimOptions { from_operation, images_per_point: 24, ..SimOptions::default() };
            let report = check_crashes(&disk, &options, check_with);
            images += must(report, 1).images;
        }
    }
    assert!(images > 100, "{images}");
    println!("{images} images");
}

/// Space was freed: the same writer goes on.
fn append_with<D: durability::DurableDirectory>(wal: &mut WalWriter<(), D>, disk: &SimDisk) {
    let id = wal.append_bytes_durable(&payload(wal.next_entry_id())).expect("goes on");
    disk.mark(id);
}

/// What `power_cut::check` says, for the payloads of this module.
fn check_with(image: &SimDisk, marks: &[u64]) -> Result<(), String> {
    let acknowledged = marks.iter().max().copied().unwrap_or(0);
    let Outcome::Entries(last) = outcome_in(&Arc::new(image.clone()), WalReplayMode::BestEffortTail) else {
        return Err("refused".to_owned());
    };
    if last < acknowledged {
        return Err(format!("{last} entries, {acknowledged} were acknowledged or recovered before"));
    }
    let mut wal = open(image, Shape::Fresh).map_err(|error| error.to_string())?;
    if wal.last_entry_id() != last {
        return Err(format!("reading ends at {last}, opening at {}", wal.last_entry_id()));
    }
    append(&mut wal, 1);
    drop(wal);
    match outcome_in(&Arc::new(image.clone()), WalReplayMode::Strict) {
        Outcome::Entries(now) if now == last + 1 => Ok(()),
        other => Err(format!("{other:?} after {last} and one")),
    }
}
