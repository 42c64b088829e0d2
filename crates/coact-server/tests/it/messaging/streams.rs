//! Every verb of the stream contract, there and back.

use std::time::Duration;

use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::{
        commit::{Commit, CommitOutcome},
        kv::{Check, Found, Read as KvRead, Revision, Txn, Write},
        queue::{Enqueued, QueueSpec, Settle, Settled, Verdict},
        stream::{
            Append, DELAY_BUCKETS, DelayId, Delayed, GroupOffset, LATENESS_BUCKETS, Offset, OffsetCommit, Record, Seek,
            Stamp, TopicSpec,
        },
    },
    env::Env,
    error::Effect,
    name::{Key, Realm, Topic},
};

use super::{append, batch, group, job, one_claimed, open, queue, read, refused, stamped, streams, topic, values};
use crate::bed::{self, PATIENCE, within};

#[tokio::test]
async fn topics_come_and_go_and_change() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    let spec = TopicSpec {
        retention_age: Some(Duration::from_secs(60)),
        retention_bytes: Some(1 << 20),
        ..TopicSpec::default()
    };
    let again = refused("again", streams.create_topic(&topic(), &spec).await, ErrorKind::AlreadyExists);
    assert_eq!(again.effect(), Effect::NotApplied);
    let wider = TopicSpec { partitions: 3, ..spec };
    streams.alter_topic(&topic(), &wider).await.expect("wider");
    refused("narrower", streams.alter_topic(&topic(), &TopicSpec::default()).await, ErrorKind::Invalid);
    let info = streams.topic(&topic()).await.expect("a topic").expect("it is there");
    assert_eq!((info.name, info.spec, info.created_ms > 0), (topic(), wider, true));
    let second = Topic::new("payments").expect("a topic");
    streams.create_topic(&second, &TopicSpec::default()).await.expect("a second one");
    let names = |infos: Vec<coact_core::contract::stream::TopicInfo>| -> Vec<_> {
        infos.into_iter().map(|info| info.name).collect()
    };
    assert_eq!(names(streams.topics("", 10).await.expect("topics")), [topic(), second.clone()]);
    assert_eq!(names(streams.topics("", 1).await.expect("topics")), [topic()]);
    assert_eq!(names(streams.topics("orders", 10).await.expect("topics")), [second]);
    assert!(streams.delete_topic(&topic()).await.expect("deleted"));
    assert!(!streams.delete_topic(&topic()).await.expect("there is none"));
    assert_eq!(streams.topic(&topic()).await.expect("a look"), None);
    refused("gone", streams.append(append(&["a"])).await, ErrorKind::NotFound);
    refused("gone", streams.bounds(&topic(), 0).await, ErrorKind::NotFound);
}

#[tokio::test]
async fn records_are_appended_and_read() {
    let node = bed::node().await;
    let streams = streams(&node, 2).await;
    let first = streams.append(append(&["a", "b"])).await.expect("an append");
    assert_eq!((first.first, first.duplicate, first.time_ms > 0), (Offset(0), false, true));
    let stamped_once = streams.append(stamped(&["c"], 0)).await.expect("an append");
    let stamped_twice = streams.append(stamped(&["c"], 0)).await.expect("an append");
    assert_eq!((stamped_once.first, stamped_once.duplicate), (Offset(2), false));
    assert_eq!((stamped_twice.first, stamped_twice.duplicate), (Offset(2), true));
    refused("a gap", streams.append(stamped(&["e"], 9)).await, ErrorKind::Conflict);
    let older = Append { stamp: Some(Stamp { producer: 7, epoch: 0, sequence: 0 }), ..append(&["x"]) };
    refused("an old epoch", streams.append(older).await, ErrorKind::Fenced);
    let expecting = |at| Append { expect: Some(Offset(at)), ..append(&["d"]) };
    refused("elsewhere", streams.append(expecting(2)).await, ErrorKind::Conflict);
    assert_eq!(streams.append(expecting(3)).await.expect("here").first, Offset(3));
    refused("no such partition", streams.append(Append { partition: 2, ..append(&["x"]) }).await, ErrorKind::NotFound);

    let fetched = streams.read(read(1, Duration::ZERO)).await.expect("a read");
    let records: Vec<_> = fetched.records(Offset(1)).collect();
    assert_eq!(records.iter().map(|stored| stored.offset.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(records[0].record, Record::new("b").with_key("k"));
    assert_eq!((fetched.start, fetched.end, fetched.next), (Offset(0), Offset(4), Offset(4)));
    assert_eq!(values(&streams, 0).await, ["a", "b", "c", "d"]);

    let bounds = streams.bounds(&topic(), 0).await.expect("bounds");
    assert_eq!((bounds.start, bounds.end, bounds.oldest_ms), (Offset(0), Offset(4), first.time_ms));
    assert_eq!(streams.bounds(&topic(), 1).await.expect("bounds").end, Offset(0));
    let at = async |seek| streams.seek(&topic(), 0, seek).await.expect("a place").0;
    assert_eq!([at(Seek::Earliest).await, at(Seek::Latest).await, at(Seek::Time(0)).await], [0, 4, 0]);
    assert_eq!(at(Seek::Time(u64::MAX / 2)).await, 4);
    streams.trim(&topic(), 0, Offset(2)).await.expect("trimmed");
    assert_eq!(at(Seek::Earliest).await, 2);
    assert_eq!(values(&streams, 0).await, ["c", "d"]);
}

#[tokio::test]
async fn a_read_waits_and_holds_nothing_up() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    let waiting = streams.clone();
    let waiting = async move { waiting.read(read(0, PATIENCE)).await.expect("a read") };
    let meanwhile = async {
        // Over the same session, while the read is under way.
        streams
            .commit(Commit { offsets: Some(committed(1, 0)), ..Commit::default() })
            .await
            .map(drop)
            .expect("a commit");
        streams.append(append(&["late"])).await.expect("an append");
    };
    let (fetched, ()) = within("both", async { tokio::join!(waiting, meanwhile) }).await;
    assert_eq!(fetched.records(Offset(0)).count(), 1);
    let nothing = streams.read(read(1, Duration::from_millis(1))).await.expect("a read");
    assert_eq!((nothing.batches.len(), nothing.next), (0, Offset(1)));
}

#[tokio::test]
async fn groups_remember_and_are_fenced() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    assert_eq!(streams.group(&group()).await.expect("a look"), None);
    streams.append(append(&["a", "b"])).await.expect("an append");
    streams.commit_offsets(committed(3, 2)).await.expect("a commit");
    let info = streams.group(&group()).await.expect("a look").expect("a group");
    assert_eq!((info.name, info.offsets), (group(), committed(3, 2).offsets));
    streams.fence_group(&group(), 5).await.expect("fenced");
    refused("an old generation", streams.commit_offsets(committed(4, 2)).await, ErrorKind::Fenced);
    refused("an old fence", streams.fence_group(&group(), 4).await, ErrorKind::Fenced);
    assert_eq!(streams.groups("", 10).await.expect("groups").len(), 1);
    assert!(streams.groups("billing", 10).await.expect("groups").is_empty());
    assert!(streams.delete_group(&group()).await.expect("deleted"));
    assert!(!streams.delete_group(&group()).await.expect("there is none"));
}

#[tokio::test]
async fn delayed_records_wait_and_come() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    let later = Env::real().wall_ms() + 3_600_000;
    let delayed = |value: &str, due_ms| Delayed {
        topic: topic(),
        partition: 0,
        record: Record::new(value.to_owned()).with_header("h", "1"),
        due_ms,
    };
    let ids = streams.schedule(vec![delayed("one", later), delayed("two", later + 1)]).await.expect("scheduled");
    let pending = streams.pending(&topic(), None, 10).await.expect("pending");
    assert_eq!(pending.iter().map(|pending| pending.id).collect::<Vec<_>>(), ids);
    assert_eq!(pending[1].delayed, delayed("two", later + 1));
    assert_eq!(streams.pending(&topic(), Some(ids[0]), 10).await.expect("pending").len(), 1);
    let stats = streams.delay_stats(&topic()).await.expect("numbers");
    assert_eq!((stats.pending, stats.next_due_ms), (2, Some(later)));
    assert_eq!((stats.by_due.len(), stats.by_lateness.len()), (DELAY_BUCKETS.len() + 1, LATENESS_BUCKETS.len() + 1));

    assert!(streams.cancel(&topic(), ids[0]).await.expect("cancelled"));
    assert!(!streams.cancel(&topic(), ids[0]).await.expect("it was"));
    let moved = streams.reschedule(&topic(), ids[1], 0).await.expect("an answer").expect("it waited");
    assert_ne!(moved, ids[1]);
    let unknown = DelayId { due_ms: later, number: 99 };
    assert_eq!(streams.reschedule(&topic(), unknown, later).await.expect("an answer"), None);
    let come = within("the record", streams.read(read(0, PATIENCE))).await.expect("a read");
    assert_eq!(come.records(Offset(0)).next().expect("a record").record, delayed("two", 0).record);
}

/// Everything that a commit can carry, in each contract, and its refusal.
#[tokio::test]
async fn a_commit_does_everything_or_nothing() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    let store = open(node.address(), "").await.expect("the node answers");
    let (kv, queues) = (store.kv(), store.queues().expect("it has queues"));
    queues.put_queue(&queue(), &QueueSpec::default()).await.expect("a queue");
    queues.enqueue(&queue(), vec![job("work")]).await.expect("a job");
    let claimed = one_claimed(queues).await;
    let lease = kv.lease_grant(Duration::from_secs(600)).await.expect("a lease").id;
    let (one, two) = (key("config/one"), key("config/two"));
    let later = Env::real().wall_ms() + 3_600_000;
    let commit = |receipt| Commit {
        kv: Some((
            Realm::default(),
            Txn {
                checks: vec![Check::Absent(one.clone()), Check::LeaseAlive(lease)],
                reads: vec![
                    KvRead::Get(one.clone()),
                    KvRead::Count(one.dir().clone()),
                    KvRead::First(one.dir().clone()),
                ],
                writes: vec![
                    Write::Put { key: one.clone(), value: Bytes::from_static(b"1"), lease: Some(lease) },
                    Write::Incr { key: two.clone(), by: 4 },
                ],
            },
        )),
        appends: vec![append(&["a", "b"])],
        delayed: vec![Delayed { topic: topic(), partition: 0, record: Record::new("late"), due_ms: later }],
        offsets: Some(committed(1, 2)),
        jobs: vec![(queue(), job("more"))],
        settle: vec![(queue(), Settle { receipt, verdict: Verdict::Ack })],
    };
    let outcome = streams.commit(commit(claimed.receipt())).await.expect("a commit");
    let CommitOutcome::Committed(done) = outcome else { panic!("{outcome:?}") };
    let (revision, reads) = done.kv.clone().expect("the Kv part");
    assert_eq!(reads, [Found::Entry(None), Found::Count(0), Found::Entry(None)]);
    assert_eq!((done.appended().expect("an append").first, done.delayed.len()), (Offset(0), 1));
    assert!(matches!(done.jobs[..], [Enqueued::Created(_)]), "{done:?}");
    assert_eq!(done.settled, [Settled::Done]);
    // Where the Kv contract of the same handle sees it, with the lease of that contract.
    let entry = kv.get(&one).await.expect("a look").expect("it was put");
    assert_eq!((entry.value, entry.created, entry.lease), (Bytes::from_static(b"1"), revision, Some(lease)));
    assert_eq!(kv.get(&two).await.expect("a look").expect("it was put").value, "4");

    let outcome = streams.commit(commit(claimed.receipt())).await;
    // Which of the two refuses first is the engine's to say; nothing happens in either case.
    match outcome {
        Ok(CommitOutcome::Refused { check: 0, found: Some(found) }) => assert_eq!(found.created, revision),
        Err(error) if error.kind() == ErrorKind::Fenced => {}
        other => panic!("{other:?}"),
    }
    let refusing = Commit { settle: Vec::new(), ..commit(claimed.receipt()) };
    let outcome = streams.commit(refusing).await.expect("an outcome");
    let CommitOutcome::Refused { check: 0, found: Some(found) } = outcome else { panic!("{outcome:?}") };
    assert_eq!((found.key, found.modified), (one.clone(), revision));
    assert_eq!(values(&streams, 0).await, ["a", "b"]);

    let wrong = Txn { checks: vec![Check::ModifiedAt(one.clone(), Revision(0))], ..Txn::default() };
    let wrong = Commit { kv: Some((Realm::default(), wrong)), ..Commit::default() };
    refused("revision 0", streams.commit(wrong).await, ErrorKind::Invalid);
    kv.lease_revoke(lease).await.expect("revoked");
    assert_eq!(kv.get(&one).await.expect("a look"), None, "it was the lease's");
}

#[tokio::test]
async fn namespaces_are_apart() {
    let node = bed::node().await;
    let shop = streams(&node, 1).await;
    let url = format!("coact://{}/other", node.address());
    let registry = coact_core::registry::Registry::default().with(coact_engine_etcd::driver());
    let other = registry.open(url.parse().expect("a URL"), Env::real()).await.expect("the node answers");
    let other = other.streams().expect("it has streams");
    shop.append(append(&["shop"])).await.expect("an append");
    refused("not here", other.append(append(&["x"])).await, ErrorKind::NotFound);
    other.create_topic(&topic(), &TopicSpec::default()).await.expect("its own");
    other.append(append(&["other"])).await.expect("an append");
    assert_eq!((values(&shop, 0).await, values(other, 0).await), (vec!["shop".into()], vec!["other".into()]));
}

#[tokio::test]
async fn the_node_says_what_it_promises() {
    let node = bed::node().await;
    let store = open(node.address(), "").await.expect("the node answers");
    let own = node.engine().store(coact_core::name::Namespace::default(), Default::default());
    assert_eq!(store.streams().expect("streams").guarantees(), own.streams().expect("streams").guarantees());
    assert_eq!(store.queues().expect("queues").guarantees(), own.queues().expect("queues").guarantees());
}

/// Close ends this contract for this handle; the others go on.
#[tokio::test]
async fn a_closed_handle_says_so() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    let store = open(node.address(), "").await.expect("the node answers");
    store.streams().expect("streams").close().await.expect("closed");
    refused("read", store.streams().expect("streams").read(read(0, Duration::ZERO)).await, ErrorKind::Closed);
    refused("topics", store.streams().expect("streams").topics("", 1).await, ErrorKind::Closed);
    store.queues().expect("queues").queues("", 1).await.expect("still open");
    store.close().await.expect("closed");
    refused("queues", store.queues().expect("queues").queues("", 1).await, ErrorKind::Closed);
    streams.append(append(&["a"])).await.expect("another handle");
}

/// The largest batch, and a commit of four of them.
#[tokio::test]
async fn what_is_as_large_as_may_be_passes() {
    let node = bed::node().await;
    let streams = streams(&node, 4).await;
    let limits = streams.guarantees().limits;
    let value = "x".repeat(limits.record_bytes - 1024);
    let largest = batch(&[&value, &value, &value, &value]);
    assert!(largest.bytes().len() > limits.batch_bytes - 8 * 1024 && largest.bytes().len() <= limits.batch_bytes);
    let appends = (0..4)
        .map(|partition| Append { topic: topic(), partition, batch: largest.clone(), stamp: None, expect: None })
        .collect();
    streams.commit(Commit { appends, ..Commit::default() }).await.map(drop).expect("a commit");
    for partition in 0..4 {
        let whole = coact_core::contract::stream::Read { partition, ..read(0, Duration::ZERO) };
        assert_eq!(streams.read(whole).await.expect("a read").batches[0].batch, largest);
    }
}

fn committed(generation: u64, offset: u64) -> OffsetCommit {
    let metadata = Bytes::from_static(b"a note");
    let offsets = vec![GroupOffset { topic: topic(), partition: 0, offset: Offset(offset), metadata }];
    OffsetCommit { group: group(), generation, offsets }
}

fn key(text: &str) -> Key {
    Key::parse(&Realm::default(), text).expect("a key")
}
