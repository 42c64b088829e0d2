//! Elections, the directory and configuration from the shell, with processes that are killed.

use std::process::{Child, Command, Stdio};

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::node::Node;

/// A process that is killed when the test ends.
struct Background(Child);

impl Background {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it runs");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    wait_until(&Env::real(), what, PATIENCE, async || holds()).await.unwrap_or_else(|error| panic!("{error:#}"));
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn a_killed_leader_is_followed_by_one_with_a_higher_token() {
    let node = Node::start().await;
    let run = |value: &str| {
        let leads = node.path().join(value);
        let script = format!("echo $COACT_FENCING_TOKEN > {}; exec sleep 1000", leads.display());
        let arguments = ["elect", "shop", "--ttl", "2s", "--value", value, "--", "sh", "-c", &script];
        (leads, Background::start(node.command(&arguments)))
    };
    let token = |path: &std::path::Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let (first, one) = run("one");
    eventually("one leads", || token(&first).is_some()).await;
    assert!(node.stdout(&["leader", "shop"]).starts_with("one (token "));
    let (second, _two) = run("two");
    one.signal(Signal::KILL);
    eventually("two leads", || token(&second).is_some()).await;
    assert!(token(&second) > token(&first));
    assert_eq!(json(&node.stdout(&["leader", "shop", "-o", "json"]))["value"], "two");
    let nobody = node.run(&["leader", "other"]);
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
}

#[tokio::test]
async fn an_instance_is_there_as_long_as_its_command() {
    let node = Node::start().await;
    let register = |id: &str, more: &[&str]| {
        let arguments = ["dir", "register", "web", "--address", "10.0.0.1", "--port", "80", "--ttl", "2s", "--id", id];
        Background::start(node.command(&[&arguments, more, &["--", "sleep", "1000"]].concat()))
    };
    let shown = || {
        let output = node.run(&["dir", "show", "web", "-o", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let ids = || {
        let list = shown();
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["id"].as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let one = register("one", &["--tag", "blue", "--meta", "version=7"]);
    let two = register("two", &["--drain-for", "1000s"]);
    eventually("both are there", || ids() == ["one", "two"]).await;
    assert_eq!(node.stdout(&["dir", "resolve", "web", "-n", "3"]).lines().count(), 3);
    assert_eq!(json(&node.stdout(&["dir", "ls", "-o", "json"]))[0]["eligible"], 2);

    // The first signal drains; the second ends the wait, and the command.
    two.signal(Signal::TERM);
    eventually("two drains", || shown()[1]["draining"] == true).await;
    two.signal(Signal::TERM);
    eventually("two is gone", || ids() == ["one"]).await;
    one.signal(Signal::KILL);
    eventually("the store gives a killed one up", || ids().is_empty()).await;

    let stays = node.stdout(&["dir", "register", "db", "--address", "h.example", "--port", "5432", "--persistent"]);
    assert_eq!(node.stdout(&["dir", "resolve", "db"]).trim(), "h.example:5432");
    node.stdout(&["dir", "drain", "db", stays.trim()]);
    let none = node.run(&["dir", "resolve", "db"]);
    assert_eq!(none.status.code(), Some(6), "{none:?}");
    node.stdout(&["dir", "undrain", "db", stays.trim()]);
    node.stdout(&["dir", "deregister", "db", stays.trim()]);
    assert_eq!(node.run(&["dir", "show", "db"]).status.code(), Some(3));
}

#[tokio::test]
async fn a_setting_goes_back_to_what_it_was() {
    let node = Node::start().await;
    assert_eq!(node.stdout(&["config", "put", "billing/currency", "EUR", "--expect", "0"]).trim(), "version 1");
    node.stdout(&["config", "put", "billing/currency", "USD"]);
    let late = node.run(&["config", "put", "billing/currency", "GBP", "--expect", "1"]);
    assert_eq!(late.status.code(), Some(4), "{late:?}");
    assert_eq!(node.stdout(&["config", "rollback", "billing/currency", "1"]).trim(), "version 3");
    assert_eq!(node.stdout(&["config", "get", "billing/currency"]), "EUR", "byte for byte");
    let history = json(&node.stdout(&["config", "history", "billing/currency", "-o", "json"]));
    assert_eq!((history.as_array().map(Vec::len), &history[2]["restores"]), (Some(3), &Value::from(1)));
    assert!(node.stdout(&["config", "ls"]).contains("billing"));
    node.stdout(&["config", "rm", "billing/currency"]);
    assert_eq!(node.run(&["config", "get", "billing/currency"]).status.code(), Some(3));
}

#[tokio::test]
async fn wrong_words_are_told_the_right_ones() {
    let node = Node::start().await;
    for (arguments, rule) in [
        (vec!["config", "get", "currency"], "write it as GROUP/KEY, for example billing/currency"),
        (
            vec!["dir", "register", "web", "--address", "h", "--port", "1", "--check", "ping"],
            "use tcp, http:/path, grpc, grpc:SERVICE or command:NAME",
        ),
        (vec!["dir", "register", "web", "--address", "h:80", "--port", "1"], "without a port"),
        (vec!["dir", "register", "web", "--address", "h", "--port", "1", "--meta", "x"], "write it as KEY=VALUE"),
        (vec!["dir", "drain", "web", "nobody"], "service web has no instance nobody"),
    ] {
        let output = node.run(&arguments);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && complaint.contains(rule), "{arguments:?}: {complaint}");
    }
}
