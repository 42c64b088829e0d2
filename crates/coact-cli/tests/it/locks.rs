//! `coact lock run` with several processes at once, paused, killed and interrupted.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::node::Node;

async fn exists(path: &Path) {
    wait_until(&Env::real(), "a file appears", PATIENCE, async || path.exists()).await.expect("in time");
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32).expect("a process")
}

#[tokio::test]
async fn exactly_one_runs_and_tokens_grow() {
    let mut node = Node::start().await;
    let script = format!(
        "mkdir {0}/held || echo clash >> {0}/clashes; echo $COACT_FENCING_TOKEN >> {0}/tokens; rmdir {0}/held",
        node.path().display()
    );
    let mut running = Vec::new();
    for index in 0..20 {
        if index == 10 {
            node.crash_and_restart().await;
        }
        let mut command = node.command(&["lock", "run", "deploy", "--", "sh", "-c", &script]);
        running.push(command.stderr(Stdio::piped()).spawn().expect("it starts"));
    }
    for process in running {
        let output = process.wait_with_output().expect("it ends");
        // The node may have been killed under one that was connecting; it then did not run its command.
        let unreached = output.status.code() == Some(6);
        assert!(output.status.success() || unreached, "{output:?}");
    }
    assert!(!node.path().join("clashes").exists(), "two ran at once");
    let tokens = std::fs::read_to_string(node.path().join("tokens")).expect("tokens");
    let tokens: Vec<u64> = tokens.lines().map(|token| token.parse().expect("a number")).collect();
    assert!(tokens.len() >= 10 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[tokio::test]
async fn ls_shows_holder_and_waiters_in_order() {
    let node = Node::start().await;
    let (go, held) = (node.path().join("go"), node.path().join("held"));
    let script = format!("touch {}; while [ ! -e {} ]; do sleep 0.02; done", held.display(), go.display());
    let start = |label: &str| {
        let mut command = node.command(&["lock", "run", "deploy/eu", "--label", label, "--", "sh", "-c", &script]);
        command.spawn().expect("it starts")
    };
    let mut running = vec![start("first")];
    exists(&held).await;
    for (index, label) in ["second", "third"].into_iter().enumerate() {
        running.push(start(label));
        wait_until(&Env::real(), "the waiter is there", PATIENCE, async || {
            node.stdout(&["lock", "ls", "-o", "jsonl"]).lines().count() == index + 2
        })
        .await
        .expect("in time");
    }
    let rows: Vec<serde_json::Value> = node
        .stdout(&["lock", "ls", "deploy", "-o", "jsonl"])
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let shown: Vec<_> = rows.iter().map(|row| (row["state"].as_str(), row["who"].as_str())).collect();
    let expected = [("held", "first"), ("waits 1", "second"), ("waits 2", "third")];
    assert_eq!(shown, expected.map(|(state, who)| (Some(state), Some(who))));
    assert!(rows.iter().all(|row| row["lease_left_s"].as_f64().is_some_and(|left| left > 0.0)), "{rows:?}");
    std::fs::write(&go, "").expect("a file");
    for mut process in running {
        assert!(process.wait().expect("it ends").success());
    }
    assert_eq!(node.stdout(&["lock", "ls"]), "");
}

#[tokio::test]
async fn waiting_has_an_end_and_exit_codes_pass() {
    let node = Node::start().await;
    let held = node.path().join("held");
    let script = format!("touch {}; sleep 60", held.display());
    let mut holder = node.command(&["lock", "run", "x", "--", "sh", "-c", &script]).spawn().expect("it starts");
    exists(&held).await;
    let late = node.run(&["lock", "run", "x", "--wait", "200ms", "--", "true"]);
    assert_eq!(late.status.code(), Some(124), "{late:?}");
    kill_process(pid(&holder), Signal::TERM).expect("it runs");
    assert_eq!(holder.wait().expect("it ends").code(), Some(143), "the command's own end by SIGTERM");
    assert_eq!(node.run(&["lock", "run", "x", "--", "sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(node.run(&["lock", "run", "x", "--", "/nonexistent"]).status.code(), Some(127));
    assert_eq!(node.run(&["lock", "run", "x", "--", "/etc/passwd"]).status.code(), Some(126));
    assert_eq!(node.stdout(&["lock", "ls"]), "", "every way out releases");
}

#[tokio::test]
async fn a_killed_holder_is_followed_when_its_lease_ends() {
    let node = Node::start().await;
    let held = node.path().join("held");
    let script = format!("touch {}; exec sleep 60", held.display());
    let mut holder =
        node.command(&["lock", "run", "x", "--ttl", "1s", "--", "sh", "-c", &script]).spawn().expect("it starts");
    exists(&held).await;
    holder.kill().expect("it runs");
    holder.wait().expect("it ends");
    let next = node.stdout(&["lock", "run", "x", "--wait", "60s", "--", "sh", "-c", "echo $COACT_FENCING_TOKEN"]);
    assert!(next.trim().parse::<u64>().is_ok(), "{next}");
}

/// What a resource accepts, from the order in which writes reached it: the value at the end.
fn fold(writes: &str, compare_tokens: bool) -> String {
    let (mut newest, mut value) = (0, String::new());
    for write in writes.lines() {
        let (token, text) = write.split_once(' ').expect("a token and a value");
        let token: u64 = token.parse().expect("a number");
        if !compare_tokens || token >= newest {
            newest = token;
            value = text.to_owned();
        }
    }
    value
}

/// A holder that is stopped past its lease believes in its lock when it goes on. The resource does not.
#[tokio::test]
async fn a_holder_paused_past_its_lease_is_fenced_off_and_ended() {
    let node = Node::start().await;
    let file = |name: &str| node.path().join(name);
    let write = |value: &str| format!("echo $COACT_FENCING_TOKEN {value} >> {}", file("writes").display());
    // It ignores the polite signal, so that its late write surely happens.
    let script = format!(
        "trap '' TERM; touch {}; while [ ! -e {} ]; do sleep 0.02; done; {}; sleep 60",
        file("held").display(),
        file("go").display(),
        write("stale")
    );
    let paused = node
        .command(&["lock", "run", "x", "--ttl", "1s", "--grace", "3s", "--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    exists(&file("held")).await;
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", paused.id())).expect("proc");
    let group =
        Pid::from_raw(children.split_whitespace().next().expect("a child").parse().expect("a pid")).expect("a pid");
    kill_process(pid(&paused), Signal::STOP).expect("it runs");
    kill_process_group(group, Signal::STOP).expect("it runs");

    // The next holder gets the lock by the end of the lease, and writes.
    let fresh = write("fresh");
    let output = node.run(&["lock", "run", "x", "--wait", "60s", "--", "sh", "-c", &fresh]);
    assert!(output.status.success(), "{output:?}");
    std::fs::write(file("go"), "").expect("a file");
    kill_process_group(group, Signal::CONT).expect("it is there");
    wait_until(&Env::real(), "the stale write", PATIENCE, async || {
        std::fs::read_to_string(file("writes")).is_ok_and(|writes| writes.lines().count() == 2)
    })
    .await
    .expect("in time");
    kill_process(pid(&paused), Signal::CONT).expect("it is there");

    let output = paused.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock x is lost, ending the command"), "{output:?}");
    let writes = std::fs::read_to_string(file("writes")).expect("writes");
    assert_eq!(fold(&writes, true), "fresh", "with tokens, the newer holder's write stays: {writes}");
    assert_eq!(fold(&writes, false), "stale", "without tokens the older one would have won: {writes}");
}
