//! Which engines exist, and opening one by URL. No link-time magic: a list of drivers, made by hand.

use std::{fmt, future::Future, pin::Pin};

use crate::{
    contract::kv::KvHandle,
    env::Env,
    error::{Error, ErrorKind, Result},
    url::Url,
};

/// The future that a driver's `open` returns.
pub type Opening = Pin<Box<dyn Future<Output = Result<KvHandle>> + Send>>;

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
    pub async fn open(&self, url: Url, env: Env) -> Result<KvHandle> {
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
