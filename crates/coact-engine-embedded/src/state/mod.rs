//! The state machine of the Kv contract: every key with its recent versions, folded from the log.
//!
//! Changes are applied here by the writer *before* they are durable, at revisions above [`State::visible`]; readers see
//! only up to `visible`, which the writer raises after the sync. So nobody reads what a crash could take back, and a
//! transaction sees those before it in the same batch.

mod execute;
mod lease;
mod range;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

pub(crate) use execute::Transaction;
pub(crate) use lease::{LeaseTable, MAX_LEASE};

use crate::{
    flat::{Event, FlatError, FlatResult, Record},
    frame::{Change, Frame},
    message::Messages,
};

/// The revision of an empty store, as in etcd.
pub(crate) const FIRST_REVISION: u64 = 1;

#[derive(Debug)]
pub(crate) struct State {
    keys: BTreeMap<Arc<[u8]>, Slot>,
    /// For each parent (a key up to its last slash): its live keys by creation. Entries deleted above `visible` stay
    /// until they are deleted for readers too, so users of this index look at the slot as well.
    parents: BTreeMap<Arc<[u8]>, Parent>,
    /// Deletions not yet visible, to be taken out of `parents`.
    retired: Vec<(u64, Arc<[u8]>)>,
    /// Every revision from `compacted` on, without gaps.
    commits: VecDeque<Arc<Commit>>,
    compacted: u64,
    applied: u64,
    visible: u64,
    /// While a snapshot is written, nothing that it may still need is dropped.
    pinned: bool,
    live: u64,
    pub(crate) leases: LeaseTable,
    pub(crate) store_id: u64,
    /// A planted defect: take every creation check as met.
    pub(crate) ignore_created_check: bool,
}

/// The versions of one key that can still be read.
#[derive(Debug)]
pub(crate) struct Slot {
    latest: Arc<Record>,
    /// Oldest first. Boxed, since most keys have none.
    #[allow(clippy::box_collection, reason = "eight bytes a key instead of twenty-four")]
    older: Option<Box<Vec<Arc<Record>>>>,
}

#[derive(Debug, Default)]
struct Parent {
    by_creation: BTreeSet<(u64, Arc<[u8]>)>,
    /// How many are live for the writer.
    live: u64,
}

/// A key, shared by everything that names it.
pub(crate) type SharedKey = Arc<[u8]>;

/// A commit as a snapshot has it: its keys in order, each with whether a lease's end deleted it.
#[derive(Debug)]
pub(crate) struct StoredCommit {
    pub(crate) revision: u64,
    pub(crate) time_ms: u64,
    pub(crate) changed: Vec<(SharedKey, bool)>,
}

/// One revision.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) revision: u64,
    pub(crate) time_ms: u64,
    pub(crate) events: Vec<Event>,
}

impl Slot {
    fn new(record: Arc<Record>) -> Self {
        Self { latest: record, older: None }
    }

    /// The version that was current at a revision; a tombstone counts as none.
    fn at(&self, revision: u64) -> Option<&Arc<Record>> {
        let found = if self.latest.modified <= revision {
            Some(&self.latest)
        } else {
            let older = self.older.as_deref()?;
            older[..older.partition_point(|record| record.modified <= revision)].last()
        };
        found.filter(|record| !record.is_tombstone())
    }

    fn push(&mut self, record: Arc<Record>) {
        let earlier = std::mem::replace(&mut self.latest, record);
        self.older.get_or_insert_default().push(earlier);
    }

    /// Drops versions that no read from `revision` on can see; true if nothing is left.
    fn compact(&mut self, revision: u64) -> bool {
        if let Some(older) = &mut self.older {
            let seen = if self.latest.modified <= revision {
                older.len()
            } else {
                older.partition_point(|record| record.modified <= revision).saturating_sub(1)
            };
            older.drain(..seen);
            if older.first().is_some_and(|record| record.is_tombstone() && record.modified < revision) {
                older.remove(0);
            }
            if older.is_empty() {
                self.older = None;
            }
        }
        self.older.is_none() && self.latest.is_tombstone() && self.latest.modified < revision
    }

    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.older.iter().flat_map(|older| older.iter()).chain(std::iter::once(&self.latest))
    }
}

impl State {
    pub(crate) fn new(ignore_created_check: bool) -> Self {
        Self {
            keys: BTreeMap::new(),
            parents: BTreeMap::new(),
            retired: Vec::new(),
            commits: VecDeque::new(),
            compacted: 0,
            applied: FIRST_REVISION,
            visible: FIRST_REVISION,
            pinned: false,
            live: 0,
            leases: LeaseTable::default(),
            store_id: 0,
            ignore_created_check,
        }
    }

    /// The newest revision that readers see.
    pub(crate) fn visible(&self) -> u64 {
        self.visible
    }

    /// The newest revision that the writer made.
    #[cfg(test)]
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// The oldest revision that can be read.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// How many keys there are, for the writer.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// The commits from a revision on, as far as they are visible.
    pub(crate) fn commits_from(&self, revision: u64) -> impl Iterator<Item = &Arc<Commit>> {
        let first = self.commits.front().map_or(0, |commit| commit.revision);
        let skip = revision.saturating_sub(first) as usize;
        self.commits.iter().skip(skip).take_while(|commit| commit.revision <= self.visible)
    }

    /// Shows readers everything applied so far and returns the first revision that is new to them.
    pub(crate) fn publish(&mut self) -> u64 {
        let first_new = self.visible + 1;
        self.visible = self.applied;
        self.leases.publish();
        for (created, key) in std::mem::take(&mut self.retired) {
            let parent = parent_of(&key);
            if let Some(entry) = self.parents.get_mut(parent) {
                entry.by_creation.remove(&(created, key.clone()));
                if entry.by_creation.is_empty() {
                    self.parents.remove(parent);
                }
            }
        }
        first_new
    }

    /// Sets a key at revision `applied + 1`, which [`end_commit`](Self::end_commit) completes.
    fn put(&mut self, key: &[u8], value: Bytes, lease: i64) -> Event {
        let revision = self.applied + 1;
        let next = |shared: &Arc<[u8]>, previous: Option<&Arc<Record>>| {
            Arc::new(Record {
                key: shared.clone(),
                value,
                created: previous.map_or(revision, |record| record.created),
                modified: revision,
                version: previous.map_or(1, |record| record.version + 1),
                lease,
            })
        };
        // One look-up for both cases: keys share long prefixes, and look-ups are what a transaction costs.
        let (record, previous) = match self.keys.entry(key.into()) {
            Entry::Occupied(mut entry) => {
                let slot = entry.get_mut();
                let previous = Some(slot.latest.clone()).filter(|record| !record.is_tombstone());
                let record = next(&slot.latest.key.clone(), previous.as_ref());
                slot.push(record.clone());
                (record, previous)
            }
            Entry::Vacant(entry) => {
                let record = next(entry.key(), None);
                entry.insert(Slot::new(record.clone()));
                (record, None)
            }
        };
        let shared = &record.key;
        let held = previous.as_ref().map_or(0, |record| record.lease);
        if held != lease {
            self.leases.detach(held, shared);
            self.leases.attach(lease, shared);
        }
        if previous.is_none() {
            self.live += 1;
            self.index_created(&record);
        }
        Event { record, previous, expired: false }
    }

    /// Deletes a key at revision `applied + 1`; nothing if it does not exist.
    fn delete(&mut self, key: &[u8], expired: bool) -> Option<Event> {
        let revision = self.applied + 1;
        let slot = self.keys.get_mut(key)?;
        let previous = slot.latest.clone();
        if previous.is_tombstone() {
            return None;
        }
        let key = previous.key.clone();
        let tombstone = Arc::new(Record {
            key: key.clone(),
            value: Bytes::new(),
            created: 0,
            modified: revision,
            version: 0,
            lease: 0,
        });
        slot.push(tombstone.clone());
        self.leases.detach(previous.lease, &key);
        self.live -= 1;
        if let Some(parent) = self.parents.get_mut(parent_of(&key)) {
            parent.live -= 1;
        }
        self.retired.push((previous.created, key));
        Some(Event { record: tombstone, previous: Some(previous), expired })
    }

    /// Completes revision `applied + 1` with the events that it consists of; without events there is no revision.
    fn end_commit(&mut self, time_ms: u64, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.applied += 1;
        self.commits.push_back(Arc::new(Commit { revision: self.applied, time_ms, events }));
    }

    fn index_created(&mut self, record: &Arc<Record>) {
        let parent = parent_of(&record.key);
        let entry = match self.parents.get_mut(parent) {
            Some(entry) => entry,
            None => self.parents.entry(parent.into()).or_default(),
        };
        entry.live += 1;
        entry.by_creation.insert((record.created, record.key.clone()));
    }

    /// Applies a frame of the log while recovering. Everything applied is visible.
    pub(crate) fn replay(&mut self, frame: Frame, messages: &mut Messages, now: Instant) -> Result<(), String> {
        let mut events = Vec::new();
        for change in frame.changes {
            match change {
                Change::StoreCreated { id } => self.store_id = id,
                Change::Put { key, value, lease } => {
                    // A copy of its own, lest a small value keep a whole batch in memory.
                    let value = Bytes::copy_from_slice(&value);
                    events.push(self.put(&key, value, lease));
                }
                Change::Delete { key, expired } => {
                    let event = self
                        .delete(&key, expired)
                        .ok_or_else(|| format!("revision {} deletes a key that does not exist", frame.revision))?;
                    events.push(event);
                }
                Change::Compact { revision } => self.compact(revision),
                Change::LeaseGranted { id, ttl_ms } => self.leases.insert(id, Duration::from_millis(ttl_ms), now),
                Change::LeaseEnded { id } => {
                    self.leases.end(id, now);
                }
                Change::Message { change, body } => messages.apply(change, body, now)?,
            }
        }
        self.end_commit(frame.time_ms, events);
        if frame.revision != 0 && frame.revision != self.applied {
            return Err(format!("the log says revision {} where {} follows", frame.revision, self.applied));
        }
        self.publish();
        Ok(())
    }

    /// Refuses a compaction that is behind or ahead.
    pub(crate) fn check_compact(&self, revision: u64) -> FlatResult<()> {
        if revision <= self.compacted {
            return Err(FlatError::Compacted(self.compacted));
        }
        if revision > self.visible {
            return Err(FlatError::Future(self.visible));
        }
        Ok(())
    }

    /// Forgets what only reads before `revision` can see.
    pub(crate) fn compact(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision);
        self.collect_garbage();
    }

    /// The revision to compact to so that nothing committed before `oldest_ms` is kept.
    pub(crate) fn first_since(&self, oldest_ms: u64) -> u64 {
        let aged = self.commits.partition_point(|commit| commit.time_ms < oldest_ms) as u64;
        let first = self.commits.front().map_or(self.visible, |commit| commit.revision);
        // What was current then can still be read.
        (first + aged).saturating_sub(1).min(self.visible)
    }

    fn collect_garbage(&mut self) {
        if self.pinned {
            return;
        }
        while self.commits.front().is_some_and(|commit| commit.revision < self.compacted) {
            let Some(commit) = self.commits.pop_front() else { return };
            for event in &commit.events {
                let key = &event.record.key;
                if self.keys.get_mut(key).is_some_and(|slot| slot.compact(self.compacted)) {
                    self.keys.remove(key);
                }
            }
        }
    }

    /// Keeps everything that a snapshot at `visible` needs, until [`unpin`](Self::unpin).
    pub(crate) fn pin(&mut self) {
        self.pinned = true;
    }

    /// Lets the garbage go again.
    pub(crate) fn unpin(&mut self) {
        self.pinned = false;
        self.collect_garbage();
    }

    pub(crate) fn all_commits(&self) -> Vec<Arc<Commit>> {
        self.commits.iter().cloned().collect()
    }

    /// The slots after a key, in order.
    pub(crate) fn slots_after(&self, after: Option<&Arc<[u8]>>) -> impl Iterator<Item = (&Arc<[u8]>, &Slot)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, |after| Excluded(&after[..]));
        self.keys.range::<[u8], _>((start, Unbounded))
    }

    /// Rebuilds the state from a snapshot: slots in key order, and for each revision its keys in order.
    pub(crate) fn restore(
        &mut self,
        (applied, compacted): (u64, u64),
        slots: Vec<Vec<Arc<Record>>>,
        commits: Vec<StoredCommit>,
    ) -> Result<(), String> {
        (self.applied, self.visible, self.compacted) = (applied, applied, compacted);
        let mut created: BTreeMap<SharedKey, Vec<(u64, SharedKey)>> = BTreeMap::new();
        let mut keys = Vec::with_capacity(slots.len());
        for mut versions in slots {
            let latest = versions.pop().ok_or("a key without versions")?;
            if !latest.is_tombstone() {
                self.live += 1;
                self.leases.attach(latest.lease, &latest.key);
                let parent = parent_of(&latest.key);
                match created.get_mut(parent) {
                    Some(list) => list.push((latest.created, latest.key.clone())),
                    None => {
                        created.insert(parent.into(), vec![(latest.created, latest.key.clone())]);
                    }
                }
            }
            let older = (!versions.is_empty()).then(|| Box::new(versions));
            keys.push((latest.key.clone(), Slot { latest, older }));
        }
        self.keys = keys.into_iter().collect();
        self.parents = created
            .into_iter()
            .map(|(parent, list)| {
                let live = list.len() as u64;
                (parent, Parent { by_creation: list.into_iter().collect(), live })
            })
            .collect();
        for StoredCommit { revision, time_ms, changed } in commits {
            let events = changed
                .into_iter()
                .map(|(key, expired)| self.event_at(&key, revision, expired))
                .collect::<Option<_>>()
                .ok_or_else(|| format!("revision {revision} names a version that is missing"))?;
            self.commits.push_back(Arc::new(Commit { revision, time_ms, events }));
        }
        Ok(())
    }

    fn event_at(&self, key: &[u8], revision: u64, expired: bool) -> Option<Event> {
        let versions: Vec<_> = self.keys.get(key)?.versions().collect();
        let index = versions.binary_search_by_key(&revision, |record| record.modified).ok()?;
        let previous =
            index.checked_sub(1).map(|index| versions[index].clone()).filter(|record| !record.is_tombstone());
        Some(Event { record: versions[index].clone(), previous, expired })
    }
}

/// A key up to and including its last slash; empty if it has none.
fn parent_of(key: &[u8]) -> &[u8] {
    &key[..key.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)]
}

#[cfg(test)]
mod tests;
