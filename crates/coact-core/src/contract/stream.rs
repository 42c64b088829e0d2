//! Streams: partitioned logs of records, with deduplication, delayed records, and how far each group came.
//!
//! **Engine authors** implement [`StreamStore`] with plain `async fn`. **Block authors** hold a [`StreamHandle`].
//!
//! An [`Offset`] is a record's place in its partition: ordered, not dense (a Kafka partition has gaps, a compacted one
//! everywhere). Compare it, and do no arithmetic with it, unless the engine declares dense offsets.
//!
//! Delayed records are part of this contract, because their hand-over to the topic is atomic only where the topic is.
//! So are the offsets of groups: an engine that appends and commits offsets in one step makes processing effectively
//! once. Who is in a group, and who has which partition, is a block's matter, on the Kv contract; what reaches the
//! engine is a *generation*, and commits of an older one are refused.

mod batch;
mod guarantees;
mod handle;

use std::{fmt, future::Future, str::FromStr, time::Duration};

use bytes::Bytes;

pub use batch::{Batch, BatchBuilder, Record};
pub use guarantees::{Atomicity, StreamGuarantees, StreamLimits};
pub use handle::StreamHandle;

use super::commit::{Commit, CommitOutcome};
use crate::{
    error::{Error, Result},
    name::{Group, Topic},
};

/// A record's place in its partition: ordered, not dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record with its place and the time at which it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Where it is in its partition.
    pub offset: Offset,
    /// When it was appended, in milliseconds since 1970 by the engine's clock; it never goes back within a partition.
    pub time_ms: u64,
    /// What was produced.
    pub record: Record,
}

/// How a topic is laid out and what it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// How many partitions, from 1; it can grow, which moves keys to other partitions.
    pub partitions: u32,
    /// Records older than this may go.
    pub retention_age: Option<Duration>,
    /// When a partition has more bytes than this, its oldest records may go.
    pub retention_bytes: Option<u64>,
    /// Keeps at least the newest record of each key, and lets older ones of the same key go. A newest record with an
    /// empty value lets the key go.
    pub compact: bool,
}

impl Default for TopicSpec {
    /// One partition that keeps everything.
    fn default() -> Self {
        Self { partitions: 1, retention_age: None, retention_bytes: None, compact: false }
    }
}

/// A topic as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: Topic,
    /// How it is laid out.
    pub spec: TopicSpec,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
}

/// What a partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The first offset that is kept, or may be; equal to `end` if there is none.
    pub start: Offset,
    /// The offset that the next record gets at the earliest: all before it are readable.
    pub end: Offset,
    /// When the first record that is kept was appended; zero if there is none.
    pub oldest_ms: u64,
    /// About how many bytes are kept.
    pub bytes: u64,
    /// How many records are kept, if the engine counts them.
    pub records: Option<u64>,
}

/// Where to begin to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// At the first record that is kept.
    Earliest,
    /// After the newest record.
    Latest,
    /// At the first record that was appended at this time or later, in milliseconds since 1970.
    Time(u64),
}

/// Names one batch of one producer, so that appending it again changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which producer.
    pub producer: u64,
    /// Which incarnation of it: a newer one fences the older.
    pub epoch: u32,
    /// The number of the batch's first record, counted by the producer for each partition from zero in each epoch.
    pub sequence: u64,
}

/// A batch to append to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Where.
    pub topic: Topic,
    /// Which partition, from zero.
    pub partition: u32,
    /// What: at least one record, and dense.
    pub batch: Batch,
    /// Makes a repetition harmless.
    pub stamp: Option<Stamp>,
    /// Refuses unless the partition ends here.
    pub expect: Option<Offset>,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The offset of the batch's first record.
    pub first: Offset,
    /// The time that its records have.
    pub time_ms: u64,
    /// Whether it had been appended before, so that nothing was changed.
    pub duplicate: bool,
}

/// What to read, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Where.
    pub topic: Topic,
    /// Which partition.
    pub partition: u32,
    /// The first offset wanted. What is before the first record kept begins there instead.
    pub from: Offset,
    /// About how many bytes at most; at least one batch comes, if there is one.
    pub max_bytes: usize,
    /// How long to wait for a record if there is none.
    pub wait: Duration,
}

/// Records of one partition, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Batches as they were stored; the first may begin before the offset asked for.
    pub batches: Vec<StoredBatch>,
    /// Where to go on.
    pub next: Offset,
    /// The first offset that is kept: greater than the one asked for if records went before they were read.
    pub start: Offset,
    /// Where the partition ended at the time.
    pub end: Offset,
}

/// One batch of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    /// The offset of its first place.
    pub first: Offset,
    /// When it was appended.
    pub time_ms: u64,
    /// Its records.
    pub batch: Batch,
}

impl Fetched {
    /// The records from an offset on, in order.
    pub fn records(&self, from: Offset) -> impl Iterator<Item = StoredRecord> + '_ {
        self.batches
            .iter()
            .flat_map(|stored| stored.batch.records(stored.first, stored.time_ms))
            .filter(move |stored| stored.offset >= from)
    }
}

/// How far a group came in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// Of which topic.
    pub topic: Topic,
    /// Of which partition.
    pub partition: u32,
    /// The offset after the last one that is done.
    pub offset: Offset,
    /// The group's own note; at most 4 KiB.
    pub metadata: Bytes,
}

/// Records how far a group came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommit {
    /// Which group.
    pub group: Group,
    /// Who commits: refused if the group was fenced at a later one.
    pub generation: u64,
    /// How far.
    pub offsets: Vec<GroupOffset>,
}

/// A group as the engine knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: Group,
    /// The generation below which nobody commits.
    pub generation: u64,
    /// What was committed, by topic and partition.
    pub offsets: Vec<GroupOffset>,
}

/// A record that is to be appended when its time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delayed {
    /// Where.
    pub topic: Topic,
    /// Which partition.
    pub partition: u32,
    /// What.
    pub record: Record,
    /// When, in milliseconds since 1970: at once if it has passed, at most ten years ahead.
    pub due_ms: u64,
}

/// The longest delay: ten years.
pub const DELAY_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// The handle of a delayed record, by which it is cancelled or rescheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DelayId {
    /// When it is due.
    pub due_ms: u64,
    /// Tells apart what is due at the same time, in the order in which it was scheduled.
    pub number: u64,
}

impl fmt::Display for DelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.due_ms, self.number)
    }
}

impl FromStr for DelayId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (due, number) = text.split_once('-')?;
            Some(Self { due_ms: due.parse().ok()?, number: number.parse().ok()? })
        };
        read()
            .ok_or_else(|| Error::invalid(format!("{text:?} names no delayed record: use what scheduling it returned")))
    }
}

/// A delayed record that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its handle, with the time at which it is due.
    pub id: DelayId,
    /// What it will append, and where.
    pub delayed: Delayed,
}

/// Numbers about the delayed records of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelayStats {
    /// How many wait.
    pub pending: u64,
    /// When the next is due, in milliseconds since 1970.
    pub next_due_ms: Option<u64>,
    /// How many are due within each time from now: [`DELAY_BUCKETS`], then later.
    pub by_due: Vec<u64>,
    /// How many were handed over with at most each lateness: [`LATENESS_BUCKETS`], then more. Since the engine was
    /// opened.
    pub by_lateness: Vec<u64>,
}

/// Upper edges of [`DelayStats::by_due`].
pub const DELAY_BUCKETS: [Duration; 7] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3600),
    Duration::from_secs(24 * 3600),
    Duration::from_secs(7 * 24 * 3600),
];

/// Upper edges of [`DelayStats::by_lateness`], in milliseconds.
pub const LATENESS_BUCKETS: [u64; 9] = [1, 2, 5, 10, 25, 50, 100, 1_000, 10_000];

/// The stream contract, for engine authors. Requests arrive validated by [`StreamHandle`].
///
/// Cancelling any future leaves the request's effect unknown unless the method says otherwise. An unknown topic or
/// partition is `NotFound`.
pub trait StreamStore: Send + Sync + 'static {
    /// What this engine promises, as probed at open.
    fn guarantees(&self) -> &StreamGuarantees;

    /// A name for messages: the URL without secrets.
    fn describe(&self) -> String;

    /// Creates a topic; `AlreadyExists` if there is one of this name, whatever its layout.
    fn create_topic(&self, topic: &Topic, spec: &TopicSpec) -> impl Future<Output = Result<()>> + Send;

    /// Changes what a topic keeps, or adds partitions; `Invalid` to take some away.
    fn alter_topic(&self, topic: &Topic, spec: &TopicSpec) -> impl Future<Output = Result<()>> + Send;

    /// Deletes a topic with its records, its delayed records and what groups committed for it; false if there is none.
    fn delete_topic(&self, topic: &Topic) -> impl Future<Output = Result<bool>> + Send;

    /// One topic.
    fn topic(&self, topic: &Topic) -> impl Future<Output = Result<Option<TopicInfo>>> + Send;

    /// Up to `limit` topics after a name, by name.
    fn topics(&self, after: &str, limit: usize) -> impl Future<Output = Result<Vec<TopicInfo>>> + Send;

    /// Appends a batch. `Fenced` for an epoch older than the partition knows, `Conflict` if `expect` does not hold or
    /// the stamp's sequence leaves a gap.
    fn append(&self, append: Append) -> impl Future<Output = Result<Appended>> + Send;

    /// Reads batches. Dropping the future has no effect.
    fn read(&self, read: Read) -> impl Future<Output = Result<Fetched>> + Send;

    /// What a partition holds.
    fn bounds(&self, topic: &Topic, partition: u32) -> impl Future<Output = Result<Bounds>> + Send;

    /// The offset at which to begin.
    fn seek(&self, topic: &Topic, partition: u32, seek: Seek) -> impl Future<Output = Result<Offset>> + Send;

    /// Lets records before an offset go; a later one than the end is the end.
    fn trim(&self, topic: &Topic, partition: u32, before: Offset) -> impl Future<Output = Result<()>> + Send;

    /// Does everything in it, or nothing.
    fn commit(&self, commit: Commit) -> impl Future<Output = Result<CommitOutcome>> + Send;

    /// From now on refuses commits of generations before this one; `Fenced` if a later one is known.
    fn fence_group(&self, group: &Group, generation: u64) -> impl Future<Output = Result<()>> + Send;

    /// One group; `None` if it never committed nor was fenced.
    fn group(&self, group: &Group) -> impl Future<Output = Result<Option<GroupInfo>>> + Send;

    /// Up to `limit` groups after a name, by name.
    fn groups(&self, after: &str, limit: usize) -> impl Future<Output = Result<Vec<GroupInfo>>> + Send;

    /// Forgets a group; false if there is none.
    fn delete_group(&self, group: &Group) -> impl Future<Output = Result<bool>> + Send;

    /// Keeps records until they are due; the handles come in the same order.
    fn schedule(&self, delayed: Vec<Delayed>) -> impl Future<Output = Result<Vec<DelayId>>> + Send;

    /// Cancels a delayed record; false if it was handed over, cancelled or rescheduled.
    fn cancel(&self, topic: &Topic, id: DelayId) -> impl Future<Output = Result<bool>> + Send;

    /// Gives a delayed record another time, and so another handle; `None` if it was handed over, cancelled or
    /// rescheduled.
    fn reschedule(
        &self,
        topic: &Topic,
        id: DelayId,
        due_ms: u64,
    ) -> impl Future<Output = Result<Option<DelayId>>> + Send;

    /// Up to `limit` delayed records of a topic after a handle, by time.
    fn pending(
        &self,
        topic: &Topic,
        after: Option<DelayId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Pending>>> + Send;

    /// Numbers about the delayed records of a topic.
    fn delay_stats(&self, topic: &Topic) -> impl Future<Output = Result<DelayStats>> + Send;

    /// Finishes what was acknowledged and releases files and connections. Later calls fail with `Closed`.
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_reads_back() {
        let id = DelayId { due_ms: 1_700_000_000_123, number: 42 };
        assert_eq!(id.to_string().parse::<DelayId>().expect("a handle"), id);
        for wrong in ["", "-", "1", "1-", "-1", "1-2-3", "a-1"] {
            assert!(wrong.parse::<DelayId>().is_err(), "{wrong}");
        }
    }
}
