//! The embedded engine: one append-only commit log, and deterministic state machines folded from it.
//!
//! ```text
//!   callers ──► queue ──► writer: apply ► encode ► append ► sync ► show ► answer
//!                           │                 │                     │
//!                           ▼                 ▼                     ▼
//!                        state (MVCC)     log/ segments        hub: watches, waiters
//!                           ▲                 │
//!                           └── snapshot ◄────┘  (recovery: newest snapshot, then the log after it)
//! ```
//!
//! What must never be: an acknowledgement before the sync that the durability names; a reader that sees what a crash
//! could take back; a byte read from disk whose checksum was not verified; an engine that goes on after a failed write.

mod body;
mod claims;
mod commit;
mod compaction;
mod engine;
pub mod flat;
mod frame;
mod handover;
mod kv;
mod log;
mod message;
mod paged;
mod queue;
mod snapshot;
mod state;
mod stream;
mod watch;
mod work;
mod writer;

use coact_core::{
    Result,
    env::Env,
    name::Namespace,
    registry::{Driver, Store},
    url::Url,
};

pub use engine::{Config, Engine, History, Stats, parse_durability};
pub use log::FAILPOINTS;
pub use watch::{Delivery, Watcher};

/// Answers to `embedded:///path` and `memory:`.
pub fn driver() -> Driver {
    Driver { schemes: &["embedded", "memory"], open: |url, env| Box::pin(open(url, env)) }
}

async fn open(url: Url, env: Env) -> Result<Store> {
    let namespace = url.option("namespace").map_or(Ok(Namespace::default()), Namespace::new)?;
    let accepted = url.accepted()?;
    let engine = Engine::open(Config::from_url(&url)?, env).await?;
    Ok(engine.store(namespace, accepted))
}
