//! How the bits of an id are divided.

use std::{fmt, str::FromStr};

use coact_core::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Id;

/// Where the time of every layout begins: 2024-01-01T00:00:00Z, in milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_704_067_200_000;

/// The bits of an id from the highest: milliseconds since [`EPOCH_MS`], worker number, sequence within the millisecond.
///
/// Written as `41/10/12`; `std` and `js53` name the two usual ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    time_bits: u32,
    worker_bits: u32,
    sequence_bits: u32,
}

/// What an id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Decoded {
    /// When it was issued, in milliseconds since 1970, by the clock of its generator.
    pub unix_ms: u64,
    /// The number of the worker that issued it.
    pub worker: u32,
    /// Its place among that worker's ids of that millisecond.
    pub sequence: u64,
}

impl Layout {
    /// `41/10/12`: 1,024 workers, 4,096 ids a millisecond and worker, until 2093.
    pub const STD: Layout = Layout { time_bits: 41, worker_bits: 10, sequence_bits: 12 };
    /// `41/6/6`: 64 workers, 64 ids a millisecond and worker, until 2093; JavaScript's numbers hold it exactly.
    pub const JS53: Layout = Layout { time_bits: 41, worker_bits: 6, sequence_bits: 6 };

    /// A layout of one's own: 39 to 48 bits of time (17 years and more), 1 to 16 of worker, 1 to 23 of sequence, and at
    /// most 63 in all, so that an id fits a signed integer.
    ///
    /// # Errors
    /// `Invalid`, naming the rule.
    pub fn new(time_bits: u32, worker_bits: u32, sequence_bits: u32) -> Result<Self> {
        let layout = Self { time_bits, worker_bits, sequence_bits };
        for (what, bits, allowed) in
            [("time", time_bits, 39..=48), ("worker", worker_bits, 1..=16), ("sequence", sequence_bits, 1..=23)]
        {
            if !allowed.contains(&bits) {
                return Err(Error::invalid(format!(
                    "layout {layout} is not allowed: it has {bits} {what} bits, use {} to {}",
                    allowed.start(),
                    allowed.end()
                )));
            }
        }
        if time_bits + worker_bits + sequence_bits > 63 {
            return Err(Error::invalid(format!(
                "layout {layout} is not allowed: it has {} bits, at most 63 fit a signed integer",
                time_bits + worker_bits + sequence_bits
            )));
        }
        Ok(layout)
    }

    /// Reads `41/10/12`, `std` or `js53`.
    ///
    /// # Errors
    /// `Invalid`, naming the rule.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "std" => return Ok(Self::STD),
            "js53" => return Ok(Self::JS53),
            _ => {}
        }
        let bits: Option<Vec<u32>> = text.split('/').map(|bits| bits.parse().ok()).collect();
        match bits.as_deref() {
            Some(&[time, worker, sequence]) if time.max(worker).max(sequence) < 64 => Self::new(time, worker, sequence),
            _ => Err(Error::invalid(format!(
                "layout {text:?} is not known: write the bits of time, worker and sequence as 41/10/12, or std or js53"
            ))),
        }
    }

    /// What an id of this layout says. Pure: it asks no store, and cannot tell an id of another layout.
    pub const fn decode(&self, id: Id) -> Decoded {
        let number = id.get();
        Decoded {
            unix_ms: (number >> (self.worker_bits + self.sequence_bits)) + EPOCH_MS,
            worker: ((number >> self.sequence_bits) & (self.workers() as u64 - 1)) as u32,
            sequence: number & (self.per_ms() - 1),
        }
    }

    /// How many workers there can be.
    pub const fn workers(&self) -> u32 {
        1 << self.worker_bits
    }

    /// How many ids one worker can issue in a millisecond.
    pub const fn per_ms(&self) -> u64 {
        1 << self.sequence_bits
    }

    /// The first millisecond since 1970 that it cannot express.
    pub const fn ends_ms(&self) -> u64 {
        EPOCH_MS + (1 << self.time_bits)
    }

    pub(super) const fn worker_bits(&self) -> u32 {
        self.worker_bits
    }

    pub(super) const fn sequence_bits(&self) -> u32 {
        self.sequence_bits
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::STD
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.time_bits, self.worker_bits, self.sequence_bits)
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Layout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_the_bits_say() {
        let id = Id::new((1_000 << 22) | (5 << 12) | 7);
        let decoded = Layout::STD.decode(id);
        assert_eq!(decoded, Decoded { unix_ms: EPOCH_MS + 1_000, worker: 5, sequence: 7 });
        assert_eq!((Layout::STD.workers(), Layout::STD.per_ms()), (1_024, 4_096));
        assert_eq!((Layout::JS53.workers(), Layout::JS53.per_ms()), (64, 64));
        assert_eq!(Layout::STD.ends_ms() / (1_000 * 86_400) / 365, 2093 - 1970);
    }

    #[test]
    fn reads_what_it_writes() {
        for text in ["41/10/12", "41/6/6", "39/1/23", "48/2/13"] {
            assert_eq!(Layout::parse(text).expect("valid").to_string(), text);
        }
        assert_eq!(Layout::parse("std").expect("valid"), Layout::STD);
        assert_eq!(Layout::parse("js53").expect("valid"), Layout::JS53);
        let json = serde_json::to_string(&Layout::STD).expect("serializes");
        assert_eq!(serde_json::from_str::<Layout>(&json).expect("parses"), Layout::STD);
    }

    #[test]
    fn says_which_rule_a_layout_breaks() {
        let message = |text: &str| Layout::parse(text).expect_err("invalid").to_string();
        assert_eq!(message("38/10/12"), "layout 38/10/12 is not allowed: it has 38 time bits, use 39 to 48");
        assert_eq!(message("41/17/5"), "layout 41/17/5 is not allowed: it has 17 worker bits, use 1 to 16");
        assert_eq!(message("41/10/0"), "layout 41/10/0 is not allowed: it has 0 sequence bits, use 1 to 23");
        assert_eq!(
            message("42/10/12"),
            "layout 42/10/12 is not allowed: it has 64 bits, at most 63 fit a signed integer"
        );
        for unknown in ["", "41/10", "41/10/12/0", "41-10-12", "a/b/c", "-1/2/3", "4294967295/1/1"] {
            assert!(message(unknown).contains("write the bits of time, worker and sequence as 41/10/12"), "{unknown}");
        }
    }
}
