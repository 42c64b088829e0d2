//! Records that fail: each policy, and the order of keys through all of them.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use coact_blocks::mq::{
    ATTEMPTS_HEADER, Consumer, ConsumerOptions, ERROR_HEADER, Message, ORIGIN_HEADER, Parked, Policy, Producer,
    ProducerOptions, RunOptions, dead_topic, parked_topic,
};
use coact_core::{
    ErrorKind,
    contract::stream::{Atomicity, Record, StreamGuarantees},
    env::{Env, PlantedBug},
    name::Realm,
};
use parking_lot::Mutex;

use crate::{
    model::Fate,
    mq_group::{Bed, Log, Member, bed, options, until},
    streams::{GUARANTEES, StreamRequest, group, topic},
    world::{pass, start},
};

fn quick(policy: Policy) -> RunOptions {
    RunOptions {
        max_attempts: 3,
        policy,
        first_pause: Duration::from_millis(10),
        longest_pause: Duration::from_millis(100),
        ..RunOptions::default()
    }
}

/// Handles records: those of the poisoned keys fail while the poison lasts.
#[derive(Clone)]
struct Handler {
    log: Log,
    env: Env,
    poisoned: Arc<Mutex<HashSet<String>>>,
    busy: Arc<Mutex<HashMap<String, usize>>>,
    overlaps: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Handler {
    fn new(bed: &Bed, poisoned: &[&str]) -> Self {
        Self {
            log: Log::default(),
            env: bed.process.env().clone(),
            poisoned: Arc::new(Mutex::new(poisoned.iter().map(|key| (*key).to_owned()).collect())),
            busy: Arc::default(),
            overlaps: Arc::default(),
            most: Arc::default(),
        }
    }

    fn cure(&self) {
        self.poisoned.lock().clear();
    }

    async fn handle(&self, message: Message) -> Result<(), String> {
        let key = message.record().key.clone().map_or(String::new(), |key| String::from_utf8_lossy(&key).into_owned());
        let _busy = Busy::new(self, &key);
        self.env.sleep(self.env.random_duration(Duration::from_millis(10))).await;
        if self.poisoned.lock().contains(&key) {
            return Err(format!("{key} is poisoned"));
        }
        self.log.push(message.record());
        Ok(())
    }

    /// Runs a member until it ends or its process dies.
    fn run(&self, member: &Member, options: RunOptions) {
        let (handler, consumer) = (self.clone(), member.consumer.clone());
        member.process.env().spawn(async move {
            let _ = consumer.run(|message| handler.handle(message), options).await;
        });
    }
}

/// A record in the hands of a handler; dropped with it.
struct Busy {
    handler: Handler,
    key: String,
}

impl Busy {
    fn new(handler: &Handler, key: &str) -> Self {
        let mut busy = handler.busy.lock();
        let count = busy.entry(key.to_owned()).or_default();
        *count += 1;
        if *count > 1 && !key.is_empty() {
            handler.overlaps.fetch_add(1, Ordering::Relaxed);
        }
        handler.most.fetch_max(busy.values().sum(), Ordering::Relaxed);
        Self { handler: handler.clone(), key: key.to_owned() }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.handler.busy.lock().entry(self.key.clone()).or_default() -= 1;
    }
}

#[tokio::test(start_paused = true)]
async fn several_records_at_a_time_but_one_of_each_key() {
    let bed = bed(1, 2).await;
    bed.send(0..300, 11).await;
    let handler = Handler::new(&bed, &[]);
    let member = bed.join(1).await;
    handler.run(&member, RunOptions { concurrency: 5, ..quick(Policy::BlockKey) });
    until("all is committed", || bed.committed() == 300).await;
    assert_eq!(handler.log.len(), 300);
    assert_eq!(handler.log.out_of_order(11), Vec::<u64>::new());
    assert_eq!(handler.overlaps.load(Ordering::Relaxed), 0);
    assert_eq!(handler.most.load(Ordering::Relaxed), 5);
    member.consumer.leave().await.expect("leaves");
}

/// A key fails for a while; its order is what the checker looks at.
async fn blocked_key(planted: &[PlantedBug]) -> Vec<u64> {
    let bed = bed(2, 1).await;
    bed.send(0..60, 3).await;
    let handler = Handler::new(&bed, &["key1"]);
    let member = bed.join_with(1, planted, options()).await;
    handler.run(&member, quick(Policy::BlockKey));
    until("the others go on", || handler.log.len() == 40).await;
    pass(5.0).await;
    assert_eq!(bed.committed(), 1, "the first of the key is unfinished");
    handler.cure();
    until("all is committed", || bed.committed() == 60).await;
    assert_eq!(handler.log.len(), 60, "each once");
    handler.log.out_of_order(3)
}

#[tokio::test(start_paused = true)]
async fn a_failed_record_stays_the_head_of_its_key() {
    assert_eq!(blocked_key(&[]).await, Vec::<u64>::new());
    let wrong = blocked_key(&[PlantedBug::RetryOutOfOrder]).await;
    assert!(!wrong.is_empty(), "the checker sees what the bug does");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_as_any_other() {
    let bed = bed(3, 1).await;
    bed.send(0..10, 5).await;
    let member = bed.join(1).await;
    let log = Log::default();
    let (seen, consumer) = (log.clone(), member.consumer.clone());
    start(async move {
        let handler = |message: Message| {
            let log = seen.clone();
            async move {
                assert!(message.attempt > 2, "not yet");
                log.push(message.record());
                Ok::<_, String>(())
            }
        };
        consumer.run(handler, quick(Policy::ParkKey)).await
    });
    until("all is committed", || bed.committed() == 10).await;
    assert_eq!(log.out_of_order(5), Vec::<u64>::new());
}

#[tokio::test(start_paused = true)]
async fn dead_letters_say_where_from_and_why_and_come_once() {
    for seed in 0..20 {
        let bed = bed(seed, 1).await;
        bed.send(0..30, 3).await;
        let handler = Handler::new(&bed, &["key2"]);
        let dead = dead_topic(&bed.orders, &bed.group).expect("a name");
        for life in 0..3 {
            let member = bed.join(10 * seed + life).await;
            let env = member.process.env().clone();
            member.connection.faults.lock().fate = Some(Box::new(move |request| match (request, env.random() % 4) {
                (StreamRequest::Commit(_), 0) => Fate::AnswerLost,
                (StreamRequest::Commit(_), 1) => Fate::Refused,
                _ => Fate::Arrives,
            }));
            handler.run(&member, quick(Policy::DeadLetter));
            match life {
                2 => until("all is committed", || bed.committed() == 30).await,
                _ => pass(0.03 * (seed % 7) as f64).await,
            }
            member.process.crash();
        }
        let letters = bed.streams.records(&dead).remove(0);
        let values = letters.iter().map(|stored| String::from_utf8_lossy(&stored.record.value).into_owned());
        let expected: Vec<_> = (0..10).map(|number| (number * 3 + 2).to_string()).collect();
        assert_eq!(values.collect::<Vec<_>>(), expected, "seed {seed}");
        let header = |name: &str| {
            let found = letters[0].record.headers.iter().find(|(found, _)| found == name).expect("the header");
            String::from_utf8_lossy(&found.1).into_owned()
        };
        assert_eq!(header(ERROR_HEADER), "key2 is poisoned");
        assert_eq!(header(ATTEMPTS_HEADER), "3");
        assert!(header(ORIGIN_HEADER).starts_with("orders/0/2/"), "{}", header(ORIGIN_HEADER));
        assert_eq!(handler.log.times().len(), 20);
        assert_eq!(handler.log.out_of_order(3), Vec::<u64>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_given_up_by_hand_is_dead_once_though_answers_are_lost() {
    for seed in 0..20 {
        let bed = bed(seed, 1).await;
        bed.send(0..3, 3).await;
        let dead = dead_topic(&bed.orders, &bed.group).expect("a name");
        let member = bed.join(seed).await;
        let env = member.process.env().clone();
        member.connection.faults.lock().fate = Some(Box::new(move |request| match (request, env.random() % 2) {
            (StreamRequest::Commit(_), 0) => Fate::AnswerLost,
            _ => Fate::Arrives,
        }));
        let delivery = member.consumer.next().await.expect("a record");
        member.consumer.bury(&delivery, "no such customer", 7).await.expect("it is dead");
        drop(delivery);
        for _ in 0..2 {
            assert!(member.consumer.next().await.expect("a record").ack(), "seed {seed}");
        }
        until("all is committed", || bed.committed() == 3).await;
        let letters = bed.streams.records(&dead).remove(0);
        assert_eq!(letters.len(), 1, "seed {seed}");
        let headers = &letters[0].record.headers;
        assert!(headers.iter().any(|(name, value)| name == ERROR_HEADER && value == "no such customer"), "{headers:?}");
        assert!(headers.iter().any(|(name, value)| name == ATTEMPTS_HEADER && value == "7"), "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_retry_topic_brings_a_record_again_and_in_the_end_it_is_dead() {
    let bed = bed(4, 1).await;
    bed.send(0..6, 3).await;
    let handler = Handler::new(&bed, &["key1", "key2"]);
    let member = bed.join(1).await;
    handler.run(&member, quick(Policy::RetryTopic { delay: Duration::from_secs(60), rounds: 2 }));
    until("the others go on", || handler.log.len() == 2).await;
    pass(30.0).await;
    assert_eq!(bed.committed(), 6, "they wait elsewhere");
    handler.poisoned.lock().remove("key1");
    until("they came again", || handler.log.len() == 4).await;
    let dead = dead_topic(&bed.orders, &bed.group).expect("a name");
    until("two are dead", || bed.streams.records(&dead).concat().len() == 2).await;
    let letter = bed.streams.records(&dead).remove(0).remove(0).record;
    let attempts = letter.headers.iter().find(|(name, _)| name == ATTEMPTS_HEADER).expect("the header");
    assert_eq!(attempts.1, "9", "three in each of three rounds");
}

fn parked(bed: &Bed) -> Parked {
    Parked::open(&bed.process.kv, &Realm::default(), &bed.group).expect("opens")
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_key_is_parked_in_order_and_comes_back_in_order() {
    let bed = bed(5, 1).await;
    bed.send(0..30, 3).await;
    let handler = Handler::new(&bed, &["key1"]);
    let member = bed.join(1).await;
    handler.run(&member, quick(Policy::ParkKey));
    until("the key is out of the way", || bed.committed() == 30).await;
    bed.send(30..36, 3).await;
    until("so are later ones", || bed.committed() == 36).await;
    assert_eq!(handler.log.len(), 24);
    let aside = parked_topic(&bed.orders, &bed.group).expect("a name");
    let expected: Vec<_> = (0..12).map(|number| (number * 3 + 1).to_string()).collect();
    assert_eq!(bed.streams.values(&aside)[0], expected);
    let list = parked(&bed).list().await.expect("reads");
    assert_eq!(list.len(), 1);
    let key = &list[0];
    assert_eq!((key.key.as_str(), key.waiting, key.attempts), ("key1", 12, 3));
    assert_eq!((key.error.as_str(), key.redriving), ("key1 is poisoned", false));
    assert!(key.last_ms >= key.since_ms);

    // Too early: it stays parked, and says so.
    assert!(parked(&bed).redrive(&bed.orders, b"key1").await.expect("asks"));
    assert!(!parked(&bed).redrive(&bed.orders, b"key2").await.expect("asks"));
    pass(20.0).await;
    let list = parked(&bed).list().await.expect("reads");
    assert_eq!((list[0].waiting, list[0].redriving, list[0].attempts), (12, false, 6));

    handler.cure();
    bed.send(36..42, 3).await;
    assert_eq!(parked(&bed).redrive_all().await.expect("asks"), 1);
    until("all came back", || handler.log.len() == 42).await;
    bed.send(42..48, 3).await;
    until("the key is as any other", || handler.log.len() == 48).await;
    assert_eq!(handler.log.of("key1"), (0..16).map(|number| number * 3 + 1).collect::<Vec<_>>());
    assert!(parked(&bed).list().await.expect("reads").is_empty());
    let left = bed.streams.values(&aside)[0].len();
    assert!(left <= 14, "the last two were not parked: {left}");
}

#[tokio::test(start_paused = true)]
async fn a_record_without_a_key_is_no_reason_to_park_others() {
    let bed = bed(6, 1).await;
    let options = ProducerOptions::default();
    let producer = Producer::open(&bed.connection.handle, &bed.orders, options).await.expect("opens");
    producer.send_all(["good", "bad", "good"].map(Record::new)).await.expect("appended");
    let member = bed.join(1).await;
    let consumer = member.consumer.clone();
    start(async move {
        let handler =
            |message: Message| async move { if message.record().value == "bad" { Err("it is bad") } else { Ok(()) } };
        consumer.run(handler, quick(Policy::ParkKey)).await
    });
    until("all is committed", || bed.committed() == 3).await;
    let dead = dead_topic(&bed.orders, &bed.group).expect("a name");
    assert_eq!(bed.streams.values(&dead)[0], ["bad"]);
    assert!(parked(&bed).list().await.expect("reads").is_empty());
}

/// Members die at any step of parking and coming back, and answers are lost; the order of keys holds all the same.
async fn chaos(seed: u64, planted: &[PlantedBug]) -> Vec<u64> {
    const KEYS: u64 = 5;
    let bed = bed(seed, 2).await;
    let handler = Handler::new(&bed, &["key1", "key3"]);
    bed.send(0..40, KEYS).await;
    let mut member = bed.join_with(1000 * seed, planted, options()).await;
    for life in 1..9 {
        let env = member.process.env().clone();
        member.connection.faults.lock().fate = Some(Box::new(move |request| match (request, env.random() % 8) {
            (StreamRequest::Commit(_), 0) => Fate::AnswerLost,
            (StreamRequest::Commit(_), 1) => Fate::Refused,
            (StreamRequest::Commit(_), 2) => Fate::Slow(Duration::from_millis(env.random() % 20)),
            _ => Fate::Arrives,
        }));
        handler.run(&member, RunOptions { max_attempts: 2, ..quick(Policy::ParkKey) });
        // The next one takes over when the lease has ended; then the life goes on for a random while.
        until("it has its partitions", || member.consumer.assigned().len() == 2).await;
        pass(((seed * 31 + life * 17) % 40) as f64 * 0.01).await;
        if life == 3 {
            handler.cure();
        }
        if life >= 3 {
            parked(&bed).redrive_all().await.expect("asks");
            pass(((seed * 13 + life * 7) % 20) as f64 * 0.01).await;
        }
        if life == 5 {
            bed.send(40..80, KEYS).await;
        }
        member.process.crash();
        member = bed.join_with(1000 * seed + life, planted, options()).await;
    }
    handler.run(&member, quick(Policy::ParkKey));
    until("all is done", || handler.log.times().len() == 80 && bed.committed() == 80).await;
    until("nothing is parked", || bed.model.entries("mq/parked/").is_empty()).await;
    assert_eq!(handler.overlaps.load(Ordering::Relaxed), 0, "seed {seed}");
    handler.log.out_of_order(KEYS)
}

#[tokio::test(start_paused = true)]
async fn order_holds_over_park_and_redrive_with_crashes_at_every_step() {
    for seed in 0..30 {
        assert_eq!(chaos(seed, &[]).await, Vec::<u64>::new(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_checker_catches_a_retry_that_breaks_the_order() {
    let mut seed = 0;
    while chaos(seed, &[PlantedBug::RetryOutOfOrder]).await.is_empty() {
        seed += 1;
        assert!(seed < 10, "no seed shows the bug");
    }
}

#[tokio::test(start_paused = true)]
async fn says_what_cannot_be() {
    let bed = bed(7, 1).await;
    let session = bed.process.session().await;
    let weak = bed.streams.connect_with(&bed.process, StreamGuarantees { atomicity: Atomicity::Streams, ..GUARANTEES });
    let join = |name: &str| {
        let (session, handle, group, topic) = (&session, &weak.handle, group(name), topic("orders"));
        async move { Consumer::join(session, handle, &group, [topic], ConsumerOptions::default()).await.expect("joins") }
    };
    let run = |consumer: Consumer, options: RunOptions| async move {
        consumer.run(|_| async { Ok::<_, String>(()) }, options).await.expect_err("refused")
    };
    let error = run(join("billing").await, quick(Policy::ParkKey)).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("needs everything in one commit"), "{error}");
    let error = run(join("billing").await, RunOptions { max_attempts: 0, ..RunOptions::default() }).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = run(join(&"x".repeat(64)).await, quick(Policy::DeadLetter)).await;
    assert!(error.to_string().starts_with("topic \"orders.xxx"), "{error}");
}
