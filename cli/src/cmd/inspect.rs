//! `durability inspect`: what is in a log's folder, or in one file.

use super::Failure;
use super::look::{
    EXIT_CODES, Named, Reading, Target, checkpoints, exit_code, progress, size, unless_closed,
};
use super::verify::kind_name;
use durability::formats::frame::SealReason;
use durability::inspect::{self, CheckpointReport, Dump, FileInspection, FileReport, LogInspection, Role};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// Arguments of `durability inspect`.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
#[command(after_help = format!("For a directory: every segment with its entries, watermark, seal and sizes, files \
    that are prepared, left behind or spare, the checkpoints beside them, and the verdict about all of it. For a file: its header, contents and \
    verdict; with --hex every field of it with its offset, as docs/format.md has them.\n\nTakes no lock and changes \
    nothing; a writer may be at work.\n\nColumns: `attested` is the highest entry that anything in the file attests \
    to be durable; `used` is where the last good frame ends; `rest` is what stands behind it.\n\nExamples:\n  \
    durability inspect /var/lib/db\n  durability inspect /var/lib/db --json | jq .verdict\n  durability inspect \
    /var/lib/db/wal/wal_3.log --hex | less\n\n{EXIT_CODES}"))]
pub struct Arguments {
    /// What is looked at.
    #[command(flatten)]
    pub named: Named,
    #[command(flatten)]
    reading: Reading,
    /// Write out the fields of a file with their offsets and bytes (a file only).
    #[arg(long, conflicts_with = "json")]
    hex: bool,
    /// With --hex: leave out the bytes of entries.
    #[arg(long, requires = "hex")]
    no_entries: bool,
}

/// A log, as printed.
#[derive(Serialize)]
struct Log<'a> {
    path: &'a std::path::Path,
    kind: &'static str,
    text: String,
    exit_code: u8,
    #[serde(flatten)]
    inspection: &'a LogInspection,
}

/// A file, as printed.
#[derive(Serialize)]
struct File<'a> {
    text: String,
    exit_code: u8,
    #[serde(flatten)]
    inspection: &'a FileInspection,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let code = match Target::find(&arguments.named.path)? {
        Target::Log(_) if arguments.hex => {
            return Err(super::look::Usage("--hex wants a file, not a directory".to_owned()).into());
        }
        Target::Log(directory) => {
            let found = checkpoints(&directory, arguments.named.json)?;
            let bar = progress(arguments.named.json);
            let inspection = inspect::inspect_log_beside(&directory, found, |check| {
                arguments.reading.scan_all(check, &bar)
            })?;
            bar.finish_and_clear();
            unless_closed(print_log(arguments, &inspection, &mut out))?;
            exit_code(&inspection.verdict)
        }
        Target::File { directory, name, .. } => {
            let bar = progress(arguments.named.json);
            bar.set_length(std::fs::metadata(&arguments.named.path)?.len());
            let inspection = inspect::inspect_file(directory.as_ref(), &name, &mut |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
            if arguments.hex {
                let dump = Dump { entries: !arguments.no_entries };
                let mut failed = Ok(());
                inspect::dump_file(directory.as_ref(), &name, dump, &mut |text| {
                    if failed.is_ok() {
                        failed = out.write_all(text.as_bytes());
                    }
                })?;
                let told = failed.and_then(|()| writeln!(out, "\n{}", inspection.verdict));
                unless_closed(told.map_err(Failure::from))?;
            } else {
                unless_closed(print_file(arguments, &inspection, &mut out))?;
            }
            exit_code(&inspection.verdict)
        }
    };
    unless_closed(out.flush().map_err(Failure::from))?;
    Ok(ExitCode::from(code))
}

fn print_log(arguments: &Arguments, inspection: &LogInspection, out: &mut dyn Write) -> Result<(), Failure> {
    if arguments.named.json {
        let log = Log {
            path: &arguments.named.path,
            kind: "log",
            text: inspection.verdict.to_string(),
            exit_code: exit_code(&inspection.verdict),
            inspection,
        };
        writeln!(out, "{}", serde_json::to_string(&log)?)?;
        return Ok(());
    }
    let identity = inspection.files.iter().find_map(|file| file.header.as_ref());
    if let Some(header) = identity {
        writeln!(out, "log {:032x}", header.identity)?;
    }
    writeln!(
        out,
        "{:<18} {:<10} {:>16} {:>9} {:>9} {:>9} {:<8} {:>10} {:>10} {:>16} align",
        "file", "role", "salt", "first", "last", "attested", "seal", "size", "used", "rest"
    )?;
    for file in &inspection.files {
        writeln!(out, "{}", line(file).trim_end())?;
    }
    for checkpoint in &inspection.checkpoints {
        writeln!(out, "{}", checkpoint_line(checkpoint))?;
    }
    for path in &inspection.dropped {
        writeln!(out, "behind the tear: {path}, whose contents no mode returns")?;
    }
    for region in &inspection.unproven {
        writeln!(
            out,
            "unattested: {} bytes {} to {}, which opening the log writes once more",
            region.path, region.from, region.to
        )?;
    }
    if let (Some(last), Some(attested)) = (inspection.last_entry_id, inspection.attested_entry_id) {
        let closed = if inspection.closed { ", closed" } else { "" };
        match (inspection.first_entry_id, last) {
            (first, last) if last < first => writeln!(out, "no entries{closed}")?,
            (first, last) => {
                writeln!(
                    out,
                    "entries {first} to {last}, attested to be durable through {attested}{closed}"
                )?;
            }
        }
    }
    writeln!(out, "{}", inspection.verdict)?;
    Ok(())
}

/// A checkpoint, for people.
pub fn checkpoint_line(checkpoint: &CheckpointReport) -> String {
    let CheckpointReport { path, last_applied_entry_id: last, required_entry_id: required, .. } = checkpoint;
    match checkpoint.usable {
        true => format!("checkpoint {path}: entries through {last}, the log must reach {required}"),
        false if checkpoint.verdict.is_accepted() => {
            format!("checkpoint {path}: entries through {last}, which the log does not reach back to")
        }
        false => format!("checkpoint {path}: {}", checkpoint.verdict),
    }
}

/// Why a seal was written, for people.
fn sealed(reason: SealReason) -> &'static str {
    match reason {
        SealReason::Close => "closed",
        SealReason::Rotation => "rotated",
        SealReason::Idle => "idle",
    }
}

/// One line of the table.
fn line(file: &FileReport) -> String {
    let name = file.path.strip_prefix("wal/").unwrap_or(&file.path);
    let salt = file.header.as_ref().map_or_else(String::new, |header| format!("{:016x}", header.salt));
    let align = file.header.as_ref().map_or_else(String::new, |header| header.frame_alignment.to_string());
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let contents = file.contents.as_ref();
    let opened = file.opening.as_ref().map(|opening| opening.predecessor_last_entry_id + 1);
    let seal = contents.and_then(|contents| contents.seal.as_ref()).map_or("-", |seal| sealed(seal.reason));
    let rest = contents.map_or_else(
        || "-".to_owned(),
        |contents| match (contents.rest_bytes, contents.rest_is_zero) {
            (0, _) => "none".to_owned(),
            (bytes, true) => format!("{bytes} zeros"),
            (bytes, false) => format!("{bytes} bytes"),
        },
    );
    let table = format!(
        "{name:<18} {:<10} {salt:>16} {:>9} {:>9} {:>9} {seal:<8} {:>10} {:>10} {rest:>16} {align}",
        file.role.name(),
        number(contents.map(|contents| contents.first_entry_id).or(opened)),
        number(contents.map(|contents| contents.last_entry_id)),
        number(contents.map(|contents| contents.attested_entry_id)),
        file.file_bytes,
        number(contents.map(|contents| contents.used_bytes)),
    );
    match &file.problem {
        Some(problem) if file.role != Role::Single => format!("{table}\n    {problem}"),
        _ => table,
    }
}

fn print_file(
    arguments: &Arguments,
    inspection: &FileInspection,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let exit_code = exit_code(&inspection.verdict);
    if arguments.named.json {
        let file = File { text: inspection.verdict.to_string(), exit_code, inspection };
        writeln!(out, "{}", serde_json::to_string(&file)?)?;
        return Ok(());
    }
    let file = &inspection.file;
    let kind = kind_name(inspection.kind).replace('_', " ");
    writeln!(out, "{kind}, {} ({})", size(file.file_bytes), file.file_bytes)?;
    if let Some(header) = &file.header {
        writeln!(out, "log {:032x}, salt {:016x}", header.identity, header.salt)?;
        writeln!(out, "file id {}, frames every {} bytes", header.file_id, header.frame_alignment)?;
        if inspection.kind == durability::formats::header::FileKind::Checkpoint {
            writeln!(
                out,
                "entries through {} applied, the log must reach {}",
                header.last_applied_entry_id, header.required_entry_id
            )?;
        }
    }
    if let Some(opening) = &file.opening {
        writeln!(
            out,
            "continues segment {} (salt {:016x}), which ends at offset {} after entry {}",
            opening.predecessor_id,
            opening.predecessor_salt,
            opening.predecessor_end,
            opening.predecessor_last_entry_id
        )?;
    }
    if let Some(contents) = &file.contents {
        writeln!(
            out,
            "entries {} to {} in {} frames, attested to be durable through {}",
            contents.first_entry_id, contents.last_entry_id, contents.frames, contents.attested_entry_id
        )?;
        if let Some(seal) = &contents.seal {
            match seal.successor_id {
                0 => writeln!(out, "sealed: {}", sealed(seal.reason))?,
                successor => {
                    writeln!(out, "sealed: {}, goes on in segment {successor}", sealed(seal.reason))?
                }
            }
        }
        let what = if contents.rest_is_zero { "zeros" } else { "other bytes" };
        writeln!(
            out,
            "used {} bytes, then {} of {what}; {} cuts",
            contents.used_bytes, contents.rest_bytes, contents.cuts
        )?;
    }
    writeln!(out, "{}", inspection.verdict)?;
    Ok(())
}
