//! Streams: what many clients appended and scheduled, against what the partitions hold in the end.
//!
//! A client says what it is about to do, and later what it was told. Values name their records, so each is used once.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use bytes::Bytes;
use coact_core::{
    contract::stream::{Offset, Record, StoredRecord},
    name::{Group, Topic},
};
use parking_lot::Mutex;

/// Everything that clients tried to append, and what they were told.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<State>);

/// Names one record that somebody tries to append.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(usize);

#[derive(Debug, Default)]
struct State {
    tries: Vec<Try>,
    by_value: HashMap<Bytes, usize>,
    /// Grows with everything that is noted.
    clock: u64,
    violations: Vec<String>,
}

#[derive(Debug)]
struct Try {
    place: (Topic, u32),
    key: Option<Bytes>,
    due_ms: Option<u64>,
    called: u64,
    /// `None` as long as nobody was told anything.
    returned: Option<u64>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody was told: it may be there or not.
    Unknown,
    /// It has to be there, at this offset if one was told.
    Kept(Option<Offset>),
    /// It must not be there.
    Refused,
}

impl Ledger {
    /// Somebody is about to append a record.
    pub fn appending(&self, topic: &Topic, partition: u32, record: &Record) -> Ticket {
        self.begin(topic, partition, record, None)
    }

    /// Somebody is about to schedule a record.
    pub fn scheduling(&self, topic: &Topic, partition: u32, record: &Record, due_ms: u64) -> Ticket {
        self.begin(topic, partition, record, Some(due_ms))
    }

    /// It was told that the record is at this offset.
    pub fn appended(&self, ticket: Ticket, offset: Offset) {
        self.end(ticket, Fate::Kept(Some(offset)));
    }

    /// It was told that the record is kept for later.
    pub fn scheduled(&self, ticket: Ticket) {
        self.end(ticket, Fate::Kept(None));
    }

    /// It was told that the record was not appended, or cancelled: it must not be there.
    pub fn refused(&self, ticket: Ticket) {
        self.end(ticket, Fate::Refused);
    }

    /// What must never be, in words, if these are all records of a partition from `start` on.
    pub fn violations(&self, topic: &Topic, partition: u32, start: Offset, records: &[StoredRecord]) -> Vec<String> {
        let state = self.0.lock();
        let mut verdict = Verdict { state: &state, place: (topic, partition), violations: state.violations.clone() };
        verdict.is_in_order(records);
        let found = verdict.recognized(records);
        verdict.nothing_is_lost(start, &found);
        verdict.nothing_overtook(&found);
        verdict.nothing_came_early(&found);
        verdict.violations
    }

    fn begin(&self, topic: &Topic, partition: u32, record: &Record, due_ms: Option<u64>) -> Ticket {
        let mut state = self.0.lock();
        let (number, called) = (state.tries.len(), state.tick());
        if state.by_value.insert(record.value.clone(), number).is_some() {
            state.violations.push(format!("{} was tried twice: the test is wrong", Shown(&record.value)));
        }
        let (place, key) = ((topic.clone(), partition), record.key.clone());
        state.tries.push(Try { place, key, due_ms, called, returned: None, fate: Fate::Unknown });
        Ticket(number)
    }

    fn end(&self, ticket: Ticket, fate: Fate) {
        let mut state = self.0.lock();
        let now = state.tick();
        let tried = &mut state.tries[ticket.0];
        tried.fate = fate;
        // A record that is cancelled later was scheduled when it was.
        tried.returned.get_or_insert(now);
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// What is found out about one partition.
struct Verdict<'a> {
    state: &'a State,
    place: (&'a Topic, u32),
    violations: Vec<String>,
}

/// A record that somebody tried to append.
type Recognized<'a> = (&'a Try, &'a StoredRecord);

impl<'a> Verdict<'a> {
    fn is_in_order(&mut self, records: &[StoredRecord]) {
        for pair in records.windows(2) {
            let [one, next] = pair else { continue };
            if next.offset <= one.offset {
                self.note(format!("offset {} follows {}", next.offset, one.offset));
            }
            if next.time_ms < one.time_ms {
                self.note(format!("at offset {} time goes back from {} to {}", next.offset, one.time_ms, next.time_ms));
            }
        }
    }

    fn recognized(&mut self, records: &'a [StoredRecord]) -> Vec<Recognized<'a>> {
        let (mut found, mut seen) = (Vec::new(), HashMap::new());
        for stored in records {
            let value = Shown(&stored.record.value);
            if let Some(first) = seen.insert(stored.record.value.clone(), stored.offset) {
                self.note(format!("{value} is there twice, at {first} and {}", stored.offset));
            }
            let known = self.state.by_value.get(&stored.record.value).map(|number| &self.state.tries[*number]);
            let Some(tried) = known.filter(|tried| (&tried.place.0, tried.place.1) == self.place) else {
                self.note(format!("{value} at {} was never appended there", stored.offset));
                continue;
            };
            match tried.fate {
                Fate::Refused => self.note(format!("{value} at {} was refused or cancelled", stored.offset)),
                Fate::Kept(Some(told)) if told != stored.offset => {
                    self.note(format!("{value} was acknowledged at {told} and is at {}", stored.offset));
                }
                _ => {}
            }
            if tried.key != stored.record.key {
                self.note(format!("{value} at {} has another key", stored.offset));
            }
            found.push((tried, stored));
        }
        found
    }

    fn nothing_is_lost(&mut self, start: Offset, found: &[Recognized<'_>]) {
        let there: BTreeMap<_, _> = found.iter().map(|(tried, stored)| (tried.called, stored.offset)).collect();
        for (value, number) in &self.state.by_value {
            let tried = &self.state.tries[*number];
            let Fate::Kept(offset) = tried.fate else { continue };
            let was_trimmed = start > Offset(0) && offset.is_none_or(|offset| offset < start);
            let is_here = (&tried.place.0, tried.place.1) == self.place;
            if is_here && !was_trimmed && !there.contains_key(&tried.called) {
                self.violations.push(format!("{}: {} was acknowledged and is lost", self.shown(), Shown(value)));
            }
        }
    }

    /// What was acknowledged before another was tried comes before it: so each client, and each key, has its order.
    fn nothing_overtook(&mut self, found: &[Recognized<'_>]) {
        let mut newest: Option<Recognized<'_>> = None;
        for (tried, stored) in found.iter().filter(|(tried, _)| tried.due_ms.is_none()) {
            if let Some((ahead, earlier)) = newest
                && tried.returned.is_some_and(|returned| returned < ahead.called)
            {
                let (late, early) = (Shown(&stored.record.value), Shown(&earlier.record.value));
                self.note(format!("{late} was acknowledged before {early} was tried, and comes after it"));
            }
            if newest.is_none_or(|(ahead, _)| ahead.called < tried.called) {
                newest = Some((tried, stored));
            }
        }
    }

    /// Delayed records come at their time or later, and those that waited at the same time in the order of it.
    fn nothing_came_early(&mut self, found: &[Recognized<'_>]) {
        let due = |tried: &Try| tried.due_ms.unwrap_or(0);
        let delayed: Vec<_> = found.iter().filter(|(tried, _)| tried.due_ms.is_some()).collect();
        for (index, (tried, stored)) in delayed.iter().enumerate() {
            let value = Shown(&stored.record.value);
            if stored.time_ms < due(tried) {
                self.note(format!("{value} came {} ms early", due(tried) - stored.time_ms));
            }
            let overtook = delayed[..index].iter().find(|(ahead, _)| {
                due(ahead) > due(tried) && tried.returned.is_some_and(|returned| returned < ahead.called)
            });
            if let Some((_, ahead)) = overtook {
                self.note(format!("{value} was due before {} and comes after it", Shown(&ahead.record.value)));
            }
        }
    }

    fn note(&mut self, violation: String) {
        self.violations.push(format!("{}: {violation}", self.shown()));
    }

    fn shown(&self) -> String {
        format!("{}/{}", self.place.0, self.place.1)
    }
}

/// A value as text, as far as it is some.
struct Shown<'a>(&'a Bytes);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}

/// Generations of groups: what was fenced commits no more, and offsets are those that somebody committed last.
#[derive(Debug, Default)]
pub struct Fences(Mutex<FenceState>);

#[derive(Debug, Default)]
struct FenceState {
    fenced: HashMap<Group, u64>,
    violations: Vec<String>,
}

/// What a commit of a group has to respect.
#[derive(Clone, Copy, Debug)]
pub struct FenceSeen(u64);

impl Fences {
    /// Somebody was told that the group is fenced at this generation.
    pub fn fenced(&self, group: &Group, generation: u64) {
        let mut state = self.0.lock();
        let highest = state.fenced.entry(group.clone()).or_default();
        *highest = generation.max(*highest);
    }

    /// Somebody is about to commit.
    pub fn committing(&self, group: &Group) -> FenceSeen {
        FenceSeen(self.0.lock().fenced.get(group).copied().unwrap_or(0))
    }

    /// It was told that its commit of this generation was taken.
    pub fn committed(&self, group: &Group, generation: u64, seen: FenceSeen) {
        if generation < seen.0 {
            let violation = format!("{group} took a commit of generation {generation} after a fence at {}", seen.0);
            self.0.lock().violations.push(violation);
        }
    }

    /// What must never be, in words.
    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic() -> Topic {
        Topic::new("t").expect("valid")
    }

    fn record(value: &str) -> Record {
        Record::new(value.to_owned()).with_key("k")
    }

    fn stored(offset: u64, value: &str) -> StoredRecord {
        StoredRecord { offset: Offset(offset), time_ms: 1_000 + offset, record: record(value) }
    }

    /// A client appends a, b, c one after the other; d is refused, and nobody knows what became of e.
    fn ledger() -> Ledger {
        let ledger = Ledger::default();
        for (offset, value) in ["a", "b", "c"].into_iter().enumerate() {
            let ticket = ledger.appending(&topic(), 0, &record(value));
            ledger.appended(ticket, Offset(offset as u64));
        }
        ledger.refused(ledger.appending(&topic(), 0, &record("d")));
        ledger.appending(&topic(), 0, &record("e"));
        ledger
    }

    fn violations(records: &[StoredRecord]) -> Vec<String> {
        ledger().violations(&topic(), 0, Offset(0), records)
    }

    #[test]
    fn a_good_history_passes_with_and_without_what_nobody_knows() {
        let mut records = vec![stored(0, "a"), stored(1, "b"), stored(2, "c")];
        assert_eq!(violations(&records), [""; 0]);
        records.push(stored(3, "e"));
        assert_eq!(violations(&records), [""; 0]);
        assert_eq!(ledger().violations(&topic(), 0, Offset(1), &records[1..]), [""; 0], "a was trimmed");
    }

    #[test]
    fn a_lost_record_is_found() {
        assert_eq!(violations(&[stored(0, "a"), stored(2, "c")]), ["t/0: b was acknowledged and is lost"]);
    }

    #[test]
    fn a_duplicate_is_found() {
        let records = [stored(0, "a"), stored(1, "b"), stored(2, "c"), stored(3, "e"), stored(4, "e")];
        assert_eq!(violations(&records), ["t/0: e is there twice, at 3 and 4"]);
    }

    #[test]
    fn records_out_of_order_are_found() {
        let found = violations(&[stored(0, "b"), stored(1, "a"), stored(2, "c")]);
        assert!(
            found.contains(&"t/0: a was acknowledged before b was tried, and comes after it".to_owned()),
            "{found:?}"
        );
        assert!(found.contains(&"t/0: b was acknowledged at 1 and is at 0".to_owned()), "{found:?}");
        let found = violations(&[stored(0, "a"), stored(2, "c"), stored(1, "b")]);
        assert!(found.contains(&"t/0: offset 1 follows 2".to_owned()), "{found:?}");
    }

    #[test]
    fn what_was_refused_or_never_appended_is_found() {
        let records = [stored(0, "a"), stored(1, "b"), stored(2, "c"), stored(3, "d"), stored(4, "x")];
        let found = violations(&records);
        assert_eq!(found, ["t/0: d at 3 was refused or cancelled", "t/0: x at 4 was never appended there"]);
    }

    /// Scheduled one after the other, due at these times.
    fn delays(due: &[(&str, u64)]) -> (Ledger, Vec<Ticket>) {
        let ledger = Ledger::default();
        let schedule = |(value, due_ms): &(&str, u64)| {
            let ticket = ledger.scheduling(&topic(), 0, &record(value), *due_ms);
            ledger.scheduled(ticket);
            ticket
        };
        let tickets = due.iter().map(schedule).collect();
        (ledger, tickets)
    }

    #[test]
    fn an_early_delayed_record_is_found() {
        let (ledger, _) = delays(&[("a", 1_000), ("b", 1_005)]);
        let found = ledger.violations(&topic(), 0, Offset(0), &[stored(0, "a"), stored(1, "b")]);
        assert_eq!(found, ["t/0: b came 4 ms early"]);
    }

    #[test]
    fn a_delayed_record_that_came_twice_or_never_is_found() {
        let (ledger, tickets) = delays(&[("a", 0), ("b", 0), ("c", 0)]);
        ledger.refused(tickets[2]);
        let found = ledger.violations(&topic(), 0, Offset(0), &[stored(0, "a"), stored(1, "a")]);
        assert_eq!(found, ["t/0: a is there twice, at 0 and 1", "t/0: b was acknowledged and is lost"]);
        let found = ledger.violations(&topic(), 0, Offset(0), &[stored(0, "a"), stored(1, "b"), stored(2, "c")]);
        assert_eq!(found, ["t/0: c at 2 was refused or cancelled"], "one that was cancelled came");
    }

    #[test]
    fn delayed_records_out_of_the_order_of_their_time_are_found() {
        let (ledger, _) = delays(&[("a", 10), ("b", 20)]);
        let found = ledger.violations(&topic(), 0, Offset(0), &[stored(0, "b"), stored(1, "a")]);
        assert_eq!(found, ["t/0: a was due before b and comes after it"]);
        // One that was scheduled when the other had perhaps come already says nothing.
        let (ledger, _) = delays(&[("b", 20), ("a", 10)]);
        assert_eq!(ledger.violations(&topic(), 0, Offset(0), &[stored(0, "b"), stored(1, "a")]), [""; 0]);
    }

    #[test]
    fn an_old_generation_that_was_accepted_is_found() {
        let (fences, group) = (Fences::default(), Group::new("g").expect("valid"));
        let before = fences.committing(&group);
        fences.fenced(&group, 3);
        // Nobody knows which came first.
        fences.committed(&group, 2, before);
        fences.committed(&group, 3, fences.committing(&group));
        assert_eq!(fences.violations(), [""; 0]);
        fences.committed(&group, 2, fences.committing(&group));
        assert_eq!(fences.violations(), ["g took a commit of generation 2 after a fence at 3"]);
    }
}
