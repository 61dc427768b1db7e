//! `durability`: look inside a log, check, follow and repair one; torture and measure; see which backend a
//! directory gets.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a program, not the library")]

mod cmd;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Exit code when something was lost or does not hold.
pub const LOST: u8 = 1;

/// Exit code when the arguments make no sense; what clap itself exits with.
pub const USAGE: u8 = 2;

/// Exit code of a torn tail, which best-effort recovery accepts.
pub const TORN: u8 = 3;

/// Exit code of corruption.
pub const CORRUPT: u8 = 4;

/// Crash-consistent logs: look inside one, repair one, and prove that nothing acknowledged is ever lost.
#[derive(Parser)]
#[command(
    name = "durability",
    version,
    after_help = "A log that is refused: `verify` says what it is and where, `inspect` shows its files, `repair` says what \
    can be kept. `torture`, `bench`, `soak` and `backends` are for the machine that it is to live on.\n\nExit codes: 0 all is \
    well, 1 something was lost or failed (an I/O error included), 2 wrong usage; where a log or a file is read, 3 a \
    torn tail, which best-effort recovery accepts, and 4 corruption. Each command's --help says more."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what is in a log's directory or in one file: segments, watermarks, seals, sizes, the verdict.
    Inspect(cmd::inspect::Arguments),
    /// Read all of a log or a file, with all processors, and say by the exit code whether it is sound.
    Verify(cmd::verify::Arguments),
    /// Write out entries, in hex, as JSON lines or raw; with `--follow` as they become durable.
    Dump(cmd::dump::Arguments),
    /// Take out of a log what cannot be read, and keep it beside; says what it would do unless told to.
    Repair(cmd::repair::Arguments),
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
        Command::Inspect(arguments) => cmd::look::about(&arguments.named, cmd::inspect::run(&arguments)),
        Command::Verify(arguments) => cmd::look::about(&arguments.named, cmd::verify::run(&arguments)),
        Command::Dump(arguments) => cmd::look::about(&arguments.named, cmd::dump::run(&arguments)),
        Command::Repair(arguments) => cmd::look::about(&arguments.named, cmd::repair::run(&arguments)),
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
            let code = cmd::look::code_of(&error).or_else(|| cmd::interrupt::Interrupted::code_of(&error));
            code.unwrap_or(ExitCode::from(LOST))
        }
    }
}
