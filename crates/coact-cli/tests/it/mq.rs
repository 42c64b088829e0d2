//! `coact mq` in a directory: lines in, lines out, and where groups are.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::node::coact;

/// A store of the test's own, one command at a time.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        place.stdout(&["create", "logs", "--partitions", "3"]);
        place
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = coact();
        let at = format!("embedded://{}?segment=1MiB", self.0.path().join("data").display());
        command.arg("mq").args(arguments).env("COACT_AT", at).stdin(Stdio::null());
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

    /// Produces what comes from stdin.
    fn produce(&self, arguments: &[&str], text: &str) -> String {
        let mut command = self.command(&[&["produce", "logs"], arguments].concat());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        process.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        let output = process.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

#[test]
fn lines_come_out_as_they_went_in_and_keys_keep_their_order() {
    let place = Place::new();
    let lines: Vec<String> = (0..20_000).map(|number| format!("program-{} line {number}", number % 17)).collect();
    place.produce(&["--key-separator", " "], &(lines.join("\n") + "\n"));
    let found = place.stdout(&["tail", "logs", "--key-separator", " "]);
    let mut found: Vec<&str> = found.lines().collect();
    let number = |line: &&str| line.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
    for program in 0..17 {
        let key = format!("program-{program} ");
        let of_key = found.iter().filter(|line| line.starts_with(&key));
        assert!(of_key.is_sorted_by_key(number), "{key} is out of order");
    }
    found.sort_by_key(number);
    assert_eq!(found, lines);
    let described = place.rows(&["describe", "logs"]);
    let partitions = described[0]["in_partitions"].as_array().expect("partitions");
    assert_eq!(partitions.iter().filter_map(|one| one["records"].as_u64()).sum::<u64>(), 20_000);
}

#[test]
fn a_group_goes_on_where_it_was_told_and_lags_by_what_is_left() {
    let place = Place::new();
    place.produce(&["--partition", "1"], "a\nb\nc\n");
    place.stdout(&["seek", "readers", "logs", "--to", "1", "--partition", "1"]);
    let lag = place.rows(&["lag", "readers"]);
    let of_one = lag.iter().find(|row| row["partition"] == 1).expect("partition 1");
    assert_eq!((&of_one["committed"], &of_one["lag"]), (&1.into(), &2.into()));
    assert_eq!(place.rows(&["group", "ls"])[0]["group"], "readers");
    let beyond = place.run(&["seek", "readers", "logs", "--to", "9", "--partition", "1"]);
    assert!(!beyond.status.success() && String::from_utf8_lossy(&beyond.stderr).contains("ends at 3"), "{beyond:?}");
    assert_eq!(place.run(&["lag", "nobody"]).status.code(), Some(3));
}

#[test]
fn delayed_lines_wait_and_are_cancelled_by_their_handles() {
    let place = Place::new();
    let ids = place.produce(&["--delay", "1h"], "one\ntwo\n");
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(place.rows(&["delay", "ls", "logs"]).len(), 2);
    place.stdout(&["delay", "cancel", "logs", ids[0]]);
    let left = place.rows(&["delay", "ls", "logs"]);
    assert_eq!((left.len(), &left[0]["id"]), (1, &ids[1].into()));
    assert_eq!(place.run(&["delay", "cancel", "logs", ids[0]]).status.code(), Some(3), "it is gone");
    assert_eq!(place.stdout(&["tail", "logs"]), "", "nothing came early");
}

#[test]
fn delayed_lines_are_all_kept_though_nobody_reads_their_handles() {
    let place = Place::new();
    let mut process = place
        .command(&["produce", "logs", "--delay", "1h"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(process.stdout.take());
    let lines: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    process.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads all of them");
    assert!(process.wait().expect("it ends").success());
    assert_eq!(place.rows(&["delay", "stats", "logs"])[0]["pending"], 20_000);
}

#[test]
fn a_delay_or_a_partition_beyond_all_bounds_is_refused() {
    let place = Place::new();
    let output = place.run(&["produce", "logs", "--delay", "300000000000d", "/proc/self/cmdline", "--null"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("at most ten years ahead"), "{output:?}");
    assert!(!output.status.success());
    for arguments in [&["tail", "logs"][..], &["seek", "readers", "logs", "--to", "earliest"]] {
        let output = place.run(&[arguments, &["--partition", "4294967295"]].concat());
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("has no partition 4294967295"), "{output:?}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let place = Place::new();
    for arguments in [&["tail", "nope"][..], &["describe", "nope"], &["rm", "nope"], &["delay", "ls", "nope"]] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("there is no topic nope"), "{output:?}");
    }
    assert_eq!(place.run(&["create", "logs"]).status.code(), Some(4), "it exists");
}
