//! The one entry that an acquire creates: knowing it again, and taking it away for good.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, LeaseId, Revision, Txn, TxnOutcome, Write},
    name::Key,
};

use super::Holder;
use crate::{Session, backoff::is_retryable, session::Core};

/// An entry that belongs to one operation of our session.
///
/// Its name is the operation, which nobody else has. Where the name is fixed, the value tells the operation instead.
#[derive(Clone)]
pub(super) struct OwnEntry {
    pub(super) core: Arc<Core>,
    pub(super) lease: LeaseId,
    pub(super) key: Key,
    pub(super) holder: Holder,
    value: Bytes,
}

impl OwnEntry {
    pub(super) fn new(session: &Session, key: Key, holder: Holder) -> Result<Self> {
        let value = holder.to_bytes()?;
        Ok(Self { core: session.core().clone(), lease: session.lease(), key, holder, value })
    }

    /// Whether this is the entry of our operation.
    pub(super) fn is(&self, entry: &Entry) -> bool {
        let told_by_name = self.holder.operation.is_none();
        entry.key == self.key && (told_by_name || Holder::from_entry(entry).operation == self.holder.operation)
    }

    /// Whether this is the entry of our operation, and no later call with the same operation took it over.
    pub(super) fn is_of_this_call(&self, entry: &Entry) -> bool {
        let alone = self.holder.call.is_none();
        self.is(entry) && (alone || Holder::from_entry(entry).call == self.holder.call)
    }

    /// Creates or changes it.
    pub(super) fn put(&self) -> Write {
        self.put_value(self.value.clone())
    }

    pub(super) fn put_value(&self, value: Bytes) -> Write {
        Write::Put { key: self.key.clone(), value, lease: Some(self.lease) }
    }

    /// Deletes it; `false` if it had gone before.
    pub(super) async fn delete(&self, created: Revision) -> Result<bool> {
        self.delete_if(Check::CreatedAt(self.key.clone(), created)).await
    }

    /// Takes it away, for the session's task: until that is certain or the session ends.
    ///
    /// `created` is `None` if the answer to the creation is not known. `unanswered` says that a request to create it was
    /// sent whose answer never came: it may still be on its way and arrive after our deletion. No check can exclude
    /// that without an entry for each withdrawal, so we look again, for as long as a request can plausibly be late.
    pub(super) async fn withdraw(self, created: Option<Revision>, unanswered: bool) {
        self.remove(created).await;
        if unanswered {
            self.sweep(None).await;
        }
    }

    /// Deletes what late requests create, but not what was created at `except`.
    pub(super) async fn sweep(&self, except: Option<Revision>) {
        const TIMES: u32 = 3;
        for _ in 0..TIMES {
            self.core.env().sleep(self.core.ttl() / TIMES).await;
            self.until_certain(|| self.find_and_delete(except)).await;
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
        match created {
            // What a later call may have taken over has to be looked at first.
            Some(created) if self.holder.call.is_none() => {
                self.until_certain(|| async { self.delete(created).await.map(drop) }).await;
            }
            _ => self.until_certain(|| self.find_and_delete(None)).await,
        }
    }

    async fn until_certain<F: Future<Output = Result<()>>>(&self, mut attempt: impl FnMut() -> F) {
        let mut backoff = self.core.backoff();
        loop {
            match attempt().await {
                Ok(()) => return,
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => {
                    tracing::warn!(key = %self.key, %error, "a lock entry stays until its session ends");
                    return;
                }
            }
        }
    }

    async fn find_and_delete(&self, except: Option<Revision>) -> Result<()> {
        loop {
            match self.core.kv().get(&self.key).await? {
                Some(found) if self.is_of_this_call(&found) && Some(found.created) != except => {
                    if self.delete_if(Check::ModifiedAt(self.key.clone(), found.modified)).await? {
                        return Ok(());
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    async fn delete_if(&self, check: Check) -> Result<bool> {
        let txn = Txn { checks: vec![check], reads: Vec::new(), writes: vec![Write::Delete(self.key.clone())] };
        let outcome = self.core.kv().txn(self.key.realm(), txn).await?;
        Ok(matches!(outcome, TxnOutcome::Committed { .. }))
    }
}
