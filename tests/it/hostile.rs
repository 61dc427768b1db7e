//! Files that nobody wrote: damaged, cut, spliced and forged ones. Readers answer, and never panic or loop.

use crate::decoder::Random;
use crate::fixtures::{Files, committed, in_memory};
use crate::properties::{
    check_checkpoint, check_record_log, check_scanner, check_segments, check_segments_in, mend, targets,
};
use durability::MemoryDirectory;
use durability::formats::header::FileKind;
use durability::formats::scan::KnownEnd;
use durability::recordlog::{RecordLogOptions, RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::FlushPolicy;
use durability::testing::sim::SimDisk;
use std::sync::Arc;

fn records(directory: &Arc<MemoryDirectory>, mode: RecordLogReadMode) -> Vec<Vec<u8>> {
    let reader = RecordLogReader::<MemoryDirectory>::new(Arc::clone(directory), "records.log");
    reader.read_all(mode).expect("reads").into_iter().map(|record| record.payload).collect()
}

/// Appends one record in a session of its own.
fn append(directory: &Arc<MemoryDirectory>, record: &[u8]) {
    let options = RecordLogOptions { flush_policy: FlushPolicy::PerAppend, ..RecordLogOptions::default() };
    let mut log =
        RecordLogWriter::<MemoryDirectory>::with_options(Arc::clone(directory), "records.log", options);
    log.append_bytes(record).expect("appends");
    log.close().expect("closes");
}

#[test]
fn a_record_log_that_was_cut_at_any_byte_goes_on_and_stays_readable() {
    let directory = MemoryDirectory::arc();
    append(&directory, b"first");
    // Ends in zeros: what is cut off here comes back as soon as the file grows again.
    append(&directory, &[0; 600]);
    let whole = crate::decoder::files_of(&directory);
    for bytes in 512..=whole[0].1.len() {
        let directory = in_memory(&whole);
        let cut = |bytes: usize| {
            let mut files = crate::decoder::files_of(&directory);
            files[0].1.truncate(bytes);
            in_memory(&files)
        };
        let directory = cut(bytes);
        let mut expected = records(&directory, RecordLogReadMode::BestEffort);
        for round in 0..2 {
            expected.push(vec![round; 10]);
            append(&directory, &[round; 10]);
            assert_eq!(records(&directory, RecordLogReadMode::Strict), expected, "cut to {bytes} bytes");
        }
    }
}

/// One random injury to one file; `others` are files to take frames from.
fn injure(random: &Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    if bytes.is_empty() {
        return;
    }
    let sectors = bytes.len().div_ceil(512);
    let sector = random.below(sectors) * 512;
    let sector_end = bytes.len().min(sector + 512);
    match random.below(8) {
        0 => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        1 => bytes[sector..sector_end].fill(0),
        2 => bytes.truncate(random.below(bytes.len() + 1)),
        3 => {
            // Frames of another file, or of another place of this one.
            let other = &others[random.below(others.len())];
            let from = random.below(other.len().div_ceil(512)) * 512;
            let count = (512 * (1 + random.below(4))).min(other.len() - from).min(bytes.len() - sector);
            bytes[sector..sector + count].copy_from_slice(&other[from..from + count]);
        }
        4 => bytes[sector..sector_end].fill_with(|| random.any() as u8),
        5 => bytes.resize(bytes.len() + random.below(3000), 0),
        // A field of a header, made large, small or odd.
        _ => {
            let at = sector + [8, 12, 16, 24, 32, 40, 48, 56, 64][random.below(9)];
            let value = match random.below(5) {
                0 => u64::MAX - random.any() % 3,
                1 => random.any() % 4,
                2 => 512 * (random.any() % 20),
                3 => (1 << 26) - random.any() % 600,
                _ => random.any(),
            };
            let width = [1, 4, 8][random.below(3)];
            if at + width <= bytes.len() {
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
    }
}

fn kind_of(path: &str) -> FileKind {
    match path {
        "state.ckp" => FileKind::Checkpoint,
        "records.log" => FileKind::RecordLog,
        _ => FileKind::Segment,
    }
}

/// Injures a fixture and holds it to its properties.
fn try_one(seed: u64, fixtures: &[Files], others: &[Vec<u8>]) {
    let random = Random::new(seed);
    let mut files = fixtures[random.below(fixtures.len())].clone();
    let mended = random.below(2) == 0;
    for _ in 0..1 + random.below(3) {
        let file = random.below(files.len());
        injure(&random, &mut files[file].1, others);
    }
    if mended {
        for (path, bytes) in &mut files {
            mend(kind_of(path), bytes);
        }
    }
    let kind = kind_of(&files[0].0);
    let known = KnownEnd { offset: 512 * (1 + random.any() % 8), last_entry_id: random.any() % 6 };
    if random.below(4) == 0 {
        check_scanner(kind, &files[0].1, (random.below(2) == 0).then_some(known));
    }
    match kind {
        FileKind::Checkpoint => check_checkpoint(&files[0].1),
        FileKind::RecordLog => check_record_log(&files[0].1),
        FileKind::Segment => {
            let mut segments: Vec<_> = (1..).zip(files.into_iter().map(|(_, bytes)| bytes)).collect();
            if random.below(4) == 0 {
                let kept = random.below(segments.len());
                segments.swap(0, kept);
                segments.truncate(1);
            }
            check_segments(&segments);
            check_segments_in(Arc::new(SimDisk::new(seed)), &segments);
        }
    }
}

#[test]
fn thousands_of_injured_fixtures_are_answered() {
    let mut fixtures: Vec<Files> = committed().into_iter().map(|(_, files)| files).collect();
    // The chunk of the committed checkpoint is long; one short chunk shows the same.
    let small = in_memory(&Files::new());
    durability::checkpoint::CheckpointFile::<MemoryDirectory>::new(Arc::clone(&small))
        .write_bytes("state.ckp", 3, &[5; 2000])
        .expect("writes");
    fixtures.retain(|files| kind_of(&files[0].0) != FileKind::Checkpoint);
    fixtures.push(crate::decoder::files_of(&small));
    let others: Vec<_> = fixtures.iter().flatten().map(|(_, bytes)| bytes.clone()).collect();
    if let Ok(seed) = std::env::var("DURABILITY_SEED") {
        try_one(seed.parse().expect("a number"), &fixtures, &others);
        return;
    }
    let first = Random::new(u64::from(std::process::id())).any();
    // A campaign is asked for by its length.
    let campaign = std::env::var("DURABILITY_SEEDS").ok().map(|seeds| seeds.parse().expect("a number"));
    let began = std::time::Instant::now();
    for seed in (0..campaign.unwrap_or(6000)).map(|index| first.wrapping_add(index)) {
        let told = std::panic::catch_unwind(|| try_one(seed, &fixtures, &others));
        assert!(told.is_ok(), "failed; again: DURABILITY_SEED={seed} cargo test --test it injured");
        if campaign.is_none() && began.elapsed() > std::time::Duration::from_secs(6) {
            break;
        }
    }
}

#[test]
fn the_seeds_of_the_fuzz_targets_hold() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    type Target = fn(&[u8]);
    let all: [(&str, Target); 4] = [
        ("recordlog", targets::recordlog),
        ("segment", targets::segment),
        ("checkpoint", targets::checkpoint),
        ("scanner", targets::scanner),
    ];
    for (name, target) in all {
        for entry in std::fs::read_dir(corpus.join(name)).expect("lists") {
            target(&std::fs::read(entry.expect("an entry").path()).expect("reads"));
        }
    }
}

#[test]
fn a_mended_fixture_is_the_fixture() {
    for (name, files) in committed() {
        for (path, bytes) in files {
            let mut mended = bytes.clone();
            mend(kind_of(&path), &mut mended);
            if !name.contains("resumed") && !name.contains("reopened") {
                assert!(mended == bytes, "{name}/{path}");
            }
        }
    }
}

/// A fixture's first file with one frame changed, checksums mended.
fn forged(name: &str, frame_at: usize, field: usize, value: &[u8], keep: usize) -> Vec<u8> {
    let (_, mut files) = committed().into_iter().find(|(fixture, _)| fixture == name).expect("a fixture");
    let (path, mut bytes) = files.remove(0);
    bytes[frame_at + field..frame_at + field + value.len()].copy_from_slice(value);
    bytes.truncate(keep);
    mend(kind_of(&path), &mut bytes);
    bytes
}

#[test]
fn an_opening_that_claims_more_than_there_is_room_for_is_no_opening() {
    let bytes = forged("wal_unsealed", 512, 16, &8704u32.to_le_bytes(), 4096);
    check_segments(&[(1, bytes)]);
}

#[test]
fn ids_at_the_end_of_what_a_number_holds_overflow_nothing() {
    for id in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, (1 << 63) - 2] {
        for at in [512, 1024, 1536] {
            check_segments(&[(1, forged("wal_unsealed", at, 24, &id.to_le_bytes(), 4096))]);
            check_record_log(&forged("record_log_closed", at, 24, &id.to_le_bytes(), 3584));
        }
        // A whole log that begins there.
        let mut bytes = forged("wal_unsealed", 512, 24, &id.to_le_bytes(), 1024);
        bytes[512 + 48 + 24..][..8].copy_from_slice(&(id - 1).to_le_bytes());
        mend(FileKind::Segment, &mut bytes);
        check_segments(&[(1, bytes)]);
    }
    let mut bytes = forged("wal_unsealed", 512, 24, &1u64.to_le_bytes(), 4096);
    bytes[40..48].fill(0xff);
    mend(FileKind::Segment, &mut bytes);
    check_segments(&[(u64::MAX, bytes)]);
}
