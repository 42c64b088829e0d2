//! Durable publishing in batches: coact beside Redis Streams, a table of PostgreSQL, and a bare log writer of the same bytes.

use std::time::Duration;

use coact::{
    Store, Topic,
    contract::stream::{Append, Batch, Record, TopicSpec},
};

use crate::{
    engines::postgres_client,
    floor::GroupCommit,
    load::{Measured, closed_loop, print},
    peer::Sides,
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
    for (bytes, records) in [(100, 1_000), (1_024, 1_000)] {
        for producers in [1, 16] {
            let load = Load { bytes, records, producers, time };
            let mut rows = vec![
                load.bare(&floor).await,
                load.coact("coact embedded, in process", &sides.embedded).await,
                load.coact("coact node, through coact://", &sides.node).await,
                load.redis(&sides.redis.url("bench").await).await,
                load.postgres(&settings).await,
            ];
            // From batches to records.
            rows.iter_mut().for_each(|row| row.per_second *= records as f64);
            let title =
                format!("records of {bytes} B, {records} in a batch, {producers} producers, durable; µs a batch");
            print(&title, FLOOR, &rows);
        }
    }
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

    async fn redis(&self, url: &str) -> Measured {
        let client = redis::Client::open(url.trim_end_matches("/bench")).expect("a URL");
        let mut pipe = redis::pipe();
        for body in self.bodies() {
            pipe.cmd("XADD").arg("topic").arg("MAXLEN").arg("~").arg(KEPT).arg("*").arg("body").arg(body).ignore();
        }
        let mut connections = Vec::new();
        for _ in 0..self.producers {
            connections.push(client.get_multiplexed_async_connection().await.expect("it answers"));
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
            clients.push(std::sync::Arc::new((client, insert.expect("valid"))));
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

    fn bodies(&self) -> Vec<Vec<u8>> {
        vec![vec![7; self.bytes]; self.records]
    }
}
