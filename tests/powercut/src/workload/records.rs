//! A record log beside the write-ahead log.

use super::{Dyn, Outcome, RECORDS, Run, failed};
use crate::model::{Payload, Promise};
use crate::random::Random;
use durability::PersistenceResult;
use durability::recordlog::RecordLogWriter;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub fn run(run: &Run) -> Outcome {
    write(run, Random::of(run.seed, 4)).map_err(|error| {
        run.stop();
        failed("the record log", &error)
    })
}

fn open(run: &Run) -> PersistenceResult<RecordLogWriter<Dyn>> {
    let mut log = RecordLogWriter::<Dyn>::new(Arc::clone(&run.directory), RECORDS);
    log.open()?;
    (run.tell)(Promise { records: log.record_count(), ..Promise::default() });
    Ok(log)
}

fn write(run: &Run, mut random: Random) -> PersistenceResult<()> {
    let mut log = open(run)?;
    for _ in 0..5 + random.below(20) {
        if run.left.load(Ordering::Relaxed) <= 0 {
            break;
        }
        match random.below(8) {
            0 => log.flush()?,
            1 => {
                match random.one_in(2) {
                    true => log.close()?,
                    false => drop(log),
                }
                log = open(run)?;
            }
            2 => {
                let next = log.record_count() + 1;
                let batch: Vec<_> = (next..next + 3).map(|index| Payload::of_record(index).make()).collect();
                log.append_batch_bytes(&batch)?;
            }
            kind => {
                log.append_bytes(&Payload::of_record(log.record_count() + 1).make())?;
                if kind > 3 {
                    log.flush_and_sync()?;
                    (run.tell)(Promise { records: log.record_count(), ..Promise::default() });
                }
            }
        }
    }
    Ok(())
}
