//! Stamps: a batch that is appended again changes nothing, and an older incarnation appends no more.

use coact_core::{
    ErrorKind, Result,
    contract::stream::{Append, Appended, Stamp, StreamHandle},
    name::Topic,
};
use futures::{StreamExt, stream};

use super::{
    Context, DEDUP, DURABLE, RESTARTS,
    context::{assert_kind, batch, read_all},
};

cases! {
    #[needs(DEDUP)]
    async fn a_batch_that_is_appended_again_has_the_offset_that_it_had(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let first = append(&cx.streams, &topic, 1, 0, 0).await.expect("taken");
        assert!(!first.duplicate);
        cx.append(&topic, &["between"]).await;
        for _ in 0..3 {
            let again = append(&cx.streams, &topic, 1, 0, 0).await.expect("it is known");
            assert_eq!(again, Appended { duplicate: true, ..first });
        }
        assert_eq!(cx.values(&topic).await.len(), 3);
    }

    #[needs(DEDUP)]
    async fn each_of_the_last_five_batches_is_recognized(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let appended: Vec<_> = stream::iter(0..8)
            .then(|number| append(&cx.streams, &topic, 1, 0, 2 * number))
            .map(|appended| appended.expect("taken"))
            .collect()
            .await;
        for (number, first) in appended.iter().enumerate().skip(3) {
            let again = append(&cx.streams, &topic, 1, 0, 2 * number as u64).await.expect("it is known");
            assert_eq!(again, Appended { duplicate: true, ..*first });
        }
        let next = append(&cx.streams, &topic, 1, 0, 16).await.expect("taken");
        assert!(!next.duplicate);
        assert_eq!(cx.values(&topic).await.len(), 18);
    }

    #[needs(DEDUP)]
    async fn a_gap_is_a_conflict_and_appends_nothing(cx: &Context) {
        let topic = cx.create("t", 1).await;
        append(&cx.streams, &topic, 1, 0, 0).await.expect("taken");
        for sequence in [3, 4, 100, u64::MAX] {
            assert_kind(append(&cx.streams, &topic, 1, 0, sequence).await, ErrorKind::Conflict);
        }
        assert_eq!(cx.values(&topic).await.len(), 2);
        append(&cx.streams, &topic, 1, 0, 2).await.expect("it comes next");
    }

    #[needs(DEDUP)]
    async fn an_older_epoch_is_fenced_and_a_newer_one_begins_at_zero(cx: &Context) {
        let topic = cx.create("t", 1).await;
        append(&cx.streams, &topic, 1, 3, 0).await.expect("taken");
        append(&cx.streams, &topic, 1, 3, 2).await.expect("taken");
        assert_kind(append(&cx.streams, &topic, 1, 2, 4).await, ErrorKind::Fenced);
        assert_kind(append(&cx.streams, &topic, 1, 4, 4).await, ErrorKind::Conflict);
        let newer = append(&cx.streams, &topic, 1, 4, 0).await.expect("a newer epoch begins");
        assert!(!newer.duplicate);
        for sequence in [0, 2, 4] {
            assert_kind(append(&cx.streams, &topic, 1, 3, sequence).await, ErrorKind::Fenced);
        }
        assert_eq!(cx.values(&topic).await.len(), 6);
    }

    #[needs(DEDUP)]
    async fn producers_partitions_and_topics_count_for_themselves(cx: &Context) {
        let (topic, other) = (cx.create("t", 2).await, cx.create("other", 1).await);
        for (topic, partition, producer) in [(&topic, 0, 1), (&topic, 1, 1), (&other, 0, 1), (&topic, 0, 2)] {
            let stamp = Some(Stamp { producer, epoch: 5, sequence: 0 });
            let append = Append { stamp, ..batch(topic, partition, &["x"]) };
            let appended = cx.streams.append(append).await.expect("taken");
            assert!(!appended.duplicate, "producer {producer} in partition {partition} of {topic}");
        }
        append(&cx.streams, &topic, 3, 0, 0).await.expect("the epoch of another producer fences nobody");
    }

    #[needs(DEDUP)]
    async fn a_stamp_after_the_last_sequence_harms_nobody(cx: &Context) {
        let topic = cx.create("t", 1).await;
        // Whether it is taken is the engine's matter, which has to live on.
        for sequence in [u64::MAX, u64::MAX - 1, 0] {
            let _ = append(&cx.streams, &topic, 1, 0, sequence).await;
        }
        cx.append(&topic, &["after"]).await;
        assert_eq!(cx.values(&topic).await.last().map(String::as_str), Some("after"));
    }

    #[needs(DEDUP)]
    async fn a_batch_that_many_append_at_once_is_there_once(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let clients = [cx.streams.clone(), cx.another_client().await];
        for sequence in [0, 2, 4] {
            let appended = cx.parallel(16, |task| {
                let (streams, topic) = (clients[task % 2].clone(), topic.clone());
                async move { append(&streams, &topic, 1, 0, sequence).await.expect("taken, or known") }
            }).await;
            assert_eq!(appended.iter().filter(|appended| !appended.duplicate).count(), 1, "{appended:?}");
            assert!(appended.iter().all(|one| one.first == appended[0].first), "{appended:?}");
        }
        assert_eq!(cx.values(&topic).await.len(), 6);
    }

    #[needs(DEDUP)]
    async fn a_repetition_is_recognized_though_its_expectation_no_longer_holds(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let expect = Some(cx.bounds(&topic, 0).await.end);
        let request = Append { expect, ..stamped(&topic, 1, 0, 0) };
        let first = cx.streams.append(request.clone()).await.expect("taken");
        let again = cx.streams.append(request).await.expect("it is known");
        assert_eq!(again, Appended { duplicate: true, ..first });
    }

    #[needs(DEDUP)]
    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn a_repetition_is_recognized_after_a_restart(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let first = append(&cx.streams, &topic, 1, 1, 0).await.expect("taken");
        append(&cx.streams, &topic, 1, 1, 2).await.expect("taken");
        let streams = cx.restart().await;
        let again = append(&streams, &topic, 1, 1, 0).await.expect("it is known");
        assert_eq!(again, Appended { duplicate: true, ..first });
        assert_kind(append(&streams, &topic, 1, 0, 4).await, ErrorKind::Fenced);
        assert_kind(append(&streams, &topic, 1, 1, 6).await, ErrorKind::Conflict);
        append(&streams, &topic, 1, 1, 4).await.expect("it comes next");
        let read = read_all(&streams, &topic, 0).await;
        assert_eq!(read.len(), 6);
    }
}

/// Appends two records with this stamp.
async fn append(streams: &StreamHandle, topic: &Topic, producer: u64, epoch: u32, sequence: u64) -> Result<Appended> {
    streams.append(stamped(topic, producer, epoch, sequence)).await
}

fn stamped(topic: &Topic, producer: u64, epoch: u32, sequence: u64) -> Append {
    let values = [format!("{epoch}.{sequence}"), format!("{epoch}.{}", sequence.wrapping_add(1))];
    let stamp = Some(Stamp { producer, epoch, sequence });
    Append { stamp, ..batch(topic, 0, &[&values[0], &values[1]]) }
}
