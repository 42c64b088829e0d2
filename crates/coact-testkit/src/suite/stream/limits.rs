//! Limits: what is just allowed works, one more is refused.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::stream::{Append, Batch, Offset, Read, Record, StreamLimits, TopicSpec},
};

use super::{
    Context,
    context::{assert_kind, batch, later, read},
};

cases! {
    async fn limits_are_at_least_the_portable_ones(cx: &Context) {
        let (limits, portable) = (cx.streams.guarantees().limits, StreamLimits::PORTABLE);
        assert!(limits.record_bytes >= portable.record_bytes && limits.batch_bytes >= portable.batch_bytes);
        assert!(limits.partitions >= portable.partitions && limits.wait_max >= portable.wait_max);
    }

    async fn a_topic_has_one_partition_at_least_and_as_many_as_allowed(cx: &Context) {
        let most = cx.streams.guarantees().limits.partitions;
        for partitions in [0, most + 1, u32::MAX] {
            let spec = TopicSpec { partitions, ..TopicSpec::default() };
            assert_kind(cx.streams.create_topic(&cx.topic("t"), &spec).await, ErrorKind::Invalid);
        }
        assert_eq!(cx.streams.topic(&cx.topic("t")).await.expect("answers"), None);
        let topic = cx.create("t", most).await;
        cx.append_to(&topic, most - 1, &["x"]).await;
        assert_eq!(cx.values_of(&topic, most - 1).await, ["x"]);
        assert!(cx.streams.delete_topic(&topic).await.expect("deletes"));
    }

    async fn a_batch_of_the_largest_size_is_taken_and_a_larger_one_refused(cx: &Context) {
        let (topic, limits) = (cx.create("t", 1).await, cx.streams.guarantees().limits);
        let record = Record::new(vec![b'x'; 100_000]);
        let of = |count: usize| Batch::new(std::iter::repeat_n(&record, count));
        let fits = limits.batch_bytes / of(1).bytes().len();
        let append = |count| Append { batch: of(count), ..batch(&topic, 0, &[]) };
        cx.streams.append(append(fits)).await.expect("it fits");
        assert_kind(cx.streams.append(append(fits + 1)).await, ErrorKind::Invalid);
        assert_eq!(cx.records(&topic, 0).await.len(), fits);
    }

    async fn a_batch_without_records_or_with_gaps_is_refused(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let whole = batch(&topic, 0, &["a", "b", "c"]);
        let gaps = Append { batch: whole.batch.retain(|place, _| place != 1), ..whole.clone() };
        for wrong in [batch(&topic, 0, &[]), gaps] {
            assert_kind(cx.streams.append(wrong).await, ErrorKind::Invalid);
        }
        assert!(cx.records(&topic, 0).await.is_empty());
    }

    async fn a_delayed_record_that_is_too_large_is_refused(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let large = "x".repeat(cx.streams.guarantees().limits.record_bytes);
        assert_kind(cx.streams.schedule(vec![later(&topic, &large, cx.far())]).await, ErrorKind::Invalid);
        assert!(cx.pending(&topic).await.is_empty());
    }

    async fn a_wait_longer_than_allowed_is_refused(cx: &Context) {
        let (topic, most) = (cx.create("t", 1).await, cx.streams.guarantees().limits.wait_max);
        for wait in [most + Duration::from_millis(1), Duration::MAX] {
            let request = Read { wait, ..read(&topic, 0, Offset(0)) };
            assert_kind(cx.within("a refusal", cx.streams.read(request)).await, ErrorKind::Invalid);
        }
        cx.append(&topic, &["x"]).await;
        let request = Read { wait: most, ..read(&topic, 0, Offset(0)) };
        cx.within("a read", cx.streams.read(request)).await.expect("answers");
    }

    async fn a_read_from_the_last_offset_of_all_is_empty(cx: &Context) {
        let topic = cx.create("t", 1).await;
        cx.append(&topic, &["x"]).await;
        let fetched = cx.fetch(&topic, 0, Offset(u64::MAX)).await;
        assert!(fetched.batches.is_empty() && fetched.end == cx.bounds(&topic, 0).await.end, "{fetched:?}");
    }
}
