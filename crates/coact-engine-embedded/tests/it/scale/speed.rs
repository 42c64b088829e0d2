//! How fast durable appends and jobs are, against a bare loop of write and sync on the same disk in the same run. Not part
//! of a test run, since nothing is asserted of time: `cargo test --release -p coact-engine-embedded --test it
//! scale::speed -- --ignored --nocapture --test-threads 1`.

use std::{os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use bytes::Bytes;
use coact_core::{
    contract::{
        queue::{Claim, NewJob, QueueSpec, Settle, Verdict},
        stream::{Append, Batch, Record, TopicSpec},
    },
    env::Env,
};
use tokio::sync::Semaphore;

use super::{config, open, queue, rate, topic};

const PARTITIONS: u32 = 8;
/// The bytes of each measurement.
const TOTAL: usize = 512 << 20;
const SEGMENT: u64 = 64 << 20;

/// One way to append.
struct Case {
    record_bytes: usize,
    records: usize,
    in_flight: usize,
}

#[test]
#[ignore = "a measurement"]
fn appends_against_a_bare_loop() {
    println!("{:>12} {:>9} {:>10} {:>9} {:>9} {:>8}", "record", "in batch", "in flight", "msg/s", "MB/s", "of bare");
    for (record_bytes, records) in [(100, 100), (100, 1_000), (1_024, 100), (1_024, 1_000), (1_024, 4_000)] {
        for in_flight in [1, 8, 64] {
            println!("{}", measure_appends(&Case { record_bytes, records, in_flight }));
        }
    }
}

fn measure_appends(case: &Case) -> String {
    let Case { record_bytes, records, in_flight } = *case;
    let values: Vec<_> = (0..records).map(|_| Record::new(noise(record_bytes))).collect();
    let batch = Batch::new(&values);
    let total = if records == 100 && in_flight == 1 { TOTAL / 8 } else { TOTAL };
    let batches = (total / batch.bytes().len()).max(in_flight * 2);
    let bare = bare_rate(batch.bytes(), batches, in_flight);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("one");
    let took = runtime.block_on(append_all(batch.clone(), batches, in_flight));
    let bytes = (batches * batch.bytes().len()) as u64;
    format!(
        "{record_bytes:>12} {records:>9} {in_flight:>10} {:>9.0} {:>9.1} {:>8.2}",
        rate((batches * records) as u64, took),
        rate(bytes, took) / 1e6,
        rate(bytes, took) / bare
    )
}

async fn append_all(batch: Batch, batches: usize, in_flight: usize) -> Duration {
    let place = tempfile::tempdir().expect("a directory");
    let (_engine, store) = open(config(place.path())).await;
    let streams = store.streams().expect("streams").clone();
    let spec = TopicSpec { partitions: PARTITIONS, ..TopicSpec::default() };
    streams.create_topic(&topic(), &spec).await.expect("created");
    let env = Env::real();
    let room = Arc::new(Semaphore::new(in_flight));
    let began = env.now();
    for number in 0..batches {
        let permit = room.clone().acquire_owned().await.expect("open");
        let (streams, batch) = (streams.clone(), batch.clone());
        let partition = number as u32 % PARTITIONS;
        env.spawn(async move {
            let append = Append { topic: topic(), partition, batch, stamp: None, expect: None };
            streams.append(append).await.expect("appended");
            drop(permit);
        });
    }
    let _all = room.acquire_many(in_flight as u32).await.expect("open");
    let took = env.now() - began;
    store.close().await.expect("closed");
    took
}

/// Bytes a second of a loop that writes as much at once as may be in flight, up to 8 MiB, into files of zeros, and syncs.
fn bare_rate(bytes: &[u8], batches: usize, in_flight: usize) -> f64 {
    let place = tempfile::tempdir().expect("a directory");
    let at_once = in_flight.min((8 << 20) / bytes.len()).max(1);
    let (mut group, length) = (bytes.repeat(at_once), SEGMENT.max(bytes.len() as u64));
    let file = std::fs::File::create(place.path().join("bare")).expect("a file");
    let zeros = vec![0; 1 << 20];
    (0..length >> 20).for_each(|at| file.write_all_at(&zeros, at << 20).expect("zeros"));
    file.sync_all().expect("synced");
    let (env, mut offset) = (Env::real(), 0);
    let rounds = batches.div_ceil(at_once);
    let began = env.now();
    for round in 0..rounds {
        group[0] = round as u8;
        if offset + group.len() as u64 > length {
            offset = 0;
        }
        file.write_all_at(&group, offset).expect("written");
        file.sync_data().expect("synced");
        offset += group.len() as u64;
    }
    rate((rounds * group.len()) as u64, env.now() - began)
}

#[test]
#[ignore = "a measurement"]
fn jobs_of_many_workers() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("one");
    for workers in [1, 16, 64] {
        println!("{}", runtime.block_on(measure_jobs(workers)));
    }
}

async fn measure_jobs(workers: u64) -> String {
    let place = tempfile::tempdir().expect("a directory");
    let (engine, store) = open(config(place.path())).await;
    let queues = store.queues().expect("queues").clone();
    queues.put_queue(&queue(), &QueueSpec::default()).await.expect("created");
    let (env, each) = (Env::real(), if workers == 1 { 1_000 } else { 2_000 });
    let before = engine.stats().syncs;
    let began = env.now();
    let work = |number: u64| {
        let queues = queues.clone();
        async move {
            for _ in 0..each {
                queues.enqueue(&queue(), vec![NewJob::new(noise(100))]).await.expect("enqueued");
                let claim = Claim {
                    queue: queue(),
                    worker: format!("w{number}"),
                    limit: 1,
                    lease: Duration::from_secs(60),
                    wait: Duration::from_secs(10),
                };
                let claimed = queues.claim(claim).await.expect("claimed");
                let settle = Settle { receipt: claimed[0].receipt(), verdict: Verdict::Ack };
                queues.settle(&queue(), vec![settle]).await.expect("settled");
            }
        }
    };
    let mut running: tokio::task::JoinSet<_> = (0..workers).map(work).collect();
    while let Some(worker) = running.join_next().await {
        worker.expect("it worked");
    }
    let (took, jobs) = (env.now() - began, workers * each);
    let syncs = engine.stats().syncs - before;
    let line = format!(
        "{workers:>4} workers: {:>8.0} jobs/s (enqueue, claim and ack, durable), {:.1} of the three a sync",
        rate(jobs, took),
        (3 * jobs) as f64 / syncs as f64
    );
    store.close().await.expect("closed");
    line
}

/// Bytes that are not zeros.
fn noise(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + 7) as u8 | 1).collect()
}
