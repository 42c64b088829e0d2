//! `coact`: a node, and every block, from the shell.
//!
//! Data goes to stdout, everything else to stderr. Exit codes are stable: see [`exit`].

mod admin;
mod cmd;
mod context;
mod exit;
mod output;

use clap::{Args, CommandFactory, Parser, Subcommand};
use coact::{KvHandle, Realm, Result, Store};

use crate::{
    context::Contexts,
    exit::Exit,
    output::{Format, Output},
};

/// Distributed-systems building blocks: a node, locks, elections, services, configuration, ids, key-values.
#[derive(Debug, Parser)]
#[command(name = "coact", version, propagate_version = true, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node: the embedded engine behind etcd v3 gRPC, health and metrics, on one port.
    Serve(cmd::serve::Serve),
    /// Write a configuration with tokens on, and print the first token.
    Init(cmd::init::Init),
    /// Run a command under a lock; see who holds and who waits.
    #[command(subcommand)]
    Lock(cmd::lock::Lock),
    /// Run a command as one of many readers, or as the only writer.
    #[command(subcommand)]
    Rw(cmd::rw::Rw),
    /// Run a command with one of N permits.
    #[command(subcommand)]
    Sem(cmd::sem::Sem),
    /// Run a command while leading an election.
    Elect(cmd::elect::Elect),
    /// See who leads.
    Leader(cmd::elect::ShowLeader),
    /// Services and their instances: register, find, watch, drain.
    #[command(subcommand)]
    Dir(cmd::dir::Dir),
    /// Configuration entries, with versions and a way back.
    #[command(subcommand)]
    Config(cmd::config::Config),
    /// Work queues: push jobs, run a command for each, look after the dead.
    #[command(subcommand)]
    Queue(cmd::queue::QueueCommand),
    /// Unique ids: 64-bit ones, dense numbers, ULIDs, UUIDs.
    #[command(subcommand)]
    Id(cmd::id::Id),
    /// Read, write and watch entries.
    #[command(subcommand)]
    Kv(cmd::kv::Kv),
    /// Topics of records: produce, consume, groups and their lags, delayed records.
    #[command(subcommand)]
    Mq(cmd::mq::Mq),
    /// Who may use a node.
    #[command(subcommand)]
    Token(cmd::token::Token),
    /// What tokens allow.
    #[command(subcommand)]
    Role(cmd::role::Role),
    /// Names for nodes and the way to their tokens.
    #[command(subcommand)]
    Context(cmd::context::Context),
    /// Look at one thing after another, from the URL to forgotten locks; exit 1 if one is bad.
    Doctor(cmd::doctor::Doctor),
    /// Show what is held, waited for, led, used and served, again and again.
    Top(cmd::top::Top),
    /// What engines promise, and which blocks that is enough for.
    Guarantees(cmd::guarantees::Guarantees),
    /// See it work: processes over real files, some of them and the node killed in the middle, a proof at the end.
    Tour(cmd::tour::Tour),
    /// What a kind of error means and what to do about it.
    Explain(cmd::explain::Explain),
    /// Completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// One worker of the tour.
    #[command(hide = true)]
    TourWorker(cmd::tour::TourWorker),
    /// One consumer of the tour.
    #[command(hide = true)]
    TourConsumer(cmd::tour::TourConsumer),
}

/// Where the data is and how it is shown.
#[derive(Clone, Debug, Args)]
struct Target {
    /// The engine: coact://host:port/namespace, embedded:///path, etcd://…, redis://…, zookeeper://…, postgres://…
    /// (`coact guarantees` says what each promises). Without it, --context, the variable COACT_AT, the context in use, or coact://127.0.0.1:7070, in this order.
    #[arg(long, value_name = "URL", global = true)]
    at: Option<String>,
    /// A node by the name that `coact context add` gave it.
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
    /// The realm: the unit of atomicity.
    #[arg(long, default_value = "main", global = true)]
    realm: String,
    /// How results are shown.
    #[arg(short, long, value_enum, default_value = "table", global = true)]
    output: Format,
}

impl Target {
    async fn open(&self) -> Result<KvHandle> {
        coact::open(&self.url()?).await
    }

    /// As [`open`](Self::open), with every contract that the engine has.
    async fn open_store(&self) -> Result<Store> {
        coact::open_store(&self.url()?).await
    }

    /// The engine's URL, with the way to a token if a context says it.
    fn url(&self) -> Result<String> {
        if let Some(at) = &self.at {
            return Ok(at.clone());
        }
        if let Some(name) = &self.context {
            return Contexts::load()?.get(name)?.to_url();
        }
        if let Some(at) = std::env::var("COACT_AT").ok().filter(|at| !at.is_empty()) {
            return Ok(at);
        }
        let contexts = Contexts::load()?;
        match &contexts.current {
            Some(name) => contexts.get(name)?.to_url(),
            None => Ok("coact://127.0.0.1:7070".to_owned()),
        }
    }

    fn realm(&self) -> Result<Realm> {
        Realm::new(&self.realm)
    }

    fn output(&self) -> Output {
        Output::new(self.output)
    }
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("the runtime could not be started: {error}"));
            return Exit::FAILURE.into();
        }
    };
    let exit = runtime.block_on(run(cli.command)).unwrap_or_else(|error| {
        output::complain_about(&error);
        Exit::from(&error)
    });
    // What still runs in the background (a node's streams, a signal handler) must not hold the process.
    runtime.shutdown_background();
    exit.into()
}

async fn run(command: Command) -> Result<Exit> {
    match command {
        Command::Serve(serve) => serve.run().await,
        Command::Init(init) => init.run(),
        Command::Lock(lock) => lock.run().await,
        Command::Rw(rw) => rw.run().await,
        Command::Sem(sem) => sem.run().await,
        Command::Elect(elect) => elect.run().await,
        Command::Leader(leader) => leader.run().await,
        Command::Dir(dir) => dir.run().await,
        Command::Config(config) => config.run().await,
        Command::Queue(queue) => queue.run().await,
        Command::Id(id) => id.run().await,
        Command::Kv(kv) => kv.run().await,
        Command::Mq(mq) => mq.run().await,
        Command::Token(token) => token.run().await,
        Command::Role(role) => role.run().await,
        Command::Context(context) => context.run(),
        Command::Doctor(doctor) => doctor.run().await,
        Command::Top(top) => top.run().await,
        Command::Guarantees(guarantees) => guarantees.run().await,
        Command::Tour(tour) => tour.run().await,
        Command::Explain(explain) => explain.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coact", &mut script);
            output::write_bytes(&script);
            Ok(Exit::SUCCESS)
        }
        Command::TourWorker(worker) => worker.run().await,
        Command::TourConsumer(consumer) => consumer.run().await,
    }
}

/// Logs go to stderr; `COACT_LOG` (for example `coact_server=debug`) chooses what is shown.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("COACT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,coact=info,coact_server=info"));
    tracing_subscriber::fmt()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
