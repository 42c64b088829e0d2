//! Streams and queues through a node: every verb, what is denied, and what happens when the connection breaks.

mod denied;
mod limits;
mod lost;
mod queues;
mod raw;
mod streams;

use std::{net::SocketAddr, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        queue::{Claim, Claimed, NewJob, QueueHandle, QueueSpec},
        stream::{Append, Batch, Offset, Read, Record, Stamp, StreamHandle, TopicSpec},
    },
    env::Env,
    name::{Group, Queue, Topic},
    registry::{Registry, Store},
};
use coact_server::Server;

use crate::bed::{PATIENCE, within};

/// Everything that a node has in the namespace `shop`.
async fn open(address: SocketAddr, options: &str) -> Result<Store> {
    let url = format!("coact://{address}/shop{options}");
    Registry::default().with(coact_engine_etcd::driver()).open(url.parse()?, Env::real()).await
}

/// The streams of a node, with a topic.
async fn streams(node: &Server, partitions: u32) -> StreamHandle {
    let store = open(node.address(), "").await.expect("the node answers");
    let streams = store.streams().expect("it has streams").clone();
    let spec = TopicSpec { partitions, ..TopicSpec::default() };
    streams.create_topic(&topic(), &spec).await.expect("a topic");
    streams
}

/// The queues of a node, with a queue.
async fn queues(node: &Server) -> QueueHandle {
    let store = open(node.address(), "").await.expect("the node answers");
    let queues = store.queues().expect("it has queues").clone();
    queues.put_queue(&queue(), &QueueSpec { max_attempts: 2, ..QueueSpec::default() }).await.expect("a queue");
    queues
}

fn topic() -> Topic {
    Topic::new("orders").expect("a topic")
}

fn group() -> Group {
    Group::new("billing").expect("a group")
}

fn queue() -> Queue {
    Queue::new("mail").expect("a queue")
}

fn batch(values: &[&str]) -> Batch {
    let records: Vec<_> = values.iter().map(|value| Record::new(value.to_string()).with_key("k")).collect();
    Batch::new(&records)
}

fn append(values: &[&str]) -> Append {
    Append { topic: topic(), partition: 0, batch: batch(values), stamp: None, expect: None }
}

fn stamped(values: &[&str], sequence: u64) -> Append {
    Append { stamp: Some(Stamp { producer: 7, epoch: 1, sequence }), ..append(values) }
}

fn read(from: u64, wait: Duration) -> Read {
    Read { topic: topic(), partition: 0, from: Offset(from), max_bytes: 1 << 20, wait }
}

/// What the first partition holds from an offset on.
async fn values(streams: &StreamHandle, from: u64) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = from;
    loop {
        let fetched = streams.read(read(at, Duration::ZERO)).await.expect("a read");
        found.extend(
            fetched.records(Offset(at)).map(|stored| String::from_utf8_lossy(&stored.record.value).into_owned()),
        );
        if fetched.batches.is_empty() || fetched.next >= fetched.end {
            return found;
        }
        at = fetched.next.0;
    }
}

fn claim(wait: Duration) -> Claim {
    Claim { queue: queue(), worker: "w".to_owned(), limit: 10, lease: Duration::from_secs(600), wait }
}

fn job(body: &str) -> NewJob {
    NewJob::new(body.to_owned())
}

/// The job that is there to be claimed.
async fn one_claimed(queues: &QueueHandle) -> Claimed {
    let mut claimed = within("a job", queues.claim(claim(PATIENCE))).await.expect("a claim");
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    claimed.remove(0)
}

fn refused<T: std::fmt::Debug>(what: &str, result: Result<T>, kind: ErrorKind) -> Error {
    let error = result.map(|answer| panic!("{what}: {answer:?}")).unwrap_err();
    assert_eq!(error.kind(), kind, "{what}: {error}");
    error
}
