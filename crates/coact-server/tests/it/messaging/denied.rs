//! Every call asks for leave first: the one that it needs, and no other.

use std::time::Duration;

use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::{
        commit::Commit,
        kv::{Check, LeaseId, Read as KvRead, Txn, Write},
        queue::{JobId, Receipt, Settle, Token, Verdict},
        stream::{Append, GroupOffset, Offset, OffsetCommit, TopicSpec as CoreSpec},
    },
    name::{Dir, Key, Realm},
    registry::Store,
};
use coact_engine_etcd::{
    messages::failure,
    wire::coact_v1::{
        self as wire, AppendRequest, CancelDelayedRequest, ClaimRequest, CommitRequest, DeadJobsRequest, DelayId,
        EnqueueRequest, FenceGroupRequest, FindJobRequest, GroupRequest, GuaranteesRequest, JobRequest, JobState,
        ListDelayedRequest, ListGroupsRequest, ListJobsRequest, ListQueuesRequest, ListTopicsRequest, NewJob,
        PartitionRequest, PauseRequest, PutQueueRequest, QueueRequest, QueueSpec, ReadRequest,
        RescheduleDelayedRequest, RescheduleJobRequest, ScheduleRequest, SeekRequest, SettleRequest, TailRequest,
        TopicRequest, TopicSpec, TopicSpecRequest, TrimRequest, commit_request, queues_client::QueuesClient,
        seek_request, streams_client::StreamsClient,
    },
};
use futures::{FutureExt as _, future::BoxFuture, stream};
use serde_json::json;
use tonic::{Code, Request, Status, transport::Channel};

use super::{append, claim, group, job, open, queue, raw::connect, read, refused, topic};
use crate::{
    auth::{Guarded, with},
    bed::{PATIENCE, within},
};

/// The verbs of the blocks `mq` and `queue`.
const VERBS: [&str; 3] = ["read", "write", "admin"];

/// A call of one resource, `mine`, and the verbs that it needs.
struct Call {
    name: &'static str,
    needs: &'static [&'static str],
    /// Whether it is about all resources of the namespace.
    about_all: bool,
    send: Box<Send>,
}

/// Sends it with a token, about a namespace.
type Send = dyn Fn(Clients, String, &'static str) -> BoxFuture<'static, Result<(), Status>>;

type Clients = (StreamsClient<Channel>, QueuesClient<Channel>);

/// Every unary call, and the tail: a session's requests are the same ones, and are tried through the client below.
fn calls() -> Vec<Call> {
    macro_rules! calls {
        ($($at:tt $method:ident $needs:expr, $request:expr;)*) => {
            vec![$(Call {
                name: stringify!($method),
                needs: &$needs,
                about_all: stringify!($method).starts_with("list_") && !["list_delayed", "list_jobs"].contains(&stringify!($method)),
                send: Box::new(|mut clients: Clients, token: String, namespace: &'static str| {
                    let request = with_namespace($request, namespace);
                    async move { clients.$at.$method(with(&token, request)).await.map(drop) }.boxed()
                }),
            }),*]
        };
    }
    calls! {
        0 create_topic ["admin"], TopicSpecRequest { topic: "mine".into(), spec: Some(TopicSpec::default()), ..Default::default() };
        0 alter_topic ["admin"], TopicSpecRequest { topic: "mine".into(), spec: Some(TopicSpec::default()), ..Default::default() };
        0 delete_topic ["admin"], TopicRequest { topic: "mine".into(), ..Default::default() };
        0 get_topic ["read"], TopicRequest { topic: "mine".into(), ..Default::default() };
        0 list_topics ["read"], ListTopicsRequest { limit: 1, ..Default::default() };
        0 append ["write"], AppendRequest { append: Some(wire::Append { topic: "mine".into(), ..Default::default() }), ..Default::default() };
        0 read ["read"], ReadRequest { topic: "mine".into(), ..Default::default() };
        0 bounds ["read"], PartitionRequest { topic: "mine".into(), ..Default::default() };
        0 seek ["read"], SeekRequest { topic: "mine".into(), to: Some(seek_request::To::TimeMs(0)), ..Default::default() };
        0 trim ["admin"], TrimRequest { topic: "mine".into(), ..Default::default() };
        0 fence_group ["write"], FenceGroupRequest { group: "mine".into(), ..Default::default() };
        0 get_group ["read"], GroupRequest { group: "mine".into(), ..Default::default() };
        0 list_groups ["read"], ListGroupsRequest { limit: 1, ..Default::default() };
        0 delete_group ["admin"], GroupRequest { group: "mine".into(), ..Default::default() };
        0 schedule ["write"], ScheduleRequest { delayed: vec![wire::Delayed { topic: "mine".into(), ..Default::default() }], ..Default::default() };
        0 cancel_delayed ["write"], CancelDelayedRequest { topic: "mine".into(), id: Some(DelayId::default()), ..Default::default() };
        0 reschedule_delayed ["write"], RescheduleDelayedRequest { topic: "mine".into(), id: Some(DelayId::default()), ..Default::default() };
        0 list_delayed ["read"], ListDelayedRequest { topic: "mine".into(), limit: 1, ..Default::default() };
        0 delay_stats ["read"], TopicRequest { topic: "mine".into(), ..Default::default() };
        0 commit ["write"], CommitRequest { appends: vec![wire::Append { topic: "mine".into(), ..Default::default() }], ..Default::default() };
        0 commit ["write"], CommitRequest { delayed: vec![wire::Delayed { topic: "mine".into(), ..Default::default() }], ..Default::default() };
        0 commit ["write"], CommitRequest { offsets: Some(wire::OffsetCommit { group: "mine".into(), ..Default::default() }), ..Default::default() };
        0 commit ["write"], CommitRequest { jobs: vec![commit_request::JobOf { queue: "mine".into(), job: Some(NewJob::default()) }], ..Default::default() };
        0 commit ["write"], CommitRequest { settle: vec![commit_request::SettleOf { queue: "mine".into(), settle: None }], ..Default::default() };
        1 put_queue ["admin"], PutQueueRequest { queue: "mine".into(), spec: Some(QueueSpec::default()), ..Default::default() };
        1 delete_queue ["admin"], QueueRequest { queue: "mine".into(), ..Default::default() };
        1 get_queue ["read"], QueueRequest { queue: "mine".into(), ..Default::default() };
        1 list_queues ["read"], ListQueuesRequest { limit: 1, ..Default::default() };
        1 enqueue ["write"], EnqueueRequest { queue: "mine".into(), jobs: vec![NewJob::default()], ..Default::default() };
        1 claim ["read", "write"], ClaimRequest { queue: "mine".into(), limit: 1, lease_ms: 60_000, ..Default::default() };
        1 settle ["write"], SettleRequest { queue: "mine".into(), ..Default::default() };
        1 cancel_job ["write"], JobRequest { queue: "mine".into(), ..Default::default() };
        1 reschedule_job ["write"], RescheduleJobRequest { queue: "mine".into(), ..Default::default() };
        1 get_job ["read"], JobRequest { queue: "mine".into(), ..Default::default() };
        1 list_jobs ["read"], ListJobsRequest { queue: "mine".into(), state: JobState::Ready.into(), limit: 1, ..Default::default() };
        1 find_job ["read"], FindJobRequest { queue: "mine".into(), name: "n".into(), ..Default::default() };
        1 redrive ["admin"], DeadJobsRequest { queue: "mine".into(), limit: 1, ..Default::default() };
        1 purge ["admin"], DeadJobsRequest { queue: "mine".into(), limit: 1, ..Default::default() };
        1 pause ["admin"], PauseRequest { queue: "mine".into(), ..Default::default() };
        1 stats ["read"], QueueRequest { queue: "mine".into(), ..Default::default() };
    }
}

/// Puts the namespace into any request.
trait InNamespace {
    fn set(&mut self, namespace: &str);
}

macro_rules! in_namespace {
    ($($type:ty),* $(,)?) => { $(impl InNamespace for $type {
        fn set(&mut self, namespace: &str) {
            self.namespace = namespace.to_owned();
        }
    })* };
}

in_namespace!(
    AppendRequest,
    CancelDelayedRequest,
    ClaimRequest,
    CommitRequest,
    DeadJobsRequest,
    EnqueueRequest,
    FenceGroupRequest,
    FindJobRequest,
    GroupRequest,
    JobRequest,
    ListDelayedRequest,
    ListGroupsRequest,
    ListJobsRequest,
    ListQueuesRequest,
    ListTopicsRequest,
    PartitionRequest,
    PauseRequest,
    PutQueueRequest,
    QueueRequest,
    ReadRequest,
    RescheduleDelayedRequest,
    RescheduleJobRequest,
    ScheduleRequest,
    SeekRequest,
    SettleRequest,
    TopicRequest,
    TopicSpecRequest,
    TrimRequest,
);

fn with_namespace<R: InNamespace>(mut request: R, namespace: &str) -> R {
    request.set(namespace);
    request
}

fn is_denied(answer: &Result<(), Status>) -> bool {
    let Err(status) = answer else { return false };
    let denied = failure::error(status).is_some_and(|error| error.kind() == ErrorKind::Denied);
    assert_eq!(denied, status.code() == Code::PermissionDenied, "{status:?}");
    denied
}

#[tokio::test]
async fn every_call_needs_its_own_leave_and_no_other() {
    let guarded = Guarded::start().await;
    let clients = connect(guarded.node.address()).await;
    let permissions =
        |verbs: &str, prefix: &str| [format!("shop mq {verbs}{prefix}"), format!("shop queue {verbs}{prefix}")];
    let mut tokens = Vec::new();
    // Every set of verbs, for everything in the namespace and for what is called so only.
    for set in 1..8_u32 {
        let verbs: Vec<_> =
            VERBS.into_iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, verb)| verb).collect();
        for prefix in ["", " mine", " other"] {
            let [mq, queue] = permissions(&verbs.join(","), prefix);
            let label = format!("set-{set}-{}", prefix.trim());
            let token = guarded.token(label.trim_end_matches('-'), &[&mq, &queue]).await;
            tokens.push((verbs.clone(), prefix.trim(), token));
        }
    }
    for call in calls() {
        for (verbs, prefix, token) in &tokens {
            let reaches = if call.about_all { prefix.is_empty() } else { *prefix != "other" };
            let allowed = reaches && call.needs.iter().all(|verb| verbs.contains(verb));
            let answer = within(call.name, (call.send)(clients.clone(), token.clone(), "shop")).await;
            assert_eq!(is_denied(&answer), !allowed, "{} with {verbs:?} on {prefix:?}: {answer:?}", call.name);
            let elsewhere = within(call.name, (call.send)(clients.clone(), token.clone(), "elsewhere")).await;
            assert!(is_denied(&elsewhere), "{} elsewhere: {elsewhere:?}", call.name);
        }
        let own = within(call.name, (call.send)(clients.clone(), guarded.admin.clone(), "_coact")).await;
        assert!(is_denied(&own), "{} in the node's own namespace: {own:?}", call.name);
        let nobody = within(call.name, (call.send)(clients.clone(), "nonsense".to_owned(), "shop")).await;
        assert_eq!(nobody.expect_err("nobody").code(), Code::Unauthenticated, "{}", call.name);
    }
}

#[tokio::test]
async fn what_answers_with_a_stream_asks_too() {
    let guarded = Guarded::start().await;
    let (mut streams, _) = connect(guarded.node.address()).await;
    let token = guarded.token("writer", &["shop mq write,admin", "shop mq read other"]).await;
    let tail = TailRequest { namespace: "shop".to_owned(), topic: "mine".to_owned(), ..TailRequest::default() };
    let mut answers = streams.tail(with(&token, tail.clone())).await.expect("a stream").into_inner();
    let refusal = within("a refusal", answers.message()).await.map(drop);
    assert!(is_denied(&refusal), "{refusal:?}");
    let nobody = |code: Code| assert_eq!(code, Code::Unauthenticated);
    nobody(streams.tail(Request::new(tail)).await.map(drop).expect_err("nobody").code());
    nobody(streams.session(stream::pending()).await.map(drop).expect_err("nobody").code());
    nobody(streams.guarantees(GuaranteesRequest::default()).await.map(drop).expect_err("nobody").code());
}

/// The same through the client: what goes over a session is judged request by request, as of now.
#[tokio::test]
async fn a_session_allows_no_more_than_a_call() {
    let guarded = Guarded::start().await;
    let token = guarded.token("app", &["shop mq read other", "shop queue read"]).await;
    let store = open(guarded.node.address(), &format!("?token={token}")).await.expect("the node answers");
    let (streams, queues) = (store.streams().expect("streams"), store.queues().expect("queues"));
    let settle = Settle { receipt: Receipt { id: JobId(1), token: Token(1) }, verdict: Verdict::Ack };
    for error in [
        refused("append", streams.append(append(&["a"])).await, ErrorKind::Denied),
        refused("read", streams.read(read(0, Duration::ZERO)).await, ErrorKind::Denied),
        refused(
            "commit",
            streams.commit(Commit { appends: vec![append(&["a"])], ..Commit::default() }).await,
            ErrorKind::Denied,
        ),
        refused("enqueue", queues.enqueue(&queue(), vec![job("a")]).await, ErrorKind::Denied),
        refused("claim", queues.claim(claim(Duration::ZERO)).await, ErrorKind::Denied),
        refused("settle", queues.settle(&queue(), vec![settle]).await, ErrorKind::Denied),
    ] {
        assert!(!format!("{error:?}").contains(&token[15..35]), "{error:?}");
    }
}

/// Who waits when its role changes is judged anew: by then, it may not.
#[tokio::test]
async fn a_read_that_waits_ends_with_the_leave_to_read() {
    let guarded = Guarded::start().await;
    let token = guarded.token("app", &["shop mq read,write,admin"]).await;
    let store = open(guarded.node.address(), &format!("?token={token}")).await.expect("the node answers");
    let streams = store.streams().expect("streams");
    streams.create_topic(&topic(), &CoreSpec::default()).await.expect("a topic");
    let changes = async {
        // Of the same session, so the read has arrived.
        streams.append(Append { partition: 1, ..append(&["a"]) }).await.expect_err("there is no such partition");
        let permissions = json!([{ "namespace": "shop", "block": "mq", "verbs": "write", "prefix": "" }]);
        let role = json!({ "permissions": permissions });
        let (status, body) = guarded.ask("PUT", "/v1/auth/roles/app", &guarded.admin, &role).await;
        assert_eq!(status, 204, "{body}");
    };
    let waits = within("both", async { tokio::join!(streams.read(read(0, PATIENCE)), changes) }).await;
    refused("it may not any more", waits.0, ErrorKind::Denied);
    streams.append(append(&["a"])).await.expect("it may still");
}

/// A commit may do to keys what its bearer may do to them anyway.
#[tokio::test]
async fn a_commit_reaches_no_key_that_a_transaction_does_not() {
    let guarded = Guarded::start().await;
    let open_as = async |label: &str, permissions: &[&str]| -> Store {
        let token = guarded.token(label, permissions).await;
        open(guarded.node.address(), &format!("?token={token}")).await.expect("the node answers")
    };
    let reader = open_as("reader", &["shop kv read app/", "shop mq read,write", "shop lock read"]).await;
    let writer = open_as("writer", &["shop kv write app/", "shop mq read,write"]).await;
    let key = |text: &str| Key::parse(&Realm::default(), text).expect("a key");
    let dir = |text: &str| Dir::new(&Realm::default(), text).expect("a dir");
    let put = |at: &str| Write::Put { key: key(at), value: Bytes::new(), lease: None };
    let lease = Check::LeaseAlive(LeaseId(7));
    // What is done, and whether it is a matter of reading or of writing; all of it in `app`, or all of it beside.
    let parts = |at: &'static str| {
        let (one, all) = (format!("{at}/a"), dir(at));
        vec![
            (false, Txn { checks: vec![Check::Absent(key(&one))], ..Txn::default() }),
            (false, Txn { reads: vec![KvRead::Get(key(&one))], ..Txn::default() }),
            (false, Txn { reads: vec![KvRead::First(all.clone())], ..Txn::default() }),
            (false, Txn { reads: vec![KvRead::Count(all)], ..Txn::default() }),
            (true, Txn { writes: vec![put(&one)], ..Txn::default() }),
            (true, Txn { writes: vec![Write::Delete(key(&one))], ..Txn::default() }),
            (true, Txn { writes: vec![Write::Incr { key: key(&format!("{at}/n")), by: 1 }], ..Txn::default() }),
        ]
    };
    let commit = async |store: &Store, txn: Txn| {
        let commit = Commit { kv: Some((Realm::default(), txn)), ..Commit::default() };
        store.streams().expect("streams").commit(commit).await
    };
    for (writes, txn) in parts("app") {
        for (store, may) in [(&reader, !writes), (&writer, writes)] {
            let answer = commit(store, txn.clone()).await;
            let denied = answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Denied);
            assert_eq!(denied, !may, "{txn:?}: {answer:?}");
        }
    }
    for (_, txn) in parts("beside") {
        for store in [&reader, &writer] {
            refused("beside", commit(store, txn.clone()).await, ErrorKind::Denied);
        }
    }
    // As for Kv: a lease is looked at by who may write anything.
    let alive = || Txn { checks: vec![lease.clone()], ..Txn::default() };
    assert!(commit(&writer, alive()).await.is_ok());
}

/// Committing offsets is a write for the group and a read of the topic.
#[tokio::test]
async fn offsets_are_for_who_may_read_the_topic() {
    let guarded = Guarded::start().await;
    let offsets = || OffsetCommit {
        group: group(),
        generation: 1,
        offsets: vec![GroupOffset { topic: topic(), partition: 0, offset: Offset(0), metadata: Bytes::new() }],
    };
    for (label, permissions, allowed) in [
        ("both", ["shop mq write billing", "shop mq read orders"], true),
        ("no-topic", ["shop mq write billing", "shop mq read billing"], false),
        ("no-group", ["shop mq read billing", "shop mq read,write orders"], false),
    ] {
        let token = guarded.token(label, &permissions).await;
        let store = open(guarded.node.address(), &format!("?token={token}")).await.expect("the node answers");
        let error = store.streams().expect("streams").commit_offsets(offsets()).await.expect_err("there is no topic");
        let expected = if allowed { ErrorKind::NotFound } else { ErrorKind::Denied };
        assert_eq!(error.kind(), expected, "{label}: {error}");
    }
}
