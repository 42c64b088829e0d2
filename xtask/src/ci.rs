//! `cargo xtask ci`: everything that must hold before a change is merged, quickest first.

use anyhow::{Context, Result};

use crate::{
    codegen, lab,
    run::{cargo, succeed},
    test, tidy,
};

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 7] = [
    ("format", format),
    ("tidy", tidy::run),
    ("generated code", codegen::check),
    ("lints", lints),
    ("documentation", documentation),
    ("tests", || test::run(&[])),
    ("lab", lab::check),
];

pub(crate) fn run() -> Result<()> {
    for (name, step) in STEPS {
        println!("ci: {name}");
        step().with_context(|| format!("ci: {name} failed"))?;
    }
    println!("ci: all {} steps passed", STEPS.len());
    Ok(())
}

fn format() -> Result<()> {
    succeed(&mut cargo(&["fmt", "--all", "--check"]))
}

fn lints() -> Result<()> {
    succeed(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    // Without engines, the facade must still be whole.
    succeed(&mut cargo(&["clippy", "-p", "coact", "--no-default-features", "--locked", "--", "-D", "warnings"]))
}

fn documentation() -> Result<()> {
    succeed(cargo(&["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))
}
