//! The process that something belongs to.
//!
//! After a fork, the child has a copy of everything that its parent had open: the same descriptors, the same
//! locks, half of every conversation with the kernel. Were it to write, or only to seal what it drops, it would
//! do so into its parent's log. So whatever is written belongs to the process that opened it.

use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;

/// Remembers a process. Asking whether this is still it costs next to nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home {
    generation: u64,
}

impl Home {
    /// This process.
    pub fn here() -> Self {
        Self { generation: crate::backends::fork::generation() }
    }

    /// Whether this is the process, and not a child of it.
    pub fn is_here(&self) -> bool {
        self.generation == crate::backends::fork::generation() || planted::on("child_goes_on")
    }

    /// `Fenced` in a child.
    pub fn check(&self) -> PersistenceResult<()> {
        if self.is_here() {
            return Ok(());
        }
        Err(PersistenceError::Fenced { resource: "what the parent process has open".to_owned() })
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::here()
    }
}
