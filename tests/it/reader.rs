//! Reading a live log by entry id: from memory, from a commit in flight, from files.

use crate::support::within_patience;
use durability::backends::Backend;
use durability::storage::FlushPolicy;
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Gate, Operation};
use durability::testing::sim::SimDisk;
use durability::walog::{PrepareAhead, SyncWalReader, SyncWalWriter, WalMaintenance, WalOptions, WalWriter};
use durability::{Directory, DurableDirectory, MemoryDirectory, PersistenceError};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Disk = FaultyDirectory<SimDisk>;
type Wal = SyncWalWriter<(), Disk>;
type Reader = SyncWalReader<(), Disk>;

fn payload(entry_id: u64) -> Vec<u8> {
    entry_id.to_le_bytes().repeat(1 + (entry_id as usize * 13) % 120)
}

fn options() -> WalOptions {
    // What strikes a call here must not strike one of the thread that makes segments.
    let prepare_ahead = PrepareAhead::Never;
    WalOptions {
        preallocate_bytes: 0,
        prepare_ahead,
        flush_policy: FlushPolicy::Manual,
        ..WalOptions::default()
    }
}

fn open(options: WalOptions) -> (SimDisk, Faults, Wal) {
    let (disk, faults) = (SimDisk::new(1), Faults::new());
    let wal = Wal::configure(Arc::new(faults.over(disk.clone())), options).expect("opens");
    (disk, faults, wal)
}

fn append(wal: &Wal) -> u64 {
    let entry_id = wal.last_entry_id() + 1;
    assert_eq!(wal.append_bytes(&payload(entry_id)).expect("appends"), entry_id);
    entry_id
}

/// Reads one entry, and checks it; answers whether it was durable.
fn read(reader: &Reader, entry_id: u64) -> bool {
    let record = reader.read_bytes(entry_id).unwrap_or_else(|error| panic!("entry {entry_id}: {error}"));
    assert_eq!((record.entry_id, &record.payload), (entry_id, &payload(entry_id)));
    record.is_durable()
}

/// Reads a range both ways, and checks it.
fn read_range(reader: &Reader, first: u64, last: u64) {
    let mut next = first;
    let summary = reader.replay_bytes(first..=last, |entry_id, bytes| {
        assert!((entry_id, bytes) == (next, &payload(next)[..]), "entry {entry_id}, expected {next}");
        next += 1;
        Ok(())
    });
    let summary = summary.expect("reads");
    assert_eq!((next, summary.next_entry_id, summary.entries), (last + 1, last + 1, last + 1 - first));
    let ids: Vec<u64> =
        reader.entries_bytes(first..=last).map(|entry| entry.expect("reads").entry_id).collect();
    assert_eq!(ids, (first..=last).collect::<Vec<_>>());
}

#[test]
fn every_entry_is_read_wherever_it_is_and_the_answer_says_what_is_durable() {
    let (_, _, wal) = open(WalOptions { segment_bytes_max: 4096, ..options() });
    let reader = wal.reader();
    for _ in 0..40 {
        append(&wal);
        wal.flush_and_sync().expect("commits");
    }
    for _ in 0..5 {
        append(&wal);
    }
    wal.flush().expect("flushes");
    for _ in 0..5 {
        append(&wal);
    }
    for entry_id in (1..=50).chain((1..=50).rev()) {
        assert_eq!(read(&reader, entry_id), entry_id <= 40, "entry {entry_id}");
    }
    for (first, last) in [(1, 50), (39, 42), (44, 47), (46, 50), (50, 50), (7, 7), (1, 40)] {
        read_range(&reader, first, last);
    }
    // Ranges as the language spells them.
    assert_eq!(reader.entries_bytes(..).count(), 50);
    assert_eq!(reader.entries_bytes(45..).count(), 6);
    assert_eq!(reader.entries_bytes(..3).count(), 2);
    assert_eq!(reader.entries_bytes(48..1000).count(), 3, "what is not there yet ends it");
    assert_eq!(reader.entries_bytes(51..).count(), 0);
    let summary = reader.replay_bytes(60.., |_, _| panic!("there is none")).expect("is empty");
    assert_eq!((summary.entries, summary.next_entry_id, summary.durable_entry_id), (0, 60, 40));
    wal.flush_and_sync().expect("commits");
    assert!(read(&reader, 50), "and later it is durable");
}

#[test]
fn what_is_in_flight_is_read_when_its_commit_has_ended() {
    let (_, faults, wal) = open(options());
    append(&wal);
    wal.flush_and_sync().expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Complete), Fault::Hold(gate.clone()));
    let reader = wal.reader();
    std::thread::scope(|scope| {
        append(&wal);
        let commits = scope.spawn(|| wal.flush_and_sync());
        gate.wait_until_held();
        let pending = append(&wal);
        assert!(read(&reader, 1), "what is in files waits for nobody");
        assert!(!read(&reader, pending), "nor does what is pending");
        let reads = {
            let reader = reader.clone();
            scope.spawn(move || read(&reader, 2))
        };
        let ranges = scope.spawn(|| read_range(&reader, 1, 3));
        // Long enough for one that does not wait to come back; one that is slow to start sees nothing.
        (0..50_000).take_while(|_| !reads.is_finished()).for_each(|_| std::thread::yield_now());
        gate.open();
        assert!(reads.join().expect("reads"));
        ranges.join().expect("reads");
        commits.join().expect("ends").expect("commits");
    });
}

#[test]
fn what_cannot_be_read_is_told_apart() {
    let (_, _, wal) = open(WalOptions { segment_bytes_max: 1, ..options() });
    let reader = wal.reader();
    let beyond = |entry_id, last| match reader.read_bytes(entry_id) {
        Err(PersistenceError::NotAppended { entry_id: id, last_entry_id }) => {
            assert_eq!((id, last_entry_id), (entry_id, last));
        }
        other => panic!("{other:?}"),
    };
    beyond(1, 0);
    assert!(matches!(reader.read_bytes(0), Err(PersistenceError::InvalidConfig { .. })));
    for _ in 0..10 {
        append(&wal);
        wal.flush_and_sync().expect("commits");
    }
    beyond(11, 10);
    beyond(u64::MAX, 10);
    (1..=10).for_each(|entry_id| assert!(read(&reader, entry_id)));
    let maintenance = WalMaintenance::new(Arc::clone(wal.directory()));
    assert_eq!(maintenance.truncate_prefix(6).expect("truncates"), 6);
    for entry_id in [1, 6] {
        match reader.read_bytes(entry_id) {
            Err(error @ PersistenceError::PrefixUnavailable { wanted_entry_id, first_entry_id: 7 }) => {
                assert_eq!(wanted_entry_id, entry_id);
                assert!(error.to_string().contains("WAL prefix is unavailable"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    let mut entries = reader.entries_bytes(5..);
    assert!(matches!(entries.next(), Some(Err(PersistenceError::PrefixUnavailable { .. }))));
    assert!(entries.next().is_none(), "an error ends it");
    read_range(&reader, 7, 10);
    // A log that begins behind a checkpoint.
    let behind = WalOptions { id_floor: 100, ..options() };
    let (_, _, wal) = open(behind);
    let unavailable = wal.reader().read_bytes(100).expect_err("no such entry");
    assert!(
        matches!(unavailable, PersistenceError::PrefixUnavailable { first_entry_id: 101, .. }),
        "{unavailable}"
    );
    assert_eq!(append(&wal), 101);
    assert!(!read(&wal.reader(), 101));
}

#[test]
fn after_poison_what_is_readable_is_read_and_what_was_in_flight_says_why_not() {
    let (disk, faults, wal) = open(options());
    append(&wal);
    wal.flush_and_sync().expect("commits");
    let gate = Gate::new();
    faults.inject(At::next_of(Operation::Reap), Fault::Hold(gate.clone()));
    faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
    let reader = wal.reader();
    std::thread::scope(|scope| {
        append(&wal);
        let commits = scope.spawn(|| wal.flush_and_sync());
        gate.wait_until_held();
        append(&wal);
        let waits = scope.spawn(|| reader.read_bytes(2).map(drop));
        gate.open();
        commits.join().expect("ends").expect_err("is poisoned");
        let told = waits.join().expect("ends").expect_err("nobody knows");
        assert!(matches!(told, PersistenceError::Poisoned { durable_entry_id: 1, .. }), "{told}");
    });
    drop(wal);
    let reopened = WalWriter::<(), SimDisk>::open(Arc::new(disk)).expect("opens: a reader holds no lock");
    assert!(reopened.last_entry_id() >= 1);
    assert!(read(&reader, 1));
    assert!(matches!(reader.read_bytes(2), Err(PersistenceError::Poisoned { durable_entry_id: 1, .. })));
    assert!(!read(&reader, 3), "pending, and it will never be more");
    assert!(matches!(reader.read_bytes(4), Err(PersistenceError::NotAppended { .. })));
}

#[test]
fn a_reader_outlives_the_writer() {
    let (disk, _, wal) = open(WalOptions { segment_bytes_max: 2000, ..options() });
    (0..30).for_each(|_| assert!(append(&wal) > 0));
    let reader = wal.reader();
    drop(wal);
    read_range(&reader, 1, 30);
    assert!(read(&reader, 30));
    // Also beside the next writer, which it knows nothing of.
    let mut next = WalWriter::<(), SimDisk>::open(Arc::new(disk)).expect("opens: the reader holds no lock");
    next.append_bytes_durable(&payload(31)).expect("commits");
    read_range(&reader, 1, 30);
    assert!(matches!(reader.read_bytes(31), Err(PersistenceError::NotAppended { .. })));
}

#[test]
fn reading_holds_up_no_commit() {
    within_patience(commit_beside_readers_that_are_stuck);
}

fn commit_beside_readers_that_are_stuck() {
    let (_, faults, wal) = open(options());
    (0..20).for_each(|_| assert!(append(&wal) > 0));
    wal.flush_and_sync().expect("commits");
    let reader = wal.reader();
    for held in [Operation::ListDir, Operation::OpenAt, Operation::Read] {
        let gate = Gate::new();
        faults.inject(At::next_of(held), Fault::Hold(gate.clone()));
        std::thread::scope(|scope| {
            let reader = wal.reader();
            let reads = scope.spawn(move || read(&reader, 5));
            if held != Operation::ListDir || !reads.is_finished() {
                gate.wait_until_held();
            }
            let entry_id = append(&wal);
            wal.flush_and_sync().expect("commits beside a reader that is stuck");
            assert_eq!(wal.durable_entry_id(), entry_id);
            gate.open();
            assert!(reads.join().expect("reads"));
        });
    }
    assert!(faults.all_struck());
    read_range(&reader, 1, wal.last_entry_id());
}

#[test]
fn an_entry_near_one_that_was_read_costs_one_small_read() {
    let (_, faults, wal) = open(options());
    // Far more than a few large reads would bring.
    for _ in 0..12_000 {
        append(&wal);
        if wal.last_entry_id() % 3 == 0 {
            wal.flush().expect("flushes");
        }
    }
    let reader = wal.reader();
    read_range(&reader, 1, 12_000);
    for entry_id in [11_990, 10, 6000, 6001] {
        let before = faults.calls() as usize;
        assert!(!read(&reader, entry_id));
        let trace = faults.trace();
        let calls: Vec<_> = trace[before..].iter().map(|(operation, _)| *operation).collect();
        let reads = calls.iter().filter(|operation| **operation == Operation::Read).count();
        assert!((1..=2).contains(&reads), "entry {entry_id}: {calls:?}");
        assert_eq!(calls.iter().filter(|operation| **operation == Operation::OpenAt).count(), 1);
        assert!(!calls.contains(&Operation::ListDir), "{calls:?}");
    }
}

#[test]
fn damage_to_what_was_written_is_reported_and_never_an_end() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory: Arc<dyn DurableDirectory> = Backend::Std.open(root.path()).expect("opens").directory;
    let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(directory, options()).expect("opens");
    for entry_id in 1..=9 {
        wal.append_bytes_durable(&payload(entry_id)).expect("commits");
    }
    let path = root.path().join("wal/wal_1.log");
    let good = std::fs::read(&path).expect("reads");
    let reader = wal.reader();
    assert_eq!(reader.entries_bytes(..).filter(Result::is_ok).count(), 9);
    let begins = good.windows(8).position(|bytes| bytes == &payload(5)[..8]).expect("is there");
    let sector = begins / 512 * 512;
    type Damage<'a> = (&'static str, &'a dyn Fn(&mut Vec<u8>));
    let damages: [Damage; 3] = [
        ("a flipped bit", &|bytes| bytes[begins] ^= 1),
        ("zeros", &|bytes| bytes[sector..][..512].fill(0)),
        ("a file cut short", &|bytes| bytes.truncate(sector)),
    ];
    for (what, damage) in damages {
        let mut bytes = good.clone();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).expect("writes");
        for reader in [reader.clone(), wal.reader()] {
            let error = reader.read_bytes(5).map(drop).expect_err(what);
            assert!(error.is_corruption(), "{what}: {error}");
            let read: Vec<_> = reader.entries_bytes(..).collect();
            assert_eq!(read.len(), 5, "{what}: four entries and the error");
            assert!(read[4].as_ref().is_err_and(PersistenceError::is_corruption), "{what}: {:?}", read[4]);
        }
    }
    std::fs::write(&path, &good).expect("writes");
    assert_eq!(reader.entries_bytes(..).filter(Result::is_ok).count(), 9);
}

#[test]
fn a_log_in_memory_is_read_as_well_and_nothing_in_it_is_durable() {
    let memory: Arc<dyn Directory> = Arc::new(MemoryDirectory::new());
    let wal = SyncWalWriter::<String>::configure(memory, options()).expect("opens");
    let reader = wal.reader();
    for text in ["one", "two", "three", "four"] {
        let bytes = [&[text.len() as u8], text.as_bytes()].concat();
        wal.append_bytes(&bytes).expect("appends");
        if text == "two" {
            wal.flush().expect("flushes");
        }
    }
    for (entry_id, text) in (1..).zip(["one", "two", "three", "four"]) {
        let record = reader.read_bytes(entry_id).expect("reads");
        assert!(record.payload.ends_with(text.as_bytes()) && !record.is_durable());
        #[cfg(feature = "postcard")]
        assert_eq!(reader.read(entry_id).expect("decodes").payload, text);
    }
    #[cfg(feature = "postcard")]
    {
        let mut all = Vec::new();
        let collect = |_, text| {
            all.push(text);
            Ok(())
        };
        reader.replay_each(2.., collect).expect("decodes");
        assert_eq!(all, ["two", "three", "four"]);
    }
}

/// Readers at random places beside a writer that commits, rotates, truncates and recycles, on real files.
#[test]
fn readers_at_random_places_see_every_entry_as_it_was_appended() {
    for backend in [Backend::Std, Backend::Auto] {
        let seed = crate::power_cut::seeds(1)[0];
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let directory: Arc<dyn DurableDirectory> = backend.open(root.path()).expect("opens").directory;
        let options = WalOptions {
            segment_bytes_max: 16 << 10,
            preallocate_bytes: 16 << 10,
            recycle_capacity: 2,
            ..options()
        };
        let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(Arc::clone(&directory), options)
            .expect("opens");
        // Entries up to the one may be gone, those up to the other are appended.
        let (done, cut, appended) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let from_memory = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let reader = wal.reader();
                let (done, cut, appended, from_memory) = (&done, &cut, &appended, &from_memory);
                scope.spawn(move || {
                    let mut random = seed ^ (thread + 1u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let mut rounds = 0;
                    while !done.load(Ordering::SeqCst) || rounds < 50 {
                        rounds += 1;
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let (low, high) = (cut.load(Ordering::SeqCst), appended.load(Ordering::SeqCst));
                        if high == low {
                            continue;
                        }
                        let first = low + 1 + (random >> 33) % (high - low);
                        let last = if rounds % 2 == 0 { first } else { high.min(first + 40) };
                        let mut next = first;
                        for entry in reader.entries_bytes(first..=last) {
                            match entry {
                                Ok(record) => {
                                    assert_eq!(record.entry_id, next, "seed {seed} {backend}");
                                    assert!(record.payload == payload(next), "seed {seed}: entry {next}");
                                    from_memory.fetch_add(u64::from(!record.is_durable()), Ordering::Relaxed);
                                    next += 1;
                                }
                                Err(PersistenceError::PrefixUnavailable { wanted_entry_id, .. }) => {
                                    assert_eq!(wanted_entry_id, next);
                                    assert!(
                                        next <= cut.load(Ordering::SeqCst),
                                        "seed {seed}: {next} is there"
                                    );
                                    next = last + 1;
                                }
                                Err(error) => panic!("seed {seed} {backend}: entry {next}: {error}"),
                            }
                        }
                        assert_eq!(next, last + 1, "seed {seed} {backend}");
                    }
                });
            }
            let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(&directory));
            for entry_id in 1..=2000u64 {
                assert_eq!(wal.append_bytes(&payload(entry_id)).expect("appends"), entry_id);
                appended.store(entry_id, Ordering::SeqCst);
                if entry_id % 5 == 0 {
                    wal.flush_and_sync().expect("syncs");
                }
                if entry_id % 300 == 0 {
                    cut.store(entry_id - 150, Ordering::SeqCst);
                    maintenance.truncate_to_recycle(entry_id - 150, 2).expect("truncates");
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        assert!(from_memory.load(Ordering::Relaxed) > 0, "nothing was read from memory");
        wal.close().expect("closes");
    }
}
