//! The stream contract on the embedded engine.

use std::{collections::BTreeMap, ops::Bound, sync::Arc, time::Duration};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        commit::{Commit, CommitOutcome},
        stream::{
            Append, Appended, Atomicity, Batch, Bounds, DelayId, DelayStats, Delayed, Fetched, GroupInfo, GroupOffset,
            Offset, OffsetCommit, Pending, Read, Record, Seek, StoredBatch, StreamGuarantees, StreamLimits,
            StreamStore, TopicInfo, TopicSpec,
        },
    },
    env::PlantedBug,
    guarantees::{Durability, Failover, OnPartition},
    name::{Group, Namespace, Topic},
};

use crate::{
    engine::Engine,
    kv::error,
    message::{
        At, MessageChange, Messages,
        topic::{BatchRef, Partition, Standing, TopicState},
    },
    work::Work,
};

/// For how long a repeated batch is recognized.
const DEDUP: Duration = Duration::from_millis(crate::message::topic::PRODUCER_MS);

/// What the engine declares for streams and queues.
pub(crate) fn guarantees(durability: Durability) -> StreamGuarantees {
    StreamGuarantees {
        writes: durability,
        on_partition: OnPartition::SingleNode,
        failover: Failover::KeepsWrites,
        atomicity: Atomicity::Everything,
        dedup: Some(DEDUP),
        dense_offsets: true,
        delay_precision: Duration::from_millis(1),
        compaction: true,
        limits: StreamLimits::PORTABLE,
    }
}

pub(crate) struct EmbeddedStreams {
    engine: Engine,
    namespace: Namespace,
    guarantees: StreamGuarantees,
}

impl EmbeddedStreams {
    pub(crate) fn new(engine: Engine, namespace: Namespace) -> Self {
        let guarantees = guarantees(engine.config().durability);
        Self { engine, namespace, guarantees }
    }

    fn flat(&self, name: &str) -> String {
        flat(&self.namespace, name)
    }

    fn partition(&self, topic: &Topic, partition: u32) -> Result<Arc<Partition>> {
        self.engine.ensure_open().map_err(error)?;
        match self.engine.shown().partition(&self.flat(topic.as_str()), partition) {
            Some(Ok(found)) => Ok(found),
            Some(Err(count)) => Err(no_partition(topic.as_str(), partition, count)),
            None => Err(no_topic(topic.as_str())),
        }
    }

    async fn bodies(&self, places: Vec<crate::body::Place>) -> Result<Vec<Option<Bytes>>> {
        self.engine.bodies().get(self.engine.env(), &places).await
    }

    /// Reads batches; `None` if some went while they were read.
    async fn load(&self, refs: &[(u64, BatchRef)]) -> Result<Option<Vec<StoredBatch>>> {
        let bodies = self.bodies(refs.iter().map(|(_, batch)| batch.place).collect()).await?;
        let stored = refs.iter().zip(bodies).map(|((first, batch), body)| {
            let batch_of = Batch::trusted(body?, batch.count, batch.span);
            Some(StoredBatch { first: Offset(*first), time_ms: batch.time_ms, batch: batch_of })
        });
        Ok(stored.collect())
    }
}

impl StreamStore for EmbeddedStreams {
    fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.engine.describe()
    }

    async fn create_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        let (name, spec) = (self.flat(topic.as_str()), spec.clone());
        let plain = topic.to_string();
        self.engine
            .ask(0, move |work| {
                if work.messages.topic_id(&name).is_some() {
                    return Err(Error::new(ErrorKind::AlreadyExists, format!("topic {plain} exists")));
                }
                let (id, created_ms) = (work.messages.next_id, work.time_ms);
                work.write(MessageChange::TopicPut { id, name, spec, created_ms });
                Ok(())
            })
            .await
    }

    async fn alter_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        let (name, spec) = (self.flat(topic.as_str()), spec.clone());
        self.engine
            .ask(0, move |work| {
                let (id, state) = topic_of(work.messages, &name)?;
                let (have, created_ms) = (state.spec.partitions, state.created_ms);
                if spec.partitions < have {
                    return Err(Error::invalid(format!(
                        "topic {} has {have} partitions: it can get more, not fewer",
                        plain(&name)
                    )));
                }
                work.write(MessageChange::TopicPut { id, name, spec, created_ms });
                Ok(())
            })
            .await
    }

    async fn delete_topic(&self, topic: &Topic) -> Result<bool> {
        let name = self.flat(topic.as_str());
        self.engine
            .ask(0, move |work| {
                let Some(id) = work.messages.topic_id(&name) else { return Ok(false) };
                work.write(MessageChange::TopicDeleted { id });
                Ok(true)
            })
            .await
    }

    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        let name = self.flat(topic.as_str());
        self.engine.ask(0, move |work| Ok(topic_of(work.messages, &name).ok().and_then(|(_, topic)| info(topic)))).await
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicInfo>> {
        let (namespace, after) = (self.namespace.clone(), after.to_owned());
        self.engine
            .ask(0, move |work| {
                let page = page(&work.messages.topic_ids, &namespace, &after, limit);
                Ok(page.filter_map(|(_, id)| info(work.messages.topics.get(id)?)).collect())
            })
            .await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        let (namespace, bytes) = (self.namespace.clone(), append.batch.bytes().len());
        self.engine
            .ask(bytes, move |work| {
                let plan = plan_append(work, &namespace, &append)?;
                Ok(apply_append(work, plan, append))
            })
            .await
    }

    async fn read(&self, read: Read) -> Result<Fetched> {
        let deadline = self.engine.env().now() + read.wait;
        loop {
            let partition = self.partition(&read.topic, read.partition)?;
            let changed = partition.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let (refs, start, end) = {
                let index = partition.index.read();
                (index.read(read.from.0, read.max_bytes), index.start, index.visible)
            };
            if !refs.is_empty() {
                let Some(batches) = self.load(&refs).await? else { continue };
                let next = refs.last().map_or(0, |(first, batch)| first + u64::from(batch.span));
                return Ok(Fetched { batches, next: Offset(next), start: Offset(start), end: Offset(end) });
            }
            let left = deadline.saturating_duration_since(self.engine.env().now());
            if left.is_zero() || self.engine.env().timeout(left, changed).await.is_none() {
                let next = read.from.max(Offset(start));
                return Ok(Fetched { batches: Vec::new(), next, start: Offset(start), end: Offset(end) });
            }
        }
    }

    async fn bounds(&self, topic: &Topic, partition: u32) -> Result<Bounds> {
        Ok(self.partition(topic, partition)?.index.read().bounds())
    }

    async fn seek(&self, topic: &Topic, partition: u32, seek: Seek) -> Result<Offset> {
        Ok(Offset(self.partition(topic, partition)?.index.read().seek(seek)))
    }

    async fn trim(&self, topic: &Topic, partition: u32, before: Offset) -> Result<()> {
        let name = self.flat(topic.as_str());
        self.engine
            .ask(0, move |work| {
                let (at, end) = at_of(work.messages, &name, partition)?;
                work.write(MessageChange::Trimmed { at, before: before.0.min(end) });
                Ok(())
            })
            .await
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome> {
        crate::commit::commit(&self.engine, &self.namespace, commit).await
    }

    async fn fence_group(&self, group: &Group, generation: u64) -> Result<()> {
        let group = self.flat(group.as_str());
        self.engine
            .ask(0, move |work| {
                check_generation(work.messages, &group, generation)?;
                work.write(MessageChange::GroupFenced { group, generation });
                Ok(())
            })
            .await
    }

    async fn group(&self, group: &Group) -> Result<Option<GroupInfo>> {
        let name = self.flat(group.as_str());
        self.engine.ask(0, move |work| Ok(group_info(work.messages, &name))).await
    }

    async fn groups(&self, after: &str, limit: usize) -> Result<Vec<GroupInfo>> {
        let (namespace, after) = (self.namespace.clone(), after.to_owned());
        self.engine
            .ask(0, move |work| {
                let page = page(&work.messages.groups, &namespace, &after, limit);
                Ok(page.filter_map(|(name, _)| group_info(work.messages, name)).collect())
            })
            .await
    }

    async fn delete_group(&self, group: &Group) -> Result<bool> {
        let group = self.flat(group.as_str());
        self.engine
            .ask(0, move |work| {
                let existed = work.messages.groups.contains_key(&group);
                if existed {
                    work.write(MessageChange::GroupDeleted { group });
                }
                Ok(existed)
            })
            .await
    }

    async fn schedule(&self, delayed: Vec<Delayed>) -> Result<Vec<DelayId>> {
        let namespace = self.namespace.clone();
        let bytes = delayed.iter().map(|delayed| delayed.record.size()).sum();
        self.engine
            .ask(bytes, move |work| {
                let places = plan_delayed(work, &namespace, &delayed)?;
                Ok(apply_delayed(work, places, &delayed))
            })
            .await
    }

    async fn cancel(&self, topic: &Topic, id: DelayId) -> Result<bool> {
        let name = self.flat(topic.as_str());
        self.engine
            .ask(0, move |work| {
                let (topic, state) = topic_of(work.messages, &name)?;
                if state.delays.pending.get(&(id.due_ms, id.number)).is_none() {
                    return Ok(false);
                }
                work.write(MessageChange::DelayEnded { topic, due_ms: id.due_ms, number: id.number });
                Ok(true)
            })
            .await
    }

    async fn reschedule(&self, topic: &Topic, id: DelayId, due_ms: u64) -> Result<Option<DelayId>> {
        let name = self.flat(topic.as_str());
        let moved = self.engine.ask(0, move |work| {
            let (topic, state) = topic_of(work.messages, &name)?;
            if state.delays.pending.get(&(id.due_ms, id.number)).is_none() {
                return Ok(None);
            }
            let to = (due_ms, state.delays.next_number);
            work.write(MessageChange::DelayMoved { topic, from: (id.due_ms, id.number), to });
            Ok(Some(DelayId { due_ms: to.0, number: to.1 }))
        });
        moved.await
    }

    async fn pending(&self, topic: &Topic, after: Option<DelayId>, limit: usize) -> Result<Vec<Pending>> {
        let name = self.flat(topic.as_str());
        let found = self.engine.ask(0, move |work| {
            let (_, state) = topic_of(work.messages, &name)?;
            let from = after.map_or((0, 0), |id| (id.due_ms, id.number.saturating_add(1)));
            let pending = state.delays.pending.from(&from).take(limit);
            Ok(pending.map(|(key, delayed)| (*key, *delayed)).collect::<Vec<_>>())
        });
        let found = found.await?;
        let bodies = self.bodies(found.iter().map(|(_, delayed)| delayed.place).collect()).await?;
        let pending = found.into_iter().zip(bodies).filter_map(|(((due_ms, number), delayed), body)| {
            // One that went meanwhile is left out.
            let record = only_record(body?)?;
            let delayed = Delayed { topic: topic.clone(), partition: delayed.partition, record, due_ms };
            Some(Pending { id: DelayId { due_ms, number }, delayed })
        });
        Ok(pending.collect())
    }

    async fn delay_stats(&self, topic: &Topic) -> Result<DelayStats> {
        let name = self.flat(topic.as_str());
        self.engine
            .ask(0, move |work| {
                let now_ms = work.time_ms;
                topic_of(work.messages, &name).map(|(_, topic)| topic.delays.stats(now_ms))
            })
            .await
    }

    async fn close(&self) -> Result<()> {
        self.engine.close().await
    }
}

/// A name with its namespace.
pub(crate) fn flat(namespace: &Namespace, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Up to `limit` things of a namespace after a name, by name.
pub(crate) fn page<'a, V>(
    all: &'a BTreeMap<String, V>,
    namespace: &Namespace,
    after: &str,
    limit: usize,
) -> impl Iterator<Item = (&'a String, &'a V)> + use<'a, V> {
    let (prefix, after) = (flat(namespace, ""), flat(namespace, after));
    let later = all.range((Bound::Excluded(after), Bound::Unbounded));
    later.take_while(move |(name, _)| name.starts_with(&prefix)).take(limit)
}

/// A name without its namespace.
pub(crate) fn plain(flat: &str) -> &str {
    flat.split_once('/').map_or(flat, |(_, name)| name)
}

/// An append that can be applied.
pub(crate) enum AppendPlan {
    New { at: At, first: u64, time_ms: u64 },
    Duplicate(Appended),
}

/// Looks whether a batch can be appended, and where.
pub(crate) fn plan_append(work: &Work<'_>, namespace: &Namespace, append: &Append) -> Result<AppendPlan> {
    let name = flat(namespace, append.topic.as_str());
    let (id, topic) = topic_of(work.messages, &name)?;
    let partition = topic
        .partitions
        .get(append.partition as usize)
        .ok_or_else(|| no_partition(append.topic.as_str(), append.partition, topic.partitions.len()))?;
    let place = || format!("partition {} of topic {}", append.partition, append.topic);
    if let Some(stamp) = append.stamp {
        match partition.standing(stamp) {
            Standing::New => {}
            Standing::Duplicate(first, time_ms) => {
                return Ok(AppendPlan::Duplicate(Appended { first: Offset(first), time_ms, duplicate: true }));
            }
            Standing::Forgotten => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "batch {} of producer {} was appended to {} so long ago that its offset is forgotten",
                        stamp.sequence,
                        stamp.producer,
                        place()
                    ),
                ));
            }
            Standing::Fenced(epoch) => {
                return Err(Error::new(
                    ErrorKind::Fenced,
                    format!(
                        "producer {} with epoch {} is fenced in {}: epoch {epoch} is there",
                        stamp.producer,
                        stamp.epoch,
                        place()
                    ),
                ));
            }
            Standing::Gap(next) => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "batch {} of producer {} leaves a gap in {}: {next} comes next",
                        stamp.sequence,
                        stamp.producer,
                        place()
                    ),
                ));
            }
        }
    }
    if let Some(expected) = append.expect.filter(|expected| expected.0 != partition.end) {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("{} ends at {}, not at {expected} as expected", place(), partition.end),
        ));
    }
    let at = At { topic: id, partition: append.partition };
    Ok(AppendPlan::New { at, first: partition.end, time_ms: partition.last_ms.max(work.time_ms) })
}

pub(crate) fn apply_append(work: &mut Work<'_>, plan: AppendPlan, append: Append) -> Appended {
    let (at, first, time_ms) = match plan {
        AppendPlan::Duplicate(appended) => return appended,
        AppendPlan::New { at, first, time_ms } => (at, first, time_ms),
    };
    let (count, span) = (append.batch.count(), append.batch.span());
    let change = MessageChange::Appended { at, first, count, span, time_ms, stamp: append.stamp };
    work.write_body(change, append.batch.bytes().clone());
    Appended { first: Offset(first), time_ms, duplicate: false }
}

/// Looks whether records can be kept for later, and for which partitions.
pub(crate) fn plan_delayed(work: &Work<'_>, namespace: &Namespace, delayed: &[Delayed]) -> Result<Vec<At>> {
    let at = |delayed: &Delayed| {
        let name = flat(namespace, delayed.topic.as_str());
        at_of(work.messages, &name, delayed.partition).map(|(at, _)| at)
    };
    delayed.iter().map(at).collect()
}

pub(crate) fn apply_delayed(work: &mut Work<'_>, places: Vec<At>, delayed: &[Delayed]) -> Vec<DelayId> {
    let schedule = |(at, delayed): (At, &Delayed)| {
        let number = work.messages.topics.get(&at.topic).map_or(0, |topic| topic.delays.next_number);
        let change = MessageChange::Delayed { at, due_ms: delayed.due_ms, number };
        work.write_body(change, Batch::from(&delayed.record).bytes().clone());
        DelayId { due_ms: delayed.due_ms, number }
    };
    places.into_iter().zip(delayed).map(schedule).collect()
}

/// Looks whether a group's offsets can be committed, and for which partitions.
pub(crate) fn plan_offsets(work: &Work<'_>, namespace: &Namespace, commit: &OffsetCommit) -> Result<Vec<At>> {
    if !work.env.planted(PlantedBug::AnyGeneration) {
        check_generation(work.messages, &flat(namespace, commit.group.as_str()), commit.generation)?;
    }
    let at = |offset: &GroupOffset| {
        let name = flat(namespace, offset.topic.as_str());
        at_of(work.messages, &name, offset.partition).map(|(at, _)| at)
    };
    commit.offsets.iter().map(at).collect()
}

pub(crate) fn apply_offsets(work: &mut Work<'_>, namespace: &Namespace, places: Vec<At>, commit: OffsetCommit) {
    let group = flat(namespace, commit.group.as_str());
    for (at, GroupOffset { offset, metadata, .. }) in places.into_iter().zip(commit.offsets) {
        let (group, generation) = (group.clone(), commit.generation);
        work.write(MessageChange::GroupCommitted { group, generation, at, offset: offset.0, metadata });
    }
}

/// The record of a batch that has one.
pub(crate) fn only_record(body: Bytes) -> Option<Record> {
    Batch::trusted(body, 1, 1).records(Offset(0), 0).next().map(|stored| stored.record)
}

fn check_generation(messages: &Messages, group: &str, generation: u64) -> Result<()> {
    match messages.groups.get(group) {
        Some(state) if generation < state.generation => Err(Error::new(
            ErrorKind::Fenced,
            format!("generation {generation} of group {} is over: {} is there", plain(group), state.generation),
        )),
        _ => Ok(()),
    }
}

fn topic_of<'a>(messages: &'a Messages, name: &str) -> Result<(u64, &'a TopicState)> {
    let id = messages.topic_id(name);
    let found = id.and_then(|id| Some((id, messages.topics.get(&id)?)));
    found.ok_or_else(|| no_topic(plain(name)))
}

/// A partition, and where it ends.
fn at_of(messages: &Messages, name: &str, partition: u32) -> Result<(At, u64)> {
    let (topic, state) = topic_of(messages, name)?;
    let found = state.partitions.get(partition as usize);
    let found = found.ok_or_else(|| no_partition(plain(name), partition, state.partitions.len()))?;
    Ok((At { topic, partition }, found.end))
}

fn no_topic(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no topic {name}: create it first"))
}

fn no_partition(name: &str, partition: u32, count: usize) -> Error {
    Error::new(ErrorKind::NotFound, format!("topic {name} has no partition {partition}: it has {count}, from 0"))
}

/// A topic for users; `None` if its name is none that users give.
fn info(topic: &TopicState) -> Option<TopicInfo> {
    Some(TopicInfo {
        name: Topic::new(plain(&topic.name)).ok()?,
        spec: topic.spec.clone(),
        created_ms: topic.created_ms,
    })
}

fn group_info(messages: &Messages, name: &str) -> Option<GroupInfo> {
    let group = messages.groups.get(name)?;
    let offset = |(at, (offset, metadata)): (&At, &(u64, Bytes))| {
        let topic = Topic::new(plain(&messages.topics.get(&at.topic)?.name)).ok()?;
        Some(GroupOffset { topic, partition: at.partition, offset: Offset(*offset), metadata: metadata.clone() })
    };
    Some(GroupInfo {
        name: Group::new(plain(name)).ok()?,
        generation: group.generation,
        offsets: group.offsets.iter().filter_map(offset).collect(),
    })
}
