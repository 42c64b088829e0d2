//! The tour, as the README has it, on a smaller file.

use crate::node::coact;

#[test]
fn the_tour_proves_its_claim() {
    let place = tempfile::tempdir().expect("a directory");
    let result = place.path().join("result.jsonl");
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
    let output =
        coact().args(["tour", "--lines", "150", "--input", input, "--result"]).arg(&result).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let proof = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(proof.contains("150 of 150: none lost, none doubled, none changed"), "{proof}");
    let expected: Vec<String> =
        std::fs::read_to_string(input).expect("a file").lines().take(150).map(str::to_owned).collect();
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
