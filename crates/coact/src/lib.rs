//! **coact** — *to act together*: distributed-systems building blocks, one API from a laptop to a cluster.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> coact::Result<()> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let url = format!("embedded://{}?segment=1MiB", dir.path().display());
//! // let url = "embedded:///var/lib/shop";        one process, durable, nothing to install
//! // let url = "coact://127.0.0.1:7070/shop";     many processes, one node
//! // let url = "etcd://10.0.0.1:2379/shop";       many machines
//! let kv = coact::open(&url).await?;
//! let session = coact::Session::open(&kv, coact::SessionOptions::default()).await?;
//!
//! let mutex = coact::lock::Mutex::new(&session, "deploy")?;
//! let guard = mutex.acquire().await?;
//! println!("I hold the lock; every write of mine carries fencing token {}", guard.token());
//! guard.release().await?;
//!
//! let ids = coact::id::Generator::open(&session, coact::id::IdOptions::default()).await?;
//! println!("order {}", ids.next().await?);
//! ids.close().await?;
//! session.close().await?;
//! kv.close().await
//! # }
//! ```
//!
//! What each engine promises is in [`Guarantees`]; what a block needs is checked when it opens, and refused with a
//! message that names both sides. See the repository's README for the table of blocks and engines.

pub use coact_blocks::{Session, SessionOptions, directory, id, lock, mq, queue};
pub use coact_core::{
    Effect, Error, ErrorKind, Result, Retry,
    contract::kv::KvHandle,
    contract::queue::QueueHandle,
    contract::stream::StreamHandle,
    contract::{self, kv},
    env::Env,
    guarantees::{self, Guarantees},
    name::{Dir, Group, Key, Namespace, Queue, Realm, Topic},
    registry::{Registry, Store},
    url::{self, Url},
};
#[cfg(feature = "embedded")]
pub use coact_engine_embedded as embedded;
#[cfg(feature = "postgres")]
pub use coact_engine_postgres as postgres;

/// Plain requests to a coact node: what its HTTP pages answer.
#[cfg(feature = "etcd")]
pub mod node {
    pub use coact_engine_etcd::{Answer, NodeHttp};
}

/// Opens the engine that a URL names, for the Kv contract.
///
/// | URL | engine |
/// |---|---|
/// | `embedded:///path` | the embedded engine in a directory of this machine, in this process |
/// | `memory:` | the same in memory; what it forgets must be accepted: `memory:?accept=volatile` |
/// | `coact://host:7070/namespace` | a coact node |
/// | `etcd://host:2379[,host…]/namespace` | etcd |
/// | `postgres://user@host:5432/namespace` | PostgreSQL |
/// | `redis://host:6379[,host…]/namespace` | Redis or Valkey, alone or a Cluster; with `?sentinel=NAME` what Sentinels name |
/// | `zookeeper://host:2181[,host…]/namespace` | ZooKeeper |
///
/// # Errors
/// `Invalid` for a URL or an option that is wrong, `Unsupported` for a scheme that is unknown or not compiled in,
/// `Unavailable` if the engine cannot be reached or its directory is open elsewhere, `Corrupt` for damaged data.
///
/// # Cancel safety
/// Safe: what was opened is closed again.
pub async fn open(url: &str) -> Result<KvHandle> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(Error::invalid("coact::open must run inside a tokio runtime: use #[tokio::main]"));
    }
    open_in(url, Env::real()).await
}

/// As [`open`], in an environment of another making: the simulator's.
///
/// # Errors
/// As [`open`].
///
/// # Cancel safety
/// As [`open`].
pub async fn open_in(url: &str, env: Env) -> Result<KvHandle> {
    Ok(open_store_in(url, env).await?.kv().clone())
}

/// Opens the engine that a URL names, with every contract that it implements: Kv, streams, queues.
///
/// # Errors
/// As [`open`].
///
/// # Cancel safety
/// As [`open`].
pub async fn open_store(url: &str) -> Result<Store> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(Error::invalid("coact::open_store must run inside a tokio runtime: use #[tokio::main]"));
    }
    open_store_in(url, Env::real()).await
}

/// As [`open_store`], in an environment of another making: the simulator's.
///
/// # Errors
/// As [`open`].
///
/// # Cancel safety
/// As [`open`].
pub async fn open_store_in(url: &str, env: Env) -> Result<Store> {
    registry().open(Url::parse(url)?, env).await
}

/// The engines that this build has, and the names of those that it was built without.
pub fn registry() -> Registry {
    let registry = Registry::default();
    #[cfg(feature = "embedded")]
    let registry = registry.with(coact_engine_embedded::driver());
    #[cfg(not(feature = "embedded"))]
    let registry = registry.without("embedded", "embedded").without("memory", "embedded");
    #[cfg(feature = "etcd")]
    let registry = registry.with(coact_engine_etcd::driver());
    #[cfg(not(feature = "etcd"))]
    let registry = registry.without("etcd", "etcd").without("coact", "etcd");
    #[cfg(feature = "postgres")]
    let registry = registry.with(coact_engine_postgres::driver());
    #[cfg(not(feature = "postgres"))]
    let registry = without(registry, &["postgres", "postgresql"], "postgres");
    #[cfg(feature = "redis")]
    let registry = registry.with(coact_engine_redis::driver());
    #[cfg(not(feature = "redis"))]
    let registry = without(registry, &["redis", "rediss", "valkey", "valkeys"], "redis");
    #[cfg(feature = "zookeeper")]
    let registry = registry.with(coact_engine_zookeeper::driver());
    #[cfg(not(feature = "zookeeper"))]
    let registry = without(registry, &["zookeeper"], "zookeeper");
    registry
}

#[cfg(not(all(feature = "postgres", feature = "redis", feature = "zookeeper")))]
fn without(registry: Registry, schemes: &[&'static str], feature: &'static str) -> Registry {
    schemes.iter().fold(registry, |registry, scheme| registry.without(scheme, feature))
}
