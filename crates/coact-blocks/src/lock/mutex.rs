//! The mutex: what users call. How a place in the queue is taken is in `attempt.rs`.

use std::{fmt, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::Entry,
    env::Env,
    name::{Key, Realm},
};
use serde::{Deserialize, Serialize};

use super::{
    HOLDER_NAME, Holder, Kind, Lock, LockOptions, Operation,
    attempt::{Attempt, Line},
    barging::Race,
    claim::Request,
    fence::sql_fence,
    held::{Held, guard, release},
    mode_of,
    ticket::TicketKind,
};
use crate::Session;

/// A lock that one holder at a time has, among all sessions of the store. Cheap to clone.
///
/// It is not re-entrant: a task that acquires it twice waits for itself. Share the [`Guard`] instead.
#[derive(Clone)]
pub struct Mutex(Arc<Inner>);

/// In which order a mutex is granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the order of arrival; a release wakes one waiter.
    #[default]
    Fair,
    /// To whoever comes first after a release, which wakes every waiter: more grants a second under little contention,
    /// and a waiter may starve.
    Barging,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fair => "fair",
            Self::Barging => "barging",
        })
    }
}

/// How a mutex is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MutexOptions {
    /// The realm it is in; `main` by default. What [`Guard::txn`] protects must be in the same.
    pub realm: Realm,
    /// The order of grants. Everybody who uses the name must choose the same.
    pub mode: Mode,
    /// Who holds or waits, as shown by `coact lock ls`; the session's name by default.
    pub label: Option<String>,
    /// As in [`LockOptions::keep_place`]; in barging mode there is no line.
    pub keep_place: bool,
}

impl Mutex {
    /// The fair mutex of this name in the realm `main`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir; `Unsupported` if the engine promises less than a lock [needs](super::NEEDS).
    pub fn new(session: &Session, name: &str) -> Result<Self> {
        Self::with_options(session, name, MutexOptions::default())
    }

    /// The mutex of this name. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(session: &Session, name: &str, options: MutexOptions) -> Result<Self> {
        let MutexOptions { realm, mode, label, keep_place } = options;
        let lock = Lock::open(session, Kind::Lock, name, LockOptions { realm, label, keep_place })?;
        let dir = TicketKind::Mutex.dir(&lock.realm, name)?;
        let holder_key = dir.key(HOLDER_NAME)?;
        let line = Line {
            kind: TicketKind::Mutex,
            own: dir.clone(),
            ahead: vec![dir],
            gate: None,
            barging: Some(holder_key.clone()),
        };
        Ok(Self(Arc::new(Inner { lock, line, holder_key, mode })))
    }

    /// The name, without the dir's prefix.
    pub fn name(&self) -> &str {
        &self.0.lock.name
    }

    /// The order of grants.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Waits until the lock is granted. One round trip if it is free. An engine that does not answer is asked again for
    /// as long as the session lives.
    ///
    /// # Errors
    /// `Fenced` if the session is lost or the entry in the queue was deleted; `Closed` if the session is closed;
    /// `Conflict` if others use the name in the other mode; what the engine answers, if it is final.
    ///
    /// # Cancel safety
    /// Safe: the session's task withdraws the entry, also when the store's answer had not arrived.
    pub async fn acquire(&self) -> Result<Guard> {
        self.granted(Request::default(), None).await
    }

    /// Waits until the lock is granted, but not longer than `limit`.
    ///
    /// # Errors
    /// `Conflict` if it was not granted in time, naming the holder; otherwise as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_within(&self, limit: Duration) -> Result<Guard> {
        self.granted(Request::default(), Some(limit)).await
    }

    /// Waits until the lock is granted to this operation, but not longer than `limit`. Calling again with the same
    /// operation in the same session finds the same entry and returns the same grant, for a caller that may have missed
    /// the answer. Releasing or dropping one of its guards releases it; usually both are [detached](Guard::detach).
    ///
    /// A call that is dropped withdraws its entry, unless a later call with the same operation has found it, or it may have
    /// been granted to an earlier one. Make one call after the other: of two at a time, one that is dropped in the moment
    /// of the grant may take it from the other, whose ticket then is no longer held.
    ///
    /// # Errors
    /// `Conflict` if it was not granted in time, or if the operation is another session's; otherwise as
    /// [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_as(&self, operation: Operation, limit: Option<Duration>) -> Result<Guard> {
        self.granted(Request { operation: Some(operation), value: None }, limit).await
    }

    /// Takes the lock if nobody holds it or waits for it; `None` otherwise. It reads first, so that asking again and
    /// again for a lock that is taken writes nothing.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Guard>> {
        let Inner { lock, line, holder_key, mode } = &*self.0;
        let work = async {
            match mode {
                Mode::Fair => Attempt::new(lock, line, Request::default())?.grant_or_give_up().await,
                Mode::Barging => Race::new(lock, holder_key, Request::default())?.grant_or_give_up().await,
            }
        };
        Ok(lock.core().unless_lost(Box::pin(work)).await?.map(Guard))
    }

    async fn granted(&self, request: Request, limit: Option<Duration>) -> Result<Guard> {
        let Inner { lock, line, holder_key, mode } = &*self.0;
        let work = async {
            match mode {
                Mode::Fair => Attempt::new(lock, line, request)?.wait_for_grant().await,
                Mode::Barging => Race::new(lock, holder_key, request)?.wait_for_grant().await,
            }
        };
        lock.within(limit, &line.ahead, Box::pin(work)).await.map(Guard)
    }

    /// Where it is, for an order of all mutexes.
    pub(super) fn place(&self) -> (&Realm, &str) {
        (&self.0.lock.realm, &self.0.lock.name)
    }

    pub(super) fn env(&self) -> &Env {
        self.0.lock.core().env()
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mutex({}, {})", self.name(), self.mode())
    }
}

struct Inner {
    lock: Arc<Lock>,
    line: Line,
    holder_key: Key,
    mode: Mode,
}

/// Refuses if an entry belongs to the other mode.
pub(super) fn ensure_mode(lock: &Lock, here: Mode, entry: &Entry) -> Result<()> {
    let mode = mode_of(entry);
    if mode == here {
        return Ok(());
    }
    let (name, who) = (&lock.name, Holder::from_entry(entry).label);
    let message =
        format!("lock {name} is used in {mode} mode by {who}, and here in {here} mode: everybody must choose the same");
    Err(Error::new(ErrorKind::Conflict, message))
}

/// The lock is held, as far as this process can know. See the [module](super) for how to protect what a late write could
/// still reach.
///
/// Dropping it releases the lock in the background; [`release`](Self::release) does so and reports.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard(Held);

guard!(Guard, "lock");
sql_fence!(Guard);
release!(Guard);
