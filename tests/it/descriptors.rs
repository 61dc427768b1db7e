//! Rings and files that cannot be had because there are no descriptors left, at every step of opening, committing
//! and rotating: an error each time, nothing acknowledged is lost, and with descriptors the log goes on.
#![cfg(target_os = "linux")]

use crate::support::skip;
use durability::backends::Backend;
use durability::walog::{PrepareAhead, SyncWalWriter, WalOptions, WalReader, WalReplayMode};
use durability::{DurableDirectory, PersistenceError, PersistenceResult};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::process::Command;
use std::sync::Arc;

const STARVES: &str = "DURABILITY_STARVING_BACKEND";

type Dir = dyn DurableDirectory;
type Wal = SyncWalWriter<(), Dir>;

/// Takes all descriptors but `count`, until it is dropped.
struct Starved {
    _taken: Vec<std::fs::File>,
}

impl Starved {
    fn leaving(count: usize) -> Self {
        let mut taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        assert!(taken.len() > count, "there are as many");
        taken.truncate(taken.len() - count);
        Self { _taken: taken }
    }
}

/// In a process of its own: the limit is the process's.
#[test]
fn process_without_descriptors() {
    let Some(backend) = std::env::var_os(STARVES) else { return };
    let backend = if backend == "std" { Backend::Std } else { Backend::Auto };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("is told");
    setrlimit(Resource::RLIMIT_NOFILE, 100, hard).expect("may be lowered");
    // One segment for each commit.
    // One after the other, or whoever makes segments ahead of need takes descriptors at any time.
    let prepare_ahead = PrepareAhead::Never;
    let options =
        WalOptions { prepare_ahead, segment_bytes_max: 1, preallocate_bytes: 0, ..WalOptions::default() };
    let (mut refused, mut poisoned, mut unopened, mut whole) = (0, 0, 0, 0);
    for (count, commits_before) in (0..12).flat_map(|count| [(count, 0), (count, 1)]) {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut acknowledged = 0;
        let mut commit = |wal: &Wal| -> PersistenceResult<()> {
            let entry_id = wal.append_bytes_durable(&[3; 700])?;
            assert_eq!(entry_id, wal.last_entry_id());
            acknowledged = entry_id;
            Ok(())
        };
        // Descriptors run out before the log is opened, or when it has made one commit.
        let opens = || -> PersistenceResult<Wal> {
            Wal::configure(backend.open(root.path())?.directory, options.clone())
        };
        let opened = (commits_before > 0).then(|| opens().expect("opens"));
        opened.iter().for_each(|wal| commit(wal).expect("commits"));
        let starved = Starved::leaving(count);
        let opened = opened.map_or_else(opens, Ok);
        let committed = opened.as_ref().ok().map(|wal| {
            let commits = (0..3).try_for_each(|_| commit(wal));
            commits.and_then(|()| wal.submit_bytes(b"a ticket")?.wait().map(drop))
        });
        drop(starved);
        match (opened, committed) {
            (Ok(wal), Some(Ok(()))) => {
                whole += 1;
                wal.close().expect("closes");
            }
            (Ok(wal), Some(Err(error))) => match wal.append_bytes_durable(b"with descriptors") {
                Ok(entry_id) => {
                    refused += 1;
                    assert_eq!(entry_id, wal.last_entry_id(), "{error}");
                    wal.close().expect("goes on with what was appended");
                }
                Err(PersistenceError::Poisoned { .. }) => poisoned += 1,
                Err(other) => panic!("{count}: first {error}, then {other}"),
            },
            _ => unopened += 1,
        }
        let reopened = opens().unwrap_or_else(|error| panic!("{count} descriptors: {error}"));
        assert!(reopened.last_entry_id() >= acknowledged, "{count} descriptors: {acknowledged} is lost");
        reopened.append_bytes_durable(b"goes on").expect("commits");
        let directory: Arc<Dir> = Arc::clone(reopened.directory());
        reopened.close().expect("closes");
        let read = WalReader::<(), Dir>::new(directory).replay_bytes(WalReplayMode::Strict).expect("reads");
        assert!(read.len() as u64 > acknowledged);
    }
    println!("{backend}: {unopened} not opened, {refused} refused, {poisoned} poisoned, {whole} whole");
    assert!(unopened > 0 && refused > 0 && whole > 0, "they did not run out where they should");
}

#[test]
fn without_descriptors_nothing_acknowledged_is_lost_and_with_them_the_log_goes_on() {
    if std::fs::read_dir("/proc/self/fd").is_err() {
        return skip("/proc is not mounted");
    }
    for backend in ["std", "auto"] {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["descriptors::process_without_descriptors", "--exact", "--nocapture", "--test-threads=1"])
            .env(STARVES, backend)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{backend}: {said}");
    }
}
