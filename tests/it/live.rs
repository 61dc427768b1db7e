//! Readers beside a writer that commits, rotates, truncates and recycles.

use durability::backends::Backend;
use durability::storage::FlushPolicy;
use durability::walog::{SyncWalWriter, WalMaintenance, WalOptions, WalReader, WalReplayMode};
use durability::{DurableDirectory, PersistenceError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn payload(entry_id: u64) -> Vec<u8> {
    entry_id.to_le_bytes().repeat(1 + (entry_id as usize * 13) % 120)
}

#[test]
fn a_live_log_never_looks_shorter_than_what_was_acknowledged_nor_damaged() {
    for backend in [Backend::Std, Backend::Auto] {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let directory: Arc<dyn DurableDirectory> = backend.open(root.path()).expect("opens").directory;
        let options = WalOptions {
            segment_bytes_max: 16 << 10,
            preallocate_bytes: 16 << 10,
            recycle_capacity: 2,
            flush_policy: FlushPolicy::Manual,
            ..WalOptions::default()
        };
        let wal = SyncWalWriter::<(), dyn DurableDirectory>::configure(Arc::clone(&directory), options)
            .expect("opens");
        let (done, cut, durable) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for reader in 0..2 {
                let reader_directory = Arc::clone(&directory);
                let (done, cut, durable) = (&done, &cut, &durable);
                scope.spawn(move || {
                    let reader_of = WalReader::<(), dyn DurableDirectory>::new(reader_directory);
                    let mut rounds = 0;
                    while !done.load(Ordering::SeqCst) || rounds == 0 {
                        rounds += 1;
                        let least = durable.load(Ordering::SeqCst);
                        let from = cut.load(Ordering::SeqCst) + 1;
                        let mut next = from;
                        let replayed =
                            reader_of.replay_bytes_from(from, WalReplayMode::BestEffortTail, |id, bytes| {
                                assert_eq!(
                                    (id, bytes),
                                    (next, &payload(id)[..]),
                                    "{backend} reader {reader}"
                                );
                                next += 1;
                                Ok(())
                            });
                        match replayed {
                            Ok(summary) => assert!(
                                summary.end.last_entry_id >= least,
                                "{backend}: {summary:?}, {least} was durable"
                            ),
                            // Truncation was faster than the reader.
                            Err(PersistenceError::PrefixUnavailable { .. }) => {}
                            Err(error) if error.is_not_found() && least == 0 => {}
                            Err(error) => panic!("{backend} reader {reader}: {error}"),
                        }
                    }
                });
            }
            let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(&directory));
            for entry_id in 1..=1500u64 {
                assert_eq!(wal.append_bytes(&payload(entry_id)).expect("appends"), entry_id);
                if entry_id % 3 == 0 {
                    wal.flush_and_sync().expect("syncs");
                    durable.store(entry_id, Ordering::SeqCst);
                }
                if entry_id % 400 == 0 {
                    cut.store(entry_id - 150, Ordering::SeqCst);
                    maintenance.truncate_to_recycle(entry_id - 150, 2).expect("truncates");
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        wal.close().expect("closes");
    }
}
