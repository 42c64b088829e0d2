//! Semaphores.

use std::{sync::Arc, time::Duration};

use coact_blocks::{
    Session,
    lock::{self, Kind, Permit, Semaphore, TicketKind},
};
use coact_core::{
    ErrorKind,
    env::{Env, PlantedBug},
    name::Realm,
};

use crate::{
    lock::key,
    lock_chaos::random_fates,
    lock_faults::nth_txn,
    model::{Fate, FateOf, Model, Request},
    world::{Process, cancel_after, pass, start},
};

fn semaphore(session: &Session, permits: u32) -> Semaphore {
    Semaphore::new(session, "pool", permits).expect("valid")
}

async fn acquire(session: &Session, permits: u32, count: usize) -> Vec<Permit> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(semaphore(session, permits).acquire().await.expect("granted"));
    }
    held
}

type Waiter = tokio::task::JoinHandle<coact_core::Result<Permit>>;

/// Starts so many waiters, one after the other.
async fn waiters(session: &Session, permits: u32, count: usize) -> Vec<Waiter> {
    let mut waiting = Vec::new();
    for _ in 0..count {
        let semaphore = semaphore(session, permits);
        waiting.push(start(async move { semaphore.acquire().await }));
        pass(0.01).await;
    }
    waiting
}

fn finished(waiting: &[Waiter]) -> Vec<bool> {
    waiting.iter().map(|waiter| waiter.is_finished()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_free_permit_takes_one_round_trip_each_way() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let pool = semaphore(&session, 2);
    let before = process.faults.lock().requests;
    let first = pool.acquire().await.expect("free");
    assert_eq!(process.faults.lock().requests - before, 2, "the first time, the number is stored");
    let second = pool.acquire().await.expect("free");
    assert_eq!(process.faults.lock().requests - before, 3);
    assert!(second.token() > first.token());
    assert!(pool.try_acquire().await.expect("answers").is_none());
    let error = pool.acquire_within(Duration::from_secs(1)).await.expect_err("both are held");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    first.check().await.expect("held");
    first.release().await.expect("held");
    second.release().await.expect("held");
    pool.try_acquire().await.expect("answers").expect("free").release().await.expect("held");
    pass(0.1).await;
    assert_eq!(model.entries("semaphore/").len(), 1, "the number stays");
}

#[tokio::test(start_paused = true)]
async fn a_release_grants_one_and_moves_one_up() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (holders, waiting) = (process.session().await, process.session().await);
    let mut held = acquire(&holders, 3, 3).await;
    let tasks = waiters(&waiting, 3, 20).await;
    pass(1.0).await;
    let mut before = waiting.lock_stats();
    assert_eq!((before.waits, before.acquisitions), (20, 0));
    // Any of the holders may leave.
    for (released, index) in [1, 0, 0].into_iter().enumerate() {
        held.remove(index).release().await.expect("held");
        pass(1.0).await;
        let now = waiting.lock_stats();
        assert_eq!(now.acquisitions, released as u64 + 1);
        assert_eq!(now.wakeups - before.wakeups, 2, "one is granted, and one is the first now");
        assert_eq!((now.spurious_wakeups, now.rereads), (before.spurious_wakeups, 0));
        assert!(finished(&tasks).is_sorted_by(|earlier, later| earlier >= later), "in the order of arrival");
        before = now;
    }
    let mut tasks = tasks.into_iter();
    for task in tasks.by_ref() {
        task.await.expect("ends").expect("granted").release().await.expect("held");
    }
    assert_eq!(waiting.lock_stats().acquisitions, 20);
    assert_eq!(waiting.lock_stats().spurious_wakeups, 0);
    assert_eq!(model.entries("semaphore/pool/permits"), []);
}

#[tokio::test(start_paused = true)]
async fn everybody_must_agree_on_the_number() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    drop(semaphore(&session, 5).acquire().await.expect("free"));
    let error = semaphore(&session, 3).acquire().await.expect_err("5 are stored");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        error.to_string(),
        "semaphore pool has 5 permits, and here 3: everybody must choose the same, or resize it"
    );
    assert_eq!(Semaphore::new(&session, "pool", 0).expect_err("none").kind(), ErrorKind::Invalid);
    assert_eq!(semaphore(&session, 5).resize(0).await.expect_err("none").kind(), ErrorKind::Invalid);
    assert_eq!(
        Semaphore::new(&session, "", 1).expect_err("no name").to_string(),
        "the semaphore has no name: use 1 to 110 bytes, for example deploy/eu"
    );
    process.kv.put(&key("semaphore/pool/limit/permits"), "many", None).await.expect("put");
    assert_eq!(semaphore(&session, 5).acquire().await.expect_err("no number").kind(), ErrorKind::Corrupt);
}

/// The layout keeps one semaphore's number out of another's permits.
#[tokio::test(start_paused = true)]
async fn names_within_names_are_other_semaphores() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let names = ["pool", "pool/permits", "pool/limit"];
    for name in names {
        let one = Semaphore::new(&session, name, 1).expect("valid");
        one.try_acquire().await.expect("answers").expect("free").detach();
        assert!(one.try_acquire().await.expect("answers").is_none());
    }
    let found = lock::inspect(&process.kv, &Realm::default(), Kind::Semaphore, "", 10).await.expect("answers");
    let shown: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.permits, found.holders.len())).collect();
    assert_eq!(shown, [("pool", Some(1), 1), ("pool/limit", Some(1), 1), ("pool/permits", Some(1), 1)]);
}

#[tokio::test(start_paused = true)]
async fn more_permits_are_granted_at_once_to_those_who_wait() {
    let model = Model::new();
    let (here, there) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, other) = (here.session().await, there.session().await);
    let held = acquire(&session, 2, 2).await;
    let tasks = waiters(&session, 2, 5).await;
    semaphore(&other, 2).resize(5).await.expect("stored");
    pass(1.0).await;
    assert_eq!(finished(&tasks), [true, true, true, false, false]);
    assert_eq!(session.lock_stats().rereads, 0, "nobody had to look on its own account");
    assert_eq!(semaphore(&other, 5).permits().await.expect("answers"), 5);
    assert_eq!(semaphore(&other, 2).acquire().await.expect_err("5 now").kind(), ErrorKind::Conflict);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn after_a_change_to_fewer_holders_stay_and_nobody_follows_until_enough_have_left() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let mut held = acquire(&session, 5, 5).await;
    let tasks = waiters(&session, 5, 3).await;
    let pool = semaphore(&session, 5);
    pool.resize(2).await.expect("stored");
    for left in [4, 3, 2] {
        held.remove(0).release().await.expect("held");
        pass(0.5).await;
        assert_eq!(held.len(), left);
        assert_eq!(finished(&tasks), [false; 3], "{left} are held");
    }
    assert!(held.iter().all(Permit::is_held));
    held.remove(1).release().await.expect("held");
    pass(0.5).await;
    assert_eq!(finished(&tasks), [true, false, false]);
    assert_eq!(session.lock_stats().rereads, 0);
    held.remove(0).release().await.expect("held");
    pass(0.5).await;
    assert_eq!(finished(&tasks), [true, true, false]);
    pool.resize(2).await.expect("no change");
    pool.resize(3).await.expect("stored");
    pass(0.5).await;
    assert_eq!(finished(&tasks), [true, true, true]);
}

/// The number falls after a waiter has seen that it may go on, and before it says so.
#[tokio::test(start_paused = true)]
async fn a_grant_on_its_way_is_refused_when_the_number_falls() {
    let model = Model::new();
    let (process, other) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, holders) = (process.session().await, other.session().await);
    let mut held = acquire(&holders, 2, 2).await;
    let tasks = waiters(&session, 2, 1).await;
    process.faults.lock().fate = Some(Box::new(|request| match request {
        Request::Txn(txn) if !txn.writes.is_empty() => Fate::Slow(Duration::from_secs(1)),
        _ => Fate::Arrives,
    }));
    held.remove(0).release().await.expect("held");
    pass(0.5).await;
    semaphore(&holders, 2).resize(1).await.expect("stored");
    pass(5.0).await;
    assert_eq!(finished(&tasks), [false], "one is held of one");
    held.remove(0).release().await.expect("held");
    pass(5.0).await;
    assert_eq!(finished(&tasks), [true]);
}

/// Who has waited behind others when the number fell is granted as soon as enough have left, whoever left.
#[tokio::test(start_paused = true)]
async fn whoever_comes_after_a_change_to_fewer_waits_for_all_holders() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let mut held = acquire(&session, 5, 5).await;
    let pool = semaphore(&session, 5);
    pool.resize(2).await.expect("stored");
    let waiting = start(async move { pool.acquire().await });
    pass(0.1).await;
    // The last holder, which is right before the waiter, stays.
    for _ in 0..4 {
        assert!(!waiting.is_finished());
        held.remove(0).release().await.expect("held");
        pass(0.1).await;
    }
    assert!(waiting.is_finished(), "one is held of two");
    assert_eq!(session.lock_stats().rereads, 0);
}

#[tokio::test(start_paused = true)]
async fn the_permits_of_a_crashed_process_come_back_and_dead_waiters_are_skipped() {
    let model = Model::new();
    let (alive, doomed) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, doomed_session) = (alive.session().await, doomed.session().await);
    let held = acquire(&doomed_session, 2, 2).await;
    let dead = waiters(&doomed_session, 2, 2).await;
    let living = waiters(&session, 2, 3).await;
    pass(5.0).await;
    assert_eq!(finished(&living), [false; 3]);
    doomed.crash();
    dead.iter().for_each(|waiter| waiter.abort());
    pass(12.0).await;
    assert_eq!(finished(&living), [true, true, false]);
    assert!(held.iter().all(|permit| !permit.is_held()), "they knew before");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_changes_nothing_but_the_time_it_takes() {
    for contended in [false, true] {
        for (lost, fate) in (0..8).flat_map(|n| [(n, Fate::AnswerLost), (n, Fate::Refused)]) {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let (session, other) = (process.session().await, process.session().await);
            if contended {
                let mut held = acquire(&other, 1, 1).await;
                start(async move {
                    pass(1.0).await;
                    drop(held.pop());
                });
            }
            process.faults.lock().fate = nth_txn(lost, fate);
            let permit = semaphore(&session, 1).acquire().await.expect("granted");
            permit.check().await.expect("held");
            permit.release().await.expect("held");
            pass(12.0).await;
            assert_eq!(model.entries("semaphore/pool/permits"), [], "contended {contended}, {lost}: {fate:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_dropped_after_any_number_of_polls_leaves_nothing() {
    for contended in [false, true] {
        let mut polls = 0;
        loop {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let (session, other) = (process.session().await, process.session().await);
            process.faults.lock().latency = Duration::from_millis(2);
            if contended {
                let mut held = acquire(&other, 1, 1).await;
                start(async move {
                    pass(0.1).await;
                    drop(held.pop());
                });
            }
            let permit = cancel_after(polls, semaphore(&session, 1).acquire()).await;
            let is_last = permit.is_some();
            drop(permit);
            pass(1.0).await;
            assert_eq!(model.entries("semaphore/pool/permits"), [], "contended {contended}, after {polls} polls");
            if is_last {
                break;
            }
            polls += 1;
        }
        assert!(polls > if contended { 8 } else { 3 }, "{polls} polls only");
    }
}

/// Watches that forget, break, or never begin.
#[tokio::test(start_paused = true)]
async fn watches_that_fail_cost_time_only() {
    let fates =
        [Fate::Refused, Fate::Lost, Fate::Slow(Duration::from_millis(50)), Fate::SlowAnswer(Duration::from_millis(50))];
    for fate in fates {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let watches = move |request: Request<'_>| if matches!(request, Request::Watch) { fate } else { Fate::Arrives };
        process.faults.lock().fate = Some(Box::new(watches) as FateOf);
        let mut held = acquire(&session, 2, 2).await;
        let mut tasks = waiters(&session, 2, 4).await;
        held.clear();
        while !tasks.is_empty() {
            pass(13.0).await;
            let ready = tasks.iter().filter(|task| task.is_finished()).count();
            assert!((1..=2).contains(&ready), "{ready} with {fate:?}");
            tasks.drain(..ready).for_each(drop);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn shows_holders_and_waiters_of_every_kind() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (ann, bob) = (process.named("ann").await, process.named("bob").await);
    let held = acquire(&ann, 1, 1).await;
    let waiting = waiters(&bob, 1, 1).await;
    let rwlock = lock::RwLock::new(&ann, "table").expect("valid");
    let reader = rwlock.write().await.expect("free").downgrade().await.expect("held");
    let second = rwlock.read().await.expect("shared");
    let writer = start(async move { rwlock.write().await });
    let leader = lock::Election::new(&ann, "boss").expect("valid").campaign("10.0.0.1").await.expect("free");
    pass(0.1).await;
    let realm = Realm::default();
    let one = async |kind| {
        let found = lock::inspect(&process.kv, &realm, kind, "", 10).await.expect("answers");
        assert_eq!((found.len(), found[0].kind), (1, kind));
        let labels = |of: &[lock::Contender]| of.iter().map(|who| (who.label.clone(), who.kind)).collect::<Vec<_>>();
        (found[0].name.clone(), labels(&found[0].holders), labels(&found[0].waiters), found[0].holders[0].value.clone())
    };
    let who = |label: &str, kind| (label.to_owned(), kind);
    let permit = TicketKind::Permit;
    let expected = ("pool".to_owned(), vec![who("ann", permit)], vec![who("bob", permit)], None);
    assert_eq!(one(Kind::Semaphore).await, expected);
    let readers = vec![who("ann", TicketKind::Downgraded), who("ann", TicketKind::Read)];
    assert_eq!(one(Kind::RwLock).await, ("table".to_owned(), readers, vec![who("ann", TicketKind::Write)], None));
    let leads = vec![who("ann", TicketKind::Leadership)];
    assert_eq!(one(Kind::Election).await, ("boss".to_owned(), leads, vec![], Some("10.0.0.1".to_owned())));
    drop((held, reader, second, leader));
    drop((waiting, writer));
}

#[derive(Default)]
struct Seen {
    inside: usize,
    most: usize,
    grants: usize,
    limit: usize,
    violations: Vec<String>,
}

const SEEDS: u64 = 40;

#[tokio::test(start_paused = true)]
async fn never_more_than_its_permits_whatever_happens_to_the_requests() {
    let (mut grants, mut most) = (0, 0);
    for seed in 0..SEEDS {
        let seen = chaos(seed, 3, &[]).await;
        assert_eq!(seen.violations, [""; 0], "seed {seed}");
        grants += seen.grants;
        most = most.max(seen.most);
    }
    assert!(grants as u64 > SEEDS * 30, "only {grants} grants: the faults leave nothing to check");
    assert_eq!(most, 3, "all permits are used");
}

#[tokio::test(start_paused = true)]
async fn the_oracle_catches_one_permit_too_many_and_the_planted_bug() {
    for (permits, planted) in [(4, &[][..]), (3, &[PlantedBug::SkipReverify][..])] {
        let mut seed = 0;
        while chaos(seed, permits, planted).await.violations.is_empty() {
            seed += 1;
            assert!(seed < SEEDS, "{planted:?} with {permits} permits was not caught in {SEEDS} seeds");
        }
    }
}

async fn chaos(seed: u64, permits: u32, planted: &[PlantedBug]) -> Seen {
    let model = Model::new();
    let seen = Arc::new(parking_lot::Mutex::new(Seen { limit: 3, ..Seen::default() }));
    let mut workers = Vec::new();
    for number in 0..6 {
        let process = Process::start_with(&model, seed * 100 + number, planted);
        process.faults.lock().fate = Some(random_fates(process.env().clone()));
        process.faults.lock().latency = Duration::from_millis(1 + number);
        workers.push(start(work(process, permits, seen.clone())));
    }
    for worker in workers {
        worker.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    std::mem::take(&mut *seen.lock())
}

async fn work(process: Process, permits: u32, seen: Arc<parking_lot::Mutex<Seen>>) {
    let env = process.env().clone();
    let end = env.now() + Duration::from_secs(120);
    while env.now() < end {
        let options = coact_blocks::SessionOptions { ttl: Duration::from_secs(5), name: None };
        let opened = env.timeout(Duration::from_secs(5), Session::open(&process.kv, options)).await;
        let Some(Ok(session)) = opened else {
            pass(0.1).await;
            continue;
        };
        let pool = semaphore(&session, permits);
        while session.is_alive() && env.now() < end {
            let patience = env.random_duration(Duration::from_secs(20));
            if let Ok(permit) = pool.acquire_within(patience).await {
                hold(permit, &seen, &env).await;
            }
            let pause = env.random_duration(Duration::from_millis(200));
            env.sleep(pause).await;
        }
    }
}

async fn hold(permit: Permit, seen: &parking_lot::Mutex<Seen>, env: &Env) {
    if permit.is_held() {
        {
            let seen = &mut *seen.lock();
            seen.grants += 1;
            seen.inside += 1;
            seen.most = seen.most.max(seen.inside);
            if seen.inside > seen.limit {
                seen.violations.push(format!("{} hold one of {}", seen.inside, seen.limit));
            }
        }
        let _ = env.timeout(env.random_duration(Duration::from_secs(2)), permit.lost()).await;
        seen.lock().inside -= 1;
    }
    match env.random() % 3 {
        0 => drop(permit),
        1 => drop(env.timeout(Duration::from_secs(4), permit.release()).await),
        _ => drop(permit.release().await),
    }
}
