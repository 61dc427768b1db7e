//! Ending early. The first Ctrl-C (or SIGTERM, SIGHUP) asks `torture`, `bench` and `soak` to end, so that what they
//! made is removed; the second ends the process where it is.

use super::Failure;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of what was interrupted; the shells' own.
const INTERRUPTED: u8 = 130;

/// Set by the handler, read between two steps of a measurement; nothing else is paired with it.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Begins to listen. Where a signal is ignored already (`nohup`), everything stays as it is.
pub fn listen() {
    let _ = ctrlc::try_set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("durability: interrupted; ends as soon as it can, once more ends at once");
    });
}

/// Whether it is to end.
pub fn is_asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// An error when it is to end.
pub fn check() -> Result<(), Interrupted> {
    if is_asked() { Err(Interrupted) } else { Ok(()) }
}

/// The exit code of what ended well, or was ended.
pub fn code() -> ExitCode {
    if is_asked() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS }
}

/// Ended before there was anything to tell.
#[derive(Debug)]
pub struct Interrupted;

impl Interrupted {
    /// The exit code, if `error` is one.
    pub fn code_of(error: &Failure) -> Option<ExitCode> {
        error.is::<Self>().then(|| ExitCode::from(INTERRUPTED))
    }
}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nothing was measured to the end")
    }
}

impl std::error::Error for Interrupted {}
