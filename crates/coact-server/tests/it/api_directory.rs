//! The directory over HTTP: registering, watching, draining, and what Prometheus discovers.

use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    api::node,
    bed::within,
    web::{call, open},
};

const WEB: &str = "/v1/main/services/web";

fn at_port(port: u16) -> Value {
    json!({"address": "10.0.0.1", "port": port, "zone": "eu", "tags": ["blue"], "metadata": {"git sha": "7"}})
}

/// Reads events until one of their lists is as wished.
async fn wait_for(stream: &mut TcpStream, what: &str, wish: impl Fn(&Value) -> bool) {
    within(what, async {
        let (mut text, mut part) = (String::new(), [0; 8192]);
        loop {
            let lists = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
            if lists.into_iter().any(|list: Value| wish(&list["instances"])) {
                return;
            }
            let read = stream.read(&mut part).await.expect("it goes on");
            assert!(read > 0, "it ended: {text}");
            text += std::str::from_utf8(&part[..read]).expect("text");
        }
    })
    .await;
}

#[tokio::test]
async fn an_instance_comes_drains_fails_and_goes_with_its_session() {
    let node = node().await;
    let at = node.address();
    let mut watch = open(at, "GET", &format!("{WEB}/watch"), &[], None).await;
    let session = call(at, "POST", "/v1/main/sessions", Some(json!({"ttl_ms": 60_000}))).await.ok()["id"].clone();
    let mut first = at_port(1);
    first["session"] = session.clone();
    call(at, "PUT", &format!("{WEB}/instances/a"), Some(first)).await.ok();
    call(at, "PUT", &format!("{WEB}/instances/b"), Some(json!({"address": "h.example", "port": 2}))).await;
    wait_for(&mut watch, "a", |list| list[0]["id"] == "a" && list[0]["eligible"] == true).await;

    let drain = format!("{WEB}/instances/a/drain");
    assert_eq!(call(at, "PUT", &drain, None).await.status, 204);
    wait_for(&mut watch, "a drains", |list| list[0]["draining"] == true && list[0]["eligible"] == false).await;
    assert_eq!(call(at, "DELETE", &drain, None).await.status, 204);
    let failing = json!({"health": "failing", "why": "disk full", "session": session});
    assert_eq!(call(at, "PUT", &format!("{WEB}/instances/a/health"), Some(failing)).await.status, 204);
    let listed = call(at, "GET", WEB, None).await.ok();
    let a = &listed["instances"][0];
    assert_eq!((&a["health"], &a["why"], &a["eligible"]), (&json!("failing"), &json!("disk full"), &json!(false)));
    assert_eq!(call(at, "GET", "/v1/main/services", None).await.ok()["services"], json!(["web"]));

    let ended = format!("/v1/main/sessions/{}", session.as_str().expect("text"));
    assert_eq!(call(at, "DELETE", &ended, None).await.status, 204);
    wait_for(&mut watch, "a is gone", |list| list.as_array().is_some_and(|list| list.iter().all(|i| i["id"] != "a")))
        .await;
}

#[tokio::test]
async fn prometheus_gets_groups_or_an_empty_list() {
    let node = node().await;
    let at = node.address();
    let targets = "/v1/main/prometheus/targets";
    let none = call(at, "GET", targets, None).await;
    assert_eq!((none.status, none.text.as_str()), (200, "[]"), "an error would keep the old targets");
    assert!(none.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "as it demands");
    let session = call(at, "POST", "/v1/main/sessions", Some(json!({}))).await.ok()["id"].clone();
    for (id, address) in [("one", "10.0.0.1"), ("two", "2001:db8::1")] {
        let mut body = at_port(9100);
        (body["address"], body["session"]) = (address.into(), session.clone());
        call(at, "PUT", &format!("{WEB}/instances/{id}"), Some(body)).await.ok();
    }
    let groups = call(at, "GET", &format!("{targets}?service=web"), None).await.ok();
    assert_eq!(
        (&groups[0]["targets"], &groups[1]["targets"]),
        (&json!(["10.0.0.1:9100"]), &json!(["[2001:db8::1]:9100"]))
    );
    assert_eq!(groups[0]["labels"]["__meta_coact_tags"], ",blue,");
    assert_eq!(groups[0]["labels"]["__meta_coact_metadata_git_sha"], "7");
    assert_eq!(call(at, "GET", &format!("{targets}?prefix=x"), None).await.text, "[]");
}

#[tokio::test]
async fn bad_instances_are_told_what_is_allowed() {
    let node = node().await;
    let at = node.address();
    let place = format!("{WEB}/instances/a");
    let mut with = at_port(80);
    for (field, value, rule) in [
        ("address", json!("h:80"), "use a host name or an IP address, without a port"),
        ("port", json!(0), "port 0 is not allowed: use 1 to 65535"),
        ("weight", json!(1001), "weight 1001 is not allowed: use 0 to 1000"),
        (
            "check",
            json!({"kind": "shell"}),
            "unknown variant `shell`, expected one of `tcp`, `http`, `grpc`, `command`",
        ),
        ("session", json!("gone"), "session gone has ended, or never was: open a new one"),
    ] {
        let mut body = with.clone();
        body[field] = value;
        let answer = call(at, "PUT", &place, Some(body)).await;
        let status = if field == "session" { 404 } else { 400 };
        let (_, detail) = answer.problem(status);
        assert!(detail.contains(rule), "{field}: {detail}");
    }
    with["sesion"] = json!("x");
    assert!(call(at, "PUT", &place, Some(with)).await.problem(400).1.contains("unknown field `sesion`"));
    assert_eq!(call(at, "PUT", &format!("{place}/drain"), None).await.problem(404).1, "service web has no instance a");
}
