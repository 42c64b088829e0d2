//! `cargo xtask bench`: build the node and the bench, and run it.

use std::process::Command;

use anyhow::Result;

use crate::{
    packages,
    run::{cargo, root, succeed},
};

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    succeed(&mut cargo(&["build", "--release", "--locked", "-p", "coact-cli", "-p", "coact-bench"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into).join("release");
    let python = packages::install_peers()?;
    succeed(
        Command::new(target.join("coact-bench"))
            .args(arguments)
            .env("COACT_BENCH_NODE", target.join("coact"))
            .env("COACT_BENCH_PYTHON", python),
    )
}
