//! `durability verify`: reads everything and says what it is, as an exit code.

use super::Failure;
use super::inspect::checkpoint_line;
use super::look::{EXIT_CODES, Named, Reading, Target, checkpoints, exit_code, progress, say, size};
use durability::FsDirectory;
use durability::formats::header::FileKind;
use durability::inspect::{CheckpointReport, FileInspection, Verdict, inspect_file};
use durability::walog::{LogEnd, WalCheck, WalChecked};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `durability verify`.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
#[command(after_help = format!("Reads every byte of a log that counts, also in segments that opening would not \
    read again because later ones attest them; the segments are read side by side. The verdict is the one that \
    replaying the log from its first entry on reaches, and opening reaches it too as far as it reads. The \
    checkpoints that lie in the directory are read too: one that is damaged, of another log, or that requires more \
    than the log has, is corruption; one that is missing is not missed. Of a file it \
    is the file's own: a segment is looked at as if it were the newest of its log.\n\nTakes no lock and changes \
    nothing; a writer may be at work.\n\nExamples:\n  durability verify /var/lib/db\n  durability verify \
    /var/lib/db/checkpoint --json\n  durability verify /var/lib/db || durability repair /var/lib/db\n\n{EXIT_CODES}"))]
pub struct Arguments {
    /// What is looked at.
    #[command(flatten)]
    pub named: Named,
    #[command(flatten)]
    reading: Reading,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    path: &'a Path,
    kind: &'static str,
    #[serde(flatten)]
    verdict: &'a Verdict,
    text: String,
    exit_code: u8,
    first_entry_id: Option<u64>,
    last_entry_id: Option<u64>,
    attested_entry_id: Option<u64>,
    closed: bool,
    segments: usize,
    file_bytes: u64,
    checkpoints: &'a [CheckpointReport],
    threads: usize,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    match Target::find(&arguments.named.path)? {
        Target::Log(directory) => verify_log(arguments, &directory),
        Target::File { directory, name, .. } => {
            let bar = progress(arguments.named.json);
            bar.set_length(std::fs::metadata(&arguments.named.path)?.len());
            let inspection = inspect_file(directory.as_ref(), &name, &mut |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
            verify_file(arguments, &inspection)
        }
    }
}

/// A log, and the checkpoints beside it.
pub struct Verified {
    /// The verdict about all of it.
    pub verdict: Verdict,
    checked: Option<WalChecked>,
    file_bytes: u64,
    end: Option<LogEnd>,
    checkpoints: Vec<CheckpointReport>,
}

/// Reads the checkpoints beside a log, and the log with all threads.
pub fn check_beside(
    directory: &Arc<FsDirectory>,
    reading: &Reading,
    quiet: bool,
) -> Result<Verified, Failure> {
    let found = checkpoints(directory, quiet)?;
    let bar = progress(quiet);
    let mut file_bytes = 0;
    let (checked, end) = WalCheck::run_requiring(directory, found.requirements(), |check| {
        file_bytes = check.file_bytes();
        reading.scan_all(check, &bar)
    });
    bar.finish_and_clear();
    let (checkpoints, verdict) = found.held_against(&Verdict::of_log(&end)?, checked.as_ref());
    Ok(Verified { verdict, checked, file_bytes, end: end.ok(), checkpoints })
}

fn verify_log(arguments: &Arguments, directory: &Arc<FsDirectory>) -> Result<ExitCode, Failure> {
    let Verified { verdict, checked, file_bytes, end, checkpoints } =
        check_beside(directory, &arguments.reading, arguments.named.json)?;
    report(
        arguments,
        &Report {
            path: &arguments.named.path,
            kind: "log",
            verdict: &verdict,
            text: verdict.to_string(),
            exit_code: exit_code(&verdict),
            first_entry_id: checked.as_ref().and_then(WalChecked::first_entry_id),
            last_entry_id: end.as_ref().map(|end| end.last_entry_id),
            attested_entry_id: end.as_ref().map(|end| end.attested_entry_id),
            closed: end.as_ref().is_some_and(|end| end.closed),
            segments: checked.as_ref().map_or(0, WalChecked::segments),
            file_bytes,
            checkpoints: &checkpoints,
            threads: arguments.reading.threads(),
        },
    )
}

fn verify_file(arguments: &Arguments, inspection: &FileInspection) -> Result<ExitCode, Failure> {
    let contents = inspection.file.contents.as_ref();
    let verdict = &inspection.verdict;
    report(
        arguments,
        &Report {
            path: &arguments.named.path,
            kind: kind_name(inspection.kind),
            verdict,
            text: verdict.to_string(),
            exit_code: exit_code(verdict),
            first_entry_id: contents.map(|contents| contents.first_entry_id),
            last_entry_id: contents.map(|contents| contents.last_entry_id),
            attested_entry_id: contents.map(|contents| contents.attested_entry_id),
            closed: contents.is_some_and(|contents| contents.seal.is_some()),
            segments: usize::from(inspection.kind == FileKind::Segment),
            file_bytes: inspection.file.file_bytes,
            checkpoints: &[],
            threads: 1,
        },
    )
}

/// The names of kinds in JSON.
pub fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Segment => "segment",
        FileKind::RecordLog => "record_log",
        FileKind::Checkpoint => "checkpoint",
    }
}

fn report(arguments: &Arguments, report: &Report<'_>) -> Result<ExitCode, Failure> {
    if arguments.named.json {
        say(format_args!("{}", serde_json::to_string(report)?))?;
        return Ok(ExitCode::from(report.exit_code));
    }
    let path = report.path.display();
    match (report.kind, report.first_entry_id, report.last_entry_id) {
        _ if *report.verdict != Verdict::Clean => say(format_args!("{path}: {}", report.text))?,
        ("log", first, last) if first.is_none() || last < first => {
            say(format_args!("{path}: clean; no entry was ever committed, or none is left"))?;
        }
        ("log", Some(first), Some(last)) => say(format_args!(
            "{path}: clean; entries {first} to {last} in {} segments ({}), {}",
            report.segments,
            size(report.file_bytes),
            if report.attested_entry_id == report.last_entry_id {
                "all attested to be durable".to_owned()
            } else {
                format!("attested to be durable through {}", report.attested_entry_id.unwrap_or(0))
            }
        ))?,
        _ => say(format_args!(
            "{path}: clean; {}, {}",
            report.kind.replace('_', " "),
            size(report.file_bytes)
        ))?,
    }
    for checkpoint in report.checkpoints {
        say(format_args!("{}", checkpoint_line(checkpoint)))?;
    }
    if report.verdict.is_accepted() && *report.verdict != Verdict::Clean {
        say(format_args!(
            "best-effort recovery accepts this and keeps everything through entry {}",
            report.last_entry_id.unwrap_or(0)
        ))?;
    }
    Ok(ExitCode::from(report.exit_code))
}
