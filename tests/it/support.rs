//! What several modules need.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::time::Duration;

/// Long enough for any machine; only a failing test waits for it, as each does in which a bug was planted.
pub const PATIENCE: Duration = Duration::from_secs(if cfg!(durability_planted) { 8 } else { 20 });

/// What `act` answers; a panic where it never comes back. For tests of what blocks nobody.
#[track_caller]
pub fn within_patience<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(catch_unwind(AssertUnwindSafe(act))));
    match end.recv_timeout(PATIENCE) {
        Ok(ended) => ended.unwrap_or_else(|panic| resume_unwind(panic)),
        Err(_) => panic!("blocked for {PATIENCE:?}"),
    }
}

/// Says loudly that a test did not run, and why: on standard error, and in the file that
/// `DURABILITY_SKIP_LOG` names.
#[allow(dead_code, reason = "which modules need it depends on the target")]
pub fn skip(reason: &str) {
    eprintln!("SKIP: {reason}");
    if let Some(path) = std::env::var_os("DURABILITY_SKIP_LOG") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "SKIP: {reason}");
        }
    }
}

/// A second one of a subscriber, to be kept while the first listens: as long as there is one alone, whichever thread
/// meets an event first decides for all of them, by its own subscriber, whether anybody listens.
#[must_use]
pub fn not_alone(
    subscriber: &(impl tracing::Subscriber + Clone + Send + Sync + 'static),
) -> tracing::Dispatch {
    tracing::Dispatch::new(subscriber.clone())
}
