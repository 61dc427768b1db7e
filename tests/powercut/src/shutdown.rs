//! The kind `shutdown`: the file system stops at once and forgets what it has not written, its log included.
//!
//! What had been written back before is on the disk, so pages of the logs are written back early and out of
//! order while the run goes on (`workload::disturb`).

use crate::check::{self, Checker};
use crate::disks::{FileSystem, Mount};
use crate::image::Image;
use crate::model::{Model, Promise};
use crate::random::Random;
use crate::worker::{Report, Violation, keep};
use crate::workload::{How, Session, Tell, locked};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Power cuts of one file system, one after the other.
const CUTS_MAX: u64 = 10;

pub struct Lab<'a> {
    pub fs: FileSystem,
    pub work: PathBuf,
    pub keep: Option<PathBuf>,
    pub report: &'a Report,
}

/// The switch, and what was promised.
struct Power {
    mount: Mount,
    /// Promises until the power is cut by the one who gives the last of them.
    left: u64,
    is_cut: bool,
    promise: Promise,
    error: Option<io::Error>,
}

impl Power {
    fn cut(&mut self) {
        if !self.is_cut {
            self.is_cut = true;
            self.error = self.mount.cut().err();
        }
    }
}

impl Lab<'_> {
    /// Runs until so many cuts are checked, or until the report says that it is enough.
    pub fn run(&self, ways: &[How], seed: u64, points: u64) -> io::Result<()> {
        let mut random = Random::of(seed, 0);
        let disk = self.work.join("disk");
        let at = self.work.join("run");
        let mut run = 0;
        while self.report.points() < points && !self.report.is_enough() {
            self.fs.make(&disk)?;
            let mut model = Model::default();
            let mut promise = Promise::default();
            for number in 0..CUTS_MAX {
                if self.report.points() >= points || self.report.is_enough() {
                    break;
                }
                let how = ways[run % ways.len()];
                let run_seed = random.next();
                run += 1;
                let mount = self.fs.mount(&disk, &at, false)?;
                let (outcome, told) = self.once(mount, how, run_seed, &mut model, promise)?;
                let crashed = self.keep.as_ref().map(|_| Image::load(&File::open(&disk)?)).transpose()?;
                let by = if random.one_in(3) { how } else { How::Std };
                let mount = self.fs.mount(&disk, &at, false)?;
                let mut checker = Checker {
                    how: by,
                    random: Random::of(run_seed, 1000),
                    alignment_min: self.fs.direct_alignment(),
                };
                let found = outcome.and_then(|()| check::check(&mount.at, &mut checker, &mut model, told));
                mount.unmount()?;
                match found {
                    Ok(found) => {
                        self.report.point(how, &found, told, true);
                        // What the check went on with is durable: it was closed, and the disk unmounted.
                        let last = model.newest_fold().through;
                        promise = told.and(Promise { entries: last, records: found.records, checkpoint: 0 });
                    }
                    Err(problem) => {
                        self.report.violation(&Violation {
                            how,
                            seed: run_seed,
                            cut: format!("cut {number} of this file system; recovered by {}", by.name()),
                            problem,
                            kept: crashed.and_then(|image| {
                                keep(
                                    self.keep.as_deref(),
                                    &image,
                                    &format!("shutdown-{}-seed-{run_seed}", self.fs.name()),
                                )
                            }),
                        });
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// One run and its power cut. The outcome is an error when the library failed while there was power.
    fn once(
        &self,
        mount: Mount,
        how: How,
        seed: u64,
        model: &mut Model,
        promise: Promise,
    ) -> io::Result<(Result<(), String>, Promise)> {
        let mut random = Random::of(seed, 5);
        let root = mount.at.clone();
        let left = 1 + random.below(60);
        let power = Arc::new(Mutex::new(Power { mount, left, is_cut: false, promise, error: None }));
        let switch = Arc::clone(&power);
        let by_promise = !random.one_in(3);
        let tell: Tell = Arc::new(move |promise| {
            let mut power = locked(&switch);
            // The file system's calls may succeed for a moment after it was stopped; a machine without power
            // tells nobody.
            if power.is_cut {
                return;
            }
            power.promise = power.promise.and(promise);
            power.left = power.left.saturating_sub(1);
            if power.left == 0 && by_promise {
                power.cut();
            }
        });
        let shared = Mutex::new(std::mem::take(model));
        let session = Session {
            root,
            how,
            seed,
            alignment_min: self.fs.direct_alignment(),
            operations: 20 + random.below(100),
            model: &shared,
            tell,
            promise,
            expected_last: None,
        };
        let outcome = std::thread::scope(|scope| {
            if !by_promise {
                let switch = Arc::clone(&power);
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_micros(random.below(60_000)));
                    locked(&switch).cut();
                });
            }
            session.run()
        });
        drop(session);
        *model = shared.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut power = Arc::into_inner(power)
            .ok_or_else(|| io::Error::other("the switch is still in use"))?
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let had_power = !power.is_cut;
        power.cut();
        if let Some(error) = power.error {
            return Err(error);
        }
        power.mount.unmount()?;
        Ok((outcome.or_else(|problem| if had_power { Err(problem) } else { Ok(()) }), power.promise))
    }
}
