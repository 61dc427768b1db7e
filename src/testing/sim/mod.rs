//! A simulated disk, and every state in which a power cut may leave it.
//!
//! [`SimDisk`] is a [`DurableDirectory`](crate::DurableDirectory) in memory that keeps what is volatile and
//! what is durable apart: file data by sector, sizes, names. Run your code on it, marking what was
//! acknowledged with [`SimDisk::mark`]; then [`check_crashes`] stops the run after every operation, builds
//! the images that the rules allow (all of them where they are few, a seeded sample where they are many),
//! and hands each, as a disk of its own, to your recovery and your property. [`CrashLab`] does both for as many
//! seeded runs as you like; `examples/crash_lab.rs` finds a bug with it.
//!
//! The rules: a sector is written whole or not at all. A write is safe once a durable commit or a sync that
//! covers it has completed; until then each of its sectors survives or not. A size grows with the writes
//! that survive. A name is safe once its directory was synced; until then each change of it survives or
//! not. After a *failed* sync the pages count as clean: no later sync makes them durable.
//!
//! Knobs: the sector size and the number of images ([`SimOptions`]); commits in flight, which complete in any
//! order ([`SimDisk::keep_in_flight`]); a write or a sync that fails once ([`SimDisk::fail_write_after`],
//! [`SimDisk::fail_sync_after`]); a full disk ([`SimDisk::limit_capacity`]); short writes
//! ([`SimDisk::shorten_writes`]); a slow disk ([`SimDisk::slow_down`]); one that lies about syncs
//! ([`SimDisk::lie_about_syncs`]). Other faults come from [`faults`](super::faults), over a simulated disk.
//!
//! The same seed gives the same run. A failure is shrunk to the fewest survivors that still fail; it names the
//! operation and the seeds, and shows the trace with what survived of each operation.
//!
//! ```
//! use durability::testing::sim::{SimDisk, SimOptions, check_crashes};
//! use durability::walog::{WalReader, WalReplayMode, WalWriter};
//! use std::sync::Arc;
//!
//! let disk = SimDisk::new(1);
//! let mut wal = WalWriter::<(), SimDisk>::open(Arc::new(disk.clone())).unwrap();
//! for _ in 0..3 {
//!     let id = wal.append_bytes_durable(b"entry").unwrap();
//!     disk.mark(id);
//! }
//! drop(wal);
//! let report = check_crashes(&disk, &SimOptions::default(), |image, marks| {
//!     let acknowledged = marks.last().copied().unwrap_or(0);
//!     let mut last = 0;
//!     match WalReader::<(), SimDisk>::new(Arc::new(image.clone())).replay_bytes(WalReplayMode::BestEffortTail) {
//!         Ok(records) => last = records.len() as u64,
//!         Err(error) if error.is_not_found() => {}
//!         Err(error) => return Err(error.to_string()),
//!     }
//!     if last >= acknowledged { Ok(()) } else { Err(format!("{last} of {acknowledged} entries are left")) }
//! });
//! assert!(report.unwrap().images > 30);
//! ```

mod crash;
mod disk;
mod file;
mod lab;
mod space;
mod state;

#[cfg(test)]
mod tests;

pub use crash::{SimFailure, SimOptions, SimReport, check_crashes};
pub use disk::SimDisk;
pub use lab::CrashLab;
