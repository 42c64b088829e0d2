//! What the node counts about topics, groups and queues.

use coact_core::{
    contract::{
        commit::Commit,
        stream::{Append, Batch, Offset, Read, Record, Stamp, TopicSpec},
    },
    env::Env,
    name::Topic,
    registry::Registry,
};

use super::*;
use crate::bed::eventually;

/// The value of a line of the metrics, once there is one.
async fn metric(at: SocketAddr, line: &str) -> Option<f64> {
    let (status, page) = bed::get(at, "/metrics").await;
    assert_eq!(status, 200);
    page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

async fn becomes(at: SocketAddr, line: &str, value: f64) {
    eventually(line, async || metric(at, line).await == Some(value)).await;
}

#[tokio::test]
async fn the_lag_of_a_group_is_shown_and_goes_to_zero() {
    let node = node().await;
    let at = node.address();
    made(at, 1).await;
    produce(at, "k", &["a", "b", "c"]).await;
    let group = "/v1/main/groups/billing";
    post(at, &format!("{group}/seek"), json!({"topic": "orders", "offset": 1})).await.ok();
    let lag = "coact_group_lag_records{namespace=\"main\",group=\"billing\",topic=\"orders\"}";
    let age = "coact_group_lag_seconds{namespace=\"main\",group=\"billing\",topic=\"orders\"}";
    becomes(at, lag, 2.0).await;
    eventually("the record that is not done grows old", async || metric(at, age).await > Some(0.0)).await;
    post(at, &format!("{group}/seek"), json!({"topic": "orders", "at": "latest"})).await.ok();
    becomes(at, lag, 0.0).await;
    becomes(at, age, 0.0).await;
    becomes(at, "coact_group_members{namespace=\"main\",group=\"billing\"}", 0.0).await;

    let history = get(at, &format!("{group}/history")).await.ok();
    let recent = history["lag"]["recent"].as_array().expect("samples");
    assert!(!recent.is_empty() && recent.iter().all(|sample| sample[0].is_u64()), "{history}");
    assert!(history["lag_ms"]["minutes"].as_array().is_some_and(|samples| !samples.is_empty()), "{history}");
    assert_eq!(get(at, "/v1/main/groups/none/history").await.problem(404).0, "not-found");

    assert_eq!(call(at, "DELETE", group, None).await.status, 204);
    eventually("it is left out", async || metric(at, lag).await.is_none()).await;
    assert_eq!(get(at, &format!("{group}/history")).await.problem(404).0, "not-found");
}

#[tokio::test]
async fn topics_and_queues_are_counted_and_go_away_with_their_names() {
    let node = node().await;
    let at = node.address();
    made(at, 2).await;
    produce(at, "k", &["abc", "def"]).await;
    let far = json!({"records": [{"value": "x", "delay_ms": 3_600_000_u64}]});
    post(at, &format!("{TOPIC}/records"), far).await.ok();
    let partition = coact_blocks::mq::partition_of(b"k", 2);
    get(at, &format!("{TOPIC}/records?partition={partition}&limit=1")).await.ok();
    let of_topic = |name: &str| format!("coact_{name}{{namespace=\"main\",topic=\"orders\"}}");
    becomes(at, &of_topic("topic_records"), 2.0).await;
    becomes(at, &of_topic("topic_end_offsets_total"), 2.0).await;
    becomes(at, &of_topic("delays_pending"), 1.0).await;
    becomes(at, &of_topic("topic_records_in_total"), 3.0).await;
    becomes(at, &of_topic("topic_records_out_total"), 1.0).await;
    assert!(metric(at, &of_topic("topic_bytes_in_total")).await > Some(6.0));
    assert!(metric(at, &of_topic("topic_bytes")).await > Some(6.0));
    assert!(metric(at, &of_topic("topic_oldest_age_seconds")).await.is_some());
    becomes(at, &of_topic("delay_lateness_seconds_count"), 0.0).await;
    let delay = get(at, &format!("{TOPIC}/delays")).await.ok()["delays"][0]["delay"].as_str().expect("it").to_owned();
    assert_eq!(call(at, "POST", &format!("{TOPIC}/delays/{delay}/fire"), None).await.status, 204);
    becomes(at, &of_topic("delay_lateness_seconds_count"), 1.0).await;

    let queue = "/v1/main/queues/mail";
    call(at, "PUT", queue, Some(json!({}))).await.ok();
    post(at, &format!("{queue}/jobs/batch"), json!({"jobs": [{"body": "a"}, {"body": "b"}]})).await.ok();
    let claimed = post(at, &format!("{queue}/claim"), json!({"worker": "w"})).await.ok()["jobs"][0].clone();
    let jobs = |state: &str| format!("coact_queue_jobs{{namespace=\"main\",queue=\"mail\",state=\"{state}\"}}");
    becomes(at, &jobs("ready"), 1.0).await;
    becomes(at, &jobs("claimed"), 1.0).await;
    let settle = json!({"settle": [{"id": claimed["id"], "token": claimed["token"], "verdict": "ack"}]});
    post(at, &format!("{queue}/settle"), settle).await.ok();
    becomes(at, "coact_queue_done_total{namespace=\"main\",queue=\"mail\"}", 1.0).await;
    becomes(at, "coact_queue_enqueued_total{namespace=\"main\",queue=\"mail\"}", 2.0).await;
    becomes(at, "coact_names_left_out{kind=\"topic\"}", 0.0).await;

    assert_eq!(call(at, "DELETE", TOPIC, None).await.status, 204);
    eventually("its lines are gone", async || metric(at, &of_topic("topic_records_in_total")).await.is_none()).await;
    assert_eq!(metric(at, &of_topic("topic_records")).await, None);
}

/// Whichever way records go, and in whichever namespace.
#[tokio::test]
async fn what_goes_over_grpc_is_counted_too() {
    let node = node().await;
    let at = node.address();
    let url = format!("coact://{at}/elsewhere").parse().expect("a URL");
    let registry = Registry::default().with(coact_engine_etcd::driver());
    let store = registry.open(url, Env::real()).await.expect("the node answers");
    let streams = store.streams().expect("it has streams");
    let topic = Topic::new("orders").expect("a topic");
    streams.create_topic(&topic, &TopicSpec::default()).await.expect("it is made");
    let batch = Batch::new(&[Record::new("one"), Record::new("two")]);
    let stamp = Some(Stamp { producer: 7, epoch: 0, sequence: 0 });
    let append = Append { topic: topic.clone(), partition: 0, batch, stamp, expect: None };
    for duplicate in [false, true] {
        assert_eq!(streams.append(append.clone()).await.expect("it is there").duplicate, duplicate);
    }
    let again = Commit { appends: vec![Append { stamp: None, ..append }], ..Commit::default() };
    let _ = streams.commit(again).await.expect("it is there");
    let read = Read { topic, partition: 0, from: Offset(0), max_bytes: 1 << 20, wait: std::time::Duration::ZERO };
    let read =
        streams.read(read).await.expect("records").batches.iter().map(|stored| stored.batch.count()).sum::<u32>();
    let counted = |name: &str| format!("coact_topic_records_{name}_total{{namespace=\"elsewhere\",topic=\"orders\"}}");
    becomes(at, &counted("in"), 4.0).await;
    becomes(at, &counted("out"), f64::from(read)).await;
    becomes(at, "coact_topic_records{namespace=\"elsewhere\",topic=\"orders\"}", 4.0).await;
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn names_beyond_the_limit_are_left_out_and_counted() {
    let node = node().await;
    let at = node.address();
    for topic in 0..203 {
        call(at, "PUT", &format!("/v1/main/topics/t{topic}"), Some(json!({}))).await.ok();
    }
    becomes(at, "coact_names_left_out{kind=\"topic\"}", 3.0).await;
    let (_, page) = bed::get(at, "/metrics").await;
    assert_eq!(page.matches("coact_topic_bytes{").count(), 200);
}
