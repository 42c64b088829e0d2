//! Delayed records of one topic, by time.

use coact_core::contract::stream::{DELAY_BUCKETS, DelayStats, LATENESS_BUCKETS};

use crate::{body::Place, paged::PagedMap};

/// When, and which of those due at the same time.
pub(crate) type DelayKey = (u64, u64);

/// A delayed record without its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delayed {
    pub(crate) partition: u32,
    pub(crate) place: Place,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Delays {
    pub(crate) pending: PagedMap<DelayKey, Delayed>,
    pub(crate) next_number: u64,
    /// How many were handed over with at most each lateness, since the engine was opened.
    by_lateness: [u64; LATENESS_BUCKETS.len() + 1],
}

impl Delays {
    pub(crate) fn add(&mut self, key: DelayKey, delayed: Delayed) {
        self.pending.insert(key, delayed);
        self.next_number = self.next_number.max(key.1 + 1);
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.pending.first().map(|((due_ms, _), _)| *due_ms)
    }

    pub(crate) fn note_lateness(&mut self, late_ms: u64) {
        let bucket = LATENESS_BUCKETS.partition_point(|edge| *edge < late_ms);
        self.by_lateness[bucket] += 1;
    }

    pub(crate) fn stats(&self, now_ms: u64) -> DelayStats {
        let mut by_due = vec![0; DELAY_BUCKETS.len() + 1];
        let mut counted = 0;
        for (bucket, edge) in DELAY_BUCKETS.iter().enumerate() {
            let up_to = self.pending.rank(&(now_ms + edge.as_millis() as u64, u64::MAX)) as u64;
            by_due[bucket] = up_to - counted;
            counted = up_to;
        }
        by_due[DELAY_BUCKETS.len()] = self.pending.len() as u64 - counted;
        DelayStats {
            pending: self.pending.len() as u64,
            next_due_ms: self.next_due(),
            by_due,
            by_lateness: self.by_lateness.to_vec(),
        }
    }
}
