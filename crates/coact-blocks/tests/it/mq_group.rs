//! Consumer groups: members come, go and die; every record is done, and each key's in order.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use coact_blocks::{
    Session,
    mq::{Consumer, ConsumerOptions, Producer, ProducerOptions, Start, TopicPartition},
};
use coact_core::{
    ErrorKind,
    contract::{
        commit::CommitOutcome,
        stream::{Offset, Record, Seek, TopicSpec},
    },
    env::PlantedBug,
    name::{Group, Topic},
};
use parking_lot::Mutex;

use crate::{
    model::{Fate, Model},
    streams::{Connection, StreamRequest, Streams, group, topic},
    world::{Process, pass, start},
};

pub(crate) struct Bed {
    pub(crate) model: Model,
    pub(crate) streams: Streams,
    pub(crate) process: Process,
    pub(crate) connection: Connection,
    pub(crate) orders: Topic,
    pub(crate) group: Group,
}

pub(crate) async fn bed(seed: u64, partitions: u32) -> Bed {
    let model = Model::new();
    let streams = Streams::new(&model);
    let process = Process::start(&model, seed ^ 0xbed);
    let connection = streams.connect(&process);
    let orders = topic("orders");
    let spec = TopicSpec { partitions, ..TopicSpec::default() };
    connection.handle.create_topic(&orders, &spec).await.expect("created");
    Bed { model, streams, process, connection, orders, group: group("billing") }
}

/// A process with a session and a consumer.
pub(crate) struct Member {
    pub(crate) process: Process,
    pub(crate) connection: Connection,
    pub(crate) session: Session,
    pub(crate) consumer: Arc<Consumer>,
}

impl Bed {
    pub(crate) async fn join(&self, seed: u64) -> Member {
        self.join_with(seed, &[], options()).await
    }

    pub(crate) async fn join_with(&self, seed: u64, planted: &[PlantedBug], options: ConsumerOptions) -> Member {
        let process = Process::start_with(&self.model, seed, planted);
        let connection = self.streams.connect(&process);
        let session = process.session().await;
        let topics = [self.orders.clone()];
        let joined = Consumer::join(&session, &connection.handle, &self.group, topics, options).await;
        Member { process, connection, session, consumer: Arc::new(joined.expect("joins")) }
    }

    /// Sends numbers, each with the key that its remainder gives.
    pub(crate) async fn send(&self, numbers: std::ops::Range<u64>, keys: u64) {
        let options = ProducerOptions::default();
        let producer = Producer::open(&self.connection.handle, &self.orders, options).await.expect("opens");
        let record = |number: u64| Record::new(number.to_string()).with_key(format!("key{}", number % keys));
        producer.send_all(numbers.map(record)).await.expect("appended");
    }

    pub(crate) fn committed(&self) -> u64 {
        let count = self.streams.records(&self.orders).len() as u32;
        let of = |partition| self.streams.committed(&self.group, &self.orders, partition).map_or(0, |offset| offset.0);
        (0..count).map(of).sum()
    }
}

pub(crate) fn options() -> ConsumerOptions {
    ConsumerOptions {
        commit_interval: Duration::from_millis(200),
        rebalance_timeout: Duration::from_secs(5),
        ..ConsumerOptions::default()
    }
}

/// What was done, in the order in which it was done.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<(Bytes, u64)>>>);

impl Log {
    pub(crate) fn push(&self, record: &Record) {
        let number = String::from_utf8_lossy(&record.value).parse().expect("a number");
        self.0.lock().push((record.key.clone().expect("a key"), number));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn times(&self) -> HashMap<u64, usize> {
        let mut times = HashMap::new();
        self.0.lock().iter().for_each(|(_, number)| *times.entry(*number).or_default() += 1);
        times
    }

    pub(crate) fn of(&self, key: &str) -> Vec<u64> {
        self.0.lock().iter().filter(|(of, _)| of == key.as_bytes()).map(|(_, number)| *number).collect()
    }

    /// Where a record was done before an earlier one of its key was: records may be done again, but none is skipped.
    pub(crate) fn out_of_order(&self, keys: u64) -> Vec<u64> {
        let mut next: HashMap<Bytes, u64> = HashMap::new();
        let mut wrong = Vec::new();
        for (key, number) in self.0.lock().iter() {
            let expected = next.entry(key.clone()).or_insert(number % keys);
            match number {
                number if number == expected => *expected += keys,
                number if number > expected => wrong.push(*number),
                _ => {}
            }
        }
        wrong
    }
}

#[test]
fn the_checker_sees_what_is_skipped_and_permits_what_is_done_again() {
    let log = |numbers: &[u64]| {
        let log = Log::default();
        let record = |number: &u64| Record::new(number.to_string()).with_key(format!("key{}", number % 2));
        numbers.iter().map(record).for_each(|record| log.push(&record));
        log.out_of_order(2)
    };
    assert!(log(&[0, 1, 2, 3, 2, 4, 1, 3, 5]).is_empty());
    assert_eq!(log(&[0, 1, 4, 2]), [4]);
    assert_eq!(log(&[2, 0]), [2]);
}

/// Does records one by one until the consumer ends.
fn work(member: &Member, log: &Log) {
    let (consumer, log, env) = (member.consumer.clone(), log.clone(), member.process.env().clone());
    // It dies with its process.
    member.process.env().spawn(async move {
        while let Ok(delivery) = consumer.next().await {
            env.sleep(env.random_duration(Duration::from_millis(20))).await;
            // Whoever lost the partition has done nothing.
            if consumer.generation() > 0 && delivery.is_current() {
                log.push(delivery.message());
            }
            delivery.ack();
        }
    });
}

/// Waits for a condition, for as long as simulated time is cheap.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if holds() {
            return;
        }
        pass(0.01).await;
    }
    panic!("it never came to this: {what}");
}

fn total(members: &[&Member]) -> Vec<TopicPartition> {
    let mut all: Vec<_> = members.iter().flat_map(|member| member.consumer.assigned()).collect();
    all.sort();
    all
}

pub(crate) fn is_complete(members: &[&Member], partitions: usize) -> bool {
    let sizes: Vec<_> = members.iter().map(|member| member.consumer.assigned().len()).collect();
    let spread = sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0);
    let mut all = total(members);
    all.dedup();
    all.len() == partitions && sizes.iter().sum::<usize>() == partitions && spread <= 1
}

#[tokio::test(start_paused = true)]
async fn a_lone_consumer_gets_everything_and_goes_on_where_it_left() {
    let bed = bed(1, 3).await;
    bed.send(0..100, 7).await;
    let member = bed.join(1).await;
    let mut seen = Vec::new();
    for _ in 0..60 {
        let delivery = member.consumer.next().await.expect("a record");
        seen.push((delivery.partition(), delivery.record().offset));
        assert!(delivery.ack());
    }
    member.consumer.leave().await.expect("leaves");
    assert_eq!(member.consumer.next().await.expect_err("left").kind(), ErrorKind::Closed);
    assert_eq!(bed.committed(), 60);
    let next = bed.join(2).await;
    for _ in 0..40 {
        let delivery = next.consumer.next().await.expect("a record");
        seen.push((delivery.partition(), delivery.record().offset));
        delivery.ack();
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 100, "each once");
    assert!(next.consumer.poll().expect("goes on").is_none());
}

#[tokio::test(start_paused = true)]
async fn what_was_finished_out_of_order_is_not_done_again() {
    let bed = bed(2, 1).await;
    bed.send(0..10, 1).await;
    let member = bed.join(1).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(member.consumer.next().await.expect("a record"));
    }
    for index in [8, 4, 3, 1] {
        held.remove(index).ack();
    }
    drop(held);
    member.consumer.commit().await.expect("commits");
    assert_eq!(bed.committed(), 0, "the first is unfinished");
    member.process.crash();
    let next = bed.join(2).await;
    let mut again = Vec::new();
    for _ in 0..6 {
        let delivery = next.consumer.next().await.expect("a record");
        again.push(delivery.record().offset.0);
        delivery.ack();
    }
    assert_eq!(again, [0, 2, 5, 6, 7, 9]);
}

#[tokio::test(start_paused = true)]
async fn starts_at_the_end_if_told_so_and_stays_there() {
    let bed = bed(3, 1).await;
    bed.send(0..10, 1).await;
    let latest = ConsumerOptions { start: Start::Latest, ..options() };
    let member = bed.join_with(1, &[], latest.clone()).await;
    until("it begins", || bed.streams.committed(&bed.group, &bed.orders, 0) == Some(Offset(10))).await;
    member.process.crash();
    bed.send(10..12, 1).await;
    let next = bed.join_with(2, &[], latest).await;
    assert_eq!(next.consumer.next().await.expect("a record").record().offset, Offset(10), "not lost in between");
}

#[tokio::test(start_paused = true)]
async fn seeks_pauses_and_holds_back() {
    let bed = bed(4, 1).await;
    bed.send(0..100, 1).await;
    let small = ConsumerOptions { max_records: 10, ..options() };
    let member = bed.join_with(1, &[], small).await;
    let consumer = &member.consumer;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(consumer.next().await.expect("a record"));
    }
    pass(10.0).await;
    assert!(consumer.poll().expect("works").is_none(), "ten are unfinished");
    let place = [TopicPartition { topic: bed.orders.clone(), partition: 0 }];
    consumer.pause(&place);
    for delivery in held.drain(..) {
        delivery.ack();
    }
    pass(10.0).await;
    assert!(consumer.poll().expect("works").is_none(), "it is paused");
    consumer.resume(&place);
    assert_eq!(consumer.next().await.expect("a record").record().offset, Offset(10));
    consumer.seek(&bed.orders, 0, Offset(50)).await.expect("seeks");
    assert_eq!(consumer.next().await.expect("a record").record().offset, Offset(50));
    consumer.seek(&bed.orders, 0, Seek::Earliest).await.expect("seeks");
    assert_eq!(consumer.next().await.expect("a record").record().offset, Offset(0));
    let error = consumer.seek(&bed.orders, 7, Offset(0)).await.expect_err("not its own");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn partitions_are_shared_evenly_and_a_topic_that_grows_is_noticed() {
    let bed = bed(5, 12).await;
    let one = bed.join(1).await;
    until("the first has all", || is_complete(&[&one], 12)).await;
    let two = bed.join(2).await;
    until("two share", || is_complete(&[&one, &two], 12)).await;
    let kept = one.consumer.assigned();
    let three = bed.join(3).await;
    until("three share", || is_complete(&[&one, &two, &three], 12)).await;
    assert!(one.consumer.assigned().iter().all(|place| kept.contains(place)), "it got nothing that it had not");
    let spec = TopicSpec { partitions: 15, ..TopicSpec::default() };
    bed.connection.handle.alter_topic(&bed.orders, &spec).await.expect("grows");
    until("the new ones are shared", || is_complete(&[&one, &two, &three], 15)).await;
    two.consumer.leave().await.expect("leaves");
    until("two share again", || is_complete(&[&one, &three], 15)).await;
    one.process.crash();
    until("one is left", || is_complete(&[&three], 15)).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_and_keys_keep_their_order_while_members_come_go_and_die() {
    const KEYS: u64 = 23;
    for seed in 0..9 {
        let bed = bed(seed, 6).await;
        let log = Log::default();
        let mut members = Vec::new();
        for number in 0..3 {
            members.push(bed.join(100 * seed + number).await);
            work(&members[number as usize], &log);
            bed.send(number * 200..(number + 1) * 200, KEYS).await;
            pass(0.3).await;
        }
        match seed % 3 {
            0 => members[0].process.crash(),
            1 => members[1].consumer.leave().await.expect("leaves"),
            _ => {
                members[0].process.cut_off(&bed.model);
                members[2].process.crash();
            }
        }
        bed.send(600..800, KEYS).await;
        let late = bed.join(100 * seed + 9).await;
        work(&late, &log);
        until("all is committed", || bed.committed() == 800).await;
        assert_eq!(log.times().len(), 800, "seed {seed}");
        assert_eq!(log.out_of_order(KEYS), Vec::<u64>::new(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn leaving_repeats_nothing() {
    let bed = bed(6, 4).await;
    let log = Log::default();
    let (one, two) = (bed.join(1).await, bed.join(2).await);
    work(&one, &log);
    work(&two, &log);
    bed.send(0..200, 5).await;
    until("some are done", || log.len() > 50).await;
    one.consumer.leave().await.expect("leaves");
    until("all is committed", || bed.committed() == 200).await;
    assert_eq!(log.len(), 200, "each once");
}

/// A member that is cut off from the group's store, but not from the streams, comes back to commit what it held.
async fn commit_of_a_zombie(planted: &[PlantedBug]) -> (Result<(), ErrorKind>, u64) {
    let bed = bed(7, 1).await;
    bed.send(0..10, 1).await;
    let never = ConsumerOptions { commit_interval: Duration::from_secs(10_000), ..options() };
    let zombie = bed.join_with(1, planted, never).await;
    let delivery = zombie.consumer.next().await.expect("a record");
    // Its views stand still: it does not answer, and is fenced.
    zombie.process.faults.lock().fate = Some(Box::new(|request| match request {
        crate::model::Request::Renew => Fate::Arrives,
        _ => Fate::Refused,
    }));
    zombie.process.faults.lock().cuts += 1;
    bed.model.poke();
    let mut gone = bed.model.entries("mq/group/billing/members/").remove(0);
    gone.lease = None;
    bed.model.delete(&gone.key);
    let next = bed.join(2).await;
    for _ in 0..10 {
        next.consumer.next().await.expect("a record").ack();
    }
    next.consumer.commit().await.expect("commits");
    delivery.ack();
    let result = zombie.consumer.commit().await.map_err(|error| error.kind());
    (result, bed.committed())
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_an_old_generation_is_fenced() {
    assert_eq!(commit_of_a_zombie(&[]).await, (Err(ErrorKind::Fenced), 10));
    let (result, committed) = commit_of_a_zombie(&[PlantedBug::CommitOldGeneration]).await;
    assert_eq!((result, committed), (Ok(()), 1), "the group goes back, which the fence prevents");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_let_go_is_fenced_after_a_while() {
    let bed = bed(8, 2).await;
    bed.send(0..20, 4).await;
    let slow = bed.join(1).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(slow.consumer.next().await.expect("a record"));
    }
    let other = bed.join(2).await;
    pass(1.0).await;
    assert!(other.consumer.assigned().is_empty(), "the partition is not free");
    until("the partition moves", || is_complete(&[&slow, &other], 2)).await;
    let moved = other.consumer.assigned()[0].partition;
    let acknowledged = held.drain(..).filter(|delivery| delivery.partition() == moved).map(|delivery| delivery.ack());
    assert!(acknowledged.into_iter().all(|counts| !counts), "it does not count any more");
    assert_eq!(other.consumer.next().await.expect("a record").partition(), moved);
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_ends_the_consumer() {
    let bed = bed(9, 1).await;
    let member = bed.join(1).await;
    until("it has the partition", || is_complete(&[&member], 1)).await;
    bed.model.end_lease(member.session.lease());
    assert_eq!(member.consumer.next().await.expect_err("lost").kind(), ErrorKind::Fenced);
    assert!(member.consumer.assigned().is_empty());
}

#[tokio::test(start_paused = true)]
async fn consume_transform_produce_is_effectively_once() {
    for seed in 0..30 {
        let bed = bed(seed, 2).await;
        let results = topic("results");
        bed.connection.handle.create_topic(&results, &TopicSpec::default()).await.expect("created");
        bed.send(0..60, 7).await;
        for life in 0..4 {
            let member = bed.join(10 * seed + life).await;
            let env = member.process.env().clone();
            member.connection.faults.lock().fate = Some(Box::new(move |request| match (request, env.random() % 5) {
                (StreamRequest::Commit(commit), 0) if !commit.is_empty() => Fate::AnswerLost,
                (StreamRequest::Commit(_), 1) => Fate::Refused,
                _ => Fate::Arrives,
            }));
            let opened = Producer::open(&member.connection.handle, &results, ProducerOptions::default()).await;
            let (producer, consumer) = (opened.expect("opens"), member.consumer.clone());
            let doing = start(async move {
                loop {
                    let Ok(delivery) = consumer.next().await else { return };
                    let result = delivery.message().clone();
                    let Ok(settling) = consumer.settle(vec![delivery]).await else { continue };
                    let transaction = producer.transaction().append(result).offsets(settling.offsets());
                    if let Ok(CommitOutcome::Committed(_)) = transaction.commit().await {
                        settling.confirm();
                    }
                }
            });
            match life {
                3 => until("all is committed", || bed.committed() == 60).await,
                _ => pass(0.01 * (seed % 9) as f64).await,
            }
            doing.abort();
            member.process.crash();
        }
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        bed.streams.values(&results).into_iter().flatten().for_each(|value| *found.entry(value).or_default() += 1);
        assert_eq!(found.len(), 60, "seed {seed}");
        assert!(found.values().all(|times| *times == 1), "seed {seed}: {found:?}");
    }
}
