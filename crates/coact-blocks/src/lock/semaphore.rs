//! The semaphore: what users call, and the number of permits that all agree on. How a permit is waited for is in
//! `permit.rs`.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, KvHandle, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Key, Realm},
};
use parking_lot::Mutex;

use super::{
    Kind, Lock, LockOptions, Operation,
    claim::Request,
    held::{Held, guard, release},
    permit::PermitAttempt,
    ticket::TicketKind,
};
use crate::{Session, backoff::is_retryable};

/// A number of permits that all sessions of the store share. Cheap to clone.
///
/// Permits are granted in the order of arrival; a release grants one to the waiter that came first and wakes no other but
/// the one behind it. The permits of a process that dies come back when its lease ends.
///
/// How many there are is stored with the first use and outlives all sessions. Everybody must open the semaphore with that
/// number; [`resize`](Self::resize) changes it for all who use it, and for those who open it later.
#[derive(Clone)]
pub struct Semaphore(Arc<Shared>);

impl Semaphore {
    /// The semaphore of this name with this many permits in the realm `main`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir or without permits; `Unsupported` if the engine promises less than a lock
    /// [needs](super::NEEDS).
    pub fn new(session: &Session, name: &str, permits: u32) -> Result<Self> {
        Self::with_options(session, name, permits, LockOptions::default())
    }

    /// The semaphore of this name with this many permits. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(session: &Session, name: &str, permits: u32, options: LockOptions) -> Result<Self> {
        check_permits(permits)?;
        let lock = Lock::open(session, Kind::Semaphore, name, options)?;
        let dir = TicketKind::Permit.dir(&lock.realm, name)?;
        let limit_key = limit_key(&lock.realm, name)?;
        Ok(Self(Arc::new(Shared { lock, permits, dir, limit_key, limit: Mutex::new(None) })))
    }

    /// The name, without the dir's prefix.
    pub fn name(&self) -> &str {
        &self.0.lock.name
    }

    /// Waits until a permit is granted. One round trip if one is free, and one more the first time. An engine that does
    /// not answer is asked again for as long as the session lives.
    ///
    /// # Errors
    /// `Conflict` if the semaphore has another number of permits than this one was opened with; `Fenced` if the session is
    /// lost or the entry in the queue was deleted; `Closed` if the session is closed; what the engine answers, if it is
    /// final.
    ///
    /// # Cancel safety
    /// Safe: the session's task withdraws the entry, also when the store's answer had not arrived.
    pub async fn acquire(&self) -> Result<Permit> {
        self.granted(Request::default(), None).await
    }

    /// Waits until a permit is granted, but not longer than `limit`.
    ///
    /// # Errors
    /// `Conflict` if it was not granted in time; otherwise as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_within(&self, limit: Duration) -> Result<Permit> {
        self.granted(Request::default(), Some(limit)).await
    }

    /// Waits until a permit is granted to this operation, but not longer than `limit`: calling again in the same session
    /// finds the same permit. See [`Mutex::acquire_as`](super::Mutex::acquire_as).
    ///
    /// # Errors
    /// As [`acquire_within`](Self::acquire_within), and `Conflict` if the operation is another session's.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_as(&self, operation: Operation, limit: Option<Duration>) -> Result<Permit> {
        self.granted(Request { operation: Some(operation), value: None }, limit).await
    }

    /// Takes a permit if one is free and nobody waits; `None` otherwise. It looks before it writes.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Permit>> {
        let attempt = PermitAttempt::new(&self.0, Request::default())?;
        let held = self.0.lock.core().unless_lost(Box::pin(attempt.grant_or_give_up())).await?;
        Ok(held.map(Permit))
    }

    /// How many permits there are, held or free.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn permits(&self) -> Result<u32> {
        self.0.agree().await?;
        match self.0.lock.session.kv().get(&self.0.limit_key).await? {
            Some(entry) => Ok(self.0.note(&entry)?.permits),
            None => {
                *self.0.limit.lock() = None;
                Ok(self.0.agree().await?.permits)
            }
        }
    }

    /// Changes how many permits there are, for everybody. Who holds a permit keeps it: after a change to fewer, none is
    /// granted until enough have come back.
    ///
    /// # Errors
    /// `Invalid` without permits; otherwise as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// It may have been changed.
    pub async fn resize(&self, permits: u32) -> Result<()> {
        check_permits(permits)?;
        self.0.lock.core().unless_lost(Box::pin(self.0.resize(permits))).await
    }

    async fn granted(&self, request: Request, limit: Option<Duration>) -> Result<Permit> {
        let attempt = PermitAttempt::new(&self.0, request)?;
        let dirs = std::slice::from_ref(&self.0.dir);
        self.0.lock.within(limit, dirs, Box::pin(attempt.wait_for_grant())).await.map(Permit)
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Semaphore({}, {} permits)", self.name(), self.0.permits)
    }
}

/// Where the number of permits is. Not in the dir `semaphore/<name>` itself, which may be the permits of another semaphore.
const LIMIT_PART: &str = "/limit";
const LIMIT_NAME: &str = "permits";

fn limit_key(realm: &Realm, name: &str) -> Result<Key> {
    Kind::Semaphore.dir(realm, name, LIMIT_PART)?.key(LIMIT_NAME)
}

/// How many permits a semaphore has, for people.
pub(super) async fn stored_permits(kv: &KvHandle, realm: &Realm, name: &str) -> Result<Option<u32>> {
    let stored = kv.get(&limit_key(realm, name)?).await?;
    stored.as_ref().map(read_permits).transpose()
}

fn read_permits(entry: &Entry) -> Result<u32> {
    let permits = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok());
    permits.filter(|permits| *permits > 0).ok_or_else(|| {
        let text = String::from_utf8_lossy(&entry.value).into_owned();
        Error::new(ErrorKind::Corrupt, format!("{} says {text:?}: it should be a number of permits", entry.key))
    })
}

fn check_permits(permits: u32) -> Result<()> {
    if permits > 0 {
        return Ok(());
    }
    Err(Error::invalid(format!("a semaphore of 0 permits is not allowed: use 1 to {}", u32::MAX)))
}

/// How many permits there are, and since which revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) permits: u32,
    pub(super) modified: Revision,
}

/// What a semaphore shares with its attempts.
pub(super) struct Shared {
    pub(super) lock: Arc<Lock>,
    /// How many the user opened it with.
    permits: u32,
    pub(super) dir: Dir,
    pub(super) limit_key: Key,
    /// What is stored, as last seen. `None` until the number was compared with the stored one.
    limit: Mutex<Option<Limit>>,
}

impl Shared {
    /// The number that all agree on, as last seen. The first time it is stored, or compared with what is.
    pub(super) async fn agree(&self) -> Result<Limit> {
        let core = self.lock.core();
        let mut backoff = core.backoff();
        loop {
            if let Some(limit) = *self.limit.lock() {
                return Ok(limit);
            }
            match self.write(Check::Absent(self.limit_key.clone()), self.permits).await {
                Ok(TxnOutcome::Committed { revision, .. }) => self.remember(self.permits, revision),
                Ok(TxnOutcome::Refused { found: Some(found), .. }) => {
                    let permits = read_permits(&found)?;
                    if permits != self.permits {
                        return Err(self.disagreement(permits));
                    }
                    self.remember(permits, found.modified);
                }
                Ok(TxnOutcome::Refused { found: None, .. }) => backoff.pause().await,
                Err(error) if is_retryable(&error) => {
                    backoff.pause().await;
                    core.ensure_alive()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in what is stored now; `None` if somebody deleted it.
    pub(super) fn note_found(&self, found: Option<&Entry>) -> Result<()> {
        match found {
            Some(entry) => self.note(entry).map(drop),
            None => {
                *self.limit.lock() = None;
                Ok(())
            }
        }
    }

    fn note(&self, entry: &Entry) -> Result<Limit> {
        let limit = Limit { permits: read_permits(entry)?, modified: entry.modified };
        let mut known = self.limit.lock();
        // What is read by one task may be older than what another knows.
        let newest = known.filter(|known| known.modified > limit.modified).unwrap_or(limit);
        *known = Some(newest);
        Ok(newest)
    }

    async fn resize(&self, permits: u32) -> Result<()> {
        let core = self.lock.core();
        let mut backoff = core.backoff();
        loop {
            let limit = self.agree().await?;
            if limit.permits == permits && self.is_current(limit).await? {
                return Ok(());
            }
            match self.write(Check::ModifiedAt(self.limit_key.clone(), limit.modified), permits).await {
                Ok(TxnOutcome::Committed { revision, .. }) => {
                    self.remember(permits, revision);
                    return Ok(());
                }
                Ok(TxnOutcome::Refused { found, .. }) => self.note_found(found.as_ref())?,
                Err(error) if is_retryable(&error) => {
                    backoff.pause().await;
                    core.ensure_alive()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn is_current(&self, limit: Limit) -> Result<bool> {
        let found = self.lock.session.kv().get(&self.limit_key).await?;
        self.note_found(found.as_ref())?;
        Ok(found.is_some_and(|entry| entry.modified == limit.modified))
    }

    async fn write(&self, check: Check, permits: u32) -> Result<TxnOutcome> {
        let value = Bytes::from(permits.to_string());
        let put = Write::Put { key: self.limit_key.clone(), value, lease: None };
        let txn = Txn { checks: vec![check], reads: Vec::new(), writes: vec![put] };
        self.lock.core().kv().txn(&self.lock.realm, txn).await
    }

    fn remember(&self, permits: u32, modified: Revision) {
        *self.limit.lock() = Some(Limit { permits, modified });
    }

    fn disagreement(&self, stored: u32) -> Error {
        let (name, here) = (&self.lock.name, self.permits);
        let message = format!(
            "semaphore {name} has {stored} permits, and here {here}: everybody must choose the same, or resize it"
        );
        Error::new(ErrorKind::Conflict, message)
    }
}

/// A permit is held, as far as this process can know. See the [module](super) for how to protect what a late write could
/// still reach.
///
/// Dropping it gives the permit back in the background; [`release`](Self::release) does so and reports.
#[must_use = "dropping the permit gives it back"]
pub struct Permit(Held);

guard!(Permit, "semaphore");
release!(Permit);
