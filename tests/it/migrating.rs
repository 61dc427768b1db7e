//! Every name that users of durability 0.10 know is there, and means what it meant.
#![cfg(feature = "postcard")]

use durability::checkpoint::CheckpointFile;
use durability::error::PersistenceError as E;
use durability::publish::{CheckpointPublisher, PublishResult};
use durability::recordlog::{Record, RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::recover::{
    CheckpointSegment, CheckpointState, RecoveredSegment, RecoveredState, RecoveryManager, RecoveryOptions,
    WalEntry, recover_with_wal,
};
use durability::storage::{self, FlushPolicy};
use durability::walog::{
    SyncWalWriter, WalMaintenance, WalObserver, WalOptions, WalReader, WalRecord, WalReplayMode,
    WalSegmentRange, WalWriter,
};
use durability::{
    Directory, DurableDirectory, FsDirectory, MemoryDirectory, PersistenceError, PersistenceResult, formats,
};
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Dir = Arc<dyn Directory>;

fn root() -> (tempfile::TempDir, Arc<FsDirectory>) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    (root, directory)
}

#[test]
fn the_storage_names() -> PersistenceResult<()> {
    let (root, directory) = root();
    FsDirectory::new(root.path())?;
    let dynamic: Dir = directory.clone();
    dynamic.create_dir_all("a/b")?;
    dynamic.create_file("a/b/f")?.write_all(b"x").expect("writes");
    dynamic.append_file("a/b/f")?.write_all(b"y").expect("writes");
    let mut text = String::new();
    dynamic.open_file("a/b/f")?.read_to_string(&mut text).expect("reads");
    assert!(text == "xy" && dynamic.exists("a/b/f"));
    dynamic.atomic_write("a/b/g", b"z")?;
    dynamic.atomic_rename("a/b/g", "a/b/h")?;
    assert_eq!(dynamic.list_dir("a/b")?, ["f", "h"]);
    assert_eq!(dynamic.file_path("a/b/h"), Some(root.path().join("a/b/h")));
    directory.sync_file("a/b/h")?;
    directory.durable_sync_file("a/b/h")?;
    directory.sync_parent_dir("a/b/h")?;
    directory.durable_sync_parent_dir("a/b/h")?;
    directory.atomic_write_durable("a/b/i", b"i")?;
    directory.atomic_rename_durable("a/b/i", "a/b/j")?;
    directory.delete_durable("a/b/j")?;
    storage::sync_file(directory.as_ref(), "a/b/h")?;
    storage::sync_parent_dir(directory.as_ref(), "a/b/h")?;
    storage::sync_parent_of_path(&root.path().join("a/b/h"))?;
    dynamic.delete("a")?;
    for path in ["../x", "/x", "C:/x"] {
        assert!(matches!(dynamic.create_file(path), Err(E::InvalidConfig { .. })));
    }
    let memory: Dir = MemoryDirectory::arc();
    MemoryDirectory::new().atomic_write("f", b"x")?;
    assert!(memory.file_path("f").is_none());
    let refused = storage::sync_file(memory.as_ref(), "f");
    assert!(matches!(refused, Err(E::NotSupported { .. })), "{refused:?}");
    let _: [FlushPolicy; 4] = [
        FlushPolicy::PerAppend,
        FlushPolicy::EveryN(0),
        FlushPolicy::Interval(Duration::ZERO),
        FlushPolicy::Manual,
    ];
    Ok(())
}

#[derive(Default)]
struct Counter(AtomicU64);

impl WalObserver for Counter {
    fn on_append(&self, _entry_id: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn on_flush(&self, _entry_id: u64) {}
    fn on_sync(&self, _entry_id: u64) {}
    fn on_segment_rotate(&self, _sealed_segment_id: u64, _new_segment_id: u64) {}
    fn on_before_truncate(&self, segment_id: u64, _last_entry_id: u64) -> PersistenceResult<()> {
        Err(PersistenceError::invalid_state("truncation", format!("segment {segment_id} is needed")))
    }
}

#[test]
fn the_writers_of_the_log() -> PersistenceResult<()> {
    let (_root, directory) = root();
    let dir: Dir = directory.clone();
    drop(WalWriter::<String>::new(dir.clone()));
    drop(WalWriter::<String>::with_options(dir.clone(), FlushPolicy::Manual, 100));
    let mut wal = WalWriter::<String>::with_flush_policy(dir.clone(), FlushPolicy::EveryN(0));
    let counter = Arc::new(Counter::default());
    wal.set_observer(counter.clone());
    wal.set_segment_size_limit_bytes(1);
    wal.set_segment_max_age(Some(Duration::from_secs(3600)));
    wal.set_preallocate_bytes(0);
    wal.set_recycle_capacity(1);
    assert_eq!((wal.append(&"one".to_string())?, wal.append_bytes(b"\x03two")?), (1, 2));
    assert_eq!(wal.append_batch(&["three".to_string(), "four".to_string()])?, [3, 4]);
    wal.flush()?;
    wal.flush_and_sync()?;
    assert_eq!((wal.last_entry_id(), wal.next_entry_id(), wal.current_segment_id()), (4, 5, 3));
    assert!(wal.current_segment_bytes() > 0 && counter.0.load(Ordering::Relaxed) == 4);
    assert_eq!(wal.recycle_segment(1)?, 1);
    drop(wal);
    for open in
        [WalWriter::<String>::open, WalWriter::<String>::resume, WalWriter::<String>::resume_after_crash]
    {
        assert_eq!(open(dir.clone())?.next_entry_id(), 5);
    }
    let wal = SyncWalWriter::<String>::configure(dir.clone(), WalOptions::default())?;
    assert_eq!((wal.append(&"five".into())?, wal.append_durable(&"six".into())?), (5, 6));
    assert_eq!(wal.append_batch(&["seven".into()])?, [7]);
    wal.flush()?;
    wal.flush_and_sync()?;
    assert_eq!(wal.last_entry_id(), 7);
    drop(wal);

    let reader = WalReader::<String>::new(dir.clone());
    let unavailable = reader.replay().expect_err("the prefix is gone");
    assert!(unavailable.to_string().contains("WAL prefix is unavailable"), "{unavailable}");
    let maintenance = WalMaintenance::new(dir.clone());
    let ranges: Vec<WalSegmentRange> = maintenance.segment_ranges_strict()?;
    let WalSegmentRange { segment_id, path, start_entry_id, end_entry_id } = &ranges[0];
    assert_eq!((*segment_id, path.as_str(), *start_entry_id, *end_entry_id), (2, "wal/wal_2.log", 2, 2));
    assert!(maintenance.truncate_prefix_with_observer(2, counter.as_ref()).is_err());
    assert_eq!((maintenance.truncate_to_recycle(2, 1)?, maintenance.truncate_prefix(4)?), (1, 1));
    Ok(())
}

#[test]
fn the_reader_of_the_log() -> PersistenceResult<()> {
    let dir: Dir = MemoryDirectory::arc();
    let mut wal = WalWriter::<u32>::open(dir.clone())?;
    wal.append_batch(&[7, 8])?;
    wal.close()?;
    let reader = WalReader::<u32>::new(dir);
    let expected = [WalRecord { entry_id: 1, payload: 7 }, WalRecord { entry_id: 2, payload: 8 }];
    assert_eq!(reader.replay()?, expected);
    assert_eq!(reader.replay_best_effort()?, expected);
    let mut sum = 0;
    let add = |sum: &mut u32, record: WalRecord<u32>| -> PersistenceResult<()> {
        *sum += record.payload;
        Ok(())
    };
    assert_eq!(reader.replay_each(|record| add(&mut sum, record))?, 2);
    assert_eq!(reader.replay_each_best_effort(|record| add(&mut sum, record))?, 2);
    assert_eq!(reader.replay_each_with_mode(WalReplayMode::Strict, |record| add(&mut sum, record))?, 2);
    assert_eq!(sum, 45);
    assert_eq!(reader.replay_bytes(WalReplayMode::Strict)?[0].payload, [7]);
    assert_eq!(reader.replay_bytes_best_effort()?.len(), 2);
    assert_eq!(reader.replay_bytes_each(|_| Ok(()))?, 2);
    assert_eq!((reader.entry_count()?, reader.entry_count_best_effort()?), (2, 2));
    Ok(())
}

#[test]
fn the_record_log_and_the_checkpoint() -> PersistenceResult<()> {
    let (_root, directory) = root();
    let dir: Dir = directory.clone();
    let mut log =
        RecordLogWriter::<dyn Directory>::with_flush_policy(dir.clone(), "log", FlushPolicy::PerAppend);
    log.append_bytes(b"\x07")?;
    log.append_postcard(&8u8)?;
    log.flush()?;
    log.flush_and_sync()?;
    drop(log);
    let reader = RecordLogReader::<dyn Directory>::new(dir.clone(), "log");
    assert_eq!(reader.read_all(RecordLogReadMode::Strict)?[0], Record { payload: vec![7] });
    assert_eq!(reader.read_all_postcard::<u8>(RecordLogReadMode::BestEffort)?, [7, 8]);

    let files = CheckpointFile::<dyn Directory>::new(dir.clone());
    files.write_bytes("c", 3, b"state")?;
    files.write_bytes_durable("c", 4, b"state")?;
    assert_eq!(files.read_bytes("c")?, (4, b"state".to_vec()));
    files.write_postcard("c", 5, &vec![1u32])?;
    files.write_postcard_durable("c", 6, &vec![2u32])?;
    assert_eq!(files.read_postcard::<Vec<u32>>("c")?, (6, vec![2]));
    Ok(())
}

#[test]
fn recovery_publishing_and_the_segment_index() -> PersistenceResult<()> {
    let (_root, directory) = root();
    let mut wal = WalWriter::<WalEntry, FsDirectory>::open(directory.clone())?;
    wal.append(&WalEntry::AddSegment { segment_id: 1, doc_count: 10 })?;
    wal.append(&WalEntry::AddSegment { segment_id: 2, doc_count: 5 })?;
    wal.append(&WalEntry::DeleteDocuments { deletes: vec![(1, 3)] })?;
    wal.append(&WalEntry::StartMerge { transaction_id: 1, segment_ids: vec![1, 2] })?;
    wal.append(&WalEntry::CancelMerge { transaction_id: 1, segment_ids: vec![1, 2] })?;
    wal.flush_and_sync()?;
    let manager = RecoveryManager::new(directory.clone());
    let state: RecoveredState = manager.recover_best_effort(None)?;
    let checkpoint: CheckpointState = RecoveryManager::<FsDirectory>::to_checkpoint_state(&state);
    let expected = CheckpointSegment { segment_id: 1, doc_count: 10, deleted_docs: vec![3] };
    assert_eq!(checkpoint.segments[0], expected);
    let published: PublishResult = CheckpointPublisher::new(directory.clone()).publish_checkpoint(
        &mut wal,
        &checkpoint,
        state.last_entry_id,
        "index",
    )?;
    let PublishResult {
        checkpoint_path,
        checkpoint_last_entry_id,
        wal_checkpoint_entry_id,
        deleted_wal_segments,
    } = published;
    assert_eq!((checkpoint_path.as_str(), checkpoint_last_entry_id), ("index", 5));
    assert_eq!((wal_checkpoint_entry_id, deleted_wal_segments), (6, 0));
    let end = WalEntry::EndMerge {
        transaction_id: 2,
        new_segment_id: 3,
        old_segment_ids: vec![1, 2],
        remapped_deletes: vec![(3, 0)],
    };
    wal.append(&end)?;
    wal.append(&WalEntry::Checkpoint { checkpoint_path: "nowhere".into(), last_entry_id: 1 })?;
    wal.close()?;
    let latest =
        [manager.recover(Some("index"))?, manager.recover_latest()?, manager.recover_latest_best_effort()?];
    for state in latest {
        let segment: &RecoveredSegment = &state.segments[&3];
        assert_eq!((state.segments.len(), segment.doc_count, segment.deleted_docs.len()), (1, 15, 1));
        assert_eq!(state.last_entry_id, 8);
    }
    let count = recover_with_wal::<u32, WalEntry, u32, _, _>(
        directory.clone(),
        None,
        RecoveryOptions {
            wal_mode: WalReplayMode::Strict,
            ignore_corrupt_checkpoint: false,
            ..RecoveryOptions::up_to(3)
        },
        |checkpoint| checkpoint.unwrap_or(0),
        |count, _entry_id, _entry| *count += 1,
    )?;
    assert_eq!((count.state, count.last_entry_id), (3, 3));
    let missing = manager.recover(Some("elsewhere"));
    assert!(missing.is_ok(), "the whole log is there, so no checkpoint is needed");
    Ok(())
}

#[test]
fn messages_that_users_match_on() -> PersistenceResult<()> {
    let dir: Dir = MemoryDirectory::arc();
    dir.create_file("strange")?.write_all(&[b'x'; 1000]).expect("writes");
    let says = |result: Result<(), E>, text: &str| {
        let error = result.expect_err(text);
        assert!(error.to_string().contains(text), "{error}");
    };
    let log = RecordLogReader::<dyn Directory>::new(dir.clone(), "strange");
    says(log.read_all(RecordLogReadMode::Strict).map(drop), "invalid recordlog magic");
    let files = CheckpointFile::<dyn Directory>::new(dir.clone());
    says(files.read_bytes("strange").map(drop), "invalid checkpoint magic");
    says(files.read_bytes("nowhere").map(drop), "missing checkpoint");
    let mut wal = WalWriter::<()>::open(dir)?;
    says(wal.append_bytes(&vec![0; 17 << 20]).map(drop), "payload too large");
    let cause = Arc::new(E::invalid_state("sync", "it failed"));
    says(Err(E::Poisoned { durable_entry_id: 1, cause }), "poisoned");
    Ok(())
}

#[test]
fn the_error_names() {
    let io = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let format = formats::header::decode(formats::header::FileKind::Checkpoint, &[1; 600]);
    let formats::header::HeaderState::Unusable(problem) = format else { panic!("{format:?}") };
    let errors = [
        E::io("open", "f", None, io()),
        E::Format { path: "f".into(), problem },
        E::CrcMismatch { path: "f".into(), offset: 0, expected: 1, actual: 2 },
        E::Encode { reason: "x".into() },
        E::Decode { entry_id: Some(1), reason: "x".into() },
        E::invalid_state("append", "x"),
        E::invalid_config("path", "x"),
        E::not_supported("sync", "memory"),
        E::LockFailed { resource: "wal/.lock".into(), reason: "x".into() },
        E::NotFound { path: "f".into() },
    ];
    for error in errors {
        let line = error.clone().to_string();
        assert!(!line.contains('\n') && line.starts_with(|first: char| !first.is_uppercase()), "{line}");
        assert!(std::io::Error::from(error).get_ref().is_some());
    }
}

/// A directory that somebody wrote with the ten methods alone.
#[derive(Default)]
struct Ten(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

struct TenWriter(Arc<Mutex<BTreeMap<String, Vec<u8>>>>, String);

impl Write for TenWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").entry(self.1.clone()).or_default().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Directory for Ten {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.0.lock().expect("no panic").insert(path.into(), Vec::new());
        self.append_file(path)
    }
    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        Ok(Box::new(TenWriter(self.0.clone(), path.into())))
    }
    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        let files = self.0.lock().expect("no panic");
        files.get(path).map_or(Err(E::NotFound { path: path.into() }), |bytes| {
            Ok(Box::new(Cursor::new(bytes.clone())) as _)
        })
    }
    fn exists(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.0.lock().expect("no panic").keys().any(|name| name == path || name.starts_with(&below))
    }
    fn delete(&self, path: &str) -> PersistenceResult<()> {
        self.0
            .lock()
            .expect("no panic")
            .remove(path)
            .map_or(Err(E::NotFound { path: path.into() }), |_| Ok(()))
    }
    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        let mut files = self.0.lock().expect("no panic");
        let bytes = files.remove(from).ok_or_else(|| E::NotFound { path: from.into() })?;
        files.insert(to.into(), bytes);
        Ok(())
    }
    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        self.0.lock().expect("no panic").insert(format!("{path}/.dir"), Vec::new());
        Ok(())
    }
    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        let below = format!("{path}/");
        let files = self.0.lock().expect("no panic");
        Ok(files.keys().filter_map(|name| name.strip_prefix(&below).map(str::to_owned)).collect())
    }
    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.0.lock().expect("no panic").insert(path.into(), data.to_vec());
        Ok(())
    }
    fn file_path(&self, _path: &str) -> Option<PathBuf> {
        None
    }
}

#[test]
fn ten_methods_carry_a_log_that_is_not_durable() -> PersistenceResult<()> {
    let dir: Dir = Arc::new(Ten::default());
    let mut wal = WalWriter::<String>::open(dir.clone())?;
    wal.set_segment_size_limit_bytes(1);
    for text in ["one", "two", "three"] {
        wal.append(&text.to_string())?;
        wal.flush()?;
    }
    assert!(matches!(wal.flush_and_sync(), Err(E::NotSupported { .. })));
    assert_eq!(wal.append(&"four".to_string())?, 4);
    wal.close()?;
    let mut wal = WalWriter::<String>::resume(dir.clone())?;
    assert_eq!(wal.append(&"five".to_string())?, 5);
    wal.close()?;
    let recovered = recover_with_wal::<(), String, Vec<String>, _, _>(
        dir.clone(),
        None,
        RecoveryOptions::strict(),
        |_| Vec::new(),
        |all, _, text| all.push(text),
    )?;
    assert_eq!(recovered.state, ["one", "two", "three", "four", "five"]);
    for _ in 0..2 {
        let mut log = RecordLogWriter::<dyn Directory>::new(dir.clone(), "records");
        log.append_bytes(b"x")?;
        log.close()?;
    }
    let records =
        RecordLogReader::<dyn Directory>::new(dir, "records").read_all(RecordLogReadMode::Strict)?;
    assert_eq!(records.len(), 2);
    Ok(())
}
