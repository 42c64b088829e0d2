//! Commits over several contracts: everything happens, or nothing.

use std::time::Duration;

use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::{
        commit::{Commit, CommitOutcome},
        kv::{Check, Entry, Found, Read, Txn, Write},
        queue::{Claim, Claimed, Enqueued, NewJob, QueueHandle, QueueSpec, Settle, Settled, Token, Verdict},
        stream::{Append, Offset, Stamp},
    },
    name::{Group, Key, Queue, Realm, Topic},
};

use super::{
    Context, EVERYTHING, NOT_EVERYTHING, TOGETHER,
    context::{assert_kind, batch, came_to, later},
};

cases! {
    #[needs(TOGETHER)]
    async fn appends_and_offsets_happen_together(cx: &Context) {
        let (from, to, group) = (cx.create("from", 1).await, cx.create("to", 2).await, cx.group("g"));
        let commit = Commit {
            appends: vec![batch(&to, 1, &["a", "b"]), batch(&to, 0, &["c"])],
            offsets: Some(came_to(&group, 1, &from, 4)),
            ..Commit::default()
        };
        let committed = cx.commit(commit).await;
        let firsts = [cx.records(&to, 1).await[0].offset, cx.records(&to, 0).await[0].offset];
        assert_eq!(committed.appended.iter().map(|appended| appended.first).collect::<Vec<_>>(), firsts);
        assert_eq!(cx.committed(&group, &from).await, Some(4));
    }

    #[needs(TOGETHER)]
    async fn a_fenced_generation_appends_nothing(cx: &Context) {
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        cx.streams.fence_group(&group, 5).await.expect("fences");
        let commit = Commit {
            appends: vec![batch(&topic, 0, &["x"])],
            offsets: Some(came_to(&group, 4, &topic, 1)),
            ..Commit::default()
        };
        assert_kind(cx.streams.commit(commit).await, ErrorKind::Fenced);
        assert!(cx.records(&topic, 0).await.is_empty());
    }

    #[needs(TOGETHER)]
    async fn one_refused_append_refuses_all(cx: &Context) {
        let (topic, group) = (cx.create("t", 2).await, cx.group("g"));
        let good = batch(&topic, 0, &["x"]);
        let bad = [
            (batch(&cx.topic("absent"), 0, &["x"]), ErrorKind::NotFound),
            (batch(&topic, 2, &["x"]), ErrorKind::NotFound),
            (Append { expect: Some(Offset(99)), ..batch(&topic, 1, &["x"]) }, ErrorKind::Conflict),
        ];
        for (bad, kind) in bad {
            let offsets = Some(came_to(&group, 1, &topic, 1));
            let commit = Commit { appends: vec![good.clone(), bad], offsets, ..Commit::default() };
            assert_kind(cx.streams.commit(commit).await, kind);
        }
        assert!(cx.records(&topic, 0).await.is_empty() && cx.records(&topic, 1).await.is_empty());
        assert_eq!(cx.committed(&group, &topic).await, None);
    }

    async fn an_empty_commit_is_committed(cx: &Context) {
        assert_eq!(cx.commit(Commit::default()).await, Default::default());
    }

    #[needs(EVERYTHING)]
    async fn everything_happens_and_is_answered_in_order(cx: &Context) {
        let everything = Everything::new(cx).await;
        let claimed = everything.claimed(2).await;
        let mut commit = everything.commit(&claimed);
        commit.jobs.push((everything.queue.clone(), NewJob { name: Some("n".into()), ..NewJob::new("j3") }));
        commit.delayed.push(later(&everything.topic, "d2", cx.far() + 5));
        let committed = cx.commit(commit).await;
        let (revision, reads) = committed.kv.expect("the transaction's answer");
        // Reads come before the writes.
        assert_eq!(reads, [Found::Entry(None)]);
        let entry = cx.store.kv().get(&everything.key).await.expect("answers").expect("it was written");
        assert_eq!(entry.created, revision);
        assert_eq!(committed.appended.len(), 2);
        assert_eq!(committed.delayed.len(), 2);
        assert_eq!(committed.settled, [Settled::Done, Settled::Done]);
        let ids: Vec<_> = committed.jobs.iter().map(|enqueued| enqueued.id()).collect();
        assert!(ids.is_sorted() && ids.len() == 3, "{ids:?}");
        assert!(committed.jobs.iter().all(|enqueued| matches!(enqueued, Enqueued::Created(_))));
        assert_eq!(everything.seen(cx).await, Seen {
            values: [vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]],
            pending: vec!["d1".to_owned(), "d2".to_owned()],
            offset: Some(3),
            entry: Some("v".to_owned()),
            jobs: 3,
            claimed: 0,
        });
    }

    #[needs(EVERYTHING)]
    async fn a_refused_check_leaves_nothing(cx: &Context) {
        let everything = Everything::new(cx).await;
        let claimed = everything.claimed(1).await;
        let before = everything.seen(cx).await;
        cx.store.kv().put(&everything.key, "there", None).await.expect("commits");
        match cx.streams.commit(everything.commit(&claimed)).await.expect("a refusal is an outcome") {
            CommitOutcome::Refused { check: 0, found: Some(Entry { value, .. }) } => assert_eq!(value, "there"),
            other => panic!("expected a refusal, got {other:?}"),
        }
        assert_eq!(everything.seen(cx).await, Seen { entry: Some("there".to_owned()), ..before });
    }

    #[needs(EVERYTHING)]
    async fn a_fenced_claim_leaves_nothing(cx: &Context) {
        let everything = Everything::new(cx).await;
        let mut claimed = everything.claimed(2).await;
        let before = everything.seen(cx).await;
        claimed[1].token = Token(claimed[1].token.0 + 1000);
        assert_kind(cx.streams.commit(everything.commit(&claimed)).await, ErrorKind::Fenced);
        assert_eq!(everything.seen(cx).await, before);
    }

    #[needs(EVERYTHING)]
    async fn an_unknown_name_anywhere_leaves_nothing(cx: &Context) {
        let everything = Everything::new(cx).await;
        let claimed = everything.claimed(1).await;
        let before = everything.seen(cx).await;
        let (absent, no_queue) = (cx.topic("absent"), Queue::new("absent").expect("valid"));
        let good = everything.commit(&claimed);
        let mut bad = vec![good.clone(); 5];
        bad[0].appends.push(batch(&absent, 0, &["x"]));
        bad[1].delayed.push(later(&absent, "x", cx.far()));
        bad[2].offsets = Some(came_to(&everything.group, 1, &absent, 1));
        bad[3].jobs.push((no_queue.clone(), NewJob::new("x")));
        bad[4].settle[0].0 = no_queue;
        for (index, commit) in bad.into_iter().enumerate() {
            let result = cx.streams.commit(commit).await;
            let kind = result.as_ref().err().map(|error| error.kind());
            assert_eq!(kind, Some(ErrorKind::NotFound), "commit {index}: {result:?}");
            assert_eq!(everything.seen(cx).await, before, "commit {index} left something");
        }
        cx.commit(good).await;
    }

    #[needs(EVERYTHING)]
    async fn what_exceeds_a_limit_of_kv_leaves_nothing(cx: &Context) {
        let everything = Everything::new(cx).await;
        let before = everything.seen(cx).await;
        let value = vec![b'x'; cx.store.kv().guarantees().limits.value_bytes + 1];
        let mut commit = everything.commit(&[]);
        let write = Write::Put { key: everything.key.clone(), value: value.into(), lease: None };
        commit.kv.as_mut().expect("there is one").1.writes = vec![write];
        assert_kind(cx.streams.commit(commit).await, ErrorKind::Invalid);
        assert_eq!(everything.seen(cx).await, before);
    }

    #[needs(EVERYTHING)]
    async fn a_key_of_another_realm_leaves_nothing(cx: &Context) {
        let everything = Everything::new(cx).await;
        let before = everything.seen(cx).await;
        let mut commit = everything.commit(&[]);
        commit.kv.as_mut().expect("there is one").0 = Realm::new("another").expect("valid");
        assert_kind(cx.streams.commit(commit).await, ErrorKind::Invalid);
        assert_eq!(everything.seen(cx).await, before);
    }

    #[needs(EVERYTHING)]
    async fn two_commits_that_settle_one_claim_happen_once(cx: &Context) {
        let everything = Everything::new(cx).await;
        let claimed = everything.claimed(1).await;
        let commit = Commit {
            appends: vec![batch(&everything.topic, 0, &["done"])],
            settle: everything.commit(&claimed).settle,
            ..Commit::default()
        };
        let streams = cx.streams.clone();
        let results = cx.parallel(10, |_| {
            let (streams, commit) = (streams.clone(), commit.clone());
            async move { streams.commit(commit).await }
        }).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        for result in results.into_iter().filter(Result::is_err) {
            assert_kind(result, ErrorKind::Fenced);
        }
        assert_eq!(cx.values(&everything.topic).await, ["done"]);
    }

    #[needs(EVERYTHING)]
    async fn a_commit_that_repeats_a_stamped_batch_says_so(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let stamp = Some(Stamp { producer: 1, epoch: 0, sequence: 0 });
        let commit = Commit { appends: vec![Append { stamp, ..batch(&topic, 0, &["x"]) }], ..Commit::default() };
        let first = cx.commit(commit.clone()).await.appended().expect("an append");
        let again = cx.commit(commit).await.appended().expect("an append");
        assert_eq!((first.duplicate, again.duplicate, again.first), (false, true, first.first));
        assert_eq!(cx.values(&topic).await, ["x"]);
    }

    #[needs(NOT_EVERYTHING)]
    async fn what_is_not_declared_is_refused(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let realm = Realm::new(&cx.unique).expect("valid");
        let commit = Commit {
            kv: Some((realm, Txn::default())),
            appends: vec![batch(&topic, 0, &["x"])],
            ..Commit::default()
        };
        assert_kind(cx.streams.commit(commit).await, ErrorKind::Unsupported);
        assert!(cx.records(&topic, 0).await.is_empty());
    }
}

/// One of everything that a commit can do.
struct Everything {
    topic: Topic,
    group: Group,
    queue: Queue,
    queues: QueueHandle,
    key: Key,
    far: u64,
}

/// What came of it.
#[derive(Debug, PartialEq)]
struct Seen {
    values: [Vec<String>; 2],
    pending: Vec<String>,
    offset: Option<u64>,
    entry: Option<String>,
    jobs: u64,
    claimed: u64,
}

impl Everything {
    async fn new(cx: &Context) -> Self {
        let queues = cx.store.queues().expect("it commits over all contracts").clone();
        let queue = Queue::new(&format!("{}-q", cx.unique)).expect("valid");
        queues.put_queue(&queue, &QueueSpec::default()).await.expect("a queue is created");
        let key = Key::parse(&Realm::new(&cx.unique).expect("valid"), "a/x").expect("valid");
        Self { topic: cx.create("t", 2).await, group: cx.group("g"), queue, queues, key, far: cx.far() }
    }

    /// Enqueues so many jobs, and claims them.
    async fn claimed(&self, count: usize) -> Vec<Claimed> {
        let jobs = (0..count).map(|_| NewJob::new("claimed")).collect();
        self.queues.enqueue(&self.queue, jobs).await.expect("enqueued");
        let claim = Claim {
            queue: self.queue.clone(),
            worker: "w".to_owned(),
            limit: count,
            lease: Duration::from_secs(600),
            wait: Duration::ZERO,
        };
        let claimed = self.queues.claim(claim).await.expect("claimed");
        assert_eq!(claimed.len(), count);
        claimed
    }

    /// A commit of everything, which acknowledges these claims.
    fn commit(&self, claimed: &[Claimed]) -> Commit {
        let txn = Txn {
            checks: vec![Check::Absent(self.key.clone())],
            writes: vec![Write::Put { key: self.key.clone(), value: Bytes::from("v"), lease: None }],
            reads: vec![Read::Get(self.key.clone())],
        };
        let ack = |claimed: &Claimed| (self.queue.clone(), Settle { receipt: claimed.receipt(), verdict: Verdict::Ack });
        Commit {
            kv: Some((self.key.realm().clone(), txn)),
            appends: vec![batch(&self.topic, 0, &["a", "b"]), batch(&self.topic, 1, &["c"])],
            delayed: vec![later(&self.topic, "d1", self.far)],
            offsets: Some(came_to(&self.group, 1, &self.topic, 3)),
            jobs: ["j1", "j2"].map(|body| (self.queue.clone(), NewJob::new(body))).into(),
            settle: claimed.iter().map(ack).collect(),
        }
    }

    async fn seen(&self, cx: &Context) -> Seen {
        let stats = self.queues.stats(&self.queue).await.expect("stats");
        let entry = cx.store.kv().get(&self.key).await.expect("answers");
        Seen {
            values: [cx.values_of(&self.topic, 0).await, cx.values_of(&self.topic, 1).await],
            pending: cx.pending(&self.topic).await,
            offset: cx.committed(&self.group, &self.topic).await,
            entry: entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()),
            jobs: stats.ready,
            claimed: stats.claimed,
        }
    }
}
