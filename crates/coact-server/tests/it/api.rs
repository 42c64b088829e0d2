//! The HTTP/JSON API: entries, transactions, watches, sessions and ids.

use coact_core::{env::Env, guarantees::Weakness};
use coact_engine_embedded::Config;
use coact_server::{Server, ServerConfig};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::{
    bed::{eventually, within},
    web::{call, call_with, open},
};

/// A node in memory whose blocks accept that it forgets.
pub(crate) async fn node() -> Server {
    let mut config = ServerConfig::new(Config::default());
    config.listen = ([127, 0, 0, 1], 0).into();
    config.accepted = [Weakness::Volatile].into_iter().collect();
    Server::start(config, Env::real()).await.expect("a node starts")
}

#[tokio::test]
async fn entries_are_written_under_conditions_and_listed_in_pages() {
    let node = node().await;
    let at = node.address();
    let path = "/v1/main/kv/config%2Fcolour";
    assert_eq!(call(at, "GET", path, None).await.problem(404).0, "not-found");
    let written = call_with(at, "PUT", path, &[("If-None-Match", "*")], Some(json!({"value": "green"}))).await.ok();
    let read = call(at, "GET", path, None).await;
    let etag = read.header("etag").expect("an etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", written["revision"]));
    assert_eq!(read.ok()["value"], "green");

    let again = call_with(at, "PUT", path, &[("If-None-Match", "*")], Some(json!({"value": "blue"}))).await;
    assert_eq!(again.problem(412).0, "conflict");
    call_with(at, "PUT", path, &[("If-Match", &etag)], Some(json!({"value_base64": "/w=="}))).await.ok();
    let stale = call_with(at, "DELETE", path, &[("If-Match", &etag)], None).await.problem(412);
    assert!(stale.1.contains("the entry was last changed at revision"), "{stale:?}");
    assert_eq!(call(at, "GET", path, None).await.ok()["value_base64"], "/w==");

    for name in ["a", "b", "c"] {
        call(at, "PUT", &format!("/v1/main/kv/config%2F{name}"), Some(json!({"value": name}))).await.ok();
    }
    for order in ["name", "created"] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page =
                call(at, "GET", &format!("/v1/main/kv?dir=config&order={order}&limit=1{after}"), None).await.ok();
            seen.extend(page["entries"].as_array().expect("entries").iter().map(|entry| entry["key"].clone()));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        let expected = match order {
            "name" => ["config/a", "config/b", "config/c", "config/colour"],
            _ => ["config/colour", "config/a", "config/b", "config/c"],
        };
        assert_eq!(seen, expected, "{order}");
    }
    assert_eq!(call(at, "GET", "/v1/main/dirs", None).await.ok(), json!({"dirs": ["config"]}));
    assert_eq!(call(at, "GET", "/v1/other/dirs", None).await.ok(), json!({"dirs": []}), "another namespace");
    call(at, "DELETE", path, None).await.ok();
    assert_eq!(call(at, "GET", path, None).await.status, 404);
}

#[tokio::test]
async fn a_transaction_is_refused_or_committed_as_a_whole() {
    let node = node().await;
    let at = node.address();
    let txn = |checks| json!({"checks": checks, "reads": [{"count": "a"}, {"get": "a/n"}], "writes": [{"incr": {"key": "a/n", "by": 2}}]});
    let first = call(at, "POST", "/v1/main/txn", Some(txn(json!([{"absent": "a/n"}])))).await.ok();
    assert_eq!((&first["outcome"], &first["reads"][0]["count"]), (&json!("committed"), &json!(0)));
    let second = call(at, "POST", "/v1/main/txn", Some(txn(json!([{"absent": "a/n"}])))).await.ok();
    assert_eq!((&second["outcome"], &second["check"]), (&json!("refused"), &json!(0)));
    assert_eq!(second["found"]["value"], "2");
    let made = json!([{"created_at": {"key": "a/n", "revision": second["found"]["created"]}}]);
    assert_eq!(call(at, "POST", "/v1/main/txn", Some(txn(made))).await.ok()["outcome"], "committed");
    assert_eq!(call(at, "GET", "/v1/main/kv/a%2Fn", None).await.ok()["value"], "4");
}

#[tokio::test]
async fn a_repeated_request_has_one_effect() {
    let node = node().await;
    let at = node.address();
    let add = json!({"writes": [{"incr": {"key": "a/n", "by": 1}}]});
    let key = [("Idempotency-Key", "order-7")];
    let first = call_with(at, "POST", "/v1/main/txn", &key, Some(add.clone())).await.ok();
    let second = call_with(at, "POST", "/v1/main/txn", &key, Some(add.clone())).await.ok();
    assert_eq!((&first["repeated"], &second["repeated"]), (&json!(false), &json!(true)));
    assert_eq!(first["revision"], second["revision"]);
    assert_eq!(call(at, "GET", "/v1/main/kv/a%2Fn", None).await.ok()["value"], "1");
    // The control: without the key it happens again.
    call(at, "POST", "/v1/main/txn", Some(add)).await.ok();
    assert_eq!(call(at, "GET", "/v1/main/kv/a%2Fn", None).await.ok()["value"], "2");
    let other = json!({"writes": [{"incr": {"key": "a/n", "by": 5}}]});
    let refused = call_with(at, "POST", "/v1/main/txn", &key, Some(other)).await.problem(409);
    assert_eq!(refused.1, "this idempotency key was used for another request: use a new one for each change");

    let session = [("Idempotency-Key", "worker-1")];
    let one = call_with(at, "POST", "/v1/main/sessions", &session, Some(json!({}))).await.ok();
    let two = call_with(at, "POST", "/v1/main/sessions", &session, Some(json!({}))).await.ok();
    assert_eq!(one["id"], two["id"]);
}

#[tokio::test]
async fn a_session_keeps_its_entries_alive_and_takes_them_along() {
    let node = node().await;
    let at = node.address();
    let opened = call(at, "POST", "/v1/main/sessions", Some(json!({"ttl_ms": 500, "name": "seven"}))).await;
    assert_eq!(opened.status, 201);
    let place = opened.header("location").expect("a place").to_owned();
    let id = opened.ok()["id"].clone();
    call(at, "PUT", "/v1/main/kv/a%2Fmine", Some(json!({"value": "x", "session": id}))).await.ok();
    assert_eq!(call(at, "POST", &format!("{place}/renew"), None).await.ok()["ttl_ms"], 500);
    let listed = call(at, "GET", "/v1/main/sessions", None).await;
    assert_eq!(listed.ok()["sessions"][0]["name"], "seven");
    assert!(!listed.text.contains(id.as_str().expect("text")), "an id is what it takes to act for a session");
    eventually("nobody renews it", async || call(at, "GET", &place, None).await.status == 404).await;
    assert_eq!(call(at, "GET", "/v1/main/kv/a%2Fmine", None).await.status, 404, "its entry went with it");
    assert_eq!(call(at, "POST", &format!("{place}/renew"), None).await.problem(404).0, "not-found");

    let id = call(at, "POST", "/v1/main/sessions", Some(json!({}))).await.ok()["id"].clone();
    call(at, "PUT", "/v1/main/kv/a%2Fmine", Some(json!({"value": "x", "session": id}))).await.ok();
    let place = format!("/v1/main/sessions/{}", id.as_str().expect("text"));
    assert_eq!(call(at, "DELETE", &place, None).await.status, 204);
    assert_eq!(call(at, "DELETE", &place, None).await.status, 204, "no effect if it has ended");
    assert_eq!(call(at, "GET", "/v1/main/kv/a%2Fmine", None).await.status, 404);
}

#[tokio::test]
async fn a_watch_goes_on_after_the_last_event() {
    let node = node().await;
    let at = node.address();
    let put = async |name: &str| {
        call(at, "PUT", &format!("/v1/main/kv/a%2F{name}"), Some(json!({"value": "v"}))).await.ok()["revision"].clone()
    };
    let first = put("one").await;
    let second = put("two").await;
    // A long poll gets what is there, and the next one waits for what comes.
    let changes = call(at, "GET", &format!("/v1/main/changes?dir=a&after={first}"), None).await.ok();
    assert_eq!(changes["changes"][0]["entry"]["key"], "a/two");
    let nothing = call(at, "GET", &format!("/v1/main/changes?dir=a&after={second}&wait_ms=1"), None).await.ok();
    assert_eq!((&nothing["changes"], &nothing["revision"]), (&json!([]), &second));
    let path = format!("/v1/main/changes?dir=a&after={second}&wait_ms=60000");
    let (waited, _) = tokio::join!(call(at, "GET", &path, None), put("three"));
    assert_eq!(waited.ok()["changes"][0]["entry"]["key"], "a/three");

    // A stream, taken up where it was cut.
    let last = [("Last-Event-ID", &*second.to_string())].map(|(name, id)| (name, id.to_owned()));
    let headers: Vec<_> = last.iter().map(|(name, id)| (*name, id.as_str())).collect();
    let mut stream = open(at, "GET", "/v1/main/watch?dir=a", &headers, None).await;
    let mut text = String::new();
    call(at, "DELETE", "/v1/main/kv/a%2Fone", None).await.ok();
    within("two events", async {
        let mut part = [0; 4096];
        while !(text.contains("event: put") && text.contains("event: gone")) {
            let read = stream.read(&mut part).await.expect("it goes on");
            assert!(read > 0, "it ended: {text}");
            text += std::str::from_utf8(&part[..read]).expect("text");
        }
    })
    .await;
    assert!(text.contains("\"key\":\"a/three\"") && !text.contains("a/two"), "{text}");
    drop(stream);
    within("a shutdown with a watch open", node.shutdown()).await.expect("a clean end");
}

#[tokio::test]
async fn ids_are_strings_that_nobody_else_gets() {
    let node = node().await;
    let at = node.address();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        let ids = call(at, "POST", "/v1/main/ids/orders/next?n=100", None).await.ok();
        for id in ids["ids"].as_array().expect("ids") {
            assert!(seen.insert(id.as_str().expect("a string").to_owned()), "{id} twice");
        }
    }
    assert_eq!(seen.len(), 300);
    let one = seen.iter().next().expect("one");
    let decoded = call(at, "GET", &format!("/v1/ids/decode/{one}"), None).await.ok();
    let workers = call(at, "GET", "/v1/main/ids/orders/workers", None).await.ok();
    assert_eq!(decoded["worker"], workers["workers"][0]["worker"]);
    assert!(workers["workers"][0]["used_by"].is_string());

    let dense = async || call(at, "POST", "/v1/main/segments/invoice/next?n=3", None).await.ok()["ids"].clone();
    assert_eq!((dense().await, dense().await), (json!(["1", "2", "3"]), json!(["4", "5", "6"])));
    for (kind, length) in [("ulid", 26), ("uuid7", 36)] {
        let made = call(at, "POST", &format!("/v1/ids/{kind}?n=100"), None).await.ok();
        let made: Vec<_> = made["ids"].as_array().expect("ids").iter().map(|id| id.as_str().expect("text")).collect();
        assert!(made.is_sorted() && made.iter().all(|id| id.len() == length), "{made:?}");
    }
    assert_eq!(call(at, "POST", "/v1/ids/guid", None).await.problem(400).0, "invalid");
}

#[tokio::test]
async fn a_setting_has_versions_and_a_way_back() {
    let node = node().await;
    let at = node.address();
    let currency = "/v1/main/config/billing/keys/currency";
    let put = async |value: &str, expected: u64| {
        call(at, "PUT", currency, Some(json!({"value": value, "expected_version": expected}))).await
    };
    assert_eq!(call(at, "GET", currency, None).await.problem(404).1, "there is no setting billing/currency");
    assert_eq!(put("EUR", 0).await.ok()["version"], 1);
    assert_eq!(put("USD", 1).await.ok()["version"], 2);
    let late = put("GBP", 1).await.problem(409);
    assert!(late.0 == "conflict" && late.1.contains("it is at 2"), "{late:?}");
    let back = call(at, "POST", &format!("{currency}/rollback"), Some(json!({"version": 1}))).await.ok();
    assert_eq!(back["version"], 3);
    let read = call(at, "GET", currency, None).await.ok();
    assert_eq!((&read["value"], &read["restores"]), (&json!("EUR"), &json!(1)));
    let history = call(at, "GET", &format!("{currency}/history"), None).await.ok();
    assert_eq!(history["settings"].as_array().map(Vec::len), Some(3));
    assert_eq!(call(at, "DELETE", currency, None).await.status, 204);
    assert_eq!(call(at, "GET", "/v1/main/config/billing", None).await.ok(), json!({"settings": []}));
    assert_eq!(put("CHF", 0).await.ok()["version"], 5, "versions go on after a deletion");
    assert_eq!(call(at, "GET", "/v1/main/config", None).await.ok()["groups"], json!(["billing"]));
    let mut stream = open(at, "GET", "/v1/main/config/billing/watch", &[], None).await;
    let mut text = String::new();
    within("the current version", async {
        let mut part = [0; 4096];
        while !text.contains("\"value\":\"CHF\"") {
            let read = stream.read(&mut part).await.expect("it goes on");
            assert!(read > 0, "it ended: {text}");
            text += std::str::from_utf8(&part[..read]).expect("text");
        }
    })
    .await;
}

#[tokio::test]
async fn bad_input_is_told_what_is_allowed() {
    let node = node().await;
    let at = node.address();
    for (method, path, body, status, detail) in [
        (
            "GET",
            "/v1/main/kv/colour",
            None,
            400,
            "key \"colour\" has no dir: write it as dir/name, for example config/colour",
        ),
        (
            "GET",
            "/v1/no%20such/dirs",
            None,
            400,
            "namespace \"no such\" is not allowed: use 1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot",
        ),
        ("GET", "/v1/main/kv?dir=a&limit=0", None, 400, "limit 0 is not allowed: use 1 to 1000"),
        ("GET", "/v1/main/watch", None, 400, "name what to watch once: as dir or as key"),
        (
            "PUT",
            "/v1/main/kv/a%2Fb",
            Some(json!({"value": "x", "value_base64": "eA=="})),
            400,
            "the value must be given once: as value (text) or as value_base64",
        ),
        (
            "PUT",
            "/v1/main/kv/a%2Fb",
            Some(json!({"value": "x", "session": "gone"})),
            404,
            "session gone has ended, or never was: open a new one",
        ),
        (
            "POST",
            "/v1/main/sessions",
            Some(json!({"ttl_ms": 1})),
            400,
            "a lease of 1ms is not allowed: use 50ms to 86400s",
        ),
        ("POST", "/v1/main/ids/x/next?n=0", None, 400, "n 0 is not allowed: use 1 to 10000"),
    ] {
        let (_, found) = call(at, method, path, body).await.problem(status);
        assert_eq!(found, detail, "{method} {path}");
    }
    let (_, typo) = call(at, "GET", "/v1/main/kv?dri=a", None).await.problem(400);
    assert!(typo.contains("unknown field `dri`, expected one of `realm`, `dir`"), "{typo}");
    let (_, field) = call(at, "PUT", "/v1/main/kv/a%2Fb", Some(json!({"valeu": "x"}))).await.problem(400);
    assert!(field.contains("unknown field `valeu`"), "{field}");
    let large = json!({"value": "x".repeat(2 << 20)});
    assert_eq!(
        call(at, "PUT", "/v1/main/kv/a%2Fb", Some(large)).await.problem(413).1,
        "the body is larger than 1048576 bytes"
    );
    let form = call_with(at, "PUT", "/v1/main/kv/a%2Fb", &[("Content-Type", "text/plain")], None).await;
    assert_eq!(form.problem(415).0, "invalid");
    assert_eq!(call(at, "PATCH", "/v1/main/txn", None).await.problem(405).1, "/v1/main/txn does not answer PATCH");
}

#[tokio::test]
async fn a_block_is_refused_where_the_engine_promises_too_little() {
    let node = crate::bed::node().await;
    let (kind, detail) = call(node.address(), "POST", "/v1/main/ids/x/next", None).await.problem(422);
    assert_eq!(kind, "unsupported");
    assert!(detail.contains("id needs"), "{detail}");
}

#[tokio::test]
async fn the_document_describes_every_route_once() {
    let node = node().await;
    let document = call(node.address(), "GET", "/openapi.json", None).await.ok();
    assert_eq!(document["openapi"], "3.1.0");
    let mut names = std::collections::HashSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has a name"));
            assert!(names.insert(name.to_owned()), "{name} twice");
            assert!(operation["responses"]["default"].is_object(), "{name} says how it fails");
            assert!(operation["summary"].is_string(), "{name} says what it does");
        }
    }
    assert!(names.contains("kv_put") && names.contains("session_renew"), "{names:?}");
    let page = call(node.address(), "GET", "/docs", None).await;
    assert!(page.text.contains("/v1/{namespace}/kv/{key}") && page.header("content-security-policy").is_some());
}

#[tokio::test]
async fn requests_are_counted_by_route() {
    let node = node().await;
    let at = node.address();
    for name in ["a", "b"] {
        assert_eq!(call(at, "GET", &format!("/v1/main/kv/x%2F{name}"), None).await.status, 404);
    }
    let page = call(at, "GET", "/metrics", None).await.text;
    let expected = "coact_http_requests_total{route=\"/v1/{namespace}/kv/{key}\",method=\"GET\",status=\"404\"} 2";
    assert!(page.lines().any(|line| line == expected), "{page}");
    let expected = "coact_http_request_seconds_count{route=\"/v1/{namespace}/kv/{key}\",method=\"GET\"} 2";
    assert!(page.lines().any(|line| line == expected), "{page}");
}

#[tokio::test]
async fn a_web_page_of_elsewhere_is_refused() {
    let node = node().await;
    let at = node.address();
    let ids = "/v1/main/ids/x/next";
    for headers in [[("Origin", "http://evil.example")], [("Origin", "null")]] {
        let (kind, detail) = call_with(at, "POST", ids, &headers, None).await.problem(403);
        assert_eq!(kind, "denied");
        assert!(detail.starts_with("a node without tokens answers to localhost"), "{detail}");
    }
    call_with(at, "POST", ids, &[("Origin", "http://localhost:7070")], None).await.ok();
}
