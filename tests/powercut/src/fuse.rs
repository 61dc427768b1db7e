//! A file system of one file, spoken straight to `/dev/fuse`: the disk whose power is cut.
//!
//! One thread serves it. It logs what arrives and what it answers ([`Log`]) and holds answers back, so that
//! a flush finds writes in flight which it does not cover.
//!
//! Invariant: the thread has a table of open files of its own, so that the kernel ends the connection when
//! the thread ends, however that happens. Were the table shared, a killed process would hang for ever: its
//! other threads wait for answers, and hold open what would have to be closed to end their waiting.

use crate::image::Image;
use crate::log::Log;
use crate::random::Random;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::time::TimeSpec;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How answers are held back.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    /// Of a hundred writes and flushes so many.
    pub percent: u64,
    /// Until at most so many later requests have arrived ...
    pub arrivals_max: u64,
    /// ... or nothing has for so long.
    pub idle_us: u64,
}

/// The disk now, and how it came to be.
#[derive(Default)]
pub struct State {
    pub image: Image,
    pub log: Log,
}

/// A disk in user space, mounted as a file.
pub struct Disk {
    pub state: Arc<Mutex<State>>,
    pub path: PathBuf,
    /// Under which fusectl knows it.
    pub connection: u64,
    server: Option<JoinHandle<io::Result<()>>>,
}

pub fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Disk {
    /// Mounts a disk over the file `path`.
    pub fn mount(path: &Path, image: Image, holding: Holding, random: Random) -> io::Result<Self> {
        File::create(path)?;
        let state = Arc::new(Mutex::new(State { image, log: Log::default() }));
        let (ready, mounted) = mpsc::channel();
        let (shared, place) = (Arc::clone(&state), path.to_owned());
        let server = std::thread::Builder::new().name("disk".into()).spawn(move || {
            let device = match connect(&place) {
                Ok(device) => device,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            let _ = ready.send(Ok(()));
            Server { device, state: shared, holding, random, held: Vec::new() }.serve()
        })?;
        mounted.recv().map_err(io::Error::other)??;
        let mut disk = Self { state, path: path.to_owned(), connection: 0, server: Some(server) };
        match std::fs::metadata(&disk.path) {
            Ok(metadata) => disk.connection = nix::libc::minor(metadata.dev()).into(),
            // What ended the server says more.
            Err(error) => return Err(disk.detach().err().unwrap_or(error)),
        }
        Ok(disk)
    }

    /// Takes the disk away; returns what it went through.
    pub fn unmount(mut self) -> io::Result<State> {
        self.detach()?;
        Ok(std::mem::take(&mut *locked(&self.state)))
    }

    fn detach(&mut self) -> io::Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        // The server ends when the last user is gone; a loop device may take a moment.
        umount2(&self.path, MntFlags::MNT_DETACH)?;
        server.join().map_err(|_| io::Error::other("the disk's server panicked"))?
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.detach();
    }
}

fn connect(path: &Path) -> io::Result<File> {
    unshare(CloneFlags::CLONE_FILES)?;
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=100600,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("powercut"), path, Some("fuse"), flags, Some(options.as_str()))?;
    Ok(device)
}

mod op {
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
}

const IN_HEADER: usize = 40;
const WRITE_BYTES_MAX: usize = 1 << 20;

struct Server {
    device: File,
    state: Arc<Mutex<State>>,
    holding: Holding,
    random: Random,
    held: Vec<Held>,
}

/// An answer that is held back.
struct Held {
    unique: u64,
    what: What,
    arrivals_left: u64,
}

#[derive(Clone, Copy)]
enum What {
    Write { index: usize, bytes: u32 },
    Flush(usize),
}

impl Server {
    fn serve(&mut self) -> io::Result<()> {
        let mut request = vec![0; WRITE_BYTES_MAX + 4096];
        loop {
            // All that is there is taken before anything is answered: a flush that was sent before an answer
            // must not be logged behind it.
            match self.device.read(&mut request) {
                Ok(bytes) => {
                    self.take(&request[..bytes])?;
                    continue;
                }
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    // Unmounted; the second when that happens while a last request is being read.
                    Errno::ENODEV | Errno::ECONNABORTED => return Ok(()),
                    Errno::EINTR | Errno::ENOENT => continue,
                    Errno::EAGAIN => {}
                    _ => return Err(error),
                },
            }
            if self.answer_due()? {
                continue;
            }
            let idle = Duration::from_micros(self.holding.idle_us);
            let wait = if self.held.is_empty() { None } else { Some(TimeSpec::from(idle)) };
            let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
            let ready = match ppoll(&mut fds, wait, None) {
                Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            if ready == 0 {
                let chosen = self.random.below(self.held.len() as u64) as usize;
                self.held[chosen].arrivals_left = 0;
            }
        }
    }

    /// Answers one of those whose time has come, if there is one.
    fn answer_due(&mut self) -> io::Result<bool> {
        let due: Vec<usize> =
            (0..self.held.len()).filter(|index| self.held[*index].arrivals_left == 0).collect();
        if due.is_empty() {
            return Ok(false);
        }
        let held = self.held.swap_remove(self.random.pick(&due));
        match held.what {
            What::Write { index, bytes } => {
                locked(&self.state).log.write_answered(index);
                self.answer(held.unique, &[&bytes.to_ne_bytes(), &[0; 4]])?;
            }
            What::Flush(index) => {
                locked(&self.state).log.flush_answered(index);
                self.answer(held.unique, &[])?;
            }
        }
        Ok(true)
    }

    fn take(&mut self, request: &[u8]) -> io::Result<()> {
        let (opcode, unique) = (u32_at(request, 4), u64_at(request, 8));
        let body = &request[IN_HEADER..];
        match opcode {
            op::INIT => self.init(unique, body),
            op::GETATTR | op::SETATTR => {
                let bytes = locked(&self.state).image.bytes;
                self.answer(unique, &[&attributes(bytes)])
            }
            // FOPEN_DIRECT_IO: nothing is kept in the page cache of the disk itself.
            op::OPEN => self.answer(unique, &[&[0; 8], &1u32.to_ne_bytes(), &[0; 4]]),
            op::READ => {
                let mut out = vec![0; u32_at(body, 16) as usize];
                let state = locked(&self.state);
                let offset = u64_at(body, 8);
                out.truncate(state.image.bytes.saturating_sub(offset).min(out.len() as u64) as usize);
                state.image.read(offset, &mut out);
                drop(state);
                self.answer(unique, &[&out])
            }
            op::WRITE => {
                let (offset, bytes) = (u64_at(body, 8), u32_at(body, 16));
                let data = &body[40..40 + bytes as usize];
                let mut state = locked(&self.state);
                state.image.write(offset, data);
                let index = state.log.write_arrived(offset, data);
                drop(state);
                self.hold(unique, What::Write { index, bytes });
                Ok(())
            }
            op::FSYNC => {
                let index = locked(&self.state).log.flush_arrived();
                self.hold(unique, What::Flush(index));
                Ok(())
            }
            op::FLUSH | op::RELEASE | op::DESTROY => self.answer(unique, &[]),
            op::FORGET | op::BATCH_FORGET => Ok(()),
            op::INTERRUPT => self.refuse(unique, Errno::ENOSYS),
            _ => self.refuse(unique, Errno::ENOSYS),
        }
    }

    fn hold(&mut self, unique: u64, what: What) {
        for held in &mut self.held {
            held.arrivals_left = held.arrivals_left.saturating_sub(1);
        }
        let arrivals_left = match self.random.below(100) < self.holding.percent {
            true => 1 + self.random.below(self.holding.arrivals_max),
            false => 0,
        };
        self.held.push(Held { unique, what, arrivals_left });
    }

    fn init(&mut self, unique: u64, body: &[u8]) -> io::Result<()> {
        // Big writes, asynchronous direct I/O, more than 32 pages.
        let flags: u32 = 1 << 5 | 1 << 15 | 1 << 22;
        let mut out = [0; 64];
        out[..4].copy_from_slice(&7u32.to_ne_bytes());
        out[4..8].copy_from_slice(&31u32.to_ne_bytes());
        out[8..12].copy_from_slice(&body[8..12]);
        out[12..16].copy_from_slice(&(flags & u32_at(body, 12)).to_ne_bytes());
        out[16..18].copy_from_slice(&256u16.to_ne_bytes());
        out[18..20].copy_from_slice(&256u16.to_ne_bytes());
        out[20..24].copy_from_slice(&(WRITE_BYTES_MAX as u32).to_ne_bytes());
        out[24..28].copy_from_slice(&1u32.to_ne_bytes());
        out[28..30].copy_from_slice(&256u16.to_ne_bytes());
        self.answer(unique, &[&out])
    }

    fn answer(&mut self, unique: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.reply(unique, 0, &parts.concat())
    }

    fn refuse(&mut self, unique: u64, errno: Errno) -> io::Result<()> {
        self.reply(unique, -(errno as i32), &[])
    }

    fn reply(&mut self, unique: u64, error: i32, body: &[u8]) -> io::Result<()> {
        let mut out = Vec::with_capacity(16 + body.len());
        out.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        out.extend_from_slice(&error.to_ne_bytes());
        out.extend_from_slice(&unique.to_ne_bytes());
        out.extend_from_slice(body);
        match self.device.write(&out) {
            Ok(_) => Ok(()),
            // The request is gone: interrupted, or the connection is.
            Err(error)
                if [Some(Errno::ENOENT as i32), Some(Errno::ENODEV as i32)]
                    .contains(&error.raw_os_error()) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// `fuse_attr_out`: a regular file.
fn attributes(bytes: u64) -> Vec<u8> {
    let mut out = vec![0; 104];
    out[..8].copy_from_slice(&3600u64.to_ne_bytes());
    let attr = &mut out[16..];
    attr[..8].copy_from_slice(&1u64.to_ne_bytes());
    attr[8..16].copy_from_slice(&bytes.to_ne_bytes());
    attr[16..24].copy_from_slice(&(bytes / 512).to_ne_bytes());
    attr[60..64].copy_from_slice(&0o100_600u32.to_ne_bytes());
    attr[64..68].copy_from_slice(&1u32.to_ne_bytes());
    attr[80..84].copy_from_slice(&4096u32.to_ne_bytes());
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
