//! What every guard is made of: proof of holding something, with the token that makes it safe.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::kv::{Check, Revision, Txn, TxnOutcome},
};

use super::{Lock, Operation, Ticket, entry::OwnEntry, ticket::TicketKind};
use crate::{backoff::is_retryable, session::Core};

/// A grant. Dropping it releases it in the background.
pub(super) struct Held {
    pub(super) lock: Arc<Lock>,
    pub(super) entry: OwnEntry,
    pub(super) kind: TicketKind,
    pub(super) operation: Operation,
    pub(super) created: Revision,
    pub(super) token: Revision,
    /// A request to create the entry got no answer, and may arrive after the release.
    unanswered: bool,
    released: bool,
    /// Whether the store was seen without our entry.
    gone: Arc<AtomicBool>,
}

impl Held {
    pub(super) fn new(
        lock: Arc<Lock>,
        entry: OwnEntry,
        kind: TicketKind,
        operation: Operation,
        created: Revision,
        unanswered: bool,
    ) -> Self {
        let gone = Arc::default();
        Self { lock, entry, kind, operation, created, token: created, unanswered, released: false, gone }
    }

    pub(super) fn is_held(&self) -> bool {
        self.core().is_alive() && !self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn lost(&self) -> impl Future<Output = Error> + Send + use<> {
        let (entry, created, gone) = (self.entry.clone(), self.created, self.gone.clone());
        let session_lost = self.core().lost();
        async move {
            let why = tokio::select! {
                biased;
                why = session_lost => why,
                why = entry.gone(created) => why,
            };
            gone.store(true, Ordering::Relaxed);
            why
        }
    }

    pub(super) async fn check(&self) -> Result<()> {
        self.core().ensure_alive()?;
        match self.core().kv().get(&self.entry.key).await? {
            Some(entry) if entry.created == self.created => self.core().ensure_alive(),
            _ => Err(self.lost_error()),
        }
    }

    pub(super) async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome> {
        txn.checks.insert(0, self.is_ours());
        match self.core().kv().txn(&self.lock.realm, txn).await? {
            TxnOutcome::Refused { check: 0, .. } => Err(self.lost_error()),
            TxnOutcome::Refused { check, found } => Ok(TxnOutcome::Refused { check: check - 1, found }),
            committed => Ok(committed),
        }
    }

    pub(super) async fn release(mut self) -> Result<()> {
        let core = self.core().clone();
        let deleted = core.unless_lost(self.delete()).await?;
        self.released = true;
        if deleted { Ok(()) } else { Err(self.lost_error()) }
    }

    /// From now on only the ticket and the session's end release it.
    pub(super) fn detach(mut self) -> Ticket {
        self.released = true;
        if std::mem::take(&mut self.unanswered) {
            let (entry, created) = (self.entry.clone(), self.created);
            self.core().defer(async move { entry.sweep(Some(created)).await });
        }
        Ticket {
            kind: self.kind,
            realm: self.lock.realm.clone(),
            name: self.lock.name.clone(),
            operation: self.operation,
            token: self.token.0,
            created: self.created.0,
        }
    }

    /// Its entry has become another one.
    pub(super) fn forget(mut self) {
        self.released = true;
    }

    /// That the entry is still the one that was granted.
    pub(super) fn is_ours(&self) -> Check {
        Check::CreatedAt(self.entry.key.clone(), self.created)
    }

    /// Deletes the entry; `false` if it had gone before.
    async fn delete(&self) -> Result<bool> {
        let mut backoff = self.core().backoff();
        let mut in_doubt = false;
        loop {
            match self.entry.delete(self.created).await {
                // If an answer was lost, that request was the one that deleted it.
                Ok(deleted) => return Ok(deleted || in_doubt),
                Err(error) if is_retryable(&error) => in_doubt |= error.effect() == Effect::Unknown,
                Err(error) => return Err(error),
            }
            backoff.pause().await;
        }
    }

    pub(super) fn lost_error(&self) -> Error {
        self.gone.store(true, Ordering::Relaxed);
        let Lock { kind, name, .. } = &*self.lock;
        Error::new(ErrorKind::Fenced, format!("{kind} {name} is no longer held with token {}", self.token))
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.entry.core
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (entry, created, unanswered) = (self.entry.clone(), self.created, self.unanswered);
        if !self.released {
            self.core().defer(entry.withdraw(Some(created), unanswered));
        } else if unanswered {
            self.core().defer(async move { entry.sweep(None).await });
        }
    }
}

/// What every guard can do.
macro_rules! guard {
    ($guard:ident, $what:literal) => {
        impl $guard {
            #[doc = concat!("The fencing token: grows with each grant of this ", $what, ".")]
            pub fn token(&self) -> u64 {
                self.0.token.0
            }

            #[doc = concat!("The name of the ", $what, ".")]
            pub fn name(&self) -> &str {
                &self.0.lock.name
            }

            /// Whether it can be taken for held without asking the store: the session's deadline has not passed and
            /// nothing showed that the entry is gone.
            pub fn is_held(&self) -> bool {
                self.0.is_held()
            }

            /// Returns why it is lost, once it is: the session is over, or the entry was deleted by another hand.
            ///
            /// The session's end is known before the store can grant to anybody else what was held.
            ///
            /// # Cancel safety
            /// Safe.
            pub fn lost(&self) -> impl Future<Output = coact_core::Error> + Send + 'static {
                self.0.lost()
            }

            /// Asks the store whether it is still held. The answer may be old when it arrives: to act on it, use
            /// [`txn`](Self::txn) or the token.
            ///
            /// # Errors
            /// `Fenced` if it is lost; `Unavailable` if the store does not answer.
            ///
            /// # Cancel safety
            /// Safe: a read has no effect.
            pub async fn check(&self) -> coact_core::Result<()> {
                self.0.check().await
            }

            /// Runs a transaction in its realm that takes effect only if it is still held. It may have one check less
            /// than others; the index in a refusal counts the caller's checks.
            ///
            /// # Errors
            /// `Fenced` if it is lost: nothing was changed. Otherwise as
            /// [`KvHandle::txn`](coact_core::contract::kv::KvHandle::txn).
            ///
            /// # Cancel safety
            /// Once polled, the transaction may commit though the future is dropped.
            pub async fn txn(
                &self,
                txn: coact_core::contract::kv::Txn,
            ) -> coact_core::Result<coact_core::contract::kv::TxnOutcome> {
                self.0.txn(txn).await
            }

            /// Gives up the guard but not what it holds: from now on it is released by [`Ticket::release`], in
            /// whichever process, or by the end of the session.
            ///
            /// [`Ticket::release`]: crate::lock::Ticket::release
            pub fn detach(self) -> crate::lock::Ticket {
                self.0.detach()
            }
        }

        impl std::fmt::Debug for $guard {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({}, token {})", stringify!($guard), self.name(), self.token())
            }
        }
    };
}

/// Guards of which releasing is the end.
macro_rules! release {
    ($guard:ident) => {
        impl $guard {
            /// Releases it, asking an engine that does not answer again for as long as the session lives.
            ///
            /// # Errors
            /// `Fenced` if it had been lost before: what it protected may have been in two hands.
            ///
            /// # Cancel safety
            /// The session's task finishes the release.
            pub async fn release(self) -> coact_core::Result<()> {
                self.0.release().await
            }
        }
    };
}

pub(super) use {guard, release};
