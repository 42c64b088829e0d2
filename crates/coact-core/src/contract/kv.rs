//! Kv, the coordination contract: small transactions, leases, watches, and a wake-up for whoever waits.
//!
//! **Engine authors** implement [`KvStore`] with plain `async fn`: no default methods, so nothing can drift.
//! **Block authors** hold a [`KvHandle`]: cheap to clone, without type parameters, and where conveniences live.
//!
//! Revisions grow with every commit of a realm, in commit order; gaps are legal. The revision that created an entry is
//! its **fencing token**. An expired lease never comes back.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::{
    env::Env,
    error::{Error, ErrorKind, Result},
    guarantees::{Accepted, Guarantees, Limits, Needs},
    name::{Dir, Key, Realm},
};

/// A point in the history of a realm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a lease, given by the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A lease as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it lives without renewal; the engine may have rounded up what was asked.
    pub ttl: Duration,
}

/// One stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub key: Key,
    /// What it is.
    pub value: Bytes,
    /// The revision that created it: its fencing token.
    pub created: Revision,
    /// The revision that last changed it.
    pub modified: Revision,
    /// The lease whose end deletes it.
    pub lease: Option<LeaseId>,
}

/// A small atomic transaction in one realm.
///
/// All checks hold and all writes happen, or none do. Reads see the state **before** the writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// At most 8.
    pub checks: Vec<Check>,
    /// Evaluated in order, before the writes.
    pub reads: Vec<Read>,
    /// At most 16, each on another key.
    pub writes: Vec<Write>,
}

impl Txn {
    /// Refuses what no engine would take: past a limit, a key of another realm, one key written twice.
    ///
    /// Who hands a transaction to a [`KvHandle`] need not call it; the handle does.
    ///
    /// # Errors
    /// `Invalid`, naming what is wrong and what is allowed.
    pub fn check(&self, realm: &Realm, limits: &Limits) -> Result<()> {
        let too_many = |what: &str, count: usize, max: usize| {
            Err(Error::invalid(format!("the transaction has {count} {what}: at most {max} are allowed")))
        };
        if self.checks.len() > limits.checks {
            return too_many("checks", self.checks.len(), limits.checks);
        }
        if self.writes.len() > limits.writes {
            return too_many("writes", self.writes.len(), limits.writes);
        }
        if self.reads.len() > limits.writes {
            return too_many("reads", self.reads.len(), limits.writes);
        }
        for (index, write) in self.writes.iter().enumerate() {
            check_realm(realm, write.key().realm())?;
            if self.writes[..index].iter().any(|earlier| earlier.key() == write.key()) {
                return Err(Error::invalid(format!("the transaction writes key {} twice", write.key())));
            }
            if let Write::Put { key, value, .. } = write
                && value.len() > limits.value_bytes
            {
                return Err(Error::invalid(format!(
                    "the value of {key} has {} bytes: at most {} are allowed",
                    value.len(),
                    limits.value_bytes
                )));
            }
        }
        for check in &self.checks {
            match check {
                Check::CreatedAt(key, Revision(0)) | Check::ModifiedAt(key, Revision(0)) => {
                    return Err(Error::invalid(format!(
                        "a check of {key} names revision 0, which no entry has: to check that there is none, use Absent"
                    )));
                }
                Check::Absent(key) | Check::CreatedAt(key, _) | Check::ModifiedAt(key, _) => {
                    check_realm(realm, key.realm())?;
                }
                Check::LeaseAlive(_) => {}
            }
        }
        for read in &self.reads {
            match read {
                Read::Get(key) => check_realm(realm, key.realm())?,
                Read::First(dir) | Read::Last(dir) | Read::Count(dir) => check_realm(realm, dir.realm())?,
            }
        }
        Ok(())
    }
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key has no entry.
    Absent(Key),
    /// The entry was created at this revision, and not deleted since.
    CreatedAt(Key, Revision),
    /// The entry was last changed at this revision.
    ModifiedAt(Key, Revision),
    /// The lease has not ended.
    LeaseAlive(LeaseId),
}

/// A change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets the value, and the lease to exactly this (an earlier one is detached).
    Put {
        /// Where.
        key: Key,
        /// What; at most 64 KiB.
        value: Bytes,
        /// Whose end deletes it.
        lease: Option<LeaseId>,
    },
    /// Removes the entry; no effect if there is none.
    Delete(Key),
    /// Adds to a decimal number, which starts at zero; keeps the lease.
    Incr {
        /// Where.
        key: Key,
        /// How much; may be negative.
        by: i64,
    },
}

impl Write {
    /// The key that this changes.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete(key) | Self::Incr { key, .. } => key,
        }
    }
}

/// A read inside a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// One entry.
    Get(Key),
    /// The entry of the dir that was created first.
    First(Dir),
    /// The entry of the dir that was created last.
    Last(Dir),
    /// How many entries the dir has.
    Count(Dir),
}

/// The answer to one [`Read`], in the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// For `Get`, `First` and `Last`.
    Entry(Option<Entry>),
    /// For `Count`.
    Count(u64),
}

impl Found {
    /// The entry, if this is the answer to a read of an entry and there is one.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Entry(entry) => entry.as_ref(),
            Self::Count(_) => None,
        }
    }
}

/// How a transaction ended. A refusal is an outcome, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a refused transaction changed nothing"]
pub enum TxnOutcome {
    /// Every check held; every write is as durable as the engine declares.
    Committed {
        /// The revision of the writes; without writes, the revision that was read.
        revision: Revision,
        /// One answer for each read.
        reads: Vec<Found>,
    },
    /// A check did not hold; nothing was changed.
    Refused {
        /// The index of the first check that failed.
        check: usize,
        /// The entry that was there instead, for checks of a key.
        found: Option<Entry>,
    },
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadAt {
    /// It sees every write acknowledged before.
    #[default]
    Linearizable,
    /// Any server may answer; what it knows may be old.
    Any,
}

/// The order of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// By name, after this one.
    Name {
        /// Start after this name; empty for the beginning.
        after: String,
    },
    /// By creation, after this revision; what one transaction created comes in the order of names.
    Created {
        /// Start after what was created at this revision; zero for the beginning.
        after: Revision,
    },
}

/// Part of a dir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In the order asked.
    pub entries: Vec<Entry>,
    /// Whether the limit cut it off.
    pub more: bool,
    /// The revision that this shows; a watch after it misses nothing.
    pub revision: Revision,
}

/// What a watch looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One key.
    Key(Key),
    /// Every entry of a dir.
    Dir(Dir),
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An entry was created or changed, at `entry.modified`.
    Put(Entry),
    /// An entry went away.
    Gone {
        /// Which.
        key: Key,
        /// When.
        at: Revision,
        /// Why, if the engine tells.
        cause: GoneCause,
    },
    /// Everything up to this revision was delivered.
    Progress(Revision),
    /// Changes up to `at` may be missing. Read the state again; the watch goes on after `at`.
    Resync {
        /// What happened.
        why: String,
        /// The watch goes on after this.
        at: Revision,
    },
}

/// Why an entry went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneCause {
    /// Somebody deleted it.
    Deleted,
    /// Its lease ended.
    Expired,
    /// The engine does not tell.
    Unknown,
}

/// A watch: items in revision order, never a silent gap. An error ends it.
pub type Feed = BoxStream<'static, Result<Change>>;

/// The Kv contract, for engine authors. Requests arrive validated by [`KvHandle`].
///
/// Cancelling any future leaves the request's effect unknown unless the method says otherwise.
pub trait KvStore: Send + Sync + 'static {
    /// What this engine promises, as probed at open.
    fn guarantees(&self) -> &Guarantees;

    /// A name for messages: the URL without secrets.
    fn describe(&self) -> String;

    /// Runs a transaction in one realm.
    ///
    /// # Errors
    /// `Fenced` if a write names a lease that has ended; `Invalid` if an `Incr` meets something that is no number.
    fn txn(&self, realm: &Realm, txn: Txn) -> impl Future<Output = Result<TxnOutcome>> + Send;

    /// Reads one entry.
    fn get(&self, key: &Key, at: ReadAt) -> impl Future<Output = Result<Option<Entry>>> + Send;

    /// Lists up to `limit` entries of a dir. By creation, a page does not end amid what one transaction created, unless
    /// that alone exceeds the limit.
    fn list(&self, dir: &Dir, order: Order, limit: usize, at: ReadAt) -> impl Future<Output = Result<Page>> + Send;

    /// Lists up to `limit` dirs that have entries and whose path starts with `prefix`, after the dir `after`, in an order
    /// of the engine's own.
    fn dirs(
        &self,
        realm: &Realm,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Dir>>> + Send;

    /// Delivers every change after a revision, or from now on.
    fn watch(&self, scope: Scope, after: Option<Revision>) -> impl Future<Output = Result<Feed>> + Send;

    /// Returns when the entry that was created at this revision is gone. A hint: it may return early.
    ///
    /// Dropping the future stops the waiting and has no other effect.
    fn await_gone(&self, key: &Key, created: Revision) -> impl Future<Output = Result<()>> + Send;

    /// Grants a lease of at least this length.
    fn lease_grant(&self, ttl: Duration) -> impl Future<Output = Result<Lease>> + Send;

    /// Renews a lease to its full length and returns it.
    ///
    /// # Errors
    /// `Fenced` if it has ended.
    fn lease_renew(&self, lease: LeaseId) -> impl Future<Output = Result<Duration>> + Send;

    /// Ends a lease and deletes its entries; no effect if it has ended.
    fn lease_revoke(&self, lease: LeaseId) -> impl Future<Output = Result<()>> + Send;

    /// How long the lease still lives if nobody renews it; `None` if it has ended.
    fn lease_left(&self, lease: LeaseId) -> impl Future<Output = Result<Option<Duration>>> + Send;

    /// Finishes what was acknowledged and releases files and connections. Later calls fail with `Closed`.
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
}

/// A store of the Kv contract, for blocks and users: cheap to clone, checks every request against the limits.
#[derive(Clone)]
pub struct KvHandle {
    store: Arc<dyn DynKvStore>,
    env: Env,
    accepted: Accepted,
}

impl fmt::Debug for KvHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvHandle({})", self.store.describe())
    }
}

impl KvHandle {
    /// Wraps an engine. `accepted` are the weaknesses that the user accepted by name.
    pub fn new(store: impl KvStore, env: Env, accepted: Accepted) -> Self {
        Self { store: Arc::new(store), env, accepted }
    }

    /// The environment that the engine runs in; blocks use the same.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// What the engine promises.
    pub fn guarantees(&self) -> &Guarantees {
        self.store.guarantees()
    }

    /// The engine's URL without secrets.
    pub fn describe(&self) -> String {
        self.store.describe()
    }

    /// Refuses if the engine promises less than a block needs and the user did not accept it.
    ///
    /// # Errors
    /// `Unsupported`, naming both sides.
    pub fn require(&self, needs: &Needs) -> Result<()> {
        self.guarantees().require(&self.describe(), needs, &self.accepted)
    }

    /// Runs a transaction in one realm.
    ///
    /// # Errors
    /// `Invalid` past a limit or with a key of another realm; `Fenced` if a put names a lease that has ended;
    /// `Unavailable` with effect `Unknown` if the answer was lost.
    ///
    /// # Cancel safety
    /// Once polled, the transaction may commit though the future is dropped.
    pub async fn txn(&self, realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        txn.check(realm, &self.guarantees().limits)?;
        self.store.txn(realm, txn).await
    }

    /// Reads one entry, linearizably.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.store.get(key, ReadAt::Linearizable).await
    }

    /// Reads one entry as fresh as asked.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn get_at(&self, key: &Key, at: ReadAt) -> Result<Option<Entry>> {
        self.store.get(key, at).await
    }

    /// Sets a value and returns the revision.
    ///
    /// # Errors
    /// As [`txn`](Self::txn).
    ///
    /// # Cancel safety
    /// As [`txn`](Self::txn).
    pub async fn put(&self, key: &Key, value: impl Into<Bytes>, lease: Option<LeaseId>) -> Result<Revision> {
        let write = Write::Put { key: key.clone(), value: value.into(), lease };
        let txn = Txn { writes: vec![write], ..Txn::default() };
        committed(self.txn(key.realm(), txn).await?)
    }

    /// Removes an entry; no effect if there is none.
    ///
    /// # Errors
    /// As [`txn`](Self::txn).
    ///
    /// # Cancel safety
    /// As [`txn`](Self::txn).
    pub async fn delete(&self, key: &Key) -> Result<Revision> {
        let txn = Txn { writes: vec![Write::Delete(key.clone())], ..Txn::default() };
        committed(self.txn(key.realm(), txn).await?)
    }

    /// Lists up to `limit` entries of a dir, linearizably.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn list(&self, dir: &Dir, order: Order, limit: usize) -> Result<Page> {
        self.store.list(dir, order, limit, ReadAt::Linearizable).await
    }

    /// Lists up to `limit` dirs with entries whose path starts with `prefix`, after the path `after`.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        self.store.dirs(realm, prefix, after, limit).await
    }

    /// Delivers every change after a revision, or from now on. Drop the feed to stop.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer. A revision that the history no longer holds is no error: the feed
    /// begins with [`Change::Resync`].
    ///
    /// # Cancel safety
    /// Safe: nothing is consumed until the feed is polled.
    pub async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        self.store.watch(scope, after).await
    }

    /// Returns when the entry created at this revision is gone. A hint: look again before you act on it.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: dropping it stops the waiting.
    pub async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        self.store.await_gone(key, created).await
    }

    /// Grants a lease of at least this length. Most users want a session instead, which keeps it alive.
    ///
    /// # Errors
    /// `Invalid` outside the engine's limits.
    ///
    /// # Cancel safety
    /// A lease granted to a dropped future ends by itself after its length.
    pub async fn lease_grant(&self, ttl: Duration) -> Result<Lease> {
        let limits = &self.guarantees().limits;
        if ttl < limits.ttl_min || ttl > limits.ttl_max {
            return Err(Error::invalid(format!(
                "a lease of {ttl:?} is not allowed: use {:?} to {:?}",
                limits.ttl_min, limits.ttl_max
            )));
        }
        self.store.lease_grant(ttl).await
    }

    /// Renews a lease to its full length and returns it.
    ///
    /// # Errors
    /// `Fenced` if it has ended.
    ///
    /// # Cancel safety
    /// It may have been renewed.
    pub async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        self.store.lease_renew(lease).await
    }

    /// Ends a lease and deletes its entries; no effect if it has ended.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// It may have been revoked.
    pub async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        self.store.lease_revoke(lease).await
    }

    /// How long a lease still lives if nobody renews it; `None` if it has ended.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        self.store.lease_left(lease).await
    }

    /// Finishes what was acknowledged and releases files and connections. Later calls on any clone fail with `Closed`.
    ///
    /// # Errors
    /// What the last write to disk answers.
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        self.store.close().await
    }
}

fn committed(outcome: TxnOutcome) -> Result<Revision> {
    match outcome {
        TxnOutcome::Committed { revision, .. } => Ok(revision),
        TxnOutcome::Refused { .. } => {
            Err(Error::new(ErrorKind::Internal, "an engine refused a transaction without checks"))
        }
    }
}

fn check_realm(realm: &Realm, other: &Realm) -> Result<()> {
    if realm == other {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the transaction is in realm {realm} but names a key of realm {other}: a transaction stays in one realm"
    )))
}

/// The erased form, written once, so that blocks need no type parameter. Engine authors never see it.
trait DynKvStore: Send + Sync {
    fn guarantees(&self) -> &Guarantees;
    fn describe(&self) -> String;
    fn txn<'a>(&'a self, realm: &'a Realm, txn: Txn) -> BoxFuture<'a, Result<TxnOutcome>>;
    fn get<'a>(&'a self, key: &'a Key, at: ReadAt) -> BoxFuture<'a, Result<Option<Entry>>>;
    fn list<'a>(&'a self, dir: &'a Dir, order: Order, limit: usize, at: ReadAt) -> BoxFuture<'a, Result<Page>>;
    fn dirs<'a>(
        &'a self,
        realm: &'a Realm,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Dir>>>;
    fn watch(&self, scope: Scope, after: Option<Revision>) -> BoxFuture<'_, Result<Feed>>;
    fn await_gone<'a>(&'a self, key: &'a Key, created: Revision) -> BoxFuture<'a, Result<()>>;
    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>>;
    fn lease_renew(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration>>;
    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>>;
    fn lease_left(&self, lease: LeaseId) -> BoxFuture<'_, Result<Option<Duration>>>;
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

impl<S: KvStore> DynKvStore for S {
    fn guarantees(&self) -> &Guarantees {
        KvStore::guarantees(self)
    }
    fn describe(&self) -> String {
        KvStore::describe(self)
    }
    fn txn<'a>(&'a self, realm: &'a Realm, txn: Txn) -> BoxFuture<'a, Result<TxnOutcome>> {
        Box::pin(KvStore::txn(self, realm, txn))
    }
    fn get<'a>(&'a self, key: &'a Key, at: ReadAt) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(KvStore::get(self, key, at))
    }
    fn list<'a>(&'a self, dir: &'a Dir, order: Order, limit: usize, at: ReadAt) -> BoxFuture<'a, Result<Page>> {
        Box::pin(KvStore::list(self, dir, order, limit, at))
    }
    fn dirs<'a>(
        &'a self,
        realm: &'a Realm,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Dir>>> {
        Box::pin(KvStore::dirs(self, realm, prefix, after, limit))
    }
    fn watch(&self, scope: Scope, after: Option<Revision>) -> BoxFuture<'_, Result<Feed>> {
        Box::pin(KvStore::watch(self, scope, after))
    }
    fn await_gone<'a>(&'a self, key: &'a Key, created: Revision) -> BoxFuture<'a, Result<()>> {
        Box::pin(KvStore::await_gone(self, key, created))
    }
    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(KvStore::lease_grant(self, ttl))
    }
    fn lease_renew(&self, lease: LeaseId) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(KvStore::lease_renew(self, lease))
    }
    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(KvStore::lease_revoke(self, lease))
    }
    fn lease_left(&self, lease: LeaseId) -> BoxFuture<'_, Result<Option<Duration>>> {
        Box::pin(KvStore::lease_left(self, lease))
    }
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(KvStore::close(self))
    }
}
