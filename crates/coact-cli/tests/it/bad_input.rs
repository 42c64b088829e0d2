//! Wrong input gets one clear line that says what was wrong and what is allowed, and a stable exit code.

use crate::node::{Node, coact};

fn refused(arguments: &[&str], code: i32, message: &str) {
    let output = coact().args(arguments).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert!(text.contains(message), "{arguments:?} should say {message:?}, and says {text:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: nothing but data goes to stdout");
}

#[test]
fn urls_and_names() {
    refused(&["kv", "get", "a/b", "--at", "localhost"], 2, "is not an engine URL: it has no scheme");
    refused(
        &["kv", "get", "a/b", "--at", "kafka://h"],
        8,
        "URL scheme \"kafka\" names no engine: choose from embedded, memory, etcd, coact, postgres, postgresql, redis, rediss, \
         valkey, valkeys, zookeeper",
    );
    refused(&["kv", "get", "a/b", "--at", "memory:?x=1"], 2, "URL option \"x\" is not known to memory");
    refused(
        &["kv", "get", "a/b", "--at", "etcd://127.0.0.1:1/n?colour=1"],
        2,
        "URL option \"colour\" is not known to etcd",
    );
    refused(&["kv", "get", "colour", "--at", "memory:"], 2, "key \"colour\" has no dir: write it as dir/name");
    refused(&["kv", "get", "a/b", "--realm", "a b", "--at", "memory:"], 2, "realm \"a b\" is not allowed");
    refused(&["kv", "get", "a/b", "--at", "coact://127.0.0.1:1"], 6, "coact serve");
}

#[test]
fn blocks_refuse_what_forgets() {
    refused(
        &["id", "next", "--at", "memory:"],
        8,
        "id needs writes synced to disk before they are acknowledged, but memory: declares",
    );
    refused(&["lock", "run", "x", "--at", "memory:", "--", "true"], 8, "accept it with ?accept=volatile");
}

#[test]
fn arguments() {
    refused(&["kv", "txn", "--at", "memory:"], 2, "the transaction is empty");
    refused(
        &["kv", "txn", "--check", "exists:a/b", "--at", "memory:"],
        2,
        "write absent:KEY, created:KEY=REVISION or modified:KEY=REVISION",
    );
    refused(&["kv", "txn", "--put", "a/b", "--at", "memory:"], 2, "write --put KEY=VALUE");
    refused(&["kv", "txn", "--incr", "a/b=x", "--at", "memory:"], 2, "\"x\" is no whole number");
    refused(&["lock", "run", "x", "--ttl", "5", "--", "true"], 2, "use a number with a unit: 250ms, 10s, 5m, 1h");
    refused(&["lock", "run", "x"], 2, "required");
    refused(&["id", "next", "-n", "0"], 2, "1..=10000000");
    refused(&["id", "decode", "x"], 2, "\"x\" is no id");
    refused(&["id", "decode", "5", "--layout", "9/9"], 2, "layout");
    refused(&["explain", "nonsense"], 2, "is no kind of error: choose from invalid, not-found");
    refused(&["serve", "--durability", "fast"], 2, "durability \"fast\" is not known: use sync, os, or interval:10ms");
    refused(&["serve", "--listen", "nowhere"], 2, "invalid socket address");
    refused(&["tour", "--input", "/nonexistent"], 2, "the input /nonexistent cannot be read");
}

#[test]
fn coordination() {
    refused(&["rw", "read", "x"], 2, "required");
    refused(&["sem", "run", "x", "--permits", "0", "--", "true"], 2, "1..");
    refused(&["sem", "run", "x", "--", "true"], 2, "--permits <N>");
    refused(&["sem", "resize", "x", "0"], 2, "1..");
    refused(&["lock", "ls", "--kind", "mutex"], 2, "possible values: lock, rw, sem, election");
    refused(&["top", "--interval", "1ms"], 2, "use at least 100ms");
    refused(&["top", "--once", "--realm", "a b", "--at", "memory:"], 2, "realm \"a b\" is not allowed");
    for arguments in [&["rw", "write", "x"][..], &["sem", "run", "x", "--permits", "1"], &["elect", "x"]] {
        refused(&[arguments, &["--at", "memory:", "--", "true"]].concat(), 8, "accept it with ?accept=volatile");
    }
}

#[tokio::test]
async fn a_node_says_why_it_cannot_start() {
    let node = Node::start().await;
    let data = node.path().join("data");
    let data = data.to_str().expect("text");
    refused(&["serve", "--listen", "0.0.0.0:7070", "--data", data], 9, "TLS and tokens are missing");
    refused(&["serve", "--listen", "127.0.0.1:0", "--data", data], 6, "is open in another process");
    let other = node.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    std::fs::write(other.join("00000000000000000001.seg"), "not a log").expect("a file");
    refused(
        &["serve", "--listen", "127.0.0.1:0", "--data", other.to_str().expect("text")],
        7,
        "00000000000000000001.seg is damaged at byte 0",
    );
}
