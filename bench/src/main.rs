//! coact beside what a user would pick instead: one machine, one run, one table of ratios.
//!
//! `cargo xtask bench kv|lock|mq|queue|delay|directory|http|id` builds the node and runs this. Absolute times on a shared machine mean nothing; the
//! ratio of two rows of one run means something, and of three runs more. A crate of its own, so that nobody's tests
//! build the peers.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a program that measures the real clock and prints"
)]

mod beanstalkd;
mod delay;
mod directory;
mod engines;
mod floor;
mod http;
mod id;
mod kv;
mod load;
mod lock;
mod mq;
mod nats;
mod peer;
mod queue;

use clap::{Parser, Subcommand};

/// Measures one part.
#[derive(Debug, Parser)]
struct Bench {
    #[command(subcommand)]
    part: Part,
    /// Seconds for each row.
    #[arg(long, default_value_t = 3.0, global = true)]
    seconds: f64,
}

#[derive(Clone, Debug, Subcommand)]
enum Part {
    /// Puts and reads, and a store of a million keys: opening it, and its memory.
    Kv,
    /// Pairs of acquire and release.
    Lock {
        /// Only this store, instead of all: for a profiler. For example embedded:///path or coact://127.0.0.1:7070.
        #[arg(long, value_name = "URL")]
        at: Option<String>,
        /// The lock on these engines instead, beside what a user would pick on the same server.
        #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "at")]
        engine: Vec<engines::Engine>,
    },
    /// Publishing in batches, and reading back.
    Mq,
    /// Jobs: push, claim, ack.
    Queue,
    /// How late delayed records come while others wait.
    Delay {
        /// How many others wait.
        #[arg(long, default_value_t = 1_000_000)]
        pending: usize,
    },
    /// Registrations, and how long until a watcher sees one.
    Directory,
    /// HTTP/JSON next to gRPC.
    Http,
    /// Ids.
    Id,
    /// Opens the store of a million keys.
    #[command(hide = true)]
    Open { url: String, payload: usize },
}

#[tokio::main]
async fn main() {
    let bench = Bench::parse();
    let seconds = std::time::Duration::from_secs_f64(bench.seconds);
    if let Part::Open { url, payload } = &bench.part {
        return kv::open(url, *payload).await;
    }
    println!("{} cores, {} s a row", std::thread::available_parallelism().map_or(0, usize::from), bench.seconds);
    match bench.part {
        Part::Kv => kv::run(seconds).await,
        Part::Lock { at, engine } if engine.is_empty() => lock::run(seconds, at).await,
        Part::Lock { engine, .. } => {
            for engine in engine {
                engines::run(engine, seconds).await;
            }
        }
        Part::Mq => mq::run(seconds).await,
        Part::Queue => queue::run(seconds).await,
        Part::Delay { pending } => delay::run(seconds, pending).await,
        Part::Directory => directory::run(seconds).await,
        Part::Http => http::run(seconds).await,
        Part::Id => id::run(seconds).await,
        Part::Open { .. } => {}
    }
}
