//! Every example runs and says what it should.

use std::{path::PathBuf, process::Command};

/// Where cargo puts examples: beside the directory of the tests.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    test.parent().and_then(|deps| deps.parent()).expect("a target directory").join("examples").join(name)
}

fn run(name: &str) -> String {
    let program = program(name);
    let output = Command::new(&program)
        .env_remove("COACT_AT")
        .output()
        .unwrap_or_else(|error| panic!("{} ({error}): build it with cargo build --examples", program.display()));
    assert!(output.status.success(), "{name}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_examples_do_what_they_say() {
    for (name, says) in [
        ("lock", "held with token "),
        ("rwlock", "one writer, token "),
        ("semaphore", "10 jobs, at most "),
        ("election", "10.0.0.7:8081 leads, token "),
        ("directory", "ask 10.0.0."),
        ("settings", "version 3: EUR"),
        ("id", "dense [1, 2, 3]"),
    ] {
        let output = run(name);
        assert!(output.contains(says), "{name}: {output}");
    }
}

#[test]
fn no_example_is_left_out() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .expect("a directory")
        .filter_map(|entry| entry.expect("an entry").file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    found.sort();
    assert_eq!(found, ["directory", "election", "id", "lock", "rwlock", "semaphore", "settings"]);
}
