//! The commands that look inside, as their users run them.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

mod repair;

use durability::FsDirectory;
use durability::checkpoint::{CheckpointFile, CheckpointWriter};
use durability::error::PersistenceResult;
use durability::formats::header::{FileKind, Header, HeaderState, decode};
use durability::inspect::Verdict;
use durability::publish::CheckpointPublisher;
use durability::recordlog::RecordLogWriter;
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

type Wal = WalWriter<(), FsDirectory>;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn command(arguments: &[&str], path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_durability"));
    command.arg(arguments[0]).arg(path).args(&arguments[1..]);
    command
}

fn run(arguments: &[&str], path: &Path) -> Output {
    command(arguments, path).output().expect("runs")
}

fn code(arguments: &[&str], path: &Path) -> i32 {
    run(arguments, path).status.code().expect("it ended by itself")
}

fn json(arguments: &[&str], path: &Path) -> Value {
    let output = run(&[arguments, &["--json"]].concat(), path);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), 1, "one object: {text} {}", String::from_utf8_lossy(&output.stderr));
    let object: Value = serde_json::from_str(&text).expect("one object");
    assert_eq!(object["exit_code"].as_i64(), output.status.code().map(i64::from), "{object}");
    for key in object.as_object().expect("an object").keys() {
        let told = text.matches(&format!("\"{key}\":")).count();
        assert!(told <= nested(&object, key) + 1, "{key} is told twice: {text}");
    }
    object
}

/// How often a key is told below the top.
fn nested(value: &Value, key: &str) -> usize {
    let below = |value: &Value| usize::from(value.get(key).is_some()) + nested(value, key);
    match value {
        Value::Object(object) => object.values().map(below).sum(),
        Value::Array(array) => array.iter().map(below).sum(),
        _ => 0,
    }
}

fn payload(entry_id: u64) -> Vec<u8> {
    vec![entry_id as u8; 700]
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes_max: 3600,
        preallocate_bytes: 0,
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(5)),
        ..WalOptions::default()
    }
}

fn directory(root: &Path) -> Arc<FsDirectory> {
    Arc::new(FsDirectory::existing(root).expect("opens"))
}

fn open(root: &Path) -> PersistenceResult<Wal> {
    Wal::open_with(directory(root), options())
}

fn append(wal: &mut Wal, entries: u64) {
    for _ in 0..entries {
        let bytes = payload(wal.next_entry_id());
        wal.append_bytes_durable(&bytes).expect("commits");
    }
}

/// Five segments of two entries, as a killed writer leaves them.
fn killed(root: &Path) -> PathBuf {
    let live = root.join("live");
    fs::create_dir(&live).expect("creates");
    let mut wal = open(&live).expect("opens");
    append(&mut wal, 10);
    let copy = copy(&live, &root.join("log"));
    drop(wal);
    copy
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a kind").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::create_dir_all(to).expect("creates");
            fs::copy(entry.path(), target).expect("copies");
        }
    }
    to.to_owned()
}

fn change(path: PathBuf, damage: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&path).expect("reads");
    damage(&mut bytes);
    fs::write(path, bytes).expect("writes");
}

fn segment(root: &Path, id: u64) -> PathBuf {
    root.join(format!("wal/wal_{id}.log"))
}

/// Every file below a folder, with its bytes.
fn tree(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.push((path.clone(), Vec::new()));
            files.extend(tree(&path));
        } else {
            files.push((path.clone(), fs::read(&path).expect("reads")));
        }
    }
    files.sort();
    files
}

/// What is done to the log of [`killed`], the exit code of `verify`, and whether opening, which does not read what
/// later segments attest, refuses it too.
type Row = (&'static str, fn(&Path), i32, bool);

const ROWS: &[Row] = &[
    ("nothing", |_| {}, 0, false),
    ("closed", |root| open(root).and_then(Wal::close).expect("closes"), 0, false),
    ("the last commit cut", |root| change(segment(root, 5), |bytes| bytes.truncate(2800)), 3, false),
    (
        "the last commit lost a sector",
        |root| change(segment(root, 5), |bytes| bytes[2560..3072].fill(0)),
        3,
        false,
    ),
    ("an unacknowledged commit before the last lost", later_commits, 3, false),
    ("a tail of a recycled file", undecidable, 3, false),
    ("a flipped bit in the last commit", |root| change(segment(root, 5), |bytes| bytes[2700] ^= 8), 4, true),
    (
        "a flipped bit in the first segment",
        |root| change(segment(root, 1), |bytes| bytes[1200] ^= 8),
        4,
        false,
    ),
    (
        "a sector of the third segment lost",
        |root| change(segment(root, 3), |bytes| bytes[1024..1536].fill(0)),
        4,
        false,
    ),
    ("a middle segment missing", |root| fs::remove_file(segment(root, 3)).expect("removes"), 4, false),
    ("the newest missing", |root| fs::remove_file(segment(root, 5)).expect("removes"), 4, true),
    ("one copied", |root| copy_file(&segment(root, 2), &segment(root, 9)), 4, true),
    ("one of another log", stranger, 4, true),
    ("two swapped", swapped, 4, true),
    ("a damaged header", |root| change(segment(root, 5), |bytes| bytes[30] ^= 1), 4, true),
    ("garbage in the place of one", |root| change(segment(root, 2), |bytes| bytes.fill(0x55)), 4, true),
    ("one emptied", |root| change(segment(root, 4), Vec::clear), 4, false),
    (
        "a name that no release writes",
        |root| copy_file(&segment(root, 2), &root.join("wal/wal_02.log")),
        4,
        true,
    ),
];

fn copy_file(from: &Path, to: &Path) {
    fs::copy(from, to).expect("copies");
}

/// Two commits that were in flight; of the first a page did not arrive.
fn later_commits(root: &Path) {
    let other = root.join("again");
    copy(&root.join("wal"), &other.join("wal"));
    let mut wal = open(&other).expect("opens");
    wal.set_segment_size_limit_bytes(1 << 20);
    append(&mut wal, 1);
    for _ in 0..2 {
        wal.append_bytes(&payload(1)).expect("appends");
        wal.flush().expect("flushes");
    }
    let id = wal.current_segment_id();
    fs::copy(segment(&other, id), segment(root, id)).expect("copies");
    drop(wal);
    fs::remove_dir_all(other).expect("removes");
    change(segment(root, id), |bytes| bytes[2048 + 512..2048 + 1024].fill(0));
}

/// What cannot be told apart: no release writes this header.
fn undecidable(root: &Path) {
    change(segment(root, 5), |bytes| {
        let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..512]) else { panic!("no header") };
        bytes[..512].copy_from_slice(&Header { previous_salt: 1, ..header }.encode());
        bytes[2700] ^= 8;
    });
}

fn stranger(root: &Path) {
    change(segment(root, 2), |bytes| {
        let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..512]) else { panic!("no header") };
        let other = Header { identity: header.identity ^ 1, file_id: 6, ..header }.encode();
        let mut copy = bytes.clone();
        copy[..512].copy_from_slice(&other);
        fs::write(segment(root, 6), copy).expect("writes");
    });
}

fn swapped(root: &Path) {
    let (two, three) =
        (fs::read(segment(root, 2)).expect("reads"), fs::read(segment(root, 3)).expect("reads"));
    fs::write(segment(root, 2), three).expect("writes");
    fs::write(segment(root, 3), two).expect("writes");
}

fn replayed(root: &Path, mode: WalReplayMode) -> (Verdict, Option<u64>) {
    let reader = WalReader::<(), FsDirectory>::new(directory(root));
    let summary = reader.replay_bytes_from(1, mode, |_, _| Ok(()));
    let last = summary.as_ref().ok().map(|summary| summary.end.last_entry_id);
    (Verdict::of(summary.map(|summary| summary.end.torn)).expect("a verdict"), last)
}

#[test]
fn verify_replay_in_both_modes_and_opening_say_the_same() {
    let scratch = scratch();
    let good = killed(scratch.path());
    let mut codes = BTreeSet::new();
    for (index, (what, damage, expected, refused)) in ROWS.iter().enumerate() {
        let root = copy(&good, &scratch.path().join(index.to_string()));
        damage(&root);
        let before = tree(&root);
        let told = json(&["verify", "--threads", "3"], &root);
        codes.insert(*expected);
        assert_eq!(told["exit_code"], *expected, "{what}: {told}");
        // Replay.
        let (strict, _) = replayed(&root, WalReplayMode::Strict);
        let (best_effort, last) = replayed(&root, WalReplayMode::BestEffortTail);
        assert_eq!(told["text"], strict.to_string(), "{what}: strict replay");
        assert_eq!(told["text"], best_effort.to_string(), "{what}: best-effort replay");
        assert_eq!(told["verdict"], strict.name(), "{what}");
        assert_eq!(told["last_entry_id"].as_u64(), last, "{what}");
        // Other ways to look.
        for other in [&["verify", "--threads", "1"][..], &["inspect"], &["repair"]] {
            let also = json(other, &root);
            assert_eq!((&also["text"], &also["exit_code"]), (&told["text"], &told["exit_code"]), "{what}");
        }
        assert_eq!(code(&["dump"], &root), *expected, "{what}");
        assert_eq!(code(&["verify"], &root.join("wal")), *expected, "{what}: the folder itself");
        assert_eq!(tree(&root), before, "{what}: looking changes nothing");
        // Opening.
        match open(&root) {
            Ok(wal) => {
                assert!(!refused, "{what}: opened, with {told}");
                assert!(last.is_none_or(|last| last == wal.last_entry_id()), "{what}");
            }
            Err(error) => {
                assert!(*refused, "{what}: {error}");
                let opened = Verdict::of(Err(error)).expect("a verdict");
                assert_eq!(told["verdict"], opened.name(), "{what}: {opened}");
            }
        }
    }
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), [0, 3, 4]);
}

#[test]
fn what_is_no_log_is_said_and_nothing_is_made() {
    let scratch = scratch();
    let root = scratch.path();
    fs::create_dir(root.join("empty")).expect("creates");
    fs::write(root.join("nothing"), b"").expect("writes");
    fs::write(root.join("zeros"), [0; 2000]).expect("writes");
    fs::write(root.join("text"), b"not ours").expect("writes");
    let before = tree(root);
    for command in ["verify", "inspect", "dump", "repair"] {
        for (name, expected, says) in [
            ("empty", 2, "holds no log"),
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
    assert_eq!(tree(root), before);
    // A file that cannot be read is no verdict about a log.
    let log = killed(root);
    fs::create_dir(segment(&log, 9)).expect("creates");
    for command in ["verify", "inspect", "dump", "repair"] {
        assert_eq!(code(&[command], &log), 1, "{command}");
    }
}

#[test]
fn files_are_looked_at_by_themselves() {
    let scratch = scratch();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v1");
    for (name, kind) in [
        ("wal_rotated/wal/wal_1.log", "segment"),
        ("record_log_reopened/records.log", "record_log"),
        ("checkpoint/state.ckp", "checkpoint"),
    ] {
        let file = scratch.path().join("file");
        fs::copy(fixtures.join(name), &file).expect("copies");
        let told = json(&["verify"], &file);
        assert_eq!((told["kind"].as_str(), &told["verdict"]), (Some(kind), &Value::from("clean")), "{told}");
        let hex = run(&["inspect", "--hex"], &file);
        let text = String::from_utf8(hex.stdout).expect("text");
        assert!(
            text.contains("000010") && text.contains("identity") && text.contains("first_entry_id"),
            "{text}"
        );
        assert!(text.ends_with("clean\n"), "{text}");
        change(file.clone(), |bytes| bytes[1100] ^= 1);
        let told = json(&["inspect"], &file);
        assert_eq!(
            (told["verdict"].as_str(), told["exit_code"].as_u64()),
            (Some("corrupt"), Some(4)),
            "{name}"
        );
        assert_eq!((told["kind"].as_str(), told["path"].as_str()), (Some(kind), Some("file")), "{told}");
        let text = String::from_utf8(run(&["inspect", "--hex"], &file).stdout).expect("text");
        assert!(text.contains("no good frame at 0x"), "{name}: {text}");
        assert_eq!(code(&["dump"], &file), 4);
    }
}

#[test]
fn inspect_has_the_documented_keys() {
    let scratch = scratch();
    let root = killed(scratch.path());
    // Every kind of file: prepared, spare, left behind.
    let header = fs::read(segment(&root, 5)).expect("reads");
    let HeaderState::Good(stated) = decode(FileKind::Segment, &header[..512]) else { panic!("no header") };
    let next = Header { file_id: 6, salt: 77, ..stated }.encode();
    fs::write(segment(&root, 6), [&next[..], &[0; 512]].concat()).expect("writes");
    fs::write(root.join("wal/spare_1.log"), [0; 1024]).expect("writes");
    let told = json(&["inspect"], &root);
    for key in [
        "path",
        "kind",
        "verdict",
        "text",
        "exit_code",
        "first_entry_id",
        "last_entry_id",
        "attested_entry_id",
        "closed",
        "unproven",
        "dropped",
        "files",
        "checkpoints",
    ] {
        assert!(told.get(key).is_some(), "{key}: {told}");
    }
    let files = told["files"].as_array().expect("files");
    let roles: Vec<_> = files.iter().map(|file| file["role"].as_str().expect("a role")).collect();
    assert_eq!(roles, ["segment", "segment", "segment", "segment", "segment", "unstarted", "spare"]);
    let first = &files[0];
    assert_eq!(first["path"], "wal/wal_1.log");
    assert_eq!(first["header"]["identity"].as_str().map(str::len), Some(32), "{first}");
    assert_eq!(first["header"]["salt"].as_str().map(str::len), Some(16), "{first}");
    let contents = &first["contents"];
    assert_eq!((&contents["first_entry_id"], &contents["last_entry_id"]), (&Value::from(1), &Value::from(2)));
    assert_eq!(contents["seal"]["reason"], "Rotation");
    assert_eq!((&contents["used_bytes"], &contents["rest_bytes"]), (&Value::from(3584), &Value::from(0)));
    assert_eq!(files[1]["opening"]["predecessor_id"], 1);
    assert_eq!((&told["last_entry_id"], &told["attested_entry_id"]), (&Value::from(10), &Value::from(9)));
    let table = String::from_utf8(run(&["inspect"], &root).stdout).expect("text");
    for word in ["wal_1.log", "rotated", "unstarted", "spare", "attested to be durable through 9"] {
        assert!(table.contains(word), "{word}: {table}");
    }
}

/// Publishes a checkpoint of entries through `last` at `name`, in a log that is then closed.
fn publish(root: &Path, names: &[&str]) {
    let mut wal = open(root).expect("opens");
    for name in names {
        append(&mut wal, 3);
        let publisher = CheckpointPublisher::new(directory(root)).keep(2);
        let write = |writer: &mut CheckpointWriter<'_, FsDirectory>| writer.write_state(&[7; 3000]);
        let last = wal.last_entry_id();
        publisher.publish_with(&mut wal, last, name, write, |path| Ok(path.into())).expect("publishes");
    }
    wal.close().expect("closes");
}

#[test]
fn checkpoints_beside_a_log_are_verified_and_held_against_it() {
    let scratch = scratch();
    let root = scratch.path().join("log");
    fs::create_dir(&root).expect("creates");
    publish(&root, &["state", "state"]);
    // What is no checkpoint is none of it, whatever it is; nor is one of no log.
    fs::write(root.join("notes.txt"), "notes").expect("writes");
    fs::write(root.join(".tmp-1-1-state"), &fs::read(root.join("state")).expect("reads")[..600])
        .expect("writes");
    fs::create_dir(root.join("folder")).expect("creates");
    let alone = CheckpointFile::new(directory(&root));
    alone.write_bytes("alone", 1_000_000, b"of no log").expect("writes");
    let sound = copy(&root, &scratch.path().join("sound"));
    let told = json(&["verify"], &root);
    assert_eq!((&told["verdict"], &told["exit_code"]), (&Value::from("clean"), &Value::from(0)), "{told}");
    let found = |told: &Value| -> Vec<(String, String, u64, bool)> {
        let each = told["checkpoints"].as_array().expect("checkpoints").iter().map(|each| {
            let text = |key: &str| each[key].as_str().expect(key).to_owned();
            let last = each["last_applied_entry_id"].as_u64().expect("an id");
            (text("path"), text("verdict"), last, each["usable"].as_bool().expect("a word"))
        });
        each.collect()
    };
    let of = |path: &str, verdict: &str, last: u64, usable: bool| (path.into(), verdict.into(), last, usable);
    let all = [
        of("alone", "clean", 1_000_000, true),
        of("state", "clean", 7, true),
        of("state.1", "clean", 3, true),
    ];
    assert_eq!(found(&told), all);
    assert_eq!(found(&json(&["inspect"], &root)), all);
    let text = String::from_utf8(run(&["inspect"], &root).stdout).expect("text");
    assert!(text.contains("checkpoint state.1: entries through 3, the log must reach 3"), "{text}");

    // Any of them damaged: corruption, whichever it is; the log is still told of.
    for (name, at) in [("state", 700), ("state.1", 700), ("state", 40), ("alone", 600)] {
        let root = copy(&sound, &scratch.path().join(format!("{name}-{at}")));
        change(root.join(name), |bytes| bytes[at] ^= 1);
        for command in ["verify", "inspect"] {
            let told = json(&[command], &root);
            assert_eq!(
                (&told["verdict"], &told["exit_code"]),
                (&Value::from("corrupt"), &Value::from(4)),
                "{told}"
            );
            assert_eq!(
                (told["finding"]["path"].as_str(), told["last_entry_id"].as_u64()),
                (Some(name), Some(8))
            );
            let usable: Vec<_> = found(&told).into_iter().filter(|each| each.3).map(|each| each.0).collect();
            assert!(usable.len() == 2 && !usable.contains(&name.to_owned()), "{usable:?}");
        }
        assert_eq!(code(&["verify"], &root), 4);
    }
    // Its header is gone: by its name it is one all the same.
    let root = copy(&sound, &scratch.path().join("zeroed"));
    change(root.join("state"), |bytes| bytes[..512].fill(0));
    let told = json(&["verify"], &root);
    assert_eq!((told["verdict"].as_str(), told["exit_code"].as_u64()), (Some("foreign"), Some(4)), "{told}");
    // A missing one is not missed.
    let root = copy(&sound, &scratch.path().join("missing"));
    ["state", "state.1"].iter().for_each(|name| fs::remove_file(root.join(name)).expect("removes"));
    assert_eq!(json(&["verify"], &root)["exit_code"], 0);
    // Of another log.
    let other = scratch.path().join("other");
    fs::create_dir(&other).expect("creates");
    let options = WalOptions { environment: Arc::new(SeededEnvironment::new(6)), ..options() };
    let mut wal = Wal::open_with(directory(&other), options).expect("opens");
    append(&mut wal, 20);
    drop(wal);
    copy_file(&sound.join("state"), &other.join("state"));
    let told = json(&["verify"], &other);
    assert_eq!(
        (told["exit_code"].as_u64(), told["finding"]["path"].as_str()),
        (Some(4), Some("state")),
        "{told}"
    );
    assert!(told["text"].as_str().is_some_and(|text| text.contains("belongs to log")), "{told}");
    let identities = &told["finding"]["check"]["Identity"];
    assert_eq!(identities["found"], told["checkpoints"][0]["identity"], "text, as all identities: {told}");
    // The log lost what one requires: what recovery with it says.
    let root = copy(&sound, &scratch.path().join("shorter"));
    let newest = json(&["inspect"], &root)["files"].as_array().map_or(0, Vec::len);
    let mut lost = Vec::new();
    for id in (1..=newest as u64 + 5).rev().filter(|id| segment(&root, *id).exists()).take(2) {
        lost.push(id);
        fs::remove_file(segment(&root, id)).expect("removes");
    }
    assert_eq!(lost.len(), 2);
    for command in ["verify", "inspect"] {
        assert_eq!(code(&[command], &root), 4, "{command}");
    }
    // The log begins behind it.
    let root = copy(&sound, &scratch.path().join("behind"));
    let mut wal = open(&root).expect("opens");
    append(&mut wal, 20);
    WalMaintenance::new(directory(&root)).truncate_prefix(20).expect("truncates");
    wal.close().expect("closes");
    let told = json(&["verify"], &root);
    assert_eq!(told["exit_code"], 0);
    assert_eq!(found(&told)[1..], [of("state", "clean", 7, false), of("state.1", "clean", 3, false)]);
}

/// A log that ends cleanly before what a checkpoint requires: only the checkpoint tells.
#[test]
fn a_log_that_lost_its_newest_segment_is_found_out_by_its_checkpoint() {
    let scratch = scratch();
    let root = scratch.path().join("log");
    fs::create_dir(&root).expect("creates");
    publish(&root, &["state"]);
    let first = copy(&root, &scratch.path().join("first"));
    publish(&root, &["state"]);
    copy_file(&root.join("state"), &first.join("state"));
    let told = json(&["verify"], &first);
    assert_eq!((told["verdict"].as_str(), told["exit_code"].as_u64()), (Some("corrupt"), Some(4)), "{told}");
    assert!(told["text"].as_str().is_some_and(|text| text.contains("state")), "{told}");
    fs::remove_file(first.join("state")).expect("removes");
    fs::remove_file(first.join("state.1")).unwrap_or(());
    assert_eq!(json(&["verify"], &first)["verdict"], "clean");
}

#[test]
fn dump_writes_what_was_appended_in_every_way() {
    let scratch = scratch();
    let root = scratch.path().join("log");
    fs::create_dir(&root).expect("creates");
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
    let hex = String::from_utf8(run(&["dump", "--from", "4"], &root).stdout).expect("text");
    assert!(hex.starts_with("entry 4, 4 bytes\n000000  66 6f 75 72") && hex.ends_with("|four|\n"), "{hex}");
    assert_eq!(code(&["dump", "--from", "3", "--to", "2"], &root), 2);
    // What was asked for is whole, whatever is behind it.
    change(segment(&root, 1), |bytes| *bytes.last_mut().expect("a byte") ^= 1);
    assert_eq!((code(&["dump", "--to", "4"], &root), code(&["dump"], &root)), (0, 4));
}

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
    let before: Vec<_> = tree(&root).into_iter().filter(|(path, _)| !path.ends_with(".lock")).collect();
    let plan = json(&["repair"], &root);
    assert_eq!((plan["loss"].as_str(), plan["exit_code"].as_u64()), (Some("5-10"), Some(4)), "{plan}");
    for arguments in [&["repair", "--apply"][..], &["repair", "--apply", "--accept-loss", "5-9"]] {
        let refused = json(arguments, &root);
        assert_eq!((refused["state"].as_str(), refused["exit_code"].as_u64()), (Some("refused"), Some(4)));
    }
    let now: Vec<_> = tree(&root).into_iter().filter(|(path, _)| !path.ends_with(".lock")).collect();
    assert_eq!(now, before, "refusing changes nothing");
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
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v1");
    fs::copy(fixtures.join("checkpoint/state.ckp"), &checkpoint).expect("copies");
    change(checkpoint.clone(), |bytes| bytes[1100] ^= 1);
    let told = json(&["repair"], &checkpoint);
    assert!(told["obstacle"].as_str().is_some_and(|text| text.contains("older")), "{told}");
    assert_eq!(code(&["repair"], &segment(&killed(root), 1)), 2);
}

#[cfg(unix)]
mod follow {
    use super::*;
    use durability::walog::WalMaintenance;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout};

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

/// Whoever pipes into `head` and the like is not told about it, and the verdict is the exit code all the same.
#[cfg(unix)]
#[test]
fn a_closed_output_is_no_error() {
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
