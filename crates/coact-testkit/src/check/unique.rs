//! Ids: none twice, and growing for each generator.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

/// Every id that was issued.
#[derive(Debug, Default)]
pub struct Ids(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    issued_by: HashMap<u64, String>,
    last: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl Ids {
    /// Notes that this generator issued this id.
    pub fn issued(&self, generator: &str, id: u64) {
        let mut state = self.0.lock();
        if let Some(other) = state.issued_by.insert(id, generator.to_owned()) {
            state.violations.push(format!("{generator} issued {id}, as {other} had before"));
        }
        if let Some(last) = state.last.insert(generator.to_owned(), id).filter(|last| *last >= id) {
            state.violations.push(format!("{generator} issued {id} after {last}"));
        }
    }

    /// How many different ids there were.
    pub fn count(&self) -> usize {
        self.0.lock().issued_by.len()
    }

    /// What must never be, in words.
    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ids_pass() {
        let ids = Ids::default();
        for (generator, id) in [("a", 1), ("b", 2), ("b", 3), ("a", 10)] {
            ids.issued(generator, id);
        }
        assert_eq!((ids.count(), ids.violations()), (4, vec![]));
    }

    #[test]
    fn a_duplicate_and_a_step_back_are_found() {
        let ids = Ids::default();
        for (generator, id) in [("a", 1), ("b", 2), ("b", 1), ("a", 7)] {
            ids.issued(generator, id);
        }
        assert_eq!(ids.violations(), ["b issued 1, as a had before", "b issued 1 after 2"]);
    }
}
