//! What every backend answers alike; each test runs over both directories of this module.

use super::memory::MemoryDirectory;
use super::std_fs::FsDirectory;
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{Commit, CommitBuffer, CommitFile, Directory, Effect, FileOptions, Submitted, Wait};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

fn on_each(test: impl Fn(&dyn Directory)) {
    let scratch = tempfile::tempdir().expect("scratch");
    test(&FsDirectory::new(scratch.path()).expect("root"));
    test(&MemoryDirectory::new());
}

pub(super) fn commit(id: u64, offset: u64, bytes: &[u8], effect: Effect) -> Commit {
    Commit { id, offset, buffer: CommitBuffer::from_slice(bytes), range: 0..bytes.len(), effect }
}

fn put(directory: &dyn Directory, path: &str, bytes: &[u8]) {
    directory.create_file(path).expect(path).write_all(bytes).expect(path);
}

fn get(directory: &dyn Directory, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    directory.open_file(path).expect(path).read_to_end(&mut bytes).expect(path);
    bytes
}

/// The kind of the operating system's error, whatever variant carries it.
#[track_caller]
fn kind<T>(result: PersistenceResult<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => std::io::Error::from(error).kind(),
    }
}

#[track_caller]
fn refused_path<T>(result: PersistenceResult<T>) {
    match result {
        Err(PersistenceError::InvalidConfig { parameter: "path", .. }) => {}
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn unacceptable_paths_are_refused_by_every_operation() {
    on_each(|directory| {
        put(directory, "good", b"x");
        for bad in ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "./a", "a\0b", "C:/a", "a\\b"] {
            refused_path(directory.create_file(bad).map(drop));
            refused_path(directory.append_file(bad).map(drop));
            refused_path(directory.open_file(bad).map(drop));
            refused_path(directory.open_at(bad).map(drop));
            refused_path(directory.open_commit_file(bad, &FileOptions::create_new()));
            refused_path(directory.open_commit_file(bad, &FileOptions::existing()));
            refused_path(directory.try_exists(bad));
            assert!(!directory.exists(bad));
            assert!(directory.file_path(bad).is_none());
            refused_path(directory.delete(bad));
            refused_path(directory.atomic_rename(bad, "good"));
            refused_path(directory.atomic_rename("good", bad));
            refused_path(directory.atomic_write(bad, b"x"));
            refused_path(directory.lock(bad, Duration::ZERO));
            refused_path(directory.await_unlocked(bad, Duration::ZERO));
            if !bad.is_empty() {
                refused_path(directory.create_dir_all(bad));
                refused_path(directory.list_dir(bad));
            }
            if let Some(durable) = directory.as_durable() {
                refused_path(durable.open_durable_file(bad, &FileOptions::create_new()));
                refused_path(durable.sync_file(bad));
                refused_path(durable.sync_parent_dir(bad));
                refused_path(durable.durable_sync_file(bad));
                refused_path(durable.durable_sync_parent_dir(bad));
                refused_path(durable.atomic_rename_durable(bad, "good"));
                refused_path(durable.atomic_rename_durable("good", bad));
                refused_path(durable.atomic_write_durable(bad, b"x"));
                refused_path(durable.delete_durable(bad));
                if !bad.is_empty() {
                    refused_path(durable.create_dir_all_durable(bad));
                }
            }
        }
        assert_eq!(directory.list_dir("").expect("list"), ["good"]);
        directory.create_dir_all("").expect("the root is there");
    });
}

#[test]
fn bytes_written_are_the_bytes_read() {
    on_each(|directory| {
        put(directory, "f", b"hello");
        directory.append_file("f").expect("append").write_all(b" world").expect("append");
        assert_eq!(get(directory, "f"), b"hello world");
        let reader = directory.open_at("f").expect("open");
        let mut buffer = [0; 8];
        assert_eq!(reader.size().expect("size"), 11);
        assert_eq!(reader.read_at(6, &mut buffer).expect("read"), 5);
        assert_eq!(&buffer[..5], b"world");
        assert_eq!(reader.read_at(11, &mut buffer).expect("read"), 0);
        assert_eq!(reader.read_at(1 << 40, &mut buffer).expect("read"), 0);
        put(directory, "f", b"short");
        assert_eq!(get(directory, "f"), b"short");
        directory.append_file("new").expect("append").write_all(b"n").expect("append");
        assert_eq!(get(directory, "new"), b"n");
    });
}

#[test]
fn names_behave_like_those_of_a_file_system() {
    on_each(|directory| {
        assert!(directory.create_file("no/f").is_err_and(|error| error.is_not_found()));
        assert!(directory.append_file("no/f").is_err_and(|error| error.is_not_found()));
        assert!(directory.list_dir("no").is_err_and(|error| error.is_not_found()));
        assert!(directory.delete("no").is_err_and(|error| error.is_not_found()));
        assert!(directory.open_at("no").is_err_and(|error| error.is_not_found()));
        assert!(directory.atomic_rename("no", "f").is_err_and(|error| error.is_not_found()));
        directory.create_dir_all("a/b/c").expect("create");
        directory.create_dir_all("a/b/c").expect("again");
        for name in ["a/b/z", "a/b/m", "a/b/é"] {
            put(directory, name, name.as_bytes());
        }
        assert_eq!(directory.list_dir("a/b").expect("list"), ["c", "m", "z", "é"]);
        directory.atomic_rename("a/b/m", "a/b/z").expect("rename");
        assert_eq!(get(directory, "a/b/z"), b"a/b/m");
        assert!(!directory.try_exists("a/b/m").expect("exists") && !directory.exists("a/b/m"));
        assert!(directory.try_exists("a/b").expect("exists") && directory.exists("a/b"));
        let Err(PersistenceError::NotFound { path }) = directory.atomic_rename("a/b/z", "no/z") else {
            panic!("renamed into nowhere");
        };
        assert_eq!(path, "no/z", "the side at fault is named");
        assert!(directory.exists("a/b/z"));
        directory.delete("a").expect("recursively");
        assert_eq!(directory.list_dir("").expect("list"), Vec::<String>::new());
    });
}

#[test]
fn the_wrong_kind_of_name_is_a_clear_error() {
    on_each(|directory| {
        directory.create_dir_all("dir/inner").expect("create");
        put(directory, "file", b"x");
        let windows = cfg!(windows) && directory.file_path("x").is_some();
        if !windows {
            assert_eq!(kind(directory.create_file("dir").map(drop)), ErrorKind::IsADirectory);
            assert_eq!(kind(directory.append_file("dir").map(drop)), ErrorKind::IsADirectory);
            assert_eq!(kind(directory.open_file("dir").map(drop)), ErrorKind::IsADirectory);
            assert_eq!(kind(directory.open_at("dir").map(drop)), ErrorKind::IsADirectory);
            let existing = directory.open_commit_file("dir", &FileOptions::existing());
            assert_eq!(kind(existing), ErrorKind::IsADirectory);
            assert_eq!(kind(directory.lock("dir", Duration::ZERO)), ErrorKind::IsADirectory);
            assert_eq!(kind(directory.await_unlocked("dir", Duration::ZERO)), ErrorKind::IsADirectory);
            assert_eq!(kind(directory.create_file("file/x").map(drop)), ErrorKind::NotADirectory);
            assert_eq!(kind(directory.try_exists("file/x")), ErrorKind::NotADirectory);
            assert_eq!(kind(directory.atomic_rename("file", "dir")), ErrorKind::IsADirectory);
            assert_eq!(kind(directory.atomic_rename("dir", "file")), ErrorKind::NotADirectory);
            assert_eq!(kind(directory.atomic_rename("dir", "dir/inner/x")), ErrorKind::InvalidInput);
            assert_eq!(kind(directory.atomic_write("dir", b"x")), ErrorKind::IsADirectory);
        }
        assert_eq!(kind(directory.list_dir("file")), ErrorKind::NotADirectory);
        assert_eq!(kind(directory.create_dir_all("file")), ErrorKind::NotADirectory);
        assert_eq!(kind(directory.create_dir_all("file/x")), ErrorKind::NotADirectory);
        let taken = directory.open_commit_file("file", &FileOptions::create_new());
        assert_eq!(kind(taken), ErrorKind::AlreadyExists);
        assert!(!directory.exists("file/x"));
        assert_eq!(directory.list_dir("").expect("list"), ["dir", "file"], "nothing is left behind");
        assert_eq!(get(directory, "file"), b"x", "nothing was changed");
    });
}

#[test]
fn an_atomic_write_replaces_the_file_and_leaves_no_temporary() {
    on_each(|directory| {
        directory.atomic_write("f", b"one").expect("write");
        let old = directory.open_at("f").expect("open");
        directory.atomic_write("f", b"two").expect("write");
        assert_eq!(get(directory, "f"), b"two");
        let mut buffer = [0; 3];
        old.read_at(0, &mut buffer).expect("read");
        assert_eq!(&buffer, b"one", "an open handle keeps the bytes it had");
        assert!(directory.atomic_write("no/f", b"x").is_err_and(|error| error.is_not_found()));
        assert_eq!(directory.list_dir("").expect("list"), ["f"]);
    });
}

#[test]
fn commits_land_at_their_offsets() {
    on_each(|directory| {
        let file =
            directory.open_commit_file("f", &FileOptions::create_new().zero_filled(20)).expect("create");
        let mut bytes = commit(7, 4, b"__data__", Effect::Flushed);
        bytes.range = 2..6;
        let (result, buffer) = file.commit(bytes);
        result.expect("commit");
        assert_eq!(&buffer.expect("buffer")[..], b"__data__");
        assert_eq!(file.size().expect("size"), 20);
        let (result, _) = file.commit(commit(8, 24, b"end", Effect::Flushed));
        result.expect("commit");
        let mut expected = vec![0; 27];
        expected[4..8].copy_from_slice(b"data");
        expected[24..].copy_from_slice(b"end");
        assert_eq!(get(directory, "f"), expected, "what nobody wrote is zeros");
        file.set_size(6).expect("cut");
        assert_eq!(get(directory, "f"), b"\0\0\0\0da");
        drop(file);
        let file = directory.open_commit_file("f", &FileOptions::existing().zero_filled(8)).expect("open");
        assert_eq!(get(directory, "f"), b"\0\0\0\0da\0\0", "old bytes stay");
        let again = directory.open_commit_file("f", &FileOptions::existing().zero_filled(3)).expect("open");
        assert_eq!((again.size().expect("size"), file.size().expect("size")), (8, 8), "never cut");
        assert!(
            directory
                .open_commit_file("none", &FileOptions::existing())
                .is_err_and(|error| error.is_not_found())
        );
    });
}

#[track_caller]
fn refusal(submitted: Submitted) -> (PersistenceError, Commit) {
    match submitted {
        Submitted::Refused { commit, error } => (error, commit),
        Submitted::Accepted => panic!("accepted"),
    }
}

#[test]
fn a_refused_commit_changes_nothing_and_comes_back() {
    on_each(|directory| {
        let file = directory.open_commit_file("f", &FileOptions::create_new()).expect("create");
        for range in [3..5, 5..5, Range { start: 2, end: 1 }] {
            let mut outside = commit(1, 0, b"four", Effect::Flushed);
            outside.range = range;
            let (error, commit) = refusal(file.submit(outside));
            assert!(matches!(error, PersistenceError::InvalidConfig { parameter: "range", .. }), "{error}");
            assert_eq!(&commit.buffer[..], b"four");
        }
        for offset in [u64::MAX, u64::MAX - 2, i64::MAX as u64] {
            let (error, _) = refusal(file.submit(commit(1, offset, b"four", Effect::Flushed)));
            assert!(matches!(error, PersistenceError::InvalidConfig { parameter: "offset", .. }), "{error}");
        }
        let in_flight_max = file.limits().in_flight_max as u64;
        for id in 0..in_flight_max {
            let submitted = file.submit(commit(id, id, &[id as u8 + 1], Effect::Flushed));
            assert!(matches!(submitted, Submitted::Accepted));
        }
        let (error, _) = refusal(file.submit(commit(99, 0, b"!", Effect::Flushed)));
        assert!(matches!(error, PersistenceError::InvalidState { .. }), "{error}");
        assert!(matches!(file.set_size(0), Err(PersistenceError::InvalidState { .. })));
        let mut ids = Vec::new();
        while let Some(completion) = file.reap(Wait::Forever).expect("reap") {
            completion.result.expect("commit");
            ids.push(completion.id);
        }
        assert_eq!(ids, (0..in_flight_max).collect::<Vec<_>>());
        assert_eq!(file.size().expect("size"), in_flight_max, "refusals wrote nothing");
        for wait in [Wait::Never, Wait::AtMost(SOON), Wait::Forever] {
            assert!(file.reap(wait).expect("reap").is_none(), "nothing in flight, nothing to wait for");
        }
        let empty = Commit { range: 0..0, ..commit(5, 0, b"", Effect::Flushed) };
        file.commit(empty).0.expect("an empty commit");
    });
}

#[test]
fn open_handles_survive_the_loss_of_their_name() {
    if cfg!(windows) {
        return crate::backends::skip("Windows keeps the names of open files");
    }
    on_each(|directory| {
        let file = directory.open_commit_file("f", &FileOptions::create_new()).expect("create");
        file.commit(commit(1, 0, b"abc", Effect::Flushed)).0.expect("commit");
        let reader = directory.open_at("f").expect("open");
        directory.delete("f").expect("delete");
        file.commit(commit(2, 3, b"def", Effect::Flushed)).0.expect("commit without a name");
        let mut buffer = [0; 9];
        assert_eq!(reader.read_at(0, &mut buffer).expect("read"), 6);
        assert_eq!(&buffer[..6], b"abcdef");
        put(directory, "f", b"another");
        assert_eq!(reader.size().expect("size"), 6);
        directory.atomic_rename("f", "g").expect("rename");
        assert_eq!(get(directory, "g"), b"another");
    });
}

#[track_caller]
fn locked<T: std::fmt::Debug>(result: PersistenceResult<T>, path: &str) -> String {
    match result {
        Err(PersistenceError::LockFailed { resource, reason }) if resource == path => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lock_keeps_the_same_process_out_until_it_is_dropped() {
    on_each(|directory| {
        assert!(directory.lock("no/.lock", Duration::ZERO).is_err_and(|error| error.is_not_found()));
        directory.create_dir_all("wal").expect("create");
        let held = directory.lock("wal/.lock", Duration::ZERO).expect("lock");
        assert!(held.is_exclusive());
        let reason = locked(directory.lock("wal/.lock", Duration::ZERO), "wal/.lock");
        if cfg!(unix) && directory.file_path("x").is_some() {
            assert_eq!(reason, "held by this very process");
        }
        locked(directory.lock("wal/.lock", Duration::from_millis(20)), "wal/.lock");
        let other = directory.lock("other", Duration::ZERO).expect("another name is another lock");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| directory.lock("wal/.lock", SOON));
            std::thread::sleep(Duration::from_millis(20));
            drop(held);
            let taken = waiting.join().expect("no panic").expect("taken over while waiting");
            locked(directory.lock("wal/.lock", Duration::ZERO), "wal/.lock");
            drop(taken);
        });
        drop(other);
        assert!(directory.exists("wal/.lock"), "a lock file is never deleted");
        directory.lock("wal/.lock", SOON).expect("free again");
    });
}

#[test]
fn a_locked_file_keeps_writers_out_and_readers_in() {
    if cfg!(not(unix)) {
        return crate::backends::skip("only Unix locks the files that are written");
    }
    on_each(|directory| {
        let file = directory.open_commit_file("f", &FileOptions::create_new().locked()).expect("create");
        let existing = FileOptions::existing();
        locked(directory.open_commit_file("f", &existing.clone().locked()), "f");
        locked(directory.await_unlocked("f", Duration::from_millis(5)), "f");
        file.commit(commit(1, 0, b"abc", Effect::Flushed)).0.expect("commit");
        assert_eq!(get(directory, "f"), b"abc");
        directory.open_commit_file("f", &existing).expect("who asks for no lock needs none");
        locked(directory.await_unlocked("f", Duration::ZERO), "f");
        drop(file);
        directory.await_unlocked("f", SOON).expect("freed by the drop");
        directory.await_unlocked("f", SOON).expect("and not kept");
        assert!(directory.await_unlocked("none", SOON).is_err_and(|error| error.is_not_found()));
        assert!(!directory.exists("none"));
    });
}

#[test]
fn two_threads_may_drive_one_file() {
    on_each(|directory| {
        let file: Box<dyn CommitFile> =
            directory.open_commit_file("f", &FileOptions::create_new()).expect("create");
        const COMMITS: u64 = 300;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for id in 0..COMMITS {
                    let mut next = commit(id, id * 8, &id.to_le_bytes(), Effect::Flushed);
                    while let Submitted::Refused { commit, error } = file.submit(next) {
                        assert!(matches!(error, PersistenceError::InvalidState { .. }), "{error}");
                        next = commit;
                        std::thread::yield_now();
                    }
                }
            });
            let mut expected = 0;
            while expected < COMMITS {
                if let Some(completion) = file.reap(Wait::AtMost(SOON)).expect("reap") {
                    completion.result.expect("commit");
                    assert_eq!(completion.id, expected);
                    expected += 1;
                }
            }
        });
        assert_eq!(file.size().expect("size"), COMMITS * 8);
    });
}
