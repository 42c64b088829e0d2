//! How results reach the store: while one request is on its way, the next results gather.

use std::time::{Duration, Instant};

use coact_core::{
    ErrorKind, Result,
    contract::queue::{Settle, Settled, Verdict},
    env::Env,
};

use super::{Answer, Work};
use crate::{
    backoff::{Backoff, is_retryable, within},
    queue::{context::Hold, stats::Counters},
};

/// The result of one claim.
pub(super) struct Report {
    settle: Settle,
    /// Until when the claim lives for sure, so that telling it again makes sense.
    until: Instant,
}

/// Results that the store does not know yet.
pub(super) struct Reports {
    waiting: Vec<Report>,
    in_flight: usize,
    next: Instant,
    backoff: Backoff,
}

/// The most results of one request.
const REPORTS_MAX: usize = 1000;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

impl Reports {
    pub(super) fn new(env: &Env) -> Self {
        let backoff = Backoff::new(env, RETRY_FIRST, RETRY_LONGEST);
        Self { waiting: Vec::new(), in_flight: 0, next: env.now(), backoff }
    }

    pub(super) fn push(&mut self, hold: &Hold, verdict: Verdict) {
        let settle = Settle { receipt: hold.claimed.receipt(), verdict };
        self.waiting.push(Report { settle, until: hold.until() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    pub(super) fn due(&self) -> Option<Instant> {
        (self.in_flight == 0 && !self.waiting.is_empty()).then_some(self.next)
    }

    /// The worker ends, though the store did not answer.
    pub(super) fn give_up(&mut self, counters: &Counters) {
        counters.unanswered.add((self.waiting.len() + self.in_flight) as u64);
        self.waiting.clear();
    }
}

impl Work {
    /// Tells the results that there are.
    pub(super) fn report(&mut self, now: Instant) {
        if self.reports.due().is_none_or(|due| due > now) {
            return;
        }
        let rest = self.reports.waiting.split_off(self.reports.waiting.len().min(REPORTS_MAX));
        let reports = std::mem::replace(&mut self.reports.waiting, rest);
        self.reports.in_flight = reports.len();
        let settle = reports.iter().map(|report| report.settle.clone()).collect();
        let (queues, queue) = (self.shared.queue.handle().clone(), self.shared.queue.name().clone());
        let (env, limit) = (self.env.clone(), self.shared.options.lease);
        self.send(async move {
            Answer::Settled { answer: within(&env, limit, "a report", queues.settle(&queue, settle)).await, reports }
        });
    }

    pub(super) fn take_settled(&mut self, reports: Vec<Report>, answer: Result<Vec<Settled>>) {
        self.reports.in_flight = 0;
        self.claims.look_again();
        let (counters, now) = (&self.shared.counters, self.env.now());
        match answer {
            Ok(settled) => {
                self.reports.backoff.reset();
                reports.iter().zip(settled).for_each(|(report, settled)| count(counters, &report.settle, settled));
            }
            // The queue was deleted, and its claims with it.
            Err(error) if error.kind() == ErrorKind::NotFound => counters.fenced.add(reports.len() as u64),
            Err(error) => {
                tracing::warn!(queue = %self.shared.queue.name(), %error, "results could not be settled");
                let (again, over): (Vec<_>, Vec<_>) =
                    reports.into_iter().partition(|report| is_retryable(&error) && now < report.until);
                counters.unanswered.add(over.len() as u64);
                self.reports.waiting.splice(0..0, again);
                self.reports.next = now + self.reports.backoff.next_pause();
            }
        }
    }
}

fn count(counters: &Counters, settle: &Settle, settled: Settled) {
    let counter = match (settled, &settle.verdict) {
        (Settled::Fenced, _) => &counters.fenced,
        (Settled::Dead, _) => &counters.dead,
        (Settled::Done, Verdict::Ack) => &counters.done,
        (Settled::Done, Verdict::Release) => &counters.released,
        (Settled::Done, _) => &counters.retried,
    };
    counter.increment();
}
