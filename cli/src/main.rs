//! The command-line tool.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a program, not the library")]
fn main() {}
