//! ULIDs: 48 bits of time, 80 random bits, 26 characters that sort as they were made.

use std::{fmt, str::FromStr};

use coact_core::{Error, Result, env::Env};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ascending::Ascending;

/// Makes ULIDs that strictly increase within this generator, without a store. Share one by reference or `Arc`.
///
/// In the same millisecond the random part grows by one; a clock that steps back is not followed. Between processes they
/// are unique as far as 80 random bits are, and ordered as far as the clocks agree.
#[derive(Debug)]
pub struct UlidGenerator(Ascending);

/// A ULID: greater ones were made later. As text, 26 characters of Crockford's base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ulid(u128);

const RANDOM_BITS: u32 = 80;

impl UlidGenerator {
    /// A generator with this environment's clock and randomness.
    pub fn new(env: &Env) -> Self {
        Self(Ascending::new(env, RANDOM_BITS))
    }

    /// The next ULID.
    pub fn next(&self) -> Ulid {
        let position = self.0.next(1);
        Ulid(u128::from(position.ms) << RANDOM_BITS | position.random)
    }
}

impl Ulid {
    /// The ULID with these bits.
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// When it was made, in milliseconds since 1970, by the clock of its generator.
    pub const fn timestamp_ms(self) -> u64 {
        (self.0 >> RANDOM_BITS) as u64
    }

    /// The 80 bits after the time.
    pub const fn random(self) -> u128 {
        self.0 & ((1 << RANDOM_BITS) - 1)
    }
}

impl fmt::Display for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; ::ulid::ULID_LEN];
        f.pad(::ulid::Ulid(self.0).array_to_str(&mut text))
    }
}

impl FromStr for Ulid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            || Error::invalid(format!("{text:?} is no ULID: use 26 characters of 0-9 A-Z without I L O U, up to 7ZZ…"));
        // 26 characters have 130 bits: the first must not use the two above.
        if text.bytes().next().is_none_or(|first| !(b'0'..=b'7').contains(&first)) {
            return Err(invalid());
        }
        ::ulid::Ulid::from_string(text).map(|ulid| Self(ulid.0)).map_err(|_| invalid())
    }
}

impl Serialize for Ulid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ulid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
