//! What is known of dirs, and reading them anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Change, Entry, LeaseId, Revision},
    follow::{Place, What},
    name::{Dir, Key, Realm},
};
use futures::future::{join_all, try_join_all};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;
use zookeeper_client::Stat;

use crate::{
    connection::Shared,
    errors::malformed,
    log::{history, present},
    paths::decode,
};

/// How many dirs are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// What is known of a dir at one version of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// `None`: there is no such node yet, and so no entry.
    pub(crate) version: Option<i32>,
    /// The last change in it.
    pub(crate) modified: u64,
    /// Entries that are there, and those that are known not to be.
    pub(crate) entries: BTreeMap<String, Option<Entry>>,
    /// Whether these are all.
    pub(crate) complete: bool,
}

/// What must be known of a dir.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) names: BTreeSet<String>,
    pub(crate) all: bool,
}

impl View {
    pub(crate) fn has(&self, wanted: &Wanted) -> bool {
        self.complete
            || self.version.is_none()
            || !wanted.all && wanted.names.iter().all(|name| self.entries.contains_key(name))
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name).and_then(Option::as_ref)
    }

    /// Its entries, oldest first; what one transaction created in the order of names.
    pub(crate) fn by_creation(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.entries.values().flatten().collect();
        entries.sort_by_key(|entry| entry.created);
        entries
    }
}

/// A dir as one transaction after the other uses it.
pub(crate) type Slot = Arc<Mutex<Option<View>>>;

/// What a handle remembers of dirs. Whoever holds a slot is alone with the dir, in this process.
#[derive(Default)]
pub(crate) struct Dirs(SyncMutex<HashMap<Dir, Slot>>);

impl Dirs {
    pub(crate) fn slot(&self, dir: &Dir) -> Slot {
        let mut slots = self.0.lock();
        if slots.len() >= REMEMBERED_MAX {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(dir.clone()).or_default().clone()
    }
}

/// Reads dirs of a realm as they were at one moment, and a revision after which nothing in them is missing; fresh ones
/// are not older than the call.
pub(crate) async fn load(
    link: &Shared,
    realm: &Realm,
    wanted: &BTreeMap<Dir, Wanted>,
    fresh: bool,
) -> Result<(BTreeMap<Dir, View>, Revision)> {
    if fresh {
        link.freshen().await?;
    }
    let last = last_revision(link, realm).await?;
    let before = versions(link, wanted).await?;
    let mut views = BTreeMap::new();
    for ((dir, wanted), stat) in wanted.iter().zip(&before) {
        let view = match stat {
            Some(stat) => read_dir(link, dir, wanted, stat).await?,
            None => View { complete: true, ..View::default() },
        };
        views.insert(dir.clone(), view);
    }
    let after = versions(link, wanted).await?;
    let of = |stat: &Option<Stat>| stat.map(|stat| (stat.czxid, stat.version));
    if before.iter().map(of).eq(after.iter().map(of)) {
        let revision = views.values().map(|view| Revision(view.modified)).fold(last, Revision::max);
        return Ok((views, revision));
    }
    let revision = catch_up(link, realm, wanted, &mut views, last).await?;
    for (view, stat) in views.values_mut().zip(after) {
        // A version that is older than the view makes the transaction conflict, and nothing worse.
        view.version = stat.map(|stat| stat.version);
        view.modified = revision.0;
    }
    Ok((views, revision))
}

/// Others wrote while the dirs were read: what they did since is in the history, which tells how the dirs are at its end.
async fn catch_up(
    link: &Shared,
    realm: &Realm,
    wanted: &BTreeMap<Dir, Wanted>,
    views: &mut BTreeMap<Dir, View>,
    from: Revision,
) -> Result<Revision> {
    let mut at = from;
    loop {
        let history = history(link, realm, Some(Place::after(at))).await?;
        if history.lost {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the history was trimmed while a dir was read: read it again",
            ));
        }
        for step in history.steps {
            at = Revision(step.at.revision);
            let What::Changes(changes) = step.what else { continue };
            for change in changes {
                let (key, entry) = match change {
                    Change::Put(entry) => (entry.key.clone(), Some(entry)),
                    Change::Gone { key, .. } => (key, None),
                    Change::Progress(_) | Change::Resync { .. } => continue,
                };
                let (Some(view), Some(wanted)) = (views.get_mut(key.dir()), wanted.get(key.dir())) else { continue };
                if wanted.all && entry.is_none() {
                    view.entries.remove(key.name());
                } else if wanted.all || wanted.names.contains(key.name()) {
                    view.entries.insert(key.name().to_owned(), entry);
                }
            }
        }
        if !history.more {
            return Ok(at);
        }
    }
}

async fn last_revision(link: &Shared, realm: &Realm) -> Result<Revision> {
    let stat = link.stat(&link.paths.log(realm)).await?;
    Ok(stat.map_or(Revision(0), |stat| present(&stat)))
}

async fn versions(link: &Shared, wanted: &BTreeMap<Dir, Wanted>) -> Result<Vec<Option<Stat>>> {
    try_join_all(wanted.keys().map(async |dir| link.stat(&link.paths.dir(dir)).await)).await
}

async fn read_dir(link: &Shared, dir: &Dir, wanted: &Wanted, stat: &Stat) -> Result<View> {
    let names: Vec<String> = if wanted.all {
        link.names(&link.paths.dir(dir)).await?.iter().filter_map(|name| decode(name)).collect()
    } else {
        wanted.names.iter().cloned().collect()
    };
    let mut view = View {
        version: Some(stat.version),
        modified: stat.mzxid.unsigned_abs(),
        entries: BTreeMap::new(),
        complete: wanted.all,
    };
    let keys: Vec<Key> = names.iter().filter_map(|name| dir.key(name).ok()).collect();
    for (key, entry) in keys.iter().zip(join_all(keys.iter().map(|key| read_entry(link, key))).await) {
        view.entries.insert(key.name().to_owned(), entry?);
    }
    for name in &wanted.names {
        view.entries.entry(name.clone()).or_insert(None);
    }
    Ok(view)
}

/// One entry, as some server has it.
async fn read_entry(link: &Shared, key: &Key) -> Result<Option<Entry>> {
    link.get(&link.paths.entry(key)).await?.map(|(data, stat)| entry(key, data, &stat)).transpose()
}

pub(crate) fn entry(key: &Key, data: Vec<u8>, stat: &Stat) -> Result<Entry> {
    let parsed = data.iter().position(|byte| *byte == b'\n').and_then(|end| {
        let lease = std::str::from_utf8(&data[..end]).ok()?;
        let lease = if lease.is_empty() { None } else { Some(LeaseId(lease.parse().ok()?)) };
        Some((end, lease))
    });
    let (end, lease) = parsed.ok_or_else(|| malformed(&format!("the entry {key}")))?;
    Ok(Entry {
        key: key.clone(),
        value: Bytes::from(data).slice(end + 1..),
        created: Revision(stat.czxid.unsigned_abs()),
        modified: Revision(stat.mzxid.unsigned_abs()),
        lease,
    })
}

/// What an entry's node holds.
pub(crate) fn data(value: &[u8], lease: Option<i64>) -> Vec<u8> {
    let mut data = lease.map(|lease| lease.to_string()).unwrap_or_default().into_bytes();
    data.push(b'\n');
    data.extend_from_slice(value);
    data
}
