//! The one task of a worker: claims as slots free up, extends what runs, settles what ended.

mod claims;
mod extensions;
mod job;
mod reports;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    Error, Result,
    contract::queue::{Claimed, Settled, Token},
    env::Env,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};

use super::{
    Context, Outcome, Stats,
    worker::{Control, Shared},
};
use claims::Claims;
use job::{Ended, Running};
use reports::{Report, Reports};

pub(super) type Handler = Arc<dyn Fn(Context) -> BoxFuture<'static, Result<Outcome, String>> + Send + Sync>;

/// Everything that a worker keeps while it runs.
pub(super) struct Work {
    shared: Arc<Shared>,
    env: Env,
    handler: Handler,
    /// What ends us: it lives as long as we do, so nobody waits for a stop that cannot come.
    control: Control,
    stopping: watch::Receiver<bool>,
    phase: Phase,
    failed: Option<Error>,
    running: BTreeMap<Token, Running>,
    claims: Claims,
    reports: Reports,
    is_extending: bool,
    requests: FuturesUnordered<BoxFuture<'static, Answer>>,
    ended: mpsc::UnboundedReceiver<Ended>,
    to_ended: mpsc::UnboundedSender<Ended>,
}

/// How far the end is.
#[derive(Clone, Copy)]
enum Phase {
    /// Jobs are claimed.
    Working,
    /// Jobs that run may go on until then.
    Finishing(Instant),
    /// They were dropped; those that hold their thread have until then.
    Dropping(Instant),
    /// What is known is told until then.
    Leaving(Instant),
}

/// What the store answered.
enum Answer {
    Claimed { sent: Instant, answer: Result<Vec<Claimed>> },
    Extended { sent: Instant, tokens: Vec<Token>, answer: Result<Vec<Settled>> },
    Settled { reports: Vec<Report>, answer: Result<Vec<Settled>> },
}

/// How long a dropped handler has to let go of its thread.
const DROP_GRACE: Duration = Duration::from_secs(1);
/// How long the last results are told to a store that does not answer.
const LEAVE_GRACE: Duration = Duration::from_secs(5);
/// When nothing else is due.
const IDLE: Duration = Duration::from_secs(3600);

impl Work {
    pub(super) fn new(control: Control, handler: Handler) -> Self {
        let shared = control.shared.clone();
        let env = shared.queue.handle().env().clone();
        let (to_ended, ended) = mpsc::unbounded_channel();
        Self {
            claims: Claims::new(&env, &shared.options),
            reports: Reports::new(&env),
            stopping: control.stop.subscribe(),
            phase: Phase::Working,
            failed: None,
            running: BTreeMap::new(),
            is_extending: false,
            requests: FuturesUnordered::new(),
            shared,
            env,
            handler,
            control,
            ended,
            to_ended,
        }
    }

    pub(super) async fn run(mut self) -> Result<Stats> {
        while !self.step() {
            let wake = self.next_wake();
            let is_stopped = self.is_stopped();
            tokio::select! {
                Some(answer) = self.requests.next() => self.take(answer),
                Some(ended) = self.ended.recv() => {
                    let mut next = Some(ended);
                    // Whatever else has ended is told in the same request.
                    while let Some(ended) = next {
                        self.end(ended);
                        next = self.ended.try_recv().ok();
                    }
                }
                _ = self.stopping.changed(), if !is_stopped => {}
                () = self.env.sleep_until(wake) => {}
            }
        }
        self.reports.give_up(&self.shared.counters);
        self.failed.map_or_else(|| Ok(self.shared.counters.snapshot()), Err)
    }

    /// Starts everything that is due; true if all is over.
    fn step(&mut self) -> bool {
        let now = self.env.now();
        self.advance(now);
        self.claim(now);
        self.extend(now);
        self.report(now);
        let is_settled = self.running.is_empty() && self.reports.is_empty();
        match self.phase {
            Phase::Working => is_settled && self.claims.is_over(),
            Phase::Finishing(_) | Phase::Dropping(_) => false,
            Phase::Leaving(until) => now >= until || (is_settled && !self.claims.is_awaited(now)),
        }
    }

    fn advance(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Working) && (self.is_stopped() || self.failed.is_some()) {
            self.claims.stop(now);
            self.control.stop();
            self.phase = Phase::Finishing(now + self.shared.options.grace);
        }
        if let Phase::Finishing(until) = self.phase
            && now >= until
        {
            self.running.values().for_each(Running::drop_handler);
            self.phase = Phase::Dropping(now + DROP_GRACE);
        }
        if let Phase::Dropping(until) = self.phase
            && now >= until
        {
            std::mem::take(&mut self.running).into_values().for_each(|running| self.give_back(&running));
        }
        if matches!(self.phase, Phase::Finishing(_) | Phase::Dropping(_)) && self.running.is_empty() {
            self.phase = Phase::Leaving(now + LEAVE_GRACE);
        }
    }

    fn take(&mut self, answer: Answer) {
        match answer {
            Answer::Claimed { sent, answer } => self.take_claimed(sent, answer),
            Answer::Extended { sent, tokens, answer } => self.take_extended(sent, &tokens, answer),
            Answer::Settled { reports, answer } => self.take_settled(reports, answer),
        }
    }

    fn next_wake(&self) -> Instant {
        let now = self.env.now();
        let phase = match self.phase {
            Phase::Working => None,
            Phase::Finishing(until) | Phase::Dropping(until) | Phase::Leaving(until) => Some(until),
        };
        let due = [phase, self.claim_due(now), self.extension_due(), self.reports.due()];
        due.into_iter().flatten().min().unwrap_or(now + IDLE)
    }

    fn is_stopped(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Sends a request and looks at its answer when it comes.
    fn send(&self, request: impl Future<Output = Answer> + Send + 'static) {
        self.requests.push(request.boxed());
    }
}
