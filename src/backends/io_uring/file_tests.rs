//! What a file makes of the ends of requests, which are handed to it here as the kernel might.

use super::*;
use crate::backends::io_uring::{UringDirectory, UringOptions, probe};
use crate::storage::{CommitBuffer, Directory, FileOptions};

fn file(root: &std::path::Path) -> Option<UringFile> {
    if let Err(reason) = probe() {
        assert!(std::env::var_os("DURABILITY_REQUIRE_IO_URING").is_none(), "rings are required: {reason}");
        crate::backends::skip(&reason.to_string());
        return None;
    }
    let options = UringOptions {
        strategy: Some(CommitStrategy::LinkedWriteSync),
        in_flight_max: 8,
        ..UringOptions::default()
    };
    let directory = UringDirectory::with_options(root, options).expect("opens");
    directory.create_dir_all("").expect("is there");
    Some(
        directory.open_ring("file", &FileOptions::create_new(), directory.options.strategy).expect("creates"),
    )
}

/// A synced commit that is under way, as `accept` would have begun it.
fn begun(ledger: &mut Ledger, id: u64) -> Request<Meta> {
    let meta = Meta { id, sync: Some(ledger.overlap.begin()), plain_writes: 0, size_changes: 0 };
    ledger.unreaped += 1;
    let chain = Chain::new(Goal::LinkedSync, 512, 512, PIECE_BYTES_MAX, 2);
    let buffer = CommitBuffer::from_slice(&[1; 512]);
    Request { buffer, buffer_start: 0, offset: 0, chain, full_sync: false, meta }
}

/// Who is done, and whether well.
fn done(ledger: &mut Ledger) -> Vec<(u64, bool)> {
    ledger.unreaped -= ledger.done.len();
    ledger.done.drain(..).map(|completion| (completion.id, completion.result.is_ok())).collect()
}

fn failed_sync() -> Failure {
    Failure { operation: "sync", written: 512, cause: Cause::Errno(Errno::EIO as i32) }
}

#[test]
fn of_two_syncs_that_overlap_the_first_success_is_told_when_the_other_has_ended_too() {
    let root = tempfile::tempdir().expect("a directory");
    let Some(file) = file(root.path()) else { return };
    let mut locked = file.ring.lock();
    let ledger = locked.state();
    let (first, second) = (begun(ledger, 1), begun(ledger, 2));
    file.settle(ledger, Finished { request: second, result: Some(Ok(())) });
    assert_eq!(done(ledger), [], "the error of a write-back may be told to the other one");
    file.settle(ledger, Finished { request: first, result: Some(Ok(())) });
    assert_eq!(done(ledger), [(2, true), (1, true)]);
}

#[test]
fn a_success_that_overlaps_with_a_failed_sync_is_none() {
    let root = tempfile::tempdir().expect("a directory");
    let Some(file) = file(root.path()) else { return };
    let mut locked = file.ring.lock();
    let ledger = locked.state();
    let (first, second, third) = (begun(ledger, 1), begun(ledger, 2), begun(ledger, 3));
    file.settle(ledger, Finished { request: second, result: Some(Ok(())) });
    file.settle(ledger, Finished { request: first, result: Some(Err(failed_sync())) });
    assert_eq!(done(ledger), [(1, false), (2, false)], "nobody waits for a third");
    file.settle(ledger, Finished { request: third, result: Some(Ok(())) });
    assert_eq!(done(ledger), [(3, false)], "nothing succeeds after a failure");
}

#[test]
fn a_new_size_is_synced_with_the_inode() {
    let root = tempfile::tempdir().expect("a directory");
    let Some(file) = file(root.path()) else { return };
    let whole_inode = || UringFile::syncs_whole_inode(file.ring.lock().state());
    let sync = |id| {
        let buffer = CommitBuffer::new();
        file.commit(Commit { id, offset: 0, buffer, range: 0..0, effect: Effect::Durable }).0
    };
    assert!(!whole_inode());
    file.set_size(4096).expect("sets the size");
    assert!(whole_inode(), "a data sync need not carry it");
    sync(1).expect("syncs");
    assert!(!whole_inode(), "it is durable now");
}
