//! `repair`: what it changes, what it saves beside the log, what it leaves alone. With a checkpoint beside the
//! log it sees what `verify` sees.

use crate::support::{
    append, change, code, copy, directory, fixture, folder, json, killed, open, publish, run, scratch,
    segment, segments, text, tree, unlocked,
};
use durability::recordlog::RecordLogWriter;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn a_torn_log_is_repaired_and_what_was_cut_is_beside_it() {
    let scratch = scratch();
    let root = killed(scratch.path());
    change(segment(&root, 5), |bytes| bytes.truncate(2800));
    let before = tree(&root);
    let plan = json(&["repair"], &root);
    assert_eq!((plan["state"].as_str(), plan["loss"].as_str()), (Some("dry_run"), Some("none")), "{plan}");
    assert_eq!(tree(&root), before, "a dry run changes nothing");
    let done = json(&["repair", "--apply"], &root);
    assert_eq!((done["state"].as_str(), done["verdict_after"].as_str()), (Some("done"), Some("clean")));
    assert_eq!((code(&["verify"], &root), done["last_entry_id"].as_u64()), (0, Some(9)));
    let folder = root.join(done["folder"].as_str().expect("a folder"));
    let cut = fs::read(folder.join("wal_5.log.from-2048")).expect("reads");
    let kept = fs::read(segment(&root, 5)).expect("reads");
    let (_, whole) = before.iter().find(|(path, _)| *path == segment(&root, 5)).expect("it was there");
    assert_eq!([kept, cut].concat(), *whole);
    let report: Value =
        serde_json::from_slice(&fs::read(folder.join("report.json")).expect("reads")).expect("JSON");
    assert_eq!((report["state"].as_str(), report["steps"][0]["step"].as_str()), (Some("done"), Some("cut")));
    // Nothing more to do, and the log goes on.
    assert_eq!(json(&["repair", "--apply"], &root)["state"], "nothing_to_do");
    let mut wal = open(&root).expect("opens");
    append(&mut wal, 1);
    assert_eq!(json(&["verify"], &root)["last_entry_id"], 10);
    // A writer is at work.
    let locked = run(&["repair", "--apply"], &root);
    assert_eq!(locked.status.code(), Some(1), "{locked:?}");
    assert!(String::from_utf8_lossy(&locked.stderr).contains("lock"), "{locked:?}");
}

#[test]
fn acknowledged_entries_go_only_when_they_are_named() {
    let scratch = scratch();
    let root = killed(scratch.path());
    change(segment(&root, 3), |bytes| bytes[1200] ^= 1);
    let before = unlocked(&root);
    let plan = json(&["repair"], &root);
    assert_eq!((plan["loss"].as_str(), plan["exit_code"].as_u64()), (Some("5-10"), Some(4)), "{plan}");
    for arguments in [&["repair", "--apply"][..], &["repair", "--apply", "--accept-loss", "5-9"]] {
        let refused = json(arguments, &root);
        assert_eq!((refused["state"].as_str(), refused["exit_code"].as_u64()), (Some("refused"), Some(4)));
    }
    assert_eq!(unlocked(&root), before, "refusing changes nothing");
    assert_eq!(code(&["repair", "--accept-loss", "5-10"], &root), 2, "only with --apply");
    let done = json(&["repair", "--apply", "--accept-loss", "5-10"], &root);
    assert_eq!((done["exit_code"].as_u64(), done["last_entry_id"].as_u64()), (Some(0), Some(4)), "{done}");
    assert_eq!(json(&["verify"], &root)["verdict"], "clean");
    // What was moved away can still be read.
    let dumped = run(&["dump", "--json"], &root.join("repair-1/wal_4.log"));
    let lines = String::from_utf8(dumped.stdout).expect("text");
    assert_eq!((dumped.status.code(), lines.lines().count()), (Some(0), 2), "{lines}");
    assert!(lines.starts_with("{\"bytes\":700,\"entry_id\":7"), "{lines}");
}

#[test]
fn a_repair_that_was_interrupted_before_the_cut_is_repeated_beside_it() {
    let scratch = scratch();
    let root = killed(scratch.path());
    change(segment(&root, 5), |bytes| bytes.truncate(2800));
    let torn = copy(&root, &scratch.path().join("torn"));
    assert_eq!(code(&["repair", "--apply"], &root), 0);
    // As if the power had gone when everything was saved and nothing was cut.
    copy(&torn, &root);
    let report = root.join("repair-1/report.json");
    change(report, |bytes| {
        *bytes = String::from_utf8_lossy(bytes).replace("\"done\"", "\"planned\"").into_bytes();
    });
    let output = run(&["repair", "--apply"], &root);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("repair-1 was not finished"), "{output:?}");
    let saved = |folder: &str| fs::read(root.join(folder).join("wal_5.log.from-2048")).expect("reads");
    assert_eq!(saved("repair-1"), saved("repair-2"));
    assert_eq!(code(&["verify"], &root), 0);
}

#[test]
fn record_logs_are_repaired_and_checkpoints_are_not() {
    let scratch = scratch();
    let root = scratch.path();
    let mut log = RecordLogWriter::new(directory(root), "records.log");
    for index in 1..=4u8 {
        log.append_bytes(&[index; 600]).expect("appends");
        log.flush_and_sync().expect("syncs");
    }
    let file = root.join("records.log");
    let bytes = fs::read(&file).expect("reads");
    drop(log);
    fs::write(&file, &bytes[..bytes.len() - 600]).expect("writes");
    assert_eq!(code(&["verify"], &file), 3);
    let done = json(&["repair", "--apply"], &file);
    assert_eq!(
        (done["kind"].as_str(), done["last_entry_id"].as_u64()),
        (Some("record_log"), Some(3)),
        "{done}"
    );
    assert_eq!(code(&["verify"], &file), 0);
    change(file.clone(), |bytes| bytes[1100] ^= 1);
    let plan = json(&["repair"], &file);
    assert_eq!((plan["loss"].as_str(), plan["exit_code"].as_u64()), (Some("1-3"), Some(4)), "{plan}");
    assert_eq!(code(&["repair", "--apply", "--accept-loss", "1-3"], &file), 0);
    assert_eq!(json(&["verify"], &file)["verdict"], "clean");
    assert!(root.join("repair-2").is_dir());

    let checkpoint = root.join("state.ckp");
    fs::copy(fixture("checkpoint/state.ckp"), &checkpoint).expect("copies");
    change(checkpoint.clone(), |bytes| bytes[1100] ^= 1);
    let told = json(&["repair"], &checkpoint);
    assert!(told["obstacle"].as_str().is_some_and(|text| text.contains("older")), "{told}");
    assert_eq!(code(&["repair"], &segment(&killed(root), 1)), 2);
}

/// The checkpoint `state` requires this entry.
const REQUIRED: u64 = 11;

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
    let root = folder(root, "log");
    let mut wal = open(&root).expect("opens");
    append(&mut wal, 10);
    for last in [1, 8] {
        publish(&mut wal, &root, last, "state");
    }
    assert_eq!(wal.last_entry_id(), REQUIRED + 1);
    append(&mut wal, more);
    wal.close().expect("closes");
    root
}

/// Cuts the last `bytes` off the newest segment.
fn cut(root: &Path, bytes: usize) {
    let newest = segments(root).pop().expect("a segment");
    change(newest, |contents| contents.truncate(contents.len() - bytes));
}

fn refused(root: &Path, accepted: &[&str]) {
    let before = unlocked(root);
    for accepted in accepted {
        for arguments in [&["repair", "--apply"][..], &["repair", "--apply", "--accept-loss", accepted]] {
            let refused = json(arguments, root);
            let told = (refused["state"].as_str(), refused["exit_code"].as_u64());
            assert_eq!(told, (Some("refused"), Some(4)), "{refused}");
        }
    }
    assert!(unlocked(root) == before, "refusing changes nothing");
    agreed(root);
}

/// The newest segments are gone and the one before is cut: only the checkpoint tells that this is no tear.
#[test]
fn a_log_that_ends_before_what_a_checkpoint_requires_is_not_cut() {
    let scratch = scratch();
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
    let scratch = scratch();
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
    let scratch = scratch();
    let root = log(scratch.path(), 0);
    change(segments(&root).swap_remove(1), |bytes| bytes[1100] ^= 4);
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
    let scratch = scratch();
    let root = log(scratch.path(), 1);
    change(root.join("state"), |bytes| bytes[700] ^= 1);
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
