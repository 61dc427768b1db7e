//! From a program to a verdict: runs, crashes, recoveries, and the property that must hold of each.

use super::crash::{SimFailure, SimOptions, SimReport, check_crashes};
use super::disk::SimDisk;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Your program under power cuts: what it does, how it recovers, what must be true then.
///
/// ```
/// use durability::testing::sim::{CrashLab, SimDisk};
/// use durability::{Directory, DurableDirectory};
///
/// // A counter in one file. The run marks what it acknowledged.
/// let run = |disk: &SimDisk, seed: u64| {
///     for count in 1..=3 + seed % 2 {
///         disk.atomic_write_durable("count", &count.to_le_bytes()).unwrap();
///         disk.mark(count);
///     }
/// };
/// let recover = |image: &SimDisk| -> Result<u64, std::io::Error> {
///     let mut bytes = [0; 8];
///     match image.open_file("count") {
///         Ok(mut file) => std::io::Read::read_exact(&mut file, &mut bytes)?,
///         Err(error) if error.is_not_found() => {}
///         Err(error) => return Err(std::io::Error::other(error)),
///     }
///     Ok(u64::from_le_bytes(bytes))
/// };
/// let report = CrashLab::new(run)
///     .seeds(1..=2)
///     .check(recover, |count, acknowledged| {
///         let least = acknowledged.last().copied().unwrap_or(0);
///         if count >= least { Ok(()) } else { Err(format!("{count} is less than {least}")) }
///     })
///     .unwrap();
/// assert_eq!(report.exhaustive_points, report.points);
/// ```
pub struct CrashLab<R> {
    run: R,
    seeds: RangeInclusive<u64>,
    options: SimOptions,
}

impl<R: FnMut(&SimDisk, u64)> CrashLab<R> {
    /// `run` gets an empty disk and a seed, from which everything that it chooses must follow. It turns the
    /// disk's knobs, and marks what it acknowledges ([`SimDisk::mark`]). A failure that the disk answers is
    /// its own to handle.
    pub fn new(run: R) -> Self {
        Self { run, seeds: 1..=1, options: SimOptions::default() }
    }

    /// The runs to make, one for each seed. Also orders commits that are in flight together.
    pub fn seeds(mut self, seeds: RangeInclusive<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// How crashes are enumerated. The image seed is that of the options plus that of the run.
    pub fn options(mut self, options: SimOptions) -> Self {
        self.options = options;
        self
    }

    /// Recovers every image with `recover`, and hands what it returned to `property`, with the values that
    /// the run had marked until the crash. Recovering must not fail.
    ///
    /// The first failure is shrunk and returned. Runs come in the order of their seeds and crashes in the
    /// order of operations, so it is also the earliest crash that fails.
    pub fn check<S, E: Display>(
        mut self,
        mut recover: impl FnMut(&SimDisk) -> Result<S, E>,
        mut property: impl FnMut(S, &[u64]) -> Result<(), String>,
    ) -> Result<SimReport, Box<SimFailure>> {
        let mut total = SimReport::default();
        for run_seed in self.seeds {
            let disk = SimDisk::new(run_seed);
            (self.run)(&disk, run_seed);
            let seed = self.options.seed.wrapping_add(run_seed);
            let options = SimOptions { seed, ..self.options.clone() };
            let checked = check_crashes(&disk, &options, |image, marks| match recover(image) {
                Ok(state) => property(state, marks),
                Err(error) => Err(format!("no recovery: {error}")),
            });
            match checked {
                Ok(report) => total += report,
                Err(failure) => return Err(Box::new(SimFailure { run_seed: Some(run_seed), ..*failure })),
            }
        }
        Ok(total)
    }
}
