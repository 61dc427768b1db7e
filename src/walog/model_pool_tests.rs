//! Models of who makes segments ahead of need: the pool alone, a helper, and one who needs segments.
//!
//! Lives here: what must hold of the pool whatever the log above it does; `walog::models::ahead` has the log.
//! Run by `scripts/model-check.sh`, and only with `--cfg durability_shuttle`.

use super::*;
use crate::formats::frame::{FrameSeed, Seal, SealReason};
use crate::formats::names::WalName;
use crate::framing::{Control, control_commit};
use crate::storage::SeededEnvironment;
use crate::testing::faults::{At, Fault, Faults, FaultyDirectory, Operation};
use crate::testing::sim::SimDisk;
use crate::walog::PrepareHand;
use crate::walog::models::lab::{explore, pick};
use shuttle::rand::{Rng, thread_rng};
use std::io::ErrorKind;
use std::time::Duration;

type Dir = FaultyDirectory<SimDisk>;

/// A pool on a slow disk, as a log has it that wrote nothing yet.
struct Bench {
    disk: SimDisk,
    faults: Faults,
    options: WalOptions,
    latch: Latch,
    pool: Arc<Pool<Dir>>,
}

impl Bench {
    fn new(segment_bytes_max: u64, preallocate_bytes: u64) -> Self {
        let (disk, faults) = (SimDisk::new(thread_rng().r#gen()), Faults::new());
        disk.slow_down(Duration::from_micros(1));
        let options = WalOptions {
            environment: Arc::new(SeededEnvironment::new(1)),
            segment_bytes_max,
            preallocate_bytes,
            prepared_segments_min: 1 + pick(2),
            ..WalOptions::default()
        };
        disk.create_dir_all(names::WAL_DIRECTORY).expect("a folder");
        let directory = Arc::new(faults.over(disk.clone()));
        let lock = directory.lock(names::WAL_LOCK, Duration::ZERO).expect("nobody else is there");
        let latch = Latch::new();
        let pool = Pool::new(directory, &options, Arc::from(lock), latch.clone(), (7, 1));
        Self { disk, faults, options, latch, pool: Arc::new(pool) }
    }

    /// The log goes on in a segment of the pool's.
    fn enter(&self, retired: Option<Retired>) -> PersistenceResult<Prepared> {
        let prepared = self.pool.obtain(&self.options, false)?.prepared;
        self.pool.enter(&prepared, retired)?;
        Ok(prepared)
    }

    /// From here on somebody makes them ahead of need: a thread of the log's, or one with a hand.
    fn begin(&self) -> JoinHandle<()> {
        self.pool.make_ahead(&self.options);
        if pick(2) == 0 {
            return start_helper(&self.pool).expect("starts");
        }
        let hand = PrepareHand::new();
        let pool = Arc::downgrade(&self.pool);
        hand.give(move || pool.upgrade().is_some_and(|pool| pool.step()));
        thread::spawn(move || {
            for _ in 0..20 {
                hand.step();
                thread::yield_now();
            }
        })
    }

    /// Waits until as many are ready as are to be; who makes them tells.
    fn await_ready(&self) {
        let mut state = self.pool.state();
        while state.ready.len() < state.ready_min {
            state = self.pool.made.wait(state).expect("no panic");
        }
    }

    /// Ends it as a log that is closed does, beside whoever still works on it.
    fn close(&self) -> PersistenceResult<()> {
        self.pool.stop();
        let sealed = self.pool.seal_retired();
        self.leave();
        sealed
    }

    /// As one that is dropped, and cannot be closed.
    fn leave(&self) {
        self.pool.stop();
        if !self.latch.is_tripped() {
            self.pool.discard_unused();
        }
        self.pool.release();
    }

    /// Nothing is held any more; segments above `newest_id` are left only by a log that was poisoned.
    fn assert_free(&self, newest_id: u64) {
        self.disk.lock(names::WAL_LOCK, Duration::ZERO).expect("the lock is free");
        for name in self.disk.list_dir(names::WAL_DIRECTORY).expect("lists") {
            let WalName::Segment(id) = names::parse_wal_name(&name) else { continue };
            let path = names::segment_path(id);
            if id > newest_id {
                assert!(self.latch.is_tripped(), "{path} was made, not used, and left");
                self.disk.await_unlocked(&path, Duration::ZERO).expect("nobody holds it");
            }
        }
    }
}

/// A segment that fills up wakes the helper in time: the next ones become ready without anybody who needs them.
#[test]
fn the_helper_hears_of_all_filling() {
    explore("the helper hears of all filling", || {
        let bench = Bench::new(20 << 10, 20 << 10);
        let current = bench.enter(None).expect("nothing fails");
        bench.pool.make_ahead(&bench.options);
        let helper = start_helper(&bench.pool).expect("starts");
        if pick(2) == 0 {
            bench.pool.note_used(5 << 10);
        }
        // The helper is anywhere by then, on its way to sleep too.
        (0..pick(40)).for_each(|_| thread::yield_now());
        bench.pool.note_used(16 << 10);
        // A second one is due at the same time.
        bench.await_ready();
        bench.close().expect("nothing fails");
        helper.join().expect("ends");
        bench.assert_free(current.id);
    });
}

/// Whoever needs segments gets them, in order, although the helper is never told to hurry.
#[test]
fn nobody_waits_for_a_helper_that_has_time() {
    explore("nobody waits for a helper that has time", || {
        let bench = Bench::new(20 << 10, [20 << 10, 0][pick(2)]);
        let mut newest = bench.enter(None).expect("nothing fails").id;
        let helper = bench.begin();
        for _ in 0..3 {
            let prepared = bench.enter(None).expect("nothing fails");
            assert!(prepared.id > newest, "segment {} behind {newest}", prepared.id);
            newest = prepared.id;
        }
        match pick(2) {
            0 => bench.close().expect("nothing fails"),
            _ => bench.leave(),
        }
        bench.assert_free(newest);
        helper.join().expect("ends");
        bench.assert_free(newest);
    });
}

/// One call of making segments fails. Who needs one gets it, or is told; where nothing is in doubt the next try
/// succeeds, and segments are made ahead of need as before; where something is, nothing more is made.
#[test]
fn a_step_that_fails_keeps_nobody_waiting() {
    explore("a step that fails", || {
        let bench = Bench::new(20 << 10, [20 << 10, 0][pick(2)]);
        let mut newest = bench.enter(None).expect("nothing fails yet").id;
        let kind = [ErrorKind::StorageFull, ErrorKind::Other][pick(2)];
        let operation =
            [Operation::OpenCommitFile, Operation::Reserve, Operation::Complete, Operation::SyncParentDir]
                [pick(4)];
        bench.faults.inject(At::after_of(operation, pick(3) as u64), Fault::Fail(kind));
        bench.pool.make_ahead(&bench.options);
        let helper = start_helper(&bench.pool).expect("starts");
        for _ in 0..3 {
            let entered = bench.enter(None).or_else(|error| match bench.latch.is_tripped() {
                true => Err(error),
                // It strikes once.
                false => bench.enter(None),
            });
            match entered {
                Ok(prepared) => newest = prepared.id,
                Err(_) => break,
            }
        }
        if bench.latch.is_tripped() {
            assert!(!bench.pool.step(), "a poisoned log makes no more segments");
        } else if bench.faults.all_struck() && bench.options.preallocate_bytes == 0 {
            let _ = bench.enter(None).inspect(|prepared| newest = prepared.id);
            bench.await_ready();
        }
        let _ = bench.close();
        helper.join().expect("ends");
        bench.assert_free(newest);
    });
}

/// Seals are written while the log goes on, and one may fail: when closing has ended, all are written and
/// durable, or it is known that one is not.
#[test]
fn closing_waits_for_a_seal_that_is_being_written() {
    explore("a seal that is being written", || {
        let bench = Bench::new(20 << 10, 0);
        let mut current = bench.enter(None).expect("nothing fails yet");
        let helper = bench.begin();
        if pick(2) == 0 {
            bench
                .faults
                .inject(At::after_of(Operation::Complete, pick(4) as u64), Fault::Fail(ErrorKind::Other));
        }
        let mut sealed = Vec::new();
        for _ in 0..2 {
            let content =
                Control::Seal(Seal { reason: SealReason::Rotation, successor_id: 0, successor_salt: 0 });
            let seal = control_commit(content, 512, FrameSeed::new(current.salt), 512, 1, 0);
            let (file, path) = (Arc::clone(&current.file), current.path.clone());
            let id = current.id;
            let retired = Retired { id, file, path, seal, offset: 512, effect: Effect::Durable, cut: None };
            sealed.push(current.path.clone());
            match bench.enter(Some(retired)) {
                Ok(next) => current = next,
                Err(_) => {
                    sealed.pop();
                    break;
                }
            }
        }
        let closed = bench.close();
        if closed.is_ok() && !bench.latch.is_tripped() {
            for path in &sealed {
                let file = bench.disk.open_at(path).expect("opens");
                assert_eq!(file.size().expect("has one"), 1024, "{path} has its seal");
            }
        }
        let was_known = bench.latch.is_tripped() || closed.is_err();
        helper.join().expect("ends");
        assert_eq!(was_known, bench.latch.is_tripped() || closed.is_err(), "a failure came after closing");
        bench.assert_free(current.id);
    });
}
