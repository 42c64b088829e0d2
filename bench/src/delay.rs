//! Delayed records: how late they come while many others wait; coact beside beanstalkd, and beside a sorted set of Redis
//! with somebody who looks every 10 ms.

use std::time::{Duration, Instant};

use coact::{
    Env, Store, Topic,
    contract::stream::{DELAY_MAX, Delayed, Offset, Read, Record, Seek, TopicSpec},
};
use coact_testkit::bed::RedisBed;

use crate::{
    beanstalkd::Beanstalkd,
    load::{Measured, measured, print_times},
    peer::{Sides, redis_connection, resident},
};

/// How many a second are scheduled, for how long each, and how long the others wait.
const PER_SECOND: u64 = 1_000;
const LONGEST_MS: u64 = 2_000;
const OTHERS: Duration = Duration::from_secs(3600);
const BODY_BYTES: usize = 100;
/// How many of the others are scheduled at once.
const AT_ONCE: usize = 1_000;
const REDIS: &str = "Redis sorted set, polled every 10 ms";

pub(crate) async fn run(time: Duration, pending: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let sides = Sides::start(dir.path()).await;
    let rows = vec![
        coact("coact embedded, in process", &sides.embedded, pending, time).await,
        coact("coact node, through coact://", &sides.node, pending, time).await,
        redis_set(&sides.redis, pending, time).await,
        beanstalkd(pending, time).await,
    ];
    let title = format!("{PER_SECOND}/s delayed by up to {LONGEST_MS} ms while {pending} others wait; µs late");
    print_times(&title, &rows);
    sides.embedded.close().await.expect("it closes");
}

async fn coact(name: &str, store: &Store, pending: usize, time: Duration) -> Measured {
    let (streams, env) = (store.streams().expect("streams").clone(), Env::real());
    let topic = Topic::new("later").expect("a topic");
    // Of what is in this process.
    let before = name.ends_with("in process").then(resident);
    streams.create_topic(&topic, &TopicSpec::default()).await.expect("created");
    assert!(OTHERS < DELAY_MAX);
    let delayed = |due_ms: u64, value: Vec<u8>| Delayed {
        topic: topic.clone(),
        partition: 0,
        record: Record::new(value),
        due_ms,
    };
    let (began, due_ms) = (Instant::now(), env.wall_ms() + OTHERS.as_millis() as u64);
    for from in (0..pending).step_by(AT_ONCE) {
        let others = (from..pending.min(from + AT_ONCE))
            .map(|other| delayed(due_ms + other as u64 % 60_000, vec![7; BODY_BYTES]));
        streams.schedule(others.collect()).await.expect("kept");
    }
    kept(name, pending, began);
    if let Some(before) = before {
        println!("  {name}: {} B of memory each", resident().saturating_sub(before) / pending.max(1) as u64);
    }
    let mut next = streams.seek(&topic, 0, Seek::Latest).await.expect("an end");
    let reader = tokio::spawn({
        let (streams, topic, env) = (streams.clone(), topic.clone(), env.clone());
        async move {
            let (mut late, count) = (Vec::new(), count(time));
            while late.len() < count {
                let read = Read {
                    topic: topic.clone(),
                    partition: 0,
                    from: next,
                    max_bytes: 1 << 20,
                    wait: Duration::from_secs(10),
                };
                let fetched = streams.read(read).await.expect("read");
                let now_ms = env.wall_ms();
                late.extend(fetched.records(next).map(|stored| lateness(&stored.record.value, now_ms)));
                next = Offset(fetched.next.0);
            }
            late
        }
    });
    scheduling(time, |due_ms| {
        let streams = streams.clone();
        let one = delayed(due_ms, due_ms.to_string().into_bytes());
        async move { drop(streams.schedule(vec![one]).await.expect("kept")) }
    })
    .await;
    let late = reader.await.expect("a reader that does not fail");
    streams.delete_topic(&topic).await.expect("deleted");
    measured(name, late, time)
}

async fn redis_set(server: &RedisBed, pending: usize, time: Duration) -> Measured {
    let connection = redis_connection(server).await;
    let env = Env::real();
    let (began, due_ms) = (Instant::now(), env.wall_ms() + OTHERS.as_millis() as u64);
    for from in (0..pending).step_by(AT_ONCE) {
        let mut add = redis::cmd("ZADD");
        add.arg("later");
        for other in from..pending.min(from + AT_ONCE) {
            let mut body = vec![7; BODY_BYTES];
            body.extend_from_slice(other.to_string().as_bytes());
            add.arg(due_ms + other as u64 % 60_000).arg(body);
        }
        add.query_async::<()>(&mut connection.clone()).await.expect("it answers");
    }
    kept(REDIS, pending, began);
    let reader = tokio::spawn({
        let (mut connection, env) = (connection.clone(), env.clone());
        async move {
            let (mut late, count) = (Vec::new(), count(time));
            while late.len() < count {
                let mut due = redis::cmd("ZRANGEBYSCORE");
                due.arg("later").arg("-inf").arg(env.wall_ms()).arg("LIMIT").arg(0).arg(1_000);
                let due: Vec<Vec<u8>> = due.query_async(&mut connection).await.expect("it answers");
                if !due.is_empty() {
                    // Whoever removes one has it: there may be others who look.
                    let mut remove = redis::cmd("ZREM");
                    remove.arg("later").arg(&due).query_async::<()>(&mut connection).await.expect("it answers");
                    let now_ms = env.wall_ms();
                    late.extend(due.iter().map(|body| lateness(body, now_ms)));
                }
                env.sleep(Duration::from_millis(10)).await;
            }
            late
        }
    });
    let number = std::sync::atomic::AtomicU64::new(0);
    scheduling(time, |due_ms| {
        let mut connection = connection.clone();
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            let mut add = redis::cmd("ZADD");
            add.arg("later").arg(due_ms).arg(format!("{due_ms} {number}"));
            add.query_async::<()>(&mut connection).await.expect("it answers");
        }
    })
    .await;
    measured(REDIS, reader.await.expect("a reader that does not fail"), time)
}

/// In memory only: synced at every write, it would take an hour to take the others. Its delays are whole seconds.
async fn beanstalkd(pending: usize, time: Duration) -> Measured {
    let name = "beanstalkd in memory, whole seconds";
    let (server, env) = (Beanstalkd::start(None).await, Env::real());
    let mut connection = server.connect().await;
    let began = Instant::now();
    for from in (0..pending).step_by(AT_ONCE) {
        let many = AT_ONCE.min(pending - from);
        connection.put_all(many, |other| OTHERS.as_secs() + other as u64 % 60, &[7; BODY_BYTES]).await;
    }
    kept(name, pending, began);
    let mut jobs = server.connect().await;
    let reader = tokio::spawn({
        let env = env.clone();
        async move {
            let (mut late, count) = (Vec::new(), count(time));
            while late.len() < count {
                let (id, body) = jobs.reserve().await;
                late.push(lateness(&body, env.wall_ms()));
                jobs.delete(&id).await;
            }
            late
        }
    });
    let connection = std::sync::Arc::new(tokio::sync::Mutex::new(connection));
    scheduling(time, |due_ms| {
        let (connection, env) = (connection.clone(), env.clone());
        async move {
            let mut connection = connection.lock().await;
            let now_ms = env.wall_ms();
            let delay_s = due_ms.saturating_sub(now_ms) / 1_000;
            // What it was asked for is what it is held to.
            let due_ms = now_ms + delay_s * 1_000;
            connection.put(delay_s, due_ms.to_string().as_bytes()).await;
        }
    })
    .await;
    measured(name, reader.await.expect("a reader that does not fail"), time)
}

fn count(time: Duration) -> usize {
    (time.as_secs_f64() * PER_SECOND as f64) as usize
}

/// Schedules at the rate, whatever became of those before.
async fn scheduling<F>(time: Duration, schedule: impl Fn(u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let env = Env::real();
    let mut tasks = Vec::new();
    let mut every = tokio::time::interval(Duration::from_micros(1_000_000 / PER_SECOND));
    for _ in 0..count(time) {
        every.tick().await;
        tasks.push(tokio::spawn(schedule(env.wall_ms() + env.random() % LONGEST_MS)));
    }
    for task in tasks {
        task.await.expect("a request that does not fail");
    }
}

/// How late it is for a body that begins with when it was due.
fn lateness(body: &[u8], now_ms: u64) -> Duration {
    let text = std::str::from_utf8(body).expect("text");
    let due_ms: u64 = text.split(' ').next().and_then(|due| due.parse().ok()).expect("a time");
    let late_ms = now_ms.checked_sub(due_ms).expect("none is early");
    Duration::from_millis(late_ms)
}

fn kept(name: &str, pending: usize, began: Instant) {
    println!("  {name}: {pending} kept at {:.0}/s", pending as f64 / began.elapsed().as_secs_f64());
}
