//! Jobs: coact beside a group of Redis Streams, rows of PostgreSQL that are claimed with `SKIP LOCKED`, and beanstalkd.

use std::{sync::Arc, time::Duration};

use coact::{
    Queue, Store,
    contract::queue::{Claim, NewJob, QueueSpec, Settle, Verdict},
};
use coact_testkit::bed::RedisBed;
use redis::{aio::MultiplexedConnection, streams::StreamReadReply};
use tokio_postgres::{Client, Statement};

use crate::{
    beanstalkd::Beanstalkd,
    engines::postgres_client,
    load::{Measured, closed_loop, print},
    peer::{Sides, redis_connection},
};

const BODY_BYTES: usize = 100;
const REDIS: &str = "Redis Streams group, appendfsync always";

pub(crate) async fn run(time: Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let sides = Sides::start(dir.path()).await;
    let settings = sides.postgres.driver_settings().await;
    let table = "create table job (id bigserial primary key, claimed timestamptz, body bytea not null);
                 create index job_ready on job (id) where claimed is null";
    postgres_client(&settings).await.batch_execute(table).await.expect("a table");
    let beanstalkd = Beanstalkd::start(Some(&dir.path().join("beanstalkd"))).await;
    for workers in [1, 64] {
        let rows = vec![
            coact("coact embedded, in process", &sides.embedded, workers, time).await,
            coact("coact node, through coact://", &sides.node, workers, time).await,
            redis_group(&sides.redis, workers, time).await,
            skip_locked(&settings, workers, time).await,
            beanstalkd_jobs(&beanstalkd, workers, time).await,
        ];
        print(&format!("push + claim + ack of {BODY_BYTES} B, {workers} workers, durable"), REDIS, &rows);
    }
    sides.embedded.close().await.expect("it closes");
}

async fn coact(name: &str, store: &Store, workers: usize, time: Duration) -> Measured {
    let queues = store.queues().expect("queues").clone();
    let queue = Queue::new("bench").expect("a queue");
    queues.put_queue(&queue, &QueueSpec::default()).await.expect("created");
    closed_loop(name, workers, time, |worker| {
        let (queues, queue) = (queues.clone(), queue.clone());
        move || {
            let (queues, queue) = (queues.clone(), queue.clone());
            async move {
                queues.enqueue(&queue, vec![NewJob::new(vec![7; BODY_BYTES])]).await.expect("enqueued");
                let (lease, wait) = (Duration::from_secs(60), Duration::from_secs(60));
                let claim = Claim { queue: queue.clone(), worker: format!("w{worker}"), limit: 1, lease, wait };
                let claimed = queues.claim(claim).await.expect("an answer");
                let settle = Settle { receipt: claimed[0].receipt(), verdict: Verdict::Ack };
                queues.settle(&queue, vec![settle]).await.expect("an answer");
            }
        }
    })
    .await
}

async fn redis_group(server: &RedisBed, workers: usize, time: Duration) -> Measured {
    let mut connections = Vec::new();
    for _ in 0..workers {
        connections.push(redis_connection(server).await);
    }
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg("jobs").arg("workers").arg("$").arg("MKSTREAM");
    // There already, from the rows before.
    let _ = create.query_async::<()>(&mut connections[0]).await;
    closed_loop(REDIS, workers, time, |worker| {
        let connection = connections[worker].clone();
        move || redis_job(connection.clone(), format!("w{worker}"))
    })
    .await
}

async fn redis_job(mut connection: MultiplexedConnection, worker: String) {
    let mut push = redis::cmd("XADD");
    push.arg("jobs").arg("*").arg("body").arg(vec![7_u8; BODY_BYTES]);
    push.query_async::<String>(&mut connection).await.expect("it answers");
    let mut claim = redis::cmd("XREADGROUP");
    claim.arg("GROUP").arg("workers").arg(worker).arg("COUNT").arg(1).arg("STREAMS").arg("jobs").arg(">");
    let claimed: StreamReadReply = claim.query_async(&mut connection).await.expect("it answers");
    let id = &claimed.keys[0].ids[0].id;
    let mut done = redis::pipe();
    done.atomic().cmd("XACK").arg("jobs").arg("workers").arg(id).ignore().cmd("XDEL").arg("jobs").arg(id).ignore();
    done.query_async::<()>(&mut connection).await.expect("it answers");
}

async fn beanstalkd_jobs(server: &Beanstalkd, workers: usize, time: Duration) -> Measured {
    let mut connections = Vec::new();
    for _ in 0..workers {
        connections.push(Arc::new(tokio::sync::Mutex::new(server.connect().await)));
    }
    closed_loop("beanstalkd, -f0", workers, time, |worker| {
        let connection = connections[worker].clone();
        move || {
            let connection = connection.clone();
            async move {
                let mut connection = connection.lock().await;
                connection.put(0, &[7; BODY_BYTES]).await;
                let (id, _) = connection.reserve().await;
                connection.delete(&id).await;
            }
        }
    })
    .await
}

/// A connection with what a worker does.
struct Worker {
    client: Client,
    push: Statement,
    claim: Statement,
    done: Statement,
}

impl Worker {
    async fn new(settings: &str) -> Self {
        let client = postgres_client(settings).await;
        let push = client.prepare("insert into job (body) values ($1)").await.expect("valid");
        let claim = "update job set claimed = now() where id = (select id from job where claimed is null \
                     order by id for update skip locked limit 1) returning id";
        let claim = client.prepare(claim).await.expect("valid");
        let done = client.prepare("delete from job where id = $1").await.expect("valid");
        Self { client, push, claim, done }
    }

    async fn job(&self) {
        self.client.execute(&self.push, &[&vec![7_u8; BODY_BYTES]]).await.expect("it answers");
        // Whatever is ready may be locked by others for a moment.
        let id: i64 = loop {
            if let Some(row) = self.client.query_opt(&self.claim, &[]).await.expect("it answers") {
                break row.get(0);
            }
        };
        assert_eq!(self.client.execute(&self.done, &[&id]).await.expect("it answers"), 1, "it was claimed");
    }
}

async fn skip_locked(settings: &str, workers: usize, time: Duration) -> Measured {
    let mut clients = Vec::new();
    for _ in 0..workers {
        clients.push(Arc::new(Worker::new(settings).await));
    }
    closed_loop("PostgreSQL, SKIP LOCKED", workers, time, |worker| {
        let client = clients[worker].clone();
        move || {
            let client = client.clone();
            async move { client.job().await }
        }
    })
    .await
}
