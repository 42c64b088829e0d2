//! A coact node: the embedded engine behind one port that speaks etcd v3 gRPC, coact's own for streams and queues, health
//! and metrics.
//!
//! ```text
//!            one port, 127.0.0.1:7070
//!   (TLS) ─► HTTP/1.1, HTTP/2 ─► http ─► auth ─┬─► pages    /healthz /readyz /metrics /health /version
//!                                              ├─► auth     /v1/auth
//!                                              └─► grpc ──► check ► access ► convert ► engine ► convert
//!                                                    │        (kv watch lease cluster maintenance lock election)
//!                                                    │  desk ──► engine     (streams queues, unary and in a session)
//!                                                    └─ metrics: every call is counted by one layer
//! ```
//!
//! | path | who asks | answer |
//! |---|---|---|
//! | `/etcdserverpb.*`, `/v3lockpb.Lock`, `/v3electionpb.Election` | etcdctl, every etcd v3 client, `coact://` | gRPC |
//! | `/coact.v1.Streams`, `/coact.v1.Queues` | `coact://`, every gRPC client | gRPC: the stream and queue contracts |
//! | `/healthz` | what restarts the node | 503 once a failed write stopped the engine: a restart recovers it |
//! | `/readyz` | what routes to the node | 503 also while it shuts down |
//! | `/metrics` | Prometheus | every metric begins with `coact_` |
//! | `/health`, `/version` | what was made for etcd | in etcd's format |
//! | `/v1/auth/tokens`, `/v1/auth/roles` | admins | JSON: who may do what |
//!
//! With [`auth`] on, everything but the pages of health and version asks for a token: `Authorization: Bearer TOKEN`, or
//! what etcd's clients send after `Authenticate`, whose password is a token. What a token allows is checked for every
//! part of every request; what is denied is answered in etcd's words.
//!
//! To an etcd client a node is a cluster of one member that is always its leader, at raft term 2. A script of some three
//! hundred calls gets the same answers from it as from etcd 3.4.23 (`tests/it/differential.rs`), but for these, each on
//! purpose: snapshots, hashes, members and users of etcd's kind are refused with `Unimplemented` and what to do instead; a lease may be
//! as short as one second (etcd's depends on its election timeout); a transaction may not put a key that it deletes by
//! "from this key on", and may not name an order or a comparison that does not exist; a progress request is answered
//! only when every watch of its stream has caught up, as newer etcds do; who waits for a lock while its lease ends is
//! told at once; and a message past every limit is refused as `OutOfRange`, where Go says `ResourceExhausted`.
//!
//! What must never be: an answer before the engine has acknowledged; a buffer that grows with a slow client (a stream
//! is polled by its connection, so a client that does not read stops only itself); a listener that the network can
//! reach without both TLS and tokens, unless it is DNS, which has neither, and was asked for by name
//! ([`DnsConfig::open`]).
//!
//! Beside the port, a node answers DNS on an address of its own ([`DnsConfig`]), and checks the health of instances
//! ([`ChecksConfig`]).
//!
//! ```no_run
//! # async fn example() -> coact_core::Result<()> {
//! use coact_core::env::Env;
//! use coact_engine_embedded::Config;
//! use coact_server::{Server, ServerConfig};
//!
//! let server = Server::start(ServerConfig::new(Config::in_dir("./coact-data")), Env::real()).await?;
//! println!("etcdctl --endpoints={} put greeting hello", server.address());
//! server.shutdown().await
//! # }
//! ```

mod api;
pub mod auth;
mod checks;
mod dns;
mod grpc;
mod http;
mod lifecycle;
mod metrics;
pub mod settings;
mod tls;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use coact_core::{Error, ErrorKind, Result, env::Env, guarantees::Accepted};
use coact_engine_embedded::{Config, Engine};
use tokio::net::TcpListener;
use tracing::{info, warn};

pub use checks::{ChecksConfig, Prefix};
pub use dns::{DEFAULT_DNS_PORT, DnsConfig};
pub use tls::TlsConfig;

use crate::{
    api::Api,
    auth::{Auth, AuthConfig},
    checks::Checks,
    grpc::Node,
    http::Port,
    lifecycle::Lifecycle,
    metrics::Metrics,
    tls::Tls,
};

/// What the node says it is where etcd names its version: the protocol level that it is tested against, which clients
/// parse as a semantic version and compare, with coact named in the build part, which no comparison looks at.
pub const ETCD_VERSION: &str = "3.4.23+coact";

/// The port that a node listens on if nobody says otherwise.
pub const DEFAULT_PORT: u16 = 7070;

/// How a node is started.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens: on loopback, unless it has both TLS and tokens. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The engine behind it.
    pub engine: Config,
    /// What it puts up with.
    pub limits: Limits,
    /// The weaknesses of the engine that its blocks over HTTP live with.
    pub accepted: Accepted,
    /// Whether it asks who is there.
    pub auth: AuthConfig,
    /// Whether connections are secret.
    pub tls: Option<TlsConfig>,
    /// Whether it answers DNS.
    pub dns: Option<DnsConfig>,
    /// Which instances of services it checks.
    pub checks: ChecksConfig,
    /// The commands that checks can name: a program and its arguments each, run without a shell.
    pub check_commands: BTreeMap<String, Vec<String>>,
}

impl ServerConfig {
    /// A node on `127.0.0.1:7070` with this engine and the default limits.
    pub fn new(engine: Config) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            engine,
            limits: Limits::default(),
            accepted: Accepted::default(),
            auth: AuthConfig::default(),
            tls: None,
            dns: None,
            checks: ChecksConfig::default(),
            check_commands: BTreeMap::new(),
        }
    }
}

/// Bounds on what clients can make a node hold or wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at once; a further one is closed at once.
    pub connections: u32,
    /// The most gRPC calls at once on one connection; a client that waits for many locks holds a call for each.
    pub calls_per_connection: u32,
    /// How long a client may take for the first bytes and for the header of a request.
    pub header_time: Duration,
    /// The most bytes of a request's header; at least 8 KiB.
    pub header_bytes: u32,
    /// The most bytes of the body of an HTTP request.
    pub body_bytes: usize,
    /// The most bytes of a write, as in etcd: past it comes "request is too large".
    pub request_bytes: usize,
    /// The most bytes of any gRPC message; past it the message is not even read.
    pub message_bytes: usize,
    /// The most comparisons, and the most operations in one branch, of a transaction.
    pub txn_ops: usize,
    /// How often HTTP/2 connections are pinged.
    pub ping_every: Duration,
    /// How long a ping may stay unanswered.
    pub ping_timeout: Duration,
    /// How often a quiet watch that asked for it is told how far it is.
    pub progress_every: Duration,
    /// How long a shutdown waits for running requests.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            calls_per_connection: 4_096,
            header_time: Duration::from_secs(10),
            header_bytes: 16 * 1024,
            body_bytes: 1024 * 1024,
            request_bytes: 1536 * 1024,
            message_bytes: 2048 * 1024,
            txn_ops: 128,
            ping_every: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(20),
            progress_every: Duration::from_secs(600),
            shutdown: Duration::from_secs(10),
        }
    }
}

/// A running node. Dropping it closes its connections at once; [`shutdown`](Self::shutdown) is the polite way.
pub struct Server {
    address: SocketAddr,
    dns_address: Option<SocketAddr>,
    engine: Engine,
    lifecycle: Lifecycle,
    port: Arc<Port>,
    api: Api,
    checks: Checks,
    shutdown_limit: Duration,
}

impl Server {
    /// Opens the engine and serves it.
    ///
    /// # Errors
    /// `Denied` for an address beyond loopback without TLS and tokens; `Invalid` for a bad certificate; `Unavailable` if the address is in use; what opening the engine
    /// answers.
    ///
    /// # Cancel safety
    /// Safe: what was opened is closed again.
    pub async fn start(config: ServerConfig, env: Env) -> Result<Self> {
        refuse_open_network(&config)?;
        config.dns.as_ref().map_or(Ok(()), DnsConfig::check)?;
        config.checks.check(&config.check_commands)?;
        let tls = config.tls.as_ref().map(Tls::load).transpose()?;
        // The port first: a second node on it should fail before it touches the data.
        let listener = TcpListener::bind(config.listen).await.map_err(|error| cannot_listen(config.listen, error))?;
        let address = listener.local_addr().map_err(|error| cannot_listen(config.listen, error))?;
        let dns = match &config.dns {
            Some(dns) => Some((dns, bind_dns(dns.listen).await?)),
            None => None,
        };
        let engine = Engine::open(config.engine, env.clone()).await?;

        let lifecycle = Lifecycle::default();
        let metrics = Arc::new(Metrics::default());
        let auth = Auth::start(&config.auth, &engine, lifecycle.signal()).await?;
        let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        let node = Node::new(engine.clone(), auth, url, config.limits, lifecycle.signal());
        let port = Arc::new(Port::new(env.clone(), config.limits, tls, lifecycle.signal()));
        let dns_address = dns.as_ref().map(|(_, listeners)| listeners.address());
        if let Some((dns, listeners)) = dns {
            let kv = engine.kv(dns.namespace.clone(), config.accepted.clone());
            dns::serve(dns, &kv, listeners, lifecycle.signal(), metrics.clone())?;
        }
        let signal = lifecycle.signal();
        let checks = Checks::start(config.checks, config.check_commands, &engine, &signal, metrics.clone());
        env.spawn(node.overview().clone().run(lifecycle.signal()));
        let api = Api::new(node.clone(), config.accepted);
        let router = http::router(node, api.clone(), metrics, port.clone());
        env.spawn(port.clone().accept(listener, router));
        info!(%address, durability = %engine.config().durability, "the node serves");
        Ok(Self { address, dns_address, engine, lifecycle, port, api, checks, shutdown_limit: config.limits.shutdown })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it answers DNS.
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.dns_address
    }

    /// The engine behind it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Stops accepting, ends watches and other streams, waits for running requests up to the limit, and closes the
    /// engine, which finishes what was committed.
    ///
    /// # Errors
    /// What the last write to disk answers.
    ///
    /// # Cancel safety
    /// It ends all the same, at once.
    pub async fn shutdown(self) -> Result<()> {
        self.lifecycle.drain();
        if self.engine.env().timeout(self.shutdown_limit, self.port.idle()).await.is_none() {
            warn!(limit = ?self.shutdown_limit, "some requests did not end in time and are cut off");
        }
        if self.engine.env().timeout(self.shutdown_limit, self.checks.ended()).await.is_none() {
            warn!(limit = ?self.shutdown_limit, "the verdicts of health checks stay until their lease ends");
        }
        self.lifecycle.end();
        self.api.close().await;
        let closed = self.engine.close().await;
        info!(address = %self.address, "the node ended");
        closed
    }
}

/// Only where it listens: the engine behind it holds everybody's data.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

/// Whatever listens beyond loopback must be secret and ask who is there.
fn refuse_open_network(config: &ServerConfig) -> Result<()> {
    let listen = config.listen;
    let missing = match (config.tls.is_some(), config.auth.enabled) {
        (true, true) => return Ok(()),
        (false, true) => "TLS is missing (tls.cert and tls.key in its configuration)",
        (true, false) => "tokens are missing (auth.enabled = true in its configuration)",
        (false, false) => "TLS and tokens are missing (`coact init --tls self-signed` makes a configuration with both)",
    };
    if listen.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let port = listen.port();
    Err(Error::new(
        ErrorKind::Denied,
        format!(
            "listening on {listen} is refused: it would open the node to the network, and {missing}; or listen on \
             127.0.0.1:{port} and let others in through an SSH tunnel (ssh -L {port}:127.0.0.1:{port} HOST)"
        ),
    ))
}

async fn bind_dns(listen: SocketAddr) -> Result<dns::Listeners> {
    dns::Listeners::bind(listen).await.map_err(|error| cannot_listen(listen, error))
}

fn cannot_listen(listen: SocketAddr, error: std::io::Error) -> Error {
    let (kind, why) = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            (ErrorKind::Unavailable, "another process listens there; stop it or choose another port")
        }
        std::io::ErrorKind::PermissionDenied => {
            (ErrorKind::Denied, "the system does not allow it; choose a port from 1024 on")
        }
        _ => (ErrorKind::Unavailable, "the system refuses it"),
    };
    Error::new(kind, format!("cannot listen on {listen}: {why}")).with_source(error)
}
