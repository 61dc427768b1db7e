//! `durability repair`: takes out of a log what cannot be read, and keeps it beside.

use super::Failure;
use super::look::{EXIT_CODES, Named, Reading, Target, Usage, checkpoints, exit_code, progress, say};
use super::verify::{check_beside, kind_name};
use crate::CORRUPT;
use durability::formats::header::FileKind;
use durability::inspect::{Verdict, inspect_file};
use durability::repair::{Keep, Planned, Repair, RepairPlan, RepairState, plan_log, plan_record_log};
use durability::walog::WalCheck;
use durability::{Directory, FsDirectory};
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `durability repair`.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
#[command(mut_arg("path", |path| path.help(
    "A directory with a log (the folder `wal` is in it), or a record log"
)))]
#[command(after_help = format!("A log with a torn tail needs no repair: opening it accepts the tail and goes on \
    elsewhere. Repair is for a log that is refused, and for strict readers.\n\nWithout --apply nothing is changed: \
    it prints what would be done, and which entries it would cost. With --apply, in this order: the writer's lock \
    is taken; a folder repair-<n> is made beside the log; a report, and copies of all bytes that will be cut, are \
    made durable there; files that are no part of the log any more are moved there, and the log is cut; the report \
    is completed. Nothing is deleted. A crash at any moment leaves a log that can be repaired again.\n\nWhere \
    acknowledged entries are lost, --apply is refused unless --accept-loss names exactly the entries that the dry \
    run printed. Ids behind the end of a repaired log are given out again.\n\nBefore accepting a loss: is there a \
    replica, a backup, or a checkpoint that covers the damage? With a checkpoint, --keep newest keeps the segments \
    behind the damage instead of those before it.\n\nThe checkpoints in the directory are read as by verify. Nothing \
    is done while one of them requires more than the log would hold: restore what is missing, or move the checkpoint \
    to another directory.\n\nExamples:\n  durability repair /var/lib/db\n  durability repair /var/lib/db --apply\n  durability repair /var/lib/db --apply --accept-loss 101-108\n\n{EXIT_CODES}\n\n\
    The dry run exits with what it found. --apply exits with what verify says afterwards, 0 when all is \
    clean, and with 4 when it refuses."))]
pub struct Arguments {
    /// What is looked at.
    #[command(flatten)]
    pub named: Named,
    #[command(flatten)]
    reading: Reading,
    /// Do it.
    #[arg(long)]
    apply: bool,
    /// The entries that may be lost, as the dry run prints them: 101-108, 101-unknown, 1-40,101-108.
    #[arg(long, value_name = "ENTRIES", requires = "apply")]
    accept_loss: Option<String>,
    /// Which side of the damage is kept.
    #[arg(long, value_enum, default_value = "oldest")]
    keep: Side,
}

/// Which side of the damage is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    /// Everything before it.
    Oldest,
    /// The segments behind it.
    Newest,
}

/// What is printed, and what stands in `report.json`.
#[derive(Serialize)]
struct Report<'a> {
    tool: &'static str,
    state: &'static str,
    folder: Option<&'a str>,
    kind: &'static str,
    #[serde(flatten)]
    plan: &'a RepairPlan,
    text: String,
    verdict_after: Option<&'static str>,
    exit_code: Option<u8>,
}

impl<'a> Report<'a> {
    fn new(plan: &'a RepairPlan, kind: &'static str, state: &'static str) -> Self {
        Self {
            tool: concat!("durability ", env!("CARGO_PKG_VERSION")),
            state,
            folder: None,
            kind,
            plan,
            text: plan.found.to_string(),
            verdict_after: None,
            exit_code: None,
        }
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    match Target::find(&arguments.named.path)? {
        Target::Log(directory) => {
            tell_unfinished(&directory)?;
            repair_log(arguments, &directory)
        }
        Target::File { directory, name, kind: FileKind::RecordLog } => {
            tell_unfinished(&directory)?;
            repair_record_log(arguments, &directory, &name)
        }
        Target::File { kind: FileKind::Segment, .. } => {
            Err(Usage("give the directory of the log, not one of its segments".to_owned()).into())
        }
        Target::File { directory, name, kind } => {
            let verdict = inspect_file(directory.as_ref(), &name, &mut |_| {})?.verdict;
            let obstacle = (verdict != Verdict::Clean).then(|| {
                "a checkpoint cannot be repaired: recovery falls back to an older one and the log".to_owned()
            });
            let plan = RepairPlan {
                found: verdict,
                steps: Vec::new(),
                loss: durability::repair::Loss::default(),
                first_entry_id: 0,
                last_entry_id: 0,
                obstacle,
            };
            dry_run(arguments, &plan, kind_name(kind))
        }
    }
}

/// An earlier repair that was interrupted is no obstacle; whoever looks for its bytes should know.
fn tell_unfinished(directory: &FsDirectory) -> Result<(), Failure> {
    for name in directory.list_dir("")? {
        if !name.starts_with("repair-") {
            continue;
        }
        let report = std::fs::read(directory.root().join(&name).join("report.json"));
        let report = report.ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        if report.is_none_or(|report| report["state"] != "done") {
            eprintln!("durability: the repair in {name} was not finished; what it saved is there");
        }
    }
    Ok(())
}

fn repair_log(arguments: &Arguments, directory: &Arc<FsDirectory>) -> Result<ExitCode, Failure> {
    let keep = match arguments.keep {
        Side::Oldest => Keep::Oldest,
        Side::Newest => Keep::Newest,
    };
    let beside = checkpoints(directory, arguments.named.json)?;
    let bar = progress(arguments.named.json);
    let scan_all = |check: &WalCheck<Planned<FsDirectory>>| arguments.reading.scan_all(check, &bar);
    if !arguments.apply {
        let plan = plan_log(directory, &beside, keep, scan_all)?;
        bar.finish_and_clear();
        return dry_run(arguments, &plan, "log");
    }
    let repair = Repair::of_log(Arc::clone(directory), &beside, keep, scan_all)?;
    bar.finish_and_clear();
    apply(arguments, repair, "log", &mut || {
        Ok(check_beside(directory, &arguments.reading, arguments.named.json)?.verdict)
    })
}

fn repair_record_log(
    arguments: &Arguments,
    directory: &Arc<FsDirectory>,
    name: &str,
) -> Result<ExitCode, Failure> {
    let bar = progress(arguments.named.json);
    bar.set_length(std::fs::metadata(&arguments.named.path)?.len());
    let mut count = |bytes| bar.inc(bytes);
    if !arguments.apply {
        let plan = plan_record_log(directory, name, &mut count)?;
        bar.finish_and_clear();
        return dry_run(arguments, &plan, "record_log");
    }
    let repair = Repair::of_record_log(Arc::clone(directory), name, &mut count)?;
    bar.finish_and_clear();
    apply(arguments, repair, "record_log", &mut || {
        Ok(inspect_file(directory.as_ref(), name, &mut |_| {})?.verdict)
    })
}

fn dry_run(arguments: &Arguments, plan: &RepairPlan, kind: &'static str) -> Result<ExitCode, Failure> {
    let code = exit_code(&plan.found);
    if arguments.named.json {
        let report = Report { exit_code: Some(code), ..Report::new(plan, kind, "dry_run") };
        say(format_args!("{}", serde_json::to_string(&report)?))?;
        return Ok(ExitCode::from(code));
    }
    say(format_args!("{}: {}", arguments.named.path.display(), plan.found))?;
    tell_plan(arguments, plan, false)?;
    if !plan.steps.is_empty() {
        let accept = match plan.loss.is_none() {
            true => String::new(),
            false => format!(" --accept-loss {}", plan.loss),
        };
        say(format_args!(
            "nothing was changed; to do it: durability repair {} --apply{accept}",
            path(arguments)
        ))?;
    }
    Ok(ExitCode::from(code))
}

fn path(arguments: &Arguments) -> String {
    let keep = if arguments.keep == Side::Newest { " --keep newest" } else { "" };
    format!("{}{keep}", arguments.named.path.display())
}

fn tell_plan(arguments: &Arguments, plan: &RepairPlan, is_done: bool) -> Result<(), Failure> {
    if let Some(obstacle) = &plan.obstacle {
        say(format_args!("it cannot be repaired: {obstacle}"))?;
        return Ok(());
    }
    if plan.steps.is_empty() {
        say(format_args!("nothing to do"))?;
        return Ok(());
    }
    let (does, holds) = if is_done { ("did", "holds") } else { ("would", "would hold") };
    for step in &plan.steps {
        say(format_args!("{does} {step}"))?;
    }
    say(format_args!("the log {holds} entries {} to {}", plan.first_entry_id, plan.last_entry_id))?;
    if plan.loss.is_none() {
        say(format_args!("no acknowledged entry is lost"))?;
    } else {
        say(format_args!("entries that were acknowledged, or may have been, and are lost: {}", plan.loss))?;
        if !is_done && arguments.keep == Side::Oldest && plan.loss.behind.is_some() {
            say(format_args!(
                "look for a replica or a backup first; with a checkpoint that covers the damage see --keep newest"
            ))?;
        }
    }
    Ok(())
}

fn apply(
    arguments: &Arguments,
    repair: Repair<FsDirectory>,
    kind: &'static str,
    verify: &mut dyn FnMut() -> Result<Verdict, Failure>,
) -> Result<ExitCode, Failure> {
    let plan = repair.plan().clone();
    let accepted = arguments.accept_loss.as_deref();
    if plan.obstacle.is_some() || (!plan.loss.is_none() && accepted != Some(plan.loss.to_string().as_str())) {
        return refuse(arguments, &plan, kind);
    }
    let mut write_report = |plan: &RepairPlan, folder: &str, state: RepairState| {
        let state = match state {
            RepairState::Planned => "planned",
            RepairState::Done => "done",
        };
        let report = Report { folder: Some(folder), ..Report::new(plan, kind, state) };
        serde_json::to_vec_pretty(&report).unwrap_or_default()
    };
    let repaired = repair.apply(accepted, &mut write_report)?;
    let after = verify()?;
    let code = if after == Verdict::Clean { 0 } else { exit_code(&after) };
    let folder = repaired.folder.as_deref();
    if arguments.named.json {
        let report = Report {
            folder,
            verdict_after: Some(after.name()),
            exit_code: Some(code),
            ..Report::new(&plan, kind, if folder.is_some() { "done" } else { "nothing_to_do" })
        };
        say(format_args!("{}", serde_json::to_string(&report)?))?;
    } else {
        say(format_args!("{}: {}", arguments.named.path.display(), plan.found))?;
        tell_plan(arguments, &plan, true)?;
        if let Some(folder) = folder {
            say(format_args!("what was taken out, and a report, is in {folder}"))?;
        }
        say(format_args!("now: {after}"))?;
    }
    Ok(ExitCode::from(code))
}

fn refuse(arguments: &Arguments, plan: &RepairPlan, kind: &'static str) -> Result<ExitCode, Failure> {
    if arguments.named.json {
        let report = Report { exit_code: Some(CORRUPT), ..Report::new(plan, kind, "refused") };
        say(format_args!("{}", serde_json::to_string(&report)?))?;
        return Ok(ExitCode::from(CORRUPT));
    }
    say(format_args!("{}: {}", arguments.named.path.display(), plan.found))?;
    tell_plan(arguments, plan, false)?;
    match &arguments.accept_loss {
        _ if plan.obstacle.is_some() => {}
        None => {
            say(format_args!("refused, nothing was changed; to accept this: --accept-loss {}", plan.loss))?
        }
        Some(accepted) => say(format_args!(
            "refused, nothing was changed: {accepted} was accepted, and it would cost {}",
            plan.loss
        ))?,
    }
    Ok(ExitCode::from(CORRUPT))
}
