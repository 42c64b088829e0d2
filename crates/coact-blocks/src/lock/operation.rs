//! The name of one acquire: what makes asking twice the same as asking once.

use std::{fmt, str::FromStr};

use coact_core::{Error, Result, env::Env};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of one acquire, 32 hexadecimal digits: two calls with the same operation in the same session are one acquire
/// and get the same grant.
///
/// # Examples
/// ```
/// use coact_blocks::lock::Operation;
///
/// let operation = Operation::from_idempotency_key("order 17");
/// assert_eq!(operation, operation.to_string().parse()?);
/// # Ok::<(), coact_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Operation(u128);

impl Operation {
    /// An operation that nobody else has.
    pub fn random(env: &Env) -> Self {
        Self(u128::from(env.random()) << 64 | u128::from(env.random()))
    }

    /// The operation of a caller's own text, such as the HTTP header `Idempotency-Key`: the first 16 bytes of its SHA-256.
    pub fn from_idempotency_key(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        Self(digest.iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte)))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operation({self})")
    }
}

impl FromStr for Operation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match u128::from_str_radix(text, 16) {
            Ok(bits) if text.len() == 32 && text.bytes().all(is_digit) => Ok(Self(bits)),
            _ => Err(Error::invalid(format!("operation {text:?} is not allowed: use 32 of 0-9 a-f"))),
        }
    }
}

impl TryFrom<String> for Operation {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Operation> for String {
    fn from(operation: Operation) -> Self {
        operation.to_string()
    }
}
