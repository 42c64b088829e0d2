//! What the locks of a session have done.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A snapshot of counters since the session opened. Divide wake-ups by acquisitions to see herds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Locks granted.
    pub acquisitions: u64,
    /// Acquires that had to wait for somebody.
    pub waits: u64,
    /// Times that the store woke a waiter.
    pub wakeups: u64,
    /// Wake-ups after which the awaited entry was still there.
    pub spurious_wakeups: u64,
    /// Times that a waiter looked on its own account, because no wake-up came within the session's ttl.
    pub rereads: u64,
}

/// The counters themselves. They tell nothing about each other, so relaxed order will do.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(super) acquisitions: Counter,
    pub(super) waits: Counter,
    pub(super) wakeups: Counter,
    pub(super) spurious_wakeups: Counter,
    pub(super) rereads: Counter,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            acquisitions: self.acquisitions.get(),
            waits: self.waits.get(),
            wakeups: self.wakeups.get(),
            spurious_wakeups: self.spurious_wakeups.get(),
            rereads: self.rereads.get(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
