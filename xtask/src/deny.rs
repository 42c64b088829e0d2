//! `cargo xtask deny`: licences, advisories and sources of the dependencies, as `deny.toml` wants them.
//!
//! Not a step of `ci`: it asks the network for advisories, and cargo-deny takes long to build.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::run::{cargo, succeed};

pub(crate) fn run() -> Result<()> {
    let version = cargo(&["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !version.success() {
        bail!("cargo-deny is not installed: run `cargo install --locked cargo-deny`, then this again");
    }
    succeed(&mut cargo(&["deny", "--locked", "check"]))
}
