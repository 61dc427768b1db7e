//! What the commands have in common: how they refuse, how they end, what their help says.

use crate::support::{code, folder, killed, run, scratch, tree};
use std::fs;
use std::process::Command;

#[test]
fn what_is_no_log_is_said_and_nothing_is_made() {
    let scratch = scratch();
    let root = scratch.path();
    folder(root, "empty");
    folder(root, "unmounted");
    folder(root, "unmounted/wal");
    fs::write(root.join("nothing"), b"").expect("writes");
    fs::write(root.join("zeros"), [0; 2000]).expect("writes");
    fs::write(root.join("text"), b"not ours").expect("writes");
    let before = tree(root);
    for command in ["verify", "inspect", "dump", "repair"] {
        for (name, expected, says) in [
            ("empty", 2, "holds no log"),
            ("unmounted", 2, "its folder wal is empty"),
            ("nothing", 2, "holds nothing"),
            ("zeros", 2, "holds nothing, or only zeros"),
            ("text", 2, "is no segment"),
            ("missing", 1, "No such file"),
        ] {
            let output = run(&[command], &root.join(name));
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(expected), "{command} {name}: {output:?}");
            assert!(told.contains(says) || (cfg!(windows) && expected == 1), "{command} {name}: {told}");
            assert!(output.stdout.is_empty(), "{command} {name}");
        }
    }
    assert_eq!(code(&["repair", "--apply"], &root.join("empty")), 2);
    assert_eq!(code(&["verify", "--threads", "0"], &root.join("empty")), 2);
    assert_eq!(code(&["dump", "--from", "0"], &root.join("empty")), 2);
    for arguments in [["dump", "--from", "-1"], ["dump", "--to", "-1"], ["verify", "--threads", "-1"]] {
        let output = run(&arguments, &root.join("empty"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let named = format!("invalid value '-1' for '{}", arguments[1]);
        assert!(String::from_utf8_lossy(&output.stderr).contains(&named), "{output:?}");
    }
    assert_eq!(tree(root), before);
    // A file that cannot be read is no verdict about a log.
    let log = killed(root);
    folder(&log, "wal/wal_9.log");
    for command in ["verify", "inspect", "dump", "repair"] {
        let output = run(&[command], &log);
        assert_eq!(output.status.code(), Some(1), "{command}: {output:?}");
        // Which log's file it is, too: there may be many.
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(&log.display().to_string()) && told.contains("wal_9.log"), "{command}: {told}");
    }
}

/// Whoever pipes into `head` and the like is not told about it, and the verdict is the exit code all the same.
#[cfg(unix)]
#[test]
fn a_closed_output_is_no_error() {
    use crate::support::command;
    use std::process::Stdio;

    let scratch = scratch();
    let root = killed(scratch.path());
    for (arguments, expected) in [
        (&["verify"][..], 0),
        (&["verify", "--json"], 0),
        (&["inspect"], 0),
        (&["dump"], 0),
        (&["repair"], 0),
    ] {
        // A pipe whose reader has ended.
        let mut reader = Command::new("true").stdin(Stdio::piped()).spawn().expect("runs");
        let writer = reader.stdin.take().expect("a pipe");
        reader.wait().expect("ends");
        let output = command(arguments, &root).stdout(writer).output().expect("runs");
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn help_teaches() {
    for (command, words) in [
        ("verify", &["Exit codes", "torn tail", "Examples"][..]),
        ("inspect", &["--hex", "attested", "Examples"]),
        ("dump", &["--follow", "durable", "JSON keys"]),
        ("repair", &["--accept-loss", "Nothing is deleted", "Exit codes", "in it), or a record log\n"]),
    ] {
        let help = Command::new(env!("CARGO_BIN_EXE_durability")).args([command, "--help"]).output();
        let text = String::from_utf8(help.expect("runs").stdout).expect("text");
        for word in words {
            assert!(text.contains(word), "{command}: {word}: {text}");
        }
    }
    let help = Command::new(env!("CARGO_BIN_EXE_durability")).arg("--help").output().expect("runs");
    let text = String::from_utf8(help.stdout).expect("text");
    for command in ["inspect", "verify", "dump", "repair", "torture", "bench", "soak", "backends"] {
        assert!(text.contains(command), "{command}: {text}");
    }
}
