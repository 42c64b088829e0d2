//! The services that were asked for of late: a watch each, so that an answer costs the store nothing.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_blocks::directory::{Directory, Snapshot, State, Watch};
use coact_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

/// The most services that are watched at once; past it, the one that nobody asked for the longest goes.
const KEPT_MAX: usize = 1_024;
/// How long a service is watched after it was asked for.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// The most names that are known to be nothing; past it, all are forgotten.
const ABSENT_MAX: usize = 4_096;
/// How long a name is believed to be nothing: a service that is registered after that is found.
const ABSENT_FOR: Duration = Duration::from_secs(1);
/// How long the store may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a name of a service is.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// A service with instances.
    Service(Arc<Snapshot>),
    /// No service, but others begin with it.
    Branch,
    /// Nothing.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Services {
    directory: Directory,
    kept: Mutex<HashMap<String, Kept>>,
    absent: Mutex<HashMap<String, Absent>>,
}

#[derive(Debug)]
struct Kept {
    watch: Watch,
    asked: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Absent {
    is_branch: bool,
    until: Instant,
}

impl Services {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory, kept: Mutex::default(), absent: Mutex::default() }
    }

    /// Finds out what a service looks like now; from memory if it was asked for of late.
    ///
    /// # Errors
    /// `Unavailable` if the store does not answer.
    pub(super) async fn find(&self, service: &str) -> Result<Found> {
        let kept = self.snapshot(service);
        if let Some(snapshot) = kept.as_ref().filter(|snapshot| !snapshot.instances.is_empty()) {
            return Ok(Found::Service(snapshot.clone()));
        }
        if let Some(absent) = self.absent(service) {
            return Ok(absent);
        }
        let asking = self.ask(service, kept);
        self.directory.kv().env().timeout(PATIENCE, asking).await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Unavailable, format!("the store did not say in time what {service} is")))
        })
    }

    /// Ends the watches that nobody asked for in a while.
    pub(super) fn sweep(&self) {
        let now = self.now();
        self.kept.lock().retain(|_, kept| now.saturating_duration_since(kept.asked) < KEPT_FOR);
        self.absent.lock().retain(|_, absent| absent.until > now);
    }

    /// Asks the store. What is watched and empty is known already, if the store spoke.
    async fn ask(&self, service: &str, kept: Option<Arc<Snapshot>>) -> Result<Found> {
        match kept.as_deref() {
            Some(Snapshot { state: State::Stale { .. }, .. }) => {
                return Err(Error::new(ErrorKind::Unavailable, "the store does not answer"));
            }
            Some(_) => {}
            // A watch is begun only for what exists: names that somebody makes up cost no memory.
            None if self.exists(service).await? => {
                let watch = self.directory.watch(service).await?;
                let snapshot = watch.snapshot();
                self.keep(service, watch);
                if !snapshot.instances.is_empty() {
                    return Ok(Found::Service(snapshot));
                }
            }
            None => {}
        }
        let is_branch = !self.directory.services(&format!("{service}/"), "", 1).await?.is_empty();
        self.remember_absent(service, is_branch);
        Ok(if is_branch { Found::Branch } else { Found::Nothing })
    }

    async fn exists(&self, service: &str) -> Result<bool> {
        match self.directory.exists(service).await {
            Err(error) if error.kind() == ErrorKind::Invalid => Ok(false),
            other => other,
        }
    }

    fn snapshot(&self, service: &str) -> Option<Arc<Snapshot>> {
        let now = self.now();
        let mut kept = self.kept.lock();
        let kept = kept.get_mut(service)?;
        kept.asked = now;
        Some(kept.watch.snapshot())
    }

    fn keep(&self, service: &str, watch: Watch) {
        let asked = self.now();
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX && !kept.contains_key(service) {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.asked).map(|(name, _)| name.clone());
            oldest.and_then(|name| kept.remove(&name));
        }
        kept.insert(service.to_owned(), Kept { watch, asked });
    }

    fn absent(&self, service: &str) -> Option<Found> {
        let absent = self.absent.lock().get(service).copied().filter(|absent| absent.until > self.now())?;
        Some(if absent.is_branch { Found::Branch } else { Found::Nothing })
    }

    fn remember_absent(&self, service: &str, is_branch: bool) {
        let until = self.now() + ABSENT_FOR;
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(service.to_owned(), Absent { is_branch, until });
    }

    fn now(&self) -> Instant {
        self.directory.kv().env().now()
    }
}

#[cfg(test)]
mod tests {
    use coact_blocks::directory::{DirectoryOptions, Instance};
    use coact_core::{contract::kv::KvHandle, env::Env, guarantees::Weakness, name::Namespace};
    use coact_engine_embedded::{Config, Engine};

    use super::*;

    async fn store() -> KvHandle {
        let engine = Engine::open(Config::default(), Env::real()).await.expect("opens");
        engine.kv(Namespace::default(), [Weakness::Volatile].into_iter().collect())
    }

    async fn put(directory: &Directory, service: &str) {
        let mut instance = Instance::new(service, "10.0.0.1", 80);
        instance.id = "a".to_owned();
        directory.put_instance(None, &instance).await.expect("put");
    }

    #[tokio::test]
    async fn made_up_names_begin_no_watch_and_are_forgotten() {
        let directory = Directory::open(&store().await, DirectoryOptions::default()).expect("opens");
        put(&directory, "eu/web").await;
        let services = Services::new(directory);
        for number in 0..ABSENT_MAX + 10 {
            let found = services.find(&format!("made-up-{number}")).await.expect("answers");
            assert!(matches!(found, Found::Nothing), "{found:?}");
        }
        assert!(services.absent.lock().len() <= ABSENT_MAX);
        assert!(matches!(services.find("eu").await.expect("answers"), Found::Branch));
        assert!(matches!(services.find(&"x".repeat(200)).await.expect("answers"), Found::Nothing));
        assert!(services.kept.lock().is_empty());
        // The control: what exists is watched.
        assert!(matches!(services.find("eu/web").await.expect("answers"), Found::Service(_)));
        assert_eq!(services.kept.lock().len(), 1);
    }

    #[tokio::test]
    async fn the_service_that_nobody_asks_for_goes_first() {
        let directory = Directory::open(&store().await, DirectoryOptions::default()).expect("opens");
        let services = Services::new(directory.clone());
        for number in 0..=KEPT_MAX {
            let name = format!("web-{number}");
            put(&directory, &name).await;
            assert!(matches!(services.find(&name).await.expect("answers"), Found::Service(_)));
            assert!(matches!(services.find("web-0").await.expect("answers"), Found::Service(_)));
        }
        let kept = services.kept.lock();
        assert_eq!(kept.len(), KEPT_MAX);
        assert!(kept.contains_key("web-0") && !kept.contains_key("web-1"));
    }
}
