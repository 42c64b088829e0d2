//! Leader election.

use std::{sync::Arc, time::Duration};

use coact_blocks::{
    Session, SessionOptions,
    lock::{Election, Leader, Leadership},
};
use coact_core::{
    ErrorKind, Result,
    contract::kv::{Txn, Write},
    env::{Env, PlantedBug},
};
use futures::{Stream, StreamExt};

use crate::{
    lock::key,
    lock_chaos::random_fates,
    lock_faults::nth_txn,
    model::{Fate, Model, Request},
    world::{Process, cancel_after, pass, start},
};

fn election(session: &Session) -> Election {
    Election::new(session, "boss").expect("valid")
}

#[tokio::test(start_paused = true)]
async fn candidates_lead_in_the_order_in_which_they_came() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (ann, bob) = (process.named("ann").await, process.named("bob").await);
    assert_eq!(election(&ann).leader().await.expect("answers"), None);
    let before = process.faults.lock().requests;
    let first = election(&ann).campaign("10.0.0.1").await.expect("nobody leads");
    assert_eq!(process.faults.lock().requests - before, 1);
    let error = election(&bob).campaign_within("10.0.0.2", Duration::from_secs(1)).await.expect_err("ann leads");
    let expected = format!("election boss is held by ann (token {}) (waited: 1s)", first.token());
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Conflict, expected));
    let waiting = start({
        let election = election(&bob);
        async move { election.campaign("10.0.0.2").await.expect("elected") }
    });
    pass(0.1).await;
    let leader = election(&bob).leader().await.expect("answers").expect("ann");
    assert_eq!((leader.value.as_str(), leader.label.as_str(), leader.token), ("10.0.0.1", "ann", first.token()));
    assert_eq!((first.value().as_str(), first.is_leader()), ("10.0.0.1", true));
    let token = first.token();
    first.resign().await.expect("leads");
    let second = waiting.await.expect("ends");
    assert!(second.token() > token);
    second.check().await.expect("leads");
    drop(second);
    pass(0.1).await;
    assert_eq!(election(&bob).leader().await.expect("answers"), None);
}

#[tokio::test(start_paused = true)]
async fn a_leader_proclaims_anew_with_the_same_token_and_only_while_it_leads() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let leadership = election(&session).campaign("starting").await.expect("nobody leads");
    let token = leadership.token();
    for (lost, fate) in (0..3).flat_map(|n| [(n, Fate::AnswerLost), (n, Fate::Refused), (n, Fate::Arrives)]) {
        process.faults.lock().fate = nth_txn(lost, fate);
        leadership.proclaim(format!("{lost} {fate:?}")).await.expect("leads");
        process.faults.lock().fate = None;
        let leader = election(&session).leader().await.expect("answers").expect("leads");
        assert_eq!((leader.value, leader.token), (format!("{lost} {fate:?}"), token));
    }
    let put = Write::Put { key: key("config/x"), value: "1".into(), lease: None };
    let txn = Txn { writes: vec![put], ..Txn::default() };
    let _ = leadership.txn(txn.clone()).await.expect("fenced by the token, not by what it proclaims");
    leadership.check().await.expect("leads");
    model.delete(&model.entries("election/")[0].key);
    let next = election(&session).campaign("next").await.expect("nobody leads");
    assert_eq!(leadership.proclaim("too late").await.expect_err("lost").kind(), ErrorKind::Fenced);
    assert_eq!(leadership.txn(txn).await.expect_err("lost").kind(), ErrorKind::Fenced);
    assert!(!leadership.is_leader());
    assert_eq!(election(&session).leader().await.expect("answers").expect("next").value, "next");
    assert_eq!(leadership.resign().await.expect_err("lost").kind(), ErrorKind::Fenced);
    next.check().await.expect("untouched");
    let error = next.proclaim("x".repeat(61_441)).await.expect_err("too long");
    assert_eq!(error.to_string(), "the value of the candidate has 61441 bytes: at most 61440 are allowed");
    next.proclaim("x".repeat(61_440)).await.expect("leads");
}

/// A request that was given up arrives after the next one, and changes nothing.
#[tokio::test(start_paused = true)]
async fn what_was_proclaimed_last_stays() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let leadership = election(&session).campaign("0").await.expect("nobody leads");
    process.faults.lock().fate = nth_txn(0, Fate::Late(Duration::from_secs(5)));
    cancel_after(1, leadership.proclaim("1")).await;
    leadership.proclaim("2").await.expect("leads");
    pass(10.0).await;
    assert_eq!(election(&session).leader().await.expect("answers").expect("leads").value, "2");
    assert_eq!(leadership.value(), "2");
}

#[tokio::test(start_paused = true)]
async fn leadership_ends_at_the_local_deadline_though_nobody_answers() {
    let model = Model::new();
    let (cut_off, other) = (Process::start(&model, 1), Process::start(&model, 2));
    let (session, other_session) = (cut_off.session().await, other.session().await);
    let leadership = election(&session).campaign("cut off").await.expect("nobody leads");
    let next = start({
        let election = election(&other_session);
        async move { election.campaign("next").await.expect("elected") }
    });
    pass(1.0).await;
    cut_off.faults.lock().fate = Some(Box::new(|_| Fate::Lost));
    let deadline = session.deadline();
    let lost = start(leadership.lost());
    cut_off.env().sleep_until(deadline - Duration::from_millis(2)).await;
    assert!(leadership.is_leader() && !lost.is_finished());
    cut_off.env().sleep_until(deadline).await;
    assert!(!leadership.is_leader());
    assert_eq!(lost.await.expect("resolves").kind(), ErrorKind::Fenced);
    assert!(!next.is_finished(), "known before anybody else leads");
    let next = next.await.expect("ends");
    cut_off.faults.lock().fate = None;
    assert_eq!(leadership.proclaim("I am back").await.expect_err("lost").kind(), ErrorKind::Fenced);
    assert_eq!(election(&other_session).leader().await.expect("answers").expect("next").value, "next");
    next.check().await.expect("leads");
}

type Values = Arc<parking_lot::Mutex<Vec<Option<String>>>>;

/// Collects what an observer sees.
fn collect(stream: impl Stream<Item = Result<Option<Leader>>> + Send + 'static) -> Values {
    let values = Values::default();
    let into = values.clone();
    start(async move {
        let mut stream = Box::pin(stream);
        while let Some(leader) = stream.next().await {
            into.lock().push(leader.expect("answers").map(|leader| leader.value));
        }
    });
    values
}

fn values(expected: &[&str]) -> Vec<Option<String>> {
    expected.iter().map(|value| (!value.is_empty()).then(|| (*value).to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_every_leader_and_all_that_it_proclaims() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (ann, bob) = (process.session().await, process.session().await);
    let seen = collect(election(&bob).observe());
    pass(0.1).await;
    let first = election(&ann).campaign("a").await.expect("nobody leads");
    let waiting = start({
        let election = election(&bob);
        async move { election.campaign("b").await.expect("elected") }
    });
    pass(0.1).await;
    for value in ["a1", "a2", "a2", "a3"] {
        first.proclaim(value).await.expect("leads");
    }
    let late = collect(election(&bob).observe());
    pass(0.1).await;
    first.resign().await.expect("leads");
    let second = waiting.await.expect("ends");
    second.proclaim("b1").await.expect("leads");
    second.resign().await.expect("leads");
    pass(0.1).await;
    assert_eq!(*seen.lock(), values(&["", "a", "a1", "a2", "a3", "b", "b1", ""]));
    assert_eq!(*late.lock(), values(&["a3", "b", "b1", ""]));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_takes_all_its_candidates_at_once() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let (doomed, next) = (process.session().await, process.session().await);
    let leadership = election(&doomed).campaign("doomed").await.expect("nobody leads");
    let also = start({
        let election = election(&doomed);
        async move { election.campaign("doomed too").await.map(drop) }
    });
    pass(0.1).await;
    let waiting = start({
        let election = election(&next);
        async move { election.campaign("next").await.expect("elected") }
    });
    pass(0.1).await;
    let seen = collect(election(&next).observe());
    pass(0.1).await;
    doomed.close().await.expect("closes");
    let next = waiting.await.expect("ends");
    assert!(also.await.expect("ends").is_err() && !leadership.is_leader());
    pass(0.1).await;
    assert_eq!(seen.lock().last(), Some(&Some("next".to_owned())));
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn an_observer_whose_watch_breaks_reads_again() {
    let breaks = [Fate::Slow(Duration::from_millis(20)), Fate::SlowAnswer(Duration::from_millis(20)), Fate::Refused];
    for fate in breaks {
        let model = Model::new();
        let (process, observer) = (Process::start(&model, 1), Process::start(&model, 2));
        let (session, observing) = (process.session().await, observer.session().await);
        let mut count = 0;
        observer.faults.lock().fate = Some(Box::new(move |request| {
            count += usize::from(matches!(request, Request::Watch));
            if matches!(request, Request::Watch) && count < 4 { fate } else { Fate::Arrives }
        }));
        let seen = collect(election(&observing).observe());
        for value in ["a", "b", "c"] {
            let leadership = election(&session).campaign(value).await.expect("nobody leads");
            pass(2.0).await;
            leadership.resign().await.expect("leads");
        }
        pass(2.0).await;
        let seen = seen.lock();
        assert!(seen.ends_with(&values(&["c", ""])), "{fate:?}: {seen:?}");
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{fate:?}: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_campaign_dropped_after_any_number_of_polls_leaves_no_candidate() {
    for contended in [false, true] {
        let mut polls = 0;
        loop {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let (session, other) = (process.session().await, process.session().await);
            if contended {
                let leadership = election(&other).campaign("other").await.expect("nobody leads");
                start(async move {
                    pass(0.1).await;
                    leadership.resign().await.expect("leads");
                });
            }
            process.faults.lock().latency = Duration::from_millis(2);
            let leadership = cancel_after(polls, election(&session).campaign("mine")).await;
            let is_last = leadership.is_some();
            drop(leadership);
            pass(1.0).await;
            assert_eq!(model.entries("election/"), [], "contended {contended}, dropped after {polls} polls");
            if is_last {
                break;
            }
            polls += 1;
        }
        assert!(polls > 2, "{polls} polls only");
    }
}

#[derive(Default)]
struct Seen {
    leading: usize,
    elected: usize,
    observed: usize,
    last_token: u64,
    violations: Vec<String>,
}

#[tokio::test(start_paused = true)]
async fn one_leads_at_a_time_and_observers_see_them_in_order_whatever_happens_to_the_requests() {
    let (mut elected, mut observed) = (0, 0);
    for seed in 0..25 {
        let seen = chaos(seed, &[]).await;
        assert_eq!(seen.violations, [""; 0], "seed {seed}");
        elected += seen.elected;
        observed += seen.observed;
    }
    assert!(elected > 25 * 10 && observed > elected / 2, "{elected} elected, {observed} observed");
}

#[tokio::test(start_paused = true)]
async fn the_oracle_catches_the_planted_bug() {
    let mut seed = 0;
    while chaos(seed, &[PlantedBug::SkipReverify]).await.violations.is_empty() {
        seed += 1;
        assert!(seed < 25, "SkipReverify was not caught in 25 seeds");
    }
}

async fn chaos(seed: u64, planted: &[PlantedBug]) -> Seen {
    let model = Model::new();
    let seen = Arc::new(parking_lot::Mutex::new(Seen::default()));
    let mut candidates = Vec::new();
    for number in 0..4 {
        let process = Process::start_with(&model, seed * 100 + number, planted);
        process.faults.lock().fate = Some(random_fates(process.env().clone()));
        process.faults.lock().latency = Duration::from_millis(1 + number);
        candidates.push(start(run_again_and_again(process, seen.clone())));
    }
    let observer = Process::start(&model, seed * 100 + 99);
    let session = observer.session().await;
    observer.faults.lock().fate = Some(random_fates(observer.env().clone()));
    let observing = start(observe_tokens(election(&session).observe(), seen.clone()));
    for candidate in candidates {
        candidate.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    observing.abort();
    std::mem::take(&mut *seen.lock())
}

async fn run_again_and_again(process: Process, seen: Arc<parking_lot::Mutex<Seen>>) {
    let env = process.env().clone();
    let end = env.now() + Duration::from_secs(120);
    while env.now() < end {
        let options = SessionOptions { ttl: Duration::from_secs(5), name: None };
        let opened = env.timeout(Duration::from_secs(5), Session::open(&process.kv, options)).await;
        let Some(Ok(session)) = opened else {
            pass(0.1).await;
            continue;
        };
        while session.is_alive() && env.now() < end {
            let patience = env.random_duration(Duration::from_secs(20));
            if let Ok(leadership) = election(&session).campaign_within("0", patience).await
                && leadership.is_leader()
            {
                lead(&leadership, &seen, &env).await;
            }
        }
    }
}

async fn lead(leadership: &Leadership, seen: &parking_lot::Mutex<Seen>, env: &Env) {
    {
        let seen = &mut *seen.lock();
        seen.elected += 1;
        seen.leading += 1;
        if seen.leading > 1 || leadership.token() <= seen.last_token {
            let (leading, last) = (seen.leading, seen.last_token);
            seen.violations.push(format!("{leading} lead, {leadership:?} after {last}"));
        }
        seen.last_token = leadership.token();
    }
    let work = async {
        for step in 1..4 {
            let _ = leadership.proclaim(step.to_string()).await;
            env.sleep(env.random_duration(Duration::from_millis(500))).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = leadership.lost() => {}
    }
    seen.lock().leading -= 1;
}

/// The leaders come in the order of their tokens, and each proclaims in its order.
async fn observe_tokens(stream: impl Stream<Item = Result<Option<Leader>>>, seen: Arc<parking_lot::Mutex<Seen>>) {
    let mut stream = std::pin::pin!(stream);
    let mut last = (0, String::new());
    while let Some(leader) = stream.next().await {
        let Some(leader) = leader.expect("asked again") else { continue };
        let seen = &mut *seen.lock();
        let now = (leader.token, leader.value);
        seen.observed += usize::from(now.0 > last.0);
        if now <= last {
            seen.violations.push(format!("{now:?} was observed after {last:?}"));
        }
        last = now;
    }
}

/// Futures of the public API can run on any thread.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: fn(&'static Election) -> T) {}
    send(|election| election.campaign(""));
    send(|election| election.leader());
    send(|election| election.observe());
    fn send_rw<T: Send>(_: fn(&'static coact_blocks::lock::RwLock) -> T) {}
    send_rw(|rwlock| rwlock.read());
    send_rw(|rwlock| rwlock.try_write());
    fn send_semaphore<T: Send>(_: fn(&'static coact_blocks::lock::Semaphore) -> T) {}
    send_semaphore(|semaphore| semaphore.acquire());
    send_semaphore(|semaphore| semaphore.resize(1));
    fn send_all<T: Send>(_: fn(&'static [coact_blocks::lock::Mutex]) -> T) {}
    send_all(coact_blocks::lock::acquire_all);
}
