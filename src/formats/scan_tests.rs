//! The evidence table, row by row, over hand-made files.

use super::*;
use crate::error::{Check, Proof, TornEvidence};
use crate::formats::frame::tests::{data_frame, frame};

const SALT: u64 = 0x5a17;

fn header() -> Header {
    Header::new(FileKind::Segment, 512, 1, SALT)
}

/// A segment image under construction.
struct Image {
    bytes: Vec<u8>,
    next: u64,
}

impl Image {
    fn new() -> Self {
        let mut bytes = header().encode().to_vec();
        let opening = Opening::default().encode();
        bytes.extend(frame(FrameKind::Opening, &opening, 0, 1, 0, 512, SALT, 512));
        Self { bytes, next: 1 }
    }

    fn data(&mut self, entries: &[&[u8]], durable: u64) -> std::ops::Range<usize> {
        let at = self.bytes.len();
        self.bytes.extend(data_frame(entries, self.next, durable, at as u64, SALT, 512));
        self.next += entries.len() as u64;
        at..self.bytes.len()
    }

    fn seal(&mut self, reason: SealReason, durable: u64) {
        let at = self.bytes.len() as u64;
        let seal = Seal { reason, successor_id: 0, successor_salt: 0 }.encode();
        self.bytes.extend(frame(FrameKind::Seal, &seal, 0, self.next, durable, at, SALT, 512));
    }

    fn zeros(&mut self, bytes: usize) {
        self.bytes.resize(self.bytes.len() + bytes, 0);
    }
}

/// Scans with windows of a given size, so that every way of being asked is taken.
fn scan_with(bytes: &[u8], window: usize, known_end: Option<KnownEnd>) -> (Vec<(u64, Vec<u8>)>, ScanEnd) {
    let mut scanner = Scanner::new(&header(), bytes.len() as u64, known_end);
    let (mut from, mut to) = (0usize, 0usize);
    let mut found = Vec::new();
    loop {
        match scanner.step(from as u64, &bytes[from..to]) {
            Step::Need { offset, bytes: needed } => {
                from = offset as usize;
                to = (from + needed.max(window)).min(bytes.len());
                assert!(to - from >= needed, "asked for more than there is");
            }
            Step::Frame { header, payload, .. } => {
                if header.kind == FrameKind::Data {
                    found.extend(
                        crate::formats::frame::Entries::new(&header, payload)
                            .map(|(id, entry)| (id, entry.to_vec())),
                    );
                }
            }
            Step::End => return (found, scanner.into_end()),
        }
    }
}

fn scan(bytes: &[u8]) -> (Vec<(u64, Vec<u8>)>, ScanEnd) {
    let small = scan_with(bytes, 1, None);
    let large = scan_with(bytes, 1 << 20, None);
    assert_eq!(small.0, large.0);
    assert_eq!(format!("{:?}", small.1), format!("{:?}", large.1));
    small
}

fn verdict(bytes: &[u8]) -> (u64, Verdict) {
    let (found, end) = scan(bytes);
    let last = end.last_entry_id().unwrap_or(0);
    assert_eq!(found.len() as u64, last);
    (last, judge(&end, last, true, None, "wal/wal_1.log"))
}

#[test]
fn nothing_but_zeros_or_the_end_of_the_file_is_a_clean_end() {
    let mut image = Image::new();
    image.data(&[b"a", b"b"], 0);
    assert_eq!(verdict(&image.bytes), (2, Verdict::Clean));
    image.zeros(5000);
    assert_eq!(verdict(&image.bytes), (2, Verdict::Clean));
}

#[test]
fn a_lost_frame_below_an_attested_watermark_is_corruption() {
    for damage in [0usize, 600] {
        let mut image = Image::new();
        let lost = image.data(&[&[7; 1000]], 0);
        image.data(&[b"later"], 1);
        image.bytes[lost.start + damage] ^= 1;
        let (last, verdict) = verdict(&image.bytes);
        assert_eq!(last, 0);
        assert!(
            matches!(verdict, Verdict::Corrupt(_, Proof::Attested { durable_entry_id: 1, .. })),
            "{verdict:?}"
        );
    }
}

#[test]
fn a_lost_frame_that_nobody_attests_is_torn_although_later_commits_follow() {
    let mut image = Image::new();
    image.data(&[b"kept"], 0);
    let lost = image.data(&[&[7; 1000]], 1);
    image.data(&[b"later"], 1);
    image.bytes[lost].fill(0);
    assert_eq!(verdict(&image.bytes), (1, Verdict::Torn(TornEvidence::LaterCommits { frames: 1 })));
}

#[test]
fn missing_sectors_are_torn_and_full_ones_are_corruption() {
    let mut image = Image::new();
    image.data(&[b"kept"], 0);
    let last = image.data(&[&[7; 2000]], 1);
    let mut torn = image.bytes.clone();
    torn[last.start + 512..last.start + 1024].fill(0);
    assert_eq!(verdict(&torn), (1, Verdict::Torn(TornEvidence::OldSectors { sectors: 1 })));

    let mut flipped = image.bytes.clone();
    flipped[last.start + 700] ^= 4;
    assert!(matches!(verdict(&flipped), (1, Verdict::Corrupt(Check::Payload { .. }, Proof::FullyWritten))));

    let mut flipped = image.bytes.clone();
    flipped[last.start + 16] ^= 4;
    assert!(matches!(verdict(&flipped), (1, Verdict::Corrupt(Check::FrameHeader, Proof::FullyWritten))));

    let mut headless = image.bytes.clone();
    headless[last.start..last.start + 512].fill(0);
    assert_eq!(verdict(&headless), (1, Verdict::Torn(TornEvidence::OldSectors { sectors: 1 })));
}

#[test]
fn entries_full_of_zeros_do_not_hide_a_flipped_bit() {
    let mut image = Image::new();
    let mut entry = vec![0u8; 4000];
    entry[3000] = 1;
    let last = image.data(&[&entry], 0);
    image.bytes[last.start + 48 + 4 + 3000] ^= 2;
    assert!(matches!(
        verdict(&image.bytes),
        (0, Verdict::Corrupt(Check::Payload { .. }, Proof::FullyWritten))
    ));
}

#[test]
fn cut_at_every_byte_of_the_last_frame_is_torn_or_clean_never_corrupt() {
    let mut image = Image::new();
    image.data(&[b"kept"], 0);
    let last = image.data(&[&[9; 1500]], 1);
    for cut in last.clone() {
        let (id, verdict) = verdict(&image.bytes[..cut]);
        assert_eq!(id, 1);
        let expected =
            if cut == last.start { Verdict::Clean } else { Verdict::Torn(TornEvidence::PastFileEnd) };
        assert_eq!(verdict, expected, "cut at {cut}");
    }
}

#[test]
fn a_final_seal_ends_the_segment_and_an_idle_one_does_not() {
    let mut image = Image::new();
    image.data(&[b"a"], 0);
    image.seal(SealReason::Idle, 1);
    image.data(&[b"b"], 1);
    image.seal(SealReason::Close, 2);
    let at = image.bytes.len() as u64;
    image.zeros(1024);
    let (found, end) = scan(&image.bytes);
    assert_eq!((found.len(), end.offset), (2, at));
    assert_eq!(end.seal.map(|seal| seal.reason), Some(SealReason::Close));
    assert_eq!(end.attested.durable_entry_id, 2);
    assert_eq!(end.unproven_offset, None);
}

#[test]
fn a_checkpoint_or_a_later_segment_makes_a_short_log_corrupt() {
    let mut image = Image::new();
    image.data(&[b"a"], 0);
    let (_, end) = scan(&image.bytes);
    let proof = Proof::RequiredByCheckpoint { entry_id: 9, path: "c".into() };
    let outside = OutsideAttestation { entry_id: 9, proof: proof.clone() };
    let expected = Verdict::Corrupt(Check::LogEnd { last_entry_id: 1, required_entry_id: 9 }, proof);
    assert_eq!(judge(&end, 1, true, Some(&outside), "f"), expected);
    let satisfied = OutsideAttestation { entry_id: 1, ..outside };
    assert_eq!(judge(&end, 1, true, Some(&satisfied), "f"), Verdict::Clean);
}

#[test]
fn a_known_end_hides_what_was_cut_and_misses_nothing_before_it() {
    let mut image = Image::new();
    let kept = image.data(&[b"kept"], 0);
    let torn = image.data(&[&[7; 1000]], 1);
    image.bytes[torn.start + 600] ^= 1;
    let end = KnownEnd { offset: kept.end as u64, last_entry_id: 1 };
    let (found, scanned) = scan_with(&image.bytes, 1, Some(end));
    assert_eq!(found.len(), 1);
    assert_eq!(judge(&scanned, 1, true, None, "f"), Verdict::Clean);

    image.bytes[kept.start..kept.end].fill(0);
    let (_, scanned) = scan_with(&image.bytes, 1, Some(end));
    assert!(matches!(judge(&scanned, 0, true, None, "f"), Verdict::Torn(_)));
}

#[test]
fn what_is_not_attested_starts_at_a_frame_boundary() {
    let mut image = Image::new();
    image.data(&[b"a"], 0);
    image.data(&[b"b"], 1);
    let unproven = image.data(&[b"c"], 2);
    let (_, end) = scan(&image.bytes);
    assert_eq!(end.attested.durable_entry_id, 2);
    assert_eq!(end.unproven_offset, Some(unproven.start as u64));
}

#[test]
fn plausible_lengths_everywhere_cost_linear_time() {
    // Every unit behind a bad frame is a header that checks out and claims 64 MiB of payload.
    let mut image = Image::new();
    let bad = image.data(&[b"x"], 0);
    image.bytes[bad.start] ^= 1;
    let mut steps = 0;
    for unit in 0..2000u64 {
        let at = image.bytes.len() as u64;
        let mut forged = frame(
            FrameKind::Data,
            &[&100u32.to_le_bytes()[..], &[1; 100]].concat(),
            1,
            2 + unit,
            0,
            at,
            SALT,
            512,
        );
        forged[60] ^= 1;
        image.bytes.extend(forged);
    }
    let mut scanner = Scanner::new(&header(), image.bytes.len() as u64, None);
    let (mut from, mut to) = (0usize, 0usize);
    loop {
        match scanner.step(from as u64, &image.bytes[from..to]) {
            Step::Need { offset, bytes } => {
                steps += 1;
                from = offset as usize;
                to = from + bytes;
            }
            Step::Frame { .. } => {}
            Step::End => break,
        }
    }
    assert!(steps < 3 * image.bytes.len() / 512, "{steps} steps");
    assert_eq!(scanner.into_end().later_frames, 2000);
}

#[test]
fn openings_that_claim_the_rest_of_a_record_log_are_not_read_to_their_end() {
    let header = Header::new(FileKind::RecordLog, 512, 1, SALT);
    let mut bytes = header.encode().to_vec();
    let first = Opening { predecessor_salt: SALT, predecessor_end: 512, ..Opening::default() }.encode();
    bytes.extend(frame(FrameKind::Opening, &first, 0, 1, 0, 512, SALT, 512));
    bytes.extend([0xa5; 512]);
    let file_bytes = 512 * 1000;
    while bytes.len() < file_bytes {
        let at = bytes.len();
        let claimed = vec![0; file_bytes - at - FRAME_HEADER_BYTES];
        bytes.extend(&frame(FrameKind::Opening, &claimed, 0, 1, 0, at as u64, SALT, 512)[..512]);
    }
    let mut scanner = Scanner::new(&header, file_bytes as u64, None);
    let (mut from, mut to, mut most) = (0usize, 0usize, 0);
    loop {
        match scanner.step(from as u64, &bytes[from..to]) {
            Step::Need { offset, bytes } => {
                (from, to) = (offset as usize, offset as usize + bytes);
                most = most.max(bytes);
            }
            Step::Frame { .. } => {}
            Step::End => break,
        }
    }
    assert!(scanner.into_end().later_frames > 900);
    assert!(most <= 1024, "{most} bytes were asked for at once, to check what cannot be an opening");
}

/// Headers that check out at every place behind a bad frame, each claiming half of what is left, in segments and in record logs: the bytes that the scanner asks for are no more than a few times those
/// that there are. (Whatever it checksums, it asks for.)
#[test]
fn claims_of_half_of_what_is_left_ask_for_no_more_than_there_is() {
    const UNITS: usize = 200;
    for kind in [FileKind::Segment, FileKind::RecordLog] {
        for claimed in [FrameKind::Data, FrameKind::Opening, FrameKind::Seal] {
            let mut image = Image::new();
            let bad = image.data(&[b"x"], 0);
            image.bytes[bad.start] ^= 1;
            for unit in 0..UNITS {
                let at = image.bytes.len() as u64;
                // Half of what is left: each reaches a little further than the one before.
                let payload = vec![0; (UNITS - unit) / 2 * 512 + 200];
                let count = u32::from(claimed == FrameKind::Data);
                let forged = frame(claimed, &payload, count, 2 + unit as u64, 0, at, SALT, 512);
                // Only the header is kept: what it spans does not match.
                image.bytes.extend_from_slice(&forged[..48]);
                image.bytes.extend_from_slice(&[0xa5; 512 - 48]);
            }
            let header = Header::new(kind, 512, 1, SALT);
            let mut scanner = Scanner::new(&header, image.bytes.len() as u64, None);
            let (mut from, mut to, mut asked) = (0usize, 0usize, 0);
            loop {
                match scanner.step(from as u64, &image.bytes[from..to]) {
                    Step::Need { offset, bytes } => {
                        asked += bytes;
                        (from, to) = (offset as usize, offset as usize + bytes);
                    }
                    Step::Frame { .. } => {}
                    Step::End => break,
                }
            }
            let there = image.bytes.len();
            assert!(asked <= 4 * there, "{kind:?} {claimed:?}: {asked} bytes asked for, {there} there");
        }
    }
}

/// With frames aligned to 4096 bytes a header's sector is one of eight: any of them may be the lost one.
#[test]
fn any_set_of_sectors_of_a_last_frame_that_survives_is_torn_whatever_the_alignment() {
    let alignment = 4096;
    let header = Header::new(FileKind::Segment, alignment, 1, SALT);
    let mut written = header.encode().to_vec();
    written.resize(alignment as usize, 0);
    let at = |bytes: &[u8]| bytes.len() as u64;
    let opening =
        frame(FrameKind::Opening, &Opening::default().encode(), 0, 1, 0, at(&written), SALT, alignment);
    written.extend(opening);
    written.extend(data_frame(&[b"before"], 1, 0, at(&written), SALT, alignment));
    let start = written.len();
    written.extend(data_frame(&[&[7; 5000]], 2, 1, at(&written), SALT, alignment));
    let payload_sectors = 10;
    for survivors in 1u32..(1 << payload_sectors) - 1 {
        let mut bytes = written.clone();
        for sector in (0..payload_sectors).filter(|sector| survivors >> sector & 1 == 0) {
            bytes[start + sector * 512..][..512].fill(0);
        }
        let mut scanner = Scanner::new(&header, bytes.len() as u64, None);
        while !matches!(scanner.step(0, &bytes), Step::End) {}
        let verdict = judge(&scanner.into_end(), 1, true, None, "wal/wal_1.log");
        assert!(matches!(verdict, Verdict::Torn(_)), "{survivors:010b}: {verdict:?}");
    }
}
