//! The models of streams and queues on this engine, in simulation: a good engine passes for many seeds, and a planted
//! defect does not; nor does it pass the checker of histories.

use std::panic::{AssertUnwindSafe, catch_unwind};

use coact_core::{
    contract::stream::{Delayed, Offset, Read, Record, TopicSpec},
    env::PlantedBug,
    guarantees::Accepted,
    name::{Namespace, Topic},
    registry::Store,
};
use coact_engine_embedded::{Config, Engine};
use coact_testkit::{
    bed::{PATIENCE, wait_until},
    check::stream::Ledger,
    model::{check_queue, check_streams},
    sim::{self, World},
};

const SEEDS: u64 = 10;
const STEPS: usize = 400;
const NODE: &str = "node";

#[test]
fn a_client_alone_sees_what_the_models_say() {
    for seed in sim::seeds(SEEDS) {
        sim::run(seed, models);
    }
}

#[test]
fn a_commit_of_an_old_generation_differs_from_the_model() {
    assert!(is_caught(PlantedBug::AnyGeneration, models), "it passed {SEEDS} seeds");
}

#[test]
fn the_ledger_holds_for_delayed_records() {
    for seed in sim::seeds(SEEDS) {
        sim::run(seed, delays);
    }
}

#[test]
fn a_delayed_record_that_comes_twice_is_in_no_ledger() {
    assert!(is_caught(PlantedBug::FireDelayTwice, delays), "it passed {SEEDS} seeds");
}

/// Whether a scenario fails for some seed with this defect.
fn is_caught<F: Future<Output = ()>>(bug: PlantedBug, scenario: fn(World) -> F) -> bool {
    (0..SEEDS).any(|seed| {
        let run = || {
            sim::run(seed, |world| {
                world.plant(bug);
                scenario(world)
            });
        };
        catch_unwind(AssertUnwindSafe(run)).is_err()
    })
}

async fn models(world: World) {
    let store = open(&world).await;
    let (streams, queues) = (store.streams().expect("streams"), store.queues().expect("queues"));
    check_streams(streams, "model", world.seed(), STEPS).await.unwrap_or_else(|differs| panic!("{differs}"));
    check_queue(queues, "model", world.seed(), STEPS).await.unwrap_or_else(|differs| panic!("{differs}"));
    store.close().await.expect("closes");
}

/// Schedules records, waits until a later one has come, and looks at what there is.
async fn delays(world: World) {
    let store = open(&world).await;
    let (streams, env) = (store.streams().expect("streams"), world.env("client"));
    let topic = Topic::new("t").expect("a topic");
    streams.create_topic(&topic, &TopicSpec::default()).await.expect("created");
    let ledger = Ledger::default();
    let begin = streams.env().wall_ms();
    for number in 0..20 {
        let (record, due_ms) = (Record::new(number.to_string()), begin + 100 + number * 37 % 400);
        let ticket = ledger.scheduling(&topic, 0, &record, due_ms);
        let delayed = Delayed { topic: topic.clone(), partition: 0, record, due_ms };
        streams.schedule(vec![delayed]).await.expect("scheduled");
        ledger.scheduled(ticket);
    }
    let read =
        Read { topic: topic.clone(), partition: 0, from: Offset(0), max_bytes: 1 << 20, wait: Default::default() };
    let mut records = Vec::new();
    wait_until(&env, "the records come", PATIENCE, async || {
        let fetched = streams.read(read.clone()).await.expect("read");
        records = fetched.records(Offset(0)).collect();
        records.len() >= 20
    })
    .await
    .expect("in time");
    assert_eq!(ledger.violations(&topic, 0, Offset(0), &records), [""; 0]);
    store.close().await.expect("closes");
}

async fn open(world: &World) -> Store {
    let engine = Engine::open(Config::in_dir("/data"), world.env(NODE)).await.expect("opens");
    engine.store(Namespace::default(), Accepted::default())
}
