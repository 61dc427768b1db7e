//! Annotated bytes, for `inspect`, for golden files and for `docs/format.md`; driven by the layout tables.

use super::layout::Field;
use std::fmt::Write;

/// One line per field: offset in the file, bytes in hex, name. Runs of more than sixteen equal bytes are
/// shortened.
pub fn annotate(block: &[u8], file_offset: u64, table: &[Field]) -> String {
    let mut text = String::new();
    for field in table {
        let bytes = field.of(block);
        let _ =
            writeln!(text, "{:06x}  {:<48}  {}", file_offset + field.offset as u64, hex(bytes), field.name);
    }
    text
}

/// Bytes in hex; a long run of one value as `00 * 432`.
pub fn hex(bytes: &[u8]) -> String {
    if bytes.len() > 16 && bytes.iter().all(|byte| *byte == bytes[0]) {
        return format!("{:02x} * {}", bytes[0], bytes.len());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
