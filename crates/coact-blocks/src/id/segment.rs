//! The segment: what users call, and the task that keeps it filled.

use std::{collections::VecDeque, fmt, ops::Range, sync::Arc};

use coact_core::{Error, ErrorKind, Result, contract::kv::KvHandle, name::Realm};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{NEEDS, counter::Counter};
use crate::backoff::is_retryable;

/// Issues dense numbers for table keys, from ranges of a counter in the store. Cheap to clone; clones share a range.
///
/// No number is issued twice, whatever crashes and whichever answers are lost. Numbers are **dense**: each from `start` on
/// is issued, or will be, except that a crash or a lost answer wastes up to one and a half steps (and a counter remembers
/// the rests of 256 closed segments at a time). They have no order over all users of a tag; within one segment they grow,
/// except where the rest of somebody's closed segment is issued.
///
/// Half a step before the range ends, the next one is taken in the background. After a fork open a new one in each
/// process. Dropping the last clone gives the unused numbers back in the background; [`close`](Self::close) does so and
/// reports.
#[derive(Clone)]
pub struct Segment(Arc<Handle>);

/// How a segment is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentOptions {
    /// The realm of the counter.
    pub realm: Realm,
    /// Which counter: a name, for example of the table.
    pub tag: String,
    /// How many numbers are taken at once: 1 to 1,000,000. Every opener chooses its own; a transaction is one for each step.
    pub step: u64,
    /// The first number, if the counter is new.
    pub start: u64,
}

impl SegmentOptions {
    /// The counter of this tag in the realm `main`: 1,000 numbers at once, from 1 on.
    pub fn new(tag: impl Into<String>) -> Self {
        Self { realm: Realm::default(), tag: tag.into(), step: 1_000, start: 1 }
    }
}

const STEP_MAX: u64 = 1_000_000;

impl Segment {
    /// Takes a first range and starts to keep the segment filled.
    ///
    /// # Errors
    /// `Unsupported` if the engine promises less than unique ids [need](NEEDS); `Invalid` for a tag that is no name or an
    /// option out of bounds; `Exhausted` if the counter has reached its end; `Corrupt` if its entry is not what the id block
    /// wrote; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// A range taken by a dropped future is wasted.
    pub async fn open(kv: &KvHandle, options: SegmentOptions) -> Result<Self> {
        kv.require(&NEEDS)?;
        if !(1..=STEP_MAX).contains(&options.step) {
            let message = format!("a step of {} is not allowed: use 1 to {STEP_MAX}", options.step);
            return Err(Error::invalid(message));
        }
        let mut counter = Counter::new(kv, &options.realm, &options.tag, options.step, options.start)?;
        let first = counter.take().await?;
        let inner = Arc::new(Inner {
            tag: options.tag,
            step: options.step,
            unused: Mutex::new(VecDeque::from([first])),
            wanted: Notify::new(),
            status: watch::Sender::new(Status::Filled),
            stop: watch::Sender::new(false),
            closed: watch::Sender::new(None),
        });
        kv.env().spawn(keep_filled(inner.clone(), counter));
        Ok(Self(Arc::new(Handle(inner))))
    }

    /// The next number. Waits for the store only if the next range has not come yet.
    ///
    /// # Errors
    /// `Unavailable` if the store did not answer; `Exhausted` after 2^63 − 1; `Corrupt` if the counter's entry is not what
    /// the id block wrote; `Closed` after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Safe: no number is lost.
    pub async fn next(&self) -> Result<u64> {
        self.inner().take(1).await.map(|run| run.start)
    }

    /// The next `count` numbers.
    ///
    /// # Errors
    /// As [`next`](Self::next); no number is lost.
    ///
    /// # Cancel safety
    /// Safe: no number is lost.
    pub async fn next_n(&self, count: usize) -> Result<Vec<u64>> {
        let mut taken = Taken { inner: self.inner(), runs: Vec::new() };
        let mut left = count as u64;
        while left > 0 {
            let run = self.inner().take(left).await?;
            left -= run.end - run.start;
            taken.runs.push(run);
        }
        Ok(std::mem::take(&mut taken.runs).into_iter().flatten().collect())
    }

    /// The tag of its counter.
    pub fn tag(&self) -> &str {
        &self.inner().tag
    }

    /// Stops issuing and gives the unused numbers back.
    ///
    /// # Errors
    /// `Unavailable` if the store could not be told; the numbers are then wasted.
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        let mut closed = self.inner().closed.subscribe();
        self.inner().stop.send_replace(true);
        match closed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(self.inner().closed_error()),
        }
    }

    fn inner(&self) -> &Inner {
        &self.0.0
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({}, step {})", self.tag(), self.inner().step)
    }
}

/// What users hold; the background task holds the [`Inner`], so that it does not keep the segment open.
struct Handle(Arc<Inner>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop.send_replace(true);
    }
}

struct Inner {
    tag: String,
    step: u64,
    /// What is ours and not issued.
    unused: Mutex<VecDeque<Range<u64>>>,
    /// Half of the range is used.
    wanted: Notify,
    status: watch::Sender<Status>,
    stop: watch::Sender<bool>,
    closed: watch::Sender<Option<Result<()>>>,
}

/// How the last attempt to take a range went.
enum Status {
    Filled,
    /// It is tried again.
    Failed(Error),
    /// It is not tried again.
    Ended(Error),
}

impl Inner {
    async fn take(&self, count: u64) -> Result<Range<u64>> {
        // Listen first, or a range that comes in between would go unheard.
        let mut status = self.status.subscribe();
        let mut waited = false;
        loop {
            if let Some(run) = self.try_take(count) {
                return Ok(run);
            }
            match &*status.borrow_and_update() {
                Status::Ended(error) => return Err(error.clone()),
                Status::Failed(error) if waited => return Err(error.clone()),
                Status::Filled | Status::Failed(_) => {}
            }
            if status.changed().await.is_err() {
                return Err(self.closed_error());
            }
            waited = true;
        }
    }

    fn try_take(&self, count: u64) -> Option<Range<u64>> {
        let mut unused = self.unused.lock();
        let run = unused.front_mut().map(|front| {
            let run = front.start..front.end.min(front.start + count);
            front.start = run.end;
            run
        });
        unused.retain(|range| !range.is_empty());
        if self.is_low(&unused) {
            self.wanted.notify_one();
        }
        run
    }

    fn is_low(&self, unused: &VecDeque<Range<u64>>) -> bool {
        unused.iter().map(|range| range.end - range.start).sum::<u64>() * 2 <= self.step
    }

    /// Keeps the next range at hand until that fails for good, and says why.
    async fn refill(&self, counter: &mut Counter, stop: &mut watch::Receiver<bool>) -> Error {
        let mut backoff = counter.backoff();
        loop {
            if !self.is_low(&self.unused.lock()) {
                tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => return self.closed_error(),
                    () = self.wanted.notified() => continue,
                }
            }
            // A request on its way is not dropped at the end: its range would be lost.
            match counter.take().await {
                Ok(range) => {
                    self.unused.lock().push_back(range);
                    self.status.send_replace(Status::Filled);
                    backoff.reset();
                }
                Err(error) if is_retryable(&error) => {
                    self.status.send_replace(Status::Failed(error));
                    tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => return self.closed_error(),
                        () = backoff.pause() => {}
                    }
                }
                Err(error) => return error,
            }
            if *stop.borrow() {
                return self.closed_error();
            }
        }
    }

    fn closed_error(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("segment {} is closed", self.tag))
    }
}

/// Numbers on their way to a caller; who drops them puts them back.
struct Taken<'a> {
    inner: &'a Inner,
    runs: Vec<Range<u64>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut unused = self.inner.unused.lock();
        self.runs.drain(..).rev().for_each(|run| unused.push_front(run));
    }
}

/// The segment's task.
async fn keep_filled(inner: Arc<Inner>, mut counter: Counter) {
    let mut stop = inner.stop.subscribe();
    let why = inner.refill(&mut counter, &mut stop).await;
    inner.status.send_replace(Status::Ended(why));
    let _ = stop.wait_for(|stop| *stop).await;
    let unused: Vec<_> = inner.unused.lock().drain(..).collect();
    inner.status.send_replace(Status::Ended(inner.closed_error()));
    let result = counter.give_back(&unused).await;
    if let Err(error) = &result {
        tracing::debug!(tag = inner.tag, %error, "unused numbers of a segment are wasted");
    }
    inner.closed.send_replace(Some(result));
}
