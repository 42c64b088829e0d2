//! Leases: deadlines in the node's monotonic time, and the keys that each one's end deletes.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// The longest lease; etcd's limit.
pub(crate) const MAX_LEASE: Duration = Duration::from_secs(9_000_000_000);

#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    leases: HashMap<i64, LeaseState>,
    /// Ended by the writer, though not yet visibly so: for readers they have nothing left, and still are.
    ending: HashMap<i64, LeaseState>,
    /// When to look at a lease again. A renewal does not touch it: what comes up too early is put back.
    due: BinaryHeap<Reverse<(Instant, i64)>>,
}

#[derive(Clone, Debug)]
pub(crate) struct LeaseState {
    pub(crate) ttl: Duration,
    pub(crate) deadline: Instant,
    pub(crate) keys: BTreeSet<Arc<[u8]>>,
}

impl LeaseTable {
    pub(crate) fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// A lease as readers see it.
    pub(crate) fn get(&self, id: i64) -> Option<&LeaseState> {
        self.leases.get(&id).or_else(|| self.ending.get(&id))
    }

    /// All leases as readers see them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &LeaseState)> {
        self.leases.iter().chain(&self.ending).map(|(id, lease)| (*id, lease))
    }

    pub(crate) fn insert(&mut self, id: i64, ttl: Duration, now: Instant) {
        let deadline = deadline(now, ttl);
        self.leases.insert(id, LeaseState { ttl, deadline, keys: BTreeSet::new() });
        self.due.push(Reverse((deadline, id)));
    }

    pub(crate) fn renew(&mut self, id: i64, now: Instant) -> Option<Duration> {
        let lease = self.leases.get_mut(&id)?;
        lease.deadline = deadline(now, lease.ttl);
        Some(lease.ttl)
    }

    /// Gives every lease its full length again: after a restart nobody knows when it was last renewed.
    pub(crate) fn renew_all(&mut self, now: Instant) {
        self.due.clear();
        for (id, lease) in &mut self.leases {
            lease.deadline = deadline(now, lease.ttl);
            self.due.push(Reverse((lease.deadline, *id)));
        }
    }

    /// Ends a lease for the writer and returns its keys; readers see it until [`publish`](Self::publish).
    pub(crate) fn end(&mut self, id: i64, now: Instant) -> Option<BTreeSet<Arc<[u8]>>> {
        let lease = self.leases.remove(&id)?;
        let keys = lease.keys.clone();
        self.ending.insert(id, LeaseState { deadline: now, ..lease });
        Some(keys)
    }

    /// What ended is gone for readers, too.
    pub(crate) fn publish(&mut self) {
        self.ending.clear();
    }

    pub(crate) fn attach(&mut self, id: i64, key: &Arc<[u8]>) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    pub(crate) fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// When the next lease may end.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the leases whose deadline has passed off the schedule. They end when the caller removes them.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<i64> {
        let mut ended = Vec::new();
        while let Some(Reverse((at, id))) = self.due.peek().copied() {
            if at > now {
                break;
            }
            self.due.pop();
            match self.leases.get(&id) {
                Some(lease) if lease.deadline <= now => ended.push(id),
                Some(lease) => self.due.push(Reverse((lease.deadline, id))),
                None => {}
            }
        }
        ended
    }
}

fn deadline(now: Instant, ttl: Duration) -> Instant {
    // Three hundred years are as good as for ever, and do not overflow the clock.
    now.checked_add(ttl).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_renewed_lease_is_not_due_and_an_old_entry_does_not_end_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut table = LeaseTable::default();
        table.insert(1, Duration::from_secs(10), at(0));
        table.insert(2, Duration::from_secs(20), at(0));
        assert_eq!(table.renew(1, at(5)), Some(Duration::from_secs(10)));
        assert_eq!(table.take_due(at(10)), []);
        assert_eq!(table.take_due(at(15)), [1]);
        table.end(1, at(15)).expect("it was there");
        assert!(table.get(1).is_some() && !table.contains(1), "until it is published");
        table.publish();
        assert!(table.get(1).is_none());
        assert_eq!(table.renew(1, at(15)), None);
        assert_eq!(table.take_due(at(19)), []);
        assert_eq!(table.take_due(at(25)), [2]);
    }
}
