//! The independent decoder (`tests/decoder.py`) and the library, over the fixtures and over random logs.

use crate::fixtures::{Files, committed, in_memory};
use crate::support::skip;
use durability::checkpoint::{CheckpointFile, CheckpointMeta};
use durability::formats::frame::{Entries, FrameKind};
use durability::formats::header::{FileKind, HeaderState};
use durability::framing::{FrameReader, read_header};
use durability::recordlog::{RecordLogOptions, RecordLogWriter};
use durability::storage::{Environment, FlushPolicy, SeededEnvironment};
use durability::walog::{WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, MemoryDirectory};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Runs the decoder over files of the operating system; `None`, loudly, where there is no Python.
fn decode(paths: &[String]) -> Option<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decoder.py");
    let output = match Command::new("python3").arg(script).args(paths).output() {
        Ok(output) => output,
        Err(error) => {
            skip(&format!("the independent decoder needs python3: {error}"));
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// What the decoder says of frames and entries, as text that is easy to compare.
fn stated(file: &Value) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    for (index, frame) in file["frames"].as_array()?.iter().enumerate() {
        // The library's scan passes over the opening behind a torn place without handing it out.
        if index > 0 && frame["kind"] == "opening" {
            continue;
        }
        let number = |name: &str| frame[name].as_u64().expect("a number");
        lines.push(format!(
            "{} {} {}+{} durable {}",
            number("offset"),
            frame["kind"].as_str().expect("a kind"),
            number("first_entry_id"),
            number("entries"),
            number("durable_entry_id"),
        ));
    }
    lines.extend(stated_entries(file));
    lines.push(format!("end {}", file["end"]));
    Some(lines)
}

fn stated_entries(report: &Value) -> Vec<String> {
    let entries = report["entries"].as_array().expect("entries").iter();
    entries
        .map(|entry| format!("{} = {}", entry["id"], entry["hex"].as_str().expect("hex").to_owned()))
        .collect()
}

fn entry_line(id: u64, payload: &[u8]) -> String {
    let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{id} = {hex}")
}

/// The same from the library; `None` for a file without a header.
fn read_here(directory: &MemoryDirectory, path: &str) -> Option<Vec<String>> {
    let mut start = [0; 8];
    directory.open_at(path).expect("opens").read_at(0, &mut start).expect("reads");
    let kind = FileKind::of(&start)?;
    let file = directory.open_at(path).expect("opens");
    let HeaderState::Good(header) = read_header(file.as_ref(), kind).expect("reads").state else {
        return None;
    };
    let mut reader = FrameReader::new(file, path, &header, None).expect("reads");
    let (mut frames, mut entries) = (Vec::new(), Vec::new());
    while let Some(frame) = reader.next_frame().expect("reads") {
        let kind = match frame.header.kind {
            FrameKind::Opening => "opening",
            FrameKind::Data => "data",
            FrameKind::Seal => "seal",
        };
        if frames.is_empty() || frame.header.kind != FrameKind::Opening {
            frames.push(format!(
                "{} {kind} {}+{} durable {}",
                frame.offset,
                frame.header.first_entry_id,
                frame.header.entry_count,
                frame.header.durable_entry_id
            ));
        }
        if frame.header.kind == FrameKind::Data {
            entries
                .extend(Entries::new(&frame.header, frame.payload).map(|(id, entry)| entry_line(id, entry)));
        }
    }
    frames.extend(entries);
    frames.push(format!("end {}", reader.into_end().offset));
    Some(frames)
}

/// Compares every file of every log, and what the whole logs hold.
fn agree_about(logs: &[(String, Files)]) {
    let root = tempfile::tempdir().expect("a folder");
    let on_disk = |name: &str, path: &str| root.path().join(name).join(path);
    let mut paths = Vec::new();
    for (name, files) in logs {
        for (path, bytes) in files {
            let to = on_disk(name, path);
            std::fs::create_dir_all(to.parent().expect("a parent")).expect("makes the folder");
            std::fs::write(&to, bytes).expect("writes");
            paths.push(to.to_string_lossy().into_owned());
        }
        if files.iter().any(|(path, _)| path.starts_with("wal/")) {
            paths.push(on_disk(name, "wal").to_string_lossy().into_owned());
        }
    }
    let Some(reports) = decode(&paths) else { return };
    let report = |name: &str, path: &str| &reports[on_disk(name, path).to_string_lossy().as_ref()];
    for (name, files) in logs {
        let directory = in_memory(files);
        for (path, _) in files {
            assert_eq!(stated(report(name, path)), read_here(&directory, path), "{name}/{path}");
        }
        if !directory.exists("wal") {
            continue;
        }
        let mut entries = Vec::new();
        let reader = WalReader::<(), MemoryDirectory>::new(directory);
        let visit = |id: u64, payload: &[u8]| {
            entries.push(entry_line(id, payload));
            Ok(())
        };
        reader.replay_bytes_from(1, WalReplayMode::BestEffortTail, visit).expect("replays");
        assert_eq!(stated_entries(report(name, "wal")), entries, "{name}");
    }
}

#[test]
fn both_decoders_agree_about_the_fixtures() {
    agree_about(&committed());
}

/// Random numbers, and what is made of them.
pub struct Random(SeededEnvironment);

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(SeededEnvironment::new(seed))
    }

    /// Any number.
    pub fn any(&self) -> u64 {
        self.0.random()
    }

    /// A number below `bound`.
    pub fn below(&self, bound: usize) -> usize {
        (self.0.random() % bound as u64) as usize
    }

    fn bytes(&self, bound: usize) -> Vec<u8> {
        let zeros = self.below(4) == 0;
        (0..self.below(bound)).map(|_| if zeros { 0 } else { self.0.random() as u8 }).collect()
    }
}

/// Every file in memory but locks, by number.
pub fn files_of(directory: &MemoryDirectory) -> Files {
    let below_wal =
        directory.list_dir("wal").unwrap_or_default().into_iter().map(|name| format!("wal/{name}"));
    let files =
        directory.list_dir("").expect("lists").into_iter().filter(|name| name != "wal").chain(below_wal);
    let mut files: Files = files
        .filter(|path| !path.ends_with(".lock"))
        .map(|path| {
            let mut bytes = Vec::new();
            directory.open_file(&path).expect("opens").read_to_end(&mut bytes).expect("reads");
            (path, bytes)
        })
        .collect();
    // By number, not by name.
    files.sort_by_key(|(path, _)| (path.len(), path.clone()));
    files
}

/// Cuts the newest file within its last kilobyte, so that it may end in a torn tail.
fn cut(random: &Random, files: &mut Files) {
    let Some((_, bytes)) = files.last_mut() else { return };
    let keep = bytes.len().saturating_sub(random.below(1024)).max(1536);
    bytes.truncate(keep);
}

fn random_log(seed: u64) -> Files {
    let random = Random::new(seed);
    let alignment = 512 << random.below(4);
    let mut files = Files::new();
    for _ in 0..=random.below(3) {
        let directory = in_memory(&files);
        let options = WalOptions {
            preallocate_bytes: [0, 16 << 10][random.below(2)],
            segment_bytes_max: 4096 << random.below(4),
            frame_alignment: alignment,
            flush_policy: FlushPolicy::EveryN(1 + random.below(4)),
            environment: Arc::new(SeededEnvironment::new(random.any())),
            ..WalOptions::default()
        };
        let mut wal =
            WalWriter::<(), MemoryDirectory>::open_with(Arc::clone(&directory), options).expect("opens");
        for _ in 0..1 + random.below(20) {
            let entries: Vec<_> = (0..1 + random.below(4)).map(|_| random.bytes(2000)).collect();
            wal.append_batch_bytes(&entries).expect("appends");
        }
        wal.flush().expect("flushes");
        if random.below(2) == 0 {
            wal.close().expect("closes");
            files = files_of(&directory);
        } else {
            files = files_of(&directory);
            cut(&random, &mut files);
        }
    }
    files
}

fn random_record_log(seed: u64) -> Files {
    let random = Random::new(seed);
    let mut files = Files::new();
    for _ in 0..1 + random.below(4) {
        let directory = in_memory(&files);
        let options = RecordLogOptions {
            flush_policy: FlushPolicy::EveryN(1 + random.below(4)),
            environment: Arc::new(SeededEnvironment::new(random.any())),
            ..RecordLogOptions::default()
        };
        let mut log =
            RecordLogWriter::<MemoryDirectory>::with_options(Arc::clone(&directory), "records.log", options);
        for _ in 0..1 + random.below(10) {
            log.append_bytes(&random.bytes(2000)).expect("appends");
        }
        log.close().expect("closes");
        files = files_of(&directory);
        if random.below(2) == 0 {
            cut(&random, &mut files);
        }
    }
    files
}

fn random_checkpoint(seed: u64) -> Files {
    let random = Random::new(seed);
    let directory = MemoryDirectory::arc();
    let meta = CheckpointMeta { last_applied_entry_id: random.any() >> 1, required_entry_id: 3, identity: 4 };
    let files = CheckpointFile::<MemoryDirectory>::new(Arc::clone(&directory));
    let mut writer = files.writer("state", meta).expect("begins");
    writer.write_state(&random.bytes(300 << 10)).expect("writes");
    writer.finish().expect("finishes");
    files_of(&directory)
}

#[test]
fn both_decoders_agree_about_random_logs() {
    let mut logs = Vec::new();
    for seed in 1..=20 {
        logs.push((format!("wal-{seed}"), random_log(seed)));
        logs.push((format!("records-{seed}"), random_record_log(seed)));
    }
    logs.extend((1..=3).map(|seed| (format!("checkpoint-{seed}"), random_checkpoint(seed))));
    agree_about(&logs);
}
