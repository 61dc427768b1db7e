//! One file by itself: a segment, a record log or a checkpoint, wherever it lies.

use super::Verdict;
use super::log::{Contents, FileReport, Role, contents_of, rest};
use crate::checkpoint::{self, CheckpointReader};
use crate::error::{Check, Corruption, FormatProblem, PersistenceError, PersistenceResult, Proof, TornTail};
use crate::formats::dump::{annotate, hex, lines};
use crate::formats::frame::{Entries, FrameKind};
use crate::formats::header::{FileKind, Header, HeaderState, decode};
use crate::formats::layout::{
    ENTRY_LENGTH_BYTES, FRAME, FRAME_HEADER_BYTES, HEADER, HEADER_BYTES, OPENING, SEAL,
};
use crate::formats::scan::judge_alone;
use crate::framing::FrameReader;
use crate::limits::READ_CHUNK_BYTES;
use crate::recordlog;
use crate::storage::{Directory, ReadAt};

/// A file, looked at from outside.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FileInspection {
    /// What the file is found to be, by itself: a segment as if it were the newest of its log.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub verdict: Verdict,
    /// What kind of file it is.
    pub kind: FileKind,
    /// The file.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub file: FileReport,
}

/// What kind of file `path` is, by its first bytes. `Format` when it is none of ours, `TooShort` when there
/// is nothing in it.
pub fn kind_of<D: Directory + ?Sized>(directory: &D, path: &str) -> PersistenceResult<FileKind> {
    let mut block = [0; HEADER_BYTES];
    let read = directory.open_at(path)?.read_at(0, &mut block)?;
    let block = &block[..read];
    let kinds = [FileKind::Segment, FileKind::RecordLog, FileKind::Checkpoint];
    // A damaged magic does not hide what the rest of the header still is.
    let damaged = kinds.into_iter().find(|kind| matches!(decode(*kind, block), HeaderState::Damaged { .. }));
    FileKind::of(block).or(damaged).ok_or_else(|| {
        let problem = if crate::formats::is_zero(block) {
            FormatProblem::TooShort { bytes: 0, bytes_needed: HEADER_BYTES as u64 }
        } else {
            FormatProblem::Magic { expected: "wal segment, recordlog or checkpoint", found: first(block) }
        };
        PersistenceError::Format { path: path.to_owned(), problem }
    })
}

fn first(block: &[u8]) -> Vec<u8> {
    block[..block.len().min(8)].to_vec()
}

/// Reads a file to its end and says what it is. `progress` is told how many more bytes were read.
pub fn inspect_file<D: Directory + ?Sized>(
    directory: &D,
    path: &str,
    progress: &mut dyn FnMut(u64),
) -> PersistenceResult<FileInspection> {
    read_file(directory, path, progress, &mut |_, _| Ok(()))
}

/// [`inspect_file`], and hands every entry that checks out to `visit`, in order: entries of a segment, records of
/// a record log, chunks of a checkpoint's state. An error of `visit` ends the reading and is returned.
pub fn read_file<D: Directory + ?Sized>(
    directory: &D,
    path: &str,
    progress: &mut dyn FnMut(u64),
    visit: &mut dyn FnMut(u64, &[u8]) -> PersistenceResult<()>,
) -> PersistenceResult<FileInspection> {
    let kind = kind_of(directory, path)?;
    let file = directory.open_at(path)?;
    let mut report = FileReport {
        path: path.to_owned(),
        role: Role::Single,
        file_bytes: file.size()?,
        header: None,
        opening: None,
        contents: None,
        problem: None,
    };
    let judged = match read_header(file.as_ref(), kind)? {
        HeaderState::Good(header) => {
            report.header = Some((&header).into());
            scan(directory, &header, progress, visit, &mut report)?
        }
        state => Err(without_header(directory, path, kind, state)),
    };
    let verdict = Verdict::of(judged)?;
    if !verdict.is_accepted() {
        report.problem = Some(verdict.to_string());
    }
    Ok(FileInspection { verdict, kind, file: report })
}

fn read_header(file: &dyn ReadAt, kind: FileKind) -> PersistenceResult<HeaderState> {
    let mut block = [0; HEADER_BYTES];
    let read = file.read_at(0, &mut block)?;
    Ok(decode(kind, &block[..read]))
}

/// Reads all frames; the judgement is that of the kind's own reader.
fn scan<D: Directory + ?Sized>(
    directory: &D,
    header: &Header,
    progress: &mut dyn FnMut(u64),
    visit: &mut dyn FnMut(u64, &[u8]) -> PersistenceResult<()>,
    report: &mut FileReport,
) -> PersistenceResult<PersistenceResult<Option<TornTail>>> {
    let path = report.path.clone();
    let path = path.as_str();
    let mut reader = FrameReader::new(directory.open_at(path)?, path, header, None)?;
    let (mut told, mut first_entry_id) = (0, None);
    while let Some(frame) = reader.next_frame()? {
        progress(frame.offset.saturating_sub(told));
        told = told.max(frame.offset);
        first_entry_id = first_entry_id.or(Some(frame.header.first_entry_id));
        if frame.header.kind == FrameKind::Data {
            for (entry_id, payload) in Entries::new(&frame.header, frame.payload) {
                visit(entry_id, payload)?;
            }
        }
    }
    progress(report.file_bytes.saturating_sub(told));
    let end = reader.into_end();
    report.opening = end.opening.filter(|_| header.kind == FileKind::Segment).map(Into::into);
    let mut contents: Contents = contents_of(header, first_entry_id.unwrap_or(1), &end);
    let file = directory.open_at(path)?;
    (contents.rest_bytes, contents.rest_is_zero) = rest(file.as_ref(), contents.used_bytes)?;
    report.contents = Some(contents);
    Ok(match header.kind {
        FileKind::Segment | FileKind::RecordLog => judge_alone(path, header, &end),
        FileKind::Checkpoint => checkpoint::judge_end(path, &end).map(|()| None),
    })
}

/// Why a file without a good header cannot be read, as its own reader says it.
fn without_header<D: Directory + ?Sized>(
    directory: &D,
    path: &str,
    kind: FileKind,
    state: HeaderState,
) -> PersistenceError {
    let answer = match kind {
        FileKind::RecordLog => recordlog::read_log(directory, path, &mut |_, _| Ok(())).err(),
        FileKind::Checkpoint => CheckpointReader::open(directory, path).err(),
        FileKind::Segment => None,
    };
    let path = path.to_owned();
    answer.unwrap_or_else(|| match state {
        HeaderState::Damaged { expected, found } => {
            let check = Check::HeaderChecksum { expected, found };
            Corruption { path, offset: 0, entry_id: 0, check, proof: Proof::FullyWritten }.into()
        }
        HeaderState::Unusable(problem) => PersistenceError::Format { path, problem },
        HeaderState::Good(_) | HeaderState::Blank => {
            let problem = FormatProblem::TooShort { bytes: 0, bytes_needed: HEADER_BYTES as u64 };
            PersistenceError::Format { path, problem }
        }
    })
}

/// What of a file [`dump_file`] writes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Entries' bytes too, not only their lengths.
    pub entries: bool,
}

/// Writes out a file field by field, with offsets, as `docs/format.md` does, and what stands behind its last
/// good frame. Text is handed to `emit` in pieces, of which each is at most a few lines.
pub fn dump_file<D: Directory + ?Sized>(
    directory: &D,
    path: &str,
    dump: Dump,
    emit: &mut dyn FnMut(&str),
) -> PersistenceResult<()> {
    let kind = kind_of(directory, path)?;
    let file = directory.open_at(path)?;
    emit(&format!("# {}, {} bytes\n", kind.name(), file.size()?));
    let mut block = [0; HEADER_BYTES];
    let read = file.read_at(0, &mut block)?;
    if read == HEADER_BYTES {
        emit(&annotate(&block, 0, HEADER));
    }
    let HeaderState::Good(header) = decode(kind, &block[..read]) else {
        emit("# the header does not check out\n");
        return dump_rest(file.as_ref(), read as u64, emit);
    };
    let mut reader = FrameReader::new(directory.open_at(path)?, path, &header, None)?;
    let mut behind = header.first_frame_offset();
    while let Some(frame) = reader.next_frame()? {
        if frame.offset > behind {
            emit(&format!("\n# cut: bytes {behind:#x} to {:#x}\n", frame.offset));
        }
        behind = frame.offset + frame.header.frame_bytes(header.frame_alignment);
        let mut frame_block = [0; FRAME_HEADER_BYTES];
        file.read_at(frame.offset, &mut frame_block)?;
        emit(&format!("\n# {:?}\n", frame.header.kind));
        emit(&annotate(&frame_block, frame.offset, FRAME));
        let at = frame.offset + FRAME_HEADER_BYTES as u64;
        match frame.header.kind {
            FrameKind::Opening => emit(&annotate(frame.payload, at, OPENING)),
            FrameKind::Seal => emit(&annotate(frame.payload, at, SEAL)),
            FrameKind::Data => dump_entries(Entries::new(&frame.header, frame.payload), at, dump, emit),
        }
        let padding = at + frame.payload.len() as u64..behind;
        if !padding.is_empty() {
            emit(&format!(
                "{:06x}  {:<48}  padding\n",
                padding.start,
                format!("00 * {}", behind - padding.start)
            ));
        }
    }
    let end = reader.into_end();
    if end.seal.is_some() && header.kind != FileKind::RecordLog && end.offset < file.size()? {
        emit(&format!("\n# behind the seal: {} bytes\n", file.size()? - end.offset));
    }
    dump_rest(file.as_ref(), end.offset, emit)
}

fn dump_entries(entries: Entries<'_>, at: u64, dump: Dump, emit: &mut dyn FnMut(&str)) {
    let mut at = at;
    for (entry_id, entry) in entries {
        let length = (entry.len() as u32).to_le_bytes();
        emit(&format!("{at:06x}  {:<48}  entry {entry_id}, {} bytes\n", hex(&length), entry.len()));
        at += ENTRY_LENGTH_BYTES as u64;
        if dump.entries {
            lines(entry, at, emit);
        }
        at += entry.len() as u64;
    }
}

/// What is behind the last good frame; zeros only by their number.
fn dump_rest(file: &dyn ReadAt, from: u64, emit: &mut dyn FnMut(&str)) -> PersistenceResult<()> {
    let mut offset = from;
    let mut zeros = 0;
    let mut chunk = vec![0; READ_CHUNK_BYTES];
    loop {
        let read = file.read_at(offset, &mut chunk)?;
        for (index, sector) in chunk[..read].chunks(512).enumerate() {
            let at = offset + 512 * index as u64;
            if crate::formats::is_zero(sector) {
                zeros += sector.len();
                continue;
            }
            tell_zeros(&mut zeros, at, emit);
            emit(&format!("\n# no good frame at {at:#x}\n"));
            lines(sector, at, emit);
        }
        offset += read as u64;
        if read < chunk.len() {
            tell_zeros(&mut zeros, offset, emit);
            return Ok(());
        }
    }
}

fn tell_zeros(zeros: &mut usize, end: u64, emit: &mut dyn FnMut(&str)) {
    if *zeros > 0 {
        emit(&format!("\n# zeros\n{:06x}  00 * {zeros}\n", end - *zeros as u64));
    }
    *zeros = 0;
}
