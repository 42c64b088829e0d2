//! One fair acquire: takes a place in the line, and waits until nothing is before it.

use std::sync::Arc;

use coact_core::{
    Result,
    contract::kv::{Check, Entry, Found, Order, Read, Revision},
    env::PlantedBug,
    name::{Dir, Key},
};

use super::{
    Lock,
    claim::{Claim, Creation, Request, Wake},
    held::Held,
    mutex::{Mode, ensure_mode},
    ticket::TicketKind,
};
use crate::backoff::Backoff;

/// Where an entry is created, and what keeps it from being granted.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// What a grant in this line is.
    pub(super) kind: TicketKind,
    /// Where the entry is created.
    pub(super) own: Dir,
    /// Every entry here that was created earlier is before ours.
    pub(super) ahead: Vec<Dir>,
    /// An entry that holds the lock although ours may be older.
    pub(super) gate: Option<Key>,
    /// The holder's key of the other mode.
    pub(super) barging: Option<Key>,
}

/// A fair acquire on its way. Dropping it withdraws what it left in the store.
pub(super) struct Attempt {
    pub(super) claim: Claim,
    line: Line,
}

/// Where we stand.
enum Place {
    /// The lock is ours.
    First,
    /// This entry is the nearest of those before ours.
    Behind(Entry),
}

impl Attempt {
    pub(super) fn new(lock: &Arc<Lock>, line: &Line, request: Request) -> Result<Self> {
        Ok(Self { claim: Claim::named_by_operation(lock, &line.own, request)?, line: line.clone() })
    }

    /// Waits as long as it takes.
    pub(super) async fn wait_for_grant(mut self) -> Result<Held> {
        let mut place = self.enqueue().await?;
        if matches!(place, Place::Behind(_)) {
            self.claim.core().lock_counters().waits.increment();
        }
        let mut backoff = self.claim.core().backoff();
        while let Place::Behind(before) = place {
            self.claim.waits();
            let wake = self.claim.wait_for(&before, &mut backoff).await?;
            if self.claim.core().env().planted(PlantedBug::SkipReverify) {
                break;
            }
            place = self.look(Some(&before)).await?;
            let still_there = matches!(&place, Place::Behind(now) if now.created == before.created);
            if !still_there {
                backoff.reset();
            } else if wake == Wake::Store {
                self.claim.core().lock_counters().spurious_wakeups.increment();
                backoff.pause().await;
            }
        }
        self.grant()
    }

    /// Takes the lock if it is free, and looks before it writes.
    pub(super) async fn grant_or_give_up(mut self) -> Result<Option<Held>> {
        let found = self.claim.read(self.firsts()).await?;
        if let Some(first) = found.iter().find_map(Found::entry) {
            self.ensure_same_mode(first)?;
            return Ok(None);
        }
        if let Place::First = self.enqueue().await? {
            return self.grant().map(Some);
        }
        self.claim.withdraw().await?;
        Ok(None)
    }

    /// Whether nothing is before our entry but what is held already, at this moment: for an upgrade whose answer was lost.
    pub(super) async fn is_first_but_for(&mut self, held: &Held) -> Result<bool> {
        let created = self.claim.created()?;
        let key = Read::Get(self.claim.entry.key.clone());
        // What was created after ours waits for ours; so nothing comes before ours any more, once it is the first.
        let found = self.claim.read(std::iter::once(key).chain(self.firsts()).collect()).await?;
        let mut entries = found.iter().map(Found::entry);
        if entries.next().flatten().is_none_or(|mine| mine.created != created) {
            return Err(self.claim.gone(created));
        }
        let (gate, mut in_line): (Vec<_>, Vec<_>) =
            entries.flatten().partition(|first| Some(&first.key) == self.line.gate.as_ref());
        in_line.retain(|first| first.created < created);
        Ok(in_line.into_iter().chain(gate).all(|first| first.created == held.created)
            && self.second_reader_is_later(held, created).await?)
    }

    /// Whether what was created in the dir of `held` right after it came after our entry.
    async fn second_reader_is_later(&mut self, held: &Held, created: Revision) -> Result<bool> {
        let mut backoff = self.claim.core().backoff();
        loop {
            let order = Order::Created { after: held.created };
            match self.claim.core().kv().list(held.entry.key.dir(), order, 1).await {
                Ok(page) => return Ok(page.entries.first().is_none_or(|second| second.created > created)),
                Err(error) => self.claim.after_failed_read(error, &mut backoff).await?,
            }
        }
    }

    /// Creates our entry and learns in the same round trip who is before us.
    async fn enqueue(&mut self) -> Result<Place> {
        let mut backoff = self.claim.core().backoff();
        loop {
            // The holder's key exists in barging mode only: see `barging.rs`.
            let checks = self.line.barging.iter().cloned().map(Check::Absent).collect();
            let lasts = self.line.ahead.iter().cloned().map(Read::Last);
            let reads = lasts.chain(self.line.gate.iter().cloned().map(Read::Get)).collect();
            match self.claim.create(checks, reads, Vec::new()).await? {
                Creation::Now(found) => return Ok(self.nearest_of(&found)),
                Creation::Earlier => return self.look(None).await,
                Creation::Refused(holder) => self.meet_barging_holder(holder, &mut backoff).await?,
            }
        }
    }

    /// What was created last of all that was there before us: then nothing that we wait for can be nearer. The gate comes
    /// last, since whoever is at the gate cannot leave the line before us.
    fn nearest_of(&self, found: &[Found]) -> Place {
        let (in_line, gate) = found.split_at(self.line.ahead.len().min(found.len()));
        let nearest = in_line.iter().filter_map(Found::entry).max_by_key(|entry| entry.created);
        let nearest = nearest.or_else(|| gate.iter().find_map(Found::entry));
        nearest.cloned().map_or(Place::First, Place::Behind)
    }

    /// The holder's key of the other mode kept us out. If fair entries are before it, its owner is about to withdraw.
    async fn meet_barging_holder(&mut self, holder: Option<Entry>, backoff: &mut Backoff) -> Result<()> {
        let found = self.claim.read(vec![Read::First(self.line.own.clone())]).await?;
        if let Some(first) = found.first().and_then(Found::entry) {
            self.ensure_same_mode(first)?;
        }
        match holder {
            Some(holder) => self.claim.wait_for(&holder, backoff).await.map(drop),
            None => {
                backoff.pause().await;
                Ok(())
            }
        }
    }

    fn ensure_same_mode(&self, entry: &Entry) -> Result<()> {
        if self.line.barging.is_some() { ensure_mode(&self.claim.lock, Mode::Fair, entry) } else { Ok(()) }
    }

    /// Verifies that our entry exists and finds the nearest one before it. `before` is the one we waited for.
    async fn look(&mut self, mut before: Option<&Entry>) -> Result<Place> {
        loop {
            let created = self.claim.created()?;
            let mut reads = vec![Read::Get(self.claim.entry.key.clone())];
            reads.extend(before.map(|before| Read::Get(before.key.clone())));
            let others = reads.len();
            reads.extend(self.firsts());
            let found = self.claim.read(reads).await?;
            let (own, firsts) = found.split_at(others.min(found.len()));
            let entry_at = |index: usize| own.get(index).and_then(Found::entry);
            if entry_at(0).is_none_or(|mine| mine.created != created) {
                return Err(self.claim.gone(created));
            }
            let (in_line, gate) = firsts.split_at(self.line.ahead.len().min(firsts.len()));
            if in_line.iter().filter_map(Found::entry).all(|first| first.created >= created) {
                return Ok(gate.iter().find_map(Found::entry).cloned().map_or(Place::First, Place::Behind));
            }
            match (entry_at(1), before) {
                (Some(found), Some(before))
                    if found.created == before.created && self.line.gate.as_ref() != Some(&found.key) =>
                {
                    return Ok(Place::Behind(found.clone()));
                }
                _ => {}
            }
            if let Some(nearest) = self.nearest_before(created).await? {
                return Ok(Place::Behind(nearest));
            }
            // All of them have left since we looked.
            before = None;
        }
    }

    /// What decides whether we are the first.
    fn firsts(&self) -> Vec<Read> {
        let firsts = self.line.ahead.iter().cloned().map(Read::First);
        firsts.chain(self.line.gate.iter().cloned().map(Read::Get)).collect()
    }

    /// The entry right before ours, after the one that was there has died in the queue: rare, and worth a listing, since
    /// waiting for any other would wake two at once.
    async fn nearest_before(&mut self, created: Revision) -> Result<Option<Entry>> {
        let mut nearest: Option<Entry> = None;
        for dir in self.line.ahead.clone() {
            let in_dir = self.last_before(&dir, created).await?;
            nearest = nearest.into_iter().chain(in_dir).max_by_key(|entry| entry.created);
        }
        Ok(nearest)
    }

    async fn last_before(&mut self, dir: &Dir, created: Revision) -> Result<Option<Entry>> {
        let mut last: Option<Entry> = None;
        let mut backoff = self.claim.core().backoff();
        loop {
            let after = last.as_ref().map_or(Revision::default(), |entry| entry.created);
            let listed = self.claim.core().kv().list(dir, Order::Created { after }, LISTED_AT_ONCE).await;
            let page = match listed {
                Ok(page) => page,
                Err(error) => {
                    self.claim.after_failed_read(error, &mut backoff).await?;
                    continue;
                }
            };
            let listed = page.entries.len();
            let earlier: Vec<Entry> = page.entries.into_iter().take_while(|entry| entry.created < created).collect();
            let all_earlier = earlier.len() == listed;
            last = earlier.into_iter().next_back().or(last);
            if !all_earlier || !page.more {
                return Ok(last);
            }
        }
    }

    fn grant(self) -> Result<Held> {
        self.claim.grant(self.line.kind)
    }
}

const LISTED_AT_ONCE: usize = 256;
