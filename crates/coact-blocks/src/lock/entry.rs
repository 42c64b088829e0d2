//! The one entry that an acquire creates: looking for it, and taking it away for good.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, Revision, Txn, TxnOutcome, Write},
    name::Key,
};

use crate::{backoff::is_retryable, session::Core};

/// An entry that is ours if it exists: no other acquire writes this value to this key.
#[derive(Clone)]
pub(super) struct OwnEntry {
    pub(super) core: Arc<Core>,
    pub(super) key: Key,
    pub(super) value: Bytes,
}

impl OwnEntry {
    /// Whether this is what our acquire created, whoever holds the key now.
    pub(super) fn is(&self, entry: &Entry) -> bool {
        entry.key == self.key && entry.value == self.value
    }

    /// Deletes it; `false` if it had gone before.
    pub(super) async fn delete(&self, created: Revision) -> Result<bool> {
        let txn = Txn {
            checks: vec![Check::CreatedAt(self.key.clone(), created)],
            reads: Vec::new(),
            writes: vec![Write::Delete(self.key.clone())],
        };
        let outcome = self.core.kv().txn(self.key.realm(), txn).await?;
        Ok(matches!(outcome, TxnOutcome::Committed { .. }))
    }

    /// Takes it away, for the session's task: until that is certain or the session ends.
    ///
    /// `created` is `None` if the answer to the creation is not known. `unanswered` says that a request to create it was
    /// sent whose answer never came: it may still be on its way and arrive after our deletion. No check can exclude
    /// that without an entry for each withdrawal, so we look again, for as long as a request can plausibly be late.
    pub(super) async fn withdraw(self, created: Option<Revision>, unanswered: bool) {
        self.remove(created).await;
        if unanswered {
            self.sweep().await;
        }
    }

    /// Deletes what late requests create.
    pub(super) async fn sweep(&self) {
        const TIMES: u32 = 3;
        for _ in 0..TIMES {
            self.core.env().sleep(self.core.ttl() / TIMES).await;
            self.remove(None).await;
        }
    }

    /// Returns when the entry is no longer ours, and says so.
    pub(super) async fn gone(&self, created: Revision) -> Error {
        let mut backoff = self.core.backoff();
        loop {
            let _ = self.core.env().timeout(self.wait_limit(), self.core.kv().await_gone(&self.key, created)).await;
            match self.core.kv().get(&self.key).await {
                Ok(Some(entry)) if entry.created == created => backoff.pause().await,
                Ok(_) => return self.gone_error(created),
                // The session ends this if it goes on for too long.
                Err(_) => backoff.pause().await,
            }
        }
    }

    pub(super) fn gone_error(&self, created: Revision) -> Error {
        let message = format!("{} created at {created} is gone: its lease ended or somebody deleted it", self.key);
        Error::new(ErrorKind::Fenced, message)
    }

    /// How long to rely on a wake-up: the safety net looks at most once per ttl.
    pub(super) fn wait_limit(&self) -> Duration {
        self.core.ttl() + self.core.env().random_duration(self.core.ttl() / 4)
    }

    /// Deletes it, asking again until that is certain. `created` as in [`withdraw`](Self::withdraw).
    async fn remove(&self, created: Option<Revision>) {
        let mut backoff = self.core.backoff();
        loop {
            let removed = match created {
                Some(created) => self.delete(created).await.map(drop),
                None => self.find_and_delete().await,
            };
            match removed {
                Ok(()) => return,
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => {
                    tracing::warn!(key = %self.key, %error, "a lock entry stays until its session ends");
                    return;
                }
            }
        }
    }

    async fn find_and_delete(&self) -> Result<()> {
        if let Some(found) = self.core.kv().get(&self.key).await?
            && self.is(&found)
        {
            self.delete(found.created).await?;
        }
        Ok(())
    }
}
