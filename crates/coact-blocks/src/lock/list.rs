//! Who holds and who waits, for people.

use std::collections::{BTreeSet, HashMap};

use coact_core::{
    Result,
    contract::kv::{Entry, KvHandle, LeaseId, Order, Revision},
    name::{Dir, Realm},
};
use serde::Serialize;

use super::{Holder, Kind, Mode, TicketKind, mode_of, semaphore};

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
    /// What it holds or waits for.
    pub kind: TicketKind,
    /// What a candidate proclaims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
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
    for dir in kv.dirs(realm, &format!("{}{prefix}", Kind::Lock.prefix()), "", limit).await? {
        locks.extend(read_lock(kv, &dir, &mut leases).await?);
    }
    Ok(locks)
}

/// One lock of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// What it is.
    pub kind: Kind,
    /// Its name, without the dir's prefix.
    pub name: String,
    /// How many permits a semaphore has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permits: Option<u32>,
    /// Who holds it: the readers of a read-write lock, the permits of a semaphore, or one.
    pub holders: Vec<Contender>,
    /// Who waits, in the order of arrival. Holders and waiters of each side are shown up to the first 1,001 together.
    pub waiters: Vec<Contender>,
}

/// Lists up to `limit` locks of one kind in a realm whose names start with `prefix`, in the order of names. A semaphore is
/// listed also when nobody uses it.
///
/// Each lock is read at its own moment; the list is for people, not for decisions.
///
/// # Errors
/// `Unavailable` if the engine does not answer.
///
/// # Cancel safety
/// Safe: reads have no effect.
pub async fn inspect(kv: &KvHandle, realm: &Realm, kind: Kind, prefix: &str, limit: usize) -> Result<Vec<Inspection>> {
    // Every lock has at most three dirs.
    let dirs = kv.dirs(realm, &format!("{}{prefix}", kind.prefix()), "", limit.saturating_mul(3)).await?;
    let names: BTreeSet<String> = dirs.iter().filter_map(|dir| kind.name_of(dir)).collect();
    let mut leases = Leases { kv, left_ms: HashMap::new() };
    let mut found = Vec::new();
    for name in names.iter().take(limit) {
        found.push(inspect_one(kv, realm, kind, name, &mut leases).await?);
    }
    Ok(found)
}

async fn inspect_one(
    kv: &KvHandle,
    realm: &Realm,
    kind: Kind,
    name: &str,
    leases: &mut Leases<'_>,
) -> Result<Inspection> {
    let mut contenders = Vec::new();
    for side in kind.sides() {
        let order = Order::Created { after: Revision::default() };
        let page = kv.list(&side.dir(realm, name)?, order, CONTENDERS_MAX).await?;
        let barges =
            *side == TicketKind::Mutex && page.entries.first().is_some_and(|first| mode_of(first) == Mode::Barging);
        let side = if barges { TicketKind::BargingMutex } else { *side };
        contenders.extend(leases.contenders(side, &page.entries).await?);
    }
    contenders.sort_by_key(|contender| contender.token);
    let permits = if kind == Kind::Semaphore { semaphore::stored_permits(kv, realm, name).await? } else { None };
    let is_holder = holders(kind, &contenders, permits);
    let mut found = Inspection { kind, name: name.to_owned(), permits, holders: Vec::new(), waiters: Vec::new() };
    for (contender, holds) in contenders.into_iter().zip(is_holder) {
        if holds { found.holders.push(contender) } else { found.waiters.push(contender) }
    }
    Ok(found)
}

/// Which of the contenders, in the order of arrival, hold.
fn holders(kind: Kind, contenders: &[Contender], permits: Option<u32>) -> Vec<bool> {
    let first_writer = contenders.iter().position(|contender| contender.kind == TicketKind::Write);
    let downgraded = contenders.iter().any(|contender| contender.kind == TicketKind::Downgraded);
    let holds = |(rank, contender): (usize, &Contender)| match kind {
        Kind::Lock | Kind::Election => rank == 0,
        Kind::Semaphore => permits.is_some_and(|permits| rank < permits as usize),
        Kind::RwLock => match contender.kind {
            TicketKind::Write => rank == 0 && !downgraded,
            TicketKind::Downgraded => true,
            _ => first_writer.is_none_or(|writer| rank < writer),
        },
    };
    contenders.iter().enumerate().map(holds).collect()
}

const CONTENDERS_MAX: usize = 1_001;

async fn read_lock(kv: &KvHandle, dir: &Dir, leases: &mut Leases<'_>) -> Result<Option<LockInfo>> {
    let page = kv.list(dir, Order::Created { after: Revision::default() }, CONTENDERS_MAX).await?;
    let Some(first) = page.entries.first() else {
        return Ok(None);
    };
    let mode = mode_of(first);
    let kind = if mode == Mode::Fair { TicketKind::Mutex } else { TicketKind::BargingMutex };
    let mut contenders = leases.contenders(kind, &page.entries).await?;
    let waiters = contenders.split_off(1);
    let name = dir.path().strip_prefix(Kind::Lock.prefix()).unwrap_or(dir.path()).to_owned();
    Ok(Some(LockInfo { name, mode, holder: contenders.pop(), waiters }))
}

/// What is left of each lease, asked once: many entries hang on one session.
struct Leases<'a> {
    kv: &'a KvHandle,
    left_ms: HashMap<LeaseId, Option<u64>>,
}

impl Leases<'_> {
    async fn contenders(&mut self, kind: TicketKind, entries: &[Entry]) -> Result<Vec<Contender>> {
        let mut contenders = Vec::with_capacity(entries.len());
        for entry in entries {
            contenders.push(self.contender(kind, entry).await?);
        }
        Ok(contenders)
    }

    async fn contender(&mut self, kind: TicketKind, entry: &Entry) -> Result<Contender> {
        let holder = Holder::from_entry(entry);
        let lease_left_ms = match entry.lease {
            Some(lease) => self.left_ms(lease).await?,
            None => None,
        };
        Ok(Contender {
            label: holder.label,
            pid: holder.pid,
            token: entry.created.0,
            since_ms: holder.since,
            kind,
            value: holder.value,
            lease_left_ms,
        })
    }

    async fn left_ms(&mut self, lease: LeaseId) -> Result<Option<u64>> {
        if let Some(known) = self.left_ms.get(&lease) {
            return Ok(*known);
        }
        let left = self.kv.lease_left(lease).await?.map(|left| left.as_millis() as u64);
        self.left_ms.insert(lease, left);
        Ok(left)
    }
}
