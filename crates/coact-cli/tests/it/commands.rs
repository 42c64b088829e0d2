//! What the commands print, and their exit codes.

use std::{collections::HashSet, process::Stdio};

use crate::node::{Node, coact};

fn code(output: &std::process::Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("no exit code: {output:?}"))
}

#[tokio::test]
async fn entries_are_put_read_listed_and_removed() {
    let node = Node::start().await;
    assert_eq!(node.stdout(&["kv", "put", "config/colour", "blue"]), "2\n");
    assert_eq!(node.stdout(&["kv", "put", "config/size", "7"]), "3\n");
    assert_eq!(node.stdout(&["kv", "get", "config/colour"]), "blue\n");
    assert_eq!(node.stdout(&["kv", "ls", "-o", "jsonl"]), "{\"dir\":\"config\"}\n");
    assert_eq!(
        node.stdout(&["kv", "ls", "config", "-o", "json"]),
        "[{\"key\":\"config/colour\",\"value\":\"blue\",\"created\":2,\"modified\":2},\
         {\"key\":\"config/size\",\"value\":\"7\",\"created\":3,\"modified\":3}]\n"
    );
    assert_eq!(
        node.stdout(&["kv", "ls", "config"]),
        "KEY            VALUE  CREATED  MODIFIED\n\
         config/colour  blue   2        2\n\
         config/size    7      3        3\n"
    );
    assert_eq!(node.stdout(&["kv", "ls", "config", "--limit", "1", "-o", "jsonl"]).lines().count(), 1);
    assert_eq!(node.stdout(&["kv", "del", "config/colour"]), "4\n");
    let gone = node.run(&["kv", "get", "config/colour"]);
    assert_eq!((code(&gone), gone.stdout.len()), (3, 0));
    assert_eq!(String::from_utf8_lossy(&gone.stderr), "coact: there is no entry config/colour\n");
    assert_eq!(code(&node.run(&["kv", "del", "config/colour"])), 3);
}

#[tokio::test]
async fn a_transaction_does_all_or_nothing() {
    let node = Node::start().await;
    let create = ["kv", "txn", "--check", "absent:a/x", "--put", "a/x=1", "--incr", "a/n=5", "-o", "jsonl"];
    assert_eq!(node.stdout(&create), "{\"committed\":true,\"revision\":2,\"found\":[]}\n");
    let refused = node.run(&create);
    assert_eq!(code(&refused), 3);
    let text = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(text.starts_with("{\"committed\":false,\"check\":\"absent:a/x\",\"found\":{\"key\":\"a/x\""), "{text}");
    assert_eq!(node.stdout(&["kv", "get", "a/n"]), "5\n");
    let read = node.stdout(&["kv", "txn", "--check", "created:a/x=2", "--get", "a/x", "--put", "a/x=2", "-o", "json"]);
    assert!(read.contains("\"value\":\"1\""), "reads see the state before the writes: {read}");
}

#[tokio::test]
async fn a_watch_follows_from_a_revision() {
    let node = Node::start().await;
    for value in ["1", "2"] {
        node.stdout(&["kv", "put", "a/x", value]);
    }
    node.stdout(&["kv", "put", "b/other", "1"]);
    node.stdout(&["kv", "del", "a/x"]);
    let text = node.stdout(&["kv", "watch", "a/", "--after", "1", "--count", "3"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["2  put   a/x  1", "3  put   a/x  2"]);
    assert!(lines[2].starts_with("5  gone  a/x  "), "{text}");
}

#[tokio::test]
async fn ids_are_unique_over_processes_and_a_killed_node() {
    let mut node = Node::start().await;
    let mut ids = HashSet::new();
    for round in 0..3 {
        let running: Vec<_> = (0..4)
            .map(|_| node.command(&["id", "next", "-n", "1000"]).stdout(Stdio::piped()).spawn().expect("it starts"))
            .collect();
        for process in running {
            let output = process.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{output:?}");
            for id in String::from_utf8(output.stdout).expect("text").lines() {
                assert!(ids.insert(id.to_owned()), "{id} was given twice");
            }
        }
        if round == 1 {
            node.crash_and_restart().await;
        }
    }
    assert_eq!(ids.len(), 12_000);
    let json = node.stdout(&["id", "next", "-o", "jsonl"]);
    assert!(json.starts_with("{\"id\":\"") && json.ends_with("\"}\n"), "ids are strings in JSON: {json}");
    let id = ids.iter().next().expect("one");
    let decoded = node.stdout(&["id", "decode", id, "-o", "jsonl"]);
    assert!(decoded.contains("\"time\":\"20") && decoded.contains("\"worker\":"), "{decoded}");
}

#[test]
fn embedded_works_without_a_node() {
    let place = tempfile::tempdir().expect("a directory");
    let at = format!("embedded://{}/data?segment=1MiB", place.path().display());
    let run = |arguments: &[&str]| coact().args(arguments).env("COACT_AT", &at).output().expect("it runs");
    assert_eq!(code(&run(&["kv", "put", "a/b", "c"])), 0);
    assert_eq!(run(&["kv", "get", "a/b"]).stdout, b"c\n");
    let locked = run(&["lock", "run", "x", "--", "sh", "-c", "exit 7"]);
    assert_eq!(code(&locked), 7, "{locked:?}");
}

#[test]
fn every_kind_of_error_is_explained_and_completions_are_made() {
    let kinds = coact().args(["explain"]).output().expect("it runs").stdout;
    for kind in String::from_utf8(kinds).expect("text").lines() {
        let page = coact().args(["explain", kind]).output().expect("it runs");
        assert!(page.status.success() && page.stdout.starts_with(format!("# {kind}\n").as_bytes()));
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = coact().args(["completions", shell]).output().expect("it runs");
        assert!(String::from_utf8_lossy(&script.stdout).contains("coact"), "{shell}");
    }
}
