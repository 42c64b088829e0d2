//! Running commands under locks of the other kinds: `coact rw`, `coact sem`, `coact elect --again`.

use std::path::PathBuf;

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use serde_json::Value;

use crate::{node::Node, running::Running};

/// A script that says that it runs, and goes on until the file `go-NAME` is there.
struct Script {
    text: String,
    up: PathBuf,
    go: PathBuf,
}

impl Script {
    fn new(node: &Node, name: &str) -> Self {
        let (up, go) = (node.path().join(format!("up-{name}")), node.path().join(format!("go-{name}")));
        let text = format!(
            "echo $COACT_FENCING_TOKEN > {0}.part; mv {0}.part {0}; while [ ! -e {1} ]; do sleep 0.02; done",
            up.display(),
            go.display()
        );
        Self { text, up, go }
    }

    /// Waits until it runs, and returns its token.
    async fn runs(&self) -> u64 {
        wait_until(&Env::real(), "the command runs", PATIENCE, async || self.up.exists()).await.expect("in time");
        std::fs::read_to_string(&self.up).expect("a file").trim().parse().expect("a token")
    }

    fn end(&self) {
        std::fs::write(&self.go, "").expect("a file");
    }
}

/// What `coact lock ls` shows: kind, name, state.
fn shown(node: &Node) -> Vec<(String, String, String)> {
    let text = |row: &Value, field: &str| row[field].as_str().expect("text").to_owned();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("JSON");
        (text(&row, "kind"), text(&row, "lock"), text(&row, "state"))
    };
    node.stdout(&["lock", "ls", "-o", "jsonl"]).lines().map(row).collect()
}

async fn waits(node: &Node, state: &str) {
    wait_until(&Env::real(), "it waits", PATIENCE, async || shown(node).iter().any(|row| row.2 == state))
        .await
        .expect("in time");
}

#[tokio::test]
async fn readers_share_and_a_writer_is_alone() {
    let node = Node::start().await;
    let [one, two, writer, late] = ["one", "two", "writer", "late"].map(|name| Script::new(&node, name));
    let start = |side: &str, name: &str, script: &Script| {
        Running::start(&node, name, &["rw", side, "report", "--", "sh", "-c", &script.text])
    };
    let mut running = vec![start("read", "one", &one)];
    one.runs().await;
    running.push(start("read", "two", &two));
    two.runs().await;
    running.push(start("write", "writer", &writer));
    waits(&node, "waits 1").await;
    running.push(start("read", "late", &late));
    waits(&node, "waits 2").await;
    let states: Vec<_> = shown(&node).into_iter().map(|(kind, name, state)| (kind + " " + &name, state)).collect();
    let expected = ["reads", "reads", "waits 1", "waits 2"].map(|state| ("rw report".to_owned(), state.to_owned()));
    assert_eq!(states, expected);
    let refused = node.run(&["rw", "write", "report", "--wait", "200ms", "--", "true"]);
    assert_eq!(refused.status.code(), Some(124), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("read-write lock report was not free within"));

    one.end();
    two.end();
    let written = writer.runs().await;
    assert!(!late.up.exists(), "who came after the writer waits for it");
    writer.end();
    assert!(late.runs().await > written, "tokens grow");
    late.end();
    for process in &mut running {
        assert_eq!(process.code().await, Some(0));
    }
    assert_eq!(shown(&node), []);
}

#[tokio::test]
async fn as_many_run_as_there_are_permits() {
    let node = Node::start().await;
    let scripts = ["one", "two", "three"].map(|name| Script::new(&node, name));
    let run = |permits: &str, more: &[&str]| {
        let start = ["sem", "run", "builds", "--permits", permits];
        [&start, more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let start = |name: &str, script: &Script| {
        let arguments = run("2", &["--", "sh", "-c", &script.text]);
        Running::start(&node, name, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let try_one = |permits: &str| {
        let arguments = run(permits, &["--wait", "200ms", "--", "true"]);
        node.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut running = vec![start("one", &scripts[0])];
    scripts[0].runs().await;
    running.push(start("two", &scripts[1]));
    scripts[1].runs().await;
    running.push(start("three", &scripts[2]));
    waits(&node, "waits 1").await;
    assert_eq!(try_one("2").status.code(), Some(124));
    let other = try_one("3");
    assert_eq!(other.status.code(), Some(4), "another number is no matter of time: {other:?}");

    assert_eq!(node.stdout(&["sem", "resize", "builds", "3"]), "3\n");
    scripts[2].runs().await;
    assert_eq!(shown(&node).iter().filter(|row| row.2 == "held").count(), 3);
    scripts.iter().for_each(Script::end);
    for process in &mut running {
        assert_eq!(process.code().await, Some(0));
    }
    assert_eq!(node.run(&["sem", "resize", "builds-eu", "3"]).status.code(), Some(3));
    assert!(try_one("3").status.success());
}

#[tokio::test]
async fn a_candidate_runs_again_when_its_leadership_was_taken() {
    let node = Node::start().await;
    let tokens = node.path().join("tokens");
    let script = format!("echo $COACT_FENCING_TOKEN >> {}; exec sleep 1000", tokens.display());
    let read = || {
        let text = std::fs::read_to_string(&tokens).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u64>>()
    };
    let led = async |times: usize| {
        wait_until(&Env::real(), "it leads", PATIENCE, async || read().len() == times).await.expect("in time");
    };
    let take_away = || {
        let entry = node.stdout(&["kv", "ls", "election/shop", "-o", "jsonl"]);
        let entry: Value = serde_json::from_str(entry.trim()).expect("one entry");
        node.stdout(&["kv", "del", entry["key"].as_str().expect("a key")]);
    };
    let again = ["elect", "shop", "--again", "--ttl", "2s", "--", "sh", "-c", &script];
    let candidate = Running::start(&node, "again", &again);
    led(1).await;
    take_away();
    led(2).await;
    assert!(read().is_sorted_by(|a, b| a < b), "each leadership has a higher token: {:?}", read());
    assert!(candidate.stderr().contains("election shop is lost, ending the command"), "{}", candidate.stderr());
    drop(candidate);

    let once = ["elect", "shop", "--ttl", "2s", "--", "sh", "-c", &script];
    let mut candidate = Running::start(&node, "once", &once);
    led(3).await;
    take_away();
    assert_eq!(candidate.code().await, Some(125), "without --again it ends");
}
