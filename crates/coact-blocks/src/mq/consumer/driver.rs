//! The one task of a consumer that follows its group: begins with partitions, lets them go in order, and commits.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::stream::{GroupOffset, Seek},
};
use tokio::sync::watch;

use super::{Start, commit, fetch, progress::Progress, state::Shared};
use crate::{
    backoff::{Backoff, is_retryable},
    mq::group::{Membership, Partitions, TopicPartition, View},
};

/// How a consumer is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    /// Finish what is in flight first.
    Leave,
    /// Nobody waits any more.
    Drop,
}

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) membership: Membership,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) ended: watch::Sender<Option<Result<()>>>,
}

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

impl Driver {
    /// Runs until the consumer leaves, or its membership is over.
    pub(super) async fn run(mut self) {
        let mut stop = self.stop.clone();
        let result = tokio::select! {
            biased;
            why = self.membership.ended() => Err(why),
            never = follow(&self.shared, &self.membership) => match never {},
            _ = stop.wait_for(|stop| *stop != Stop::No) => Ok(()),
        };
        let result = match result {
            Ok(()) => self.leave().await,
            Err(why) => {
                self.shared.end(why.clone());
                Err(why)
            }
        };
        self.shared.end(Error::new(ErrorKind::Closed, "the consumer has left its group"));
        self.ended.send_replace(Some(result));
    }

    /// Finishes, commits, and goes.
    async fn leave(&mut self) -> Result<()> {
        let shared = &self.shared;
        shared.held().iter().for_each(|place| shared.stop(place));
        let env = shared.streams.env().clone();
        let give_up = env.now() + shared.options.rebalance_timeout;
        let drain = async {
            let mut attention = shared.attention.subscribe();
            while shared.drained().len() < shared.held().len() {
                attention.mark_unchanged();
                if shared.drained().len() < shared.held().len() {
                    // It lives as long as this task does.
                    let _ = attention.changed().await;
                }
            }
        };
        tokio::select! {
            biased;
            () = drain => {}
            _ = self.stop.wait_for(|stop| *stop == Stop::Drop) => {}
            () = env.sleep_until(give_up) => {}
        }
        let committed = commit_until(shared, give_up).await;
        let left = self.membership.leave().await;
        committed.and(left)
    }
}

async fn commit_until(shared: &Shared, give_up: Instant) -> Result<()> {
    let env = shared.streams.env();
    let mut backoff = Backoff::new(env, FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match commit::all(shared).await {
            Err(error) if is_retryable(&error) && env.now() < give_up => backoff.pause().await,
            result => return result,
        }
    }
}

/// Follows the group for ever.
async fn follow(shared: &Arc<Shared>, membership: &Membership) -> std::convert::Infallible {
    let env = shared.streams.env().clone();
    let mut views = membership.views();
    let mut attention = shared.attention.subscribe();
    let mut backoff = Backoff::new(&env, FIRST_PAUSE, LONGEST_PAUSE);
    let mut answered = 0;
    let mut commit_at = env.now() + shared.options.commit_interval;
    let mut asked = BTreeSet::new();
    loop {
        attention.mark_unchanged();
        let also = shared.also();
        if also != asked {
            membership.also(&also);
            asked = also;
        }
        let view = views.borrow_and_update().clone();
        let limit = env.timeout(REQUEST_LIMIT, reconcile(shared, &view));
        let settled = limit.await.unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, "no answer in time")));
        let look_at = match settled {
            Ok(()) => {
                backoff.reset();
                commit_at
            }
            Err(error) => {
                tracing::debug!(group = %shared.group, %error, "a consumer tries again to follow its group");
                commit_at.min(env.now() + backoff.next_pause())
            }
        };
        if let Some((generation, will)) = &view.next
            && answered != *generation
            && shared.held().iter().all(|place| will.contains(place))
        {
            membership.ready(*generation);
            answered = *generation;
        }
        tokio::select! {
            biased;
            // Both live as long as this task does.
            _ = views.changed() => {}
            _ = attention.changed() => {}
            () = env.sleep_until(look_at) => {}
        }
        if env.now() >= commit_at {
            if let Err(error) = commit::all(shared).await {
                tracing::debug!(group = %shared.group, %error, "what is done was not committed yet");
            }
            commit_at = env.now() + shared.options.commit_interval;
        }
    }
}

/// Brings what this consumer holds closer to what it should hold.
async fn reconcile(shared: &Arc<Shared>, view: &View) -> Result<()> {
    if view.generation != shared.generation() {
        // Whoever missed a generation does not know who had its partitions meanwhile.
        let missed = shared.generation() != view.before;
        for place in shared.held() {
            if missed || !view.assigned.contains(&place) {
                shared.lose(&place);
            }
        }
        shared.adopt(view.generation);
    }
    let keep: Partitions = match &view.next {
        Some((_, will)) => view.assigned.intersection(will).cloned().collect(),
        None => view.assigned.clone(),
    };
    let held = shared.held();
    held.iter().filter(|place| !keep.contains(place)).for_each(|place| shared.stop(place));
    for place in shared.drained() {
        match commit::one(shared, &place).await {
            Ok(()) => shared.lose(&place),
            // They are somebody else's already.
            Err(error) if error.kind() == ErrorKind::Fenced => shared.lose(&place),
            Err(error) => return Err(error),
        }
    }
    let held = shared.held();
    let wanted = keep.into_iter().filter(|place| !held.contains(place) && shared.is_idle(place));
    begin(shared, wanted.collect()).await
}

/// Begins with partitions where the group left off.
async fn begin(shared: &Arc<Shared>, places: Vec<TopicPartition>) -> Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let known = shared.streams.group(&shared.group).await?.map_or(Vec::new(), |group| group.offsets);
    for place in places {
        let is_place = |offset: &&GroupOffset| offset.topic == place.topic && offset.partition == place.partition;
        let (progress, commit_now) = match known.iter().find(is_place) {
            Some(offset) => (Progress::restore(offset.offset, &offset.metadata), false),
            None => {
                let seek = match shared.options.start {
                    Start::Earliest => Seek::Earliest,
                    Start::Latest => Seek::Latest,
                };
                let offset = shared.streams.seek(&place.topic, place.partition, seek).await?;
                // Latest is a place in time: after a restart it would be a later one.
                (Progress::restore(offset, b""), true)
            }
        };
        let era = shared.hold(&place, progress, commit_now);
        fetch::start(shared, place, era);
    }
    Ok(())
}
