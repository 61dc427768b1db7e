//! The process that starts those that cut power, counts what they report, and cleans up behind them.
//!
//! It holds the mount namespace in which everything is mounted. When a worker stops reporting, the guard
//! aborts its disk through fusectl, so that nothing waits any more, and kills it; when the guard ends, the
//! namespace and all that is mounted there end with it.

use crate::disks::FileSystem;
use crate::options::{Arguments, Flushes, Kind};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

const FUSECTL: &str = "/sys/fs/fuse/connections";

/// What was counted for one file system and kind.
#[derive(Default)]
struct Tally {
    points: u64,
    violations: Vec<String>,
    /// Workers that failed or hung.
    failures: Vec<String>,
    skipped: Vec<String>,
    refused: u64,
    torn: u64,
    beyond: u64,
    lossy: u64,
    with_checkpoint: u64,
    by_way: BTreeMap<String, u64>,
    elapsed: Duration,
}

pub fn main(arguments: &Arguments) -> ExitCode {
    if let Some(reason) = cannot_run(arguments) {
        skip(&reason);
        return ExitCode::SUCCESS;
    }
    if !arguments.plants.is_empty() && !cfg!(durability_planted) {
        eprintln!(
            "durability-powercut: nothing is planted in this build: RUSTFLAGS=\"--cfg durability_planted\""
        );
        return ExitCode::from(2);
    }
    let mut arguments = arguments.clone();
    arguments.seed = Some(arguments.seed.unwrap_or_else(seed_of_now));
    arguments.fs.retain(|fs| match fs.missing() {
        Some(reason) => {
            skip(&format!("{}: {reason}", fs.name()));
            false
        }
        None => true,
    });
    if let Some(folder) = arguments.keep.clone() {
        match std::fs::create_dir_all(&folder).and_then(|()| folder.canonicalize()) {
            Ok(folder) => arguments.keep = Some(folder),
            Err(error) => {
                eprintln!("durability-powercut: {}: {error}", folder.display());
                return ExitCode::from(2);
            }
        }
    }
    if let Err(error) = enter(&arguments.work) {
        skip(&format!("no mount namespace to work in: {error}"));
        return ExitCode::SUCCESS;
    }
    let is_well = match arguments.plants.is_empty() {
        true => campaign(&arguments),
        false => plants(&arguments),
    };
    leave(&arguments.work);
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every kind and file system; whether it went as it should.
fn campaign(arguments: &Arguments) -> bool {
    if !arguments.json {
        println!("seed {}", arguments.seed.unwrap_or(0));
    }
    let (mut is_well, mut noticed) = (true, false);
    for (kind, fs) in places(arguments) {
        let tally = run(arguments, kind, fs, None);
        print(arguments, kind, fs, &tally);
        is_well &= tally.failures.is_empty() && tally.violations.is_empty();
        noticed |= !tally.violations.is_empty();
    }
    match arguments.flushes {
        Flushes::Honest => is_well,
        // Nothing that could lie: said already.
        Flushes::Lie => noticed || arguments.fs.is_empty(),
    }
}

/// Each planted bug until it is seen; whether all were.
fn plants(arguments: &Arguments) -> bool {
    let mut all = true;
    println!("seed {}; crash points until a planted bug was seen", arguments.seed.unwrap_or(0));
    for plant in &arguments.plants {
        let mut seen_anywhere = false;
        let mut line = format!("{plant:32}");
        for (kind, fs) in places(arguments) {
            let tally = run(arguments, kind, fs, Some(plant));
            let seen = !tally.violations.is_empty();
            seen_anywhere |= seen;
            let what = match (seen, tally.failures.first()) {
                (true, _) => format!("{}", tally.points),
                (false, None) => format!("not in {}", tally.points),
                (false, Some(failure)) => format!("failed ({failure})"),
            };
            line += &format!(" | {} {}: {what}", kind.name(), fs.name());
            if let (true, Some(first)) =
                (std::env::var_os("POWERCUT_VERBOSE").is_some(), tally.violations.first())
            {
                eprintln!("{plant}: {first}");
            }
        }
        println!("{line}");
        all &= seen_anywhere;
        if !seen_anywhere {
            println!("{plant} was MISSED");
        }
    }
    all
}

fn places(arguments: &Arguments) -> Vec<(Kind, FileSystem)> {
    let mut places = Vec::new();
    for kind in &arguments.kind {
        for fs in &arguments.fs {
            if *kind == Kind::Device || fs.has_shutdown() {
                places.push((*kind, *fs));
            }
        }
    }
    places
}

enum Line {
    Said(usize, String),
    Ended(usize),
}

/// A worker, and what would have to be aborted to free it.
struct Worker {
    child: Child,
    connection: u64,
    said: Instant,
    done: bool,
}

impl Worker {
    /// Frees whatever waits for its disk, and ends it.
    fn abort(&mut self) {
        if self.connection != 0 {
            let _ = std::fs::write(format!("{FUSECTL}/{}/abort", self.connection), "1");
        }
        let _ = self.child.kill();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.done {
            self.abort();
        }
        let _ = self.child.wait();
    }
}

fn run(arguments: &Arguments, kind: Kind, fs: FileSystem, plant: Option<&str>) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::default();
    let (sender, lines) = mpsc::channel();
    let jobs = arguments.jobs.clamp(1, arguments.points().max(1));
    let mut workers = Vec::new();
    for number in 0..jobs {
        let points = arguments.points() / jobs + u64::from(number < arguments.points() % jobs);
        match start(arguments, (kind, fs), plant, number, points, &sender) {
            Ok(child) => {
                workers.push(Worker { child, connection: 0, said: Instant::now(), done: false });
            }
            Err(error) => tally.failures.push(format!("starting a worker: {error}")),
        }
    }
    drop(sender);
    let stall = Duration::from_secs(arguments.stall);
    let mut running = workers.len();
    while running > 0 {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(Line::Said(number, line)) => {
                workers[number].said = Instant::now();
                tally.take(&line, &mut workers[number]);
            }
            Ok(Line::Ended(number)) => {
                running -= 1;
                if !std::mem::replace(&mut workers[number].done, true) && tally.failures.is_empty() {
                    tally.failures.push(String::from("a worker died"));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        for worker in workers.iter_mut().filter(|worker| !worker.done && worker.said.elapsed() > stall) {
            tally.failures.push(format!("a worker reported nothing for {} s", stall.as_secs()));
            worker.said = Instant::now();
            worker.abort();
        }
        // One that has seen a planted bug is enough.
        if arguments.is_control() || plant.is_some() {
            let seen = !tally.violations.is_empty();
            workers.iter_mut().filter(|worker| seen && !worker.done).for_each(|worker| {
                worker.done = true;
                worker.abort();
            });
        }
    }
    drop(workers);
    tidy(&arguments.work);
    tally.elapsed = began.elapsed();
    tally
}

fn start(
    arguments: &Arguments,
    (kind, fs): (Kind, FileSystem),
    plant: Option<&str>,
    number: u64,
    points: u64,
    sender: &Sender<Line>,
) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--worker", &number.to_string(), "--points", &points.to_string()]);
    command.args(["--kind", kind.name(), "--fs", fs.name()]);
    command.args(["--seed", &arguments.seed.unwrap_or(0).to_string()]);
    command.arg("--work").arg(&arguments.work);
    let backends: Vec<&str> = arguments
        .backend
        .iter()
        .map(|backend| if *backend == crate::options::BackendName::Std { "std" } else { "io-uring" })
        .collect();
    command.args(["--backend", &backends.join(",")]);
    if arguments.flushes == Flushes::Lie {
        command.args(["--flushes", "lie"]);
    }
    if let Some(folder) = &arguments.keep {
        command.arg("--keep").arg(folder);
    }
    if let Some(plant) = plant {
        command.env("DURABILITY_PLANTED", plant);
    }
    // Its standard input stays open for as long as this process lives.
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
    let sender = sender.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = sender.send(Line::Said(number as usize, line));
        }
        let _ = sender.send(Line::Ended(number as usize));
    });
    Ok(child)
}

impl Tally {
    fn take(&mut self, line: &str, worker: &mut Worker) {
        let parts: Vec<&str> = line.split('\t').collect();
        match parts[..] {
            ["connection", number] => worker.connection = number.parse().unwrap_or(0),
            ["point", way, torn, beyond, lossy, checkpoint] => {
                self.points += 1;
                *self.by_way.entry(way.to_owned()).or_default() += 1;
                self.torn += u64::from(torn == "1");
                self.beyond += u64::from(beyond == "1");
                self.lossy += u64::from(lossy == "1");
                self.with_checkpoint += u64::from(checkpoint == "1");
            }
            ["refused"] => self.refused += 1,
            ["violation", way, text] => {
                self.points += 1;
                *self.by_way.entry(way.to_owned()).or_default() += 1;
                self.violations.push(format!("{way}: {text}"));
            }
            ["skip", reason] => self.skipped.push(reason.to_owned()),
            ["failed", text] => self.failures.push(text.to_owned()),
            ["done"] => worker.done = true,
            _ => self.failures.push(format!("a worker said {line:?}")),
        }
    }

    fn per_minute(&self) -> u64 {
        (self.points as f64 * 60.0 / self.elapsed.as_secs_f64().max(0.001)) as u64
    }
}

fn print(arguments: &Arguments, kind: Kind, fs: FileSystem, tally: &Tally) {
    let ways: Vec<String> = tally.by_way.iter().map(|(way, points)| format!("{way} {points}")).collect();
    if arguments.json {
        let ways: Vec<String> =
            tally.by_way.iter().map(|(way, points)| format!("\"{way}\":{points}")).collect();
        println!(
            "{{\"kind\":\"{}\",\"fs\":\"{}\",\"seed\":{},\"points\":{},\"violations\":{},\"failures\":{},\
             \"refused_mounts\":{},\"torn\":{},\"beyond_promise\":{},\"lossy\":{},\"with_checkpoint\":{},\
             \"per_minute\":{},\"by_strategy\":{{{}}}}}",
            kind.name(),
            fs.name(),
            arguments.seed.unwrap_or(0),
            tally.points,
            tally.violations.len(),
            tally.failures.len(),
            tally.refused,
            tally.torn,
            tally.beyond,
            tally.lossy,
            tally.with_checkpoint,
            tally.per_minute(),
            ways.join(",")
        );
    } else {
        println!(
            "{:8} {:5}: {} crash points ({}), {} violations, {} a minute; {} lost sectors, {} torn tails, {} held \
             more than was promised, {} behind a checkpoint, {} torn mounts refused",
            kind.name(),
            fs.name(),
            tally.points,
            ways.join(", "),
            tally.violations.len(),
            tally.per_minute(),
            tally.lossy,
            tally.torn,
            tally.beyond,
            tally.with_checkpoint,
            tally.refused
        );
    }
    let mut skipped = tally.skipped.clone();
    skipped.sort();
    skipped.dedup();
    skipped.iter().for_each(|reason| skip(reason));
    for text in &tally.violations {
        eprintln!("VIOLATION {} {}: {text}", kind.name(), fs.name());
    }
    for text in &tally.failures {
        eprintln!("FAILED {} {}: {text}", kind.name(), fs.name());
    }
}

fn cannot_run(arguments: &Arguments) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some(String::from("not root"));
    }
    let needed: &[&str] = match arguments.kind.contains(&Kind::Device) {
        true => &["/dev/loop-control", "/dev/fuse"],
        false => &["/dev/loop-control"],
    };
    needed.iter().find(|path| !Path::new(path).exists()).map(|path| format!("there is no {path}"))
}

/// Says loudly that something did not run, as the tests do.
fn skip(reason: &str) {
    println!("SKIP: power cuts: {reason}");
    if let Some(path) = std::env::var_os("DURABILITY_SKIP_LOG") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "SKIP: power cuts: {reason}");
        }
    }
}

fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_secs() << 20 | u64::from(now.subsec_micros()))
}

/// A mount namespace of our own, with memory to work in.
fn enter(work: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("powercut"), work, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    // Without it a hung worker is killed all the same; its disk's thread then ends the connection.
    if !std::fs::read_to_string("/proc/self/mounts").unwrap_or_default().contains(" fusectl ") {
        let _ = mount(Some("fusectl"), FUSECTL, Some("fusectl"), MsFlags::empty(), None::<&str>);
    }
    Ok(())
}

/// Takes away what workers that ended in the middle have left mounted, the innermost first.
fn tidy(work: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let left = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for path in left.filter(|path| path.starts_with(work) && *path != work) {
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
    let Ok(entries) = std::fs::read_dir(work) else { return };
    for entry in entries.flatten() {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

fn leave(work: &Path) {
    tidy(work);
    let _ = umount2(work, MntFlags::MNT_DETACH);
}
