//! A world: machines with a name, each with its own randomness, wall clock, tasks and disk.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::Instant,
};

use coact_core::env::{Disk, Env, PlantedBug, Source};
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use super::{SimDisk, random::Random, signal::Signal, text_of};

/// 2026-01-01.
const WALL_START_MS: u64 = 1_767_225_600_000;

/// Everything that one simulation has. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    seed: u64,
    began: Instant,
    machines: Mutex<BTreeMap<String, Arc<Machine>>>,
    planted: Mutex<HashSet<PlantedBug>>,
    /// The first panic of a task.
    failure: watch::Sender<Option<String>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World(seed {})", self.0.seed)
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Inner {
            seed,
            began: Env::real().now(),
            machines: Mutex::default(),
            planted: Mutex::default(),
            failure: watch::Sender::new(None),
        }))
    }

    /// Its seed.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// The environment of a process that starts now on the machine of this name. A crash of the machine ends its tasks
    /// and takes its disk away for good: whatever starts afterwards needs a new one.
    pub fn env(&self, name: &str) -> Env {
        let machine = self.machine(name);
        let disk = machine.disk.attach();
        Env::new(Process { world: self.clone(), machine, disk })
    }

    /// The disk of a machine.
    pub fn disk(&self, name: &str) -> SimDisk {
        self.machine(name).disk.clone()
    }

    /// Steps the wall clock of a machine.
    pub fn step_clock(&self, name: &str, by_ms: i64) {
        *self.machine(name).step_ms.lock() += by_ms;
    }

    /// Cuts the power of a machine and gives it back: ends its tasks; its disk keeps what was synced, and by chance some
    /// of the rest.
    pub fn crash(&self, name: &str) {
        let machine = self.machine(name);
        machine.kill();
        machine.disk.crash();
    }

    /// Plants a defect in every process of the world.
    pub fn plant(&self, bug: PlantedBug) {
        self.0.planted.lock().insert(bug);
    }

    /// Starts a task that belongs to no machine. Its panic fails the scenario.
    #[allow(clippy::disallowed_methods, reason = "this is the environment")]
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        let world = self.clone();
        tokio::spawn(async move {
            match AssertUnwindSafe(task).catch_unwind().await {
                Ok(output) => output,
                Err(panic) => {
                    world.fail(text_of(&*panic));
                    std::panic::resume_unwind(panic)
                }
            }
        })
    }

    /// How often the machine crashed.
    pub(super) fn crashes(&self, name: &str) -> Signal {
        self.machine(name).crashes.clone()
    }

    /// Returns the message of the first task that panicked, once one has.
    pub(super) async fn failure(&self) -> String {
        let mut failure = self.0.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(text) => text.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    fn fail(&self, text: String) {
        self.0.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(text);
            first
        });
    }

    fn machine(&self, name: &str) -> Arc<Machine> {
        let mut machines = self.0.machines.lock();
        machines.entry(name.to_owned()).or_insert_with(|| Machine::new(self.0.seed, name)).clone()
    }
}

struct Machine {
    random: Mutex<Random>,
    step_ms: Mutex<i64>,
    tasks: Mutex<Vec<AbortHandle>>,
    crashes: Signal,
    disk: SimDisk,
}

impl Machine {
    fn new(seed: u64, name: &str) -> Arc<Self> {
        Arc::new_cyclic(|machine: &Weak<Self>| {
            let machine = machine.clone();
            let on_crash = Box::new(move || {
                if let Some(machine) = machine.upgrade() {
                    machine.kill();
                }
            });
            Self {
                random: Mutex::new(Random::new(seed, name)),
                step_ms: Mutex::default(),
                tasks: Mutex::default(),
                crashes: Signal::default(),
                disk: SimDisk::new(Random::new(seed, &format!("disk of {name}")), on_crash),
            }
        })
    }

    fn kill(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.crashes.update(|crashes| crashes + 1);
    }
}

/// What one process sees of its machine.
struct Process {
    world: World,
    machine: Arc<Machine>,
    disk: Arc<dyn Disk>,
}

impl Source for Process {
    fn wall_ms(&self) -> u64 {
        let elapsed = Env::real().now().duration_since(self.world.0.began).as_millis() as u64;
        (WALL_START_MS + elapsed).saturating_add_signed(*self.machine.step_ms.lock())
    }

    fn random(&self) -> u64 {
        self.machine.random.lock().next()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let task = self.world.spawn(task).abort_handle();
        let mut tasks = self.machine.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    fn spawn_thread(
        &self,
        _name: &str,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<Option<Box<dyn FnOnce() + Send>>> {
        Ok(Some(work))
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn planted(&self, bug: PlantedBug) -> bool {
        self.world.0.planted.lock().contains(&bug)
    }
}
