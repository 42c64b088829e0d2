//! coact's engine over PostgreSQL 13 or newer.
//!
//! ```text
//! postgres://user[:password]@host[:5432][,host…]/namespace[?database=NAME&schema=coact&pool=8&timeout=5s&connect_timeout=2s]
//! ```
//!
//! * The path is coact's namespace. `database` (the user's name) is where coact keeps its tables, in the `schema`
//!   (`coact`), beside your own.
//! * Of several hosts, the one that takes writes is used. After a failover the next request looks for it again.
//! * The password may be `env:NAME` or `file:PATH`, which are read when the URL is opened.
//! * `pool` (8): how many connections a handle keeps for requests at most. One more listens.
//! * `timeout` (5s): how long one request may take, with every repetition that the engine makes on its own. Only reads
//!   and requests that certainly changed nothing, or change nothing when they happen twice, are repeated.
//! * `connect_timeout` (2s): how long one server may take to accept a connection.
//! * `tls=true`: speak TLS, and nothing else; `ca=PATH` trusts this authority instead of the system's, `cert=PATH` and
//!   `key=PATH` show a certificate of our own, `server_name=NAME` is what the server's certificate must say instead of
//!   the host.
//! * `application_name` (`coact`): what `pg_stat_activity` shows.
//!
//! # What lies where
//! The table `entry` has the entries, `lease` the leases, `realm` the revision of each realm, `change` the history that
//! watches read (ten minutes, and at most 100 000 revisions of a realm), `fence` the tokens seen by
//! `coact.fence(resource, token)`, `version` the version of all this. Read them with SQL as you like; write with coact.
//!
//! Whoever opens a store first makes the schema, and needs the right to do so; later ones need only its use:
//! ```sql
//! CREATE SCHEMA coact AUTHORIZATION app;  -- for the role that makes it, unless it may CREATE in the database
//! GRANT USAGE ON SCHEMA coact TO other;   -- for others, once it is made
//! GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA coact TO other;
//! GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA coact TO other;
//! ```
//! A newer coact migrates the schema when it opens it; an older one then refuses it.
//!
//! # What is promised
//! A transaction is one call of a function, which locks the row of its realm until the commit: so revisions are in
//! the order of commits, and realms do not hold up each other. What an acknowledged write survives follows the server's
//! settings for this role (`fsync`, `synchronous_commit`, standbys), which are read when the URL is opened and not
//! changed. Failover keeps writes if there is a synchronous standby, or no standby at all; a standby that was added later
//! is not noticed until the URL is opened again. With `synchronous_commit=off` the declared window of loss is meant for a
//! crash of the server's processes too, not for a power cut alone.
//!
//! Leases live by the database's clock. Each handle ends those whose time is over within about a second; whoever comes
//! across one earlier ends it then, so an entry is never seen after its lease.
//!
//! Changes are told with `NOTIFY`, outside of the transactions that make them, and a look each second makes up for one that
//! is lost. Behind a pooler in transaction mode (pgbouncer) nothing can be told: that is noticed at open, declared, and
//! watches look ten times a second instead. Nothing else needs a session of its own: no prepared statements, no session
//! locks, no settings.
//!
//! # Your own transactions
//! [`PostgresKv`] lets a transaction of coact commit with your own, and names the statement that refuses the writes of a
//! lock's earlier holder in your own tables.

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
    coact_core::registry::Driver {
        schemes: &["postgres", "postgresql"],
        open: |url, env| Box::pin(async move { Ok(kv::open(url, env).await?.into()) }),
    }
}
