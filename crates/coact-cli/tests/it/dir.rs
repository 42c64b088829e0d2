//! `coact dir register` and `coact dir watch`, one process beside the other.

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use serde_json::Value;

use crate::{node::Node, running::Running};

const WEB: [&str; 9] = ["dir", "register", "web", "--address", "10.0.0.1", "--port", "80", "--id", "a"];

/// What a watch has told so far: the state, and the instances.
fn told(text: &str) -> Vec<(String, usize)> {
    let picture = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("JSON");
        (row["state"].as_str().expect("text").to_owned(), row["instances"].as_array().expect("a list").len())
    };
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(picture).collect()
}

#[tokio::test]
async fn a_watch_tells_of_an_instance_that_comes_and_goes_with_its_command() {
    let node = Node::start().await;
    let watch = Running::start(&node, "watch", &["dir", "watch", "web", "-o", "jsonl"]);
    watch.wrote("it begins with nothing", |text| !told(text).is_empty()).await;
    let go = node.path().join("go");
    let script = format!("echo $COACT_INSTANCE; while [ ! -e {} ]; do sleep 0.02; done; exit 7", go.display());
    let mut owner = Running::start(&node, "owner", &[&WEB[..], &["--", "sh", "-c", &script]].concat());
    watch.wrote("it is there", |text| told(text).iter().any(|(_, instances)| *instances == 1)).await;
    owner.wrote("the command knows its id", |text| text == "a\n").await;
    std::fs::write(&go, "").expect("a file");
    assert_eq!(owner.code().await, Some(7), "the command's own exit code");
    let text = watch.wrote("it is gone", |text| told(text).last().is_some_and(|(_, instances)| *instances == 0)).await;
    assert!(told(&text).iter().all(|(state, _)| state == "fresh"), "a farewell is no loss to be doubted: {text}");
}

#[tokio::test]
async fn a_killed_owner_is_held_for_watchers_and_gone_from_the_store() {
    let node = Node::start().await;
    let watch = Running::start(&node, "watch", &["dir", "watch", "web", "-o", "jsonl"]);
    let mut owner = Running::start(&node, "owner", &[&WEB[..], &["--ttl", "1s", "--", "sleep", "1000"]].concat());
    watch.wrote("it is there", |text| told(text).iter().any(|(_, instances)| *instances == 1)).await;
    owner.kill();
    let gone = || node.run(&["dir", "show", "web"]).status.code() == Some(3);
    wait_until(&Env::real(), "its lease ends", PATIENCE, async || gone()).await.expect("in time");
    let text = watch.wrote("the loss is doubted", |text| text.contains("\"degraded\"")).await;
    assert!(text.contains("\"held\":true"), "{text}");
    assert_eq!(node.run(&["dir", "resolve", "web"]).status.code(), Some(6), "nobody is sent there");
}

#[tokio::test]
async fn the_commands_end_counts_though_the_store_is_away() {
    let mut node = Node::start().await;
    let go = node.path().join("go");
    let script = format!("echo up; while [ ! -e {} ]; do sleep 0.02; done; exit 7", go.display());
    let mut owner = Running::start(&node, "owner", &[&WEB[..], &["--ttl", "1s", "--", "sh", "-c", &script]].concat());
    owner.wrote("the command runs", |text| text == "up\n").await;
    node.crash();
    std::fs::write(&go, "").expect("a file");
    assert_eq!(owner.code().await, Some(7));
    assert!(owner.stderr().contains("the instance stays for up to 1s"), "{}", owner.stderr());
}

#[tokio::test]
async fn operators_write_drain_mark_and_remove() {
    let node = Node::start().await;
    let put = |id: &str, port: &str| {
        let register = ["dir", "register", "db", "--address", "::1", "--port", port, "--id", id, "--zone", id];
        node.stdout(&[&register[..], &["--persistent"]].concat())
    };
    assert_eq!((put("a", "9"), put("a", "1"), put("b", "2")), ("a\n".into(), "a\n".into(), "b\n".into()));
    let resolve = |more: &[&str]| node.stdout(&[&["dir", "resolve", "db"], more].concat());
    assert_eq!(resolve(&["--zone", "a"]), "[::1]:1\n", "the second put counts");
    let turns = resolve(&["--strategy", "weighted", "-n", "4"]);
    assert_eq!(turns.matches("[::1]:1").count(), 2, "{turns}");
    let by_key = ["--strategy", "ring", "--key", "ada"];
    assert_eq!(resolve(&by_key), resolve(&by_key), "the same key, the same instance");

    node.stdout(&["dir", "drain", "db", "b"]);
    assert_eq!(resolve(&["-n", "3"]), "[::1]:1\n".repeat(3));
    node.stdout(&["dir", "undrain", "db", "b"]);
    node.stdout(&["dir", "health", "db", "a", "failing", "--why", "disk full"]);
    assert_eq!(resolve(&["-n", "3"]), "[::1]:2\n".repeat(3));
    node.stdout(&["dir", "health", "db", "a", "passing"]);
    assert_eq!(node.stdout(&["dir", "ls", "-o", "jsonl"]).matches("\"eligible\":2").count(), 1);

    node.stdout(&["dir", "deregister", "db", "a"]);
    assert_eq!(resolve(&["-n", "3"]), "[::1]:2\n".repeat(3));
    for verb in ["deregister", "drain", "undrain"] {
        let missing = node.run(&["dir", verb, "db", "a"]);
        assert_eq!(missing.status.code(), Some(3), "{missing:?}");
        assert!(String::from_utf8_lossy(&missing.stderr).contains("service db has no instance a"), "{missing:?}");
    }
}
