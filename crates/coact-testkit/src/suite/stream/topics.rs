//! Topics: created, changed, listed, deleted with all that belongs to them.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::stream::{DelayId, Offset, Read, Seek, TopicSpec},
};

use super::{
    Context,
    context::{assert_kind, batch, came_to, later, read, read_all, values},
};
use crate::bed::PATIENCE;

cases! {
    async fn a_topic_is_created_once_and_described(cx: &Context) {
        let spec = TopicSpec {
            partitions: 3,
            retention_age: Some(Duration::from_secs(3600)),
            retention_bytes: Some(1 << 30),
            compact: false,
        };
        assert_eq!(cx.streams.topic(&cx.topic("t")).await.expect("answers"), None);
        let topic = cx.create_with("t", spec.clone()).await;
        let info = cx.streams.topic(&topic).await.expect("answers").expect("it is there");
        assert_eq!((&info.name, &info.spec), (&topic, &spec));
        assert!(info.created_ms > 0);
        // Whatever its layout.
        for again in [spec, TopicSpec::default()] {
            assert_kind(cx.streams.create_topic(&topic, &again).await, ErrorKind::AlreadyExists);
        }
        for partition in 0..3 {
            let bounds = cx.bounds(&topic, partition).await;
            assert_eq!((bounds.start, bounds.oldest_ms), (bounds.end, 0), "{bounds:?}");
        }
    }

    async fn a_topic_gets_more_partitions_and_never_fewer(cx: &Context) {
        let topic = cx.create("t", 2).await;
        let last = cx.append_to(&topic, 1, &["kept"]).await;
        assert_kind(cx.streams.append(batch(&topic, 2, &["x"])).await, ErrorKind::NotFound);
        let grown = TopicSpec { partitions: 4, retention_bytes: Some(1 << 30), ..TopicSpec::default() };
        cx.streams.alter_topic(&topic, &grown).await.expect("it grows");
        cx.append_to(&topic, 3, &["new"]).await;
        assert_eq!(cx.values_of(&topic, 3).await, ["new"]);
        assert_eq!(cx.records(&topic, 1).await[0].offset, last.first);
        let fewer = TopicSpec { partitions: 3, ..grown.clone() };
        assert_kind(cx.streams.alter_topic(&topic, &fewer).await, ErrorKind::Invalid);
        assert_eq!(cx.streams.topic(&topic).await.expect("answers").expect("it is there").spec, grown);
        assert_kind(cx.streams.alter_topic(&cx.topic("other"), &grown).await, ErrorKind::NotFound);
    }

    async fn topics_are_listed_by_name_in_pages(cx: &Context) {
        for name in ["b", "a.x", "c", "a-y", "a"] {
            cx.create(name, 1).await;
        }
        let (mut names, mut after) = (Vec::new(), cx.unique.clone());
        loop {
            let page = cx.streams.topics(&after, 2).await.expect("a list answers");
            assert!(page.len() <= 2);
            let mine = page.iter().map(|info| info.name.to_string()).filter(|name| name.starts_with(&cx.unique));
            let mine: Vec<_> = mine.collect();
            let Some(last) = mine.last() else { break };
            after = last.clone();
            names.extend(mine);
        }
        assert_eq!(names, ["a", "a-y", "a.x", "b", "c"].map(|name| cx.topic(name).to_string()));
        assert!(cx.streams.topics("", 0).await.expect("answers").is_empty());
    }

    async fn namespaces_are_independent(cx: &Context) {
        let [ours, theirs] = cx.two_namespaces().await.map(|store| store.streams().expect("streams").clone());
        let (topic, group) = (cx.topic("t"), cx.group("g"));
        ours.create_topic(&topic, &TopicSpec::default()).await.expect("created");
        assert_eq!(theirs.topic(&topic).await.expect("answers"), None);
        assert!(theirs.topics("", 10).await.expect("answers").is_empty());
        theirs.create_topic(&topic, &TopicSpec::default()).await.expect("created there too");
        theirs.append(batch(&topic, 0, &["theirs"])).await.expect("taken");
        assert!(read_all(&ours, &topic, 0).await.is_empty());
        theirs.commit_offsets(came_to(&group, 5, &topic, 1)).await.expect("commits");
        assert_eq!(ours.group(&group).await.expect("answers"), None);
        assert!(ours.groups("", 10).await.expect("answers").is_empty());
        assert!(ours.delete_topic(&topic).await.expect("deletes"));
        assert_eq!(values(&read_all(&theirs, &topic, 0).await), ["theirs"]);
    }

    async fn a_deleted_topic_takes_everything_along(cx: &Context) {
        let (topic, kept) = (cx.create("t", 1).await, cx.create("kept", 1).await);
        let group = cx.group("g");
        for topic in [&topic, &kept] {
            cx.append(topic, &["1", "2"]).await;
            cx.schedule(topic, &[("later", cx.far())]).await;
            cx.commit_offset(&group, 1, topic, 1).await.expect("commits");
        }
        assert!(cx.streams.delete_topic(&topic).await.expect("deletes"));
        assert!(!cx.streams.delete_topic(&topic).await.expect("answers"));
        assert_eq!(cx.committed(&group, &topic).await, None);
        assert_eq!(cx.committed(&group, &kept).await, Some(1));
        let topic = cx.create("t", 1).await;
        assert!(cx.records(&topic, 0).await.is_empty() && cx.pending(&topic).await.is_empty());
        assert_eq!(cx.committed(&group, &topic).await, None, "what was committed came back with the name");
        assert_eq!((cx.values(&kept).await.len(), cx.pending(&kept).await.len()), (2, 1));
    }

    async fn what_is_not_there_is_not_found(cx: &Context) {
        let (topic, absent) = (cx.create("t", 2).await, cx.topic("absent"));
        for (topic, partition) in [(&absent, 0), (&topic, 2), (&topic, u32::MAX)] {
            let streams = &cx.streams;
            assert_kind(streams.append(batch(topic, partition, &["x"])).await, ErrorKind::NotFound);
            assert_kind(streams.read(read(topic, partition, Offset(0))).await, ErrorKind::NotFound);
            assert_kind(streams.bounds(topic, partition).await, ErrorKind::NotFound);
            assert_kind(streams.seek(topic, partition, Seek::Earliest).await, ErrorKind::NotFound);
            assert_kind(streams.trim(topic, partition, Offset(0)).await, ErrorKind::NotFound);
            let mut delayed = later(topic, "x", cx.far());
            delayed.partition = partition;
            assert_kind(streams.schedule(vec![delayed]).await, ErrorKind::NotFound);
        }
        assert_kind(cx.streams.delay_stats(&absent).await, ErrorKind::NotFound);
        assert_kind(cx.streams.pending(&absent, None, 10).await, ErrorKind::NotFound);
        assert_kind(cx.streams.cancel(&absent, DelayId { due_ms: 1, number: 1 }).await, ErrorKind::NotFound);
    }

    async fn a_read_that_waits_ends_with_its_topic(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let (streams, request) = (cx.streams.clone(), read(&topic, 0, Offset(0)));
        let request = Read { wait: PATIENCE / 2, ..request };
        let waiting = cx.spawn(async move { streams.read(request).await });
        cx.streams.delete_topic(&topic).await.expect("deletes");
        // Told at once, or asked again when the wait has run out.
        match cx.within("a read of a topic that went", waiting).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            Ok(fetched) => assert!(fetched.batches.is_empty()),
        }
    }
}
