//! One process that cuts power, and how it reports to the one that guards it: a line on standard output for
//! each thing that happens, its parts separated by tabs.

use crate::check::Found;
use crate::image::Image;
use crate::model::Promise;
use crate::options::{Arguments, Kind};
use crate::workload::How;
use crate::{device, shutdown};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

/// What a worker tells.
pub struct Report {
    counts: Mutex<Counts>,
    /// Whether the first violation ends it.
    stop_at_first: bool,
}

#[derive(Default)]
struct Counts {
    points: u64,
    violations: u64,
}

pub struct Violation {
    pub how: How,
    pub seed: u64,
    pub cut: String,
    pub problem: String,
    pub kept: Option<PathBuf>,
}

impl Report {
    pub fn points(&self) -> u64 {
        self.counts().points
    }

    pub fn is_enough(&self) -> bool {
        let violations = self.counts().violations;
        violations >= if self.stop_at_first { 1 } else { 20 }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The connection to abort when this process hangs; 0 for none.
    pub fn connected(&self, connection: u64) {
        say(&["connection", &connection.to_string()]);
    }

    /// A crash point where all is well.
    pub fn point(&self, how: How, found: &Found, promise: Promise, lost_something: bool) {
        self.counts().points += 1;
        let flag = |is_so: bool| if is_so { "1" } else { "0" };
        say(&[
            "point",
            how.name(),
            flag(found.torn),
            flag(found.last > promise.entries),
            flag(lost_something),
            flag(promise.checkpoint > 0),
        ]);
    }

    /// The file system did not mount from torn blocks of its own.
    pub fn refused(&self) {
        say(&["refused"]);
    }

    pub fn violation(&self, violation: &Violation) {
        let mut counts = self.counts();
        counts.points += 1;
        counts.violations += 1;
        drop(counts);
        let kept = violation.kept.as_ref().map_or(String::new(), |path| format!("; kept {}", path.display()));
        let text = format!(
            "{} (run seed {}; {}{kept})",
            violation.problem.replace(['\n', '\t'], " "),
            violation.seed,
            violation.cut
        );
        say(&["violation", violation.how.name(), &text]);
    }
}

fn say(parts: &[&str]) {
    let mut out = std::io::stdout().lock();
    // A guard that is gone needs no report; the other thread sees to the end.
    let _ = writeln!(out, "{}", parts.join("\t")).and_then(|()| out.flush());
}

/// Keeps a disk as evidence.
pub fn keep(folder: Option<&Path>, image: &Image, name: &str) -> Option<PathBuf> {
    let path = folder?.join(format!("{name}.img"));
    let kept = File::create(&path).and_then(|file| image.store(&file));
    kept.map(|()| path).map_err(|error| eprintln!("keeping a disk: {error}")).ok()
}

pub fn main(arguments: &Arguments) -> ExitCode {
    // The guard holds the other end for as long as it lives. Exiting ends the disk's thread, and with it
    // whatever waits for the disk.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let report = Report { counts: Mutex::default(), stop_at_first: arguments.is_control() };
    let number = arguments.worker.unwrap_or(0);
    let work = arguments.work.join(number.to_string());
    let seed = arguments.seed.unwrap_or(0).wrapping_add(number.wrapping_mul(0x9e37_79b9));
    let (fs, keep) = (arguments.fs[0], arguments.keep.clone());
    let outcome =
        std::fs::create_dir_all(&work).and_then(|()| {
            let (ways, refused) = fs.possible(&work, arguments.ways())?;
            refused.iter().for_each(|reason| say(&["skip", reason]));
            if ways.is_empty() {
                return Ok(());
            }
            match arguments.kind[0] {
                Kind::Device => device::Lab { fs, work, keep, flushes: arguments.flushes, report: &report }
                    .run(&ways, seed, arguments.points()),
                Kind::Shutdown => {
                    shutdown::Lab { fs, work, keep, report: &report }.run(&ways, seed, arguments.points())
                }
            }
        });
    match outcome {
        Ok(()) => {
            say(&["done"]);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&["failed", &error.to_string()]);
            ExitCode::FAILURE
        }
    }
}
