//! Streams and queues in a snapshot: captured at once, since maps are shared in pages, and written at leisure.
//!
//! ```text
//! head      0x10, next id, segment count, first sequence*         (segments that have bodies, and must be there)
//! topics    0x11, topic* = id, name, spec, created ms, next delay number, partition count, partition*
//!             partition = start, visible, end, last ms, producer count, (id, epoch, batch count, batch*)*
//! batches   0x12, (topic, partition, first, time ms, address, length, count, span)*
//! delays    0x13, (topic, due ms, number, partition, address, length)*
//! groups    0x14, (name, generation, offset count, (topic, partition, offset, metadata)*)*
//! queues    0x15, (id, name, spec, next job, next token, done, claims)*
//! jobs      0x16, (queue, job, fields)*
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use bytes::{Buf, Bytes};
use coact_core::codec::{get_bytes, get_varint, put_bytes, put_varint};

use super::{
    At, GroupState, Messages,
    change::{spec_numbers, spec_of},
    delay::Delayed,
    queue::{Extra, Job, Life, QueueSpecOf, QueueState},
    topic::{BatchRef, Index, Producer, TopicState},
};
use crate::{body::Place, paged::PagedMap};

/// Everything of one moment.
pub(crate) struct Captured {
    next_id: u64,
    topics: Vec<(u64, TopicState, Vec<Index>)>,
    groups: BTreeMap<String, GroupState>,
    queues: Vec<CapturedQueue>,
}

struct CapturedQueue {
    id: u64,
    name: String,
    spec: QueueSpecOf,
    numbers: [u64; 4],
    jobs: PagedMap<u64, Job>,
}

/// Where a block is written: begins one of a kind, and ends it when it is full.
pub(crate) trait Sink {
    type Error;
    fn begin(&mut self, tag: u8);
    fn block(&mut self) -> &mut Vec<u8>;
    fn flush(&mut self) -> Result<(), Self::Error>;
    fn flush_if_full(&mut self, tag: u8) -> Result<(), Self::Error>;
}

impl Captured {
    pub(crate) fn take(messages: &Messages) -> Self {
        let topics = messages.topics.iter().map(|(id, topic)| {
            let indexes = topic.partitions.iter().map(|partition| partition.shared.index.read().clone()).collect();
            (*id, topic.clone(), indexes)
        });
        let queues = messages.queues.iter().map(|(id, queue)| CapturedQueue {
            id: *id,
            name: queue.name.clone(),
            spec: queue.spec,
            numbers: [queue.next_job, queue.next_token, queue.done, queue.claims],
            jobs: queue.jobs().clone(),
        });
        Self {
            next_id: messages.next_id,
            topics: topics.collect(),
            queues: queues.collect(),
            groups: messages.groups.clone(),
        }
    }

    /// The first sequences of the segments that have bodies, of all segments by their addresses.
    pub(crate) fn named(&self, segments: &[(u64, u64)]) -> Vec<u64> {
        let mut named = BTreeSet::new();
        let mut note = |place: Place| {
            let after = segments.partition_point(|(address, _)| *address <= place.address);
            if let Some((_, first)) = after.checked_sub(1).and_then(|index| segments.get(index)) {
                named.insert(*first);
            }
        };
        for (_, topic, indexes) in &self.topics {
            indexes.iter().flat_map(|index| index.batches.iter()).for_each(|(_, batch)| note(batch.place));
            topic.delays.pending.iter().for_each(|(_, delayed)| note(delayed.place));
        }
        self.queues.iter().flat_map(|queue| queue.jobs.iter()).for_each(|(_, job)| note(job.place));
        named.into_iter().collect()
    }

    /// Writes all of it.
    pub(crate) fn write<S: Sink>(&self, named: &[u64], out: &mut S) -> Result<(), S::Error> {
        out.begin(0x10);
        put_varint(out.block(), self.next_id);
        put_varint(out.block(), named.len() as u64);
        named.iter().for_each(|first| put_varint(out.block(), *first));
        out.flush()?;
        self.write_topics(out)?;
        self.write_groups(out)?;
        self.write_queues(out)
    }

    fn write_topics<S: Sink>(&self, out: &mut S) -> Result<(), S::Error> {
        out.begin(0x11);
        for (id, topic, indexes) in &self.topics {
            put_topic(out.block(), *id, topic, indexes);
            out.flush_if_full(0x11)?;
        }
        out.flush()?;
        out.begin(0x12);
        for (id, _, indexes) in &self.topics {
            for (partition, index) in indexes.iter().enumerate() {
                for (first, batch) in index.batches.iter() {
                    let BatchRef { time_ms, place, count, span } = *batch;
                    let small = [count.into(), span.into()];
                    put_all(out.block(), &[*id, partition as u64, *first, time_ms, place.address, place.length.into()]);
                    put_all(out.block(), &small);
                    out.flush_if_full(0x12)?;
                }
            }
        }
        out.flush()?;
        out.begin(0x13);
        for (id, topic, _) in &self.topics {
            for ((due_ms, number), delayed) in topic.delays.pending.iter() {
                let Place { address, length } = delayed.place;
                put_all(out.block(), &[*id, *due_ms, *number, delayed.partition.into(), address, length.into()]);
                out.flush_if_full(0x13)?;
            }
        }
        out.flush()
    }

    fn write_groups<S: Sink>(&self, out: &mut S) -> Result<(), S::Error> {
        out.begin(0x14);
        for (name, group) in &self.groups {
            put_bytes(out.block(), name.as_bytes());
            put_all(out.block(), &[group.generation, group.offsets.len() as u64]);
            for (at, (offset, metadata)) in &group.offsets {
                put_all(out.block(), &[at.topic, at.partition.into(), *offset]);
                put_bytes(out.block(), metadata);
            }
            out.flush_if_full(0x14)?;
        }
        out.flush()
    }

    fn write_queues<S: Sink>(&self, out: &mut S) -> Result<(), S::Error> {
        out.begin(0x15);
        for CapturedQueue { id, name, spec, numbers, .. } in &self.queues {
            put_varint(out.block(), *id);
            put_bytes(out.block(), name.as_bytes());
            put_all(out.block(), &[spec.max_attempts.into(), spec.keep_dead_ms, spec.paused.into()]);
            put_all(out.block(), numbers);
            out.flush_if_full(0x15)?;
        }
        out.flush()?;
        out.begin(0x16);
        for queue in &self.queues {
            for (id, job) in queue.jobs.iter() {
                put_all(out.block(), &[queue.id, *id]);
                put_job(out.block(), job);
                out.flush_if_full(0x16)?;
            }
        }
        out.flush()
    }
}

fn put_all(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| put_varint(out, *number));
}

fn put_topic(out: &mut Vec<u8>, id: u64, topic: &TopicState, indexes: &[Index]) {
    put_varint(out, id);
    put_bytes(out, topic.name.as_bytes());
    put_all(out, &spec_numbers(&topic.spec));
    put_all(out, &[topic.created_ms, topic.delays.next_number, topic.partitions.len() as u64]);
    for (partition, index) in topic.partitions.iter().zip(indexes) {
        put_all(out, &[index.start, index.visible, partition.end, partition.last_ms]);
        put_varint(out, partition.producers().count() as u64);
        for (id, producer) in partition.producers() {
            put_all(out, &[id, producer.epoch.into(), producer.batches.len() as u64]);
            for (sequence, count, first, time_ms) in &producer.batches {
                put_all(out, &[*sequence, (*count).into(), *first, *time_ms]);
            }
        }
    }
}

fn put_job(out: &mut Vec<u8>, job: &Job) {
    let life = match job.life {
        Life::Waiting => 0,
        Life::Claimed => 1,
        Life::Dead => 2,
    };
    put_all(out, &[job.place.address, job.place.length.into(), job.priority.into(), life]);
    put_all(out, &[job.attempts.into(), job.max_attempts.into(), job.enqueued_ms, job.at_ms, job.token]);
    put_varint(out, job.extra.is_some().into());
    if let Some(extra) = &job.extra {
        put_bytes(out, extra.name.as_bytes());
        put_bytes(out, &extra.order_key);
        put_all(out, &[extra.expires_ms.map_or(0, |at_ms| at_ms.saturating_add(1)), extra.lease_ms]);
        put_bytes(out, extra.worker.as_bytes());
        put_bytes(out, extra.error.as_bytes());
    }
}

impl Messages {
    /// Reads one block of a snapshot; `None` if it is malformed.
    pub(crate) fn load(&mut self, tag: u8, block: &mut Bytes, named: &mut Vec<u64>, now: Instant) -> Option<()> {
        if tag == 0x10 {
            self.next_id = get_varint(block)?;
            for _ in 0..get_varint(block)? {
                named.push(get_varint(block)?);
            }
            return (!block.has_remaining()).then_some(());
        }
        while block.has_remaining() {
            match tag {
                0x11 => self.load_topic(block)?,
                0x12 => self.load_batch(block)?,
                0x13 => self.load_delay(block)?,
                0x14 => self.load_group(block)?,
                0x15 => self.load_queue(block)?,
                0x16 => self.load_job(block, now)?,
                _ => return None,
            }
        }
        Some(())
    }

    fn load_topic(&mut self, block: &mut Bytes) -> Option<()> {
        let (id, name) = (get_varint(block)?, text(block)?);
        let spec = spec_of(numbers(block)?)?;
        let [created_ms, next_number, count] = numbers(block)?;
        self.put_topic(id, name, spec, created_ms);
        let topic = self.topics.get_mut(&id)?;
        topic.delays.next_number = next_number;
        (topic.partitions.len() as u64 == count).then_some(())?;
        for partition in &mut topic.partitions {
            let [start, visible, end, last_ms, producers] = numbers(block)?;
            (partition.end, partition.last_ms) = (end, last_ms);
            {
                let mut index = partition.shared.index.write();
                (index.start, index.visible) = (start, visible);
            }
            for _ in 0..producers {
                let [id, epoch, count] = numbers(block)?;
                let mut producer = Producer { epoch: u32::try_from(epoch).ok()?, ..Producer::default() };
                for _ in 0..count {
                    let [sequence, count, first, time_ms] = numbers(block)?;
                    producer.batches.push_back((sequence, u32::try_from(count).ok()?, first, time_ms));
                }
                partition.restore_producer(id, producer);
            }
        }
        Some(())
    }

    fn load_batch(&mut self, block: &mut Bytes) -> Option<()> {
        let [topic, partition, first, time_ms, address, length, count, span] = numbers(block)?;
        let partition = self.partition(At { topic, partition: u32::try_from(partition).ok()? })?;
        let place = Place { address, length: u32::try_from(length).ok()? };
        let (count, span) = (u32::try_from(count).ok()?, u32::try_from(span).ok()?);
        partition.index.write().add(first, BatchRef { time_ms, place, count, span });
        Some(())
    }

    fn load_delay(&mut self, block: &mut Bytes) -> Option<()> {
        let [topic, due_ms, number, partition, address, length] = numbers(block)?;
        let place = Place { address, length: u32::try_from(length).ok()? };
        let delayed = Delayed { partition: u32::try_from(partition).ok()?, place };
        self.topics.get_mut(&topic)?.delays.add((due_ms, number), delayed);
        Some(())
    }

    fn load_group(&mut self, block: &mut Bytes) -> Option<()> {
        let name = text(block)?;
        let [generation, count] = numbers(block)?;
        let mut group = GroupState { generation, ..GroupState::default() };
        for _ in 0..count {
            let [topic, partition, offset] = numbers(block)?;
            let metadata = Bytes::copy_from_slice(&get_bytes(block)?);
            group.offsets.insert(At { topic, partition: u32::try_from(partition).ok()? }, (offset, metadata));
        }
        self.groups.insert(name, group);
        Some(())
    }

    fn load_queue(&mut self, block: &mut Bytes) -> Option<()> {
        let (id, name) = (get_varint(block)?, text(block)?);
        let [max_attempts, keep_dead_ms, paused, next_job, next_token, done, claims] = numbers(block)?;
        let spec = QueueSpecOf { max_attempts: u32::try_from(max_attempts).ok()?, keep_dead_ms, paused: paused != 0 };
        let mut queue = QueueState::new(name.clone(), spec);
        (queue.next_job, queue.next_token, queue.done, queue.claims) = (next_job, next_token, done, claims);
        self.queue_ids.insert(name, id);
        self.queues.insert(id, queue);
        Some(())
    }

    fn load_job(&mut self, block: &mut Bytes, now: Instant) -> Option<()> {
        let [queue, id] = numbers(block)?;
        let [address, length, priority, life, attempts, max_attempts, enqueued_ms, at_ms, token, has_extra] =
            numbers(block)?;
        let mut job = Job {
            place: Place { address, length: u32::try_from(length).ok()? },
            priority: u8::try_from(priority).ok()?,
            life: [Life::Waiting, Life::Claimed, Life::Dead].get(life as usize).copied()?,
            attempts: u32::try_from(attempts).ok()?,
            max_attempts: u32::try_from(max_attempts).ok()?,
            enqueued_ms,
            at_ms,
            token,
            extra: None,
        };
        if has_extra != 0 {
            let (name, order_key) = (text(block)?, Bytes::copy_from_slice(&get_bytes(block)?));
            let [expires_ms, lease_ms] = numbers(block)?;
            let (worker, error) = (text(block)?, text(block)?);
            let expires_ms = expires_ms.checked_sub(1);
            job.extra = Some(Box::new(Extra { name, order_key, expires_ms, worker, error, lease_ms }));
        }
        self.queues.get_mut(&queue)?.restore(id, job, now);
        Some(())
    }
}

fn numbers<const N: usize>(block: &mut Bytes) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = get_varint(block)?;
    }
    Some(numbers)
}

fn text(block: &mut Bytes) -> Option<String> {
    String::from_utf8(get_bytes(block)?.to_vec()).ok()
}
