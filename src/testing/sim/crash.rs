//! From a history to the states in which a power cut may leave the disk.

use super::disk::SimDisk;
use super::state::{Change, ChangeKind, History, Node};
use std::collections::BTreeMap;
use std::fmt;

/// How crashes are enumerated.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Chooses among images where there are too many.
    pub seed: u64,
    /// What the disk writes whole or not at all, in bytes.
    pub sector_bytes: usize,
    /// Images for one crash point, at most.
    pub images_per_point: usize,
    /// Crash points are every `stride`-th operation.
    pub stride: usize,
    /// Only crash points from this operation on.
    pub from_operation: usize,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { seed: 1, sector_bytes: 512, images_per_point: 24, stride: 1, from_operation: 0 }
    }
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimReport {
    /// Points at which the run was stopped.
    pub points: u64,
    /// Images that were recovered and checked.
    pub images: u64,
    /// Points whose images were all checked.
    pub exhaustive_points: u64,
}

impl std::ops::AddAssign for SimReport {
    fn add_assign(&mut self, other: Self) {
        self.points += other.points;
        self.images += other.images;
        self.exhaustive_points += other.exhaustive_points;
    }
}

/// An image for which the property does not hold.
#[derive(Clone, Debug)]
pub struct SimFailure {
    /// What the property said.
    pub message: String,
    /// How many operations had been done.
    pub point: usize,
    /// The seed of the enumeration.
    pub seed: u64,
    /// The seed of the run, where [`CrashLab`](super::CrashLab) made it.
    pub run_seed: Option<u64>,
    /// Each operation, and what survived of it.
    pub trace: String,
}

impl fmt::Display for SimFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (crash after operation {}, ", self.message, self.point)?;
        if let Some(run_seed) = self.run_seed {
            write!(f, "run seed {run_seed}, ")?;
        }
        writeln!(f, "image seed {})", self.seed)?;
        f.write_str(&self.trace)
    }
}

impl std::error::Error for SimFailure {}

/// One thing that may or may not have survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    change: usize,
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A sector of a write.
    Sector(usize),
    /// That a write made its file larger, whatever survived of its bytes: the rest reads as zeros.
    Growth,
    /// A change of a name, or of a size.
    Whole,
}

/// Stops the run of `disk` after every operation, and hands every image that the rules allow (or a sample)
/// to `check`, with the values marked until then. The first failure is shrunk (fewer survivors) and
/// returned.
///
/// What a run writes is best made by [`CrashLab`](super::CrashLab), which runs many seeds.
pub fn check_crashes(
    disk: &SimDisk,
    options: &SimOptions,
    mut check: impl FnMut(&SimDisk, &[u64]) -> Result<(), String>,
) -> Result<SimReport, Box<SimFailure>> {
    let history = disk.world().history.clone();
    let mut report = SimReport::default();
    let mut random = options.seed;
    for point in (options.from_operation..=history.changes.len()).step_by(options.stride.max(1)) {
        let marks = marks_before(&history, point);
        let units = units_at(&history, point, options.sector_bytes);
        let choices = choose(&units, options.images_per_point, &mut random);
        report.points += 1;
        report.exhaustive_points += u64::from(units.len() < 32 && choices.len() as u64 == 1 << units.len());
        for survivors in choices {
            report.images += 1;
            let build = |survivors: &[Unit]| build(&history, point, survivors, options.sector_bytes);
            if let Err(message) = check(&build(&survivors), &marks) {
                let (survivors, message) =
                    shrink(survivors, message, |survivors| check(&build(survivors), &marks).err());
                let trace = trace(&history, point, &survivors, options.sector_bytes);
                let (seed, run_seed) = (options.seed, None);
                return Err(Box::new(SimFailure { message, point, seed, run_seed, trace }));
            }
        }
    }
    Ok(report)
}

fn marks_before(history: &History, point: usize) -> Vec<u64> {
    let marks = history.changes[..point].iter().filter_map(|change| match change.kind {
        ChangeKind::Mark(value) => Some(value),
        _ => None,
    });
    marks.collect()
}

fn is_durable(history: &History, index: usize, point: usize) -> bool {
    history.changes[index].durable_at.is_some_and(|at| at <= point)
}

fn units_at(history: &History, point: usize, sector_bytes: usize) -> Vec<Unit> {
    let mut units = Vec::new();
    for (index, change) in history.changes[..point].iter().enumerate() {
        if is_durable(history, index, point) {
            continue;
        }
        let unit = |part| Unit { change: index, part };
        match &change.kind {
            ChangeKind::Write { offset, bytes, .. } => {
                let sectors = sectors(*offset, bytes.len(), sector_bytes);
                units.extend((0..sectors).map(|sector| unit(Part::Sector(sector))));
                units.extend(change.grows.then(|| unit(Part::Growth)));
            }
            ChangeKind::Mark(_) | ChangeKind::Note(_) => {}
            _ => units.push(unit(Part::Whole)),
        }
    }
    units
}

fn sectors(offset: u64, bytes: usize, sector_bytes: usize) -> usize {
    let first = offset as usize / sector_bytes;
    (offset as usize + bytes).div_ceil(sector_bytes) - first
}

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*random ^ (*random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sets of survivors: all of them where they are few. Where only the sizes make them many, all of the others,
/// each with some sizes; otherwise a sample.
fn choose(units: &[Unit], images_max: usize, random: &mut u64) -> Vec<Vec<Unit>> {
    let is_few = |units: &[Unit]| units.len() < 20 && 1usize << units.len() <= images_max;
    if is_few(units) {
        return sample(units, images_max, random);
    }
    let (growths, others): (Vec<_>, Vec<_>) = units.iter().partition(|unit| unit.part == Part::Growth);
    let mut choices = sample(&others, images_max, random);
    for choice in choices.iter_mut().filter(|choice| !choice.is_empty()) {
        choice.extend(growths.iter().filter(|_| next(random) % 4 == 0));
    }
    choices.push(units.to_vec());
    choices
}

/// All subsets where they are few; otherwise none, all, all but one, one alone, cuts in time, and random ones.
fn sample(units: &[Unit], images_max: usize, random: &mut u64) -> Vec<Vec<Unit>> {
    if units.len() < 20 && 1usize << units.len() <= images_max {
        let subsets = (0..1usize << units.len()).map(|mask| {
            units.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, unit)| *unit).collect()
        });
        return subsets.collect();
    }
    let mut choices = vec![Vec::new(), units.to_vec()];
    while choices.len() < images_max {
        let pick = next(random) as usize % units.len();
        let choice = match next(random) % 5 {
            0 => {
                units.iter().enumerate().filter(|(index, _)| *index != pick).map(|(_, unit)| *unit).collect()
            }
            1 => vec![units[pick]],
            2 => units[..pick].to_vec(),
            3 => units[pick..].to_vec(),
            _ => units.iter().filter(|_| next(random) % 2 == 0).copied().collect(),
        };
        choices.push(choice);
    }
    choices
}

fn build(history: &History, point: usize, survivors: &[Unit], sector_bytes: usize) -> SimDisk {
    let mut tree = history.base.clone();
    let mut by_change: BTreeMap<usize, Vec<Part>> = BTreeMap::new();
    for unit in survivors {
        by_change.entry(unit.change).or_default().push(unit.part);
    }
    for (index, change) in history.changes[..point].iter().enumerate() {
        if is_durable(history, index, point) {
            tree.apply(&change.kind);
            continue;
        }
        let Some(parts) = by_change.get(&index) else { continue };
        match &change.kind {
            ChangeKind::Write { inode, offset, bytes } => {
                for part in parts {
                    if let Part::Sector(sector) = part {
                        let (from, to) = sector_range(*offset, bytes.len(), *sector, sector_bytes);
                        tree.write(*inode, offset + from as u64, &bytes[from..to]);
                        continue;
                    }
                    let end = (*offset as usize) + bytes.len();
                    if tree.file(*inode).len() < end {
                        tree.file(*inode).resize(end, 0);
                    }
                }
            }
            kind => tree.apply(kind),
        }
    }
    tree.drop_unreachable();
    SimDisk::with_tree(tree, 1)
}

/// The part of a write that lies in its `sector`-th sector.
fn sector_range(offset: u64, bytes: usize, sector: usize, sector_bytes: usize) -> (usize, usize) {
    let first = offset as usize / sector_bytes;
    let from = ((first + sector) * sector_bytes).max(offset as usize) - offset as usize;
    let to = ((first + sector + 1) * sector_bytes - offset as usize).min(bytes);
    (from, to)
}

/// Takes survivors away, half by half and then one by one, as long as the property still fails.
fn shrink(
    survivors: Vec<Unit>,
    message: String,
    mut fails: impl FnMut(&[Unit]) -> Option<String>,
) -> (Vec<Unit>, String) {
    let (mut survivors, mut message) = (survivors, message);
    let mut size = survivors.len() / 2;
    while size > 0 {
        let mut from = 0;
        while from < survivors.len() {
            let mut fewer = survivors.clone();
            fewer.drain(from..(from + size).min(fewer.len()));
            match fails(&fewer) {
                Some(said) => (survivors, message) = (fewer, said),
                None => from += size,
            }
        }
        size /= 2;
    }
    (survivors, message)
}

/// The run, operation by operation, and what survived of each.
fn trace(history: &History, point: usize, survivors: &[Unit], sector_bytes: usize) -> String {
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    for (path, node) in &history.base.names {
        if let Node::File(inode) = node {
            names.insert(*inode, path.clone());
        }
    }
    let mut text = String::new();
    for (index, change) in history.changes[..point].iter().enumerate() {
        if let ChangeKind::Create { path, node: Node::File(inode) } = &change.kind {
            names.insert(*inode, path.clone());
        }
        let what = match &change.kind {
            ChangeKind::Write { inode, offset, bytes } => {
                let name = names.get(inode).map_or("?", String::as_str);
                format!("write {name} {offset}+{}", bytes.len())
            }
            ChangeKind::SetSize { inode, bytes } => {
                format!("set the size of {} to {bytes}", names.get(inode).map_or("?", String::as_str))
            }
            kind => kind.to_string(),
        };
        let fate = if matches!(change.kind, ChangeKind::Mark(_) | ChangeKind::Note(_)) {
            String::new()
        } else if is_durable(history, index, point) {
            ": durable".to_owned()
        } else {
            let parts = survivors.iter().filter(|unit| unit.change == index).map(|unit| unit.part);
            format!(": {}", fate(change, &parts.collect::<Vec<_>>(), sector_bytes))
        };
        text.push_str(&format!("{index:>5}  {what}{fate}\n"));
    }
    text
}

/// What survived of a change that was not durable.
fn fate(change: &Change, parts: &[Part], sector_bytes: usize) -> String {
    let ChangeKind::Write { offset, bytes, .. } = &change.kind else {
        return if parts.is_empty() { "LOST" } else { "survives" }.to_owned();
    };
    let count = sectors(*offset, bytes.len(), sector_bytes);
    let kept: Vec<_> = (0..count).filter(|sector| parts.contains(&Part::Sector(*sector))).collect();
    let lost: Vec<_> = (0..count).filter(|sector| !kept.contains(sector)).collect();
    let said = match (kept.len(), lost.len()) {
        (0, _) => "LOST".to_owned(),
        (_, 0) => "survives".to_owned(),
        _ if kept.len() <= lost.len() => format!("only the sectors {kept:?} of {count} survive"),
        _ => format!("the sectors {lost:?} of {count} are LOST"),
    };
    let grown = !lost.is_empty() && parts.contains(&Part::Growth);
    if grown { said + ", the size survives" } else { said }
}
