//! Groups: how far each came, and who may say so.

use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::{
        commit::METADATA_BYTES_MAX,
        stream::{GroupOffset, Offset, OffsetCommit},
    },
};

use super::{
    Context,
    context::{assert_kind, came_to},
};

cases! {
    async fn what_a_group_committed_is_read_back(cx: &Context) {
        let (topic, other, group) = (cx.create("t", 3).await, cx.create("other", 1).await, cx.group("g"));
        assert_eq!(cx.streams.group(&group).await.expect("answers"), None);
        let offset = |topic: &_, partition, offset, note: &[u8]| GroupOffset {
            topic: Clone::clone(topic),
            partition,
            offset: Offset(offset),
            metadata: Bytes::copy_from_slice(note),
        };
        let all: Vec<u8> = (0..=255).collect();
        let offsets = vec![offset(&topic, 2, 7, b"note"), offset(&topic, 0, 0, b""), offset(&other, 0, 9, &all)];
        let commit = OffsetCommit { group: group.clone(), generation: 1, offsets: offsets.clone() };
        cx.streams.commit_offsets(commit).await.expect("commits");
        let mut found = cx.streams.group(&group).await.expect("answers").expect("it is there").offsets;
        found.sort_by_key(|offset| (offset.topic != topic, std::cmp::Reverse(offset.partition)));
        assert_eq!(found, offsets);
        // A later commit replaces what it names, backwards too, with its note.
        let again = OffsetCommit { group: group.clone(), generation: 1, offsets: vec![offset(&topic, 2, 3, b"")] };
        cx.streams.commit_offsets(again).await.expect("commits");
        let found = cx.another_client().await.group(&group).await.expect("answers").expect("it is there").offsets;
        assert!(found.len() == 3 && found.contains(&offset(&topic, 2, 3, b"")), "{found:?}");
    }

    async fn groups_do_not_share_offsets(cx: &Context) {
        let (topic, one, other) = (cx.create("t", 1).await, cx.group("one"), cx.group("other"));
        cx.commit_offset(&one, 1, &topic, 5).await.expect("commits");
        cx.commit_offset(&other, 1, &topic, 8).await.expect("commits");
        assert_eq!((cx.committed(&one, &topic).await, cx.committed(&other, &topic).await), (Some(5), Some(8)));
    }

    async fn an_old_generation_is_fenced_and_a_newer_one_commits(cx: &Context) {
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        cx.commit_offset(&group, 1, &topic, 1).await.expect("commits");
        cx.streams.fence_group(&group, 3).await.expect("fences");
        for generation in [0, 1, 2] {
            assert_kind(cx.commit_offset(&group, generation, &topic, 9).await, ErrorKind::Fenced);
        }
        assert_eq!(cx.committed(&group, &topic).await, Some(1), "a fence changed what was committed");
        cx.commit_offset(&group, 3, &topic, 2).await.expect("the fence's own generation commits");
        cx.commit_offset(&group, 4, &topic, 3).await.expect("a newer one commits");
        assert_eq!(cx.committed(&group, &topic).await, Some(3));
        assert_kind(cx.streams.fence_group(&group, 2).await, ErrorKind::Fenced);
    }

    async fn a_fence_comes_before_the_first_commit(cx: &Context) {
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        cx.streams.fence_group(&group, 7).await.expect("fences");
        cx.streams.fence_group(&group, 7).await.expect("again is harmless");
        let info = cx.streams.group(&group).await.expect("answers").expect("it was fenced");
        assert_eq!((info.name, info.generation, info.offsets), (group.clone(), 7, Vec::new()));
        assert_kind(cx.commit_offset(&group, 6, &topic, 1).await, ErrorKind::Fenced);
        assert_kind(cx.another_client().await.commit_offsets(came_to(&group, 6, &topic, 1)).await, ErrorKind::Fenced);
    }

    async fn groups_are_listed_by_name_in_pages(cx: &Context) {
        let topic = cx.create("t", 1).await;
        for name in ["b", "a.x", "c", "a-y", "a"] {
            cx.commit_offset(&cx.group(name), 1, &topic, 1).await.expect("commits");
        }
        let (mut names, mut after) = (Vec::new(), cx.unique.clone());
        loop {
            let page = cx.streams.groups(&after, 2).await.expect("a list answers");
            assert!(page.len() <= 2);
            let mine: Vec<_> = page.into_iter().filter(|info| info.name.as_str().starts_with(&cx.unique)).collect();
            let Some(last) = mine.last() else { break };
            assert!(mine.iter().all(|info| info.offsets.len() == 1));
            after = last.name.to_string();
            names.extend(mine.iter().map(|info| info.name.clone()));
        }
        assert_eq!(names, ["a", "a-y", "a.x", "b", "c"].map(|name| cx.group(name)));
    }

    async fn a_deleted_group_is_forgotten(cx: &Context) {
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        cx.streams.fence_group(&group, 5).await.expect("fences");
        cx.commit_offset(&group, 5, &topic, 5).await.expect("commits");
        assert!(cx.streams.delete_group(&group).await.expect("deletes"));
        assert!(!cx.streams.delete_group(&group).await.expect("answers"));
        assert_eq!(cx.streams.group(&group).await.expect("answers"), None);
        cx.commit_offset(&group, 1, &topic, 1).await.expect("its fence is forgotten too");
    }

    async fn a_note_of_the_longest_length_is_kept_and_a_longer_one_refused(cx: &Context) {
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        let commit = |bytes: usize| {
            let mut commit = came_to(&group, 1, &topic, 1);
            commit.offsets[0].metadata = vec![b'x'; bytes].into();
            commit
        };
        assert_kind(cx.streams.commit_offsets(commit(METADATA_BYTES_MAX + 1)).await, ErrorKind::Invalid);
        assert_eq!(cx.committed(&group, &topic).await, None);
        cx.streams.commit_offsets(commit(METADATA_BYTES_MAX)).await.expect("it fits");
        let info = cx.streams.group(&group).await.expect("answers").expect("it is there");
        assert_eq!(info.offsets[0].metadata.len(), METADATA_BYTES_MAX);
    }

    async fn a_commit_for_what_is_not_there_is_not_found(cx: &Context) {
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        assert_kind(cx.commit_offset(&group, 1, &cx.topic("absent"), 1).await, ErrorKind::NotFound);
        let mut commit = came_to(&group, 1, &topic, 1);
        let absent = GroupOffset { partition: 1, ..commit.offsets[0].clone() };
        commit.offsets.push(absent);
        assert_kind(cx.streams.commit_offsets(commit).await, ErrorKind::NotFound);
        assert_eq!(cx.committed(&group, &topic).await, None, "half of a commit happened");
    }
}
