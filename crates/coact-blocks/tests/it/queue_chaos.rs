//! Workers under faults: whatever is lost, late or slow, what the store and the handlers saw fits together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use coact_blocks::queue::{Control, Outcome, Queue, Worker, WorkerOptions};
use coact_core::{
    Error,
    contract::queue::{JobId, JobState, NewJob, QueueSpec, Token},
};
use parking_lot::Mutex;

use crate::{
    model::{Fate, Model},
    queues::{Connection, Event, Queues},
    world::{Process, pass},
};

const JOBS: u64 = 60;
const KEYS: u64 = 4;
const LEASE: Duration = Duration::from_secs(3);

/// What is wrong with a history: each acknowledgement must be the last claim's, and jobs of one order key must not
/// overlap or overtake each other.
fn faults_of(history: &[Event]) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut last, mut done) = (BTreeMap::<JobId, Token>::new(), BTreeSet::new());
    let (mut highest, mut order) = (Token(0), BTreeMap::new());
    for event in history {
        match event {
            Event::Claimed(claimed) => {
                if claimed.token <= highest {
                    faults.push(format!("token {:?} came after {highest:?}", claimed.token));
                }
                highest = claimed.token;
                last.insert(claimed.id, claimed.token);
                let Some(key) = claimed.job.order_key.clone() else { continue };
                let before = order.insert(key, claimed.id).unwrap_or(claimed.id);
                if before > claimed.id || (before != claimed.id && !done.contains(&before)) {
                    faults.push(format!("job {} was claimed before job {before} of its key was done", claimed.id));
                }
            }
            Event::Acked(receipt) => {
                if last.get(&receipt.id) != Some(&receipt.token) {
                    faults.push(format!("job {} was done by a claim that was over: {:?}", receipt.id, receipt.token));
                }
                if !done.insert(receipt.id) {
                    faults.push(format!("job {} was done twice", receipt.id));
                }
            }
        }
    }
    faults
}

struct Run {
    history: Vec<Event>,
    /// Jobs whose handler came to its end, by job.
    ended: BTreeSet<JobId>,
    /// Writes guarded by tokens that came after one with a higher token, as a check of `Context::check`.
    late: Vec<(JobId, Token)>,
    left: u64,
}

/// Three workers on connections that fail, and one of them crashes, until all jobs are done.
async fn run(seed: u64, takes_any_token: bool) -> Run {
    let queues = Queues::new();
    let main = Process::start(&Model::new(), seed);
    let queue = open(&queues.connect(&main)).await;
    if takes_any_token {
        queues.plant_any_token();
    }
    let keyed = |number: u64| NewJob {
        order_key: (!number.is_multiple_of(3)).then(|| format!("key-{}", number % KEYS).into()),
        ..NewJob::new(number.to_string())
    };
    queue.push_all((0..JOBS).map(keyed).collect()).await.expect("enqueued");

    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut controls = Vec::new();
    let mut processes = Vec::new();
    for number in 1..=3 {
        let process = Process::start(&Model::new(), seed * 10 + number);
        let connection = queues.connect(&process);
        controls.push(work(&process, &connection, &seen).await);
        fail(&process, &connection);
        processes.push((process, connection));
    }
    pass(2.0).await;
    processes[0].0.crash();
    let mut rounds = 0;
    while queue.stats().await.expect("answers").done < JOBS && rounds < 3000 {
        pass(0.5).await;
        rounds += 1;
    }
    controls.iter().for_each(Control::stop);
    pass(60.0).await;
    let mut left = 0;
    for state in JobState::ALL {
        let jobs = queue.handle().jobs(queue.name(), state, None, 1000).await.expect("answers");
        left += jobs.len() as u64;
    }
    let seen = std::mem::take(&mut *seen.lock());
    Run { history: queues.history(queue.name()), ended: seen.ended, late: seen.late, left }
}

#[derive(Default)]
struct Seen {
    highest: BTreeMap<JobId, Token>,
    ended: BTreeSet<JobId>,
    late: Vec<(JobId, Token)>,
}

async fn open(connection: &Connection) -> Queue {
    let spec = QueueSpec { max_attempts: 1000, ..QueueSpec::default() };
    Queue::open(&connection.handle, "chaos", spec).await.expect("opens")
}

/// Starts a worker whose handlers take up to two leases, and fail now and then.
async fn work(process: &Process, connection: &Connection, seen: &Arc<Mutex<Seen>>) -> Control {
    let queue = open(connection).await;
    let options = WorkerOptions {
        concurrency: 4,
        lease: LEASE,
        retry_first: Duration::from_millis(100),
        grace: Duration::from_secs(10),
        ..WorkerOptions::default()
    };
    let worker = Worker::new(&queue, options).expect("allowed");
    let (control, env, seen) = (worker.control(), process.env().clone(), seen.clone());
    let run = worker.run(move |context| {
        let (env, seen) = (env.clone(), seen.clone());
        async move {
            let (id, token) = (context.id(), context.token());
            let highest = *seen.lock().highest.entry(id).and_modify(|high| *high = token.max(*high)).or_insert(token);
            for _ in 0..4 {
                env.sleep(env.random_duration(LEASE / 2)).await;
                if context.check().is_ok() && token < seen.lock().highest[&id] && highest == token {
                    seen.lock().late.push((id, token));
                }
            }
            if env.random().is_multiple_of(5) {
                return Err(Error::invalid("bad luck"));
            }
            seen.lock().ended.insert(id);
            Ok(Outcome::Done)
        }
    });
    process.env().spawn(async move {
        // What it says at the end is in the history too.
        let _ = run.await;
    });
    control
}

fn fail(process: &Process, connection: &Connection) {
    let env = process.env().clone();
    connection.fate(move |_| match env.random() % 20 {
        0 => Fate::Refused,
        1 => Fate::AnswerLost,
        2 => Fate::Late(env.random_duration(LEASE * 2)),
        3 => Fate::Slow(env.random_duration(LEASE * 2)),
        4 => Fate::SlowAnswer(env.random_duration(LEASE * 2)),
        5 => Fate::Lost,
        _ => Fate::Arrives,
    });
}

#[tokio::test(start_paused = true)]
async fn every_job_is_done_and_by_its_last_claim() {
    for seed in 100..120 {
        let run = run(seed, false).await;
        assert_eq!(faults_of(&run.history), Vec::<String>::new(), "seed {seed}");
        assert_eq!(run.left, 0, "seed {seed}");
        let done: BTreeSet<_> = run.history.iter().filter_map(done).collect();
        assert_eq!(done.len() as u64, JOBS, "seed {seed}");
        assert!(done.is_subset(&run.ended), "seed {seed}: done without its handler");
        // Whoever asked, and was told that the claim lives, was right.
        assert_eq!(run.late, [], "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_any_token_is_caught() {
    let mut caught = 0;
    for seed in 100..110 {
        caught += usize::from(!faults_of(&run(seed, true).await.history).is_empty());
    }
    assert!(caught > 0);
}

fn done(event: &Event) -> Option<JobId> {
    match event {
        Event::Acked(receipt) => Some(receipt.id),
        Event::Claimed(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_leaves_its_jobs_to_others() {
    let queues = Queues::new();
    let (first, second) = (Process::start(&Model::new(), 1), Process::start(&Model::new(), 2));
    let queue = open(&queues.connect(&second)).await;
    queue.push(NewJob::new("1")).await.expect("enqueued");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let control = work(&first, &queues.connect(&first), &seen).await;
    while control.stats().claimed == 0 {
        pass(0.01).await;
    }
    first.crash();
    let control = work(&second, &queues.connect(&second), &seen).await;
    while control.stats().done == 0 {
        pass(0.1).await;
    }
    control.stop();
    assert_eq!(faults_of(&queues.history(queue.name())), Vec::<String>::new());
}
