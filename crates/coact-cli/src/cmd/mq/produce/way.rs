//! The ways of a record: by its key, to a partition that was named, or later.

use std::collections::{BTreeMap, VecDeque};

use coact::{
    Error, ErrorKind, Result, StreamHandle, Topic,
    contract::stream::{Append, BatchBuilder, Delayed, Record, Stamp, TopicInfo},
    mq::{Producer, ProducerOptions, Receipt, partition_of},
};
use futures::FutureExt as _;

use crate::output;

/// What was appended, or is kept for later.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) by_partition: BTreeMap<u32, u64>,
    pub(super) delayed: bool,
}

impl Tally {
    fn add(&mut self, partition: u32, records: u64, bytes: usize) {
        self.records += records;
        self.bytes += bytes as u64;
        *self.by_partition.entry(partition).or_default() += records;
    }
}

/// Takes records, and counts those that are there.
pub(super) struct Way {
    kind: Kind,
    tally: Tally,
}

enum Kind {
    ByKey(ByKey),
    ToPartition(ToPartition),
    Later(Later),
}

struct ByKey {
    producer: Producer,
    receipts: VecDeque<(Receipt, usize)>,
}

/// Batches of its own: the producer chooses partitions by itself.
struct ToPartition {
    streams: StreamHandle,
    topic: Topic,
    partition: u32,
    batch: BatchBuilder,
    stamp: Stamp,
}

struct Later {
    streams: StreamHandle,
    topic: TopicInfo,
    partition: Option<u32>,
    due_ms: u64,
    delayed: Vec<Delayed>,
    bytes: usize,
}

/// How many records may wait for their answers.
const RECEIPTS_MAX: usize = 10_000;
/// About how much is sent at once.
const BATCH_BYTES: usize = 1024 * 1024;
const BATCH_RECORDS: u32 = 10_000;

impl Way {
    pub(super) async fn by_key(streams: &StreamHandle, topic: &Topic) -> Result<Self> {
        let producer = Producer::open(streams, topic, ProducerOptions::default()).await?;
        Ok(Self::new(Kind::ByKey(ByKey { producer, receipts: VecDeque::new() })))
    }

    pub(super) fn to_partition(streams: &StreamHandle, info: &TopicInfo, partition: u32) -> Self {
        let stamp = Stamp { producer: streams.env().random(), epoch: 0, sequence: 0 };
        let (streams, topic) = (streams.clone(), info.name.clone());
        Self::new(Kind::ToPartition(ToPartition { streams, topic, partition, batch: BatchBuilder::default(), stamp }))
    }

    pub(super) fn later(streams: &StreamHandle, info: &TopicInfo, partition: Option<u32>, due_ms: u64) -> Self {
        let (streams, topic, delayed) = (streams.clone(), info.clone(), Vec::new());
        let mut way = Self::new(Kind::Later(Later { streams, topic, partition, due_ms, delayed, bytes: 0 }));
        way.tally.delayed = true;
        way
    }

    fn new(kind: Kind) -> Self {
        Self { kind, tally: Tally::default() }
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Takes a record. An error may be about one before it.
    pub(super) async fn send(&mut self, record: Record) -> Result<()> {
        let bytes = record.size();
        match &mut self.kind {
            Kind::ByKey(way) => way.send(record, bytes, &mut self.tally).await,
            Kind::ToPartition(way) => {
                if way.batch.len() + bytes > BATCH_BYTES || way.batch.count() >= BATCH_RECORDS {
                    way.flush(&mut self.tally).await?;
                }
                way.batch.push(&record);
                Ok(())
            }
            Kind::Later(way) => {
                if way.bytes + bytes > BATCH_BYTES || way.delayed.len() >= BATCH_RECORDS as usize {
                    way.flush(&mut self.tally).await?;
                }
                way.push(record, bytes);
                Ok(())
            }
        }
    }

    /// Lets nothing wait for records that may not come soon.
    pub(super) async fn flush(&mut self) -> Result<()> {
        match &mut self.kind {
            // It never waits.
            Kind::ByKey(_) => Ok(()),
            Kind::ToPartition(way) => way.flush(&mut self.tally).await,
            Kind::Later(way) => way.flush(&mut self.tally).await,
        }
    }

    /// Waits until everything is there, or failed.
    pub(super) async fn finish(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::ByKey(way) => way.finish(&mut self.tally).await,
            _ => self.flush().await,
        }
    }
}

impl ByKey {
    async fn send(&mut self, record: Record, bytes: usize, tally: &mut Tally) -> Result<()> {
        let mut full = self.receipts.len() >= RECEIPTS_MAX;
        while let Some((receipt, bytes)) = self.receipts.front_mut() {
            let placed = match receipt.now_or_never() {
                Some(placed) => placed?,
                None if full => receipt.await?,
                None => break,
            };
            full = false;
            tally.add(placed.partition, 1, *bytes);
            self.receipts.pop_front();
        }
        self.receipts.push_back((self.producer.send(record).await?, bytes));
        Ok(())
    }

    /// Counts what arrived though something else did not.
    async fn finish(&mut self, tally: &mut Tally) -> Result<()> {
        let mut finished = Ok(());
        for (receipt, bytes) in self.receipts.drain(..) {
            match receipt.await {
                Ok(placed) => tally.add(placed.partition, 1, bytes),
                Err(error) => finished = finished.and(Err(error)),
            }
        }
        finished.and(self.producer.close().await)
    }
}

impl ToPartition {
    async fn flush(&mut self, tally: &mut Tally) -> Result<()> {
        let batch = std::mem::take(&mut self.batch).finish();
        let (count, bytes) = (u64::from(batch.count()), batch.bytes().len());
        if count == 0 {
            return Ok(());
        }
        let stamp = self.streams.guarantees().dedup.map(|_| self.stamp);
        let append = Append { topic: self.topic.clone(), partition: self.partition, batch, stamp, expect: None };
        self.streams.append(append).await?;
        self.stamp.sequence += count;
        tally.add(self.partition, count, bytes);
        Ok(())
    }
}

impl Later {
    fn push(&mut self, record: Record, bytes: usize) {
        let partitions = self.topic.spec.partitions;
        let partition = self.partition.unwrap_or_else(|| match &record.key {
            Some(key) => partition_of(key, partitions),
            None => (self.streams.env().random() % u64::from(partitions.max(1))) as u32,
        });
        self.delayed.push(Delayed { topic: self.topic.name.clone(), partition, record, due_ms: self.due_ms });
        self.bytes += bytes;
    }

    async fn flush(&mut self, tally: &mut Tally) -> Result<()> {
        self.bytes = 0;
        let delayed = std::mem::take(&mut self.delayed);
        if delayed.is_empty() {
            return Ok(());
        }
        let kept: Vec<_> = delayed.iter().map(|one| (one.partition, one.record.size())).collect();
        let ids = self.streams.schedule(delayed).await?;
        if ids.len() != kept.len() {
            return Err(Error::new(ErrorKind::Internal, "an engine kept records without handles"));
        }
        kept.into_iter().for_each(|(partition, bytes)| tally.add(partition, 1, bytes));
        let handles: String = ids.iter().map(|id| format!("{id}\n")).collect();
        // Whoever does not want the handles wants the records kept all the same.
        output::try_write(handles.as_bytes());
        Ok(())
    }
}
