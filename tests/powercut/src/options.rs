//! The command line.

use crate::disks::FileSystem;
use crate::workload::How;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;

/// How the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A lossy block device in user space.
    Device,
    /// The file system's shutdown ioctl (ext4, xfs).
    Shutdown,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Through what the logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    Std,
    IoUring,
}

/// What the disk does for a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flushes {
    /// What it says.
    Honest,
    /// Nothing, for the last few: violations must be found.
    Lie,
}

/// Cuts the power of real file systems, and checks what is left of the logs on them.
#[derive(Clone, Parser)]
#[command(
    version,
    after_help = "Needs root, FUSE, loop devices and mkfs of the file systems (scripts/powercut.sh installs those on \
    Debian); says SKIP otherwise. Works in a mount namespace of its own: nothing is left behind.\n\n\
    Exit codes: 0 nothing was lost, or nothing could be run; 1 something was lost, or a run failed or hung; 2 wrong \
    usage. With --flushes lie or --plants: 0 when it was noticed."
)]
pub struct Arguments {
    /// Crash points for each file system and kind.
    #[arg(long, default_value_t = 200)]
    pub points: u64,
    /// File systems.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs])]
    pub fs: Vec<FileSystem>,
    /// How the power is cut.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Device, Kind::Shutdown])]
    pub kind: Vec<Kind>,
    /// Through what the logs are written; io-uring is both of its strategies.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [BackendName::Std, BackendName::IoUring])]
    pub backend: Vec<BackendName>,
    /// Repeat the choices of an earlier campaign. Threads race, so the same seed gives the same operations
    /// and cuts by number, not the same interleaving: the image that --keep leaves is the exact evidence.
    #[arg(long)]
    pub seed: Option<u64>,
    /// A short campaign: 100 crash points each.
    #[arg(long)]
    pub quick: bool,
    /// Processes that work beside each other.
    #[arg(long, default_value_t = 2)]
    pub jobs: u64,
    /// One JSON object for each file system and kind, one on each line.
    #[arg(long)]
    pub json: bool,
    /// Where the disk of each violation is kept, as a sparse image.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// Control: a disk whose flushes lie.
    #[arg(long, value_enum, default_value_t = Flushes::Honest)]
    pub flushes: Flushes,
    /// Control: bugs planted in the library, each of which must be seen on one file system at least. Needs a
    /// build with RUSTFLAGS="--cfg durability_planted".
    #[arg(long, value_delimiter = ',')]
    pub plants: Vec<String>,
    /// Give up on a process that has reported nothing for so many seconds.
    #[arg(long, default_value_t = 120)]
    pub stall: u64,
    /// An existing directory to mount the scratch space over, in the namespace of this process.
    #[arg(long, default_value = "/mnt")]
    pub work: PathBuf,
    #[arg(long, hide = true)]
    pub worker: Option<u64>,
}

impl Arguments {
    pub fn points(&self) -> u64 {
        if self.quick { 100 } else { self.points }
    }

    /// The ways to commit that take turns.
    pub fn ways(&self) -> Vec<How> {
        let of = |backend: &BackendName| match backend {
            BackendName::Std => vec![How::Std],
            BackendName::IoUring => vec![How::Linked, How::Direct, How::Rule],
        };
        self.backend.iter().flat_map(of).collect()
    }

    /// Whether violations are what is looked for.
    pub fn is_control(&self) -> bool {
        self.flushes == Flushes::Lie || std::env::var_os("DURABILITY_PLANTED").is_some()
    }
}
