//! stub
#![allow(missing_docs)]
pub struct FsDirectory;
pub fn sync_parent_of_path(_path: &std::path::Path) -> crate::error::PersistenceResult<()> {
    Ok(())
}
