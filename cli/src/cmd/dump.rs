//! `durability dump`: the entries of a log, to its end or as they become durable.

use super::Failure;
use super::look::{EXIT_CODES, Named, Target, Usage, code_of, exit_code, placed};
use crate::CORRUPT;
use durability::FsDirectory;
use durability::error::{PersistenceError, PersistenceResult};
use durability::formats::dump::lines;
use durability::inspect::{self, Verdict};
use durability::walog::{WalFollower, WalReader, WalReplayMode};
use std::io::{self, BufWriter, StdoutLock, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Arguments of `durability dump`.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
#[command(mut_arg("json", |json| json.help("Print one JSON object for each entry, each on a line")))]
#[command(after_help = format!("Writes entries in order, in hex with offsets, as JSON lines (--json) or as they are, \
    one behind the other (--raw). Of a file (a segment, also one that a repair moved away; a record log; a \
    checkpoint, whose state comes in chunks) it writes what checks out.\n\nWithout --follow it reads to the end of the log, as best-effort replay does; the exit code says \
    what that end is. With --follow it goes on until it is interrupted (exit code 0), and writes an entry only \
    when the disk itself attests that it is durable: by a later commit, by a seal (a pause that the writer attests, \
    rotation, close) or by a later segment. So the last commit of a writer that then pauses is seen only with the \
    next one. It follows the log through rotation, truncation and a new writer; if truncation takes away what was \
    not written yet, it ends with exit code 1.\n\nTakes no lock and changes nothing.\n\nJSON keys: entry_id, bytes \
    (length), and the contents as hex, base64 or utf8 (an entry that is no UTF-8 is written as hex).\n\n\
    Examples:\n  durability dump /var/lib/db --from 100 --to 120\n  durability dump /var/lib/db --json --as utf8 | \
    jq -r .utf8\n  durability dump /var/lib/db --follow --json | consumer\n\n{EXIT_CODES}"))]
pub struct Arguments {
    /// What is looked at.
    #[command(flatten)]
    pub named: Named,
    /// First entry; by default the first one that is there.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// Last entry; by default the last one of the log.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    /// How --json writes the contents.
    #[arg(long = "as", value_enum, default_value = "hex", requires = "json")]
    encoding: Encoding,
    /// Write the bytes of the entries and nothing else.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Go on with what a writer commits, until interrupted or until --to.
    #[arg(long)]
    follow: bool,
    /// How often --follow looks, in milliseconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval_ms: u64,
}

/// How contents are written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Encoding {
    /// Hexadecimal.
    Hex,
    /// Base64 (RFC 4648, padded).
    Base64,
    /// Text; hexadecimal where it is none.
    Utf8,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    if arguments.to.is_some_and(|to| to < arguments.from.unwrap_or(1)) {
        return Err(Usage("--to is before --from".to_owned()).into());
    }
    let mut printer = Printer::new(arguments);
    let result = match Target::find(&arguments.named.path)? {
        Target::Log(directory) if arguments.follow => follow(arguments, &directory, &mut printer),
        Target::Log(directory) => replay(arguments, &directory, &mut printer),
        Target::File { .. } if arguments.follow => {
            return Err(Usage("--follow wants the directory of a log".to_owned()).into());
        }
        Target::File { directory, name, .. } => {
            let (from, to) = (arguments.from.unwrap_or(1), arguments.to);
            let visit = &mut |entry_id: u64, bytes: &[u8]| printer.visit(entry_id, bytes, from, to);
            let read = inspect::read_file(directory.as_ref(), &name, &mut |_| {}, visit);
            read.map_err(Failure::from).and_then(|inspection| {
                let last = inspection.file.contents.as_ref().map(|contents| contents.last_entry_id);
                tell(&inspection.verdict, arguments.from, last)
            })
        }
    };
    let flushed = printer.out.flush();
    match (result, printer.stop.take()) {
        // Whoever read this has seen enough.
        (_, Some(Stop::Output(error))) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        (_, Some(Stop::Output(error))) => Err(error.into()),
        (Err(_), Some(Stop::Passed(first))) => {
            let to = arguments.to.unwrap_or(first);
            Err(Usage(format!("entry {to} is not there; the first one is {first}")).into())
        }
        (Err(_), Some(Stop::Reached | Stop::Interrupted)) => ignore_broken_pipe(flushed),
        (Err(error), None) => {
            let code = code_of(&error).unwrap_or(ExitCode::from(code_of_library(&error)?));
            eprintln!("durability: {}", placed(&arguments.named, error));
            Ok(code)
        }
        (Ok(code), _) => ignore_broken_pipe(flushed).map(|_| code),
    }
}

fn ignore_broken_pipe(result: io::Result<()>) -> Result<ExitCode, Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The exit code of a reading that ended with an error.
fn code_of_library(error: &Failure) -> Result<u8, Failure> {
    let Some(error) = error.downcast_ref::<PersistenceError>() else { return Ok(crate::LOST) };
    match error {
        PersistenceError::PrefixUnavailable { .. } => Ok(crate::LOST),
        error => Ok(Verdict::of(Err(error.clone())).map_or(crate::LOST, |_| CORRUPT)),
    }
}

/// Says what an end is that is not clean, and where it is, when what was asked for begins behind it. The very next
/// entry may be asked for: whoever dumps what is new since the last time does.
fn tell(verdict: &Verdict, from: Option<u64>, last: Option<u64>) -> Result<ExitCode, Failure> {
    match (from, last) {
        _ if *verdict != Verdict::Clean => eprintln!("durability: {verdict}"),
        (Some(from), Some(last)) if from - 1 > last => {
            return Err(Usage(format!("entry {from} is not there; the last one is {last}")).into());
        }
        _ => {}
    }
    Ok(ExitCode::from(exit_code(verdict)))
}

fn replay(
    arguments: &Arguments,
    directory: &Arc<FsDirectory>,
    printer: &mut Printer<'_>,
) -> Result<ExitCode, Failure> {
    let reader = WalReader::<(), FsDirectory>::new(Arc::clone(directory));
    let to = arguments.to;
    let mut read = |from: u64| {
        reader.replay_bytes_from(from, WalReplayMode::BestEffortTail, |entry_id, bytes| {
            printer.visit(entry_id, bytes, from, to)
        })
    };
    let summary = match (read(arguments.from.unwrap_or(1)), arguments.from) {
        (Err(PersistenceError::PrefixUnavailable { first_entry_id, .. }), None) => read(first_entry_id)?,
        (Err(PersistenceError::PrefixUnavailable { first_entry_id, .. }), Some(from)) => {
            let problem = format!("entry {from} was truncated; the log begins at {first_entry_id}");
            return Err(Usage(problem).into());
        }
        (summary, _) => summary?,
    };
    tell(&Verdict::of(Ok(summary.end.torn))?, arguments.from, Some(summary.end.last_entry_id))
}

fn follow(
    arguments: &Arguments,
    directory: &Arc<FsDirectory>,
    printer: &mut Printer<'_>,
) -> Result<ExitCode, Failure> {
    let (interrupt, interrupted) = channel();
    ctrlc::set_handler(move || {
        // Nobody listens any more: it is ending already.
        let _ = interrupt.send(());
    })?;
    let mut follower = match WalFollower::new(Arc::clone(directory), arguments.from) {
        Err(PersistenceError::PrefixUnavailable { wanted_entry_id, first_entry_id }) => {
            let problem =
                format!("entry {wanted_entry_id} was truncated; the log begins at {first_entry_id}");
            return Err(Usage(problem).into());
        }
        follower => follower?,
    };
    let interval = Duration::from_millis(arguments.interval_ms);
    loop {
        follower.poll(|entry_id, bytes| {
            printer.check_interrupt(entry_id, &interrupted)?;
            printer.visit(entry_id, bytes, 0, arguments.to)
        })?;
        printer.flush()?;
        if arguments.to.is_some_and(|to| follower.next_entry_id() > to) || nobody_reads() {
            return Ok(ExitCode::SUCCESS);
        }
        match interrupted.recv_timeout(interval) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Whether standard output is a pipe whose other end is closed.
#[cfg(unix)]
fn nobody_reads() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let out = io::stdout();
    let mut asked = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let answered = poll(&mut asked, PollTimeout::ZERO);
    answered.is_ok() && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Whether standard output is a pipe whose other end is closed: noticed with the next write.
#[cfg(not(unix))]
fn nobody_reads() -> bool {
    false
}

/// Why writing ended early.
enum Stop {
    /// `--to` was written.
    Reached,
    /// The first entry there is this one, behind `--to`.
    Passed(u64),
    /// Standard output does not take more.
    Output(io::Error),
    Interrupted,
}

/// Writes entries to standard output.
struct Printer<'a> {
    arguments: &'a Arguments,
    out: BufWriter<StdoutLock<'static>>,
    has_written: bool,
    stop: Option<Stop>,
}

/// So often, in entries, an interrupt is looked for while there is much to write.
const INTERRUPT_ENTRIES: u64 = 256;

impl<'a> Printer<'a> {
    fn new(arguments: &'a Arguments) -> Self {
        let out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
        Self { arguments, out, has_written: false, stop: None }
    }

    fn end<T>(&mut self, stop: Stop) -> PersistenceResult<T> {
        self.stop = Some(stop);
        // Only ends the reading; `stop` says why.
        Err(PersistenceError::invalid_state("dump", "it ends here"))
    }

    fn check_interrupt(&mut self, entry_id: u64, interrupted: &Receiver<()>) -> PersistenceResult<()> {
        if entry_id % INTERRUPT_ENTRIES == 0 && interrupted.try_recv().is_ok() {
            return self.end(Stop::Interrupted);
        }
        Ok(())
    }

    fn visit(&mut self, entry_id: u64, bytes: &[u8], from: u64, to: Option<u64>) -> PersistenceResult<()> {
        if to.is_some_and(|to| entry_id > to) {
            return self.end(if self.has_written { Stop::Reached } else { Stop::Passed(entry_id) });
        }
        if entry_id < from {
            return Ok(());
        }
        self.has_written = true;
        match self.write(entry_id, bytes) {
            // Nothing behind it is asked for, so nothing behind it is judged.
            Ok(()) if to == Some(entry_id) && !self.arguments.follow => self.end(Stop::Reached),
            Ok(()) => Ok(()),
            Err(error) => self.end(Stop::Output(error)),
        }
    }

    fn write(&mut self, entry_id: u64, bytes: &[u8]) -> io::Result<()> {
        if self.arguments.raw {
            return self.out.write_all(bytes);
        }
        if self.arguments.named.json {
            let (key, value) = match self.arguments.encoding {
                Encoding::Base64 => ("base64", base64(bytes)),
                Encoding::Utf8 => match std::str::from_utf8(bytes) {
                    Ok(text) => ("utf8", text.to_owned()),
                    Err(_) => ("hex", hex(bytes)),
                },
                Encoding::Hex => ("hex", hex(bytes)),
            };
            let line = serde_json::json!({ "entry_id": entry_id, "bytes": bytes.len(), key: value });
            return writeln!(self.out, "{line}");
        }
        writeln!(self.out, "entry {entry_id}, {} bytes", bytes.len())?;
        let mut result = Ok(());
        lines(bytes, 0, &mut |line| {
            if result.is_ok() {
                result = self.out.write_all(line.as_bytes());
            }
        });
        result
    }

    fn flush(&mut self) -> PersistenceResult<()> {
        match self.out.flush() {
            Ok(()) => Ok(()),
            Err(error) => self.end(Stop::Output(error)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let is_there = digit <= chunk.len() as u32;
            text.push(if is_there { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let pairs = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, expected) in pairs {
            assert_eq!(base64(text.as_bytes()), expected);
        }
        assert_eq!((base64(&[255; 3]), hex(&[0, 9, 255])), ("////".to_owned(), "0009ff".to_owned()));
    }
}
