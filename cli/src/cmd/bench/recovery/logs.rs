//! Logs to be read: as many committers leave them, as one leaves them, long, short, in many segments.

use super::ENTRY_BYTES;
use crate::cmd::bench::{Failure, raw};
use durability::DurableDirectory;
use durability::backends::Backend;
use durability::storage::FlushPolicy;
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode, WalWriter};
use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much is written.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// So many entries, in segments of the default size.
    Entries(u64),
    /// So many sealed segments, which are small, and one that is being written.
    SealedSegments(u64),
}

/// Size of the small segments, in bytes.
const SMALL_SEGMENT_BYTES: u64 = 64 << 10;

/// A log, sealed; and how a kill behind its last commit would have left it.
pub struct Log {
    /// What it is.
    pub name: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Bytes of its segments.
    pub file_bytes: u64,
    directory: Arc<dyn DurableDirectory>,
    segments: Vec<PathBuf>,
    killed: PathBuf,
}

impl Log {
    /// Writes a log below `scratch`, `per_frame` entries with each commit. The commits are not synced, the last
    /// one excepted; it attests the rest.
    pub fn write(
        scratch: &Path,
        name: &'static str,
        extent: Extent,
        per_frame: u64,
    ) -> Result<Self, Failure> {
        let (root, killed) = (scratch.join(name), scratch.join(format!("{name}-killed")));
        std::fs::create_dir(&root)?;
        let directory = Backend::Auto.open(&root)?.directory;
        let mut options = WalOptions { flush_policy: FlushPolicy::Manual, ..WalOptions::default() };
        if let Extent::SealedSegments(_) = extent {
            options.segment_bytes_max = SMALL_SEGMENT_BYTES;
        }
        let mut wal = WalWriter::<(), dyn DurableDirectory>::open_with(Arc::clone(&directory), options)?;
        let entry = raw::entry(ENTRY_BYTES);
        let mut written = 0;
        while match extent {
            Extent::Entries(entries) => written + 1 < entries,
            Extent::SealedSegments(segments) => wal.current_segment_id() <= segments,
        } {
            wal.append_bytes(&entry)?;
            written += 1;
            if written % per_frame == 0 {
                wal.flush()?;
            }
        }
        wal.flush_and_sync()?;
        wal.append_bytes_durable(&entry)?;
        let entries = wal.last_entry_id();
        copy_log(&root, &killed)?;
        wal.close()?;
        let maintenance = WalMaintenance::<dyn DurableDirectory>::new(Arc::clone(&directory));
        let ranges = maintenance.segment_ranges_strict()?;
        let segments: Vec<PathBuf> = ranges.iter().map(|range| root.join(&range.path)).collect();
        let mut file_bytes = 0;
        for segment in &segments {
            file_bytes += std::fs::metadata(segment)?.len();
        }
        Ok(Self { name, entries, file_bytes, directory, segments, killed })
    }

    /// Its segments, in order.
    pub fn segments(&self) -> &[PathBuf] {
        &self.segments
    }

    /// Reads all of it as users do.
    pub fn replay(&self) -> Result<u64, Failure> {
        let reader = WalReader::<(), dyn DurableDirectory>::new(Arc::clone(&self.directory));
        let summary = reader.replay_bytes_from(1, WalReplayMode::Strict, |entry_id, payload| {
            black_box((entry_id, payload));
            Ok(())
        })?;
        Ok(summary.entries)
    }

    /// A copy, durable and in the page cache, of what a kill leaves; in a folder that does not exist.
    pub fn copy_as_killed(&self, to: &Path) -> Result<(), Failure> {
        copy_log(&self.killed, to)
    }
}

/// Copies a log without its lock file. Whoever opens it changes the newest segment at most; the others are
/// shared where the file system can.
fn copy_log(from: &Path, to: &Path) -> Result<(), Failure> {
    let (from, to) = (from.join("wal"), to.join("wal"));
    std::fs::create_dir_all(&to)?;
    let mut names: Vec<PathBuf> = Vec::new();
    for file in std::fs::read_dir(&from)? {
        let name = PathBuf::from(file?.file_name());
        if name.extension().is_some_and(|extension| extension == "log") {
            names.push(name);
        }
    }
    let number = |name: &Path| {
        let stem = name.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        stem.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(0)
    };
    let newest = names.iter().map(|name| number(name)).max();
    for name in &names {
        let (old, new) = (from.join(name), to.join(name));
        if Some(number(name)) == newest || std::fs::hard_link(&old, &new).is_err() {
            std::fs::copy(&old, &new)?;
            File::options().write(true).open(&new)?.sync_all()?;
        }
    }
    Ok(())
}
