//! Parked keys: which there are, and how they come back.
//!
//! A parked key has a marker in `mq/parked/<group>`, named `<topic>.<partition>.<hash of the key>`. It is written in the
//! same commit as the records that it counts, by the consumer that holds the partition; an operator only asks for a
//! redrive.

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, KvHandle, Order, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Group, Key, Realm, Topic},
};
use serde::{Deserialize, Serialize};

use super::{
    group::TopicPartition,
    retry::{KeyHash, hash},
};
use crate::json::{read, to_bytes};

/// The parked keys of a group.
#[derive(Clone, Debug)]
pub struct Parked {
    kv: KvHandle,
    dir: Dir,
}

/// A key whose records are parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedKey {
    /// Of which topic.
    pub topic: Topic,
    /// Of which partition.
    pub partition: u32,
    /// The key, for people: cut, and with signs in place of what is no text.
    pub key: String,
    /// How many records wait.
    pub waiting: u64,
    /// Why the first one failed last.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Since when the key is parked, in milliseconds since 1970.
    pub since_ms: u64,
    /// When the newest record was parked, in milliseconds since 1970.
    pub last_ms: u64,
    /// Whether its records are on their way back.
    pub redriving: bool,
    hash: KeyHash,
}

impl Parked {
    /// The parked keys of a group, in the store in which it meets.
    ///
    /// # Errors
    /// `Invalid` if the group's name makes no dir.
    pub fn open(kv: &KvHandle, realm: &Realm, group: &Group) -> Result<Self> {
        Ok(Self { kv: kv.clone(), dir: dir(realm, group)? })
    }

    /// Every parked key, by topic and partition.
    ///
    /// # Errors
    /// `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn list(&self) -> Result<Vec<ParkedKey>> {
        let (markers, _) = list(&self.kv, &self.dir).await?;
        Ok(markers.into_iter().map(|found| found.describe()).collect())
    }

    /// Asks for the records of a key to come back, in order, before anything later of the key. False if it is not parked.
    ///
    /// # Errors
    /// `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Once polled, it may be asked though the future is dropped; again is harmless.
    pub async fn redrive(&self, topic: &Topic, key: &[u8]) -> Result<bool> {
        let wanted = hash(&Bytes::copy_from_slice(key));
        let (markers, _) = list(&self.kv, &self.dir).await?;
        let of_key = markers.into_iter().filter(|found| found.place.topic == *topic && found.hash == wanted);
        let mut any = false;
        for found in of_key {
            any |= self.mark(found).await?;
        }
        Ok(any)
    }

    /// Asks for all records to come back. Returns how many keys there are.
    ///
    /// # Errors
    /// `Unavailable` if the store does not answer; some may be asked for.
    ///
    /// # Cancel safety
    /// Some may be asked for.
    pub async fn redrive_all(&self) -> Result<usize> {
        let mut count = 0;
        for found in list(&self.kv, &self.dir).await?.0 {
            count += usize::from(self.mark(found).await?);
        }
        Ok(count)
    }

    async fn mark(&self, found: Found) -> Result<bool> {
        let key = found.key(&self.dir)?;
        let mut current = Some((found.marker, found.modified));
        for _ in 0..ROUNDS {
            let Some((marker, modified)) = current else { return Ok(false) };
            if marker.redrive {
                return Ok(true);
            }
            let value = to_bytes(&Marker { redrive: true, ..marker })?;
            let txn = Txn {
                checks: vec![Check::ModifiedAt(key.clone(), modified)],
                writes: vec![Write::Put { key: key.clone(), value, lease: None }],
                ..Txn::default()
            };
            match self.kv.txn(self.dir.realm(), txn).await? {
                TxnOutcome::Committed { .. } => return Ok(true),
                TxnOutcome::Refused { found, .. } => {
                    current = found.and_then(|entry| Some((read(&entry)?, entry.modified)));
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("{key} changes faster than it can be written")))
    }
}

const ROUNDS: u32 = 64;

/// The value of a parked key's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// The key, for people.
    pub(super) key: String,
    /// How many records were parked.
    pub(super) parked: u64,
    /// How many of them came back.
    pub(super) done: u64,
    /// No record of the key is before this offset of the parked topic that did not come back.
    pub(super) from: u64,
    pub(super) error: String,
    pub(super) attempts: u32,
    pub(super) since_ms: u64,
    pub(super) last_ms: u64,
    #[serde(default)]
    pub(super) redrive: bool,
    /// Tells one writing of it from another.
    pub(super) nonce: u64,
}

/// A marker as it was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) place: TopicPartition,
    pub(super) hash: KeyHash,
    pub(super) marker: Marker,
    pub(super) modified: Revision,
}

impl Found {
    pub(super) fn key(&self, dir: &Dir) -> Result<Key> {
        dir.key(&name(&self.place, &self.hash))
    }

    fn describe(self) -> ParkedKey {
        ParkedKey {
            topic: self.place.topic,
            partition: self.place.partition,
            key: self.marker.key,
            waiting: self.marker.parked.saturating_sub(self.marker.done),
            error: self.marker.error,
            attempts: self.marker.attempts,
            since_ms: self.marker.since_ms,
            last_ms: self.marker.last_ms,
            redriving: self.marker.redrive,
            hash: self.hash,
        }
    }

    pub(super) fn read(entry: &Entry) -> Option<Self> {
        let (rest, hex) = entry.key.name().rsplit_once('.')?;
        let (topic, partition) = rest.rsplit_once('.')?;
        let place = TopicPartition { topic: Topic::new(topic).ok()?, partition: partition.parse().ok()? };
        let hash = u128::from_str_radix(hex, 16).ok()?.to_be_bytes();
        Some(Self { place, hash, marker: read(entry)?, modified: entry.modified })
    }
}

impl ParkedKey {
    /// What stands for the key in names.
    pub fn hash(&self) -> String {
        hex(&self.hash)
    }
}

pub(super) fn dir(realm: &Realm, group: &Group) -> Result<Dir> {
    Dir::new(realm, &format!("mq/parked/{group}"))
}

pub(super) fn name(place: &TopicPartition, hash: &KeyHash) -> String {
    format!("{}.{}.{}", place.topic, place.partition, hex(hash))
}

fn hex(hash: &KeyHash) -> String {
    format!("{:032x}", u128::from_be_bytes(*hash))
}

/// All markers of a group, and the revision as of which the list is complete. Foreign entries are left out.
pub(super) async fn list(kv: &KvHandle, dir: &Dir) -> Result<(Vec<Found>, Revision)> {
    const PAGE: usize = 1_000;
    let (mut found, mut after, mut oldest) = (Vec::new(), String::new(), None);
    loop {
        let page = kv.list(dir, Order::Name { after: after.clone() }, PAGE).await?;
        let revision = *oldest.get_or_insert(page.revision);
        after = page.entries.last().map_or(after, |entry| entry.key.name().to_owned());
        found.extend(page.entries.iter().filter_map(Found::read));
        if !page.more {
            return Ok((found, revision));
        }
    }
}

/// A key for people.
pub(super) fn show(key: &Bytes) -> String {
    String::from_utf8_lossy(key).chars().filter(|sign| !sign.is_control()).take(64).collect()
}
