//! Messages by the hundred thousand: killed at random moments, and what millions of them cost in memory.

mod kill;
mod memory;

use std::{path::Path, time::Duration};

use coact_core::{
    env::Env,
    guarantees::Accepted,
    name::{Namespace, Queue, Topic},
    registry::Store,
};
use coact_engine_embedded::{Config, Engine};

/// How many things a test does: as many as the variable says, or a default that takes seconds.
fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

async fn open(config: Config) -> (Engine, Store) {
    let engine = Engine::open(config, Env::real()).await.expect("it opens");
    let store = engine.store(Namespace::default(), Accepted::default());
    (engine, store)
}

fn topic() -> Topic {
    Topic::new("orders").expect("a topic")
}

fn queue() -> Queue {
    Queue::new("mails").expect("a queue")
}

fn config(dir: &Path) -> Config {
    Config::in_dir(dir)
}

/// How many things a second.
fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}
