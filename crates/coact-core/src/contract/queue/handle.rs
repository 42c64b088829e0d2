//! The user's side of the queue contract: checks every request against the limits, and has no type parameter.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Claim, Claimed, Enqueued, Job, JobId, JobState, Moved, NewJob, PRIORITY_MAX, QueueInfo, QueueSpec, QueueStats,
    QueueStore, Settle, Settled, StreamGuarantees, Verdict,
};
use crate::{
    contract::{erased, stream::StreamLimits},
    env::Env,
    error::{Error, Result},
    guarantees::{Accepted, Needs},
    name::Queue,
};

erased! {
    ErasedQueueStore for QueueStore {
        fn put_queue(queue: &'a Queue, spec: &'a QueueSpec) -> Result<bool>;
        fn delete_queue(queue: &'a Queue) -> Result<bool>;
        fn queue(queue: &'a Queue) -> Result<Option<QueueInfo>>;
        fn queues(after: &'a str, limit: usize) -> Result<Vec<QueueInfo>>;
        fn enqueue(queue: &'a Queue, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>>;
        fn claim(claim: Claim) -> Result<Vec<Claimed>>;
        fn settle(queue: &'a Queue, settle: Vec<Settle>) -> Result<Vec<Settled>>;
        fn cancel(queue: &'a Queue, id: JobId) -> Result<Moved>;
        fn reschedule(queue: &'a Queue, id: JobId, run_at_ms: u64) -> Result<Moved>;
        fn job(queue: &'a Queue, id: JobId) -> Result<Option<Job>>;
        fn jobs(queue: &'a Queue, state: JobState, after: Option<JobId>, limit: usize) -> Result<Vec<Job>>;
        fn find(queue: &'a Queue, name: &'a str) -> Result<Option<JobId>>;
        fn redrive(queue: &'a Queue, ids: Vec<JobId>, limit: usize) -> Result<u64>;
        fn purge(queue: &'a Queue, ids: Vec<JobId>, limit: usize) -> Result<u64>;
        fn pause(queue: &'a Queue, paused: bool) -> Result<()>;
        fn stats(queue: &'a Queue) -> Result<QueueStats>;
        fn close() -> Result<()>;
    }
}

/// The shortest claim of a job.
const LEASE_MIN: Duration = Duration::from_millis(50);
/// The most jobs of one request.
const JOBS_MAX: usize = 10_000;
/// The most bytes of a job's name.
const NAME_BYTES_MAX: usize = 128;
/// The most bytes of an order key.
const ORDER_KEY_BYTES_MAX: usize = 1024;

/// A store of the queue contract, for blocks and users: cheap to clone.
#[derive(Clone)]
pub struct QueueHandle {
    store: Arc<dyn ErasedQueueStore>,
    guarantees: Arc<StreamGuarantees>,
    name: Arc<str>,
    env: Env,
    accepted: Accepted,
}

impl fmt::Debug for QueueHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueHandle({})", self.name)
    }
}

impl QueueHandle {
    /// Wraps an engine. `accepted` are the weaknesses that the user accepted by name.
    pub fn new(store: impl QueueStore, env: Env, accepted: Accepted) -> Self {
        let guarantees = Arc::new(*store.guarantees());
        let name = store.describe().into();
        Self { store: Arc::new(store), guarantees, name, env, accepted }
    }

    /// The environment that the engine runs in; blocks use the same.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// What the engine promises.
    pub fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    /// The engine's URL without secrets.
    pub fn describe(&self) -> &str {
        &self.name
    }

    /// Refuses if the engine promises less than a block needs and the user did not accept it.
    ///
    /// # Errors
    /// `Unsupported`, naming both sides.
    pub fn require(&self, needs: &Needs) -> Result<()> {
        self.guarantees.require(&self.name, needs, &self.accepted)
    }

    /// Creates a queue, or changes how it treats jobs; false if it was there.
    ///
    /// # Errors
    /// `Invalid` for no attempts at all.
    ///
    /// # Cancel safety
    /// Once polled, it may happen though the future is dropped; again is harmless.
    pub async fn put_queue(&self, queue: &Queue, spec: &QueueSpec) -> Result<bool> {
        check_attempts(spec.max_attempts)?;
        self.store.put_queue(queue, spec).await
    }

    /// Deletes a queue with all its jobs; false if there is none.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Once polled, it may be deleted though the future is dropped.
    pub async fn delete_queue(&self, queue: &Queue) -> Result<bool> {
        self.store.delete_queue(queue).await
    }

    /// One queue.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn queue(&self, queue: &Queue) -> Result<Option<QueueInfo>> {
        self.store.queue(queue).await
    }

    /// Up to `limit` queues after a name, by name.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn queues(&self, after: &str, limit: usize) -> Result<Vec<QueueInfo>> {
        self.store.queues(after, limit).await
    }

    /// Enqueues jobs, all or none; the answers come in the same order.
    ///
    /// # Errors
    /// `Invalid` past a limit, `NotFound` for an unknown queue; `Unavailable` with effect `Unknown` if the answer was
    /// lost: jobs with a name can be enqueued again.
    ///
    /// # Cancel safety
    /// Once polled, they may be enqueued though the future is dropped.
    pub async fn enqueue(&self, queue: &Queue, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        jobs.iter().try_for_each(|job| check_job(&self.guarantees.limits, job))?;
        let (bytes, most) = (jobs.iter().map(NewJob::size).sum::<usize>(), self.guarantees.limits.batch_bytes);
        if jobs.len() > JOBS_MAX || bytes > most {
            let have = jobs.len();
            return Err(Error::invalid(format!(
                "{have} jobs of {bytes} bytes are too much at once: at most {JOBS_MAX} of {most} bytes are allowed"
            )));
        }
        self.store.enqueue(queue, jobs).await
    }

    /// Claims jobs that are ready: the most urgent first, then the oldest.
    ///
    /// # Errors
    /// `Invalid` for a lease, a wait or a limit that is not allowed, `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// It may have claimed jobs, which become ready again when their lease ends.
    pub async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>> {
        self.check_lease(claim.lease)?;
        self.guarantees.limits.check_wait(claim.wait)?;
        if claim.limit == 0 || claim.limit > JOBS_MAX {
            return Err(Error::invalid(format!("{} jobs cannot be claimed at once: use 1 to {JOBS_MAX}", claim.limit)));
        }
        self.store.claim(claim).await
    }

    /// Settles claims, each for itself; the answers come in the same order.
    ///
    /// # Errors
    /// `Invalid` for a lease that is not allowed, `NotFound` for an unknown queue; `Unavailable` with effect `Unknown`
    /// if the answer was lost: a claim that is settled again is `Fenced`.
    ///
    /// # Cancel safety
    /// Once polled, they may be settled though the future is dropped.
    pub async fn settle(&self, queue: &Queue, settle: Vec<Settle>) -> Result<Vec<Settled>> {
        for settle in &settle {
            if let Verdict::Extend { lease } = settle.verdict {
                self.check_lease(lease)?;
            }
        }
        self.store.settle(queue, settle).await
    }

    /// Takes a job out of the queue that no worker has.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Once polled, it may be gone though the future is dropped.
    pub async fn cancel(&self, queue: &Queue, id: JobId) -> Result<Moved> {
        self.store.cancel(queue, id).await
    }

    /// Gives a job that no worker has another time, in milliseconds since 1970.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Once polled, it may be moved though the future is dropped.
    pub async fn reschedule(&self, queue: &Queue, id: JobId, run_at_ms: u64) -> Result<Moved> {
        self.store.reschedule(queue, id, run_at_ms).await
    }

    /// Makes a delayed job ready now.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Once polled, it may be moved though the future is dropped.
    pub async fn promote(&self, queue: &Queue, id: JobId) -> Result<Moved> {
        self.store.reschedule(queue, id, 0).await
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn job(&self, queue: &Queue, id: JobId) -> Result<Option<Job>> {
        self.store.job(queue, id).await
    }

    /// Up to `limit` jobs in a state after an id, by id.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn jobs(&self, queue: &Queue, state: JobState, after: Option<JobId>, limit: usize) -> Result<Vec<Job>> {
        self.store.jobs(queue, state, after, limit).await
    }

    /// The job of this name.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn find(&self, queue: &Queue, name: &str) -> Result<Option<JobId>> {
        self.store.find(queue, name).await
    }

    /// Makes dead jobs ready again, with all their attempts: these, or, if none are named, the oldest `limit`. Returns
    /// how many.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Once polled, they may be ready though the future is dropped.
    pub async fn redrive(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        self.store.redrive(queue, ids, limit).await
    }

    /// Removes dead jobs: these, or, if none are named, the oldest `limit`. Returns how many.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Once polled, they may be gone though the future is dropped.
    pub async fn purge(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        self.store.purge(queue, ids, limit).await
    }

    /// Stops, or starts again, claims from a queue. Claims that are out go on.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Once polled, it may happen though the future is dropped; again is harmless.
    pub async fn pause(&self, queue: &Queue, paused: bool) -> Result<()> {
        self.store.pause(queue, paused).await
    }

    /// Numbers about a queue.
    ///
    /// # Errors
    /// `NotFound` for an unknown queue.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn stats(&self, queue: &Queue) -> Result<QueueStats> {
        self.store.stats(queue).await
    }

    /// Finishes what was acknowledged and releases files and connections. Later calls on any clone fail with `Closed`.
    ///
    /// # Errors
    /// What the last write to disk answers.
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        self.store.close().await
    }

    fn check_lease(&self, lease: Duration) -> Result<()> {
        let most = self.guarantees.limits.wait_max;
        if lease < LEASE_MIN || lease > most {
            return Err(Error::invalid(format!("a claim of {lease:?} is not allowed: use {LEASE_MIN:?} to {most:?}")));
        }
        Ok(())
    }
}

fn check_attempts(attempts: u32) -> Result<()> {
    if attempts == 0 {
        return Err(Error::invalid("max_attempts 0 is not allowed: a job is tried at least once"));
    }
    Ok(())
}

/// Refuses what no engine would take.
pub(crate) fn check_job(limits: &StreamLimits, job: &NewJob) -> Result<()> {
    let too_long = |what: &str, have: usize, most: usize| {
        Err(Error::invalid(format!("{what} has {have} bytes: at most {most} are allowed")))
    };
    if job.size() > limits.record_bytes {
        return too_long("a job", job.size(), limits.record_bytes);
    }
    if job.priority > PRIORITY_MAX {
        return Err(Error::invalid(format!("priority {} is not allowed: use 0 to {PRIORITY_MAX}", job.priority)));
    }
    check_attempts(job.max_attempts.unwrap_or(1))?;
    match (&job.name, &job.order_key) {
        (Some(name), _) if name.is_empty() => Err(Error::invalid("a job's name is empty: leave it out, or say one")),
        (Some(name), _) if name.len() > NAME_BYTES_MAX => too_long("a job's name", name.len(), NAME_BYTES_MAX),
        (_, Some(key)) if key.len() > ORDER_KEY_BYTES_MAX => too_long("an order key", key.len(), ORDER_KEY_BYTES_MAX),
        _ => Ok(()),
    }
}
