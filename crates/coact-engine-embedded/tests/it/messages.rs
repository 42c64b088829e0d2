//! Streams and queues on files: what is there after the engine was closed, or its log moved on.

use std::time::Duration;

use bytes::Bytes;
use coact_core::{
    contract::{
        queue::{Claim, JobState, NewJob, QueueSpec, Settle, Settled, Verdict},
        stream::{Append, Batch, Bounds, Delayed, Offset, Read, Record, Seek, StreamHandle, TopicSpec},
    },
    env::Env,
    guarantees::Accepted,
    name::{Namespace, Queue, Topic},
    registry::Store,
};
use coact_engine_embedded::{Config, Engine};

pub(crate) async fn open(config: &Config) -> (Engine, Store) {
    let engine = Engine::open(config.clone(), Env::real()).await.expect("it opens");
    let store = engine.store(Namespace::default(), Accepted::default());
    (engine, store)
}

pub(crate) fn topic() -> Topic {
    Topic::new("orders").expect("a topic")
}

pub(crate) fn queue() -> Queue {
    Queue::new("mails").expect("a queue")
}

async fn append(streams: &StreamHandle, partition: u32, values: impl IntoIterator<Item = String>) -> Offset {
    let records: Vec<_> = values.into_iter().map(Record::new).collect();
    let append = Append { topic: topic(), partition, batch: Batch::new(&records), stamp: None, expect: None };
    streams.append(append).await.expect("appended").first
}

async fn read_all(streams: &StreamHandle, partition: u32) -> Vec<String> {
    let mut from = Offset(0);
    let mut found = Vec::new();
    loop {
        let read = Read { topic: topic(), partition, from, max_bytes: 64 * 1024, wait: Duration::ZERO };
        let fetched = streams.read(read).await.expect("read");
        if fetched.batches.is_empty() {
            return found;
        }
        let records = fetched.records(from);
        found.extend(records.map(|stored| String::from_utf8_lossy(&stored.record.value).into_owned()));
        from = fetched.next;
    }
}

#[tokio::test]
async fn records_are_there_after_reopening_and_from_snapshots() {
    let place = tempfile::tempdir().expect("a directory");
    let config = Config { segment_bytes: 64 << 10, snapshot_bytes: 64 << 10, ..Config::in_dir(place.path()) };
    let (engine, store) = open(&config).await;
    let streams = store.streams().expect("streams");
    streams.create_topic(&topic(), &TopicSpec { partitions: 3, ..TopicSpec::default() }).await.expect("created");
    let value = |number: u64| format!("{number}-{}", "x".repeat(300));
    for number in 0..2_000 {
        append(streams, (number % 3) as u32, [value(number), value(number + 10_000)]).await;
    }
    assert!(engine.stats().snapshots > 0, "some came from a snapshot");
    for _ in 0..3 {
        store.close().await.expect("closed");
        let (_, again) = open(&config).await;
        let streams = again.streams().expect("streams");
        for partition in 0..3 {
            let expected = (0..2_000).filter(|number| number % 3 == u64::from(partition));
            let expected: Vec<_> = expected.flat_map(|number| [value(number), value(number + 10_000)]).collect();
            assert_eq!(read_all(streams, partition).await, expected);
        }
        again.close().await.expect("closed");
    }
}

#[tokio::test]
async fn segments_go_when_their_records_went() {
    let place = tempfile::tempdir().expect("a directory");
    let config = Config { segment_bytes: 64 << 10, snapshot_bytes: 64 << 10, ..Config::in_dir(place.path()) };
    let (_engine, store) = open(&config).await;
    let streams = store.streams().expect("streams");
    let spec = TopicSpec { retention_bytes: Some(100 << 10), ..TopicSpec::default() };
    streams.create_topic(&topic(), &spec).await.expect("created");
    let segments = || std::fs::read_dir(place.path()).expect("a directory").count();
    let mut most = 0;
    for number in 0..4_000u64 {
        append(streams, 0, [format!("{number}-{}", "y".repeat(1000))]).await;
        most = most.max(segments());
    }
    coact_testkit::bed::wait_until(&Env::real(), "trimmed", coact_testkit::bed::PATIENCE, async || {
        streams.bounds(&topic(), 0).await.expect("bounds").bytes <= 100 << 10
    })
    .await
    .expect("what is too much goes");
    assert!(segments() < 40, "{} files of 64 KiB, at most {most}, for 100 KiB", segments());
    let Bounds { start, end, .. } = streams.bounds(&topic(), 0).await.expect("bounds");
    assert!(start > Offset(3_000) && end == Offset(4_000), "{start} to {end}");
    let found = read_all(streams, 0).await;
    assert_eq!(found.len() as u64, end.0 - start.0);
    assert_eq!(streams.seek(&topic(), 0, Seek::Earliest).await.expect("found"), start);
    store.close().await.expect("closed");
}

#[tokio::test]
async fn delays_and_jobs_survive_and_are_handed_over_once() {
    let place = tempfile::tempdir().expect("a directory");
    let config = Config { segment_bytes: 64 << 10, snapshot_bytes: 64 << 10, ..Config::in_dir(place.path()) };
    let env = Env::real();
    let (_engine, store) = open(&config).await;
    let (streams, queues) = (store.streams().expect("streams"), store.queues().expect("queues"));
    streams.create_topic(&topic(), &TopicSpec::default()).await.expect("created");
    queues.put_queue(&queue(), &QueueSpec::default()).await.expect("created");
    let due_ms = env.wall_ms() + 1_500;
    let delayed = |number: u64| Delayed {
        topic: topic(),
        partition: 0,
        record: Record::new(number.to_string()),
        due_ms: due_ms + number % 7,
    };
    streams.schedule((0..500).map(delayed).collect()).await.expect("scheduled");
    let jobs = (0..500).map(|number: u64| NewJob::new(number.to_string())).collect();
    queues.enqueue(&queue(), jobs).await.expect("enqueued");
    let claim = |limit| Claim {
        queue: queue(),
        worker: "w".to_owned(),
        limit,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
    };
    let claimed = queues.claim(claim(300)).await.expect("claimed");
    let settle = |verdict: &Verdict, claimed: &coact_core::contract::queue::Claimed| Settle {
        receipt: claimed.receipt(),
        verdict: verdict.clone(),
    };
    let acks = claimed[..100].iter().map(|claimed| settle(&Verdict::Ack, claimed)).collect();
    assert_eq!(queues.settle(&queue(), acks).await.expect("settled"), [Settled::Done; 100]);
    store.close().await.expect("closed");

    let (_engine, store) = open(&config).await;
    let (streams, queues) = (store.streams().expect("streams"), store.queues().expect("queues"));
    let stats = queues.stats(&queue()).await.expect("stats");
    assert_eq!((stats.ready, stats.claimed, stats.done), (200, 200, 100));
    let again = settle(&Verdict::Ack, &claimed[0]);
    let mine = settle(&Verdict::Ack, &claimed[100]);
    assert_eq!(queues.settle(&queue(), vec![again, mine]).await.expect("settled"), [Settled::Fenced, Settled::Done]);
    let more = queues.claim(claim(10)).await.expect("claimed");
    assert!(more.iter().all(|job| claimed.iter().all(|other| job.token > other.token)), "tokens grow over a restart");
    assert_eq!(more[0].job.body, Bytes::from("300"));
    assert_eq!(queues.jobs(&queue(), JobState::Ready, None, 1).await.expect("jobs")[0].job.body, Bytes::from("310"));
    coact_testkit::bed::wait_until(&env, "handed over", coact_testkit::bed::PATIENCE, async || {
        streams.bounds(&topic(), 0).await.expect("bounds").end >= Offset(500)
    })
    .await
    .expect("they come");
    let mut numbers: Vec<u64> =
        read_all(streams, 0).await.iter().map(|number| number.parse().expect("a number")).collect();
    assert_eq!(streams.delay_stats(&topic()).await.expect("stats").pending, 0);
    let due = |number: &u64| (number % 7, *number);
    assert!(numbers.is_sorted_by_key(due), "in the order of their times");
    numbers.sort_unstable();
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
    store.close().await.expect("closed");
}
