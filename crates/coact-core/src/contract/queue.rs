//! Queues: jobs that one worker at a time claims, works on under a lease, and settles.
//!
//! **Engine authors** implement [`QueueStore`] with plain `async fn`. **Block authors** hold a [`QueueHandle`].
//!
//! A job is delivered at least once. A claim has a [`Token`]: whoever settles with a token that is over — because its
//! lease ended, or somebody else claimed the job since — is [`Settled::Fenced`], never told that all went well.

mod handle;

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;

pub use handle::QueueHandle;
pub(crate) use handle::check_job;

use crate::{error::Result, name::Queue};

pub use super::stream::StreamGuarantees;

/// The name of a job, given by the engine; it grows with each job of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing token of a claim: it grows with each claim in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The most urgent priority.
pub const PRIORITY_MAX: u8 = 9;

/// What holds for all jobs of a queue that do not say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// How often a job is claimed before it is dead, from 1.
    pub max_attempts: u32,
    /// How long dead jobs are kept.
    pub keep_dead: Duration,
}

impl Default for QueueSpec {
    /// Sixteen attempts; dead jobs are kept for thirty days.
    fn default() -> Self {
        Self { max_attempts: 16, keep_dead: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// A queue as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Its name.
    pub name: Queue,
    /// How it treats jobs.
    pub spec: QueueSpec,
    /// Whether nothing is claimed from it for now.
    pub paused: bool,
}

/// A job to enqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewJob {
    /// What to do.
    pub body: Bytes,
    /// Names and values beside it, in order.
    pub headers: Vec<(String, Bytes)>,
    /// An idempotency key: as long as a job of this name is in the queue, dead ones included, another is not made.
    pub name: Option<String>,
    /// From 0 to [`PRIORITY_MAX`], which comes first; within one priority, in the order of arrival.
    pub priority: u8,
    /// Not before this time, in milliseconds since 1970.
    pub run_at_ms: Option<u64>,
    /// Jobs of one order key are done one after the other, in the order of arrival.
    pub order_key: Option<Bytes>,
    /// How often it is claimed before it is dead, instead of what the queue says.
    pub max_attempts: Option<u32>,
    /// Not claimed any more from this time on, in milliseconds since 1970: it is dead then.
    pub expires_ms: Option<u64>,
}

impl NewJob {
    /// A job with this body.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let names = self.name.as_ref().map_or(0, String::len) + self.order_key.as_ref().map_or(0, Bytes::len);
        self.body.len() + headers + names + 32
    }
}

/// What became of a job to enqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It is in the queue.
    Created(JobId),
    /// A job of its name was there.
    Exists(JobId),
}

impl Enqueued {
    /// The job, new or old.
    pub fn id(self) -> JobId {
        match self {
            Self::Created(id) | Self::Exists(id) => id,
        }
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It can be claimed.
    Ready,
    /// Its time has not come.
    Delayed,
    /// An earlier job of its order key is not done.
    Blocked,
    /// A worker has it.
    Claimed,
    /// It failed too often, or expired.
    Dead,
}

impl JobState {
    /// Every state.
    pub const ALL: [JobState; 5] = [Self::Ready, Self::Delayed, Self::Blocked, Self::Claimed, Self::Dead];

    /// The stable name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Delayed => "delayed",
            Self::Blocked => "blocked",
            Self::Claimed => "claimed",
            Self::Dead => "dead",
        }
    }
}

/// A job as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name, given by the engine.
    pub id: JobId,
    /// What was enqueued, with what the queue filled in.
    pub job: NewJob,
    /// Where it is.
    pub state: JobState,
    /// How often it was claimed.
    pub attempts: u32,
    /// When it was enqueued, in milliseconds since 1970.
    pub enqueued_ms: u64,
    /// Who claimed it last.
    pub worker: Option<String>,
    /// What the last failure said, or why it is dead.
    pub error: Option<String>,
    /// When it died, in milliseconds since 1970.
    pub died_ms: Option<u64>,
}

/// What a worker asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// From which queue.
    pub queue: Queue,
    /// Who asks: for people who look at the queue.
    pub worker: String,
    /// At most so many jobs.
    pub limit: usize,
    /// How long each job is the worker's, unless it extends the claim.
    pub lease: Duration,
    /// How long to wait for a job if there is none.
    pub wait: Duration,
}

/// A job that is the worker's until its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its name.
    pub id: JobId,
    /// What proves the claim.
    pub token: Token,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// After how many attempts it is dead.
    pub max_attempts: u32,
    /// How long the claim lives, from when it was asked for.
    pub lease: Duration,
    /// When it was enqueued, in milliseconds since 1970.
    pub enqueued_ms: u64,
    /// What to do.
    pub job: NewJob,
}

impl Claimed {
    /// What names this claim when it is settled.
    pub fn receipt(&self) -> Receipt {
        Receipt { id: self.id, token: self.token }
    }
}

/// Names one claim of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which job.
    pub id: JobId,
    /// Which claim of it.
    pub token: Token,
}

/// What a worker says about a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// Which claim.
    pub receipt: Receipt,
    /// What it says.
    pub verdict: Verdict,
}

/// How a claim ends, or goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The job is done, and gone.
    Ack,
    /// It failed: it is ready again after the delay, or dead if that was its last attempt.
    Nack {
        /// How long it rests.
        delay: Duration,
        /// Why; at most 1 KiB of it is kept.
        error: String,
    },
    /// It failed for good: it is dead now.
    Kill {
        /// Why; at most 1 KiB of it is kept.
        error: String,
    },
    /// It was not tried: it is ready again at once, and the attempt does not count.
    Release,
    /// The worker needs longer: the claim lives for so long from now.
    Extend {
        /// How long.
        lease: Duration,
    },
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fenced claim was not settled"]
pub enum Settled {
    /// As the worker said.
    Done,
    /// That was its last attempt, or it was killed: it is with the dead.
    Dead,
    /// The claim was over: nothing was changed, and the job may be another worker's.
    Fenced,
}

/// What became of a request about a job that no worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// As asked.
    Done,
    /// A worker has it; nothing was changed.
    InFlight,
    /// There is no such job, or it is dead.
    NotFound,
}

/// Numbers about a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// How many can be claimed.
    pub ready: u64,
    /// How many wait for their time.
    pub delayed: u64,
    /// How many wait for an earlier job of their order key.
    pub blocked: u64,
    /// How many workers have.
    pub claimed: u64,
    /// How many are dead.
    pub dead: u64,
    /// When the longest waiting one that can be claimed became so, in milliseconds since 1970.
    pub oldest_ready_ms: Option<u64>,
    /// When the next delayed one is due, in milliseconds since 1970.
    pub next_due_ms: Option<u64>,
    /// How many were ever enqueued.
    pub enqueued: u64,
    /// How many were ever done.
    pub done: u64,
    /// How often one was ever claimed.
    pub claims: u64,
}

/// The queue contract, for engine authors. Requests arrive validated by [`QueueHandle`].
///
/// Cancelling any future leaves the request's effect unknown unless the method says otherwise. An unknown queue is
/// `NotFound`.
pub trait QueueStore: Send + Sync + 'static {
    /// What this engine promises, as probed at open.
    fn guarantees(&self) -> &StreamGuarantees;

    /// A name for messages: the URL without secrets.
    fn describe(&self) -> String;

    /// Creates a queue, or changes how it treats jobs; false if it was there.
    fn put_queue(&self, queue: &Queue, spec: &QueueSpec) -> impl Future<Output = Result<bool>> + Send;

    /// Deletes a queue with all its jobs; false if there is none.
    fn delete_queue(&self, queue: &Queue) -> impl Future<Output = Result<bool>> + Send;

    /// One queue.
    fn queue(&self, queue: &Queue) -> impl Future<Output = Result<Option<QueueInfo>>> + Send;

    /// Up to `limit` queues after a name, by name.
    fn queues(&self, after: &str, limit: usize) -> impl Future<Output = Result<Vec<QueueInfo>>> + Send;

    /// Enqueues jobs, all or none; the answers come in the same order.
    fn enqueue(&self, queue: &Queue, jobs: Vec<NewJob>) -> impl Future<Output = Result<Vec<Enqueued>>> + Send;

    /// Claims jobs that are ready: the most urgent first, then the oldest.
    ///
    /// Whoever drops the future may have claimed jobs, which become ready again when their lease ends.
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<Vec<Claimed>>> + Send;

    /// Settles claims, each for itself; the answers come in the same order.
    fn settle(&self, queue: &Queue, settle: Vec<Settle>) -> impl Future<Output = Result<Vec<Settled>>> + Send;

    /// Takes a job out of the queue that no worker has.
    fn cancel(&self, queue: &Queue, id: JobId) -> impl Future<Output = Result<Moved>> + Send;

    /// Gives a job that no worker has another time; one that has passed makes it ready.
    fn reschedule(&self, queue: &Queue, id: JobId, run_at_ms: u64) -> impl Future<Output = Result<Moved>> + Send;

    /// One job, by the engine's name for it.
    fn job(&self, queue: &Queue, id: JobId) -> impl Future<Output = Result<Option<Job>>> + Send;

    /// Up to `limit` jobs in a state after an id, by id.
    fn jobs(
        &self,
        queue: &Queue,
        state: JobState,
        after: Option<JobId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Job>>> + Send;

    /// The job of this name.
    fn find(&self, queue: &Queue, name: &str) -> impl Future<Output = Result<Option<JobId>>> + Send;

    /// Makes dead jobs ready again, with all their attempts: these, or the oldest `limit`. Returns how many.
    fn redrive(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> impl Future<Output = Result<u64>> + Send;

    /// Removes dead jobs: these, or the oldest `limit`. Returns how many.
    fn purge(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> impl Future<Output = Result<u64>> + Send;

    /// Stops, or starts again, claims from a queue. Claims that are out go on.
    fn pause(&self, queue: &Queue, paused: bool) -> impl Future<Output = Result<()>> + Send;

    /// Numbers about a queue.
    fn stats(&self, queue: &Queue) -> impl Future<Output = Result<QueueStats>> + Send;

    /// Finishes what was acknowledged and releases files and connections. Later calls fail with `Closed`.
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
}
