//! File names: the only place where one is spelt.

/// The folder of a write-ahead log, under the directory's root.
pub const WAL_DIRECTORY: &str = "wal";

/// The lock of a write-ahead log.
pub const WAL_LOCK: &str = "wal/.lock";

const SEGMENT_PREFIX: &str = "wal_";
const SPARE_PREFIX: &str = "spare_";
const SUFFIX: &str = ".log";

/// Path of a segment.
pub fn segment_path(segment_id: u64) -> String {
    format!("{WAL_DIRECTORY}/{SEGMENT_PREFIX}{segment_id}{SUFFIX}")
}

/// Path of a spare file, kept for a later segment.
pub fn spare_path(number: u64) -> String {
    format!("{WAL_DIRECTORY}/{SPARE_PREFIX}{number}{SUFFIX}")
}

/// Path of a record log's lock.
pub fn record_log_lock_path(path: &str) -> String {
    format!("{path}.lock")
}

/// Path of the `generation`-th older checkpoint that is kept beside `path`; 0 is `path` itself.
pub fn checkpoint_generation_path(path: &str, generation: usize) -> String {
    if generation == 0 { path.to_owned() } else { format!("{path}.{generation}") }
}

/// The path beside which a checkpoint is kept, by the path of it or of an older one: the reverse of
/// [`checkpoint_generation_path`].
pub fn checkpoint_base(path: &str) -> &str {
    let is_generation = |number: &str| number.parse::<usize>().is_ok_and(|found| found.to_string() == number);
    match path.rsplit_once('.') {
        Some((base, number)) if is_generation(number) && number != "0" => base,
        _ => path,
    }
}

/// What a name in the folder of a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalName {
    /// A segment.
    Segment(u64),
    /// A spare file.
    Spare(u64),
    /// Looks like one of ours, and no release writes it (`wal_007.log`): never passed over in silence.
    Suspect,
    /// Something else: the lock, a temporary, a stranger's file.
    Other,
}

/// Reads a name in the folder of a log.
pub fn parse_wal_name(name: &str) -> WalName {
    let number = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(SUFFIX));
    let canonical = |text: &str| text.parse::<u64>().ok().filter(|id| *id > 0 && id.to_string() == text);
    if let Some(text) = number(SEGMENT_PREFIX) {
        return canonical(text).map_or(WalName::Suspect, WalName::Segment);
    }
    if let Some(text) = number(SPARE_PREFIX) {
        return canonical(text).map_or(WalName::Other, WalName::Spare);
    }
    WalName::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_in_no_other_spelling() {
        for id in [1, 9, 10, u64::MAX] {
            let path = segment_path(id);
            assert_eq!(parse_wal_name(path.strip_prefix("wal/").expect("prefix")), WalName::Segment(id));
            let path = spare_path(id);
            assert_eq!(parse_wal_name(path.strip_prefix("wal/").expect("prefix")), WalName::Spare(id));
        }
        for suspect in
            ["wal_.log", "wal_0.log", "wal_01.log", "wal_+1.log", "wal_x.log", "wal_18446744073709551616.log"]
        {
            assert_eq!(parse_wal_name(suspect), WalName::Suspect, "{suspect}");
        }
        for generation in [0, 1, 10] {
            assert_eq!(
                checkpoint_base(&checkpoint_generation_path("map.checkpoint", generation)),
                "map.checkpoint"
            );
        }
        assert_eq!(checkpoint_base("map.01"), "map.01");
        for other in [".lock", "wal_1.log.bak", "wal_1", "notes", ".tmp-1-1-wal_1.log"] {
            assert_eq!(parse_wal_name(other), WalName::Other, "{other}");
        }
    }
}
