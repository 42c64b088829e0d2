//! Committing how far a consumer came: one commit at a time.

use std::{sync::Arc, time::Duration};

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::{
        commit::{Commit, CommitOutcome},
        kv::{Entry, Revision, Write},
        stream::OffsetCommit,
    },
    env::PlantedBug,
};
use tokio::sync::MutexGuard;

use super::{
    delivery::Delivery,
    state::{Shared, Snapshot},
};
use crate::{
    backoff::{Backoff, is_retryable, within},
    mq::group::TopicPartition,
};

/// Commits all that is done.
pub(super) async fn all(shared: &Shared) -> Result<()> {
    commit(shared, None).await
}

/// Commits what is done of one partition.
pub(super) async fn one(shared: &Shared, place: &TopicPartition) -> Result<()> {
    commit(shared, Some(place)).await
}

const LIMIT: Duration = Duration::from_secs(10);

async fn commit(shared: &Shared, only: Option<&TopicPartition>) -> Result<()> {
    let _one_at_a_time = shared.commits.lock().await;
    let Some(snapshot) = shared.snapshot(&[], only) else { return Ok(()) };
    let request = shared.streams.commit_offsets(snapshot.commit.clone());
    let mut result = within(shared.streams.env(), LIMIT, "a commit of offsets", request).await;
    if shared.streams.env().planted(PlantedBug::CommitOldGeneration)
        && result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Fenced)
    {
        let generation = shared.streams.group(&shared.group).await?.map_or(0, |group| group.generation);
        let forged = OffsetCommit { generation, ..snapshot.commit.clone() };
        result = shared.streams.commit_offsets(forged).await;
    }
    result?;
    shared.committed(&snapshot);
    Ok(())
}

/// Records that are being settled by a commit of the user's own, such as a [`Transaction`](crate::mq::Transaction).
///
/// While it exists, the consumer commits nothing else. [`confirm`](Self::confirm) it when the commit has happened.
/// Otherwise it is taken for a failure or a doubt: the partitions are read anew from what the engine knows, which tells
/// whether it has happened.
#[derive(Debug)]
pub struct Settling<'a> {
    shared: &'a Arc<Shared>,
    deliveries: Vec<Delivery>,
    snapshot: Snapshot,
    confirmed: bool,
    _one_at_a_time: MutexGuard<'a, ()>,
}

impl<'a> Settling<'a> {
    pub(super) async fn begin(shared: &'a Arc<Shared>, deliveries: Vec<Delivery>) -> Result<Self> {
        let one_at_a_time = shared.commits.lock().await;
        if let Some(foreign) = deliveries.iter().find(|delivery| !delivery.is_current()) {
            let place = foreign.place();
            return Err(Error::new(
                ErrorKind::Fenced,
                format!("partition {} of {} is not this consumer's any more", place.partition, place.topic),
            ));
        }
        let done: Vec<_> = deliveries.iter().collect();
        let Some(snapshot) = shared.snapshot(&done, None) else {
            return Err(Error::invalid("there is nothing to settle: name the deliveries that are done"));
        };
        Ok(Self { shared, deliveries, snapshot, confirmed: false, _one_at_a_time: one_at_a_time })
    }

    /// What to commit: how far the group is when these records are done, in this consumer's generation.
    pub fn offsets(&self) -> OffsetCommit {
        self.snapshot.commit.clone()
    }

    /// The commit has happened: the records are done.
    pub fn confirm(mut self) {
        self.confirmed = true;
        self.shared.committed(&self.snapshot);
        for delivery in &self.deliveries {
            delivery.finish();
        }
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if !self.confirmed {
            self.deliveries.iter().filter(|delivery| delivery.is_current()).for_each(|d| self.shared.lose(d.place()));
        }
    }
}

/// How a commit that settles deliveries ended.
#[derive(Debug)]
pub(in crate::mq) enum Outcome {
    /// It happened; with the revision of its entry, if it wrote one.
    Done(Option<Revision>),
    /// A check of it did not hold.
    Refused(Option<Entry>),
}

/// Commits something together with how far a partition is when these deliveries are done, and repeats it until nobody
/// doubts whether it happened. So a repetition must be harmless: its appends have stamps, or its first write is checked
/// and unlike any other.
///
/// If a doubt remains, the partition is given up, to be read anew from what the engine knows.
pub(in crate::mq) async fn settle(
    shared: &Shared,
    place: &TopicPartition,
    era: u64,
    deliveries: &[Delivery],
    mut commit: Commit,
    repeat: bool,
) -> Result<Outcome> {
    let _one_at_a_time = shared.commits.lock().await;
    if !shared.is_current(place, era) {
        return Err(Error::new(ErrorKind::Fenced, "the partition is not this consumer's any more"));
    }
    let snapshot = shared.snapshot_one(&deliveries.iter().collect::<Vec<_>>(), place);
    commit.offsets = Some(snapshot.commit.clone());
    let env = shared.streams.env();
    let mut backoff = Backoff::new(env, Duration::from_millis(10), Duration::from_secs(1));
    let mut doubt = false;
    loop {
        let outcome = match within(env, LIMIT, "a commit", shared.streams.commit(commit.clone())).await {
            Ok(CommitOutcome::Committed(done)) => Outcome::Done(done.kv.map(|(revision, _)| revision)),
            Ok(CommitOutcome::Refused { found, .. }) if doubt && is_ours(&commit, found.as_ref()) => {
                Outcome::Done(found.map(|entry| entry.modified))
            }
            Ok(CommitOutcome::Refused { found, .. }) => {
                if doubt {
                    shared.lose(place);
                }
                return Ok(Outcome::Refused(found));
            }
            Err(error) => {
                doubt |= error.effect() == Effect::Unknown;
                let again = is_retryable(&error) || error.effect() == Effect::Unknown;
                if again && (repeat || !doubt) && shared.is_current(place, era) {
                    backoff.pause().await;
                    continue;
                }
                if doubt {
                    shared.lose(place);
                }
                return Err(error);
            }
        };
        shared.committed(&snapshot);
        for delivery in deliveries {
            delivery.finish();
        }
        return Ok(outcome);
    }
}

/// Whether what a check found is what this commit wrote.
fn is_ours(commit: &Commit, found: Option<&Entry>) -> bool {
    let write = commit.kv.as_ref().and_then(|(_, txn)| txn.writes.first());
    match (write, found) {
        (Some(Write::Put { value, .. }), Some(found)) => found.value == *value,
        (Some(Write::Delete(_)), None) => true,
        _ => false,
    }
}
