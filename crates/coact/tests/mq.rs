//! mq on the embedded engine: the same promises as on the model of its contracts, over a real restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coact::{
    Env, ErrorKind, Group, Realm, Session, SessionOptions, Store, Topic,
    contract::{
        commit::CommitOutcome,
        stream::{Record, TopicSpec},
    },
    mq::{Consumer, ConsumerOptions, Message, Monitor, Parked, Policy, Producer, ProducerOptions, RunOptions},
};
use parking_lot::Mutex;

type Log = Arc<Mutex<Vec<u64>>>;

const KEYS: u64 = 4;
const POISONED: u64 = 1;

fn names() -> (Topic, Group) {
    (Topic::new("orders").expect("a topic"), Group::new("billing").expect("a group"))
}

async fn send(store: &Store, numbers: std::ops::Range<u64>) {
    let (topic, _) = names();
    let streams = store.streams().expect("has streams");
    let producer = Producer::open(streams, &topic, ProducerOptions::default()).await.expect("opens");
    let record = |number: u64| Record::new(number.to_string()).with_key((number % KEYS).to_string());
    producer.send_all(numbers.map(record)).await.expect("appended");
    producer.close().await.expect("closes");
}

/// A consumer that runs a handler, which fails for one key while the poison lasts.
async fn start(store: &Store, log: &Log, poison: &Arc<AtomicBool>) -> Arc<Consumer> {
    let (topic, group) = names();
    let session = Session::open(store.kv(), SessionOptions::default()).await.expect("opens");
    let options = ConsumerOptions { commit_interval: Duration::from_millis(20), ..ConsumerOptions::default() };
    let streams = store.streams().expect("has streams");
    let consumer = Consumer::join(&session, streams, &group, [topic], options).await.expect("joins");
    let consumer = Arc::new(consumer);
    let (running, log, poison) = (consumer.clone(), log.clone(), poison.clone());
    Env::real().spawn(async move {
        let handler = |message: Message| {
            let (log, poison) = (log.clone(), poison.clone());
            async move {
                let number: u64 = String::from_utf8_lossy(&message.record().value).parse().expect("a number");
                if number % KEYS == POISONED && poison.load(Ordering::Relaxed) {
                    return Err("poisoned");
                }
                log.lock().push(number);
                Ok(())
            }
        };
        let options = RunOptions {
            max_attempts: 2,
            first_pause: Duration::from_millis(1),
            policy: Policy::ParkKey,
            ..RunOptions::default()
        };
        running.run(handler, options).await.expect("runs until it leaves");
    });
    consumer
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let env = Env::real();
    let give_up = env.now() + Duration::from_secs(60);
    while !holds().await {
        assert!(env.now() < give_up, "it never came to this: {what}");
        env.sleep(Duration::from_millis(5)).await;
    }
}

fn of(log: &Log, key: u64) -> Vec<u64> {
    log.lock().iter().copied().filter(|number| number % KEYS == key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_key_comes_back_in_order_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = format!("embedded://{}?segment=1MiB", dir.path().display());
    let (topic, group) = names();
    let (log, poison) = (Log::default(), Arc::new(AtomicBool::new(true)));

    let store = coact::open_store(&url).await.expect("opens");
    let streams = store.streams().expect("has streams");
    streams.create_topic(&topic, &TopicSpec { partitions: 3, ..TopicSpec::default() }).await.expect("created");
    let consumer = start(&store, &log, &poison).await;
    send(&store, 0..80).await;
    let monitor = Monitor::new(store.kv(), streams, &Realm::default());
    until("all is done or aside", async || monitor.group(&group).await.is_ok_and(|lag| lag.messages() == Some(0)))
        .await;
    let lag = monitor.group(&group).await.expect("reads");
    assert_eq!(lag.parked.iter().map(|key| key.waiting).collect::<Vec<_>>(), [20]);
    assert_eq!(lag.members[0].partitions.len(), 3);
    assert_eq!(log.lock().len(), 60);
    consumer.leave().await.expect("leaves");
    store.close().await.expect("closes");

    let store = coact::open_store(&url).await.expect("opens again");
    poison.store(false, Ordering::Relaxed);
    let consumer = start(&store, &log, &poison).await;
    send(&store, 80..100).await;
    let parked = Parked::open(store.kv(), &Realm::default(), &group).expect("opens");
    assert!(parked.redrive(&topic, POISONED.to_string().as_bytes()).await.expect("asks"));
    until("all is done", async || log.lock().len() == 100).await;
    until("nothing is parked", async || parked.list().await.is_ok_and(|keys| keys.is_empty())).await;
    for key in 0..KEYS {
        assert_eq!(of(&log, key), (0..25).map(|number| number * KEYS + key).collect::<Vec<_>>(), "each once, in order");
    }
    consumer.leave().await.expect("leaves");
    store.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_and_a_transaction_is_effectively_once() {
    let store = coact::open_store("memory:?accept=volatile").await.expect("opens");
    let streams = store.streams().expect("has streams");
    let (topic, group) = names();
    let results = Topic::new("results").expect("a topic");
    streams.create_topic(&topic, &TopicSpec { partitions: 4, ..TopicSpec::default() }).await.expect("created");
    streams.create_topic(&results, &TopicSpec::default()).await.expect("created");
    send(&store, 0..40).await;
    let mut members = Vec::new();
    for _ in 0..2 {
        let session = Session::open(store.kv(), SessionOptions::default()).await.expect("opens");
        let joined = Consumer::join(&session, streams, &group, [topic.clone()], ConsumerOptions::default()).await;
        members.push(joined.expect("joins"));
    }
    until("they share", async || members.iter().all(|member| member.assigned().len() == 2)).await;
    let producer = Producer::open(streams, &results, ProducerOptions::default()).await.expect("opens");
    let mut done = 0;
    while done < 40 {
        for member in &members {
            while let Some(delivery) = member.poll().expect("works") {
                let result = delivery.message().clone();
                let settling = member.settle(vec![delivery]).await.expect("is its own");
                let transaction = producer.transaction().append(result).offsets(settling.offsets());
                assert!(matches!(transaction.commit().await, Ok(CommitOutcome::Committed(_))));
                settling.confirm();
                done += 1;
            }
        }
        Env::real().sleep(Duration::from_millis(1)).await;
    }
    let monitor = Monitor::new(store.kv(), streams, &Realm::default());
    assert_eq!(monitor.topic(&results).await.expect("reads").records(), Some(40));
    assert_eq!(monitor.group(&group).await.expect("reads").messages(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_incarnation_of_a_named_producer_is_fenced() {
    let store = coact::open_store("memory:?accept=volatile").await.expect("opens");
    let streams = store.streams().expect("has streams");
    let (topic, _) = names();
    streams.create_topic(&topic, &TopicSpec::default()).await.expect("created");
    let open = || Producer::named(streams, store.kv(), &topic, "till", ProducerOptions::default());
    let older = open().await.expect("opens");
    older.send_all([Record::new("1"), Record::new("2")]).await.expect("appended");
    let newer = open().await.expect("opens");
    newer.send_all([Record::new("3")]).await.expect("appended");
    let error = older.send_all([Record::new("4")]).await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    newer.send_all([Record::new("5")]).await.expect("goes on");
    let id = newer.send_after(Record::new("6"), Duration::from_millis(20)).await.expect("kept");
    let monitor = Monitor::new(store.kv(), streams, &Realm::default());
    until("the delayed one is there", async || {
        monitor.topic(&topic).await.is_ok_and(|stats| stats.records() == Some(5))
    })
    .await;
    assert!(!newer.cancel(id).await.expect("answers"), "it is too late");
}
