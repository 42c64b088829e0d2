//! Latches: every arrival counts once, and an open latch is open for all.

use std::time::Duration;

use coact_blocks::{Session, lock::Latch};
use coact_core::{ErrorKind, env::Env};

use crate::{
    lock::key,
    model::{Fate, FateOf, Model, Request, VOLATILE},
    world::{Process, cancel_after, pass, start},
};

async fn latch(session: &Session, count: u64) -> Latch {
    Latch::open(session, "go", count).await.expect("opens")
}

fn waiting(latch: &Latch) -> tokio::task::JoinHandle<()> {
    let latch = latch.clone();
    start(async move { latch.wait().await.expect("opens") })
}

#[tokio::test(start_paused = true)]
async fn opens_with_the_last_arrival_and_stays_open() {
    let model = Model::new();
    let (one, two) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, other) = (one.session().await, two.session().await);
    let (a, b) = (latch(&session, 3).await, latch(&other, 3).await);
    let waiters = [waiting(&a), waiting(&b)];
    pass(0.1).await;
    let before = two.faults.lock().requests;
    for left in [2, 1] {
        a.count_down().await.expect("counts");
        assert_eq!(a.remaining().await.expect("answers"), left);
    }
    pass(1.0).await;
    assert_eq!(two.faults.lock().requests, before, "an arrival wakes nobody");
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    b.count_down().await.expect("counts");
    for waiter in waiters {
        waiter.await.expect("ends");
    }
    for _ in 0..3 {
        a.count_down().await.expect("no effect");
    }
    session.close().await.expect("closes");
    let late = latch(&Process::start(&model, 3).session().await, 3).await;
    late.wait().await.expect("open");
    assert_eq!(late.remaining().await.expect("answers"), 0);
    assert_eq!(model.entries("latch-arrival/").len(), 3, "arrivals at an open latch leave nothing");
}

#[tokio::test(start_paused = true)]
async fn a_reset_closes_it_and_releases_who_had_seen_it_open() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let latch = latch(&session, 20).await;
    for generation in 0..3 {
        let slow = Process::start(&model, 10 + generation);
        let slow_session = slow.session().await;
        let slow_waiter = waiting(&super::latch::latch(&slow_session, 20).await);
        pass(0.1).await;
        // It hears of the opening only after the reset.
        slow.faults.lock().latency = Duration::from_secs(1);
        for _ in 0..20 {
            latch.count_down().await.expect("counts");
        }
        latch.reset().await.expect("resets");
        slow_waiter.await.expect("it was open");
        assert_eq!(latch.remaining().await.expect("answers"), 20);
        assert_eq!(model.entries("latch-arrival/"), [], "the reset leaves nothing");
    }
    latch.count_down().await.expect("counts");
    let waiter = waiting(&latch);
    pass(0.1).await;
    latch.reset().await.expect("resets");
    assert_eq!(latch.remaining().await.expect("answers"), 20);
    pass(30.0).await;
    assert!(!waiter.is_finished());
    for _ in 0..20 {
        latch.count_down().await.expect("counts");
    }
    waiter.await.expect("the new count was reached");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_count_twice() {
    for fate in [Fate::AnswerLost, Fate::Refused, Fate::Late(Duration::from_millis(100))] {
        for nth in 0..4 {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let session = process.session().await;
            let latch = latch(&session, 3).await;
            let mut turn = 0;
            process.faults.lock().fate = Some(Box::new(move |request| {
                turn += usize::from(matches!(request, Request::Txn(_)));
                if turn == nth + 1 { fate } else { Fate::Arrives }
            }));
            latch.count_down().await.expect("counts");
            pass(1.0).await;
            assert_eq!(latch.remaining().await.expect("answers"), 2, "{fate:?} of transaction {nth}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_arrival_that_died_before_it_opened_is_helped() {
    let mut helped = 0;
    for polls in 0..12 {
        let model = Model::new();
        let (process, other) = (Process::start(&model, 1), Process::start(&model, 2));
        let (session, other_session) = (process.session().await, other.session().await);
        process.faults.lock().latency = Duration::from_millis(2);
        let waiter = waiting(&latch(&other_session, 1).await);
        pass(0.1).await;
        let counted = cancel_after(polls, latch(&session, 1).await.count_down()).await.is_some();
        process.crash();
        pass(0.1).await;
        let arrived = !model.entries("latch-arrival/").is_empty();
        if !waiter.is_finished() && arrived && !counted {
            helped += 1;
            pass(15.0).await;
        }
        assert_eq!(waiter.is_finished(), arrived, "the last arrival died after {polls} polls");
    }
    assert!(helped > 0, "no death between count and opening: nothing was checked");
}

#[tokio::test(start_paused = true)]
async fn refuses_another_count_weak_stores_and_lost_sessions() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let latch = latch(&session, 3).await;
    let message = async |name: &str, count| Latch::open(&session, name, count).await.expect_err("refused").to_string();
    assert_eq!(message("go", 4).await, "latch go counts 3, not 4: everybody must choose the same");
    assert_eq!(message("go", 0).await, "a latch cannot count 0: use 1 to 100000");
    assert!(message("a//b", 1).await.contains("empty segment"));
    let error = latch.wait_within(Duration::from_secs(1)).await.expect_err("closed");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Conflict, "latch go is still closed (waited: 1s)")
    );
    process.kv.put(&key("latch/go/state"), "rubbish", None).await.expect("put");
    assert_eq!(latch.wait().await.expect_err("corrupt").kind(), ErrorKind::Corrupt);
    process.faults.lock().guarantees = Some(&VOLATILE);
    assert!(message("go", 3).await.starts_with("lock needs writes synced to disk"));
    session.close().await.expect("closes");
    assert_eq!(latch.count_down().await.expect_err("closed").kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn counts_exactly_whatever_is_lost() {
    for seed in 0..30 {
        let model = Model::new();
        let mut tasks = Vec::new();
        for number in 0..4 {
            let process = Process::start(&model, seed * 10 + number);
            let session = process.session().await;
            let latch = latch(&session, 20).await;
            process.faults.lock().latency = Duration::from_millis(1);
            process.faults.lock().fate = Some(random_fates(process.env().clone()));
            tasks.push((
                waiting(&latch),
                start(async move {
                    for turn in 0..5 {
                        if number == 3 && turn == 4 {
                            // The last one of all keeps the others waiting.
                            pass(60.0).await;
                            assert_eq!(latch.remaining().await.expect("answers"), 1, "seed {seed}");
                        }
                        latch.count_down().await.expect("counts");
                    }
                }),
            ));
        }
        pass(50.0).await;
        assert!(tasks.iter().all(|(waiter, _)| !waiter.is_finished()), "seed {seed} opened early");
        for (waiter, counter) in tasks {
            counter.await.expect("counts");
            waiter.await.expect("opens");
        }
    }
}

pub(crate) fn random_fates(env: Env) -> FateOf {
    Box::new(move |request| {
        let some_time = env.random_duration(Duration::from_millis(800));
        match (env.random() % 20, request) {
            (_, Request::Renew) => Fate::Arrives,
            (0, _) => Fate::AnswerLost,
            (1, _) => Fate::Refused,
            (2, _) => Fate::Late(some_time),
            (3, _) => Fate::Slow(some_time),
            (4, _) => Fate::SlowAnswer(some_time),
            _ => Fate::Arrives,
        }
    })
}
