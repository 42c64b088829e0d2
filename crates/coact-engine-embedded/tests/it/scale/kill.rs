//! kill -9 at random moments, with everything at once: producers, a group that commits, delayed records, and workers. Each
//! life goes on in the same directory; after each, what was acknowledged is counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use coact_core::{
    contract::{
        queue::{Claim, JobId, NewJob, QueueHandle, QueueSpec, Receipt, Settle, Settled, Token, Verdict},
        stream::{
            Append, Batch, Delayed, GroupOffset, Offset, OffsetCommit, Read, Record, Stamp, StreamHandle, TopicSpec,
        },
    },
    env::Env,
    name::{Group, Topic},
    registry::Store,
};
use coact_engine_embedded::Config;

use super::count;
use crate::messages::{open, queue, topic};

const DIR: &str = "COACT_SCALE_DIR";
const LIFE: &str = "COACT_SCALE_LIFE";
/// How many records a life is killed after, about; many more for a long run.
const RECORDS: &str = "COACT_SCALE_RECORDS";
const RECORDS_DEFAULT: u64 = 30_000;
const LIVES: u64 = 5;
const PARTITIONS: u32 = 4;
const BATCH: u64 = 50;
const JOBS: u64 = 10;
const SCHEDULED: u64 = 20;

fn later() -> Topic {
    Topic::new("later").expect("a topic")
}

fn group() -> Group {
    Group::new("readers").expect("a group")
}

/// Small segments and snapshots, so that a life has many of each.
fn config(dir: &Path) -> Config {
    Config { segment_bytes: 1 << 20, snapshot_bytes: 2 << 20, ..Config::in_dir(dir) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_at_random_moments() {
    let place = tempfile::tempdir().expect("a directory");
    let (env, mut known, mut claims) = (Env::real(), Known::default(), 0);
    let records = count(RECORDS, RECORDS_DEFAULT);
    for life in 0..LIVES {
        // Anywhere in a life: amid the first batches, or amid a snapshot.
        let enough = records / 2 + env.random() % records;
        claims += live_until(place.path(), life, enough, &mut known);
        verify(place.path(), &known, life).await;
    }
    let Known { appended, scheduled, enqueued, .. } = &known;
    println!("acknowledged: {appended:?} records, {scheduled} delayed, {enqueued} jobs, {claims} claims");
    assert!(claims > 0 && *scheduled > 0, "the lives leave something untested");
    settle_everything(place.path(), &known).await;
}

/// What was acknowledged, over all lives.
#[derive(Debug, Default)]
struct Known {
    /// Records of each partition: they are numbered from zero.
    appended: BTreeMap<u32, u64>,
    /// How far the group committed.
    committed: BTreeMap<u32, u64>,
    /// Delayed records that were acknowledged.
    scheduled: u64,
    delays: BTreeSet<String>,
    enqueued: u64,
    /// Jobs by what they are called, that were enqueued, and that were done.
    jobs: BTreeSet<String>,
    done: BTreeSet<String>,
    /// Of the last life: claims that were not settled.
    open: BTreeMap<u64, u64>,
}

impl Known {
    /// Takes note of a line; returns how many records it acknowledges.
    fn hear(&mut self, line: &str) -> Option<u64> {
        let mut words = line.split(' ');
        let number = |words: &mut std::str::Split<'_, char>| words.next()?.parse::<u64>().ok();
        match words.next()? {
            "appended" => {
                let (partition, end) = (number(&mut words)? as u32, number(&mut words)?);
                let known = self.appended.entry(partition).or_default();
                let more = end.saturating_sub(*known);
                *known = end.max(*known);
                return Some(more);
            }
            "committed" => {
                let (partition, offset) = (number(&mut words)? as u32, number(&mut words)?);
                self.committed.insert(partition, offset);
            }
            "scheduled" => {
                self.delays.extend(words.map(str::to_owned));
                self.scheduled = self.delays.len() as u64;
            }
            "enqueued" => {
                self.jobs.extend(words.map(str::to_owned));
                self.enqueued = self.jobs.len() as u64;
            }
            "claimed" => {
                let (id, token) = (number(&mut words)?, number(&mut words)?);
                self.open.insert(id, token);
            }
            "done" => {
                let id = number(&mut words)?;
                self.open.remove(&id);
                self.done.insert(words.next()?.to_owned());
            }
            _ => return None,
        }
        Some(0)
    }
}

/// Runs a child until it acknowledged enough, and kills it; returns how many claims there were.
fn live_until(dir: &Path, life: u64, enough: u64, known: &mut Known) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["scale::kill::child_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(LIFE, life.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let (mut records, mut claims, mut killed) = (0, 0, false);
    known.open.clear();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok) {
        // The last line may be half a line: each ends with a full stop.
        let Some(line) = line.strip_suffix('.') else { continue };
        claims += u64::from(line.starts_with("claimed"));
        records += known.hear(line.trim_start_matches("test scale::kill::child_process ... ")).unwrap_or(0);
        if records >= enough && !killed {
            // What it said before it died is read to the end.
            child.kill().expect("killed");
            killed = true;
        }
    }
    let output = child.wait_with_output().expect("the child ends");
    assert!(killed, "the child of life {life} ended by itself: {}", String::from_utf8_lossy(&output.stderr));
    claims
}

/// The child's part; does nothing when the test run calls it by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let life: u64 = std::env::var(LIFE).expect("set by the parent").parse().expect("a number");
    let (_engine, store) = open(&config(Path::new(&dir))).await;
    create(&store).await;
    let mut parts = tokio::task::JoinSet::new();
    let number = Arc::<AtomicU64>::default();
    let mut spawn = |part: futures::future::BoxFuture<'static, ()>| drop(parts.spawn(part));
    for partition in 0..PARTITIONS {
        spawn(Box::pin(produce(streams(&store), life, partition)));
        spawn(Box::pin(consume(streams(&store), partition)));
    }
    spawn(Box::pin(delay(streams(&store), life)));
    for _ in 0..4 {
        spawn(Box::pin(employ(store.queues().expect("queues").clone(), life, number.clone())));
    }
    while parts.join_next().await.is_some() {}
}

fn streams(store: &Store) -> StreamHandle {
    store.streams().expect("streams").clone()
}

async fn create(store: &Store) {
    let streams = store.streams().expect("streams");
    let spec = TopicSpec { partitions: PARTITIONS, ..TopicSpec::default() };
    for name in [topic(), later()] {
        if streams.topic(&name).await.expect("an answer").is_none() {
            streams.create_topic(&name, &spec).await.expect("created");
        }
    }
    store.queues().expect("queues").put_queue(&queue(), &QueueSpec::default()).await.expect("created");
}

/// Says what was acknowledged, at once and in whole lines.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}.").expect("the parent listens");
    out.flush().expect("the parent listens");
}

/// A record says which it is; what a life before it appended without hearing of it is counted, too.
async fn produce(streams: StreamHandle, life: u64, partition: u32) {
    let mut next = streams.bounds(&topic(), partition).await.expect("bounds").end.0;
    let mut sequence = 0;
    loop {
        let records: Vec<_> = (next..next + BATCH).map(|number| Record::new(value(number))).collect();
        let stamp = Stamp { producer: 1 + u64::from(partition), epoch: life as u32, sequence };
        let append =
            Append { topic: topic(), partition, batch: Batch::new(&records), stamp: Some(stamp), expect: None };
        let appended = streams.append(append).await.expect("appended");
        assert_eq!(appended.first, Offset(next), "one producer has the partition for itself");
        (next, sequence) = (next + BATCH, sequence + BATCH);
        say(&format!("appended {partition} {next}"));
    }
}

fn value(number: u64) -> String {
    format!("{number}:{}", "v".repeat((number % 97) as usize))
}

async fn consume(streams: StreamHandle, partition: u32) {
    let group_now = streams.group(&group()).await.expect("an answer");
    let offsets = group_now.map(|info| info.offsets).unwrap_or_default();
    let mine = offsets.into_iter().find(|offset| offset.partition == partition);
    let mut from = mine.map_or(Offset(0), |offset| offset.offset);
    loop {
        let read = Read { topic: topic(), partition, from, max_bytes: 64 << 10, wait: Duration::from_secs(5) };
        from = streams.read(read).await.expect("read").next;
        let offset = GroupOffset { topic: topic(), partition, offset: from, metadata: "".into() };
        let offsets = OffsetCommit { group: group(), generation: 1, offsets: vec![offset] };
        streams.commit_offsets(offsets).await.expect("committed");
        say(&format!("committed {partition} {}", from.0));
    }
}

async fn delay(streams: StreamHandle, life: u64) {
    for round in 0u64.. {
        let now_ms = streams.env().wall_ms();
        let delayed = |at: u64| {
            let due_ms = now_ms + 1 + (round * SCHEDULED + at) * 7 % 2_000;
            let record = Record::new(format!("{life}/{}/{due_ms}", round * SCHEDULED + at));
            Delayed { topic: later(), partition: (at % u64::from(PARTITIONS)) as u32, record, due_ms }
        };
        let all: Vec<_> = (0..SCHEDULED).map(delayed).collect();
        let names: Vec<_> = all.iter().map(text).collect();
        streams.schedule(all).await.expect("scheduled");
        say(&format!("scheduled {}", names.join(" ")));
    }
}

fn text(delayed: &Delayed) -> String {
    String::from_utf8_lossy(&delayed.record.value).into_owned()
}

/// Makes jobs and does most of them.
async fn employ(queues: QueueHandle, life: u64, number: Arc<AtomicU64>) {
    loop {
        let names: Vec<_> = (0..JOBS).map(|_| format!("{life}/{}", number.fetch_add(1, Relaxed))).collect();
        queues.enqueue(&queue(), names.iter().cloned().map(NewJob::new).collect()).await.expect("enqueued");
        say(&format!("enqueued {}", names.join(" ")));
        for job in queues.claim(claim(JOBS as usize)).await.expect("claimed") {
            say(&format!("claimed {} {}", job.id.0, job.token.0));
            // Some are never done: their claims are open when the child dies.
            if job.token.0 % 5 != 0 {
                let settle = Settle { receipt: job.receipt(), verdict: Verdict::Ack };
                assert_eq!(queues.settle(&queue(), vec![settle]).await.expect("settled"), [Settled::Done]);
                say(&format!("done {} {}", job.id.0, String::from_utf8_lossy(&job.job.body)));
            }
        }
    }
}

fn claim(limit: usize) -> Claim {
    let (lease, wait) = (Duration::from_secs(600), Duration::ZERO);
    Claim { queue: queue(), worker: "w".to_owned(), limit, lease, wait }
}

/// Reads the values of a partition from its beginning.
async fn values(streams: &StreamHandle, topic: &Topic, partition: u32) -> Vec<(u64, String)> {
    let (mut from, mut found) = (Offset(0), Vec::new());
    loop {
        let read = Read { topic: topic.clone(), partition, from, max_bytes: 1 << 20, wait: Duration::ZERO };
        let fetched = streams.read(read).await.expect("read");
        if fetched.batches.is_empty() {
            return found;
        }
        let records = fetched.records(from);
        found
            .extend(records.map(|stored| (stored.time_ms, String::from_utf8_lossy(&stored.record.value).into_owned())));
        from = fetched.next;
    }
}

/// Every record that was acknowledged is there, once and in order; so is what the group committed.
async fn verify(dir: &Path, known: &Known, life: u64) {
    let (_engine, store) = open(&config(dir)).await;
    let streams = store.streams().expect("streams");
    for (partition, end) in &known.appended {
        let found = values(streams, &topic(), *partition).await;
        assert!(found.len() as u64 >= *end, "life {life}: {} of {end} records of {partition}", found.len());
        for (number, (_, found)) in found.iter().enumerate() {
            assert_eq!(*found, value(number as u64), "life {life}: partition {partition}");
        }
    }
    let offsets = streams.group(&group()).await.expect("an answer").map(|info| info.offsets).unwrap_or_default();
    for (partition, offset) in &known.committed {
        let found = offsets.iter().find(|found| found.partition == *partition).map_or(0, |found| found.offset.0);
        assert!(found >= *offset, "life {life}: {partition} is committed up to {found}, not {offset}");
    }
    // Half of what was claimed is settled with a stale token: nobody gets in by that.
    let queues = store.queues().expect("queues");
    for (id, token) in known.open.iter().filter(|(_, token)| **token > 1).take(20) {
        let receipt = Receipt { id: JobId(*id), token: Token(token - 1) };
        let stale = Settle { receipt, verdict: Verdict::Ack };
        assert_eq!(queues.settle(&queue(), vec![stale]).await.expect("an answer"), [Settled::Fenced], "life {life}");
    }
    store.close().await.expect("closed");
}

/// In the end every delayed record is handed over once and never early, and every job is there or was done.
async fn settle_everything(dir: &Path, known: &Known) {
    let (_engine, store) = open(&config(dir)).await;
    let (streams, queues) = (store.streams().expect("streams"), store.queues().expect("queues"));
    coact_testkit::bed::wait_until(&Env::real(), "handed over", coact_testkit::bed::PATIENCE, async || {
        streams.delay_stats(&later()).await.expect("stats").pending == 0
    })
    .await
    .expect("they come");
    let mut handed = BTreeSet::new();
    for partition in 0..PARTITIONS {
        for (time_ms, name) in values(streams, &later(), partition).await {
            let due_ms: u64 = name.rsplit('/').next().and_then(|text| text.parse().ok()).expect("a time");
            assert!(time_ms >= due_ms, "{name} came at {time_ms}");
            assert!(handed.insert(name.clone()), "{name} came twice");
        }
    }
    let lost: Vec<_> = known.delays.difference(&handed).take(5).collect();
    assert!(lost.is_empty(), "delayed records are lost: {lost:?}");

    let (mut left, mut after) = (BTreeSet::new(), None);
    for state in [coact_core::contract::queue::JobState::Ready, coact_core::contract::queue::JobState::Claimed] {
        loop {
            let jobs = queues.jobs(&queue(), state, after, 1_000).await.expect("jobs");
            let Some(last) = jobs.last() else { break };
            after = Some(last.id);
            left.extend(jobs.iter().map(|job| String::from_utf8_lossy(&job.job.body).into_owned()));
        }
        after = None;
    }
    let undone: BTreeSet<_> = known.jobs.difference(&known.done).cloned().collect();
    let lost: Vec<_> = undone.difference(&left).collect();
    // What was being settled when the child died is done, though nobody said so: one for each worker and life.
    assert!(lost.len() as u64 <= 4 * LIVES, "jobs are lost: {lost:?}");
    let again: Vec<_> = left.intersection(&known.done).take(5).collect();
    assert!(again.is_empty(), "jobs are there again that were done: {again:?}");
    store.close().await.expect("closed");
}
