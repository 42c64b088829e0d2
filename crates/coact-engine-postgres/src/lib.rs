//! coact's engine over PostgreSQL 13 or newer.

mod config;
mod connection;
mod errors;
mod history;
mod kv;
mod lease;
mod listen;
mod probe;
mod schema;
mod tls;
mod txn;
mod watch;

pub use kv::PostgresKv;
pub use tokio_postgres;

/// The driver for the schemes `postgres` and `postgresql`.
pub fn driver() -> coact_core::registry::Driver {
    coact_core::registry::Driver { schemes: &["postgres", "postgresql"], open: |url, env| Box::pin(kv::open(url, env)) }
}
