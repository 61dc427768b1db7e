//! Closed logs: what the closing seal attests, and when opening may go by it alone.

use super::{Log, SHAPES, Shape, build, contents, must_be_corrupt, open, replace, verdict_of};
use durability::error::Proof;
use durability::formats::frame::{FrameKind, FrameSeed, Seal, SealReason};
use durability::formats::header::{FileKind, HeaderState, decode};
use durability::framing::{Control, control_commit};
use durability::testing::sim::SimDisk;
use durability::walog::{LogEnd, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, MemoryDirectory};
use std::io::Write;
use std::sync::Arc;

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

/// Reading accepts it, as all entries are there; so what is acknowledged behind it must be readable, too.
#[test]
fn a_seal_lost_before_the_closing_one_does_not_refuse_what_follows() {
    for shape in SHAPES {
        let log = build(shape, true);
        for idle in 1..=2 {
            let seals =
                [(SealReason::Idle, log.last), (SealReason::Idle, log.last), (SealReason::Close, log.last)];
            let disk = sealed_anew(&log, &seals[2 - idle..]);
            let mut bytes = contents(&disk, &log.path);
            let lost = bytes.len() - 1024;
            bytes[lost..lost + 512].fill(0);
            replace(&disk, &log.path, &bytes);
            let what = format!("{shape:?}, the last of {idle}");
            let (opened, scanned) = (opened_end(&disk).expect("opens"), scanned_end(&disk).expect("reads"));
            same_end(&opened, &scanned, &what);
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
