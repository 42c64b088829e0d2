//! The hash ring: which instance a key belongs to, the same in every process, changing little when instances change.

/// Points on a circle of hashes. After Karger et al., "Consistent Hashing and Random Trees" (1997), with as many points
/// for each instance as it weighs.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Hash and owner, in the order of hashes.
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// A ring of instances by their ids and weights; the owner of a point is the place in this order.
    pub(super) fn new<'a>(instances: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut points = Vec::new();
        for (owner, (id, weight)) in instances.enumerate() {
            let seed = hash(id.as_bytes());
            points.extend((0..weight).map(|point| (mix(seed.wrapping_add(mix(u64::from(point)))), owner as u32)));
        }
        points.sort_unstable();
        Self { points }
    }

    /// The owner of the first point at or after the key's hash.
    pub(super) fn owner(&self, key: &str) -> Option<usize> {
        let at = hash(key.as_bytes());
        let next = self.points.partition_point(|(point, _)| *point < at);
        let (_, owner) = self.points.get(next).or_else(|| self.points.first())?;
        Some(*owner as usize)
    }
}

/// FNV-1a, mixed: stable over versions and machines, which the standard library's hasher does not promise.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(fnv)
}

/// The finaliser of SplitMix64: near hashes end up far from each other.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other processes, of other versions, must agree.
    #[test]
    fn hashes_stay_what_they_are() {
        assert_eq!((hash(b""), hash(b"user-1")), (HASH_OF_NOTHING, HASH_OF_USER_1));
        let ring = Ring::new([("a", 100), ("b", 100), ("c", 100)].into_iter());
        let owners: Vec<_> = (0..8).map(|key| ring.owner(&key.to_string()).expect("has points")).collect();
        assert_eq!(owners, OWNERS);
        assert_eq!(Ring::default().owner("x"), None);
    }

    const HASH_OF_NOTHING: u64 = 0xc3817c016ba4ff30;
    const HASH_OF_USER_1: u64 = 0xf16d8d440fbb25d5;
    const OWNERS: [usize; 8] = [0, 1, 1, 0, 2, 0, 0, 2];
}
