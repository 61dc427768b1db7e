//! The log's own claims, over memory and a real file system.

use super::*;
use crate::error::{Check, PersistenceError, Proof};
use crate::formats::names;
use crate::storage::{Directory, FlushPolicy, FsDirectory, MemoryDirectory, SeededEnvironment};
use std::io::{Read, Write};
use std::sync::Arc;

type Dir = Arc<dyn Directory>;

fn memory() -> Dir {
    MemoryDirectory::arc()
}

fn options() -> WalOptions {
    WalOptions {
        preallocate_bytes: 0,
        environment: Arc::new(SeededEnvironment::new(7)),
        flush_policy: FlushPolicy::PerAppend,
        ..WalOptions::default()
    }
}

fn open(directory: &Dir) -> WalWriter {
    WalWriter::open_with(Arc::clone(directory), options()).expect("opens")
}

fn entries(directory: &Dir, mode: WalReplayMode) -> Vec<(u64, Vec<u8>)> {
    let records = WalReader::<()>::new(Arc::clone(directory)).replay_bytes(mode).expect("replays");
    records.into_iter().map(|record| (record.entry_id, record.payload)).collect()
}

fn contents(directory: &Dir, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    directory.open_file(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

fn replace(directory: &Dir, path: &str, bytes: &[u8]) {
    directory.create_file(path).expect("creates").write_all(bytes).expect("writes");
}

fn segment_files(directory: &Dir) -> Vec<String> {
    let names = directory.list_dir("wal").expect("lists");
    names.into_iter().filter(|name| name.ends_with(".log")).map(|name| format!("wal/{name}")).collect()
}

#[test]
fn what_is_appended_is_replayed_with_dense_ids_across_reopening() {
    let directory = memory();
    for round in 0..3u64 {
        let mut wal = open(&directory);
        for index in 0..10u64 {
            let id = wal.append_bytes(format!("{round}.{index}").as_bytes()).expect("appends");
            assert_eq!(id, round * 10 + index + 1);
        }
        wal.close().expect("closes");
    }
    let found = entries(&directory, WalReplayMode::Strict);
    assert_eq!(found.len(), 30);
    assert!(found.iter().enumerate().all(|(index, (id, _))| *id == index as u64 + 1));
    assert_eq!(found[25].1, b"2.5");
}

#[test]
fn a_log_that_ends_before_its_floor_is_refused_and_a_new_one_starts_behind_it() {
    let directory = memory();
    let floor =
        |id_floor| WalWriter::<()>::open_with(Arc::clone(&directory), WalOptions { id_floor, ..options() });
    let mut wal = floor(5).expect("opens a new log");
    assert_eq!(wal.append_bytes(b"behind the floor").expect("appends"), 6);
    wal.close().expect("closes");
    assert_eq!(floor(6).expect("opens").last_entry_id(), 6);
    let refused = floor(7).map(|wal| wal.last_entry_id());
    match refused {
        Err(PersistenceError::Corruption(found)) => assert_eq!(found.entry_id, 7),
        other => panic!("{other:?}"),
    }
}

#[test]
fn closing_a_shared_log_writes_what_is_pending() {
    let directory = memory();
    let manual = WalOptions { flush_policy: FlushPolicy::Manual, ..options() };
    let wal = SyncWalWriter::<()>::configure(Arc::clone(&directory), manual).expect("opens");
    wal.append_bytes(b"pending").expect("appends");
    wal.close().expect("closes");
    assert_eq!(entries(&directory, WalReplayMode::Strict), [(1, b"pending".to_vec())]);
}

#[test]
fn a_segment_per_batch_and_reading_from_any_entry() {
    let directory = memory();
    let mut wal = open(&directory);
    wal.set_segment_size_limit_bytes(1);
    for index in 0..20u32 {
        wal.append_bytes(&index.to_le_bytes()).expect("appends");
    }
    assert_eq!(segment_files(&directory).len(), 20);
    for from in 1..=21 {
        let mut found = Vec::new();
        let reader = WalReader::<()>::new(Arc::clone(&directory));
        let summary = reader.replay_bytes_from(from, WalReplayMode::Strict, |id, _| {
            found.push(id);
            Ok(())
        });
        assert_eq!(found, (from..=20).collect::<Vec<_>>());
        assert_eq!(summary.expect("replays").end.last_entry_id, 20);
    }
    drop(wal);
    let maintenance = WalMaintenance::new(Arc::clone(&directory));
    assert_eq!(maintenance.truncate_prefix(10).expect("truncates"), 10);
    assert_eq!(maintenance.truncate_prefix(u64::MAX).expect("truncates"), 9, "the newest stays");
    let error =
        WalReader::<()>::new(Arc::clone(&directory)).replay_bytes(WalReplayMode::Strict).expect_err("gone");
    assert!(error.to_string().contains("WAL prefix is unavailable"), "{error}");
    assert_eq!(open(&directory).next_entry_id(), 21);
}

#[test]
fn a_killed_writer_leaves_a_clean_prefix_and_old_segments_are_never_edited() {
    let directory = memory();
    let mut wal = open(&directory);
    wal.append_bytes(b"one").expect("appends");
    wal.append_bytes(b"two").expect("appends");
    // A kill leaves what was flushed, without a seal.
    let killed = contents(&directory, "wal/wal_1.log");
    drop(wal);
    replace(&directory, "wal/wal_1.log", &killed);
    assert_eq!(entries(&directory, WalReplayMode::Strict).len(), 2);

    // Part of a third frame was written.
    let mut torn = killed.clone();
    torn.extend_from_slice(&[0; 512]);
    torn.extend_from_slice(&[7; 100]);
    replace(&directory, "wal/wal_1.log", &torn);
    let strict = WalReader::<()>::new(Arc::clone(&directory)).replay_bytes(WalReplayMode::Strict);
    assert!(matches!(strict, Err(PersistenceError::TornTail(_))), "{strict:?}");
    assert_eq!(entries(&directory, WalReplayMode::BestEffortTail).len(), 2);
    assert!(matches!(WalWriter::<()>::resume(Arc::clone(&directory)), Err(PersistenceError::TornTail(_))));
    let mut wal = WalWriter::<()>::resume_after_crash(Arc::clone(&directory)).expect("resumes");
    assert!(wal.recovered().expect("opened").torn.is_some());
    assert_eq!(wal.append_bytes(b"three").expect("appends"), 3);
    wal.close().expect("closes");
    assert_eq!(contents(&directory, "wal/wal_1.log"), torn, "the evidence stays");
    let found = entries(&directory, WalReplayMode::Strict);
    assert_eq!(found[2], (3, b"three".to_vec()));
}

#[test]
fn a_second_writer_is_locked_out_and_readers_are_not() {
    let directory = memory();
    let mut wal = open(&directory);
    wal.append_bytes(b"x").expect("appends");
    let second = WalWriter::<()>::open(Arc::clone(&directory));
    assert!(matches!(second, Err(PersistenceError::LockFailed { .. })), "{second:?}");
    assert_eq!(entries(&directory, WalReplayMode::Strict).len(), 1);
    drop(wal);
    assert!(WalWriter::<()>::open(directory).is_ok());
}

#[test]
fn a_missing_segment_is_loud_wherever_it_was() {
    let build = || {
        let directory = memory();
        let mut wal = open(&directory);
        wal.set_segment_size_limit_bytes(1);
        for index in 0..4u8 {
            wal.append_bytes(&[index]).expect("appends");
        }
        wal.close().expect("closes");
        directory
    };
    let directory = build();
    directory.delete("wal/wal_2.log").expect("deletes");
    let error = WalReader::<()>::new(Arc::clone(&directory))
        .replay_bytes(WalReplayMode::BestEffortTail)
        .expect_err("a hole");
    assert!(
        matches!(error.corruption().map(|found| &found.check), Some(Check::SegmentMissing { segment_id: 2 })),
        "{error}"
    );

    let directory = build();
    directory.delete("wal/wal_4.log").expect("deletes");
    let error = WalReader::<()>::new(Arc::clone(&directory))
        .replay_bytes(WalReplayMode::BestEffortTail)
        .expect_err("lost");
    let found = error.corruption().expect("corruption");
    assert_eq!(found.check, Check::SegmentMissing { segment_id: 4 });
    assert!(matches!(found.proof, Proof::NamedBySeal { .. }));
    assert!(WalWriter::<()>::open(directory).is_err());

    let directory = build();
    directory.atomic_rename("wal/wal_2.log", "wal/wal_9.log").expect("renames");
    assert!(WalWriter::<()>::open(directory).expect_err("renamed").is_corruption());
}

#[test]
fn every_flipped_bit_in_attested_data_is_corruption_in_every_mode() {
    let root = tempfile::tempdir().expect("a directory");
    let directory: Dir = FsDirectory::arc(root.path()).expect("opens");
    let mut wal = open(&directory);
    for index in 0..3u8 {
        wal.append_bytes_durable(&[index; 40]).expect("commits");
    }
    wal.close().expect("closes");
    let path = names::segment_path(1);
    let good = contents(&directory, &path);
    for byte in (0..good.len()).step_by(3) {
        let mut flipped = good.clone();
        flipped[byte] ^= 1 << (byte % 8);
        replace(&directory, &path, &flipped);
        let result = WalReader::<()>::new(Arc::clone(&directory)).replay_bytes(WalReplayMode::BestEffortTail);
        match result {
            Err(error) => assert!(error.is_corruption(), "byte {byte}: {error}"),
            Ok(records) => panic!("byte {byte}: {} records and no complaint", records.len()),
        }
    }
}

#[test]
fn a_torn_first_commit_of_a_segment_is_a_torn_tail_and_stays_as_evidence() {
    let directory = memory();
    open(&directory).append_bytes(b"one").expect("appends");
    let mut wal = open(&directory);
    wal.append_bytes(&[9; 2000]).expect("appends");
    let bytes = contents(&directory, "wal/wal_2.log");
    drop(wal);
    // The sector of the opening frame was not written, a later one was.
    let mut torn = bytes[..2048].to_vec();
    torn[512..1024].fill(0);
    replace(&directory, "wal/wal_2.log", &torn);
    let strict = WalReader::<()>::new(Arc::clone(&directory)).replay_bytes(WalReplayMode::Strict);
    assert!(matches!(strict, Err(PersistenceError::TornTail(_))), "{strict:?}");
    let mut wal = open(&directory);
    assert_eq!(wal.append_bytes(b"two").expect("appends"), 2);
    assert_eq!(wal.current_segment_id(), 3);
    drop(wal);
    assert_eq!(entries(&directory, WalReplayMode::Strict), [(1, b"one".to_vec()), (2, b"two".to_vec())]);
    assert_eq!(contents(&directory, "wal/wal_2.log"), torn);
}

#[test]
fn an_atomic_batch_that_is_refused_leaves_nothing() {
    let directory = memory();
    let mut wal = open(&directory);
    wal.append_bytes(b"a").expect("appends");
    let huge = vec![0u8; crate::limits::ENTRY_BYTES_MAX + 1];
    let refused = wal.append_batch_bytes(&[&b"b"[..], &huge]);
    assert!(matches!(refused, Err(PersistenceError::PayloadTooLarge { .. })));
    assert_eq!(wal.append_batch_bytes(&[b"b", b"c"]).expect("appends"), [2, 3]);
    assert_eq!(wal.append_batch_bytes::<&[u8]>(&[]).expect("appends"), Vec::<u64>::new());
    wal.close().expect("closes");
    assert_eq!(entries(&directory, WalReplayMode::Strict).len(), 3);
}

#[test]
fn new_touches_nothing_and_refuses_an_existing_log() {
    let directory = memory();
    let mut wal = WalWriter::<()>::new(Arc::clone(&directory));
    assert_eq!((wal.next_entry_id(), wal.last_entry_id()), (1, 0));
    wal.flush().expect("nothing to do");
    assert!(!directory.exists("wal"));
    wal.append_bytes(b"x").expect("appends");
    drop(wal);
    let mut again = WalWriter::<()>::new(Arc::clone(&directory));
    assert!(matches!(again.append_bytes(b"y"), Err(PersistenceError::InvalidState { .. })));
    assert!(WalWriter::<()>::resume(memory()).expect_err("no log").is_not_found());
}

#[test]
fn durable_appends_on_a_file_system_come_back_and_recycling_reuses_files() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let options = WalOptions {
        segment_bytes_max: 8 << 10,
        preallocate_bytes: 8 << 10,
        recycle_capacity: 2,
        ..options()
    };
    let mut wal = WalWriter::<(), FsDirectory>::open_with(Arc::clone(&directory), options).expect("opens");
    let maintenance = WalMaintenance::new(Arc::clone(&directory));
    let mut salts = std::collections::BTreeSet::new();
    let (mut recycled, mut spares_before) = (false, 0);
    let salt = |directory: &Arc<FsDirectory>, id| match catalogue::look(directory.as_ref(), id) {
        Ok(found) => found.header().expect("a header").0.salt,
        Err(error) => panic!("{error}"),
    };
    for index in 1..=200u64 {
        assert_eq!(wal.append_bytes_durable(&index.to_le_bytes().repeat(20)).expect("commits"), index);
        assert_eq!(wal.durable_entry_id(), index);
        if index % 50 == 0 {
            maintenance.truncate_to_recycle(index - 20, 2).expect("truncates");
        }
        let spares = catalogue::list_names(directory.as_ref()).expect("lists").1.len();
        recycled |= spares < std::mem::replace(&mut spares_before, spares);
        salts.insert((wal.current_segment_id(), salt(&directory, wal.current_segment_id())));
    }
    drop(wal);
    // A stale frame of an earlier use must not check out in a later one.
    let different: std::collections::BTreeSet<u64> = salts.iter().map(|(_, salt)| *salt).collect();
    assert!(recycled && salts.len() > 4 && different.len() == salts.len(), "{salts:x?}");
    let reader = WalReader::<(), FsDirectory>::new(Arc::clone(&directory));
    let (first, last) = reader.entry_range(WalReplayMode::Strict).expect("reads").expect("entries");
    assert!(first > 100 && first <= 180 && last == 200, "{first} {last}");
    let mut next = first;
    let visit = |id: u64, payload: &[u8]| {
        assert_eq!((id, payload), (next, &id.to_le_bytes().repeat(20)[..]));
        next += 1;
        Ok(())
    };
    let summary = reader.replay_bytes_from(first, WalReplayMode::Strict, visit).expect("replays");
    assert!(summary.end.closed && next == 201);
}

#[test]
fn threads_share_a_log_and_every_acknowledged_entry_is_there() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let options = WalOptions { segment_bytes_max: 64 << 10, flush_policy: FlushPolicy::Manual, ..options() };
    let wal = SyncWalWriter::<(), FsDirectory>::configure(Arc::clone(&directory), options).expect("opens");
    let mut ids: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u8)
            .map(|thread| {
                let wal = wal.clone();
                scope.spawn(move || {
                    (0..50)
                        .map(|_| wal.append_bytes_durable(&[thread; 100]).expect("commits"))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("joins")).collect()
    });
    ids.sort_unstable();
    assert_eq!(ids, (1..=400).collect::<Vec<_>>());
    assert_eq!(wal.durable_entry_id(), 400);
    wal.close().expect("closes");
    let reader = WalReader::<(), FsDirectory>::new(directory);
    assert_eq!(reader.entry_count().expect("reads"), 400);
}

#[test]
fn opening_waits_for_the_lock_of_every_segment_not_only_for_the_lock_file() {
    let directory = memory();
    open(&directory).append_bytes(b"x").expect("appends");
    // As if a dead writer's requests were still landing in its segment.
    let how = crate::storage::FileOptions::existing().locked();
    let landing = directory.open_commit_file("wal/wal_1.log", &how).expect("locks");
    let impatient = WalOptions { lock_wait: std::time::Duration::ZERO, ..options() };
    match WalWriter::<()>::open_with(Arc::clone(&directory), impatient) {
        Err(PersistenceError::LockFailed { resource, .. }) => {
            assert!(resource.contains("wal_1.log"), "{resource}")
        }
        other => panic!("{other:?}"),
    }
    drop(landing);
    assert_eq!(open(&directory).next_entry_id(), 2);
}
