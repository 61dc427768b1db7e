//! A raw loop that has to get its zeros within the measured time, as a log with segments has to.
//!
//! One thread commits, with direct writes that sync, into stretches of a file that another thread fills with zeros
//! ahead of it, in pieces that keep step, as the library's segments are filled. No log can have less of the disk.

use super::Failure;
use super::drive::{self, Window};
use super::line::Sample;
use super::raw::{Files, direct_block, open_direct, write_all_at};
use durability::storage::CommitBuffer;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Zeros that are written at once, in bytes, as the library writes them.
const PIECE_BYTES: u64 = 256 << 10;
/// Larger stretches are cut: the first is zero-filled whole before anything is measured.
const STRETCH_BYTES_MAX: u64 = 64 << 20;

/// Commits `entry` again and again, behind zeros that come stretch by stretch.
pub fn zeroed_ahead(
    files: &Files,
    window: &Window<'_>,
    entry: &[u8],
    stretch_bytes: u64,
) -> Result<Sample, Failure> {
    let growing = files.growing()?;
    let block = direct_block(entry);
    let step = block.len() as u64;
    let stretch = stretch_bytes.min(STRETCH_BYTES_MAX).next_multiple_of(PIECE_BYTES.max(step));
    let zeros = Zeros { file: open_direct(growing.path(), false)?, stretch };
    zeros.fill(0, || Ok(()))?;
    let committing = open_direct(growing.path(), true)?;
    let (report, reports) = channel();
    let (give, given) = channel();
    std::thread::scope(|scope| {
        let helper = scope.spawn(move || zeros.keep_ahead(&reports, &give));
        let mut writer = Writer { next: 0, told: 0, zeroed: stretch, report, given };
        let sample = drive::alone(window, || {
            let offset = writer.take(step)?;
            Ok(write_all_at(&committing, &block, offset)?)
        });
        drop(writer);
        helper.join().map_err(|_| "the thread that makes zeros panicked")??;
        Ok(sample?.with_file_bytes(step as f64))
    })
}

/// Where the next commit goes.
struct Writer {
    next: u64,
    told: u64,
    /// So far there are zeros.
    zeroed: u64,
    report: Sender<u64>,
    given: Receiver<u64>,
}

impl Writer {
    fn take(&mut self, step: u64) -> Result<u64, Failure> {
        while self.next + step > self.zeroed {
            // Or each might wait for the other: what was committed last may be what the next zeros are due behind.
            let _ = self.report.send(self.next);
            self.zeroed = self.given.recv().map_err(|_| "no more zeros come")?;
        }
        let offset = self.next;
        self.next += step;
        if self.next >= self.told + PIECE_BYTES {
            self.told = self.next;
            // Whoever is not there any more has said why.
            let _ = self.report.send(self.next);
        }
        Ok(offset)
    }
}

struct Zeros {
    file: File,
    stretch: u64,
}

impl Zeros {
    /// Fills one stretch, and makes it durable. `pace` is called before each piece.
    fn fill(&self, from: u64, mut pace: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let zeros = CommitBuffer::from_slice(&vec![0; PIECE_BYTES as usize]);
        for offset in (from..from + self.stretch).step_by(PIECE_BYTES as usize) {
            pace()?;
            let bytes = (from + self.stretch - offset).min(PIECE_BYTES) as usize;
            write_all_at(&self.file, &zeros[..bytes], offset)?;
        }
        self.file.sync_all()
    }

    /// Fills the next stretch while the one before it is committed to, until nobody commits any more.
    fn keep_ahead(&self, reports: &Receiver<u64>, give: &Sender<u64>) -> Result<(), Failure> {
        let mut used = 0;
        for from in (self.stretch..).step_by(usize::try_from(self.stretch)?) {
            let mut filled = 0;
            let result = self.fill(from, || {
                // Whole when the one before is three quarters full.
                while from - self.stretch + filled * 3 / 4 > used {
                    used = reports.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                }
                filled += PIECE_BYTES;
                Ok(())
            });
            match result {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                result => result?,
            }
            if give.send(from + self.stretch).is_err() {
                break;
            }
        }
        Ok(())
    }
}
