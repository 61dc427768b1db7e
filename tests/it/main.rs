//! The one integration program; a module for each subject.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

mod damage;
mod decoder;
mod fixtures;
mod hostile;
mod kill;
mod power_cut;
mod properties;
mod support;
mod tidy;
