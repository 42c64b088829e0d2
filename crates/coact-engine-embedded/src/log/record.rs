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

    pub(super) fn encode_with(&self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encode());
        out.extend_from_slice(payload);
        out.resize(extent(payload.len()) as usize, 0);
        mask(self.sequence, &mut out[RECORD_HEADER_BYTES..]);
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
    pub(super) fn reveal(&self, rest: &mut [u8]) -> bool {
        mask(self.sequence, rest);
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

/// Masks, and unmasks: payload and padding, since a sector may hold only the last few bytes of a batch.
fn mask(sequence: u64, bytes: &mut [u8]) {
    // SplitMix64's finalizer: any sequence gives bytes that are all over the place.
    let mut word = sequence.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // No byte of the mask is zero, so no padding looks unwritten.
    let mask = (word ^ (word >> 31) | 0x0101_0101_0101_0101).to_le_bytes();
    for chunk in bytes.chunks_mut(mask.len()) {
        for (byte, mask) in chunk.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}
