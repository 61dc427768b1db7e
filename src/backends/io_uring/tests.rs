//! Files through rings, on a real file system.

use super::*;
use crate::backends::{Backend, BackendReason};
use crate::storage::{Calibration, Commit, CommitBuffer, Effect, MeasuredStrategy, Submitted, Wait};
use std::collections::BTreeSet;

const LINKED: CommitStrategy = CommitStrategy::LinkedWriteSync;
const DIRECT: CommitStrategy = CommitStrategy::DirectDsync;
const BLOCK: usize = 512;

/// Whether this system has rings. Loud when not, and a failure when they are required.
fn have_rings() -> bool {
    let Err(reason) = probe() else { return true };
    assert!(std::env::var_os("DURABILITY_REQUIRE_IO_URING").is_none(), "rings are required: {reason}");
    crate::backends::skip(&reason.to_string());
    false
}

fn directory(
    root: &std::path::Path,
    strategy: Option<CommitStrategy>,
    in_flight_max: usize,
) -> UringDirectory {
    UringDirectory::with_options(root, UringOptions { strategy, in_flight_max, ..UringOptions::default() })
        .unwrap()
}

/// A file of each strategy that can be had in the temporary directory.
fn each_strategy(in_flight_max: usize, zeros: u64, test: impl Fn(&UringDirectory, UringFile)) {
    if !have_rings() {
        return;
    }
    for strategy in [LINKED, DIRECT] {
        let root = tempfile::tempdir().unwrap();
        let directory = directory(root.path(), Some(strategy), in_flight_max);
        let options = FileOptions::create_new().zero_filled(zeros).locked().aligned(4096);
        match directory.open_ring("file", &options, directory.options.strategy) {
            Ok(file) => {
                assert_eq!(file.strategy(), strategy);
                test(&directory, file);
            }
            Err(error @ PersistenceError::NotSupported { .. }) if strategy == DIRECT => {
                crate::backends::skip(&error.to_string());
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn alignment(file: &UringFile) -> usize {
    (file.limits().alignment as usize).max(BLOCK)
}

/// A commit of one aligned block at block number `id`, filled with a byte made from it.
fn block(file: &UringFile, id: u64, effect: Effect) -> Commit {
    let size = alignment(file);
    let mut buffer = CommitBuffer::new();
    buffer.resize(size, fill(id));
    Commit { id, offset: id * size as u64, buffer, range: 0..size, effect }
}

fn fill(id: u64) -> u8 {
    (id % 251) as u8 + 1
}

fn contents(directory: &UringDirectory) -> Vec<u8> {
    let mut bytes = Vec::new();
    directory.open_file("file").unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn assert_blocks(bytes: &[u8], size: usize, blocks: impl IntoIterator<Item = u64>) {
    for id in blocks {
        let at = id as usize * size;
        assert!(bytes[at..at + size].iter().all(|byte| *byte == fill(id)), "block {id}");
    }
}

fn accepted(submitted: Submitted) {
    match submitted {
        Submitted::Accepted => {}
        Submitted::Refused { error, .. } => panic!("{error}"),
    }
}

fn refused(submitted: Submitted) -> PersistenceError {
    match submitted {
        Submitted::Accepted => panic!("accepted"),
        Submitted::Refused { error, .. } => error,
    }
}

#[test]
fn commits_of_several_threads_in_flight_at_once_read_back_equal() {
    for zeros in [0, 1 << 20] {
        each_strategy(16, zeros, |directory, file| {
            let (per_thread, threads) = (100, 3);
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let file = &file;
                    scope.spawn(move || {
                        for number in 0..per_thread {
                            let effect = if number % 3 == 0 { Effect::Flushed } else { Effect::Durable };
                            let mut commit = block(file, thread * per_thread + number, effect);
                            loop {
                                match file.submit(commit) {
                                    Submitted::Accepted => break,
                                    Submitted::Refused { commit: back, error } => {
                                        assert!(matches!(error, PersistenceError::InvalidState { .. }));
                                        commit = back;
                                        std::thread::yield_now();
                                    }
                                }
                            }
                            file.start().unwrap();
                        }
                    });
                }
                let seen = std::sync::Mutex::new(BTreeSet::new());
                std::thread::scope(|reapers| {
                    for _ in 0..2 {
                        reapers.spawn(|| {
                            while seen.lock().unwrap().len() < (threads * per_thread) as usize {
                                let wait = Wait::AtMost(Duration::from_millis(20));
                                if let Some(completion) = file.reap(wait).unwrap() {
                                    completion.result.unwrap();
                                    assert_eq!(completion.buffer[0], fill(completion.id));
                                    assert!(seen.lock().unwrap().insert(completion.id), "twice");
                                }
                            }
                        });
                    }
                });
            });
            assert!(file.reap(Wait::Forever).unwrap().is_none(), "nothing is in flight");
            assert_blocks(&contents(directory), alignment(&file), 0..threads * per_thread);
        });
    }
}

#[test]
fn a_lone_commit_costs_one_system_call() {
    each_strategy(32, 1 << 20, |_, file| {
        for effect in [Effect::Durable, Effect::Flushed] {
            for id in 0..20 {
                let before = file.calls();
                let (result, buffer) = file.commit(block(&file, id, effect));
                result.unwrap();
                assert!(buffer.is_some());
                let calls = file.calls() - before;
                assert_eq!(calls, 1, "{effect:?} {:?}", file.strategy());
            }
            // Covers what was only flushed, so that the next round is a plain one.
            file.commit(block(&file, 0, Effect::Durable)).0.unwrap();
        }
    });
}

#[test]
fn a_file_that_is_dropped_has_all_that_was_accepted_and_keeps_its_lock_until_then() {
    each_strategy(32, 0, |directory, file| {
        let size = alignment(&file);
        for id in 0..32 {
            accepted(file.submit(block(&file, id, Effect::Durable)));
            if id % 2 == 0 {
                file.start().unwrap();
            }
        }
        let held = directory.await_unlocked("file", Duration::ZERO).unwrap_err();
        assert!(matches!(held, PersistenceError::LockFailed { .. }), "{held}");
        drop(file);
        directory.await_unlocked("file", Duration::ZERO).unwrap();
        let bytes = contents(directory);
        assert_eq!(bytes.len(), 32 * size);
        assert_blocks(&bytes, size, 0..32);
    });
}

#[test]
fn a_panic_with_commits_in_flight_loses_none_of_them() {
    each_strategy(8, 0, |directory, file| {
        let size = alignment(&file);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            for id in 0..8 {
                accepted(file.submit(block(&file, id, Effect::Durable)));
            }
            file.start().unwrap();
            panic!("planned");
        }));
        assert!(unwound.is_err());
        directory.await_unlocked("file", Duration::ZERO).unwrap();
        assert_blocks(&contents(directory), size, 0..8);
    });
}

#[test]
fn a_wait_ends_in_time_and_an_idle_file_does_not_wait() {
    each_strategy(4, 1 << 20, |_, file| {
        assert!(file.reap(Wait::Forever).unwrap().is_none());
        assert!(file.reap(Wait::AtMost(Duration::from_secs(60))).unwrap().is_none());
        assert!(file.reap(Wait::Never).unwrap().is_none());
    });
    each_strategy(64, 0, |_, file| {
        let wait = Wait::AtMost(Duration::from_millis(2));
        // A busy machine may let a wait sleep over the commit.
        let ends_in_time = |_| {
            accepted(file.submit(large(1)));
            let ended = file.reap(wait).unwrap();
            let in_time = ended.is_none();
            let ended = ended.or_else(|| file.reap(Wait::Never).unwrap());
            ended.or_else(|| file.reap(Wait::Forever).unwrap()).unwrap().result.unwrap();
            in_time
        };
        assert!((0..5).any(ends_in_time), "waited for its commit");
        // The other place to wait: for the reaper.
        let in_time = |_| {
            accepted(file.submit(large(1)));
            std::thread::scope(|scope| {
                let reaper = scope.spawn(|| file.reap(Wait::Forever).unwrap());
                while !file.reaper_and_queued().0 && !reaper.is_finished() {}
                let nothing = file.reap(wait).unwrap().is_none();
                let in_time = nothing && !reaper.is_finished();
                reaper.join().unwrap().unwrap().result.unwrap();
                in_time
            })
        };
        assert!((0..5).any(in_time), "waited for the other thread's commit");
    });
}

/// A commit that takes a while.
fn large(id: u64) -> Commit {
    let mut buffer = CommitBuffer::new();
    buffer.resize(64 << 20, 7);
    let range = 0..buffer.len();
    Commit { id, offset: 1 << 20, buffer, range, effect: Effect::Durable }
}

#[test]
fn threads_that_reap_beside_each_other_get_every_completion_and_none_waits_for_ever() {
    each_strategy(8, 1 << 20, |_, file| {
        for round in 0..200 {
            let handed = std::sync::Mutex::new(Vec::new());
            for id in 0..3 {
                accepted(file.submit(block(&file, id, Effect::Durable)));
            }
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        if let Some(completion) = file.reap(Wait::Forever).unwrap() {
                            completion.result.unwrap();
                            handed.lock().unwrap().push(completion.id);
                        }
                    });
                }
            });
            let mut handed = handed.into_inner().unwrap();
            handed.sort_unstable();
            assert_eq!(handed, [0, 1, 2], "round {round}");
        }
    });
}

#[test]
fn a_commit_submitted_while_another_thread_waits_in_the_kernel_begins_at_once() {
    each_strategy(8, 0, |_, file| {
        // A busy machine may let the large one end before anybody has looked.
        let begins_at_once = |_| {
            accepted(file.submit(large(1)));
            std::thread::scope(|scope| {
                let reaper = scope.spawn(|| {
                    let mut ids = BTreeSet::new();
                    while let Some(completion) = file.reap(Wait::Forever).unwrap() {
                        completion.result.unwrap();
                        assert!(ids.insert(completion.id));
                    }
                    ids
                });
                while file.reaper_and_queued() != (true, 0) {
                    if reaper.is_finished() {
                        return false;
                    }
                }
                accepted(file.submit(block(&file, 2, Effect::Durable)));
                let is_taken_up = file.reaper_and_queued() == (true, 0);
                let mut ids = reaper.join().unwrap();
                ids.extend(std::iter::from_fn(|| file.reap(Wait::Forever).unwrap()).map(|ended| ended.id));
                assert_eq!(ids, BTreeSet::from([1, 2]));
                is_taken_up
            })
        };
        assert!((0..5).any(begins_at_once), "taken up by the kernel while the other one waits");
    });
}

#[test]
fn a_wait_that_is_interrupted_goes_on() {
    each_strategy(8, 0, |_, file| {
        accepted(file.submit(large(1)));
        // Stopping and continuing a process ends every wait in the kernel with EINTR.
        let pid = std::process::id();
        let script = format!("sleep 0.01; for i in 1 2 3; do kill -STOP {pid}; kill -CONT {pid}; done");
        let mut shell = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
        file.reap(Wait::Forever).unwrap().unwrap().result.unwrap();
        assert!(shell.wait().unwrap().success());
    });
}

#[test]
fn a_write_whose_sync_was_taken_up_apart_from_it_is_no_success() {
    if !have_rings() {
        return;
    }
    for (entries, submit_more) in [(&[1][..], false), (&[1], true), (&[1, 2], false), (&[1, 2], true)] {
        let root = tempfile::tempdir().unwrap();
        let directory = directory(root.path(), Some(LINKED), 8);
        let file =
            directory.open_ring("file", &FileOptions::create_new(), directory.options.strategy).unwrap();
        accepted(file.submit(block(&file, 1, Effect::Durable)));
        // No sync, so that nothing but the split itself can put the first one in doubt.
        accepted(file.submit(block(&file, 2, Effect::Flushed)));
        file.split_a_pair(entries);
        if submit_more {
            file.start().unwrap();
        }
        // Time for all that the kernel has taken up to end well.
        std::thread::sleep(Duration::from_millis(50));
        for _ in 0..2 {
            let completion = file.reap(Wait::Forever).unwrap().unwrap();
            let error = completion.result.unwrap_err();
            assert!(matches!(error, PersistenceError::Poisoned { .. }), "{error}");
        }
        assert!(file.reap(Wait::Forever).unwrap().is_none());
        assert!(matches!(
            refused(file.submit(block(&file, 3, Effect::Durable))),
            PersistenceError::Poisoned { .. }
        ));
    }
}

#[test]
fn commits_that_break_a_limit_are_refused_and_change_nothing() {
    each_strategy(2, 1 << 16, |directory, file| {
        let before = contents(directory);
        let mut beyond = block(&file, 0, Effect::Durable);
        beyond.range.end += 1;
        assert!(matches!(refused(file.submit(beyond)), PersistenceError::InvalidConfig { .. }));
        if file.strategy() == DIRECT {
            let mut odd = block(&file, 0, Effect::Durable);
            odd.offset = 1;
            assert!(matches!(
                refused(file.submit(odd)),
                PersistenceError::InvalidConfig { parameter: "offset", .. }
            ));
            let mut odd = block(&file, 0, Effect::Durable);
            odd.range.end -= 1;
            assert!(matches!(
                refused(file.submit(odd)),
                PersistenceError::InvalidConfig { parameter: "range", .. }
            ));
            let mut odd = block(&file, 0, Effect::Durable);
            odd.buffer.resize(alignment(&file) * 2, 1);
            odd.range = 1..1 + alignment(&file);
            assert!(matches!(
                refused(file.submit(odd)),
                PersistenceError::InvalidConfig { parameter: "buffer", .. }
            ));
        }
        assert_eq!(contents(directory), before);
        accepted(file.submit(block(&file, 0, Effect::Durable)));
        accepted(file.submit(block(&file, 1, Effect::Durable)));
        let full = refused(file.submit(block(&file, 2, Effect::Durable)));
        assert!(matches!(full, PersistenceError::InvalidState { .. }), "{full}");
        assert!(matches!(file.set_size(0), Err(PersistenceError::InvalidState { .. })));
        // What has ended, but was not handed back, counts.
        file.start().unwrap();
        assert!(file.reap(Wait::Forever).unwrap().is_some());
        accepted(file.submit(block(&file, 0, Effect::Durable)));
        let full = refused(file.submit(block(&file, 2, Effect::Durable)));
        assert!(matches!(full, PersistenceError::InvalidState { .. }), "{full}");
        while file.reap(Wait::Forever).unwrap().is_some() {}
        assert!(contents(directory)[2 * alignment(&file)..].iter().all(|byte| *byte == 0));
        assert_eq!(file.commit(block(&file, 2, Effect::Durable)).0.unwrap(), ());
    });
}

#[test]
fn what_was_only_flushed_is_synced_by_the_next_durable_commit() {
    each_strategy(8, 1 << 16, |directory, file| {
        let plain = UringFile::next_goal;
        let first = plain(&file);
        file.commit(block(&file, 0, Effect::Flushed)).0.unwrap();
        if file.strategy() == DIRECT {
            assert_eq!((first, plain(&file)), (chain::Goal::Dsync, chain::Goal::WrittenThenSynced));
        }
        let empty =
            |effect| Commit { id: 9, offset: 0, buffer: CommitBuffer::from_slice(b"x"), range: 1..1, effect };
        file.commit(empty(Effect::Durable)).0.unwrap();
        assert_eq!(plain(&file), first, "the sync covered it");
        let before = file.calls();
        file.commit(empty(Effect::Flushed)).0.unwrap();
        assert_eq!(file.calls(), before, "nothing to do");
        file.set_size(1 << 15).unwrap();
        assert_eq!(file.size().unwrap(), 1 << 15);
        if file.strategy() == DIRECT {
            assert_eq!(plain(&file), chain::Goal::WrittenThenSynced);
        }
        file.commit(block(&file, 1, Effect::Durable)).0.unwrap();
        assert_eq!(plain(&file), first);
        assert_blocks(&contents(directory), alignment(&file), 0..2);
    });
}

#[test]
fn a_commit_larger_than_one_write_is_finished_in_pieces() {
    if !have_rings() {
        return;
    }
    for strategy in [Some(LINKED), None] {
        let root = tempfile::tempdir().unwrap();
        let mut directory = directory(root.path(), strategy, 4);
        directory.piece_bytes_max = 8192;
        let file = directory
            .open_ring("file", &FileOptions::create_new().aligned(4096), directory.options.strategy)
            .unwrap();
        let bytes: Vec<u8> = (0..10 * 8192 + 4096).map(|at| (at / 7 % 256) as u8).collect();
        let commit = Commit {
            id: 1,
            offset: 4096,
            buffer: CommitBuffer::from_slice(&bytes),
            range: 0..bytes.len(),
            effect: Effect::Durable,
        };
        file.commit(commit).0.unwrap();
        assert_eq!(contents(&directory)[4096..], bytes);
    }
}

#[test]
fn a_file_that_cannot_be_written_directly_measures_for_those_that_can() {
    if !have_rings() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let named = directory(root.path(), Some(DIRECT), 4);
    let how = FileOptions::create_new();
    if let Err(error) = named.open_ring("direct", &how.clone().aligned(4096), Some(DIRECT)) {
        return crate::backends::skip(&error.to_string());
    }
    let options = UringOptions { calibrate: true, ..UringOptions::default() };
    let directory = UringDirectory::with_options(root.path(), options).unwrap();
    let candidates = |file: Box<dyn CommitFile>| {
        let StrategyReason::Measured(calibration) = file.strategy_reason() else { panic!("{file:?}") };
        let candidates: Vec<_> = calibration.candidates.iter().map(|one| one.strategy).collect();
        assert_eq!(file.strategy(), candidates[0]);
        candidates
    };
    assert_eq!(candidates(directory.open_commit_file("unaligned", &how).unwrap()), [LINKED]);
    let aligned = candidates(directory.open_commit_file("aligned", &how.aligned(4096)).unwrap());
    assert!(aligned.contains(&DIRECT), "{aligned:?}");
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn a_file_that_cannot_be_written_directly_is_not_made_twice() {
    use crate::backends::fault_tests::{Which, with_failing};
    use nix::errno::Errno;
    if !have_rings() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let directory = directory(root.path(), None, 4);
    let best_first = [DIRECT, LINKED].map(|strategy| MeasuredStrategy { strategy, median: Duration::ZERO });
    let measured = Calibration { candidates: Vec::from(best_first), commits: 0, took: Duration::ZERO };
    directory.measured.set(StrategyReason::Measured(measured)).expect("nothing was measured");
    let how = FileOptions::create_new();
    let aligned = directory.open_commit_file("aligned", &how.clone().aligned(4096)).unwrap();
    if aligned.strategy() != DIRECT {
        return crate::backends::skip("no direct writes here");
    }
    // What was made for nothing could not be taken away.
    #[cfg(target_arch = "x86_64")]
    use nix::libc::SYS_unlink as unlink;
    #[cfg(target_arch = "aarch64")]
    use nix::libc::SYS_unlinkat as unlink;
    let unaligned =
        with_failing(unlink, Which::All, Errno::EIO, || directory.open_commit_file("unaligned", &how));
    assert_eq!(unaligned.map(|file| file.strategy()).expect("opens"), LINKED);
}

#[test]
fn the_ring_of_a_dropped_file_serves_the_next_one() {
    if !have_rings() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let directory = directory(root.path(), None, 4);
    assert_eq!(directory.pool.idle(), 0);
    for round in 0..20u64 {
        let options = if round == 0 { FileOptions::create_new() } else { FileOptions::existing() };
        // Both shapes of units take turns on the same ring.
        let options = if round % 2 == 0 { options.aligned(4096) } else { options };
        let file = directory.open_ring("file", &options, directory.options.strategy).unwrap();
        assert_eq!(directory.pool.idle(), 0, "the idle ring was taken");
        file.commit(block(&file, round, Effect::Flushed)).0.unwrap();
        accepted(file.submit(block(&file, round + 1, Effect::Durable)));
        drop(file);
        assert_eq!(directory.pool.idle(), 1, "round {round}");
    }
}

/// A file of a given size that takes no writes, or none past its end: a sealed memory file behind a link.
fn sealed(root: &std::path::Path, bytes: usize, seals: nix::fcntl::SealFlag) -> std::os::fd::OwnedFd {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsRawFd;
    let memory = memfd_create("sealed", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&memory, bytes as i64).unwrap();
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    let name = format!("/proc/self/fd/{}", memory.as_raw_fd());
    std::os::unix::fs::symlink(name, root.join("file")).unwrap();
    memory
}

#[test]
fn the_first_failed_write_closes_the_file_for_good_and_no_later_commit_succeeds() {
    if !have_rings() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let _memory = sealed(root.path(), 4096, nix::fcntl::SealFlag::F_SEAL_WRITE);
    let directory = directory(root.path(), None, 8);
    let file = directory.open_ring("file", &FileOptions::existing(), directory.options.strategy).unwrap();
    assert_eq!(file.strategy(), LINKED, "memory files are not written directly here");
    for id in 0..4 {
        accepted(file.submit(block(&file, id, Effect::Durable)));
    }
    let mut failed = 0;
    while let Some(completion) = file.reap(Wait::Forever).unwrap() {
        assert_eq!(completion.buffer.len(), BLOCK);
        let error = completion.result.unwrap_err();
        assert!(matches!(&error, PersistenceError::Io { operation: "write", .. }), "{error}");
        failed += 1;
    }
    assert_eq!(failed, 4);
    let later = refused(file.submit(block(&file, 9, Effect::Flushed)));
    assert!(matches!(later, PersistenceError::Poisoned { .. }), "{later}");
    assert!(matches!(file.set_size(0), Err(PersistenceError::Poisoned { .. })));
    drop(file);
    assert_eq!(directory.pool.idle(), 1, "the ring is sound");
}

#[test]
fn a_write_that_ends_short_is_carried_on_and_is_no_success() {
    if !have_rings() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let _memory = sealed(root.path(), 8192, nix::fcntl::SealFlag::F_SEAL_GROW);
    let directory = directory(root.path(), None, 8);
    let file = directory.open_ring("file", &FileOptions::existing(), directory.options.strategy).unwrap();
    let buffer = CommitBuffer::from_slice(&[5; 8192]);
    let commit = Commit { id: 1, offset: 4096, buffer, range: 0..8192, effect: Effect::Durable };
    let error = file.commit(commit).0.unwrap_err();
    // The kernel wrote what fits, the rest was asked for at the place where that ended, and failed there.
    match error {
        PersistenceError::Io { operation: "write", offset: Some(8192), .. } => {}
        error => panic!("{error:?}"),
    }
    assert_eq!(contents(&directory)[4096..], [5; 4096]);
}

#[test]
fn a_strategy_that_cannot_be_had_is_an_error_and_leaves_no_file() {
    if !have_rings() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let explicit = directory(root.path(), Some(DIRECT), 4);
    let error =
        explicit.open_ring("file", &FileOptions::create_new(), explicit.options.strategy).unwrap_err();
    let known = matches!(
        error,
        PersistenceError::InvalidConfig { parameter: "alignment", .. }
            | PersistenceError::NotSupported { .. }
    );
    assert!(known, "{error}");
    assert!(!explicit.exists("file"));
    let fallen_back = directory(root.path(), None, 4);
    let file =
        fallen_back.open_ring("file", &FileOptions::create_new(), fallen_back.options.strategy).unwrap();
    assert_eq!((file.strategy(), file.limits().alignment), (LINKED, 1));
    for (strategy, in_flight_max) in [(Some(CommitStrategy::WriteThenSync), 4), (None, 0), (None, 1 << 20)] {
        let options = UringOptions { strategy, in_flight_max, ..UringOptions::default() };
        let error = UringDirectory::with_options(root.path(), options).err().unwrap();
        assert!(matches!(error, PersistenceError::InvalidConfig { .. }), "{error}");
    }
}

#[test]
fn commits_of_a_thread_that_has_ended_are_still_completed() {
    each_strategy(16, 0, |directory, file| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for id in 0..16 {
                    accepted(file.submit(block(&file, id, Effect::Durable)));
                }
                file.start().unwrap();
            });
        });
        let mut ended = 0;
        while let Some(completion) = file.reap(Wait::Forever).unwrap() {
            completion.result.unwrap();
            ended += 1;
        }
        assert_eq!(ended, 16);
        assert_blocks(&contents(directory), alignment(&file), 0..16);
    });
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn without_io_uring_auto_takes_std_and_says_why_and_an_explicit_choice_fails() {
    use nix::errno::Errno;
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    if !have_rings() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    // Filters belong to threads, so this one is alone without rings.
    let denied = |call: i64, errno: Errno, why: &str| {
        let action = SeccompAction::Errno(errno as u32);
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let rules = [(call, vec![])].into_iter().collect();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).unwrap();
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        let open = Backend::Auto.open(root.path()).unwrap();
        assert_eq!((open.chosen, open.requested), (Backend::Std, Backend::Auto));
        assert_eq!(open.directory.backend_name(), "std_fs");
        let explicit = Backend::IoUring.open(root.path()).unwrap_err();
        assert!(matches!(explicit, PersistenceError::NotSupported { .. }), "{explicit}");
        assert!(explicit.to_string().contains(why), "{explicit}");
        assert!(UringDirectory::new(root.path()).is_err());
        open.reason
    };
    let each_call = [
        (nix::libc::SYS_io_uring_setup, "io_uring_setup"),
        (nix::libc::SYS_io_uring_register, "io_uring_register"),
        (nix::libc::SYS_io_uring_enter, "io_uring_enter"),
    ];
    let each_errno = [
        (Errno::EPERM, "seccomp"),
        (Errno::ENOSYS, "seccomp"),
        (Errno::ENOMEM, "memory"),
        (Errno::EMFILE, "open files"),
    ];
    // Refused at the first step, or half-way.
    for (call, name) in each_call {
        for (errno, why) in each_errno {
            let reason = std::thread::scope(|scope| scope.spawn(|| denied(call, errno, why)).join().unwrap());
            match reason {
                BackendReason::KernelRefused { call, errno: told, .. } => {
                    assert_eq!((call, told), (name, errno as i32));
                }
                reason => panic!("{reason}"),
            }
        }
    }
    assert_eq!(Backend::Auto.open(root.path()).unwrap().chosen, Backend::IoUring);
}

#[test]
fn a_file_whose_memory_must_be_aligned_more_than_commits_are_is_not_written_directly() {
    let suits = |memory, offset, aligned| DirectAlignment { memory, offset }.suits(aligned);
    assert!(suits(4, 512, 512) && suits(512, 512, 512) && suits(512, 512, 4096) && suits(4096, 4096, 4096));
    assert!(!suits(4096, 512, 512), "the first frame stands 512 bytes into its buffer");
    assert!(!suits(4, 4096, 512) && !suits(8192, 512, 8192));
}
