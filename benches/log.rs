//! What needs no disk: appending without a commit, finishing frames, replaying from memory.
//!
//! For comparing a change with what was before it, on one machine:
//! `cargo bench --bench log -- --save-baseline before`, then `cargo bench --bench log -- --baseline before`.
//! Commits and recovery on a disk: `durability bench`.
#![allow(missing_docs, reason = "macros make the entry point")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use durability::formats::frame::FrameSeed;
use durability::framing::Batch;
use durability::limits::FRAME_ALIGNMENT_DEFAULT;
use durability::storage::FlushPolicy;
use durability::walog::{WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{MemoryDirectory, PersistenceResult};
use std::hint::black_box;
use std::sync::Arc;

const ENTRY_BYTES: [usize; 3] = [128, 1 << 10, 16 << 10];
/// What one batch of the benchmarks holds, in bytes of payload.
const BATCH_BYTES: usize = 64 << 10;
/// What the replayed log holds, in bytes of payload.
const LOG_BYTES: usize = 8 << 20;

/// Bytes that no checksum finds easy.
fn entry(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(step).take(bytes).collect()
}

/// Entries into a log in memory, flushed once a batch is full: no system call.
fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for bytes in ENTRY_BYTES {
        let entry = entry(bytes);
        let count = BATCH_BYTES / bytes;
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            let open = || {
                let mut wal = writer(&MemoryDirectory::arc(), 4 * BATCH_BYTES as u64)?;
                // Buffers and the first segment are there before the time begins.
                (0..count).try_for_each(|_| wal.append_bytes(&entry).map(drop))?;
                wal.flush()?;
                PersistenceResult::Ok(wal)
            };
            let fill = |mut wal: Wal| {
                (0..count).try_for_each(|_| wal.append_bytes(black_box(&entry)).map(drop))?;
                wal.flush()?;
                PersistenceResult::Ok(wal)
            };
            bencher.iter_batched(|| open().expect("opens in memory"), fill, BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// A batch of entries becomes a frame: checksums and header.
fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for bytes in ENTRY_BYTES {
        let entry = entry(bytes);
        group.throughput(Throughput::Bytes(BATCH_BYTES as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            let full = || {
                let mut batch = Batch::new(FRAME_ALIGNMENT_DEFAULT, 1, BATCH_BYTES * 2);
                (0..BATCH_BYTES / bytes).try_for_each(|_| batch.push(&entry).map(drop)).expect("has room");
                batch
            };
            let finish = |batch: Batch| batch.finish(4096, FrameSeed::new(7), 0, None);
            bencher.iter_batched(full, finish, BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// A log in memory, read from its beginning to its end.
fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    for (name, bytes, per_frame) in
        [("64 per frame", 256, 64), ("1 per frame", 256, 1), ("large", 16 << 10, 4)]
    {
        let log = log_in_memory(bytes, per_frame).expect("writes to memory");
        group.throughput(Throughput::Elements((LOG_BYTES / bytes) as u64));
        group.bench_function(name, |bencher| {
            let reader = WalReader::<(), MemoryDirectory>::new(Arc::clone(&log));
            bencher.iter(|| {
                let mut sum = 0;
                let visit = |entry_id, payload: &[u8]| {
                    sum += entry_id + payload.len() as u64;
                    Ok(())
                };
                reader.replay_bytes_from(1, WalReplayMode::Strict, visit).expect("replays");
                sum
            });
        });
    }
    group.finish();
}

type Wal = WalWriter<(), MemoryDirectory>;

/// A writer that flushes when it is told to, or when its buffer is full.
fn writer(directory: &Arc<MemoryDirectory>, preallocate_bytes: u64) -> PersistenceResult<Wal> {
    let options =
        WalOptions { flush_policy: FlushPolicy::Manual, preallocate_bytes, ..WalOptions::default() };
    Wal::open_with(Arc::clone(directory), options)
}

fn log_in_memory(bytes: usize, per_frame: usize) -> PersistenceResult<Arc<MemoryDirectory>> {
    let directory = MemoryDirectory::arc();
    let mut wal = writer(&directory, 0)?;
    let entry = entry(bytes);
    for index in 1..=LOG_BYTES / bytes {
        wal.append_bytes(&entry)?;
        if index % per_frame == 0 {
            wal.flush()?;
        }
    }
    wal.close()?;
    Ok(directory)
}

criterion_group!(log, append, encode, replay);
criterion_main!(log);
