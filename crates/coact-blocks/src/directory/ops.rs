//! Plain operations, for surfaces and operators: each is one request or a few, and nothing is kept up afterwards.

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, LeaseId, Order, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Key},
};

use super::{
    Directory, Health, Instance, PERSISTENT_NEEDS, Seen, feed,
    names::{self, DIR_PREFIX, Kind},
    record::{self, DrainMarker, Record, Report},
    table::{Protection, Table},
};
use crate::json;

/// A service as just read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its instances, by id.
    pub instances: Vec<Seen>,
    /// Up to which revision the list is complete.
    pub revision: Revision,
    /// How many entries were skipped, because they are not what the directory writes.
    pub skipped: usize,
}

impl Directory {
    /// Lists up to `limit` services whose names start with `prefix`, after the service `after`.
    ///
    /// # Errors
    /// `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn services(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>> {
        let after = if after.is_empty() { String::new() } else { format!("{DIR_PREFIX}{after}") };
        let dirs = self.kv().dirs(self.realm(), &format!("{DIR_PREFIX}{prefix}"), &after, limit).await?;
        let name = |dir: Dir| dir.path().strip_prefix(DIR_PREFIX).map(str::to_owned);
        Ok(dirs.into_iter().filter_map(name).collect())
    }

    /// Whether a service has an instance.
    ///
    /// # Errors
    /// `Invalid` for a name that is no service; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn exists(&self, service: &str) -> Result<bool> {
        let after = Kind::Instance.prefix().to_owned();
        let page = self.kv().list(&self.dir_of(service)?, Order::Name { after }, 1).await?;
        let is_instance = |name: &str| matches!(Kind::of(name), Some((Kind::Instance, _)));
        Ok(page.entries.first().is_some_and(|entry| is_instance(entry.key.name())))
    }

    /// Reads a service from the store, complete as of the listing's revision.
    ///
    /// # Errors
    /// `Invalid` for a name that is no service; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn list(&self, service: &str) -> Result<Listing> {
        let (entries, revision) = feed::read_all(self.kv(), &self.dir_of(service)?).await?;
        let mut table = Table::new(service, Protection { share: 0.0, hold: std::time::Duration::ZERO });
        table.replace(entries, revision, self.kv().env().now());
        let snapshot = table.snapshot(None);
        let instances = snapshot.instances.iter().map(|seen| (**seen).clone()).collect();
        Ok(Listing { instances, revision, skipped: snapshot.skipped })
    }

    /// Puts an instance under a lease of the caller's, or without one until it is [removed](Self::remove_instance).
    /// It replaces what another plain put wrote.
    ///
    /// # Errors
    /// `Invalid` for an instance against the rules or without an id; `AlreadyExists`, naming the holder, if a
    /// [`Registration`](super::Registration) has the id; `Fenced` if the lease has ended; `Unsupported` without a lease in
    /// a store that [forgets](PERSISTENT_NEEDS); `Conflict` if others write it all the time.
    ///
    /// # Cancel safety
    /// It may have been put.
    pub async fn put_instance(&self, lease: Option<LeaseId>, instance: &Instance) -> Result<Revision> {
        if lease.is_none() {
            self.kv().require(&PERSISTENT_NEEDS)?;
        }
        instance.validate()?;
        let key = self.key_of(&instance.service, Kind::Instance, &instance.id)?;
        let record = Record {
            instance: instance.clone(),
            owner: String::new(),
            label: self.label().to_owned(),
            draining: false,
        };
        let put = Write::Put { key: key.clone(), value: json::to_bytes(&record)?, lease };
        let mut check = Check::Absent(key.clone());
        for _ in 0..ROUNDS {
            let txn = Txn { checks: vec![check], reads: Vec::new(), writes: vec![put.clone()] };
            check = match self.kv().txn(self.realm(), txn).await? {
                TxnOutcome::Committed { revision, .. } => return Ok(revision),
                TxnOutcome::Refused { found: None, .. } => Check::Absent(key.clone()),
                TxnOutcome::Refused { found: Some(found), .. } => {
                    if let Some(holder) = json::read::<Record>(&found).filter(|record| !record.owner.is_empty()) {
                        return Err(Error::new(
                            ErrorKind::AlreadyExists,
                            format!("{key} is kept by the registration of {}: choose another id", holder.label),
                        ));
                    }
                    Check::ModifiedAt(key.clone(), found.modified)
                }
            };
        }
        Err(changes_too_fast(&key))
    }

    /// Deletes an instance with its health and its drain marker; no effect if there is none. A live
    /// [`Registration`](super::Registration) writes its instance again: drain that instead.
    ///
    /// # Errors
    /// `Invalid` for names against the rules; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// It may have been deleted.
    pub async fn remove_instance(&self, service: &str, id: &str) -> Result<()> {
        let instance = self.key_of(service, Kind::Instance, id)?;
        if let Some(found) = self.kv().get(&instance).await?
            && let Some(farewell) = record::farewell(&found)?
        {
            let checks = vec![Check::ModifiedAt(instance, found.modified)];
            let txn = Txn { checks, reads: Vec::new(), writes: vec![farewell] };
            // If somebody else wrote it meanwhile, watchers may hold it for a while.
            let _ = self.kv().txn(self.realm(), txn).await?;
        }
        let mut writes = Vec::new();
        for kind in [Kind::Instance, Kind::Health, Kind::Drain] {
            writes.push(Write::Delete(self.key_of(service, kind, id)?));
        }
        self.kv().txn(self.realm(), Txn { writes, ..Txn::default() }).await.map(drop)
    }

    /// Sets or removes an operator's drain marker. It stays with the id until it is removed or the instance deregisters,
    /// also when the instance dies and comes back.
    ///
    /// # Errors
    /// `NotFound` if there is no such instance to drain; `Invalid` for names against the rules; `Unavailable` if the store
    /// does not answer.
    ///
    /// # Cancel safety
    /// It may have been set.
    pub async fn set_drain(&self, service: &str, id: &str, draining: bool) -> Result<()> {
        let marker = self.key_of(service, Kind::Drain, id)?;
        if !draining {
            return self.kv().delete(&marker).await.map(drop);
        }
        let value = json::to_bytes(&DrainMarker { at: self.kv().env().wall_ms() })?;
        self.put_beside(service, id, Write::Put { key: marker, value, lease: None }).await
    }

    /// Says what a check of an instance found, until the lease ends: silence of the reporter makes it unchecked again.
    ///
    /// # Errors
    /// `NotFound` if there is no such instance; `Fenced` if the lease has ended; `Invalid` for names against the rules;
    /// `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// It may have been written.
    pub async fn report_health(&self, service: &str, id: &str, health: Health, lease: Option<LeaseId>) -> Result<()> {
        let key = self.key_of(service, Kind::Health, id)?;
        if health == Health::Unchecked {
            return self.kv().delete(&key).await.map(drop);
        }
        let report = Report { health: shorten(health), at: self.kv().env().wall_ms() };
        self.put_beside(service, id, Write::Put { key, value: json::to_bytes(&report)?, lease }).await
    }

    /// Writes an entry about an instance, if that exists.
    async fn put_beside(&self, service: &str, id: &str, write: Write) -> Result<()> {
        let instance = self.key_of(service, Kind::Instance, id)?;
        for _ in 0..ROUNDS {
            let Some(found) = self.kv().get(&instance).await? else {
                return Err(Error::new(ErrorKind::NotFound, format!("service {service} has no instance {id}")));
            };
            let txn = Txn {
                checks: vec![Check::CreatedAt(instance.clone(), found.created)],
                reads: Vec::new(),
                writes: vec![write.clone()],
            };
            if let TxnOutcome::Committed { .. } = self.kv().txn(self.realm(), txn).await? {
                return Ok(());
            }
        }
        Err(changes_too_fast(&instance))
    }

    fn dir_of(&self, service: &str) -> Result<Dir> {
        names::dir_of(self.realm(), service)
    }

    fn key_of(&self, service: &str, kind: Kind, id: &str) -> Result<Key> {
        names::key_of(&self.dir_of(service)?, kind, id)
    }
}

/// How often an entry may change under our hands before a request fails.
const ROUNDS: u32 = 16;
const WHY_CHARS_MAX: usize = 500;

/// Cuts what a failed check said: it is for people, and every watcher receives it.
fn shorten(health: Health) -> Health {
    match health {
        Health::Failing { why } => Health::Failing { why: why.chars().take(WHY_CHARS_MAX).collect() },
        other => other,
    }
}

fn changes_too_fast(key: &Key) -> Error {
    Error::new(ErrorKind::Conflict, format!("{key} changes faster than it can be written"))
}
