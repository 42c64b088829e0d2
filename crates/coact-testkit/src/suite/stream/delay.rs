//! Delayed records: never early, in the order of their time, once.

use std::collections::BTreeSet;

use coact_core::{
    ErrorKind,
    contract::stream::{DELAY_BUCKETS, DELAY_MAX, DelayId, Delayed, LATENESS_BUCKETS, Record, StoredRecord},
};

use super::{
    Context, DURABLE, RESTARTS,
    context::{assert_kind, later, read_all, text, values},
};

cases! {
    async fn a_delayed_record_comes_when_it_is_due_as_it_was(cx: &Context) {
        let topic = cx.create("t", 2).await;
        let record = Record::new("é").with_key(vec![0, 255]).with_header("h", "v").with_header("h", "");
        let due_ms = cx.in_ms(300);
        let delayed = Delayed { topic: topic.clone(), partition: 1, record: record.clone(), due_ms };
        let id = cx.streams.schedule(vec![delayed.clone()]).await.expect("scheduled")[0];
        assert_eq!(id.due_ms, due_ms);
        cx.until("it comes", async || !cx.records(&topic, 1).await.is_empty()).await;
        let found = cx.records(&topic, 1).await;
        assert!(found[0].time_ms >= due_ms, "{} ms early", due_ms - found[0].time_ms);
        assert_eq!(found.into_iter().map(|stored| stored.record).collect::<Vec<_>>(), [record]);
        assert!(cx.records(&topic, 0).await.is_empty() && cx.pending(&topic).await.is_empty());
    }

    async fn what_is_past_due_comes_at_once(cx: &Context) {
        let topic = cx.create("t", 1).await;
        cx.schedule(&topic, &[("past", cx.env.wall_ms() - 10_000), ("never", 0)]).await;
        let mut found = values(&cx.until_count(&topic, 2).await);
        found.sort();
        assert_eq!(found, ["never", "past"]);
    }

    async fn a_burst_comes_in_the_order_of_its_time(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let begin = cx.in_ms(400);
        // Four of each time, scheduled out of order; of one time, in the order of scheduling.
        let due: Vec<_> = (0..200).map(|number| (format!("{number}"), begin + (number * 37 % 50))).collect();
        let records: Vec<_> = due.iter().map(|(value, due_ms)| (value.as_str(), *due_ms)).collect();
        let ids = cx.schedule(&topic, &records).await;
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "a handle was given twice");
        let found = cx.until_count(&topic, due.len()).await;
        let mut expected = due.clone();
        expected.sort_by_key(|(_, due_ms)| *due_ms);
        assert_eq!(values(&found), expected.iter().map(|(value, _)| value.clone()).collect::<Vec<_>>());
        assert_not_early(&found, &due);
    }

    async fn an_earlier_one_overtakes_a_later_one(cx: &Context) {
        let topic = cx.create("t", 1).await;
        // The engine sleeps until the first is due, and has to wake for the second.
        cx.schedule(&topic, &[("later", cx.far())]).await;
        cx.schedule(&topic, &[("earlier", cx.in_ms(200))]).await;
        assert_eq!(values(&cx.until_count(&topic, 1).await), ["earlier"]);
        assert_eq!(cx.pending(&topic).await, ["later"]);
    }

    async fn a_due_record_wakes_a_waiting_read(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let waiting = cx.waiting_read(&topic, Default::default());
        cx.schedule(&topic, &[("x", cx.in_ms(100))]).await;
        let fetched = cx.within("a read woken by a delayed record", waiting).await;
        assert_eq!(fetched.records(Default::default()).count(), 1);
    }

    async fn a_cancelled_record_never_comes(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let soon = cx.in_ms(1_000);
        let ids = cx.schedule(&topic, &[("a", soon), ("b", soon), ("c", soon)]).await;
        if !cx.streams.cancel(&topic, ids[1]).await.expect("answers") {
            // The machine is so busy that it came before.
            return;
        }
        assert!(!cx.streams.cancel(&topic, ids[1]).await.expect("answers"), "cancelled twice");
        assert_eq!(values(&cx.until_count(&topic, 2).await), ["a", "c"]);
        cx.schedule(&topic, &[("last", soon)]).await;
        assert_eq!(values(&cx.until_count(&topic, 3).await), ["a", "c", "last"]);
        assert!(!cx.streams.cancel(&topic, ids[0]).await.expect("answers"), "one that was handed over");
    }

    async fn an_unknown_handle_cancels_nothing(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let id = cx.schedule(&topic, &[("x", cx.far())]).await[0];
        for unknown in [
            DelayId { number: id.number + 1, ..id },
            DelayId { due_ms: id.due_ms + 1, ..id },
            DelayId { due_ms: u64::MAX, number: u64::MAX },
            DelayId { due_ms: 0, number: 0 },
        ] {
            assert!(!cx.streams.cancel(&topic, unknown).await.expect("answers"), "{unknown}");
            assert_eq!(cx.streams.reschedule(&topic, unknown, cx.far()).await.expect("answers"), None, "{unknown}");
        }
        assert_eq!(cx.pending(&topic).await, ["x"]);
    }

    async fn a_rescheduled_record_has_another_handle(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let old = cx.schedule(&topic, &[("x", cx.far())]).await[0];
        let due_ms = cx.in_ms(200);
        let new = cx.streams.reschedule(&topic, old, due_ms).await.expect("answers").expect("it waits");
        assert!(new != old && new.due_ms == due_ms, "{old} became {new}");
        assert!(!cx.streams.cancel(&topic, old).await.expect("answers"), "the old handle lives");
        assert_eq!(cx.streams.reschedule(&topic, old, due_ms).await.expect("answers"), None);
        let found = cx.until_count(&topic, 1).await;
        assert_not_early(&found, &[("x".to_owned(), due_ms)]);
        assert_eq!(cx.streams.reschedule(&topic, new, cx.far()).await.expect("answers"), None);
        assert_eq!(cx.values(&topic).await, ["x"]);
    }

    async fn a_record_is_rescheduled_to_the_time_that_it_has(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let due_ms = cx.far();
        let old = cx.schedule(&topic, &[("x", due_ms)]).await[0];
        let new = cx.streams.reschedule(&topic, old, due_ms).await.expect("answers").expect("it waits");
        assert_ne!(new, old);
        assert!(!cx.streams.cancel(&topic, old).await.expect("answers"));
        assert!(cx.streams.cancel(&topic, new).await.expect("answers"));
        assert!(cx.pending(&topic).await.is_empty());
    }

    async fn pending_records_are_listed_by_time_in_pages(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let far = cx.far();
        let ids = cx.schedule(&topic, &[("c", far + 2), ("a", far), ("b", far), ("d", far + 3), ("e", far + 4)]).await;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = cx.streams.pending(&topic, after, 2).await.expect("answers");
            assert!(page.len() <= 2);
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            found.extend(page);
        }
        let listed: Vec<_> = found.iter().map(|pending| text(&pending.delayed.record.value)).collect();
        assert_eq!(listed, ["a", "b", "c", "d", "e"]);
        assert_eq!(found.iter().map(|pending| pending.id).collect::<Vec<_>>(), [1, 2, 0, 3, 4].map(|at: usize| ids[at]));
        assert!(found.iter().all(|pending| pending.delayed.due_ms == pending.id.due_ms));
        assert_eq!(found[0].delayed, later(&topic, "a", far));
        let after_all = Some(DelayId { due_ms: u64::MAX, number: u64::MAX });
        assert!(cx.streams.pending(&topic, after_all, 10).await.expect("answers").is_empty());
    }

    async fn stats_count_what_waits_and_how_late_it_came(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let stats = async || cx.streams.delay_stats(&topic).await.expect("answers");
        let none = stats().await;
        assert_eq!((none.pending, none.next_due_ms), (0, None));
        assert_eq!((none.by_due.len(), none.by_lateness.len()), (DELAY_BUCKETS.len() + 1, LATENESS_BUCKETS.len() + 1));
        let (hour, far) = (cx.in_ms(1_800_000), cx.in_ms(30 * 24 * 3_600_000));
        cx.schedule(&topic, &[("far", far), ("hour", hour), ("past", 1)]).await;
        cx.until_count(&topic, 1).await;
        let stats = stats().await;
        assert_eq!((stats.pending, stats.next_due_ms), (2, Some(hour)));
        assert_eq!(stats.by_due, [0, 0, 0, 0, 1, 0, 0, 1]);
        assert_eq!(stats.by_lateness.iter().sum::<u64>(), 1);
    }

    async fn a_record_due_in_ten_years_waits_and_a_later_one_is_refused(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let most = DELAY_MAX.as_millis() as u64;
        let id = cx.schedule(&topic, &[("x", cx.env.wall_ms() + most)]).await[0];
        for late in [cx.in_ms(most + 60_000), u64::MAX] {
            assert_kind(cx.streams.schedule(vec![later(&topic, "late", late)]).await, ErrorKind::Invalid);
            assert_kind(cx.streams.reschedule(&topic, id, late).await, ErrorKind::Invalid);
        }
        assert_eq!(cx.pending(&topic).await, ["x"]);
    }

    async fn one_bad_record_keeps_all_from_being_scheduled(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let far = cx.far();
        let bad = vec![later(&topic, "good", far), later(&cx.topic("absent"), "bad", far)];
        assert_kind(cx.streams.schedule(bad).await, ErrorKind::NotFound);
        assert!(cx.pending(&topic).await.is_empty());
        assert!(cx.streams.schedule(Vec::new()).await.expect("nothing is scheduled").is_empty());
    }

    async fn a_deleted_topic_drops_its_delayed_records(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let due_ms = cx.in_ms(500);
        let id = cx.schedule(&topic, &[("dropped", due_ms)]).await[0];
        cx.streams.delete_topic(&topic).await.expect("deletes");
        let topic = cx.create("t", 1).await;
        assert!(!cx.streams.cancel(&topic, id).await.expect("answers"));
        // One that is due after it has come: by then it would be there.
        cx.schedule(&topic, &[("after", due_ms + 1)]).await;
        assert_eq!(values(&cx.until_count(&topic, 1).await), ["after"]);
    }

    async fn each_of_many_is_handed_over_once(cx: &Context) {
        const TASKS: usize = 8;
        const EACH: usize = 250;
        let topic = cx.create("t", 1).await;
        let clients = [cx.streams.clone(), cx.another_client().await];
        let begin = cx.in_ms(200);
        let cancelled = cx.parallel(TASKS, |task| {
            let (streams, topic) = (clients[task % 2].clone(), topic.clone());
            async move {
                let due = |number: usize| begin + (number as u64 * 7919 + task as u64 * 31) % 1_000;
                let delayed = (0..EACH).map(|number| later(&topic, &format!("{task}.{number}"), due(number))).collect();
                let ids = streams.schedule(delayed).await.expect("scheduled");
                let mut cancelled = BTreeSet::new();
                // While they come, every fifth is cancelled, if it has not come.
                for number in (0..EACH).step_by(5) {
                    if streams.cancel(&topic, ids[number]).await.expect("answers") {
                        cancelled.insert(format!("{task}.{number}"));
                    }
                }
                cancelled
            }
        }).await;
        let cancelled: BTreeSet<_> = cancelled.into_iter().flatten().collect();
        cx.until("none waits", async || cx.pending(&topic).await.is_empty()).await;
        let all = (0..TASKS).flat_map(|task| (0..EACH).map(move |number| format!("{task}.{number}")));
        let expected: Vec<_> = all.filter(|value| !cancelled.contains(value)).collect();
        let mut found = values(&cx.until_count(&topic, expected.len()).await);
        let mut expected = expected;
        expected.sort();
        found.sort();
        assert!(found == expected, "{} came of {} that were not cancelled", found.len(), expected.len());
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn delayed_records_outlive_a_restart_and_come_once(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let ids = cx.schedule(&topic, &[("past", 1), ("soon", cx.in_ms(300)), ("far", cx.far())]).await;
        cx.until_count(&topic, 1).await;
        let streams = cx.restart().await;
        let mut found = Vec::new();
        cx.until("it comes", async || {
            found = values(&read_all(&streams, &topic, 0).await);
            found.len() >= 2
        }).await;
        assert_eq!(found, ["past", "soon"]);
        assert!(streams.cancel(&topic, ids[2]).await.expect("answers"), "the far one is gone");
        assert!(!streams.cancel(&topic, ids[0]).await.expect("answers"));
    }
}

fn assert_not_early(found: &[StoredRecord], due: &[(String, u64)]) {
    for stored in found {
        let value = text(&stored.record.value);
        let (_, due_ms) = due.iter().find(|(scheduled, _)| *scheduled == value).expect("it was scheduled");
        assert!(stored.time_ms >= *due_ms, "{value} came {} ms early", due_ms - stored.time_ms);
    }
}
