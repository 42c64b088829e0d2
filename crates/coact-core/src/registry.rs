//! Which engines exist, and opening one by URL. No link-time magic: a list of drivers, made by hand.

use std::{fmt, future::Future, pin::Pin};

use crate::{
    contract::{kv::KvHandle, queue::QueueHandle, stream::StreamHandle},
    env::Env,
    error::{Error, ErrorKind, Result},
    url::Url,
};

/// An open engine: a handle for each contract that it implements, on the same connections and files.
#[derive(Clone, Debug)]
pub struct Store {
    kv: KvHandle,
    streams: Option<StreamHandle>,
    queues: Option<QueueHandle>,
}

impl Store {
    /// The Kv contract.
    pub fn kv(&self) -> &KvHandle {
        &self.kv
    }

    /// The stream contract.
    ///
    /// # Errors
    /// `Unsupported` if the engine does not implement it.
    pub fn streams(&self) -> Result<&StreamHandle> {
        self.streams.as_ref().ok_or_else(|| self.lacks("streams"))
    }

    /// The queue contract.
    ///
    /// # Errors
    /// `Unsupported` if the engine does not implement it.
    pub fn queues(&self) -> Result<&QueueHandle> {
        self.queues.as_ref().ok_or_else(|| self.lacks("queues"))
    }

    /// The same store with the streams of this handle: of another engine, perhaps.
    #[must_use]
    pub fn with_streams(mut self, streams: StreamHandle) -> Self {
        self.streams = Some(streams);
        self
    }

    /// The same store with the queues of this handle: of another engine, perhaps.
    #[must_use]
    pub fn with_queues(mut self, queues: QueueHandle) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Closes every contract.
    ///
    /// # Errors
    /// The first failure; the others are closed all the same.
    ///
    /// # Cancel safety
    /// What was not closed stays open.
    pub async fn close(&self) -> Result<()> {
        let mut closed = Ok(());
        if let Some(queues) = &self.queues {
            closed = closed.and(queues.close().await);
        }
        if let Some(streams) = &self.streams {
            closed = closed.and(streams.close().await);
        }
        closed.and(self.kv.close().await)
    }

    fn lacks(&self, what: &str) -> Error {
        let engine = self.kv.describe();
        Error::new(
            ErrorKind::Unsupported,
            format!("{engine} has no {what}: use embedded:///path, memory: or a coact node (coact://host:7070)"),
        )
    }
}

impl From<KvHandle> for Store {
    fn from(kv: KvHandle) -> Self {
        Self { kv, streams: None, queues: None }
    }
}

/// The future that a driver's `open` returns.
pub type Opening = Pin<Box<dyn Future<Output = Result<Store>> + Send>>;

/// How to open one engine: written once by each engine crate.
#[derive(Clone, Copy)]
pub struct Driver {
    /// The URL schemes it answers to.
    pub schemes: &'static [&'static str],
    /// Opens it and probes what it promises.
    pub open: fn(Url, Env) -> Opening,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

/// The engines that were compiled in, and the names of those that were not.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    drivers: Vec<Driver>,
    absent: Vec<(&'static str, &'static str)>,
}

impl Registry {
    /// The same registry with one more engine.
    #[must_use]
    pub fn with(mut self, driver: Driver) -> Self {
        self.drivers.push(driver);
        self
    }

    /// The same registry, knowing that `scheme` exists behind the Cargo `feature`, which is off.
    #[must_use]
    pub fn without(mut self, scheme: &'static str, feature: &'static str) -> Self {
        self.absent.push((scheme, feature));
        self
    }

    /// Opens the engine that a URL names.
    ///
    /// # Errors
    /// `Unsupported` for a scheme that nobody knows (listing the known ones) and for one whose feature is off (naming
    /// it); `Invalid` for an option that the engine does not know; otherwise what the engine answers.
    pub async fn open(&self, url: Url, env: Env) -> Result<Store> {
        if let Some(driver) = self.drivers.iter().find(|driver| driver.schemes.contains(&url.scheme())) {
            return (driver.open)(url, env).await;
        }
        if let Some((scheme, feature)) = self.absent.iter().find(|(scheme, _)| *scheme == url.scheme()) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("engine {scheme} is not compiled in: build coact with --features {feature}"),
            ));
        }
        let known: Vec<_> = self.drivers.iter().flat_map(|driver| driver.schemes).copied().collect();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("URL scheme {:?} names no engine: choose from {}", url.scheme(), known.join(", ")),
        ))
    }
}
