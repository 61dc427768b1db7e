//! The damage matrix: logs of every shape, each damage, the exact verdict in both modes.
//!
//! Bars for every row: no acknowledged entry is lost in silence, no corruption is reported clean, no legal
//! crash state is refused. Rows where a limit of `docs/guarantees.md` shows say so.

use durability::error::{Check, PersistenceError, Proof, TornEvidence};
use durability::formats::frame::{FrameHeaderState, FrameKind, FrameSeed, Seal, SealReason, decode_header};
use durability::formats::header::{FileKind, HeaderState, decode};
use durability::framing::{Control, control_commit};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::testing::sim::SimDisk;
use durability::walog::{LogEnd, WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, MemoryDirectory, PersistenceResult};
use std::io::{Read, Write};
use std::sync::Arc;

pub(crate) type Wal = WalWriter<(), SimDisk>;

/// How the log under test came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Fresh,
    Preallocated,
    Recycled,
    /// Commits went out three at a time: the last three attest nothing of each other.
    InFlight,
    /// Sealed segments are before the one under test.
    Rotated,
}

pub(crate) const SHAPES: [Shape; 5] =
    [Shape::Fresh, Shape::Preallocated, Shape::Recycled, Shape::InFlight, Shape::Rotated];
/// Shapes in which every entry was acknowledged before the next was appended.
const ONE_BY_ONE: [Shape; 4] = [Shape::Fresh, Shape::Preallocated, Shape::Recycled, Shape::Rotated];

/// A log and what is in it.
pub(crate) struct Log {
    pub disk: SimDisk,
    pub path: String,
    pub frames: Vec<Frame>,
    pub last: u64,
    /// What the file held before it was used again.
    pub old: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub offset: usize,
    pub bytes: usize,
    pub kind: FrameKind,
    pub last_entry_id: u64,
    pub durable_entry_id: u64,
    pub payload_bytes: usize,
}

pub(crate) fn payload(entry_id: u64) -> Vec<u8> {
    vec![entry_id as u8; 200 + (entry_id as usize * 311) % 1300]
}

pub(crate) fn options(shape: Shape) -> WalOptions {
    WalOptions {
        preallocate_bytes: if matches!(shape, Shape::Fresh | Shape::Rotated) { 0 } else { 32 << 10 },
        recycle_capacity: if shape == Shape::Recycled { 2 } else { 0 },
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(3)),
        ..WalOptions::default()
    }
}

pub(crate) fn open(disk: &SimDisk, shape: Shape) -> PersistenceResult<Wal> {
    Wal::open_with(Arc::new(disk.clone()), options(shape))
}

pub(crate) fn append(wal: &mut Wal, entries: u64) {
    for _ in 0..entries {
        let bytes = payload(wal.next_entry_id());
        wal.append_bytes_durable(&bytes).expect("commits");
    }
}

/// Frames as a committer leaves them that keeps so many commits in flight: none of them attests another.
fn in_flight_together(wal: &mut Wal, commits: u64) {
    for _ in 0..commits {
        let bytes = payload(wal.next_entry_id());
        wal.append_bytes(&bytes).expect("appends");
        wal.flush().expect("flushes");
    }
}

/// A log whose last segment holds six single-entry commits (seven of them in flight by threes); sealed by a
/// close, or killed.
pub(crate) fn build(shape: Shape, sealed: bool) -> Log {
    let disk = SimDisk::new(1);
    let mut wal = open(&disk, shape).expect("opens");
    let mut old = Vec::new();
    if shape == Shape::Recycled {
        append(&mut wal, 8);
        wal.set_segment_size_limit_bytes(1);
        append(&mut wal, 4);
        WalMaintenance::new(Arc::new(disk.clone())).truncate_to_recycle(9, 2).expect("truncates");
        wal.set_segment_size_limit_bytes(1 << 20);
        // The next segment comes out of the spares.
        old = contents(&disk, &spare(&disk));
        drop(wal);
        wal = open(&disk, shape).expect("opens");
    }
    if shape == Shape::Rotated {
        wal.set_segment_size_limit_bytes(1);
        append(&mut wal, 4);
        wal.set_segment_size_limit_bytes(1 << 20);
    }
    if shape == Shape::InFlight {
        append(&mut wal, 1);
        in_flight_together(&mut wal, 3);
        wal.flush_and_sync().expect("syncs");
        in_flight_together(&mut wal, 3);
    } else {
        append(&mut wal, 6);
    }
    let (id, last) = (wal.current_segment_id(), wal.last_entry_id());
    let disk = if sealed {
        wal.close().expect("closes");
        disk
    } else {
        let killed = disk.after_kill();
        drop(wal);
        killed
    };
    let path = format!("wal/wal_{id}.log");
    let frames = frames(&contents(&disk, &path));
    Log { disk, path, frames, last, old }
}

/// The spare that is used first.
fn spare(disk: &SimDisk) -> String {
    let names = disk.list_dir("wal").expect("lists");
    let spare = names.into_iter().find(|name| name.starts_with("spare_")).expect("a spare");
    format!("wal/{spare}")
}

pub(crate) fn contents(disk: &SimDisk, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    disk.open_file(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

pub(crate) fn replace(disk: &SimDisk, path: &str, bytes: &[u8]) {
    disk.create_file(path).expect("creates").write_all(bytes).expect("writes");
}

pub(crate) fn frames(bytes: &[u8]) -> Vec<Frame> {
    let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..512]) else { panic!("no header") };
    let mut offset = 512;
    let mut frames = Vec::new();
    while let Some(at) = bytes.get(offset..offset + 48) {
        let FrameHeaderState::Good(frame) = decode_header(at, offset as u64, FrameSeed::new(header.salt))
        else {
            break;
        };
        let bytes = frame.frame_bytes(512) as usize;
        let last_entry_id = frame.next_entry_id() - 1;
        let payload_bytes = frame.payload_bytes as usize;
        let durable_entry_id = frame.durable_entry_id;
        frames.push(Frame {
            offset,
            bytes,
            kind: frame.kind,
            last_entry_id,
            durable_entry_id,
            payload_bytes,
        });
        offset += bytes;
    }
    frames
}

/// What a mode makes of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Entries(u64),
    Torn(TornEvidence),
    Corrupt(Check, Proof),
}

fn outcome(disk: &SimDisk, mode: WalReplayMode) -> Outcome {
    outcome_in(&Arc::new(disk.clone()), mode)
}

pub(crate) fn outcome_in<D: Directory>(directory: &Arc<D>, mode: WalReplayMode) -> Outcome {
    let reader = WalReader::<(), D>::new(Arc::clone(directory));
    let first = match reader.entry_range(mode) {
        Ok(range) => range.map_or(1, |(first, _)| first),
        Err(error) => return classify(error),
    };
    let mut last = first - 1;
    let replayed = reader.replay_bytes_from(first, mode, |entry_id, bytes| {
        assert_eq!((entry_id, bytes), (last + 1, &payload(entry_id)[..]), "not what was appended");
        last = entry_id;
        Ok(())
    });
    replayed.map_or_else(classify, |_| Outcome::Entries(last))
}

pub(crate) fn classify(error: PersistenceError) -> Outcome {
    match error {
        PersistenceError::TornTail(torn) => Outcome::Torn(torn.evidence),
        PersistenceError::Corruption(found) => Outcome::Corrupt(found.check, found.proof),
        error => panic!("neither torn nor corrupt: {error}"),
    }
}

/// Runs one damage: both modes, and opening agrees with them; what opens goes on and reads back.
pub(crate) fn verdict(log: &Log, what: &str, damage: impl FnOnce(&mut Vec<u8>)) -> (Outcome, Outcome) {
    let disk = log.disk.after_kill();
    let mut bytes = contents(&disk, &log.path);
    damage(&mut bytes);
    replace(&disk, &log.path, &bytes);
    verdict_of(&disk, what)
}

pub(crate) fn verdict_of(disk: &SimDisk, what: &str) -> (Outcome, Outcome) {
    let strict = outcome(disk, WalReplayMode::Strict);
    let best_effort = outcome(disk, WalReplayMode::BestEffortTail);
    resume_and_maintenance_agree(disk, what, &strict, &best_effort);
    match (&best_effort, open(disk, Shape::Fresh)) {
        (Outcome::Entries(last), Ok(mut wal)) => {
            assert_eq!(wal.last_entry_id(), *last, "{what}: opening and reading disagree");
            append(&mut wal, 1);
            drop(wal);
            let again = outcome(disk, WalReplayMode::Strict);
            assert!(
                matches!(again, Outcome::Entries(now) if now == last + 1),
                "{what}: {again:?} after {last} and one"
            );
        }
        (Outcome::Corrupt(..), Err(error)) => assert!(error.is_corruption(), "{what}: {error}"),
        // A closed log is opened by its last block; damage before that is found by reading, as long as it is
        // there, whatever follows.
        (Outcome::Corrupt(..), Ok(mut wal)) => {
            let end = wal.recovered().expect("it is open");
            assert!(end.closed && end.attested_entry_id == end.last_entry_id, "{what}: {end:?}");
            append(&mut wal, 1);
            drop(wal);
            for mode in [WalReplayMode::Strict, WalReplayMode::BestEffortTail] {
                let again = outcome(disk, mode);
                assert!(matches!(again, Outcome::Corrupt(..)), "{what}: {again:?} after going on");
            }
        }
        (read, opened) => panic!("{what}: reading says {read:?}, opening {opened:?}"),
    }
    (strict, best_effort)
}

/// Both look at the end alone, so of damage before it they may know nothing where a seal attests it all.
fn resume_and_maintenance_agree(disk: &SimDisk, what: &str, strict: &Outcome, best_effort: &Outcome) {
    let maintenance = WalMaintenance::new(Arc::new(disk.clone()));
    let resumed = |accept_torn| {
        let (directory, options) = (Arc::new(disk.after_kill()), options(Shape::Fresh));
        if accept_torn {
            Wal::resume_after_crash_with(directory, options)
        } else {
            Wal::resume_with(directory, options)
        }
    };
    let modes = [(WalReplayMode::Strict, strict, false), (WalReplayMode::BestEffortTail, best_effort, true)];
    for (mode, read, accept_torn) in modes {
        let ends = maintenance.segment_ranges(mode).map(|ranges| ranges.last().map(|last| last.end_entry_id));
        let resumed = resumed(accept_torn)
            .map(|wal| (wal.last_entry_id(), wal.recovered().is_some_and(|end| end.closed)));
        match (read, ends, resumed) {
            (Outcome::Entries(last), Ok(Some(end)), Ok((found, _))) => {
                assert_eq!((end, found), (*last, *last), "{what}")
            }
            // Nothing was ever started.
            (Outcome::Entries(0), Ok(None), Err(PersistenceError::NotFound { .. })) => {}
            (Outcome::Torn(evidence), Err(error), resumed) => {
                assert_eq!(classify(error), Outcome::Torn(evidence.clone()), "{what}");
                match resumed.map_err(classify_or_missing) {
                    Err(None) => {}
                    Err(Some(told)) => assert_eq!(told, Outcome::Torn(evidence.clone()), "{what}"),
                    Ok(last) => panic!("{what}: resumed after {last:?}, reading says {read:?}"),
                }
            }
            (Outcome::Corrupt(..), Err(error), Err(resumed)) => {
                assert_eq!(classify(error), *read, "{what}");
                assert_eq!(classify(resumed), *read, "{what}");
            }
            (Outcome::Corrupt(..), Ok(_), Ok((_, true))) => {}
            (read, ends, resumed) => {
                panic!("{what}, {mode:?}: reading says {read:?}, maintenance {ends:?}, resuming {resumed:?}")
            }
        }
    }
}

/// `None` where there is no log to resume.
fn classify_or_missing(error: PersistenceError) -> Option<Outcome> {
    if error.is_not_found() { None } else { Some(classify(error)) }
}

fn must_be_corrupt(log: &Log, what: &str, damage: impl FnOnce(&mut Vec<u8>)) -> (Check, Proof) {
    match verdict(log, what, damage) {
        (Outcome::Corrupt(..), Outcome::Corrupt(check, proof)) => (check, proof),
        outcomes => panic!("{what}: {outcomes:?}"),
    }
}

fn must_be_torn(log: &Log, what: &str, last: u64, damage: impl FnOnce(&mut Vec<u8>)) -> TornEvidence {
    match verdict(log, what, damage) {
        (Outcome::Torn(evidence), Outcome::Entries(found)) if found == last => evidence,
        outcomes => panic!("{what}: {outcomes:?}, expected a tear after {last}"),
    }
}

#[test]
fn undamaged_logs_of_every_shape_are_clean() {
    for shape in SHAPES {
        for sealed in [false, true] {
            let log = build(shape, sealed);
            let outcomes = verdict(&log, "nothing", |_| {});
            assert!(
                matches!(outcomes, (Outcome::Entries(a), Outcome::Entries(b)) if a == log.last && b == log.last)
            );
        }
    }
}

/// Limit: a newest segment that is cut short looks like one that never got longer, unless something
/// attests more.
#[test]
fn cut_at_every_byte_of_the_last_frames_ends_before_the_first_frame_that_is_cut() {
    for shape in [Shape::Fresh, Shape::Preallocated] {
        let log = build(shape, false);
        let from = log.frames[log.frames.len() - 3].offset;
        let to = log.frames.last().map_or(0, |last| last.offset + last.bytes);
        for cut in from..to {
            let frame = log.frames.iter().find(|frame| cut < frame.offset + frame.bytes).expect("a frame");
            let last = frame.last_entry_id - 1;
            let outcomes = verdict(&log, &format!("{shape:?} cut at {cut}"), |bytes| bytes.truncate(cut));
            match outcomes {
                (Outcome::Entries(found), _) if cut == frame.offset => assert_eq!(found, last),
                (Outcome::Torn(TornEvidence::PastFileEnd), Outcome::Entries(found)) => {
                    assert_eq!(found, last)
                }
                other => panic!("cut at {cut}: {other:?}"),
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_corruption_in_first_middle_and_last_frames_sealed_and_not() {
    for shape in SHAPES {
        for sealed in [false, true] {
            let log = build(shape, sealed);
            let data: Vec<_> = log.frames.iter().filter(|frame| frame.kind == FrameKind::Data).collect();
            for frame in
                [log.frames.first().expect("a frame"), data[0], data[data.len() / 2], data[data.len() - 1]]
            {
                let header = (0..48 * 8).map(|bit| (frame.offset + bit / 8, bit % 8));
                let payload =
                    (0..frame.payload_bytes).step_by(97).map(|byte| (frame.offset + 48 + byte, byte % 8));
                for (byte, bit) in header.chain(payload) {
                    let what = format!("{shape:?} sealed {sealed} byte {byte} bit {bit}");
                    let disk = log.disk.after_kill();
                    let mut bytes = contents(&disk, &log.path);
                    bytes[byte] ^= 1 << bit;
                    replace(&disk, &log.path, &bytes);
                    // Opening and going on is the matrix's: this is every bit.
                    for mode in [WalReplayMode::Strict, WalReplayMode::BestEffortTail] {
                        let told = outcome(&disk, mode);
                        assert!(matches!(told, Outcome::Corrupt(..)), "{what}: {told:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_lost_sector_is_corruption_where_something_attests_it_and_torn_in_the_last_commit() {
    for shape in ONE_BY_ONE {
        let log = build(shape, false);
        let last = *log.frames.last().expect("a frame");
        for frame in &log.frames {
            for sector in (frame.offset..frame.offset + frame.bytes).step_by(512) {
                let what = format!("{shape:?} sector at {sector}");
                let zero = |bytes: &mut Vec<u8>| bytes[sector..sector + 512].fill(0);
                if frame.offset == last.offset {
                    // Limit: nothing attests the very last commit of a killed writer.
                    let gone = frame.bytes == 512;
                    match verdict(&log, &what, zero) {
                        (Outcome::Torn(TornEvidence::OldSectors { sectors: 1 }), Outcome::Entries(found))
                            if !gone =>
                        {
                            assert_eq!(found, log.last - 1);
                        }
                        (Outcome::Entries(found), Outcome::Entries(_)) if gone => {
                            assert_eq!(found, log.last - 1)
                        }
                        other => panic!("{what}: {other:?}"),
                    }
                } else {
                    let (_, proof) = must_be_corrupt(&log, &what, zero);
                    assert!(matches!(proof, Proof::Attested { .. }), "{what}: {proof:?}");
                }
            }
        }
    }
}

#[test]
fn a_seal_closes_the_window_of_the_last_commit() {
    for shape in SHAPES {
        let log = build(shape, true);
        let last = log.frames[log.frames.len() - 2];
        for sector in (last.offset..last.offset + last.bytes).step_by(512) {
            let what = format!("{shape:?} sector at {sector}");
            let (_, proof) = must_be_corrupt(&log, &what, |bytes| bytes[sector..sector + 512].fill(0));
            assert!(matches!(proof, Proof::Attested { .. }), "{what}: {proof:?}");
        }
    }
}

/// What opening says of the end, without changing anything else: where it is, and what has to be written again.
fn opened_end(disk: &SimDisk) -> Option<LogEnd> {
    let disk = disk.after_kill();
    open(&disk, Shape::Fresh).ok().and_then(|wal| wal.recovered().cloned())
}

/// What a scan of the whole log says of the end.
fn scanned_end(disk: &SimDisk) -> Option<LogEnd> {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
    let first = match reader.entry_range(WalReplayMode::BestEffortTail) {
        Ok(range) => range.map_or(1, |(first, _)| first),
        Err(_) => 1,
    };
    reader
        .replay_bytes_from(first, WalReplayMode::BestEffortTail, |_, _| Ok(()))
        .ok()
        .map(|summary| summary.end)
}

fn same_end(opened: &LogEnd, scanned: &LogEnd, what: &str) {
    let told = |end: &LogEnd| {
        let torn = end.torn.clone().map(|torn| torn.to_string());
        let tail = (end.closed, torn, end.unproven.clone(), end.dropped.clone());
        (end.last_entry_id, end.last_segment, end.attested_entry_id, tail)
    };
    assert_eq!(told(opened), told(scanned), "{what}");
}

/// Writes the newest segment anew up to its last data frame, and seals of these reasons and watermarks.
fn sealed_anew(log: &Log, seals: &[(SealReason, u64)]) -> SimDisk {
    let disk = log.disk.after_kill();
    let mut bytes = contents(&disk, &log.path);
    let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..512]) else { panic!("no header") };
    let data = log.frames.iter().rfind(|frame| frame.kind == FrameKind::Data).expect("data");
    bytes.truncate(data.offset + data.bytes);
    for (reason, durable) in seals {
        let seal = Control::Seal(Seal { reason: *reason, successor_id: 0, successor_salt: 0 });
        let (offset, seed) = (bytes.len() as u64, FrameSeed::new(header.salt));
        bytes.extend_from_slice(&control_commit(seal, offset, seed, 512, log.last + 1, *durable));
    }
    replace(&disk, &log.path, &bytes);
    disk
}

#[test]
fn a_closed_log_is_opened_by_its_last_block_with_the_end_that_reading_finds() {
    for shape in SHAPES {
        let log = build(shape, true);
        let scanned = scanned_end(&log.disk).expect("reads");
        let opened = opened_end(&log.disk).expect("opens");
        same_end(&opened, &scanned, "undamaged");
        assert_eq!((opened.segments_read, opened.closed), (0, true), "{shape:?}: nothing was scanned");
        // Nothing before the last block is looked at but the first frame.
        let disk = log.disk.after_kill();
        let mut bytes = contents(&disk, &log.path);
        let end = bytes.len();
        bytes[1024..end - 512].fill(0xa5);
        replace(&disk, &log.path, &bytes);
        same_end(&opened_end(&disk).expect("opens"), &opened, "everything between was damaged");
        assert!(scanned_end(&disk).is_none(), "and reading says so");

        let last = log.last;
        // What, its seals, whether the last block tells the end.
        type Case<'a> = (&'a str, &'a [(SealReason, u64)], bool);
        let cases: [Case<'_>; 6] = [
            ("closed", &[(SealReason::Close, last)], true),
            (
                "idle, then closed: the end is before both",
                &[(SealReason::Idle, last), (SealReason::Close, last)],
                false,
            ),
            ("closed, one entry not attested", &[(SealReason::Close, last - 1)], false),
            ("closed, nothing attested", &[(SealReason::Close, 0)], false),
            ("idle", &[(SealReason::Idle, last)], false),
            ("not sealed", &[], false),
        ];
        for (what, seals, tells) in cases {
            let disk = sealed_anew(&log, seals);
            let what = format!("{shape:?}, {what}");
            let (opened, scanned) = (opened_end(&disk).expect("opens"), scanned_end(&disk).expect("reads"));
            same_end(&opened, &scanned, &what);
            assert_eq!(opened.segments_read == 0, tells, "{what}");
            let data = log.frames.iter().rfind(|frame| frame.kind == FrameKind::Data).expect("data");
            let end = opened.last_segment.expect("a segment").end_offset;
            assert_eq!(end, (data.offset + data.bytes) as u64, "{what}: nothing may rest on a seal");
            verdict_of(&disk, &what);
        }
    }
}

/// The segment that goes on attests nothing there: whoever opened without looking would turn the damage into a
/// tear.
#[test]
fn on_a_volatile_directory_a_closed_log_is_scanned() {
    let log = build(Shape::Fresh, true);
    let mut bytes = contents(&log.disk, &log.path);
    let data = log.frames[log.frames.len() - 2];
    bytes[data.offset + 512..data.offset + 1024].fill(0);
    let directory = MemoryDirectory::arc();
    directory.create_dir_all("wal").expect("makes the folder");
    directory.create_file(&log.path).expect("creates").write_all(&bytes).expect("writes");
    let opened = WalWriter::<(), MemoryDirectory>::open(directory);
    assert!(opened.expect_err("it is damaged").is_corruption());
}

#[test]
fn a_damaged_closing_seal_tells_nothing() {
    for shape in SHAPES {
        let log = build(shape, true);
        let seal = *log.frames.last().expect("a seal");
        for bit in (0..(48 + 24) * 8).chain([511 * 8]) {
            let what = format!("{shape:?} bit {bit} of the seal");
            let disk = log.disk.after_kill();
            let mut bytes = contents(&disk, &log.path);
            bytes[seal.offset + bit / 8] ^= 1 << (bit % 8);
            replace(&disk, &log.path, &bytes);
            assert!(opened_end(&disk).is_none() && scanned_end(&disk).is_none(), "{what}");
        }
        // Zeros behind the seal, half a seal, bytes behind it: scanned, as ever.
        for grow in [-512i64, -1, 1, 512, 4096] {
            let disk = log.disk.after_kill();
            let mut bytes = contents(&disk, &log.path);
            bytes.resize((bytes.len() as i64 + grow) as usize, 0);
            replace(&disk, &log.path, &bytes);
            let what = format!("{shape:?}, {grow} bytes more");
            let (opened, scanned) = (opened_end(&disk).expect("opens"), scanned_end(&disk).expect("reads"));
            same_end(&opened, &scanned, &what);
            assert_eq!(opened.segments_read, 1, "{what}");
        }
    }
}

#[test]
fn a_page_of_an_unfinished_commit_missing_under_later_ones_is_a_legal_crash() {
    // Three commits in flight together: none attests another.
    let disk = SimDisk::new(1);
    let mut wal = open(&disk, Shape::Preallocated).expect("opens");
    append(&mut wal, 2);
    in_flight_together(&mut wal, 3);
    let path = format!("wal/wal_{}.log", wal.current_segment_id());
    let killed = disk.after_kill();
    drop(wal);
    let log = Log { frames: frames(&contents(&killed, &path)), disk: killed, path, last: 5, old: Vec::new() };
    let first = log.frames[3];
    for sector in (first.offset..first.offset + first.bytes).step_by(512) {
        let what = format!("sector at {sector}");
        let evidence = must_be_torn(&log, &what, 2, |bytes| bytes[sector..sector + 512].fill(0));
        assert_eq!(evidence, TornEvidence::LaterCommits { frames: 2 });
    }
}

#[test]
fn what_follows_the_end_is_judged_by_what_it_is() {
    for shape in SHAPES {
        let killed = build(shape, false);
        let end = killed.frames.last().map_or(0, |last| last.offset + last.bytes);
        let grow = |bytes: &mut Vec<u8>, tail: &[u8]| {
            bytes.resize(bytes.len().max(end + tail.len()), 0);
            bytes[end..end + tail.len()].copy_from_slice(tail);
        };
        let outcomes = verdict(&killed, "zeros", |bytes| grow(bytes, &[0; 5000]));
        assert!(matches!(outcomes, (Outcome::Entries(a), _) if a == killed.last));
        let (_, proof) = must_be_corrupt(&killed, "garbage", |bytes| grow(bytes, &[0xa5; 512]));
        assert_eq!(proof, Proof::FullyWritten);
        // A frame of another log, and one of this file in another place, check out nowhere.
        let other = build(if shape == Shape::Fresh { Shape::Preallocated } else { Shape::Fresh }, false);
        let stranger = contents(&other.disk, &other.path)[512..1024].to_vec();
        must_be_corrupt(&killed, "a stranger's frame", |bytes| grow(bytes, &stranger));
        let own = contents(&killed.disk, &killed.path)[512..1024].to_vec();
        must_be_corrupt(&killed, "an own frame elsewhere", |bytes| grow(bytes, &own));
        // Behind the seal of a closed log nothing counts.
        let sealed = build(shape, true);
        let end = sealed.frames.last().map_or(0, |last| last.offset + last.bytes);
        let outcomes = verdict(&sealed, "garbage behind a seal", |bytes| {
            bytes.resize(end + 512, 0);
            bytes[end..end + 512].fill(0xa5);
        });
        assert!(matches!(outcomes, (Outcome::Entries(a), _) if a == sealed.last));
    }
}

/// Four sealed segments of two entries, and a newest one of two.
pub(crate) fn segments(sealed: bool) -> SimDisk {
    let disk = SimDisk::new(1);
    let mut wal = open(&disk, Shape::Fresh).expect("opens");
    for _ in 0..5 {
        wal.set_segment_size_limit_bytes(1);
        append(&mut wal, 1);
        wal.set_segment_size_limit_bytes(1 << 20);
        append(&mut wal, 1);
    }
    if sealed {
        wal.close().expect("closes");
        return disk;
    }
    let killed = disk.after_kill();
    drop(wal);
    killed
}

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
