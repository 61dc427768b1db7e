//! Models: threads on one log whose segments are made ahead of need, and logs that are closed or given up meanwhile.
//!
//! The pool alone is modelled beside it (`walog::pool::model`).

use super::lab::{Lab, explore, pick, spawn_all};
use crate::error::PersistenceError;
use crate::storage::FlushPolicy;
use crate::sync::thread;
use crate::testing::faults::{At, Operation};
use crate::walog::{PrepareAhead, PrepareHand, WalOptions};
use std::io::ErrorKind;

/// Two commits fill a segment, and a helper makes the next ones: a thread of the log's.
fn with_helper(options: &mut WalOptions) {
    options.segment_bytes_max = 2048;
    options.prepare_ahead = PrepareAhead::Thread;
    options.prepared_segments_min = 1 + pick(2);
}

/// Nothing fails: what is acknowledged is durable, whoever made the segments, and every full one is sealed at the
/// end.
#[test]
fn committers_beside_a_helper_lose_nothing() {
    explore("committers beside a helper", || {
        let lab = Lab::new(|options| {
            with_helper(options);
            options.flush_policy = [FlushPolicy::PerAppend, FlushPolicy::Manual][pick(2)];
        });
        spawn_all(&lab, 2, |lab, _| {
            for _ in 0..2 {
                lab.writer().append_bytes(b"entry").expect("nothing fails");
                let entry_id = lab.writer().append_bytes_durable(b"entry").expect("nothing fails");
                lab.assert_durable(entry_id);
            }
        });
        assert_eq!(lab.close_and_count(), 8);
        lab.assert_sealed();
        lab.assert_free();
    });
}

/// Making a segment fails for lack of space, once, whoever makes it: everybody goes on, or is told and may try
/// again.
#[test]
fn a_helper_without_space_keeps_nobody_waiting() {
    explore("a helper without space", || {
        let lab = Lab::new(with_helper);
        lab.fail(At::after_of(Operation::OpenCommitFile, pick(4) as u64), ErrorKind::StorageFull);
        spawn_all(&lab, 2, |lab, index| {
            let writer = lab.writer();
            for _ in 0..3 {
                let appended = match index {
                    0 => writer.submit_bytes(b"entry").and_then(|ticket| ticket.wait()),
                    _ => writer.append_bytes_durable(b"entry"),
                };
                match appended {
                    Ok(entry_id) => lab.assert_durable(entry_id),
                    Err(error) => {
                        assert!(error.is_out_of_space(), "{error}");
                        super::retry(|| writer.flush_and_sync());
                    }
                }
            }
        });
        assert_eq!(lab.close_and_count(), 6);
        lab.assert_free();
    });
}

/// A write or sync fails, of a commit, of a segment in the making or of a seal behind everybody's back: everybody
/// hears of it, and what is appended afterwards never succeeds.
#[test]
fn a_failure_of_the_helper_poisons_the_log() {
    explore("a failure of the helper", || {
        let lab = Lab::new(with_helper);
        let operation =
            [Operation::Complete, Operation::Submit, Operation::Reap, Operation::SyncParentDir][pick(4)];
        lab.fail(At::after_of(operation, pick(8) as u64), ErrorKind::Other);
        spawn_all(&lab, 2, |lab, index| {
            let writer = lab.writer();
            for _ in 0..4 {
                let is_late = lab.has_failed();
                let outcome = match index {
                    0 => writer.append_bytes_durable(b"entry"),
                    _ => writer.submit_bytes(b"entry").and_then(|ticket| ticket.wait()),
                };
                match outcome {
                    Ok(entry_id) => {
                        assert!(!is_late, "entry {entry_id} was acknowledged by a log that had failed");
                        lab.assert_durable(entry_id);
                    }
                    Err(error) => lab.assert_poisoned(&error),
                }
            }
        });
        let closed = lab.close();
        assert!(closed.is_err() || !lab.has_failed(), "a failure was forgotten");
        lab.assert_nothing_acknowledged_is_lost();
        lab.assert_free();
    });
}

/// A log is closed or dropped while somebody makes its segments by hand: afterwards nothing is held, nothing is
/// left, and there is nothing more to do.
#[test]
fn closing_beside_a_hand_leaves_nothing() {
    explore("closing beside a hand", || {
        let hand = PrepareHand::new();
        let given = hand.clone();
        let lab = Lab::new(move |options| {
            with_helper(options);
            options.prepare_ahead = PrepareAhead::ByHand(given);
        });
        let worker = {
            let hand = hand.clone();
            thread::spawn(move || {
                for _ in 0..12 {
                    hand.step();
                    thread::yield_now();
                }
            })
        };
        for _ in 0..3 {
            let entry_id = lab.writer().append_bytes_durable(b"entry").expect("nothing fails");
            lab.assert_durable(entry_id);
        }
        let count = if pick(2) == 0 { lab.close_and_count() } else { lab.drop_and_count() };
        assert_eq!(count, 3);
        assert!(!hand.step(), "a closed log makes no more segments");
        lab.assert_sealed();
        lab.assert_free();
        worker.join().expect("ends");
        lab.assert_free();
    });
}

/// A log is closed without blocking, and cannot be sealed, for want of space or because something failed: closing
/// ends, everybody is told, and nothing holds the log any more.
#[test]
fn a_log_that_cannot_be_sealed_is_given_up() {
    explore("giving up", || {
        let lab = Lab::new(|options| {
            with_helper(options);
            options.prepare_ahead = [PrepareAhead::Thread, PrepareAhead::Never][pick(2)].clone();
        });
        let kind = [ErrorKind::StorageFull, ErrorKind::StorageFull, ErrorKind::Other][pick(3)];
        match kind {
            ErrorKind::StorageFull => {
                let first = pick(3);
                (first..=first + pick(3)).for_each(|skipped| {
                    lab.fail(At::after_of(Operation::OpenCommitFile, skipped as u64), kind);
                });
            }
            _ => lab.fail(At::after_of(Operation::Complete, pick(6) as u64), kind),
        }
        spawn_all(&lab, 3, |lab, index| {
            let Some(writer) = lab.try_handle() else { return };
            if index == 2 {
                let closing = writer.close_async();
                if pick(2) == 0 {
                    lab.let_go();
                }
                match shuttle::future::block_on(closing) {
                    Ok(()) => lab.assert_sealed(),
                    // The log stays open for the others.
                    Err(error) if error.is_out_of_space() => return,
                    Err(_) => {}
                }
                // Other handles are left, and tickets: neither holds anything.
                return lab.assert_free();
            }
            let mut tickets = Vec::new();
            if index == 0 {
                tickets.extend((0..3).map(|_| writer.submit_bytes(b"entry")));
            }
            // Perhaps nobody is left who would close the log again: then it is given up, and tickets are told.
            let writer = if pick(2) == 0 { None } else { Some(writer) };
            for _ in 0..3 {
                let outcome = match (tickets.pop(), &writer) {
                    (Some(ticket), _) => ticket.and_then(|ticket| shuttle::future::block_on(ticket)),
                    (None, Some(writer)) => writer.append_bytes_durable(b"entry"),
                    (None, None) => break,
                };
                match outcome {
                    Ok(entry_id) => lab.assert_durable(entry_id),
                    Err(PersistenceError::Poisoned { .. } | PersistenceError::InvalidState { .. }) => {}
                    Err(error) => assert!(error.is_out_of_space(), "{error}"),
                }
            }
        });
        lab.leave();
    });
}
