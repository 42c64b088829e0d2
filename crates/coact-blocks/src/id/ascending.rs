//! Time and randomness that grow: what ULIDs and UUIDv7s have in common.

use coact_core::env::Env;
use parking_lot::Mutex;

/// Issues pairs of a millisecond and a random part, each greater than the one before.
#[derive(Debug)]
pub(super) struct Ascending {
    env: Env,
    /// How many bits the random part has.
    random_bits: u32,
    last: Mutex<Option<Position>>,
}

/// What an id is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// Milliseconds since 1970, in 48 bits.
    pub(super) ms: u64,
    pub(super) random: u128,
}

const MS_MAX: u64 = (1 << 48) - 1;

impl Ascending {
    pub(super) fn new(env: &Env, random_bits: u32) -> Self {
        Self { env: env.clone(), random_bits, last: Mutex::new(None) }
    }

    /// The next pair. In the millisecond of the last one, or while the clock is behind it, the random part grows by `step`;
    /// when that is used up, the next millisecond begins early.
    pub(super) fn next(&self, step: u128) -> Position {
        let mut last = self.last.lock();
        let now = self.env.wall_ms().min(MS_MAX);
        let next = match *last {
            Some(last) if now <= last.ms => match last.random + step {
                random if random >> self.random_bits == 0 => Position { ms: last.ms, random },
                _ => self.anew(last.ms + 1),
            },
            _ => self.anew(now),
        };
        *last = Some(next);
        next
    }

    fn anew(&self, ms: u64) -> Position {
        let random = u128::from(self.env.random()) << 64 | u128::from(self.env.random());
        Position { ms, random: random & ((1 << self.random_bits) - 1) }
    }
}
