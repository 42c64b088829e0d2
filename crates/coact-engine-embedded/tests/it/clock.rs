//! A wall clock that steps an hour: delays and retention follow it, and leases do not care. Each step has a control: the
//! same life without it.

use std::time::Duration;

use coact_core::{
    contract::{
        queue::{Claim, Claimed, NewJob, QueueHandle, QueueSpec, Settle, Settled, Verdict},
        stream::{Append, Appended, Batch, Delayed, Offset, Record, StreamHandle, TopicSpec},
    },
    env::Env,
    guarantees::Accepted,
    name::{Namespace, Queue, Topic},
};
use coact_engine_embedded::{Config, Engine};
use coact_testkit::sim::{self, World};

const NODE: &str = "node";
const HOUR_MS: i64 = 3600 * 1000;
const LEASE: Duration = Duration::from_secs(60);
const SEEDS: u64 = 20;

struct Node {
    world: World,
    env: Env,
    streams: StreamHandle,
    queues: QueueHandle,
    _engine: Engine,
}

fn topic() -> Topic {
    Topic::new("orders").expect("a topic")
}

fn queue() -> Queue {
    Queue::new("mails").expect("a queue")
}

async fn start(world: World) -> Node {
    let env = world.env(NODE);
    let engine = Engine::open(Config::in_dir("/data"), env.clone()).await.expect("it opens");
    let store = engine.store(Namespace::default(), Accepted::default());
    let (streams, queues) = (store.streams().expect("streams").clone(), store.queues().expect("queues").clone());
    let spec = TopicSpec { retention_age: Some(Duration::from_secs(600)), ..TopicSpec::default() };
    streams.create_topic(&topic(), &spec).await.expect("created");
    queues.put_queue(&queue(), &QueueSpec::default()).await.expect("created");
    Node { world, env, streams, queues, _engine: engine }
}

impl Node {
    async fn append(&self) -> Appended {
        let batch = Batch::new(&[Record::new("now")]);
        let append = Append { topic: topic(), partition: 0, batch, stamp: None, expect: None };
        self.streams.append(append).await.expect("appended")
    }

    /// Schedules a record for so many seconds from now, by the wall clock.
    async fn delay(&self, seconds: u64) -> u64 {
        let due_ms = self.env.wall_ms() + seconds * 1000;
        let delayed = Delayed { topic: topic(), partition: 0, record: Record::new("later"), due_ms };
        self.streams.schedule(vec![delayed]).await.expect("scheduled");
        due_ms
    }

    async fn pending(&self) -> u64 {
        self.streams.delay_stats(&topic()).await.expect("stats").pending
    }

    async fn claim(&self) -> Option<Claimed> {
        let (worker, wait) = ("w".to_owned(), Duration::ZERO);
        self.queues
            .claim(Claim { queue: queue(), worker, limit: 1, lease: LEASE, wait })
            .await
            .expect("an answer")
            .pop()
    }

    async fn ack(&self, claimed: &Claimed) -> Settled {
        let settle = Settle { receipt: claimed.receipt(), verdict: Verdict::Ack };
        self.queues.settle(&queue(), vec![settle]).await.expect("an answer").remove(0)
    }

    async fn enqueue(&self, job: NewJob) {
        self.queues.enqueue(&queue(), vec![job]).await.expect("enqueued");
    }

    fn step(&self, by_ms: i64) {
        self.world.step_clock(NODE, by_ms);
    }

    async fn pass(&self, seconds: u64) {
        self.env.sleep(Duration::from_secs(seconds)).await;
    }
}

#[test]
fn a_step_ahead_makes_due_what_is_due_by_the_wall_clock() {
    for seed in sim::seeds(SEEDS) {
        for by_ms in [0, HOUR_MS] {
            sim::run(seed, async |world| {
                let node = start(world).await;
                node.append().await;
                node.delay(1800).await;
                let run_at_ms = Some(node.env.wall_ms() + 1_800_000);
                node.enqueue(NewJob { run_at_ms, ..NewJob::new("later") }).await;
                node.step(by_ms);
                node.pass(5).await;
                let stepped = by_ms != 0;
                assert_eq!(node.pending().await, u64::from(!stepped), "the delay");
                assert_eq!(node.claim().await.is_some(), stepped, "the job");
                let start = node.streams.bounds(&topic(), 0).await.expect("bounds").start;
                assert_eq!(start >= Offset(1), stepped, "retention by age");
            });
        }
    }
}

#[test]
fn a_step_back_makes_nothing_early_and_nothing_is_stuck() {
    for seed in sim::seeds(SEEDS) {
        for by_ms in [0, -HOUR_MS] {
            sim::run(seed, async |world| {
                let node = start(world).await;
                let before = node.append().await;
                let due_ms = node.delay(10).await;
                node.step(by_ms);
                node.pass(15).await;
                let stepped = by_ms != 0;
                assert_eq!(node.pending().await, u64::from(stepped), "it waits for the wall clock");
                let after = node.append().await;
                assert!(after.time_ms >= before.time_ms, "times of a partition never go back");
                // What is scheduled by the clock as it is now comes in its time.
                node.delay(10).await;
                node.pass(15).await;
                assert_eq!(node.pending().await, u64::from(stepped), "the later one came");
                node.step(-by_ms);
                node.pass(5).await;
                assert_eq!(node.pending().await, 0, "the clock is right again");
                assert!(node.env.wall_ms() >= due_ms);
            });
        }
    }
}

#[test]
fn half_an_hour_back_is_half_an_hour_of_waiting_and_no_more() {
    sim::run(1, async |world| {
        let node = start(world).await;
        node.delay(10).await;
        node.step(-HOUR_MS / 2);
        node.pass(1_800).await;
        assert_eq!(node.pending().await, 1, "ten seconds too early");
        node.pass(15).await;
        assert_eq!(node.pending().await, 0);
    });
}

#[test]
fn leases_end_in_their_time_whatever_the_wall_clock_does() {
    for seed in sim::seeds(SEEDS) {
        for by_ms in [0, HOUR_MS, -HOUR_MS] {
            sim::run(seed, async |world| {
                let node = start(world).await;
                node.enqueue(NewJob::new("kept")).await;
                node.enqueue(NewJob::new("lost")).await;
                let (kept, lost) = (node.claim().await.expect("a job"), node.claim().await.expect("a job"));
                node.step(by_ms);
                node.pass(50).await;
                assert!(node.claim().await.is_none(), "no step ends a lease");
                assert_eq!(node.ack(&kept).await, Settled::Done);
                node.pass(15).await;
                let again = node.claim().await.expect("no step keeps a lease alive");
                assert_eq!(again.id, lost.id);
                assert_eq!(node.ack(&lost).await, Settled::Fenced);
                assert_eq!(node.ack(&again).await, Settled::Done);
            });
        }
    }
}
