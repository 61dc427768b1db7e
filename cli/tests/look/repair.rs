//! What the tool says of a log with a checkpoint beside it: `repair` sees what `verify` sees.

use durability::FsDirectory;
use durability::checkpoint::CheckpointWriter;
use durability::publish::CheckpointPublisher;
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::walog::{WalOptions, WalWriter};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// The checkpoint `state` requires this entry.
const REQUIRED: u64 = 11;

fn run(arguments: &[&str], root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_durability"));
    command.arg(arguments[0]).arg(root).args(&arguments[1..]).output().expect("runs")
}

fn text(arguments: &[&str], root: &Path) -> String {
    String::from_utf8(run(arguments, root).stdout).expect("text")
}

fn json(arguments: &[&str], root: &Path) -> Value {
    let output = run(&[arguments, &["--json"]].concat(), root);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(object["exit_code"].as_i64(), output.status.code().map(i64::from), "{object}");
    object
}

/// What `verify` and the dry run of `repair` say, which is the same: the plan, and its exit code.
fn agreed(root: &Path) -> (Value, u64) {
    let (verified, plan) = (json(&["verify"], root), json(&["repair"], root));
    for key in ["verdict", "finding", "text", "exit_code"] {
        assert_eq!(plan[key], verified[key], "{key}: {plan} and {verified}");
    }
    let code = plan["exit_code"].as_u64().expect("a code");
    (plan, code)
}

/// Applies a repair, which says of the outcome what `verify` says.
fn applied(arguments: &[&str], root: &Path) -> Value {
    let done = json(&[&["repair", "--apply"], arguments].concat(), root);
    let verified = json(&["verify"], root);
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!((&done["verdict_after"], &done["exit_code"]), (&verified["verdict"], &verified["exit_code"]));
    done
}

/// Ten entries, two in each segment; a checkpoint of entry 1, and one of entry 8 that requires all through
/// [`REQUIRED`]; `more` entries behind what publishing appends.
fn log(root: &Path, more: u64) -> PathBuf {
    let root = root.join("log");
    fs::create_dir(&root).expect("creates");
    let directory = Arc::new(FsDirectory::existing(&root).expect("opens"));
    let options = WalOptions {
        segment_bytes_max: 3600,
        preallocate_bytes: 0,
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(5)),
        ..WalOptions::default()
    };
    let mut wal = WalWriter::<(), FsDirectory>::open_with(Arc::clone(&directory), options).expect("opens");
    let append = |wal: &mut WalWriter<(), FsDirectory>, count: u64| {
        for _ in 0..count {
            let bytes = vec![wal.next_entry_id() as u8; 700];
            wal.append_bytes_durable(&bytes).expect("commits");
        }
    };
    append(&mut wal, 10);
    let write = |writer: &mut CheckpointWriter<'_, FsDirectory>| writer.write_state(&[7; 3000]);
    let publisher = CheckpointPublisher::new(directory);
    for last in [1, 8] {
        publisher.publish_with(&mut wal, last, "state", write, |path| Ok(path.into())).expect("publishes");
    }
    assert_eq!(wal.last_entry_id(), REQUIRED + 1);
    append(&mut wal, more);
    wal.close().expect("closes");
    root
}

/// The segments, by their ids.
fn segments(root: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(root.join("wal")).expect("lists").map(|entry| entry.expect("an entry").path());
    let id = |path: &PathBuf| path.file_stem()?.to_str()?.strip_prefix("wal_")?.parse::<u64>().ok();
    let mut segments: Vec<_> = paths.filter_map(|path| Some((id(&path)?, path))).collect();
    segments.sort();
    segments.into_iter().map(|(_, path)| path).collect()
}

/// Cuts the last `bytes` off the newest segment.
fn cut(root: &Path, bytes: u64) {
    let newest = segments(root).pop().expect("a segment");
    let file = fs::File::options().write(true).open(newest).expect("opens");
    file.set_len(file.metadata().expect("a size").len() - bytes).expect("cuts");
}

/// Every file of the log and beside it, but for locks.
fn files(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if !path.ends_with(".lock") {
            files.push((path.clone(), fs::read(path).expect("reads")));
        }
    }
    files.sort();
    files
}

fn refused(root: &Path, accepted: &[&str]) {
    let before = files(root);
    for accepted in accepted {
        for arguments in [&["repair", "--apply"][..], &["repair", "--apply", "--accept-loss", accepted]] {
            let refused = json(arguments, root);
            let told = (refused["state"].as_str(), refused["exit_code"].as_u64());
            assert_eq!(told, (Some("refused"), Some(4)), "{refused}");
        }
    }
    assert!(files(root) == before, "refusing changes nothing");
    agreed(root);
}

/// The newest segments are gone and the one before is cut: only the checkpoint tells that this is no tear.
#[test]
fn a_log_that_ends_before_what_a_checkpoint_requires_is_not_cut() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let root = log(scratch.path(), 0);
    segments(&root).iter().skip(4).for_each(|path| fs::remove_file(path).expect("removes"));
    cut(&root, 600);
    let (plan, code) = agreed(&root);
    assert_eq!((code, plan["steps"].as_array().map(Vec::len)), (4, Some(0)), "{plan}");
    let obstacle = plan["obstacle"].as_str().expect("an obstacle");
    for word in ["state", "requires entry 11", "entry 7"] {
        assert!(obstacle.contains(word), "{word}: {obstacle}");
    }
    refused(&root, &["8-11", "8-unknown", "none"]);
    for arguments in
        [&["repair"][..], &["repair", "--apply"], &["repair", "--apply", "--accept-loss", "8-11"]]
    {
        let told = text(arguments, &root);
        assert!(told.contains("cannot be repaired: checkpoint state requires"), "{told}");
        assert!(!told.contains("no acknowledged entry is lost"), "{told}");
    }

    // The one before requires as much as the log had then.
    fs::rename(root.join("state"), scratch.path().join("state")).expect("moves");
    let (plan, code) = agreed(&root);
    assert!(code == 4 && plan["obstacle"].as_str().is_some_and(|text| text.contains("state.1")), "{plan}");
    // Without any nothing says so any more: a torn tail.
    fs::remove_file(root.join("state.1")).expect("removes");
    assert_eq!(agreed(&root).1, 3);
    assert_eq!(applied(&[], &root)["verdict_after"], "clean");
    // And with it what is left is no log of this checkpoint's.
    fs::rename(scratch.path().join("state"), root.join("state")).expect("moves");
    assert_eq!(agreed(&root).1, 4);
    refused(&root, &["8-11"]);
}

#[test]
fn a_tear_behind_what_a_checkpoint_requires_is_cut_as_ever() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let root = log(scratch.path(), 1);
    assert_eq!(agreed(&root).1, 0);
    assert_eq!(json(&["repair", "--apply"], &root)["state"], "nothing_to_do");
    cut(&root, 600);
    let (plan, code) = agreed(&root);
    assert_eq!(
        (code, plan["loss"].as_str(), plan["last_entry_id"].as_u64()),
        (3, Some("none"), Some(REQUIRED + 1))
    );
    assert_eq!(applied(&[], &root)["verdict_after"], "clean");
    assert_eq!(agreed(&root).1, 0);
}

/// What is behind the damage serves the checkpoint, what is before it does not.
#[test]
fn of_a_damaged_log_the_side_is_kept_that_the_checkpoint_needs() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let root = log(scratch.path(), 0);
    let damaged = &segments(&root)[1];
    let mut bytes = fs::read(damaged).expect("reads");
    bytes[1100] ^= 4;
    fs::write(damaged, bytes).expect("writes");
    let (plan, code) = agreed(&root);
    assert_eq!((code, plan["loss"].as_str()), (4, Some("none")), "{plan}");
    let obstacle = plan["obstacle"].as_str().expect("an obstacle");
    assert!(obstacle.contains("requires entry 11") && obstacle.contains("newest"), "{obstacle}");
    refused(&root, &["3-12", "3-11"]);
    let newest = json(&["repair", "--keep", "newest"], &root);
    assert_eq!((newest["obstacle"].as_str(), newest["loss"].as_str()), (None, Some("1-4")), "{newest}");
    let done = applied(&["--keep", "newest", "--accept-loss", "1-4"], &root);
    assert_eq!(done["verdict_after"], "clean", "{done}");
    let usable = json(&["verify"], &root)["checkpoints"][0]["usable"].clone();
    assert_eq!(usable, true, "what is kept goes on behind it");
    let report = fs::read(root.join("repair-1/report.json")).expect("reads");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!((report["state"].as_str(), &report["verdict_after"]), (Some("done"), &Value::Null));
    for (key, value) in report.as_object().expect("an object") {
        let told_later = ["verdict_after", "exit_code"].contains(&key.as_str());
        assert!(told_later || *value == done[key], "{key}: {report} and {done}");
    }
}

/// The log is repaired all the same, and the checkpoint is told of, before and after.
#[test]
fn a_damaged_checkpoint_is_no_obstacle_to_repairing_the_log() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let root = log(scratch.path(), 1);
    let mut bytes = fs::read(root.join("state")).expect("reads");
    bytes[700] ^= 1;
    fs::write(root.join("state"), bytes).expect("writes");
    cut(&root, 600);
    let (plan, code) = agreed(&root);
    assert_eq!(
        (code, plan["finding"]["path"].as_str(), plan["loss"].as_str()),
        (4, Some("state"), Some("none"))
    );
    let done = applied(&[], &root);
    assert_eq!(
        (done["verdict_after"].as_str(), done["last_entry_id"].as_u64()),
        (Some("corrupt"), Some(REQUIRED + 1))
    );
    // Of the log nothing is left to be done.
    let (plan, code) = agreed(&root);
    assert_eq!((code, plan["steps"].as_array().map(Vec::len)), (4, Some(0)), "{plan}");
    assert!(plan["obstacle"].as_str().is_some_and(|text| text.contains("cannot be repaired")), "{plan}");
    fs::remove_file(root.join("state")).expect("removes");
    assert_eq!(agreed(&root).1, 0);
}
