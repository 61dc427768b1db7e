//! Repair: the one place where a log that exists is edited, and only when somebody asks for it.
//!
//! Opening needs no repair: it accepts a torn tail, and cuts it by going on elsewhere. Repair is for a log that
//! is refused: what cannot be read is taken out of it, so that the rest is clean for every reader. It deletes
//! nothing. Bytes that are cut are copied into a folder beside the log first, files that are no part of it any
//! more are moved there, and a report says what was done and why.
//!
//! * `overlay`: the log as it would be, for planning.
//! * `plan`: what to do. Judged by the same reading as everywhere: a plan is complete when replay calls the
//!   log clean as it would be then.
//! * `apply`: the order in which it is done, so that a crash leaves a log that can be repaired again.
//!
//! Invariant: nothing that was acknowledged is taken out unless the caller names exactly these entries. A log that
//! ends before what a checkpoint beside it requires has lost such entries, whatever its end looks like: it is not
//! touched.

mod apply;
mod overlay;
mod plan;

pub use apply::{Repair, RepairState, Repaired};
pub use overlay::Planned;
pub use plan::{Keep, Loss, RepairPlan, RepairStep, plan_log, plan_record_log};
