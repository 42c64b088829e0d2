//! One acquire of a permit: a place in a queue in which the first N hold.
//!
//! Any holder may leave, so a release could wake everybody who waits. Instead only the first waiter watches the dir; each
//! other watches the waiter before it. Waiters say so in their entries (`granted: false`), and say when they have got
//! their permit (`granted: true`), which makes the next one the first: a release wakes two, and one of them only moves up.

use std::{collections::HashSet, sync::Arc};

use coact_core::{
    Error, Result,
    contract::kv::{Change, Check, Entry, Feed, Found, Order, Read, Revision, Scope, Txn, TxnOutcome},
    env::PlantedBug,
    name::Key,
};
use futures::{FutureExt, StreamExt, future::BoxFuture};

use super::{
    Holder,
    claim::{Claim, Creation, Request, Wake},
    held::Held,
    semaphore::{Limit, Shared},
    ticket::TicketKind,
};
use crate::backoff::Backoff;

/// An acquire of a permit on its way. Dropping it withdraws what it left in the store.
pub(super) struct PermitAttempt {
    semaphore: Arc<Shared>,
    claim: Claim,
    /// When our entry was last changed, as far as we know.
    modified: Revision,
    /// What our entry says of us.
    granted: Option<bool>,
}

/// Where we stand.
struct Place {
    limit: Limit,
    /// When the limit was read.
    limit_seen: Revision,
    /// How many entries were created before ours.
    rank: u64,
    /// The entry right before ours.
    before: Option<Entry>,
    earlier: HashSet<Key>,
    /// When the queue was read.
    seen: Revision,
}

impl Place {
    fn is_granted(&self) -> bool {
        self.rank < u64::from(self.limit.permits)
    }

    /// The entry before ours, if that waits too. Then it is enough to watch it.
    fn waiter_before(&self) -> Option<&Entry> {
        self.before.as_ref().filter(|before| Holder::from_entry(before).granted == Some(false))
    }

    fn shows_the_same_as(&self, other: &Self) -> bool {
        let modified = |place: &Self| place.before.as_ref().map(|before| before.modified);
        self.rank == other.rank && self.limit == other.limit && modified(self) == modified(other)
    }
}

impl PermitAttempt {
    pub(super) fn new(semaphore: &Arc<Shared>, request: Request) -> Result<Self> {
        let claim = Claim::named_by_operation(&semaphore.lock, &semaphore.dir, request)?;
        Ok(Self { semaphore: semaphore.clone(), claim, modified: Revision::default(), granted: None })
    }

    /// Waits as long as it takes.
    pub(super) async fn wait_for_grant(mut self) -> Result<Held> {
        if self.enqueue().await? {
            return self.claim.grant(TicketKind::Permit);
        }
        let mut place = self.look().await?;
        if !place.is_granted() {
            self.claim.core().lock_counters().waits.increment();
        }
        let mut backoff = self.claim.core().backoff();
        loop {
            if place.is_granted() {
                if self.promote(place.limit).await? {
                    return self.claim.grant(TicketKind::Permit);
                }
                place = self.look().await?;
                continue;
            }
            self.claim.waits();
            self.say(false, None).await?;
            let wake = self.wait_at(&place, &mut backoff).await?;
            if self.claim.core().env().planted(PlantedBug::SkipReverify) {
                return self.claim.grant(TicketKind::Permit);
            }
            let now = self.look().await?;
            if !now.shows_the_same_as(&place) {
                backoff.reset();
            } else if wake == Wake::Store {
                self.claim.core().lock_counters().spurious_wakeups.increment();
                backoff.pause().await;
            }
            place = now;
        }
    }

    /// Takes a permit if one is free, and looks before it writes.
    pub(super) async fn grant_or_give_up(mut self) -> Result<Option<Held>> {
        let limit = self.semaphore.agree().await?;
        let reads = vec![Read::Count(self.semaphore.dir.clone()), Read::Get(self.semaphore.limit_key.clone())];
        let found = self.claim.read(reads).await?;
        let stored = found.get(1).and_then(Found::entry);
        self.semaphore.note_found(stored)?;
        let limit = if stored.is_some() { self.semaphore.agree().await? } else { limit };
        if count(&found) >= u64::from(limit.permits) {
            return Ok(None);
        }
        if self.enqueue().await? {
            return self.claim.grant(TicketKind::Permit).map(Some);
        }
        self.claim.withdraw().await?;
        Ok(None)
    }

    /// Creates our entry, and says whether fewer than the limit were there before: then it is granted.
    async fn enqueue(&mut self) -> Result<bool> {
        let mut backoff = self.claim.core().backoff();
        loop {
            let limit = self.semaphore.agree().await?;
            let checks = vec![Check::ModifiedAt(self.semaphore.limit_key.clone(), limit.modified)];
            let reads = vec![Read::Count(self.semaphore.dir.clone())];
            match self.claim.create(checks, reads, Vec::new()).await? {
                Creation::Now(found) => {
                    self.modified = self.claim.created()?;
                    return Ok(count(&found) < u64::from(limit.permits));
                }
                Creation::Earlier => {
                    self.modified = self.claim.created()?;
                    return Ok(false);
                }
                Creation::Refused(found) => {
                    self.semaphore.note_found(found.as_ref())?;
                    backoff.pause().await;
                }
            }
        }
    }

    /// Finds our place. Who is before us can only become fewer, so what this shows is a bound for later.
    async fn look(&mut self) -> Result<Place> {
        let mut backoff = self.claim.core().backoff();
        loop {
            // First the limit: a change of it after this is seen by the watch.
            match self.read_limit().await {
                Ok((limit, limit_seen)) => match self.read_queue(limit, limit_seen).await {
                    Ok(Some(place)) => return Ok(place),
                    Ok(None) => {
                        let created = self.claim.created()?;
                        return Err(self.claim.gone(created));
                    }
                    Err(error) => self.claim.after_failed_read(error, &mut backoff).await?,
                },
                Err(error) => self.claim.after_failed_read(error, &mut backoff).await?,
            }
        }
    }

    async fn read_limit(&mut self) -> Result<(Limit, Revision)> {
        loop {
            let txn = Txn { reads: vec![Read::Get(self.semaphore.limit_key.clone())], ..Txn::default() };
            if let TxnOutcome::Committed { revision, reads } =
                self.claim.core().kv().txn(&self.semaphore.lock.realm, txn).await?
            {
                let stored = reads.first().and_then(Found::entry);
                self.semaphore.note_found(stored)?;
                let limit = self.semaphore.agree().await?;
                if stored.is_some() {
                    return Ok((limit, revision));
                }
            }
        }
    }

    /// `None` if our entry is not there.
    async fn read_queue(&mut self, limit: Limit, limit_seen: Revision) -> Result<Option<Place>> {
        let mut place =
            Place { limit, limit_seen, rank: 0, before: None, earlier: HashSet::new(), seen: Revision::default() };
        loop {
            let after = place.before.as_ref().map_or(Revision::default(), |before| before.created);
            let order = Order::Created { after };
            let page = self.claim.core().kv().list(&self.semaphore.dir, order, LISTED_AT_ONCE).await?;
            if place.rank == 0 {
                place.seen = page.revision;
            }
            for entry in page.entries {
                if entry.key == self.claim.entry.key {
                    return Ok((Some(entry.created) == self.claim.created).then_some(place));
                }
                place.rank += 1;
                place.earlier.insert(entry.key.clone());
                place.before = Some(entry);
            }
            if !page.more {
                return Ok(None);
            }
        }
    }

    /// Takes the permit, if the limit is still the one that we compared with; otherwise `false`.
    async fn promote(&mut self, limit: Limit) -> Result<bool> {
        self.say(true, Some(limit)).await
    }

    /// Writes into our entry what those behind us must know; `false` if the limit has changed.
    ///
    /// The check of the revision keeps a request that was given up from arriving after the next one.
    async fn say(&mut self, granted: bool, limit: Option<Limit>) -> Result<bool> {
        if self.granted == Some(granted) {
            return Ok(true);
        }
        let holder = Holder { granted: Some(granted), ..self.claim.entry.holder.clone() };
        let value = holder.to_bytes()?;
        let created = self.claim.created()?;
        let mut backoff = self.claim.core().backoff();
        loop {
            let mut checks = vec![Check::ModifiedAt(self.claim.entry.key.clone(), self.modified)];
            checks.extend(limit.map(|limit| Check::ModifiedAt(self.semaphore.limit_key.clone(), limit.modified)));
            let writes = vec![self.claim.entry.put_value(value.clone())];
            let txn = Txn { checks, reads: Vec::new(), writes };
            self.claim.core().ensure_alive()?;
            let answer = self.claim.core().kv().txn(&self.semaphore.lock.realm, txn).await;
            match answer {
                Ok(TxnOutcome::Committed { revision, .. }) => {
                    self.modified = revision;
                    self.granted = Some(granted);
                    return Ok(true);
                }
                Ok(TxnOutcome::Refused { check: 0, found: Some(found) }) if found.created == created => {
                    self.modified = found.modified;
                }
                Ok(TxnOutcome::Refused { check: 0, .. }) => return Err(self.claim.gone(created)),
                Ok(TxnOutcome::Refused { found, .. }) => {
                    self.semaphore.note_found(found.as_ref())?;
                    // An earlier request, whose answer was lost, may have said so.
                    self.granted = None;
                    return Ok(false);
                }
                Err(error) => self.claim.after_failed_write(error, &mut backoff).await?,
            }
        }
    }

    /// Waits until our place may have become another, with a safety net.
    async fn wait_at(&mut self, place: &Place, backoff: &mut Backoff) -> Result<Wake> {
        let kv = self.claim.core().kv().clone();
        let env = self.claim.core().env().clone();
        let limit_key = self.semaphore.limit_key.clone();
        let dir = self.semaphore.dir.clone();
        let changed: BoxFuture<'_, Result<()>> = match place.waiter_before() {
            Some(before) => async move {
                let feed = kv.watch(Scope::Key(before.key.clone()), Some(place.seen)).await?;
                until(feed, |change| !matches!(change, Change::Put(entry) if waits(entry))).await
            }
            .boxed(),
            None => async move {
                let queue = kv.watch(Scope::Dir(dir), Some(place.seen)).await?;
                let limit = kv.watch(Scope::Key(limit_key), Some(place.limit_seen)).await?;
                tokio::select! {
                    biased;
                    changed = until(limit, |_| true) => changed,
                    changed = until(queue, |change| moves_us(place, change)) => changed,
                }
            }
            .boxed(),
        };
        let ended = env.timeout(self.claim.entry.wait_limit(), changed).await;
        self.claim.count_wake(ended, backoff).await
    }
}

const LISTED_AT_ONCE: usize = 256;

fn count(found: &[Found]) -> u64 {
    match found.first() {
        Some(Found::Count(count)) => *count,
        _ => u64::MAX,
    }
}

/// Whether the owner of this entry says that it waits.
fn waits(entry: &Entry) -> bool {
    Holder::from_entry(entry).granted == Some(false)
}

/// Whether a change in the dir makes the first waiter another, or lets it be granted.
fn moves_us(place: &Place, change: &Change) -> bool {
    match change {
        Change::Gone { key, .. } => place.earlier.contains(key),
        Change::Put(entry) => place.before.as_ref().is_some_and(|before| before.key == entry.key) && waits(entry),
        Change::Resync { .. } => true,
        Change::Progress(_) => false,
    }
}

/// Returns at the first change that matters.
async fn until(mut feed: Feed, matters: impl Fn(&Change) -> bool) -> Result<()> {
    while let Some(change) = feed.next().await {
        let change = change?;
        if !matches!(change, Change::Progress(_)) && matters(&change) {
            return Ok(());
        }
    }
    Err(Error::new(coact_core::ErrorKind::Unavailable, "a watch ended"))
}
