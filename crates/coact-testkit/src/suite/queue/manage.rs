//! Jobs that no worker has: looked at, cancelled, given another time, expired.

use coact_core::contract::queue::{Claim, JobId, JobState, Moved, NewJob, Verdict};

use super::{
    Context,
    context::{SHORT, bodies, job, keyed, kill},
};

cases! {
    async fn a_cancelled_job_is_gone(cx: &Context) {
        cx.create().await;
        let ready = cx.add_body("ready").await;
        let delayed = cx.add(NewJob { run_at_ms: Some(cx.far()), ..job("delayed") }).await;
        for id in [ready, delayed] {
            assert_eq!(cx.queues.cancel(&cx.queue, id).await.expect("answers"), Moved::Done);
            assert_eq!(cx.find(id).await, None);
            assert_eq!(cx.queues.cancel(&cx.queue, id).await.expect("answers"), Moved::NotFound);
        }
        assert_eq!(cx.claim_one().await, None);
    }

    async fn a_job_that_a_worker_has_is_in_flight(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let claimed = cx.take().await;
        assert_eq!(cx.queues.cancel(&cx.queue, id).await.expect("answers"), Moved::InFlight);
        assert_eq!(cx.queues.reschedule(&cx.queue, id, cx.far()).await.expect("answers"), Moved::InFlight);
        assert_eq!(cx.queues.promote(&cx.queue, id).await.expect("answers"), Moved::InFlight);
        cx.ack(&claimed).await;
        assert_eq!(cx.queues.cancel(&cx.queue, id).await.expect("answers"), Moved::NotFound);
    }

    async fn a_dead_or_unknown_job_is_not_found(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let _ = cx.settle(cx.take().await.receipt(), kill("x")).await;
        for id in [id, JobId(id.0 + 1), JobId(0), JobId(u64::MAX)] {
            assert_eq!(cx.queues.cancel(&cx.queue, id).await.expect("answers"), Moved::NotFound);
            assert_eq!(cx.queues.reschedule(&cx.queue, id, 1).await.expect("answers"), Moved::NotFound);
            assert_eq!(cx.queues.promote(&cx.queue, id).await.expect("answers"), Moved::NotFound);
        }
        assert_eq!(cx.job(id).await.state, JobState::Dead);
        assert_eq!(cx.find(JobId(u64::MAX)).await, None);
    }

    async fn a_rescheduled_job_has_another_time(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let far = cx.far();
        assert_eq!(cx.queues.reschedule(&cx.queue, id, far).await.expect("answers"), Moved::Done);
        let moved = cx.job(id).await;
        assert_eq!((moved.state, moved.job.run_at_ms), (JobState::Delayed, Some(far)));
        assert_eq!(cx.claim_one().await, None);
        let soon = cx.in_ms(300);
        assert_eq!(cx.queues.reschedule(&cx.queue, id, soon).await.expect("answers"), Moved::Done);
        let claimed = cx.await_one().await;
        assert!(claimed.id == id && cx.env.wall_ms() >= soon, "early");
        assert_eq!(claimed.attempt, 1);
    }

    async fn a_promoted_job_is_ready_and_wakes_a_claim(cx: &Context) {
        cx.create().await;
        let id = cx.add(NewJob { run_at_ms: Some(cx.far()), ..job("x") }).await;
        assert_eq!(cx.job(id).await.state, JobState::Delayed);
        let waiting = cx.waiting_claim();
        assert_eq!(cx.queues.promote(&cx.queue, id).await.expect("answers"), Moved::Done);
        assert_eq!(bodies(&cx.within("a claim of a promoted job", waiting).await), ["x"]);
        let again = cx.add_body("ready").await;
        assert_eq!(cx.queues.promote(&cx.queue, again).await.expect("answers"), Moved::Done, "it is ready already");
    }

    async fn a_job_that_expires_is_dead_and_says_so(cx: &Context) {
        cx.create().await;
        let expires_ms = Some(cx.in_ms(300));
        let run_at_ms = Some(cx.far());
        let ids = [
            cx.add(NewJob { expires_ms, run_at_ms, ..job("delayed") }).await,
            cx.add(NewJob { expires_ms, ..keyed("first", "k") }).await,
            cx.add(NewJob { expires_ms, ..keyed("blocked", "k") }).await,
        ];
        cx.queues.pause(&cx.queue, true).await.expect("pauses");
        for id in ids {
            cx.until_state(id, JobState::Dead).await;
            let job = cx.job(id).await;
            assert!(job.error.as_deref().is_some_and(|error| error.contains("expired")), "{:?}", job.error);
            assert!(job.died_ms >= expires_ms, "{:?} before {expires_ms:?}", job.died_ms);
            assert_eq!(job.attempts, 0);
        }
    }

    async fn a_job_that_has_expired_is_never_claimed(cx: &Context) {
        cx.create().await;
        let expired = [0, 1, cx.env.wall_ms() - 1].map(|at| NewJob { expires_ms: Some(at), ..job("expired") });
        let ids = cx.enqueue(expired.into()).await;
        cx.add_body("live").await;
        assert_eq!(cx.claim_all().await, ["live"]);
        for id in ids {
            cx.until_state(id.id(), JobState::Dead).await;
        }
    }

    async fn a_job_does_not_expire_while_a_worker_has_it(cx: &Context) {
        cx.create().await;
        let expires_ms = cx.in_ms(2_000);
        let id = cx.add(NewJob { expires_ms: Some(expires_ms), ..job("x") }).await;
        // A machine so busy that it expired before shows nothing.
        let Some(claimed) = cx.claim_one().await else { return };
        cx.until("its time is over", async || cx.env.wall_ms() > expires_ms + 200).await;
        assert_eq!(cx.job(id).await.state, JobState::Claimed);
        cx.ack(&claimed).await;
        let id = cx.add(NewJob { expires_ms: Some(cx.in_ms(600)), ..job("y") }).await;
        if !cx.claim(Claim { lease: SHORT * 3, ..cx.asks() }).await.is_empty() {
            cx.until_state(id, JobState::Dead).await;
        }
    }

    async fn a_released_job_that_expired_meanwhile_is_dead(cx: &Context) {
        cx.create().await;
        let expires_ms = cx.in_ms(1_000);
        let id = cx.add(NewJob { expires_ms: Some(expires_ms), ..job("x") }).await;
        let Some(claimed) = cx.claim_one().await else { return };
        cx.until("its time is over", async || cx.env.wall_ms() > expires_ms).await;
        let _ = cx.settle(claimed.receipt(), Verdict::Release).await;
        assert_eq!(cx.claim_one().await, None, "an expired job was claimed");
        cx.until_state(id, JobState::Dead).await;
    }

    async fn times_at_the_end_of_all_are_taken(cx: &Context) {
        cx.create().await;
        let never = cx.add(NewJob { run_at_ms: Some(u64::MAX), ..job("never") }).await;
        let lasting = cx.add(NewJob { expires_ms: Some(u64::MAX), ..job("lasting") }).await;
        assert_eq!((cx.job(never).await.state, cx.job(lasting).await.state), (JobState::Delayed, JobState::Ready));
        assert_eq!(cx.claim_all().await, ["lasting"]);
        assert_eq!(cx.queues.reschedule(&cx.queue, never, u64::MAX).await.expect("answers"), Moved::Done);
    }

    async fn jobs_are_listed_by_state_and_id_in_pages(cx: &Context) {
        cx.create().await;
        let run_at_ms = Some(cx.far());
        let delayed: Vec<_> = cx.enqueue((0..5).map(|_| NewJob { run_at_ms, ..job("d") }).collect()).await;
        let ready = cx.enqueue(vec![keyed("r", "k"), keyed("b", "k")]).await;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = cx.queues.jobs(&cx.queue, JobState::Delayed, after, 2).await.expect("answers");
            assert!(page.len() <= 2 && page.iter().all(|job| job.state == JobState::Delayed));
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            found.extend(page.into_iter().map(|job| job.id));
        }
        assert_eq!(found, delayed.iter().map(|enqueued| enqueued.id()).collect::<Vec<_>>());
        assert_eq!(cx.in_state(JobState::Ready).await, [ready[0].id()]);
        assert_eq!(cx.in_state(JobState::Blocked).await, [ready[1].id()]);
        assert!(cx.in_state(JobState::Claimed).await.is_empty() && cx.in_state(JobState::Dead).await.is_empty());
        let last = Some(JobId(u64::MAX));
        assert!(cx.queues.jobs(&cx.queue, JobState::Delayed, last, 10).await.expect("answers").is_empty());
    }
}
