//! Order keys: of each, one job at a time, in the order of arrival.

use std::{collections::BTreeMap, time::Duration};

use coact_core::contract::queue::{Claim, JobState, NewJob, Settled, Verdict};

use super::{
    Context,
    context::{LONG, SHORT, body, keyed, kill, nack, nack_after, settle_with},
};

cases! {
    async fn one_job_of_a_key_is_out_at_a_time(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a"), keyed("b1", "b"), keyed("a3", "a"), NewJob::new("free")]).await;
        assert_eq!(cx.in_state(JobState::Blocked).await.len(), 2);
        let first = cx.claim(Claim { limit: 10, ..cx.asks() }).await;
        assert_eq!(first.iter().map(body).collect::<Vec<_>>(), ["a1", "b1", "free"]);
        assert_eq!(cx.claim_one().await, None);
        cx.ack(&first[0]).await;
        assert_eq!(cx.claim_all().await, ["a2"]);
        assert_eq!(cx.in_state(JobState::Blocked).await.len(), 1);
    }

    async fn an_acknowledged_job_wakes_a_claim_for_the_next_of_its_key(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a")]).await;
        let first = cx.take().await;
        let waiting = cx.waiting_claim();
        cx.ack(&first).await;
        assert_eq!(body(&cx.within("a claim of the next", waiting).await[0]), "a2");
    }

    async fn a_dead_job_lets_the_next_of_its_key_go(cx: &Context) {
        cx.create_with_attempts(1).await;
        cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a"), keyed("a3", "a")]).await;
        assert_eq!(cx.settle(cx.take().await.receipt(), kill("x")).await, Settled::Dead);
        let second = cx.take().await;
        assert_eq!(body(&second), "a2");
        assert_eq!(cx.settle(second.receipt(), nack("x")).await, Settled::Dead);
        assert_eq!(cx.claim_all().await, ["a3"]);
    }

    async fn a_job_that_rests_blocks_its_key_and_no_other(cx: &Context) {
        cx.create().await;
        let ids = cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a"), keyed("b1", "b")]).await;
        let first = cx.take().await;
        assert_eq!(cx.settle(first.receipt(), nack_after(LONG, "later")).await, Settled::Done);
        assert_eq!(cx.claim_all().await, ["b1"], "a job overtook one of its key that rests");
        let [a1, a2] = [ids[0].id(), ids[1].id()];
        assert_eq!((cx.job(a1).await.state, cx.job(a2).await.state), (JobState::Delayed, JobState::Blocked));
        cx.queues.promote(&cx.queue, a1).await.expect("answers");
        let again = cx.take().await;
        assert_eq!((again.id, again.attempt), (a1, 2));
        cx.ack(&again).await;
        assert_eq!(cx.claim_all().await, ["a2"]);
    }

    async fn a_job_whose_time_has_not_come_blocks_its_key(cx: &Context) {
        cx.create().await;
        let run_at_ms = Some(cx.in_ms(400));
        cx.enqueue(vec![NewJob { run_at_ms, ..keyed("a1", "a") }, keyed("a2", "a")]).await;
        for expected in ["a1", "a2"] {
            let claimed = cx.await_one().await;
            assert_eq!(body(&claimed), expected);
            cx.ack(&claimed).await;
        }
    }

    async fn a_job_whose_lease_ended_is_still_the_first_of_its_key(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a")]).await;
        cx.claim(Claim { lease: SHORT, ..cx.asks() }).await;
        let again = cx.await_one().await;
        assert_eq!((body(&again).as_str(), again.attempt), ("a1", 2));
        assert_eq!(cx.claim_one().await, None);
    }

    async fn a_released_job_is_still_the_first_of_its_key(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a")]).await;
        let claimed = cx.take().await;
        assert_eq!(cx.settle(claimed.receipt(), Verdict::Release).await, Settled::Done);
        assert_eq!(cx.claim_all().await, ["a1"]);
    }

    async fn urgency_does_not_overtake_within_a_key(cx: &Context) {
        cx.create().await;
        cx.enqueue(vec![keyed("a1", "a"), NewJob { priority: 9, ..keyed("a2", "a") }, keyed("b1", "b")]).await;
        let claimed = cx.claim(Claim { limit: 10, ..cx.asks() }).await;
        assert_eq!(claimed.iter().map(body).collect::<Vec<_>>(), ["a1", "b1"]);
        cx.ack(&claimed[0]).await;
        assert_eq!(cx.claim_all().await, ["a2"]);
    }

    async fn a_cancelled_job_lets_the_next_of_its_key_go(cx: &Context) {
        cx.create().await;
        let ids = cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a"), keyed("a3", "a")]).await;
        // One that waits in the middle, then the first.
        for id in [ids[1].id(), ids[0].id()] {
            let _ = cx.queues.cancel(&cx.queue, id).await.expect("answers");
        }
        assert_eq!(cx.claim_all().await, ["a3"]);
    }

    async fn a_job_that_was_redriven_takes_its_place_again(cx: &Context) {
        cx.create().await;
        let ids = cx.enqueue(vec![keyed("a1", "a"), keyed("a2", "a")]).await;
        assert_eq!(cx.settle(cx.take().await.receipt(), kill("x")).await, Settled::Dead);
        let second = cx.take().await;
        // While the next of the key is out, the old one has to wait.
        assert_eq!(cx.queues.redrive(&cx.queue, vec![ids[0].id()], 0).await.expect("answers"), 1);
        assert_eq!(cx.claim_one().await, None);
        assert_eq!(cx.job(ids[0].id()).await.state, JobState::Blocked);
        cx.ack(&second).await;
        assert_eq!(cx.claim_all().await, ["a1"]);
    }

    async fn many_workers_keep_the_order_of_every_key(cx: &Context) {
        const KEYS: usize = 5;
        const EACH: usize = 30;
        const WORKERS: usize = 8;
        cx.create().await;
        let jobs = (0..KEYS * EACH).map(|number| keyed(&format!("{number:05}"), &format!("k{}", number % KEYS)));
        cx.enqueue(jobs.collect()).await;
        let clients = [cx.queues.clone(), cx.another_client().await];
        let done = cx.parallel(WORKERS, |worker| {
            let (queues, queue, env) = (clients[worker % 2].clone(), cx.queue.clone(), cx.env.clone());
            let claim = Claim { worker: worker.to_string(), limit: 3, wait: Duration::from_millis(500), ..cx.asks() };
            async move {
                let mut mine = Vec::new();
                loop {
                    let claimed = queues.claim(claim.clone()).await.expect("answers");
                    if claimed.is_empty() {
                        return mine;
                    }
                    for claimed in claimed {
                        let begun = env.now();
                        env.sleep(Duration::from_micros(env.random() % 2_000)).await;
                        let key = claimed.job.order_key.clone().expect("each has one");
                        mine.push((key, begun, env.now(), body(&claimed)));
                        let verdict = if claimed.attempt < 2 && env.random() % 8 == 0 { nack("x") } else { Verdict::Ack };
                        if verdict != Verdict::Ack {
                            mine.pop();
                        }
                        let settled = settle_with(&queues, &queue, claimed.receipt(), verdict).await;
                        assert_eq!(settled, Settled::Done);
                    }
                }
            }
        }).await.concat();
        let mut by_key = BTreeMap::<_, Vec<_>>::new();
        for (key, begun, ended, body) in done {
            by_key.entry(key).or_default().push((begun, ended, body));
        }
        assert_eq!(by_key.len(), KEYS);
        for (key, mut done) in by_key {
            done.sort();
            assert_eq!(done.len(), EACH, "of key {key:?}");
            for pair in done.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "two jobs of key {key:?} at a time: {pair:?}");
                assert!(pair[0].2 < pair[1].2, "key {key:?} out of order: {pair:?}");
            }
        }
    }
}
