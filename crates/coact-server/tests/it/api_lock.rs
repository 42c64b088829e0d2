//! Locks over HTTP: tickets, places in line, and what a lost connection leaves behind.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::{
    api::node,
    bed::{eventually, within},
    web::{Answer, call, call_with, open},
};

async fn session(at: SocketAddr, name: &str) -> String {
    let body = json!({"ttl_ms": 60_000, "name": name});
    call(at, "POST", "/v1/main/sessions", Some(body)).await.ok()["id"].as_str().expect("text").to_owned()
}

async fn acquire(at: SocketAddr, key: &str, body: Value) -> Answer {
    call_with(at, "POST", "/v1/main/locks/deploy%2Feu/acquire", &[("Idempotency-Key", key)], Some(body)).await
}

async fn release(at: SocketAddr, granted: &Value) -> Value {
    call(at, "POST", "/v1/main/tickets/release", Some(json!({"ticket": granted["ticket"]}))).await.ok()
}

#[tokio::test]
async fn who_names_its_acquire_keeps_its_place_and_its_ticket() {
    let node = node().await;
    let at = node.address();
    let (one, two) = (session(at, "one").await, session(at, "two").await);
    let held = acquire(at, "a", json!({"session": one})).await.ok();
    assert_eq!(held["state"], "granted");
    assert_eq!(acquire(at, "a", json!({"session": one})).await.ok(), held, "asked again, it is the same grant");

    let waiting = acquire(at, "a", json!({"session": two})).await;
    assert_eq!((waiting.status, &waiting.json()["state"]), (202, &json!("waiting")), "of another session: another one");
    // Who does not name its acquire leaves nothing behind.
    let path = "/v1/main/locks/deploy%2Feu/acquire";
    let (kind, detail) = call(at, "POST", path, Some(json!({"session": one}))).await.problem(409);
    assert_eq!(kind, "conflict");
    assert!(detail.contains("deploy/eu is held by one"), "{detail}");
    eventually("only the place in line that was named stays", async || {
        let locks = call(at, "GET", "/v1/main/locks", None).await.ok();
        locks["locks"][0]["waiters"].as_array().is_some_and(|waiters| waiters.len() == 1)
    })
    .await;

    assert_eq!(release(at, &held).await["released"], true);
    assert_eq!(release(at, &held).await["released"], false, "it was released before");
    let next = acquire(at, "a", json!({"session": two, "wait_ms": 60_000})).await.ok();
    let token = |granted: &Value| granted["ticket"]["token"].as_u64().expect("a token");
    assert!(token(&next) > token(&held));
    let check = json!({"ticket": next["ticket"]});
    assert_eq!(call(at, "POST", "/v1/main/tickets/check", Some(check.clone())).await.status, 204);
    assert_eq!(call(at, "DELETE", &format!("/v1/main/sessions/{two}"), None).await.status, 204);
    assert_eq!(call(at, "POST", "/v1/main/tickets/check", Some(check)).await.problem(409).0, "fenced");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_what_it_did_not_name() {
    let node = node().await;
    let at = node.address();
    let (one, two) = (session(at, "one").await, session(at, "two").await);
    let held = acquire(at, "a", json!({"session": one})).await.ok();
    let path = "/v1/main/locks/deploy%2Feu/acquire";
    let waits = open(at, "POST", path, &[], Some(json!({"session": two, "wait_ms": 60_000}))).await;
    let waiters = async || call(at, "GET", "/v1/main/locks", None).await.ok()["locks"][0]["waiters"].clone();
    eventually("it waits", async || waiters().await.as_array().is_some_and(|waiters| waiters.len() == 1)).await;
    drop(waits);
    eventually("it left the line", async || waiters().await == json!([])).await;

    let named = json!({"session": two, "operation": "0123456789abcdef0123456789abcdef"});
    assert_eq!(call(at, "POST", path, Some(named)).await.status, 202);
    assert_eq!(waiters().await[0]["label"], "two");
    let place = json!({"kind": "mutex", "name": "deploy/eu", "operation": "0123456789abcdef0123456789abcdef"});
    assert_eq!(call(at, "POST", "/v1/main/tickets/withdraw", Some(place)).await.status, 204);
    assert_eq!(waiters().await, json!([]));
    assert_eq!(release(at, &held).await["released"], true);
}

#[tokio::test]
async fn readers_share_and_writers_do_not() {
    let node = node().await;
    let at = node.address();
    let (one, two) = (session(at, "one").await, session(at, "two").await);
    let take = async |session: &str, access: &str, key: &str| {
        let body = json!({"session": session, "access": access});
        call_with(at, "POST", "/v1/main/rwlocks/table/acquire", &[("Idempotency-Key", key)], Some(body)).await
    };
    let first = take(&one, "read", "1").await.ok();
    let second = take(&two, "read", "1").await.ok();
    assert_eq!((&first["state"], &second["state"]), (&json!("granted"), &json!("granted")));
    assert_eq!(take(&one, "write", "2").await.status, 202);
    assert_eq!(take(&two, "read", "3").await.status, 202, "behind the writer that waits");
    release(at, &first).await;
    release(at, &second).await;
    let writer = take(&one, "write", "2").await.ok();
    assert_eq!(writer["state"], "granted");
    release(at, &writer).await;
    assert_eq!(take(&two, "read", "3").await.ok()["state"], "granted");
}

#[tokio::test]
async fn a_semaphore_gives_as_many_permits_as_it_has() {
    let node = node().await;
    let at = node.address();
    let one = session(at, "one").await;
    let take = async |key: &str, permits: u32| {
        let body = json!({"session": one, "permits": permits});
        call_with(at, "POST", "/v1/main/semaphores/pool/acquire", &[("Idempotency-Key", key)], Some(body)).await
    };
    let first = take("1", 2).await.ok();
    take("2", 2).await.ok();
    assert_eq!(take("3", 2).await.status, 202);
    let (kind, detail) = take("4", 3).await.problem(409);
    assert!(kind == "conflict" && detail.contains('2') && detail.contains('3'), "{detail}");
    release(at, &first).await;
    assert_eq!(take("3", 2).await.ok()["state"], "granted");
    let pool = call(at, "GET", "/v1/main/locks?kind=semaphore", None).await.ok();
    assert_eq!(
        (&pool["locks"][0]["permits"], pool["locks"][0]["holders"].as_array().map(Vec::len)),
        (&json!(2), Some(2))
    );
}

#[tokio::test]
async fn observers_see_who_leads_and_what_it_says() {
    let node = node().await;
    let at = node.address();
    let (one, two) = (session(at, "one").await, session(at, "two").await);
    let run = async |session: &str, value: &str| {
        let body = json!({"session": session, "value": value});
        call_with(at, "POST", "/v1/main/elections/shop/campaign", &[("Idempotency-Key", "c")], Some(body)).await
    };
    let mut events = open(at, "GET", "/v1/main/elections/shop/observe", &[], None).await;
    let leads = run(&one, "a:1").await.ok();
    assert_eq!(run(&two, "b:1").await.status, 202);
    let say = json!({"ticket": leads["ticket"], "session": one, "value": "a:2"});
    let said = call(at, "POST", "/v1/main/elections/shop/proclaim", Some(say.clone())).await;
    assert_eq!(said.status, 204, "{said:?}");
    assert_eq!(call(at, "GET", "/v1/main/elections/shop", None).await.ok()["leader"]["value"], "a:2");
    release(at, &leads).await;
    assert_eq!(run(&two, "b:1").await.ok()["state"], "granted");
    assert_eq!(call(at, "POST", "/v1/main/elections/shop/proclaim", Some(say)).await.problem(409).0, "fenced");
    let mut text = String::new();
    within("three leaders", async {
        let mut part = [0; 4096];
        while !["\"a:1\"", "\"a:2\"", "\"b:1\""].iter().all(|value| text.contains(value)) {
            let read = events.read(&mut part).await.expect("it goes on");
            assert!(read > 0, "it ended: {text}");
            text += std::str::from_utf8(&part[..read]).expect("text");
        }
    })
    .await;
    let at_of = |value: &str| text.find(value).expect("seen");
    assert!(at_of("\"a:1\"") < at_of("\"a:2\"") && at_of("\"a:2\"") < at_of("\"b:1\""), "{text}");
}

#[tokio::test]
async fn latches_barriers_and_rate_limits_count() {
    let node = node().await;
    let at = node.address();
    let (one, two) = (session(at, "one").await, session(at, "two").await);
    let latch = async |verb: &str, wait_ms: u64| {
        let body = json!({"session": one, "count": 2, "wait_ms": wait_ms});
        call(at, "POST", &format!("/v1/main/latches/start/{verb}"), Some(body)).await
    };
    assert_eq!(latch("wait", 0).await.ok(), json!({"open": false, "remaining": 2}));
    assert_eq!(latch("count-down", 0).await.ok(), json!({"open": false, "remaining": 1}));
    let (waited, _) = tokio::join!(latch("wait", 60_000), latch("count-down", 0));
    assert_eq!(waited.ok(), json!({"open": true, "remaining": 0}));
    assert_eq!(latch("reset", 0).await.status, 204);
    assert_eq!(latch("wait", 0).await.ok()["open"], false);

    let party = async |session: &str| {
        let body = json!({"session": session, "parties": 2, "wait_ms": 60_000});
        call(at, "POST", "/v1/main/barriers/meet/wait", Some(body)).await.ok()
    };
    let (a, b) = tokio::join!(party(&one), party(&two));
    assert_eq!(a["generation"], b["generation"]);
    assert_ne!((&a["index"], &a["leader"]), (&b["index"], &b["leader"]));
    let alone = json!({"session": one, "parties": 2, "wait_ms": 1});
    assert_eq!(call(at, "POST", "/v1/main/barriers/meet/wait", Some(alone)).await.problem(409).0, "conflict");

    let take = async |n: u64, permits: u64| {
        let body = json!({"permits": permits, "per_ms": 60_000, "chunk": 2, "n": n});
        call(at, "POST", "/v1/main/rates/mail/acquire", Some(body)).await
    };
    let granted = [take(2, 4).await.status, take(1, 4).await.status, take(1, 4).await.status, take(1, 4).await.status];
    assert_eq!(granted, [204, 204, 204, 429]);
    assert_eq!(take(1, 6).await.problem(409).0, "conflict");
    assert!(take(3, 4).await.problem(400).1.contains("use 1 to 2, the size of a chunk"));
}

#[tokio::test]
async fn bad_requests_are_told_what_is_allowed() {
    let node = node().await;
    let at = node.address();
    let one = session(at, "one").await;
    let path = "/v1/main/locks/x/acquire";
    for (body, status, rule) in [
        (json!({"session": "gone"}), 404, "session gone has ended, or never was"),
        (json!({"session": one, "wait_ms": 60_001}), 400, "use 0 to 60000"),
        (json!({"session": one, "operation": "7"}), 400, "use 32 of 0-9 a-f"),
        (json!({"session": one, "mode": "quick"}), 400, "expected `fair` or `barging`"),
        (json!({"session": one, "wait": 5}), 400, "unknown field `wait`"),
    ] {
        let (_, detail) = call(at, "POST", path, Some(body.clone())).await.problem(status);
        assert!(detail.contains(rule), "{body}: {detail}");
    }
    let forged = json!({"ticket": {"kind": "mutex", "realm": "main", "name": "x", "token": 0, "created": 0,
        "operation": "0123456789abcdef0123456789abcdef"}});
    assert_eq!(call(at, "POST", "/v1/main/tickets/release", Some(forged)).await.problem(400).0, "invalid");
}
