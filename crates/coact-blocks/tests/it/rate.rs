//! Rate limits: no window has more permits than agreed, whatever the clocks, the answers and the processes do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use coact_blocks::{
    Session,
    lock::{Barrier, Latch, RateLimiter, RateOptions},
};
use coact_core::{
    ErrorKind,
    contract::kv::{Check, KvHandle, Txn, TxnOutcome, Write},
};
use parking_lot::Mutex;

use crate::{
    latch::random_fates,
    lock::key,
    model::{Fate, Model, VOLATILE},
    world::{Process, cancel_after, pass, start},
};

const PER: Duration = Duration::from_secs(5);

const fn options(permits: u64, chunk: u64) -> RateOptions {
    RateOptions { permits, per: PER, chunk }
}

async fn limiter(session: &Session, options: RateOptions) -> RateLimiter {
    RateLimiter::open(session, "api", options).await.expect("opens")
}

/// When permits were given out, and how many.
type Log = Arc<Mutex<Vec<(Instant, u64)>>>;

/// The most permits in any window of this length: windows that begin with a permit are enough.
fn most_in_a_window(log: &Log, per: Duration) -> u64 {
    let mut given = log.lock().clone();
    given.sort_unstable();
    let in_window = |from: Instant| {
        let window = given.iter().filter(move |(at, _)| *at >= from && *at < from + per);
        window.map(|(_, permits)| permits).sum()
    };
    given.iter().map(|(from, _)| in_window(*from)).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn the_checker_sees_a_window_that_has_too_many() {
    let process = Process::start(&Model::new(), 1);
    let start = process.env().now();
    let log = |seconds: &[u64]| -> Log {
        Arc::new(Mutex::new(seconds.iter().map(|at| (start + Duration::from_secs(*at), 1)).collect()))
    };
    assert_eq!(most_in_a_window(&log(&[0, 1, 2, 5, 6, 7]), PER), 3);
    assert_eq!(most_in_a_window(&log(&[0, 3, 4, 6, 7]), PER), 4, "two fixed windows would not show it");
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_given_at_once_and_comes_back_after_the_window() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let limiter = limiter(&session, options(6, 2)).await;
    let begun = process.env().now();
    for _ in 0..6 {
        assert!(limiter.try_acquire(1).await.expect("answers"));
    }
    assert!(!limiter.try_acquire(1).await.expect("answers"));
    assert_eq!(process.env().now(), begun, "without waiting");
    limiter.acquire(2).await.expect("comes back");
    let waited = process.env().now() - begun;
    assert!(waited >= PER && waited < PER + PER / 5, "after {waited:?}");
}

#[tokio::test(start_paused = true)]
async fn permits_that_are_not_used_in_time_are_dropped() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let limiter = limiter(&session, options(4, 4)).await;
    assert!(limiter.try_acquire(1).await.expect("answers"));
    pass(0.4).await;
    assert!(limiter.try_acquire(1).await.expect("a tenth of the window has not passed"));
    pass(0.1).await;
    assert!(!limiter.try_acquire(1).await.expect("the other two are too old"));
}

#[tokio::test(start_paused = true)]
async fn processes_get_chunks_in_turn_and_one_of_them_waits_at_the_store() {
    let model = Model::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut processes = Vec::new();
    for seed in 0..4 {
        let process = Process::start(&model, seed);
        let session = process.session_with(Duration::from_secs(60)).await;
        processes.push((seed, limiter(&session, options(1, 1)).await, process));
    }
    let mut tasks = Vec::new();
    for (seed, limiter, process) in processes {
        let order = order.clone();
        tasks.push(start(async move {
            for _ in 0..3 {
                limiter.acquire(1).await.expect("in turn");
                order.lock().push(seed);
            }
            process.faults.lock().requests
        }));
    }
    for task in tasks {
        let requests = task.await.expect("ends");
        assert!(requests < 60, "{requests} requests for three permits");
    }
    assert_eq!(*order.lock(), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_dropped_after_any_number_of_polls_takes_no_permit_and_no_turn() {
    for polls in 0..25 {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let limiter = limiter(&session, options(2, 1)).await;
        process.faults.lock().latency = Duration::from_millis(2);
        let got = cancel_after(polls, limiter.acquire(1)).await.is_some();
        pass(0.05).await;
        let left = 2 - u64::from(got);
        for turn in 0..left {
            let begun = process.env().now();
            limiter.acquire(1).await.expect("one is left");
            assert!(process.env().now() - begun < PER / 10, "dropped after {polls} polls, permit {turn}");
        }
        pass(0.05).await;
        assert_eq!(model.entries("lock/"), [], "dropped after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn refuses_other_options_and_what_cannot_be() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let limiter = limiter(&session, options(10, 5)).await;
    let message = async |options| RateLimiter::open(&session, "api", options).await.expect_err("refused").to_string();
    assert_eq!(
        message(options(10, 2)).await,
        "rate limit api is 10 permits per 5s in chunks of 5, not 10 permits per 5s in chunks of 2: everybody must choose \
         the same"
    );
    let short = RateOptions { per: Duration::from_millis(999), ..options(1, 1) };
    assert!(message(short).await.starts_with("a rate per 999ms is not allowed: use 1s to 78545."));
    assert!(message(options(10, 3)).await.ends_with("use a multiple of the chunk"));
    assert!(message(options(0, 0)).await.ends_with("use a multiple of the chunk"));
    assert!(message(options(5_000, 1)).await.ends_with("use chunks of 5 or more"));
    let error = limiter.acquire(6).await.expect_err("more than a chunk");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    limiter.acquire(5).await.expect("half");
    limiter.acquire(5).await.expect("the other half");
    let error = limiter.acquire_within(1, Duration::from_secs(1)).await.expect_err("none left");
    assert_eq!(error.to_string(), "rate limit api has no permit left (waited: 1s)");
    process.faults.lock().guarantees = Some(&VOLATILE);
    assert!(message(options(10, 5)).await.starts_with("lock needs writes synced to disk"));
}

#[tokio::test(start_paused = true)]
async fn no_window_has_more_than_agreed_whatever_happens() {
    let mut given = 0;
    for seed in 0..20 {
        let log = run(seed, Kind::Limiter).await;
        let most = most_in_a_window(&log, PER);
        assert!(most <= 12, "seed {seed}: {most} permits in a window");
        given += log.lock().iter().map(|(_, permits)| permits).sum::<u64>();
    }
    assert!(given > 20 * 50, "only {given} permits: the faults leave nothing to check");
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_out_for_the_window_only_is_caught() {
    for seed in 0..20 {
        if most_in_a_window(&run(seed, Kind::ShortLease).await, PER) > 12 {
            return;
        }
    }
    panic!("not caught in 20 seeds");
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Limiter,
    /// The control: the lease lives as long as the window, and permits are given out until it ends.
    ShortLease,
}

/// Four processes for a minute, with lost, late and slow answers, steps of the wall clock, dropped calls and crashes.
async fn run(seed: u64, kind: Kind) -> Log {
    let model = Model::new();
    let log = Log::default();
    let tasks: Vec<_> = (0..4)
        .map(|number| {
            let (model, log) = (model.clone(), log.clone());
            start(async move {
                for life in 0..3 {
                    let process = Process::start(&model, seed * 1_000 + number * 100 + life);
                    match kind {
                        Kind::Limiter => live(&process, &log).await,
                        Kind::ShortLease => live_on_short_leases(&process.kv, &log).await,
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    log
}

async fn live(process: &Process, log: &Log) {
    let env = process.env().clone();
    let session = process.session().await;
    process.faults.lock().latency = Duration::from_millis(1);
    process.faults.lock().fate = Some(random_fates(env.clone()));
    let Ok(limiter) = RateLimiter::open(&session, "api", options(12, 3)).await else { return };
    let end = env.now() + Duration::from_secs(20);
    while env.now() < end {
        match env.random() % 200 {
            0 => return process.crash(),
            1 => process.step_wall(env.random() as i64 % 100_000),
            _ => {}
        }
        let permits = 1 + env.random() % 3;
        let limit = env.random_duration(Duration::from_secs(3));
        if let Some(Ok(())) = env.timeout(limit, limiter.acquire(permits)).await {
            log.lock().push((env.now(), permits));
        }
        env.sleep(env.random_duration(Duration::from_millis(300))).await;
    }
}

async fn live_on_short_leases(kv: &KvHandle, log: &Log) {
    let env = kv.env().clone();
    for turn in 0..20_u64 {
        let slot = key(&format!("rate-chunk/mutant/{}", turn % 4));
        let sent = env.now();
        let lease = kv.lease_grant(PER).await.expect("answers");
        let put = Write::Put { key: slot.clone(), value: Default::default(), lease: Some(lease.id) };
        let txn = Txn { checks: vec![Check::Absent(slot.clone())], reads: Vec::new(), writes: vec![put] };
        if let TxnOutcome::Committed { .. } = kv.txn(slot.realm(), txn).await.expect("answers") {
            for _ in 0..3 {
                env.sleep(env.random_duration(PER / 4)).await;
                assert!(env.now() < sent + PER, "while the lease lives");
                log.lock().push((env.now(), 1));
            }
        }
        env.sleep(env.random_duration(Duration::from_millis(500))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_answer_is_asked_again() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let limiter = limiter(&session, options(2, 2)).await;
    for fate in [Fate::AnswerLost, Fate::Refused] {
        let mut turn = 0;
        process.faults.lock().fate = Some(Box::new(move |_| {
            turn += 1;
            if turn % 2 == 1 { fate } else { Fate::Arrives }
        }));
        limiter.acquire(2).await.expect("given");
    }
}

/// Futures of the public API can run on any thread.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: fn(&'static (RateLimiter, Barrier, Latch)) -> T) {}
    send(|(limiter, _, _)| limiter.acquire(1));
    send(|(limiter, _, _)| limiter.try_acquire(1));
    send(|(_, barrier, _)| barrier.wait());
    send(|(_, _, latch)| latch.wait());
    send(|(_, _, latch)| latch.count_down());
    send(|(_, _, latch)| latch.reset());
}
