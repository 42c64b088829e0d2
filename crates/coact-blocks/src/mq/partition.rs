//! Which partition a record goes to: the same as Kafka's own clients choose, so that both can produce one topic.

use coact_core::contract::stream::Record;

/// The partition of a key: `(murmur2(key) & 0x7fffffff) % partitions`.
///
/// A topic without partitions does not exist; for zero the answer is zero.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff).checked_rem(partitions).unwrap_or(0)
}

/// The partition of a record; one without a key goes where `spread` says.
pub(super) fn place_of(record: &Record, partitions: u32, spread: u64) -> u32 {
    match &record.key {
        Some(key) => partition_of(key, partitions),
        None => (spread % u64::from(partitions.max(1))) as u32,
    }
}

/// Spreads records without a key: one partition for a whole batch, another for the next, so that batches stay large.
#[derive(Debug)]
pub(super) struct Sticky {
    current: u32,
}

impl Sticky {
    pub(super) fn new(random: u64) -> Self {
        Self { current: random as u32 >> 1 }
    }

    pub(super) fn partition(&self, partitions: u32) -> u32 {
        self.current.checked_rem(partitions).unwrap_or(0)
    }

    /// The batch of this partition is on its way: the next records go elsewhere.
    pub(super) fn batch_taken(&mut self, partition: u32, partitions: u32) {
        if self.partition(partitions) == partition {
            self.current = partition.wrapping_add(1);
        }
    }
}

const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

fn murmur2(bytes: &[u8]) -> u32 {
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> SHIFT;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    for (place, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_kafka_does() {
        let known: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
        assert_eq!(partition_of(b"abc", 10), 7);
        assert_eq!(partition_of(b"abc", 0), 0);
    }

    #[test]
    fn records_without_a_key_stay_together_until_their_batch_is_taken() {
        let mut sticky = Sticky::new(0);
        let first = sticky.partition(3);
        assert_eq!(sticky.partition(3), first);
        sticky.batch_taken((first + 1) % 3, 3);
        assert_eq!(sticky.partition(3), first, "that was another partition's batch");
        let mut seen = vec![first];
        for _ in 0..2 {
            sticky.batch_taken(sticky.partition(3), 3);
            seen.push(sticky.partition(3));
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
    }
}
