//! A record in the hands of whoever processes it.

use std::sync::Arc;

use coact_core::{
    contract::stream::{Record, StoredRecord},
    name::Topic,
};

use super::state::Shared;
use crate::mq::group::TopicPartition;

/// A record that was delivered. It counts as in flight until it is [acknowledged](Self::ack) or dropped.
///
/// A record that was dropped without an acknowledgement is unfinished: it comes again when the partition is read anew, by
/// the next consumer, or after [`Consumer::seek`](super::Consumer::seek).
#[derive(Debug)]
pub struct Delivery {
    shared: Arc<Shared>,
    place: TopicPartition,
    era: u64,
    record: StoredRecord,
}

impl Delivery {
    pub(super) fn new(shared: Arc<Shared>, place: TopicPartition, era: u64, record: StoredRecord) -> Self {
        Self { shared, place, era, record }
    }

    /// The topic that it is of.
    pub fn topic(&self) -> &Topic {
        &self.place.topic
    }

    /// The partition that it is of.
    pub fn partition(&self) -> u32 {
        self.place.partition
    }

    /// The record, with its offset and time.
    pub fn record(&self) -> &StoredRecord {
        &self.record
    }

    /// What was produced.
    pub fn message(&self) -> &Record {
        &self.record.record
    }

    /// Whether the partition is still this consumer's: if not, somebody else does the record.
    pub fn is_current(&self) -> bool {
        self.shared.is_current(&self.place, self.era)
    }

    /// The record is done: the next commit says so. False if the partition is not this consumer's any more, so that the
    /// record is done again elsewhere.
    pub fn ack(self) -> bool {
        self.finish()
    }

    pub(in crate::mq) fn finish(&self) -> bool {
        self.shared.finish(&self.place, self.era, self.record.offset)
    }

    pub(in crate::mq) fn place(&self) -> &TopicPartition {
        &self.place
    }

    pub(in crate::mq) fn era(&self) -> u64 {
        self.era
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.shared.release(&self.place);
    }
}

/// Work on a partition that holds no delivery: the partition is not given up before it ends.
#[derive(Debug)]
pub(in crate::mq) struct Busy {
    shared: Arc<Shared>,
    place: TopicPartition,
}

impl Busy {
    pub(in crate::mq) fn new(shared: &Arc<Shared>, place: &TopicPartition) -> Self {
        shared.claim(place);
        Self { shared: shared.clone(), place: place.clone() }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.shared.release(&self.place);
    }
}
