//! Limits: what is just allowed works, one more is refused.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::queue::{Claim, NewJob, PRIORITY_MAX, QueueSpec, Settle, Verdict},
};

use super::{
    Context,
    context::{LONG, assert_kind, job},
};

/// The shortest claim that every engine takes.
const LEASE_MIN: Duration = Duration::from_millis(50);

cases! {
    async fn what_no_engine_takes_is_invalid(cx: &Context) {
        cx.create().await;
        let most = cx.queues.guarantees().limits.record_bytes;
        let wrong = [
            NewJob { priority: PRIORITY_MAX + 1, ..job("x") },
            NewJob { name: Some(String::new()), ..job("x") },
            NewJob { name: Some("x".repeat(129)), ..job("x") },
            NewJob { order_key: Some(vec![b'x'; 1025].into()), ..job("x") },
            NewJob { max_attempts: Some(0), ..job("x") },
            job(&"x".repeat(most)),
            NewJob { headers: vec![("h".to_owned(), vec![b'x'; most].into())], ..job("x") },
        ];
        for (index, wrong) in wrong.into_iter().enumerate() {
            let result = cx.queues.enqueue(&cx.queue, vec![wrong]).await;
            assert!(result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Invalid), "{index}: {result:?}");
        }
        assert_eq!(cx.stats().await.enqueued, 0);
    }

    async fn what_is_just_allowed_is_taken(cx: &Context) {
        cx.create().await;
        let most = cx.queues.guarantees().limits.record_bytes;
        let largest = job(&"x".repeat(most - job("").size()));
        assert_eq!(largest.size(), most);
        cx.add(largest.clone()).await;
        let claimed = cx.take().await;
        assert!(claimed.job.body == largest.body, "{} bytes came back changed", claimed.job.body.len());
        let named = NewJob {
            name: Some("x".repeat(128)),
            order_key: Some(vec![0; 1024].into()),
            priority: PRIORITY_MAX,
            max_attempts: Some(u32::MAX),
            ..job("")
        };
        cx.add(named.clone()).await;
        let claimed = cx.take().await;
        assert_eq!(claimed.max_attempts, u32::MAX);
        assert_eq!(claimed.job, NewJob { max_attempts: claimed.job.max_attempts, ..named });
    }

    async fn too_much_at_once_is_invalid(cx: &Context) {
        cx.create().await;
        let limits = cx.queues.guarantees().limits;
        let large = job(&"x".repeat(limits.record_bytes / 2));
        let many = vec![large; limits.batch_bytes / (limits.record_bytes / 2) + 1];
        assert_kind(cx.queues.enqueue(&cx.queue, many).await, ErrorKind::Invalid);
        assert_kind(cx.queues.enqueue(&cx.queue, vec![job(""); 10_001]).await, ErrorKind::Invalid);
        assert_eq!(cx.stats().await.enqueued, 0);
        cx.enqueue(vec![job(""); 10_000]).await;
        let mut claimed = 0;
        while claimed < 10_000 {
            let some = cx.claim(Claim { limit: 10_000, ..cx.asks() }).await.len();
            assert!(some > 0, "{claimed} of 10000 jobs were claimed");
            claimed += some;
        }
    }

    async fn a_claim_outside_the_limits_is_invalid(cx: &Context) {
        cx.create().await;
        cx.add_body("x").await;
        let most = cx.queues.guarantees().limits.wait_max;
        let wrong = [
            Claim { limit: 0, ..cx.asks() },
            Claim { limit: 10_001, ..cx.asks() },
            Claim { lease: Duration::ZERO, ..cx.asks() },
            Claim { lease: LEASE_MIN - Duration::from_millis(1), ..cx.asks() },
            Claim { lease: most + Duration::from_millis(1), ..cx.asks() },
            Claim { lease: Duration::MAX, ..cx.asks() },
            Claim { wait: most + Duration::from_millis(1), ..cx.asks() },
            Claim { wait: Duration::MAX, ..cx.asks() },
        ];
        for wrong in wrong {
            assert_kind(cx.queues.claim(wrong).await, ErrorKind::Invalid);
        }
        assert_eq!(cx.stats().await.claims, 0);
        let claimed = cx.claim(Claim { lease: most, wait: most, ..cx.asks() }).await.remove(0);
        for lease in [LEASE_MIN - Duration::from_millis(1), most + Duration::from_millis(1)] {
            let settle = vec![Settle { receipt: claimed.receipt(), verdict: Verdict::Extend { lease } }];
            assert_kind(cx.queues.settle(&cx.queue, settle).await, ErrorKind::Invalid);
        }
        cx.ack(&claimed).await;
    }

    async fn a_queue_without_attempts_is_invalid(cx: &Context) {
        let spec = QueueSpec { max_attempts: 0, keep_dead: LONG };
        assert_kind(cx.queues.put_queue(&cx.queue, &spec).await, ErrorKind::Invalid);
        assert_eq!(cx.queues.queue(&cx.queue).await.expect("answers"), None);
    }
}
