//! `coact id`: every kind of id, read back, and who uses which worker number.

use std::{collections::HashSet, process::Stdio};

use crate::node::{Node, coact};

fn run(arguments: &[&str]) -> std::process::Output {
    // Nothing listens there: what needs no store must not ask one.
    coact().args(arguments).env("COACT_AT", "coact://127.0.0.1:1").output().expect("it runs")
}

#[test]
fn ulids_and_uuids_need_no_store_sort_as_they_were_made_and_are_read_back() {
    for (kind, length) in [("ulid", 26), ("uuid7", 36)] {
        let made = run(&["id", "next", "--kind", kind, "-n", "1000"]);
        assert!(made.status.success(), "{made:?}");
        let text = String::from_utf8(made.stdout).expect("text");
        let ids: Vec<&str> = text.lines().collect();
        assert!(ids.len() == 1_000 && ids.is_sorted_by(|a, b| a < b) && ids.iter().all(|id| id.len() == length));
        let decoded = run(&["id", "decode", ids[0], "-o", "jsonl"]);
        let row: serde_json::Value = serde_json::from_slice(&decoded.stdout).expect("JSON");
        assert_eq!((row["id"].as_str(), row["kind"].as_str()), (Some(ids[0]), Some(kind)));
        assert!(row["time"].as_str().is_some_and(|time| time.starts_with("20")), "{row}");
    }
    let ulid = run(&["id", "decode", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "-o", "json"]);
    let text = String::from_utf8(ulid.stdout).expect("text");
    assert!(text.contains("\"unix_ms\":1469922850259"), "{text}");
    let refused = run(&["id", "decode", "017f22e2-79b0-4cc3-98c4-dc0c0c07398f"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is no UUID of version 7"), "{refused:?}");
}

#[tokio::test]
async fn numbers_of_a_segment_are_dense_over_commands_and_a_killed_node() {
    let mut node = Node::start().await;
    assert_eq!(node.stdout(&["id", "segment", "orders", "-n", "3"]), "1\n2\n3\n");
    assert_eq!(node.stdout(&["id", "segment", "orders", "--step", "1", "-o", "jsonl"]), "{\"id\":\"4\"}\n");
    node.crash_and_restart().await;
    assert_eq!(node.stdout(&["id", "segment", "orders"]), "5\n");
    assert_eq!(node.stdout(&["id", "segment", "users", "--start", "100"]), "100\n");
    let mut numbers: HashSet<u64> = (1..=5).collect();
    let running: Vec<_> = (0..4)
        .map(|_| {
            let mut command = node.command(&["id", "segment", "orders", "-n", "500", "--step", "20"]);
            command.stdout(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    for process in running {
        let output = process.wait_with_output().expect("it ends");
        for number in String::from_utf8(output.stdout).expect("text").lines() {
            assert!(numbers.insert(number.parse().expect("a number")), "{number} was given twice");
        }
    }
    assert_eq!(numbers.len(), 2_005);
    let refused = node.run(&["id", "segment", "orders", "--step", "0"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[tokio::test]
async fn worker_numbers_are_listed() {
    let node = Node::start().await;
    assert_eq!(node.stdout(&["id", "workers"]), "");
    node.stdout(&["id", "next", "--layout", "js53"]);
    let text = node.stdout(&["id", "workers", "-o", "jsonl"]);
    let row: serde_json::Value = serde_json::from_str(&text).expect("one line");
    assert_eq!((row["epoch"].as_u64(), row["layout"].as_str()), (Some(1), Some("41/6/6")));
    assert!(row["used_by"].is_null() && row["worker"].as_u64().is_some_and(|worker| worker < 64), "{row}");
    assert!(node.stdout(&["id", "workers"]).starts_with("WORKER  USED_BY  UNTIL"));
    let refused = node.run(&["id", "next", "--space", "segment"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}
