//! The guard: proof of holding a lock, with the token that makes it safe.

use std::{
    fmt,
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

use super::{entry::OwnEntry, mutex::Lock};
use crate::{backoff::is_retryable, session::Core};

/// The lock is held, as far as this process can know. See the [module](super) for how to protect what a late write could
/// still reach.
///
/// Dropping it releases the lock in the background; [`release`](Self::release) does so and reports.
#[must_use = "dropping the guard releases the lock"]
pub struct Guard {
    lock: Arc<Lock>,
    entry: OwnEntry,
    token: Revision,
    /// A request to create the entry got no answer, and may arrive after the release.
    unanswered: bool,
    released: bool,
    /// Whether the store was seen without our entry.
    gone: Arc<AtomicBool>,
}

impl Guard {
    pub(super) fn new(lock: Arc<Lock>, entry: OwnEntry, token: Revision, unanswered: bool) -> Self {
        Self { lock, entry, token, unanswered, released: false, gone: Arc::default() }
    }

    /// The fencing token: grows with each grant of this lock, in both modes.
    pub fn token(&self) -> u64 {
        self.token.0
    }

    /// The name of the lock.
    pub fn name(&self) -> &str {
        &self.lock.name
    }

    /// Whether the lock can be taken for held without asking the store: the session's deadline has not passed and nothing
    /// showed that the entry is gone.
    pub fn is_held(&self) -> bool {
        self.core().is_alive() && !self.gone.load(Ordering::Relaxed)
    }

    /// Returns why the lock is lost, once it is: the session is over, or the entry was deleted by another hand.
    ///
    /// The session's end is known before the store can grant the lock to anybody else.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn lost(&self) -> impl Future<Output = Error> + Send + 'static {
        let (entry, token, gone) = (self.entry.clone(), self.token, self.gone.clone());
        let session_lost = self.core().lost();
        async move {
            let why = tokio::select! {
                biased;
                why = session_lost => why,
                why = entry.gone(token) => why,
            };
            gone.store(true, Ordering::Relaxed);
            why
        }
    }

    /// Asks the store whether the lock is still held. The answer may be old when it arrives: to act on it, use
    /// [`txn`](Self::txn) or the token.
    ///
    /// # Errors
    /// `Fenced` if it is lost; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn check(&self) -> Result<()> {
        self.core().ensure_alive()?;
        match self.core().kv().get(&self.entry.key).await? {
            Some(entry) if entry.created == self.token => self.core().ensure_alive(),
            _ => Err(self.lost_error()),
        }
    }

    /// Runs a transaction in the lock's realm that takes effect only if the lock is still held. It may have one check less
    /// than others; the index in a refusal counts the caller's checks.
    ///
    /// # Errors
    /// `Fenced` if the lock is lost: nothing was changed. Otherwise as
    /// [`KvHandle::txn`](coact_core::contract::kv::KvHandle::txn).
    ///
    /// # Cancel safety
    /// Once polled, the transaction may commit though the future is dropped.
    pub async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome> {
        txn.checks.insert(0, Check::CreatedAt(self.entry.key.clone(), self.token));
        match self.core().kv().txn(self.lock.dir.realm(), txn).await? {
            TxnOutcome::Refused { check: 0, .. } => Err(self.lost_error()),
            TxnOutcome::Refused { check, found } => Ok(TxnOutcome::Refused { check: check - 1, found }),
            committed => Ok(committed),
        }
    }

    /// Releases the lock, asking an engine that does not answer again for as long as the session lives.
    ///
    /// # Errors
    /// `Fenced` if the lock had been lost before: what it protected may have been in two hands.
    ///
    /// # Cancel safety
    /// The session's task finishes the release.
    pub async fn release(mut self) -> Result<()> {
        let core = self.core().clone();
        let deleted = core.unless_lost(self.delete()).await?;
        self.released = true;
        if deleted { Ok(()) } else { Err(self.lost_error()) }
    }

    /// Deletes the entry; `false` if it had gone before.
    async fn delete(&self) -> Result<bool> {
        let mut backoff = self.core().backoff();
        let mut in_doubt = false;
        loop {
            match self.entry.delete(self.token).await {
                // If an answer was lost, that request was the one that deleted it.
                Ok(deleted) => return Ok(deleted || in_doubt),
                Err(error) if is_retryable(&error) => in_doubt |= error.effect() == Effect::Unknown,
                Err(error) => return Err(error),
            }
            backoff.pause().await;
        }
    }

    fn lost_error(&self) -> Error {
        self.gone.store(true, Ordering::Relaxed);
        let message = format!("lock {} is no longer held with token {}", self.lock.name, self.token);
        Error::new(ErrorKind::Fenced, message)
    }

    fn core(&self) -> &Arc<Core> {
        &self.entry.core
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (entry, token, unanswered) = (self.entry.clone(), self.token, self.unanswered);
        if !self.released {
            self.core().defer(entry.withdraw(Some(token), unanswered));
        } else if unanswered {
            self.core().defer(async move { entry.sweep().await });
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({}, token {})", self.lock.name, self.token)
    }
}
