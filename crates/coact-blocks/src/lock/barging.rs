//! One barging acquire: all compete for the one key of the holder.

use std::sync::Arc;

use coact_core::{
    Result,
    contract::kv::{Entry, Found, Read},
    name::Key,
};

use super::{
    Lock,
    claim::{Claim, Creation, Request, Wake},
    held::Held,
    mutex::{Mode, ensure_mode},
    ticket::TicketKind,
};

/// A barging acquire on its way. Dropping it withdraws what it left in the store.
///
/// Fair and barging users of one name never hold it together: a fair entry is not created while the holder's key exists,
/// and a barging holder has the lock only if its entry was the first of the dir when or after it was created.
pub(super) struct Race(Claim);

impl Race {
    pub(super) fn new(lock: &Arc<Lock>, holder: &Key, request: Request) -> Result<Self> {
        Claim::named(lock, holder, request).map(Self)
    }

    /// Waits as long as it takes.
    pub(super) async fn wait_for_grant(mut self) -> Result<Held> {
        let mut holder = self.try_once().await?;
        if holder.is_some() {
            self.0.core().lock_counters().waits.increment();
        }
        let mut backoff = self.0.core().backoff();
        while let Some(before) = holder {
            let wake = self.0.wait_for(&before, &mut backoff).await?;
            holder = self.try_once().await?;
            let still_there = holder.as_ref().is_some_and(|now| now.created == before.created);
            if !still_there {
                backoff.reset();
            } else if wake == Wake::Store {
                self.0.core().lock_counters().spurious_wakeups.increment();
                backoff.pause().await;
            }
        }
        self.0.grant(TicketKind::BargingMutex)
    }

    /// Takes the lock if it is free, and looks before it writes.
    pub(super) async fn grant_or_give_up(mut self) -> Result<Option<Held>> {
        if let Some(first) = self.first().await? {
            ensure_mode(&self.0.lock, Mode::Barging, &first)?;
            return Ok(None);
        }
        if self.try_once().await?.is_none() {
            return self.0.grant(TicketKind::BargingMutex).map(Some);
        }
        Ok(None)
    }

    /// Creates the one entry, or returns who has it.
    async fn try_once(&mut self) -> Result<Option<Entry>> {
        let mut backoff = self.0.core().backoff();
        loop {
            let first = Read::First(self.0.entry.key.dir().clone());
            match self.0.create(Vec::new(), vec![first], Vec::new()).await? {
                Creation::Now(found) => {
                    self.stay_if_first(found.first().and_then(Found::entry)).await?;
                    return Ok(None);
                }
                Creation::Earlier => {
                    let first = self.look().await?;
                    self.stay_if_first(first.as_ref()).await?;
                    return Ok(None);
                }
                Creation::Refused(Some(holder)) => return Ok(Some(holder)),
                Creation::Refused(None) => backoff.pause().await,
            }
        }
    }

    /// Verifies that our entry exists and finds the one before it, if there is any.
    async fn look(&mut self) -> Result<Option<Entry>> {
        let created = self.0.created()?;
        let key = self.0.entry.key.clone();
        let found = self.0.read(vec![Read::Get(key.clone()), Read::First(key.dir().clone())]).await?;
        let entry_at = |index: usize| found.get(index).and_then(Found::entry);
        if entry_at(0).is_none_or(|mine| mine.created != created) {
            return Err(self.0.gone(created));
        }
        Ok(entry_at(1).filter(|first| first.created < created).cloned())
    }

    /// An entry before ours is a fair one.
    async fn stay_if_first(&mut self, before: Option<&Entry>) -> Result<()> {
        match before {
            Some(before) => {
                self.0.withdraw().await?;
                ensure_mode(&self.0.lock, Mode::Barging, before)
            }
            None => Ok(()),
        }
    }

    async fn first(&mut self) -> Result<Option<Entry>> {
        let found = self.0.read(vec![Read::First(self.0.entry.key.dir().clone())]).await?;
        Ok(found.first().and_then(Found::entry).cloned())
    }
}
