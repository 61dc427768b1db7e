//! The writer that gets killed: several threads commit, and each acknowledgement goes to standard output,
//! after it was given and never before. One number of eight bytes each; 0 says "ready".

use super::Failure;
use super::payload::{Random, make};
use durability::DurableDirectory;
use durability::backends::Backend;
use durability::storage::FlushPolicy;
use durability::walog::{SyncWalWriter, WalOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

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

/// Commits until it is killed.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let directory = arguments.backend.open(&arguments.directory)?.directory;
    let options = WalOptions {
        segment_bytes_max: 256 << 10,
        preallocate_bytes: 256 << 10,
        flush_policy: FlushPolicy::EveryN(16),
        recycle_capacity: 2,
        ..WalOptions::default()
    };
    let wal = Wal::configure(directory, options)?;
    let out = Mutex::new(std::io::stdout());
    acknowledge(&out, 0);
    std::thread::scope(|scope| {
        for thread in 0..arguments.threads {
            let (wal, out) = (wal.clone(), &out);
            let random = Random(arguments.seed.wrapping_mul(1000) + thread);
            scope.spawn(move || {
                if let Err(error) = commit(&wal, out, random, arguments.lie) {
                    eprintln!("durability: a writer failed: {error}");
                    std::process::exit(3);
                }
            });
        }
    });
    Ok(ExitCode::SUCCESS)
}

fn commit(
    wal: &Wal,
    out: &Mutex<std::io::Stdout>,
    mut random: Random,
    lie: bool,
) -> Result<(), durability::PersistenceError> {
    loop {
        let nonce = random.next();
        let bytes = [1, 30, 250, 1000, 5000][random.below(5) as usize];
        match random.below(10) {
            0..=6 => {
                let id = wal.append_bytes_durable(&make(nonce, 0, 1, bytes))?;
                acknowledge(out, id + u64::from(lie) * 1000);
            }
            7 | 8 => {
                let count = 2 + random.below(4) as u8;
                let batch: Vec<_> = (0..count).map(|index| make(nonce, index, count, bytes)).collect();
                let ids = wal.append_batch_bytes(&batch)?;
                wal.flush_and_sync()?;
                ids.iter().for_each(|id| acknowledge(out, *id));
            }
            _ => {
                // Appended and not awaited: it may survive, and nobody was promised that.
                wal.append_bytes(&make(nonce, 0, 1, bytes))?;
            }
        }
    }
}

fn acknowledge(out: &Mutex<std::io::Stdout>, id: u64) {
    let mut out = out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // A parent that is gone needs no acknowledgements.
    let _ = out.write_all(&id.to_le_bytes()).and_then(|()| out.flush());
}
