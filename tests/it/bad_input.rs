//! What is no log of ours, or may not be looked at: a clear error from everything that opens, and nothing
//! changed by it.
#![cfg(feature = "postcard")]

use crate::support::skip;
use durability::backends::{Backend, io_uring_support};
use durability::checkpoint::CheckpointFile;
use durability::recordlog::{RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::recover::{RecoveryOptions, recover_with_wal};
use durability::walog::{WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{DurableDirectory, FsDirectory, PersistenceError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

type Dir = Arc<dyn DurableDirectory>;

fn backends() -> Vec<Backend> {
    match io_uring_support() {
        Ok(()) => vec![Backend::Std, Backend::IoUring],
        Err(reason) => {
            skip(&format!("io_uring: {reason}"));
            vec![Backend::Std]
        }
    }
}

/// A log of ten entries in three segments or more.
fn make(root: &Path) {
    let options = WalOptions { segment_bytes_max: 3000, preallocate_bytes: 0, ..WalOptions::default() };
    let directory = FsDirectory::arc(root).expect("opens");
    let mut wal = WalWriter::<u64, FsDirectory>::open_with(directory, options).expect("opens");
    for number in 1..=10 {
        assert_eq!(wal.append_durable(&number).expect("commits"), number);
    }
    wal.close().expect("closes");
}

/// Everything below a directory but the locks, which openers may make.
fn everything(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).expect("lists") {
        let path = entry.expect("an entry").path();
        let name = path.display().to_string();
        if path.is_dir() {
            found.insert(name, Vec::new());
            found.extend(everything(&path));
        } else if !name.ends_with(".lock") {
            found.insert(name, std::fs::read(&path).expect("reads"));
        }
    }
    found
}

/// Opens a log in every way there is; the errors, by who answered them.
fn open_in_every_way(directory: &Dir) -> Vec<(&'static str, Result<u64, PersistenceError>)> {
    let last = |wal: Result<WalWriter<u64, dyn DurableDirectory>, PersistenceError>| {
        wal.map(|wal| wal.last_entry_id())
    };
    let reader = WalReader::<u64, _>::new(Arc::clone(directory));
    let read = reader.replay_bytes_from(1, WalReplayMode::BestEffortTail, |_, _| Ok(()));
    let recovered = recover_with_wal::<u64, u64, u64, _, _>(
        Arc::clone(directory),
        None,
        RecoveryOptions::best_effort().or_new(),
        |checkpoint| checkpoint.unwrap_or(0),
        |sum, _, number| *sum += number,
    );
    vec![
        ("reading", read.map(|summary| summary.end.last_entry_id)),
        ("recovering", recovered.map(|recovered| recovered.last_entry_id)),
        ("resuming", last(WalWriter::resume(Arc::clone(directory)))),
        ("resuming after a crash", last(WalWriter::resume_after_crash(Arc::clone(directory)))),
        ("opening", last(WalWriter::open(Arc::clone(directory)))),
    ]
}

#[test]
fn what_is_none_of_ours_is_named_by_everything_that_opens_and_nothing_is_changed() {
    let other = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    make(other.path());
    let foreign = std::fs::read(other.path().join("wal/wal_1.log")).expect("reads");
    let mut later = foreign.clone();
    later[8] = 2;
    let crc = crc32fast_of(&later[..508]);
    later[508..512].copy_from_slice(&crc.to_le_bytes());
    let bad: [(&str, Option<&[u8]>); 5] = [
        ("a foreign file", Some(&[b'x'; 3000])),
        ("a short file", Some(b"hello")),
        ("a segment of another log", Some(&foreign)),
        ("a later version", Some(&later)),
        ("a directory", None),
    ];
    for backend in backends() {
        for (what, contents) in bad {
            for name in ["wal/wal_1.log", "wal/wal_2.log", "wal/wal_99.log"] {
                let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
                make(root.path());
                let (place, aside) = (root.path().join(name), root.path().join("aside"));
                let was_there = std::fs::rename(&place, &aside).is_ok();
                match contents {
                    Some(bytes) => std::fs::write(&place, bytes).expect("writes"),
                    None => std::fs::create_dir(&place).expect("makes"),
                }
                let before = everything(root.path());
                let directory = backend.open(root.path()).expect("opens").directory;
                for (who, answer) in open_in_every_way(&directory) {
                    let context = format!("{backend}, {what} as {name}, {who}");
                    let error = answer.expect_err(&context);
                    assert!(!error.is_not_found(), "{context}: {error}");
                    assert!(error.to_string().contains(name), "{context} names it: {error}");
                    assert_eq!(everything(root.path()), before, "{context}");
                }
                drop(directory);
                let _ = std::fs::remove_dir(&place).or_else(|_| std::fs::remove_file(&place));
                if was_there {
                    std::fs::rename(&aside, &place).expect("puts it back");
                }
                let directory = backend.open(root.path()).expect("opens").directory;
                for (who, answer) in open_in_every_way(&directory) {
                    assert_eq!(answer.expect(who), 10, "{what} as {name}: nothing was lost");
                }
            }
        }
    }
}

/// CRC-32, bit by bit.
fn crc32fast_of(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn a_record_log_that_is_none_is_refused_and_not_written() {
    for contents in [&[b'x'; 2000][..], b"hello", &[0x44, 0x55, 0x52, 0x41, 0x57, 0x41, 0x4c, 0x1a]] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        std::fs::write(root.path().join("records"), contents).expect("writes");
        let directory = FsDirectory::arc(root.path()).expect("opens");
        let reader = RecordLogReader::new(Arc::clone(&directory), "records");
        let read = reader.read_all(RecordLogReadMode::BestEffort).map(drop);
        assert!(matches!(read, Err(PersistenceError::Format { .. })), "{read:?}");
        let appended = RecordLogWriter::new(Arc::clone(&directory), "records").append_bytes(b"x");
        assert!(matches!(appended, Err(PersistenceError::Format { .. })), "{appended:?}");
        assert_eq!(std::fs::read(root.path().join("records")).expect("reads"), contents);
    }
}

/// In the place of a checkpoint that is needed: named by recovery, by publishing's reader and by looking inside, never
/// taken for none.
#[test]
fn what_is_no_checkpoint_is_named_where_one_is_expected() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    make(root.path());
    let segment = std::fs::read(root.path().join("wal/wal_1.log")).expect("reads");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    CheckpointFile::new(Arc::clone(&directory)).write_bytes("whole", 3, &[1; 700]).expect("writes");
    let whole = std::fs::read(root.path().join("whole")).expect("reads");
    let mut later = whole.clone();
    later[8] = 2;
    let crc = crc32fast_of(&later[..508]);
    later[508..512].copy_from_slice(&crc.to_le_bytes());
    let bad: [(&str, Option<&[u8]>); 7] = [
        ("an empty file", Some(&[])),
        ("zeros", Some(&[0; 2000])),
        ("a foreign file", Some(&[b'x'; 3000])),
        ("a segment", Some(&segment)),
        ("a later version", Some(&later)),
        ("half of one", Some(&whole[..whole.len() / 2])),
        ("a directory", None),
    ];
    for backend in backends() {
        for (what, contents) in bad {
            let place = root.path().join("state");
            match contents {
                Some(bytes) => std::fs::write(&place, bytes).expect("writes"),
                None => std::fs::create_dir(&place).expect("makes"),
            }
            let before = everything(root.path());
            let directory = backend.open(root.path()).expect("opens").directory;
            let options = RecoveryOptions::best_effort().or_new();
            let recovered = recover_with_wal::<u64, u64, u64, _, _>(
                Arc::clone(&directory),
                Some("state"),
                options,
                |checkpoint| checkpoint.unwrap_or(0),
                |sum, _, number| *sum += number,
            );
            let error = recovered.map(|recovered| recovered.last_entry_id).expect_err(what);
            assert!(!error.is_not_found(), "{backend}, {what}: {error}");
            assert!(
                !matches!(error, PersistenceError::MissingCheckpoint { .. }),
                "{backend}, {what}: {error}"
            );
            assert!(error.to_string().contains("state"), "{backend}, {what} is named: {error}");
            assert_eq!(everything(root.path()), before, "{backend}, {what}");
            let _ = std::fs::remove_dir(&place).or_else(|_| std::fs::remove_file(&place));
        }
    }
}

#[cfg(unix)]
mod permissions {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    const CHILD: &str = "DURABILITY_BAD_INPUT_CHILD";
    /// Whom no file belongs to.
    const NOBODY: u32 = 65534;

    fn allow(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("sets the mode");
    }

    /// The child's part, as a user who may not do everything: every opener says that it was not allowed to.
    #[test]
    fn child_without_permission() {
        let Some(child) = std::env::var_os(CHILD).and_then(|text| text.into_string().ok()) else { return };
        let (root, may_read) = child.split_once('|').expect("what to expect");
        for backend in backends() {
            let directory = backend.open(root).expect("the root may be opened").directory;
            for (who, answer) in open_in_every_way(&directory) {
                match (who, answer) {
                    ("reading" | "recovering", Ok(last)) if may_read == "yes" => assert_eq!(last, 10),
                    ("recovering", Ok(0)) if may_read == "nothing is there" => {}
                    ("reading" | "resuming" | "resuming after a crash", Err(error))
                        if may_read == "nothing is there" =>
                    {
                        assert!(error.is_not_found(), "{backend}, {root}, {who}: {error}");
                    }
                    (_, Err(PersistenceError::Io { source, .. }))
                        if source.kind() == std::io::ErrorKind::PermissionDenied => {}
                    (_, other) => panic!("{backend}, {root}, {who}: {other:?}"),
                }
            }
        }
        println!("as it should be");
    }

    fn as_nobody(root: &Path, may_read: &str) -> Option<String> {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "bad_input::permissions::child_without_permission", "--nocapture"]);
        command.env(CHILD, format!("{}|{may_read}", root.display()));
        command.uid(NOBODY).gid(NOBODY);
        let output = command.output().ok()?;
        Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    #[test]
    fn a_log_that_may_not_be_read_or_written_is_a_clear_error_and_nothing_is_changed() {
        let root = tempfile::tempdir_in(std::env::temp_dir()).expect("a directory");
        allow(root.path(), 0o755);
        make(root.path());
        let (wal, segment) = (root.path().join("wal"), root.path().join("wal/wal_1.log"));
        let before = everything(root.path());
        let cases: [(&Path, u32, &str); 4] = [
            (&wal, 0o000, "no"),
            (&segment, 0o000, "no"),
            // Everything may be read, nothing be written.
            (&wal, 0o555, "yes"),
            (root.path(), 0o555, "yes"),
        ];
        for (path, mode, may_read) in cases {
            allow(path, mode);
            let said = as_nobody(root.path(), may_read);
            allow(path, 0o755);
            let Some(said) = said else { return skip("another user cannot be had; needs root") };
            assert!(said.contains("as it should be"), "{} with mode {mode:o}: {said}", path.display());
            assert_eq!(everything(root.path()), before, "{} with mode {mode:o}", path.display());
        }
        // Where nothing may be made, a new log is refused, and not taken for one without entries.
        std::fs::remove_dir_all(&wal).expect("removes");
        allow(root.path(), 0o555);
        let said = as_nobody(root.path(), "nothing is there").expect("as before");
        assert!(said.contains("as it should be"), "{said}");
        assert!(everything(root.path()).is_empty(), "nothing was made");
    }
}
