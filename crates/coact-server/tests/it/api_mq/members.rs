//! Consuming over HTTP: members that end with their sessions, and what they settle too late.

use super::*;
use crate::{
    bed::{eventually, within},
    web::open,
};

const GROUP: &str = "/v1/main/groups/billing";

async fn session(at: SocketAddr, ttl_ms: u64) -> String {
    let session = post(at, "/v1/main/sessions", json!({ "ttl_ms": ttl_ms, "name": "client" })).await.ok();
    session["id"].as_str().expect("an id").to_owned()
}

/// Joins with a session of its own, which nothing but what it does keeps alive; the path of the member.
async fn join(at: SocketAddr, session: &str, ack_wait_ms: u64) -> String {
    let body = json!({"session": session, "topics": ["orders"], "ack_wait_ms": ack_wait_ms});
    let joined = post(at, &format!("{GROUP}/members"), body).await;
    assert_eq!(joined.status, 201, "{joined:?}");
    format!("{GROUP}/members/{}", joined.json()["member"].as_str().expect("an id"))
}

async fn fetch(at: SocketAddr, member: &str, limit: usize) -> Vec<Value> {
    let body = json!({"limit": limit, "wait_ms": 60_000});
    let answer = post(at, &format!("{member}/fetch"), body).await.ok();
    answer["records"].as_array().expect("records").clone()
}

async fn settle(at: SocketAddr, member: &str, records: &[&Value], verdict: &str) -> Value {
    let settle: Vec<_> = records.iter().map(|one| json!({"delivery": one["delivery"], "verdict": verdict})).collect();
    post(at, &format!("{member}/settle"), json!({ "settle": settle })).await.ok()["settled"].clone()
}

#[tokio::test]
async fn a_member_fetches_settles_and_leaves_and_the_next_goes_on() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    produce(at, "k", &["a", "b", "c"]).await;
    let first = join(at, &session(at, 60_000).await, 30_000).await;
    let records = fetch(at, &first, 2).await;
    let text: Vec<_> = records.iter().map(|one| one["value"].as_str().expect("text")).collect();
    assert_eq!(text, ["a", "b"]);
    assert_eq!((&records[0]["topic"], &records[0]["attempt"]), (&json!("orders"), &json!(1)));
    assert_eq!(settle(at, &first, &[&records[0]], "ack").await, json!(["done"]));
    assert_eq!(settle(at, &first, &[&records[0]], "ack").await, json!(["fenced"]), "once");
    let group = get(at, GROUP).await.ok();
    assert_eq!((&group["partitions"][0]["committed"], &group["lag"]), (&json!(1), &json!(2)), "before the answer");
    assert_eq!(group["members"][0]["name"], "client");
    let (kind, detail) = post(at, &format!("{GROUP}/seek"), json!({"topic": "orders"})).await.problem(409);
    assert_eq!(kind, "conflict");
    assert!(detail.starts_with("group billing has 1 members"), "{detail}");
    assert_eq!(call(at, "DELETE", GROUP, None).await.problem(409).0, "conflict");

    // One that is handed back comes again; what was settled before it was is not.
    assert_eq!(settle(at, &first, &[&records[1]], "nack").await, json!(["back"]));
    let again = fetch(at, &first, 10).await;
    assert_eq!((&again[0]["value"], &again[0]["attempt"]), (&json!("b"), &json!(2)));
    assert_ne!(again[0]["delivery"], records[1]["delivery"]);
    assert_eq!(settle(at, &first, &[&records[1], &again[0]], "ack").await, json!(["fenced", "done"]));

    assert_eq!(call(at, "DELETE", &first, None).await.status, 204);
    assert_eq!(call(at, "DELETE", &first, None).await.status, 204, "again is harmless");
    let (kind, _) = post(at, &format!("{first}/fetch"), json!({})).await.problem(404);
    assert_eq!(kind, "not-found");
    let second = join(at, &session(at, 60_000).await, 30_000).await;
    let rest = fetch(at, &second, 10).await;
    assert_eq!((rest.len(), &rest[0]["value"], &rest[0]["attempt"]), (1, &json!("c"), &json!(1)));
    assert_eq!(settle(at, &second, &[&rest[0]], "ack").await, json!(["done"]));
    assert_eq!(get(at, GROUP).await.ok()["lag"], 0);
}

#[tokio::test]
async fn a_member_whose_session_ended_is_fenced_and_another_does_its_records() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    produce(at, "k", &["a"]).await;
    let session_of_first = session(at, 60_000).await;
    let first = join(at, &session_of_first, 30_000).await;
    let held = fetch(at, &first, 1).await;
    let second = join(at, &session(at, 60_000).await, 30_000).await;
    assert_eq!(call(at, "DELETE", &format!("/v1/main/sessions/{session_of_first}"), None).await.status, 204);

    let record = json!({"delivery": held[0]["delivery"], "verdict": "ack"});
    let (kind, _) = post(at, &format!("{first}/settle"), json!({ "settle": [record] })).await.problem(409);
    assert_eq!(kind, "fenced");
    let (kind, _) = post(at, &format!("{first}/fetch"), json!({})).await.problem(409);
    assert_eq!(kind, "fenced");
    let taken = fetch(at, &second, 1).await;
    assert_eq!(taken[0]["value"], "a", "it was not done");
    assert_eq!(settle(at, &second, &[&taken[0]], "ack").await, json!(["done"]));
    assert_eq!(post(at, &format!("{first}/fetch"), json!({})).await.problem(409).0, "fenced", "for good");
    assert_eq!(get(at, GROUP).await.ok()["members"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends_and_so_does_its_member() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    let member = join(at, &session(at, 1_000).await, 30_000).await;
    // While it waits for records, its session lives on: the wait is longer than its time.
    let waiting = post(at, &format!("{member}/fetch"), json!({"wait_ms": 3_000})).await.ok();
    assert_eq!(waiting["records"], json!([]));
    assert_eq!(get(at, GROUP).await.ok()["members"].as_array().map(Vec::len), Some(1));
    eventually("the member is gone", async || {
        get(at, GROUP).await.ok()["members"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
    assert_eq!(post(at, &format!("{member}/fetch"), json!({})).await.problem(409).0, "fenced");
}

#[tokio::test]
async fn a_record_that_nobody_settles_in_time_is_handed_out_again() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    produce(at, "k", &["a"]).await;
    let member = join(at, &session(at, 60_000).await, 100).await;
    let first = fetch(at, &member, 1).await;
    let second = fetch(at, &member, 1).await;
    assert_eq!((&second[0]["value"], &second[0]["attempt"]), (&json!("a"), &json!(2)));
    assert_eq!(settle(at, &member, &[&first[0]], "ack").await, json!(["fenced"]));
    let mut done = Value::Null;
    eventually("it is settled in time", async || {
        let again = fetch(at, &member, 1).await;
        done = settle(at, &member, &[&again[0]], "ack").await;
        done == json!(["done"])
    })
    .await;
    assert_eq!(get(at, GROUP).await.ok()["lag"], 0);
}

#[tokio::test]
async fn a_record_that_is_given_up_is_with_the_dead_letters() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    produce(at, "k", &["bad", "good"]).await;
    let member = join(at, &session(at, 60_000).await, 30_000).await;
    let records = fetch(at, &member, 10).await;
    let body = json!({"settle": [
        {"delivery": records[0]["delivery"], "verdict": "kill", "error": "no such customer"},
        {"delivery": records[1]["delivery"], "verdict": "ack"},
        {"delivery": 99, "verdict": "kill"},
    ]});
    let settled = post(at, &format!("{member}/settle"), body).await.ok();
    assert_eq!(settled["settled"], json!(["dead", "done", "fenced"]));
    assert_eq!(get(at, GROUP).await.ok()["lag"], 0);
    let dead = get(at, "/v1/main/topics/orders.billing.dead/records").await.ok();
    assert_eq!(values(&dead), ["bad"]);
    let headers = dead["records"][0]["headers"].as_array().expect("headers");
    assert!(headers.contains(&json!({"name": "coact-error", "value": "no such customer"})), "{headers:?}");
    assert_eq!(call(at, "DELETE", &member, None).await.status, 204);
    let next = join(at, &session(at, 60_000).await, 30_000).await;
    assert_eq!(post(at, &format!("{next}/fetch"), json!({"wait_ms": 500})).await.ok()["records"], json!([]));
}

#[tokio::test]
async fn two_members_share_the_partitions() {
    let node = node().await;
    let at = node.address();
    made(at, 2).await;
    let members =
        [join(at, &session(at, 60_000).await, 30_000).await, join(at, &session(at, 60_000).await, 30_000).await];
    for member in &members {
        eventually("each has one", async || {
            let answer = post(at, &format!("{member}/fetch"), json!({})).await.ok();
            answer["assigned"].as_array().is_some_and(|assigned| assigned.len() == 1)
        })
        .await;
    }
    let record = |partition: u32| json!({"value": format!("to {partition}"), "partition": partition});
    post(at, &format!("{TOPIC}/records"), json!({"records": [record(0), record(1)]})).await.ok();
    let mut seen = Vec::new();
    for member in &members {
        let records = fetch(at, member, 10).await;
        assert_eq!(settle(at, member, &records.iter().collect::<Vec<_>>(), "ack").await, json!(["done"]));
        seen.push(records[0]["value"].as_str().expect("text").to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["to 0", "to 1"]);
    assert_eq!(get(at, GROUP).await.ok()["lag"], 0);
}

#[tokio::test]
async fn joining_again_under_a_key_is_the_same_member_and_what_is_wrong_is_said() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    let session = session(at, 60_000).await;
    let path = format!("{GROUP}/members");
    let body = json!({"session": session, "topics": ["orders"]});
    let key = [("Idempotency-Key", "worker 1")];
    let first = call_with(at, "POST", &path, &key, Some(body.clone())).await.ok();
    assert_eq!(call_with(at, "POST", &path, &key, Some(body.clone())).await.ok(), first);
    assert_eq!(get(at, GROUP).await.ok()["members"].as_array().map(Vec::len), Some(1));
    assert_ne!(post(at, &path, body).await.ok()["member"], first["member"], "the control");

    let refused = async |body: Value, status: u16| post(at, &path, body).await.problem(status);
    let (_, detail) = refused(json!({"session": session, "topics": []}), 400).await;
    assert_eq!(detail, "a consumer without topics is not allowed: name at least one");
    let (_, detail) = refused(json!({"session": session, "topics": ["orders"], "start": "odd"}), 400).await;
    assert_eq!(detail, "start \"odd\" is not known: choose from earliest, latest");
    let (_, detail) = refused(json!({"session": session, "topics": ["orders"], "ack_wait_ms": 99}), 400).await;
    assert_eq!(detail, "ack_wait_ms 99 is not allowed: use 100 to 3600000");
    assert_eq!(refused(json!({"session": session, "topics": ["none"]}), 404).await.0, "not-found");
    assert_eq!(refused(json!({"session": "none", "topics": ["orders"]}), 404).await.0, "not-found");
    let member = format!("{path}/{}", first["member"].as_str().expect("an id"));
    let settle = json!({"settle": [{"delivery": 1, "verdict": "ack", "delay_ms": 1}]});
    let (_, detail) = post(at, &format!("{member}/settle"), settle).await.problem(400);
    assert_eq!(detail, "delivery 1: delay_ms goes with nack, error with kill");
    let elsewhere = member.replace("billing", "other");
    assert_eq!(post(at, &format!("{elsewhere}/fetch"), json!({})).await.problem(404).0, "not-found");
}

#[tokio::test]
async fn a_record_for_a_client_that_left_while_it_waited_comes_to_the_next_who_asks() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    let member = join(at, &session(at, 60_000).await, 100).await;
    let body = json!({"limit": 10, "wait_ms": 60_000});
    let waits = open(at, "POST", &format!("{member}/fetch"), &[], Some(body)).await;
    drop(waits);
    produce(at, "k", &["a"]).await;
    // Whether the one that left was served meanwhile or not.
    assert_eq!(fetch(at, &member, 10).await[0]["value"], "a");
}

#[tokio::test]
async fn a_shutdown_waits_for_nobody_who_waits_for_records() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    produce(at, "k", &["a"]).await;
    let member = join(at, &session(at, 60_000).await, 30_000).await;
    assert_eq!(fetch(at, &member, 10).await.len(), 1, "one that nobody settles");
    let body = json!({"limit": 10, "wait_ms": 60_000});
    let _waits = open(at, "POST", &format!("{member}/fetch"), &[], Some(body)).await;
    within("a shutdown with a member", node.shutdown()).await.expect("a clean end");
}

/// Of each key the newest record stays; whoever reads the topic from the beginning gets over the gaps.
#[tokio::test]
async fn a_member_reads_over_what_was_compacted() {
    let node = node().await;
    let at = node.address();
    call(at, "PUT", TOPIC, Some(json!({"compact": true}))).await.ok();
    assert_eq!(get(at, TOPIC).await.ok()["compact"], true);
    for round in 0..50 {
        for key in ["a", "b", "c"] {
            produce(at, key, &[&format!("{key}{round}")]).await;
        }
    }
    eventually("older records of a key go", async || get(at, TOPIC).await.ok()["records"].as_u64() < Some(100)).await;
    let kept = get(at, TOPIC).await.ok()["records"].as_u64().expect("a count") as usize;
    let member = join(at, &session(at, 60_000).await, 30_000).await;
    let mut found = Vec::new();
    while found.len() < kept {
        let records = fetch(at, &member, 1_000).await;
        settle(at, &member, &records.iter().collect::<Vec<_>>(), "ack").await;
        found.extend(records.iter().map(|one| one["value"].as_str().expect("text").to_owned()));
    }
    for newest in ["a49", "b49", "c49"] {
        assert!(found.iter().any(|value| value == newest), "{newest} went: {found:?}");
    }
    let group = get(at, GROUP).await.ok();
    assert_eq!((&group["partitions"][0]["committed"], &group["lag"]), (&json!(150), &json!(0)), "{group}");
}
