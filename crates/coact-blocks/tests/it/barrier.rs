//! Barriers: exactly as many as agreed pass in each generation, whoever dies, cancels, or hears no answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use coact_blocks::{
    Session,
    lock::{Arrival, Barrier},
};
use coact_core::{ErrorKind, Result};
use tokio::task::JoinHandle;

use crate::{
    latch::random_fates,
    model::{Fate, Model, Request, VOLATILE},
    world::{Process, cancel_after, pass, start},
};

async fn barrier(session: &Session, parties: u64) -> Barrier {
    Barrier::open(session, "all", parties).await.expect("opens")
}

fn arriving(barrier: &Barrier) -> JoinHandle<Result<Arrival>> {
    let barrier = barrier.clone();
    start(async move { barrier.wait().await })
}

/// Every generation has each index once, and one leader.
fn check(arrivals: &[Arrival], parties: u64) -> Result<(), String> {
    let mut generations: BTreeMap<u64, Vec<&Arrival>> = BTreeMap::new();
    arrivals.iter().for_each(|arrival| generations.entry(arrival.generation).or_default().push(arrival));
    for (generation, members) in generations {
        let indexes: BTreeSet<_> = members.iter().map(|member| member.index).collect();
        let leaders = members.iter().filter(|member| member.leader).count();
        if indexes != (0..parties).collect() || members.len() as u64 != parties || leaders != 1 {
            return Err(format!("generation {generation}: {members:?}"));
        }
    }
    Ok(())
}

#[test]
fn the_checker_sees_what_is_wrong() {
    let arrival = |generation, index, leader| Arrival { generation, index, leader };
    check(&[arrival(1, 0, false), arrival(1, 1, true)], 2).expect("right");
    check(&[arrival(1, 0, true)], 2).expect_err("one is missing");
    check(&[arrival(1, 0, false), arrival(1, 1, false)], 2).expect_err("no leader");
    check(&[arrival(1, 0, true), arrival(1, 0, false)], 2).expect_err("the same index");
    check(&[arrival(1, 0, false), arrival(2, 1, true)], 2).expect_err("two generations");
}

#[tokio::test(start_paused = true)]
async fn parties_pass_together_again_and_again() {
    let model = Model::new();
    let mut tasks = Vec::new();
    for seed in 0..4 {
        let process = Process::start(&model, seed);
        process.faults.lock().latency = Duration::from_millis(seed);
        let session = process.session().await;
        let barrier = barrier(&session, 4).await;
        tasks.push(start(async move {
            let mut arrivals = Vec::new();
            for round in 1..=20 {
                arrivals.push(barrier.wait().await.expect("passes"));
                assert_eq!(arrivals.last().expect("one").generation, round);
            }
            arrivals
        }));
    }
    let mut arrivals = Vec::new();
    for task in tasks {
        arrivals.extend(task.await.expect("ends"));
    }
    check(&arrivals, 4).expect("right");
    pass(1.0).await;
    assert_eq!(model.entries("barrier-party/"), []);
    assert_eq!(model.entries("barrier/").len(), 2, "the state and one gate");
}

#[tokio::test(start_paused = true)]
async fn nobody_passes_before_all_are_there_and_a_dead_party_does_not_count() {
    let model = Model::new();
    let (doomed, alive) = (Process::start(&model, 1), Process::start(&model, 2));
    let (doomed_session, session) = (doomed.session().await, alive.session().await);
    let dies = arriving(&barrier(&doomed_session, 3).await);
    pass(1.0).await;
    doomed.crash();
    dies.abort();
    pass(11.0).await;
    let barrier = barrier(&session, 3).await;
    let two = [arriving(&barrier), arriving(&barrier)];
    pass(30.0).await;
    assert!(two.iter().all(|task| !task.is_finished()), "two and a dead one are not three");
    let mut arrivals = vec![barrier.wait().await.expect("passes")];
    for task in two {
        arrivals.push(task.await.expect("ends").expect("passes"));
    }
    check(&arrivals, 3).expect("right");
}

#[tokio::test(start_paused = true)]
async fn a_wait_dropped_after_any_number_of_polls_withdraws_or_has_passed() {
    let mut passed = 0;
    for polls in 0..20 {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let (session, other) = (process.session().await, process.session().await);
        let (ours, theirs) = (barrier(&session, 2).await, barrier(&other, 2).await);
        process.faults.lock().latency = Duration::from_millis(2);
        let waiter = arriving(&theirs);
        pass(0.05).await;
        cancel_after(polls, ours.wait()).await;
        pass(1.0).await;
        let opened = waiter.is_finished();
        passed += usize::from(opened);
        assert_eq!(model.entries("barrier-party/").len(), usize::from(!opened), "dropped after {polls} polls");
        if !opened {
            ours.wait().await.expect("passes");
        }
        waiter.await.expect("ends").expect("passes");
    }
    assert!((1..20).contains(&passed), "{passed} of 20 had opened it");
}

#[tokio::test(start_paused = true)]
async fn an_arrival_that_comes_after_its_withdrawal_does_not_count() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (session, other) = (process.session().await, process.session().await);
    let (ours, theirs) = (barrier(&session, 2).await, barrier(&other, 2).await);
    process.faults.lock().latency = Duration::from_millis(2);
    process.faults.lock().fate = Some(Box::new(|request| match request {
        Request::Txn(txn) if !txn.writes.is_empty() => Fate::Late(Duration::from_secs(1)),
        _ => Fate::Arrives,
    }));
    assert!(process.env().timeout(Duration::from_millis(20), ours.wait()).await.is_none());
    process.faults.lock().fate = None;
    pass(5.0).await;
    assert_eq!(model.entries("barrier-party/"), []);
    let waiter = arriving(&theirs);
    pass(5.0).await;
    assert!(!waiter.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_changes_nothing_but_the_time_it_takes() {
    for fate in [Fate::AnswerLost, Fate::Refused, Fate::Late(Duration::from_millis(300))] {
        for nth in 0..8 {
            let model = Model::new();
            let (one, two) = (Process::start(&model, 1), Process::start(&model, 2));
            let (session, other) = (one.session().await, two.session().await);
            let (ours, theirs) = (barrier(&session, 2).await, barrier(&other, 2).await);
            let mut turn = 0;
            one.faults.lock().fate = Some(Box::new(move |request| {
                turn += usize::from(matches!(request, Request::Txn(_)));
                if turn == nth + 1 { fate } else { Fate::Arrives }
            }));
            for first in [true, false] {
                let waiter = arriving(if first { &theirs } else { &ours });
                pass(1.0).await;
                let arrival = if first { &ours } else { &theirs }.wait().await.expect("passes");
                let both = [arrival, waiter.await.expect("ends").expect("passes")];
                check(&both, 2).unwrap_or_else(|wrong| panic!("{fate:?} of transaction {nth}: {wrong}"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_party_whose_lease_ended_early_does_not_pass() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (session, other) = (process.session().await, process.session().await);
    let cut = arriving(&barrier(&session, 2).await);
    pass(0.1).await;
    model.end_lease(session.lease());
    let theirs = barrier(&other, 2).await;
    let two = [arriving(&theirs), arriving(&theirs)];
    for task in two {
        task.await.expect("ends").expect("passes");
    }
    assert_eq!(cut.await.expect("ends").expect_err("it did not count").kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn refuses_another_number_of_parties_and_weak_stores() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    barrier(&session, 3).await;
    let message = async |parties| Barrier::open(&session, "all", parties).await.expect_err("refused").to_string();
    assert_eq!(message(4).await, "barrier all has 3 parties, not 4: everybody must choose the same");
    assert_eq!(message(0).await, "a barrier cannot have 0 parties: use 1 to 1000");
    process.faults.lock().guarantees = Some(&VOLATILE);
    assert!(message(3).await.starts_with("lock needs writes synced to disk"));
}

/// Six processes on a barrier of three: lost answers, cancelled waits, deaths.
#[tokio::test(start_paused = true)]
async fn exactly_as_many_as_agreed_pass_whatever_happens() {
    let mut complete = 0;
    for seed in 0..30 {
        let model = Model::new();
        let tasks: Vec<_> = (0..6).map(|number| start(live(model.clone(), seed * 100 + number * 10))).collect();
        let mut told = Vec::new();
        for task in tasks {
            // Some may be left over at the end.
            told.extend(task.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}")));
        }
        let mut generations: BTreeMap<u64, Vec<Arrival>> = BTreeMap::new();
        told.iter().for_each(|arrival| generations.entry(arrival.generation).or_default().push(*arrival));
        for (generation, members) in generations {
            // Who was dropped or died as the gate opened has passed without telling.
            let indexes: BTreeSet<_> = members.iter().map(|member| member.index).collect();
            let leaders = members.iter().filter(|member| member.leader).count();
            let distinct = indexes.len() == members.len() && indexes.iter().all(|index| *index < 3);
            assert!(distinct && leaders <= 1, "seed {seed}, generation {generation}: {members:?}");
            complete += usize::from(check(&members, 3).is_ok());
        }
    }
    assert!(complete > 100, "only {complete} generations were told of whole");
}

async fn live(model: Model, seed: u64) -> Vec<Arrival> {
    let mut told = Vec::new();
    for life in 0..3 {
        let process = Process::start(&model, seed + life);
        let env = process.env().clone();
        let session = process.session_with(Duration::from_secs(2)).await;
        process.faults.lock().latency = Duration::from_millis(1);
        process.faults.lock().fate = Some(random_fates(env.clone()));
        let Ok(barrier) = Barrier::open(&session, "all", 3).await else { continue };
        for _ in 0..15 {
            if env.random().is_multiple_of(20) {
                process.crash();
                pass(3.0).await;
                break;
            }
            let limit = Duration::from_millis(200) + env.random_duration(Duration::from_secs(6));
            if let Some(Ok(arrival)) = env.timeout(limit, barrier.wait()).await {
                told.push(arrival);
            }
            env.sleep(env.random_duration(Duration::from_millis(50))).await;
        }
    }
    told
}
