//! A log that is used in every way at once: one owner and shared, handed over in the middle, through the page
//! cache and past it, segments prepared or not, commits in flight, segments and flush policies of all sizes,
//! truncation with recycling, disks that fill and fail, closing, dropping, killing; a follower and readers beside.
//!
//! Here: what holds of such a log. A power cut after any operation loses nothing that was promised. Damage loses
//! nothing in silence that anything undamaged attests; reading, opening and the tool's verdict agree; and a log
//! that is opened all the same goes on and reads back whole, or stays refused.
//!
//! `DURABILITY_SEED` runs one seed, `DURABILITY_SEEDS` that many from 1 on.

mod damage;
mod user;
mod wal;

use crate::power_cut::{campaign, check, must, seeds};
use durability::testing::sim::{SimOptions, check_crashes};

/// Few; the planted bugs of `scripts/teeth.sh` show in them. A campaign takes more.
const SEEDS: u64 = 7;

#[test]
fn no_power_cut_loses_what_a_log_used_in_every_way_promised() {
    campaign("mixed", seeds(SEEDS), |seed| {
        let left = user::run(seed, 40);
        println!("seed {seed}: {} rotations, {} entries followed", left.rotations, left.shown);
        let stride = (left.disk.operations() / 60).max(1);
        let options = SimOptions { seed, images_per_point: 2, stride, ..SimOptions::default() };
        must(check_crashes(&left.disk, &options, check), seed)
    });
}

#[test]
fn damage_to_a_log_used_in_every_way_is_told_or_costs_nothing_that_is_attested() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in seeds(SEEDS) {
        println!("seed {seed} (DURABILITY_SEED={seed})");
        let (taken, told) = damage::at_random_places(seed);
        accepted += taken;
        refused += told;
    }
    println!("mixed: {} damages, {accepted} accepted, {refused} refused", accepted + refused);
    assert!(accepted > 0 && refused > 0, "one of them was never seen");
}
