//! A small key-value store: every change is in the log before it is in the map; a checkpoint now and then
//! keeps the log short.
//!
//! `cargo run --example kv` shows it once; `cargo run --example kv -- DIR put KEY VALUE`, `... get KEY`,
//! `... delete KEY`, `... checkpoint` use it.

use durability::backends::Backend;
use durability::publish::CheckpointPublisher;
use durability::recover::{RecoveryOptions, recover_with_wal};
use durability::walog::{WalOptions, WalWriter};
use durability::{DurableDirectory, PersistenceResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A change of the store.
#[derive(Serialize, Deserialize)]
enum Op {
    Put(String, String),
    Delete(String),
    /// A checkpoint was published; changes nothing.
    Checkpointed,
}

type Map = BTreeMap<String, String>;

struct Store {
    directory: Arc<dyn DurableDirectory>,
    wal: WalWriter<Op, dyn DurableDirectory>,
    map: Map,
}

impl Store {
    /// Recovers the store. `or_new` is the explicit word for the first start: without it an empty directory
    /// is an error, because a lost disk looks just like one.
    fn open(path: &Path) -> PersistenceResult<Self> {
        let directory = Backend::Auto.open(path)?.directory;
        let recovery = recover_with_wal::<Map, Op, Map, _, _>(
            Arc::clone(&directory),
            Some("map.checkpoint"),
            RecoveryOptions::best_effort().or_new(),
            Option::unwrap_or_default,
            |map, _entry_id, op| apply(map, op),
        )?;
        eprintln!("recovered: {}", recovery.report);
        // From here on everything that was recovered is durable.
        let (map, wal) = recovery.into_writer(WalOptions::default())?;
        Ok(Self { directory, wal, map })
    }

    /// Durable when it returns.
    fn change(&mut self, op: Op) -> PersistenceResult<()> {
        self.wal.append_durable(&op)?;
        apply(&mut self.map, op);
        Ok(())
    }

    fn checkpoint(&mut self) -> PersistenceResult<()> {
        let last = self.wal.last_entry_id();
        CheckpointPublisher::new(Arc::clone(&self.directory))
            .publish(&mut self.wal, &self.map, last, "map.checkpoint", |_, _| Op::Checkpointed)
            .map(|_| ())
    }
}

fn apply(map: &mut Map, op: Op) {
    match op {
        Op::Put(key, value) => {
            map.insert(key, value);
        }
        Op::Delete(key) => {
            map.remove(&key);
        }
        Op::Checkpointed => {}
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => demonstrate()?,
        [directory, "put", key, value] => {
            open(directory)?.change(Op::Put(key.into(), value.into()))?;
        }
        [directory, "delete", key] => open(directory)?.change(Op::Delete(key.into()))?,
        [directory, "get", key] => {
            println!("{}", open(directory)?.map.get(key).map_or("(none)", String::as_str))
        }
        [directory, "checkpoint"] => open(directory)?.checkpoint()?,
        _ => {
            return Err(
                "usage: kv [DIR put KEY VALUE | DIR get KEY | DIR delete KEY | DIR checkpoint]".into()
            );
        }
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a program may make its own directory")]
fn open(directory: &str) -> Result<Store, Box<dyn std::error::Error>> {
    std::fs::create_dir_all(directory)?;
    Ok(Store::open(Path::new(directory))?)
}

fn demonstrate() -> Result<(), Box<dyn std::error::Error>> {
    let root = tempfile::tempdir()?;
    let mut store = Store::open(root.path())?;
    store.change(Op::Put("one".into(), "1".into()))?;
    store.change(Op::Put("two".into(), "2".into()))?;
    store.checkpoint()?;
    store.change(Op::Delete("one".into()))?;
    drop(store);
    let store = Store::open(root.path())?;
    assert_eq!(store.map.get("one"), None);
    assert_eq!(store.map.get("two").map(String::as_str), Some("2"));
    println!("{:?}", store.map);
    Ok(())
}
