//! What a consumer's tasks and users share: the partitions that it holds, and what of them is read, delivered and done.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use coact_core::{
    Error,
    contract::stream::{GroupOffset, Offset, OffsetCommit, StoredRecord, StreamHandle},
    name::{Group, Topic},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{ConsumerOptions, delivery::Delivery, progress::Progress};
use crate::mq::group::TopicPartition;

pub(in crate::mq) struct Shared {
    pub(in crate::mq) streams: StreamHandle,
    pub(in crate::mq) group: Group,
    pub(in crate::mq) options: ConsumerOptions,
    state: Mutex<State>,
    /// There may be something to deliver, or nothing to deliver any more.
    pub(in crate::mq) ready: watch::Sender<u64>,
    /// Something was done or given up: there may be room to read, or nothing left to wait for.
    pub(in crate::mq) settled: watch::Sender<u64>,
    /// The driver has something to look at.
    pub(in crate::mq) attention: watch::Sender<u64>,
    /// One commit at a time, so that an older one never follows a newer.
    pub(in crate::mq) commits: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    generation: u64,
    held: BTreeMap<TopicPartition, Holding>,
    in_flight: HashMap<TopicPartition, usize>,
    eras: u64,
    /// After which partition the next record is looked for.
    turn: Option<TopicPartition>,
    /// Topics that it came to want after it had joined.
    also: BTreeSet<Topic>,
    failure: Option<Error>,
    over: Option<Error>,
}

/// One partition that this consumer holds.
struct Holding {
    /// Tells apart what was delivered before the partition was lost, or read anew, from what comes after.
    era: u64,
    progress: Progress,
    queue: VecDeque<StoredRecord>,
    bytes: HashMap<u64, usize>,
    bytes_open: usize,
    paused: bool,
    stopping: bool,
    /// Changes that are not committed.
    changes: u64,
    committed: u64,
}

/// A commit of what is done, and what is committed with it.
#[derive(Debug)]
pub(in crate::mq) struct Snapshot {
    pub(in crate::mq) commit: OffsetCommit,
    changes: Vec<(TopicPartition, u64, u64)>,
}

/// Why a fetcher goes on, waits or ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// Read on from here.
    All(Offset),
    /// Wait until something is settled.
    Full,
    /// The partition is not this fetcher's any more.
    Gone,
}

impl Shared {
    pub(super) fn new(streams: &StreamHandle, group: &Group, options: ConsumerOptions) -> Arc<Self> {
        Arc::new(Self {
            streams: streams.clone(),
            group: group.clone(),
            options,
            state: Mutex::default(),
            ready: watch::Sender::new(0),
            settled: watch::Sender::new(0),
            attention: watch::Sender::new(0),
            commits: tokio::sync::Mutex::default(),
        })
    }

    /// Wants to read these topics too.
    pub(in crate::mq) fn want(&self, topics: impl IntoIterator<Item = Topic>) {
        self.state.lock().also.extend(topics);
        self.announce();
    }

    pub(super) fn also(&self) -> BTreeSet<Topic> {
        self.state.lock().also.clone()
    }

    /// The stable generation that this consumer has adopted.
    pub(in crate::mq) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    pub(super) fn adopt(&self, generation: u64) {
        self.state.lock().generation = generation;
        self.settled();
    }

    /// The partitions that deliver, each with its era.
    pub(in crate::mq) fn eras(&self) -> Vec<(TopicPartition, u64)> {
        let state = self.state.lock();
        let active = state.held.iter().filter(|(_, holding)| !holding.stopping);
        active.map(|(place, holding)| (place.clone(), holding.era)).collect()
    }

    pub(in crate::mq) fn held(&self) -> Vec<TopicPartition> {
        self.state.lock().held.keys().cloned().collect()
    }

    /// Partitions that are held and deliver.
    pub(in crate::mq) fn active(&self) -> Vec<TopicPartition> {
        let state = self.state.lock();
        state.held.iter().filter(|(_, holding)| !holding.stopping).map(|(place, _)| place.clone()).collect()
    }

    /// Begins to hold a partition; returns its era.
    pub(super) fn hold(&self, place: &TopicPartition, progress: Progress, commit_now: bool) -> u64 {
        let mut state = self.state.lock();
        state.eras += 1;
        let era = state.eras;
        let holding = Holding {
            era,
            progress,
            queue: VecDeque::new(),
            bytes: HashMap::new(),
            bytes_open: 0,
            paused: false,
            stopping: false,
            changes: u64::from(commit_now),
            committed: 0,
        };
        state.held.insert(place.clone(), holding);
        drop(state);
        self.attention.send_modify(|changes| *changes += 1);
        era
    }

    /// Lets a partition go at once: what is in flight counts no more.
    pub(in crate::mq) fn lose(&self, place: &TopicPartition) {
        self.state.lock().held.remove(place);
        self.announce();
    }

    /// Reads a partition from another place on; returns its new era, if it is held.
    pub(super) fn reposition(&self, place: &TopicPartition, to: Offset) -> Option<u64> {
        let paused = {
            let state = self.state.lock();
            let holding = state.held.get(place).filter(|holding| !holding.stopping)?;
            holding.paused
        };
        let era = self.hold(place, Progress::restore(to, b""), true);
        self.pause(std::slice::from_ref(place), paused);
        Some(era)
    }

    /// Delivers nothing more of a partition.
    pub(super) fn stop(&self, place: &TopicPartition) {
        {
            let mut state = self.state.lock();
            let Some(holding) = state.held.get_mut(place).filter(|holding| !holding.stopping) else { return };
            holding.stopping = true;
            holding.queue.clear();
        }
        self.announce();
    }

    /// Partitions that are stopping and of which nothing is in flight.
    pub(super) fn drained(&self) -> Vec<TopicPartition> {
        let state = self.state.lock();
        let idle = |place: &TopicPartition| state.in_flight.get(place).is_none_or(|count| *count == 0);
        let stopping = state.held.iter().filter(|(place, holding)| holding.stopping && idle(place));
        stopping.map(|(place, _)| place.clone()).collect()
    }

    pub(super) fn is_idle(&self, place: &TopicPartition) -> bool {
        self.state.lock().in_flight.get(place).is_none_or(|count| *count == 0)
    }

    /// Takes over as many of these records as there is room for.
    pub(super) fn admit(
        &self,
        place: &TopicPartition,
        era: u64,
        records: &mut VecDeque<StoredRecord>,
        next: Offset,
    ) -> Admitted {
        let mut state = self.state.lock();
        let Some(holding) = state.held.get_mut(place).filter(|holding| holding.era == era && !holding.stopping) else {
            return Admitted::Gone;
        };
        if holding.paused {
            return Admitted::Full;
        }
        let mut some = false;
        while let Some(record) = records.front() {
            let offset = record.offset;
            let enough = holding.bytes_open >= self.options.max_bytes;
            if enough || !holding.progress.has_room(self.options.max_records, offset) {
                break;
            }
            let Some(record) = records.pop_front() else { break };
            holding.changes += 1;
            if holding.progress.read(offset) {
                let size = record.record.size();
                holding.bytes.insert(offset.0, size);
                holding.bytes_open += size;
                holding.queue.push_back(record);
                some = true;
            }
        }
        let full = !records.is_empty();
        if !full && next > holding.progress.position() {
            holding.progress.advance(next);
            holding.changes += 1;
        }
        let position = holding.progress.position();
        drop(state);
        if some {
            self.ready();
        }
        if full { Admitted::Full } else { Admitted::All(position) }
    }

    /// The next record, of each partition in turn.
    pub(in crate::mq) fn take(self: &Arc<Self>) -> Option<Delivery> {
        let mut state = self.state.lock();
        let has = |holding: &Holding| !holding.paused && !holding.stopping && !holding.queue.is_empty();
        let after = state.turn.clone();
        let mut later = state.held.iter().filter(|(place, _)| after.as_ref().is_none_or(|after| *place > after));
        let found =
            later.find(|(_, holding)| has(holding)).or_else(|| state.held.iter().find(|(_, holding)| has(holding)));
        let place = found?.0.clone();
        let holding = state.held.get_mut(&place)?;
        let (era, record) = (holding.era, holding.queue.pop_front()?);
        *state.in_flight.entry(place.clone()).or_default() += 1;
        state.turn = Some(place.clone());
        drop(state);
        Some(Delivery::new(self.clone(), place, era, record))
    }

    /// Why there will be no more records, or what went wrong, once.
    pub(in crate::mq) fn failure(&self) -> Option<Error> {
        let mut state = self.state.lock();
        let failure = state.failure.take();
        failure.or_else(|| state.over.clone())
    }

    /// Why there will be no more records.
    pub(in crate::mq) fn over(&self) -> Option<Error> {
        self.state.lock().over.clone()
    }

    pub(super) fn fail(&self, error: Error) {
        self.state.lock().failure = Some(error);
        self.ready();
    }

    /// Ends everything: nothing is held any more.
    pub(super) fn end(&self, why: Error) {
        {
            let mut state = self.state.lock();
            state.held.clear();
            state.over.get_or_insert(why);
        }
        self.announce();
    }

    /// Whether what was delivered in this era still counts.
    pub(in crate::mq) fn is_current(&self, place: &TopicPartition, era: u64) -> bool {
        let state = self.state.lock();
        state.held.get(place).is_some_and(|holding| holding.era == era)
    }

    /// Whether new work for a partition makes sense.
    pub(in crate::mq) fn is_active(&self, place: &TopicPartition, era: u64) -> bool {
        let state = self.state.lock();
        state.held.get(place).is_some_and(|holding| holding.era == era && !holding.stopping)
    }

    /// A record is done.
    pub(super) fn finish(&self, place: &TopicPartition, era: u64, offset: Offset) -> bool {
        let mut state = self.state.lock();
        let Some(holding) = state.held.get_mut(place).filter(|holding| holding.era == era) else { return false };
        if holding.progress.finish(offset) {
            holding.changes += 1;
            holding.bytes_open -= holding.bytes.remove(&offset.0).unwrap_or(0);
        }
        true
    }

    /// Something is in flight.
    pub(super) fn claim(&self, place: &TopicPartition) {
        *self.state.lock().in_flight.entry(place.clone()).or_default() += 1;
    }

    /// A delivery is gone, done or not.
    pub(super) fn release(&self, place: &TopicPartition) {
        {
            let mut state = self.state.lock();
            let Some(count) = state.in_flight.get_mut(place) else { return };
            *count -= 1;
            if *count == 0 && state.held.get(place).is_none_or(|holding| holding.stopping) {
                self.attention.send_modify(|changes| *changes += 1);
            }
        }
        self.settled();
    }

    pub(super) fn pause(&self, places: &[TopicPartition], paused: bool) {
        {
            let mut state = self.state.lock();
            for place in places {
                if let Some(holding) = state.held.get_mut(place) {
                    holding.paused = paused;
                }
            }
        }
        self.ready();
        self.settled();
    }

    /// What is to be committed, as if these deliveries were done; `None` if nothing has changed.
    pub(in crate::mq) fn snapshot(&self, done: &[&Delivery], only: Option<&TopicPartition>) -> Option<Snapshot> {
        let snapshot = self.snapshot_of(done, only, false);
        (!snapshot.changes.is_empty()).then_some(snapshot)
    }

    /// How far one partition is, changed or not: a commit of it tells whether it is still this consumer's.
    pub(in crate::mq) fn snapshot_one(&self, done: &[&Delivery], place: &TopicPartition) -> Snapshot {
        self.snapshot_of(done, Some(place), true)
    }

    fn snapshot_of(&self, done: &[&Delivery], only: Option<&TopicPartition>, always: bool) -> Snapshot {
        let state = self.state.lock();
        let (mut offsets, mut changes) = (Vec::new(), Vec::new());
        for (place, holding) in &state.held {
            let of_place = |delivery: &&&Delivery| delivery.place() == place && delivery.era() == holding.era;
            let done: Vec<_> = done.iter().filter(of_place).map(|delivery| delivery.record().offset).collect();
            let dirty = always || holding.changes != holding.committed || !done.is_empty();
            if !dirty || only.is_some_and(|only| only != place) {
                continue;
            }
            let mut progress = holding.progress.clone();
            for offset in done {
                progress.finish(offset);
            }
            offsets.push(GroupOffset {
                topic: place.topic.clone(),
                partition: place.partition,
                offset: progress.committed(),
                metadata: progress.note(),
            });
            changes.push((place.clone(), holding.era, holding.changes));
        }
        let commit = OffsetCommit { group: self.group.clone(), generation: state.generation, offsets };
        Snapshot { commit, changes }
    }

    /// A snapshot was committed.
    pub(in crate::mq) fn committed(&self, snapshot: &Snapshot) {
        let mut state = self.state.lock();
        for (place, era, changes) in &snapshot.changes {
            if let Some(holding) = state.held.get_mut(place).filter(|holding| holding.era == *era) {
                holding.committed = *changes;
            }
        }
    }

    fn announce(&self) {
        self.ready();
        self.settled();
        self.attention.send_modify(|changes| *changes += 1);
    }

    pub(super) fn ready(&self) {
        self.ready.send_modify(|changes| *changes += 1);
    }

    pub(super) fn settled(&self) {
        self.settled.send_modify(|changes| *changes += 1);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.group)
    }
}
