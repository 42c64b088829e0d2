//! The life of a store: closing it, and ending it hard and starting it again.

use coact_core::{
    Error, ErrorKind,
    contract::queue::{Claim, JobId, JobState, NewJob, QueueHandle, QueueSpec, Settled, Verdict},
    name::Queue,
};
use futures::future::join_all;

use super::{
    ALONE, Context, DURABLE, RESTARTS,
    context::{LONG, assert_kind, body, job, keyed, kill, nack_after, settle_with},
};
use crate::bed::PATIENCE;

cases! {
    #[needs(ALONE)]
    async fn a_closed_client_says_so(cx: &Context) {
        cx.create().await;
        let (queues, queue) = (cx.another_client().await, &cx.queue);
        let clone = queues.clone();
        queues.close().await.expect("closes");
        let answers = [
            ("put_queue", queues.put_queue(queue, &QueueSpec::default()).await.err()),
            ("queue", queues.queue(queue).await.err()),
            ("queues", clone.queues("", 1).await.err()),
            ("enqueue", clone.enqueue(queue, vec![job("x")]).await.err()),
            ("claim", queues.claim(cx.asks()).await.err()),
            ("settle", queues.settle(queue, Vec::new()).await.err()),
            ("cancel", queues.cancel(queue, JobId(1)).await.err()),
            ("jobs", queues.jobs(queue, JobState::Ready, None, 1).await.err()),
            ("find", queues.find(queue, "n").await.err()),
            ("redrive", queues.redrive(queue, Vec::new(), 1).await.err()),
            ("pause", queues.pause(queue, true).await.err()),
            ("stats", queues.stats(queue).await.err()),
            ("delete_queue", queues.delete_queue(queue).await.err()),
        ];
        for (call, error) in &answers {
            let kind = error.as_ref().map(Error::kind);
            assert_eq!(kind, Some(ErrorKind::Closed), "{call} on a closed client; all answers: {answers:?}");
        }
        // Once more is no error.
        queues.close().await.expect("is closed");
    }

    #[needs(ALONE)]
    async fn a_claim_that_waits_ends_when_its_client_is_closed(cx: &Context) {
        cx.create().await;
        let queues = cx.another_client().await;
        let (claimer, claim) = (queues.clone(), Claim { wait: PATIENCE * 2, ..cx.asks() });
        let waiting = cx.spawn(async move { claimer.claim(claim).await });
        queues.close().await.expect("closes");
        assert_kind(cx.within("a claim of a closed client", waiting).await, ErrorKind::Closed);
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn a_restart_keeps_every_acknowledged_job(cx: &Context) {
        const WRITERS: usize = 4;
        const ENOUGH: u64 = 50;
        cx.create().await;
        let writers: Vec<_> =
            (0..WRITERS).map(|_| cx.spawn(enqueue_until_it_fails(cx.queues.clone(), cx.queue.clone()))).collect();
        cx.until("there is something to lose", async || cx.stats().await.ready >= ENOUGH).await;
        let queues = cx.restart().await;
        // Beds may restart so quickly that a client repeats instead of failing.
        cx.queues.close().await.expect("closes");
        for (id, body) in join_all(writers).await.concat() {
            let found = queues.job(&cx.queue, id).await.expect("answers").map(|job| job.job.body);
            assert_eq!(found.as_deref(), Some(body.as_bytes()), "{id} was acknowledged and is lost");
        }
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn every_state_outlives_a_restart(cx: &Context) {
        cx.create_with(QueueSpec { max_attempts: 7, ..QueueSpec::default() }).await;
        let named = NewJob { name: Some("n".to_owned()), priority: 9, ..job("dead") };
        let dead = cx.add(named).await;
        let _ = cx.settle(cx.take().await.receipt(), kill("broken")).await;
        let resting = cx.add_body("resting").await;
        assert_eq!(cx.settle(cx.take().await.receipt(), nack_after(LONG, "later")).await, Settled::Done);
        let done = cx.add_body("done").await;
        cx.ack(&cx.take().await).await;
        let claimed = cx.add(keyed("claimed", "k")).await;
        let claim = cx.take().await;
        let blocked = cx.add(keyed("blocked", "k")).await;
        let ready = cx.add_body("ready").await;
        let before = cx.stats().await;
        let queues = cx.restart().await;
        let job = async |id| queues.job(&cx.queue, id).await.expect("answers");
        let state = async |id| job(id).await.map(|job| job.state);
        let after = queues.stats(&cx.queue).await.expect("answers");
        assert_eq!(after, before);
        assert_eq!(state(dead).await, Some(JobState::Dead));
        assert_eq!(job(dead).await.expect("it is there").error.as_deref(), Some("broken"));
        assert_eq!(queues.find(&cx.queue, "n").await.expect("answers"), Some(dead));
        assert_eq!(state(resting).await, Some(JobState::Delayed));
        assert_eq!(job(resting).await.expect("it is there").attempts, 1);
        assert_eq!(state(done).await, None);
        assert_eq!(state(claimed).await, Some(JobState::Claimed));
        assert_eq!(state(blocked).await, Some(JobState::Blocked));
        assert_eq!(state(ready).await, Some(JobState::Ready));
        // The claim goes on, and the tokens too.
        assert_eq!(settle_with(&queues, &cx.queue, claim.receipt(), Verdict::Ack).await, Settled::Done);
        let next = queues.claim(Claim { limit: 10, ..cx.asks() }).await.expect("answers");
        assert_eq!(next.iter().map(body).collect::<Vec<_>>(), ["blocked", "ready"]);
        assert!(next.iter().all(|next| next.token > claim.token), "a token was given again");
        let new = queues.enqueue(&cx.queue, vec![NewJob::new("new")]).await.expect("answers")[0].id();
        assert!(new > ready, "an id was given again");
    }
}

/// Enqueues one job after another, and returns those that were acknowledged.
async fn enqueue_until_it_fails(queues: QueueHandle, queue: Queue) -> Vec<(JobId, String)> {
    let mut acknowledged = Vec::new();
    loop {
        let body = acknowledged.len().to_string();
        match queues.enqueue(&queue, vec![job(&body)]).await {
            Ok(enqueued) => acknowledged.push((enqueued[0].id(), body)),
            Err(_) => return acknowledged,
        }
    }
}
