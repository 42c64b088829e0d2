//! `cargo xtask`: the project's development tasks, one module per command.

mod codegen;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "coact's development tasks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate the etcd v3 wire types and stubs from their `.proto` files
    Codegen {
        /// Change nothing; fail if what is committed is not what would be generated
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Codegen { check: false } => codegen::run(),
        Command::Codegen { check: true } => codegen::check(),
    }
}
