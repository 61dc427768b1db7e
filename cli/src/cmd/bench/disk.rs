//! Where a benchmark works, and what it can learn about the disk there.

use super::Failure;
use crate::cmd::look::existing;
use serde::Serialize;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A flush that takes longer, in microseconds, makes a disk slow to flush.
pub const SLOW_FLUSH_US: f64 = 60.0;

/// A folder of our own below `directory` (by default, the current one), removed when dropped; or what is
/// wrong with the directory.
pub fn scratch(directory: Option<&Path>) -> Result<Result<TempDir, String>, Failure> {
    let parent = directory.unwrap_or(Path::new("."));
    if let Err(usage) = existing(parent) {
        return Ok(Err(usage.to_string()));
    }
    let in_memory = file_system(parent).filter(|name| is_memory(name));
    if let Some(name) = in_memory {
        if directory.is_none() {
            return Ok(Err(format!("the current directory is in memory ({name}); name one on a disk")));
        }
        eprintln!("warning: {} is in memory ({name}): nothing here is a disk's speed", parent.display());
    }
    Ok(Ok(tempfile::Builder::new().prefix("durability-bench-").tempdir_in(parent)?))
}

/// Whether files of this type are in memory.
fn is_memory(file_system: &str) -> bool {
    matches!(file_system, "tmpfs" | "ramfs")
}

/// What is known about the disk.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Disk {
    /// The file system's type.
    pub filesystem: Option<String>,
    /// The block device, as `/sys/block` names it.
    pub device: Option<String>,
    /// `write back` where the device has a volatile cache.
    pub write_cache: Option<String>,
    /// Whether one write can be made durable without a flush.
    pub fua: Option<bool>,
    /// `slow-flush` or `fast-flush`; `memory` where there is no disk.
    pub kind: Option<&'static str>,
    /// The median of one durable write, in microseconds.
    pub flush_us: Option<f64>,
    /// Which raw loop says so.
    pub flush_measured_by: Option<&'static str>,
    /// Above this a flush is slow, in microseconds.
    pub slow_flush_above_us: f64,
    /// What `auto` took: backend and strategy.
    pub auto: Option<String>,
    /// Where `disk_bytes_per_entry` comes from.
    pub disk_bytes_from: &'static str,
    /// Where `device_flushes_per_commit` and `device_bytes_per_commit` come from.
    pub device_counters_from: Option<String>,
}

impl Disk {
    /// What the system says about the disk of `folder`, and the device's counters.
    pub fn below(folder: &Path) -> (Self, Option<PathBuf>) {
        let device = block_device(folder);
        let read = |name: &str| {
            let text = std::fs::read_to_string(device.as_ref()?.join("queue").join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        let stat = device.as_ref().map(|device| device.join("stat")).filter(|stat| stat.is_file());
        let name =
            device.as_ref().and_then(|device| Some(device.file_name()?.to_string_lossy().into_owned()));
        let disk = Self {
            filesystem: file_system(folder),
            write_cache: read("write_cache"),
            fua: read("fua").map(|fua| fua == "1"),
            slow_flush_above_us: SLOW_FLUSH_US,
            disk_bytes_from: "growth of the files, or of their used part",
            device_counters_from: stat
                .as_ref()
                .and(name.as_ref())
                .map(|name| format!("/sys/block/{name}/stat (the whole machine's writes)")),
            device: name,
            ..Self::default()
        };
        (disk, stat)
    }

    /// Takes what a raw loop measured.
    pub fn judge(&mut self, flush_us: f64, measured_by: &'static str) {
        self.kind = Some(match &self.filesystem {
            Some(name) if is_memory(name) => "memory",
            _ if flush_us > SLOW_FLUSH_US => "slow-flush",
            _ => "fast-flush",
        });
        self.flush_us = Some(flush_us);
        self.flush_measured_by = Some(measured_by);
    }
}

/// The whole disk's folder in sysfs: partitions do not count flushes.
#[cfg(target_os = "linux")]
fn block_device(folder: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let id = std::fs::metadata(folder).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(id), nix::sys::stat::minor(id));
    let device = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if device.join("partition").is_file() { Some(device.parent()?.to_owned()) } else { Some(device) }
}

#[cfg(not(target_os = "linux"))]
fn block_device(_: &Path) -> Option<PathBuf> {
    None
}

/// The type of the file system that holds `folder`; `None` where the system does not tell.
fn file_system(folder: &Path) -> Option<String> {
    let folder = std::fs::canonicalize(folder).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    file_system_of(&mounts, &folder)
}

/// The type of the mount whose point is the longest beginning of `folder`; the last one where several are
/// mounted on each other.
fn file_system_of(mounts: &str, folder: &Path) -> Option<String> {
    let mut found: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let (Some(point), Some((_, behind))) = (line.split(' ').nth(4), line.split_once(" - ")) else {
            continue;
        };
        // Spaces in names are written in octal; other characters are not worth the words.
        let point = point.replace("\\040", " ");
        let depth = Path::new(&point).components().count();
        if folder.starts_with(&point) && found.is_none_or(|(best, _)| depth >= best) {
            found = Some((depth, behind.split(' ').next()?));
        }
    }
    Some(found?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        let mounts = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 25 0:27 / /dev/shm rw - tmpfs tmpfs rw\n\
            31 25 8:1 / /mnt/a\\040b rw shared:1 - xfs /dev/sda1 rw\n\
            32 25 8:2 / /mnt/a\\040b rw - btrfs /dev/sda2 rw\n";
        let of = |folder: &str| file_system_of(mounts, Path::new(folder));
        assert_eq!(of("/home").as_deref(), Some("ext4"));
        assert_eq!(of("/dev/shm/x").as_deref(), Some("tmpfs"));
        assert_eq!(of("/dev/shmx").as_deref(), Some("ext4"));
        assert_eq!(of("/mnt/a b/c").as_deref(), Some("btrfs"));
    }

    #[test]
    fn the_threshold_tells_the_two_kinds_of_disk_apart() {
        let mut disk = Disk::default();
        disk.judge(24.0, "x");
        assert_eq!(disk.kind, Some("fast-flush"));
        disk.judge(130.0, "x");
        assert_eq!(disk.kind, Some("slow-flush"));
        let mut memory = Disk { filesystem: Some("tmpfs".to_owned()), ..Disk::default() };
        memory.judge(1.0, "x");
        assert_eq!(memory.kind, Some("memory"));
    }
}
