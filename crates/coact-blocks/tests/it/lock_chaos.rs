//! Many processes, random faults, one oracle: what is fenced is never written out of order, and no two believe to hold.

use std::{sync::Arc, time::Duration};

use coact_blocks::lock::{Guard, Mutex};
use coact_core::{
    contract::kv::{Txn, Write},
    env::{Env, PlantedBug},
};

use crate::{
    lock::{barging, key},
    model::{Fate, FateOf, Model},
    world::{Process, pass, start},
};

const PROCESSES: u64 = 5;
const SEEDS: u64 = 60;

#[tokio::test(start_paused = true)]
async fn holders_exclude_each_other_whatever_happens_to_their_requests() {
    let mut grants = 0;
    for seed in 0..SEEDS {
        let found = run(seed, &[]).await;
        assert_eq!(found.violations, [""; 0], "seed {seed}");
        grants += found.grants;
    }
    assert!(grants as u64 > SEEDS * PROCESSES * 5, "only {grants} grants: the faults leave nothing to check");
}

#[tokio::test(start_paused = true)]
async fn the_oracle_catches_the_planted_bug() {
    for seed in 0..SEEDS {
        if !run(seed, &[PlantedBug::SkipReverify]).await.violations.is_empty() {
            return;
        }
    }
    panic!("SkipReverify was not caught in {SEEDS} seeds");
}

#[derive(Default)]
struct Findings {
    grants: usize,
    inside: usize,
    last_token: u64,
    violations: Vec<String>,
}

async fn run(seed: u64, planted: &[PlantedBug]) -> Findings {
    let model = Model::new();
    let oracle = Oracle::default();
    let mut workers = Vec::new();
    for number in 0..PROCESSES {
        let process = Process::start_with(&model, seed * 100 + number, planted);
        process.faults.lock().fate = Some(random_fates(process.env().clone()));
        process.faults.lock().latency = Duration::from_millis(1 + number);
        workers.push(start(work(process, oracle.clone(), seed % 2 == 1)));
    }
    for worker in workers {
        worker.await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    let mut findings = std::mem::take(&mut *oracle.0.lock());
    let written = model.history(&key("config/x"));
    let tokens: Vec<u64> = written.iter().map(|value| value.parse().expect("a token")).collect();
    if !tokens.is_sorted() {
        findings.violations.push(format!("written out of order: {tokens:?}"));
    }
    findings
}

/// Mostly well, and every now and then a storm in which nothing arrives.
pub(crate) fn random_fates(env: Env) -> FateOf {
    let mut storm_ends = env.now();
    Box::new(move |_| {
        let now = env.now();
        if now < storm_ends {
            return Fate::Lost;
        }
        let some_time = env.random_duration(Duration::from_secs(3));
        match env.random() % 300 {
            0 => {
                storm_ends = now + env.random_duration(Duration::from_secs(12));
                Fate::Lost
            }
            1..10 => Fate::AnswerLost,
            10..15 => Fate::Refused,
            15..20 => Fate::Late(some_time),
            20..25 => Fate::Slow(some_time),
            25..30 => Fate::SlowAnswer(some_time),
            _ => Fate::Arrives,
        }
    })
}

async fn work(process: Process, oracle: Oracle, barges: bool) {
    let env = process.env().clone();
    let end = env.now() + Duration::from_secs(120);
    while env.now() < end {
        let options = coact_blocks::SessionOptions { ttl: Duration::from_secs(5), name: None };
        let opened = env.timeout(Duration::from_secs(5), coact_blocks::Session::open(&process.kv, options)).await;
        let Some(Ok(session)) = opened else {
            pass(0.1).await;
            continue;
        };
        let mutex = if barges { barging(&session, "job") } else { Mutex::new(&session, "job").expect("valid") };
        while session.is_alive() && env.now() < end {
            let patience = env.random_duration(Duration::from_secs(20));
            if let Ok(guard) = mutex.acquire_within(patience).await {
                oracle.watch(guard, &env).await;
            }
            let pause = env.random_duration(Duration::from_millis(200));
            env.sleep(pause).await;
        }
    }
}

#[derive(Clone, Default)]
struct Oracle(Arc<parking_lot::Mutex<Findings>>);

impl Oracle {
    /// Does some work under the lock and checks what a lock promises.
    async fn watch(&self, guard: Guard, env: &Env) {
        if guard.is_held() {
            self.enter(guard.token());
            let working_time = env.random_duration(Duration::from_secs(2));
            let lost = env.timeout(working_time, guard.lost()).await;
            self.0.lock().inside -= 1;
            assert!(lost.is_none() || !guard.is_held());
        }
        let late = env.random_duration(Duration::from_secs(8));
        if env.random().is_multiple_of(4) {
            // A process that does not listen: writes when the lock may long be somebody else's.
            env.sleep(late).await;
        }
        let value = guard.token().to_string();
        let put = Write::Put { key: key("config/x"), value: value.into(), lease: None };
        let txn = Txn { writes: vec![put], ..Txn::default() };
        let _ = env.timeout(Duration::from_secs(1), guard.txn(txn)).await;
        match env.random() % 3 {
            0 => drop(guard),
            1 => drop(env.timeout(Duration::from_secs(4), guard.release()).await),
            _ => drop(guard.release().await),
        }
    }

    fn enter(&self, token: u64) {
        let findings = &mut *self.0.lock();
        findings.grants += 1;
        findings.inside += 1;
        if findings.inside > 1 {
            findings.violations.push(format!("{} hold it with token {token}", findings.inside));
        }
        if token <= findings.last_token {
            let last = findings.last_token;
            findings.violations.push(format!("token {token} was granted after {last}"));
        }
        findings.last_token = token;
    }
}
