//! What has to be taken out of a log so that the rest is clean, and which entries that costs.
//!
//! Reads, and changes nothing. Each round asks the library's own reading for its verdict about the log as it
//! would be after the steps so far, and answers with the next steps, until there is nothing to object to.

use super::overlay::Planned;
use crate::error::{Check, Corruption, PersistenceResult, Proof};
use crate::formats::header::{FileKind, HeaderState};
use crate::formats::names::{self, WalName};
use crate::framing::{FrameReader, read_header};
use crate::inspect::{Checkpoints, Verdict, inspect_file};
use crate::planted;
use crate::storage::{Directory, path};
use crate::walog::catalogue::{self, Found};
use crate::walog::{SegmentScans, WalCheck, WalChecked};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// What of a damaged log is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Everything before the damage.
    #[default]
    Oldest,
    /// The segments behind the damage: for a log of which a checkpoint covers everything before them. Damage
    /// in the newest segment leaves nothing behind it, and is treated as with [`Oldest`](Self::Oldest).
    Newest,
}

/// One thing that a repair does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "step", rename_all = "snake_case"))]
pub enum RepairStep {
    /// The last bytes of a file are copied into the folder of the repair, and cut off.
    Cut {
        /// The file.
        path: String,
        /// Its new size.
        offset: u64,
        /// How many bytes go.
        bytes: u64,
    },
    /// A file is moved into the folder of the repair.
    MoveAway {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
    },
}

impl RepairStep {
    /// The file that it concerns.
    pub fn path(&self) -> &str {
        match self {
            Self::Cut { path, .. } | Self::MoveAway { path, .. } => path,
        }
    }
}

impl fmt::Display for RepairStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut { path, offset, bytes } => write!(f, "cut {bytes} bytes off {path} at offset {offset}"),
            Self::MoveAway { path, bytes } => write!(f, "move {path} away ({bytes} bytes)"),
        }
    }
}

/// Entries that were acknowledged, or may have been, and that are no part of the repaired log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// From the first to the last of those before what is kept.
    pub before: Option<(u64, u64)>,
    /// From the first on to the last of those behind what is kept; `None` where nothing left says how many
    /// there were.
    pub behind: Option<(u64, Option<u64>)>,
}

impl Loss {
    /// Whether nothing is lost.
    pub fn is_none(&self) -> bool {
        self.before.is_none() && self.behind.is_none()
    }
}

/// `1-40`, `101-108`, `101-unknown`, `1-40,101-108`, or `none`.
impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((first, last)) = self.before {
            write!(f, "{first}-{last}")?;
        }
        if self.before.is_some() && self.behind.is_some() {
            f.write_str(",")?;
        }
        match self.behind {
            Some((first, Some(last))) => write!(f, "{first}-{last}"),
            Some((first, None)) => write!(f, "{first}-unknown"),
            None if self.before.is_none() => f.write_str("none"),
            None => Ok(()),
        }
    }
}

/// What a repair would do.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RepairPlan {
    /// What is found before anything is done.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub found: Verdict,
    /// What is done, in this order; nothing for a clean log.
    pub steps: Vec<RepairStep>,
    /// What it costs. A torn tail costs nothing: nobody was told that it is there.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_text"))]
    pub loss: Loss,
    /// The first entry of the repaired log.
    pub first_entry_id: u64,
    /// Its last entry.
    pub last_entry_id: u64,
    /// Why it cannot be repaired, if so.
    pub obstacle: Option<String>,
}

#[cfg(feature = "serde")]
fn as_text<S: serde::Serializer>(value: &Loss, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Plans the repair of the log in `directory`, reading it with `scan_all` as in [`WalCheck::run`] once more for
/// each thing that is wrong with it.
///
/// `beside` are the checkpoints beside the log, read before; the default is none. What is found is the verdict
/// about all of it. A log that would end before what one of them requires is no repaired log, and an obstacle
/// (damaged or not: a header that can be read counts); a checkpoint with other damage is none, as long as
/// there is something to repair in the log.
pub fn plan_log<D: Directory + ?Sized>(
    directory: &Arc<D>,
    beside: &Checkpoints,
    keep: Keep,
    mut scan_all: impl FnMut(&WalCheck<Planned<D>>) -> SegmentScans,
) -> PersistenceResult<RepairPlan> {
    let mut planner = Planner::new(directory);
    loop {
        let as_planned = Arc::new(Planned::new(Arc::clone(directory), &planner.steps));
        let required = beside.requirements_in(as_planned.as_ref());
        let (checked, end) = WalCheck::run_requiring(&as_planned, required, &mut scan_all);
        let verdict = Verdict::of_log(&end)?;
        let found =
            planner.found.get_or_insert_with(|| beside.clone().held_against(&verdict, checked.as_ref()).1);
        if verdict == Verdict::Clean {
            if planner.steps.is_empty() && !found.is_accepted() {
                let obstacle = "the log is clean, and a checkpoint cannot be repaired: move it to another directory, and \
                    recovery falls back to an older one and the log";
                return Ok(planner.give_up(obstacle.to_owned()));
            }
            let last_entry_id = end.map_or(0, |end| end.last_entry_id);
            let known_first = checked.as_ref().and_then(WalChecked::first_entry_id);
            let first_entry_id = known_first.unwrap_or(last_entry_id + 1);
            return planner.finish(first_entry_id, last_entry_id);
        }
        let before = planner.steps.len();
        planner.answer(&as_planned, &verdict, checked.as_ref(), keep)?;
        if planner.steps.len() == before {
            return Ok(planner.give_up_log(&verdict, keep));
        }
    }
}

/// Plans the repair of the record log at `path`.
pub fn plan_record_log<D: Directory + ?Sized>(
    directory: &Arc<D>,
    path: &str,
    progress: &mut dyn FnMut(u64),
) -> PersistenceResult<RepairPlan> {
    let mut planner = Planner::new(directory);
    loop {
        let as_planned = Planned::new(Arc::clone(directory), &planner.steps);
        let inspection = inspect_file(&as_planned, path, progress)?;
        let verdict = inspection.verdict;
        planner.found.get_or_insert_with(|| verdict.clone());
        let before = planner.steps.len();
        match &verdict {
            Verdict::Clean => {
                let last = inspection.file.contents.map_or(0, |contents| contents.last_entry_id);
                return planner.finish(1, last);
            }
            Verdict::Torn(torn) | Verdict::Undecidable(torn) => {
                planner.cut(&as_planned, path, torn.offset)?;
            }
            // Nothing can be read without the header.
            Verdict::Corrupt(corruption) if corruption.offset > 0 => {
                planner.damaged.insert(path.to_owned());
                planner.behind_is_lost = true;
                planner.cut(&as_planned, path, corruption.offset)?;
            }
            _ => {}
        }
        if planner.steps.len() == before {
            return Ok(planner.give_up(format!("no repair is known for this: {verdict}")));
        }
    }
}

struct Planner<'a, D: Directory + ?Sized> {
    directory: &'a Arc<D>,
    found: Option<Verdict>,
    steps: Vec<RepairStep>,
    /// Files that are taken out, or cut, because of corruption: what they hold may have been acknowledged.
    damaged: BTreeSet<String>,
    /// Something behind what is kept was acknowledged, even if no file says how much.
    behind_is_lost: bool,
    /// Something before what is kept is missing.
    before_is_lost: bool,
}

impl<'a, D: Directory + ?Sized> Planner<'a, D> {
    fn new(directory: &'a Arc<D>) -> Self {
        Self {
            directory,
            found: None,
            steps: Vec::new(),
            damaged: BTreeSet::new(),
            behind_is_lost: false,
            before_is_lost: false,
        }
    }

    /// The next steps. None are added where nothing helps.
    fn answer(
        &mut self,
        as_planned: &Arc<Planned<D>>,
        verdict: &Verdict,
        checked: Option<&WalChecked>,
        keep: Keep,
    ) -> PersistenceResult<()> {
        match (verdict, checked) {
            (Verdict::Clean, _) => Ok(()),
            (Verdict::Torn(torn) | Verdict::Undecidable(torn), Some(checked)) => {
                self.cut_log(as_planned, checked, &torn.path, torn.offset)
            }
            (Verdict::Foreign { path, .. }, _) if path == names::WAL_DIRECTORY => {
                self.move_misspelt(as_planned)
            }
            (Verdict::Foreign { path, .. }, _) => self.move_damaged(as_planned, path),
            (Verdict::Corrupt(corruption), Some(checked)) => {
                self.answer_corruption(as_planned, corruption, checked, keep)
            }
            // The files do not make a log.
            (Verdict::Corrupt(corruption), None) => match corruption.check {
                Check::Identity { .. } => self.move_strangers(as_planned),
                _ => self.move_damaged(as_planned, &corruption.path),
            },
            (Verdict::Torn(_) | Verdict::Undecidable(_), None) => Ok(()),
        }
    }

    fn answer_corruption(
        &mut self,
        as_planned: &Arc<Planned<D>>,
        corruption: &Corruption,
        checked: &WalChecked,
        keep: Keep,
    ) -> PersistenceResult<()> {
        let segments = &checked.chain.segments;
        let is_hole = checked
            .chain
            .break_before
            .as_ref()
            .is_some_and(|broken| (&broken.path, &broken.check) == (&corruption.path, &corruption.check));
        if is_hole {
            self.before_is_lost = true;
            let oldest = segments.first().map_or(0, |oldest| oldest.id);
            return self.move_older_than(as_planned, oldest);
        }
        let names_missing = matches!(corruption.check, Check::SegmentMissing { .. });
        if let (true, Proof::NamedBySeal { .. }, Some(newest)) =
            (names_missing, &corruption.proof, segments.last())
        {
            // Without the seal nothing says that the log went on.
            self.behind_is_lost = true;
            let scan = checked.scans.last().and_then(Option::as_ref);
            let offset = scan.map_or(0, |scan| scan.end.content_offset);
            return self.cut(as_planned, &newest.path, offset);
        }
        self.damaged.insert(corruption.path.clone());
        let at = segments.iter().position(|segment| segment.path == corruption.path);
        if let (Keep::Newest, Some(index)) = (keep, at.filter(|index| index + 1 < segments.len())) {
            self.before_is_lost = true;
            for segment in &segments[..=index] {
                self.move_damaged(as_planned, &segment.path)?;
            }
            return Ok(());
        }
        self.behind_is_lost = true;
        let later = segments.iter().skip(at.map_or(segments.len(), |index| index + 1));
        let later = later.map(|segment| segment.path.clone());
        self.damaged.extend(later.chain(checked.chain.unfinished.iter().map(|(path, _)| path.clone())));
        self.cut_log(as_planned, checked, &corruption.path, corruption.offset)
    }

    /// Ends the log at this place: newer segments go, the newest first, so that no crash leaves a hole; then
    /// the rest of the file.
    fn cut_log(
        &mut self,
        as_planned: &Arc<Planned<D>>,
        checked: &WalChecked,
        path: &str,
        offset: u64,
    ) -> PersistenceResult<()> {
        // A segment whose first commit did not arrive stays, as one that was never started: the seal of the
        // one before may name it.
        for (unfinished, header) in checked.chain.unfinished.iter().rev() {
            self.cut(as_planned, unfinished, header.first_frame_offset())?;
        }
        let segments = &checked.chain.segments;
        let Some(at) = segments.iter().position(|segment| segment.path == path) else { return Ok(()) };
        let mut later: Vec<_> = segments.iter().skip(at + 1).rev().collect();
        if planted::on("repair_moves_oldest_first") {
            later.reverse();
        }
        for segment in later {
            self.move_away(as_planned, &segment.path)?;
        }
        self.cut(as_planned, path, offset.max(segments[at].header.first_frame_offset()))
    }

    fn cut(&mut self, as_planned: &Planned<D>, path: &str, offset: u64) -> PersistenceResult<()> {
        let bytes = as_planned.open_at(path)?.size()?.saturating_sub(offset);
        if bytes > 0 {
            self.steps.push(RepairStep::Cut { path: path.to_owned(), offset, bytes });
        }
        Ok(())
    }

    fn move_away(&mut self, as_planned: &Planned<D>, path: &str) -> PersistenceResult<()> {
        let bytes = as_planned.open_at(path)?.size()?;
        self.steps.push(RepairStep::MoveAway { path: path.to_owned(), bytes });
        Ok(())
    }

    fn move_damaged(&mut self, as_planned: &Planned<D>, path: &str) -> PersistenceResult<()> {
        // What is missing altogether cannot be moved.
        if !as_planned.try_exists(path)? {
            return Ok(());
        }
        self.damaged.insert(path.to_owned());
        self.move_away(as_planned, path)
    }

    fn move_misspelt(&mut self, as_planned: &Planned<D>) -> PersistenceResult<()> {
        for name in as_planned.list_dir(names::WAL_DIRECTORY)? {
            if names::parse_wal_name(&name) == WalName::Suspect {
                self.move_damaged(as_planned, &path::join(names::WAL_DIRECTORY, &name))?;
            }
        }
        Ok(())
    }

    /// What lies before a hole cannot be reached any more.
    fn move_older_than(&mut self, as_planned: &Planned<D>, oldest: u64) -> PersistenceResult<()> {
        let (ids, _) = catalogue::list_names(as_planned)?;
        for id in ids.into_iter().filter(|id| *id < oldest) {
            self.move_damaged(as_planned, &names::segment_path(id))?;
        }
        Ok(())
    }

    /// Of two logs in one folder the one with more files stays.
    fn move_strangers(&mut self, as_planned: &Planned<D>) -> PersistenceResult<()> {
        let mut logs: BTreeMap<u128, Vec<String>> = BTreeMap::new();
        for id in catalogue::list_names(as_planned)?.0 {
            if let Some((header, path)) = catalogue::look(as_planned, id)?.header() {
                logs.entry(header.identity).or_default().push(path.to_owned());
            }
        }
        let most = logs.values().map(Vec::len).max().unwrap_or(0);
        if logs.values().filter(|files| files.len() == most).count() != 1 {
            return Ok(());
        }
        for file in logs.into_values().filter(|files| files.len() < most).flatten() {
            self.move_away(as_planned, &file)?;
        }
        Ok(())
    }

    /// What a checkpoint requires and is gone, nothing brings back; and only people know whether the checkpoint
    /// or the log counts for more.
    fn give_up_log(self, verdict: &Verdict, keep: Keep) -> RepairPlan {
        let Verdict::Corrupt(Corruption {
            entry_id: next,
            proof: Proof::RequiredByCheckpoint { entry_id, path },
            ..
        }) = verdict
        else {
            return self.give_up(format!("no repair is known for this: {verdict}"));
        };
        let moved = self.steps.iter().any(|step| matches!(step, RepairStep::MoveAway { .. }));
        let newest = match keep {
            Keep::Oldest if moved => ", see whether keeping the newest segments (`--keep newest`) serves it",
            _ => "",
        };
        self.give_up(format!(
            "checkpoint {path} requires entry {entry_id}, and the log would end with entry {}: restore the \
             missing segments{newest}, or move {path} to another directory to give it up",
            next.saturating_sub(1)
        ))
    }

    fn give_up(self, obstacle: String) -> RepairPlan {
        RepairPlan {
            found: self.found.unwrap_or(Verdict::Clean),
            steps: Vec::new(),
            loss: Loss::default(),
            first_entry_id: 0,
            last_entry_id: 0,
            obstacle: Some(obstacle),
        }
    }

    /// Adds up what the steps cost: everything outside of what is kept that a damaged file held, by its own
    /// headers or, where they are gone, by its place.
    fn finish(self, first_entry_id: u64, last_entry_id: u64) -> PersistenceResult<RepairPlan> {
        let (mut lowest, mut highest) = (None, 0);
        let (mut before, mut behind) = (self.before_is_lost, self.behind_is_lost);
        for path in &self.damaged {
            match self.holds(path)? {
                Holds::Entries { first, last } => {
                    highest = highest.max(last);
                    if let Some(first) = first.filter(|first| *first < first_entry_id && *first <= last) {
                        lowest = Some(lowest.map_or(first, |lowest: u64| lowest.min(first)));
                    }
                }
                Holds::Nothing => {}
                Holds::Unknown { before_the_log } => {
                    before |= before_the_log;
                    behind |= !before_the_log;
                    lowest = lowest.or(before_the_log.then_some(1));
                }
            }
        }
        before |= lowest.is_some();
        behind |= highest > last_entry_id;
        let loss = Loss {
            before: (before && first_entry_id > 1).then(|| (lowest.unwrap_or(1), first_entry_id - 1)),
            behind: behind
                .then(|| (last_entry_id + 1, Some(highest).filter(|highest| *highest > last_entry_id))),
        };
        Ok(RepairPlan {
            found: self.found.unwrap_or(Verdict::Clean),
            steps: self.steps,
            loss,
            first_entry_id,
            last_entry_id,
            obstacle: None,
        })
    }

    /// What a file that is taken out holds, as far as its headers say.
    fn holds(&self, path: &str) -> PersistenceResult<Holds> {
        let directory = self.directory.as_ref();
        let id = match names::parse_wal_name(path::file_name(path)) {
            WalName::Segment(id) => Some(id),
            _ => None,
        };
        let file = directory.open_at(path)?;
        let kind = if id.is_some() || path.starts_with(names::WAL_DIRECTORY) {
            FileKind::Segment
        } else {
            FileKind::RecordLog
        };
        let header = match read_header(file.as_ref(), kind)?.state {
            HeaderState::Good(header) => header,
            HeaderState::Blank => return Ok(Holds::Nothing),
            HeaderState::Damaged { .. } | HeaderState::Unusable(_) => return self.holds_by_place(id),
        };
        let first = match id.map(|id| catalogue::look(directory, id)).transpose()? {
            Some(Found::Started(started)) => Some(started.first_entry_id),
            _ => None,
        };
        let mut reader = FrameReader::evidence_only(file, path, &header)?;
        while reader.next_frame()?.is_some() {}
        let end = reader.into_end();
        Ok(Holds::Entries { first, last: end.stated_entry_id.max(end.attested.durable_entry_id) })
    }

    /// What a segment held whose header cannot be read.
    fn holds_by_place(&self, id: Option<u64>) -> PersistenceResult<Holds> {
        let kept = Planned::new(Arc::clone(self.directory), &self.steps);
        let (mut oldest, mut newest) = (None, None);
        for id in catalogue::list_names(&kept)?.0 {
            if let Found::Started(_) = catalogue::look(&kept, id)? {
                oldest = oldest.or(Some(id));
                newest = Some(id);
            }
        }
        Ok(match (id, oldest, newest) {
            (Some(id), Some(oldest), _) if id < oldest => Holds::Unknown { before_the_log: true },
            // Left behind by a recovery: what it held is in a later one, or never counted.
            (Some(id), _, Some(newest)) if id < newest => Holds::Nothing,
            _ => Holds::Unknown { before_the_log: false },
        })
    }
}

enum Holds {
    Nothing,
    Entries { first: Option<u64>, last: u64 },
    Unknown { before_the_log: bool },
}
