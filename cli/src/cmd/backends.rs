//! `durability backends`: which backend a directory gets, and why.

use super::Failure;
use super::look::{existing, say};
use durability::DurableDirectory;
use durability::backends::Backend;
use durability::storage::ActiveStrategy;
use durability::walog::WalWriter;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `durability backends`.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Without --measure nothing is written. With it, a log is begun in a new folder below the \
    directory, which measures the strategies that can be had there, and removed again.\n\nExit codes: 0 \
    answered, 1 something failed, 2 wrong usage."
)]
pub struct Arguments {
    /// The directory to ask for.
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Measure by which strategy commits would be made, too.
    #[arg(long)]
    measure: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answer {
    backend: &'static str,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    strategy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strategy_reason: Option<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    existing(&arguments.directory)?;
    let opened = Backend::Auto.open(&arguments.directory)?;
    let active = if arguments.measure { measure(&arguments.directory)? } else { None };
    let answer = Answer {
        backend: opened.chosen.name(),
        reason: opened.reason.to_string(),
        strategy: active.as_ref().map(|active| active.strategy.name()),
        strategy_reason: active.as_ref().map(|active| active.reason.to_string()),
    };
    if arguments.json {
        say(format_args!("{}", serde_json::to_string(&answer)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(format_args!("{}: {}", answer.backend, answer.reason))?;
    if let Some(active) = active {
        say(format_args!("{active}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// By which strategy a log below the directory commits.
pub fn measure(directory: &Path) -> Result<Option<ActiveStrategy>, Failure> {
    let folder = tempfile::Builder::new().prefix("measure-").tempdir_in(directory)?;
    let opened = Backend::Auto.open(folder.path())?;
    let mut wal = WalWriter::<(), dyn DurableDirectory>::open(opened.directory)?;
    wal.append_bytes_durable(b"x")?;
    let active = wal.active_strategy();
    wal.close()?;
    folder.close()?;
    Ok(active)
}
