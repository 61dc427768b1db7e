//! Files that nobody wrote: damaged, cut, spliced and forged ones. Readers answer, and never panic or loop.

use crate::fixtures::in_memory;
use durability::MemoryDirectory;
use durability::recordlog::{RecordLogOptions, RecordLogReadMode, RecordLogReader, RecordLogWriter};
use durability::storage::FlushPolicy;
use std::sync::Arc;

fn records(directory: &Arc<MemoryDirectory>, mode: RecordLogReadMode) -> Vec<Vec<u8>> {
    let reader = RecordLogReader::<MemoryDirectory>::new(Arc::clone(directory), "records.log");
    reader.read_all(mode).expect("reads").into_iter().map(|record| record.payload).collect()
}

/// Appends one record in a session of its own.
fn append(directory: &Arc<MemoryDirectory>, record: &[u8]) {
    let options = RecordLogOptions { flush_policy: FlushPolicy::PerAppend, ..RecordLogOptions::default() };
    let mut log =
        RecordLogWriter::<MemoryDirectory>::with_options(Arc::clone(directory), "records.log", options);
    log.append_bytes(record).expect("appends");
    log.close().expect("closes");
}

#[test]
fn a_record_log_that_was_cut_at_any_byte_goes_on_and_stays_readable() {
    let directory = MemoryDirectory::arc();
    append(&directory, b"first");
    // Ends in zeros: what is cut off here comes back as soon as the file grows again.
    append(&directory, &[0; 600]);
    let whole = crate::decoder::files_of(&directory);
    for bytes in 512..=whole[0].1.len() {
        let directory = in_memory(&whole);
        let cut = |bytes: usize| {
            let mut files = crate::decoder::files_of(&directory);
            files[0].1.truncate(bytes);
            in_memory(&files)
        };
        let directory = cut(bytes);
        let mut expected = records(&directory, RecordLogReadMode::BestEffort);
        for round in 0..2 {
            expected.push(vec![round; 10]);
            append(&directory, &[round; 10]);
            assert_eq!(records(&directory, RecordLogReadMode::Strict), expected, "cut to {bytes} bytes");
        }
    }
}
