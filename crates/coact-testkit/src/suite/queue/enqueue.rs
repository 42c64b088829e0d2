//! Enqueueing: in order, whole, once for each name.

use coact_core::{
    ErrorKind,
    contract::queue::{Enqueued, JobId, JobState, NewJob},
};

use super::{
    Context,
    context::{assert_kind, job, kill},
};

cases! {
    async fn ids_grow_with_each_job(cx: &Context) {
        cx.create().await;
        let mut ids = Vec::new();
        for batch in [1, 3, 2] {
            let jobs = (0..batch).map(|_| job("x")).collect();
            ids.extend(cx.enqueue(jobs).await.into_iter().map(Enqueued::id));
        }
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        // An id is not given again when its job is gone.
        let last = cx.add_body("last").await;
        while let Some(claimed) = cx.claim_one().await {
            cx.ack(&claimed).await;
        }
        assert!(cx.add_body("next").await > last);
    }

    async fn a_job_is_claimed_as_it_was_enqueued(cx: &Context) {
        cx.create().await;
        let all: Vec<u8> = (0..=255).collect();
        let full = NewJob {
            body: all.clone().into(),
            headers: vec![("имя".to_owned(), all.clone().into()), ("h".to_owned(), "".into()), ("h".to_owned(), "2".into())],
            name: Some("é🦀".to_owned()),
            priority: 7,
            run_at_ms: None,
            order_key: Some(all.into()),
            max_attempts: Some(5),
            expires_ms: Some(cx.far()),
        };
        let before = cx.env.wall_ms();
        let id = cx.add(full.clone()).await;
        let stored = cx.job(id).await;
        assert_eq!((stored.id, stored.state, stored.attempts), (id, JobState::Ready, 0));
        assert_eq!((&stored.worker, &stored.error, stored.died_ms), (&None, &None, None));
        assert!(stored.enqueued_ms + 60_000 >= before, "{} is long before {before}", stored.enqueued_ms);
        assert_eq!(stored.job, full);
        let claimed = cx.take().await;
        assert_eq!((claimed.id, claimed.attempt, claimed.max_attempts), (id, 1, 5));
        assert_eq!(claimed.enqueued_ms, stored.enqueued_ms);
        assert_eq!(NewJob { max_attempts: Some(5), ..claimed.job }, full);
    }

    async fn an_empty_job_is_a_job(cx: &Context) {
        cx.create().await;
        cx.add(NewJob::default()).await;
        let claimed = cx.take().await;
        assert!(claimed.job.body.is_empty() && claimed.job.headers.is_empty());
        assert!(cx.enqueue(Vec::new()).await.is_empty());
    }

    async fn a_job_of_a_name_that_is_there_is_not_made_again(cx: &Context) {
        cx.create().await;
        let named = |body: &str| NewJob { name: Some("n".to_owned()), ..job(body) };
        assert_eq!(cx.queues.find(&cx.queue, "n").await.expect("answers"), None);
        let id = cx.add(named("first")).await;
        assert_eq!(cx.enqueue(vec![named("second")]).await, [Enqueued::Exists(id)]);
        assert_eq!(cx.another_client().await.find(&cx.queue, "n").await.expect("answers"), Some(id));
        let claimed = cx.take().await;
        assert_eq!(claimed.job, NewJob { max_attempts: claimed.job.max_attempts, ..named("first") });
        assert_eq!(cx.enqueue(vec![named("while claimed")]).await, [Enqueued::Exists(id)]);
        assert_eq!(cx.claim_one().await, None);
        // Done, the name is free.
        cx.ack(&claimed).await;
        assert_eq!(cx.queues.find(&cx.queue, "n").await.expect("answers"), None);
        let next = cx.add(named("next")).await;
        assert!(next > id);
    }

    async fn a_dead_job_holds_its_name(cx: &Context) {
        cx.create().await;
        let named = || NewJob { name: Some("n".to_owned()), ..job("x") };
        let id = cx.add(named()).await;
        let _ = cx.settle(cx.take().await.receipt(), kill("broken")).await;
        assert_eq!(cx.enqueue(vec![named()]).await, [Enqueued::Exists(id)]);
        assert_eq!(cx.queues.purge(&cx.queue, vec![id], 0).await.expect("purges"), 1);
        assert!(cx.add(named()).await > id);
    }

    async fn a_cancelled_job_frees_its_name(cx: &Context) {
        cx.create().await;
        let named = || NewJob { name: Some("n".to_owned()), ..job("x") };
        let id = cx.add(named()).await;
        let _ = cx.queues.cancel(&cx.queue, id).await.expect("cancels");
        assert!(cx.add(named()).await > id);
    }

    async fn a_name_twice_in_one_request_is_one_job(cx: &Context) {
        cx.create().await;
        let named = |name: &str, body: &str| NewJob { name: Some(name.to_owned()), ..job(body) };
        let answers = cx.enqueue(vec![named("a", "1"), named("b", "2"), named("a", "3")]).await;
        assert!(matches!(answers[..], [Enqueued::Created(a), Enqueued::Created(_), Enqueued::Exists(b)] if a == b));
        assert_eq!(cx.claim_all().await, ["1", "2"]);
    }

    async fn of_those_who_enqueue_one_name_one_creates(cx: &Context) {
        cx.create().await;
        let clients = [cx.queues.clone(), cx.another_client().await];
        let answers = cx.parallel(20, |task| {
            let (queues, queue) = (clients[task % 2].clone(), cx.queue.clone());
            let named = NewJob { name: Some("n".to_owned()), ..job(&task.to_string()) };
            async move { queues.enqueue(&queue, vec![named]).await.expect("answers")[0] }
        }).await;
        let created = answers.iter().filter(|answer| matches!(answer, Enqueued::Created(_))).count();
        assert_eq!(created, 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.id() == answers[0].id()), "{answers:?}");
        assert_eq!(cx.stats().await.ready, 1);
    }

    async fn one_bad_job_keeps_all_from_being_enqueued(cx: &Context) {
        cx.create().await;
        let bad = vec![job("good"), NewJob { priority: 10, ..job("bad") }];
        assert_kind(cx.queues.enqueue(&cx.queue, bad).await, ErrorKind::Invalid);
        assert_eq!(cx.claim_one().await, None);
        assert_eq!(cx.find(JobId(u64::MAX)).await, None);
    }
}
