//! The one integration program; a module for each subject.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

mod attesting;
mod bounded;
mod conformance;
mod damage;
mod decoder;
mod failed_sync;
mod faults;
mod fixtures;
mod format_doc;
mod full_disk;
mod hostile;
mod kill;
mod live;
mod losses;
mod matrix;
mod migrating;
mod poison;
mod power_cut;
mod properties;
mod support;
mod tickets;
mod tidy;
mod unreadable;
