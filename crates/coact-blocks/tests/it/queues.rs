//! The queue contract in memory, on the simulated clock. Faults sit in the clients.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        queue::{
            Claim, Claimed, Enqueued, Job, JobId, JobState, Moved, NewJob, QueueHandle, QueueInfo, QueueSpec,
            QueueStats, QueueStore, Receipt, Settle, Settled, StreamGuarantees, Token, Verdict,
        },
        stream::{Atomicity, StreamLimits},
    },
    env::Env,
    guarantees::{Accepted, Durability, Failover, OnPartition},
    name::Queue,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    model::{Fate, Model},
    world::{Process, start},
};

/// A store of queues. Clones are the same store.
#[derive(Clone)]
pub(crate) struct Queues(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    clock: Process,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<Queue, QueueState>,
    /// Whether a settlement counts whatever its token is: a defect, for checkers to find.
    takes_any_token: bool,
}

struct QueueState {
    info: QueueInfo,
    jobs: BTreeMap<u64, Entry>,
    next_id: u64,
    next_token: u64,
    stats: QueueStats,
    history: Vec<Event>,
}

/// What happened to a job, in the order in which it did.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Claimed(Claimed),
    Acked(Receipt),
}

struct Entry {
    job: NewJob,
    life: Life,
    attempts: u32,
    enqueued_ms: u64,
    worker: Option<String>,
    error: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Waiting { run_at_ms: u64 },
    Claimed { token: u64, until_ms: u64 },
    Dead { died_ms: u64 },
}

/// A request, for choosing its fate.
#[derive(Clone, Debug)]
pub(crate) enum QueueRequest {
    Enqueue,
    Claim,
    Settle(Vec<Settle>),
    Other,
}

impl QueueRequest {
    /// Whether it extends claims.
    pub(crate) fn extends(&self) -> bool {
        matches!(self, Self::Settle(settle) if matches!(settle[0].verdict, Verdict::Extend { .. }))
    }

    /// Whether it ends claims.
    pub(crate) fn settles(&self) -> bool {
        matches!(self, Self::Settle(_)) && !self.extends()
    }
}

pub(crate) type FateOf = Box<dyn FnMut(&QueueRequest) -> Fate + Send>;

/// A process's connection to the queues.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) handle: QueueHandle,
    fate: Arc<Mutex<Option<FateOf>>>,
}

impl Connection {
    pub(crate) fn fate(&self, fate: impl FnMut(&QueueRequest) -> Fate + Send + 'static) {
        *self.fate.lock() = Some(Box::new(fate));
    }

    pub(crate) fn no_faults(&self) {
        *self.fate.lock() = None;
    }
}

impl Queues {
    pub(crate) fn new() -> Self {
        let clock = Process::start(&Model::new(), 0);
        Self(Arc::new(Shared { state: Mutex::default(), changed: watch::Sender::new(0), clock }))
    }

    pub(crate) fn connect(&self, process: &Process) -> Connection {
        self.connect_with(process, GUARANTEES)
    }

    pub(crate) fn connect_with(&self, process: &Process, guarantees: StreamGuarantees) -> Connection {
        let fate = Arc::<Mutex<Option<FateOf>>>::default();
        let env = process.env().clone();
        let client = Client { queues: self.clone(), env: env.clone(), fate: fate.clone(), guarantees };
        Connection { handle: QueueHandle::new(client, env, Accepted::default()), fate }
    }

    pub(crate) fn plant_any_token(&self) {
        self.0.state.lock().takes_any_token = true;
    }

    /// Everything that was claimed and acknowledged.
    pub(crate) fn history(&self, queue: &Queue) -> Vec<Event> {
        self.0.state.lock().queues.get(queue).map(|queue| queue.history.clone()).unwrap_or_default()
    }

    fn now_ms(&self) -> u64 {
        self.0.clock.env().wall_ms()
    }

    fn with<T>(&self, queue: &Queue, change: impl FnOnce(&mut QueueState, u64) -> Result<T>) -> Result<T> {
        let answer = self.quietly(queue, change);
        self.0.changed.send_modify(|version| *version += 1);
        answer
    }

    /// As [`with`](Self::with), without waking claims that wait: for what makes no job ready.
    fn quietly<T>(&self, queue: &Queue, change: impl FnOnce(&mut QueueState, u64) -> Result<T>) -> Result<T> {
        let now_ms = self.now_ms();
        let mut state = self.0.state.lock();
        let unknown = || Error::new(ErrorKind::NotFound, format!("there is no queue {queue}: create it first"));
        let found = state.queues.get_mut(queue).ok_or_else(unknown)?;
        found.tick(now_ms);
        change(found, now_ms)
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>> {
        let deadline_ms = self.now_ms() + claim.wait.as_millis() as u64;
        loop {
            let mut changed = self.0.changed.subscribe();
            let mut next_ms = deadline_ms;
            let claimed = self.quietly(&claim.queue, |queue, now_ms| {
                let claimed = queue.claim(&claim, now_ms);
                next_ms = next_ms.min(queue.next_ms(now_ms));
                Ok(claimed)
            })?;
            if !claimed.is_empty() || self.now_ms() >= deadline_ms {
                return Ok(claimed);
            }
            let pause = Duration::from_millis(next_ms.saturating_sub(self.now_ms()).max(1));
            let _ = self.0.clock.env().timeout(pause, changed.changed()).await;
        }
    }

    fn settle(&self, queue: &Queue, settle: &[Settle]) -> Result<Vec<Settled>> {
        let any = self.0.state.lock().takes_any_token;
        self.with(queue, |queue, now_ms| Ok(settle.iter().map(|settle| queue.settle(settle, any, now_ms)).collect()))
    }
}

impl QueueState {
    fn tick(&mut self, now_ms: u64) {
        for entry in self.jobs.values_mut() {
            if let Life::Claimed { until_ms, .. } = entry.life
                && until_ms <= now_ms
            {
                entry.error = Some("the lease ended".to_owned());
                entry.life = entry.after_failure(0, now_ms);
            }
            if entry.job.expires_ms.is_some_and(|at| at <= now_ms) && matches!(entry.life, Life::Waiting { .. }) {
                entry.life = Life::Dead { died_ms: now_ms };
            }
        }
    }

    fn state(&self, id: u64, now_ms: u64) -> JobState {
        let entry = &self.jobs[&id];
        let is_earlier = |other: &Entry| {
            other.job.order_key.is_some()
                && other.job.order_key == entry.job.order_key
                && !matches!(other.life, Life::Dead { .. })
        };
        match entry.life {
            Life::Dead { .. } => JobState::Dead,
            Life::Claimed { .. } => JobState::Claimed,
            Life::Waiting { .. } if self.jobs.range(..id).any(|(_, other)| is_earlier(other)) => JobState::Blocked,
            Life::Waiting { run_at_ms } if run_at_ms > now_ms => JobState::Delayed,
            Life::Waiting { .. } => JobState::Ready,
        }
    }

    fn next_ms(&self, now_ms: u64) -> u64 {
        let due = self.jobs.values().map(|entry| match entry.life {
            Life::Waiting { run_at_ms } if run_at_ms > now_ms => run_at_ms,
            Life::Claimed { until_ms, .. } => until_ms,
            _ => u64::MAX,
        });
        due.min().unwrap_or(u64::MAX)
    }

    fn claim(&mut self, claim: &Claim, now_ms: u64) -> Vec<Claimed> {
        let mut claimed = Vec::new();
        while !self.info.paused && claimed.len() < claim.limit {
            let ready = self.jobs.keys().copied().filter(|id| self.state(*id, now_ms) == JobState::Ready);
            let Some(id) = ready.min_by_key(|id| (u8::MAX - self.jobs[id].job.priority, *id)) else { break };
            let token = self.next_token;
            self.next_token += 1;
            self.stats.claims += 1;
            let max_attempts = self.info.spec.max_attempts;
            let Some(entry) = self.jobs.get_mut(&id) else { break };
            entry.attempts += 1;
            entry.worker = Some(claim.worker.clone());
            entry.life = Life::Claimed { token, until_ms: now_ms + claim.lease.as_millis() as u64 };
            claimed.push(Claimed {
                id: JobId(id),
                token: Token(token),
                attempt: entry.attempts,
                max_attempts: entry.job.max_attempts.unwrap_or(max_attempts),
                lease: claim.lease,
                enqueued_ms: entry.enqueued_ms,
                job: entry.job.clone(),
            });
        }
        self.history.extend(claimed.iter().cloned().map(Event::Claimed));
        claimed
    }

    fn settle(&mut self, settle: &Settle, takes_any_token: bool, now_ms: u64) -> Settled {
        let Receipt { id, token } = settle.receipt;
        let Some(entry) = self.jobs.get_mut(&id.0) else { return Settled::Fenced };
        let is_ours = matches!(entry.life, Life::Claimed { token: theirs, .. } if theirs == token.0);
        if !is_ours && !takes_any_token {
            return Settled::Fenced;
        }
        match &settle.verdict {
            Verdict::Ack => {
                self.jobs.remove(&id.0);
                self.stats.done += 1;
                self.history.push(Event::Acked(settle.receipt));
            }
            Verdict::Nack { delay, error } => {
                entry.error = Some(error.clone());
                entry.life = entry.after_failure(delay.as_millis() as u64, now_ms);
            }
            Verdict::Kill { error } => {
                entry.error = Some(error.clone());
                entry.life = Life::Dead { died_ms: now_ms };
            }
            Verdict::Release => {
                entry.attempts -= 1;
                entry.life = Life::Waiting { run_at_ms: 0 };
            }
            Verdict::Extend { lease } => {
                entry.life = Life::Claimed { token: token.0, until_ms: now_ms + lease.as_millis() as u64 };
            }
        }
        let is_dead = self.jobs.get(&id.0).is_some_and(|entry| matches!(entry.life, Life::Dead { .. }));
        if is_dead { Settled::Dead } else { Settled::Done }
    }

    fn job(&self, id: u64, now_ms: u64) -> Option<Job> {
        let entry = self.jobs.get(&id)?;
        Some(Job {
            id: JobId(id),
            job: entry.job.clone(),
            state: self.state(id, now_ms),
            attempts: entry.attempts,
            enqueued_ms: entry.enqueued_ms,
            worker: entry.worker.clone(),
            error: entry.error.clone(),
            died_ms: if let Life::Dead { died_ms } = entry.life { Some(died_ms) } else { None },
        })
    }

    /// Gives a job that waits another life, or takes it out.
    fn change(&mut self, id: u64, life: Option<Life>) -> Moved {
        let Some(entry) = self.jobs.get_mut(&id) else { return Moved::NotFound };
        match (entry.life, life) {
            (Life::Claimed { .. }, _) => Moved::InFlight,
            (Life::Dead { .. }, _) => Moved::NotFound,
            (_, Some(life)) => {
                entry.life = life;
                Moved::Done
            }
            (_, None) => {
                self.jobs.remove(&id);
                Moved::Done
            }
        }
    }

    fn dead(&self, ids: &[JobId], limit: usize) -> Vec<u64> {
        let is_asked = |id: &u64| ids.is_empty() || ids.contains(&JobId(*id));
        let dead = self.jobs.iter().filter(|(_, entry)| matches!(entry.life, Life::Dead { .. }));
        let limit = if ids.is_empty() { limit } else { usize::MAX };
        dead.map(|(id, _)| *id).filter(is_asked).take(limit).collect()
    }
}

impl Entry {
    fn after_failure(&self, delay_ms: u64, now_ms: u64) -> Life {
        // Every job of the model has a number of attempts: it is filled in when it is enqueued.
        if self.attempts >= self.job.max_attempts.unwrap_or(u32::MAX) {
            Life::Dead { died_ms: now_ms }
        } else {
            Life::Waiting { run_at_ms: now_ms + delay_ms }
        }
    }
}

/// What the model promises: everything.
pub(crate) const GUARANTEES: StreamGuarantees = StreamGuarantees {
    writes: Durability::Sync,
    on_partition: OnPartition::SingleNode,
    failover: Failover::KeepsWrites,
    atomicity: Atomicity::Everything,
    dedup: None,
    dense_offsets: true,
    delay_precision: Duration::from_millis(1),
    compaction: false,
    limits: StreamLimits::PORTABLE,
};

struct Client {
    queues: Queues,
    env: Env,
    fate: Arc<Mutex<Option<FateOf>>>,
    guarantees: StreamGuarantees,
}

impl Client {
    async fn call<T: Send + 'static>(
        &self,
        request: QueueRequest,
        apply: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let fate = self.fate.lock().as_mut().map_or(Fate::Arrives, |fate| fate(&request));
        let unavailable = || Error::new(ErrorKind::Unavailable, "the connection was lost");
        match fate {
            Fate::Arrives => apply.await,
            Fate::Refused => Err(unavailable()),
            Fate::AnswerLost => {
                let _ = apply.await;
                Err(unavailable().effect_unknown())
            }
            Fate::Late(by) => {
                let env = self.env.clone();
                start(async move {
                    env.sleep(by).await;
                    apply.await
                });
                Err(unavailable().effect_unknown())
            }
            Fate::Slow(by) => {
                self.env.sleep(by).await;
                apply.await
            }
            Fate::SlowAnswer(by) => {
                let answer = apply.await;
                self.env.sleep(by).await;
                answer
            }
            Fate::Lost => {
                self.env.sleep(Duration::from_secs(5)).await;
                Err(unavailable().effect_unknown())
            }
        }
    }

    async fn change<T: Send + 'static>(
        &self,
        request: QueueRequest,
        queue: &Queue,
        change: impl FnOnce(&mut QueueState, u64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (queues, queue) = (self.queues.clone(), queue.clone());
        self.call(request, async move { queues.with(&queue, change) }).await
    }
}

impl QueueStore for Client {
    fn guarantees(&self) -> &StreamGuarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        "model:".to_owned()
    }

    async fn put_queue(&self, queue: &Queue, spec: &QueueSpec) -> Result<bool> {
        let mut state = self.queues.0.state.lock();
        if let Some(found) = state.queues.get_mut(queue) {
            found.info.spec = spec.clone();
            return Ok(false);
        }
        let info = QueueInfo { name: queue.clone(), spec: spec.clone(), paused: false };
        let (jobs, stats, history) = (BTreeMap::new(), QueueStats::default(), Vec::new());
        state.queues.insert(queue.clone(), QueueState { info, jobs, next_id: 1, next_token: 1, stats, history });
        Ok(true)
    }

    async fn delete_queue(&self, queue: &Queue) -> Result<bool> {
        let is_gone = self.queues.0.state.lock().queues.remove(queue).is_some();
        self.queues.0.changed.send_modify(|version| *version += 1);
        Ok(is_gone)
    }

    async fn queue(&self, queue: &Queue) -> Result<Option<QueueInfo>> {
        Ok(self.queues.0.state.lock().queues.get(queue).map(|queue| queue.info.clone()))
    }

    async fn queues(&self, after: &str, limit: usize) -> Result<Vec<QueueInfo>> {
        let state = self.queues.0.state.lock();
        let queues = state.queues.values().filter(|queue| queue.info.name.as_str() > after);
        Ok(queues.take(limit).map(|queue| queue.info.clone()).collect())
    }

    async fn enqueue(&self, queue: &Queue, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        self.change(QueueRequest::Enqueue, queue, move |queue, now_ms| {
            let enqueue = |mut job: NewJob| {
                let same = queue.jobs.iter().find(|(_, entry)| job.name.is_some() && entry.job.name == job.name);
                if let Some((id, _)) = same {
                    return Enqueued::Exists(JobId(*id));
                }
                job.max_attempts = job.max_attempts.or(Some(queue.info.spec.max_attempts));
                let life = Life::Waiting { run_at_ms: job.run_at_ms.unwrap_or(0) };
                let entry = Entry { job, life, attempts: 0, enqueued_ms: now_ms, worker: None, error: None };
                let id = queue.next_id;
                queue.jobs.insert(id, entry);
                queue.next_id += 1;
                queue.stats.enqueued += 1;
                Enqueued::Created(JobId(id))
            };
            Ok(jobs.into_iter().map(enqueue).collect())
        })
        .await
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>> {
        let queues = self.queues.clone();
        self.call(QueueRequest::Claim, async move { queues.claim(claim).await }).await
    }

    async fn settle(&self, queue: &Queue, settle: Vec<Settle>) -> Result<Vec<Settled>> {
        let (queues, queue) = (self.queues.clone(), queue.clone());
        self.call(QueueRequest::Settle(settle.clone()), async move { queues.settle(&queue, &settle) }).await
    }

    async fn cancel(&self, queue: &Queue, id: JobId) -> Result<Moved> {
        self.change(QueueRequest::Other, queue, move |queue, _| Ok(queue.change(id.0, None))).await
    }

    async fn reschedule(&self, queue: &Queue, id: JobId, run_at_ms: u64) -> Result<Moved> {
        let life = Some(Life::Waiting { run_at_ms });
        self.change(QueueRequest::Other, queue, move |queue, _| Ok(queue.change(id.0, life))).await
    }

    async fn job(&self, queue: &Queue, id: JobId) -> Result<Option<Job>> {
        self.change(QueueRequest::Other, queue, move |queue, now_ms| Ok(queue.job(id.0, now_ms))).await
    }

    async fn jobs(&self, queue: &Queue, state: JobState, after: Option<JobId>, limit: usize) -> Result<Vec<Job>> {
        self.change(QueueRequest::Other, queue, move |queue, now_ms| {
            let ids = queue.jobs.range(after.map_or(0, |id| id.0 + 1)..).map(|(id, _)| *id);
            let jobs = ids.filter_map(|id| queue.job(id, now_ms)).filter(|job| job.state == state);
            Ok(jobs.take(limit).collect())
        })
        .await
    }

    async fn find(&self, queue: &Queue, name: &str) -> Result<Option<JobId>> {
        let name = Some(name.to_owned());
        self.change(QueueRequest::Other, queue, move |queue, _| {
            Ok(queue.jobs.iter().find(|(_, entry)| entry.job.name == name).map(|(id, _)| JobId(*id)))
        })
        .await
    }

    async fn redrive(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        self.change(QueueRequest::Other, queue, move |queue, _| {
            let dead = queue.dead(&ids, limit);
            for id in &dead {
                let Some(entry) = queue.jobs.get_mut(id) else { continue };
                entry.life = Life::Waiting { run_at_ms: 0 };
                entry.attempts = 0;
            }
            Ok(dead.len() as u64)
        })
        .await
    }

    async fn purge(&self, queue: &Queue, ids: Vec<JobId>, limit: usize) -> Result<u64> {
        self.change(QueueRequest::Other, queue, move |queue, _| {
            let dead = queue.dead(&ids, limit);
            dead.iter().for_each(|id| drop(queue.jobs.remove(id)));
            Ok(dead.len() as u64)
        })
        .await
    }

    async fn pause(&self, queue: &Queue, paused: bool) -> Result<()> {
        self.change(QueueRequest::Other, queue, move |queue, _| {
            queue.info.paused = paused;
            Ok(())
        })
        .await
    }

    async fn stats(&self, queue: &Queue) -> Result<QueueStats> {
        self.change(QueueRequest::Other, queue, move |queue, now_ms| {
            let count =
                |state: JobState| queue.jobs.keys().filter(|id| queue.state(**id, now_ms) == state).count() as u64;
            Ok(QueueStats {
                ready: count(JobState::Ready),
                delayed: count(JobState::Delayed),
                blocked: count(JobState::Blocked),
                claimed: count(JobState::Claimed),
                dead: count(JobState::Dead),
                ..queue.stats.clone()
            })
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
