//! What the modules share: running the tool, logs of known contents, and what is done to their files.

use durability::FsDirectory;
use durability::checkpoint::CheckpointWriter;
use durability::error::PersistenceResult;
use durability::formats::header::{FileKind, Header, HeaderState, decode};
use durability::publish::CheckpointPublisher;
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::walog::{WalOptions, WalWriter};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

pub(crate) type Wal = WalWriter<(), FsDirectory>;

pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// A new folder.
pub(crate) fn folder(parent: &Path, name: &str) -> PathBuf {
    let folder = parent.join(name);
    fs::create_dir(&folder).expect("creates");
    folder
}

/// A golden file of the library.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/v1").join(name)
}

pub(crate) fn command(arguments: &[&str], path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_durability"));
    command.arg(arguments[0]).arg(path).args(&arguments[1..]);
    command
}

pub(crate) fn run(arguments: &[&str], path: &Path) -> Output {
    command(arguments, path).output().expect("runs")
}

pub(crate) fn code(arguments: &[&str], path: &Path) -> i32 {
    run(arguments, path).status.code().expect("it ended by itself")
}

/// What is printed for people, or line by line.
pub(crate) fn text(arguments: &[&str], path: &Path) -> String {
    String::from_utf8(run(arguments, path).stdout).expect("text")
}

/// The one object that is printed, which agrees with the exit code.
pub(crate) fn json(arguments: &[&str], path: &Path) -> Value {
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

pub(crate) fn payload(entry_id: u64) -> Vec<u8> {
    vec![entry_id as u8; 700]
}

pub(crate) fn options() -> WalOptions {
    WalOptions {
        segment_bytes_max: 3600,
        preallocate_bytes: 0,
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(5)),
        ..WalOptions::default()
    }
}

pub(crate) fn directory(root: &Path) -> Arc<FsDirectory> {
    Arc::new(FsDirectory::existing(root).expect("opens"))
}

pub(crate) fn open(root: &Path) -> PersistenceResult<Wal> {
    Wal::open_with(directory(root), options())
}

pub(crate) fn append(wal: &mut Wal, entries: u64) {
    for _ in 0..entries {
        let bytes = payload(wal.next_entry_id());
        wal.append_bytes_durable(&bytes).expect("commits");
    }
}

/// Five segments of two entries, as a killed writer leaves them.
pub(crate) fn killed(root: &Path) -> PathBuf {
    let live = folder(root, "live");
    let mut wal = open(&live).expect("opens");
    append(&mut wal, 10);
    let copy = copy(&live, &root.join("log"));
    drop(wal);
    copy
}

/// Publishes a checkpoint of the entries through `last_entry_id` at `name`, beside the last one there.
pub(crate) fn publish(wal: &mut Wal, root: &Path, last_entry_id: u64, name: &str) {
    let write = |writer: &mut CheckpointWriter<'_, FsDirectory>| writer.write_state(&[7; 3000]);
    let publisher = CheckpointPublisher::new(directory(root)).keep(2);
    publisher.publish_with(wal, last_entry_id, name, write, |path| Ok(path.into())).expect("publishes");
}

pub(crate) fn copy(from: &Path, to: &Path) -> PathBuf {
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

pub(crate) fn copy_file(from: &Path, to: &Path) {
    fs::copy(from, to).expect("copies");
}

pub(crate) fn change(path: PathBuf, damage: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&path).expect("reads");
    damage(&mut bytes);
    fs::write(path, bytes).expect("writes");
}

pub(crate) fn segment(root: &Path, id: u64) -> PathBuf {
    root.join(format!("wal/wal_{id}.log"))
}

/// The segments, by their ids.
pub(crate) fn segments(root: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(root.join("wal")).expect("lists").map(|entry| entry.expect("an entry").path());
    let id = |path: &PathBuf| path.file_stem()?.to_str()?.strip_prefix("wal_")?.parse::<u64>().ok();
    let mut segments: Vec<_> = paths.filter_map(|path| Some((id(&path)?, path))).collect();
    segments.sort();
    segments.into_iter().map(|(_, path)| path).collect()
}

pub(crate) fn header(bytes: &[u8]) -> Header {
    let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..512]) else { panic!("no header") };
    header
}

/// Every file below a folder, with its bytes.
pub(crate) fn tree(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
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

/// As [`tree`], but for locks, which a refused repair takes.
pub(crate) fn unlocked(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    tree(root).into_iter().filter(|(path, _)| !path.ends_with(".lock")).collect()
}
