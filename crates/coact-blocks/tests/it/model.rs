//! The Kv contract in memory: small, sequential, and honest about time. Faults sit in the clients, not in the store.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{
        Change, Check, Entry, Feed, Found, GoneCause, KvStore, Lease, LeaseId, Order, Page, Read, ReadAt, Revision,
        Scope, Txn, TxnOutcome, Write,
    },
    env::Env,
    guarantees::{
        Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, OnPartition, WakeUp, WatchFrom,
    },
    name::{Dir, Key, Realm},
};
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;

/// A store. Clones are the same store.
#[derive(Clone)]
pub(crate) struct Model(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    revision: u64,
    entries: BTreeMap<Key, Entry>,
    leases: BTreeMap<LeaseId, (Duration, Instant)>,
    next_lease: i64,
    history: Vec<(Key, Bytes)>,
    /// What watches deliver, in order. It is never cut: gaps are injected into feeds instead.
    changes: Vec<Change>,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), changed: watch::Sender::new(0) }))
    }

    /// Every entry whose path (`dir/name`) starts with this.
    pub(crate) fn entries(&self, prefix: &str) -> Vec<Entry> {
        let state = self.lock();
        state.entries.values().filter(|entry| entry.key.to_string().starts_with(prefix)).cloned().collect()
    }

    /// Every value that a key ever had, in order.
    pub(crate) fn history(&self, key: &Key) -> Vec<String> {
        let state = self.lock();
        let of_key = state.history.iter().filter(|(changed, _)| changed == key);
        of_key.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    pub(crate) fn has_lease(&self, lease: LeaseId) -> bool {
        self.lock().leases.contains_key(&lease)
    }

    pub(crate) fn lease_count(&self) -> usize {
        self.lock().leases.len()
    }

    /// Ends a lease early, which a store may do and its owner does not notice.
    pub(crate) fn end_lease(&self, lease: LeaseId) {
        self.lock().end_lease(lease, GoneCause::Expired);
        self.announce();
    }

    pub(crate) fn delete(&self, key: &Key) {
        self.lock().delete(key, GoneCause::Deleted);
        self.announce();
    }

    /// Writes what no block would.
    pub(crate) fn put(&self, key: &Key, value: &str) {
        let write = Write::Put { key: key.clone(), value: value.to_owned().into(), lease: None };
        let _ = self.txn(&Txn { writes: vec![write], ..Txn::default() }).expect("a put without a lease");
    }

    /// Makes feeds look at their faults.
    pub(crate) fn poke(&self) {
        self.announce();
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.0.state.lock();
        state.expire(Env::real().now());
        state
    }

    fn announce(&self) {
        self.0.changed.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn txn(&self, txn: &Txn) -> Result<TxnOutcome> {
        let outcome = self.lock().txn(txn);
        self.announce();
        outcome
    }

    async fn await_gone(&self, env: &Env, key: &Key, created: Revision) {
        let mut changed = self.0.changed.subscribe();
        loop {
            let ends = {
                let state = self.lock();
                match state.entries.get(key) {
                    Some(entry) if entry.created == created => {
                        entry.lease.and_then(|lease| state.leases.get(&lease)).map(|(_, ends)| *ends)
                    }
                    _ => return,
                }
            };
            let expiry = async {
                match ends {
                    Some(ends) => env.sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = expiry => {}
            }
        }
    }
}

impl State {
    fn expire(&mut self, now: Instant) {
        let over: Vec<_> = self.leases.iter().filter(|(_, (_, ends))| *ends <= now).map(|(id, _)| *id).collect();
        for lease in over {
            self.end_lease(lease, GoneCause::Expired);
        }
    }

    fn end_lease(&mut self, lease: LeaseId, cause: GoneCause) {
        self.leases.remove(&lease);
        let keys: Vec<_> =
            self.entries.values().filter(|entry| entry.lease == Some(lease)).map(|entry| entry.key.clone()).collect();
        for key in keys {
            self.delete(&key, cause);
        }
    }

    fn delete(&mut self, key: &Key, cause: GoneCause) {
        if self.entries.remove(key).is_some() {
            self.revision += 1;
            self.changes.push(Change::Gone { key: key.clone(), at: Revision(self.revision), cause });
        }
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome> {
        for (index, check) in txn.checks.iter().enumerate() {
            let (holds, key) = match check {
                Check::Absent(key) => (!self.entries.contains_key(key), Some(key)),
                Check::CreatedAt(key, at) => (self.entries.get(key).is_some_and(|e| e.created == *at), Some(key)),
                Check::ModifiedAt(key, at) => (self.entries.get(key).is_some_and(|e| e.modified == *at), Some(key)),
                Check::LeaseAlive(lease) => (self.leases.contains_key(lease), None),
            };
            if !holds {
                return Ok(TxnOutcome::Refused {
                    check: index,
                    found: key.and_then(|key| self.entries.get(key)).cloned(),
                });
            }
        }
        for write in &txn.writes {
            if let Write::Put { lease: Some(lease), .. } = write
                && !self.leases.contains_key(lease)
            {
                return Err(Error::new(ErrorKind::Fenced, "the lease has ended"));
            }
        }
        let reads = txn.reads.iter().map(|read| self.read(read)).collect();
        if !txn.writes.is_empty() {
            self.revision += 1;
        }
        for write in &txn.writes {
            self.write(write);
        }
        Ok(TxnOutcome::Committed { revision: Revision(self.revision), reads })
    }

    fn read(&self, read: &Read) -> Found {
        match read {
            Read::Get(key) => Found::Entry(self.entries.get(key).cloned()),
            Read::First(dir) => Found::Entry(self.in_dir(dir).min_by_key(|entry| entry.created).cloned()),
            Read::Last(dir) => Found::Entry(self.in_dir(dir).max_by_key(|entry| entry.created).cloned()),
            Read::Count(dir) => Found::Count(self.in_dir(dir).count() as u64),
        }
    }

    fn write(&mut self, write: &Write) {
        let at = Revision(self.revision);
        match write {
            Write::Put { key, value, lease } => {
                self.history.push((key.clone(), value.clone()));
                let created = self.entries.get(key).map_or(at, |entry| entry.created);
                let entry = Entry { key: key.clone(), value: value.clone(), created, modified: at, lease: *lease };
                self.changes.push(Change::Put(entry.clone()));
                self.entries.insert(key.clone(), entry);
            }
            Write::Delete(key) => {
                if self.entries.remove(key).is_some() {
                    self.changes.push(Change::Gone { key: key.clone(), at, cause: GoneCause::Deleted });
                }
            }
            Write::Incr { key, by } => {
                let old = self.entries.get(key).and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse().ok());
                let value = Bytes::from((old.unwrap_or(0_i64) + by).to_string());
                let created = self.entries.get(key).map_or(at, |entry| entry.created);
                let lease = self.entries.get(key).and_then(|entry| entry.lease);
                let entry = Entry { key: key.clone(), value, created, modified: at, lease };
                self.changes.push(Change::Put(entry.clone()));
                self.entries.insert(key.clone(), entry);
            }
        }
    }

    fn in_dir<'a>(&'a self, dir: &'a Dir) -> impl Iterator<Item = &'a Entry> {
        self.entries.values().filter(move |entry| entry.key.dir() == dir)
    }
}

/// What happens to requests of one client.
#[derive(Default)]
pub(crate) struct Faults {
    /// How long a request travels, and its answer again.
    pub(crate) latency: Duration,
    /// Decides the fate of each request; by default all arrive.
    pub(crate) fate: Option<FateOf>,
    /// How many requests were made, without waits.
    pub(crate) requests: usize,
    /// Raise it to end the client's feeds; they notice at the next [`Model::poke`].
    pub(crate) cuts: usize,
    /// Raise it to make the client's feeds skip what they have not delivered, and say so.
    pub(crate) gaps: usize,
    /// Whether feeds do not tell why an entry is gone, as etcd's do not.
    pub(crate) hides_causes: bool,
    /// What the store promises, if not everything.
    pub(crate) guarantees: Option<&'static Guarantees>,
}

pub(crate) type FateOf = Box<dyn FnMut(Request<'_>) -> Fate + Send>;

/// A request, for choosing its fate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request<'a> {
    Txn(&'a Txn),
    Read,
    Watch,
    AwaitGone,
    Renew,
    OtherLease,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    /// It does not arrive, and the client knows.
    Refused,
    /// It takes effect, but the answer is lost.
    AnswerLost,
    /// The client hears of a lost connection; the request arrives later.
    Late(Duration),
    /// It takes this much longer on its way.
    Slow(Duration),
    /// It takes effect, and the answer takes this much longer.
    SlowAnswer(Duration),
    /// It does not arrive, and no answer ever comes: the client gives up after a while.
    Lost,
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the store.
pub(crate) struct Client {
    pub(crate) model: Model,
    pub(crate) env: Env,
    pub(crate) faults: Arc<Mutex<Faults>>,
}

impl Client {
    async fn call<T: Send + 'static>(
        &self,
        request: Request<'_>,
        apply: impl FnOnce(&Model) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (fate, latency) = {
            let mut faults = self.faults.lock();
            faults.requests += 1;
            (faults.fate.as_mut().map_or(Fate::Arrives, |fate| fate(request)), faults.latency)
        };
        let unavailable = || Error::new(ErrorKind::Unavailable, "the connection was lost");
        self.travel(latency).await;
        match fate {
            Fate::Arrives => {}
            Fate::Refused => return Err(unavailable()),
            Fate::AnswerLost => {
                let _ = apply(&self.model);
                return Err(unavailable().effect_unknown());
            }
            Fate::Late(by) => {
                let (model, env) = (self.model.clone(), self.env.clone());
                crate::world::start(async move {
                    env.sleep(by).await;
                    let _ = apply(&model);
                });
                return Err(unavailable().effect_unknown());
            }
            Fate::Slow(by) => self.env.sleep(by).await,
            Fate::SlowAnswer(by) => {
                let answer = apply(&self.model);
                self.env.sleep(by).await;
                return answer;
            }
            Fate::Lost => {
                self.env.sleep(REQUEST_TIMEOUT).await;
                return Err(unavailable().effect_unknown());
            }
        }
        let answer = apply(&self.model);
        self.travel(latency).await;
        answer
    }

    async fn travel(&self, latency: Duration) {
        if !latency.is_zero() {
            self.env.sleep(latency).await;
        }
    }
}

/// One feed: where it is in the model's changes.
struct Cursor {
    model: Model,
    env: Env,
    faults: Arc<Mutex<Faults>>,
    scope: Scope,
    next: usize,
    cuts: usize,
    gaps: usize,
}

impl Cursor {
    async fn next(&mut self) -> Result<Change> {
        let mut changed = self.model.0.changed.subscribe();
        loop {
            let expiry = {
                let faults = self.faults.lock();
                if faults.cuts != self.cuts {
                    return Err(Error::new(ErrorKind::Unavailable, "the feed was cut"));
                }
                let state = self.model.lock();
                if faults.gaps != self.gaps {
                    self.gaps = faults.gaps;
                    self.next = state.changes.len();
                    return Ok(Change::Resync { why: "compacted".to_owned(), at: Revision(state.revision) });
                }
                let found = state.changes[self.next..].iter().position(|change| self.is_in_scope(change));
                if let Some(found) = found {
                    self.next += found + 1;
                    let change = state.changes[self.next - 1].clone();
                    return Ok(if faults.hides_causes { without_cause(change) } else { change });
                }
                self.next = state.changes.len();
                state.leases.values().map(|(_, ends)| *ends).min()
            };
            let expired = async {
                match expiry {
                    Some(at) => self.env.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = expired => {}
            }
        }
    }

    fn is_in_scope(&self, change: &Change) -> bool {
        let (Change::Put(Entry { key, .. }) | Change::Gone { key, .. }) = change else {
            return false;
        };
        match &self.scope {
            Scope::Key(watched) => key == watched,
            Scope::Dir(watched) => key.dir() == watched,
        }
    }
}

fn without_cause(change: Change) -> Change {
    match change {
        Change::Gone { key, at, .. } => Change::Gone { key, at, cause: GoneCause::Unknown },
        other => other,
    }
}

fn revision_of(change: &Change) -> Revision {
    match change {
        Change::Put(entry) => entry.modified,
        Change::Gone { at, .. } | Change::Resync { at, .. } | Change::Progress(at) => *at,
    }
}

const STRONG: Guarantees = Guarantees {
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

/// A store that loses everything with its process.
pub(crate) const VOLATILE: Guarantees = Guarantees { writes: Durability::Memory, fence: Fence::PerProcess, ..STRONG };

impl KvStore for Client {
    fn guarantees(&self) -> &Guarantees {
        self.faults.lock().guarantees.unwrap_or(&STRONG)
    }

    fn describe(&self) -> String {
        "model:".to_owned()
    }

    async fn txn(&self, _realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        self.call(Request::Txn(&txn), {
            let txn = txn.clone();
            move |model| model.txn(&txn)
        })
        .await
    }

    async fn get(&self, key: &Key, _at: ReadAt) -> Result<Option<Entry>> {
        let key = key.clone();
        self.call(Request::Read, move |model| Ok(model.lock().entries.get(&key).cloned())).await
    }

    async fn list(&self, dir: &Dir, order: Order, limit: usize, _at: ReadAt) -> Result<Page> {
        let dir = dir.clone();
        self.call(Request::Read, move |model| {
            let state = model.lock();
            let mut entries: Vec<_> = state.in_dir(&dir).cloned().collect();
            match &order {
                Order::Name { after } => entries.retain(|entry| entry.key.name() > after.as_str()),
                Order::Created { after } => {
                    entries.retain(|entry| entry.created > *after);
                    entries.sort_by_key(|entry| entry.created);
                }
            }
            let more = entries.len() > limit;
            entries.truncate(limit);
            Ok(Page { entries, more, revision: Revision(state.revision) })
        })
        .await
    }

    async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        let (realm, prefix, after) = (realm.clone(), prefix.to_owned(), after.to_owned());
        self.call(Request::Read, move |model| {
            let state = model.lock();
            let mut dirs: Vec<Dir> = state.entries.keys().map(|key| key.dir().clone()).collect();
            dirs.retain(|dir| *dir.realm() == realm && dir.path().starts_with(&prefix) && *dir.path() > *after);
            dirs.dedup();
            dirs.truncate(limit);
            Ok(dirs)
        })
        .await
    }

    async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        let (model, env, faults) = (self.model.clone(), self.env.clone(), self.faults.clone());
        let (cuts, gaps) = {
            let faults = self.faults.lock();
            (faults.cuts, faults.gaps)
        };
        let begin = self
            .call(Request::Watch, move |model| {
                let state = model.lock();
                Ok(after.map_or(state.changes.len(), |after| {
                    state.changes.iter().take_while(|change| revision_of(change) <= after).count()
                }))
            })
            .await?;
        let cursor = Cursor { model, env, faults, scope, next: begin, cuts, gaps };
        Ok(futures::stream::unfold(Some(cursor), |cursor| async {
            let mut cursor = cursor?;
            match cursor.next().await {
                Ok(change) => Some((Ok(change), Some(cursor))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }

    async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        let fate = {
            let mut faults = self.faults.lock();
            faults.fate.as_mut().map_or(Fate::Arrives, |fate| fate(Request::AwaitGone))
        };
        match fate {
            Fate::Arrives => self.model.await_gone(&self.env, key, created).await,
            // A spurious wake-up.
            Fate::Slow(after) => self.env.sleep(after).await,
            Fate::Lost => std::future::pending().await,
            _ => return Err(Error::new(ErrorKind::Unavailable, "the connection was lost")),
        }
        Ok(())
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease> {
        self.call(Request::OtherLease, move |model| {
            let mut state = model.lock();
            state.next_lease += 1;
            let id = LeaseId(state.next_lease);
            state.leases.insert(id, (ttl, Env::real().now() + ttl));
            Ok(Lease { id, ttl })
        })
        .await
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        self.call(Request::Renew, move |model| {
            let mut state = model.lock();
            let (ttl, ends) =
                state.leases.get_mut(&lease).ok_or_else(|| Error::new(ErrorKind::Fenced, "the lease has ended"))?;
            *ends = Env::real().now() + *ttl;
            Ok(*ttl)
        })
        .await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        self.call(Request::OtherLease, move |model| {
            model.lock().end_lease(lease, GoneCause::Deleted);
            model.announce();
            Ok(())
        })
        .await
    }

    async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        self.call(Request::Read, move |model| {
            let now = Env::real().now();
            Ok(model.lock().leases.get(&lease).map(|(_, ends)| ends.duration_since(now)))
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
