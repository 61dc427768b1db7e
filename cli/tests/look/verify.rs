//! `verify`: one verdict from every way to look at a damaged log, and of the checkpoints beside one.

use crate::support::{
    Wal, append, change, code, copy, copy_file, directory, folder, header, json, killed, open, options,
    payload, publish, scratch, segment, segments, text, tree,
};
use durability::FsDirectory;
use durability::checkpoint::CheckpointFile;
use durability::formats::header::Header;
use durability::inspect::Verdict;
use durability::storage::SeededEnvironment;
use durability::walog::{WalMaintenance, WalOptions, WalReader, WalReplayMode};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// What is done to the log of [`killed`], the exit code of `verify`, and whether opening, which does not read what
/// later segments attest, refuses it too.
type Row = (&'static str, fn(&Path), i32, bool);

const ROWS: &[Row] = &[
    ("nothing", |_| {}, 0, false),
    ("closed", |root| open(root).and_then(Wal::close).expect("closes"), 0, false),
    ("the last commit cut", |root| change(segment(root, 5), |bytes| bytes.truncate(2800)), 3, false),
    (
        "the last commit lost a sector",
        |root| change(segment(root, 5), |bytes| bytes[2560..3072].fill(0)),
        3,
        false,
    ),
    ("an unacknowledged commit before the last lost", later_commits, 3, false),
    ("a tail of a recycled file", undecidable, 3, false),
    ("a flipped bit in the last commit", |root| change(segment(root, 5), |bytes| bytes[2700] ^= 8), 4, true),
    (
        "a flipped bit in the first segment",
        |root| change(segment(root, 1), |bytes| bytes[1200] ^= 8),
        4,
        false,
    ),
    (
        "a sector of the third segment lost",
        |root| change(segment(root, 3), |bytes| bytes[1024..1536].fill(0)),
        4,
        false,
    ),
    ("a middle segment missing", |root| fs::remove_file(segment(root, 3)).expect("removes"), 4, false),
    ("the newest missing", |root| fs::remove_file(segment(root, 5)).expect("removes"), 4, true),
    ("one copied", |root| copy_file(&segment(root, 2), &segment(root, 9)), 4, true),
    ("one of another log", stranger, 4, true),
    ("two swapped", swapped, 4, true),
    ("a damaged header", |root| change(segment(root, 5), |bytes| bytes[30] ^= 1), 4, true),
    ("garbage in the place of one", |root| change(segment(root, 2), |bytes| bytes.fill(0x55)), 4, true),
    ("one emptied", |root| change(segment(root, 4), Vec::clear), 4, false),
    (
        "a name that no release writes",
        |root| copy_file(&segment(root, 2), &root.join("wal/wal_02.log")),
        4,
        true,
    ),
];

/// Two commits that were in flight; of the first a page did not arrive.
fn later_commits(root: &Path) {
    let other = root.join("again");
    copy(&root.join("wal"), &other.join("wal"));
    let mut wal = open(&other).expect("opens");
    wal.set_segment_size_limit_bytes(1 << 20);
    append(&mut wal, 1);
    for _ in 0..2 {
        wal.append_bytes(&payload(1)).expect("appends");
        wal.flush().expect("flushes");
    }
    let id = wal.current_segment_id();
    fs::copy(segment(&other, id), segment(root, id)).expect("copies");
    drop(wal);
    fs::remove_dir_all(other).expect("removes");
    change(segment(root, id), |bytes| bytes[2048 + 512..2048 + 1024].fill(0));
}

/// What cannot be told apart: no release writes this header.
fn undecidable(root: &Path) {
    change(segment(root, 5), |bytes| {
        let changed = Header { previous_salt: 1, ..header(bytes) };
        bytes[..512].copy_from_slice(&changed.encode());
        bytes[2700] ^= 8;
    });
}

fn stranger(root: &Path) {
    change(segment(root, 2), |bytes| {
        let header = header(bytes);
        let other = Header { identity: header.identity ^ 1, file_id: 6, ..header }.encode();
        let mut copy = bytes.clone();
        copy[..512].copy_from_slice(&other);
        fs::write(segment(root, 6), copy).expect("writes");
    });
}

fn swapped(root: &Path) {
    let (two, three) =
        (fs::read(segment(root, 2)).expect("reads"), fs::read(segment(root, 3)).expect("reads"));
    fs::write(segment(root, 2), three).expect("writes");
    fs::write(segment(root, 3), two).expect("writes");
}

fn replayed(root: &Path, mode: WalReplayMode) -> (Verdict, Option<u64>) {
    let reader = WalReader::<(), FsDirectory>::new(directory(root));
    let summary = reader.replay_bytes_from(1, mode, |_, _| Ok(()));
    let last = summary.as_ref().ok().map(|summary| summary.end.last_entry_id);
    (Verdict::of(summary.map(|summary| summary.end.torn)).expect("a verdict"), last)
}

#[test]
fn verify_replay_in_both_modes_and_opening_say_the_same() {
    let scratch = scratch();
    let good = killed(scratch.path());
    let mut codes = BTreeSet::new();
    for (index, (what, damage, expected, refused)) in ROWS.iter().enumerate() {
        let root = copy(&good, &scratch.path().join(index.to_string()));
        damage(&root);
        let before = tree(&root);
        let told = json(&["verify", "--threads", "3"], &root);
        codes.insert(*expected);
        assert_eq!(told["exit_code"], *expected, "{what}: {told}");
        // Replay.
        let (strict, _) = replayed(&root, WalReplayMode::Strict);
        let (best_effort, last) = replayed(&root, WalReplayMode::BestEffortTail);
        assert_eq!(told["text"], strict.to_string(), "{what}: strict replay");
        assert_eq!(told["text"], best_effort.to_string(), "{what}: best-effort replay");
        assert_eq!(told["verdict"], strict.name(), "{what}");
        assert_eq!(told["last_entry_id"].as_u64(), last, "{what}");
        // Other ways to look.
        for other in [&["verify", "--threads", "1"][..], &["inspect"], &["repair"]] {
            let also = json(other, &root);
            assert_eq!((&also["text"], &also["exit_code"]), (&told["text"], &told["exit_code"]), "{what}");
        }
        assert_eq!(code(&["dump"], &root), *expected, "{what}");
        assert_eq!(code(&["verify"], &root.join("wal")), *expected, "{what}: the folder itself");
        assert_eq!(tree(&root), before, "{what}: looking changes nothing");
        // Opening.
        match open(&root) {
            Ok(wal) => {
                assert!(!refused, "{what}: opened, with {told}");
                assert!(last.is_none_or(|last| last == wal.last_entry_id()), "{what}");
            }
            Err(error) => {
                assert!(*refused, "{what}: {error}");
                let opened = Verdict::of(Err(error)).expect("a verdict");
                assert_eq!(told["verdict"], opened.name(), "{what}: {opened}");
            }
        }
    }
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), [0, 3, 4]);
}

/// A log in which a checkpoint is published at each of the names, three entries behind the one before; closed.
fn published(root: &Path, names: &[&str]) {
    let mut wal = open(root).expect("opens");
    for name in names {
        append(&mut wal, 3);
        let last = wal.last_entry_id();
        publish(&mut wal, root, last, name);
    }
    wal.close().expect("closes");
}

#[test]
fn checkpoints_beside_a_log_are_verified_and_held_against_it() {
    let scratch = scratch();
    let root = folder(scratch.path(), "log");
    published(&root, &["state", "state"]);
    // What is no checkpoint is none of it, whatever it is; nor is one of no log.
    fs::write(root.join("notes.txt"), "notes").expect("writes");
    fs::write(root.join(".tmp-1-1-state"), &fs::read(root.join("state")).expect("reads")[..600])
        .expect("writes");
    folder(&root, "folder");
    let alone = CheckpointFile::new(directory(&root));
    alone.write_bytes("alone", 1_000_000, b"of no log").expect("writes");
    let sound = copy(&root, &scratch.path().join("sound"));
    let told = json(&["verify"], &root);
    assert_eq!((&told["verdict"], &told["exit_code"]), (&Value::from("clean"), &Value::from(0)), "{told}");
    let found = |told: &Value| -> Vec<(String, String, u64, bool)> {
        let each = told["checkpoints"].as_array().expect("checkpoints").iter().map(|each| {
            let text = |key: &str| each[key].as_str().expect(key).to_owned();
            let last = each["last_applied_entry_id"].as_u64().expect("an id");
            (text("path"), text("verdict"), last, each["usable"].as_bool().expect("a word"))
        });
        each.collect()
    };
    let of = |path: &str, verdict: &str, last: u64, usable: bool| (path.into(), verdict.into(), last, usable);
    let all = [
        of("alone", "clean", 1_000_000, true),
        of("state", "clean", 7, true),
        of("state.1", "clean", 3, true),
    ];
    assert_eq!(found(&told), all);
    assert_eq!(found(&json(&["inspect"], &root)), all);
    let table = text(&["inspect"], &root);
    assert!(table.contains("checkpoint state.1: entries through 3, the log must reach 3"), "{table}");

    // Any of them damaged: corruption, whichever it is; the log is still told of.
    for (name, at) in [("state", 700), ("state.1", 700), ("state", 40), ("alone", 600)] {
        let root = copy(&sound, &scratch.path().join(format!("{name}-{at}")));
        change(root.join(name), |bytes| bytes[at] ^= 1);
        for command in ["verify", "inspect"] {
            let told = json(&[command], &root);
            assert_eq!(
                (&told["verdict"], &told["exit_code"]),
                (&Value::from("corrupt"), &Value::from(4)),
                "{told}"
            );
            assert_eq!(
                (told["finding"]["path"].as_str(), told["last_entry_id"].as_u64()),
                (Some(name), Some(8))
            );
            let usable: Vec<_> = found(&told).into_iter().filter(|each| each.3).map(|each| each.0).collect();
            assert!(usable.len() == 2 && !usable.contains(&name.to_owned()), "{usable:?}");
        }
        assert_eq!(code(&["verify"], &root), 4);
    }
    // Its header is gone: by its name it is one all the same.
    let root = copy(&sound, &scratch.path().join("zeroed"));
    change(root.join("state"), |bytes| bytes[..512].fill(0));
    let told = json(&["verify"], &root);
    assert_eq!((told["verdict"].as_str(), told["exit_code"].as_u64()), (Some("foreign"), Some(4)), "{told}");
    // A missing one is not missed.
    let root = copy(&sound, &scratch.path().join("missing"));
    ["state", "state.1"].iter().for_each(|name| fs::remove_file(root.join(name)).expect("removes"));
    assert_eq!(json(&["verify"], &root)["exit_code"], 0);
    // Of another log.
    let other = folder(scratch.path(), "other");
    let options = WalOptions { environment: Arc::new(SeededEnvironment::new(6)), ..options() };
    let mut wal = Wal::open_with(directory(&other), options).expect("opens");
    append(&mut wal, 20);
    drop(wal);
    copy_file(&sound.join("state"), &other.join("state"));
    let told = json(&["verify"], &other);
    assert_eq!(
        (told["exit_code"].as_u64(), told["finding"]["path"].as_str()),
        (Some(4), Some("state")),
        "{told}"
    );
    assert!(told["text"].as_str().is_some_and(|text| text.contains("belongs to log")), "{told}");
    let identities = &told["finding"]["check"]["Identity"];
    assert_eq!(identities["found"], told["checkpoints"][0]["identity"], "text, as all identities: {told}");
    // The log lost what one requires: what recovery with it says.
    let root = copy(&sound, &scratch.path().join("shorter"));
    let all = segments(&root);
    assert!(all.len() > 1, "{all:?}");
    all.iter().rev().take(2).for_each(|path| fs::remove_file(path).expect("removes"));
    for command in ["verify", "inspect"] {
        assert_eq!(code(&[command], &root), 4, "{command}");
    }
    // The log begins behind it.
    let root = copy(&sound, &scratch.path().join("behind"));
    let mut wal = open(&root).expect("opens");
    append(&mut wal, 20);
    WalMaintenance::new(directory(&root)).truncate_prefix(20).expect("truncates");
    wal.close().expect("closes");
    let told = json(&["verify"], &root);
    assert_eq!(told["exit_code"], 0);
    assert_eq!(found(&told)[1..], [of("state", "clean", 7, false), of("state.1", "clean", 3, false)]);
}

/// A log that ends cleanly before what a checkpoint requires: only the checkpoint tells.
#[test]
fn a_log_that_lost_its_newest_segment_is_found_out_by_its_checkpoint() {
    let scratch = scratch();
    let root = folder(scratch.path(), "log");
    published(&root, &["state"]);
    let first = copy(&root, &scratch.path().join("first"));
    published(&root, &["state"]);
    copy_file(&root.join("state"), &first.join("state"));
    let told = json(&["verify"], &first);
    assert_eq!((told["verdict"].as_str(), told["exit_code"].as_u64()), (Some("corrupt"), Some(4)), "{told}");
    assert!(told["text"].as_str().is_some_and(|text| text.contains("state")), "{told}");
    fs::remove_file(first.join("state")).expect("removes");
    fs::remove_file(first.join("state.1")).unwrap_or(());
    assert_eq!(json(&["verify"], &first)["verdict"], "clean");
}
