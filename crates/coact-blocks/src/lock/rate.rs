//! The rate limiter: permits that the store gives back by itself when their time has passed.

use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    Error, ErrorKind, Result, Retry,
    contract::kv::{Check, Entry, Found, Lease, Order, Read, Txn, TxnOutcome, Write},
    name::{Dir, Key},
};
use parking_lot::Mutex as LocalMutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{
    Mutex, NEEDS,
    request::{answer, look, new_operation, parse, wait_gone},
};
use crate::{Session, backoff::is_retryable, json::to_bytes, session::Core};

/// Gives out at most so many permits in **any** window of a length, over all processes. Cheap to clone; clones share
/// chunks and queue in the order of arrival.
///
/// Permits are taken from the store in chunks. A chunk is an entry on a lease of its own that nobody renews; its permits are
/// given out for a tenth of `per` at most, on the monotonic clock and counted from before the lease was asked for, and the
/// lease lives longer than that by `per`. So when the store gives the chunk to somebody else, `per` has passed since its
/// last permit. No clocks are compared; what is relied on is that a store does not end a lease early, and that two clocks
/// measure the same length to one percent of it.
///
/// The price: after a burst, the same permits come back after 1.1 × `per` (etcd rounds that up to whole seconds), and
/// permits that a process took and did not use in time are lost for that long. The longer `per` and the smaller the chunk,
/// the closer to the limit.
///
/// In the store, `rate/<name>` holds the agreed limit and `rate-chunk/<name>` the chunks that are out; processes queue for
/// the next one at the lock `rate/<name>`, and only the first of them waits for the oldest chunk to end.
#[derive(Clone)]
pub struct RateLimiter(Arc<Inner>);

/// What a rate limiter allows. Everybody who uses the name must choose the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateOptions {
    /// The most permits in any window of length `per`: a multiple of `chunk`.
    pub permits: u64,
    /// The length of the window: no shorter than the shortest lease of the engine.
    pub per: Duration,
    /// How many permits are taken from the store at once, and the most that one call may ask for. At most 1,000 chunks make
    /// up `permits`. A chunk costs about five round trips.
    pub chunk: u64,
}

const CHUNKS_MAX: u64 = 1_000;

impl RateLimiter {
    /// The rate limiter of this name in the realm `main`, which is created if there is none.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir or options out of bounds; `Conflict` if the limiter has other options;
    /// `Unsupported` if the engine promises less than a lock [needs](NEEDS); `Fenced` or `Closed` if the session is over.
    ///
    /// # Cancel safety
    /// The limiter may have been created.
    pub async fn open(session: &Session, name: &str, options: RateOptions) -> Result<Self> {
        session.kv().require(&NEEDS)?;
        let lease = check_options(session, &options)?;
        let dir = Dir::new(&Default::default(), &format!("rate/{name}"))?;
        let inner = Arc::new(Inner {
            chunks: Dir::new(dir.realm(), &format!("rate-chunk/{name}"))?,
            limit_key: dir.key("limit")?,
            turn: Mutex::new(session, &format!("rate/{name}"))?,
            session: session.clone(),
            name: name.to_owned(),
            options,
            lease,
            queue: Arc::default(),
            pool: LocalMutex::default(),
        });
        session.core().unless_lost(inner.agree()).await?;
        Ok(Self(inner))
    }

    /// Waits for permits, in the order of arrival in this process and of chunks over processes.
    ///
    /// # Errors
    /// `Invalid` for more permits than a chunk has; `Fenced` or `Closed` if the session is over; what the engine answers, if
    /// it is final.
    ///
    /// # Cancel safety
    /// Safe: no permit is taken. A chunk that was being taken is there for the next call.
    pub async fn acquire(&self, permits: u64) -> Result<()> {
        self.0.check(permits)?;
        // Boxed: with the lock's acquire in it, it is large.
        self.core().unless_lost(Box::pin(self.0.acquire(permits))).await
    }

    /// Waits for permits, but not longer than `limit`.
    ///
    /// # Errors
    /// `Conflict` if there were not enough in time; otherwise as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_within(&self, permits: u64, limit: Duration) -> Result<()> {
        match self.core().env().timeout(limit, self.acquire(permits)).await {
            Some(result) => result,
            None => Err(Error::new(ErrorKind::Conflict, format!("rate limit {} has no permit left", self.0.name))
                .with("waited", format!("{limit:?}"))
                .with_retry(Retry::After(self.0.options.per))),
        }
    }

    /// Takes permits if there are enough and nobody queues for them; `false` otherwise.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self, permits: u64) -> Result<bool> {
        self.0.check(permits)?;
        self.core().unless_lost(Box::pin(self.0.try_acquire(permits))).await
    }

    fn core(&self) -> &Arc<Core> {
        self.0.session.core()
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateLimiter({}, {})", self.0.name, self.0.options)
    }
}

impl fmt::Display for RateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} permits per {:?} in chunks of {}", self.permits, self.per, self.chunk)
    }
}

struct Inner {
    session: Session,
    name: String,
    options: RateOptions,
    /// How long a chunk is out.
    lease: Duration,
    limit_key: Key,
    chunks: Dir,
    /// Whose turn it is among processes.
    turn: Mutex,
    /// Whose turn it is in this one.
    queue: Arc<tokio::sync::Mutex<()>>,
    pool: LocalMutex<Vec<Chunk>>,
}

/// Permits of ours.
#[derive(Debug)]
struct Chunk {
    left: u64,
    /// When to stop giving them out.
    until: Instant,
}

impl Inner {
    /// Writes our options, or compares them with those that are there.
    async fn agree(&self) -> Result<()> {
        let put = Write::Put { key: self.limit_key.clone(), value: to_bytes(&self.options)?, lease: None };
        let txn = Txn { checks: vec![Check::Absent(self.limit_key.clone())], reads: Vec::new(), writes: vec![put] };
        match answer(self.core(), self.limit_key.realm(), &txn).await?.outcome {
            TxnOutcome::Refused { found: Some(found), .. } => self.ensure_same(&found),
            _ => Ok(()),
        }
    }

    fn ensure_same(&self, found: &Entry) -> Result<()> {
        let theirs: RateOptions = parse(found)?;
        if theirs == self.options {
            return Ok(());
        }
        let message =
            format!("rate limit {} is {theirs}, not {}: everybody must choose the same", self.name, self.options);
        Err(Error::new(ErrorKind::Conflict, message))
    }

    fn check(&self, permits: u64) -> Result<()> {
        let most = self.options.chunk;
        if (1..=most).contains(&permits) {
            return Ok(());
        }
        Err(Error::invalid(format!("{permits} permits at once are not allowed: use 1 to {most}, the size of a chunk")))
    }

    async fn acquire(self: &Arc<Self>, permits: u64) -> Result<()> {
        let mut place = self.queue.clone().lock_owned().await;
        loop {
            if self.take_from_pool(permits) {
                return Ok(());
            }
            let turn = self.turn.acquire().await?;
            let slot = self.wait_for_slot().await?;
            place = self.take_chunk(slot, place).await?;
            turn.release().await?;
        }
    }

    async fn try_acquire(self: &Arc<Self>, permits: u64) -> Result<bool> {
        let Ok(place) = self.queue.clone().try_lock_owned() else { return Ok(false) };
        if self.take_from_pool(permits) {
            return Ok(true);
        }
        let Some(turn) = self.turn.try_acquire().await? else { return Ok(false) };
        let (free, _) = self.slots().await?;
        let taken = match free {
            Some(slot) => {
                let _place = self.take_chunk(slot, place).await?;
                self.take_from_pool(permits)
            }
            None => false,
        };
        turn.release().await?;
        Ok(taken)
    }

    fn take_from_pool(&self, permits: u64) -> bool {
        let now = self.core().env().now();
        let mut pool = self.pool.lock();
        pool.retain(|chunk| chunk.left > 0 && now < chunk.until);
        if pool.iter().map(|chunk| chunk.left).sum::<u64>() < permits {
            return false;
        }
        let mut missing = permits;
        for chunk in pool.iter_mut() {
            let part = chunk.left.min(missing);
            chunk.left -= part;
            missing -= part;
        }
        true
    }

    /// Waits until some slot is free. We alone wait here: it is our turn.
    async fn wait_for_slot(&self) -> Result<Key> {
        let mut backoff = self.core().backoff();
        loop {
            match self.slots().await? {
                (Some(free), _) => return Ok(free),
                (None, Some(oldest)) => wait_gone(self.core(), &oldest.key, oldest.created, &mut backoff).await?,
                (None, None) => backoff.pause().await,
            }
        }
    }

    /// The first free slot, and the chunk that was taken first.
    async fn slots(&self) -> Result<(Option<Key>, Option<Entry>)> {
        let found = look(self.core(), self.limit_key.realm(), vec![Read::Get(self.limit_key.clone())]).await?;
        match found.first().and_then(Found::entry) {
            Some(limit) => self.ensure_same(limit)?,
            None => self.agree().await?,
        }
        let entries = self.chunks_out().await?;
        let taken: BTreeSet<&str> = entries.iter().map(|entry| entry.key.name()).collect();
        let slots = self.options.permits / self.options.chunk;
        let free = (0..slots).map(slot_name).find(|name| !taken.contains(name.as_str()));
        let free = free.map(|name| self.chunks.key(&name)).transpose()?;
        Ok((free, entries.into_iter().next()))
    }

    async fn chunks_out(&self) -> Result<Vec<Entry>> {
        let mut backoff = self.core().backoff();
        loop {
            let order = Order::Created { after: Default::default() };
            match self.core().kv().list(&self.chunks, order, CHUNKS_MAX as usize).await {
                Ok(page) => return Ok(page.entries),
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a chunk into the pool, in a task: a caller that is dropped meanwhile leaves it to the next, whom the task keeps
    /// waiting. Somebody may have been faster; look at the pool.
    async fn take_chunk(self: &Arc<Self>, slot: Key, place: OwnedMutexGuard<()>) -> Result<OwnedMutexGuard<()>> {
        let (done, answer) = oneshot::channel();
        let inner = self.clone();
        self.core().env().spawn(async move {
            let result = inner.core().unless_lost(inner.try_take_chunk(&slot)).await.map(|chunk| {
                inner.pool.lock().extend(chunk);
                place
            });
            // Nobody listens if the caller was dropped.
            let _ = done.send(result);
        });
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Closed, format!("rate limit {}: the process is ending", self.name)))
        })
    }

    /// `None` if somebody else has the slot, or if the answers took so long that the permits are too old to give out.
    async fn try_take_chunk(&self, slot: &Key) -> Result<Option<Chunk>> {
        let (sent, lease) = self.grant_lease().await?;
        let until = last_use(sent, lease.ttl, self.options.per);
        let value = to_bytes(&new_operation(self.core().env()))?;
        let put = Write::Put { key: slot.clone(), value: value.clone(), lease: Some(lease.id) };
        let txn = Txn { checks: vec![Check::Absent(slot.clone())], reads: Vec::new(), writes: vec![put] };
        let ours = match answer(self.core(), slot.realm(), &txn).await {
            Ok(answer) => match answer.outcome {
                TxnOutcome::Committed { .. } => true,
                // An earlier try took effect though its answer was lost.
                TxnOutcome::Refused { found, .. } => found.is_some_and(|found| found.value == value),
            },
            // The chunk's own lease has ended, not the session's.
            Err(error) if error.kind() == ErrorKind::Fenced && self.session.is_alive() => false,
            Err(error) => return Err(error),
        };
        if !ours {
            // A late try of ours must not take a slot that nobody uses.
            let kv = self.core().kv().clone();
            self.core().defer(async move { drop(kv.lease_revoke(lease.id).await) });
        }
        Ok(ours.then_some(Chunk { left: self.options.chunk, until }))
    }

    /// Grants a lease, and says when it was asked for.
    async fn grant_lease(&self) -> Result<(Instant, Lease)> {
        let mut backoff = self.core().backoff();
        loop {
            let sent = self.core().env().now();
            match self.core().kv().lease_grant(self.lease).await {
                Ok(lease) => return Ok((sent, lease)),
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => return Err(error),
            }
        }
    }

    fn core(&self) -> &Arc<Core> {
        self.session.core()
    }
}

fn slot_name(number: u64) -> String {
    format!("{number:03}")
}

/// When to stop giving out permits, such that a whole window passes until the lease can end; a hundredth of it for clocks
/// that run at different speeds.
fn last_use(sent: Instant, ttl: Duration, per: Duration) -> Instant {
    sent + ttl.saturating_sub(per + ttl / 100)
}

/// Checks the options and returns how long a chunk is out.
fn check_options(session: &Session, options: &RateOptions) -> Result<Duration> {
    let RateOptions { permits, per, chunk } = *options;
    let limits = &session.kv().guarantees().limits;
    let lease = per + per / 10;
    if per < limits.ttl_min || lease > limits.ttl_max {
        let most = limits.ttl_max * 10 / 11;
        let message = format!("a rate per {per:?} is not allowed: use {:?} to {most:?}", limits.ttl_min);
        return Err(Error::invalid(message));
    }
    if chunk == 0 || permits == 0 || !permits.is_multiple_of(chunk) {
        let message = format!("{permits} permits in chunks of {chunk} are not allowed: use a multiple of the chunk");
        return Err(Error::invalid(message));
    }
    if permits / chunk > CHUNKS_MAX {
        let message = format!(
            "{permits} permits in chunks of {chunk} are not allowed: use chunks of {} or more",
            permits.div_ceil(CHUNKS_MAX)
        );
        return Err(Error::invalid(message));
    }
    Ok(lease)
}
