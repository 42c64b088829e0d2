//! Queues over HTTP: jobs, claims with tokens, and who may do what.

use std::net::SocketAddr;

use coact_engine_embedded::Config;
use serde_json::{Value, json};

use crate::{
    api::node,
    auth::Guarded,
    bed::{self, eventually},
    web::{Answer, call, open},
};

const QUEUE: &str = "/v1/main/queues/mail";

async fn post(at: SocketAddr, path: &str, body: Value) -> Answer {
    call(at, "POST", &format!("{QUEUE}{path}"), Some(body)).await
}

async fn get(at: SocketAddr, path: &str) -> Answer {
    call(at, "GET", &format!("{QUEUE}{path}"), None).await
}

/// Makes the queue.
async fn made(at: SocketAddr) {
    assert_eq!(call(at, "PUT", QUEUE, Some(json!({"max_attempts": 2}))).await.ok(), json!({"created": true}));
}

async fn claim(at: SocketAddr, worker: &str, lease_ms: u64) -> Vec<Value> {
    let body = json!({"worker": worker, "limit": 10, "lease_ms": lease_ms});
    post(at, "/claim", body).await.ok()["jobs"].as_array().expect("jobs").clone()
}

async fn settle(at: SocketAddr, job: &Value, verdict: &str) -> Value {
    let settle = json!({"id": job["id"], "token": job["token"], "verdict": verdict});
    post(at, "/settle", json!({"settle": [settle]})).await.ok()["settled"][0].clone()
}

#[tokio::test]
async fn jobs_are_pushed_claimed_and_settled() {
    let node = node().await;
    let at = node.address();
    made(at).await;
    assert_eq!(call(at, "PUT", QUEUE, Some(json!({"max_attempts": 2}))).await.ok(), json!({"created": false}));
    let job = json!({"body": "one", "name": "first", "headers": [{"name": "reply-to", "value": "me"}]});
    let pushed = post(at, "/jobs", job.clone()).await.ok();
    assert_eq!(pushed["created"], true);
    assert_eq!(post(at, "/jobs", job).await.ok(), json!({"id": pushed["id"], "created": false}));
    let more = json!({"jobs": [{"body_base64": "/w==", "priority": 9}, {"body": "three", "delay_ms": 3_600_000}]});
    assert_eq!(post(at, "/jobs/batch", more).await.ok()["jobs"].as_array().map(Vec::len), Some(2));

    let claimed = claim(at, "w", 60_000).await;
    assert_eq!(claimed.len(), 2, "{claimed:?}");
    assert_eq!((&claimed[0]["body_base64"], &claimed[0]["priority"]), (&json!("/w=="), &json!(9)));
    assert_eq!((&claimed[1]["body"], &claimed[1]["name"]), (&json!("one"), &json!("first")));
    assert_eq!(claimed[1]["headers"], json!([{"name": "reply-to", "value": "me"}]));
    assert_eq!((&claimed[1]["attempt"], &claimed[1]["max_attempts"]), (&json!(1), &json!(2)));
    let stats = get(at, "/stats").await.ok();
    assert_eq!((&stats["claimed"], &stats["delayed"], &stats["ready"]), (&json!(2), &json!(1), &json!(0)));

    assert_eq!(settle(at, &claimed[0], "ack").await, "done");
    assert_eq!(settle(at, &claimed[0], "ack").await, "fenced", "it is gone");
    let settle_all = json!({"settle": [
        {"id": claimed[1]["id"], "token": claimed[1]["token"], "verdict": "extend", "lease_ms": 90_000},
        {"id": claimed[1]["id"], "token": claimed[1]["token"], "verdict": "nack", "error": "no answer"},
        {"id": claimed[1]["id"], "token": claimed[1]["token"], "verdict": "ack"},
    ]});
    assert_eq!(post(at, "/settle", settle_all).await.ok()["settled"], json!(["done", "done", "fenced"]));
    let again = claim(at, "w", 60_000).await;
    let token = |job: &Value| job["token"].as_u64().expect("a token");
    assert!(again[0]["attempt"] == 2 && token(&again[0]) > token(&claimed[1]), "{again:?}");
    let kill =
        json!({"settle": [{"id": again[0]["id"], "token": again[0]["token"], "verdict": "kill", "error": "bad"}]});
    assert_eq!(post(at, "/settle", kill).await.ok()["settled"], json!(["dead"]));

    let dead = get(at, "/jobs?state=dead").await.ok();
    assert_eq!((&dead["jobs"][0]["error"], &dead["jobs"][0]["worker"]), (&json!("bad"), &json!("w")));
    assert_eq!(post(at, "/redrive", json!({"oldest": 10})).await.ok(), json!({"count": 1}));
    let job = get(at, &format!("/jobs/{}", again[0]["id"])).await.ok();
    assert_eq!((&job["state"], &job["attempts"]), (&json!("ready"), &json!(0)));
}

#[tokio::test]
async fn a_claim_that_is_over_is_fenced() {
    let node = node().await;
    let at = node.address();
    made(at).await;
    post(at, "/jobs", json!({"body": "x"})).await.ok();
    let first = claim(at, "one", 50).await;
    let body = json!({"worker": "two", "lease_ms": 60_000, "wait_ms": 60_000});
    let second = post(at, "/claim", body).await.ok()["jobs"][0].clone();
    assert_eq!((&second["id"], &second["attempt"]), (&first[0]["id"], &json!(2)));
    for verdict in ["ack", "release", "nack", "kill"] {
        assert_eq!(settle(at, &first[0], verdict).await, "fenced", "{verdict}");
    }
    assert_eq!(settle(at, &second, "ack").await, "done", "the control: of the last claim");
}

#[tokio::test]
async fn a_claim_waits_for_a_job_and_one_that_nobody_hears_of_is_given_back() {
    let node = node().await;
    let at = node.address();
    made(at).await;
    let body = json!({"worker": "gone", "lease_ms": 600_000, "wait_ms": 60_000});
    let waits = open(at, "POST", &format!("{QUEUE}/claim"), &[], Some(body.clone())).await;
    drop(waits);
    post(at, "/jobs", json!({"body": "x"})).await.ok();
    // Whether the one that left was served meanwhile or not: the job is there for the next, long before a lease ends.
    let mut jobs = Value::Null;
    eventually("the job is claimed", async || {
        jobs = post(at, "/claim", json!({"worker": "there", "lease_ms": 600_000, "wait_ms": 1_000})).await.ok()["jobs"]
            .take();
        jobs.as_array().is_some_and(|jobs| jobs.len() == 1)
    })
    .await;
    assert_eq!(jobs[0]["body"], "x");
}

#[tokio::test]
async fn jobs_that_no_worker_has_are_moved_and_cancelled() {
    let node = node().await;
    let at = node.address();
    made(at).await;
    let id = post(at, "/jobs", json!({"body": "x", "run_at_ms": 4_102_444_800_000_u64})).await.ok()["id"].clone();
    let job = format!("/jobs/{id}");
    assert_eq!(get(at, &job).await.ok()["run_at_ms"], 4_102_444_800_000_u64);
    let later = json!({"run_at_ms": 4_102_444_900_000_u64});
    assert_eq!(post(at, &format!("{job}/reschedule"), later).await.status, 204);
    assert_eq!(get(at, &job).await.ok()["run_at_ms"], 4_102_444_900_000_u64);
    assert_eq!(call(at, "POST", &format!("{QUEUE}{job}/promote"), None).await.status, 204);
    let claimed = claim(at, "w", 60_000).await;
    assert_eq!(claimed.len(), 1);
    let cancel = async || call(at, "DELETE", &format!("{QUEUE}{job}"), None).await;
    assert_eq!(cancel().await.problem(409).0, "conflict");
    assert_eq!(settle(at, &claimed[0], "release").await, "done");
    assert_eq!(cancel().await.status, 204);
    assert_eq!(cancel().await.problem(404).0, "not-found");
}

#[tokio::test]
async fn queues_are_listed_paused_and_deleted() {
    let node = node().await;
    let at = node.address();
    assert_eq!(get(at, "").await.problem(404).0, "not-found");
    assert_eq!(post(at, "/jobs", json!({"body": "x"})).await.problem(404).0, "not-found");
    made(at).await;
    post(at, "/jobs", json!({"body": "x"})).await.ok();
    assert_eq!(call(at, "POST", &format!("{QUEUE}/pause"), None).await.status, 204);
    assert_eq!(claim(at, "w", 60_000).await, Vec::<Value>::new());
    let expected = json!({"name": "mail", "max_attempts": 2, "keep_dead_ms": 2_592_000_000_u64, "paused": true});
    assert_eq!(call(at, "GET", "/v1/main/queues", None).await.ok()["queues"], json!([expected]));
    assert_eq!(call(at, "GET", "/v1/other/queues", None).await.ok()["queues"], json!([]));
    assert_eq!(call(at, "POST", &format!("{QUEUE}/resume"), None).await.status, 204);
    assert_eq!(claim(at, "w", 60_000).await.len(), 1);
    assert_eq!(call(at, "DELETE", QUEUE, None).await.status, 204);
    assert_eq!(call(at, "DELETE", QUEUE, None).await.problem(404).0, "not-found");
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let node = node().await;
    let at = node.address();
    made(at).await;
    let wrong = [
        ("/jobs", json!({"body": "x", "body_base64": "eA=="}), "body is given twice: use text or base64"),
        ("/jobs", json!({"body_base64": "?"}), "body is not base64: Invalid symbol 63, offset 0."),
        ("/jobs", json!({"run_at_ms": 1, "delay_ms": 1}), "run_at_ms and delay_ms exclude each other"),
        ("/jobs", json!({"priority": 10}), "priority 10 is not allowed: use 0 to 9"),
        ("/claim", json!({"worker": "w", "limit": 0}), "limit 0 is not allowed: use 1 to 1000"),
        ("/claim", json!({"worker": "w", "wait_ms": 60_001}), "wait_ms 60001 is not allowed: use at most 60000"),
        ("/claim", json!({"worker": "w", "lease_ms": 1}), "a claim of 1ms is not allowed: use 50ms to 86400s"),
        (
            "/settle",
            json!({"settle": [{"id": 1, "token": 1, "verdict": "ack", "error": "x"}]}),
            "job 1: delay_ms goes with nack, error with nack and kill, lease_ms with extend, which needs it",
        ),
        ("/redrive", json!({}), "say which dead jobs: either ids, at least one, or oldest, from 1"),
    ];
    for (path, body, expected) in wrong {
        let (kind, detail) = post(at, path, body).await.problem(400);
        assert_eq!((kind.as_str(), detail.as_str()), ("invalid", expected), "{path}");
    }
    let (_, detail) = get(at, "/jobs?state=odd").await.problem(400);
    assert_eq!(detail, "state \"odd\" is not known: choose from ready, delayed, blocked, claimed, dead");
    let (_, detail) = post(at, "/jobs", json!({"bodi": "x"})).await.problem(400);
    assert!(detail.contains("unknown field `bodi`"), "{detail}");
}

#[tokio::test]
async fn a_node_that_forgets_has_no_queues_unless_that_is_accepted() {
    let node = bed::node().await;
    let (kind, detail) = call(node.address(), "PUT", QUEUE, Some(json!({}))).await.problem(422);
    assert_eq!(kind, "unsupported");
    assert!(detail.starts_with("queue needs writes synced to disk"), "{detail}");
}

#[tokio::test]
async fn a_role_reaches_the_queues_whose_names_it_has_and_no_more_than_it_says() {
    let place = tempfile::tempdir().expect("a directory");
    let engine = Config { segment_bytes: 1024 * 1024, ..Config::in_dir(place.path()) };
    let guarded = Guarded::start_with(engine, None).await;
    let ask = async |token: &str, method: &str, path: &str, body: Option<Value>| {
        guarded.ask(method, path, token, &body.unwrap_or_default()).await.0
    };
    for queue in ["mail", "other"] {
        assert_eq!(ask(&guarded.admin, "PUT", &format!("/v1/main/queues/{queue}"), Some(json!({}))).await, 200);
    }
    let pusher = guarded.token("pusher", &["main queue write mail"]).await;
    let worker = guarded.token("worker", &["main queue read,write mail"]).await;
    let job = Some(json!({"body": "x"}));
    let claim = Some(json!({"worker": "w"}));
    assert_eq!(ask(&pusher, "POST", "/v1/main/queues/mail/jobs", job.clone()).await, 200);
    assert_eq!(ask(&pusher, "POST", "/v1/main/queues/other/jobs", job.clone()).await, 403);
    assert_eq!(ask(&pusher, "POST", "/v1/main/queues/mail/claim", claim.clone()).await, 403, "who claims reads");
    assert_eq!(ask(&worker, "POST", "/v1/main/queues/mail/claim", claim.clone()).await, 200);
    assert_eq!(ask(&worker, "POST", "/v1/main/queues/other/claim", claim).await, 403);
    for path in ["pause", "resume"] {
        assert_eq!(ask(&worker, "POST", &format!("/v1/main/queues/mail/{path}"), None).await, 403, "{path}");
    }
    for path in ["redrive", "purge"] {
        let body = Some(json!({"oldest": 1}));
        assert_eq!(ask(&worker, "POST", &format!("/v1/main/queues/mail/{path}"), body).await, 403, "{path}");
    }
    assert_eq!(ask(&worker, "DELETE", "/v1/main/queues/mail", None).await, 403);
    assert_eq!(ask(&worker, "GET", "/v1/main/queues", None).await, 403, "all of them");
}
