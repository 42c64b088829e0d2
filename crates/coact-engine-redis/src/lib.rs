//! coact's engine over Redis 6.2 or newer, and Valkey: one server, Sentinel, or a Cluster.
//!
//! ```text
//! redis://[user:password@]host[:6379][,host…]/namespace[?option=value…]      one server, or a Cluster
//! redis://[user:password@]host[:26379][,host…]/namespace?sentinel=NAME       the primary that Sentinels know as NAME
//! rediss://…, valkey://…, valkeys://…                                        the same; an s at the end means TLS
//! ```
//!
//! * `sentinel=NAME`: the hosts are Sentinels; `sentinel_user`, `sentinel_password` if those ask for them. A Cluster is
//!   recognised by itself.
//! * `timeout` (5s): how long one request may take, with every repetition that the engine makes on its own. Only
//!   reads, idempotent requests, and requests that the server refused untouched are repeated.
//! * `connect_timeout` (2s): how long one server may take to accept a connection before the next one is tried.
//! * `history` (4096): how many changes are kept for watches that come back. Each holds the value that was written.
//! * `ca=PATH` trusts this authority instead of the system's; `cert=PATH` and `key=PATH` show a certificate of our own.
//! * The password may be `env:NAME` or `file:PATH`. Without a user it is Redis's default user's.
//!
//! **What lies where.** Every key begins with `coact:{namespace}`, so that a namespace is in one slot of a Cluster; the
//! head of `src/scripts/common.lua` lists them. A user of an ACL needs `~coact:{namespace}* &coact:{namespace}*
//! +@all -@dangerous +info +config|get`; without `config|get` the engine declares what it can see.
//!
//! **One request, one script.** A script decides by the server's clock which leases have ended, and ends them before it
//! does anything else; every client also asks for that about once a second. All requests of a handle share one
//! connection, on which the server also tells what has gone and what has changed.
//!
//! **What it promises** depends on the server: `appendfsync always` makes writes durable; a replica means that a
//! failover may lose acknowledged writes, for Redis answers before it replicates. After a restart or a failover,
//! revisions go on 2³² above all that were given, so that fencing tokens never go back. A server that may evict keys is
//! refused. Leases follow the server's wall clock: a clock that leaps forward ends leases early, which the fencing token
//! is for.

mod config;
mod connection;
mod errors;
mod feed;
mod kv;
mod probe;
mod reply;
mod scripts;
mod topology;

/// The driver for the schemes `redis`, `rediss`, `valkey` and `valkeys`.
pub fn driver() -> coact_core::registry::Driver {
    coact_core::registry::Driver {
        schemes: &["redis", "rediss", "valkey", "valkeys"],
        open: |url, env| Box::pin(async move { Ok(kv::open(url, env).await?.into()) }),
    }
}
