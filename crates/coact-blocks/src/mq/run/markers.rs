//! Which keys are parked, as this consumer knows it: from the store, and from what it wrote itself.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use coact_core::{
    Result,
    contract::kv::{Feed, KvHandle, Revision, Scope},
    name::Dir,
};
use futures::{FutureExt, Stream, StreamExt};

use super::{
    lane::{LaneId, Which},
    parking::Step,
};
use crate::{
    backoff::Backoff,
    mq::{
        consumer::state::Shared,
        group::TopicPartition,
        parked::{self, Found, Marker},
        retry::KeyHash,
    },
};

/// The markers, and for which partitions they are known.
#[derive(Debug, Default)]
pub(super) struct Markers {
    known: HashMap<(TopicPartition, KeyHash), (Marker, Revision)>,
    loaded: HashSet<(TopicPartition, u64)>,
}

/// All markers of the group, complete as of a revision, for partitions that were held before they were listed.
#[derive(Debug)]
pub(super) struct Listing {
    eras: Vec<(TopicPartition, u64)>,
    found: Vec<Found>,
    revision: Revision,
}

impl Markers {
    pub(super) fn is_loaded(&self, place: &TopicPartition, era: u64) -> bool {
        self.loaded.contains(&(place.clone(), era))
    }

    pub(super) fn get(&self, place: &TopicPartition, hash: &KeyHash) -> Option<(Marker, Revision)> {
        self.known.get(&(place.clone(), *hash)).cloned()
    }

    /// Takes what a commit wrote, or found instead; true if it wrote.
    pub(super) fn step(&mut self, id: &LaneId, step: Step) -> bool {
        let Which::Key(hash) = id.which else { return true };
        let (now, wrote) = match step {
            Step::Wrote(marker) => (Some(marker), true),
            Step::Gone => (None, true),
            Step::Nothing => return true,
            Step::Found(found) => (found, false),
        };
        match now {
            Some(now) => drop(self.known.insert((id.place.clone(), hash), now)),
            None => drop(self.known.remove(&(id.place.clone(), hash))),
        }
        wrote
    }

    /// Takes a listing, unless what is known is newer, and returns the lanes whose records are to come back.
    pub(super) fn merge(&mut self, listing: Listing) -> Vec<(LaneId, u64)> {
        let eras: HashMap<_, _> = listing.eras.iter().cloned().collect();
        let listed: HashSet<_> = listing.found.iter().map(|found| (found.place.clone(), found.hash)).collect();
        self.known.retain(|key, (_, modified)| listed.contains(key) || *modified > listing.revision);
        for found in listing.found {
            let key = (found.place, found.hash);
            if eras.contains_key(&key.0) && self.known.get(&key).is_none_or(|(_, known)| *known < found.modified) {
                self.known.insert(key, (found.marker, found.modified));
            }
        }
        self.loaded = listing.eras.into_iter().collect();
        let back = self.known.iter().filter(|(_, (marker, _))| marker.redrive);
        let lane = |(place, hash): &(TopicPartition, KeyHash)| {
            let era = eras.get(place)?;
            Some((LaneId { place: place.clone(), which: Which::Key(*hash) }, *era))
        };
        back.filter_map(|(key, _)| lane(key)).collect()
    }
}

/// Lists the markers when partitions come, when markers change, and once in a while.
pub(super) fn follow(kv: &KvHandle, dir: Dir, shared: Arc<Shared>) -> impl Stream<Item = Listing> + Send + use<> {
    let backoff = Backoff::new(kv.env(), FIRST_PAUSE, LONGEST_PAUSE);
    let follower = Follower { kv: kv.clone(), dir, shared, feed: None, listed: None, backoff };
    futures::stream::unfold(follower, |mut follower| async {
        let listing = follower.next().await;
        Some((listing, follower))
    })
}

const LIST_EVERY: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

struct Follower {
    kv: KvHandle,
    dir: Dir,
    shared: Arc<Shared>,
    feed: Option<Feed>,
    /// The partitions that the last listing was for.
    listed: Option<Vec<(TopicPartition, u64)>>,
    backoff: Backoff,
}

impl Follower {
    async fn next(&mut self) -> Listing {
        self.wait().await;
        loop {
            match self.list().await {
                Ok(listing) => {
                    self.backoff.reset();
                    self.listed = Some(listing.eras.clone());
                    return listing;
                }
                Err(error) => {
                    tracing::debug!(dir = %self.dir, %error, "parked keys could not be listed");
                    self.feed = None;
                    self.backoff.pause().await;
                }
            }
        }
    }

    /// Waits until there is reason to look.
    async fn wait(&mut self) {
        let mut attention = self.shared.attention.subscribe();
        let env = self.kv.env().clone();
        let until = env.now() + LIST_EVERY;
        while self.listed.as_ref().is_some_and(|listed| *listed == self.shared.eras()) {
            let Some(feed) = &mut self.feed else { return };
            tokio::select! {
                biased;
                _ = attention.changed() => {}
                change = feed.next() => {
                    if !matches!(change, Some(Ok(_))) {
                        self.feed = None;
                    }
                    return;
                }
                () = env.sleep_until(until) => return,
            }
        }
    }

    async fn list(&mut self) -> Result<Listing> {
        if self.feed.is_none() {
            self.feed = Some(self.kv.watch(Scope::Dir(self.dir.clone()), None).await?);
        }
        // What has changed so far is in the list.
        while let Some(feed) = &mut self.feed
            && let Some(change) = feed.next().now_or_never()
        {
            if !matches!(change, Some(Ok(_))) {
                self.feed = None;
            }
        }
        let eras = self.shared.eras();
        let (found, revision) = parked::list(&self.kv, &self.dir).await?;
        Ok(Listing { eras, found, revision })
    }
}
