//! Numbers about a queue.

use coact_core::contract::queue::{JobState, NewJob, QueueStats, Verdict};

use super::{
    Context,
    context::{job, keyed, kill},
};

cases! {
    async fn a_new_queue_has_nothing(cx: &Context) {
        cx.create().await;
        assert_eq!(cx.stats().await, QueueStats::default());
    }

    async fn each_state_is_counted(cx: &Context) {
        cx.create().await;
        let far = cx.far();
        let urgent = |body: &str| NewJob { priority: 9, ..job(body) };
        cx.enqueue(vec![urgent("claimed"), urgent("dead"), urgent("done"), urgent("released")]).await;
        cx.take().await;
        let (dead, done, released) = (cx.take().await, cx.take().await, cx.take().await);
        let _ = cx.settle(dead.receipt(), kill("x")).await;
        cx.ack(&done).await;
        let _ = cx.settle(released.receipt(), Verdict::Release).await;
        let delayed = |at| NewJob { run_at_ms: Some(at), ..job("delayed") };
        cx.enqueue(vec![delayed(far + 7), delayed(far), delayed(far + 3)]).await;
        cx.enqueue(vec![keyed("ready", "k"), keyed("blocked", "k"), keyed("blocked", "k")]).await;
        let stats = cx.stats().await;
        let oldest = cx.job(released.id).await.enqueued_ms;
        assert!(stats.oldest_ready_ms.is_some_and(|at| at >= oldest && at <= cx.env.wall_ms()), "{stats:?}");
        assert_eq!(stats, QueueStats {
            ready: 2,
            delayed: 3,
            blocked: 2,
            claimed: 1,
            dead: 1,
            oldest_ready_ms: stats.oldest_ready_ms,
            next_due_ms: Some(far),
            enqueued: 10,
            done: 1,
            claims: 4,
        });
        for (state, count) in JobState::ALL.into_iter().zip([2, 3, 2, 1, 1]) {
            assert_eq!(cx.in_state(state).await.len(), count, "{}", state.name());
        }
    }

    async fn a_job_that_is_due_is_counted_as_ready(cx: &Context) {
        cx.create().await;
        let id = cx.add(NewJob { run_at_ms: Some(cx.in_ms(200)), ..job("x") }).await;
        cx.until("it is ready", async || cx.stats().await.ready == 1).await;
        let stats = cx.stats().await;
        assert_eq!((stats.delayed, stats.next_due_ms), (0, None));
        assert_eq!(cx.job(id).await.state, JobState::Ready);
    }
}
