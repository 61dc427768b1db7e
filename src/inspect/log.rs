//! What is in the folder of a log: every file, what it is to the log, and what was read of it.

use super::{CheckpointReport, Checkpoints, Verdict};
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::{FrameKind, Opening, Seal, SealReason};
use crate::formats::header::Header;
use crate::formats::names::{self, WalName};
use crate::formats::scan::ScanEnd;
use crate::framing::{FrameReader, Region};
use crate::limits::READ_CHUNK_BYTES;
use crate::storage::{Directory, ReadAt, is_zero_from, path};
use crate::walog::catalogue::{self, Chain, Found, Started};
use crate::walog::{LogEnd, SegmentScans, WalCheck, WalChecked};
use std::sync::Arc;

/// What a file is to its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Role {
    /// A segment of the log. (Where the files do not make a log: a segment that was started.)
    Segment,
    /// A segment whose first commit was begun and is not all there.
    Unfinished,
    /// Prepared, and never started.
    Unstarted,
    /// Left behind by a recovery, or before a hole in the log.
    Abandoned,
    /// Its header is damaged.
    Damaged,
    /// Named like a segment, and none that this release can read.
    Foreign,
    /// Kept to become a segment later.
    Spare,
    /// A record log or a checkpoint.
    Single,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Unfinished => "unfinished",
            Self::Unstarted => "unstarted",
            Self::Abandoned => "abandoned",
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
            Self::Spare => "spare",
            Self::Single => "single",
        }
    }
}

/// A file's header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeaderReport {
    /// The log that the file belongs to.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::error::as_hex::identity"))]
    pub identity: u128,
    /// This incarnation of the file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::error::as_hex::salt"))]
    pub salt: u64,
    /// The incarnation before, where the file was not zeroed; else 0.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::error::as_hex::salt"))]
    pub previous_salt: u64,
    /// Segment id; 0 for other kinds.
    pub file_id: u64,
    /// Frames start at multiples of this, in bytes.
    pub frame_alignment: u32,
    /// Checkpoints: the last entry in the state.
    pub last_applied_entry_id: u64,
    /// Checkpoints: the least entry at which the log may end.
    pub required_entry_id: u64,
}

impl From<&Header> for HeaderReport {
    fn from(header: &Header) -> Self {
        Self {
            identity: header.identity,
            salt: header.salt,
            previous_salt: header.previous_salt,
            file_id: header.file_id,
            frame_alignment: header.frame_alignment,
            last_applied_entry_id: header.last_applied_entry_id,
            required_entry_id: header.required_entry_id,
        }
    }
}

/// What a segment says about the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct OpeningReport {
    /// Its id; 0 for none.
    pub predecessor_id: u64,
    /// Its salt; 0 for none.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::error::as_hex::salt"))]
    pub predecessor_salt: u64,
    /// Where it ends.
    pub predecessor_end: u64,
    /// The last entry before this file.
    pub predecessor_last_entry_id: u64,
}

impl From<Opening> for OpeningReport {
    fn from(opening: Opening) -> Self {
        Self {
            predecessor_id: opening.predecessor_id,
            predecessor_salt: opening.predecessor_salt,
            predecessor_end: opening.predecessor_end,
            predecessor_last_entry_id: opening.predecessor_last_entry_id,
        }
    }
}

/// The seal at the end of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SealReport {
    /// Why it was written.
    pub reason: SealReason,
    /// The segment in which the log goes on; 0 for none.
    pub successor_id: u64,
}

impl From<Seal> for SealReport {
    fn from(seal: Seal) -> Self {
        Self { reason: seal.reason, successor_id: seal.successor_id }
    }
}

/// What a file holds, as far as it checks out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Contents {
    /// Its first entry; with no entries, the one that comes next.
    pub first_entry_id: u64,
    /// Its last entry; before the first where there is none.
    pub last_entry_id: u64,
    /// Frames, seals included.
    pub frames: u64,
    /// The highest watermark that anything in the file attests.
    pub attested_entry_id: u64,
    /// The seal at its end.
    pub seal: Option<SealReport>,
    /// Where the last good frame ends, seals included.
    pub used_bytes: u64,
    /// What stands behind that.
    pub rest_bytes: u64,
    /// Whether the rest is zeros: preallocated and not used.
    pub rest_is_zero: bool,
    /// Torn regions inside a record log that was opened again.
    pub cuts: u64,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FileReport {
    /// Its path under the directory's root.
    pub path: String,
    /// What it is to its log.
    pub role: Role,
    /// Size of the file.
    pub file_bytes: u64,
    /// Its header, where that checks out.
    pub header: Option<HeaderReport>,
    /// What it continues.
    pub opening: Option<OpeningReport>,
    /// What was read of it.
    pub contents: Option<Contents>,
    /// Why it could not be read.
    pub problem: Option<String>,
}

/// A log, looked at from outside.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LogInspection {
    /// What the log is found to be, with the checkpoints beside it.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub verdict: Verdict,
    /// The first entry that is there, or that comes first.
    pub first_entry_id: u64,
    /// The last entry; only where the verdict is accepted.
    pub last_entry_id: Option<u64>,
    /// Everything up to here is attested to be durable; only where the verdict is accepted.
    pub attested_entry_id: Option<u64>,
    /// Whether the log ends with the seal of a closed writer.
    pub closed: bool,
    /// Regions that opening the log will write once more, because nothing attests them.
    pub unproven: Vec<Region>,
    /// Segments behind a tear, whose contents no mode returns.
    pub dropped: Vec<String>,
    /// Every file, by id; spares last.
    pub files: Vec<FileReport>,
    /// The checkpoints that were looked at.
    pub checkpoints: Vec<CheckpointReport>,
}

/// Looks at every file of the log in `directory` and reads all of it, with `scan_all` as in
/// [`WalCheck::run`]. `NotFound` when there is no log.
pub fn inspect_log<D: Directory + ?Sized>(
    directory: &Arc<D>,
    scan_all: impl FnMut(&WalCheck<D>) -> SegmentScans,
) -> PersistenceResult<LogInspection> {
    inspect_log_beside(directory, Checkpoints::default(), scan_all)
}

/// [`inspect_log`], and holds the `checkpoints` that were read before against it.
pub fn inspect_log_beside<D: Directory + ?Sized>(
    directory: &Arc<D>,
    checkpoints: Checkpoints,
    scan_all: impl FnMut(&WalCheck<D>) -> SegmentScans,
) -> PersistenceResult<LogInspection> {
    let (checked, end) = WalCheck::run_requiring(directory, checkpoints.requirements(), scan_all);
    let verdict = Verdict::of_log(&end)?;
    let (checkpoints, verdict) = checkpoints.held_against(&verdict, checked.as_ref());
    let end = end.ok();
    let files = list_files(directory.as_ref(), checked.as_ref())?;
    let told = |of: fn(&LogEnd) -> u64| end.as_ref().map(of);
    let next = told(|end| end.last_entry_id + 1).unwrap_or(1);
    let first_entry_id = checked.as_ref().and_then(WalChecked::first_entry_id).unwrap_or(next);
    Ok(LogInspection {
        verdict,
        first_entry_id,
        last_entry_id: told(|end| end.last_entry_id),
        attested_entry_id: told(|end| end.attested_entry_id),
        closed: end.as_ref().is_some_and(|end| end.closed),
        files,
        checkpoints,
        unproven: end.as_ref().map(|end| end.unproven.clone()).unwrap_or_default(),
        dropped: end.map(|end| end.dropped).unwrap_or_default(),
    })
}

fn list_files<D: Directory + ?Sized>(
    directory: &D,
    checked: Option<&WalChecked>,
) -> PersistenceResult<Vec<FileReport>> {
    let (mut segments, mut others) = (Vec::new(), Vec::new());
    for name in directory.list_dir(names::WAL_DIRECTORY)? {
        let file = path::join(names::WAL_DIRECTORY, &name);
        match names::parse_wal_name(&name) {
            WalName::Segment(id) => segments.push(id),
            WalName::Spare(_) => others.push((file, Role::Spare)),
            WalName::Suspect => others.push((file, Role::Foreign)),
            WalName::Other => {}
        }
    }
    segments.sort_unstable();
    let mut files = Vec::new();
    for id in segments {
        files.extend(gone_is_none(look_at(directory, id, checked))?);
    }
    for (file, role) in others {
        let bare = directory.open_at(&file).and_then(|open| open.size());
        files.extend(gone_is_none(bare.map(|bytes| bare_file(&file, role, bytes)))?);
    }
    Ok(files)
}

/// Truncation runs beside inspection.
fn gone_is_none<T>(result: PersistenceResult<T>) -> PersistenceResult<Option<T>> {
    match result {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(Some),
    }
}

fn bare_file(path: &str, role: Role, file_bytes: u64) -> FileReport {
    FileReport {
        path: path.to_owned(),
        role,
        file_bytes,
        header: None,
        opening: None,
        contents: None,
        problem: None,
    }
}

fn look_at<D: Directory + ?Sized>(
    directory: &D,
    id: u64,
    checked: Option<&WalChecked>,
) -> PersistenceResult<FileReport> {
    let file = names::segment_path(id);
    let file_bytes = directory.open_at(&file)?.size()?;
    let mut report = bare_file(&file, Role::Foreign, file_bytes);
    let found = match catalogue::look(directory, id) {
        Ok(found) => found,
        Err(PersistenceError::Format { problem, .. }) => {
            report.problem = Some(problem.to_string());
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.header = found.header().map(|(header, _)| header.into());
    let abandoned = |chain: &Chain| chain.abandoned.contains(&file);
    let is_abandoned = checked.is_some_and(|checked| abandoned(&checked.chain));
    report.role = match &found {
        Found::Damaged { corruption, .. } => {
            report.problem = Some(corruption.check.to_string());
            Role::Damaged
        }
        Found::Blank { .. } | Found::Unopened { untouched: true, .. } => Role::Unstarted,
        _ if is_abandoned => Role::Abandoned,
        Found::Unopened { .. } => Role::Unfinished,
        Found::Started(_) => Role::Segment,
    };
    let Found::Started(started) = found else { return Ok(report) };
    report.opening = Some(started.opening.into());
    let Some(checked) = checked else { return Ok(report) };
    match checked.chain.segments.iter().position(|segment| segment.id == id) {
        Some(index) => {
            if let Some(scan) = &checked.scans[index] {
                report.contents = Some(contents(directory, &started, &scan.end)?);
            }
        }
        // Started since, or before a hole.
        None => report.role = Role::Abandoned,
    }
    Ok(report)
}

/// What was read of a file. Behind a segment's known end its seal may stand, which the log's verdict does not
/// need and people want to see.
fn contents<D: Directory + ?Sized>(
    directory: &D,
    segment: &Started,
    end: &ScanEnd,
) -> PersistenceResult<Contents> {
    let mut told = contents_of(&segment.header, segment.first_entry_id, end);
    let file = directory.open_at(&segment.path)?;
    if end.known_end.is_some_and(|known| known.offset == end.offset) {
        let next = end.next_entry_id.unwrap_or(segment.first_entry_id);
        let again = directory.open_at(&segment.path)?;
        let mut reader = FrameReader::resume(
            again,
            &segment.path,
            &segment.header,
            None,
            (end.offset, next),
            READ_CHUNK_BYTES,
        )?;
        while let Some(frame) = reader.next_live_frame()? {
            if frame.header.kind != FrameKind::Seal {
                break;
            }
            told.frames += 1;
            told.used_bytes = frame.offset + frame.header.frame_bytes(segment.header.frame_alignment);
            told.seal = Seal::decode(frame.payload).map(SealReport::from);
            told.attested_entry_id = told.attested_entry_id.max(frame.header.durable_entry_id);
        }
    }
    (told.rest_bytes, told.rest_is_zero) = rest(file.as_ref(), told.used_bytes)?;
    Ok(told)
}

pub(super) fn contents_of(header: &Header, first_entry_id: u64, end: &ScanEnd) -> Contents {
    debug_assert!(end.offset >= header.first_frame_offset());
    Contents {
        first_entry_id,
        last_entry_id: end.last_entry_id().unwrap_or(first_entry_id - 1),
        frames: end.frames,
        attested_entry_id: end.attested.durable_entry_id,
        seal: end.seal.map(SealReport::from),
        used_bytes: end.offset,
        rest_bytes: 0,
        rest_is_zero: true,
        cuts: end.cuts,
    }
}

/// How many bytes stand behind `from`, and whether all of them are zeros.
pub(super) fn rest(file: &dyn ReadAt, from: u64) -> PersistenceResult<(u64, bool)> {
    let is_zero = is_zero_from(file, from)?;
    Ok((file.size()?.saturating_sub(from), is_zero))
}
