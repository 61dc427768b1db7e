//! Raw loops on a ring. All of the tool's `unsafe` is here. Where there are no rings, [`Ring::new`] says so.

#[cfg(all(
    feature = "io-uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
pub use here::Ring;
#[cfg(not(all(
    feature = "io-uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
)))]
pub use nowhere::Ring;

#[cfg(all(
    feature = "io-uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
))]
mod here {
    use crate::cmd::bench::Failure;
    use crate::cmd::bench::drive::Window;
    use crate::cmd::bench::line::{Latencies, Sample};
    use durability::storage::CommitBuffer;
    use io_uring::squeue::{Entry, Flags};
    use io_uring::types::{Fd, FsyncFlags};
    use io_uring::{IoUring, opcode};
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    /// What a sync is called in completions; writes are called by their slot.
    const SYNC: u64 = u64::MAX;

    /// A ring that writes one buffer to many places of one file.
    ///
    /// Invariant: file and buffer stay as they are until nothing is in flight; dropping waits for that.
    pub struct Ring {
        uring: IoUring,
        file: File,
        buffer: CommitBuffer,
        depth: usize,
        in_flight: usize,
        write_flags: i32,
    }

    impl Ring {
        /// A ring that keeps up to `depth` writes of `buffer` in flight.
        pub fn new(file: File, buffer: CommitBuffer, depth: usize) -> io::Result<Self> {
            let entries = u32::try_from(depth * 2).map_err(|_| io::ErrorKind::InvalidInput)?;
            let uring = IoUring::new(entries.next_power_of_two())?;
            Ok(Self { uring, file, buffer, depth, in_flight: 0, write_flags: nix::libc::RWF_DSYNC })
        }

        /// From now on nothing asks for durability.
        pub fn without_sync(mut self) -> Self {
            self.write_flags = 0;
            self
        }

        /// One write and one fdatasync behind it, with one entry into the kernel.
        pub fn write_linked_to_sync(&mut self, offset: u64) -> io::Result<()> {
            let fd = Fd(self.file.as_raw_fd());
            let write = self.write(fd, offset).build().flags(Flags::IO_LINK);
            let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build().user_data(SYNC);
            self.queue(&[write, sync])?;
            for _ in 0..2 {
                self.finish_one(2)?;
            }
            Ok(())
        }

        /// Keeps `depth` writes with `RWF_DSYNC` in flight, each where `place` says.
        pub fn keep_in_flight(
            &mut self,
            window: &Window<'_>,
            mut place: impl FnMut() -> u64,
        ) -> Result<Sample, Failure> {
            self.start(0, place())?;
            self.finish_one(1)?;
            let before = window.meter.read();
            let began = Instant::now();
            let mut starts = vec![began; self.depth];
            let mut latencies = Latencies::with_room();
            for slot in 0..self.depth {
                self.start(slot as u64, place())?;
            }
            while self.in_flight > 0 {
                let slot = self.finish_one(1)?;
                let now = Instant::now();
                let start = starts.get_mut(slot as usize).ok_or("a completion of nothing")?;
                latencies.push(now - *start);
                *start = now;
                if now - began < window.time {
                    self.start(slot, place())?;
                }
            }
            let elapsed = began.elapsed();
            Ok(Sample::new(latencies, elapsed, window.meter.since(&before)))
        }

        fn start(&mut self, slot: u64, offset: u64) -> io::Result<()> {
            let write = self.write(Fd(self.file.as_raw_fd()), offset);
            let write = write.rw_flags(self.write_flags as _).build().user_data(slot);
            self.queue(&[write])
        }

        fn write(&self, fd: Fd, offset: u64) -> opcode::Write {
            opcode::Write::new(fd, self.buffer.as_ptr(), self.buffer.len() as u32).offset(offset)
        }

        /// Publishes entries that name this ring's file and buffer.
        fn queue(&mut self, entries: &[Entry]) -> io::Result<()> {
            // SAFETY: every entry is made above from `self.buffer`, which is never changed, and `self.file`;
            // both live until nothing is in flight, which `drop` waits for, or for ever where it cannot.
            unsafe { self.uring.submission().push_multiple(entries) }.map_err(io::Error::other)?;
            self.in_flight += entries.len();
            Ok(())
        }

        /// The next completion, which must be a success; enters the kernel for `want` where none is there.
        fn finish_one(&mut self, want: usize) -> io::Result<u64> {
            let completion = loop {
                if let Some(completion) = self.uring.completion().next() {
                    break completion;
                }
                match self.uring.submit_and_wait(want) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            };
            self.in_flight -= 1;
            let expected = if completion.user_data() == SYNC { 0 } else { self.buffer.len() as i32 };
            match completion.result() {
                result if result == expected => Ok(completion.user_data()),
                errno @ ..0 => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
                _ => Err(io::Error::new(io::ErrorKind::WriteZero, "a short write")),
            }
        }
    }

    impl Drop for Ring {
        fn drop(&mut self) {
            while self.in_flight > 0 {
                let before = self.in_flight;
                if self.finish_one(1).is_err() && self.in_flight == before {
                    // The kernel may go on reading: the buffer is left to it.
                    std::mem::forget(std::mem::take(&mut self.buffer));
                    return;
                }
            }
        }
    }
}

#[cfg(not(all(
    feature = "io-uring",
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )
)))]
mod nowhere {
    use crate::cmd::bench::Failure;
    use crate::cmd::bench::drive::Window;
    use crate::cmd::bench::line::Sample;
    use durability::storage::CommitBuffer;
    use std::convert::Infallible;
    use std::fs::File;
    use std::io;

    /// No value of this can be made.
    pub struct Ring(Infallible);

    impl Ring {
        /// Says that there are no rings.
        pub fn new(_: File, _: CommitBuffer, _: usize) -> io::Result<Self> {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this build has no io_uring"))
        }

        /// Cannot be called.
        pub fn without_sync(self) -> Self {
            match self.0 {}
        }

        /// Cannot be called.
        pub fn write_linked_to_sync(&mut self, _: u64) -> io::Result<()> {
            match self.0 {}
        }

        /// Cannot be called.
        pub fn keep_in_flight(&mut self, _: &Window<'_>, _: impl FnMut() -> u64) -> Result<Sample, Failure> {
            match self.0 {}
        }
    }
}
