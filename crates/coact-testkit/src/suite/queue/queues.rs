//! Queues: created, changed, described, listed, deleted.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::queue::{
        Claim, Enqueued, JobId, JobState, NewJob, QueueInfo, QueueSpec, Receipt, Settle, Token, Verdict,
    },
    name::Queue,
};

use super::{
    Context,
    context::{assert_kind, job},
};
use crate::bed::PATIENCE;

cases! {
    async fn a_queue_is_created_changed_and_described(cx: &Context) {
        let describe = async || cx.queues.queue(&cx.queue).await.expect("answers");
        assert_eq!(describe().await, None);
        let spec = QueueSpec { max_attempts: 3, keep_dead: Duration::from_secs(60) };
        cx.create_with(spec.clone()).await;
        assert_eq!(describe().await, Some(QueueInfo { name: cx.queue.clone(), spec, paused: false }));
        cx.queues.pause(&cx.queue, true).await.expect("pauses");
        let spec = QueueSpec { max_attempts: 7, keep_dead: Duration::from_secs(120) };
        assert!(!cx.queues.put_queue(&cx.queue, &spec).await.expect("changes"), "it was there");
        let changed = QueueInfo { name: cx.queue.clone(), spec, paused: true };
        assert_eq!(describe().await, Some(changed), "a change starts no claims");
    }

    async fn a_deleted_queue_takes_its_jobs_along(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![job("a"), job("b")]).await;
        cx.take().await;
        assert!(cx.queues.delete_queue(&cx.queue).await.expect("deletes"));
        assert!(!cx.queues.delete_queue(&cx.queue).await.expect("answers"));
        assert_eq!(cx.queues.queue(&cx.queue).await.expect("answers"), None);
        cx.create().await;
        assert_eq!(cx.claim_one().await, None);
        let stats = cx.stats().await;
        assert_eq!((stats.ready, stats.claimed, stats.enqueued), (0, 0, 0));
    }

    async fn a_claim_that_waits_ends_with_its_queue(cx: &Context) {
        cx.create().await;
        let (queues, claim) = (cx.queues.clone(), Claim {
            wait: PATIENCE / 2,
            ..cx.asks()
        });
        let waiting = cx.spawn(async move { queues.claim(claim).await });
        cx.queues.delete_queue(&cx.queue).await.expect("deletes");
        match cx.within("a claim of a queue that went", waiting).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            Ok(claimed) => assert!(claimed.is_empty()),
        }
    }

    async fn queues_are_listed_by_name_in_pages(cx: &Context) {
        let name = |name: &str| Queue::new(&format!("{}-{name}", cx.unique)).expect("valid");
        for queue in ["b", "a.x", "c", "a-y", "a"] {
            assert!(cx.queues.put_queue(&name(queue), &QueueSpec::default()).await.expect("created"));
        }
        let (mut names, mut after) = (Vec::new(), cx.unique.clone());
        loop {
            let page = cx.queues.queues(&after, 2).await.expect("a list answers");
            assert!(page.len() <= 2);
            let mine: Vec<_> = page.into_iter().filter(|info| info.name.as_str().starts_with(&cx.unique)).collect();
            let Some(last) = mine.last() else { break };
            after = last.name.to_string();
            names.extend(mine.into_iter().map(|info| info.name));
        }
        assert_eq!(names, ["a", "a-y", "a.x", "b", "c"].map(name));
    }

    async fn queues_are_independent(cx: &Context) {
        cx.create().await;
        let other = Queue::new(&format!("{}-other", cx.unique)).expect("valid");
        cx.queues.put_queue(&other, &QueueSpec::default()).await.expect("created");
        let named = NewJob { name: Some("n".to_owned()), ..job("ours") };
        cx.add(named.clone()).await;
        let theirs = cx.queues.enqueue(&other, vec![named]).await.expect("enqueued");
        assert!(matches!(theirs[0], Enqueued::Created(_)), "{theirs:?}");
        cx.queues.pause(&other, true).await.expect("pauses");
        assert_eq!(cx.claim_all().await, ["ours"]);
        assert_eq!(cx.queues.stats(&other).await.expect("answers").ready, 1);
    }

    async fn namespaces_are_independent(cx: &Context) {
        let [ours, theirs] = cx.two_namespaces().await.map(|store| store.queues().expect("queues").clone());
        let queue = &cx.queue;
        assert!(ours.put_queue(queue, &QueueSpec::default()).await.expect("created"));
        assert_eq!(theirs.queue(queue).await.expect("answers"), None);
        assert!(theirs.queues("", 10).await.expect("answers").is_empty());
        assert!(theirs.put_queue(queue, &QueueSpec::default()).await.expect("created there too"));
        theirs.enqueue(queue, vec![job("theirs")]).await.expect("enqueued");
        assert!(ours.claim(cx.asks()).await.expect("answers").is_empty());
        assert!(ours.delete_queue(queue).await.expect("deletes"));
        assert_eq!(theirs.stats(queue).await.expect("answers").ready, 1);
    }

    async fn an_unknown_queue_is_not_found(cx: &Context) {
        let (queues, queue) = (&cx.queues, &cx.queue);
        assert_kind(queues.enqueue(queue, vec![job("x")]).await, ErrorKind::NotFound);
        assert_kind(queues.claim(cx.asks()).await, ErrorKind::NotFound);
        let receipt = Receipt { id: JobId(1), token: Token(1) };
        let settle = vec![Settle { receipt, verdict: Verdict::Ack }];
        assert_kind(queues.settle(queue, settle).await, ErrorKind::NotFound);
        assert_kind(queues.cancel(queue, JobId(1)).await, ErrorKind::NotFound);
        assert_kind(queues.reschedule(queue, JobId(1), 1).await, ErrorKind::NotFound);
        assert_kind(queues.promote(queue, JobId(1)).await, ErrorKind::NotFound);
        assert_kind(queues.job(queue, JobId(1)).await, ErrorKind::NotFound);
        assert_kind(queues.jobs(queue, JobState::Ready, None, 1).await, ErrorKind::NotFound);
        assert_kind(queues.find(queue, "n").await, ErrorKind::NotFound);
        assert_kind(queues.redrive(queue, Vec::new(), 1).await, ErrorKind::NotFound);
        assert_kind(queues.purge(queue, Vec::new(), 1).await, ErrorKind::NotFound);
        assert_kind(queues.pause(queue, true).await, ErrorKind::NotFound);
        assert_kind(queues.stats(queue).await, ErrorKind::NotFound);
        assert_eq!(queues.queue(queue).await.expect("answers"), None, "a request made the queue");
    }
}
