//! Looking inside: what is in a log's folder or in one file, and whether it is sound.
//!
//! Read-only, without locks, beside live writers. Nothing is judged here: a log's verdict is what
//! [`WalCheck`](crate::walog::WalCheck) concludes, a record log's what its reader does, a checkpoint's its
//! reader's. Reports are data; with the feature `serde` they can be serialized. Identities and salts are
//! written as hexadecimal text there, because they do not fit the numbers of other languages.

mod file;
mod log;
mod verdict;

pub use file::{Dump, FileInspection, dump_file, inspect_file, kind_of, read_file};
pub use log::{
    Contents, FileReport, HeaderReport, LogInspection, OpeningReport, Role, SealReport, inspect_log,
};
pub use verdict::Verdict;

/// Numbers that are names, as text.
#[cfg(feature = "serde")]
mod as_hex {
    use serde::Serializer;

    pub(super) fn salt<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn identity<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:032x}"))
    }
}
