//! A planted bug that takes more than a line: to go on behind the last good frame of the old segment, in
//! place, instead of in a segment of its own.

use super::{Appender, Current};
use crate::error::PersistenceResult;
use crate::formats::frame::FrameSeed;
use crate::formats::names;
use crate::planted;
use crate::storage::{Directory, FileOptions, open_commit_file};
use crate::walog::walk::LogEnd;

impl<D: Directory + ?Sized> Appender<D> {
    pub(super) fn resume_in_place(mut self, end: &LogEnd) -> PersistenceResult<Self> {
        let Some(last) = end.last_segment.filter(|_| planted::on("resume_in_place")) else {
            return Ok(self);
        };
        let (path, salt, offset) = (names::segment_path(last.id), last.salt, last.end_offset);
        let options = FileOptions::existing().aligned(self.options.frame_alignment).locked();
        let file = open_commit_file(self.directory.as_ref(), &path, &options)?;
        let created = self.options.environment.elapsed();
        let seed = FrameSeed::new(salt);
        let content_offset = offset;
        let reserved = u64::MAX;
        let id = last.id;
        let opening = None;
        self.current = Some(Current {
            file: file.into(),
            id,
            path,
            salt,
            seed,
            offset,
            content_offset,
            filled_to: offset,
            is_attested: false,
            reserved,
            opening,
            created,
            commits: 0,
        });
        Ok(self)
    }
}
