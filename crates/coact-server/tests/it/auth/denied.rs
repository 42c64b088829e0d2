//! What is denied stays hidden, whatever form the question has.

use coact_engine_etcd::wire::{
    etcdserverpb::{
        self as pb, WatchCreateRequest, WatchRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        watch_request::RequestUnion,
    },
    v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest},
    v3lockpb::{LockRequest, UnlockRequest},
};
use futures::{StreamExt as _, stream};
use tonic::{Code, Status};

use super::{Guarded, status, with};
use crate::{
    bed::{self, within},
    client::{Clients, absent, bytes, compare, delete, delete_range, get, get_range, op, put, txn, value_is},
};

const SECRET: &str = "a value that only the owner reads";
const HIDDEN: &str = "shop/main/hidden//key";
const OWN: &str = "shop/main/app//key";

/// A node with something hidden, and a token that may do everything below `app/`, and look at locks of the same name.
async fn scene() -> (Guarded, Clients, String) {
    let guarded = Guarded::start().await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    for key in [HIDDEN, OWN] {
        clients.kv.put(with(&guarded.admin, put(key, SECRET))).await.expect("an admin may");
    }
    let token = guarded.token("app", &["shop kv read,write app/", "shop lock read app/"]).await;
    (guarded, clients, token)
}

fn denied<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>) {
    let status = answer.map(|answer| panic!("{what}: {answer:?}")).unwrap_err();
    let expected = (Code::PermissionDenied, "etcdserver: permission denied");
    assert_eq!((status.code(), status.message()), expected, "{what}");
}

fn previous(key: &str) -> pb::PutRequest {
    pb::PutRequest { prev_kv: true, ..put(key, "x") }
}

#[tokio::test]
async fn no_request_on_keys_shows_or_changes_what_is_hidden() {
    let (guarded, mut clients, token) = scene().await;
    let kv = &mut clients.kv;
    kv.range(with(&token, get(OWN))).await.expect("its own");
    kv.put(with(&token, previous(OWN))).await.expect("its own");

    let count = pb::RangeRequest { count_only: true, ..get(HIDDEN) };
    for range in [
        get(HIDDEN),
        count,
        get_range("shop/main/", "shop/main0"),
        get_range("shop/main/app//key", "shop/main/z"),
        get_range("shop/main/app", "shop/main/i"),
        get_range("\0", "\0"),
        get_range(OWN, "\0"),
        get("_coact/main/auth/token//x"),
    ] {
        denied("range", kv.range(with(&token, range.clone())).await);
        let nested = op(txn(vec![], vec![op(range.clone())], vec![]));
        denied("in a transaction", kv.txn(with(&token, txn(vec![], vec![op(range.clone())], vec![]))).await);
        denied("in the other branch", kv.txn(with(&token, txn(vec![], vec![], vec![op(range)]))).await);
        denied("nested", kv.txn(with(&token, txn(vec![], vec![op(put(OWN, "1"))], vec![nested]))).await);
    }
    for compared in [value_is(HIDDEN, SECRET), absent(HIDDEN)] {
        denied("compare", kv.txn(with(&token, txn(vec![compared.clone()], vec![], vec![]))).await);
        let nested = op(txn(vec![compared], vec![], vec![]));
        denied("nested compare", kv.txn(with(&token, txn(vec![], vec![nested], vec![]))).await);
    }
    let mut range = compare(OWN, CompareResult::Equal, CompareTarget::Version, TargetUnion::Version(1));
    range.range_end = bytes("shop/main/z");
    denied("compare a range", kv.txn(with(&token, txn(vec![range], vec![], vec![]))).await);
    for write in [put(HIDDEN, "x"), previous(HIDDEN), put("shop/main/lock/app//x", "x"), put("x", "y")] {
        denied("put", kv.put(with(&token, write.clone())).await);
        denied("put in a transaction", kv.txn(with(&token, txn(vec![], vec![op(write)], vec![]))).await);
    }
    for write in [delete(HIDDEN), delete_range("shop/main/app/", "shop/main/i"), delete_range("\0", "\0")] {
        denied("delete", kv.delete_range(with(&token, write.clone())).await);
        denied("delete in a transaction", kv.txn(with(&token, txn(vec![], vec![op(write)], vec![]))).await);
    }
    denied("compact", kv.compact(with(&token, pb::CompactionRequest { revision: 2, physical: false })).await);

    let writer = guarded.token("writer", &["shop kv write"]).await;
    kv.put(with(&writer, put(HIDDEN, SECRET))).await.expect("a write");
    denied("what was there", kv.put(with(&writer, previous(HIDDEN))).await);
    let shown = pb::DeleteRangeRequest { prev_kv: true, ..delete(HIDDEN) };
    denied("what is deleted", kv.delete_range(with(&writer, shown)).await);
    let found = kv.range(with(&guarded.admin, get(HIDDEN))).await.expect("an admin may").into_inner();
    assert_eq!(found.kvs[0].value, SECRET, "nothing was changed");
}

#[tokio::test]
async fn not_even_an_admin_reaches_the_nodes_own_namespace() {
    let (guarded, mut clients, _) = scene().await;
    let own = "_coact/main/auth/token//deadbeef";
    for range in [get(own), get_range("_coact/", "_coact0"), get_range("\0", "\0"), get_range("Z", "a")] {
        denied("range", clients.kv.range(with(&guarded.admin, range)).await);
    }
    denied("put", clients.kv.put(with(&guarded.admin, put(own, "{}"))).await);
    denied("delete", clients.kv.delete_range(with(&guarded.admin, delete_range("\0", "\0"))).await);
    denied("lock", clients.lock.lock(with(&guarded.admin, LockRequest { name: bytes("_coact/x"), lease: 0 })).await);
}

#[tokio::test]
async fn no_watch_shows_what_is_hidden() {
    let (guarded, mut clients, token) = scene().await;
    let create = |key: &str, end: &str| {
        let keys =
            WatchCreateRequest { key: bytes(key), range_end: bytes(end), start_revision: 1, ..Default::default() };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(keys)) }
    };
    let requests = [
        create(HIDDEN, ""),
        create("", "\0"),
        create("shop/main/", "shop/main0"),
        create("_coact/", "_coact0"),
        create("shop/main/app/", "shop/main/app0"),
    ];
    let open = stream::iter(requests).chain(stream::pending());
    let mut responses = clients.watch.watch(with(&token, open)).await.expect("a stream").into_inner();
    for _ in 0..4 {
        let response = within("a refusal", responses.message()).await.expect("open").expect("a response");
        assert!(response.canceled && response.cancel_reason.ends_with("etcdserver: permission denied"), "{response:?}");
    }
    let created = within("a watch", responses.message()).await.expect("open").expect("a response");
    assert!(created.created && !created.canceled);
    clients.kv.put(with(&guarded.admin, put(HIDDEN, SECRET))).await.expect("an admin may");
    clients.kv.put(with(&guarded.admin, put(OWN, "last"))).await.expect("an admin may");
    loop {
        let response = within("events", responses.message()).await.expect("open").expect("a response");
        let pairs: Vec<_> = response.events.into_iter().filter_map(|event| event.kv).collect();
        assert!(pairs.iter().all(|pair| pair.key == OWN), "{pairs:?}");
        if pairs.iter().any(|pair| pair.value == "last") {
            return;
        }
    }
}

#[tokio::test]
async fn locks_elections_and_leases_need_leave_too() {
    let (guarded, mut clients, token) = scene().await;
    let name = bytes("shop/main/lock/other/");
    denied("lock", clients.lock.lock(with(&token, LockRequest { name: name.clone(), lease: 0 })).await);
    denied("unlock", clients.lock.unlock(with(&token, UnlockRequest { key: bytes(HIDDEN) })).await);
    // It may look at this one, which does not suffice to take it.
    let app = bytes("shop/main/lock/app/");
    denied("lock", clients.lock.lock(with(&token, LockRequest { name: app, lease: 0 })).await);
    let campaign = CampaignRequest { name: name.clone(), lease: 0, value: bytes("x") };
    denied("campaign", clients.election.campaign(with(&token, campaign)).await);
    let leader = LeaderKey { name: name.clone(), key: bytes(HIDDEN), rev: 2, lease: 0 };
    let proclaim = ProclaimRequest { leader: Some(leader.clone()), value: bytes("x") };
    denied("proclaim", clients.election.proclaim(with(&token, proclaim)).await);
    denied("resign", clients.election.resign(with(&token, ResignRequest { leader: Some(leader) })).await);
    denied("leader", clients.election.leader(with(&token, LeaderRequest { name: name.clone() })).await);
    denied("observe", clients.election.observe(with(&token, LeaderRequest { name })).await.map(|_| ()));

    let lease = pb::LeaseGrantRequest { ttl: 600, id: 7 };
    clients.lease.lease_grant(with(&guarded.admin, lease)).await.expect("an admin may");
    let leased = pb::PutRequest { lease: 7, ..put(HIDDEN, SECRET) };
    clients.kv.put(with(&guarded.admin, leased)).await.expect("an admin may");
    denied("its end deletes", clients.lease.lease_revoke(with(&token, pb::LeaseRevokeRequest { id: 7 })).await);
    let keys = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
    denied("it names its keys", clients.lease.lease_time_to_live(with(&token, keys)).await);
    denied("all leases", clients.lease.lease_leases(with(&token, pb::LeaseLeasesRequest {})).await);
    clients.lease.lease_grant(with(&token, pb::LeaseGrantRequest { ttl: 60, id: 0 })).await.expect("it may write");

    let reader = guarded.token_of("reader", &["read-only"]).await;
    denied("grant", clients.lease.lease_grant(with(&reader, pb::LeaseGrantRequest { ttl: 60, id: 0 })).await);
    denied("alarm", clients.maintenance.alarm(with(&token, pb::AlarmRequest::default())).await);
    denied("defragment", clients.maintenance.defragment(with(&token, pb::DefragmentRequest {})).await);
    clients.maintenance.status(with(&token, pb::StatusRequest {})).await.expect("for every token");
}

#[tokio::test]
async fn every_route_asks_who_is_there() {
    let guarded = Guarded::start().await;
    let (address, unknown) =
        (guarded.node.address(), coact_server::auth::Token::generate().expect("randomness").expose());
    let reader = guarded.token_of("reader", &["read-only"]).await;
    let scraper = guarded.token_of("scraper", &["metrics"]).await;
    let none = String::new();
    // path, and the status for nobody, an unknown token, a reader, a scraper, an admin
    let routes = [
        ("/healthz", [200, 200, 200, 200, 200]),
        ("/readyz", [200, 200, 200, 200, 200]),
        ("/health", [200, 200, 200, 200, 200]),
        ("/version", [200, 200, 200, 200, 200]),
        ("/metrics", [401, 401, 200, 200, 200]),
        ("/v1/auth/tokens", [401, 401, 403, 403, 200]),
        ("/v1/auth/roles", [401, 401, 403, 403, 200]),
        ("/v1/auth/tokens/", [401, 401, 404, 404, 404]),
        ("//metrics", [401, 401, 404, 404, 404]),
        ("/metrics/", [401, 401, 404, 404, 404]),
        ("/%6detrics", [401, 401, 404, 404, 404]),
        ("/healthz/../metrics", [401, 401, 404, 404, 404]),
        ("/healthz/", [401, 401, 404, 404, 404]),
        ("/healthz%2f..%2fmetrics", [401, 401, 404, 404, 404]),
        ("/nowhere", [401, 401, 404, 404, 404]),
    ];
    for (path, expected) in routes {
        for (token, expected) in [&none, &unknown, &reader, &scraper, &guarded.admin].into_iter().zip(expected) {
            let header = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
            let (head, body) = bed::http_with(address, "GET", path, &header, "").await;
            assert_eq!(status(&head), expected, "{path}: {body}");
            assert_eq!(expected == 401, head.to_lowercase().contains("www-authenticate: bearer"), "{path}: {head}");
        }
    }
    let changes = [
        ("POST", "/v1/auth/tokens"),
        ("DELETE", "/v1/auth/tokens/00000000"),
        ("PUT", "/v1/auth/roles/x"),
        ("DELETE", "/v1/auth/roles/x"),
    ];
    for (method, path) in changes {
        for (token, expected) in [(&none, 401), (&unknown, 401), (&reader, 403), (&scraper, 403)] {
            let (status, body) = guarded.ask(method, path, token, &serde_json::json!({ "x": 1 })).await;
            assert_eq!(status, expected, "{method} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn every_service_asks_who_is_there() {
    let guarded = Guarded::start().await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    let nobody = |what: &str, answer: Result<(), Status>| {
        let status = answer.expect_err(what);
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            "{what}"
        );
    };
    let wrong = coact_server::auth::Token::generate().expect("randomness").expose();
    nobody("range", clients.kv.range(get("a")).await.map(drop));
    nobody("range", clients.kv.range(with(&wrong, get("a"))).await.map(drop));
    nobody("range", clients.kv.range(with("nonsense", get("a"))).await.map(drop));
    nobody("put", clients.kv.put(put("a", "b")).await.map(drop));
    nobody("delete", clients.kv.delete_range(delete("a")).await.map(drop));
    nobody("txn", clients.kv.txn(txn(vec![], vec![], vec![])).await.map(drop));
    nobody("compact", clients.kv.compact(pb::CompactionRequest::default()).await.map(drop));
    nobody("watch", clients.watch.watch(stream::pending()).await.map(drop));
    nobody("grant", clients.lease.lease_grant(pb::LeaseGrantRequest::default()).await.map(drop));
    nobody("revoke", clients.lease.lease_revoke(pb::LeaseRevokeRequest::default()).await.map(drop));
    nobody("renew", clients.lease.lease_keep_alive(stream::pending()).await.map(drop));
    nobody("status", clients.maintenance.status(pb::StatusRequest {}).await.map(drop));
    nobody("lock", clients.lock.lock(LockRequest::default()).await.map(drop));
    nobody("observe", clients.election.observe(LeaderRequest::default()).await.map(drop));
}

/// The control: the same questions, asked of a node that asks for no tokens.
#[tokio::test]
async fn without_tokens_everybody_does_everything_but_look_at_the_nodes_own() {
    let node = bed::node().await;
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    clients.kv.put(put(HIDDEN, SECRET)).await.expect("everybody may");
    let found = clients.kv.range(get_range("\0", "\0")).await.expect("everybody may").into_inner();
    assert_eq!(found.kvs[0].value, SECRET);
    denied("put", clients.kv.put(put("_coact/main/auth/token//00000000", "{}")).await);
    denied("range", clients.kv.range(get("_coact/main/auth/token//00000000")).await);
    let (status, body) = bed::get(node.address(), "/v1/auth/tokens").await;
    assert!(status == 409 && body.contains("asks for no tokens"), "{status} {body}");
}
