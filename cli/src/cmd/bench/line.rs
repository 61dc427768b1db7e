//! One line of the table: what is measured, one measurement of it, and the medians over the rounds.

use super::Failure;
use super::drive::Window;
use super::meter::Used;
use super::raw::BASELINE;
use serde::Serialize;
use std::time::Duration;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A bare loop of system calls on one thread.
    Raw,
    /// A textbook commit engine.
    Reference,
    /// This library.
    Ours,
}

/// Who waits for a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Waiting {
    /// One thread for each committer; it blocks.
    Threads,
    /// One thread for all committers; each is a future.
    Futures,
    /// The one owner commits and waits.
    None,
}

/// What a line measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// Where it comes from.
    pub kind: Kind,
    /// Which loop, engine or type.
    pub name: &'static str,
    /// How a commit is made durable.
    pub strategy: &'static str,
    /// Who waits.
    pub waiting: Waiting,
    /// How many commit at once.
    pub committers: usize,
    /// Bytes of an entry.
    pub entry_bytes: usize,
}

/// Measures for as long as the window says.
pub type Cell = Box<dyn FnMut(&Window<'_>) -> Result<Sample, Failure>>;

/// A subject, how to measure it, and what was measured.
pub struct Line {
    /// What.
    pub subject: Subject,
    /// How.
    pub cell: Cell,
    /// One for each round.
    pub samples: Vec<Sample>,
    /// Whether this machine may lack it; then the line is left out, and the reason is printed.
    pub is_optional: bool,
    /// The raw loop that it is compared to.
    pub baseline: &'static str,
}

impl Line {
    /// A line that every machine has.
    pub fn new(subject: Subject, cell: Cell) -> Self {
        Self { subject, cell, samples: Vec::new(), is_optional: false, baseline: BASELINE }
    }

    /// A line that depends on the kernel and the file system.
    pub fn optional(subject: Subject, cell: Cell) -> Self {
        Self { is_optional: true, ..Self::new(subject, cell) }
    }

    /// Compared to another raw loop.
    pub fn against(self, baseline: &'static str) -> Self {
        Self { baseline, ..self }
    }

    /// The median over the rounds of what `of` takes from each; `None` where a round has none.
    pub fn median(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().map(of).collect::<Option<Vec<f64>>>()?)
    }

    /// Commits per second, the median over the rounds.
    pub fn commits_per_s(&self) -> Option<f64> {
        self.median(|sample| Some(sample.commits_per_s()))
    }

    /// How often as many commits per second as `other` in the same round, the median over the rounds.
    pub fn ratio_to(&self, other: &Self) -> Option<f64> {
        let pairs = self.samples.iter().zip(&other.samples);
        median(pairs.map(|(mine, theirs)| mine.commits_per_s() / theirs.commits_per_s()).collect())
    }
}

/// One round of one line.
#[derive(Clone, Debug)]
pub struct Sample {
    commits: u64,
    elapsed: Duration,
    percentiles_ns: [u32; 3],
    used: Used,
    file_bytes_per_entry: Option<f64>,
}

impl Sample {
    /// What was measured in `elapsed`.
    pub fn new(mut latencies: Latencies, elapsed: Duration, used: Used) -> Self {
        let commits = latencies.0.len() as u64;
        let percentiles_ns = [0.5, 0.99, 0.999].map(|share| latencies.percentile(share));
        Self { commits, elapsed, percentiles_ns, used, file_bytes_per_entry: None }
    }

    /// Each commit was of so many entries; latencies stay those of a commit.
    pub fn of_entries(self, entries_per_commit: u64) -> Self {
        Self { commits: self.commits * entries_per_commit, ..self }
    }

    /// Adds by how much the files grew, or their used part, in bytes per entry.
    pub fn with_file_bytes(self, bytes_per_entry: f64) -> Self {
        Self { file_bytes_per_entry: Some(bytes_per_entry), ..self }
    }

    /// What an entry takes in the files, in bytes.
    pub fn file_bytes_per_entry(&self) -> Option<f64> {
        self.file_bytes_per_entry
    }

    /// Commits that were measured.
    #[cfg(test)]
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Commits per second.
    pub fn commits_per_s(&self) -> f64 {
        self.commits as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The median latency, the 99th and the 99.9th percentile, in microseconds.
    pub fn percentiles_us(&self) -> [f64; 3] {
        self.percentiles_ns.map(|nanos| f64::from(nanos) / 1000.0)
    }

    /// What the process used, for each commit.
    pub fn per_commit(&self, of: impl Fn(&Used) -> Option<f64>) -> Option<f64> {
        Some(of(&self.used)? / self.commits.max(1) as f64)
    }
}

/// How long each commit took, in nanoseconds; more than four seconds are noted as four.
#[derive(Debug, Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    /// With room, so that the first thousands cost no allocation.
    pub fn with_room() -> Self {
        Self(Vec::with_capacity(1 << 14))
    }

    /// Notes one commit.
    pub fn push(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
    }

    /// Takes those of another thread.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// The smallest latency that at least this share of the commits did not exceed; 0 without commits.
    fn percentile(&mut self, share: f64) -> u32 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        let Some(index) = self.0.len().checked_sub(1).map(|last| rank.saturating_sub(1).min(last)) else {
            return 0;
        };
        *self.0.select_nth_unstable(index).1
    }
}

/// The middle value, or the mean of the two middle ones.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks_and_not_interpolated() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(0.5), 0);
        (1..=1000).rev().for_each(|nanos| latencies.push(Duration::from_nanos(nanos)));
        assert_eq!([0.5, 0.99, 0.999, 1.0].map(|share| latencies.percentile(share)), [500, 990, 999, 1000]);
        latencies.push(Duration::from_secs(60));
        assert_eq!(latencies.percentile(1.0), u32::MAX);
    }

    #[test]
    fn medians_and_ratios_pair_the_rounds() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let line = |rates: &[u64]| {
            let subject = Subject {
                kind: Kind::Ours,
                name: "",
                strategy: "",
                waiting: Waiting::Futures,
                committers: 1,
                entry_bytes: 1,
            };
            let mut line = Line::new(subject, Box::new(|_| Err("unused".into())));
            line.samples = rates
                .iter()
                .map(|commits| Sample {
                    commits: *commits,
                    elapsed: Duration::from_secs(1),
                    percentiles_ns: [0; 3],
                    used: Used::default(),
                    file_bytes_per_entry: None,
                })
                .collect();
            line
        };
        // The slow round was slow for both: the ratio does not show it.
        let (mine, theirs) = (line(&[100, 20, 100]), line(&[50, 10, 50]));
        assert_eq!(mine.ratio_to(&theirs), Some(2.0));
        assert_eq!(mine.commits_per_s(), Some(100.0));
        assert_eq!(mine.median(|sample| sample.per_commit(|used| used.cpu_us)), None);
    }
}
