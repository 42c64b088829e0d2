//! Compaction by key: of each key the newest record stays, where it was, whatever crashes meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use coact_core::{
    ErrorKind,
    contract::stream::{Append, Batch, Offset, Read, Record, StoredRecord, StreamHandle, TopicSpec},
    env::{Env, PlantedBug},
    guarantees::Accepted,
    name::{Namespace, Topic},
    registry::Store,
};
use coact_engine_embedded::{Config, Engine};
use coact_testkit::{
    bed::{PATIENCE, wait_until},
    sim::{self, Random, World},
};
use parking_lot::Mutex;

use crate::message_lives::{NODE, recover};

const SEEDS: u64 = 60;
const PLANTED_SEEDS: u64 = 60;
const KEYS: u64 = 10;
const PARTITIONS: u32 = 2;
/// The header with a record's number, which a record without a value has too.
const NUMBER: &str = "number";

#[test]
fn the_newest_record_of_each_key_survives_every_crash() {
    let gone = AtomicU64::new(0);
    for seed in sim::seeds(SEEDS) {
        sim::run(seed, async |world| {
            gone.fetch_add(Life::new(world).live().await, Relaxed);
        });
    }
    if std::env::var("COACT_SIM_SEED").is_err() {
        println!("{} records were compacted away", gone.load(Relaxed));
        assert!(gone.load(Relaxed) > SEEDS * 10, "hardly anything was compacted: {gone:?}");
    }
}

#[test]
fn a_newest_record_that_goes_is_caught() {
    let caught = (0..PLANTED_SEEDS).any(|seed| {
        let life = || {
            sim::run(seed, async |world| {
                world.plant(PlantedBug::CompactNewest);
                Life::new(world).live().await;
            });
        };
        catch_unwind(AssertUnwindSafe(life)).is_err()
    });
    assert!(caught, "it went unnoticed through {PLANTED_SEEDS} seeds");
}

/// What the client knows.
#[derive(Debug, Default)]
struct Known {
    /// By number.
    sent: BTreeMap<u64, Sent>,
}

/// The key of a record, and where it is if it was acknowledged.
type Sent = (Option<u64>, Option<(u32, Offset)>);

#[derive(Clone)]
struct Life {
    world: World,
    known: Arc<Mutex<Known>>,
}

fn topic() -> Topic {
    Topic::new("state").expect("a topic")
}

fn compacted() -> TopicSpec {
    TopicSpec { partitions: PARTITIONS, compact: true, ..TopicSpec::default() }
}

fn number_of(record: &Record) -> u64 {
    let header = record.headers.iter().find(|(name, _)| name == NUMBER).expect("a number");
    String::from_utf8_lossy(&header.1).parse().expect("a number")
}

impl Life {
    fn new(world: World) -> Self {
        Self { world, known: Arc::default() }
    }

    /// Returns how many records are gone.
    async fn live(self) -> u64 {
        let mut random = Random::new(self.world.seed(), "life");
        for _ in 0..2 + random.below(3) {
            let store = self.open(Some(&mut random)).await;
            let disk = self.world.disk(NODE);
            let env = self.world.env("power");
            let off_at = env.now() + Duration::from_millis(500 + random.below(3_000));
            if random.one_in(2) {
                disk.crash_after_ops(1 + random.below(2_000));
            }
            let life = self.clone();
            let client = self.world.spawn(async move { life.append(&store).await });
            while env.now() < off_at && !disk.has_crashed() {
                env.sleep(Duration::from_millis(5)).await;
            }
            self.world.crash(NODE);
            client.await.expect("the client does not panic");
        }
        let store = self.open(None).await;
        // A last pass, over what the crashes left.
        self.world.env("checker").sleep(Duration::from_secs(3)).await;
        self.verify(store.streams().expect("streams")).await
    }

    async fn open(&self, mut random: Option<&mut Random>) -> Store {
        loop {
            let store = recover(&self.world, random.as_deref_mut()).await;
            match store.streams().expect("streams").create_topic(&topic(), &compacted()).await {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => self.world.crash(NODE),
                _ => return store,
            }
        }
    }

    /// Appends until the engine is gone.
    async fn append(&self, store: &Store) {
        let streams = store.streams().expect("streams");
        let mut random = Random::new(self.world.seed(), &format!("client-{}", self.known.lock().sent.len()));
        let env = self.world.env("client");
        loop {
            let partition = random.below(PARTITIONS.into()) as u32;
            let (mut records, mut numbers) = (Vec::new(), Vec::new());
            for _ in 0..1 + random.below(8) {
                let key =
                    (!random.one_in(50)).then(|| random.below(KEYS) * u64::from(PARTITIONS) + u64::from(partition));
                let value = if random.one_in(20) { String::new() } else { "v".repeat(random.below(40) as usize + 1) };
                let number = {
                    let mut known = self.known.lock();
                    let number = known.sent.len() as u64;
                    known.sent.insert(number, (key, None));
                    number
                };
                let record = Record::new(value).with_header(NUMBER, number.to_string());
                records.push(key.iter().fold(record, |record, key| record.with_key(key.to_string())));
                numbers.push(number);
            }
            let append = Append { topic: topic(), partition, batch: Batch::new(&records), stamp: None, expect: None };
            let Some(Ok(appended)) = env.timeout(Duration::from_secs(5), streams.append(append)).await else { return };
            for (number, offset) in numbers.into_iter().zip(appended.first.0..) {
                if let Some(sent) = self.known.lock().sent.get_mut(&number) {
                    sent.1 = Some((partition, Offset(offset)));
                }
            }
            env.sleep(Duration::from_millis(random.below(20))).await;
        }
    }

    async fn verify(&self, streams: &StreamHandle) -> u64 {
        let found = [read_all(streams, 0).await, read_all(streams, 1).await];
        let known = self.known.lock();
        let mut there = BTreeSet::new();
        let mut newest = BTreeMap::new();
        for (partition, records) in found.into_iter().enumerate() {
            let partition = partition as u32;
            for stored in records {
                let number = number_of(&stored.record);
                let (key, place) = known.sent.get(&number).expect("it was sent");
                assert!(there.insert(number), "record {number} is there twice");
                assert!(place.is_none_or(|place| place == (partition, stored.offset)), "record {number} moved");
                let found = stored.record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
                assert_eq!(found, key.map(|key| key.to_string()), "of record {number}");
                if let Some(key) = key {
                    newest.insert(*key, number);
                }
            }
        }
        let acknowledged = known.sent.iter().filter(|(_, (_, place))| place.is_some());
        let mut gone = 0;
        for (number, (key, _)) in acknowledged {
            match key {
                None => assert!(there.contains(number), "record {number} has no key, and went"),
                Some(key) => {
                    let newest = newest.get(key);
                    assert!(newest >= Some(number), "record {number} of key {key} went, and {newest:?} is the newest");
                    gone += u64::from(!there.contains(number));
                }
            }
        }
        gone
    }
}

async fn read_all(streams: &StreamHandle, partition: u32) -> Vec<StoredRecord> {
    let (mut from, mut found) = (Offset(0), Vec::<StoredRecord>::new());
    loop {
        let read = Read { topic: topic(), partition, from, max_bytes: 64 * 1024, wait: Duration::ZERO };
        let fetched = streams.read(read).await.expect("read");
        found.extend(fetched.records(from));
        from = fetched.next;
        if fetched.batches.is_empty() {
            assert!(found.windows(2).all(|pair| pair[0].time_ms <= pair[1].time_ms), "times go back");
            let end = streams.bounds(&topic(), partition).await.expect("bounds").end;
            assert_eq!(from, end, "whoever reads to the end gets there");
            return found;
        }
    }
}

async fn put(streams: &StreamHandle, key: &str, value: &str) {
    let record = Record::new(value.to_owned()).with_key(key.to_owned());
    let append = Append { topic: topic(), partition: 0, batch: Batch::new([&record]), stamp: None, expect: None };
    streams.append(append).await.expect("appended");
}

async fn values(streams: &StreamHandle) -> Vec<String> {
    let records = read_all(streams, 0).await;
    records.iter().map(|stored| String::from_utf8_lossy(&stored.record.value).into_owned()).collect()
}

/// On real files: what was compacted is so after reopening, and its segments are gone.
#[tokio::test]
async fn what_went_gives_its_room_back() {
    let place = tempfile::tempdir().expect("a directory");
    let config = Config { segment_bytes: 64 << 10, snapshot_bytes: 64 << 10, ..Config::in_dir(place.path()) };
    let engine = Engine::open(config.clone(), Env::real()).await.expect("it opens");
    let store = engine.store(Namespace::default(), Accepted::default());
    let streams = store.streams().expect("streams");
    streams.create_topic(&topic(), &compacted()).await.expect("created");
    let value = |number: u64| format!("{number}-{}", "x".repeat(1_000));
    for number in 0..4_000_u64 {
        put(streams, &format!("k{}", number % 10), &value(number)).await;
    }
    let files = || std::fs::read_dir(place.path()).expect("a directory").count();
    let (mut more, env) = (4_000, Env::real());
    let compacted = wait_until(&env, "compacted", PATIENCE, async || {
        let bounds = streams.bounds(&topic(), 0).await.expect("bounds");
        bounds.records.expect("counted") < 250 && files() < 40
    });
    compacted.await.expect("4 MB of ten keys become little");
    // Somebody goes on.
    for _ in 0..20 {
        put(streams, "k0", &value(more)).await;
        more += 1;
    }
    let before = values(streams).await;
    assert!((3_991..4_000).all(|number| before.contains(&value(number))), "one of the newest went");
    store.close().await.expect("closed");
    let again = Engine::open(config, Env::real()).await.expect("it opens");
    let store = again.store(Namespace::default(), Accepted::default());
    let after = values(store.streams().expect("streams")).await;
    assert!(after.iter().all(|value| before.contains(value)), "something came back");
    assert!((3_991..4_000).all(|number| after.contains(&value(number))) && after.contains(&value(more - 1)));
    store.close().await.expect("closed");
}

/// A record without a value says for a day that its key is gone; then it goes too.
#[test]
fn a_key_without_a_value_goes_after_a_day() {
    sim::run(1, async |world| {
        let env = world.env(NODE);
        let engine = Engine::open(Config::in_dir("/data"), env.clone()).await.expect("it opens");
        let store = engine.store(Namespace::default(), Accepted::default());
        let streams = store.streams().expect("streams");
        streams.create_topic(&topic(), &compacted()).await.expect("created");
        let is_told = async || {
            let records = read_all(streams, 0).await;
            assert!(records.len() < 200, "less than half of it was compacted");
            records.iter().any(|stored| stored.record.key.as_deref() == Some(b"gone"))
        };
        put(streams, "gone", "1").await;
        put(streams, "gone", "").await;
        let churn = async || {
            for number in 0..300 {
                put(streams, "other", &number.to_string()).await;
            }
            env.sleep(Duration::from_secs(5)).await;
        };
        churn().await;
        assert!(is_told().await, "the empty one stays, to be read");
        world.step_clock(NODE, 25 * 3600 * 1000);
        churn().await;
        assert!(!is_told().await, "a day is over");
        store.close().await.expect("closed");
    });
}
