//! How a worker comes to jobs: one claim at a time, for as many as there are free slots and permits.

use std::time::{Duration, Instant};

use coact_core::{
    Result,
    contract::queue::{Claim, Claimed},
    env::Env,
};

use super::{Answer, Phase, Running, Work};
use crate::{
    backoff::{Backoff, is_retryable, within},
    queue::{WorkerOptions, bucket::Bucket},
};

/// When to claim again.
pub(super) struct Claims {
    bucket: Option<Bucket>,
    /// How many more are to be claimed.
    left: Option<u64>,
    /// Whether a worker that drains found nothing since something was settled last.
    found_nothing: bool,
    drain: bool,
    in_flight: bool,
    next: Instant,
    backoff: Backoff,
    /// Until when an end waits for a claim on its way.
    awaited_until: Option<Instant>,
}

/// The longest that a claim waits for a job.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How long an end waits for a claim on its way, so that what it brings is given back and need not wait for its lease.
const CLAIM_GRACE: Duration = Duration::from_millis(250);
/// How long after a claim that found nothing the next one is sent, at the earliest.
const EMPTY_PAUSE: Duration = Duration::from_millis(10);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

impl Claims {
    pub(super) fn new(env: &Env, options: &WorkerOptions) -> Self {
        let now = env.now();
        Self {
            bucket: options.rate.map(|rate| Bucket::new(rate, now)),
            left: options.jobs,
            found_nothing: false,
            drain: options.drain,
            in_flight: false,
            next: now,
            backoff: Backoff::new(env, RETRY_FIRST, RETRY_LONGEST),
            awaited_until: None,
        }
    }

    pub(super) fn stop(&mut self, now: Instant) {
        self.awaited_until = Some(now + CLAIM_GRACE);
    }

    /// Something was settled: there may be jobs again.
    pub(super) fn look_again(&mut self) {
        self.found_nothing = false;
    }

    /// Whether nothing more is to be claimed.
    pub(super) fn is_over(&self) -> bool {
        !self.in_flight && (self.left == Some(0) || self.found_nothing)
    }

    pub(super) fn is_awaited(&self, now: Instant) -> bool {
        self.in_flight && self.awaited_until.is_some_and(|until| now < until)
    }

    /// How many jobs may be claimed, by permits and by what is left to do.
    fn most(&self, now: Instant) -> usize {
        let permits = self.bucket.as_ref().map_or(usize::MAX, |bucket| bucket.available(now));
        let left = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        permits.min(left)
    }
}

impl Work {
    pub(super) fn claim(&mut self, now: Instant) {
        if self.claim_due(now).is_none_or(|due| due > now) || !matches!(self.phase, Phase::Working) {
            return;
        }
        let limit = self.free_slots().min(self.claims.most(now));
        if limit == 0 {
            return;
        }
        let options = &self.shared.options;
        // A quarter, so that a claim that waited to the last has most of its lease left.
        let wait = if options.drain { Duration::ZERO } else { (options.lease / 4).min(WAIT_MAX) };
        let (queues, queue) = (self.shared.queue.handle().clone(), self.shared.queue.name().clone());
        let claim = Claim { queue, worker: self.shared.name.clone(), limit, lease: options.lease, wait };
        let (env, limit) = (self.env.clone(), wait + options.lease);
        self.claims.in_flight = true;
        self.send(async move {
            let sent = env.now();
            Answer::Claimed { sent, answer: within(&env, limit, "a claim", queues.claim(claim)).await }
        });
    }

    /// When the next claim can be sent, or an end no longer waits for the one on its way.
    pub(super) fn claim_due(&self, now: Instant) -> Option<Instant> {
        let claims = &self.claims;
        if !matches!(self.phase, Phase::Working) {
            return claims.awaited_until.filter(|until| claims.in_flight && now < *until);
        }
        if claims.in_flight || claims.is_over() || self.free_slots() == 0 {
            return None;
        }
        let permit = claims.bucket.as_ref().map_or(now, |bucket| bucket.next(now));
        Some(claims.next.max(permit))
    }

    pub(super) fn take_claimed(&mut self, sent: Instant, answer: Result<Vec<Claimed>>) {
        self.claims.in_flight = false;
        let now = self.env.now();
        match answer {
            Ok(claimed) => {
                self.claims.backoff.reset();
                if claimed.is_empty() {
                    self.claims.found_nothing = self.claims.drain;
                    self.claims.next = now + EMPTY_PAUSE;
                }
                self.count(claimed.len(), now);
                claimed.into_iter().for_each(|claimed| self.begin(claimed, sent));
            }
            Err(error) if is_retryable(&error) => {
                tracing::warn!(queue = %self.shared.queue.name(), %error, "no job could be claimed; trying again");
                self.claims.next = now + self.claims.backoff.next_pause();
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn count(&mut self, claimed: usize, now: Instant) {
        self.shared.counters.claimed.add(claimed as u64);
        self.claims.left = self.claims.left.map(|left| left.saturating_sub(claimed as u64));
        if let Some(bucket) = &mut self.claims.bucket {
            bucket.take(claimed, now);
        }
    }

    /// Begins a job; gives it back if its time is over already, or ours.
    fn begin(&mut self, claimed: Claimed, sent: Instant) {
        let running = Running::new(&self.env, claimed, sent);
        if !matches!(self.phase, Phase::Working) || running.hold.is_lost() {
            self.give_back(&running);
            return;
        }
        running.start(&self.env, &self.handler, self.stopping.clone(), self.to_ended.clone());
        self.running.insert(running.hold.claimed.token, running);
    }

    fn free_slots(&self) -> usize {
        self.shared.options.concurrency.saturating_sub(self.running.len())
    }
}
