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
