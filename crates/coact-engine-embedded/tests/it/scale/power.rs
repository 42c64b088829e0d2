//! Power cuts amid many records: what was acknowledged is there, each record once and in its order, and of what was not,
//! whole batches or nothing.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use coact_core::{
    ErrorKind,
    contract::stream::{Append, Batch, Offset, Read, Record, StreamHandle, TopicSpec},
    env::PlantedBug,
    name::Topic,
    registry::Store,
};
use coact_testkit::sim::{self, Random, World};
use parking_lot::Mutex;

use crate::message_lives::{NODE, recover};

const SEEDS: u64 = 3;
const PLANTED_SEEDS: u64 = 10;
const PARTITIONS: u32 = 4;
/// How many records are acknowledged in all, at least, and how many are in a batch.
const RECORDS: u64 = 100_000;
const BATCH: u64 = 100;
/// A record's number and some more.
const VALUE_BYTES: usize = 60;

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    for seed in sim::seeds(SEEDS) {
        sim::run(seed, async |world| {
            let cuts = Life::new(world).live().await;
            println!("{RECORDS} records, {cuts} power cuts");
            assert!(cuts > 3, "{cuts} cuts are hardly any");
        });
    }
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    let caught = (0..PLANTED_SEEDS).any(|seed| {
        let life = || {
            sim::run(seed, async |world| {
                world.plant(PlantedBug::AckBeforeSync);
                Life::new(world).live().await;
            });
        };
        catch_unwind(AssertUnwindSafe(life)).is_err()
    });
    assert!(caught, "it went unnoticed through {PLANTED_SEEDS} seeds");
}

#[derive(Clone)]
struct Life {
    world: World,
    /// Of each partition, how many records were acknowledged.
    acknowledged: Arc<Mutex<[u64; PARTITIONS as usize]>>,
}

fn topic() -> Topic {
    Topic::new("many").expect("a topic")
}

impl Life {
    fn new(world: World) -> Self {
        Self { world, acknowledged: Arc::default() }
    }

    /// Returns how often the power was cut.
    async fn live(self) -> u64 {
        let mut random = Random::new(self.world.seed(), "power");
        let (disk, env) = (self.world.disk(NODE), self.world.env("power"));
        let mut cuts = 0;
        while self.acknowledged.lock().iter().sum::<u64>() < RECORDS {
            let store = self.open(&mut random).await;
            let there = self.verify(store.streams().expect("streams")).await;
            disk.crash_after_ops(50 + random.below(200));
            let producers: Vec<_> = (0..PARTITIONS)
                .map(|partition| {
                    let (life, store) = (self.clone(), store.clone());
                    let from = there[partition as usize];
                    self.world.spawn(async move { life.produce(&store, partition, from).await })
                })
                .collect();
            drop(store);
            while !disk.has_crashed() {
                env.sleep(Duration::from_millis(5)).await;
            }
            self.world.crash(NODE);
            cuts += 1;
            for producer in producers {
                producer.await.expect("a producer does not panic");
            }
        }
        let store = self.open(&mut random).await;
        self.verify(store.streams().expect("streams")).await;
        cuts
    }

    async fn open(&self, random: &mut Random) -> Store {
        loop {
            let store = recover(&self.world, Some(random)).await;
            let spec = TopicSpec { partitions: PARTITIONS, ..TopicSpec::default() };
            match store.streams().expect("streams").create_topic(&topic(), &spec).await {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => self.world.crash(NODE),
                _ => return store,
            }
        }
    }

    /// Appends batches, one after the other, until the power is cut.
    async fn produce(&self, store: &Store, partition: u32, from: u64) {
        let (streams, env) = (store.streams().expect("streams"), self.world.env("producer"));
        for first in (from..).step_by(BATCH as usize) {
            let record = |number: u64| {
                let mut value = number.to_le_bytes().to_vec();
                value.resize(VALUE_BYTES, number as u8);
                Record::new(value)
            };
            let records: Vec<_> = (first..first + BATCH).map(record).collect();
            let append = Append { topic: topic(), partition, batch: Batch::new(&records), stamp: None, expect: None };
            let answer = env.timeout(Duration::from_secs(5), streams.append(append)).await;
            let Some(Ok(appended)) = answer else { return };
            assert_eq!(appended.first, Offset(first), "records are there that nobody sent");
            self.acknowledged.lock()[partition as usize] = first + BATCH;
        }
    }

    /// How many records each partition has: all that were acknowledged, and perhaps the batch after them.
    async fn verify(&self, streams: &StreamHandle) -> Vec<u64> {
        let acknowledged = *self.acknowledged.lock();
        let mut there = Vec::new();
        for (partition, acknowledged) in (0..).zip(acknowledged) {
            let mut next = 0;
            loop {
                let read =
                    Read { topic: topic(), partition, from: Offset(next), max_bytes: 1 << 20, wait: Duration::ZERO };
                let fetched = streams.read(read).await.expect("read");
                if fetched.batches.is_empty() {
                    break;
                }
                for stored in fetched.records(Offset(next)) {
                    let number = stored.record.value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
                    assert_eq!((stored.offset.0, number), (next, Some(next)), "in partition {partition}");
                    assert_eq!(stored.record.value[8..], [next as u8; VALUE_BYTES - 8], "of record {next}");
                    next += 1;
                }
            }
            let beyond = next.checked_sub(acknowledged);
            assert!(
                beyond == Some(0) || beyond == Some(BATCH),
                "{next} of {acknowledged} acknowledged records are there"
            );
            there.push(next);
        }
        there
    }
}
