//! Random lives of one engine's streams and queues: clients append, delay, consume and work, the machine crashes at random
//! disk operations and random times, and its clock steps. Nothing acknowledged is lost, nothing is there twice, no delayed
//! record comes early, and whoever was fenced changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use coact_core::{
    Effect, ErrorKind,
    contract::{
        commit::{Commit, CommitOutcome},
        queue::{Claim, NewJob, QueueHandle, QueueSpec, Settle, Settled, Verdict},
        stream::{
            Append, Batch, DelayId, Delayed, GroupOffset, Offset, OffsetCommit, Read, Record, Stamp, StreamHandle,
            TopicSpec,
        },
    },
    env::{Env, PlantedBug},
    guarantees::Accepted,
    name::{Group, Namespace, Queue, Topic},
    registry::Store,
};
use coact_engine_embedded::{Config, Engine};
use coact_testkit::sim::{self, Random, World};
use parking_lot::Mutex;

const SEEDS: u64 = 100;
const PLANTED_SEEDS: u64 = 60;
pub(crate) const NODE: &str = "node";
const PRODUCERS: u64 = 2;
const WORKERS: u64 = 2;

#[test]
fn no_message_is_lost_or_there_twice() {
    for seed in sim::seeds(SEEDS) {
        sim::run(seed, |world| Life::new(world).live());
    }
}

#[test]
fn an_early_acknowledgement_is_caught() {
    assert_caught(PlantedBug::AckBeforeSync);
}

#[test]
fn a_delay_that_fires_twice_is_caught() {
    assert_caught(PlantedBug::FireDelayTwice);
}

#[test]
fn a_commit_of_an_old_generation_is_caught() {
    assert_caught(PlantedBug::AnyGeneration);
}

fn assert_caught(bug: PlantedBug) {
    let caught = (0..PLANTED_SEEDS).any(|seed| {
        let life = || {
            sim::run(seed, |world| {
                world.plant(bug);
                Life::new(world).live()
            });
        };
        catch_unwind(AssertUnwindSafe(life)).is_err()
    });
    assert!(caught, "{bug:?} went unnoticed through {PLANTED_SEEDS} seeds");
}

/// What clients know.
#[derive(Debug, Default)]
struct Known {
    /// By producer: how many records were asked for, and how many acknowledged.
    produced: BTreeMap<u64, (u64, u64)>,
    /// Delayed records by number: when due, and what is known of them.
    delayed: BTreeMap<u64, (u64, Fate)>,
    /// Jobs whose enqueueing was acknowledged, and all that were asked for.
    enqueued: BTreeSet<u64>,
    asked: BTreeSet<u64>,
    /// Jobs whose end was acknowledged, and those that may have ended.
    done: BTreeSet<u64>,
    maybe_done: BTreeSet<u64>,
    newest_token: u64,
    next_number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody knows whether it was scheduled, or cancelled.
    Unknown,
    Comes,
    Cancelled,
}

#[derive(Clone)]
struct Life {
    world: World,
    known: Arc<Mutex<Known>>,
    store: Arc<Mutex<Option<Store>>>,
}

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

fn queue() -> Queue {
    Queue::new("jobs").expect("a queue")
}

fn group() -> Group {
    Group::new("copiers").expect("a group")
}

/// Opens the node's engine, however often it crashes while it recovers.
pub(crate) async fn recover(world: &World, mut random: Option<&mut Random>) -> Store {
    let disk = world.disk(NODE);
    let seed = world.seed();
    let config = Config {
        segment_bytes: [4, 16, 64][(seed % 3) as usize] * 1024,
        snapshot_bytes: [6, 40][(seed / 3 % 2) as usize] * 1024,
        ..Config::in_dir("/data")
    };
    loop {
        if let Some(random) = &mut random
            && random.one_in(3)
        {
            disk.crash_after_ops(1 + random.below(20));
        }
        let opened = Engine::open(config.clone(), world.env(NODE)).await;
        if disk.has_crashed() {
            world.crash(NODE);
            continue;
        }
        let engine = opened.unwrap_or_else(|error| panic!("after a crash it does not open: {error}"));
        disk.crash_after_ops(u64::MAX);
        return engine.store(Namespace::default(), Accepted::default());
    }
}

impl Life {
    fn new(world: World) -> Self {
        Self { world, known: Arc::default(), store: Arc::default() }
    }

    async fn live(self) {
        let mut random = Random::new(self.world.seed(), "life");
        for _ in 0..2 + random.below(3) {
            self.up_and_down(&mut random).await;
        }
        self.open(None).await;
        self.settle_down().await;
        self.verify().await;
    }

    async fn up_and_down(&self, random: &mut Random) {
        self.open(Some(random)).await;
        let disk = self.world.disk(NODE);
        let env = self.world.env("power");
        let off_at = env.now() + Duration::from_millis(200 + random.below(2_000));
        if random.one_in(2) {
            disk.crash_after_ops(1 + random.below(500));
        }
        let clients: Vec<_> = (0..PRODUCERS + WORKERS + 3).map(|number| self.start_client(number)).collect();
        while env.now() < off_at && !disk.has_crashed() {
            env.sleep(Duration::from_millis(5)).await;
            if random.one_in(200) {
                self.world.step_clock(NODE, random.below(2_000) as i64 - 1_000);
            }
        }
        self.store.lock().take();
        self.world.crash(NODE);
        for client in clients {
            client.await.expect("a client does not panic");
        }
    }

    async fn open(&self, mut random: Option<&mut Random>) {
        loop {
            let store = recover(&self.world, random.as_deref_mut()).await;
            if self.prepare(&store).await.is_ok() {
                *self.store.lock() = Some(store);
                return;
            }
            self.world.crash(NODE);
        }
    }

    async fn prepare(&self, store: &Store) -> coact_core::Result<()> {
        let (streams, queues) = (store.streams()?, store.queues()?);
        for name in ["in", "out", "later"] {
            match streams.create_topic(&topic(name), &TopicSpec { partitions: 2, ..TopicSpec::default() }).await {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        queues.put_queue(&queue(), &QueueSpec { max_attempts: 1_000, ..QueueSpec::default() }).await.map(drop)
    }

    fn start_client(&self, number: u64) -> tokio::task::JoinHandle<()> {
        let store = self.store.lock().clone().expect("it is up");
        let client = Client {
            life: self.clone(),
            env: self.world.env(&format!("client-{number}")),
            streams: store.streams().expect("streams").clone(),
            queues: store.queues().expect("queues").clone(),
        };
        self.world.spawn(async move {
            match number {
                0..PRODUCERS => client.produce(number).await,
                number if number < PRODUCERS + WORKERS => client.work(number).await,
                number if number == PRODUCERS + WORKERS => client.delay().await,
                number if number == PRODUCERS + WORKERS + 1 => client.enqueue().await,
                _ => client.copy().await,
            }
        })
    }

    /// Lets what is due come, and finishes the jobs.
    async fn settle_down(&self) {
        let store = self.store.lock().clone().expect("it is up");
        let (streams, queues) = (store.streams().expect("streams"), store.queues().expect("queues"));
        let env = self.world.env("checker");
        let until = env.now() + Duration::from_secs(60);
        while streams.delay_stats(&topic("later")).await.expect("stats").pending > 0 {
            assert!(env.now() < until, "delayed records do not come, or come again and again");
            env.sleep(Duration::from_millis(100)).await;
        }
        loop {
            let stats = queues.stats(&queue()).await.expect("stats");
            if stats.ready + stats.delayed + stats.claimed + stats.blocked == 0 {
                break;
            }
            let claim = Claim {
                queue: queue(),
                worker: "checker".to_owned(),
                limit: 100,
                lease: Duration::from_secs(10),
                wait: Duration::from_millis(200),
            };
            for claimed in queues.claim(claim).await.expect("claimed") {
                let number = number(&claimed.job.body);
                {
                    let mut known = self.known.lock();
                    assert!(!known.done.contains(&number), "job {number} comes after it was done");
                    assert!(known.asked.contains(&number), "job {number} was never enqueued");
                    known.done.insert(number);
                }
                let ack = Settle { receipt: claimed.receipt(), verdict: Verdict::Ack };
                assert_eq!(queues.settle(&queue(), vec![ack]).await.expect("settled"), [Settled::Done]);
            }
        }
    }

    async fn verify(&self) {
        let store = self.store.lock().clone().expect("it is up");
        let streams = store.streams().expect("streams");
        self.verify_jobs();
        for producer in 0..PRODUCERS {
            let found = read_all(streams, "in", producer as u32).await;
            let copied = read_all(streams, "out", producer as u32).await;
            self.verify_produced(producer, &found, &copied);
        }
        let mut came = read_all(streams, "later", 0).await;
        came.extend(read_all(streams, "later", 1).await);
        self.verify_delayed(&came);
    }

    fn verify_jobs(&self) {
        let known = self.known.lock();
        let ended = |job: &&u64| known.done.contains(job) || known.maybe_done.contains(job);
        let lost: Vec<_> = known.enqueued.iter().filter(|job| !ended(job)).collect();
        assert!(lost.is_empty(), "jobs {lost:?} are lost");
    }

    fn verify_produced(&self, producer: u64, found: &[(u64, u64)], copied: &[(u64, u64)]) {
        let (asked, acknowledged) = self.known.lock().produced.get(&producer).copied().unwrap_or_default();
        let is_sequence = |found: &[(u64, u64)]| found.iter().map(|(number, _)| *number).eq(0..found.len() as u64);
        assert!(is_sequence(found), "{producer}: {found:?}");
        let count = found.len() as u64;
        assert!((acknowledged..=asked).contains(&count), "{producer}: {acknowledged} of {asked} acked, {count} there");
        assert!(is_sequence(copied), "{producer}: copied {copied:?}");
        assert!(copied.len() <= found.len(), "{producer}: more is copied than was there");
    }

    fn verify_delayed(&self, came: &[(u64, u64)]) {
        let known = self.known.lock();
        let mut numbers = BTreeSet::new();
        for (number, time_ms) in came {
            assert!(numbers.insert(*number), "delayed record {number} comes twice");
            let (due_ms, fate) = known.delayed.get(number).expect("it was scheduled");
            assert!(time_ms >= due_ms, "delayed record {number} comes {} ms early", due_ms - time_ms);
            assert_ne!(*fate, Fate::Cancelled, "delayed record {number} comes though it was cancelled");
        }
        for (number, (_, fate)) in &known.delayed {
            assert!(*fate != Fate::Comes || numbers.contains(number), "delayed record {number} is lost");
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).expect("a number");
    text.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

async fn read_all(streams: &StreamHandle, name: &str, partition: u32) -> Vec<(u64, u64)> {
    let mut from = Offset(0);
    let mut found = Vec::new();
    loop {
        let read = Read { topic: topic(name), partition, from, max_bytes: 8 * 1024, wait: Duration::ZERO };
        let fetched = streams.read(read).await.expect("read");
        if fetched.batches.is_empty() {
            return found;
        }
        found.extend(fetched.records(from).map(|stored| (number(&stored.record.value), stored.time_ms)));
        from = fetched.next;
    }
}

/// A client of the engine, for as long as the node is up.
struct Client {
    life: Life,
    env: Env,
    streams: StreamHandle,
    queues: QueueHandle,
}

impl Client {
    fn is_up(&self) -> bool {
        self.life.store.lock().is_some() && !self.life.world.disk(NODE).has_crashed()
    }

    fn known(&self) -> parking_lot::MutexGuard<'_, Known> {
        self.life.known.lock()
    }

    fn value(&self, number: u64) -> Bytes {
        format!("{number} {}", "v".repeat((self.env.random() % 400) as usize)).into()
    }

    async fn pause(&self) {
        let pause = self.env.random_duration(Duration::from_millis(20));
        self.env.sleep(pause).await;
    }

    /// Appends numbers to a partition of its own; asks again with the same stamp for what it does not know.
    async fn produce(&self, producer: u64) {
        let mut next = self.known().produced.get(&producer).map_or(0, |(_, acknowledged)| *acknowledged);
        while self.is_up() {
            let count = match self.known().produced.get(&producer) {
                // What was asked for before is asked for again, as it was.
                Some((asked, acknowledged)) if asked > acknowledged => asked - acknowledged,
                _ => 1 + self.env.random() % 5,
            };
            let records: Vec<_> = (next..next + count).map(|number| Record::new(self.value(number))).collect();
            self.known().produced.insert(producer, (next + count, next));
            let append = Append {
                topic: topic("in"),
                partition: producer as u32,
                batch: Batch::new(&records),
                stamp: Some(Stamp { producer, epoch: 0, sequence: next }),
                expect: None,
            };
            match self.streams.append(append).await {
                Ok(appended) => {
                    assert_eq!(appended.first, Offset(next), "producer {producer}");
                    next += count;
                    self.known().produced.insert(producer, (next, next));
                }
                Err(_) => return,
            }
            self.pause().await;
        }
    }

    /// Copies every partition, a batch and its offset in one commit, under a generation of its own. Now and then another
    /// takes over, and this one, which does not know, goes on.
    async fn copy(&self) {
        while self.is_up() {
            if self.copy_some().await.is_none() {
                self.pause().await;
            }
        }
    }

    async fn copy_some(&self) -> Option<()> {
        let partition = (self.env.random() % PRODUCERS) as u32;
        let generation = self.take_over().await?;
        let (from, late) = (self.committed(partition).await?, self.copy_of(partition, generation).await?);
        if self.env.random().is_multiple_of(3) {
            // Another begins where this one did.
            let generation = self.take_over().await?;
            let other = self.copy_of(partition, generation).await?;
            let first = self.streams.commit(other).await;
            let second = self.streams.commit(late).await;
            if let (Ok(CommitOutcome::Committed(_)), Err(error)) = (&first, &second) {
                assert!(
                    error.kind() == ErrorKind::Fenced || error.effect() == Effect::Unknown || !self.is_up(),
                    "at {from}: {error}"
                );
            }
        } else {
            let _ = self.streams.commit(late).await;
        }
        Some(())
    }

    async fn take_over(&self) -> Option<u64> {
        let generation = self.streams.group(&group()).await.ok()?.map_or(1, |known| known.generation + 1);
        self.streams.fence_group(&group(), generation).await.ok()?;
        Some(generation)
    }

    async fn committed(&self, partition: u32) -> Option<Offset> {
        let known = self.streams.group(&group()).await.ok()?;
        let offsets = known.map_or(Vec::new(), |known| known.offsets);
        let mine = offsets.iter().find(|offset| offset.partition == partition);
        Some(mine.map_or(Offset(0), |offset| offset.offset))
    }

    async fn copy_of(&self, partition: u32, generation: u64) -> Option<Commit> {
        let from = self.committed(partition).await?;
        let read = Read { topic: topic("in"), partition, from, max_bytes: 2_000, wait: Duration::from_millis(50) };
        let fetched = self.streams.read(read).await.ok()?;
        let records: Vec<_> = fetched.records(from).map(|stored| stored.record).collect();
        if records.is_empty() {
            return None;
        }
        let batch = Batch::new(&records);
        let done = GroupOffset { topic: topic("in"), partition, offset: fetched.next, metadata: Bytes::new() };
        Some(Commit {
            appends: vec![Append { topic: topic("out"), partition, batch, stamp: None, expect: None }],
            offsets: Some(OffsetCommit { group: group(), generation, offsets: vec![done] }),
            ..Commit::default()
        })
    }

    async fn delay(&self) {
        while self.is_up() {
            let number = {
                let mut known = self.known();
                known.next_number += 1;
                known.next_number
            };
            let due_ms = self.life.world.env(NODE).wall_ms() + self.env.random() % 800;
            let delayed = Delayed {
                topic: topic("later"),
                partition: (number % 2) as u32,
                record: Record::new(self.value(number)),
                due_ms,
            };
            self.known().delayed.insert(number, (due_ms, Fate::Unknown));
            let Ok(ids) = self.streams.schedule(vec![delayed]).await else { continue };
            self.known().delayed.insert(number, (due_ms, Fate::Comes));
            self.pause().await;
            match self.env.random() % 4 {
                0 => self.cancel(number, ids[0]).await,
                1 => self.reschedule(number, ids[0]).await,
                _ => {}
            }
        }
    }

    async fn cancel(&self, number: u64, id: DelayId) {
        self.set_fate(number, Fate::Unknown);
        match self.streams.cancel(&topic("later"), id).await {
            Ok(true) => self.set_fate(number, Fate::Cancelled),
            Ok(false) => self.set_fate(number, Fate::Comes),
            Err(_) => {}
        }
    }

    async fn reschedule(&self, number: u64, id: DelayId) {
        // Until it is known which holds, the earlier does.
        let due_ms = id.due_ms + 300;
        if let Ok(Some(_)) = self.streams.reschedule(&topic("later"), id, due_ms).await {
            self.known().delayed.insert(number, (due_ms, Fate::Comes));
        }
    }

    fn set_fate(&self, number: u64, fate: Fate) {
        if let Some(known) = self.known().delayed.get_mut(&number) {
            known.1 = fate;
        }
    }

    async fn enqueue(&self) {
        while self.is_up() {
            let number = {
                let mut known = self.known();
                known.next_number += 1;
                let number = known.next_number;
                known.asked.insert(number);
                number
            };
            let run_at_ms = self.life.world.env(NODE).wall_ms() + self.env.random() % 300;
            let job = NewJob {
                run_at_ms: self.env.random().is_multiple_of(2).then_some(run_at_ms),
                order_key: self.env.random().is_multiple_of(3).then(|| Bytes::from("one after the other")),
                priority: (self.env.random() % 3) as u8,
                ..NewJob::new(self.value(number))
            };
            if self.queues.enqueue(&queue(), vec![job]).await.is_ok() {
                self.known().enqueued.insert(number);
            }
            self.pause().await;
        }
    }

    /// Works on jobs, sometimes longer than its lease.
    async fn work(&self, number_of_worker: u64) {
        while self.is_up() {
            let claim = Claim {
                queue: queue(),
                worker: format!("w{number_of_worker}"),
                limit: 3,
                lease: Duration::from_millis(100),
                wait: Duration::from_millis(50),
            };
            let Ok(claimed) = self.queues.claim(claim).await else { continue };
            for job in claimed {
                let number = number(&job.job.body);
                {
                    let mut known = self.known();
                    assert!(!known.done.contains(&number), "job {number} comes after it was done");
                    assert!(known.asked.contains(&number), "job {number} was never enqueued");
                    known.newest_token = known.newest_token.max(job.token.0);
                }
                let busy = self.env.random_duration(Duration::from_millis(130));
                self.env.sleep(busy).await;
                let verdict = match self.env.random() % 4 {
                    0 => Verdict::Nack { delay: Duration::from_millis(20), error: "again".to_owned() },
                    1 => Verdict::Release,
                    _ => Verdict::Ack,
                };
                let is_ack = verdict == Verdict::Ack;
                let settled = self.queues.settle(&queue(), vec![Settle { receipt: job.receipt(), verdict }]).await;
                let mut known = self.known();
                match settled {
                    Ok(settled) if is_ack && settled[0] == Settled::Done => {
                        known.done.insert(number);
                    }
                    Err(_) if is_ack => {
                        known.maybe_done.insert(number);
                    }
                    _ => {}
                }
            }
        }
    }
}
