//! The network between a client and a node: slow, lossy, and sometimes cut.

use std::{
    fmt,
    future::Future,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::Relaxed},
    time::Duration,
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{
        Entry, Feed, KvHandle, KvStore, Lease, LeaseId, Order, Page, ReadAt, Revision, Scope, Txn, TxnOutcome,
    },
    env::Env,
    guarantees::{
        Accepted, Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, OnPartition, WakeUp,
        WatchFrom,
    },
    name::{Dir, Key, Realm},
};
use futures::StreamExt;
use tokio::sync::oneshot;

use super::{World, signal::Signal};

/// A client's connection to a node's store. Every request and reply takes up to 20 ms; a few get lost, and a few arrive
/// after the client was told that they may be lost. When the node crashes, calls in flight end, and feeds with them.
///
/// A request that has left arrives though the client has stopped waiting for it, or has crashed.
#[derive(Clone)]
pub struct Link(Arc<Wire>);

struct Wire {
    world: World,
    env: Env,
    node: String,
    store: Arc<dyn Fn() -> Option<KvHandle> + Send + Sync>,
    /// One while it is cut.
    cut: Signal,
    lossy: AtomicBool,
}

const DELAY_MAX: Duration = Duration::from_millis(20);
/// How late a request may arrive.
const LATE_MAX: Duration = Duration::from_secs(3);
/// How long a client waits before it gives up.
const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// One in so many requests meets each fate.
const FATES: u64 = 100;

const GUARANTEES: Guarantees = Guarantees {
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    on_partition: OnPartition::SingleNode,
    failover: Failover::KeepsWrites,
    fence: Fence::Strong,
    watch: WatchFrom::Revision,
    wake: WakeUp::Told,
    increment: Increment::Native,
    limits: Limits::PORTABLE,
};

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    RequestLost,
    ReplyLost,
    ArrivesLate,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link(to {})", self.0.node)
    }
}

impl Link {
    /// A link from a client's environment to the machine `node`, whose store is what `store` returns: `None` while it is
    /// down.
    pub fn new(world: &World, env: &Env, node: &str, store: Arc<dyn Fn() -> Option<KvHandle> + Send + Sync>) -> Self {
        Self(Arc::new(Wire {
            world: world.clone(),
            env: env.clone(),
            node: node.to_owned(),
            store,
            cut: Signal::default(),
            lossy: AtomicBool::new(true),
        }))
    }

    /// The store at its other end.
    pub fn kv(&self) -> KvHandle {
        KvHandle::new(self.clone(), self.0.env.clone(), Accepted::default())
    }

    /// Cuts the link, or mends it. Nothing passes while it is cut.
    pub fn cut(&self, cut: bool) {
        self.0.cut.update(|_| cut.into());
    }

    /// Whether requests and replies get lost by chance; they do until told otherwise.
    pub fn set_lossy(&self, lossy: bool) {
        self.0.lossy.store(lossy, Relaxed);
    }

    fn is_cut(&self) -> bool {
        self.0.cut.value() == 1
    }

    fn draw_fate(&self) -> Fate {
        if !self.0.lossy.load(Relaxed) {
            return Fate::Arrives;
        }
        match self.0.env.random() % FATES {
            0 => Fate::RequestLost,
            1 => Fate::ReplyLost,
            2 => Fate::ArrivesLate,
            _ => Fate::Arrives,
        }
    }

    async fn travel(&self) {
        self.0.env.sleep(self.0.env.random_duration(DELAY_MAX)).await;
    }

    async fn call<T, F>(&self, request: impl FnOnce(KvHandle) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let fate = self.draw_fate();
        self.travel().await;
        if fate == Fate::RequestLost || self.is_cut() {
            self.0.env.sleep(self.0.env.random_duration(PATIENCE_MAX)).await;
            return Err(unreachable());
        }
        let (to, reply) = oneshot::channel();
        let late = if fate == Fate::ArrivesLate { self.0.env.random_duration(LATE_MAX) } else { Duration::ZERO };
        self.0.world.spawn(self.clone().deliver(request, late, to));
        if fate == Fate::ArrivesLate {
            return Err(lost());
        }
        let reply = reply.await.unwrap_or_else(|_| Err(lost()));
        self.travel().await;
        if fate == Fate::ReplyLost || self.is_cut() {
            self.0.env.sleep(self.0.env.random_duration(PATIENCE_MAX)).await;
            return Err(lost());
        }
        reply
    }

    /// Runs a request at the node, unless the node crashes before or meanwhile.
    async fn deliver<T, F>(
        self,
        request: impl FnOnce(KvHandle) -> F + Send + 'static,
        late: Duration,
        to: oneshot::Sender<Result<T>>,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let crashes = self.0.world.crashes(&self.0.node);
        let before = crashes.value();
        if !late.is_zero() {
            self.0.env.sleep(late).await;
        }
        let reply = match (self.0.store)().filter(|_| crashes.value() == before) {
            None => Err(unreachable()),
            // A reply that was sent arrives, even if the node crashes in the same moment.
            Some(store) => tokio::select! {
                biased;
                reply = request(store) => reply.map_err(as_seen_from_afar),
                () = crashes.wait_for(|now| now != before) => Err(lost()),
            },
        };
        let _ = to.send(reply);
    }

    fn carry(self, feed: Feed, crashes: Signal, before: u64) -> Feed {
        let carried = Carried { link: self, feed, crashes, before, ended: false };
        Box::pin(futures::stream::unfold(carried, |mut carried| async move {
            let item = carried.next().await?;
            Some((item, carried))
        }))
    }
}

/// A feed on its way over a link.
struct Carried {
    link: Link,
    feed: Feed,
    crashes: Signal,
    /// How many there were when it began.
    before: u64,
    ended: bool,
}

impl Carried {
    async fn next(&mut self) -> Option<Result<coact_core::contract::kv::Change>> {
        if self.ended {
            return None;
        }
        let item = tokio::select! {
            biased;
            () = self.crashes.wait_for(|now| now != self.before) => Some(Err(lost())),
            () = self.link.0.cut.wait_for(|cut| cut == 1) => Some(Err(lost())),
            item = self.feed.next() => item.map(|item| item.map_err(as_seen_from_afar)),
        };
        self.ended = matches!(item, None | Some(Err(_)));
        self.link.travel().await;
        item
    }
}

fn unreachable() -> Error {
    Error::new(ErrorKind::Unavailable, "simulated: the node cannot be reached")
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "simulated: the node did not answer").effect_unknown()
}

/// A store that was closed is a node that went away.
fn as_seen_from_afar(error: Error) -> Error {
    if error.kind() == ErrorKind::Closed { lost() } else { error }
}

impl KvStore for Link {
    fn guarantees(&self) -> &Guarantees {
        &GUARANTEES
    }

    fn describe(&self) -> String {
        format!("sim://{}", self.0.node)
    }

    async fn txn(&self, realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        let realm = realm.clone();
        self.call(move |kv| async move { kv.txn(&realm, txn).await }).await
    }

    async fn get(&self, key: &Key, at: ReadAt) -> Result<Option<Entry>> {
        let key = key.clone();
        self.call(move |kv| async move { kv.get_at(&key, at).await }).await
    }

    async fn list(&self, dir: &Dir, order: Order, limit: usize, _at: ReadAt) -> Result<Page> {
        let dir = dir.clone();
        self.call(move |kv| async move { kv.list(&dir, order, limit).await }).await
    }

    async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        let (realm, prefix, after) = (realm.clone(), prefix.to_owned(), after.to_owned());
        self.call(move |kv| async move { kv.dirs(&realm, &prefix, &after, limit).await }).await
    }

    async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        let crashes = self.0.world.crashes(&self.0.node);
        let before = crashes.value();
        let feed = self.call(move |kv| async move { kv.watch(scope, after).await }).await?;
        Ok(self.clone().carry(feed, crashes, before))
    }

    async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        let key = key.clone();
        self.call(move |kv| async move { kv.await_gone(&key, created).await }).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease> {
        self.call(move |kv| async move { kv.lease_grant(ttl).await }).await
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        self.call(move |kv| async move { kv.lease_renew(lease).await }).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        self.call(move |kv| async move { kv.lease_revoke(lease).await }).await
    }

    async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        self.call(move |kv| async move { kv.lease_left(lease).await }).await
    }

    /// Closes nothing: the node is not the client's.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
