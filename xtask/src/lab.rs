//! `cargo xtask lab`: builds the lab and runs it; it needs root, for network namespaces.

use std::process::Command;

use anyhow::Result;

use crate::{
    packages,
    run::{cargo, root, succeed},
};

/// Cuts real clusters apart, and writes docs/guarantees.md.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    succeed(&mut lab(arguments)?)
}

/// The same without writing, so that the tree stays as it was committed.
pub(crate) fn check() -> Result<()> {
    succeed(lab(&[])?.arg("--check"))
}

fn lab(arguments: &[String]) -> Result<Command> {
    packages::install_missing()?;
    succeed(&mut cargo(&["build", "--locked", "-p", "coact-lab"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let mut command = Command::new(target.join("debug/coact-lab"));
    command.args(arguments).current_dir(root());
    Ok(command)
}
