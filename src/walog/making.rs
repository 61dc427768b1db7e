//! Makes one segment that is ready for its first commit: named, zero-filled, locked, with a durable header.
//!
//! Lives here: the steps of making one, in their order, whoever takes them. Not here: when, and by whom
//! (`pool`); what is written into it (`appender`).
//!
//! Invariants: until its first commit a segment says only who it is, and everything behind its header reads as
//! zeros; a file that served before is zeroed whole, durably, before it gets its new name; the file's own lock is
//! taken before anything is written to it.

use super::catalogue;
use super::options::WalOptions;
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::header::{FileKind, Header};
use crate::formats::names;
use crate::framing::header_commit;
use crate::limits::{PREPARE_CHUNK_BYTES, ZERO_FILL_BYTES};
use crate::planted;
use crate::storage::{
    Commit, CommitBuffer, CommitFile, Directory, Effect, FileOptions, Latch, open_commit_file,
};
use std::sync::Arc;

/// A segment that is ready for its first commit.
#[derive(Debug)]
pub(super) struct Prepared {
    pub file: Arc<dyn CommitFile>,
    pub id: u64,
    pub path: String,
    pub salt: u64,
    /// Size of the file, all of it zeros behind the header.
    pub bytes: u64,
}

/// What the segments of a log have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    pub identity: u128,
    pub frame_alignment: u32,
    /// How much is zero-filled, in bytes.
    pub fill_bytes: u64,
    /// Space for that is asked for instead, and nothing is written: it reads as zeros all the same.
    pub asks_only: bool,
    /// Whether files that served before may serve again.
    pub recycle: bool,
    pub is_durable: bool,
    /// In small steps, or as fast as it goes.
    pub in_steps: bool,
}

impl Recipe {
    /// For a segment that somebody waits for.
    pub fn now(options: &WalOptions, identity: u128, is_durable: bool) -> Self {
        Self {
            identity,
            frame_alignment: options.frame_alignment,
            fill_bytes: options.zero_filled_bytes(),
            asks_only: false,
            recycle: options.recycle_capacity > 0,
            is_durable,
            in_steps: false,
        }
    }

    /// For one that is made ahead of need: whole, with room for its seals.
    pub fn ahead(options: &WalOptions, identity: u128, is_durable: bool) -> Self {
        let fill_bytes = whole_bytes(options);
        Self { fill_bytes, in_steps: is_durable, ..Self::now(options, identity, is_durable) }
    }

    /// The same, where hardly anybody waits for commits: whole, and nothing written twice.
    pub fn for_stream(self, options: &WalOptions) -> Self {
        let fill_bytes = whole_bytes(options);
        Self { fill_bytes, asks_only: self.is_durable && fill_bytes > 0, ..self }
    }
}

fn whole_bytes(options: &WalOptions) -> u64 {
    let alignment = u64::from(options.frame_alignment);
    let whole = options.segment_bytes_max.min(u64::MAX / 2).div_ceil(alignment) * alignment + 2 * alignment;
    if options.preallocate_bytes == 0 { 0 } else { whole + options.filler_bytes(whole) }
}

/// A segment in the making.
pub(super) struct Making {
    recipe: Recipe,
    id: u64,
    salt: u64,
    path: String,
    /// Files of segments before this one may serve again.
    spares_below: u64,
    /// The file that served before and becomes the segment.
    spare: Option<String>,
    file: Option<Box<dyn CommitFile>>,
    stage: Stage,
    zeros: CommitBuffer,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Zero { from: u64, to: u64 },
    TakeName,
    Header,
    SyncName,
    Done,
}

impl Making {
    pub fn new(recipe: Recipe, id: u64, salt: u64) -> Self {
        let (spare, file, zeros) = (None, None, CommitBuffer::new());
        let (path, stage, spares_below) = (names::segment_path(id), Stage::Open, u64::MAX);
        Self { recipe, id, salt, path, spares_below, spare, file, stage, zeros }
    }

    /// No file serves again that served a segment from this one on.
    pub fn spares_below(&mut self, id: u64) {
        self.spares_below = id;
    }

    /// Whether nothing was done yet.
    pub fn is_new(&self) -> bool {
        self.stage == Stage::Open
    }

    /// How much of what is to be zero-filled will be behind the next step, as a share of it.
    pub fn share_behind_step(&self) -> f64 {
        match self.stage {
            Stage::Open => 0.0,
            _ if self.recipe.asks_only => 0.0,
            Stage::Zero { from, to } => (from + PREPARE_CHUNK_BYTES as u64).min(to) as f64 / to.max(1) as f64,
            _ => 1.0,
        }
    }

    /// Takes one step; the segment, when that was the last. After an error there is no file any more, and a name
    /// that could not be removed is recognised as never started. What a failure puts in doubt trips the latch.
    pub fn step<D: Directory + ?Sized>(
        &mut self,
        directory: &D,
        latch: &Latch,
    ) -> PersistenceResult<Option<Prepared>> {
        let stepped = match self.stage {
            Stage::Open => self.open(directory, latch),
            Stage::Zero { from, to } => self.zero(from, to),
            Stage::TakeName => self.take_name(directory),
            Stage::Header => self.write_header(latch),
            Stage::SyncName => self.sync_name(directory, latch),
            Stage::Done => Ok(Stage::Done),
        };
        match stepped {
            Ok(stage) => self.stage = stage,
            Err(error) if self.spare.is_some() => self.give_up_spare(directory, &error),
            Err(error) => {
                self.discard(directory);
                return Err(error);
            }
        }
        if self.stage != Stage::Done {
            return Ok(None);
        }
        let Some(file) = self.file.take() else { return Ok(None) };
        let (id, salt, path, bytes) = (self.id, self.salt, self.path.clone(), file.size()?);
        Ok(Some(Prepared { file: Arc::from(file), id, path, salt, bytes }))
    }

    /// Removes what there is of it.
    pub fn discard<D: Directory + ?Sized>(&mut self, directory: &D) {
        if self.file.take().is_some() && self.spare.is_none() {
            let _ = directory.delete(&self.path);
        }
    }

    fn open<D: Directory + ?Sized>(&mut self, directory: &D, latch: &Latch) -> PersistenceResult<Stage> {
        if self.recipe.recycle {
            // Without it, or when it cannot be used, a new file is made.
            self.recipe.recycle = false;
            let (_, spares) = catalogue::list_names(directory)?;
            if let Some(number) = spares.iter().find(|number| **number < self.spares_below) {
                self.spare = Some(names::spare_path(*number));
                return self.open_spare(directory);
            }
        }
        let Recipe { in_steps, asks_only, .. } = self.recipe;
        let at_once = if in_steps || asks_only { 0 } else { self.recipe.fill_bytes };
        let options = FileOptions::create_new().aligned(self.recipe.frame_alignment).zero_filled(at_once);
        let options = if asks_only { options.streamed() } else { options };
        let options = if planted::on("prepare_unlocked") { options } else { options.locked() };
        let file = open_commit_file(directory, &self.path, &options)
            .map_err(|error| if planted::on("full_disk_is_fatal") { latch.trip(error) } else { error })?;
        let file = self.file.insert(file);
        let to = self.recipe.fill_bytes;
        if at_once == to {
            return Ok(Stage::Header);
        }
        // A full disk says so here, and the blocks lie together.
        file.reserve(to)?;
        if asks_only {
            match file.set_size(to) {
                // The header's commit makes the size durable too.
                Ok(()) => return Ok(Stage::Header),
                Err(PersistenceError::NotSupported { .. }) => self.recipe.asks_only = false,
                Err(error) => return Err(error),
            }
        }
        Ok(Stage::Zero { from: 0, to })
    }

    fn open_spare<D: Directory + ?Sized>(&mut self, directory: &D) -> PersistenceResult<Stage> {
        let Some(spare) = &self.spare else { return Ok(Stage::Open) };
        // It may have seen a write-back fail: what the page cache holds of it is not believed (`write_again`).
        let options = FileOptions::existing().aligned(self.recipe.frame_alignment).locked().uncached();
        let file = self.file.insert(open_commit_file(directory, spare, &options)?);
        let size = if planted::on("skip_zeroing_spares") { 0 } else { file.size()? };
        let to = if self.recipe.in_steps { size.max(self.recipe.fill_bytes) } else { size };
        Ok(Stage::Zero { from: 0, to })
    }

    /// Zeros the next piece. Not through a syncing descriptor: only the end is synced.
    fn zero(&mut self, from: u64, to: u64) -> PersistenceResult<Stage> {
        let Some(file) = &self.file else { return Ok(Stage::Open) };
        let piece = if self.recipe.in_steps { PREPARE_CHUNK_BYTES } else { ZERO_FILL_BYTES };
        let bytes = to.saturating_sub(from).min(piece as u64) as usize;
        if bytes > 0 {
            let mut buffer = std::mem::take(&mut self.zeros);
            if buffer.len() < bytes {
                buffer = CommitBuffer::with_capacity(piece);
                buffer.resize(piece, 0);
            }
            let commit = Commit { id: 0, offset: from, buffer, range: 0..bytes, effect: Effect::Flushed };
            let (result, buffer) = file.commit(commit);
            result?;
            self.zeros = buffer.unwrap_or_default();
        }
        let from = from + bytes as u64;
        Ok(match () {
            () if from < to => Stage::Zero { from, to },
            () if self.spare.is_some() => Stage::TakeName,
            // The header's commit makes the zeros durable too.
            () => Stage::Header,
        })
    }

    /// The zeros are durable, and then the spare file becomes the segment.
    fn take_name<D: Directory + ?Sized>(&mut self, directory: &D) -> PersistenceResult<Stage> {
        let (Some(file), Some(spare)) = (&self.file, &self.spare) else { return Ok(Stage::Open) };
        if self.recipe.is_durable {
            let buffer = CommitBuffer::new();
            file.commit(Commit { id: 0, offset: 0, buffer, range: 0..0, effect: Effect::Durable }).0?;
        }
        // From here on it is written as any segment is. Nobody else writes here: the log's lock is held.
        self.file = None;
        let options = FileOptions::existing().aligned(self.recipe.frame_alignment).locked();
        self.file = Some(open_commit_file(directory, spare, &options)?);
        match directory.as_durable() {
            Some(durable) => durable.atomic_rename_durable(spare, &self.path)?,
            None => directory.atomic_rename(spare, &self.path)?,
        }
        self.spare = None;
        Ok(Stage::Header)
    }

    /// A spare file is part of no log: without it a new file is made.
    fn give_up_spare<D: Directory + ?Sized>(&mut self, directory: &D, error: &PersistenceError) {
        let Some(spare) = self.spare.take() else { return };
        tracing::warn!(%error, path = %spare, "a spare segment cannot be used");
        self.file = None;
        let _ = directory.delete(&spare);
        self.stage = Stage::Open;
    }

    fn write_header(&mut self, latch: &Latch) -> PersistenceResult<Stage> {
        let Some(file) = &self.file else { return Ok(Stage::Open) };
        let Recipe { frame_alignment, identity, is_durable, .. } = self.recipe;
        let header = Header {
            file_id: self.id,
            ..Header::new(FileKind::Segment, frame_alignment, identity, self.salt)
        };
        let buffer = header_commit(&header);
        let range = 0..buffer.len();
        let effect = if is_durable { Effect::Durable } else { Effect::Flushed };
        let (result, _) = file.commit(Commit { id: 0, offset: 0, buffer, range, effect });
        // Nothing was promised for this file yet.
        result.map_err(|error| if error.is_out_of_space() { error } else { latch.trip(error) })?;
        Ok(Stage::SyncName)
    }

    fn sync_name<D: Directory + ?Sized>(&mut self, directory: &D, latch: &Latch) -> PersistenceResult<Stage> {
        let durable = directory.as_durable().filter(|_| !planted::on("skip_segment_directory_sync"));
        if let Some(durable) = durable {
            durable.sync_parent_dir(&self.path).map_err(|error| latch.trip(error))?;
        }
        Ok(Stage::Done)
    }
}
