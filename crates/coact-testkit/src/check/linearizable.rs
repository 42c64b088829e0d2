//! Whether the history of a register is linearizable: whether some order of its operations explains every answer, and
//! keeps the order of those that did not overlap.
//!
//! The search is Wing and Gong's with Lowe's memory of the configurations that lead nowhere.

use std::collections::{BTreeMap, HashSet};

/// The most operations of one key; the search may take too long beyond.
pub const OPERATIONS_MAX: usize = 1_000;

/// What an operation asked, and was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets the value; `None` deletes it.
    Put(Option<u64>),
    /// Read this value; `None` if there was none.
    Get(Option<u64>),
    /// Sets the value if it is `expected`, and was told whether it did.
    Cas {
        /// What the value must be.
        expected: Option<u64>,
        /// What it becomes.
        new: Option<u64>,
        /// Whether it did.
        succeeded: bool,
    },
}

/// One operation of a history. Times are any numbers that grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// On which register.
    pub key: String,
    /// What.
    pub action: Action,
    /// When it was asked.
    pub called: u64,
    /// When it was answered.
    pub returned: Returned,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// It was answered at this time.
    At(u64),
    /// It was not answered: it took effect at some time after the call, or never. For a compare-and-set, `succeeded`
    /// says nothing then.
    Unknown,
    /// It was not answered: it took effect between the call and this time, or never.
    UnknownBy(u64),
}

/// Checks the history of every key; each register is empty at first.
///
/// # Errors
/// Names the key whose history no order explains.
///
/// # Panics
/// If a key has more than [`OPERATIONS_MAX`] operations.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    for (key, mut operations) in by_key {
        assert!(operations.len() <= OPERATIONS_MAX, "{key} has {} operations", operations.len());
        operations.sort_by_key(|operation| operation.called);
        Search { operations: &operations, seen: HashSet::new(), deepest: 0 }.run(key)?;
    }
    Ok(())
}

struct Search<'a> {
    /// By the time of their calls.
    operations: &'a [&'a Operation],
    seen: HashSet<Configuration>,
    /// The most operations that one order explained.
    deepest: usize,
}

/// Which operations have taken effect, and the value then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Configuration {
    done: Vec<u64>,
    value: Option<u64>,
}

impl Configuration {
    fn is_done(&self, index: usize) -> bool {
        self.done[index / 64] >> (index % 64) & 1 == 1
    }

    fn last_done(&self) -> Option<usize> {
        let word = self.done.iter().rposition(|word| *word != 0)?;
        Some(word * 64 + 63 - self.done[word].leading_zeros() as usize)
    }

    fn with(&self, index: usize, value: Option<u64>) -> Self {
        let mut next = Self { done: self.done.clone(), value };
        next.done[index / 64] |= 1 << (index % 64);
        next
    }
}

impl Search<'_> {
    fn run(mut self, key: &str) -> Result<(), String> {
        let start = Configuration { done: vec![0; self.operations.len().div_ceil(64)], value: None };
        let mut stack = vec![start];
        while let Some(here) = stack.pop() {
            let explained = here.done.iter().map(|word| word.count_ones() as usize).sum();
            self.deepest = self.deepest.max(explained);
            let Some(latest) = self.first_return(&here) else { return Ok(()) };
            let candidates = self.candidates(&here, latest);
            for next in candidates {
                if self.seen.insert(next.clone()) {
                    stack.push(next);
                }
            }
        }
        Err(format!(
            "the history of {key} is not linearizable: no order explains more than {} of its {} operations: {:#?}",
            self.deepest,
            self.operations.len(),
            self.operations
        ))
    }

    /// When the first of the operations returns that have not yet taken effect but must; `None` if there are none.
    fn first_return(&self, here: &Configuration) -> Option<u64> {
        let mut first = None;
        for (_, operation) in self.open(here) {
            // None returns before it is called.
            if first.is_some_and(|first| operation.called > first) {
                break;
            }
            if let Returned::At(time) = operation.returned {
                first = Some(first.map_or(time, |first: u64| first.min(time)));
            }
        }
        first
    }

    /// What may follow: operations called before that return whose answer fits the value.
    fn candidates(&self, here: &Configuration, latest: u64) -> Vec<Configuration> {
        let now = here.last_done().map_or(0, |last| self.operations[last].called);
        self.open(here)
            .take_while(|(_, operation)| operation.called <= latest)
            .filter(|(_, operation)| may_happen_at(operation, now))
            .filter_map(|(index, operation)| Some(here.with(index, effect(operation, here.value)?)))
            .collect()
    }

    /// The operations that have not taken effect, by the time of their calls.
    fn open(&self, here: &Configuration) -> impl Iterator<Item = (usize, &Operation)> {
        let whole_words = here.done.iter().take_while(|word| **word == u64::MAX).count();
        let first = whole_words * 64;
        let rest = self.operations.iter().enumerate().skip(first);
        rest.filter(|(index, _)| !here.is_done(*index)).map(|(index, operation)| (index, *operation))
    }
}

/// An operation cannot take effect after others that were called after it had ended.
fn may_happen_at(operation: &Operation, now: u64) -> bool {
    match operation.returned {
        Returned::UnknownBy(time) => now <= time,
        Returned::At(_) | Returned::Unknown => true,
    }
}

/// The value afterwards; `None` if the answer does not fit the value.
fn effect(operation: &Operation, value: Option<u64>) -> Option<Option<u64>> {
    let answered = matches!(operation.returned, Returned::At(_));
    match &operation.action {
        Action::Put(new) => Some(*new),
        Action::Get(found) => (!answered || *found == value).then_some(value),
        Action::Cas { expected, new, succeeded } => {
            let matches = *expected == value;
            (!answered || *succeeded == matches).then_some(if matches { *new } else { value })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(called: u64, returned: u64, action: Action) -> Operation {
        Operation { key: "k".to_owned(), action, called, returned: Returned::At(returned) }
    }

    fn unanswered(called: u64, action: Action, returned: Returned) -> Operation {
        Operation { key: "k".to_owned(), action, called, returned }
    }

    fn put(value: u64) -> Action {
        Action::Put(Some(value))
    }

    fn get(value: u64) -> Action {
        Action::Get(Some(value))
    }

    #[test]
    fn accepts_what_some_order_explains() {
        let cas = |succeeded| Action::Cas { expected: Some(1), new: Some(2), succeeded };
        let history = [
            at(0, 1, Action::Get(None)),
            at(2, 10, put(1)),
            at(3, 4, get(1)),
            at(5, 12, cas(true)),
            at(6, 11, cas(false)),
            at(20, 21, get(2)),
            unanswered(22, put(3), Returned::Unknown),
            at(23, 24, get(2)),
            at(25, 26, get(3)),
            at(27, 28, Action::Put(None)),
            at(29, 30, Action::Get(None)),
        ];
        check(&history).expect("linearizable");
    }

    #[test]
    fn rejects_a_stale_read() {
        let history = [at(0, 1, put(1)), at(2, 3, put(2)), at(4, 5, get(1))];
        check(&history).expect_err("1 had been overwritten");
    }

    #[test]
    fn rejects_a_lost_write_and_two_winners() {
        check(&[at(0, 1, put(1)), at(2, 3, Action::Get(None))]).expect_err("it was acknowledged");
        let cas = |new| Action::Cas { expected: None, new: Some(new), succeeded: true };
        check(&[at(0, 5, cas(1)), at(1, 6, cas(2))]).expect_err("only one can have found it empty");
    }

    #[test]
    fn an_unanswered_write_may_come_late_but_not_go_away_again() {
        let late = |returned| {
            vec![
                at(0, 1, put(1)),
                unanswered(2, put(2), returned),
                at(3, 4, get(1)),
                at(5, 6, get(2)),
                at(7, 8, get(1)),
            ]
        };
        check(&late(Returned::Unknown)).expect_err("1 does not come back");
        check(&late(Returned::Unknown)[..4]).expect("it came late");
        check(&late(Returned::UnknownBy(5))[..4]).expect("it came in time");
        check(&late(Returned::UnknownBy(2))[..4]).expect_err("it was too late for that");
        check(&late(Returned::UnknownBy(2))[..3]).expect("it never came");
    }

    #[test]
    fn a_thousand_overlapping_operations_are_checked_in_no_time() {
        let history: Vec<_> = (0..1_000)
            .map(|index| {
                let action = if index % 2 == 0 { put(index / 2) } else { get(index / 2) };
                let returned = if index % 10 == 4 { Returned::Unknown } else { Returned::At(index + 4) };
                unanswered(index, action, returned)
            })
            .collect();
        check(&history).expect("linearizable");
    }
}
