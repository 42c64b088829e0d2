//! Compaction by key: of each key of a topic that wants it, older records go when there is a newer one. Bodies are read beside
//! the writer, some at a time; the writer puts batches with fewer records in the place of those that are still there. Offsets
//! and times stay as they were.
//!
//! As in Kafka's log cleaner, a pass looks at what is new since the last one for the newest record of
//! each key, up to as many keys as fit in memory, and then goes over everything up to there. It begins when as much is new
//! as was kept.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use coact_core::{
    Result,
    contract::stream::{Batch, Record},
    env::{Env, PlantedBug},
};
use tokio::sync::mpsc;

use crate::{
    body::Place,
    engine::ask_through,
    message::{
        At, MessageChange,
        topic::{BatchRef, Partition},
    },
    work::Work,
    writer::{Proposal, Shared},
};

/// What is new counts only from so many records on.
const NEW_RECORDS_MIN: u64 = 100;
/// How many keys a pass remembers, at least those of one batch.
const KEYS_MAX: usize = 1_000_000;
/// About how much is read, and rewritten, at once.
const READ_BYTES: usize = 1024 * 1024;
/// For how long a record without a value tells readers that its key is gone.
const TOMBSTONE_MS: u64 = 24 * 3600 * 1000;

/// Compacts until the engine ends.
pub(crate) async fn run(env: Env, shared: Weak<Shared>, requests: mpsc::WeakSender<Proposal>) {
    // Up to where each partition was gone over; after a start everything is new.
    let mut passed = HashMap::new();
    while sleep_until_due(&shared).await {
        while let Some(pass) = next_pass(&env, &shared, &requests, &passed).await {
            let (at, end) = (pass.at, pass.end);
            match pass.run().await {
                Ok(to) => drop(passed.insert(at, to)),
                Err(error) => {
                    if shared.upgrade().is_none_or(|shared| shared.stopped.lock().is_some()) {
                        return;
                    }
                    // What is damaged stays as it is.
                    tracing::error!(%error, topic = at.topic, partition = at.partition, "a partition could not be compacted");
                    passed.insert(at, end);
                }
            }
        }
    }
}

/// False when the engine has ended.
async fn sleep_until_due(shared: &Weak<Shared>) -> bool {
    let Some(shared) = shared.upgrade() else { return false };
    shared.compaction_due.notified().await;
    shared.stopped.lock().is_none()
}

/// One way over a partition.
struct Pass {
    env: Env,
    shared: Arc<Shared>,
    requests: mpsc::WeakSender<Proposal>,
    at: At,
    partition: Arc<Partition>,
    /// Where what is new begins, and where it ended when this was asked for.
    new: u64,
    end: u64,
}

/// A partition in which enough is new.
async fn next_pass(
    env: &Env,
    shared: &Weak<Shared>,
    requests: &mpsc::WeakSender<Proposal>,
    passed: &HashMap<At, u64>,
) -> Option<Pass> {
    let known = passed.clone();
    let (at, partition, new, end) = ask_through(requests, move |work| Ok(find(work, &known))).await.ok()??;
    Some(Pass { env: env.clone(), shared: shared.upgrade()?, requests: requests.clone(), at, partition, new, end })
}

fn find(work: &mut Work<'_>, passed: &HashMap<At, u64>) -> Option<(At, Arc<Partition>, u64, u64)> {
    let compacting = work.messages.topics.iter().filter(|(_, topic)| topic.spec.compact);
    let mut partitions = compacting.flat_map(|(id, topic)| {
        let at = |number| At { topic: *id, partition: number as u32 };
        topic.partitions.iter().enumerate().map(move |(number, partition)| (at(number), &partition.shared))
    });
    partitions.find_map(|(at, partition)| {
        let index = partition.index.read();
        let new = passed.get(&at).copied().unwrap_or(0).max(index.start);
        let count = index.visible.saturating_sub(new);
        let is_enough = count >= NEW_RECORDS_MIN && count.saturating_mul(2) >= index.records;
        is_enough.then(|| (at, partition.clone(), new, index.visible))
    })
}

/// Of each key the newest record.
type Newest = HashMap<Bytes, u64>;

impl Pass {
    /// Goes over the partition, and says how far; what was trimmed under its hands has it begin anew.
    async fn run(self) -> Result<u64> {
        let (newest, end) = self.newest().await?;
        let mut from = 0;
        loop {
            let Some(batches) = self.read(from, end).await? else { return Ok(self.new) };
            let Some((last, batch, _)) = batches.last() else { return Ok(end) };
            from = last + u64::from(batch.span);
            let fewer: Vec<_> = batches.into_iter().filter_map(|found| self.fewer(&newest, found)).collect();
            if !fewer.is_empty() {
                let at = self.at;
                ask_through(&self.requests, move |work| {
                    replace(work, at, fewer);
                    Ok(())
                })
                .await?;
            }
        }
    }

    /// The newest record of each key among those that are new, and up to where that holds: there may be more keys than are
    /// remembered.
    async fn newest(&self) -> Result<(Newest, u64)> {
        let (mut newest, mut from) = (Newest::new(), self.new);
        while newest.len() < KEYS_MAX {
            let batches = self.read(from, self.end).await?.unwrap_or_default();
            if batches.is_empty() {
                return Ok((newest, self.end));
            }
            for (first, batch, body) in batches {
                if newest.len() >= KEYS_MAX {
                    break;
                }
                from = first + u64::from(batch.span);
                for (offset, record) in records(first, &batch, body) {
                    if let Some(key) = &record.key {
                        // A copy of its own, lest a key keep a whole batch in memory.
                        newest.insert(Bytes::copy_from_slice(key), offset);
                    }
                }
            }
        }
        Ok((newest, from))
    }

    /// The batches from an offset on, up to one, some at a time; `None` if all of those went meanwhile.
    async fn read(&self, from: u64, end: u64) -> Result<Option<Vec<(u64, BatchRef, Bytes)>>> {
        let refs = self.partition.index.read().read(from, READ_BYTES);
        let refs: Vec<_> = refs.into_iter().filter(|(first, _)| *first < end).collect();
        let places: Vec<Place> = refs.iter().map(|(_, batch)| batch.place).collect();
        let bodies = self.shared.bodies.get(&self.env, &places).await?;
        let there = refs.is_empty() || bodies.iter().any(Option::is_some);
        let found = refs.into_iter().zip(bodies).filter_map(|((first, batch), body)| Some((first, batch, body?)));
        Ok(there.then(|| found.collect()))
    }

    /// The batch with fewer records, if some of it can go.
    fn fewer(&self, newest: &Newest, found: (u64, BatchRef, Bytes)) -> Option<(u64, BatchRef, Batch)> {
        let (first, batch, body) = found;
        let wall_ms = self.env.wall_ms();
        let keep = |place: u64, record: &Record| {
            let (Some(key), offset) = (&record.key, first + place) else { return true };
            let newer = newest.get(key).is_some_and(|newest| *newest > offset);
            let is_told = record.value.is_empty() && wall_ms.saturating_sub(batch.time_ms) >= TOMBSTONE_MS;
            // Whoever reads to the end finds a record there.
            let is_last = offset + 1 == self.end;
            let planted = self.env.planted(PlantedBug::CompactNewest) && self.env.random().is_multiple_of(64);
            is_last || !(newer || is_told || planted)
        };
        let fewer = Batch::trusted(body, batch.count, batch.span).retain(keep);
        (fewer.count() < batch.count).then_some((first, batch, fewer))
    }
}

fn records(first: u64, batch: &BatchRef, body: Bytes) -> impl Iterator<Item = (u64, Record)> {
    let batch_of = Batch::trusted(body, batch.count, batch.span);
    let stored = batch_of.records(coact_core::contract::stream::Offset(first), batch.time_ms);
    stored.map(|stored| (stored.offset.0, stored.record))
}

/// Puts batches in the place of those that are still as they were.
fn replace(work: &mut Work<'_>, at: At, fewer: Vec<(u64, BatchRef, Batch)>) {
    let topic = work.messages.topics.get(&at.topic);
    let Some(partition) = topic.and_then(|topic| topic.partitions.get(at.partition as usize)) else { return };
    let shared = partition.shared.clone();
    for (first, old, batch) in fewer {
        if shared.index.read().batches.get(&first) == Some(&old) {
            let (count, span, time_ms) = (batch.count(), old.span, old.time_ms);
            work.write_body(MessageChange::Compacted { at, first, count, span, time_ms }, batch.bytes().clone());
        }
    }
}
