//! The records of one key, in order.

use std::collections::VecDeque;

use coact_core::contract::stream::Offset;

use super::parking::Back;
use crate::{
    backoff::Backoff,
    mq::{
        consumer::{Delivery, state::Shared},
        group::TopicPartition,
        retry::KeyHash,
    },
};

/// Which lane a record is in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneId {
    pub(super) place: TopicPartition,
    pub(super) which: Which,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Which {
    Key(KeyHash),
    /// A record without a key has no order, and so a lane of its own.
    One(Offset),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is to be done, or it cannot be done yet.
    Idle,
    /// It waits for its turn.
    Ready,
    /// Its head is being worked on.
    Running,
    /// Its head failed, and rests.
    Resting,
}

pub(super) struct Lane {
    pub(super) era: u64,
    pub(super) queue: VecDeque<Delivery>,
    /// How often the head failed.
    pub(super) attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) state: State,
    /// Why the head failed for the last time: it is to be moved elsewhere.
    pub(super) verdict: Option<String>,
    /// Where it is among its parked records.
    pub(super) back: Option<Back>,
    /// Parking later records and bringing back earlier ones take turns.
    pub(super) parked_last: bool,
}

impl Lane {
    pub(super) fn new(era: u64, backoff: Backoff) -> Self {
        Self {
            era,
            queue: VecDeque::new(),
            attempts: 0,
            backoff,
            state: State::Idle,
            verdict: None,
            back: None,
            parked_last: false,
        }
    }

    /// Forgets what was of another era.
    pub(super) fn restart(&mut self, era: u64) {
        self.queue.clear();
        self.back = None;
        self.succeeded();
        self.era = era;
    }

    /// The head is done with.
    pub(super) fn succeeded(&mut self) {
        self.attempts = 0;
        self.verdict = None;
        self.backoff.reset();
    }

    pub(super) fn put_back(&mut self, deliveries: Vec<Delivery>) {
        deliveries.into_iter().rev().for_each(|delivery| self.queue.push_front(delivery));
    }

    /// Whether its partition was given up.
    pub(super) fn is_stale(&self, shared: &Shared, place: &TopicPartition) -> bool {
        !shared.is_active(place, self.era)
    }
}
