//! `coact doctor`: well on a node that is well, and right about what is wrong.

use std::process::Output;

use serde_json::Value;

use crate::node::{Node, coact};

/// The status of each check, in order.
fn findings(output: &Output) -> Vec<(String, String, Value)> {
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let text = |row: &Value, field: &str| row[field].as_str().expect("text").to_owned();
    rows.into_iter().map(|row| (text(&row, "check"), text(&row, "status"), row)).collect()
}

fn status<'a>(findings: &'a [(String, String, Value)], check: &str) -> &'a str {
    let found = findings.iter().find(|(name, ..)| name == check);
    &found.unwrap_or_else(|| panic!("{check} is missing in {findings:?}")).1
}

#[tokio::test]
async fn a_node_that_is_well_is_told_so_and_left_as_it_was() {
    let node = Node::start().await;
    node.stdout(&["kv", "put", "a/b", "c"]);
    let output = node.run(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found = findings(&output);
    let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
    let expected = [
        "url",
        "engine",
        "guarantees for locks and elections",
        "guarantees for ids",
        "guarantees for the directory",
        "guarantees for persistent instances and config",
        "read",
        "write",
        "watch",
        "lease",
        "end of a lease",
        "clock",
        "long waits",
        "entries without a lease",
    ];
    assert_eq!(names, expected);
    for (name, status, row) in &found {
        let expected = if name == "clock" { "skip" } else { "ok" };
        assert!(status == expected || ["read", "write"].contains(&name.as_str()) && status == "warn", "{row}");
    }
    assert!(found[11].2["detail"].as_str().expect("text").starts_with("not checked: "));
    assert_eq!(node.stdout(&["kv", "ls", "-o", "jsonl"]), "{\"dir\":\"a\"}\n", "nothing is left behind");
    let text = node.stdout(&["doctor"]);
    assert!(text.contains("ok    end of a lease: what hung on it is gone"), "{text}");
}

#[tokio::test]
async fn what_nothing_ends_is_found() {
    let node = Node::start().await;
    // Barging locks have one entry of this name; this one is on no lease.
    node.stdout(&["kv", "put", "lock/forgotten/holder", r#"{"label":"ghost","since":0}"#]);
    let output = node.run(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "a warning is no failure: {output:?}");
    let found = findings(&output);
    assert_eq!(status(&found, "entries without a lease"), "warn");
    assert!(found.last().expect("one").2["detail"].as_str().expect("text").contains("ghost"), "{found:?}");
}

#[test]
fn an_engine_that_is_not_there_or_forgets_fails() {
    let run = |at: &str| coact().args(["doctor", "-o", "json", "--at", at]).output().expect("it runs");
    let unreached = run("coact://127.0.0.1:1");
    assert_eq!(unreached.status.code(), Some(1), "{unreached:?}");
    let found = findings(&unreached);
    assert_eq!((status(&found, "url"), status(&found, "engine")), ("ok", "fail"));
    assert!(found[1].2["advice"].as_str().expect("text").contains("coact serve"), "{found:?}");
    assert_eq!(found.len(), 2, "nothing more can be known");

    let misspelt = run("localhost:7070");
    assert_eq!((misspelt.status.code(), status(&findings(&misspelt), "url")), (Some(1), "fail"));

    let forgetful = run("memory:");
    assert_eq!(forgetful.status.code(), Some(1));
    let found = findings(&forgetful);
    assert_eq!(status(&found, "guarantees for locks and elections"), "fail");
    assert_eq!(status(&found, "guarantees for the directory"), "ok");
    assert_eq!((status(&found, "watch"), status(&found, "lease")), ("ok", "ok"), "the rest is looked at all the same");

    let accepted = run("memory:?accept=volatile");
    assert_eq!((accepted.status.code(), status(&findings(&accepted), "guarantees for ids")), (Some(0), "warn"));
}
