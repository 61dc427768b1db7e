//! `durability`: torture a log, measure one, and see which backend a directory gets.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a program, not the library")]

mod cmd;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Exit code when something was lost or does not hold.
pub const LOST: u8 = 1;

/// Exit code when the arguments make no sense; what clap itself exits with.
pub const USAGE: u8 = 2;

/// Crash-consistent logs: prove that nothing acknowledged is ever lost.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 all is well, 1 something was lost or failed, 2 wrong usage."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill writers at random moments, recover at once, and check that nothing acknowledged is gone.
    Torture(cmd::torture::Arguments),
    /// Measure commits, or with `--recovery` replay and opening, against plain loops on the same disk.
    Bench(cmd::bench::Arguments),
    /// Commit for a long time, with rotation and without it in turn: what rotation costs.
    Soak(cmd::soak::Arguments),
    /// Say which backend a directory gets, and why.
    Backends(cmd::backends::Arguments),
    /// The process that `torture` kills.
    #[command(hide = true)]
    TortureChild(cmd::child::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Torture(arguments) => cmd::torture::run(&arguments),
        Command::Bench(arguments) => cmd::bench::run(&arguments),
        Command::Soak(arguments) => cmd::soak::run(&arguments),
        Command::Backends(arguments) => cmd::backends::run(&arguments),
        Command::TortureChild(arguments) => cmd::child::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("durability: {error}");
            ExitCode::from(LOST)
        }
    }
}
