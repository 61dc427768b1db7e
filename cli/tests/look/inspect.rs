//! `inspect`: its table and its keys, the bytes of single files.

use crate::support::{change, code, fixture, header, json, killed, scratch, segment, text};
use durability::formats::header::Header;
use serde_json::Value;
use std::fs;

#[test]
fn inspect_has_the_documented_keys() {
    let scratch = scratch();
    let root = killed(scratch.path());
    // Every kind of file: prepared, spare, left behind.
    let newest = header(&fs::read(segment(&root, 5)).expect("reads"));
    let next = Header { file_id: 6, salt: 77, ..newest }.encode();
    fs::write(segment(&root, 6), [&next[..], &[0; 512]].concat()).expect("writes");
    fs::write(root.join("wal/spare_1.log"), [0; 1024]).expect("writes");
    let told = json(&["inspect"], &root);
    for key in [
        "path",
        "kind",
        "verdict",
        "text",
        "exit_code",
        "first_entry_id",
        "last_entry_id",
        "attested_entry_id",
        "closed",
        "unproven",
        "dropped",
        "files",
        "checkpoints",
    ] {
        assert!(told.get(key).is_some(), "{key}: {told}");
    }
    let files = told["files"].as_array().expect("files");
    let roles: Vec<_> = files.iter().map(|file| file["role"].as_str().expect("a role")).collect();
    assert_eq!(roles, ["segment", "segment", "segment", "segment", "segment", "unstarted", "spare"]);
    let first = &files[0];
    assert_eq!(first["path"], "wal/wal_1.log");
    assert_eq!(first["header"]["identity"].as_str().map(str::len), Some(32), "{first}");
    assert_eq!(first["header"]["salt"].as_str().map(str::len), Some(16), "{first}");
    let contents = &first["contents"];
    assert_eq!((&contents["first_entry_id"], &contents["last_entry_id"]), (&Value::from(1), &Value::from(2)));
    assert_eq!(contents["seal"]["reason"], "Rotation");
    assert_eq!((&contents["used_bytes"], &contents["rest_bytes"]), (&Value::from(3584), &Value::from(0)));
    assert_eq!(files[1]["opening"]["predecessor_id"], 1);
    assert_eq!((&told["last_entry_id"], &told["attested_entry_id"]), (&Value::from(10), &Value::from(9)));
    let table = text(&["inspect"], &root);
    for word in ["wal_1.log", "rotated", "unstarted", "spare", "attested to be durable through 9"] {
        assert!(table.contains(word), "{word}: {table}");
    }
}

#[test]
fn files_are_looked_at_by_themselves() {
    let scratch = scratch();
    for (name, kind) in [
        ("wal_rotated/wal/wal_1.log", "segment"),
        ("record_log_reopened/records.log", "record_log"),
        ("checkpoint/state.ckp", "checkpoint"),
    ] {
        let file = scratch.path().join("file");
        fs::copy(fixture(name), &file).expect("copies");
        let told = json(&["verify"], &file);
        assert_eq!((told["kind"].as_str(), &told["verdict"]), (Some(kind), &Value::from("clean")), "{told}");
        let hex = text(&["inspect", "--hex"], &file);
        assert!(
            hex.contains("000010") && hex.contains("identity") && hex.contains("first_entry_id"),
            "{hex}"
        );
        assert!(hex.ends_with("clean\n"), "{hex}");
        change(file.clone(), |bytes| bytes[1100] ^= 1);
        let told = json(&["inspect"], &file);
        assert_eq!(
            (told["verdict"].as_str(), told["exit_code"].as_u64()),
            (Some("corrupt"), Some(4)),
            "{name}"
        );
        assert_eq!((told["kind"].as_str(), told["path"].as_str()), (Some(kind), Some("file")), "{told}");
        let hex = text(&["inspect", "--hex"], &file);
        assert!(hex.contains("no good frame at 0x"), "{name}: {hex}");
        assert_eq!(code(&["dump"], &file), 4);
    }
}
