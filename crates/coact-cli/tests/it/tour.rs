//! The tour, as the README has it, on a smaller file.

use crate::{
    node::{Node, coact},
    stores,
};

const INPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");

/// On an engine that is there already: the same proof, one worker is killed, and nothing is left behind.
async fn the_tour_at(url: &str) {
    let place = tempfile::tempdir().expect("a directory");
    let result = place.path().join("result.jsonl");
    let mut tour = tokio::process::Command::from(coact());
    tour.args(["tour", "--at", url, "--lines", "100", "--input", INPUT, "--result"]).arg(&result);
    let output = tour.output().await.expect("it runs");
    let timeline = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{timeline}");
    let proof = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(proof.contains("100 of 100: none lost, none doubled, none changed"), "{proof}");
    assert!(
        timeline.contains("kill -9 of worker 1") && timeline.contains("the namespace is empty again"),
        "{timeline}"
    );
}

#[tokio::test]
async fn etcd() {
    the_tour_at(&stores::etcd().await.url).await;
}

#[tokio::test]
async fn redis() {
    the_tour_at(&stores::redis().await.url).await;
}

#[tokio::test]
async fn redis_sentinel() {
    the_tour_at(&stores::redis_sentinel().await.url).await;
}

#[tokio::test]
async fn redis_cluster() {
    the_tour_at(&stores::redis_cluster().await.url).await;
}

#[tokio::test]
async fn zookeeper() {
    the_tour_at(&stores::zookeeper().await.url).await;
}

#[tokio::test]
async fn postgres() {
    the_tour_at(&stores::postgres().await.url).await;
}

#[test]
fn the_tour_proves_its_claim() {
    let place = tempfile::tempdir().expect("a directory");
    let result = place.path().join("result.jsonl");
    let mut tour = coact();
    tour.args(["tour", "--lines", "150", "--input", INPUT, "--log", INPUT, "--log-size", "300kB", "--result"])
        .arg(&result);
    let (proof, timeline) = succeed(&mut tour);
    assert!(proof.contains("150 of 150: none lost, none doubled, none changed"), "{proof}");
    let expected: Vec<String> =
        std::fs::read_to_string(INPUT).expect("a file").lines().take(150).map(str::to_owned).collect();
    let found: Vec<String> = std::fs::read_to_string(&result)
        .expect("the result")
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["text"].as_str().expect("text").to_owned()
        })
        .collect();
    assert_eq!(found, expected);
    assert!(
        timeline.contains("kill -9 of worker 1") && timeline.matches("kill -9 of the node").count() == 2,
        "{timeline}"
    );
    the_log_is_proved(&proof, &timeline);
}

/// At a node that is not ours: it is not killed, and nothing is left behind.
#[tokio::test]
async fn the_log_at_a_node_that_is_there() {
    let node = Node::start().await;
    let arguments = ["tour", "--only", "log", "--log", INPUT, "--log-size", "300kB"];
    let (proof, timeline) = succeed(coact().args(arguments).args(["--at", &node.url("any")]));
    the_log_is_proved(&proof, &timeline);
    assert!(!timeline.contains("of the node") && timeline.contains("the namespace is empty again"), "{timeline}");
}

fn the_log_is_proved(proof: &str, timeline: &str) {
    for claim in [
        "lines: none lost, none doubled, none changed, in the order of",
        "lines, none early, handed over once",
        "until they were mended; then handled in their order",
        "all lines, in the order of their programs",
    ] {
        assert!(proof.contains(claim), "{claim}: {proof}");
    }
    assert!(
        timeline.contains("kill -9 of consumer 1") && timeline.contains("nothing is parked any more"),
        "{timeline}"
    );
}

fn succeed(tour: &mut std::process::Command) -> (String, String) {
    let output = tour.output().expect("it runs");
    let timeline = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{timeline}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), timeline)
}

#[test]
fn a_log_that_is_no_use_is_refused_with_the_reason() {
    for (arguments, reason) in [
        (["--log", INPUT, "--log-size", "100"], "lines, but at least 100 are needed"),
        (["--log", INPUT, "--log-size", "1XB"], "use a number of bytes, with or without a unit"),
        (["--log", "/nowhere", "--log-size", "1MB"], "the log /nowhere cannot be read"),
    ] {
        let output = coact().args(["tour", "--only", "log"]).args(arguments).output().expect("it runs");
        assert!(!output.status.success(), "{arguments:?}");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(reason), "{arguments:?}: {message}");
    }
}
