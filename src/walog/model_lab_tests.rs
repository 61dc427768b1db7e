//! What the models stand on: a log on a slow simulated disk, and the questions that they ask of it.

use crate::error::{PersistenceError, PersistenceResult};
use crate::inspect::{Role, inspect_log};
use crate::storage::{Environment, SeededEnvironment};
use crate::sync::thread;
use crate::testing::faults::{At, Fault, Faults, FaultyDirectory};
use crate::testing::sim::{SimDisk, SimOptions, check_crashes};
use crate::walog::{PrepareAhead, SyncWalWriter, WalCheck, WalOptions, WalReader, WalReplayMode, WalWriter};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::{Config, Runner};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

type Wal = SyncWalWriter<(), FaultyDirectory<SimDisk>>;

/// Preemptions that the second scheduler places at random; few suffice for most bugs.
const PREEMPTIONS: usize = 3;
/// Steps after which a schedule is taken for one that never ends.
const STEPS_MAX: usize = 200_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Runs a model under many schedules: half of them random, half random with few preemptions (PCT).
pub(crate) fn explore(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 19;
    config.silence_warnings = true;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS_MAX);
    let model = Arc::new(model);
    let program = move || model();
    if let Ok(schedule) = std::env::var("DURABILITY_MODEL_SCHEDULE") {
        let scheduler = ReplayScheduler::new_from_encoded(schedule.trim());
        Runner::new(scheduler, config).run(program);
        return;
    }
    let seed = number("DURABILITY_MODEL_SEED", 1);
    let schedules = number("DURABILITY_MODEL_SCHEDULES", 200) as usize;
    let random = RandomScheduler::new_from_seed(seed, schedules.div_ceil(2));
    let mut explored = Runner::new(random, config.clone()).run(program.clone());
    let few = PctScheduler::new_from_seed(seed, PREEMPTIONS, schedules / 2);
    explored += Runner::new(few, config).run(program);
    println!("MODEL {name}: {explored} schedules, seed {seed}");
}

/// One of `count`; recorded in the schedule.
pub(crate) fn pick(count: usize) -> usize {
    thread_rng().gen_range(0..count)
}

/// Runs `act`; `None` when it panicked, as the model wants some of them to.
pub(super) fn caught<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}

/// Runs `count` threads to their ends; each is told its number.
pub(super) fn spawn_all(
    lab: &Arc<Lab>,
    count: usize,
    act: impl Fn(&Arc<Lab>, usize) + Send + Sync + 'static,
) {
    let act = Arc::new(act);
    let spawned: Vec<_> = (0..count)
        .map(|index| {
            let (lab, act) = (Arc::clone(lab), Arc::clone(&act));
            thread::spawn(move || act(&lab, index))
        })
        .collect();
    for handle in spawned {
        handle.join().expect("a thread of the model panicked");
    }
}

/// A log, its disk, and what it acknowledged.
pub(super) struct Lab {
    disk: SimDisk,
    faults: Faults,
    // Of the standard library: never held where a schedule could switch.
    handle: Mutex<Option<Wal>>,
    acknowledged: Mutex<u64>,
}

/// Panics when a salt is asked for, when so many were.
#[derive(Debug)]
struct PanicsLater {
    environment: SeededEnvironment,
    left: std::sync::atomic::AtomicU64,
}

impl Environment for PanicsLater {
    fn random(&self) -> u64 {
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        if self.left.fetch_sub(1, relaxed) == 0 {
            // Quietly: a panic hook would take it for the end of the schedule.
            std::panic::resume_unwind(Box::new("planned"));
        }
        self.environment.random()
    }

    fn elapsed(&self) -> Duration {
        self.environment.elapsed()
    }
}

impl Lab {
    /// A new log. How many commits may be in flight is chosen by the schedule, and so is the order in which
    /// they complete.
    pub(super) fn new(change: impl FnOnce(&mut WalOptions)) -> Arc<Self> {
        let (disk, faults) = (SimDisk::new(thread_rng().r#gen()), Faults::new());
        let mut options = WalOptions {
            environment: Arc::new(SeededEnvironment::new(1)),
            // Without a depth of its own threads that block go together, and tickets overlap.
            pipeline_depth: [None, Some(1 + pick(4))][pick(2)],
            preallocate_bytes: 0,
            segment_bytes_max: [2048, 1 << 20][pick(2)],
            // Whoever makes segments ahead of need has models of its own.
            prepare_ahead: PrepareAhead::Never,
            ..WalOptions::default()
        };
        change(&mut options);
        let writer =
            WalWriter::open_with(Arc::new(faults.over(disk.clone())), options).expect("opens an empty log");
        let writer = Wal::from_writer(writer).expect("nothing is pending");
        disk.slow_down(Duration::from_micros(1));
        let handle = Mutex::new(Some(writer));
        Arc::new(Self { disk, faults, handle, acknowledged: Mutex::new(0) })
    }

    /// Each commit makes a segment; while one is made, whoever makes it panics.
    pub(super) fn with_panicking_rotation() -> Arc<Self> {
        Self::new(|options| {
            options.segment_bytes_max = 1;
            // Two make the log's identity, one each segment.
            let left = std::sync::atomic::AtomicU64::new(2 + pick(5) as u64);
            options.environment = Arc::new(PanicsLater { environment: SeededEnvironment::new(1), left });
        })
    }

    pub(super) fn fail(&self, at: At, kind: ErrorKind) {
        self.faults.inject(at, Fault::Fail(kind));
    }

    /// Whether every fault has struck.
    pub(super) fn has_failed(&self) -> bool {
        self.faults.all_struck()
    }

    /// A handle; the lab keeps one as well.
    pub(super) fn writer(&self) -> Wal {
        self.handle.lock().expect("no panic").clone().expect("the log is open")
    }

    /// A handle; as [`writer`](Self::writer).
    pub(super) fn take_handle(&self) -> Wal {
        self.writer()
    }

    /// Unless the handle that others are made of has gone.
    pub(super) fn try_handle(&self) -> Option<Wal> {
        self.handle.lock().expect("no panic").clone()
    }

    pub(super) fn close(&self) -> PersistenceResult<()> {
        let handle = self.handle.lock().expect("no panic").take();
        handle.expect("the log is open").close()
    }

    /// What a power cut leaves now, in the worst case and in the best one, has everything up to `entry_id`.
    pub(super) fn assert_durable(&self, entry_id: u64) {
        let mut acknowledged = self.acknowledged.lock().expect("no panic");
        *acknowledged = entry_id.max(*acknowledged);
        drop(acknowledged);
        let options = SimOptions {
            images_per_point: 2,
            from_operation: self.disk.operations(),
            ..SimOptions::default()
        };
        let checked = check_crashes(&self.disk, &options, |image, _| match count(image) {
            entries if entries < entry_id => Err(format!("{entries} of {entry_id} entries are left")),
            _ => Ok(()),
        });
        checked.expect("an acknowledged entry is durable");
    }

    /// What a killed process leaves has everything up to `entry_id`.
    pub(super) fn assert_flushed(&self, entry_id: u64) {
        assert!(count(&self.disk.after_kill()) >= entry_id, "entry {entry_id} was flushed");
    }

    pub(super) fn assert_nothing_acknowledged_is_lost(&self) {
        let acknowledged = *self.acknowledged.lock().expect("no panic");
        self.assert_durable(acknowledged);
    }

    /// The error is that of a poisoned log, and its watermark is true.
    pub(super) fn assert_poisoned(&self, error: &PersistenceError) {
        match error {
            PersistenceError::Poisoned { durable_entry_id, .. } => self.assert_durable(*durable_entry_id),
            other => panic!("{other}"),
        }
        let writer = self.writer();
        assert!(writer.append_bytes(b"too late").is_err(), "a poisoned log accepts nothing");
    }

    /// Closes the log; the number of entries in it.
    pub(super) fn close_and_count(&self) -> u64 {
        self.close().expect("nothing fails");
        self.strict_count()
    }

    /// Drops the last handle; the number of entries in the log.
    pub(super) fn drop_and_count(&self) -> u64 {
        let handle = self.handle.lock().expect("no panic").take();
        drop(handle);
        self.strict_count()
    }

    /// Drops the last handle of a log that perhaps could not be sealed.
    pub(super) fn leave(&self) {
        let handle = self.handle.lock().expect("no panic").take();
        drop(handle);
        self.assert_nothing_acknowledged_is_lost();
    }

    /// The handle that others are made of goes.
    pub(super) fn let_go(&self) {
        let handle = self.handle.lock().expect("no panic").take();
        drop(handle);
    }

    /// Nobody holds the log: a successor opens it at once.
    pub(super) fn assert_free(&self) {
        let opened = WalWriter::<(), _>::open_with(Arc::new(self.disk.clone()), WalOptions::default());
        opened.map(drop).expect("a log that was left can be opened");
    }

    /// Every full segment has its seal, and what was made and not used is gone.
    pub(super) fn assert_sealed(&self) {
        let inspected = inspect_log(&Arc::new(self.disk.after_kill()), WalCheck::scan_all).expect("is read");
        for file in inspected.files {
            let seal = file.contents.and_then(|contents| contents.seal);
            assert!(
                file.role == Role::Segment && seal.is_some(),
                "{} has no seal: {:?}",
                file.path,
                file.role
            );
        }
    }

    fn strict_count(&self) -> u64 {
        self.assert_nothing_acknowledged_is_lost();
        let reader = WalReader::<(), SimDisk>::new(Arc::new(self.disk.after_kill()));
        match reader.replay_bytes(WalReplayMode::Strict) {
            Ok(records) => records.len() as u64,
            Err(error) if error.is_not_found() => 0,
            Err(error) => panic!("a closed log ends cleanly: {error}"),
        }
    }
}

fn count(disk: &SimDisk) -> u64 {
    let reader = WalReader::<(), SimDisk>::new(Arc::new(disk.clone()));
    match reader.replay_bytes(WalReplayMode::BestEffortTail) {
        Ok(records) => records.len() as u64,
        Err(error) if error.is_not_found() => 0,
        Err(error) => panic!("a legal image is refused: {error}"),
    }
}
