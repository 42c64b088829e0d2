//! Leases: nodes that renewals write to, and the one client that ends those that nobody renews.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{GoneCause, LeaseId},
    name::{Dir, Realm},
};
use futures::future::join_all;
use zookeeper_client::{CreateMode, Error as Zk, Stat};

use crate::{
    connection::Shared,
    errors::{Access, malformed, translate},
    log::{PREFIX, Record, encode},
    paths::{decode, key_of},
    txn::{Multi, Op, multi},
};

/// How often the reaper looks at every lease, and others whether there is a reaper.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often histories are trimmed, in looks.
const TRIM_EVERY: u64 = 5;
/// How many entries go at one revision.
const AT_ONCE: usize = 300;
/// What a lease's node holds while its entries go in several revisions.
const ENDED: &[u8] = b"ended";

pub(crate) async fn grant(link: &Shared, lease: LeaseId, ttl: Duration) -> Result<Duration> {
    let ms = u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let (path, data, options) = (&link.paths.lease(lease.0), ms.to_string(), &link.node(CreateMode::Persistent));
    let data = data.as_bytes();
    let made =
        link.call(Access::Repeatable, |client| async move { client.create(path, data, options).await.map(drop) });
    match made.await? {
        // The second is our own request, repeated.
        Ok(()) | Err(Zk::NodeExists) => Ok(Duration::from_millis(ms)),
        Err(error) => Err(translate(error, Access::Repeatable)),
    }
}

pub(crate) async fn renew(link: &Shared, lease: LeaseId) -> Result<Duration> {
    let fenced = || Error::new(ErrorKind::Fenced, "the lease has ended");
    loop {
        let (data, stat) = find(link, lease.0).await?.ok_or_else(fenced)?;
        let ttl = length(&data).ok_or_else(fenced)?;
        let (path, data) = (&link.paths.lease(lease.0), &data);
        let set = link.call(Access::Repeatable, |client| async move {
            client.set_data(path, data, Some(stat.version)).await.map(drop)
        });
        match set.await? {
            Ok(()) => return Ok(ttl),
            Err(Zk::NoNode) => return Err(fenced()),
            // Somebody else has renewed it, or ended it.
            Err(Zk::BadVersion) => {}
            Err(error) => return Err(translate(error, Access::Repeatable)),
        }
    }
}

/// At most its whole length: only the reaper knows when it was renewed.
pub(crate) async fn left(link: &Shared, lease: LeaseId) -> Result<Option<Duration>> {
    link.freshen().await?;
    Ok(find(link, lease.0).await?.and_then(|(data, _)| length(&data)))
}

pub(crate) async fn revoke(link: &Shared, lease: LeaseId) -> Result<()> {
    end(link, lease.0, None).await
}

async fn find(link: &Shared, lease: i64) -> Result<Option<(Vec<u8>, Stat)>> {
    link.get(&link.paths.lease(lease)).await
}

fn length(data: &[u8]) -> Option<Duration> {
    std::str::from_utf8(data).ok()?.parse().ok().map(Duration::from_millis)
}

/// Ends a lease and deletes its entries, unless it is no longer at this version.
async fn end(link: &Shared, lease: i64, version: Option<i32>) -> Result<()> {
    let mut version = version;
    loop {
        let (path, now) = (link.paths.lease(lease), &link.paths.now());
        let path = &path;
        let listed = link.read(|client| async move {
            let fresh = client.set_data(now, b"", None);
            let listed = client.get_children(path);
            fresh.await?;
            listed.await
        });
        let Some((names, stat)) = listed.await? else { return Ok(()) };
        if version.is_some_and(|version| version != stat.version) {
            return Ok(());
        }
        let mut by_realm: BTreeMap<Realm, Vec<Record>> = BTreeMap::new();
        let mut dirs: BTreeMap<Dir, ()> = BTreeMap::new();
        let mut ops = Vec::new();
        for name in names.iter().take(AT_ONCE) {
            let key = decode(name).and_then(|place| key_of(&place)).ok_or_else(|| malformed("an entry of a lease"))?;
            ops.push(Op::Delete(link.paths.place(lease, &key), None));
            ops.push(Op::Delete(link.paths.entry(&key), None));
            dirs.insert(key.dir().clone(), ());
            by_realm.entry(key.realm().clone()).or_default().push(Record::Gone { key, cause: GoneCause::Expired });
        }
        ops.extend(dirs.keys().map(|dir| Op::Set(link.paths.dir(dir), Vec::new(), None)));
        ops.extend(by_realm.iter().map(|(realm, records)| Op::Append(link.paths.log(realm), encode(records))));
        let last = names.len() <= AT_ONCE;
        if last {
            ops.push(Op::Delete(path.clone(), Some(stat.version)));
        } else {
            // No renewal brings back what has begun to go.
            ops.push(Op::Set(path.clone(), ENDED.to_vec(), Some(stat.version)));
        }
        match multi(link, &ops).await {
            Ok(Multi::Done { .. }) if last => return Ok(()),
            Ok(Multi::Done { .. }) => version = None,
            Ok(Multi::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Ends what nobody renews and trims histories, while this client is the one to do it.
pub(crate) async fn keep_reaping(link: Shared) {
    tokio::select! {
        () = link.until_closed() => {}
        () = async {
            loop {
                if let Err(error) = reap_while_elected(&link).await {
                    tracing::debug!(%error, "the leases of ZooKeeper could not be looked at");
                }
                link.env.sleep(LOOK_EVERY + link.env.random_duration(LOOK_EVERY / 2)).await;
            }
        } => {}
    }
}

async fn reap_while_elected(link: &Shared) -> Result<()> {
    let (path, options) = (&link.paths.reaper(), &link.node(CreateMode::Ephemeral));
    let elected = link.call(Access::Repeatable, |client| async move {
        let session = client.session_id().0;
        match client.create(path, b"", options).await {
            Ok(_) => Ok(Some(session)),
            // It is our own, if an answer was lost.
            Err(Zk::NodeExists) => {
                let stat = client.check_stat(path).await?;
                Ok(stat.filter(|stat| stat.ephemeral_owner == session).map(|_| session))
            }
            Err(error) => Err(error),
        }
    });
    let Some(session) = elected.await?.map_err(|error| translate(error, Access::Repeatable))? else { return Ok(()) };
    // At which version each lease was seen, and since when.
    let mut seen: HashMap<i64, (i32, Instant)> = HashMap::new();
    let mut looks = 0;
    while link.current().is_some_and(|client| client.session_id().0 == session) {
        look(link, &mut seen).await?;
        if looks % TRIM_EVERY == 0 {
            trim(link).await?;
        }
        looks += 1;
        link.env.sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn look(link: &Shared, seen: &mut HashMap<i64, (i32, Instant)>) -> Result<()> {
    let names = link.names(&link.paths.leases()).await?;
    let leases: Vec<i64> = names.iter().filter_map(|name| i64::from_str_radix(name, 16).ok()).collect();
    seen.retain(|lease, _| leases.contains(lease));
    let nodes = join_all(leases.iter().map(|lease| find(link, *lease))).await;
    // A renewal came before it was seen: counting from here is never too early.
    let now = link.env.now();
    for (lease, node) in leases.into_iter().zip(nodes) {
        let Some((data, stat)) = node? else { continue };
        let (version, since) = seen.entry(lease).or_insert((stat.version, now));
        if *version != stat.version {
            (*version, *since) = (stat.version, now);
        }
        let over = length(&data).is_none_or(|length| now.duration_since(*since) >= length);
        if over {
            end(link, lease, Some(stat.version)).await?;
        }
    }
    Ok(())
}

/// Shortens histories that are twice as long as they should be.
async fn trim(link: &Shared) -> Result<()> {
    for realm in link.names(&link.paths.realms()).await? {
        let Ok(realm) = Realm::new(&realm) else { continue };
        let log = link.paths.log(&realm);
        let mut names = link.names(&log).await?;
        names.retain(|name| name.starts_with(PREFIX));
        if names.len() <= 2 * link.config.history {
            continue;
        }
        names.sort_unstable();
        names.truncate(names.len() - link.config.history);
        for some in names.chunks(AT_ONCE) {
            let Some(newest) = some.last() else { continue };
            let Some(stat) = link.stat(&format!("{log}/{newest}")).await? else { continue };
            let mut ops = vec![Op::Set(log.clone(), stat.czxid.to_string().into_bytes(), None)];
            ops.extend(some.iter().map(|name| Op::Delete(format!("{log}/{name}"), None)));
            // Another may have been quicker.
            let _ = multi(link, &ops).await?;
        }
    }
    Ok(())
}
