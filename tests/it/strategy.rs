//! How a log says by which strategy it commits, and why.

use crate::support::skip;
use durability::DurableDirectory;
use durability::backends::{Backend, BackendOptions, io_uring_support};
use durability::storage::{CommitStrategy, StrategyReason};
use durability::walog::{PrepareAhead, SyncWalWriter, WalOptions, WalReader};
use std::sync::Arc;

type Log = SyncWalWriter<(), dyn DurableDirectory>;

fn names(root: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root.join("wal"))
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[test]
fn auto_measures_when_the_first_segment_is_made_and_takes_the_best() {
    if let Err(reason) = io_uring_support() {
        return skip(&format!("no choice to be measured: {reason}"));
    }
    let root = tempfile::tempdir().unwrap();
    let opened = Backend::Auto.open(root.path()).unwrap();
    // The names are looked at: no thread makes the next segment meanwhile.
    let options = WalOptions { prepare_ahead: PrepareAhead::Never, ..WalOptions::default() };
    let log = Log::configure(Arc::clone(&opened.directory), options).unwrap();
    assert_eq!(log.active_strategy(), None);
    assert_eq!(names(root.path()), [".lock"], "nothing is measured before something is committed");
    log.append_bytes_durable(b"entry").unwrap();
    let active = log.active_strategy().expect("there is a segment");
    let StrategyReason::Measured(calibration) = &active.reason else { panic!("{active}") };
    assert_eq!(calibration.candidates[0].strategy, active.strategy);
    assert!(calibration.candidates.iter().any(|tried| tried.strategy == CommitStrategy::WriteThenSync));
    assert!(calibration.commits > 0 && active.to_string().contains("measured here"), "{active}");
    assert_eq!(names(root.path()), [".lock", "wal_1.log"], "what was measured with is gone");
    log.close().unwrap();
    assert_eq!(WalReader::<(), _>::new(opened.directory).entry_count().unwrap(), 1);
}

#[test]
fn what_is_asked_for_by_name_is_not_measured() {
    let root = tempfile::tempdir().unwrap();
    let strategy = Some(CommitStrategy::LinkedWriteSync);
    let ring = BackendOptions { strategy, ..BackendOptions::default() };
    let rule = BackendOptions { calibrate: false, ..BackendOptions::default() };
    let std = BackendOptions::default();
    let mut asked = vec![("std", Backend::Std, std, StrategyReason::Only)];
    if io_uring_support().is_ok() {
        asked.push(("linked", Backend::IoUring, ring, StrategyReason::Requested));
        asked.push(("rule", Backend::Auto, rule, StrategyReason::Rule));
    }
    for (name, backend, options, reason) in asked {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let log = Log::open(backend.open_with(&folder, options).unwrap().directory).unwrap();
        log.append_bytes_durable(b"entry").unwrap();
        assert_eq!(log.active_strategy().map(|active| active.reason), Some(reason), "{name}");
    }
}

/// Fills a segment with entries that nobody waits for, and begins the next one.
fn stream_into_the_next_segment(log: &Log) {
    let before = log.rotations();
    while log.rotations() == before {
        log.append_bytes(&[7; 4096]).unwrap();
    }
}

#[test]
fn behind_a_stream_the_page_cache_is_taken_unless_a_strategy_was_named() {
    if let Err(reason) = io_uring_support() {
        return skip(&format!("one strategy only: {reason}"));
    }
    let root = tempfile::tempdir().unwrap();
    let named = Some(CommitStrategy::LinkedWriteSync);
    for (name, strategy) in [("free", None), ("named", named)] {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let backend = BackendOptions { strategy, calibrate: false, ..BackendOptions::default() };
        let directory = Backend::IoUring.open_with(&folder, backend).unwrap().directory;
        let options = WalOptions { segment_bytes_max: 1 << 20, ..WalOptions::default() };
        let log = Log::configure(Arc::clone(&directory), options).unwrap();
        let active = || log.active_strategy().expect("there is a segment");
        log.append_bytes_durable(b"entry").unwrap();
        let first = active();
        stream_into_the_next_segment(&log);
        stream_into_the_next_segment(&log);
        if strategy.is_some() {
            assert_eq!(active(), first, "{name}");
        } else {
            assert_eq!(active().reason, StrategyReason::Streamed, "{name}");
            assert_eq!(active().strategy, CommitStrategy::WriteThenSync, "{name}");
        }
        // It holds durable entries all the same, and the log goes back to what it chose.
        while log.rotations() < 4 {
            log.append_bytes_durable(&[8; 64 << 10]).unwrap();
        }
        assert_eq!(active(), first, "{name}");
        let last = log.last_entry_id();
        log.close().unwrap();
        assert_eq!(WalReader::<(), _>::new(directory).entry_count().unwrap() as u64, last, "{name}");
    }
}

/// The kernel takes rings away from a thread that commits, after the log was opened.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn a_ring_that_is_refused_to_a_later_segment_is_an_error_that_poisons_nothing() {
    use durability::PersistenceError;
    use nix::errno::Errno;
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    if let Err(reason) = io_uring_support() {
        return skip(&format!("no rings to be refused: {reason}"));
    }
    for errno in [Errno::EPERM, Errno::ENOMEM, Errno::EMFILE] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let backend = BackendOptions { calibrate: false, ..BackendOptions::default() };
        let directory = Backend::IoUring.open_with(root.path(), backend).unwrap().directory;
        let prepare_ahead = PrepareAhead::Never;
        let options = WalOptions { segment_bytes_max: 1, prepare_ahead, ..WalOptions::default() };
        let log = Log::configure(Arc::clone(&directory), options).unwrap();
        log.append_bytes_durable(b"first").unwrap();
        // Filters belong to threads.
        let refused = std::thread::scope(|scope| {
            let commits = scope.spawn(|| {
                let action = SeccompAction::Errno(errno as u32);
                let arch = std::env::consts::ARCH.try_into().unwrap();
                let rules = [(nix::libc::SYS_io_uring_setup, vec![])].into_iter().collect();
                let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).unwrap();
                seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
                log.append_bytes_durable(b"second")
            });
            commits.join().unwrap().expect_err("there is no ring")
        });
        let PersistenceError::Io { operation, source, .. } = &refused else { panic!("{errno}: {refused}") };
        assert_eq!(*operation, "set up a ring for");
        assert_eq!(source.raw_os_error(), Some(errno as i32));
        assert_eq!((log.last_entry_id(), log.durable_entry_id()), (2, 1), "{errno}: it stays appended");
        assert_eq!(names(root.path()), [".lock", "wal_1.log"], "{errno}: nothing is left half-made");
        // A thread that may have rings goes on, with what was appended.
        assert_eq!(log.append_bytes_durable(b"third").unwrap(), 3);
        log.close().unwrap();
        assert_eq!(WalReader::<(), _>::new(directory).entry_count().unwrap(), 3);
    }
}
