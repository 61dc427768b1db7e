//! The one integration program; a module for each subject.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

mod conformance;
mod crash_knobs;
mod damage;
mod decoder;
mod fault_kill;
mod faults;
mod fixtures;
mod format_doc;
mod full_disk;
mod hostile;
mod kill;
mod live;
mod migrating;
mod poison;
mod power_cut;
mod properties;
mod support;
mod tickets;
mod tidy;
mod unreadable;
