//! Claims: the most urgent first, then the oldest; each job to one worker.

use std::{collections::BTreeSet, time::Duration};

use coact_core::contract::queue::{Claim, JobState, NewJob, Settled, Verdict};
use futures::future::join_all;

use super::{
    Context,
    context::{bodies, body, job, kill, nack},
};

cases! {
    async fn the_most_urgent_comes_first_then_the_oldest(cx: &Context) {
        cx.create().await;
        let of = |priority, body: &str| NewJob { priority, ..job(body) };
        cx.enqueue(vec![of(0, "0a"), of(9, "9a"), of(5, "5a"), of(0, "0b")]).await;
        cx.enqueue(vec![of(9, "9b"), of(5, "5b"), of(1, "1a")]).await;
        assert_eq!(cx.claim_all().await, ["9a", "9b", "5a", "5b", "1a", "0a", "0b"]);
    }

    async fn a_job_that_comes_back_is_as_old_as_it_was(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![job("a"), job("b")]).await;
        let first = cx.take().await;
        assert_eq!(cx.settle(first.receipt(), nack("again")).await, Settled::Done);
        assert_eq!(cx.claim_all().await, ["a", "b"]);
    }

    async fn no_more_are_claimed_than_asked_for(cx: &Context) {
        cx.create().await;
        cx.enqueue((0..10).map(|number| job(&number.to_string())).collect()).await;
        let three = cx.claim(Claim { limit: 3, ..cx.asks() }).await;
        assert_eq!(bodies(&three), ["0", "1", "2"]);
        assert_eq!(cx.claim(Claim { limit: 100, ..cx.asks() }).await.len(), 7);
        assert!(cx.claim(Claim { limit: 100, ..cx.asks() }).await.is_empty());
    }

    async fn a_claim_shows_in_the_job(cx: &Context) {
        cx.create().await;
        let id = cx.add_body("x").await;
        let claimed = cx.claim(Claim { worker: "wörker".to_owned(), ..cx.asks() }).await.remove(0);
        let job = cx.job(id).await;
        assert_eq!((job.state, job.attempts, job.worker.as_deref()), (JobState::Claimed, 1, Some("wörker")));
        assert_eq!((claimed.attempt, claimed.lease), (1, cx.asks().lease));
    }

    async fn tokens_grow_with_each_claim(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![job("a"), job("b"), job("c")]).await;
        let mut tokens = Vec::new();
        for verdict in [nack("x"), Verdict::Release, nack("y"), kill("z"), Verdict::Ack] {
            let claimed = cx.take().await;
            tokens.push(claimed.token);
            assert_ne!(cx.settle(claimed.receipt(), verdict).await, Settled::Fenced);
        }
        let last = cx.claim(Claim { limit: 10, ..cx.asks() }).await;
        tokens.extend(last.iter().map(|claimed| claimed.token));
        assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
    }

    async fn two_claimers_never_get_the_same_job(cx: &Context) {
        const JOBS: usize = 300;
        cx.create().await;
        cx.enqueue((0..JOBS).map(|number| job(&number.to_string())).collect()).await;
        let clients = [cx.queues.clone(), cx.another_client().await];
        let claimed = cx.parallel(10, |task| {
            let (queues, claim) = (clients[task % 2].clone(), Claim { limit: 1 + task % 4, ..cx.asks() });
            async move {
                let mut mine = Vec::new();
                loop {
                    let claimed = queues.claim(claim.clone()).await.expect("answers");
                    if claimed.is_empty() {
                        return mine;
                    }
                    mine.extend(claimed);
                }
            }
        }).await.concat();
        assert_eq!(claimed.len(), JOBS, "a job was lost or claimed twice");
        assert_eq!(claimed.iter().map(|claimed| claimed.id).collect::<BTreeSet<_>>().len(), JOBS);
        assert_eq!(claimed.iter().map(|claimed| claimed.token).collect::<BTreeSet<_>>().len(), JOBS);
    }

    async fn an_enqueued_job_wakes_a_claim_that_waits(cx: &Context) {
        cx.create().await;
        for body in ["a", "b", "c"] {
            let waiting = cx.waiting_claim();
            cx.another_client().await.enqueue(&cx.queue, vec![job(body)]).await.expect("enqueued");
            assert_eq!(bodies(&cx.within("a claim woken by a job", waiting).await), [body]);
        }
    }

    async fn each_job_wakes_a_claim_of_many(cx: &Context) {
        const CLAIMS: usize = 50;
        cx.create().await;
        let waits: Vec<_> = (0..CLAIMS).map(|_| cx.waiting_claim()).collect();
        for number in 0..CLAIMS {
            cx.add_body(&number.to_string()).await;
        }
        let claimed = cx.within("50 claims for 50 jobs", join_all(waits)).await.concat();
        assert_eq!(bodies(&claimed).into_iter().collect::<BTreeSet<_>>().len(), CLAIMS);
    }

    async fn a_job_that_becomes_due_wakes_a_claim_that_waits(cx: &Context) {
        cx.create().await;
        let waiting = cx.waiting_claim();
        let run_at_ms = cx.in_ms(300);
        cx.add(NewJob { run_at_ms: Some(run_at_ms), ..job("x") }).await;
        assert_eq!(bodies(&cx.within("a claim woken by time", waiting).await), ["x"]);
        assert!(cx.env.wall_ms() >= run_at_ms, "{} ms early", run_at_ms - cx.env.wall_ms());
    }

    async fn a_released_job_wakes_a_claim_that_waits(cx: &Context) {
        cx.create().await;
        cx.add_body("x").await;
        let first = cx.take().await;
        let waiting = cx.waiting_claim();
        assert_eq!(cx.settle(first.receipt(), Verdict::Release).await, Settled::Done);
        let second = cx.within("a claim woken by a release", waiting).await.remove(0);
        assert!(second.token > first.token);
    }

    async fn a_failed_job_wakes_a_claim_that_waits(cx: &Context) {
        cx.create().await;
        cx.add_body("x").await;
        let first = cx.take().await;
        let waiting = cx.waiting_claim();
        assert_eq!(cx.settle(first.receipt(), nack("again")).await, Settled::Done);
        assert_eq!(cx.within("a claim woken by a failure", waiting).await[0].attempt, 2);
    }

    async fn a_wait_runs_out(cx: &Context) {
        cx.create().await;
        let (begun, wait) = (cx.env.now(), Duration::from_millis(200));
        let claimed = cx.within("a claim that finds nothing", cx.claim(Claim { wait, ..cx.asks() })).await;
        assert!(claimed.is_empty());
        assert!(cx.env.now() - begun >= wait, "it did not wait");
        // Whoever gave up gets nothing any more.
        cx.add_body("x").await;
        cx.take().await;
    }

    async fn a_claim_that_was_dropped_holds_no_job_for_long(cx: &Context) {
        cx.create().await;
        for round in 0..20 {
            let queues = cx.queues.clone();
            let claim = Claim { wait: Duration::from_secs(30), lease: Duration::from_secs(1), ..cx.asks() };
            let dropped = cx.env.timeout(Duration::from_millis(round % 4), queues.claim(claim)).await;
            assert!(dropped.is_none_or(|claimed| claimed.expect("answers").is_empty()));
            cx.add_body("x").await;
            let claimed = cx.await_one().await;
            cx.ack(&claimed).await;
        }
    }

    async fn a_job_never_runs_before_its_time(cx: &Context) {
        cx.create().await;
        let (begin, count) = (cx.in_ms(200), 40);
        let jobs = (0..count).map(|number| {
            let run_at_ms = begin + number * 37 % 20 * 10;
            NewJob { run_at_ms: Some(run_at_ms), ..job(&run_at_ms.to_string()) }
        });
        cx.enqueue(jobs.collect()).await;
        assert_eq!(cx.in_state(JobState::Delayed).await.len() + cx.in_state(JobState::Ready).await.len(), 40);
        for _ in 0..count {
            let claimed = cx.await_one().await;
            let run_at_ms: u64 = body(&claimed).parse().expect("a time");
            let now = cx.env.wall_ms();
            assert!(now >= run_at_ms, "{} ms early", run_at_ms - now);
            assert!(claimed.job.run_at_ms.is_none_or(|at| at == run_at_ms), "{:?}", claimed.job.run_at_ms);
            cx.ack(&claimed).await;
        }
    }

    async fn a_time_that_has_passed_is_now(cx: &Context) {
        cx.create().await;
        let past = [0, 1, cx.env.wall_ms() - 1_000];
        cx.enqueue(past.map(|run_at_ms| NewJob { run_at_ms: Some(run_at_ms), ..job("x") }).into()).await;
        assert_eq!(cx.claim_all().await.len(), past.len());
    }

    async fn a_paused_queue_gives_no_jobs_and_takes_them(cx: &Context) {
        cx.create().await;
        cx.add_body("a").await;
        let out = cx.take().await;
        cx.queues.pause(&cx.queue, true).await.expect("pauses");
        assert!(cx.queues.queue(&cx.queue).await.expect("answers").expect("it is there").paused);
        cx.add_body("b").await;
        assert_eq!(cx.claim_one().await, None);
        let brief = Claim { wait: Duration::from_millis(50), ..cx.asks() };
        assert!(cx.claim(brief).await.is_empty(), "a claim that waits got a job of a paused queue");
        // Claims that are out go on.
        assert_eq!(cx.settle(out.receipt(), Verdict::Extend { lease: out.lease }).await, Settled::Done);
        cx.ack(&out).await;
        let waiting = cx.waiting_claim();
        cx.queues.pause(&cx.queue, false).await.expect("goes on");
        assert_eq!(bodies(&cx.within("a claim of a queue that goes on", waiting).await), ["b"]);
    }
}
