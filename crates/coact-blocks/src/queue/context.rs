//! What a handler knows of its job, and what it may answer.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::queue::{Claimed, JobId, NewJob, Receipt, Token},
    env::Env,
};
use tokio::sync::watch;

/// What became of a job, as its handler says. A handler's `Err` is a failure: `Retry` with the usual pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed: try again, unless that was its last attempt.
    Retry {
        /// How long it rests; `None` for the usual pause, which doubles with each attempt.
        after: Option<Duration>,
        /// Why.
        error: String,
    },
    /// It failed for good: no other attempt would help.
    Kill {
        /// Why.
        error: String,
    },
    /// It was not tried: somebody else may, at once, and the attempt does not count.
    Release,
    /// The handler settled the claim itself, by its [receipt](Context::receipt): in a commit with other changes.
    Settled,
}

/// One claim of one job, for its handler. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub(super) hold: Arc<Hold>,
    pub(super) stopping: watch::Receiver<bool>,
}

impl Context {
    /// The job.
    pub fn job(&self) -> &NewJob {
        &self.hold.claimed.job
    }

    /// Its name, given by the engine.
    pub fn id(&self) -> JobId {
        self.hold.claimed.id
    }

    /// The fencing token of this claim: what the job changes elsewhere should refuse lower ones.
    pub fn token(&self) -> Token {
        self.hold.claimed.token
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.hold.claimed.attempt
    }

    /// Everything about the claim.
    pub fn claimed(&self) -> &Claimed {
        &self.hold.claimed
    }

    /// What names this claim, for a handler that settles it in a commit of its own.
    pub fn receipt(&self) -> Receipt {
        self.hold.claimed.receipt()
    }

    /// Refuses if the claim is over, or may be: its lease could not be extended in time, or the store said so. Look
    /// before each step that must not happen twice.
    ///
    /// # Errors
    /// `Fenced`: stop; the job may be another worker's.
    pub fn check(&self) -> Result<()> {
        if self.hold.is_lost() {
            let (id, token) = (self.id(), self.token());
            return Err(Error::new(ErrorKind::Fenced, format!("the claim of job {id} is over (token {})", token.0)));
        }
        Ok(())
    }

    /// Ends when the claim is over, or may be.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) {
        self.hold.lost().await;
    }

    /// Ends when the worker is to stop. A handler with long work ahead may answer [`Outcome::Release`] then.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn stopping(&self) {
        let mut stopping = self.stopping.clone();
        if stopping.wait_for(|stopping| *stopping).await.is_err() {
            // The worker itself is gone, and with it everybody who could stop it.
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context(job {}, attempt {})", self.id(), self.attempt())
    }
}

/// What the worker and the handler share about a claim.
pub(super) struct Hold {
    pub(super) claimed: Claimed,
    env: Env,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy)]
struct State {
    /// Until when the claim lives for sure, on our clock.
    until: Instant,
    /// The store said that it is over.
    fenced: bool,
}

impl Hold {
    /// A claim whose request was sent then: it lives for at least its lease from there.
    pub(super) fn new(env: &Env, claimed: Claimed, sent: Instant) -> Self {
        let state = State { until: sent + claimed.lease, fenced: false };
        Self { claimed, env: env.clone(), state: watch::Sender::new(state) }
    }

    pub(super) fn until(&self) -> Instant {
        self.state.borrow().until
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.state.borrow().fenced
    }

    pub(super) fn is_lost(&self) -> bool {
        let state = *self.state.borrow();
        state.fenced || self.env.now() >= state.until
    }

    pub(super) fn extend(&self, until: Instant) {
        self.state.send_modify(|state| state.until = state.until.max(until));
    }

    pub(super) fn fence(&self) {
        self.state.send_modify(|state| state.fenced = true);
    }

    async fn lost(&self) {
        let mut changes = self.state.subscribe();
        while !self.is_lost() {
            let until = changes.borrow_and_update().until;
            tokio::select! {
                () = self.env.sleep_until(until) => {}
                // The sender is ours, so it lives.
                _ = changes.changed() => {}
            }
        }
    }
}
