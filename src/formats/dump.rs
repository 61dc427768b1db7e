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

/// Bytes in hex, sixteen to a line, each line with its offset and what is printable of it, handed to `emit`. A
/// repeated line is told once, with `*` in the place of the others.
pub fn lines(bytes: &[u8], file_offset: u64, emit: &mut dyn FnMut(&str)) {
    let mut before: &[u8] = &[];
    let mut skipping = false;
    for (index, line) in bytes.chunks(16).enumerate() {
        if line == before && line.len() == 16 {
            if !skipping {
                emit("*\n");
            }
            skipping = true;
            continue;
        }
        (before, skipping) = (line, false);
        let columns: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let printable = |byte: &u8| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' };
        let text: String = line.iter().map(printable).collect();
        emit(&format!("{:06x}  {:<48}  |{text}|\n", file_offset + 16 * index as u64, columns.join(" ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_lines_are_told_once_and_the_last_one_is_whole() {
        let mut text = String::new();
        let mut bytes = vec![0; 64];
        bytes.extend_from_slice(b"end\n");
        lines(&bytes, 0x200, &mut |line| text.push_str(line));
        let zeros = "00 ".repeat(15) + "00";
        let expected =
            format!("000200  {zeros:<48}  |................|\n*\n000240  {:<48}  |end.|\n", "65 6e 64 0a");
        assert_eq!(text, expected);
    }
}
