//! Health, metrics and the other pages.

use std::collections::{BTreeMap, HashSet};

use coact_engine_etcd::wire::etcdserverpb::{LeaseGrantRequest, StatusRequest};

use crate::{
    bed::{self, eventually},
    client::{Clients, bytes, get, put},
};

#[tokio::test]
async fn tell_health_and_version() {
    let node = bed::node().await;
    for (path, expected) in
        [("/healthz", r#"{"status":"ok"}"#), ("/readyz", r#"{"status":"ready"}"#), ("/health", r#"{"health":"true"}"#)]
    {
        assert_eq!(bed::get(node.address(), path).await, (200, expected.to_owned()), "{path}");
    }
    let (status, version) = bed::get(node.address(), "/version").await;
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!((status, version["etcdserver"].as_str()), (200, Some("3.4.23+coact")));
}

#[tokio::test]
async fn say_what_there_is_not() {
    let node = bed::node().await;
    let (status, body) = bed::get(node.address(), "/nowhere").await;
    let problem: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, problem["kind"].as_str()), (404, Some("not-found")));
    assert_eq!(problem["detail"], "/nowhere does not exist; see /docs for what does");
    let (status, body) = bed::http(node.address(), "DELETE", "/healthz").await;
    let problem: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, problem["detail"].as_str()), (405, Some("/healthz does not answer DELETE")));
}

#[tokio::test]
async fn the_status_names_the_durability() {
    let node = bed::node().await;
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    let status = clients.maintenance.status(StatusRequest {}).await.expect("a status");
    assert_eq!(status.metadata().get("coact-durability").expect("named"), "memory");
    let status = status.into_inner();
    assert_eq!(status.leader, status.header.expect("a header").member_id, "it leads itself");
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let node = bed::node().await;
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    clients.kv.put(put("a", "1")).await.expect("put");
    clients.kv.put(put("a", "2")).await.expect("put");
    clients.kv.put(put("", "")).await.expect_err("no key");
    clients.kv.range(get("a")).await.expect("get");
    clients.lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 1 }).await.expect("granted");
    let mut watch = clients
        .watch(coact_engine_etcd::wire::etcdserverpb::WatchCreateRequest { key: bytes("a"), ..Default::default() })
        .await;
    watch.next().await.expect("created");

    let call = |service: &str, method: &str, rest: &str| format!("{{service=\"{service}\",method=\"{method}\"{rest}}}");
    let expected = [
        ("coact_healthy".to_owned(), 1.0),
        ("coact_keys".to_owned(), 1.0),
        ("coact_revision".to_owned(), 3.0),
        ("coact_leases".to_owned(), 1.0),
        ("coact_watchers".to_owned(), 1.0),
        (format!("coact_grpc_requests_total{}", call("etcdserverpb.KV", "Put", ",code=\"OK\"")), 2.0),
        (format!("coact_grpc_requests_total{}", call("etcdserverpb.KV", "Put", ",code=\"INVALID_ARGUMENT\"")), 1.0),
        (format!("coact_grpc_requests_total{}", call("etcdserverpb.KV", "Range", ",code=\"OK\"")), 1.0),
        (format!("coact_grpc_requests_in_flight{}", call("etcdserverpb.Watch", "Watch", "")), 1.0),
        (format!("coact_grpc_request_seconds_count{}", call("etcdserverpb.KV", "Put", "")), 3.0),
        (format!("coact_grpc_request_seconds_bucket{}", call("etcdserverpb.KV", "Put", ",le=\"+Inf\"")), 3.0),
    ];
    // A call is counted when its last byte has gone, which may be after the client has it.
    eventually("the counts", async || {
        let samples = parse(&bed::get(node.address(), "/metrics").await.1);
        expected.iter().all(|(name, value)| samples.get(name) == Some(value))
    })
    .await;

    drop(watch);
    let cancelled = format!("coact_grpc_requests_total{}", call("etcdserverpb.Watch", "Watch", ",code=\"OK\""));
    drop(clients);
    eventually("the watch ends", async || {
        let samples = parse(&bed::get(node.address(), "/metrics").await.1);
        samples.get("coact_watchers") == Some(&0.0)
            && (samples.contains_key(&cancelled)
                || samples
                    .keys()
                    .any(|name| name.starts_with("coact_grpc_requests_total") && name.contains("method=\"Watch\"")))
    })
    .await;
}

/// Reads Prometheus' text format, strictly: every sample belongs to a metric with help and type, and none comes twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'), "the last line ends");
    let (mut helped, mut typed, mut samples) = (HashSet::new(), HashSet::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(!help.is_empty() && helped.insert(name), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind) && helped.contains(name), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            typed.insert(name);
        } else {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let name = sample.split('{').next().expect("a name");
            let metric =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
            assert!(name.starts_with("coact_") && (typed.contains(name) || typed.contains(metric)), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("a number: {line}"));
            assert!(samples.insert(sample.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    samples
}
