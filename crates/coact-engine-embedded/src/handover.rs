//! The hand-over of delayed records: when their time has come, their bodies are read beside the writer, and one frame ends
//! the delay and appends the record. The writer looks again, so a record that was cancelled meanwhile is not appended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use coact_core::{
    Result,
    contract::stream::BatchBuilder,
    env::{Env, PlantedBug},
};
use tokio::sync::mpsc;

use crate::{
    body::{Bodies, Place},
    engine::ask_through,
    message::{
        At, MessageChange,
        delay::{DelayKey, Delayed},
    },
    stream::only_record,
    work::Work,
    writer::{Proposal, Shared},
};

/// About the most records, and bytes, that are handed over in one frame.
const RECORDS_MAX: usize = 1_000;
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The longest sleep while records wait: a wall clock that is set ahead makes them due.
const NAP: Duration = Duration::from_millis(500);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// A record whose time has come.
#[derive(Clone, Copy, Debug)]
struct Due {
    topic: u64,
    key: DelayKey,
    delayed: Delayed,
}

/// Hands over until the engine ends.
pub(crate) async fn run(env: Env, shared: Weak<Shared>, requests: mpsc::WeakSender<Proposal>) {
    // Records whose bodies are damaged: they stay, and do not hold up the others.
    let mut damaged = BTreeSet::new();
    while sleep_until_due(&env, &shared).await {
        let Some(bodies) = shared.upgrade().map(|shared| shared.bodies.clone()) else { return };
        match step(&env, &bodies, &requests, &mut damaged).await {
            Ok(true) => {}
            // Nothing was due after all, or what is due is damaged.
            Ok(false) => env.sleep(Duration::from_millis(1)).await,
            Err(error) => {
                if shared.upgrade().is_none_or(|shared| shared.stopped.lock().is_some()) {
                    return;
                }
                tracing::error!(%error, "delayed records could not be handed over");
                env.sleep(PAUSE).await;
            }
        }
    }
}

/// False when the engine has ended.
async fn sleep_until_due(env: &Env, shared: &Weak<Shared>) -> bool {
    loop {
        let Some(shared) = shared.upgrade() else { return false };
        let scheduled = shared.delay_added.notified();
        if shared.stopped.lock().is_some() {
            return false;
        }
        let left = match *shared.next_delay.lock() {
            None => NAP * 100,
            Some(due_ms) => match due_ms.checked_sub(env.wall_ms()) {
                None | Some(0) => return true,
                Some(left_ms) => Duration::from_millis(left_ms).min(NAP),
            },
        };
        tokio::select! {
            () = env.sleep(left) => {}
            () = scheduled => {}
        }
    }
}

/// Hands over some; false if there were none.
async fn step(
    env: &Env,
    bodies: &Arc<Bodies>,
    requests: &mpsc::WeakSender<Proposal>,
    damaged: &mut BTreeSet<(u64, DelayKey)>,
) -> Result<bool> {
    let skip = damaged.clone();
    let due = ask_through(requests, move |work| Ok(due(work, &skip))).await?;
    if due.is_empty() {
        return Ok(false);
    }
    let places: Vec<Place> = due.iter().map(|due| due.delayed.place).collect();
    let records = match bodies.get(env, &places).await {
        Ok(found) => due.into_iter().zip(found).collect(),
        Err(_) => one_by_one(env, bodies, due, damaged).await,
    };
    let twice = env.planted(PlantedBug::FireDelayTwice) && env.random().is_multiple_of(16);
    ask_through(requests, move |work| {
        hand_over(work, records, twice);
        Ok(true)
    })
    .await
}

/// What is damaged is found, and set aside.
async fn one_by_one(
    env: &Env,
    bodies: &Arc<Bodies>,
    all: Vec<Due>,
    damaged: &mut BTreeSet<(u64, DelayKey)>,
) -> Vec<(Due, Option<Bytes>)> {
    let mut records = Vec::new();
    for due in all {
        match bodies.get(env, &[due.delayed.place]).await {
            Ok(mut found) => records.push((due, found.pop().flatten())),
            Err(error) => {
                tracing::error!(%error, due_ms = due.key.0, number = due.key.1, "a delayed record is damaged");
                damaged.insert((due.topic, due.key));
            }
        }
    }
    records
}

/// What is due, of all topics, in the order of its time.
fn due(work: &mut Work<'_>, skip: &BTreeSet<(u64, DelayKey)>) -> Vec<Due> {
    let now_ms = work.time_ms;
    let mut found: Vec<Due> = Vec::new();
    for (topic, state) in &work.messages.topics {
        let pending = state.delays.pending.iter().take_while(|((due_ms, _), _)| *due_ms <= now_ms);
        let due = pending.map(|(key, delayed)| Due { topic: *topic, key: *key, delayed: *delayed });
        found.extend(due.filter(|due| !skip.contains(&(due.topic, due.key))).take(RECORDS_MAX));
    }
    found.sort_by_key(|due| due.key.0);
    found.truncate(RECORDS_MAX);
    let mut bytes = 0;
    let enough = found.iter().position(|due| {
        bytes += u64::from(due.delayed.place.length);
        bytes > BYTES_MAX
    });
    found.truncate(enough.unwrap_or(found.len()).max(1));
    found
}

/// Ends the delays that are still there and appends their records, in one frame.
fn hand_over(work: &mut Work<'_>, records: Vec<(Due, Option<Bytes>)>, twice: bool) {
    let mut batches: BTreeMap<At, BatchBuilder> = BTreeMap::new();
    for (due, body) in records {
        let Due { topic, key, delayed } = due;
        let Some(state) = work.messages.topics.get_mut(&topic) else { continue };
        let is_there = state.delays.pending.get(&key).is_some_and(|found| found.place == delayed.place);
        // The clock may have been set back since somebody found it due.
        if !is_there || key.0 > work.time_ms {
            continue;
        }
        let Some(record) = body.and_then(only_record) else { continue };
        state.delays.note_lateness(work.time_ms - key.0);
        batches.entry(At { topic, partition: delayed.partition }).or_default().push(&record);
        if !twice {
            work.write(MessageChange::DelayEnded { topic, due_ms: key.0, number: key.1 });
        }
    }
    for (at, batch) in batches {
        let partition =
            work.messages.topics.get(&at.topic).and_then(|topic| topic.partitions.get(at.partition as usize));
        let Some(partition) = partition else { continue };
        let (first, time_ms) = (partition.end, partition.last_ms.max(work.time_ms));
        let batch = batch.finish();
        let (count, span) = (batch.count(), batch.span());
        let change = MessageChange::Appended { at, first, count, span, time_ms, stamp: None };
        work.write_body(change, batch.bytes().clone());
    }
}
