//! Queues: the jobs, and the orders in which they are looked for, all of which follow from the jobs.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use coact_core::contract::queue::{JobState, PRIORITY_MAX, QueueStats};

use super::change::NewJobOf;
use crate::{body::Place, paged::PagedMap};

/// A queue.
#[derive(Debug)]
pub(crate) struct QueueState {
    /// With its namespace: `main/mails`.
    pub(crate) name: String,
    pub(crate) spec: QueueSpecOf,
    jobs: PagedMap<u64, Job>,
    pub(crate) next_job: u64,
    pub(crate) next_token: u64,
    pub(crate) done: u64,
    pub(crate) claims: u64,
    /// What follows from the jobs.
    orders: Orders,
}

/// What a queue says of its jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueSpecOf {
    pub(crate) max_attempts: u32,
    pub(crate) keep_dead_ms: u64,
    pub(crate) paused: bool,
}

/// A job without its body. What few jobs have is boxed.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) place: Place,
    pub(crate) priority: u8,
    pub(crate) life: Life,
    pub(crate) attempts: u32,
    pub(crate) max_attempts: u32,
    pub(crate) enqueued_ms: u64,
    /// When it may run; of a dead one, when it died.
    pub(crate) at_ms: u64,
    /// Of the last claim.
    pub(crate) token: u64,
    pub(crate) extra: Option<Box<Extra>>,
}

/// Whether a job waits, is worked on, or is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Waiting,
    Claimed,
    Dead,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Extra {
    pub(crate) name: String,
    pub(crate) order_key: Bytes,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) worker: String,
    pub(crate) error: String,
    pub(crate) lease_ms: u64,
}

#[derive(Debug, Default)]
struct Orders {
    /// The most urgent first, then the oldest.
    ready: BTreeSet<(u8, u64)>,
    /// By when they may run.
    delayed: BTreeSet<(u64, u64)>,
    /// Claims by when they end.
    leases: BTreeSet<(Instant, u64)>,
    deadlines: HashMap<u64, Instant>,
    /// By when they died.
    dead: BTreeSet<(u64, u64)>,
    names: HashMap<Box<str>, u64>,
    lines: HashMap<Bytes, Line>,
    expiring: BTreeSet<(u64, u64)>,
    blocked: u64,
}

/// The jobs of one order key that are not dead.
#[derive(Debug, Default)]
struct Line {
    /// The only one that can be claimed, or is: the one claimed, otherwise the oldest.
    active: Option<u64>,
    blocked: BTreeSet<u64>,
}

impl Job {
    pub(crate) fn extra(&self) -> &Extra {
        static NOTHING: Extra = Extra {
            name: String::new(),
            order_key: Bytes::new(),
            expires_ms: None,
            worker: String::new(),
            error: String::new(),
            lease_ms: 0,
        };
        self.extra.as_deref().unwrap_or(&NOTHING)
    }

    fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// What makes it come first.
    fn rank(&self, id: u64) -> (u8, u64) {
        (PRIORITY_MAX - self.priority.min(PRIORITY_MAX), id)
    }
}

/// What the log tells: each changes one job.
impl QueueState {
    pub(crate) fn new(name: String, spec: QueueSpecOf) -> Self {
        Self {
            name,
            spec,
            jobs: PagedMap::default(),
            next_job: 1,
            next_token: 1,
            done: 0,
            claims: 0,
            orders: Orders::default(),
        }
    }

    pub(crate) fn enqueue(&mut self, id: u64, new: NewJobOf, place: Place, now: Instant) {
        let NewJobOf { time_ms, priority, run_at_ms, max_attempts, expires_ms, name, order_key } = new;
        let has_extra = !name.is_empty() || !order_key.is_empty() || expires_ms.is_some();
        let extra = has_extra.then(|| Box::new(Extra { name, order_key, expires_ms, ..Extra::default() }));
        let job = Job {
            place,
            priority,
            life: Life::Waiting,
            attempts: 0,
            max_attempts,
            enqueued_ms: time_ms,
            at_ms: run_at_ms,
            token: 0,
            extra,
        };
        self.restore(id, job, now);
    }

    /// Puts a job in as it is.
    pub(crate) fn restore(&mut self, id: u64, job: Job, now: Instant) {
        self.next_job = self.next_job.max(id + 1);
        self.next_token = self.next_token.max(job.token + 1);
        if !job.extra().name.is_empty() {
            self.orders.names.insert(job.extra().name.as_str().into(), id);
        }
        self.jobs.insert(id, job);
        self.enter(id, now);
    }

    pub(crate) fn claim(&mut self, id: u64, token: u64, lease_ms: u64, worker: &str, now: Instant) {
        self.change(id, now, |job| {
            job.life = Life::Claimed;
            job.token = token;
            job.attempts += 1;
            let extra = job.extra_mut();
            extra.lease_ms = lease_ms;
            worker.clone_into(&mut extra.worker);
        });
        self.next_token = self.next_token.max(token + 1);
        self.claims += 1;
    }

    pub(crate) fn end(&mut self, id: u64, done: bool, now: Instant) -> Option<Place> {
        self.leave(id, now);
        let job = self.jobs.remove(&id)?;
        if !job.extra().name.is_empty() {
            self.orders.names.remove(job.extra().name.as_str());
        }
        self.done += u64::from(done);
        Some(job.place)
    }

    pub(crate) fn wait(&mut self, id: u64, run_at_ms: u64, attempts: u32, error: &str, now: Instant) {
        self.change(id, now, |job| {
            job.life = Life::Waiting;
            job.at_ms = run_at_ms;
            job.attempts = attempts;
            if job.extra().error != error {
                error.clone_into(&mut job.extra_mut().error);
            }
        });
    }

    pub(crate) fn die(&mut self, id: u64, time_ms: u64, error: &str, now: Instant) {
        self.change(id, now, |job| {
            job.life = Life::Dead;
            job.at_ms = time_ms;
            error.clone_into(&mut job.extra_mut().error);
        });
    }

    fn change(&mut self, id: u64, now: Instant, change: impl FnOnce(&mut Job)) {
        self.leave(id, now);
        if let Some(job) = self.jobs.get_mut(&id) {
            change(job);
            self.enter(id, now);
        }
    }

    /// Puts a job in the orders that it belongs in.
    fn enter(&mut self, id: u64, now: Instant) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (life, key) = (job.life, job.extra().order_key.clone());
        if let Some(expires_ms) = job.extra().expires_ms.filter(|_| life == Life::Waiting) {
            self.orders.expiring.insert((expires_ms, id));
        }
        if life == Life::Dead {
            self.orders.dead.insert((job.at_ms, id));
            return;
        }
        if key.is_empty() {
            self.expose(id, now);
            return;
        }
        let line = self.orders.lines.entry(key.clone()).or_default();
        match line.active {
            None => {
                line.active = Some(id);
                self.expose(id, now);
            }
            Some(active) => {
                let active_waits = self.jobs.get(&active).is_some_and(|job| job.life == Life::Waiting);
                if life == Life::Claimed || (active_waits && id < active) {
                    line.active = Some(id);
                    line.blocked.insert(active);
                    self.hide(active);
                    self.expose(id, now);
                } else {
                    line.blocked.insert(id);
                }
                self.orders.blocked += 1;
            }
        }
    }

    /// Takes a job out of every order that it is in; the next of its order key comes forward.
    fn leave(&mut self, id: u64, now: Instant) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (life, key) = (job.life, job.extra().order_key.clone());
        if let Some(expires_ms) = job.extra().expires_ms {
            self.orders.expiring.remove(&(expires_ms, id));
        }
        if life == Life::Dead {
            self.orders.dead.remove(&(job.at_ms, id));
            return;
        }
        self.hide(id);
        let Some(line) = self.orders.lines.get_mut(&key) else { return };
        let mut next = None;
        if line.active == Some(id) {
            next = line.blocked.pop_first();
            line.active = next;
            self.orders.blocked -= u64::from(next.is_some());
        } else {
            self.orders.blocked -= u64::from(line.blocked.remove(&id));
        }
        if line.active.is_none() {
            self.orders.lines.remove(&key);
        }
        if let Some(next) = next {
            self.expose(next, now);
        }
    }

    /// Lets a job be claimed, or its claim be looked after.
    fn expose(&mut self, id: u64, now: Instant) {
        let Some(job) = self.jobs.get(&id) else { return };
        match job.life {
            Life::Claimed => self.set_deadline(id, now + Duration::from_millis(job.extra().lease_ms)),
            Life::Waiting if job.at_ms == 0 => drop(self.orders.ready.insert(job.rank(id))),
            Life::Waiting => drop(self.orders.delayed.insert((job.at_ms, id))),
            Life::Dead => {}
        }
    }

    fn hide(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else { return };
        self.orders.ready.remove(&job.rank(id));
        self.orders.delayed.remove(&(job.at_ms, id));
        if let Some(deadline) = self.orders.deadlines.remove(&id) {
            self.orders.leases.remove(&(deadline, id));
        }
    }

    fn set_deadline(&mut self, id: u64, deadline: Instant) {
        if let Some(before) = self.orders.deadlines.insert(id, deadline) {
            self.orders.leases.remove(&(before, id));
        }
        self.orders.leases.insert((deadline, id));
    }
}

/// What the writer asks.
impl QueueState {
    pub(crate) fn jobs(&self) -> &PagedMap<u64, Job> {
        &self.jobs
    }

    pub(crate) fn job(&self, id: u64) -> Option<&Job> {
        self.jobs.get(&id)
    }

    pub(crate) fn named(&self, name: &str) -> Option<u64> {
        self.orders.names.get(name).copied()
    }

    /// Where a job is.
    pub(crate) fn state_of(&self, id: u64, job: &Job) -> JobState {
        let is_blocked =
            || self.orders.lines.get(&job.extra().order_key).is_some_and(|line| line.blocked.contains(&id));
        match job.life {
            Life::Dead => JobState::Dead,
            Life::Claimed => JobState::Claimed,
            Life::Waiting if is_blocked() => JobState::Blocked,
            Life::Waiting if self.orders.delayed.contains(&(job.at_ms, id)) => JobState::Delayed,
            Life::Waiting => JobState::Ready,
        }
    }

    /// Makes ready what may run by now. It follows from the jobs and the time, and is in no log.
    pub(crate) fn wake_due(&mut self, now_ms: u64) {
        while let Some((at_ms, id)) = self.orders.delayed.first().copied()
            && at_ms <= now_ms
        {
            self.orders.delayed.pop_first();
            if let Some(job) = self.jobs.get(&id) {
                self.orders.ready.insert(job.rank(id));
            }
        }
    }

    pub(crate) fn first_ready(&self) -> Option<u64> {
        let (_, id) = self.orders.ready.first().filter(|_| !self.spec.paused)?;
        Some(*id)
    }

    /// Extends a claim. It is in no log: after a restart every claim has its full length again.
    pub(crate) fn extend(&mut self, id: u64, lease: Duration, now: Instant) {
        self.set_deadline(id, now + lease);
    }

    /// The jobs whose claims have ended.
    pub(crate) fn ended(&self, now: Instant) -> Vec<u64> {
        self.orders.leases.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }

    /// The jobs whose time to be claimed is over.
    pub(crate) fn expired(&self, now_ms: u64) -> Vec<u64> {
        self.orders.expiring.iter().take_while(|(at_ms, _)| *at_ms <= now_ms).map(|(_, id)| *id).collect()
    }

    /// The jobs that died up to a time, the first first.
    pub(crate) fn dead(&self, until_ms: u64) -> impl Iterator<Item = u64> {
        self.orders.dead.iter().take_while(move |(at_ms, _)| *at_ms <= until_ms).map(|(_, id)| *id)
    }

    /// When something is due by the wall clock: a job, or its end.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let delayed = self.orders.delayed.first().map(|(at_ms, _)| *at_ms);
        let expiring = self.orders.expiring.first().map(|(at_ms, _)| *at_ms);
        let forgotten = self.orders.dead.first().map(|(at_ms, _)| at_ms.saturating_add(self.spec.keep_dead_ms));
        [delayed, expiring, forgotten].into_iter().flatten().min()
    }

    /// When the next claim ends.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.orders.leases.first().map(|(at, _)| *at)
    }

    pub(crate) fn stats(&self) -> QueueStats {
        let orders = &self.orders;
        // Within a priority the oldest comes first.
        let oldest = (0..=PRIORITY_MAX).filter_map(|rank| {
            let (_, id) = orders.ready.range((rank, 0)..=(rank, u64::MAX)).next()?;
            self.jobs.get(id).map(|job| job.enqueued_ms.max(job.at_ms))
        });
        QueueStats {
            ready: orders.ready.len() as u64,
            delayed: orders.delayed.len() as u64,
            blocked: orders.blocked,
            claimed: orders.leases.len() as u64,
            dead: orders.dead.len() as u64,
            oldest_ready_ms: oldest.min(),
            next_due_ms: orders.delayed.first().map(|(at_ms, _)| *at_ms),
            enqueued: self.next_job - 1,
            done: self.done,
            claims: self.claims,
        }
    }
}
