//! Watches: what a feed tells, folded, is what a listing shows, without gap, repetition or disorder.

use std::collections::{BTreeMap, BTreeSet};

use coact_core::{
    contract::kv::{Change, Entry, Page, Revision},
    name::Key,
};

/// Follows one feed, change by change.
#[derive(Debug)]
pub struct Follower {
    entries: BTreeMap<Key, Entry>,
    /// The revision of the last change.
    at: Revision,
    /// The feed may tell nothing up to this any more: it said that it had told all of it.
    complete_to: Revision,
    /// The entries hold everything up to this, though the feed may yet tell it: a listing after a resync.
    known_to: Revision,
    /// Changes up to this may be missing, as the feed itself said.
    forgiven_to: Revision,
    /// Between a resync and the listing that makes up for it, the entries are of no use.
    lost: bool,
    told: BTreeSet<(Revision, Key)>,
    violations: Vec<String>,
}

impl Follower {
    /// Follows a watch that began after the revision of this listing of all that it watches.
    pub fn after(page: &Page) -> Self {
        Self {
            entries: by_key(page),
            at: page.revision,
            complete_to: page.revision,
            known_to: page.revision,
            forgiven_to: page.revision,
            lost: false,
            told: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// The revision of the last change.
    pub fn at(&self) -> Revision {
        self.at
    }

    /// Whether the feed announced a gap that [`reread`](Self::reread) has not yet made up for.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Takes the next item of the feed.
    pub fn take(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => {
                self.tell(&entry.key, entry.modified);
                self.put(entry);
            }
            Change::Gone { key, at, .. } => {
                self.tell(key, *at);
                self.gone(key, *at);
            }
            Change::Progress(to) => self.progress(*to),
            Change::Resync { at, .. } => {
                self.lost = true;
                self.at = self.at.max(*at);
                self.forgiven_to = self.forgiven_to.max(*at);
            }
        }
    }

    /// Makes up for a resync with a listing that was read after it.
    pub fn reread(&mut self, page: &Page) {
        if page.revision < self.forgiven_to {
            let to = self.forgiven_to;
            self.violation(format!("the listing at {} is older than the resync at {to}", page.revision));
        }
        self.entries = by_key(page);
        self.known_to = page.revision;
        self.lost = false;
    }

    /// Compares with a listing: the feed must have told everything up to it, and nothing after it.
    pub fn compare(&mut self, page: &Page) {
        if self.lost {
            return self.violation("a listing cannot be compared before the resync is made up for".to_owned());
        }
        if page.revision < self.at {
            return self.violation(format!("the listing at {} is older than the change at {}", page.revision, self.at));
        }
        let listed = by_key(page);
        for (key, entry) in &listed {
            match self.entries.get(key) {
                None => self.violations.push(format!("{key} is listed, but the watch did not tell of it")),
                Some(told) if told != entry => {
                    self.violations.push(format!("{key} is listed as {entry:?}, the watch told {told:?}"));
                }
                Some(_) => {}
            }
        }
        for key in self.entries.keys().filter(|key| !listed.contains_key(key)) {
            self.violations.push(format!("{key} is not listed, but the watch did not tell that it went"));
        }
    }

    /// Checks that a change which somebody committed was told. Overwritten values are seen to be missing only so.
    pub fn expect(&mut self, key: &Key, at: Revision) {
        if at > self.forgiven_to && !self.told.contains(&(at, key.clone())) {
            self.violation(format!("{key} changed at {at}, but the watch did not tell it"));
        }
    }

    /// What must never be, in words.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Repetition and disorder.
    fn tell(&mut self, key: &Key, at: Revision) {
        if !self.told.insert((at, key.clone())) {
            self.violation(format!("{key} at {at} is told twice"));
        } else if at < self.at {
            self.violation(format!("{key} at {at} is told after {}", self.at));
        } else if at <= self.complete_to {
            self.violation(format!("{key} at {at} is told after everything up to {} was", self.complete_to));
        }
        self.at = self.at.max(at);
    }

    fn progress(&mut self, to: Revision) {
        if to < self.at {
            self.violation(format!("progress to {to} is told after {}", self.at));
        }
        self.complete_to = self.complete_to.max(to);
    }

    fn put(&mut self, entry: &Entry) {
        if self.lost || entry.modified <= self.known_to {
            return;
        }
        let known = self.entries.insert(entry.key.clone(), entry.clone());
        let is_new = entry.created == entry.modified;
        match known {
            Some(known) if known.created != entry.created => {
                self.violation(format!("{} at {} was created anew, but not told to go", entry.key, entry.modified));
            }
            None if !is_new => {
                self.violation(format!("{} at {} was told to change, but not to come", entry.key, entry.modified));
            }
            _ => {}
        }
    }

    fn gone(&mut self, key: &Key, at: Revision) {
        if self.lost || at <= self.known_to {
            return;
        }
        if self.entries.remove(key).is_none() {
            self.violation(format!("{key} at {at} was told to go, but not to come"));
        }
    }

    fn violation(&mut self, text: String) {
        self.violations.push(text);
    }
}

fn by_key(page: &Page) -> BTreeMap<Key, Entry> {
    page.entries.iter().map(|entry| (entry.key.clone(), entry.clone())).collect()
}

#[cfg(test)]
mod tests {
    use coact_core::{contract::kv::GoneCause, name::Realm};

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(&Realm::default(), "d", name).expect("valid")
    }

    fn entry(name: &str, created: u64, modified: u64) -> Entry {
        let (created, modified) = (Revision(created), Revision(modified));
        Entry { key: key(name), value: modified.to_string().into(), created, modified, lease: None }
    }

    fn put(name: &str, created: u64, modified: u64) -> Change {
        Change::Put(entry(name, created, modified))
    }

    fn gone(name: &str, at: u64) -> Change {
        Change::Gone { key: key(name), at: Revision(at), cause: GoneCause::Deleted }
    }

    fn page(revision: u64, entries: &[Entry]) -> Page {
        Page { entries: entries.to_vec(), more: false, revision: Revision(revision) }
    }

    /// Follows these changes after `old` was created at 3 and listed at 5.
    fn follow(changes: &[Change]) -> Follower {
        let mut follower = Follower::after(&page(5, &[entry("old", 3, 3)]));
        changes.iter().for_each(|change| follower.take(change));
        follower
    }

    #[track_caller]
    fn assert_finds(follower: &Follower, expected: &[&str]) {
        assert_eq!(follower.violations(), expected);
    }

    #[test]
    fn a_good_watch_passes() {
        let mut follower = follow(&[
            put("a", 6, 6),
            put("b", 6, 6),
            put("a", 6, 7),
            Change::Progress(Revision(9)),
            gone("old", 10),
            put("old", 12, 12),
            gone("b", 12),
        ]);
        follower.compare(&page(20, &[entry("a", 6, 7), entry("old", 12, 12)]));
        follower.expect(&key("a"), Revision(6));
        assert_finds(&follower, &[]);
        assert_eq!(follower.at(), Revision(12));
    }

    #[test]
    fn a_gap_is_found() {
        assert_finds(&follow(&[put("a", 6, 8)]), &["d/a at 8 was told to change, but not to come"]);
        assert_finds(&follow(&[gone("a", 8)]), &["d/a at 8 was told to go, but not to come"]);
        assert_finds(&follow(&[put("old", 8, 8)]), &["d/old at 8 was created anew, but not told to go"]);
    }

    #[test]
    fn a_missing_overwritten_value_is_found_by_who_wrote_it() {
        let mut follower = follow(&[put("old", 3, 8)]);
        follower.compare(&page(8, &[entry("old", 3, 8)]));
        follower.expect(&key("old"), Revision(8));
        assert_finds(&follower, &[]);
        follower.expect(&key("old"), Revision(7));
        assert_finds(&follower, &["d/old changed at 7, but the watch did not tell it"]);
    }

    #[test]
    fn repetition_and_disorder_are_found() {
        assert_finds(&follow(&[put("a", 6, 6), put("a", 6, 6)]), &["d/a at 6 is told twice"]);
        assert_finds(&follow(&[put("a", 8, 8), put("b", 7, 7)]), &["d/b at 7 is told after 8"]);
        let before_the_start = &["d/old at 5 is told after everything up to 5 was"];
        assert_finds(&follow(&[put("old", 3, 5)]), before_the_start);
        let after_progress = follow(&[Change::Progress(Revision(9)), put("a", 8, 8)]);
        assert_finds(&after_progress, &["d/a at 8 is told after everything up to 9 was"]);
        let progress_back = follow(&[put("a", 8, 8), Change::Progress(Revision(7))]);
        assert_finds(&progress_back, &["progress to 7 is told after 8"]);
    }

    #[test]
    fn a_listing_that_differs_is_found() {
        let mut follower = follow(&[put("a", 6, 6), put("b", 7, 7)]);
        follower.compare(&page(9, &[entry("b", 7, 9), entry("c", 8, 8), entry("old", 3, 3)]));
        let found = follower.violations();
        assert!(found[0].starts_with("d/b is listed as"), "{found:?}");
        assert_eq!(found[1], "d/c is listed, but the watch did not tell of it");
        assert_eq!(found[2], "d/a is not listed, but the watch did not tell that it went");
    }

    #[test]
    fn a_resync_forgives_what_it_covers_and_no_more() {
        let resync = Change::Resync { why: "compacted".to_owned(), at: Revision(10) };
        let mut follower = follow(&[resync]);
        assert!(follower.is_lost());
        follower.reread(&page(12, &[entry("a", 6, 11)]));
        // What the listing knew already may still be told.
        [put("a", 6, 11), put("a", 6, 13)].iter().for_each(|change| follower.take(change));
        follower.expect(&key("old"), Revision(9));
        follower.compare(&page(13, &[entry("a", 6, 13)]));
        assert_finds(&follower, &[]);
        follower.expect(&key("old"), Revision(12));
        follower.reread(&page(9, &[]));
        assert_finds(
            &follower,
            &["d/old changed at 12, but the watch did not tell it", "the listing at 9 is older than the resync at 10"],
        );
    }
}
