//! Entries that vouch for themselves: what is in one follows from its first bytes.

/// SplitMix64: small, seeded, repeatable.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Bytes before the pattern: nonce, place in its batch, size of its batch.
const HEAD: usize = 10;

/// An entry: the `index`-th of a batch of `count` that shares `nonce`.
pub fn make(nonce: u64, index: u8, count: u8, bytes: usize) -> Vec<u8> {
    let mut payload = nonce.to_le_bytes().to_vec();
    payload.extend([index, count]);
    let mut random = Random(nonce ^ u64::from(index));
    while payload.len() < HEAD + bytes {
        payload.extend(random.next().to_le_bytes());
    }
    payload.truncate(HEAD + bytes);
    payload
}

/// Nonce, place and size of the batch, if the entry is what was appended.
pub fn check(payload: &[u8]) -> Option<(u64, u8, u8)> {
    let nonce = u64::from_le_bytes(payload.get(..8)?.try_into().ok()?);
    let (index, count) = (*payload.get(8)?, *payload.get(9)?);
    (payload == make(nonce, index, count, payload.len() - HEAD) && index < count)
        .then_some((nonce, index, count))
}
