//! What only a real file system shows: vanished roots, links, written blocks, a full disk.

use super::*;
use crate::backends::tests::commit;
use crate::storage::Effect;

fn directory() -> (tempfile::TempDir, FsDirectory) {
    let scratch = tempfile::tempdir().expect("scratch");
    let directory = FsDirectory::new(scratch.path().join("root")).expect("root");
    (scratch, directory)
}

#[test]
fn new_makes_the_root_and_existing_does_not() {
    let scratch = tempfile::tempdir().expect("scratch");
    let root = scratch.path().join("a/b/c");
    let error = FsDirectory::existing(&root).expect_err("missing");
    assert!(error.is_not_found(), "{error}");
    assert!(!scratch.path().join("a").exists());
    FsDirectory::new(&root).expect("made");
    FsDirectory::new(&root).expect("again");
    FsDirectory::arc(&root).expect("shared").create_file("f").map(drop).expect("create");
    assert_eq!(FsDirectory::existing(&root).expect("open").list_dir("").expect("list"), ["f"]);
    for not_a_directory in [root.join("f"), root.join("f/x")] {
        assert!(FsDirectory::new(&not_a_directory).is_err_and(|error| !error.is_not_found()));
        assert!(FsDirectory::existing(&not_a_directory).is_err_and(|error| !error.is_not_found()));
    }
}

/// Every operation that would find nothing, or make something, says that the root is gone.
#[cfg(unix)]
fn assert_gone(directory: &FsDirectory) {
    fn gone<T>(result: PersistenceResult<T>) {
        match result {
            Err(PersistenceError::Io { path, .. }) if path.ends_with("root") => {}
            Err(error) => panic!("another error: {error}"),
            Ok(_) => panic!("nothing noticed"),
        }
    }
    gone(directory.try_exists("none"));
    assert!(!directory.exists("none"));
    gone(directory.list_dir(""));
    gone(directory.list_dir("wal"));
    gone(directory.open_file("none").map(drop));
    gone(directory.open_at("none").map(drop));
    gone(directory.create_file("f").map(drop));
    gone(directory.append_file("f").map(drop));
    gone(directory.create_dir_all(""));
    gone(directory.create_dir_all("wal"));
    gone(directory.create_dir_all_durable("wal"));
    gone(directory.atomic_write("f", b"x"));
    gone(directory.atomic_write_durable("f", b"x"));
    gone(directory.atomic_rename("f", "g"));
    gone(directory.delete("none"));
    gone(directory.delete_durable("none"));
    gone(directory.sync_file("none"));
    gone(directory.sync_parent_dir("none"));
    gone(directory.sync_parent_dir("none/f"));
    gone(directory.lock(".lock", Duration::ZERO));
    gone(directory.await_unlocked("none", Duration::ZERO));
    gone(directory.open_durable_file("f", &FileOptions::create_new()));
    gone(directory.open_durable_file("none", &FileOptions::existing()));
}

#[test]
#[cfg(unix)]
fn a_vanished_root_is_neither_empty_nor_made_again() {
    let (scratch, directory) = directory();
    let (root, aside) = (scratch.path().join("root"), scratch.path().join("aside"));
    directory.create_dir_all("wal").expect("create");
    fs::rename(&root, &aside).expect("moved away");
    assert_gone(&directory);
    assert!(!root.exists(), "nothing may make the root again");
    fs::create_dir(&root).expect("as an empty mount point would be");
    assert_gone(&directory);
    assert_eq!(fs::read_dir(&root).expect("list").count(), 0);
    fs::remove_dir(&root).expect("remove");
    fs::rename(&aside, &root).expect("back");
    assert_eq!(directory.list_dir("").expect("list"), ["wal"]);
}

#[test]
#[cfg(unix)]
fn a_link_is_deleted_and_not_what_it_points_to() {
    let (scratch, directory) = directory();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).expect("create");
    fs::write(outside.join("precious"), b"x").expect("write");
    std::os::unix::fs::symlink(&outside, directory.root().join("link")).expect("link");
    std::os::unix::fs::symlink("nowhere", directory.root().join("dangling")).expect("link");
    assert_eq!(directory.list_dir("link").expect("followed"), ["precious"]);
    assert!(directory.try_exists("dangling").expect("look"), "a link without a target is not absence");
    assert!(directory.open_at("dangling").is_err_and(|error| error.is_not_found()));
    directory.delete("link").expect("delete");
    directory.delete_durable("dangling").expect("delete");
    assert_eq!(directory.list_dir("").expect("list"), Vec::<String>::new());
    assert!(outside.join("precious").exists());
    std::os::unix::fs::symlink("/dev/null", directory.root().join("device")).expect("link");
    assert!(directory.open_at("device").is_err(), "a device is no file");
    assert!(directory.open_commit_file("device", &FileOptions::existing()).is_err());
}

#[test]
#[cfg(target_os = "linux")]
fn names_that_are_not_utf8_are_skipped_and_hide_nothing() {
    use std::os::unix::ffi::OsStrExt;
    let (_scratch, directory) = directory();
    let name = std::ffi::OsStr::from_bytes(b"wal_\xff");
    fs::write(directory.root().join(name), b"").expect("write");
    fs::write(directory.root().join("wal_1.log"), b"").expect("write");
    assert_eq!(directory.list_dir("").expect("list"), ["wal_1.log"]);
}

#[test]
fn durable_operations_do_what_the_plain_ones_do() {
    let (_scratch, directory) = directory();
    for _ in 0..2 {
        directory.create_dir_all_durable("a/b").expect("idempotent");
        directory.create_dir_all_durable("").expect("the root");
    }
    directory.atomic_write_durable("a/f", b"1").expect("write");
    directory.atomic_rename_durable("a/f", "a/b/g").expect("rename across directories");
    directory.atomic_write_durable("a/b/g", b"2").expect("replace");
    directory.sync_file("a/b/g").expect("sync");
    directory.sync_file("a/b").expect("a directory is synced as one");
    directory.sync_parent_dir("a/b/g").expect("sync");
    directory.sync_parent_dir("new").expect("the root");
    assert_eq!(fs::read(directory.root().join("a/b/g")).expect("read"), b"2");
    assert_eq!(directory.list_dir("a").expect("list"), ["b"]);
    directory.delete_durable("a/b").expect("recursively");
    assert!(directory.delete_durable("a/b").is_err_and(|error| error.is_not_found()));
    assert!(directory.sync_file("a/b").is_err_and(|error| error.is_not_found()));
    assert!(directory.sync_parent_dir("no/f").is_err_and(|error| error.is_not_found()));
    sync_parent_of_path(&directory.root().join("a")).expect("an OS path");
    assert!(sync_parent_of_path(std::path::Path::new("name_only")).is_ok());
    assert!(sync_parent_of_path(std::path::Path::new("/")).is_err());
}

#[test]
fn durable_commits_and_bare_syncs() {
    let (_scratch, directory) = directory();
    let options = FileOptions::create_new().zero_filled(8192).locked();
    let file = directory.open_durable_file("f", &options).expect("create");
    assert!(file.limits().durable);
    file.commit(commit(1, 512, b"abc", Effect::Durable)).0.expect("commit");
    file.commit(commit(2, 0, b"", Effect::Durable)).0.expect("a sync alone");
    file.set_size(515).expect("cut");
    file.commit(commit(3, 0, b"", Effect::Durable)).0.expect("a sync of the size");
    let bytes = fs::read(directory.root().join("f")).expect("read");
    assert_eq!((bytes.len(), &bytes[512..]), (515, &b"abc"[..]));
}

#[test]
#[cfg(target_os = "linux")]
fn zero_filled_blocks_are_written_not_only_reserved() {
    use std::os::unix::fs::MetadataExt;
    let (_scratch, directory) = directory();
    let bytes: u64 = (3 << 20) + 777;
    let file =
        directory.open_for_commits("f", &FileOptions::create_new().zero_filled(bytes)).expect("create");
    let metadata = file.metadata().expect("metadata");
    assert_eq!(metadata.len(), bytes);
    assert!(metadata.blocks() * 512 >= bytes, "{} blocks", metadata.blocks());
    // A reserved extent that nobody wrote counts as a hole here.
    let hole = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekHole).expect("seek");
    assert_eq!(hole as u64, bytes, "the first hole is the end of the file");
    assert!(fs::read(directory.root().join("f")).expect("read").iter().all(|byte| *byte == 0));
}

#[test]
#[cfg(target_os = "linux")]
fn what_no_file_can_hold_is_refused_before_a_zero_is_written() {
    use std::os::unix::fs::MetadataExt;
    let (_scratch, directory) = directory();
    let file = directory.open_for_commits("f", &FileOptions::create_new()).expect("create");
    super::file::reserve_file(&file, "f", 4096).expect("a block");
    if file.metadata().expect("metadata").blocks() == 0 {
        return crate::backends::skip("space cannot be asked for in the scratch directory");
    }
    super::file::reserve_file(&file, "f", 1 << 62).expect_err("no disk is so large");
    assert_eq!(file.metadata().expect("metadata").len(), 0);
}

/// As a child of this process holds it that is just being started, and has not let go of what it inherited.
#[test]
#[cfg(unix)]
fn a_file_that_is_let_go_of_in_a_moment_is_waited_for() {
    let (_scratch, directory) = directory();
    let held = directory.open_for_commits("f", &FileOptions::create_new().locked()).expect("create");
    std::thread::scope(|scope| {
        let (begins, begun) = std::sync::mpsc::channel();
        let opens = scope.spawn(move || {
            begins.send(()).expect("is listened to");
            directory.open_for_commits("f", &FileOptions::existing().locked()).map(drop)
        });
        begun.recv().expect("it begins");
        (0..1000).for_each(|_| std::thread::yield_now());
        drop(held);
        opens.join().expect("no panic").expect("it waits");
    });
}

/// A file system of two MiB, or a loud skip.
#[cfg(target_os = "linux")]
struct TinyDisk {
    mount_point: tempfile::TempDir,
}

#[cfg(target_os = "linux")]
impl TinyDisk {
    fn mount() -> Option<Self> {
        let mount_point = tempfile::tempdir().expect("scratch");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(mount_point.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { mount_point }),
            other => {
                crate::backends::skip(&format!("a small tmpfs cannot be mounted here: {other:?}"));
                None
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.mount_point.path()).output();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_out_of_space_and_leaves_nothing_behind() {
    let Some(disk) = TinyDisk::mount() else { return };
    let directory = FsDirectory::new(disk.mount_point.path()).expect("root");
    let too_large = FileOptions::create_new().zero_filled(64 << 20);
    let error = directory.open_durable_file("f", &too_large).expect_err("too large");
    assert!(error.is_out_of_space(), "{error}");
    assert!(!directory.exists("f"), "the new file is removed");

    fs::write(directory.root().join("old"), [7; 100]).expect("write");
    let existing = FileOptions { create_new: false, ..too_large };
    let error = directory.open_durable_file("old", &existing).expect_err("too large");
    assert!(error.is_out_of_space(), "{error}");
    assert_eq!(fs::read(directory.root().join("old")).expect("read"), [7; 100], "an old file is unchanged");

    // The same where nothing can be reserved, so that the disk is full in the middle of the zeros.
    let old = OpenOptions::new().write(true).open(directory.root().join("old")).expect("open");
    let filled = file::zero_fill_or_restore(&old, "old", 100..64 << 20, |_, _| Ok(()));
    let error = filled.expect_err("too large");
    assert!(matches!(error, PersistenceError::OutOfSpace { offset: Some(1..), .. }), "{error}");
    assert_eq!(fs::read(directory.root().join("old")).expect("read"), [7; 100], "cut back");

    let error = directory.atomic_write_durable("old", &vec![1; 4 << 20]).expect_err("too large");
    assert!(error.is_out_of_space(), "{error}");
    assert_eq!(directory.list_dir("").expect("list"), ["old"], "the temporary is removed");
    let half = FileOptions::create_new().zero_filled(1 << 20);
    directory.open_durable_file("half", &half).expect("the space was given back");
}

#[test]
#[cfg(target_os = "linux")]
fn a_failed_commit_closes_the_file_for_good() {
    let Some(disk) = TinyDisk::mount() else { return };
    let directory = FsDirectory::new(disk.mount_point.path()).expect("root");
    let file = directory.open_durable_file("f", &FileOptions::create_new()).expect("create");
    let (result, buffer) = file.commit(commit(1, 0, &vec![1; 4 << 20], Effect::Durable));
    assert!(result.expect_err("full").is_out_of_space());
    assert!(buffer.is_some(), "the buffer comes back");
    let size = file.size().expect("size");
    for id in 2..4 {
        match file.submit(commit(id, 0, b"x", Effect::Flushed)) {
            crate::storage::Submitted::Refused {
                error: PersistenceError::Poisoned { cause, .. }, ..
            } => {
                assert!(cause.is_out_of_space());
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(file.set_size(0), Err(PersistenceError::Poisoned { .. })));
    }
    assert_eq!(file.size().expect("size"), size);
}

#[test]
#[cfg(target_os = "linux")]
fn an_unmounted_root_is_not_an_empty_log() {
    let Some(disk) = TinyDisk::mount() else { return };
    let inside = disk.mount_point.path().join("root");
    let directory = FsDirectory::new(&inside).expect("root");
    directory.atomic_write_durable("f", b"x").expect("write");
    drop(disk);
    assert_gone(&directory);
    assert!(!inside.exists());
}

#[test]
fn a_temporary_of_somebody_else_is_left_alone() {
    let (_scratch, directory) = directory();
    // The next names that this process would use, as an earlier process of the same id left them. Other
    // tests take names too, so a few of them.
    let probe = temporary_path("f");
    let mut parts = probe.splitn(4, '-');
    let process = parts.nth(1).expect("process");
    let number: u64 = parts.next().expect("number").parse().expect("number");
    let left = |number: u64| directory.root().join(format!(".tmp-{process}-{number}-f"));
    let numbers = number + 1..number + 200;
    for number in numbers.clone() {
        fs::write(left(number), b"theirs").expect("write");
    }
    directory.atomic_write("f", b"ours").expect("write");
    assert_eq!(fs::read(directory.root().join("f")).expect("read"), b"ours");
    for number in numbers {
        assert_eq!(fs::read(left(number)).expect("still there"), b"theirs");
    }
}

#[test]
#[cfg(unix)]
fn a_refused_lock_names_the_holder() {
    let (_scratch, directory) = directory();
    let _held = directory.lock(".lock", Duration::ZERO).expect("lock");
    for (text, expected) in [
        ("4242\n", "held by process 4242, as the lock file says"),
        ("", "held by somebody else"),
        ("no number at all, and more of it than fits", "held by somebody else"),
    ] {
        fs::write(directory.root().join(".lock"), text).expect("write");
        match directory.lock(".lock", Duration::ZERO) {
            Err(PersistenceError::LockFailed { resource, reason }) => {
                assert_eq!((resource.as_str(), reason.as_str()), (".lock", expected));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
#[cfg(unix)]
fn a_lock_file_that_lost_its_name_is_not_trusted() {
    let (_scratch, directory) = directory();
    let first = directory.lock(".lock", Duration::ZERO).expect("lock");
    let second = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| directory.lock(".lock", Duration::from_secs(5)));
        std::thread::sleep(Duration::from_millis(20));
        // Somebody tidies up. The waiter must end with a lock on the file that has the name now.
        directory.delete(".lock").expect("delete");
        waiting.join().expect("no panic").expect("lock")
    });
    assert!(matches!(directory.lock(".lock", Duration::ZERO), Err(PersistenceError::LockFailed { .. })));
    drop((first, second));
}

#[cfg(all(unix, not(target_vendor = "apple"), not(target_os = "redox")))]
#[test]
fn a_pipe_in_the_place_of_a_file_is_an_error_and_nothing_waits_for_its_other_end() {
    let scratch = tempfile::tempdir().expect("scratch");
    let directory = FsDirectory::new(scratch.path()).expect("opens");
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&scratch.path().join("pipe"), mode).expect("makes a pipe");
    let (tell, told) = std::sync::mpsc::channel();
    // Left alone where it hangs; the test ends all the same.
    std::thread::spawn(move || {
        let refused = [
            directory.open_at("pipe").map(drop),
            directory.open_file("pipe").map(drop),
            directory.sync_file("pipe"),
            directory.await_unlocked("pipe", Duration::ZERO),
            directory.open_commit_file("pipe", &FileOptions::existing()).map(drop),
        ];
        tell.send(refused.iter().all(|result| matches!(result, Err(PersistenceError::Io { .. }))))
    });
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(true));
}
