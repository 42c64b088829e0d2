//! Watching settings: what is there, then each change, without a gap and without repetition.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Change, Entry, Feed, KvHandle, Revision, Scope},
    name::{Dir, Key},
};
use futures::StreamExt;

use super::{Setting, stored::Stored};
use crate::{
    backoff::{Backoff, is_retryable},
    directory::feed,
};

/// The changes of a group or of one setting. After a gap the store is read again, and only what differs is told; versions
/// that were replaced during the gap are left out.
pub struct Changes {
    kv: KvHandle,
    group: String,
    dir: Dir,
    key: Option<Key>,
    /// When each setting that was told last changed.
    told: BTreeMap<String, Revision>,
    /// What the last reading showed completely.
    floor: Revision,
    ready: VecDeque<SettingChange>,
    feed: Option<Feed>,
    must_read: bool,
    backoff: Backoff,
}

/// One change of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingChange {
    /// It has a new version.
    Set(Setting),
    /// It was deleted.
    Deleted {
        /// Which.
        key: String,
    },
}

impl Changes {
    pub(super) fn new(kv: &KvHandle, group: &str, dir: Dir, key: Option<Key>) -> Self {
        Self {
            kv: kv.clone(),
            group: group.to_owned(),
            dir,
            key,
            told: BTreeMap::new(),
            floor: Revision::default(),
            ready: VecDeque::new(),
            feed: None,
            must_read: true,
            backoff: Backoff::new(kv.env(), Duration::from_millis(50), Duration::from_secs(5)),
        }
    }

    /// Waits for the next change. While the store does not answer it asks again, with pauses.
    ///
    /// # Errors
    /// What the store answers, if that is final.
    ///
    /// # Cancel safety
    /// Safe: no change is lost.
    pub async fn next(&mut self) -> Result<SettingChange> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            match self.advance().await {
                Ok(()) => {}
                Err(error) if is_retryable(&error) => {
                    self.feed = None;
                    self.must_read = true;
                    self.backoff.pause().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes one step: reads, opens the feed, or waits for an item of it.
    async fn advance(&mut self) -> Result<()> {
        if self.must_read {
            let (entries, floor) = self.read().await?;
            self.compare(entries, floor);
            self.must_read = false;
            return Ok(());
        }
        let Some(feed) = &mut self.feed else {
            let scope = self.key.clone().map_or_else(|| Scope::Dir(self.dir.clone()), Scope::Key);
            self.feed = Some(self.kv.watch(scope, Some(self.floor)).await?);
            return Ok(());
        };
        let item = feed.next().await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Unavailable, format!("the watch of {} has ended", self.dir)))
        })?;
        self.backoff.reset();
        match item {
            Change::Put(entry) if entry.modified > self.floor => self.tell(&entry),
            Change::Gone { key, at, .. } if self.told.get(key.name()).is_some_and(|told| *told <= at) => {
                self.tell_gone(key.name());
            }
            Change::Resync { .. } => self.must_read = true,
            Change::Put(_) | Change::Gone { .. } | Change::Progress(_) => {}
        }
        Ok(())
    }

    // Borrowed mutably since a feed is not `Sync`: otherwise the future of `next` would not be `Send`.
    async fn read(&mut self) -> Result<(Vec<Entry>, Revision)> {
        let (mut entries, floor) = feed::read_all(&self.kv, &self.dir).await?;
        entries.retain(|entry| self.key.as_ref().is_none_or(|key| *key == entry.key));
        Ok((entries, floor))
    }

    /// Tells how a reading differs from what was told.
    fn compare(&mut self, entries: Vec<Entry>, floor: Revision) {
        let gone: Vec<_> =
            self.told.keys().filter(|key| !entries.iter().any(|entry| entry.key.name() == *key)).collect();
        for key in gone.into_iter().cloned().collect::<Vec<_>>() {
            self.tell_gone(&key);
        }
        for entry in &entries {
            self.tell(entry);
        }
        self.floor = floor;
    }

    /// What this block did not write is passed over.
    fn tell(&mut self, entry: &Entry) {
        let key = entry.key.name();
        if self.told.get(key).is_some_and(|told| *told >= entry.modified) {
            return;
        }
        if let Ok(stored) = Stored::read(entry) {
            self.told.insert(key.to_owned(), entry.modified);
            self.ready.push_back(SettingChange::Set(stored.into_setting(&self.group, key)));
        }
    }

    fn tell_gone(&mut self, key: &str) {
        if self.told.remove(key).is_some() {
            self.ready.push_back(SettingChange::Deleted { key: key.to_owned() });
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Changes({})", self.key.as_ref().map_or_else(|| self.dir.to_string(), Key::to_string))
    }
}
