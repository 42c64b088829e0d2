//! Producers: what is acknowledged is there once and in order, whatever happens to the answers.

use std::{sync::Arc, time::Duration};

use coact_blocks::mq::{Producer, ProducerOptions, partition_of};
use coact_core::{
    Effect, ErrorKind,
    contract::{
        commit::CommitOutcome,
        kv::{Check, Txn, Write},
        queue::NewJob,
        stream::{Atomicity, GroupOffset, Offset, OffsetCommit, Record, StreamGuarantees, TopicSpec},
    },
    guarantees::Durability,
    name::{Queue, Realm, Topic},
};
use parking_lot::Mutex;

use crate::{
    lock::key,
    model::{Fate, Model},
    streams::{Connection, GUARANTEES, StreamRequest, Streams, group, topic},
    world::{Process, pass, start},
};

struct Bed {
    model: Model,
    streams: Streams,
    process: Process,
    connection: Connection,
    orders: Topic,
}

async fn bed(seed: u64, partitions: u32) -> Bed {
    let model = Model::new();
    let streams = Streams::new(&model);
    let process = Process::start(&model, seed);
    let connection = streams.connect(&process);
    let orders = topic("orders");
    let spec = TopicSpec { partitions, ..TopicSpec::default() };
    connection.handle.create_topic(&orders, &spec).await.expect("created");
    Bed { model, streams, process, connection, orders }
}

impl Bed {
    async fn producer(&self) -> Producer {
        self.producer_with(ProducerOptions::default()).await
    }

    async fn producer_with(&self, options: ProducerOptions) -> Producer {
        Producer::open(&self.connection.handle, &self.orders, options).await.expect("opens")
    }

    async fn named(&self, process: &Process) -> Producer {
        let connection = self.streams.connect(process);
        let options = ProducerOptions { delivery_timeout: Duration::from_secs(5), ..ProducerOptions::default() };
        Producer::named(&connection.handle, &process.kv, &self.orders, "till", options).await.expect("opens")
    }

    fn fate(&self, fate: impl FnMut(&StreamRequest) -> Fate + Send + 'static) {
        self.connection.faults.lock().fate = Some(Box::new(fate));
    }
}

fn keyed(key: &str, value: impl ToString) -> Record {
    Record::new(value.to_string()).with_key(key.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_record_goes_to_the_partition_of_its_key_and_the_receipt_says_where() {
    let bed = bed(1, 10).await;
    let producer = bed.producer().await;
    let placed = producer.send(keyed("abc", 1)).await.expect("sent").await.expect("appended");
    assert_eq!((placed.partition, placed.offset), (7, Offset(0)));
    let placed = producer.send_all((2..5).map(|value| keyed("abc", value))).await.expect("appended");
    assert_eq!(placed.iter().map(|placed| placed.offset.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(bed.streams.values(&bed.orders)[7], ["1", "2", "3", "4"]);
    producer.close().await.expect("closed");
    let error = producer.send(Record::new("late")).await.expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn batches_form_while_one_is_on_its_way() {
    let bed = bed(2, 1).await;
    bed.connection.faults.lock().latency = Duration::from_millis(10);
    let producer = bed.producer().await;
    let batches = Arc::<Mutex<Vec<u32>>>::default();
    let seen = batches.clone();
    bed.fate(move |request| {
        if let StreamRequest::Append(append) = request {
            seen.lock().push(append.batch.count());
        }
        Fate::Arrives
    });
    producer.send(Record::new("first")).await.expect("sent");
    pass(0.001).await;
    for value in 0..100 {
        producer.send(Record::new(value.to_string())).await.expect("sent");
    }
    producer.flush().await.expect("appended");
    assert_eq!(*batches.lock(), [1, 100], "a lone record does not wait, and what gathers goes together");
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_holds_senders_back() {
    let bed = bed(3, 1).await;
    let producer = bed.producer_with(ProducerOptions { buffer_bytes: 1_000, ..ProducerOptions::default() }).await;
    let latency = Duration::from_secs(1);
    bed.connection.faults.lock().latency = latency;
    let sent = Arc::<Mutex<usize>>::default();
    let (counting, clone) = (sent.clone(), producer.clone());
    let sending = start(async move {
        for _ in 0..40 {
            clone.send(Record::new(vec![0; 92])).await.expect("sent");
            *counting.lock() += 1;
        }
    });
    pass(0.5).await;
    assert_eq!(*sent.lock(), 10, "each takes 100 bytes");
    sending.await.expect("goes on");
    producer.flush().await.expect("appended");
    assert_eq!(bed.streams.records(&bed.orders)[0].len(), 40);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_late_requests_append_once_and_in_order() {
    for seed in 0..50 {
        let bed = bed(seed, 3).await;
        let env = bed.process.env().clone();
        let producer = bed.producer().await;
        bed.fate(move |request| match (request, env.random() % 6) {
            (StreamRequest::Append(_), 0) => Fate::AnswerLost,
            (StreamRequest::Append(_), 1) => Fate::Refused,
            (StreamRequest::Append(_), 2) => Fate::Late(Duration::from_millis(env.random() % 500)),
            (StreamRequest::Append(_), 3) => Fate::Slow(Duration::from_millis(env.random() % 50)),
            _ => Fate::Arrives,
        });
        for value in 0..100 {
            producer.send(keyed(&format!("k{}", value % 7), value)).await.expect("sent");
            if value % 9 == 0 {
                pass(0.01).await;
            }
        }
        producer.close().await.expect("appended");
        pass(2.0).await;
        assert_once_in_order(&bed, 100);
    }
}

/// The control: without stamps, the same faults repeat or reorder records.
#[tokio::test(start_paused = true)]
async fn without_stamps_a_lost_answer_is_an_error_that_says_so() {
    let bed = bed(4, 1).await;
    let weak = StreamGuarantees { dedup: None, ..GUARANTEES };
    let connection = bed.streams.connect_with(&bed.process, weak);
    let producer = Producer::open(&connection.handle, &bed.orders, ProducerOptions::default()).await.expect("opens");
    connection.faults.lock().fate = Some(Box::new(|_| Fate::AnswerLost));
    let error = producer.send(Record::new("1")).await.expect("sent").await.expect_err("unknown");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    assert_eq!(bed.streams.values(&bed.orders)[0], ["1"]);
    assert_eq!(producer.flush().await.expect_err("told again").effect(), Effect::Unknown);
    producer.flush().await.expect("told once");
}

fn assert_once_in_order(bed: &Bed, count: usize) {
    let mut all = Vec::new();
    for (partition, records) in bed.streams.records(&bed.orders).into_iter().enumerate() {
        let mut last = std::collections::HashMap::new();
        for stored in records {
            let key = stored.record.key.expect("a key");
            assert_eq!(partition_of(&key, 3) as usize, partition);
            let value: usize = String::from_utf8_lossy(&stored.record.value).parse().expect("a number");
            assert!(last.insert(key, value).is_none_or(|earlier| earlier < value), "out of order at {value}");
            all.push(value);
        }
    }
    all.sort_unstable();
    assert_eq!(all, (0..count).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_nobody_can_settle_is_unknown_and_does_not_come_late() {
    let bed = bed(5, 1).await;
    let options = ProducerOptions { delivery_timeout: Duration::from_secs(3), ..ProducerOptions::default() };
    let producer = bed.producer_with(options).await;
    bed.fate(|_| Fate::Late(Duration::from_secs(10)));
    let error = producer.send(Record::new("lost")).await.expect("sent").await.expect_err("nobody answers");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    bed.connection.faults.lock().fate = None;
    producer.send(Record::new("next")).await.expect("sent").await.expect("appended");
    pass(30.0).await;
    assert_eq!(bed.streams.values(&bed.orders)[0], ["next"], "the late one is of an older epoch");
}

#[tokio::test(start_paused = true)]
async fn what_never_left_is_not_unknown() {
    let bed = bed(6, 1).await;
    let producer = bed.producer().await;
    bed.fate(|_| Fate::Refused);
    let error = producer.send(Record::new("1")).await.expect("sent").await.expect_err("nobody there");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::NotApplied));
    assert!(error.to_string().contains("not appended within 30s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn goes_on_when_the_engine_forgets_it() {
    let bed = bed(7, 1).await;
    let producer = bed.producer().await;
    producer.send_all([Record::new("1"), Record::new("2")]).await.expect("appended");
    bed.streams.forget_producers();
    producer.send_all([Record::new("3")]).await.expect("appended");
    assert_eq!(bed.streams.values(&bed.orders)[0], ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_is_appended_though_the_producer_is_dropped() {
    let bed = bed(8, 1).await;
    let producer = bed.producer().await;
    producer.send(Record::new("1")).await.expect("sent");
    drop(producer);
    pass(1.0).await;
    assert_eq!(bed.streams.values(&bed.orders)[0], ["1"]);
}

#[tokio::test(start_paused = true)]
async fn an_older_incarnation_of_a_named_producer_is_fenced() {
    let bed = bed(9, 1).await;
    let (one, two) = (Process::start(&bed.model, 10), Process::start(&bed.model, 11));
    let older = bed.named(&one).await;
    older.send_all([Record::new("older")]).await.expect("appended");
    let newer = bed.named(&two).await;
    newer.send_all([Record::new("newer")]).await.expect("appended");
    let error = older.send(Record::new("zombie")).await.expect("sent").await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let error = older.transaction().append(Record::new("zombie")).append(Record::new("zombie"));
    newer.transaction().append(Record::new("committed")).commit().await.map(drop).expect("commits");
    assert_eq!(error.commit().await.expect_err("fenced").kind(), ErrorKind::Fenced);
    newer.send_all([Record::new("newest")]).await.expect("goes on");
    assert_eq!(bed.streams.values(&bed.orders)[0], ["older", "newer", "committed", "newest"]);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_grows_gets_records_in_its_new_partitions() {
    let bed = bed(12, 1).await;
    let producer = bed.producer().await;
    let spec = TopicSpec { partitions: 8, ..TopicSpec::default() };
    bed.connection.handle.alter_topic(&bed.orders, &spec).await.expect("grows");
    pass(60.0).await;
    for number in 0..16 {
        let key = format!("k{number}");
        let placed = producer.send(keyed(&key, number)).await.expect("sent").await.expect("appended");
        assert_eq!(placed.partition, partition_of(key.as_bytes(), 8));
    }
}

#[tokio::test(start_paused = true)]
async fn delayed_records_come_when_they_are_due_unless_cancelled() {
    let bed = bed(13, 1).await;
    let producer = bed.producer().await;
    let first = producer.send_after(Record::new("first"), Duration::from_secs(10)).await.expect("kept");
    let second = producer.send_after(Record::new("second"), Duration::from_secs(20)).await.expect("kept");
    let third = producer.send_after(Record::new("third"), Duration::from_secs(30)).await.expect("kept");
    assert!(producer.cancel(second).await.expect("answers"));
    assert!(!producer.cancel(second).await.expect("answers"), "it is gone");
    let moved = producer.reschedule(third, first.due_ms - 1).await.expect("answers").expect("it waits");
    assert!(moved < first);
    pass(60.0).await;
    producer.send_all([Record::new("last")]).await.expect("appended");
    assert_eq!(bed.streams.values(&bed.orders)[0], ["third", "first", "last"]);
}

fn done(offset: u64, generation: u64, topic: &Topic) -> OffsetCommit {
    let offset =
        GroupOffset { topic: topic.clone(), partition: 0, offset: Offset(offset), metadata: bytes::Bytes::new() };
    OffsetCommit { group: group("billing"), generation, offsets: vec![offset] }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_happens_as_a_whole() {
    let bed = bed(14, 1).await;
    let producer = bed.producer().await;
    let (realm, paid) = (Realm::default(), key("orders/paid"));
    let put = |value: &str| Write::Put { key: paid.clone(), value: value.to_owned().into(), lease: None };
    let txn = Txn { checks: vec![Check::Absent(paid.clone())], writes: vec![put("yes")], ..Txn::default() };
    for first in [true, false] {
        let outcome = producer
            .transaction()
            .append(Record::new("paid"))
            .append_at(Record::new("reminder"), 0)
            .offsets(done(1, 0, &bed.orders))
            .kv(&realm, txn.clone())
            .job(&Queue::new("mail").expect("a queue"), NewJob::new("receipt"))
            .commit()
            .await
            .expect("answers");
        assert_eq!(matches!(outcome, CommitOutcome::Committed(_)), first);
    }
    assert_eq!(bed.streams.values(&bed.orders)[0], ["paid", "reminder"]);
    assert_eq!(bed.streams.jobs().len(), 1);
    assert_eq!(bed.streams.committed(&group("billing"), &bed.orders, 0), Some(Offset(1)));
    let empty = producer.transaction().commit().await.expect_err("nothing to do");
    assert_eq!(empty.kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_is_refused_where_the_engine_cannot_do_it_at_once() {
    let bed = bed(15, 1).await;
    let weak = StreamGuarantees { atomicity: Atomicity::Streams, ..GUARANTEES };
    let connection = bed.streams.connect_with(&bed.process, weak);
    let producer = Producer::open(&connection.handle, &bed.orders, ProducerOptions::default()).await.expect("opens");
    let both = producer.transaction().append(Record::new("1")).offsets(done(1, 0, &bed.orders)).commit().await;
    assert!(matches!(both, Ok(CommitOutcome::Committed(_))));
    let queue = Queue::new("mail").expect("a queue");
    let job = producer.transaction().append(Record::new("1")).job(&queue, NewJob::new("x")).commit().await;
    let error = job.expect_err("too much");
    assert_eq!(error.to_string(), "the transaction spans everything, but model: commits streams at once");
}

#[tokio::test(start_paused = true)]
async fn transactions_with_offsets_are_effectively_once_under_lost_answers() {
    for seed in 0..50 {
        let bed = bed(seed, 1).await;
        let producer = bed.producer().await;
        let env = bed.process.env().clone();
        bed.fate(move |request| match (request, env.random() % 4) {
            (StreamRequest::Commit(_), 0) => Fate::AnswerLost,
            (StreamRequest::Commit(_), 1) => Fate::Refused,
            _ => Fate::Arrives,
        });
        for input in 1..=20 {
            let transaction = producer.transaction().append(Record::new(input.to_string()));
            transaction.offsets(done(input, 0, &bed.orders)).commit().await.map(drop).expect("commits");
        }
        let all: Vec<_> = (1..=20).map(|input| input.to_string()).collect();
        assert_eq!(bed.streams.values(&bed.orders)[0], all);
        assert_eq!(bed.streams.committed(&group("billing"), &bed.orders, 0), Some(Offset(20)));
    }
}

#[tokio::test(start_paused = true)]
async fn says_what_is_missing() {
    let bed = bed(16, 1).await;
    let open = |topic: Topic, options: ProducerOptions| {
        let handle = bed.connection.handle.clone();
        async move { Producer::open(&handle, &topic, options).await.expect_err("refused").to_string() }
    };
    assert_eq!(open(topic("ghosts"), ProducerOptions::default()).await, "model: has no topic ghosts: create it first");
    let narrow = ProducerOptions { buffer_bytes: 0, ..ProducerOptions::default() };
    assert!(open(bed.orders.clone(), narrow).await.contains("are not allowed"));
    let weak = StreamGuarantees { writes: Durability::Memory, ..GUARANTEES };
    let connection = bed.streams.connect_with(&bed.process, weak);
    let refused = Producer::open(&connection.handle, &bed.orders, ProducerOptions::default()).await;
    assert!(refused.expect_err("refused").to_string().ends_with("accept it with ?accept=volatile"));
    let blind = bed.streams.connect_with(&bed.process, StreamGuarantees { dedup: None, ..GUARANTEES });
    let named = Producer::named(&blind.handle, &bed.process.kv, &bed.orders, "till", ProducerOptions::default()).await;
    assert_eq!(named.expect_err("refused").kind(), ErrorKind::Unsupported);
}
