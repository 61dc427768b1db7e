//! Looking inside: what is in a log's folder or in one file, and whether it is sound.
//!
//! Read-only, without locks, beside live writers. Nothing is judged here: a log's verdict is what
//! [`WalCheck`](crate::walog::WalCheck) concludes, a record log's what its reader does, a checkpoint's its
//! reader's, and of another log it is by its identity. Reports are data; with the feature `serde` they can be serialized. Identities and salts are
//! written as hexadecimal text there, because they do not fit the numbers of other languages.

mod checkpoints;
mod file;
mod log;
mod verdict;

pub use checkpoints::{CheckpointReport, Checkpoints};
pub use file::{Dump, FileInspection, dump_file, inspect_file, kind_of, read_file};
pub use log::{
    Contents, FileReport, HeaderReport, LogInspection, OpeningReport, Role, SealReport, inspect_log,
    inspect_log_beside,
};
pub use verdict::Verdict;
