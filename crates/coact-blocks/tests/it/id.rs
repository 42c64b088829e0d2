//! Ids: unique whatever clocks, leases and answers do.

use std::{collections::HashSet, time::Duration};

use coact_blocks::{
    Session,
    id::{self, Generator, Id, IdOptions, Layout},
};
use coact_core::{
    ErrorKind,
    env::{Env, PlantedBug},
    name::Realm,
};

use crate::{
    lock::key,
    model::{Fate, FateOf, Model, Request, VOLATILE},
    world::{Process, pass, start},
};

const HOUR_MS: i64 = 3_600_000;

fn layout(text: &str) -> IdOptions {
    IdOptions { layout: Layout::parse(text).expect("valid"), ..IdOptions::default() }
}

async fn open(session: &Session, options: IdOptions) -> Generator {
    Generator::open(session, options).await.expect("opens")
}

#[tokio::test(start_paused = true)]
async fn ids_increase_and_say_when_and_where_they_were_issued() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let generator = open(&session, IdOptions::default()).await;
    let mut last = Id::new(0);
    for _ in 0..50 {
        let id = generator.next().await.expect("issues");
        assert!(id > last);
        last = id;
        let decoded = generator.layout().decode(id);
        assert_eq!(decoded.worker, generator.worker());
        assert!(decoded.unix_ms.abs_diff(process.env().wall_ms()) <= 1, "{decoded:?}");
        pass(0.9).await;
    }
}

#[tokio::test(start_paused = true)]
async fn waits_for_the_next_millisecond_when_the_sequence_is_used_up() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let generator = open(&session, layout("41/2/1")).await;
    let started = process.env().now();
    let mut ids = vec![generator.next().await.expect("issues"), generator.next().await.expect("issues")];
    assert_eq!(generator.try_next(), None);
    ids.extend(generator.next_n(18).await.expect("issues"));
    assert!(ids.is_sorted_by(|a, b| a < b));
    let took = process.env().now() - started;
    assert!((9..=11).contains(&took.as_millis()), "20 ids at 2 a millisecond took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn takes_many_at_once() {
    let model = Model::new();
    let session = Process::start(&model, 1).session().await;
    let generator = open(&session, layout("41/2/20")).await;
    let ids = generator.next_n(1_000).await.expect("issues");
    assert_eq!(ids.len(), 1_000);
    let ids: Vec<_> = ids.collect();
    assert!(ids.windows(2).all(|pair| pair[0].get() + 1 == pair[1].get()));
    assert_eq!(generator.next_n(0).await.expect("issues").count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_wall_clock_may_step_an_hour_either_way() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    // Two ids a millisecond: a clock that stood still would soon run out of them.
    let generator = open(&session, layout("41/2/1")).await;
    let mut last = Id::new(0);
    for step in [0, -HOUR_MS, HOUR_MS, HOUR_MS, -2 * HOUR_MS] {
        process.step_wall(step);
        for _ in 0..1_000 {
            let before = process.env().now();
            let id = generator.next().await.expect("issues");
            assert!(id > last, "after a step of {step} ms");
            assert!(process.env().now() - before < Duration::from_millis(5), "no stall after a step of {step} ms");
            last = id;
            pass(0.01).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_given_back_is_used_again_at_once() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let mut last = Id::new(0);
    for _ in 0..20 {
        let generator = open(&session, IdOptions::default()).await;
        pass(0.001).await;
        let before = process.env().now();
        let id = generator.next().await.expect("issues");
        assert!(id > last && process.env().now() - before < Duration::from_millis(5));
        last = id;
        generator.close().await.expect("closes");
        assert_eq!(generator.try_next(), None);
        assert_eq!(generator.next().await.expect_err("closed").kind(), ErrorKind::Closed);
        pass(0.002).await;
    }
    let workers = id::workers(&process.kv, &Realm::default(), "main").await.expect("answers");
    assert_eq!(workers.len(), 1, "{workers:?}");
    assert_eq!((workers[0].epoch, &workers[0].used_by, workers[0].layout), (20, &None, Some(Layout::STD)));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_generator_gives_its_number_back_in_the_background() {
    let model = Model::new();
    let session = Process::start(&model, 1).session().await;
    drop(open(&session, IdOptions::default()).await);
    pass(0.1).await;
    assert_eq!(model.entries("id-hint/"), []);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_a_crashed_process_continues_after_its_window() {
    let model = Model::new();
    let (crashed, next) = (Process::start(&model, 1), Process::start(&model, 2));
    let session = crashed.session().await;
    let options = layout("41/1/12");
    let generator = open(&session, options.clone()).await;
    let other = open(&session, options.clone()).await;
    let last = generator.next().await.expect("issues").max(other.next().await.expect("issues"));
    crashed.crash();
    let session = next.session().await;
    let error = Generator::open(&session, options.clone()).await.expect_err("the leases still live");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!(error.to_string(), "id space main has no free worker number: all 2 are in use or were a moment ago");
    pass(10.1).await;
    let generator = open(&session, options).await;
    assert!(generator.next().await.expect("issues") > last);
}

#[tokio::test(start_paused = true)]
async fn a_window_that_ended_a_moment_ago_is_waited_for() {
    let model = Model::new();
    let (early, next) = (Process::start(&model, 1), Process::start(&model, 2));
    let session = early.session().await;
    let options = layout("41/1/12");
    let both = [open(&session, options.clone()).await, open(&session, options.clone()).await];
    early.crash();
    model.end_lease(session.lease());
    let generator = open(&next.session().await, options).await;
    let before = next.env().now();
    let id = generator.next().await.expect("issues");
    assert!(both.iter().filter_map(Generator::try_next).all(|earlier| earlier != id));
    let waited = (next.env().now() - before).as_millis();
    assert!((2_900..=3_010).contains(&waited), "{waited} ms");
}

#[tokio::test(start_paused = true)]
async fn who_loses_its_number_claims_another_and_goes_on_increasing() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let generator = open(&session, IdOptions::default()).await;
    let mut last = generator.next().await.expect("issues");
    let mut workers = HashSet::from([generator.worker()]);
    for how in ["another owner", "deleted", "a clone of this machine", "another owner", "another owner"] {
        let record = model.entries(&format!("id/main/{:05}", generator.worker())).remove(0);
        let mut value: serde_json::Value = serde_json::from_slice(&record.value).expect("JSON");
        value["until"] = (value["until"].as_u64().expect("a number") + 1).into();
        match how {
            "another owner" => {
                value["owner"] = "somebody".into();
                process.kv.put(&record.key, value.to_string(), None).await.expect("put");
            }
            "deleted" => model.delete(&record.key),
            _ => {
                process.kv.put(&record.key, value.to_string(), None).await.expect("put");
            }
        }
        for _ in 0..4_000 {
            // Again and again in the millisecond in which the loss is noticed.
            for _ in 0..5 {
                let id = generator.next().await.expect("issues");
                assert!(id > last, "{how}");
                last = id;
                tokio::task::yield_now().await;
            }
            pass(0.001).await;
        }
        assert!(workers.insert(generator.worker()), "a new number after {how}");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_lost_on_the_way_are_found_again() {
    for lost in 0..8 {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let session = process.session().await;
        let mut count = 0;
        process.faults.lock().fate = Some(Box::new(move |request| {
            let is_txn = matches!(request, Request::Txn(_));
            count += usize::from(is_txn);
            if is_txn && count == lost + 1 { Fate::AnswerLost } else { Fate::Arrives }
        }));
        let generator = open(&session, IdOptions::default()).await;
        let worker = generator.worker();
        for _ in 0..100 {
            generator.next().await.expect("issues");
            pass(0.1).await;
        }
        assert_eq!(generator.worker(), worker, "transaction {lost}");
        generator.close().await.expect("closes");
        assert_eq!(model.entries("id/main/0").len(), 1);
        assert_eq!(model.entries("id-hint/"), []);
    }
}

#[tokio::test(start_paused = true)]
async fn stops_at_the_end_of_its_window_when_the_store_is_away_and_goes_on_when_it_is_back() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let generator = open(&session, IdOptions::default()).await;
    process.faults.lock().fate = Some(Box::new(|_| Fate::Refused));
    pass(1.0).await;
    let last = generator.next().await.expect("still inside the window");
    pass(4.0).await;
    assert_eq!(generator.try_next(), None);
    assert_eq!(generator.next().await.expect_err("no window").kind(), ErrorKind::Unavailable);
    process.faults.lock().fate = None;
    let recovered = loop {
        if let Ok(id) = generator.next().await {
            break id;
        }
    };
    assert!(recovered > last);
    assert!(session.is_alive());
}

#[tokio::test(start_paused = true)]
async fn one_space_has_one_layout() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    process.faults.lock().latency = Duration::from_millis(1);
    let both =
        futures::future::join(Generator::open(&session, layout("std")), Generator::open(&session, layout("js53")));
    let (std, js53) = both.await;
    let error = match (std, js53) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        both => panic!("exactly one agrees with itself: {both:?}"),
    };
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        error.to_string(),
        "id space main is used with layout 41/10/12, not 41/6/6: its ids would collide; use the same layout or another space"
    );
    open(&session, IdOptions { space: "web".to_owned(), ..layout("js53") }).await;
}

#[tokio::test(start_paused = true)]
async fn a_number_that_a_wrong_clock_took_far_into_the_future_is_left_alone() {
    let model = Model::new();
    let (wrong, right) = (Process::start(&model, 1), Process::start(&model, 2));
    wrong.step_wall(HOUR_MS);
    let session = wrong.session().await;
    let options = layout("41/1/12");
    let first = open(&session, options.clone()).await;
    let taken = first.worker();
    wrong.crash();
    model.end_lease(session.lease());
    let session = right.session().await;
    let generator = open(&session, options.clone()).await;
    assert_ne!(generator.worker(), taken);
    let other = open(&wrong.session().await, IdOptions { space: "other".to_owned(), ..options.clone() }).await;
    drop((generator, other));
    pass(0.1).await;
    let used = model.entries("id/main/0").into_iter().find(|entry| !entry.key.name().ends_with(&taken.to_string()));
    model.delete(&used.expect("two records").key);
    let blocked = open(&session, options.clone()).await;
    let error = Generator::open(&session, options).await.expect_err("poisoned");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let expected =
        format!("id space main has no free worker number: 1 of 2 are reserved into the future, worker {taken} for 360");
    assert!(error.to_string().starts_with(&expected), "{error}");
    drop(blocked);
}

#[tokio::test(start_paused = true)]
async fn lists_who_uses_which_number() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let realm = Realm::default();
    assert_eq!(id::workers(&process.kv, &realm, "main").await.expect("answers"), []);
    let ann = open(&process.named("ann").await, IdOptions::default()).await;
    let bob = open(&process.named("bob").await, IdOptions::default()).await;
    let workers = id::workers(&process.kv, &realm, "main").await.expect("answers");
    let mut expected = [(ann.worker(), Some("ann".to_owned())), (bob.worker(), Some("bob".to_owned()))];
    expected.sort();
    let found: Vec<_> = workers.iter().map(|info| (info.worker, info.used_by.clone())).collect();
    assert_eq!(found, expected);
    assert!(workers[0].until_ms > process.env().wall_ms());
    process.kv.put(&key("id/main/00007"), "rubbish", None).await.expect("put");
    let error = id::workers(&process.kv, &realm, "main").await.expect_err("corrupt");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().starts_with("id/main/00007 does not hold what the id block wrote"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn refuses_weak_stores_and_options_out_of_bounds() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let session = process.session().await;
    let message = async |options| Generator::open(&session, options).await.expect_err("refused").to_string();
    let window = |ms| IdOptions { window: Duration::from_millis(ms), ..IdOptions::default() };
    assert_eq!(message(window(99)).await, "an id window of 99ms is not allowed: use 100ms to 30s");
    assert_eq!(message(window(30_001)).await, "an id window of 30.001s is not allowed: use 100ms to 30s");
    process.faults.lock().guarantees = Some(&VOLATILE);
    assert!(message(IdOptions::default()).await.starts_with("id needs writes synced to disk"));
    process.faults.lock().guarantees = None;
    process.step_wall(-5 * 365 * 24 * HOUR_MS);
    assert_eq!(
        message(IdOptions::default()).await,
        "the wall clock is before 2024, where every id layout begins: set it"
    );
}

#[tokio::test(start_paused = true)]
async fn no_id_is_issued_twice_whatever_happens() {
    let mut issued = 0;
    for seed in 0..SEEDS {
        let ids = run(seed, &[]).await;
        let distinct: HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "seed {seed} has duplicates");
        issued += ids.len();
    }
    assert!(issued > 1_000 * SEEDS as usize, "only {issued} ids: the faults leave nothing to check");
}

#[tokio::test(start_paused = true)]
async fn the_planted_bug_that_trusts_the_lease_is_caught() {
    for seed in 0..SEEDS {
        let ids = run(seed, &[PlantedBug::TrustLeaseForId]).await;
        let distinct: HashSet<_> = ids.iter().collect();
        if distinct.len() < ids.len() {
            return;
        }
    }
    panic!("TrustLeaseForId was not caught in {SEEDS} seeds");
}

const SEEDS: u64 = 40;

/// Four processes on four numbers, with clocks that step, leases that end early, lost answers and crashes.
async fn run(seed: u64, planted: &[PlantedBug]) -> Vec<Id> {
    let model = Model::new();
    let mut workers = Vec::new();
    for number in 0..4 {
        let (model, planted) = (model.clone(), planted.to_vec());
        workers.push(start(async move {
            let mut ids = Vec::new();
            for life in 0..6 {
                let process = Process::start_with(&model, seed * 1_000 + number * 100 + life, &planted);
                live(&process, &model, &mut ids).await;
            }
            ids
        }));
    }
    let mut ids = Vec::new();
    for worker in workers {
        ids.extend(worker.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}")));
    }
    ids
}

/// One life of a process, until it closes or crashes.
async fn live(process: &Process, model: &Model, ids: &mut Vec<Id>) {
    let env = process.env().clone();
    process.faults.lock().latency = Duration::from_millis(1);
    process.faults.lock().fate = Some(random_fates(env.clone()));
    process.step_wall(env.random() as i64 % 2_000);
    let options = coact_blocks::SessionOptions { ttl: Duration::from_secs(1), name: None };
    let Ok(session) = Session::open(&process.kv, options).await else { return };
    let options = IdOptions { window: Duration::from_millis(300), ..layout("41/2/4") };
    let Some(Ok(generator)) = env.timeout(Duration::from_secs(5), Generator::open(&session, options)).await else {
        pass(1.0).await;
        return;
    };
    let mut last = Id::new(0);
    for _ in 0..100 + env.random() % 400 {
        match env.random() % 1_000 {
            0..2 => process.step_wall(if env.random().is_multiple_of(2) { HOUR_MS } else { -HOUR_MS }),
            2..20 => process.step_wall(env.random() as i64 % 500),
            20..26 => model.end_lease(session.lease()),
            26 => return process.crash(),
            _ => {}
        }
        let pause = env.random_duration(Duration::from_millis(10));
        let taken = env.timeout(Duration::from_secs(2), generator.next()).await;
        match taken {
            Some(Ok(id)) => {
                assert!(id > last, "{id} after {last}");
                last = id;
                ids.push(id);
            }
            Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {}
            Some(Err(_)) | None => break,
        }
        env.sleep(pause).await;
    }
    if env.random().is_multiple_of(2) {
        let _ = generator.close().await;
    }
    let _ = session.close().await;
}

fn random_fates(env: Env) -> FateOf {
    Box::new(move |_| {
        let some_time = env.random_duration(Duration::from_millis(800));
        match env.random() % 40 {
            0 => Fate::AnswerLost,
            1 => Fate::Refused,
            2 => Fate::Late(some_time),
            3 => Fate::Slow(some_time),
            4 => Fate::SlowAnswer(some_time),
            _ => Fate::Arrives,
        }
    })
}

#[test]
fn ids_are_strings_in_json() {
    let id = Id::new(u64::MAX >> 1);
    assert_eq!(serde_json::to_string(&id).expect("serializes"), "\"9223372036854775807\"");
    assert_eq!(serde_json::from_str::<Id>("\"42\"").expect("parses"), Id::new(42));
    assert!(serde_json::from_str::<Id>("42").is_err(), "a number may have been rounded");
    let error = "4x".parse::<Id>().expect_err("no number").to_string();
    assert_eq!(error, "id \"4x\" is no number from 0 to 18446744073709551615");
}
