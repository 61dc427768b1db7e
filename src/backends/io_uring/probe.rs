//! What the kernel supports.
//!
//! Lives here: finding out, before anything rests on it, whether rings can be had, and saying why not.

use super::ring::Ring;
use crate::backends::BackendReason;
use io_uring::{Probe, opcode};
use nix::errno::Errno;
use std::io;

/// Where the kernel says whether rings are switched off.
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

/// Requests that commits are made of.
const NEEDED: [(&str, u8); 4] = [
    ("write", opcode::Write::CODE),
    ("fsync", opcode::Fsync::CODE),
    ("statx", opcode::Statx::CODE),
    ("nop", opcode::Nop::CODE),
];

/// Whether commits can go through a ring here and now: sets one up, asks what it can do, and sends one
/// request around.
///
/// The answer holds for the calling thread: filters of system calls can differ between threads.
pub fn probe() -> Result<(), BackendReason> {
    let mut ring = Ring::new(1).map_err(|error| refused("io_uring_setup", &error))?;
    let missing = missing(&ring).map_err(|error| refused("io_uring_register", &error))?;
    if !missing.is_empty() {
        return Err(BackendReason::MissingOperations { operations: missing });
    }
    ring.check_round_trip().map_err(|error| refused("io_uring_enter", &error))
}

fn missing(ring: &Ring) -> io::Result<Vec<&'static str>> {
    let uring = ring.uring();
    let mut known = Probe::new();
    uring.submitter().register_probe(&mut known)?;
    let mut missing: Vec<_> =
        NEEDED.iter().filter(|(_, code)| !known.is_supported(*code)).map(|(name, _)| *name).collect();
    if !uring.params().is_feature_ext_arg() {
        missing.push("waiting with a timeout");
    }
    if !uring.params().is_feature_nodrop() {
        missing.push("keeping every completion");
    }
    if !uring.params().is_feature_submit_stable() {
        missing.push("stable submission");
    }
    Ok(missing)
}

fn refused(call: &'static str, error: &io::Error) -> BackendReason {
    let errno = error.raw_os_error().unwrap_or(0);
    let why = match Errno::from_raw(errno) {
        Errno::EPERM | Errno::EACCES => match switched_off() {
            Some(value) => format!("kernel.io_uring_disabled is {value}"),
            None => "a seccomp filter or a security module forbids it".to_owned(),
        },
        Errno::ENOSYS => "this kernel has no io_uring, or a seccomp filter hides it".to_owned(),
        Errno::ENOMEM => "not enough memory, or the limit of locked memory is too low".to_owned(),
        Errno::EMFILE | Errno::ENFILE => "too many open files".to_owned(),
        _ => error.to_string(),
    };
    BackendReason::KernelRefused { call, errno, why }
}

/// The value of the switch, where it is not "on for everybody".
#[allow(clippy::disallowed_methods, reason = "not a file of the log")]
fn switched_off() -> Option<String> {
    let value = std::fs::read_to_string(SWITCH).ok()?;
    let value = value.trim();
    (value != "0").then(|| value.to_owned())
}
