//! The mutex: what users call. How a place in the queue is taken is in `attempt.rs`.

use std::{fmt, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result, Retry,
    contract::kv::{Entry, Order},
    name::{Dir, Key, Realm},
};
use serde::Serialize;

use super::{HOLDER_NAME, Holder, NEEDS, attempt::Attempt, dir_of, guard::Guard, mode_of};
use crate::Session;

/// A lock that one holder at a time has, among all sessions of the store. Cheap to clone.
///
/// It is not re-entrant: a task that acquires it twice waits for itself. Share the [`Guard`] instead.
#[derive(Clone)]
pub struct Mutex(Arc<Lock>);

/// In which order a mutex is granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
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
}

impl Mutex {
    /// The fair mutex of this name in the realm `main`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir; `Unsupported` if the engine promises less than a lock [needs](NEEDS).
    pub fn new(session: &Session, name: &str) -> Result<Self> {
        Self::with_options(session, name, MutexOptions::default())
    }

    /// The mutex of this name. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(session: &Session, name: &str, options: MutexOptions) -> Result<Self> {
        session.kv().require(&NEEDS)?;
        let dir = dir_of(&options.realm, name)?;
        Ok(Self(Arc::new(Lock {
            session: session.clone(),
            name: name.to_owned(),
            holder_key: dir.key(HOLDER_NAME)?,
            dir,
            mode: options.mode,
            label: options.label.unwrap_or_else(|| session.name().to_owned()),
        })))
    }

    /// The name, without the dir's prefix.
    pub fn name(&self) -> &str {
        &self.0.name
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
        let attempt = Attempt::new(&self.0)?;
        self.0.session.core().unless_lost(attempt.wait_for_grant()).await
    }

    /// Waits until the lock is granted, but not longer than `limit`.
    ///
    /// # Errors
    /// `Conflict` if it was not granted in time, naming the holder; otherwise as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_within(&self, limit: Duration) -> Result<Guard> {
        match self.0.session.kv().env().timeout(limit, self.acquire()).await {
            Some(result) => result,
            None => Err(self.0.timed_out(limit).await),
        }
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
        let attempt = Attempt::new(&self.0)?;
        self.0.session.core().unless_lost(attempt.grant_or_give_up()).await
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mutex({}, {})", self.0.name, self.0.mode)
    }
}

/// What a mutex, its attempts and its guards share.
pub(super) struct Lock {
    pub(super) session: Session,
    pub(super) name: String,
    pub(super) dir: Dir,
    pub(super) holder_key: Key,
    pub(super) mode: Mode,
    pub(super) label: String,
}

impl Lock {
    /// The entry that was created first: the holder's.
    pub(super) async fn first(&self) -> Result<Option<Entry>> {
        let order = Order::Created { after: Default::default() };
        Ok(self.session.kv().list(&self.dir, order, 1).await?.entries.into_iter().next())
    }

    /// Refuses if an entry belongs to the other mode.
    pub(super) fn ensure_same_mode(&self, entry: &Entry) -> Result<()> {
        let mode = mode_of(entry);
        if mode == self.mode {
            return Ok(());
        }
        let holder = Holder::from_entry(entry);
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "lock {} is used in {mode} mode by {}, and here in {} mode: everybody must choose the same",
                self.name, holder.label, self.mode
            ),
        ))
    }

    async fn timed_out(&self, limit: Duration) -> Error {
        // The caller has waited long enough: the name of the holder is a courtesy.
        let first = self.session.kv().env().timeout(Duration::from_secs(1), self.first()).await;
        let message = match first {
            Some(Ok(Some(first))) => {
                let holder = Holder::from_entry(&first);
                format!("lock {} is held by {} (token {})", self.name, holder.label, first.created)
            }
            _ => format!("lock {} was not granted", self.name),
        };
        Error::new(ErrorKind::Conflict, message)
            .with("waited", format!("{limit:?}"))
            .with_retry(Retry::After(Duration::from_secs(1)))
    }
}
