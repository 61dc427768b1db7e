//! How the commands that make something end before their time: interrupted, killed, unheard.
#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Long enough for whatever ends at all.
const PATIENCE: Duration = Duration::from_secs(60);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Whether this program was started with one of the signals ignored (`nohup`, or in the background of a script): what
/// it starts would not listen to any.
fn ignores_signals() -> bool {
    const HUP_INT_TERM: u64 = 1 | 1 << 1 | 1 << 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & HUP_INT_TERM != 0)
}

fn start(root: &Path, arguments: &[&str]) -> Child {
    let program = env!("CARGO_BIN_EXE_durability");
    let mut command = Command::new(if ignores_signals() { "env" } else { program });
    if ignores_signals() {
        command.args(["--default-signal", program]);
    }
    command.args(arguments).current_dir(root).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("runs")
}

fn signal(child: &Child, name: &str) {
    let status =
        Command::new("kill").args(["-s", name, &child.id().to_string()]).status().expect("kill runs");
    assert!(status.success(), "{name}");
}

/// Waits until something at `depth` below `root` was made; whoever made it listens to signals by then.
fn made_below(root: &Path, depth: u32) {
    let found = |root: &Path| std::fs::read_dir(root).ok()?.next()?.ok().map(|entry| entry.path());
    let mut path = root.to_owned();
    for _ in 0..depth {
        path = loop {
            if let Some(below) = found(&path) {
                break below;
            }
            std::thread::yield_now();
        };
    }
}

/// What it said, when it and whatever it started have ended.
fn ended(child: Child) -> Output {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    told.recv_timeout(PATIENCE)
        .expect("it ends, and leaves nobody behind that could speak")
        .expect("waited for")
}

fn is_empty(root: &Path) -> bool {
    std::fs::read_dir(root).expect("lists").next().is_none()
}

#[test]
fn who_is_interrupted_removes_what_it_made() {
    let commands: [&[&str]; 4] = [
        &["torture", "--rounds", "100000"],
        &["soak", "--seconds", "1000", "--slice", "1"],
        &["bench", "--rounds", "1000", "--seconds", "0.01", "--committers", "1"],
        &["bench", "--recovery", "--entries", "2000", "--rounds", "1000"],
    ];
    for (arguments, name) in commands.into_iter().zip(["INT", "TERM", "HUP", "INT"]) {
        let root = folder();
        let child = start(root.path(), arguments);
        made_below(root.path(), 1);
        signal(&child, name);
        let output = ended(child);
        assert_eq!(output.status.code(), Some(130), "{arguments:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{arguments:?}: {output:?}");
        assert!(is_empty(root.path()), "{arguments:?}");
    }
}

#[test]
fn torture_that_is_interrupted_says_what_it_found() {
    let root = folder();
    let child = start(root.path(), &["torture", "--rounds", "100000", "--json"]);
    made_below(root.path(), 1);
    signal(&child, "INT");
    let output = ended(child);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert!(summary["kills"].as_u64() >= Some(1), "{summary}");
    assert_eq!(summary["lost"].as_u64(), Some(0), "{summary}");
}

#[test]
fn a_writer_does_not_outlive_the_torture_that_was_killed() {
    let root = folder();
    let child = start(root.path(), &["torture", "log", "--rounds", "100000", "--backend", "std"]);
    // `log/wal/.lock`, which a writer made.
    made_below(root.path(), 3);
    signal(&child, "KILL");
    // The writer has the same standard error: it closes when both have ended.
    assert_eq!(ended(child).status.code(), None);
}

#[test]
fn who_is_not_listened_to_ends_all_the_same() {
    let commands: [&[&str]; 2] = [&["torture", "--rounds", "1"], &["soak", "--seconds", "2", "--slice", "1"]];
    for json in [false, true] {
        for arguments in commands {
            let root = folder();
            let arguments = [arguments, if json { &["--json"] } else { &[] }].concat();
            let mut child = start(root.path(), &arguments);
            drop(child.stdout.take());
            let output = ended(child);
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        }
    }
}

#[test]
fn numbers_and_directories_that_make_no_sense_are_wrong_usage() {
    let root = folder();
    std::fs::write(root.path().join("file"), b"x").expect("writes");
    let commands: [&[&str]; 6] = [
        &["torture", "--rounds", "0"],
        &["torture", "--threads", "0"],
        &["torture", "file"],
        &["soak", "--prepared", "0"],
        &["soak", "--still-bytes", "999999999999999"],
        &["backends", "file"],
    ];
    for arguments in commands {
        let output = ended(start(root.path(), arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}
