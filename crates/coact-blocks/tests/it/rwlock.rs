//! Read-write locks.

use std::{sync::Arc, time::Duration};

use coact_blocks::{
    Session,
    lock::{Operation, RwLock},
};
use coact_core::{
    ErrorKind,
    contract::kv::{Txn, Write},
    env::{Env, PlantedBug},
};

use crate::{
    lock::key,
    lock_chaos::random_fates,
    lock_faults::nth_txn,
    model::{Fate, Model, Request},
    world::{Process, cancel_after, pass, start},
};

fn rw(session: &Session) -> RwLock {
    RwLock::new(session, "job").expect("valid")
}

#[tokio::test(start_paused = true)]
async fn a_free_lock_takes_one_round_trip_each_way() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let before = process.faults.lock().requests;
    let first = rw(&session).read().await.expect("free");
    let second = rw(&session).read().await.expect("readers share");
    assert_eq!(process.faults.lock().requests - before, 2);
    assert!(second.token() > first.token());
    first.release().await.expect("held");
    second.release().await.expect("held");
    let before = process.faults.lock().requests;
    let writer = rw(&session).write().await.expect("free");
    assert_eq!(process.faults.lock().requests - before, 1);
    writer.check().await.expect("held");
    writer.release().await.expect("held");
    assert_eq!(model.entries("rw/"), []);
}

/// Notes who is inside, and what must not be.
#[derive(Clone, Default)]
struct Inside(Arc<parking_lot::Mutex<State>>);

#[derive(Default)]
struct State {
    readers: usize,
    writers: usize,
    last_writer: u64,
    grants: usize,
    violations: Vec<String>,
}

impl Inside {
    fn enter(&self, is_writer: bool, token: u64) {
        let state = &mut *self.0.lock();
        state.grants += 1;
        if is_writer {
            state.writers += 1;
            if token <= state.last_writer {
                state.violations.push(format!("writer {token} after writer {}", state.last_writer));
            }
            state.last_writer = token;
        } else {
            state.readers += 1;
        }
        if state.writers > 1 || (state.writers == 1 && state.readers > 0) {
            state.violations.push(format!("{} writers and {} readers with {token}", state.writers, state.readers));
        }
    }

    fn leave(&self, is_writer: bool) {
        let state = &mut *self.0.lock();
        if is_writer { state.writers -= 1 } else { state.readers -= 1 }
    }
}

#[tokio::test(start_paused = true)]
async fn grants_in_the_order_of_arrival_and_wakes_a_batch_of_readers_together() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    let first = rw(&session).write().await.expect("free");
    for (index, who) in "rrrwrrw".chars().enumerate() {
        let (rwlock, order) = (rw(&session), order.clone());
        tasks.push(start(async move {
            if who == 'r' {
                let guard = rwlock.read().await.expect("granted");
                order.lock().push(index);
                pass(1.0).await;
                guard.release().await.expect("held");
            } else {
                let guard = rwlock.write().await.expect("granted");
                order.lock().push(index);
                pass(1.0).await;
                guard.release().await.expect("held");
            }
        }));
        pass(0.01).await;
    }
    assert!(order.lock().is_empty());
    first.release().await.expect("held");
    pass(0.1).await;
    assert_eq!(sorted(&order), [0, 1, 2], "the readers before the next writer, together");
    assert_eq!(session.lock_stats().wakeups, 3);
    pass(1.0).await;
    assert_eq!(sorted(&order), [0, 1, 2, 3], "then the writer alone");
    pass(1.0).await;
    assert_eq!(sorted(&order), [0, 1, 2, 3, 4, 5]);
    for task in tasks {
        task.await.expect("ends");
    }
    let stats = session.lock_stats();
    assert_eq!((stats.acquisitions, stats.waits, stats.spurious_wakeups, stats.rereads), (8, 7, 0, 0));
    assert!(stats.wakeups <= 11, "{stats:?}: a writer may have to follow the readers before it");
}

fn sorted(order: &parking_lot::Mutex<Vec<usize>>) -> Vec<usize> {
    let mut sorted = order.lock().clone();
    sorted.sort_unstable();
    sorted
}

#[tokio::test(start_paused = true)]
async fn neither_side_starves() {
    for (many_write, waits_to_write) in [(false, true), (true, false)] {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let stop = Arc::new(parking_lot::Mutex::new(false));
        let mut stream = Vec::new();
        for _ in 0..4 {
            let (rwlock, stop) = (rw(&session), stop.clone());
            stream.push(start(async move {
                while !*stop.lock() {
                    if many_write {
                        let guard = rwlock.write().await.expect("granted");
                        pass(0.1).await;
                        guard.release().await.expect("held");
                    } else {
                        let guard = rwlock.read().await.expect("granted");
                        pass(0.1).await;
                        guard.release().await.expect("held");
                    }
                }
            }));
            pass(0.03).await;
        }
        pass(5.0).await;
        let limit = Duration::from_secs(2);
        if waits_to_write {
            rw(&session).write_within(limit).await.expect("in its turn").release().await.expect("held");
        } else {
            rw(&session).read_within(limit).await.expect("in its turn").release().await.expect("held");
        }
        *stop.lock() = true;
        for task in stream {
            task.await.expect("ends");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trying_looks_first_and_gives_way_to_whoever_waits() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let reader = rw(&session).try_read().await.expect("answers").expect("free");
    assert!(rw(&session).try_write().await.expect("answers").is_none());
    assert!(rw(&session).try_read().await.expect("answers").is_some_and(|guard| guard.is_held()));
    let waiting = start({
        let rwlock = rw(&session);
        async move { rwlock.write().await.expect("granted") }
    });
    pass(0.1).await;
    assert!(rw(&session).try_read().await.expect("answers").is_none(), "a writer waits");
    let revision = process.kv.put(&key("config/x"), "1", None).await.expect("put").0;
    assert!(rw(&session).try_read().await.expect("answers").is_none());
    assert_eq!(process.kv.put(&key("config/x"), "1", None).await.expect("put").0, revision + 1, "nothing written");
    reader.release().await.expect("held");
    let writer = waiting.await.expect("ends");
    let error = rw(&session).read_within(Duration::from_secs(1)).await.expect_err("held");
    let expected = format!("read-write lock job is held by {} (token {}) (waited: 1s)", session.name(), writer.token());
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Conflict, expected));
    drop(writer);
    pass(0.1).await;
    assert!(rw(&session).try_write().await.expect("answers").is_some());
}

#[tokio::test(start_paused = true)]
async fn dead_waiters_are_skipped() {
    let model = Model::new();
    let (alive, doomed) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, doomed_session) = (alive.session().await, doomed.session().await);
    let reader = rw(&session).read().await.expect("free");
    let waiting = start({
        let rwlock = rw(&doomed_session);
        async move { rwlock.write().await.map(drop) }
    });
    pass(0.1).await;
    let behind = start({
        let rwlock = rw(&session);
        async move { rwlock.read().await.expect("granted") }
    });
    pass(0.1).await;
    assert!(!behind.is_finished());
    doomed.crash();
    waiting.abort();
    drop(behind.await.expect("both read once the writer is dead"));
    assert!(reader.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_downgraded_writer_reads_on_with_its_token_and_no_writer_comes_between() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let writer = rw(&session).write().await.expect("free");
    let token = writer.token();
    let reading = start({
        let rwlock = rw(&session);
        async move { rwlock.read().await.expect("granted") }
    });
    pass(0.1).await;
    let writing = start({
        let rwlock = rw(&session);
        async move { rwlock.write().await.expect("granted") }
    });
    pass(0.1).await;
    let downgraded = writer.downgrade().await.expect("held");
    assert_eq!(downgraded.token(), token);
    downgraded.check().await.expect("held");
    let other = reading.await.expect("the reader that waited comes in");
    pass(30.0).await;
    assert!(!writing.is_finished() && downgraded.is_held());
    let put = Write::Put { key: key("config/x"), value: "1".into(), lease: None };
    let _ = downgraded.txn(Txn { writes: vec![put], ..Txn::default() }).await.expect("guarded by the new entry");
    other.release().await.expect("held");
    pass(30.0).await;
    assert!(!writing.is_finished(), "the downgraded one still reads");
    downgraded.release().await.expect("held");
    assert!(writing.await.expect("granted").token() > token);
}

#[tokio::test(start_paused = true)]
async fn only_a_sole_reader_becomes_the_writer() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let first = rw(&session).read().await.expect("free");
    let second = rw(&session).read().await.expect("free");
    let second = second.try_upgrade().await.expect("answers").expect_err("another reads");
    let first = first.try_upgrade().await.expect("answers").expect_err("another reads");
    assert_eq!(model.entries("rw/").len(), 2, "nothing else was left");
    let token = first.token();
    second.release().await.expect("held");
    let writer = first.try_upgrade().await.expect("answers").expect("the only one");
    assert!(writer.token() > token);
    assert_eq!(model.entries("rw/").len(), 1);
    assert!(rw(&session).try_read().await.expect("answers").is_none());
    let reader = writer.downgrade().await.expect("held");
    let writer = reader.try_upgrade().await.expect("answers").expect("also from a downgraded one");
    let reader = writer.downgrade().await.expect("held");
    let waiting = start({
        let rwlock = rw(&session);
        async move { rwlock.write().await.expect("granted") }
    });
    pass(0.1).await;
    let reader = reader.try_upgrade().await.expect("answers").expect_err("a writer waits");
    reader.release().await.expect("held");
    waiting.await.expect("ends").release().await.expect("held");
    assert_eq!(model.entries("rw/"), []);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_change_nothing_but_the_time_it_takes() {
    for (lost, fate) in (0..8).flat_map(|n| [(n, Fate::AnswerLost), (n, Fate::Refused)]) {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        process.faults.lock().fate = nth_txn(lost, fate);
        let reader = rw(&session).read().await.expect("granted");
        let writer = reader.try_upgrade().await.expect("answers").expect("the only one");
        writer.check().await.expect("held");
        let reader = writer.downgrade().await.expect("held");
        reader.check().await.expect("held");
        reader.try_upgrade().await.expect("answers").expect("the only one").release().await.expect("held");
        pass(11.0).await;
        assert_eq!(model.entries("rw/"), [], "transaction {lost}: {fate:?}");
    }
}

/// An upgrade whose answer was lost must not overlook another reader.
#[tokio::test(start_paused = true)]
async fn an_upgrade_whose_answer_was_lost_sees_the_others() {
    for others_first in [true, false] {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let mut guards = vec![rw(&session).read().await.expect("free"), rw(&session).read().await.expect("free")];
        let (mine, other) = (guards.remove(usize::from(others_first)), guards.remove(0));
        process.faults.lock().fate = nth_txn(0, Fate::AnswerLost);
        let mine = mine.try_upgrade().await.expect("answers").expect_err("another reads");
        mine.check().await.expect("held");
        other.check().await.expect("held");
        pass(11.0).await;
        assert_eq!(model.entries("rw/").len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_poll_nothing_is_left() {
    type Step = fn(RwLock) -> futures::future::BoxFuture<'static, ()>;
    let steps: [Step; 5] = [
        |rwlock| Box::pin(async move { drop(rwlock.read().await) }),
        |rwlock| Box::pin(async move { drop(rwlock.write().await) }),
        |rwlock| Box::pin(async move { drop(rwlock.write_as(Operation::from_idempotency_key("x"), None).await) }),
        |rwlock| Box::pin(async move { drop(rwlock.write().await.expect("granted").downgrade().await) }),
        |rwlock| Box::pin(async move { drop(rwlock.read().await.expect("granted").try_upgrade().await) }),
    ];
    for (number, step) in steps.into_iter().enumerate() {
        for contended in [false, true] {
            let mut polls = 0;
            loop {
                let model = Model::new();
                let process = Process::start(&model, 1);
                let session = process.session().await;
                if contended {
                    let writer = rw(&session).write().await.expect("free");
                    start(async move {
                        pass(0.1).await;
                        writer.release().await.expect("held");
                    });
                }
                process.faults.lock().latency = Duration::from_millis(2);
                let finished = cancel_after(polls, step(rw(&session))).await.is_some();
                pass(2.0).await;
                assert_eq!(model.entries("rw/"), [], "step {number}, contended {contended}, after {polls} polls");
                if finished {
                    break;
                }
                polls += 1;
            }
            assert!(polls > 2, "{polls} polls only");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn readers_and_writers_exclude_each_other_whatever_happens_to_their_requests() {
    let mut grants = 0;
    for seed in 0..40 {
        let found = chaos(seed, &[]).await;
        assert_eq!(found.violations, [""; 0], "seed {seed}");
        grants += found.grants;
    }
    assert!(grants > 40 * 5 * 5, "only {grants} grants: the faults leave nothing to check");
}

#[tokio::test(start_paused = true)]
async fn the_oracle_catches_the_planted_bug() {
    for seed in 0..40 {
        if !chaos(seed, &[PlantedBug::SkipReverify]).await.violations.is_empty() {
            return;
        }
    }
    panic!("SkipReverify was not caught in 40 seeds");
}

async fn chaos(seed: u64, planted: &[PlantedBug]) -> State {
    let model = Model::new();
    let inside = Inside::default();
    let mut workers = Vec::new();
    for number in 0..5 {
        let process = Process::start_with(&model, seed * 100 + number, planted);
        process.faults.lock().fate = Some(random_fates(process.env().clone()));
        process.faults.lock().latency = Duration::from_millis(1 + number);
        workers.push(start(work(process, inside.clone())));
    }
    for worker in workers {
        worker.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    let mut found = std::mem::take(&mut *inside.0.lock());
    let written = model.history(&key("config/x"));
    let tokens: Vec<u64> = written.iter().map(|value| value.parse().expect("a token")).collect();
    if !tokens.is_sorted() {
        found.violations.push(format!("written out of order: {tokens:?}"));
    }
    found
}

async fn work(process: Process, inside: Inside) {
    let env = process.env().clone();
    let end = env.now() + Duration::from_secs(120);
    while env.now() < end {
        let options = coact_blocks::SessionOptions { ttl: Duration::from_secs(5), name: None };
        let opened = env.timeout(Duration::from_secs(5), Session::open(&process.kv, options)).await;
        let Some(Ok(session)) = opened else {
            pass(0.1).await;
            continue;
        };
        while session.is_alive() && env.now() < end {
            one_grant(&rw(&session), &inside, &env).await;
            let pause = env.random_duration(Duration::from_millis(200));
            env.sleep(pause).await;
        }
    }
}

async fn one_grant(rwlock: &RwLock, inside: &Inside, env: &Env) {
    let patience = env.random_duration(Duration::from_secs(20));
    if env.random().is_multiple_of(3) {
        let Ok(writer) = rwlock.write_within(patience).await else { return };
        stay(writer.is_held(), inside, true, writer.token(), writer.lost(), env).await;
        let value = writer.token().to_string();
        let put = Write::Put { key: key("config/x"), value: value.into(), lease: None };
        let txn = Txn { writes: vec![put], ..Txn::default() };
        let _ = env.timeout(Duration::from_secs(1), writer.txn(txn)).await;
        if env.random().is_multiple_of(2)
            && let Some(Ok(reader)) = env.timeout(Duration::from_secs(5), writer.downgrade()).await
        {
            stay(reader.is_held(), inside, false, reader.token(), reader.lost(), env).await;
        }
        return;
    }
    let Ok(reader) = rwlock.read_within(patience).await else { return };
    stay(reader.is_held(), inside, false, reader.token(), reader.lost(), env).await;
    if env.random().is_multiple_of(2)
        && let Some(Ok(Ok(writer))) = env.timeout(Duration::from_secs(5), reader.try_upgrade()).await
    {
        stay(writer.is_held(), inside, true, writer.token(), writer.lost(), env).await;
        let _ = env.timeout(Duration::from_secs(5), writer.release()).await;
    }
}

async fn stay(
    is_held: bool,
    inside: &Inside,
    is_writer: bool,
    token: u64,
    lost: impl Future<Output = coact_core::Error>,
    env: &Env,
) {
    if is_held {
        inside.enter(is_writer, token);
        let _ = env.timeout(env.random_duration(Duration::from_secs(1)), lost).await;
        inside.leave(is_writer);
    }
}

/// A store that does not answer when the reader is about to become the writer.
#[tokio::test(start_paused = true)]
async fn an_upgrade_that_is_never_answered_ends_with_the_session() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let reader = rw(&session).read().await.expect("free");
    process.faults.lock().fate =
        Some(Box::new(|request| if matches!(request, Request::AwaitGone) { Fate::Arrives } else { Fate::Lost }));
    assert_eq!(reader.try_upgrade().await.expect_err("lost").kind(), ErrorKind::Fenced);
    process.faults.lock().fate = None;
    pass(5.0).await;
    assert_eq!(model.entries("rw/"), []);
}
