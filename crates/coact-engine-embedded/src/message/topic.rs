//! Topics: what the writer knows of each partition, and the index that readers share with it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use coact_core::contract::stream::{Bounds, Offset, Seek, Stamp, TopicSpec};
use parking_lot::RwLock;
use tokio::sync::Notify;

use super::{change::millis, delay::Delays};
use crate::{body::Place, paged::PagedMap};

/// How many batches of a producer are remembered, so that appending one again tells its offset.
const BATCHES_REMEMBERED: usize = 5;
/// For how long a producer that appends nothing is remembered.
pub(crate) const PRODUCER_MS: u64 = 24 * 3600 * 1000;

/// A topic.
#[derive(Clone, Debug)]
pub(crate) struct TopicState {
    /// With its namespace: `main/orders`.
    pub(crate) name: String,
    pub(crate) spec: TopicSpec,
    pub(crate) created_ms: u64,
    pub(crate) partitions: Vec<PartitionState>,
    pub(crate) delays: Delays,
}

/// A partition as the writer sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct PartitionState {
    /// The offset of the next record.
    pub(crate) end: u64,
    pub(crate) last_ms: u64,
    producers: HashMap<u64, Producer>,
    pub(crate) shared: Arc<Partition>,
}

/// What is remembered of a producer, in one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Producer {
    pub(crate) epoch: u32,
    /// The newest batches: sequence, count, first offset, time.
    pub(crate) batches: VecDeque<(u64, u32, u64, u64)>,
}

/// How a stamped batch stands to what its producer appended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    New,
    /// Appended before, at this offset and time.
    Duplicate(u64, u64),
    /// So long ago that nobody knows where.
    Forgotten,
    Fenced(u32),
    Gap(u64),
}

/// A partition as readers and the writer share it.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    pub(crate) index: RwLock<Index>,
    /// Told when records become readable.
    pub(crate) changed: Notify,
}

/// Where the batches of a partition are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// By first offset.
    pub(crate) batches: PagedMap<u64, BatchRef>,
    /// No record before this offset is kept.
    pub(crate) start: u64,
    /// Records before this offset are durable, and readable.
    pub(crate) visible: u64,
    pub(crate) bytes: u64,
    pub(crate) records: u64,
}

/// One batch without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchRef {
    pub(crate) time_ms: u64,
    pub(crate) place: Place,
    pub(crate) count: u32,
    pub(crate) span: u32,
}

impl TopicState {
    pub(crate) fn new(name: String, spec: TopicSpec, created_ms: u64) -> Self {
        let mut topic = Self { name, spec, created_ms, partitions: Vec::new(), delays: Delays::default() };
        topic.grow();
        topic
    }

    /// Whether it lets records go by itself.
    pub(crate) fn retains(&self) -> bool {
        self.has_bounds() || self.spec.compact
    }

    /// Whether it lets the oldest records go.
    pub(crate) fn has_bounds(&self) -> bool {
        self.spec.retention_age.is_some() || self.spec.retention_bytes.is_some()
    }

    /// Makes as many partitions as the layout says.
    pub(crate) fn grow(&mut self) {
        let count = self.partitions.len().max(self.spec.partitions as usize);
        self.partitions.resize_with(count, PartitionState::default);
    }
}

impl PartitionState {
    /// How a stamped batch stands.
    pub(crate) fn standing(&self, stamp: Stamp) -> Standing {
        let Some(producer) = self.producers.get(&stamp.producer) else {
            // One that is not known, or was forgotten, begins where it says.
            return Standing::New;
        };
        if stamp.epoch < producer.epoch {
            return Standing::Fenced(producer.epoch);
        }
        if stamp.epoch > producer.epoch {
            return if stamp.sequence == 0 { Standing::New } else { Standing::Gap(0) };
        }
        let next =
            producer.batches.back().map_or(0, |(sequence, count, ..)| sequence.saturating_add(u64::from(*count)));
        if stamp.sequence == next {
            return Standing::New;
        }
        if stamp.sequence > next {
            return Standing::Gap(next);
        }
        let found = producer.batches.iter().find(|(sequence, ..)| *sequence == stamp.sequence);
        found.map_or(Standing::Forgotten, |(_, _, first, time_ms)| Standing::Duplicate(*first, *time_ms))
    }

    /// Takes note of an appended batch; readers see it when it is made visible.
    pub(crate) fn append(&mut self, first: u64, batch: BatchRef, stamp: Option<Stamp>) {
        self.end = first + u64::from(batch.span);
        self.last_ms = batch.time_ms;
        if let Some(Stamp { producer, epoch, sequence }) = stamp {
            let known = self.producers.entry(producer).or_default();
            if known.epoch != epoch {
                *known = Producer { epoch, batches: VecDeque::new() };
            }
            if known.batches.len() == BATCHES_REMEMBERED {
                known.batches.pop_front();
            }
            known.batches.push_back((sequence, batch.count, first, batch.time_ms));
        }
        self.shared.index.write().add(first, batch);
    }

    pub(crate) fn producers(&self) -> impl Iterator<Item = (u64, &Producer)> {
        self.producers.iter().map(|(id, producer)| (*id, producer))
    }

    pub(crate) fn restore_producer(&mut self, id: u64, producer: Producer) {
        self.producers.insert(id, producer);
    }

    /// Forgets producers that appended nothing for long.
    pub(crate) fn forget_producers(&mut self, now_ms: u64) {
        let is_recent = |producer: &Producer| {
            producer.batches.back().is_some_and(|(.., time_ms)| now_ms.saturating_sub(*time_ms) < PRODUCER_MS)
        };
        self.producers.retain(|_, producer| is_recent(producer));
    }
}

impl Index {
    pub(crate) fn add(&mut self, first: u64, batch: BatchRef) {
        self.bytes += u64::from(batch.place.length);
        self.records += u64::from(batch.count);
        self.batches.insert(first, batch);
    }

    pub(crate) fn remove(&mut self, first: u64) -> Option<BatchRef> {
        let batch = self.batches.remove(&first)?;
        self.bytes -= u64::from(batch.place.length);
        self.records -= u64::from(batch.count);
        Some(batch)
    }

    /// Puts a batch with fewer records in the place of one that is there, or nothing if it has none; returns what was there.
    pub(crate) fn compact(&mut self, first: u64, batch: BatchRef) -> Option<BatchRef> {
        let gone = self.remove(first)?;
        if batch.count > 0 {
            self.add(first, batch);
        }
        Some(gone)
    }

    /// Lets batches go that end at an offset or before it, and returns them. A batch in the middle stays, and what is
    /// before the offset in it is not read.
    pub(crate) fn trim(&mut self, before: u64) -> Vec<BatchRef> {
        let mut gone = Vec::new();
        while let Some((first, batch)) = self.batches.first() {
            if first + u64::from(batch.span) > before {
                break;
            }
            let first = *first;
            gone.extend(self.remove(first));
        }
        self.start = self.start.max(before);
        gone
    }

    /// How far to trim so that what is too old or too much goes, in whole batches.
    pub(crate) fn expired(&self, spec: &TopicSpec, now_ms: u64) -> Option<u64> {
        let (mut bytes, mut before) = (self.bytes, None);
        let age_ms = spec.retention_age.map(millis);
        for (first, batch) in self.batches.iter() {
            let end = first + u64::from(batch.span);
            let too_old = age_ms.is_some_and(|age_ms| batch.time_ms.saturating_add(age_ms) < now_ms);
            let too_much = spec.retention_bytes.is_some_and(|most| bytes > most);
            if end > self.visible || !(too_old || too_much) {
                break;
            }
            bytes -= u64::from(batch.place.length);
            before = Some(end);
        }
        before
    }

    /// Batches from the one that has an offset on, up to about so many bytes; at least one, if there is any.
    pub(crate) fn read(&self, from: u64, max_bytes: usize) -> Vec<(u64, BatchRef)> {
        let from = from.max(self.start);
        let begin = match self.batches.floor(&from) {
            Some((first, batch)) if first + u64::from(batch.span) > from => *first,
            _ => from,
        };
        let mut bytes = 0;
        let mut found = Vec::new();
        for (first, batch) in self.batches.from(&begin) {
            bytes += batch.place.length as usize;
            if *first >= self.visible || (bytes > max_bytes && !found.is_empty()) {
                break;
            }
            found.push((*first, *batch));
        }
        found
    }

    pub(crate) fn seek(&self, seek: Seek) -> u64 {
        match seek {
            Seek::Earliest => self.start,
            Seek::Latest => self.visible,
            // Times never go back within a partition.
            Seek::Time(time_ms) => {
                let found = self.batches.partition_point(|_, batch| batch.time_ms < time_ms);
                found.map_or(self.visible, |(first, _)| (*first).max(self.start).min(self.visible))
            }
        }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            start: Offset(self.start),
            end: Offset(self.visible),
            oldest_ms: self.batches.first().map_or(0, |(_, batch)| batch.time_ms),
            bytes: self.bytes,
            records: Some(self.records),
        }
    }
}
