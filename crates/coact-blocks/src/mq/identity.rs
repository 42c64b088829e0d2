//! Who a producer is: what its stamps carry, so that a repeated batch is recognized and an older incarnation refused.

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, KvHandle, Revision, Txn, TxnOutcome, Write},
    env::Env,
    name::{Key, Realm, Topic},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::json::to_bytes;

/// A producer's number and its newest epoch.
#[derive(Debug)]
pub(super) struct Identity {
    id: u64,
    newest: Mutex<u32>,
    entry: Option<tokio::sync::Mutex<NamedEntry>>,
}

/// Where a named producer keeps its epoch, and the revision at which it is ours.
#[derive(Debug)]
struct NamedEntry {
    kv: KvHandle,
    key: Key,
    modified: Revision,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    id: u64,
    epoch: u32,
}

impl Identity {
    /// Nobody will come back as this producer: a random number, epoch 0.
    pub(super) fn anonymous(env: &Env) -> Self {
        Self { id: env.random(), newest: Mutex::new(0), entry: None }
    }

    /// Takes over from whoever had this name: the same number, the next epoch.
    pub(super) async fn named(kv: &KvHandle, realm: &Realm, topic: &Topic, name: &str) -> Result<Self> {
        let key = Key::new(realm, &format!("mq/producer/{topic}"), name)?;
        for _ in 0..ROUNDS {
            let (check, stored) = match kv.get(&key).await? {
                None => (Check::Absent(key.clone()), Stored { id: kv.env().random(), epoch: 0 }),
                Some(entry) => {
                    let stored: Stored = serde_json::from_slice(&entry.value).map_err(|error| {
                        Error::new(ErrorKind::Corrupt, format!("{key} is not a producer's entry")).with_source(error)
                    })?;
                    (Check::ModifiedAt(key.clone(), entry.modified), stored.next(name)?)
                }
            };
            if let Some(modified) = put(kv, &key, check, &stored).await? {
                let entry = NamedEntry { kv: kv.clone(), key, modified };
                let (id, newest) = (stored.id, Mutex::new(stored.epoch));
                return Ok(Self { id, newest, entry: Some(tokio::sync::Mutex::new(entry)) });
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("producer {name} is opened by others all the time")))
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn epoch(&self) -> u32 {
        *self.newest.lock()
    }

    /// A new epoch, after a batch of which nobody knows whether it arrived: if it comes late, it is refused.
    pub(super) async fn next_epoch(&self) -> Result<u32> {
        let Some(entry) = &self.entry else {
            let mut newest = self.newest.lock();
            *newest += 1;
            return Ok(*newest);
        };
        let mut entry = entry.lock().await;
        let name = entry.key.name().to_owned();
        let stored = Stored { id: self.id, epoch: self.epoch() }.next(&name)?;
        let check = Check::ModifiedAt(entry.key.clone(), entry.modified);
        let Some(modified) = put(&entry.kv, &entry.key, check, &stored).await? else {
            return Err(Error::new(ErrorKind::Fenced, format!("producer {name} was opened again elsewhere")));
        };
        entry.modified = modified;
        *self.newest.lock() = stored.epoch;
        Ok(stored.epoch)
    }
}

const ROUNDS: u32 = 16;

impl Stored {
    fn next(self, name: &str) -> Result<Self> {
        let epoch = self.epoch.checked_add(1).ok_or_else(|| {
            Error::new(ErrorKind::Exhausted, format!("producer {name} has used all its epochs: take another name"))
        })?;
        Ok(Self { id: self.id, epoch })
    }
}

async fn put(kv: &KvHandle, key: &Key, check: Check, stored: &Stored) -> Result<Option<Revision>> {
    let write = Write::Put { key: key.clone(), value: to_bytes(stored)?, lease: None };
    let txn = Txn { checks: vec![check], writes: vec![write], ..Txn::default() };
    match kv.txn(key.realm(), txn).await? {
        TxnOutcome::Committed { revision, .. } => Ok(Some(revision)),
        TxnOutcome::Refused { .. } => Ok(None),
    }
}
