//! Locks when answers are lost, futures are dropped, leases end, and wake-ups lie.

use std::{sync::Arc, time::Duration};

use coact_blocks::{Session, lock::Mutex};
use coact_core::{ErrorKind, env::PlantedBug};

use crate::{
    lock::barging,
    model::{Fate, FateOf, Model, Request},
    world::{Process, cancel_after, pass, start},
};

fn both_modes(session: &Session) -> [Mutex; 2] {
    [Mutex::new(session, "job").expect("valid"), barging(session, "job")]
}

/// The `n`-th transaction from now meets this fate.
pub(crate) fn nth_txn(mut n: usize, fate: Fate) -> Option<FateOf> {
    Some(Box::new(move |request| {
        if !matches!(request, Request::Txn(_)) {
            return Fate::Arrives;
        }
        let this = n == 0;
        n = n.wrapping_sub(1);
        if this { fate } else { Fate::Arrives }
    }))
}

#[tokio::test(start_paused = true)]
async fn an_acquire_dropped_after_any_number_of_polls_leaves_nothing() {
    for (mode, contended) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut polls = 0;
        let mut finished = false;
        while !finished {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let (session, other) = (process.session().await, process.session().await);
            process.faults.lock().latency = Duration::from_millis(2);
            let holder = if contended { both_modes(&other)[mode].acquire().await.ok() } else { None };
            if let Some(holder) = holder {
                start(async move {
                    pass(0.1).await;
                    holder.release().await.expect("held");
                });
            }
            let guard = cancel_after(polls, both_modes(&session)[mode].acquire()).await;
            finished = guard.is_some();
            drop(guard);
            pass(1.0).await;
            assert_eq!(model.entries("lock/"), [], "mode {mode}, contended {contended}, dropped after {polls} polls");
            polls += 1;
        }
        assert!(polls > if contended { 4 } else { 2 }, "{polls} polls only");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_dropped_after_any_number_of_polls_releases_all_the_same() {
    for polls in 0..4 {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        process.faults.lock().latency = Duration::from_millis(2);
        let guard = Mutex::new(&session, "job").expect("valid").acquire().await.expect("free");
        cancel_after(polls, guard.release()).await;
        pass(0.1).await;
        assert_eq!(model.entries("lock/"), [], "dropped after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_after_the_withdrawal_is_swept_away() {
    for mode in 0..2 {
        for cancel_at in [0.005, 0.5, 1.5] {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let session = process.session().await;
            process.faults.lock().latency = Duration::from_millis(2);
            process.faults.lock().fate = Some(Box::new(|request| match request {
                Request::Txn(txn) if !txn.writes.is_empty() => Fate::Late(Duration::from_secs(1)),
                _ => Fate::Arrives,
            }));
            let limit = Duration::from_secs_f64(cancel_at);
            let mutex = both_modes(&session)[mode].clone();
            let acquired = process.env().timeout(limit, mutex.acquire()).await;
            drop(acquired);
            process.faults.lock().fate = None;
            pass(11.0).await;
            assert_eq!(model.entries("lock/"), [], "mode {mode}, dropped after {limit:?}");
            assert!(session.is_alive());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_changes_nothing_but_the_time_it_takes() {
    for (mode, contended) in [(0, false), (0, true), (1, false), (1, true)] {
        for (lost, fate) in (0..6).flat_map(|n| [(n, Fate::AnswerLost), (n, Fate::Refused)]) {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let (session, other) = (process.session().await, process.session().await);
            if contended {
                let holder = both_modes(&other)[mode].acquire().await.expect("free");
                start(async move {
                    pass(1.0).await;
                    drop(holder);
                });
            }
            process.faults.lock().fate = nth_txn(lost, fate);
            let guard = both_modes(&session)[mode].acquire().await.expect("granted");
            guard.check().await.expect("held");
            guard.release().await.expect("held");
            assert_eq!(model.entries("lock/"), [], "mode {mode}, contended {contended}, transaction {lost}: {fate:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn release_tells_a_lost_answer_from_a_lost_lock() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let mutex = Mutex::new(&session, "job").expect("valid");
    let guard = mutex.acquire().await.expect("free");
    process.faults.lock().fate = nth_txn(0, Fate::AnswerLost);
    guard.release().await.expect("released by the first request");
    let guard = mutex.acquire().await.expect("free");
    model.delete(&model.entries("lock/")[0].key);
    process.faults.lock().fate = nth_txn(0, Fate::Refused);
    assert_eq!(guard.release().await.expect_err("lost before").kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn a_guard_knows_that_it_is_lost_before_anybody_else_is_granted() {
    let model = Model::new();
    let (cut_off, other) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, other_session) = (cut_off.session().await, other.session().await);
    let guard = Mutex::new(&session, "job").expect("valid").acquire().await.expect("free");
    let next = start({
        let mutex = Mutex::new(&other_session, "job").expect("valid");
        async move { mutex.acquire().await.expect("granted") }
    });
    pass(1.0).await;
    cut_off.faults.lock().fate = Some(Box::new(|_| Fate::Lost));
    let why = guard.lost().await;
    assert_eq!(why.kind(), ErrorKind::Fenced);
    assert!(!guard.is_held() && !next.is_finished());
    pass(2.0).await;
    let next = next.await.expect("granted after the lease ended");
    assert!(next.token() > guard.token());
    cut_off.faults.lock().fate = None;
    assert_eq!(guard.release().await.expect_err("lost").kind(), ErrorKind::Fenced);
    next.check().await.expect("the late release did not touch it");
}

#[tokio::test(start_paused = true)]
async fn a_guard_notices_that_another_hand_deleted_its_entry() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let guard = Mutex::new(&session, "job").expect("valid").acquire().await.expect("free");
    let lost = start(guard.lost());
    pass(25.0).await;
    assert!(!lost.is_finished() && guard.is_held());
    model.delete(&model.entries("lock/")[0].key);
    let why = lost.await.expect("resolves");
    assert!(why.to_string().contains("is gone"), "{why}");
    assert!(!guard.is_held() && session.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_session_is_lost_gets_no_lock() {
    let model = Model::new();
    let (cut_off, other) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, other_session) = (cut_off.session().await, other.session().await);
    let holder = Mutex::new(&other_session, "job").expect("valid").acquire().await.expect("free");
    let waiter = start({
        let mutex = Mutex::new(&session, "job").expect("valid");
        async move { mutex.acquire().await.map(drop) }
    });
    pass(1.0).await;
    cut_off.faults.lock().fate = Some(Box::new(|_| Fate::Lost));
    pass(9.5).await;
    drop(holder);
    assert_eq!(waiter.await.expect("ends").expect_err("lost").kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_paused_while_the_grant_was_on_its_way_gets_no_lock() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    process.faults.lock().fate = nth_txn(0, Fate::SlowAnswer(Duration::from_secs(1)));
    let acquire = start({
        let mutex = Mutex::new(&session, "job").expect("valid");
        async move { mutex.acquire().await.map(drop) }
    });
    pass(0.5).await;
    // Nothing runs for 20 s, and then everything is due at once.
    tokio::time::advance(Duration::from_secs(20)).await;
    assert_eq!(acquire.await.expect("ends").expect_err("lost").kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_entry_was_deleted_says_so() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let mutex = Mutex::new(&session, "job").expect("valid");
    let holder = mutex.acquire().await.expect("free");
    let waiter = start({
        let mutex = mutex.clone();
        async move { mutex.acquire().await.map(drop) }
    });
    pass(0.1).await;
    let second = model.entries("lock/").into_iter().max_by_key(|entry| entry.created).expect("waits");
    model.delete(&second.key);
    holder.release().await.expect("held");
    let error = waiter.await.expect("ends").expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(error.to_string().ends_with("is gone: its lease ended or somebody deleted it"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn wake_ups_that_lie_or_never_come_cost_time_only() {
    let model = Model::new();
    let (eager, deaf) = (Process::start(&model, 1), Process::start(&model, 2));
    let wakes = |fate| -> Option<FateOf> {
        Some(Box::new(move |request| if matches!(request, Request::AwaitGone) { fate } else { Fate::Arrives }))
    };
    eager.faults.lock().fate = wakes(Fate::Slow(Duration::from_millis(1)));
    deaf.faults.lock().fate = wakes(Fate::Lost);
    let (eager_session, deaf_session) = (eager.session().await, deaf.session().await);
    let holder = Mutex::new(&eager_session, "job").expect("valid").acquire().await.expect("free");
    let mut waiters = Vec::new();
    for session in [&eager_session, &deaf_session] {
        let mutex = Mutex::new(session, "job").expect("valid");
        waiters.push(start(async move { mutex.acquire().await.expect("granted").release().await.expect("held") }));
    }
    pass(60.0).await;
    let requests = eager.faults.lock().requests;
    assert!(requests < 200, "{requests} requests in a minute of lying wake-ups");
    assert!(eager_session.lock_stats().spurious_wakeups > 10);
    holder.release().await.expect("held");
    for waiter in waiters {
        waiter.await.expect("ends");
    }
    let rereads = deaf_session.lock_stats().rereads;
    assert!((4..=7).contains(&rereads), "{rereads} looks in a minute: once per ttl");
}

/// Two holders at once, seen by counting who is inside.
async fn most_inside_when_a_waiter_dies(planted: &[PlantedBug]) -> usize {
    let model = Model::new();
    let inside = Arc::new(parking_lot::Mutex::new((0_usize, 0_usize)));
    let (alive, doomed) = (Process::start_with(&model, 1, planted), Process::start(&model, 2));
    let (session, doomed_session) = (alive.session().await, doomed.session().await);
    let mut tasks = Vec::new();
    for index in 0..3 {
        let mutex = Mutex::new(if index == 1 { &doomed_session } else { &session }, "job").expect("valid");
        let inside = inside.clone();
        tasks.push(start(async move {
            let guard = mutex.acquire().await.expect("granted");
            {
                let mut inside = inside.lock();
                inside.0 += 1;
                inside.1 = inside.1.max(inside.0);
            }
            pass(60.0).await;
            inside.lock().0 -= 1;
            drop(guard);
        }));
        pass(0.1).await;
    }
    doomed.crash();
    tasks[1].abort();
    for task in tasks {
        let _ = task.await;
    }
    inside.lock().1
}

#[tokio::test(start_paused = true)]
async fn the_planted_bug_that_takes_a_wake_up_for_the_grant_is_caught() {
    assert_eq!(most_inside_when_a_waiter_dies(&[]).await, 1);
    assert_eq!(most_inside_when_a_waiter_dies(&[PlantedBug::SkipReverify]).await, 2);
}

/// Futures of the public API can run on any thread.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: fn(&'static Mutex) -> T) {}
    send(|mutex| mutex.acquire());
    send(|mutex| mutex.acquire_within(Duration::ZERO));
    send(|mutex| mutex.try_acquire());
}
