//! The commands that look inside (`inspect`, `verify`, `dump`, `repair`), as their users run them.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

mod commands;
mod dump;
mod inspect;
mod repair;
mod support;
mod verify;
