//! What a disk was asked and answered, in order, and what a power cut may leave of it.
//!
//! Lives here: the log and the choice of crash states. Not here: who asks (`fuse.rs`), what file systems and
//! logs make of a crash state.
//!
//! Invariant: a crash state is one that an honest disk may show. It holds every write that was answered
//! before a flush arrived which was answered by then; of the other writes any set of sectors. A flush covers
//! nothing that was in flight when it arrived.

use crate::image::{BLOCK, Image, SECTOR};
use crate::model::Promise;
use crate::random::Random;
use std::sync::Arc;

/// A place in the log: how many events are before it.
pub type Position = usize;

#[derive(Clone, Debug)]
pub enum Event {
    WriteArrived,
    WriteAnswered,
    FlushArrived,
    FlushAnswered,
    /// Somebody was told this.
    Promised(Promise),
}

#[derive(Clone)]
pub struct Write {
    pub offset: u64,
    pub bytes: Arc<[u8]>,
    pub arrived: Position,
    pub answered: Option<Position>,
}

#[derive(Clone)]
pub struct Flush {
    pub arrived: Position,
    pub answered: Option<Position>,
}

#[derive(Clone, Default)]
pub struct Log {
    pub events: Vec<Event>,
    pub writes: Vec<Write>,
    pub flushes: Vec<Flush>,
}

impl Log {
    pub fn write_arrived(&mut self, offset: u64, bytes: &[u8]) -> usize {
        self.writes.push(Write { offset, bytes: bytes.into(), arrived: self.events.len(), answered: None });
        self.events.push(Event::WriteArrived);
        self.writes.len() - 1
    }

    pub fn write_answered(&mut self, write: usize) {
        self.writes[write].answered = Some(self.events.len());
        self.events.push(Event::WriteAnswered);
    }

    pub fn flush_arrived(&mut self) -> usize {
        self.flushes.push(Flush { arrived: self.events.len(), answered: None });
        self.events.push(Event::FlushArrived);
        self.flushes.len() - 1
    }

    pub fn flush_answered(&mut self, flush: usize) {
        self.flushes[flush].answered = Some(self.events.len());
        self.events.push(Event::FlushAnswered);
    }

    /// What was promised by `cut`, on top of `before`.
    pub fn promised(&self, cut: Position, before: Promise) -> Promise {
        self.events[..cut].iter().fold(before, |promise, event| match event {
            Event::Promised(more) => promise.and(*more),
            _ => promise,
        })
    }

    /// Where the last flush arrived that was answered by `cut`; a disk that lies does nothing for the last
    /// `lies` of them.
    fn covered_until(&self, cut: Position, lies: usize) -> Position {
        let mut arrived: Vec<Position> = self
            .flushes
            .iter()
            .filter(|flush| flush.answered.is_some_and(|at| at < cut))
            .map(|flush| flush.arrived)
            .collect();
        arrived.sort_unstable();
        arrived.len().checked_sub(1 + lies).map_or(0, |index| arrived[index])
    }

    /// A place to cut the power at: behind a promise or a write, about a flush, or anywhere.
    pub fn choose_cut(&self, random: &mut Random) -> Position {
        let any = random.below(self.events.len() as u64 + 1) as usize;
        let wanted = random.below(10);
        let from_here = |event: &Event| match wanted {
            0..=3 => matches!(event, Event::Promised(_)),
            4..=5 => matches!(event, Event::FlushAnswered),
            6..=8 => matches!(event, Event::WriteArrived),
            _ => false,
        };
        match self.events[any..].iter().position(from_here) {
            // Before or behind the flush; always behind a promise or a write.
            Some(index) if !(4..=5).contains(&wanted) || random.one_in(2) => any + index + 1,
            Some(index) => any + index,
            None => any,
        }
    }

    /// The disk as a power cut at `cut` may leave it.
    pub fn crash(
        &self,
        base: &Image,
        cut: Position,
        choice: Choice,
        random: &mut Random,
        lies: usize,
    ) -> Crash {
        let covered_until = self.covered_until(cut, lies);
        let mut image = base.clone();
        let arrived = || self.writes.iter().filter(|write| write.arrived < cut);
        let is_covered = |write: &Write| write.answered.is_some_and(|at| at < covered_until);
        for write in arrived().filter(|write| is_covered(write)) {
            image.write(write.offset, &write.bytes);
        }
        let (mut kept, mut lost) = (0, 0);
        let open: Vec<&Write> = arrived().filter(|write| !is_covered(write)).collect();
        let split = random.below(open.len() as u64 + 1) as usize;
        let share = random.pick(&[10, 50, 90]);
        for (index, write) in open.iter().enumerate() {
            let whole = match choice.which {
                Which::Nothing => Some(false),
                Which::Everything => Some(true),
                Which::Prefix => Some(index < split),
                Which::AllButOne => Some(index != split),
                Which::OnlyOne => Some(index == split),
                Which::Some => None,
            };
            let unit = choice.unit.unwrap_or(write.bytes.len());
            for (piece, bytes) in write.bytes.chunks(unit).enumerate() {
                let torn = Which::is_torn(choice.which) && index == split;
                let survives = match whole {
                    Some(all) if !torn => all,
                    _ => random.below(100) < share,
                };
                if survives {
                    image.write(write.offset + (piece * unit) as u64, bytes);
                    kept += bytes.len().div_ceil(SECTOR);
                } else {
                    lost += bytes.len().div_ceil(SECTOR);
                }
            }
        }
        Crash { image, kept, lost }
    }
}

/// A disk after a power cut.
pub struct Crash {
    pub image: Image,
    /// Sectors of un-flushed writes that survived.
    pub kept: usize,
    /// And that did not.
    pub lost: usize,
}

/// How the survivors are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    pub which: Which,
    /// Bytes that survive or not together; `None`: whole writes.
    pub unit: Option<usize>,
}

/// Which of the un-flushed writes survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Nothing,
    Everything,
    /// The first so many, the next one torn.
    Prefix,
    AllButOne,
    OnlyOne,
    /// Each piece by itself.
    Some,
}

impl Which {
    fn is_torn(self) -> bool {
        matches!(self, Self::Prefix | Self::AllButOne | Self::OnlyOne)
    }
}

impl Choice {
    pub fn random(random: &mut Random) -> Self {
        use Which::{AllButOne, Everything, Nothing, OnlyOne, Prefix, Some as Each};
        let which =
            random.pick(&[Nothing, Nothing, Everything, Prefix, AllButOne, OnlyOne, Each, Each, Each]);
        let unit = random.pick(&[Some(SECTOR), Some(SECTOR), Some(BLOCK), None]);
        Self { which, unit }
    }

    /// The same with whole file-system blocks.
    pub fn of_blocks(self) -> Self {
        Self { unit: self.unit.map(|unit| unit.max(BLOCK)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Choice = Choice { which: Which::Nothing, unit: None };

    fn sector(image: &Image, number: u64) -> u8 {
        let mut out = [0; SECTOR];
        image.read(number * SECTOR as u64, &mut out);
        assert!(out.iter().all(|byte| *byte == out[0]), "a torn sector");
        out[0]
    }

    /// Write 0 is answered before the flush arrives, write 1 while it runs, write 2 arrived before and is
    /// answered behind it.
    fn log() -> Log {
        let mut log = Log::default();
        let first = log.write_arrived(0, &[1; SECTOR]);
        let late = log.write_arrived(SECTOR as u64, &[2; SECTOR]);
        log.write_answered(first);
        let flush = log.flush_arrived();
        let during = log.write_arrived(2 * SECTOR as u64, &[3; SECTOR]);
        log.write_answered(during);
        log.flush_answered(flush);
        log.write_answered(late);
        log.events.push(Event::Promised(Promise { entries: 5, ..Promise::default() }));
        log
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it_arrived_and_only_once_it_is_answered() {
        let log = log();
        let base = Image::new(1 << 20);
        let left = |cut| {
            let crash = log.crash(&base, cut, NOTHING, &mut Random(1), 0);
            [0, 1, 2].map(|number| sector(&crash.image, number))
        };
        let end = log.events.len();
        assert_eq!(left(end), [1, 0, 0]);
        assert_eq!(left(7), [1, 0, 0], "the flush is answered by then");
        assert_eq!(left(6), [0, 0, 0], "it is not");
        let lied = log.crash(&base, end, NOTHING, &mut Random(1), 1);
        assert_eq!(sector(&lied.image, 0), 0);
    }

    #[test]
    fn a_promise_counts_from_where_it_was_given() {
        let log = log();
        let promised = |cut| log.promised(cut, Promise::default()).entries;
        assert_eq!((promised(log.events.len() - 1), promised(log.events.len())), (0, 5));
    }

    #[test]
    fn every_set_of_uncovered_sectors_and_nothing_else_is_chosen() {
        let log = log();
        let base = Image::new(1 << 20);
        let mut seen = std::collections::BTreeSet::new();
        let mut random = Random(3);
        for _ in 0..2000 {
            let choice = Choice::random(&mut random);
            let crash = log.crash(&base, log.events.len(), choice, &mut random, 0);
            seen.insert([0, 1, 2].map(|number| sector(&crash.image, number)));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [[1, 0, 0], [1, 0, 3], [1, 2, 0], [1, 2, 3]]);
    }

    #[test]
    fn writes_tear_at_sectors_and_an_older_version_may_be_what_survives() {
        let mut log = Log::default();
        log.write_arrived(0, &[1; 2 * SECTOR]);
        log.write_answered(0);
        log.write_arrived(0, &[2; 2 * SECTOR]);
        let base = Image::new(1 << 20);
        let choice = Choice { which: Which::Some, unit: Some(SECTOR) };
        let mut seen = std::collections::BTreeSet::new();
        let mut random = Random(3);
        for _ in 0..500 {
            let crash = log.crash(&base, log.events.len(), choice, &mut random, 0);
            seen.insert([0, 1].map(|number| sector(&crash.image, number)));
        }
        assert_eq!(seen.len(), 9, "{seen:?}");
    }
}
