//! What clients asked and were told, and what the engine may therefore hold.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use coact_core::{
    Effect, Result,
    contract::kv::{Entry, Page, Revision, TxnOutcome, Write},
    name::Key,
};
use coact_testkit::check::linearizable::{self, Action, Operation, Returned};

/// All operations, by their number: it is written into every value.
#[derive(Debug, Default)]
pub(super) struct Model {
    clock: u64,
    writes: BTreeMap<u64, Written>,
    reads: Vec<Operation>,
    /// The newest revision that anybody was told.
    told: Revision,
}

/// A write to send.
#[derive(Debug)]
pub(super) struct Wrote {
    pub(super) operation: u64,
    pub(super) writes: Vec<Write>,
}

#[derive(Debug)]
struct Written {
    writes: Vec<Write>,
    called: u64,
    asked_at: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// On its way, or its answer was lost.
    Open,
    Acknowledged {
        revision: Revision,
        at: u64,
        answered_at: Instant,
    },
    /// It was not applied.
    Refused,
    /// It was open at a crash: it happened by this time and revision, or never.
    Settled {
        by: u64,
        revision: Revision,
    },
    /// Acknowledged, and lost as the durability allows.
    Lost,
}

impl Model {
    /// The next instant of logical time.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn put(&mut self, keys: &[&Key], length: usize, now: Instant) -> Wrote {
        let operation = self.clock + 1;
        let mut value = format!("{operation}:").into_bytes();
        value.resize(value.len() + length, b'x');
        let put = |key: &&Key| Write::Put { key: (*key).clone(), value: value.clone().into(), lease: None };
        self.begin(keys.iter().map(put).collect(), now)
    }

    pub(super) fn delete(&mut self, key: &Key, now: Instant) -> Wrote {
        self.begin(vec![Write::Delete(key.clone())], now)
    }

    fn begin(&mut self, writes: Vec<Write>, asked_at: Instant) -> Wrote {
        let operation = self.tick();
        let written = Written { writes: writes.clone(), called: operation, asked_at, state: State::Open };
        self.writes.insert(operation, written);
        Wrote { operation, writes }
    }

    pub(super) fn answered(&mut self, operation: u64, answer: &Result<TxnOutcome>, now: Instant) {
        let at = self.tick();
        let state = match answer {
            Ok(TxnOutcome::Committed { revision, .. }) => {
                self.saw_revision(*revision);
                State::Acknowledged { revision: *revision, at, answered_at: now }
            }
            Ok(TxnOutcome::Refused { .. }) => State::Refused,
            Err(error) if error.effect() == Effect::NotApplied => State::Refused,
            Err(_) => State::Open,
        };
        self.writes.get_mut(&operation).expect("it was asked").state = state;
    }

    pub(super) fn read(&mut self, key: &Key, called: u64, found: Option<&Entry>) {
        let action = Action::Get(found.map(|entry| self.operation_of(entry)));
        if let Some(entry) = found {
            self.saw(entry);
        }
        let returned = Returned::At(self.tick());
        self.reads.push(Operation { key: key.to_string(), action, called, returned });
    }

    /// Somebody was shown this entry.
    pub(super) fn saw(&mut self, entry: &Entry) {
        self.operation_of(entry);
        self.saw_revision(entry.modified);
    }

    pub(super) fn saw_revision(&mut self, revision: Revision) {
        self.told = self.told.max(revision);
    }

    /// After a crash that may lose what is newer than `safe_for`: takes back what came after the recovered revision.
    pub(super) fn forget_after(&mut self, recovered: Revision, crashed: Option<Instant>, safe_for: Duration) {
        for (operation, written) in &mut self.writes {
            if let State::Acknowledged { revision, answered_at, .. } = written.state
                && revision > recovered
            {
                let age = crashed.map_or(Duration::ZERO, |crashed| crashed.saturating_duration_since(answered_at));
                assert!(age <= safe_for, "operation {operation} is lost, {age:?} after it was acknowledged");
                written.state = State::Lost;
            }
        }
        self.told = self.told.min(recovered);
    }

    /// Checks what the engine holds after it was reopened, when no request is on its way.
    pub(super) fn verify(&mut self, page: &Page) {
        assert!(page.revision >= self.told, "revision {} after {} was told", page.revision, self.told);
        let by_key: BTreeMap<&Key, &Entry> = page.entries.iter().map(|entry| (&entry.key, entry)).collect();
        for entry in &page.entries {
            self.verify_entry(entry);
        }
        self.verify_that_nothing_is_lost(&by_key);
        for entry in &page.entries {
            self.verify_that_it_is_whole(entry, &by_key);
        }
        self.settle(page);
    }

    /// Which operation wrote it; it must have been asked so.
    fn operation_of(&self, entry: &Entry) -> u64 {
        let text = String::from_utf8_lossy(&entry.value);
        let number = text.split(':').next().and_then(|number| number.parse().ok()).expect("every value has a number");
        let written = self.writes.get(&number).unwrap_or_else(|| panic!("nobody asked for operation {number}"));
        let asked = written.writes.iter().any(|write| match write {
            Write::Put { key, value, .. } => *key == entry.key && *value == entry.value,
            _ => false,
        });
        assert!(asked, "operation {number} did not write {} to {}", text, entry.key);
        number
    }

    fn verify_entry(&self, entry: &Entry) {
        let operation = self.operation_of(entry);
        let state = self.writes[&operation].state;
        let may_be = match state {
            State::Open => true,
            State::Acknowledged { revision, .. } => revision == entry.modified,
            State::Settled { revision, .. } => entry.modified <= revision,
            State::Refused | State::Lost => false,
        };
        assert!(may_be, "{} holds operation {operation} at {}, which is {state:?}", entry.key, entry.modified);
    }

    fn verify_that_nothing_is_lost(&self, found: &BTreeMap<&Key, &Entry>) {
        let deletions = self.deletions();
        for (operation, written) in &self.writes {
            let State::Acknowledged { revision, .. } = written.state else { continue };
            for write in &written.writes {
                let key = write.key();
                let is_there = match found.get(key) {
                    Some(entry) => entry.modified >= revision,
                    None => {
                        matches!(write, Write::Delete(_))
                            || deletions.get(key).is_some_and(|deleted| *deleted > revision)
                    }
                };
                assert!(is_there, "operation {operation} on {key} was acknowledged at {revision} and is lost");
            }
        }
    }

    /// All that one operation wrote is there, or what came after it.
    fn verify_that_it_is_whole(&self, entry: &Entry, found: &BTreeMap<&Key, &Entry>) {
        let (operation, deletions) = (self.operation_of(entry), self.deletions());
        for write in &self.writes[&operation].writes {
            let key = write.key();
            let is_there = match found.get(key) {
                Some(other) => other.modified >= entry.modified,
                None => deletions.get(key).is_some_and(|deleted| *deleted > entry.modified),
            };
            assert!(is_there, "operation {operation} is at {} but not at {key}", entry.key);
        }
    }

    /// When each key may have been deleted last.
    fn deletions(&self) -> BTreeMap<&Key, Revision> {
        let mut last = BTreeMap::new();
        for written in self.writes.values() {
            let deleted = match written.state {
                State::Open => Revision(u64::MAX),
                State::Acknowledged { revision, .. } | State::Settled { revision, .. } => revision,
                State::Refused | State::Lost => continue,
            };
            for write in written.writes.iter().filter(|write| matches!(write, Write::Delete(_))) {
                let last = last.entry(write.key()).or_insert(deleted);
                *last = deleted.max(*last);
            }
        }
        last
    }

    /// Nothing that was on its way can still arrive.
    fn settle(&mut self, page: &Page) {
        let by = self.tick();
        for written in self.writes.values_mut().filter(|written| written.state == State::Open) {
            written.state = State::Settled { by, revision: page.revision };
        }
        self.saw_revision(page.revision);
        for entry in &page.entries {
            let called = self.tick();
            self.read(&entry.key, called, Some(entry));
        }
    }

    pub(super) fn verify_linearizability(&self) {
        let mut history = self.reads.clone();
        for (operation, written) in &self.writes {
            let returned = match written.state {
                State::Refused | State::Lost => continue,
                State::Acknowledged { at, .. } => Returned::At(at),
                State::Settled { by, .. } => Returned::UnknownBy(by),
                State::Open => Returned::Unknown,
            };
            history.extend(written.writes.iter().map(|write| {
                let new = matches!(write, Write::Put { .. }).then_some(*operation);
                let (key, called) = (write.key().to_string(), written.called);
                Operation { key, action: Action::Put(new), called, returned }
            }));
        }
        if let Err(why) = linearizable::check(&history) {
            panic!("{why}");
        }
    }

    /// Everything that happened, as text.
    pub(super) fn log(&self) -> String {
        let began = self.writes.values().map(|written| written.asked_at).min();
        let mut log = String::new();
        for (operation, written) in &self.writes {
            let after = began.map(|began| written.asked_at - began);
            let state = match written.state {
                State::Acknowledged { revision, at, .. } => format!("at {revision}, {at}"),
                other => format!("{other:?}"),
            };
            writeln!(log, "{operation} after {after:?}: {state}").expect("a string takes everything");
        }
        log
    }
}
