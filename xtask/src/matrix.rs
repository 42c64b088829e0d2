//! `cargo xtask matrix`: runs every block's scenario on every engine, and writes down what happened.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context, Result, ensure};

use crate::{
    packages,
    run::{cargo, root},
};

const FILE: &str = "docs/matrix.md";
const ENGINES: [&str; 9] =
    ["memory", "embedded", "etcd", "node", "redis", "redis_sentinel", "redis_cluster", "zookeeper", "postgres"];

/// The scenarios of topics and queues, and the engines that have those.
const MESSAGES: [&str; 2] = ["queues", "topics"];
const WITH_MESSAGES: [&str; 3] = ["memory", "embedded", "node"];

pub(crate) fn run() -> Result<()> {
    packages::install_missing()?;
    let output = cargo(&["test", "--locked", "-p", "coact-cli", "--test", "it", "--", "engines::"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("running the scenarios")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let results = results(&text);
    ensure!(!results.is_empty(), "no scenario ran:\n{text}");
    fs::write(root().join(FILE), page(&results)).with_context(|| format!("writing {FILE}"))?;
    println!("wrote {FILE}");
    ensure!(output.status.success(), "a scenario failed:\n{text}");
    Ok(())
}

/// Scenario → engine → what the test program said.
type Results = BTreeMap<String, BTreeMap<String, String>>;

/// Reads `test engines::mutex::etcd ... ok`, and passes over every other line.
fn results(text: &str) -> Results {
    let mut results = Results::new();
    for line in text.lines() {
        let Some((name, result)) = line.strip_prefix("test engines::").and_then(|rest| rest.split_once(" ... ")) else {
            continue;
        };
        if let Some((scenario, engine)) = name.split_once("::") {
            results.entry(scenario.to_owned()).or_default().insert(engine.to_owned(), result.to_owned());
        }
    }
    results
}

fn page(results: &Results) -> String {
    let mut page = String::from(
        "# Scenarios × engines\n\nWritten by `cargo xtask matrix`, which runs each scenario of\n\
         `crates/coact-cli/tests/it/engines.rs` on each engine, with two handles as two processes have them. `memory` is\n\
         opened with `?accept=volatile`: without it every row but `directory` is refused, which a test there shows. –: not on this engine.\n\n",
    );
    let _ = writeln!(page, "| scenario | {} |\n|---|{}", ENGINES.join(" | "), "---|".repeat(ENGINES.len()));
    for (scenario, engines) in results {
        let absent = |engine: &str| MESSAGES.contains(&scenario.as_str()) && !WITH_MESSAGES.contains(&engine);
        let cell = |engine: &&str| match engines.get(*engine) {
            Some(result) => result.clone(),
            None => if absent(engine) { "–" } else { "not run" }.to_owned(),
        };
        let _ = writeln!(page, "| {scenario} | {} |", ENGINES.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_ran_and_what_did_not() {
        let results =
            results("running 2 tests\ntest engines::mutex::etcd ... ok\ntest engines::ids::node ... FAILED\n");
        let page = page(&results);
        assert!(
            page.ends_with(&format!(
                "| ids | not run | not run | not run | FAILED |{0}\n| mutex | not run | not run | ok | not run |{0}\n",
                " not run |".repeat(ENGINES.len() - 4)
            )),
            "{page}"
        );
    }

    #[test]
    fn what_an_engine_has_not_got_is_told_from_what_did_not_run() {
        let page = page(&results("test engines::topics::memory ... ok\n"));
        assert!(page.contains("| topics | ok | not run | – | not run | – |"), "{page}");
    }
}
