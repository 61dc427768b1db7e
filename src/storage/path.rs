//! Path rules, the same for every backend.

use crate::error::{PersistenceError, PersistenceResult};
use crate::planted;

/// Refuses every path that is not a plain relative one.
///
/// Refused: the empty path, NUL, empty components (which covers absolute paths and doubled or trailing
/// slashes), `.` and `..` components, backslashes and colons (on some systems they separate or name a
/// drive, so no backend takes them).
pub fn check(path: &str) -> PersistenceResult<()> {
    if path.is_empty() {
        return Err(refused(path, "it is empty"));
    }
    check_or_root(path)
}

/// Like [`check`], but takes the empty path for the root itself.
pub fn check_or_root(path: &str) -> PersistenceResult<()> {
    if path.is_empty() {
        return Ok(());
    }
    if path.starts_with('/') {
        return Err(refused(path, "it is absolute"));
    }
    for component in path.split('/') {
        let reason = match component {
            "" => "it has an empty component",
            "." => "it has a `.` component",
            ".." if !planted::on("allow_parent_component") => "it has a `..` component",
            _ if component.contains('\0') => "it has a NUL byte",
            _ if component.contains('\\') => "it has a backslash",
            _ if component.contains(':') => "it has a colon",
            _ => continue,
        };
        return Err(refused(path, reason));
    }
    Ok(())
}

/// The directory part of a checked path; empty for the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The last component of a checked path.
pub fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Joins a directory (maybe the root) and a name.
pub fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

fn refused(path: &str, reason: &'static str) -> PersistenceError {
    PersistenceError::invalid_config("path", format!("{path:?} is refused: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_pass() {
        for good in ["a", "a/b", "wal/.lock", "a/..b", "...", "wal/wal_1.log", "é/ü"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "../a", "a\0b", "C:\\a", "C:/a",
            "a\\b", "\\\\s\\h",
        ] {
            let error = check(bad).expect_err(bad);
            assert!(matches!(error, PersistenceError::InvalidConfig { parameter: "path", .. }), "{bad}");
        }
        assert!(check_or_root("").is_ok());
        assert!(check_or_root("..").is_err());
    }

    #[test]
    fn a_path_is_its_parent_and_its_name() {
        for (path, up, name) in [("a", "", "a"), ("a/b", "a", "b"), ("a/b/c", "a/b", "c")] {
            assert_eq!((parent(path), file_name(path)), (up, name));
            assert_eq!(join(up, name), path);
        }
    }
}
