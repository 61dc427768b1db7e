//! The program itself: a handful of power cuts of every kind, and a lie that must be found out. Skips where
//! the program does.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test of a program, not the library"
)]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Output, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_durability-powercut")).args(arguments).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output, text)
}

#[test]
fn a_few_power_cuts_of_every_kind_lose_nothing_or_are_skipped_loudly() {
    let (output, text) = run(&["--points", "6", "--seed", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("6 crash points") || text.contains("SKIP: "), "neither run nor skipped: {text}");
}

#[test]
fn a_disk_whose_flushes_lie_is_found_out() {
    let (output, text) =
        run(&["--points", "300", "--seed", "1", "--kind", "device", "--fs", "ext4", "--flushes", "lie"]);
    assert!(output.status.success(), "the property would not notice a lie: {text}");
}
