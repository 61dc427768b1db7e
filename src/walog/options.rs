//! How a write-ahead log is written.

use super::telemetry::Telemetry;
use super::waiters::contained;
use crate::error::{PersistenceError, PersistenceResult};
use crate::limits;
use crate::planted;
use crate::storage::{Environment, FlushPolicy, SystemEnvironment};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What appending does when too much waits for its commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backpressure {
    /// It waits for a commit; where that one is refused, for want of space or of descriptors, as
    /// [`Refuse`](Self::Refuse).
    #[default]
    Wait,
    /// It answers [`WouldBlock`](PersistenceError::WouldBlock) and appends nothing.
    Refuse,
}

/// Who makes the next segment (creates it, fills it with zeros, syncs it, gives it its durable name) before it is
/// needed, and seals the one before, so that no commit waits for that.
///
/// A [`SyncWalWriter`](super::SyncWalWriter) takes this from its options; a [`WalWriter`](super::WalWriter) when
/// [`prepare_ahead`](super::WalWriter::prepare_ahead) is called.
#[derive(Clone, Debug, Default)]
pub enum PrepareAhead {
    /// A thread of the log's own where many threads share a log in a durable directory; else nobody.
    #[default]
    Auto,
    /// Nobody: whoever needs a segment makes it, and waits for that.
    Never,
    /// A thread of the log's own, named `durability-prepare`. It starts with the first segment, sleeps while there
    /// is nothing to do, and ends when the log is closed.
    Thread,
    /// Whoever calls [`PrepareHand::step`]: for programs that have a thread to spare, and for simulations.
    ByHand(PrepareHand),
}

/// Makes the segments of one log ahead of need, step by step. Clones are the same hand.
#[derive(Clone, Default)]
pub struct PrepareHand {
    work: Arc<Mutex<Option<Arc<StepWork>>>>,
}

type StepWork = dyn Fn() -> bool + Send + Sync;

impl PrepareHand {
    /// A hand that has nothing to do before a log is opened with it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does one piece of what there is to do: at most one write of a quarter of a megabyte, or one sync. `false`
    /// when there is nothing. May block for the disk, never for a commit.
    pub fn step(&self) -> bool {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner).clone();
        work.is_some_and(|work| work())
    }

    pub(super) fn give(&self, work: impl Fn() -> bool + Send + Sync + 'static) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(work));
    }
}

impl fmt::Debug for PrepareHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrepareHand").finish_non_exhaustive()
    }
}

/// Options of a writer. The bytes that it writes depend on these, the entries and the environment's
/// randomness alone, never on the backend. (A shared writer's batches depend on time, too: whatever waits goes with
/// the next commit.)
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// When entries are handed to the operating system without being asked to.
    pub flush_policy: FlushPolicy,
    /// Pending payload, in bytes, above which the same happens whatever the policy says.
    pub buffer_bytes: usize,
    /// Payload, in bytes, that may wait for its commit in a shared writer: pending and in flight together; and that
    /// a writer with one owner may have in flight without waiting for it. A single batch may always wait, however
    /// large.
    pub in_flight_bytes_max: usize,
    /// How many commits of a shared writer may be in flight at once, where the backend keeps several. `None`:
    /// one, or a few where a commit takes so long that they overlap with profit.
    pub pipeline_depth: Option<usize>,
    /// What appending to a shared writer does when that much waits.
    pub backpressure: Backpressure,
    /// A segment is sealed before a frame that would make it larger than this, in bytes. A batch that is
    /// larger gets a segment of its own, and every segment holds at least one batch.
    pub segment_bytes_max: u64,
    /// A segment older than this is sealed before the next frame.
    pub segment_age_max: Option<Duration>,
    /// How much of a new segment is zero-filled before its first commit, in bytes; commits into it then
    /// change no metadata. At most the segment limit is taken. Where a segment grows beyond it, it does so by as much, and
    /// space is asked for before a frame is written, so that a full device is met while nothing is half done. 0 turns
    /// both off. What is made ahead of need is zero-filled whole, unless this is 0: at first half as much again, then
    /// each half larger than the one before, up to the segment limit; a log goes on in it rather than let its
    /// segment grow, so that the first segments are smaller than the limit. Behind a segment that was filled with hardly a
    /// durable commit ([`STREAM_BYTES_PER_COMMIT`](limits::STREAM_BYTES_PER_COMMIT)) zeros would cost more than they
    /// save: space for the whole next one is asked for instead.
    pub preallocate_bytes: u64,
    /// Who makes segments ahead of need.
    pub prepare_ahead: PrepareAhead,
    /// How many segments are kept ready at least, where somebody makes them ahead of need.
    pub prepared_segments_min: usize,
    /// How many truncated segments are kept to be used again, at most. They are zeroed when they are.
    pub recycle_capacity: usize,
    /// Alignment of frames, in bytes: a power of two from 512 to 4096. Direct I/O needs at least the
    /// device's logical sector.
    pub frame_alignment: u32,
    /// How long `open` waits for a killed predecessor's unfinished requests.
    pub lock_wait: Duration,
    /// A *new* log starts behind this entry id: the last one that a checkpoint covers.
    pub id_floor: u64,
    /// The log must have this identity; `None` takes any.
    pub identity: Option<u128>,
    /// A commit of a shared writer that takes longer than this is reported, once: as a warning, to
    /// [`WalObserver::on_slow_commit`], and in the telemetry. Nothing else follows from it. It is reported while it
    /// still runs, by a thread that waits for it; where none can (with
    /// [`WriteThenSync`](crate::storage::CommitStrategy::WriteThenSync) a lone committer is inside the system
    /// call), when it has ended.
    pub slow_after: Option<Duration>,
    /// Where a shared writer records what it does with its time; see `docs/telemetry.md`.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Where salts, identities and time come from.
    pub environment: Arc<dyn Environment>,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            flush_policy: FlushPolicy::default(),
            buffer_bytes: limits::BUFFER_BYTES_DEFAULT,
            in_flight_bytes_max: limits::IN_FLIGHT_BYTES_DEFAULT,
            pipeline_depth: None,
            backpressure: Backpressure::Wait,
            segment_bytes_max: limits::SEGMENT_BYTES_DEFAULT,
            segment_age_max: None,
            preallocate_bytes: limits::PREALLOCATE_BYTES_DEFAULT,
            prepare_ahead: PrepareAhead::Auto,
            prepared_segments_min: limits::PREPARED_SEGMENTS_DEFAULT,
            recycle_capacity: 0,
            frame_alignment: limits::FRAME_ALIGNMENT_DEFAULT,
            lock_wait: Duration::from_millis(limits::LOCK_WAIT_MS_DEFAULT),
            id_floor: 0,
            identity: None,
            slow_after: None,
            telemetry: None,
            environment: Arc::new(SystemEnvironment::new()),
        }
    }
}

impl WalOptions {
    /// Refuses what no log can be written with.
    pub fn validate(&self) -> PersistenceResult<()> {
        let alignment = self.frame_alignment;
        let range = limits::FRAME_ALIGNMENT_MIN..=limits::FRAME_ALIGNMENT_MAX;
        if !alignment.is_power_of_two() || !range.contains(&alignment) {
            return Err(PersistenceError::invalid_config(
                "frame_alignment",
                format!("{alignment} is not a power of two from {} to {}", range.start(), range.end()),
            ));
        }
        if self.segment_bytes_max == 0 {
            return Err(PersistenceError::invalid_config("segment_bytes_max", "0 bytes hold nothing"));
        }
        if self.buffer_bytes > limits::BATCH_BYTES_MAX {
            let reason =
                format!("{} is more than a batch can hold ({})", self.buffer_bytes, limits::BATCH_BYTES_MAX);
            return Err(PersistenceError::invalid_config("buffer_bytes", reason));
        }
        let in_flight = 1..=limits::BATCH_BYTES_MAX / 2;
        if !in_flight.contains(&self.in_flight_bytes_max) {
            let reason =
                format!("{} is not between 1 and {}", self.in_flight_bytes_max, limits::BATCH_BYTES_MAX / 2);
            return Err(PersistenceError::invalid_config("in_flight_bytes_max", reason));
        }
        if self.pipeline_depth == Some(0) {
            return Err(PersistenceError::invalid_config("pipeline_depth", "0 commits commit nothing"));
        }
        let ready = 1..=limits::PREPARED_SEGMENTS_MAX;
        if !ready.contains(&self.prepared_segments_min) {
            let reason = format!("{} is not between 1 and {}", self.prepared_segments_min, ready.end());
            return Err(PersistenceError::invalid_config("prepared_segments_min", reason));
        }
        if self.slow_after == Some(Duration::ZERO) && !planted::on("accept_zero_threshold") {
            return Err(PersistenceError::invalid_config("slow_after", "every commit takes longer"));
        }
        if self.id_floor >= limits::ENTRY_ID_MAX {
            return Err(PersistenceError::invalid_config("id_floor", "no id is left above it"));
        }
        Ok(())
    }

    /// What is zero-filled of a new segment, in bytes.
    pub(crate) fn zero_filled_bytes(&self) -> u64 {
        let alignment = u64::from(self.frame_alignment);
        self.preallocate_bytes.min(self.segment_bytes_max) / alignment * alignment
    }

    /// What fills the block behind a flush of so many bytes, in bytes, at most.
    pub(crate) fn filler_bytes(&self, flush_bytes: u64) -> u64 {
        let is_filled = flush_bytes >= limits::FILLED_FLUSH_BYTES_MIN as u64;
        if is_filled { limits::FILE_BLOCK_BYTES - u64::from(self.frame_alignment) } else { 0 }
    }
}

/// Calls an observer whose panic must stay there: it may be anybody's thread, in the middle of a commit.
pub(super) fn observed(call: impl FnOnce()) {
    if planted::on("observer_panic_escapes") {
        return call();
    }
    contained("an observer of a log", call);
}

/// A commit that takes longer than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowCommit {
    /// The last entry in it.
    pub last_entry_id: u64,
    /// Everything up to here is durable all the same.
    pub durable_entry_id: u64,
    /// How long ago it began.
    pub time: Duration,
    /// Commits in flight, itself included.
    pub in_flight: usize,
    /// Whether it has ended meanwhile.
    pub has_ended: bool,
}

/// Is told what a writer does, and may veto truncation.
///
/// Called on the thread that does it; what a call costs, the writer pays. A
/// [`SyncWalWriter`](super::SyncWalWriter) calls it with no lock held and no commit kept waiting, so that it may
/// use the log: append and wait for durability, flush, close, drop the last handle. (What it is told of its own
/// entries, it is told inside that call.) Calls of different threads may overlap. A panic stays in here, except of
/// `on_append`, which is the appending thread's own.
pub trait WalObserver: Send + Sync {
    /// An entry was appended.
    fn on_append(&self, entry_id: u64) {
        let _ = entry_id;
    }
    /// Everything up to `entry_id` was handed to the operating system.
    fn on_flush(&self, entry_id: u64) {
        let _ = entry_id;
    }
    /// Everything up to `entry_id` is durable.
    fn on_sync(&self, entry_id: u64) {
        let _ = entry_id;
    }
    /// The log goes on in another segment. A [`SyncWalWriter`](super::SyncWalWriter) tells this before it tells of
    /// the entries there.
    fn on_segment_rotate(&self, sealed_segment_id: u64, new_segment_id: u64) {
        let _ = (sealed_segment_id, new_segment_id);
    }
    /// A commit takes longer than [`WalOptions::slow_after`]. Called once for each commit, by a thread that waits
    /// for it.
    fn on_slow_commit(&self, slow: &SlowCommit) {
        let _ = slow;
    }
    /// A segment whose last entry is `last_entry_id` is about to be removed; an error keeps it, and is
    /// returned from the truncation.
    fn on_before_truncate(&self, segment_id: u64, last_entry_id: u64) -> PersistenceResult<()> {
        let _ = (segment_id, last_entry_id);
        Ok(())
    }
}
