//! The session: one lease per process and store, one heartbeat, one task for what dropped values leave behind.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{KvHandle, Lease, LeaseId},
    env::Env,
};
use futures::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::{
    backoff::{Backoff, is_retryable},
    lock,
};

/// A presence in the store: everything that blocks create on its behalf goes away with it. Cheap to clone.
///
/// It owns one lease and renews it with one jittered heartbeat. It stops trusting the lease at a **local deadline**,
/// `sent + ttl − margin` by the monotonic clock, counted from the instant the last successful renewal was *sent*: so it
/// knows that it is lost before the store can give what it held to somebody else. Once lost, it stays lost.
///
/// Dropping the last clone (locks, guards and generators hold clones) revokes the lease in the background;
/// [`close`](Self::close) does so and reports.
#[derive(Clone)]
pub struct Session(Arc<Handle>);

/// How a session is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// How long the lease lives without renewal; 10 s by default. Shorter notices a dead process sooner, longer survives
    /// longer pauses.
    pub ttl: Duration,
    /// Who this is, as shown to people by `coact lock ls`; by default the process number and a random suffix.
    pub name: Option<String>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(10), name: None }
    }
}

impl Session {
    /// Grants a lease and starts to keep it alive.
    ///
    /// # Errors
    /// `Invalid` for a `ttl` outside the engine's limits; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// A lease granted to a dropped future ends by itself.
    pub async fn open(kv: &KvHandle, options: SessionOptions) -> Result<Self> {
        let env = kv.env().clone();
        let name = options.name.unwrap_or_else(|| format!("{}-{:08x}", std::process::id(), env.random() as u32));
        let sent = env.now();
        let lease = kv.lease_grant(options.ttl).await?;
        Ok(Self::start(kv, name, lease, sent, lease.ttl, Care::Own))
    }

    fn start(kv: &KvHandle, name: String, lease: Lease, sent: std::time::Instant, left: Duration, care: Care) -> Self {
        let margin = match care {
            Care::Own => (lease.ttl / 10).clamp(MARGIN_MIN, MARGIN_MAX),
            // What is granted goes on to a process that keeps a margin of its own.
            Care::Follow => Duration::ZERO,
        };
        let (jobs, job_receiver) = mpsc::unbounded_channel();
        let core = Arc::new(Core {
            kv: kv.clone(),
            name,
            lease: lease.id,
            ttl: lease.ttl,
            margin,
            care,
            deadline: Mutex::new(sent + left - margin),
            lost: watch::Sender::new(None),
            stop: watch::Sender::new(false),
            closed: watch::Sender::new(None),
            jobs,
            lock_counters: lock::Counters::default(),
        });
        core.env().spawn(keep_alive(core.clone(), sent));
        core.env().spawn(run_jobs(job_receiver, core.lost()));
        Self(Arc::new(Handle(core)))
    }

    /// Joins a session that another process keeps alive, by its lease: for a surface that acts for a client of its own.
    ///
    /// It asks the store how long the lease lives instead of renewing it, and does not end it when it is closed or
    /// dropped; what dropped values leave to it is finished all the same.
    ///
    /// # Errors
    /// `Fenced` if the lease has ended; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn join(kv: &KvHandle, lease: Lease, name: impl Into<String>) -> Result<Self> {
        let sent = kv.env().now();
        let left = kv.lease_left(lease.id).await?.ok_or_else(lease_ended)?;
        Ok(Self::start(kv, name.into(), lease, sent, left, Care::Follow))
    }

    /// Who this is, as shown to people.
    pub fn name(&self) -> &str {
        &self.core().name
    }

    /// The store that it is a session of.
    pub fn kv(&self) -> &KvHandle {
        &self.core().kv
    }

    /// The lease that its entries hang on.
    pub fn lease(&self) -> LeaseId {
        self.core().lease
    }

    /// How long the lease lives without renewal, as the engine granted it.
    pub fn ttl(&self) -> Duration {
        self.core().ttl
    }

    /// Whether the lease can be trusted now. Once this was `false` it stays so.
    pub fn is_alive(&self) -> bool {
        self.core().is_alive()
    }

    /// Until when the lease is trusted if no renewal succeeds, on the clock of [`Env::now`].
    pub fn deadline(&self) -> std::time::Instant {
        *self.core().deadline.lock()
    }

    /// Returns why the session is over, once it is: at the local deadline, when the store ended the lease, or by
    /// [`close`](Self::close). Any number may wait; asked later, it answers at once.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn lost(&self) -> impl Future<Output = Error> + Send + 'static {
        self.core().lost()
    }

    /// What its locks have done so far.
    pub fn lock_stats(&self) -> lock::Stats {
        self.core().lock_counters.snapshot()
    }

    /// Ends the session: no more renewals, the lease revoked, all its entries deleted. Later calls report the same.
    ///
    /// # Errors
    /// `Unavailable` if the store could not be told; the lease then ends by itself within its `ttl`.
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        let mut closed = self.core().closed.subscribe();
        self.core().stop.send_replace(true);
        match closed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // The environment ended the task (a simulated crash): nobody is left to tell.
            Err(_) => Err(self.core().closed_error()),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.0
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} at {})", self.name(), self.kv().describe())
    }
}

const MARGIN_MIN: Duration = Duration::from_millis(50);
const MARGIN_MAX: Duration = Duration::from_secs(1);

/// What users hold; the background tasks hold the [`Core`], so that they do not keep the session open.
struct Handle(Arc<Core>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop.send_replace(true);
    }
}

/// Who keeps the lease alive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// This session, which also ends it.
    Own,
    /// Another process: this session looks whether it still does.
    Follow,
}

/// What users and background tasks share.
pub(crate) struct Core {
    kv: KvHandle,
    name: String,
    lease: LeaseId,
    ttl: Duration,
    margin: Duration,
    care: Care,
    deadline: Mutex<std::time::Instant>,
    lost: watch::Sender<Option<Error>>,
    stop: watch::Sender<bool>,
    closed: watch::Sender<Option<Result<()>>>,
    jobs: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
    lock_counters: lock::Counters,
}

impl Core {
    pub(crate) fn kv(&self) -> &KvHandle {
        &self.kv
    }

    pub(crate) fn env(&self) -> &Env {
        self.kv.env()
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn lock_counters(&self) -> &lock::Counters {
        &self.lock_counters
    }

    /// Pauses between attempts that the lease bounds.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.env(), self.ttl / 200, self.ttl / 8)
    }

    /// Why the session is over, if it is.
    pub(crate) fn ensure_alive(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        Err(self.lost.borrow().clone().unwrap_or_else(|| self.closed_error()))
    }

    pub(crate) fn is_alive(&self) -> bool {
        if self.lost.borrow().is_some() {
            return false;
        }
        if self.env().now() < *self.deadline.lock() {
            return true;
        }
        self.mark_lost(self.deadline_error(None));
        false
    }

    pub(crate) fn lost(&self) -> impl Future<Output = Error> + Send + use<> {
        let mut lost = self.lost.subscribe();
        let closed = self.closed_error();
        async move {
            match lost.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or(closed),
                Err(_) => closed,
            }
        }
    }

    /// Runs work that makes no sense without the session, and ends it when the session is over.
    pub(crate) async fn unless_lost<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            result = work => result,
            why = self.lost() => Err(why),
        }
    }

    /// Takes the store's word that the lease has ended.
    pub(crate) fn mark_fenced(&self, error: &Error) {
        self.mark_lost(self.fenced_error(error));
    }

    /// Hands work to the session's task. It is dropped when the session is over: by then nothing is left to clean up.
    /// Works outside a runtime, as `Drop` must.
    pub(crate) fn defer(&self, job: impl Future<Output = ()> + Send + 'static) {
        // Sending fails only after the session's end.
        let _ = self.jobs.send(Box::pin(job));
    }

    fn mark_lost(&self, why: Error) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(why);
            }
            first
        });
    }

    /// Renews until that fails for good, and says why.
    async fn renew_until_lost(&self, mut sent: std::time::Instant) -> Error {
        loop {
            // A lease that another process renews may have less left than its ttl.
            let trusted = self.deadline.lock().saturating_duration_since(sent) + self.margin;
            let third = self.ttl.min(trusted) / 3;
            let pause = third.mul_f64(0.8) + self.env().random_duration(third.mul_f64(0.4));
            self.env().sleep_until(sent + pause).await;
            match self.renew().await {
                Ok(renewed) => sent = renewed,
                Err(why) => return why,
            }
        }
    }

    /// Renews once, with as many attempts as the deadline allows, and returns when the successful one was sent.
    async fn renew(&self) -> Result<std::time::Instant> {
        let mut backoff = self.backoff();
        let mut last_failure = None;
        loop {
            let sent = self.env().now();
            let left = self.deadline.lock().saturating_duration_since(sent);
            if left.is_zero() {
                return Err(self.deadline_error(last_failure));
            }
            // An attempt that hangs must leave time for another: renewing twice does no harm.
            let attempt = self.env().timeout(left.min(self.ttl / 4), self.lease_length()).await;
            match attempt {
                Some(Ok(ttl)) if self.trust_until(sent + ttl - self.margin) => return Ok(sent),
                Some(Ok(_)) => return Err(self.deadline_error(None)),
                Some(Err(error)) if is_retryable(&error) => last_failure = Some(error),
                Some(Err(error)) => return Err(self.fenced_error(&error)),
                None => last_failure = Some(Error::new(ErrorKind::Unavailable, "a renewal was not answered in time")),
            }
            // The attempt took time of its own: no pause goes beyond the deadline.
            let left = self.deadline.lock().saturating_duration_since(self.env().now());
            self.env().sleep(backoff.next_pause().min(left)).await;
        }
    }

    /// How long the lease lives from now on.
    async fn lease_length(&self) -> Result<Duration> {
        match self.care {
            Care::Own => self.kv.lease_renew(self.lease).await,
            Care::Follow => self.kv.lease_left(self.lease).await?.ok_or_else(lease_ended),
        }
    }

    /// Moves the deadline, unless it has passed: a late answer does not bring a lost session back.
    fn trust_until(&self, deadline: std::time::Instant) -> bool {
        let mut current = self.deadline.lock();
        if self.lost.borrow().is_some() || self.env().now() >= *current {
            return false;
        }
        *current = deadline.max(*current);
        true
    }

    /// Revokes the lease, trying for as long as it could still live.
    async fn revoke(&self) -> Result<()> {
        let give_up = self.env().now() + self.ttl;
        let mut backoff = self.backoff();
        loop {
            let error = match self.env().timeout(self.ttl / 4, self.kv.lease_revoke(self.lease)).await {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => error,
                None => Error::new(ErrorKind::Unavailable, "the end of a lease was not confirmed in time"),
            };
            if !is_retryable(&error) || self.env().now() >= give_up {
                return Err(error.effect_unknown());
            }
            backoff.pause().await;
        }
    }

    fn deadline_error(&self, cause: Option<Error>) -> Error {
        let message = format!("session {} is lost: its lease could not be renewed in time", self.name);
        let error = Error::new(ErrorKind::Fenced, message);
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }

    fn fenced_error(&self, cause: &Error) -> Error {
        let message = format!("session {} is lost: the store no longer keeps its lease", self.name);
        Error::new(ErrorKind::Fenced, message).with_source(cause.clone())
    }

    fn closed_error(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("session {} is closed", self.name))
    }
}

fn lease_ended() -> Error {
    Error::new(ErrorKind::Fenced, "the lease has ended")
}

/// The heartbeat. It alone renews and revokes the lease, so that no renewal can follow the end: the immortal lock of
/// redisson #7272. (One still on its way when we revoke finds the lease gone, and a lease never comes back.)
async fn keep_alive(core: Arc<Core>, granted: std::time::Instant) {
    let mut stop = core.stop.subscribe();
    let why = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => core.closed_error(),
        why = core.renew_until_lost(granted) => why,
    };
    if core.care == Care::Follow && why.kind() == ErrorKind::Closed {
        // The lease lives on, and what was deferred is still to be done.
        core.closed.send_replace(Some(Ok(())));
        return;
    }
    // First nobody trusts the lease, then it ends.
    core.mark_lost(why);
    // A lost lease is not revoked before its user lets go: the margin is the user's time to stop.
    let _ = stop.wait_for(|stop| *stop).await;
    let result = if core.care == Care::Own { core.revoke().await } else { Ok(()) };
    if let Err(error) = &result {
        tracing::debug!(session = core.name, %error, "the lease was left to end by itself");
    }
    core.closed.send_replace(Some(result));
}

/// Runs deferred work until the session is over.
async fn run_jobs(mut jobs: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>, lost: impl Future<Output = Error>) {
    tokio::pin!(lost);
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut lost => return,
            job = jobs.recv() => match job {
                Some(job) => running.push(job),
                // Only a joined session gets here, whose lease may outlive it: nobody else would finish this.
                None => break,
            },
            Some(()) = running.next() => {}
        }
    }
    while running.next().await.is_some() {}
}
