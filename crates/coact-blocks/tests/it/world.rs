//! Processes in one simulated world: each has its own randomness, wall clock and tasks; they share tokio's paused clock.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use coact_blocks::{Session, SessionOptions};
use coact_core::{
    contract::kv::KvHandle,
    env::{Disk, Env, PlantedBug, RealDisk, Source},
    guarantees::Accepted,
};
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::model::{Client, Fate, Faults, Model};

/// 2026-01-01.
const WALL_START_MS: u64 = 1_767_225_600_000;

/// One process: its environment, its connection to the store, and the faults of that connection.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) kv: KvHandle,
    pub(crate) faults: Arc<Mutex<Faults>>,
    machine: Arc<Machine>,
}

impl Process {
    pub(crate) fn start(model: &Model, seed: u64) -> Self {
        Self::start_with(model, seed, &[])
    }

    pub(crate) fn start_with(model: &Model, seed: u64, planted: &[PlantedBug]) -> Self {
        let machine = Arc::new(Machine {
            seed: Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed),
            origin: Env::real().now(),
            step_ms: AtomicI64::new(0),
            tasks: Mutex::new(Vec::new()),
            planted: planted.iter().copied().collect(),
        });
        let env = Env::new(SharedMachine(machine.clone()));
        let faults = Arc::<Mutex<Faults>>::default();
        let client = Client { model: model.clone(), env: env.clone(), faults: faults.clone() };
        Self { kv: KvHandle::new(client, env, Accepted::default()), faults, machine }
    }

    pub(crate) fn env(&self) -> &Env {
        self.kv.env()
    }

    pub(crate) async fn session(&self) -> Session {
        self.session_with(Duration::from_secs(10)).await
    }

    pub(crate) async fn session_with(&self, ttl: Duration) -> Session {
        Session::open(&self.kv, SessionOptions { ttl, name: None }).await.expect("the store answers")
    }

    pub(crate) async fn named(&self, name: &str) -> Session {
        let options = SessionOptions { name: Some(name.to_owned()), ..SessionOptions::default() };
        Session::open(&self.kv, options).await.expect("the store answers")
    }

    /// Cuts the process off from the store: requests are refused, and feeds end.
    pub(crate) fn cut_off(&self, model: &Model) {
        {
            let mut faults = self.faults.lock();
            faults.fate = Some(Box::new(|_| Fate::Refused));
            faults.cuts += 1;
        }
        model.poke();
    }

    /// Ends the cut.
    pub(crate) fn reconnect(&self) {
        self.faults.lock().fate = None;
    }

    /// Makes its feeds miss what they have not delivered yet; they say so.
    pub(crate) fn lose_changes(&self, model: &Model) {
        self.faults.lock().gaps += 1;
        model.poke();
    }

    /// Steps the wall clock.
    pub(crate) fn step_wall(&self, by_ms: i64) {
        self.machine.step_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Ends every task of the process, as `kill -9` would.
    pub(crate) fn crash(&self) {
        for task in self.machine.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

struct Machine {
    seed: Mutex<u64>,
    origin: Instant,
    step_ms: AtomicI64,
    tasks: Mutex<Vec<tokio::task::AbortHandle>>,
    planted: HashSet<PlantedBug>,
}

struct SharedMachine(Arc<Machine>);

impl Source for SharedMachine {
    fn wall_ms(&self) -> u64 {
        let elapsed = Env::real().now().duration_since(self.0.origin).as_millis() as u64;
        (WALL_START_MS + elapsed).saturating_add_signed(self.0.step_ms.load(Ordering::Relaxed))
    }

    /// SplitMix64.
    fn random(&self) -> u64 {
        let mut seed = self.0.seed.lock();
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    #[allow(clippy::disallowed_methods, reason = "this is the environment")]
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.tasks.lock().push(tokio::spawn(task).abort_handle());
    }

    fn spawn_thread(
        &self,
        _name: &str,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<Option<Box<dyn FnOnce() + Send>>> {
        Ok(Some(work))
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk)
    }

    fn planted(&self, bug: PlantedBug) -> bool {
        self.0.planted.contains(&bug)
    }
}

/// Lets a future run for this many polls and drops it then; `None` if it did not end by itself.
pub(crate) async fn cancel_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    CancelAfter { future: Box::pin(future), left: polls }.await
}

struct CancelAfter<F> {
    future: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for CancelAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        match self.future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Simulated time passes.
pub(crate) async fn pass(seconds: f64) {
    Env::real().sleep(Duration::from_secs_f64(seconds)).await;
}

/// Starts a task that outlives simulated crashes: the test itself.
#[allow(clippy::disallowed_methods, reason = "belongs to the test, not to a process")]
pub(crate) fn start<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}
