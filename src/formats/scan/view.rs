//! What a scan is shown: a window of a file, and the answer where it shows too little.

use super::Step;

/// A window of the file.
#[derive(Clone, Copy)]
pub(super) struct View<'w> {
    pub offset: u64,
    pub bytes: &'w [u8],
}

impl<'w> View<'w> {
    /// The bytes, or the step that asks for them.
    #[inline]
    pub fn get(self, offset: u64, bytes: u64) -> Result<&'w [u8], Step<'w>> {
        let bytes = bytes as usize;
        offset
            .checked_sub(self.offset)
            .and_then(|from| usize::try_from(from).ok())
            .and_then(|from| self.bytes.get(from..from.checked_add(bytes)?))
            .ok_or(Step::Need { offset, bytes })
    }

    /// Everything in the window from `offset` on, up to `limit`.
    #[inline]
    pub fn tail(self, offset: u64, limit: u64) -> &'w [u8] {
        let from = (offset - self.offset) as usize;
        let to = ((limit - self.offset) as usize).min(self.bytes.len());
        &self.bytes[from..to]
    }
}
