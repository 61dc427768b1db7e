//! The damage matrix: logs of every shape, each damage, the exact verdict in both modes.
//!
//! Bars for every row: no acknowledged entry is lost in silence, no corruption is reported clean, no legal
//! crash state is refused. Rows where a limit of `docs/guarantees.md` shows say so.
//!
//! Here: the logs, and what every way to look says of one; other modules use them too. The rows are below.

mod closed;
mod newest;
mod segment_files;

use durability::error::{Check, PersistenceError, Proof, TornEvidence};
use durability::formats::frame::{FrameHeaderState, FrameKind, FrameSeed, decode_header};
use durability::formats::header::{FileKind, HeaderState, decode};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::testing::sim::SimDisk;
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, PersistenceResult};
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
    let mut offset = header.first_frame_offset() as usize;
    let mut frames = Vec::new();
    while let Some(at) = bytes.get(offset..offset + 48) {
        let FrameHeaderState::Good(frame) = decode_header(at, offset as u64, FrameSeed::new(header.salt))
        else {
            break;
        };
        let bytes = frame.frame_bytes(header.frame_alignment) as usize;
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
