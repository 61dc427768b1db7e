//! Your own database under power cuts: a toy key-value store with a planted bug, found and shrunk.
//!
//! `cargo run --features testing --example crash_lab` runs the store with the bug, and prints the crash that
//! shows it: the fewest things that have to survive, and what became of every operation. Then it runs the
//! store without the bug. `-- RUNS` makes that many runs.
//!
//! The store keeps all pairs in one file, which every `put` replaces. The bug: the new file is renamed into
//! place without a sync of its contents before.

use durability::testing::sim::{CrashLab, SimDisk, SimFailure, SimReport};
use durability::{Directory, DurableDirectory, PersistenceResult};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// Whether the store forgets to sync a file before it gives it its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Careless,
    Careful,
}

type Table = BTreeMap<u8, u64>;

impl Store {
    /// Replaces the table; durable when it returns, or so the careless one believes.
    fn save(self, directory: &dyn DurableDirectory, table: &Table) -> PersistenceResult<()> {
        let mut bytes = (table.len() as u32).to_le_bytes().to_vec();
        for (key, value) in table {
            bytes.push(*key);
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        let mut file = directory.create_file("table.new")?;
        file.write_all(&bytes).map_err(io_error)?;
        file.flush().map_err(io_error)?;
        drop(file);
        if self == Self::Careful {
            directory.sync_file("table.new")?;
        }
        directory.atomic_rename_durable("table.new", "table")
    }

    /// Reads the table; an error when it is there and makes no sense.
    fn load(directory: &dyn Directory) -> Result<Table, String> {
        let mut bytes = Vec::new();
        match directory.open_file("table") {
            Ok(mut file) => file.read_to_end(&mut bytes).map_err(|error| error.to_string())?,
            Err(error) if error.is_not_found() => return Ok(Table::new()),
            Err(error) => return Err(error.to_string()),
        };
        let (count, pairs) = bytes.split_first_chunk::<4>().ok_or("the table is cut short")?;
        let pairs = pairs.chunks_exact(9).map(|pair| {
            let value: [u8; 8] = std::array::from_fn(|index| pair[index + 1]);
            (pair[0], u64::from_le_bytes(value))
        });
        let table: Table = pairs.collect();
        match u32::from_le_bytes(*count) as usize == table.len() {
            true => Ok(table),
            false => Err("the table does not hold what it says".to_owned()),
        }
    }
}

fn io_error(source: io::Error) -> durability::PersistenceError {
    durability::PersistenceError::io("write", "table.new", None, source)
}

/// The `step`-th change of a run: every choice follows from the seed, so that the property can make it again.
fn change(seed: u64, step: u64) -> (u8, u64) {
    let random = (seed * 31 + step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((random % 4) as u8, seed << 8 | step)
}

/// Every crash of `runs` runs of the store.
fn crash(store: Store, runs: u64) -> Result<SimReport, Box<SimFailure>> {
    // Puts a few pairs; each that `save` acknowledges is marked with its run and step.
    let run = move |disk: &SimDisk, seed: u64| {
        let mut table = Table::new();
        for step in 1..=4 {
            let (key, value) = change(seed, step);
            table.insert(key, value);
            store.save(disk, &table).expect("this disk does not fail");
            disk.mark(value);
        }
    };
    // A put that was acknowledged is there, or a later one of the same run instead of it.
    let property = |found: Table, acknowledged: &[u64]| {
        let Some(last) = acknowledged.last() else { return Ok(()) };
        let (seed, last_step) = (last >> 8, last & 0xff);
        let mut expected = Table::new();
        for step in 1..=4 {
            let (key, value) = change(seed, step);
            expected.insert(key, value);
            if step >= last_step && expected == found {
                return Ok(());
            }
        }
        Err(format!("{found:?} after {last_step} changes were acknowledged"))
    };
    CrashLab::new(run).seeds(1..=runs).check(|image| Store::load(image), property)
}

fn main() {
    let runs = std::env::args().nth(1).map_or(20, |runs| runs.parse().expect("a number of runs"));
    match crash(Store::Careless, runs) {
        Err(failure) => println!("the careless store loses data:\n{failure}"),
        Ok(_) => panic!("the bug was not found"),
    }
    match crash(Store::Careful, runs) {
        Ok(SimReport { points, images, exhaustive_points, .. }) => println!(
            "the careful store survives {images} images at {points} crash points, {exhaustive_points} of which \
             were tried in every way there is"
        ),
        Err(failure) => panic!("the careful store fails:\n{failure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_finds_the_bug_shrinks_it_and_passes_the_fixed_store() {
        let failure = crash(Store::Careless, 3).expect_err("the bug is found");
        // The file has its name and not its contents: nothing else has to survive, and the first run shows it.
        assert_eq!(failure.run_seed, Some(1));
        assert!(failure.trace.contains("write table.new 0+13: LOST"), "{failure}");
        assert!(!failure.trace.contains("sectors"), "{failure}");
        assert_eq!(failure.to_string(), crash(Store::Careless, 3).expect_err("again").to_string());
        let report = crash(Store::Careful, 3).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(report.points, report.exhaustive_points, "short runs are checked whole");
        assert!(report.images > 100, "{report:?}");
    }
}
