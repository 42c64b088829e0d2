//! The Kv contract in terms of ZooKeeper's nodes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coact_core::{
    Result,
    contract::kv::{
        Entry, Feed, KvHandle, KvStore, Lease, LeaseId, Order, Page, ReadAt, Revision, Scope, Txn, TxnOutcome,
    },
    env::Env,
    guarantees::{
        Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, OnPartition, WakeUp, WatchFrom,
    },
    name::{Dir, Key, Realm},
    url::Url,
};
use futures::future::try_join_all;
use parking_lot::Mutex;
use zookeeper_client::{AddWatchMode, Error as Zk, EventType};

use crate::{
    config::Config,
    connection::{Link, Shared},
    dirs::{Dirs, View, Wanted, entry, load},
    errors::{Access, closed, translate},
    lease,
    log::Watches,
    paths::decode,
    txn,
};

/// How often a waiter looks again, should what was told be lost.
const ASK_AGAIN: Duration = Duration::from_secs(10);

pub(crate) async fn open(url: Url, env: Env) -> Result<KvHandle> {
    let config = Config::from_url(&url)?;
    let accepted = url.accepted()?;
    let link = Arc::new(Link::new(config, env.clone()));
    let guarantees = probe(&link).await?;
    link.make(&link.paths.skeleton()).await?;
    env.spawn(lease::keep_reaping(link.clone()));
    let store = ZookeeperKv {
        guarantees,
        dirs: Dirs::default(),
        watches: Watches::new(link.clone()),
        made: Mutex::default(),
        link,
    };
    Ok(KvHandle::new(store, env, accepted))
}

/// Asks what the servers are, and so what they promise.
async fn probe(link: &Shared) -> Result<Guarantees> {
    let answer = link.call(Access::Repeatable, |client| async move {
        let watcher = client.watch("/", AddWatchMode::Persistent).await?;
        drop(watcher);
        match client.get_config().await {
            Ok((config, _)) => Ok(Some(config)),
            Err(Zk::NoNode) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let config = answer.await?.map_err(|error| translate(error, Access::Repeatable))?.unwrap_or_default();
    let config = String::from_utf8_lossy(&config).into_owned();
    let voters = config.lines().filter(|line| line.starts_with("server.") && !line.contains(":observer")).count();
    let alone = voters < 2;
    Ok(Guarantees {
        reads: Consistency::Linearizable,
        writes: if alone { Durability::Sync } else { Durability::Quorum },
        on_partition: if alone { OnPartition::SingleNode } else { OnPartition::MinorityStops },
        failover: Failover::KeepsWrites,
        fence: Fence::Strong,
        watch: WatchFrom::Revision,
        wake: WakeUp::Told,
        increment: Increment::Emulated,
        limits: Limits::PORTABLE,
    })
}

struct ZookeeperKv {
    guarantees: Guarantees,
    link: Shared,
    dirs: Dirs,
    watches: Watches,
    /// Realms that are known to be there.
    made: Mutex<std::collections::HashSet<Realm>>,
}

impl Drop for ZookeeperKv {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl KvStore for ZookeeperKv {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.link.config.description.clone()
    }

    async fn txn(&self, realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        self.make(realm).await?;
        txn::run(&self.link, &self.dirs, realm, &txn).await
    }

    async fn get(&self, key: &Key, at: ReadAt) -> Result<Option<Entry>> {
        let (path, now) = (&self.link.paths.entry(key), &self.link.paths.now());
        let found = self.link.read(|client| async move {
            // Sent one after the other, answered together.
            let fresh = (at == ReadAt::Linearizable).then(|| client.set_data(now, b"", None));
            let found = client.get_data(path);
            if let Some(fresh) = fresh {
                fresh.await?;
            }
            found.await
        });
        found.await?.map(|(data, stat)| entry(key, data, &stat)).transpose()
    }

    async fn list(&self, dir: &Dir, order: Order, limit: usize, at: ReadAt) -> Result<Page> {
        self.make(dir.realm()).await?;
        let wanted = BTreeMap::from([(dir.clone(), Wanted { all: true, ..Wanted::default() })]);
        let (mut views, revision) = load(&self.link, dir.realm(), &wanted, at == ReadAt::Linearizable).await?;
        let (entries, more) = page(views.remove(dir).unwrap_or_default(), &order, limit);
        Ok(Page { entries, more, revision })
    }

    async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        let (path, now) = (&self.link.paths.entries(realm), &self.link.paths.now());
        let names = self.link.read(|client| async move {
            let fresh = client.set_data(now, b"", None);
            let names = client.list_children(path);
            fresh.await?;
            names.await
        });
        let names = names.await?.unwrap_or_default();
        let mut paths: Vec<_> = names.iter().filter_map(|name| decode(name)).collect();
        paths.retain(|path| path.starts_with(prefix) && path.as_str() > after);
        paths.sort_unstable();
        let mut dirs = Vec::new();
        for some in paths.chunks(limit.clamp(1, 64)) {
            let found: Vec<_> = some.iter().filter_map(|path| Dir::new(realm, path).ok()).collect();
            let stats =
                try_join_all(found.iter().map(async |dir| self.link.stat(&self.link.paths.dir(dir)).await)).await?;
            for (dir, stat) in found.into_iter().zip(stats) {
                if stat.is_some_and(|stat| stat.num_children > 0) && dirs.len() < limit {
                    dirs.push(dir);
                }
            }
            if dirs.len() == limit {
                break;
            }
        }
        Ok(dirs)
    }

    async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        self.watches.watch(scope, after).await
    }

    async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        let path = &self.link.paths.entry(key);
        loop {
            let looked =
                self.link.call(Access::Repeatable, |client| async move { client.check_and_watch_stat(path).await });
            let (stat, watcher) = looked.await?.map_err(|error| translate(error, Access::Repeatable))?;
            if stat.is_none_or(|stat| stat.czxid.unsigned_abs() != created.0) {
                return Ok(());
            }
            let told = self.link.env.timeout(ASK_AGAIN, watcher.changed());
            let event = tokio::select! {
                event = told => event,
                () = self.link.until_closed() => return Err(closed()),
            };
            // A session that ends tells nothing more: whoever waits looks again.
            if event.is_some_and(|event| event.event_type == EventType::Session) {
                return Ok(());
            }
        }
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease> {
        let lease = LeaseId(((self.link.env.random() >> 1) | 1) as i64);
        Ok(Lease { id: lease, ttl: lease::grant(&self.link, lease, ttl).await? })
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        lease::renew(&self.link, lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        lease::revoke(&self.link, lease).await
    }

    async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        lease::left(&self.link, lease).await
    }

    async fn close(&self) -> Result<()> {
        self.link.close();
        Ok(())
    }
}

impl ZookeeperKv {
    /// Makes the nodes of a realm, the first time that it is met.
    async fn make(&self, realm: &Realm) -> Result<()> {
        if self.made.lock().contains(realm) {
            return Ok(());
        }
        self.link.make(&self.link.paths.realm_skeleton(realm)).await?;
        self.made.lock().insert(realm.clone());
        Ok(())
    }
}

/// Part of a dir, and whether there is more.
fn page(view: View, order: &Order, limit: usize) -> (Vec<Entry>, bool) {
    let mut entries: Vec<Entry> = match order {
        Order::Name { after } => {
            view.entries.into_values().flatten().filter(|entry| entry.key.name() > after.as_str()).collect()
        }
        Order::Created { after } => {
            let mut entries: Vec<_> =
                view.entries.into_values().flatten().filter(|entry| entry.created > *after).collect();
            entries.sort_by_key(|entry| entry.created);
            entries
        }
    };
    if entries.len() <= limit {
        return (entries, false);
    }
    let mut keep = limit;
    if matches!(order, Order::Created { .. }) {
        // What one transaction created stays together, unless that alone is too much.
        let cut = entries[limit].created;
        let together = entries[..limit].iter().rposition(|entry| entry.created != cut).map_or(0, |last| last + 1);
        keep = if together == 0 { limit } else { together };
    }
    entries.truncate(keep);
    (entries, true)
}
