//! Flushes that nobody waits for: several in flight, out of order, failing in the middle, and what else may be asked
//! for meanwhile.

use crate::damage::{Frame, contents, frames};
use crate::power_cut::{campaign, check, must, payload, seeds};
use durability::formats::frame::FrameKind;
use durability::limits::FLUSHES_IN_FLIGHT_MAX;
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory, Operation};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{
    Backpressure, PrepareAhead, PrepareHand, SyncWalWriter, WalOptions, WalReader, WalReplayMode, WalWriter,
};
use durability::{Directory, PersistenceError};
use std::io::ErrorKind;
use std::sync::Arc;

type Disk = FaultyDirectory<SimDisk>;
type Shared = SyncWalWriter<(), Disk>;
type Own = WalWriter<(), Disk>;

fn options() -> WalOptions {
    WalOptions {
        flush_policy: FlushPolicy::EveryN(2),
        preallocate_bytes: 0,
        prepare_ahead: PrepareAhead::Never,
        ..WalOptions::default()
    }
}

/// Either writer, with what both can do.
enum Wal {
    Shared(Shared),
    Own(Own),
}

impl Wal {
    fn both(options: &WalOptions) -> [(SimDisk, Faults, Self); 2] {
        [0, 1].map(|which| {
            let (disk, faults) = (SimDisk::new(7), Faults::new());
            let directory = Arc::new(faults.over(disk.clone()));
            let mut own = Own::open_with(directory, options.clone()).expect("opens");
            assert_eq!(own.append_bytes_durable(&payload(1)).expect("commits"), 1);
            let wal = if which == 0 {
                Self::Own(own)
            } else {
                Self::Shared(Shared::from_writer(own).expect("shares"))
            };
            (disk, faults, wal)
        })
    }

    fn append(&mut self) -> Result<u64, PersistenceError> {
        match self {
            Self::Shared(wal) => wal.append_bytes(&payload(wal.last_entry_id() + 1)),
            Self::Own(wal) => wal.append_bytes(&payload(wal.next_entry_id())),
        }
    }

    fn flush(&mut self) -> Result<(), PersistenceError> {
        match self {
            Self::Shared(wal) => wal.flush(),
            Self::Own(wal) => wal.flush(),
        }
    }

    fn flush_and_sync(&mut self) -> Result<(), PersistenceError> {
        match self {
            Self::Shared(wal) => wal.flush_and_sync(),
            Self::Own(wal) => wal.flush_and_sync(),
        }
    }

    fn durable_entry_id(&self) -> u64 {
        match self {
            Self::Shared(wal) => wal.durable_entry_id(),
            Self::Own(wal) => wal.durable_entry_id(),
        }
    }

    fn close(self) -> Result<(), PersistenceError> {
        match self {
            Self::Shared(wal) => wal.close(),
            Self::Own(wal) => wal.close(),
        }
    }
}

/// The most commits that were in flight at once.
fn most_in_flight(faults: &Faults) -> i64 {
    let (mut in_flight, mut most) = (0, 0);
    for (operation, _) in faults.trace() {
        match operation {
            Operation::Submit => in_flight += 1,
            Operation::Complete => in_flight -= 1,
            _ => {}
        }
        most = most.max(in_flight);
    }
    most
}

fn entries(disk: &SimDisk, mode: WalReplayMode) -> u64 {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
    let visit = |entry_id: u64, bytes: &[u8]| {
        assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
        Ok(())
    };
    reader.replay_bytes_from(1, mode, visit).expect("reads").entries
}

#[test]
fn several_are_in_flight_beside_each_other_and_no_more_than_is_promised() {
    for (disk, faults, mut wal) in Wal::both(&options()) {
        for entry_id in 2..=400 {
            assert_eq!(wal.append().expect("appends"), entry_id);
            assert_eq!(wal.durable_entry_id(), 1, "a flush makes nothing durable");
        }
        let most = most_in_flight(&faults);
        assert!(most > 1, "each one was waited for");
        assert!(most <= FLUSHES_IN_FLIGHT_MAX as i64, "{most} in flight");
        wal.flush_and_sync().expect("syncs");
        assert_eq!(wal.durable_entry_id(), 400);
        wal.append().expect("appends");
        wal.close().expect("closes with what is in flight");
        assert_eq!(entries(&disk, WalReplayMode::Strict), 401);
    }
}

#[test]
fn each_append_that_is_a_flush_is_waited_for() {
    for policy in [FlushPolicy::PerAppend, FlushPolicy::EveryN(1), FlushPolicy::EveryN(0)] {
        for (disk, faults, mut wal) in Wal::both(&WalOptions { flush_policy: policy, ..options() }) {
            for entry_id in 2..=20 {
                assert_eq!(wal.append().expect("appends"), entry_id);
                assert_eq!(entries(&disk, WalReplayMode::BestEffortTail), entry_id);
            }
            assert_eq!(most_in_flight(&faults), 1);
        }
    }
}

#[test]
fn one_that_fails_among_others_poisons_and_nothing_behind_it_becomes_durable() {
    for nth in 0..5 {
        for (disk, faults, mut wal) in Wal::both(&options()) {
            faults.inject(At::after_of(Operation::Complete, nth), Fault::Fail(ErrorKind::Other));
            let failed = (0..200).find_map(|_| wal.append().err()).expect("an append meets it");
            assert!(
                matches!(failed, PersistenceError::Poisoned { durable_entry_id: 1, .. })
                    || matches!(failed, PersistenceError::Io { .. }),
                "{failed}"
            );
            for again in [wal.append().err(), wal.flush().err(), wal.flush_and_sync().err()] {
                let again = again.expect("nothing succeeds any more");
                assert!(matches!(again, PersistenceError::Poisoned { durable_entry_id: 1, .. }), "{again}");
            }
            assert!(wal.close().is_err());
            let from_operation = disk.operations();
            let crashes = SimOptions { from_operation, images_per_point: 8, ..SimOptions::default() };
            check_crashes(&disk, &crashes, |image, _| check(image, &[1]))
                .expect("what is left can be opened");
        }
    }
}

#[test]
fn one_that_fails_last_is_met_by_whoever_waits() {
    for (_, faults, mut wal) in Wal::both(&options()) {
        faults.inject(At::next_of(Operation::Complete), Fault::Fail(ErrorKind::Other));
        // One flush has begun; whether the append has looked at its end already, the seed says.
        let appended = (0..2).try_for_each(|_| wal.append().map(|_| ()));
        assert!(appended.is_err() || wal.flush().is_err(), "it was believed");
        assert!(wal.flush_and_sync().is_err());
    }
}

/// Appends, flushes and commits of one thread, with several flushes in flight and segments of any size.
#[test]
fn no_power_cut_beside_flushes_in_flight_loses_what_was_acknowledged() {
    campaign("flushes in flight", seeds(24), |seed| {
        let disk = SimDisk::new(seed);
        let mut random = crate::power_cut::Random(seed);
        let options = WalOptions {
            segment_bytes_max: [2048, 6000, 1 << 20][random.below(3) as usize],
            preallocate_bytes: [0, 4096][random.below(2) as usize],
            pipeline_depth: [None, Some(3)][random.below(2) as usize],
            ..options()
        };
        let directory = Arc::new(disk.clone());
        let wal = SyncWalWriter::<(), SimDisk>::configure(directory, options).expect("opens");
        for _ in 0..40 {
            let next = wal.last_entry_id() + 1;
            match random.below(10) {
                0 => wal.flush().expect("flushes"),
                1 => {
                    wal.flush_and_sync().expect("syncs");
                    disk.mark(next - 1);
                }
                2 => disk.mark(wal.append_bytes_durable(&payload(next)).expect("commits")),
                3 => {
                    let ticket = wal.submit_bytes(&payload(next)).expect("is accepted");
                    disk.mark(ticket.wait().expect("commits"));
                }
                _ => assert_eq!(wal.append_bytes(&payload(next)).expect("appends"), next),
            }
            disk.mark(wal.durable_entry_id());
        }
        let last = wal.last_entry_id();
        match random.below(2) {
            0 => wal.close().expect("closes"),
            _ => drop(wal),
        }
        disk.mark(last);
        let crashes = SimOptions { seed, images_per_point: 8, ..SimOptions::default() };
        must(check_crashes(&disk, &crashes, check), seed)
    });
}

#[test]
fn what_has_ended_makes_room_although_nobody_waits_for_it() {
    let options = WalOptions { in_flight_bytes_max: 2000, backpressure: Backpressure::Refuse, ..options() };
    let disk = SimDisk::new(3);
    let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options).expect("opens");
    let mut refused = 0;
    while wal.last_entry_id() < 300 && refused < 10_000 {
        let next = wal.last_entry_id() + 1;
        match next % 7 {
            // Tickets are refused by the same rule.
            0 => match wal.submit_bytes(&payload(next)) {
                Ok(ticket) => assert_eq!(ticket.wait().expect("commits"), next),
                Err(error) => refused += count_refusal(&error),
            },
            _ => match wal.append_bytes(&payload(next)) {
                Ok(entry_id) => assert_eq!(entry_id, next),
                Err(error) => refused += count_refusal(&error),
            },
        }
    }
    assert_eq!(wal.last_entry_id(), 300, "it was refused for ever");
}

fn count_refusal(error: &PersistenceError) -> u64 {
    assert!(matches!(error, PersistenceError::WouldBlock { .. }), "{error}");
    1
}

/// How many writes a hand needs for the segments and the seals of a log, from the third rotation to the fifth.
fn writes_of_the_hand(commits: bool) -> usize {
    let (faults, hand) = (Faults::new(), PrepareHand::new());
    let options = WalOptions {
        segment_bytes_max: 2 << 20,
        preallocate_bytes: 1 << 20,
        prepare_ahead: PrepareAhead::ByHand(hand.clone()),
        ..WalOptions::default()
    };
    let wal = Shared::configure(Arc::new(faults.over(SimDisk::new(1))), options).expect("opens");
    let writes = || faults.trace().iter().filter(|(operation, _)| *operation == Operation::Submit).count();
    let mut made = 0;
    while wal.rotations() < 5 {
        match commits {
            true => wal.append_bytes_durable(&[7; 32 << 10]).expect("commits"),
            false => wal.append_bytes(&[7; 32 << 10]).expect("appends"),
        };
        let before = writes();
        while hand.step() {}
        made += if wal.rotations() > 2 { writes() - before } else { 0 };
    }
    assert_eq!(wal.rotation_stall(), std::time::Duration::ZERO);
    made
}

#[test]
fn what_nobody_commits_to_is_not_written_twice() {
    let (streamed, committed) = (writes_of_the_hand(false), writes_of_the_hand(true));
    // Headers and seals; zeros in pieces of a quarter of a megabyte besides.
    assert!(streamed <= 8, "{streamed} writes for two or three segments and as many seals");
    assert!(committed >= 2 * 8, "{committed}: commits change no metadata");
}

/// The frames of a log's only segment after small and large flushes, and its last entry.
fn frames_of_flushes(attested: bool) -> (Vec<Frame>, u64) {
    let disk = SimDisk::new(1);
    let options = WalOptions { flush_policy: FlushPolicy::Manual, ..options() };
    let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options).expect("opens");
    for bytes in [100, 40_000, 33_000, 5000, 50_001] {
        wal.append_bytes(&vec![7; bytes]).expect("appends");
        wal.flush().expect("flushes");
    }
    if attested {
        wal.attest().expect("seals");
    }
    (frames(&contents(&disk, "wal/wal_1.log")), wal.last_entry_id())
}

#[test]
fn a_large_flush_ends_with_a_block() {
    let (frames, _) = frames_of_flushes(false);
    let data: Vec<_> = frames.iter().filter(|frame| frame.kind == FrameKind::Data).collect();
    assert_eq!(data.len(), 5);
    for pair in data.windows(2) {
        let (end, next) = (pair[0].offset + pair[0].bytes, pair[1].offset);
        let is_large = pair[0].bytes >= 32 << 10;
        assert_eq!(next, if is_large { end.next_multiple_of(4096) } else { end });
    }
}

#[test]
fn what_fills_a_block_attests_no_entry() {
    let (frames, last_entry_id) = frames_of_flushes(true);
    let [.., filler, seal] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((filler.kind, filler.durable_entry_id), (FrameKind::Seal, 0));
    assert_eq!((seal.kind, seal.durable_entry_id), (FrameKind::Seal, last_entry_id));
}

#[test]
fn no_power_cut_of_a_stream_loses_or_invents_anything() {
    campaign("streams", seeds(2), |seed| {
        let disk = SimDisk::new(seed);
        let hand = PrepareHand::new();
        let is_helped = seed % 2 == 0;
        if seed / 2 % 2 == 0 {
            disk.write_directly();
        }
        let options = WalOptions {
            segment_bytes_max: 280 << 10,
            preallocate_bytes: 4096,
            prepare_ahead: PrepareAhead::ByHand(hand.clone()),
            ..WalOptions::default()
        };
        let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
        if is_helped {
            wal.prepare_ahead().expect("is told who prepares");
        }
        for round in 0..14 {
            let next = wal.next_entry_id();
            let batch: Vec<_> = (next..next + 200).map(payload).collect();
            wal.append_batch_bytes(&batch).expect("appends");
            hand.step();
            if round % 6 == 5 {
                wal.flush_and_sync().expect("syncs");
                disk.mark(wal.last_entry_id());
            }
        }
        assert!(wal.rotations() >= 3, "segments follow each other");
        drop(wal);
        let crashes = SimOptions { seed, images_per_point: 2, stride: 3, ..SimOptions::default() };
        must(check_crashes(&disk, &crashes, check), seed)
    });
}

/// Flushes whose last block is filled, beside small ones and commits: seals are torn, or survive without their frame.
#[test]
fn no_power_cut_beside_filled_blocks_loses_what_was_acknowledged() {
    campaign("filled blocks", seeds(3), |seed| {
        let (disk, mut random) = (SimDisk::new(seed), crate::power_cut::Random(seed));
        let options = WalOptions {
            segment_bytes_max: [40_000, 100_000, 1 << 20][random.below(3) as usize],
            preallocate_bytes: [0, 4096][random.below(2) as usize],
            frame_alignment: [512, 1024, 2048][random.below(3) as usize],
            flush_policy: FlushPolicy::Manual,
            ..options()
        };
        let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options).expect("opens");
        for _ in 0..12 {
            let next = wal.last_entry_id() + 1;
            let entries = [1, 90, 90, 120][random.below(4) as usize];
            let batch: Vec<_> = (next..next + entries).map(payload).collect();
            wal.append_batch_bytes(&batch).expect("appends");
            match random.below(6) {
                0 => wal.flush_and_sync().expect("syncs"),
                1 => wal.attest().expect("attests"),
                _ => wal.flush().expect("flushes"),
            }
            disk.mark(wal.durable_entry_id());
        }
        drop(wal);
        let crashes = SimOptions { seed, images_per_point: 4, ..SimOptions::default() };
        must(check_crashes(&disk, &crashes, check), seed)
    });
}

/// On a ring a flush begins when it is submitted, not when somebody waits.
#[cfg(target_os = "linux")]
#[test]
fn what_is_flushed_reaches_the_file_although_nobody_calls_again() {
    use durability::DurableDirectory;
    use durability::backends::Backend;
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let opened = match Backend::IoUring.open(root.path()) {
        Ok(opened) => opened,
        Err(error) => return crate::support::skip(&format!("no ring: {error}")),
    };
    let open = || WalOptions { flush_policy: FlushPolicy::EveryN(4), ..WalOptions::default() };
    let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(Arc::clone(&opened.directory), open());
    let wal = wal.expect("opens");
    let reader = WalReader::<(), dyn DurableDirectory>::new(opened.directory);
    let began = std::time::Instant::now();
    for _ in 0..4 {
        wal.append_bytes(b"entry").expect("appends");
    }
    let count = || reader.replay_bytes(WalReplayMode::BestEffortTail).map_or(0, |records| records.len());
    while count() < 4 {
        assert!(began.elapsed().as_secs() < 20, "it never began");
        std::thread::yield_now();
    }
}

/// The files of a log that one owner wrote and closed, on a disk that completes flushes in the order of its seed.
fn bytes_written(seed: u64, is_direct: bool) -> Vec<Vec<u8>> {
    let disk = SimDisk::new(seed);
    if is_direct {
        disk.write_directly();
    }
    let options = WalOptions {
        segment_bytes_max: 1 << 20,
        environment: Arc::new(SeededEnvironment::new(1)),
        ..WalOptions::default()
    };
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    for round in 0..60u32 {
        for _ in 0..64 {
            wal.append_bytes(&vec![round as u8; 300 + round as usize * 7]).expect("appends");
        }
        if round % 20 == 19 {
            wal.flush_and_sync().expect("syncs");
        }
    }
    wal.close().expect("closes");
    let mut names = disk.list_dir("wal").expect("lists");
    names.retain(|name| name.ends_with(".log"));
    names.sort();
    names.iter().map(|name| contents(&disk, &format!("wal/{name}"))).collect()
}

#[test]
fn what_one_owner_writes_depends_neither_on_how_nor_on_how_fast_the_disk_takes_it() {
    let reference = bytes_written(1, false);
    let is_seal = |frame: &Frame| frame.kind == FrameKind::Seal;
    let seals = reference.iter().map(|bytes| frames(bytes).iter().filter(|frame| is_seal(frame)).count());
    let seals: usize = seals.sum();
    assert!(reference.len() > 1 && seals > 2 * reference.len(), "blocks are filled");
    for (seed, is_direct) in [(2, false), (1, true), (2, true), (3, true)] {
        assert!(bytes_written(seed, is_direct) == reference, "seed {seed}, direct: {is_direct}");
    }
}

/// A batch that alone is more than may wait, and is small beside what is flushed beside others; or is not to be flushed.
#[test]
fn what_is_pending_is_flushed_where_it_alone_is_more_than_may_wait() {
    for seed in 1..40 {
        let flush_policy = [FlushPolicy::EveryN(2), FlushPolicy::Manual][seed as usize % 2];
        let options = WalOptions {
            in_flight_bytes_max: 2000,
            backpressure: Backpressure::Refuse,
            flush_policy,
            ..options()
        };
        let disk = SimDisk::new(seed);
        let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk), options).expect("opens");
        let mut refused = 0;
        while wal.last_entry_id() < 60 {
            match wal.append_bytes(&vec![1; [300, 300, 300, 300, 2500][wal.last_entry_id() as usize % 5]]) {
                Ok(_) => refused = 0,
                Err(error) => refused += count_refusal(&error),
            }
            assert!(refused < 1000, "{flush_policy:?}, seed {seed}: it is refused for ever");
        }
    }
}

/// What a full device has refused stays appended; when all that may wait is that, somebody has to try again.
#[test]
fn a_log_that_is_full_of_refused_entries_goes_on_when_there_is_space() {
    let options =
        || WalOptions { in_flight_bytes_max: 2000, backpressure: Backpressure::Refuse, ..options() };
    for by_ticket in [true, false] {
        let disk = SimDisk::new(1);
        let wal = SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options()).expect("opens");
        disk.limit_capacity(Some(0));
        let append = |bytes: &[u8]| match by_ticket {
            true => wal.submit_bytes(bytes).and_then(|ticket| ticket.wait()),
            false => wal.append_bytes(bytes),
        };
        let refused = (0..9).filter(|_| append(&[1; 600]).is_err()).count();
        assert!(refused >= 5 && wal.last_entry_id() >= 4, "there is no space, and it is full");
        disk.limit_capacity(None);
        let began = std::time::Instant::now();
        while append(&[1; 600]).is_err() {
            assert!(began.elapsed().as_secs() < 20, "by ticket: {by_ticket}: it is refused for ever");
            std::thread::yield_now();
        }
        wal.flush_and_sync().expect("syncs");
        let last = wal.last_entry_id();
        wal.close().expect("closes");
        let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.after_kill()));
        assert_eq!(reader.replay_bytes(WalReplayMode::Strict).expect("reads").len() as u64, last);
    }
}
