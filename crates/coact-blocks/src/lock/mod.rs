//! Locks with fencing tokens.
//!
//! A [`Mutex`] is a dir `lock/<name>` in which every acquire creates one entry on the session's lease. In the **fair** mode
//! the entry created first holds the lock, and everybody else waits for the one entry before its own, so a release wakes
//! at most one waiter and the grants come in the order of arrival. In the **barging** mode all compete for one entry:
//! fewer round trips under contention, no order.
//!
//! An [`RwLock`] is the same queue with readers and writers in two dirs; a [`Semaphore`] one in which the first N hold; an
//! [`Election`] one whose entries carry what the candidates proclaim. [`acquire_all`] takes several mutexes at once. A
//! caller that may have missed an answer names its acquire by an [`Operation`], and a grant leaves its process as a
//! [`Ticket`].
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
mod barging;
mod barrier;
mod claim;
mod election;
mod entry;
mod fence;
mod held;
mod latch;
mod list;
mod multi;
mod mutex;
mod observe;
mod operation;
mod permit;
mod rate;
mod request;
mod rwlock;
mod semaphore;
mod shared;
mod stats;
mod ticket;

use bytes::Bytes;
use coact_core::{
    Result,
    contract::kv::Entry,
    guarantees::{Consistency, Durability, Failover, Fence, Needs},
};
use serde::{Deserialize, Serialize};

pub use barrier::{Arrival, Barrier};
pub use election::{Election, Leader, Leadership, PROCLAIMED_BYTES_MAX, leader, observe};
pub use fence::SqlFence;
pub use latch::Latch;
pub use list::{Contender, Inspection, LockInfo, inspect, list};
pub use multi::{MultiGuard, acquire_all, acquire_all_within};
pub use mutex::{Guard, Mode, Mutex, MutexOptions};
pub use operation::Operation;
pub use rate::{RateLimiter, RateOptions};
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use semaphore::{Permit, Semaphore};
use shared::Lock;
pub use shared::{Kind, LockOptions};
pub(crate) use stats::Counters;
pub use stats::Stats;
pub use ticket::{Ticket, TicketKind};

use crate::json;

/// What a lock needs from an engine to be one.
pub const NEEDS: Needs = Needs {
    block: "lock",
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    failover: Failover::KeepsWrites,
    // That tokens grow is enough: whether their writes last is the need above.
    fence: Fence::Epoch,
};

/// The one entry of a lock in barging mode. Fair entries have 32 hexadecimal digits instead.
const HOLDER_NAME: &str = "holder";

fn mode_of(entry: &Entry) -> Mode {
    if entry.key.name() == HOLDER_NAME { Mode::Barging } else { Mode::Fair }
}

/// The value of an entry: who created it, for people, and what the kinds of locks add.
#[derive(Clone, Serialize, Deserialize)]
struct Holder {
    label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// Milliseconds since 1970, by the wall clock of the creator.
    since: u64,
    /// Which acquire this is, where the entry's name does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    operation: Option<Operation>,
    /// Which of the calls with the same operation this is, where the caller may repeat it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    call: Option<String>,
    /// What a candidate proclaims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Whether the owner knows that it waits for a permit, or that it has got one after it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    granted: Option<bool>,
}

impl Holder {
    fn to_bytes(&self) -> Result<Bytes> {
        json::to_bytes(self)
    }

    /// What a foreign hand wrote is shown rather than refused: people want to see it.
    fn from_entry(entry: &Entry) -> Self {
        serde_json::from_slice(&entry.value).unwrap_or_else(|_| Self {
            label: String::from_utf8_lossy(&entry.value).into_owned(),
            pid: None,
            since: 0,
            operation: None,
            call: None,
            value: None,
            granted: None,
        })
    }
}
