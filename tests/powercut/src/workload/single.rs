//! A log with one owner: flushes, attestations, closing and opening again.

use super::{Dyn, Outcome, Run, failed, payloads};
use crate::model::Payload;
use crate::random::Random;
use durability::PersistenceResult;
use durability::walog::WalWriter;
use std::sync::Arc;

type Wal = WalWriter<(), Dyn>;

pub fn run(run: &Run, wal: Wal, random: Random) -> Outcome {
    write(run, wal, random).map_err(|error| {
        run.stop();
        failed("a log with one owner", &error)
    })
}

fn write(run: &Run, mut wal: Wal, mut random: Random) -> PersistenceResult<()> {
    while run.take_operation() {
        match random.below(15) {
            0..=4 => {
                let payload = Payload::random(&mut random);
                let id = run.note(&[payload], wal.append_bytes_durable(&payload.make()))?;
                run.durable(id);
            }
            5 | 6 => {
                let count = 2 + random.below(4);
                let (payloads, bytes) = payloads(&mut random, count);
                run.note(&payloads, wal.append_batch_bytes(&bytes).map(|ids| ids[0]))?;
                if random.one_in(2) {
                    wal.flush_and_sync()?;
                    run.durable(wal.last_entry_id());
                }
            }
            7 | 8 => {
                let payload = Payload::random(&mut random);
                run.note(&[payload], wal.append_bytes(&payload.make()))?;
            }
            9 => wal.flush()?,
            10 => {
                wal.attest()?;
                run.durable(wal.last_entry_id());
            }
            11 => run.publish(&mut wal, &mut random)?,
            12 => {
                let last = wal.last_entry_id();
                match random.one_in(2) {
                    true => {
                        wal.close()?;
                        run.durable(last);
                    }
                    false => drop(wal),
                }
                wal = Wal::open_with(Arc::clone(&run.directory), run.options.clone())?;
                run.durable(wal.last_entry_id());
            }
            13 => {
                for (payloads, bytes) in run.stream(&mut random) {
                    run.note(&payloads, wal.append_batch_bytes(&bytes).map(|ids| ids[0]))?;
                }
            }
            _ => run.durable(wal.durable_entry_id()),
        }
    }
    match random.one_in(2) {
        true => {
            let last = wal.last_entry_id();
            wal.close()?;
            run.durable(last);
        }
        false => drop(wal),
    }
    Ok(())
}
