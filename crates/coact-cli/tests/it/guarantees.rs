//! `coact guarantees`: the table of what engines declare.

use serde_json::Value;

use crate::node::{Node, coact};

#[tokio::test]
async fn the_table_says_what_each_engine_declares_and_what_that_is_enough_for() {
    let node = Node::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let embedded = format!("embedded://{}?durability=os&segment=1MiB", dir.path().display());
    let output =
        coact().args(["guarantees", "-o", "jsonl", "memory:", &embedded, &node.url("main")]).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let column = |name: &str| rows.iter().map(|row| row[name].as_str().expect("text").to_owned()).collect::<Vec<_>>();
    assert_eq!(column("writes"), ["memory", "os", "sync"]);
    assert_eq!(column("fence"), ["per-process", "strong", "strong"]);
    assert_eq!(column("lock"), ["accept=volatile", "accept=loss-window", "yes"]);
    assert_eq!(column("directory"), ["yes", "yes", "yes"]);
    assert_eq!(column("wake"), ["told", "told", "told"]);
    assert_eq!(column("mq"), ["accept=volatile", "accept=loss-window", "yes"]);
    assert_eq!(column("queue"), column("mq"));
    assert_eq!(column("commits"), ["everything"; 3]);
    assert!(rows.iter().all(|row| row["compacts"] == true));
}

#[test]
fn an_engine_that_does_not_open_does_not_hide_the_others() {
    let output = coact().args(["guarantees", "memory:", "redis://127.0.0.1:1", "nosuch://x"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(8), "the last error decides");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.lines().count() == 2 && out.contains("memory:"), "{out}");
    assert!(err.contains("no Redis primary answers") && err.contains("names no engine"), "{err}");
}
