//! The tool as its users run it.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

use std::process::{Command, Output};

fn durability(arguments: &[&str]) -> Output {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_durability"));
    command.args(arguments).current_dir(root.path()).output().expect("runs")
}

#[test]
fn nothing_is_lost_and_the_summary_says_so() {
    let output = durability(&["torture", "--rounds", "6", "--json", "--seed", "7"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    for (field, least) in [("rounds", 6), ("kills", 6), ("acknowledged", 1), ("recovered", 1), ("seed", 7)] {
        assert!(summary[field].as_u64() >= Some(least), "{field}: {summary}");
    }
    assert_eq!((summary["lost"].as_u64(), summary["violations"].as_u64()), (Some(0), Some(0)));
    let per_backend = summary["backends"].as_object().expect("an object");
    let kills: u64 = per_backend.values().filter_map(|tally| tally["kills"].as_u64()).sum();
    assert_eq!(kills, 6);
}

#[test]
fn a_planted_loss_is_found() {
    let output = durability(&["torture", "--rounds", "2", "--plant-a-loss"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("acknowledged entries are gone"), "{output:?}");
}

#[test]
fn wrong_usage_is_told_apart() {
    assert_eq!(durability(&["torture", "--backend", "floppy"]).status.code(), Some(2));
    assert_eq!(durability(&[]).status.code(), Some(2));
    // The package's own directory is not empty.
    let full = durability(&["torture", env!("CARGO_MANIFEST_DIR")]);
    assert_eq!(full.status.code(), Some(2), "{full:?}");
    assert!(String::from_utf8_lossy(&full.stderr).contains("not empty"));
}

#[test]
fn help_teaches() {
    let help = durability(&["torture", "--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(text.contains("Exit codes") && text.contains("power cut"), "{text}");
}

#[test]
fn a_named_directory_keeps_the_last_log() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let log = root.path().join("log");
    let output = durability(&["torture", log.to_str().expect("a name"), "--rounds", "2"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(log.join("wal").is_dir());
}
