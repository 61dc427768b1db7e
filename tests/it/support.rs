//! What several modules need.

use std::io::Write;

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
