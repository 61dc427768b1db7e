//! `durability-powercut`: cuts the power of real file systems and checks what is left of the logs on them.
//!
//! Two kinds. `device`: a lossy block device in user space, under ext4, xfs and btrfs; every crash point of a
//! run can be rebuilt with any legal set of un-flushed sectors. `shutdown`: the file system's own ioctl that
//! stops it without flushing its log (ext4, xfs), after some pages were written back.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a program, not the library")]

#[cfg(target_os = "linux")]
mod check;
#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod disks;
#[cfg(target_os = "linux")]
mod fuse;
#[cfg(target_os = "linux")]
mod guard;
#[cfg(target_os = "linux")]
mod image;
#[cfg(target_os = "linux")]
mod log;
#[cfg(target_os = "linux")]
mod model;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod random;
#[cfg(target_os = "linux")]
mod shutdown;
#[cfg(target_os = "linux")]
mod worker;
#[cfg(target_os = "linux")]
mod workload;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use clap::Parser;
    let arguments = options::Arguments::parse();
    match arguments.worker {
        Some(_) => worker::main(&arguments),
        None => guard::main(&arguments),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    println!("SKIP: power cuts: FUSE, loop devices and these file systems are Linux's");
    ExitCode::SUCCESS
}
