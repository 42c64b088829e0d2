//! The Kv contract in terms of our scripts.

use std::{sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{
        Check, Entry, Feed, KvHandle, KvStore, Lease, LeaseId, Order, Page, Read, ReadAt, Revision, Scope, Txn,
        TxnOutcome, Write,
    },
    env::Env,
    guarantees::Guarantees,
    name::{Dir, Key, Realm},
    url::Url,
};
use redis::Value;

use crate::{
    config::Config,
    connection::Link,
    errors::{Access, malformed},
    feed::{Stream, Watches},
    probe,
    reply::{array, dir_of, dir_place, maybe_entry, named_entry, outcome, revision, text},
};

/// How often a client asks for what has ended, though no request did.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// How often a waiter asks again, should all that was told be lost.
const ASK_AGAIN: Duration = Duration::from_secs(30);

pub(crate) async fn open(url: Url, env: Env) -> Result<KvHandle> {
    let config = Config::from_url(&url)?;
    let accepted = url.accepted()?;
    let link = Arc::new(Link::new(config, env.clone()));
    let info = link.open().await?;
    let appendfsync = link.setting("appendfsync").await;
    let guarantees = probe::guarantees(&info, appendfsync.as_deref(), link.config.sentinel.is_some());
    // Says at once whether the user may run scripts.
    reap(&link).await?;
    env.spawn(keep_reaping(link.clone()));
    let store = RedisKv { guarantees, feeds: Watches::start(Arc::new(Stream(link.clone()))), link };
    Ok(KvHandle::new(store, env, accepted))
}

struct RedisKv {
    guarantees: Guarantees,
    feeds: Watches,
    link: Arc<Link>,
}

impl Drop for RedisKv {
    fn drop(&mut self) {
        self.link.close();
    }
}

/// Ends what has ended, and tells when that is to be asked next.
async fn reap(link: &Link) -> Result<Duration> {
    let next: Option<u64> = link.call(Access::Repeatable, &link.scripts.reap, &[]).await?;
    Ok(next.map_or(REAP_EVERY, |ms| Duration::from_millis(ms).min(REAP_EVERY)))
}

async fn keep_reaping(link: Arc<Link>) {
    loop {
        let pause = match reap(&link).await {
            Ok(pause) => pause + link.env.random_duration(REAP_EVERY / 10),
            Err(_) if link.is_closed() => return,
            Err(error) => {
                tracing::debug!(%error, "the leases of Redis could not be looked at");
                REAP_EVERY
            }
        };
        tokio::select! {
            () = link.env.sleep(pause) => {}
            () = link.until_closed() => return,
        }
    }
}

impl KvStore for RedisKv {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.link.config.description.clone()
    }

    async fn txn(&self, _realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        let access = if txn.writes.is_empty() { Access::Repeatable } else { Access::Once };
        let arguments = arguments(&txn);
        let arguments: Vec<&[u8]> = arguments.iter().map(Argument::bytes).collect();
        let answer: Value = self.link.call(access, &self.link.scripts.txn, &arguments).await?;
        let checked: Vec<_> = txn.checks.iter().map(key_of_check).collect();
        outcome(answer, &checked, &txn.reads)
    }

    async fn get(&self, key: &Key, _at: ReadAt) -> Result<Option<Entry>> {
        let dir = dir_place(key.dir());
        let arguments = [dir.as_bytes(), key.name().as_bytes()];
        let answer: Value = self.link.call(Access::Repeatable, &self.link.scripts.get, &arguments).await?;
        maybe_entry(key.clone(), answer)
    }

    async fn list(&self, dir: &Dir, order: Order, limit: usize, _at: ReadAt) -> Result<Page> {
        let (place, limit) = (dir_place(dir), limit.to_string());
        let (by, after) = match order {
            Order::Name { after } => ("N", after),
            Order::Created { after } => ("C", after.to_string()),
        };
        let arguments = [place.as_bytes(), by.as_bytes(), after.as_bytes(), limit.as_bytes()];
        let answer: Value = self.link.call(Access::Repeatable, &self.link.scripts.list, &arguments).await?;
        let [at, more, entries] = <[Value; 3]>::try_from(array(answer)?).map_err(|_| malformed("a page"))?;
        let entries = array(entries)?
            .into_iter()
            .map(|entry| named_entry(dir, entry)?.ok_or_else(|| malformed("an index without its entry")));
        Ok(Page { entries: entries.collect::<Result<_>>()?, more: more == Value::Int(1), revision: revision(at)? })
    }

    async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        let in_realm = |path: &str| [realm.as_str(), "/", path].concat();
        let (prefix, limit) = (in_realm(prefix), limit.to_string());
        let after = if after.is_empty() { String::new() } else { in_realm(after) };
        let arguments = [prefix.as_bytes(), after.as_bytes(), limit.as_bytes()];
        let answer: Value = self.link.call(Access::Repeatable, &self.link.scripts.dirs, &arguments).await?;
        let dir = |value| dir_of(&text(value)?).ok_or_else(|| malformed("the name of a dir"));
        array(answer)?.into_iter().map(dir).collect()
    }

    async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        self.feeds.watch(scope, after).await
    }

    async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        let (dir, number) = (dir_place(key.dir()), created.to_string());
        let wakes = &self.link.wakes;
        loop {
            // We listen before we ask, so that nothing is told in between.
            let mut waiting = wakes.wait(key, created);
            let arguments = [dir.as_bytes(), key.name().as_bytes(), number.as_bytes(), wakes.own.as_bytes()];
            let gone: i64 = self.link.call(Access::Repeatable, &self.link.scripts.await_gone, &arguments).await?;
            if gone == 1 || self.link.env.timeout(ASK_AGAIN, waiting.told()).await.is_some() && !self.link.is_closed() {
                return Ok(());
            }
        }
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease> {
        let lease = LeaseId((self.link.env.random() >> 1) as i64);
        let ms = ttl.as_nanos().div_ceil(1_000_000);
        let (id, length) = (lease.0.to_string(), ms.to_string());
        let arguments = [id.as_bytes(), length.as_bytes()];
        // Granted twice, it is the same lease.
        let _: String = self.link.call(Access::Repeatable, &self.link.scripts.grant, &arguments).await?;
        Ok(Lease { id: lease, ttl: Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)) })
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        let ttl: Option<u64> = self.of_lease(&self.link.scripts.renew, lease).await?;
        ttl.map(Duration::from_millis).ok_or_else(|| Error::new(ErrorKind::Fenced, "the lease has ended"))
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        let _: i64 = self.of_lease(&self.link.scripts.revoke, lease).await?;
        Ok(())
    }

    async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        let left: Option<u64> = self.of_lease(&self.link.scripts.left, lease).await?;
        Ok(left.map(Duration::from_millis))
    }

    async fn close(&self) -> Result<()> {
        self.link.close();
        Ok(())
    }
}

impl RedisKv {
    async fn of_lease<T: redis::FromRedisValue>(&self, script: &redis::Script, lease: LeaseId) -> Result<T> {
        self.link.call(Access::Repeatable, script, &[lease.0.to_string().as_bytes()]).await
    }
}

fn key_of_check(check: &Check) -> Option<&Key> {
    match check {
        Check::Absent(key) | Check::CreatedAt(key, _) | Check::ModifiedAt(key, _) => Some(key),
        Check::LeaseAlive(_) => None,
    }
}

/// One argument of a script.
enum Argument<'a> {
    Text(String),
    Bytes(&'a [u8]),
}

impl Argument<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// How `txn.lua` takes a transaction: three counts; then four arguments a check, three a read, five a write.
fn arguments(txn: &Txn) -> Vec<Argument<'_>> {
    let counts = [txn.checks.len(), txn.reads.len(), txn.writes.len()];
    let mut all: Vec<_> = counts.iter().map(|count| Argument::Text(count.to_string())).collect();
    for check in &txn.checks {
        let (kind, key, expected) = match check {
            Check::Absent(key) => ("A", Some(key), String::new()),
            Check::CreatedAt(key, revision) => ("C", Some(key), revision.to_string()),
            Check::ModifiedAt(key, revision) => ("M", Some(key), revision.to_string()),
            Check::LeaseAlive(lease) => ("L", None, lease.0.to_string()),
        };
        all.push(Argument::Bytes(kind.as_bytes()));
        all.push(Argument::Text(key.map(|key| dir_place(key.dir())).unwrap_or_default()));
        all.push(Argument::Bytes(key.map(Key::name).unwrap_or_default().as_bytes()));
        all.push(Argument::Text(expected));
    }
    for read in &txn.reads {
        let (kind, dir, name) = match read {
            Read::Get(key) => ("G", key.dir(), key.name()),
            Read::First(dir) => ("F", dir, ""),
            Read::Last(dir) => ("L", dir, ""),
            Read::Count(dir) => ("#", dir, ""),
        };
        all.push(Argument::Bytes(kind.as_bytes()));
        all.push(Argument::Text(dir_place(dir)));
        all.push(Argument::Bytes(name.as_bytes()));
    }
    for write in &txn.writes {
        let key = write.key();
        let (kind, value, lease) = match write {
            Write::Put { value, lease, .. } => {
                ("P", Argument::Bytes(value), lease.map(|lease| lease.0.to_string()).unwrap_or_default())
            }
            Write::Delete(_) => ("D", Argument::Bytes(b""), String::new()),
            Write::Incr { by, .. } => ("I", Argument::Text(by.to_string()), String::new()),
        };
        all.push(Argument::Bytes(kind.as_bytes()));
        all.push(Argument::Text(dir_place(key.dir())));
        all.push(Argument::Bytes(key.name().as_bytes()));
        all.push(value);
        all.push(Argument::Text(lease));
    }
    all
}
