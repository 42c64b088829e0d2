//! Workers: how they are set up, and how they are stopped.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use coact_core::{Error, Result};
use futures::FutureExt;
use tokio::sync::watch;

use super::{
    Context, Outcome, Queue, RateLimit, Stats,
    stats::Counters,
    work::{Handler, Work},
};

/// How a worker works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerOptions {
    /// How many jobs it does at once, from 1 to 10,000; one by default.
    pub concurrency: usize,
    /// How long a claim lives unless it is extended, which happens at a third of it; 30 s by default. The longer, the
    /// later a job of a crashed worker begins anew.
    pub lease: Duration,
    /// How fast jobs begin; as fast as they come by default.
    pub rate: Option<RateLimit>,
    /// How long a job rests after its first failure; 1 s by default. It doubles with each failure, and jitter takes up
    /// to half of it away.
    pub retry_first: Duration,
    /// The longest rest after a failure; 10 min by default.
    pub retry_longest: Duration,
    /// How long jobs that run may go on after [`Control::stop`]; 30 s by default.
    pub grace: Duration,
    /// Whether it ends when no job is ready and none runs.
    pub drain: bool,
    /// After how many jobs it ends, if after any.
    pub jobs: Option<u64>,
    /// Who it is, for people who look at the queue; the number of the process and a random one by default.
    pub name: Option<String>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            concurrency: 1,
            lease: Duration::from_secs(30),
            rate: None,
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(600),
            grace: Duration::from_secs(30),
            drain: false,
            jobs: None,
            name: None,
        }
    }
}

/// The most jobs that one worker does at once.
const CONCURRENCY_MAX: usize = 10_000;

/// Does the jobs of one queue.
pub struct Worker(Control);

/// What a worker, its control and its parts share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) options: WorkerOptions,
    pub(super) name: String,
    pub(super) counters: Counters,
}

/// Stops a worker, and tells what it has done. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) stop: Arc<watch::Sender<bool>>,
}

impl Worker {
    /// A worker that has not begun.
    ///
    /// # Errors
    /// `Invalid` for options that are not allowed.
    pub fn new(queue: &Queue, options: WorkerOptions) -> Result<Self> {
        check(&options)?;
        let env = queue.handle().env();
        let random_name = || format!("{}-{:08x}", std::process::id(), env.random() as u32);
        let name = options.name.clone().unwrap_or_else(random_name);
        let shared = Arc::new(Shared { queue: queue.clone(), options, name, counters: Counters::default() });
        Ok(Self(Control { shared, stop: Arc::new(watch::Sender::new(false)) }))
    }

    /// What stops it.
    pub fn control(&self) -> Control {
        self.0.clone()
    }

    /// Claims jobs and runs the handler on each, in tasks of their own, until it is stopped.
    ///
    /// It goes on while the store cannot be reached. Claims are extended while their handlers run; a handler whose claim
    /// is over is told through its [`Context`], and its result is not acknowledged. A handler that panics has failed; the
    /// others go on. After a stop, jobs that run may go on for the grace; then they are dropped where they wait, and
    /// released.
    ///
    /// # Errors
    /// What the store answers to a claim, if it is final: `NotFound` if there is no such queue, `Denied`, `Closed`,
    /// `Invalid` for a lease that is not allowed. Jobs that run are ended first, as after a stop.
    ///
    /// # Cancel safety
    /// Handlers are dropped where they wait. Their claims end by themselves, when their leases do.
    pub async fn run<H, F, E>(self, handler: H) -> Result<Stats>
    where
        H: Fn(Context) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Outcome, E>> + Send + 'static,
        E: fmt::Display,
    {
        let handler: Handler =
            Arc::new(move |context| handler(context).map(|outcome| outcome.map_err(|error| error.to_string())).boxed());
        // Boxed: with the requests in it, it is large.
        Box::pin(Work::new(self.0, handler).run()).await
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({} of {:?})", self.0.name(), self.0.shared.queue)
    }
}

impl Control {
    /// Tells the worker to claim nothing more, and to end when the jobs that run are settled.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether it was told to.
    pub fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// What the worker has done.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    /// Who the worker is, for people who look at the queue.
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({})", self.shared.name)
    }
}

fn check(options: &WorkerOptions) -> Result<()> {
    let WorkerOptions { concurrency, retry_first, retry_longest, .. } = options;
    if *concurrency == 0 || *concurrency > CONCURRENCY_MAX {
        return Err(Error::invalid(format!("{concurrency} jobs at once are not allowed: use 1 to {CONCURRENCY_MAX}")));
    }
    if retry_first > retry_longest {
        return Err(Error::invalid(format!(
            "a first rest of {retry_first:?} is not allowed: it is longer than the longest, {retry_longest:?}"
        )));
    }
    options.rate.map_or(Ok(()), |rate| rate.check())
}
