//! What was appended, and what was promised of it.
//!
//! An entry's payload follows from a number of its own (its nonce) and its length, so that a table of ids,
//! nonces and lengths is all that has to be remembered; a record's follows from its place.

use crate::random::{Random, mix};
use std::collections::BTreeMap;

/// What somebody was told that a power cut cannot take away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// The log's entries up to this one.
    pub entries: u64,
    /// A checkpoint of this entry, or a newer one.
    pub checkpoint: u64,
    /// So many records.
    pub records: u64,
}

impl Promise {
    pub fn and(self, more: Self) -> Self {
        Self {
            entries: self.entries.max(more.entries),
            checkpoint: self.checkpoint.max(more.checkpoint),
            records: self.records.max(more.records),
        }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    pub nonce: u64,
    pub bytes: usize,
}

impl Payload {
    pub fn random(random: &mut Random) -> Self {
        let bytes = random.pick(&[0, 1, 30, 250, 480, 1000, 1000, 4000, 9000]);
        Self { nonce: random.next(), bytes }
    }

    /// Of which a few make a large flush.
    pub fn large(random: &mut Random) -> Self {
        let bytes = random.pick(&[4000, 9000, 20_000, 60_000]);
        Self { nonce: random.next(), bytes }
    }

    pub fn of_record(index: u64) -> Self {
        Self::random(&mut Random(mix(index)))
    }

    /// Some are all zeros: those must not pass for sectors that were never written.
    pub fn make(self) -> Vec<u8> {
        if self.nonce % 4 == 0 {
            return vec![0; self.bytes];
        }
        let mut random = Random(self.nonce);
        let mut bytes = Vec::with_capacity(self.bytes + 8);
        while bytes.len() < self.bytes {
            bytes.extend(random.next().to_le_bytes());
        }
        bytes.truncate(self.bytes);
        bytes
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub payload: Payload,
    /// The last entry of its batch.
    pub batch_last: u64,
}

/// The state that the entries make, as a checkpoint carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    pub through: u64,
    pub hash: u64,
}

impl Fold {
    pub fn apply(&mut self, entry_id: u64, payload: &[u8]) {
        self.through = entry_id;
        let mut hash = mix(self.hash ^ entry_id) ^ payload.len() as u64;
        for chunk in payload.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash ^ u64::from_le_bytes(word));
        }
        self.hash = hash;
    }

    pub fn to_bytes(self) -> Vec<u8> {
        [self.through.to_le_bytes(), self.hash.to_le_bytes()].concat()
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        (bytes.len() == 16).then_some(Self { through: word(0)?, hash: word(8)? })
    }
}

/// Everything that was appended to one log.
#[derive(Clone, Default)]
pub struct Model {
    pub entries: BTreeMap<u64, Entry>,
    /// Appended by calls that failed, so that nobody knows their ids: any of them may be found.
    pub uncertain: Vec<Payload>,
    /// The state through the last entry before the first id that is not known (yet).
    folds: Vec<Fold>,
}

impl Model {
    /// A batch was appended with these ids.
    pub fn appended(&mut self, first: u64, payloads: &[Payload]) {
        let batch_last = first + payloads.len() as u64 - 1;
        for (entry_id, payload) in (first..).zip(payloads) {
            self.entries.insert(entry_id, Entry { payload: *payload, batch_last });
        }
        self.fold();
    }

    fn fold(&mut self) {
        if self.folds.is_empty() {
            self.folds.push(Fold::default());
        }
        while let Some(entry) = self.entries.get(&(self.folds.len() as u64)) {
            let mut fold = self.folds[self.folds.len() - 1];
            fold.apply(fold.through + 1, &entry.payload.make());
            self.folds.push(fold);
        }
    }

    /// The state through the last entry that all entries before are known of.
    pub fn newest_fold(&self) -> Fold {
        self.folds.last().copied().unwrap_or_default()
    }

    pub fn fold_through(&self, entry_id: u64) -> Option<Fold> {
        match entry_id {
            0 => Some(Fold::default()),
            _ => self.folds.get(usize::try_from(entry_id).ok()?).copied(),
        }
    }

    /// Whether `bytes` is what entry `entry_id` holds. One of the uncertain entries may be recognised by it.
    pub fn check(&mut self, entry_id: u64, bytes: &[u8]) -> Result<(), String> {
        let expected = match self.entries.get(&entry_id) {
            Some(entry) => entry.payload,
            None => {
                let found = self.uncertain.iter().find(|payload| payload.make() == bytes).copied();
                let payload = found.ok_or_else(|| format!("entry {entry_id} was never appended"))?;
                self.entries.insert(entry_id, Entry { payload, batch_last: entry_id });
                self.fold();
                payload
            }
        };
        if expected.make() == bytes {
            return Ok(());
        }
        Err(format!("entry {entry_id} is not what was appended ({} bytes, {expected:?})", bytes.len()))
    }

    /// Whether a log may end here.
    pub fn check_end(&self, last: u64) -> Result<(), String> {
        match self.entries.get(&last) {
            Some(entry) if entry.batch_last != last => {
                Err(format!("the log ends at entry {last}, within a batch through {}", entry.batch_last))
            }
            _ => Ok(()),
        }
    }

    /// Recovery cut the log behind `last`.
    pub fn cut(&mut self, last: u64) {
        self.entries.split_off(&(last + 1));
        self.uncertain.clear();
        self.folds.truncate(last as usize + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_contents_cut_batches_and_strangers_are_found() {
        let payload = |nonce| Payload { nonce, bytes: 100 };
        let mut model = Model::default();
        model.appended(2, &[payload(7), payload(9)]);
        assert_eq!(model.newest_fold().through, 0, "entry 1 is not known yet");
        model.appended(1, &[payload(5)]);
        assert_eq!(model.newest_fold().through, 3);
        assert!(model.check(2, &payload(7).make()).is_ok());
        assert!(model.check(2, &payload(9).make()).is_err());
        assert!(model.check(4, &payload(11).make()).is_err());
        model.uncertain.push(payload(11));
        assert!(model.check(4, &payload(11).make()).is_ok());
        assert!(model.check_end(1).is_ok() && model.check_end(2).is_err() && model.check_end(3).is_ok());
        model.cut(1);
        assert_eq!((model.newest_fold().through, model.entries.len()), (1, 1));
    }
}
