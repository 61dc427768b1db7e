//! Models: threads on one log, in every order that a scheduler can think of.
//!
//! Lives here: small programs of three or four threads over a simulated disk that keeps commits in flight,
//! completes them in any order and takes its time; and what must hold of them under each schedule. shuttle
//! runs one thread at a time and decides at every lock, park and wake-up who goes on; a lost wake-up is a
//! deadlock, which it reports. Run by `scripts/model-check.sh`, and only with `--cfg durability_shuttle`.
//!
//! A failure prints the schedule; `DURABILITY_MODEL_SCHEDULE=... scripts/model-check.sh replay MODEL` runs it
//! again.

#[path = "model_ahead_tests.rs"]
mod ahead;
#[path = "model_lab_tests.rs"]
pub(crate) mod lab;

use super::{Backpressure, CommitTicket};
use crate::error::{PersistenceError, PersistenceResult};
use crate::storage::FlushPolicy;
use crate::sync::thread;
use crate::testing::faults::{At, Operation};
use lab::{Lab, explore, pick, spawn_all};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Nothing that is checked here ever waits so long: the models know no time.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// Two durable appends in a row, on each of three threads.
#[test]
fn every_durable_append_returns_and_is_durable() {
    explore("durable appends", || {
        let lab = Lab::new(|_| {});
        spawn_all(&lab, 3, |lab, _| {
            for _ in 0..2 {
                let entry_id = lab.writer().append_bytes_durable(b"entry").expect("nothing fails");
                lab.assert_durable(entry_id);
            }
        });
        assert_eq!(lab.close_and_count(), 6);
    });
}

/// Flushing and durable committers beside each other; a flush attests nothing.
#[test]
fn flushes_beside_durable_appends_reach_everybody() {
    explore("flushes beside durable appends", || {
        let lab = Lab::new(|options| {
            options.flush_policy = [FlushPolicy::PerAppend, FlushPolicy::Manual][pick(2)];
        });
        spawn_all(&lab, 3, |lab, index| {
            let writer = lab.writer();
            if index == 0 {
                let entry_id = writer.append_bytes_durable(b"entry").expect("nothing fails");
                lab.assert_durable(entry_id);
            } else {
                let entry_id = writer.append_bytes(b"entry").expect("nothing fails");
                writer.flush().expect("nothing fails");
                lab.assert_flushed(entry_id);
                lab.assert_durable(writer.durable_entry_id());
                if index == 2 {
                    writer.wait_durable(entry_id).expect("nothing fails");
                    lab.assert_durable(entry_id);
                }
            }
        });
        assert_eq!(lab.close_and_count(), 3);
    });
}

/// Flushes that nobody waits for, beside threads that wait for theirs, and for commits: these are not starved.
#[test]
fn flushes_that_nobody_waits_for_keep_nobody_waiting() {
    explore("flushes that nobody waits for", || {
        let lab = Lab::new(|options| {
            options.flush_policy = FlushPolicy::EveryN(2);
            options.buffer_bytes = [8, 1 << 10][pick(2)];
        });
        spawn_all(&lab, 3, |lab, index| {
            let writer = lab.writer();
            for _ in 0..3 {
                let entry_id = writer.append_bytes(b"entry").expect("nothing fails");
                match (index, pick(3)) {
                    (0, 0) => {
                        writer.flush().expect("nothing fails");
                        lab.assert_flushed(entry_id);
                    }
                    (1, 0) => {
                        writer.wait_durable(entry_id).expect("nothing fails");
                        lab.assert_durable(entry_id);
                    }
                    (1, 1) => {
                        let ticket = writer.submit_bytes(b"entry").expect("is accepted");
                        lab.assert_durable(ticket.wait().expect("nothing fails"));
                        return;
                    }
                    _ => {}
                }
            }
        });
        lab.assert_durable(lab.writer().durable_entry_id());
        lab.close_and_count();
    });
}

/// More is appended than may wait: appending drives commits.
#[test]
fn backpressure_lets_everybody_go_on() {
    explore("backpressure", || {
        let lab = Lab::new(|options| {
            options.in_flight_bytes_max = 8;
            options.backpressure = Backpressure::Wait;
            options.flush_policy = FlushPolicy::Manual;
        });
        spawn_all(&lab, 3, |lab, _| {
            for _ in 0..2 {
                lab.writer().append_bytes(b"a longer entry").expect("nothing fails");
            }
        });
        assert_eq!(lab.close_and_count(), 6);
    });
}

/// Every way of waiting for a ticket, beside a thread that blocks for its own entry.
#[test]
fn every_ticket_resolves_once_whoever_waits() {
    explore("tickets", || {
        let lab = Lab::new(|_| {});
        let called = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&called);
        spawn_all(&lab, 3, move |lab, index| {
            let writer = lab.writer();
            let entry_id = match index {
                0 => writer.append_bytes_durable(b"entry").expect("nothing fails"),
                1 => {
                    let counted = Arc::clone(&counted);
                    let watched = writer.submit_bytes(b"entry").expect("is accepted");
                    let told = writer.submit_bytes(b"entry").expect("is accepted");
                    told.on_durable(move |outcome| {
                        // A callback's panics are caught: it counts, and the model asserts.
                        let is_true = outcome.is_ok() && watched.is_durable();
                        counted.fetch_add(if is_true { 1 } else { 100 }, Ordering::SeqCst);
                    });
                    let ticket = writer.submit_bytes(b"entry").expect("is accepted");
                    shuttle::future::block_on(ticket).expect("nothing fails")
                }
                _ => {
                    let ticket = writer.submit_bytes(b"entry").expect("is accepted");
                    match pick(2) {
                        0 => ticket.wait().expect("nothing fails"),
                        _ => ticket.wait_timeout(FOR_EVER).expect("nothing fails"),
                    }
                }
            };
            lab.assert_durable(entry_id);
        });
        assert_eq!(lab.close_and_count(), 5);
        assert_eq!(called.load(Ordering::SeqCst), 1, "one call, with the truth");
    });
}

/// Threads that block keep what tickets want waiting, and never leave it so: whoever stops driving hands on to the
/// log's own thread, though nobody who waits for a ticket can drive.
#[test]
fn tickets_beside_threads_that_block_are_driven() {
    explore("tickets beside threads that block", || {
        let lab = Lab::new(|options| {
            options.pipeline_depth = None;
            options.slow_after = [None, Some(FOR_EVER)][pick(2)];
        });
        spawn_all(&lab, 3, move |lab, index| {
            let writer = lab.writer();
            for _ in 0..2 {
                let entry_id = match index {
                    0 => writer.append_bytes_durable(b"entry").expect("nothing fails"),
                    1 if pick(2) == 0 => {
                        let entry_id = writer.append_bytes(b"entry").expect("nothing fails");
                        writer.flush().expect("nothing fails");
                        lab.assert_flushed(entry_id);
                        continue;
                    }
                    1 => writer.append_bytes_durable(b"entry").expect("nothing fails"),
                    _ => {
                        let ticket = writer.submit_bytes(b"entry").expect("is accepted");
                        match pick(3) {
                            0 => shuttle::future::block_on(ticket).expect("nothing fails"),
                            1 => ticket.wait_timeout(FOR_EVER).expect("nothing fails"),
                            _ => {
                                drop(poll_once(ticket));
                                continue;
                            }
                        }
                    }
                };
                lab.assert_durable(entry_id);
            }
        });
        assert_eq!(lab.close_and_count(), 6);
    });
}

/// Tickets are dropped, polled or not, and so is every handle: what was submitted happens.
#[test]
fn what_was_submitted_happens_though_everybody_leaves() {
    explore("everybody leaves", || {
        let lab = Lab::new(|_| {});
        spawn_all(&lab, 2, |lab, index| {
            let writer = lab.take_handle();
            let first = writer.submit_bytes(b"entry").expect("is accepted");
            let second = writer.submit_bytes(b"entry").expect("is accepted");
            match (index + pick(2)) % 2 {
                0 => drop((first, second)),
                _ => {
                    drop(poll_once(first));
                    drop(writer);
                    drop(poll_once(second));
                }
            }
        });
        assert_eq!(lab.drop_and_count(), 4);
    });
}

fn poll_once(mut ticket: CommitTicket) -> CommitTicket {
    shuttle::future::block_on(std::future::poll_fn(|context: &mut Context<'_>| {
        let polled = std::pin::Pin::new(&mut ticket).poll(context);
        if let Poll::Ready(outcome) = polled {
            outcome.expect("nothing fails");
        }
        Poll::Ready(())
    }));
    ticket
}

/// A commit fails while others are in flight and wait: everybody hears of it, nothing succeeds later.
#[test]
fn a_failed_commit_reaches_everybody_who_waits() {
    explore("poison", || {
        let lab = Lab::new(|_| {});
        lab.fail(At::after_of(Operation::Complete, pick(5) as u64), ErrorKind::Other);
        let (handed_in, called) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counters = (Arc::clone(&handed_in), Arc::clone(&called));
        spawn_all(&lab, 3, move |lab, index| {
            let writer = lab.writer();
            for _ in 0..2 {
                let outcome = match index {
                    0 => writer.append_bytes_durable(b"entry"),
                    1 => writer.submit_bytes(b"entry").and_then(|ticket| ticket.wait()),
                    _ => writer.submit_bytes(b"entry").map(|ticket| {
                        let (called, entry_id) = (Arc::clone(&counters.1), ticket.entry_id());
                        counters.0.fetch_add(1, Ordering::SeqCst);
                        ticket.on_durable(move |_| {
                            called.fetch_add(1, Ordering::SeqCst);
                        });
                        lab.writer().wait_durable(entry_id).map_or(0, |()| entry_id)
                    }),
                };
                match outcome {
                    Ok(entry_id) => lab.assert_durable(entry_id),
                    Err(error) => lab.assert_poisoned(&error),
                }
            }
        });
        let _ = lab.close();
        assert_eq!(called.load(Ordering::SeqCst), handed_in.load(Ordering::SeqCst), "callbacks, once each");
        lab.assert_nothing_acknowledged_is_lost();
    });
}

/// A segment cannot be made for lack of space, once: everybody who waits is told, and may try again.
#[test]
fn a_refused_commit_reaches_everybody_and_the_next_one_succeeds() {
    explore("refusal", || {
        let lab = Lab::new(|_| {});
        lab.fail(At::after_of(Operation::OpenCommitFile, pick(2) as u64), ErrorKind::StorageFull);
        spawn_all(&lab, 3, |lab, index| {
            let writer = lab.writer();
            let appended = match index {
                0 => writer.submit_bytes(b"entry").and_then(|ticket| ticket.wait()),
                1 => writer.submit_bytes(b"entry").and_then(|ticket| shuttle::future::block_on(ticket)),
                _ => writer.append_bytes_durable(b"entry"),
            };
            match appended {
                Ok(entry_id) => lab.assert_durable(entry_id),
                Err(error) => {
                    assert!(error.is_out_of_space(), "{error}");
                    retry(|| writer.flush_and_sync());
                }
            }
        });
        assert_eq!(lab.close_and_count(), 3);
    });
}

/// Goes on until there is space, as often as somebody else's refusal may reach us.
fn retry(mut act: impl FnMut() -> PersistenceResult<()>) {
    while let Err(error) = act() {
        assert!(error.is_out_of_space(), "{error}");
        thread::yield_now();
    }
}

/// The log is closed beside threads that append and wait: each is served, or told that it is closed.
#[test]
fn closing_serves_or_refuses_everybody() {
    explore("close beside waiters", || {
        let lab = Lab::new(|_| {});
        spawn_all(&lab, 3, |lab, index| {
            let writer = lab.take_handle();
            let outcome = match index {
                0 => {
                    writer.close().expect("nothing fails");
                    return lab.assert_free();
                }
                1 => writer.append_bytes_durable(b"entry"),
                _ => writer.submit_bytes(b"entry").and_then(|ticket| ticket.wait()),
            };
            match outcome {
                Ok(entry_id) => lab.assert_durable(entry_id),
                Err(PersistenceError::InvalidState { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        });
        lab.drop_and_count();
    });
}

/// The log is closed in both ways at once: whoever asked is told.
#[test]
fn closing_without_blocking_beside_closing_tells_everybody() {
    explore("close_async beside close", || {
        let lab = Lab::new(|_| {});
        spawn_all(&lab, 3, |lab, index| {
            let writer = lab.take_handle();
            let outcome = match index {
                0 => writer.close(),
                1 => shuttle::future::block_on(writer.close_async()),
                _ => writer.submit_bytes(b"entry").and_then(|ticket| ticket.wait().map(drop)),
            };
            match outcome {
                Ok(()) | Err(PersistenceError::InvalidState { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        });
        lab.drop_and_count();
    });
}

/// The thread that commits panics (in the environment): the log is poisoned, and nobody is left waiting.
#[test]
fn a_panic_of_whoever_drives_leaves_nobody_waiting() {
    explore("panic while driving", || {
        let lab = Lab::with_panicking_rotation();
        // No tickets: shuttle takes a panic of the log's own thread for the end of the schedule.
        spawn_all(&lab, 3, |lab, _| {
            let writer = lab.writer();
            for _ in 0..3 {
                match lab::caught(|| writer.append_bytes_durable(b"entry")) {
                    Some(Ok(entry_id)) => lab.assert_durable(entry_id),
                    Some(Err(error)) => lab.assert_poisoned(&error),
                    None => {}
                }
            }
        });
        let _ = lab::caught(|| lab.close());
        lab.assert_nothing_acknowledged_is_lost();
    });
}
