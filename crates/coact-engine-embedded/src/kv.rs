//! The Kv contract on the embedded engine: a translation to the flat key space.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{
        Change, Check, Entry, Feed, Found, GoneCause, KvStore, Lease, LeaseId, Order, Page, Read, ReadAt, Revision,
        Scope, Txn, TxnOutcome, Write,
    },
    guarantees::{
        Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, OnPartition, WakeUp, WatchFrom,
    },
    name::{Dir, Key, Namespace, Realm},
};

use crate::{
    engine::Engine,
    flat::{
        Answer, Compare, DeleteRequest, Event, FlatError, IncrementRequest, KeyRange, Op, PutRequest, RangeRequest,
        Record, Relation, Sort, SortBy, Target, TxnRequest, TxnResponse,
    },
    watch::{Delivery, Watcher},
};

pub(crate) struct EmbeddedKv {
    engine: Engine,
    namespace: Namespace,
    guarantees: Guarantees,
}

impl EmbeddedKv {
    pub(crate) fn new(engine: Engine, namespace: Namespace) -> Self {
        let durability = engine.config().durability;
        let volatile = durability == Durability::Memory;
        let guarantees = Guarantees {
            reads: Consistency::Linearizable,
            writes: durability,
            on_partition: OnPartition::SingleNode,
            failover: Failover::KeepsWrites,
            fence: if volatile { Fence::PerProcess } else { Fence::Strong },
            watch: WatchFrom::Revision,
            wake: WakeUp::Told,
            increment: Increment::Native,
            limits: Limits { ttl_min: Duration::from_millis(50), ..Limits::PORTABLE },
        };
        Self { engine, namespace, guarantees }
    }

    /// A transaction in the flat key space.
    pub(crate) fn request(&self, txn: Txn) -> TxnRequest {
        let ranges = txn.reads.iter().map(|read| Op::Range(self.read(read)));
        TxnRequest {
            compare: txn.checks.iter().map(|check| self.compare(check)).collect(),
            success: ranges.chain(txn.writes.into_iter().map(|write| self.write(write))).collect(),
            failure: Vec::new(),
        }
    }

    /// The answer to a transaction with these reads.
    pub(crate) fn outcome(&self, response: TxnResponse, reads: &[Read]) -> TxnOutcome {
        if let Some((check, record)) = response.failed {
            let found = record.and_then(|record| self.entry(&record));
            return TxnOutcome::Refused { check, found };
        }
        let answers = response.answers.into_iter().zip(reads);
        let reads = answers.filter_map(|(answer, read)| self.found(answer, read)).collect();
        TxnOutcome::Committed { revision: Revision(response.revision), reads }
    }

    fn flat(&self, key: &Key) -> Bytes {
        key.to_flat(&self.namespace).into()
    }

    fn dir_range(&self, dir: &Dir) -> KeyRange {
        KeyRange::prefix(dir.to_flat(&self.namespace))
    }

    fn compare(&self, check: &Check) -> Compare {
        let (keys, target) = match check {
            Check::Absent(key) => (KeyRange::one(self.flat(key)), Target::Created(0)),
            Check::CreatedAt(key, revision) => (KeyRange::one(self.flat(key)), Target::Created(revision.0)),
            Check::ModifiedAt(key, revision) => (KeyRange::one(self.flat(key)), Target::Modified(revision.0)),
            Check::LeaseAlive(lease) => (KeyRange::default(), Target::LeaseAlive(lease.0)),
        };
        Compare { keys, relation: Relation::Equal, target }
    }

    fn read(&self, read: &Read) -> RangeRequest {
        let edge = |dir, descending| RangeRequest {
            keys: self.dir_range(dir),
            limit: 1,
            sort: Sort { by: SortBy::Created, descending },
            skip_count: true,
            ..RangeRequest::default()
        };
        match read {
            Read::Get(key) => RangeRequest { keys: KeyRange::one(self.flat(key)), ..RangeRequest::default() },
            Read::First(dir) => edge(dir, false),
            Read::Last(dir) => edge(dir, true),
            Read::Count(dir) => RangeRequest { keys: self.dir_range(dir), count_only: true, ..RangeRequest::default() },
        }
    }

    fn write(&self, write: Write) -> Op {
        match write {
            Write::Put { key, value, lease } => Op::Put(PutRequest {
                key: self.flat(&key),
                value,
                lease: lease.map_or(0, |lease| lease.0),
                ..PutRequest::default()
            }),
            Write::Delete(key) => Op::Delete(DeleteRequest { keys: KeyRange::one(self.flat(&key)), previous: false }),
            Write::Incr { key, by } => Op::Increment(IncrementRequest { key: self.flat(&key), by }),
        }
    }

    fn found(&self, answer: Answer, read: &Read) -> Option<Found> {
        let Answer::Range(response) = answer else { return None };
        Some(match read {
            Read::Count(_) => Found::Count(response.count),
            _ => Found::Entry(response.records.first().and_then(|record| self.entry(record))),
        })
    }

    /// `None` for a key of foreign making, which the contract does not see.
    fn entry(&self, record: &Record) -> Option<Entry> {
        Some(Entry {
            key: Key::from_flat(&self.namespace, &record.key)?,
            value: record.value.clone(),
            created: Revision(record.created),
            modified: Revision(record.modified),
            lease: (record.lease != 0).then_some(LeaseId(record.lease)),
        })
    }

    fn change(&self, event: &Event) -> Option<Change> {
        if !event.record.is_tombstone() {
            return self.entry(&event.record).map(Change::Put);
        }
        Some(Change::Gone {
            key: Key::from_flat(&self.namespace, &event.record.key)?,
            at: Revision(event.record.modified),
            cause: if event.expired { GoneCause::Expired } else { GoneCause::Deleted },
        })
    }
}

impl KvStore for EmbeddedKv {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.engine.describe()
    }

    async fn txn(&self, _realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        let reads = txn.reads.clone();
        let response = self.engine.txn(self.request(txn)).await.map_err(error)?;
        Ok(self.outcome(response, &reads))
    }

    async fn get(&self, key: &Key, _at: ReadAt) -> Result<Option<Entry>> {
        let request = RangeRequest { keys: KeyRange::one(self.flat(key)), ..RangeRequest::default() };
        let (response, _) = self.engine.range(request).await.map_err(error)?;
        Ok(response.records.first().and_then(|record| self.entry(record)))
    }

    async fn list(&self, dir: &Dir, order: Order, limit: usize, _at: ReadAt) -> Result<Page> {
        let limit = limit.max(1);
        let mut request = RangeRequest {
            keys: self.dir_range(dir),
            limit: limit.saturating_add(1),
            skip_count: true,
            ..RangeRequest::default()
        };
        match order {
            Order::Name { after } if after.is_empty() => {}
            Order::Name { after } => {
                let mut start = request.keys.start.to_vec();
                start.extend_from_slice(after.as_bytes());
                start.push(0);
                request.keys.start = start.into();
            }
            Order::Created { after } => {
                request.sort.by = SortBy::Created;
                request.created.0 = after.0 + 1;
            }
        }
        let by_creation = request.sort.by == SortBy::Created;
        let (mut response, revision) = self.engine.range(request).await.map_err(error)?;
        let more = response.records.len() > limit;
        if more {
            cut_page(&mut response.records, limit, by_creation);
        }
        let entries = response.records.iter().filter_map(|record| self.entry(record)).collect();
        Ok(Page { entries, more, revision: Revision(revision) })
    }

    async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        self.engine.ensure_open().map_err(error)?;
        let base = format!("{}/{realm}/", self.namespace);
        let after = if after.is_empty() { String::new() } else { format!("{base}{after}//") };
        // One more, since the flat form of the dir `a` (`a//`) begins with the prefix `a/`, which its path does not.
        let parents =
            self.engine.parents(format!("{base}{prefix}").as_bytes(), after.as_bytes(), limit.saturating_add(1));
        let dir = |parent: &Bytes| Dir::from_flat(&self.namespace, std::str::from_utf8(parent).ok()?);
        Ok(parents.iter().filter_map(dir).filter(|dir| dir.path().starts_with(prefix)).take(limit).collect())
    }

    async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        self.engine.ensure_open().map_err(error)?;
        let keys = match &scope {
            Scope::Key(key) => KeyRange::one(self.flat(key)),
            Scope::Dir(dir) => self.dir_range(dir),
        };
        let start = after.map_or(0, |after| after.0 + 1);
        let watcher = self.engine.watch(keys.clone(), start);
        let feed = KvFeed {
            kv: Self { engine: self.engine.clone(), namespace: self.namespace.clone(), guarantees: self.guarantees },
            keys,
            watcher,
            greeted: false,
            pending: Vec::new().into_iter(),
            ended: false,
        };
        Ok(Box::pin(futures::stream::unfold(feed, |mut feed| async move {
            let item = feed.next().await?;
            Some((item, feed))
        })))
    }

    async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        self.engine.await_gone(&self.flat(key), created.0).await.map_err(error)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease> {
        let (id, ttl) = self.engine.lease_grant(0, ttl).await.map_err(error)?;
        Ok(Lease { id: LeaseId(id), ttl })
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        self.engine.lease_renew(lease.0).map_err(error)
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        match self.engine.lease_revoke(lease.0).await {
            Ok(()) | Err(FlatError::LeaseNotFound) => Ok(()),
            Err(other) => Err(error(other)),
        }
    }

    async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        match self.engine.lease_status(lease.0) {
            Ok(status) => Ok(Some(status.left)),
            Err(FlatError::LeaseNotFound) => Ok(None),
            Err(other) => Err(error(other)),
        }
    }

    async fn close(&self) -> Result<()> {
        self.engine.close().await
    }
}

/// Ends a page at the limit; by creation, not amid what one transaction created, since the next page begins after a
/// revision. Only if one transaction created more than a page, the page is cut in it.
fn cut_page(records: &mut Vec<Arc<Record>>, limit: usize, by_creation: bool) {
    let next = records[limit].created;
    let whole = records[..limit].iter().rposition(|record| record.created != next).map_or(0, |last| last + 1);
    records.truncate(if by_creation && whole > 0 { whole } else { limit });
}

struct KvFeed {
    kv: EmbeddedKv,
    keys: KeyRange,
    watcher: Watcher,
    /// Whether the first `Progress` was given, which tells where a watch that began "now" stands.
    greeted: bool,
    pending: std::vec::IntoIter<Change>,
    ended: bool,
}

impl KvFeed {
    async fn next(&mut self) -> Option<Result<Change>> {
        loop {
            if let Some(change) = self.pending.next() {
                return Some(Ok(change));
            }
            if self.ended {
                return None;
            }
            if !self.greeted
                && let Some(revision) = self.watcher.caught_up()
            {
                self.greeted = true;
                return Some(Ok(Change::Progress(Revision(revision))));
            }
            match self.watcher.next().await {
                Ok(delivery) => self.pending = self.changes(&delivery).into_iter(),
                Err(FlatError::Compacted(oldest)) => return Some(Ok(self.resync(oldest))),
                Err(other) => {
                    self.ended = true;
                    return Some(Err(error(other)));
                }
            }
        }
    }

    fn changes(&self, delivery: &Delivery) -> Vec<Change> {
        delivery.events.iter().filter_map(|event| self.kv.change(event)).collect()
    }

    /// Starts over from now.
    fn resync(&mut self, oldest: u64) -> Change {
        self.watcher = self.kv.engine.watch(self.keys.clone(), 0);
        let at = self.kv.engine.revision();
        self.greeted = true;
        Change::Resync { why: format!("the history begins at revision {oldest}"), at: Revision(at) }
    }
}

pub(crate) fn error(error: FlatError) -> Error {
    match error {
        FlatError::LeaseNotFound => Error::new(ErrorKind::Fenced, "the lease has ended"),
        FlatError::LeaseExists => Error::new(ErrorKind::AlreadyExists, "a lease of this id exists"),
        FlatError::KeyNotFound => Error::new(ErrorKind::NotFound, "the key does not exist"),
        FlatError::NotANumber(text) => Error::invalid(format!(
            "the value {text:?} cannot be added to: it must be a decimal number, and so must the sum, from -2^63 to 2^63-1"
        )),
        FlatError::TooLarge(bytes) => {
            Error::invalid(format!("the transaction changes more than {bytes} bytes of keys and values: divide it"))
        }
        FlatError::DuplicateKey => Error::invalid("the transaction writes one key twice"),
        FlatError::Compacted(oldest) => {
            Error::new(ErrorKind::Compacted, format!("the history begins at revision {oldest}"))
        }
        FlatError::Future(newest) => Error::invalid(format!("the newest revision is {newest}")),
        FlatError::Poisoned(why) => {
            Error::new(ErrorKind::Closed, format!("the engine stopped at a failed write and must be reopened: {why}"))
                .effect_unknown()
        }
        FlatError::Closed => Error::new(ErrorKind::Closed, "the engine is closed"),
    }
}
