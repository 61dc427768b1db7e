//! Which segments exist, and in which order they make a log.
//!
//! Reading looks at the first bytes of each file only. Resolving is pure: from what was found to the
//! chain of segments. The chain is followed backwards from the newest started segment through the salts
//! in the opening frames, so neither a copied nor a renamed nor an abandoned file can slip into it.

use crate::error::{Check, Corruption, PersistenceError, PersistenceResult, Proof};
use crate::formats::frame::{FrameHeaderState, FrameKind, FrameSeed, Opening, decode_header};
use crate::formats::header::{FileKind, Header, HeaderState, decode};
use crate::formats::is_zero;
use crate::formats::layout::{FRAME_HEADER_BYTES, HEADER_BYTES};
use crate::formats::names::{self, WalName};
use crate::formats::scan::KnownEnd;
use crate::limits::FRAME_ALIGNMENT_MAX;
use crate::planted;
use crate::storage::{Directory, ReadAt, is_zero_from, path};
use std::collections::BTreeMap;

/// A segment whose opening frame checks out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Segment id.
    pub id: u64,
    /// Path under the root.
    pub path: String,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Its header.
    pub header: Header,
    /// Its opening frame.
    pub opening: Opening,
    /// Id of its first entry.
    pub first_entry_id: u64,
    /// The durable watermark that the opening frame attests.
    pub durable_entry_id: u64,
}

impl Started {
    /// Where the segment before this one ends.
    pub fn predecessor_end(&self) -> KnownEnd {
        KnownEnd {
            offset: self.opening.predecessor_end,
            last_entry_id: self.opening.predecessor_last_entry_id,
        }
    }
}

/// What a file named like a segment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Started: header and opening frame check out.
    Started(Started),
    /// The header checks out, the opening frame does not.
    Unopened {
        /// Segment id.
        id: u64,
        /// Path under the root.
        path: String,
        /// Its header.
        header: Header,
        /// Whether nothing but zeros follows the header: it was prepared and never started.
        untouched: bool,
    },
    /// Empty, or nothing but zeros.
    Blank {
        /// Segment id, by its name.
        id: u64,
        /// Path under the root.
        path: String,
    },
    /// The header is damaged.
    Damaged {
        /// Segment id, by its name.
        id: u64,
        /// What does not check out.
        corruption: Corruption,
    },
}

impl Found {
    fn id(&self) -> u64 {
        match self {
            Self::Started(started) => started.id,
            Self::Unopened { id, .. } | Self::Blank { id, .. } | Self::Damaged { id, .. } => *id,
        }
    }

    /// The header and the path, where the header checks out.
    pub fn header(&self) -> Option<(&Header, &str)> {
        match self {
            Self::Started(started) => Some((&started.header, &started.path)),
            Self::Unopened { header, path, .. } => Some((header, path)),
            Self::Blank { .. } | Self::Damaged { .. } => None,
        }
    }
}

/// What cannot be done with a folder that holds a name which no release writes.
pub const READING: &str = "reading the log";

/// What is in the folder of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Files named like segments, by id.
    pub segments: Vec<Found>,
    /// Numbers of spare files.
    pub spares: Vec<u64>,
}

/// Names of the segment and spare files, by number. `NotFound` when there is no such folder.
pub fn list_names<D: Directory + ?Sized>(directory: &D) -> PersistenceResult<(Vec<u64>, Vec<u64>)> {
    let (mut segments, mut spares) = (Vec::new(), Vec::new());
    for name in directory.list_dir(names::WAL_DIRECTORY)? {
        match names::parse_wal_name(&name) {
            WalName::Segment(id) => segments.push(id),
            WalName::Spare(number) => spares.push(number),
            WalName::Suspect => {
                let path = path::join(names::WAL_DIRECTORY, &name);
                let reason = format!("{path} is spelt as no release does; move it away");
                return Err(PersistenceError::invalid_state(READING, reason));
            }
            WalName::Other => {}
        }
    }
    segments.sort_unstable();
    spares.sort_unstable();
    Ok((segments, spares))
}

/// Reads the first bytes of every segment. `NotFound` when there is no folder, or when a listed file is
/// gone (truncation runs beside readers: list again).
pub fn read<D: Directory + ?Sized>(directory: &D) -> PersistenceResult<Listing> {
    let (ids, spares) = list_names(directory)?;
    Ok(Listing { segments: look_at_each(&ids, |id| look(directory, id))?, spares })
}

/// Looks at segments from the newest to the oldest; the answer is in the order of `ids`, and an error is that of
/// the oldest which has one.
///
/// A live writer starts segments in the order of their ids: what is looked at behind a started segment was started
/// before it. The other way round it could have been looked at when it was only prepared, and there would be a hole
/// in the log.
pub fn look_at_each(
    ids: &[u64],
    look: impl Fn(u64) -> PersistenceResult<Found>,
) -> PersistenceResult<Vec<Found>> {
    if planted::on("look_at_oldest_first") {
        return ids.iter().map(|id| look(*id)).collect();
    }
    let mut found: Vec<_> = ids.iter().rev().map(|id| look(*id)).collect();
    found.reverse();
    found.into_iter().collect()
}

/// Reads the first bytes of the segment that holds `from_entry_id` (or would) and of all behind it, found by a
/// binary search. `None` where not every segment that was looked at was started: then all have to be read.
///
/// What lies before is not looked at, and not vouched for. Ids of entries may fall once where a recovery left a
/// segment behind, so the answer may be a segment that is not part of the log, or one too late: whoever follows
/// the chain finds that out.
pub fn read_from<D: Directory + ?Sized>(
    directory: &D,
    from_entry_id: u64,
) -> PersistenceResult<Option<Listing>> {
    let (ids, spares) = list_names(directory)?;
    // From the beginning on all of it is read, and nothing is to be searched for.
    let Some(oldest) = ids.first() else { return Ok(None) };
    if !matches!(look(directory, *oldest)?, Found::Started(oldest) if oldest.first_entry_id < from_entry_id) {
        return Ok(None);
    }
    let (mut lower, mut upper) = (0, ids.len());
    while lower + 1 < upper {
        let middle = lower + (upper - lower) / 2;
        match look(directory, ids[middle])? {
            Found::Started(started) if started.first_entry_id <= from_entry_id => lower = middle,
            Found::Started(_) => upper = middle,
            // What was prepared and never started lies at the end.
            Found::Unopened { untouched: true, .. } | Found::Blank { .. } => upper = middle,
            Found::Unopened { .. } | Found::Damaged { .. } => return Ok(None),
        }
    }
    Ok(Some(Listing { segments: look_at_each(&ids[lower..], |id| look(directory, id))?, spares }))
}

/// [`read`], without reading to its end what was prepared behind the newest started segment: nothing there is called
/// unfinished. For whoever asks for the chain alone.
pub fn read_started<D: Directory + ?Sized>(directory: &D) -> PersistenceResult<Listing> {
    let (ids, spares) = list_names(directory)?;
    let mut segments = Vec::with_capacity(ids.len());
    let mut is_behind = true;
    for id in ids.into_iter().rev() {
        let found = match look_at(directory, id, !is_behind)? {
            // A header of zeros with something behind it is damage, wherever it is.
            Found::Blank { .. } => look(directory, id)?,
            found => found,
        };
        is_behind &= !matches!(found, Found::Started(_));
        segments.push(found);
    }
    segments.reverse();
    Ok(Listing { segments, spares })
}

/// Whether a segment that was there is there no more: truncation has taken its file away, which may serve again.
pub fn is_gone<D: Directory + ?Sized>(directory: &D, id: u64, salt: u64) -> PersistenceResult<bool> {
    let file = match directory.open_at(&names::segment_path(id)) {
        Err(error) if error.is_not_found() => return Ok(true),
        opened => opened?,
    };
    let mut block = [0; HEADER_BYTES];
    let read = file.read_at(0, &mut block)?;
    let state = decode(FileKind::Segment, &block[..read]);
    Ok(!matches!(state, HeaderState::Good(header) if header.salt == salt))
}

/// [`look`], without reading to its end what was prepared: nothing is called touched that was not started.
pub fn look_at_beginning<D: Directory + ?Sized>(directory: &D, id: u64) -> PersistenceResult<Found> {
    look_at(directory, id, false)
}

/// Looks at one segment. `NotFound` when it is not there.
pub fn look<D: Directory + ?Sized>(directory: &D, id: u64) -> PersistenceResult<Found> {
    look_at(directory, id, true)
}

fn look_at<D: Directory + ?Sized>(directory: &D, id: u64, to_its_end: bool) -> PersistenceResult<Found> {
    let path = names::segment_path(id);
    let file = directory.open_at(&path)?;
    let file_bytes = file.size()?;
    let mut block = [0; 2 * FRAME_ALIGNMENT_MAX as usize];
    let read = file.read_at(0, &mut block)?;
    let block = &block[..read];
    let damaged = |check| {
        let corruption =
            Corruption { path: path.clone(), offset: 0, entry_id: 0, check, proof: Proof::FullyWritten };
        Found::Damaged { id, corruption }
    };
    let header = match decode(FileKind::Segment, &block[..read.min(HEADER_BYTES)]) {
        HeaderState::Good(header) => header,
        HeaderState::Blank if rest_is_zero_to(to_its_end, file.as_ref(), block, HEADER_BYTES as u64)? => {
            return Ok(Found::Blank { id, path });
        }
        HeaderState::Blank => {
            // A live writer may have begun it since: its header came before everything else.
            let mut again = [0; HEADER_BYTES];
            let read = file.read_at(0, &mut again)?;
            if decode(FileKind::Segment, &again[..read]) != HeaderState::Blank {
                return look(directory, id);
            }
            return Ok(damaged(Check::HeaderChecksum { expected: 0, found: 0 }));
        }
        HeaderState::Damaged { expected, found } => {
            return Ok(damaged(Check::HeaderChecksum { expected, found }));
        }
        HeaderState::Unusable(problem) => return Err(PersistenceError::Format { path, problem }),
    };
    let offset = header.first_frame_offset();
    if let Some((opening, first_entry_id, durable_entry_id)) = read_opening(block, &header) {
        return Ok(Found::Started(Started {
            id,
            path,
            file_bytes,
            header,
            opening,
            first_entry_id,
            durable_entry_id,
        }));
    }
    let untouched = rest_is_zero_to(to_its_end, file.as_ref(), block, offset)?;
    Ok(Found::Unopened { id, path, header, untouched })
}

/// The opening frame behind a header: what it says, its first entry id and its watermark.
fn read_opening(block: &[u8], header: &Header) -> Option<(Opening, u64, u64)> {
    let offset = header.first_frame_offset();
    let seed = FrameSeed::new(header.salt);
    let frame = block.get(offset as usize..offset as usize + header.frame_alignment as usize)?;
    let FrameHeaderState::Good(frame_header) = decode_header(frame, offset, seed) else { return None };
    let sound = frame_header.kind == FrameKind::Opening
        && frame_header.frame_bytes(header.frame_alignment) == frame.len() as u64
        && seed.payload_crc(&frame[FRAME_HEADER_BYTES..]) == frame_header.payload_crc;
    if !sound {
        return None;
    }
    let opening = Opening::decode(&frame[FRAME_HEADER_BYTES..][..frame_header.payload_bytes as usize])?;
    let consistent = opening.predecessor_last_entry_id.checked_add(1) == Some(frame_header.first_entry_id);
    consistent.then_some((opening, frame_header.first_entry_id, frame_header.durable_entry_id))
}

/// Whether nothing was written from an offset on: to the end of the file, or in its first bytes, where what begins a
/// segment would stand.
fn rest_is_zero_to(to_its_end: bool, file: &dyn ReadAt, first: &[u8], from: u64) -> PersistenceResult<bool> {
    if to_its_end {
        return is_zero_from(file, from);
    }
    Ok(is_zero(first.get(from as usize..).unwrap_or_default()))
}

/// The segments of a log, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Started segments, each continuing the one before.
    pub segments: Vec<Started>,
    /// Headers that check out behind the newest started segment, whose opening frame does not, although
    /// something was written: what a crash leaves of a first commit, or damage.
    pub unfinished: Vec<(String, Header)>,
    /// Segments that a recovery left behind: later ones continue the log from before them.
    pub abandoned: Vec<String>,
    /// Files that were prepared and never started, by id.
    pub unstarted: Vec<u64>,
    /// Why nothing before the first segment can be read, where something should be there.
    pub break_before: Option<Corruption>,
    /// Identity of the log, where any header was readable.
    pub identity: Option<u128>,
    /// Largest id in use by any file.
    pub highest_id: u64,
    /// Ids and salts of every segment with a readable header.
    known: Vec<(u64, u64)>,
    /// Spare files.
    pub spares: Vec<u64>,
}

impl Chain {
    /// Whether a segment with this id and salt exists.
    pub fn knows(&self, id: u64, salt: u64) -> bool {
        self.known.contains(&(id, salt))
    }

    /// Index of the segment that holds `entry_id` (or would). An error when the log begins later.
    pub fn find(&self, entry_id: u64) -> PersistenceResult<usize> {
        let first_entry_id = self.segments.first().map_or(1, |first| first.first_entry_id);
        if entry_id < first_entry_id {
            return Err(match &self.break_before {
                Some(corruption) if !planted::on("hole_is_truncation") => {
                    Corruption { entry_id, ..corruption.clone() }.into()
                }
                _ => PersistenceError::PrefixUnavailable { wanted_entry_id: entry_id, first_entry_id },
            });
        }
        Ok(self.segments.partition_point(|segment| segment.first_entry_id <= entry_id).saturating_sub(1))
    }
}

/// Follows the chain. `expected` is the log's identity where something outside the log knows it.
pub fn resolve(listing: Listing, expected: Option<u128>) -> PersistenceResult<Chain> {
    let mut chain = Chain { spares: listing.spares.clone(), ..Chain::default() };
    check_identities(&listing, expected, &mut chain)?;
    chain.highest_id = listing.segments.last().map_or(0, Found::id);

    let newest = listing.segments.iter().rposition(|found| matches!(found, Found::Started(_)));
    let mut in_chain = vec![false; listing.segments.len()];
    let mut cursor = newest;
    while let Some(index) = cursor {
        let Found::Started(started) = &listing.segments[index] else { break };
        in_chain[index] = true;
        chain.segments.push(started.clone());
        let Opening { predecessor_salt: salt, predecessor_id: id, .. } = started.opening;
        // Only older segments can be continued: no cycle is possible, and looked for from the newest on each is
        // passed once.
        cursor = listing.segments[..index].iter().rposition(|found| {
            salt != 0 && matches!(found, Found::Started(other) if (other.id, other.header.salt) == (id, salt))
        });
    }
    chain.segments.reverse();
    check_order(&chain.segments)?;
    let oldest_index = in_chain.iter().position(|in_chain| *in_chain);
    for (index, found) in listing.segments.into_iter().enumerate() {
        if in_chain[index] {
            continue;
        }
        let behind = newest.is_none_or(|newest| index > newest);
        let before = oldest_index.is_some_and(|oldest| index < oldest);
        match found {
            Found::Damaged { corruption, .. } if behind => return Err(corruption.into()),
            Found::Damaged { corruption, .. } if before => {
                chain.break_before.get_or_insert(corruption);
            }
            // Truncation leaves no file behind: a predecessor without contents has lost them.
            Found::Started(_) | Found::Blank { .. } | Found::Unopened { .. }
                if before && is_needed(&found, &chain.segments[0]) =>
            {
                let missing = missing_before(&chain.segments[0]);
                chain.break_before.get_or_insert(missing);
            }
            Found::Unopened { path, header, untouched: false, .. } if behind => {
                chain.unfinished.push((path, header))
            }
            Found::Unopened { id, untouched: true, .. } | Found::Blank { id, .. } => chain.unstarted.push(id),
            Found::Started(Started { path, .. })
            | Found::Unopened { path, .. }
            | Found::Damaged { corruption: Corruption { path, .. }, .. } => chain.abandoned.push(path),
        }
    }
    Ok(chain)
}

/// No segment begins before the one that it continues; with it, where that one got no entries. Searching rests on
/// it.
fn check_order(segments: &[Started]) -> PersistenceResult<()> {
    let pairs = segments.iter().zip(segments.iter().skip(1));
    for (before, segment) in pairs {
        let (expected, found) = (before.first_entry_id, segment.first_entry_id);
        if found < expected {
            let (path, offset) = (segment.path.clone(), segment.header.first_frame_offset());
            let (check, proof) = (Check::EntryOrder { expected, found }, Proof::Contradiction);
            return Err(Corruption { path, offset, entry_id: found, check, proof }.into());
        }
    }
    Ok(())
}

/// Whether a file before the chain shows that something is missing there: it was started, or it is the one
/// that the chain continues.
fn is_needed(found: &Found, oldest: &Started) -> bool {
    matches!(found, Found::Started(_)) || found.id() == oldest.opening.predecessor_id
}

fn missing_before(oldest: &Started) -> Corruption {
    Corruption {
        path: names::segment_path(oldest.opening.predecessor_id),
        offset: 0,
        entry_id: 0,
        check: Check::SegmentMissing { segment_id: oldest.opening.predecessor_id },
        proof: Proof::NamedBySuccessor { path: oldest.path.clone() },
    }
}

fn check_identities(listing: &Listing, expected: Option<u128>, chain: &mut Chain) -> PersistenceResult<()> {
    // The most of them know whose log it is: a stranger among them is the one that is named.
    let mut counts = BTreeMap::<u128, usize>::new();
    for (header, _) in listing.segments.iter().filter_map(Found::header) {
        *counts.entry(header.identity).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(identity, _)| identity);
    chain.identity = expected.or(most);
    for found in &listing.segments {
        let Some((header, path)) = found.header() else { continue };
        let wrong = |check| {
            let path = path.to_owned();
            Err(Corruption { path, offset: 0, entry_id: 0, check, proof: Proof::Contradiction }.into())
        };
        if header.file_id != found.id() && !planted::on("ignore_file_id") {
            return wrong(Check::SegmentName { named: found.id(), stated: header.file_id });
        }
        if let Some(expected) = chain.identity.filter(|identity| *identity != header.identity) {
            return wrong(Check::Identity { expected, found: header.identity });
        }
        chain.known.push((header.file_id, header.salt));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(id: u64, predecessor: u64, first: u64) -> Found {
        let header = Header { file_id: id, ..Header::new(FileKind::Segment, 512, 7, 1000 + id) };
        let opening = Opening {
            predecessor_salt: if predecessor == 0 { 0 } else { 1000 + predecessor },
            predecessor_id: predecessor,
            predecessor_end: 4096,
            predecessor_last_entry_id: first - 1,
        };
        Found::Started(Started {
            id,
            path: names::segment_path(id),
            file_bytes: 8192,
            header,
            opening,
            first_entry_id: first,
            durable_entry_id: first - 1,
        })
    }

    fn unopened(id: u64, untouched: bool) -> Found {
        let header = Header { file_id: id, ..Header::new(FileKind::Segment, 512, 7, 1000 + id) };
        Found::Unopened { id, path: names::segment_path(id), header, untouched }
    }

    fn chain(segments: Vec<Found>) -> PersistenceResult<Chain> {
        resolve(Listing { segments, spares: vec![] }, None)
    }

    fn ids(chain: &Chain) -> Vec<u64> {
        chain.segments.iter().map(|segment| segment.id).collect()
    }

    #[test]
    fn a_log_is_followed_back_from_its_newest_segment() {
        let log = chain(vec![started(1, 0, 1), started(2, 1, 5), started(3, 2, 9)]).expect("resolves");
        assert_eq!(ids(&log), [1, 2, 3]);
        assert_eq!([1, 4, 5, 8, 9, 100].map(|id| log.find(id).expect("found")), [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_truncated_prefix_is_unavailable_and_a_hole_is_corruption() {
        let log = chain(vec![started(2, 1, 5), started(3, 2, 9)]).expect("resolves");
        assert!(matches!(
            log.find(4),
            Err(PersistenceError::PrefixUnavailable { wanted_entry_id: 4, first_entry_id: 5 })
        ));
        let log = chain(vec![started(1, 0, 1), started(3, 2, 9)]).expect("resolves");
        assert_eq!(ids(&log), [3]);
        let error = log.find(8).expect_err("a hole");
        assert!(matches!(
            error.corruption(),
            Some(Corruption { check: Check::SegmentMissing { segment_id: 2 }, .. })
        ));
        assert!(log.find(9).is_ok(), "what a checkpoint covers blocks nothing");
    }

    #[test]
    fn a_segment_that_recovery_left_behind_is_not_part_of_the_log() {
        let log = chain(vec![started(1, 0, 1), started(2, 1, 5), started(3, 1, 5)]).expect("resolves");
        assert_eq!((ids(&log), log.abandoned.len()), (vec![1, 3], 1));
    }

    #[test]
    fn a_segment_that_begins_before_the_one_it_continues_is_an_error() {
        let log =
            chain(vec![started(1, 0, 1), started(2, 1, 5), started(3, 2, 5)]).expect("one without entries");
        assert_eq!(log.find(5).expect("found"), 2);
        let error = chain(vec![started(1, 0, 1), started(2, 1, 9), started(3, 2, 4)]).expect_err("ids fall");
        let order = Check::EntryOrder { expected: 9, found: 4 };
        assert!(
            error.corruption().is_some_and(|found| found.check == order && found.path.ends_with("_3.log"))
        );
    }

    #[test]
    fn prepared_files_are_no_part_and_unfinished_ones_are_looked_at() {
        let log = chain(vec![started(1, 0, 1), unopened(2, true), unopened(3, false)]).expect("resolves");
        assert_eq!(
            (ids(&log), log.unstarted.clone(), log.unfinished.len(), log.highest_id),
            (vec![1], vec![2], 1, 3)
        );
    }

    #[test]
    fn a_copy_under_another_name_and_a_stranger_are_errors() {
        let Found::Started(mut copy) = started(2, 1, 5) else { unreachable!() };
        copy.id = 3;
        let error = chain(vec![started(1, 0, 1), Found::Started(copy)]).expect_err("a copy");
        assert!(matches!(
            error.corruption(),
            Some(Corruption { check: Check::SegmentName { named: 3, stated: 2 }, .. })
        ));

        let Found::Started(mut stranger) = started(2, 1, 5) else { unreachable!() };
        stranger.header.identity = 8;
        let error = chain(vec![started(1, 0, 1), Found::Started(stranger)]).expect_err("a stranger");
        assert!(matches!(error.corruption(), Some(Corruption { check: Check::Identity { .. }, .. })));
    }

    #[test]
    fn a_damaged_newest_segment_is_an_error_and_a_damaged_truncatable_one_is_not() {
        let damaged = |id| Found::Damaged {
            id,
            corruption: Corruption {
                path: names::segment_path(id),
                offset: 0,
                entry_id: 0,
                check: Check::HeaderChecksum { expected: 1, found: 2 },
                proof: Proof::FullyWritten,
            },
        };
        assert!(chain(vec![started(1, 0, 1), damaged(2)]).expect_err("damage").is_corruption());
        let log = chain(vec![damaged(1), started(2, 1, 5)]).expect("resolves");
        assert!(log.find(1).expect_err("needed").is_corruption());
        assert!(log.find(5).is_ok());
    }

    /// Quadratic, this took minutes.
    #[test]
    fn a_log_of_very_many_segments_is_resolved_at_once() {
        let segments = (1..=200_000).map(|id| started(id, id - 1, id)).collect();
        assert_eq!(chain(segments).expect("resolves").segments.len(), 200_000);
    }
}
