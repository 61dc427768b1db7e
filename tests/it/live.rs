//! Readers beside a writer that commits, rotates, truncates and recycles.

use crate::decoder::Random;
use crate::power_cut::seeds;
use durability::backends::Backend;
use durability::checkpoint::CheckpointWriter;
use durability::formats::header::{FileKind, Header};
use durability::inspect::{Checkpoints, inspect_log, inspect_log_beside};
use durability::publish::CheckpointPublisher;
use durability::storage::FlushPolicy;
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{
    PrepareAhead, PrepareHand, SyncWalWriter, WalCheck, WalFollower, WalMaintenance, WalOptions, WalReader,
    WalReplayMode,
};
use durability::{Directory, DurableDirectory, FsDirectory, PersistenceError};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn payload(entry_id: u64) -> Vec<u8> {
    entry_id.to_le_bytes().repeat(1 + (entry_id as usize * 13) % 120)
}

#[test]
fn a_live_log_never_looks_shorter_than_what_was_acknowledged_nor_damaged() {
    for backend in [Backend::Std, Backend::Auto] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let directory: Arc<dyn DurableDirectory> = backend.open(root.path()).expect("opens").directory;
        let options = WalOptions {
            segment_bytes_max: 16 << 10,
            preallocate_bytes: 16 << 10,
            recycle_capacity: 2,
            flush_policy: FlushPolicy::Manual,
            ..WalOptions::default()
        };
        let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(Arc::clone(&directory), options)
            .expect("opens");
        let (done, cut, durable) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for reader in 0..2 {
                let reader_directory = Arc::clone(&directory);
                let (done, cut, durable) = (&done, &cut, &durable);
                scope.spawn(move || {
                    let reader_of = WalReader::<(), dyn DurableDirectory>::new(reader_directory);
                    let mut rounds = 0;
                    while !done.load(Ordering::SeqCst) || rounds == 0 {
                        rounds += 1;
                        let least = durable.load(Ordering::SeqCst);
                        let from = cut.load(Ordering::SeqCst) + 1;
                        let mut next = from;
                        let replayed =
                            reader_of.replay_bytes_from(from, WalReplayMode::BestEffortTail, |id, bytes| {
                                assert_eq!(
                                    (id, bytes),
                                    (next, &payload(id)[..]),
                                    "{backend} reader {reader}"
                                );
                                next += 1;
                                Ok(())
                            });
                        match replayed {
                            Ok(summary) => assert!(
                                summary.end.last_entry_id >= least,
                                "{backend}: {summary:?}, {least} was durable"
                            ),
                            // Truncation was faster than the reader.
                            Err(PersistenceError::PrefixUnavailable { .. }) => {}
                            Err(error) if error.is_not_found() && least == 0 => {}
                            Err(error) => panic!("{backend} reader {reader}: {error}"),
                        }
                    }
                });
            }
            let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(&directory));
            for entry_id in 1..=1500u64 {
                assert_eq!(wal.append_bytes(&payload(entry_id)).expect("appends"), entry_id);
                if entry_id % 3 == 0 {
                    wal.flush_and_sync().expect("syncs");
                    durable.store(entry_id, Ordering::SeqCst);
                }
                if entry_id % 400 == 0 {
                    cut.store(entry_id - 150, Ordering::SeqCst);
                    maintenance.truncate_to_recycle(entry_id - 150, 2).expect("truncates");
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        wal.close().expect("closes");
    }
}

#[test]
fn a_live_log_is_followed_and_checked_beside_its_writer() {
    for backend in [Backend::Std, Backend::Auto] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let directory: Arc<dyn DurableDirectory> = backend.open(root.path()).expect("opens").directory;
        let options = WalOptions {
            segment_bytes_max: 16 << 10,
            preallocate_bytes: 16 << 10,
            recycle_capacity: 2,
            flush_policy: FlushPolicy::Manual,
            ..WalOptions::default()
        };
        let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(Arc::clone(&directory), options)
            .expect("opens");
        wal.append_bytes_durable(&payload(1)).expect("commits");
        let (done, followed) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (done, followed, wal) = (&done, &followed, &wal);
            let checked = Arc::clone(&directory);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let least = wal.durable_entry_id();
                    let (_, end) = WalCheck::run(&checked, |check| check.scan_all());
                    let end = end.unwrap_or_else(|error| panic!("{backend}: {error}"));
                    assert!(end.last_entry_id >= least, "{backend}: {end:?}, {least} was durable");
                    let inspected = inspect_log(&checked, |check| check.scan_all());
                    assert!(inspected.is_ok_and(|log| log.verdict.is_accepted()), "{backend}");
                }
            });
            let directory = Arc::clone(&directory);
            scope.spawn(move || {
                let mut follower = WalFollower::new(directory, None).expect("follows");
                let mut last_look = false;
                while !last_look {
                    last_look = done.load(Ordering::SeqCst);
                    let mut next = followed.load(Ordering::SeqCst) + 1;
                    let polled = follower.poll(|entry_id, bytes| {
                        assert_eq!((entry_id, bytes), (next, &payload(entry_id)[..]), "{backend}");
                        assert!(entry_id <= wal.durable_entry_id(), "{backend}: {entry_id} is not durable");
                        next += 1;
                        Ok(())
                    });
                    polled.unwrap_or_else(|error| panic!("{backend}: {error}"));
                    followed.store(next - 1, Ordering::SeqCst);
                }
            });
            let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(wal.directory()));
            for entry_id in 2..=600u64 {
                assert_eq!(wal.append_bytes(&payload(entry_id)).expect("appends"), entry_id);
                if entry_id % 3 == 0 {
                    wal.flush_and_sync().expect("syncs");
                }
                if entry_id % 200 == 0 {
                    // Only what was followed goes.
                    let seen = followed.load(Ordering::SeqCst);
                    maintenance.truncate_to_recycle(seen, 2).expect("truncates");
                }
            }
            wal.flush_and_sync().expect("syncs");
            wal.append_bytes_durable(&payload(601)).expect("commits");
            done.store(true, Ordering::SeqCst);
        });
        assert!(followed.into_inner() >= 600, "{backend}: the last commit attests all before it");
        wal.close().expect("closes");
    }
}

/// Checkpoints are published, moved back and replaced beside whoever looks at them: none is ever found damaged, and the
/// log always holds what they require.
#[test]
fn checkpoints_are_looked_at_beside_publishing() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = FsDirectory::arc(root.path()).expect("opens");
    let options = WalOptions { segment_bytes_max: 4 << 10, preallocate_bytes: 0, ..WalOptions::default() };
    let mut wal =
        SyncWalWriter::<(), FsDirectory>::configure(Arc::clone(&directory), options).expect("opens");
    wal.append_bytes_durable(b"first").expect("commits");
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (looked_at, done, seen) = (Arc::clone(&directory), &done, &seen);
        scope.spawn(move || {
            let files = ["state", "state.1", "state.2"].map(str::to_owned);
            while !done.load(Ordering::SeqCst) {
                let found = Checkpoints::read(looked_at.as_ref(), &files, &mut |_| {}).expect("reads");
                let log = inspect_log_beside(&looked_at, found, |check| check.scan_all()).expect("looks");
                assert!(log.verdict.is_accepted(), "{}", log.verdict);
                assert!(log.checkpoints.iter().all(|checkpoint| checkpoint.verdict.is_accepted()));
                seen.fetch_add(log.checkpoints.len() as u64, Ordering::SeqCst);
            }
        });
        let publisher = CheckpointPublisher::new(Arc::clone(&directory)).keep(3);
        let began = std::time::Instant::now();
        let mut published = 0;
        // Until enough was seen, however slow the machine is.
        while (published < 100 || seen.load(Ordering::SeqCst) < 100) && began.elapsed().as_secs() < 60 {
            let last = wal.append_bytes_durable(&[7; 300]).expect("commits");
            let write = |writer: &mut CheckpointWriter<'_, FsDirectory>| writer.write_state(&[7; 3000]);
            publisher
                .publish_with(&mut wal, last, "state", write, |path| Ok(path.into()))
                .expect("publishes");
            published += 1;
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(seen.into_inner() >= 100, "checkpoints were looked at");
    wal.close().expect("closes");
}

/// A writer that does what a seed says.
struct Writer {
    wal: SyncWalWriter<(), SimDisk>,
    disk: SimDisk,
    hand: PrepareHand,
    random: Random,
    cut: AtomicU64,
}

impl Writer {
    fn new(seed: u64) -> Self {
        let (disk, hand, random) = (SimDisk::new(seed), PrepareHand::new(), Random::new(seed));
        let options = WalOptions {
            segment_bytes_max: [1, 3000][random.below(2)],
            preallocate_bytes: [0, 8192][random.below(2)],
            recycle_capacity: 2,
            prepared_segments_min: 1 + random.below(3),
            prepare_ahead: PrepareAhead::ByHand(hand.clone()),
            flush_policy: FlushPolicy::Manual,
            ..WalOptions::default()
        };
        let wal = SyncWalWriter::configure(Arc::new(disk.clone()), options).expect("opens");
        Self { wal, disk, hand, random, cut: AtomicU64::new(0) }
    }

    fn append(&self) {
        self.wal.append_bytes(&payload(self.wal.last_entry_id() + 1)).expect("appends");
    }

    /// A few steps. Nothing behind `seen` goes.
    fn go_on(&self, steps: usize, seen: u64) {
        for _ in 0..steps {
            match self.random.below(8) {
                0..=2 => {
                    self.append();
                    self.wal.flush_and_sync().expect("syncs");
                }
                3 => {
                    self.append();
                    self.wal.flush().expect("flushes");
                }
                4 => self.wal.attest().expect("attests"),
                5 if self.random.below(3) == 0 => {
                    self.cut.store(seen, Ordering::SeqCst);
                    let maintenance = WalMaintenance::new(Arc::new(self.disk.clone()));
                    maintenance.truncate_to_recycle(seen, 2).expect("truncates");
                }
                6 => drop(self.hand.step()),
                // As many as there may be lie ready.
                _ => while self.hand.step() {},
            }
        }
    }
}

type Held = FaultyDirectory<SimDisk>;

/// What reads: hands out what it has seen through, and asks for nothing that was cut.
struct Looker {
    directory: Arc<Held>,
    follower: WalFollower<Held>,
    seen: u64,
}

impl Looker {
    fn look(&mut self, how: usize, writer: &Writer) {
        let least = writer.wal.durable_entry_id();
        let from = writer.cut.load(Ordering::SeqCst) + 1;
        let is_right = |entry_id: u64, bytes: &[u8]| {
            assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
            Ok(())
        };
        match how {
            0 => {
                let reader = WalReader::<(), Held>::new(Arc::clone(&self.directory));
                match reader.replay_bytes_from(from, WalReplayMode::BestEffortTail, is_right) {
                    Ok(replayed) => assert!(replayed.end.last_entry_id >= least, "{replayed:?}, not {least}"),
                    Err(PersistenceError::PrefixUnavailable { .. }) => {}
                    Err(error) => panic!("replay from {from}: {error}"),
                }
            }
            1 => {
                let (_, end) = WalCheck::run(&self.directory, |check| check.scan_all());
                let end = end.unwrap_or_else(|error| panic!("check: {error}"));
                assert!(end.last_entry_id >= least, "{end:?}, not {least}");
            }
            2 => {
                let inspected = inspect_log(&self.directory, |check| check.scan_all()).expect("looks");
                assert!(inspected.verdict.is_accepted(), "inspection: {inspected:?}");
            }
            3 => {
                let reader = WalReader::<(), Held>::new(Arc::clone(&self.directory));
                let range = reader.entry_range(WalReplayMode::BestEffortTail).expect("has a range");
                assert!(range.is_some_and(|(_, last)| last >= least), "{range:?}, not {least}");
                let maintenance = WalMaintenance::new(Arc::clone(&self.directory));
                let ranges = maintenance.segment_ranges(WalReplayMode::BestEffortTail).expect("has ranges");
                assert!(
                    ranges.last().is_some_and(|last| last.end_entry_id >= least),
                    "{ranges:?}, not {least}"
                );
            }
            _ => {
                let mut next = self.seen + 1;
                let polled = self.follower.poll(|entry_id, bytes| {
                    // That it is durable, `follow` shows: a rotation syncs more than it tells its writer.
                    assert_eq!(entry_id, next);
                    next += 1;
                    is_right(entry_id, bytes)
                });
                polled.unwrap_or_else(|error| panic!("follower: {error}"));
                self.seen = next - 1;
            }
        }
    }
}

/// Nobody is held any more where a reader is over, also when it panics.
struct Over<'a> {
    gates: &'a [Gate],
    is_over: &'a AtomicBool,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.gates.iter().for_each(Gate::open);
    }
}

/// Between any two calls of a reader, anything may happen that a writer does; without threads that race.
fn interleave(seed: u64) {
    let (writer, random) = (Writer::new(seed), Random::new(seed ^ 0x5eed));
    writer.append();
    writer.wal.flush_and_sync().expect("syncs");
    let faults = Faults::new();
    let directory = Arc::new(faults.over(writer.disk.clone()));
    let follower = WalFollower::new(Arc::clone(&directory), None).expect("follows");
    let mut looker = Looker { directory, follower, seen: 0 };
    for _ in 0..12 {
        writer.go_on(random.below(12), looker.seen);
        let mut at = faults.calls();
        let gates: Vec<Gate> = (0..1 + random.below(3)).map(|_| Gate::new()).collect();
        for gate in &gates {
            at += 1 + random.below(15) as u64;
            faults.inject(At::call(at), Fault::Hold(gate.clone()));
        }
        let (how, seen, is_over) = (random.below(8), looker.seen, AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (looker, writer, gates, is_over) = (&mut looker, &writer, &gates, &is_over);
            scope.spawn(move || {
                let _over = Over { gates, is_over };
                looker.look(how, writer);
            });
            for gate in gates {
                gate.wait_until_held();
                if !is_over.load(Ordering::SeqCst) {
                    writer.go_on(random.below(20), seen);
                }
                gate.open();
            }
        });
    }
    writer.wal.attest().expect("attests");
    looker.look(4, &writer);
    assert_eq!(looker.seen, writer.wal.last_entry_id(), "all that is attested is followed");
}

#[test]
fn whatever_a_writer_does_between_two_calls_of_a_reader_the_log_stays_sound() {
    for seed in seeds(60) {
        let told = std::panic::catch_unwind(|| interleave(seed));
        assert!(
            told.is_ok(),
            "failed; again: DURABILITY_SEED={seed} cargo test --test it two_calls_of_a_reader"
        );
    }
}

/// Lets `read` run to a read of `path`, where it is held while `act` happens, and returns its answer.
fn hold_at_read<T: Send>(
    faults: &Faults,
    path: &str,
    nth: usize,
    read: impl Fn() -> T + Send + Sync,
    act: impl FnOnce(),
) -> T {
    let begun = faults.calls() as usize;
    read();
    let trace = faults.trace().split_off(begun);
    let mut reads = trace.iter().enumerate().filter(|(_, call)| **call == (Operation::Read, path.to_owned()));
    let (at, _) = reads.nth(nth).expect("was read so often");
    let gate = Gate::new();
    faults.inject(At::call(faults.calls() + at as u64), Fault::Hold(gate.clone()));
    std::thread::scope(|scope| {
        let reading = scope.spawn(read);
        gate.wait_until_held();
        act();
        gate.open();
        reading.join().expect("reads")
    })
}

#[test]
fn the_zeros_of_a_file_that_serves_again_are_no_end_of_the_log() {
    // Before each of the reads of what is then the newest segment.
    for nth in 0..4 {
        let (disk, hand) = (SimDisk::new(1), PrepareHand::new());
        let options = WalOptions {
            segment_bytes_max: 1,
            recycle_capacity: 2,
            prepare_ahead: PrepareAhead::ByHand(hand.clone()),
            flush_policy: FlushPolicy::Manual,
            ..WalOptions::default()
        };
        let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options).expect("opens");
        let append = |count: u64| {
            for _ in 0..count {
                wal.append_bytes_durable(&payload(wal.last_entry_id() + 1)).expect("commits");
            }
        };
        append(3);
        let faults = Faults::new();
        let directory = Arc::new(faults.over(disk.clone()));
        let read = || {
            let reader = WalReader::<(), Held>::new(Arc::clone(&directory));
            reader.replay_bytes_from(3, WalReplayMode::BestEffortTail, |_, _| Ok(()))
        };
        let replayed = hold_at_read(&faults, "wal/wal_3.log", nth, read, || {
            append(3);
            WalMaintenance::new(Arc::new(disk.clone())).truncate_to_recycle(4, 4).expect("truncates");
            while hand.step() {}
            append(3);
        });
        match replayed {
            Err(PersistenceError::PrefixUnavailable { .. }) => {}
            replayed => {
                assert!(replayed.as_ref().is_ok_and(|end| end.end.last_entry_id >= 3), "{replayed:?}")
            }
        }
    }
}

#[test]
fn a_header_that_is_half_there_is_looked_at_again() {
    let writer = Writer::new(1);
    writer.append();
    writer.wal.flush_and_sync().expect("syncs");
    let path = "wal/wal_77.log";
    let header = Header { file_id: 77, ..Header::new(FileKind::Segment, 512, writer.wal.identity(), 5) };
    let header = header.encode();
    let write = |bytes: &[u8]| {
        writer.disk.create_file(path).expect("creates").write_all(bytes).expect("writes");
    };
    let half = [&header[..40], &[0; 472]].concat();
    write(&half);
    let faults = Faults::new();
    let directory = Arc::new(faults.over(writer.disk.clone()));
    let read = || {
        let reader = WalReader::<(), Held>::new(Arc::clone(&directory));
        reader.entry_range(WalReplayMode::BestEffortTail)
    };
    assert!(read().is_err_and(|error| error.is_corruption()), "half of it, for good, is damage");
    // Between the first look and the second.
    let range = hold_at_read(&faults, path, 1, read, || write(&header));
    assert_eq!(range.expect("is sound"), Some((1, 1)));
}
