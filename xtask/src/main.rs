//! `cargo xtask`: the project's development tasks, one module per command.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a command says to the person who runs it")]

mod bench;
mod ci;
mod codegen;
mod deny;
mod lab;
mod matrix;
mod packages;
mod run;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "coact's development tasks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the tests need (Debian packages), and run all of them
    Test {
        /// Passed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check what the compiler does not: directions between crates, file sizes, paths named in documents
    Tidy,
    /// Everything that must hold before a change lands
    Ci,
    /// Measure coact beside what a user would pick instead: kv, lock, mq, queue, delay, directory, http or id
    Bench {
        /// Passed on: the part, and its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
    /// Cut real clusters apart in network namespaces (as root), and write docs/guarantees.md
    Lab {
        /// Passed on: --engine, --nemesis, --plant, --seed
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every block's scenario on every engine, and write docs/matrix.md
    Matrix,
    /// Check licences, advisories and sources of dependencies (needs `cargo install cargo-deny`)
    Deny,
    /// Generate the etcd v3 wire types and stubs from their `.proto` files
    Codegen {
        /// Change nothing; fail if what is committed is not what would be generated
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run_command(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Test { arguments } => test::run(&arguments),
        Command::Tidy => tidy::run(),
        Command::Ci => ci::run(),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Lab { arguments } => lab::run(&arguments),
        Command::Matrix => matrix::run(),
        Command::Deny => deny::run(),
        Command::Codegen { check: false } => codegen::run(),
        Command::Codegen { check: true } => codegen::check(),
    }
}
