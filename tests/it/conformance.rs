//! One set of claims, run over every backend, and across them.

use crate::support::skip;
use durability::error::PersistenceError;
use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::{
    Commit, CommitBuffer, CommitStrategy, Effect, FileOptions, FlushPolicy, SeededEnvironment,
    open_commit_file,
};
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, DurableDirectory, FsDirectory, MemoryDirectory};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

/// A directory of one backend, and what keeps it alive.
struct Instance {
    directory: Arc<dyn Directory>,
    _root: Option<tempfile::TempDir>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Std,
    Linked,
    Dsync,
    /// Rings by rule: the page cache behind a stream, the best of what a file takes elsewhere.
    Rule,
    /// `std_fs` behind `Arc<dyn DurableDirectory>`.
    Dynamic,
}

const KINDS: [Kind; 6] = [Kind::Memory, Kind::Std, Kind::Linked, Kind::Dsync, Kind::Rule, Kind::Dynamic];

impl Kind {
    fn open(self, root: &std::path::Path) -> Option<Arc<dyn Directory>> {
        Some(match self {
            Self::Memory => MemoryDirectory::arc(),
            Self::Std => FsDirectory::arc(root).expect("opens"),
            Self::Dynamic => {
                let durable: Arc<dyn DurableDirectory> = FsDirectory::arc(root).expect("opens");
                Arc::new(durable)
            }
            Self::Linked => uring(root, Some(CommitStrategy::LinkedWriteSync))?,
            Self::Dsync => uring(root, Some(CommitStrategy::DirectDsync))?,
            Self::Rule => uring(root, None)?,
        })
    }

    fn make(self) -> Option<Instance> {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let directory = self.open(root.path())?;
        Some(Instance { directory, _root: Some(root) })
    }

    fn is_durable(self) -> bool {
        self != Self::Memory
    }
}

#[cfg(all(feature = "io-uring", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn uring(root: &std::path::Path, strategy: Option<CommitStrategy>) -> Option<Arc<dyn Directory>> {
    use durability::backends::io_uring::{UringDirectory, UringOptions, probe};
    if let Err(reason) = probe() {
        assert!(std::env::var_os("DURABILITY_REQUIRE_IO_URING").is_none(), "io_uring is required: {reason}");
        skip(&format!("io_uring: {reason}"));
        return None;
    }
    let options = UringOptions { strategy, ..UringOptions::default() };
    let directory = UringDirectory::with_options(root, options).expect("opens");
    let probe = directory.open_durable_file("probe", &FileOptions::create_new().aligned(512));
    let direct = probe.is_ok();
    drop(probe);
    let _ = directory.delete("probe");
    if !direct {
        skip(&format!("{strategy:?} is not to be had on this file system"));
        return None;
    }
    Some(Arc::new(directory))
}

#[cfg(not(all(
    feature = "io-uring",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
fn uring(_root: &std::path::Path, strategy: Option<CommitStrategy>) -> Option<Arc<dyn Directory>> {
    skip(&format!("{strategy:?}: no io_uring in this build"));
    None
}

/// Runs a claim over every backend.
fn on_every_backend(claim: impl Fn(Kind, &Arc<dyn Directory>)) {
    for kind in KINDS {
        if let Some(instance) = kind.make() {
            claim(kind, &instance.directory);
        }
    }
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes_max: 4096,
        preallocate_bytes: 4096,
        flush_policy: FlushPolicy::EveryN(3),
        environment: Arc::new(SeededEnvironment::new(11)),
        ..WalOptions::default()
    }
}

fn payload(entry_id: u64) -> Vec<u8> {
    vec![entry_id as u8; (entry_id as usize * 97) % 900]
}

fn write_log(directory: &Arc<dyn Directory>, entries: u64) {
    let mut wal = WalWriter::<()>::open_with(Arc::clone(directory), options()).expect("opens");
    for _ in 0..entries {
        let next = wal.next_entry_id();
        wal.append_bytes(&payload(next)).expect("appends");
    }
    wal.close().expect("closes");
}

/// Goes on in flushes of which several are in flight, and in large ones.
fn write_stream(directory: &Arc<dyn Directory>) {
    let options = WalOptions { segment_bytes_max: 1 << 20, ..options() };
    let mut wal = WalWriter::<()>::open_with(Arc::clone(directory), options).expect("opens");
    for bytes in (0..120).map(|entry| 9000 + 10 * entry).chain([40_000, 300_000]) {
        wal.append_bytes(&vec![7; bytes]).expect("appends");
    }
    wal.append_bytes(&[8; 50_000]).and_then(|_| wal.flush()).expect("flushes");
    wal.close().expect("closes");
}

fn read_log(directory: &Arc<dyn Directory>) -> u64 {
    let reader = WalReader::<()>::new(Arc::clone(directory));
    let records = reader.replay_bytes(WalReplayMode::Strict).expect("replays");
    for (entry_id, record) in (1..).zip(&records) {
        assert_eq!((record.entry_id, &record.payload), (entry_id, &payload(entry_id)));
    }
    records.len() as u64
}

fn files(directory: &Arc<dyn Directory>) -> BTreeMap<String, Vec<u8>> {
    let names = directory.list_dir("wal").expect("lists").into_iter().filter(|name| name.ends_with(".log"));
    names
        .map(|name| {
            let mut bytes = Vec::new();
            directory
                .open_file(&format!("wal/{name}"))
                .expect("opens")
                .read_to_end(&mut bytes)
                .expect("reads");
            (name, bytes)
        })
        .collect()
}

#[test]
fn identical_appends_make_identical_bytes_on_every_backend() {
    let mut reference: Option<BTreeMap<String, Vec<u8>>> = None;
    on_every_backend(|kind, directory| {
        // What is attested durable depends on whether anything is: a volatile log attests nothing.
        if kind.is_durable() {
            write_log(directory, 40);
        }
    });
    for kind in KINDS.into_iter().filter(|kind| kind.is_durable()) {
        let Some(instance) = kind.make() else { continue };
        write_log(&instance.directory, 40);
        write_log(&instance.directory, 3);
        write_stream(&instance.directory);
        let found = files(&instance.directory);
        assert!(found.len() > 3);
        match &reference {
            None => reference = Some(found),
            Some(reference) => assert!(*reference == found, "{kind:?} writes other bytes"),
        }
    }
    // Without stable storage the frames are the same but for what they attest.
    let memory = Kind::Memory.make().expect("memory");
    write_log(&memory.directory, 40);
    write_log(&memory.directory, 3);
    write_stream(&memory.directory);
    let (memory, reference) = (files(&memory.directory), reference.expect("a durable backend"));
    let shape = |files: &BTreeMap<String, Vec<u8>>| {
        files.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect::<Vec<_>>()
    };
    assert_eq!(shape(&memory), shape(&reference));
}

#[test]
fn what_one_backend_writes_every_other_recovers_and_continues() {
    let disks: Vec<_> = KINDS.into_iter().filter(|kind| kind.is_durable()).collect();
    for writer in &disks {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let Some(directory) = writer.open(root.path()) else { continue };
        write_log(&directory, 25);
        let mut expected = 25;
        for reader in &disks {
            let Some(directory) = reader.open(root.path()) else { continue };
            assert_eq!(read_log(&directory), expected, "{reader:?} reads what {writer:?} wrote");
            write_log(&directory, 2);
            expected += 2;
        }
    }
}

#[test]
fn every_operation_refuses_paths_that_are_not_plain_relative_ones() {
    on_every_backend(|kind, directory| {
        for path in ["", "/x", "x/", "a//b", ".", "..", "a/../b", "./a", "a\0b", "C:\\x", "a\\b"] {
            let refused = |result: Result<(), PersistenceError>, what: &str| {
                let error = result.expect_err(what);
                assert!(
                    matches!(error, PersistenceError::InvalidConfig { .. }),
                    "{kind:?} {what} {path:?}: {error}"
                );
            };
            refused(directory.create_file(path).map(drop), "create_file");
            refused(directory.append_file(path).map(drop), "append_file");
            refused(directory.open_file(path).map(drop), "open_file");
            refused(directory.open_at(path).map(drop), "open_at");
            refused(directory.try_exists(path).map(drop), "try_exists");
            refused(directory.delete(path), "delete");
            refused(directory.atomic_rename(path, "x"), "rename from");
            refused(directory.atomic_rename("x", path), "rename to");
            refused(directory.atomic_write(path, b"x"), "atomic_write");
            refused(directory.lock(path, Duration::ZERO).map(drop), "lock");
            refused(directory.await_unlocked(path, Duration::ZERO), "await_unlocked");
            let how = FileOptions::create_new().aligned(512);
            refused(directory.open_commit_file(path, &how).map(drop), "open_commit_file");
            assert!(!directory.exists(path) && directory.file_path(path).is_none(), "{kind:?} {path:?}");
            if !path.is_empty() {
                refused(directory.list_dir(path).map(drop), "list_dir");
                refused(directory.create_dir_all(path), "create_dir_all");
            }
            if let Some(durable) = directory.as_durable() {
                refused(durable.open_durable_file(path, &how).map(drop), "open_durable_file");
                refused(durable.sync_file(path), "sync_file");
                refused(durable.sync_parent_dir(path), "sync_parent_dir");
                refused(durable.atomic_rename_durable(path, "x"), "durable rename");
                refused(durable.atomic_write_durable(path, b"x"), "durable write");
                refused(durable.delete_durable(path), "durable delete");
            }
        }
        assert!(directory.list_dir("").expect("lists").is_empty(), "{kind:?}: something was created");
    });
}

#[test]
fn a_second_writer_is_locked_out_until_the_first_is_gone() {
    on_every_backend(|kind, directory| {
        let mut wal = WalWriter::<()>::open_with(Arc::clone(directory), options()).expect("opens");
        wal.append_bytes(&payload(1)).expect("appends");
        let second = WalWriter::<()>::open_with(Arc::clone(directory), options());
        assert!(matches!(second, Err(PersistenceError::LockFailed { .. })), "{kind:?}");
        wal.flush().expect("flushes");
        let reader = WalReader::<()>::new(Arc::clone(directory));
        assert_eq!(reader.replay_bytes_best_effort().expect("readers need no lock").len(), 1, "{kind:?}");
        drop(wal);
        assert_eq!(WalWriter::<()>::open(Arc::clone(directory)).expect("free").next_entry_id(), 2);
    });
}

#[test]
fn asking_for_stable_storage_is_kept_or_refused_and_poisons_nothing() {
    on_every_backend(|kind, directory| {
        let mut wal = WalWriter::<()>::open_with(Arc::clone(directory), options()).expect("opens");
        wal.append_bytes(&payload(1)).expect("appends");
        match wal.flush_and_sync() {
            Ok(()) => assert!(kind.is_durable() && wal.durable_entry_id() == 1),
            Err(PersistenceError::NotSupported { .. }) => assert!(!kind.is_durable()),
            Err(error) => panic!("{kind:?}: {error}"),
        }
        assert_eq!(wal.append_bytes(&payload(2)).expect("still works"), 2);
        wal.close().expect("closes");
        assert_eq!(read_log(directory), 2);
    });
}

#[test]
fn a_directory_that_vanished_and_a_file_in_its_place_are_errors_never_empty_logs() {
    on_every_backend(|kind, directory| {
        assert!(
            WalWriter::<()>::resume(Arc::clone(directory)).expect_err("no log").is_not_found(),
            "{kind:?}"
        );
        assert!(!directory.exists("wal"), "{kind:?}: something was created where a log was expected");
        directory.create_file("wal").expect("creates").write_all(b"no folder").expect("writes");
        let reader = WalReader::<()>::new(Arc::clone(directory));
        assert!(reader.replay_bytes_best_effort().is_err(), "{kind:?}");
        assert!(WalWriter::<()>::open(Arc::clone(directory)).is_err(), "{kind:?}");
    });
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = root.path().join("mount");
    let directory: Arc<dyn Directory> = FsDirectory::arc(&path).expect("opens");
    write_log(&directory, 3);
    std::fs::remove_dir_all(&path).expect("removes");
    let error =
        WalReader::<()>::new(Arc::clone(&directory)).replay_bytes_best_effort().expect_err("it is gone");
    assert!(!error.is_not_found(), "a vanished root is no missing log: {error}");
    assert!(WalWriter::<()>::open(directory).is_err());
    assert!(!path.exists(), "nothing was created in place of what vanished");
}

#[test]
fn files_that_are_none_of_ours_are_named() {
    on_every_backend(|kind, directory| {
        write_log(directory, 3);
        let next = "wal/wal_9.log";
        let put =
            |bytes: &[u8]| directory.create_file(next).expect("creates").write_all(bytes).expect("writes");
        let read = || WalReader::<()>::new(Arc::clone(directory)).replay_bytes_best_effort();
        put(&[b'x'; 2000]);
        assert!(matches!(read(), Err(PersistenceError::Format { .. })), "{kind:?}: {:?}", read());
        put(b"short");
        assert!(matches!(read(), Err(PersistenceError::Format { .. })), "{kind:?}");
        // A segment of another log.
        let other = MemoryDirectory::arc();
        let stranger = WalOptions { environment: Arc::new(SeededEnvironment::new(99)), ..options() };
        let mut wal =
            WalWriter::<(), MemoryDirectory>::open_with(Arc::clone(&other), stranger).expect("opens");
        wal.append_bytes(b"x").expect("appends");
        drop(wal);
        let mut bytes = Vec::new();
        other.open_file("wal/wal_1.log").expect("opens").read_to_end(&mut bytes).expect("reads");
        put(&bytes);
        assert!(read().expect_err("foreign").is_corruption(), "{kind:?}");
        // A later version, well-formed.
        bytes[8] = 2;
        let crc = crc32(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
        put(&bytes);
        let error = read().expect_err("a later version");
        assert!(error.to_string().contains("newer"), "{kind:?}: {error}");
        // An empty file was prepared and never begun.
        put(&[]);
        assert_eq!(read().expect("reads").len(), 3, "{kind:?}");
        directory.delete(next).expect("deletes");
        directory.create_dir_all(next).expect("creates");
        assert!(read().is_err(), "{kind:?}: a directory where a segment should be");
    });
}

/// CRC-32, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[test]
fn truncation_keeps_what_carries_the_ids_and_readers_go_on() {
    on_every_backend(|kind, directory| {
        write_log(directory, 60);
        let maintenance = WalMaintenance::new(Arc::clone(directory));
        let ranges = maintenance.segment_ranges_strict().expect("ranges");
        assert!(ranges.len() > 4, "{kind:?}");
        assert!(ranges.windows(2).all(|pair| pair[0].end_entry_id + 1 == pair[1].start_entry_id));
        let reader = WalReader::<()>::new(Arc::clone(directory));
        let mut next = 1;
        let visit = |entry_id, bytes: &[u8]| {
            assert_eq!((entry_id, bytes), (next, &payload(entry_id)[..]), "{kind:?}");
            if entry_id == 5 {
                assert!(maintenance.truncate_prefix(40).expect("truncates") > 0);
            }
            next += 1;
            Ok(())
        };
        let summary = reader.replay_bytes_from(1, WalReplayMode::Strict, visit).expect("not disturbed");
        assert_eq!(summary.entries, 60, "{kind:?}");
        let left = maintenance.segment_ranges_strict().expect("ranges");
        let needed: Vec<_> = ranges.into_iter().filter(|range| range.end_entry_id > 40).collect();
        assert_eq!(left, needed, "{kind:?}: exactly what holds nothing behind entry 40 is gone");
        maintenance.truncate_prefix(u64::MAX).expect("truncates");
        assert_eq!(
            WalWriter::<()>::open(Arc::clone(directory)).expect("opens").next_entry_id(),
            61,
            "{kind:?}"
        );
    });
}

#[test]
fn record_logs_are_locked_continued_and_read_alike() {
    on_every_backend(|kind, directory| {
        for round in 0..3u8 {
            let mut log = RecordLogWriter::new(Arc::clone(directory), "deep/records");
            log.append_batch_bytes(&[vec![round; 10], vec![], vec![round; 2000]]).expect("appends");
            let mut second = RecordLogWriter::new(Arc::clone(directory), "deep/records");
            assert!(
                matches!(second.append_bytes(b"x"), Err(PersistenceError::LockFailed { .. })),
                "{kind:?}"
            );
            log.close().expect("closes");
        }
        let reader = RecordLogReader::new(Arc::clone(directory), "deep/records");
        let records = reader.read_all(RecordLogReadMode::Strict).expect("reads");
        assert_eq!(records.len(), 9, "{kind:?}");
        assert_eq!(records[8].payload, vec![2; 2000]);
    });
}

#[test]
fn commit_files_give_buffers_back_and_refuse_what_they_cannot_keep() {
    on_every_backend(|kind, directory| {
        let how = FileOptions::create_new().aligned(512).zero_filled(8192);
        let file = open_commit_file(directory.as_ref(), "file", &how).expect("opens");
        assert_eq!(file.size().expect("size"), 8192, "{kind:?}");
        let commit = |effect, offset| Commit {
            id: 1,
            offset,
            buffer: CommitBuffer::from_slice(&[7; 512]),
            range: 0..512,
            effect,
        };
        let (result, buffer) = file.commit(commit(Effect::Flushed, 512));
        result.expect("flushes");
        assert_eq!(buffer.expect("comes back").len(), 512);
        let (result, buffer) = file.commit(commit(Effect::Durable, 1024));
        assert!(buffer.is_some(), "{kind:?}");
        match result {
            Ok(()) => assert!(kind.is_durable()),
            Err(PersistenceError::NotSupported { .. }) => assert!(!kind.is_durable()),
            Err(error) => panic!("{kind:?}: {error}"),
        }
        let beyond =
            Commit { id: 2, offset: 0, buffer: CommitBuffer::new(), range: 0..512, effect: Effect::Flushed };
        assert!(file.commit(beyond).0.is_err(), "{kind:?}");
        file.commit(commit(Effect::Flushed, 2048)).0.expect("a refusal poisons nothing");
        file.set_size(4096).expect("cuts");
        drop(file);
        let mut bytes = Vec::new();
        directory.open_file("file").expect("opens").read_to_end(&mut bytes).expect("reads");
        assert_eq!(
            (bytes.len(), &bytes[512..1024], &bytes[2048..2560]),
            (4096, &[7; 512][..], &[7; 512][..]),
            "{kind:?}"
        );
    });
}
