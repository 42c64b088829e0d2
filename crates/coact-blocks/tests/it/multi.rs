//! Several locks at once.

use std::time::Duration;

use coact_blocks::{
    Session,
    lock::{Mutex, acquire_all, acquire_all_within},
};
use coact_core::ErrorKind;

use crate::{
    model::Model,
    world::{Process, cancel_after, pass, start},
};

fn mutexes(session: &Session, names: &[&str]) -> Vec<Mutex> {
    names.iter().map(|name| Mutex::new(session, name).expect("valid")).collect()
}

#[tokio::test(start_paused = true)]
async fn callers_that_name_the_same_locks_in_any_order_never_wait_for_each_other() {
    let model = Model::new();
    let orders = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"], ["c", "a", "b"]];
    let mut tasks = Vec::new();
    for (seed, order) in orders.into_iter().enumerate() {
        let process = Process::start(&model, seed as u64);
        process.faults.lock().latency = Duration::from_millis(1 + seed as u64);
        let session = process.session().await;
        tasks.push(start(async move {
            for _ in 0..20 {
                let all = acquire_all(&mutexes(&session, &order)).await.expect("granted");
                assert_eq!(all.guards().iter().map(|guard| guard.name()).collect::<Vec<_>>(), ["a", "b", "c"]);
                assert!(all.is_held());
                pass(0.01).await;
                all.release().await.expect("held");
            }
        }));
    }
    for task in tasks {
        task.await.expect("ends");
    }
    assert_eq!(model.entries("lock/"), []);
}

#[tokio::test(start_paused = true)]
async fn refuses_none_and_twice() {
    let model = Model::new();
    let session = Process::start(&model, 1).session().await;
    let error = acquire_all(&mutexes(&session, &["b", "a", "b"])).await.expect_err("twice");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Invalid, "lock b is named twice: use each only once")
    );
    assert_eq!(acquire_all(&[]).await.expect_err("none").to_string(), "no lock is named: use one or more");
    assert_eq!(model.entries("lock/"), []);
}

#[tokio::test(start_paused = true)]
async fn dropped_after_any_number_of_polls_it_holds_nothing() {
    let mut polls = 0;
    loop {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        process.faults.lock().latency = Duration::from_millis(2);
        let all = cancel_after(polls, acquire_all(&mutexes(&session, &["a", "b", "c"]))).await;
        let finished = all.is_some();
        drop(all);
        pass(1.0).await;
        assert_eq!(model.entries("lock/"), [], "dropped after {polls} polls");
        if finished {
            break;
        }
        polls += 1;
    }
    assert!(polls > 5, "{polls} polls only");
}

#[tokio::test(start_paused = true)]
async fn gives_back_what_it_has_when_one_is_not_granted_in_time() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let held = Mutex::new(&session, "b").expect("valid").acquire().await.expect("free");
    let wanted = mutexes(&session, &["a", "b", "c"]);
    let error = acquire_all_within(&wanted, Duration::from_secs(2)).await.expect_err("b is held");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.to_string(), "3 locks were not granted together (waited: 2s)");
    pass(0.1).await;
    assert_eq!(model.entries("lock/").len(), 1);
    held.release().await.expect("held");
    drop(acquire_all_within(&wanted, Duration::from_secs(2)).await.expect("free"));
}

#[tokio::test(start_paused = true)]
async fn is_lost_when_any_of_them_is_and_releases_the_others() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let all = acquire_all(&mutexes(&session, &["a", "b", "c"])).await.expect("free");
    let lost = start(all.lost());
    pass(1.0).await;
    assert!(!lost.is_finished());
    model.delete(&model.entries("lock/b")[0].key);
    assert_eq!(lost.await.expect("resolves").kind(), ErrorKind::Fenced);
    assert!(!all.is_held());
    assert_eq!(all.release().await.expect_err("b was lost").kind(), ErrorKind::Fenced);
    assert_eq!(model.entries("lock/"), []);
}
