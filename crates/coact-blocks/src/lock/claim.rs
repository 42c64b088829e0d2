//! Creating an own entry so that nothing is left behind, whatever happens to requests, answers and futures.

use std::sync::Arc;

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::kv::{Check, Entry, Found, Read, Revision, Txn, TxnOutcome, Write},
    name::Key,
};
use futures::future::BoxFuture;

use super::{Holder, Lock, Operation, entry::OwnEntry, held::Held, ticket::TicketKind};
use crate::{
    backoff::{Backoff, is_retryable},
    session::Core,
};

/// An own entry on its way to a grant. While it lives it knows what it may have left in the store; dropping it takes that
/// away.
///
/// Its async methods take `&mut self`: the flight is not `Sync`, so a shared borrow would make the acquire's future not
/// `Send`.
pub(super) struct Claim {
    pub(super) lock: Arc<Lock>,
    pub(super) entry: OwnEntry,
    /// When our entry was created, once that is known.
    pub(super) created: Option<Revision>,
    operation: Operation,
    /// Whether an earlier call with our operation may have been granted the entry that we took over.
    may_be_granted: bool,
    /// Whether a request to create it got no answer.
    unanswered: bool,
    /// The request that waits for its answer. Dropping it would leave unknown what it did, so [`Drop`] hands it over.
    flight: Option<BoxFuture<'static, Result<TxnOutcome>>>,
}

/// What an acquire asks for, besides its lock.
#[derive(Default)]
pub(super) struct Request {
    /// The operation of [`acquire_as`](super::Mutex::acquire_as); otherwise a random one.
    pub(super) operation: Option<Operation>,
    /// What a candidate proclaims.
    pub(super) value: Option<String>,
}

/// How [`Claim::create`] ended.
pub(super) enum Creation {
    /// The entry was created now; the reads show what was before it.
    Now(Vec<Found>),
    /// An earlier request created it.
    Earlier,
    /// One of the caller's checks did not hold, or the key is in other hands.
    Refused(Option<Entry>),
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    Store,
    SafetyNet,
    Failure,
}

impl Claim {
    /// Where the entry's name is the operation.
    pub(super) fn named_by_operation(lock: &Arc<Lock>, dir: &coact_core::name::Dir, request: Request) -> Result<Self> {
        let operation = request.operation.unwrap_or_else(|| Operation::random(lock.core().env()));
        let holder = Holder { call: call_of(lock, &request), value: request.value, ..lock.holder() };
        Self::new(lock, dir.key(&operation.to_string())?, operation, holder)
    }

    /// Where the entry's name is fixed, so that the value has to tell the operation.
    pub(super) fn named(lock: &Arc<Lock>, key: &Key, request: Request) -> Result<Self> {
        let operation = request.operation.unwrap_or_else(|| Operation::random(lock.core().env()));
        let holder = Holder { operation: Some(operation), call: call_of(lock, &request), ..lock.holder() };
        Self::new(lock, key.clone(), operation, holder)
    }

    fn new(lock: &Arc<Lock>, key: Key, operation: Operation, holder: Holder) -> Result<Self> {
        let entry = OwnEntry::new(&lock.session, key, holder)?;
        Ok(Self {
            lock: lock.clone(),
            entry,
            created: None,
            operation,
            may_be_granted: false,
            unanswered: false,
            flight: None,
        })
    }

    /// Creates the entry, with these checks, reads and further writes, asking again for as long as the session lives.
    pub(super) async fn create(
        &mut self,
        checks: Vec<Check>,
        reads: Vec<Read>,
        writes: Vec<Write>,
    ) -> Result<Creation> {
        let mut backoff = self.core().backoff();
        let absent = Check::Absent(self.entry.key.clone());
        let txn = Txn {
            checks: std::iter::once(absent).chain(checks).collect(),
            reads,
            writes: std::iter::once(self.entry.put()).chain(writes).collect(),
        };
        loop {
            match self.send(txn.clone()).await {
                Ok(TxnOutcome::Committed { revision, reads }) => {
                    self.created = Some(revision);
                    return Ok(Creation::Now(reads));
                }
                Ok(TxnOutcome::Refused { found: Some(found), .. }) if self.entry.is(&found) => {
                    if self.adopt(found).await? {
                        return Ok(Creation::Earlier);
                    }
                }
                Ok(TxnOutcome::Refused { found, .. }) => return Ok(Creation::Refused(found)),
                Err(error) => self.after_failure(error, &mut backoff).await?,
            }
        }
    }

    /// Takes over the entry that an earlier request or call with our operation created; `false` if it went away.
    ///
    /// A call that was dropped may be about to withdraw it. So it is rewritten as this call's, and only what is of its own
    /// call is withdrawn. But as long as it may have been granted to the earlier call, it is left alone when this one is
    /// dropped: whoever has the ticket keeps it.
    async fn adopt(&mut self, mut found: Entry) -> Result<bool> {
        if found.lease != Some(self.entry.lease) {
            return Err(self.other_session(&found));
        }
        let mut backoff = self.core().backoff();
        while !self.entry.is_of_this_call(&found) {
            self.may_be_granted = true;
            let holder = Holder { call: self.entry.holder.call.clone(), ..Holder::from_entry(&found) };
            let txn = Txn {
                checks: vec![Check::ModifiedAt(self.entry.key.clone(), found.modified)],
                reads: Vec::new(),
                writes: vec![self.entry.put_value(holder.to_bytes()?)],
            };
            match self.send(txn).await {
                Ok(TxnOutcome::Committed { .. }) => break,
                Ok(TxnOutcome::Refused { found: Some(now), .. }) if self.entry.is(&now) => found = now,
                Ok(TxnOutcome::Refused { .. }) => {
                    self.may_be_granted = false;
                    return Ok(false);
                }
                Err(error) => self.after_failure(error, &mut backoff).await?,
            }
        }
        self.entry.holder.value = Holder::from_entry(&found).value;
        self.created = Some(found.created);
        Ok(true)
    }

    /// Reads, asking again for as long as the session lives.
    pub(super) async fn read(&mut self, reads: Vec<Read>) -> Result<Vec<Found>> {
        let mut backoff = self.core().backoff();
        loop {
            let txn = Txn { reads: reads.clone(), ..Txn::default() };
            match self.core().kv().txn(&self.lock.realm, txn).await {
                Ok(TxnOutcome::Committed { reads, .. }) => return Ok(reads),
                Ok(TxnOutcome::Refused { .. }) => {
                    return Err(Error::new(ErrorKind::Internal, "an engine refused a transaction without checks"));
                }
                Err(error) => self.after_failed_read(error, &mut backoff).await?,
            }
        }
    }

    /// When our entry was created, for what comes after that.
    pub(super) fn created(&self) -> Result<Revision> {
        self.created.ok_or_else(|| Error::new(ErrorKind::Internal, "an acquire goes on without an entry"))
    }

    /// Notes that our entry was seen to wait: nobody has a grant of it.
    pub(super) fn waits(&mut self) {
        self.may_be_granted = false;
    }

    /// Notes that the store was seen without our entry, and says so.
    pub(super) fn gone(&mut self, created: Revision) -> Error {
        self.created = None;
        self.entry.gone_error(created)
    }

    /// Waits until the store says that this entry is gone, with a safety net.
    pub(super) async fn wait_for(&mut self, before: &Entry, backoff: &mut Backoff) -> Result<Wake> {
        let core = self.core().clone();
        let gone = core.kv().await_gone(&before.key, before.created);
        let ended = core.env().timeout(self.entry.wait_limit(), gone).await;
        self.count_wake(ended, backoff).await
    }

    /// What the end of a wait means; `None` is the safety net's.
    pub(super) async fn count_wake(&mut self, ended: Option<Result<()>>, backoff: &mut Backoff) -> Result<Wake> {
        match ended {
            Some(Ok(())) => {
                self.core().lock_counters().wakeups.increment();
                Ok(Wake::Store)
            }
            Some(Err(error)) if is_retryable(&error) => {
                backoff.pause().await;
                Ok(Wake::Failure)
            }
            Some(Err(error)) => Err(error),
            None => {
                self.core().lock_counters().rereads.increment();
                Ok(Wake::SafetyNet)
            }
        }
    }

    /// The lock is ours, if the lease is still to be trusted.
    pub(super) fn grant(self, kind: TicketKind) -> Result<Held> {
        let core = self.core().clone();
        let held = self.regrant(kind)?;
        core.lock_counters().acquisitions.increment();
        Ok(held)
    }

    /// As [`grant`](Self::grant), where the lock was ours before.
    pub(super) fn regrant(mut self, kind: TicketKind) -> Result<Held> {
        self.core().ensure_alive()?;
        let created = self.created()?;
        self.created = None;
        let unanswered = std::mem::take(&mut self.unanswered);
        Ok(Held::new(self.lock.clone(), self.entry.clone(), kind, self.operation, created, unanswered))
    }

    /// Takes our entry away before going on. What cannot be taken away now, [`Drop`] hands to the session's task.
    pub(super) async fn withdraw(&mut self) -> Result<()> {
        let mut backoff = self.core().backoff();
        while let Some(created) = self.created {
            let entry = self.entry.clone();
            match entry.delete(created).await {
                Ok(_) => self.created = None,
                Err(error) => self.after_failed_read(error, &mut backoff).await?,
            }
        }
        Ok(())
    }

    /// Sends a request that writes our entry, in a way that survives this future.
    pub(super) async fn send(&mut self, txn: Txn) -> Result<TxnOutcome> {
        self.core().ensure_alive()?;
        let (kv, realm) = (self.core().kv().clone(), self.lock.realm.clone());
        let flight = self.flight.insert(Box::pin(async move { kv.txn(&realm, txn).await }));
        let answer = flight.await;
        self.flight = None;
        answer
    }

    /// After a request that writes our entry failed: pauses if it is worth another try.
    pub(super) async fn after_failure(&mut self, error: Error, backoff: &mut Backoff) -> Result<()> {
        self.unanswered |= error.effect() == Effect::Unknown;
        self.after_failed_write(error, backoff).await
    }

    /// After a request failed that changes our entry but cannot create it.
    pub(super) async fn after_failed_write(&mut self, error: Error, backoff: &mut Backoff) -> Result<()> {
        if error.kind() == ErrorKind::Fenced {
            self.core().mark_fenced(&error);
            return self.core().ensure_alive();
        }
        self.after_failed_read(error, backoff).await
    }

    pub(super) async fn after_failed_read(&mut self, error: Error, backoff: &mut Backoff) -> Result<()> {
        if !is_retryable(&error) {
            return Err(error);
        }
        backoff.pause().await;
        self.core().ensure_alive()
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.entry.core
    }

    fn other_session(&self, found: &Entry) -> Error {
        let Lock { kind, name, .. } = &*self.lock;
        let (operation, who) = (self.operation, Holder::from_entry(found).label);
        let message = format!("operation {operation} on {kind} {name} is of another session, {who}: use another one");
        Error::new(ErrorKind::Conflict, message)
    }
}

/// Tells the calls with one operation from each other. Without an operation of the caller's there is only one.
fn call_of(lock: &Lock, request: &Request) -> Option<String> {
    request.operation.map(|_| format!("{:016x}", lock.core().env().random()))
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.may_be_granted {
            return;
        }
        let (entry, created, unanswered) = (self.entry.clone(), self.created, self.unanswered);
        if let Some(flight) = self.flight.take() {
            let core = self.core().clone();
            self.core().defer(async move {
                let answer = core.env().timeout(core.ttl(), flight).await;
                let answered = matches!(answer, Some(Ok(_)));
                entry.withdraw(None, unanswered || !answered).await;
            });
        } else if created.is_some() || unanswered {
            self.core().defer(entry.withdraw(created, unanswered));
        }
    }
}
