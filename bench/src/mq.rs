//! Durable publishing in batches: coact beside Redis Streams, NATS JetStream, a table of PostgreSQL, and a bare log writer of
//! the same bytes; and reading back what was published.

use std::{sync::Arc, time::Duration};

use coact::{
    Store, Topic,
    contract::stream::{Append, Batch, Offset, Read, Record, TopicSpec},
};
use coact_testkit::bed::RedisBed;

use redis::streams::StreamRangeReply;

use crate::{
    engines::postgres_client,
    floor::GroupCommit,
    load::{Measured, closed_loop, print},
    nats::Nats,
    peer::{Sides, redis_connection},
};

const FLOOR: &str = "bare group commit of the same bytes";
const PARTITIONS: u32 = 4;
/// About how many records the peer that keeps everything in memory keeps.
const KEPT: usize = 100_000;

pub(crate) async fn run(time: Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let sides = Sides::start(dir.path()).await;
    let table = "create table topic (position bigserial primary key, body bytea not null)";
    let settings = sides.postgres.driver_settings().await;
    postgres_client(&settings).await.batch_execute(table).await.expect("a table");
    let floor = GroupCommit::new(dir.path());
    let nats = Nats::start(dir.path()).await;
    for (bytes, records) in [(100, 1_000), (1_024, 1_000)] {
        for producers in [1, 16] {
            let load = Load { bytes, records, producers, time };
            let mut rows = vec![
                load.bare(&floor).await,
                load.coact("coact embedded, in process", &sides.embedded).await,
                load.coact("coact node, through coact://", &sides.node).await,
                load.redis(&sides.redis).await,
                load.nats(&nats).await,
                load.postgres(&settings).await,
            ];
            // From batches to records.
            rows.iter_mut().for_each(|row| row.per_second *= records as f64);
            let title =
                format!("records of {bytes} B, {records} in a batch, {producers} producers, durable; µs a batch");
            print(&title, FLOOR, &rows);
        }
    }
    read_back(&sides, time).await;
    sides.embedded.close().await.expect("it closes");
}

/// What each row does.
struct Load {
    bytes: usize,
    records: usize,
    producers: usize,
    time: Duration,
}

impl Load {
    async fn bare(&self, floor: &GroupCommit) -> Measured {
        let bytes = self.bytes * self.records;
        closed_loop(FLOOR, self.producers, self.time, |_| {
            let floor = floor.clone();
            move || {
                let floor = floor.clone();
                async move { floor.commit(bytes).await }
            }
        })
        .await
    }

    /// Each producer to its own partition, as far as there are some.
    async fn coact(&self, name: &str, store: &Store) -> Measured {
        let streams = store.streams().expect("streams").clone();
        let topic = Topic::new("bench").expect("a topic");
        let spec = TopicSpec { partitions: PARTITIONS, ..TopicSpec::default() };
        streams.create_topic(&topic, &spec).await.expect("created");
        let records: Vec<_> = self.bodies().into_iter().map(Record::new).collect();
        let batch = Batch::new(&records);
        let measured = closed_loop(name, self.producers, self.time, |producer| {
            let (streams, topic, batch) = (streams.clone(), topic.clone(), batch.clone());
            let partition = producer as u32 % PARTITIONS;
            move || {
                let (streams, topic, batch) = (streams.clone(), topic.clone(), batch.clone());
                let append = Append { topic, partition, batch, stamp: None, expect: None };
                async move {
                    streams.append(append).await.expect("appended");
                }
            }
        })
        .await;
        streams.delete_topic(&topic).await.expect("deleted");
        measured
    }

    async fn redis(&self, server: &RedisBed) -> Measured {
        let mut pipe = redis::pipe();
        for body in self.bodies() {
            pipe.cmd("XADD").arg("topic").arg("MAXLEN").arg("~").arg(KEPT).arg("*").arg("body").arg(body).ignore();
        }
        let mut connections = Vec::new();
        for _ in 0..self.producers {
            connections.push(redis_connection(server).await);
        }
        closed_loop("Redis Streams, appendfsync always, pipelined", self.producers, self.time, |producer| {
            let (connection, pipe) = (connections[producer].clone(), pipe.clone());
            move || {
                let (mut connection, pipe) = (connection.clone(), pipe.clone());
                async move { pipe.query_async::<()>(&mut connection).await.expect("it answers") }
            }
        })
        .await
    }

    async fn postgres(&self, settings: &str) -> Measured {
        let mut clients = Vec::new();
        for _ in 0..self.producers {
            let client = postgres_client(settings).await;
            let insert = client.prepare("insert into topic (body) select * from unnest($1::bytea[])").await;
            clients.push(Arc::new((client, insert.expect("valid"))));
        }
        let bodies = self.bodies();
        closed_loop("PostgreSQL, one insert of many rows", self.producers, self.time, |producer| {
            let (client, bodies) = (clients[producer].clone(), bodies.clone());
            move || {
                let (client, bodies) = (client.clone(), bodies.clone());
                async move {
                    let (client, insert) = &*client;
                    let inserted = client.execute(insert, &[&bodies]).await.expect("it answers");
                    assert_eq!(inserted as usize, bodies.len(), "all of them");
                }
            }
        })
        .await
    }

    async fn nats(&self, server: &Nats) -> Measured {
        let mut connections = Vec::new();
        for producer in 0..self.producers {
            connections.push(Arc::new(tokio::sync::Mutex::new(server.connect(producer).await)));
        }
        let (records, body) = (self.records, vec![7; self.bytes]);
        closed_loop("NATS JetStream, sync always, pipelined", self.producers, self.time, |producer| {
            let (connection, body) = (connections[producer].clone(), body.clone());
            move || {
                let (connection, body) = (connection.clone(), body.clone());
                async move { connection.lock().await.publish(records, &body).await }
            }
        })
        .await
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        vec![vec![7; self.bytes]; self.records]
    }
}

/// How many records of how many bytes are read back, and how many at once.
const THERE: usize = 1_000_000;
const BODY_BYTES: usize = 100;
const AT_ONCE: usize = 10_000;
const REDIS_RANGE: &str = "Redis Streams, XRANGE";

/// One reader, from the beginning, again and again.
async fn read_back(sides: &Sides, time: Duration) {
    let mut rows = vec![
        read_coact("coact embedded, in process", &sides.embedded, time).await,
        read_coact("coact node, through coact://", &sides.node, time).await,
        read_redis(&sides.redis, time).await,
    ];
    rows.iter_mut().for_each(|row| row.per_second *= AT_ONCE as f64);
    let title =
        format!("reading {THERE} records of {BODY_BYTES} B back, about {AT_ONCE} at once, one reader; µs a request");
    print(&title, REDIS_RANGE, &rows);
}

async fn read_coact(name: &str, store: &Store, time: Duration) -> Measured {
    let streams = store.streams().expect("streams").clone();
    let topic = Topic::new("back").expect("a topic");
    streams.create_topic(&topic, &TopicSpec::default()).await.expect("created");
    let records = vec![Record::new(vec![7; BODY_BYTES]); 1_000];
    let batch = Batch::new(&records);
    for _ in 0..THERE / records.len() {
        let append = Append { topic: topic.clone(), partition: 0, batch: batch.clone(), stamp: None, expect: None };
        streams.append(append).await.expect("appended");
    }
    let max_bytes = batch.bytes().len() * AT_ONCE / records.len();
    let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
    closed_loop(name, 1, time, |_| {
        let (streams, topic, next) = (streams.clone(), topic.clone(), next.clone());
        move || {
            let (streams, topic, next) = (streams.clone(), topic.clone(), next.clone());
            async move {
                let from = Offset(next.load(std::sync::atomic::Ordering::Relaxed));
                let read = Read { topic, partition: 0, from, max_bytes, wait: Duration::ZERO };
                let fetched = streams.read(read).await.expect("read");
                let found = fetched.records(from).map(|stored| stored.record.value.len()).sum::<usize>();
                assert_eq!(found, AT_ONCE * BODY_BYTES, "all that was asked for");
                let after = if fetched.next < fetched.end { fetched.next.0 } else { 0 };
                next.store(after, std::sync::atomic::Ordering::Relaxed);
            }
        }
    })
    .await
}

async fn read_redis(server: &RedisBed, time: Duration) -> Measured {
    let mut connection = redis_connection(server).await;
    let mut pipe = redis::pipe();
    for _ in 0..1_000 {
        pipe.cmd("XADD").arg("back").arg("*").arg("body").arg(vec![7_u8; BODY_BYTES]).ignore();
    }
    for _ in 0..THERE / 1_000 {
        pipe.query_async::<()>(&mut connection).await.expect("it answers");
    }
    let next = Arc::new(tokio::sync::Mutex::new(("-".to_owned(), 0)));
    closed_loop(REDIS_RANGE, 1, time, |_| {
        let (connection, next) = (connection.clone(), next.clone());
        move || {
            let (mut connection, next) = (connection.clone(), next.clone());
            async move {
                let mut next = next.lock().await;
                let mut range = redis::cmd("XRANGE");
                range.arg("back").arg(&next.0).arg("+").arg("COUNT").arg(AT_ONCE);
                let found: StreamRangeReply = range.query_async(&mut connection).await.expect("it answers");
                let bytes = found.ids.iter().filter_map(|one| one.get::<Vec<u8>>("body"));
                assert_eq!(bytes.map(|body| body.len()).sum::<usize>(), AT_ONCE * BODY_BYTES, "all that was asked for");
                let done = next.1 + AT_ONCE;
                let after = format!("({}", found.ids[AT_ONCE - 1].id);
                *next = if done < THERE { (after, done) } else { ("-".to_owned(), 0) };
            }
        }
    })
    .await
}
