//! What is asked of the kernel, seen by letting it fail: filters that belong to one thread answer for it.

use super::std_fs::FsDirectory;
use super::tests::commit;
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::{Commit, CommitBuffer, Directory, DurableDirectory, Effect, FileOptions};
use nix::errno::Errno;
use nix::libc::{SYS_fallocate, SYS_fdatasync, SYS_fsync, SYS_pwrite64};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::fs;
use std::path::{Path, PathBuf};

fn directory() -> (tempfile::TempDir, FsDirectory) {
    let scratch = tempfile::tempdir().expect("scratch");
    let directory = FsDirectory::new(scratch.path().join("root")).expect("root");
    (scratch, directory)
}

/// Every backend that writes to disks.
fn on_every_backend(test: impl Fn(&dyn DurableDirectory, &Path)) {
    let (_scratch, directory) = directory();
    test(&directory, directory.root());
    #[cfg(feature = "io-uring")]
    match super::io_uring::probe() {
        Ok(()) => {
            let root = tempfile::tempdir().expect("scratch");
            let directory = super::io_uring::UringDirectory::new(root.path()).expect("opens");
            test(&directory, root.path());
        }
        Err(reason) => super::skip(&reason.to_string()),
    }
}

/// Which calls fail.
#[derive(Clone, Copy)]
pub(super) enum Which {
    All,
    /// Those of this descriptor.
    Of(u64),
    /// Those of every other one.
    NotOf(u64),
    /// Those that are passed this.
    #[cfg(all(feature = "io-uring", not(durability_shuttle)))]
    With {
        argument: u8,
        value: u64,
    },
}

/// Runs `body` on a thread for which a system call does nothing and answers with an error.
pub(super) fn with_failing<T: Send>(
    call: i64,
    which: Which,
    errno: Errno,
    body: impl FnOnce() -> T + Send,
) -> T {
    let rule = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
        vec![SeccompRule::new(vec![condition.expect("a condition")]).expect("a rule")]
    };
    let rules = match which {
        Which::All => vec![],
        Which::Of(descriptor) => rule(0, SeccompCmpOp::Eq, descriptor),
        Which::NotOf(descriptor) => rule(0, SeccompCmpOp::Ne, descriptor),
        #[cfg(all(feature = "io-uring", not(durability_shuttle)))]
        Which::With { argument, value } => rule(argument, SeccompCmpOp::Eq, value),
    };
    let filtered = || {
        let arch = std::env::consts::ARCH.try_into().expect("a processor that filters are made for");
        let rules = [(call, rules)].into_iter().collect();
        let action = SeccompAction::Errno(errno as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
        let program = BpfProgram::try_from(filter).expect("compiles");
        seccompiler::apply_filter(&program).expect("a thread may restrict itself");
        body()
    };
    std::thread::scope(|scope| scope.spawn(filtered).join().expect("no panic"))
}

/// The one descriptor that is open for a directory.
fn descriptor_of(path: &Path) -> u64 {
    let links = fs::read_dir("/proc/self/fd").expect("lists").map(|entry| entry.expect("listed").path());
    let open: Vec<PathBuf> = links.filter(|link| fs::read_link(link).is_ok_and(|to| to == path)).collect();
    assert_eq!(open.len(), 1, "{open:?}");
    open[0].file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("a number")
}

pub(super) fn failed_with<T>(result: PersistenceResult<T>, errno: Errno, what: &str) {
    match result {
        Err(PersistenceError::Io { source, .. }) if source.raw_os_error() == Some(errno as i32) => {}
        Err(error) => panic!("{what}: another error: {error}"),
        Ok(_) => panic!("{what}: it did not ask, or did not listen"),
    }
}

#[test]
fn a_durable_commit_asks_for_an_fdatasync_and_a_failure_closes_the_file() {
    let (_scratch, directory) = directory();
    for bytes in [&b"bytes"[..], b""] {
        let file = directory.open_durable_file("f", &FileOptions::create_new()).expect("creates");
        with_failing(SYS_fdatasync, Which::All, Errno::EIO, || {
            file.commit(commit(1, 0, b"flushed", Effect::Flushed)).0.expect("asks for no sync");
            failed_with(file.commit(commit(2, 0, bytes, Effect::Durable)).0, Errno::EIO, "commit");
        });
        // The kernel reports a failed write-back once: the next sync would succeed, and mean nothing.
        let again = file.commit(commit(3, 0, b"", Effect::Durable)).0;
        assert!(matches!(again, Err(PersistenceError::Poisoned { .. })), "{again:?}");
        directory.delete("f").expect("deletes");
    }
}

#[test]
fn zeros_and_a_new_size_are_synced_with_the_inode() {
    let (_scratch, directory) = directory();
    let file = directory.open_durable_file("f", &FileOptions::create_new()).expect("creates");
    with_failing(SYS_fsync, Which::All, Errno::EIO, || {
        let filled = FileOptions::create_new().zero_filled(8192);
        failed_with(directory.open_durable_file("zeros", &filled), Errno::EIO, "zero-fill");
        assert!(!directory.exists("zeros"), "what was made is removed");
        file.set_size(4096).expect("sets");
        failed_with(file.commit(commit(1, 0, b"", Effect::Durable)).0, Errno::EIO, "a new size");
    });
}

#[test]
fn every_durable_operation_on_names_syncs_the_directory_and_contents_come_first() {
    on_every_backend(|directory, root| {
        for folder in ["", "a/"] {
            directory.create_dir_all_durable("a").expect("creates");
            let [old, gone, moved] = ["old", "gone", "moved"].map(|name| format!("{folder}{name}"));
            for name in [&old, &gone, &moved] {
                directory.atomic_write_durable(name, b"old").expect("writes");
            }
            with_failing(SYS_fsync, Which::All, Errno::EIO, || {
                failed_with(directory.atomic_write_durable(&old, b"new"), Errno::EIO, "atomic_write_durable");
                assert_eq!(fs::read(root.join(&old)).expect("reads"), b"old", "contents come first");
                failed_with(directory.sync_parent_dir(&old), Errno::EIO, "sync_parent_dir");
                failed_with(directory.durable_sync_parent_dir(&old), Errno::EIO, "sync_parent_dir");
                failed_with(directory.sync_file(&old), Errno::EIO, "sync_file");
                failed_with(directory.durable_sync_file(&old), Errno::EIO, "sync_file");
                failed_with(directory.delete_durable(&gone), Errno::EIO, "delete_durable");
                let to = format!("{folder}to");
                failed_with(directory.atomic_rename_durable(&moved, &to), Errno::EIO, "rename");
                failed_with(directory.create_dir_all_durable("a"), Errno::EIO, "create_dir_all_durable");
            });
            let names = directory.list_dir(folder.trim_end_matches('/')).expect("lists");
            assert!(names.iter().all(|name| ["a", "old", "to"].contains(&name.as_str())), "{names:?}");
        }
    });
}

#[test]
fn the_name_of_a_new_root_is_synced() {
    let scratch = tempfile::tempdir().expect("scratch");
    with_failing(SYS_fsync, Which::All, Errno::EIO, || {
        failed_with(FsDirectory::new(scratch.path().join("root")), Errno::EIO, "a new root");
    });
}

#[test]
fn a_rename_between_directories_syncs_both() {
    on_every_backend(|directory, root| {
        directory.create_dir_all_durable("a").expect("creates");
        let root = descriptor_of(root);
        for (from, to) in [("x", "a/x"), ("a/x", "x")] {
            for which in [Which::Of(root), Which::NotOf(root)] {
                directory.atomic_write_durable(from, b"x").expect("writes");
                with_failing(SYS_fsync, which, Errno::EIO, || {
                    failed_with(directory.atomic_rename_durable(from, to), Errno::EIO, from);
                });
            }
        }
    });
}

#[test]
fn a_write_that_ends_short_is_carried_on_and_is_no_success() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsRawFd;
    let (_scratch, directory) = directory();
    // A file in memory that may not grow: the kernel writes what fits, and says how much that was.
    let memory = memfd_create("sealed", MFdFlags::MFD_ALLOW_SEALING).expect("creates");
    nix::unistd::ftruncate(&memory, 8192).expect("sets the size");
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).expect("seals");
    let name = format!("/proc/self/fd/{}", memory.as_raw_fd());
    std::os::unix::fs::symlink(name, directory.root().join("file")).expect("links");
    let file = directory.open_durable_file("file", &FileOptions::existing()).expect("opens");
    let buffer = CommitBuffer::from_slice(&[5; 8192]);
    let (result, _) =
        file.commit(Commit { id: 1, offset: 4096, buffer, range: 0..8192, effect: Effect::Durable });
    match result {
        Err(PersistenceError::Io { operation: "write", offset: Some(8192), .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(directory.root().join("file")).expect("reads")[4096..], [5; 4096]);
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let (_scratch, directory) = directory();
    let file = directory.open_durable_file("f", &FileOptions::create_new()).expect("creates");
    let result = with_failing(SYS_pwrite64, Which::All, Errno::ENOSPC, || {
        file.commit(commit(1, 0, b"bytes", Effect::Durable)).0
    });
    assert!(result.as_ref().is_err_and(PersistenceError::is_out_of_space), "{result:?}");
    let filled = FileOptions::create_new().zero_filled(8192);
    let result = with_failing(SYS_fallocate, Which::All, Errno::ENOSPC, || {
        directory.open_durable_file("zeros", &filled).map(drop)
    });
    assert!(result.as_ref().is_err_and(PersistenceError::is_out_of_space), "{result:?}");
}
