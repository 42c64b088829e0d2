//! Programs of other people against a node: curl, a Prometheus that scrapes and discovers, a fuzzer of the API's document.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use coact::Env;
use coact_testkit::bed::{PATIENCE, ServerProcess, free_port, wait_until};
use serde_json::Value;

use crate::node::Node;

fn run(program: &str, arguments: &[&str]) -> Output {
    assert!(Path::new(program).exists(), "{program} is missing: run `cargo xtask test`, which installs it");
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn curl(arguments: &[&str]) -> String {
    let output = run("/usr/bin/curl", &[&["--silent", "--show-error", "--max-time", "60"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    text(&output)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A node in which one instance is registered: the node itself, whose metrics are worth scraping.
async fn node_with_itself() -> Node {
    let node = Node::start().await;
    let body = format!(r#"{{"address":"127.0.0.1","port":{},"zone":"here"}}"#, node.port());
    let place = format!("{}/v1/main/services/coact/instances/self", node.http());
    let put =
        ["--request", "PUT", "--header", "content-type: application/json", "--data", body.as_str(), place.as_str()];
    assert!(json(&curl(&put))["revision"].is_number());
    node
}

/// Sends JSON with curl.
fn send(node: &Node, method: &str, path: &str, body: &str) -> Value {
    let place = format!("{}/v1/main/{path}", node.http());
    json(&curl(&["--request", method, "--header", "content-type: application/json", "--data", body, place.as_str()]))
}

/// Gives a node a topic with a record and a delayed one, a group that is behind, and a queue with a job.
fn with_messages(node: &Node) {
    send(node, "PUT", "topics/orders", r#"{"partitions":3}"#);
    let records = r#"{"records":[{"key":"customer-7","value":"paid"},{"value":"later","delay_ms":3600000}]}"#;
    send(node, "POST", "topics/orders/records", records);
    send(node, "POST", "groups/audit/seek", r#"{"topic":"orders","at":"earliest"}"#);
    send(node, "PUT", "queues/mail", "{}");
    send(node, "POST", "queues/mail/jobs", r#"{"body":"send 17"}"#);
}

/// As docs/http.md shows it.
#[tokio::test]
async fn curl_consumes_a_topic_in_a_group() {
    let node = Node::start().await;
    with_messages(&node);
    let session = send(&node, "POST", "sessions", r#"{"ttl_ms":60000}"#)["id"].clone();
    let body = format!(r#"{{"session":{session},"topics":["orders"]}}"#);
    let joined = send(&node, "POST", "groups/billing/members", &body);
    let member = format!("groups/billing/members/{}", joined["member"].as_str().expect("an id"));
    let fetched = send(&node, "POST", &format!("{member}/fetch"), r#"{"limit":10,"wait_ms":30000}"#);
    assert_eq!(fetched["records"][0]["value"], "paid", "{fetched}");
    let settle = format!(r#"{{"settle":[{{"delivery":{},"verdict":"ack"}}]}}"#, fetched["records"][0]["delivery"]);
    assert_eq!(send(&node, "POST", &format!("{member}/settle"), &settle)["settled"][0], "done");
    let group = json(&curl(&[&format!("{}/v1/main/groups/billing", node.http())]));
    assert_eq!(group["lag"], 0, "{group}");
    assert!(node.stdout(&["mq", "lag", "billing"]).contains("orders"), "the shell sees the same group");
}

#[tokio::test]
async fn curl_takes_a_lock_and_gives_it_back() {
    let node = Node::start().await;
    let at = node.http();
    let post = |path: &str, body: &str| {
        json(&curl(&["--header", "content-type: application/json", "--data", body, &format!("{at}{path}")]))
    };
    let session = post("/v1/main/sessions", r#"{"ttl_ms":60000,"name":"shell"}"#)["id"].clone();
    let granted = post("/v1/main/locks/deploy/acquire", &format!(r#"{{"session":{session}}}"#));
    assert_eq!(granted["state"], "granted", "{granted}");
    assert!(node.stdout(&["lock", "ls"]).contains("shell"), "everybody sees who holds it");
    let released = post("/v1/main/tickets/release", &format!(r#"{{"ticket":{}}}"#, granted["ticket"]));
    assert_eq!(released["released"], true);
}

#[tokio::test]
async fn prometheus_scrapes_and_discovers() {
    let node = node_with_itself().await;
    with_messages(&node);
    let page = node.path().join("metrics");
    let metrics = curl(&[&format!("{}/metrics", node.http())]);
    for family in
        ["coact_topic_bytes{", "coact_group_lag_records{", "coact_queue_jobs{", "coact_delay_lateness_seconds"]
    {
        assert!(metrics.contains(family), "{family}: {metrics}");
    }
    std::fs::write(&page, metrics).expect("a file");
    let check = Command::new("/usr/bin/promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&page).expect("a file"))
        .output()
        .expect("promtool runs: `cargo xtask test` installs it");
    assert!(check.status.success(), "{check:?}");

    let config = node.path().join("prometheus.yml");
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs:\n\
             - job_name: named\n  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n\
             - job_name: found\n  http_sd_configs: [{{url: '{at}/v1/main/prometheus/targets', refresh_interval: 1s}}]\n\
             \x20 relabel_configs: [{{source_labels: [__meta_coact_zone], target_label: zone}}]\n",
            port = node.port(),
            at = node.http(),
        ),
    )
    .expect("a file");
    let port = free_port().expect("a free port");
    let mut command = Command::new("/usr/bin/prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", node.path().join("prometheus").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let prometheus = ServerProcess::start(&mut command, &node.path().join("prometheus.log"))
        .expect("prometheus runs: `cargo xtask test` installs it");
    let query = format!("http://127.0.0.1:{port}/api/v1/query");
    wait_until(&Env::real(), "both jobs have the node's metrics", PATIENCE, async || {
        let output = run("/usr/bin/curl", &["--silent", "--data-urlencode", "query=coact_healthy", &query]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let found: Vec<_> = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let has = |job: &str, zone: &Value| {
            let is = |one: &&Value| one["metric"]["job"] == job && &one["metric"]["zone"] == zone;
            found.iter().find(is).is_some_and(|one| one["value"][1] == "1")
        };
        has("named", &Value::Null) && has("found", &"here".into())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}: {}", prometheus.log_tail()));
}

/// What a generator of requests makes of the OpenAPI document: no answer is a failure of the node's, and every one is as
/// the document says.
#[tokio::test]
async fn a_fuzzer_of_the_document_finds_no_failure() {
    let node = node_with_itself().await;
    let program = tools().join("bin/schemathesis");
    let document = format!("{}/openapi.json", node.http());
    // Streams have no end; a long poll would only make it long.
    let left_out = ["watch$", "observe$", "changes$"].join("|");
    let output = Command::new(&program)
        .current_dir(node.path())
        .args(["run", &document, "--seed", "1", "--max-examples", "8", "--phases", "examples,coverage,fuzzing"])
        .args(["--exclude-path-regex", &left_out, "--request-timeout", "60", "--no-color"])
        .args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"])
        .args(["--checks", "response_schema_conformance,negative_data_rejection,unsupported_method"])
        .output()
        .unwrap_or_else(|error| panic!("{} ({error}): run `cargo xtask test`, which installs it", program.display()));
    assert!(output.status.success(), "{}", text(&output));
    assert!(node.run(&["kv", "ls"]).status.success(), "the node goes on");
}

/// Where `cargo xtask test` puts tools that are no Debian packages.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/schemathesis")
}
