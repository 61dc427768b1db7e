//! Reads a chain of segments from an entry id to the end of the log, and says what that end is.
//!
//! Replay, resume, maintenance and the tool all come through here, so all reach the same verdict.

use super::catalogue::{self, Chain, Found, Started};
use crate::error::{Check, Corruption, PersistenceError, PersistenceResult, Proof, TornTail};
use crate::formats::frame::{Entries, FrameKind, SealReason};
use crate::formats::header::Header;
use crate::formats::scan::{self, OutsideAttestation, ScanEnd, Verdict};
use crate::framing::{FrameReader, Region};
use crate::limits::{READER_FILES_OPEN_MAX, READER_RETRIES_MAX};
use crate::planted;
use crate::storage::{Directory, ReadAt};
use std::collections::VecDeque;

/// Where a log ends, and what that end is.
#[derive(Clone, Debug)]
pub struct LogEnd {
    /// The last entry; the floor of ids when there is none.
    pub last_entry_id: u64,
    /// What a crash left behind it, if anything.
    pub torn: Option<TornTail>,
    /// The segment in which the log ends; `None` for a log without entries.
    pub last_segment: Option<LastSegment>,
    /// Regions that hold recovered entries which nothing attests to be durable.
    pub unproven: Vec<Region>,
    /// Everything up to here is attested durable.
    pub attested_entry_id: u64,
    /// Segments that were read.
    pub segments_read: u64,
    /// Entries in them.
    pub entries_read: u64,
    /// Paths of segments behind a tear, whose contents are dropped.
    pub dropped: Vec<String>,
    /// Whether the log ends with the seal of a closed writer.
    pub closed: bool,
}

/// The segment that a new one will continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSegment {
    /// Its id.
    pub id: u64,
    /// Its salt.
    pub salt: u64,
    /// Where its last good frame with contents ends; a seal may follow, and nothing may rest on it.
    pub end_offset: u64,
}

/// What the end of a log has to satisfy.
#[derive(Clone, Debug, Default)]
pub struct Requirements {
    /// The last entry that a checkpoint covers, or 0: the end of a log without entries.
    pub id_floor: u64,
    /// The least last entry, and who requires it.
    pub least_end: Option<(u64, String)>,
    /// There must be a segment: a checkpoint of this very log exists, and its newest segment is never
    /// removed.
    pub log_expected: bool,
}

/// Reads the entries from `from_entry_id` on, in order, and hands each to `visit`.
///
/// An error of `visit` ends the walk. Corruption is an error; a torn tail is part of the answer.
pub fn walk<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    from_entry_id: u64,
    requirements: &Requirements,
    visit: &mut dyn FnMut(u64, &[u8]) -> PersistenceResult<()>,
) -> PersistenceResult<LogEnd> {
    let start = if chain.segments.is_empty() { 0 } else { chain.find(from_entry_id)? };
    let mut walk = Walk { directory, chain, requirements, scanned: Vec::new(), entries: 0 };
    // Files that are open are not disturbed by being deleted.
    let mut files = VecDeque::new();
    let mut opened = start;
    for index in start..chain.segments.len() {
        while opened < chain.segments.len() && files.len() < READER_FILES_OPEN_MAX {
            files.push_back(directory.open_at(&chain.segments[opened].path)?);
            opened += 1;
        }
        let Some(file) = files.pop_front() else { break };
        let end = walk.read_segment(index, file, from_entry_id, visit)?;
        let goes_on = reaches_successor(&end);
        walk.scanned.push((index, end));
        if !goes_on {
            break;
        }
    }
    walk.conclude()
}

/// Whether a segment was read to the place where its successor says that it ends.
pub(super) fn reaches_successor(end: &ScanEnd) -> bool {
    end.known_end
        .is_some_and(|known| end.offset == known.offset && end.last_entry_id() == Some(known.last_entry_id))
}

/// What [`walk`] concludes, from scans of the segments that were made before, from the first one on: taken
/// as far as `walk` would have read.
pub fn conclude_scans<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    requirements: &Requirements,
    scans: impl IntoIterator<Item = PersistenceResult<ScanEnd>>,
) -> PersistenceResult<LogEnd> {
    let mut walk = Walk { directory, chain, requirements, scanned: Vec::new(), entries: 0 };
    for (index, end) in scans.into_iter().enumerate() {
        let end = end?;
        let goes_on = reaches_successor(&end);
        walk.entries += end.entries;
        walk.scanned.push((index, end));
        if !goes_on {
            break;
        }
    }
    walk.conclude()
}

/// Reads only what tells where the log ends: the last block of a log that was closed; else the newest
/// segment, and older ones as far as nothing attests them.
pub fn find_end<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    requirements: &Requirements,
) -> PersistenceResult<LogEnd> {
    if let Some(end) = super::closed::closed_end(directory, chain, requirements)? {
        return Ok(end);
    }
    let mut start = chain.segments.len().saturating_sub(1);
    while start > 0
        && (planted::on("open_reads_all")
            || chain.segments[start].durable_entry_id
                < chain.segments[start].opening.predecessor_last_entry_id)
    {
        start -= 1;
    }
    let from = chain.segments.get(start).map_or(1, |segment| segment.first_entry_id);
    walk(directory, chain, from, requirements, &mut |_, _| Ok(()))
}

/// The log and its end, looked for anew while truncation removes what is about to be read.
pub fn read_end<D: Directory + ?Sized>(
    directory: &D,
    identity: Option<u128>,
) -> PersistenceResult<(Chain, LogEnd)> {
    for attempt in 0.. {
        let chain = read_chain(directory, identity)?;
        let end = find_end(directory, &chain, &Requirements::default());
        if attempt >= READER_RETRIES_MAX || !is_overtaken(directory, &chain, &end) {
            return end.map(|end| (chain, end));
        }
    }
    unreachable!("the loop ends by returning")
}

/// Whether an end of a log may be none but what truncation beside a reader looks like: the segment with which the
/// log began is no part of it any more. (A recycled file reads as zeros: only where nothing was taken away is a
/// tear a tear.)
pub fn is_overtaken<D: Directory + ?Sized>(
    directory: &D,
    before: &Chain,
    end: &PersistenceResult<LogEnd>,
) -> bool {
    let is_suspicious = match end {
        Ok(end) => end.torn.is_some(),
        Err(error) => error.is_not_found() || error.is_corruption(),
    };
    is_suspicious
        && match before.segments.first() {
            Some(first) => catalogue::is_gone(directory, first.id, first.header.salt).unwrap_or(false),
            None => read_chain(directory, before.identity).is_ok_and(|chain| !chain.segments.is_empty()),
        }
}

struct Walk<'a, D: ?Sized> {
    directory: &'a D,
    chain: &'a Chain,
    requirements: &'a Requirements,
    scanned: Vec<(usize, ScanEnd)>,
    entries: u64,
}

impl<D: Directory + ?Sized> Walk<'_, D> {
    fn read_segment(
        &mut self,
        index: usize,
        file: Box<dyn ReadAt>,
        from_entry_id: u64,
        visit: &mut dyn FnMut(u64, &[u8]) -> PersistenceResult<()>,
    ) -> PersistenceResult<ScanEnd> {
        let segment = &self.chain.segments[index];
        let known_end = self.chain.segments.get(index + 1).map(Started::predecessor_end);
        let mut reader = FrameReader::new(file, &segment.path, &segment.header, known_end)?;
        while let Some(frame) = reader.next_frame()? {
            if frame.header.kind != FrameKind::Data || frame.header.next_entry_id() <= from_entry_id {
                continue;
            }
            for (entry_id, payload) in Entries::new(&frame.header, frame.payload) {
                if entry_id >= from_entry_id {
                    self.entries += 1;
                    visit(entry_id, payload)?;
                }
            }
        }
        Ok(reader.into_end())
    }

    fn conclude(self) -> PersistenceResult<LogEnd> {
        let outside = self.outside_evidence()?;
        let Some((index, end)) = self.scanned.last() else { return self.conclude_empty(outside) };
        let segment = &self.chain.segments[*index];
        let last_entry_id = end.last_entry_id().unwrap_or(segment.first_entry_id - 1);
        let zeroed = segment.header.previous_salt == 0;
        let verdict = scan::judge(end, last_entry_id, zeroed, outside.as_ref(), &segment.path);
        let torn = match self.held_to_successor(*index, end, last_entry_id, verdict) {
            Verdict::Clean => None,
            Verdict::Torn(evidence) => {
                Some(TornTail { path: segment.path.clone(), offset: end.offset, last_entry_id, evidence })
            }
            Verdict::Corrupt(check, proof) => {
                let entry_id = last_entry_id + 1;
                return Err(Corruption {
                    path: segment.path.clone(),
                    offset: end.offset,
                    entry_id,
                    check,
                    proof,
                }
                .into());
            }
        };
        self.check_successor(*index, end)?;
        self.check_still_there(segment, end)?;
        let torn = match torn {
            None if index + 1 == self.chain.segments.len() => self.judge_unfinished(last_entry_id)?,
            torn => torn,
        };
        let dropped = self.chain.segments[index + 1..].iter().map(|later| later.path.clone());
        let dropped = dropped.chain(self.chain.unfinished.iter().map(|(path, _)| path.clone())).collect();
        let attested = self.scanned.iter().map(|(_, end)| end.attested.durable_entry_id).max().unwrap_or(0);
        let attested_entry_id =
            attested.max(outside.map_or(0, |outside| outside.entry_id)).min(last_entry_id);
        Ok(LogEnd {
            last_entry_id,
            torn,
            last_segment: Some(LastSegment {
                id: segment.id,
                salt: segment.header.salt,
                end_offset: if planted::on("end_offset_behind_seal") {
                    end.offset
                } else {
                    end.content_offset
                },
            }),
            unproven: self.unproven(attested_entry_id),
            attested_entry_id,
            segments_read: self.scanned.len() as u64,
            entries_read: self.entries,
            dropped,
            closed: end.seal.is_some_and(|seal| seal.reason == SealReason::Close),
        })
    }

    /// A segment whose end the next one attests is skipped by whoever only looks for the log's end. So it must
    /// be exactly as its successor says, or two readers would see two ends.
    fn held_to_successor(
        &self,
        index: usize,
        end: &ScanEnd,
        last_entry_id: u64,
        verdict: Verdict,
    ) -> Verdict {
        let (Some(known), Some(successor)) = (end.known_end, self.chain.segments.get(index + 1)) else {
            return verdict;
        };
        let reached = end.offset == known.offset && last_entry_id == known.last_entry_id;
        let attested = successor.durable_entry_id >= known.last_entry_id;
        if reached || !attested || matches!(verdict, Verdict::Corrupt(..)) {
            return verdict;
        }
        let check = Check::SegmentEnd { offset: known.offset, last_entry_id: known.last_entry_id };
        Verdict::Corrupt(check, Proof::NamedBySuccessor { path: successor.path.clone() })
    }

    /// A log in which no segment was ever started.
    fn conclude_empty(&self, outside: Option<OutsideAttestation>) -> PersistenceResult<LogEnd> {
        let last_entry_id = self.requirements.id_floor;
        let missing = |outside: &OutsideAttestation| {
            outside.entry_id > last_entry_id || (self.requirements.log_expected && outside.entry_id > 0)
        };
        if let Some(outside) = outside.filter(missing) {
            let path = self.chain.unfinished.first().map_or("wal", |(path, _)| path.as_str()).to_owned();
            let check = Check::LogEnd { last_entry_id, required_entry_id: outside.entry_id };
            let entry_id = last_entry_id + 1;
            return Err(Corruption { path, offset: 0, entry_id, check, proof: outside.proof }.into());
        }
        Ok(LogEnd {
            last_entry_id,
            torn: self.judge_unfinished(last_entry_id)?,
            last_segment: None,
            unproven: Vec::new(),
            attested_entry_id: last_entry_id,
            segments_read: 0,
            entries_read: 0,
            dropped: self.chain.unfinished.iter().map(|(path, _)| path.clone()).collect(),
            closed: false,
        })
    }

    /// What a crash left of the first commit of a segment behind the log's end, if anything.
    fn judge_unfinished(&self, last_entry_id: u64) -> PersistenceResult<Option<TornTail>> {
        for (path, header) in &self.chain.unfinished {
            let mut reader = FrameReader::new(self.directory.open_at(path)?, path, header, None)?;
            while reader.next_frame()?.is_some() {}
            let end = reader.into_end();
            if self.was_started_since(header)? {
                continue;
            }
            let (path, offset) = (path.clone(), end.offset);
            match scan::judge(&end, last_entry_id, header.previous_salt == 0, None, &path) {
                Verdict::Clean => {}
                Verdict::Torn(evidence) => {
                    return Ok(Some(TornTail { path, offset, last_entry_id, evidence }));
                }
                Verdict::Corrupt(check, proof) => {
                    return Err(Corruption { path, offset, entry_id: last_entry_id + 1, check, proof }.into());
                }
            }
        }
        Ok(None)
    }

    /// The strongest evidence outside the segment in which the log ends: later segments, unfinished ones,
    /// a checkpoint.
    fn outside_evidence(&self) -> PersistenceResult<Option<OutsideAttestation>> {
        let mut strongest: Option<OutsideAttestation> = None;
        let mut raise = |entry_id: u64, proof: Proof| {
            if strongest.as_ref().is_none_or(|strongest| entry_id > strongest.entry_id) {
                strongest = Some(OutsideAttestation { entry_id, proof });
            }
        };
        if let Some((entry_id, path)) =
            self.requirements.least_end.as_ref().filter(|_| !planted::on("ignore_what_checkpoint_needs"))
        {
            raise(*entry_id, Proof::RequiredByCheckpoint { entry_id: *entry_id, path: path.clone() });
        }
        let later = self.scanned.last().map_or(self.chain.segments.len(), |(index, _)| index + 1);
        let later = self.chain.segments[later..].iter().map(|segment| (&segment.path, &segment.header));
        let unfinished = self.chain.unfinished.iter().map(|(path, header)| (path, header));
        for (path, header) in later.chain(unfinished) {
            let attested = self.attested_by(path, header)?;
            if self.was_started_since(header)? {
                continue;
            }
            let (durable_entry_id, offset) = (attested.durable_entry_id, attested.offset);
            raise(durable_entry_id, Proof::Attested { durable_entry_id, path: path.clone(), offset });
        }
        // Segments before the last one that was scanned attest too.
        for (index, end) in self.scanned.iter().rev().skip(1) {
            let (durable_entry_id, offset) = (end.attested.durable_entry_id, end.attested.offset);
            let path = self.chain.segments[*index].path.clone();
            raise(durable_entry_id, Proof::Attested { durable_entry_id, path, offset });
        }
        Ok(strongest)
    }

    /// Whether a segment that had no opening when the log was listed has one now: then a live writer went on
    /// there, and what it holds is no evidence about the log as it was listed.
    fn was_started_since(&self, header: &Header) -> PersistenceResult<bool> {
        if !self.chain.unfinished.iter().any(|(_, unfinished)| unfinished.file_id == header.file_id) {
            return Ok(false);
        }
        Ok(matches!(catalogue::look(self.directory, header.file_id)?, Found::Started(_)))
    }

    fn attested_by(&self, path: &str, header: &Header) -> PersistenceResult<scan::Attestation> {
        let mut reader = FrameReader::evidence_only(self.directory.open_at(path)?, path, header)?;
        while reader.next_frame()?.is_some() {}
        Ok(reader.into_end().attested)
    }

    /// A log whose last segment was sealed by a rotation went on in the segment that the seal names.
    fn check_successor(&self, index: usize, end: &ScanEnd) -> PersistenceResult<()> {
        let is_newest = index + 1 == self.chain.segments.len();
        let Some(seal) = end.seal.filter(|seal| is_newest && seal.reason == SealReason::Rotation) else {
            return Ok(());
        };
        if self.chain.knows(seal.successor_id, seal.successor_salt) || planted::on("ignore_missing_successor")
        {
            return Ok(());
        }
        // A live writer may have gone on since the log was listed.
        let now = match catalogue::look(self.directory, seal.successor_id) {
            Ok(found) => found.header().is_some_and(|(header, _)| header.salt == seal.successor_salt),
            Err(PersistenceError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        if now {
            return Ok(());
        }
        Err(Corruption {
            path: crate::formats::names::segment_path(seal.successor_id),
            offset: 0,
            entry_id: end.next_entry_id.unwrap_or(0),
            check: Check::SegmentMissing { segment_id: seal.successor_id },
            proof: Proof::NamedBySeal { path: self.chain.segments[index].path.clone() },
        }
        .into())
    }

    /// A file that was taken away while it was read may serve again, and its zeros look like the end of the log.
    fn check_still_there(&self, segment: &Started, end: &ScanEnd) -> PersistenceResult<()> {
        let is_sealed = end.seal.is_some_and(|seal| seal.reason != SealReason::Idle);
        let is_told = is_sealed || planted::on("zeros_end_the_log");
        if is_told || !catalogue::is_gone(self.directory, segment.id, segment.header.salt)? {
            return Ok(());
        }
        Err(PersistenceError::NotFound { path: segment.path.clone() })
    }

    fn unproven(&self, attested_entry_id: u64) -> Vec<Region> {
        let newest = self.scanned.len().saturating_sub(1);
        let open = self.scanned.iter().enumerate().filter(|(position, (_, end))| {
            // The newest may be no more than an opening, on which the next segment will rest.
            (*position == newest && !planted::on("unproven_forgets_newest"))
                || end.last_entry_id().unwrap_or(0) > attested_entry_id
        });
        open.filter_map(|(_, (index, end))| {
            let path = self.chain.segments[*index].path.clone();
            end.unproven_offset.map(|from| Region { path, from, to: end.offset })
        })
        .collect()
    }
}

/// Lists and resolves the whole log, beginning anew while truncation removes files in between.
pub fn read_chain<D: Directory + ?Sized>(directory: &D, identity: Option<u128>) -> PersistenceResult<Chain> {
    settled(|| catalogue::resolve(catalogue::read(directory)?, identity))
}

/// The same, where nothing behind the newest started segment matters.
pub fn read_started_chain<D: Directory + ?Sized>(directory: &D) -> PersistenceResult<Chain> {
    settled(|| catalogue::resolve(catalogue::read_started(directory)?, None))
}

/// The same for the part of the log that reaches from the segment of `from_entry_id` to its end: looks at no
/// more segments than that, and those of a binary search.
pub fn read_chain_from<D: Directory + ?Sized>(
    directory: &D,
    identity: Option<u128>,
    from_entry_id: u64,
) -> PersistenceResult<Chain> {
    if planted::on("seek_looks_at_all") {
        return read_chain(directory, identity);
    }
    let found = settled(|| match catalogue::read_from(directory, from_entry_id)? {
        Some(listing) => catalogue::resolve(listing, identity),
        // An empty chain: all of it has to be read.
        None => Ok(Chain::default()),
    });
    match found {
        Ok(chain) if chain.segments.first().is_some_and(|first| first.first_entry_id <= from_entry_id) => {
            Ok(chain)
        }
        // The log begins later, has a hole, or what is wrong with it is to be told by all of it.
        Ok(_) | Err(PersistenceError::Corruption(_) | PersistenceError::Format { .. }) => {
            read_chain(directory, identity)
        }
        Err(error) => Err(error),
    }
}

/// Reads a chain until nothing in it can be a race. Still listed and still not there is none with truncation; what
/// is wrong twice in the same way is none with a writer that is just making a segment.
pub(super) fn settled(read: impl Fn() -> PersistenceResult<Chain>) -> PersistenceResult<Chain> {
    let (mut retries, mut doubt) = (0, None);
    loop {
        let answer = read();
        let wrong = match &answer {
            Ok(chain) => chain.break_before.as_ref().map(ToString::to_string),
            Err(PersistenceError::NotFound { path }) if path == crate::formats::names::WAL_DIRECTORY => None,
            Err(error) if error.is_not_found() => Some(String::new()),
            Err(error @ (PersistenceError::Corruption(_) | PersistenceError::Format { .. })) => {
                Some(error.to_string())
            }
            Err(_) => None,
        };
        let is_settled = match &wrong {
            None => true,
            Some(wrong) if wrong.is_empty() => false,
            wrong if doubt == *wrong => true,
            _ => planted::on("believe_first_look") || planted::on("look_at_oldest_first"),
        };
        if is_settled || retries >= READER_RETRIES_MAX {
            return answer;
        }
        (retries, doubt) = (retries + 1, wrong);
    }
}
