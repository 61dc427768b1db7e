//! One sector, bit, frame or tail of a segment is damaged: what that must and must not change.

use super::user;
use super::wal::Own;
use crate::damage::{Frame, contents, frames, replace};
use crate::power_cut::{Random, payload};
use durability::formats::frame::FrameKind;
use durability::inspect::{Verdict, inspect_log};
use durability::testing::sim::SimDisk;
use durability::walog::{WalOptions, WalReader, WalReplayMode};
use durability::{Directory, PersistenceResult};
use std::sync::Arc;

const DAMAGES: u64 = 60;

/// A started segment, undamaged; the oldest comes first.
struct Segment {
    path: String,
    frames: Vec<Frame>,
}

struct Damage<'a> {
    segment: &'a Segment,
    frame: Frame,
    /// The first byte that may have changed.
    from: usize,
    cuts: bool,
}

/// Damages the log of a run here and there, each time anew. How many damages were accepted, how many refused.
pub(super) fn at_random_places(seed: u64) -> (u64, u64) {
    let disk = user::run(seed, 25).disk;
    let mut random = Random(!seed);
    let segments = segments(&disk);
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
    let range = reader.entry_range(WalReplayMode::BestEffortTail).expect("reads");
    let Some((first, _)) = range else { return (0, 0) };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..DAMAGES {
        let image = disk.after_kill();
        let Some(damage) = damage(&image, &segments, first, &mut random) else { continue };
        let what = format!(
            "DURABILITY_SEED={seed}: {}: damage from {} on, of {:?}{}",
            damage.segment.path,
            damage.from,
            damage.frame,
            if damage.cuts { ", where the file ends" } else { "" }
        );
        if is_accepted(&image, first, attested_beside(&segments, &damage), &what) {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    (accepted, refused)
}

fn segments(disk: &SimDisk) -> Vec<Segment> {
    let names = disk.list_dir("wal").expect("lists");
    let named = names.into_iter().filter(|name| name.starts_with("wal_"));
    let read = named.filter_map(|name| {
        let path = format!("wal/{name}");
        let bytes = contents(disk, &path);
        // One in the making has no header yet.
        let has_header = bytes.len() >= 512 && bytes[..512].iter().any(|byte| *byte != 0);
        let mut frames = if has_header { frames(&bytes) } else { Vec::new() };
        frames.retain(|frame| frame.offset + frame.bytes <= bytes.len());
        (!frames.is_empty()).then_some(Segment { path, frames })
    });
    let mut segments: Vec<Segment> = read.collect();
    segments.sort_by_key(|segment| segment.frames[0].last_entry_id);
    segments
}

/// `None` where it changes nothing.
fn damage<'a>(
    image: &SimDisk,
    segments: &'a [Segment],
    first: u64,
    random: &mut Random,
) -> Option<Damage<'a>> {
    // Mostly at the end of the log, where most is decided: a segment that is full, or the newest.
    let at_the_end = random.below(3) != 0;
    let from_last = if at_the_end { random.below(2) } else { random.below(segments.len() as u64) };
    let segment = &segments[segments.len().saturating_sub(1 + from_last as usize)];
    let skipped = if at_the_end { segment.frames.len().saturating_sub(5) } else { 0 };
    let frames = &segment.frames[skipped..];
    let frame = frames[random.below(frames.len() as u64) as usize];
    if frame.kind == FrameKind::Opening && frame.last_entry_id < first {
        // With it goes all that says where the ids of an oldest segment begin: `losses.rs`.
        return None;
    }
    let from = frame.offset + 512 * random.below(frame.bytes as u64 / 512) as usize;
    let mut bytes = contents(image, &segment.path);
    let before = bytes.clone();
    match random.below(4) {
        0 => bytes[from..from + 512].fill(0),
        1 => bytes[from + random.below(512) as usize] ^= 1 << random.below(8),
        2 => bytes[frame.offset..frame.offset + frame.bytes].fill(0),
        _ => bytes.truncate(from),
    }
    replace(image, &segment.path, &bytes);
    (bytes != before).then_some(Damage { segment, frame, from, cuts: bytes.len() < before.len() })
}

/// The highest durable watermark in what the damage left alone.
fn attested_beside(segments: &[Segment], damage: &Damage) -> u64 {
    let frames = segments.iter().flat_map(|segment| segment.frames.iter().map(move |frame| (segment, frame)));
    let whole = frames.filter(|(segment, frame)| {
        segment.path != damage.segment.path
            || frame.offset < damage.frame.offset
            || (frame.offset > damage.frame.offset && !damage.cuts)
    });
    whole.map(|(_, frame)| frame.durable_entry_id).max().unwrap_or(0)
}

/// Reads from `first` on: the last entry that was there.
fn read(image: &SimDisk, first: u64, mode: WalReplayMode) -> PersistenceResult<u64> {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(image.clone()));
    let mut last = first - 1;
    reader.replay_bytes_from(first, mode, |entry_id, bytes| {
        assert_eq!(entry_id, last + 1, "a gap");
        assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
        last = entry_id;
        Ok(())
    })?;
    Ok(last)
}

/// Whether reading accepts the image; then everything `attested` is in it. Everybody else agrees, and going on
/// changes neither.
fn is_accepted(image: &SimDisk, first: u64, attested: u64, what: &str) -> bool {
    let replayed = read(image, first, WalReplayMode::BestEffortTail);
    let strictly = read(image, first, WalReplayMode::Strict);
    let inspected = inspect_log(&Arc::new(image.clone()), |check| check.scan_all()).expect("a verdict");
    let verdict = &inspected.verdict;
    assert_eq!(verdict.is_accepted(), replayed.is_ok(), "{what}: {verdict:?}, reading says {replayed:?}");
    assert_eq!(*verdict == Verdict::Clean, strictly.is_ok(), "{what}: {verdict:?}, strictly {strictly:?}");
    let options = WalOptions { preallocate_bytes: 0, ..WalOptions::default() };
    let opened = Own::open_with(Arc::new(image.clone()), options);
    match replayed {
        Ok(last) => {
            assert!(last >= attested, "{what}: read to {last}, {attested} are attested");
            assert_eq!(inspected.last_entry_id, Some(last), "{what}: {verdict:?}");
            let mut wal =
                opened.unwrap_or_else(|error| panic!("{what}: read to {last}, and not opened: {error}"));
            assert_eq!(wal.last_entry_id(), last, "{what}");
            wal.append_bytes_durable(&payload(last + 1)).expect("commits");
            drop(wal);
            let again = read(image, first, WalReplayMode::Strict)
                .unwrap_or_else(|error| panic!("{what}: goes on and is refused: {error}"));
            assert_eq!(again, last + 1, "{what}");
            true
        }
        Err(error) => {
            assert!(error.is_corruption(), "{what}: {error}");
            // A closed log is opened by its last block.
            if let Ok(mut wal) = opened {
                let bytes = payload(wal.next_entry_id());
                wal.append_bytes_durable(&bytes).expect("commits");
                drop(wal);
                let again = read(image, first, WalReplayMode::BestEffortTail);
                assert!(again.is_err_and(|error| error.is_corruption()), "{what}: masked by going on");
            }
            false
        }
    }
}
