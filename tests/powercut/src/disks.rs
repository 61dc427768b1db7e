//! File systems on loop devices: making, mounting, taking away, cutting off.

use crate::workload::{self, How};
use durability::PersistenceError;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 96 << 20,
            Self::Xfs => 320 << 20,
            Self::Btrfs => 192 << 20,
        }
    }

    /// What mkfs is told: no lazy initialisation and no discards, so that nothing but the run writes.
    fn mkfs_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &[
                "-q",
                "-F",
                "-b",
                "4096",
                "-J",
                "size=4",
                "-N",
                "512",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            ],
            Self::Xfs => &["-q", "-f", "-K", "-d", "agcount=2"],
            Self::Btrfs => &["-q", "-f", "-K", "-m", "single", "-d", "single"],
        }
    }

    fn mount_options(self) -> &'static str {
        match self {
            Self::Ext4 => "nodiscard",
            Self::Xfs => "nouuid,nodiscard",
            Self::Btrfs => "nodiscard",
        }
    }

    /// What direct I/O has to be aligned to here.
    pub fn direct_alignment(self) -> u32 {
        match self {
            Self::Btrfs => 4096,
            Self::Ext4 | Self::Xfs => 512,
        }
    }

    /// Whether power can be cut by an ioctl.
    pub fn has_shutdown(self) -> bool {
        self != Self::Btrfs
    }

    /// Why it cannot be used here.
    pub fn missing(self) -> Option<String> {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !known.lines().any(|line| line.trim() == self.name()) {
            return Some(format!("this kernel has no {}", self.name()));
        }
        let mkfs = format!("mkfs.{}", self.name());
        match Command::new(&mkfs).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(_) => None,
            Err(error) => Some(format!("{mkfs}: {error}")),
        }
    }

    /// Makes a file system of a new file.
    pub fn make(self, path: &Path) -> io::Result<()> {
        File::create(path)?.set_len(self.bytes())?;
        let mkfs = Command::new(format!("mkfs.{}", self.name()))
            .args(self.mkfs_arguments())
            .arg(path)
            .stdin(Stdio::null())
            .output()?;
        if mkfs.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("mkfs.{}: {}", self.name(), String::from_utf8_lossy(&mkfs.stderr))))
    }

    /// Which of `ways` a log can be committed in here, and why the others cannot.
    pub fn possible(self, work: &Path, ways: Vec<How>) -> io::Result<(Vec<How>, Vec<String>)> {
        let path = work.join("probe");
        self.make(&path)?;
        let mount = self.mount(&path, &work.join("probed"), false)?;
        let (mut possible, mut refused) = (Vec::new(), Vec::new());
        for way in ways {
            match workload::probe(&mount.at, way, self.direct_alignment()) {
                Ok(()) => possible.push(way),
                Err(error @ PersistenceError::NotSupported { .. }) => {
                    refused.push(format!("{} on {}: {error}", way.name(), self.name()));
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        mount.unmount()?;
        std::fs::remove_file(path)?;
        Ok((possible, refused))
    }

    /// Mounts the file `image` over a loop device.
    pub fn mount(self, image: &Path, at: &Path, direct: bool) -> io::Result<Mount> {
        std::fs::create_dir_all(at)?;
        let (device, open) = attach(image, direct)?;
        mount(Some(&device), at, Some(self.name()), MsFlags::empty(), Some(self.mount_options()))?;
        // From here on the mount alone keeps the device; it goes when the mount goes.
        drop(open);
        Ok(Mount { at: at.to_owned(), mounted: true })
    }
}

/// A mounted file system; unmounted when dropped.
pub struct Mount {
    pub at: PathBuf,
    mounted: bool,
}

impl Mount {
    pub fn unmount(mut self) -> io::Result<()> {
        self.mounted = false;
        // A ring lets go of its files a moment after its owner is gone, and nothing tells when.
        for _ in 0..2000 {
            match umount2(&self.at, MntFlags::empty()) {
                Err(Errno::EBUSY) => std::thread::sleep(Duration::from_millis(5)),
                outcome => return Ok(outcome?),
            }
        }
        self.mounted = true;
        Err(io::Error::other(format!("{} is still in use", self.at.display())))
    }

    /// Cuts the power: from now on nothing is written, not even the file system's log.
    pub fn cut(&self) -> io::Result<()> {
        let root = File::open(&self.at)?;
        let no_log_flush = 2;
        // SAFETY: the descriptor is open for the call, and the kernel only reads the one `u32`.
        unsafe { sys::go_down(root.as_raw_fd(), &no_log_flush) }?;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        }
    }
}

/// Asks for writeback of pages to begin, without waiting and without a flush of the device.
pub fn start_writeback(file: &File, offset: u64, bytes: u64) {
    // SAFETY: no memory is passed; the descriptor is open for the call.
    unsafe {
        nix::libc::sync_file_range(
            file.as_raw_fd(),
            offset as i64,
            bytes as i64,
            nix::libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// A loop device over `image`. It ends when nobody has it open any more.
fn attach(image: &Path, direct: bool) -> io::Result<(PathBuf, File)> {
    let direct_flag = if direct { nix::libc::O_DIRECT } else { 0 };
    let backing = OpenOptions::new().read(true).write(true).custom_flags(direct_flag).open(image)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let flags = sys::LO_FLAGS_AUTOCLEAR | if direct { sys::LO_FLAGS_DIRECT_IO } else { 0 };
    for _ in 0..100 {
        // SAFETY: takes no memory.
        let number = unsafe { sys::loop_get_free(control.as_raw_fd()) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        let config = sys::LoopConfig {
            fd: backing.as_raw_fd() as u32,
            block_size: 512,
            info: sys::LoopInfo64 { lo_flags: flags, ..sys::LoopInfo64::default() },
            reserved: [0; 8],
        };
        // SAFETY: `config` has the layout of the kernel's `struct loop_config` and outlives the call.
        match unsafe { sys::loop_configure(device.as_raw_fd(), &config) } {
            Ok(_) => {}
            // Somebody else was faster.
            Err(Errno::EBUSY) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut info = sys::LoopInfo64::default();
        // SAFETY: `info` has the layout of the kernel's `struct loop_info64`, which it fills.
        unsafe { sys::loop_get_status(device.as_raw_fd(), &mut info) }?;
        if info.lo_flags & flags != flags {
            return Err(io::Error::other(format!(
                "{} has the flags {:#x} instead of {flags:#x}",
                path.display(),
                info.lo_flags
            )));
        }
        return Ok((path, device));
    }
    Err(io::Error::other("no loop device is free"))
}

/// What the kernel's headers say.
mod sys {
    pub const LO_FLAGS_AUTOCLEAR: u32 = 4;
    pub const LO_FLAGS_DIRECT_IO: u32 = 16;

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct LoopInfo64 {
        pub lo_device: u64,
        pub lo_inode: u64,
        pub lo_rdevice: u64,
        pub lo_offset: u64,
        pub lo_sizelimit: u64,
        pub lo_number: u32,
        pub lo_encrypt_type: u32,
        pub lo_encrypt_key_size: u32,
        pub lo_flags: u32,
        pub lo_file_name: [u8; 64],
        pub lo_crypt_name: [u8; 64],
        pub lo_encrypt_key: [u8; 32],
        pub lo_init: [u64; 2],
    }

    impl Default for LoopInfo64 {
        fn default() -> Self {
            Self {
                lo_device: 0,
                lo_inode: 0,
                lo_rdevice: 0,
                lo_offset: 0,
                lo_sizelimit: 0,
                lo_number: 0,
                lo_encrypt_type: 0,
                lo_encrypt_key_size: 0,
                lo_flags: 0,
                lo_file_name: [0; 64],
                lo_crypt_name: [0; 64],
                lo_encrypt_key: [0; 32],
                lo_init: [0; 2],
            }
        }
    }

    #[repr(C)]
    pub struct LoopConfig {
        pub fd: u32,
        pub block_size: u32,
        pub info: LoopInfo64,
        pub reserved: [u64; 8],
    }

    const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

    nix::ioctl_none_bad!(loop_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);
    nix::ioctl_read_bad!(loop_get_status, 0x4c05, LoopInfo64);
    // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are one number.
    nix::ioctl_write_ptr_bad!(go_down, nix::request_code_read!(b'X', 125, size_of::<u32>()), u32);
}
