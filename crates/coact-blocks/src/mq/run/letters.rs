//! Moving a record elsewhere that failed too often: to the dead letters, or to another round.

use std::sync::Arc;

use coact_core::{
    Effect, Result,
    contract::{
        commit::Commit,
        stream::{Append, Atomicity, Batch, Delayed, Stamp},
    },
    name::Topic,
};
use futures::FutureExt;

use super::{Done, LaneId, RunOptions, Work};
use crate::{
    backoff::{Backoff, is_retryable},
    mq::{
        consumer::{Delivery, settle, state::Shared},
        retry::{
            Policy, ROUND_HEADER, before_retry, dead_topic, ensure_beside, header, letter, number_of, retry_topic,
        },
    },
};

/// Moves a record to where the policy says.
pub(super) fn post<'a>(
    shared: &'a Arc<Shared>,
    options: &'a RunOptions,
    id: LaneId,
    delivery: Delivery,
    why: String,
    attempts: u32,
) -> Work<'a> {
    async move {
        let round = header(delivery.message(), ROUND_HEADER).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
        let moved = match options.policy {
            Policy::RetryTopic { delay, rounds } if round < rounds => {
                let due_ms = shared.streams.env().wall_ms().saturating_add(delay.as_millis() as u64);
                another_round(shared, &delivery, &why, attempts, round + 1, due_ms).await
            }
            _ => bury(shared, &delivery, &why, attempts).await,
        };
        (id, delivery.era(), Done::Moved(vec![delivery], moved))
    }
    .boxed()
}

/// Appends a record to the dead letters: once, since its stamp is its own.
pub(super) async fn bury(shared: &Shared, delivery: &Delivery, why: &str, attempts: u32) -> Result<()> {
    let place = delivery.place();
    let first = first_topic(shared, &place.topic);
    let topic = dead_topic(&first, &shared.group)?;
    ensure_beside(&shared.streams, &first, &topic).await?;
    let record = letter(place, delivery.record(), why, attempts);
    let number = number_of(&shared.group, place, delivery.record());
    let stamp = Stamp { producer: number, epoch: 0, sequence: 0 };
    let stamp = shared.streams.guarantees().dedup.map(|_| stamp);
    let append = Append { topic, partition: place.partition, batch: Batch::new([&record]), stamp, expect: None };
    tracing::warn!(topic = %place.topic, partition = place.partition, offset = %delivery.record().offset, why, "a record is dead");
    if shared.streams.guarantees().atomicity >= Atomicity::Streams {
        let commit = Commit { appends: vec![append], ..Commit::default() };
        return together(shared, delivery, commit, stamp.is_some()).await;
    }
    let mut backoff = Backoff::new(shared.streams.env(), FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match shared.streams.append(append.clone()).await {
            Ok(_) => break,
            Err(error) if is_retryable(&error) || error.effect() == Effect::Unknown => backoff.pause().await,
            Err(error) => return Err(error),
        }
        if !delivery.is_current() {
            break;
        }
    }
    delivery.finish();
    Ok(())
}

const FIRST_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

async fn another_round(
    shared: &Shared,
    delivery: &Delivery,
    why: &str,
    attempts: u32,
    round: u32,
    due_ms: u64,
) -> Result<()> {
    let place = delivery.place();
    let first = first_topic(shared, &place.topic);
    let topic = retry_topic(&first, &shared.group)?;
    ensure_beside(&shared.streams, &first, &topic).await?;
    let mut record = letter(place, delivery.record(), why, attempts);
    record.headers.retain(|(name, _)| name != ROUND_HEADER);
    let record = record.with_header(ROUND_HEADER, round.to_string());
    let delayed = Delayed { topic, partition: place.partition, record, due_ms };
    if shared.streams.guarantees().atomicity == Atomicity::Everything {
        let commit = Commit { delayed: vec![delayed], ..Commit::default() };
        return together(shared, delivery, commit, false).await;
    }
    shared.streams.schedule(vec![delayed]).await?;
    delivery.finish();
    Ok(())
}

async fn together(shared: &Shared, delivery: &Delivery, commit: Commit, repeat: bool) -> Result<()> {
    settle(shared, delivery.place(), delivery.era(), std::slice::from_ref(delivery), commit, repeat).await.map(drop)
}

/// The topic that a record was in before its first round.
fn first_topic(shared: &Shared, topic: &Topic) -> Topic {
    before_retry(topic, &shared.group).unwrap_or_else(|| topic.clone())
}
