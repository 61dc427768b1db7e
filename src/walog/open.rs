//! What opening a log does before there is a writer: the folder, the locks, the end of what is there.

use super::catalogue::{self, Chain};
use super::options::WalOptions;
use super::walk::{self, LastSegment, LogEnd, Requirements};
use crate::error::{Check, Corruption, PersistenceError, PersistenceResult, Proof};
use crate::formats::frame::{FrameHeaderState, FrameKind, FrameSeed, Opening, Seal, decode_header};
use crate::formats::layout::FRAME_HEADER_BYTES;
use crate::formats::names;
use crate::framing::FrameReader;
use crate::planted;
use crate::storage::Directory;
use std::time::Duration;

/// How a log is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// There must be no segment yet.
    New,
    /// Continue the log, or begin one.
    NewOrExisting,
    /// There must be a log. A torn tail is accepted if asked for.
    Existing {
        /// Whether a torn tail is accepted.
        accept_torn: bool,
    },
}

pub(super) fn prepare_folder<D: Directory + ?Sized>(directory: &D, how: OpenMode) -> PersistenceResult<()> {
    if matches!(how, OpenMode::Existing { .. }) && catalogue::list_names(directory)?.0.is_empty() {
        // Not even a lock is made where a log was expected.
        return Err(PersistenceError::NotFound { path: names::segment_path(1) });
    }
    match directory.as_durable() {
        // Also where the folder exists: whoever made it may have died before its name was durable.
        Some(durable) if !planted::on("skip_folder_sync") => {
            durable.create_dir_all_durable(names::WAL_DIRECTORY)
        }
        _ => directory.create_dir_all(names::WAL_DIRECTORY),
    }
}

/// Waits until no request of a killed predecessor is landing in any file of the log.
pub(super) fn await_predecessor<D: Directory + ?Sized>(
    directory: &D,
    wait: Duration,
) -> PersistenceResult<()> {
    if planted::on("lock_file_only") {
        return Ok(());
    }
    let (segments, spares) = catalogue::list_names(directory)?;
    let segments = segments.into_iter().map(names::segment_path);
    for path in segments.chain(spares.into_iter().map(names::spare_path)) {
        match directory.await_unlocked(&path, wait) {
            // Truncation beside us was faster; nothing lands there any more.
            Err(error) if error.is_not_found() => {}
            awaited => awaited?,
        }
    }
    Ok(())
}

/// The segment that a seal behind the contents of the log's last segment names.
fn named_successor<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    end: &LogEnd,
) -> PersistenceResult<Option<u64>> {
    let last = |last: LastSegment| chain.segments.iter().find(|segment| segment.id == last.id);
    let Some((segment, last)) = end.last_segment.and_then(|end| Some((last(end)?, end))) else {
        return Ok(None);
    };
    let file = directory.open_at(&segment.path)?;
    let mut block = vec![0; segment.header.frame_alignment as usize];
    let mut offset = last.end_offset;
    loop {
        if file.read_at(offset, &mut block)? < block.len() {
            return Ok(None);
        }
        let seed = FrameSeed::new(last.salt);
        let FrameHeaderState::Good(header) = decode_header(&block, offset, seed) else { return Ok(None) };
        let payload = FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.payload_bytes as usize;
        let is_sound = header.kind == FrameKind::Seal
            && seed.payload_crc(&block[FRAME_HEADER_BYTES..]) == header.payload_crc;
        let seal = block.get(payload).filter(|_| is_sound).and_then(Seal::decode);
        match seal {
            None => return Ok(None),
            Some(seal) if seal.successor_id > 0 => return Ok(Some(seal.successor_id)),
            Some(_) => offset += block.len() as u64,
        }
    }
}

pub(super) fn check_is_new(chain: &Chain, how: OpenMode) -> PersistenceResult<()> {
    if how == OpenMode::New && chain.highest_id > 0 {
        let reason = "segments exist already; open the log or resume it";
        return Err(PersistenceError::invalid_state("beginning a new log", reason));
    }
    Ok(())
}

/// Whether there is a log where one was expected. Asked when its end is known: what damage has taken away is
/// not absent.
pub(super) fn check_exists(chain: &Chain, end: &LogEnd, how: OpenMode) -> PersistenceResult<()> {
    let OpenMode::Existing { accept_torn } = how else { return Ok(()) };
    if let Some(torn) = end.torn.as_ref().filter(|_| !accept_torn) {
        return Err(torn.clone().into());
    }
    if chain.segments.is_empty() {
        return Err(PersistenceError::NotFound { path: names::segment_path(chain.highest_id.max(1)) });
    }
    Ok(())
}

pub(super) fn find_end<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    options: &WalOptions,
    known: Option<&LogEnd>,
) -> PersistenceResult<LogEnd> {
    let end = match known {
        Some(known) => check_known(directory, chain, known)?,
        None => {
            let requirements = Requirements { id_floor: options.id_floor, ..Requirements::default() };
            walk::find_end(directory, chain, &requirements)?
        }
    };
    if end.last_entry_id < options.id_floor && !planted::on("forget_id_floor") {
        // Ids never go back, and a log that ends before its checkpoint has lost something.
        return Err(Corruption {
            path: chain
                .segments
                .last()
                .map_or_else(|| names::WAL_DIRECTORY.to_owned(), |last| last.path.clone()),
            offset: end.last_segment.map_or(0, |last| last.end_offset),
            entry_id: end.last_entry_id + 1,
            check: Check::LogEnd { last_entry_id: end.last_entry_id, required_entry_id: options.id_floor },
            proof: Proof::RequiredByCheckpoint {
                entry_id: options.id_floor,
                path: "behind the id floor".to_owned(),
            },
        }
        .into());
    }
    Ok(end)
}

/// An end that was read before still is one: the newest segment is the same, and no frame has come since.
pub(super) fn check_known<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    known: &LogEnd,
) -> PersistenceResult<LogEnd> {
    let same = match (chain.segments.last(), known.last_segment) {
        (None, None) => true,
        (Some(newest), Some(last)) if known.dropped.is_empty() => {
            (newest.id, newest.header.salt) == (last.id, last.salt) && {
                let file = directory.open_at(&newest.path)?;
                let next = known.last_entry_id + 1;
                !FrameReader::continues(file, &newest.path, &newest.header, last.end_offset, next)?
            }
        }
        // Segments that are to be dropped: worth looking again.
        (Some(_), Some(last)) => {
            let again = walk::find_end(directory, chain, &Requirements::default())?;
            again.last_segment == Some(last) && again.last_entry_id == known.last_entry_id
        }
        _ => false,
    };
    if same {
        return Ok(known.clone());
    }
    Err(PersistenceError::invalid_state("opening the log", "it changed since it was read; recover again"))
}

pub(super) fn opening_after(end: &LogEnd) -> Opening {
    let (predecessor_salt, predecessor_id, predecessor_end) = match end.last_segment {
        Some(LastSegment { id, salt, end_offset }) => (salt, id, end_offset),
        None => (0, 0, 0),
    };
    Opening {
        predecessor_salt,
        predecessor_id,
        predecessor_end,
        predecessor_last_entry_id: end.last_entry_id,
    }
}

/// Removes files that were prepared by an earlier writer and never started. The one that the log's last seal names
/// stays until a later segment is started: its loss would be damage.
pub(super) fn remove_unstarted<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    end: &LogEnd,
) -> PersistenceResult<()> {
    if chain.unstarted.is_empty() {
        return Ok(());
    }
    let named = named_successor(directory, chain, end)?.filter(|_| !planted::on("remove_named_successor"));
    for id in chain.unstarted.iter().filter(|id| Some(**id) != named) {
        match directory.delete(&names::segment_path(*id)) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
