//! Leases: whoever is late has lost its job, and learns it.

use coact_core::contract::queue::{Claim, JobState, Settled, Verdict};

use super::{
    Context,
    context::{LONG, SHORT, bodies, job, kill, nack},
};

cases! {
    async fn a_job_whose_lease_ended_goes_to_another_worker(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let first = cx.claim(Claim { lease: SHORT, worker: "slow".to_owned(), ..cx.asks() }).await.remove(0);
        let begun = cx.env.now();
        let second = cx.await_one().await;
        // Counted from when the claim was asked for, as far as anybody can tell.
        assert!(cx.env.now() - begun >= SHORT / 2, "a lease of {SHORT:?} ended at once");
        assert_eq!((second.id, second.attempt), (id, 2));
        assert!(second.token > first.token);
        for verdict in [Verdict::Ack, nack("x"), kill("x"), Verdict::Release, Verdict::Extend { lease: LONG }] {
            let settled = cx.settle(first.receipt(), verdict.clone()).await;
            assert_eq!(settled, Settled::Fenced, "{verdict:?} of a worker whose lease ended");
        }
        assert_eq!(cx.job(id).await.state, JobState::Claimed, "a late worker changed the job");
        cx.ack(&second).await;
    }

    async fn a_lease_that_ended_is_over_though_nobody_claimed_since(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let claimed = cx.claim(Claim { lease: SHORT, ..cx.asks() }).await.remove(0);
        cx.until_state(id, JobState::Ready).await;
        assert_eq!(cx.settle(claimed.receipt(), Verdict::Ack).await, Settled::Fenced);
        assert_eq!(cx.settle(claimed.receipt(), Verdict::Extend { lease: LONG }).await, Settled::Fenced);
        let job = cx.job(id).await;
        assert_eq!((job.state, job.attempts), (JobState::Ready, 1));
    }

    async fn leases_that_end_count_as_attempts(cx: &Context) {
        cx.create_with_attempts(2).await;
        let id = cx.add_body("x").await;
        for _ in 0..2 {
            cx.until("a job is ready", async || {
                !cx.claim(Claim { lease: SHORT, ..cx.asks() }).await.is_empty()
            }).await;
        }
        cx.until_state(id, JobState::Dead).await;
        let job = cx.job(id).await;
        assert_eq!(job.attempts, 2);
        assert!(job.error.is_some(), "why it is dead");
        assert_eq!(cx.claim_one().await, None);
    }

    async fn a_short_lease_does_not_end_a_long_one(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![job("long"), job("short")]).await;
        let long = cx.take().await;
        cx.claim(Claim { lease: SHORT, ..cx.asks() }).await;
        let again = cx.await_one().await;
        assert_eq!(bodies(&[again]), ["short"]);
        cx.ack(&long).await;
    }

    async fn an_extension_may_shorten_a_lease(cx: &Context) {
        cx.create().await;
        cx.add_body("x").await;
        let first = cx.take().await;
        assert_eq!(cx.settle(first.receipt(), Verdict::Extend { lease: SHORT }).await, Settled::Done);
        let second = cx.await_one().await;
        assert!(second.token > first.token);
        assert_eq!(cx.settle(first.receipt(), Verdict::Ack).await, Settled::Fenced);
    }

    async fn many_leases_end(cx: &Context) {
        const JOBS: usize = 200;
        cx.create().await;
        cx.enqueue((0..JOBS).map(|number| job(&number.to_string())).collect()).await;
        let claimed = cx.claim(Claim { limit: JOBS, lease: SHORT, ..cx.asks() }).await;
        assert_eq!(claimed.len(), JOBS);
        cx.until("all are ready again", async || cx.stats().await.ready == JOBS as u64).await;
        assert_eq!(cx.claim(Claim { limit: JOBS, ..cx.asks() }).await.len(), JOBS);
    }
}
