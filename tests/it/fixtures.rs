//! Golden files: bytes that every later release of this format version must read, and must still write.
//!
//! `tests/fixtures/v1/` holds a directory for each fixture and, beside each file, its annotated bytes. The
//! first test builds every fixture again and compares; `DURABILITY_WRITE_FIXTURES=1` writes files that are
//! missing and never touches one that is there. The second reads what is committed.
//!
//! Most are built over a file system, so that they carry the watermarks of a durable log; its bytes do not
//! depend on the backend.

use durability::checkpoint::{CheckpointFile, CheckpointMeta};
use durability::formats::dump::{annotate, hex};
use durability::formats::frame::{FrameHeaderState, FrameSeed, decode_header};
use durability::formats::header::{FileKind, HeaderState, decode};
use durability::formats::layout::{
    FRAME, FRAME_HEADER_BYTES, HEADER, HEADER_BYTES, MAGIC_FRAME, OPENING, SEAL,
};
use durability::limits::CHECKPOINT_CHUNK_BYTES;
use durability::recordlog::{RecordLogOptions, RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::walog::{WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, FsDirectory, MemoryDirectory, PersistenceError};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of a fixture: path under its root, and bytes.
pub type Files = Vec<(String, Vec<u8>)>;

/// Where the committed fixtures are.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

/// Every committed fixture: its name and its files.
pub fn committed() -> Vec<(String, Files)> {
    let mut fixtures: Vec<_> = std::fs::read_dir(root())
        .expect("lists the fixtures")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (file_name(&path), files_below(&path)))
        .collect();
    fixtures.sort();
    assert!(!fixtures.is_empty());
    fixtures
}

/// A fixture's files in memory.
pub fn in_memory(files: &Files) -> Arc<MemoryDirectory> {
    let directory = MemoryDirectory::arc();
    for (path, bytes) in files {
        if let Some((parent, _)) = path.rsplit_once('/') {
            directory.create_dir_all(parent).expect("makes the folder");
        }
        directory.create_file(path).expect("creates").write_all(bytes).expect("writes");
    }
    directory
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// The files of format under a folder and under its `wal/`; no locks, no annotations.
fn files_below(folder: &Path) -> Files {
    let mut files = Files::new();
    for entry in std::fs::read_dir(folder).expect("lists").map(|entry| entry.expect("an entry").path()) {
        let name = file_name(&entry);
        if entry.is_dir() {
            files.extend(
                files_below(&entry).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)),
            );
        } else if !name.ends_with(".hex") && !name.ends_with(".lock") {
            files.push((name, std::fs::read(&entry).expect("reads")));
        }
    }
    files.sort();
    files
}

fn options(seed: u64) -> WalOptions {
    WalOptions {
        preallocate_bytes: 0,
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(seed)),
        ..WalOptions::default()
    }
}

fn record_options(seed: u64) -> RecordLogOptions {
    RecordLogOptions {
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(seed)),
        ..RecordLogOptions::default()
    }
}

/// A log while it is being built, over a file system.
struct Building {
    root: tempfile::TempDir,
    directory: Arc<FsDirectory>,
}

impl Building {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let directory = FsDirectory::arc(root.path()).expect("opens");
        Self { root, directory }
    }

    fn wal(&self, options: WalOptions) -> WalWriter<(), FsDirectory> {
        WalWriter::open_with(Arc::clone(&self.directory), options).expect("opens the log")
    }

    fn record_log(&self, seed: u64) -> RecordLogWriter<FsDirectory> {
        RecordLogWriter::with_options(Arc::clone(&self.directory), "records.log", record_options(seed))
    }

    /// What a killed writer leaves: the files as they stand now.
    fn files(&self) -> Files {
        files_below(self.root.path())
    }

    /// The same files in another folder.
    fn copy(files: &Files) -> Self {
        let copy = Self::new();
        for (path, bytes) in files {
            let path = copy.root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("makes the folder");
            std::fs::write(path, bytes).expect("writes");
        }
        copy
    }
}

/// Cuts the last file in the middle of its last frame.
fn torn(mut files: Files, bytes: usize) -> Files {
    let (_, last) = files.last_mut().expect("a file");
    last.truncate(last.len() - bytes);
    files
}

fn wal_rotated() -> Files {
    let build = Building::new();
    let mut wal = build.wal(WalOptions { segment_bytes_max: 4096, ..options(1) });
    for index in 1..=6u8 {
        wal.append_bytes_durable(&vec![index; 100 * usize::from(index)]).expect("appends");
    }
    wal.append_batch_bytes(&[b"".as_slice(), b"one of three", &[0; 600]]).expect("appends");
    wal.close().expect("closes");
    build.files()
}

fn wal_unsealed() -> Files {
    let build = Building::new();
    let mut wal = build.wal(WalOptions { preallocate_bytes: 4096, ..options(2) });
    wal.append_bytes_durable(b"durable").expect("appends");
    wal.append_bytes(b"flushed").expect("appends");
    wal.flush().expect("flushes");
    build.files()
}

fn wal_idle() -> Files {
    let build = Building::new();
    let mut wal = build.wal(options(3));
    wal.append_bytes(b"before the pause").expect("appends");
    wal.attest().expect("attests");
    wal.append_bytes(b"behind the pause").expect("appends");
    wal.attest().expect("attests");
    build.files()
}

fn wal_resumed() -> Files {
    let build = Building::new();
    let mut wal = build.wal(options(4));
    for index in 1..=3u8 {
        wal.append_bytes_durable(&[index; 1000]).expect("appends");
    }
    let build = Building::copy(&torn(build.files(), 512));
    let mut wal = build.wal(options(5));
    wal.append_bytes(b"in the place of what was torn").expect("appends");
    wal.close().expect("closes");
    build.files()
}

/// A crash between the preparation of the next segment and its first commit.
fn wal_prepared() -> Files {
    let mut files = wal_unsealed();
    let mut header = files[0].1[..HEADER_BYTES].to_vec();
    let HeaderState::Good(stated) = decode(FileKind::Segment, &header) else { panic!("no header") };
    let next = durability::formats::header::Header { file_id: 2, salt: stated.salt ^ 1, ..stated };
    header.copy_from_slice(&next.encode());
    header.resize(4096, 0);
    files.push(("wal/wal_2.log".to_owned(), header));
    files
}

fn record_log_closed() -> Files {
    let build = Building::new();
    let mut log = build.record_log(6);
    log.append_bytes(b"first").expect("appends");
    log.append_batch_bytes(&[b"".as_slice(), &[7; 700]]).expect("appends");
    log.flush_and_sync().expect("syncs");
    log.append_bytes(b"last").expect("appends");
    log.close().expect("closes");
    build.files()
}

fn record_log_reopened() -> Files {
    let build = Building::new();
    let mut log = build.record_log(7);
    log.append_bytes(b"kept").expect("appends");
    log.flush_and_sync().expect("syncs");
    log.append_bytes(&[9; 1000]).expect("appends");
    log.flush().expect("flushes");
    let build = Building::copy(&torn(build.files(), 600));
    let mut log = build.record_log(8);
    log.append_bytes(b"in the place of what was torn").expect("appends");
    log.close().expect("closes");
    build.files()
}

fn checkpoint() -> Files {
    let build = Building::new();
    let files = CheckpointFile::<FsDirectory>::new(Arc::clone(&build.directory))
        .with_environment(Arc::new(SeededEnvironment::new(9)));
    let meta = CheckpointMeta { last_applied_entry_id: 41, required_entry_id: 42, identity: 0xfeed };
    let mut writer = files.writer("state.ckp", meta).expect("begins");
    writer.write_state(&state()).expect("writes");
    writer.finish_durable().expect("finishes");
    build.files()
}

/// A whole chunk and a short one.
fn state() -> Vec<u8> {
    let mut state = vec![b'a'; CHECKPOINT_CHUNK_BYTES];
    state.extend_from_slice(b"the second chunk");
    state
}

type Builder = fn() -> Files;

const BUILDERS: &[(&str, Builder)] = &[
    ("checkpoint", checkpoint),
    ("record_log_closed", record_log_closed),
    ("record_log_reopened", record_log_reopened),
    ("wal_idle", wal_idle),
    ("wal_prepared", wal_prepared),
    ("wal_resumed", wal_resumed),
    ("wal_rotated", wal_rotated),
    ("wal_unsealed", wal_unsealed),
];

/// Every field of a file, by the layout tables.
fn annotated(bytes: &[u8]) -> String {
    let kind = FileKind::of(bytes).expect("a file of ours");
    let HeaderState::Good(header) = decode(kind, &bytes[..HEADER_BYTES]) else { panic!("no header") };
    let mut text = format!("# {}, {} bytes\n", kind.name(), bytes.len());
    text += &annotate(&bytes[..HEADER_BYTES], 0, HEADER);
    let seed = FrameSeed::new(header.salt);
    let mut at = header.first_frame_offset() as usize;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if !rest.starts_with(&MAGIC_FRAME) {
            let end =
                rest.chunks(512).take_while(|sector| !sector.starts_with(&MAGIC_FRAME)).map(<[u8]>::len);
            let end = end.sum::<usize>();
            let _ = writeln!(text, "\n# no frame\n{at:06x}  {}", hex(&rest[..end]));
            at += end;
            continue;
        }
        let FrameHeaderState::Good(frame) = decode_header(rest, at as u64, seed) else {
            panic!("frame at {at}")
        };
        let _ = writeln!(text, "\n# {:?}", frame.kind);
        text += &annotate(&rest[..FRAME_HEADER_BYTES], at as u64, FRAME);
        let payload_at = at + FRAME_HEADER_BYTES;
        let whole = at + frame.frame_bytes(header.frame_alignment) as usize;
        // A record log goes on inside of what a torn frame claims.
        let good = |place: usize| {
            matches!(decode_header(&bytes[place..], place as u64, seed), FrameHeaderState::Good(_))
        };
        let stop =
            (at + 512..whole.min(bytes.len())).step_by(512).find(|place| good(*place)).unwrap_or(whole);
        let end = (payload_at + frame.payload_bytes as usize).min(bytes.len()).min(stop);
        let payload = &bytes[payload_at..end];
        match frame.kind {
            durability::formats::frame::FrameKind::Opening => {
                text += &annotate(payload, payload_at as u64, OPENING)
            }
            durability::formats::frame::FrameKind::Seal => {
                text += &annotate(payload, payload_at as u64, SEAL)
            }
            durability::formats::frame::FrameKind::Data => annotate_entries(&mut text, payload_at, payload),
        }
        if whole > stop.min(bytes.len()) {
            let _ = writeln!(text, "# torn: the frame reaches to {whole:06x}");
        } else if whole > end {
            let _ = writeln!(text, "{end:06x}  {:<48}  padding", hex(&bytes[end..whole]));
        }
        at = stop;
    }
    text
}

fn annotate_entries(text: &mut String, mut at: usize, mut payload: &[u8]) {
    while payload.len() >= 4 {
        let length = u32::from_le_bytes([payload[0], payload[1], payload[2], payload[3]]) as usize;
        let _ = writeln!(text, "{at:06x}  {:<48}  entry length", hex(&payload[..4]));
        let entry = &payload[4..payload.len().min(4 + length)];
        for (row, bytes) in rows(entry) {
            let _ = writeln!(text, "{:06x}  {:<48}  entry", at + 4 + row, hex(bytes));
        }
        at += 4 + entry.len();
        payload = &payload[4 + entry.len()..];
    }
}

/// Sixteen bytes a row; a run of one value is a row of its own.
fn rows(entry: &[u8]) -> Vec<(usize, &[u8])> {
    if entry.iter().all(|byte| *byte == entry[0]) {
        return if entry.is_empty() { Vec::new() } else { vec![(0, entry)] };
    }
    entry.chunks(16).enumerate().map(|(row, bytes)| (row * 16, bytes)).collect()
}

#[test]
fn what_is_written_today_is_what_was_written_then() {
    let write = std::env::var_os("DURABILITY_WRITE_FIXTURES").is_some();
    for (name, build) in BUILDERS {
        let folder = root().join(name);
        let built = build();
        for (path, bytes) in &built {
            let notes = annotated(bytes);
            for (path, bytes) in [(path.clone(), &bytes[..]), (format!("{path}.hex"), notes.as_bytes())] {
                let file = folder.join(&path);
                if write && !file.exists() {
                    std::fs::create_dir_all(file.parent().expect("a parent")).expect("makes the folder");
                    std::fs::write(&file, bytes).expect("writes");
                }
                let golden = std::fs::read(&file).unwrap_or_else(|error| panic!("{name}/{path}: {error}"));
                let differs = golden.iter().zip(bytes).position(|(golden, now)| golden != now);
                assert!(
                    golden == bytes,
                    "{name}/{path}: bytes on disk changed, first at {differs:?} ({} bytes then, {} now); \
                     fixtures of a released version are never regenerated",
                    golden.len(),
                    bytes.len()
                );
            }
        }
        let names = |files: &Files| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&built), names(&files_below(&folder)), "{name}");
    }
}

fn fixture(name: &str) -> Arc<MemoryDirectory> {
    in_memory(&files_below(&root().join(name)))
}

/// Entries of a log and the last one's id.
fn replayed(
    name: &str,
    mode: WalReplayMode,
) -> Result<(Vec<Vec<u8>>, durability::walog::LogEnd), PersistenceError> {
    let mut entries = Vec::new();
    let visit = |id: u64, payload: &[u8]| {
        entries.push(payload.to_vec());
        assert_eq!(id, entries.len() as u64);
        Ok(())
    };
    let summary = WalReader::<(), MemoryDirectory>::new(fixture(name)).replay_bytes_from(1, mode, visit)?;
    Ok((entries, summary.end))
}

#[test]
fn committed_logs_read_as_they_were_written() {
    let (entries, end) = replayed("wal_rotated", WalReplayMode::Strict).expect("clean");
    let mut expected: Vec<_> = (1..=6u8).map(|index| vec![index; 100 * usize::from(index)]).collect();
    expected.extend([Vec::new(), b"one of three".to_vec(), vec![0; 600]]);
    assert_eq!(entries, expected);
    assert_eq!((end.attested_entry_id, end.closed, end.segments_read), (9, true, 2));

    let unsealed = [b"durable".to_vec(), b"flushed".to_vec()];
    for name in ["wal_unsealed", "wal_prepared"] {
        let (entries, end) = replayed(name, WalReplayMode::Strict).expect("clean");
        assert_eq!(entries, unsealed, "{name}");
        assert_eq!((end.attested_entry_id, end.closed, end.segments_read), (1, false, 1), "{name}");
        let mut wal = WalWriter::<(), MemoryDirectory>::open_with(fixture(name), options(20)).expect("opens");
        assert_eq!(wal.append_bytes(b"next").expect("appends"), 3, "{name}");
    }

    let (entries, end) = replayed("wal_idle", WalReplayMode::Strict).expect("clean");
    assert_eq!(entries, [b"before the pause".to_vec(), b"behind the pause".to_vec()]);
    assert_eq!((end.attested_entry_id, end.closed), (2, false));

    let (entries, end) = replayed("wal_resumed", WalReplayMode::Strict).expect("clean");
    assert_eq!(entries, [vec![1; 1000], vec![2; 1000], b"in the place of what was torn".to_vec()]);
    assert_eq!((end.attested_entry_id, end.closed, end.segments_read), (3, true, 2));
}

#[test]
fn a_torn_fixture_is_torn_and_nothing_else() {
    let mut files = files_below(&root().join("wal_unsealed"));
    // The last frame loses its second half, as if the file had ended there.
    files[0].1.truncate(1536 + 100);
    let reader = WalReader::<(), MemoryDirectory>::new(in_memory(&files));
    match reader.replay_bytes(WalReplayMode::Strict) {
        Err(PersistenceError::TornTail(torn)) => assert_eq!((torn.offset, torn.last_entry_id), (1536, 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(reader.replay_bytes(WalReplayMode::BestEffortTail).expect("accepts").len(), 1);
}

#[test]
fn committed_record_logs_and_checkpoints_read_as_they_were_written() {
    let records = |name: &str| -> Vec<Vec<u8>> {
        let reader = RecordLogReader::<MemoryDirectory>::new(fixture(name), "records.log");
        let records = reader.read_all(RecordLogReadMode::Strict).expect("clean");
        records.into_iter().map(|record| record.payload).collect()
    };
    assert_eq!(records("record_log_closed"), [b"first".to_vec(), Vec::new(), vec![7; 700], b"last".to_vec()]);
    assert_eq!(records("record_log_reopened"), [b"kept".to_vec(), b"in the place of what was torn".to_vec()]);

    let mut reader =
        CheckpointFile::<MemoryDirectory>::new(fixture("checkpoint")).reader("state.ckp").expect("opens");
    let meta = CheckpointMeta { last_applied_entry_id: 41, required_entry_id: 42, identity: 0xfeed };
    assert_eq!(reader.meta(), meta);
    assert!(reader.read_state().expect("reads") == state());
}
