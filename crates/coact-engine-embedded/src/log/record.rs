//! One batch as it lies in a segment.

pub(super) const RECORD_HEADER_BYTES: usize = 32;
const MAGIC: u32 = 0x7ba7_c0ac;
/// Batches begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) length: u32,
    pub(super) sequence: u64,
    pub(super) chain: u32,
    payload_crc: u32,
    pub(super) unsynced: u32,
}

impl RecordHeader {
    pub(super) fn new(sequence: u64, chain: u32, unsynced: u32, payload: &[u8]) -> Self {
        Self { length: payload.len() as u32, sequence, chain, payload_crc: crc32c::crc32c(payload), unsynced }
    }

    /// Writes the batch as it lies in the segment with this mask.
    pub(super) fn encode_with(&self, payload: &[u8], mask: Mask, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encode());
        out.extend_from_slice(payload);
        out.resize(extent(payload.len()) as usize, 0);
        mask.apply(0, &mut out[RECORD_HEADER_BYTES..]);
    }

    fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.chain.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.unsynced.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no header that was written.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if word(0)? != MAGIC || word(28)? != crc32c::crc32c(bytes.get(..28)?) {
            return None;
        }
        let sequence = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        Some(Self { length: word(4)?, sequence, chain: word(16)?, payload_crc: word(20)?, unsynced: word(24)? })
    }

    /// What the next batch has as its chain.
    pub(super) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.encode()[..28])
    }

    pub(super) fn extent(&self) -> u64 {
        extent(self.length as usize)
    }

    /// Takes the payload out of the bytes after the header, in place; false if it is not what was written.
    pub(super) fn reveal(&self, rest: &mut [u8], mask: Mask) -> bool {
        mask.apply(0, rest);
        let (payload, padding) = rest.split_at(self.length as usize);
        padding.iter().all(|byte| *byte == 0) && crc32c::crc32c(payload) == self.payload_crc
    }

    /// Everything up to this sequence was durable when the batch was written.
    pub(super) fn proves_durable(&self) -> u64 {
        self.sequence.saturating_sub(1).saturating_sub(self.unsynced.into())
    }
}

/// How much room a batch takes.
pub(super) fn extent(payload: usize) -> u64 {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(ALIGNMENT) as u64
}

/// What payload and padding of a segment's batches are masked with: padding too, since a sector may hold only the last few
/// bytes of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask(u64);

impl Mask {
    /// The mask of the segment that begins with this sequence.
    pub(super) fn of(first: u64) -> Self {
        // SplitMix64's finalizer: any sequence gives bytes that are all over the place.
        let mut word = first.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // No byte of the mask is zero, so no padding looks unwritten.
        Self(word ^ (word >> 31) | 0x0101_0101_0101_0101)
    }

    /// Masks, and unmasks, bytes that begin at a position, of which only the place in its eight bytes counts.
    pub(super) fn apply(self, position: u64, bytes: &mut [u8]) {
        let mask = self.0.rotate_right(8 * (position % ALIGNMENT as u64) as u32);
        let mut words = bytes.chunks_exact_mut(ALIGNMENT);
        for word in &mut words {
            let masked = word.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)) ^ mask;
            word.copy_from_slice(&masked.to_le_bytes());
        }
        for (byte, mask) in words.into_remainder().iter_mut().zip(mask.to_le_bytes()) {
            *byte ^= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_unmasked_as_the_whole_was_masked() {
        let (mask, plain) = (Mask::of(7), (0..100).collect::<Vec<u8>>());
        let mut masked = plain.clone();
        mask.apply(0, &mut masked);
        assert!(masked.iter().zip(&plain).all(|(masked, plain)| masked != plain), "every byte is masked");
        for from in 0..plain.len() {
            let mut part = masked[from..].to_vec();
            mask.apply(from as u64, &mut part);
            assert_eq!(part, plain[from..], "from {from}");
        }
    }
}
