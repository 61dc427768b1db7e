//! Bugs that are planted on purpose, to see that the tests have teeth.
//!
//! Lives here: which one is switched on. Not here: the bugs, which stand where they would be made, each as
//! a condition `planted::on("name")`; nor the tests that must catch them (`scripts/teeth.sh`).
//!
//! Invariant: without `--cfg durability_planted`, which no build of the library sets, `on` is the constant
//! `false`, and the compiler removes every plant.

/// Whether the bug `name` is switched on: the environment variable `DURABILITY_PLANTED` names it.
#[cfg(durability_planted)]
pub(crate) fn on(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("DURABILITY_PLANTED").ok());
    chosen.as_deref() == Some(name)
}

/// Never: nothing is planted in this build.
#[cfg(not(durability_planted))]
#[inline(always)]
pub(crate) const fn on(_name: &str) -> bool {
    false
}
