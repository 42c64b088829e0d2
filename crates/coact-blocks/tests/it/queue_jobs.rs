//! Workers: what a handler answers is what becomes of the job.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_blocks::queue::{Context, Control, Outcome, Queue, RateLimit, Stats, Worker, WorkerOptions};
use coact_core::{
    Error, ErrorKind, Result,
    contract::queue::{Enqueued, Job, JobId, JobState, NewJob, QueueSpec, Settle, Settled, StreamGuarantees, Verdict},
    guarantees::Durability,
};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    model::Model,
    queues::{Connection, GUARANTEES, QueueRequest, Queues},
    world::{Process, pass, start},
};

pub(crate) struct Bed {
    pub(crate) queues: Queues,
    pub(crate) process: Process,
    pub(crate) connection: Connection,
    pub(crate) queue: Queue,
}

pub(crate) async fn bed(seed: u64) -> Bed {
    let (queues, process) = (Queues::new(), Process::start(&Model::new(), seed));
    let connection = queues.connect(&process);
    let queue = open(&connection).await;
    Bed { queues, process, connection, queue }
}

pub(crate) async fn open(connection: &Connection) -> Queue {
    let spec = QueueSpec { max_attempts: 3, ..QueueSpec::default() };
    Queue::open(&connection.handle, "mail", spec).await.expect("opens")
}

/// Options of a worker that ends when nothing is ready.
pub(crate) fn drain() -> WorkerOptions {
    WorkerOptions { drain: true, ..WorkerOptions::default() }
}

impl Bed {
    pub(crate) async fn push(&self, bodies: impl IntoIterator<Item = impl ToString>) -> Vec<JobId> {
        let jobs = bodies.into_iter().map(|body| NewJob::new(body.to_string())).collect();
        let enqueued = self.queue.push_all(jobs).await.expect("enqueued");
        enqueued.into_iter().map(Enqueued::id).collect()
    }

    pub(crate) async fn job(&self, id: JobId) -> Option<Job> {
        self.connection.handle.job(self.queue.name(), id).await.expect("answers")
    }

    /// Does what is ready.
    async fn drain(&self, handler: impl Fn(&Context) -> Result<Outcome> + Send + Sync + 'static) -> Stats {
        let worker = Worker::new(&self.queue, drain()).expect("allowed");
        worker.run(move |context| std::future::ready(handler(&context))).await.expect("drained")
    }

    pub(crate) fn worker(&self, options: WorkerOptions) -> Worker {
        Worker::new(&self.queue, options).expect("allowed")
    }
}

/// Starts a worker whose handlers wait for a permit each.
fn gated(worker: Worker, gate: &Arc<Semaphore>) -> (Control, JoinHandle<Stats>) {
    let (control, gate) = (worker.control(), gate.clone());
    let run = worker.run(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.expect("open").forget();
            Ok::<_, Error>(Outcome::Done)
        }
    });
    (control, start(async move { run.await.expect("ended") }))
}

pub(crate) async fn until(what: impl Fn() -> bool) {
    while !what() {
        pass(0.01).await;
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_are_done_and_gone() {
    let bed = bed(1).await;
    bed.push(1..=10).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let stats = bed
        .drain(move |context| {
            sink.lock().push(String::from_utf8_lossy(&context.job().body).into_owned());
            Ok(Outcome::Done)
        })
        .await;
    assert_eq!((stats.claimed, stats.done), (10, 10));
    assert_eq!(*seen.lock(), (1..=10).map(|body| body.to_string()).collect::<Vec<_>>());
    assert_eq!(bed.queue.stats().await.expect("answers").done, 10);
    for state in JobState::ALL {
        let left = bed.connection.handle.jobs(bed.queue.name(), state, None, 10).await.expect("answers");
        assert!(left.is_empty(), "{state:?}: {left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_there_keeps_how_it_treats_jobs() {
    let bed = bed(2).await;
    let other = QueueSpec { max_attempts: 9, ..QueueSpec::default() };
    Queue::open(&bed.connection.handle, "mail", other).await.expect("opens");
    let info = bed.connection.handle.queue(bed.queue.name()).await.expect("answers").expect("there");
    assert_eq!(info.spec.max_attempts, 3);
    let error = Queue::open(&bed.connection.handle, "no name", QueueSpec::default()).await.expect_err("not a name");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_forgets_is_refused() {
    let bed = bed(3).await;
    let guarantees = StreamGuarantees { writes: Durability::Memory, ..GUARANTEES };
    let weak = bed.queues.connect_with(&bed.process, guarantees);
    let error = Queue::open(&weak.handle, "mail", QueueSpec::default()).await.expect_err("weaker");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("queue needs writes synced to disk"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_named_job_is_there_once() {
    let bed = bed(4).await;
    let job = NewJob { name: Some("invoice-7".to_owned()), ..NewJob::new("pay") };
    let first = bed.queue.push(job.clone()).await.expect("enqueued");
    assert!(matches!(first, Enqueued::Created(_)));
    assert_eq!(bed.queue.push(job).await.expect("enqueued"), Enqueued::Exists(first.id()));
}

#[tokio::test(start_paused = true)]
async fn a_failure_rests_longer_each_time_until_the_job_is_dead() {
    let bed = bed(5).await;
    let id = bed.push(["fails"]).await[0];
    let times = Arc::new(Mutex::new(Vec::<Instant>::new()));
    let (sink, env) = (times.clone(), bed.process.env().clone());
    let options = WorkerOptions { retry_first: Duration::from_secs(10), ..WorkerOptions::default() };
    let worker = bed.worker(options);
    let control = worker.control();
    let run = start(worker.run(move |context| {
        sink.lock().push(env.now());
        let attempt = context.attempt();
        async move { Err::<Outcome, _>(Error::new(ErrorKind::Unavailable, format!("no answer {attempt}"))) }
    }));
    until(|| control.stats().dead == 1).await;
    control.stop();
    let stats = run.await.expect("no panic").expect("ended");
    assert_eq!((stats.claimed, stats.retried, stats.dead, stats.done), (3, 2, 1, 0));
    let dead = bed.job(id).await.expect("kept");
    assert_eq!((dead.state, dead.attempts, dead.error.as_deref()), (JobState::Dead, 3, Some("no answer 3")));
    let times = times.lock();
    let (first, second) = (times[1] - times[0], times[2] - times[1]);
    // Half to the whole of 10 s, then of 20 s; the model's clock counts milliseconds.
    let rests = |rest: Duration, whole: u64| {
        rest >= Duration::from_millis(whole * 500) && rest <= Duration::from_millis(whole * 1000 + 100)
    };
    assert!(rests(first, 10) && rests(second, 20), "{first:?} {second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_decides_what_becomes_of_the_job() {
    let bed = bed(6).await;
    let ids = bed.push(["later", "never", "not me"]).await;
    let stats = bed
        .drain(|context| {
            let error = "the other side is closed".to_owned();
            Ok(match &*context.job().body {
                b"later" => Outcome::Retry { after: Some(Duration::from_secs(3600)), error },
                b"never" => Outcome::Kill { error },
                // Given back once, then done by whoever claims it next.
                _ if context.token().0 == 3 => Outcome::Release,
                _ => Outcome::Done,
            })
        })
        .await;
    assert_eq!((stats.retried, stats.dead, stats.released, stats.done), (1, 1, 1, 1));
    let later = bed.job(ids[0]).await.expect("kept");
    assert_eq!((later.state, later.attempts), (JobState::Delayed, 1));
    let never = bed.job(ids[1]).await.expect("kept");
    assert_eq!((never.state, never.attempts), (JobState::Dead, 1));
    assert_eq!(never.error.as_deref(), Some("the other side is closed"));
    assert_eq!(bed.job(ids[2]).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_released_job_has_its_attempt_back() {
    let bed = bed(7).await;
    bed.push(["twice"]).await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let sink = attempts.clone();
    bed.drain(move |context| {
        sink.lock().push((context.token().0, context.attempt()));
        Ok(if context.token().0 == 1 { Outcome::Release } else { Outcome::Done })
    })
    .await;
    assert_eq!(*attempts.lock(), [(1, 1), (2, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_of_one_job() {
    let bed = bed(8).await;
    let ids = bed.push(["fine", "panics", "fine too"]).await;
    let stats = bed
        .drain(|context| {
            assert!(&*context.job().body != b"panics", "the body {:?} is bad", context.job().body);
            Ok(Outcome::Done)
        })
        .await;
    assert_eq!((stats.done, stats.panicked, stats.retried), (2, 1, 1));
    let failed = bed.job(ids[1]).await.expect("kept");
    assert_eq!(failed.error.as_deref(), Some("the handler panicked: the body b\"panics\" is bad"));
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_settle_by_itself() {
    let bed = bed(9).await;
    let id = bed.push(["in a commit"]).await[0];
    let queue = bed.queue.clone();
    let worker = bed.worker(drain());
    let stats = worker
        .run(move |context| {
            let queue = queue.clone();
            async move {
                let settle = Settle { receipt: context.receipt(), verdict: Verdict::Ack };
                let settled = queue.handle().settle(queue.name(), vec![settle]).await?;
                assert_eq!(settled, [Settled::Done]);
                Ok::<_, Error>(Outcome::Settled)
            }
        })
        .await
        .expect("drained");
    assert_eq!((stats.claimed, stats.done, stats.fenced), (1, 0, 0));
    assert_eq!(bed.job(id).await, None);
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_there_are_slots_and_claims_and_results_travel_together() {
    let bed = bed(10).await;
    bed.push(0..100).await;
    let requests = Arc::new(Mutex::new(BTreeMap::<&str, usize>::new()));
    let counted = requests.clone();
    bed.connection.fate(move |request| {
        let name = match request {
            QueueRequest::Claim => "claim",
            request if request.settles() => "settle",
            _ => "other",
        };
        *counted.lock().entry(name).or_default() += 1;
        crate::model::Fate::Arrives
    });
    let running = Arc::new(Mutex::new((0_usize, 0_usize)));
    let (gauge, env) = (running.clone(), bed.process.env().clone());
    let worker = bed.worker(WorkerOptions { concurrency: 25, ..drain() });
    let stats = worker
        .run(move |_| {
            let (gauge, env) = (gauge.clone(), env.clone());
            async move {
                {
                    let mut gauge = gauge.lock();
                    gauge.0 += 1;
                    gauge.1 = gauge.1.max(gauge.0);
                }
                env.sleep(Duration::from_secs(1)).await;
                gauge.lock().0 -= 1;
                Ok::<_, Error>(Outcome::Done)
            }
        })
        .await
        .expect("drained");
    assert_eq!((stats.done, running.lock().1), (100, 25));
    assert_eq!(stats.busy, Duration::from_secs(100));
    let requests = requests.lock();
    assert!(requests["claim"] <= 12 && requests["settle"] <= 12, "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn jobs_begin_no_faster_than_allowed() {
    let bed = bed(11).await;
    bed.push(0..50).await;
    let limit = RateLimit { jobs: 10, per: Duration::from_secs(1), burst: 5 };
    let begun = Arc::new(Mutex::new(Vec::<Instant>::new()));
    let (sink, env) = (begun.clone(), bed.process.env().clone());
    let worker = bed.worker(WorkerOptions { concurrency: 50, rate: Some(limit), ..drain() });
    worker
        .run(move |_| {
            sink.lock().push(env.now());
            async { Ok::<_, Error>(Outcome::Done) }
        })
        .await
        .expect("drained");
    let begun = begun.lock();
    assert_eq!(begun.len(), 50);
    for (index, first) in begun.iter().enumerate() {
        let within = begun[index..].iter().filter(|at| **at - *first < limit.per).count();
        assert!(within <= (limit.jobs + limit.burst) as usize, "{within} in a second");
    }
    // A control: without the limit, all begin at once.
    assert!(begun[49] - begun[0] > Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_running_jobs_end_and_claims_no_more() {
    let bed = bed(12).await;
    bed.push(0..5).await;
    let gate = Arc::new(Semaphore::new(0));
    let (control, run) = gated(bed.worker(WorkerOptions { concurrency: 2, ..WorkerOptions::default() }), &gate);
    until(|| control.stats().claimed == 2).await;
    control.stop();
    pass(10.0).await;
    gate.add_permits(100);
    let stats = run.await.expect("no panic");
    assert_eq!((stats.claimed, stats.done, stats.released), (2, 2, 0));
    assert_eq!(bed.queue.stats().await.expect("answers").ready, 3);
}

#[tokio::test(start_paused = true)]
async fn what_runs_longer_than_the_grace_is_dropped_and_released() {
    let bed = bed(13).await;
    let id = bed.push(["endless"]).await[0];
    let gate = Arc::new(Semaphore::new(0));
    let options = WorkerOptions { grace: Duration::from_secs(5), ..WorkerOptions::default() };
    let (control, run) = gated(bed.worker(options), &gate);
    until(|| control.stats().claimed == 1).await;
    control.stop();
    let stats = run.await.expect("no panic");
    assert_eq!((stats.released, stats.done), (1, 0));
    let job = bed.job(id).await.expect("kept");
    assert_eq!((job.state, job.attempts), (JobState::Ready, 0));
    // It was dropped: nobody takes a permit any more.
    gate.add_permits(1);
    pass(1.0).await;
    assert_eq!(gate.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_told_to_handlers() {
    let bed = bed(14).await;
    bed.push(["long"]).await;
    let worker = bed.worker(WorkerOptions::default());
    let control = worker.control();
    let run = start(worker.run(|context| async move {
        context.stopping().await;
        Ok::<_, Error>(Outcome::Release)
    }));
    until(|| control.stats().claimed == 1).await;
    control.stop();
    assert_eq!(run.await.expect("no panic").expect("ended").released, 1);
}

#[tokio::test(start_paused = true)]
async fn jobs_of_one_order_key_are_done_one_after_the_other_through_failures() {
    let bed = bed(15).await;
    let keyed = |body: String| NewJob { order_key: Some("account-1".into()), ..NewJob::new(body) };
    bed.queue.push_all((0..6).map(|body| keyed(body.to_string())).collect()).await.expect("enqueued");
    bed.push(["free"]).await;
    let journal = Arc::new(Mutex::new(Vec::<(String, bool)>::new()));
    let (sink, env) = (journal.clone(), bed.process.env().clone());
    let worker = bed.worker(WorkerOptions { concurrency: 8, ..WorkerOptions::default() });
    let control = worker.control();
    let run = start(worker.run(move |context| {
        let (sink, env) = (sink.clone(), env.clone());
        async move {
            let body = String::from_utf8_lossy(&context.job().body).into_owned();
            sink.lock().push((body.clone(), true));
            env.sleep(Duration::from_millis(100)).await;
            sink.lock().push((body, false));
            // Each second one fails at first.
            let fails = context.attempt() == 1 && context.id().0.is_multiple_of(2);
            if fails { Err(Error::invalid("not yet")) } else { Ok(Outcome::Done) }
        }
    }));
    until(|| control.stats().done == 7).await;
    control.stop();
    run.await.expect("no panic").expect("ended");
    let keyed: Vec<_> = journal.lock().iter().filter(|(body, _)| body != "free").cloned().collect();
    let expected = ["0", "1", "1", "2", "3", "3", "4", "5", "5"];
    let expected: Vec<_> =
        expected.iter().flat_map(|body| [true, false].map(|begins| ((*body).to_owned(), begins))).collect();
    assert_eq!(keyed, expected);
    // What has no key did not wait for it.
    assert_eq!(journal.lock().iter().position(|(body, _)| body == "free").map(|at| at < 2), Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_one_job_ends_after_it() {
    let bed = bed(16).await;
    bed.push(0..3).await;
    let worker = bed.worker(WorkerOptions { jobs: Some(1), concurrency: 3, ..WorkerOptions::default() });
    let stats = worker.run(|_| async { Ok::<_, Error>(Outcome::Done) }).await.expect("ended");
    assert_eq!((stats.claimed, stats.done), (1, 1));
    assert_eq!(bed.queue.stats().await.expect("answers").ready, 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_ends_with_its_queue() {
    let bed = bed(17).await;
    let worker = bed.worker(WorkerOptions::default());
    let run = start(worker.run(|_| async { Ok::<_, Error>(Outcome::Done) }));
    pass(1.0).await;
    bed.connection.handle.delete_queue(bed.queue.name()).await.expect("deleted");
    assert_eq!(run.await.expect("no panic").expect_err("gone").kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn options_that_make_no_sense_are_refused() {
    let bed = bed(18).await;
    let refused = |options: WorkerOptions| Worker::new(&bed.queue, options).expect_err("refused").to_string();
    let options = WorkerOptions::default();
    assert_eq!(
        refused(WorkerOptions { concurrency: 0, ..options.clone() }),
        "0 jobs at once are not allowed: use 1 to 10000"
    );
    let rate = Some(RateLimit { burst: 0, ..RateLimit::per_second(1) });
    assert_eq!(
        refused(WorkerOptions { rate, ..options.clone() }),
        "1 jobs per 1s in bursts of 0 are not allowed: each must be more than zero"
    );
    let worker = bed.worker(WorkerOptions { lease: Duration::from_millis(1), ..options });
    let error = worker.run(|_| async { Ok::<_, Error>(Outcome::Done) }).await.expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
