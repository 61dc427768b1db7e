//! Idle rings of one directory.
//!
//! Lives here: keeping rings for the next file, so that rotating a log sets up none. Not here: what is done
//! with them.
//!
//! Invariant: a pooled ring has nothing in flight, and everything in its queues was read.

use super::ring::Ring;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Rings kept; more are closed when they come back.
const IDLE_MAX: usize = 8;

/// Idle rings, all of the same size.
pub(super) struct Pool {
    units: usize,
    idle: Mutex<Vec<Ring>>,
}

impl Pool {
    /// For rings with room for `units` units.
    pub fn new(units: usize) -> Self {
        Self { units, idle: Mutex::new(Vec::new()) }
    }

    /// An idle ring, or a new one. Rings of a parent process are left alone.
    pub fn take(&self) -> io::Result<Ring> {
        loop {
            let ring = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match ring {
                Some(ring) if ring.belongs_to_this_process() => return Ok(ring),
                // Dropping it would unmap what is not mapped here.
                Some(ring) => std::mem::forget(ring),
                None => return Ring::new(self.units),
            }
        }
    }

    /// Takes a ring back.
    pub fn put(&self, ring: Ring) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(ring);
        }
    }

    #[cfg(all(test, not(durability_shuttle)))]
    pub fn idle(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner);
        for ring in idle.drain(..) {
            if !ring.belongs_to_this_process() {
                std::mem::forget(ring);
            }
        }
    }
}
