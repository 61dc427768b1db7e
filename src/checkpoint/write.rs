//! Writing a checkpoint: temporary name, header, chunks, seal, sync, rename, directory sync.

use super::CheckpointMeta;
use crate::error::{PersistenceError, PersistenceResult};
use crate::formats::frame::{FrameSeed, Seal, SealReason};
use crate::formats::header::{FileKind, Header};
use crate::framing::{Batch, Control, control_commit, header_commit};
use crate::limits::{CHECKPOINT_CHUNK_BYTES, ENTRY_ID_MAX, FRAME_ALIGNMENT_DEFAULT};
use crate::planted;
use crate::storage::{
    Commit, CommitBuffer, CommitFile, Directory, Effect, Environment, FileOptions, open_commit_file, path,
    temporary_path,
};
use std::io::Write;

/// A checkpoint that is being written. Dropped before it is finished, it leaves nothing behind.
pub struct CheckpointWriter<'d, D: Directory + ?Sized> {
    directory: &'d D,
    path: String,
    temporary: String,
    file: Option<Box<dyn CommitFile>>,
    seed: FrameSeed,
    offset: u64,
    /// Chunks written; chunk ids count from 1.
    chunks: u64,
    /// State that waits for a whole chunk.
    chunk: Vec<u8>,
    buffer: Option<CommitBuffer>,
    finished: bool,
    /// The failure behind an error that went through [`Write`].
    failure: Option<PersistenceError>,
}

impl<'d, D: Directory + ?Sized> CheckpointWriter<'d, D> {
    pub(crate) fn begin(
        directory: &'d D,
        path: &str,
        meta: CheckpointMeta,
        environment: &dyn Environment,
    ) -> PersistenceResult<Self> {
        crate::storage::path::check(path)?;
        let entry_id = meta.last_applied_entry_id.max(meta.required_entry_id);
        if entry_id > ENTRY_ID_MAX {
            let reason = format!("entry {entry_id} is none that a log can have");
            return Err(PersistenceError::invalid_config("checkpoint's entry id", reason));
        }
        let parent = path::parent(path);
        if !parent.is_empty() {
            match directory.as_durable() {
                Some(durable) => durable.create_dir_all_durable(parent)?,
                None => directory.create_dir_all(parent)?,
            }
        }
        let temporary = temporary_path(path);
        let file = open_commit_file(
            directory,
            &temporary,
            &FileOptions::create_new().aligned(FRAME_ALIGNMENT_DEFAULT),
        )?;
        let salt = environment.random();
        let header = Header {
            last_applied_entry_id: meta.last_applied_entry_id,
            required_entry_id: meta.required_entry_id,
            ..Header::new(FileKind::Checkpoint, FRAME_ALIGNMENT_DEFAULT, meta.identity, salt)
        };
        let mut writer = Self {
            directory,
            path: path.to_owned(),
            temporary,
            file: Some(file),
            seed: FrameSeed::new(salt),
            offset: 0,
            chunks: 0,
            chunk: Vec::new(),
            buffer: None,
            finished: false,
            failure: None,
        };
        let buffer = header_commit(&header);
        let bytes = buffer.len();
        writer.commit(buffer, 0..bytes, Effect::Flushed)?;
        Ok(writer)
    }

    /// Appends to the state.
    pub fn write_state(&mut self, mut state: &[u8]) -> PersistenceResult<()> {
        while !state.is_empty() {
            let room = CHECKPOINT_CHUNK_BYTES - self.chunk.len();
            let (now, rest) = state.split_at(room.min(state.len()));
            self.chunk.extend_from_slice(now);
            state = rest;
            if self.chunk.len() == CHECKPOINT_CHUNK_BYTES {
                self.write_chunk()?;
            }
        }
        Ok(())
    }

    /// Appends a value, encoded with postcard.
    #[cfg(feature = "postcard")]
    pub fn write_postcard<T: serde::Serialize + ?Sized>(&mut self, state: &T) -> PersistenceResult<()> {
        let encoded = crate::codec::Postcard::write(state, self);
        // A codec only hears "the write failed"; the failure itself says more.
        match self.failure.take() {
            Some(error) => Err(error),
            None => encoded,
        }
    }

    /// Ends the checkpoint and puts it into place. Survives the death of the process, not a power cut.
    pub fn finish(mut self) -> PersistenceResult<()> {
        self.seal(Effect::Flushed)?;
        self.directory.atomic_rename(&self.temporary, &self.path)?;
        self.finished = true;
        Ok(())
    }

    /// Ends the checkpoint, makes its contents durable, puts it into place, and makes the name durable.
    /// `NotSupported` where there is no stable storage.
    pub fn finish_durable(self) -> PersistenceResult<()> {
        self.finish_durable_after(|| Ok(()))
    }

    /// [`finish_durable`](Self::finish_durable), with a step between "contents durable" and "in place".
    pub(crate) fn finish_durable_after(
        mut self,
        before_rename: impl FnOnce() -> PersistenceResult<()>,
    ) -> PersistenceResult<()> {
        let Some(durable) = self.directory.as_durable() else {
            return Err(PersistenceError::not_supported(
                "a durable checkpoint",
                self.directory.backend_name(),
            ));
        };
        let skip = planted::on("skip_checkpoint_sync");
        self.seal(if skip { Effect::Flushed } else { Effect::Durable })?;
        before_rename()?;
        match planted::on("skip_checkpoint_directory_sync") {
            true => self.directory.atomic_rename(&self.temporary, &self.path)?,
            false => durable.atomic_rename_durable(&self.temporary, &self.path)?,
        }
        self.finished = true;
        Ok(())
    }

    fn seal(&mut self, effect: Effect) -> PersistenceResult<()> {
        if !self.chunk.is_empty() {
            self.write_chunk()?;
        }
        let seal = Control::Seal(Seal { reason: SealReason::Close, successor_id: 0, successor_salt: 0 });
        let buffer = control_commit(
            seal,
            self.offset,
            self.seed,
            FRAME_ALIGNMENT_DEFAULT,
            self.chunks + 1,
            self.chunks,
        );
        let bytes = buffer.len();
        self.commit(buffer, 0..bytes, effect)?;
        // The descriptor is let go before the name changes hands.
        self.file = None;
        Ok(())
    }

    fn write_chunk(&mut self) -> PersistenceResult<()> {
        let next = self.chunks + 1;
        let mut batch = match self.buffer.take() {
            Some(buffer) => Batch::reuse(buffer, FRAME_ALIGNMENT_DEFAULT, next),
            None => Batch::new(FRAME_ALIGNMENT_DEFAULT, next, CHECKPOINT_CHUNK_BYTES),
        };
        batch.push(&self.chunk)?;
        self.chunk.clear();
        self.chunks = next;
        let (buffer, range) = batch.finish(self.offset, self.seed, 0, None);
        self.commit(buffer, range, Effect::Flushed)
    }

    fn commit(
        &mut self,
        buffer: CommitBuffer,
        range: std::ops::Range<usize>,
        effect: Effect,
    ) -> PersistenceResult<()> {
        let Some(file) = &self.file else {
            return Err(PersistenceError::invalid_state("writing a checkpoint", "it is finished"));
        };
        let bytes = range.len() as u64;
        let (result, buffer) = file.commit(Commit { id: 0, offset: self.offset, buffer, range, effect });
        result?;
        self.offset += bytes;
        self.buffer = buffer;
        Ok(())
    }
}

impl<D: Directory + ?Sized> Write for CheckpointWriter<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.write_state(bytes).inspect_err(|error| self.failure = Some(error.clone()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<D: Directory + ?Sized> Drop for CheckpointWriter<'_, D> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.file = None;
        // What cannot be removed is swept when the next checkpoint is published.
        let _ = self.directory.delete(&self.temporary);
    }
}

impl<D: Directory + ?Sized> std::fmt::Debug for CheckpointWriter<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointWriter")
            .field("path", &self.path)
            .field("chunks", &self.chunks)
            .finish_non_exhaustive()
    }
}
