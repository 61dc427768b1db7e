//! From a history to the states in which a power cut may leave the disk.

use super::disk::SimDisk;
use super::state::{ChangeKind, History};
use crate::storage::path;
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

/// An image for which the property does not hold.
#[derive(Clone, Debug)]
pub struct SimFailure {
    /// What the property said.
    pub message: String,
    /// How many operations had been done.
    pub point: usize,
    /// The seed of the enumeration.
    pub seed: u64,
    /// Each operation, and what survived of it.
    pub trace: String,
}

impl fmt::Display for SimFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (crash after operation {}, seed {})", self.message, self.point, self.seed)?;
        f.write_str(&self.trace)
    }
}

impl std::error::Error for SimFailure {}

/// One thing that may or may not have survived: a sector of a write, a size, a change of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    change: usize,
    sector: usize,
}

/// Stops the run of `disk` after every operation, and hands every image that the rules allow (or a sample)
/// to `check`, with the values marked until then. The first failure is shrunk (fewer survivors) and
/// returned.
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
            let image = build(&history, point, &survivors, options.sector_bytes, &mut random);
            if let Err(message) = check(&image, &marks) {
                let rebuild =
                    |survivors: &[Unit]| build(&history, point, survivors, options.sector_bytes, &mut 7);
                let (survivors, message) =
                    shrink(survivors, message, |survivors| check(&rebuild(survivors), &marks).err());
                let trace = trace(&history, point, &survivors, options.sector_bytes);
                return Err(Box::new(SimFailure { message, point, seed: options.seed, trace }));
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
        let sectors = match &change.kind {
            ChangeKind::Write { offset, bytes, .. } => sectors(*offset, bytes.len(), sector_bytes),
            ChangeKind::Mark(_) | ChangeKind::Note(_) => 0,
            _ => 1,
        };
        units.extend((0..sectors).map(|sector| Unit { change: index, sector }));
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

/// Sets of survivors: all of them where they are few; otherwise none, all, all but one, one alone, every
/// cut in time, and random subsets.
fn choose(units: &[Unit], images_max: usize, random: &mut u64) -> Vec<Vec<Unit>> {
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

fn build(
    history: &History,
    point: usize,
    survivors: &[Unit],
    sector_bytes: usize,
    random: &mut u64,
) -> SimDisk {
    let mut tree = history.base.clone();
    let mut by_change: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for unit in survivors {
        by_change.entry(unit.change).or_default().push(unit.sector);
    }
    for (index, change) in history.changes[..point].iter().enumerate() {
        if is_durable(history, index, point) {
            tree.apply(&change.kind);
            continue;
        }
        let Some(sectors) = by_change.get(&index) else { continue };
        match &change.kind {
            ChangeKind::Write { inode, offset, bytes } => {
                for sector in sectors {
                    let (from, to) = sector_range(*offset, bytes.len(), *sector, sector_bytes);
                    tree.write(*inode, offset + from as u64, &bytes[from..to]);
                }
                // A size may survive where the data before it does not, and then reads as zeros.
                let end = (*offset as usize) + bytes.len();
                if next(random) % 4 == 0 && tree.file(*inode).len() < end {
                    tree.file(*inode).resize(end, 0);
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
    if fails(&survivors).is_none() {
        // It depends on a size that survived by chance: left as it is.
        return (survivors, message);
    }
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

fn trace(history: &History, point: usize, survivors: &[Unit], sector_bytes: usize) -> String {
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    for (path, node) in &history.base.names {
        if let super::state::Node::File(inode) = node {
            names.insert(*inode, path.clone());
        }
    }
    let mut text = String::new();
    for (index, change) in history.changes[..point].iter().enumerate() {
        let survived = survivors.iter().filter(|unit| unit.change == index).count();
        let what = match &change.kind {
            ChangeKind::Write { inode, offset, bytes } => {
                let name = names.get(inode).map_or("?", |name| path::file_name(name));
                let all = sectors(*offset, bytes.len(), sector_bytes);
                let fate = if is_durable(history, index, point) {
                    "durable".to_owned()
                } else {
                    format!("{survived} of {all} sectors survive")
                };
                format!("write {name} {offset}+{}: {fate}", bytes.len())
            }
            kind => {
                if let ChangeKind::Create { path, node: super::state::Node::File(inode) } = kind {
                    names.insert(*inode, path.clone());
                }
                if let ChangeKind::Note(note) = kind {
                    text.push_str(&format!("{index:>5}  {note}\n"));
                    continue;
                }
                let fate = match kind {
                    ChangeKind::Mark(_) | ChangeKind::Note(_) => "",
                    _ if is_durable(history, index, point) => ": durable",
                    _ if survived > 0 => ": survives",
                    _ => ": lost",
                };
                format!("{kind:?}{fate}")
            }
        };
        text.push_str(&format!("{index:>5}  {what}\n"));
    }
    text
}
