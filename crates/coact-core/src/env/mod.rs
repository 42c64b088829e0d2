//! The only way to time, randomness, tasks, threads and disks, so that everything above runs under a seeded simulator.
//!
//! [`Env::real`] is the machine. The simulator (in `coact-testkit`) runs tokio with a paused clock and implements
//! [`Source`] with seeded randomness, a wall clock that can be stepped, and a [`Disk`] that loses what was not synced.

mod disk;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::future::BoxFuture;

pub use disk::{Disk, DiskFile, DiskLock, OpenMode, RealDisk};

use crate::error::{Error, ErrorKind, Result};

/// A defect that a test turns on to see that its checker catches it. Every one is off in [`Env::real`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlantedBug {
    /// The embedded engine acknowledges before it syncs.
    AckBeforeSync,
    /// The embedded engine takes every `CreatedAt` check as met.
    IgnoreCreatedCheck,
    /// The id block issues for as long as its lease lives, without reserving windows.
    TrustLeaseForId,
    /// A lock takes a wake-up for the grant, without looking again.
    SkipReverify,
    /// A consumer that was fenced takes the group's newest generation for its own, and commits in it.
    CommitOldGeneration,
    /// A record that failed goes behind the later ones of its key.
    RetryOutOfOrder,
    /// A worker of a queue never extends its claims.
    SkipHeartbeat,
    /// The embedded engine appends delayed records and keeps them all the same.
    FireDelayTwice,
    /// The embedded engine takes commits of any generation.
    AnyGeneration,
    /// The embedded engine now and then lets the newest record of a key go.
    CompactNewest,
}

/// What an environment is made of; implemented by [`Env::real`] and by the simulator.
pub trait Source: Send + Sync + 'static {
    /// Milliseconds since 1970, as the wall clock has it: it may step in either direction.
    fn wall_ms(&self) -> u64;
    /// 64 random bits.
    fn random(&self) -> u64;
    /// Starts a task that ends with its future, or with this environment.
    fn spawn(&self, task: BoxFuture<'static, ()>);
    /// Where `work` runs if it blocks on a disk: a thread of its own, or nothing (`None` back) in a simulation, where
    /// the caller runs it as a task.
    fn spawn_thread(
        &self,
        name: &str,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<Option<Box<dyn FnOnce() + Send>>>;
    /// Runs short work that blocks on a disk beside the tasks, or gives it back for the caller to run.
    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) -> Option<Box<dyn FnOnce() + Send>> {
        Some(work)
    }
    /// The disk.
    fn disk(&self) -> Arc<dyn Disk>;
    /// Whether this defect is planted.
    fn planted(&self, bug: PlantedBug) -> bool;
}

/// Time, randomness, tasks and disk. Cheap to clone.
#[derive(Clone)]
pub struct Env(Arc<dyn Source>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

impl Env {
    /// The machine's own clock, randomness, tasks and disk.
    pub fn real() -> Self {
        Self(Arc::new(Real))
    }

    /// An environment of another making: the simulator's.
    pub fn new(source: impl Source) -> Self {
        Self(Arc::new(source))
    }

    /// The monotonic clock. It never goes back and knows no date.
    #[allow(clippy::disallowed_methods, reason = "the one place that reads it; tokio pauses it in simulations")]
    pub fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Milliseconds since 1970 by the wall clock, which may step in either direction.
    pub fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }

    /// 64 random bits.
    pub fn random(&self) -> u64 {
        self.0.random()
    }

    /// A random duration from zero up to `max`.
    pub fn random_duration(&self, max: Duration) -> Duration {
        max.mul_f64(self.random() as f64 / u64::MAX as f64)
    }

    /// Waits.
    ///
    /// # Cancel safety
    /// Safe.
    #[allow(clippy::disallowed_methods, reason = "the one place that sleeps")]
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Waits until an instant of [`now`](Self::now)'s clock.
    ///
    /// # Cancel safety
    /// Safe.
    #[allow(clippy::disallowed_methods, reason = "the one place that sleeps")]
    pub async fn sleep_until(&self, at: Instant) {
        tokio::time::sleep_until(at.into()).await;
    }

    /// Runs a future for at most this long; `None` if it did not end, and it is dropped.
    ///
    /// # Cancel safety
    /// As the future.
    #[allow(clippy::disallowed_methods, reason = "the one place that times out")]
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::time::timeout(limit, future).await.ok()
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(Box::pin(task));
    }

    /// Runs blocking work on a thread of its own. In a simulation the work comes back, for the caller to run as a task.
    ///
    /// # Errors
    /// `Exhausted` if the machine has no thread left.
    pub fn spawn_thread(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<Option<Box<dyn FnOnce() + Send>>> {
        self.0
            .spawn_thread(name, Box::new(work))
            .map_err(|error| Error::new(ErrorKind::Exhausted, "no thread could be started").with_source(error))
    }

    /// Runs short work that blocks on the disk without holding up other tasks; `None` if it panicked.
    ///
    /// # Cancel safety
    /// The work goes on; its outcome is lost.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (to, answer) = tokio::sync::oneshot::channel();
        if let Some(work) = self.0.spawn_blocking(Box::new(move || drop(to.send(work())))) {
            work();
        }
        answer.await.ok()
    }

    /// The disk.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.0.disk()
    }

    /// Whether a test planted this defect.
    pub fn planted(&self, bug: PlantedBug) -> bool {
        self.0.planted(bug)
    }
}

struct Real;

impl Source for Real {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads it")]
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that draws")]
    fn random(&self) -> u64 {
        rand::random()
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(task);
    }

    fn spawn_thread(
        &self,
        name: &str,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<Option<Box<dyn FnOnce() + Send>>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(None)
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that does")]
    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) -> Option<Box<dyn FnOnce() + Send>> {
        tokio::task::spawn_blocking(work);
        None
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk)
    }

    fn planted(&self, _bug: PlantedBug) -> bool {
        false
    }
}
