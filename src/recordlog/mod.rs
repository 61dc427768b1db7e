//! The single-file record log: append-only, locked, read strictly or best-effort.
//!
//! Reopening never edits what is there. A log that ends in a torn tail goes on behind it, with an opening
//! frame that says where the good part ends; what lies between is cut, and stays as evidence. Damage below
//! what any frame attests is an error in every mode, and zeros are never records.

mod reader;
mod writer;

pub use reader::{Record, RecordLogReadMode, RecordLogReader};
pub use writer::{RecordLogOptions, RecordLogWriter};

use crate::error::{Check, Corruption, FormatProblem, PersistenceError, PersistenceResult, Proof, TornTail};
use crate::formats::frame::{Entries, FrameKind};
use crate::formats::header::{FileKind, Header, HeaderState};
use crate::formats::layout::HEADER_BYTES;
use crate::formats::scan::{self, ScanEnd};
use crate::framing::{FrameReader, read_header};
use crate::storage::Directory;
use crate::storage::is_zero_from;

/// What was found in a record log.
pub(crate) struct Found {
    header: Header,
    file_bytes: u64,
    end: ScanEnd,
    last_record: u64,
    torn: Option<TornTail>,
}

/// Reads a record log and hands out its records. `Ok(None)` for a file that was created and never begun.
pub(crate) fn read_log<D: Directory + ?Sized>(
    directory: &D,
    path: &str,
    visit: &mut dyn FnMut(u64, &[u8]) -> PersistenceResult<()>,
) -> PersistenceResult<Option<Found>> {
    let file = directory.open_at(path)?;
    let read = read_header(file.as_ref(), FileKind::RecordLog)?;
    let header = match read.state {
        HeaderState::Good(header) => header,
        HeaderState::Blank => {
            return if is_zero_from(file.as_ref(), 0)? { Ok(None) } else { Err(header_damage(path, 0, 0)) };
        }
        HeaderState::Damaged { expected, found } => return Err(header_damage(path, expected, found)),
        HeaderState::Unusable(problem) => {
            return Err(PersistenceError::Format { path: path.to_owned(), problem });
        }
    };
    let mut reader = FrameReader::new(file, path, &header, None)?;
    while let Some(frame) = reader.next_frame()? {
        if frame.header.kind == FrameKind::Data {
            for (record, payload) in Entries::new(&frame.header, frame.payload) {
                visit(record, payload)?;
            }
        }
    }
    let end = reader.into_end();
    let last_record = end.last_entry_id().unwrap_or(0);
    let torn = scan::judge_alone(path, &header, &end)?;
    Ok(Some(Found { header, file_bytes: read.file_bytes, end, last_record, torn }))
}

fn header_damage(path: &str, expected: u32, found: u32) -> PersistenceError {
    let check = Check::HeaderChecksum { expected, found };
    Corruption { path: path.to_owned(), offset: 0, entry_id: 0, check, proof: Proof::FullyWritten }.into()
}

fn never_begun(path: &str) -> PersistenceError {
    let problem = FormatProblem::TooShort { bytes: 0, bytes_needed: HEADER_BYTES as u64 };
    PersistenceError::Format { path: path.to_owned(), problem }
}
