//! Locks on a store that answers.

use std::{sync::Arc, time::Duration};

use coact_blocks::{
    Session,
    lock::{self, Mode, Mutex, MutexOptions},
};
use coact_core::{
    ErrorKind, Retry,
    contract::kv::{Check, Txn, TxnOutcome, Write},
    name::{Key, Realm},
};

use crate::{
    model::{Model, VOLATILE},
    world::{Process, pass, start},
};

pub(crate) fn barging(session: &Session, name: &str) -> Mutex {
    let options = MutexOptions { mode: Mode::Barging, ..MutexOptions::default() };
    Mutex::with_options(session, name, options).expect("valid")
}

#[tokio::test(start_paused = true)]
async fn a_free_lock_takes_one_round_trip_each_way() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    for mutex in [Mutex::new(&session, "fair").expect("valid"), barging(&session, "barging")] {
        let before = process.faults.lock().requests;
        let guard = mutex.acquire().await.expect("free");
        assert_eq!(process.faults.lock().requests - before, 1);
        guard.check().await.expect("held");
        guard.release().await.expect("held");
        assert_eq!(process.faults.lock().requests - before, 3);
    }
    assert_eq!(model.entries("lock/").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn grants_in_order_with_growing_tokens_and_one_wake_up_a_release() {
    let model = Model::new();
    let mut sessions = Vec::new();
    for seed in 0..5 {
        let process = Process::start(&model, seed);
        process.faults.lock().latency = Duration::from_millis(seed);
        sessions.push(process.session().await);
    }
    let granted = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for index in 0..50 {
        let mutex = Mutex::new(&sessions[index % 5], "job").expect("valid");
        let granted = granted.clone();
        waiters.push(start(async move {
            let guard = mutex.acquire().await.expect("granted");
            granted.lock().push((index, guard.token()));
            pass(0.02).await;
            if index % 2 == 0 { guard.release().await.expect("held") } else { drop(guard) }
        }));
        pass(0.005).await; // So that the order of arrival is known.
    }
    for waiter in waiters {
        waiter.await.expect("ends");
    }
    let granted = granted.lock();
    assert!(granted.iter().map(|(index, _)| *index).eq(0..50), "{granted:?}");
    assert!(granted.is_sorted_by(|earlier, later| earlier.1 < later.1), "{granted:?}");
    let stats: Vec<_> = sessions.iter().map(Session::lock_stats).collect();
    let total = |count: fn(&lock::Stats) -> u64| stats.iter().map(count).sum::<u64>();
    assert_eq!(total(|stats| stats.acquisitions), 50);
    assert_eq!(total(|stats| stats.waits), 49);
    assert_eq!(total(|stats| stats.wakeups), 49, "one for each release that somebody waited for");
    assert_eq!(total(|stats| stats.spurious_wakeups + stats.rereads), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_waiter_is_skipped_and_the_holder_keeps_the_lock() {
    let model = Model::new();
    let (alive, doomed) = (Process::start(&model, 1), Process::start(&model, 2));
    let session = alive.session().await;
    let doomed_session = doomed.session().await;
    let mutex = Mutex::new(&session, "job").expect("valid");
    let first = mutex.acquire().await.expect("free");
    let waiting = start({
        let mutex = Mutex::new(&doomed_session, "job").expect("valid");
        async move { mutex.acquire().await.map(drop) }
    });
    pass(0.1).await;
    let last = start({
        let mutex = mutex.clone();
        async move { mutex.acquire().await.expect("granted") }
    });
    pass(0.1).await;
    doomed.crash();
    waiting.abort();
    pass(30.0).await;
    assert!(first.is_held() && !last.is_finished(), "the waiter's death is no release");
    assert_eq!(model.entries("lock/job").len(), 2);
    let token = first.token();
    first.release().await.expect("held");
    let last = last.await.expect("ends");
    assert!(last.token() > token);
    let stats = session.lock_stats();
    assert_eq!((stats.wakeups, stats.spurious_wakeups), (2, 0), "the death of the waiter, and the release");
}

#[tokio::test(start_paused = true)]
async fn who_was_behind_a_dead_waiter_waits_for_the_one_before_it() {
    let model = Model::new();
    let (alive, doomed) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, doomed_session) = (alive.session().await, doomed.session().await);
    let holder = Mutex::new(&session, "job").expect("valid").acquire().await.expect("free");
    let mut waiting = Vec::new();
    for index in 0..300 {
        let mutex = Mutex::new(if index == 298 { &doomed_session } else { &session }, "job").expect("valid");
        waiting.push(start(async move { mutex.acquire().await.map(|guard| guard.token()) }));
        pass(0.001).await;
    }
    model.end_lease(doomed_session.lease());
    pass(0.1).await;
    assert_eq!(session.lock_stats().wakeups, 1, "the one behind the dead waiter");
    holder.release().await.expect("held");
    pass(1.0).await;
    let stats = session.lock_stats();
    assert_eq!((stats.wakeups, stats.spurious_wakeups, stats.acquisitions), (300, 0, 300), "one for each release");
}

#[tokio::test(start_paused = true)]
async fn barging_excludes_too_and_tokens_grow() {
    let model = Model::new();
    let inside = Arc::new(parking_lot::Mutex::new((0, Vec::new())));
    let mut tasks = Vec::new();
    for seed in 0..8 {
        let process = Process::start(&model, seed);
        let session = process.session().await;
        let (mutex, inside) = (barging(&session, "job"), inside.clone());
        tasks.push(start(async move {
            for _ in 0..20 {
                let guard = mutex.acquire().await.expect("granted");
                {
                    let mut inside = inside.lock();
                    inside.0 += 1;
                    assert_eq!(inside.0, 1);
                    inside.1.push(guard.token());
                }
                pass(0.01).await;
                inside.lock().0 -= 1;
                guard.release().await.expect("held");
            }
        }));
    }
    for task in tasks {
        task.await.expect("ends");
    }
    assert_eq!(inside.lock().1.len(), 160);
    assert!(inside.lock().1.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn the_two_modes_refuse_each_other() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (ann, bob) = (process.named("ann").await, process.named("bob").await);
    let fair = Mutex::new(&ann, "job").expect("valid");
    let barging = barging(&bob, "job");

    let held = fair.acquire().await.expect("free");
    let error = barging.acquire().await.expect_err("fair holder");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        error.to_string(),
        "lock job is used in fair mode by ann, and here in barging mode: everybody must choose the same"
    );
    assert!(barging.try_acquire().await.is_err());
    assert_eq!(model.entries("lock/job").len(), 1, "the barging one withdrew");
    held.check().await.expect("still held");
    held.release().await.expect("held");

    let held = barging.acquire().await.expect("free");
    let error = fair.acquire().await.expect_err("barging holder");
    assert_eq!(
        error.to_string(),
        "lock job is used in barging mode by bob, and here in fair mode: everybody must choose the same"
    );
    assert!(fair.try_acquire().await.is_err());
    held.release().await.expect("held");
    fair.try_acquire().await.expect("answers").expect("free").release().await.expect("held");
}

/// However the requests of one fair and one barging user interleave, exactly one of them has the lock.
#[tokio::test(start_paused = true)]
async fn fair_and_barging_never_hold_one_name_together() {
    for (fair_delay, barging_delay) in (0..40).flat_map(|a| (0..40).map(move |b| (a, b))).step_by(7) {
        let model = Model::new();
        let (fair, barger) = (Process::start(&model, 1), Process::start(&model, 2));
        let (fair_session, barging_session) = (fair.session().await, barger.session().await);
        fair.faults.lock().latency = Duration::from_millis(3);
        barger.faults.lock().latency = Duration::from_millis(7);
        let fair_mutex = Mutex::new(&fair_session, "job").expect("valid");
        let barging_mutex = barging(&barging_session, "job");
        let run = |mutex: Mutex, delay: u64| async move {
            pass(delay as f64 / 1_000.0).await;
            let guard = mutex.acquire().await.ok()?;
            pass(0.02).await;
            Some(guard)
        };
        let (one, other) = tokio::join!(run(fair_mutex, fair_delay), run(barging_mutex, barging_delay));
        let held = [one, other].into_iter().flatten().count();
        assert_eq!(held, 1, "at {fair_delay} ms and {barging_delay} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn says_who_holds_what_was_not_granted_in_time_and_withdraws() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.named("ann").await;
    let mutex = Mutex::new(&session, "job").expect("valid");
    let guard = mutex.acquire().await.expect("free");
    let error = mutex.acquire_within(Duration::from_secs(2)).await.expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(matches!(error.retry(), Retry::After(_)));
    assert_eq!(error.to_string(), format!("lock job is held by ann (token {}) (waited: 2s)", guard.token()));
    pass(0.1).await;
    assert_eq!(model.entries("lock/job").len(), 1);
    drop(guard);
    drop(mutex.acquire_within(Duration::from_secs(2)).await.expect("free soon"));
}

#[tokio::test(start_paused = true)]
async fn trying_for_a_lock_that_is_taken_writes_nothing() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    for mutex in [Mutex::new(&session, "fair").expect("valid"), barging(&session, "barging")] {
        let guard = mutex.try_acquire().await.expect("answers").expect("free");
        let next = process.kv.put(&key("config/x"), "1", None).await.expect("put").0;
        for _ in 0..10 {
            assert!(mutex.try_acquire().await.expect("answers").is_none());
        }
        assert_eq!(process.kv.put(&key("config/x"), "2", None).await.expect("put").0, next + 1);
        guard.release().await.expect("held");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guarded_transaction_works_only_while_the_lock_is_held() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let guard = Mutex::new(&session, "job").expect("valid").acquire().await.expect("free");
    let write = |value: &'static str| Txn {
        checks: vec![Check::Absent(key("config/gone"))],
        writes: vec![Write::Put { key: key("config/x"), value: value.into(), lease: None }],
        ..Txn::default()
    };
    assert!(matches!(guard.txn(write("1")).await, Ok(TxnOutcome::Committed { .. })));
    process.kv.put(&key("config/gone"), "", None).await.expect("put");
    let refused = guard.txn(write("2")).await.expect("answers");
    assert!(matches!(refused, TxnOutcome::Refused { check: 0, found: Some(_) }), "the caller's check: {refused:?}");
    process.kv.delete(&key("config/gone")).await.expect("delete");
    model.delete(&model.entries("lock/job")[0].key);
    let error = guard.txn(write("3")).await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(error.to_string(), format!("lock job is no longer held with token {}", guard.token()));
    assert_eq!(model.entries("config/x")[0].value, "1");
    assert!(!guard.is_held());
    assert_eq!(guard.check().await.expect_err("lost").kind(), ErrorKind::Fenced);
    assert_eq!(guard.release().await.expect_err("lost").kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn lists_holders_and_waiters_in_order() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (ann, bob) = (process.named("ann").await, process.named("bob").await);
    let realm = Realm::default();
    assert_eq!(lock::list(&process.kv, &realm, "", 10).await.expect("answers"), []);
    let held = Mutex::new(&ann, "deploy/eu").expect("valid").acquire().await.expect("free");
    let other = barging(&bob, "lock/odd").acquire().await.expect("free");
    let waiting = start({
        let mutex = Mutex::new(&bob, "deploy/eu").expect("valid");
        async move { mutex.acquire().await.map(drop) }
    });
    pass(0.1).await;
    let locks = lock::list(&process.kv, &realm, "", 10).await.expect("answers");
    assert_eq!(locks.iter().map(|lock| lock.name.as_str()).collect::<Vec<_>>(), ["deploy/eu", "lock/odd"]);
    let deploy = &locks[0];
    assert_eq!((deploy.mode, locks[1].mode), (Mode::Fair, Mode::Barging));
    let holder = deploy.holder.as_ref().expect("held");
    assert_eq!((holder.label.as_str(), holder.token), ("ann", held.token()));
    assert_eq!(deploy.waiters.iter().map(|waiter| waiter.label.as_str()).collect::<Vec<_>>(), ["bob"]);
    assert!(holder.lease_left_ms.is_some_and(|left| (1..=10_000).contains(&left)), "{holder:?}");
    assert_eq!(lock::list(&process.kv, &realm, "deploy", 10).await.expect("answers").len(), 1);
    assert_eq!(lock::list(&process.kv, &realm, "", 1).await.expect("answers").len(), 1);
    drop((held, other));
    waiting.await.expect("ends").expect("granted");
}

#[tokio::test(start_paused = true)]
async fn refuses_a_store_that_forgets() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    process.faults.lock().guarantees = Some(&VOLATILE);
    let session = process.session().await;
    let error = Mutex::new(&session, "job").expect_err("weak");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("lock needs writes synced to disk"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn names_the_rule_that_a_bad_name_breaks() {
    let model = Model::new();
    let session = Process::start(&model, 1).session().await;
    let error = Mutex::new(&session, "").expect_err("empty");
    assert_eq!(error.to_string(), "the lock has no name: use 1 to 123 bytes, for example deploy/eu");
    assert!(Mutex::new(&session, "a//b").expect_err("empty segment").to_string().contains("empty segment"));
}

pub(crate) fn key(text: &str) -> Key {
    Key::parse(&Realm::default(), text).expect("valid")
}
