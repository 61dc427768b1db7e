//! Every bound and default of the crate, in one place.
//!
//! Relations between them are checked when the crate is compiled, so that a change here cannot
//! silently break a promise made elsewhere.

/// Largest payload of one entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 16 << 20;

/// Largest id of an entry; a header that states more is forged, and ids never overflow on the way to it.
pub const ENTRY_ID_MAX: u64 = u64::MAX >> 1;

/// Largest payload of one batch frame (entries and their length prefixes), in bytes.
pub const BATCH_BYTES_MAX: usize = 64 << 20;

/// Default size above which pending entries are handed to the operating system, in bytes.
pub const BUFFER_BYTES_DEFAULT: usize = 64 << 10;

/// Default for the payload that may wait for its commit in a shared writer, in bytes.
pub const IN_FLIGHT_BYTES_DEFAULT: usize = 8 << 20;

/// A commit that takes longer than this, in microseconds, is limited by its flush, a faster one by the processor.
pub const DEVICE_SLOW_US: u64 = 120;

/// Commits in flight at once where a flush is slow.
pub const PIPELINE_DEPTH_SLOW: usize = 4;

/// Flushes in flight at once that nobody waits for, where the backend keeps several.
pub const FLUSHES_IN_FLIGHT_MAX: usize = 8;

/// Payload, in bytes, up to which a batch grows that nobody waits for while no flush can begin.
pub const FLUSH_BYTES_MAX: usize = 256 << 10;

/// What file systems allocate at once, at least, in bytes.
pub const FILE_BLOCK_BYTES: u64 = 4096;

/// Least size of a flush by itself whose last block is filled, in bytes: what is filled is small beside it. In a stream
/// of them a block is filled each [`FLUSH_BYTES_MAX`].
pub const FILLED_FLUSH_BYTES_MIN: usize = 32 << 10;

/// Flushes that nobody waits for, in flight at once, from which on only large ones begin: a disk that is busy takes
/// more in large pieces.
pub const FLUSHES_BUSY: usize = 2;

/// Commits in flight at once where a flush is fast.
pub const PIPELINE_DEPTH_FAST: usize = 2;

/// Default number of entries between two automatic flushes.
pub const FLUSH_EVERY_ENTRIES_DEFAULT: usize = 64;

/// Default size at which a segment is sealed and the next one begun, in bytes.
pub const SEGMENT_BYTES_DEFAULT: u64 = 10 << 20;

/// How much of a new segment is zero-filled by default, in bytes.
pub const PREALLOCATE_BYTES_DEFAULT: u64 = 1 << 20;

/// How long `open` waits for the lock file itself, and for one that it has waited for already, in milliseconds: a killed
/// owner's is free at once.
pub const LOCK_FILE_WAIT_MS: u64 = 500;

/// How often a reader begins anew when truncation removes what it is about to read.
pub const READER_RETRIES_MAX: usize = 100;

/// Default alignment of frames in a file, in bytes: one logical sector.
pub const FRAME_ALIGNMENT_DEFAULT: u32 = 512;

/// Smallest frame alignment that a header may state, in bytes.
pub const FRAME_ALIGNMENT_MIN: u32 = 512;

/// Largest frame alignment that a header may state, in bytes.
pub const FRAME_ALIGNMENT_MAX: u32 = 4096;

/// The unit that a disk writes whole or not at all, in bytes; evidence is judged by it.
pub const SECTOR_BYTES: usize = 512;

/// Address alignment of commit buffers, in bytes; enough for direct I/O on every known device.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// How much is read from a file at once while scanning, in bytes.
pub const READ_CHUNK_BYTES: usize = 1 << 20;

/// Payload of one checkpoint chunk, in bytes.
pub const CHECKPOINT_CHUNK_BYTES: usize = 256 << 10;

/// How much is zero-filled with one write while a segment is prepared, in bytes.
pub const ZERO_FILL_BYTES: usize = 1 << 20;

/// How much is zero-filled with one write while a segment is prepared ahead of need, in bytes: what a commit may
/// have to wait behind.
pub const PREPARE_CHUNK_BYTES: usize = if cfg!(durability_shuttle) { 4096 } else { 256 << 10 };

/// From how many bytes on the page cache is asked to write back what was flushed into it.
pub const WRITE_BACK_BYTES: u64 = 256 << 10;

/// Bytes written for each durable commit, in a segment, from which on zero-filling the next one costs the disk more
/// than it saves those commits.
pub const STREAM_BYTES_PER_COMMIT: u64 = 256 << 10;

/// Segments that are kept ready by default.
pub const PREPARED_SEGMENTS_DEFAULT: usize = 1;

/// Most segments that can be kept ready.
pub const PREPARED_SEGMENTS_MAX: usize = 64;

/// Segments that may wait for their seal before a commit has to write one itself.
pub const RETIRED_SEGMENTS_MAX: usize = 2;

/// How much more space a growing segment or record log asks for at once, at least, in bytes.
pub const RESERVE_BYTES_MIN: u64 = 64 << 10;

/// How long `open` waits for the locks that a killed predecessor's unfinished writes still hold,
/// in milliseconds.
pub const LOCK_WAIT_MS_DEFAULT: u64 = 10_000;

/// Number of checkpoints that publishing keeps by default.
pub const CHECKPOINTS_KEPT_DEFAULT: usize = 2;

/// Most segment files that a reader keeps open ahead of its position.
pub const READER_FILES_OPEN_MAX: usize = 256;

/// How much of a pending batch is copied out at once, in bytes; a single entry may be larger. A lock is held
/// meanwhile.
pub const PEEK_BYTES: usize = 64 << 10;

/// How many entries of a pending batch one look walks over; a lock is held meanwhile.
pub const PEEK_ENTRIES: usize = 4096;

/// How much of a file is read at once for a single entry, in bytes.
pub const POINT_READ_BYTES: usize = 64 << 10;

/// Distance between the places in a segment that a reader remembers, in bytes.
pub const MARK_BYTES: u64 = 64 << 10;

/// Places in segments that the readers of one log remember.
pub const MARKS_MAX: usize = 16 << 10;

/// Room that a new commit buffer reserves, in bytes.
pub const COMMIT_BUFFER_BYTES_INITIAL: usize = 16 << 10;

/// Commits that a file keeps in flight by default, where its backend keeps several.
pub const COMMITS_IN_FLIGHT_DEFAULT: usize = 32;

/// Commits of each strategy, at most, when the fastest one is looked for.
pub const CALIBRATION_COMMITS_MAX: u32 = 24;

/// Commits of each strategy, at least, for them to say anything.
pub const CALIBRATION_COMMITS_MIN: u32 = 8;

/// How long looking for it takes, in milliseconds, once the files are there and each strategy had its commits.
pub const CALIBRATION_TIME_MS: u64 = 12;

/// How long it takes at most, one round more or less: where commits take so long, strategies differ little.
pub const CALIBRATION_TIME_MAX_MS: u64 = 60;

/// Most commits that a file can be asked to keep in flight.
pub const COMMITS_IN_FLIGHT_MAX: usize = 4096;

const _: () = {
    assert!(COMMITS_IN_FLIGHT_DEFAULT >= 1 && COMMITS_IN_FLIGHT_DEFAULT <= COMMITS_IN_FLIGHT_MAX);
    assert!(COMMITS_IN_FLIGHT_MAX * 2 <= 32768, "a ring has room for two requests of each");
    assert!(ENTRY_BYTES_MAX + 4 <= BATCH_BYTES_MAX, "the largest entry must fit into one batch");
    assert!(BATCH_BYTES_MAX <= u32::MAX as usize / 2, "payload lengths are u32 on disk");
    assert!(BUFFER_BYTES_DEFAULT <= BATCH_BYTES_MAX);
    assert!(FRAME_ALIGNMENT_MIN.is_power_of_two() && FRAME_ALIGNMENT_MAX.is_power_of_two());
    assert!(FRAME_ALIGNMENT_MIN <= FRAME_ALIGNMENT_DEFAULT && FRAME_ALIGNMENT_DEFAULT <= FRAME_ALIGNMENT_MAX);
    assert!(FRAME_ALIGNMENT_MIN as usize >= SECTOR_BYTES, "a frame never shares its first sector");
    assert!(BUFFER_ALIGNMENT % FRAME_ALIGNMENT_MAX as usize == 0);
    assert!(ZERO_FILL_BYTES % BUFFER_ALIGNMENT == 0);
    assert!(PREPARE_CHUNK_BYTES % BUFFER_ALIGNMENT == 0 && PREPARE_CHUNK_BYTES <= ZERO_FILL_BYTES);
    assert!(PREPARED_SEGMENTS_DEFAULT >= 1 && PREPARED_SEGMENTS_DEFAULT <= PREPARED_SEGMENTS_MAX);
    assert!(CHECKPOINT_CHUNK_BYTES <= BATCH_BYTES_MAX);
    assert!(CHECKPOINTS_KEPT_DEFAULT >= 1);
    assert!(FILE_BLOCK_BYTES % FRAME_ALIGNMENT_MAX as u64 == 0);
    assert!(
        FILLED_FLUSH_BYTES_MIN as u64 >= 8 * FILE_BLOCK_BYTES
            && FILLED_FLUSH_BYTES_MIN <= BUFFER_BYTES_DEFAULT
    );
    assert!(FLUSHES_BUSY >= 1 && FLUSHES_BUSY <= FLUSHES_IN_FLIGHT_MAX);
};
