//! Watching an election: a copy of the queue, kept by a watch, whose first entry is the leader's.

use std::collections::{BTreeMap, HashMap};

use coact_core::{
    Result,
    contract::kv::{Change, Entry, Feed, KvHandle, Order, Revision, Scope},
    name::{Dir, Key},
};
use futures::{FutureExt, Stream, StreamExt, stream};

use super::election::Leader;
use crate::backoff::{Backoff, is_retryable};

/// Delivers who leads, and then every change.
pub(super) fn leaders(kv: &KvHandle, dir: &Dir) -> impl Stream<Item = Result<Option<Leader>>> + Send + use<> {
    let observer = Observer {
        kv: kv.clone(),
        dir: dir.clone(),
        backoff: Backoff::new(kv.env(), FIRST_PAUSE, LONGEST_PAUSE),
        queue: Queue::default(),
        feed: None,
        next_change: None,
        delivered: None,
    };
    stream::unfold(Some(observer), |observer| async {
        let mut observer = observer?;
        match observer.next().await {
            Ok(leader) => Some((Ok(leader), Some(observer))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

const FIRST_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);
const LISTED_AT_ONCE: usize = 256;

struct Observer {
    kv: KvHandle,
    dir: Dir,
    backoff: Backoff,
    queue: Queue,
    /// What keeps the queue up to date; without it, it has to be read anew.
    feed: Option<Feed>,
    /// Taken from the feed, but not yet into the queue.
    next_change: Option<Change>,
    delivered: Option<Option<Leader>>,
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Leader>> {
        loop {
            let followed = match self.feed {
                Some(_) => self.follow().await,
                None => self.read().await,
            };
            match followed {
                Ok(()) => {}
                Err(error) if is_retryable(&error) => {
                    self.feed = None;
                    self.backoff.pause().await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let leader = self.queue.first().map(Leader::from_entry);
            if self.feed.is_some() && self.delivered.as_ref() != Some(&leader) {
                self.delivered = Some(leader.clone());
                return Ok(leader);
            }
        }
    }

    /// Reads the whole queue and watches it from there.
    async fn read(&mut self) -> Result<()> {
        self.queue = Queue::default();
        self.next_change = None;
        let mut after = Revision::default();
        let mut seen = None;
        loop {
            let page = self.kv.list(&self.dir, Order::Created { after }, LISTED_AT_ONCE).await?;
            // Later pages may show later changes, which the watch then repeats.
            let seen = *seen.get_or_insert(page.revision);
            for entry in page.entries {
                after = entry.created;
                self.queue.put(entry);
            }
            if !page.more {
                self.feed = Some(self.kv.watch(Scope::Dir(self.dir.clone()), Some(seen)).await?);
                self.backoff.reset();
                return Ok(());
            }
        }
    }

    /// Takes what one transaction changed into the queue: between its changes nobody leads.
    async fn follow(&mut self) -> Result<()> {
        let Some(feed) = &mut self.feed else { return Ok(()) };
        let mut change = match self.next_change.take() {
            Some(change) => change,
            None => match feed.next().await {
                Some(change) => change?,
                None => {
                    self.feed = None;
                    return Ok(());
                }
            },
        };
        loop {
            let at = revision_of(&change);
            if !self.queue.take(change) {
                self.feed = None;
                return Ok(());
            }
            match feed.next().now_or_never() {
                Some(Some(Ok(next))) if at.is_some() && revision_of(&next) == at => change = next,
                Some(Some(Ok(next))) => {
                    self.next_change = Some(next);
                    return Ok(());
                }
                Some(Some(Err(error))) => return Err(error),
                Some(None) | None => return Ok(()),
            }
        }
    }
}

fn revision_of(change: &Change) -> Option<Revision> {
    match change {
        Change::Put(entry) => Some(entry.modified),
        Change::Gone { at, .. } => Some(*at),
        Change::Progress(_) | Change::Resync { .. } => None,
    }
}

/// A copy of the queue.
#[derive(Default)]
struct Queue {
    in_order: BTreeMap<(Revision, Key), Entry>,
    created: HashMap<Key, Revision>,
}

impl Queue {
    fn first(&self) -> Option<&Entry> {
        self.in_order.values().next()
    }

    /// `false` if it no longer shows the queue.
    fn take(&mut self, change: Change) -> bool {
        match change {
            Change::Put(entry) => self.put(entry),
            Change::Gone { key, at, .. } if self.created.get(&key).is_some_and(|created| *created < at) => {
                self.remove(&key)
            }
            Change::Gone { .. } => {}
            Change::Progress(_) => {}
            Change::Resync { .. } => return false,
        }
        true
    }

    /// The watch may repeat what the listing showed: only what is newer counts.
    fn put(&mut self, entry: Entry) {
        let known = self.created.get(&entry.key).and_then(|created| self.in_order.get(&(*created, entry.key.clone())));
        if known.is_some_and(|known| known.modified >= entry.modified) {
            return;
        }
        self.remove(&entry.key);
        self.created.insert(entry.key.clone(), entry.created);
        self.in_order.insert((entry.created, entry.key.clone()), entry);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(created) = self.created.remove(key) {
            self.in_order.remove(&(created, key.clone()));
        }
    }
}
