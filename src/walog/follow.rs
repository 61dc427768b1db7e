//! Following a log while it is written: each entry once it is known, from the disk alone, to be durable.
//!
//! Two readers run over the same files: the scout reads on as far as frames check out and collects what they
//! attest; the other hands out what is attested by then. So nothing is kept, however long a writer goes on
//! without a sync. Nothing is judged here: where what is attested cannot be read, replay says why.

use super::catalogue::{self, Chain, Found, Started};
use super::reader::{WalReader, WalReplayMode};
use super::walk;
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::{Entries, FrameKind};
use crate::formats::names;
use crate::framing::{Frame, FrameReader};
use crate::planted;
use crate::storage::Directory;
use std::sync::Arc;

/// Follows a log beside its writer, across rotation, recycling and recovery by another writer. Takes no lock
/// and changes nothing.
///
/// An entry is handed out when something on the disk attests that it is durable: a later frame, a seal
/// ([`attest`](super::WalWriter::attest), rotation, close) or the opening of a later segment. The last commit
/// of a writer that then pauses is therefore seen only with the next one, or with a seal. What was handed out
/// is never taken back.
pub struct WalFollower<D: Directory + ?Sized = dyn Directory> {
    directory: Arc<D>,
    next_entry_id: u64,
    durable_entry_id: u64,
    chain: Chain,
    at: Option<Place>,
    scout: Option<Place>,
}

/// A reader, and the index of its segment in the chain.
struct Place {
    segment: usize,
    reader: FrameReader,
}

impl<D: Directory + ?Sized> WalFollower<D> {
    /// Follows the log in `directory` from `from_entry_id` on, or from its first entry.
    pub fn new(directory: Arc<D>, from_entry_id: Option<u64>) -> PersistenceResult<Self> {
        let chain = walk::read_chain(directory.as_ref(), None)?;
        let first = chain.segments.first().map_or(1, |first| first.first_entry_id);
        let mut follower = Self {
            directory,
            next_entry_id: from_entry_id.unwrap_or(first).max(1),
            durable_entry_id: 0,
            chain: Chain::default(),
            at: None,
            scout: None,
        };
        follower.take_places(chain)?;
        Ok(follower)
    }

    /// The entry that comes next.
    pub fn next_entry_id(&self) -> u64 {
        self.next_entry_id
    }

    /// Everything up to here is known to be durable.
    pub fn durable_entry_id(&self) -> u64 {
        self.durable_entry_id
    }

    /// Hands every entry that has become known to be durable to `visit`, in order, and returns how many there
    /// were; does not wait for more.
    ///
    /// `PrefixUnavailable` when truncation was faster. Corruption where replay finds it. An error of `visit`
    /// ends the call; its entry counts as handed out.
    pub fn poll(
        &mut self,
        mut visit: impl FnMut(u64, &[u8]) -> PersistenceResult<()>,
    ) -> PersistenceResult<u64> {
        let before = self.next_entry_id;
        let mut renewed = false;
        loop {
            self.scout()?;
            let handed_out = self.hand_out(&mut visit)?;
            if handed_out {
                renewed = false;
            }
            if !renewed && self.may_go_on_elsewhere()? {
                renewed = true;
                match walk::read_chain(self.directory.as_ref(), self.chain.identity) {
                    Ok(chain) => {
                        self.check_vanished(&chain)?;
                        self.take_places(chain)?;
                    }
                    // A folder that is gone is no log without news.
                    Err(PersistenceError::NotFound { path })
                        if path != names::WAL_DIRECTORY || planted::on("follower_waits_for_folder") => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            if self.next_entry_id <= self.durable_entry_id {
                self.explain()?;
            }
            return Ok(self.next_entry_id - before);
        }
    }

    /// Reads ahead, for what is attested.
    fn scout(&mut self) -> PersistenceResult<()> {
        while let Some(scout) = &mut self.scout {
            while next(&mut scout.reader)?.is_some() {}
            let attested = scout.reader.end().attested.durable_entry_id;
            self.durable_entry_id = self.durable_entry_id.max(attested);
            let segment = scout.segment + 1;
            if segment >= self.chain.segments.len() {
                break;
            }
            self.scout = place(self.directory.as_ref(), &self.chain, segment)?;
        }
        Ok(())
    }

    /// Hands out what is attested; `true` when there was anything.
    fn hand_out(
        &mut self,
        visit: &mut dyn FnMut(u64, &[u8]) -> PersistenceResult<()>,
    ) -> PersistenceResult<bool> {
        let mut any = false;
        while self.next_entry_id <= self.durable_entry_id || planted::on("follow_hands_out_unattested") {
            let Some(at) = &mut self.at else { break };
            let Some(frame) = next(&mut at.reader)? else {
                // A segment that is not read to its end is not left behind: that would be a gap.
                if !walk::reaches_successor(at.reader.end()) && !planted::on("follow_leaves_gaps") {
                    break;
                }
                self.at = place(self.directory.as_ref(), &self.chain, at.segment + 1)?;
                continue;
            };
            if frame.header.kind != FrameKind::Data || frame.header.next_entry_id() <= self.next_entry_id {
                continue;
            }
            // Frames are acknowledged whole, so a watermark never stands inside of one.
            for (entry_id, payload) in Entries::new(&frame.header, frame.payload) {
                if entry_id >= self.next_entry_id {
                    self.next_entry_id = entry_id + 1;
                    any = true;
                    visit(entry_id, payload)?;
                }
            }
        }
        Ok(any)
    }

    /// Whether a segment was started that was none when the log was listed, or one was taken away that is
    /// still needed.
    fn may_go_on_elsewhere(&self) -> PersistenceResult<bool> {
        if planted::on("follow_stays_in_its_segment") {
            return Ok(false);
        }
        if self.next_entry_id <= self.durable_entry_id || self.chain.segments.is_empty() {
            return Ok(true);
        }
        let newest = self.chain.segments.last().map_or(0, |newest| newest.id);
        let (ids, _) = catalogue::list_names(self.directory.as_ref())?;
        if !ids.contains(&newest) && !planted::on("follower_waits_for_segments") {
            return Ok(true);
        }
        for id in ids.into_iter().filter(|id| *id > newest) {
            match catalogue::look(self.directory.as_ref(), id) {
                Ok(Found::Started(_)) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// A log never loses its newest segment: where none is left of what was there, it is not the log that is there.
    fn check_vanished(&self, now: &Chain) -> PersistenceResult<()> {
        match self.chain.segments.last() {
            Some(newest) if now.segments.is_empty() => {
                Err(PersistenceError::NotFound { path: newest.path.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Where in this chain reading goes on.
    fn take_places(&mut self, chain: Chain) -> PersistenceResult<()> {
        let segments = &chain.segments;
        if segments.is_empty() {
            self.chain = chain;
            return Ok(());
        }
        let at = chain.find(self.next_entry_id)?;
        // What a later segment attests needs no scout.
        let mut start = segments.len() - 1;
        while start > at
            && segments[start].durable_entry_id < segments[start].opening.predecessor_last_entry_id
        {
            start -= 1;
        }
        let attested = segments.iter().map(|segment| segment.durable_entry_id).max().unwrap_or(0);
        self.durable_entry_id = self.durable_entry_id.max(attested);
        self.at = place(self.directory.as_ref(), &chain, at)?;
        self.scout = place(self.directory.as_ref(), &chain, start)?;
        self.chain = chain;
        Ok(())
    }

    /// What is attested is not to be had: replay knows why, or it is a race that the next look settles.
    fn explain(&self) -> PersistenceResult<()> {
        let reader = WalReader::<(), D>::new(Arc::clone(&self.directory));
        reader.replay_bytes_from(self.next_entry_id, WalReplayMode::BestEffortTail, |_, _| Ok(()))?;
        Ok(())
    }
}

/// A place at the beginning of a segment. `None` behind the last one, and where truncation has been since the
/// chain was listed: then there is a newer segment, which the next look finds.
fn place<D: Directory + ?Sized>(
    directory: &D,
    chain: &Chain,
    segment: usize,
) -> PersistenceResult<Option<Place>> {
    let Some(found) = chain.segments.get(segment) else { return Ok(None) };
    let known_end = chain.segments.get(segment + 1).map(Started::predecessor_end);
    let file = match directory.open_at(&found.path) {
        Err(error) if error.is_not_found() => return Ok(None),
        opened => opened?,
    };
    let reader = FrameReader::new(file, &found.path, &found.header, known_end)?;
    Ok(Some(Place { segment, reader }))
}

/// The next frame; a file that was cut while it was read has none for now.
fn next(reader: &mut FrameReader) -> PersistenceResult<Option<Frame<'_>>> {
    match reader.next_live_frame() {
        Err(PersistenceError::Io { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            Ok(None)
        }
        result => result,
    }
}

impl<D: Directory + ?Sized> std::fmt::Debug for WalFollower<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalFollower")
            .field("next_entry_id", &self.next_entry_id)
            .field("durable_entry_id", &self.durable_entry_id)
            .finish_non_exhaustive()
    }
}
