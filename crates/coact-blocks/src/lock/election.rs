//! Leader election: a fair queue of candidates, each with what it proclaims.

use std::{fmt, sync::Arc, time::Duration};

use coact_core::{
    Error, Result,
    contract::kv::{Check, Entry, Found, KvHandle, Read, Revision, Txn, TxnOutcome},
    name::{Dir, Realm},
};
use futures::Stream;
use parking_lot::Mutex;
use serde::Serialize;

use super::{
    Holder, Kind, Lock, LockOptions, Operation,
    attempt::{Attempt, Line},
    claim::Request,
    fence::sql_fence,
    held::{Held, guard},
    observe::leaders,
    ticket::TicketKind,
};
use crate::{Session, backoff::is_retryable};

/// Chooses one leader at a time among all sessions of the store. Cheap to clone.
///
/// Candidates lead in the order in which they came. A leadership ends at the session's local deadline, before the store
/// can give it to anybody else; and what the leader writes is fenced by its token.
#[derive(Clone)]
pub struct Election(Arc<Inner>);

/// The most bytes of what a candidate proclaims.
pub const PROCLAIMED_BYTES_MAX: usize = 60 * 1024;

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leader {
    /// What it proclaims, such as its address.
    pub value: String,
    /// Who it is, for people.
    pub label: String,
    /// Its fencing token.
    pub token: u64,
    /// When it became a candidate, in milliseconds since 1970 by its own wall clock.
    pub since_ms: u64,
}

impl Leader {
    pub(super) fn from_entry(entry: &Entry) -> Self {
        let holder = Holder::from_entry(entry);
        Self {
            value: holder.value.unwrap_or_default(),
            label: holder.label,
            token: entry.created.0,
            since_ms: holder.since,
        }
    }
}

impl Election {
    /// The election of this name in the realm `main`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir; `Unsupported` if the engine promises less than a lock [needs](super::NEEDS).
    pub fn new(session: &Session, name: &str) -> Result<Self> {
        Self::with_options(session, name, LockOptions::default())
    }

    /// The election of this name. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(session: &Session, name: &str, options: LockOptions) -> Result<Self> {
        let lock = Lock::open(session, Kind::Election, name, options)?;
        let kind = TicketKind::Leadership;
        let dir = kind.dir(&lock.realm, name)?;
        let line = Line { kind, own: dir.clone(), ahead: vec![dir], gate: None, barging: None };
        Ok(Self(Arc::new(Inner { lock, line })))
    }

    /// The name, without the dir's prefix.
    pub fn name(&self) -> &str {
        &self.0.lock.name
    }

    /// Waits to become the leader, who then proclaims `value`: its address, for example. One round trip if nobody leads.
    /// An engine that does not answer is asked again for as long as the session lives.
    ///
    /// # Errors
    /// `Invalid` if the value has more than [`PROCLAIMED_BYTES_MAX`] bytes; `Fenced` if the session is lost or the entry
    /// in the queue was deleted; `Closed` if the session is closed; what the engine answers, if it is final.
    ///
    /// # Cancel safety
    /// Safe: the session's task withdraws the candidate, also when the store's answer had not arrived.
    pub async fn campaign(&self, value: impl Into<String>) -> Result<Leadership> {
        self.elected(None, value.into(), None).await
    }

    /// Waits to become the leader, but not longer than `limit`.
    ///
    /// # Errors
    /// `Conflict` if it did not in time, naming the leader; otherwise as [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    /// As [`campaign`](Self::campaign).
    pub async fn campaign_within(&self, value: impl Into<String>, limit: Duration) -> Result<Leadership> {
        self.elected(None, value.into(), Some(limit)).await
    }

    /// Waits for this operation to become the leader, but not longer than `limit`: calling again in the same session finds
    /// the same candidate, with what it proclaims by now. See [`Mutex::acquire_as`](super::Mutex::acquire_as).
    ///
    /// # Errors
    /// As [`campaign_within`](Self::campaign_within), and `Conflict` if the operation is another session's.
    ///
    /// # Cancel safety
    /// As [`campaign`](Self::campaign).
    pub async fn campaign_as(
        &self,
        operation: Operation,
        value: impl Into<String>,
        limit: Option<Duration>,
    ) -> Result<Leadership> {
        self.elected(Some(operation), value.into(), limit).await
    }

    /// Who leads now, if anybody does. The answer may be old when it arrives.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let Inner { lock, line } = &*self.0;
        first_of(lock.session.kv(), &line.own).await
    }

    /// Delivers who leads, and then every change: of the leader, or of what it proclaims. No change is left out, unless
    /// the engine no longer knows it: then the newest follows. It does not end with the session.
    ///
    /// An error that is final ends it; an engine that does not answer is asked again.
    pub fn observe(&self) -> impl Stream<Item = Result<Option<Leader>>> + Send + 'static {
        leaders(self.0.lock.session.kv(), &self.0.line.own)
    }

    async fn elected(
        &self,
        operation: Option<Operation>,
        value: String,
        limit: Option<Duration>,
    ) -> Result<Leadership> {
        check_value(&value)?;
        let Inner { lock, line } = &*self.0;
        let attempt = Attempt::new(lock, line, Request { operation, value: Some(value) })?;
        let held = lock.within(limit, &line.ahead, Box::pin(attempt.wait_for_grant())).await?;
        let value = held.entry.holder.value.clone().unwrap_or_default();
        let proclaimed = Proclaimed { value, modified: held.created };
        Ok(Leadership(held, Mutex::new(proclaimed)))
    }
}

/// As [`Election::leader`], without a session.
///
/// # Errors
/// `Invalid` for a name that is no dir; `Unavailable` if the engine does not answer.
///
/// # Cancel safety
/// Safe: a read has no effect.
pub async fn leader(kv: &KvHandle, realm: &Realm, name: &str) -> Result<Option<Leader>> {
    first_of(kv, &TicketKind::Leadership.dir(realm, name)?).await
}

/// As [`Election::observe`], without a session.
///
/// # Errors
/// `Invalid` for a name that is no dir.
pub fn observe(
    kv: &KvHandle,
    realm: &Realm,
    name: &str,
) -> Result<impl Stream<Item = Result<Option<Leader>>> + Send + use<>> {
    Ok(leaders(kv, &TicketKind::Leadership.dir(realm, name)?))
}

async fn first_of(kv: &KvHandle, dir: &Dir) -> Result<Option<Leader>> {
    let txn = Txn { reads: vec![Read::First(dir.clone())], ..Txn::default() };
    match kv.txn(dir.realm(), txn).await? {
        TxnOutcome::Committed { reads, .. } => Ok(reads.first().and_then(Found::entry).map(Leader::from_entry)),
        TxnOutcome::Refused { .. } => Ok(None),
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Election({})", self.name())
    }
}

fn check_value(value: &str) -> Result<()> {
    if value.len() <= PROCLAIMED_BYTES_MAX {
        return Ok(());
    }
    let bytes = value.len();
    Err(Error::invalid(format!(
        "the value of the candidate has {bytes} bytes: at most {PROCLAIMED_BYTES_MAX} are allowed"
    )))
}

struct Inner {
    lock: Arc<Lock>,
    line: Line,
}

/// This session leads, as far as this process can know. See the [module](super) for how to protect what a late write could
/// still reach.
///
/// Dropping it resigns in the background; [`resign`](Self::resign) does so and reports.
#[must_use = "dropping the leadership resigns"]
pub struct Leadership(Held, Mutex<Proclaimed>);

/// What our entry says, and since which revision.
struct Proclaimed {
    value: String,
    modified: Revision,
}

guard!(Leadership, "election");
sql_fence!(Leadership);

impl Leadership {
    /// Whether this session can be taken for the leader without asking the store, as [`is_held`](Self::is_held).
    pub fn is_leader(&self) -> bool {
        self.is_held()
    }

    /// What it proclaims, as far as the store has confirmed it.
    pub fn value(&self) -> String {
        self.1.lock().value.clone()
    }

    /// Proclaims something else, as the same leader with the same token. An engine that does not answer is asked again for
    /// as long as the session lives.
    ///
    /// # Errors
    /// `Invalid` if the value has more than [`PROCLAIMED_BYTES_MAX`] bytes; `Fenced` if the leadership is lost: then
    /// nothing was changed.
    ///
    /// # Cancel safety
    /// It may have been proclaimed. It cannot be so later than what is proclaimed next.
    pub async fn proclaim(&self, value: impl Into<String>) -> Result<()> {
        let value = value.into();
        check_value(&value)?;
        self.0.core().unless_lost(Box::pin(self.write(value))).await
    }

    /// Resigns, asking an engine that does not answer again for as long as the session lives.
    ///
    /// # Errors
    /// `Fenced` if the leadership had been lost before: somebody else may have led meanwhile.
    ///
    /// # Cancel safety
    /// The session's task finishes the resignation.
    pub async fn resign(self) -> Result<()> {
        self.0.release().await
    }

    async fn write(&self, value: String) -> Result<()> {
        let Held { entry, created, lock, .. } = &self.0;
        let bytes = Holder { value: Some(value.clone()), ..entry.holder.clone() }.to_bytes()?;
        let mut backoff = entry.core.backoff();
        loop {
            let seen = self.1.lock().modified;
            // Not only that the entry is ours: a request that was given up may not overtake the next one.
            let txn = Txn {
                checks: vec![Check::ModifiedAt(entry.key.clone(), seen)],
                reads: Vec::new(),
                writes: vec![entry.put_value(bytes.clone())],
            };
            let modified = match entry.core.kv().txn(&lock.realm, txn).await {
                Ok(TxnOutcome::Committed { revision, .. }) => revision,
                Ok(TxnOutcome::Refused { found: Some(found), .. }) if found.created == *created => {
                    if found.value != bytes {
                        self.1.lock().modified = found.modified;
                        continue;
                    }
                    // By a request whose answer was lost.
                    found.modified
                }
                Ok(TxnOutcome::Refused { .. }) => return Err(self.0.lost_error()),
                Err(error) if is_retryable(&error) => {
                    backoff.pause().await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            *self.1.lock() = Proclaimed { value, modified };
            return Ok(());
        }
    }
}
