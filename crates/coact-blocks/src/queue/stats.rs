//! What a worker has done.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

/// A snapshot of a worker's counters since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Jobs claimed.
    pub claimed: u64,
    /// Jobs done: acknowledged, and the store said so.
    pub done: u64,
    /// Failures after which the job rests and is tried again.
    pub retried: u64,
    /// Jobs that are dead: by their last attempt, or killed.
    pub dead: u64,
    /// Jobs given back untried, or not to the end.
    pub released: u64,
    /// Results that were not taken, because the claim was over. A result whose first answer was lost is counted here too
    /// when it is told again, though it may have been taken.
    pub fenced: u64,
    /// Handlers that panicked; each is a failure too.
    pub panicked: u64,
    /// Results that the store never answered for.
    pub unanswered: u64,
    /// How long handlers worked, added up.
    pub busy: Duration,
}

/// The counters themselves. They tell nothing about each other, so relaxed order will do.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) claimed: Counter,
    pub(super) done: Counter,
    pub(super) retried: Counter,
    pub(super) dead: Counter,
    pub(super) released: Counter,
    pub(super) fenced: Counter,
    pub(super) panicked: Counter,
    pub(super) unanswered: Counter,
    pub(super) busy_micros: Counter,
}

impl Counters {
    pub(super) fn snapshot(&self) -> Stats {
        Stats {
            claimed: self.claimed.get(),
            done: self.done.get(),
            retried: self.retried.get(),
            dead: self.dead.get(),
            released: self.released.get(),
            fenced: self.fenced.get(),
            panicked: self.panicked.get(),
            unanswered: self.unanswered.get(),
            busy: Duration::from_micros(self.busy_micros.get()),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn increment(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
