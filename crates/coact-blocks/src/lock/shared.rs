//! What a lock of any kind shares with its attempts and guards.

use std::{fmt, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result, Retry,
    contract::kv::{Entry, Found, Read, Txn, TxnOutcome},
    name::{Dir, NAME_BYTES_MAX, Realm},
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{Holder, NEEDS, held::Held, ticket::TicketKind};
use crate::{Session, session::Core};

/// The families of locks: each has its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`Mutex`](super::Mutex).
    Lock,
    /// [`RwLock`](super::RwLock).
    RwLock,
    /// [`Semaphore`](super::Semaphore).
    Semaphore,
    /// [`Election`](super::Election).
    Election,
}

impl Kind {
    /// The start of its dirs.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Lock => "lock/",
            Self::RwLock => "rw/",
            Self::Semaphore => "semaphore/",
            Self::Election => "election/",
        }
    }

    /// What its dirs with contenders hold.
    pub(super) const fn sides(self) -> &'static [TicketKind] {
        match self {
            Self::Lock => &[TicketKind::Mutex],
            Self::RwLock => &[TicketKind::Read, TicketKind::Downgraded, TicketKind::Write],
            Self::Semaphore => &[TicketKind::Permit],
            Self::Election => &[TicketKind::Leadership],
        }
    }

    /// The name of the lock that a dir is of.
    pub(super) fn name_of(self, dir: &Dir) -> Option<String> {
        let rest = dir.path().strip_prefix(self.prefix())?;
        match self {
            Self::Lock | Self::Election => Some(rest.to_owned()),
            Self::RwLock | Self::Semaphore => {
                let (name, part) = rest.rsplit_once('/')?;
                matches!(part, "r" | "w" | "d" | "permits" | "limit").then(|| name.to_owned())
            }
        }
    }

    /// The end of its longest dir.
    const fn longest_part(self) -> &'static str {
        match self {
            Self::Lock | Self::Election => "",
            Self::RwLock => "/r",
            Self::Semaphore => "/permits",
        }
    }

    pub(super) fn dir(self, realm: &Realm, name: &str, part: &str) -> Result<Dir> {
        if name.is_empty() {
            let most = NAME_BYTES_MAX - self.prefix().len() - self.longest_part().len();
            return Err(Error::invalid(format!(
                "the {self} has no name: use 1 to {most} bytes, for example deploy/eu"
            )));
        }
        Dir::new(realm, &format!("{}{name}{part}", self.prefix()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lock => "lock",
            Self::RwLock => "read-write lock",
            Self::Semaphore => "semaphore",
            Self::Election => "election",
        })
    }
}

/// How a lock is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockOptions {
    /// The realm it is in; `main` by default. What a guard's `txn` protects must be in the same.
    pub realm: Realm,
    /// Who holds or waits, as shown to people; the session's name by default.
    pub label: Option<String>,
    /// Whether an acquire under an [`Operation`](super::Operation) of the caller's keeps its place in line when it is not
    /// granted in time, or dropped: for a caller that will ask again with the same operation. The place goes with the
    /// session, or by [`Ticket::find`](super::Ticket::find) and a release.
    pub keep_place: bool,
}

/// What a lock of any kind shares with its attempts and guards.
pub(super) struct Lock {
    pub(super) session: Session,
    pub(super) kind: Kind,
    pub(super) realm: Realm,
    pub(super) name: String,
    pub(super) keep_place: bool,
    label: String,
}

impl Lock {
    pub(super) fn open(session: &Session, kind: Kind, name: &str, options: LockOptions) -> Result<Arc<Self>> {
        session.kv().require(&NEEDS)?;
        Ok(Arc::new(Self {
            session: session.clone(),
            kind,
            realm: options.realm,
            name: name.to_owned(),
            keep_place: options.keep_place,
            label: options.label.unwrap_or_else(|| session.name().to_owned()),
        }))
    }

    /// The value of a new entry.
    pub(super) fn holder(&self) -> Holder {
        Holder {
            label: self.label.clone(),
            pid: Some(std::process::id()),
            since: self.core().env().wall_ms(),
            operation: None,
            call: None,
            value: None,
            granted: None,
        }
    }

    /// Acquires for as long as the session lives, and not longer than `limit`. `dirs` hold the entries that may stand in
    /// the way.
    pub(super) async fn within(
        &self,
        limit: Option<Duration>,
        dirs: &[Dir],
        work: BoxFuture<'_, Result<Held>>,
    ) -> Result<Held> {
        let work = self.core().unless_lost(work);
        let Some(limit) = limit else {
            return work.await;
        };
        match self.core().env().timeout(limit, work).await {
            Some(result) => result,
            None => Err(self.timed_out(limit, dirs).await),
        }
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        self.session.core()
    }

    async fn timed_out(&self, limit: Duration, dirs: &[Dir]) -> Error {
        // The caller has waited long enough: the name of the holder is a courtesy.
        let first = self.core().env().timeout(Duration::from_secs(1), self.first_of(dirs)).await;
        let Self { kind, name, .. } = self;
        let message = match first {
            Some(Ok(Some(first))) => {
                let holder = Holder::from_entry(&first);
                format!("{kind} {name} is held by {} (token {})", holder.label, first.created)
            }
            _ => format!("{kind} {name} was not granted"),
        };
        Error::new(ErrorKind::Conflict, message)
            .with("waited", format!("{limit:?}"))
            .with_retry(Retry::After(Duration::from_secs(1)))
    }

    async fn first_of(&self, dirs: &[Dir]) -> Result<Option<Entry>> {
        let reads = dirs.iter().cloned().map(Read::First).collect();
        let txn = Txn { reads, ..Txn::default() };
        match self.core().kv().txn(&self.realm, txn).await? {
            TxnOutcome::Committed { reads, .. } => {
                Ok(reads.iter().filter_map(Found::entry).min_by_key(|entry| entry.created).cloned())
            }
            TxnOutcome::Refused { .. } => Ok(None),
        }
    }
}
