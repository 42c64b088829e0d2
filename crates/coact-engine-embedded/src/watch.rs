//! Watches and waiters: who is told of what, decided once for each event, with a bounded queue for each watch.
//!
//! A watch is either *caught up*, and gets events pushed as they become visible, or *behind*, and pulls them from the
//! history. One that does not keep up with its queue falls behind and pulls; one that falls out of the history is told.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use crate::{
    flat::{Event, FlatError, FlatResult, KeyRange},
    state::{Commit, State},
};

/// How many events wait in the queue of one watch before it falls behind.
const QUEUED_EVENTS_MAX: usize = 4096;
/// About how many events one pull from the history delivers.
const PULLED_EVENTS: usize = 1024;

/// Who watches and who waits. Locked after the state, never before it.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    tables: Mutex<Tables>,
    wakes: AtomicU64,
}

#[derive(Debug, Default)]
struct Tables {
    next_id: u64,
    watches: HashMap<u64, Arc<Watch>>,
    /// Watches of one key, of a prefix that ends with a slash (a dir), and of any other range. The first two are found
    /// from the key of an event, so what a busy neighbour writes costs a watch nothing.
    by_key: HashMap<Bytes, Vec<u64>>,
    by_dir: HashMap<Bytes, Vec<u64>>,
    by_range: Vec<u64>,
    waiters: HashMap<Bytes, Vec<Waiter>>,
    waiting: u64,
}

#[derive(Debug)]
struct Watch {
    keys: KeyRange,
    queue: Mutex<Queue>,
    notify: Notify,
}

#[derive(Debug)]
struct Queue {
    pending: VecDeque<(u64, Vec<Event>)>,
    events: usize,
    caught_up: bool,
    /// The first revision not yet delivered or queued.
    next: u64,
    closed: Option<FlatError>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    created: u64,
    wake: oneshot::Sender<()>,
}

/// What one poll of a watch delivers.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Everything up to here is delivered. A revision is never split.
    pub revision: u64,
    /// In revision order.
    pub events: Vec<Event>,
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    id: u64,
    watch: Arc<Watch>,
    hub: Arc<Hub>,
    state: Arc<RwLock<State>>,
}

impl Watcher {
    /// The next events, as soon as there are some.
    ///
    /// # Errors
    /// `Compacted` if the history no longer holds what comes next; `Closed` or `Poisoned` if the engine stopped.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> FlatResult<Delivery> {
        loop {
            let notified = self.watch.notify.notified();
            if let Some(delivery) = self.take_queued()? {
                return Ok(delivery);
            }
            if let Some(delivery) = self.pull()? {
                return Ok(delivery);
            }
            notified.await;
        }
    }

    /// The revision up to which everything was delivered, if nothing visible is left to deliver.
    pub fn caught_up(&self) -> Option<u64> {
        let state = self.state.read();
        let queue = self.watch.queue.lock();
        (queue.caught_up && queue.pending.is_empty()).then(|| state.visible())
    }

    fn take_queued(&self) -> FlatResult<Option<Delivery>> {
        // Revisions are queued event by event, under the state's write lock: this keeps half of one from being taken.
        let _whole = self.state.read();
        let mut queue = self.watch.queue.lock();
        let Some((revision, mut events)) = queue.pending.pop_front() else {
            return queue.closed.clone().map_or(Ok(None), Err);
        };
        let mut delivery_revision = revision;
        while events.len() < PULLED_EVENTS {
            let Some((revision, more)) = queue.pending.pop_front() else { break };
            events.extend(more);
            delivery_revision = revision;
        }
        queue.events -= events.len();
        Ok(Some(Delivery { revision: delivery_revision, events }))
    }

    /// Reads on from the history. Nothing is published meanwhile, since that takes the state's write lock.
    fn pull(&self) -> FlatResult<Option<Delivery>> {
        let state = self.state.read();
        let mut queue = self.watch.queue.lock();
        if queue.caught_up {
            return Ok(None);
        }
        if queue.next < state.compacted() {
            return Err(FlatError::Compacted(state.compacted()));
        }
        let mut events = Vec::new();
        let mut revision = queue.next.saturating_sub(1);
        for commit in state.commits_from(queue.next) {
            revision = commit.revision;
            events.extend(commit.events.iter().filter(|event| self.watch.keys.contains(&event.record.key)).cloned());
            if events.len() >= PULLED_EVENTS {
                break;
            }
        }
        queue.next = queue.next.max(revision + 1);
        queue.caught_up = queue.next > state.visible();
        Ok((!events.is_empty()).then_some(Delivery { revision, events }))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.remove_watch(self.id, &self.watch.keys);
    }
}

impl Hub {
    /// Starts a watch at a revision; zero for what comes next.
    pub(crate) fn watch(self: &Arc<Self>, state: &Arc<RwLock<State>>, keys: KeyRange, start: u64) -> Watcher {
        let shown = state.read();
        let next = if start == 0 { shown.visible() + 1 } else { start };
        let queue =
            Queue { pending: VecDeque::new(), events: 0, caught_up: next > shown.visible(), next, closed: None };
        let watch = Arc::new(Watch { keys, queue: Mutex::new(queue), notify: Notify::new() });
        let id = self.tables.lock().insert(watch.clone());
        Watcher { id, watch, hub: self.clone(), state: state.clone() }
    }

    /// Delivers what became visible. The caller holds the state's write lock.
    pub(crate) fn publish<'a>(&self, commits: impl Iterator<Item = &'a Arc<Commit>>) {
        let mut tables = self.tables.lock();
        if tables.watches.is_empty() && tables.waiters.is_empty() {
            return;
        }
        for commit in commits {
            for event in &commit.events {
                tables.tell_watches(commit.revision, event);
                if event.record.version <= 1 {
                    let woken = tables.wake_waiters(&event.record.key, event.record.created);
                    self.wakes.fetch_add(woken, Relaxed);
                }
            }
        }
    }

    /// A waiter for the end of the entry that was created at `created`. Register first, then look, then wait.
    pub(crate) fn wait(self: &Arc<Self>, key: &[u8], created: u64) -> Wait {
        let (wake, woken) = oneshot::channel();
        let key = Bytes::copy_from_slice(key);
        let mut tables = self.tables.lock();
        tables.next_id += 1;
        tables.waiting += 1;
        let id = tables.next_id;
        tables.waiters.entry(key.clone()).or_default().push(Waiter { id, created, wake });
        Wait { id, key, hub: self.clone(), woken }
    }

    /// Ends every watch with this error and wakes every waiter.
    pub(crate) fn close(&self, error: &FlatError) {
        let mut tables = self.tables.lock();
        for watch in tables.watches.values() {
            watch.queue.lock().closed = Some(error.clone());
            watch.notify.notify_one();
        }
        tables.waiters.clear();
        tables.waiting = 0;
    }

    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let tables = self.tables.lock();
        (tables.watches.len() as u64, tables.waiting, self.wakes.load(Relaxed))
    }

    fn remove_watch(&self, id: u64, keys: &KeyRange) {
        let mut tables = self.tables.lock();
        tables.watches.remove(&id);
        match place(keys) {
            Place::Key => remove_from(&mut tables.by_key, &keys.start, |watch| *watch == id),
            Place::Dir => remove_from(&mut tables.by_dir, &keys.start, |watch| *watch == id),
            Place::Range => tables.by_range.retain(|watch| *watch != id),
        }
    }
}

impl Tables {
    fn insert(&mut self, watch: Arc<Watch>) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        let start = watch.keys.start.clone();
        match place(&watch.keys) {
            Place::Key => self.by_key.entry(start).or_default().push(id),
            Place::Dir => self.by_dir.entry(start).or_default().push(id),
            Place::Range => self.by_range.push(id),
        }
        self.watches.insert(id, watch);
        id
    }

    fn tell_watches(&self, revision: u64, event: &Event) {
        let key = &event.record.key;
        let tell = |id: &u64| {
            if let Some(watch) = self.watches.get(id) {
                watch.push(revision, event);
            }
        };
        self.by_key.get(&key[..]).into_iter().flatten().for_each(tell);
        if !self.by_dir.is_empty() {
            for (at, _) in key.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                self.by_dir.get(&key[..=at]).into_iter().flatten().for_each(tell);
            }
        }
        self.by_range.iter().for_each(tell);
    }

    /// Wakes who waits for an earlier creation than the one that is there now; zero is none.
    fn wake_waiters(&mut self, key: &[u8], created: u64) -> u64 {
        let Some(waiters) = self.waiters.get_mut(key) else { return 0 };
        let mut woken = 0;
        for index in (0..waiters.len()).rev() {
            if waiters[index].created != created {
                let waiter = waiters.swap_remove(index);
                self.waiting -= 1;
                woken += u64::from(waiter.wake.send(()).is_ok());
            }
        }
        if waiters.is_empty() {
            self.waiters.remove(key);
        }
        woken
    }
}

impl Watch {
    fn push(&self, revision: u64, event: &Event) {
        if !self.keys.contains(&event.record.key) {
            return;
        }
        let mut queue = self.queue.lock();
        if !queue.caught_up || revision < queue.next {
            return;
        }
        match queue.pending.back_mut() {
            Some((last, events)) if *last == revision => events.push(event.clone()),
            _ => queue.pending.push_back((revision, vec![event.clone()])),
        }
        queue.events += 1;
        if queue.events > QUEUED_EVENTS_MAX {
            // It pulls from the history from here on, at its own pace.
            queue.next = queue.pending.front().map_or(revision, |(first, _)| *first);
            queue.pending.clear();
            queue.events = 0;
            queue.caught_up = false;
        }
        drop(queue);
        self.notify.notify_one();
    }
}

enum Place {
    Key,
    Dir,
    Range,
}

fn place(keys: &KeyRange) -> Place {
    if keys.is_one() {
        Place::Key
    } else if keys.start.ends_with(b"/") && *keys == KeyRange::prefix(keys.start.clone()) {
        Place::Dir
    } else {
        Place::Range
    }
}

fn remove_from<T>(table: &mut HashMap<Bytes, Vec<T>>, key: &Bytes, which: impl Fn(&T) -> bool) {
    if let Some(list) = table.get_mut(key) {
        list.retain(|item| !which(item));
        if list.is_empty() {
            table.remove(key);
        }
    }
}

/// A registered waiter; dropping it takes it out.
#[derive(Debug)]
pub(crate) struct Wait {
    id: u64,
    key: Bytes,
    hub: Arc<Hub>,
    woken: oneshot::Receiver<()>,
}

impl Wait {
    pub(crate) async fn woken(mut self) {
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut tables = self.hub.tables.lock();
        let before = tables.waiters.get(&self.key).map_or(0, Vec::len);
        remove_from(&mut tables.waiters, &self.key, |waiter| waiter.id == self.id);
        let after = tables.waiters.get(&self.key).map_or(0, Vec::len);
        tables.waiting -= (before - after) as u64;
    }
}
