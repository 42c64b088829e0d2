//! `cargo xtask test`: installs what the tests need, runs all of them, and adds up what they say.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    packages,
    run::{cargo, show},
};

/// Runs `cargo test` with these arguments, on the workspace unless they choose packages. A bed that cannot start is a
/// failure.
pub(crate) fn run(args: &[String]) -> Result<()> {
    packages::install_missing()?;
    packages::install_tools()?;
    // One failure does not hide the next.
    let mut command = cargo(&["test", "--locked", "--no-fail-fast"]);
    if !choose_packages(args) {
        command.arg("--workspace");
    }
    command.args(args).env("COACT_BEDS", "require");
    let (totals, succeeded) = stream(&mut command)?;
    println!("{totals}");
    ensure!(succeeded, "{} failed", show(&command));
    Ok(())
}

/// Whether there is a `-p` among them; cargo ignores it beside `--workspace`.
fn choose_packages(args: &[String]) -> bool {
    let mut for_cargo = args.iter().take_while(|arg| *arg != "--");
    for_cargo.any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

/// Runs it, shows its output as it comes, and adds up the results.
fn stream(command: &mut Command) -> Result<(Totals, bool)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("running cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut totals = Totals::default();
    // A test may print what is no UTF-8.
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        totals.add(&line);
    }
    Ok((totals, child.wait()?.success()))
}

/// Results of all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    programs: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// Adds `test result: ok. 3 passed; 0 failed; 1 ignored; …`, and passes over every other line.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        self.programs += 1;
        for count in counts.split(';') {
            let Some((number, what)) = count.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { programs, passed, failed, ignored } = self;
        write!(f, "summary: {passed} passed, {failed} failed, {ignored} ignored in {programs} test programs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_chosen_before_the_dashes() {
        let choose = |args: &[&str]| choose_packages(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert!(choose(&["-p", "coact-core"]) && choose(&["--lib", "--package=coact"]));
        assert!(!choose(&[]) && !choose(&["some_test", "--", "-p"]));
    }

    #[test]
    fn adds_up_what_test_programs_say() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test a::test result: ok",
            "test result: FAILED. 40 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 12.80s",
        ] {
            totals.add(line);
        }
        assert_eq!(totals, Totals { programs: 2, passed: 43, failed: 2, ignored: 1 });
        assert_eq!(totals.to_string(), "summary: 43 passed, 2 failed, 1 ignored in 2 test programs");
    }
}
