//! Blocks on the embedded engine, simulated: a node that crashes and comes back, and clients with a lock and ids that
//! crash, are cut off for longer than their leases live, and have clocks that step.

mod client;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use coact::{
    Env, KvHandle, Namespace,
    embedded::{Config, Engine, History},
    guarantees::Accepted,
};
use coact_core::env::PlantedBug;
use coact_testkit::{
    check::{tokens::Resource, unique::Ids},
    sim::{self, Link, Random, World},
};
use parking_lot::Mutex;

const SEEDS: u64 = 200;
const PLANTED_SEEDS: u64 = 60;
const NODE: &str = "node";
const CLIENTS: usize = 4;
/// How long things go wrong.
const STORM: Duration = Duration::from_secs(40);
/// How long they go well afterwards; the last trouble may take some of it.
const CALM: Duration = Duration::from_secs(40);

#[test]
fn locks_and_ids_keep_their_promises_whatever_happens() {
    let mut seen = Seen::default();
    for seed in sim::seeds(SEEDS) {
        let mut here = Seen::default();
        sim::run(seed, async |world| here = Scene::new(world).play().await);
        seen.grants += here.grants;
        seen.refused += here.refused;
        seen.ids += here.ids;
    }
    println!("{seen:?}");
    if std::env::var("COACT_SIM_SEED").is_err() {
        assert!(seen.refused > 0, "no late write was refused: the faults leave nothing to check");
    }
}

#[test]
fn a_grant_without_another_look_is_caught() {
    assert_caught(PlantedBug::SkipReverify, "believe to hold the lock");
}

#[test]
fn ids_that_trust_the_lease_are_caught() {
    assert_caught(PlantedBug::TrustLeaseForId, "issued");
}

#[test]
fn the_same_seed_plays_the_same() {
    let play = |seed| {
        let mut seen = Seen::default();
        sim::run(seed, async |world| seen = Scene::new(world).play().await);
        seen
    };
    for seed in 0..5 {
        assert_eq!(play(seed), play(seed), "seed {seed}");
    }
}

fn assert_caught(bug: PlantedBug, symptom: &str) {
    let caught = (0..PLANTED_SEEDS).find_map(|seed| {
        let play = || {
            sim::run(seed, async |world| {
                world.plant(bug);
                Scene::new(world).play().await;
            });
        };
        let panic = catch_unwind(AssertUnwindSafe(play)).err()?;
        panic.downcast_ref::<String>().cloned()
    });
    let message = caught.unwrap_or_else(|| panic!("{bug:?} went unnoticed through {PLANTED_SEEDS} seeds"));
    assert!(message.contains(symptom), "{bug:?} was caught by something else: {message}");
}

/// What one play has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    grants: u64,
    refused: u64,
    ids: usize,
}

/// Everything that the parts of one play share.
#[derive(Clone)]
struct Scene {
    world: World,
    /// The store while the node is up.
    store: Arc<Mutex<Option<KvHandle>>>,
    links: Vec<Link>,
    resource: Arc<Resource>,
    ids: Arc<Ids>,
    /// How often each client was granted the lock, and issued ids.
    progress: Arc<Mutex<[Progress; CLIENTS]>>,
    calm_at: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    grants: u64,
    ids: u64,
}

fn client_name(number: usize) -> String {
    format!("client-{number}")
}

impl Scene {
    fn new(world: World) -> Self {
        let store = Arc::<Mutex<Option<KvHandle>>>::default();
        let link = |number| {
            let store = store.clone();
            Link::new(&world, &world.env(&client_name(number)), NODE, Arc::new(move || store.lock().clone()))
        };
        let links = (0..CLIENTS).map(link).collect();
        let calm_at = world.env("director").now() + STORM;
        Self { world, store, links, resource: Arc::default(), ids: Arc::default(), progress: Arc::default(), calm_at }
    }

    async fn play(self) -> Seen {
        for number in 0..CLIENTS {
            client::start(&self, number);
            self.world.spawn(self.clone().trouble_client(number));
        }
        self.world.spawn(self.clone().run_node());
        let env = self.world.env("director");
        env.sleep(STORM).await;
        let before = *self.progress.lock();
        env.sleep(CALM).await;
        let after = *self.progress.lock();
        for (number, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(after.grants > before.grants, "client {number} gets no lock though all is well");
            assert!(after.ids > before.ids, "client {number} gets no ids though all is well");
        }
        self.judge()
    }

    fn is_calm(&self) -> bool {
        self.world.env("director").now() >= self.calm_at
    }

    fn judge(&self) -> Seen {
        let report = self.resource.report();
        assert!(report.violations.is_empty(), "the resource was misused: {:#?}", report.violations);
        assert!(report.overlaps.is_empty(), "two believe to hold the lock: {:#?}", report.overlaps);
        let violations = self.ids.violations();
        assert!(violations.is_empty(), "ids: {violations:#?}");
        let grants = self.progress.lock().iter().map(|progress| progress.grants).sum();
        Seen { grants, refused: report.refused, ids: self.ids.count() }
    }

    /// Opens the node and crashes it, again and again, until it is calm.
    async fn run_node(self) {
        let mut random = Random::new(self.world.seed(), "power of the node");
        let (env, disk) = (self.world.env("power"), self.world.disk(NODE));
        loop {
            let opened = Engine::open(config(), self.world.env(NODE)).await;
            if !disk.has_crashed() {
                let engine = opened.unwrap_or_else(|error| panic!("the node does not open: {error}"));
                *self.store.lock() = Some(engine.kv(Namespace::default(), Accepted::default()));
                if env.now() >= self.calm_at {
                    disk.crash_after_ops(u64::MAX);
                    return;
                }
                self.until_crash(&mut random, &env).await;
                self.store.lock().take();
            }
            self.world.crash(NODE);
            env.sleep(Duration::from_millis(random.below(4_000))).await;
            if random.one_in(4) {
                disk.crash_after_ops(1 + random.below(10));
            }
        }
    }

    async fn until_crash(&self, random: &mut Random, env: &Env) {
        let disk = self.world.disk(NODE);
        let ops = if random.one_in(2) { random.below(400) } else { u64::MAX };
        disk.crash_after_ops(ops);
        let end = env.now() + Duration::from_millis(random.below(20_000));
        while env.now() < end && !disk.has_crashed() {
            env.sleep(Duration::from_millis(10)).await;
        }
    }

    /// Cuts a client off, steps its clock, and crashes it, until it is calm.
    async fn trouble_client(self, number: usize) {
        let name = client_name(number);
        let mut random = Random::new(self.world.seed(), &format!("trouble of {name}"));
        let env = self.world.env("trouble");
        while env.now() < self.calm_at {
            env.sleep(Duration::from_millis(random.below(8_000))).await;
            match random.below(4) {
                0 => {
                    self.links[number].cut(true);
                    env.sleep(Duration::from_millis(random.below(12_000))).await;
                    self.links[number].cut(false);
                }
                1 => self.world.step_clock(&name, random.below(7_200_000) as i64 - 3_600_000),
                2 => self.world.step_clock(&name, random.below(40_000) as i64 - 20_000),
                _ => {
                    self.world.crash(&name);
                    env.sleep(Duration::from_millis(random.below(10_000))).await;
                    client::start(&self, number);
                }
            }
        }
        self.links[number].set_lossy(false);
    }
}

/// Small, so that segments and snapshots follow each other quickly.
fn config() -> Config {
    Config {
        segment_bytes: 16 * 1024,
        snapshot_bytes: 32 * 1024,
        history: History { revisions: 200, age: None },
        ..Config::in_dir("/data")
    }
}
