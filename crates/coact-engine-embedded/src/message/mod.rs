//! The state machines of streams and queues, folded from the log. The writer owns them, so they need no lock; what readers
//! share is the index of each partition, of which they see what is durable.

pub(crate) mod change;
pub(crate) mod delay;
pub(crate) mod queue;
mod snapshot;
pub(crate) mod topic;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use coact_core::{contract::stream::TopicSpec, name::Namespace};
use parking_lot::RwLock;

pub(crate) use change::{At, MessageChange, decode_body, encode_body};
pub(crate) use snapshot::{Captured, Sink};

use self::{
    delay::Delayed,
    queue::{QueueSpecOf, QueueState},
    topic::{BatchRef, Partition, TopicState},
};
use crate::body::{Bodies, Place};

/// All topics, groups and queues, of all namespaces.
#[derive(Debug)]
pub(crate) struct Messages {
    pub(crate) topics: BTreeMap<u64, TopicState>,
    pub(crate) topic_ids: BTreeMap<String, u64>,
    pub(crate) groups: BTreeMap<String, GroupState>,
    pub(crate) queues: BTreeMap<u64, QueueState>,
    pub(crate) queue_ids: BTreeMap<String, u64>,
    /// The next id of a topic or a queue.
    pub(crate) next_id: u64,
    pub(crate) bodies: Arc<Bodies>,
    /// What readers find.
    pub(crate) shown: Arc<Shown>,
    /// Partitions with records that are not shown yet.
    appended: Vec<Arc<Partition>>,
    /// Whether something may be due at another time than was told, or a job be ready that was not.
    times_changed: bool,
}

/// What a group committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupState {
    /// Commits of generations before this one are refused.
    pub(crate) generation: u64,
    pub(crate) offsets: BTreeMap<At, (u64, Bytes)>,
}

/// The partitions of each topic, for readers, who wait for nobody.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    topics: RwLock<HashMap<String, Vec<Arc<Partition>>>>,
}

impl Shown {
    /// A partition, or how many there are instead; `None` if there is no such topic.
    pub(crate) fn partition(&self, topic: &str, partition: u32) -> Option<Result<Arc<Partition>, usize>> {
        let topics = self.topics.read();
        let partitions = topics.get(topic)?;
        Some(partitions.get(partition as usize).cloned().ok_or(partitions.len()))
    }
}

impl Shown {
    /// Wakes every reader that waits.
    pub(crate) fn wake_all(&self) {
        self.topics.read().values().flatten().for_each(|partition| partition.changed.notify_waiters());
    }
}

impl Messages {
    pub(crate) fn new(bodies: Arc<Bodies>) -> Self {
        Self {
            topics: BTreeMap::new(),
            topic_ids: BTreeMap::new(),
            groups: BTreeMap::new(),
            queues: BTreeMap::new(),
            queue_ids: BTreeMap::new(),
            next_id: 1,
            bodies,
            shown: Arc::default(),
            appended: Vec::new(),
            times_changed: true,
        }
    }

    /// The namespaces that have anything, by name.
    pub(crate) fn namespaces(&self) -> Vec<Namespace> {
        let names = self.topic_ids.keys().chain(self.groups.keys()).chain(self.queue_ids.keys());
        let namespaces: BTreeSet<&str> = names.filter_map(|name| Some(name.split_once('/')?.0)).collect();
        namespaces.into_iter().filter_map(|name| Namespace::new(name).ok()).collect()
    }

    /// Applies one change of the log. It tells what became of a thing, whatever was there before.
    pub(crate) fn apply(&mut self, change: MessageChange, body: Place, now: Instant) -> Result<(), String> {
        self.times_changed |= change.changes_times();
        match change {
            MessageChange::TopicPut { id, name, spec, created_ms } => self.put_topic(id, name, spec, created_ms),
            MessageChange::TopicDeleted { id } => self.delete_topic(id),
            MessageChange::Appended { at, first, count, span, time_ms, stamp } => {
                let partition = self
                    .topics
                    .get_mut(&at.topic)
                    .and_then(|topic| topic.partitions.get_mut(at.partition as usize))
                    .ok_or_else(|| {
                        format!("appends to partition {} of topic {}, which is none", at.partition, at.topic)
                    })?;
                partition.append(first, BatchRef { time_ms, place: body, count, span }, stamp);
                self.appended.push(partition.shared.clone());
            }
            MessageChange::Compacted { at, first, count, span, time_ms } => {
                let batch = BatchRef { time_ms, place: body, count, span };
                let gone = self.partition(at).and_then(|partition| partition.index.write().compact(first, batch));
                gone.into_iter().for_each(|batch| self.bodies.remove(batch.place));
            }
            MessageChange::Trimmed { at, before } => {
                let gone = self.partition(at).map(|partition| partition.index.write().trim(before));
                gone.into_iter().flatten().for_each(|batch| self.bodies.remove(batch.place));
            }
            MessageChange::GroupCommitted { group, generation, at, offset, metadata } => {
                let group = self.groups.entry(group).or_default();
                group.generation = group.generation.max(generation);
                group.offsets.insert(at, (offset, metadata));
            }
            MessageChange::GroupFenced { group, generation } => {
                self.groups.entry(group).or_default().generation = generation;
            }
            MessageChange::GroupDeleted { group } => drop(self.groups.remove(&group)),
            MessageChange::Delayed { at, due_ms, number } => {
                let topic = self.topics.get_mut(&at.topic).ok_or("delays a record of a topic that is none")?;
                topic.delays.add((due_ms, number), Delayed { partition: at.partition, place: body });
            }
            MessageChange::DelayEnded { topic, due_ms, number } => {
                let ended =
                    self.topics.get_mut(&topic).and_then(|topic| topic.delays.pending.remove(&(due_ms, number)));
                ended.into_iter().for_each(|delayed| self.bodies.remove(delayed.place));
            }
            MessageChange::DelayMoved { topic, from, to } => {
                if let Some(topic) = self.topics.get_mut(&topic)
                    && let Some(delayed) = topic.delays.pending.remove(&from)
                {
                    topic.delays.add(to, delayed);
                }
            }
            MessageChange::QueuePut { id, name, max_attempts, keep_dead_ms, paused } => {
                let spec = QueueSpecOf { max_attempts, keep_dead_ms, paused };
                self.next_id = self.next_id.max(id + 1);
                self.queue_ids.insert(name.clone(), id);
                self.queues.entry(id).or_insert_with(|| QueueState::new(name, spec)).spec = spec;
            }
            MessageChange::QueueDeleted { id } => {
                if let Some(queue) = self.queues.remove(&id) {
                    self.queue_ids.remove(&queue.name);
                    queue.jobs().iter().for_each(|(_, job)| self.bodies.remove(job.place));
                }
            }
            MessageChange::JobEnqueued { queue, job, new } => self.queue(queue)?.enqueue(job, new, body, now),
            MessageChange::JobClaimed { queue, job, token, lease_ms, worker } => {
                self.queue(queue)?.claim(job, token, lease_ms, &worker, now);
            }
            MessageChange::JobEnded { queue, job, done } => {
                let gone = self.queue(queue)?.end(job, done, now);
                gone.into_iter().for_each(|place| self.bodies.remove(place));
            }
            MessageChange::JobWaits { queue, job, run_at_ms, attempts, error } => {
                self.queue(queue)?.wait(job, run_at_ms, attempts, &error, now);
            }
            MessageChange::JobDied { queue, job, time_ms, error } => self.queue(queue)?.die(job, time_ms, &error, now),
        }
        Ok(())
    }

    /// Has due times told and waiting claims looked at, though nothing was written.
    pub(crate) fn change_times(&mut self) {
        self.times_changed = true;
    }

    pub(crate) fn times_changed(&self) -> bool {
        self.times_changed
    }

    /// True once after due times have changed.
    pub(crate) fn take_times_changed(&mut self) -> bool {
        std::mem::take(&mut self.times_changed)
    }

    /// Shows readers what was appended, since it is durable now.
    pub(crate) fn publish(&mut self) {
        for partition in self.appended.drain(..) {
            let mut index = partition.index.write();
            let end = index.batches.last().map_or(0, |(first, batch)| first + u64::from(batch.span));
            if end > index.visible {
                index.visible = end;
                partition.changed.notify_waiters();
            }
        }
    }

    /// When the next delayed record is due.
    pub(crate) fn next_delay(&self) -> Option<u64> {
        self.topics.values().filter_map(|topic| topic.delays.next_due()).min()
    }

    /// When something of the queues is due, or retention is to be looked after, by the wall clock and the monotonic one.
    pub(crate) fn next_due(&self) -> (Option<u64>, Option<Instant>) {
        let retains = self.topics.values().any(|topic| topic.retains());
        let wall = self.queues.values().filter_map(QueueState::next_due_ms).min();
        let deadline = self.queues.values().filter_map(QueueState::next_deadline).min();
        // A time that has passed: as often as the ticker does anything.
        (if retains { Some(0) } else { wall }, deadline)
    }

    /// Whether any topic lets records go by key.
    pub(crate) fn compacts(&self) -> bool {
        self.topics.values().any(|topic| topic.spec.compact)
    }

    /// What is too old or too much, by partition.
    pub(crate) fn expired(&self, now_ms: u64) -> Vec<(At, u64)> {
        let retaining = self.topics.iter().filter(|(_, topic)| topic.has_bounds());
        let expired = retaining.flat_map(|(id, topic)| {
            topic.partitions.iter().enumerate().filter_map(move |(number, partition)| {
                let before = partition.shared.index.read().expired(&topic.spec, now_ms)?;
                Some((At { topic: *id, partition: number as u32 }, before))
            })
        });
        expired.collect()
    }

    /// Forgets producers that appended nothing for long.
    pub(crate) fn forget_producers(&mut self, now_ms: u64) {
        let partitions = self.topics.values_mut().flat_map(|topic| &mut topic.partitions);
        partitions.for_each(|partition| partition.forget_producers(now_ms));
    }

    pub(crate) fn topic_id(&self, name: &str) -> Option<u64> {
        self.topic_ids.get(name).copied()
    }

    fn partition(&self, at: At) -> Option<Arc<Partition>> {
        let topic = self.topics.get(&at.topic)?;
        topic.partitions.get(at.partition as usize).map(|partition| partition.shared.clone())
    }

    fn queue(&mut self, id: u64) -> Result<&mut QueueState, String> {
        self.queues.get_mut(&id).ok_or_else(|| format!("names queue {id}, which is none"))
    }

    fn put_topic(&mut self, id: u64, name: String, spec: TopicSpec, created_ms: u64) {
        self.next_id = self.next_id.max(id + 1);
        self.topic_ids.insert(name.clone(), id);
        let topic = self.topics.entry(id).or_insert_with(|| TopicState::new(name.clone(), spec.clone(), created_ms));
        topic.spec = spec;
        topic.grow();
        let partitions = topic.partitions.iter().map(|partition| partition.shared.clone()).collect();
        self.shown.topics.write().insert(name, partitions);
    }

    fn delete_topic(&mut self, id: u64) {
        let Some(topic) = self.topics.remove(&id) else { return };
        self.topic_ids.remove(&topic.name);
        self.shown.topics.write().remove(&topic.name);
        for partition in &topic.partitions {
            partition.shared.index.read().batches.iter().for_each(|(_, batch)| self.bodies.remove(batch.place));
            partition.shared.changed.notify_waiters();
        }
        topic.delays.pending.iter().for_each(|(_, delayed)| self.bodies.remove(delayed.place));
        for group in self.groups.values_mut() {
            group.offsets.retain(|at, _| at.topic != id);
        }
    }
}
