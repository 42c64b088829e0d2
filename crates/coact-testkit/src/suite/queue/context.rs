//! What a case works with, and short forms of what cases say often.

use std::{ops::Deref, time::Duration};

use coact_core::{
    Result,
    contract::queue::{
        Claim, Claimed, Enqueued, Job, JobId, JobState, NewJob, QueueHandle, QueueSpec, QueueStats, Receipt, Settle,
        Settled, Verdict,
    },
    name::Queue,
};

pub(super) use crate::suite::context::assert_kind;
use crate::{
    bed::PATIENCE,
    suite::{Basis, Contract},
};

/// A lease that does not end during a case.
pub(super) const LONG: Duration = Duration::from_secs(600);
/// A lease that a case can wait for to end.
pub(super) const SHORT: Duration = Duration::from_millis(300);

/// A store with queues, and a queue that nobody else uses there.
#[derive(Debug)]
pub struct Context {
    basis: Basis,
    /// A client that other cases use too.
    pub queues: QueueHandle,
    /// The name of the case's queue, whether it is there or not.
    pub queue: Queue,
}

impl Contract for Context {
    fn of(basis: Basis) -> Result<Self> {
        Ok(Self { queues: basis.store.queues()?.clone(), queue: Queue::new(&basis.unique)?, basis })
    }
}

impl Deref for Context {
    type Target = Basis;

    fn deref(&self) -> &Basis {
        &self.basis
    }
}

impl Context {
    /// A new client of the same store.
    pub async fn another_client(&self) -> QueueHandle {
        self.another_store().await.queues().expect("it has queues").clone()
    }

    /// Ends the store hard, starts it again, and opens a new client.
    pub async fn restart(&self) -> QueueHandle {
        self.restarted().await.queues().expect("it has queues").clone()
    }

    /// Creates the case's queue.
    pub async fn create(&self) {
        self.create_with(QueueSpec::default()).await;
    }

    /// Creates the case's queue, whose jobs are tried so often.
    pub async fn create_with_attempts(&self, max_attempts: u32) {
        self.create_with(QueueSpec { max_attempts, ..QueueSpec::default() }).await;
    }

    /// Creates the case's queue.
    pub async fn create_with(&self, spec: QueueSpec) {
        assert!(self.queues.put_queue(&self.queue, &spec).await.expect("a queue is created"), "it was there");
    }

    /// Enqueues jobs.
    pub async fn enqueue(&self, jobs: Vec<NewJob>) -> Vec<Enqueued> {
        self.queues.enqueue(&self.queue, jobs).await.expect("they are enqueued")
    }

    /// Enqueues one job that is new.
    pub async fn add(&self, job: NewJob) -> JobId {
        match self.enqueue(vec![job]).await[..] {
            [Enqueued::Created(id)] => id,
            ref other => panic!("expected one new job, got {other:?}"),
        }
    }

    /// Enqueues one job with this body.
    pub async fn add_body(&self, body: &str) -> JobId {
        self.add(job(body)).await
    }

    /// A claim of one job for long, without waiting.
    pub fn asks(&self) -> Claim {
        Claim { queue: self.queue.clone(), worker: "w".to_owned(), limit: 1, lease: LONG, wait: Duration::ZERO }
    }

    /// Claims.
    pub async fn claim(&self, claim: Claim) -> Vec<Claimed> {
        let limit = claim.limit;
        let claimed = self.queues.claim(claim).await.expect("a claim answers");
        assert!(claimed.len() <= limit, "{} jobs claimed, at most {limit} were asked for", claimed.len());
        claimed
    }

    /// Claims one job, for long, if one is ready.
    pub async fn claim_one(&self) -> Option<Claimed> {
        self.claim(self.asks()).await.pop()
    }

    /// Claims one job that is ready, for long.
    pub async fn take(&self) -> Claimed {
        self.claim_one().await.expect("a job is ready")
    }

    /// Claims one job, for long, as soon as one is ready.
    pub async fn await_one(&self) -> Claimed {
        let claimed = self.within("a claim", self.waiting_claim()).await;
        claimed.into_iter().next().expect("a job is ready in time")
    }

    /// Begins to wait for a job, in a task of its own.
    pub fn waiting_claim(&self) -> impl Future<Output = Vec<Claimed>> + use<> {
        let (queues, claim) = (self.queues.clone(), Claim { wait: PATIENCE * 2, ..self.asks() });
        self.spawn(async move { queues.claim(claim).await.expect("a claim answers") })
    }

    /// The bodies of what is ready, in the order of their claims; they stay claimed.
    pub async fn claim_all(&self) -> Vec<String> {
        let claimed = self.claim(Claim { limit: 1000, ..self.asks() }).await;
        claimed.iter().map(body).collect()
    }

    /// Settles one claim.
    pub async fn settle(&self, receipt: Receipt, verdict: Verdict) -> Settled {
        settle_with(&self.queues, &self.queue, receipt, verdict).await
    }

    /// Acknowledges a claim that is not over.
    pub async fn ack(&self, claimed: &Claimed) {
        assert_eq!(self.settle(claimed.receipt(), Verdict::Ack).await, Settled::Done);
    }

    /// One job that is there.
    pub async fn job(&self, id: JobId) -> Job {
        self.find(id).await.unwrap_or_else(|| panic!("job {id} is there"))
    }

    /// One job.
    pub async fn find(&self, id: JobId) -> Option<Job> {
        self.queues.job(&self.queue, id).await.expect("a job is answered")
    }

    /// The jobs in a state, by id.
    pub async fn in_state(&self, state: JobState) -> Vec<JobId> {
        let jobs = self.queues.jobs(&self.queue, state, None, 1000).await.expect("jobs are listed");
        assert!(jobs.iter().all(|job| job.state == state), "{jobs:?}");
        jobs.into_iter().map(|job| job.id).collect()
    }

    /// Numbers.
    pub async fn stats(&self) -> QueueStats {
        self.queues.stats(&self.queue).await.expect("stats are answered")
    }

    /// Waits until a job is in a state.
    pub async fn until_state(&self, id: JobId, state: JobState) {
        self.until("the job gets there", async || self.find(id).await.is_some_and(|job| job.state == state)).await;
    }

    /// The wall clock, this long from now.
    pub fn in_ms(&self, ms: u64) -> u64 {
        self.env.wall_ms() + ms
    }

    /// The wall clock, so far ahead that no case lasts until then.
    pub fn far(&self) -> u64 {
        self.in_ms(24 * 3600 * 1000)
    }
}

/// Settles one claim.
pub(super) async fn settle_with(queues: &QueueHandle, queue: &Queue, receipt: Receipt, verdict: Verdict) -> Settled {
    let settled = queues.settle(queue, vec![Settle { receipt, verdict }]).await.expect("a settlement is answered");
    assert_eq!(settled.len(), 1);
    settled[0]
}

/// A job with this body.
pub(super) fn job(body: &str) -> NewJob {
    NewJob::new(body.to_owned())
}

/// A job of an order key.
pub(super) fn keyed(body: &str, key: &str) -> NewJob {
    NewJob { order_key: Some(key.to_owned().into()), ..job(body) }
}

/// A failure that may be tried again at once.
pub(super) fn nack(error: &str) -> Verdict {
    nack_after(Duration::ZERO, error)
}

/// A failure that may be tried again after a delay.
pub(super) fn nack_after(delay: Duration, error: &str) -> Verdict {
    Verdict::Nack { delay, error: error.to_owned() }
}

/// A failure for good.
pub(super) fn kill(error: &str) -> Verdict {
    Verdict::Kill { error: error.to_owned() }
}

/// The body as text.
pub(super) fn body(claimed: &Claimed) -> String {
    String::from_utf8(claimed.job.body.to_vec()).expect("text")
}

/// The bodies as text.
pub(super) fn bodies(claimed: &[Claimed]) -> Vec<String> {
    claimed.iter().map(body).collect()
}
