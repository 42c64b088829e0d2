//! Locks with fencing tokens.
//!
//! A [`Mutex`] is a dir `lock/<name>` in which every acquire creates one entry on the session's lease. In the **fair** mode
//! the entry created first holds the lock, and everybody else waits for the one entry before its own, so a release wakes
//! at most one waiter and the grants come in the order of arrival. In the **barging** mode all compete for one entry:
//! fewer round trips under contention, no order.
//!
//! A lock alone cannot keep a paused process from writing late. Every [`Guard`] has a [`token`](Guard::token) that grows
//! with each grant; hand it to what the lock protects:
//!
//! - in the same store, [`Guard::txn`] checks it in the transaction itself;
//! - in SQL, keep the highest token seen and refuse older ones:
//!   `UPDATE account SET balance = $1, fence = $token WHERE id = $2 AND fence <= $token` (no row: stop, you lost it);
//! - in Redis, the same in a script:
//!   `if tonumber(redis.call('HGET', KEYS[1], 'fence') or 0) > tonumber(ARGV[1]) then return 0 end`, then
//!   `redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'value', ARGV[2]) return 1`.
//!
//! The algorithm is the lock queue of Apache Curator and of etcd's `concurrency` package with one round trip less: the
//! transaction that creates the entry also reads the one before it.
//!
//! What counts instead of excluding: a [`Latch`] opens once it was counted down, and a [`Barrier`] lets parties pass when
//! all of them wait. A [`RateLimiter`] gives out at most so many permits in any window of a length.

mod attempt;
mod barrier;
mod entry;
mod guard;
mod latch;
mod list;
mod mutex;
mod rate;
mod request;
mod stats;

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::Entry,
    guarantees::{Consistency, Durability, Failover, Fence, Needs},
    name::{Dir, Realm},
};
use serde::{Deserialize, Serialize};

pub use barrier::{Arrival, Barrier};
pub use guard::Guard;
pub use latch::Latch;
pub use list::{Contender, LockInfo, list};
pub use mutex::{Mode, Mutex, MutexOptions};
pub use rate::{RateLimiter, RateOptions};
pub(crate) use stats::Counters;
pub use stats::Stats;

/// What a lock needs from an engine to be one.
pub const NEEDS: Needs = Needs {
    block: "lock",
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    failover: Failover::KeepsWrites,
    fence: Fence::Strong,
};

const DIR_PREFIX: &str = "lock/";
/// The one entry of a lock in barging mode. Fair entries have 32 hexadecimal digits instead.
const HOLDER_NAME: &str = "holder";

fn dir_of(realm: &Realm, name: &str) -> Result<Dir> {
    if name.is_empty() {
        return Err(Error::invalid("the lock has no name: use 1 to 123 bytes, for example deploy/eu"));
    }
    Dir::new(realm, &format!("{DIR_PREFIX}{name}"))
}

fn mode_of(entry: &Entry) -> Mode {
    if entry.key.name() == HOLDER_NAME { Mode::Barging } else { Mode::Fair }
}

/// The value of an entry: who created it, for people.
#[derive(Serialize, Deserialize)]
struct Holder {
    label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// Milliseconds since 1970, by the wall clock of the creator.
    since: u64,
    /// Which acquire this is, where the entry's name does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
}

impl Holder {
    fn to_bytes(&self) -> Result<Bytes> {
        serde_json::to_vec(self).map(Bytes::from).map_err(|error| {
            Error::new(ErrorKind::Internal, "the value of a lock entry could not be written").with_source(error)
        })
    }

    /// What a foreign hand wrote is shown rather than refused: people want to see it.
    fn from_entry(entry: &Entry) -> Self {
        serde_json::from_slice(&entry.value).unwrap_or_else(|_| Self {
            label: String::from_utf8_lossy(&entry.value).into_owned(),
            pid: None,
            since: 0,
            operation: None,
        })
    }
}
