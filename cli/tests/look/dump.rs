//! `dump`: what was appended, in every way to write it, and as it comes.

use crate::support::{append, change, code, directory, folder, open, run, scratch, segment, text};
use durability::walog::WalMaintenance;
use serde_json::Value;

#[test]
fn dump_writes_what_was_appended_in_every_way() {
    let scratch = scratch();
    let root = folder(scratch.path(), "log");
    let mut wal = open(&root).expect("opens");
    for entry in [&b"one"[..], b"zwei \xc3\xbc", b"\xff\x00", b"four"] {
        wal.append_bytes(entry).expect("appends");
    }
    wal.close().expect("closes");
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let output = run(&[&["dump", "--json"], arguments].concat(), &root);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    };
    let told = |lines: Vec<Value>, key: &str| -> Vec<(u64, Option<String>)> {
        let tell =
            |line: &Value| (line["entry_id"].as_u64().expect("an id"), line[key].as_str().map(Into::into));
        lines.iter().map(tell).collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        told(lines(&["--as", "utf8"]), "utf8"),
        [(1, some("one")), (2, some("zwei ü")), (3, None), (4, some("four"))]
    );
    assert_eq!(told(lines(&["--from", "3", "--to", "3"]), "hex"), [(3, some("ff00"))]);
    assert_eq!(told(lines(&["--from", "4", "--as", "base64"]), "base64"), [(4, some("Zm91cg=="))]);
    assert_eq!(lines(&["--from", "5"]), Vec::<Value>::new());
    assert_eq!(run(&["dump", "--raw", "--to", "2"], &root).stdout, b"onezwei \xc3\xbc");
    let hex = text(&["dump", "--from", "4"], &root);
    assert!(hex.starts_with("entry 4, 4 bytes\n000000  66 6f 75 72") && hex.ends_with("|four|\n"), "{hex}");
    assert_eq!(code(&["dump", "--from", "3", "--to", "2"], &root), 2);
    // Behind the next entry there is nothing to wait for either.
    for path in [&root, &segment(&root, 1)] {
        let output = run(&["dump", "--from", "6"], path);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.contains("the last one is 4")), (Some(2), true), "{output:?}");
        assert_eq!(code(&["dump", "--from", "4", "--to", "9"], path), 0);
    }
    // What was asked for is whole, whatever is behind it.
    change(segment(&root, 1), |bytes| *bytes.last_mut().expect("a byte") ^= 1);
    assert_eq!((code(&["dump", "--to", "4"], &root), code(&["dump"], &root)), (0, 4));
}

#[test]
fn what_was_truncated_is_not_dumped_in_silence() {
    let scratch = scratch();
    let root = scratch.path();
    let mut wal = open(root).expect("opens");
    append(&mut wal, 10);
    WalMaintenance::new(directory(root)).truncate_prefix(8).expect("truncates");
    wal.close().expect("closes");
    let first: u64 = {
        let line = text(&["dump", "--json"], root);
        serde_json::from_str::<Value>(line.lines().next().expect("a line")).expect("JSON")["entry_id"]
            .as_u64()
            .expect("an id")
    };
    assert!(first > 2, "{first}");
    let last = &segment(root, 5);
    for (arguments, path) in [
        (&["dump", "--from", "2"][..], root),
        (&["dump", "--to", "2"], root),
        (&["dump", "--follow", "--to", "2"], root),
        (&["dump", "--to", "2"], last),
        (&["dump", "--from", "1", "--to", "2"], last),
    ] {
        let output = run(arguments, path);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {output:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("entry 2 ") && output.stdout.is_empty(), "{arguments:?} {output:?}");
    }
    assert_eq!(code(&["dump", "--to", &first.to_string()], root), 0);
}

#[cfg(unix)]
mod follow {
    use crate::support::{append, change, command, directory, killed, open, payload, scratch, segment};
    use durability::walog::WalMaintenance;
    use serde_json::Value;
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Child, ChildStdout, Command, Stdio};

    struct Follower {
        child: Child,
        lines: BufReader<ChildStdout>,
    }

    impl Drop for Follower {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    impl Follower {
        fn of(root: &Path, arguments: &[&str]) -> Self {
            let arguments = [&["dump", "--follow", "--json", "--interval-ms", "5"], arguments].concat();
            let mut child = command(&arguments, root).stdout(Stdio::piped()).spawn().expect("runs");
            let lines = BufReader::new(child.stdout.take().expect("a pipe"));
            Self { child, lines }
        }

        /// Waits for the next line.
        fn next(&mut self) -> u64 {
            let mut line = String::new();
            self.lines.read_line(&mut line).expect("reads");
            let line: Value =
                serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON line: {line:?}"));
            let id = line["entry_id"].as_u64().expect("an id");
            let expected: String = payload(id).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(line["hex"], expected);
            id
        }

        fn wait(mut self) -> Option<i32> {
            self.child.wait().expect("ends").code()
        }
    }

    #[test]
    fn a_live_log_is_followed_through_rotation_truncation_and_a_new_writer() {
        let scratch = scratch();
        let root = scratch.path();
        let mut wal = open(root).expect("opens");
        append(&mut wal, 1);
        wal.attest().expect("attests");
        let mut follower = Follower::of(root, &[]);
        assert_eq!(follower.next(), 1);
        for round in 0..8u64 {
            append(&mut wal, 3);
            if round % 3 == 2 {
                drop(wal);
                wal = open(root).expect("opens");
                append(&mut wal, 1);
            }
            wal.attest().expect("attests");
            let first = wal.last_entry_id() - if round % 3 == 2 { 3 } else { 2 };
            for entry_id in first..=wal.last_entry_id() {
                assert_eq!(follower.next(), entry_id);
            }
            // What was seen may go.
            WalMaintenance::new(directory(root)).truncate_prefix(wal.last_entry_id() - 1).expect("truncates");
        }
        interrupt(&follower);
        assert_eq!(follower.wait(), Some(0), "an interrupt is a clean end");
    }

    fn interrupt(follower: &Follower) {
        let killed = Command::new("kill").args(["-INT", &follower.child.id().to_string()]).status();
        assert!(killed.expect("runs").success());
    }

    #[test]
    fn following_ends_at_its_last_entry_and_when_nobody_reads() {
        let scratch = scratch();
        let root = scratch.path();
        let mut wal = open(root).expect("opens");
        append(&mut wal, 5);
        let mut follower = Follower::of(root, &["--from", "2", "--to", "4"]);
        assert_eq!([follower.next(), follower.next(), follower.next()], [2, 3, 4]);
        assert_eq!(follower.wait(), Some(0));

        let mut follower = Follower::of(root, &[]);
        assert_eq!(follower.next(), 1);
        // The pipe breaks while nothing is written.
        let Follower { child, lines } = &mut follower;
        let pipe = std::mem::replace(lines, BufReader::new(other_pipe()));
        drop(pipe);
        assert_eq!(child.wait().expect("ends").code(), Some(0));
    }

    /// A pipe that nobody writes to.
    fn other_pipe() -> ChildStdout {
        let mut child = Command::new("true").stdout(Stdio::piped()).spawn().expect("runs");
        let pipe = child.stdout.take().expect("a pipe");
        child.wait().expect("ends");
        pipe
    }

    #[test]
    fn damage_ends_following_with_its_code() {
        let scratch = scratch();
        let root = killed(scratch.path());
        change(segment(&root, 3), |bytes| bytes[1200] ^= 1);
        let mut follower = Follower::of(&root, &[]);
        assert_eq!([follower.next(), follower.next(), follower.next(), follower.next()], [1, 2, 3, 4]);
        assert_eq!(follower.wait(), Some(4));
    }
}
