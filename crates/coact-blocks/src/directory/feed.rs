//! Keeping the picture of one service up to date: read, follow, read again after a gap.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Change, Entry, Feed, KvHandle, Order, Revision, Scope},
    name::Dir,
};
use futures::{FutureExt, StreamExt};

use super::{
    table::{Protection, Table},
    watch::Core,
};
use crate::backoff::Backoff;

/// Runs until nobody watches.
pub(super) async fn run(core: Arc<Core>, dir: Dir, protection: Protection) {
    let mut stop = core.stop.subscribe();
    let mut follower = Follower {
        table: Table::new(&core.name, protection),
        published: None,
        stale_since: Some(core.kv.env().now()),
        dir,
        core: core.clone(),
    };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = follower.follow_always() => {}
    }
}

/// Reads a dir completely. The revision is that of the oldest page: a watch after it misses nothing.
pub(super) async fn read_all(kv: &KvHandle, dir: &Dir) -> Result<(Vec<Entry>, Revision)> {
    const PAGE: usize = 1_000;
    let mut entries: Vec<Entry> = Vec::new();
    let mut oldest = None;
    loop {
        let after = entries.last().map_or(String::new(), |entry| entry.key.name().to_owned());
        let page = kv.list(dir, Order::Name { after }, PAGE).await?;
        let revision = *oldest.get_or_insert(page.revision);
        entries.extend(page.entries);
        if !page.more {
            return Ok((entries, revision));
        }
    }
}

struct Follower {
    core: Arc<Core>,
    dir: Dir,
    table: Table,
    published: Option<Instant>,
    stale_since: Option<Instant>,
}

impl Follower {
    /// Follows the store, and begins anew with a pause when it does not answer.
    async fn follow_always(&mut self) {
        let mut backoff = Backoff::new(self.core.kv.env(), FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let error = match self.start().await {
                Ok(feed) => {
                    let opened = self.core.kv.env().now();
                    let error = self.follow(feed).await;
                    // A feed that ends at once, again and again, is no success.
                    if self.core.kv.env().now() - opened > LONGEST_PAUSE {
                        backoff.reset();
                    }
                    error
                }
                Err(error) => error,
            };
            self.mark_stale(error);
            backoff.pause().await;
        }
    }

    /// Reads the service and opens a feed of what comes after.
    async fn start(&mut self) -> Result<Feed> {
        let revision = self.read().await?;
        self.core.kv.watch(Scope::Dir(self.dir.clone()), Some(revision)).await
    }

    async fn read(&mut self) -> Result<Revision> {
        let reading = read_all(&self.core.kv, &self.dir);
        let read = self.core.kv.env().timeout(READ_LIMIT, reading).await;
        let (entries, revision) = read.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Unavailable, format!("the list of {} did not come in time", self.dir)))
        })?;
        let now = self.core.kv.env().now();
        self.table.replace(entries, revision, now);
        self.table.expire(now);
        self.stale_since = None;
        self.publish();
        self.core.first.send_replace(Some(Ok(())));
        Ok(revision)
    }

    /// Takes changes until the feed fails, and says why.
    async fn follow(&mut self, mut feed: Feed) -> Error {
        let mut answers = self.core.pulse.answers();
        let mut silent = false;
        loop {
            let expiry = self.table.next_expiry();
            let env = self.core.kv.env().clone();
            let expired = async {
                match expiry {
                    Some(at) => env.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // It lives as long as the core does, so this ends by the condition only.
            let turned = async { drop(answers.wait_for(|answers| *answers == silent).await) };
            let changed = tokio::select! {
                biased;
                item = feed.next() => self.take_burst(&mut feed, item).await,
                () = expired => Ok(self.table.expire(self.core.kv.env().now())),
                () = turned => {
                    if silent {
                        // Read anew rather than trust that the feed has caught up by now.
                        return Error::new(ErrorKind::Unavailable, "the store did not answer for a while");
                    }
                    silent = true;
                    self.mark_stale(Error::new(ErrorKind::Unavailable, "the store does not answer"));
                    Ok(false)
                }
            };
            match changed {
                Ok(true) => self.publish(),
                Ok(false) => {}
                Err(error) => return error,
            }
        }
    }

    /// Takes an item and whatever comes with it or shortly after, so that a burst costs few pictures. The first change
    /// after a quiet time is shown at once.
    async fn take_burst(&mut self, feed: &mut Feed, item: Option<Result<Change>>) -> Result<bool> {
        let env = self.core.kv.env().clone();
        let show_at = self.published.map_or(env.now(), |published| published + self.rest());
        let mut changed = self.take(item).await?;
        loop {
            for _ in 0..BURST_MAX {
                let Some(item) = feed.next().now_or_never() else { break };
                changed |= self.take(item).await?;
            }
            let rest = show_at.saturating_duration_since(env.now());
            if !changed || rest.is_zero() {
                return Ok(changed);
            }
            if let Some(item) = env.timeout(rest, feed.next()).await {
                changed |= self.take(item).await?;
            }
        }
    }

    /// Takes one item; `true` if the picture may have changed.
    async fn take(&mut self, item: Option<Result<Change>>) -> Result<bool> {
        let Some(item) = item else {
            return Err(Error::new(ErrorKind::Unavailable, format!("the watch of {} has ended", self.dir)));
        };
        let now = self.core.kv.env().now();
        let changed = match item? {
            Change::Progress(to) => {
                self.table.progress(to);
                return Ok(false);
            }
            Change::Put(entry) => self.table.apply_put(entry),
            Change::Gone { key, at, cause } => self.table.apply_gone(&key, at, cause, now),
            Change::Resync { why, .. } => {
                tracing::debug!(dir = %self.dir, why, "reading a service again after a gap");
                self.read().await?;
                false
            }
        };
        self.core.wakeups.fetch_add(1, Ordering::Relaxed);
        Ok(changed)
    }

    /// How long a picture stays at least: a thousandth of a second for every thousand instances, since building one costs
    /// in proportion.
    fn rest(&self) -> Duration {
        let instances = self.core.snapshots.borrow().instances.len();
        if instances < SMALL { Duration::ZERO } else { Duration::from_micros(instances as u64).min(LONGEST_REST) }
    }

    fn publish(&mut self) {
        let snapshot = self.table.snapshot(self.stale_since);
        self.published = Some(self.core.kv.env().now());
        self.core.snapshots.send_if_modified(|current| {
            let differs = **current != snapshot;
            if differs {
                *current = Arc::new(snapshot);
            }
            differs
        });
    }

    /// The list stays as it is: silence says nothing about the instances.
    fn mark_stale(&mut self, error: Error) {
        self.core.first.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(Err(error.clone()));
            }
            is_first
        });
        tracing::debug!(dir = %self.dir, %error, "a service is shown as it was");
        if self.stale_since.is_none() {
            self.stale_since = Some(self.core.kv.env().now());
            self.publish();
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const READ_LIMIT: Duration = Duration::from_secs(30);
const SMALL: usize = 500;
/// How many changes may go into one picture before the clock is asked again.
const BURST_MAX: usize = 10_000;
const LONGEST_REST: Duration = Duration::from_millis(50);
