//! What a case works with, and short forms of what cases say often.

use std::{ops::Deref, time::Duration};

use bytes::Bytes;
use coact_core::{
    Result,
    contract::{
        commit::{Commit, CommitOutcome, Committed},
        stream::{
            Append, Appended, Batch, Bounds, DelayId, Delayed, Fetched, GroupOffset, Offset, OffsetCommit, Read,
            Record, StoredRecord, StreamHandle, TopicSpec,
        },
    },
    name::{Group, Topic},
};

pub(super) use crate::suite::context::assert_kind;
use crate::{
    bed::PATIENCE,
    suite::{Basis, Contract},
};

/// A store with streams, and names that nobody else uses there.
#[derive(Debug)]
pub struct Context {
    basis: Basis,
    /// A client that other cases use too.
    pub streams: StreamHandle,
}

impl Contract for Context {
    fn of(basis: Basis) -> Result<Self> {
        Ok(Self { streams: basis.store.streams()?.clone(), basis })
    }
}

impl Deref for Context {
    type Target = Basis;

    fn deref(&self) -> &Basis {
        &self.basis
    }
}

impl Context {
    /// A new client of the same store.
    pub async fn another_client(&self) -> StreamHandle {
        streams_of(&self.another_store().await)
    }

    /// Ends the store hard, starts it again, and opens a new client.
    pub async fn restart(&self) -> StreamHandle {
        streams_of(&self.restarted().await)
    }

    /// A topic of the case, whether it is there or not.
    pub fn topic(&self, name: &str) -> Topic {
        Topic::new(&format!("{}-{name}", self.unique)).expect("a valid topic")
    }

    /// A group of the case.
    pub fn group(&self, name: &str) -> Group {
        Group::new(&format!("{}-{name}", self.unique)).expect("a valid group")
    }

    /// Creates a topic that keeps everything.
    pub async fn create(&self, name: &str, partitions: u32) -> Topic {
        self.create_with(name, TopicSpec { partitions, ..TopicSpec::default() }).await
    }

    /// Creates a topic.
    pub async fn create_with(&self, name: &str, spec: TopicSpec) -> Topic {
        let topic = self.topic(name);
        self.streams.create_topic(&topic, &spec).await.expect("a topic is created");
        topic
    }

    /// Appends one batch of these values to partition 0.
    pub async fn append(&self, topic: &Topic, values: &[&str]) -> Appended {
        self.append_to(topic, 0, values).await
    }

    /// Appends one batch of these values.
    pub async fn append_to(&self, topic: &Topic, partition: u32, values: &[&str]) -> Appended {
        self.streams.append(batch(topic, partition, values)).await.expect("an append is taken")
    }

    /// What a partition holds.
    pub async fn bounds(&self, topic: &Topic, partition: u32) -> Bounds {
        self.streams.bounds(topic, partition).await.expect("bounds are answered")
    }

    /// Reads once, without waiting.
    pub async fn fetch(&self, topic: &Topic, partition: u32, from: Offset) -> Fetched {
        self.streams.read(read(topic, partition, from)).await.expect("a read answers")
    }

    /// Every record of a partition that is kept.
    pub async fn records(&self, topic: &Topic, partition: u32) -> Vec<StoredRecord> {
        read_all(&self.streams, topic, partition).await
    }

    /// The values of partition 0, in order.
    pub async fn values(&self, topic: &Topic) -> Vec<String> {
        self.values_of(topic, 0).await
    }

    /// The values of a partition, in order.
    pub async fn values_of(&self, topic: &Topic, partition: u32) -> Vec<String> {
        values(&self.records(topic, partition).await)
    }

    /// Waits until partition 0 has so many records, and returns them.
    pub async fn until_count(&self, topic: &Topic, count: usize) -> Vec<StoredRecord> {
        let mut found = Vec::new();
        self.until("the records are there", async || {
            found = self.records(topic, 0).await;
            found.len() >= count
        })
        .await;
        found
    }

    /// Begins to wait for a record of partition 0, in a task of its own.
    pub fn waiting_read(&self, topic: &Topic, from: Offset) -> impl Future<Output = Fetched> + use<> {
        let (streams, request) = (self.streams.clone(), Read { wait: PATIENCE * 2, ..read(topic, 0, from) });
        self.spawn(async move { streams.read(request).await.expect("a read answers") })
    }

    /// Keeps records of partition 0 for later.
    pub async fn schedule(&self, topic: &Topic, records: &[(&str, u64)]) -> Vec<DelayId> {
        let delayed = records.iter().map(|(value, due_ms)| later(topic, value, *due_ms)).collect();
        self.streams.schedule(delayed).await.expect("they are scheduled")
    }

    /// The values of the delayed records that wait, by time.
    pub async fn pending(&self, topic: &Topic) -> Vec<String> {
        let pending = self.streams.pending(topic, None, 1000).await.expect("pending records are listed");
        pending.iter().map(|pending| text(&pending.delayed.record.value)).collect()
    }

    /// The wall clock, this long from now.
    pub fn in_ms(&self, ms: u64) -> u64 {
        self.env.wall_ms() + ms
    }

    /// The wall clock, so far ahead that no case lasts until then.
    pub fn far(&self) -> u64 {
        self.in_ms(24 * 3600 * 1000)
    }

    /// Commits what must be committed.
    pub async fn commit(&self, commit: Commit) -> Committed {
        match self.streams.commit(commit).await.expect("a commit is answered") {
            CommitOutcome::Committed(committed) => committed,
            CommitOutcome::Refused { check, found } => panic!("check {check} refused, found {found:?}"),
        }
    }

    /// Commits that a group came to an offset of partition 0.
    pub async fn commit_offset(&self, group: &Group, generation: u64, topic: &Topic, offset: u64) -> Result<()> {
        self.streams.commit_offsets(came_to(group, generation, topic, offset)).await
    }

    /// How far a group came in partition 0 of a topic.
    pub async fn committed(&self, group: &Group, topic: &Topic) -> Option<u64> {
        let group = self.streams.group(group).await.expect("a group is answered")?;
        group.offsets.iter().find(|offset| offset.topic == *topic).map(|offset| offset.offset.0)
    }
}

fn streams_of(store: &coact_core::registry::Store) -> StreamHandle {
    store.streams().expect("it has streams").clone()
}

/// Every record of a partition that is kept.
pub(super) async fn read_all(streams: &StreamHandle, topic: &Topic, partition: u32) -> Vec<StoredRecord> {
    let (mut from, mut found) = (Offset(0), Vec::new());
    loop {
        let fetched = streams.read(read(topic, partition, from)).await.expect("a read answers");
        if fetched.batches.is_empty() {
            return found;
        }
        found.extend(fetched.records(from));
        assert!(fetched.next > from, "a read of {topic} from {from} goes on at {}", fetched.next);
        from = fetched.next;
    }
}

/// An append of one batch of these values, without stamp.
pub(super) fn batch(topic: &Topic, partition: u32, values: &[&str]) -> Append {
    let records: Vec<_> = values.iter().map(|value| Record::new((*value).to_owned())).collect();
    Append { topic: topic.clone(), partition, batch: Batch::new(&records), stamp: None, expect: None }
}

/// A read of up to 64 KiB, without waiting.
pub(super) fn read(topic: &Topic, partition: u32, from: Offset) -> Read {
    Read { topic: topic.clone(), partition, from, max_bytes: 64 * 1024, wait: Duration::ZERO }
}

/// A record of partition 0 for later.
pub(super) fn later(topic: &Topic, value: &str, due_ms: u64) -> Delayed {
    Delayed { topic: topic.clone(), partition: 0, record: Record::new(value.to_owned()), due_ms }
}

/// That a group came to an offset of partition 0.
pub(super) fn came_to(group: &Group, generation: u64, topic: &Topic, offset: u64) -> OffsetCommit {
    let offset = GroupOffset { topic: topic.clone(), partition: 0, offset: Offset(offset), metadata: Bytes::new() };
    OffsetCommit { group: group.clone(), generation, offsets: vec![offset] }
}

/// The values as text.
pub(super) fn values(records: &[StoredRecord]) -> Vec<String> {
    records.iter().map(|stored| text(&stored.record.value)).collect()
}

/// Bytes as text.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}
