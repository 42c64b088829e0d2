//! `coact mq consume` at a node: members share, go on after one another, and keep the order of keys through failures.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, Stdio},
};

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::node::Node;

async fn place() -> Node {
    let node = Node::start().await;
    node.stdout(&["mq", "create", "logs", "--partitions", "4"]);
    node
}

/// A command at the node that gets lines on stdin.
fn fed(node: &Node, arguments: &[&str], text: &str) -> String {
    let mut command = node.command(arguments);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    process.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = process.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn produce(node: &Node, text: &str) {
    fed(node, &["mq", "produce", "logs", "--key-separator", " "], text);
}

/// `k0 0`, `k1 1`, …, of seven keys.
fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|number| format!("k{} {number}\n", number % 7)).collect()
}

const CONSUME: [&str; 5] = ["mq", "consume", "logs", "--group", "readers"];

fn consume(node: &Node, more: &[&str]) -> Command {
    let mut command = node.command(&[&CONSUME, more].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// The numbers that a consumer printed.
fn numbers(text: &str) -> Vec<u32> {
    text.lines().map(|line| line.rsplit(' ').next().expect("a word").parse().expect("a number")).collect()
}

fn drained(node: &Node) -> Vec<u32> {
    numbers(&node.stdout(&[&CONSUME[..], &["--drain"]].concat()))
}

fn end(process: &Child, signal: Signal) {
    let id = Pid::from_raw(process.id() as i32).expect("a process");
    kill_process(id, signal).expect("it runs");
}

async fn until_lag(node: &Node, what: &str, holds: impl Fn(u64) -> bool) {
    let lag = || {
        // There is no group before somebody has joined.
        let output = node.run(&["mq", "lag", "readers", "-o", "jsonl"]);
        let rows = String::from_utf8(output.stdout).expect("text");
        let rows = rows.lines().map(|row| serde_json::from_str::<serde_json::Value>(row).expect("JSON"));
        output.status.success().then(|| rows.filter_map(|row| row["lag"].as_u64()).sum::<u64>())
    };
    wait_until(&Env::real(), what, PATIENCE, async || lag().is_some_and(&holds)).await.expect("in time");
}

#[tokio::test]
async fn two_members_share_and_every_line_comes_once() {
    let node = place().await;
    let members = [consume(&node, &[]), consume(&node, &[])].map(|mut member| member.spawn().expect("it starts"));
    wait_until(&Env::real(), "both are there", PATIENCE, async || {
        let group = node.run(&["mq", "group", "describe", "readers", "-o", "json"]);
        let group: serde_json::Value = serde_json::from_slice(&group.stdout).unwrap_or_default();
        group["members"].as_array().is_some_and(|members| members.len() == 2) && group["rebalancing"] == false
    })
    .await
    .expect("they join");
    // Of so many keys that every partition has some.
    produce(&node, &(0..5_000).map(|number| format!("k{} {number}\n", number % 97)).collect::<String>());
    until_lag(&node, "all is read", |lag| lag == 0).await;
    let mut found = Vec::new();
    for member in members {
        end(&member, Signal::TERM);
        let output = member.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        let part = numbers(&String::from_utf8(output.stdout).expect("text"));
        assert!(!part.is_empty(), "each has partitions with keys");
        found.extend(part);
    }
    found.sort_unstable();
    assert!(found.into_iter().eq(0..5_000), "some line came twice, or not");
    assert_eq!(drained(&node), [0; 0], "all is committed");
}

#[tokio::test]
async fn what_a_killed_member_had_not_committed_comes_to_the_next() {
    let node = place().await;
    produce(&node, &lines(0..5_000));
    let mut first = consume(&node, &["--ttl", "1s"]).spawn().expect("it starts");
    let mut printed = BufReader::new(first.stdout.take().expect("piped"));
    let mut line = String::new();
    printed.read_line(&mut line).expect("it prints");
    first.kill().expect("it runs");
    first.wait().expect("it ends");
    printed.read_to_string(&mut line).expect("text");
    // The last line may be cut off.
    let whole = line.rfind('\n').map_or(0, |end| end + 1);
    let mut found: BTreeSet<u32> = numbers(&line[..whole]).into_iter().collect();
    found.extend(drained(&node));
    assert!(found.into_iter().eq(0..5_000), "some line is lost");
}

/// Who reads no more has not got what was not written: it comes again.
#[tokio::test]
async fn only_what_was_written_is_committed() {
    let node = place().await;
    produce(&node, &lines(0..200_000));
    let mut first = consume(&node, &[]).spawn().expect("it starts");
    let mut printed = BufReader::new(first.stdout.take().expect("piped"));
    let mut text = String::new();
    for _ in 0..10 {
        printed.read_line(&mut text).expect("it prints");
    }
    drop(printed);
    assert!(first.wait().expect("it ends").success(), "as other commands do");
    let rest = drained(&node);
    assert!(
        rest.len() < 200_000 && rest.len() > 100_000,
        "a pipe and some buffers are written, not all: {}",
        rest.len()
    );
    let max = node.stdout(&[&CONSUME[..4], &["others", "--max", "7"]].concat());
    assert_eq!(max.lines().count(), 7);
    let others = node.stdout(&[&CONSUME[..4], &["others", "--drain"]].concat());
    assert_eq!(others.lines().count(), 200_000 - 7, "the control: what was written is committed");
}

#[tokio::test]
async fn a_key_that_fails_is_parked_and_comes_back_in_order() {
    let node = place().await;
    produce(&node, &lines(0..70));
    let work = tempfile::tempdir().expect("a directory");
    let (done, broken) = (work.path().join("done"), work.path().join("broken"));
    std::fs::write(&broken, "").expect("written");
    let script = format!(
        "read line; [ \"$COACT_KEY\" = k3 ] && [ -e {} ] && exit 1; echo \"$COACT_KEY $line\" >> {}",
        broken.display(),
        done.display()
    );
    let command = ["--attempts", "2", "--retry", "10ms", "--concurrency", "4", "--drain", "--", "sh", "-c", &script];
    node.stdout(&[&CONSUME[..], &command].concat());
    let keys = |key: &str| {
        let text = std::fs::read_to_string(&done).expect("written");
        let of_key = text.lines().filter(|line| line.starts_with(key)).collect::<Vec<_>>().join("\n");
        numbers(&of_key)
    };
    let expected = |key: u32| (0..70).filter(|number| number % 7 == key).collect::<Vec<_>>();
    assert_eq!((keys("k3"), keys("k2")), (vec![], expected(2)), "the others go on");
    let parked = node.stdout(&["mq", "parked", "readers", "-o", "jsonl"]);
    let parked: serde_json::Value = serde_json::from_str(parked.trim()).expect("one key");
    assert_eq!((&parked["key"], &parked["waiting"], &parked["attempts"]), (&"k3".into(), &10.into(), &2.into()));
    assert_eq!(parked["error"], "exit code 1");

    let wrong = node.run(&["mq", "redrive", "readers", "--topic", "logs", "--key", "k2"]);
    assert_eq!(wrong.status.code(), Some(3), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("key k2 is not parked"), "{wrong:?}");
    assert!(!node.run(&["mq", "redrive", "readers"]).status.success(), "which is not said");
    std::fs::remove_file(&broken).expect("mended");
    node.stdout(&["mq", "redrive", "readers", "--topic", "logs", "--key", "k3"]);
    let member = consume(&node, &["--", "sh", "-c", &script]).spawn().expect("it starts");
    wait_until(&Env::real(), "it is done", PATIENCE, async || {
        node.stdout(&["mq", "parked", "readers", "-o", "jsonl"]).is_empty()
    })
    .await
    .expect("it comes back");
    end(&member, Signal::INT);
    assert!(member.wait_with_output().expect("it ends").status.success());
    assert_eq!(keys("k3"), expected(3), "in their order");
}

/// The first signal lets a command end, the second ends it; what it was given comes again.
#[tokio::test]
async fn a_command_that_is_ended_leaves_its_record_to_the_next() {
    let node = place().await;
    produce(&node, "k 1\n");
    let work = tempfile::tempdir().expect("a directory");
    let begun = work.path().join("begun");
    let script = format!("echo >> {}; sleep 600", begun.display());
    let mut member = consume(&node, &["--attempts", "1", "--", "sh", "-c", &script]);
    let mut member = member.stderr(Stdio::piped()).spawn().expect("it starts");
    let mut told = BufReader::new(member.stderr.take().expect("piped"));
    wait_until(&Env::real(), "it runs", PATIENCE, async || begun.exists()).await.expect("it runs");
    end(&member, Signal::TERM);
    let mut line = String::new();
    while !line.contains("waiting for 1 commands") {
        assert_ne!(told.read_line(&mut line).expect("text"), 0, "{line}");
    }
    end(&member, Signal::TERM);
    assert!(member.wait().expect("it ends").success());
    assert_eq!(drained(&node), [1], "it is not parked, and not done");
    assert_eq!(node.stdout(&["mq", "parked", "readers"]), "");
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let node = place().await;
    produce(&node, "k 1\n");
    for (more, code, message) in [
        (&["--", "/nonexistent"][..], 127, "/nonexistent cannot be run"),
        (&["--", "/etc/passwd"], 126, "/etc/passwd cannot be run"),
        (&["--policy", "give-up", "--", "true"], 2, "use park, block, dead, or retry:DELAY:ROUNDS"),
        (&["--max", "1", "--", "true"], 2, "cannot be used with"),
        (&["nope"], 3, "there is no topic nope"),
    ] {
        let output = consume(&node, more).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && told.contains(message), "{more:?}: {output:?}");
    }
    assert_eq!(drained(&node), [1], "nothing of it did anything");
}

/// Delayed lines come when they are due, to whoever follows.
#[tokio::test]
async fn delayed_lines_come_to_who_follows() {
    let node = place().await;
    let mut tail = node.command(&["mq", "tail", "logs", "-f", "--from", "earliest", "--max", "2"]);
    let tail = tail.stdout(Stdio::piped()).spawn().expect("it starts");
    fed(&node, &["mq", "produce", "logs", "--delay", "300ms"], "late\n");
    fed(&node, &["mq", "produce", "logs", "--partition", "2"], "now\n");
    let output = tail.wait_with_output().expect("it ends");
    let mut found: Vec<_> = std::str::from_utf8(&output.stdout).expect("text").lines().collect();
    found.sort_unstable();
    assert_eq!(found, ["late", "now"]);
    let of_two = node.stdout(&["mq", "tail", "logs", "--partition", "2", "--from", "0"]);
    assert!(of_two.contains("now"), "{of_two}");
    let later = node.stdout(&["mq", "tail", "logs", "--from", "2100-01-01T00:00:00Z"]);
    assert_eq!(later, "");
}

/// Who follows says that the node is away, and goes on when it is back.
#[tokio::test]
async fn who_follows_outlives_the_node() {
    let mut node = place().await;
    produce(&node, "k 1\n");
    let mut tail = node.command(&["mq", "tail", "logs", "-f", "--from", "earliest", "--max", "2"]);
    let mut tail = tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut told = BufReader::new(tail.stderr.take().expect("piped"));
    let mut printed = BufReader::new(tail.stdout.take().expect("piped"));
    let mut line = String::new();
    printed.read_line(&mut line).expect("it prints");
    node.crash();
    let mut away = String::new();
    while !away.contains("waiting for it") {
        assert_ne!(told.read_line(&mut away).expect("text"), 0, "{away}");
    }
    node.restart().await;
    produce(&node, "k 2\n");
    printed.read_line(&mut line).expect("it prints");
    assert_eq!(line, "1\n2\n");
    assert!(tail.wait().expect("it ends").success());
}

/// A group with members goes on where they are.
#[tokio::test]
async fn a_group_with_members_is_not_sought() {
    let node = place().await;
    produce(&node, &lines(0..10));
    let member = consume(&node, &[]).spawn().expect("it starts");
    until_lag(&node, "all is read", |lag| lag == 0).await;
    let seek = ["mq", "seek", "readers", "logs", "--to", "earliest"];
    let refused = node.run(&seek);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("has 1 members"),
        "{refused:?}"
    );
    end(&member, Signal::TERM);
    assert!(member.wait_with_output().expect("it ends").status.success());
    node.stdout(&seek);
    assert_eq!(drained(&node).len(), 10);
}
