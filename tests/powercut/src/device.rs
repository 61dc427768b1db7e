//! The kind `device`: runs over a lossy disk, and crash points of each.
//!
//! A run begins with a new file system, or with a disk as one of the last run's power cuts left it.

use crate::check::{self, Checker, Found};
use crate::disks::FileSystem;
use crate::fuse::{self, Disk, Holding};
use crate::image::{Image, SECTOR};
use crate::log::{Choice, Event, Log, Position};
use crate::model::{Model, Promise};
use crate::options::Flushes;
use crate::random::Random;
use crate::worker::{Report, Violation, keep};
use crate::workload::{How, Session, Tell};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Most crash points of one run.
const POINTS_PER_RUN: u64 = 24;
/// Runs over one file system, one power cut after the other.
const RUNS_MAX: u64 = 6;

pub struct Lab<'a> {
    pub fs: FileSystem,
    pub work: PathBuf,
    pub keep: Option<PathBuf>,
    pub flushes: Flushes,
    pub report: &'a Report,
}

/// What a run begins with.
#[derive(Clone, Default)]
struct Start {
    image: Image,
    model: Model,
    promise: Promise,
    expected_last: Option<u64>,
    runs: u64,
}

/// A run that is over.
struct Past {
    start: Start,
    log: Log,
    model: Model,
    how: How,
    seed: u64,
}

/// What is wrong with a disk after a power cut.
enum Wrong {
    /// The file system does not mount.
    Mount(io::Error),
    Contents(String),
}

impl Lab<'_> {
    /// Runs until so many crash points are checked, or until the report says that it is enough.
    pub fn run(&self, ways: &[How], seed: u64, points: u64) -> io::Result<()> {
        let mut random = Random::of(seed, 0);
        let fresh = self.fresh()?;
        // A short campaign still has two runs of each way to commit.
        let per_run = points.div_ceil(2 * ways.len() as u64).clamp(1, POINTS_PER_RUN);
        let mut start = fresh.clone();
        for run in 0.. {
            let left = points.saturating_sub(self.report.points());
            if left == 0 || self.report.is_enough() {
                return Ok(());
            }
            let how = ways[run as usize % ways.len()];
            let run_seed = random.next();
            let next = match self.once(start, how, run_seed)? {
                Some(past) => self.cut(&past, left.min(per_run))?,
                None => None,
            };
            start = next.filter(|_| !random.one_in(RUNS_MAX)).unwrap_or_else(|| fresh.clone());
        }
        Ok(())
    }

    fn fresh(&self) -> io::Result<Start> {
        let path = self.work.join("fresh");
        self.fs.make(&path)?;
        let image = Image::load(&File::open(&path)?)?;
        std::fs::remove_file(path)?;
        Ok(Start { image, ..Start::default() })
    }

    /// One run, from mounting to unmounting; `None` when it failed, which is reported.
    fn once(&self, start: Start, how: How, seed: u64) -> io::Result<Option<Past>> {
        let mut random = Random::of(seed, 5);
        let holding = Holding {
            percent: random.pick(&[0, 30, 60, 90]),
            arrivals_max: random.pick(&[1, 3, 8]),
            idle_us: random.pick(&[100, 300, 1000]),
        };
        let disk = Disk::mount(&self.work.join("disk"), start.image.clone(), holding, Random::of(seed, 6))
            .map_err(|error| during("mounting the disk", error))?;
        self.report.connected(disk.connection);
        let mounted = self.fs.mount(&disk.path, &self.work.join("run"), true);
        let mount = match mounted {
            Ok(mount) => mount,
            // What ended the disk's server says more than what that did to others.
            Err(error) => {
                disk.unmount().map_err(|error| during("serving the disk", error))?;
                return Err(during("mounting the file system", error));
            }
        };
        let state = Arc::clone(&disk.state);
        let tell: Tell = Arc::new(move |promise| {
            fuse::locked(&state).log.events.push(Event::Promised(promise));
        });
        let model = Mutex::new(start.model.clone());
        let session = Session {
            root: mount.at.clone(),
            how,
            seed,
            alignment_min: self.fs.direct_alignment(),
            operations: 20 + random.below(100),
            model: &model,
            tell,
            promise: start.promise,
            expected_last: start.expected_last,
        };
        let outcome = session.run();
        drop(session);
        mount.unmount().map_err(|error| during("unmounting the file system", error))?;
        let log = disk.unmount().map_err(|error| during("serving the disk", error))?.log;
        self.report.connected(0);
        let model = model.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(problem) = outcome {
            self.report.violation(&Violation {
                how,
                seed,
                cut: String::from("while it ran, with power"),
                problem,
                kept: keep(
                    self.keep.as_deref(),
                    &start.image,
                    &format!("device-{}-seed-{seed}", self.fs.name()),
                ),
            });
            return Ok(None);
        }
        Ok(Some(Past { start, log, model, how, seed }))
    }

    /// Cuts the power at places of a run; returns one of the disks to begin the next run with.
    fn cut(&self, past: &Past, points: u64) -> io::Result<Option<Start>> {
        let mut random = Random::of(past.seed, 7);
        let mut next = None;
        for point in 0..points {
            if self.report.is_enough() {
                break;
            }
            let cut = past.log.choose_cut(&mut random);
            let choice = Choice::random(&mut random);
            let checked = self.point(past, point, cut, choice, &mut random)?;
            if random.one_in(points) || next.is_none() {
                next = checked.or(next);
            }
        }
        Ok(next)
    }

    fn point(
        &self,
        past: &Past,
        point: u64,
        cut: Position,
        choice: Choice,
        random: &mut Random,
    ) -> io::Result<Option<Start>> {
        let lies = match self.flushes {
            Flushes::Honest => 0,
            Flushes::Lie => 1 + random.below(6) as usize,
        };
        let promise = past.log.promised(cut, past.start.promise);
        let by = match random.one_in(3) {
            true => past.how,
            false => How::Std,
        };
        let mut units = vec![choice];
        // File systems may rest on blocks of their own being whole; logs may not.
        if choice.unit == Some(SECTOR) {
            units.push(choice.of_blocks());
        }
        for (attempt, choice) in units.iter().enumerate() {
            let mut survivors = random.clone();
            let crash = past.log.crash(&past.start.image, cut, *choice, &mut survivors, lies);
            let mut model = past.model.clone();
            let mut checker = Checker {
                how: by,
                random: Random::of(past.seed, 1000 + point),
                alignment_min: self.fs.direct_alignment(),
            };
            match self.examine(&crash.image, &mut checker, &mut model, promise)? {
                Ok(found) => {
                    random.next();
                    self.report.point(past.how, &found, promise, crash.lost > 0);
                    let mut model = past.model.clone();
                    model.cut(found.last);
                    let runs = past.start.runs + 1;
                    let expected_last = Some(found.last);
                    return Ok(Some(Start { image: crash.image, model, promise, expected_last, runs }));
                }
                Err(Wrong::Mount(_)) if attempt + 1 < units.len() => self.report.refused(),
                Err(wrong) => {
                    let problem = match wrong {
                        Wrong::Mount(error) => format!("the file system does not mount: {error}"),
                        Wrong::Contents(problem) => problem,
                    };
                    self.report.violation(&Violation {
                        how: past.how,
                        seed: past.seed,
                        cut: format!(
                            "crash point {point}, at event {cut} of {}, {choice:?}: {} sectors survive, {} are \
                             lost; run {} of this file system; recovered by {}; promised {promise:?}",
                            past.log.events.len(),
                            crash.kept,
                            crash.lost,
                            past.start.runs + 1,
                            by.name()
                        ),
                        problem,
                        kept: keep(
                            self.keep.as_deref(),
                            &crash.image,
                            &format!("device-{}-seed-{}-point-{point}", self.fs.name(), past.seed),
                        ),
                    });
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    fn examine(
        &self,
        image: &Image,
        checker: &mut Checker,
        model: &mut Model,
        promise: Promise,
    ) -> io::Result<Result<Found, Wrong>> {
        let path = self.work.join("crashed");
        store(image, &path)?;
        let mount = match self.fs.mount(&path, &self.work.join("check"), false) {
            Ok(mount) => mount,
            Err(error) => return Ok(Err(Wrong::Mount(error))),
        };
        let found = check::check(&mount.at, checker, model, promise);
        mount.unmount()?;
        Ok(found.map_err(Wrong::Contents))
    }
}

fn during(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn store(image: &Image, path: &Path) -> io::Result<()> {
    image.store(&File::create(path)?)
}
