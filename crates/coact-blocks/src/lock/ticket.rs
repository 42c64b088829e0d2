//! Tickets: grants that outlive the future, the connection or the process that acquired them.

use std::fmt;

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::kv::{Check, KvHandle, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Key, Realm},
};
use serde::{Deserialize, Serialize};

use super::{HOLDER_NAME, Holder, Kind, Operation};
use crate::backoff::{Backoff, is_retryable};

/// What a ticket is a grant of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TicketKind {
    /// A fair mutex.
    Mutex,
    /// A mutex in barging mode.
    BargingMutex,
    /// The read side of a read-write lock.
    Read,
    /// The read side, by a writer that was downgraded.
    Downgraded,
    /// The write side of a read-write lock.
    Write,
    /// A permit of a semaphore.
    Permit,
    /// The leadership of an election.
    Leadership,
}

impl TicketKind {
    /// The family of locks that it belongs to.
    pub const fn family(self) -> Kind {
        match self {
            Self::Mutex | Self::BargingMutex => Kind::Lock,
            Self::Read | Self::Downgraded | Self::Write => Kind::RwLock,
            Self::Permit => Kind::Semaphore,
            Self::Leadership => Kind::Election,
        }
    }

    /// Where its entries are.
    pub(super) fn dir(self, realm: &Realm, name: &str) -> Result<Dir> {
        let part = match self {
            Self::Mutex | Self::BargingMutex | Self::Leadership => "",
            Self::Read => "/r",
            Self::Downgraded => "/d",
            Self::Write => "/w",
            Self::Permit => "/permits",
        };
        self.family().dir(realm, name, part)
    }

    /// The entry of an operation.
    pub(super) fn key(self, realm: &Realm, name: &str, operation: Operation) -> Result<Key> {
        let dir = self.dir(realm, name)?;
        match self {
            Self::BargingMutex => dir.key(HOLDER_NAME),
            Self::Downgraded => dir.key(DOWNGRADED_NAME),
            _ => dir.key(&operation.to_string()),
        }
    }
}

pub(super) const DOWNGRADED_NAME: &str = "downgraded";

/// A grant as data: it can be sent to another process, and be checked and released there. It ends with the session that
/// acquired it.
///
/// The session must live on, in the process that acquired it: dropping a ticket releases nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// What it is a grant of.
    pub kind: TicketKind,
    /// The realm of the lock.
    #[serde(with = "as_text")]
    pub realm: Realm,
    /// The name of the lock.
    pub name: String,
    /// The acquire that it came from.
    pub operation: Operation,
    /// The fencing token.
    pub token: u64,
    /// The revision that created its entry: the token, except for a writer that was downgraded.
    pub created: u64,
}

impl Ticket {
    /// The ticket of a grant of which only these are known. A downgraded one cannot be rebuilt: keep the ticket itself.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir, for token 0, and for [`TicketKind::Downgraded`].
    pub fn rebuild(kind: TicketKind, realm: &Realm, name: &str, operation: Operation, token: u64) -> Result<Self> {
        if kind == TicketKind::Downgraded {
            return Err(Error::invalid(
                "the ticket of a downgraded writer cannot be rebuilt: its token does not tell its entry",
            ));
        }
        let ticket = Self { kind, realm: realm.clone(), name: name.to_owned(), operation, token, created: token };
        ticket.entry()?;
        Ok(ticket)
    }

    /// The ticket of an acquire, wherever it stands: also of one that still waits, to be given up by
    /// [`release`](Self::release). `None` if it left no entry.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn find(
        kv: &KvHandle,
        kind: TicketKind,
        realm: &Realm,
        name: &str,
        operation: Operation,
    ) -> Result<Option<Self>> {
        let Some(entry) = kv.get(&kind.key(realm, name, operation)?).await? else {
            return Ok(None);
        };
        let theirs = Holder::from_entry(&entry).operation.is_some_and(|found| found != operation);
        let created = entry.created.0;
        let ticket = Self { kind, realm: realm.clone(), name: name.to_owned(), operation, token: created, created };
        Ok((!theirs).then_some(ticket))
    }

    /// The entry in the store that is the grant.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir.
    pub fn key(&self) -> Result<Key> {
        self.kind.key(&self.realm, &self.name, self.operation)
    }

    /// Releases it; `false` if it had gone before. Asks an engine that does not answer again, a few times.
    ///
    /// # Errors
    /// `Invalid` for a ticket that was tampered with; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// It may have been released. Releasing again is safe.
    pub async fn release(&self, kv: &KvHandle) -> Result<bool> {
        const ATTEMPTS: u32 = 5;
        let (key, created) = self.entry()?;
        let txn = Txn {
            checks: vec![Check::CreatedAt(key.clone(), created)],
            reads: Vec::new(),
            writes: vec![Write::Delete(key)],
        };
        let mut backoff = Backoff::new(kv.env(), FIRST_PAUSE, LONGEST_PAUSE);
        let mut in_doubt = false;
        let mut attempts = 1;
        loop {
            match kv.txn(&self.realm, txn.clone()).await {
                // If an answer was lost, that request was the one that deleted it.
                Ok(outcome) => return Ok(in_doubt || matches!(outcome, TxnOutcome::Committed { .. })),
                Err(error) if !is_retryable(&error) => return Err(error),
                Err(error) => {
                    in_doubt |= error.effect() == Effect::Unknown;
                    if attempts == ATTEMPTS {
                        return Err(if in_doubt { error.effect_unknown() } else { error });
                    }
                }
            }
            attempts += 1;
            backoff.pause().await;
        }
    }

    /// Asks the store whether it is still a grant. The answer may be old when it arrives.
    ///
    /// # Errors
    /// `Fenced` if it is not; `Invalid` for a ticket that was tampered with; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn check(&self, kv: &KvHandle) -> Result<()> {
        let (key, created) = self.entry()?;
        match kv.get(&key).await? {
            Some(entry) if entry.created == created => Ok(()),
            _ => Err(Error::new(ErrorKind::Fenced, format!("{self} is no longer held"))),
        }
    }

    fn entry(&self) -> Result<(Key, Revision)> {
        if self.token == 0 || self.created == 0 {
            return Err(Error::invalid(format!("{self} is not allowed: tokens begin at 1")));
        }
        Ok((self.key()?, Revision(self.created)))
    }
}

const FIRST_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} with token {}", self.kind.family(), self.name, self.token)
    }
}

mod as_text {
    use super::Realm;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(realm: &Realm, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(realm.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Realm, D::Error> {
        Realm::new(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
