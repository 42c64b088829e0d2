//! What goes: by request, by age, by size, by key.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::stream::{Append, Batch, Bounds, Offset, Record, Seek, TopicSpec},
    name::Topic,
};

use super::{
    COMPACTION, Context, NO_COMPACTION,
    context::{assert_kind, batch},
};

cases! {
    async fn a_read_from_before_the_start_begins_there_and_says_so(cx: &Context) {
        let topic = cx.create("t", 1).await;
        for value in ["a", "b", "c", "d"] {
            cx.append(&topic, &[value]).await;
        }
        let records = cx.records(&topic, 0).await;
        let before = cx.bounds(&topic, 0).await;
        cx.streams.trim(&topic, 0, records[2].offset).await.expect("trims");
        let after = cx.bounds(&topic, 0).await;
        assert_eq!((after.start, after.end), (records[2].offset, before.end));
        assert!(after.records.is_none_or(|records| records == 2), "{after:?}");
        assert_eq!(after.oldest_ms, records[2].time_ms);
        assert_eq!(cx.streams.seek(&topic, 0, Seek::Earliest).await.expect("answers"), after.start);
        let fetched = cx.fetch(&topic, 0, Offset(0)).await;
        assert_eq!(fetched.start, after.start);
        assert_eq!(fetched.records(fetched.start).collect::<Vec<_>>(), records[2..]);
        assert_eq!(cx.append(&topic, &["e"]).await.first, before.end, "a trim moved the end");
    }

    async fn a_trim_in_the_middle_of_a_batch_hides_what_is_before(cx: &Context) {
        let topic = cx.create("t", 1).await;
        cx.append(&topic, &["a", "b", "c"]).await;
        let middle = cx.records(&topic, 0).await[1].offset;
        cx.streams.trim(&topic, 0, middle).await.expect("trims");
        let fetched = cx.fetch(&topic, 0, Offset(0)).await;
        assert!(fetched.start <= middle, "a trim took what was not asked for");
        let kept: Vec<_> = fetched.records(middle).map(|stored| stored.record.value).collect();
        assert_eq!(kept, ["b", "c"]);
    }

    async fn a_trim_beyond_the_end_is_one_at_the_end(cx: &Context) {
        let topic = cx.create("t", 2).await;
        for partition in 0..2 {
            cx.append_to(&topic, partition, &["a", "b"]).await;
        }
        let end = cx.bounds(&topic, 0).await.end;
        cx.streams.trim(&topic, 0, Offset(u64::MAX)).await.expect("trims");
        let bounds = cx.bounds(&topic, 0).await;
        let empty = Bounds { start: end, end, oldest_ms: 0, bytes: 0, records: bounds.records.map(|_| 0) };
        assert_eq!(bounds, empty);
        assert!(cx.records(&topic, 0).await.is_empty());
        assert_eq!(cx.append(&topic, &["c"]).await.first, end);
        assert_eq!(cx.values(&topic).await, ["c"]);
        assert_eq!(cx.values_of(&topic, 1).await, ["a", "b"], "another partition was trimmed");
    }

    async fn a_trim_to_before_the_start_changes_nothing(cx: &Context) {
        let topic = cx.create("t", 1).await;
        cx.append(&topic, &["a"]).await;
        cx.append(&topic, &["b"]).await;
        let second = cx.records(&topic, 0).await[1].offset;
        cx.streams.trim(&topic, 0, second).await.expect("trims");
        cx.streams.trim(&topic, 0, Offset(0)).await.expect("has no effect");
        assert_eq!(cx.bounds(&topic, 0).await.start, second);
        assert_eq!(cx.values(&topic).await, ["b"]);
    }

    async fn a_reader_that_waits_at_the_end_outlasts_a_trim(cx: &Context) {
        let topic = cx.create("t", 1).await;
        cx.append(&topic, &["a"]).await;
        let end = cx.bounds(&topic, 0).await.end;
        let waiting = cx.waiting_read(&topic, end);
        cx.streams.trim(&topic, 0, end).await.expect("trims");
        cx.append(&topic, &["b"]).await;
        let fetched = cx.within("a read woken by an append", waiting).await;
        assert_eq!(fetched.records(end).count(), 1);
    }

    async fn the_oldest_go_when_a_partition_has_too_many_bytes(cx: &Context) {
        let spec = TopicSpec { retention_bytes: Some(20_000), ..TopicSpec::default() };
        let topic = cx.create_with("t", spec).await;
        let large = "x".repeat(5_000);
        for _ in 0..20 {
            cx.append(&topic, &[&large]).await;
        }
        let end = cx.bounds(&topic, 0).await.end;
        cx.until("the oldest go", async || cx.bounds(&topic, 0).await.bytes <= 30_000).await;
        let bounds = cx.bounds(&topic, 0).await;
        assert!(bounds.bytes >= 10_000 && bounds.end == end, "more went than had to: {bounds:?}");
        assert!(bounds.start > Offset(0));
        let kept = cx.records(&topic, 0).await;
        assert_eq!(kept[0].offset, bounds.start);
    }

    async fn what_is_too_old_goes(cx: &Context) {
        let spec = TopicSpec { retention_age: Some(Duration::from_millis(300)), ..TopicSpec::default() };
        let (topic, kept) = (cx.create_with("t", spec.clone()).await, cx.create("kept", 1).await);
        for topic in [&topic, &kept] {
            cx.append(topic, &["a"]).await;
            cx.append(topic, &["b"]).await;
        }
        cx.until("everything is too old", async || cx.records(&topic, 0).await.is_empty()).await;
        let bounds = cx.bounds(&topic, 0).await;
        assert_eq!(bounds.start, bounds.end);
        assert_eq!(cx.values(&kept).await, ["a", "b"]);
        // A topic that exists can be told to keep less.
        cx.streams.alter_topic(&kept, &spec).await.expect("changed");
        cx.until("it holds for that topic too", async || cx.records(&kept, 0).await.is_empty()).await;
    }

    #[needs(COMPACTION)]
    async fn compaction_keeps_the_newest_of_each_key_where_it_was(cx: &Context) {
        let topic = cx.create_with("t", TopicSpec { compact: true, ..TopicSpec::default() }).await;
        for round in 0..50 {
            for key in ["a", "b", "gone"] {
                append_keyed(cx, &topic, key, &format!("{key}{round}")).await;
            }
        }
        append_keyed(cx, &topic, "gone", "").await;
        let before = cx.records(&topic, 0).await;
        cx.until("older ones of the same key go", async || cx.records(&topic, 0).await.len() < before.len()).await;
        let after = cx.records(&topic, 0).await;
        assert!(after.iter().all(|stored| before.contains(stored)), "a record moved: {after:?}");
        for newest in ["a49", "b49"] {
            assert!(after.iter().any(|stored| stored.record.value == newest), "{newest} is the newest and went");
        }
    }

    #[needs(NO_COMPACTION)]
    async fn compaction_is_refused_where_it_is_not_declared(cx: &Context) {
        let (topic, spec) = (cx.topic("t"), TopicSpec { compact: true, ..TopicSpec::default() });
        assert_kind(cx.streams.create_topic(&topic, &spec).await, ErrorKind::Unsupported);
        assert_eq!(cx.streams.topic(&topic).await.expect("answers"), None);
        let topic = cx.create("other", 1).await;
        assert_kind(cx.streams.alter_topic(&topic, &spec).await, ErrorKind::Unsupported);
    }
}

async fn append_keyed(cx: &Context, topic: &Topic, key: &str, value: &str) {
    let record = Record::new(value.to_owned()).with_key(key.to_owned());
    let append = Append { batch: Batch::new([&record]), ..batch(topic, 0, &[]) };
    cx.streams.append(append).await.expect("taken");
}
