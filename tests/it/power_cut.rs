//! Every crash image of random runs: the contract holds in each.
//!
//! `DURABILITY_SEED` runs one seed, `DURABILITY_SEEDS` that many from 1 on.

use durability::PersistenceError;
#[cfg(feature = "postcard")]
use durability::publish::CheckpointPublisher;
use durability::recordlog::RecordLogReader;
use durability::recordlog::{RecordLogReadMode, RecordLogWriter};
#[cfg(feature = "postcard")]
use durability::recover::{RecoveryOptions, recover_with_wal};
use durability::storage::FlushPolicy;
use durability::testing::sim::{SimDisk, SimOptions, SimReport, check_crashes};
use durability::walog::{PrepareAhead, PrepareHand, SyncWalWriter, WalObserver};
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use std::sync::{Arc, Mutex};

type Wal = WalWriter<(), SimDisk>;

pub(super) fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("DURABILITY_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("DURABILITY_SEEDS").unwrap_or(default)).collect(),
    }
}

/// A small generator, so that a run repeats from its seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// The payload of an entry: its length and bytes follow from its id; some are all zeros.
pub(super) fn payload(entry_id: u64) -> Vec<u8> {
    let mut random = Random(entry_id);
    let bytes = [0, 1, 40, 300, 700, 1600][random.below(6) as usize];
    let value = if random.below(3) == 0 { 0 } else { entry_id as u8 };
    vec![value; bytes]
}

fn options(random: &mut Random) -> WalOptions {
    WalOptions {
        segment_bytes_max: [1, 2048, 6000, 20_000][random.below(4) as usize],
        preallocate_bytes: [0, 4096, 20_000][random.below(3) as usize],
        recycle_capacity: random.below(3) as usize,
        flush_policy: [FlushPolicy::PerAppend, FlushPolicy::Manual, FlushPolicy::EveryN(2)]
            [random.below(3) as usize],
        prepare_ahead: PrepareAhead::Never,
        frame_alignment: if random.below(4) == 0 { 4096 } else { 512 },
        ..WalOptions::default()
    }
}

/// Somebody who makes segments ahead of need, a few steps at a time.
struct Helper {
    hand: PrepareHand,
    random: Random,
}

impl Helper {
    fn new(seed: u64) -> Self {
        Self { hand: PrepareHand::new(), random: Random(!seed) }
    }

    /// The same options, with this hand and one or two segments ready.
    fn join(&mut self, options: WalOptions) -> WalOptions {
        let prepare_ahead = PrepareAhead::ByHand(self.hand.clone());
        WalOptions { prepare_ahead, prepared_segments_min: 1 + self.random.below(2) as usize, ..options }
    }

    /// Sometimes it lags behind, sometimes it does all there is to do.
    fn steps(&mut self) {
        for _ in 0..[0, 1, 2, 3, 20][self.random.below(5) as usize] {
            self.hand.step();
        }
    }
}

fn append(wal: &mut Wal) -> u64 {
    let bytes = payload(wal.next_entry_id());
    wal.append_bytes(&bytes).expect("appends")
}

/// Random appends, batches, flushes, syncs, closes, kills and truncations. What is acknowledged is marked;
/// so is what opening returned.
fn run(disk: &SimDisk, random: &mut Random, steps: u64, mut helper: Option<Helper>) {
    let mut truncated = 0;
    let open = |random: &mut Random, helper: &mut Option<Helper>| {
        let mut options = options(random);
        if let Some(helper) = helper {
            options = helper.join(options);
        }
        let mut wal = Wal::open_with(Arc::new(disk.clone()), options).expect("opens");
        wal.prepare_ahead().expect("is told who prepares");
        wal
    };
    let mut wal = open(random, &mut helper);
    for _ in 0..steps {
        if let Some(helper) = &mut helper {
            helper.steps();
        }
        match random.below(12) {
            0..=2 => {
                append(&mut wal);
            }
            3..=6 => {
                let bytes = payload(wal.next_entry_id());
                let id = wal.append_bytes_durable(&bytes).expect("commits");
                disk.mark(id);
            }
            7 => {
                let next = wal.next_entry_id();
                let batch: Vec<_> = (next..next + 1 + random.below(4)).map(payload).collect();
                wal.append_batch_bytes(&batch).expect("appends");
            }
            8 => wal.flush().expect("flushes"),
            9 => {
                wal.flush_and_sync().expect("syncs");
                disk.mark(wal.last_entry_id());
            }
            10 => {
                let durable = wal.durable_entry_id();
                let upto = truncated + random.below(durable - truncated + 1);
                WalMaintenance::new(Arc::new(disk.clone())).truncate_to_recycle(upto, 2).expect("truncates");
                truncated = upto;
            }
            _ if random.below(3) == 0 => {
                wal.attest().expect("attests");
                disk.mark(wal.last_entry_id());
            }
            _ => {
                match random.below(2) {
                    0 => wal.close().expect("closes"),
                    _ => drop(wal),
                }
                wal = open(random, &mut helper);
                disk.mark(wal.last_entry_id());
            }
        }
    }
}

/// Reads the log: dense ids, right contents, everything acknowledged. Returns the last entry.
fn read(image: &SimDisk, marks: &[u64], mode: WalReplayMode) -> Result<u64, String> {
    let acknowledged = marks.iter().max().copied().unwrap_or(0);
    let reader = WalReader::<(), SimDisk>::new(Arc::new(image.clone()));
    let range = match reader.entry_range(mode) {
        Ok(range) => range,
        Err(error) if error.is_not_found() && acknowledged == 0 => return Ok(0),
        Err(error) => return Err(format!("the log is refused: {error}")),
    };
    let Some((first, last)) = range else {
        return if acknowledged == 0 { Ok(0) } else { Err(format!("no entry of {acknowledged} is left")) };
    };
    let mut next = first;
    let replayed = reader.replay_bytes_from(first, mode, |entry_id, bytes| {
        assert_eq!(entry_id, next, "a gap");
        assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
        next += 1;
        Ok(())
    });
    replayed.map_err(|error| format!("replay from {first} fails: {error}"))?;
    if first > 1 {
        // What was truncated is gone as a prefix: a crash amid that tears no hole.
        match reader.replay_bytes_from(1, mode, |_, _| Ok(())) {
            Err(PersistenceError::PrefixUnavailable { .. }) => {}
            Err(error) => return Err(format!("a truncated prefix looks like damage: {error}")),
            Ok(_) => return Err(format!("entry 1 is read although the log begins at {first}")),
        }
    }
    if next != last + 1 || last < acknowledged {
        return Err(format!(
            "entries {first} to {last} are left, {acknowledged} was acknowledged, next is {next}"
        ));
    }
    Ok(last)
}

fn reopen(disk: &SimDisk) -> durability::PersistenceResult<Wal> {
    Wal::open_with(Arc::new(disk.clone()), WalOptions { preallocate_bytes: 0, ..WalOptions::default() })
}

/// The contract for one image: it can be read, opened, continued, and read again.
pub(super) fn check(image: &SimDisk, marks: &[u64]) -> Result<(), String> {
    let last = read(image, marks, WalReplayMode::BestEffortTail)?;
    let mut wal = reopen(image).map_err(|error| format!("the log does not open: {error}"))?;
    if wal.last_entry_id() != last {
        return Err(format!("reading ends at {last}, opening at {}", wal.last_entry_id()));
    }
    let bytes = payload(last + 1);
    let id =
        wal.append_bytes_durable(&bytes).map_err(|error| format!("no commit after recovery: {error}"))?;
    if id != last + 1 {
        return Err(format!("entry {id} follows {last}"));
    }
    drop(wal);
    let again = read(image, &[id], WalReplayMode::Strict)?;
    if again == id { Ok(()) } else { Err(format!("{again} entries after {id} were acknowledged")) }
}

pub(super) fn campaign(name: &str, seeds: Vec<u64>, mut one: impl FnMut(u64) -> SimReport) {
    let mut total = SimReport::default();
    for seed in seeds {
        let report = one(seed);
        total.points += report.points;
        total.images += report.images;
        total.exhaustive_points += report.exhaustive_points;
    }
    println!(
        "{name}: {} images of {} crash points ({} exhaustive)",
        total.images, total.points, total.exhaustive_points
    );
}

pub(super) fn must(
    result: Result<SimReport, Box<durability::testing::sim::SimFailure>>,
    run_seed: u64,
) -> SimReport {
    result.unwrap_or_else(|failure| panic!("run seed {run_seed} (DURABILITY_SEED={run_seed}): {failure}"))
}

#[test]
fn no_power_cut_loses_or_invents_anything() {
    campaign("wal", seeds(25), |seed| {
        let disk = SimDisk::new(seed);
        run(&disk, &mut Random(seed), 30, None);
        let options = SimOptions { seed, images_per_point: 12, ..SimOptions::default() };
        must(check_crashes(&disk, &options, check), seed)
    });
}

#[test]
fn no_power_cut_beside_the_making_of_segments_loses_or_invents_anything() {
    campaign("wal, prepared ahead", seeds(12), |seed| {
        let disk = SimDisk::new(seed);
        run(&disk, &mut Random(seed), 30, Some(Helper::new(seed)));
        let options = SimOptions { seed, images_per_point: 12, ..SimOptions::default() };
        must(check_crashes(&disk, &options, check), seed)
    });
}

#[test]
fn a_seal_attests_only_what_was_durable_before_it() {
    let disk = SimDisk::new(1);
    let options = WalOptions {
        flush_policy: FlushPolicy::Manual,
        preallocate_bytes: 0,
        segment_bytes_max: 1,
        ..WalOptions::default()
    };
    let mut wal = Wal::open_with(Arc::new(disk.clone()), options).expect("opens");
    // Each goes into a segment of its own; the seal of the one before is what a crash may leave.
    for _ in 0..3 {
        append(&mut wal);
        wal.flush().expect("flushes");
    }
    wal.close().expect("closes");
    disk.mark(3);
    let options = SimOptions { images_per_point: 1 << 8, ..SimOptions::default() };
    must(check_crashes(&disk, &options, check), 1);
}

#[test]
fn no_power_cut_during_recovery_loses_or_invents_anything() {
    campaign("recovery", seeds(4), |seed| {
        let disk = SimDisk::new(seed);
        run(&disk, &mut Random(seed), 14, None);
        let outer = SimOptions { seed, images_per_point: 4, stride: 2, ..SimOptions::default() };
        let mut inner_total = SimReport::default();
        let result = check_crashes(&disk, &outer, |image, marks| {
            // What the first recovery returned is promised from then on.
            let mut wal = reopen(image).map_err(|error| error.to_string())?;
            let mut marks = marks.to_vec();
            marks.push(wal.last_entry_id());
            image.mark(wal.last_entry_id());
            let bytes = payload(wal.next_entry_id());
            let id = wal.append_bytes_durable(&bytes).map_err(|error| error.to_string())?;
            image.mark(id);
            drop(wal);
            let inner = SimOptions { seed, images_per_point: 4, ..SimOptions::default() };
            let before = marks[..marks.len() - 1].to_vec();
            let report = check_crashes(image, &inner, |second, promised| {
                check(second, &[before.clone(), promised.to_vec()].concat())
            });
            let report = report.map_err(|failure| format!("second crash: {failure}"))?;
            inner_total.points += report.points;
            inner_total.images += report.images;
            Ok(())
        });
        must(result, seed);
        inner_total
    });
}

#[test]
fn what_recovery_returned_after_a_failed_sync_survives_the_next_power_cut() {
    campaign("failed sync", seeds(40), |seed| {
        let disk = SimDisk::new(seed);
        let mut random = Random(seed);
        let mut wal = Wal::open_with(Arc::new(disk.clone()), options(&mut random)).expect("opens");
        disk.fail_sync_after(random.below(12));
        for _ in 0..20 {
            let bytes = payload(wal.next_entry_id());
            match wal.append_bytes_durable(&bytes) {
                Ok(id) => disk.mark(id),
                Err(_) => break,
            }
        }
        drop(wal);
        // The machine goes on: the kernel still shows pages that the disk does not have.
        let from_operation = disk.operations();
        let disk = disk.after_kill();
        let mut wal = reopen(&disk).expect("opens");
        disk.mark(wal.last_entry_id());
        let bytes = payload(wal.next_entry_id());
        disk.mark(wal.append_bytes_durable(&bytes).expect("commits"));
        drop(wal);
        let options = SimOptions { seed, from_operation, images_per_point: 40, ..SimOptions::default() };
        must(check_crashes(&disk, &options, check), seed)
    });
}

/// Random steps until a sync fails; `false` when none did.
fn run_until_failure(disk: &SimDisk, wal: &mut Wal, random: &mut Random) -> bool {
    for _ in 0..20 {
        let next = wal.next_entry_id();
        let failed = match random.below(6) {
            0 => wal.append_bytes(&payload(next)).is_err(),
            1 => wal.append_batch_bytes(&[payload(next), payload(next + 1)]).is_err(),
            2 => wal.flush().is_err(),
            3 => wal.attest().map(|()| disk.mark(wal.last_entry_id())).is_err(),
            _ => wal.append_bytes_durable(&payload(next)).map(|id| disk.mark(id)).is_err(),
        };
        if failed {
            return true;
        }
    }
    false
}

#[test]
fn syncs_that_fail_again_and_again_lose_nothing_that_was_promised() {
    campaign("failing syncs", seeds(3), |seed| {
        let mut disk = SimDisk::new(seed);
        let mut random = Random(seed);
        let mut total = SimReport::default();
        for _ in 0..4 {
            let from_operation = disk.operations();
            let mut wal = Wal::open_with(Arc::new(disk.clone()), options(&mut random)).expect("opens");
            disk.mark(wal.last_entry_id());
            disk.fail_sync_after(random.below(14));
            run_until_failure(&disk, &mut wal, &mut random);
            drop(wal);
            let options = SimOptions { seed, from_operation, images_per_point: 4, ..SimOptions::default() };
            let report = must(check_crashes(&disk, &options, check), seed);
            total.points += report.points;
            total.images += report.images;
            disk = disk.after_kill();
            // A sync of recovery itself may fail as well; then nothing was returned, and nothing promised.
            disk.fail_sync_after(random.below(4));
            drop(reopen(&disk));
            disk = disk.after_kill();
        }
        total
    });
}

/// Appends one more entry whenever a commit has become durable, as another thread might while the leader is
/// at work.
struct AppendsBehindTheLeader(Mutex<Option<SyncWalWriter<(), SimDisk>>>, PrepareHand);

impl WalObserver for AppendsBehindTheLeader {
    /// Now and then whoever makes segments ahead of need is faster than the first commit of the new one.
    fn on_segment_rotate(&self, _: u64, new_segment_id: u64) {
        if new_segment_id % 2 == 0 {
            self.1.step();
        }
    }

    fn on_sync(&self, entry_id: u64) {
        if let Some(wal) = self.0.lock().expect("no panic").as_ref().filter(|_| entry_id % 2 == 0) {
            wal.append_bytes(&payload(wal.last_entry_id() + 1)).expect("appends");
        }
    }
}

#[test]
fn no_power_cut_loses_what_a_shared_log_acknowledged() {
    campaign("shared wal", seeds(12), |seed| share(seed, None));
}

#[test]
fn no_power_cut_beside_the_making_of_segments_loses_what_a_shared_log_acknowledged() {
    campaign("shared wal, prepared ahead", seeds(12), |seed| share(seed, Some(Helper::new(seed))));
}

fn share(seed: u64, mut helper: Option<Helper>) -> SimReport {
    let disk = SimDisk::new(seed);
    let mut random = Random(seed);
    let mut options = WalOptions { flush_policy: FlushPolicy::Manual, ..options(&mut random) };
    if let Some(helper) = &mut helper {
        options = helper.join(options);
    }
    let hand = helper.as_ref().map_or_else(PrepareHand::new, |helper| helper.hand.clone());
    let mut single = Wal::open_with(Arc::new(disk.clone()), options).expect("opens");
    let behind = Arc::new(AppendsBehindTheLeader(Mutex::default(), hand));
    single.set_observer(Arc::clone(&behind) as Arc<dyn WalObserver>);
    let wal = SyncWalWriter::from_writer(single).expect("shares");
    *behind.0.lock().expect("no panic") = Some(wal.clone());
    for _ in 0..20 {
        if let Some(helper) = &mut helper {
            helper.steps();
        }
        let next = wal.last_entry_id() + 1;
        match random.below(6) {
            0 => assert_eq!(wal.append_bytes(&payload(next)).expect("appends"), next),
            1 => drop(wal.append_batch_bytes(&[payload(next), payload(next + 1)]).expect("appends")),
            2 => wal.flush().expect("flushes"),
            3 => {
                wal.flush_and_sync().expect("syncs");
                disk.mark(next - 1);
            }
            _ => disk.mark(wal.append_bytes_durable(&payload(next)).expect("commits")),
        }
        disk.mark(wal.durable_entry_id());
    }
    // The observer's handle goes first, or the log would never be dropped.
    drop(behind.0.lock().expect("no panic").take());
    drop(wal);
    let options = SimOptions { seed, images_per_point: 12, ..SimOptions::default() };
    must(check_crashes(&disk, &options, check), seed)
}

#[cfg(feature = "postcard")]
#[test]
fn no_power_cut_during_publishing_loses_a_state() {
    campaign("publish", seeds(12), |seed| {
        let disk = SimDisk::new(seed);
        let mut random = Random(seed);
        let directory = Arc::new(disk.clone());
        let options = WalOptions { segment_bytes_max: 2048, preallocate_bytes: 0, ..options(&mut random) };
        let mut wal = WalWriter::<u64, SimDisk>::open_with(Arc::clone(&directory), options).expect("opens");
        let publisher = CheckpointPublisher::new(Arc::clone(&directory)).keep(1 + random.below(3) as usize);
        let mut sum = 0u64;
        for _ in 0..18 {
            let number = random.below(1000);
            sum += number;
            if random.below(3) == 0 {
                // Publishing has to make it durable before the checkpoint is.
                wal.append(&number).expect("appends");
            } else {
                wal.append_durable(&number).expect("commits");
                // An entry and the sum that a state through it has.
                disk.mark(wal.last_entry_id() << 32 | sum);
            }
            if random.below(4) == 0 {
                let last = wal.last_entry_id();
                let published =
                    publisher.publish(&mut wal, &sum, last, "state", |_, _| 0u64).expect("publishes");
                disk.mark(published.wal_checkpoint_entry_id << 32 | sum);
            }
        }
        drop(wal);
        let options = SimOptions { seed, images_per_point: 12, ..SimOptions::default() };
        let result = check_crashes(&disk, &options, |image, marks| {
            let recovered = recover_with_wal::<u64, u64, u64, _, _>(
                Arc::new(image.clone()),
                Some("state"),
                RecoveryOptions::best_effort().or_new(),
                |checkpoint| checkpoint.unwrap_or(0),
                |sum, _, number| *sum += number,
            );
            let recovered = recovered.map_err(|error| format!("no recovery: {error}"))?;
            let (last, sum) = marks.last().map_or((0, 0), |mark| (mark >> 32, mark & 0xffff_ffff));
            if recovered.last_entry_id < last || (recovered.last_entry_id == last && recovered.state != sum) {
                return Err(format!(
                    "{} through entry {}, acknowledged was {sum} through {last}",
                    recovered.state, recovered.last_entry_id
                ));
            }
            let next = recovered.last_entry_id + 1;
            let (_, mut wal) = recovered
                .into_writer::<u64>(WalOptions { preallocate_bytes: 0, ..WalOptions::default() })
                .map_err(|error| format!("no writer: {error}"))?;
            let id = wal.append_durable(&1).map_err(|error| format!("no commit: {error}"))?;
            if id == next { Ok(()) } else { Err(format!("entry {id} instead of {next}")) }
        });
        must(result, seed)
    });
}

#[test]
fn no_power_cut_loses_an_acknowledged_record() {
    campaign("record log", seeds(20), |seed| {
        let disk = SimDisk::new(seed);
        let mut random = Random(seed);
        let directory = Arc::new(disk.clone());
        let mut log = RecordLogWriter::new(Arc::clone(&directory), "records");
        for _ in 0..25 {
            log.append_bytes(&payload(log.record_count() + 1)).expect("appends");
            match random.below(6) {
                0..=2 => {
                    log.flush_and_sync().expect("syncs");
                    disk.mark(log.record_count());
                }
                3 => log.flush().expect("flushes"),
                4 => {
                    log.close().expect("closes");
                    log = RecordLogWriter::new(Arc::clone(&directory), "records");
                    log.open().expect("opens");
                    disk.mark(log.record_count());
                }
                _ => {}
            }
        }
        drop(log);
        let options = SimOptions { seed, images_per_point: 12, ..SimOptions::default() };
        must(check_crashes(&disk, &options, check_records), seed)
    });
}

/// The contract of a record log for one image: read, continued, and read again.
pub(super) fn check_records(image: &SimDisk, marks: &[u64]) -> Result<(), String> {
    let acknowledged = marks.iter().max().copied().unwrap_or(0);
    let directory = Arc::new(image.clone());
    let read = |mode| match RecordLogReader::new(Arc::clone(&directory), "records").read_all(mode) {
        Ok(records) => Ok(records),
        Err(error) if error.is_not_found() && acknowledged == 0 => Ok(Vec::new()),
        Err(error) => Err(format!("refused: {error}")),
    };
    let records = read(RecordLogReadMode::BestEffort)?;
    let right = records.iter().enumerate().all(|(index, record)| record.payload == payload(index as u64 + 1));
    if !right || (records.len() as u64) < acknowledged {
        return Err(format!("{} records, right: {right}, acknowledged {acknowledged}", records.len()));
    }
    let mut log = RecordLogWriter::new(Arc::clone(&directory), "records");
    log.append_bytes(&payload(records.len() as u64 + 1)).map_err(|error| error.to_string())?;
    log.flush_and_sync().map_err(|error| error.to_string())?;
    // Closing would cut off what is behind its end.
    let killed = read(RecordLogReadMode::Strict)?.len();
    if killed != records.len() + 1 {
        return Err(format!("{killed} records after {} and one more, not closed", records.len()));
    }
    drop(log);
    let again = read(RecordLogReadMode::Strict)?;
    let right = again.iter().enumerate().all(|(index, record)| record.payload == payload(index as u64 + 1));
    if right && again.len() == records.len() + 1 {
        Ok(())
    } else {
        Err(format!("{} records after {} and one more", again.len(), records.len()))
    }
}

#[test]
fn a_record_log_whose_syncs_fail_loses_nothing_that_was_promised() {
    campaign("record log, failing syncs", seeds(20), |seed| {
        let mut disk = SimDisk::new(seed);
        let mut random = Random(seed);
        let mut total = SimReport::default();
        for _ in 0..4 {
            let from_operation = disk.operations();
            let mut log = RecordLogWriter::new(Arc::new(disk.clone()), "records");
            if log.open().is_ok() {
                disk.mark(log.record_count());
            }
            disk.fail_sync_after(random.below(5));
            for _ in 0..random.below(5) {
                let appended = log.append_bytes(&payload(log.record_count() + 1));
                if appended.is_err() || (random.below(2) == 0 && log.flush().is_err()) {
                    break;
                }
                match random.below(2) {
                    0 if log.flush_and_sync().is_ok() => disk.mark(log.record_count()),
                    _ => {}
                }
            }
            // Closed or dropped: both seal, and the seal's own sync may be the one that fails.
            drop(log);
            let options = SimOptions { seed, from_operation, images_per_point: 4, ..SimOptions::default() };
            let report = must(check_crashes(&disk, &options, check_records), seed);
            total.points += report.points;
            total.images += report.images;
            disk = disk.after_kill();
        }
        total
    });
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let disk = SimDisk::new(1);
    disk.lie_about_syncs();
    run(&disk, &mut Random(1), 30, None);
    assert!(
        check_crashes(&disk, &SimOptions::default(), check).is_err(),
        "the property would not notice a lie"
    );
}

/// A shared log with several commits in flight, whose syncs fail, over several lives of one disk.
#[test]
fn several_commits_in_flight_and_syncs_that_fail_lose_nothing_that_was_promised() {
    campaign("shared wal, failing syncs", seeds(3), |seed| {
        let mut disk = SimDisk::new(seed);
        let mut random = Random(seed);
        let mut total = SimReport::default();
        for _ in 0..4 {
            let from_operation = disk.operations();
            let options = WalOptions { pipeline_depth: Some(4), ..options(&mut random) };
            let wal =
                SyncWalWriter::<(), SimDisk>::configure(Arc::new(disk.clone()), options).expect("opens");
            disk.mark(wal.last_entry_id());
            disk.fail_sync_after(random.below(14));
            let mut tickets = Vec::new();
            for _ in 0..12 {
                // One thread appends, so that ids follow from the order; the log's own thread commits.
                let next = wal.last_entry_id() + 1;
                let ok = match random.below(6) {
                    0 => wal.append_bytes(&payload(next)).is_ok(),
                    1 => wal.flush().is_ok(),
                    2 => wal.append_bytes_durable(&payload(next)).map(|id| disk.mark(id)).is_ok(),
                    3 => wal.submit_batch_bytes(&[payload(next), payload(next + 1)]).is_ok(),
                    _ => wal.submit_bytes(&payload(next)).map(|ticket| tickets.push(ticket)).is_ok(),
                };
                disk.mark(wal.durable_entry_id());
                if !ok {
                    break;
                }
            }
            for ticket in tickets {
                if let Ok(id) = ticket.wait() {
                    disk.mark(id);
                }
            }
            drop(wal);
            let options = SimOptions { seed, from_operation, images_per_point: 4, ..SimOptions::default() };
            let report = must(check_crashes(&disk, &options, check), seed);
            total.points += report.points;
            total.images += report.images;
            disk = disk.after_kill();
            disk.fail_sync_after(random.below(4));
            drop(reopen(&disk));
            disk = disk.after_kill();
        }
        total
    });
}
