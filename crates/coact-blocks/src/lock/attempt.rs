//! One acquire: takes a place in the queue, waits for its turn, and withdraws when it is dropped before.

use std::sync::Arc;

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, Found, LeaseId, Order, Read, Revision, Txn, TxnOutcome, Write},
    env::PlantedBug,
};
use futures::future::BoxFuture;

use super::{
    Holder,
    entry::OwnEntry,
    guard::Guard,
    mutex::{Lock, Mode},
};
use crate::{
    backoff::{Backoff, is_retryable},
    session::Core,
};

/// An acquire on its way. While it lives it knows what it may have left in the store; dropping it takes that away.
///
/// Its async methods take `&mut self`: the flight is not `Sync`, so a shared borrow would make the acquire's future not
/// `Send`.
pub(super) struct Attempt {
    lock: Arc<Lock>,
    entry: OwnEntry,
    /// When our entry was created, once that is known.
    created: Option<Revision>,
    /// Whether a request to create it got no answer.
    unanswered: bool,
    /// The request that waits for its answer. Dropping it would leave unknown what it did, so [`Drop`] hands it over.
    flight: Option<BoxFuture<'static, Result<TxnOutcome>>>,
}

/// Where we stand.
enum Place {
    /// The lock is ours.
    First,
    /// This entry is right before ours, or holds the one key that we compete for.
    Behind(Entry),
}

/// Why a wait ended.
#[derive(PartialEq, Eq)]
enum Wake {
    Store,
    SafetyNet,
    Failure,
}

impl Attempt {
    pub(super) fn new(lock: &Arc<Lock>) -> Result<Self> {
        let core = lock.session.core();
        let operation = format!("{:016x}{:016x}", core.env().random(), core.env().random());
        let (key, operation) = match lock.mode {
            Mode::Fair => (lock.dir.key(&operation)?, None),
            Mode::Barging => (lock.holder_key.clone(), Some(operation)),
        };
        let holder =
            Holder { label: lock.label.clone(), pid: Some(std::process::id()), since: core.env().wall_ms(), operation };
        let entry = OwnEntry { core: core.clone(), key, value: holder.to_bytes()? };
        Ok(Self { lock: lock.clone(), entry, created: None, unanswered: false, flight: None })
    }

    /// Waits as long as it takes.
    pub(super) async fn wait_for_grant(mut self) -> Result<Guard> {
        let mut place = self.take_place().await?;
        if matches!(place, Place::Behind(_)) {
            self.core().lock_counters().waits.increment();
        }
        let mut backoff = self.core().backoff();
        while let Place::Behind(before) = place {
            let wake = self.wait_for(&before, &mut backoff).await?;
            if self.created.is_some() && self.core().env().planted(PlantedBug::SkipReverify) {
                break;
            }
            place = self.place_after(&before).await?;
            let still_there = matches!(&place, Place::Behind(now) if now.created == before.created);
            if !still_there {
                backoff.reset();
            } else if wake == Wake::Store {
                self.core().lock_counters().spurious_wakeups.increment();
                backoff.pause().await;
            }
        }
        self.grant()
    }

    /// Takes the lock if it is free, and looks before it writes.
    pub(super) async fn grant_or_give_up(mut self) -> Result<Option<Guard>> {
        if let Some(first) = self.lock.first().await? {
            self.lock.ensure_same_mode(&first)?;
            return Ok(None);
        }
        if let Place::First = self.take_place().await? {
            return self.grant().map(Some);
        }
        self.withdraw().await?;
        Ok(None)
    }

    async fn take_place(&mut self) -> Result<Place> {
        match self.lock.mode {
            Mode::Fair => self.enqueue().await,
            Mode::Barging => self.race().await,
        }
    }

    async fn place_after(&mut self, before: &Entry) -> Result<Place> {
        match self.created {
            Some(created) => self.look(created, Some(before)).await,
            None => self.take_place().await,
        }
    }

    /// Fair: creates our entry and learns in the same round trip who is before us.
    async fn enqueue(&mut self) -> Result<Place> {
        let mut backoff = self.core().backoff();
        loop {
            let txn = Txn {
                // The holder's key exists in barging mode only: see `race`.
                checks: vec![Check::Absent(self.entry.key.clone()), Check::Absent(self.lock.holder_key.clone())],
                reads: vec![Read::Last(self.lock.dir.clone())],
                writes: vec![self.put()],
            };
            match self.send(txn).await {
                Ok(TxnOutcome::Committed { revision, reads }) => {
                    self.created = Some(revision);
                    return Ok(place_behind(reads.into_iter().next()));
                }
                Ok(TxnOutcome::Refused { found: Some(found), .. }) if self.entry.is(&found) => {
                    // An earlier request took effect though its answer was lost.
                    self.created = Some(found.created);
                    return self.look(found.created, None).await;
                }
                Ok(TxnOutcome::Refused { found, .. }) => self.meet_barging_holder(found, &mut backoff).await?,
                Err(error) => self.after_failure(error, &mut backoff).await?,
            }
        }
    }

    /// Barging: creates the one entry, or learns who has it.
    ///
    /// Fair and barging users of one name never hold it together: a fair entry is not created while the holder's key
    /// exists, and a barging holder has the lock only if its entry was the first of the dir when or after it was created.
    async fn race(&mut self) -> Result<Place> {
        let mut backoff = self.core().backoff();
        loop {
            let txn = Txn {
                checks: vec![Check::Absent(self.entry.key.clone())],
                reads: vec![Read::First(self.lock.dir.clone())],
                writes: vec![self.put()],
            };
            match self.send(txn).await {
                Ok(TxnOutcome::Committed { revision, reads }) => {
                    self.created = Some(revision);
                    return self.stay_if_first(place_behind(reads.into_iter().next())).await;
                }
                Ok(TxnOutcome::Refused { found: Some(found), .. }) if self.entry.is(&found) => {
                    self.created = Some(found.created);
                    let place = self.look(found.created, None).await?;
                    return self.stay_if_first(place).await;
                }
                Ok(TxnOutcome::Refused { found: Some(found), .. }) => return Ok(Place::Behind(found)),
                Ok(TxnOutcome::Refused { found: None, .. }) => backoff.pause().await,
                Err(error) => self.after_failure(error, &mut backoff).await?,
            }
        }
    }

    /// Barging: an entry before ours is a fair one.
    async fn stay_if_first(&mut self, place: Place) -> Result<Place> {
        if let Place::Behind(before) = &place {
            self.withdraw().await?;
            self.lock.ensure_same_mode(before)?;
        }
        Ok(place)
    }

    /// Fair: the holder's key kept us out. If fair entries are before it, its owner is about to withdraw.
    async fn meet_barging_holder(&mut self, holder: Option<Entry>, backoff: &mut Backoff) -> Result<()> {
        if let Some(first) = self.lock.first().await? {
            self.lock.ensure_same_mode(&first)?;
        }
        match holder {
            Some(holder) => self.wait_for(&holder, backoff).await.map(drop),
            None => {
                backoff.pause().await;
                Ok(())
            }
        }
    }

    /// Verifies that our entry exists and finds the one before it.
    async fn look(&mut self, created: Revision, before: Option<&Entry>) -> Result<Place> {
        let mut reads = vec![Read::Get(self.entry.key.clone()), Read::First(self.lock.dir.clone())];
        reads.extend(before.map(|before| Read::Get(before.key.clone())));
        let mut backoff = self.core().backoff();
        loop {
            let txn = Txn { reads: reads.clone(), ..Txn::default() };
            match self.core().kv().txn(self.lock.dir.realm(), txn).await {
                Ok(TxnOutcome::Committed { reads, .. }) => return self.judge(created, before, &reads).await,
                Ok(TxnOutcome::Refused { .. }) => {
                    return Err(Error::new(ErrorKind::Internal, "an engine refused a transaction without checks"));
                }
                Err(error) => self.after_failed_read(error, &mut backoff).await?,
            }
        }
    }

    async fn judge(&mut self, created: Revision, before: Option<&Entry>, reads: &[Found]) -> Result<Place> {
        let entry_at = |index: usize| reads.get(index).and_then(Found::entry);
        if entry_at(0).is_none_or(|mine| mine.created != created) {
            self.created = None;
            return Err(self.entry.gone_error(created));
        }
        if entry_at(1).is_some_and(|first| first.created == created) {
            return Ok(Place::First);
        }
        match (entry_at(2), before) {
            (Some(found), Some(before)) if found.created == before.created => Ok(Place::Behind(found.clone())),
            _ => self.nearest_before(created).await,
        }
    }

    /// The entry right before ours, after the one that was there has died in the queue: rare, and worth a listing, since
    /// waiting for any other would wake two at once.
    async fn nearest_before(&mut self, created: Revision) -> Result<Place> {
        let mut nearest: Option<Entry> = None;
        let mut backoff = self.core().backoff();
        loop {
            let after = nearest.as_ref().map_or(Revision::default(), |entry| entry.created);
            let listed = self.core().kv().list(&self.lock.dir, Order::Created { after }, LISTED_AT_ONCE).await;
            let page = match listed {
                Ok(page) => page,
                Err(error) => {
                    self.after_failed_read(error, &mut backoff).await?;
                    continue;
                }
            };
            let mut entries = page.entries.into_iter().peekable();
            while let Some(entry) = entries.next_if(|entry| entry.created < created) {
                nearest = Some(entry);
            }
            match entries.next() {
                Some(mine) if mine.created == created => return Ok(nearest.map_or(Place::First, Place::Behind)),
                None if page.more => {}
                // Ours has gone since we looked.
                _ => {
                    self.created = None;
                    return Err(self.entry.gone_error(created));
                }
            }
        }
    }

    /// Waits until the store says that this entry is gone, with a safety net.
    async fn wait_for(&mut self, before: &Entry, backoff: &mut Backoff) -> Result<Wake> {
        let core = self.core();
        let gone = core.kv().await_gone(&before.key, before.created);
        match core.env().timeout(self.entry.wait_limit(), gone).await {
            Some(Ok(())) => {
                core.lock_counters().wakeups.increment();
                Ok(Wake::Store)
            }
            Some(Err(error)) if is_retryable(&error) => {
                backoff.pause().await;
                Ok(Wake::Failure)
            }
            Some(Err(error)) => Err(error),
            None => {
                core.lock_counters().rereads.increment();
                Ok(Wake::SafetyNet)
            }
        }
    }

    /// The lock is ours, if the lease is still to be trusted.
    fn grant(mut self) -> Result<Guard> {
        self.core().ensure_alive()?;
        let Some(token) = self.created.take() else {
            return Err(Error::new(ErrorKind::Internal, "a lock was granted to an attempt without an entry"));
        };
        self.core().lock_counters().acquisitions.increment();
        let unanswered = std::mem::take(&mut self.unanswered);
        Ok(Guard::new(self.lock.clone(), self.entry.clone(), token, unanswered))
    }

    /// Takes our entry away before going on. What cannot be taken away now, [`Drop`] hands to the session's task.
    async fn withdraw(&mut self) -> Result<()> {
        if let Some(created) = self.created {
            self.entry.delete(created).await?;
            self.created = None;
        }
        Ok(())
    }

    /// Sends a request to create our entry, in a way that survives this future.
    async fn send(&mut self, txn: Txn) -> Result<TxnOutcome> {
        self.core().ensure_alive()?;
        let (kv, realm) = (self.core().kv().clone(), self.lock.dir.realm().clone());
        let flight = self.flight.insert(Box::pin(async move { kv.txn(&realm, txn).await }));
        let answer = flight.await;
        self.flight = None;
        answer
    }

    /// After a request to create our entry failed: pauses if it is worth another try.
    async fn after_failure(&mut self, error: Error, backoff: &mut Backoff) -> Result<()> {
        self.unanswered |= error.effect() == coact_core::Effect::Unknown;
        if error.kind() == ErrorKind::Fenced {
            self.core().mark_fenced(&error);
            return self.core().ensure_alive();
        }
        self.after_failed_read(error, backoff).await
    }

    async fn after_failed_read(&mut self, error: Error, backoff: &mut Backoff) -> Result<()> {
        if !is_retryable(&error) {
            return Err(error);
        }
        backoff.pause().await;
        self.core().ensure_alive()
    }

    fn put(&self) -> Write {
        let lease: LeaseId = self.lock.session.lease();
        Write::Put { key: self.entry.key.clone(), value: self.entry.value.clone(), lease: Some(lease) }
    }

    fn core(&self) -> &Arc<Core> {
        &self.entry.core
    }
}

const LISTED_AT_ONCE: usize = 256;

fn place_behind(found: Option<Found>) -> Place {
    match found {
        Some(Found::Entry(Some(before))) => Place::Behind(before),
        _ => Place::First,
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
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
