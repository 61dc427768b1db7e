//! Many tasks commit to one log, on one thread and without a runtime: tickets are plain futures.
//!
//! `cargo run --example async_commits` appends a thousand entries in a temporary directory, reads some back beside
//! the writer, and says what it cost.
#![allow(clippy::disallowed_methods, reason = "an example, not the library")]

use durability::backends::Backend;
use durability::walog::{SyncWalWriter, Telemetry, WalOptions};
use durability::{DurableDirectory, PersistenceResult};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

type Wal = SyncWalWriter<(), dyn DurableDirectory>;

/// Wakes the thread that blocks in [`block_on`].
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A runtime in ten lines; `pollster::block_on`, tokio and smol do as well.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Polls tasks until each is done.
struct All<F: Future>(Vec<Slot<F>>);

struct Slot<F: Future> {
    task: Pin<Box<F>>,
    output: Option<F::Output>,
}

impl<F: Future> All<F> {
    fn new(tasks: impl IntoIterator<Item = F>) -> Self {
        Self(tasks.into_iter().map(|task| Slot { task: Box::pin(task), output: None }).collect())
    }
}

impl<F: Future> Future for All<F>
where
    F::Output: Unpin,
{
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        for slot in self.0.iter_mut().filter(|slot| slot.output.is_none()) {
            if let Poll::Ready(output) = slot.task.as_mut().poll(context) {
                slot.output = Some(output);
            }
        }
        if self.0.iter().any(|slot| slot.output.is_none()) {
            return Poll::Pending;
        }
        Poll::Ready(self.0.iter_mut().filter_map(|slot| slot.output.take()).collect())
    }
}

/// Ten commits, one after the other.
async fn work(wal: Wal, task: u32) -> PersistenceResult<u64> {
    let mut last = 0;
    for step in 0..10 {
        // Accepted at once; awaiting it blocks no thread. Dropping the ticket would cancel nothing.
        let ticket = wal.submit_bytes(format!("task {task}, step {step}").as_bytes())?;
        last = ticket.await?;
    }
    Ok(last)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::temp_dir().join(format!("durability-async-{}", std::process::id()));
    std::fs::create_dir(&root)?;
    let telemetry = Arc::new(Telemetry::new());
    let options = WalOptions { telemetry: Some(Arc::clone(&telemetry)), ..WalOptions::default() };
    let wal = Wal::configure(Backend::Auto.open(&root)?.directory, options)?;
    let reader = wal.reader();

    block_on(async {
        for outcome in All::new((0..100).map(|task| work(wal.clone(), task))).await {
            outcome?;
        }
        // An entry that is appended and in no file yet can be read as well; the answer says what is durable.
        let entry_id = wal.append_bytes(b"not durable yet")?;
        let record = reader.read_bytes(entry_id)?;
        println!("entry {entry_id}, durable: {}", record.is_durable());
        // Dropping the last handle would block this thread.
        wal.close_async().await
    })?;

    let mut bytes = 0;
    let summary = reader.replay_bytes(.., |_, entry| {
        bytes += entry.len();
        Ok(())
    })?;
    println!(
        "{} entries, {bytes} bytes, durable through entry {}",
        summary.entries, summary.durable_entry_id
    );
    let told = telemetry.snapshot();
    println!(
        "{} commits of {:.0} entries on average; device {} us at the median, {} us at p99",
        told.batch_entries.count,
        told.batch_entries.mean(),
        told.device_ns.p50 / 1000,
        told.device_ns.p99 / 1000
    );
    std::fs::remove_dir_all(&root)?;
    Ok(())
}
