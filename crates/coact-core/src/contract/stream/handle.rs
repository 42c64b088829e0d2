//! The user's side of the stream contract: checks every request against the limits, and has no type parameter.

use std::{fmt, sync::Arc};

use super::{
    Append, Appended, Batch, Bounds, DELAY_MAX, DelayId, DelayStats, Delayed, Fetched, GroupInfo, Offset, OffsetCommit,
    Pending, Read, Record, Seek, StreamGuarantees, StreamStore, TopicInfo, TopicSpec,
};
use crate::{
    contract::{
        commit::{Commit, CommitOutcome, METADATA_BYTES_MAX, metadata_fits},
        erased,
        queue::check_job,
    },
    env::Env,
    error::{Error, ErrorKind, Result},
    guarantees::{Accepted, Limits, Needs},
    name::{Group, Topic},
};

erased! {
    ErasedStreamStore for StreamStore {
        fn create_topic(topic: &'a Topic, spec: &'a TopicSpec) -> Result<()>;
        fn alter_topic(topic: &'a Topic, spec: &'a TopicSpec) -> Result<()>;
        fn delete_topic(topic: &'a Topic) -> Result<bool>;
        fn topic(topic: &'a Topic) -> Result<Option<TopicInfo>>;
        fn topics(after: &'a str, limit: usize) -> Result<Vec<TopicInfo>>;
        fn append(append: Append) -> Result<Appended>;
        fn read(read: Read) -> Result<Fetched>;
        fn bounds(topic: &'a Topic, partition: u32) -> Result<Bounds>;
        fn seek(topic: &'a Topic, partition: u32, seek: Seek) -> Result<Offset>;
        fn trim(topic: &'a Topic, partition: u32, before: Offset) -> Result<()>;
        fn commit(commit: Commit) -> Result<CommitOutcome>;
        fn fence_group(group: &'a Group, generation: u64) -> Result<()>;
        fn group(group: &'a Group) -> Result<Option<GroupInfo>>;
        fn groups(after: &'a str, limit: usize) -> Result<Vec<GroupInfo>>;
        fn delete_group(group: &'a Group) -> Result<bool>;
        fn schedule(delayed: Vec<Delayed>) -> Result<Vec<DelayId>>;
        fn cancel(topic: &'a Topic, id: DelayId) -> Result<bool>;
        fn reschedule(topic: &'a Topic, id: DelayId, due_ms: u64) -> Result<Option<DelayId>>;
        fn pending(topic: &'a Topic, after: Option<DelayId>, limit: usize) -> Result<Vec<Pending>>;
        fn delay_stats(topic: &'a Topic) -> Result<DelayStats>;
        fn close() -> Result<()>;
    }
}

/// A store of the stream contract, for blocks and users: cheap to clone.
#[derive(Clone)]
pub struct StreamHandle {
    store: Arc<dyn ErasedStreamStore>,
    // What never changes is kept beside the store.
    guarantees: Arc<StreamGuarantees>,
    name: Arc<str>,
    env: Env,
    accepted: Accepted,
}

impl fmt::Debug for StreamHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamHandle({})", self.name)
    }
}

impl StreamHandle {
    /// Wraps an engine. `accepted` are the weaknesses that the user accepted by name.
    pub fn new(store: impl StreamStore, env: Env, accepted: Accepted) -> Self {
        let guarantees = Arc::new(*store.guarantees());
        let name = store.describe().into();
        Self { store: Arc::new(store), guarantees, name, env, accepted }
    }

    /// The environment that the engine runs in; blocks use the same.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// What the engine promises.
    pub fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    /// The engine's URL without secrets.
    pub fn describe(&self) -> &str {
        &self.name
    }

    /// Refuses if the engine promises less than a block needs and the user did not accept it.
    ///
    /// # Errors
    /// `Unsupported`, naming both sides.
    pub fn require(&self, needs: &Needs) -> Result<()> {
        self.guarantees.require(&self.name, needs, &self.accepted)
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// `Invalid` past a limit, `AlreadyExists` if there is one of this name.
    ///
    /// # Cancel safety
    /// Once polled, it may be created though the future is dropped.
    pub async fn create_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        self.check_spec(spec)?;
        self.store.create_topic(topic, spec).await
    }

    /// Changes what a topic keeps, or adds partitions, which moves keys to other partitions.
    ///
    /// # Errors
    /// `Invalid` past a limit or to take partitions away, `NotFound` if there is none.
    ///
    /// # Cancel safety
    /// Once polled, it may be changed though the future is dropped.
    pub async fn alter_topic(&self, topic: &Topic, spec: &TopicSpec) -> Result<()> {
        self.check_spec(spec)?;
        self.store.alter_topic(topic, spec).await
    }

    /// Deletes a topic with its records, its delayed records and what groups committed for it; false if there is none.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Once polled, it may be deleted though the future is dropped.
    pub async fn delete_topic(&self, topic: &Topic) -> Result<bool> {
        self.store.delete_topic(topic).await
    }

    /// One topic.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        self.store.topic(topic).await
    }

    /// Up to `limit` topics after a name, by name.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicInfo>> {
        self.store.topics(after, limit).await
    }

    /// Appends a batch to one partition.
    ///
    /// # Errors
    /// `Invalid` past a limit, `NotFound` for an unknown topic or partition, `Fenced` for an old epoch, `Conflict` if
    /// `expect` does not hold or the stamp leaves a gap; `Unavailable` with effect `Unknown` if the answer was lost:
    /// append it again with the same stamp.
    ///
    /// # Cancel safety
    /// Once polled, it may be appended though the future is dropped; with a stamp, appending it again is harmless.
    pub async fn append(&self, append: Append) -> Result<Appended> {
        self.check_append(&append)?;
        self.store.append(append).await
    }

    /// Reads batches from one partition.
    ///
    /// # Errors
    /// `Invalid` for a wait that is too long, `NotFound` for an unknown topic or partition, `Corrupt` with the place if
    /// what is stored is damaged.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn read(&self, read: Read) -> Result<Fetched> {
        self.guarantees.limits.check_wait(read.wait)?;
        self.store.read(read).await
    }

    /// What a partition holds.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic or partition.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn bounds(&self, topic: &Topic, partition: u32) -> Result<Bounds> {
        self.store.bounds(topic, partition).await
    }

    /// The offset at which to begin.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic or partition.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn seek(&self, topic: &Topic, partition: u32, seek: Seek) -> Result<Offset> {
        self.store.seek(topic, partition, seek).await
    }

    /// Lets records before an offset go.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic or partition.
    ///
    /// # Cancel safety
    /// Once polled, they may go though the future is dropped.
    pub async fn trim(&self, topic: &Topic, partition: u32, before: Offset) -> Result<()> {
        self.store.trim(topic, partition, before).await
    }

    /// Does everything in it, or nothing.
    ///
    /// # Errors
    /// As the requests that it is made of; `Unsupported` for more than the engine declares.
    ///
    /// # Cancel safety
    /// Once polled, it may happen though the future is dropped.
    pub async fn commit(&self, commit: Commit) -> Result<CommitOutcome> {
        commit.appends.iter().try_for_each(|append| self.check_append(append))?;
        commit.delayed.iter().try_for_each(|delayed| self.check_delayed(delayed))?;
        commit.offsets.iter().try_for_each(check_offsets)?;
        if let Some((realm, txn)) = &commit.kv {
            txn.check(realm, &Limits::PORTABLE)?;
        }
        commit.jobs.iter().try_for_each(|(_, job)| check_job(&self.guarantees.limits, job))?;
        if commit.bytes() > self.guarantees.limits.batch_bytes * 4 {
            let (have, most) = (commit.bytes(), self.guarantees.limits.batch_bytes * 4);
            return Err(Error::invalid(format!("the commit has {have} bytes: at most {most} are allowed")));
        }
        self.store.commit(commit).await
    }

    /// Records how far a group came.
    ///
    /// # Errors
    /// `Invalid` for a note that is too long, `Fenced` if the group was fenced at a later generation.
    ///
    /// # Cancel safety
    /// Once polled, it may be committed though the future is dropped.
    pub async fn commit_offsets(&self, offsets: OffsetCommit) -> Result<()> {
        match self.commit(Commit { offsets: Some(offsets), ..Commit::default() }).await? {
            CommitOutcome::Committed(_) => Ok(()),
            CommitOutcome::Refused { .. } => {
                Err(Error::new(ErrorKind::Internal, "an engine refused a commit without checks"))
            }
        }
    }

    /// From now on refuses commits of generations before this one.
    ///
    /// # Errors
    /// `Fenced` if a later one is known.
    ///
    /// # Cancel safety
    /// Once polled, it may be fenced though the future is dropped.
    pub async fn fence_group(&self, group: &Group, generation: u64) -> Result<()> {
        self.store.fence_group(group, generation).await
    }

    /// One group; `None` if it never committed nor was fenced.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn group(&self, group: &Group) -> Result<Option<GroupInfo>> {
        self.store.group(group).await
    }

    /// Up to `limit` groups after a name, by name.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn groups(&self, after: &str, limit: usize) -> Result<Vec<GroupInfo>> {
        self.store.groups(after, limit).await
    }

    /// Forgets a group; false if there is none.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Once polled, it may be forgotten though the future is dropped.
    pub async fn delete_group(&self, group: &Group) -> Result<bool> {
        self.store.delete_group(group).await
    }

    /// Keeps records until they are due; the handles come in the same order. All are kept, or none.
    ///
    /// # Errors
    /// `Invalid` past a limit, `NotFound` for an unknown topic or partition.
    ///
    /// # Cancel safety
    /// Once polled, they may be kept though the future is dropped.
    pub async fn schedule(&self, delayed: Vec<Delayed>) -> Result<Vec<DelayId>> {
        delayed.iter().try_for_each(|delayed| self.check_delayed(delayed))?;
        self.store.schedule(delayed).await
    }

    /// Cancels a delayed record; false if it was handed over, cancelled or rescheduled.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic.
    ///
    /// # Cancel safety
    /// Once polled, it may be cancelled though the future is dropped.
    pub async fn cancel(&self, topic: &Topic, id: DelayId) -> Result<bool> {
        self.store.cancel(topic, id).await
    }

    /// Gives a delayed record another time, and so another handle; `None` if it was handed over, cancelled or
    /// rescheduled.
    ///
    /// # Errors
    /// `Invalid` for a time more than ten years ahead, `NotFound` for an unknown topic.
    ///
    /// # Cancel safety
    /// Once polled, it may be rescheduled though the future is dropped.
    pub async fn reschedule(&self, topic: &Topic, id: DelayId, due_ms: u64) -> Result<Option<DelayId>> {
        self.check_due(due_ms)?;
        self.store.reschedule(topic, id, due_ms).await
    }

    /// Up to `limit` delayed records of a topic after a handle, by time.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn pending(&self, topic: &Topic, after: Option<DelayId>, limit: usize) -> Result<Vec<Pending>> {
        self.store.pending(topic, after, limit).await
    }

    /// Numbers about the delayed records of a topic.
    ///
    /// # Errors
    /// `NotFound` for an unknown topic.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn delay_stats(&self, topic: &Topic) -> Result<DelayStats> {
        self.store.delay_stats(topic).await
    }

    /// Finishes what was acknowledged and releases files and connections. Later calls on any clone fail with `Closed`.
    ///
    /// # Errors
    /// What the last write to disk answers.
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        self.store.close().await
    }

    fn check_spec(&self, spec: &TopicSpec) -> Result<()> {
        let most = self.guarantees.limits.partitions;
        if spec.partitions == 0 || spec.partitions > most {
            return Err(Error::invalid(format!("{} partitions are not allowed: use 1 to {most}", spec.partitions)));
        }
        if spec.compact && !self.guarantees.compaction {
            return Err(Error::new(ErrorKind::Unsupported, format!("{} does not compact topics by key", self.name)));
        }
        Ok(())
    }

    fn check_append(&self, append: &Append) -> Result<()> {
        let most = self.guarantees.limits.batch_bytes;
        if append.batch.bytes().len() > most {
            let have = append.batch.bytes().len();
            return Err(Error::invalid(format!("the batch has {have} bytes: at most {most} are allowed")));
        }
        if append.batch.count() == 0 || !append.batch.is_dense() {
            return Err(Error::invalid("the batch has no records, or gaps: append one as a producer makes it"));
        }
        // Encoded, headers take at least half of what they count: no record of a small batch is too large.
        if 2 * append.batch.bytes().len() + 8 <= self.guarantees.limits.record_bytes {
            return Ok(());
        }
        append.batch.records(Offset(0), 0).try_for_each(|stored| self.check_record(&stored.record))
    }

    fn check_delayed(&self, delayed: &Delayed) -> Result<()> {
        self.check_record(&delayed.record)?;
        self.check_due(delayed.due_ms)
    }

    fn check_due(&self, due_ms: u64) -> Result<()> {
        let latest = self.env.wall_ms() + DELAY_MAX.as_millis() as u64;
        if due_ms > latest {
            return Err(Error::invalid(format!("a record due at {due_ms} ms is too late: at most ten years ahead")));
        }
        Ok(())
    }

    fn check_record(&self, record: &Record) -> Result<()> {
        let most = self.guarantees.limits.record_bytes;
        if record.size() > most {
            let have = record.size();
            return Err(Error::invalid(format!("a record has {have} bytes: at most {most} are allowed")));
        }
        Ok(())
    }
}

/// A batch of one record: how a delayed record lies.
impl From<&Record> for Batch {
    fn from(record: &Record) -> Self {
        Self::new([record])
    }
}

fn check_offsets(offsets: &OffsetCommit) -> Result<()> {
    match offsets.offsets.iter().find(|offset| !metadata_fits(&offset.metadata)) {
        None => Ok(()),
        Some(offset) => Err(Error::invalid(format!(
            "the note of group {} has {} bytes: at most {METADATA_BYTES_MAX} are allowed",
            offsets.group,
            offset.metadata.len()
        ))),
    }
}
