//! Consumers: members of a group that share the partitions of its topics, each record done at least once, in the order of
//! its key.

mod commit;
mod delivery;
mod driver;
mod fetch;
mod progress;
pub(super) mod state;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::stream::{Offset, Seek, StreamHandle},
    name::{Group, Realm, Topic},
};
use tokio::sync::watch;

pub use commit::Settling;
pub(super) use commit::{Outcome, settle};
pub(super) use delivery::Busy;
pub use delivery::Delivery;

use super::{
    NEEDS,
    group::{GROUP_NEEDS, Join, Membership, TopicPartition},
};
use crate::Session;
use driver::{Driver, Stop};
use state::Shared;

/// A member of a group. It reads ahead what it holds, and commits what is done once in a while.
///
/// [`next`](Self::next) hands out records one by one. To process them in the order of their keys, several at a time and
/// with retries, use [`run`](Self::run).
///
/// Dropping it leaves the group in the background and commits what was acknowledged; [`leave`](Self::leave) waits for
/// what is in flight and reports.
pub struct Consumer {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Session,
    pub(super) realm: Realm,
    pub(super) topics: BTreeSet<Topic>,
    incarnation: String,
    stop: watch::Sender<Stop>,
    ended: watch::Receiver<Option<Result<()>>>,
}

/// How a consumer joins its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Where to begin in a partition for which the group has committed nothing; at the earliest record by default.
    pub start: Start,
    /// How many unfinished records a partition may have before it is read no further; 1000 by default. It is read no
    /// further either when what is finished among them would not fit into the note of a commit.
    pub max_records: usize,
    /// How many bytes of unfinished records a partition may have before it is read no further; 4 MiB by default.
    pub max_bytes: usize,
    /// How often what is done is committed; 1 s by default.
    pub commit_interval: Duration,
    /// For how long a rebalance waits for members to finish what they have in flight; 30 s by default. The oldest member's
    /// counts. Who is not done by then is fenced: its records are done again elsewhere.
    pub rebalance_timeout: Duration,
    /// The realm in which the group meets; `main` by default.
    pub realm: Realm,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            start: Start::Earliest,
            max_records: 1_000,
            max_bytes: 4 * 1024 * 1024,
            commit_interval: Duration::from_secs(1),
            rebalance_timeout: Duration::from_secs(30),
            realm: Realm::default(),
        }
    }
}

/// Where a group begins in a partition for which it has committed nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the first record that is kept.
    #[default]
    Earliest,
    /// After the newest record.
    Latest,
}

/// Where to go on in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// At this offset.
    At(Offset),
    /// Where the engine finds it.
    Seek(Seek),
}

impl From<Offset> for Position {
    fn from(offset: Offset) -> Self {
        Self::At(offset)
    }
}

impl From<Seek> for Position {
    fn from(seek: Seek) -> Self {
        Self::Seek(seek)
    }
}

impl Consumer {
    /// Joins a group, to read these topics. Which partitions it gets, the group decides; until then
    /// [`next`](Self::next) waits.
    ///
    /// # Errors
    /// `Invalid` without topics or without room, `Unsupported` if the streams promise less than mq [needs](super::NEEDS), or the
    /// session's store less than groups [need](super::GROUP_NEEDS); `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// A place in the group that a dropped future took ends with its session.
    pub async fn join(
        session: &Session,
        streams: &StreamHandle,
        group: &Group,
        topics: impl IntoIterator<Item = Topic>,
        options: ConsumerOptions,
    ) -> Result<Self> {
        streams.require(&NEEDS)?;
        session.kv().require(&GROUP_NEEDS)?;
        let topics: BTreeSet<Topic> = topics.into_iter().collect();
        if topics.is_empty() {
            return Err(Error::invalid("a consumer without topics is not allowed: name at least one"));
        }
        if options.max_records == 0 || options.max_bytes == 0 {
            return Err(Error::invalid("max_records and max_bytes of 0 are not allowed: a consumer needs some room"));
        }
        let realm = options.realm.clone();
        let rebalance_timeout = options.rebalance_timeout;
        let join = Join { realm: realm.clone(), group: group.clone(), topics: topics.clone(), rebalance_timeout };
        let membership = Membership::join(session, streams, join).await?;
        let incarnation = membership.incarnation().to_owned();
        let shared = Shared::new(streams, group, options);
        let (stop, stopped) = watch::channel(Stop::No);
        let (end, ended) = watch::channel(None);
        let driver = Driver { shared: shared.clone(), membership, stop: stopped, ended: end };
        streams.env().spawn(driver.run());
        Ok(Self { shared, session: session.clone(), realm, topics, incarnation, stop, ended })
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.shared.group
    }

    /// This member's name in the group's entries: random, so that no two members ever share one.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// The partitions that it holds now.
    pub fn assigned(&self) -> Vec<TopicPartition> {
        self.shared.active()
    }

    /// The generation of the group that it commits in; zero before the first.
    pub fn generation(&self) -> u64 {
        self.shared.generation()
    }

    /// The next record, of each partition in turn; those of one partition come in order. It waits for one.
    ///
    /// # Errors
    /// `Fenced` when the session or the place in the group is lost, `Closed` after [`leave`](Self::leave): nothing more comes
    /// then. Any other failure is of one partition, such as `Corrupt`, and others go on.
    ///
    /// # Cancel safety
    /// Safe: no record is lost.
    pub async fn next(&self) -> Result<Delivery> {
        let mut ready = self.shared.ready.subscribe();
        loop {
            ready.mark_unchanged();
            if let Some(delivery) = self.poll()? {
                return Ok(delivery);
            }
            // It lives as long as this consumer does.
            let _ = ready.changed().await;
        }
    }

    /// The next record, if one is there.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn poll(&self) -> Result<Option<Delivery>> {
        match self.shared.failure() {
            Some(failure) => Err(failure),
            None => Ok(self.shared.take()),
        }
    }

    /// Commits what is done now, rather than within [`commit_interval`](ConsumerOptions::commit_interval).
    ///
    /// # Errors
    /// `Fenced` while the group goes over to a newer generation; what is done is committed later then, or done again by
    /// whoever has the partition. `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Once polled, it may be committed though the future is dropped; again is harmless.
    pub async fn commit(&self) -> Result<()> {
        commit::all(&self.shared).await
    }

    /// Settles records by a commit of the user's own, for processing that is effectively once: see [`Settling`].
    ///
    /// # Errors
    /// `Fenced` if a record's partition is not this consumer's any more.
    ///
    /// # Cancel safety
    /// The records are dropped.
    pub async fn settle(&self, deliveries: Vec<Delivery>) -> Result<Settling<'_>> {
        Settling::begin(&self.shared, deliveries).await
    }

    /// Goes on elsewhere in a partition. What was delivered of it before does not count any more.
    ///
    /// # Errors
    /// `Invalid` if this consumer does not hold the partition; otherwise what the engine answers.
    ///
    /// # Cancel safety
    /// It happens or not.
    pub async fn seek(&self, topic: &Topic, partition: u32, to: impl Into<Position> + Send) -> Result<()> {
        let offset = match to.into() {
            Position::At(offset) => offset,
            Position::Seek(seek) => self.shared.streams.seek(topic, partition, seek).await?,
        };
        let place = TopicPartition { topic: topic.clone(), partition };
        // An older commit must not follow.
        let _one_at_a_time = self.shared.commits.lock().await;
        let Some(era) = self.shared.reposition(&place, offset) else {
            return Err(Error::invalid(format!("partition {partition} of {topic} is not this consumer's")));
        };
        fetch::start(&self.shared, place, era);
        Ok(())
    }

    /// Delivers no more of these partitions until they are [resumed](Self::resume), or held anew. Others than its own are
    /// left out.
    pub fn pause(&self, partitions: &[TopicPartition]) {
        self.shared.pause(partitions, true);
    }

    /// Delivers these partitions again.
    pub fn resume(&self, partitions: &[TopicPartition]) {
        self.shared.pause(partitions, false);
    }

    /// Finishes what is in flight, for as long as a rebalance would wait, commits what is done, and leaves the group.
    ///
    /// # Errors
    /// `Fenced` if the place was lost before, `Unavailable` if what is done could not be committed: it is done again then.
    ///
    /// # Cancel safety
    /// It leaves all the same.
    pub async fn leave(&self) -> Result<()> {
        self.stop.send_if_modified(|stop| {
            let first = *stop == Stop::No;
            if first {
                *stop = Stop::Leave;
            }
            first
        });
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // The environment ended the task: a simulated crash.
            Err(_) => Err(Error::new(ErrorKind::Closed, "the consumer ended before it could leave")),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.send_replace(Stop::Drop);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Consumer({} of group {} in {:?} of {:?})", self.incarnation, self.group(), self.realm, self.session)
    }
}
