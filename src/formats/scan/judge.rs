//! The table that tells a torn tail from corruption: what a scan found in, what it means out.
//!
//! Lives here and nowhere else: that decision. Not here: finding the evidence (`scan`), and what is done about it.

use super::{BadFrame, ScanEnd};
use crate::error::{Check, Corruption, PersistenceResult, Proof, TornEvidence, TornTail};
use crate::formats::header::{FileKind, Header};
use crate::planted;

/// What a log's end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The log ends here; nothing was lost or cut.
    Clean,
    /// A crash left unfinished writes here; best-effort accepts it.
    Torn(TornEvidence),
    /// Acknowledged data is damaged or missing; no mode accepts it.
    Corrupt(Check, Proof),
}

/// The highest watermark that something *outside* the scanned file attests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideAttestation {
    /// Everything up to here was durable, or is required.
    pub entry_id: u64,
    /// What says so.
    pub proof: Proof,
}

/// Decides what the end of a file is: the table of `docs/guarantees.md`, row by row.
///
/// * `last_entry_id`: the last entry recovered in order, from this file or the ones before it.
/// * `zeroed`: whether unwritten sectors of this file read as zeros (always, unless it was recycled
///   without being zeroed).
/// * `outside`: the strongest evidence from later segments or a checkpoint.
/// * `path`: the file's, for the proof.
pub fn judge(
    end: &ScanEnd,
    last_entry_id: u64,
    zeroed: bool,
    outside: Option<&OutsideAttestation>,
    path: &str,
) -> Verdict {
    let inside = end.attested;
    let attested_outside = outside.filter(|outside| outside.entry_id > last_entry_id);
    if inside.durable_entry_id > last_entry_id || attested_outside.is_some() {
        let own = Proof::Attested {
            durable_entry_id: inside.durable_entry_id,
            path: path.to_owned(),
            offset: inside.offset,
        };
        let proof = match attested_outside {
            Some(outside) if outside.entry_id > inside.durable_entry_id => outside.proof.clone(),
            _ => own,
        };
        let required_entry_id =
            inside.durable_entry_id.max(attested_outside.map_or(0, |outside| outside.entry_id));
        return Verdict::Corrupt(failed_check(end, last_entry_id, required_entry_id), proof);
    }
    if let Some(known) = end.known_end {
        let reached = end.offset == known.offset && last_entry_id == known.last_entry_id;
        if reached && end.bad == BadFrame::None {
            return Verdict::Clean;
        }
    }
    match end.bad {
        BadFrame::Contents(_) | BadFrame::Order { .. } => {
            Verdict::Corrupt(failed_check(end, last_entry_id, 0), Proof::Contradiction)
        }
        bad if end.later_frames > 0
            && zeroed
            && is_fully_written(end.kind, bad)
            && !planted::on("later_frames_excuse_damage") =>
        {
            Verdict::Corrupt(failed_check(end, last_entry_id, 0), Proof::FullyWritten)
        }
        _ if end.later_frames > 0 => Verdict::Torn(TornEvidence::LaterCommits { frames: end.later_frames }),
        // With a known end that was not reached, commits of the successor had been in flight as well.
        BadFrame::None if end.known_end.is_some() => Verdict::Torn(TornEvidence::LaterCommits { frames: 0 }),
        BadFrame::None => Verdict::Clean,
        BadFrame::PastFileEnd { .. } => Verdict::Torn(TornEvidence::PastFileEnd),
        _ if !zeroed => Verdict::Torn(TornEvidence::Undecidable),
        BadFrame::Unwritten => Verdict::Torn(TornEvidence::OldSectors { sectors: 1 }),
        BadFrame::Payload { old_sectors, .. } if old_sectors > 0 => {
            Verdict::Torn(TornEvidence::OldSectors { sectors: old_sectors })
        }
        _ if planted::on("fully_written_is_torn") => Verdict::Torn(TornEvidence::Undecidable),
        BadFrame::Header | BadFrame::Payload { .. } => {
            Verdict::Corrupt(failed_check(end, last_entry_id, 0), Proof::FullyWritten)
        }
    }
}

/// Whether a tear cannot explain a bad frame, whatever follows: no sector of it is as it was before. A record
/// log may go on within the sector in which it was cut short.
fn is_fully_written(kind: FileKind, bad: BadFrame) -> bool {
    let is_written = matches!(bad, BadFrame::Header | BadFrame::Payload { old_sectors: 0, .. });
    is_written && kind != FileKind::RecordLog
}

fn failed_check(end: &ScanEnd, last_entry_id: u64, required_entry_id: u64) -> Check {
    match end.bad {
        BadFrame::None | BadFrame::Unwritten => Check::LogEnd { last_entry_id, required_entry_id },
        BadFrame::Header => Check::FrameHeader,
        BadFrame::PastFileEnd { bytes_needed, bytes } => Check::FileEnd { bytes_needed, bytes },
        BadFrame::Payload { expected, found, .. } => Check::Payload { expected, found },
        BadFrame::Contents(what) => Check::FrameContents { what },
        BadFrame::Order { expected, found } => Check::EntryOrder { expected, found },
    }
}

/// What the end of a file is when nothing but the file itself is known: of a record log, or of a segment as if it
/// were the newest of its log.
pub fn judge_alone(path: &str, header: &Header, end: &ScanEnd) -> PersistenceResult<Option<TornTail>> {
    let last_entry_id = end.last_entry_id().unwrap_or(0);
    let (path, offset) = (path.to_owned(), end.offset);
    match judge(end, last_entry_id, header.previous_salt == 0, None, &path) {
        Verdict::Clean => Ok(None),
        Verdict::Torn(evidence) => Ok(Some(TornTail { path, offset, last_entry_id, evidence })),
        Verdict::Corrupt(check, proof) => {
            Err(Corruption { path, offset, entry_id: last_entry_id + 1, check, proof }.into())
        }
    }
}
