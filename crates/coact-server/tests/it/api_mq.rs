//! Topics over HTTP: records, delays, groups and their members, and what the node counts about them.

mod members;
mod metrics;
mod tail;

use std::net::SocketAddr;

use coact_engine_embedded::Config;
use serde_json::{Value, json};

use crate::{
    api::node,
    auth::Guarded,
    bed,
    web::{Answer, call, call_with},
};

const TOPIC: &str = "/v1/main/topics/orders";

async fn post(at: SocketAddr, path: &str, body: Value) -> Answer {
    call(at, "POST", path, Some(body)).await
}

async fn get(at: SocketAddr, path: &str) -> Answer {
    call(at, "GET", path, None).await
}

/// Makes the topic.
async fn made(at: SocketAddr, partitions: u32) {
    assert_eq!(call(at, "PUT", TOPIC, Some(json!({ "partitions": partitions }))).await.ok(), json!({"created": true}));
}

/// Appends text under a key, and tells where each is.
async fn produce(at: SocketAddr, key: &str, values: &[&str]) -> Vec<Value> {
    let records: Vec<_> = values.iter().map(|value| json!({"key": key, "value": value})).collect();
    let answer = post(at, &format!("{TOPIC}/records"), json!({ "records": records })).await.ok();
    answer["records"].as_array().expect("places").clone()
}

fn values(answer: &Value) -> Vec<&str> {
    answer["records"].as_array().expect("records").iter().map(|one| one["value"].as_str().expect("text")).collect()
}

#[tokio::test]
async fn topics_are_made_changed_listed_and_deleted() {
    let node = node().await;
    let at = node.address();
    made(at, 3).await;
    let again = call(at, "PUT", TOPIC, Some(json!({"retention_ms": 60_000}))).await.ok();
    assert_eq!(again, json!({"created": false}));
    let topic = get(at, TOPIC).await.ok();
    assert_eq!((&topic["partitions"], &topic["retention_ms"]), (&json!(3), &json!(60_000)), "{topic}");
    assert_eq!(topic["bounds"].as_array().map(Vec::len), Some(3));
    let (kind, detail) = call(at, "PUT", TOPIC, Some(json!({"partitions": 2}))).await.problem(400);
    assert_eq!(
        (kind.as_str(), detail.as_str()),
        ("invalid", "topic orders has 3 partitions: it can get more, not fewer")
    );
    call(at, "PUT", "/v1/main/topics/other", Some(json!({}))).await.ok();
    let names = |list: &Value| -> Vec<String> {
        list["topics"].as_array().expect("topics").iter().map(|one| one["name"].to_string()).collect()
    };
    assert_eq!(names(&get(at, "/v1/main/topics?limit=1").await.ok()), ["\"orders\""]);
    assert_eq!(names(&get(at, "/v1/main/topics?after=orders").await.ok()), ["\"other\""]);
    assert_eq!(names(&get(at, "/v1/elsewhere/topics").await.ok()), Vec::<String>::new());
    assert_eq!(call(at, "DELETE", TOPIC, None).await.status, 204);
    assert_eq!(call(at, "DELETE", TOPIC, None).await.problem(404).0, "not-found");
    assert_eq!(get(at, TOPIC).await.problem(404).0, "not-found");
}

#[tokio::test]
async fn records_go_to_the_partition_of_their_key_and_are_found_there() {
    let node = node().await;
    let at = node.address();
    made(at, 4).await;
    let first = produce(at, "customer-7", &["a", "b"]).await;
    let second = produce(at, "customer-7", &["c"]).await;
    assert_eq!(first[0]["partition"], second[0]["partition"]);
    let offsets: Vec<_> = first.iter().chain(&second).map(|one| one["offset"].clone()).collect();
    assert_eq!(offsets, [0, 1, 2]);
    let partition = coact_blocks::mq::partition_of(b"customer-7", 4);
    assert_eq!(first[0]["partition"], partition, "as every client of the topic chooses");
    let elsewhere = json!({"records": [
        {"value_base64": "/w==", "partition": partition, "headers": [{"name": "h", "value": "x"}]},
        {"key": "other", "value": "d", "partition": partition},
    ]});
    post(at, &format!("{TOPIC}/records"), elsewhere).await.ok();

    let all = get(at, &format!("{TOPIC}/records?partition={partition}")).await.ok();
    assert_eq!(all["records"].as_array().map(Vec::len), Some(5), "{all}");
    assert_eq!(all["records"][3]["value_base64"], "/w==");
    assert_eq!(all["records"][3]["headers"], json!([{"name": "h", "value": "x"}]));
    assert_eq!((&all["next"], &all["end"], &all["start"]), (&json!(5), &json!(5), &json!(0)));
    let of_key = get(at, &format!("{TOPIC}/records?key=customer-7&limit=2")).await.ok();
    assert_eq!((values(&of_key), &of_key["next"]), (vec!["a", "b"], &json!(2)));
    let rest = get(at, &format!("{TOPIC}/records?key=customer-7&offset=2")).await.ok();
    assert_eq!((values(&rest), &rest["next"]), (vec!["c"], &json!(5)), "it looked through the rest");
    let later = all["records"][0]["time_ms"].as_u64().expect("a time") + 3_600_000;
    let none = get(at, &format!("{TOPIC}/records?partition={partition}&time_ms={later}")).await.ok();
    assert_eq!((values(&none), &none["next"]), (vec![], &json!(5)));
    let latest = get(at, &format!("{TOPIC}/records?partition={partition}&at=latest")).await.ok();
    assert_eq!(values(&latest), Vec::<&str>::new());

    let path = format!("{TOPIC}/records?key=customer-7&offset=5&wait_ms=60000");
    let (waited, _) = tokio::join!(get(at, &path), async {
        produce(at, "customer-7", &["e"]).await;
    });
    assert_eq!(values(&waited.ok()), ["e"]);
}

#[tokio::test]
async fn a_named_request_is_appended_once() {
    let node = node().await;
    let at = node.address();
    made(at, 3).await;
    let path = format!("{TOPIC}/records");
    let body = json!({"records": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}, {"value": "3"}]});
    let key = [("Idempotency-Key", "run 17")];
    let first = call_with(at, "POST", &path, &key, Some(body.clone())).await.ok();
    let again = call_with(at, "POST", &path, &key, Some(body.clone())).await.ok();
    assert_eq!((&first["duplicate"], &again["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(first["records"], again["records"]);
    let control = post(at, &path, body).await.ok();
    assert_eq!(control["duplicate"], false, "the control: without a name it is appended again");
    let ends = get(at, TOPIC).await.ok()["bounds"].as_array().expect("bounds").clone();
    assert_eq!(ends.iter().filter_map(|one| one["end"].as_u64()).sum::<u64>(), 6);

    let stamped = |epoch: u32, sequence: u64| {
        json!({"producer": {"id": 7, "epoch": epoch, "sequence": sequence},
            "records": [{"value": "x", "partition": 1}]})
    };
    assert_eq!(post(at, &path, stamped(1, 0)).await.ok()["duplicate"], false);
    assert_eq!(post(at, &path, stamped(1, 0)).await.ok()["duplicate"], true);
    assert_eq!(post(at, &path, stamped(1, 5)).await.problem(409).0, "conflict", "a gap");
    assert_eq!(post(at, &path, stamped(2, 0)).await.ok()["duplicate"], false);
    assert_eq!(post(at, &path, stamped(1, 1)).await.problem(409).0, "fenced");
}

#[tokio::test]
async fn delayed_records_are_listed_moved_fired_and_cancelled() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    let year = 365 * 24 * 3_600_000_u64;
    let delayed = |value: &str| json!({"key": "k", "value": value, "delay_ms": year});
    let body = json!({"records": [delayed("one"), delayed("two"), delayed("three"), {"key": "k", "value": "now"}]});
    let answer = post(at, &format!("{TOPIC}/records"), body).await.ok();
    let handle = |index: usize| answer["records"][index]["delay"].as_str().expect("a handle").to_owned();
    assert_eq!(answer["records"][3]["offset"], 0);
    let list = get(at, &format!("{TOPIC}/delays?limit=2")).await.ok();
    assert_eq!(list["delays"][1]["delay"], handle(1));
    let rest = get(at, &format!("{TOPIC}/delays?after={}", handle(1))).await.ok();
    assert_eq!((&rest["delays"][0]["value"], rest["delays"].as_array().map(Vec::len)), (&json!("three"), Some(1)));
    let stats = get(at, &format!("{TOPIC}/delay-stats")).await.ok();
    assert_eq!(stats["pending"], 3);
    assert_eq!(get(at, &format!("{TOPIC}/delays/{}", handle(0))).await.ok()["value"], "one");

    let moved =
        post(at, &format!("{TOPIC}/delays/{}/reschedule", handle(0)), json!({"due_ms": 4_102_444_800_000_u64})).await;
    let (kind, _) = moved.problem(400);
    assert_eq!(kind, "invalid", "more than ten years ahead");
    let due_ms = list["delays"][0]["due_ms"].as_u64().expect("a time") + 1;
    let moved = post(at, &format!("{TOPIC}/delays/{}/reschedule", handle(0)), json!({ "due_ms": due_ms })).await.ok();
    assert_ne!(moved["delay"], handle(0));
    let gone = get(at, &format!("{TOPIC}/delays/{}", handle(0))).await;
    assert_eq!(gone.problem(404).0, "not-found");
    let path = format!("{TOPIC}/delays/{}", handle(1));
    assert_eq!(call(at, "DELETE", &path, None).await.status, 204);
    assert_eq!(call(at, "DELETE", &path, None).await.problem(404).0, "not-found");
    assert_eq!(call(at, "POST", &format!("{TOPIC}/delays/{}/fire", handle(2)), None).await.status, 204);
    let waited = get(at, &format!("{TOPIC}/records?offset=1&wait_ms=60000")).await.ok();
    assert_eq!(values(&waited), ["three"]);
    let late = get(at, &format!("{TOPIC}/delay-stats")).await.ok();
    let handed: u64 =
        late["by_lateness"].as_array().expect("counts").iter().filter_map(|one| one["count"].as_u64()).sum();
    assert_eq!((handed, &late["pending"]), (1, &json!(1)));
}

#[tokio::test]
async fn a_group_goes_on_where_it_is_told_to() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    produce(at, "k", &["a", "b", "c"]).await;
    let group = "/v1/main/groups/billing";
    assert_eq!(get(at, group).await.problem(404).0, "not-found");
    let sought = post(at, &format!("{group}/seek"), json!({"topic": "orders", "offset": 1})).await.ok();
    assert_eq!(sought, json!({"topic": "orders", "partitions": [{"partition": 0, "offset": 1}]}));
    let lag = get(at, group).await.ok();
    assert_eq!((&lag["lag"], &lag["partitions"][0]["committed"]), (&json!(2), &json!(1)), "{lag}");
    assert!(lag["lag_ms"].is_u64());
    assert_eq!(get(at, "/v1/main/groups").await.ok(), json!({"groups": ["billing"]}));
    let latest = post(at, &format!("{group}/seek"), json!({"topic": "orders", "at": "latest"})).await.ok();
    assert_eq!(latest["partitions"][0]["offset"], 3);
    assert_eq!(get(at, group).await.ok()["lag"], 0);
    let (_, detail) = post(at, &format!("{group}/seek"), json!({"topic": "orders", "offset": 9})).await.problem(400);
    assert_eq!(detail, "orders/0 ends at 3: a group cannot go on at 9");
    assert_eq!(post(at, &format!("{group}/seek"), json!({"topic": "none"})).await.problem(404).0, "not-found");
    assert_eq!(get(at, &format!("{group}/parked")).await.ok(), json!({"parked": []}));
    assert_eq!(post(at, &format!("{group}/redrive"), json!({})).await.ok(), json!({"keys": 0}));
    assert_eq!(call(at, "DELETE", group, None).await.status, 204);
    assert_eq!(call(at, "DELETE", group, None).await.problem(404).0, "not-found");
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let node = node().await;
    let at = node.address();
    made(at, 2).await;
    let records = |record: Value| json!({ "records": [record] });
    let wrong = [
        (records(json!({"value": "x", "value_base64": "eA=="})), "value is given twice: use text or base64"),
        (records(json!({"key": "x", "key_base64": "eA=="})), "key is given twice: use text or base64"),
        (records(json!({"value_base64": "?"})), "value is not base64: Invalid symbol 63, offset 0."),
        (records(json!({"due_ms": 1, "delay_ms": 1})), "due_ms and delay_ms exclude each other"),
        (json!({"records": []}), "0 records are not allowed: send 1 to 10000"),
        (json!({"records": [{}], "producer": {"id": 1}}), "a producer needs an id and a sequence"),
        (
            json!({"records": [{"partition": 0}, {"partition": 1}], "producer": {"id": 1, "sequence": 0}}),
            "the records of a producer's batch must go to one partition",
        ),
    ];
    for (body, expected) in wrong {
        let (kind, detail) = post(at, &format!("{TOPIC}/records"), body).await.problem(400);
        assert_eq!((kind.as_str(), detail.as_str()), ("invalid", expected));
    }
    let named = json!({"records": [{"value": "x", "delay_ms": 5}]});
    let named = call_with(at, "POST", &format!("{TOPIC}/records"), &[("Idempotency-Key", "k")], Some(named)).await;
    assert!(named.problem(400).1.starts_with("repeating is not made harmless for delayed records"));
    let nowhere = post(at, &format!("{TOPIC}/records"), records(json!({"partition": 2}))).await;
    assert_eq!(nowhere.problem(404).0, "not-found");
    let nothing = post(at, "/v1/main/topics/none/records", records(json!({"value": "x"}))).await;
    assert_eq!(nothing.problem(404).1, "there is no topic none in namespace main");
    for (query, expected) in [
        ("offset=1&at=latest", "offset, at and time_ms exclude each other"),
        ("at=odd", "at \"odd\" is not known: choose from earliest, latest"),
        ("wait_ms=60001", "wait_ms 60001 is not allowed: use at most 60000"),
        ("limit=0", "limit 0 is not allowed: use 1 to 1000"),
    ] {
        let (_, detail) = get(at, &format!("{TOPIC}/records?{query}")).await.problem(400);
        assert_eq!(detail, expected, "{query}");
    }
    let (_, detail) = get(at, &format!("{TOPIC}/delays/odd")).await.problem(400);
    assert_eq!(detail, "\"odd\" names no delayed record: use what scheduling it returned");
    let part = post(at, "/v1/main/groups/g/redrive", json!({"key": "k"})).await.problem(400).1;
    assert_eq!(part, "say which records: a topic and a key of it (text or base64), or nothing for all");
}

#[tokio::test]
async fn a_node_that_forgets_has_no_topics_unless_that_is_accepted() {
    let node = bed::node().await;
    let (kind, detail) = call(node.address(), "PUT", TOPIC, Some(json!({}))).await.problem(422);
    assert_eq!(kind, "unsupported");
    assert!(detail.starts_with("mq needs writes synced to disk"), "{detail}");
}

#[tokio::test]
async fn a_role_reaches_the_topics_and_groups_whose_names_it_has_and_no_more_than_it_says() {
    let place = tempfile::tempdir().expect("a directory");
    let engine = Config { segment_bytes: 1024 * 1024, ..Config::in_dir(place.path()) };
    let guarded = Guarded::start_with(engine, None).await;
    let ask = async |token: &str, method: &str, path: &str, body: Option<Value>| {
        guarded.ask(method, path, token, &body.unwrap_or_default()).await.0
    };
    for topic in ["orders", "other"] {
        assert_eq!(ask(&guarded.admin, "PUT", &format!("/v1/main/topics/{topic}"), Some(json!({}))).await, 200);
    }
    let producer = guarded.token("producer", &["main mq write orders"]).await;
    let reader = guarded.token("reader", &["main mq read orders"]).await;
    let consumer =
        guarded.token("consumer", &["main mq read orders", "main mq write billing", "main session write"]).await;
    let record = Some(json!({"records": [{"value": "x"}]}));
    let records = "/v1/main/topics/orders/records";
    assert_eq!(ask(&producer, "POST", records, record.clone()).await, 200);
    assert_eq!(ask(&producer, "GET", records, None).await, 403);
    assert_eq!(ask(&producer, "POST", "/v1/main/topics/other/records", record.clone()).await, 403);
    assert_eq!(ask(&producer, "PUT", "/v1/main/topics/orders", Some(json!({}))).await, 403);
    assert_eq!(ask(&reader, "GET", records, None).await, 200);
    assert_eq!(ask(&reader, "POST", records, record).await, 403);
    assert_eq!(ask(&reader, "GET", "/v1/main/topics", None).await, 403, "not of all topics");
    assert_eq!(ask(&reader, "POST", "/v1/main/groups/billing/seek", Some(json!({"topic": "orders"}))).await, 403);
    let seek = async |topic: &str| {
        ask(&consumer, "POST", "/v1/main/groups/billing/seek", Some(json!({ "topic": topic }))).await
    };
    assert_eq!(seek("orders").await, 200);
    assert_eq!(seek("other").await, 403, "how far it is there is not theirs to know");
    let join = |topic: &str| Some(json!({"session": "s", "topics": [topic]}));
    let members = "/v1/main/groups/billing/members";
    assert_eq!(ask(&consumer, "POST", members, join("other")).await, 403);
    assert_eq!(ask(&reader, "POST", members, join("orders")).await, 403);
    assert_eq!(ask(&consumer, "POST", members, join("orders")).await, 404, "only the session is missing");
    assert_eq!(ask(&consumer, "DELETE", "/v1/main/groups/billing", None).await, 403, "that is for admins");
}
