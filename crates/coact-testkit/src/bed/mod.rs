//! Beds: real stores for a test, on free loopback ports, in temporary directories, ended by their process id.

mod etcd;
mod node;
mod postgres;
mod process;
mod redis;
mod zookeeper;

use std::fmt;

use coact_core::{Result, contract::kv::Revision, name::Namespace, registry::Store};
use futures::future::BoxFuture;

pub use self::{
    etcd::EtcdBed,
    node::NodeBed,
    postgres::{Postgres, PostgresBed},
    process::{PATIENCE, ServerProcess, free_port, wait_until},
    redis::{RedisBed, RedisMode},
    zookeeper::ZookeeperBed,
};

/// How a bed opens a URL. The test kit knows no engine, so the caller brings one.
pub type OpenUrl = fn(String) -> BoxFuture<'static, Result<Store>>;

/// A store that the suites run against.
pub trait Bed: Send + Sync {
    /// The name that the cases are listed under.
    fn name(&self) -> &str;

    /// Starts what must run before the first [`open`](Self::open).
    ///
    /// # Errors
    /// `Missing` if the machine lacks a program; `Failed` for anything else.
    fn start(&self) -> BoxFuture<'_, Result<(), StartError>>;

    /// Opens a new client of the store; after a client closed the store itself, opens that again.
    ///
    /// # Errors
    /// What the engine answers.
    fn open<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, Result<Store>>;

    /// Ends the store as hard as it can and starts it again on the same data; `None` if this bed cannot.
    fn restart(&self) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        None
    }

    /// Forgets the history before a revision; `None` if this bed cannot.
    fn compact(&self, revision: Revision) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        let _ = revision;
        None
    }
}

/// Why a bed did not start.
#[derive(Debug)]
pub enum StartError {
    /// A program that it needs is not installed; the text names the remedy.
    Missing(String),
    /// It is there, but does not serve.
    Failed(anyhow::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(remedy) => f.write_str(remedy),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Whether a missing bed is a failure (in CI, or with `COACT_BEDS=require`) rather than a counted skip.
pub fn beds_are_required() -> bool {
    std::env::var_os("CI").is_some() || std::env::var("COACT_BEDS").is_ok_and(|beds| beds == "require")
}
