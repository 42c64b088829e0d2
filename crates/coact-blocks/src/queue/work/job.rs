//! One job in work: its handler in a task of its own, and what came of it.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    contract::queue::{Claimed, Token, Verdict},
    env::Env,
};
use futures::{
    FutureExt,
    future::{AbortHandle, AbortRegistration, Abortable},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{Handler, Work};
use crate::{
    backoff::Backoff,
    panic,
    queue::{Context, Outcome, context::Hold},
};

/// A claim whose handler runs. Whoever drops it drops the handler too.
pub(super) struct Running {
    pub(super) hold: Arc<Hold>,
    /// When to extend it.
    pub(super) extend_at: Instant,
    abort: AbortHandle,
    registration: Mutex<Option<AbortRegistration>>,
}

/// What the task of a handler tells.
pub(super) struct Ended {
    token: Token,
    how: How,
    busy: Duration,
}

enum How {
    Said(Result<Outcome, String>),
    Panicked(String),
    Dropped,
}

impl Running {
    pub(super) fn new(env: &Env, claimed: Claimed, sent: Instant) -> Self {
        let (abort, registration) = AbortHandle::new_pair();
        let extend_at = sent + claimed.lease / 3;
        let hold = Arc::new(Hold::new(env, claimed, sent));
        Self { hold, extend_at, abort, registration: Mutex::new(Some(registration)) }
    }

    /// Runs the handler in a task.
    pub(super) fn start(
        &self,
        env: &Env,
        handler: &Handler,
        stopping: watch::Receiver<bool>,
        to: mpsc::UnboundedSender<Ended>,
    ) {
        let Some(registration) = self.registration.lock().take() else { return };
        let (hold, clock, handler) = (self.hold.clone(), env.clone(), handler.clone());
        env.spawn(async move {
            let (token, began) = (hold.claimed.token, clock.now());
            let work = async move { handler(Context { hold, stopping }).await };
            let how = match Abortable::new(AssertUnwindSafe(work).catch_unwind(), registration).await {
                Ok(Ok(said)) => How::Said(said),
                Ok(Err(panic)) => How::Panicked(panic::describe(&*panic)),
                Err(_) => How::Dropped,
            };
            // Nobody listens if the worker was dropped.
            let _ = to.send(Ended { token, how, busy: clock.now().duration_since(began) });
        });
    }

    /// Drops the handler where it waits.
    pub(super) fn drop_handler(&self) {
        self.abort.abort();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl Work {
    /// Takes what came of a job, to be told to the store unless the claim is over.
    pub(super) fn end(&mut self, ended: Ended) {
        // One that was given back has ended too late.
        let Some(running) = self.running.remove(&ended.token) else { return };
        let counters = &self.shared.counters;
        counters.busy_micros.add(u64::try_from(ended.busy.as_micros()).unwrap_or(u64::MAX));
        if matches!(ended.how, How::Panicked(_)) {
            counters.panicked.increment();
        }
        if matches!(ended.how, How::Said(Ok(Outcome::Settled))) {
            self.claims.look_again();
        } else if running.hold.is_fenced() {
            counters.fenced.increment();
            self.claims.look_again();
        } else {
            let verdict = self.verdict(ended.how, running.hold.claimed.attempt);
            self.reports.push(&running.hold, verdict);
        }
    }

    /// Gives a job back that was not begun, or whose handler does not end.
    pub(super) fn give_back(&mut self, running: &Running) {
        if running.hold.is_fenced() {
            self.shared.counters.fenced.increment();
        } else {
            self.reports.push(&running.hold, Verdict::Release);
            running.hold.fence();
        }
    }

    fn verdict(&self, how: How, attempt: u32) -> Verdict {
        match how {
            How::Said(Ok(Outcome::Done)) => Verdict::Ack,
            How::Said(Ok(Outcome::Kill { error })) => Verdict::Kill { error },
            How::Said(Ok(Outcome::Retry { after, error })) => {
                Verdict::Nack { delay: after.unwrap_or_else(|| self.rest(attempt)), error }
            }
            How::Said(Err(error)) => Verdict::Nack { delay: self.rest(attempt), error },
            How::Panicked(error) => Verdict::Nack { delay: self.rest(attempt), error },
            How::Dropped | How::Said(Ok(Outcome::Release | Outcome::Settled)) => Verdict::Release,
        }
    }

    fn rest(&self, attempt: u32) -> Duration {
        let options = &self.shared.options;
        Backoff::after(&self.env, options.retry_first, options.retry_longest, attempt)
    }
}
