//! Workers: a claim lives as long as its handler works and the store is reached; what comes later is fenced.

use std::{sync::Arc, time::Duration};

use coact_blocks::queue::{Outcome, WorkerOptions};
use coact_core::{Error, ErrorKind, env::PlantedBug};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::{
    model::{Fate, Model},
    queue_jobs::{Bed, bed, drain, open, until},
    queues::{Event, QueueRequest, Queues},
    world::{Process, pass, start},
};

const LEASE: Duration = Duration::from_secs(6);

fn options() -> WorkerOptions {
    WorkerOptions { lease: LEASE, ..WorkerOptions::default() }
}

/// Works ten leases long on one job, and returns how often it was begun.
async fn long_job(bed: &Bed) -> usize {
    bed.push(["long"]).await;
    let (begun, env) = (Arc::new(Mutex::new(0)), bed.process.env().clone());
    let count = begun.clone();
    let worker = bed.worker(WorkerOptions { concurrency: 3, ..options() });
    let control = worker.control();
    let run = start(worker.run(move |_| {
        *count.lock() += 1;
        let env = env.clone();
        async move {
            env.sleep(LEASE * 10).await;
            Ok::<_, Error>(Outcome::Done)
        }
    }));
    until(|| control.stats().done + control.stats().fenced > 0).await;
    control.stop();
    run.await.expect("no panic").expect("ended");
    *begun.lock()
}

#[tokio::test(start_paused = true)]
async fn a_long_job_is_begun_once() {
    assert_eq!(long_job(&bed(21).await).await, 1);
}

#[tokio::test(start_paused = true)]
async fn without_extensions_a_long_job_is_begun_again() {
    let (queues, process) = (Queues::new(), Process::start_with(&Model::new(), 22, &[PlantedBug::SkipHeartbeat]));
    let connection = queues.connect(&process);
    let queue = open(&connection).await;
    assert!(long_job(&Bed { queues, process, connection, queue }).await > 1);
}

#[tokio::test(start_paused = true)]
async fn extensions_go_on_after_some_that_failed() {
    let bed = bed(23).await;
    let mut seen = 0;
    bed.connection.fate(move |request| {
        seen += usize::from(request.extends());
        if request.extends() && seen % 2 == 1 { Fate::Refused } else { Fate::Arrives }
    });
    assert_eq!(long_job(&bed).await, 1);
}

#[tokio::test(start_paused = true)]
async fn many_claims_are_extended_in_one_request() {
    let bed = bed(24).await;
    bed.push(0..50).await;
    let extensions = Arc::new(Mutex::new(Vec::new()));
    let sink = extensions.clone();
    bed.connection.fate(move |request| {
        if let QueueRequest::Settle(settle) = request
            && request.extends()
        {
            sink.lock().push(settle.len());
        }
        Fate::Arrives
    });
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let worker = bed.worker(WorkerOptions { concurrency: 50, drain: true, ..options() });
    let run = start(worker.run(move |_| {
        let gate = opened.clone();
        async move {
            let _permit = gate.acquire().await;
            Ok::<_, Error>(Outcome::Done)
        }
    }));
    until(|| extensions.lock().len() >= 3).await;
    gate.add_permits(50);
    assert_eq!(run.await.expect("no panic").expect("drained").done, 50);
    assert!(extensions.lock().iter().all(|claims| *claims == 50), "{extensions:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_away_is_fenced_and_the_next_has_a_higher_token() {
    let bed = bed(25).await;
    let id = bed.push(["once"]).await[0];
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    let first = bed.worker(WorkerOptions { jobs: Some(1), ..options() });
    let (control, first) = (
        first.control(),
        start(first.run(move |context| {
            let (gate, sink) = (opened.clone(), sink.clone());
            async move {
                context.check()?;
                context.lost().await;
                sink.lock().push((context.token(), context.check().expect_err("over").kind()));
                let _permit = gate.acquire().await;
                Ok::<_, Error>(Outcome::Done)
            }
        })),
    );
    until(|| control.stats().claimed == 1).await;
    bed.connection.fate(|_| Fate::Refused);
    until(|| !told.lock().is_empty()).await;
    let other = Process::start(&Model::new(), 26);
    let second = bed.queues.connect(&other);
    let worker = coact_blocks::queue::Worker::new(&open(&second).await, options()).expect("allowed");
    let (second, seen) = (worker.control(), Arc::new(Mutex::new(Vec::new())));
    let sink = seen.clone();
    start(worker.run(move |context| {
        sink.lock().push((context.id(), context.token(), context.attempt()));
        async { Ok::<_, Error>(Outcome::Done) }
    }));
    until(|| second.stats().done == 1).await;
    second.stop();
    // The first comes back, and does not know yet what the store knows.
    bed.connection.no_faults();
    gate.add_permits(1);
    let stats = first.await.expect("no panic").expect("ended");
    assert_eq!((stats.done, stats.fenced, stats.unanswered), (0, 1, 0));
    let (old, kind) = told.lock()[0];
    assert_eq!(kind, ErrorKind::Fenced);
    let [(again, token, attempt)] = seen.lock()[..] else { panic!("begun once") };
    assert!((again, attempt) == (id, 2) && token > old, "{token:?} after {old:?}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_the_store_ended_is_told_at_the_next_extension_and_not_settled() {
    let bed = bed(27).await;
    bed.push(["once"]).await;
    let settled = Arc::new(Mutex::new(0));
    let sink = settled.clone();
    bed.connection.fate(move |request| {
        *sink.lock() += usize::from(request.settles());
        Fate::Arrives
    });
    let worker = bed.worker(WorkerOptions { jobs: Some(1), ..options() });
    let queue = bed.queue.clone();
    let stats = worker
        .run(move |context| {
            let queue = queue.clone();
            async move {
                // As if it had ended: deleted and made again, the queue knows nothing of it.
                queue.handle().delete_queue(queue.name()).await?;
                queue.handle().put_queue(queue.name(), &Default::default()).await?;
                context.lost().await;
                Ok::<_, Error>(Outcome::Done)
            }
        })
        .await
        .expect("ended");
    assert_eq!((stats.done, stats.fenced, *settled.lock()), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_result_is_told_again_until_it_is_answered() {
    let bed = bed(28).await;
    bed.push(0..3).await;
    let mut left = 3;
    bed.connection.fate(move |request| {
        if request.settles() && left > 0 {
            left -= 1;
            return Fate::Refused;
        }
        Fate::Arrives
    });
    let worker = bed.worker(WorkerOptions { concurrency: 3, ..drain() });
    let stats = worker.run(|_| async { Ok::<_, Error>(Outcome::Done) }).await.expect("drained");
    assert_eq!((stats.done, stats.fenced, stats.unanswered), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_never_told_as_done_twice() {
    let bed = bed(29).await;
    bed.push(["once"]).await;
    let mut left = 1;
    bed.connection.fate(move |request| {
        if request.settles() && left > 0 {
            left -= 1;
            return Fate::AnswerLost;
        }
        Fate::Arrives
    });
    let worker = bed.worker(drain());
    let stats = worker.run(|_| async { Ok::<_, Error>(Outcome::Done) }).await.expect("drained");
    assert_eq!((stats.done, stats.fenced), (0, 1));
    assert_eq!(bed.queue.stats().await.expect("answers").done, 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_outlives_a_store_that_is_away() {
    let bed = bed(30).await;
    let worker = bed.worker(options());
    let control = worker.control();
    let run = start(worker.run(|_| async { Ok::<_, Error>(Outcome::Done) }));
    bed.connection.fate(|_| Fate::Lost);
    pass(600.0).await;
    bed.connection.no_faults();
    bed.push(["after"]).await;
    until(|| control.stats().done == 1).await;
    control.stop();
    run.await.expect("no panic").expect("ended");
}

#[tokio::test(start_paused = true)]
async fn an_end_does_not_wait_for_a_store_that_is_away() {
    let bed = bed(31).await;
    bed.push(["once"]).await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let worker = bed.worker(options());
    let control = worker.control();
    let run = start(worker.run(move |_| {
        let gate = opened.clone();
        async move {
            let _permit = gate.acquire().await;
            Ok::<_, Error>(Outcome::Done)
        }
    }));
    until(|| control.stats().claimed == 1).await;
    bed.connection.fate(|_| Fate::Refused);
    gate.add_permits(1);
    control.stop();
    let stats = run.await.expect("no panic").expect("ended");
    assert_eq!((stats.done, stats.unanswered), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn jobs_that_come_when_the_worker_ends_are_given_back() {
    let bed = bed(32).await;
    let id = bed.push(["late"]).await[0];
    bed.connection.fate(|request| match request {
        QueueRequest::Claim => Fate::SlowAnswer(Duration::from_millis(100)),
        _ => Fate::Arrives,
    });
    let worker = bed.worker(options());
    let control = worker.control();
    let run = start(worker.run(|_| async { Ok::<_, Error>(Outcome::Done) }));
    until(|| matches!(bed.queues.history(bed.queue.name()).first(), Some(Event::Claimed(_)))).await;
    control.stop();
    let stats = run.await.expect("no panic").expect("ended");
    assert_eq!((stats.released, stats.done), (1, 0));
    let job = bed.job(id).await.expect("kept");
    assert_eq!(job.attempts, 0);
}
