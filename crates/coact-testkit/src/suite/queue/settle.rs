//! Settling: what a worker says about its claim, if the claim is not over.

use std::time::Duration;

use coact_core::contract::queue::{Claim, Job, JobId, JobState, NewJob, Receipt, Settle, Settled, Token, Verdict};

use super::{
    Context,
    context::{LONG, SHORT, job, kill, nack, nack_after, settle_with},
};

cases! {
    async fn an_acknowledged_job_is_gone(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let claimed = cx.take().await;
        assert_eq!(cx.settle(claimed.receipt(), Verdict::Ack).await, Settled::Done);
        assert_eq!(cx.find(id).await, None);
        assert_eq!(cx.claim_one().await, None);
        let stats = cx.stats().await;
        assert_eq!((stats.claimed, stats.done), (0, 1));
    }

    async fn what_is_settled_is_over(cx: &Context) {
        cx.create().await;
        for first in [Verdict::Ack, nack("x"), kill("x"), Verdict::Release] {
            cx.add_body("x").await;
            let claimed = cx.take().await;
            assert_ne!(cx.settle(claimed.receipt(), first.clone()).await, Settled::Fenced);
            assert_fenced(cx, claimed.receipt(), &format!("after {first:?}")).await;
            while let Some(left) = cx.claim_one().await {
                cx.ack(&left).await;
            }
        }
    }

    async fn a_receipt_that_nobody_gave_is_fenced(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        assert_fenced(cx, Receipt { id, token: Token(0) }, "of a job that nobody claimed").await;
        let claimed = cx.take().await;
        for (id, token) in [(id, claimed.token.0 + 1), (id, 0), (JobId(id.0 + 1), claimed.token.0), (JobId(u64::MAX), 1)] {
            assert_fenced(cx, Receipt { id, token: Token(token) }, "made up").await;
        }
        cx.ack(&claimed).await;
    }

    async fn a_failed_job_rests_and_keeps_what_was_said(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let before = cx.env.wall_ms();
        let first = cx.take().await;
        let delay = Duration::from_millis(400);
        assert_eq!(cx.settle(first.receipt(), nack_after(delay, "the först failure")).await, Settled::Done);
        let resting = cx.job(id).await;
        assert_eq!(resting.error.as_deref(), Some("the först failure"));
        assert_eq!((resting.attempts, resting.worker.as_deref()), (1, Some("w")));
        let second = cx.await_one().await;
        assert!(cx.env.wall_ms() >= before + 400, "it rested for too short a time");
        assert_eq!((second.id, second.attempt), (id, 2));
        assert!(second.token > first.token);
        assert_eq!(cx.job(id).await.error.as_deref(), Some("the först failure"), "a claim forgot the last failure");
    }

    async fn a_job_that_rests_is_delayed(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        assert_eq!(cx.settle(cx.take().await.receipt(), nack_after(LONG, "later")).await, Settled::Done);
        assert_eq!(cx.job(id).await.state, JobState::Delayed);
        assert_eq!(cx.claim_one().await, None);
    }

    async fn a_long_failure_is_cut_and_kept(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let long = "ж".repeat(1000);
        assert_eq!(cx.settle(cx.take().await.receipt(), nack(&long)).await, Settled::Done);
        let kept = cx.job(id).await.error.expect("it is kept");
        assert!(kept.len() <= 1024 && kept.len() > 1000 && long.starts_with(&kept), "{} bytes", kept.len());
    }

    async fn after_its_last_attempt_a_job_is_dead_with_the_last_failure(cx: &Context) {
        cx.create_with_attempts(3).await;
        let id = cx.add_body("x").await;
        for attempt in 1..=3 {
            let claimed = cx.take().await;
            assert_eq!((claimed.attempt, claimed.max_attempts), (attempt, 3));
            let settled = cx.settle(claimed.receipt(), nack(&format!("failure {attempt}"))).await;
            assert_eq!(settled, if attempt == 3 { Settled::Dead } else { Settled::Done });
        }
        assert_eq!(cx.claim_one().await, None);
        let Job { state, attempts, error, died_ms, enqueued_ms, .. } = cx.job(id).await;
        assert_eq!((state, attempts, error.as_deref()), (JobState::Dead, 3, Some("failure 3")));
        assert!(died_ms.is_some_and(|died_ms| died_ms >= enqueued_ms), "{died_ms:?}");
    }

    async fn a_job_says_how_often_it_is_tried(cx: &Context) {
        cx.create_with_attempts(5).await;
        let once = cx.add(NewJob { max_attempts: Some(1), ..job("once") }).await;
        let claimed = cx.take().await;
        assert_eq!(claimed.max_attempts, 1);
        assert_eq!(cx.settle(claimed.receipt(), nack("x")).await, Settled::Dead);
        assert_eq!(cx.job(once).await.state, JobState::Dead);
        cx.add_body("as the queue says").await;
        assert_eq!(cx.take().await.max_attempts, 5);
    }

    async fn a_killed_job_is_dead_at_once(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        assert_eq!(cx.settle(cx.take().await.receipt(), kill("hopeless")).await, Settled::Dead);
        let job = cx.job(id).await;
        assert_eq!((job.state, job.attempts, job.error.as_deref()), (JobState::Dead, 1, Some("hopeless")));
    }

    async fn a_released_job_has_its_attempt_back(cx: &Context) {
        cx.create_with_attempts(2).await;
        let id = cx.add_body("x").await;
        for _ in 0..5 {
            let claimed = cx.take().await;
            assert_eq!(claimed.attempt, 1);
            assert_eq!(cx.settle(claimed.receipt(), Verdict::Release).await, Settled::Done);
        }
        let job = cx.job(id).await;
        assert_eq!((job.state, job.attempts, job.error), (JobState::Ready, 0, None));
        assert_eq!(cx.settle(cx.take().await.receipt(), nack("x")).await, Settled::Done);
        let last = cx.take().await;
        assert_eq!(last.attempt, 2);
        // The last attempt too.
        assert_eq!(cx.settle(last.receipt(), Verdict::Release).await, Settled::Done);
        assert_eq!(cx.take().await.attempt, 2);
    }

    async fn claims_are_settled_each_for_itself_and_answered_in_order(cx: &Context) {
        cx.create_with_attempts(1).await;
        cx.enqueue(["a", "b", "c", "d"].map(job).into()).await;
        let claimed = cx.claim(Claim { limit: 4, ..cx.asks() }).await;
        let stale = Receipt { token: Token(claimed[2].token.0 + 1000), ..claimed[2].receipt() };
        let settle = |receipt, verdict| Settle { receipt, verdict };
        let settles = vec![
            settle(claimed[3].receipt(), Verdict::Ack),
            settle(stale, Verdict::Ack),
            settle(claimed[0].receipt(), nack("x")),
            settle(claimed[1].receipt(), Verdict::Release),
            settle(claimed[3].receipt(), Verdict::Ack),
        ];
        let settled = cx.queues.settle(&cx.queue, settles).await.expect("answers");
        assert_eq!(settled, [Settled::Done, Settled::Fenced, Settled::Dead, Settled::Done, Settled::Fenced]);
        assert_eq!(cx.in_state(JobState::Claimed).await, [claimed[2].id]);
        assert_eq!(cx.in_state(JobState::Ready).await, [claimed[1].id]);
        assert!(cx.queues.settle(&cx.queue, Vec::new()).await.expect("answers").is_empty());
    }

    async fn of_those_who_settle_one_claim_one_does(cx: &Context) {
        cx.create().await;
        cx.add_body("x").await;
        let receipt = cx.take().await.receipt();
        let clients = [cx.queues.clone(), cx.another_client().await];
        let settled = cx.parallel(20, |task| {
            let (queues, queue) = (clients[task % 2].clone(), cx.queue.clone());
            async move { settle_with(&queues, &queue, receipt, Verdict::Ack).await }
        }).await;
        assert_eq!(settled.iter().filter(|settled| **settled == Settled::Done).count(), 1, "{settled:?}");
        assert_eq!(cx.stats().await.done, 1);
    }

    async fn a_claim_that_is_extended_outlives_its_lease(cx: &Context) {
        // On a machine so busy that an extension comes late the lease may end: then once more.
        for _ in 0..10 {
            if outlives_its_lease(cx).await {
                return;
            }
        }
        panic!("no extension came in time, ten times over");
    }
}

async fn assert_fenced(cx: &Context, receipt: Receipt, what: &str) {
    for verdict in [Verdict::Ack, nack("x"), kill("x"), Verdict::Release, Verdict::Extend { lease: LONG }] {
        assert_eq!(cx.settle(receipt, verdict.clone()).await, Settled::Fenced, "{verdict:?} with a receipt {what}");
    }
}

/// Claims for a short time and then extends to a long one; `false` if that was too late to say anything.
async fn outlives_its_lease(cx: &Context) -> bool {
    let _ = cx.queues.put_queue(&cx.queue, &Default::default()).await.expect("it is there");
    let id = cx.add_body("x").await;
    let claimed = cx.claim(Claim { lease: SHORT * 3, ..cx.asks() }).await.remove(0);
    let extended = cx.settle(claimed.receipt(), Verdict::Extend { lease: LONG }).await;
    // Another one, whose lease began later, ends: by then the first would have.
    let later = cx.add_body("y").await;
    cx.claim(Claim { lease: SHORT * 3, ..cx.asks() }).await;
    cx.until("a lease ends", async || cx.job(later).await.state != JobState::Claimed).await;
    let is_held = cx.job(id).await.state == JobState::Claimed;
    assert!(is_held || extended == Settled::Fenced, "an extended claim ended with its first lease");
    if is_held {
        cx.ack(&claimed).await;
    }
    while let Some(left) = cx.claim_one().await {
        cx.ack(&left).await;
    }
    is_held
}
