//! Names of files that are about to get their real one.

use super::{Directory, path};
use crate::error::PersistenceResult;
use crate::planted;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every temporary name begins with this; user files should not.
const PREFIX: &str = ".tmp-";

/// Distinguishes temporaries of one process; the process id distinguishes processes.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A name beside `target` that nobody else uses, for a file that is then renamed to it.
pub fn temporary_path(target: &str) -> String {
    // Relaxed: only uniqueness matters.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}{}-{number}-{}", std::process::id(), path::file_name(target));
    path::join(path::parent(target), &name)
}

/// Whether a file name (not a path) is one of ours.
pub fn is_temporary_name(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The name that a temporary was made for.
fn target_of(name: &str) -> Option<&str> {
    let (_process, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    rest.split_once('-').map(|(_number, target)| target)
}

/// Deletes temporaries that a crash left in `directory_path` for `target`'s name; returns how many. Call it only under the lock that
/// keeps other writers of that target out.
pub fn sweep_temporaries<D: Directory + ?Sized>(
    directory: &D,
    directory_path: &str,
    target: Option<&str>,
) -> PersistenceResult<usize> {
    if planted::on("skip_sweep") {
        return Ok(0);
    }
    let names = match directory.list_dir(directory_path) {
        Ok(names) => names,
        Err(error) if error.is_not_found() => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut swept = 0;
    for name in names.iter().filter(|name| is_temporary_name(name)) {
        if target.is_some_and(|target| target_of(name) != Some(path::file_name(target))) {
            continue;
        }
        match directory.delete(&path::join(directory_path, name)) {
            Ok(()) => swept += 1,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporaries_are_unique_and_stay_beside_their_target() {
        let (a, b) = (temporary_path("x/y"), temporary_path("x/y"));
        assert_ne!(a, b);
        assert!(a.starts_with("x/") && a.ends_with("-y"));
        assert!(is_temporary_name(path::file_name(&a)));
        assert!(!is_temporary_name("wal_1.log"));
    }
}
