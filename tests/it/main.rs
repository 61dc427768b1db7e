//! The one integration program; a module for each subject.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

mod attesting;
mod bad_input;
mod bounded;
mod combined;
mod conformance;
mod counterexamples;
mod crash_knobs;
mod damage;
mod decoder;
mod descriptors;
mod failed_sync;
mod fault_kill;
mod faults;
mod fixtures;
mod flushing;
mod follow;
mod fork;
mod format_doc;
mod full_disk;
mod hostile;
mod kill;
mod live;
mod losses;
mod matrix;
mod migrating;
mod misuse;
mod mixed;
mod observers;
mod poison;
mod power_cut;
mod properties;
mod reader;
mod repair;
mod room;
mod rotation;
mod said;
mod short_of_space;
mod strategy;
mod support;
mod telemetry;
mod tickets;
mod tidy;
mod told;
mod unreadable;
