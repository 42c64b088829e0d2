//! Versioned configuration entries: small values that many read and watch, and few change.
//!
//! The current value of a setting is the entry `config/<group>/<key>`; each version is another in the dir
//! `config-history/<group>/<key>`, and the last 50 are kept. One transaction writes both, so the history has no holes,
//! and versions go on after a deletion.

mod changes;
mod stored;

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, KvHandle, Order, Txn, TxnOutcome, Write},
    guarantees::Needs,
    name::{Dir, Key, Realm},
};

use super::{PERSISTENT_NEEDS, feed};
pub use changes::{Changes, SettingChange};
use stored::Stored;

/// The settings of one realm. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settings {
    kv: KvHandle,
    realm: Realm,
}

/// Counts the changes of one setting, from 1.
pub type Version = u64;

/// One version of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its group.
    pub group: String,
    /// Its name in the group.
    pub key: String,
    /// What it is; `None` for a version that deleted it, which only a history shows.
    pub value: Option<Bytes>,
    /// Which version this is.
    pub version: Version,
    /// The version whose value it brought back, if it did.
    pub restores: Option<Version>,
    /// When it was written, in milliseconds since 1970, by the writer's wall clock.
    pub at_ms: u64,
}

impl Setting {
    /// The value as text, if it is that.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.value.as_ref()?).ok()
    }
}

impl Settings {
    /// The settings of a realm. Nothing is sent yet.
    ///
    /// # Errors
    /// `Unsupported` if the engine [forgets](PERSISTENT_NEEDS) what it acknowledged.
    pub fn new(kv: &KvHandle, realm: Realm) -> Result<Self> {
        kv.require(&Needs { block: "config", ..PERSISTENT_NEEDS })?;
        Ok(Self { kv: kv.clone(), realm })
    }

    /// Writes a new version and returns its number. With an expected version, only if that is the current one; 0 expects
    /// that there is none.
    ///
    /// # Errors
    /// `Conflict`, naming the current version, if it is another than expected; `Invalid` for a value beyond 60 KiB or
    /// names against the rules; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// It may have been written.
    pub async fn put(
        &self,
        group: &str,
        key: &str,
        value: impl Into<Bytes>,
        expected_version: Option<Version>,
    ) -> Result<Version> {
        let value = value.into();
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "the value of {group}/{key} has {} bytes: at most {VALUE_BYTES_MAX} are allowed",
                value.len()
            )));
        }
        self.change(&Place::new(&self.realm, group, key)?, Some(value), None, expected_version).await
    }

    /// Reads the current version; `None` if there is none.
    ///
    /// # Errors
    /// `Corrupt` if the entry is not what this block writes; `Invalid` for names against the rules; `Unavailable` if the
    /// store does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn get(&self, group: &str, key: &str) -> Result<Option<Setting>> {
        let place = Place::new(&self.realm, group, key)?;
        let found = self.kv.get(&place.current).await?;
        found.map(|entry| Ok(Stored::read(&entry)?.into_setting(group, key))).transpose()
    }

    /// Reads the current versions of a group, by key. What this block did not write is left out.
    ///
    /// # Errors
    /// `Invalid` for a name that is no group; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn list(&self, group: &str) -> Result<Vec<Setting>> {
        let (entries, _) = feed::read_all(&self.kv, &group_dir(&self.realm, group)?).await?;
        let read = |entry: &Entry| Some(Stored::read(entry).ok()?.into_setting(group, entry.key.name()));
        Ok(entries.iter().filter_map(read).collect())
    }

    /// Lists up to `limit` groups whose names start with `prefix`, after the group `after`.
    ///
    /// # Errors
    /// `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn groups(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>> {
        let after = if after.is_empty() { String::new() } else { format!("{DIR_PREFIX}{after}") };
        let dirs = self.kv.dirs(&self.realm, &format!("{DIR_PREFIX}{prefix}"), &after, limit).await?;
        Ok(dirs.into_iter().filter_map(|dir| dir.path().strip_prefix(DIR_PREFIX).map(str::to_owned)).collect())
    }

    /// Reads the last versions of a setting, up to 50, oldest first; also of one that was deleted.
    ///
    /// # Errors
    /// `Invalid` for names against the rules; `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn history(&self, group: &str, key: &str) -> Result<Vec<Setting>> {
        let place = Place::new(&self.realm, group, key)?;
        let order = Order::Name { after: String::new() };
        let page = self.kv.list(&place.versions, order, VERSIONS_KEPT as usize * 2).await?;
        let read = |entry: &Entry| Some(Stored::read(entry).ok()?.into_setting(group, key));
        Ok(page.entries.iter().filter_map(read).collect())
    }

    /// Brings the value of an earlier version back, as a new version that says so.
    ///
    /// # Errors
    /// `NotFound` if the history has no value of that version; otherwise as [`put`](Self::put).
    ///
    /// # Cancel safety
    /// It may have been brought back.
    pub async fn rollback(&self, group: &str, key: &str, version: Version) -> Result<Version> {
        let place = Place::new(&self.realm, group, key)?;
        let found = self.kv.get(&place.version(version)?).await?;
        let value = match found {
            Some(entry) => Stored::read(&entry)?.value,
            None => None,
        };
        let Some(value) = value else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{group}/{key} has no value of version {version}: the last {VERSIONS_KEPT} versions are kept"),
            ));
        };
        self.change(&place, Some(value), Some(version), None).await
    }

    /// Deletes a setting and returns the version of its deletion; `None` if there was none. Its history stays.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    /// It may have been deleted.
    pub async fn delete(&self, group: &str, key: &str) -> Result<Option<Version>> {
        let place = Place::new(&self.realm, group, key)?;
        if self.kv.get(&place.current).await?.is_none() {
            return Ok(None);
        }
        self.change(&place, None, None, None).await.map(Some)
    }

    /// Watches a group: first every current version, then each change.
    ///
    /// # Errors
    /// `Invalid` for a name that is no group.
    pub fn watch(&self, group: &str) -> Result<Changes> {
        Ok(Changes::new(&self.kv, group, group_dir(&self.realm, group)?, None))
    }

    /// Watches one setting: first its current version, if there is one, then each change.
    ///
    /// # Errors
    /// `Invalid` for names against the rules.
    pub fn watch_key(&self, group: &str, key: &str) -> Result<Changes> {
        let place = Place::new(&self.realm, group, key)?;
        Ok(Changes::new(&self.kv, group, place.current.dir().clone(), Some(place.current)))
    }

    /// Writes the next version. Who is overtaken tries again, unless a version was expected.
    async fn change(
        &self,
        place: &Place,
        value: Option<Bytes>,
        restores: Option<Version>,
        expected: Option<Version>,
    ) -> Result<Version> {
        for _ in 0..ROUNDS {
            let current = self.kv.get(&place.current).await?;
            let current_version = current.as_ref().map(Stored::read).transpose()?.map(|stored| stored.version);
            if let Some(expected) = expected
                && expected != current_version.unwrap_or_default()
            {
                return Err(place.conflict(expected, current_version));
            }
            let last = match current_version {
                Some(version) => version,
                None => self.last_version(place).await?,
            };
            let stored = Stored { version: last + 1, value: value.clone(), restores, at_ms: self.kv.env().wall_ms() };
            let txn = place.transaction(current.as_ref(), &stored)?;
            if let TxnOutcome::Committed { .. } = self.kv.txn(&self.realm, txn).await? {
                return Ok(stored.version);
            }
        }
        let message = format!("{} is changed by others faster than by this writer", place.current);
        Err(Error::new(ErrorKind::Conflict, message))
    }

    /// Where the count stands though there is no current version.
    async fn last_version(&self, place: &Place) -> Result<Version> {
        let order = Order::Name { after: String::new() };
        let page = self.kv.list(&place.versions, order, VERSIONS_KEPT as usize * 2).await?;
        let versions = page.entries.iter().filter_map(|entry| entry.key.name().parse().ok());
        Ok(versions.max().unwrap_or_default())
    }
}

/// Where one setting is.
struct Place {
    current: Key,
    versions: Dir,
}

impl Place {
    fn new(realm: &Realm, group: &str, key: &str) -> Result<Self> {
        let dir = group_dir(realm, group)?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let message = format!("setting key has {} bytes: use 1 to {KEY_BYTES_MAX} bytes", key.len());
            return Err(Error::invalid(message));
        }
        Ok(Self { current: dir.key(key)?, versions: Dir::new(realm, &format!("{HISTORY_PREFIX}{group}/{key}"))? })
    }

    /// The name has leading zeros, so that the order of names is that of versions.
    fn version(&self, version: Version) -> Result<Key> {
        self.versions.key(&format!("{version:020}"))
    }

    /// Writes a version as the current one and into the history, and drops the version that is too old by then.
    fn transaction(&self, current: Option<&Entry>, stored: &Stored) -> Result<Txn> {
        let version = self.version(stored.version)?;
        let checks = match current {
            Some(entry) => vec![Check::ModifiedAt(self.current.clone(), entry.modified)],
            None => vec![Check::Absent(self.current.clone()), Check::Absent(version.clone())],
        };
        let bytes = stored.to_bytes()?;
        let mut writes = vec![
            match stored.value {
                Some(_) => Write::Put { key: self.current.clone(), value: bytes.clone(), lease: None },
                None => Write::Delete(self.current.clone()),
            },
            Write::Put { key: version, value: bytes, lease: None },
        ];
        if let Some(old) = stored.version.checked_sub(VERSIONS_KEPT).filter(|old| *old > 0) {
            writes.push(Write::Delete(self.version(old)?));
        }
        Ok(Txn { checks, reads: Vec::new(), writes })
    }

    fn conflict(&self, expected: Version, current: Option<Version>) -> Error {
        let current = current.map_or_else(|| "it does not exist".to_owned(), |version| format!("it is at {version}"));
        let path = format!("{}/{}", self.current.dir().path().trim_start_matches(DIR_PREFIX), self.current.name());
        let message = format!("setting {path} was expected at version {expected}, but {current}: read it again");
        Error::new(ErrorKind::Conflict, message)
    }
}

const DIR_PREFIX: &str = "config/";
const HISTORY_PREFIX: &str = "config-history/";
/// Leaves room for the header in an entry.
const VALUE_BYTES_MAX: usize = 60 * 1024;
/// Group and key fit into the path of a history together.
const GROUP_BYTES_MAX: usize = 50;
const KEY_BYTES_MAX: usize = 60;
const VERSIONS_KEPT: u64 = 50;
/// How often a writer without expectations may be overtaken.
const ROUNDS: u32 = 64;

fn group_dir(realm: &Realm, group: &str) -> Result<Dir> {
    if group.is_empty() || group.len() > GROUP_BYTES_MAX {
        let message = format!("setting group has {} bytes: use 1 to {GROUP_BYTES_MAX} bytes", group.len());
        return Err(Error::invalid(message));
    }
    Dir::new(realm, &format!("{DIR_PREFIX}{group}"))
}
