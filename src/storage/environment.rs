//! Clocks and randomness come in through this one door.

use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where salts, identities and the passage of time come from.
///
/// Injectable, so that a test can write identical files twice and a simulation can run on its own time.
pub trait Environment: Send + Sync + Debug {
    /// 64 random bits, never 0 (0 means "none" in files).
    fn random(&self) -> u64;

    /// Time since some fixed point, never going back.
    fn elapsed(&self) -> Duration;
}

/// The operating system's randomness and monotonic clock.
#[derive(Debug)]
pub struct SystemEnvironment {
    start: Instant,
}

impl SystemEnvironment {
    /// The environment of this process.
    #[allow(clippy::disallowed_methods, reason = "the one door for clocks")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemEnvironment {
    fn default() -> Self {
        Self::new()
    }
}

impl Environment for SystemEnvironment {
    #[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the one door for randomness")]
    fn random(&self) -> u64 {
        loop {
            // The standard library seeds each `RandomState` from the operating system's generator; two
            // independent ones give 64 bits that nobody can predict or repeat.
            let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
            hasher.write_u64(self.start.elapsed().as_nanos() as u64);
            hasher.write_u32(std::process::id());
            let value = hasher.finish();
            if value != 0 {
                return value;
            }
        }
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Repeatable randomness from a seed, and a clock that stands still.
#[derive(Debug)]
pub struct SeededEnvironment {
    state: Mutex<u64>,
}

impl SeededEnvironment {
    /// The environment of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: Mutex::new(seed) }
    }
}

impl Environment for SeededEnvironment {
    fn random(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            // SplitMix64 (Steele, Lea, Flood 2014).
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            if z != 0 {
                return z;
            }
        }
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_the_system_does_not() {
        let (a, b) = (SeededEnvironment::new(5), SeededEnvironment::new(5));
        assert!((0..100).all(|_| a.random() == b.random()));
        let system = SystemEnvironment::new();
        let mut seen: Vec<u64> = (0..1000).map(|_| system.random()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
    }
}
