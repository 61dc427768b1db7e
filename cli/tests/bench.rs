//! `durability bench` as its users run it.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests, not the library"
)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn bench(directory: &Path, arguments: &[&str]) -> Output {
    tool("bench", directory, arguments)
}

fn tool(name: &str, directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_durability"));
    command.arg(name).arg(directory).args(arguments).output().expect("runs")
}

fn object(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one object")
}

fn rows(report: &Value) -> &[Value] {
    report["rows"].as_array().expect("rows")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).expect("reads").next().is_none()
}

#[test]
fn a_quick_run_is_one_object_with_every_field() {
    let root = folder();
    let output = bench(
        root.path(),
        &["--quick", "--json", "--seconds", "0.005", "--rounds", "2", "--committers", "1,3"],
    );
    let report = object(&output);
    assert_eq!((&report["rounds"], &report["seconds"]), (&2.into(), &0.005.into()));
    let disk = &report["disk"];
    assert!(
        ["slow-flush", "fast-flush", "memory"].contains(&disk["kind"].as_str().expect("a kind")),
        "{disk}"
    );
    assert!(disk["flush_us"].as_f64() > Some(0.0) && disk["auto"].is_string(), "{disk}");
    for row in rows(&report) {
        for name in ["name", "strategy"] {
            assert!(row[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {row}");
        }
        for count in
            ["committers", "entry_bytes", "commits_per_s", "p50_us", "p99_us", "p999_us", "ratio_to_raw"]
        {
            assert!(row[count].as_f64() > Some(0.0), "{count}: {row}");
        }
        assert!(row["p50_us"].as_f64() <= row["p99_us"].as_f64(), "{row}");
        assert!(row["p99_us"].as_f64() <= row["p999_us"].as_f64(), "{row}");
        for used in ["cpu_us_per_commit", "switches_per_commit"] {
            assert!(!cfg!(unix) || row[used].as_f64() >= Some(0.0), "{used}: {row}");
        }
        let of_all = &row["machine_cpu_us_per_commit"];
        assert!(of_all.as_f64() >= Some(0.0) || !cfg!(target_os = "linux"), "{row}");
        assert!(row["disk_bytes_per_entry"].as_f64() >= row["entry_bytes"].as_f64(), "{row}");
        // One commit in flight, and nothing else, is compared to the best loop of that kind.
        let alone = row["committers"] == 1 && row["name"] != "ring depth 16";
        assert_eq!(row["ratio_to_best_raw"].is_f64(), alone, "{row}");
        // What the library chooses is compared to what it could have chosen.
        assert_eq!(row["ratio_to_best_fixed"].is_f64(), row["strategy"] == "auto", "{row}");
    }
    let of_kind = |kind: &str| rows(&report).iter().filter(|row| row["kind"] == kind).collect::<Vec<_>>();
    let baseline = of_kind("raw").into_iter().find(|row| row["name"] == "zero-filled").expect("the baseline");
    assert_eq!((&baseline["ratio_to_raw"], &baseline["waiting"]), (&1.0.into(), &"none".into()));
    assert_eq!(of_kind("reference").len(), 4);
    for waiting in ["none", "threads", "futures"] {
        let ours = of_kind("ours");
        let has =
            |strategy: &str| ours.iter().any(|row| row["strategy"] == strategy && row["waiting"] == waiting);
        assert!(has("std") && has("auto"), "{ours:?}");
    }
    // What is not measured is named.
    let measured = rows(&report).iter().map(|row| (row["name"].clone(), row["strategy"].clone()));
    let skipped = report["skipped"].as_array().expect("an array");
    let lines: std::collections::HashSet<_> = measured
        .chain(skipped.iter().map(|skipped| (skipped["name"].clone(), skipped["strategy"].clone())))
        .collect();
    assert_eq!(lines.len(), 6 + 2 + 8, "{lines:?}");
    for skipped in skipped {
        let name = skipped["name"].as_str().expect("a name");
        assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("SKIP: {name}")), "{output:?}");
    }
    assert!(is_empty(root.path()), "something was left behind");
}

#[test]
fn filters_leave_the_raw_loops_and_what_was_asked_for() {
    let root = folder();
    let arguments = ["--json", "--seconds", "0", "--rounds", "1", "--committers", "2,2"];
    let report =
        object(&bench(root.path(), &[&arguments[..], &["--bytes", "1,512", "--strategy", "std"]].concat()));
    let sizes: Vec<_> = rows(&report).iter().filter_map(|row| row["entry_bytes"].as_u64()).collect();
    assert!(sizes.contains(&1) && sizes.contains(&512) && sizes.iter().all(|size| [1, 512].contains(size)));
    let ours: Vec<_> = rows(&report).iter().filter(|row| row["kind"] == "ours").collect();
    assert_eq!(ours.len(), 4, "two sizes, as threads and as futures");
    assert!(ours.iter().all(|row| row["committers"] == 2 && row["strategy"] == "std"), "{ours:?}");
    assert!(rows(&report).iter().any(|row| row["name"] == "growing"));
}

#[test]
fn with_segments_of_a_size_a_raw_loop_makes_its_zeros_too() {
    let root = folder();
    let arguments =
        ["--json", "--seconds", "0.05", "--rounds", "1", "--committers", "1", "--strategy", "std"];
    // Commits of the second size end at no end of a stretch, and of a piece.
    let few = [&arguments[..], &["--bytes", "5000,200000", "--segment-bytes", "65536"]].concat();
    let report = object(&bench(root.path(), &few));
    let name = "zeroed ahead";
    let skipped = report["skipped"].as_array().expect("an array").iter().any(|row| row["name"] == name);
    let ahead: Vec<_> = rows(&report).iter().filter(|row| row["name"] == name).collect();
    assert_eq!(ahead.len(), if skipped { 0 } else { 2 }, "{report}");
    for row in ahead {
        assert!(row["commits_per_s"].as_f64() > Some(0.0), "{row}");
    }
    assert!(is_empty(root.path()), "something was left behind");
}

#[test]
fn appending_is_measured_beside_large_writes() {
    let root = folder();
    let few =
        ["--committers", "1", "--bytes", "256", "--strategy", "std", "--rounds", "1", "--seconds", "0.01"];
    let report = object(&bench(root.path(), &[&["--append", "--json"], &few[..]].concat()));
    let row = |name: &str| {
        let found = rows(&report).iter().find(|row| row["name"] == name);
        found.unwrap_or_else(|| panic!("no line {name}: {report}"))
    };
    assert_eq!(report["append_seconds"], 0.01);
    assert_eq!(row("64 KiB writes")["ratio_to_raw"], 1.0);
    assert!(row("64 KiB, synced")["ratio_to_raw"].as_f64() > Some(0.0));
    for name in ["append only", "Sync append only"] {
        let row = row(name);
        assert_eq!(row["entry_bytes"], 1024);
        assert!(
            row["ratio_to_raw"].as_f64() > Some(0.0) && row["commits_per_s"].as_f64() > Some(0.0),
            "{row}"
        );
    }
    // Where there are rings and direct writes.
    if let Some(row) = rows(&report).iter().find(|row| row["name"] == "256 KiB writes") {
        assert_eq!((&row["strategy"], &row["entry_bytes"]), (&"direct".into(), &1024.into()));
    }
    assert!(is_empty(root.path()), "something was left behind");
}

#[test]
fn the_table_names_its_columns_and_lines() {
    let root = folder();
    let output =
        bench(root.path(), &["--seconds", "0", "--rounds", "1", "--committers", "1", "--bytes", "100"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    for word in [
        "entries of 100 bytes",
        "kind:",
        "commits/s",
        "p99.9",
        "zero-filled",
        "leader/follower",
        "SyncWalWriter",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_wrong_directory_is_wrong_usage_and_is_not_made() {
    let root = folder();
    let missing = root.path().join("missing");
    let file = root.path().join("file");
    std::fs::write(&file, b"x").expect("writes");
    for command in ["bench", "soak", "backends"] {
        for (directory, says) in [(&missing, "missing"), (&file, "not a directory")] {
            let output = tool(command, directory, &[]);
            assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(says) && output.stdout.is_empty());
        }
        assert!(!missing.exists(), "{command}");
    }
}

#[test]
fn wrong_numbers_are_wrong_usage() {
    let root = folder();
    for arguments in [
        &["--committers", "0"][..],
        &["--bytes", "0"],
        &["--bytes", "999999999"],
        &["--rounds", "0"],
        &["--seconds", "-1"],
        &["--seconds", "soon"],
        &["--strategy", "floppy"],
        &["--quick", "--full"],
        &["--entries", "1000"],
        &["--recovery", "--entries", "1"],
        &["--recovery", "--bytes", "1"],
        &["--segment-bytes", "100"],
    ] {
        assert_eq!(bench(root.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn recovery_is_measured_beside_a_plain_loop() {
    let root = folder();
    let arguments = ["--recovery", "--entries", "2000", "--rounds", "1"];
    let report = object(&bench(root.path(), &[&arguments[..], &["--json"]].concat()));
    let lines: Vec<_> = rows(&report)
        .iter()
        .map(|row| {
            for field in ["cpu_ns_per_entry", "ratio_to_plain"] {
                assert!(!cfg!(unix) || row[field].as_f64() > Some(0.0), "{field}: {row}");
            }
            assert!(row["gb_per_s"].as_f64() > Some(0.0), "{row}");
            // Headers and padding are in the files, not in the entries.
            assert!(row["file_gb_per_s"].as_f64() > row["gb_per_s"].as_f64(), "{row}");
            (row["kind"].as_str(), row["log"].as_str(), row["entries"].as_u64())
        })
        .collect();
    for (log, entries) in [("grouped", 2000), ("fourfold", 8000), ("alone", 400)] {
        for kind in ["ours", "raw"] {
            assert!(lines.contains(&(Some(kind), Some(log), Some(entries))), "{kind} {log}: {lines:?}");
        }
    }
    assert_eq!(report["linearity"]["entries_4x"], 8000);
    for ratio in ["ratio", "plain_ratio"] {
        assert!(report["linearity"][ratio].is_f64() || !cfg!(unix), "{ratio}: {report}");
    }
    let segments: Vec<_> =
        report["open"].as_array().expect("an array").iter().map(|row| &row["segments"]).collect();
    assert_eq!(segments, [1, 1, 3, 101]);
    for ratio in ["long_to_short", "segments_100_to_2"] {
        assert!(report["open_ratios"][ratio].as_f64() > Some(0.0), "{report}");
    }
    let table = bench(root.path(), &arguments);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.status.success() && text.contains("plain loop") && text.contains("1 is linear"),
        "{table:?}"
    );
    assert!(is_empty(root.path()), "something was left behind");
}
