//! The session: trusts its lease less long than the store keeps it, and leaves nothing behind.

use std::{sync::Arc, time::Duration};

use coact_blocks::{Session, lock::Mutex};
use coact_core::{ErrorKind, contract::kv::Lease};
use tokio::sync::Notify;

use crate::{
    model::{Fate, FateOf, Model, Request},
    world::{Process, pass, start},
};

fn renewals(fate: Fate) -> Option<FateOf> {
    Some(Box::new(move |request| if matches!(request, Request::Renew) { fate } else { Fate::Arrives }))
}

#[tokio::test(start_paused = true)]
async fn lives_as_long_as_it_renews_with_one_heartbeat_a_third_of_its_ttl() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let before = process.faults.lock().requests;
    pass(1_000.0).await;
    assert!(session.is_alive() && model.has_lease(session.lease()));
    let beats = process.faults.lock().requests - before;
    assert!((250..=375).contains(&beats), "{beats} heartbeats in 1,000 s");
}

#[tokio::test(start_paused = true)]
async fn knows_that_it_is_lost_before_the_store_does() {
    for fate in [Fate::Lost, Fate::Refused, Fate::Slow(Duration::from_secs(60))] {
        let model = Model::new();
        let process = Process::start(&model, 2);
        let session = process.session().await;
        let early = [start(session.lost()), start(session.lost())];
        pass(5.0).await;
        process.faults.lock().fate = renewals(fate);
        let why = session.lost().await;
        assert_eq!(why.kind(), ErrorKind::Fenced);
        assert!(why.to_string().contains("its lease could not be renewed in time"), "{why}");
        assert!(!session.is_alive());
        assert!(model.has_lease(session.lease()), "the store still keeps the lease");
        process.faults.lock().fate = None;
        pass(120.0).await;
        assert!(!session.is_alive(), "lost for good");
        for waiter in early {
            assert_eq!(waiter.await.expect("resolves").kind(), ErrorKind::Fenced);
        }
        session.lost().await;
    }
}

/// The process is paused over the deadline, with a renewal on its way that the store accepted in time.
#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_does_not_bring_it_back() {
    let mut met = 0;
    for seed in 0..30 {
        let model = Model::new();
        let process = Process::start(&model, seed);
        let session = process.session_with(Duration::from_secs(3)).await;
        let (env, deadline) = (process.env().clone(), session.deadline());
        let sent = Arc::new(Notify::new());
        process.faults.lock().fate = Some(Box::new({
            let sent = sent.clone();
            move |request| {
                let left = deadline.saturating_duration_since(env.now());
                match request {
                    Request::Renew if left < Duration::from_millis(300) => {
                        sent.notify_one();
                        Fate::SlowAnswer(Duration::from_millis(1))
                    }
                    Request::Renew => Fate::Refused,
                    _ => Fate::Arrives,
                }
            }
        }));
        if process.env().timeout(Duration::from_secs(5), sent.notified()).await.is_some() {
            met += 1;
            tokio::time::advance(Duration::from_secs(1)).await;
            session.lost().await;
            assert!(!session.is_alive());
        }
    }
    assert!(met > 0, "no renewal was sent shortly before the deadline");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_when_the_renewal_was_sent() {
    let model = Model::new();
    let process = Process::start(&model, 4);
    let session = process.session().await;
    process.faults.lock().fate = renewals(Fate::SlowAnswer(Duration::from_secs(1)));
    for _ in 0..100 {
        pass(0.25).await;
        let left = session.deadline().saturating_duration_since(process.env().now());
        let at_store = process.kv.lease_left(session.lease()).await.expect("answers").expect("alive");
        assert!(left < at_store, "{left:?} here, {at_store:?} at the store");
    }
}

#[tokio::test(start_paused = true)]
async fn survives_a_store_that_is_away_for_half_its_ttl() {
    let model = Model::new();
    let process = Process::start(&model, 5);
    let session = process.session().await;
    for _ in 0..10 {
        process.faults.lock().fate = renewals(Fate::Refused);
        pass(5.0).await;
        process.faults.lock().fate = None;
        pass(5.0).await;
        assert!(session.is_alive());
    }
}

#[tokio::test(start_paused = true)]
async fn is_lost_at_once_when_the_store_says_so() {
    let model = Model::new();
    let process = Process::start(&model, 6);
    let session = process.session().await;
    model.end_lease(session.lease());
    let why = session.lost().await;
    assert!(why.to_string().contains("the store no longer keeps its lease"), "{why}");
    let mutex = Mutex::new(&session, "job").expect("valid");
    assert_eq!(mutex.acquire().await.expect_err("lost").kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn closing_leaves_nothing_and_ends_the_heartbeat_also_one_on_its_way() {
    let model = Model::new();
    let process = Process::start(&model, 7);
    let session = process.session().await;
    let guard = Mutex::new(&session, "job").expect("valid").acquire().await.expect("free");
    let sent = Arc::new(Notify::new());
    process.faults.lock().fate = Some(Box::new({
        let sent = sent.clone();
        move |request| {
            if !matches!(request, Request::Renew) {
                return Fate::Arrives;
            }
            sent.notify_one();
            Fate::Slow(Duration::from_millis(500))
        }
    }));
    sent.notified().await;
    session.close().await.expect("closes");
    assert_eq!((model.entries("").len(), model.lease_count()), (0, 0));
    assert!(!session.is_alive() && !guard.is_held());
    assert_eq!(session.lost().await.kind(), ErrorKind::Closed);
    let requests = process.faults.lock().requests;
    pass(100.0).await;
    assert_eq!(process.faults.lock().requests, requests, "no more heartbeats");
    assert_eq!(model.lease_count(), 0);
    session.close().await.expect("closed already");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_closes_in_the_background() {
    let model = Model::new();
    let process = Process::start(&model, 8);
    let session = process.session().await;
    let guard = Mutex::new(&session, "job").expect("valid").acquire().await.expect("free");
    drop(session);
    pass(30.0).await;
    assert!(guard.is_held(), "a guard keeps its session open");
    guard.release().await.expect("held");
    pass(0.1).await;
    assert_eq!((model.entries("").len(), model.lease_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn close_reports_a_store_that_does_not_answer() {
    let model = Model::new();
    let process = Process::start(&model, 9);
    let session = process.session().await;
    process.faults.lock().fate = Some(Box::new(|_| Fate::Refused));
    let error = session.close().await.expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    pass(10.0).await;
    assert_eq!(model.lease_count(), 0, "the lease ended by itself");
}

/// A session that another process keeps alive.
async fn join(process: &Process, lease: &Session) -> coact_core::Result<Session> {
    Session::join(&process.kv, Lease { id: lease.lease(), ttl: lease.ttl() }, "guest").await
}

#[tokio::test(start_paused = true)]
async fn a_joined_session_lives_as_long_as_its_owner_renews() {
    let model = Model::new();
    let (owner, guest) = (Process::start(&model, 21), Process::start(&model, 22));
    let session = owner.session().await;
    let joined = join(&guest, &session).await.expect("it lives");
    pass(300.0).await;
    assert!(joined.is_alive(), "the owner renews");
    let guard = Mutex::new(&joined, "deploy").expect("valid").acquire().await.expect("free");
    owner.crash();
    let why = joined.lost().await;
    assert_eq!(why.kind(), ErrorKind::Fenced, "{why}");
    assert!(!guard.is_held() && !joined.is_alive());
    let late = join(&guest, &session).await.expect_err("the lease has ended");
    assert_eq!(late.kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn a_joined_session_leaves_the_lease_and_finishes_what_was_dropped() {
    let model = Model::new();
    let (owner, guest) = (Process::start(&model, 23), Process::start(&model, 24));
    let session = owner.session().await;
    let joined = join(&guest, &session).await.expect("it lives");
    let mutex = Mutex::new(&joined, "deploy").expect("valid");
    let guard = mutex.acquire().await.expect("free");
    guest.faults.lock().latency = Duration::from_millis(100);
    // The guard goes first, its release is still to be sent when the last handle goes.
    drop((guard, mutex, joined));
    pass(60.0).await;
    assert!(model.entries("lock/deploy").is_empty(), "released, though its session had been dropped");
    assert!(model.has_lease(session.lease()) && session.is_alive(), "the lease is its owner's");
}
