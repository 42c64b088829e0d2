//! Tokens: who carries one, is somebody. A node keeps only their digests.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use coact_core::{Error, ErrorKind, Result};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Bytes of a secret: 256 bits, so that its plain digest cannot be searched for.
const SECRET_BYTES: usize = 32;
const PREFIX: &str = "coact_";
/// Hexadecimal digits of an id.
const ID_LENGTH: usize = 8;

/// A token as its owner has it: `coact_<id>_<secret>`. `Debug` shows only the id.
#[derive(Clone)]
pub struct Token {
    secret: [u8; SECRET_BYTES],
    digest: TokenDigest,
}

impl Token {
    /// Makes a new one.
    ///
    /// # Errors
    /// `Unavailable` if the system has no randomness to give.
    pub fn generate() -> Result<Self> {
        let mut secret = [0; SECRET_BYTES];
        fill_with_secret_randomness(&mut secret)?;
        Ok(Self::of(secret))
    }

    /// Reads the text form; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let secret = BASE64.decode(secret).ok()?;
        let token = Self::of(secret.try_into().ok()?);
        // The id follows from the secret, so it also catches most slips of a hand.
        (token.id() == id).then_some(token)
    }

    /// The public part, which names the token in listings and logs.
    pub fn id(&self) -> String {
        self.digest.id()
    }

    /// What a node keeps of it.
    pub fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// The text form. This is the secret itself: show it once, to its owner.
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}_{}", self.id(), BASE64.encode(self.secret))
    }

    fn of(secret: [u8; SECRET_BYTES]) -> Self {
        Self { secret, digest: TokenDigest(Sha256::digest(secret).into()) }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id())
    }
}

/// The SHA-256 of a token's secret. It admits nobody, but is compared in constant time and never shown whole.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if text.len() != 2 * digest.len() || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(digest))
    }

    /// As 64 hexadecimal digits.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The id of the token: the first digits.
    pub fn id(self) -> String {
        let mut hex = self.to_hex();
        hex.truncate(ID_LENGTH);
        hex
    }

    /// Whether both are of the same token, in a time that does not depend on how alike they are.
    pub(super) fn matches(self, other: Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// A digest that is no token's, to compare with when there is nothing to compare with.
    pub(super) fn nobodys() -> Self {
        Self([0; 32])
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({}…)", self.id())
    }
}

/// Randomness that nobody can guess, straight from the system.
///
/// The one place that passes `Env` by: `Env` is seeded and replayed under the simulator, and a secret must never be.
fn fill_with_secret_randomness(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "the system gives no randomness for a token").with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_its_text_and_shows_only_its_id() {
        let token = Token::generate().expect("randomness");
        let text = token.expose();
        assert_eq!(text.len(), PREFIX.len() + ID_LENGTH + 1 + 43, "{text}");
        let read = Token::parse(&text).expect("a token");
        assert!(read.digest().matches(token.digest()));
        let secret = &text[PREFIX.len() + ID_LENGTH + 1..];
        for shown in [format!("{token:?}"), format!("{:?}", token.digest())] {
            assert!(shown.contains(&token.id()) && !shown.contains(secret), "{shown}");
        }
        let digest = TokenDigest::from_hex(&token.digest().to_hex()).expect("hex");
        assert!(digest.matches(token.digest()) && !digest.matches(TokenDigest::nobodys()));
    }

    #[test]
    fn no_two_are_alike() {
        let (one, other) = (Token::generate().expect("randomness"), Token::generate().expect("randomness"));
        assert_ne!(one.expose(), other.expose());
        assert!(!one.digest().matches(other.digest()));
    }

    #[test]
    fn anything_else_is_no_token() {
        let text = Token::generate().expect("randomness").expose();
        let wrong_id = text.replacen(&text[6..14], if &text[6..14] == "00000000" { "00000001" } else { "00000000" }, 1);
        for bad in ["", "coact_", "coact__", &text[1..], &text[..text.len() - 1], &format!("{text}A"), &wrong_id] {
            assert!(Token::parse(bad).is_none(), "{bad}");
        }
        let (long, signed) = ("é".repeat(32), format!("+{}", "0".repeat(63)));
        for bad in ["", "00", &"g".repeat(64), &long, &"0".repeat(63), &"0".repeat(65)] {
            assert!(TokenDigest::from_hex(bad).is_none(), "{bad}");
        }
        assert!(TokenDigest::from_hex(&signed).is_none_or(|digest| digest.to_hex() != signed));
    }
}
