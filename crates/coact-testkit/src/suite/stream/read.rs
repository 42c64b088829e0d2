//! Reading: from anywhere, as much as asked for, now or when there is something.

use std::time::Duration;

use coact_core::contract::stream::{Offset, Read, Seek};
use futures::future::join_all;

use super::{
    Context,
    context::{batch, read, values},
};

cases! {
    async fn batches_come_back_as_they_were_stored(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let appended = [cx.append(&topic, &["a", "b"]).await, cx.append(&topic, &["c"]).await];
        let fetched = cx.fetch(&topic, 0, Offset(0)).await;
        let stored: Vec<_> = fetched.batches.iter().map(|stored| (stored.first, stored.time_ms)).collect();
        assert_eq!(stored, appended.map(|appended| (appended.first, appended.time_ms)));
        assert_eq!(fetched.batches[0].batch, batch(&topic, 0, &["a", "b"]).batch);
        let bounds = cx.bounds(&topic, 0).await;
        assert_eq!((fetched.start, fetched.next, fetched.end), (bounds.start, bounds.end, bounds.end));
    }

    async fn a_read_begins_in_the_middle_of_a_batch(cx: &Context) {
        let topic = cx.create("t", 1).await;
        cx.append(&topic, &["a", "b", "c", "d"]).await;
        cx.append(&topic, &["e"]).await;
        for stored in cx.records(&topic, 0).await {
            let fetched = cx.fetch(&topic, 0, stored.offset).await;
            let found: Vec<_> = fetched.records(stored.offset).collect();
            assert_eq!(found[0], stored);
            assert_eq!(found.last().map(|last| last.record.value.clone()), Some("e".into()));
        }
    }

    async fn max_bytes_bounds_a_read_and_one_batch_comes_at_least(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let large = "x".repeat(10_000);
        for _ in 0..10 {
            cx.append(&topic, &[&large]).await;
        }
        for (max_bytes, allowed) in [(0, 1..=1), (1, 1..=1), (35_000, 1..=4), (1_000_000, 10..=10)] {
            let request = Read { max_bytes, ..read(&topic, 0, Offset(0)) };
            let fetched = cx.streams.read(request).await.expect("answers");
            assert!(allowed.contains(&fetched.batches.len()), "{} batches for {max_bytes}", fetched.batches.len());
            let last = fetched.batches.last().expect("one at least");
            assert_eq!(fetched.next.0, last.first.0 + u64::from(last.batch.span()));
        }
        assert_eq!(cx.values(&topic).await.len(), 10);
    }

    async fn a_read_at_the_end_is_empty_without_a_wait(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let empty = cx.fetch(&topic, 0, Offset(0)).await;
        assert!(empty.batches.is_empty());
        cx.append(&topic, &["a"]).await;
        let end = cx.bounds(&topic, 0).await.end;
        let fetched = cx.fetch(&topic, 0, end).await;
        assert!(fetched.batches.is_empty());
        assert_eq!((fetched.next, fetched.end), (end, end));
    }

    async fn a_wait_runs_out(cx: &Context) {
        let topic = cx.create("t", 1).await;
        cx.append(&topic, &["a"]).await;
        let end = cx.bounds(&topic, 0).await.end;
        let wait = Duration::from_millis(200);
        let begun = cx.env.now();
        let request = Read { wait, ..read(&topic, 0, end) };
        let fetched = cx.within("a read that finds nothing", cx.streams.read(request)).await.expect("answers");
        assert!(fetched.batches.is_empty() && fetched.next == end, "{fetched:?}");
        assert!(cx.env.now() - begun >= wait, "it did not wait");
    }

    async fn an_append_wakes_a_waiting_read(cx: &Context) {
        let topic = cx.create("t", 1).await;
        for value in ["a", "b", "c"] {
            let end = cx.bounds(&topic, 0).await.end;
            let waiting = cx.waiting_read(&topic, end);
            cx.append(&topic, &[value]).await;
            let fetched = cx.within("a read woken by an append", waiting).await;
            assert_eq!(values(&fetched.records(end).collect::<Vec<_>>()), [value]);
        }
    }

    async fn an_append_to_another_partition_or_topic_wakes_nobody(cx: &Context) {
        let (topic, other) = (cx.create("t", 2).await, cx.create("other", 1).await);
        let waiting = cx.waiting_read(&topic, Offset(0));
        for _ in 0..20 {
            cx.append_to(&topic, 1, &["elsewhere"]).await;
            cx.append(&other, &["elsewhere"]).await;
        }
        cx.append(&topic, &["here"]).await;
        let fetched = cx.within("a read woken by an append", waiting).await;
        assert_eq!(values(&fetched.records(Offset(0)).collect::<Vec<_>>()), ["here"]);
    }

    async fn one_append_wakes_every_reader(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let other = cx.another_client().await;
        let waits: Vec<_> = (0..100).map(|_| cx.waiting_read(&topic, Offset(0))).collect();
        other.append(batch(&topic, 0, &["a"])).await.expect("taken");
        for fetched in cx.within("100 reads", join_all(waits)).await {
            assert_eq!(fetched.batches.len(), 1);
        }
    }

    async fn seek_finds_the_first_the_newest_and_a_time(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let seek = async |seek| cx.streams.seek(&topic, 0, seek).await.expect("answers");
        for at in [Seek::Earliest, Seek::Latest, Seek::Time(0), Seek::Time(u64::MAX)] {
            assert_eq!(seek(at).await, cx.bounds(&topic, 0).await.end, "{at:?} of an empty partition");
        }
        let mut times = Vec::new();
        for _ in 0..10 {
            let last = cx.append(&topic, &["x", "y"]).await.time_ms;
            times.push(last);
            cx.until("the clock goes on", async || cx.env.wall_ms() > last + 1).await;
        }
        let bounds = cx.bounds(&topic, 0).await;
        assert_eq!((seek(Seek::Earliest).await, seek(Seek::Latest).await), (bounds.start, bounds.end));
        let records = cx.records(&topic, 0).await;
        let first_at = |time_ms| {
            let found = records.iter().find(|record| record.time_ms >= time_ms);
            found.map_or(bounds.end, |record| record.offset)
        };
        for time_ms in times.iter().flat_map(|time_ms| [time_ms - 1, *time_ms, time_ms + 1]).chain([0, u64::MAX]) {
            assert_eq!(seek(Seek::Time(time_ms)).await, first_at(time_ms), "at {time_ms} of {times:?}");
        }
    }

    async fn bounds_grow_with_what_is_appended(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let before = cx.bounds(&topic, 0).await;
        assert_eq!(before.bytes, 0);
        let appended = cx.append(&topic, &[&"x".repeat(5_000)]).await;
        let after = cx.bounds(&topic, 0).await;
        assert!(after.bytes >= 5_000 && after.end > before.end && after.start <= appended.first, "{after:?}");
        assert_eq!(after.oldest_ms, appended.time_ms);
    }
}
