//! The seam: what a backend must offer, and what is built from that alone.
//!
//! * [`Directory`]: names and bytes. Ten required methods carry a log that is not durable; everything a
//!   fast backend adds has a default.
//! * [`DurableDirectory`]: the stable-storage capability. A real trait that each backend implements by
//!   its own means; there is no blanket implementation.
//! * [`CommitFile`]: a file written through commits, each an owned buffer, an offset and an effect.
//!
//! Nothing in here names a backend or an operating system. All paths are relative to the directory's
//! root, `/`-separated, and checked by [`path::check`] before any file is touched.

mod buffer;
mod commit;
mod directory;
mod environment;
mod latch;
pub mod path;
mod process;
mod read;
mod sequential;
mod stable;
mod strategy;
mod sync;
mod temporary;

pub use crate::backends::memory::MemoryDirectory;
pub use crate::backends::std_fs::FsDirectory;
pub use buffer::CommitBuffer;
pub(crate) use commit::reserve_at_least;
pub use commit::{Commit, CommitFile, CommitLimits, Completion, Effect, FileOptions, Submitted, Wait};
pub use directory::{Directory, DirectoryLock, DurableDirectory, FlushPolicy};
pub use environment::{Environment, SeededEnvironment, SystemEnvironment};
pub use latch::Latch;
pub(crate) use process::Home;
pub(crate) use read::is_zero_from;
pub use read::{ReadAt, read_exact_at};
pub use sequential::SequentialFile;
pub use stable::StableStorage;
pub use strategy::{ActiveStrategy, Calibration, CommitStrategy, MeasuredStrategy, StrategyReason};
pub use sync::{open_commit_file, sync_file, sync_parent_dir, sync_parent_of_path};

pub use temporary::{is_temporary_name, sweep_temporaries, temporary_path};
