//! The life of a store: closing it, and ending it hard and starting it again.

use coact_core::{
    Error, ErrorKind,
    contract::stream::{Offset, Read, Seek, StreamHandle, TopicSpec},
    name::Topic,
};
use futures::future::join_all;

use super::{
    ALONE, Context, DURABLE, RESTARTS,
    context::{assert_kind, batch, came_to, later, read, read_all, values},
};
use crate::bed::PATIENCE;

cases! {
    #[needs(ALONE)]
    async fn a_closed_client_says_so(cx: &Context) {
        let streams = cx.another_client().await;
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        let clone = streams.clone();
        streams.close().await.expect("closes");
        let answers = [
            ("create_topic", streams.create_topic(&cx.topic("new"), &TopicSpec::default()).await.err()),
            ("topic", streams.topic(&topic).await.err()),
            ("topics", clone.topics("", 1).await.err()),
            ("append", clone.append(batch(&topic, 0, &["x"])).await.err()),
            ("read", streams.read(read(&topic, 0, Offset(0))).await.err()),
            ("bounds", streams.bounds(&topic, 0).await.err()),
            ("seek", streams.seek(&topic, 0, Seek::Latest).await.err()),
            ("trim", streams.trim(&topic, 0, Offset(0)).await.err()),
            ("commit_offsets", streams.commit_offsets(came_to(&group, 1, &topic, 1)).await.err()),
            ("group", streams.group(&group).await.err()),
            ("fence_group", streams.fence_group(&group, 1).await.err()),
            ("schedule", streams.schedule(vec![later(&topic, "x", cx.far())]).await.err()),
            ("pending", streams.pending(&topic, None, 1).await.err()),
            ("delay_stats", streams.delay_stats(&topic).await.err()),
            ("delete_topic", streams.delete_topic(&topic).await.err()),
        ];
        for (call, error) in &answers {
            let kind = error.as_ref().map(Error::kind);
            assert_eq!(kind, Some(ErrorKind::Closed), "{call} on a closed client; all answers: {answers:?}");
        }
        // Once more is no error.
        streams.close().await.expect("is closed");
    }

    #[needs(ALONE)]
    async fn a_read_that_waits_ends_when_its_client_is_closed(cx: &Context) {
        let streams = cx.another_client().await;
        let topic = cx.create("t", 1).await;
        let request = Read { wait: PATIENCE * 2, ..read(&topic, 0, Offset(0)) };
        let reader = streams.clone();
        let waiting = cx.spawn(async move { reader.read(request).await });
        streams.close().await.expect("closes");
        assert_kind(cx.within("a read of a closed client", waiting).await, ErrorKind::Closed);
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn a_restart_keeps_every_acknowledged_record_in_its_place(cx: &Context) {
        const WRITERS: usize = 4;
        const ENOUGH: usize = 50;
        let topic = cx.create("t", WRITERS as u32).await;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| cx.spawn(append_until_it_fails(cx.streams.clone(), topic.clone(), writer as u32)))
            .collect();
        cx.until("there is something to lose", async || cx.records(&topic, 0).await.len() >= ENOUGH).await;
        let streams = cx.restart().await;
        // Beds may restart so quickly that a client repeats instead of failing.
        cx.streams.close().await.expect("closes");
        for (partition, acknowledged) in join_all(writers).await.into_iter().enumerate() {
            let records = read_all(&streams, &topic, partition as u32).await;
            for (offset, value) in &acknowledged {
                let found = records.iter().find(|stored| stored.offset == *offset);
                let found = found.map(|stored| stored.record.value.clone());
                assert_eq!(found.as_deref(), Some(value.as_bytes()), "{offset} was acknowledged and is lost");
            }
        }
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn topics_offsets_and_fences_hold_over_a_restart(cx: &Context) {
        let spec = TopicSpec { partitions: 2, retention_bytes: Some(1 << 30), ..TopicSpec::default() };
        let (topic, gone, group) = (cx.create_with("t", spec.clone()).await, cx.create("gone", 1).await, cx.group("g"));
        for value in ["a", "b", "c"] {
            cx.append(&topic, &[value]).await;
        }
        let second = cx.records(&topic, 0).await[1].offset;
        cx.streams.trim(&topic, 0, second).await.expect("trims");
        cx.commit_offset(&group, 2, &topic, 5).await.expect("commits");
        cx.streams.fence_group(&group, 3).await.expect("fences");
        cx.streams.delete_topic(&gone).await.expect("deletes");
        let before = (cx.bounds(&topic, 0).await, cx.streams.topic(&topic).await.expect("answers"));
        let streams = cx.restart().await;
        let after = (streams.bounds(&topic, 0).await.expect("answers"), streams.topic(&topic).await.expect("answers"));
        assert_eq!(after, before);
        assert_eq!(streams.topic(&gone).await.expect("answers"), None);
        assert_eq!(values(&read_all(&streams, &topic, 0).await), ["b", "c"]);
        assert_kind(streams.commit_offsets(came_to(&group, 2, &topic, 6)).await, ErrorKind::Fenced);
        let info = streams.group(&group).await.expect("answers").expect("it is there");
        assert_eq!((info.generation, info.offsets[0].offset), (3, Offset(5)));
        let appended = streams.append(batch(&topic, 0, &["d"])).await.expect("taken");
        assert_eq!(appended.first, before.0.end);
        assert!(appended.time_ms >= before.0.oldest_ms);
    }
}

/// Appends one record after another, and returns those that were acknowledged.
async fn append_until_it_fails(streams: StreamHandle, topic: Topic, partition: u32) -> Vec<(Offset, String)> {
    let mut acknowledged = Vec::new();
    loop {
        let value = format!("{partition}-{}", acknowledged.len());
        match streams.append(batch(&topic, partition, &[&value])).await {
            Ok(appended) => acknowledged.push((appended.first, value)),
            Err(_) => return acknowledged,
        }
    }
}
