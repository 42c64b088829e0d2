//! One look at everything in a realm.

use std::collections::BTreeMap;

use coact::{
    ErrorKind, KvHandle, Realm, Result,
    directory::{Directory, DirectoryOptions, Health, Seen, Snapshot, State, Watch},
    id,
    lock::{Contender, Inspection, Kind, inspect},
};
use serde_json::{Value, json};

use crate::cmd::lock::kind_name;

/// What one look found: rows, the most contended first where there is contention.
#[derive(Default)]
pub(super) struct Picture {
    locks: Vec<Value>,
    elections: Vec<Value>,
    semaphores: Vec<Value>,
    services: Vec<Value>,
    ids: Vec<Value>,
    /// What could not be looked at, and why.
    pub(super) notes: Vec<String>,
}

impl Picture {
    pub(super) fn sections(&self) -> [(&'static str, &[Value]); 5] {
        [
            ("locks", &self.locks),
            ("elections", &self.elections),
            ("semaphores", &self.semaphores),
            ("services", &self.services),
            ("ids", &self.ids),
        ]
    }

    pub(super) fn to_json(&self) -> Value {
        let mut document: serde_json::Map<_, _> =
            self.sections().into_iter().map(|(name, rows)| (name.to_owned(), rows.into())).collect();
        document.insert("notes".to_owned(), json!(self.notes));
        Value::Object(document)
    }
}

/// Looks, and remembers what only watching can tell: which services lost too much at once.
pub(super) struct Collector {
    kv: KvHandle,
    realm: Realm,
    directory: Directory,
    watches: BTreeMap<String, Watch>,
}

impl Collector {
    pub(super) fn new(kv: &KvHandle, realm: Realm) -> Result<Self> {
        let options = DirectoryOptions { realm: realm.clone(), ..DirectoryOptions::default() };
        let directory = Directory::open(kv, options)?;
        Ok(Self { kv: kv.clone(), realm, directory, watches: BTreeMap::new() })
    }

    /// Each thing is read at its own moment: the picture is for people, not for decisions.
    pub(super) async fn look(&mut self) -> Result<Picture> {
        let mut notes = Vec::new();
        let mut locks = self.of_kind(Kind::Lock, &mut notes).await?;
        locks.extend(self.of_kind(Kind::RwLock, &mut notes).await?);
        let elections = self.of_kind(Kind::Election, &mut notes).await?;
        let semaphores = self.of_kind(Kind::Semaphore, &mut notes).await?;
        let now_ms = self.kv.env().wall_ms();
        let services = seen_unless_denied("services", self.services().await, &mut notes)?;
        let ids = seen_unless_denied("ids", self.ids().await, &mut notes)?;
        Ok(Picture {
            locks: by_contention(locks, now_ms).iter().map(|lock| lock_row(lock, now_ms)).collect(),
            elections: elections.iter().map(|election| election_row(election, now_ms)).collect(),
            semaphores: by_contention(semaphores, now_ms).iter().map(|one| semaphore_row(one, now_ms)).collect(),
            services,
            ids,
            notes,
        })
    }

    async fn of_kind(&self, kind: Kind, notes: &mut Vec<String>) -> Result<Vec<Inspection>> {
        seen_unless_denied(kind_name(kind), inspect(&self.kv, &self.realm, kind, "", EACH_MAX).await, notes)
    }

    async fn services(&mut self) -> Result<Vec<Value>> {
        for service in self.directory.services("", "", EACH_MAX).await? {
            if !self.watches.contains_key(&service) {
                let watch = self.directory.watch(&service).await?;
                self.watches.insert(service, watch);
            }
        }
        // One that the store has no more is shown for as long as the watch holds its instances.
        self.watches.retain(|_, watch| !watch.snapshot().instances.is_empty());
        Ok(self.watches.values().map(|watch| service_row(&watch.snapshot())).collect())
    }

    async fn ids(&self) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for dir in self.kv.dirs(&self.realm, ID_PREFIX, "", EACH_MAX).await? {
            let Some(space) = dir.path().strip_prefix(ID_PREFIX).filter(|space| *space != SEGMENTS) else { continue };
            let workers = id::workers(&self.kv, &self.realm, space).await?;
            let in_use = workers.iter().filter(|worker| worker.used_by.is_some()).count();
            rows.push(json!({ "ids": space, "workers_in_use": in_use, "workers_known": workers.len() }));
        }
        Ok(rows)
    }
}

const EACH_MAX: usize = 1_000;
/// Where the id block keeps its spaces, and the one dir there that is none.
const ID_PREFIX: &str = "id/";
const SEGMENTS: &str = "segment";

/// What a token may not see is left out and noted.
fn seen_unless_denied<T>(what: &str, found: Result<Vec<T>>, notes: &mut Vec<String>) -> Result<Vec<T>> {
    match found {
        Err(error) if error.kind() == ErrorKind::Denied => {
            notes.push(format!("{what}: {error}"));
            Ok(Vec::new())
        }
        found => found,
    }
}

/// Where most wait first; of those, where somebody has waited longest.
fn by_contention(mut locks: Vec<Inspection>, now_ms: u64) -> Vec<Inspection> {
    locks.sort_by(|a, b| {
        let rank = |lock: &Inspection| (lock.waiters.len(), oldest(&lock.waiters, now_ms));
        rank(b).cmp(&rank(a)).then_with(|| a.name.cmp(&b.name))
    });
    locks
}

/// In whole seconds, by the clocks of those who came.
fn oldest(contenders: &[Contender], now_ms: u64) -> Option<u64> {
    contenders.iter().map(|one| now_ms.saturating_sub(one.since_ms) / 1_000).max()
}

fn lock_row(lock: &Inspection, now_ms: u64) -> Value {
    let holder = lock.holders.first().map(|first| match lock.holders.len() {
        1 => first.label.clone(),
        many => format!("{} and {} more", first.label, many - 1),
    });
    json!({
        "lock": lock.name,
        "kind": kind_name(lock.kind),
        "holder": holder,
        "token": lock.holders.first().map(|holder| holder.token),
        "held_s": oldest(&lock.holders, now_ms),
        "waiters": lock.waiters.len(),
        "oldest_wait_s": oldest(&lock.waiters, now_ms),
    })
}

fn election_row(election: &Inspection, now_ms: u64) -> Value {
    let leader = election.holders.first();
    json!({
        "election": election.name,
        "leader": leader.map(|leader| &leader.label),
        "value": leader.and_then(|leader| leader.value.as_ref()),
        "token": leader.map(|leader| leader.token),
        "candidate_for_s": oldest(&election.holders, now_ms),
        "others": election.waiters.len(),
    })
}

fn semaphore_row(semaphore: &Inspection, now_ms: u64) -> Value {
    json!({
        "semaphore": semaphore.name,
        "in_use": semaphore.holders.len(),
        "permits": semaphore.permits,
        "waiters": semaphore.waiters.len(),
        "oldest_wait_s": oldest(&semaphore.waiters, now_ms),
    })
}

fn service_row(snapshot: &Snapshot) -> Value {
    let count = |wish: fn(&Seen) -> bool| snapshot.instances.iter().filter(|seen| wish(seen)).count();
    let state = match &snapshot.state {
        State::Fresh => "fresh",
        State::Stale { .. } => "stale",
        State::Degraded { .. } => "degraded",
    };
    json!({
        "service": snapshot.service,
        "healthy": snapshot.healthy().count(),
        "total": snapshot.instances.len(),
        "draining": count(|seen| seen.draining),
        "failing": count(|seen| matches!(seen.health, Health::Failing { .. }) && !seen.held),
        "held": count(|seen| seen.held),
        "state": state,
    })
}

#[cfg(test)]
mod tests {
    use coact::lock::TicketKind;

    use super::*;

    fn lock(name: &str, waits_s: &[u64]) -> Inspection {
        let one = |since: &u64| Contender {
            label: "one".to_owned(),
            pid: None,
            token: 1,
            since_ms: 1_000_000 - since * 1_000,
            kind: TicketKind::Mutex,
            value: None,
            lease_left_ms: None,
        };
        let waiters = waits_s.iter().map(one).collect();
        Inspection { kind: Kind::Lock, name: name.to_owned(), permits: None, holders: Vec::new(), waiters }
    }

    #[test]
    fn where_most_wait_longest_comes_first() {
        let locks =
            vec![lock("b", &[]), lock("few", &[90]), lock("a", &[]), lock("late", &[1, 2]), lock("old", &[1, 9])];
        let sorted = by_contention(locks, 1_000_000);
        let names: Vec<&str> = sorted.iter().map(|lock| lock.name.as_str()).collect();
        assert_eq!(names, ["old", "late", "few", "a", "b"]);
        assert_eq!(lock_row(&sorted[0], 1_000_000)["oldest_wait_s"], 9);
    }
}
