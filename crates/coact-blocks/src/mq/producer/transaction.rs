//! What happens together: records, delayed records, how far a group came, entries and jobs, in one commit.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::{
        commit::{Commit, CommitOutcome},
        kv::Txn,
        queue::NewJob,
        stream::{Append, Atomicity, Batch, Delayed, OffsetCommit, Record, Stamp},
    },
    name::{Queue, Realm, Topic},
};

use super::{Core, describe};
use crate::{
    backoff::{Backoff, is_retryable, within},
    mq::partition::place_of,
};

/// The sequence of the next batch of each partition, in the epoch of transactions.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    /// None before the first transaction, and while nobody knows whether the last one happened.
    epoch: Option<u32>,
    began: bool,
    next: HashMap<(Topic, u32), u64>,
}

/// Gathers what is to happen together. Nothing is sent before [`commit`](Self::commit).
///
/// With the offsets of the records that it was made from, processing is **effectively once**: either the results are
/// there and the records count as done, or neither.
#[derive(Debug)]
#[must_use = "a transaction does nothing before its commit"]
pub struct Transaction<'a> {
    core: &'a Core,
    records: Vec<(Topic, Record)>,
    delayed: Vec<(Topic, Record, u64)>,
    commit: Commit,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({})", self.topic)
    }
}

impl<'a> Transaction<'a> {
    pub(super) fn new(core: &'a Core) -> Self {
        Self { core, records: Vec::new(), delayed: Vec::new(), commit: Commit::default() }
    }

    /// Appends a record to the producer's topic, in the partition of its key.
    pub fn append(self, record: Record) -> Self {
        let topic = self.core.topic.clone();
        self.append_to(&topic, record)
    }

    /// Appends a record to another topic, in the partition of its key.
    pub fn append_to(mut self, topic: &Topic, record: Record) -> Self {
        self.records.push((topic.clone(), record));
        self
    }

    /// Keeps a record until a time, in milliseconds since 1970, and appends it then to the producer's topic.
    pub fn append_at(mut self, record: Record, due_ms: u64) -> Self {
        self.delayed.push((self.core.topic.clone(), record, due_ms));
        self
    }

    /// Records how far a group came, as [`Consumer::settle`](crate::mq::Consumer::settle) says it.
    pub fn offsets(mut self, offsets: OffsetCommit) -> Self {
        self.commit.offsets = Some(offsets);
        self
    }

    /// Changes entries; if a check of it does not hold, nothing of this transaction happens.
    pub fn kv(mut self, realm: &Realm, txn: Txn) -> Self {
        self.commit.kv = Some((realm.clone(), txn));
        self
    }

    /// Enqueues a job.
    pub fn job(mut self, queue: &Queue, job: NewJob) -> Self {
        self.commit.jobs.push((queue.clone(), job));
        self
    }

    /// Does everything in it, or nothing. One transaction of a producer is under way at a time.
    ///
    /// A commit of records and offsets whose answer is lost is repeated with the same stamps; one with delayed records,
    /// entries or jobs is not, since a repetition might do those twice.
    ///
    /// # Errors
    /// `Unsupported` for more than the engine does in one step; `Invalid` past a limit; `NotFound` for an unknown topic;
    /// `Fenced` if the group has a newer generation, or the producer's name a newer incarnation; `Unavailable` with effect
    /// `Unknown` if nobody knows whether it happened: the offsets of the group tell.
    ///
    /// # Cancel safety
    /// Once polled, it may happen though the future is dropped.
    pub async fn commit(self) -> Result<CommitOutcome> {
        let core = self.core;
        let mut commit = self.commit;
        let mut counts = HashMap::from([(core.topic.clone(), core.partitions())]);
        let topics = self.records.iter().map(|(topic, _)| topic).chain(self.delayed.iter().map(|(topic, ..)| topic));
        for topic in topics {
            if !counts.contains_key(topic) {
                counts.insert(topic.clone(), describe(&core.streams, topic).await?.spec.partitions);
            }
        }
        let spread = core.streams.env().random();
        let mut batches: BTreeMap<(Topic, u32), Vec<Record>> = BTreeMap::new();
        for (topic, record) in self.records {
            let place = place_of(&record, counts[&topic], spread);
            batches.entry((topic, place)).or_default().push(record);
        }
        for (topic, record, due_ms) in self.delayed {
            let partition = place_of(&record, counts[&topic], spread);
            commit.delayed.push(Delayed { topic, partition, record, due_ms });
        }
        check_spans(core, &commit, batches.len())?;
        let mut sequences = core.transactions.lock().await;
        let epoch = sequences.epoch(core).await?;
        for ((topic, partition), records) in batches {
            let sequence = sequences.next.get(&(topic.clone(), partition)).copied().unwrap_or(0);
            let stamp = Stamp { producer: core.identity.id() ^ TRANSACTIONS, epoch, sequence };
            let stamp = core.streams.guarantees().dedup.map(|_| stamp);
            commit.appends.push(Append { topic, partition, batch: Batch::new(&records), stamp, expect: None });
        }
        // Whoever drops this future leaves behind what nobody knows.
        sequences.epoch = None;
        let outcome = deliver(core, &commit).await;
        let known = outcome.as_ref().map_or_else(|error| error.effect() == Effect::NotApplied, |_| true);
        if known && !forgotten(&outcome) {
            sequences.epoch = Some(epoch);
        }
        if let Ok(CommitOutcome::Committed(_)) = &outcome {
            for append in commit.appends {
                *sequences.next.entry((append.topic, append.partition)).or_default() += u64::from(append.batch.count());
            }
        }
        outcome
    }
}

/// What makes the stamps of transactions another producer's than those of single records, which have sequences of their
/// own.
const TRANSACTIONS: u64 = 0x7472_616e_7361_6374;

impl Sequences {
    async fn epoch(&mut self, core: &Core) -> Result<u32> {
        if let Some(epoch) = self.epoch {
            return Ok(epoch);
        }
        let epoch = if self.began { core.identity.next_epoch().await? } else { core.identity.epoch() };
        self.began = true;
        self.next.clear();
        self.epoch = Some(epoch);
        Ok(epoch)
    }
}

/// Commits until that succeeds, fails for good, or the deadline has passed.
async fn deliver(core: &Core, commit: &Commit) -> Result<CommitOutcome> {
    let env = core.streams.env();
    let deadline = env.now() + core.options.delivery_timeout;
    let stamped = commit.appends.iter().all(|append| append.stamp.is_some());
    let repeatable = stamped && commit.kv.is_none() && commit.delayed.is_empty() && commit.jobs.is_empty();
    let mut backoff = Backoff::new(env, Duration::from_millis(10), Duration::from_secs(1));
    let mut unknown = false;
    loop {
        let left = deadline.saturating_duration_since(env.now());
        let error = match within(env, left, "a commit", core.streams.commit(commit.clone())).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        unknown |= error.effect() == Effect::Unknown;
        let again = (repeatable || !unknown) && (is_retryable(&error) || error.effect() == Effect::Unknown);
        let pause = backoff.next_pause();
        if !again || env.now() + pause >= deadline {
            return Err(if unknown { error.effect_unknown() } else { error });
        }
        env.sleep(pause).await;
    }
}

/// Whether the engine has forgotten this producer, so that it must count anew.
fn forgotten(outcome: &Result<CommitOutcome>) -> bool {
    matches!(outcome, Err(error) if error.kind() == ErrorKind::Conflict)
}

fn check_spans(core: &Core, commit: &Commit, batches: usize) -> Result<()> {
    let parts = batches + commit.delayed.len() + commit.jobs.len();
    let parts = parts + usize::from(commit.offsets.is_some()) + usize::from(commit.kv.is_some());
    let beyond_streams = commit.kv.is_some() || !commit.jobs.is_empty() || !commit.delayed.is_empty();
    let needs = match parts {
        0 => return Err(Error::invalid("the transaction is empty: there is nothing to commit")),
        1 => Atomicity::Single,
        _ if beyond_streams => Atomicity::Everything,
        _ => Atomicity::Streams,
    };
    let has = core.streams.guarantees().atomicity;
    if has < needs {
        let (engine, needs, has) = (core.streams.describe(), needs.name(), has.name());
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the transaction spans {needs}, but {engine} commits {has} at once"),
        ));
    }
    Ok(())
}
