//! Damage inside the newest segment, which a crash may leave torn: what is corruption there all the same.

use super::{
    Log, Outcome, SHAPES, Shape, append, build, contents, frames, in_flight_together, must_be_corrupt, open,
    outcome, replace, verdict,
};
use durability::error::{Proof, TornEvidence};
use durability::formats::frame::FrameKind;
use durability::testing::sim::SimDisk;
use durability::walog::WalReplayMode;

/// Shapes in which every entry was acknowledged before the next was appended.
const ONE_BY_ONE: [Shape; 4] = [Shape::Fresh, Shape::Preallocated, Shape::Recycled, Shape::Rotated];

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
