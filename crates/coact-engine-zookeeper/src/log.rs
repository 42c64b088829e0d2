//! The history of a realm: a node for each transaction.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Change, Entry, Feed, GoneCause, LeaseId, Revision, Scope},
    env::Env,
    follow::{Feeds, History, Past, Place, Step, What},
    name::{Key, Realm},
};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use zookeeper_client::{AddWatchMode, PersistentWatcher, Stat};

use crate::{
    connection::Shared,
    errors::{Access, malformed},
    paths::{key_of, place},
};

/// How many nodes one look reads.
const AT_ONCE: usize = 128;
/// The pause before changes are listened for again.
const PAUSE: Duration = Duration::from_millis(200);
/// What every node's name begins with; ZooKeeper adds a number.
pub(crate) const PREFIX: &str = "c-";

/// A change as a transaction writes it down.
pub(crate) enum Record {
    Put { key: Key, value: Bytes, created: Option<u64>, lease: Option<i64> },
    Gone { key: Key, cause: GoneCause },
}

/// Writes down the changes of one transaction. An entry that it creates gets its revision from the node.
pub(crate) fn encode(records: &[Record]) -> Vec<u8> {
    let mut data = Vec::new();
    let put_place = |data: &mut Vec<u8>, key: &Key| {
        let place = place(key);
        data.put_u16(place.len() as u16);
        data.put_slice(place.as_bytes());
    };
    for record in records {
        match record {
            Record::Put { key, value, created, lease } => {
                data.put_u8(b'P');
                put_place(&mut data, key);
                data.put_u64(created.unwrap_or(0));
                data.put_i64(lease.unwrap_or(0));
                data.put_u32(value.len() as u32);
                data.put_slice(value);
            }
            Record::Gone { key, cause } => {
                data.put_u8(if *cause == GoneCause::Expired { b'X' } else { b'D' });
                put_place(&mut data, key);
            }
        }
    }
    data
}

fn decode(data: Vec<u8>, at: Revision) -> Option<Vec<Change>> {
    let mut data = Bytes::from(data);
    let mut changes = Vec::new();
    while data.has_remaining() {
        let kind = data.try_get_u8().ok()?;
        let length = usize::from(data.try_get_u16().ok()?);
        let key = key_of(std::str::from_utf8(data.get(..length)?).ok()?)?;
        data.advance(length);
        changes.push(match kind {
            b'P' => {
                let (created, lease) = (data.try_get_u64().ok()?, data.try_get_i64().ok()?);
                let length = data.try_get_u32().ok()? as usize;
                if data.remaining() < length {
                    return None;
                }
                Change::Put(Entry {
                    key,
                    value: data.split_to(length),
                    created: if created == 0 { at } else { Revision(created) },
                    modified: at,
                    lease: (lease != 0).then_some(LeaseId(lease)),
                })
            }
            b'X' => Change::Gone { key, at, cause: GoneCause::Expired },
            b'D' => Change::Gone { key, at, cause: GoneCause::Deleted },
            _ => return None,
        });
    }
    Some(changes)
}

/// The newest revision of a realm, by the node that its history is under.
pub(crate) fn present(stat: &Stat) -> Revision {
    Revision(stat.pzxid.max(stat.czxid).unsigned_abs())
}

/// The history of one realm.
pub(crate) struct Log {
    link: Shared,
    realm: Realm,
    told: Arc<Notify>,
    /// Whether anybody watches.
    wanted: watch::Sender<bool>,
}

/// Every watch of a handle, by realm.
pub(crate) struct Watches {
    link: Shared,
    by_realm: Mutex<HashMap<Realm, Arc<Feeds<Log>>>>,
}

impl Watches {
    pub(crate) fn new(link: Shared) -> Self {
        Self { link, by_realm: Mutex::default() }
    }

    pub(crate) async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        let realm = match &scope {
            Scope::Key(key) => key.realm().clone(),
            Scope::Dir(dir) => dir.realm().clone(),
        };
        self.link.make(&self.link.paths.realm_skeleton(&realm)).await?;
        let feeds = self.of(&realm);
        feeds.watch(scope, after).await
    }

    fn of(&self, realm: &Realm) -> Arc<Feeds<Log>> {
        let follow = || Arc::new(Feeds::start(Arc::new(Log::new(&self.link, realm))));
        self.by_realm.lock().entry(realm.clone()).or_insert_with(follow).clone()
    }
}

impl Log {
    fn new(link: &Shared, realm: &Realm) -> Self {
        let (told, wanted) = (Arc::<Notify>::default(), watch::Sender::new(false));
        link.env.spawn(hear(link.clone(), link.paths.log(realm), told.clone(), wanted.subscribe()));
        Self { link: link.clone(), realm: realm.clone(), told, wanted }
    }
}

impl Past for Log {
    fn env(&self) -> &Env {
        &self.link.env
    }

    async fn read(&self, after: Option<Place>) -> Result<History> {
        history(&self.link, &self.realm, after).await
    }

    async fn hear(&self, wanted: bool) {
        self.wanted.send_replace(wanted);
    }

    async fn changed(&self) {
        self.told.notified().await;
    }

    async fn until_closed(&self) {
        self.link.until_closed().await;
    }
}

/// Reads what came after a place; without one, only where the present is.
pub(crate) async fn history(link: &Shared, realm: &Realm, after: Option<Place>) -> Result<History> {
    let (path, now) = (&link.paths.log(realm), &link.paths.now());
    let nodes = link.read(|client| async move {
        // Sent one after the other, answered together.
        let fresh = client.set_data(now, b"", None);
        let data = client.get_data(path);
        let names = client.list_children(path);
        fresh.await?;
        Ok((data.await?, names.await?))
    });
    let Some(((compacted, stat), mut names)) = nodes.await? else {
        return Err(malformed("a realm without a history"));
    };
    let present = present(&stat);
    let Some(after) = after else { return Ok(History { present, lost: false, steps: Vec::new(), more: false }) };
    let compacted = std::str::from_utf8(&compacted).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    if after.revision < compacted {
        return Ok(History { present, lost: true, steps: Vec::new(), more: false });
    }
    names.retain(|name| name.starts_with(PREFIX));
    names.sort_unstable();
    let first = first_after(link, path, &names, after.revision).await?;
    let wanted = &names[first..(first + AT_ONCE).min(names.len())];
    let nodes = join_all(wanted.iter().map(|name| node(link, path, name))).await;
    let mut steps = Vec::new();
    for node in nodes {
        let (data, stat) = node?.ok_or_else(moved)?;
        let at = stat.czxid.unsigned_abs();
        let changes = decode(data, Revision(at)).ok_or_else(|| malformed("the history of a realm"))?;
        steps.push(Step { at: Place { revision: at, part: 0 }, what: What::Changes(changes) });
    }
    Ok(History { present, lost: false, more: first + AT_ONCE < names.len(), steps })
}

async fn node(link: &Shared, log: &str, name: &str) -> Result<Option<(Vec<u8>, Stat)>> {
    link.get(&format!("{log}/{name}")).await
}

/// The index of the first node after a revision. Names and revisions are in the same order. Most who ask are near the
/// end.
async fn first_after(link: &Shared, log: &str, names: &[String], revision: u64) -> Result<usize> {
    let (mut low, mut high) = (0, names.len());
    let mut step = 1;
    while high > 0 {
        let probe = high.saturating_sub(step).max(low);
        if is_after(link, log, names, probe, revision).await? {
            high = probe;
            step *= 2;
        } else {
            low = probe + 1;
            break;
        }
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if is_after(link, log, names, middle, revision).await? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(high)
}

/// Whether a node is younger than a revision.
async fn is_after(link: &Shared, log: &str, names: &[String], index: usize, revision: u64) -> Result<bool> {
    let (_, stat) = node(link, log, &names[index]).await?.ok_or_else(moved)?;
    Ok(stat.czxid.unsigned_abs() > revision)
}

/// A node was trimmed meanwhile, or a new session is with a server that does not know it yet.
fn moved() -> Error {
    Error::new(ErrorKind::Unavailable, "the history changed while it was read: read it again")
}

/// Tells of changes while that is wanted, with one session after the other; what is missed in between is looked for
/// anyway.
async fn hear(link: Shared, path: String, told: Arc<Notify>, mut wanted: watch::Receiver<bool>) {
    let hear = async {
        while wanted.wait_for(|wanted| *wanted).await.is_ok() {
            let listening = link.call(Access::Repeatable, |client| {
                let path = &path;
                async move { client.watch(path, AddWatchMode::Persistent).await }
            });
            let Ok(Ok(watcher)) = listening.await else {
                link.env.sleep(PAUSE).await;
                continue;
            };
            // What changed before the watch was there is told by nobody.
            told.notify_one();
            tokio::select! {
                () = pass_on(watcher, &told) => {}
                _ = wanted.wait_for(|wanted| !*wanted) => {}
            }
        }
    };
    tokio::select! {
        () = hear => {}
        () = link.until_closed() => {}
    }
}

/// Until the session ends.
async fn pass_on(mut watcher: PersistentWatcher, told: &Notify) {
    while !watcher.changed().await.session_state.is_terminated() {
        told.notify_one();
    }
}
