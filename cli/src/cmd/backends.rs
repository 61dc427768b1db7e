//! `durability backends`: which backend a directory gets, and why.

use super::Failure;
use durability::backends::Backend;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `durability backends`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory to ask for.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let opened = Backend::Auto.open(&arguments.directory)?;
    if arguments.json {
        let object =
            serde_json::json!({ "backend": opened.chosen.name(), "reason": opened.reason.to_string() });
        println!("{object}");
    } else {
        println!("{}: {}", opened.chosen, opened.reason);
    }
    Ok(ExitCode::SUCCESS)
}
