//! `coact queue` in a directory: jobs pushed, done by commands, and looked after.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::node::coact;

/// A store of the test's own, one command at a time.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = coact();
        let at = format!("embedded://{}?segment=1MiB", self.file("data").display());
        command.arg("queue").args(arguments).env("COACT_AT", at).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it runs")
    }

    /// What a command that must succeed says.
    fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn rows(&self, arguments: &[&str]) -> Vec<Value> {
        let lines = self.stdout(&[arguments, &["-o", "jsonl"]].concat());
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn number(&self, name: &str) -> u64 {
        self.rows(&["stats", "mail"])[0][name].as_u64().expect("a number")
    }

    /// Pushes what comes from stdin.
    fn push_lines(&self, text: &str) -> String {
        let mut command = self.command(&["push", "mail"]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        process.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        String::from_utf8(process.wait_with_output().expect("it ends").stdout).expect("text")
    }
}

async fn exists(path: &Path) {
    wait_until(&Env::real(), "a file appears", PATIENCE, async || path.exists()).await.expect("in time");
}

fn signal(process: &Child, signal: Signal) {
    kill_process(Pid::from_raw(process.id() as i32).expect("a process"), signal).expect("it runs");
}

#[test]
fn a_command_gets_each_body_and_finds_its_job_in_the_environment() {
    let place = Place::new();
    assert_eq!(place.stdout(&["push", "mail", "first", "second"]), "1\n2\n");
    assert_eq!(place.push_lines("third\nfourth\n"), "3\n4\n");
    place.stdout(&["push", "mail", "--header", "reply-to=me", "fifth"]);
    let script = "read -r body || :; echo \"$COACT_QUEUE $COACT_JOB_ID $COACT_JOB_ATTEMPT $COACT_JOB_TOKEN \
                  $COACT_HEADER_REPLY_TO $body\"";
    let output = place.run(&["work", "mail", "--drain", "--", "sh", "-c", script]);
    assert!(output.status.success(), "{output:?}");
    let expected =
        "mail 1 1 1  first\nmail 2 1 2  second\nmail 3 1 3  third\nmail 4 1 4  fourth\nmail 5 1 5 me fifth\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "5 done, 0 to try again, 0 dead, 0 given back\n");
    assert_eq!((place.number("ready"), place.number("done")), (0, 5));
}

#[test]
fn exit_codes_say_what_becomes_of_a_job() {
    let place = Place::new();
    place.stdout(&["push", "mail", "0", "65", "3"]);
    let script = "read -r code || :; exit $code";
    place.stdout(&["work", "mail", "--drain", "--retry", "1h", "--retry-max", "1h", "--", "sh", "-c", script]);
    let rows = place.rows(&["jobs", "mail"]);
    let shown: Vec<_> =
        rows.iter().map(|row| (row["id"].as_u64(), row["state"].as_str(), row["error"].as_str())).collect();
    let expected = [(2, "dead", "exit code 65"), (3, "delayed", "exit code 3")];
    assert_eq!(shown, expected.map(|(id, state, error)| (Some(id), Some(state), Some(error))));
    assert_eq!(place.rows(&["dead", "mail"]).len(), 1);
    // Out of attempts.
    place.stdout(&["push", "mail", "--max-attempts", "1", "--name", "last", "1"]);
    place.stdout(&["work", "mail", "--drain", "--", "false"]);
    assert_eq!(place.rows(&["dead", "mail"])[1]["name"], "last");
}

#[test]
fn a_command_that_cannot_be_run_costs_no_attempt() {
    let place = Place::new();
    place.stdout(&["push", "mail", "1", "2"]);
    assert_eq!(place.run(&["work", "mail", "--", "/nonexistent"]).status.code(), Some(127));
    assert_eq!(place.run(&["work", "mail", "--", "/etc/passwd"]).status.code(), Some(126));
    let rows = place.rows(&["jobs", "mail", "--state", "ready"]);
    assert!(rows.len() == 2 && rows.iter().all(|row| row["attempts"] == 0), "{rows:?}");
}

#[test]
fn the_dead_come_back_or_go() {
    let place = Place::new();
    place.stdout(&["push", "mail", "a", "b", "c"]);
    place.stdout(&["work", "mail", "--drain", "--", "sh", "-c", "exit 65"]);
    assert_eq!(place.run(&["redrive", "mail"]).status.code(), Some(2), "which ones?");
    assert_eq!(place.stdout(&["redrive", "mail", "2"]), "1\n");
    assert_eq!(place.stdout(&["work", "mail", "--drain", "--", "cat"]), "b");
    assert_eq!(place.stdout(&["purge", "mail", "1", "2"]), "1\n");
    assert_eq!(place.stdout(&["redrive", "mail", "--oldest", "10"]), "1\n");
    assert_eq!(place.stdout(&["work", "mail", "--drain", "--", "cat"]), "c");
    assert_eq!((place.number("dead"), place.number("ready"), place.number("done")), (0, 0, 2));
}

#[test]
fn jobs_wait_for_their_time_unless_promoted_or_cancelled() {
    let place = Place::new();
    place.stdout(&["push", "mail", "--delay", "1h", "later"]);
    place.stdout(&["push", "mail", "--run-at", "2100-01-01T00:00:00Z", "never"]);
    place.stdout(&["push", "mail", "--priority", "9", "urgent"]);
    assert_eq!(place.stdout(&["work", "mail", "--drain", "--", "cat"]), "urgent");
    assert_eq!(place.rows(&["jobs", "mail", "--state", "delayed"])[1]["run_at"], "2100-01-01T00:00:00Z");
    assert!(place.run(&["cancel", "mail", "2"]).status.success());
    assert!(place.run(&["promote", "mail", "1"]).status.success());
    assert_eq!(place.run(&["promote", "mail", "2"]).status.code(), Some(3));
    assert_eq!(place.stdout(&["work", "mail", "--drain", "--", "cat"]), "later");
    let refused = place.run(&["push", "mail", "--run-at", "tomorrow", "x"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn a_named_job_is_pushed_once_and_the_most_urgent_comes_first() {
    let place = Place::new();
    let first = place.rows(&["push", "mail", "--name", "invoice-7", "a"]);
    let again = place.rows(&["push", "mail", "--name", "invoice-7", "a"]);
    assert_eq!((first[0]["created"].as_bool(), again[0]["created"].as_bool()), (Some(true), Some(false)));
    assert_eq!(first[0]["id"], again[0]["id"]);
    place.stdout(&["push", "mail", "--priority", "5", "b"]);
    assert_eq!(place.stdout(&["work", "mail", "--once", "--", "cat"]), "b");
    assert_eq!(place.run(&["push", "mail", "--name", "x", "a", "b"]).status.code(), Some(2));
    assert_eq!(place.run(&["push", "mail", "--priority", "10", "a"]).status.code(), Some(2));
}

#[test]
fn queues_are_made_paused_listed_and_removed() {
    let place = Place::new();
    assert_eq!(place.stdout(&["ls"]), "");
    assert_eq!(place.stdout(&["create", "mail", "--max-attempts", "1"]), "created\n");
    assert_eq!(place.stdout(&["create", "mail", "--max-attempts", "2", "--keep-dead", "1h"]), "changed\n");
    place.stdout(&["push", "mail", "a"]);
    place.stdout(&["pause", "mail"]);
    assert_eq!(place.stdout(&["work", "mail", "--drain", "--", "cat"]), "");
    let row = &place.rows(&["ls"])[0];
    let shown = (&row["queue"], &row["paused"], &row["ready"], &row["max_attempts"], &row["keep_dead_s"]);
    assert_eq!(shown, (&"mail".into(), &true.into(), &1.into(), &2.into(), &3600.into()));
    place.stdout(&["resume", "mail"]);
    assert_eq!(place.stdout(&["work", "mail", "--drain", "--", "cat"]), "a");
    assert!(place.stdout(&["ls"]).starts_with("QUEUE  PAUSED  READY"));
    assert!(place.run(&["rm", "mail"]).status.success());
    assert_eq!(place.run(&["rm", "mail"]).status.code(), Some(3));
    assert_eq!(place.run(&["stats", "mail"]).status.code(), Some(3));
    assert_eq!(place.run(&["jobs", "mail", "--state", "odd"]).status.code(), Some(2));
}

#[tokio::test]
async fn an_interrupt_finishes_what_runs_and_claims_no_more() {
    let place = Place::new();
    place.stdout(&["push", "mail", "1", "2", "3"]);
    let (held, go) = (place.file("held"), place.file("go"));
    let script = format!("touch {}; while [ ! -e {} ]; do sleep 0.02; done; cat", held.display(), go.display());
    let worker = place
        .command(&["work", "mail", "--", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    exists(&held).await;
    signal(&worker, Signal::INT);
    std::fs::write(&go, "").expect("a file");
    let output = worker.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1");
    assert_eq!((place.number("ready"), place.number("done")), (2, 1));
}

#[tokio::test]
async fn a_second_interrupt_ends_commands_and_gives_their_jobs_back() {
    let place = Place::new();
    place.stdout(&["push", "mail", "1"]);
    let held = place.file("held");
    let script = format!("touch {}; exec sleep 600", held.display());
    let said = place.file("said");
    let mut worker = place
        .command(&["work", "mail", "--", "sh", "-c", &script])
        .stderr(File::create(&said).expect("a file"))
        .spawn()
        .expect("it starts");
    exists(&held).await;
    signal(&worker, Signal::TERM);
    let text = || std::fs::read_to_string(&said).expect("text");
    wait_until(&Env::real(), "it says so", PATIENCE, async || text().contains("waiting for 1 jobs"))
        .await
        .expect("in time");
    signal(&worker, Signal::TERM);
    assert!(worker.wait().expect("it ends").success(), "{}", text());
    let row = &place.rows(&["jobs", "mail"])[0];
    assert_eq!((&row["state"], &row["attempts"]), (&"ready".into(), &0.into()));
}

#[tokio::test]
async fn a_killed_worker_leaves_its_job_to_the_next_with_a_higher_token() {
    let place = Place::new();
    place.stdout(&["push", "mail", "1"]);
    let held = place.file("held");
    let script = format!("touch {}; while [ -e {0} ]; do sleep 0.02; done", held.display());
    let mut worker =
        place.command(&["work", "mail", "--lease", "1s", "--", "sh", "-c", &script]).spawn().expect("it starts");
    exists(&held).await;
    worker.kill().expect("it runs");
    worker.wait().expect("it ends");
    let script = "echo $COACT_JOB_ID $COACT_JOB_ATTEMPT $COACT_JOB_TOKEN";
    assert_eq!(place.stdout(&["work", "mail", "--once", "--", "sh", "-c", script]), "1 2 2\n");
    // What the killed one had started ends.
    std::fs::remove_file(&held).expect("there");
}
