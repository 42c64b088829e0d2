//! The tour, as the README has it, on a smaller file.

use crate::{node::coact, stores};

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
    let output =
        coact().args(["tour", "--lines", "150", "--input", INPUT, "--result"]).arg(&result).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let proof = String::from_utf8_lossy(&output.stdout).into_owned();
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
    let timeline = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(timeline.contains("kill -9 of worker 1") && timeline.contains("kill -9 of the node"), "{timeline}");
}
