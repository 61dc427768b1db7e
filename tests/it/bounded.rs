//! What reading costs, counted: reads and bytes, not time. (Memory: `tests/memory.rs`.)

use crate::damage::payload;
use durability::formats::frame::{FrameFacts, FrameKind, FrameSeed, entry_length, finish};
use durability::formats::header::{FileKind, HeaderState, decode};
use durability::storage::{CommitFile, DirectoryLock, DurableDirectory, FileOptions, FlushPolicy, ReadAt};
use durability::testing::sim::SimDisk;
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{Directory, PersistenceResult};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    reads: AtomicU64,
    bytes: AtomicU64,
}

/// A disk that counts what is read of it.
#[derive(Clone)]
struct Counted {
    disk: SimDisk,
    counts: Arc<Counts>,
}

struct CountedFile {
    file: Box<dyn ReadAt>,
    counts: Arc<Counts>,
}

impl ReadAt for CountedFile {
    fn size(&self) -> PersistenceResult<u64> {
        self.file.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> PersistenceResult<usize> {
        let read = self.file.read_at(offset, buffer)?;
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Directory for Counted {
    fn create_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.disk.create_file(path)
    }
    fn append_file(&self, path: &str) -> PersistenceResult<Box<dyn Write + Send>> {
        self.disk.append_file(path)
    }
    fn open_file(&self, path: &str) -> PersistenceResult<Box<dyn Read + Send>> {
        self.disk.open_file(path)
    }
    fn exists(&self, path: &str) -> bool {
        self.disk.exists(path)
    }
    fn delete(&self, path: &str) -> PersistenceResult<()> {
        self.disk.delete(path)
    }
    fn atomic_rename(&self, from: &str, to: &str) -> PersistenceResult<()> {
        self.disk.atomic_rename(from, to)
    }
    fn create_dir_all(&self, path: &str) -> PersistenceResult<()> {
        self.disk.create_dir_all(path)
    }
    fn list_dir(&self, path: &str) -> PersistenceResult<Vec<String>> {
        self.disk.list_dir(path)
    }
    fn atomic_write(&self, path: &str, data: &[u8]) -> PersistenceResult<()> {
        self.disk.atomic_write(path, data)
    }
    fn file_path(&self, path: &str) -> Option<PathBuf> {
        self.disk.file_path(path)
    }
    fn as_durable(&self) -> Option<&dyn DurableDirectory> {
        self.disk.as_durable()
    }
    fn try_exists(&self, path: &str) -> PersistenceResult<bool> {
        self.disk.try_exists(path)
    }
    fn open_at(&self, path: &str) -> PersistenceResult<Box<dyn ReadAt>> {
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(CountedFile { file: self.disk.open_at(path)?, counts: Arc::clone(&self.counts) }))
    }
    fn open_commit_file(&self, path: &str, options: &FileOptions) -> PersistenceResult<Box<dyn CommitFile>> {
        self.disk.open_commit_file(path, options)
    }
    fn lock(&self, path: &str, wait: Duration) -> PersistenceResult<Box<dyn DirectoryLock>> {
        self.disk.lock(path, wait)
    }
    fn await_unlocked(&self, path: &str, wait: Duration) -> PersistenceResult<()> {
        self.disk.await_unlocked(path, wait)
    }
}

/// Files opened, reads and bytes of one question.
#[derive(Clone, Copy, Debug)]
struct Cost {
    opened: u64,
    reads: u64,
    bytes: u64,
}

fn cost<T>(disk: &SimDisk, ask: impl FnOnce(Arc<Counted>) -> T) -> (Cost, T) {
    let counts = Arc::new(Counts::default());
    let answer = ask(Arc::new(Counted { disk: disk.clone(), counts: Arc::clone(&counts) }));
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let cost =
        Cost { opened: count(&counts.opened), reads: count(&counts.reads), bytes: count(&counts.bytes) };
    (cost, answer)
}

/// `segments` of 32 entries, and a newest one of `newest` entries, each committed by itself; as a kill leaves
/// them.
fn log(segments: u64, newest: u64) -> SimDisk {
    let disk = SimDisk::new(1);
    let options =
        WalOptions { preallocate_bytes: 0, flush_policy: FlushPolicy::Manual, ..WalOptions::default() };
    let mut wal = WalWriter::<(), SimDisk>::open_with(Arc::new(disk.clone()), options).expect("opens");
    for segment in 0..=segments {
        for entry in 0..if segment == segments { newest } else { 32 } {
            wal.set_segment_size_limit_bytes(if entry == 0 && segment > 0 { 1 } else { 1 << 30 });
            let bytes = payload(wal.next_entry_id());
            wal.append_bytes(&bytes).expect("appends");
            wal.flush().expect("flushes");
        }
        wal.flush_and_sync().expect("syncs");
    }
    let bytes = payload(wal.next_entry_id());
    wal.append_bytes_durable(&bytes).expect("commits");
    let killed = disk.after_kill();
    drop(wal);
    killed
}

fn stop() -> durability::PersistenceError {
    durability::PersistenceError::NotFound { path: "enough".to_owned() }
}

const LOOK_BYTES: u64 = 8192;

/// Reads one entry and stops.
fn seek(disk: &SimDisk, entry_id: u64) -> Cost {
    let (cost, found) = cost(disk, |directory| {
        let mut found = None;
        let reader = WalReader::<(), Counted>::new(directory);
        let told = reader.replay_bytes_from(entry_id, WalReplayMode::Strict, |id, bytes| {
            found = Some((id, bytes.to_vec()));
            Err(stop())
        });
        assert!(told.is_err());
        found
    });
    assert_eq!(found, Some((entry_id, payload(entry_id))));
    cost
}

#[test]
fn seeking_costs_a_binary_search_and_the_segments_from_there_on() {
    for segments in [50u64, 200] {
        let disk = log(segments, 32);
        let steps = u64::from(segments.ilog2()) + 2;
        // Near the end, where a checkpoint lets replay begin: no more than the search, a look at what is replayed,
        // and one segment.
        let segment_bytes = disk.open_at("wal/wal_2.log").expect("opens").size().expect("a size");
        for behind in [0, 1, 3] {
            let entry_id = (segments - behind) * 32 + 5;
            let cost = seek(&disk, entry_id);
            let looks = steps + behind + 1;
            assert!(cost.bytes <= looks * LOOK_BYTES + 2 * segment_bytes, "{segments} {behind}: {cost:?}");
            // Files of segments behind are opened ahead, so that truncation does not disturb.
            assert!(cost.opened <= looks + behind + 1, "{segments} {behind}: {cost:?}");
            assert!(cost.reads <= looks + 2, "{segments} {behind}: {cost:?}");
        }
        // The whole log from its middle: twice the number of segments costs twice as much, and no more is read
        // of what lies before.
        let (half, _) = cost(&disk, |directory| {
            let reader = WalReader::<(), Counted>::new(directory);
            reader
                .replay_bytes_from(segments * 16 + 1, WalReplayMode::Strict, |_, _| Ok(()))
                .expect("reads")
                .entries
        });
        assert!(
            half.bytes <= (segments / 2 + 2) * (LOOK_BYTES + segment_bytes) + steps * LOOK_BYTES,
            "{half:?}"
        );
    }
}

#[test]
fn opening_reads_only_what_nothing_attests() {
    let open = |disk: &SimDisk| {
        let (cost, last) = cost(disk, |directory| {
            let wal = WalWriter::<(), Counted>::open(directory).expect("opens");
            wal.last_entry_id()
        });
        (cost, last)
    };
    // A hundred sealed segments: a look at each and the newest one, twice at most (its tail is written again).
    let disk = log(100, 8);
    let newest = disk.open_at("wal/wal_101.log").expect("opens").size().expect("a size");
    let (cost, last) = open(&disk.after_kill());
    assert_eq!(last, 100 * 32 + 9);
    assert!(cost.bytes <= 101 * LOOK_BYTES + 2 * newest + 4096, "{cost:?}, the newest has {newest}");
    // Closed: a look and two blocks, however large the newest is.
    for entries in [10, 4000] {
        let disk = log(0, entries);
        WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens").close().expect("closes");
        let mut wal = WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).expect("opens");
        for _ in 0..entries {
            wal.append_bytes(&[1; 600]).expect("appends");
            wal.flush().expect("flushes");
        }
        wal.close().expect("closes");
        let (cost, _) = open(&disk);
        assert!(cost.bytes <= 2 * LOOK_BYTES + 4096, "{entries} entries: {cost:?}");
        let (cost, _) = super::bounded::cost(&disk, |directory| {
            WalMaintenance::new(directory).segment_ranges_strict().expect("reads").len()
        });
        assert!(cost.bytes <= 2 * LOOK_BYTES + 4096, "{entries} entries: {cost:?}");
    }
}

/// Behind a bad frame, headers at every place that check out and claim all that is left, or far more, or one
/// unit; none with a payload that checks out.
fn adversarial(units: usize, claim: impl Fn(usize) -> usize) -> SimDisk {
    let disk = log(0, 2);
    let path = "wal/wal_1.log";
    let mut bytes = Vec::new();
    disk.open_file(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..512]) else { panic!("no header") };
    let end = bytes.len();
    bytes.resize(end + 512 * units, 0);
    bytes[end..end + 512].fill(0xa5);
    let mut frame = vec![0u8; 512];
    for unit in 1..units {
        let at = end + unit * 512;
        frame.fill(0);
        frame[48..52].copy_from_slice(&entry_length(&[0; 100]));
        let facts = FrameFacts {
            kind: FrameKind::Data,
            entry_count: 1,
            payload_bytes: 104,
            first_entry_id: 4 + unit as u64,
            durable_entry_id: 0,
        };
        finish(&mut frame, at as u64, FrameSeed::new(header.salt), facts);
        bytes[at..at + 512].copy_from_slice(&frame);
        bytes[at + 16..at + 20].copy_from_slice(&(claim(units - unit) as u32).to_le_bytes());
    }
    disk.create_file(path).expect("creates").write_all(&bytes).expect("writes");
    // The claims are given checksums that match; payloads are not.
    mend_headers(&disk, path, end + 512);
    disk
}

fn mend_headers(disk: &SimDisk, path: &str, from: usize) {
    let mut bytes = Vec::new();
    disk.open_file(path).expect("opens").read_to_end(&mut bytes).expect("reads");
    let salt = u64::from_le_bytes(bytes[32..40].try_into().expect("eight bytes"));
    for at in (from..bytes.len()).step_by(512) {
        let mut hasher = crc32fast::Hasher::new_with_initial((salt ^ (salt >> 32)) as u32);
        hasher.update(&(at as u64).to_le_bytes());
        hasher.update(&bytes[at + 8..at + 48]);
        bytes[at + 4..at + 8].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
    disk.create_file(path).expect("creates").write_all(&bytes).expect("writes");
}

#[test]
fn an_adversarial_tail_is_read_a_fixed_number_of_times_whatever_its_lengths_say() {
    type Claim = fn(usize) -> usize;
    let claims: [(&str, Claim); 4] = [
        ("one unit", |_| 104),
        ("all that is left", |units| (units * 512 - 48).min(64 << 20)),
        ("half of what is left", |units| (units * 256).clamp(104, 64 << 20)),
        ("the largest frame", |_| 64 << 20),
    ];
    for (what, claim) in claims {
        let mut before = None;
        for units in [2048usize, 8192] {
            let disk = adversarial(units, claim);
            let began = std::time::Instant::now();
            for mode in [WalReplayMode::Strict, WalReplayMode::BestEffortTail] {
                let (cost, told) = cost(&disk, |directory| {
                    WalReader::<(), Counted>::new(directory).replay_bytes_from(1, mode, |_, _| Ok(()))
                });
                assert!(told.expect_err("a frame full of garbage").is_corruption());
                // Looked at, read, and read once more, because it could be growing.
                let bound = 3 * 512 * units as u64 + 5 * LOOK_BYTES + 4096;
                assert!(cost.bytes <= bound, "{what}, {units} units: {cost:?} of {bound}");
                before.get_or_insert(cost.bytes);
            }
            println!("{what}, {units} units: {:?}", began.elapsed());
        }
    }
}
