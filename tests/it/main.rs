//! The one integration program; a module for each subject.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

mod bad_input;
mod conformance;
mod counterexamples;
mod damage;
mod decoder;
mod descriptors;
mod faults;
mod fixtures;
mod fork;
mod format_doc;
mod full_disk;
mod hostile;
mod kill;
mod live;
mod migrating;
mod misuse;
mod poison;
mod power_cut;
mod properties;
mod reader;
mod strategy;
mod support;
mod telemetry;
mod tickets;
mod tidy;
mod unreadable;
