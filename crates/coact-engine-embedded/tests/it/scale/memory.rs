//! What millions of pending delays cost: memory, inserting, coming due, opening again. Small in a test run, where only the
//! accounting is looked at; `COACT_SCALE_DELAYS=5000000` in a release build, with `--nocapture`, tells the numbers.

use std::{collections::BTreeMap, time::Duration};

use coact_core::{
    contract::stream::{Delayed, Offset, Read, Record, StreamHandle, TopicSpec},
    env::Env,
};
use coact_engine_embedded::Config;

use super::{count, rate};
use crate::messages::{open, topic};

const DELAYS: &str = "COACT_SCALE_DELAYS";
const DELAYS_DEFAULT: u64 = 20_000;
const AT_ONCE: u64 = 1_000;
/// For so many that wait, one comes due.
const SOON_EVERY: u64 = 20;
const DAY_MS: u64 = 24 * 3600 * 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn millions_of_delays_wait_in_little_memory() {
    let place = tempfile::tempdir().expect("a directory");
    let (env, delays) = (Env::real(), count(DELAYS, DELAYS_DEFAULT) / AT_ONCE * AT_ONCE);
    let (_engine, store) = open(&Config::in_dir(place.path())).await;
    let streams = store.streams().expect("streams");
    streams.create_topic(&topic(), &TopicSpec::default()).await.expect("created");
    let (before, began) = (resident_bytes(), env.now());
    let start_ms = env.wall_ms();
    for first in (0..delays).step_by(AT_ONCE as usize) {
        let delayed = (first..first + AT_ONCE).map(|number| delayed(far_ms(start_ms, number), number));
        streams.schedule(delayed.collect()).await.expect("scheduled");
    }
    let (inserted, grown) = (env.now() - began, resident_bytes().saturating_sub(before));
    assert_eq!(streams.delay_stats(&topic()).await.expect("stats").pending, delays);
    println!("{delays} delays: {:.0}/s inserted, {} B each resident", rate(delays, inserted), grown / delays);
    store.close().await.expect("closed");
    drop((_engine, store));

    let (before, began) = (resident_bytes(), env.now());
    let (_engine, store) = open(&Config::in_dir(place.path())).await;
    let streams = store.streams().expect("streams");
    let (opened, grown) = (env.now() - began, resident_bytes().saturating_sub(before));
    println!("opened in {:.2} s, {} B each more resident", opened.as_secs_f64(), grown / delays);
    // Some that come, among those that wait.
    let (soon, first_ms) = (delays.div_ceil(SOON_EVERY), env.wall_ms() + 1_500);
    for first in (0..soon).step_by(AT_ONCE as usize) {
        let due = (first..soon.min(first + AT_ONCE)).map(|number| delayed(first_ms + number / 1_000, number));
        streams.schedule(due.collect()).await.expect("scheduled");
    }
    coact_testkit::bed::wait_until(&env, "handed over", coact_testkit::bed::PATIENCE, async || {
        streams.delay_stats(&topic()).await.expect("stats").pending == delays
    })
    .await
    .expect("they come");
    let took = Duration::from_millis(env.wall_ms().saturating_sub(first_ms).max(1));
    println!("{soon} that came due, up to 1000 in a millisecond: {:.0}/s handed over", rate(soon, took));
    let mut seen = BTreeMap::<String, u32>::new();
    for name in values(streams).await {
        *seen.entry(name).or_default() += 1;
    }
    assert!(seen.values().all(|times| *times == 1), "each comes once");
    assert_eq!(seen.len() as u64, soon, "and only those that are due");
    store.close().await.expect("closed");
}

/// A day ahead and later: in the order of numbers, times are all over the place.
fn far_ms(start_ms: u64, number: u64) -> u64 {
    start_ms + DAY_MS + number.wrapping_mul(0x9e37_79b9) % (30 * DAY_MS)
}

fn delayed(due_ms: u64, number: u64) -> Delayed {
    Delayed { topic: topic(), partition: 0, record: Record::new(format!("{number:0>64}")), due_ms }
}

async fn values(streams: &StreamHandle) -> Vec<String> {
    let (mut from, mut found) = (Offset(0), Vec::new());
    loop {
        let read = Read { topic: topic(), partition: 0, from, max_bytes: 1 << 20, wait: Duration::ZERO };
        let fetched = streams.read(read).await.expect("read");
        if fetched.batches.is_empty() {
            return found;
        }
        found.extend(fetched.records(from).map(|stored| String::from_utf8_lossy(&stored.record.value).into_owned()));
        from = fetched.next;
    }
}

/// What the process has in memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
