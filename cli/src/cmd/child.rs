//! The writer that gets killed: several threads commit in every way that the library has, in a log whose options the
//! seed chooses (tiny segments, recycling, several commits in flight, made ahead or not), and one publishes checkpoints
//! beside them, which cuts the log. Each acknowledgement goes to standard output, after it was given and never before. One
//! number of eight bytes each; 0 says "ready".

use super::Failure;
use super::payload::{Random, make};
use super::torture::{CHECKPOINT, RECORD};
use durability::backends::Backend;
use durability::publish::CheckpointPublisher;
use durability::storage::FlushPolicy;
use durability::walog::{CommitTicket, PrepareAhead, SyncWalWriter, WalOptions};
use durability::{DurableDirectory, PersistenceError, PersistenceResult};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Arguments of the child.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the log is.
    pub directory: PathBuf,
    /// Through what it is written.
    #[arg(long)]
    pub backend: Backend,
    /// How many threads commit.
    #[arg(long)]
    pub threads: u64,
    /// What the entries follow from.
    #[arg(long)]
    pub seed: u64,
    /// Acknowledge entries that are not durable, so that the parent has something to find.
    #[arg(long)]
    pub lie: bool,
}

type Wal = SyncWalWriter<(), dyn DurableDirectory>;

/// One acknowledgement at a time; callbacks come from threads of the log.
static OUT: Mutex<()> = Mutex::new(());

/// Commits until it is killed, or its parent is gone.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let directory = arguments.backend.open(&arguments.directory)?.directory;
    let mut random = Random(arguments.seed);
    let wal = Wal::configure(Arc::clone(&directory), options(&mut random))?;
    acknowledge(0);
    let publishes = random.below(2) == 0;
    std::thread::scope(|scope| {
        for thread in 0..arguments.threads {
            let wal = wal.clone();
            let mut random = Random(arguments.seed.wrapping_mul(1000) + thread);
            scope.spawn(move || {
                loop {
                    commit(&wal, &mut random, arguments.lie).unwrap_or_else(|error| fail(&error));
                }
            });
        }
        if publishes {
            let (wal, directory) = (wal.clone(), &directory);
            scope.spawn(move || {
                loop {
                    std::thread::sleep(Duration::from_millis(20));
                    publish(&wal, directory).unwrap_or_else(|error| fail(&error));
                }
            });
        }
    });
    Ok(ExitCode::SUCCESS)
}

fn fail(error: &PersistenceError) {
    eprintln!("durability: a writer failed: {error}");
    std::process::exit(3);
}

fn options(random: &mut Random) -> WalOptions {
    let segment_bytes_max = [16 << 10, 64 << 10, 256 << 10][random.below(3) as usize];
    WalOptions {
        segment_bytes_max,
        preallocate_bytes: segment_bytes_max,
        flush_policy: FlushPolicy::EveryN(16),
        recycle_capacity: random.below(3) as usize,
        pipeline_depth: [None, Some(1), Some(4)][random.below(3) as usize],
        prepare_ahead: [PrepareAhead::Auto, PrepareAhead::Never][random.below(2) as usize].clone(),
        ..WalOptions::default()
    }
}

fn commit(wal: &Wal, random: &mut Random, lie: bool) -> PersistenceResult<()> {
    let nonce = random.next();
    let bytes = [1, 30, 250, 1000, 5000][random.below(5) as usize];
    let single = || make(nonce, 0, 1, bytes);
    let batch = |count: u8| (0..count).map(|index| make(nonce, index, count, bytes)).collect::<Vec<_>>();
    match random.below(12) {
        0..=3 => acknowledge(wal.append_bytes_durable(&single())? + u64::from(lie) * 1000),
        4 => {
            let ids = wal.append_batch_bytes(&batch(2 + random.below(4) as u8))?;
            wal.flush_and_sync()?;
            ids.iter().for_each(|id| acknowledge(*id));
        }
        5 => {
            // Appended and not awaited: it may survive, and nobody was promised that.
            wal.append_bytes(&single())?;
        }
        6 => wait(wal.submit_bytes(&single()))?,
        7 => wait(wal.submit_batch_bytes(&batch(2 + random.below(4) as u8)))?,
        8 => {
            if let Some(ticket) = submitted(wal.submit_bytes(&single()))? {
                ticket.on_durable(|outcome| {
                    let _ = outcome.map(acknowledge);
                });
            }
        }
        9 => {
            // Dropping a ticket cancels nothing: it may be looked for by its id.
            let ticket = submitted(wal.submit_bytes(&single()))?;
            let id = ticket.as_ref().map(CommitTicket::entry_id);
            drop(ticket);
            if let Some(id) = id {
                wal.wait_durable(id)?;
                acknowledge(id);
            }
        }
        _ => {
            // Several in flight from one thread; each is an entry of its own.
            let mut tickets = Vec::new();
            for index in 0..2 + random.below(6) {
                tickets.extend(submitted(wal.submit_bytes(&make(nonce ^ index, 0, 1, bytes)))?);
            }
            for ticket in tickets {
                acknowledge(ticket.wait()?);
            }
        }
    }
    Ok(())
}

/// What was not accepted because too much waits was not appended.
fn submitted(ticket: PersistenceResult<CommitTicket>) -> PersistenceResult<Option<CommitTicket>> {
    match ticket {
        Err(PersistenceError::WouldBlock { .. }) => Ok(None),
        ticket => ticket.map(Some),
    }
}

fn wait(ticket: PersistenceResult<CommitTicket>) -> PersistenceResult<()> {
    let Some(ticket) = submitted(ticket)? else { return Ok(()) };
    let ids = ticket.entry_ids();
    // With a deadline that is rarely met, then without one.
    match ticket.wait_timeout(Duration::from_millis(1)) {
        Err(PersistenceError::TimedOut { .. }) => ticket.wait()?,
        outcome => outcome?,
    };
    ids.for_each(acknowledge);
    Ok(())
}

fn publish(wal: &Wal, directory: &Arc<dyn DurableDirectory>) -> PersistenceResult<()> {
    let covered = wal.durable_entry_id();
    if covered == 0 {
        return Ok(());
    }
    let publisher = CheckpointPublisher::<dyn DurableDirectory>::new(Arc::clone(directory));
    let write = |writer: &mut durability::checkpoint::CheckpointWriter<'_, dyn DurableDirectory>| {
        writer.write_state(&covered.to_le_bytes())
    };
    let published =
        publisher.publish_with(&mut wal.clone(), covered, CHECKPOINT, write, |_| Ok(RECORD.to_vec()))?;
    acknowledge(published.wal_checkpoint_entry_id);
    Ok(())
}

fn acknowledge(id: u64) {
    let _one = OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut out = std::io::stdout().lock();
    // A parent that is gone needs no writer, and nobody else would end it.
    if out.write_all(&id.to_le_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
