//! A commit that is alone, and how it ceases to be.

use super::super::CommitFile;
use super::*;
use crate::backends::io_uring::{UringDirectory, UringOptions, probe};
use crate::error::PersistenceError;
use crate::storage::{Commit, CommitBuffer, CommitStrategy, Directory, Effect, FileOptions, Submitted, Wait};
use std::time::Duration;

const BLOCK: usize = 4096;

/// A file of direct writes, of which `test` may submit, start and reap.
fn with_file(test: impl FnOnce(&UringDirectory, UringFile)) {
    if let Err(reason) = probe() {
        assert!(std::env::var_os("DURABILITY_REQUIRE_IO_URING").is_none(), "rings are required: {reason}");
        return crate::backends::skip(&reason.to_string());
    }
    let root = tempfile::tempdir().expect("a directory");
    let strategy = Some(CommitStrategy::DirectDsync);
    let options = UringOptions { strategy, in_flight_max: 8, ..UringOptions::default() };
    let directory = UringDirectory::with_options(root.path(), options).expect("opens");
    let how = FileOptions::create_new().zero_filled(8 * BLOCK as u64).aligned(BLOCK as u32);
    match directory.open_ring("file", &how, strategy) {
        Ok(file) => test(&directory, file),
        Err(error @ PersistenceError::NotSupported { .. }) => crate::backends::skip(&error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

fn commit(id: u64) -> Commit {
    let buffer = CommitBuffer::from_slice(&[id as u8; BLOCK]);
    Commit { id, offset: id * BLOCK as u64, buffer, range: 0..BLOCK, effect: Effect::Durable }
}

fn submit(file: &UringFile, id: u64) {
    match file.submit(commit(id)) {
        Submitted::Accepted => {}
        Submitted::Refused { error, .. } => panic!("{error}"),
    }
}

fn reap(file: &UringFile, wait: Wait) -> u64 {
    let completion = file.reap(wait).expect("the machinery holds").expect("one is in flight");
    completion.result.expect("nothing fails");
    completion.id
}

fn assert_written(directory: &UringDirectory, ids: std::ops::Range<u64>) {
    let mut bytes = Vec::new();
    directory.open_file("file").expect("is there").read_to_end(&mut bytes).expect("reads");
    for id in ids {
        let at = id as usize * BLOCK;
        assert!(bytes[at..at + BLOCK] == [id as u8; BLOCK], "block {id}");
    }
}

#[test]
fn a_commit_that_stays_alone_never_meets_the_ring() {
    with_file(|directory, file| {
        for id in 1..8 {
            let calls = file.calls();
            submit(&file, id);
            assert_eq!((file.reaper_and_queued(), file.calls()), ((false, 0), calls));
            assert_eq!(reap(&file, Wait::Forever), id);
            assert_eq!(file.calls(), calls + 1);
        }
        assert_written(directory, 1..8);
    });
}

#[test]
fn a_commit_that_gets_company_goes_through_the_ring_with_it() {
    with_file(|directory, file| {
        let calls = file.calls();
        submit(&file, 1);
        submit(&file, 2);
        assert_eq!((file.reaper_and_queued(), file.calls()), ((false, 2), calls));
        let ends = [reap(&file, Wait::Forever), reap(&file, Wait::Forever)];
        assert!(ends == [1, 2] || ends == [2, 1], "{ends:?}");
        assert_written(directory, 1..3);
    });
}

#[test]
fn a_commit_that_nobody_waits_for_begins_when_it_is_told_to() {
    with_file(|_, file| {
        let calls = file.calls();
        submit(&file, 1);
        file.start().expect("begins");
        assert_eq!(file.calls(), calls + 1, "the kernel knows it");
        file.start().expect("has begun");
        assert_eq!(file.calls(), calls + 1);
        assert_eq!(reap(&file, Wait::Forever), 1);
    });
}

#[test]
fn a_wait_that_ends_is_one_for_the_ring() {
    with_file(|_, file| {
        let calls = file.calls();
        submit(&file, 1);
        if file.reap(Wait::Never).expect("the machinery holds").is_none() {
            assert_eq!(file.calls(), calls + 1, "begun, and not waited for");
            assert_eq!(reap(&file, Wait::Forever), 1);
        }
        submit(&file, 2);
        assert_eq!(reap(&file, Wait::AtMost(Duration::from_secs(600))), 2);
    });
}

#[test]
fn a_file_that_is_dropped_with_one_commit_has_it() {
    with_file(|directory, file| {
        submit(&file, 1);
        drop(file);
        assert_written(directory, 1..2);
    });
}

#[test]
fn only_a_whole_write_with_dsync_is_one_that_can_be_alone() {
    with_file(|_, file| {
        let flushed = Commit { effect: Effect::Flushed, ..commit(1) };
        assert!(matches!(file.submit(flushed), Submitted::Accepted));
        assert_eq!(file.reaper_and_queued(), (false, 1), "nothing durable is asked for");
        assert_eq!(reap(&file, Wait::Forever), 1);
        submit(&file, 2);
        assert_eq!(file.reaper_and_queued(), (false, 1), "it takes a sync, too");
        assert_eq!(reap(&file, Wait::Forever), 2);
    });
}

/// As if another thread wrote what was the only commit, and the disk took its time.
fn beside_a_slow_write<T>(file: &UringFile, test: impl FnOnce() -> T) -> T {
    let turn = |is_writing: bool| {
        let mut locked = file.ring.lock();
        let ledger = locked.state();
        ledger.writing = is_writing;
        ledger.unreaped = if is_writing { ledger.unreaped + 1 } else { ledger.unreaped - 1 };
    };
    turn(true);
    let result = test();
    turn(false);
    file.turn.notify_all();
    result
}

#[test]
fn what_ends_beside_a_slow_write_is_told_at_once() {
    with_file(|_, file| {
        beside_a_slow_write(&file, || {
            let calls = file.calls();
            submit(&file, 1);
            assert_eq!(file.calls(), calls + 1, "taken up by the kernel");
            assert_eq!(reap(&file, Wait::AtMost(Duration::from_secs(600))), 1);
            submit(&file, 2);
            let looks = (0..).find_map(|_| file.reap(Wait::Never).expect("the machinery holds"));
            assert_eq!(looks.map(|completion| completion.id), Some(2));
        });
        submit(&file, 3);
        assert_eq!(reap(&file, Wait::Forever), 3);
    });
}

#[test]
fn who_waits_beside_a_slow_write_hears_of_the_next_commit() {
    with_file(|_, file| {
        std::thread::scope(|scope| {
            let (waiter, in_time) = beside_a_slow_write(&file, || {
                let waiter = scope.spawn(|| reap(&file, Wait::Forever));
                while file.ring.lock().state().waiting == 0 {
                    std::thread::yield_now();
                }
                submit(&file, 1);
                let began = std::time::Instant::now();
                while !waiter.is_finished() && began.elapsed() < Duration::from_secs(10) {
                    std::thread::yield_now();
                }
                let in_time = waiter.is_finished();
                (waiter, in_time)
            });
            assert_eq!(waiter.join().expect("no panic"), 1);
            assert!(in_time, "it waited for the slow one");
        });
    });
}

#[test]
fn company_that_has_come_and_gone_is_company() {
    use crate::backends::io_uring::ways::{FIRST_COMMITS, LOOK_COMMITS};
    const LARGE: usize = 16 << 20;
    with_file(|directory, _| {
        let bytes = (LARGE + 8 * BLOCK) as u64;
        let how = FileOptions::create_new().zero_filled(bytes).aligned(BLOCK as u32);
        let file = directory.open_ring("large", &how, directory.options.strategy).expect("opens");
        (0..FIRST_COMMITS).for_each(|_| file.commit(commit(1)).0.expect("not of interest"));
        for _ in 0..LOOK_COMMITS {
            let timed = directory.ways.timed();
            let buffer = CommitBuffer::from_slice(&vec![7; LARGE]);
            let large = Commit { offset: 8 * BLOCK as u64, buffer, range: 0..LARGE, ..commit(1) };
            let came_and_went = std::thread::scope(|scope| {
                assert!(matches!(file.submit(large), Submitted::Accepted));
                let call = scope.spawn(|| reap(&file, Wait::Forever));
                while !file.reaper_and_queued().0 && !call.is_finished() {
                    std::thread::yield_now();
                }
                let came = file.reaper_and_queued().0;
                submit(&file, 2);
                reap(&file, Wait::Forever) == 2 && came && file.reaper_and_queued().0
            });
            if came_and_went {
                return assert_eq!(directory.ways.timed(), timed, "its time tells of both");
            }
        }
        crate::backends::skip("a large commit never took longer than a small one");
    });
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod answers {
    use super::*;
    use crate::backends::fault_tests::{Which, failed_with, with_failing};
    use crate::backends::io_uring::ways::{FIRST_COMMITS, LOOK_COMMITS, Way};
    use nix::libc::{RWF_DSYNC, SYS_io_uring_enter, SYS_pwritev2};

    /// Those that ask for the durability of what they write.
    const DSYNC: Which = Which::With { argument: 5, value: RWF_DSYNC as u64 };

    #[test]
    fn it_asks_for_durability_and_a_failure_closes_the_file() {
        with_file(|_, file| {
            with_failing(SYS_pwritev2, DSYNC, Errno::EIO, || {
                failed_with(file.commit(commit(1)).0, Errno::EIO, "commit");
            });
            let again = file.commit(commit(2)).0;
            assert!(matches!(again, Err(PersistenceError::Poisoned { .. })), "{again:?}");
        });
    }

    #[test]
    fn now_and_then_commits_go_through_the_ring_to_compare() {
        with_file(|directory, file| {
            let block = |number: usize| file.commit(commit(1 + number as u64 % 7)).0;
            (0..FIRST_COMMITS as usize + LOOK_COMMITS).for_each(|number| block(number).expect("by a call"));
            with_failing(SYS_pwritev2, DSYNC, Errno::EIO, || {
                (0..LOOK_COMMITS).for_each(|number| block(number).expect("by the ring"));
            });
            assert_written(directory, 1..8);
            with_failing(SYS_pwritev2, DSYNC, Errno::EIO, || {
                failed_with(block(0), Errno::EIO, "commit");
            });
        });
    }

    #[test]
    fn what_is_measured_goes_its_way_whatever_the_directory_has_learnt() {
        use crate::backends::io_uring::calibration::calibrate;
        with_file(|directory, file| {
            directory.ways.begin_with(Way::Ring);
            let measured = with_failing(SYS_pwritev2, DSYNC, Errno::EIO, || calibrate(directory, "next"));
            assert!(measured.is_err(), "a call is measured by a call: {measured:?}");
            assert_eq!(directory.list_dir("").expect("lists"), ["file"], "nothing stays behind");
            with_failing(SYS_pwritev2, DSYNC, Errno::EIO, || file.commit(commit(1)).0.expect("by the ring"));
        });
    }

    /// Commits by the ring are timed from now on.
    fn time_the_ring(directory: &UringDirectory, file: &UringFile) {
        directory.ways.begin_with(Way::Ring);
        (0..FIRST_COMMITS).for_each(|_| file.commit(commit(1)).0.expect("not of interest"));
        assert_eq!(directory.ways.timed(), 0);
    }

    #[test]
    fn a_wait_that_returned_before_the_commit_ended_is_not_its_time() {
        with_file(|directory, file| {
            time_the_ring(directory, &file);
            std::thread::scope(|scope| {
                let calls = file.calls();
                // As a signal does: the wait is over, and no error says so.
                let takes_up_one = Which::With { argument: 1, value: 1 };
                let file = &file;
                let waits = scope.spawn(move || {
                    with_failing(SYS_io_uring_enter, takes_up_one, Errno::from_raw(0), || {
                        file.commit(commit(2)).0.expect("commits");
                    });
                });
                while file.calls() == calls {
                    std::thread::yield_now();
                }
                file.start().expect("the kernel takes it up for another thread");
                waits.join().expect("no panic");
            });
            assert_eq!(directory.ways.timed(), 0);
            file.commit(commit(3)).0.expect("commits");
            assert_eq!(directory.ways.timed(), 1);
            assert_written(directory, 1..4);
        });
    }

    #[test]
    fn a_call_that_is_refused_is_made_by_the_ring() {
        for errno in [Errno::EPERM, Errno::ENOSYS] {
            with_file(|directory, file| {
                with_failing(SYS_pwritev2, Which::All, errno, || {
                    let calls = file.calls();
                    file.commit(commit(1)).0.expect("commits");
                    file.commit(commit(2)).0.expect("commits");
                    assert_eq!(file.calls(), calls + 3, "asked for once");
                });
                assert_written(directory, 1..3);
            });
        }
    }

    #[test]
    fn a_call_that_did_nothing_is_made_again() {
        for errno in [Errno::EINTR, Errno::EAGAIN] {
            with_file(|directory, file| {
                let (result, _) = with_failing(SYS_pwritev2, Which::All, errno, || file.commit(commit(1)));
                result.expect("commits");
                assert_written(directory, 1..2);
            });
        }
    }

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        with_file(|_, file| {
            let (result, _) =
                with_failing(SYS_pwritev2, Which::All, Errno::ENOSPC, || file.commit(commit(1)));
            assert!(result.as_ref().is_err_and(PersistenceError::is_out_of_space), "{result:?}");
        });
    }
}
