//! `docs/format.md` says what the code does: its tables, and its worked example byte for byte.

use durability::formats::dump::{annotate, hex};
use durability::formats::frame::{FrameHeaderState, FrameKind, FrameSeed, decode_header};
use durability::formats::header::{FileKind, HeaderState, decode};
use durability::formats::layout::{FRAME, FRAME_HEADER_BYTES, Field, HEADER, HEADER_BYTES, OPENING, SEAL};
use durability::storage::{FlushPolicy, SeededEnvironment};
use durability::walog::{WalOptions, WalWriter};
use durability::{Directory, MemoryDirectory};
use std::fmt::Write;
use std::io::Read;
use std::sync::Arc;

const PAGE: &str = include_str!("../../docs/format.md");

/// The rows `| offset | bytes | name | ... |` behind a heading.
fn rows(heading: &str) -> Vec<(usize, usize, String)> {
    let section =
        PAGE.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells =
        |line: &str| line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>();
    let table = section.lines().filter(|line| line.starts_with('|')).map(cells);
    table
        .filter_map(|cells| {
            Some((cells.get(1)?.parse().ok()?, cells.get(2)?.parse().ok()?, cells.get(3)?.clone()))
        })
        .collect()
}

fn layout(table: &[Field]) -> Vec<(usize, usize, String)> {
    table.iter().map(|field| (field.offset, field.bytes, field.name.to_owned())).collect()
}

#[test]
fn every_table_of_the_page_is_the_layout() {
    assert_eq!(rows("File header"), layout(HEADER));
    assert_eq!(rows("Frame header"), layout(FRAME));
    assert_eq!(rows("Opening"), layout(OPENING));
    assert_eq!(rows("Seal"), layout(SEAL));
}

/// The segment of the worked example.
fn example() -> Vec<u8> {
    let directory = MemoryDirectory::arc();
    let options = WalOptions {
        preallocate_bytes: 0,
        flush_policy: FlushPolicy::Manual,
        environment: Arc::new(SeededEnvironment::new(1)),
        ..WalOptions::default()
    };
    let mut wal =
        WalWriter::<(), MemoryDirectory>::open_with(Arc::clone(&directory), options).expect("opens");
    wal.append_bytes(b"hello").expect("appends");
    wal.append_bytes(b"world").expect("appends");
    wal.close().expect("closes");
    let mut bytes = Vec::new();
    directory.open_file("wal/wal_1.log").expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

fn annotated(bytes: &[u8]) -> String {
    let HeaderState::Good(header) = decode(FileKind::Segment, &bytes[..HEADER_BYTES]) else {
        panic!("no header")
    };
    let mut text = annotate(bytes, 0, HEADER);
    let mut offset = HEADER_BYTES;
    while offset < bytes.len() {
        let state = decode_header(&bytes[offset..], offset as u64, FrameSeed::new(header.salt));
        let FrameHeaderState::Good(frame) = state else { panic!("no frame at {offset}") };
        writeln!(text, "\n# {:?}", frame.kind).expect("writes");
        text += &annotate(&bytes[offset..], offset as u64, FRAME);
        let payload = offset + FRAME_HEADER_BYTES;
        let end = payload + frame.payload_bytes as usize;
        match frame.kind {
            FrameKind::Opening => text += &annotate(&bytes[payload..], payload as u64, OPENING),
            FrameKind::Seal => text += &annotate(&bytes[payload..], payload as u64, SEAL),
            FrameKind::Data => {
                writeln!(text, "{payload:06x}  {:<48}  payload", hex(&bytes[payload..end])).expect("writes")
            }
        }
        let next = offset + frame.frame_bytes(header.frame_alignment) as usize;
        writeln!(text, "{end:06x}  {:<48}  padding", hex(&bytes[end..next])).expect("writes");
        offset = next;
    }
    text
}

#[test]
fn the_worked_example_is_what_is_written() {
    let text = annotated(&example());
    assert!(PAGE.contains(&text), "docs/format.md should hold:\n\n{text}");
}
