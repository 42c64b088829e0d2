//! Every route × every kind of caller × ways to write its path: made from the OpenAPI document, so none is forgotten.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::{auth::Guarded, bed::within, web::open};

/// What makes each operation's request a valid one: the rest of its path, and its body. An operation without a line here
/// fails the test.
fn request_of(operation: &str) -> (&'static str, Option<Value>) {
    match operation {
        "kv_list" => ("?dir=a", None),
        "kv_poll" => ("?dir=a&after=0&wait_ms=0", None),
        "kv_watch" => ("?dir=a", None),
        "kv_put" => ("", Some(json!({"value": "x"}))),
        "kv_txn" => ("", Some(json!({"writes": [{"incr": {"key": "a/b", "by": 1}}]}))),
        "session_create" => ("", Some(json!({}))),
        "directory_register" => ("", Some(json!({"address": "10.0.0.1", "port": 80}))),
        "auth_create_token" => ("", Some(json!({"label": "x", "roles": ["read-only"]}))),
        "auth_put_role" => {
            let permission = json!({"namespace": "x", "block": "kv", "verbs": "read", "prefix": ""});
            ("", Some(json!({"permissions": [permission]})))
        }
        "lock_acquire" => ("", Some(json!({"session": "s"}))),
        "lock_count_down" | "lock_wait_latch" | "lock_reset_latch" => ("", Some(json!({"session": "s", "count": 1}))),
        "lock_wait_barrier" => ("", Some(json!({"session": "s", "parties": 1}))),
        "lock_acquire_rate" => ("", Some(json!({"permits": 1, "per_ms": 1000, "chunk": 1}))),
        "lock_acquire_rw" => ("", Some(json!({"session": "s", "access": "read"}))),
        "lock_acquire_permit" => ("", Some(json!({"session": "s", "permits": 1}))),
        "lock_campaign" => ("", Some(json!({"session": "s"}))),
        "lock_check" | "lock_release" => ("", Some(json!({"ticket": ticket()}))),
        "lock_proclaim" => ("", Some(json!({"ticket": ticket(), "session": "s", "value": "v"}))),
        "lock_withdraw" => ("", Some(json!({"kind": "leadership", "name": "n", "operation": "0".repeat(32)}))),
        "config_put" => ("", Some(json!({"value": "x"}))),
        "config_rollback" => ("", Some(json!({"version": 1}))),
        "directory_report" => ("", Some(json!({"health": "passing"}))),
        "queue_put" => ("", Some(json!({"max_attempts": 3}))),
        "queue_push" => ("", Some(json!({"body": "x"}))),
        "queue_push_all" => ("", Some(json!({"jobs": [{"body": "x"}]}))),
        "queue_claim" => ("", Some(json!({"worker": "w"}))),
        "queue_settle" => ("", Some(json!({"settle": [{"id": 1, "token": 1, "verdict": "ack"}]}))),
        "queue_redrive" | "queue_purge" => ("", Some(json!({"oldest": 1}))),
        "queue_reschedule" => ("", Some(json!({"run_at_ms": 1}))),
        "mq_put_topic" => ("", Some(json!({"partitions": 1}))),
        "mq_produce" => ("", Some(json!({"records": [{"value": "x"}]}))),
        "mq_reschedule_delay" => ("", Some(json!({"due_ms": 1}))),
        "mq_seek" => ("", Some(json!({"topic": "n"}))),
        "mq_redrive" => ("", Some(json!({}))),
        "mq_join" => ("", Some(json!({"session": "s", "topics": ["n"]}))),
        "mq_fetch" => ("", Some(json!({"limit": 1}))),
        "mq_settle" => ("", Some(json!({"settle": [{"delivery": 1, "verdict": "ack"}]}))),
        "mq_topics" | "mq_topic" | "mq_delete_topic" | "mq_peek" | "mq_tail" | "mq_delays" | "mq_delay_stats"
        | "mq_delay" | "mq_cancel_delay" | "mq_fire_delay" | "mq_groups" | "mq_group" | "mq_delete_group"
        | "mq_parked" | "mq_group_history" | "mq_leave" => ("", None),
        "queue_list" | "queue_read" | "queue_delete" | "queue_stats" | "queue_pause" | "queue_resume"
        | "queue_jobs" | "queue_job" | "queue_cancel" | "queue_promote" => ("", None),
        "kv_read"
        | "kv_delete"
        | "kv_dirs"
        | "session_list"
        | "session_read"
        | "session_end"
        | "session_renew"
        | "lock_list"
        | "lock_leader"
        | "lock_observe"
        | "auth_tokens"
        | "auth_revoke_token"
        | "auth_roles"
        | "auth_remove_role"
        | "config_groups"
        | "config_list"
        | "config_watch"
        | "config_read"
        | "config_delete"
        | "config_history"
        | "directory_services"
        | "directory_list"
        | "directory_watch"
        | "directory_deregister"
        | "directory_drain"
        | "directory_undrain"
        | "directory_targets"
        | "id_next"
        | "id_next_dense"
        | "id_make"
        | "id_workers"
        | "id_decode" => ("", None),
        other => panic!("operation {other} is not in the matrix: say here what a valid request is"),
    }
}

fn ticket() -> Value {
    json!({"kind": "leadership", "realm": "main", "name": "n", "operation": "0".repeat(32), "token": 1, "created": 1})
}

/// Asks for something although it is sent by POST.
const READS: [&str; 1] = ["lock_check"];

/// Needs no permission beyond a token: it reads no data.
const FREE: [&str; 2] = ["id_decode", "id_make"];

fn fill(path: &str) -> String {
    path.replace("{namespace}", "main")
        .replace("{key}", "a%2Fb")
        .replace("{space}", "x")
        .replace("{id}", "7")
        .replace("{name}", "n")
        .replace("{service}", "web")
        .replace("{group}", "g")
        .replace("{tag}", "t")
        .replace("{kind}", "ulid")
        .replace("{delay}", "1-1")
        .replace("{member}", "m")
}

async fn status(at: SocketAddr, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> u16 {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
    let mut stream = open(at, method, path, &headers, body).await;
    let mut head = vec![0; 12];
    within("a status line", stream.read_exact(&mut head)).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    String::from_utf8_lossy(&head)[9..].parse().expect("a status")
}

#[tokio::test]
async fn every_route_asks_who_is_there_and_what_they_may() {
    let guarded = Guarded::start().await;
    let at = guarded.node.address();
    let other = guarded.token("other", &["other * read,write,admin"]).await;
    let reader = guarded.token_of("reader", &["read-only"]).await;
    let nobody = guarded.token_of("nobody", &["metrics"]).await;
    let document = guarded.ask("GET", "/openapi.json", &guarded.admin, &Value::Null).await.1;
    let mut routes = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let name = operation["operationId"].as_str().expect("a name");
            let (query, body) = request_of(name);
            let method = method.to_uppercase();
            let path = fill(path);
            let ask = async |path: &str, token: Option<&str>| {
                status(at, &method, &format!("{path}{query}"), token, body.clone()).await
            };
            assert_eq!(ask(&path, None).await, 401, "{name} without a token");
            assert_eq!(ask(&path, Some("coact_00000000_x")).await, 401, "{name} with a made-up token");
            let free = FREE.contains(&name);
            let writes = method != "GET" && !READS.contains(&name);
            for (who, token, refused) in [
                ("of another namespace", &other, !free),
                ("without permissions", &nobody, !free),
                ("read-only", &reader, (writes || name.starts_with("auth_")) && !free),
                ("an admin", &guarded.admin, false),
            ] {
                let status = ask(&path, Some(token)).await;
                assert_eq!(status == 403, refused, "{name} by {who}: {status}");
                assert!(status != 401 && (status < 500 || status == 503), "{name} by {who}: {status}");
            }
            // However the path is written: what is refused stays refused, and nothing goes around the question.
            let spoilt = [
                path.replacen('/', "//", 1),
                path.replace("/v1/", "/v1//"),
                format!("{path}/"),
                path.replace("/main/", "/main%2F"),
                path.replace("/v1/main", "/v1/./main"),
                path.replace("/v1/main", "/v1/other/../main"),
                path.replace("/v1/", "/V1/"),
                path.replace("/v1/main", "/v1/%6dain"),
                path.replace("/v1/main", "/v1/main%00"),
                path.replace("/v1/main", "/v1/_coact"),
            ];
            for variant in spoilt {
                assert_eq!(ask(&variant, None).await, 401, "{name} as {variant} without a token");
                let status = ask(&variant, Some(&nobody)).await;
                assert!(free || (400..500).contains(&status), "{name} as {variant} without permissions: {status}");
                if variant.contains("_coact") {
                    assert_eq!(ask(&variant, Some(&guarded.admin)).await, 403, "{name}: nobody reaches the node's own");
                }
            }
            routes += 1;
        }
    }
    assert!(routes >= 16, "{routes} routes");
}

/// The control: the same requests of one who may, where nobody asks.
#[tokio::test]
async fn nothing_is_refused_where_nobody_asks() {
    let node = crate::bed::node().await;
    assert_eq!(status(node.address(), "GET", "/v1/main/dirs", None, None).await, 200);
    assert_eq!(status(node.address(), "GET", "/v1/_coact/dirs", None, None).await, 403);
}
