//! The model of streams: maps, and no clock. Delayed records are due so late that none comes.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::{
        commit::{Commit, CommitOutcome},
        stream::{
            Append, Appended, Atomicity, Batch, DelayId, Delayed, GroupOffset, Offset, OffsetCommit, Read, Record,
            Seek, Stamp, StreamHandle, TopicSpec,
        },
    },
    name::{Group, Topic},
};

use super::{Steps, agreed, answered, pick, same};
use crate::sim::Random;

/// How many batches of a producer every engine recognizes.
const BATCHES_KNOWN: usize = 5;
/// When delayed records are due at the earliest, from now.
const FAR_MS: u64 = 24 * 3600 * 1000;

/// A store and its model.
pub(super) struct Run<'a> {
    streams: &'a StreamHandle,
    prefix: String,
    random: Random,
    topics: BTreeMap<Topic, TopicModel>,
    groups: BTreeMap<Group, GroupModel>,
    next_value: u64,
    pub(super) steps: Steps,
}

#[derive(Debug, Default)]
struct TopicModel {
    partitions: Vec<PartitionModel>,
    delayed: BTreeMap<DelayId, String>,
}

#[derive(Debug, Default)]
struct PartitionModel {
    records: BTreeMap<u64, String>,
    end: u64,
    producers: BTreeMap<u64, Producer>,
}

#[derive(Debug, Default)]
struct Producer {
    epoch: u32,
    next: u64,
    /// The newest batches: sequence, count, first offset.
    batches: VecDeque<(u64, u64, u64)>,
}

#[derive(Debug, Default)]
struct GroupModel {
    /// Below it, everybody is fenced.
    generation: u64,
    /// The highest that committed: engines may fence below it too.
    highest: u64,
    offsets: BTreeMap<(Topic, u32), u64>,
}

impl<'a> Run<'a> {
    pub(super) fn new(streams: &'a StreamHandle, prefix: &str, seed: u64) -> Self {
        Self {
            streams,
            prefix: prefix.to_owned(),
            random: Random::new(seed, "streams"),
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_value: 0,
            steps: Steps::default(),
        }
    }

    pub(super) async fn step(&mut self) -> Result<(), String> {
        match self.random.below(40) {
            0..=2 => self.create().await,
            3 => self.alter().await,
            4 if self.random.one_in(3) => self.delete().await,
            5..=16 => self.append().await,
            17..=20 => self.commit().await,
            21 => self.trim().await,
            22..=23 => self.fence().await,
            24 if self.random.one_in(3) => self.delete_group().await,
            25..=28 => self.schedule().await,
            29..=30 => self.cancel().await,
            31..=32 => self.reschedule().await,
            33..=34 => self.compare_group().await,
            35 => self.compare_pending().await,
            _ => {
                let (topic, partition) = self.any_place();
                self.compare_partition(&topic, partition).await
            }
        }
    }

    pub(super) async fn compare_all(&mut self) -> Result<(), String> {
        let places: Vec<_> = self
            .topics
            .iter()
            .flat_map(|(topic, model)| (0..model.partitions.len()).map(|partition| (topic.clone(), partition as u32)))
            .collect();
        for (topic, partition) in places {
            self.compare_partition(&topic, partition).await?;
        }
        let listed = answered(self.streams.topics(&self.prefix, 1000).await)?;
        let listed = listed.into_iter().map(|info| (info.name, info.spec.partitions));
        let mine: Vec<_> = listed.filter(|(name, _)| name.as_str().starts_with(&self.prefix)).collect();
        let expected = self.topics.iter().map(|(name, model)| (name.clone(), model.partitions.len() as u32)).collect();
        same("topics", mine, expected)
    }

    async fn create(&mut self) -> Result<(), String> {
        let (topic, partitions) = (self.any_topic(), 1 + self.random.below(3) as u32);
        self.steps.note(("create", &topic, partitions));
        let kinds: &[_] = if self.topics.contains_key(&topic) { &[ErrorKind::AlreadyExists] } else { &[] };
        let spec = TopicSpec { partitions, ..TopicSpec::default() };
        if agreed(self.streams.create_topic(&topic, &spec).await, kinds)?.is_some() {
            let mut model = TopicModel::default();
            model.partitions.resize_with(partitions as usize, Default::default);
            self.topics.insert(topic, model);
        }
        Ok(())
    }

    async fn alter(&mut self) -> Result<(), String> {
        let (topic, partitions) = (self.any_topic(), 1 + self.random.below(4) as u32);
        self.steps.note(("alter", &topic, partitions));
        let kinds: &[_] = match self.topics.get(&topic) {
            None => &[ErrorKind::NotFound],
            Some(model) if model.partitions.len() > partitions as usize => &[ErrorKind::Invalid],
            Some(_) => &[],
        };
        let spec = TopicSpec { partitions, ..TopicSpec::default() };
        if agreed(self.streams.alter_topic(&topic, &spec).await, kinds)?.is_some()
            && let Some(model) = self.topics.get_mut(&topic)
        {
            model.partitions.resize_with(partitions as usize, Default::default);
        }
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), String> {
        let topic = self.any_topic();
        self.steps.note(("delete", &topic));
        let deleted = answered(self.streams.delete_topic(&topic).await)?;
        for group in self.groups.values_mut() {
            group.offsets.retain(|(of, _), _| *of != topic);
        }
        same("deleted", deleted, self.topics.remove(&topic).is_some())
    }

    async fn append(&mut self) -> Result<(), String> {
        let append = self.any_append();
        self.steps.note(("append", &append.topic, append.partition, append.batch.count(), append.stamp, append.expect));
        let (kinds, duplicate) = self.expected(&append);
        match agreed(self.streams.append(append.clone()).await, &kinds)? {
            Some(appended) => self.apply_append(&append, appended, duplicate),
            None => Ok(()),
        }
    }

    async fn commit(&mut self) -> Result<(), String> {
        let together = self.streams.guarantees().atomicity >= Atomicity::Streams;
        let (mut appends, count) = (Vec::<Append>::new(), if together { self.random.below(3) } else { 0 });
        for _ in 0..count {
            let append = self.any_append();
            let is_same = |other: &Append| other.topic == append.topic && other.partition == append.partition;
            if !appends.iter().any(is_same) {
                appends.push(append);
            }
        }
        let ((topic, partition), group) = (self.any_place(), self.any_group());
        let (offset, generation) = (self.random.below(100), self.any_generation(&group));
        self.steps.note(("commit", &appends, &group, generation, &topic, partition, offset));
        let (mut kinds, mut duplicates) = (Vec::new(), Vec::new());
        for append in &appends {
            let (refusals, duplicate) = self.expected(append);
            kinds.extend(refusals);
            duplicates.push(duplicate);
        }
        if self.partition(&topic, partition).is_none() {
            kinds.push(ErrorKind::NotFound);
        }
        if self.groups.get(&group).is_some_and(|model| generation < model.generation) {
            kinds.push(ErrorKind::Fenced);
        }
        let metadata = Bytes::from(offset.to_string());
        let offsets = vec![GroupOffset { topic: topic.clone(), partition, offset: Offset(offset), metadata }];
        let offsets = Some(OffsetCommit { group: group.clone(), generation, offsets });
        let commit = Commit { appends: appends.clone(), offsets, ..Commit::default() };
        let Some(outcome) = agreed(self.streams.commit(commit).await, &kinds)? else { return Ok(()) };
        let CommitOutcome::Committed(committed) = outcome else { return Err(format!("got {outcome:?}")) };
        same("answers", committed.appended.len(), appends.len())?;
        for ((append, appended), duplicate) in appends.iter().zip(committed.appended).zip(duplicates) {
            self.apply_append(append, appended, duplicate)?;
        }
        let model = self.groups.entry(group).or_default();
        model.offsets.insert((topic, partition), offset);
        model.highest = generation.max(model.highest);
        Ok(())
    }

    async fn trim(&mut self) -> Result<(), String> {
        let ((topic, partition), before) = (self.any_place(), self.random.below(40));
        self.steps.note(("trim", &topic, partition, before));
        let kinds: &[_] = if self.partition(&topic, partition).is_none() { &[ErrorKind::NotFound] } else { &[] };
        let trimmed = agreed(self.streams.trim(&topic, partition, Offset(before)).await, kinds)?;
        if let Some(model) = self.partition_mut(&topic, partition).filter(|_| trimmed.is_some()) {
            model.records.retain(|offset, _| *offset >= before);
        }
        Ok(())
    }

    async fn fence(&mut self) -> Result<(), String> {
        let group = self.any_group();
        let generation = self.any_generation(&group);
        self.steps.note(("fence", &group, generation));
        let known = self.groups.get(&group).map_or(0, |model| model.generation);
        let kinds: &[_] = if generation < known { &[ErrorKind::Fenced] } else { &[] };
        if agreed(self.streams.fence_group(&group, generation).await, kinds)?.is_some() {
            let model = self.groups.entry(group).or_default();
            (model.generation, model.highest) = (generation, generation.max(model.highest));
        }
        Ok(())
    }

    async fn delete_group(&mut self) -> Result<(), String> {
        let group = self.any_group();
        self.steps.note(("delete", &group));
        let deleted = answered(self.streams.delete_group(&group).await)?;
        same("deleted", deleted, self.groups.remove(&group).is_some())
    }

    async fn schedule(&mut self) -> Result<(), String> {
        let (count, mut delayed) = (1 + self.random.below(3), Vec::new());
        let (topic, partition) = self.any_place();
        for _ in 0..count {
            let (due_ms, record) = (self.far(), Record::new(self.new_value()));
            delayed.push(Delayed { topic: topic.clone(), partition, record, due_ms });
        }
        self.steps.note(("schedule", &topic, partition, count));
        let kinds: &[_] = if self.partition(&topic, partition).is_none() { &[ErrorKind::NotFound] } else { &[] };
        let Some(ids) = agreed(self.streams.schedule(delayed.clone()).await, kinds)? else { return Ok(()) };
        same("handles", ids.len(), delayed.len())?;
        for (id, delayed) in ids.into_iter().zip(delayed) {
            same("due", id.due_ms, delayed.due_ms)?;
            let value = String::from_utf8_lossy(&delayed.record.value).into_owned();
            let model = self.topics.get_mut(&topic).and_then(|model| model.delayed.insert(id, value));
            same("the handle was given before", model, None)?;
        }
        Ok(())
    }

    async fn cancel(&mut self) -> Result<(), String> {
        let (topic, id) = self.any_delayed();
        self.steps.note(("cancel", &topic, id));
        let kinds: &[_] = if self.topics.contains_key(&topic) { &[] } else { &[ErrorKind::NotFound] };
        let Some(cancelled) = agreed(self.streams.cancel(&topic, id).await, kinds)? else { return Ok(()) };
        let model = self.topics.get_mut(&topic).and_then(|model| model.delayed.remove(&id));
        same("cancelled", cancelled, model.is_some())
    }

    async fn reschedule(&mut self) -> Result<(), String> {
        let ((topic, id), due_ms) = (self.any_delayed(), self.far());
        self.steps.note(("reschedule", &topic, id, due_ms));
        let kinds: &[_] = if self.topics.contains_key(&topic) { &[] } else { &[ErrorKind::NotFound] };
        let Some(moved) = agreed(self.streams.reschedule(&topic, id, due_ms).await, kinds)? else { return Ok(()) };
        let Some(model) = self.topics.get_mut(&topic) else { return Ok(()) };
        let value = model.delayed.remove(&id);
        same("rescheduled", moved.map(|id| id.due_ms), value.as_ref().map(|_| due_ms))?;
        if let (Some(id), Some(value)) = (moved, value) {
            same("the handle was given before", model.delayed.insert(id, value), None)?;
        }
        Ok(())
    }

    async fn compare_pending(&mut self) -> Result<(), String> {
        let topic = self.any_topic();
        self.steps.note(("pending", &topic));
        let Some(model) = self.topics.get(&topic) else { return Ok(()) };
        let pending = answered(self.streams.pending(&topic, None, 1000).await)?;
        let value = |record: &Record| String::from_utf8_lossy(&record.value).into_owned();
        let got: Vec<_> = pending.iter().map(|pending| (pending.id, value(&pending.delayed.record))).collect();
        same("pending", got, model.delayed.iter().map(|(id, value)| (*id, value.clone())).collect())?;
        let stats = answered(self.streams.delay_stats(&topic).await)?;
        same("how many wait", stats.pending, model.delayed.len() as u64)?;
        same("the next due", stats.next_due_ms, model.delayed.keys().next().map(|id| id.due_ms))
    }

    async fn compare_group(&mut self) -> Result<(), String> {
        let group = self.any_group();
        self.steps.note(("group", &group));
        let got = answered(self.streams.group(&group).await)?;
        let offset = |offset: GroupOffset| ((offset.topic, offset.partition), offset.offset.0);
        let got = got.map(|info| info.offsets.into_iter().map(offset).collect());
        same("offsets", got, self.groups.get(&group).map(|model| model.offsets.clone()))
    }

    async fn compare_partition(&mut self, topic: &Topic, partition: u32) -> Result<(), String> {
        self.steps.note(("compare", topic, partition));
        let kinds: &[_] = if self.partition(topic, partition).is_none() { &[ErrorKind::NotFound] } else { &[] };
        let Some(bounds) = agreed(self.streams.bounds(topic, partition).await, kinds)? else { return Ok(()) };
        let begin = self.random.below(10);
        let (mut from, mut got) = (begin, BTreeMap::new());
        loop {
            let max_bytes = self.random.below(500) as usize;
            let read = Read { max_bytes, from: Offset(from), ..read_of(topic, partition) };
            let fetched = answered(self.streams.read(read).await)?;
            if fetched.batches.is_empty() {
                break;
            }
            let value = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            got.extend(fetched.records(Offset(from)).map(|stored| (stored.offset.0, value(&stored.record.value))));
            from = fetched.next.0;
        }
        let dense = self.streams.guarantees().dense_offsets;
        let latest = answered(self.streams.seek(topic, partition, Seek::Latest).await)?;
        let Some(model) = self.partition_mut(topic, partition) else { return Ok(()) };
        // A trim may keep more than it has to.
        if let Some((first, _)) = model.records.first_key_value() {
            got.retain(|offset, _| offset >= first);
        } else {
            got.clear();
        }
        let expected = model.records.range(begin..).map(|(offset, value)| (*offset, value.clone())).collect();
        same("records", got, expected)?;
        same("the newest", latest, bounds.end)?;
        if dense {
            same("the end", bounds.end.0, model.end)?;
        }
        model.end = bounds.end.0;
        Ok(())
    }

    /// How an append may be refused; if not at all, the offset that it has if it is a repetition.
    fn expected(&self, append: &Append) -> (Vec<ErrorKind>, Option<u64>) {
        let Some(model) = self.partition(&append.topic, append.partition) else {
            return (vec![ErrorKind::NotFound], None);
        };
        if append.expect.is_some_and(|expect| expect.0 != model.end) {
            return (vec![ErrorKind::Conflict], None);
        }
        let Some(Stamp { producer, epoch, sequence }) = append.stamp else { return (Vec::new(), None) };
        let Some(known) = model.producers.get(&producer) else { return (Vec::new(), None) };
        let next = if epoch > known.epoch { 0 } else { known.next };
        if epoch < known.epoch {
            (vec![ErrorKind::Fenced], None)
        } else if sequence > next {
            (vec![ErrorKind::Conflict], None)
        } else {
            let known = known.batches.iter().find(|(known, ..)| *known == sequence).filter(|_| sequence < next);
            (Vec::new(), known.map(|(_, _, first)| *first))
        }
    }

    fn apply_append(&mut self, append: &Append, appended: Appended, duplicate: Option<u64>) -> Result<(), String> {
        let dense = self.streams.guarantees().dense_offsets;
        let Some(model) = self.partition_mut(&append.topic, append.partition) else { return Ok(()) };
        same("duplicate", appended.duplicate, duplicate.is_some())?;
        if let Some(first) = duplicate {
            return same("the offset of a repetition", appended.first.0, first);
        }
        if appended.first.0 < model.end || (dense && appended.first.0 != model.end) {
            return Err(format!("appended at {}, the partition ended at {}", appended.first, model.end));
        }
        for stored in append.batch.records(appended.first, 0) {
            model.end = stored.offset.0 + 1;
            model.records.insert(stored.offset.0, String::from_utf8_lossy(&stored.record.value).into_owned());
        }
        if let Some(Stamp { producer, epoch, sequence }) = append.stamp {
            let known = model.producers.entry(producer).or_default();
            if epoch > known.epoch {
                *known = Producer { epoch, ..Producer::default() };
            }
            let count = u64::from(append.batch.count());
            known.next = sequence + count;
            known.batches.push_back((sequence, count, appended.first.0));
            if known.batches.len() > BATCHES_KNOWN {
                known.batches.pop_front();
            }
        }
        Ok(())
    }

    fn any_append(&mut self) -> Append {
        let (topic, partition) = self.any_place();
        let count = 1 + self.random.below(4);
        let records: Vec<_> = (0..count).map(|_| Record::new(self.new_value())).collect();
        let end = self.partition(&topic, partition).map_or(0, |model| model.end);
        let dense = self.streams.guarantees().dense_offsets;
        let mut append = Append { topic, partition, batch: Batch::new(&records), stamp: None, expect: None };
        match self.random.below(8) {
            // Where offsets have gaps, nobody knows the end without asking.
            0 if dense => append.expect = Some(Offset(end + self.random.below(2))),
            1..=4 if self.streams.guarantees().dedup.is_some() => append.stamp = Some(self.any_stamp(&append)),
            _ => {}
        }
        append
    }

    /// Mostly what comes next, now and then a repetition, a gap, an older or a newer epoch.
    fn any_stamp(&mut self, append: &Append) -> Stamp {
        let (producer, chance) = (self.random.below(2), self.random.below(10));
        let which = self.random.next() as usize;
        let known = self.partition(&append.topic, append.partition).and_then(|model| model.producers.get(&producer));
        // One that is not known may begin anywhere in some engines, and at zero in all.
        let Some(known) = known else { return Stamp { producer, epoch: 1, sequence: 0 } };
        let (epoch, sequence) = match chance {
            0..=4 => (known.epoch, known.next),
            5..=6 => (known.epoch, known.batches[which % known.batches.len()].0),
            7 => (known.epoch, known.next + 1),
            8 => (known.epoch - 1, known.next),
            _ => (known.epoch + 1, which as u64 % 2),
        };
        Stamp { producer, epoch, sequence }
    }

    fn any_delayed(&mut self) -> (Topic, DelayId) {
        let topic = self.any_topic();
        let known: Vec<_> = self.topics.get(&topic).map_or(Vec::new(), |model| model.delayed.keys().copied().collect());
        let made_up = DelayId { due_ms: self.far(), number: self.random.below(20) };
        let picked = pick(&mut self.random, &known).copied();
        (topic, picked.filter(|_| !self.random.one_in(4)).unwrap_or(made_up))
    }

    fn any_place(&mut self) -> (Topic, u32) {
        (self.any_topic(), self.random.below(4) as u32)
    }

    fn any_topic(&mut self) -> Topic {
        let which = self.random.below(3);
        Topic::new(&format!("{}-{which}", self.prefix)).expect("a valid prefix")
    }

    fn any_group(&mut self) -> Group {
        let which = self.random.below(2);
        Group::new(&format!("{}-{which}", self.prefix)).expect("a valid prefix")
    }

    /// One that is fenced, or as high as any that committed: between them engines differ.
    fn any_generation(&mut self, group: &Group) -> u64 {
        let any = self.random.below(10);
        let Some(model) = self.groups.get(group) else { return any };
        if any < model.generation || any > model.highest { any } else { model.highest }
    }

    fn new_value(&mut self) -> String {
        self.next_value += 1;
        self.next_value.to_string()
    }

    fn far(&mut self) -> u64 {
        self.streams.env().wall_ms() + FAR_MS + self.random.below(1000)
    }

    fn partition(&self, topic: &Topic, partition: u32) -> Option<&PartitionModel> {
        self.topics.get(topic)?.partitions.get(partition as usize)
    }

    fn partition_mut(&mut self, topic: &Topic, partition: u32) -> Option<&mut PartitionModel> {
        self.topics.get_mut(topic)?.partitions.get_mut(partition as usize)
    }
}

fn read_of(topic: &Topic, partition: u32) -> Read {
    Read { topic: topic.clone(), partition, from: Offset(0), max_bytes: 0, wait: Default::default() }
}
