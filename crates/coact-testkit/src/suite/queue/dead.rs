//! The dead: listed, made ready again, removed, forgotten in time.

use std::time::Duration;

use coact_core::contract::queue::{JobId, JobState, NewJob, QueueSpec};

use super::{
    Context,
    context::{job, kill},
};

cases! {
    async fn dead_jobs_are_listed_with_what_killed_them(cx: &Context) {
        cx.create().await;
        let ids = dead(cx, 5).await;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = cx.queues.jobs(&cx.queue, JobState::Dead, after, 2).await.expect("answers");
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            found.extend(page);
        }
        assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), ids);
        for (number, dead) in found.iter().enumerate() {
            assert_eq!(dead.error.as_deref(), Some(format!("killed {number}").as_str()));
            assert_eq!(dead.job.body, format!("{number}"));
            assert!(dead.died_ms.is_some());
        }
    }

    async fn a_redriven_job_has_all_its_attempts(cx: &Context) {
        cx.create().await;
        let ids = dead(cx, 3).await;
        let unknown = JobId(ids[2].0 + 100);
        let redriven = cx.queues.redrive(&cx.queue, vec![ids[2], unknown, ids[0]], 0).await.expect("answers");
        assert_eq!(redriven, 2);
        assert_eq!(cx.in_state(JobState::Dead).await, [ids[1]]);
        let claimed = cx.take().await;
        assert_eq!((claimed.id, claimed.attempt), (ids[0], 1));
        let again = cx.queues.redrive(&cx.queue, vec![ids[0], ids[2]], 0).await.expect("answers");
        assert_eq!(again, 0, "neither is dead");
        let job = cx.job(ids[2]).await;
        assert_eq!((job.state, job.attempts, job.died_ms), (JobState::Ready, 0, None));
    }

    async fn a_redriven_job_wakes_a_claim(cx: &Context) {
        cx.create().await;
        let ids = dead(cx, 1).await;
        let waiting = cx.waiting_claim();
        assert_eq!(cx.queues.redrive(&cx.queue, ids.clone(), 0).await.expect("answers"), 1);
        assert_eq!(cx.within("a claim of a redriven job", waiting).await[0].id, ids[0]);
    }

    async fn the_oldest_dead_are_redriven_and_purged_first(cx: &Context) {
        cx.create().await;
        let ids = dead(cx, 6).await;
        assert_eq!(cx.queues.redrive(&cx.queue, Vec::new(), 2).await.expect("answers"), 2);
        assert_eq!(cx.in_state(JobState::Ready).await, ids[..2]);
        assert_eq!(cx.queues.purge(&cx.queue, Vec::new(), 1).await.expect("answers"), 1);
        assert_eq!(cx.in_state(JobState::Dead).await, ids[3..]);
        assert_eq!(cx.find(ids[2]).await, None);
        assert_eq!(cx.queues.purge(&cx.queue, Vec::new(), 0).await.expect("answers"), 0);
        assert_eq!(cx.queues.purge(&cx.queue, Vec::new(), 1000).await.expect("answers"), 3);
        assert_eq!(cx.queues.redrive(&cx.queue, Vec::new(), 1000).await.expect("answers"), 0);
        assert_eq!(cx.in_state(JobState::Ready).await, ids[..2], "a purge took what lives");
    }

    async fn dead_jobs_that_are_named_are_purged(cx: &Context) {
        cx.create().await;
        let ids = dead(cx, 3).await;
        let live = cx.add_body("live").await;
        let purged = cx.queues.purge(&cx.queue, vec![live, ids[1], ids[1]], 0).await.expect("answers");
        assert_eq!(purged, 1);
        assert_eq!(cx.in_state(JobState::Dead).await, [ids[0], ids[2]]);
        assert_eq!(cx.job(live).await.state, JobState::Ready);
    }

    async fn dead_jobs_are_forgotten_in_time(cx: &Context) {
        cx.create_with(QueueSpec { keep_dead: Duration::from_millis(300), ..QueueSpec::default() }).await;
        cx.add(NewJob { name: Some("n".to_owned()), ..job("x") }).await;
        let claimed = cx.take().await;
        let _ = cx.settle(claimed.receipt(), kill("x")).await;
        cx.until("it is forgotten", async || cx.find(claimed.id).await.is_none()).await;
        assert_eq!(cx.queues.find(&cx.queue, "n").await.expect("answers"), None);
        cx.add(NewJob { name: Some("n".to_owned()), ..job("x") }).await;
    }
}

/// Enqueues jobs, and kills one after the other.
async fn dead(cx: &Context, count: usize) -> Vec<JobId> {
    let mut ids = Vec::new();
    for number in 0..count {
        let id = cx.add_body(&number.to_string()).await;
        let _ = cx.settle(cx.take().await.receipt(), kill(&format!("killed {number}"))).await;
        ids.push(id);
    }
    ids
}
