//! The damage matrix as tables: logs of every shape, every damage, the exact verdict.
//!
//! What an image must be told to be is computed here from the undamaged log and the table of
//! `docs/guarantees.md`, by comparing bytes, without the scanner. Each image is read in both modes, resumed,
//! maintained, opened, continued and read again (`damage::verdict_of`).

use crate::damage::{Log, Outcome, SHAPES, Shape, build, contents, outcome_in, replace, verdict_of};
use durability::error::TornEvidence;
use durability::formats::frame::FrameKind;
use durability::walog::WalReplayMode;
use durability::{Directory, FsDirectory, MemoryDirectory};
use std::sync::Arc;

fn zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn clean(last: u64) -> String {
    format!("clean after {last}")
}

fn torn(evidence: &TornEvidence, last: u64) -> String {
    format!("torn after {last}: {evidence:?}")
}

fn corrupt(check: &str, proof: &str) -> String {
    format!("corrupt: {check}; {proof}")
}

/// A verdict of both modes as one line. Checksums that were found are left out.
fn told(outcomes: &(Outcome, Outcome)) -> String {
    use durability::error::Check;
    match outcomes {
        (Outcome::Entries(strict), Outcome::Entries(last)) if strict == last => clean(*last),
        (Outcome::Torn(evidence), Outcome::Entries(last)) => torn(evidence, *last),
        (strict, Outcome::Corrupt(check, proof)) if strict == &outcomes.1 => match check {
            Check::Payload { .. } => corrupt("Payload", &format!("{proof:?}")),
            check => corrupt(&format!("{check:?}"), &format!("{proof:?}")),
        },
        outcomes => panic!("the modes contradict each other: {outcomes:?}"),
    }
}

/// What the table says of the newest segment, once its bytes are `after`.
fn expected(log: &Log, before: &[u8], after: &[u8]) -> String {
    let frames = &log.frames;
    let header_is_whole =
        |offset: usize| after.get(offset..offset + 48) == Some(&before[offset..offset + 48]);
    let is_whole = |offset: usize, bytes: usize| {
        after.get(offset..offset + bytes) == Some(&before[offset..offset + bytes])
    };
    let first_bad = frames.iter().position(|frame| !is_whole(frame.offset, frame.bytes));
    let Some(index) = first_bad else { return expected_behind(log, after) };
    let bad = frames[index];
    let last = match index {
        // The segment before ends where this one begins.
        0 => bad.last_entry_id,
        _ => frames[index - 1].last_entry_id,
    };
    let mut attested = (0, 0);
    for frame in frames.iter().filter(|frame| header_is_whole(frame.offset)) {
        if frame.durable_entry_id > attested.0 {
            attested = (frame.durable_entry_id, frame.offset);
        }
    }
    let available = after.len().saturating_sub(bad.offset);
    let later = frames[index + 1..].iter().filter(|frame| header_is_whole(frame.offset)).count() as u64;
    let is_cut = available < bad.bytes;
    let first_sector = &after[bad.offset.min(after.len())..(bad.offset + 512).min(after.len())];
    let is_unwritten = zero(first_sector);
    let check = if bad.kind == FrameKind::Opening || (is_unwritten && !header_is_whole(bad.offset)) {
        format!("LogEnd {{ last_entry_id: {last}, required_entry_id: {} }}", attested.0)
    } else if is_cut {
        format!("FileEnd {{ bytes_needed: {}, bytes: {available} }}", bad.bytes)
    } else if header_is_whole(bad.offset) {
        "Payload".to_owned()
    } else {
        "FrameHeader".to_owned()
    };
    if attested.0 > last {
        let (durable_entry_id, offset) = attested;
        let path = &log.path;
        return corrupt(
            &check,
            &format!("Attested {{ durable_entry_id: {durable_entry_id}, path: {path:?}, offset: {offset} }}"),
        );
    }
    let sectors = |bytes: &[u8]| bytes.chunks(512).skip(1).filter(|sector| zero(sector)).count();
    match () {
        () if is_cut && first_sector.is_empty() => clean(last),
        () if is_cut => torn(&TornEvidence::PastFileEnd, last),
        () if is_unwritten && later > 0 => torn(&TornEvidence::LaterCommits { frames: later }, last),
        () if is_unwritten && zero(&after[bad.offset..]) => clean(last),
        () if is_unwritten => torn(&TornEvidence::OldSectors { sectors: 1 }, last),
        () if header_is_whole(bad.offset) => {
            let range = bad.offset..bad.offset + bad.bytes;
            match sectors(&after[range.clone()]).saturating_sub(sectors(&before[range])) as u64 {
                0 => corrupt("Payload", "FullyWritten"),
                _ if later > 0 => torn(&TornEvidence::LaterCommits { frames: later }, last),
                sectors => torn(&TornEvidence::OldSectors { sectors }, last),
            }
        }
        () => corrupt("FrameHeader", "FullyWritten"),
    }
}

/// Every frame is whole: only what follows them counts.
fn expected_behind(log: &Log, after: &[u8]) -> String {
    let frame = log.frames.last().expect("a frame");
    let tail = &after[frame.offset + frame.bytes..];
    if frame.kind == FrameKind::Seal || zero(tail) {
        return clean(log.last);
    }
    if tail.len() < 48 {
        return torn(&TornEvidence::PastFileEnd, log.last);
    }
    match zero(&tail[..tail.len().min(512)]) {
        true => torn(&TornEvidence::OldSectors { sectors: 1 }, log.last),
        false => corrupt("FrameHeader", "FullyWritten"),
    }
}

/// Every damage of the table, applied to the newest segment's bytes.
fn each_damage(log: &Log, before: &[u8], mut visit: impl FnMut(&str, Vec<u8>)) {
    let mut apply = |what: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let mut after = before.to_vec();
        damage(&mut after);
        if after != before {
            visit(what, after);
        }
    };
    let frames = &log.frames;
    let end = frames.last().map_or(0, |last| last.offset + last.bytes);
    // Bits: the first, middle and last frames of any kind; the padding, too, belongs to the frame.
    let count = frames.len();
    for at in [0, 1, count / 2, count - 3, count - 2, count - 1] {
        let frame = frames[at];
        let header = (0..48 * 8).step_by(11).map(|bit| (frame.offset + bit / 8, bit % 8));
        let behind = (48..frame.bytes).step_by(131).map(|byte| (frame.offset + byte, byte % 8));
        for (byte, bit) in header.chain(behind) {
            apply(&format!("bit {bit} of byte {byte}"), &|bytes| bytes[byte] ^= 1 << bit);
        }
    }
    // Sectors, lost or as they were in the file's last life; pairs of them; pages.
    for at in (512..end).step_by(512) {
        apply(&format!("sector {at} zeroed"), &|bytes| bytes[at..at + 512].fill(0));
        if let Some(old) = log.old.get(at..at + 512) {
            apply(&format!("sector {at} as of old"), &|bytes| bytes[at..at + 512].copy_from_slice(old));
        }
        apply(&format!("two sectors from {at} zeroed"), &|bytes| {
            let to = (at + 1024).min(end);
            bytes[at..to].fill(0);
        });
    }
    for at in (0..end).step_by(4096) {
        apply(&format!("page {at} zeroed"), &|bytes| bytes[at.max(512)..(at + 4096).min(end)].fill(0));
    }
    // Cuts: every byte of the last three frames.
    for at in frames[frames.len() - 3].offset..end {
        apply(&format!("cut at {at}"), &|bytes| bytes.truncate(at));
    }
    // What follows the end.
    let other = build(if log.old.is_empty() { Shape::Recycled } else { Shape::Fresh }, false);
    let strange = contents(&other.disk, &other.path)[512..2048].to_vec();
    let stale = if log.old.is_empty() { before[512..1536].to_vec() } else { log.old[512..1536].to_vec() };
    let tails: [(&str, Vec<u8>); 8] = [
        ("zeros", vec![0; 5000]),
        ("a byte of garbage", vec![0xa5]),
        ("a sector of garbage", vec![0xa5; 512]),
        ("pages of garbage", (0..9000u32).map(|byte| (byte * 31 % 251) as u8).collect()),
        ("zeros, then garbage", [vec![0; 512], vec![0xa5; 512]].concat()),
        ("another log's frames", strange),
        ("frames of an earlier life, or of another place", stale),
        ("the magic of a frame alone", b"DFRM".to_vec()),
    ];
    for (what, tail) in tails {
        apply(&format!("{what} behind the end"), &|bytes| {
            // What was preallocated may be longer, and is zeros.
            bytes.resize(bytes.len().max(end + tail.len()), 0);
            bytes[end..end + tail.len()].copy_from_slice(&tail);
        });
    }
}

/// The same files in memory and on a file system: every backend's reader says the same.
fn backends_agree(log: &Log, after: &[u8], what: &str) {
    let root = tempfile::tempdir().expect("a directory");
    let files = FsDirectory::arc(root.path()).expect("opens");
    let memory = MemoryDirectory::arc();
    copy(log, after, files.as_ref());
    copy(log, after, memory.as_ref());
    for mode in [WalReplayMode::Strict, WalReplayMode::BestEffortTail] {
        let here = outcome_in(&Arc::new(log.disk.clone()), mode);
        let on_disk = outcome_in(&files, mode);
        assert_eq!(on_disk, outcome_in(&memory, mode), "{what}");
        let same = contents(&log.disk, &log.path) == after;
        assert!(!same || here == on_disk, "{what}");
    }
}

fn copy<D: Directory>(log: &Log, after: &[u8], to: &D) {
    use std::io::Write;
    to.create_dir_all("wal").expect("makes the folder");
    for name in log.disk.list_dir("wal").expect("lists") {
        let path = format!("wal/{name}");
        let bytes = if path == log.path { after.to_vec() } else { contents(&log.disk, &path) };
        to.create_file(&path).expect("creates").write_all(&bytes).expect("writes");
    }
}

fn run(shape: Shape, sealed: bool) {
    let log = build(shape, sealed);
    let before = contents(&log.disk, &log.path);
    let mut cells = 0;
    each_damage(&log, &before, |what, after| {
        let what = format!("{shape:?}, sealed {sealed}, {what}");
        let disk = log.disk.after_kill();
        replace(&disk, &log.path, &after);
        let outcomes = verdict_of(&disk, &what);
        assert_eq!(told(&outcomes), expected(&log, &before, &after), "{what}");
        if cells % 101 == 0 {
            backends_agree(&log, &after, &what);
        }
        cells += 1;
    });
    println!("{shape:?}, sealed {sealed}: {cells} cells");
    assert!(cells > 500, "the table has shrunk");
}

#[test]
fn every_damage_to_a_log_that_was_killed_gets_the_verdict_of_the_table() {
    SHAPES.into_iter().for_each(|shape| run(shape, false));
}

#[test]
fn every_damage_to_a_log_that_was_closed_gets_the_verdict_of_the_table() {
    SHAPES.into_iter().for_each(|shape| run(shape, true));
}
