//! What must hold of any bytes whatever: shared by the hostile tests and the fuzz targets.

use durability::checkpoint::CheckpointFile;
use durability::formats::frame::{FrameHeader, FrameSeed};
use durability::formats::header::{FileKind, Header, HeaderState, decode};
use durability::formats::layout::{FRAME_HEADER_BYTES, HEADER_BYTES, MAGIC_FRAME, VERSION};
use durability::formats::scan::{KnownEnd, Scanner, Step};
use durability::inspect::{self, Checkpoints, Dump, Role, Verdict, dump_file, inspect_file, inspect_log};
use durability::recordlog::{RecordLogOptions, RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::repair::{Keep, plan_log, plan_record_log};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::walog::{
    LogEnd, WalCheck, WalFollower, WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter,
};
use durability::{Directory, MemoryDirectory, PersistenceError, PersistenceResult};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

/// Makes every checksum of a file match again, so that what is forged gets past them.
pub fn mend(kind: FileKind, bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    bytes[..8].copy_from_slice(&kind.magic());
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
    bytes[72..76].fill(0);
    let stated = u32_at(bytes, 12);
    let alignment = if [512, 1024, 2048, 4096].contains(&stated) { stated } else { 512 };
    bytes[12..16].copy_from_slice(&alignment.to_le_bytes());
    if u64_at(bytes, 32) == 0 {
        bytes[32] = 1;
    }
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    mend_frames(alignment as usize, bytes);
}

/// Makes the checksums of every frame match again; the header is as it is.
pub fn mend_frames(alignment: usize, bytes: &mut [u8]) {
    let salt = u64_at(bytes, 32);
    let seed = FrameSeed::new(salt);
    let mut at = alignment;
    while at + FRAME_HEADER_BYTES <= bytes.len() {
        if bytes[at..at + 4] == MAGIC_FRAME {
            let payload_bytes = u32_at(bytes, at + 16) as usize;
            let whole = (FRAME_HEADER_BYTES + payload_bytes).div_ceil(alignment) * alignment;
            // What is torn stays torn.
            if let Some(padded) = bytes.get(at + FRAME_HEADER_BYTES..at + whole) {
                let crc = seed.payload_crc(padded);
                bytes[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
            }
            let mut hasher = crc32fast::Hasher::new_with_initial((salt ^ (salt >> 32)) as u32);
            hasher.update(&(at as u64).to_le_bytes());
            hasher.update(&bytes[at + 8..at + FRAME_HEADER_BYTES]);
            bytes[at + 4..at + 8].copy_from_slice(&hasher.finalize().to_le_bytes());
        }
        at += alignment;
    }
}

/// Little-endian, at an offset that is there.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Little-endian, at an offset that is there.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put<D: Directory>(directory: &D, path: &str, bytes: &[u8]) {
    directory.create_file(path).expect("creates").write_all(bytes).expect("writes");
}

fn contents<D: Directory>(directory: &D, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    directory.open_file(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

type Entries = BTreeMap<u64, Vec<u8>>;

/// Entries that were handed out, and how the replay ended.
fn replay<D: Directory>(
    directory: &Arc<D>,
    from: u64,
    mode: WalReplayMode,
) -> (Entries, PersistenceResult<LogEnd>) {
    let mut entries = Entries::new();
    let reader = WalReader::<(), D>::new(Arc::clone(directory));
    let result = reader.replay_bytes_from(from, mode, |id, payload| {
        let before = entries.insert(id, payload.to_vec());
        assert!(before.is_none() && *entries.keys().next_back().expect("one") == id, "ids rise");
        Ok(())
    });
    if result.is_ok() {
        let first = entries.keys().next().copied().unwrap_or(1);
        assert!(entries.keys().copied().eq(first..first + entries.len() as u64), "ids are dense");
    }
    (entries, result.map(|summary| summary.end))
}

/// A `wal/` directory with these segments: reading, maintenance, continuing it.
pub fn check_segments(segments: &[(u64, Vec<u8>)]) {
    check_segments_in(MemoryDirectory::arc(), segments);
}

/// The same in an empty directory; on a durable one a closed log is opened by its last block.
pub fn check_segments_in<D: Directory>(directory: Arc<D>, segments: &[(u64, Vec<u8>)]) {
    directory.create_dir_all("wal").expect("makes the folder");
    for (id, bytes) in segments {
        put(directory.as_ref(), &format!("wal/wal_{id}.log"), bytes);
    }
    let before: Vec<_> =
        segments.iter().map(|(id, _)| contents(directory.as_ref(), &format!("wal/wal_{id}.log"))).collect();
    let reader = WalReader::<(), D>::new(Arc::clone(&directory));
    let range = reader.entry_range(WalReplayMode::BestEffortTail);
    let first = match &range {
        Ok(Some((first, _))) => *first,
        _ => 1,
    };
    let (strict_entries, strict) = replay(&directory, first, WalReplayMode::Strict);
    let (entries, best) = replay(&directory, first, WalReplayMode::BestEffortTail);
    assert_eq!(strict_entries, entries, "what is handed out does not depend on the mode");
    if let Ok(end) = &strict {
        let best = best.as_ref().expect("what is clean is accepted");
        assert_eq!(best.last_entry_id, end.last_entry_id);
    }
    check_tool(&directory);
    let maintenance = WalMaintenance::<D>::new(Arc::clone(&directory));
    let ranges = maintenance.segment_ranges(WalReplayMode::BestEffortTail);
    assert!(best.is_err() || ranges.is_ok(), "replay {best:?}, maintenance {ranges:?}");
    assert!(range.is_ok() == ranges.is_ok(), "{range:?} {ranges:?}");

    let options = WalOptions {
        preallocate_bytes: 0,
        segment_bytes_max: 4096,
        flush_policy: FlushPolicy::PerAppend,
        lock_wait: Duration::ZERO,
        environment: Arc::new(SeededEnvironment::new(0x5eed)),
        ..WalOptions::default()
    };
    let opened = WalWriter::<(), D>::open_with(Arc::clone(&directory), options);
    assert!(best.is_err() || opened.is_ok(), "replay {best:?}, open {opened:?}");
    let mut added = Entries::new();
    // Opening reads only what nothing attests: damage elsewhere it may not see, and replay does.
    let mut same_end = true;
    if let Ok(mut wal) = opened {
        if let (Ok(end), Some(found)) = (&best, wal.recovered()) {
            same_end = end.last_segment == found.last_segment;
            assert!(found.last_entry_id == end.last_entry_id || !same_end, "{found:?} {end:?}");
        }
        // More than one segment's worth.
        for payload in [b"one more".as_slice(), &[1; 5000], b""] {
            match wal.append_bytes(payload) {
                Ok(id) => added.insert(id, payload.to_vec()),
                Err(_) => break,
            };
        }
        let _ = wal.close();
    }
    for ((id, _), before) in segments.iter().zip(&before) {
        // Only a file that was prepared and never started may go.
        if directory.exists(&format!("wal/wal_{id}.log")) {
            assert!(
                contents(directory.as_ref(), &format!("wal/wal_{id}.log")) == *before,
                "segment {id} was edited"
            );
        }
    }
    let (after, again) = replay(&directory, first, WalReplayMode::Strict);
    if best.is_ok() && same_end {
        if !added.is_empty() {
            again.expect("a log that was closed is clean");
        }
        let expected: Entries = entries.into_iter().chain(added).collect();
        assert_eq!(after, expected);
    } else {
        assert!(entries.iter().all(|(id, payload)| after.get(id) == Some(payload)), "was readable before");
    }
    let _ = maintenance.truncate_prefix(u64::MAX);
    let _ = reader.entry_range(WalReplayMode::BestEffortTail);
}

/// What looks inside a log says what replay says, whatever the bytes; a repair that is planned ends in a clean log.
fn check_tool<D: Directory>(directory: &Arc<D>) {
    let (mut entries, mut replayed) = replay(directory, 1, WalReplayMode::Strict);
    if let Err(PersistenceError::PrefixUnavailable { first_entry_id, .. }) = replayed {
        (entries, replayed) = replay(directory, first_entry_id, WalReplayMode::Strict);
    }
    let by_replay = Verdict::of_log(&replayed).map_err(|error| error.to_string());
    let (_, end) = WalCheck::run(directory, |check| check.scan_all());
    let by_check = Verdict::of_log(&end).map_err(|error| error.to_string());
    let inspected = inspect_log(directory, |check| check.scan_all());
    assert_eq!(inspected.as_ref().map(|log| &log.verdict).ok(), by_check.as_ref().ok());
    // Forged segments that do not rise lead a replay from the first entry past the first segment.
    let files = inspected.as_ref().map(|log| log.files.as_slice()).unwrap_or_default();
    let openings = files.iter().filter(|file| file.role == Role::Segment);
    let firsts = openings.filter_map(|file| file.opening.as_ref()?.predecessor_last_entry_id.checked_add(1));
    if !firsts.is_sorted_by(|a, b| a < b) {
        let accepted = |verdict: &Result<Verdict, String>| verdict.as_ref().is_ok_and(Verdict::is_accepted);
        assert!(accepted(&by_replay) || !accepted(&by_check), "{by_replay:?}, and {by_check:?}");
        return;
    }
    assert_eq!(by_check, by_replay);
    for name in directory.list_dir("wal").expect("lists") {
        let path = format!("wal/{name}");
        if name.ends_with(".log") {
            let answered = dump_file(directory.as_ref(), &path, Dump { entries: true }, &mut |_| {});
            let looked_at = inspect_file(directory.as_ref(), &path, &mut |_| {});
            assert!(looked_at.is_err() || answered.is_ok(), "{looked_at:?} {answered:?}");
        }
    }
    for keep in [Keep::Oldest, Keep::Newest] {
        let Ok(plan) = plan_log(directory, &Checkpoints::default(), keep, |check| check.scan_all()) else {
            continue;
        };
        assert_eq!(Ok(&plan.found), by_replay.as_ref());
        if let (true, Ok(end)) = (plan.found.is_accepted(), &end) {
            let kept = (plan.last_entry_id, plan.loss.is_none(), plan.obstacle.as_deref());
            assert_eq!(kept, (end.last_entry_id, true, None), "what is accepted is kept: {plan:?}");
        }
    }
    if let (Ok(end), Ok(mut follower)) = (&end, WalFollower::new(Arc::clone(directory), None)) {
        let mut followed = Entries::new();
        let polled = follower.poll(|id, payload| {
            followed.insert(id, payload.to_vec());
            Ok(())
        });
        // Forged watermarks may stand inside of a batch, which is handed out whole.
        assert!(
            followed.iter().all(|(id, payload)| entries.get(id) == Some(payload)),
            "a prefix of replay: {:?}, {:?}, {end:?}",
            followed.keys(),
            entries.keys()
        );
        let last = followed.keys().next_back().copied().unwrap_or(0);
        // Behind a tear a follower does not look.
        let torn = end.torn.is_some() || !end.dropped.is_empty();
        let begins_later = entries.keys().next().is_none_or(|first| end.attested_entry_id < *first);
        let all = torn || begins_later || last >= end.attested_entry_id;
        assert!(polled.is_err() || all, "followed through {last}: {end:?}");
        polled.expect("what replay accepts can be followed");
    }
}

/// What looks inside a file says what its reader says.
fn check_file(directory: &Arc<MemoryDirectory>, path: &str, kind: FileKind, read: PersistenceResult<()>) {
    if !matches!(inspect::kind_of(directory.as_ref(), path), Ok(found) if found == kind) {
        return;
    }
    let answered = dump_file(directory.as_ref(), path, Dump { entries: true }, &mut |_| {});
    answered.expect("what has a kind can be written out");
    let by_reader = Verdict::of(read.map(|()| None)).map_err(|error| error.to_string());
    let looked_at = inspect_file(directory.as_ref(), path, &mut |_| {}).map(|file| file.verdict);
    assert_eq!(looked_at.map_err(|error| error.to_string()), by_reader);
    if kind == FileKind::RecordLog {
        let _ = plan_record_log(directory, path, &mut |_| {});
    }
}

/// A record log: reading it and continuing it.
pub fn check_record_log(bytes: &[u8]) {
    let directory = MemoryDirectory::arc();
    put(directory.as_ref(), "log", bytes);
    let read = |mode: RecordLogReadMode| {
        let mut records = Vec::new();
        let reader = RecordLogReader::<MemoryDirectory>::new(Arc::clone(&directory), "log");
        let result = reader.read_each(mode, |record| {
            records.push(record.to_vec());
            Ok(())
        });
        (records, result)
    };
    let (strict_records, strict) = read(RecordLogReadMode::Strict);
    let (mut records, best) = read(RecordLogReadMode::BestEffort);
    assert_eq!(strict_records, records, "what is handed out does not depend on the mode");
    assert!(strict.is_err() || best.is_ok(), "what is clean is accepted");
    check_file(&directory, "log", FileKind::RecordLog, strict.map(|_| ()));
    for round in 0..2 {
        let options = RecordLogOptions {
            flush_policy: FlushPolicy::PerAppend,
            lock_wait: Duration::ZERO,
            environment: Arc::new(SeededEnvironment::new(0x5eed)),
            ..RecordLogOptions::default()
        };
        let mut log =
            RecordLogWriter::<MemoryDirectory>::with_options(Arc::clone(&directory), "log", options);
        let opened = log.open();
        assert!(round > 0 || opened.is_ok() == best.is_ok(), "reading {best:?}, opening {opened:?}");
        // A file that ends within a sector can gain what it had lost, if that was zeros, when it grows: one
        // torn frame is recognised (a test of its own), a second one in the same sector is not.
        assert!(round == 0 || opened.is_ok() || bytes.len() % 512 != 0, "opening again: {opened:?}");
        if opened.is_err() {
            drop(log);
            assert!(round > 0 || contents(directory.as_ref(), "log") == bytes, "a refused log was edited");
            return;
        }
        if log.append_bytes(&[round; 700]).is_ok() {
            records.push(vec![round; 700]);
        }
        if log.close().is_ok() && bytes.len() % 512 == 0 {
            let (after, again) = read(RecordLogReadMode::Strict);
            again.expect("a log that was closed is clean");
            assert_eq!(after, records);
        }
    }
}

/// A checkpoint: read whole, read in small steps, and only checked.
pub fn check_checkpoint(bytes: &[u8]) {
    let directory = MemoryDirectory::arc();
    put(directory.as_ref(), "state", bytes);
    let files = CheckpointFile::<MemoryDirectory>::new(Arc::clone(&directory));
    let whole = files.read_bytes("state");
    check_file(&directory, "state", FileKind::Checkpoint, whole.as_ref().map(|_| ()).map_err(Clone::clone));
    let Ok(mut reader) = files.reader("state") else {
        assert!(whole.is_err());
        return;
    };
    let mut state = Vec::new();
    let mut small = [0; 1000];
    let stepwise = loop {
        match reader.read(&mut small) {
            Ok(0) => break Ok(()),
            Ok(read) => state.extend_from_slice(&small[..read]),
            Err(error) => break Err(error),
        }
    };
    assert_eq!(stepwise.is_ok(), whole.is_ok());
    assert_eq!(files.reader("state").expect("opens").verify().is_ok(), whole.is_ok());
    if let Ok((_, whole)) = whole {
        assert!(whole == state);
    }
}

/// Everything that a scan says, with windows of at least `window` bytes.
fn scan(mut scanner: Scanner, file: &[u8], window: usize) -> (Vec<(u64, FrameHeader, Vec<u8>)>, String) {
    let mut frames = Vec::new();
    let (mut from, mut to) = (0, 0);
    let mut steps = 0;
    loop {
        steps += 1;
        assert!(steps < 16 + file.len() / 64, "a scan that does not come to an end");
        match scanner.step(from as u64, &file[from..to]) {
            Step::Need { offset, bytes } => {
                let covered = from <= offset as usize && offset as usize + bytes <= to;
                assert!(!covered, "asks for what it was shown: {offset} {bytes}");
                from = offset as usize;
                assert!(from + bytes <= file.len(), "asks for what is not there: {offset} {bytes}");
                to = (from + bytes.max(window)).min(file.len());
            }
            Step::Frame { offset, header, payload } => frames.push((offset, header, payload.to_vec())),
            Step::End => return (frames, format!("{:?}", scanner.into_end())),
        }
    }
}

/// The scanner: large and small windows tell the same, whatever the file.
pub fn check_scanner(kind: FileKind, bytes: &[u8], known_end: Option<KnownEnd>) {
    let header = match decode(kind, &bytes[..bytes.len().min(HEADER_BYTES)]) {
        HeaderState::Good(header) => header,
        _ => Header::new(kind, 512, 1, 1),
    };
    let size = bytes.len() as u64;
    let makers: [&dyn Fn() -> Scanner; 3] =
        [&|| Scanner::new(&header, size, known_end), &|| Scanner::evidence_only(&header, size), &|| {
            Scanner::resume(&header, size, None, (header.first_frame_offset(), 2))
        }];
    for make in makers {
        let whole = scan(make(), bytes, usize::MAX / 2);
        for window in [0, 600, 4096] {
            assert_eq!(scan(make(), bytes, window), whole, "windows of {window} bytes");
        }
    }
}

/// Splits one input into up to three segments, the first two as long as two bytes say, in sectors. With
/// `by_header`, the files are named as their headers state, where that can be.
pub fn split_segments(input: &[u8], by_header: bool) -> Vec<(u64, Vec<u8>)> {
    let Some((cuts, mut rest)) = input.split_at_checked(2) else { return Vec::new() };
    let mut segments = Vec::new();
    for cut in [usize::from(cuts[0]) * 512, usize::from(cuts[1]) * 512, usize::MAX] {
        let (segment, behind) = rest.split_at(cut.min(rest.len()));
        rest = behind;
        if !segment.is_empty() {
            segments.push((segments.len() as u64 + 1, segment.to_vec()));
        }
    }
    if by_header && segments.iter().all(|(_, bytes)| bytes.len() >= HEADER_BYTES) {
        let named: BTreeMap<u64, Vec<u8>> =
            segments.iter().map(|(_, bytes)| (u64_at(bytes, 40).max(1), bytes.clone())).collect();
        if named.len() == segments.len() {
            return named.into_iter().collect();
        }
    }
    segments
}

/// The inputs of the fuzz targets: a first byte of flags, then the file.
pub mod targets {
    use super::*;

    const MEND: u8 = 1;
    const BY_HEADER: u8 = 2;

    fn file(kind: FileKind, input: &[u8]) -> Option<(u8, Vec<u8>)> {
        let (flags, bytes) = input.split_first()?;
        let mut bytes = bytes.to_vec();
        if flags & MEND != 0 {
            mend(kind, &mut bytes);
        }
        Some((*flags, bytes))
    }

    /// A record log.
    pub fn recordlog(input: &[u8]) {
        if let Some((_, bytes)) = file(FileKind::RecordLog, input) {
            check_record_log(&bytes);
        }
    }

    /// A checkpoint.
    pub fn checkpoint(input: &[u8]) {
        if let Some((_, bytes)) = file(FileKind::Checkpoint, input) {
            check_checkpoint(&bytes);
        }
    }

    /// A `wal/` directory.
    pub fn segment(input: &[u8]) {
        let Some((flags, rest)) = input.split_first() else { return };
        let mut segments = split_segments(rest, flags & BY_HEADER != 0);
        for (_, bytes) in &mut segments {
            if flags & MEND != 0 {
                mend(FileKind::Segment, bytes);
            }
        }
        check_segments(&segments);
    }

    /// The scanner; two bits of the flags are the kind, the second byte a known end in sectors.
    pub fn scanner(input: &[u8]) {
        let Some((flags, _)) = input.split_first() else { return };
        let kind =
            [FileKind::Segment, FileKind::RecordLog, FileKind::Checkpoint][usize::from(flags >> 2) % 3];
        let Some((sectors, bytes)) = input[1..].split_first() else { return };
        let known_end = (*sectors > 0)
            .then(|| KnownEnd { offset: u64::from(*sectors) * 512, last_entry_id: u64::from(*sectors) / 4 });
        let mut bytes = bytes.to_vec();
        if flags & MEND != 0 {
            mend(kind, &mut bytes);
        }
        check_scanner(kind, &bytes, known_end);
    }
}
