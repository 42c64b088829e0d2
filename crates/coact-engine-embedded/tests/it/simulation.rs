//! Random lives of one engine: clients read and write over a bad network, the machine crashes at random disk operations
//! and random times, also while it recovers, and its clock steps. Whatever was acknowledged must be there afterwards.

mod leases;
mod model;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use coact_core::{
    contract::kv::{Change, Check, KvHandle, Order, Page, Read, Scope, Txn, TxnOutcome},
    env::{Env, PlantedBug},
    guarantees::{Accepted, Durability},
    name::{Dir, Key, Namespace, Realm},
};
use coact_engine_embedded::{Config, Engine, History};
use coact_testkit::sim::{self, Link, Random, World};
use futures::StreamExt;
use parking_lot::Mutex;

use leases::Leases;
use model::{Model, Wrote};

const SEEDS: u64 = 200;
const WEAK_SEEDS: u64 = 60;
const PLANTED_SEEDS: u64 = 40;
const NODE: &str = "node";
const CLIENTS: u64 = 4;
const KEYS: u64 = 6;
/// From the crash to when the scenario notices, at most.
const NOTICE: Duration = Duration::from_millis(5);

#[test]
fn what_was_acknowledged_survives_every_crash() {
    let reached = ["log.torn.after-cut", "log.drop.after-remove", "snapshot.after-rename"].map(count_hits);
    for seed in sim::seeds(SEEDS) {
        sim::run(seed, |world| Life::new(world, Durability::Sync).live());
    }
    if std::env::var("COACT_SIM_SEED").is_err() {
        let reached = reached.map(|hits| hits.load(Relaxed));
        println!("torn tails cut, segments dropped, snapshots: {reached:?}");
        assert!(reached.iter().all(|hits| *hits > 0), "the crashes leave something untested: {reached:?}");
    }
}

/// Counts how often the engine comes by.
fn count_hits(failpoint: &str) -> Arc<AtomicU64> {
    let hits = Arc::<AtomicU64>::default();
    let counted = hits.clone();
    let count = move || {
        counted.fetch_add(1, Relaxed);
    };
    fail::cfg_callback(failpoint, count).expect("a failpoint");
    hits
}

#[test]
fn weaker_durability_loses_a_tail_and_nothing_else() {
    for seed in sim::seeds(WEAK_SEEDS) {
        let every = Duration::from_millis(50);
        let durability = if seed % 2 == 0 { Durability::Os } else { Durability::Interval(every) };
        sim::run(seed, |world| Life::new(world, durability).live());
    }
}

#[test]
fn an_early_acknowledgement_is_caught() {
    assert_caught(PlantedBug::AckBeforeSync);
}

#[test]
fn an_ignored_check_is_caught() {
    assert_caught(PlantedBug::IgnoreCreatedCheck);
}

#[test]
fn the_same_seed_lives_the_same_life() {
    let live = || {
        let mut log = String::new();
        sim::run(3, async |world| {
            let life = Life::new(world, Durability::Sync);
            life.clone().live().await;
            log = life.model.lock().log();
        });
        log
    };
    assert_eq!(live(), live());
}

fn assert_caught(bug: PlantedBug) {
    let caught = (0..PLANTED_SEEDS).any(|seed| {
        let life = || {
            sim::run(seed, |world| {
                world.plant(bug);
                Life::new(world, Durability::Sync).live()
            });
        };
        catch_unwind(AssertUnwindSafe(life)).is_err()
    });
    assert!(caught, "{bug:?} went unnoticed through {PLANTED_SEEDS} seeds");
}

/// One life of one engine.
#[derive(Clone)]
struct Life {
    world: World,
    durability: Durability,
    model: Arc<Mutex<Model>>,
    leases: Arc<Mutex<Leases>>,
    /// The store while the node is up.
    store: Arc<Mutex<Option<KvHandle>>>,
}

impl Life {
    fn new(world: World, durability: Durability) -> Self {
        Self { world, durability, model: Arc::default(), leases: Arc::default(), store: Arc::default() }
    }

    async fn live(self) {
        let mut random = Random::new(self.world.seed(), "life");
        for _ in 0..2 + random.below(4) {
            self.up_and_down(&mut random).await;
        }
        self.open(None).await;
        self.verify(None).await;
        let leases = self.leases.lock().clone();
        leases.verify_that_all_have_ended(self.store(), self.world.env("checker")).await;
        if self.durability == Durability::Sync {
            self.model.lock().verify_linearizability();
        }
    }

    /// Opens the engine, lets clients work, and crashes it.
    async fn up_and_down(&self, random: &mut Random) {
        self.open(Some(random)).await;
        let disk = self.world.disk(NODE);
        let env = self.world.env("power");
        let up_for = Duration::from_millis(200 + random.below(2_500));
        let off_at = env.now() + up_for;
        if random.one_in(2) {
            disk.crash_after_ops(1 + random.below(600));
        }
        let clients: Vec<_> = (0..CLIENTS).map(|number| self.start_client(number)).collect();
        while env.now() < off_at && !disk.has_crashed() {
            env.sleep(NOTICE).await;
            if random.one_in(200) {
                self.world.step_clock(NODE, random.below(7_200_000) as i64 - 3_600_000);
            }
        }
        self.store.lock().take();
        self.world.crash(NODE);
        let crashed = env.now();
        for client in clients {
            client.await.expect("a client does not panic");
        }
        self.open(Some(random)).await;
        self.verify(Some(crashed)).await;
        // A polite end now and then.
        if random.one_in(4) {
            self.store().close().await.expect("it closes");
        }
        self.store.lock().take();
        self.world.crash(NODE);
    }

    /// Opens the engine, which may crash on the way, again and again.
    async fn open(&self, mut random: Option<&mut Random>) {
        let disk = self.world.disk(NODE);
        loop {
            if let Some(random) = &mut random
                && random.one_in(3)
            {
                disk.crash_after_ops(1 + random.below(20));
            }
            let opened = Engine::open(self.config(), self.world.env(NODE)).await;
            if disk.has_crashed() {
                self.world.crash(NODE);
                continue;
            }
            let engine = opened.unwrap_or_else(|error| panic!("after a crash it does not open: {error}"));
            disk.crash_after_ops(u64::MAX);
            *self.store.lock() = Some(engine.kv(Namespace::default(), Accepted::default()));
            return;
        }
    }

    /// Small, so that segments and snapshots follow each other quickly.
    fn config(&self) -> Config {
        let seed = self.world.seed();
        Config {
            durability: self.durability,
            segment_bytes: [4, 16, 64][(seed % 3) as usize] * 1024,
            snapshot_bytes: [6, 40][(seed / 3 % 2) as usize] * 1024,
            history: History {
                revisions: 50 + seed % 200,
                age: seed.is_multiple_of(5).then_some(Duration::from_secs(600)),
            },
            ..Config::in_dir("/data")
        }
    }

    fn store(&self) -> KvHandle {
        self.store.lock().clone().expect("the node is up")
    }

    async fn verify(&self, crashed: Option<Instant>) {
        let all = Order::Name { after: String::new() };
        let page = self.store().list(&registers(), all, 1_000).await.expect("a listing");
        self.verify_registers(&page, crashed);
        if self.durability == Durability::Sync {
            let env = self.world.env("checker");
            let leases = self.leases.lock().clone();
            leases.verify(&self.store(), &env).await;
        } else {
            *self.leases.lock() = Leases::default();
        }
    }

    fn verify_registers(&self, page: &Page, crashed: Option<Instant>) {
        let mut model = self.model.lock();
        match self.durability {
            Durability::Sync => {}
            Durability::Interval(every) => model.forget_after(page.revision, crashed, every + NOTICE * 2),
            _ => model.forget_after(page.revision, crashed, Duration::MAX),
        }
        model.verify(page);
    }

    fn start_client(&self, number: u64) -> tokio::task::JoinHandle<()> {
        let env = self.world.env(&format!("client-{number}"));
        let store = self.store.clone();
        let link = Link::new(&self.world, &env, NODE, Arc::new(move || store.lock().clone()));
        let client = Client { life: self.clone(), env, kv: link.kv() };
        self.world.spawn(async move {
            match number {
                0 => client.follow().await,
                1 => leases::work(&client).await,
                _ => client.work().await,
            }
        })
    }
}

fn registers() -> Dir {
    Dir::new(&Realm::default(), "registers").expect("valid")
}

fn register(number: u64) -> Key {
    registers().key(&format!("k{number}")).expect("valid")
}

/// A client of the engine, for as long as the node is up.
struct Client {
    life: Life,
    env: Env,
    kv: KvHandle,
}

impl Client {
    fn is_up(&self) -> bool {
        self.life.store.lock().is_some() && !self.life.world.disk(NODE).has_crashed()
    }

    fn model(&self) -> parking_lot::MutexGuard<'_, Model> {
        self.life.model.lock()
    }

    fn pick(&self) -> Key {
        register(self.env.random() % KEYS)
    }

    async fn work(&self) {
        while self.is_up() {
            match self.env.random() % 10 {
                0..4 => self.put().await,
                4 => self.put_two().await,
                5 => self.delete().await,
                6..8 => self.replace_if_created().await,
                _ => self.get().await,
            }
        }
    }

    async fn put(&self) {
        let (key, length) = (self.pick(), self.env.random() % 1_500);
        let write = self.model().put(&[&key], length as usize, self.env.now());
        self.write(write, Vec::new()).await;
    }

    async fn put_two(&self) {
        let (one, other) = (self.pick(), self.pick());
        if one == other {
            return;
        }
        let write = self.model().put(&[&one, &other], 100, self.env.now());
        self.write(write, Vec::new()).await;
    }

    async fn delete(&self) {
        let write = self.model().delete(&self.pick(), self.env.now());
        self.write(write, Vec::new()).await;
    }

    /// Reads, waits for others to interfere, and replaces only what it has read.
    async fn replace_if_created(&self) {
        let key = self.pick();
        let Ok(Some(read)) = self.kv.get(&key).await else { return };
        let pause = self.env.random_duration(Duration::from_millis(100));
        self.env.sleep(pause).await;
        let write = self.model().put(&[&key], 50, self.env.now());
        self.write(write, vec![Check::CreatedAt(key, read.created)]).await;
    }

    async fn write(&self, wrote: Wrote, checks: Vec<Check>) {
        let reads = checks.iter().filter_map(|check| match check {
            Check::CreatedAt(key, _) => Some(Read::Get(key.clone())),
            _ => None,
        });
        let txn = Txn { reads: reads.collect(), checks: checks.clone(), writes: wrote.writes.clone() };
        let answer = self.kv.txn(&Realm::default(), txn).await;
        if let (Ok(TxnOutcome::Committed { reads, .. }), [Check::CreatedAt(key, created), ..]) = (&answer, &checks[..])
        {
            let there = reads[0].entry().map(|entry| entry.created);
            assert_eq!(there, Some(*created), "{key} was replaced though its check did not hold");
        }
        self.model().answered(wrote.operation, &answer, self.env.now());
    }

    async fn get(&self) {
        let key = self.pick();
        let called = self.model().tick();
        if let Ok(found) = self.kv.get(&key).await {
            self.model().read(&key, called, found.as_ref());
        }
    }

    /// Follows the dir and takes note of how far it saw: none of it may be taken back.
    async fn follow(&self) {
        while self.is_up() {
            let Ok(mut feed) = self.kv.watch(Scope::Dir(registers()), None).await else { continue };
            let mut last = 0;
            while let Some(Ok(change)) = feed.next().await {
                let at = match change {
                    Change::Put(entry) => {
                        self.model().saw(&entry);
                        entry.modified
                    }
                    Change::Gone { at, .. } | Change::Progress(at) | Change::Resync { at, .. } => at,
                };
                assert!(at.0 >= last, "the watch goes back from {last} to {at}");
                last = at.0;
                self.model().saw_revision(at);
            }
        }
    }
}
