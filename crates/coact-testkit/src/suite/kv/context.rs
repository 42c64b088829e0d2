//! What a case works with, and short forms of what cases say often.

use std::{fmt, ops::Deref, time::Duration};

use bytes::Bytes;
use coact_core::{
    Result,
    contract::kv::{
        Change, Check, Entry, Feed, Found, KvHandle, Lease, LeaseId, Order, Page, Revision, Scope, Txn, TxnOutcome,
        Write,
    },
    env::Env,
    name::{Dir, Key, Realm},
};
use futures::StreamExt;

pub(super) use crate::suite::context::assert_kind;
use crate::{
    bed::PATIENCE,
    suite::{Basis, Contract},
};

/// A lease that a case can wait for to end, and that is long enough to do something meanwhile.
pub(super) const SHORT: Duration = Duration::from_secs(2);

/// A store and a fresh realm of it.
#[derive(Debug)]
pub struct Context {
    basis: Basis,
    /// A client that other cases use too.
    pub kv: KvHandle,
    /// A realm that nobody else uses.
    pub realm: Realm,
}

impl Contract for Context {
    fn of(basis: Basis) -> Result<Self> {
        Ok(Self { kv: basis.store.kv().clone(), realm: Realm::new(&basis.unique)?, basis })
    }
}

impl Deref for Context {
    type Target = Basis;

    fn deref(&self) -> &Basis {
        &self.basis
    }
}

impl Context {
    /// A new client of the same store.
    pub async fn another_client(&self) -> KvHandle {
        self.another_store().await.kv().clone()
    }

    /// Ends the store hard, starts it again, and opens a new client.
    pub async fn restart(&self) -> KvHandle {
        self.restarted().await.kv().clone()
    }

    /// The key `dir/name` of the case's realm.
    pub fn key(&self, text: &str) -> Key {
        Key::parse(&self.realm, text).expect("a valid key")
    }

    /// A dir of the case's realm.
    pub fn dir(&self, path: &str) -> Dir {
        Dir::new(&self.realm, path).expect("a valid dir")
    }

    /// Sets a value, without lease.
    pub async fn put(&self, key: &str, value: &str) -> Revision {
        self.kv.put(&self.key(key), value.to_owned(), None).await.expect("a put commits")
    }

    /// Sets a value with a lease.
    pub async fn put_leased(&self, key: &str, value: &str, lease: LeaseId) -> Revision {
        self.kv.put(&self.key(key), value.to_owned(), Some(lease)).await.expect("a put with a live lease commits")
    }

    /// Deletes.
    pub async fn delete(&self, key: &str) -> Revision {
        self.kv.delete(&self.key(key)).await.expect("a delete commits")
    }

    /// Reads.
    pub async fn get(&self, key: &str) -> Option<Entry> {
        self.kv.get(&self.key(key)).await.expect("a get answers")
    }

    /// Reads what must be there.
    pub async fn entry(&self, key: &str) -> Entry {
        self.get(key).await.unwrap_or_else(|| panic!("{key} is there"))
    }

    /// The value as text; `None` if there is no entry.
    pub async fn value(&self, key: &str) -> Option<String> {
        Some(String::from_utf8(self.get(key).await?.value.to_vec()).expect("text"))
    }

    /// Runs a transaction.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        self.kv.txn(&self.realm, txn).await
    }

    /// Runs a transaction that must commit.
    pub async fn commit(&self, txn: Txn) -> (Revision, Vec<Found>) {
        match self.txn(txn).await.expect("the transaction is answered") {
            TxnOutcome::Committed { revision, reads } => (revision, reads),
            TxnOutcome::Refused { check, found } => panic!("check {check} refused, found {found:?}"),
        }
    }

    /// Runs a transaction that must be refused.
    pub async fn refusal(&self, txn: Txn) -> (usize, Option<Entry>) {
        match self.txn(txn).await.expect("the transaction is answered") {
            TxnOutcome::Refused { check, found } => (check, found),
            TxnOutcome::Committed { .. } => panic!("the transaction committed"),
        }
    }

    /// Whether all of these checks hold.
    pub async fn holds(&self, checks: Vec<Check>) -> bool {
        let outcome = self.txn(Txn { checks, ..Txn::default() }).await.expect("the transaction is answered");
        matches!(outcome, TxnOutcome::Committed { .. })
    }

    /// Lists by name from the beginning.
    pub async fn list(&self, dir: &str) -> Page {
        self.kv.list(&self.dir(dir), by_name(""), 1000).await.expect("a list answers")
    }

    /// Watches a dir.
    pub async fn watch_dir(&self, dir: &str, after: Option<Revision>) -> Watching {
        self.watch(Scope::Dir(self.dir(dir)), after).await
    }

    /// Watches.
    pub async fn watch(&self, scope: Scope, after: Option<Revision>) -> Watching {
        self.watch_with(&self.kv, scope, after).await
    }

    /// Watches with another client.
    pub async fn watch_with(&self, kv: &KvHandle, scope: Scope, after: Option<Revision>) -> Watching {
        Watching { feed: kv.watch(scope, after).await.expect("a watch begins"), env: self.env.clone() }
    }

    /// A lease that ends soon if nobody renews it.
    pub async fn short_lease(&self) -> Lease {
        self.kv.lease_grant(SHORT.max(self.kv.guarantees().limits.ttl_min)).await.expect("a lease is granted")
    }

    /// A lease that does not end during the case.
    pub async fn long_lease(&self) -> Lease {
        self.kv.lease_grant(Duration::from_secs(600)).await.expect("a lease is granted")
    }

    /// Ends a lease.
    pub async fn revoke(&self, lease: LeaseId) {
        self.kv.lease_revoke(lease).await.expect("a revoke is answered");
    }

    /// Waits until a lease has ended by itself.
    pub async fn until_ended(&self, lease: LeaseId) {
        self.until("the lease ends", async || self.left(lease).await.is_none()).await;
    }

    /// How long a lease still lives.
    pub async fn left(&self, lease: LeaseId) -> Option<Duration> {
        self.kv.lease_left(lease).await.expect("it is answered")
    }
}

/// A watch that fails the case rather than hang.
pub struct Watching {
    feed: Feed,
    env: Env,
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watching")
    }
}

impl Watching {
    /// The next change that is no `Progress`.
    pub async fn next(&mut self) -> Change {
        loop {
            let item = self.env.timeout(PATIENCE, self.feed.next()).await;
            match item.expect("a change arrives").expect("the watch goes on").expect("the watch is healthy") {
                Change::Progress(_) => {}
                change => return change,
            }
        }
    }

    /// The next change, in brief: `+name=value` or `-name`.
    pub async fn next_brief(&mut self) -> String {
        match self.next().await {
            Change::Put(entry) => format!("+{}={}", entry.key.name(), String::from_utf8_lossy(&entry.value)),
            Change::Gone { key, .. } => format!("-{}", key.name()),
            other => panic!("expected a change of an entry, got {other:?}"),
        }
    }

    /// The next changes, in brief.
    pub async fn brief(&mut self, count: usize) -> Vec<String> {
        let mut changes = Vec::new();
        for _ in 0..count {
            changes.push(self.next_brief().await);
        }
        changes
    }
}

/// A put without lease.
pub(super) fn put(key: &Key, value: impl Into<Bytes>) -> Write {
    Write::Put { key: key.clone(), value: value.into(), lease: None }
}

/// A put with a lease.
pub(super) fn put_leased(key: &Key, value: impl Into<Bytes>, lease: LeaseId) -> Write {
    Write::Put { key: key.clone(), value: value.into(), lease: Some(lease) }
}

/// An increment.
pub(super) fn incr(key: &Key, by: i64) -> Write {
    Write::Incr { key: key.clone(), by }
}

/// A transaction of writes alone.
pub(super) fn writes(writes: Vec<Write>) -> Txn {
    Txn { writes, ..Txn::default() }
}

/// A transaction that writes if one check holds.
pub(super) fn guarded(check: Check, write: Write) -> Txn {
    Txn { checks: vec![check], writes: vec![write], ..Txn::default() }
}

/// The order by name, after this one.
pub(super) fn by_name(after: &str) -> Order {
    Order::Name { after: after.to_owned() }
}

/// The names of a page.
pub(super) fn names(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.key.name()).collect()
}
