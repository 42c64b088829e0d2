//! `cargo xtask bench`: build the node and the bench, and run it.

use anyhow::Result;

use crate::{root, run as run_program, run_with};

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    run_program("cargo", &["build", "--release", "--locked", "-p", "coact-cli", "-p", "coact-bench"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let program = |name: &str| target.join("release").join(name).to_string_lossy().into_owned();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run_with(&program("coact-bench"), &arguments, &[("COACT_BENCH_NODE", &program("coact"))])
}
