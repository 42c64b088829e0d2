//! The local picture of one service, and the judgement which losses to believe. It knows no store and no clock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    contract::kv::{Entry, GoneCause, Revision},
    name::Key,
};

use super::{
    Health, Seen, Snapshot, State,
    names::Kind,
    record::{DrainMarker, Record, Report},
};
use crate::json;

/// When vanished instances are held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protection {
    /// The part of the list that must remain for a loss to be believed at once; zero turns the protection off.
    pub(super) share: f64,
    /// How long they are held.
    pub(super) hold: Duration,
}

pub(super) struct Table {
    service: String,
    protection: Protection,
    revision: Revision,
    /// What the last reading showed completely: older changes are in it.
    floor: Revision,
    instances: BTreeMap<String, Present>,
    healths: HashMap<String, (Health, Revision)>,
    drains: HashMap<String, Revision>,
    /// What vanished without deregistering, for as long as it could be held.
    lost: BTreeMap<String, Lost>,
    skipped: HashSet<Key>,
}

struct Present {
    record: Record,
    created: Revision,
    modified: Revision,
    /// As shown, until something about it changes.
    seen: Option<Arc<Seen>>,
}

struct Lost {
    seen: Arc<Seen>,
    until: Instant,
}

impl Table {
    pub(super) fn new(service: &str, protection: Protection) -> Self {
        Self {
            service: service.to_owned(),
            protection,
            revision: Revision::default(),
            floor: Revision::default(),
            instances: BTreeMap::new(),
            healths: HashMap::new(),
            drains: HashMap::new(),
            lost: BTreeMap::new(),
            skipped: HashSet::new(),
        }
    }

    /// Takes a whole reading. What is no longer there vanished for unknown reasons.
    pub(super) fn replace(&mut self, entries: Vec<Entry>, floor: Revision, now: Instant) {
        self.healths.clear();
        self.drains.clear();
        self.skipped.clear();
        let mut before = std::mem::take(&mut self.instances);
        for entry in entries {
            self.put(entry);
        }
        before.retain(|id, present| !self.instances.contains_key(id) && !present.record.draining);
        for (id, mut present) in before {
            self.lose(id, &mut present, now);
        }
        self.floor = floor;
        self.revision = self.revision.max(floor);
    }

    /// Takes one change of an entry; `false` if the last reading had it already.
    pub(super) fn apply_put(&mut self, entry: Entry) -> bool {
        if entry.modified <= self.floor {
            return false;
        }
        self.revision = self.revision.max(entry.modified);
        self.put(entry);
        true
    }

    /// Takes the end of one entry; `false` if the last reading had it already.
    pub(super) fn apply_gone(&mut self, key: &Key, at: Revision, cause: GoneCause, now: Instant) -> bool {
        if at <= self.floor {
            return false;
        }
        self.revision = self.revision.max(at);
        self.skipped.remove(key);
        let Some((kind, id)) = Kind::of(key.name()) else {
            return true;
        };
        match kind {
            Kind::Instance => {
                // A page of the reading may have been younger than this. Who said before that it drains was about to leave:
                // not every store tells a deletion from an expiry.
                if self.instances.get(id).is_some_and(|present| present.modified <= at)
                    && let Some(mut present) = self.instances.remove(id)
                    && cause != GoneCause::Deleted
                    && !present.record.draining
                {
                    self.lose(id.to_owned(), &mut present, now);
                }
            }
            Kind::Health => {
                if self.healths.get(id).is_some_and(|(_, modified)| *modified <= at) {
                    self.healths.remove(id);
                }
                self.forget_seen(id);
            }
            Kind::Drain => {
                if self.drains.get(id).is_some_and(|modified| *modified <= at) {
                    self.drains.remove(id);
                }
                self.forget_seen(id);
            }
        }
        true
    }

    /// Everything up to here was delivered.
    pub(super) fn progress(&mut self, to: Revision) {
        self.revision = self.revision.max(to);
    }

    /// Lets go of what was held for long enough; `true` if that changes the picture.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let was_holding = self.is_holding();
        let before = self.lost.len();
        self.lost.retain(|_, lost| lost.until > now);
        was_holding && self.lost.len() < before
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.lost.values().map(|lost| lost.until).min()
    }

    /// The picture. What did not change since the last one is shared with it.
    pub(super) fn snapshot(&mut self, stale_since: Option<Instant>) -> Snapshot {
        for (id, present) in &mut self.instances {
            if present.seen.is_none() {
                present.seen = Some(Arc::new(present.show(self.healths.get(id), self.drains.contains_key(id))));
            }
        }
        let missing = if self.is_holding() { self.lost.len() } else { 0 };
        let mut instances: Vec<_> = self.instances.values().filter_map(|present| present.seen.clone()).collect();
        let judged = self.judge(&instances, missing);
        if missing > 0 {
            instances.extend(self.lost.values().map(|lost| lost.seen.clone()));
            instances.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
        }
        Snapshot {
            service: self.service.clone(),
            revision: self.revision,
            instances: instances.into(),
            state: stale_since.map_or(judged, |since| State::Stale { since }),
            skipped: self.skipped.len(),
        }
    }

    fn put(&mut self, entry: Entry) {
        if self.try_put(&entry) {
            self.skipped.remove(&entry.key);
        } else {
            self.skipped.insert(entry.key);
        }
    }

    /// `false` for what the directory did not write.
    fn try_put(&mut self, entry: &Entry) -> bool {
        let Some((kind, id)) = Kind::of(entry.key.name()) else {
            return false;
        };
        match kind {
            Kind::Instance => {
                self.lost.remove(id);
                let Some(record) = Record::read(entry, &self.service, id) else {
                    // Whatever it was before, it is that no longer.
                    self.instances.remove(id);
                    return false;
                };
                let present = Present { record, created: entry.created, modified: entry.modified, seen: None };
                self.instances.insert(id.to_owned(), present);
            }
            Kind::Health => {
                self.forget_seen(id);
                let Some(report) = json::read::<Report>(entry) else {
                    self.healths.remove(id);
                    return false;
                };
                self.healths.insert(id.to_owned(), (report.health, entry.modified));
            }
            Kind::Drain => {
                // It counts whatever is written in it: no traffic is the safe side.
                self.drains.insert(id.to_owned(), entry.modified);
                self.forget_seen(id);
                return json::read::<DrainMarker>(entry).is_some();
            }
        }
        true
    }

    fn forget_seen(&mut self, id: &str) {
        if let Some(present) = self.instances.get_mut(id) {
            present.seen = None;
        }
    }

    fn lose(&mut self, id: String, present: &mut Present, now: Instant) {
        let draining = self.drains.contains_key(&id);
        let mut seen = present.show(None, draining);
        seen.held = true;
        seen.health = Health::Failing { why: "it vanished without deregistering".to_owned() };
        self.lost.insert(id, Lost { seen: Arc::new(seen), until: now + self.protection.hold });
    }

    /// Whether what vanished of late is too much to be believed: then all of it is held, also what was let go at first,
    /// since a mass death arrives one entry at a time.
    fn is_holding(&self) -> bool {
        let (present, lost) = (self.instances.len(), self.lost.len());
        let least = self.protection.share * (present + lost) as f64;
        self.protection.share > 0.0 && lost > 0 && (present == 0 || (present as f64) < least)
    }

    fn judge(&self, present: &[Arc<Seen>], missing: usize) -> State {
        if missing > 0 {
            let all = present.len() + missing;
            return State::Degraded {
                missing,
                why: format!("{missing} of {all} instances vanished within {:?} of each other", self.protection.hold),
            };
        }
        let checked = present.iter().filter(|seen| seen.health != Health::Unchecked).count();
        let failing = present.iter().filter(|seen| matches!(seen.health, Health::Failing { .. })).count();
        if failing * 2 > checked {
            return State::Degraded { missing, why: format!("{failing} of {checked} checked instances are failing") };
        }
        State::Fresh
    }
}

impl Present {
    fn show(&self, health: Option<&(Health, Revision)>, draining: bool) -> Seen {
        Seen {
            instance: self.record.instance.clone(),
            created: self.created,
            health: health.map(|(health, _)| health.clone()).unwrap_or_default(),
            draining: draining || self.record.draining,
            held: false,
        }
    }
}
