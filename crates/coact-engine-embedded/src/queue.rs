//! The queue contract on the embedded engine.

use std::time::Duration;

use bytes::{Buf, Bytes};
use coact_core::{
    Error, ErrorKind, Result,
    codec::{get_headers, put_headers},
    contract::{
        queue::{
            Claim, Claimed, Enqueued, Job, JobId, JobState, Moved, NewJob, QueueInfo, QueueSpec, QueueStats,
            QueueStore, Receipt, Settle, Settled, Verdict,
        },
        stream::StreamGuarantees,
    },
    name::{Namespace, Queue},
};
use tokio::sync::oneshot;

use crate::{
    body::Place,
    claims::{Asked, ClaimedJob},
    engine::Engine,
    kv::error,
    message::{
        MessageChange, Messages,
        change::{NewJobOf, millis},
        queue::{Extra, Life, QueueState},
    },
    stream::{flat, guarantees, page, plain},
    work::{Task, Work},
};

/// How much of what a failure says is kept.
const ERROR_BYTES_MAX: usize = 1024;

pub(crate) struct EmbeddedQueues {
    engine: Engine,
    namespace: Namespace,
    guarantees: StreamGuarantees,
}

impl EmbeddedQueues {
    pub(crate) fn new(engine: Engine, namespace: Namespace) -> Self {
        let guarantees = guarantees(engine.config().durability);
        Self { engine, namespace, guarantees }
    }

    /// Asks the writer something about a queue.
    async fn ask<T: Send + 'static>(
        &self,
        queue: &Queue,
        bytes: usize,
        ask: impl FnOnce(&mut Work<'_>, u64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (namespace, queue) = (self.namespace.clone(), queue.clone());
        self.engine
            .ask(bytes, move |work| {
                let id = queue_of(work.messages, &namespace, &queue)?;
                ask(work, id)
            })
            .await
    }

    async fn bodies(&self, places: Vec<Place>) -> Result<Vec<Option<Bytes>>> {
        self.engine.bodies().get(self.engine.env(), &places).await
    }

    async fn claimed(&self, claims: Vec<ClaimedJob>, lease: Duration) -> Result<Vec<Claimed>> {
        let bodies = self.bodies(claims.iter().map(|claim| claim.place).collect()).await?;
        let jobs = claims.into_iter().zip(bodies).filter_map(|(claim, body)| {
            // One whose claim ended meanwhile, and that somebody else has done, is left out.
            let mut job = decode_job(body?)?;
            job.priority = claim.priority;
            fill(&mut job, claim.extra);
            Some(Claimed {
                id: claim.receipt.id,
                token: claim.receipt.token,
                attempt: claim.attempt,
                max_attempts: claim.max_attempts,
                lease,
                enqueued_ms: claim.enqueued_ms,
                job,
            })
        });
        Ok(jobs.collect())
    }

    /// Jobs that were found, with their bodies.
    async fn found(&self, found: Vec<Found>) -> Result<Vec<Job>> {
        let bodies = self.bodies(found.iter().map(|found| found.job.place).collect()).await?;
        Ok(found.into_iter().zip(bodies).filter_map(|(found, body)| found.with_body(body?)).collect())
    }
}

impl QueueStore for EmbeddedQueues {
    fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.engine.describe()
    }

    async fn put_queue(&self, queue: &Queue, spec: &QueueSpec) -> Result<bool> {
        let (name, spec) = (flat(&self.namespace, queue.as_str()), spec.clone());
        self.engine
            .ask(0, move |work| {
                let known = work.messages.queue_ids.get(&name).copied();
                let paused = known.and_then(|id| work.messages.queues.get(&id)).is_some_and(|queue| queue.spec.paused);
                work.write(MessageChange::QueuePut {
                    id: known.unwrap_or(work.messages.next_id),
                    name,
                    max_attempts: spec.max_attempts,
                    keep_dead_ms: millis(spec.keep_dead),
                    paused,
                });
                Ok(known.is_none())
            })
            .await
    }

    async fn delete_queue(&self, queue: &Queue) -> Result<bool> {
        let name = flat(&self.namespace, queue.as_str());
        self.engine
            .ask(0, move |work| {
                let Some(id) = work.messages.queue_ids.get(&name).copied() else { return Ok(false) };
                work.write(MessageChange::QueueDeleted { id });
                Ok(true)
            })
            .await
    }

    async fn queue(&self, queue: &Queue) -> Result<Option<QueueInfo>> {
        let name = flat(&self.namespace, queue.as_str());
        self.engine
            .ask(0, move |work| {
                let id = work.messages.queue_ids.get(&name);
                Ok(id.and_then(|id| info(work.messages.queues.get(id)?)))
            })
            .await
    }

    async fn queues(&self, after: &str, limit: usize) -> Result<Vec<QueueInfo>> {
        let (namespace, after) = (self.namespace.clone(), after.to_owned());
        self.engine
            .ask(0, move |work| {
                let page = page(&work.messages.queue_ids, &namespace, &after, limit);
                Ok(page.filter_map(|(_, id)| info(work.messages.queues.get(id)?)).collect())
            })
            .await
    }

    async fn enqueue(&self, queue: &Queue, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        let bytes = jobs.iter().map(NewJob::size).sum();
        self.ask(queue, bytes, move |work, id| Ok(jobs.into_iter().map(|job| apply_enqueue(work, id, job)).collect()))
            .await
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>> {
        let Claim { queue, worker, limit, lease, wait } = claim;
        let (to, mut answer) = oneshot::channel();
        let (namespace, unclaimed) = (self.namespace.clone(), self.engine.unclaimed());
        let task = Task::new(move |work| match queue_of(work.messages, &namespace, &queue) {
            Ok(queue) => work.claim(Asked { queue, worker, limit, lease, to, unclaimed }, !wait.is_zero()),
            Err(error) => work.answer(to, Err(error)),
        });
        self.engine.submit(task).await?;
        let stopped = || Err(error(self.engine.why_stopped()));
        let claims = if wait.is_zero() {
            answer.await.unwrap_or_else(|_| stopped())
        } else {
            match self.engine.env().timeout(wait, &mut answer).await {
                Some(claims) => claims.unwrap_or_else(|_| stopped()),
                None => {
                    // What was answered at the last moment counts; from here on the writer knows that nobody waits.
                    answer.close();
                    answer.try_recv().unwrap_or_else(|_| Ok(Vec::new()))
                }
            }
        };
        self.claimed(claims?, lease).await
    }

    async fn settle(&self, queue: &Queue, settle: Vec<Settle>) -> Result<Vec<Settled>> {
        let settle = self.ask(queue, 0, move |work, id| {
            let settle_one = |settle: Settle| {
                if is_current(work.messages, id, settle.receipt) {
                    apply_settle(work, id, settle)
                } else {
                    Settled::Fenced
                }
            };
            Ok(settle.into_iter().map(settle_one).collect())
        });
        settle.await
    }

    async fn cancel(&self, queue: &Queue, id: JobId) -> Result<Moved> {
        self.ask(queue, 0, move |work, queue| {
            let moved = movable(work.messages, queue, id);
            if moved == Moved::Done {
                work.write(MessageChange::JobEnded { queue, job: id.0, done: false });
            }
            Ok(moved)
        })
        .await
    }

    async fn reschedule(&self, queue: &Queue, id: JobId, run_at_ms: u64) -> Result<Moved> {
        self.ask(queue, 0, move |work, queue| {
            let moved = movable(work.messages, queue, id);
            let job = work.messages.queues.get(&queue).and_then(|state| state.job(id.0));
            if let Some(job) = job.filter(|_| moved == Moved::Done) {
                let (attempts, error) = (job.attempts, job.extra().error.clone());
                let run_at_ms = if run_at_ms <= work.time_ms { 0 } else { run_at_ms };
                work.write(MessageChange::JobWaits { queue, job: id.0, run_at_ms, attempts, error });
            }
            Ok(moved)
        })
        .await
    }

    async fn job(&self, queue: &Queue, id: JobId) -> Result<Option<Job>> {
        let found = self
            .ask(queue, 0, move |work, queue| {
                let queue = state_of(work.messages, queue)?;
                Ok(Found::one(queue, work.time_ms, id.0))
            })
            .await?;
        Ok(self.found(found.into_iter().collect()).await?.pop())
    }

    async fn jobs(&self, queue: &Queue, state: JobState, after: Option<JobId>, limit: usize) -> Result<Vec<Job>> {
        let found = self
            .ask(queue, 0, move |work, queue| {
                let now_ms = work.time_ms;
                let queue = state_of(work.messages, queue)?;
                let jobs = queue.jobs().from(&after.map_or(0, |id| id.0.saturating_add(1)));
                let found = jobs.filter_map(|(id, _)| Found::one(queue, now_ms, *id));
                Ok(found.filter(|found| found.state == state).take(limit).collect())
            })
            .await?;
        self.found(found).await
    }

    async fn find(&self, queue: &Queue, name: &str) -> Result<Option<JobId>> {
        let name = name.to_owned();
        self.ask(queue, 0, move |work, queue| Ok(state_of(work.messages, queue)?.named(&name).map(JobId))).await
    }

    async fn redrive(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        self.ask(queue, 0, move |work, queue| {
            let dead = dead(state_of(work.messages, queue)?, ids, limit);
            let count = dead.len() as u64;
            for job in dead {
                let wait = MessageChange::JobWaits { queue, job, run_at_ms: 0, attempts: 0, error: String::new() };
                work.write(wait);
            }
            Ok(count)
        })
        .await
    }

    async fn purge(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        self.ask(queue, 0, move |work, queue| {
            let dead = dead(state_of(work.messages, queue)?, ids, limit);
            let count = dead.len() as u64;
            dead.into_iter().for_each(|job| work.write(MessageChange::JobEnded { queue, job, done: false }));
            Ok(count)
        })
        .await
    }

    async fn pause(&self, queue: &Queue, paused: bool) -> Result<()> {
        self.ask(queue, 0, move |work, id| {
            let queue = state_of(work.messages, id)?;
            let name = queue.name.clone();
            let (max_attempts, keep_dead_ms) = (queue.spec.max_attempts, queue.spec.keep_dead_ms);
            work.write(MessageChange::QueuePut { id, name, max_attempts, keep_dead_ms, paused });
            Ok(())
        })
        .await
    }

    async fn stats(&self, queue: &Queue) -> Result<QueueStats> {
        self.ask(queue, 0, move |work, id| {
            let now_ms = work.time_ms;
            let queue = work.messages.queues.get_mut(&id).ok_or_else(no_queue)?;
            queue.wake_due(now_ms);
            Ok(queue.stats())
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        self.engine.close().await
    }
}

/// The id of a queue.
pub(crate) fn queue_of(messages: &Messages, namespace: &Namespace, queue: &Queue) -> Result<u64> {
    let id = messages.queue_ids.get(&flat(namespace, queue.as_str())).copied();
    id.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no queue {queue}: create it first")))
}

/// Whether a claim is not over.
pub(crate) fn is_current(messages: &Messages, queue: u64, receipt: Receipt) -> bool {
    let job = messages.queues.get(&queue).and_then(|queue| queue.job(receipt.id.0));
    job.is_some_and(|job| job.life == Life::Claimed && job.token == receipt.token.0)
}

/// Settles a claim that is not over.
pub(crate) fn apply_settle(work: &mut Work<'_>, queue: u64, settle: Settle) -> Settled {
    let (job, now) = (settle.receipt.id.0, work.now);
    let Some(state) = work.messages.queues.get_mut(&queue) else { return Settled::Fenced };
    let Some(found) = state.job(job) else { return Settled::Fenced };
    match settle.verdict {
        Verdict::Ack => work.write(MessageChange::JobEnded { queue, job, done: true }),
        Verdict::Kill { error } => return kill(work, queue, job, error),
        Verdict::Nack { delay, error } => return fail(work, queue, job, delay, error),
        Verdict::Release => {
            let (attempts, error) = (found.attempts.saturating_sub(1), found.extra().error.clone());
            work.write(MessageChange::JobWaits { queue, job, run_at_ms: 0, attempts, error });
        }
        Verdict::Extend { lease } => state.extend(job, lease, now),
    }
    Settled::Done
}

/// An attempt failed: the job rests, or is dead if that was its last.
fn fail(work: &mut Work<'_>, queue: u64, job: u64, rest: Duration, error: String) -> Settled {
    let found = work.messages.queues.get(&queue).and_then(|queue| queue.job(job));
    let Some((attempts, max_attempts)) = found.map(|job| (job.attempts, job.max_attempts)) else {
        return Settled::Fenced;
    };
    if attempts >= max_attempts {
        return kill(work, queue, job, error);
    }
    let run_at_ms = if rest.is_zero() { 0 } else { work.time_ms.saturating_add(millis(rest)) };
    work.write(MessageChange::JobWaits { queue, job, run_at_ms, attempts, error: cut(error) });
    Settled::Done
}

fn kill(work: &mut Work<'_>, queue: u64, job: u64, error: String) -> Settled {
    work.write(MessageChange::JobDied { queue, job, time_ms: work.time_ms, error: cut(error) });
    Settled::Dead
}

/// Enqueues a job in a queue that is there.
pub(crate) fn apply_enqueue(work: &mut Work<'_>, queue: u64, job: NewJob) -> Enqueued {
    let time_ms = work.time_ms;
    let Some(state) = work.messages.queues.get(&queue) else { return Enqueued::Exists(JobId(0)) };
    if let Some(known) = job.name.as_deref().and_then(|name| state.named(name)) {
        return Enqueued::Exists(JobId(known));
    }
    let id = state.next_job;
    let body = encode_job(&job);
    let new = NewJobOf {
        time_ms,
        priority: job.priority,
        run_at_ms: job.run_at_ms.filter(|at_ms| *at_ms > time_ms).unwrap_or(0),
        max_attempts: job.max_attempts.unwrap_or(state.spec.max_attempts),
        expires_ms: job.expires_ms,
        name: job.name.unwrap_or_default(),
        order_key: job.order_key.unwrap_or_default(),
    };
    work.write_body(MessageChange::JobEnqueued { queue, job: id, new }, body);
    Enqueued::Created(JobId(id))
}

/// What ends by itself: claims, jobs that expire, the dead that were kept long enough. Claims that nobody heard of are
/// released.
pub(crate) fn tick(work: &mut Work<'_>, unclaimed: Vec<(u64, Receipt)>) {
    for (queue, receipt) in unclaimed {
        if is_current(work.messages, queue, receipt) {
            let _ = apply_settle(work, queue, Settle { receipt, verdict: Verdict::Release });
        }
    }
    let ids: Vec<_> = work.messages.queues.keys().copied().collect();
    for queue in ids {
        let Some(state) = work.messages.queues.get_mut(&queue) else { continue };
        state.wake_due(work.time_ms);
        let ended = state.ended(work.now);
        let forgotten: Vec<_> = state.dead(work.time_ms.saturating_sub(state.spec.keep_dead_ms)).collect();
        for job in ended {
            end_claim(work, queue, job);
        }
        end_expired(work, queue);
        for job in forgotten {
            work.write(MessageChange::JobEnded { queue, job, done: false });
        }
        work.finish();
    }
}

/// Jobs whose time to be claimed is over are dead.
pub(crate) fn end_expired(work: &mut Work<'_>, queue: u64) {
    let Some(state) = work.messages.queues.get(&queue) else { return };
    for job in state.expired(work.time_ms) {
        let _ = kill(work, queue, job, "it expired before it was claimed".to_owned());
    }
}

/// A claim whose lease ended counts as an attempt.
fn end_claim(work: &mut Work<'_>, queue: u64, job: u64) {
    let Some(found) = work.messages.queues.get(&queue).and_then(|queue| queue.job(job)) else { return };
    let error = format!("the lease of worker {} ended", found.extra().worker);
    let _ = fail(work, queue, job, Duration::ZERO, error);
}

fn state_of(messages: &Messages, queue: u64) -> Result<&QueueState> {
    messages.queues.get(&queue).ok_or_else(no_queue)
}

fn no_queue() -> Error {
    Error::new(ErrorKind::NotFound, "the queue is gone")
}

/// Whether a job can be cancelled or given another time.
fn movable(messages: &Messages, queue: u64, id: JobId) -> Moved {
    match messages.queues.get(&queue).and_then(|queue| queue.job(id.0)).map(|job| job.life) {
        Some(Life::Waiting) => Moved::Done,
        Some(Life::Claimed) => Moved::InFlight,
        Some(Life::Dead) | None => Moved::NotFound,
    }
}

/// The dead among these, or the oldest dead.
fn dead(queue: &QueueState, ids: Vec<JobId>, limit: usize) -> Vec<u64> {
    if ids.is_empty() {
        return queue.dead(u64::MAX).take(limit).collect();
    }
    let is_dead = |id: &u64| queue.job(*id).is_some_and(|job| job.life == Life::Dead);
    let mut ids: Vec<_> = ids.into_iter().map(|id| id.0).filter(is_dead).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn info(queue: &QueueState) -> Option<QueueInfo> {
    let keep_dead = Duration::from_millis(queue.spec.keep_dead_ms);
    Some(QueueInfo {
        name: Queue::new(plain(&queue.name)).ok()?,
        spec: QueueSpec { max_attempts: queue.spec.max_attempts, keep_dead },
        paused: queue.spec.paused,
    })
}

/// A job that was found, without its body.
struct Found {
    id: u64,
    job: crate::message::queue::Job,
    state: JobState,
}

impl Found {
    fn one(queue: &QueueState, now_ms: u64, id: u64) -> Option<Self> {
        let job = queue.job(id)?;
        let state = match queue.state_of(id, job) {
            // Its time has come, and nobody asked for it yet.
            JobState::Delayed if job.at_ms <= now_ms => JobState::Ready,
            state => state,
        };
        Some(Self { id, job: job.clone(), state })
    }

    fn with_body(self, body: Bytes) -> Option<Job> {
        let Self { id, job: found, state } = self;
        let mut job = decode_job(body)?;
        let extra = found.extra().clone();
        let (worker, error) = (extra.worker.clone(), extra.error.clone());
        fill(&mut job, extra);
        job.priority = found.priority;
        job.max_attempts = Some(found.max_attempts);
        job.run_at_ms = (found.life == Life::Waiting && found.at_ms > 0).then_some(found.at_ms);
        Some(Job {
            id: JobId(id),
            job,
            state,
            attempts: found.attempts,
            enqueued_ms: found.enqueued_ms,
            worker: (!worker.is_empty()).then_some(worker),
            error: (!error.is_empty()).then_some(error),
            died_ms: (found.life == Life::Dead).then_some(found.at_ms),
        })
    }
}

/// Fills in what is not in a job's body.
fn fill(job: &mut NewJob, extra: Extra) {
    job.name = (!extra.name.is_empty()).then_some(extra.name);
    job.order_key = (!extra.order_key.is_empty()).then_some(extra.order_key);
    job.expires_ms = extra.expires_ms;
}

/// As much of what a failure says as is kept.
fn cut(mut error: String) -> String {
    if error.len() > ERROR_BYTES_MAX {
        let end = (0..=ERROR_BYTES_MAX).rev().find(|end| error.is_char_boundary(*end)).unwrap_or(0);
        error.truncate(end);
    }
    error
}

/// What of a job stays on disk: headers and body.
fn encode_job(job: &NewJob) -> Bytes {
    let mut out = Vec::with_capacity(job.size());
    put_headers(&mut out, &job.headers);
    out.extend_from_slice(&job.body);
    out.into()
}

fn decode_job(mut bytes: Bytes) -> Option<NewJob> {
    let headers = get_headers(&mut bytes)?;
    let body = bytes.copy_to_bytes(bytes.remaining());
    Some(NewJob { headers, body, ..NewJob::default() })
}
