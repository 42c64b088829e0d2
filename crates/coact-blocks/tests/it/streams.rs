//! The stream contract in memory, beside the model of the Kv contract: a commit spans both. Faults sit in the clients.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        commit::{Commit, CommitOutcome, Committed},
        kv::TxnOutcome,
        queue::{Enqueued, JobId, NewJob},
        stream::{
            Append, Appended, Atomicity, Batch, Bounds, DelayId, DelayStats, Delayed, Fetched, GroupInfo, GroupOffset,
            Offset, OffsetCommit, Pending, Read, Seek, StoredBatch, StoredRecord, StreamGuarantees, StreamHandle,
            StreamLimits, StreamStore, TopicInfo, TopicSpec,
        },
    },
    env::Env,
    guarantees::{Accepted, Durability, Failover, OnPartition},
    name::{Group, Queue, Topic},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    model::{Fate, Model},
    world::Process,
};

/// A store of streams. Clones are the same store.
#[derive(Clone)]
pub(crate) struct Streams(Arc<Shared>);

struct Shared {
    model: Model,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<Topic, TopicState>,
    groups: BTreeMap<Group, (u64, Offsets)>,
    jobs: Vec<(Queue, NewJob)>,
    delays: u64,
}

type Offsets = BTreeMap<(Topic, u32), GroupOffset>;

struct TopicState {
    info: TopicInfo,
    partitions: Vec<Partition>,
    delayed: BTreeMap<DelayId, Delayed>,
}

#[derive(Default)]
struct Partition {
    batches: Vec<StoredBatch>,
    start: u64,
    end: u64,
    producers: HashMap<u64, Producer>,
}

#[derive(Default)]
struct Producer {
    epoch: u32,
    next: u64,
    firsts: HashMap<u64, Appended>,
}

/// A request, for choosing its fate.
#[derive(Clone, Debug)]
pub(crate) enum StreamRequest {
    Append(Append),
    Commit(Commit),
    Read,
    Other,
}

pub(crate) type FateOf = Box<dyn FnMut(&StreamRequest) -> Fate + Send>;

/// What happens to requests of one client.
#[derive(Default)]
pub(crate) struct StreamFaults {
    /// How long a request travels.
    pub(crate) latency: Duration,
    pub(crate) fate: Option<FateOf>,
}

/// A process's connection to the streams.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) handle: StreamHandle,
    pub(crate) faults: Arc<Mutex<StreamFaults>>,
}

impl Streams {
    pub(crate) fn new(model: &Model) -> Self {
        let changed = watch::Sender::new(0);
        Self(Arc::new(Shared { model: model.clone(), state: Mutex::default(), changed }))
    }

    pub(crate) fn connect(&self, process: &Process) -> Connection {
        self.connect_with(process, GUARANTEES)
    }

    pub(crate) fn connect_with(&self, process: &Process, guarantees: StreamGuarantees) -> Connection {
        let faults = Arc::<Mutex<StreamFaults>>::default();
        let (env, streams) = (process.env().clone(), self.clone());
        let client = Client { streams, env: env.clone(), faults: faults.clone(), guarantees };
        Connection { handle: StreamHandle::new(client, env, Accepted::default()), faults }
    }

    /// Everything that a topic holds, by partition.
    pub(crate) fn records(&self, topic: &Topic) -> Vec<Vec<StoredRecord>> {
        let state = self.0.state.lock();
        let Some(found) = state.topics.get(topic) else { return Vec::new() };
        let read = |partition: &Partition| {
            partition.batches.iter().flat_map(|b| b.batch.records(b.first, b.time_ms)).collect::<Vec<_>>()
        };
        found.partitions.iter().map(read).collect()
    }

    /// The values that a topic holds, by partition.
    pub(crate) fn values(&self, topic: &Topic) -> Vec<Vec<String>> {
        let text = |record: StoredRecord| String::from_utf8_lossy(&record.record.value).into_owned();
        self.records(topic).into_iter().map(|records| records.into_iter().map(text).collect()).collect()
    }

    pub(crate) fn jobs(&self) -> Vec<(Queue, NewJob)> {
        self.0.state.lock().jobs.clone()
    }

    pub(crate) fn committed(&self, group: &Group, topic: &Topic, partition: u32) -> Option<Offset> {
        let state = self.0.state.lock();
        state.groups.get(group)?.1.get(&(topic.clone(), partition)).map(|offset| offset.offset)
    }

    /// Forgets the producers of all partitions, as an engine does after a while.
    pub(crate) fn forget_producers(&self) {
        let mut state = self.0.state.lock();
        for topic in state.topics.values_mut() {
            topic.partitions.iter_mut().for_each(|partition| partition.producers.clear());
        }
    }

    fn with<T>(&self, now_ms: u64, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let result = {
            let mut state = self.0.state.lock();
            state.hand_over(now_ms);
            change(&mut state)
        };
        self.0.changed.send_modify(|changes| *changes += 1);
        result
    }

    fn look<T>(&self, now_ms: u64, look: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let mut state = self.0.state.lock();
        state.hand_over(now_ms);
        look(&state)
    }
}

impl State {
    /// Appends the delayed records whose time has come.
    fn hand_over(&mut self, now_ms: u64) {
        for topic in self.topics.values_mut() {
            while let Some(entry) = topic.delayed.first_entry().filter(|entry| entry.key().due_ms <= now_ms) {
                let delayed = entry.remove();
                topic.partitions[delayed.partition as usize].push(Batch::from(&delayed.record), now_ms);
            }
        }
    }

    fn topic(&self, topic: &Topic) -> Result<&TopicState> {
        self.topics.get(topic).ok_or_else(|| unknown(topic))
    }

    fn partition(&self, topic: &Topic, partition: u32) -> Result<&Partition> {
        self.topic(topic)?.partitions.get(partition as usize).ok_or_else(|| unknown(topic))
    }

    fn partition_mut(&mut self, topic: &Topic, partition: u32) -> Result<&mut Partition> {
        let found = self.topics.get_mut(topic).ok_or_else(|| unknown(topic))?;
        found.partitions.get_mut(partition as usize).ok_or_else(|| unknown(topic))
    }

    /// What an append would be refused for, or answered as a duplicate.
    fn check_append(&self, append: &Append) -> Result<Option<Appended>> {
        let partition = self.partition(&append.topic, append.partition)?;
        if append.expect.is_some_and(|expect| expect.0 != partition.end) {
            return Err(Error::new(ErrorKind::Conflict, "the partition ends elsewhere"));
        }
        let Some(stamp) = append.stamp else { return Ok(None) };
        let Some(known) = partition.producers.get(&stamp.producer) else {
            return if stamp.sequence == 0 { Ok(None) } else { Err(gap()) };
        };
        if stamp.epoch < known.epoch {
            return Err(Error::new(ErrorKind::Fenced, "a newer incarnation of the producer was here"));
        }
        if stamp.epoch > known.epoch {
            return if stamp.sequence == 0 { Ok(None) } else { Err(gap()) };
        }
        if let Some(appended) = known.firsts.get(&stamp.sequence) {
            return Ok(Some(Appended { duplicate: true, ..*appended }));
        }
        if stamp.sequence == known.next { Ok(None) } else { Err(gap()) }
    }

    fn append(&mut self, append: Append, now_ms: u64) -> Result<Appended> {
        if let Some(duplicate) = self.check_append(&append)? {
            return Ok(duplicate);
        }
        let partition = self.partition_mut(&append.topic, append.partition)?;
        let count = u64::from(append.batch.count());
        let appended = partition.push(append.batch, now_ms);
        if let Some(stamp) = append.stamp {
            let known = partition.producers.entry(stamp.producer).or_default();
            if known.epoch != stamp.epoch {
                *known = Producer { epoch: stamp.epoch, ..Producer::default() };
            }
            known.next = stamp.sequence + count;
            known.firsts.insert(stamp.sequence, appended);
        }
        Ok(appended)
    }

    fn check_offsets(&self, offsets: &OffsetCommit) -> Result<()> {
        let generation = self.groups.get(&offsets.group).map_or(0, |(generation, _)| *generation);
        if offsets.generation < generation {
            return Err(Error::new(ErrorKind::Fenced, format!("the group is at generation {generation}")));
        }
        offsets.offsets.iter().try_for_each(|offset| self.partition(&offset.topic, offset.partition).map(drop))
    }

    fn commit(&mut self, model: &Model, commit: Commit, now_ms: u64) -> Result<CommitOutcome> {
        for append in &commit.appends {
            self.check_append(append)?;
        }
        commit.offsets.iter().try_for_each(|offsets| self.check_offsets(offsets))?;
        commit.delayed.iter().try_for_each(|delayed| self.partition(&delayed.topic, delayed.partition).map(drop))?;
        let mut done = Committed::default();
        if let Some((_, txn)) = &commit.kv {
            match model.txn(txn)? {
                TxnOutcome::Refused { check, found } => return Ok(CommitOutcome::Refused { check, found }),
                TxnOutcome::Committed { revision, reads } => done.kv = Some((revision, reads)),
            }
        }
        for append in commit.appends {
            done.appended.push(self.append(append, now_ms)?);
        }
        for delayed in commit.delayed {
            done.delayed.push(self.schedule(delayed));
        }
        if let Some(offsets) = commit.offsets {
            let group = self.groups.entry(offsets.group).or_default();
            group
                .1
                .extend(offsets.offsets.into_iter().map(|offset| ((offset.topic.clone(), offset.partition), offset)));
        }
        for job in commit.jobs {
            self.jobs.push(job);
            done.jobs.push(Enqueued::Created(JobId(self.jobs.len() as u64)));
        }
        Ok(CommitOutcome::Committed(done))
    }

    fn schedule(&mut self, delayed: Delayed) -> DelayId {
        self.delays += 1;
        let id = DelayId { due_ms: delayed.due_ms, number: self.delays };
        if let Some(topic) = self.topics.get_mut(&delayed.topic) {
            topic.delayed.insert(id, delayed);
        }
        id
    }
}

impl Partition {
    fn push(&mut self, batch: Batch, now_ms: u64) -> Appended {
        let time_ms = self.batches.last().map_or(now_ms, |last| last.time_ms.max(now_ms));
        let first = Offset(self.end);
        self.end += u64::from(batch.span());
        self.batches.push(StoredBatch { first, time_ms, batch });
        Appended { first, time_ms, duplicate: false }
    }

    fn fetch(&self, from: u64, max_bytes: usize) -> Fetched {
        let from = from.max(self.start);
        let (mut batches, mut bytes, mut next) = (Vec::new(), 0, from.min(self.end));
        for stored in &self.batches {
            let end = stored.first.0 + u64::from(stored.batch.span());
            if end <= from {
                continue;
            }
            if !batches.is_empty() && bytes + stored.batch.bytes().len() > max_bytes {
                break;
            }
            bytes += stored.batch.bytes().len();
            next = end;
            batches.push(stored.clone());
        }
        Fetched { batches, next: Offset(next), start: Offset(self.start), end: Offset(self.end) }
    }
}

fn unknown(topic: &Topic) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no topic {topic}, or no such partition"))
}

fn gap() -> Error {
    Error::new(ErrorKind::Conflict, "the stamp leaves a gap")
}

/// What the model promises: everything.
pub(crate) const GUARANTEES: StreamGuarantees = StreamGuarantees {
    writes: Durability::Sync,
    on_partition: OnPartition::SingleNode,
    failover: Failover::KeepsWrites,
    atomicity: Atomicity::Everything,
    dedup: Some(Duration::from_secs(24 * 3600)),
    dense_offsets: true,
    delay_precision: Duration::from_millis(1),
    compaction: false,
    limits: StreamLimits::PORTABLE,
};

struct Client {
    streams: Streams,
    env: Env,
    faults: Arc<Mutex<StreamFaults>>,
    guarantees: StreamGuarantees,
}

impl Client {
    async fn call<T: Send + 'static>(
        &self,
        request: StreamRequest,
        apply: impl FnOnce(&Streams, u64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (fate, latency) = {
            let mut faults = self.faults.lock();
            (faults.fate.as_mut().map_or(Fate::Arrives, |fate| fate(&request)), faults.latency)
        };
        let unavailable = || Error::new(ErrorKind::Unavailable, "the connection was lost");
        if !latency.is_zero() {
            self.env.sleep(latency).await;
        }
        match fate {
            Fate::Arrives => apply(&self.streams, self.env.wall_ms()),
            Fate::Refused => Err(unavailable()),
            Fate::AnswerLost => {
                let _ = apply(&self.streams, self.env.wall_ms());
                Err(unavailable().effect_unknown())
            }
            Fate::Late(by) => {
                let (streams, env) = (self.streams.clone(), self.env.clone());
                crate::world::start(async move {
                    env.sleep(by).await;
                    let _ = apply(&streams, env.wall_ms());
                });
                Err(unavailable().effect_unknown())
            }
            Fate::Slow(by) => {
                self.env.sleep(by).await;
                apply(&self.streams, self.env.wall_ms())
            }
            Fate::SlowAnswer(by) => {
                let answer = apply(&self.streams, self.env.wall_ms());
                self.env.sleep(by).await;
                answer
            }
            Fate::Lost => {
                self.env.sleep(Duration::from_secs(5)).await;
                Err(unavailable().effect_unknown())
            }
        }
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State, u64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(StreamRequest::Other, |streams, now| streams.with(now, |state| change(state, now))).await
    }

    async fn look<T: Send + 'static>(&self, look: impl FnOnce(&State) -> Result<T> + Send + 'static) -> Result<T> {
        self.call(StreamRequest::Read, |streams, now| streams.look(now, look)).await
    }
}

impl StreamStore for Client {
    fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        "model:".to_owned()
    }

    async fn create_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        let (topic, spec) = (topic.clone(), spec.clone());
        self.change(move |state, now| {
            if state.topics.contains_key(&topic) {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("topic {topic} is there")));
            }
            let partitions = (0..spec.partitions).map(|_| Partition::default()).collect();
            let info = TopicInfo { name: topic.clone(), spec, created_ms: now };
            state.topics.insert(topic, TopicState { info, partitions, delayed: BTreeMap::new() });
            Ok(())
        })
        .await
    }

    async fn alter_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        let (topic, spec) = (topic.clone(), spec.clone());
        self.change(move |state, _| {
            let found = state.topics.get_mut(&topic).ok_or_else(|| unknown(&topic))?;
            found.partitions.resize_with(spec.partitions as usize, Partition::default);
            found.info.spec = spec;
            Ok(())
        })
        .await
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<bool> {
        let topic = topic.clone();
        self.change(move |state, _| Ok(state.topics.remove(&topic).is_some())).await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        let topic = topic.clone();
        self.look(move |state| Ok(state.topics.get(&topic).map(|found| found.info.clone()))).await
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicInfo>> {
        let after = after.to_owned();
        self.look(move |state| {
            let later = state.topics.values().filter(|topic| *topic.info.name.as_str() > *after);
            Ok(later.take(limit).map(|topic| topic.info.clone()).collect())
        })
        .await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        self.call(StreamRequest::Append(append.clone()), move |streams, now| {
            streams.with(now, |state| state.append(append, now))
        })
        .await
    }

    async fn read(&self, read: Read) -> Result<Fetched> {
        let until = self.env.now() + read.wait;
        let mut changed = self.streams.0.changed.subscribe();
        loop {
            let wanted = read.clone();
            let fetched = self
                .look(move |state| {
                    Ok(state.partition(&wanted.topic, wanted.partition)?.fetch(wanted.from.0, wanted.max_bytes))
                })
                .await?;
            let now = self.env.now();
            if !fetched.batches.is_empty() || now >= until {
                return Ok(fetched);
            }
            let (topic, wall) = (read.topic.clone(), self.env.wall_ms());
            let due = self.streams.look(wall, |state| {
                Ok(state.topic(&topic)?.delayed.keys().next().map(|id| Duration::from_millis(id.due_ms - wall)))
            })?;
            let rest = (until - now).min(due.unwrap_or(Duration::MAX).max(Duration::from_millis(1)));
            let _ = self.env.timeout(rest, changed.changed()).await;
        }
    }

    async fn bounds(&self, topic: &Topic, partition: u32) -> Result<Bounds> {
        let topic = topic.clone();
        self.look(move |state| {
            let found = state.partition(&topic, partition)?;
            let bytes = found.batches.iter().map(|batch| batch.batch.bytes().len() as u64).sum();
            let oldest_ms = found.batches.first().map_or(0, |batch| batch.time_ms);
            let (start, end) = (Offset(found.start), Offset(found.end));
            Ok(Bounds { start, end, oldest_ms, bytes, records: Some(found.end - found.start) })
        })
        .await
    }

    async fn seek(&self, topic: &Topic, partition: u32, seek: Seek) -> Result<Offset> {
        let topic = topic.clone();
        self.look(move |state| {
            let found = state.partition(&topic, partition)?;
            Ok(Offset(match seek {
                Seek::Earliest => found.start,
                Seek::Latest => found.end,
                Seek::Time(at) => {
                    found.batches.iter().find(|batch| batch.time_ms >= at).map_or(found.end, |batch| batch.first.0)
                }
            }))
        })
        .await
    }

    async fn trim(&self, topic: &Topic, partition: u32, before: Offset) -> Result<()> {
        let topic = topic.clone();
        self.change(move |state, _| {
            let found = state.partition_mut(&topic, partition)?;
            found.start = before.0.min(found.end).max(found.start);
            let start = found.start;
            found.batches.retain(|batch| batch.first.0 + u64::from(batch.batch.span()) > start);
            Ok(())
        })
        .await
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome> {
        self.call(StreamRequest::Commit(commit.clone()), move |streams, now| {
            let model = streams.0.model.clone();
            streams.with(now, |state| state.commit(&model, commit, now))
        })
        .await
    }

    async fn fence_group(&self, group: &Group, generation: u64) -> Result<()> {
        let group = group.clone();
        self.change(move |state, _| {
            let known = &mut state.groups.entry(group).or_default().0;
            if generation < *known {
                return Err(Error::new(ErrorKind::Fenced, format!("the group is at generation {known}")));
            }
            *known = generation;
            Ok(())
        })
        .await
    }

    async fn group(&self, group: &Group) -> Result<Option<GroupInfo>> {
        let group = group.clone();
        self.look(move |state| {
            Ok(state.groups.get(&group).map(|(generation, offsets)| GroupInfo {
                name: group.clone(),
                generation: *generation,
                offsets: offsets.values().cloned().collect(),
            }))
        })
        .await
    }

    async fn groups(&self, after: &str, limit: usize) -> Result<Vec<GroupInfo>> {
        let after = after.to_owned();
        self.look(move |state| {
            let later = state.groups.iter().filter(|(name, _)| *name.as_str() > *after).take(limit);
            Ok(later
                .map(|(name, (generation, offsets))| GroupInfo {
                    name: name.clone(),
                    generation: *generation,
                    offsets: offsets.values().cloned().collect(),
                })
                .collect())
        })
        .await
    }

    async fn delete_group(&self, group: &Group) -> Result<bool> {
        let group = group.clone();
        self.change(move |state, _| Ok(state.groups.remove(&group).is_some())).await
    }

    async fn schedule(&self, delayed: Vec<Delayed>) -> Result<Vec<DelayId>> {
        self.change(move |state, _| {
            delayed.iter().try_for_each(|delayed| state.partition(&delayed.topic, delayed.partition).map(drop))?;
            Ok(delayed.into_iter().map(|delayed| state.schedule(delayed)).collect())
        })
        .await
    }

    async fn cancel(&self, topic: &Topic, id: DelayId) -> Result<bool> {
        let topic = topic.clone();
        self.change(move |state, _| {
            let found = state.topics.get_mut(&topic).ok_or_else(|| unknown(&topic))?;
            Ok(found.delayed.remove(&id).is_some())
        })
        .await
    }

    async fn reschedule(&self, topic: &Topic, id: DelayId, due_ms: u64) -> Result<Option<DelayId>> {
        let topic = topic.clone();
        self.change(move |state, _| {
            let found = state.topics.get_mut(&topic).ok_or_else(|| unknown(&topic))?;
            let delayed = found.delayed.remove(&id);
            Ok(delayed.map(|delayed| state.schedule(Delayed { due_ms, ..delayed })))
        })
        .await
    }

    async fn pending(&self, topic: &Topic, after: Option<DelayId>, limit: usize) -> Result<Vec<Pending>> {
        let topic = topic.clone();
        self.look(move |state| {
            let all = state.topic(&topic)?.delayed.iter().filter(|(id, _)| after.is_none_or(|after| **id > after));
            Ok(all.take(limit).map(|(id, delayed)| Pending { id: *id, delayed: delayed.clone() }).collect())
        })
        .await
    }

    async fn delay_stats(&self, topic: &Topic) -> Result<DelayStats> {
        let topic = topic.clone();
        self.look(move |state| {
            let delayed = &state.topic(&topic)?.delayed;
            let next_due_ms = delayed.keys().next().map(|id| id.due_ms);
            Ok(DelayStats { pending: delayed.len() as u64, next_due_ms, ..DelayStats::default() })
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

pub(crate) fn group(name: &str) -> Group {
    Group::new(name).expect("a group")
}
