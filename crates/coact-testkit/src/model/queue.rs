//! The model of a queue: one map, and no clock. What is delayed is delayed so long that it stays so, and so are leases.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use coact_core::{
    contract::queue::{
        Claim, Enqueued, JobId, JobState, Moved, NewJob, PRIORITY_MAX, QueueHandle, QueueSpec, Receipt, Settle,
        Settled, Token, Verdict,
    },
    name::Queue,
};

use super::{Steps, answered, pick, same};
use crate::sim::Random;

/// Longer than any run.
const LONG: Duration = Duration::from_secs(3600);
/// How often a job is tried if it does not say.
const MAX_ATTEMPTS: u32 = 3;

/// A queue and its model.
pub(super) struct Run<'a> {
    queues: &'a QueueHandle,
    queue: Queue,
    random: Random,
    jobs: BTreeMap<JobId, JobModel>,
    is_paused: bool,
    last_id: JobId,
    last_token: Token,
    enqueued: u64,
    done: u64,
    claims: u64,
    /// Receipts of all claims, those that are over too.
    receipts: Vec<Receipt>,
    pub(super) steps: Steps,
}

#[derive(Debug)]
struct JobModel {
    job: NewJob,
    life: Life,
    is_delayed: bool,
    attempts: u32,
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Waiting,
    Claimed(Token),
    Dead,
}

impl<'a> Run<'a> {
    pub(super) async fn new(queues: &'a QueueHandle, name: &str, seed: u64) -> Result<Self, String> {
        let queue = answered(Queue::new(name))?;
        let spec = QueueSpec { max_attempts: MAX_ATTEMPTS, keep_dead: LONG };
        same("created", answered(queues.put_queue(&queue, &spec).await)?, true)?;
        Ok(Self {
            queues,
            queue,
            random: Random::new(seed, "queue"),
            jobs: BTreeMap::new(),
            is_paused: false,
            last_id: JobId(0),
            last_token: Token(0),
            enqueued: 0,
            done: 0,
            claims: 0,
            receipts: Vec::new(),
            steps: Steps::default(),
        })
    }

    pub(super) async fn step(&mut self) -> Result<(), String> {
        match self.random.below(24) {
            0..=4 => self.enqueue().await,
            5..=9 => self.claim().await,
            10..=16 => self.settle().await,
            17 => self.cancel().await,
            18..=19 => self.reschedule().await,
            20 => self.redrive().await,
            21 if self.random.one_in(2) => self.purge().await,
            22 => self.pause().await,
            _ => self.compare().await,
        }
    }

    pub(super) async fn compare(&mut self) -> Result<(), String> {
        self.steps.note("compare");
        let stats = answered(self.queues.stats(&self.queue).await)?;
        let counts = [stats.ready, stats.delayed, stats.blocked, stats.claimed, stats.dead];
        let in_state =
            |state| self.jobs.keys().copied().filter(|id| self.state(*id) == Some(state)).collect::<Vec<_>>();
        same(
            "ready, delayed, blocked, claimed, dead",
            counts,
            JobState::ALL.map(|state| in_state(state).len() as u64),
        )?;
        let ever = (stats.enqueued, stats.done, stats.claims);
        same("enqueued, done, claims", ever, (self.enqueued, self.done, self.claims))?;
        for state in JobState::ALL {
            let jobs = answered(self.queues.jobs(&self.queue, state, None, 10_000).await)?;
            same(state.name(), jobs.iter().map(|job| job.id).collect(), in_state(state))?;
            for job in jobs {
                let model = &self.jobs[&job.id];
                let of_model = (&model.job.body, model.attempts, model.error.clone(), state);
                same("a job", (&job.job.body, job.attempts, job.error, job.state), of_model)?;
            }
        }
        Ok(())
    }

    async fn enqueue(&mut self) -> Result<(), String> {
        let jobs: Vec<_> = (0..=self.random.below(3)).map(|_| self.any_job()).collect();
        self.steps.note(("enqueue", &jobs));
        let answers = answered(self.queues.enqueue(&self.queue, jobs.clone()).await)?;
        same("answers", answers.len(), jobs.len())?;
        for (job, answer) in jobs.into_iter().zip(answers) {
            let holder = self.jobs.iter().find(|(_, known)| known.job.name.is_some() && known.job.name == job.name);
            match (holder, answer) {
                (Some((holder, _)), answer) => same("enqueued", answer, Enqueued::Exists(*holder))?,
                (None, Enqueued::Created(id)) if id > self.last_id => {
                    let is_delayed = job.run_at_ms.is_some();
                    let model = JobModel { job, life: Life::Waiting, is_delayed, attempts: 0, error: None };
                    self.jobs.insert(id, model);
                    self.last_id = id;
                    self.enqueued += 1;
                }
                (None, answer) => return Err(format!("got {answer:?} after id {}", self.last_id)),
            }
        }
        Ok(())
    }

    async fn claim(&mut self) -> Result<(), String> {
        let limit = 1 + self.random.below(4) as usize;
        self.steps.note(("claim", limit));
        let (queue, worker) = (self.queue.clone(), "model".to_owned());
        let claim = Claim { queue, worker, limit, lease: LONG, wait: Duration::ZERO };
        let claimed = answered(self.queues.claim(claim).await)?;
        let mut expected = Vec::new();
        while expected.len() < limit
            && let Some(id) = self.first_ready()
        {
            // Its token is noted below.
            let model = self.jobs.get_mut(&id).expect("it is ready");
            model.life = Life::Claimed(Token(0));
            model.attempts += 1;
            let max_attempts = model.job.max_attempts.unwrap_or(MAX_ATTEMPTS);
            expected.push((id, model.attempts, max_attempts, model.job.body.clone()));
        }
        let brief =
            claimed.iter().map(|claimed| (claimed.id, claimed.attempt, claimed.max_attempts, claimed.job.body.clone()));
        same("claimed", brief.collect(), expected)?;
        for claimed in claimed {
            if claimed.token <= self.last_token {
                return Err(format!("got {:?} after {:?}", claimed.token, self.last_token));
            }
            self.last_token = claimed.token;
            self.claims += 1;
            self.receipts.push(claimed.receipt());
            self.jobs.get_mut(&claimed.id).expect("it was claimed").life = Life::Claimed(claimed.token);
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), String> {
        let current: Vec<_> = self.receipts.iter().copied().filter(|receipt| self.is_current(*receipt)).collect();
        let from = if self.random.one_in(4) { &self.receipts } else { &current };
        let Some(receipt) = pick(&mut self.random, from).copied() else { return Ok(()) };
        let error = format!("e{}", self.random.below(100));
        let verdict = match self.random.below(9) {
            0..=2 => Verdict::Ack,
            3..=4 => Verdict::Nack { delay: Duration::ZERO, error },
            5 => Verdict::Nack { delay: LONG, error },
            6 => Verdict::Kill { error },
            7 => Verdict::Release,
            _ => Verdict::Extend { lease: LONG },
        };
        self.steps.note(("settle", receipt, &verdict));
        let expected = self.apply(receipt, verdict.clone());
        let settled = answered(self.queues.settle(&self.queue, vec![Settle { receipt, verdict }]).await)?;
        same("settled", settled, vec![expected])
    }

    fn apply(&mut self, receipt: Receipt, verdict: Verdict) -> Settled {
        if !self.is_current(receipt) {
            return Settled::Fenced;
        }
        let model = self.jobs.get_mut(&receipt.id).expect("it is claimed");
        let is_last = model.attempts >= model.job.max_attempts.unwrap_or(MAX_ATTEMPTS);
        match verdict {
            Verdict::Ack => {
                self.jobs.remove(&receipt.id);
                self.done += 1;
            }
            Verdict::Nack { delay, error } if !is_last => {
                (model.life, model.is_delayed, model.error) = (Life::Waiting, !delay.is_zero(), Some(error));
            }
            Verdict::Nack { error, .. } | Verdict::Kill { error } => {
                (model.life, model.error) = (Life::Dead, Some(error));
                return Settled::Dead;
            }
            Verdict::Release => {
                (model.life, model.is_delayed) = (Life::Waiting, false);
                model.attempts -= 1;
            }
            Verdict::Extend { .. } => {}
        }
        Settled::Done
    }

    async fn cancel(&mut self) -> Result<(), String> {
        let id = self.any_id();
        self.steps.note(("cancel", id));
        let expected = self.movable(id);
        if expected == Moved::Done {
            self.jobs.remove(&id);
        }
        same("cancelled", answered(self.queues.cancel(&self.queue, id).await)?, expected)
    }

    async fn reschedule(&mut self) -> Result<(), String> {
        let (id, to_far) = (self.any_id(), self.random.one_in(2));
        self.steps.note(("reschedule", id, to_far));
        let run_at_ms = if to_far { self.far() } else { 0 };
        let expected = self.movable(id);
        if let Some(model) = self.jobs.get_mut(&id).filter(|_| expected == Moved::Done) {
            model.is_delayed = to_far;
        }
        same("rescheduled", answered(self.queues.reschedule(&self.queue, id, run_at_ms).await)?, expected)
    }

    async fn redrive(&mut self) -> Result<(), String> {
        let ids = self.some_ids();
        self.steps.note(("redrive", &ids));
        let dead = self.dead_of(&ids);
        for id in &dead {
            let model = self.jobs.get_mut(id).expect("it is dead");
            (model.life, model.is_delayed, model.attempts, model.error) = (Life::Waiting, false, 0, None);
        }
        let redriven = answered(self.queues.redrive(&self.queue, ids, 10_000).await)?;
        same("redriven", redriven, dead.len() as u64)
    }

    async fn purge(&mut self) -> Result<(), String> {
        let ids = self.some_ids();
        self.steps.note(("purge", &ids));
        let dead = self.dead_of(&ids);
        self.jobs.retain(|id, _| !dead.contains(id));
        same("purged", answered(self.queues.purge(&self.queue, ids, 10_000).await)?, dead.len() as u64)
    }

    async fn pause(&mut self) -> Result<(), String> {
        self.is_paused = self.random.one_in(4);
        self.steps.note(("pause", self.is_paused));
        answered(self.queues.pause(&self.queue, self.is_paused).await)
    }

    fn first_ready(&self) -> Option<JobId> {
        let ready = self.jobs.keys().copied().filter(|id| self.state(*id) == Some(JobState::Ready));
        ready.min_by_key(|id| (PRIORITY_MAX - self.jobs[id].job.priority, *id)).filter(|_| !self.is_paused)
    }

    fn state(&self, id: JobId) -> Option<JobState> {
        let model = self.jobs.get(&id)?;
        Some(match model.life {
            Life::Dead => JobState::Dead,
            Life::Claimed(_) => JobState::Claimed,
            Life::Waiting if self.is_blocked(id, model) => JobState::Blocked,
            Life::Waiting if model.is_delayed => JobState::Delayed,
            Life::Waiting => JobState::Ready,
        })
    }

    /// An earlier job of its order key waits, or any is out.
    fn is_blocked(&self, id: JobId, model: &JobModel) -> bool {
        let mut others = self.jobs.iter().filter(|(other, _)| **other != id);
        model.job.order_key.is_some()
            && others.any(|(other, known)| {
                let comes_first =
                    matches!(known.life, Life::Claimed(_)) || (known.life == Life::Waiting && *other < id);
                known.job.order_key == model.job.order_key && comes_first
            })
    }

    fn is_current(&self, receipt: Receipt) -> bool {
        self.jobs.get(&receipt.id).is_some_and(|model| model.life == Life::Claimed(receipt.token))
    }

    fn movable(&self, id: JobId) -> Moved {
        match self.jobs.get(&id).map(|model| model.life) {
            Some(Life::Waiting) => Moved::Done,
            Some(Life::Claimed(_)) => Moved::InFlight,
            Some(Life::Dead) | None => Moved::NotFound,
        }
    }

    /// The dead among these, or all if none are named.
    fn dead_of(&self, ids: &[JobId]) -> Vec<JobId> {
        let dead = self.jobs.iter().filter(|(_, model)| model.life == Life::Dead).map(|(id, _)| *id);
        dead.filter(|id| ids.is_empty() || ids.contains(id)).collect()
    }

    fn any_job(&mut self) -> NewJob {
        let random = &mut self.random;
        let mut job = NewJob::new(Bytes::from(random.next().to_string()));
        job.name = random.one_in(3).then(|| format!("n{}", random.below(5)));
        job.order_key = random.one_in(3).then(|| Bytes::from(format!("k{}", random.below(3))));
        job.priority = random.below(4) as u8 * 3;
        job.max_attempts = random.one_in(4).then(|| 1 + random.below(3) as u32);
        if self.random.one_in(5) {
            job.run_at_ms = Some(self.far());
        }
        job
    }

    fn any_id(&mut self) -> JobId {
        JobId(self.random.below(self.last_id.0 + 2))
    }

    fn some_ids(&mut self) -> Vec<JobId> {
        (0..self.random.below(4)).map(|_| self.any_id()).collect()
    }

    fn far(&mut self) -> u64 {
        self.queues.env().wall_ms() + LONG.as_millis() as u64 + self.random.below(1000)
    }
}
