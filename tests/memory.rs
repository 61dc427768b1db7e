//! What replay keeps in memory, by a counting allocator. A program of its own: the allocator counts for all.
#![allow(missing_docs, clippy::disallowed_methods, reason = "a test, not the library")]

use durability::walog::{WalOptions, WalReader, WalReplayMode, WalWriter};
use durability::{FsDirectory, storage::FlushPolicy};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call is the system allocator's; only the sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both may be there while the bytes are moved.
        grown(bytes);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `act` held beyond what was held before.
fn peak_of<T>(act: impl FnOnce() -> T) -> (usize, T) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let answer = act();
    (PEAK.load(Ordering::Relaxed) - before, answer)
}

const MIB: usize = 1 << 20;

/// One test: what others allocate at the same time would count.
#[test]
fn replay_keeps_no_more_than_sixteen_mebibytes_beyond_the_largest_entry() {
    // (bytes of an entry, entries): 200 MiB of small ones, in twenty segments; a few of the largest.
    for (entry_bytes, entries) in [(4096usize, 51_200u64), (100, 40_000), (16 * MIB, 4)] {
        let root = tempfile::tempdir().expect("a directory");
        let directory = FsDirectory::arc(root.path()).expect("opens");
        let options = WalOptions {
            flush_policy: FlushPolicy::Manual,
            // One segment for all of the small ones: what stands unattested has to be remembered.
            segment_bytes_max: if entry_bytes == 100 { 1 << 40 } else { 10 << 20 },
            preallocate_bytes: 0,
            ..WalOptions::default()
        };
        let mut wal =
            WalWriter::<(), FsDirectory>::open_with(Arc::clone(&directory), options).expect("opens");
        let entry = vec![7; entry_bytes];
        for _ in 0..entries {
            wal.append_bytes(&entry).expect("appends");
            if entry_bytes == 100 {
                wal.flush().expect("flushes");
            }
        }
        wal.flush().expect("flushes");
        // As a kill leaves it: without a seal, and nothing attested.
        std::mem::forget(wal);
        let (peak, replayed) = peak_of(|| {
            WalReader::<(), FsDirectory>::new(Arc::clone(&directory))
                .replay_bytes_from(1, WalReplayMode::BestEffortTail, |_, bytes| {
                    assert_eq!(bytes.len(), entry_bytes);
                    Ok(())
                })
                .expect("replays")
                .entries
        });
        assert_eq!(replayed, entries);
        println!("{entries} entries of {entry_bytes} bytes: {} KiB", peak >> 10);
        assert!(peak <= entry_bytes + 16 * MIB, "{peak} bytes for entries of {entry_bytes}");
    }
}
