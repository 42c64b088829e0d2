//! Every verb of the queue contract, there and back.

use std::time::Duration;

use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::queue::{Enqueued, JobId, JobState, Moved, NewJob, QueueSpec, Receipt, Settle, Settled, Token, Verdict},
    env::Env,
    name::Queue,
};

use super::{claim, job, one_claimed, queue, queues, refused};
use crate::bed::{self, PATIENCE, within};

#[tokio::test]
async fn queues_come_and_go_and_change() {
    let node = bed::node().await;
    let queues = queues(&node).await;
    let spec = QueueSpec { max_attempts: 3, keep_dead: Duration::from_secs(60) };
    assert!(!queues.put_queue(&queue(), &spec).await.expect("changed"));
    let info = queues.queue(&queue()).await.expect("a look").expect("a queue");
    assert_eq!((info.name, info.spec, info.paused), (queue(), spec.clone(), false));
    let second = Queue::new("print").expect("a queue");
    assert!(queues.put_queue(&second, &spec).await.expect("created"));
    assert_eq!(queues.queues("", 10).await.expect("queues").len(), 2);
    assert_eq!(queues.queues("mail", 10).await.expect("queues")[0].name, second);
    assert!(queues.delete_queue(&second).await.expect("deleted"));
    assert!(!queues.delete_queue(&second).await.expect("there is none"));
    assert_eq!(queues.queue(&second).await.expect("a look"), None);
    refused("gone", queues.enqueue(&second, vec![job("a")]).await, ErrorKind::NotFound);
    refused("gone", queues.stats(&second).await, ErrorKind::NotFound);

    queues.pause(&queue(), true).await.expect("paused");
    queues.enqueue(&queue(), vec![job("a")]).await.expect("a job");
    assert!(queues.claim(claim(Duration::ZERO)).await.expect("a claim").is_empty());
    queues.pause(&queue(), false).await.expect("not paused");
    one_claimed(&queues).await;
}

#[tokio::test]
async fn a_job_comes_with_all_that_was_said_about_it() {
    let node = bed::node().await;
    let queues = queues(&node).await;
    let whole = NewJob {
        body: Bytes::from_static(b"\0body"),
        headers: vec![("h".to_owned(), Bytes::from_static(b"1")), ("h".to_owned(), Bytes::new())],
        name: Some("only-once".to_owned()),
        priority: 9,
        run_at_ms: Some(1),
        order_key: Some(Bytes::from_static(b"customer")),
        max_attempts: Some(5),
        expires_ms: Some(Env::real().wall_ms() + 3_600_000),
    };
    let made = queues.enqueue(&queue(), vec![whole.clone(), whole.clone()]).await.expect("jobs");
    let id = made[0].id();
    assert_eq!(made, [Enqueued::Created(id), Enqueued::Exists(id)]);
    assert_eq!(queues.find(&queue(), "only-once").await.expect("a look"), Some(id));
    assert_eq!(queues.find(&queue(), "never").await.expect("a look"), None);
    let claimed = one_claimed(&queues).await;
    assert_eq!((claimed.id, claimed.attempt, claimed.max_attempts), (id, 1, 5));
    assert_eq!(claimed.lease, Duration::from_secs(600));
    let said = |job: NewJob| (job.body, job.headers, job.name, job.priority, job.order_key, job.expires_ms);
    assert_eq!(said(claimed.job), said(whole.clone()));
    let shown = queues.job(&queue(), id).await.expect("a look").expect("a job");
    assert_eq!((shown.state, shown.attempts, shown.worker.as_deref()), (JobState::Claimed, 1, Some("w")));
    assert_eq!(said(shown.job), said(whole));
    assert_eq!(queues.job(&queue(), JobId(u64::MAX / 2)).await.expect("a look"), None);
}

#[tokio::test]
async fn every_verdict_is_heard() {
    let node = bed::node().await;
    let queues = queues(&node).await;
    let settle = async |receipt: Receipt, verdict: Verdict| {
        let settled = queues.settle(&queue(), vec![Settle { receipt, verdict }]).await.expect("an answer");
        assert_eq!(settled.len(), 1);
        settled[0]
    };
    let why = || "it rained".to_owned();
    queues.enqueue(&queue(), vec![job("a")]).await.expect("a job");

    let first = one_claimed(&queues).await;
    assert_eq!(settle(first.receipt(), Verdict::Extend { lease: Duration::from_secs(60) }).await, Settled::Done);
    assert_eq!(settle(first.receipt(), Verdict::Release).await, Settled::Done);
    assert_eq!(settle(first.receipt(), Verdict::Ack).await, Settled::Fenced);
    let again = one_claimed(&queues).await;
    assert_eq!((again.id, again.attempt), (first.id, 1), "a release does not count");
    assert!(again.token > first.token);
    assert_eq!(settle(again.receipt(), Verdict::Nack { delay: Duration::ZERO, error: why() }).await, Settled::Done);
    let last = one_claimed(&queues).await;
    assert_eq!(last.attempt, 2);
    assert_eq!(settle(last.receipt(), Verdict::Nack { delay: Duration::ZERO, error: why() }).await, Settled::Dead);

    let dead = queues.jobs(&queue(), JobState::Dead, None, 10).await.expect("the dead");
    assert_eq!((dead[0].id, dead[0].error.as_deref(), dead[0].died_ms.is_some()), (first.id, Some("it rained"), true));
    assert_eq!(queues.redrive(&queue(), vec![first.id], 0).await.expect("redriven"), 1);
    let killed = one_claimed(&queues).await;
    assert_eq!(settle(killed.receipt(), Verdict::Kill { error: why() }).await, Settled::Dead);
    assert_eq!(queues.purge(&queue(), Vec::new(), 10).await.expect("purged"), 1);

    queues.enqueue(&queue(), vec![job("b")]).await.expect("a job");
    let done = one_claimed(&queues).await;
    assert_eq!(settle(done.receipt(), Verdict::Ack).await, Settled::Done);
    let unknown = Receipt { id: JobId(99), token: Token(99) };
    assert_eq!(settle(unknown, Verdict::Ack).await, Settled::Fenced);
    let stats = queues.stats(&queue()).await.expect("numbers");
    assert_eq!((stats.ready, stats.claimed, stats.dead, stats.enqueued, stats.done), (0, 0, 0, 2, 1));
}

#[tokio::test]
async fn jobs_that_no_worker_has_are_moved() {
    let node = bed::node().await;
    let queues = queues(&node).await;
    let later = Env::real().wall_ms() + 3_600_000;
    let delayed = NewJob { run_at_ms: Some(later), ..job("later") };
    let made = queues.enqueue(&queue(), vec![delayed.clone(), delayed, job("now")]).await.expect("jobs");
    let ids: Vec<_> = made.into_iter().map(Enqueued::id).collect();
    assert_eq!(queues.jobs(&queue(), JobState::Delayed, Some(ids[0]), 10).await.expect("jobs")[0].id, ids[1]);
    let held = one_claimed(&queues).await;
    assert_eq!(held.id, ids[2]);
    assert_eq!(queues.cancel(&queue(), held.id).await.expect("an answer"), Moved::InFlight);
    assert_eq!(queues.cancel(&queue(), ids[0]).await.expect("an answer"), Moved::Done);
    assert_eq!(queues.cancel(&queue(), ids[0]).await.expect("an answer"), Moved::NotFound);
    assert_eq!(queues.stats(&queue()).await.expect("numbers").next_due_ms, Some(later));
    assert_eq!(queues.promote(&queue(), ids[1]).await.expect("an answer"), Moved::Done);
    assert_eq!(one_claimed(&queues).await.id, ids[1]);
}

/// Whoever stops waiting for a claim does not take the next job with it. The control waits on, and gets it.
#[tokio::test]
async fn a_claim_that_nobody_waits_for_takes_nothing() {
    let node = bed::node().await;
    let queues = queues(&node).await;
    for dropped in [true, false] {
        let mut waiting = Box::pin(queues.claim(claim(PATIENCE)));
        // Another request over the same session, answered after the claim arrived.
        tokio::select! {
            claimed = &mut waiting => panic!("{claimed:?}"),
            empty = queues.claim(claim(Duration::ZERO)) => assert!(empty.expect("a claim").is_empty()),
        }
        let waiting = if dropped {
            drop(waiting);
            None
        } else {
            Some(waiting)
        };
        queues.enqueue(&queue(), vec![job("a")]).await.expect("a job");
        let got = match waiting {
            Some(waiting) => within("the job", waiting).await.expect("a claim"),
            None => queues.claim(claim(Duration::ZERO)).await.expect("a claim"),
        };
        assert_eq!(got.len(), 1, "dropped: {dropped}");
    }
}
