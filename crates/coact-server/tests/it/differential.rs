//! The same script against a real etcd and a node: every response and every error must be the same, down to revisions,
//! texts and the headers inside transactions. What differs on purpose is listed, with both sides.

use std::fmt::Debug;

use coact_core::env::Env;
use coact_engine_etcd::wire::{
    etcdserverpb::{
        CompactionRequest, Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
        LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnResponse, WatchCancelRequest,
        WatchCreateRequest, WatchProgressRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        watch_create_request::FilterType,
        watch_request::RequestUnion,
    },
    v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest},
    v3lockpb::{LockRequest, UnlockRequest},
};
use futures::StreamExt;
use tonic::{Response, Status};

use crate::{
    bed::{self, Etcd, PATIENCE, within},
    client::{Clients, absent, bytes, compare, delete, delete_range, get, get_range, op, put, txn, value_is},
};

#[tokio::test(flavor = "multi_thread")]
async fn answers_as_etcd_does() {
    let etcd = Etcd::start().await;
    let node = bed::node().await;
    let expected = run(Clients::connect(etcd.address).await.expect("etcd answers")).await;
    let found = run(Clients::connect(node.address()).await.expect("the node answers")).await;
    assert_eq!(expected.steps.len(), found.steps.len(), "the script ran to its end on both");
    assert!(expected.steps.len() >= 80, "{} steps are few", expected.steps.len());

    let differences: Vec<_> = expected
        .steps
        .iter()
        .zip(&found.steps)
        .filter(|(etcd, node)| etcd != node)
        .map(|((name, etcd), (_, node))| format!("{name}\n  etcd: {etcd}\n  node: {node}"))
        .collect();
    assert!(differences.is_empty(), "{} differences, the first: {}", differences.len(), differences.join("\n"));
    node.shutdown().await.expect("a clean end");
}

/// Where a node answers otherwise than etcd 3.4.23, on purpose, with what each says.
#[tokio::test(flavor = "multi_thread")]
async fn deviates_where_it_says() {
    let etcd = Etcd::start().await;
    let node = bed::node().await;
    let mut transcripts = Vec::new();
    for address in [etcd.address, node.address()] {
        let mut transcript = Transcript::default();
        deviations(&mut Clients::connect(address).await.expect("it answers"), &mut transcript).await;
        transcripts.push(transcript.steps);
    }
    let expected = [
        // etcd's check takes "from this key on" for an empty range, and deletes what the same transaction puts.
        (
            "txn that puts and deletes from a key on",
            "true",
            "InvalidArgument: etcdserver: duplicate key given in txn request",
        ),
        // etcd's shortest lease is longer than its election timeout; a node has no election.
        ("grant for a second", "2", "1"),
        ("grant for nothing", "2", "1"),
        ("grant for less than nothing", "2", "1"),
        // etcd 3.4 takes what it does not know as met, or as no order.
        ("range with an unknown order", "0", "InvalidArgument: etcdserver: invalid sort option"),
        ("txn with an unknown comparison", "true", "InvalidArgument: etcdserver: invalid compare option"),
        // Past the limit of a message, each gRPC library has its own code and words.
        (
            "put of 3 MiB",
            "ResourceExhausted: grpc: received message larger than max (3145736 vs. 2097152)",
            "OutOfRange: Error, decoded message length too large: found 3145736 bytes, the limit is: 2097152 bytes",
        ),
    ];
    let expected: Vec<_> = expected.iter().map(|(name, etcd, node)| [(*name, *etcd), (*name, *node)]).collect();
    for (at, side) in transcripts.iter().enumerate() {
        let found: Vec<_> = side.iter().map(|(name, answer)| (name.as_str(), answer.as_str())).collect();
        assert_eq!(
            found,
            expected.iter().map(|sides| sides[at]).collect::<Vec<_>>(),
            "side {at}: 0 is etcd, 1 the node"
        );
    }
}

async fn deviations(clients: &mut Clients, to: &mut Transcript) {
    let Clients { kv, lease, .. } = clients;
    let both = txn(vec![], vec![op(put("x", "2")), op(delete_range("w", "\0"))], vec![]);
    let succeeded = |response: Response<TxnResponse>| response.get_ref().succeeded;
    to.note("txn that puts and deletes from a key on", kv.txn(both).await.map(succeeded));
    for (name, ttl) in [("a second", 1), ("nothing", 0), ("less than nothing", -5)] {
        let granted = lease.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await;
        to.note(&format!("grant for {name}"), granted.map(|granted| granted.get_ref().ttl));
    }
    let unordered = RangeRequest { sort_order: 9, ..get("no") };
    to.note("range with an unknown order", kv.range(unordered).await.map(|found| found.get_ref().count));
    let compare = Compare { result: 9, ..absent("no") };
    to.note("txn with an unknown comparison", kv.txn(txn(vec![compare], vec![], vec![])).await.map(succeeded));
    to.step("put of 3 MiB", kv.put(put("k", &"x".repeat(3 << 20))).await);
}

async fn run(mut clients: Clients) -> Transcript {
    let mut transcript = Transcript::default();
    let script = Env::real().timeout(PATIENCE * 2, script(&mut clients, &mut transcript)).await;
    assert!(script.is_some(), "the script stopped after {:?}", transcript.steps.last());
    transcript
}

async fn script(clients: &mut Clients, to: &mut Transcript) {
    single_keys(clients, to).await;
    ranges(clients, to).await;
    transactions(clients, to).await;
    refused_transactions(clients, to).await;
    leases(clients, to).await;
    watches(clients, to).await;
    locks(clients, to).await;
    elections(clients, to).await;
    compaction(clients, to).await;
}

/// What was answered, in order, as text without what is each server's own.
#[derive(Default)]
struct Transcript {
    steps: Vec<(String, String)>,
}

impl Transcript {
    fn step<T: Debug>(&mut self, name: &str, answer: Result<Response<T>, Status>) {
        self.note(name, answer.map(Response::into_inner));
    }

    fn note<T: Debug>(&mut self, name: &str, answer: Result<T, Status>) {
        let text = match answer {
            Ok(message) => mask(&mask(&format!("{message:?}"), "cluster_id: "), "member_id: "),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.steps.push((name.to_owned(), text));
    }
}

/// Hides the numbers after a label, but for zero: that an id is left out is part of the answer.
fn mask(text: &str, label: &str) -> String {
    let mut parts = text.split(label);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let shown = if part.starts_with("0,") { "0" } else { "*" };
        masked.extend([label, shown, rest]);
    }
    masked
}

async fn single_keys(clients: &mut Clients, to: &mut Transcript) {
    let kv = &mut clients.kv;
    to.step("get of an absent key", kv.range(get("a")).await);
    to.step("put", kv.put(put("a", "1")).await);
    to.step("get", kv.range(get("a")).await);
    to.step("put again, with the previous", kv.put(PutRequest { prev_kv: true, ..put("a", "2") }).await);
    to.step("put of nothing", kv.put(put("empty", "")).await);
    to.step("get at an old revision", kv.range(RangeRequest { revision: 2, ..get("a") }).await);
    to.step("get at a future revision", kv.range(RangeRequest { revision: 1_000, ..get("a") }).await);
    to.step("get at a negative revision", kv.range(RangeRequest { revision: -3, ..get("a") }).await);
    to.step("get, serializable", kv.range(RangeRequest { serializable: true, ..get("a") }).await);
    to.step("put that keeps the value", kv.put(PutRequest { ignore_value: true, ..put("a", "") }).await);
    to.step("put that keeps the lease", kv.put(PutRequest { ignore_lease: true, ..put("a", "3") }).await);
    to.step("put that keeps the value of nothing", kv.put(PutRequest { ignore_value: true, ..put("no", "") }).await);
    to.step("put that keeps the value and gives one", kv.put(PutRequest { ignore_value: true, ..put("a", "x") }).await);
    to.step(
        "put that keeps the lease and gives one",
        kv.put(PutRequest { ignore_lease: true, lease: 7, ..put("a", "x") }).await,
    );
    to.step("put with a lease that is not", kv.put(PutRequest { lease: 4711, ..put("a", "x") }).await);
    to.step("put without a key", kv.put(put("", "x")).await);
    to.step("get without a key", kv.range(get("")).await);
    to.step("delete without a key", kv.delete_range(delete("")).await);
    to.step("delete of an absent key", kv.delete_range(delete("no")).await);
    let with_previous =
        |request| coact_engine_etcd::wire::etcdserverpb::DeleteRangeRequest { prev_kv: true, ..request };
    to.step("delete, with the previous", kv.delete_range(with_previous(delete("a"))).await);
    to.step("get of a deleted key", kv.range(get("a")).await);
    to.step("get before the deletion", kv.range(RangeRequest { revision: 3, ..get("a") }).await);
    to.step("put after the deletion", kv.put(put("a", "new")).await);
    to.step("get of the second life", kv.range(get("a")).await);
    let binary = PutRequest { key: vec![0, 255, 1].into(), value: vec![0, 159, 146, 150].into(), ..put("", "") };
    to.step("put of binary", kv.put(binary).await);
    to.step("put of 1 MiB", kv.put(put("large", &"x".repeat(1 << 20))).await);
    to.step("put of more than 1.5 MiB", kv.put(put("large", &"x".repeat((3 << 19) + 100))).await);
    to.step("delete of everything, with the previous", kv.delete_range(with_previous(delete_range("\0", "\0"))).await);
}

async fn ranges(clients: &mut Clients, to: &mut Transcript) {
    let kv = &mut clients.kv;
    for (key, value) in
        [("k/c", "5"), ("k/a", "9"), ("k/d", "1"), ("k/b", "7"), ("k/d", "3"), ("k/b", "8"), ("k/d", "2")]
    {
        to.step("put into a range", kv.put(put(key, value)).await);
    }
    let all = || get_range("k/", "k0");
    to.step("range", kv.range(all()).await);
    to.step("range with a limit", kv.range(RangeRequest { limit: 2, ..all() }).await);
    to.step("range with a limit of all", kv.range(RangeRequest { limit: 4, ..all() }).await);
    to.step("range with a negative limit", kv.range(RangeRequest { limit: -1, ..all() }).await);
    to.step("range, keys only", kv.range(RangeRequest { keys_only: true, ..all() }).await);
    to.step("range, count only", kv.range(RangeRequest { count_only: true, ..all() }).await);
    to.step("range, count only, limited", kv.range(RangeRequest { count_only: true, limit: 1, ..all() }).await);
    to.step("range from a key on", kv.range(get_range("k/c", "\0")).await);
    to.step("range of everything", kv.range(get_range("\0", "\0")).await);
    to.step("range that ends before it starts", kv.range(get_range("k/c", "k/a")).await);
    to.step("range at an old revision", kv.range(RangeRequest { revision: 14, ..all() }).await);
    for target in [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value] {
        for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
            // Versions repeat, and etcd's sort is not stable: two keys whose versions differ.
            let range = if target == SortTarget::Version { get_range("k/c", "k0") } else { all() };
            let request = RangeRequest { sort_target: target.into(), sort_order: order.into(), limit: 3, ..range };
            to.step(&format!("range sorted by {target:?} {order:?}"), kv.range(request).await);
        }
    }
    let bounds = |low: (i64, i64), high: (i64, i64)| RangeRequest {
        min_mod_revision: low.0,
        max_mod_revision: high.0,
        min_create_revision: low.1,
        max_create_revision: high.1,
        ..all()
    };
    let first = match kv.range(get("k/c")).await {
        Ok(found) => found.get_ref().kvs[0].create_revision,
        Err(status) => panic!("{status}"),
    };
    to.step("range modified from", kv.range(bounds((first + 3, 0), (0, 0))).await);
    to.step("range modified up to", kv.range(bounds((0, 0), (first + 3, 0))).await);
    to.step("range created between", kv.range(bounds((0, first + 1), (0, first + 2))).await);
    to.step(
        "range created up to, limited",
        kv.range(RangeRequest { limit: 1, ..bounds((0, 0), (0, first + 1)) }).await,
    );
    to.step("range modified up to less than nothing", kv.range(bounds((0, 0), (-1, 0))).await);
    to.step("delete of a range", kv.delete_range(delete_range("k/a", "k/c")).await);
    to.step("range after it", kv.range(all()).await);
}

async fn transactions(clients: &mut Clients, to: &mut Transcript) {
    let kv = &mut clients.kv;
    let write_and_look = || vec![op(get("t")), op(put("t", "1")), op(get("t")), op(delete("t2")), op(get("t"))];
    to.step("txn that creates", kv.txn(txn(vec![absent("t")], write_and_look(), vec![op(get("t"))])).await);
    to.step(
        "txn that does not create again",
        kv.txn(txn(vec![absent("t")], write_and_look(), vec![op(get("t"))])).await,
    );
    to.step("txn without anything", kv.txn(txn(vec![], vec![], vec![])).await);
    to.step("txn that only reads", kv.txn(txn(vec![], vec![op(get("t")), op(get("no"))], vec![])).await);
    to.step("txn that deletes nothing", kv.txn(txn(vec![], vec![op(delete("no"))], vec![])).await);
    let inner = || txn(vec![value_is("t", "1")], vec![op(put("u", "in")), op(get("t"))], vec![op(put("u", "out"))]);
    let nested = txn(vec![], vec![op(put("t", "2")), op(inner()), op(get("u"))], vec![]);
    to.step("txn in a txn, decided before both", kv.txn(nested).await);
    let reading_inner = txn(vec![], vec![op(txn(vec![], vec![op(get("t"))], vec![]))], vec![]);
    to.step("txn in a txn that only reads", kv.txn(reading_inner).await);
    let either = txn(vec![absent("v")], vec![op(put("v", "then"))], vec![op(put("v", "else"))]);
    to.step("txn with one key in both branches", kv.txn(either.clone()).await);
    to.step("txn with a nested key in both branches", kv.txn(txn(vec![], vec![op(either)], vec![])).await);
    let siblings = txn(
        vec![],
        vec![op(txn(vec![], vec![op(put("w", "1"))], vec![])), op(txn(vec![], vec![op(get("w"))], vec![]))],
        vec![],
    );
    to.step("txn with siblings", kv.txn(siblings).await);
    to.step(
        "txn at an old revision",
        kv.txn(txn(vec![], vec![op(RangeRequest { revision: 3, ..get("a") })], vec![])).await,
    );

    let key = kv.range(get("t")).await.expect("there").into_inner().kvs[0].clone();
    let operands = [
        (CompareTarget::Version, TargetUnion::Version(key.version)),
        (CompareTarget::Create, TargetUnion::CreateRevision(key.create_revision)),
        (CompareTarget::Mod, TargetUnion::ModRevision(key.mod_revision)),
        (CompareTarget::Value, TargetUnion::Value(key.value.clone())),
        (CompareTarget::Lease, TargetUnion::Lease(0)),
        (CompareTarget::Version, TargetUnion::Version(-1)),
        (CompareTarget::Value, TargetUnion::Value(bytes("1"))),
        (CompareTarget::Value, TargetUnion::Version(1)),
        (CompareTarget::Mod, TargetUnion::Version(1)),
    ];
    for (target, operand) in operands {
        for result in [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual] {
            for (name, end) in [("t", ""), ("no", ""), ("t", "w"), ("t", "\0"), ("w", "t")] {
                let compare = Compare { range_end: bytes(end), ..compare(name, result, target, operand.clone()) };
                let step = format!("compare {name}..{end:?} {target:?} {result:?} {operand:?}");
                to.step(&step, kv.txn(txn(vec![compare], vec![], vec![])).await);
            }
        }
    }
    let without_operand = Compare { target_union: None, ..absent("no") };
    to.step("compare without an operand", kv.txn(txn(vec![without_operand], vec![], vec![])).await);
}

async fn refused_transactions(clients: &mut Clients, to: &mut Transcript) {
    let kv = &mut clients.kv;
    let many = |count: usize| (0..count).map(|at| op(put(&format!("many/{at}"), ""))).collect::<Vec<_>>();
    to.step("txn of 128 puts", kv.txn(txn(vec![], many(128), vec![])).await);
    to.step("txn of 129 puts", kv.txn(txn(vec![], many(129), vec![])).await);
    to.step("txn of 129 compares", kv.txn(txn(vec![absent("x"); 129], vec![], vec![])).await);
    to.step("txn of 129 in the other branch", kv.txn(txn(vec![], vec![], many(129))).await);
    let nested = txn(vec![], vec![op(txn(vec![], many(100), vec![]))], vec![]);
    to.step("txn in a txn of 100", kv.txn(nested).await);
    let mut crowded = many(64);
    crowded.push(op(txn(vec![], vec![op(put("z", "")); 100], vec![])));
    to.step("txn whose inner one passes the rest", kv.txn(txn(vec![], crowded, vec![])).await);
    to.step("txn that puts twice", kv.txn(txn(vec![], vec![op(put("x", "1")), op(put("x", "2"))], vec![])).await);
    to.step(
        "txn that would put twice in the branch not taken",
        kv.txn(txn(vec![], vec![], vec![op(put("x", "1")), op(put("x", "2"))])).await,
    );
    to.step("txn that deletes and puts", kv.txn(txn(vec![], vec![op(delete("x")), op(put("x", "2"))], vec![])).await);
    to.step(
        "txn that deletes a range and puts in it",
        kv.txn(txn(vec![], vec![op(put("x", "2")), op(delete_range("w", "y"))], vec![])).await,
    );
    to.step(
        "txn that deletes overlapping ranges",
        kv.txn(txn(vec![], vec![op(delete_range("many/", "many0")), op(delete("many/1"))], vec![])).await,
    );
    let inner = txn(vec![], vec![op(put("x", "1"))], vec![]);
    to.step(
        "txn that puts what its inner one puts",
        kv.txn(txn(vec![], vec![op(put("x", "")), op(inner.clone())], vec![])).await,
    );
    to.step(
        "txn that deletes what its inner one puts",
        kv.txn(txn(vec![], vec![op(delete("x")), op(inner)], vec![])).await,
    );
    to.step("txn with an empty operation", kv.txn(txn(vec![], vec![RequestOp::default()], vec![])).await);
    to.step("txn that compares no key", kv.txn(txn(vec![absent("")], vec![], vec![])).await);
    to.step("txn that puts no key", kv.txn(txn(vec![], vec![op(put("", ""))], vec![])).await);
    to.step("txn that reads no key", kv.txn(txn(vec![], vec![op(get(""))], vec![])).await);
    to.step("txn that deletes no key", kv.txn(txn(vec![], vec![op(delete(""))], vec![])).await);
    let future = RangeRequest { revision: 1 << 40, ..get("a") };
    to.step("txn that reads the future", kv.txn(txn(vec![], vec![op(put("x", "")), op(future.clone())], vec![])).await);
    to.step("txn that would read the future", kv.txn(txn(vec![], vec![], vec![op(future)])).await);
    let leased = PutRequest { lease: 4711, ..put("x", "") };
    to.step("txn that puts with a lease that is not", kv.txn(txn(vec![], vec![op(leased)], vec![])).await);
    let keeps = PutRequest { ignore_lease: true, ..put("nothing", "") };
    to.step(
        "txn that keeps the lease of nothing",
        kv.txn(txn(vec![], vec![op(put("x", "")), op(keeps)], vec![])).await,
    );
    to.step("after all refusals", kv.range(get("x")).await);
    let large = op(put("large", &"x".repeat(900_000)));
    let larger = op(put("larger", &"x".repeat(900_000)));
    to.step("txn of more than 1.5 MiB", kv.txn(txn(vec![], vec![large, larger], vec![])).await);
}

async fn leases(clients: &mut Clients, to: &mut Transcript) {
    let Clients { kv, lease, .. } = clients;
    to.step("grant", lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 77 }).await);
    to.step("grant again", lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 77 }).await);
    to.step("grant for too long", lease.lease_grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 78 }).await);
    to.step("grant for long", lease.lease_grant(LeaseGrantRequest { ttl: 9_000_000_000, id: 79 }).await);
    to.step("revoke it", lease.lease_revoke(LeaseRevokeRequest { id: 79 }).await);
    let chosen = lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("granted").into_inner();
    to.note("grant with an id of the server's choice", Ok((chosen.id > 0, chosen.ttl)));
    lease.lease_revoke(LeaseRevokeRequest { id: chosen.id }).await.expect("revoked");
    to.step("leases", lease.lease_leases(LeaseLeasesRequest {}).await);
    to.step("put with it", kv.put(PutRequest { lease: 77, ..put("l/a", "1") }).await);
    to.step("put that keeps it", kv.put(PutRequest { ignore_lease: true, ..put("l/a", "2") }).await);
    to.step("another put with it", kv.put(PutRequest { lease: 77, ..put("l/b", "1") }).await);
    to.step("get shows it", kv.range(get_range("l/", "l0")).await);
    let mut left =
        lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 77, keys: true }).await.expect("alive").into_inner();
    left.keys.sort();
    left.ttl = i64::from((500..600).contains(&left.ttl));
    to.note("time to live, with keys", Ok(left));
    to.step("time to live of none", lease.lease_time_to_live(LeaseTimeToLiveRequest { id: 4711, keys: true }).await);
    let mut renewals = lease
        .lease_keep_alive(futures::stream::iter([77, 4711].map(|id| LeaseKeepAliveRequest { id })))
        .await
        .expect("a stream")
        .into_inner();
    while let Some(renewal) = within("a renewal", renewals.next()).await {
        to.note("keep alive", renewal);
    }
    to.step("put that drops it", kv.put(put("l/b", "2")).await);
    to.step("revoke", lease.lease_revoke(LeaseRevokeRequest { id: 77 }).await);
    to.step("revoke again", lease.lease_revoke(LeaseRevokeRequest { id: 77 }).await);
    to.step("its keys are gone", kv.range(get_range("l/", "l0")).await);
}

async fn watches(clients: &mut Clients, to: &mut Transcript) {
    let mut kv = clients.kv.clone();
    let start = kv.put(put("w/before", "0")).await.expect("put").into_inner().header.expect("a header").revision;
    let on = |key: &str, end: &str| WatchCreateRequest { key: bytes(key), range_end: bytes(end), ..Default::default() };

    let mut stream = clients.watch(on("w/", "w0")).await;
    to.note("watch created", stream.next().await);
    to.step("put under a watch", kv.put(put("w/a", "1")).await);
    to.note("put event", stream.next().await);
    to.step("second put under a watch", kv.put(put("w/a", "2")).await);
    to.note("second put event", stream.next().await);
    to.step("delete under a watch", kv.delete_range(delete_range("w/", "w0")).await);
    to.note("delete events", stream.next().await);
    let both = txn(vec![], vec![op(put("w/x", "1")), op(put("w/y", "1")), op(put("other", "1"))], vec![]);
    to.step("txn under a watch", kv.txn(both).await);
    to.note("txn events in one response", stream.next().await);
    stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 }));
    to.note("watch cancelled", stream.next().await);

    stream.create(WatchCreateRequest { prev_kv: true, watch_id: 42, ..on("w/x", "") });
    to.note("watch with a chosen id", stream.next().await);
    stream.create(WatchCreateRequest { watch_id: 42, ..on("w/y", "") });
    to.note("watch with an id in use", stream.next().await);
    stream.create(on("w/z", "w/b"));
    to.note("watch of an empty range", stream.next().await);
    to.step("put with the previous watched", kv.put(put("w/x", "2")).await);
    to.note("event with the previous", stream.next().await);
    to.step("delete with the previous watched", kv.delete_range(delete("w/x")).await);
    to.note("delete with the previous", stream.next().await);
    to.step("creation with the previous watched", kv.put(put("w/x", "3")).await);
    to.note("creation has no previous", stream.next().await);
    stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 42 }));
    to.note("watch with a chosen id cancelled", stream.next().await);
    stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 99 }));

    stream.create(WatchCreateRequest { start_revision: start, ..on("w/", "w0") });
    to.note("watch of the past created", stream.next().await);
    to.note("the past", stream.next().await);
    stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 1 }));
    to.note("watch of the past cancelled", stream.next().await);

    for (name, filter) in [("puts", FilterType::Noput), ("deletes", FilterType::Nodelete)] {
        let filtered = WatchCreateRequest { filters: vec![filter.into()], start_revision: start, ..on("w/", "w0") };
        stream.create(filtered);
        let created = stream.next().await;
        let watch_id = created.as_ref().map_or(0, |response| response.watch_id);
        to.note(&format!("watch without {name} created"), created);
        to.note(&format!("watch without {name}"), stream.next().await);
        stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
        to.note(&format!("watch without {name} cancelled"), stream.next().await);
    }

    stream.create(WatchCreateRequest { fragment: true, ..on("", "\0") });
    to.note("watch of everything created", stream.next().await);
    to.step("put of anything", kv.put(put("anything", "1")).await);
    to.note("event of anything", stream.next().await);
    stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    to.note("progress", stream.next().await);
    to.step("lease under a watch", clients.lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 88 }).await);
    to.step("put with a lease", kv.put(PutRequest { lease: 88, ..put("w/leased", "1") }).await);
    to.note("event with a lease", stream.next().await);
    to.step("revoke under a watch", clients.lease.lease_revoke(LeaseRevokeRequest { id: 88 }).await);
    to.note("event of the lease's end", stream.next().await);

    let now = kv.range(get("x")).await.expect("answers").into_inner().header.expect("a header").revision;
    let mut future = clients.watch(WatchCreateRequest { start_revision: now + 2, ..on("f", "") }).await;
    to.note("watch of the future created", future.next().await);
    to.step("put before its time", kv.put(put("f", "early")).await);
    to.step("put in its time", kv.put(put("f", "in time")).await);
    to.note("event of the future", future.next().await);
}

async fn locks(clients: &mut Clients, to: &mut Transcript) {
    let Clients { kv, lease, lock, .. } = clients;
    for id in [0x10, 0x11] {
        lease.lease_grant(LeaseGrantRequest { ttl: 600, id }).await.expect("granted");
    }
    let request = |lease| LockRequest { name: bytes("lock"), lease };
    to.step("lock with a lease that is not", lock.lock(request(4711)).await);
    to.step("lock", lock.lock(request(0x10)).await);
    to.step("lock again with the same lease", lock.lock(request(0x10)).await);
    to.step("the lock's key", kv.range(get_range("lock/", "lock0")).await);
    let mut second = lock.clone();
    let waiting = second.lock(request(0x11));
    let unlocking = async {
        bed::eventually("the second is in line", async || {
            let line = RangeRequest { count_only: true, ..get_range("lock/", "lock0") };
            kv.clone().range(line).await.is_ok_and(|found| found.get_ref().count == 2)
        })
        .await;
        lock.clone().unlock(UnlockRequest { key: bytes("lock/10") }).await
    };
    let (waited, unlocked) = within("the second lock", async { tokio::join!(waiting, unlocking) }).await;
    to.step("unlock", unlocked);
    to.step("the second lock", waited);
    to.step("unlock again", lock.unlock(UnlockRequest { key: bytes("lock/10") }).await);
    to.step("unlock of nothing", lock.unlock(UnlockRequest { key: bytes("") }).await);
    to.step("unlock of the second", lock.unlock(UnlockRequest { key: bytes("lock/11") }).await);
}

async fn elections(clients: &mut Clients, to: &mut Transcript) {
    let Clients { kv, election, .. } = clients;
    let campaign = |lease, value: &str| CampaignRequest { name: bytes("post"), lease, value: bytes(value) };
    let name = || LeaderRequest { name: bytes("post") };
    to.step("leader of nobody", election.leader(name()).await);
    // Together, since etcd's stream opens with its first leader.
    let mut observer = election.clone();
    let (observed, first) = tokio::join!(observer.observe(name()), election.campaign(campaign(0x10, "one")));
    let mut observed = observed.expect("a stream").into_inner();
    let leader = first.as_ref().ok().and_then(|won| won.get_ref().leader.clone());
    to.step("campaign", first);
    to.note("observed", within("the first leader", observed.next()).await.expect("open"));
    to.step("leader", election.leader(name()).await);
    to.step("proclaim", election.proclaim(ProclaimRequest { leader: leader.clone(), value: bytes("uno") }).await);
    to.note("observed proclamation", within("the proclamation", observed.next()).await.expect("open"));
    to.step("campaign again with another value", election.campaign(campaign(0x10, "eins")).await);
    to.note("observed second campaign", within("the second campaign", observed.next()).await.expect("open"));
    to.step("leader after it", election.leader(name()).await);

    let mut second = election.clone();
    let waiting = second.campaign(campaign(0x11, "two"));
    let resigning = async {
        bed::eventually("the second is in line", async || {
            let line = RangeRequest { count_only: true, ..get_range("post/", "post0") };
            kv.clone().range(line).await.is_ok_and(|found| found.get_ref().count == 2)
        })
        .await;
        election.clone().resign(ResignRequest { leader: leader.clone() }).await
    };
    let (won, resigned) = within("the second leader", async { tokio::join!(waiting, resigning) }).await;
    to.step("resign", resigned);
    to.step("second campaign", won);
    to.note("observed second leader", within("the second leader", observed.next()).await.expect("open"));
    to.step("resign again", election.resign(ResignRequest { leader: leader.clone() }).await);
    to.step("proclaim of who does not lead", election.proclaim(ProclaimRequest { leader, value: bytes("x") }).await);
    to.step("proclaim of nobody", election.proclaim(ProclaimRequest { leader: None, value: bytes("x") }).await);
    to.step("resign of nobody", election.resign(ResignRequest { leader: None }).await);
    to.step("campaign with a lease that is not", election.campaign(campaign(4711, "x")).await);
    let stranger = LeaderKey { name: bytes("post"), key: bytes("post/99"), rev: 3, lease: 0x11 };
    to.step("resign of a stranger", election.resign(ResignRequest { leader: Some(stranger) }).await);
}

async fn compaction(clients: &mut Clients, to: &mut Transcript) {
    let mut kv = clients.kv.clone();
    let now = kv.range(get("x")).await.expect("answers").into_inner().header.expect("a header").revision;
    let compact = |revision| CompactionRequest { revision, physical: true };
    to.step("compact the future", kv.compact(compact(now + 1)).await);
    to.step("compact", kv.compact(compact(now - 2)).await);
    to.step("compact again", kv.compact(compact(now - 2)).await);
    to.step("compact what is before", kv.compact(compact(now - 5)).await);
    to.step("compact less than nothing", kv.compact(compact(-1)).await);
    to.step("get before the compaction", kv.range(RangeRequest { revision: now - 3, ..get("anything") }).await);
    to.step("get at the compaction", kv.range(RangeRequest { revision: now - 2, ..get("anything") }).await);
    let old = RangeRequest { revision: 2, ..get("a") };
    to.step("txn that reads before it", kv.txn(txn(vec![], vec![op(old)], vec![])).await);
    let on = |start_revision| WatchCreateRequest { key: bytes("a"), start_revision, ..Default::default() };
    let mut stream = clients.watch(on(2)).await;
    to.note("watch from before it created", stream.next().await);
    to.note("watch from before it ends", stream.next().await);
    stream.create(on(0));
    to.note("watch from now created", stream.next().await);
    to.step("compact all", kv.compact(compact(now)).await);
    to.step("put after it", kv.put(put("a", "after")).await);
    to.note("watch goes on", stream.next().await);
}
