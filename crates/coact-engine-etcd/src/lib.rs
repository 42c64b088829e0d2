//! coact's engine over etcd v3 gRPC: for etcd 3.4 or newer, and for a coact node, which speaks the same protocol.
//!
//! ```text
//! etcd://host[:2379][,host…]/namespace[?timeout=5s&connect_timeout=2s]
//! coact://host[:7070][,host…]/namespace[?timeout=5s&connect_timeout=2s]
//! ```
//!
//! * `timeout` (5s): how long one request may take, with every repetition that the engine makes on its own. Only reads
//!   and requests that were certainly not sent, or that change nothing when they happen twice, are repeated.
//! * `connect_timeout` (2s): how long one server may take to accept a connection before the next one is tried.
//!
//! * `tls=true`: speak TLS; `ca=PATH` trusts this authority instead of the system's, `cert=PATH` and `key=PATH` show a
//!   certificate of our own, `server_name=NAME` is what the server's certificate must say instead of the host.
//! * `token=env:NAME`, `token=file:PATH` or the text itself, for a coact node; `user:password@` for etcd, where the
//!   password may be `env:NAME` or `file:PATH` too. The files and variables are read when the URL is opened.
//!
//! Keys live under `namespace/realm/dir//name`, so that `etcdctl get --prefix namespace/realm/dir//` lists a dir. Each
//! lease that is granted here also holds the key `namespace/.lease//ID`, which is how a transaction checks that the
//! lease is alive. Do not delete those by hand.
//!
//! `etcd://` has the Kv contract. `coact://` also has streams and queues, over services of the node's own
//! (`coact.v1`), with the guarantees that the node declares; one of an earlier version has Kv only.
//!
//! One handle keeps a few connections for requests, and over them **one** watch stream for every watch and every
//! waiter, **one** keep-alive stream for every lease, and **one** session each for streams and for queues, which carries
//! what is asked often. All of them move to the next server when theirs fails.

mod config;
mod connection;
mod credentials;
mod errors;
mod http;
mod kv;
mod lease;
pub mod messages;
mod node;
mod watch;
pub mod wire;

use std::sync::Arc;

use coact_core::{
    Result,
    env::Env,
    registry::{Driver, Store},
    url::Url,
};

pub use http::{Answer, NodeHttp};

use crate::{
    config::{Config, Flavour},
    connection::Connections,
};

/// The driver for the schemes `etcd`, which has the Kv contract, and `coact`, which has those of the node.
pub fn driver() -> Driver {
    Driver { schemes: &["etcd", "coact"], open: |url, env| Box::pin(open(url, env)) }
}

async fn open(url: Url, env: Env) -> Result<Store> {
    let config = Config::from_url(&url)?;
    let accepted = url.accepted()?;
    let flavour = config.flavour;
    let connections = Arc::new(Connections::new(config, env)?);
    connections.log_in().await?;
    let kv = kv::open(connections.clone(), accepted.clone()).await?;
    match flavour {
        Flavour::Etcd => Ok(kv.into()),
        Flavour::Node => node::open(&connections, kv, accepted).await,
    }
}
