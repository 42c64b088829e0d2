//! Who holds and who waits, for people.

use std::collections::HashMap;

use coact_core::{
    Result,
    contract::kv::{Entry, KvHandle, LeaseId, Order, Revision},
    name::{Dir, Realm},
};
use serde::Serialize;

use super::{Holder, Mode, mode_of};

const DIR_PREFIX: &str = "lock/";

/// One lock that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LockInfo {
    /// Its name, without the dir's prefix.
    pub name: String,
    /// The order of its grants.
    pub mode: Mode,
    /// Who holds it; `None` if it was released while the list was made.
    pub holder: Option<Contender>,
    /// Who waits, in the order of the grants to come, up to the first 1,000. Waiters of a barging lock leave no trace.
    pub waiters: Vec<Contender>,
}

/// Who holds a lock or waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contender {
    /// Who it is.
    pub label: String,
    /// Its process, if it told.
    pub pid: Option<u32>,
    /// The fencing token that it has or will have.
    pub token: u64,
    /// When it came, in milliseconds since 1970 by its own wall clock.
    pub since_ms: u64,
    /// How long its session lives if it does not renew, in milliseconds; `None` if that is over or unknown.
    pub lease_left_ms: Option<u64>,
}

/// Lists up to `limit` locks of a realm whose names start with `prefix`, in the order of names.
///
/// Each lock is read at its own moment; the list is for people, not for decisions.
///
/// # Errors
/// `Unavailable` if the engine does not answer.
///
/// # Cancel safety
/// Safe: reads have no effect.
pub async fn list(kv: &KvHandle, realm: &Realm, prefix: &str, limit: usize) -> Result<Vec<LockInfo>> {
    let mut locks = Vec::new();
    let mut leases = Leases { kv, left_ms: HashMap::new() };
    for dir in kv.dirs(realm, &format!("{DIR_PREFIX}{prefix}"), "", limit).await? {
        locks.extend(read_lock(kv, &dir, &mut leases).await?);
    }
    Ok(locks)
}

const CONTENDERS_MAX: usize = 1_001;

async fn read_lock(kv: &KvHandle, dir: &Dir, leases: &mut Leases<'_>) -> Result<Option<LockInfo>> {
    let page = kv.list(dir, Order::Created { after: Revision::default() }, CONTENDERS_MAX).await?;
    let Some(first) = page.entries.first() else {
        return Ok(None);
    };
    let mode = mode_of(first);
    let mut contenders = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        contenders.push(contender(entry, leases).await?);
    }
    let waiters = contenders.split_off(1);
    let name = dir.path().strip_prefix(DIR_PREFIX).unwrap_or(dir.path()).to_owned();
    Ok(Some(LockInfo { name, mode, holder: contenders.pop(), waiters }))
}

async fn contender(entry: &Entry, leases: &mut Leases<'_>) -> Result<Contender> {
    let holder = Holder::from_entry(entry);
    let lease_left_ms = match entry.lease {
        Some(lease) => leases.left_ms(lease).await?,
        None => None,
    };
    Ok(Contender {
        label: holder.label,
        pid: holder.pid,
        token: entry.created.0,
        since_ms: holder.since,
        lease_left_ms,
    })
}

/// What is left of each lease, asked once: many entries hang on one session.
struct Leases<'a> {
    kv: &'a KvHandle,
    left_ms: HashMap<LeaseId, Option<u64>>,
}

impl Leases<'_> {
    async fn left_ms(&mut self, lease: LeaseId) -> Result<Option<u64>> {
        if let Some(known) = self.left_ms.get(&lease) {
            return Ok(*known);
        }
        let left = self.kv.lease_left(lease).await?.map(|left| left.as_millis() as u64);
        self.left_ms.insert(lease, left);
        Ok(left)
    }
}
