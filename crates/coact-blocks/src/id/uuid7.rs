//! UUIDs of version 7 (RFC 9562): 48 bits of time, 74 random bits, in the text that databases know.

use std::{fmt, str::FromStr};

use coact_core::{Error, Result, env::Env};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ascending::Ascending;

/// Makes UUIDs of version 7 that strictly increase within this generator, without a store. Share one by reference or `Arc`.
///
/// In the same millisecond the random part grows by a random step of 32 bits ("monotonic random" of RFC 9562), so that the
/// next one cannot be guessed; a clock that steps back is not followed. Between processes they are unique as far as their
/// random bits are, and ordered as far as the clocks agree.
#[derive(Debug)]
pub struct Uuid7Generator {
    env: Env,
    ascending: Ascending,
}

/// A UUID of version 7: greater ones were made later. As text, 36 characters: `019b76da-a800-7…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid7(u128);

const RANDOM_BITS: u32 = 74;
/// The random bits below the variant; the other 12 lie between version and variant.
const LOW_BITS: u32 = 62;
const VERSION: u128 = 7 << 76;
const VARIANT: u128 = 0b10 << LOW_BITS;

impl Uuid7Generator {
    /// A generator with this environment's clock and randomness.
    pub fn new(env: &Env) -> Self {
        Self { env: env.clone(), ascending: Ascending::new(env, RANDOM_BITS) }
    }

    /// The next UUID.
    pub fn next(&self) -> Uuid7 {
        let step = u128::from(self.env.random() >> 32) + 1;
        let position = self.ascending.next(step);
        let high = position.random >> LOW_BITS;
        let low = position.random & ((1 << LOW_BITS) - 1);
        Uuid7(u128::from(position.ms) << 80 | VERSION | high << 64 | VARIANT | low)
    }
}

impl Uuid7 {
    /// The UUID with these bits.
    ///
    /// # Errors
    /// `Invalid` if they are no UUID of version 7.
    pub fn new(bits: u128) -> Result<Self> {
        let uuid = uuid::Uuid::from_u128(bits);
        if uuid.get_version_num() != 7 || uuid.get_variant() != uuid::Variant::RFC4122 {
            return Err(Error::invalid(format!("{uuid} is no UUID of version 7: it has no time to sort by")));
        }
        Ok(Self(bits))
    }

    /// The bits.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// When it was made, in milliseconds since 1970, by the clock of its generator.
    pub const fn timestamp_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }

    /// The 74 bits that are neither time nor version nor variant.
    pub const fn random(self) -> u128 {
        ((self.0 >> 64) & 0xfff) << LOW_BITS | self.0 & ((1 << LOW_BITS) - 1)
    }
}

impl fmt::Display for Uuid7 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(uuid::Uuid::from_u128(self.0).hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
    }
}

impl FromStr for Uuid7 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let uuid = uuid::Uuid::try_parse(text).map_err(|_| {
            Error::invalid(format!("{text:?} is no UUID: use 32 hexadecimal digits as 8-4-4-4-12, version 7"))
        })?;
        Self::new(uuid.as_u128())
    }
}

impl Serialize for Uuid7 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uuid7 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
