//! Every operation of a job fails once, at every index and in every way; afterwards the contract holds: on the
//! disk as the process left it, and after power cuts of the run.
//!
//! `DURABILITY_SEED` runs one seed, `DURABILITY_SEEDS` that many from 1 on.

use crate::power_cut::{check, check_records, payload, seeds};
use durability::PersistenceResult;
use durability::recordlog::RecordLogWriter;
use durability::storage::FlushPolicy;
use durability::testing::faults::{At, Fault, Faults, FaultyDirectory};
use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
use durability::walog::{PrepareAhead, PrepareHand, SyncWalWriter, WalMaintenance, WalOptions, WalWriter};
use std::io::ErrorKind;
use std::sync::Arc;

type Disk = FaultyDirectory<SimDisk>;
type Property = dyn Fn(&SimDisk, &[u64]) -> Result<(), String>;

/// Runs `job` once for each of its calls and each kind of fault, on an empty disk.
fn every_fault(name: &str, job: impl Fn(&Arc<Disk>, u64) -> PersistenceResult<()>, property: &Property) {
    every_fault_from(name, SimDisk::new, job, property);
}

/// The same on a disk on which something has happened before.
fn every_fault_from(
    name: &str,
    start: impl Fn(u64) -> SimDisk,
    job: impl Fn(&Arc<Disk>, u64) -> PersistenceResult<()>,
    property: &Property,
) {
    let (mut faults_checked, mut images, mut failed) = (0, 0, 0);
    for seed in seeds(1) {
        let faults = Faults::new();
        job(&Arc::new(faults.over(start(seed))), seed).expect("without a fault it succeeds");
        let calls = faults.calls();
        for index in 0..calls {
            let kinds = [
                Fault::Fail(ErrorKind::Other),
                Fault::Fail(ErrorKind::StorageFull),
                Fault::FailAfter(ErrorKind::Other),
                Fault::Short,
            ];
            for fault in kinds {
                let what = format!("{name}, seed {seed}: {fault:?} at call {index} of {calls}");
                let (disk, faults) = (start(seed), Faults::new());
                let from_operation = disk.operations();
                faults.inject(At::call(index), fault);
                failed += u64::from(job(&Arc::new(faults.over(disk.clone())), seed).is_err());
                assert!(faults.all_struck(), "{what}: no such call");
                let struck = &faults.trace()[index as usize];
                // The process goes on or dies; then the machine does.
                let all = SimOptions { seed, images_per_point: 1, from_operation, ..SimOptions::default() };
                let last = SimOptions { from_operation: disk.operations(), ..all.clone() };
                check_crashes(&disk.after_kill(), &last, |_, marks| property(&disk.after_kill(), marks))
                    .unwrap_or_else(|failure| panic!("{what} ({struck:?}), as it was left: {failure}"));
                let stride = (disk.operations() - from_operation).div_ceil(5).max(1);
                let some = SimOptions { stride, images_per_point: 2, ..all };
                let report = check_crashes(&disk, &some, property)
                    .unwrap_or_else(|failure| panic!("{what} ({struck:?}): {failure}"));
                faults_checked += 1;
                images += report.images;
            }
        }
    }
    println!(
        "{name}: {faults_checked} fault points ({failed} failed the job), {images} power cuts behind them"
    );
    assert!(failed > 0, "a fault that nobody notices is none");
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes_max: 2048,
        preallocate_bytes: 4096,
        recycle_capacity: 1,
        flush_policy: FlushPolicy::Manual,
        prepare_ahead: PrepareAhead::Never,
        ..WalOptions::default()
    }
}

/// Appends, commits, rotates, truncates, recycles, closes and resumes; stops at the first failure, but for one
/// more commit: whether that succeeds or not, it is true.
fn write_log(directory: &Arc<Disk>, seed: u64) -> PersistenceResult<()> {
    let disk = directory.inner();
    for round in 0..2 {
        let mut wal = WalWriter::<(), Disk>::open_with(Arc::clone(directory), options())?;
        disk.mark(wal.last_entry_id());
        let mut steps = || -> PersistenceResult<()> {
            for step in 0..5 + seed % 2 {
                let next = wal.next_entry_id();
                match step {
                    1 => drop(wal.append_batch_bytes(&[payload(next), payload(next + 1)])?),
                    3 => {
                        wal.append_bytes(&payload(next))?;
                        wal.flush()?;
                    }
                    _ => disk.mark(wal.append_bytes_durable(&payload(next))?),
                }
            }
            wal.flush_and_sync()?;
            disk.mark(wal.last_entry_id());
            let maintenance = WalMaintenance::new(Arc::clone(directory));
            maintenance.truncate_to_recycle(wal.durable_entry_id() - 2, 1)?;
            disk.mark(wal.append_bytes_durable(&payload(wal.next_entry_id()))?);
            Ok(())
        };
        if let Err(error) = steps() {
            let pending = wal.next_entry_id();
            if let Ok(id) = wal.append_bytes_durable(&payload(pending)) {
                disk.mark(id);
            }
            return Err(error);
        }
        if round == 0 {
            wal.close()?;
        }
    }
    Ok(())
}

#[test]
fn every_fault_of_a_log_leaves_the_contract_whole() {
    every_fault("wal", write_log, &check);
}

/// The same for a log that threads share; alone here, so that a run repeats.
fn share_log(directory: &Arc<Disk>, _: u64) -> PersistenceResult<()> {
    share_log_with(directory, &PrepareHand::new(), options())
}

/// The same with segments that are made ahead of need, by a hand that lags behind now and then.
fn share_prepared_log(directory: &Arc<Disk>, _: u64) -> PersistenceResult<()> {
    let hand = PrepareHand::new();
    let prepare_ahead = PrepareAhead::ByHand(hand.clone());
    share_log_with(directory, &hand, WalOptions { prepare_ahead, ..options() })
}

fn share_log_with(directory: &Arc<Disk>, hand: &PrepareHand, options: WalOptions) -> PersistenceResult<()> {
    let disk = directory.inner();
    let wal = SyncWalWriter::<(), Disk>::configure(Arc::clone(directory), options)?;
    let steps = || -> PersistenceResult<()> {
        for step in 0..5 {
            for _ in 0..3 * step % 4 {
                hand.step();
            }
            let next = wal.last_entry_id() + 1;
            match step {
                1 => drop(wal.append_batch_bytes(&[payload(next), payload(next + 1)])?),
                3 => {
                    wal.append_bytes(&payload(next))?;
                    wal.flush()?;
                }
                _ => disk.mark(wal.append_bytes_durable(&payload(next))?),
            }
            disk.mark(wal.durable_entry_id());
        }
        Ok(())
    };
    if let Err(error) = steps() {
        // What was refused for want of space stays appended, and goes with this one.
        let next = wal.last_entry_id() + 1;
        if let Ok(id) = wal.append_bytes_durable(&payload(next)) {
            disk.mark(id);
        }
        return Err(error);
    }
    wal.close()
}

#[test]
fn every_fault_of_a_shared_log_leaves_the_contract_whole() {
    every_fault("shared wal", share_log, &check);
}

#[test]
fn every_fault_of_a_shared_log_beside_the_making_of_segments_leaves_the_contract_whole() {
    every_fault("shared wal, prepared ahead", share_prepared_log, &check);
}

/// Tickets and durable commits, several in flight, over a few segments; alone here as well.
fn pipeline_log(directory: &Arc<Disk>, _: u64) -> PersistenceResult<()> {
    let disk = directory.inner();
    let deep = WalOptions { pipeline_depth: Some(4), ..options() };
    let wal = SyncWalWriter::<(), Disk>::configure(Arc::clone(directory), deep)?;
    disk.mark(wal.last_entry_id());
    let steps = || -> PersistenceResult<()> {
        for _ in 0..3 {
            let next = wal.last_entry_id() + 1;
            let first = wal.append_bytes(&payload(next))?;
            let second = wal.append_bytes(&payload(next + 1))?;
            wal.wait_durable(first)?;
            disk.mark(first);
            wal.wait_durable(second)?;
            disk.mark(second);
            let maintenance = WalMaintenance::new(Arc::clone(directory));
            maintenance.truncate_to_recycle(first - 1, 1)?;
        }
        Ok(())
    };
    let outcome = steps();
    disk.mark(wal.durable_entry_id());
    let closed = wal.close();
    outcome.and(closed)
}

#[test]
fn every_fault_of_a_log_that_is_cut_beside_its_commits_leaves_the_contract_whole() {
    every_fault("shared wal, cut and recycled", pipeline_log, &check);
}

/// A log whose last sync failed, and whose machine went on: the tail is in the page cache only.
fn unproven(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    // One segment, or what fails might be the sync of another one's header.
    let options = WalOptions { segment_bytes_max: 1 << 20, ..options() };
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    for _ in 0..3 {
        disk.mark(wal.append_bytes_durable(&payload(wal.next_entry_id())).expect("commits"));
    }
    wal.append_bytes(&payload(wal.next_entry_id())).expect("appends");
    disk.fail_sync_after(0);
    wal.flush_and_sync().expect_err("its sync fails");
    drop(wal);
    disk.after_kill()
}

/// Resumes it, twice: what opening returned is promised.
fn resume(directory: &Arc<Disk>, _: u64) -> PersistenceResult<()> {
    for _ in 0..2 {
        let mut wal = WalWriter::<(), Disk>::open_with(Arc::clone(directory), options())?;
        directory.inner().mark(wal.last_entry_id());
        directory.inner().mark(wal.append_bytes_durable(&payload(wal.next_entry_id()))?);
    }
    Ok(())
}

#[test]
fn every_fault_of_resuming_an_unproven_tail_leaves_the_contract_whole() {
    every_fault_from("resume", unproven, resume, &check);
}

fn write_records(directory: &Arc<Disk>, _: u64) -> PersistenceResult<()> {
    let disk = directory.inner();
    for _ in 0..2 {
        let mut log = RecordLogWriter::new(Arc::clone(directory), "records");
        log.open()?;
        disk.mark(log.record_count());
        for step in 0..4 {
            log.append_bytes(&payload(log.record_count() + 1))?;
            if step % 2 == 0 {
                log.flush_and_sync()?;
                disk.mark(log.record_count());
            }
        }
        log.close()?;
    }
    Ok(())
}

#[test]
fn every_fault_of_a_record_log_leaves_the_contract_whole() {
    every_fault("record log", write_records, &check_records);
}

#[cfg(feature = "postcard")]
mod publishing {
    use super::{Disk, every_fault, options};
    use durability::PersistenceResult;
    use durability::publish::CheckpointPublisher;
    use durability::recover::{RecoveryOptions, recover_with_wal};
    use durability::testing::sim::SimDisk;
    use durability::walog::WalWriter;
    use std::sync::Arc;

    /// Adds numbers up and publishes the sum, with truncation; then recovers and goes on.
    fn publish(directory: &Arc<Disk>, seed: u64) -> PersistenceResult<()> {
        let disk = directory.inner();
        let publisher = CheckpointPublisher::new(Arc::clone(directory)).keep(1 + seed as usize % 2);
        let add = |wal: &mut WalWriter<u64, Disk>, sum: &mut u64| -> PersistenceResult<()> {
            for number in [3, 40] {
                let id = wal.append_durable(&number)?;
                *sum += number;
                disk.mark(id << 32 | *sum);
            }
            let published = publisher.publish(wal, sum, wal.last_entry_id(), "state", |_, _| 0u64)?;
            disk.mark(published.wal_checkpoint_entry_id << 32 | *sum);
            Ok(())
        };
        let mut wal = WalWriter::<u64, Disk>::open_with(Arc::clone(directory), options())?;
        let mut sum = 0;
        for _ in 0..2 {
            add(&mut wal, &mut sum)?;
        }
        drop(wal);
        let recovered = recover_with_wal::<u64, u64, u64, _, _>(
            Arc::clone(directory),
            Some("state"),
            RecoveryOptions::best_effort().or_new(),
            |checkpoint| checkpoint.unwrap_or(0),
            |sum, _, number| *sum += number,
        )?;
        let (mut sum, mut wal) = recovered.into_writer::<u64>(options())?;
        disk.mark(wal.last_entry_id() << 32 | sum);
        add(&mut wal, &mut sum)?;
        wal.close()
    }

    fn check(image: &SimDisk, marks: &[u64]) -> Result<(), String> {
        let recovered = recover_with_wal::<u64, u64, u64, _, _>(
            Arc::new(image.clone()),
            Some("state"),
            RecoveryOptions::best_effort().or_new(),
            |checkpoint| checkpoint.unwrap_or(0),
            |sum, _, number| *sum += number,
        );
        let recovered = recovered.map_err(|error| format!("no recovery: {error}"))?;
        let (last, sum) = marks.iter().max().map_or((0, 0), |mark| (mark >> 32, mark & 0xffff_ffff));
        let behind = recovered.last_entry_id < last;
        if behind || (recovered.last_entry_id == last && recovered.state != sum) {
            let (state, id) = (recovered.state, recovered.last_entry_id);
            return Err(format!("{state} through entry {id}, acknowledged was {sum} through {last}"));
        }
        let next = recovered.last_entry_id + 1;
        let (_, mut wal) = recovered.into_writer::<u64>(options()).map_err(|error| error.to_string())?;
        let id = wal.append_durable(&1).map_err(|error| format!("no commit: {error}"))?;
        if id == next { Ok(()) } else { Err(format!("entry {id} instead of {next}")) }
    }

    #[test]
    fn every_fault_of_publishing_leaves_the_contract_whole() {
        every_fault("publish", publish, &check);
    }
}
