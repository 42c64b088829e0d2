//! What a lock protects: a resource that keeps the highest fencing token, and notes who believes to hold the lock.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// A resource that a lock protects.
#[derive(Debug)]
pub struct Resource {
    checks_tokens: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    highest: u64,
    /// Who wrote with which token.
    writers: BTreeMap<u64, String>,
    /// Who believes to hold the lock, with which token.
    inside: BTreeMap<String, u64>,
    report: Report,
}

/// What a resource has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many writes it took.
    pub accepted: u64,
    /// How many it refused, since a higher token had written before.
    pub refused: u64,
    /// What must never be, in words: a write taken after one with a higher token, or one token in two hands.
    pub violations: Vec<String>,
    /// Where two believed to hold the lock at the same time: with leases, no violation by itself.
    pub overlaps: Vec<String>,
}

impl Resource {
    /// One that takes a write only with a token as high as the highest that wrote before.
    pub fn new() -> Self {
        Self { checks_tokens: true, state: Mutex::default() }
    }

    /// One that ignores tokens and takes every write: it shows what they are for.
    pub fn without_tokens() -> Self {
        Self { checks_tokens: false, state: Mutex::default() }
    }

    /// Somebody begins to believe that it holds the lock.
    pub fn enter(&self, holder: &str, token: u64) {
        let mut state = self.state.lock();
        for (other, theirs) in state.inside.clone() {
            state.report.overlaps.push(format!("{holder} with token {token} enters while {other} has {theirs}"));
        }
        state.inside.insert(holder.to_owned(), token);
    }

    /// Somebody stops to believe so.
    pub fn leave(&self, holder: &str) {
        self.state.lock().inside.remove(holder);
    }

    /// A write; whether it was taken.
    pub fn write(&self, holder: &str, token: u64) -> bool {
        let mut state = self.state.lock();
        if self.checks_tokens && token < state.highest {
            state.report.refused += 1;
            return false;
        }
        if token < state.highest {
            let violation = format!("{holder} writes with token {token} after {}", state.highest);
            state.report.violations.push(violation);
        }
        let writer = state.writers.entry(token).or_insert_with(|| holder.to_owned()).clone();
        if writer != holder {
            state.report.violations.push(format!("{holder} and {writer} both write with token {token}"));
        }
        state.report.accepted += 1;
        state.highest = state.highest.max(token);
        true
    }

    /// What it has seen so far.
    pub fn report(&self) -> Report {
        self.state.lock().report.clone()
    }
}

impl Default for Resource {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A is paused while it holds the lock; B gets it; A wakes up and writes.
    fn late_write(resource: &Resource) -> Report {
        resource.enter("a", 1);
        assert!(resource.write("a", 1));
        resource.leave("a");
        resource.enter("b", 5);
        assert!(resource.write("b", 5));
        resource.write("a", 1);
        resource.write("b", 5);
        resource.leave("b");
        resource.report()
    }

    #[test]
    fn a_late_write_is_refused_by_its_token() {
        let report = late_write(&Resource::new());
        assert_eq!(report, Report { accepted: 3, refused: 1, ..Report::default() });
    }

    #[test]
    fn without_tokens_a_late_write_gets_through_and_is_noted() {
        let report = late_write(&Resource::without_tokens());
        assert_eq!(report.violations, ["a writes with token 1 after 5"]);
    }

    #[test]
    fn two_holders_and_a_token_in_two_hands_are_noted() {
        let resource = Resource::new();
        resource.enter("a", 1);
        resource.write("a", 1);
        resource.enter("b", 1);
        resource.write("b", 1);
        let report = resource.report();
        assert_eq!(report.overlaps, ["b with token 1 enters while a has 1"]);
        assert_eq!(report.violations, ["b and a both write with token 1"]);
    }
}
