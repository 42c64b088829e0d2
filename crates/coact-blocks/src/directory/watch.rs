//! Watching a service: one feed from the store for all watchers of a directory, and a snapshot in memory.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use coact_core::{Error, ErrorKind, Result, contract::kv::KvHandle};
use tokio::sync::watch;

use super::{Directory, Seen, Snapshot, State, feed, names, pulse::Pulse, table::Protection};

/// A live picture of one service. Reading it costs no request. Clones, and other watches of the same directory, share it;
/// it ends with the last of them.
#[derive(Clone)]
pub struct Watch {
    service: Arc<Service>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Directory {
    /// Watches a service and returns once its list is here. A service that nobody registered has an empty list.
    ///
    /// # Errors
    /// `Invalid` for a name that is no service; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch(&self, service: &str) -> Result<Watch> {
        let service = self.watched(service)?;
        let mut first = service.core.first.subscribe();
        let loaded = first.wait_for(Option::is_some).await.map(|first| first.clone());
        match loaded {
            Ok(Some(Err(error))) => Err(error),
            Ok(_) => Ok(Watch { snapshots: service.core.snapshots.subscribe(), service }),
            Err(_) => Err(Error::new(ErrorKind::Closed, "the environment has ended the watch")),
        }
    }

    /// The shared picture of a service; it is started if nobody watches yet.
    fn watched(&self, name: &str) -> Result<Arc<Service>> {
        let dir = names::dir_of(&self.0.options.realm, name)?;
        let mut watches = self.0.watches.lock();
        if let Some(service) = watches.get(name).and_then(std::sync::Weak::upgrade) {
            return Ok(service);
        }
        watches.retain(|_, service| service.strong_count() > 0);
        let core = Arc::new(Core::new(&self.0.kv, name, self.pulse(name)?));
        let options = &self.0.options;
        let protection = Protection { share: options.protect, hold: options.hold };
        self.0.kv.env().spawn(feed::run(core.clone(), dir, protection));
        let service = Arc::new(Service { core });
        watches.insert(name.to_owned(), Arc::downgrade(&service));
        Ok(service)
    }

    /// It asks for an entry of the first service that is watched: one that this client may read.
    fn pulse(&self, service: &str) -> Result<Arc<Pulse>> {
        let mut current = self.0.pulse.lock();
        if let Some(pulse) = current.upgrade() {
            return Ok(pulse);
        }
        let dir = names::dir_of(&self.0.options.realm, service)?;
        let pulse = Pulse::start(&self.0.kv, names::key_of(&dir, names::Kind::Instance, "pulse")?);
        *current = Arc::downgrade(&pulse);
        Ok(pulse)
    }
}

impl Watch {
    /// The service.
    pub fn service(&self) -> &str {
        &self.service.core.name
    }

    /// The latest picture.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// The instances that should get traffic now.
    pub fn healthy(&self) -> Vec<Arc<Seen>> {
        self.snapshots.borrow().healthy().cloned().collect()
    }

    /// Waits for a picture that this handle has not returned from here before, and returns it. Pictures in between may be
    /// left out.
    ///
    /// # Errors
    /// `Closed` if the environment has ended (a simulated crash).
    ///
    /// # Cancel safety
    /// Safe: no picture is lost.
    pub async fn changed(&mut self) -> Result<Arc<Snapshot>> {
        match self.snapshots.changed().await {
            Ok(()) => Ok(self.snapshots.borrow_and_update().clone()),
            Err(_) => Err(Error::new(ErrorKind::Closed, "the environment has ended the watch")),
        }
    }

    /// Waits until the picture is as wished, and returns it.
    ///
    /// # Errors
    /// As [`changed`](Self::changed).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_for(&mut self, mut wish: impl FnMut(&Snapshot) -> bool) -> Result<Arc<Snapshot>> {
        match self.snapshots.wait_for(|snapshot| wish(snapshot)).await {
            Ok(snapshot) => Ok(snapshot.clone()),
            Err(_) => Err(Error::new(ErrorKind::Closed, "the environment has ended the watch")),
        }
    }

    /// How often the store sent changes for this service: what others register elsewhere must not show here.
    pub fn wakeups(&self) -> u64 {
        self.service.core.wakeups.load(Ordering::Relaxed)
    }

    pub(super) fn kv(&self) -> &KvHandle {
        &self.service.core.kv
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        write!(f, "Watch({}: {} instances, {:?})", self.service(), snapshot.instances.len(), snapshot.state)
    }
}

/// What watchers hold; the feed's task holds the [`Core`], so that it does not keep the service watched.
pub(super) struct Service {
    core: Arc<Core>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.core.stop.send_replace(true);
    }
}

/// What watchers and the feed share.
pub(super) struct Core {
    pub(super) kv: KvHandle,
    pub(super) name: String,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    /// How the first reading ended.
    pub(super) first: watch::Sender<Option<Result<()>>>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) wakeups: AtomicU64,
    pub(super) pulse: Arc<Pulse>,
}

impl Core {
    fn new(kv: &KvHandle, name: &str, pulse: Arc<Pulse>) -> Self {
        let unknown = Snapshot {
            service: name.to_owned(),
            revision: Default::default(),
            instances: Arc::new([]),
            state: State::Stale { since: kv.env().now() },
            skipped: 0,
        };
        Self {
            kv: kv.clone(),
            name: name.to_owned(),
            snapshots: watch::Sender::new(Arc::new(unknown)),
            first: watch::Sender::new(None),
            stop: watch::Sender::new(false),
            wakeups: AtomicU64::new(0),
            pulse,
        }
    }
}
