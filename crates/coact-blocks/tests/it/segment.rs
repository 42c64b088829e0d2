//! Segments: no number twice, and dense, whatever crashes and whichever answers are lost.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use coact_blocks::id::{self, Segment, SegmentInfo, SegmentOptions};
use coact_core::{
    ErrorKind, Result,
    contract::kv::KvHandle,
    env::Env,
    name::{Dir, Realm},
};

use crate::{
    lock::key,
    model::{Fate, FateOf, Model, Request, VOLATILE},
    world::{Process, cancel_after, pass, start},
};

fn options(step: u64) -> SegmentOptions {
    SegmentOptions { step, ..SegmentOptions::new("orders") }
}

async fn open(process: &Process, step: u64) -> Segment {
    Segment::open(&process.kv, options(step)).await.expect("opens")
}

#[tokio::test(start_paused = true)]
async fn numbers_are_dense_over_processes_that_close() {
    let model = Model::new();
    let mut issued = BTreeSet::new();
    for round in 0..30 {
        let (one, two) = (Process::start(&model, 2 * round), Process::start(&model, 2 * round + 1));
        let (a, b) = (open(&one, 10).await, open(&two, 7).await);
        for turn in 0..1 + round % 13 {
            issued.extend(a.next_n(turn as usize).await.expect("issues"));
            assert!(issued.insert(b.next().await.expect("issues")), "round {round}");
        }
        a.close().await.expect("closes");
        if round % 2 == 0 {
            b.close().await.expect("closes")
        } else {
            drop(b)
        }
        pass(0.1).await;
    }
    let rest = open(&Process::start(&model, 99), 1).await;
    let end = *issued.last().expect("many");
    while issued.len() < end as usize {
        assert!(issued.insert(rest.next().await.expect("issues")), "a number of before");
    }
    assert_eq!((issued.first(), issued.last()), (Some(&1), Some(&end)), "every gap was filled before the end moved");
}

#[tokio::test(start_paused = true)]
async fn the_next_range_is_taken_when_half_is_used() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let segment = open(&process, 10).await;
    let next = async || id::segments(&process.kv, &Realm::default(), "").await.expect("answers")[0].next;
    segment.next_n(4).await.expect("issues");
    pass(0.1).await;
    assert_eq!(next().await, 11);
    segment.next().await.expect("issues");
    pass(0.1).await;
    assert_eq!(next().await, 21);
    process.faults.lock().fate = Some(Box::new(|_| Fate::Refused));
    assert_eq!(segment.next_n(15).await.expect("the store is not needed"), (6..21).collect::<Vec<_>>());
    assert_eq!(segment.next().await.expect_err("the store is needed").kind(), ErrorKind::Unavailable);
    process.faults.lock().fate = None;
    pass(2.0).await;
    assert_eq!(segment.next().await.expect("it is back"), 21);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_wastes_nothing_where_nobody_else_is() {
    for fate in [Fate::AnswerLost, Fate::Refused, Fate::Late(Duration::from_millis(10))] {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let segment = open(&process, 5).await;
        let mut turn = 0;
        process.faults.lock().fate = Some(Box::new(move |request| {
            turn += usize::from(matches!(request, Request::Txn(_)));
            if turn % 2 == 1 { fate } else { Fate::Arrives }
        }));
        for expected in 1..=100 {
            assert_eq!(segment.next().await.expect("issues"), expected, "{fate:?}");
            pass(0.1).await;
        }
        process.faults.lock().fate = None;
        segment.close().await.expect("closes");
        assert_eq!(open(&process, 5).await.next().await.expect("issues"), 101, "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_of_a_dropped_future_are_issued_to_the_next() {
    for polls in 0..12 {
        let model = Model::new();
        let process = Process::start(&model, 1);
        process.faults.lock().latency = Duration::from_millis(2);
        let segment = open(&process, 4).await;
        let taken = cancel_after(polls, segment.next_n(14)).await;
        let first = if taken.is_some() { 15 } else { 1 };
        assert_eq!(segment.next().await.expect("issues"), first, "dropped after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_given_back_with_a_lost_answer_are_not_given_back_twice() {
    let model = Model::new();
    let (process, other) = (Process::start(&model, 1), Process::start(&model, 2));
    let segment = open(&process, 10).await;
    assert_eq!(segment.next().await.expect("issues"), 1);
    process.faults.lock().fate = Some(Box::new(|request| match request {
        Request::Txn(_) => Fate::AnswerLost,
        _ => Fate::Arrives,
    }));
    let close = start(async move { segment.close().await });
    pass(0.005).await;
    let all = open(&other, 10).await.next_n(30).await.expect("issues");
    process.faults.lock().fate = None;
    let _ = close.await.expect("ends");
    let more = open(&other, 10).await.next_n(30).await.expect("issues");
    let distinct: HashSet<_> = all.iter().chain(&more).chain(&[1]).collect();
    assert_eq!(distinct.len(), 61);
}

#[tokio::test(start_paused = true)]
async fn numbers_begin_where_asked_and_end_with_the_signed_integer() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let last = i64::MAX as u64;
    let late = SegmentOptions { start: last - 4, ..options(3) };
    let segment = Segment::open(&process.kv, late).await.expect("opens");
    assert_eq!(segment.next_n(5).await.expect("issues"), (last - 4..=last).collect::<Vec<_>>());
    let error = segment.next().await.expect_err("used up");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!(error.to_string(), "segment orders is used up: its numbers end at 9223372036854775807");
    segment.close().await.expect("closes");
    assert_eq!(segment.next().await.expect_err("closed").kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn refuses_weak_stores_options_out_of_bounds_and_foreign_entries() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let message = async |options| Segment::open(&process.kv, options).await.expect_err("refused").to_string();
    assert_eq!(message(options(0)).await, "a step of 0 is not allowed: use 1 to 1000000");
    assert_eq!(message(options(1_000_001)).await, "a step of 1000001 is not allowed: use 1 to 1000000");
    let start = SegmentOptions { start: 1 << 63, ..options(1) };
    assert!(message(start).await.ends_with("use 0 to 9223372036854775807"));
    assert!(message(SegmentOptions::new("a/b")).await.contains("contains a slash"));
    process.kv.put(&key("id/segment/orders"), "7", None).await.expect("put");
    assert!(message(options(1)).await.starts_with("id/segment/orders does not hold what the id block wrote"));
    let beyond = r#"{"next":9223372036854775809,"operation":""}"#;
    process.kv.put(&key("id/segment/orders"), beyond, None).await.expect("put");
    assert!(message(options(1)).await.starts_with("id/segment/orders holds numbers that no segment has"));
    process.faults.lock().guarantees = Some(&VOLATILE);
    assert!(message(options(1)).await.starts_with("id needs writes synced to disk"));
}

#[tokio::test(start_paused = true)]
async fn lists_counters_by_prefix() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    for tag in ["orders", "order-lines", "users"] {
        let segment = Segment::open(&process.kv, SegmentOptions { step: 10, ..SegmentOptions::new(tag) }).await;
        segment.expect("opens").next().await.expect("issues");
        process.crash();
    }
    let closed = open(&process, 10).await;
    open(&process, 10).await.next().await.expect("issues");
    closed.close().await.expect("closes");
    pass(0.1).await;
    let list = id::segments(&process.kv, &Realm::default(), "order").await.expect("answers");
    let info = |tag: &str, next, returned| SegmentInfo { tag: tag.to_owned(), next, returned };
    assert_eq!(list, [info("order-lines", 11, 0), info("orders", 22, 10)]);
}

#[tokio::test(start_paused = true)]
async fn no_number_is_issued_twice_whatever_happens() {
    let mut issued = 0;
    for seed in 0..SEEDS {
        let numbers = run(seed, Source::Segment).await;
        assert_eq!(duplicates(&numbers), 0, "seed {seed}");
        issued += numbers.len();
    }
    assert!(issued > 500 * SEEDS as usize, "only {issued} numbers: the faults leave nothing to check");
}

#[tokio::test(start_paused = true)]
async fn taking_ranges_without_a_check_is_caught() {
    for seed in 0..SEEDS {
        if duplicates(&run(seed, Source::Unchecked).await) > 0 {
            return;
        }
    }
    panic!("no duplicate in {SEEDS} seeds");
}

const SEEDS: u64 = 40;

fn duplicates(numbers: &[u64]) -> usize {
    numbers.len() - numbers.iter().collect::<HashSet<_>>().len()
}

#[derive(Clone, Copy, PartialEq)]
enum Source {
    Segment,
    /// The control: reads the counter and puts it back without a check.
    Unchecked,
}

/// Four processes with lost, late and slow answers, and crashes.
async fn run(seed: u64, source: Source) -> Vec<u64> {
    let model = Model::new();
    let mut tasks = Vec::new();
    for number in 0..4 {
        let model = model.clone();
        tasks.push(start(async move {
            let mut numbers = Vec::new();
            for life in 0..6 {
                let process = Process::start(&model, seed * 1_000 + number * 100 + life);
                live(&process, source, &mut numbers).await;
            }
            numbers
        }));
    }
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.extend(task.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}")));
    }
    numbers
}

/// One life of a process, until it closes or crashes.
async fn live(process: &Process, source: Source, numbers: &mut Vec<u64>) {
    let env = process.env().clone();
    process.faults.lock().latency = Duration::from_millis(1);
    process.faults.lock().fate = Some(random_fates(env.clone()));
    if source == Source::Unchecked {
        for _ in 0..10 {
            numbers.extend(take_unchecked(&process.kv).await.unwrap_or_default());
            env.sleep(env.random_duration(Duration::from_millis(10))).await;
        }
        return;
    }
    let Ok(segment) = Segment::open(&process.kv, options(1 + env.random() % 20)).await else { return };
    for _ in 0..10 + env.random() % 100 {
        if env.random().is_multiple_of(100) {
            return process.crash();
        }
        let count = (env.random() % 5) as usize;
        let limit = env.random_duration(Duration::from_millis(1_000));
        if let Some(Ok(taken)) = env.timeout(limit, segment.next_n(count)).await {
            numbers.extend(taken);
        }
        env.sleep(env.random_duration(Duration::from_millis(10))).await;
    }
    if env.random().is_multiple_of(2) {
        let _ = env.timeout(Duration::from_secs(10), segment.close()).await;
    }
}

async fn take_unchecked(kv: &KvHandle) -> Result<Vec<u64>> {
    let key = Dir::new(&Realm::default(), "id/segment")?.key("unchecked")?;
    let next = kv.get(&key).await?.and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse().ok()).unwrap_or(1);
    kv.put(&key, (next + 10).to_string(), None).await?;
    Ok((next..next + 10).collect())
}

fn random_fates(env: Env) -> FateOf {
    Box::new(move |_| {
        let some_time = env.random_duration(Duration::from_millis(800));
        match env.random() % 20 {
            0 => Fate::AnswerLost,
            1 => Fate::Refused,
            2 => Fate::Late(some_time),
            3 => Fate::Slow(some_time),
            4 => Fate::SlowAnswer(some_time),
            _ => Fate::Arrives,
        }
    })
}
