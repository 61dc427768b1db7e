//! Who uses the log, in every way at once. A run follows from its seed.
//!
//! Everything that was promised is marked on the disk: what is durable, what opening returned, what a follower
//! was shown. Not here: what must hold of the disk afterwards.

use super::wal::{Own, Shared, Wal};
use crate::damage::contents;
use crate::power_cut::{Random, payload};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::testing::sim::SimDisk;
use durability::walog::{
    PrepareAhead, PrepareHand, WalFollower, WalMaintenance, WalOptions, WalReader, WalReplayMode,
};
use durability::{Directory, PersistenceError, PersistenceResult};
use std::sync::Arc;

/// What a run keeps from its beginning to its end.
struct Setting {
    hand: PrepareHand,
    prepares: bool,
    direct: bool,
    /// Space that is asked for is kept, and there is an end to it now and then.
    fills: bool,
    /// A write or a sync fails now and then.
    fails: bool,
    frame_alignment: u32,
    /// Where salts come from: never the same twice in a run, the same in every run of a seed.
    environment: Arc<SeededEnvironment>,
}

impl Setting {
    fn new(seed: u64, random: &mut Random) -> Self {
        Self {
            hand: PrepareHand::new(),
            prepares: random.below(2) == 0,
            direct: random.below(2) == 0,
            fills: random.below(2) == 0,
            fails: random.below(3) == 0,
            frame_alignment: if random.below(4) == 0 { 4096 } else { 512 },
            environment: Arc::new(SeededEnvironment::new(seed)),
        }
    }

    /// The knobs of a disk, which a kill turns back.
    fn arrange(&self, disk: &SimDisk, random: &mut Random) {
        if self.direct {
            disk.write_directly();
        }
        if self.fills {
            disk.keep_reserved();
        }
        disk.keep_in_flight(1 + random.below(9) as usize);
    }

    fn open(&self, disk: &SimDisk, random: &mut Random) -> PersistenceResult<Wal> {
        let options = WalOptions {
            segment_bytes_max: [20_000, 280 << 10, 400 << 10, 700 << 10][random.below(4) as usize],
            preallocate_bytes: [if self.fills { 30_000 } else { 0 }, 4096, 100_000][random.below(3) as usize],
            recycle_capacity: random.below(3) as usize,
            flush_policy: [
                FlushPolicy::Manual,
                FlushPolicy::EveryN(50),
                FlushPolicy::EveryN(3),
                FlushPolicy::PerAppend,
            ][random.below(4) as usize],
            prepare_ahead: if self.prepares {
                PrepareAhead::ByHand(self.hand.clone())
            } else {
                PrepareAhead::Never
            },
            prepared_segments_min: 1 + random.below(2) as usize,
            frame_alignment: self.frame_alignment,
            environment: self.environment.clone(),
            ..WalOptions::default()
        };
        let mut own = Own::open_with(Arc::new(disk.clone()), options)?;
        if self.prepares {
            own.prepare_ahead()?;
        }
        if random.below(2) == 0 { Ok(Wal::Own(own)) } else { Shared::from_writer(own).map(Wal::Shared) }
    }
}

/// What may go wrong, and what has.
#[derive(Default)]
struct Trouble {
    /// The disk may be full.
    is_full: bool,
    /// A write or a sync is to fail.
    is_armed: bool,
    /// The log said so: it is poisoned.
    has_failed: bool,
    /// The file that it named.
    failed_file: Option<String>,
}

impl Trouble {
    /// An error must be one that was prepared for.
    fn bear<T>(&mut self, what: &str, result: PersistenceResult<T>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(error) if error.is_out_of_space() && (self.is_full || self.is_armed) => {}
            // Zeros that failed behind what was written: this call only.
            Err(PersistenceError::Io { operation: "zero-fill", .. }) if self.is_armed => {}
            Err(error) if self.is_armed => {
                self.has_failed = true;
                if let PersistenceError::Io { operation: "write", path, .. } = error {
                    self.failed_file = Some(path);
                }
            }
            Err(error) => panic!("{what}: {error:?}"),
        }
        None
    }
}

pub(super) struct User {
    setting: Setting,
    random: Random,
    disk: SimDisk,
    /// `None` only while it is closed.
    wal: Option<Wal>,
    follower: WalFollower<SimDisk>,
    trouble: Trouble,
    truncated: u64,
    /// By the follower.
    shown: u64,
    rotations: u64,
}

/// What a run left.
pub(super) struct Left {
    pub disk: SimDisk,
    pub rotations: u64,
    pub shown: u64,
}

/// Uses a new log for so many steps, and closes it, or dies.
pub(super) fn run(seed: u64, steps: u64) -> Left {
    let mut user = User::new(seed);
    for _ in 0..steps {
        user.step();
    }
    let rotations = user.rotations + user.wal().rotations();
    user.end();
    Left { disk: user.disk.after_kill(), rotations, shown: user.shown }
}

fn follow(disk: &SimDisk, shown: u64) -> WalFollower<SimDisk> {
    WalFollower::new(Arc::new(disk.clone()), Some(shown + 1)).expect("follows")
}

/// It was removed again, or has no header yet: nothing of the log is in it.
fn is_in_the_making(disk: &SimDisk, path: &str) -> bool {
    let names = disk.list_dir("wal").expect("lists");
    let exists = names.iter().any(|name| path.strip_prefix("wal/") == Some(name));
    !exists || contents(disk, path).iter().take(512).all(|byte| *byte == 0)
}

impl User {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let (setting, disk) = (Setting::new(seed, &mut random), SimDisk::new(seed));
        setting.arrange(&disk, &mut random);
        let wal = Some(setting.open(&disk, &mut random).expect("opens"));
        let follower = follow(&disk, 0);
        let trouble = Trouble::default();
        Self { setting, random, disk, wal, follower, trouble, truncated: 0, shown: 0, rotations: 0 }
    }

    fn wal(&self) -> &Wal {
        self.wal.as_ref().expect("it is open")
    }

    fn step(&mut self) {
        if self.setting.fails && !self.trouble.is_armed && self.random.below(5) == 0 {
            self.trouble.is_armed = true;
            match self.random.below(2) {
                0 => self.disk.fail_sync_after(self.random.below(8)),
                _ => self.disk.fail_write_after(self.random.below(16)),
            }
        }
        let failed_file = self.trouble.failed_file.take();
        if failed_file.is_some_and(|path| is_in_the_making(&self.disk, &path)) {
            // As with any segment that cannot be made: this call only.
            self.trouble.has_failed = false;
        }
        if self.trouble.has_failed {
            self.start_again_after_failure();
        }
        if self.setting.prepares {
            for _ in 0..[0, 1, 3, 20][self.random.below(4) as usize] {
                self.setting.hand.step();
            }
        }
        match self.random.below(16) {
            choice @ 0..=10 => self.write(choice),
            11 => self.truncate(),
            12 if self.setting.fills => {
                let full = !self.trouble.is_full;
                self.trouble.is_full = full;
                let bytes = self.disk.used_bytes() + self.random.below(300_000);
                self.disk.limit_capacity(full.then_some(bytes));
            }
            // Handing over may write.
            13 if !self.trouble.is_full && !self.trouble.is_armed => {
                self.wal = self.wal.take().map(|wal| wal.hand_over().expect("is handed over"));
            }
            14 if self.random.below(2) == 0 => {
                let attested = self.wal.as_mut().expect("it is open").attest();
                self.trouble.bear("attest", attested);
            }
            15 if self.random.below(3) == 0 => self.start_again(),
            _ => {}
        }
        self.disk.mark(self.wal().durable_entry_id());
        self.look();
    }

    fn write(&mut self, choice: u64) {
        let Self { wal: Some(wal), trouble, random, .. } = self else { panic!("it is closed") };
        let next = wal.next_entry_id();
        match choice {
            0..=6 => {
                let entries = [1, 20, 200, 400][random.below(4) as usize];
                let batch: Vec<_> = (next..next + entries).map(payload).collect();
                trouble.bear("append a batch", wal.append_batch(&batch));
            }
            7 => {
                for entry_id in next..next + 60 {
                    if trouble.bear("append", wal.append(&payload(entry_id))).is_none() {
                        break;
                    }
                }
            }
            8 => drop(trouble.bear("append durably", wal.append_durable(&payload(next)))),
            9 => drop(trouble.bear("flush", wal.flush())),
            _ => drop(trouble.bear("sync", wal.sync())),
        }
    }

    /// No more than the follower was shown.
    fn truncate(&mut self) {
        let durable = self.wal().durable_entry_id();
        let upto = self.truncated + self.random.below(durable.saturating_sub(self.truncated) + 1);
        if self.shown >= upto {
            let maintenance = WalMaintenance::new(Arc::new(self.disk.clone()));
            maintenance.truncate_to_recycle(upto, 2).expect("truncates");
            self.truncated = upto;
        }
    }

    /// Closed, dropped or killed, and opened.
    fn start_again(&mut self) {
        self.free_space();
        self.rotations += self.wal().rotations();
        let wal = self.wal.take().expect("it is open");
        match self.random.below(3) {
            0 => drop(wal),
            1 => drop(self.trouble.bear("close", wal.close())),
            _ => {
                let killed = self.disk.after_kill();
                drop(wal);
                self.disk = killed;
            }
        }
        if self.trouble.is_armed {
            self.disk = self.disk.after_kill();
            self.trouble = Trouble::default();
        }
        // A disk of before has a follower of its own; one that looks again may show no more than was durable.
        self.follower = follow(&self.disk, self.shown);
        self.setting.arrange(&self.disk, &mut self.random);
        self.opened(None);
    }

    /// A poisoned log does nothing more; opening it may fail as well.
    fn start_again_after_failure(&mut self) {
        self.free_space();
        self.rotations += self.wal().rotations();
        let mut wal = self.wal.take().expect("it is open");
        assert!(wal.append(b"").is_err(), "a success after a failure");
        self.disk.mark(wal.durable_entry_id());
        drop(wal);
        self.disk = self.disk.after_kill();
        self.setting.arrange(&self.disk, &mut self.random);
        self.trouble = Trouble { is_armed: self.random.below(2) == 0, ..Trouble::default() };
        if self.trouble.is_armed {
            self.disk.fail_sync_after(self.random.below(4));
        }
        let opened = self.setting.open(&self.disk, &mut self.random);
        if let Err(error) = &opened {
            assert!(self.trouble.is_armed && !error.is_corruption(), "{error}");
            self.disk = self.disk.after_kill();
            self.setting.arrange(&self.disk, &mut self.random);
            self.trouble = Trouble::default();
        }
        self.follower = follow(&self.disk, self.shown);
        self.opened(opened.ok());
    }

    /// Killed, closed, or closed after it was idle.
    fn end(&mut self) {
        let choice = self.random.below(4);
        if choice > 1 {
            self.disk = self.disk.after_kill();
            return;
        }
        self.free_space();
        let mut wal = self.wal.take().expect("it is open");
        if choice == 1 {
            self.trouble.bear("attest", wal.attest());
        }
        let last = wal.next_entry_id() - 1;
        if self.trouble.bear("close", wal.close()).is_some() {
            self.disk.mark(last);
        }
    }

    fn free_space(&mut self) {
        self.disk.limit_capacity(None);
        self.trouble.is_full = false;
    }

    fn opened(&mut self, wal: Option<Wal>) {
        let wal = wal.unwrap_or_else(|| self.setting.open(&self.disk, &mut self.random).expect("opens"));
        // What opening returned stays.
        self.disk.mark(wal.next_entry_id() - 1);
        self.wal = Some(wal);
    }

    /// A follower, a reader beside the log, and one of the log's own.
    fn look(&mut self) {
        if self.random.below(2) == 0 {
            let shown = &mut self.shown;
            let polled = self.follower.poll(|entry_id, bytes| {
                assert_eq!(entry_id, *shown + 1);
                assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
                *shown = entry_id;
                Ok(())
            });
            polled.unwrap_or_else(|error| panic!("following: {error}"));
            self.disk.mark(self.shown);
        }
        if self.random.below(6) == 0 {
            let reader = WalReader::<(), SimDisk>::new(Arc::new(self.disk.clone()));
            reader.entry_range(WalReplayMode::BestEffortTail).expect("reads beside");
        }
        if self.random.below(4) == 0 {
            self.read_live();
        }
    }

    fn read_live(&mut self) {
        let Self { wal: Some(Wal::Shared(wal)), trouble, random, truncated, .. } = self else { return };
        let last = wal.last_entry_id();
        if last <= *truncated {
            return;
        }
        let from = *truncated + 1 + random.below(last - *truncated);
        let read = wal.reader().replay_bytes(from..=last.min(from + 50), |entry_id, bytes| {
            assert!(bytes == payload(entry_id), "entry {entry_id} is not what was appended");
            Ok(())
        });
        match read {
            Err(_) if trouble.is_armed => {
                // Whoever reads may be the one who collects a commit; whether it ended the log shows now.
                trouble.has_failed |= wal.append_bytes(&payload(last + 1)).is_err();
            }
            read => drop(trouble.bear("read live", read)),
        }
    }
}
