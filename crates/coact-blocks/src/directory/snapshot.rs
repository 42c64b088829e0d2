//! What a service looks like at one moment, as its watchers see it.

use std::{sync::Arc, time::Instant};

use coact_core::contract::kv::Revision;

use super::{Health, Instance};

/// A service at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The service.
    pub service: String,
    /// Up to which revision it is complete.
    pub revision: Revision,
    /// Its instances, by id.
    pub instances: Arc<[Arc<Seen>]>,
    /// How far the list can be trusted.
    pub state: State,
    /// How many entries were skipped, because they are not what the directory writes.
    pub skipped: usize,
}

/// How far a snapshot can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is what the store says.
    Fresh,
    /// The store does not answer: this is what it said last.
    Stale {
        /// Since when, on the clock of [`Env::now`](coact_core::env::Env::now).
        since: Instant,
    },
    /// The store's word is believed only in part: too much vanished or failed at once.
    Degraded {
        /// How many instances are in the list only because they are held.
        missing: usize,
        /// What happened, for people.
        why: String,
    },
}

/// One instance as seen by a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it registered.
    pub instance: Instance,
    /// The revision that created its entry: it grows with each re-registration.
    pub created: Revision,
    /// What the last check found. Of a held instance it is [`Health::Failing`]: nobody vouches for it.
    pub health: Health,
    /// Whether it, or an operator, wishes that it gets no traffic.
    pub draining: bool,
    /// Whether the store no longer has it, and it is shown only because too many vanished at once.
    pub held: bool,
}

impl Seen {
    /// Whether it should get traffic: it is there, not failing, not draining, and has a weight.
    pub fn is_healthy(&self) -> bool {
        !self.held && !self.draining && self.instance.weight > 0 && !matches!(self.health, Health::Failing { .. })
    }
}

impl Snapshot {
    /// The instances that should get traffic.
    pub fn healthy(&self) -> impl Iterator<Item = &Arc<Seen>> {
        self.instances.iter().filter(|seen| seen.is_healthy())
    }

    /// The instance of this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Seen>> {
        let index = self.instances.binary_search_by(|seen| seen.instance.id.as_str().cmp(id)).ok()?;
        self.instances.get(index)
    }
}
