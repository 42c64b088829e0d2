//! The same operation asked twice, and grants that outlive their guards.

use std::{sync::Arc, time::Duration};

use coact_blocks::{
    Session, SessionOptions,
    lock::{Election, Mutex, Operation, RwLock, Semaphore, Ticket, TicketKind},
};
use coact_core::{ErrorKind, Result, contract::kv::Entry, env::Env, name::Realm};

use crate::{
    lock::barging,
    lock_chaos::random_fates,
    lock_faults::nth_txn,
    model::{Fate, Model, Request},
    world::{Process, cancel_after, pass, start},
};

const KINDS: [TicketKind; 6] = [
    TicketKind::Mutex,
    TicketKind::BargingMutex,
    TicketKind::Read,
    TicketKind::Write,
    TicketKind::Permit,
    TicketKind::Leadership,
];

/// Every grant of a lock, but not the semaphore's number of permits.
fn grants(model: &Model) -> Vec<Entry> {
    model.entries("").into_iter().filter(|entry| entry.lease.is_some()).collect()
}

fn operation(text: &str) -> Operation {
    Operation::from_idempotency_key(text)
}

/// Acquires whatever the kind says, and hands back the ticket.
pub(crate) async fn acquire_as(kind: TicketKind, session: &Session, operation: Operation) -> Result<Ticket> {
    let limit = Some(Duration::from_secs(5));
    let rwlock = RwLock::new(session, "job")?;
    Ok(match kind {
        TicketKind::Mutex => Mutex::new(session, "job")?.acquire_as(operation, limit).await?.detach(),
        TicketKind::BargingMutex => barging(session, "job").acquire_as(operation, limit).await?.detach(),
        TicketKind::Read => rwlock.read_as(operation, limit).await?.detach(),
        TicketKind::Write => rwlock.write_as(operation, limit).await?.detach(),
        TicketKind::Permit => Semaphore::new(session, "job", 1)?.acquire_as(operation, limit).await?.detach(),
        TicketKind::Leadership => Election::new(session, "job")?.campaign_as(operation, "a", limit).await?.detach(),
        other => panic!("{other:?} is not acquired by an operation"),
    })
}

#[tokio::test(start_paused = true)]
async fn the_same_operation_asked_twice_is_one_grant() {
    for kind in KINDS {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let first = acquire_as(kind, &session, operation("order 17")).await.expect("free");
        let again = acquire_as(kind, &session, operation("order 17")).await.expect("the same");
        assert_eq!(first, again);
        assert_eq!(first.kind, kind);
        assert_eq!(grants(&model).len(), 1, "{kind:?}");
        first.check(&process.kv).await.expect("held");
        if kind != TicketKind::Read {
            let error = acquire_as(kind, &session, operation("order 18")).await.expect_err("held by the other");
            assert_eq!(error.kind(), ErrorKind::Conflict, "{kind:?}");
        }
        assert!(again.release(&process.kv).await.expect("answers"));
        assert!(!first.release(&process.kv).await.expect("answers"), "it had gone");
        assert_eq!(first.check(&process.kv).await.expect_err("gone").kind(), ErrorKind::Fenced);
        let next = acquire_as(kind, &session, operation("order 18")).await.expect("free");
        assert!(next.token > first.token);
    }
}

#[tokio::test(start_paused = true)]
async fn two_calls_of_one_operation_wait_for_one_grant() {
    for kind in [TicketKind::Mutex, TicketKind::Write, TicketKind::Permit, TicketKind::Leadership] {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let holder = acquire_as(kind, &session, operation("holder")).await.expect("free");
        let calls: Vec<_> = (0..2)
            .map(|_| {
                let session = session.clone();
                start(async move { acquire_as(kind, &session, operation("order 17")).await.expect("granted") })
            })
            .collect();
        pass(1.0).await;
        assert_eq!(grants(&model).len(), 2, "{kind:?}: the holder and one that waits");
        assert!(holder.release(&process.kv).await.expect("answers"));
        let mut tickets = Vec::new();
        for call in calls {
            tickets.push(call.await.expect("ends"));
        }
        assert_eq!(tickets[0], tickets[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_at_any_poll_never_takes_the_grant_from_the_next_one() {
    for kind in KINDS {
        for lost in [None, Some(Fate::AnswerLost), Some(Fate::Late(Duration::from_secs(1)))] {
            let mut polls = 0;
            loop {
                let model = Model::new();
                let process = Process::start(&model, 1);
                let session = process.session().await;
                process.faults.lock().latency = Duration::from_millis(2);
                process.faults.lock().fate = lost.and_then(|fate| nth_txn(0, fate));
                let dropped = cancel_after(polls, acquire_as(kind, &session, operation("order 17"))).await;
                let ticket = acquire_as(kind, &session, operation("order 17")).await.expect("granted");
                // Whatever the dropped call withdraws, it does so by then.
                pass(25.0).await;
                ticket.check(&process.kv).await.unwrap_or_else(|lost_it| {
                    panic!("{kind:?}, first request {lost:?}, dropped after {polls} polls: {lost_it}")
                });
                assert_eq!(grants(&model).len(), 1);
                assert!(ticket.release(&process.kv).await.expect("answers"));
                pass(25.0).await;
                assert_eq!(grants(&model), [], "{kind:?}, {lost:?}, {polls} polls");
                if dropped.is_some() {
                    break;
                }
                polls += 1;
            }
            assert!(polls > 1, "{polls} polls only");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn asking_again_for_what_was_granted_never_takes_it_away() {
    for kind in KINDS {
        let mut polls = 0;
        loop {
            let model = Model::new();
            let process = Process::start(&model, 1);
            let session = process.session().await;
            let ticket = acquire_as(kind, &session, operation("order 17")).await.expect("free");
            process.faults.lock().latency = Duration::from_millis(2);
            let again = cancel_after(polls, acquire_as(kind, &session, operation("order 17"))).await;
            pass(1.0).await;
            ticket.check(&process.kv).await.unwrap_or_else(|lost_it| panic!("{kind:?}, {polls} polls: {lost_it}"));
            if let Some(again) = again {
                assert_eq!(again.expect("the same"), ticket);
                break;
            }
            polls += 1;
        }
        assert!(polls > 3, "{polls} polls only");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_while_it_waits_leaves_nothing() {
    for kind in KINDS {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let holder = if kind == TicketKind::Read { TicketKind::Write } else { kind };
        let held = acquire_as(holder, &session, operation("holder")).await.expect("free");
        process.env().timeout(Duration::from_secs(1), acquire_as(kind, &session, operation("order 17"))).await;
        pass(1.0).await;
        assert_eq!(grants(&model).len(), 1, "{kind:?}");
        held.check(&process.kv).await.expect("the holder's stays");
    }
}

#[tokio::test(start_paused = true)]
async fn what_arrives_late_after_a_detached_grant_is_swept_away() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    process.faults.lock().fate = nth_txn(0, Fate::Late(Duration::from_secs(2)));
    let ticket = acquire_as(TicketKind::Mutex, &session, operation("order 17")).await.expect("by the second request");
    assert!(ticket.release(&process.kv).await.expect("answers"));
    pass(2.1).await;
    assert_eq!(model.entries("lock/").len(), 1, "the first request has arrived");
    pass(10.0).await;
    assert_eq!(model.entries("lock/"), []);
}

#[tokio::test(start_paused = true)]
async fn an_operation_belongs_to_one_session() {
    for kind in KINDS {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let (ann, bob) = (process.named("ann").await, process.named("bob").await);
        let ticket = acquire_as(kind, &ann, operation("order 17")).await.expect("free");
        let error = acquire_as(kind, &bob, operation("order 17")).await.expect_err("ann's");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().ends_with("job is of another session, ann: use another one"), "{error}");
        ticket.check(&process.kv).await.expect("still ann's");
    }
}

#[tokio::test(start_paused = true)]
async fn another_process_rebuilds_a_ticket_and_releases_it() {
    for kind in KINDS {
        let model = Model::new();
        let (one, other) = (Process::start(&model, 1), Process::start(&model, 2));
        let session = one.session().await;
        let ticket = acquire_as(kind, &session, operation("order 17")).await.expect("free");
        let text = serde_json::to_string(&ticket).expect("json");
        assert_eq!(serde_json::from_str::<Ticket>(&text).expect("json"), ticket);
        let realm = Realm::default();
        let rebuilt = Ticket::rebuild(kind, &realm, "job", operation("order 17"), ticket.token).expect("valid");
        assert_eq!(rebuilt, ticket);
        let stale = Ticket::rebuild(kind, &realm, "job", operation("order 17"), ticket.token + 1).expect("valid");
        assert!(!stale.release(&other.kv).await.expect("answers"), "another token is another grant");
        other.faults.lock().fate = nth_txn(0, Fate::AnswerLost);
        assert!(rebuilt.release(&other.kv).await.expect("answers"), "by the request whose answer was lost");
        assert_eq!(grants(&model), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_ticket_ends_with_its_session_and_says_when_the_store_is_away() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let ticket = acquire_as(TicketKind::Mutex, &session, operation("order 17")).await.expect("free");
    process.faults.lock().fate =
        Some(Box::new(|request| if matches!(request, Request::Renew) { Fate::Arrives } else { Fate::Refused }));
    assert_eq!(ticket.release(&process.kv).await.expect_err("away").kind(), ErrorKind::Unavailable);
    process.faults.lock().fate = None;
    session.close().await.expect("closes");
    assert_eq!(ticket.check(&process.kv).await.expect_err("over").kind(), ErrorKind::Fenced);
}

#[test]
fn tickets_and_operations_are_checked() {
    // printf 'order 17' | sha256sum | cut -c 1-32
    assert_eq!(operation("order 17").to_string(), "0bcc920e3938c1b86e3483fc9888c6d6");
    assert_ne!(operation("order 17"), operation("order 18"));
    for bad in ["", "17", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33), "+0000000000000000000000000000000"] {
        let error = bad.parse::<Operation>().expect_err("not 32 digits");
        assert_eq!(error.to_string(), format!("operation {bad:?} is not allowed: use 32 of 0-9 a-f"));
    }
    let rebuild = |kind, name, token| Ticket::rebuild(kind, &Realm::default(), name, operation("x"), token);
    assert!(rebuild(TicketKind::Mutex, "job", 0).expect_err("token 0").to_string().ends_with("tokens begin at 1"));
    assert_eq!(rebuild(TicketKind::Write, "a//b", 1).expect_err("no dir").kind(), ErrorKind::Invalid);
    assert_eq!(rebuild(TicketKind::Downgraded, "job", 1).expect_err("unknown entry").kind(), ErrorKind::Invalid);
    let secret = r#"{"kind":"mutex","realm":"main","name":"../x","operation":"config","token":1,"created":1}"#;
    assert!(serde_json::from_str::<Ticket>(secret).is_err(), "a ticket names an operation, never any key");
}

#[derive(Default)]
struct Seen {
    inside: usize,
    grants: usize,
    repeated: usize,
    last_token: u64,
    violations: Vec<String>,
}

/// Callers that lose patience and ask again with the same operation, on connections that lose requests and answers.
#[tokio::test(start_paused = true)]
async fn callers_that_ask_again_and_again_exclude_each_other() {
    for kind in [TicketKind::Mutex, TicketKind::BargingMutex, TicketKind::Write, TicketKind::Permit] {
        let (mut grants, mut repeated) = (0, 0);
        for seed in 0..12 {
            let model = Model::new();
            let seen = Arc::new(parking_lot::Mutex::new(Seen::default()));
            let mut callers = Vec::new();
            for number in 0..4 {
                let process = Process::start(&model, seed * 100 + number);
                process.faults.lock().fate = Some(random_fates(process.env().clone()));
                process.faults.lock().latency = Duration::from_millis(1 + number);
                callers.push(start(call_again_and_again(kind, process, number, seen.clone())));
            }
            for caller in callers {
                caller.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
            }
            let seen = seen.lock();
            assert_eq!(seen.violations, [""; 0], "{kind:?}, seed {seed}");
            grants += seen.grants;
            repeated += seen.repeated;
        }
        assert!(grants > 12 * 10 && repeated > 12, "{kind:?}: {grants} grants, {repeated} asked for again");
    }
}

async fn call_again_and_again(kind: TicketKind, process: Process, number: u64, seen: Arc<parking_lot::Mutex<Seen>>) {
    let env = process.env().clone();
    let end = env.now() + Duration::from_secs(90);
    let mut calls = 0;
    while env.now() < end {
        let options = SessionOptions { ttl: Duration::from_secs(5), name: None };
        let opened = env.timeout(Duration::from_secs(5), Session::open(&process.kv, options)).await;
        let Some(Ok(session)) = opened else {
            pass(0.1).await;
            continue;
        };
        while session.is_alive() && env.now() < end {
            calls += 1;
            let operation = operation(&format!("{number} calls {calls}"));
            let mut asked = 0;
            let ticket = loop {
                asked += 1;
                let patience = env.random_duration(Duration::from_secs(2));
                match env.timeout(patience, acquire_as(kind, &session, operation)).await {
                    Some(Ok(ticket)) => break Some(ticket),
                    _ if asked > 5 || !session.is_alive() => break None,
                    _ => {}
                }
            };
            // What was granted to a call whose answer nobody heard is granted again.
            let again = env.timeout(Duration::from_secs(2), acquire_as(kind, &session, operation)).await;
            if let (Some(ticket), Some(Ok(again))) = (&ticket, &again)
                && session.is_alive()
            {
                let mut seen = seen.lock();
                seen.repeated += 1;
                if ticket != again {
                    seen.violations.push(format!("{ticket} was {again} the second time"));
                }
            }
            let Some(ticket) = again.and_then(Result::ok).or(ticket) else { continue };
            use_ticket(&ticket, &session, &seen, &env).await;
            let released = ticket.release(&process.kv).await;
            if released.is_err() {
                // The session's end releases it.
                break;
            }
        }
    }
}

async fn use_ticket(ticket: &Ticket, session: &Session, seen: &parking_lot::Mutex<Seen>, env: &Env) {
    if !session.is_alive() {
        return;
    }
    {
        let seen = &mut *seen.lock();
        seen.grants += 1;
        seen.inside += 1;
        if seen.inside > 1 {
            seen.violations.push(format!("{} hold it, one {ticket}", seen.inside));
        }
        if ticket.token <= seen.last_token {
            seen.violations.push(format!("{ticket} was granted after {}", seen.last_token));
        }
        seen.last_token = ticket.token;
    }
    let _ = env.timeout(env.random_duration(Duration::from_secs(1)), session.lost()).await;
    seen.lock().inside -= 1;
}
