//! Health checks: the node tries what instances registered as their [`Check`](coact_blocks::directory::Check), and writes
//! what it found beside them.
//!
//! In each namespace one node of those that share a store checks, the one that holds the lock `coact-checks`; it takes
//! that once there is a service. Two that check at once, for a moment, cost requests and no wrong verdict. A verdict is
//! written when it changes, under the node's own lease: when the node ends, its verdicts go, and the instances are
//! unchecked until another node has tried as often as their thresholds say.
//!
//! Whoever may register can make the node connect to what they choose. So a check says a kind and never a command line;
//! the address is judged when it is connected to, after names were resolved; link-local addresses and those where clouds
//! tell secrets are refused always; and of an answer nothing is shown but its status. [`ChecksConfig::allow`] narrows it
//! further. HTTP and gRPC are tried without TLS, and redirects are not followed.

mod instance;
mod lead;
mod policy;
mod probe;
mod service;

use std::{collections::BTreeMap, fmt, sync::Arc};

use coact_core::{
    Error, ErrorKind, Result,
    env::Env,
    guarantees::{Accepted, Weakness},
    name::{Namespace, Realm},
};
use coact_engine_embedded::Engine;
use probe::Prober;
use tokio::sync::{Semaphore, mpsc};

pub use policy::Prefix;

use crate::{auth::RESERVED_NAMESPACE, lifecycle::Signal, metrics::SharedMetrics};

/// The most tries at once, over all instances of a node.
const PROBES: usize = 256;

/// Which instances a node checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChecksConfig {
    /// The namespaces whose services it checks, `main` by default; none to check nothing.
    pub namespaces: Vec<Namespace>,
    /// The realm in them.
    pub realm: Realm,
    /// The addresses that it may connect to for a check; all if this is empty. Link-local addresses are refused always.
    pub allow: Vec<Prefix>,
}

impl Default for ChecksConfig {
    fn default() -> Self {
        Self { namespaces: vec![Namespace::default()], realm: Realm::default(), allow: Vec::new() }
    }
}

impl ChecksConfig {
    /// Checks everything that can be wrong before anything is opened.
    pub(crate) fn check(&self, commands: &BTreeMap<String, Vec<String>>) -> Result<()> {
        if self.namespaces.iter().any(|namespace| namespace.as_str() == RESERVED_NAMESPACE) {
            return Err(Error::new(ErrorKind::Denied, format!("namespace {RESERVED_NAMESPACE} is the node's own")));
        }
        match commands.iter().find(|(_, argv)| argv.first().is_none_or(String::is_empty)) {
            Some((name, _)) => Err(Error::invalid(format!("check command {name} is empty: name a program"))),
            None => Ok(()),
        }
    }
}

/// The checks that run.
pub(crate) struct Checks {
    /// Closed when nothing runs any more.
    running: mpsc::Receiver<()>,
}

/// What all checks of a node share.
struct Common {
    env: Env,
    realm: Realm,
    prober: Prober,
    places: Semaphore,
    metrics: SharedMetrics,
}

impl Checks {
    /// Starts to check, until the shutdown begins.
    pub(crate) fn start(
        config: ChecksConfig,
        commands: BTreeMap<String, Vec<String>>,
        engine: &Engine,
        signal: &Signal,
        metrics: SharedMetrics,
    ) -> Self {
        let env = engine.env().clone();
        let common = Arc::new(Common {
            prober: Prober::new(env.clone(), config.allow, commands),
            env: env.clone(),
            realm: config.realm,
            places: Semaphore::new(PROBES),
            metrics,
        });
        let (alive, running) = mpsc::channel(1);
        for namespace in config.namespaces {
            let kv = engine.kv(namespace, every_weakness());
            let (common, signal, alive) = (common.clone(), signal.clone(), alive.clone());
            env.spawn(async move {
                lead::run(common, kv, signal).await;
                drop(alive);
            });
        }
        Self { running }
    }

    /// Returns when the verdicts are withdrawn; meant for after the shutdown began.
    pub(crate) async fn ended(mut self) {
        while self.running.recv().await.is_some() {}
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checks")
    }
}

/// The lock only spares a second node the work, and what is forgotten is found out again.
fn every_weakness() -> Accepted {
    [Weakness::Volatile, Weakness::LossWindow, Weakness::FailoverLoss, Weakness::StaleReads, Weakness::WeakFence]
        .into_iter()
        .collect()
}
