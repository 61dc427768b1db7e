//! A log that several threads share: durable appends, batches, tickets, several commits in flight, and a
//! checkpoint published beside them.

use super::{Dyn, Outcome, Run, failed, payloads};
use crate::model::{Payload, Promise};
use crate::random::Random;
use durability::PersistenceResult;
use durability::walog::{CommitTicket, SyncWalWriter, WalWriter};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

type Wal = SyncWalWriter<(), Dyn>;

pub fn run(run: &Run, wal: WalWriter<(), Dyn>, threads: u64) -> Outcome {
    let wal = Wal::from_writer(wal).map_err(|error| failed("sharing the log", &error))?;
    let outcome = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let wal = wal.clone();
                let random = Random::of(run.seed, 10 + thread);
                scope.spawn(move || {
                    let outcome = Committer { run, wal, random, publishes: thread == 0 }.commit();
                    outcome.map_err(|error| {
                        run.stop();
                        failed("a shared log", &error)
                    })
                })
            })
            .collect();
        // Every thread is waited for, also behind a failure.
        let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        outcomes.into_iter().collect::<Outcome>()
    });
    outcome?;
    match Random::of(run.seed, 9).one_in(2) {
        true => {
            let last = wal.last_entry_id();
            wal.close().map_err(|error| failed("closing", &error))?;
            run.durable(last);
        }
        false => drop(wal),
    }
    Ok(())
}

struct Committer<'a> {
    run: &'a Run<'a>,
    wal: Wal,
    random: Random,
    publishes: bool,
}

impl Committer<'_> {
    fn commit(mut self) -> PersistenceResult<()> {
        while self.run.take_operation() {
            match self.random.below(15) {
                0..=4 => self.append_durable()?,
                5 | 6 => self.batch()?,
                7 | 8 => self.tickets()?,
                9 => self.call_back()?,
                10 => drop(self.append()?),
                11 => {
                    self.append()?;
                    self.wal.flush()?;
                }
                12 if self.publishes => self.run.publish(&mut self.wal, &mut self.random)?,
                13 => self.stream()?,
                _ => self.run.durable(self.wal.durable_entry_id()),
            }
        }
        Ok(())
    }

    /// Promised to nobody.
    fn stream(&mut self) -> PersistenceResult<()> {
        for (payloads, bytes) in self.run.stream(&mut self.random) {
            self.run.note(&payloads, self.wal.append_batch_bytes(&bytes).map(|ids| ids[0]))?;
        }
        Ok(())
    }

    fn append_durable(&mut self) -> PersistenceResult<()> {
        let payload = Payload::random(&mut self.random);
        let id = self.run.note(&[payload], self.wal.append_bytes_durable(&payload.make()))?;
        self.run.durable(id);
        Ok(())
    }

    fn append(&mut self) -> PersistenceResult<u64> {
        let payload = Payload::random(&mut self.random);
        self.run.note(&[payload], self.wal.append_bytes(&payload.make()))
    }

    fn batch(&mut self) -> PersistenceResult<()> {
        let count = 2 + self.random.below(4);
        let (payloads, bytes) = payloads(&mut self.random, count);
        let first = self.wal.append_batch_bytes(&bytes).map(|ids| ids[0]);
        let last = self.run.note(&payloads, first)? + count - 1;
        match self.random.below(3) {
            0 => self.wal.flush_and_sync()?,
            1 => self.wal.wait_durable(last)?,
            // Promised to nobody.
            _ => return Ok(()),
        }
        self.run.durable(last);
        Ok(())
    }

    fn submit(&mut self) -> PersistenceResult<CommitTicket> {
        let count = if self.random.one_in(3) { 3 } else { 1 };
        let (payloads, bytes) = payloads(&mut self.random, count);
        let ticket = match count {
            1 => self.wal.submit_bytes(&bytes[0]),
            _ => self.wal.submit_batch_bytes(&bytes),
        };
        match ticket {
            Ok(ticket) => {
                self.run.note(&payloads, Ok(*ticket.entry_ids().start()))?;
                Ok(ticket)
            }
            Err(error) => {
                let _ = self.run.note(&payloads, Err(error.clone()));
                Err(error)
            }
        }
    }

    /// Several in flight, waited for in any order and in every way.
    fn tickets(&mut self) -> PersistenceResult<()> {
        let count = 1 + self.random.below(6);
        let mut tickets = (0..count).map(|_| self.submit()).collect::<PersistenceResult<Vec<_>>>()?;
        while !tickets.is_empty() {
            let mut ticket = tickets.swap_remove(self.random.below(tickets.len() as u64) as usize);
            match self.random.below(4) {
                0 => {
                    let mut context = Context::from_waker(Waker::noop());
                    if let std::task::Poll::Ready(done) = Pin::new(&mut ticket).poll(&mut context) {
                        self.run.durable(done?);
                    } else {
                        self.run.durable(ticket.wait()?);
                    }
                }
                1 => self.run.durable(ticket.wait_timeout(Duration::from_secs(60))?),
                2 if ticket.is_durable() => self.run.durable(ticket.entry_id()),
                _ => self.run.durable(ticket.wait()?),
            }
        }
        Ok(())
    }

    fn call_back(&mut self) -> PersistenceResult<()> {
        let tell = Arc::clone(&self.run.tell);
        self.submit()?.on_durable(move |outcome| {
            if let Ok(entries) = outcome {
                tell(Promise { entries, ..Promise::default() });
            }
        });
        Ok(())
    }
}
